"""The ledger: an entry (`streamcl.entries`) for whatever changed a task's standing for good.

Appended and synced before the checkpoint that counts it.

STATE/ledger holds entries of length u32, crc32 u32, msgpack map. The checkpoint says how many are valid, so an entry
after that number belongs to a consolidation that never finished, and is cut off. Kept apart from the checkpoint, whose
size must not grow with the number of tasks.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

from streamcl import entries
from streamcl.entries import Entry
from streamcl.errors import Damaged
from streamcl.storage.checksum import crc32
from streamcl.storage.disk import Disk

NAME = "ledger"
_HEAD = struct.Struct("<II")


class Ledger:
    """Appends entries; made by `recover`."""

    def __init__(self, fd: int, end: int, count: int, disk: Disk) -> None:
        self._fd, self._end, self._count, self._disk = fd, end, count, disk

    @classmethod
    def recover(cls, directory: Path, count: int, disk: Disk) -> Ledger:
        """Open the ledger at `count` entries and cut off what follows; raises Damaged if there are fewer."""
        path = directory / NAME
        end = _offset_behind(path, count)
        if not path.exists():
            disk.close(disk.create(path))
        disk.sync_directory(directory)  # even if it existed: its maker may have died before this
        fd = disk.open(path)
        disk.truncate(fd, end)
        disk.sync_data(fd)
        return cls(fd, end, count, disk)

    def __len__(self) -> int:
        return self._count

    def append(self, entry: Entry) -> None:
        """Add one entry, durable on return; raises OSError, SyncFailed."""
        packed = entries.encode(entry)
        self._end = self._disk.write(self._fd, [_HEAD.pack(len(packed), crc32(packed)), packed], self._end)
        self._disk.sync_data(self._fd)
        self._count += 1

    def close(self) -> None:
        """Close the file."""
        self._disk.close(self._fd)


def read(directory: Path, count: int) -> list[Entry]:
    """The first `count` entries; raises Damaged where there are fewer sound ones, UnknownFormat."""
    return [entry for entry, _ in _entries(directory / NAME, count)]


def _offset_behind(path: Path, count: int) -> int:
    return max((end for _, end in _entries(path, count)), default=0)


def _entries(path: Path, count: int) -> Iterator[tuple[Entry, int]]:
    data = path.read_bytes() if path.exists() else b""
    offset = 0
    for number in range(count):
        packed = b""
        if offset + _HEAD.size <= len(data):
            length, checksum = _HEAD.unpack_from(data, offset)
            packed = data[offset + _HEAD.size : offset + _HEAD.size + length]
        if not packed or len(packed) != length or crc32(packed) != checksum:
            raise Damaged(
                f"{path}: offset {offset}: expected {count} entries, entry {number} is missing or damaged; restore the "
                f"state directory from a backup"
            )
        offset += _HEAD.size + length
        yield entries.decode(packed), offset
