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
from dataclasses import asdict, replace
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
from msgspec import structs
from torch import nn

from streamcl.binding import adopted, check_fingerprint, fingerprint, is_of, is_of_input
from streamcl.config import Config, settled
from streamcl.core.reduce import ALONE, Reduction
from streamcl.entries import (
    Abandoned,
    Closing,
    Consolidated,
    Dropped,
    Entry,
    Forgotten,
    Held,
    Mark,
    NothingKept,
    RollbackFailed,
    RolledBack,
    Standing,
    no_better,
)
from streamcl.errors import Damaged, ModelRefused
from streamcl.inputs import Inputs
from streamcl.learning import kinds, outcomes, restoring, scenario
from streamcl.learning.data import Array, Encoded, Rows, Store
from streamcl.learning.failing import blaming
from streamcl.learning.fitting import Event
from streamcl.learning.kinds import AnyBoundary, AnyModel
from streamcl.learning.network import choose_device
from streamcl.learning.open_task import OpenTask, kept_task
from streamcl.learning.outcomes import Factor, Outcome, about
from streamcl.learning.posterior import FactorSource
from streamcl.learning.recurring import Alike, Recognition
from streamcl.learning.watch import Watch, Why
from streamcl.naming import stream_name
from streamcl.schema import Signature, chosen, like_labels
from streamcl.snapshot import LearnerState


class Past(Protocol):
    """What was learned earlier, where it is kept."""

    def standing(self, entries: int) -> Standing:
        """What held after so many of the ledger's entries."""

    def version(self, number: int) -> Mapping[str, npt.NDArray[Any]]:
        """The arrays of a checkpoint that counts so many entries; raises Damaged, FileNotFoundError."""


EARLY = "a boundary or step came before the first batch: the daemon did not write this log"
T = TypeVar("T")
Steps = Generator[Event, None, Outcome | None]


class Learner:
    """Holds the model, the task that is open and everything counted.

    What holds it together: one task is open at a time, and every call either works on it or decides what holds of tasks
    (`standing`); model and open task change together or not at all. How a batch is learned, a boundary, what is watched
    meanwhile and what a snapshot restores have homes of their own, which return what they come to. recipe: of the
    model. inputs: of rows, on their way to the model; sent: their signature before. wary: how often each position has
    failed at each stage. next_lsn: of the next call. warning: of the last boundary, for the operator. doubt: about
    what the first batch's targets were taken for. factory: of the
    model, instead of the configured one. reduction: who shares the rows.
    """

    def __init__(
        self,
        config: Config,
        store: Store,
        factors: FactorSource | None = None,
        past: Past | None = None,
        factory: Callable[..., nn.Module] | None = None,
        reduction: Reduction = ALONE,
    ) -> None:
        self.config = config
        self.inputs = Inputs.of(config)
        self.sent: Signature | None = None
        self.store, self.past = Encoded(store, self.inputs), past
        self.standing = Standing()
        self.labels = kinds.labels(config)
        self.recipe = kinds.recipe(config, choose_device(config.train.device), self.labels, factors, factory, reduction)
        self.model: AnyModel | None = None
        self.open_task: OpenTask | None = None
        self.watch, self.recognition = Watch.of(config), Recognition.of(config)
        self.sights: dict[str, list[int]] = {}
        self.next_lsn = self.samples = self.batches = self.consolidations = 0
        self.warning: str | None = None
        self.doubt: str | None = None
        self.wary: Mapping[int, Mapping[str, int]] = {}
        self.train_loss = math.nan

    @property
    def steps(self) -> int:
        """Optimiser steps so far."""
        return 0 if self.model is None else self.model.fitting.steps

    @property
    def needed(self) -> int:
        """The oldest position whose rows are still needed, but for those that are kept: the first of the open task."""
        return self.next_lsn if self.open_task is None else self.open_task.first_lsn

    @property
    def _model(self) -> AnyModel:
        if self.model is None:
            raise RuntimeError(EARLY)
        return self.model

    @property
    def _open(self) -> OpenTask:
        return _existing(self.open_task)

    def try_model(self, rows: Rows, look_up: Callable[[], None]) -> None:
        """Try the model on rows of a first batch and throw it away; raises ModelRefused, ConfigError.

        look_up: called now and then, so that the caller can show signs of life meanwhile.
        """
        inputs = Inputs.of(self.config)
        inputs.begin(rows.x, rows.columns)
        inputs.take(rows.x, rows.columns, 0, rows.new_words)
        rows = _encoded(inputs, rows)
        signature = Signature.of(rows.x, rows.y)
        recipe = replace(self.recipe, config=settled(self.config, signature.y_real))
        recipe.try_out(signature, rows.x, rows.y, rows.new_labels, look_up)

    def _build(self, signature: Signature, steps: int) -> None:
        """A model with nothing learned, after so many steps of others."""
        steady = self.model is not None and self.model.network.steady  # where the same model is begun anew
        self.model = self.recipe.model(signature, self.standing.tasks, steps, steady)

    # -- rows ----------------------------------------------------------------------------------------------------

    def observe(self, mark: Mark, rows: Rows, boundary: bool = False) -> Steps:
        """Score a batch and learn from it; opens its task. boundary: its task ends here.

        Raises Unlearnable, Damaged.
        """
        outcome = None
        with blaming("batch", rows.task):
            yield from self._learn(mark.lsn, rows)
        if boundary:
            outcome = yield from self._close(mark, None)
        elif (rise := self.watch.risen(self.open_task, rows)) is not None and self._has_name_left():
            outcome = yield from self._close_drifted(mark, rise)
        return self._come_past(mark, outcome)

    def pass_over(self, mark: Mark) -> None:
        """There is nothing to learn here: a repair found the record damaged."""
        self._come_past(mark)

    def _come_past(self, mark: Mark, outcome: Outcome | None = None) -> Outcome | None:
        self.next_lsn = mark.lsn + 1
        return outcome

    def _taken_in(self, lsn: int, rows: Rows) -> Rows:
        """Rows as the model takes them, by all that is known with them."""
        if not self.inputs.begun:
            self.sent = Signature.of(rows.x, rows.y)
            self._settle_likelihood(self.sent, rows.y)
            self.inputs.begin(rows.x, rows.columns, rows.left_out)
        self.inputs.take(rows.x, rows.columns, lsn, rows.new_words)
        self.labels.named = bool(self.inputs.words.known)
        if self.inputs.plain_arrays:
            return rows
        return _encoded(self.inputs, rows)

    def _settle_likelihood(self, sent: Signature, y: Array) -> None:
        """The first batch's targets say what they are, where that was left to them."""
        found = settled(self.config, sent.y_real)
        if found != self.config:
            self.doubt = like_labels(y) if sent.y_real else None
            self.config, self.watch = found, Watch.of(found)
            self.recipe = replace(self.recipe, config=found)

    def _learn(self, lsn: int, rows: Rows) -> Iterator[None]:
        rows = self._taken_in(lsn, rows)
        self.labels.take(rows.new_labels, rows.outputs)
        if self.model is None:
            signature, (x, _) = Signature.of(rows.x, rows.y), chosen(rows.x, rows.y)
            self.recipe = self.recipe.begun(lsn, signature, x, self.labels.known)
            self._build(signature, 0)
            self._model.settle(x)
        self._grow(lsn)
        task = self._opened(lsn, rows)
        self._see(task.name, rows.y)
        self.batches += 1
        batch = kinds.incoming(self._model, task, lsn, rows, self.wary.get(lsn, {}))
        if batch.joins():
            self.samples += len(rows.x)
            if self.inputs.warm or self.inputs.frozen:  # before, what numbers mean still moves
                self.watch.look(rows.x, anew=task.revisited is None)
                if rows.of_stream:
                    self.recognition.look(rows.x, rows.y, self.labels)
            loss = yield from batch.learn(self.watch)
            self.train_loss = self.train_loss if loss is None else loss
        if self.inputs.exact and self.inputs.warm:
            self._freeze_inputs()

    def _freeze_inputs(self) -> None:
        """What inputs mean stays as it is. An exact learner's sums, of the few rows so far, are made anew."""
        if self.inputs.frozen:
            return
        self.inputs.freeze()
        if self.inputs.active:
            kinds.take_again(self._model, (self.store.read(lsn, verify=False) for lsn in self._open.lsns))

    def _grow(self, lsn: int) -> None:
        """More outputs, where the labels so far ask for them; what is open goes on with them."""
        task = self.open_task
        try:
            found = kinds.grown(self._model, lsn, self.labels.known)
        except ModelRefused as error:  # it was accepted when the labels came: of this record, not of the model
            raise RuntimeError(str(error)) from error
        if found is None:
            return
        before, grown = found
        self.model, self.recipe = grown, grown.recipe
        if task is not None:
            task.before = dict(grown.widened(task.before)) if task.before else {}
            task.penalty = grown.posterior.cavity(task.revisited)
            grown.fitting.begin(task.penalty, share=grown.posterior.share_of(task.revisited))
            grown.fitting.go_on(before.fitting)

    def _see(self, task: str, y: Array | None = None) -> None:
        """With model.scenario task, the network is about this task alone. y: of its rows, more of which have come."""
        if self.config.model.scenario != "task":
            return
        outputs = self.sights.setdefault(task, [])
        if y is not None and self.config.model.family == "categorical":
            outputs += sorted({*self.labels.to_outputs(np.unique(y)).tolist()} - {*outputs})
        self._model.network.see(*scenario.sight(task, self.sights))

    def _opened(self, lsn: int, rows: Rows) -> OpenTask:
        if self.open_task is None:
            name = stream_name(rows.task, self.standing.closed().__contains__) if rows.of_stream else rows.task
            self._open_task(OpenTask(name, lsn, self._model.posterior.cavity(None), tag=rows.tag))
        return self._open

    def _open_task(self, task: OpenTask) -> None:
        self._reopen(task)
        self.watch.open_task()
        self.recognition.end(None)

    def _reopen(self, task: OpenTask) -> None:
        """A task whose rows are kept; none of the stream, so that scores and drift have nothing to do with it."""
        self.open_task = task
        if task.start is None:
            task.start = self._model.past()
        self._see(task.name)
        self._model.fitting.begin(task.penalty, share=self._model.posterior.share_of(task.revisited))

    # -- tasks fed again, withdrawn, undone ------------------------------------------------------------------------

    def revisit(self, mark: Mark, task: str, damping: float | None = None) -> None:
        """A consolidated task is to be fed again: learned as if new, with the others as the penalty.

        damping: of its new factor, by default the configured one.
        """
        damping = self.config.posterior.effective_damping if damping is None else damping
        penalty = self._model.posterior.cavity(task)
        self._open_task(OpenTask(task, mark.lsn, penalty, damping, self._model.copied()))
        self._come_past(mark)

    def abandon(self, mark: Mark, task: str) -> Outcome | None:
        """As if the revisit had never been: the task's factor stands, and the parameters are those from before."""
        return self._come_past(mark, self._abandon(mark, task))

    def _abandon(self, mark: Mark, task: str) -> Outcome:
        started = time.monotonic()
        self._model.network.load(self._open.before)
        self._close_up()
        return Outcome(Abandoned(**about(mark, task, started)))

    def forget(self, mark: Mark, task: str) -> Outcome | None:
        """Withdraw a task: the totals without its factor. A network keeps what it learned until trained again."""
        started, model = time.monotonic(), self._model
        moved = model.moved(self.open_task)
        model.forget(task)
        self.consolidations += 1
        if self.open_task is not None:
            self.open_task.start = model.past() - moved
            self.open_task.penalty = model.posterior.cavity(self.open_task.revisited)
            model.fitting.set_penalty(self.open_task.penalty)
        return self._come_past(mark, self._settle(Forgotten(**about(mark, task, started))))

    def drop(self, mark: Mark, task: str) -> Outcome | None:
        """What is kept of a task is given up."""
        return self._come_past(mark, self._settle(Dropped(**about(mark, task, time.monotonic()))))

    def roll_back(
        self, mark: Mark, task: str, to: int, undone: tuple[str, ...], revisits: tuple[str, ...]
    ) -> Outcome | None:
        """Everything learned since version `to` is undone, the tasks `undone` and the `revisits` with it; an open task goes
        on from there."""
        return self._come_past(mark, self._roll_back(mark, task, to, undone, revisits))

    def _roll_back(self, mark: Mark, task: str, to: int, undone: tuple[str, ...], revisits: tuple[str, ...]) -> Outcome:
        started = time.monotonic()
        if to == 0:
            self._build(self._model.signature, self.steps)
        else:
            try:
                arrays = _existing(self.past).version(to)
            except (Damaged, OSError) as error:
                failed = RollbackFailed(**about(mark, task, started), to=to, undone=undone, reason=str(error))
                return Outcome(failed)
            self._model.load(arrays)
        entry = RolledBack(**about(mark, task, started), to=to, undone=undone, revisits_undone=revisits)
        outcome = self._settle(entry)
        self.consolidations += 1
        self._model.fitting.steps += 1  # the parameters have changed, and readers recognise that by it
        if self.open_task is not None:
            self.open_task.penalty = self._model.posterior.cavity(None)
            self.open_task.start = None
            self._reopen(self.open_task)
        return outcome

    # -- boundaries ----------------------------------------------------------------------------------------------

    def close(self, mark: Mark, weight: float | None = None) -> Steps:
        """The boundary of the open task: the configured epochs, then it enters the posterior.

        weight: lambda_t, by default the configured scale times N_t. Raises Unlearnable, Damaged.
        """
        drifted = self.watch.drifted
        if self.open_task is None and drifted is not None:
            self.watch.drifted = None
            entry, self.warning = outcomes.confirmed(mark, weight, drifted, self.standing.held)
            return self._come_past(mark, self._settle(entry))
        outcome = yield from self._close(mark, weight)
        return self._come_past(mark, outcome)

    def _close(self, mark: Mark, weight: float | None) -> Steps:
        """A boundary; if nothing of the task can be learned, it is held."""
        started, task = time.monotonic(), self._open
        boundary = self._boundary(mark.lsn)
        if task.is_empty:  # a repair has found none of its records
            if task.revisited:
                return self._abandon(mark, task.name)
            self.consolidations += 1
            return self._settle(Consolidated(**about(mark, task.name, time.monotonic())))
        if boundary.fails_for_good:
            return self._hold(outcomes.held(about(mark, task.name, started), task, weight))
        with blaming("boundary", task.name):
            if not boundary.admit():
                return self._hold(outcomes.held(about(mark, task.name, started), task, weight))
            alike = None if task.revisited else self.recognition.alike(self.standing.tasks)
            if alike is not None and self.recognition.revisits:
                boundary = self._as_revisit(mark, alike.task)
            outcome = yield from self._consolidate(mark, boundary, weight, None)
            return None if outcome is None else self._recognised(outcome, alike)

    def _as_revisit(self, mark: Mark, task: str) -> AnyBoundary:
        """The open task is an earlier one that has come back: it is learned as that, whose own part is left out."""
        opened, model = self._open, self._model
        provisional, opened.name = opened.name, task
        opened.damping = self.config.posterior.effective_damping
        opened.penalty = model.posterior.cavity(task)
        if provisional in self.sights:
            self.sights[task] = sorted({*self.sights.get(task, ()), *self.sights.pop(provisional)})
        self._see(task)
        model.fitting.learn_under(opened.penalty, model.posterior.share_of(task))
        return self._boundary(mark.lsn)

    def _recognised(self, outcome: Outcome, alike: Alike | None) -> Outcome:
        """What has become of a task, with the earlier one that it is like; it is known itself from now on."""
        entry = outcome.entry
        self.recognition.end(entry.task if isinstance(entry, Consolidated) else None)
        if alike is None or not isinstance(entry, Consolidated):
            return outcome
        entry = structs.replace(entry, recurs=alike.task, likeness=str(alike))
        self.standing.take(entry, self._earlier)
        return Outcome(entry, outcome.factor)

    def _boundary(self, lsn: int) -> AnyBoundary:
        return kinds.boundary(self._model, self.store, self._open, lsn, self.wary.get(lsn, {}))

    def end(self, mark: Mark, why: Why) -> Steps:
        """The clock ends the open task of a stream, whose tag stays open. Raises Unlearnable, Damaged."""
        outcome = None if self.open_task is None else (yield from self._close_drifted(mark, why))
        return self._come_past(mark, outcome)

    def _close_drifted(self, mark: Mark, why: Why) -> Steps:
        """The boundary of a stream's task that nobody has asked for: behind the batch that showed the change it is a
        function of the rows alone."""
        tag = self._open.tag
        outcome = yield from self._close(Mark(mark.lsn), None)
        if outcome is None or not isinstance(outcome.entry, Closing):
            return outcome
        entry = self.watch.closed(tag, outcome.entry, why)
        self.standing.take(entry, self._earlier)
        return Outcome(entry, outcome.factor)

    def _has_name_left(self) -> bool:
        """Whether fewer tasks are known than are kept, so that the next one's number keeps its name short enough."""
        return len(self.standing.closed()) + 1 < self.config.stream.tasks

    def _consolidate(self, mark: Mark, boundary: AnyBoundary, weight: float | None, more_of: Consolidated | None) -> Steps:
        """The open task is learned whole.

        more_of: the entry of the consolidated task to which its rows are added, None where they are a task by themselves.
        """
        started, task, fitting = time.monotonic(), self._open, self._model.fitting
        self._freeze_inputs()
        boundary.begin()
        self.warning = fitting.warning
        learned = yield from boundary.learn(weight, more_of is not None)
        exact = self.config.model.learner == "exact"
        missed = None if exact and learned.scores is not None else no_better(learned.loss, learned.chance)
        told = (learned.warning, *self.inputs.told(), missed)
        self.inputs.counted()
        learned = replace(learned, warning="; ".join(filter(None, told)) or None)
        self.train_loss, self.warning = learned.loss, learned.warning
        known = more_of if task.revisited is None else self.standing.tasks[task.name]
        entry = outcomes.consolidated(about(mark, task.name, started), task, learned, known, more_of is not None)
        self.consolidations += 1
        return self._settle(entry, learned.factor)

    def _hold(self, entry: Held) -> Outcome:
        """A boundary at which nothing can be learned: its rows stay, everything else is as before the task."""
        if self._open.before:
            self._model.network.load(self._open.before)
        else:
            self._model.return_to_anchor({})
        return self._settle(entry)

    def _settle(self, entry: Entry, factor: Factor | None = None) -> Outcome:
        """What a call changed for good takes effect: a boundary, held or not, leaves no task open."""
        if isinstance(entry, Closing):
            self._close_up()
        self.standing.take(entry, self._earlier)
        if self.model is not None:
            self.model.posterior.tasks = self.standing.tasks
        return Outcome(entry, factor)

    def _close_up(self) -> None:
        self.open_task = None
        if self.model is not None:
            self.model.fitting.end()

    def _earlier(self, entries: int) -> Standing:
        return Standing() if entries == 0 else _existing(self.past).standing(entries)

    # -- what is kept ----------------------------------------------------------------------------------------------

    def retry(self, mark: Mark, task: str) -> Steps:
        """What is kept of a task is learned: a held one as at its boundary, or the batches that were set aside.

        Raises Unlearnable, Damaged.
        """
        kept: Held | Consolidated | None = self.standing.held.get(task) or self.standing.tasks.get(task)
        if isinstance(kept, Held) or (kept is not None and kept.aside):
            outcome = yield from self._retry(mark, kept)
        else:
            outcome = Outcome(NothingKept(**about(mark, task, time.monotonic())))
        return self._come_past(mark, outcome)

    def _retry(self, mark: Mark, kept: Held | Consolidated) -> Steps:
        started = time.monotonic()
        opened = kept_task(kept, mark.lsn, self._model.posterior, self._model.copied())
        self._reopen(opened)
        boundary = self._boundary(mark.lsn)
        if boundary.fails_for_good:
            self._model.network.load(opened.before)
            self._close_up()
            return self._settle(outcomes.still_kept(mark, kept, started))
        weight, more_of = (kept.weight, None) if isinstance(kept, Held) else (None, kept)
        with blaming("boundary", kept.task):
            opened.suspects += self.store.batches(kept.first_lsn, kept.end_lsn) if isinstance(kept, Held) else kept.aside
            boundary.readmit()
            return (yield from self._consolidate(outcomes.asked_by(mark, kept), boundary, weight, more_of))

    # -- what a checkpoint holds ---------------------------------------------------------------------------------

    def snapshot(self) -> tuple[LearnerState, dict[str, npt.NDArray[Any]]]:
        """All that the next call needs, as plain numbers and host arrays; of constant size."""
        model, watch, task = self.model, self.watch, self.open_task
        state = LearnerState(
            fingerprint=fingerprint(self.config),
            next_lsn=self.next_lsn,
            steps=self.steps,
            samples=self.samples,
            batches=self.batches,
            consolidations=self.consolidations,
            train_loss=self.train_loss,
            labels=list(self.labels.outputs.items()),
            open_task=None if task is None else task.state(),
            prequential=watch.prequential.state(),
            drift=None if watch.drift is None else watch.drift.state(),
            drifted=watch.drifted,
            recurring=self.recognition.state(),
            signature=None if model is None else self.sent,
            columns=None if self.inputs.pinned is None else self.inputs.pinned.plain(),
            words=list(self.inputs.words.known),
            inputs=self.inputs.plain(),
            steady=model is not None and model.network.steady,
            layout=None if model is None else model.network.parameters.layout.plain(),
            sights=[(task, list(outputs)) for task, outputs in self.sights.items()],
            widths=list(self.recipe.widths),
            **asdict(self.recipe.vintage),
            narrower=[] if model is None else model.network.widening.narrower(),
        )
        before = {} if task is None else {f"before.{name}": array for name, array in task.before.items()}
        return state, {} if model is None else {**model.state(), **self.inputs.state(), **before}

    def served(self) -> Mapping[str, npt.NDArray[Any]]:
        """What predictions are made with: during a revisit, the parameters from before it."""
        before = {} if self.open_task is None else self.open_task.before
        return {**self._model.served(before), **self.inputs.state()}

    def restore(self, state: LearnerState, tensors: Mapping[str, npt.NDArray[Any]], standing: Standing) -> None:
        """Take over what `snapshot` gave, and what the ledger says holds.

        Raises ConfigError if the configuration is another model's, unless nothing was consolidated yet: then every row
        is still there, and a corrected model starts afresh.
        """
        if standing.tasks:
            check_fingerprint(state.fingerprint, self.config)
        self.config = adopted(state.fingerprint, self.config)
        self.watch = Watch.of(self.config)
        widths = restoring.widths(state, self.config)
        self.recipe = replace(self.recipe, vintage=state.vintage, config=self.config, widths=widths)
        self.labels.classes = self.config.model.outputs
        self.sights = {task: list(outputs) for task, outputs in state.sights}
        self.standing = standing
        self.next_lsn, self.samples, self.batches = state.next_lsn, state.samples, state.batches
        self.consolidations, self.train_loss = state.consolidations, state.train_loss
        self.labels.outputs = restoring.outputs(state.labels, self.config.model.outputs)
        self.labels.named = bool(state.words)
        alike = is_of(state.fingerprint, self.config)
        self.watch.restore(state, alike)
        self.recognition.restore(state.recurring)
        if state.signature is not None:
            self._restore_inputs(state, tensors)
            self._build(self.inputs.signature(state.signature), state.steps)
            self._restore_tasks(state, tensors, alike)

    def _restore_inputs(self, state: LearnerState, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """The input stage as it was; found anew from the open task's rows where it is configured otherwise now."""
        self.sent, sent = state.signature, self.store.sent
        self.inputs = Inputs.of(self.config)
        self.store = Encoded(sent, self.inputs)
        if is_of_input(state.fingerprint, self.config):
            self.inputs.load(state.columns, state.words, state.inputs, tensors, state.signature)
            return
        self.inputs.words.add(state.words)
        for lsn, _ in sent.batches(state.needed, state.next_lsn):
            x, columns = sent.read(lsn)[0], sent.columns(lsn)
            if not self.inputs.begun:
                left_out = () if state.columns is None else state.columns["left_out"]
                self.inputs.begin(x, columns, left_out)
            self.inputs.take(x, columns, lsn)

    def _restore_tasks(self, state: LearnerState, tensors: Mapping[str, npt.NDArray[Any]], alike: bool) -> None:
        model, opened, end = self._model, state.open_task, state.next_lsn
        if not restoring.take_over(model, state, tensors, alike):
            tensors = {}
            places = self.standing.kept() if opened is None else [*self.standing.kept(), (state.needed, end)]
            restoring.try_anew(model, self.recipe, self.store, places)
        if opened is not None:
            self._reopen(restoring.open_task(opened, end, model, self.store, tensors, self.wary))
            if tensors:
                model.fitting.load(tensors)


def _existing(value: T | None) -> T:
    if value is None:
        raise RuntimeError(EARLY)
    return value


def _encoded(inputs: Inputs, rows: Rows) -> Rows:
    """As the model takes them."""
    return replace(rows, x=inputs.encode(rows.x, rows.columns), y=inputs.labels(rows.y, rows.columns))
