"""Prequential scores: each batch is scored before it is learned from (test, then train).

Guarantees: a batch of n rows weighs n times one row, without a Python loop over rows; the state is plain numbers, so a
checkpoint restores it to the bit. The mean is River's `stats.Mean` to the bit, without its import, which every start
would wait for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

BINS = 15  # of a calibration error
SCORES = {
    "categorical": ("accuracy", "log_loss"),
    "bernoulli": ("accuracy", "log_loss"),
    "gaussian": ("mae", "rmse"),
}


@dataclass(slots=True)
class Mean:
    """A running weighted mean (West, 1979). weight: of everything so far."""

    weight: float = 0.0
    value: float = 0.0

    def add(self, value: float, weight: float) -> None:
        """Another value; weight > 0."""
        self.weight += weight
        self.value += weight / self.weight * (value - self.value)


@dataclass(slots=True)
class Running:
    """Weighted running means of one likelihood's scores (accuracy and log loss, or MAE and RMSE)."""

    likelihood: str
    means: dict[str, Mean] = field(init=False)

    def __post_init__(self) -> None:
        self.means = {name: Mean() for name in SCORES[self.likelihood]}

    def update(self, batch_means: Mapping[str, float], rows: int) -> None:
        """Add a batch's mean scores (RMSE as the mean square), `rows` rows of them."""
        for name, mean in self.means.items():
            mean.add(batch_means[name], rows)

    def scores(self) -> dict[str, float]:
        """The scores so far; empty before the first row."""
        values = {name: mean.value for name, mean in self.means.items() if mean.weight}
        return {name: math.sqrt(value) if name == "rmse" else value for name, value in values.items()}

    def state(self) -> dict[str, list[float]]:
        """Plain numbers for a checkpoint."""
        return {name: [mean.weight, mean.value] for name, mean in self.means.items()}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Take over what `state` gave."""
        self.means = {name: Mean(weight, value) for name, (weight, value) in state.items()}


@dataclass(slots=True)
class Prequential:
    """Scores of the whole stream and of the open task."""

    likelihood: str
    overall: Running = field(init=False)
    task: Running = field(init=False)

    def __post_init__(self) -> None:
        self.overall, self.task = Running(self.likelihood), Running(self.likelihood)

    def open_task(self) -> None:
        """Start the open task's scores afresh."""
        self.task = Running(self.likelihood)

    def score(self, nll: Tensor, output: Tensor, target: Tensor) -> float:
        """Score the outputs that n rows had before they were learned from; returns their mean NLL. nll: [n], in nats."""
        means, loss = _batch_means(self.likelihood, nll, output, target)
        self.overall.update(means, len(target))
        self.task.update(means, len(target))
        return loss

    def state(self) -> dict[str, dict[str, list[float]]]:
        """Plain numbers for a checkpoint."""
        return {"overall": self.overall.state(), "task": self.task.state()}

    def restore(self, state: Mapping[str, Mapping[str, list[float]]]) -> None:
        """Take over what `state` gave."""
        self.overall.restore(state["overall"])
        self.task.restore(state["task"])


def right(likelihood: str, output: Tensor, target: Tensor) -> Tensor:
    """The share of each row's targets that is predicted correctly, [n] float64: 0 or 1 where a row has one target.

    likelihood: categorical or bernoulli; a real number is never simply right or wrong.
    """
    if likelihood == "categorical":
        return (output.argmax(1) == target).double()
    return ((output > 0) == (target > 0.5)).double().reshape(len(target), -1).mean(1)


def confidence(likelihood: str, output: Tensor) -> Tensor:
    """The probability that a row's answer has, [n] float64; of several targets, on average."""
    if likelihood == "categorical":
        return output.double().softmax(1).amax(1)
    likely = output.double().sigmoid()
    return torch.maximum(likely, 1 - likely).reshape(len(output), -1).mean(1)


@dataclass(slots=True)
class Calibration:
    """Expected calibration error: in bins of equal width, ``sum |right - sure| / rows`` (Guo et al. 2017, eq. 3)."""

    bins: Tensor = field(default_factory=lambda: torch.zeros((2, BINS), dtype=torch.float64))  # sums of right, and of sure
    rows: int = 0

    def add(self, sure: Tensor, right: Tensor) -> None:
        """More rows: the probability of each one's answer, and whether it is right, [n]."""
        place = (sure * BINS).long().clamp(0, BINS - 1).cpu()
        for number, values in enumerate((right, sure)):
            self.bins[number].index_add_(0, place, values.double().cpu())
        self.rows += len(sure)

    @property
    def error(self) -> float:
        """From 0, as sure as right, to 1."""
        return float((self.bins[0] - self.bins[1]).abs().sum() / max(1, self.rows))


def _batch_means(likelihood: str, nll: Tensor, output: Tensor, target: Tensor) -> tuple[dict[str, float], float]:
    """A batch's mean scores and mean NLL, brought to the host in one copy. Logits score as their probabilities would."""
    loss = nll.double().mean()
    if likelihood == "gaussian":
        error = (output - target).double()
        mean_nll, *values = torch.stack([loss, error.abs().mean(), error.square().mean()]).tolist()
    else:
        guess = output.argmax(1) if likelihood == "categorical" else output > 0
        hits = (guess == target.to(guess.dtype)).sum()
        mean_nll, hit = torch.stack([loss, hits]).tolist()
        values = [hit / target.numel(), mean_nll]
    return dict(zip(SCORES[likelihood], values, strict=True)), mean_nll
