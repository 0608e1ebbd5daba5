"""The boundary of a task: its rows are read again and fitted whole, and the optimum found enters the posterior.

Guarantees: changes nothing but the model and which of the task's batches count. After so many failures:
  * a batch that failed as it came is tried once more, where no step has done harm; failing here too, it stays a suspect;
  * a boundary that diverged starts again from the anchor with a smaller rate, `ATTEMPTS` times in all;
  * one that failed otherwise, or too often, is not to be tried again: what then holds of the task is the learner's to say.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from streamcl.core.gaussian import Gaussian
from streamcl.core.likelihood import Bernoulli, Categorical
from streamcl.core.precision import Precision
from streamcl.learning.curvature import Taken
from streamcl.learning.data import Block, Store, TaskData
from streamcl.learning.fitting import Event
from streamcl.learning.model import Model
from streamcl.learning.network import Network
from streamcl.learning.open_task import OpenTask
from streamcl.learning.outcomes import Learned
from streamcl.learning.predictive import tempered

CALMER = 0.1  # the learning rate's factor at each new attempt at a boundary that diverged
LOOKED_AT = 64  # rows, to see whether outputs are logits
ROOM = 1e4  # that must be left between the penalty and the largest number there is, for its products
ATTEMPTS = 4  # at a boundary that diverges; then the task is held


class Boundary:
    """A task at its boundary, at position lsn. failed: how often that has failed at each stage."""

    def __init__(self, model: Model, store: Store, task: OpenTask, lsn: int, failed: Mapping[str, int]) -> None:
        self.model, self.store, self.task, self.lsn = model, store, task, lsn
        self.raised, self.diverged = failed.get("boundary", 0), failed.get("boundary-diverged", 0)
        self._unsound: BaseException | None = None

    @property
    def fails_for_good(self) -> bool:
        """Whether it is not to be tried again: a model that raised would raise again."""
        return self.raised > 0 or self.diverged >= ATTEMPTS

    # -- which batches count -------------------------------------------------------------------------------------

    def admit(self) -> bool:
        """Take in what was passed over and is sound at the anchor; whether the task then has any rows."""
        fitting, before = self.model.fitting, self.task.before
        self.task.admit(lambda lsn: fitting.at(self.model.anchor(before), lambda: self._is_sound(lsn)))
        return self.task.samples > 0

    def readmit(self) -> None:
        """Take in what is kept and is sound now; raises what the last of it was found unsound for if none is."""
        self.task.admit(self._is_sound)
        if self.task.samples == 0:
            raise self._unsound or ValueError("none of its rows can be learned")

    def _is_sound(self, lsn: int) -> bool:
        """Whether a batch that has failed can be learned here; if not, why is noted."""
        try:
            self.model.fitting.check_sound(*self.store.read(lsn))
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever a model may raise
            self._unsound = error
            return False
        return True

    # -- learned -------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Before the epochs; of a task that has diverged, from the anchor and with a smaller rate."""
        fitting, task = self.model.fitting, self.task
        fitting.seed_torch(self.lsn, self.model.network.reduction.rank)
        fitting.look_at_rate(task.samples)
        if self.diverged or task.stalled:
            self.model.return_to_anchor(task.before)
            fitting.begin(task.penalty, CALMER**self.diverged, self.model.posterior.share_of(task.revisited))

    def learn(self, weight: float | None, added: bool) -> Generator[Event, None, Learned]:
        """The configured epochs, then the optimum found enters the posterior; raises Diverged.

        weight: lambda_t, by default the configured scale times N_t. added: to the part that the task has there already.
        """
        fitting, data, anew = self.model.fitting, self._data(), self.task.revisited is None
        fitting.units.find(data)
        yield from fitting.fit(self.task.name, data, self.lsn)
        if anew:
            fitting.units.find_noise(data)
        weight = self.model.recipe.config.posterior.effective_scale * data.samples if weight is None else weight
        taken = yield from self._curvature(data, weight, added)
        if anew:
            taken = fitting.units.noted(taken, data)
        fitting.check_finite(taken.loss)
        fitting.check_gained(taken.loss, data, lambda: self.model.anchor(self.task.before))
        before, cost = self.model.posterior.total, self.model.moved(self.task)
        factor = self._absorb(taken.cavity, taken.curvature, added)
        self._check_fits(weight)
        factor, known = self._with_inputs(factor, before, data, weight)
        yield from self._choose_width(data, before.tempering)
        if factor is not None and not self.model.recipe.config.posterior.as_in_the_note:
            factor = replace(factor, optimum=self.model.network.master())
        potential = None if factor is None else factor.potential(self.model.network.master())
        chance, beside = (found(self.model.network.likelihood) for found in (taken.chance.loss, taken.chance.beside))
        scores = None if beside is None or beside == chance else (taken.loss, beside)
        told = "; ".join(filter(None, (fitting.warning, squashed(self.model.network, data)))) or None
        return Learned(data.samples, weight, taken.loss, factor, potential, told, cost, chance, scores, known)

    def _with_inputs(
        self, factor: Gaussian | None, before: Gaussian, data: TaskData, weight: float
    ) -> tuple[Gaussian | None, bool]:
        """What tells later what the outputs have moved on rows like these goes with the factor, else with the total; and
        whether it does. before: the total from before this task; one that does not know all of its rows' stays so."""
        posterior, own = self.model.posterior, self.model.inputs_of(data, weight, self.model.fitting.seed(self.lsn))
        if own is None:
            return factor, False
        if factor is not None:
            return replace(factor, inputs=own if factor.inputs is None else factor.inputs + own), True
        if posterior.tasks and before.inputs is None:
            return None, False
        posterior.total = replace(posterior.total, inputs=own if before.inputs is None else before.inputs + own)
        return None, True

    def _choose_width(self, data: TaskData, known: Tensor | None) -> Generator[Event, None, None]:
        """Of predictions; the task is learned whether it can be chosen or not. Until then, the one that was known."""
        posterior, fitting = self.model.posterior, self.model.fitting
        made = posterior.total
        posterior.total = replace(made, tempering=known)
        steps = tempered(self.model.network, made, data, fitting.seed(self.lsn), known)
        try:
            while True:
                next(steps)
                yield fitting.curvature_taken(self.task.name, data)
        except StopIteration as end:
            posterior.total = end.value
        except Exception as error:  # whatever a model may raise
            posterior.total = made
            note = (
                f"the width of predictions could not be chosen ({type(error).__name__}: {error}); it is the posterior's own"
            )
            fitting.warning = "; ".join(filter(None, (fitting.warning, note)))

    def _curvature(self, data: TaskData, weight: float, added: bool) -> Generator[Event, None, Taken]:
        """The task's precision; of one that is learned for the first time, in the basis that it moves."""
        task, fitting, posterior = self.task, self.model.fitting, self.model.posterior
        cavity = posterior.total if added else task.penalty
        moves = None if task.revisited else lambda basis: posterior.within(basis, cavity)
        return (yield from fitting.curvature(task.name, data, fitting.seed(self.lsn), cavity, weight, moves))

    def _absorb(self, cavity: Gaussian, curvature: Precision, added: bool) -> Gaussian | None:
        """The new posterior; nothing is kept of it unless it is finite."""
        model, task, theta = self.model, self.task, self.model.network.master()
        model.fitting.check_finite(float(theta.sum()))
        model.fitting.check_finite(curvature.curvature().total)
        if added:
            return model.posterior.extend(task.name, cavity, curvature, theta)
        return model.posterior.absorb(cavity, curvature, theta, task.revisited, task.damping or 1.0)

    def _check_fits(self, weight: float) -> None:
        """Raise ValueError where the next task's steps would have no numbers for the penalty."""
        total, kind = self.model.posterior.total, self.model.network.dtype
        largest = max(total.precision.trace(), float(total.shift.abs().max()))
        if not largest < torch.finfo(kind).max / ROOM:
            raise ValueError(
                f"the penalty comes to {largest:.2g} with this task, which weighs {weight:.3g}: beyond what numbers of "
                f"{str(kind).removeprefix('torch.')} hold; a smaller weight or posterior.scale, or train.dtype = 'float64'"
            )

    def _data(self) -> TaskData:
        def blocks(window: Any) -> Iterator[Block]:
            for index in window:
                yield self.store.read(self.task.lsns[index], verify=False)

        network = self.model.network
        row = math.prod(network.signature.x_shape) * network.dtype.itemsize
        return TaskData(blocks, self.task.sizes, row, network.conversion)


NEAR_AN_END, MANY = 0.95, 0.2  # more than this share of rows has an output so near to -1 or 1, and none is beyond
CONFINED = (
    "the model's outputs all lie between -1 and 1, many of them at these ends, as those of tanh do; streamcl takes logits, "
    "which must be free: so no probability comes near 0 or 1, and it learns badly; let the model end before it"
)


def squashed(network: Network, data: TaskData) -> str | None:
    """That a classifier's outputs are no logits, or not free, as far as some rows tell; None where they do not."""
    kind = network.likelihood
    if not isinstance(kind, Categorical | Bernoulli):
        return None
    with network.evaluating():
        output = network.shaped(network.module(next(data.chunks(LOOKED_AT))[0])).double()
    sizes = output.abs().reshape(len(output), -1).amax(1)
    told = [(sizes <= 1).all(), (output < 0).any(), (sizes > NEAR_AN_END).double().mean() > MANY]
    inside, signed, many = torch.stack(told).tolist()  # at once: a device is waited for
    if not inside or len(output) < LOOKED_AT:  # of a few rows, logits may be so as well
        return None
    if signed:
        return CONFINED if many else None
    last = "softmax" if isinstance(kind, Categorical) else "sigmoid"
    return (
        "the model's outputs all lie between 0 and 1, as probabilities do, and streamcl takes logits and applies "
        f"the {last} itself: so it learns badly, and no probability comes near 0 or 1; let the model end before it"
    )
