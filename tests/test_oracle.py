"""The linear-Gaussian oracle: every number through the real daemon against the note's recursion in NumPy, float64."""

from __future__ import annotations

import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl.bench.local import LocalDaemon

NOISE, PRIOR, FEATURES, TASKS = 0.5, 0.3, 6, 5
RNG = np.random.default_rng(1)


NOTE = {"curvature": "diagonal", "expectation": "mode"}  # what the note writes


def tree(**posterior: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "streamcl.models:linear", "likelihood": "gaussian", "noise_variance": NOISE},
        "train": {"optimizer": "lbfgs", "dtype": "float64", "epochs": 5},
        "posterior": {"prior_precision": PRIOR, **posterior},
    }


def task_data(number: int, n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    x = rng.normal(size=(n, FEATURES)) * rng.uniform(0.2, 3.0, FEATURES)
    return x, x @ rng.normal(size=FEATURES) + 1.5 + rng.normal(size=n) * NOISE**0.5


class Recursion:
    """Eqs. 10-11 written out for a linear model with a bias: exact optimum, then one more diagonal term."""

    def __init__(self, mean: np.ndarray | None = None) -> None:
        self.precision = np.full(FEATURES + 1, PRIOR)
        self.shift = np.zeros(FEATURES + 1) if mean is None else PRIOR * mean
        self.theta = np.zeros(FEATURES + 1)

    def task(self, x: np.ndarray, y: np.ndarray, scale: float = 1.0, weight: float | None = None) -> None:
        a = np.c_[x, np.ones(len(x))]
        self.theta = np.linalg.solve(np.diag(self.precision) + a.T @ a / NOISE, self.shift + a.T @ y / NOISE)
        fisher = (a**2).mean(0) / NOISE
        self.precision = self.precision + (scale * len(x) if weight is None else weight) * fisher
        self.shift = self.precision * self.theta


def assert_equal(daemon: LocalDaemon, expected: Recursion) -> None:
    with daemon.admin() as admin:
        got = admin.parameters()
    np.testing.assert_allclose(got.theta, expected.theta, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(got.precision, expected.precision, rtol=1e-6)
    np.testing.assert_allclose(got.shift / got.precision, expected.theta, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("weight", [None, 7.0])
def test_five_tasks_give_the_recursions_anchor_and_precision(
    start: Callable[..., LocalDaemon], weight: float | None
) -> None:
    daemon, expected = start(tree(**NOTE, scale=2.5)), Recursion()
    with daemon.producer() as producer:
        for number in range(TASKS):
            x, y = task_data(number)
            for rows in np.array_split(np.arange(len(x)), 4):
                producer.send(x[rows], y[rows], f"task-{number}")
            done = producer.boundary(f"task-{number}", weight=weight)
            expected.task(x, y, 2.5, weight)
            assert_equal(daemon, expected)
            nll = 0.5 * np.mean((y - np.c_[x, np.ones(50)] @ expected.theta) ** 2) / NOISE
            assert done["loss"] == pytest.approx(nll + 0.5 * np.log(2 * np.pi * NOISE), rel=1e-6)


def test_a_prior_may_be_centred_at_the_initial_weights(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree(**NOTE, prior_mean="init"))
    x, y = task_data(0)
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(x, y, "a")  # L-BFGS takes no steps before the boundary
        producer.flush()
        admin.checkpoint()
        expected = Recursion(mean=admin.parameters().theta)
        producer.boundary("a")
        expected.task(x, y)
        assert_equal(daemon, expected)


def test_a_feature_that_is_always_zero_divides_nothing(start: Callable[..., LocalDaemon]) -> None:
    daemon, expected = start(tree(**NOTE)), Recursion()
    with daemon.producer() as producer:
        for number in range(2):
            x, y = task_data(number)
            x[:, 2] = 0.0
            producer.send(x, y, f"task-{number}")
            producer.boundary(f"task-{number}")
            expected.task(x, y)
        assert_equal(daemon, expected)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(NOTE, marks=pytest.mark.campaign, id="as in the note"),
        pytest.param({}, id="default"),
        pytest.param({"curvature": "full"}, marks=pytest.mark.campaign, id="full"),
    ],
)
def test_the_posterior_predictive_is_the_closed_form(start: Callable[..., LocalDaemon], settings: dict[str, str]) -> None:
    daemon, expected = start(tree(**settings)), Recursion()
    x, y = task_data(0)
    with daemon.producer() as producer, daemon.reader() as reader:
        producer.send(x, y, "a")
        producer.boundary("a")
        expected.task(x, y)
        a = np.c_[x, np.ones(len(x))]
        whole = np.diag(expected.precision) if settings == NOTE else PRIOR * np.eye(FEATURES + 1) + a.T @ a / NOISE
        plain, drawn = reader.predict(x), reader.predict(x, samples=1000)
    assert plain.mean.shape == y.shape
    np.testing.assert_allclose(plain.mean, a @ expected.theta, rtol=1e-6)
    np.testing.assert_allclose(plain.variance, NOISE)
    np.testing.assert_allclose(drawn.variance, NOISE + (a * np.linalg.solve(whole, a.T).T).sum(1), rtol=0.05)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param(NOTE, id="as in the note", marks=pytest.mark.campaign),
        pytest.param({}, id="default", marks=pytest.mark.campaign),
        pytest.param({"mode": "factors"}, id="factors", marks=pytest.mark.campaign),
    ],
)
def test_memory_and_checkpoint_are_the_same_after_5_and_50_tasks(
    start: Callable[..., LocalDaemon], settings: dict[str, str]
) -> None:
    daemon = start(tree(**settings))
    sizes: dict[int, dict[str, int]] = {}
    with daemon.producer() as producer:
        for number in range(1, 51):
            x, y = task_data(number)
            producer.send(x, y, f"task-{number}")
            producer.boundary(f"task-{number}")
            if number in (5, 50):
                names = ("checkpoint", "live/parameters")
                sizes[number] = {name: (daemon.state_dir / name).stat().st_size for name in names}
    assert sizes[5] == sizes[50]


def test_no_byte_pattern_of_a_consolidated_task_is_left(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    x, y = task_data(3, n=40)
    with daemon.producer() as producer:
        producer.send(x, y, "secret")
        producer.flush()
        assert holding(daemon.state_dir, x)  # the search finds what is there
        producer.boundary("secret")
        assert not holding(daemon.state_dir, x)
        producer.send(*task_data(4), "next")
        producer.flush()
    assert daemon.stop() == 0
    assert not holding(daemon.state_dir, x)


def holding(directory: Path, x: np.ndarray) -> list[Path]:
    """Files that hold any of the rows, or a part of one, in the precision sent or in single precision."""
    patterns = [piece.tobytes() for row in x for piece in (row[:2], row[2:4], row.astype("<f4")[:3])]
    files = [path for path in directory.rglob("*") if path.is_file()]
    return [path for path in files if any(pattern in path.read_bytes() for pattern in patterns)]


def test_prequential_scores_are_those_before_learning(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    (x0, y0), (x1, y1) = task_data(0), task_data(1)
    with daemon.producer() as producer, daemon.admin() as admin, daemon.reader() as reader:
        producer.send(x0, y0, "a")
        producer.boundary("a")
        overall = admin.status()["prequential"]["overall"]
        before = reader.predict(x1).mean
        producer.send(x1, y1, "b")
        producer.boundary("b")
        scores = admin.status()["prequential"]
        with urllib.request.urlopen(daemon.url("/metrics")) as answer:
            assert b"streamcl_samples_trained_total 100.0" in answer.read()
    assert scores["task"]["mae"] == pytest.approx(np.abs(y1 - before).mean())
    assert scores["task"]["rmse"] == pytest.approx(np.sqrt(((y1 - before) ** 2).mean()))
    assert scores["overall"]["mae"] == pytest.approx((overall["mae"] + scores["task"]["mae"]) / 2)
