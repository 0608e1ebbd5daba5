"""The trainer process: follows the log, learns, and makes what was learned durable.

One thread; it looks at its channels between steps. `orders` has what it was told, `commit` makes durable and drops, in the
order that nothing may change; `publisher` shows the parameters, `quiet` uses idle moments, `judge` tries a new model,
`reports` tells ingest and the supervisor. Here is the loop.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Literal

import structlog
import torch

from streamcl import models
from streamcl.config import Config
from streamcl.core.ranks import Lost
from streamcl.daemon import commit, memory, words
from streamcl.daemon.channel import Channel, wait
from streamcl.daemon.commit import Commit, EarlierStates, Kept
from streamcl.daemon.forecast import Activity
from streamcl.daemon.group import SOLO, Team, lead
from streamcl.daemon.judge import Judge, loggable
from streamcl.daemon.memory import Memory
from streamcl.daemon.orders import Orders
from streamcl.daemon.publisher import Publisher
from streamcl.daemon.quiet import FOLLOW_SHARE, Evaluating, Following
from streamcl.daemon.reports import Reports
from streamcl.entries import Abandoned, Confirmed, Held, Standing
from streamcl.errors import ModelRefused
from streamcl.learning.data import Store
from streamcl.learning.failing import MOST_FAILURES, Unlearnable
from streamcl.learning.fitting import Event
from streamcl.learning.learner import Learner
from streamcl.learning.network import choose_device
from streamcl.learning.outcomes import Outcome
from streamcl.learning.posterior import FactorSource
from streamcl.replay import LogStore, Replay
from streamcl.storage import log, quarantine
from streamcl.storage.beside import Beside, Copy
from streamcl.storage.disk import Disk
from streamcl.storage.quarantine import Failure
from streamcl.storage.records import Batch
from streamcl.storage.state import StateDirectory

LOOK_SECONDS = 0.005  # between two looks at the channels during a record
LEARNING = "learning"  # what is in trouble where the trainer lives and cannot go on
HELP_SECONDS = 30.0  # between two attempts at a record that can neither be learned nor passed over
FULL_SECONDS = 1.0  # between two attempts to write to a full disk
CHECKPOINT_SECONDS = 30.0
WRITING_SHARE = 0.1  # half of which a thread that computes on the same processor loses
QUIET_SECONDS = 0.05  # of following and of evaluating, between two looks at the channels

Moment = Literal["record", "step", "resumed", "durable"]
NewLearner = Callable[[Config, Store, FactorSource, EarlierStates], Learner]
Pause = Callable[[Iterable[Channel], float], None]


class _Stopped(Exception):
    """The daemon ends now; a consolidation under way is left to the next start."""


def run(config: Config, up: Channel, side: Channel) -> None:
    """The process's main function; returns when the daemon stops."""
    models.load_factory(config.model.factory)  # said at the start, not at the first batch
    torch.set_flush_denormal(True)  # squares of small gradients are denormal and slow CPU arithmetic down many times over
    team = lead(config, lambda: up.alive(words.Alive()))
    try:
        trainer = Trainer(config, up, side, new_learner=partial(Learner, reduction=team.reduction), team=team)
        trainer.memory.keep()
        trainer.run()
    finally:
        team.end()


def _unwatched(moment: Moment, event: Event | None = None) -> None:
    pass


def _share(config: Config, workers: int) -> float:
    """Of a processor's time that writing a checkpoint may take from training, where training takes all processors."""
    if choose_device(config.train.device).type != "cpu" or workers * torch.get_num_threads() < _processors():
        return 1.0
    return WRITING_SHARE


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Trainer:
    """Applies the log to a learner and answers the ingest process.

    new_learner: makes a learner that knows nothing yet. reader: of the log. kept: which records stay there. pause: waits
    until a channel can be read, or for so long. watch: told when a record begins, when the learner comes up for air, when
    it goes on, and when what a record changed is durable and published. team: those that share the work. beside: what
    writes checkpoints while training goes on. checkpoint_seconds: between one and the next.

    What holds it together: one thread does everything, so between any two steps it may have to report, publish, listen or
    wait, and what may happen when is decided here alone.
    """

    def __init__(
        self,
        config: Config,
        up: Channel,
        side: Channel,
        disk: Disk | None = None,
        *,
        new_learner: NewLearner = Learner,
        reader: log.LogReader | None = None,
        kept: Kept = Standing.kept,
        pause: Pause = wait,
        watch: Callable[[Moment, Event | None], None] = _unwatched,
        team: Team = SOLO,
        beside: Beside | None = None,
        checkpoint_seconds: float = CHECKPOINT_SECONDS,
    ) -> None:
        self.config = config
        self.up, self.side = up, side
        self.state = StateDirectory(Path(config.state_dir))
        self.reader = reader or log.LogReader(self.state.log)
        copy, beside = Copy(memory.has_room), beside or Beside(_share(config, team.size))
        self.commit = Commit(self.state, disk or Disk(), config.posterior.keep, kept, copy, beside)
        self._new_learner, self._pause, self._watch = new_learner, pause, watch
        self.team = team
        self._checkpoint_seconds = checkpoint_seconds
        self.replay = self._fresh_replay()
        self.publisher = Publisher(self.state, self.commit.frozen, config)
        self.following = Following(side.send)
        self.evaluating = Evaluating(config, self.learner, side.send)
        self.reports = Reports(up, side, team.size)
        self.memory = Memory()
        self.activity = Activity()
        self.log = structlog.get_logger()
        self.orders = Orders(up, side)
        self.judge = Judge(self.state.trial)
        self.full: str | None = None
        self._stuck: int | None = None  # at which record
        self._said_cramped = False
        self._last_step = self._last_look = 0.0
        self._last_checkpoint = time.monotonic()

    def _fresh_replay(self) -> Replay:
        return Replay(self._new_learner(self.config, LogStore(self.reader), self.commit.factors, self.commit.past))

    @property
    def learner(self) -> Learner:
        """What learns the records."""
        return self.replay.learner

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Recover, follow the log, and leave a checkpoint behind."""
        self.recover()
        self.greet()
        self.up.send(words.Ready())
        try:
            while not self.orders.drained(self.learner.next_lsn):
                self.turn()
            self._checkpoint_if_due(force=True)
        except _Stopped:
            self.log.info("stopped before the end of a record; it will be learned again")
        self._report(force=True)

    def greet(self) -> None:
        """Tell ingest where we are, which answers with how far the log goes; the last process may have died
        before it could report its last entry."""
        self.side.send(words.Recovered(next_lsn=self.learner.next_lsn))
        if self.commit.last_entry is not None:
            self.side.send(words.Done(entry=self.commit.last_entry))

    def recover(self) -> None:
        """Take over what is on disk: the checkpoint, the ledger, the factors, and what has failed before."""
        saved, standing = self.commit.recover()
        self.team.tell(words.Restore(saved=saved is not None))
        self.learner.wary = quarantine.failures(self.commit.failures)
        stuck = [lsn for lsn, stages in self.learner.wary.items() if sum(stages.values()) >= MOST_FAILURES]
        self._stuck = min(stuck, default=None)
        if saved is not None:
            self.replay.restore(saved.meta, saved.tensors, standing)
            self.orders.durable = self.learner.next_lsn
            self._go_through(self.commit.check_factors(standing))
        self.team.agree(self.learner)
        self.reports.begin(self.learner)
        if saved is not None:
            self._go_through(self.commit.resume(self.learner))
            self._publish(force=True)
            self.commit.sweep()
            self.following.begin(self.learner)
            self.evaluating.soon(self.learner)
        self.log.info("recovered", next_lsn=self.learner.next_lsn, ledger=0 if saved is None else saved.meta.ledger)

    def turn(self) -> None:
        """Learn the next durable record, or wait for one."""
        if not self._apply_next():
            self._rest()

    def _rest(self) -> None:
        """Nothing to learn: wait for a message, waking for a checkpoint that falls due."""
        self.activity.name = "idle" if self.learner.open_task is None else self._learning()
        self._report(force=True)
        self._publish(at_rest=True)  # the last records, which may have come too soon after those before
        self._checkpoint_if_due()
        self.team.look()
        self.following.go_on(self.learner, QUIET_SECONDS)
        self.following.look(self.learner)
        self.evaluating.go_on(self.learner, QUIET_SECONDS)
        self._wait(0.0 if self.following.under_way or self.evaluating.under_way else self._patience)
        self._look_up()

    @property
    def _patience(self) -> float:
        """Seconds until something is to be looked at again, though nobody says anything."""
        return 1.0 if self.commit.begun is None else commit.LOOK_SECONDS

    def _learning(self) -> str:
        task = self.learner.open_task
        return "training" if task is None or task.revisited is None else "revisiting"

    # -- learning ------------------------------------------------------------------------------------------------

    def _apply_next(self) -> bool:
        """Learn the next durable record, if there is one."""
        self._look_up()
        lsn = self.learner.next_lsn
        if lsn >= self.orders.durable or self.orders.stopping == "now":
            return False
        entry = next(iter(self.reader.read(lsn, lsn + 1)))
        self.activity.name = self._learning()
        self._last_step = time.monotonic()
        try:
            self._learn(entry)
        except Unlearnable as error:
            self._set_aside(entry, error)
            return True
        except Lost as error:
            self._set_aside(entry, self.team.blamed(error))
            return True
        self._help_has_come(lsn)
        self._report()
        self._publish()
        self.following.go_on(self.learner, 0.0)
        self.evaluating.in_between(self.learner)
        self._checkpoint_if_due(force=lsn in self.learner.wary)  # so that another failure does not return this far
        return True

    def _learn(self, entry: log.Entry) -> None:
        self._watch("record", None)
        self.team.tell(words.Apply(lsn=entry.lsn, wary=dict(self.learner.wary.get(entry.lsn, {}))))
        steps = self.replay.apply(entry)
        while True:
            try:
                event = next(steps)
            except StopIteration as finished:
                if finished.value is not None:
                    self.team.agree(self.learner)
                    self._end(finished.value)
                return
            self._watch("step", event)
            self._between_steps(event)
            self._watch("resumed", None)

    def _between_steps(self, event: Event) -> None:
        now = time.monotonic()
        if event is None or event.phase == "epochs":
            self.reports.stepped(now - self._last_step)
        if event is not None and self.activity.saw(event) and self.learner.warning is not None:
            self.log.warning(self.learner.warning, task=event.task)
        self._report()
        self._publish()
        if now - self._last_look > LOOK_SECONDS:
            self._last_look = now
            self._go_through(self.commit.look())
            if self.activity.consolidating:
                self._look_up()
            else:
                self._listen()  # a pause waits for the batch's end: a checkpoint must never fall within a record
        if self.orders.stopping == "now" and self.activity.consolidating:
            raise _Stopped
        self._last_step = time.monotonic()

    def _set_aside(self, entry: log.Entry, error: Unlearnable) -> None:
        """Note that a record cannot be learned, return to the last good state, and go over the log again, wary of it."""
        failed = sum(self.learner.wary.get(entry.lsn, {}).values())
        if failed >= MOST_FAILURES:
            self.log.error("a record cannot even be passed over", lsn=entry.lsn, reason=loggable(error))
            self._begin_anew()
            self._wait_for_help(entry, error)
            return
        record = entry.record
        failure = Failure(
            lsn=entry.lsn,
            stage=error.stage,
            task=record.task,
            producer=record.producer,
            seq=record.seq,
            reason=str(error),
            time=time.time(),
            rows=record.samples if isinstance(record, Batch) else 0,
        )
        self.log.error("rolled back: a record cannot be learned", **{**failure.plain(), "reason": loggable(error)})
        self._go_through(self.commit.set_aside(failure))
        self._begin_anew()
        self.side.send(words.SetAside(failure=failure))

    def _begin_anew(self) -> None:
        """From the last good state."""
        self.team.form()
        self.replay = self._fresh_replay()
        durable = self.orders.durable
        try:
            self.recover()
        except ModelRefused as error:  # it worked when this process began: what ails it now may pass, a restart tells
            raise RuntimeError(f"the model cannot be made again: {error}") from error
        self.orders.durable = durable

    def _wait_for_help(self, entry: log.Entry, error: Unlearnable) -> None:
        """Passing a record over fails as well, so nothing behind it is learned: that is said, and tried now and then."""
        task = entry.record.task
        reason = (
            f"task {task!r}: a record can neither be learned nor passed over, so nothing behind it is learned: {error}; "
            f"everything sent is stored: mend the model or its configuration, and restart"
        )
        self.side.send(words.Trouble(role=LEARNING, reason=reason))
        until = time.monotonic() + HELP_SECONDS
        while (left := until - time.monotonic()) > 0 and self.orders.stopping is None:
            self._report(force=True)
            self._checkpoint_if_due()
            self._wait(left)
            self._look_up()

    def _help_has_come(self, lsn: int) -> None:
        if self._stuck is not None and lsn >= self._stuck:
            self._stuck = None
            self.side.send(words.Trouble(role=LEARNING, reason=None))

    # -- durability ----------------------------------------------------------------------------------------------

    def _end(self, outcome: Outcome) -> None:
        """Make what a record changed durable, then show it, then say so."""
        entry, warning = outcome.entry, self.learner.warning
        if self.activity.consolidating:
            self.activity.forecast.saving()
            self._report(force=True)
        self._go_through(self.commit.end(outcome, self.replay))
        self._publish(force=True)
        self.commit.sweep()
        self._watch("durable", None)
        self.following.begin(self.learner, FOLLOW_SHARE * entry.seconds)
        if not isinstance(entry, Abandoned | Confirmed):
            self.evaluating.soon(self.learner)
        if self.activity.consolidating:
            self.activity.name = "idle"  # not before: who sees that finds the task
            self._report(force=True)
        self.side.send(words.Done(entry=entry, warning=warning))
        say = self.log.error if isinstance(entry, Held) else self.log.info
        say(entry.kind, **{name: getattr(entry, name, None) for name in ("task", "samples", "loss", "seconds")})

    def _go_through(self, steps: Iterator[commit.Event]) -> None:
        """Take the steps of a commit; where the disk is full, again and again."""
        for event in steps:
            if not isinstance(event, commit.Full):
                self.full = None
            match event:
                case commit.Full(reason):
                    self._wait_for_room(reason)
                case commit.Written() as written:
                    self._checkpointed(written)
                case commit.Waiting():
                    self._report()
                case commit.Dropped(first):
                    self.reader.forget(first)
                    self.side.send(words.Dropped())
                case commit.Forgiven():
                    self.learner.wary = quarantine.failures(self.commit.failures)
                    self.side.send(words.Forgiven(lsns=[failure.lsn for failure in self.commit.failures]))
        self.full = None

    def _wait_for_room(self, reason: str) -> None:
        self.full = f"{reason}; training waits for room"
        self.log.error("the disk is full; waiting for room", reason=reason)
        self._report(force=True)
        self._wait(FULL_SECONDS)
        self._listen()
        if self.orders.stopping == "now":
            raise _Stopped

    def _checkpoint_if_due(self, force: bool = False) -> None:
        """Between two records: what is due is written beside the next ones, what somebody waits for at once."""
        self._go_through(self.commit.settle() if force else self.commit.look())
        news = self.learner.next_lsn > self.commit.checkpointed_lsn
        if self.orders.checkpoints or (news and (force or self.commit.overdue)):
            self._go_through(self.commit.checkpoint(self.replay))
        elif news and self.commit.begun is None and time.monotonic() - self._last_checkpoint >= self._checkpoint_seconds:
            self._begin_checkpoint()

    def _begin_checkpoint(self) -> None:
        if self.commit.begin(self.replay):
            return
        if self.commit.cramped is not None and not self._said_cramped:
            self._said_cramped = True
            text = f"training waits while checkpoints are written: {self.commit.cramped}"
            self.log.warning(text)
            self.side.send(words.Noted(text=text, task=None))
        self._go_through(self.commit.checkpoint(self.replay))

    def _checkpointed(self, written: commit.Written) -> None:
        self.memory.give_back()
        self._last_checkpoint = time.monotonic()
        self._report(force=True)  # whoever waits for the checkpoint or the boundary then reads a status that has it,
        if self.orders.checkpoints and not written.beside:
            self._publish(force=True)  # and whoever asked for one, the parameters
        self.side.send(
            words.Checkpointed(
                batches=written.batches,
                sequences={name: seq for name, (_, seq) in written.sequences.items()},
                seconds=written.seconds,
                time=time.time(),
                numbers=[] if written.beside else self.orders.take_checkpoints(),
            )
        )
        self.log.debug(
            "checkpoint written and verified", next_lsn=self.commit.checkpointed_lsn, seconds=round(written.seconds, 3)
        )

    # -- what others see -----------------------------------------------------------------------------------------

    def _publish(self, force: bool = False, at_rest: bool = False) -> None:
        before_any, before = self.commit.checkpointed_lsn == 0, self.publisher.full
        self.publisher.publish(self.learner, force=force, before_any=before_any, at_rest=at_rest)
        if self.publisher.full not in (None, before):
            self.log.error("the disk is full; parameters are not published", reason=self.publisher.full)

    def _report(self, force: bool = False) -> None:
        if not force and not self.reports.due:
            return
        orders = self.orders
        at_work = not orders.paused and self.learner.next_lsn < orders.durable  # what one that dies might have died of
        alive = words.Alive(checkpointed=self.commit.checkpointed_lsn, at_work=at_work)
        self.reports.say(
            self.learner, self.activity, paused=orders.paused, full=self.full or self.publisher.full, alive=alive
        )

    # -- being told ----------------------------------------------------------------------------------------------

    def _look_up(self) -> None:
        """Take what the other processes say; while paused, do nothing else."""
        self._listen()
        while self.orders.paused and self.orders.stopping is None:
            self._report()  # not with every message of a busy ingest
            self._go_through(self.commit.look())
            if self.orders.checkpoints and not self.activity.consolidating:  # between two records, or within a boundary
                self._go_through(self.commit.checkpoint(self.replay))
            self._wait(self._patience)
            self._listen()

    def _wait(self, seconds: float) -> None:
        """Until a message arrives."""
        self._pause([self.side, self.up], seconds)

    def _listen(self) -> None:
        for word in self.orders.hear():
            match word:
                case words.Pause() | words.Resume():
                    self._report(force=True)
                case words.TryModel(number=number):
                    verdict = self.judge.verdict(number, self.learner, self._report)
                    if verdict is not None:
                        self.side.send(verdict)
        if self.orders.abandoned:
            raise _Stopped
