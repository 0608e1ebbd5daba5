"""The posterior over all tasks, by `posterior.mode`: under which penalty a task is learned, and how it enters.

    single        one penalty, anchored at the newest optimum (assumed density filtering, the note's eqs. 10-11)
    factors       the same total, and each task's debiased factor on disk, to be replaced or withdrawn (eqs. 12-13)
    multi-anchor  a penalty at every optimum (Kirkpatrick et al. 2017), for comparison
    online        the penalties so far decayed by gamma before each task (Schwarz et al. 2018), for comparison

Guarantees: holds the totals alone, whatever the number of tasks; factors are streamed from where they are
kept, one at a time, in the order in which the tasks were first learned. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from streamcl import config
from streamcl.core import consolidation
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Precision
from streamcl.entries import Consolidated

LEAST_SHARE = 1e-3  # of the prior's precision: parameters that a task's data determine less than that tell nothing about it


class FactorSource(Protocol):
    """Where the factors are kept."""

    def read(self, number: int, task: str, verify: bool = True) -> Mapping[str, npt.NDArray[Any]]:
        """One factor's arrays; raises Damaged. verify: False if it is only looked at and enters nothing."""


@dataclass(slots=True)
class Posterior:
    """The totals, and which factors stand.

    prior: before any task. total: prior times all tasks. tasks: the standing ledger entry of each consolidated task, in
    the order they were first learned.
    """

    settings: config.Posterior
    prior: Gaussian
    source: FactorSource | None
    total: Gaussian
    tasks: dict[str, Consolidated] = field(default_factory=dict)

    @property
    def keeps_factors(self) -> bool:
        """Whether each task's factor is kept."""
        return self.settings.mode == "factors"

    def cavity(self, revisited: str | None) -> Gaussian:
        """The penalty to learn a task under; `revisited`: the task whose own part is left out (factor mode)."""
        match self.settings.mode:
            case "online":
                return consolidation.decayed(self.total, self.prior, self.settings.gamma)
            case "factors" if revisited is not None:
                return self.prior.product(self._factors(without=revisited))
        return self.total

    def absorb(
        self, cavity: Gaussian, curvature: Precision, theta: Tensor, revisited: str | None, damping: float
    ) -> Gaussian | None:
        """Take a task in, learned under `cavity` to the optimum theta [P] with precision `curvature`.

        Returns its factor where factors are kept: eq. 12 matched, then damped if it replaces another.
        """
        match self.settings.mode:
            case "multi-anchor":
                self.total = consolidation.multi_anchor(cavity, curvature, theta)
            case "factors":
                factor = consolidation.matched_factor(cavity, curvature, theta)
                old = None if revisited is None else self._factor(revisited)
                if old is not None:
                    factor = old.damped(factor, damping)
                self.total = cavity.times(factor)
                return factor
            case "single" | "online":
                self.total = consolidation.assumed_density_filtering(cavity, curvature, theta)
        return None

    def extend(self, task: str, curvature: Precision, theta: Tensor) -> Gaussian | None:
        """Take in more data of a consolidated task, learned under the whole posterior; arguments as for `absorb`.

        Returns the task's factor with that part, where factors are kept.
        """
        more = self.absorb(self.total, curvature, theta, None, 1.0)
        old = None if more is None else self._factor(task)
        return more if more is None or old is None else old.times(more)

    def forget(self, task: str) -> None:
        """The totals without a task's factor, recomputed from the others."""
        self.total = self.prior.product(self._factors(without=task))

    def follow(self, theta: Tensor, followed: Mapping[str, int]) -> Iterator[tuple[str, float, float]]:
        """Each task's name, its penalty at theta in nats, and the penalty's rise in nats a sample since it was learned.

        followed: when each was last looked at; those longest ago come first. What was withdrawn meanwhile is passed over.
        Raises Damaged if a factor is missing or, when first looked at, unsound.
        """
        if not self.keeps_factors:
            return
        for task in sorted(self.tasks, key=lambda name: followed.get(name, -1)):
            entry = self.tasks.get(task)
            factor = None if entry is None else self._factor(task, verify=task not in followed)
            if entry is None or factor is None:
                continue
            penalty = factor.penalty(theta, LEAST_SHARE * self.settings.prior_precision)
            rise = factor.potential(theta) - (entry.potential or 0.0)
            yield task, penalty, rise / entry.samples

    def _factors(self, without: str) -> Iterator[Gaussian]:
        factors = (self._factor(task) for task in self.tasks if task != without)
        return (factor for factor in factors if factor is not None)

    def _factor(self, task: str, verify: bool = True) -> Gaussian | None:
        """A task's factor; None where none of its data could be learned."""
        number = self.tasks[task].factor
        if number is None:
            return None
        return Gaussian.from_state(_kept(self.source).read(number, task, verify))


def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Gaussian:
    """A Gaussian of host arrays, copied."""
    return Gaussian.from_state({name: np.array(array) for name, array in arrays.items()})


def _kept(source: FactorSource | None) -> FactorSource:
    if source is None:
        raise RuntimeError("factors are kept in factor mode only")
    return source
