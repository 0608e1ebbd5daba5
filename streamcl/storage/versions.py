"""The last boundaries' checkpoints, to which everything that was learned can be rolled back.

STATE/versions holds second names of checkpoints, each named for the number of ledger entries that it counts. A name is made
once its checkpoint is durable, and nothing is ever written to the file again; so a version costs no writing, and disk space
only once a newer checkpoint has replaced it. Bounded: the caller says how many stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from streamcl.entries import Consolidated, Entry, Forgotten, RolledBack, standing
from streamcl.errors import StreamclError
from streamcl.storage import checkpoint, frozen, verified
from streamcl.storage.disk import Disk
from streamcl.storage.frozen import Frozen
from streamcl.storage.verified import Saved

SUFFIX = ".checkpoint"
CHANGES = (Consolidated, Forgotten)  # entries after which something else is known


@dataclass(frozen=True, slots=True)
class Versions:
    """Links, reads and removes versions of the checkpoint of `state`; holds none of them in memory."""

    state: Path
    disk: Disk

    @property
    def directory(self) -> Path:
        """The directory of all versions."""
        return self.state / "versions"

    def path(self, number: int) -> Path:
        """The path of a version."""
        return self.directory / f"{number:020d}{SUFFIX}"

    def numbers(self) -> list[int]:
        """The numbers of the versions that exist, oldest first."""
        return sorted(int(path.stem) for path in self.directory.glob(f"[0-9]*{SUFFIX}"))

    def keep_only(self, numbers: Iterable[int], new: int | None = None) -> None:
        """Remove all others; durable on return. new: make the checkpoint, as it is now, this one of them first.

        Raises OSError, SyncFailed.
        """
        kept = set(numbers)
        doomed = [number for number in self.numbers() if number not in kept]
        if new is not None:
            self._link(new)
        for number in doomed:
            self.disk.unlink(self.path(number))
        if doomed or new is not None:
            self.disk.sync_directory(self.directory)

    def _link(self, number: int) -> None:
        self.disk.make_directory(self.directory)
        self.disk.unlink(self.path(number))
        self.disk.link(self.state / checkpoint.NAME, self.path(number))

    def read(self, number: int) -> Saved:
        """A version with the arrays that it refers to, verified; raises FileNotFoundError, Damaged, UnknownFormat."""
        saved = verified.load(self.path(number))
        return Saved(saved.meta, Frozen(self.state).resolved(saved.tensors))

    def references(self, number: int) -> set[str]:
        """The digests of the arrays that a version refers to; none of one that cannot be read."""
        try:
            return set(frozen.references(verified.load(self.path(number), verify=False).tensors).values())
        except (OSError, StreamclError):
            return set()

    def size(self, number: int) -> int:
        """Bytes of a version; 0 for version 0, which has no file."""
        path = self.path(number)
        return path.stat().st_size if path.exists() else 0

    def problem(self, number: int) -> str | None:
        """Why a version cannot be used, or None. Reads all of it."""
        if number == 0:
            return None
        try:
            self.read(number)
        except (OSError, StreamclError) as error:
            return str(error)
        return None


def usable(numbers: Sequence[int], count: int, entry: Entry) -> list[int]:
    """The versions that may be returned to after one more entry, number `count` of the ledger, counted from 1.

    A withdrawn task may not come back, and what was rolled back cannot be returned to; the version returned to stays.
    """
    match entry:
        case Forgotten():
            return [count]
        case RolledBack(to=to):
            return [number for number in numbers if number <= to]
    changed = isinstance(entry, CHANGES) and (not numbers or numbers[-1] < count)
    return [*numbers, count] if changed else list(numbers)


@dataclass(frozen=True, slots=True)
class Undoing:
    """What a rollback of a task would do. version: the one it returns to. undone: the tasks that are unknown afterwards.
    revisits: those that are known, but as they were before they were fed again."""

    version: int
    undone: tuple[str, ...]
    revisits: tuple[str, ...]


def undoing(task: str, entries: Sequence[Entry], numbers: Iterable[int], keep: int) -> Undoing | None:
    """What it takes to return to before a task's newest boundary, or revisit; None if no version is exact.

    entries: the whole ledger. numbers: the versions kept; 0, from before anything was learned, needs no file and counts as
    kept while no more than `keep` tasks stand. Rows that were set aside and learned later belong to their boundary.
    """
    tasks = standing(entries).tasks
    if task not in tasks:
        return None
    newest = _boundary(task, tasks[task], entries)
    version = max((number for number in numbers if number <= newest), default=0)
    earlier = standing(entries[:version]).tasks
    if _learned(earlier) != _learned(standing(entries[:newest]).tasks):
        return None
    if version == 0 and len(tasks) > keep:
        return None
    if any(_was_added(entry) and entry.task in earlier for entry in entries[newest:]):
        return None  # its rows would be neither learned nor kept
    revisits = tuple(name for name, lsn in _learned(earlier).items() if tasks[name].lsn != lsn)
    return Undoing(version, tuple(name for name in tasks if name not in earlier), revisits)


def _boundary(task: str, entry: Consolidated, entries: Sequence[Entry]) -> int:
    """The position of the boundary, or revisit, that made a standing entry."""
    place = next(i for i, each in enumerate(entries) if each.lsn == entry.lsn)
    while _was_added(entries[place]):
        place = max(i for i, e in enumerate(entries[:place]) if e.task == task and isinstance(e, Consolidated))
    return place


def _was_added(entry: Entry) -> bool:
    return isinstance(entry, Consolidated) and entry.added


def _learned(tasks: Mapping[str, Consolidated]) -> dict[str, int]:
    """By which record each task was learned."""
    return {name: entry.lsn for name, entry in tasks.items()}
