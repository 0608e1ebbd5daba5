"""``streamcl bench calibration``: log loss and calibration of plain predictions, draws of the outputs, and the closed form.

Each on rows that were never learned, by learners in this process at their defaults. The uncertainty must never cost log
loss; where it does not help, its width tau is 0 and the three agree.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.bench.permuted_mnist import load_images
from streamcl.bench.versions import versions
from streamcl.client.reader import Prediction
from streamcl.estimator import Learner

Array = npt.NDArray[Any]
BINS = 15
WAYS: dict[str, dict[str, Any]] = {"plain": {}, "draws": {"samples": 100}, "closed": {"uncertainty": True}}
FEW = 50
BATCH = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """tasks: rows and targets of each, in turn; x, y: rows that are never learned, and theirs."""

    likelihood: str
    hidden: tuple[int, ...]
    tasks: list[tuple[Array, Array]]
    x: Array
    y: Array


@dataclass(frozen=True, slots=True)
class Score:
    """nll: mean, nats a row. error: expected calibration error; of real targets, of the quantiles."""

    nll: float
    error: float
    accuracy: float | None


def run(data: Path | None, train_rows: int, seeds: list[int], only: str, out: Path | None) -> list[dict[str, Any]]:
    """Every case (MNIST if `data` is given) with every seed, printed as they come, and written if asked."""
    print(f"{'':<22}{'seed':>5}" + "".join(f"{way + ' NLL':>12}{'ECE':>8}" for way in WAYS) + "  tau")
    rows = []
    for name, make in _cases(data, train_rows).items():
        for seed in seeds if only in name else []:
            rows.append({"case": name, "seed": seed, **_scored(make(seed), seed)})
            _print(rows[-1])
            if out is not None:
                settings = {"seeds": seeds, "train_rows": train_rows}
                whole = {"benchmark": "calibration", "settings": settings, "versions": versions(), "results": rows}
                out.write_text(json.dumps(whole, indent=2) + "\n")
    return rows


def _print(row: dict[str, Any]) -> None:
    figures = "".join(f"{row[way]['nll']:12.4f}{row[way]['error']:8.4f}" for way in WAYS)
    print(f"{row['case']:<22}{row['seed']:>5}{figures}  {row['note']}", flush=True)


def _scored(case: Case, seed: int) -> dict[str, Any]:
    learner = Learner(
        {
            "model": {"likelihood": case.likelihood, "args": {"hidden": list(case.hidden)}, "classes": 10},
            "train": {"seed": seed},
        }
    )
    rng = np.random.default_rng(seed)
    for number, (x, y) in enumerate(case.tasks):
        order = rng.permutation(len(x))
        for start in range(0, len(x), BATCH):
            rows = order[start : start + BATCH]
            learner.observe(x[rows], y[rows], task=f"task {number}")
        learner.boundary(f"task {number}")
    answers = {way: learner.predict(case.x, **how) for way, how in WAYS.items()}
    scores = {way: asdict(score(answer, case.y)) for way, answer in answers.items()}
    return {**scores, "note": (answers["closed"].note or "").partition(" of the")[0].partition(":")[0]}


def score(answer: Prediction, y: Array) -> Score:
    """Of predictions for rows with targets y [n]."""
    if "probs" not in answer.arrays:
        return _of_reals(answer.mean.reshape(-1), answer.variance.reshape(-1), y)
    probs = answer.probs.astype(np.float64)
    if probs.ndim == 1 or probs.shape[1] == 1:
        ones = probs.reshape(-1)
        probs = np.stack([1 - ones, ones], 1)
    labels = y.astype(np.int64)
    held = np.maximum(probs[np.arange(len(labels)), labels], np.finfo(np.float64).tiny)
    sure, right = probs.max(1), probs.argmax(1) == labels
    return Score(float(-np.log(held).mean()), calibration_error(sure, right), float(right.mean()))


def calibration_error(sure: Array, right: Array) -> float:
    """Expected calibration error: what is claimed less what comes true, in bins of equal width, weighted by rows."""
    places = np.minimum((sure * BINS).astype(int), BINS - 1)
    bins = [places == place for place in np.unique(places)]
    return float(sum(abs(sure[rows].mean() - right[rows].mean()) * rows.mean() for rows in bins))


def _of_reals(mean: Array, variance: Array, y: Array) -> Score:
    """The calibration error: of the shares of targets below the predicted quantiles 5%, 10%, ... 95%."""
    nll = 0.5 * np.log(2 * math.pi * variance) + (y - mean) ** 2 / (2 * variance)
    below = np.array([0.5 * (1 + math.erf(z)) for z in (y - mean) / np.sqrt(2 * variance)])
    error = np.mean([abs((below <= level).mean() - level) for level in np.arange(0.05, 1, 0.05)])
    return Score(float(nll.mean()), float(error), None)


# -- data ------------------------------------------------------------------------------------------------------------------


def _cases(data: Path | None, train_rows: int) -> dict[str, Callable[[int], Case]]:
    """By name, each a function of the seed."""
    cases: dict[str, Callable[[int], Case]] = {
        "digits": lambda seed: _digits([None]),
        f"digits, {FEW} rows": lambda seed: _few(_digits([None]), seed),
        "digits, five sites": lambda seed: _digits(_orders(seed, 5)),
        "digits, two classes": lambda seed: _pairs(_digits([None])),
        "cancer (Bernoulli)": lambda seed: _table("breast_cancer", "bernoulli", seed),
        f"cancer, {FEW} rows": lambda seed: _few(_table("breast_cancer", "bernoulli", seed), seed),
        "diabetes (Gaussian)": lambda seed: _table("diabetes", "gaussian", seed),
        f"diabetes, {FEW} rows": lambda seed: _few(_table("diabetes", "gaussian", seed), seed),
        "diabetes, three tasks": lambda seed: _split(_table("diabetes", "gaussian", seed), 3),
        "friedman": lambda seed: _function("friedman1", seed, n_samples=900, noise=1.0),
        "friedman, three tasks": lambda seed: _split(_function("friedman1", seed, n_samples=900, noise=1.0), 3),
        "friedman, noise 0.1": lambda seed: _function("friedman1", seed, n_samples=900, noise=0.1),
        "linear": lambda seed: _function("regression", seed, n_samples=600, n_features=5, noise=10.0),
        "linear, three tasks": lambda seed: _split(
            _function("regression", seed, n_samples=600, n_features=5, noise=10.0), 3
        ),
        "linear, no noise": lambda seed: _function("regression", seed, n_samples=1000, n_features=10, noise=0.1),
    }
    return cases if data is None else cases | {"MNIST": lambda seed: _mnist(data, train_rows)}


def _orders(seed: int, tasks: int) -> list[Array | None]:
    rng = np.random.default_rng(seed)
    return [rng.permutation(64) for _ in range(tasks)]


def _digits(orders: list[Array | None]) -> Case:
    """One task for every order of the pixels, 1397 rows each."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    rows = np.random.default_rng(0).permutation(len(digits.data))
    x, y = (digits.data[rows] / 16).astype("<f4"), digits.target[rows]
    turned = [x if order is None else x[:, order] for order in orders]
    tasks = [(each[:1397], y[:1397]) for each in turned]
    return Case(
        "categorical", (256, 256), tasks, np.concatenate([each[1397:] for each in turned]), np.tile(y[1397:], len(turned))
    )


def _pairs(case: Case) -> Case:
    """Two classes a task."""
    ((x, y),) = case.tasks
    return replace(case, tasks=[(x[y // 2 == k], y[y // 2 == k]) for k in range(5)])


def _few(case: Case, seed: int) -> Case:
    ((x, y),) = case.tasks
    rows = np.random.default_rng(seed).permutation(len(x))[:FEW]
    return replace(case, tasks=[(x[rows], y[rows])])


def _split(case: Case, tasks: int) -> Case:
    """The same rows, in so many tasks."""
    ((x, y),) = case.tasks
    return replace(case, tasks=list(zip(np.array_split(x, tasks), np.array_split(y, tasks), strict=True)))


def _table(name: str, likelihood: str, seed: int) -> Case:
    from sklearn import datasets

    table = getattr(datasets, f"load_{name}")()
    return _standardised(table.data, table.target.astype(np.float64), likelihood, seed)


def _function(name: str, seed: int, **settings: Any) -> Case:
    """Rows that scikit-learn makes of a function of columns."""
    from sklearn import datasets

    x, y = getattr(datasets, f"make_{name}")(random_state=0, **settings)
    return _standardised(x, y, "gaussian", seed)


def _standardised(data: Array, target: Array, likelihood: str, seed: int) -> Case:
    """Three quarters of the rows to learn; everything scaled by these, but zeros and ones."""
    rows = np.random.default_rng(seed).permutation(len(data))
    learned, held = rows[: len(rows) * 3 // 4], rows[len(rows) * 3 // 4 :]
    x, y = (data - data[learned].mean(0)) / (data[learned].std(0) + 1e-9), target
    if likelihood == "gaussian":
        y = (y - y[learned].mean()) / y[learned].std()
    x, y = x.astype("<f4"), y.astype("<f4")
    return Case(likelihood, (64, 64), [(x[learned], y[learned])], x[held], y[held])


def _mnist(data: Path, train_rows: int) -> Case:
    images = load_images(data, train_rows)
    return Case("categorical", (200, 200), [(images.train_x, images.train_y)], images.test_x, images.test_y)
