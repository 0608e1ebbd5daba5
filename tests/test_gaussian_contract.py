"""One contract for every kind of precision and every rule, against dense NumPy in float64."""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from streamcl.core import stored
from streamcl.core.basis import Basis, Matrix, Side
from streamcl.core.consolidation import (
    assumed_density_filtering,
    decayed,
    matched_factor,
    multi_anchor,
    task_precision,
)
from streamcl.core.gaussian import Gaussian
from streamcl.core.layout import Layout
from streamcl.core.precision import KINDS, Block, Diagonal, Full, Layered, Precision, observed
from streamcl.errors import UnknownFormat

PRIOR, GAMMA, DAMPING = 0.3, 0.7, 0.4
# A matrix with a bias, one without, a table, a small layer's block, and what is in no matrix, in no convenient order.
SHAPES = {"scale": (2,), "a.weight": (2, 3), "table": (4, 2), "a.bias": (2,), "b": (2, 2, 1), "c": (3,), "d": ()}
LAYOUT = Layout.of(SHAPES.items())
P = LAYOUT.size
CPU = torch.device("cpu")
Dense = tuple[np.ndarray, np.ndarray]  # Lambda [P, P] and eta [P]


def vector(seed: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=P))


def orthogonal(rng: np.random.Generator, n: int) -> Side:
    return Side(torch.from_numpy(np.linalg.qr(rng.normal(size=(n, n)))[0]), torch.from_numpy(rng.uniform(size=n)))


def basis(seed: int) -> Basis:
    """A matrix with a bias and one without, each turned on both sides, a table turned on one, and a small layer's block."""
    parts, rng = {part.name: part for part in LAYOUT.parts}, np.random.default_rng(seed)
    layer, table, odd = Matrix.of(parts["a.weight"], parts["a.bias"]), Matrix.of(parts["table"]), Matrix.of(parts["b"])
    both = [(orthogonal(rng, matrix.rows), orthogonal(rng, matrix.columns)) for matrix in (layer, odd)]
    sides = (both[0], (None, orthogonal(rng, 2)), both[1], (None, None))
    return Basis(P, (layer, table, odd, Matrix.stack([parts["c"], parts["d"]])), sides)


BASIS = basis(0)


def layered(here: Basis, rows: torch.Tensor) -> Layered:
    """What samples with these gradients say: nothing in every third direction, and a block of the rank of two."""
    (block,) = [matrix for matrix in here.matrices if matrix.stacked]
    values = torch.stack([here.into(row) for row in rows]).square().sum(0)
    values[::3] = 0
    values[dict(here.offsets())[block]] = 0
    beside = torch.stack([block.gather(row).squeeze(1) for row in rows[:2]])
    return Layered(here, values, (Block(block, beside.T @ beside),))


def of_rank(kind: str, seed: int, rank: int, here: Basis = BASIS) -> Precision:
    """What few samples say: some directions have no precision at all."""
    rows = torch.from_numpy(np.random.default_rng(seed).normal(size=(rank, P)))
    if kind == "full":
        return observed(rows.T @ rows)
    if kind == "layered":
        return layered(here, rows)
    values = rows.square().sum(0)
    values[rank:] = 0
    return observed(values)


def precision(kind: str, seed: int) -> Precision:
    return of_rank(kind, seed, 4)


def prior(kind: str, centre: float = 0.5) -> Gaussian:
    return Gaussian.prior(torch.full((P,), centre, dtype=torch.float64), PRIOR, kind).within(BASIS)


def gaussian(kind: str, seed: int) -> Gaussian:
    """A posterior: its precision has no zeros."""
    return prior(kind).times(Gaussian.anchored(precision(kind, seed), vector(seed + 100)))


def matrix(each: Precision) -> np.ndarray:
    """Lambda column by column, by what it does to unit vectors."""
    return torch.stack([each.times(unit) for unit in torch.eye(each.size, dtype=torch.float64)]).numpy().T


def dense(g: Gaussian) -> Dense:
    return matrix(g.precision), g.shift.numpy().copy()


def numbers(g: Gaussian) -> list[torch.Tensor]:
    return [*g.precision.state().values(), g.shift]


Rule = Callable[[Gaussian, Precision, torch.Tensor], Gaussian]
Oracle = Callable[[Dense, np.ndarray, np.ndarray], Dense]


def decayed_densely(one: Dense, _: np.ndarray, __: np.ndarray) -> Dense:
    flat = PRIOR * np.eye(P)
    whole = flat + GAMMA * (one[0] - flat)
    return whole, whole @ np.linalg.solve(*one)


RULES: dict[str, tuple[Rule, Oracle]] = {
    "assumed density filtering": (assumed_density_filtering, lambda g, c, t: (g[0] + c, (g[0] + c) @ t)),
    "multi-anchor": (multi_anchor, lambda g, c, t: (g[0] + c, g[1] + c @ t)),
    "matched factor": (matched_factor, lambda g, c, t: (c, (g[0] + c) @ t - g[1])),
    "decayed": (lambda g, c, t: decayed(g, prior(g.precision.kind), GAMMA), decayed_densely),
    "damped": (
        lambda g, c, t: g.damped(Gaussian(c, t), DAMPING),
        lambda g, c, t: ((1 - DAMPING) * g[0] + DAMPING * c, (1 - DAMPING) * g[1] + DAMPING * t),
    ),
    "product": (
        lambda g, c, t: g.product([Gaussian(c, t), g]),
        lambda g, c, t: (2 * g[0] + c, 2 * g[1] + t),
    ),
    "times": (lambda g, c, t: g.times(Gaussian(c, t)), lambda g, c, t: (g[0] + c, g[1] + t)),
    "without": (
        lambda g, c, t: g.times(Gaussian(c, t)).without(Gaussian(c, t)),
        lambda g, c, t: g,
    ),
    "anchored": (lambda g, c, t: Gaussian.anchored(c, t), lambda g, c, t: (c, c @ t)),
    "task precision": (
        lambda g, c, t: Gaussian(task_precision(c, 50, 5.0), t),
        lambda g, c, t: (0.1 * c, t),
    ),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
each_rule = pytest.mark.parametrize("rule", RULES)


# -- every rule ---------------------------------------------------------------------------------------------------------


@each_kind
@each_rule
def test_a_rule_gives_what_dense_matrices_give(kind: str, rule: str) -> None:
    g, c, t = gaussian(kind, 1), precision(kind, 2), vector(3)
    expected = RULES[rule][1](dense(g), matrix(c), t.numpy())
    found = dense(RULES[rule][0](g, c, t))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-10, atol=1e-12)


@each_kind
@each_rule
def test_a_rule_leaves_its_inputs_as_they_were(kind: str, rule: str) -> None:
    g, c, t = gaussian(kind, 1), precision(kind, 2), vector(3)
    before = [number.clone() for number in (*numbers(g), *c.state().values(), t)]
    RULES[rule][0](g, c, t)
    after = [*numbers(g), *c.state().values(), t]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@each_kind
@each_rule
def test_a_rule_gives_no_negative_precision(kind: str, rule: str) -> None:
    result = RULES[rule][0](gaussian(kind, 1), precision(kind, 2), vector(3))
    assert np.linalg.eigvalsh(matrix(result.precision)).min() >= -1e-12
    assert (result.precision.diagonal() >= 0).all()


@each_kind
@each_rule
def test_what_a_rule_gives_survives_its_state_to_the_bit(kind: str, rule: str) -> None:
    result = RULES[rule][0](gaussian(kind, 1), precision(kind, 2), vector(3))
    again = Gaussian.from_state(result.state())
    assert again.precision.kind == kind
    assert all(torch.equal(a, b) for a, b in zip(numbers(again), numbers(result), strict=True))


# -- every kind ----------------------------------------------------------------------------------------------------------


@each_kind
def test_times_and_without_undo_each_other(kind: str) -> None:
    g, factor = gaussian(kind, 1), Gaussian(precision(kind, 2), vector(3))
    for found, expected in zip(dense(g.times(factor).without(factor)), dense(g), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


@each_kind
def test_a_cavity_has_no_precision_below_zero_where_rounding_would_leave_some(kind: str) -> None:
    factor = Gaussian(precision(kind, 2), vector(3))
    grown = Gaussian(factor.precision.weighted(1 + 1e-9), factor.shift)
    assert np.linalg.eigvalsh(matrix(factor.without(grown).precision)).min() >= -1e-20


@each_kind
@given(seed=st.integers(0, 1000), damping=st.floats(0.01, 1.0))
def test_a_factor_replaced_by_itself_changes_nothing(kind: str, seed: int, damping: float) -> None:
    factors = [Gaussian(precision(kind, seed), vector(seed)), Gaussian(precision(kind, seed + 1), vector(seed + 1))]
    replaced = [factors[0].damped(factors[0], damping), factors[1]]
    one, other = dense(prior(kind).product(factors)), dense(prior(kind).product(replaced))
    np.testing.assert_allclose(other[0], one[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(other[1], one[1], rtol=1e-12, atol=1e-12)


@each_kind
def test_the_order_of_factors_does_not_matter(kind: str) -> None:
    factors = [Gaussian(precision(kind, seed), vector(seed + 50)) for seed in range(3)]
    products = [dense(prior(kind).product(order)) for order in permutations(factors)]
    for found in products[1:]:
        np.testing.assert_allclose(found[0], products[0][0], rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(found[1], products[0][1], rtol=1e-12, atol=1e-13)


@each_kind
def test_the_gradient_is_that_of_the_value(kind: str) -> None:
    g, theta = gaussian(kind, 1), vector(5).requires_grad_()
    (gradient,) = torch.autograd.grad(g.value(theta), theta)
    torch.testing.assert_close(g.gradient(theta.detach()), gradient)
    out = torch.empty(P, dtype=torch.float64)
    assert g.gradient(theta.detach(), out=out) is out
    torch.testing.assert_close(out, gradient)


@each_kind
def test_a_weighted_penalty_is_the_penalty_times_its_weight(kind: str) -> None:
    g, theta = gaussian(kind, 1), vector(5)
    scaled = g.scaled(1.0)
    scaled.weigh(0.3)
    torch.testing.assert_close(scaled.gradient(theta), 0.3 * g.gradient(theta))
    moved = theta.clone()
    scaled.proximal(moved, 0.7)
    torch.testing.assert_close(0.3 * g.gradient(moved), (theta - moved) / 0.7)


@each_kind
def test_curvature_mean_and_diagonal_are_those_of_the_matrix(kind: str) -> None:
    g = gaussian(kind, 1)
    whole, shift = dense(g)
    np.testing.assert_allclose(g.mean.numpy(), np.linalg.solve(whole, shift), rtol=1e-10)
    np.testing.assert_allclose(g.precision.diagonal().numpy(), np.diag(whole))
    assert g.curvature().largest == pytest.approx(np.linalg.eigvalsh(whole)[-1])
    assert g.curvature().total == pytest.approx(np.trace(whole))
    assert g.precision.trace() == pytest.approx(np.trace(whole))


@each_kind
def test_a_factor_says_nothing_in_directions_that_its_task_did_not_determine(kind: str) -> None:
    factor = Gaussian(precision(kind, 2), vector(3))  # whose shift lies outside the range of its precision too
    inverse = np.linalg.pinv(matrix(factor.precision), rcond=1e-12)
    theta, shift = vector(4).numpy(), factor.shift.numpy()
    away = matrix(factor.precision) @ theta - shift
    assert factor.penalty(vector(4)) == pytest.approx(0.5 * away @ inverse @ away)
    np.testing.assert_allclose(factor.mean.numpy(), inverse @ shift, atol=1e-9)
    rise = factor.penalty(vector(5)) - factor.penalty(vector(4))
    assert factor.potential(vector(5)) - factor.potential(vector(4)) == pytest.approx(rise)


@each_kind
def test_directions_below_the_least_precision_do_not_count_in_a_penalty(kind: str) -> None:
    values, shift, theta = torch.zeros(3, P, dtype=torch.float64)
    values[:2], shift[:2], theta[0] = torch.tensor([2.0, 1e-20]), torch.tensor([4.0, 1e-2]), 3.0
    made = {"diagonal": Diagonal, "full": lambda v: Full(v.diag()), "layered": lambda v: Layered(Basis.unturned(P), v)}
    factor = Gaussian(made[kind](values), shift)
    assert factor.penalty(theta, least=1e-3) == pytest.approx(1.0)


@each_kind
def test_a_penalty_is_zero_at_its_centre_and_never_negative(kind: str) -> None:
    factor = Gaussian.anchored(precision(kind, 2), vector(3))
    assert factor.penalty(vector(3)) == pytest.approx(0, abs=1e-20)
    assert all(factor.penalty(vector(seed)) >= 0 for seed in range(20))


@each_kind
def test_draws_have_the_posteriors_moments(kind: str) -> None:
    each, centre = of_rank(kind, 2, 3), vector(3)
    g, generator = Gaussian.anchored(each, centre), torch.Generator().manual_seed(0)
    draws = torch.stack([g.sample(centre, generator) for _ in range(10000)])
    covariance = np.linalg.pinv(matrix(each), rcond=1e-12)
    spread = np.abs(covariance).max()
    np.testing.assert_allclose(draws.mean(0).numpy(), centre.numpy(), atol=0.05 * spread**0.5)
    np.testing.assert_allclose(np.cov(draws.numpy().T), covariance, atol=0.05 * spread)


@each_kind
def test_a_working_copy_is_the_same_in_another_dtype(kind: str) -> None:
    g = gaussian(kind, 1)
    copy = g.to(CPU, torch.float32)
    assert copy.shift.dtype == torch.float32
    torch.testing.assert_close(copy.gradient(vector(5).float()).double(), g.gradient(vector(5)), rtol=1e-5, atol=1e-5)


@each_kind
def test_two_kinds_or_two_sizes_do_not_mix(kind: str) -> None:
    other = next(name for name in KINDS if name != kind)
    one = precision(kind, 1)
    smaller = type(one).isotropic(1.0, torch.ones(P - 1))  # type: ignore[attr-defined]
    for act in (one.plus, one.less, one.copy().add_, lambda each: one.towards(each, 0.5)):
        with pytest.raises(TypeError, match=f"expected a {kind} precision"):
            act(precision(other, 1))
        with pytest.raises(ValueError, match=f"{P} and {P - 1}"):
            act(smaller)


@each_kind
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_gaussian(kind: str, bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Gaussian(precision(kind, 1).weighted(bad), vector(1))
    with pytest.raises(ValueError, match="finite"):
        Gaussian(precision(kind, 1), vector(1) * bad)
    with pytest.raises(ValueError, match="same parameters"):
        Gaussian(precision(kind, 1), vector(1)[:-1])


@pytest.mark.parametrize("shape", [(), (2, 3), (2, 2, 2)])
def test_what_is_no_precision_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected a"):
        Diagonal(torch.ones(shape))
    with pytest.raises(ValueError, match="expected a"):
        Full(torch.ones(shape))


# -- states on disk --------------------------------------------------------------------------------------------------------


def test_a_state_from_before_there_were_kinds_is_a_diagonal() -> None:
    g = gaussian("diagonal", 1)
    old = {name: array for name, array in g.state().items() if name != stored.KIND}
    assert set(old) == {"precision", "shift"}
    assert all(torch.equal(a, b) for a, b in zip(numbers(Gaussian.from_state(old)), numbers(g), strict=True))
    assert np.array_equal(stored.diagonal(old), g.precision.diagonal().numpy())


def test_a_kind_of_a_later_version_is_refused_with_a_remedy() -> None:
    state = {**gaussian("diagonal", 1).state(), stored.KIND: stored.named("banded")}
    for reading in (Gaussian.from_state, stored.diagonal):
        with pytest.raises(UnknownFormat, match=r"'banded'.*upgrade"):
            reading(state)


@each_kind
def test_a_state_can_be_read_without_torch(kind: str) -> None:
    g = gaussian(kind, 1)
    assert stored.kind_of(g.state()) == kind
    found, expected = stored.diagonal(g.state()), g.precision.diagonal().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-13 if kind == "layered" else 0)


@each_kind
def test_factors_add_up_to_their_product_with_the_prior_or_it_shows(kind: str) -> None:
    factors = [Gaussian(precision(kind, seed), vector(seed)) for seed in range(3)]
    total = prior(kind).product(factors).state()
    states = [factor.state() for factor in factors]
    assert stored.remainder(total, states) < 1e-12
    assert stored.remainder(total, states[1:]) > 1e-3
    other = Gaussian(precision(next(name for name in KINDS if name != kind), 1), vector(1))
    with pytest.raises(UnknownFormat, match="curvature"):
        stored.remainder(total, [other.state()])


# -- in one basis and another ----------------------------------------------------------------------------------------------


def turning(here: Basis) -> np.ndarray:
    """Its coordinates of the parameters' unit vectors, in columns."""
    return torch.stack([here.into(unit) for unit in torch.eye(P, dtype=torch.float64)]).numpy().T


def held(each: Layered) -> np.ndarray:
    """Which numbers of a matrix [P, P] in its coordinates it can say: its diagonal, and its blocks."""
    mask = np.eye(P, dtype=bool)
    for matrix, place in each.basis.offsets():
        if matrix.stacked:
            mask[place, place] = True
    return mask


def test_coordinates_are_orthogonal_and_lead_back() -> None:
    turned = turning(BASIS)
    np.testing.assert_allclose(turned @ turned.T, np.eye(P), atol=1e-14)
    out = torch.empty(P, dtype=torch.float64)
    assert BASIS.back(BASIS.into(vector(1)), out) is out
    torch.testing.assert_close(out, vector(1), atol=1e-14, rtol=0)


def test_in_another_basis_a_precision_is_what_of_it_can_be_said_there() -> None:
    one, there = of_rank("layered", 1, 5), basis(1)
    found, turned = one.within(there), turning(there)
    whole = turned @ matrix(one) @ turned.T
    np.testing.assert_allclose(turned @ matrix(found) @ turned.T, np.where(held(found), whole, 0), atol=1e-12)
    np.testing.assert_allclose(np.trace(matrix(found)), np.trace(matrix(one)))
    np.testing.assert_allclose(found.diagonal().sum(), one.diagonal().sum())


@pytest.mark.parametrize("matrices", [BASIS.matrices[:3], BASIS.matrices[:0]], ids=["no block", "no matrix"])
def test_a_precision_may_move_to_a_basis_of_fewer_matrices(matrices: tuple[Matrix, ...]) -> None:
    one, there = of_rank("layered", 1, 5), Basis(P, matrices, basis(1).sides[: len(matrices)])
    found, turned = one.within(there), turning(there)
    assert not found.blocks
    np.testing.assert_allclose(
        turned @ matrix(found) @ turned.T, np.diag(np.diag(turned @ matrix(one) @ turned.T)), atol=1e-12
    )


def test_in_a_basis_that_is_the_same_it_is_the_same_to_the_bit() -> None:
    one, again = of_rank("layered", 1, 5), Basis.from_state(BASIS.state())
    assert again is not BASIS
    assert all(torch.equal(a, b) for a, b in zip(one.state().values(), one.within(again).state().values(), strict=True))


def test_what_is_the_same_in_all_directions_is_so_in_any_basis() -> None:
    for found in (prior("layered").within(basis(1)), prior("layered").within(BASIS).within(basis(2))):
        np.testing.assert_allclose(matrix(found.precision), PRIOR * np.eye(P), atol=1e-14)


@pytest.mark.parametrize("rule", sorted(RULES.keys() - {"anchored", "task precision", "matched factor", "multi-anchor"}))
def test_a_rule_with_another_basis_is_the_rule_in_its_own(rule: str) -> None:
    """The cavity's is the basis of what comes of it."""
    g, c, t = gaussian("layered", 1), of_rank("layered", 2, 4, basis(3)), vector(3)
    found, expected = dense(RULES[rule][0](g, c, t)), dense(RULES[rule][0](g, c.within(BASIS), t))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12, atol=1e-12)


def test_factors_of_several_bases_add_up_to_the_total_or_it_shows() -> None:
    """As the daemon's doctor looks at them, without torch."""
    factors = [Gaussian(of_rank("layered", seed, 4, basis(seed)), vector(seed)) for seed in range(3)]
    total = Gaussian.prior(vector(9), PRIOR, "layered").within(basis(2)).product(factors).state()
    states = [factor.state() for factor in factors]
    assert stored.remainder(total, states) < 1e-12
    for missing in range(3):
        assert stored.remainder(total, states[:missing] + states[missing + 1 :]) > 1e-3


def test_directions_that_a_block_holds_loosely_beside_others_are_held_in_float32_too() -> None:
    """Rounded to single precision the block itself would lose a prior beside 1e9, and not even be positive."""
    values = torch.zeros(P, dtype=torch.float64)
    (block,) = [matrix for matrix in BASIS.matrices if matrix.stacked]
    one = torch.tensor([3.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    loose = PRIOR * torch.eye(4, dtype=torch.float64) + 1e9 * torch.outer(one, one) / one.square().sum()
    penalty = Gaussian(Layered(BASIS, values, (Block(block, loose),)), 0 * values).to(CPU, torch.float32).scaled(1.0)
    along = torch.tensor([1.0, 3.0, 0.0, 0.0])  # at a right angle to `one`
    theta = torch.zeros(P)
    block.scatter(along.unsqueeze(1), theta)
    for _ in range(200):
        penalty.proximal(theta, 1.0)
    assert block.gather(theta).abs().max() < 1e-6
