"""The one seam for sums over samples: of the gradient, the Fisher, losses and counts, and of nothing else.

Processes that share a learner's work all see the same rows in the same order, and each takes its `part` of every block:
what a row has for itself is put together again by `whole`, what is a sum over rows by `sum`. Everything else each of them
does for itself, from the same numbers to the same numbers. What enters a sum once (the penalty) is added by the one that
`leads`.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

EVERY = slice(None)  # sample is this process's: nobody shares them


class Reduction(Protocol):
    """Sums over the processes that share the samples; every one of them must come by each call, in one order."""

    @property
    def rank(self) -> int:
        """Of this process, from 0."""

    @property
    def leads(self) -> bool:
        """Whether this process adds what enters a sum once; one of them does."""

    @property
    def alike(self) -> bool:
        """Whether what each process computes of the same numbers has the same bits in all: on one machine."""

    def part(self, samples: int) -> slice:
        """Which of so many samples are this process's; there may be none."""

    def mean(self, values: Tensor, samples: int) -> Tensor:
        """Of its part's values [m]: their share of the mean over so many samples, to be summed; or the share's gradient."""

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place; the same bits in each of them."""

    def whole(self, values: Tensor, samples: int) -> Tensor:
        """What all samples have [samples, ...], where this process has `values` for its part."""

    def any(self, flag: bool) -> bool:
        """Whether it is so in some process."""


class Alone:
    """One process, which has every sample: nothing is left to be done."""

    rank, leads, alike = 0, True, True

    def part(self, samples: int) -> slice:
        """All of them."""
        return EVERY

    def mean(self, values: Tensor, samples: int) -> Tensor:
        """The mean."""
        return values.mean()

    def sum(self, tensor: Tensor) -> Tensor:
        """The same."""
        return tensor

    def whole(self, values: Tensor, samples: int) -> Tensor:
        """The same."""
        return values

    def any(self, flag: bool) -> bool:
        """The same."""
        return flag


ALONE = Alone()
