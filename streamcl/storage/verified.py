"""Files that are whole or not there: the way checkpoints and factors reach the disk.

Order of `save`: write aside, sync, read back from the disk and compare, rename, sync the directory. The old file of that
name stays whole until the new one has been verified.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import Damaged
from streamcl.storage import container
from streamcl.storage.disk import Buffer, Disk

BESIDE_BYTES = 1 << 20  # from this size on a thread for the digests pays
COMPARED_BYTES = 1 << 20  # at a time, so that the comparison stays in the cache


@dataclass(frozen=True, slots=True)
class Saved:
    """A loaded file: plain metadata, and arrays as private views of the mapped file; writing to them does not change it."""

    meta: dict[str, Any]
    tensors: dict[str, npt.NDArray[Any]]


def aside(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(path.name + ".tmp")


def save(path: Path, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], disk: Disk) -> None:
    """Put a file in its place; raises OSError or SyncFailed and leaves the old one, Damaged if it reads back wrong."""
    unfinished = aside(path)
    disk.unlink(unfinished)
    try:
        written = _write(unfinished, container.contents(meta, tensors), disk)
        _check_is(written, _map(unfinished), unfinished)
    except (OSError, Damaged):
        disk.unlink(unfinished)  # on a full disk, half a file would be in the way of everything else
        raise
    disk.replace(unfinished, path)
    disk.sync_directory(path.parent)


def load(path: Path, verify: bool = True) -> Saved:
    """A saved file; raises FileNotFoundError, Damaged, UnknownFormat. verify: False leaves the arrays' digest unread."""
    return Saved(*container.unpack(_map(path), path, verify))


def read_meta(path: Path) -> dict[str, Any]:
    """The metadata alone, verified; raises as `load`."""
    return container.unpack_meta(_map(path), path)


def _write(path: Path, contents: container.Contents, disk: Disk) -> list[Buffer]:
    """Write a new file, synced; returns all that it must hold."""
    fd = disk.create(path)
    try:
        first_page = _fill(fd, contents, disk)
        disk.sync_data(fd)
        _drop_from_cache(fd)
    finally:
        disk.close(fd)
    return [first_page, *contents.buffers]


def _fill(fd: int, contents: container.Contents, disk: Disk) -> bytes:
    """Write everything, computing the digests of large files while writing; returns the first page."""
    if sum(len(buffer) for buffer in contents.buffers) < BESIDE_BYTES:
        first_page = contents.first_page(True)
        disk.write(fd, [first_page, *contents.buffers], 0)
        return first_page
    with ThreadPoolExecutor(1) as beside:
        digested = beside.submit(contents.first_page, True)
        disk.write(fd, contents.buffers, container.PAGE)
        first_page = digested.result()
    disk.write(fd, [first_page], 0)
    return first_page


def _check_is(buffers: Sequence[Buffer], data: memoryview, path: Path) -> None:
    """Raise Damaged unless a file holds exactly these bytes."""
    offset = 0
    for buffer in buffers:
        wanted, found = np.frombuffer(buffer, np.uint8), np.frombuffer(data, np.uint8)[offset : offset + len(buffer)]
        if len(found) != len(wanted) or any(
            not np.array_equal(wanted[i : i + COMPARED_BYTES], found[i : i + COMPARED_BYTES])
            for i in range(0, len(wanted), COMPARED_BYTES)
        ):
            raise Damaged(f"{path}: what was read back is not what was written; is the disk sound?")
        offset += len(buffer)
    if offset != len(data):
        raise Damaged(f"{path}: expected {offset} bytes, it has {len(data)}; is the disk sound?")


def _drop_from_cache(fd: int) -> None:
    """Drop cached pages, so that reading back reads the disk, on systems that support it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
