"""The loop of every bridge: connect to the daemon, go on where it is, fetch, send; and begin again when something breaks.

Rules, stated once:
  * The daemon alone knows how far a partition has come: `durable` of its producer. Whatever breaks (the daemon away, a
    batch refused) ends the connection, and the next one goes on from there. Nothing else is remembered, nor has to be.
  * A record that cannot be learned ends the bridge, or is passed over and counted, as its user chose. Nothing else is
    passed over, but what the broker itself no longer has, and that only where its user said so.
  * The broker being away is the source's to wait for; the daemon being away is waited for here.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from streamcl.bridges.choice import Choice
from streamcl.bridges.lane import BridgeError, InDoubt, Lane, Tally
from streamcl.bridges.records import Reader, Record
from streamcl.client import Producer
from streamcl.errors import Unreachable

BATCH_BYTES = 8 << 20  # of records, in one batch
LAST_SECONDS = 2.0  # for the daemon's last word
PAUSE = 0.5  # seconds, before a daemon that is away is looked for again
REFRESH = 30.0  # seconds, after which the broker is asked for new partitions


@dataclass(frozen=True, slots=True)
class End:
    """A partition has no more records at this moment."""

    partition: int


class Source(Protocol):
    """A broker, as a bridge needs it. Its methods raise BridgeError for what waiting does not mend."""

    def partitions(self) -> Sequence[int]:
        """Those there are now."""

    def name(self, partition: int) -> str:
        """The producer's name that its records travel under."""

    def place(self, partition: int, number: int) -> str:
        """Where a number is, for people."""

    def whole(self, partition: int) -> str:
        """What a partition is, for people."""

    def begin(self, durable: Mapping[int, int]) -> None:
        """Fetch, of each of these partitions, what comes after this number; of those fetched already, go on."""

    def rewind(self, durable: Mapping[int, int]) -> None:
        """Forget what was fetched, and fetch from here."""

    def poll(self, most: int, seconds: float) -> Iterable[Record | End]:
        """What has come by then."""

    def lost(self) -> int:
        """How many numbers were passed over because the broker no longer had them."""

    def close(self) -> None:
        """Commit nothing, and go."""


@dataclass(slots=True)
class Counts:
    """What a bridge has done, by partition. failed: tasks that could not be learned, or not whole."""

    tallies: dict[int, Tally] = field(default_factory=dict)
    durable: dict[int, int] = field(default_factory=dict)
    lost: int = 0
    failed: int = 0

    def plain(self) -> dict[str, Any]:
        """For a report."""
        parts = [tally.plain() for tally in self.tallies.values()]
        names = parts[0] if parts else Tally().plain()
        sums = {name: sum(part[name] for part in parts) for name in names}
        return {**sums, "lost": self.lost, "failed": self.failed, "durable": {str(p): n for p, n in self.durable.items()}}


class Bridge:
    """One topic or stream on its way to one daemon.

    connect: a producer of this name, connected; it raises Unreachable. say: told what its user should know. rows, linger: a
    batch is sent when it has so many rows, or is so many seconds old. skip: bad records are told to `set_aside` and passed
    over, instead of ending the bridge. until_end: end when every partition has no more records. patience: seconds without a
    daemon after which the bridge ends; None for never.
    """

    def __init__(
        self,
        source: Source,
        choice: Choice,
        connect: Callable[[str], Producer],
        say: Callable[[str], None],
        *,
        rows: int = 256,
        linger: float = 0.2,
        skip: bool = False,
        set_aside: Callable[[Record, str], None] = lambda record, reason: None,
        until_end: bool = False,
        patience: float | None = None,
        refresh: float = REFRESH,
    ) -> None:
        self.source, self.choice, self.connect, self.say = source, choice, connect, say
        self.rows, self.linger, self.skip, self.set_aside = rows, linger, skip, set_aside
        self.until_end, self.patience, self.refresh = until_end, patience, refresh
        self.counts = Counts()
        self._careful: dict[int, int] = {}
        self._bad: set[tuple[int, int]] = set()
        self._begun = False
        self._told: str | None = None  # why the daemon was last waited for
        self._since: float | None = None  # when that began

    def run(self) -> Counts:
        """Until the end, if that was asked for; else for ever. Raises BridgeError, Unreachable."""
        while True:
            lanes: dict[int, Lane] = {}
            try:
                self._open(lanes)
                self._pump(lanes)
                return self.counts
            except Unreachable as error:
                self._wait(error)
            except InDoubt as doubt:
                self._careful[doubt.partition] = max(self._careful.get(doubt.partition, 0), doubt.upto)
            except BaseException:
                self._settle(lanes)
                raise
            finally:
                self._close(lanes)

    # -- a connection --------------------------------------------------------------------------------------------------

    def _open(self, lanes: dict[int, Lane]) -> None:
        reader = Reader(self.choice)
        for partition in self.source.partitions():
            self._add(lanes, partition, reader)
        self.source.rewind({partition: lane.producer.durable for partition, lane in lanes.items()})
        durable = self.counts.durable
        self._bad = {(partition, number) for partition, number in self._bad if number > durable[partition]}
        if not self._begun:
            for partition, lane in lanes.items():
                self._say_where(partition, lane)
        self._begun = True

    def _say_where(self, partition: int, lane: Lane) -> None:
        where = (
            self.source.place(partition, lane.next) if lane.begun else f"{self.source.whole(partition)}, new to the daemon"
        )
        self.say(f"from {where}, as producer {lane.producer.producer}")

    def _add(self, lanes: dict[int, Lane], partition: int, reader: Reader) -> None:
        lanes[partition] = Lane(
            partition,
            self.connect(self.source.name(partition)),
            reader,
            self.counts.tallies.setdefault(partition, Tally()),
            rows=self.rows,
            nbytes=BATCH_BYTES,
            careful=self._careful.get(partition, 0),
            place=lambda number: self.source.place(partition, number),
            on_boundary=lambda record: self._check_closing(lanes, record),
            on_bad=self._on_bad,
            on_done=self._on_done,
        )
        self.counts.durable[partition] = lanes[partition].producer.durable

    def _settle(self, lanes: Mapping[int, Lane]) -> None:
        """At the end, hear for a moment what became of that which was sent: it is counted if it was stored."""
        for lane in lanes.values():
            if lane.tally.on_the_way:
                lane.producer.timeout = LAST_SECONDS
                with contextlib.suppress(Exception):  # a signal may have come in the midst of anything
                    lane.producer.flush()

    def _close(self, lanes: Mapping[int, Lane]) -> None:
        for partition, lane in lanes.items():
            self.counts.durable[partition] = lane.producer.durable
            lane.tally.heard(lane.producer.durable)
            lane.producer.close(flush=False)  # the broker has what is not durable
        self.counts.lost = self.source.lost()

    def _wait(self, error: Unreachable) -> None:
        if str(error) != self._told:
            self.say(f"waiting for the daemon: {error}")
        self._told, self._since = str(error), self._since or time.monotonic()
        if self.patience is not None and time.monotonic() - self._since >= self.patience:
            raise error
        time.sleep(PAUSE)

    # -- records -------------------------------------------------------------------------------------------------------

    def _pump(self, lanes: dict[int, Lane]) -> None:
        """Take what comes. Nothing is waited for as long as records come; when none do, what was sent becomes durable."""
        ended: set[int] = set()
        refreshed = time.monotonic()
        while True:
            came = False
            for what in self.source.poll(self.rows, self.linger):
                came |= isinstance(what, Record)
                self._take(lanes, what, ended)
            self._send_due(lanes, idle=not came)
            if self.until_end and ended >= lanes.keys():
                self._finish(lanes)
                return
            if time.monotonic() - refreshed >= self.refresh:
                refreshed = time.monotonic()
                self._grow(lanes)

    def _take(self, lanes: Mapping[int, Lane], what: Record | End, ended: set[int]) -> None:
        if isinstance(what, End):
            ended.add(what.partition)
            return
        ended.discard(what.partition)
        lanes[what.partition].take(what)

    def _check_closing(self, lanes: Mapping[int, Lane], record: Record) -> None:
        if len(lanes) > 1:
            raise BridgeError(
                f"{self.source.place(record.partition, record.number)}: it closes a task, and where that is among the "
                f"records of the other {len(lanes) - 1} partitions nothing tells: bridge a topic of one partition, close "
                "tasks with `streamcl boundary TASK`, or have the daemon find them (stream.boundary)"
            )

    def _send_due(self, lanes: Mapping[int, Lane], idle: bool) -> None:
        now = time.monotonic()
        for partition, lane in lanes.items():
            if lane.due(now, self.linger):
                lane.send()
            if idle and lane.block is None:
                lane.flush()
            if lane.producer.durable != self.counts.durable[partition]:
                self.counts.durable[partition] = lane.producer.durable
                self._moves()
        if idle:
            self._moves()  # nothing is owed

    def _moves(self) -> None:
        if self._told is not None:
            self.say("the daemon takes records in again")
        self._told = self._since = None

    def _finish(self, lanes: Mapping[int, Lane]) -> None:
        for lane in lanes.values():
            lane.send()
            lane.flush()

    def _grow(self, lanes: dict[int, Lane]) -> None:
        """Partitions that the topic has now and had not."""
        new = [partition for partition in self.source.partitions() if partition not in lanes]
        reader = next(iter(lanes.values())).reader
        for partition in new:
            self._add(lanes, partition, reader)
            self._say_where(partition, lanes[partition])
        if new:
            self.source.begin({partition: lanes[partition].producer.durable for partition in new})

    # -- what is told --------------------------------------------------------------------------------------------------

    def _on_bad(self, record: Record, reason: str) -> None:
        where = self.source.place(record.partition, record.number)
        if not self.skip:
            raise BridgeError(
                f"{where}: {reason}. All before it is stored, nothing from it on; correct whoever writes them, or "
                "pass over such records with --on-bad skip"
            )
        if (record.partition, record.number) not in self._bad:
            self._bad.add((record.partition, record.number))
            self.counts.tallies[record.partition].bad += 1
            self.set_aside(record, reason)
            self.say(f"passed over: {where}: {reason}")

    def _on_done(self, done: Mapping[str, Any]) -> None:
        if "failed" in done:
            self.counts.failed += 1
            self.say(f"{done['failed']}; its rows are kept: `streamcl quarantine` says why")
            return
        aside = done.get("set_aside", 0)
        self.counts.failed += aside > 0
        note = f", {aside} rows set aside (`streamcl quarantine` says why)" if aside else ""
        self.say(f"task {done['task']!r} consolidated: {done['samples']} samples{note}")
        if done.get("warning"):
            self.say(f"warning: {done['warning']}")
