"""The learner: batches are scored and learned from, boundaries consolidated, tasks revisited, withdrawn, undone.

Guarantees: after the same calls with the same marks, the same parameters to the bit (on the CPU); every random number is
drawn from (seed, position). A snapshot holds all that the next call needs. Writes no files, knows no log, no protocol and
no storage: rows of the open task are read again from a `Store`, factors and earlier states from where they are kept.

Every call is a generator that yields after each step, so that its caller can look up, and returns an `Outcome` where it
changed a task's standing. What cannot be learned (the model raises, the loss leaves the finite numbers) raises
`Unlearnable`; called again with the same mark, knowing from `wary` how it failed, the learner
  * passes over a batch, which is tried once more at its task's boundary and, failing there too, set aside;
  * after a divergence that was the steps' fault, not the batch's, leaves the rest of the task to its boundary;
  * at a boundary that diverged, starts again from the anchor with a smaller rate;
  * at a boundary that failed otherwise, or too often, holds the task: its rows stay, nothing else has changed.
What was set aside or held is learned by `retry`, given up by `drop`, and never otherwise.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from msgspec.structs import replace
from torch import nn

from streamcl.binding import check_fingerprint, fingerprint
from streamcl.config import Config
from streamcl.core.consolidation import task_precision
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Precision
from streamcl.entries import (
    Abandoned,
    Closing,
    Confirmed,
    Consolidated,
    Dropped,
    Entry,
    Forgotten,
    Held,
    Mark,
    NothingKept,
    Revisited,
    RollbackFailed,
    RolledBack,
    Standing,
    StillAside,
)
from streamcl.errors import ConfigError, Damaged
from streamcl.learning.data import Array, Block, Rows, Store, TaskData
from streamcl.learning.drift import Drift, Rise, errors
from streamcl.learning.evaluation import Prequential
from streamcl.learning.failing import blaming
from streamcl.learning.fitting import Event, Fitting
from streamcl.learning.network import Network, choose_device
from streamcl.learning.posterior import FactorSource, Posterior, from_arrays
from streamcl.learning.tasks import OpenTask
from streamcl.learning.trial import Trial
from streamcl.naming import stream_name
from streamcl.schema import LabelMap, Signature, chosen
from streamcl.snapshot import POSTERIOR, Drifted, LearnerState, OpenTaskState, under

CALMER = 0.1  # the learning rate's factor at each new attempt at a boundary that diverged
ATTEMPTS = 4  # at a boundary that diverges; then the task is held
MOST_WARNING = 1000  # characters of one that are kept


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call changed for good: an entry that says so, and the factor to keep beside it in factor mode."""

    entry: Entry
    factor: Gaussian | None = None


class Past(Protocol):
    """What was learned earlier, where it is kept."""

    def standing(self, entries: int) -> Standing:
        """What held after so many of the ledger's entries."""

    def version(self, number: int) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays of a checkpoint that counts so many entries; raises Damaged, FileNotFoundError."""


T = TypeVar("T")
Steps = Generator[Event, None, Outcome | None]


class Learner:
    """Holds the network, its posterior and everything counted.

    What holds it together: one task is open at a time, and every call either works on it or decides what holds of tasks
    (`standing`); network, posterior, fitting and open task change together or not at all. wary: how often each position has
    failed at each stage. next_lsn: of the next call. warning: of the last boundary, for the operator. factory: of the
    model, instead of the configured one.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        factors: FactorSource | None = None,
        past: Past | None = None,
        factory: Callable[..., nn.Module] | None = None,
    ) -> None:
        self.config = config
        self.store, self.factors, self.past = store, factors, past
        self.factory = factory
        self.standing = Standing()
        self.device = choose_device(config.train.device)
        self.labels = LabelMap(config.model.classes)
        self.signature: Signature | None = None
        self.network: Network | None = None
        self.posterior: Posterior | None = None
        self.fitting: Fitting | None = None
        self.open_task: OpenTask | None = None
        self.prequential = Prequential(config.model.likelihood)
        self.drift = _watch(config)
        self.drifted: Drifted | None = None
        self.next_lsn = self.samples = self.batches = self.consolidations = 0
        self.warning: str | None = None
        self.wary: Mapping[int, Mapping[str, int]] = {}
        self.train_loss = math.nan
        self._unsound: BaseException | None = None
        self._steps = 0  # of networks before this one

    @property
    def steps(self) -> int:
        """Optimiser steps so far."""
        return self._steps if self.fitting is None else self.fitting.steps

    @property
    def needed(self) -> int:
        """The oldest position whose rows are still needed, but for those that are kept: the first of the open task."""
        return self.next_lsn if self.open_task is None else self.open_task.first_lsn

    # -- the model -----------------------------------------------------------------------------------------------

    def try_model(
        self, signature: Signature, x: Array, y: Array, new_labels: tuple[int, ...], look_up: Callable[[], None]
    ) -> None:
        """Try the model on rows of a first batch and throw it away; raises ModelRefused, ConfigError.

        look_up: called now and then, so that the caller can show signs of life meanwhile.
        """
        Trial(self.config, signature, self.device, x, y, new_labels, look_up, self.factory).run()

    def _build(self, signature: Signature) -> None:
        steady = self.network is not None and self.network.steady  # where the same model is begun anew
        self.signature = signature
        self.network = self._built(signature)
        self.network.steady = steady
        self.fitting = Fitting(self.config, self.network, self.steps)
        prior = self._prior(self.network)
        self.posterior = Posterior(self.config.posterior, prior, self.factors, prior, self.standing.tasks)

    def _built(self, signature: Signature) -> Network:
        return Network(self.config, signature, self.labels, self.device, factory=self.factory)

    def _prior(self, network: Network) -> Gaussian:
        settings = self.config.posterior
        theta = network.master()
        centre = theta if settings.prior_mean == "init" else torch.zeros(1, dtype=theta.dtype).expand_as(theta)
        return Gaussian.prior(centre, settings.prior_precision, settings.curvature)

    # -- rows ----------------------------------------------------------------------------------------------------

    def observe(self, mark: Mark, rows: Rows, boundary: bool = False) -> Steps:
        """Score a batch and learn from it; opens its task. boundary: its task ends here.

        Raises Unlearnable, Damaged.
        """
        outcome = None
        with blaming("batch", rows.task):
            yield from self._learn(mark.lsn, rows)
        if boundary:
            outcome = yield from self._close(mark, self._name(rows.task), None)
        elif (rise := self._risen(rows)) is not None and self._has_name_left():
            outcome = yield from self._close_drifted(mark, rise)
        return self._come_past(mark, outcome)

    def pass_over(self, mark: Mark) -> None:
        """There is nothing to learn here: a repair found the record damaged."""
        self._come_past(mark)

    def _come_past(self, mark: Mark, outcome: Outcome | None = None) -> Outcome | None:
        self.next_lsn = mark.lsn + 1
        return outcome

    def _learn(self, lsn: int, rows: Rows) -> Iterator[None]:
        """One pass of steps over a batch; every row is scored before a step learns from it."""
        if self.network is None:
            self._build(Signature.of(rows.x, rows.y))
            self._network.settle(self._network.conversion.x(chosen(rows.x, rows.y)[0]))
        network = self._network
        self.labels.take(rows.new_labels, rows.outputs)
        task = self._opened(lsn, rows)
        self.batches += 1
        x, y = network.conversion.x(rows.x), network.conversion.y(rows.y)
        if self._is_passed_over(lsn, task, x, y):
            task.suspects.append((lsn, len(rows.x)))
            return
        task.add(lsn, len(rows.x))
        self.samples += len(rows.x)
        if not task.stalled:
            yield from self._step_on(lsn, task, x, y)

    def _step_on(self, lsn: int, task: OpenTask, x: torch.Tensor, y: torch.Tensor) -> Iterator[None]:
        fitting, scored = self._fitting, self._fitting.scores_as_it_steps
        if not scored:
            nll, output = fitting.nll(x, y)
            self._score(nll, output, y)
        if fitting.takes_steps:
            nll, output = yield from fitting.take(x, y, task.samples, lsn)
            self.train_loss = self._score(nll, output, y) if scored else float(nll.double().mean())
            fitting.check_finite(self.train_loss)

    def _is_passed_over(self, lsn: int, task: OpenTask, x: torch.Tensor, y: torch.Tensor) -> bool:
        """Whether a batch that has failed is left to the boundary; where the steps were at fault, the whole task is."""
        diverged = self._failures(lsn, "batch-diverged") > 0
        if diverged and self._fitting.at(self._anchor(), lambda: self._fitting.is_finite(x, y)):
            self._return_to_anchor()  # what the steps did is undone, and the boundary learns the task
            task.stalled = True
            return False
        return diverged or self._failures(lsn, "batch") > 0

    def _score(self, nll: torch.Tensor, output: torch.Tensor, y: torch.Tensor) -> float:
        """Score what rows had before they were learned from; returns their mean NLL."""
        output = self._network.shaped(output)
        if self.drift is not None and self._open.revisited is None:
            self.drift.add(errors(self.config.model.likelihood, output, y))
        return self.prequential.score(nll, output, y, self._network.reduction)

    def _opened(self, lsn: int, rows: Rows) -> OpenTask:
        if self.open_task is None:
            name = stream_name(rows.task, self._is_taken) if rows.of_stream else rows.task
            self._open_task(OpenTask(name, lsn, self._posterior.cavity(None), tag=rows.tag))
        return self._open

    def _open_task(self, task: OpenTask) -> None:
        self.open_task, self.drifted = task, None
        self._fitting.begin(task.penalty)
        self.prequential.open_task()
        if self.drift is not None:
            self.drift.open_task()

    # -- tasks fed again, withdrawn, undone ------------------------------------------------------------------------

    def revisit(self, mark: Mark, task: str, damping: float | None = None) -> None:
        """A consolidated task is to be fed again: learned as if new, with the others as the penalty.

        damping: of its new factor, by default the configured one.
        """
        damping = self.config.posterior.damping if damping is None else damping
        penalty = self._posterior.cavity(task)
        self._open_task(OpenTask(task, mark.lsn, penalty, damping, self._copied()))
        self._come_past(mark)

    def abandon(self, mark: Mark, task: str) -> Outcome | None:
        """As if the revisit had never been: the task's factor stands, and the parameters are those from before."""
        return self._come_past(mark, self._abandon(mark, task))

    def _abandon(self, mark: Mark, task: str) -> Outcome:
        started = time.monotonic()
        self._network.load(self._open.before)
        self._close_up()
        return Outcome(Abandoned(**_about(mark, task, started)))

    def forget(self, mark: Mark, task: str) -> Outcome | None:
        """Withdraw a task: the totals without its factor. The parameters keep what they learned until trained again."""
        started = time.monotonic()
        self._posterior.forget(task)
        self.consolidations += 1
        if self.open_task is not None:
            self.open_task.penalty = self._posterior.cavity(self.open_task.revisited)
            _existing(self._fitting.optimisation).set_penalty(self.open_task.penalty)
        return self._come_past(mark, self._settle(Forgotten(**_about(mark, task, started))))

    def drop(self, mark: Mark, task: str) -> Outcome | None:
        """What is kept of a task is given up."""
        return self._come_past(mark, self._settle(Dropped(**_about(mark, task, time.monotonic()))))

    def roll_back(self, mark: Mark, task: str, to: int, undone: tuple[str, ...]) -> Outcome | None:
        """Everything learned since version `to` is undone, the tasks `undone` with it; an open task goes on from there."""
        return self._come_past(mark, self._roll_back(mark, task, to, undone))

    def _roll_back(self, mark: Mark, task: str, to: int, undone: tuple[str, ...]) -> Outcome:
        started = time.monotonic()
        if to == 0:
            self._build(self._network.signature)
        else:
            try:
                arrays = _existing(self.past).version(to)
            except (Damaged, OSError) as error:
                about = _about(mark, task, started)
                return Outcome(RollbackFailed(**about, to=to, undone=undone, reason=str(error)))
            self._network.load(arrays)
            self._posterior.total = from_arrays(under(POSTERIOR, arrays))
        outcome = self._settle(RolledBack(**_about(mark, task, started), to=to, undone=undone))
        self.consolidations += 1
        self._fitting.steps += 1  # the parameters have changed, and readers recognise that by it
        if self.open_task is not None:
            self.open_task.penalty = self._posterior.cavity(None)
            self._fitting.begin(self.open_task.penalty)
        return outcome

    # -- what fails ----------------------------------------------------------------------------------------------

    def _failures(self, lsn: int, stage: str) -> int:
        """How often this position has failed at this stage."""
        return self.wary.get(lsn, {}).get(stage, 0)

    def _fails_for_good(self, lsn: int) -> bool:
        """Whether a boundary is not to be tried again: a model that raised would raise again."""
        return self._failures(lsn, "boundary") > 0 or self._failures(lsn, "boundary-diverged") >= ATTEMPTS

    def _anchor(self) -> torch.Tensor:
        """Parameters [P] at which no step of the open task has done harm yet: from before a revisit, the posterior's
        mean, or, with nothing consolidated, those that the factory makes."""
        if self.open_task is not None and self.open_task.before:
            return torch.from_numpy(np.array(self.open_task.before["theta"]))
        if self.standing.tasks:
            return self._posterior.total.mean
        return torch.from_numpy(self._built(self._network.signature).theta())

    def _return_to_anchor(self) -> None:
        self._fitting.move_to(self._anchor())

    def _is_sound(self, lsn: int) -> bool:
        """Whether a batch that has failed can be learned here; if not, why is noted."""
        try:
            self._fitting.check_sound(*self.store.read(lsn))
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever a model may raise
            self._unsound = error
            return False
        return True

    def _readmit(self, task: OpenTask) -> None:
        """Take in what was passed over and is sound now; raises what the last of it was found unsound for if none is."""
        task.admit(self._is_sound)
        if task.samples == 0:
            raise self._unsound or ValueError("none of its rows can be learned")

    def _hold(self, entry: Held) -> Outcome:
        """A boundary at which nothing can be learned: its rows stay, everything else is as before the task."""
        if self._open.before:
            self._network.load(self._open.before)
        else:
            self._return_to_anchor()
        return self._settle(entry)

    def _held(self, mark: Mark, task: str, weight: float | None, started: float) -> Held:
        opened = self._open
        rows = opened.samples + sum(rows for _, rows in opened.suspects)
        return Held(
            **_about(mark, task, started),
            samples=rows,
            first_lsn=opened.first_lsn,
            end_lsn=mark.lsn + 1,
            weight=weight,
            damping=opened.damping,
        )

    def _settle(self, entry: Entry, factor: Gaussian | None = None) -> Outcome:
        """What a call changed for good takes effect: a boundary, held or not, leaves no task open."""
        if isinstance(entry, Closing):
            self._close_up()
        self.standing.take(entry, self._earlier)
        if self.posterior is not None:
            self.posterior.tasks = self.standing.tasks
        return Outcome(entry, factor)

    def _close_up(self) -> None:
        self.open_task = None
        if self.fitting is not None:
            self.fitting.end()

    def _earlier(self, entries: int) -> Standing:
        return Standing() if entries == 0 else _existing(self.past).standing(entries)

    def retry(self, mark: Mark, task: str) -> Steps:
        """What is kept of a task is learned: a held one as at its boundary, or the batches that were set aside.

        Raises Unlearnable, Damaged.
        """
        held, known = self.standing.held.get(task), self.standing.tasks.get(task)
        if held is not None:
            outcome = yield from self._retry_held(mark, held)
        elif known is not None and known.aside:
            outcome = yield from self._retry_aside(mark, known)
        else:
            outcome = Outcome(NothingKept(**_about(mark, task, time.monotonic())))
        return self._come_past(mark, outcome)

    def _retry_held(self, mark: Mark, held: Held) -> Steps:
        started, revisited = time.monotonic(), held.task if held.damping is not None else None
        opened = OpenTask(held.task, held.first_lsn, self._posterior.cavity(revisited), held.damping, self._copied())
        self._reopen(opened)
        if self._fails_for_good(mark.lsn):
            return self._hold(replace(held, lsn=mark.lsn, closed_at=time.time(), seconds=time.monotonic() - started))
        with blaming("boundary", held.task):
            opened.suspects += self.store.batches(held.first_lsn, held.end_lsn)
            self._readmit(opened)
            return (yield from self._consolidate(_asked_by(mark, held), held.task, held.weight))

    def _retry_aside(self, mark: Mark, known: Consolidated) -> Steps:
        """Batches that were set aside, learned under the whole posterior, their own task's part of it included."""
        opened = OpenTask(known.task, mark.lsn, self._posterior.total, None, self._copied())
        self._reopen(opened)
        opened.suspects = list(known.aside)
        if self._fails_for_good(mark.lsn):
            self._network.load(opened.before)
            self._close_up()
            return self._settle(StillAside(**_about(mark, known.task, time.monotonic()), samples=known.rows_aside))
        with blaming("boundary", known.task):
            self._readmit(opened)
            return (yield from self._consolidate(_asked_by(mark, known), known.task, None, known))

    def _reopen(self, task: OpenTask) -> None:
        """A task whose rows are kept; none of the stream, so that scores and drift have nothing to do with it."""
        self.open_task = task
        self._fitting.begin(task.penalty)

    def _copied(self) -> dict[str, npt.NDArray[Any]]:
        return {name: array.copy() for name, array in self._network.state().items()}

    # -- boundaries ----------------------------------------------------------------------------------------------

    def close(self, mark: Mark, task: str, weight: float | None = None) -> Steps:
        """The boundary of the open task, which producers call `task`: the configured epochs, then it enters the posterior.

        weight: lambda_t, by default the configured scale times N_t. Raises Unlearnable, Damaged.
        """
        if self.open_task is None and self.drifted is not None:
            return self._come_past(mark, self._confirm(mark, weight, self.drifted))
        outcome = yield from self._close(mark, self._name(task), weight)
        return self._come_past(mark, outcome)

    def _name(self, task: str) -> str:
        """The open task's own name, where producers call it otherwise."""
        return task if self.open_task is None else self.open_task.name

    def _close(self, mark: Mark, task: str, weight: float | None) -> Steps:
        """A boundary; if nothing of the task can be learned, it is held."""
        started = time.monotonic()
        if self._open.is_empty:  # a repair has found none of its records
            return self._abandon(mark, task) if self._open.revisited else self._close_empty(mark, task)
        if self._fails_for_good(mark.lsn):
            return self._hold(self._held(mark, task, weight, started))
        with blaming("boundary", task):
            self._open.admit(lambda lsn: self._fitting.at(self._anchor(), lambda: self._is_sound(lsn)))
            if self._open.samples == 0:
                return self._hold(self._held(mark, task, weight, started))
            return (yield from self._consolidate(mark, task, weight))

    def _consolidate(self, mark: Mark, task: str, weight: float | None, more_of: Consolidated | None = None) -> Steps:
        """The boundary of a task: the configured epochs, then the optimum found enters the posterior.

        more_of: the entry of the consolidated task to which these rows are added, None where they are a task by themselves.
        """
        started, fitting, data = time.monotonic(), self._fitting, self._task_data(self._open)
        fitting.seed_torch(mark.lsn)
        fitting.look_at_rate(data.samples)
        yield from self._fit(mark.lsn, data)
        weight = self.config.posterior.effective_scale * data.samples if weight is None else weight
        fisher, loss = yield from fitting.fisher(self._open.name, data, fitting.seed(mark.lsn))
        self.warning = fitting.warning
        fitting.check_finite(loss)
        fitting.check_gained(loss, data, self._anchor)
        factor = self._absorb(task_precision(fisher, data.samples, weight), more_of)
        self.train_loss = loss
        figures = {"samples": data.samples, "weight": weight, "loss": loss}
        entry = self._consolidated(_about(mark, task, started), figures, more_of)
        if factor is not None:
            entry = replace(entry, factor=mark.lsn, potential=factor.potential(self._network.master()))
        self.consolidations += 1
        return self._settle(entry, factor)

    def _fit(self, lsn: int, data: TaskData) -> Iterator[Event]:
        """The epochs; of a task that has diverged, from the anchor and with a smaller rate."""
        task, failures = self._open, self._failures(lsn, "boundary-diverged")
        if failures or task.stalled:
            self._return_to_anchor()
            self._fitting.begin(task.penalty, CALMER**failures)
        self.warning = self._fitting.warning
        yield from self._fitting.fit(task.name, data, lsn)

    def _consolidated(self, about: dict[str, Any], figures: dict[str, Any], more_of: Consolidated | None) -> Consolidated:
        """A consolidated task's entry; of rows that were added to one, with the sums and the mean loss of all its rows."""
        task, left = self._open, tuple(self._open.suspects)
        about["warning"] = self.warning and self.warning[:MOST_WARNING]
        if more_of is not None:
            together = _together(more_of, **figures)
            return type(more_of)(**about, **together, aside=left, revisits=more_of.revisits, added=True)
        if task.revisited is None:
            return Consolidated(**about, **figures, aside=left)
        known = self.standing.tasks[task.name]  # what an earlier feeding left aside is still there
        return Revisited(**about, **figures, aside=(*known.aside, *left), revisits=known.revisits + 1)

    def _absorb(self, curvature: Precision, more_of: Consolidated | None) -> Gaussian | None:
        """The new posterior; nothing is kept of it unless it is finite."""
        task, theta = self._open, self._network.master()
        self._fitting.check_finite(float(theta.sum()))
        self._fitting.check_finite(curvature.curvature().total)
        if more_of is not None:
            return self._posterior.extend(task.name, curvature, theta)
        return self._posterior.absorb(task.penalty, curvature, theta, task.revisited, task.damping or 1.0)

    def _task_data(self, task: OpenTask) -> TaskData:
        def blocks(window: Any) -> Iterator[Block]:
            for index in window:
                yield self.store.read(task.lsns[index], verify=False)

        row = math.prod(self._network.signature.x_shape) * self._network.dtype.itemsize
        return TaskData(blocks, task.sizes, row, self._network.conversion)

    def _close_empty(self, mark: Mark, task: str) -> Outcome:
        self.consolidations += 1
        return self._settle(Consolidated(**_about(mark, task, time.monotonic())))

    # -- drift -------------------------------------------------------------------------------------------------------

    def _risen(self, rows: Rows) -> Rise | None:
        """The rise of the error that shows that the open task's stream has changed; never of a revisit.

        Rows that name no stream of tasks wait for a boundary of their own.
        """
        learned_anew = self.open_task is not None and self.open_task.revisited is None
        return self.drift.found if self.drift is not None and learned_anew and rows.of_stream else None

    def _is_taken(self, name: str) -> bool:
        """Whether a task of this name has ever been."""
        return name in self.standing.tasks or name in self.standing.forgotten or name in self.standing.held

    def _has_name_left(self) -> bool:
        """Whether fewer tasks are known than are kept, so that the next one's number keeps its name short enough."""
        return len(self.standing.closed()) + 1 < self.config.stream.tasks

    def _close_drifted(self, mark: Mark, rise: Rise) -> Steps:
        """The boundary that the change of the stream is, behind the batch that showed it: a function of the rows alone."""
        task = self._open
        outcome = yield from self._close(Mark(mark.lsn), task.name, None)
        if outcome is None or not isinstance(outcome.entry, Closing):
            return outcome
        entry = replace(outcome.entry, origin="drift", reason=str(rise))
        self.standing.take(entry, self._earlier)
        loss = entry.loss if isinstance(entry, Consolidated) else None
        self.drifted = Drifted(task.tag, entry.task, entry.samples, entry.weight, loss, entry.seconds, entry.closed_at)
        return Outcome(entry, outcome.factor)

    def _confirm(self, mark: Mark, weight: float | None, drifted: Drifted) -> Outcome:
        """A boundary of a stream whose last task drift has closed, no row having come since: one answer serves both."""
        self.drifted = self.warning = None
        held = self.standing.held.get(drifted.task)
        if held is not None:
            return self._settle(replace(held, producer=mark.producer, seq=mark.seq, lsn=mark.lsn, origin="stream"))
        if weight is not None:
            self.warning = (
                f"task {drifted.task!r}: drift had closed it before its boundary came, with the weight "
                f"{drifted.weight:g}; the boundary's own, {weight:g}, is not used"
            )
        return self._settle(
            Confirmed(
                task=drifted.task,
                lsn=mark.lsn,
                producer=mark.producer,
                seq=mark.seq,
                seconds=drifted.seconds or 0.0,
                closed_at=drifted.closed_at or 0.0,
                samples=drifted.samples or 0,
                weight=drifted.weight or 0.0,
                loss=drifted.loss or 0.0,
                origin="drift",
            )
        )

    # -- what a checkpoint holds ---------------------------------------------------------------------------------

    def snapshot(self) -> tuple[LearnerState, dict[str, npt.NDArray[Any]]]:
        """All that the next call needs, as plain numbers and host arrays; of constant size."""
        state = LearnerState(
            fingerprint=fingerprint(self.config),
            next_lsn=self.next_lsn,
            steps=self.steps,
            samples=self.samples,
            batches=self.batches,
            consolidations=self.consolidations,
            train_loss=self.train_loss,
            labels=list(self.labels.outputs.items()),
            open_task=None if self.open_task is None else self.open_task.state(),
            prequential=self.prequential.state(),
            drift=None if self.drift is None else self.drift.state(),
            drifted=self.drifted,
            signature=self.signature,
            steady=self.network is not None and self.network.steady,
            layout=None if self.network is None else self.network.parameters.layout.plain(),
        )
        return state, self._tensors()

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        if self.network is None:
            return {}
        posterior = {f"{POSTERIOR}{name}": array for name, array in self._posterior.total.state().items()}
        before = {} if self.open_task is None else {f"before.{name}": a for name, a in self.open_task.before.items()}
        return {**self.network.state(), **posterior, **self._fitting.state(), **before}

    def served(self) -> Mapping[str, npt.NDArray[Any]]:
        """What predictions are made with: during a revisit, the parameters from before it."""
        before = {} if self.open_task is None else self.open_task.before
        return before or self._network.state()

    def restore(self, state: LearnerState, tensors: Mapping[str, npt.NDArray[Any]], standing: Standing) -> None:
        """Take over what `snapshot` gave, and what the ledger says holds.

        Raises ConfigError if the configuration is another model's, unless nothing was consolidated yet: then every row
        is still there, and a corrected model starts afresh.
        """
        if standing.tasks:
            check_fingerprint(state.fingerprint, self.config)
        self.standing = standing
        self.next_lsn, self._steps, self.samples = state.next_lsn, state.steps, state.samples
        self.batches, self.consolidations, self.train_loss = state.batches, state.consolidations, state.train_loss
        self._restore_labels(state.labels)
        alike = state.fingerprint == fingerprint(self.config)
        if alike:
            self.prequential.restore(state.prequential)
        if self.drift is not None and state.drift is not None and alike:
            self.drift.restore(state.drift)
        self.drifted = state.drifted
        if state.signature is not None:
            self._restore_tasks(state, state.signature, tensors, alike)

    def _restore_tasks(
        self, state: LearnerState, signature: Signature, tensors: Mapping[str, npt.NDArray[Any]], alike: bool
    ) -> None:
        self._build(signature)
        fits = self._restore_model(state, tensors, alike)
        if not fits:
            self._try_anew(state)
        if state.open_task is not None:
            self._restore_open_task(state.open_task, tensors if fits else {})

    def _try_anew(self, state: LearnerState) -> None:
        """A corrected model is tried like a new one, on rows that are still there; raises ModelRefused."""
        opened = [] if state.open_task is None else [(state.needed, self.next_lsn)]
        kept = (lsn for first, end in [*self.standing.kept(), *opened] for lsn, _ in self.store.batches(first, end))
        lsn = next(kept, None)
        if lsn is not None:
            x, y = chosen(*self.store.read(lsn))
            self.try_model(self._network.signature, x, y, tuple(self.labels.outputs), lambda: None)
            self._network.settle(self._network.conversion.x(x))

    def _restore_labels(self, labels: list[tuple[int, int]]) -> None:
        classes = self.config.model.classes
        if any(output >= classes for _, output in labels):
            raise ConfigError(
                f"model.classes: expected at least {len(labels)}, for the labels that have already come; got {classes}"
            )
        self.labels.outputs = dict(labels)

    def _restore_model(self, state: LearnerState, tensors: Mapping[str, npt.NDArray[Any]], alike: bool) -> bool:
        """Take over the parameters; False for those of another model, of which nothing was consolidated."""
        misfit = self._network.misfit(state.layout)
        if not self.standing.tasks and not (alike and misfit is None and self._network.takes(tensors)):
            return False
        if misfit is not None:
            raise ConfigError(
                f"model: the configured model is not what the state directory was made with: that has {misfit}; use the "
                "configuration and the version of the factory that it was made with, or a new state_dir"
            )
        self._network.load(tensors)
        if state.steady is None:
            self._network.settle_on_zeros()
        else:
            self._network.steady = state.steady
        self._posterior.total = from_arrays(under(POSTERIOR, tensors))
        return True

    def _restore_open_task(self, state: OpenTaskState, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """The open task as it was; without tensors, for a corrected model: its rows are learned at the boundary."""
        before = {name: array.copy() for name, array in under("before.", tensors).items()}
        penalty = self._posterior.cavity(None if state.damping is None else state.name)
        task = OpenTask(state.name, state.first_lsn, penalty, state.damping, before, tag=state.tag)
        task.stalled = state.stalled and bool(tensors)
        suspects = {lsn for lsn, _ in state.suspects or ()}
        for lsn, rows in self.store.batches(task.first_lsn, self.next_lsn, verify=False):
            if lsn in suspects or (state.suspects is None and self._failures(lsn, "batch")):
                task.suspects.append((lsn, rows))
            else:
                task.add(lsn, rows)
        self._reopen(task)
        if tensors:
            _existing(self._fitting.optimisation).load(tensors)

    # -- what must exist by now ----------------------------------------------------------------------------------

    @property
    def _network(self) -> Network:
        return _existing(self.network)

    @property
    def _posterior(self) -> Posterior:
        return _existing(self.posterior)

    @property
    def _fitting(self) -> Fitting:
        return _existing(self.fitting)

    @property
    def _open(self) -> OpenTask:
        return _existing(self.open_task)


def _watch(config: Config) -> Drift | None:
    stream = config.stream
    return Drift(config.model.likelihood, stream.drift_delta, stream.drift_rows) if stream.boundary == "drift" else None


def _about(mark: Mark, task: str, started: float) -> dict[str, Any]:
    """What every entry says: who asked, and when it took effect."""
    took = {"seconds": time.monotonic() - started, "closed_at": time.time()}
    return {"task": task, "lsn": mark.lsn, "producer": mark.producer, "seq": mark.seq, **took}


def _asked_by(mark: Mark, entry: Entry) -> Mark:
    """A retry stands for the boundary that was not learned in full: its sender is told of the result."""
    return Mark(mark.lsn, entry.producer, entry.seq)


def _together(known: Consolidated, samples: int, weight: float, loss: float) -> dict[str, Any]:
    """The figures of a task and of rows added to it: sums, and the mean loss of all rows."""
    total = known.samples + samples
    return {
        "samples": total,
        "weight": known.weight + weight,
        "loss": (known.samples * known.loss + samples * loss) / total,
    }


def _existing(value: T | None) -> T:
    if value is None:
        raise RuntimeError("a boundary or step came before the first batch: the daemon did not write this log")
    return value
