"""The note's equations, for every kind of curvature: against each other, and against joint training in closed form."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch

from streamcl import config
from streamcl.core import stored
from streamcl.core.basis import Basis, Matrix
from streamcl.core.consolidation import (
    assumed_density_filtering,
    decayed,
    matched_factor,
    task_precision,
)
from streamcl.core.gaussian import Gaussian
from streamcl.core.layout import Layout
from streamcl.core.precision import KINDS, Block, Layered, Precision, observed
from streamcl.entries import Consolidated
from streamcl.learning.posterior import Posterior

D, TASKS, N, NOISE, PRIOR = 6, 5, 50, 0.5, 0.3
Mode = Literal["single", "factors"]
WEIGHT = Layout.of([("w", (1, D))]).parts[0]
each_kind = pytest.mark.parametrize("kind", KINDS)


def vector(seed: int, size: int = D) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=size))


def dense(precision: Precision) -> np.ndarray:
    return torch.stack([precision.times(unit) for unit in torch.eye(D, dtype=torch.float64)]).numpy()


def precision(kind: str, squares: torch.Tensor) -> Precision:
    """A layered one as the sum of a table that is not turned and of a block."""
    if kind != "layered":
        return observed(squares if kind == "diagonal" else torch.outer(squares, squares))
    parts = Layout.of([("a", (2, 2)), ("b", (D - 4,))]).parts
    block = Matrix.stack(parts[1:])
    here = Basis.unturned(D, [Matrix.of(parts[0]), block])
    values = torch.cat([squares[:4], torch.zeros(D - 4, dtype=torch.float64)])
    return Layered(here, values, (Block(block, torch.outer(squares[4:], squares[4:])),))


@each_kind
@pytest.mark.parametrize("centre", [0.0, 1.5])
def test_the_factors_sum_to_the_single_penalty_at_every_theta(kind: str, centre: float) -> None:
    """Eq. 12, with zero Fisher entries, any weights and a prior centred anywhere."""
    prior = Gaussian.prior(torch.full((D,), centre, dtype=torch.float64), PRIOR, kind)
    prior = prior.beside(Gaussian(precision(kind, vector(0)), vector(0)))
    single, factors = prior, []
    for number in range(TASKS):
        squares, theta = vector(number).square() * (number + 0.5), vector(number + 50)
        squares[number] = 0.0
        curvature = precision(kind, squares)
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

    def optimum(self, task: int, penalty: Gaussian, share: float = 1.0) -> torch.Tensor:
        x, y = self.x[task], self.y[task]
        matrix = share * x.T @ x / NOISE + dense(penalty.precision)
        return torch.from_numpy(np.linalg.solve(matrix, share * x.T @ y / NOISE + penalty.shift.numpy()))

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


# -- the same through the posterior that the learner keeps: bases that move, and revisits by power EP --------------------


class Kept(Linear):
    """Five regressions in factor mode. kind: diagonal, block (a full one), or turned (each task moves the basis)."""

    def __init__(self, kind: str, share: float = 1.0, mode: Mode = "factors") -> None:
        super().__init__("diagonal" if kind == "diagonal" else "layered")
        self.form, self.files = kind, {}
        settings = config.Posterior(mode=mode, prior_precision=PRIOR, share=share)
        self.posterior = Posterior(settings, self.prior, self, self.prior)

    def read(self, number: int, task: str, verify: bool = True) -> dict[str, np.ndarray]:
        """The factor's arrays: this is where they are kept."""
        return self.files[number]

    def moved(self, task: int, basis: Basis) -> Basis:
        if self.form == "block":
            return Basis.unturned(D, [Matrix.stack([WEIGHT])])
        moments = torch.from_numpy(self.x[task].T @ self.x[task] / N)
        return basis.moved([Matrix.of(WEIGHT)], {"w": (None, moments)})

    def measured(self, task: int, like: Precision) -> Precision:
        x = torch.from_numpy(self.x[task])
        if self.form == "diagonal" or not isinstance(like, Layered):
            return self.curvature(task)
        (matrix,) = like.basis.matrices
        if matrix.stacked:
            return Layered(like.basis, torch.zeros(D, dtype=torch.float64), (Block(matrix, x.T @ x / NOISE),))
        turned = torch.stack([like.basis.into(row) for row in x])
        return Layered(like.basis, turned.square().sum(0) / NOISE)

    def learn(self, task: int, damping: float = 1.0) -> None:
        """A task for the first time, or again."""
        name = f"task-{task}"
        revisited = name if name in self.posterior.tasks else None
        cavity, share = self.posterior.cavity(revisited), 1.0 if revisited is None else self.posterior.share
        theta = self.optimum(task, cavity, share)
        if revisited is None and isinstance(cavity.precision, Layered):
            cavity = self.posterior.within(self.moved(task, cavity.precision.basis), cavity)
        factor = self.posterior.absorb(cavity, self.measured(task, cavity.precision), theta, revisited, damping)
        number = None if factor is None else len(self.files)
        if factor is not None:
            self.files[len(self.files)] = factor.state()
        self.posterior.tasks[name] = Consolidated(
            task=name, lsn=0, producer=None, seq=0, seconds=0.0, closed_at=0.0, samples=N, weight=N, loss=0.0, factor=number
        )


@pytest.mark.parametrize(("share", "damping", "sweeps"), [(1.0, 1.0, 12), (0.3, 1.0, 60), (0.5, 0.5, 100)])
@pytest.mark.parametrize("kind", ["diagonal", "turned", "block"])
def test_revisits_by_power_ep_reach_joint_training(kind: str, share: float, damping: float, sweeps: int) -> None:
    model = Kept(kind, share)
    for task in range(TASKS):
        model.learn(task)
    once = model.error(model.posterior.total)
    assert once < 1e-12 if kind == "block" else once > 1e-3
    for _ in range(sweeps):
        for task in (3, 1, 4, 0, 2):
            model.learn(task, damping)
    assert model.error(model.posterior.total) < 1e-9


@pytest.mark.parametrize("kind", ["diagonal", "turned", "block"])
def test_the_total_is_the_prior_times_the_factors_after_any_history(kind: str) -> None:
    """Each factor in the basis in which it was taken; the total in that of the newest task."""
    model = Kept(kind, 0.3)
    for task in (0, 1, 0, 2, 3, 1, 4):
        model.learn(task)
        total = model.posterior.total
        factors = [Gaussian.from_state(model.files[entry.factor]) for entry in model.posterior.tasks.values()]
        expected = model.prior.beside(total).product(factors)
        np.testing.assert_allclose(dense(total.precision), dense(expected.precision), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(total.shift, expected.shift, rtol=1e-12, atol=1e-12)
        states = [model.files[entry.factor] for entry in model.posterior.tasks.values()]
        assert stored.remainder(total.state(), states) < 1e-12
    model.posterior.forget("task-3")
    left = Gaussian.from_state(model.files[model.posterior.tasks["task-3"].factor])
    again = model.posterior.total.times(left)
    np.testing.assert_allclose(dense(again.precision), dense(total.precision), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(again.shift, total.shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["turned", "block"])
def test_one_penalty_and_factors_are_the_same_posterior_while_nothing_is_revisited(kind: str) -> None:
    """Its mean is the newest optimum in both; re-expressed at once or one by one, a diagonal keeps its trace."""
    single, many = Kept(kind, mode="single"), Kept(kind)
    for task in range(TASKS):
        single.learn(task)
        many.learn(task)
        one, other = single.posterior.total, many.posterior.total
        assert float(one.precision.diagonal().sum()) == pytest.approx(float(other.precision.diagonal().sum()))
        if kind == "block" or task == 0:
            torch.testing.assert_close(one.mean, other.mean, rtol=1e-10, atol=1e-12)
