"""Files that are whole or not there: the way checkpoints and factors reach the disk.

Order of `save`: write aside, sync, read back from the disk and verify, rename, sync the directory. What the name stood for
before stays whole until the new file has been verified.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from streamcl.errors import Damaged
from streamcl.storage import container
from streamcl.storage.disk import Buffer, Disk


@dataclass(frozen=True, slots=True)
class Saved:
    """A loaded file: plain metadata, and arrays as read-only views of the mapped file."""

    meta: dict[str, Any]
    tensors: dict[str, npt.NDArray[Any]]


def aside(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(path.name + ".tmp")


def save(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], disk: Disk) -> None:
    """Put a file in its place; raises OSError or SyncFailed and leaves the one before, Damaged if it reads back wrong."""
    unfinished = aside(path)
    disk.unlink(unfinished)
    try:
        _write(unfinished, container.pack(meta, tensors, digests=True), disk)
        container.unpack(_map(unfinished), unfinished)
    except (OSError, Damaged):
        disk.unlink(unfinished)  # on a full disk, half a file would be in the way of everything else
        raise
    disk.replace(unfinished, path)
    disk.sync_directory(path.parent)


def load(path: Path) -> Saved:
    """A saved file, verified; raises FileNotFoundError, Damaged, UnknownFormat."""
    return Saved(*container.unpack(_map(path), path))


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata alone, verified; raises as `load`."""
    return container.unpack_meta(_map(path), path)


def _write(path: Path, buffers: list[Buffer], disk: Disk) -> None:
    fd = disk.create(path)
    try:
        disk.write(fd, buffers, 0)
        disk.sync_data(fd)
        _drop_from_cache(fd)
    finally:
        disk.close(fd)


def _drop_from_cache(fd: int) -> None:
    """So that reading back reads the disk, where the system has a way to say so."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
