"""The log after simulated power cuts: what was synced is there, bit for bit; what was not may be gone, never wrong.

The simulated disk keeps, of what was not synced, whatever it likes: each 512-byte sector new, zero or garbled, and the
file cut anywhere. Names come and go in the order in which they were changed, as a journal keeps them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.storage import log
from streamcl.storage.disk import Disk
from streamcl.storage.records import ArraySpec, Batch, Boundary, Record

SECTOR = 512


class VolatileDisk(Disk):
    """A real disk that remembers what a power cut could not take away."""

    def __init__(self) -> None:
        self.synced: dict[int, bytes] = {}
        self.names: dict[str, int] = {}
        self.changes: list[tuple[str, int | None]] = []
        self.unlinked: dict[int, bytes] = {}

    def create(self, path: Path) -> int:
        fd = super().create(path)
        self.synced[os.fstat(fd).st_ino] = b""
        self.changes.append((path.name, os.fstat(fd).st_ino))
        return fd

    def unlink(self, path: Path) -> None:
        self.unlinked[path.stat().st_ino] = path.read_bytes()
        self.changes.append((path.name, None))
        path.rename(path.with_suffix(".gone"))  # keeps its inode number from being given to another file

    def sync_data(self, fd: int) -> None:
        self.synced[os.fstat(fd).st_ino] = os.pread(fd, 1 << 24, 0)

    def sync_directory(self, path: Path) -> None:
        self._commit(self.changes)
        self.changes = []

    def _commit(self, changes: Sequence[tuple[str, int | None]]) -> None:
        for name, inode in changes:
            if inode is None:
                self.names.pop(name, None)
            else:
                self.names[name] = inode

    def cut_power(self, directory: Path, after: Path, rng: random.Random) -> None:
        """Leave in `after` one of the states that the disk may be in."""
        self._commit(self.changes[: rng.randint(0, len(self.changes))])
        now = {path.stat().st_ino: path.read_bytes() for path in directory.iterdir()} | self.unlinked
        after.mkdir(parents=True)
        for name, inode in self.names.items():
            (after / name).write_bytes(_surviving(self.synced[inode], now[inode], rng))


def _surviving(synced: bytes, now: bytes, rng: random.Random) -> bytes:
    data = bytearray(now[: rng.randint(min(len(synced), len(now)), len(now))])
    start = len(synced)
    while start < len(data):
        end = min(start - start % SECTOR + SECTOR, len(data))
        match rng.choice(("new", "new", "zero", "garbled")):
            case "zero":
                data[start:end] = bytes(end - start)
            case "garbled":
                data[rng.randrange(start, end)] ^= 1 << rng.randrange(8)
        start = end
    return bytes(data)


class Story:
    """What was done to a log, to compare with what is left of it."""

    def __init__(self, directory: Path, records: list[tuple[Record, bytes]], consolidated: int) -> None:
        self.directory, self.records, self.consolidated = directory, records, consolidated
        self.disk = VolatileDisk()
        self.writer = log.LogWriter.recover(directory, Disk(), next_lsn=consolidated, segment_bytes=2000)
        self.writer.disk = self.disk
        for path in directory.iterdir():
            self.disk.names[path.name] = path.stat().st_ino
            self.disk.synced[path.stat().st_ino] = path.read_bytes()

    def tell(self, step: tuple[str, int]) -> None:
        match step:
            case ("batch", size):
                self._append(_batch(len(self.records), size))
            case ("boundary", _):
                self._append((Boundary(producer="p", epoch=0, seq=0, task="t"), b""))
            case ("sync", _):
                self.writer.sync()
            case ("drop", _):
                self._drop()

    def _append(self, record: tuple[Record, bytes]) -> None:
        self.writer.append(record[0], [record[1]])
        self.records.append(record)

    def _drop(self) -> None:
        closed = [lsn for lsn in range(self.writer.durable) if isinstance(self.records[lsn][0], Boundary)]
        self.consolidated = max([self.consolidated, *(lsn + 1 for lsn in closed)])
        log.drop_before(self.directory, self.consolidated, self.disk)


def _batch(seq: int, size: int) -> tuple[Record, bytes]:
    x = np.random.default_rng(seq).integers(0, 256, size, np.uint8)
    spec = ArraySpec("x", "|u1", (size,))
    return Batch(producer="p", epoch=0, seq=seq, task="t", samples=size, arrays=(spec,)), x.tobytes()


STEP = st.one_of(
    st.tuples(st.just("batch"), st.integers(1, 1500)),
    st.tuples(st.sampled_from(["batch", "boundary", "sync", "sync", "drop"]), st.just(40)),
)


@settings(deadline=None, max_examples=150)
@given(lives=st.lists(st.lists(STEP, max_size=14), min_size=1, max_size=3), seed=st.integers(0, 2**32))
def test_what_was_synced_survives_every_power_cut(
    tmp_path_factory: pytest.TempPathFactory, lives: list[list[tuple[str, int]]], seed: int
) -> None:
    rng, home = random.Random(seed), tmp_path_factory.mktemp("log")
    records: list[tuple[Record, bytes]] = []
    directory, consolidated = home / "0", 0
    for number, steps in enumerate(lives, start=1):
        story = Story(directory, records, consolidated)
        for step in steps:
            story.tell(step)
        durable, consolidated = story.writer.durable, story.consolidated
        story.writer.close()
        directory = home / str(number)
        story.disk.cut_power(home / str(number - 1), directory, rng)
        records = _recovered(directory, records, durable, consolidated)


def _recovered(
    directory: Path, records: list[tuple[Record, bytes]], durable: int, consolidated: int
) -> list[tuple[Record, bytes]]:
    """Recover, compare, and give the records that are left."""
    writer = log.LogWriter.recover(directory, Disk(), next_lsn=consolidated)
    writer.close()
    assert durable <= writer.next_lsn <= len(records)
    assert writer.first_lsn <= max(consolidated, durable)
    for entry in log.LogReader(directory).read(writer.first_lsn, writer.next_lsn):
        record, payload = records[entry.lsn]
        assert entry.record == record
        assert b"".join(array.tobytes() for array in entry.arrays.values()) == payload
    return records[: writer.next_lsn]
