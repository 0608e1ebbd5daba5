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

from streamcl.storage import container
from streamcl.storage.disk import Disk

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
    fd = disk.create(aside)
    try:
        disk.write(fd, container.pack(meta, tensors, digests=True), 0)
        disk.sync_data(fd)
        _drop_from_cache(fd)
    finally:
        disk.close(fd)
    container.unpack(_map(aside), aside)
    disk.replace(aside, directory / NAME)
    disk.sync_directory(directory)


def load(directory: Path) -> Saved | None:
    """The checkpoint, verified; None where there is none. Raises Damaged, UnknownFormat."""
    path = directory / NAME
    return Saved(*container.unpack(_map(path), path)) if path.exists() else None


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
