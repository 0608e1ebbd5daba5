"""The trainer process: follows the log, learns, and makes what was learned durable.

Order at a boundary, which nothing may change: consolidate in memory; write and verify the factor, if factors are kept;
append to the ledger and sync; write and verify what the checkpoint refers to; write, verify and rename the checkpoint; only
then unlink the task's records and the factor that was replaced; last, say so. Records whose rows were not learned
(`ledger.Standing.kept`) stay. A crash anywhere repeats the work from the checkpoint before, with the same result. One
thread; it looks at its channels between steps.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import structlog
import torch

from streamcl import models
from streamcl.config import Config
from streamcl.daemon.channel import Channel, wait
from streamcl.daemon.evaluator import Evaluated, Evaluator
from streamcl.daemon.forecast import Forecast
from streamcl.daemon.memory import Memory
from streamcl.errors import ConfigError, ModelRefused
from streamcl.learning.learner import Event, Learner, Outcome, Progress, Unlearnable
from streamcl.learning.network import Network
from streamcl.protocol.signature import Signature
from streamcl.storage import checkpoint, ledger, log, published, quarantine, versions
from streamcl.storage.disk import FULL, Disk
from streamcl.storage.factors import Factors
from streamcl.storage.frozen import FrozenStore
from streamcl.storage.ledger import Ledger
from streamcl.storage.records import Batch
from streamcl.storage.state import StateDirectory
from streamcl.storage.versions import Versions

REPORT_SECONDS = 0.05
LOOK_SECONDS = 0.005  # between two looks at the channels during a record
MOST_WARNING = 1000  # characters of one that are kept
FULL_SECONDS = 1.0  # between two attempts to write to a full disk
CHECKPOINT_SECONDS = 30.0
PUBLISH_SECONDS = 0.2
FOLLOWED_AT_ONCE = 16  # tasks, at a boundary; more of them for
FOLLOW_SHARE = 0.02  # this share of the time that it took; the rest when there is nothing to learn,
FOLLOW_SECONDS = 0.05  # so long between two looks at the channels
FOLLOWED_TOGETHER = 500  # tasks in one message to ingest
EVALUATE_SHARE = 0.05  # at most this share of the time goes into evaluation sets while there is something to learn
PUBLISH_SHARE = 0.01  # at most this share of the time goes into publishing parameters

T = TypeVar("T")
_END = object()


class _Stopped(Exception):
    """The daemon ends now; a consolidation under way is left to the next start."""


def run(config: Config, up: Channel, side: Channel) -> None:
    """The process's main function; returns when the daemon stops."""
    models.load_factory(config.model.factory)  # said at the start, not at the first batch
    torch.set_flush_denormal(True)  # squares of small gradients are denormal and slow CPU arithmetic many times
    trainer = Trainer(config, up, side)
    trainer.memory.keep()
    trainer.run()


def _loggable(error: Exception) -> str:
    """The reason as the log may have it: what a model says about its data stays in the state directory."""
    cause = error.__cause__
    return str(error) if cause is None else f"{type(cause).__name__}; its message, which may hold data, is in `status`"


@dataclass(frozen=True, slots=True)
class EarlierStates:
    """What was learned earlier, as the ledger and the versions on disk have it."""

    directory: Path
    versions: Versions

    def standing(self, entries: int) -> ledger.Standing:
        """What held after so many entries of the ledger; raises Damaged."""
        return ledger.standing(ledger.read(self.directory, entries))

    def version(self, number: int) -> Mapping[str, Any]:
        """The arrays of a version; raises Damaged, FileNotFoundError."""
        return self.versions.read(number).tensors


def _factors(standing: ledger.Standing) -> set[int]:
    """The numbers of the factors that stand."""
    return {entry["factor"] for entry in standing.tasks.values() if entry["factor"] is not None}


class Trainer:
    """Applies the log to a learner and answers the ingest process."""

    def __init__(self, config: Config, up: Channel, side: Channel, disk: Disk | None = None) -> None:
        self.config = config
        self.up, self.side = up, side
        self.state = StateDirectory(Path(config.state_dir))
        self.disk = disk or Disk()
        self.factors = Factors(self.state.factors, self.disk)
        self.versions = Versions(self.state.path, self.disk)
        self.frozen = FrozenStore(self.state.path, self.disk)
        self._version_factors: dict[int, set[int]] = {}
        self._usable: list[int] = []
        self.learner = self._new_learner()
        self.log = structlog.get_logger()
        self.memory = Memory()
        self.forecast = Forecast()
        self.reader = log.LogReader(self.state.log)
        self.ledger: Ledger | None = None
        self.last_entry: dict[str, Any] | None = None
        self.durable = 0
        self.checkpointed_lsn = 0
        self.paused = False
        self.stopping: str | None = None
        self.wants_checkpoint: list[Any] = []
        self.quarantine: list[dict[str, Any]] = []
        self.full: str | None = None
        self.activity = "recovering"
        self._last_report = self._last_publish = self._last_step = self._last_look = 0.0
        self._last_checkpoint = time.monotonic()
        self._publish_cost = 0.0
        self._laid_out: tuple[Network, dict[str, Any]] | None = None
        self._step_seconds: list[float] = []
        self._reported_samples = 0
        self._following: Iterator[tuple[str, float, float]] = iter(())
        self._followed: dict[str, int] = {}
        self._followed_lsn, self._followed_time = 0, 0.0
        self._penalties: list[list[Any]] = []
        say = self._say_of_evaluation
        self._judged: tuple[int, str | None] | None = None  # the last model's trial and why it was refused
        self.evaluator = Evaluator(config, self.learner.device, say) if config.evaluation.directory else None
        self._to_evaluate: tuple[int, float, Mapping[str, Any]] | None = None  # LSN, time and parameters
        self._evaluating: Iterator[None] | None = None
        self._evaluation_began = self._evaluation_spent = 0.0

    def _new_learner(self) -> Learner:
        return Learner(self.config, self.factors, EarlierStates(self.state.path, self.versions))

    # -- life ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Recover, follow the log, and leave a checkpoint behind."""
        self.recover()
        self.greet()
        self.up.send("ready", device=str(self.learner.device))
        try:
            while not self._finished():
                self.turn()
            self._checkpoint_if_due(force=True)
        except _Stopped:
            self.log.info("stopped before the end of a record; it will be learned again")
        self._report(force=True)

    def greet(self) -> None:
        """Tell ingest where we are, which answers with how far the log goes; what the life before us did last, it may not
        have come to say."""
        self.side.send("recovered", next_lsn=self.learner.next_lsn)
        if self.last_entry is not None:
            self.side.send("done", entry=self.last_entry, warning=None)

    def _finished(self) -> bool:
        drained = self.learner.next_lsn >= self.durable
        return self.stopping == "now" or (self.stopping == "drain" and drained)

    def recover(self) -> None:
        """Take over what is on disk: the checkpoint, the ledger, the factors, and what has failed before."""
        saved = checkpoint.load(self.state.path, self.disk, self.frozen)
        self.quarantine = quarantine.load(self.state.path)
        self.learner.wary = quarantine.failures(self.quarantine)
        entries, written = 0, []
        if saved is not None:
            entries = saved.meta["ledger"]
            written = ledger.read(self.state.path, entries)
            self.last_entry = written[-1] if written else None
            self.learner.restore(saved.meta, saved.tensors, self.reader, ledger.standing(written))
            self.checkpointed_lsn = self.durable = self.learner.next_lsn
        if self.ledger is not None:
            self.ledger.close()
        self.ledger = Ledger.recover(self.state.path, entries, self.disk)
        self._reported_samples = self.learner.samples
        self._recover_versions(written)
        if saved is not None:
            if saved.meta["open_task"] is None and self.last_entry is not None:
                self._keep_version(self.last_entry)  # which the life before us may not have come to
            self._drop()
            self._publish(force=True)
            self._sweep()
            self._follow_tasks()
            self._evaluate_soon()
        self.log.info("recovered", next_lsn=self.learner.next_lsn, ledger=entries)

    def _recover_versions(self, entries: list[dict[str, Any]]) -> None:
        """What the versions on disk hold, and which of them may be used."""
        numbers = [number for number in self.versions.numbers() if number <= len(entries)]
        self._version_factors = {number: _factors(ledger.standing(entries[:number])) for number in numbers}
        self._usable = []
        for count, entry in enumerate(entries, start=1):
            self._usable = versions.usable(self._usable, count, entry)
        self._prune_versions()

    def turn(self) -> None:
        """Learn the next durable record, or wait for one."""
        if not self._apply_next():
            self._rest()

    def _rest(self) -> None:
        """Nothing to learn: wait for a message, waking for a checkpoint that falls due."""
        self.activity = "idle" if self.learner.open_task is None else self._learning()
        self._report(force=True)
        self._checkpoint_if_due()
        self._follow_on(FOLLOW_SECONDS)
        self._evaluate_on(FOLLOW_SECONDS)
        self._wait(0.0 if self._penalties or self._evaluating is not None else 1.0)
        self._look_up()

    def _learning(self) -> str:
        task = self.learner.open_task
        return "training" if task is None or task.revisited is None else "revisiting"

    # -- learning ------------------------------------------------------------------------------------------------

    def _apply_next(self) -> bool:
        """Learn the next durable record, if there is one."""
        self._look_up()
        lsn = self.learner.next_lsn
        if lsn >= self.durable or self.stopping == "now":
            return False
        entry = next(iter(self.reader.read(lsn, lsn + 1)))
        self.activity = self._learning()
        self._last_step = time.monotonic()
        try:
            self._learn(entry)
        except Unlearnable as error:
            self._set_aside(entry, error)
            return True
        self._report()
        self._publish()
        self._follow_on(0.0)
        self._evaluate_in_between()
        self._checkpoint_if_due(force=lsn in self.learner.wary)  # so that another failure does not come back this far
        return True

    def _learn(self, entry: log.Entry) -> None:
        steps = self.learner.apply(entry.lsn, entry.record, entry.arrays, self.reader)
        while True:
            try:
                event = next(steps)
            except StopIteration as finished:
                if finished.value is not None:
                    self._end(finished.value)
                return
            self._between_steps(event)

    def _set_aside(self, entry: log.Entry, error: Unlearnable) -> None:
        """Note that a record cannot be learned, go back to the last good state, and come again, wary of it."""
        record = entry.record
        failure = {
            "lsn": entry.lsn,
            "stage": error.stage,
            "task": record.task,
            "producer": record.producer,
            "seq": record.seq,
            "reason": str(error),
            "time": time.time(),
            "rows": record.samples if isinstance(record, Batch) else 0,
        }
        self.log.error("rolled back: a record cannot be learned", **{**failure, "reason": _loggable(error)})
        self._patiently(lambda: quarantine.save(self.state.path, [*self.quarantine, failure], self.disk))
        self.learner = self._new_learner()
        durable = self.durable
        self.recover()
        self.durable = durable
        self.side.send("failed", failure=failure, count=len(self.quarantine))

    def _patiently(self, action: Callable[[], T]) -> T:
        """Do something to the disk, again and again while it is full; whatever else goes wrong is raised."""
        while True:
            try:
                result = action()
                self.full = None
                return result
            except OSError as error:
                if error.errno not in FULL:
                    raise
                self.full = str(error)
            self.log.error("the disk is full; waiting for room", reason=self.full)
            self._report(force=True)
            self._wait(FULL_SECONDS)
            self._listen()
            if self.stopping == "now":
                raise _Stopped

    def _between_steps(self, event: Event) -> None:
        now = time.monotonic()
        if event is None or event.phase == "epochs":
            self._step_seconds.append(now - self._last_step)
        if event is not None:
            self._consolidating(event)
        self._report()
        self._publish()
        if now - self._last_look > LOOK_SECONDS:
            self._last_look = now
            if self.activity == "consolidating":
                self._look_up()
            else:
                self._listen()  # a pause waits for the batch's end: a checkpoint must never fall within a record
        if self.stopping == "now" and self.activity == "consolidating":
            raise _Stopped
        self._last_step = time.monotonic()

    def _consolidating(self, progress: Progress) -> None:
        if self.activity != "consolidating":
            self.activity = "consolidating"
            self.forecast.begin()
            if self.learner.warning is not None:
                self.log.warning(self.learner.warning, task=progress.task)
        self.forecast.saw(progress)

    def _end(self, outcome: Outcome) -> None:
        """Make what a record changed durable, then drop the data and factors that it ended, then say so."""
        assert self.ledger is not None
        entry = outcome.entry
        if self.activity == "consolidating":
            self.forecast.saving()
            self._report(force=True)
        if outcome.factor is not None:
            tensors = outcome.factor.state()
            self._patiently(lambda: self.factors.write(entry["factor"], entry["task"], tensors))
        if entry["kind"] in ("boundary", "revisit") and self.learner.warning is not None:
            entry["warning"] = self.learner.warning[:MOST_WARNING]
        ledger = self.ledger
        self._patiently(lambda: ledger.append(entry))
        self.last_entry = entry
        self._save_checkpoint()
        self._keep_version(entry)
        self._drop()
        self._forgive()
        self._publish(force=True)
        self._sweep()
        self._follow_tasks(FOLLOW_SHARE * entry["seconds"])
        if entry["kind"] not in ("abandon", "confirm"):
            self._evaluate_soon()
        self.side.send("done", entry=entry, warning=self.learner.warning)
        say = self.log.error if entry["kind"] == "held" else self.log.info
        say(entry["kind"], **{name: entry.get(name) for name in ("task", "samples", "loss", "seconds")})

    # -- durability ----------------------------------------------------------------------------------------------

    def _checkpoint_if_due(self, force: bool = False) -> None:
        due = time.monotonic() - self._last_checkpoint > CHECKPOINT_SECONDS or force
        if (due and self.learner.next_lsn > self.checkpointed_lsn) or self.wants_checkpoint:
            self._save_checkpoint()

    def _save_checkpoint(self) -> None:
        assert self.ledger is not None
        started = time.monotonic()
        meta, tensors = self.learner.snapshot()
        meta["ledger"] = len(self.ledger)
        self._patiently(lambda: checkpoint.save(self.state.path, meta, self.frozen.referred(tensors), self.disk))
        self.memory.give_back()
        if self.activity == "consolidating":  # and this was the last of it
            self.activity = "idle"
        self._last_checkpoint = time.monotonic()
        self.checkpointed_lsn = self.learner.next_lsn
        published.clear(self.state.posterior)
        self._report(force=True)  # whoever waits for the checkpoint or the boundary then reads a status that has it
        self.side.send(
            "checkpointed",
            next_lsn=self.learner.next_lsn,
            batches=self.learner.batches,
            sequences={name: seq for name, (_, seq) in self.learner.sequences.items()},
            seconds=self._last_checkpoint - started,
            time=time.time(),
            ids=self.wants_checkpoint,
        )
        self.wants_checkpoint = []
        seconds = round(self._last_checkpoint - started, 3)
        self.log.debug("checkpoint written and verified", next_lsn=self.learner.next_lsn, seconds=seconds)

    def _drop(self) -> None:
        """Unlink what the checkpoint has absorbed for good: records of closed tasks, factors that were replaced."""
        task, posterior, standing = self.learner.open_task, self.learner.posterior, self.learner.standing
        first = self.learner.next_lsn if task is None else task.first_lsn
        log.drop_before(self.state.log, first, self.disk, standing.kept())
        self.reader.forget(first)
        if posterior is not None and posterior.keeps_factors:
            self.factors.keep_only(_factors(standing).union(*self._version_factors.values()))
        self.side.send("dropped")

    def _sweep(self) -> None:
        """Remove arrays of the model that neither the checkpoint, nor a version, nor what is published refers to."""
        versions = map(self.versions.path, self.versions.numbers())
        self.frozen.sweep([self.state.path / checkpoint.NAME, *versions, self.state.parameters])

    def _keep_version(self, entry: Mapping[str, Any]) -> None:
        """After a boundary, the checkpoint just written is one to go back to; those beyond the bound, and those that may
        not be used any more, go."""
        assert self.ledger is not None
        number, keep = len(self.ledger), self.config.posterior.keep
        self._usable = versions.usable(self._usable, number, entry)
        clean = entry["kind"] != "forget" or self.learner.open_task is None  # no parameters in the midst of a task
        if keep and clean and number in self._usable and number not in self._version_factors:
            self._patiently(lambda: self.versions.add(number))
            self._version_factors[number] = _factors(self.learner.standing)
        self._prune_versions()

    def _prune_versions(self) -> None:
        keep = self.config.posterior.keep
        kept = [number for number in self._usable if number in self._version_factors][-keep - 1 :] if keep else []
        self.versions.keep_only(kept)
        self._usable = kept
        self._version_factors = {number: self._version_factors[number] for number in kept}

    def _forgive(self) -> None:
        """Failures of records that are neither kept nor to come are no longer of use: none of their rows is lost."""
        task, next_lsn = self.learner.open_task, self.learner.next_lsn
        first, kept = next_lsn if task is None else task.first_lsn, self.learner.standing.kept()
        held = {entry["lsn"] for entry in self.learner.standing.held.values()}
        failures = [
            failure
            for failure in self.quarantine
            if failure["lsn"] >= first or failure["lsn"] in held or any(a <= failure["lsn"] < b for a, b in kept)
        ]
        if len(failures) < len(self.quarantine):
            self._patiently(lambda: quarantine.save(self.state.path, failures, self.disk))
            self.quarantine = failures
            self.learner.wary = quarantine.failures(failures)
            self.side.send("forgiven", lsns=[failure["lsn"] for failure in failures])

    # -- what others see -----------------------------------------------------------------------------------------

    def _publish(self, force: bool = False) -> None:
        """Put the parameters where the predictor reads them, seldom enough to cost next to nothing."""
        started = time.monotonic()
        wait = max(PUBLISH_SECONDS, self._publish_cost / PUBLISH_SHARE)
        network = self.learner.network
        if network is None or (not force and started - self._last_publish < wait):
            return
        if not force and self._learning() == "revisiting":
            return  # a revisit takes effect at its boundary, whole
        served = self.learner.served()
        if not np.isfinite(served["theta"]).all():
            return  # about to be rolled back
        if self.checkpointed_lsn == 0 and not self.state.posterior.exists():
            self._publish_prior()
        meta = {
            "version": self.learner.steps,
            "signature": self.learner.snapshot_signature(),
            "labels": self.learner.labels.labels().tolist(),
            "posterior": self.learner.consolidations,
            "parameters": network.parameters.layout.plain(),
            "layout": self._layout_of(network),
        }
        arrays = self._patiently(lambda: self.frozen.referred(served, whole=False))
        published.publish(self.state.parameters, meta, arrays)
        self._last_publish = time.monotonic()
        self._publish_cost = self._last_publish - started

    def _layout_of(self, network: Network) -> dict[str, Any]:
        """Found out once a network: it does not change while it learns."""
        if self._laid_out is None or self._laid_out[0] is not network:
            self._laid_out = network, network.layout()
        return self._laid_out[1]

    def _publish_prior(self) -> None:
        """Until there is a checkpoint, which holds the posterior, show the one there is before any task."""
        posterior = self.learner.posterior
        if posterior is None:
            return
        published.publish(self.state.posterior, {"posterior": self.learner.consolidations}, posterior.total.state())

    # -- following tasks without their data ----------------------------------------------------------------------

    def _follow_tasks(self, seconds: float = 0.0) -> None:
        """Find what every task's penalty has come to at these parameters; some, and for so long, now, the rest by and by.

        A boundary must not wait for a walk over all the factors, however many tasks there are.
        """
        posterior, network = self.learner.posterior, self.learner.network
        if posterior is None or network is None or self.learner.open_task is not None:
            return
        self._say_penalties()
        self._following = posterior.follow(network.master(), self._followed)
        self._followed_lsn, self._followed_time = self.learner.next_lsn, time.time()
        self._follow_on(seconds, FOLLOWED_AT_ONCE)

    def _follow_on(self, seconds: float, least: int = 1) -> None:
        """Go on following; at least so many tasks, and no longer than that once they are done."""
        deadline = time.monotonic() + seconds
        for number, row in enumerate(self._following, start=1):
            self._followed[row[0]] = self._followed_lsn
            self._penalties.append(list(row))
            if number >= least and time.monotonic() > deadline:
                return
        self._say_penalties()

    def _say_penalties(self) -> None:
        """Tell ingest what has been found, in messages of bounded size."""
        known = {} if self.learner.posterior is None else self.learner.posterior.tasks
        rows, self._penalties = [row for row in self._penalties if row[0] in known], []  # some may be withdrawn by now
        for start in range(0, len(rows), FOLLOWED_TOGETHER):
            part = rows[start : start + FOLLOWED_TOGETHER]
            self.side.send("penalties", lsn=self._followed_lsn, time=self._followed_time, rows=part)

    # -- evaluation sets -----------------------------------------------------------------------------------------

    def _evaluate_soon(self) -> None:
        """Keep the parameters of this boundary, to be evaluated in quiet moments after those that are being evaluated."""
        if self.evaluator is None or self.learner.network is None or self.learner.open_task is not None:
            return
        state = {name: np.array(array) for name, array in self.learner.served().items()}
        self._to_evaluate = (self.learner.next_lsn, time.time(), state)

    def _evaluate_in_between(self) -> None:
        """A block, if there was little of that lately: data must not wait for evaluations."""
        elapsed = time.monotonic() - self._evaluation_began
        if self._evaluating is None or self._evaluation_spent < EVALUATE_SHARE * elapsed:
            self._evaluate_on(0.0)

    def _evaluate_on(self, seconds: float) -> None:
        """Go on evaluating; a block at least, and no longer than that after it."""
        started = time.monotonic()
        if self._evaluating is None and self._to_evaluate is not None:
            self._evaluating = self._evaluation(*self._to_evaluate)
            self._to_evaluate = None
            self._evaluation_began, self._evaluation_spent = started, 0.0
        while self._evaluating is not None:
            if next(self._evaluating, _END) is _END:
                self._evaluating = None
            if time.monotonic() - started >= seconds:
                break
        self._evaluation_spent += time.monotonic() - started

    def _evaluation(self, lsn: int, when: float, state: Mapping[str, Any]) -> Iterator[None]:
        learner = self.learner
        assert self.evaluator is not None
        assert learner.posterior is not None
        assert learner.signature is not None
        results: list[Evaluated] = []
        for result in self.evaluator.evaluate(list(learner.posterior.tasks), learner.signature, learner.labels, state):
            if result is not None:
                results.append(result)
            yield None
        known = () if self.learner.posterior is None else self.learner.posterior.tasks  # some may be withdrawn by now
        rows = [[each.task, each.accuracy, each.rows] for each in results if each.task in known]
        for start in range(0, len(rows), FOLLOWED_TOGETHER):
            self.side.send("accuracies", lsn=lsn, time=when, rows=rows[start : start + FOLLOWED_TOGETHER])

    def _say_of_evaluation(self, task: str, text: str) -> None:
        self.log.warning("evaluation", task=task or None, reason=text)
        self.side.send("noted", text=text, task=task or None)

    # -- progress ------------------------------------------------------------------------------------------------

    def _report(self, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self._last_report < REPORT_SECONDS:
            return
        self._last_report = now
        learner = self.learner
        activity = "paused" if self.paused else self.activity
        shown = activity if learner.open_task is None else f"{activity}, task {learner.open_task.name}"
        self.up.alive(activity=shown, checkpointed=self.checkpointed_lsn, at_work=self._at_work())
        self.side.send(
            "progress",
            state=activity,
            task=learner.open_task.name if learner.open_task else None,
            next_lsn=learner.next_lsn,
            samples=learner.samples,
            new_samples=learner.samples - self._reported_samples,
            loss=learner.train_loss if np.isfinite(learner.train_loss) else None,
            scores={
                "overall": learner.prequential.overall.scores(),
                "task": learner.prequential.task.scores(),
            },
            parameters=0 if learner.network is None else learner.network.parameters.size,
            steps=learner.steps,
            consolidation=self._shown_forecast(),
            step_seconds=self._step_seconds[-500:],
            device=str(learner.device),
            full=self.full,
        )
        self._reported_samples = learner.samples
        self._step_seconds = []

    def _at_work(self) -> bool:
        """Whether there is something to learn, that a trainer which died might have died of."""
        return not self.paused and self.learner.next_lsn < self.durable

    def _shown_forecast(self) -> dict[str, Any] | None:
        if self.activity != "consolidating":
            return None
        forecast = self.forecast
        return {
            "phase": forecast.phase,
            "epoch": forecast.epoch,
            "epochs": forecast.epochs,
            "fraction": forecast.fraction(),
            "seconds_left": forecast.seconds_left(),
        }

    # -- being told ----------------------------------------------------------------------------------------------

    def _look_up(self) -> None:
        """Take what the other processes say; while paused, do nothing else."""
        self._listen()
        while self.paused and self.stopping is None:
            self._report()  # not with every word of a busy ingest
            if self.wants_checkpoint and self.activity != "consolidating":  # between two records, or within a boundary
                self._save_checkpoint()
            self._wait(1.0)
            self._listen()

    def _wait(self, seconds: float) -> None:
        """Until a message arrives."""
        wait([self.side, self.up], seconds)

    def _listen(self) -> None:
        self.side.flush()
        for message in self.side.receive():
            self._hear(message)
        for message in self.up.receive():
            if message["type"] == "stop":
                self.stopping = "drain" if message["drain"] else "now"
        if self.up.closed:
            raise _Stopped

    def _hear(self, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "durable":
                self.durable = message["lsn"]
            case "pause" | "resume":
                self.paused = message["type"] == "pause"
                self._report(force=True)
            case "checkpoint":
                self.wants_checkpoint.append(message["id"])
            case "try_model":
                self._judge_model(message["number"])

    def _judge_model(self, number: int) -> None:
        """Try the model on the rows that ingest has put down, once for each number, and say what came of it."""
        if self._judged is None or self._judged[0] != number:
            found = published.read(self.state.trial)
            if found is None:  # it has been judged, and ingest has heard of it
                return
            self._judged = number, self._try_model(*found)
        self.side.send("model", number=number, refused=self._judged[1])

    def _try_model(self, meta: Mapping[str, Any], arrays: Mapping[str, Any]) -> str | None:
        """Why the model cannot be learned on rows of a first batch, or None."""
        signature, labels = Signature.from_plain(meta["signature"]), tuple(meta["new_labels"])
        try:
            self.learner.try_model(signature, arrays["x"], arrays["y"], labels, self._report)
        except (ModelRefused, ConfigError) as error:
            private = isinstance(error, ModelRefused) and error.private
            self.log.error("the model is refused", reason=_loggable(error) if private else str(error))
            return str(error)
        return None
