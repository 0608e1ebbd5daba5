"""A Gaussian over the flat parameters in natural parameters: the one object that every rule of the note works on.

    penalty(theta) = 1/2 theta Lambda theta - eta theta + const        Lambda: a `Precision` of any kind, eta = Lambda mean

A product of Gaussians adds precisions and shifts, a quotient subtracts them, and nothing ever divides: a direction without
curvature (a dead input pixel) is an ordinary zero. Frozen: every operation gives a new object and leaves its inputs as they
were. The same lines for every kind of precision.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.core.basis import Basis
from streamcl.core.precision import Curvature, Layered, Penalty, Precision, is_finite, of_kind
from streamcl.core.stored import INPUTS, KIND, OPTIMUM, SHIFT, TEMPERING, kind_of, named


@dataclass(frozen=True, eq=False, slots=True)
class Gaussian:
    """precision: Lambda over R^P, in nats per squared parameter, summed over samples. shift: eta [P] = Lambda * mean.
    tempering: how wide predictions are, the sums of `core.tempering`, where they are known. optimum: of a factor, the
    parameters [P] at which its curvature was taken; of a total, the mean of its tasks'. inputs: the second moments of the
    rows behind it, summed with their weights, of real targets over the noise's variance (`core.surrogates`). Any operation
    loses all three.

    Raises ValueError unless both are finite and of one size.
    """

    precision: Precision
    shift: Tensor
    tempering: Tensor | None = None
    optimum: Tensor | None = None
    inputs: Tensor | None = None

    def __post_init__(self) -> None:
        if self.shift.shape != (self.precision.size,):
            raise ValueError(
                f"expected precision and shift over the same parameters, got {self.precision.size} and "
                f"{list(self.shift.shape)}"
            )
        if not (self.precision.is_finite() and is_finite(self.shift)):
            raise ValueError("expected a finite precision and shift, got NaN or infinity")

    @classmethod
    def prior(cls, centre: Tensor, precision: float, kind: str = "diagonal") -> Gaussian:
        """The prior ``N(centre, 1 / precision)``: Lambda_0 = lambda_prior, eta_0 = lambda_prior * m_0.

        centre: [P], or one number expanded to [P]; what is one number everywhere takes the memory of one, but in a full
        precision. Raises ValueError unless the precision is positive, UnknownFormat for a kind that is not known.
        """
        if not precision > 0:
            raise ValueError(f"prior precision: expected a positive number, got {precision}")
        return cls(of_kind(kind).isotropic(precision, centre), _uniform(centre, precision))

    @classmethod
    def anchored(cls, precision: Precision, theta: Tensor) -> Gaussian:
        """The one of this precision whose mode is theta [P]: ``eta = Lambda theta``."""
        return cls(precision, precision.times(theta))

    @classmethod
    def from_state(cls, state: Mapping[str, npt.NDArray[Any]]) -> Gaussian:
        """What `state` gave, copied. Raises UnknownFormat.

        A state without a kind is a diagonal: so were all before there were kinds.
        """
        tensors = {name: torch.tensor(a) for name, a in state.items()}
        beside = (tensors.get(name) for name in (TEMPERING, OPTIMUM, INPUTS))
        return cls(of_kind(kind_of(state)).from_state(tensors), tensors[SHIFT], *beside)

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """All of it as host arrays by name, its kind among them."""
        tensors = {**self.precision.state(), SHIFT: self.shift}
        beside = {TEMPERING: self.tempering, OPTIMUM: self.optimum, INPUTS: self.inputs}
        tensors |= {name: tensor for name, tensor in beside.items() if tensor is not None}
        return {KIND: named(self.precision.kind), **{name: tensor.cpu().numpy() for name, tensor in tensors.items()}}

    @property
    def size(self) -> int:
        """P."""
        return self.precision.size

    @property
    def basis(self) -> Basis | None:
        """Of its precision, where that has one."""
        return self.precision.basis if isinstance(self.precision, Layered) else None

    @property
    def mean(self) -> Tensor:
        """``Lambda^-1 eta``, [P], for display only; 0 in directions without precision."""
        return self.precision.mean(self.shift)

    # -- as a penalty ----------------------------------------------------------------------------------------------

    def value(self, theta: Tensor) -> Tensor:
        """``1/2 theta Lambda theta - eta theta``, a scalar in nats, up to the constant."""
        return torch.dot(theta, 0.5 * self.precision.times(theta) - self.shift)

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """``Lambda theta - eta``, [P]."""
        return self.scaled(1.0).gradient(theta, out)

    def scaled(self, weight: float) -> Penalty:
        """`weight` times this penalty, for training steps."""
        return self.precision.penalty(self.shift, weight)

    def curvature(self) -> Curvature:
        """How steep the penalty is."""
        return self.precision.curvature()

    def penalty(self, theta: Tensor, least: float = 0.0) -> float:
        """``1/2 (theta - centre) Lambda (theta - centre)``, in nats: follows a factor's task without its data (the note,
        before its end).

        least: only directions with a precision above it are counted. Where it is next to nothing, eta is what training
        left unfinished, and the centre lies anywhere.
        """
        return self.precision.distance(theta, self.shift, least)

    def away(self, theta: Tensor) -> float:
        """``1/2 (theta - optimum) Lambda (theta - optimum)``, in nats; of a factor whose optimum is known."""
        if self.optimum is None:
            raise ValueError("expected a factor with the optimum at which it was taken")
        moved = theta - self.optimum.to(theta.dtype)
        return 0.5 * float(moved @ self.precision.times(moved))

    def potential(self, theta: Tensor) -> float:
        """`penalty` up to its constant, where there is precision: divides nothing.

        Differences of it are differences of `penalty`, without a centre that a small precision would put far away.
        """
        return self.precision.potential(theta, self.shift)

    # -- products and quotients --------------------------------------------------------------------------------------

    def times(self, factor: Gaussian) -> Gaussian:
        """The product with a factor."""
        return Gaussian(self.precision.plus(factor.precision), self.shift + factor.shift)

    def without(self, factor: Gaussian) -> Gaussian:
        """The cavity: this product without one of its factors. Rounding may leave no precision below zero."""
        return Gaussian(self.precision.less(factor.precision).clipped(), self.shift - factor.shift)

    def product(self, factors: Iterable[Gaussian]) -> Gaussian:
        """With all factors, summed afresh so that rounding cannot build up over revisits; holds one of them at a time."""
        precision, shift = self.precision.copy(), self.shift.clone()
        for factor in factors:
            precision.add_(factor.precision)
            shift += factor.shift
        return Gaussian(precision, shift)

    def damped(self, new: Gaussian, damping: float) -> Gaussian:
        """``(1-d) self + d new`` in natural parameters; d = 1 is undamped. Raises ValueError unless 0 < d <= 1."""
        if not 0 < damping <= 1:
            raise ValueError(f"damping: expected 0 < d <= 1, got {damping}")
        return Gaussian(self.precision.towards(new.precision, damping), torch.lerp(self.shift, new.shift, damping))

    # -- elsewhere ---------------------------------------------------------------------------------------------------

    def sample(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from ``N(centre, 1 / Lambda)``, [P]; at its centre in directions without precision."""
        return self.precision.sample(centre, generator)

    def within(self, basis: Basis) -> Gaussian:
        """With its precision in another basis (`Layered.within`); the shift is the parameters' own in any."""
        return Gaussian(self.precision.within(basis), self.shift)

    def beside(self, other: Gaussian) -> Gaussian:
        """In the other's basis, where that has one."""
        return self if other.basis is None else self.within(other.basis)

    def weighted(self, weight: float) -> Gaussian:
        """The power `weight` of it."""
        return Gaussian(self.precision.weighted(weight), self.shift * weight)

    def to(self, device: torch.device, dtype: torch.dtype) -> Gaussian:
        """A working copy for training; the master stays in float64 on the host."""
        return Gaussian(self.precision.to(device, dtype), self.shift.to(device, dtype))


def _uniform(centre: Tensor, factor: float) -> Tensor:
    """``centre * factor``, one number expanded where the centre is."""
    if centre.stride() == (0,):
        return (centre[:1] * factor).expand_as(centre)
    return centre * factor
