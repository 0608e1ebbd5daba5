"""Minimising ``mean NLL + penalty / N`` (the note's eq. 11 divided by N): steps, epochs, full-batch L-BFGS.

Guarantees: the penalty enters every step exactly once, and no step on it can diverge. Adam takes its gradient, with which
the gradient buffer is initialised: its steps are bounded by the learning rate whatever the gradient. It works in the
coordinates in which the penalty is a diagonal (`coordinates`). Plain SGD
takes an implicit (proximal) step on it, which is stable at any learning rate and has the same fixed point. L-BFGS uses a
line search. The optimiser works on the one flat parameter vector. Knows a Gaussian only by its interface, and nothing
of tasks' names, files or the log.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.config import Train
from streamcl.core.basis import Basis
from streamcl.core.gaussian import Gaussian
from streamcl.core.growth import Growth
from streamcl.core.products import products_for
from streamcl.core.reduce import ALONE, Reduction
from streamcl.learning.coordinates import ADDING, DIRECT, NAME, Coordinates, drop_rounding
from streamcl.learning.data import TaskData
from streamcl.learning.growing import Widening
from streamcl.learning.ladder import LARGEST, PLACE, Ladder
from streamcl.learning.network import Network
from streamcl.learning.optimisers import Adam, Lbfgs, Sgd
from streamcl.snapshot import under

LAST_EPOCH_RATE = 0.1  # the last epoch anneals, so that theta* is near an optimum of eq. 11
POLISH_ITERATIONS = 40  # steps on gradients alone after L-BFGS
TRIAL_STEP = 1e-4  # of the parameters' norm: the first trial of a secant
POLISH_PATIENCE = 5  # and how many of them may fail to improve
MOMENTS, SQUARED = ("exp_avg", "exp_avg_sq"), "exp_avg_sq"  # of Adam, which begin at 0
PREFIX = "optimizer."  # of the optimiser's tensors in a checkpoint
RESTLESS_NATS = 0.1  # what Adam's own jitter may cost under the penalty, per sample


@dataclass(frozen=True, slots=True)
class EpochResult:
    """One pass over a task: the mean NLL in nats a sample, and the objective ``mean NLL + penalty / N``."""

    epoch: int
    epochs: int
    nll: float
    objective: float


class Optimisation:
    """An optimiser of one network under one penalty; a new task starts a new one.

    What holds it together: one objective, the NLL's share and the penalty, in whose coordinates every kind of step (Adam,
    SGD, L-BFGS, an implicit one) keeps its state.

    rate: the learning rate. share: what the NLL counts, beside a penalty that holds the rest of it (power EP). chooses:
    while data arrive, the stream chooses the rate. pins: as of `snapshot.Vintage`.
    """

    def __init__(
        self,
        network: Network,
        penalty: Gaussian,
        train: Train,
        rate: float,
        share: float = 1.0,
        chooses: bool = False,
        pins: bool = True,
    ) -> None:
        self.network = network
        self.train = train
        self.rate = rate
        self.share = share
        self._pins = pins
        self._drops = pins and network.dtype is torch.float64 and train.optimizer == "adam"
        self.steps = 0
        self._products = products_for(network.parameters.shapes, train.rows)
        self.coordinates: Coordinates | None = None
        self.chooses = chooses and network.parameters.size <= LARGEST
        self._take(penalty)
        self.optimiser = self._optimiser()
        self.ladder = self._ladder()

    def set_penalty(self, penalty: Gaussian) -> None:
        """Use another penalty from here on; in mid-task on other axes, to which the optimiser's moments do not carry."""
        before = self.coordinates
        self._take(penalty)
        if before is not None or self.coordinates is not None:
            self.optimiser = self._optimiser()
            self.ladder = self._ladder()

    def _take(self, penalty: Gaussian) -> None:
        network, turned = self.network, None
        if self.train.optimizer == "adam":
            turned = Coordinates.of(network.parameters, penalty, network.module, self.train.rows, self._pins)
        if turned is None:
            self.coordinates, self.penalty = None, penalty.to(network.device, network.dtype)
        else:
            self.coordinates, self.penalty = turned
        self._weight = 1.0
        self._scaled = self.penalty.scaled(self._weight)

    def _ladder(self) -> Ladder | None:
        """The copies that learn at rates of their own, from here on."""
        if not self.chooses:
            return None
        if self.coordinates is not None:
            return Ladder(self.coordinates.values, self.coordinates.grad, self.coordinates.follow, turned=True)
        parameters = self.network.parameters
        return Ladder(parameters.theta.detach(), parameters.grad, lambda: None, turned=False)

    def _optimiser(self) -> Adam | Sgd | Lbfgs:
        parameters, rate = self.network.parameters, self.rate
        match self.train.optimizer:
            case "adam" if self.coordinates is not None:
                return Adam(self.coordinates.values, self.coordinates.grad, rate)
            case "adam":
                return Adam(parameters.theta.detach(), parameters.grad, rate)
            case "sgd":
                return Sgd(parameters.theta.detach(), parameters.grad, rate)
            case "lbfgs":
                return Lbfgs(parameters.theta, rate)

    @property
    def full_batch(self) -> bool:
        """Whether the optimiser only works on a whole task, at its boundary."""
        return isinstance(self.optimiser, Lbfgs)

    @property
    def _implicit(self) -> bool:
        return isinstance(self.optimiser, Sgd)

    def warning(self, samples: int) -> str | None:
        """What is wrong with this learning rate under this penalty for a task of N samples, and one that would work.

        SGD: an explicit step of rate r on a curvature c contracts only for r c < 2; beyond it the implicit step is what
        keeps training stable, and it holds the parameters of the largest curvature nearly fixed. Adam: each parameter
        keeps moving by about the rate r of the last epoch, which costs ``1/2 r^2 sum Lambda / N`` nats a sample.
        """
        if self.coordinates is not None:
            return None
        curvature, rate = self.penalty.curvature(), self.rate
        match self.train.optimizer:
            case "sgd" if rate * curvature.largest / samples > 2:
                limit, why = 2 * samples / curvature.largest, "beyond the stability limit of an explicit step"
            case "adam" if 0.5 * (LAST_EPOCH_RATE * rate) ** 2 * curvature.total / samples > RESTLESS_NATS:
                limit = (2 * RESTLESS_NATS * samples / curvature.total) ** 0.5 / LAST_EPOCH_RATE
                why = "too coarse to settle under the penalty"
            case _:
                return None
        return (
            f"train.learning_rate {rate:g} is {why} (lambda times Fisher up to {curvature.largest:.3g}, {samples} "
            f"samples); {0.9 * limit:.2g} would work, or a smaller posterior.scale"
        )

    def set_samples(self, samples: int) -> None:
        """Scale the penalty by 1/N for the steps that follow; N is the task's samples so far."""
        if self._weight != 1.0 / samples:
            self._weight = 1.0 / samples
            self._scaled.weigh(self._weight)

    def step(
        self, x: Tensor, y: Tensor, turned: Tensor | None = None, *, reduction: Reduction | None = None
    ) -> tuple[Tensor, Tensor]:
        """One step on a minibatch, of which each process takes its part; returns the NLL and the output that this one's
        rows had before the step.

        turned: what `Coordinates.turned_rows` gives of x, where that is known. reduction: who takes part, by default all.
        """
        parameters, reduction = self.network.parameters, reduction or self.network.reduction
        optimiser = self.optimiser if self.ladder is None else self.ladder.optimiser
        if isinstance(optimiser, Lbfgs):
            raise RuntimeError("L-BFGS works on a whole task, not on minibatches")
        if self.coordinates is not None:
            return self._step_turned(self.coordinates, optimiser, x, y, turned, reduction)
        theta = parameters.theta.detach()
        if self._implicit or not reduction.leads:
            parameters.grad.zero_()
        else:
            self._scaled.gradient(theta, out=parameters.grad)
        with self._products():
            nll, output = self._backward(x, y, reduction)
        reduction.sum(parameters.grad)
        if self._drops:
            drop_rounding(parameters.grad, ADDING)
        optimiser.step()
        if self._implicit:
            self._scaled.proximal(theta, optimiser.rate)
        self.steps += 1
        return nll, output

    def _step_turned(
        self,
        coordinates: Coordinates,
        optimiser: Adam | Sgd,
        x: Tensor,
        y: Tensor,
        turned: Tensor | None,
        reduction: Reduction,
    ) -> tuple[Tensor, Tensor]:
        """As `step`, in coordinates."""
        self._try_layers(coordinates, x, y)
        part = reduction.part(len(x))
        if reduction.leads:
            self._scaled.gradient(coordinates.values, out=coordinates.grad)
        else:
            coordinates.grad.zero_()
        coordinates.clear()
        with self._products(), coordinates.in_use(x[part], None if turned is None else turned[part]):
            nll, output = self._backward(x, y, reduction)
        coordinates.gather()
        reduction.sum(coordinates.grad)
        if self._drops:
            coordinates.drop_rounding()
        optimiser.step()
        coordinates.follow()
        self.steps += 1
        return nll, output

    def _backward(self, x: Tensor, y: Tensor, reduction: Reduction) -> tuple[Tensor, Tensor]:
        """Add the gradient of part of a minibatch, but for the penalty; its NLL [n] and its output."""
        part = reduction.part(len(x))
        own = x[part]
        if len(own) == 0:
            return self.network.no_outputs(x)
        output = self.network.training_output(own)
        nll = self.network.likelihood.nll(output, y[part])
        torch.autograd.backward(reduction.mean(nll, len(x)) * self.share)
        return nll.detach(), output.detach()

    def learned(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """As `step`, with the NLL [n] and the output of all rows, whoever took them."""
        sharing = self.sharing
        nll, output = self.step(x, y, reduction=sharing)
        if sharing is ALONE:
            return nll, output
        flat = output.reshape(len(output), math.prod(output.shape[1:]))
        both = sharing.whole(torch.cat([nll.to(output.dtype).unsqueeze(1), flat], 1), len(x))
        return both[:, 0], both[:, 1:].reshape(len(x), *output.shape[1:])

    @property
    def sharing(self) -> Reduction:
        """Who shares the rows of a step as they come: where copies of a small network learn a few, nobody, since to share
        them takes longer, as long as all processes come to the same bits by themselves."""
        reduction = self.network.reduction
        return ALONE if self.ladder is not None and reduction.alike else reduction

    def _try_layers(self, coordinates: Coordinates, x: Tensor, y: Tensor) -> None:
        """On the first rows, in evaluation mode: nothing but gradients comes of it."""
        if coordinates.tried:
            return
        network = self.network
        network.flags.eval()
        try:
            with network.flags.differentiable():
                coordinates.try_layers(lambda x, y: network.likelihood.nll(network.module(x), y).sum(), x, y)
        finally:
            network.flags.train()

    def fit(self, data: TaskData, seed: int, epochs: int, compares: bool = True) -> Iterator[EpochResult | None]:
        """Up to `epochs` passes over a whole task; fewer once the objective improves by less than `tolerance`, relatively.

        With a tolerance of 0 all of them, since a stochastic objective may rise for an epoch. The last one anneals,
        whenever it comes. Yields None after every step, so that a caller can look up, and an EpochResult after every epoch.
        compares: as of `snapshot.Vintage`.
        """
        self.set_samples(data.samples)
        if self.ladder is not None:
            self.ladder.leave((lambda: mean_nll(self.network, data)) if compares else None)
            self.ladder = None
        self.optimiser = self._optimiser()  # moments from when N was small, and the penalty large, would hold it back
        previous, settled = float("inf"), False
        for epoch in range(1, epochs + 1):
            last = settled or epoch == epochs
            self._anneal(last and epoch > 1)
            nll = yield from self._epoch(data, np.random.default_rng([seed, epoch]))
            objective = self.share * nll + self.penalty_value() / data.samples
            yield EpochResult(epoch, epoch if last else epochs, nll, objective)
            if last:
                break
            settled = previous - objective < self.train.tolerance * abs(previous) and self.train.tolerance > 0
            previous = objective
        if self.full_batch:
            yield from self._polish(data)

    def steps_an_epoch(self, data: TaskData) -> int:
        """How many steps a pass over a task takes."""
        return 1 if self.full_batch else -(-data.samples // self.train.rows)

    def penalty_value(self) -> float:
        """The penalty at the current parameters, in nats, up to its constant."""
        theta = self.network.parameters.theta.detach()
        return float(self.penalty.value(theta if self.coordinates is None else self.coordinates.values))

    def _epoch(self, data: TaskData, rng: np.random.Generator) -> Generator[None, None, float]:
        if isinstance(self.optimiser, Lbfgs):
            return (yield from self._lbfgs_epoch(data, self.optimiser))
        total = torch.zeros((), dtype=torch.float64, device=self.network.device)
        for x, y, *turned in data.minibatches(self.train.rows, rng, self._turned_rows(data)):
            total += self.step(x, y, *turned)[0].sum()
            yield None
        return float(self.network.reduction.sum(total)) / data.samples

    def _turned_rows(self, data: TaskData) -> Callable[[Tensor], Tensor] | None:
        """What the first layer's inputs are turned by, once for all epochs."""
        if self.coordinates is None:
            return None
        if not self.coordinates.tried:
            x, y = next(data.chunks(self.train.rows))
            self._try_layers(self.coordinates, x, y)
        return self.coordinates.turned_rows

    def _anneal(self, last: bool) -> None:
        self.optimiser.rate = self.rate * (LAST_EPOCH_RATE if last else 1.0)

    def _lbfgs_epoch(self, data: TaskData, lbfgs: Lbfgs) -> Generator[None, None, float]:
        """One call of L-BFGS on the summed objective, whose scale suits its curvature test."""
        self.network.flags.eval()  # full batch: the objective must be the same function at every evaluation
        try:
            lbfgs.minimise(lambda: float(self._objective(data)))
            self.steps += 1
            nll = mean_nll(self.network, data)
        finally:
            self.network.flags.train()
        yield None
        return nll

    def _polish(self, data: TaskData) -> Iterator[None]:
        """Continue from the square root of machine precision, where comparing values ends, to where gradients end.

        Nonlinear conjugate gradients with one secant step along each direction (Shewchuk 1994, section 14.1): nothing but
        gradients is compared. Ends at the smallest gradient found, once curvature or patience runs out.
        """
        theta = self.network.parameters.theta.detach()
        best = theta.clone()
        self.network.flags.eval()
        try:
            gradient = self._gradient_at(theta, theta, data)
            direction, smallest, failed = -gradient, gradient.norm(), 0
            step = TRIAL_STEP * (1 + theta.norm()) / smallest
            for _ in range(POLISH_ITERATIONS):
                yield None
                at, slope = theta.clone(), gradient @ direction
                rise = self._gradient_at(at + step * direction, theta, data) @ direction - slope
                if not rise > 0:
                    break
                step = -step * slope / rise
                previous, gradient = gradient, self._gradient_at(at + step * direction, theta, data)
                failed = 0 if gradient.norm() < smallest else failed + 1
                if failed == 0:
                    best, smallest = theta.clone(), gradient.norm()
                if failed == POLISH_PATIENCE or smallest == 0:
                    break
                bend = (gradient @ (gradient - previous) / (previous @ previous)).clamp(min=0)  # Polak and Ribiere
                direction = bend * direction - gradient
        finally:
            theta.copy_(best)
            self.network.flags.train()

    def _gradient_at(self, point: Tensor, theta: Tensor, data: TaskData) -> Tensor:
        """The gradient of the summed objective with the parameters moved to `point`."""
        theta.copy_(point)
        self._objective(data)
        return self.network.parameters.grad.clone()

    def _objective(self, data: TaskData) -> Tensor:
        """``sum NLL + penalty`` over the whole task, leaving its gradient in the flat gradient."""
        parameters, reduction = self.network.parameters, self.network.reduction
        theta = parameters.theta.detach()
        self.penalty.gradient(theta, out=parameters.grad)
        total = self.penalty.value(theta).double()
        if not reduction.leads:
            parameters.grad.zero_()
            total.zero_()
        for x, y in parts(data, reduction):
            with self.network.flags.differentiable():
                nll = self.share * self.network.likelihood.nll(self.network.module(x), y).sum()
            torch.autograd.backward(nll)
            total = total + nll.detach()
        reduction.sum(parameters.grad)
        return reduction.sum(total)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The optimiser's tensors by name, on the host."""
        turned = {} if self.coordinates is None else self.coordinates.state()
        steps = self.optimiser if self.ladder is None else self.ladder
        every = {**steps.state(), **turned}
        return {f"{PREFIX}{name}": tensor.cpu().numpy() for name, tensor in every.items()}

    def go_on(self, before: Optimisation, widening: Widening) -> None:
        """Take over what one of a network with fewer outputs held: old directions go on, new ones begin.

        Where the penalty's axes have moved, as those of a full block do, first moments turn exactly and second ones by
        squares. Which layers work on coordinates is tried again.
        """
        growth = widening.growth(before.network.parameters.size)
        if growth is None or (before.coordinates is None) is not (self.coordinates is None):
            return
        held = (before.optimiser if before.ladder is None else before.ladder).state()
        turned = {} if before.coordinates is None else {NAME: before.coordinates.values}
        carried = _Carried(growth, before, self)
        every = {name: carried.over(name, tensor) for name, tensor in {**held, **turned}.items()}
        self.load({f"{PREFIX}{name}": tensor.cpu().numpy() for name, tensor in every.items()})

    def load(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state` gave."""
        every = {name: torch.tensor(array) for name, array in under(PREFIX, tensors).items()}
        if self.coordinates is not None:
            self.coordinates.load(every)
        held = {name: tensor for name, tensor in every.items() if name not in (NAME, DIRECT)}
        if self.ladder is None or PLACE not in held:
            self.optimiser.load({name: tensor for name, tensor in held.items() if not name.startswith(PLACE)})
        else:
            self.ladder.load(held)


class _Carried:
    """Vectors of an optimisation, as those of one with more parameters."""

    def __init__(self, growth: Growth, before: Optimisation, after: Optimisation) -> None:
        self._growth, self._size = growth, before.network.parameters.size
        self._here = after.network.parameters.theta.detach() if after.coordinates is None else after.coordinates.values
        self._theta = after.network.parameters.theta.detach()
        self._bases: tuple[Basis, Basis, Basis] | None = None
        if before.coordinates is not None and after.coordinates is not None:
            old = before.coordinates.basis
            self._bases = old, growth.basis(old), after.coordinates.basis

    def over(self, name: str, held: Tensor) -> Tensor:
        """One tensor of the state by its name: positions, a moment, or a number."""
        if held.shape != (self._size,):
            return held
        moment = name.rpartition(".")[2]
        begun = torch.zeros_like(self._here) if moment in MOMENTS else self._here
        if self._bases is None:
            return self._growth.vector(held, begun)
        old, grown, new = self._bases
        if grown.equals(new) and not any(matrix.stacked for matrix in new.matrices):
            return self._growth.coordinates(old, held, grown, begun)
        if moment == SQUARED:
            return new.expressed(grown, self._growth.coordinates(old, held, grown, begun))
        own = begun if moment in MOMENTS else self._theta
        return new.into(self._growth.vector(old.back(held), own))


def mean_nll(network: Network, data: TaskData) -> float:
    """The mean negative log likelihood of a task at the current parameters, in nats a sample."""
    total = torch.zeros((), dtype=torch.float64, device=network.device)
    with network.evaluating():
        for x, y in parts(data, network.reduction):
            total += network.likelihood.nll(network.module(x), y).sum()
    return float(network.reduction.sum(total)) / data.samples


def parts(data: TaskData, reduction: Reduction) -> Iterator[tuple[Tensor, Tensor]]:
    """This process's rows of a task, once, in the order received."""
    for x, y in data.chunks():
        part = reduction.part(len(x))
        if len(x[part]):
            yield x[part], y[part]
