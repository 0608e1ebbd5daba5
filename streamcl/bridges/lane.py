"""The records of one partition on their way to the daemon, as one producer's sequence.

Guarantees: a batch's number is that of its last record, and all numbers before it that no batch has are its own: what the
broker never gave (records compacted away, marks of transactions, tombstones) leaves no gap. `durable` is where to go on.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcl.bridges.records import BadRecord, Portion, Reader, Record, first_kinds, table
from streamcl.client import Producer
from streamcl.errors import Refused, StreamclError

OF_RECORDS = frozenset({"bad_array", "bad_shape", "bad_label", "nonfinite", "too_large"})  # a refusal may be of one record


class BridgeError(StreamclError):
    """The bridge cannot go on: where, why, and the remedy."""


class InDoubt(Exception):
    """Some record of a batch was refused; sent one by one, they show which. upto: the last number that may be meant."""

    def __init__(self, partition: int, upto: int) -> None:
        super().__init__(partition, upto)
        self.partition, self.upto = partition, upto


@dataclass(slots=True)
class Tally:
    """What has been done with one partition, over all connections. rows, batches: that the daemon has acknowledged.
    unnumbered: numbers without a record that were passed over. again: records that came again."""

    records: int = 0
    rows: int = 0
    batches: int = 0
    boundaries: int = 0
    tombstones: int = 0
    bad: int = 0
    unnumbered: int = 0
    again: int = 0
    read_to: int = 0
    on_the_way: deque[tuple[int, int]] = field(default_factory=deque)

    def plain(self) -> dict[str, int]:
        """For a report."""
        return {name: getattr(self, name) for name in COUNTED}

    def heard(self, durable: int) -> None:
        """The daemon holds everything up to this number."""
        while self.on_the_way and self.on_the_way[0][0] <= durable:
            self.rows += self.on_the_way.popleft()[1]
            self.batches += 1

    def connected(self, durable: int) -> None:
        """A new connection goes on from there; what is not held is sent again."""
        self.heard(durable)
        self.on_the_way.clear()


COUNTED = ("records", "rows", "batches", "boundaries", "tombstones", "bad", "unnumbered", "again")


@dataclass(slots=True)
class Block:
    """Records of one task that will be one batch. last: the number of the newest. known: whether the stream's columns were
    when they were read."""

    task: str | None
    since: float
    known: bool
    last: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    x: list[Any] = field(default_factory=list)
    y: list[Any] = field(default_factory=list)
    count: int = 0
    nbytes: int = 0

    def takes(self, portion: Portion) -> bool:
        """Whether a portion can be joined."""
        if portion.task != self.task or (portion.x is None) != (not self.x):
            return False
        return portion.x is None or (_alike(portion.x, self.x[0]) and _alike(portion.y, self.y[0]))

    def add(self, portion: Portion, record: Record) -> None:
        """One more record."""
        self.last, self.count = record.number, self.count + portion.count
        self.nbytes += len(record.value or b"")
        if portion.x is None:
            self.rows += portion.rows
        else:
            self.x.append(portion.x)
            self.y.append(portion.y)


def _alike(one: Any, other: Any) -> bool:
    return bool(one.dtype == other.dtype and one.shape[1:] == other.shape[1:])


class Lane:
    """One partition's records, gathered and sent.

    rows, nbytes: a batch is sent when it has so many. place: tells where a number is, for people. careful: up to this
    number records are sent one by one. on_boundary: told of a record that closes its task, before; on_bad: of one that is
    passed over; both may raise. on_done: told what became of a task.
    """

    def __init__(
        self,
        partition: int,
        producer: Producer,
        reader: Reader,
        tally: Tally,
        *,
        rows: int,
        nbytes: int,
        careful: int,
        place: Callable[[int], str],
        on_boundary: Callable[[Record], None],
        on_bad: Callable[[Record, str], None],
        on_done: Callable[[Mapping[str, Any]], None],
    ) -> None:
        self.partition, self.producer, self.reader, self.tally = partition, producer, reader, tally
        self.rows, self.nbytes, self.careful = rows, nbytes, careful
        self.place, self.on_boundary, self.on_bad, self.on_done = place, on_boundary, on_bad, on_done
        self.next = producer.durable + 1
        self.sent = producer.durable
        self.block: Block | None = None
        self.task: str | None = producer.welcome.get("task")
        reader.adopt(producer.welcome)
        tally.connected(producer.durable)

    @property
    def begun(self) -> bool:
        """Whether a record has come, now or in an earlier life."""
        return self.next > 1

    def take(self, record: Record) -> None:
        """One record. Raises BridgeError, InDoubt, Unreachable."""
        if record.number < self.next:
            self.tally.again += 1
            return
        fresh = record.number > self.tally.read_to
        if fresh:
            self.tally.unnumbered += record.number - max(self.next, self.tally.read_to + 1) if self.begun else 0
            self.tally.records += 1
            self.tally.read_to = record.number
        self.next = record.number + 1
        try:
            portion = self.reader.read(record)
        except BadRecord as error:
            self.send()  # what came before it is sound
            self.flush()
            self.on_bad(record, str(error))
            return
        if portion is None:
            self.tally.tombstones += fresh
        else:
            self._take(portion, record)

    def _take(self, portion: Portion, record: Record) -> None:
        if portion.boundary:
            self.on_boundary(record)
        if self.block is not None and (not portion.count or not self.block.takes(portion)):
            self.send()
        if not portion.count:
            self._close(portion.task, record)
            return
        if self.block is None:
            self.block = Block(portion.task, time.monotonic(), self.reader.known is not None)
        self.block.add(portion, record)
        self.task = portion.task
        careful = record.number <= self.careful
        if portion.boundary or careful or self.block.count >= self.rows or self.block.nbytes >= self.nbytes:
            self.send(portion.boundary, record if careful else None)

    # -- sent ----------------------------------------------------------------------------------------------------------

    def send(self, boundary: bool = False, alone: Record | None = None) -> None:
        """What has been gathered, as one batch. alone: its only record, whose refusal is waited for."""
        block, self.block = self.block, None
        if block is None:
            return
        self.sent = block.last
        self.tally.on_the_way.append((block.last, block.count))
        try:
            self._send(block, boundary)
            if alone is not None or boundary:
                self.producer.flush()
        except (Refused, BadRecord) as error:
            self._refused(error, alone)
        else:
            if boundary:
                self._closed(self.producer.done)
        self.tally.heard(self.producer.durable)

    def _send(self, block: Block, boundary: bool) -> None:
        reader, task = self.reader, str(block.task)
        if block.x:
            x, y = np.concatenate(block.x), np.concatenate(block.y)
            self.producer.send(x, y, task, boundary=boundary, seq=block.last, wait=boundary)
            return
        if not block.known and reader.known is not None:  # read before another lane's first batch told what is what
            raise InDoubt(self.partition, block.last)
        first, label = reader.known is None, str(reader.label)
        try:
            kinds = reader.known or first_kinds(block.rows, label, reader.choice.words)
            reader.known = kinds
            self.producer.send(
                table(block.rows, kinds, label), label, task, boundary=boundary, seq=block.last, wait=boundary
            )
            if first:
                self.producer.flush()  # so that a refusal comes before another record is read by it
        except BaseException:
            reader.known = None if first else reader.known
            raise

    def _close(self, task: str | None, record: Record) -> None:
        """A record that holds no rows and closes its task; waits until it is consolidated."""
        self.sent = record.number
        task = task if task is not None else self.task
        if task is None:
            raise BridgeError(f"{self.place(record.number)}: it closes a task, and none is open")
        try:
            done = self.producer.boundary(task, seq=record.number)
        except Refused as error:
            self._refused(error, record)
        else:
            self._closed(done)

    def _closed(self, done: Mapping[str, Any]) -> None:
        self.tally.boundaries += 1
        self.on_done(done)

    def flush(self) -> None:
        """Wait until all that was sent is durable. Raises as `take`."""
        try:
            self.producer.flush()
        except Refused as error:
            self._refused(error, None)
        self.tally.heard(self.producer.durable)

    def _refused(self, error: Refused | BadRecord, alone: Record | None) -> None:
        """Of a record by itself: it is bad. Of a batch: in doubt. Of neither: the bridge cannot go on."""
        if isinstance(error, Refused) and error.code == "unlearnable":
            self.on_done({"task": self.task, "failed": str(error)})
            return
        if isinstance(error, Refused) and error.code not in OF_RECORDS:
            number = error.seq if error.seq is not None else self.sent
            raise BridgeError(f"{self.place(number)}: the daemon refused it: {error}") from error
        if alone is None or (isinstance(error, Refused) and error.seq not in (None, alone.number)):
            raise InDoubt(self.partition, self.sent)
        self.tally.on_the_way.pop()
        self.on_bad(alone, str(error))

    def due(self, now: float, linger: float) -> bool:
        """Whether what is gathered has waited long enough."""
        return self.block is not None and now - self.block.since >= linger
