"""What the trainer shows the other processes: whole versions of a file, replaced by atomic rename, never synced.

Guarantees: a reader gets one version or another, never parts of two. Losing a published file loses nothing: the
trainer publishes again when it starts.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from streamcl.errors import Damaged
from streamcl.storage import container

Stamp = tuple[int, int, int]


def publish(path: Path, meta: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Put a new version in place of the one before."""
    path.parent.mkdir(mode=0o700, exist_ok=True)
    aside = path.with_suffix(".tmp")
    with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.writelines(container.pack(meta, arrays, digests=False))
    aside.replace(path)


def read(path: Path) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]] | None:
    """The newest whole version: metadata and read-only arrays; None where nothing whole was published.

    Never synced, a file may come out of a power cut without its bytes: that is as good as none.
    """
    try:
        return container.unpack(memoryview(path.read_bytes()), path)
    except (FileNotFoundError, Damaged):
        return None


def stamp(path: Path) -> Stamp | None:
    """Changes whenever a new version is published; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
