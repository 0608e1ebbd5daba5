"""Power cuts of the log alone: many short lives of a writer, each compared with what it had been told was durable.

Thousands of these take as long as a few whole worlds, so they reach rare states: a lost record with sound ones after it,
of the same length as those that the next life writes in their place.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from streamcl.bench.faults.disk import Plan, Volume
from streamcl.bench.faults.senders import Violation
from streamcl.bench.faults.world import SOUND, Variant, faulty_disk
from streamcl.errors import StreamclError
from streamcl.storage import log
from streamcl.storage.disk import Disk
from streamcl.storage.records import ArraySpec, Batch, Boundary, Record

SEGMENT_BYTES = 2000
STEPS = ("batch", "batch", "batch", "boundary", "sync", "sync", "drop")
SIZES = (40, 40, 40, 700, 1500)


@dataclass(slots=True)
class Story:
    """What was written to a log, life after life, to compare with what is left of it.

    records: by LSN. durable: all below was synced. consolidated: all below may be gone. made: how many were ever made.
    """

    home: Path
    rng: random.Random
    variant: Variant = SOUND
    records: list[tuple[Record, bytes]] = field(default_factory=list)
    durable: int = 0
    consolidated: int = 0
    made: int = 0
    lives: int = 0

    def live(self, steps: int) -> None:
        """Recover, write and drop at random, and lose the power; raises Violation."""
        directory = self.home / str(self.lives)
        volume = Volume(directory)
        disk = faulty_disk(volume, Plan(), "log", self.variant)
        writer = self._recover(directory / "log", disk)
        for _ in range(steps):
            self._step(writer, self.rng.choice(STEPS))
        writer.close()
        self.lives += 1
        volume.cut_power(self.home / str(self.lives), self.rng)

    def end(self) -> None:
        """One more recovery; raises Violation."""
        self._recover(self.home / str(self.lives) / "log", Disk()).close()

    def _recover(self, directory: Path, disk: Disk) -> log.LogWriter:
        try:
            writer = log.LogWriter.recover(directory, disk, self.consolidated, segment_bytes=SEGMENT_BYTES)
            entries = list(log.LogReader(directory).read(writer.first_lsn, writer.next_lsn))
        except StreamclError as error:
            raise Violation(f"life {self.lives}: {error}") from error
        if not self.durable <= writer.next_lsn <= len(self.records):
            raise Violation(f"life {self.lives}: {self.durable} records were synced, {writer.next_lsn} are there")
        for entry in entries:
            record, payload = self.records[entry.lsn]
            if (entry.record, b"".join(array.tobytes() for array in entry.arrays.values())) != (record, payload):
                raise Violation(f"life {self.lives}: record {entry.lsn} is not the one that was written")
        del self.records[writer.next_lsn :]
        self.durable = writer.next_lsn
        return writer

    def _step(self, writer: log.LogWriter, step: str) -> None:
        match step:
            case "batch":
                self._append(writer, *self._batch(self.rng.choice(SIZES)))
            case "boundary":
                self._append(writer, Boundary(producer="p", epoch=0, seq=0, task="t"), b"")
            case "sync":
                self.durable = writer.sync()
            case "drop":
                closed = [lsn for lsn in range(writer.durable) if isinstance(self.records[lsn][0], Boundary)]
                self.consolidated = max([self.consolidated, *(lsn + 1 for lsn in closed)])
                log.drop_before(writer.directory, self.consolidated, writer.disk)

    def _append(self, writer: log.LogWriter, record: Record, payload: bytes) -> None:
        writer.append(record, [payload])
        self.records.append((record, payload))

    def _batch(self, size: int) -> tuple[Record, bytes]:
        """Never the same twice."""
        self.made += 1
        x = np.random.default_rng(self.made).integers(0, 256, size, np.uint8)
        spec = ArraySpec("x", "|u1", (size,))
        return Batch(producer="p", epoch=0, seq=self.made % 100, task="t", samples=size, arrays=(spec,)), x.tobytes()
