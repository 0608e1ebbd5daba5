"""The neighbours: what each does to a gradient, and what it keeps of a task. Written for this benchmark, after the papers.

Every rule is given the gradient of the task's mean NLL, and leaves in its place the one that the optimiser gets. All keep a
constant amount, and no rows. Conventions are streamcl's: sums over a task's rows, prior precision 1; strength multiplies
what a task adds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from streamcl.bench.neighbours.kronecker import Kronecker, factors, input_moments, layers_of, nearest
from streamcl.core.likelihood import Cotangents

PRIOR = 1.0
MOMENTUM = 0.9
DAMPING = 0.1  # SI's xi, as in the paper's experiments and in van de Ven's code
Merge = Callable[[Kronecker, Kronecker], Kronecker]
Source = Callable[[nn.Module, Tensor, Tensor], list[Kronecker]]


class Rule(Protocol):
    """One method on one network."""

    def optimiser(self, rate: float) -> torch.optim.Optimizer:
        """A new one, for a new task."""

    def adjust(self, rows: int) -> None:
        """Make the gradient of the mean NLL of a task of so many rows the one to step along."""

    def stepped(self) -> None:
        """A step was taken."""

    def consolidate(self, x: Tensor, y: Tensor) -> None:
        """A task ends, with its rows."""


def own_factors(likelihood: Cotangents) -> Source:
    """Kronecker factors from this benchmark's own code."""
    return lambda module, x, y: factors(module, likelihood, x)


class KroneckerPenalty:
    """A quadratic penalty of Kronecker products, anchored at the newest optimum (Ritter et al. 2018).

    merge: how two tasks' products become one. ridge: whether the prior is kept beside them; otherwise it is merged too.
    """

    def __init__(self, module: nn.Module, source: Source, strength: float, merge: Merge, ridge: bool) -> None:
        self.module, self.strength = module, strength
        self._source, self._merge = source, merge
        self.layers = layers_of(module)
        self._prior = PRIOR if ridge else 0.0
        self.anchors = [torch.zeros_like(layer.matrix()) for layer in self.layers]
        self.products: list[Kronecker] = [] if ridge else [Kronecker.ridge(layer, PRIOR) for layer in self.layers]

    def optimiser(self, rate: float) -> torch.optim.Optimizer:
        """Adam."""
        return torch.optim.Adam(self.module.parameters(), lr=rate)

    def pull(self, number: int) -> Tensor:
        """The penalty's gradient by a layer's matrix, summed over rows: Lambda (W - W*)."""
        moved = self.layers[number].matrix() - self.anchors[number]
        pull = self._prior * moved
        return pull + self.products[number].times(moved) if self.products else pull

    def adjust(self, rows: int) -> None:
        """NLL / N + penalty / N, as eq. 11 divided by N."""
        for number, layer in enumerate(self.layers):
            layer.set_gradient(layer.gradient() + self.pull(number) / rows)

    def stepped(self) -> None:
        """Nothing is counted."""

    def consolidate(self, x: Tensor, y: Tensor) -> None:
        """The task's products are merged with those before."""
        new = [each.weighted(self.strength) for each in self._source(self.module, x, y)]
        self.products = list(map(self._merge, self.products, new)) if self.products else new
        self.anchors = [layer.matrix() for layer in self.layers]


class NaturalContinual(KroneckerPenalty):
    """NCL: the step is preconditioned by the inverse of the past's precision (Kao et al. 2021, eq. 8; van de Ven's code).

    ``Lambda^-1 grad NLL + (W - W*) / (strength N)``, the mean NLL's gradient, and Lambda so that before the first task it
    is the identity.
    """

    def __init__(self, module: nn.Module, source: Source, strength: float) -> None:
        super().__init__(module, source, strength, nearest, ridge=False)
        self._inverses = [product.inverse() for product in self.products]

    def optimiser(self, rate: float) -> torch.optim.Optimizer:
        """SGD with momentum; Adam would undo the preconditioning."""
        return torch.optim.SGD(self.module.parameters(), lr=rate, momentum=MOMENTUM)

    def adjust(self, rows: int) -> None:
        """Along the flat directions of the past."""
        for layer, anchor, inverse in zip(self.layers, self.anchors, self._inverses, strict=True):
            moved = layer.matrix() - anchor
            layer.set_gradient(inverse.times(layer.gradient()) + moved / (self.strength * rows))

    def consolidate(self, x: Tensor, y: Tensor) -> None:
        """And the inverse is taken once a task."""
        super().consolidate(x, y)
        self._inverses = [product.inverse() for product in self.products]


class OrthogonalModification:
    """OWM: gradients are projected off the space of earlier tasks' inputs (Zeng et al. 2019), as in van de Ven's code.

    ``grad (I + A / alpha)^-1``, A the mean of the earlier tasks' ``mean a a^T``, in every layer, from the second task on.
    """

    def __init__(self, module: nn.Module, alpha: float) -> None:
        self.module, self.alpha = module, alpha
        self.layers = layers_of(module)
        self._moments: list[Tensor] = []
        self._projections: list[Tensor] = []
        self._tasks = 0

    def optimiser(self, rate: float) -> torch.optim.Optimizer:
        """SGD with momentum, as in the paper; Adam's steps would leave the space projected on."""
        return torch.optim.SGD(self.module.parameters(), lr=rate, momentum=MOMENTUM)

    def adjust(self, rows: int) -> None:
        """Project."""
        if self._projections:
            for layer, projection in zip(self.layers, self._projections, strict=True):
                layer.set_gradient(layer.gradient() @ projection)

    def stepped(self) -> None:
        """Nothing is counted."""

    def consolidate(self, x: Tensor, y: Tensor) -> None:
        """The task's inputs join the space."""
        new = input_moments(self.module, x)
        self._tasks += 1
        before = self._moments or new
        self._moments = [torch.lerp(old, each, 1 / self._tasks) for old, each in zip(before, new, strict=True)]
        self._projections = [self._projection(each) for each in self._moments]

    def _projection(self, moments: Tensor) -> Tensor:
        wide = moments.double() / self.alpha
        found: Tensor = torch.linalg.inv(wide + torch.eye(len(wide), dtype=wide.dtype))
        return found.to(moments.dtype)


class SynapticIntelligence:
    """SI: a parameter's importance is its share of the fall of the loss along the path (Zenke et al. 2017, eqs. 3 to 5).

    ``c sum Omega (theta - theta*)^2``, Omega growing by ``max(omega, 0) / (Delta^2 + xi)`` with each task. Avalanche's
    plugin caps every importance at 0.001, which the paper does not, and so is not used.
    """

    def __init__(self, module: nn.Module, strength: float) -> None:
        self.module, self.strength = module, strength
        self._parameters = list(module.parameters())
        self._start = self._values()
        self._anchors, self._before = self._start, self._start
        self.importance = [torch.zeros_like(p) for p in self._start]
        self.contributions = [torch.zeros_like(p) for p in self._start]
        self._gradients: list[Tensor] = []

    def _values(self) -> list[Tensor]:
        return [p.detach().clone() for p in self._parameters]

    def optimiser(self, rate: float) -> torch.optim.Optimizer:
        """Adam, begun anew with each task, as in the paper."""
        return torch.optim.Adam(self._parameters, lr=rate)

    def adjust(self, rows: int) -> None:
        """The path counts the gradient of the task's loss alone; the step takes the surrogate's as well."""
        self._before, self._gradients = self._values(), []
        for p, anchor, importance in zip(self._parameters, self._anchors, self.importance, strict=True):
            assert p.grad is not None
            self._gradients.append(p.grad.clone())
            p.grad += 2 * self.strength * importance * (p.detach() - anchor)

    def stepped(self) -> None:
        """``omega -= grad * step``."""
        for total, gradient, p, before in zip(
            self.contributions, self._gradients, self._parameters, self._before, strict=True
        ):
            total -= gradient * (p.detach() - before)

    def consolidate(self, x: Tensor, y: Tensor) -> None:
        """Contributions become importance, and are counted anew."""
        now = self._values()
        for importance, total, end, start in zip(self.importance, self.contributions, now, self._start, strict=True):
            importance += total.clamp(min=0) / ((end - start).square() + DAMPING)
            total.zero_()
        self._start = self._anchors = now
