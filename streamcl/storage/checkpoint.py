"""The checkpoint: one file that holds all that was learned, replaced in one atomic rename.

Order of `save`: write aside, sync, read back from the disk and verify, rename, sync the directory. The checkpoint before
stays whole until the new one has been verified. Its size does not grow with the number of tasks.
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

NAME = "checkpoint"
ASIDE = "checkpoint.tmp"


@dataclass(frozen=True, slots=True)
class Saved:
    """A loaded checkpoint: plain metadata, and arrays as read-only views of the file."""

    meta: dict[str, Any]
    tensors: dict[str, npt.NDArray[Any]]


def save(directory: Path, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], disk: Disk) -> None:
    """Make this the checkpoint; raises OSError or SyncFailed and leaves the one before, Damaged if it reads back wrong."""
    aside = directory / ASIDE
    disk.unlink(aside)
    try:
        _write(aside, container.pack(meta, tensors, digests=True), disk)
        container.unpack(_map(aside), aside)
    except (OSError, Damaged):
        disk.unlink(aside)  # on a full disk, half a checkpoint would be in the way of everything else
        raise
    disk.replace(aside, directory / NAME)
    disk.sync_directory(directory)


def _write(path: Path, buffers: list[Buffer], disk: Disk) -> None:
    fd = disk.create(path)
    try:
        disk.write(fd, buffers, 0)
        disk.sync_data(fd)
        _drop_from_cache(fd)
    finally:
        disk.close(fd)


def load(directory: Path, disk: Disk | None = None) -> Saved | None:
    """The checkpoint, verified; None where there is none. Raises Damaged, UnknownFormat.

    For the one process that saves: what an unfinished `save` left is removed, and the name is synced, since whoever
    renamed it may have died before doing so and segments are about to be dropped on its word.
    """
    disk = disk or Disk()
    disk.unlink(directory / ASIDE)
    path = directory / NAME
    if not path.exists():
        return None
    disk.sync_directory(directory)
    return Saved(*container.unpack(_map(path), path))


def read_meta(directory: Path) -> dict[str, Any] | None:
    """The checkpoint's metadata alone, verified; None where there is no checkpoint. Raises as `load`."""
    path = directory / NAME
    return container.unpack_meta(_map(path), path) if path.exists() else None


def _drop_from_cache(fd: int) -> None:
    """So that reading back reads the disk, where the system has a way to say so."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
