"""Gaussian and consolidation rules: one contract for all, and the note's equations against dense NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamcl.core.consolidation import (
    assumed_density_filtering,
    damped,
    matched_factor,
    penalty,
    product,
    task_precision,
)
from streamcl.core.gaussian import DiagonalGaussian

D, TASKS, N, NOISE, PRIOR = 6, 5, 50, 0.5, 0.3


def vector(seed: int, size: int = D) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size))


def gaussian(seed: int) -> DiagonalGaussian:
    return DiagonalGaussian(vector(seed).square(), vector(seed + 100))


RULES: dict[str, Callable[[DiagonalGaussian, torch.Tensor, torch.Tensor], DiagonalGaussian]] = {
    "assumed density filtering": assumed_density_filtering,
    "matched factor": matched_factor,
    "damped": lambda g, c, t: damped(g, DiagonalGaussian(c, t), 0.5),
    "product": lambda g, c, t: product(g, [DiagonalGaussian(c, t), g]),
    "times": lambda g, c, t: g.times(DiagonalGaussian(c, t)),
    "without": lambda g, c, t: g.without(DiagonalGaussian(c, t)),
}


@pytest.mark.parametrize("rule", RULES)
def test_a_rule_leaves_its_inputs_and_gives_no_negative_precision(rule: str) -> None:
    inputs = gaussian(1), vector(2).square(), vector(3)
    before = [inputs[0].precision.clone(), inputs[0].shift.clone(), inputs[1].clone(), inputs[2].clone()]
    result = RULES[rule](*inputs)
    result.precision.add_(1.0), result.shift.add_(1.0)
    after = [inputs[0].precision, inputs[0].shift, inputs[1], inputs[2]]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert (result.precision >= 1.0).all()


@pytest.mark.parametrize("rule", RULES)
def test_what_a_rule_gives_survives_its_state(rule: str) -> None:
    result = RULES[rule](gaussian(1), vector(2).square(), vector(3))
    again = DiagonalGaussian.from_state(result.state())
    assert torch.equal(again.precision, result.precision)
    assert torch.equal(again.shift, result.shift)


def test_the_gradient_is_that_of_the_value() -> None:
    g, theta = gaussian(1), vector(5).requires_grad_()
    (gradient,) = torch.autograd.grad(g.value(theta), theta)
    torch.testing.assert_close(g.gradient(theta.detach()), gradient)
    out = torch.empty(D, dtype=torch.float64)
    assert g.gradient(theta.detach(), out=out) is out
    torch.testing.assert_close(out, gradient)


def test_a_weighted_penalty_is_the_penalty_times_its_weight() -> None:
    g, theta = gaussian(1), vector(5)
    torch.testing.assert_close(g.scaled(0.3).gradient(theta), 0.3 * g.gradient(theta))
    moved = theta.clone()
    g.scaled(0.3).proximal(moved, 0.7)
    torch.testing.assert_close(0.3 * g.gradient(moved), (theta - moved) / 0.7)


@given(st.integers(0, 1000), st.floats(0.01, 1.0))
def test_a_factor_replaced_by_itself_changes_nothing(seed: int, damping: float) -> None:
    prior, factors = (
        DiagonalGaussian.prior(torch.zeros(D, dtype=torch.float64), PRIOR),
        [gaussian(seed), gaussian(seed + 1)],
    )
    replaced = [damped(factors[0], factors[0], damping), factors[1]]
    one, other = product(prior, factors), product(prior, replaced)
    torch.testing.assert_close(other.precision, one.precision, rtol=1e-12, atol=0)
    torch.testing.assert_close(other.shift, one.shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("centre", [0.0, 1.5])
def test_the_factors_sum_to_the_single_penalty_at_every_theta(centre: float) -> None:
    """Eq. 12, with zero Fisher entries, any weights and a prior centred anywhere."""
    prior = DiagonalGaussian.prior(torch.full((D,), centre, dtype=torch.float64), PRIOR)
    single, factors = prior, []
    for number in range(TASKS):
        curvature, theta = vector(number).square() * (number + 0.5), vector(number + 50)
        curvature[number] = 0.0
        factors.append(matched_factor(product(prior, factors), curvature, theta))
        single = assumed_density_filtering(single, curvature, theta)
    total = product(prior, factors)
    for seed in range(20):
        theta = vector(seed + 500) * 10
        torch.testing.assert_close(total.gradient(theta), single.gradient(theta), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(total.value(theta), single.value(theta), rtol=1e-10, atol=1e-9)


# -- the linear-Gaussian model, where every step has a closed form ------------------------------------------------------


class Linear:
    """Five regressions whose optimum under any diagonal penalty is one linear system."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.x = [rng.normal(size=(N, D)) * rng.uniform(0.3, 2, D) for _ in range(TASKS)]
        self.y = [x @ rng.normal(size=D) + rng.normal(size=N) * NOISE**0.5 for x in self.x]
        self.prior = DiagonalGaussian.prior(torch.zeros(D, dtype=torch.float64), PRIOR)

    def optimum(self, task: int, penalty: DiagonalGaussian) -> torch.Tensor:
        x, y = self.x[task], self.y[task]
        matrix = x.T @ x / NOISE + np.diag(penalty.precision.numpy())
        return torch.from_numpy(np.linalg.solve(matrix, x.T @ y / NOISE + penalty.shift.numpy()))

    def curvature(self, task: int) -> torch.Tensor:
        return task_precision(torch.from_numpy((self.x[task] ** 2).sum(0) / NOISE), N, N)

    def joint_mean(self) -> np.ndarray:
        x, y = np.concatenate(self.x), np.concatenate(self.y)
        return np.linalg.solve(x.T @ x / NOISE + PRIOR * np.eye(D), x.T @ y / NOISE)

    def single_sweep(self) -> list[DiagonalGaussian]:
        factors: list[DiagonalGaussian] = []
        for task in range(TASKS):
            cavity = product(self.prior, factors)
            factors.append(matched_factor(cavity, self.curvature(task), self.optimum(task, cavity)))
        return factors

    def sweep(self, factors: list[DiagonalGaussian], order: list[int], damping: float) -> float:
        """Revisit every task once; returns the distance of the posterior mean from joint training."""
        for task in order:
            cavity = product(self.prior, [f for k, f in enumerate(factors) if k != task])
            new = matched_factor(cavity, self.curvature(task), self.optimum(task, cavity))
            factors[task] = damped(factors[task], new, damping)
        return float(np.abs(product(self.prior, factors).mean.numpy() - self.joint_mean()).max())


@pytest.mark.parametrize(("damping", "sweeps"), [(1.0, 10), (0.5, 60)])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 1, 4, 0, 2]])
def test_repeated_revisits_reach_joint_training(damping: float, sweeps: int, order: list[int]) -> None:
    model = Linear()
    factors = model.single_sweep()
    errors = [model.sweep(factors, order, damping) for _ in range(sweeps)]
    assert errors[-1] < 1e-10 < errors[0]


def test_the_penalty_of_a_factor_is_zero_at_its_centre_and_never_negative() -> None:
    factor = DiagonalGaussian(torch.tensor([2.0, 0.0, 3.0]), torch.tensor([4.0, 0.0, -3.0]))
    assert penalty(factor, torch.tensor([2.0, 99.0, -1.0])) == 0
    assert penalty(factor, torch.tensor([3.0, 99.0, -1.0])) == 1.0


def test_parameters_that_a_task_hardly_determines_do_not_count_in_its_penalty() -> None:
    factor = DiagonalGaussian(torch.tensor([2.0, 1e-20]), torch.tensor([4.0, 1e-2]))  # whose centre would be 1e18
    assert penalty(factor, torch.tensor([3.0, 0.0])) > 1e10
    assert penalty(factor, torch.tensor([3.0, 0.0]), least=1e-3) == 1.0


def test_samples_have_the_posteriors_moments() -> None:
    g = DiagonalGaussian(torch.tensor([4.0, 0.25, 0.0], dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
    centre = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack([g.sample(centre, generator) for _ in range(4000)])
    torch.testing.assert_close(draws.mean(0), centre, atol=0.1, rtol=0)
    torch.testing.assert_close(draws.std(0), torch.tensor([0.5, 2.0, 0.0], dtype=torch.float64), atol=0.1, rtol=0)


@pytest.mark.parametrize(
    ("precision", "shift"),
    [([1.0, 2.0], [1.0]), ([float("nan")], [0.0]), ([1.0], [float("inf")]), ([[1.0]], [[1.0]])],
)
def test_what_is_no_gaussian_is_refused(precision: list[float], shift: list[float]) -> None:
    with pytest.raises(ValueError, match="expected"):
        DiagonalGaussian(torch.tensor(precision), torch.tensor(shift))


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, float("nan")])
def test_damping_is_between_zero_and_one(bad: float) -> None:
    with pytest.raises(ValueError, match="damping"):
        damped(gaussian(1), gaussian(2), bad)


@pytest.mark.parametrize(("samples", "weight"), [(0, 1.0), (1, -1.0), (1, float("nan")), (1, float("inf"))])
def test_a_task_has_samples_and_a_finite_weight(samples: int, weight: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        task_precision(torch.ones(2), samples, weight)
