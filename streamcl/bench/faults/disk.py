"""A simulated disk: real files, of which it knows what a power cut cannot take away, and a fault at the N-th operation.

The model of a power cut. What was synced stays. Of bytes that were not, every 512-byte sector is new, zero or garbled,
and the file ends anywhere in between. Names that were created, renamed or removed since their directory was synced have
changed or not, each independently or in their order, as on file systems with and without an ordered journal.
"""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from streamcl.storage.disk import Buffer, Disk, SyncFailed

Fault = Literal["kill", "torn", "error", "full"]
SECTOR = 512
GONE = ".gone"  # unlinked files, kept aside so that their inode numbers are not given out again


class Killed(BaseException):
    """The process ended at exactly this operation; none of its code runs on."""


@dataclass(slots=True)
class Plan:
    """Which operation meets which fault. The operations of all processes are counted together, from 1.

    fault: ``kill`` ends the process before the operation; ``torn`` ends it half-way through a write; ``error`` fails it (an
    acknowledgement is lost); ``full`` lets half a write fail for lack of room. aim: the one operation to wait for from
    there on, None for any. hit: what was met, once it was.
    """

    at: int = 0
    fault: Fault = "kill"
    aim: str | None = None
    count: int = 0
    hit: str | None = None
    dead: set[str] = field(default_factory=set)

    def meet(self, owner: str, operation: str) -> Fault | None:
        """Count an operation; the fault that it meets, where it is to be half done or to fail."""
        if owner in self.dead:
            raise Killed
        self.count += 1
        if not 0 < self.at <= self.count or self.aim not in (None, f"{owner}: {operation}"):
            return None
        self.at, self.hit = 0, f"{owner}: {operation}, number {self.count}"
        if self.fault == "kill" or (self.fault == "torn" and operation != "write"):
            self.dead.add(owner)
            raise Killed
        if self.fault == "full" and operation not in ("write", "create"):
            return None
        return self.fault


class Volume:
    """A directory tree, and what in it is certain to survive."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.synced: dict[int, bytes] = {}
        self.names: dict[Path, int] = {}
        self.changes: dict[Path, list[list[tuple[Path, int | None]]]] = {}
        (root / GONE).mkdir(parents=True, exist_ok=True)
        for path in self._files():
            self.names[path] = path.stat().st_ino
            self.synced[path.stat().st_ino] = path.read_bytes()

    def _files(self) -> list[Path]:
        return [path for path in self.root.rglob("*") if path.is_file() and GONE not in path.parts]

    def changed(self, directory: Path, *names: tuple[Path, int | None]) -> None:
        """One change of a directory: names that now refer to an inode, or to none."""
        self.changes.setdefault(directory, []).append(list(names))

    def sync_directory(self, directory: Path) -> None:
        """All changes of a directory are certain."""
        for change in self.changes.pop(directory, []):
            self._commit(change)

    def _commit(self, change: Sequence[tuple[Path, int | None]]) -> None:
        for path, inode in change:
            if inode is None:
                self.names.pop(path, None)
            else:
                self.names[path] = inode

    def remove(self, path: Path) -> None:
        """Take a file's name away, but keep the file."""
        if not path.exists():
            return
        kept = self.root / GONE / str(path.stat().st_ino)
        if kept.exists():  # by its other name
            path.unlink()
        else:
            path.rename(kept)

    def cut_power(self, after: Path, rng: random.Random) -> None:
        """Leave in the directory `after` one of the states that the disk may have after a power cut."""
        for changes in self.changes.values():
            kept = changes[: rng.randint(0, len(changes))]
            if rng.random() < 0.5:
                kept = [change for change in changes if rng.random() < 0.5]
            for change in kept:
                self._commit(change)
        now = {path.stat().st_ino: path for path in [*self._files(), *(self.root / GONE).iterdir()]}
        for path, inode in self.names.items():
            target = after / path.relative_to(self.root)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(surviving(self.synced.get(inode, b""), now[inode].read_bytes(), rng))


def surviving(synced: bytes, now: bytes, rng: random.Random) -> bytes:
    """What a power cut leaves of a file: the synced part for certain, and any part of the rest."""
    length = rng.choice((len(now), rng.randint(min(len(synced), len(now)), len(now))))
    data, damaged = bytearray(now[:length]), rng.choice((0.1, 0.5))
    for start in range(0, length, SECTOR):
        end = min(start + SECTOR, length)
        before = synced[start:end]
        if data[start : start + len(before)] != before and rng.random() < damaged:  # overwritten: the old sector, whole
            data[start : start + len(before)] = before
        start += len(before)
        if start < end and rng.random() < damaged:
            if rng.random() < 0.5:
                data[start:end] = bytes(end - start)
            else:
                data[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
    return bytes(data)


class SimulatedDisk(Disk):
    """The disk of one process on a volume; every operation may meet the plan's fault. gate: passed before each."""

    def __init__(self, volume: Volume, plan: Plan, owner: str) -> None:
        self.volume, self.plan, self.owner = volume, plan, owner
        self.gate: Callable[[], None] = lambda: None
        self._held: set[int] = set()

    def let_go(self) -> None:
        """Close what a process that ended had open."""
        while self._held:
            super().close(self._held.pop())

    def open(self, path: Path) -> int:
        """An existing file."""
        fd = super().open(path)
        self._held.add(fd)
        return fd

    def close(self, fd: int) -> None:
        """Close a file."""
        self._held.discard(fd)
        super().close(fd)

    def _asked(self, operation: str) -> Fault | None:
        self.gate()
        return self.plan.meet(self.owner, operation)

    def _meet(self, operation: str) -> None:
        fault = self._asked(operation)
        if fault is not None:
            raise _failure(fault)

    def create(self, path: Path) -> int:
        """A new file; its name is certain only once its directory is synced."""
        self._meet("create")
        fd = super().create(path)
        self._held.add(fd)
        inode = os.fstat(fd).st_ino
        self.volume.synced[inode] = b""
        self.volume.changed(path.parent, (path, inode))
        return fd

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """All bytes, or half of them and the fault."""
        fault = self._asked("write")
        if fault is None:
            return super().write(fd, buffers, offset)
        whole = b"".join(buffers)
        super().write(fd, [whole[: len(whole) // 2]], offset)
        if fault == "torn":
            self.plan.dead.add(self.owner)
            raise Killed
        raise _failure(fault)

    def sync_data(self, fd: int) -> None:
        """Everything the file holds is certain."""
        if self._asked("sync"):
            raise SyncFailed("fdatasync failed: simulated")
        self.volume.synced[os.fstat(fd).st_ino] = os.pread(fd, os.fstat(fd).st_size, 0)

    def sync_directory(self, path: Path) -> None:
        """All names of the directory are certain."""
        if self._asked("sync directory"):
            raise SyncFailed("fsync of a directory failed: simulated")
        self.volume.sync_directory(path)

    def truncate(self, fd: int, length: int) -> None:
        """Truncate a file to a length."""
        self._meet("truncate")
        super().truncate(fd, length)

    def replace(self, source: Path, target: Path) -> None:
        """Atomic rename."""
        self._meet("rename")
        inode = source.stat().st_ino
        self.volume.remove(target)
        super().replace(source, target)
        self.volume.changed(target.parent, (source, None), (target, inode))

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file, certain once its directory is synced."""
        self._meet("link")
        super().link(source, target)
        self.volume.changed(target.parent, (target, source.stat().st_ino))

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is still there."""
        if not path.exists():
            return
        self._meet("unlink")
        self.volume.remove(path)
        self.volume.changed(path.parent, (path, None))

    def has_room(self, directory: Path, nbytes: int) -> bool:
        """Always: a simulated disk is full for one write only."""
        if self.owner in self.plan.dead:
            raise Killed
        return True


def _failure(fault: Fault) -> OSError:
    code = errno.ENOSPC if fault == "full" else errno.EIO
    return OSError(code, os.strerror(code))
