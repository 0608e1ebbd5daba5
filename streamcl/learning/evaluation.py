"""Prequential scores: each batch is scored before it is learned from (test, then train), with River's statistics.

Guarantees: a batch of n rows weighs n times one row, exactly, without a Python loop over rows; the state is plain
numbers, so a checkpoint restores it to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from river import stats
from torch import Tensor

from streamcl.core.reduce import ALONE, Reduction

SCORES = {
    "categorical": ("accuracy", "log_loss"),
    "bernoulli": ("accuracy", "log_loss"),
    "gaussian": ("mae", "rmse"),
}


@dataclass(slots=True)
class Running:
    """Weighted running means of one likelihood's scores (accuracy and log loss, or MAE and RMSE)."""

    likelihood: str
    means: dict[str, stats.Mean] = field(init=False)

    def __post_init__(self) -> None:
        self.means = {name: stats.Mean() for name in SCORES[self.likelihood]}

    def update(self, batch_means: Mapping[str, float], rows: int) -> None:
        """Add a batch's mean scores (RMSE as the mean square), `rows` rows of them."""
        for name, mean in self.means.items():
            mean.update(batch_means[name], w=rows)

    def scores(self) -> dict[str, float]:
        """The scores so far; empty before the first row."""
        return {
            name: math.sqrt(mean.get()) if name == "rmse" else mean.get() for name, mean in self.means.items() if mean.n
        }

    def state(self) -> dict[str, list[float]]:
        """Plain numbers for a checkpoint."""
        return {name: [mean.n, mean.get()] for name, mean in self.means.items()}

    def restore(self, state: Mapping[str, list[float]]) -> None:
        """Take over what `state` gave."""
        self.means = {name: stats.Mean._from_state(n, mean) for name, (n, mean) in state.items()}


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

    def score(self, nll: Tensor, output: Tensor, target: Tensor, reduction: Reduction = ALONE) -> float:
        """Score the outputs that n rows had before they were learned from; returns their mean NLL. nll: [n], in nats."""
        means, loss = _batch_means(self.likelihood, nll, output, target, reduction)
        rows = reduction.count(len(target))
        self.overall.update(means, rows)
        self.task.update(means, rows)
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


def _batch_means(
    likelihood: str, nll: Tensor, output: Tensor, target: Tensor, reduction: Reduction
) -> tuple[dict[str, float], float]:
    """A batch's mean scores and mean NLL, brought to the host in one copy. Logits score as their probabilities would."""
    loss = reduction.mean(nll.double())
    if likelihood == "gaussian":
        error = (output - target).double()
        both = torch.stack([loss, reduction.mean(error.abs()), reduction.mean(error.square())])
        mean_nll, *values = reduction.sum(both).tolist()
    else:
        guess = output.argmax(1) if likelihood == "categorical" else output > 0
        hits = (guess == target.to(guess.dtype)).sum()
        mean_nll, hit = reduction.sum(torch.stack([loss, hits])).tolist()
        values = [hit / reduction.count(target.numel()), mean_nll]
    return dict(zip(SCORES[likelihood], values, strict=True)), mean_nll
