"""The note's equations, for every kind of curvature: against each other, and against joint training in closed form."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from streamcl.core.consolidation import (
    assumed_density_filtering,
    decayed,
    matched_factor,
    task_precision,
)
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import KINDS, Precision, observed

D, TASKS, N, NOISE, PRIOR = 6, 5, 50, 0.5, 0.3
each_kind = pytest.mark.parametrize("kind", KINDS)


def vector(seed: int, size: int = D) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size))


def dense(precision: Precision) -> np.ndarray:
    return torch.stack([precision.times(unit) for unit in torch.eye(D, dtype=torch.float64)]).numpy()


@each_kind
@pytest.mark.parametrize("centre", [0.0, 1.5])
def test_the_factors_sum_to_the_single_penalty_at_every_theta(kind: str, centre: float) -> None:
    """Eq. 12, with zero Fisher entries, any weights and a prior centred anywhere."""
    prior = Gaussian.prior(torch.full((D,), centre, dtype=torch.float64), PRIOR, kind)
    single, factors = prior, []
    for number in range(TASKS):
        squares, theta = vector(number).square() * (number + 0.5), vector(number + 50)
        squares[number] = 0.0
        curvature = observed(squares if kind == "diagonal" else torch.outer(squares, squares))
        factors.append(matched_factor(prior.product(factors), curvature, theta))
        single = assumed_density_filtering(single, curvature, theta)
    total = prior.product(factors)
    for seed in range(20):
        theta = vector(seed + 500) * 10
        torch.testing.assert_close(total.gradient(theta), single.gradient(theta), rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(total.value(theta), single.value(theta), rtol=1e-10, atol=1e-9)


# -- the linear-Gaussian model, where every step has a closed form ------------------------------------------------------


class Linear:
    """Five regressions whose optimum under any penalty is one linear system."""

    def __init__(self, kind: str) -> None:
        rng = np.random.default_rng(0)
        self.kind = kind
        self.x = [rng.normal(size=(N, D)) * rng.uniform(0.3, 2, D) for _ in range(TASKS)]
        self.y = [x @ rng.normal(size=D) + rng.normal(size=N) * NOISE**0.5 for x in self.x]
        self.prior = Gaussian.prior(torch.zeros(D, dtype=torch.float64), PRIOR, kind)

    def optimum(self, task: int, penalty: Gaussian) -> torch.Tensor:
        x, y = self.x[task], self.y[task]
        matrix = x.T @ x / NOISE + dense(penalty.precision)
        return torch.from_numpy(np.linalg.solve(matrix, x.T @ y / NOISE + penalty.shift.numpy()))

    def curvature(self, task: int) -> Precision:
        x = self.x[task]
        sums = (x**2).sum(0) if self.kind == "diagonal" else x.T @ x
        return task_precision(observed(torch.from_numpy(sums / NOISE)), N, N)

    def joint_mean(self) -> np.ndarray:
        x, y = np.concatenate(self.x), np.concatenate(self.y)
        return np.linalg.solve(x.T @ x / NOISE + PRIOR * np.eye(D), x.T @ y / NOISE)

    def error(self, posterior: Gaussian) -> float:
        """The distance of the posterior mean from joint training."""
        return float(np.abs(posterior.mean.numpy() - self.joint_mean()).max())

    def single_sweep(self) -> list[Gaussian]:
        factors: list[Gaussian] = []
        for task in range(TASKS):
            cavity = self.prior.product(factors)
            factors.append(matched_factor(cavity, self.curvature(task), self.optimum(task, cavity)))
        return factors

    def sweep(self, factors: list[Gaussian], order: list[int], damping: float) -> float:
        """Revisit every task once; returns the error after it."""
        for task in order:
            cavity = self.prior.product(f for k, f in enumerate(factors) if k != task)
            new = matched_factor(cavity, self.curvature(task), self.optimum(task, cavity))
            factors[task] = factors[task].damped(new, damping)
        return self.error(self.prior.product(factors))


@pytest.mark.parametrize(("damping", "sweeps"), [(1.0, 10), (0.5, 60)])
@pytest.mark.parametrize("order", [[0, 1, 2, 3, 4], [3, 1, 4, 0, 2]])
def test_repeated_revisits_reach_joint_training(damping: float, sweeps: int, order: list[int]) -> None:
    model = Linear("diagonal")
    factors = model.single_sweep()
    errors = [model.sweep(factors, order, damping) for _ in range(sweeps)]
    assert errors[-1] < 1e-10 < errors[0]


def test_one_pass_under_full_precisions_is_joint_training_and_revisits_leave_it_there() -> None:
    model = Linear("full")
    factors = model.single_sweep()
    assert model.error(model.prior.product(factors)) < 1e-12
    assert model.sweep(factors, [3, 1, 4, 0, 2], 0.5) < 1e-12


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, float("nan")])
def test_damping_and_gamma_are_between_zero_and_one(bad: float) -> None:
    one = Gaussian(observed(vector(1).square()), vector(2))
    with pytest.raises(ValueError, match="damping"):
        one.damped(one, bad)
    with pytest.raises(ValueError, match="gamma"):
        decayed(one, one, bad)


@pytest.mark.parametrize(("samples", "weight"), [(0, 1.0), (1, -1.0), (1, float("nan")), (1, float("inf"))])
def test_a_task_has_samples_and_a_finite_weight(samples: int, weight: float) -> None:
    with pytest.raises(ValueError, match="expected"):
        task_precision(observed(torch.ones(2)), samples, weight)


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan")])
def test_a_prior_has_a_positive_precision(bad: float) -> None:
    with pytest.raises(ValueError, match="prior precision"):
        Gaussian.prior(torch.zeros(2), bad)
