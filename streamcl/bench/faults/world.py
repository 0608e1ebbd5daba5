"""The daemon's ingest and trainer in one thread on a simulated disk, with producers and an operator around them.

Everything but the sockets, the processes and the disk is the daemon's own code. A world is deterministic: the same script,
seed and plan give the same run. It raises Violation as soon as a promise is broken:

  * what was acknowledged is known to every later life, what was said to be applied is in its checkpoint;
  * a record keeps its number and its content for ever once the trainer has seen it, and no (producer, seq) has two;
  * no life refuses to start.
"""

from __future__ import annotations

import errno
import hashlib
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog

from streamcl import config, snapshot
from streamcl.bench.faults import moody
from streamcl.bench.faults.disk import Killed, Plan, SimulatedDisk, Volume
from streamcl.bench.faults.lockstep import Lockstep
from streamcl.bench.faults.senders import Send, Senders, Violation
from streamcl.daemon import words
from streamcl.daemon.channel import Channel
from streamcl.daemon.ingest import Ingest
from streamcl.daemon.journal import Writer
from streamcl.daemon.link import Link
from streamcl.daemon.recovery import take_over
from streamcl.daemon.sockets import Peer
from streamcl.daemon.trainer import CHECKPOINT_SECONDS, Trainer
from streamcl.entries import Standing
from streamcl.errors import Damaged, StreamclError
from streamcl.learning.drift import Drift, Rise
from streamcl.learning.learner import Learner
from streamcl.protocol import frames, messages
from streamcl.protocol.producers import Producers
from streamcl.protocol.session import StreamSession, Terms
from streamcl.storage import log
from streamcl.storage.log import LogReader
from streamcl.storage.records import Record

LIVES = 30  # more starts than any plan causes: something keeps failing
TURNS = 20_000  # more than any script takes: something hangs


@dataclass(frozen=True, slots=True)
class Operate:
    """One request of the operator, sent again after a crash until it is answered; `over`: refusals that say that it had
    taken effect, or that are its effect."""

    message: messages.Message
    over: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Feel:
    """The model's mood changes (`moody`), once everything before is in a checkpoint: no replay meets another mood."""

    mood: moody.Mood


Subject = Literal["tasks", "drift", "clock", "kept", "exact", "beside"]
Phase = Sequence[Send] | Operate | Feel  # a phase begins when all of the one before is acknowledged


@dataclass(frozen=True, slots=True)
class Variant:
    """The daemon as it is; or, to test the tests, broken in one way."""

    sync_data: bool = True
    sync_directory: bool = True
    truncate: bool = True
    check_duplicates: bool = True
    acknowledge_late: bool = True
    keep: bool = True  # what could not be learned
    close_at_change: bool = True  # drift closes the task behind the batch that showed it, not where the log has come to

    @property
    def about(self) -> Subject:
        """Which scripts can tell it from a sound daemon."""
        return "drift" if not self.close_at_change else "kept" if not self.keep else "tasks"


SOUND = Variant()


class World:
    """One run of a script; `run` returns the final state of the learner, to compare with another run's.

    order: the (producer, seq) in which to send, for a run that repeats what another one stored. cut: kills are power cuts.
    alone: a kill ends only the process that it meets. beside: one checkpoint after the other is written beside training.
    """

    def __init__(
        self,
        home: Path,
        tree: dict[str, Any],
        script: Sequence[Phase],
        plan: Plan | None = None,
        *,
        seed: int = 0,
        cut: bool = False,
        alone: bool = False,
        variant: Variant = SOUND,
        beside: bool = False,
        order: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        self.home, self.tree, self.script = home, tree, script
        self.plan = plan or Plan()
        self.rng = random.Random(seed)
        self.cut, self.alone, self.variant, self.beside = cut, alone, variant, beside
        self.writer: Lockstep | None = None
        place = None if order is None else {key: number for number, key in enumerate(order)}
        self.senders = Senders({send.producer for send in self._sends()}, self.rng, place)
        self.root = home / "0"
        self.lives = 0
        self.acknowledged: dict[str, int] = {}
        self.applied: dict[str, int] = {}
        self.history: dict[int, tuple[str | None, int, bytes]] = {}
        self.phase = 0
        self.asked = self.answered = False
        self.volume = Volume(self.root)
        self.ends = Channel.pair()
        self.open_disks = {owner: SimulatedDisk(self.volume, self.plan, owner) for owner in ("ingest", "trainer")}
        self.ingest: Ingest | None = None
        self.trainer: Trainer | None = None

    # -- the run -------------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Until everything is acknowledged and applied; raises Violation."""
        moody.feel("well")
        with structlog.testing.capture_logs():
            for _ in range(TURNS):
                running = self._living("ingest", self._turn_ingest) and self._living("trainer", self._turn_trainer)
                if running and self._finished():
                    return self._state()
            raise Violation(f"no end after {TURNS} turns, in phase {self.phase} of {len(self.script)}")

    def close(self) -> None:
        """End the processes and close the channels."""
        self._end("ingest")
        self._end("trainer")
        for end in self.ends:
            end.close()

    def _living(self, owner: str, turn: Callable[[], None]) -> bool:
        """One turn of a process, started first where it does not run; False where it ended."""
        try:
            turn()
        except Killed:
            self._died(owner)
        except (OSError, StreamclError) as error:
            if not _is_expected(error):
                raise Violation(f"{owner}: {type(error).__name__}: {error}") from error
            self._end(owner)
        else:
            return True
        return False

    def _end(self, owner: str) -> None:
        """What the kernel closes of a process that ends."""
        trainer, ingest = self.trainer, self.ingest
        setattr(self, owner, None)
        if owner == "trainer" and self.writer is not None:
            self.writer.end()
        self.open_disks[owner].let_go()
        if owner == "trainer" and trainer is not None:
            trainer.side.close()
        if owner == "ingest" and ingest is not None:
            ingest.link.side.close()
            ingest.found.history.close()
        if owner == "ingest":
            self.senders.cut()

    def _died(self, owner: str) -> None:
        """A kill, alone or of both processes, or a power cut."""
        self._end(owner)
        if self.alone and not self.cut:
            self.plan.dead.clear()
            return
        self.plan.dead.clear()
        self.close()
        self.ends = Channel.pair()
        if self.cut:
            following = self.home / str(int(self.root.name) + 1)
            self.volume.cut_power(following, self.rng)
            self.root = following
            self.volume = Volume(self.root)

    def _starting(self, owner: str) -> tuple[config.Config, SimulatedDisk]:
        """What a process of this life gets: its configuration and its disk."""
        self.lives += 1
        if self.lives > LIVES:
            raise Violation(f"{owner} keeps ending: {self.lives} starts")
        disk = self.open_disks[owner] = faulty_disk(self.volume, self.plan, owner, self.variant)
        return config.from_tree({**self.tree, "state_dir": str(self.root)}), disk

    def _channel(self, number: int) -> Channel:
        return Channel(self.ends[number].dup())

    def _turn_ingest(self) -> None:
        if self.ingest is None:
            self.ingest = self._start_ingest()
            self.asked = self.answered = False
        self._send_some(self.ingest)
        self.ingest.make_durable()
        self.ingest.hear()

    def _start_ingest(self) -> Ingest:
        settings, disk = self._starting("ingest")
        session = StreamSession(Terms.of(settings))
        session.clock = lambda: float(session.next_lsn)  # so that time, too, is the same in every life
        if not self.variant.check_duplicates:
            session.producers = _Credulous(session.terms.producers)
        found = take_over(settings, disk, session)
        if not self.variant.acknowledge_late:
            found.writer = EagerWriter(found.writer, self._acknowledge_early)
        link = Link(SilentChannel(), self._channel(0))
        stream = Ends(lambda peer, header: self.heard(peer.routing_id.decode(), header), self.plan)
        daemon = Ingest(settings, found, link, stream, Ends(lambda _, header: self.confirmed(header), self.plan))
        daemon.begin()
        return daemon

    def _acknowledge_early(self, record: Record) -> None:
        if record.producer is not None:
            self.told(record.producer, record.seq)

    def _turn_trainer(self) -> None:
        if self.trainer is None:
            self.trainer = self._start_trainer()
        self.trainer.turn()

    def _start_trainer(self) -> Trainer:
        settings, disk = self._starting("trainer")
        self.writer = Lockstep(disk)
        made = Trainer(
            settings,
            SilentChannel(),
            self._channel(1),
            disk,
            new_learner=Learner if self.variant.close_at_change else self._late_learner,
            reader=WatchedReader(self.root / "log", self.trained),
            kept=Standing.kept if self.variant.keep else lambda standing: [],
            pause=lambda channels, seconds: None,  # the disk is full for one write only
            beside=self.writer,
            checkpoint_seconds=0.0 if self.beside else CHECKPOINT_SECONDS,
        )
        made.recover()
        for producer, number in self.applied.items():
            _, found = made.replay.sequences.get(producer, (0, 0))
            if found < number:
                raise Violation(f"{producer}: {number} was said to be applied, the checkpoint has {found}")
        made.greet()
        return made

    def _late_learner(self, settings: config.Config, *past: Any) -> Learner:
        learner = Learner(settings, *past)
        if learner.watch.drift is not None:
            late = LateDrift(settings.model.likelihood, settings.stream.drift_delta, settings.stream.drift_rows)
            late.caught_up = lambda: self.trainer is None or self.trainer.orders.durable <= learner.next_lsn + 1
            learner.watch.drift = late
        return learner

    def _finished(self) -> bool:
        if self.phase < len(self.script) or self.trainer is None or self.ingest is None:
            return False
        return self.trainer.learner.next_lsn == self.ingest.journal.durable

    def _state(self) -> dict[str, Any]:
        """All that was learned, as bytes."""
        assert self.trainer is not None
        order = self.order()
        missing = [(send.producer, send.seq) for send in self._sends() if (send.producer, send.seq) not in order]
        if missing:
            raise Violation(f"never trained: {missing}")
        meta, tensors = self.trainer.replay.snapshot(0)
        standing = self.trainer.learner.standing
        self._check_kept(standing.kept())
        figures = ("lsn", "kind", "origin", "samples", "weight", "loss", "producer", "seq", "aside")
        boundaries, held = (
            {name: [getattr(entry, figure, None) for figure in figures] for name, entry in entries.items()}
            for entries in (standing.tasks, standing.held)
        )
        arrays = {name: tensor.tobytes() for name, tensor in tensors.items()}
        return {**snapshot.to_plain(meta), **arrays, "tasks": boundaries, "held": held}

    def _check_kept(self, ranges: Sequence[tuple[int, int]]) -> None:
        """Raise Violation unless every row that was not learned is still on disk."""
        reader = log.LogReader(self.root / "log")
        try:
            for first, end in ranges:
                for entry in reader.read(first, end):
                    self.trained(entry)
        except Damaged as error:
            raise Violation(f"what could not be learned is not kept: {error}") from error

    # -- producers and the operator ------------------------------------------------------------------------------

    def _sends(self) -> list[Send]:
        return [send for phase in self.script if not isinstance(phase, Operate | Feel) for send in phase]

    def heard(self, address: str, header: dict[str, Any]) -> None:
        """A producer gets an answer."""
        if header["type"] in ("welcome", "ack"):
            producer = address.rpartition("/")[0]
            self.told(producer, header["durable"])
            self.applied[producer] = max(header["applied"], self.applied.get(producer, 0))
        self.senders.hear(address, header)

    def told(self, producer: str, durable: int) -> None:
        """So much is acknowledged; raises Violation where it had been more."""
        known = self.acknowledged.get(producer, 0)
        if durable < known:
            raise Violation(f"{producer}: {known} was acknowledged, the daemon knows of {durable}")
        self.acknowledged[producer] = durable

    def confirmed(self, header: dict[str, Any]) -> None:
        """The operator gets an answer."""
        phase = self.script[self.phase]
        assert isinstance(phase, Operate)
        self.answered = header["type"] == "ok" or header["code"] in phase.over
        if not self.answered and header["code"] == "unlearnable":
            raise Violation(f"what was kept is not learned: {header['message']}")
        self.asked = self.answered

    def _send_some(self, daemon: Ingest) -> None:
        """What an unpredictable network brings next; the next phase once all of this one is acknowledged."""
        phase = self.script[self.phase] if self.phase < len(self.script) else []
        sends = [] if isinstance(phase, Operate | Feel) else phase
        for address, message in self.senders.turn(sends):
            daemon.stream.take(_peer(address), message)
        if isinstance(phase, Operate):
            if not self.asked:
                self.asked = True
                daemon.admin.take(_peer("operator"), _request(phase.message))
            done = self.answered
        elif isinstance(phase, Feel):
            done = self._all_is_in_a_checkpoint(daemon)
            if done:
                moody.feel(phase.mood)
        else:
            done = self.senders.hold(phase)
        if done and self.phase < len(self.script):
            self.phase += 1
            self.asked = self.answered = False

    def _all_is_in_a_checkpoint(self, daemon: Ingest) -> bool:
        if self.trainer is None or self.trainer.learner.next_lsn < daemon.journal.durable:
            return False
        if self.trainer.commit.checkpointed_lsn < daemon.journal.durable:
            daemon.link.checkpoint()
        return self.trainer.commit.checkpointed_lsn == daemon.journal.durable

    def trained(self, entry: log.Entry) -> None:
        """The trainer takes a record."""
        digest = hashlib.sha256()
        for array in entry.arrays.values():
            digest.update(array.tobytes())
        record = entry.record
        seen = (record.producer, record.seq, digest.digest())
        if self.history.setdefault(entry.lsn, seen) != seen:
            raise Violation(f"record {entry.lsn} was {self.history[entry.lsn][:2]}, is now {seen[:2]}")
        if record.producer is not None:
            places = [lsn for lsn, other in self.history.items() if other[:2] == seen[:2]]
            if places != [entry.lsn]:
                raise Violation(f"{seen[:2]} is trained twice, as records {places}")

    def order(self) -> list[tuple[str, int]]:
        """What was stored, in the order of the log."""
        return [(producer, seq) for _, (producer, seq, _) in sorted(self.history.items()) if producer is not None]


def _is_expected(error: Exception) -> bool:
    """Whether this ends a process that is then started again: an error of the disk, as the plan gives it."""
    cause = error.__cause__ or error
    return "simulated" in str(cause) or (isinstance(cause, OSError) and cause.errno in (errno.EIO, errno.ENOSPC))


def _peer(address: str) -> Peer:
    return Peer(address.encode(), delimited=False, waits_for_one=False)


def _request(message: messages.Message) -> list[frames.Buffer]:
    """A message as an operator sends it."""
    fields = {name: value for name, value in msgspec.to_builtins(message).items() if value is not None}
    return frames.build(fields)


class Ends:
    """Where producers, or the operator, hear the daemon: replies go to the world."""

    def __init__(self, hear: Callable[[Peer, dict[str, Any]], None], plan: Plan) -> None:
        self._hear, self._plan = hear, plan

    def receive(self) -> Iterator[tuple[Peer, list[frames.Buffer]]]:
        """Nothing: the world hands messages over itself."""
        return iter(())

    def send(self, peer: Peer, message: Sequence[frames.Buffer]) -> None:
        """A reply, unless the process ends at this very acknowledgement."""
        header = msgspec.msgpack.decode(message[0])
        if header["type"] != "ack" or self._plan.meet("ingest", "acknowledge") is None:
            self._hear(peer, header)


class EagerWriter:
    """A log that is said to have a record before it has."""

    def __init__(self, inner: Writer, acknowledge: Callable[[Record], None]) -> None:
        self._inner, self._acknowledge = inner, acknowledge

    @property
    def durable(self) -> int:
        """As of the log."""
        return self._inner.durable

    @property
    def next_lsn(self) -> int:
        """As of the log."""
        return self._inner.next_lsn

    @property
    def end_bytes(self) -> int:
        """As of the log."""
        return self._inner.end_bytes

    def append(self, record: Record, payloads: Sequence[Any] = ()) -> int:
        """Too early."""
        self._acknowledge(record)
        return self._inner.append(record, payloads)

    def sync(self) -> None:
        """As the log."""
        self._inner.sync()

    def rotate(self) -> None:
        """As the log."""
        self._inner.rotate()


class _Credulous(Producers):
    """Takes every message for the next one."""

    def is_duplicate(self, producer: str, seq: int) -> bool:
        """Never."""
        return False

    def check_sequence(self, producer: str, seq: int, first: int | None = None, held: int | None = None) -> None:
        """Any will do."""


class WatchedReader(LogReader):
    """A log that says which records are read."""

    def __init__(self, directory: Path, saw: Callable[[log.Entry], None]) -> None:
        super().__init__(directory)
        self._saw = saw

    def read(self, first: int, end: int, verify: bool = True) -> Iterator[log.Entry]:
        """Records, each told of first."""
        for entry in super().read(first, end, verify):
            self._saw(entry)
            yield entry


class LateDrift(Drift):
    """Tells of a rise only once the log has come no further than the record that is learned."""

    caught_up: Callable[[], bool] = staticmethod(lambda: True)
    seen: Rise | None = None

    @property
    def found(self) -> Rise | None:
        """The rise, in time or not."""
        return self.seen if self.caught_up() else None

    @found.setter
    def found(self, rise: Rise | None) -> None:
        self.seen = rise


class SilentChannel(Channel):
    """Takes everything and brings nothing."""

    def __init__(self) -> None:
        self.closed = False

    def alive(self, sign: words.Alive) -> None:
        """Nobody watches."""

    def send(self, word: words.Word, descriptors: Sequence[int] = ()) -> None:
        """Dropped."""

    def flush(self) -> None:
        """Nothing waits."""

    def receive(self) -> Iterator[words.Word]:
        """Nothing arrives."""
        return iter(())


def faulty_disk(volume: Volume, plan: Plan, owner: str, variant: Variant) -> SimulatedDisk:
    """A process's disk, broken where the variant says so."""
    disk = SimulatedDisk(volume, plan, owner)
    for name in ("sync_data", "sync_directory", "truncate"):
        if not getattr(variant, name):
            setattr(disk, name, lambda *_: None)
    return disk
