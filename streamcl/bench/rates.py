"""``streamcl bench rates``: what the defaults learn while data arrive, beside the best of a grid over rate and minibatch.

In one pass through the learner of this process: accuracy on each row before it is learned, or for real targets the share of
their variance that is explained. Inputs are scaled by what has come so far, as by River's StandardScaler in front. The
grid's best is found in hindsight on the same rows, which nobody can do on a stream.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.versions import versions
from streamcl.estimator import Learner
from streamcl.learning.evaluation import Running

Array = npt.NDArray[Any]
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
MINIBATCHES = (1, 4, 16, 64)
MESSAGE = 64  # rows
GOAL = 2.0  # points behind the best


@dataclass(frozen=True, slots=True)
class Data:
    """Rows in the order in which they come. real: numbers are predicted, not classes."""

    x: Array
    y: Array
    real: bool


@dataclass(slots=True)
class Result:
    """Of one stream: by seed, the defaults' score and each cell's."""

    stream: str
    defaults: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    grid: dict[str, list[float]] = field(default_factory=dict)

    @property
    def best(self) -> str:
        """The cell that is best on average."""
        return max(self.grid, key=lambda cell: float(np.mean(self.grid[cell])))

    @property
    def behind(self) -> float:
        """Points that the defaults are behind the best cell; negative where they are ahead."""
        return 100 * float(np.mean(self.grid[self.best]) - np.mean(self.defaults))


# -- streams -----------------------------------------------------------------------------------------------------------


def streams() -> dict[str, Callable[[int, int], Data]]:
    """Each stream by name, made from a seed and the most rows to take."""
    from river import datasets
    from river.datasets import synth

    shipped: Any = datasets  # some of its classes say nothing of types

    def halves(one: Iterable[Any], other: Iterable[Any], rows: int) -> Iterator[Any]:
        return itertools.chain(itertools.islice(one, rows // 2), other)

    return {
        "RandomRBFDrift": lambda seed, n: _river(
            synth.RandomRBFDrift(
                seed, seed, n_classes=4, n_features=8, n_centroids=20, change_speed=0.001, n_drift_centroids=10
            ),
            n,
        ),
        "SEA, changed half-way": lambda seed, n: _river(
            halves(synth.SEA(0, seed=seed, noise=0.1), synth.SEA(3, seed=seed + 9, noise=0.1), n), n
        ),
        "Agrawal": lambda seed, n: _river(synth.Agrawal(2, seed=seed), n),
        "Hyperplane": lambda seed, n: _river(
            synth.Hyperplane(seed=seed, n_features=10, n_drift_features=4, mag_change=0.001), n
        ),
        "LED": lambda seed, n: _river(synth.LED(seed=seed, noise_percentage=0.1), n),
        "STAGGER, changed half-way": lambda seed, n: _river(
            halves(synth.STAGGER(0, seed=seed), synth.STAGGER(2, seed=seed + 9), n), n
        ),
        "Waveform": lambda seed, n: _river(synth.Waveform(seed=seed), n),
        "ImageSegments": lambda seed, n: _river(shipped.ImageSegments(), n),
        "Phishing": lambda seed, n: _river(shipped.Phishing(), n),
        "digits": lambda seed, n: _sklearn("digits", seed, n),
        "wine": lambda seed, n: _sklearn("wine", seed, n),
        "breast cancer": lambda seed, n: _sklearn("breast_cancer", seed, n),
        "Friedman": lambda seed, n: _river(synth.Friedman(seed=seed), n, real=True),
        "FriedmanDrift": lambda seed, n: _river(
            synth.FriedmanDrift(seed=seed, position=(n // 3, n // 2, 3 * n // 4)), n, real=True
        ),
        "TrumpApproval": lambda seed, n: _river(shipped.TrumpApproval(), n, real=True),
        "diabetes": lambda seed, n: _sklearn("diabetes", seed, n, real=True),
    }


def _river(source: Iterable[Any], most: int, real: bool = False) -> Data:
    rows = list(itertools.islice(source, most))
    columns = [column for key in rows[0][0] for column in _columns([row[key] for row, _ in rows])]
    return _data(np.array(columns, np.float64).T, [target for _, target in rows], real)


def _columns(values: list[Any]) -> list[list[float]]:
    """A feature as it is; of words, one column each."""
    if isinstance(values[0], str):
        return [[float(value == word) for value in values] for word in sorted(set(values))]
    return [[float(value) for value in values]]


def _sklearn(name: str, seed: int, most: int, real: bool = False) -> Data:
    """One of scikit-learn's, in random order."""
    from sklearn import datasets

    found = getattr(datasets, f"load_{name}")()
    order = np.random.default_rng(seed).permutation(len(found.data))[:most]
    return _data(found.data[order].astype(np.float64), list(found.target[order]), real)


def _data(x: Array, targets: list[Any], real: bool) -> Data:
    if real:
        return Data(scaled(x), np.array(targets, np.float32), real)
    places = {label: place for place, label in enumerate(sorted(set(targets), key=str))}
    return Data(scaled(x), np.array([places[label] for label in targets], np.int64), real)


def scaled(x: Array) -> Array:
    """Every row by the mean and deviation of the rows up to it, at most 10 deviations away."""
    count = np.arange(1, len(x) + 1)[:, None]
    mean = np.cumsum(x, 0) / count
    variance = np.cumsum(x * x, 0) / count - mean**2
    known = variance > 1e-12 * (1 + mean**2)
    apart = np.where(known, (x - mean) / np.sqrt(np.where(known, variance, 1.0)), 0.0)
    return np.clip(apart, -10, 10).astype(np.float32)


# -- one pass ----------------------------------------------------------------------------------------------------------


def score(data: Data, seed: int, hidden: list[int], train: dict[str, Any], boundary: int) -> float:
    """One pass; boundary: rows of a task, 0 for a stream without boundaries. NaN where training diverged.

    Of real targets, rows count from the second message on: of the first, nobody knows where the targets lie.
    """
    model: dict[str, Any] = {"args": {"hidden": hidden}, "likelihood": "gaussian" if data.real else "categorical"}
    if not data.real:
        model["classes"] = int(max(2, data.y.max() + 1))
    learner = Learner({"model": model, "train": {"seed": seed, "device": "cpu", **train}})
    first = 0.0
    for start in range(0, len(data.x), MESSAGE):
        rows = slice(start, start + MESSAGE)
        ends = boundary > 0 and (start + MESSAGE) % boundary < MESSAGE
        learner.observe(data.x[rows], data.y[rows], f"task {start // boundary if boundary else 0}", boundary=ends)
        if start == 0 and data.real:
            first = _squares(learner)
    if not data.real:
        return _scores(learner).scores()["accuracy"]
    rest = data.y[MESSAGE:].astype(np.float64)
    return 1 - (_squares(learner) - first) / float(((rest - rest.mean()) ** 2).sum())


def _squares(learner: Learner) -> float:
    """Squared errors so far, summed."""
    square = _scores(learner).means["rmse"]
    return square.weight * square.value


def _scores(learner: Learner) -> Running:
    """Of every row before it was learned from."""
    return learner._learner.watch.prequential.overall  # the daemon's status has them; the class no name for them


def run(
    seeds: list[int],
    rows: int,
    hidden: list[int],
    boundary: int,
    only: str,
    out: Path | None,
) -> int:
    """Run, print a line a stream, write figures; 1 where the defaults are more than two points behind on any."""
    results: list[Result] = []
    with as_in_the_trainer():
        for name, make in streams().items():
            if only not in name:
                continue
            results.append(_compared(name, make, seeds, rows, hidden, boundary))
            _print(results[-1])
            if out is not None:
                document = _document(results, seeds, rows, hidden, boundary)
                out.write_text(json.dumps(document, indent=2) + "\n")
    return int(any(result.behind > GOAL for result in results))


def _compared(
    name: str, make: Callable[[int, int], Data], seeds: list[int], rows: int, hidden: list[int], boundary: int
) -> Result:
    result = Result(name)
    for seed in seeds:
        data = make(seed, rows)
        started = time.monotonic()
        result.defaults.append(score(data, seed, hidden, {}, boundary))
        result.seconds.append(time.monotonic() - started)
        for rate, size in itertools.product(RATES, MINIBATCHES):
            train = {"learning_rate": rate, "batch_size": size}
            result.grid.setdefault(f"{size} rows at {rate:g}", []).append(score(data, seed, hidden, train, boundary))
    return result


def _print(result: Result) -> None:
    means = {cell: float(np.mean(values)) for cell, values in result.grid.items()}
    print(
        f"{result.stream:<28} defaults {np.mean(result.defaults):.4f}   best {means[result.best]:.4f} ({result.best})   "
        f"behind {result.behind:+.2f}   64 rows at 0.003: {means['64 rows at 0.003']:.4f}   "
        f"{np.mean(result.seconds):.1f} s",
        flush=True,
    )


def _document(results: list[Result], seeds: list[int], rows: int, hidden: list[int], boundary: int) -> dict[str, Any]:
    figures = {
        result.stream: {
            "defaults": [round(value, 4) for value in result.defaults],
            "best": result.best,
            "points_behind": round(result.behind, 2),
            "seconds": [round(value, 2) for value in result.seconds],
            "grid": {cell: [round(value, 4) for value in values] for cell, values in result.grid.items()},
        }
        for result in results
    }
    settings = {"seeds": seeds, "rows": rows, "hidden": hidden, "boundary": boundary, "message": MESSAGE, "goal": GOAL}
    return {"benchmark": "rates", "versions": versions(), **settings, "figures": figures}
