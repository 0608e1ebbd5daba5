"""The one seam for sums over samples: of the gradient, the Fisher, losses, scores and counts, and of nothing else.

Everything that is a sum over samples goes through a `Reduction` on its way to whoever uses it, so that several processes,
each with some of the samples, come to what one comes to that has them all. What each of them knows by itself (the penalty,
N_t by the log's records) must not be summed: `leads` says which one adds what enters a sum once.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class Reduction(Protocol):
    """Sums over the processes that share the samples; every one of them must come by each call, in one order."""

    @property
    def leads(self) -> bool:
        """Whether this process adds what enters a sum once; one of them does."""

    def count(self, samples: int) -> int:
        """How many there are in all processes."""

    def mean(self, values: Tensor) -> Tensor:
        """This process's part of the mean over all samples, a scalar: to be summed, or its gradient."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""


class Alone:
    """One process, which has every sample: nothing is left to be done."""

    leads = True

    def count(self, samples: int) -> int:
        """The same."""
        return samples

    def mean(self, values: Tensor) -> Tensor:
        """The mean."""
        return values.mean()

    def sum(self, tensor: Tensor) -> Tensor:
        """The same."""
        return tensor


ALONE = Alone()
