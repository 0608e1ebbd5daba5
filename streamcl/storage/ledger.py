"""The ledger: an entry for whatever changed a task's standing for good.

Kinds: boundary, revisit, abandon (of a revisit), forget (a withdrawal), confirm (a boundary of a task that drift had closed
by then), held (a boundary at which nothing could be learned: its rows are kept), drop (what was kept is given up), rollback
(everything since a version is undone). `standing` says what holds after all of them.

Appended and synced before the checkpoint that counts it.

STATE/ledger holds entries of length u32, crc32 u32, msgpack map. The checkpoint says how many are valid, so an entry
behind that number belongs to a consolidation that never finished and is cut off. Kept apart from the checkpoint, whose
size must not grow with the number of tasks.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack

from streamcl.errors import Damaged
from streamcl.storage.disk import Disk

NAME = "ledger"
MOST_FREED = 200  # names, which a `welcome` holds
_HEAD = struct.Struct("<II")


class Ledger:
    """Appends entries; made by `recover`."""

    def __init__(self, fd: int, end: int, count: int, disk: Disk) -> None:
        self._fd, self._end, self._count, self._disk = fd, end, count, disk

    @classmethod
    def recover(cls, directory: Path, count: int, disk: Disk) -> Ledger:
        """Open the ledger at `count` entries and cut off what is behind them; raises Damaged where there are fewer."""
        path = directory / NAME
        end = _offset_behind(path, count)
        if not path.exists():
            disk.close(disk.create(path))
        disk.sync_directory(directory)  # even if it was there: its maker may have died before this
        fd = disk.open(path)
        disk.truncate(fd, end)
        disk.sync_data(fd)
        return cls(fd, end, count, disk)

    def __len__(self) -> int:
        return self._count

    def append(self, entry: Mapping[str, Any]) -> None:
        """Add one entry, durable on return; raises OSError, SyncFailed."""
        packed: bytes = msgpack.packb(dict(entry))
        self._end = self._disk.write(self._fd, [_HEAD.pack(len(packed), zlib.crc32(packed)), packed], self._end)
        self._disk.sync_data(self._fd)
        self._count += 1

    def close(self) -> None:
        """Close the file."""
        self._disk.close(self._fd)


def read(directory: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` entries; raises Damaged where there are fewer sound ones."""
    return [entry for entry, _ in _entries(directory / NAME, count)]


@dataclass(slots=True)
class Standing:
    """What holds after all entries of a ledger.

    tasks: the newest entry of each consolidated task, in the order they were first learned; its ``aside`` are the batches
    that could not be learned and are kept, as pairs of LSN and rows. forgotten: withdrawn tasks. held: by task, the entry
    of a boundary at which nothing could be learned, whose records from ``first_lsn`` to below ``end_lsn`` are kept. freed:
    the newest names whose task was undone or dropped, so that its data may come again: by the LSN of what did it.
    """

    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    held: dict[str, dict[str, Any]] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)

    def take(self, entry: Mapping[str, Any], earlier: Callable[[int], Standing]) -> None:
        """One more entry. earlier: what stood after so many entries, for a rollback."""
        task = entry["task"]
        match entry["kind"]:
            case "boundary" | "revisit":
                self.tasks[task] = dict(entry)
                self.held.pop(task, None)
            case "confirm" if task in self.tasks:  # who asked for a boundary that stands already
                self.tasks[task] |= {"producer": entry["producer"], "seq": entry["seq"]}
            case "held":
                self.held[task] = dict(entry)
            case "forget":
                self.tasks.pop(task, None)
                self.held.pop(task, None)
                self.forgotten.add(task)
            case "drop":
                self._drop(task)
                self._free([] if task in self.tasks else [task], entry["lsn"])
            case "rollback":
                self._free(entry["undone"], entry["lsn"])
                self.tasks = self.rolled_back(earlier(entry["to"]).tasks)

    def _free(self, names: Iterable[str], lsn: int) -> None:
        for name in names:
            self.freed.pop(name, None)
            self.freed[name] = lsn
        for name in list(self.freed)[:-MOST_FREED]:
            del self.freed[name]

    def _drop(self, task: str) -> None:
        self.held.pop(task, None)
        if task in self.tasks:
            self.tasks[task]["aside"] = []

    def rolled_back(self, tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """A version's tasks as they stand again: of what was set aside then, what is still kept."""
        kept = {lsn for entry in self.tasks.values() for lsn, _ in aside(entry)}
        return {
            task: {**entry, "aside": [pair for pair in aside(entry) if pair[0] in kept]} for task, entry in tasks.items()
        }

    def closed(self) -> set[str]:
        """The names that take no data: of every task that is consolidated, held or withdrawn."""
        return {*self.tasks, *self.forgotten, *self.held}

    def set_aside(self) -> dict[str, int]:
        """How many rows are set aside, of each consolidated task of which any are."""
        counts = {task: rows_aside(entry) for task, entry in self.tasks.items()}
        return {task: rows for task, rows in counts.items() if rows}

    def kept(self) -> list[tuple[int, int]]:
        """The records that must stay in the log, from and to below, since their rows were not learned."""
        held = [(entry["first_lsn"], entry["end_lsn"]) for entry in self.held.values()]
        single = [(lsn, lsn + 1) for entry in self.tasks.values() for lsn, _ in aside(entry)]
        return sorted([*held, *single])


def aside(entry: Mapping[str, Any]) -> list[list[int]]:
    """The batches of a consolidated task that were set aside: LSN and rows of each."""
    return list(entry.get("aside", ()))


def rows_aside(entry: Mapping[str, Any]) -> int:
    """How many rows of a consolidated task were set aside."""
    return sum(rows for _, rows in aside(entry))


def standing(entries: Sequence[Mapping[str, Any]]) -> Standing:
    """What holds after all entries, from the first one on."""
    result = Standing()
    for entry in entries:
        result.take(entry, lambda count: standing(entries[:count]))
    return result


def by_drift(entry: Mapping[str, Any]) -> bool:
    """Whether this is a boundary that a change of the stream has set: `lsn` is the batch that showed it."""
    return entry["kind"] in ("boundary", "held") and entry.get("origin") == "drift"


def _offset_behind(path: Path, count: int) -> int:
    return max((end for _, end in _entries(path, count)), default=0)


def _entries(path: Path, count: int) -> Iterator[tuple[dict[str, Any], int]]:
    data = path.read_bytes() if path.exists() else b""
    offset = 0
    for number in range(count):
        packed = b""
        if offset + _HEAD.size <= len(data):
            length, checksum = _HEAD.unpack_from(data, offset)
            packed = data[offset + _HEAD.size : offset + _HEAD.size + length]
        if not packed or len(packed) != length or zlib.crc32(packed) != checksum:
            raise Damaged(
                f"{path}: offset {offset}: expected {count} entries, entry {number} is missing or damaged; restore the "
                f"state directory from a backup"
            )
        offset += _HEAD.size + length
        yield msgpack.unpackb(packed), offset
