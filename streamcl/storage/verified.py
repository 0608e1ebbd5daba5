"""Files that are whole or not there: the way checkpoints and factors reach the disk.

Order of `save`: write aside, sync, read back from the disk and compare, rename, sync the directory. The old file of that
name stays whole until the new one has been verified.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
WRITTEN_BYTES = 4 << 20  # at a time, where others are to come in between
COMPARED_BYTES = 1 << 20  # at a time, so that the comparison stays in the cache


@dataclass(frozen=True, slots=True)
class Saved:
    """A loaded file: plain metadata, and arrays as private views of the mapped file; writing to them does not change it."""

    meta: dict[str, Any]
    tensors: dict[str, npt.NDArray[Any]]


def aside(path: Path) -> Path:
    """Where a file is written before it takes its name."""
    return path.with_name(path.name + ".tmp")


def save(
    path: Path,
    meta: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
    disk: Disk,
    breathe: Callable[[], None] | None = None,
) -> None:
    """Put a file in its place; raises OSError or SyncFailed and leaves the old one, Damaged if it reads back wrong.

    breathe: called after every few milliseconds of work; all of it is then done by this thread alone.
    """
    unfinished = aside(path)
    disk.unlink(unfinished)
    try:
        written = _write(unfinished, container.contents(meta, tensors), disk, breathe)
        _check_is(written, _map(unfinished), unfinished, breathe)
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


def _write(path: Path, contents: container.Contents, disk: Disk, breathe: Callable[[], None] | None) -> list[Buffer]:
    """Write a new file, synced; returns all that it must hold."""
    fd = disk.create(path)
    try:
        first_page = _fill(fd, contents, disk) if breathe is None else _fill_slowly(fd, contents, disk, breathe)
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
        _drop_from_cache(fd)  # which begins to write it to the disk, while the digests are computed
        first_page = digested.result()
    disk.write(fd, [first_page], 0)
    return first_page


def _fill_slowly(fd: int, contents: container.Contents, disk: Disk, breathe: Callable[[], None]) -> bytes:
    """The same, piece by piece."""
    offset, digests = container.PAGE, []
    for buffers in (contents.meta, contents.body):
        digest = hashlib.sha256()
        for piece in _pieces(buffers):
            digest.update(piece)
            offset = disk.write(fd, [piece], offset)
            breathe()
        digests.append(digest.digest())
    first_page = contents.headed((digests[0], digests[1]))
    disk.write(fd, [first_page], 0)
    return first_page


def _pieces(buffers: Sequence[Buffer]) -> Iterator[memoryview]:
    for buffer in buffers:
        view = memoryview(buffer).cast("B")
        yield from (view[start : start + WRITTEN_BYTES] for start in range(0, len(view), WRITTEN_BYTES))


def _check_is(buffers: Sequence[Buffer], data: memoryview, path: Path, breathe: Callable[[], None] | None = None) -> None:
    """Raise Damaged unless a file holds exactly these bytes."""
    offset, breathe = 0, breathe or _nothing
    for buffer in buffers:
        wanted, found = np.frombuffer(buffer, np.uint8), np.frombuffer(data, np.uint8)[offset : offset + len(buffer)]
        if len(found) != len(wanted) or not are_alike(wanted, found, breathe):
            raise Damaged(f"{path}: what was read back is not what was written; is the disk sound?")
        offset += len(buffer)
    if offset != len(data):
        raise Damaged(f"{path}: expected {offset} bytes, it has {len(data)}; is the disk sound?")


def are_alike(one: npt.NDArray[Any], other: npt.NDArray[Any], breathe: Callable[[], None]) -> bool:
    """Whether two flat arrays of the same length hold the same; breathe: called between pieces."""
    for start in range(0, len(one), COMPARED_BYTES):
        if not np.array_equal(one[start : start + COMPARED_BYTES], other[start : start + COMPARED_BYTES]):
            return False
        breathe()
    return True


def _nothing() -> None:
    pass


def _drop_from_cache(fd: int) -> None:
    """Drop cached pages, so that reading back reads the disk, on systems that support it."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _map(path: Path) -> memoryview:
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
