"""How a task enters the posterior: assumed density filtering, and the debiased factors of Laplace propagation.

Source: F. Huszár, "On Quadratic Penalties in Elastic Weight Consolidation" (2017), "the note"; its equation numbers.
Errata of the note, handled here:
  1. Eq. 13's denominator reads F_T; matching the linear terms of eq. 12 gives lambda_T F_T.
  2. Eq. 12's prior term lacks the factor 1/2 that its quadratic terms need.
  3. With a prior centred at m_0, eta_0 joins the subtraction of eq. 13.
  4. Where F_T,i = 0 eq. 13 divides by zero. In natural parameters nothing divides.
Pure functions, the same for every kind of curvature; the inputs are never changed.
"""

from __future__ import annotations

from torch import Tensor

from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Precision


def task_precision(fisher: Precision, samples: int, weight: float) -> Precision:
    """``Lambda_T = lambda_T F_T``, with F_T the mean over the task's samples of the Fisher.

    fisher: summed over `samples` samples at theta*. weight: lambda_T, by default ``scale * N_T``. Raises ValueError unless
    there are samples and the weight is finite and not negative.
    """
    if samples < 1 or not 0 <= weight < float("inf"):
        raise ValueError(f"expected samples >= 1 and a finite weight >= 0, got {samples} and {weight}")
    return fisher.weighted(weight / samples)


def assumed_density_filtering(posterior: Gaussian, curvature: Precision, theta: Tensor) -> Gaussian:
    """The single penalty after a task (the note's eqs. 10-11): ``Lambda + Lambda_T``, anchored at theta*.

    curvature: Lambda_T. theta: theta* [P], the optimum of eq. 11 just found. Anchored at the newest optimum only: keeping
    the old anchors as well would count early tasks again and again.
    """
    return Gaussian.anchored(posterior.precision.plus(curvature), theta)


def multi_anchor(posterior: Gaussian, curvature: Precision, theta: Tensor) -> Gaussian:
    """A penalty at every task's own optimum, as Kirkpatrick et al. (2017, eq. 3) describe EWC; for comparison.

    A sum of quadratics is a quadratic, so it takes no more memory: ``eta + Lambda_T theta*_T``. theta*_T already felt the
    earlier penalties, which are therefore counted again and again (the note, section 3).
    """
    return posterior.times(Gaussian.anchored(curvature, theta))


def decayed(posterior: Gaussian, prior: Gaussian, gamma: float) -> Gaussian:
    """The penalty that online EWC learns a task under: everything but the prior times gamma, the mean as it was.

    Schwarz et al. (2018), section 3.2; with revisits, stochastic EP with gamma = 1 - 1/T. Raises ValueError unless 0 <
    gamma <= 1.
    """
    if not 0 < gamma <= 1:
        raise ValueError(f"gamma: expected 0 < gamma <= 1, got {gamma}")
    learned = posterior.precision.less(prior.precision)
    return Gaussian.anchored(prior.precision.plus(learned.weighted(gamma)), posterior.mean)


def matched_factor(cavity: Gaussian, curvature: Precision, theta: Tensor) -> Gaussian:
    """A task's debiased factor, by matching the quadratics of eq. 12 (eq. 13 in natural parameters).

    ``Lambda_k = curvature``, ``eta_k = (Lambda_-k + Lambda_k) theta* - eta_-k``, so that cavity times factor is the
    quadratic of that precision whose minimum is theta*. cavity: the product of the prior and every other factor.
    """
    return Gaussian(curvature.copy(), cavity.precision.plus(curvature).times(theta) - cavity.shift)
