"""Minimising ``mean NLL + penalty / N`` (the note's eq. 11 divided by N): steps, epochs, full-batch L-BFGS.

Guarantees: the penalty enters every step exactly once, and no step on it can diverge. Adam takes its gradient, with which
the gradient buffer is initialised: its steps are bounded by the learning rate whatever the gradient. Plain SGD
takes an implicit (proximal) step on it, which is stable at any learning rate and has the same fixed point. L-BFGS uses a
line search. The optimiser works on the one flat parameter vector. Knows a Gaussian only by its interface, and nothing
of tasks' names, files or the log.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.config import Train
from streamcl.core.gaussian import Gaussian
from streamcl.core.products import products_for
from streamcl.learning.data import TaskData
from streamcl.learning.network import Network
from streamcl.learning.optimisers import Adam, Lbfgs, Sgd
from streamcl.snapshot import under

LAST_EPOCH_RATE = 0.1  # the last epoch anneals, so that theta* is near an optimum of eq. 11
POLISH_ITERATIONS = 40  # steps on gradients alone after L-BFGS
TRIAL_STEP = 1e-4  # of the parameters' norm: the first trial of a secant
POLISH_PATIENCE = 5  # and how many of them may fail to improve
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
    """An optimiser of one network under one penalty; a new task starts a new one."""

    def __init__(self, network: Network, penalty: Gaussian, train: Train) -> None:
        self.network = network
        self.train = train
        self.steps = 0
        self._products = products_for(network.parameters.shapes, train.batch_size)
        self.optimiser = self._optimiser()
        self.set_penalty(penalty)

    def set_penalty(self, penalty: Gaussian) -> None:
        """Use another penalty from here on."""
        self.penalty = penalty.to(self.network.device, self.network.dtype)
        self._weight = 1.0
        self._scaled = self.penalty.scaled(self._weight)

    def _optimiser(self) -> Adam | Sgd | Lbfgs:
        parameters, rate = self.network.parameters, self.train.learning_rate
        match self.train.optimizer:
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
        curvature, rate = self.penalty.curvature(), self.train.learning_rate
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

    def step(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """One step on a minibatch; returns its per-sample NLL [n] and its output before the step."""
        parameters, optimiser, reduction = self.network.parameters, self.optimiser, self.network.reduction
        if isinstance(optimiser, Lbfgs):
            raise RuntimeError("L-BFGS works on a whole task, not on minibatches")
        theta = parameters.theta.detach()
        if self._implicit or not reduction.leads:
            parameters.grad.zero_()
        else:
            self._scaled.gradient(theta, out=parameters.grad)
        with self._products():
            output = self.network.training_output(x)
            nll = self.network.likelihood.nll(output, y)
            torch.autograd.backward(reduction.mean(nll))
        reduction.sum(parameters.grad)
        optimiser.step()
        if self._implicit:
            self._scaled.proximal(theta, optimiser.rate)
        self.steps += 1
        return nll.detach(), output.detach()

    def fit(self, data: TaskData, seed: int) -> Iterator[EpochResult | None]:
        """Up to `epochs` passes over a whole task; fewer once the objective improves by less than `tolerance`, relatively.

        With a tolerance of 0 all of them, since a stochastic objective may rise for an epoch. The last one anneals,
        whenever it comes. Yields None after every step, so that a caller can look up, and an EpochResult after every epoch.
        """
        self.set_samples(data.samples)
        self.optimiser = self._optimiser()  # moments from when N was small, and the penalty large, would hold it back
        previous, settled = float("inf"), False
        for epoch in range(1, self.train.epochs + 1):
            last = settled or epoch == self.train.epochs
            self._anneal(last and epoch > 1)
            nll = yield from self._epoch(data, np.random.default_rng([seed, epoch]))
            objective = nll + self.penalty_value() / data.samples
            yield EpochResult(epoch, epoch if last else self.train.epochs, nll, objective)
            if last:
                break
            settled = previous - objective < self.train.tolerance * abs(previous) and self.train.tolerance > 0
            previous = objective
        if self.full_batch:
            yield from self._polish(data)

    def steps_an_epoch(self, data: TaskData) -> int:
        """How many steps a pass over a task takes."""
        return 1 if self.full_batch else -(-data.samples // self.train.batch_size)

    def penalty_value(self) -> float:
        """The penalty at the current parameters, in nats, up to its constant."""
        return float(self.penalty.value(self.network.parameters.theta.detach()))

    def _epoch(self, data: TaskData, rng: np.random.Generator) -> Generator[None, None, float]:
        if isinstance(self.optimiser, Lbfgs):
            return (yield from self._lbfgs_epoch(data, self.optimiser))
        total = torch.zeros((), dtype=torch.float64, device=self.network.device)
        for x, y in data.minibatches(self.train.batch_size, rng):
            total += self.step(x, y)[0].sum()
            yield None
        return float(self.network.reduction.sum(total)) / data.samples

    def _anneal(self, last: bool) -> None:
        self.optimiser.rate = self.train.learning_rate * (LAST_EPOCH_RATE if last else 1.0)

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
        for x, y in data.chunks():
            nll = self.network.likelihood.nll(self.network.module(x), y).sum()
            torch.autograd.backward(nll)
            total = total + nll.detach()
        reduction.sum(parameters.grad)
        return reduction.sum(total)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The optimiser's tensors by name, on the host."""
        return {f"{PREFIX}{name}": tensor.cpu().numpy() for name, tensor in self.optimiser.state().items()}

    def load(self, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state` gave."""
        self.optimiser.load({name: torch.from_numpy(np.array(array)) for name, array in under(PREFIX, tensors).items()})


def mean_nll(network: Network, data: TaskData) -> float:
    """The mean negative log likelihood of a task at the current parameters, in nats a sample."""
    total = torch.zeros((), dtype=torch.float64, device=network.device)
    with network.evaluating():
        for x, y in data.chunks():
            total += network.likelihood.nll(network.module(x), y).sum()
    return float(network.reduction.sum(total)) / data.samples
