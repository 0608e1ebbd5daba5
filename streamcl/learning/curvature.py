"""A task's precision: the Fisher in the basis that the task moves, at the optimum or averaged over the posterior it makes.

At an optimum that fits its data the Fisher all but vanishes, and Laplace's method claims far too little. Assumed density
filtering matches the Gaussian that is being formed instead (Opper & Archambeau 2009; the fixed point of VON and IVON),

    Lambda_T = E_{theta ~ N(theta*, (Lambda + Lambda_T)^-1)} [ N_T F_T(theta) ]

by rounds of a few draws, each averaged into what is there. Every draw sees some of the task's rows, and no other task's.
What is only a basis to turn into, or a curvature to draw by that the first round replaces, needs no exact Fisher: a row
then has a few random mixtures of its cotangents (`likelihood.Mixed`, without bias), the fewer the more rows there are.
Guarantees: every random number from a seed; a number of rounds that the figures decide, never the clock; memory that does
not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence, Set
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streamcl.config import Config
from streamcl.core.basis import Basis, Matrix, matrices_in
from streamcl.core.chance import Chance
from streamcl.core.consolidation import task_precision
from streamcl.core.fisher import Fisher, Undecided
from streamcl.core.gaussian import Gaussian
from streamcl.core.likelihood import Categorical, Likelihood, Mixed
from streamcl.core.measures import Measure, Moments, Squares, SquaresIn
from streamcl.core.precision import Layered, Precision, is_finite
from streamcl.learning.coordinates import leading_sides
from streamcl.learning.data import TaskData
from streamcl.learning.failing import Diverged
from streamcl.learning.network import Network
from streamcl.snapshot import NEWEST, Vintage

ROWS = 512  # between two looks at the channels, also where gradients are taken one by one,
GPU_ROWS = 2048  # and on a GPU, where launching its kernels is most of what fewer would take
LARGEST_BLOCK = 256  # parameters of a layer that gets a full block
LARGEST_FULL = 2048  # and of a whole network, where curvature is "full"
DRAWS = 3  # a round,
DRAW_ROWS = 700  # of so many rows each,
ROUNDS = (4, 12)  # and so many rounds, at least and at most
VECTORS = 1  # a row and draw: the Fisher is an average over draws anyway
SKETCHED = (8192, DRAWS * DRAW_ROWS)  # random vectors of all rows that moments, and squares to draw by, are of at least
LOOKED_AT = 8  # rows, to see which layers take them
SETTLED = 0.02  # of the precision's sum: what rounds may change it by,
SUCCESSIVE = 2  # so many in succession, if there is to be no further one;
SETTLED_EVERYWHERE = 0.06  # and in older directories, in all directions together, where chance alone is as much
LEAST_WEIGHT = 0.3  # of a round

Restated = Callable[[Basis], Gaussian]  # the penalty of the other tasks in another basis


@dataclass(frozen=True, slots=True)
class Taken:
    """cavity: the penalty that the task was learned under, in the basis as it is now. curvature: Lambda_T, there. chance:
    the sums of its targets."""

    cavity: Gaussian
    curvature: Precision
    loss: float
    notes: tuple[str, ...]
    chance: Chance


@dataclass(frozen=True, slots=True)
class Choice:
    """matrices: which parameters are turned together. tables: keys of those whose rows are looked up. unknown: what has no
    closed form. leading: the sides (key, 0 left or 1 right) that are turned to their leading eigenvectors."""

    matrices: Sequence[Matrix]
    tables: Sequence[str]
    unknown: Sequence[str]
    leading: Set[tuple[str, int]]


class TaskCurvature:
    """Takes one task's precision at the network's parameters. notes: what was slow or had to be left out."""

    def __init__(self, config: Config, network: Network, data: TaskData, seed: int, vintage: Vintage = NEWEST) -> None:
        averaged = config.posterior.expectation == "posterior" and config.posterior.fisher == "exact"
        self._sketches = vintage.sketches and averaged
        self._settled, self._successive = (_settled, SUCCESSIVE) if vintage.settles else (_settled_everywhere, 1)
        self._pins = vintage.pins
        self._settings, self._rate, self._scenario = config.posterior, config.rate, config.model.scenario
        self._network = network
        self._data = data
        self._seed = seed
        self._likelihood = network.likelihood
        self._by_loop = False
        self._chance = Chance(network.likelihood, network.device)
        self._tables: Sequence[str] = ()  # matrices that are not turned on the left
        self.notes: list[str] = []

    def take(
        self, cavity: Gaussian, weight: float, share: float, restated: Restated | None
    ) -> Generator[float, None, Taken]:
        """weight: lambda_T. share: of the precision that enters now (power EP). restated: for a task that moves the basis.

        Yields the fraction done.
        """
        self._likelihood = self._chosen_likelihood()
        self._sketches = self._sketches and weight > 0
        fisher = self._fisher(None)
        if isinstance(cavity.precision, Layered) and restated is not None:
            matrices = yield from self._matrices(fisher, cavity.precision.basis)
            basis = yield from self._moved(cavity.precision.basis, matrices)
            cavity = restated(basis)
        there, loss = yield from self._at_optimum(cavity.precision)
        curvature = task_precision(there, self._data.samples, weight)
        if self._settings.expectation == "posterior" and weight > 0:
            curvature = yield from self._averaged(cavity, curvature, weight, share)
        return Taken(cavity, curvature, loss, tuple(self.notes), self._chance.summed(self._network.reduction))

    def choice(self) -> Choice:
        """What a first task would choose, without learning it."""
        fisher = self._fisher(None)
        steps = self._matrices(fisher, Basis.unturned(self._network.parameters.size))
        try:
            while True:
                next(steps)
        except StopIteration as found:
            matrices: Sequence[Matrix] = found.value
        x, _ = next(self._data.chunks(ROWS))
        tables = fisher.products(x)[1]
        return Choice(matrices, tables, fisher.without_closed_form, self._leading(matrices))

    def _chosen_likelihood(self) -> Likelihood:
        """With curvature that is bounded where the task lacks a class that other tasks may have."""
        likelihood = self._network.likelihood
        if self._settings.expectation == "mode" or self._scenario != "class" or not isinstance(likelihood, Categorical):
            return likelihood
        seen = torch.cat([torch.unique(y) for _, y in self._data.chunks()])
        return replace(likelihood, bounded=len(torch.unique(seen)) < likelihood.classes)

    # -- the basis -------------------------------------------------------------------------------------------------

    def _matrices(self, fisher: Fisher, basis: Basis) -> Generator[float, None, Sequence[Matrix]]:
        """Which parameters are turned together: found on the first task's rows, and kept."""
        if basis.matrices:
            sides = zip(basis.matrices, basis.sides, strict=True)
            self._tables = [matrix.key for matrix, (left, _) in sides if left is None]
            return basis.matrices
        x, _ = next(self._data.chunks(ROWS))
        layout = self._network.parameters.layout
        if self._settings.curvature == "full":
            return [Matrix.stack(layout.parts)]
        pairs, self._tables = fisher.products(x)
        yield 0.0
        found = matrices_in(layout, [(str(weight), bias) for weight, bias in pairs])
        parts = {part.name: part for part in layout.parts}

        def small(matrix: Matrix) -> bool:
            return self._settings.curvature == "auto" and matrix.size <= LARGEST_BLOCK and matrix.key not in self._tables

        return [Matrix.stack([parts[name] for name in m.names]) if small(m) else m for m in found]

    def _moved(self, basis: Basis, matrices: Sequence[Matrix]) -> Generator[float, None, Basis]:
        measure = Moments(self._network.parameters.layout, matrices, self._tables)
        moments = {matrix.key: (None, None) for matrix in matrices}
        if not measure.matrices:
            return Basis.unturned(basis.size, matrices)
        fisher, _ = yield from self._pass(measure, SKETCHED[0])
        found = measure.found(fisher.summed(on_host=False), self._data.samples)
        for key, sides in found.items():
            if not all(is_finite(side) for side in sides if side is not None):
                raise Diverged(
                    f"the second moments of what {key} is given, or of its gradients, are no finite numbers; scale the "
                    f"data, or lower train.learning_rate (now {self._rate:g})"
                )
        leading = () if basis.matrices else self._leading(matrices)
        return basis.moved(matrices, {**moments, **found}, leading, self._pins)

    def _leading(self, matrices: Sequence[Matrix]) -> set[tuple[str, int]]:
        """The sides that lead: decided by a first task, kept by the others."""
        network, (x, _) = self._network, next(self._data.chunks(LOOKED_AT))
        with network.evaluating():
            return leading_sides(network.module, network.parameters, matrices, x.clone())

    # -- sums over samples -----------------------------------------------------------------------------------------

    def _at_optimum(self, cavity: Precision) -> Generator[float, None, tuple[Precision, float]]:
        measure = self._measure(cavity)
        fisher, loss = yield from self._pass(measure, SKETCHED[1])
        self._template = fisher
        return self._precision(fisher, cavity), loss

    def _measure(self, precision: Precision) -> Measure:
        network = self._network
        if not isinstance(precision, Layered):
            return Squares(network.parameters.layout)
        basis = precision.basis.to(network.device, network.dtype)
        return SquaresIn(network.parameters.layout, basis, [m for m in basis.matrices if m.stacked])

    @staticmethod
    def _precision(fisher: Fisher, like: Precision, on_host: bool = True) -> Precision:
        if isinstance(fisher.measure, SquaresIn) and isinstance(like, Layered):
            return fisher.measure.precision(fisher.summed(on_host), like.basis)
        return fisher.precision(on_host)

    def _pass(self, measure: Measure, sketched: int) -> Generator[float, None, tuple[Fisher, float]]:
        """Every row of the task, and their mean NLL: one forward pass serves both. sketched: vectors, where few will do.

        If a few rows show that the fast ways cannot be trusted with this task, the loop does all of it.
        """
        vectors = a_row(sketched, self._data.samples) if self._sketches else None
        fisher = self._fisher(measure, vectors)
        try:
            loss = yield from self._added(fisher)
            wrong = None if fisher.verified() else "some rows have a different Fisher when taken by themselves"
        except Undecided as error:
            wrong = str(error)
        if not self._network.reduction.any(wrong is not None):
            self._note(fisher.slow)
            return fisher, loss
        self._by_loop = True
        fisher = self._fisher(measure, vectors)
        loss = yield from self._added(fisher)
        wrong = wrong or "by another of the processes that share the rows"
        self._note(
            f"the Fisher was found to be wrong ({wrong}) and was taken again row by row, in {fisher.loop_seconds:.2g} s"
        )
        return fisher, loss

    def _note(self, note: str | None) -> None:
        if note is not None and not self.notes:
            self.notes.append(f"{note}; so it is in every other pass of the boundary and for its draws")

    def _fisher(self, measure: Measure | None, vectors: int | None = None) -> Fisher:
        """vectors: a row, at the most; None for no limit."""
        network = self._network
        generator = torch.Generator(device=network.device).manual_seed(self._seed)
        signs = torch.Generator().manual_seed(self._seed)
        return Fisher(
            network.module,
            network.parameters,
            self._likelihood if vectors is None else Mixed(self._likelihood, vectors, signs),
            self._settings.fisher,
            generator,
            by_loop=self._by_loop,
            seed=self._seed,
            reduction=network.reduction,
            measure=measure,
        )

    def _added(self, fisher: Fisher) -> Generator[float, None, float]:
        """Add every row of a task; returns their mean NLL."""
        network = self._network
        total = torch.zeros((), dtype=torch.float64, device=network.device)
        rows = 0
        self._chance = Chance(network.likelihood, network.device)
        for x, y in self._data.chunks(rows_at_once(network.device)):
            output, own = fisher.add(x, y)
            if len(output):
                total += network.likelihood.nll(output, y[own]).sum()
            self._chance.add(y[own])
            rows += len(x)
            yield rows / self._data.samples
        return float(network.reduction.sum(total)) / self._data.samples

    # -- averaged over the posterior that is being formed ----------------------------------------------------------

    def _averaged(
        self, cavity: Gaussian, curvature: Precision, weight: float, share: float
    ) -> Generator[float, None, Precision]:
        """The fixed point, from the curvature at the optimum on.

        Draws are made, and their curvatures averaged, where the network is: on a GPU in its own precision, since turning
        draws in and out of the basis takes a processor minutes.
        """
        generator = torch.Generator().manual_seed(self._seed)
        theta = self._network.master()
        draws = _Draws.at(self._network, theta, generator, self._seed, along=not self._pins)
        left_out = within = 0
        try:
            for number in range(ROUNDS[1]):
                formed = cavity.precision.plus(curvature.weighted(share)).to(draws.centre.device, draws.centre.dtype)
                found = _Mean()
                for _ in range(DRAWS):
                    each = yield from self._drawn(draws.draw(formed), cavity.precision, weight, number, generator)
                    found.add(each)
                    left_out += each is None
                mean = found.mean()
                if mean is None:
                    break
                step = 1.0 if number == 0 else max(LEAST_WEIGHT, 1 / (number + 2))
                before, curvature = curvature, curvature.towards(mean, step)
                within = within + 1 if self._settled(before, curvature) else 0
                if number + 1 >= ROUNDS[0] and within >= self._successive:
                    break
        finally:
            self._network.move_to(theta)
        if left_out:
            self.notes.append(f"{left_out} draws from the posterior gave no finite curvature and were left out")
        return curvature

    def _drawn(
        self,
        theta: Tensor,
        like: Precision,
        weight: float,
        number: int,
        generator: torch.Generator,
    ) -> Generator[float, None, Precision | None]:
        """The task's precision at one draw theta [P], from some of its rows; None where it is not finite."""
        self._network.move_to(theta)
        rng = np.random.default_rng([self._seed, int(torch.randint(2**31, (), generator=generator))])
        x, y = next(iter(self._data.minibatches(min(DRAW_ROWS, self._data.samples), rng)))
        fisher = self._template.again()
        fisher.likelihood = Mixed(self._likelihood, VECTORS, generator)
        for start in range(0, len(x), ROWS):
            fisher.add(x[start : start + ROWS], y[start : start + ROWS])
            yield number / ROUNDS[1]
        there = self._precision(fisher, like, on_host=False)
        return task_precision(there, len(x), weight) if there.is_finite() else None


def a_row(vectors: int, samples: int) -> int:
    """How many each row has, for so many of all."""
    return max(1, -(-vectors // max(1, samples)))


def rows_at_once(device: torch.device) -> int:
    """Whose Fisher is taken between two looks up."""
    return ROWS if device.type == "cpu" else GPU_ROWS


@dataclass(frozen=True, slots=True)
class _Draws:
    """Draws of the parameters around a centre [P]. generator: on the centre's device. along: of numbers along a
    posterior's axes, not the parameters' own."""

    centre: Tensor
    generator: torch.Generator
    along: bool

    @classmethod
    def at(cls, network: Network, theta: Tensor, generator: torch.Generator, seed: int, along: bool) -> _Draws:
        """Around theta, on the network's device; generator: used where that is the host."""
        if network.device.type == "cpu":
            return cls(theta, generator, along)
        own = torch.Generator(device=network.device).manual_seed(seed)
        return cls(theta.to(network.device, network.dtype), own, along)

    def draw(self, precision: Precision) -> Tensor:
        """One, from a posterior of this precision, which is on that device."""
        if self.along and isinstance(precision, Layered):
            return precision.sample_along(self.centre, self.generator)
        return precision.sample(self.centre, self.generator)


class _Mean:
    """Of precisions, one of them held at a time."""

    def __init__(self) -> None:
        self._total: Precision | None = None
        self._count = 0

    def add(self, found: Precision | None) -> None:
        """One more; None is none."""
        if found is None:
            return
        self._count += 1
        if self._total is None:
            self._total = found.copy()
        else:
            self._total.add_(found)

    def mean(self) -> Precision | None:
        """On the host; None where there are none."""
        return None if self._total is None else self._total.weighted(1 / self._count).on_host()


def _settled(before: Precision, after: Precision) -> bool:
    """Whether a round has changed no more of the precision's sum than chance does."""
    return abs(after.trace() - before.trace()) <= SETTLED * after.trace()


def _settled_everywhere(before: Precision, after: Precision) -> bool:
    moved = float(after.less(before).diagonal().abs().sum())
    return moved / max(float(after.diagonal().sum()), torch.finfo(torch.float64).tiny) < SETTLED_EVERYWHERE
