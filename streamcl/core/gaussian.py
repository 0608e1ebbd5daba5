"""A Gaussian over the flat parameters in natural parameters: the one object that every rule of the note works on.

A product of Gaussians adds precisions and shifts, a quotient subtracts them, and nothing ever divides: an entry
without curvature (a dead input pixel) is an ordinary zero. Frozen: every operation gives a new object and leaves its
inputs as they were.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Curvature:
    """How steep a penalty is: its largest curvature, and the sum over all parameters (the trace)."""

    largest: float
    total: float


class Penalty(Protocol):
    """A weighted penalty as training steps need it."""

    def weigh(self, weight: float) -> None:
        """From here on, `weight` times the penalty."""

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """Its gradient at theta, [P]."""

    def proximal(self, theta: Tensor, rate: float) -> None:
        """Move theta, in place, to the minimum of ``penalty + |theta' - theta|^2 / (2 rate)``."""


class Gaussian(Protocol):
    """What trainer and checkpoint ask of a posterior, whatever its curvature; they never look inside."""

    def value(self, theta: Tensor) -> Tensor:
        """The penalty at theta, in nats, up to a constant."""

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """The penalty's gradient at theta, [P]."""

    def scaled(self, weight: float) -> Penalty:
        """`weight` times this penalty."""

    def curvature(self) -> Curvature:
        """How steep the penalty is."""

    def sample(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """One draw of the parameters around a centre, [P]."""

    def state(self) -> dict[str, Tensor]:
        """All of it, as tensors by name."""


class DiagonalPenalty:
    """``weight * (1/2 sum Lambda theta^2 - sum eta theta)``; shares Lambda and eta [P] with the Gaussian it is of."""

    def __init__(self, precision: Tensor, shift: Tensor, weight: float) -> None:
        self.precision = precision
        self.shift = shift
        self._offset = torch.empty_like(shift)  # -weight * eta
        self.weigh(weight)

    def weigh(self, weight: float) -> None:
        """Another weight, in one pass over [P] and without new memory."""
        self.weight = weight
        torch.mul(self.shift, -weight, out=self._offset)

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """``weight * (Lambda * theta - eta)``, [P], in one fused multiply-add."""
        return torch.addcmul(self._offset, self.precision, theta, value=self.weight, out=out)

    def proximal(self, theta: Tensor, rate: float) -> None:
        """``theta <- (theta + r eta) / (1 + r Lambda)`` with r = rate * weight, in place: stable at any rate."""
        step = rate * self.weight
        theta.add_(self.shift, alpha=step).div_(torch.add(1.0, self.precision, alpha=step))


@dataclass(frozen=True, eq=False)
class DiagonalGaussian:
    """A Gaussian of diagonal precision over R^P: ``penalty(theta) = 1/2 sum Lambda theta^2 - sum eta theta``.

    precision: Lambda [P], not negative, in units of nats per squared parameter, summed over samples. shift: eta
    [P] = Lambda * mean. Raises ValueError unless both are finite vectors of one length.
    """

    precision: Tensor
    shift: Tensor

    def __post_init__(self) -> None:
        if self.precision.ndim != 1 or self.precision.shape != self.shift.shape:
            raise ValueError(
                f"expected precision and shift to be vectors of one length, got {list(self.precision.shape)} and "
                f"{list(self.shift.shape)}"
            )
        if not (_is_finite(self.precision) and _is_finite(self.shift)):
            raise ValueError("expected a finite precision and shift, got NaN or infinity")

    @classmethod
    def prior(cls, centre: Tensor, precision: float) -> DiagonalGaussian:
        """The prior ``N(centre, 1 / precision)``: Lambda_0 = lambda_prior, eta_0 = lambda_prior * m_0.

        centre: [P], or one number expanded to [P]; what is one number everywhere takes the memory of one.
        """
        if not precision > 0:
            raise ValueError(f"prior precision: expected a positive number, got {precision}")
        everywhere = torch.tensor(precision, dtype=centre.dtype, device=centre.device).expand_as(centre)
        return cls(everywhere, _uniform(centre, precision))

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> DiagonalGaussian:
        """What `state` gave."""
        return cls(state["precision"], state["shift"])

    def state(self) -> dict[str, Tensor]:
        """Precision and shift."""
        return {"precision": self.precision, "shift": self.shift}

    @property
    def size(self) -> int:
        """P."""
        return self.precision.numel()

    @property
    def mean(self) -> Tensor:
        """eta / Lambda, for display only; 0 where there is no precision."""
        return torch.where(self.precision > 0, self.shift / self.precision.clamp(min=torch.finfo(self.shift.dtype).tiny), 0)

    def value(self, theta: Tensor) -> Tensor:
        """``1/2 sum Lambda theta^2 - sum eta theta``, a scalar in nats, up to the constant."""
        return torch.dot(theta, 0.5 * self.precision * theta - self.shift)

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """``Lambda * theta - eta``, [P]."""
        return self.scaled(1.0).gradient(theta, out)

    def scaled(self, weight: float) -> DiagonalPenalty:
        """`weight` times this penalty, for training steps."""
        return DiagonalPenalty(self.precision, self.shift, weight)

    def curvature(self) -> Curvature:
        """The largest entry of Lambda, and their sum."""
        return Curvature(float(self.precision.max()), float(self.precision.sum()))

    def times(self, factor: DiagonalGaussian) -> DiagonalGaussian:
        """The product with a factor."""
        return DiagonalGaussian(self.precision + factor.precision, self.shift + factor.shift)

    def without(self, factor: DiagonalGaussian) -> DiagonalGaussian:
        """The cavity: this product without one of its factors. Rounding may leave no precision below zero."""
        precision = (self.precision - factor.precision).clamp(min=0)
        return DiagonalGaussian(precision, self.shift - factor.shift)

    def sample(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from ``N(centre, 1 / Lambda)``; an entry without precision stays at its centre."""
        noise = torch.randn(centre.shape, generator=generator, dtype=centre.dtype, device=centre.device)
        deviation = torch.where(
            self.precision > 0, self.precision.clamp(min=torch.finfo(self.precision.dtype).tiny).rsqrt(), 0
        ).to(centre.dtype)
        return centre + noise * deviation

    def to(self, device: torch.device, dtype: torch.dtype) -> DiagonalGaussian:
        """A working copy for training; the master stays in float64 on the host."""
        return DiagonalGaussian(self.precision.to(device, dtype), self.shift.to(device, dtype))


def _uniform(centre: Tensor, factor: float) -> Tensor:
    """``centre * factor``, one number expanded where the centre is."""
    if centre.stride() == (0,):
        return (centre[:1] * factor).expand_as(centre)
    return centre * factor


def _is_finite(vector: Tensor) -> bool:
    """Whether every entry is: so it is if their sum is, which takes a fraction of the time to find."""
    return math.isfinite(float(vector.sum())) or bool(torch.isfinite(vector).all())
