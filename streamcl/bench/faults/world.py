"""The daemon's ingest and trainer in one thread on a simulated disk, with producers and an operator around them.

Everything but the sockets, the processes and the disk is the daemon's own code. A world is deterministic: the same script,
seed and plan give the same run. It raises Violation as soon as a promise is broken:

  * what was acknowledged is known to every later life;
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

import structlog

from streamcl import config
from streamcl.bench.faults import moody
from streamcl.bench.faults.disk import Killed, Plan, SimulatedDisk, Volume
from streamcl.bench.faults.senders import Send, Senders, Violation
from streamcl.daemon import ingest, trainer
from streamcl.daemon.admin import Admin, Request
from streamcl.daemon.channel import Channel
from streamcl.daemon.sockets import Peer
from streamcl.errors import Damaged, Refused, StreamclError
from streamcl.learning.drift import Rise
from streamcl.learning.learner import Learner
from streamcl.protocol import messages
from streamcl.protocol.producers import Producers
from streamcl.storage import log
from streamcl.storage.ledger import Standing
from streamcl.storage.records import Batch

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


Subject = Literal["tasks", "drift", "kept"]
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
    alone: a kill ends only the process that it meets.
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
        order: Sequence[tuple[str, int]] | None = None,
    ) -> None:
        self.home, self.tree, self.script = home, tree, script
        self.plan = plan or Plan()
        self.rng = random.Random(seed)
        self.cut, self.alone, self.variant = cut, alone, variant
        place = None if order is None else {key: number for number, key in enumerate(order)}
        self.senders = Senders({send.producer for send in self._sends()}, self.rng, place)
        self.root = home / "0"
        self.lives = 0
        self.acknowledged: dict[str, int] = {}
        self.history: dict[int, tuple[str | None, int, bytes]] = {}
        self.phase = 0
        self.asked = self.answered = False
        self.volume = Volume(self.root)
        self.ends = Channel.pair()
        self.open_disks = {owner: SimulatedDisk(self.volume, self.plan, owner) for owner in ("ingest", "trainer")}
        self.ingest: SimulatedIngest | None = None
        self.trainer: SimulatedTrainer | None = None

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
        process = self.trainer if owner == "trainer" else self.ingest
        setattr(self, owner, None)
        self.open_disks[owner].let_go()
        if process is not None:
            process.side.close()
        if isinstance(process, SimulatedIngest) and hasattr(process, "history"):
            process.history.close()
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

    def _start(self, owner: str) -> Any:
        self.lives += 1
        if self.lives > LIVES:
            raise Violation(f"{owner} keeps ending: {self.lives} starts")
        tree = config.from_tree({**self.tree, "state_dir": str(self.root)})
        disk = self.open_disks[owner] = faulty_disk(self.volume, self.plan, owner, self.variant)
        ours = Channel(self.ends[0 if owner == "ingest" else 1].dup())
        return (SimulatedIngest if owner == "ingest" else SimulatedTrainer)(self, tree, ours, disk)

    def _turn_ingest(self) -> None:
        if self.ingest is None:
            self.ingest = self._start("ingest")
            self.ingest.recover()
            self.asked = self.answered = False
        self._send_some(self.ingest)
        self.ingest.make_durable()
        self.ingest.hear_trainer()

    def _turn_trainer(self) -> None:
        if self.trainer is None:
            self.trainer = self._start("trainer")
            self.trainer.recover()
            self.trainer.greet()
        self.trainer.turn()

    def _finished(self) -> bool:
        if self.phase < len(self.script) or self.trainer is None or self.ingest is None:
            return False
        return self.trainer.learner.next_lsn == self.ingest.writer.durable

    def _state(self) -> dict[str, Any]:
        """All that was learned, as bytes."""
        assert self.trainer is not None
        order = self.order()
        missing = [(send.producer, send.seq) for send in self._sends() if (send.producer, send.seq) not in order]
        if missing:
            raise Violation(f"never trained: {missing}")
        meta, tensors = self.trainer.learner.snapshot()
        standing = self.trainer.learner.standing
        self._check_kept(standing.kept())
        figures = ("lsn", "kind", "origin", "samples", "weight", "loss", "producer", "seq", "aside")
        boundaries, held = (
            {name: [entry.get(figure) for figure in figures] for name, entry in entries.items()}
            for entries in (standing.tasks, standing.held)
        )
        arrays = {name: tensor.tobytes() for name, tensor in tensors.items()}
        return {**meta, **arrays, "tasks": boundaries, "held": held}

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
            self.told(address.rpartition("/")[0], header["durable"])
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

    def _send_some(self, daemon: SimulatedIngest) -> None:
        """What an unpredictable network brings next; the next phase once all of this one is acknowledged."""
        phase = self.script[self.phase] if self.phase < len(self.script) else []
        sends = [] if isinstance(phase, Operate | Feel) else phase
        for address, message in self.senders.turn(sends):
            daemon.take(_peer(address), message)
        if isinstance(phase, Operate):
            if not self.asked:
                self.asked = True
                daemon.operate(phase.message)
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

    def _all_is_in_a_checkpoint(self, daemon: SimulatedIngest) -> bool:
        if self.trainer is None or self.trainer.learner.next_lsn < daemon.writer.durable:
            return False
        self.trainer.due_now()
        return self.trainer.checkpointed_lsn == daemon.writer.durable

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


class SimulatedIngest(ingest.Ingest):
    """Ingest without sockets: messages come from the world and answers go to it."""

    def __init__(self, world: World, settings: config.Config, side: Channel, disk: SimulatedDisk) -> None:
        super().__init__(settings, _nowhere(), side, disk)
        self.world = world
        self.admin: SimulatedAdmin = SimulatedAdmin(world, self)
        if not world.variant.check_duplicates:
            self.session.producers = _Credulous(self.session.terms.producers)

    def operate(self, message: messages.Message) -> None:
        """A request of the operator."""
        self.admin.request(message)

    def _store(self, producer: str, pending: ingest.Pending) -> None:
        if not self.world.variant.acknowledge_late:
            self.world.told(producer, pending.message.seq)
        super()._store(producer, pending)

    def _reply(self, peer: Peer, header: dict[str, Any], request: Any = None) -> None:
        if header["type"] != "ack" or self.disk.plan.meet("ingest", "acknowledge") is None:  # type: ignore[attr-defined]
            self.world.heard(peer.routing_id.decode(), header)


class _Credulous(Producers):
    """Takes every message for the next one."""

    def is_duplicate(self, producer: str, seq: int) -> bool:
        """Never."""
        return False

    def check_sequence(self, producer: str, seq: int, ahead: int = 0) -> None:
        """Any will do."""


class SimulatedAdmin(Admin):
    """The operator's socket, without the socket."""

    def __init__(self, world: World, daemon: SimulatedIngest) -> None:
        super().__init__(None, daemon)  # type: ignore[arg-type]
        self.world = world

    def request(self, message: messages.Message) -> None:
        """Take one request."""
        try:
            self._answer(Request(_peer("operator"), None), message)
        except Refused as refused:
            self._error(Request(_peer("operator"), None), refused)

    def _reply(self, request: Request, header: dict[str, Any], arrays: Any = None) -> None:
        self.world.confirmed(header)


class SimulatedTrainer(trainer.Trainer):
    """A trainer that says what it learns from, and never waits."""

    def __init__(self, world: World, settings: config.Config, side: Channel, disk: SimulatedDisk) -> None:
        super().__init__(settings, _nowhere(), side, disk)
        self.world = world

    def _learn(self, entry: log.Entry) -> None:
        self.world.trained(entry)
        if not self.world.variant.close_at_change:
            self.learner.__class__ = _Late
            self.learner.trainer = self  # type: ignore[attr-defined]
        super()._learn(entry)

    def due_now(self) -> None:
        """A checkpoint is, at the next turn that has nothing to learn."""
        self._last_checkpoint = float("-inf")

    def _drop(self) -> None:
        standing = self.learner.standing
        if not self.world.variant.keep:
            self.learner.standing = Standing(standing.tasks, standing.forgotten)
            self.learner.standing.tasks = {task: {**entry, "aside": []} for task, entry in standing.tasks.items()}
        super()._drop()
        self.learner.standing = standing

    def _wait(self, seconds: float) -> None:
        """The disk is full for one write only."""


class _Late(Learner):
    """Closes a task that drifted behind the last record there is by then."""

    trainer: SimulatedTrainer

    def _risen(self, record: Batch) -> Rise | None:
        return super()._risen(record) if self.trainer.durable <= self.next_lsn + 1 else None


def _nowhere() -> Channel:
    """A channel to a supervisor that hears nothing."""
    return SilentChannel()


class SilentChannel(Channel):
    """Takes everything and brings nothing."""

    def __init__(self) -> None:
        self.closed = False

    def alive(self, **fields: Any) -> None:
        """Nobody watches."""

    def send(self, kind: str, **fields: Any) -> None:
        """Dropped."""

    def flush(self) -> None:
        """Nothing waits."""

    def receive(self) -> Iterator[dict[str, Any]]:
        """Nothing arrives."""
        return iter(())


def faulty_disk(volume: Volume, plan: Plan, owner: str, variant: Variant) -> SimulatedDisk:
    """A process's disk, broken where the variant says so."""
    disk = SimulatedDisk(volume, plan, owner)
    for name in ("sync_data", "sync_directory", "truncate"):
        if not getattr(variant, name):
            setattr(disk, name, lambda *_: None)
    return disk
