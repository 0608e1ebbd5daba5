"""The exact learner's algebra, in float64: against NumPy and scikit-learn, in any order, however rows are cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import BayesianRidge, Ridge

from streamcl import Learner
from streamcl.core import heads
from streamcl.core.heads import Known
from streamcl.core.moments import BLOCK_ROWS, Moments, Summing
from streamcl.errors import Refused
from streamcl.models import random_features

RNG = np.random.default_rng(0)


def rows(n: int, d: int, m: int = 1, seed: int = 0, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, d)) * rng.uniform(0.5, 2, d) + rng.normal(size=d)
    return x, x @ rng.normal(size=(d, m)) + 3 + noise * rng.normal(size=(n, m))


def sums(x: np.ndarray, y: np.ndarray) -> Moments:
    return Moments.of(torch.from_numpy(np.hstack([x, y.reshape(len(y), -1)])))


def classes(n: int = 400, d: int = 6, k: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, k, n)
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + rng.normal(size=(k, d))[y]
    return torch.from_numpy(x), torch.from_numpy(y)


def assert_same(one: Moments, two: Moments, digits: float = 1e-10) -> None:
    size = float(two.scatter.abs().max())
    np.testing.assert_allclose(one.counts, two.counts, rtol=digits, atol=digits)
    np.testing.assert_allclose(one.means, two.means, rtol=digits, atol=digits)
    np.testing.assert_allclose(one.scatter, two.scatter, rtol=digits, atol=digits * size)


# -- sums ----------------------------------------------------------------------------------------------------------------


@given(st.integers(0, 10**6), st.integers(1, 40))
@settings(deadline=None, max_examples=30)
def test_sums_do_not_care_for_order_or_cuts(seed: int, cuts: int) -> None:
    x, y = classes(300, seed=seed)
    rng = np.random.default_rng(seed)
    order = torch.from_numpy(rng.permutation(len(x)))
    summing = Summing(Moments.none(4, x.shape[1]))
    for part in np.array_split(order, cuts):
        summing.add(x[part], y[part])
        if rng.random() < 0.3:
            summing.settle()
    assert_same(summing.moments(), Moments.of(x, y, 4))


def test_sums_are_what_numpy_computes() -> None:
    x, y = classes(BLOCK_ROWS + 77)
    found = Moments.of(x + 1e6, y, 4)
    for k in range(4):
        np.testing.assert_allclose(found.means[k], x[y == k].mean(0) + 1e6, rtol=1e-14)
    centred = x.numpy() - np.stack([x[y == k].numpy().mean(0) for k in range(4)])[y]
    np.testing.assert_allclose(found.scatter, centred.T @ centred, atol=1e-5)  # a million away from zero
    np.testing.assert_allclose(found.about_the_mean(), np.cov(x.numpy().T) * (len(x) - 1), atol=1e-5)


def test_sums_lie_where_pytorch_puts_them() -> None:
    """Where NumPy puts a result differs from run to run, and products with it are rounded as it lies."""
    assert {sums(*rows(20, width)).scatter.data_ptr() % 64 for width in range(2, 60)} == {0}


@given(st.integers(0, 10**6), st.integers(2, 8))
@settings(deadline=None, max_examples=30)
def test_sums_of_parts_add_to_the_whole_in_any_order(seed: int, parts: int) -> None:
    x, y = classes(240, seed=seed)
    pieces = [Moments.of(x[part], y[part], int(y[part].max()) + 1) for part in np.array_split(np.arange(len(x)), parts)]
    order = np.random.default_rng(seed).permutation(parts)
    together = Moments.none(0, x.shape[1]).product(pieces[k] for k in order)
    assert_same(together, Moments.of(x, y, 4))
    assert together.rows == len(x)


def test_a_part_taken_out_leaves_the_rest() -> None:
    x, y = classes(300)
    first = y < 2  # whole classes go, others stay in part
    gone = first | (torch.arange(len(y)) % 3 == 0)
    left = Moments.of(x, y, 4).less(Moments.of(x[gone], y[gone], 4))
    assert_same(left, Moments.of(x[~gone], y[~gone], 4), 1e-9)


def test_weights_count_as_rows_do() -> None:
    x, y = classes(100)
    twice = Moments.of(torch.cat([x, x]), torch.cat([y, y]), 4)
    assert_same(Moments.of(x, y, 4).weighted(2.0), twice)


@pytest.mark.parametrize("cuts", [1, 3, 50])
def test_a_half_life_is_its_closed_form_however_rows_are_cut(cuts: int) -> None:
    x, y = rows(1300, 5)
    z, half_life = np.hstack([x, y]), 200.0
    summing = Summing(Moments.none(1, 6), half_life)
    for part in np.array_split(np.arange(len(z)), cuts):
        summing.add(torch.from_numpy(z[part]))
    found = summing.moments()
    weights = 0.5 ** (np.arange(len(z))[::-1] / half_life)
    mean = weights @ z / weights.sum()
    np.testing.assert_allclose(found.counts, [weights.sum()], rtol=1e-12)
    np.testing.assert_allclose(found.means[0], mean, rtol=1e-12)
    np.testing.assert_allclose(found.scatter, (z - mean).T @ ((z - mean) * weights[:, None]), rtol=1e-10, atol=1e-9)


def test_rows_that_wait_go_on_waiting_where_sums_are_looked_at() -> None:
    x, y = classes(700)
    looked, plain = (Summing(Moments.none(4, x.shape[1])) for _ in range(2))
    for part in np.array_split(np.arange(len(x)), 20):
        looked.add(x[part], y[part])
        looked.moments()
        plain.add(x[part], y[part])
    kept = Summing(Moments.from_state(looked.settled.state()), 0.0, looked.waiting.clone())
    for one in (looked, kept):
        assert torch.equal(one.moments().scatter, plain.moments().scatter)


def test_sums_of_other_widths_are_refused() -> None:
    with pytest.raises(Refused, match="5 and of 6"):
        Moments.none(1, 5).plus(Moments.none(1, 6))


# -- least squares -----------------------------------------------------------------------------------------------------


def test_least_squares_are_scikit_learns_bayesian_ridge() -> None:
    x, y = rows(300, 12, 3)
    found = heads.regression(sums(x, y), 3)
    for k in range(3):
        theirs = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-15, max_iter=10**5).fit(x, y[:, k])
        np.testing.assert_allclose(found.head.weight[k], theirs.coef_, atol=1e-10)
        np.testing.assert_allclose(found.head.bias[k], theirs.intercept_, atol=1e-10)
        np.testing.assert_allclose(found.head.noise[k], 1 / theirs.alpha_, rtol=1e-10)
        np.testing.assert_allclose(found.head.rho[k], theirs.lambda_ / theirs.alpha_, rtol=1e-9)
        _, deviation = theirs.predict(x[:5], return_std=True)
        leverage = found.basis.leverage(torch.from_numpy(x[:5]), found.head.rho)[:, k]
        np.testing.assert_allclose(found.head.noise[k] * (1 + leverage), deviation**2, rtol=1e-9)


def test_with_prior_and_noise_given_they_are_ridge() -> None:
    x, y = rows(50, 8, 2)
    found = heads.regression(sums(x, y), 2, Known(0.7, 0.5))
    theirs = Ridge(alpha=0.35, solver="cholesky").fit(x, y)
    np.testing.assert_allclose(found.head.weight, theirs.coef_, atol=1e-11)
    np.testing.assert_allclose(found.head.bias, theirs.intercept_, atol=1e-11)
    assert found.head.noise.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("given", [Known(precision=0.3), Known(noise=0.4)])
def test_where_one_is_given_the_other_is_the_best_by_the_evidence(given: Known) -> None:
    x, y = rows(60, 5)
    found = heads.regression(sums(x, y), 1, given)
    noise = float(found.head.noise[0])
    precision = float(found.head.rho[0]) / noise
    x, y = x - x.mean(0), (y - y.mean())[:, 0]

    def evidence(precision: float, noise: float) -> float:
        covariance = noise * np.eye(len(x)) + x @ x.T / precision
        return float(-0.5 * (np.linalg.slogdet(covariance)[1] + y @ np.linalg.solve(covariance, y)))

    best = evidence(precision, noise)
    for factor in (0.99, 1.01):
        other = (precision, noise * factor) if given.noise is None else (precision * factor, noise)
        assert evidence(*other) < best


@pytest.mark.parametrize("n", [1, 2, 10, 100])
def test_few_rows_collinear_and_constant_features_are_finite(n: int) -> None:
    x, y = rows(n, 30)
    x = np.hstack([x, x[:, :5], np.full((n, 3), 1e6), np.zeros((n, 2))])
    found = heads.regression(sums(x, y), 1)
    outputs = found.head.outputs(torch.from_numpy(x))
    assert torch.isfinite(outputs).all()
    assert (found.head.noise > 0).all()
    if n == 100:
        np.testing.assert_allclose(outputs[:, 0], y[:, 0], atol=3.0)


def test_targets_that_do_not_vary_are_predicted_as_they_are() -> None:
    x, _ = rows(40, 4)
    found = heads.regression(sums(x, np.full((40, 1), 7.5)), 1)
    np.testing.assert_allclose(found.head.outputs(torch.from_numpy(x)), 7.5, rtol=1e-12)
    assert 0 < float(found.head.noise) < 1e-6


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_targets_of_any_scale_and_place_give_the_same_fit(scale: float) -> None:
    x, y = rows(80, 5)
    here, there = heads.regression(sums(x, y), 1), heads.regression(sums(x, scale * (y + 100)), 1)
    np.testing.assert_allclose(there.head.weight / scale, here.head.weight, rtol=1e-7, atol=1e-9)


def test_a_tasks_loss_follows_from_its_sums() -> None:
    x, y = rows(200, 6, 2)
    found = heads.regression(sums(x, y), 2)
    own_x, own_y = rows(50, 6, 2, seed=5)
    residuals = own_y - found.head.outputs(torch.from_numpy(own_x)).numpy()
    noise = found.head.noise.numpy()
    nll = (0.5 * np.log(2 * np.pi * noise) + residuals**2 / (2 * noise)).sum(1).mean()
    assert heads.mean_nll(sums(own_x, own_y), found.head) == pytest.approx(nll, rel=1e-9)


def test_precision_and_shift_are_those_of_the_linear_model() -> None:
    x, y = rows(50, 3, 2)
    found = heads.regression(sums(x, y), 2, Known(0.7, 0.5))
    precision, shift = heads.natural(found, 2)
    a = np.c_[x, np.ones(len(x))]
    own = (a**2).sum(0) / 0.5 + np.array([0.7] * 3 + [0.0])
    np.testing.assert_allclose(precision.view(-1)[:6].view(2, 3), [own[:3], own[:3]], rtol=1e-10)
    np.testing.assert_allclose(precision[6:], [own[3], own[3]], rtol=1e-10)
    expected = a.T @ y / 0.5
    np.testing.assert_allclose(shift[:6].view(2, 3), expected[:3].T, rtol=1e-9)
    np.testing.assert_allclose(shift[6:], expected[3], rtol=1e-9)


# -- classes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [60, 4000])
def test_without_a_prior_classes_are_scikit_learns_discriminant_analysis(n: int) -> None:
    x, y = classes(n)
    found = heads.discriminant(Moments.of(x, y, 4), Known(precision=1e-12))
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    np.testing.assert_allclose(found.head.outputs(x).softmax(1), theirs.predict_proba(x), atol=1e-9)


def test_what_leverage_owes_to_the_fit_is_taken_out() -> None:
    """Among a few rows classes look further apart than they are; among many the two agree."""
    x, y = classes(60)
    more, other = classes(2000)
    plain, found = (heads.discriminant(Moments.of(x, y, 4), known) for known in (Known(1e-12), Known()))
    losses = [
        float(-fit.head.outputs(more).log_softmax(1)[torch.arange(len(other)), other].mean()) for fit in (plain, found)
    ]
    assert losses[1] < losses[0]


def test_a_class_without_rows_changes_nothing_of_the_others() -> None:
    x, y = classes(200, k=3)
    plain, more = (heads.discriminant(Moments.of(x, y, k)).head.outputs(x).softmax(1) for k in (3, 5))
    np.testing.assert_allclose(more[:, :3], plain, atol=1e-10)
    assert float(more[:, 3:].max()) < 1e-8


def test_one_class_alone_is_certain() -> None:
    x, _ = classes(20)
    found = heads.discriminant(Moments.of(x, torch.zeros(20, dtype=torch.int64), 1))
    assert torch.equal(found.head.outputs(x).softmax(1), torch.ones(20, 1, dtype=torch.float64))


def test_probabilities_are_calibrated_where_there_are_fewer_rows_than_features() -> None:
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = torch.from_numpy(x[order]), torch.from_numpy(y[order])
    made = random_features((64,), width=400)
    made.settle(x[:200])  # type: ignore[operator]
    phi = made(x)
    found = heads.discriminant(Moments.of(phi[:200], y[:200], 10))
    probs = found.head.outputs(phi[200:]).softmax(1)
    sure, right = probs.amax(1), (probs.argmax(1) == y[200:]).double()
    assert abs(float(sure.mean() - right.mean())) < 0.05
    assert float(right.mean()) > 0.9
    assert float(-probs[torch.arange(len(probs)), y[200:]].log().mean()) < 0.35


def test_zeros_and_ones_are_two_classes() -> None:
    x, y = classes(500, k=2)
    z = torch.cat([x, y.double().unsqueeze(1), 1 - y.double().unsqueeze(1)], 1)
    found = heads.binary(Moments.of(z), 2, Known(5.0))
    both = heads.discriminant(Moments.of(x, y, 2), Known(5.0)).head.outputs(x)
    logit = found.head.outputs(x)[:, 0]
    np.testing.assert_allclose(logit, both[:, 1] - both[:, 0], atol=0.01)  # half a row to either side
    np.testing.assert_allclose(found.head.outputs(x)[:, 1], -logit, atol=1e-8)
    plain = heads.binary(Moments.of(z), 2).head.outputs(x)
    assert ((plain[:, 0] > 0) == (y == 1)).double().mean() > 0.95


def test_a_target_that_is_always_zero_is_unlikely_and_finite() -> None:
    x, _ = classes(50)
    found = heads.binary(Moments.of(torch.cat([x, torch.zeros(50, 1)], 1)), 1)
    probs = found.head.outputs(x).sigmoid()
    assert 0 < float(probs.max()) < 0.02


# -- features ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["relu", "fourier"])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_random_features_take_inputs_of_any_scale_and_place(kind: str, scale: float) -> None:
    x, y = load_digits(return_X_y=True)
    x = torch.from_numpy((x + 3) * scale)
    made = random_features((64,), width=300, kind=kind)
    made.settle(x[:256])  # type: ignore[operator]
    phi = made(x)
    found = heads.discriminant(Moments.of(phi[:1200], torch.from_numpy(y[:1200]), 10))
    right = (found.head.outputs(phi[1200:]).argmax(1).numpy() == y[1200:]).mean()
    assert right > 0.9


def test_columns_of_different_units_are_each_scaled_and_pixels_together() -> None:
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.normal(size=(300, 6)) * [1e-3, 1, 1e3, 1e6, 10, 1] + [0, 0, 1e6, 0, 0, 0])
    made = random_features((6,), width=10)
    made.settle(x)  # type: ignore[operator]
    z = (x - made.get_buffer("shift")) / made.get_buffer("scale")
    assert float(z.std(0).max()) < 2.1
    assert float(z.std(0).min()) > 0.4
    digits = torch.from_numpy(load_digits().data)
    first, second = random_features((64,), width=10), random_features((64,), width=10)
    first.settle(digits[:300])  # type: ignore[operator]
    second.settle(digits[900:])  # type: ignore[operator]
    assert len(first.get_buffer("scale").unique()) == 1
    assert torch.equal(first.get_buffer("scale"), second.get_buffer("scale"))
    assert torch.equal(first.get_buffer("shift"), second.get_buffer("shift"))


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(("classes", "n", "d"), [(2, 20, 1), (2, 300, 1), (2, 300, 20), (3, 60, 2), (10, 300, 20)])
def test_features_that_say_nothing_are_told_as_little(classes: int, n: int, d: int, whole: bool) -> None:
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x, y = rng.normal(size=(n + 500, d)), rng.permutation(np.arange(n + 500) % classes)
        x = np.round(2 * x) if whole else x
        learner = Learner({"model.learner": "exact", "model.factory": "streamcl.models:identity"})
        learner.observe(x[:n], y[:n], task="a", boundary=True)
        found = learner.predict(x[n:])
        assert found.labels is not None
        places = {label: column for column, label in enumerate(found.labels.tolist())}
        told = found.probs[np.arange(500), [places[label] for label in y[n:].tolist()]]
        assert -np.log(told).mean() < 1.8 * np.log(classes)


@pytest.mark.parametrize("model", [{"factory": "streamcl.models:identity"}, {}])
def test_a_batch_whose_squares_overflow_is_set_aside_alone(model: dict[str, Any]) -> None:
    rng = np.random.default_rng(0)
    one = Learner({"model": {"learner": "exact", **model}, "train": {"dtype": "float64"}})
    for _ in range(5):
        one.observe(rng.normal(size=(16, 4)), rng.integers(0, 3, 16), task="a")
    with pytest.warns(RuntimeWarning, match="the squares of these are not finite"):
        one.observe(1e200 * rng.normal(size=(16, 4)), rng.integers(0, 3, 16), task="a")
    done = one.boundary("a")
    assert (done["samples"], done["set_aside"]) == (80, 16)
    assert np.isfinite(one.predict(rng.normal(size=(4, 4))).probs).all()
