"""The learner: a function of the log. Batches are scored and learned from, boundaries consolidated, tasks revisited.

Guarantees: after the same records in the same order, the same parameters to the bit (on the CPU); every random
number is drawn from (seed, position in the log), so no generator's state has to be saved. A snapshot holds all that
the next record needs. Writes no files and knows no sockets: the trainer persists what `snapshot` gives.

What cannot be learned (the model raises, the loss leaves the finite numbers) is told by `Unlearnable`; coming again to the
same record, knowing from `wary` how it failed, the learner
  * passes over a batch, which is tried once more at its task's boundary and, failing there too, set aside;
  * after a divergence that was the steps' fault, not the batch's, leaves the rest of the task to its boundary;
  * at a boundary that diverged, starts again from the anchor with a smaller rate;
  * at a boundary that failed otherwise, or too often, holds the task: its rows stay, nothing else has changed.
What was set aside or held is learned by a `Retry`, given up by a `Drop`, and never otherwise.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from streamcl.config import Config
from streamcl.core.consolidation import task_precision
from streamcl.core.fisher import DiagonalFisher, Undecided
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Precision
from streamcl.errors import ConfigError, Damaged, StreamclError, WrongOutput, in_words
from streamcl.learning.data import Block, TaskData
from streamcl.learning.drift import Drift, Rise, errors
from streamcl.learning.evaluation import Prequential
from streamcl.learning.network import Network, choose_device
from streamcl.learning.optimisation import EpochResult, Optimisation, mean_nll
from streamcl.learning.posterior import FactorSource, Posterior, from_arrays
from streamcl.learning.trial import Trial
from streamcl.protocol.firsts import chosen
from streamcl.protocol.session import signature_of, stream_name, take_labels
from streamcl.protocol.signature import LabelMap, Signature
from streamcl.storage.bound import check_fingerprint, fingerprint
from streamcl.storage.checkpoint import POSTERIOR, under
from streamcl.storage.ledger import Standing, aside, rows_aside
from streamcl.storage.log import LogReader
from streamcl.storage.records import Abandon, Batch, Boundary, Drop, Forget, Record, Retry, Revisit, Rollback

FISHER_ROWS = 512  # between two looks at the channels, also where gradients are taken one by one
CALMER = 0.1  # the learning rate's factor at each new attempt at a boundary that diverged
ATTEMPTS = 4  # at a boundary that diverges; then the task is held
WORSE_NATS = 1.0
DIVERGED = {"batch": "batch-diverged", "boundary": "boundary-diverged"}  # the stage of a failure that the steps caused
CONFIRMED = ("task", "samples", "weight", "loss", "seconds", "closed_at")  # of a drift's entry, for its stream's boundary


class Unlearnable(StreamclError):
    """A record could not be learned: the loss left the finite numbers, or the model failed on it.

    stage: ``batch`` or ``boundary`` where the model raised, else ``batch-diverged`` or ``boundary-diverged``. The learner
    is then in no state to go on: restore it, and tell it to be wary.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class Diverged(FloatingPointError):
    """The loss, the parameters or the curvature left the finite numbers."""


@dataclass(slots=True)
class OpenTask:
    """The task being learned: where its records are and how many rows they hold.

    first_lsn: of the record that opened it. penalty: what it is learned under. damping: of a revisit's new factor, None
    where the task is learned for the first time. before: what is served during a revisit, and comes back if it is
    abandoned. tag: what its producers call it; its name, but for drift. suspects: LSN and rows of batches that failed as
    they came, in neither `lsns` nor `sizes`. stalled: no more steps before the boundary, since they diverged.
    """

    name: str
    first_lsn: int
    penalty: Gaussian
    damping: float | None = None
    before: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    lsns: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tag: str | None = None
    suspects: list[tuple[int, int]] = field(default_factory=list)
    stalled: bool = False

    @property
    def revisited(self) -> str | None:
        """Its name if this is a revisit."""
        return None if self.damping is None else self.name

    @property
    def samples(self) -> int:
        """N_t so far."""
        return sum(self.sizes)

    def add(self, lsn: int, rows: int) -> None:
        """One more record of this task."""
        self.lsns.append(lsn)
        self.sizes.append(rows)

    def admit(self, sound: Callable[[int], bool]) -> None:
        """Take in, in the log's order, the suspects that turn out to be sound after all."""
        found = [pair for pair in self.suspects if sound(pair[0])]
        self.suspects = [pair for pair in self.suspects if pair not in found]
        together = sorted([*zip(self.lsns, self.sizes, strict=True), *found])
        self.lsns, self.sizes = [lsn for lsn, _ in together], [rows for _, rows in together]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a consolidation has come: `done` is the share of its phase, the epochs or the Fisher, from 0 to 1.

    `result` is set by the event that ends an epoch.
    """

    task: str
    phase: Literal["epochs", "fisher"]
    done: float
    epoch: int
    epochs: int
    steps: int
    result: EpochResult | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a record changed for good: an entry that says so, and the factor to keep beside it in factor mode.

    entry["kind"] is one of the ledger's.
    """

    entry: dict[str, Any]
    factor: Gaussian | None = None


class Past(Protocol):
    """What was learned earlier, where it is kept."""

    def standing(self, entries: int) -> Standing:
        """What held after so many of the ledger's entries."""

    def version(self, number: int) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays of a checkpoint that counts so many entries; raises Damaged, FileNotFoundError."""


Event = Progress | None
T = TypeVar("T")
R = TypeVar("R", Batch, Boundary)
Steps = Generator[Event, None, Outcome | None]


class Learner:
    """Holds the network, its posterior and everything counted; `apply` takes one log record at a time."""

    def __init__(self, config: Config, factors: FactorSource, past: Past | None = None) -> None:
        self.config = config
        self.factors = factors
        self.past = past
        self.standing = Standing()
        self.device = choose_device(config.train.device)
        self.labels = LabelMap(config.model.classes)
        self.signature: Signature | None = None
        self.network: Network | None = None
        self.posterior: Posterior | None = None
        self.optimisation: Optimisation | None = None
        self.open_task: OpenTask | None = None
        self.prequential = Prequential(config.model.likelihood)
        self.drift = self._watch(config)
        self.drifted: dict[str, Any] | None = None  # the task that drift closed, while no row of its stream has come since
        self.sequences: dict[str, tuple[int, int]] = {}
        self.next_lsn = 0
        self.steps = 0
        self.samples = 0
        self.batches = 0
        self.consolidations = 0
        self.warning: str | None = None
        self.fisher_note: str | None = None  # what the last boundary's Fisher cost for want of a fast way
        self.wary: dict[int, dict[str, int]] = {}
        self._unsound: BaseException | None = None
        self.train_loss = math.nan

    @staticmethod
    def _watch(config: Config) -> Drift | None:
        stream = config.stream
        return Drift(config.model.likelihood, stream.drift_delta, stream.drift_rows) if stream.boundary == "drift" else None

    def _risen(self, record: Batch) -> Rise | None:
        """The rise of the error that shows that the open task's stream has changed; never of a revisit.

        A record of a log in which ingest set the boundaries (it names no stream of tasks) waits for one of these.
        """
        learned_anew = self.open_task is not None and self.open_task.revisited is None
        return self.drift.found if self.drift is not None and learned_anew and record.of_stream else None

    # -- the model -----------------------------------------------------------------------------------------------

    def try_model(
        self,
        signature: Signature,
        x: npt.NDArray[Any],
        y: npt.NDArray[Any],
        new_labels: tuple[int, ...],
        look_up: Callable[[], None],
    ) -> None:
        """Try the model on rows of a first batch and throw it away; raises ModelRefused, ConfigError.

        look_up: called now and then, for whoever has to show signs of life meanwhile.
        """
        Trial(self.config, signature, self.device, x, y, new_labels, look_up).run()

    def _build(self, signature: Signature) -> None:
        steady = self.network is not None and self.network.steady  # where the same model is begun anew
        self.signature = signature
        self.network = self._built(signature)
        self.network.steady = steady
        prior = self._prior(self.network)
        self.posterior = Posterior(self.config.posterior, prior, self.factors, prior, self.standing.tasks)

    def _built(self, signature: Signature) -> Network:
        return Network(self.config, signature, self.labels, self.device)

    def _prior(self, network: Network) -> Gaussian:
        settings = self.config.posterior
        theta = network.master()
        centre = theta if settings.prior_mean == "init" else torch.zeros(1, dtype=theta.dtype).expand_as(theta)
        return Gaussian.prior(centre, settings.prior_precision, settings.curvature)

    # -- records -------------------------------------------------------------------------------------------------

    def apply(self, lsn: int, record: Any, arrays: Mapping[str, npt.NDArray[Any]], log: LogReader) -> Steps:
        """Take one record of the log; a generator that yields after every step, so that its caller can look up.

        Returns the outcome where the record changed the posterior or ended a task. Raises Unlearnable, Damaged. Where
        `wary` counts failures of this record, a batch is passed over and a boundary trained more calmly.
        """
        outcome = None
        match record:
            case Batch():
                with _blaming("batch", record.task):
                    yield from self._learn(lsn, record, arrays)
                if record.boundary:
                    outcome = yield from self._close(lsn, self._by_name(record), None, log)
                elif (rise := self._risen(record)) is not None and self._has_name_left():
                    outcome = yield from self._close_drifted(lsn, rise, log)
            case Boundary() if self.open_task is None and self.drifted is not None:
                outcome = self._confirm(lsn, record, self.drifted)
            case Boundary():
                outcome = yield from self._close(lsn, self._by_name(record), record.weight, log)
            case Revisit():
                self._reopen(lsn, record)
            case Abandon():
                outcome = self._abandon(lsn, record)
            case Forget():
                outcome = self._forget(lsn, record)
            case Retry():
                outcome = yield from self._retry(lsn, record, log)
            case Drop():
                outcome = self._settle(self._entry("drop", lsn, record, time.monotonic()))
            case Rollback():
                outcome = self._roll_back(lsn, record)
        if record.producer is not None:
            self.sequences[record.producer] = (record.epoch, record.seq)
        self.next_lsn = lsn + 1
        return outcome

    def _learn(self, lsn: int, batch: Batch, arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
        """Score a batch and take one pass of steps over it, with N_T the rows received so far.

        Every row is scored before a step learns from it: by that step's own forward pass, unless a step computes something
        else than a prediction does (dropout, autocast).
        """
        if self.network is None:
            self._build(signature_of(batch))
            self._network.settle(self._network.conversion.x(chosen(arrays["x"], arrays["y"])[0]))
        network = self._network
        take_labels(self.labels, batch)
        task = self._opened(lsn, batch)
        self.batches += 1
        x, y = network.conversion.x(arrays["x"]), network.conversion.y(arrays["y"])
        if self._failures(lsn, "batch-diverged") and self._at_anchor(lambda: self._is_finite(x, y)):
            self._stall(task)
        elif self._failures(lsn, "batch") or self._failures(lsn, "batch-diverged"):
            task.suspects.append((lsn, batch.samples))
            return
        task.add(lsn, batch.samples)
        self.samples += batch.samples
        if task.stalled:
            return
        scored = network.steady and not self._optimisation.full_batch
        if not scored:
            with network.evaluating():
                output = network.module(x)
                self._score(network.likelihood.nll(output, y), output, y)
        if not self._optimisation.full_batch:
            self._seed_torch(lsn)
            nll, output = yield from self._pass(x, y, task.samples)
            self.train_loss = self._score(nll, output, y) if scored else float(nll.double().mean())
            self._check_finite(self.train_loss, batch.task)

    def _pass(self, x: torch.Tensor, y: torch.Tensor, samples: int) -> Generator[None, None, tuple[Any, Any]]:
        """One pass of steps over a batch; the NLL [n] and output that each row had before the step that learned from it."""
        optimisation, size = self._optimisation, self.config.train.batch_size
        optimisation.set_samples(samples)
        parts = []
        for start in range(0, len(x), size):
            parts.append(optimisation.step(x[start : start + size], y[start : start + size]))
            self.steps += 1
            yield None
        nlls, outputs = zip(*parts, strict=True)
        return torch.cat(nlls), torch.cat(outputs)

    def _opened(self, lsn: int, batch: Batch) -> OpenTask:
        if self.open_task is None:
            name = stream_name(batch.task, self._is_taken) if batch.of_stream else batch.task
            self._open_task(OpenTask(name, lsn, self._posterior.cavity(None), tag=batch.tag))
        return self._open

    def _open_task(self, task: OpenTask) -> None:
        self.open_task, self.drifted = task, None
        self.optimisation = Optimisation(self._network, task.penalty, self.config.train)
        self.prequential.open_task()
        if self.drift is not None:
            self.drift.open_task()

    def _reopen(self, lsn: int, revisit: Revisit) -> None:
        """A consolidated task is to be fed again: learned as if new, with the others as the penalty."""
        damping = self.config.posterior.damping if revisit.damping is None else revisit.damping
        before = {name: array.copy() for name, array in self._network.state().items()}
        penalty = self._posterior.cavity(revisit.task)
        self._open_task(OpenTask(revisit.task, lsn, penalty, damping, before))

    def _abandon(self, lsn: int, record: Abandon | Batch | Boundary) -> Outcome:
        """The revisit never was: the task's factor stands, and the parameters are those from before."""
        started = time.monotonic()
        self._network.load(self._open.before)
        self.open_task = self.optimisation = None
        return Outcome(self._entry("abandon", lsn, record, started))

    def _forget(self, lsn: int, record: Forget) -> Outcome:
        """Withdraw a task: the totals without its factor. The parameters keep what they learned until trained again."""
        started = time.monotonic()
        self._posterior.forget(record.task)
        self.consolidations += 1
        if self.open_task is not None:
            self.open_task.penalty = self._posterior.cavity(self.open_task.revisited)
            self._optimisation.set_penalty(self.open_task.penalty)
        return self._settle(self._entry("forget", lsn, record, started))

    def _score(self, nll: torch.Tensor, output: torch.Tensor, y: torch.Tensor) -> float:
        """Score what rows had before they were learned from; returns their mean NLL."""
        output = self._network.shaped(output)
        if self.drift is not None and self._open.revisited is None:
            self.drift.add(errors(self.config.model.likelihood, output, y))
        return self.prequential.score(nll, output, y, self._network.reduction)

    # -- what fails ----------------------------------------------------------------------------------------------

    def _failures(self, lsn: int, stage: str) -> int:
        """How often this record has failed at this stage."""
        return self.wary.get(lsn, {}).get(stage, 0)

    def _fails_for_good(self, lsn: int) -> bool:
        """Whether a boundary is not to be tried again: a model that raised would raise again."""
        return self._failures(lsn, "boundary") > 0 or self._failures(lsn, "boundary-diverged") >= ATTEMPTS

    def _anchor(self) -> torch.Tensor:
        """Parameters [P] at which no step of the open task has done harm yet: from before a revisit, the posterior's
        mean, or, with nothing consolidated, those that the factory makes."""
        network = self._network
        if self.open_task is not None and self.open_task.before:
            anchor = torch.from_numpy(np.array(self.open_task.before["theta"]))
        elif self.standing.tasks:
            anchor = self._posterior.total.mean
        else:
            anchor = torch.from_numpy(self._built(network.signature).theta())
        return anchor.to(self.device, network.dtype)

    def _return_to_anchor(self) -> None:
        self._network.parameters.load(self._anchor())

    def _at_anchor(self, question: Callable[[], T]) -> T:
        """What holds at the anchor; the parameters are put back."""
        theta = self._network.parameters.theta.detach().clone()
        self._return_to_anchor()
        try:
            return question()
        finally:
            self._network.parameters.load(theta)

    def _is_finite(self, x: torch.Tensor, y: torch.Tensor) -> bool:
        with self._network.evaluating():
            nll = self._network.likelihood.nll(self._network.module(x), y)
        return bool(torch.isfinite(nll).all())

    def _is_sound(self, log: LogReader, lsn: int) -> bool:
        """Whether a batch that has failed goes through the model in both modes now, forwards and backwards."""
        network = self._network
        try:
            arrays = next(iter(log.read(lsn, lsn + 1))).arrays
            x, y = network.conversion.x(arrays["x"]), network.conversion.y(arrays["y"])
            network.parameters.grad.zero_()
            nll = network.likelihood.nll(network.training_output(x), y)
            torch.autograd.backward(nll.mean())
            finite = bool(torch.isfinite(network.parameters.grad).all())
            if finite and bool(torch.isfinite(nll).all()) and self._is_finite(x, y):
                return True
            raise ValueError("the loss of these rows, or its gradient, is not a finite number")
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever a model may raise
            self._unsound = error
            return False

    def _why_unsound(self) -> BaseException:
        """What a retried batch was found unsound for."""
        return self._unsound or ValueError("none of its rows can be learned")

    def _stall(self, task: OpenTask) -> None:
        """Steps have diverged: what they did is undone, and the boundary learns the task, from where it was before."""
        self._return_to_anchor()
        task.stalled = True

    def _hold(self, entry: dict[str, Any]) -> Outcome:
        """A boundary at which nothing can be learned: its rows stay, everything else is as before the task."""
        if self._open.before:
            self._network.load(self._open.before)
        else:
            self._return_to_anchor()
        return self._settle(entry)

    def _held_entry(self, lsn: int, record: Batch | Boundary, weight: float | None, started: float) -> dict[str, Any]:
        task = self._open
        rows = task.samples + sum(rows for _, rows in task.suspects)
        place = {"first_lsn": task.first_lsn, "end_lsn": lsn + 1, "weight": weight, "damping": task.damping}
        return {**self._entry("held", lsn, record, started), **place, "samples": rows}

    def _settle(self, entry: dict[str, Any], factor: Gaussian | None = None) -> Outcome:
        """What a record changed for good takes effect: a boundary, held or not, leaves no task open."""
        if entry["kind"] in ("boundary", "revisit", "held"):
            self.open_task = self.optimisation = None
        self.standing.take(entry, self._earlier)
        if self.posterior is not None:
            self.posterior.tasks = self.standing.tasks
        return Outcome(entry, factor)

    def _earlier(self, entries: int) -> Standing:
        return Standing() if entries == 0 else _existing(self.past).standing(entries)

    def _retry(self, lsn: int, record: Retry, log: LogReader) -> Steps:
        """What is kept of a task is learned: a held one as at its boundary, or the batches that were set aside."""
        held, known = self.standing.held.get(record.task), self.standing.tasks.get(record.task)
        if held is not None:
            return (yield from self._retry_held(lsn, record, held, log))
        if known is not None and aside(known):
            return (yield from self._retry_aside(lsn, record, known, log))
        return Outcome(self._entry("nothing", lsn, record, time.monotonic()))

    def _retry_held(self, lsn: int, record: Retry, held: dict[str, Any], log: LogReader) -> Steps:
        started, revisited = time.monotonic(), held["damping"] is not None
        before = {name: array.copy() for name, array in self._network.state().items()}
        penalty = self._posterior.cavity(record.task if revisited else None)
        self.open_task = OpenTask(record.task, held["first_lsn"], penalty, held["damping"], before)
        self.optimisation = Optimisation(self._network, penalty, self.config.train)
        again = {**held, "lsn": lsn, "closed_at": time.time(), "seconds": time.monotonic() - started}
        if self._fails_for_good(lsn):
            return self._hold(again)
        with _blaming("boundary", record.task):
            for entry in log.read(held["first_lsn"], held["end_lsn"]):
                if isinstance(entry.record, Batch):
                    self._open.suspects.append((entry.lsn, entry.record.samples))
            self._open.admit(lambda number: self._is_sound(log, number))
            if self._open.samples == 0:
                raise self._why_unsound()
            return (yield from self._consolidate(lsn, _closing(record, held), held["weight"], log))

    def _retry_aside(self, lsn: int, record: Retry, known: dict[str, Any], log: LogReader) -> Steps:
        """Batches that were set aside, learned under the whole posterior, their own task's part of it included."""
        before = {name: array.copy() for name, array in self._network.state().items()}
        self.open_task = task = OpenTask(record.task, lsn, self._posterior.total, None, before)
        self.optimisation = Optimisation(self._network, task.penalty, self.config.train)
        task.suspects = [(number, rows) for number, rows in aside(known)]
        with _blaming("boundary", record.task):
            if not self._fails_for_good(lsn):
                task.admit(lambda number: self._is_sound(log, number))
                if task.samples == 0:
                    raise self._why_unsound()
            if task.samples == 0:
                self._network.load(before)
                self.open_task = self.optimisation = None
                return self._settle({**self._entry("still-aside", lsn, record, 0.0), "samples": rows_aside(known)})
            return (yield from self._consolidate(lsn, _closing(record, known), None, log, known))

    def _roll_back(self, lsn: int, record: Rollback) -> Outcome:
        """Everything learned since a version is undone; an open task is learned from there."""
        started, network = time.monotonic(), self._network
        entry = {**self._entry("rollback", lsn, record, started), "to": record.to, "undone": list(record.undone)}
        if record.to == 0:
            self._build(network.signature)
        else:
            try:
                arrays = _existing(self.past).version(record.to)
            except (Damaged, OSError) as error:
                return Outcome({**entry, "kind": "rollback-failed", "reason": str(error)})
            network.load(arrays)
            self._posterior.total = from_arrays(under(POSTERIOR, arrays))
        outcome = self._settle(entry)
        self.consolidations += 1
        self.steps += 1  # the parameters are others, and readers tell them apart by it
        if self.open_task is not None:
            self.open_task.penalty = self._posterior.cavity(None)
            self.optimisation = Optimisation(self._network, self.open_task.penalty, self.config.train)
        return outcome

    # -- boundaries ----------------------------------------------------------------------------------------------

    def _close(self, lsn: int, record: Batch | Boundary, weight: float | None, log: LogReader) -> Steps:
        """A boundary; of a task of which nothing can be learned, one that holds it."""
        started = time.monotonic()
        if not self._open.lsns and not self._open.suspects:  # a repair has found none of its records
            return self._abandon(lsn, record) if self._open.revisited else self._close_empty(lsn, record)
        if self._fails_for_good(lsn):
            return self._hold(self._held_entry(lsn, record, weight, started))
        with _blaming("boundary", record.task):
            self._open.admit(lambda number: self._at_anchor(lambda: self._is_sound(log, number)))
            if self._open.samples == 0:
                return self._hold(self._held_entry(lsn, record, weight, started))
            return (yield from self._consolidate(lsn, record, weight, log))

    def _consolidate(
        self,
        lsn: int,
        record: Batch | Boundary,
        weight: float | None,
        log: LogReader,
        more_of: dict[str, Any] | None = None,
    ) -> Steps:
        """The boundary of a task: the configured epochs, then the optimum found enters the posterior.

        more_of: the entry of the consolidated task to which these rows are added, None where they are a task by themselves.
        """
        started = time.monotonic()
        task, data = self._open, self._task_data(self._open, log)
        self._seed_torch(lsn)
        self.warning = self._optimisation.warning(data.samples)
        yield from self._fit(task, data, lsn)
        if weight is None:
            weight = self.config.posterior.effective_scale * data.samples
        fisher, loss = yield from self._fisher(task.name, data, self._seed(lsn))
        self.warning = "; ".join(filter(None, (self.warning, self.fisher_note))) or None
        self._check_finite(loss, task.name)
        self._check_gained(loss, data)
        factor = self._absorb(task, task_precision(fisher, data.samples, weight), more_of)
        self.train_loss = loss
        entry = self._learned_entry(lsn, record, started, data.samples, weight, loss, more_of)
        if factor is not None:
            at = factor.potential(self._network.master())
            entry |= {"factor": lsn, "potential": at}
        self.consolidations += 1
        return self._settle(entry, factor)

    def _learned_entry(
        self,
        lsn: int,
        record: Batch | Boundary,
        started: float,
        samples: int,
        weight: float,
        loss: float,
        more_of: dict[str, Any] | None,
    ) -> dict[str, Any]:
        """A consolidated task's entry; of rows that were added to one, with the sums and the mean loss of all its rows."""
        left = [list(pair) for pair in self._open.suspects]
        if more_of is not None:
            together = more_of["samples"] + samples
            loss = (more_of["samples"] * more_of["loss"] + samples * loss) / together
            figures = {"samples": together, "weight": more_of["weight"] + weight, "loss": loss}
            entry = self._entry(more_of["kind"], lsn, record, started, **figures, aside=left)
            return {**entry, "revisits": more_of["revisits"], "added": True}
        kind = "boundary" if self._open.damping is None else "revisit"
        if kind == "revisit":  # what an earlier feeding left aside is still there
            left = [*aside(self.standing.tasks[record.task]), *left]
        return self._entry(kind, lsn, record, started, samples=samples, weight=weight, loss=loss, aside=left)

    # -- drift -------------------------------------------------------------------------------------------------------

    def _is_taken(self, name: str) -> bool:
        """Whether a task of this name has ever been."""
        return name in self.standing.tasks or name in self.standing.forgotten or name in self.standing.held

    def _has_name_left(self) -> bool:
        """Whether as many tasks as are kept are not yet known: with the next one's number, names stay short enough."""
        return len(self.standing.closed()) + 1 < self.config.stream.tasks

    def _by_name(self, record: R) -> R:
        """The record about the open task's own name, where producers call it otherwise."""
        return record if self.open_task is None else msgspec.structs.replace(record, task=self.open_task.name)

    def _close_drifted(self, lsn: int, rise: Rise, log: LogReader) -> Steps:
        """The boundary that the change of the stream is, behind the batch that showed it: a function of the log alone."""
        task = self._open
        boundary = Boundary(producer=None, epoch=0, seq=0, task=task.name, origin="drift")
        outcome = yield from self._close(lsn, boundary, None, log)
        if outcome is not None and outcome.entry["kind"] in ("boundary", "held"):
            outcome.entry.update(origin="drift", reason=str(rise))
            self.standing.take(outcome.entry, self._earlier)
            self.drifted = {"tag": task.tag, **{name: outcome.entry.get(name) for name in CONFIRMED}}
        return outcome

    def _confirm(self, lsn: int, record: Boundary, drifted: Mapping[str, Any]) -> Outcome:
        """A boundary of a stream whose last task drift has closed, no row having come since: it is the answer to both."""
        self.drifted = self.warning = None
        asked, held = {"producer": record.producer, "seq": record.seq}, self.standing.held.get(drifted["task"])
        if held is not None:
            return self._settle({**held, **asked, "lsn": lsn, "origin": "stream"})
        if record.weight is not None:
            self.warning = (
                f"task {drifted['task']!r}: drift had closed it before its boundary came, with the weight "
                f"{drifted['weight']:g}; the boundary's own, {record.weight:g}, is not used"
            )
        figures = {name: drifted[name] for name in CONFIRMED}
        return self._settle({**figures, **asked, "kind": "confirm", "origin": "drift", "lsn": lsn})

    def _close_empty(self, lsn: int, record: Batch | Boundary) -> Outcome:
        self.consolidations += 1
        return self._settle(self._entry("boundary", lsn, record, time.monotonic(), samples=0, weight=0.0, loss=0.0))

    def _entry(self, kind: str, lsn: int, record: Record, started: float, **figures: Any) -> dict[str, Any]:
        """What the ledger keeps of a record: who sent it and when it took effect, for a task with its figures."""
        known = self.standing.tasks
        revisits = known[record.task]["revisits"] + 1 if kind == "revisit" else 0
        return {
            "task": record.task,
            "kind": kind,
            "producer": record.producer,
            "seq": record.seq,
            "lsn": lsn,
            "seconds": time.monotonic() - started,
            "closed_at": time.time(),
            **({"revisits": revisits, "factor": None, **figures} if figures else {}),
        }

    def _fit(self, task: OpenTask, data: TaskData, lsn: int) -> Iterator[Event]:
        failures = self._failures(lsn, "boundary-diverged")
        if failures or task.stalled:
            self._return_to_anchor()
            self._calm_down(task, CALMER**failures)
        before = self._optimisation.steps
        result = None
        for event in self._optimisation.fit(data, self._seed(lsn)):
            self.steps += event is None
            result = event or result
            epoch, epochs = (result.epoch, result.epochs) if result else (0, self.config.train.epochs)
            steps = self._optimisation.steps - before
            done = min(1.0, steps / (epochs * self._optimisation.steps_an_epoch(data)))
            yield Progress(task.name, "epochs", done, epoch, epochs, steps, event)

    def _calm_down(self, task: OpenTask, factor: float) -> None:
        """Begin again, with a smaller rate, and say so."""
        rate = factor * self.config.train.learning_rate
        if factor < 1:
            self.warning = f"training diverged; the task is learned at rate {rate:g}: lower train.learning_rate"
        train = msgspec.structs.replace(self.config.train, learning_rate=rate)
        self.optimisation = Optimisation(self._network, task.penalty, train)

    def _fisher(self, task: str, data: TaskData, seed: int) -> Generator[Event, None, tuple[Precision, float]]:
        """The Fisher at the optimum, in float64 on the host, and the mean NLL there: one forward pass serves both.

        Where a few rows show that the fast ways cannot be trusted with this task, all of it is taken by the loop.
        """
        fisher = self._diagonal_fisher(seed, by_loop=False)
        try:
            loss = yield from self._fisher_pass(task, data, fisher)
            wrong = None if fisher.verified() else "some rows have another Fisher by themselves"
        except Undecided as error:
            wrong = str(error)
        self.fisher_note = fisher.slow
        if wrong is not None:
            fisher = self._diagonal_fisher(seed, by_loop=True)
            loss = yield from self._fisher_pass(task, data, fisher)
            self.fisher_note = (
                f"the Fisher was found wrong ({wrong}) and taken again row by row, in {fisher.loop_seconds:.2g} s"
            )
        return fisher.precision(), loss

    def _diagonal_fisher(self, seed: int, by_loop: bool) -> DiagonalFisher:
        network = self._network
        generator = torch.Generator(device=self.device).manual_seed(seed)
        kind = self.config.posterior.fisher
        return DiagonalFisher(
            network.module,
            network.parameters,
            network.likelihood,
            kind,
            generator,
            by_loop=by_loop,
            seed=seed,
            reduction=network.reduction,
        )

    def _fisher_pass(self, task: str, data: TaskData, fisher: DiagonalFisher) -> Generator[Event, None, float]:
        """Add every row of a task; returns their mean NLL."""
        network = self._network
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        epochs, rows = self.config.train.epochs, 0
        for x, y in data.chunks(FISHER_ROWS):
            total += network.likelihood.nll(fisher.add(x, y), y).sum()
            rows += len(x)
            yield Progress(task, "fisher", rows / data.samples, epochs, epochs, 0)
        return float(network.reduction.sum(total)) / data.samples

    def _absorb(self, task: OpenTask, curvature: Precision, more_of: dict[str, Any] | None) -> Gaussian | None:
        """The new posterior; nothing is kept of it unless it is finite."""
        theta = self._network.master()
        self._check_finite(float(theta.sum()), task.name)
        self._check_finite(curvature.curvature().total, task.name)
        if more_of is not None:
            return self._posterior.extend(task.name, curvature, theta)
        return self._posterior.absorb(task.penalty, curvature, theta, task.revisited, task.damping or 1.0)

    def _task_data(self, task: OpenTask, log: LogReader) -> TaskData:
        def blocks(window: Any) -> Iterator[Block]:
            for index in window:
                entry = next(iter(log.read(task.lsns[index], task.lsns[index] + 1, verify=False)))
                yield entry.arrays["x"], entry.arrays["y"]

        row = math.prod(self._network.signature.x_shape) * self._network.dtype.itemsize
        return TaskData(blocks, task.sizes, row, self._network.conversion)

    def _seed(self, lsn: int) -> int:
        """The seed of everything random about one record."""
        return int(np.random.SeedSequence([self.config.train.seed, lsn]).generate_state(1)[0])

    def _seed_torch(self, lsn: int) -> None:
        """Seed what dropout draws from. `torch.manual_seed` does the same, but formats a stack trace at every call."""
        if self._network.steady:
            return
        seed = self._seed(lsn)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _check_gained(self, loss: float, data: TaskData) -> None:
        """Raise Diverged where training has made the task much worse than it was at the anchor, though all is finite.

        By more than a nat a sample and more than twofold: no rate that suits does that. Costs a pass over the task, but for
        losses that are too small to tell of it.
        """
        if self.config.model.likelihood != "gaussian" and loss <= WORSE_NATS:
            return
        before = self._at_anchor(lambda: mean_nll(self._network, data))
        if loss - before > max(WORSE_NATS, abs(before)):
            raise Diverged(
                f"training took the loss from {before:.4g} to {loss:.4g} nats a sample; lower train.learning_rate (now "
                f"{self.config.train.learning_rate:g}) or scale the data"
            )

    def _check_finite(self, value: float, task: str) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value}; if this goes on, lower train.learning_rate (now "
                f"{self.config.train.learning_rate:g}) or posterior.scale (now {self.config.posterior.scale:g})"
            )

    # -- what a checkpoint holds ---------------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """All that the next record needs, as plain numbers and host arrays; of constant size."""
        meta = {
            "fingerprint": fingerprint(self.config),
            "next_lsn": self.next_lsn,
            "steps": self.steps,
            "samples": self.samples,
            "batches": self.batches,
            "consolidations": self.consolidations,
            "train_loss": self.train_loss,
            "labels": [[label, output] for label, output in self.labels.outputs.items()],
            "sequences": {name: list(pair) for name, pair in self.sequences.items()},
            "open_task": None
            if self.open_task is None
            else {
                "name": self.open_task.name,
                "first_lsn": self.open_task.first_lsn,
                "damping": self.open_task.damping,
                "tag": self.open_task.tag,
                "stalled": self.open_task.stalled,
                "suspects": [list(pair) for pair in self.open_task.suspects],
            },
            "prequential": self.prequential.state(),
            "drift": None if self.drift is None else self.drift.state(),
            "drifted": self.drifted,
            "signature": self.snapshot_signature(),
            "steady": self.network is not None and self.network.steady,
            "layout": None if self.network is None else self.network.parameters.layout.plain(),
        }
        return meta, self._tensors()

    def snapshot_signature(self) -> dict[str, Any] | None:
        """The signature as plain containers, None before the first batch."""
        return None if self.signature is None else self.signature.plain()

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        if self.network is None:
            return {}
        posterior = {f"{POSTERIOR}{name}": array for name, array in self._posterior.total.state().items()}
        optimiser = {} if self.optimisation is None else self.optimisation.state()
        before = {} if self.open_task is None else {f"before.{name}": a for name, a in self.open_task.before.items()}
        return {**self.network.state(), **posterior, **optimiser, **before}

    def served(self) -> Mapping[str, npt.NDArray[Any]]:
        """What predictions are made with: during a revisit, the parameters from before it."""
        before = {} if self.open_task is None else self.open_task.before
        return before or self._network.state()

    def restore(
        self,
        meta: Mapping[str, Any],
        tensors: Mapping[str, npt.NDArray[Any]],
        log: LogReader,
        standing: Standing,
    ) -> None:
        """Take over what `snapshot` gave, and what the ledger says holds.

        Raises ConfigError where the configuration is another model's; unless nothing was consolidated yet: then every row
        is still there, and a mended model begins anew.
        """
        if standing.tasks:
            check_fingerprint(meta["fingerprint"], self.config)
        self.standing = standing
        for name in ("next_lsn", "steps", "samples", "batches", "consolidations", "train_loss"):
            setattr(self, name, meta[name])
        self._restore_labels(meta["labels"])
        self.sequences = {name: (epoch, seq) for name, (epoch, seq) in meta["sequences"].items()}
        alike = meta["fingerprint"] == fingerprint(self.config)
        if alike:
            self.prequential.restore(meta["prequential"])
        if self.drift is not None and meta.get("drift") is not None and alike:
            self.drift.restore(meta["drift"])
        self.drifted = meta.get("drifted")
        if meta["signature"] is not None:
            self._build(Signature.from_plain(meta["signature"]))
            fits = self._restore_model(meta, tensors, alike)
            if not fits:
                self._try_anew(meta["open_task"], log)
            if meta["open_task"] is not None:
                self._restore_open_task(meta["open_task"], tensors if fits else {}, log)

    def _try_anew(self, open_task: Mapping[str, Any] | None, log: LogReader) -> None:
        """A mended model is tried like a new one, on rows that are still there; raises ModelRefused."""
        opened = [] if open_task is None else [(open_task["first_lsn"], self.next_lsn)]
        entries = (entry for first, end in [*self.standing.kept(), *opened] for entry in log.read(first, end))
        batch = next((entry for entry in entries if isinstance(entry.record, Batch)), None)
        if batch is not None:
            x, y = chosen(batch.arrays["x"], batch.arrays["y"])
            Trial(self.config, self._network.signature, self.device, x, y, tuple(self.labels.outputs)).run()
            self._network.settle(self._network.conversion.x(x))

    def _restore_labels(self, labels: list[list[int]]) -> None:
        classes = self.config.model.classes
        if any(output >= classes for _, output in labels):
            raise ConfigError(f"model.classes: expected at least {len(labels)}, which labels came already; got {classes}")
        self.labels.outputs = dict(labels)  # type: ignore[arg-type]

    def _restore_model(self, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], alike: bool) -> bool:
        """Take over the parameters; False for those of another model, of which nothing was consolidated."""
        misfit = self._network.misfit(meta.get("layout"))
        if not self.standing.tasks and not (alike and misfit is None and self._network.takes(tensors)):
            return False
        if misfit is not None:
            raise ConfigError(
                f"model: the configured model is not what the state directory was made with: that has {misfit}; use the "
                "configuration and the version of the factory that it was made with, or a new state_dir"
            )
        self._network.load(tensors)
        if "steady" in meta:
            self._network.steady = meta["steady"]
        else:
            self._network.settle_on_zeros()
        self._posterior.total = from_arrays(under(POSTERIOR, tensors))
        return True

    def _restore_open_task(self, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], log: LogReader) -> None:
        """The open task as it was; with no tensors, of a mended model: its rows are learned at the boundary."""
        before = {name: array.copy() for name, array in under("before.", tensors).items()}
        penalty = self._posterior.cavity(None if meta["damping"] is None else meta["name"])
        task = OpenTask(meta["name"], meta["first_lsn"], penalty, meta["damping"], before, tag=meta.get("tag"))
        task.stalled = meta.get("stalled", False) and bool(tensors)
        suspects = {lsn for lsn, _ in meta.get("suspects", ())}
        for entry in log.read(task.first_lsn, self.next_lsn, verify=False):
            if not isinstance(entry.record, Batch):
                continue
            if entry.lsn in suspects or ("suspects" not in meta and self._failures(entry.lsn, "batch")):
                task.suspects.append((entry.lsn, entry.record.samples))
            else:
                task.add(entry.lsn, entry.record.samples)
        self.open_task = task
        self.optimisation = Optimisation(self._network, penalty, self.config.train)
        if tensors:
            self.optimisation.load(tensors)

    # -- what must exist by now ----------------------------------------------------------------------------------

    @property
    def _network(self) -> Network:
        return _existing(self.network)

    @property
    def _posterior(self) -> Posterior:
        return _existing(self.posterior)

    @property
    def _optimisation(self) -> Optimisation:
        return _existing(self.optimisation)

    @property
    def _open(self) -> OpenTask:
        return _existing(self.open_task)


@contextmanager
def _blaming(stage: str, task: str) -> Iterator[None]:
    """What the model or its data do wrong is the record's fault; a full disk or no memory on the host is not.

    Damage found at a boundary is of rows: the task is held, and the daemon goes on.
    """
    try:
        yield
    except Damaged as error:
        if stage != "boundary":
            raise
        raise Unlearnable(stage, str(error)) from error
    except WrongOutput as error:
        raise Unlearnable(stage, f"task {task!r}: {error}"[:2000]) from error
    except (StreamclError, MemoryError):
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # none of which may end the trainer again and again
        if isinstance(error, OSError) and not _raised_by_a_module(error):
            raise
        stage = DIVERGED[stage] if isinstance(error, Diverged) else stage
        raise Unlearnable(stage, f"task {task!r}: {in_words(error)}"[:2000]) from error


def _raised_by_a_module(error: BaseException) -> bool:
    """Whether an error came out of a call of an nn.Module, and not out of reading the log or a factor."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "_call_impl" for frame, _ in frames)


def _closing(record: Retry, entry: Mapping[str, Any]) -> Boundary:
    """A retry stands for the boundary that was not learned whole: whoever sent that is told of it."""
    producer, seq = entry["producer"], entry["seq"]
    return Boundary(producer=producer, epoch=0, seq=seq, task=record.task, weight=None, origin="admin")


def _existing(value: T | None) -> T:
    if value is None:
        raise RuntimeError("a boundary or step came before the first batch: the log is not one the daemon wrote")
    return value
