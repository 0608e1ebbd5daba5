"""What a task's rows would cost without a look at them: the loss of the best constant prediction, by their targets alone.

A task whose loss has come to this is predicted as if it had never been learned. Guarantees: sums over samples alone,
through the one seam for them; constant memory.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from streamcl.core.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from streamcl.core.reduce import Reduction

SAME = 1e-12  # variance, relative to the mean square, below which rounding makes all the difference there is


class Chance:
    """Sums over a task's targets: how many of each class, or their sums and squares.

    likelihood: of the targets. device: theirs.
    """

    def __init__(self, likelihood: Likelihood, device: torch.device) -> None:
        self._likelihood = likelihood
        self._sums = torch.zeros(0, dtype=torch.float64, device=device)

    @classmethod
    def of(cls, likelihood: Likelihood, sums: Tensor) -> Chance:
        """Of sums that are known: rows of every class [K], or the number of rows, and the sums and squares of k targets."""
        found = cls(likelihood, sums.device)
        found._sums = sums
        return found

    def add(self, y: Tensor) -> None:
        """Targets [n] or [n, ...], as the likelihood takes them."""
        if isinstance(self._likelihood, Categorical):
            ones = torch.ones(len(y), dtype=torch.float64, device=y.device)
            found = ones.new_zeros(self._likelihood.classes).index_add_(0, y, ones)  # bincount would wait for a GPU
        else:
            rows = y.reshape(len(y), -1).double()
            found = torch.cat([rows.new_full((1,), len(rows)), rows.sum(0), rows.square().sum(0)])
        self._sums = found + self._sums if self._sums.numel() else found

    def summed(self, reduction: Reduction) -> Chance:
        """Over all processes that share the samples."""
        self._sums = reduction.sum(self._sums)
        return self

    def loss(self, likelihood: Likelihood) -> float | None:
        """Nats a sample of predicting the same for every row; None where the targets are all alike: that is no chance.

        categorical: the entropy of the labels' shares; of a task of one class, what guessing among all of the model's
        classes costs. bernoulli: the entropies of the targets' means. gaussian: of their means, with the noise that is left
        then where noise is learned, else with the model's own.
        """
        match likelihood:
            case Categorical(classes=classes):
                found = _entropy(self._sums / self._sums.sum())
                return found or (math.log(classes) if classes > 1 else None)
            case Bernoulli():
                mean, _ = self._moments()
                return _entropy(torch.stack([mean, 1 - mean])) or None
            case Gaussian():
                return self._of_reals(likelihood)
        return None

    def _moments(self) -> tuple[Tensor, Tensor]:
        """Mean and variance of each of a row's targets, [k]."""
        count, sums = self._sums[0], self._sums[1:].reshape(2, -1)
        mean, square = sums[0] / count, sums[1] / count
        variance = square - mean.square()
        return mean, torch.where(variance > SAME * square, variance, 0.0)

    def beside(self, likelihood: Likelihood) -> float | None:
        """As `loss`, but of real targets with the model's own noise, which its loss's rises are measured by."""
        return self._of_reals(likelihood, own=True) if isinstance(likelihood, Gaussian) else self.loss(likelihood)

    def _of_reals(self, likelihood: Gaussian, own: bool = False) -> float | None:
        """own: with the model's noise, though it is learned."""
        _, variance = self._moments()
        if not float(variance.sum()) > 0:
            return None
        units = likelihood.units
        if units is not None and not own:  # the noise is learned: who guesses learns it too
            found = float((variance / units.scale.to(variance).square()).mean())
            likelihood = replace(likelihood, noise_variance=found)
        return likelihood.around(variance)


def _entropy(shares: Tensor) -> float:
    """In nats, of all shares together."""
    return max(0.0, float(-torch.xlogy(shares, shares).sum()))
