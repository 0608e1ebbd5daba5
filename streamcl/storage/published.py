"""What the trainer shows the other processes: whole versions of a file, replaced in one step, never synced.

Guarantees: a reader gets one version or another, never parts of two. Losing a published file loses nothing: the
trainer publishes again when it starts.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from streamcl.errors import Damaged
from streamcl.storage import checkpoint, container
from streamcl.storage.frozen import Frozen
from streamcl.storage.state import StateDirectory

ATTEMPTS = 3
Stamp = tuple[int, int, int]


def publish(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put a new version in place of the previous one; raises OSError, which leaves that one.

    `path` is a link to the newest version's file. Renaming the link costs nothing; renaming a file over another makes
    ext4 write it to the disk at once, where these need never be.
    """
    version = _named(path)
    try:
        with open(os.open(version, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.writelines(container.pack(meta, arrays, digests=False))
    except OSError:  # a full disk: the newest whole version stays, and what there is of this one takes no room
        version.unlink(missing_ok=True)
        raise
    _show(path, version)


def adopt(path: Path, file: Path) -> None:
    """Put a file that was written elsewhere on this disk, whole, in place of the previous version."""
    version = _named(path)
    file.rename(version)
    _show(path, version)


def _named(path: Path) -> Path:
    """The name of a new version's file."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    return path.with_name(f"{path.name}.{time.monotonic_ns()}")


def _show(path: Path, version: Path) -> None:
    link = path.with_name(f"{path.name}.link")
    link.unlink(missing_ok=True)
    link.symlink_to(version.name)
    link.replace(path)
    for other in path.parent.glob(f"{path.name}.*"):
        if other != version:
            other.unlink(missing_ok=True)


def clear(path: Path) -> None:
    """Remove what was published under a name, all versions of it."""
    for each in (path, *path.parent.glob(f"{path.name}.*")):
        each.unlink(missing_ok=True)


def read(path: Path, frozen: Frozen | None = None) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
    """The newest whole version: metadata and arrays that are the caller's own; None if nothing whole was published.

    frozen: where the arrays that it refers to are read from; without, they are left out. Never synced, a file may come out
    of a power cut without its bytes: that is as good as none.
    """
    for _ in range(ATTEMPTS):
        try:
            with path.open("rb") as file:
                private = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            meta, arrays = container.unpack(memoryview(private), path)
            return meta, arrays if frozen is None else frozen.resolved(arrays)
        except FileNotFoundError:
            continue  # none, or replaced between following the link and opening what it led to
        except (ValueError, Damaged):  # ValueError: an empty file
            return None
    return None


def posterior(state: StateDirectory) -> tuple[int, dict[str, npt.NDArray[Any]]] | None:
    """The posterior's number and arrays: from the checkpoint, or, before there is one, as published."""
    try:
        found = checkpoint.read_posterior(state.path)
    except Damaged:
        found = None
    if found is not None:
        return found
    published = read(state.posterior)
    return None if published is None else (published[0]["posterior"], published[1])


def stamp(path: Path | str) -> Stamp | None:
    """Changes whenever a new version is published; None if there is none."""
    try:
        return stamp_of(os.stat(path))
    except FileNotFoundError:
        return None


def stamp_of(status: os.stat_result) -> Stamp:
    """Of one version's file."""
    return status.st_ino, status.st_mtime_ns, status.st_size
