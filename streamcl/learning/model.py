"""What the first batch makes: a network, the posterior over its parameters, and how the one is fitted under the other.

Guarantees: the three are of one signature, and begin and change together. Knows nothing of open tasks, entries or rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from streamcl import models
from streamcl.config import Config
from streamcl.core import likelihood, surrogates
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Layered
from streamcl.core.reduce import ALONE, Reduction
from streamcl.entries import Consolidated
from streamcl.gauge import is_linear_gaussian
from streamcl.learning.data import Array, TaskData
from streamcl.learning.fitting import Fitting, seed_at
from streamcl.learning.growing import Widths, due
from streamcl.learning.network import Network
from streamcl.learning.open_task import OpenTask
from streamcl.learning.posterior import FactorSource, Posterior, from_arrays
from streamcl.learning.trial import Trial, first_width
from streamcl.schema import LabelMap, Signature
from streamcl.snapshot import NEWEST, POSTERIOR, Vintage, under

SAID = 1 + 1e-9  # times the prior's precision: what is more than rounding
INPUT_ROWS = 1024  # of a task, from which the mean and covariance of its inputs are taken


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that a model is made of but its shapes, which the first rows bring.

    labels: grow as labels come, and are shared by every network made. factors: where they are kept. factory: of the module,
    instead of the configured one. widths: outputs that networks have had, where labels may come at any time. reduction: who
    shares the rows. vintage: what it began with.
    """

    config: Config
    device: torch.device
    labels: LabelMap
    factors: FactorSource | None = None
    factory: Callable[..., nn.Module] | None = None
    widths: Widths = ()
    reduction: Reduction = ALONE
    vintage: Vintage = NEWEST

    def begun(self, lsn: int, signature: Signature, x: Array, known: int) -> Recipe:
        """For a network that begins with the batch at position lsn, of rows like x, with so many labels.

        A factory that is not told how many outputs there are to be makes its own number, as long as that is enough.
        """
        if self.config.model.outputs is not None or self.config.model.family != "categorical":
            return self
        found = first_width(self.config, self.factory, signature, x, known)
        return replace(self, widths=((lsn, found),))

    def due(self, known: int, learned: bool) -> int | None:
        """As `growing.due`."""
        told = models.takes_outputs(self.factory or self.config.model.factory, self.config.model.args)
        return due(self.widths, known, self.config.model.scenario, told, learned)

    def wider(self, lsn: int, outputs: int) -> Recipe:
        """For so many outputs from position lsn on."""
        return replace(self, widths=(*self.widths, (lsn, outputs)))

    def network(self, signature: Signature) -> Network:
        """A network as the factory makes it, with nothing learned; of each growth, what that drew."""
        if not self.widths:
            return self._built(signature, None, None)
        (_, first), *later = self.widths
        network = self._built(signature, first, None)
        for lsn, outputs in later:
            wider = self._built(signature, outputs, seed_at(self.config, lsn))
            wider.widen(network)
            network = wider
        return network

    def _built(self, signature: Signature, classes: int | None, seed: int | None) -> Network:
        made = self.config, signature, self.labels, self.device, True, self.factory, self.reduction
        return Network(*made, classes=classes, seed=seed)

    def model(self, signature: Signature, tasks: dict[str, Consolidated], steps: int, steady: bool) -> Model:
        """A model with nothing learned; tasks: that stand, to be loaded. steps: taken before. steady: as of `Network`."""
        network = self.network(signature)
        network.steady = steady
        fitting = Fitting(self.config, network, steps, self.vintage)
        prior = self._prior(network)
        posterior = Posterior(
            self.config.posterior,
            prior,
            self.factors,
            prior,
            tasks,
            is_linear_gaussian(self.config),
            network.widening.growth,
        )
        return Model(self, signature, network, fitting, posterior)

    def _prior(self, network: Network) -> Gaussian:
        settings = self.config.posterior
        theta = network.master()
        centre = theta if settings.prior_mean == "init" else torch.zeros(1, dtype=theta.dtype).expand_as(theta)
        kind = "diagonal" if settings.curvature == "diagonal" else "layered"
        return Gaussian.prior(centre, settings.effective_prior_precision, kind)

    def try_out(
        self, signature: Signature, x: Array, y: Array, new_labels: tuple[int, ...], look_up: Callable[[], None]
    ) -> None:
        """Try a model on rows of a first batch and throw it away; raises ModelRefused, ConfigError."""
        Trial(self.config, signature, self.device, x, y, new_labels, look_up, self.factory).run()


def _approximated(before: Gaussian, after: Gaussian) -> str | None:
    """What is no longer exact now that there are more outputs."""
    one, two = before.precision, after.precision
    if not (isinstance(one, Layered) and isinstance(two, Layered)) or len(one.blocks) == len(two.blocks):
        return None
    kept = {block.matrix.key for block in two.blocks}
    names = ", ".join(block.matrix.key for block in one.blocks if block.matrix.key not in kept)
    return (
        f"with its outputs, {names} grew too large for a full block: what it knew is kept as a diagonal in its eigenbasis"
    )


@dataclass(frozen=True, slots=True)
class Model:
    """One network, the posterior over its parameters, and the fitting of it; made by a recipe for rows of one signature."""

    recipe: Recipe
    signature: Signature
    network: Network
    fitting: Fitting
    posterior: Posterior

    def settle(self, x: Array) -> None:
        """Find out on rows x how the network behaves, as `Network.settle`."""
        self.network.settle(self.network.conversion.x(x))

    def anchor(self, before: Mapping[str, npt.NDArray[Any]]) -> torch.Tensor:
        """Parameters [P] at which no step of the open task has done harm yet: from before a revisit, the posterior's
        mean, or, with nothing consolidated, those that the factory makes."""
        if before:
            return torch.tensor(before["theta"])
        if self.posterior.tasks:
            return self.posterior.total.mean
        return torch.tensor(self.recipe.network(self.signature).theta())

    def return_to_anchor(self, before: Mapping[str, npt.NDArray[Any]]) -> None:
        """What the steps of the open task did is undone."""
        self.fitting.move_to(self.anchor(before))

    def forget(self, task: str) -> None:
        """Withdraw a task; the parameters keep what they learned until trained again."""
        self.posterior.forget(task)

    def follow(self, followed: Mapping[str, int]) -> Iterator[tuple[str, float, float]]:
        """What each task's penalty comes to at the parameters as they are, as `Posterior.follow`."""
        theta = self.network.master()
        return self.posterior.follow(theta, followed, lambda factor, loss: self._risen(factor, factor.optimum, theta, loss))

    def served(self, before: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """What predictions are made with: during a revisit, the parameters from before it."""
        return before or self.network.state()

    def posterior_state(self) -> dict[str, npt.NDArray[Any]]:
        """The posterior's arrays."""
        return self.posterior.total.state()

    def moved(self, task: OpenTask | None) -> float:
        """What an open task's steps have cost the tasks before it so far, in nats: as outputs show it on inputs like
        theirs, where something of these is kept; else by their quadratic."""
        if task is None or task.start is None:
            return 0.0
        total, risen = self.posterior.total, None
        if total.inputs is not None:
            entries, least = self.posterior.tasks.values(), self.posterior.settings.effective_prior_precision
            loss = sum(entry.weight * entry.loss for entry in entries) / (sum(entry.weight for entry in entries) or 1.0)
            risen = self._risen(total, total.mean, self.network.master(), loss, least)
        return self.past() - task.start if risen is None else risen

    def _risen(
        self, learned: Gaussian, start: torch.Tensor | None, theta: torch.Tensor, loss: float, least: float = 0.0
    ) -> float | None:
        """How much more rows like those behind a Gaussian are missed by at theta [P] than at the start, in nats; None
        where nothing of them is kept, or the network cannot take what stands for them.

        loss: of these rows then, a row. least: the precision of what these rows say nothing of, as of outputs that came
        later: it counts as it is by now.
        """
        network = self.network
        if learned.inputs is None or start is None:
            return None
        if network.grows:
            start = torch.where(learned.precision.diagonal() > least * SAID, start, theta)
        x = surrogates.drawn(learned.inputs, self.signature.x_shape).to(network.device, network.dtype)
        try:
            before, after = (network.outputs_at(at, x).double() for at in (start, theta))
            weights, sharper = surrogates.as_sure(network.likelihood, before, loss)
            apart = weights @ network.likelihood.divergence(before, after, sharper)
        except (Exception, SystemExit, KeyboardInterrupt):  # whatever a model may raise of rows that are no task's own
            return None
        risen = float(learned.inputs[-1, -1] * apart.cpu()) * self._noise
        return risen if math.isfinite(risen) else None

    @property
    def _noise(self) -> float:
        """The variance of real targets' noise, as it is now; 1 of others."""
        kind = self.network.likelihood
        return kind.noise_variance if isinstance(kind, likelihood.Gaussian) else 1.0

    def inputs_of(self, data: TaskData, weight: float, seed: int) -> torch.Tensor | None:
        """The second moments [d + 1, d + 1] of a task's rows, times what they count for: their weight, of real targets
        over the noise's variance. From as many rows as there need be; None where its rises are known well without, or
        cannot be seen so."""
        settings, config = self.posterior.settings, self.recipe.config
        begins = self.posterior.keeps_factors or settings.keeps_middle  # or a task does not begin at the penalty's centre
        known = self.posterior.linear or settings.as_in_the_note or config.model.scenario == "task"
        real = not self.signature.x_integer and math.prod(self.signature.x_shape) <= surrogates.WIDEST
        if known or not begins or not real or not weight > 0:
            return None
        x, _ = next(iter(data.minibatches(min(INPUT_ROWS, data.samples), np.random.default_rng([seed, 3]))))
        return surrogates.moments(x).cpu() * (weight / self._noise)

    def past(self, before: Mapping[str, npt.NDArray[Any]] | None = None) -> float:
        """What the tasks so far come to (`Posterior.past`), in nats; before: where they were at the anchor instead."""
        return self.posterior.past(self.network.master() if before is None else self.anchor(before))

    def copied(self) -> dict[str, npt.NDArray[Any]]:
        """The network's arrays as they are now."""
        return {name: array.copy() for name, array in self.network.state().items()}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """For a snapshot: the arrays of network, posterior and optimiser."""
        return {**self.network.state(), **self._posterior_state(), **self.fitting.state()}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over network and posterior, as `state` gave them, also with fewer outputs."""
        self.network.load(self.widened(arrays))
        total = from_arrays(under(POSTERIOR, arrays))
        growth = self.network.widening.growth(total.size)
        self.posterior.total = total if growth is None else growth.gaussian(total, self.posterior.prior)

    def widened(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """A network's arrays, from when it had fewer outputs, with what it had at first for all others."""
        growth = self.network.widening.growth(arrays["theta"].size)
        if growth is None:
            return arrays
        fresh = self.recipe.network(self.signature)
        kept = {name: array for name, array in arrays.items() if not name.startswith(POSTERIOR)}
        return {**arrays, **fresh.widened(kept, growth)}

    def grown(self, lsn: int, outputs: int) -> Model:
        """The same with so many outputs from position lsn on, in which nothing that there was has changed.

        Raises ModelRefused where the module cannot be given them.
        """
        recipe = self.recipe.wider(lsn, outputs)
        model = recipe.model(self.signature, self.posterior.tasks, self.fitting.steps, self.network.steady)
        model.load({**self.network.state(), **self._posterior_state()})
        model.fitting.warning, model.fitting.fisher_note = self.fitting.warning, self.fitting.fisher_note
        model.fitting.growth_note = self.fitting.growth_note or _approximated(self.posterior.total, model.posterior.total)
        return model

    def _posterior_state(self) -> dict[str, npt.NDArray[Any]]:
        return {f"{POSTERIOR}{name}": array for name, array in self.posterior_state().items()}
