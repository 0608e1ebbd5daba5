"""How a task enters the posterior: assumed density filtering, and the debiased factors of Laplace propagation.

Source: F. Huszár, "On Quadratic Penalties in Elastic Weight Consolidation" (2017), "the note"; its equation numbers.
Errata of the note, handled here:
  1. Eq. 13's denominator reads F_T; matching the linear terms of eq. 12 gives lambda_T F_T.
  2. Eq. 12's prior term lacks the factor 1/2 that its quadratic terms need.
  3. With a prior centred at m_0, eta_0 joins the subtraction of eq. 13.
  4. Where F_T,i = 0 eq. 13 divides by zero. In natural parameters nothing divides.
Pure functions; the inputs are never changed.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from streamcl.core.gaussian import DiagonalGaussian


def task_precision(fisher_sum: Tensor, samples: int, weight: float) -> Tensor:
    """``Lambda_T = lambda_T F_T``, with F_T the mean over the task's samples of the diagonal Fisher.

    fisher_sum: [P], summed over `samples` samples at theta*. weight: lambda_T, by default ``scale * N_T``. Raises
    ValueError unless both numbers are what they must be.
    """
    if samples < 1 or not 0 <= weight < float("inf"):
        raise ValueError(f"expected samples >= 1 and a finite weight >= 0, got {samples} and {weight}")
    return fisher_sum * (weight / samples)


def assumed_density_filtering(posterior: DiagonalGaussian, curvature: Tensor, theta: Tensor) -> DiagonalGaussian:
    """The single penalty after a task (the note's eqs. 10-11): ``Lambda + Lambda_T``, anchored at theta*.

    curvature: Lambda_T [P]. theta: theta* [P], the optimum of eq. 11 just found. Anchored at the newest optimum only:
    keeping the old anchors as well would count early tasks again and again.
    """
    precision = posterior.precision + curvature
    return DiagonalGaussian(precision, precision * theta)


def multi_anchor(posterior: DiagonalGaussian, curvature: Tensor, theta: Tensor) -> DiagonalGaussian:
    """A penalty at every task's own optimum, as Kirkpatrick et al. (2017, eq. 3) describe EWC; for comparison.

    A sum of quadratics is a quadratic, so it takes two vectors here too: ``eta + Lambda_T theta*_T``. theta*_T already
    felt the earlier penalties, which are therefore counted again and again (the note, section 3).
    """
    return DiagonalGaussian(posterior.precision + curvature, posterior.shift + curvature * theta)


def decayed(posterior: DiagonalGaussian, prior: DiagonalGaussian, gamma: float) -> DiagonalGaussian:
    """The penalty that online EWC learns a task under: everything but the prior times gamma, the mean as it was.

    Schwarz et al. (2018), section 3.2; with revisits, stochastic EP with gamma = 1 - 1/T. Raises ValueError unless 0 <
    gamma <= 1.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma: expected 0 < gamma <= 1, got {gamma}")
    precision = prior.precision + gamma * (posterior.precision - prior.precision)
    return DiagonalGaussian(precision, precision * posterior.mean)


def matched_factor(cavity: DiagonalGaussian, curvature: Tensor, theta: Tensor) -> DiagonalGaussian:
    """A task's debiased factor, by matching the quadratics of eq. 12 (eq. 13 in natural parameters).

    ``Lambda_k = curvature``, ``eta_k = (Lambda_-k + Lambda_k) theta* - eta_-k``, so that cavity times factor is the
    quadratic of that precision whose minimum is theta*. cavity: the product of the prior and every other factor.
    """
    return DiagonalGaussian(curvature.clone(), (cavity.precision + curvature) * theta - cavity.shift)


def damped(old: DiagonalGaussian, new: DiagonalGaussian, damping: float) -> DiagonalGaussian:
    """``(1-d) old + d new`` in natural parameters; d = 1 is undamped. Raises ValueError unless 0 < d <= 1."""
    if not 0 < damping <= 1:
        raise ValueError(f"damping: expected 0 < d <= 1, got {damping}")
    return DiagonalGaussian(torch.lerp(old.precision, new.precision, damping), torch.lerp(old.shift, new.shift, damping))


def product(prior: DiagonalGaussian, factors: Iterable[DiagonalGaussian]) -> DiagonalGaussian:
    """The posterior as prior times all factors, summed afresh so that rounding cannot build up over revisits."""
    precision, shift = prior.precision.clone(), prior.shift.clone()
    for factor in factors:
        precision += factor.precision
        shift += factor.shift
    return DiagonalGaussian(precision, shift)


def penalty(factor: DiagonalGaussian, theta: Tensor, least: Tensor | float = 0.0) -> float:
    """``1/2 sum Lambda_t (theta - centre_t)^2``, in nats: follows task t without its data (the note, before its end).

    least: only parameters with a Lambda_t above it are counted. Where Lambda_t is next to nothing, eta_t is what training
    left unfinished, and the centre eta_t / Lambda_t lies anywhere.
    """
    held = factor.precision > least
    away = factor.precision * theta - factor.shift
    return 0.5 * float(torch.where(held, away.square() / factor.precision, 0.0).sum())


def potential(factor: DiagonalGaussian, theta: Tensor) -> float:
    """`penalty` up to its constant, ``sum 1/2 Lambda_t theta^2 - eta_t theta`` where Lambda_t > 0: divides nothing.

    Differences of it are differences of `penalty`, without a centre that a small Lambda_t would put far away.
    """
    held = factor.precision > 0
    return float(torch.where(held, (0.5 * factor.precision * theta - factor.shift) * theta, 0.0).sum())
