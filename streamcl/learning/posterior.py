"""The posterior over all tasks, by `posterior.mode`: under which penalty a task is learned, and how it enters.

    single        one penalty, anchored at the newest optimum (assumed density filtering, the note's eqs. 10-11)
    factors       the same total, and each task's debiased factor on disk, to be replaced or withdrawn (eqs. 12-13)
    multi-anchor  a penalty at every optimum (Kirkpatrick et al. 2017), for comparison
    online        the penalties so far decayed by gamma before each task (Schwarz et al. 2018), for comparison

Guarantees: holds the totals alone, whatever the number of tasks; factors are streamed from where they are
kept, one at a time, in the order in which the tasks were first learned. Writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl import config
from streamcl.core import consolidation
from streamcl.core.basis import Basis
from streamcl.core.gaussian import Gaussian
from streamcl.core.growth import Growth
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
    the order they were first learned. linear: whether the model is linear in its parameters, with real targets. growth:
    from so many parameters to those that there are now, of factors that were taken when there were fewer outputs.
    """

    settings: config.Posterior
    prior: Gaussian
    source: FactorSource | None
    total: Gaussian
    tasks: dict[str, Consolidated] = field(default_factory=dict)
    linear: bool = False
    growth: Callable[[int], Growth | None] = lambda size: None

    @property
    def keeps_factors(self) -> bool:
        """Whether each task's factor is kept."""
        return self.settings.mode == "factors"

    @property
    def share(self) -> float:
        """Of a task's factor that a revisit takes out (power EP's alpha)."""
        return self.settings.effective_share if self.keeps_factors else 1.0

    def share_of(self, revisited: str | None) -> float:
        """What a task's NLL counts while it is learned: of a revisit, what was taken out of the penalty."""
        return 1.0 if revisited is None else self.share

    def cavity(self, revisited: str | None) -> Gaussian:
        """The penalty to learn a task under; `revisited`: the task whose own part, or `share` of it, is left out."""
        match self.settings.mode:
            case "online":
                return consolidation.decayed(self.total, self._prior_here, self.settings.gamma)
            case "factors" if revisited is not None:
                return self._prior_here.product(self._factors(without=revisited, share=self.share))
        return self.total

    def within(self, basis: Basis, cavity: Gaussian) -> Gaussian:
        """A new task's penalty in the basis that the task has moved; of factors, each re-expressed from its own basis."""
        if self.keeps_factors:
            return self.prior.within(basis).product(self._factors(without=None))
        return cavity.within(basis)

    @property
    def _prior_here(self) -> Gaussian:
        """The prior in the total's basis: the same in any."""
        return self.prior.beside(self.total)

    def absorb(
        self, cavity: Gaussian, curvature: Precision, theta: Tensor, revisited: str | None, damping: float
    ) -> Gaussian | None:
        """Take a task in, learned under `cavity` to the optimum theta [P] with precision `curvature`.

        Returns its factor where factors are kept: eq. 12 matched, then damped if it replaces another. Of a revisit that
        took a share alpha of the factor out (power EP, Minka 2004), alpha of the new one takes that share's place.
        """
        match self.settings.mode:
            case "multi-anchor":
                self.total = consolidation.multi_anchor(cavity, curvature, theta)
            case "factors":
                old = None if revisited is None else self._factor(revisited)
                if old is None:
                    factor = consolidation.matched_factor(cavity, curvature, theta)
                    self.total = cavity.times(factor)
                    return factor
                old, share = old.beside(cavity), self.share
                part = consolidation.matched_factor(cavity, curvature.weighted(share), theta)
                part = old.weighted(share).damped(part, damping)
                self.total = cavity.times(part)
                return part if share == 1 else old.weighted(1 - share).times(part)
            case "single" | "online":
                middle = self._middle(cavity, curvature, theta)
                self.total = replace(consolidation.assumed_density_filtering(cavity, curvature, theta), optimum=middle)
        return None

    def extend(self, task: str, cavity: Gaussian, curvature: Precision, theta: Tensor) -> Gaussian | None:
        """Take in more data of a consolidated task, learned under the whole posterior (`cavity`); arguments as of `absorb`.

        Returns the task's factor with that part, where factors are kept.
        """
        more = self.absorb(cavity, curvature, theta, None, 1.0)
        old = None if more is None else self._factor(task)
        return more if more is None or old is None else replace(old.beside(more).times(more), inputs=old.inputs)

    def forget(self, task: str) -> None:
        """The totals without a task's factor, recomputed from the others."""
        self.total = self._prior_here.product(self._factors(without=task))

    def follow(
        self, theta: Tensor, followed: Mapping[str, int], risen: Callable[[Gaussian, float], float | None]
    ) -> Iterator[tuple[str, float, float]]:
        """Each task's name, its penalty at theta in nats, and its loss's rise in nats a sample since it was learned.

        Both from the parameters at which its curvature was taken; in the note's way (a factor without these) from the
        factor's centre, which what training left unfinished and revisits with a share put anywhere. The rise is the
        penalty's where it is not seen in outputs (`risen`, of a factor and its task's loss when learned, in nats).
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
            seen = risen(factor, entry.loss)
            if factor.optimum is not None:
                penalty = rise = factor.away(theta)
            else:
                penalty = factor.penalty(theta, LEAST_SHARE * self.settings.effective_prior_precision)
                rise = factor.potential(theta) - (entry.potential or 0.0)
            yield task, penalty, (rise if seen is None else seen) / (entry.weight or entry.samples)

    def past(self, theta: Tensor) -> float:
        """The loss of all tasks so far at theta [P], by the total without the prior, in nats up to a constant.

        Its differences are what a move costs them: around the mean of the tasks' optima, since each lies at the bottom of
        its own loss; around the newest optimum where that mean is not kept (in the note's way, with factors, or of an older
        version). Of mode online, the tasks as they count by now. `linear`: of a linear-Gaussian model, whose slope at the
        anchor is the prior's with the other sign, this is then exact, as long as every row counts once.
        """
        if not self.tasks:
            return 0.0
        if self.linear or self.settings.mode == "multi-anchor":
            return float(self.total.value(theta) - self.prior.value(theta))
        away = theta - (self.total.mean if self.total.optimum is None else self.total.optimum)
        held = torch.dot(away, self.total.precision.times(away))
        return 0.5 * float(held - self.settings.effective_prior_precision * torch.dot(away, away))

    def _middle(self, cavity: Gaussian, curvature: Precision, theta: Tensor) -> Tensor | None:
        """The mean of all optima, weighted by their tasks' precisions, once this one is among them."""
        if self.linear or not self.settings.keeps_middle:
            return None
        if not self.tasks:
            return theta.clone()
        before = self.total.mean if self.total.optimum is None else self.total.optimum
        both = cavity.precision.plus(curvature)
        return both.mean(cavity.precision.times(before) + curvature.times(theta))

    def _factors(self, without: str | None, share: float = 1.0) -> Iterator[Gaussian]:
        """All factors; of one task's, `share` is left out."""
        for task in self.tasks:
            if task == without and share == 1:
                continue
            factor = self._factor(task)
            if factor is not None:
                yield factor.weighted(1 - share) if task == without else factor

    def _factor(self, task: str, verify: bool = True) -> Gaussian | None:
        """A task's factor; None where none of its data could be learned."""
        number = self.tasks[task].factor
        if number is None:
            return None
        factor = Gaussian.from_state(_kept(self.source).read(number, task, verify))
        growth = self.growth(factor.size)
        return factor if growth is None else growth.gaussian(factor, None)


def from_arrays(arrays: Mapping[str, npt.NDArray[Any]]) -> Gaussian:
    """A Gaussian of host arrays, copied."""
    return Gaussian.from_state({name: np.array(array) for name, array in arrays.items()})


def _kept(source: FactorSource | None) -> FactorSource:
    if source is None:
        raise RuntimeError("factors are kept in factor mode only")
    return source
