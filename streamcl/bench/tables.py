"""``streamcl bench tables``: tables as people have them, beside scikit-learn; and streams of River's, raw beside scaled.

Learners in this process at their defaults, fed as `streamcl send` feeds a daemon (the bits are the same); nothing tuned.

    orders     a CSV of our own making: words, empty cells, an identifier, dates, a number with a heavy tail. A word is
    to be
               told from it, or a price. 2,000 rows to learn as one task, 1,000 held out. Beside it scikit-learn's pipeline
               (imputer with indicator, one-hot, scaler, MLP of 100) on the same rows at once, its targets scaled for it
    streams    Phishing, ImageSegments, TrumpApproval, Shuttle and, where River has it here, Bikes: every 25 rows are
               predicted, then learned; scored behind the first 500. Raw with names; the same with columns scaled by hand,
               by all their rows, before; and both row by row: raw, and River's scaler with its own linear model

Each row says by how much the input stage falls short of the other: in points of accuracy, or per cent of the RMSE.
"""

from __future__ import annotations

import csv
import json
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.columns import plain
from streamcl.datafiles import Columns, open_data
from streamcl.datafiles.table import MOST_LABELS
from streamcl.estimator import Learner

Array = npt.NDArray[Any]
LEARNED, HELD_OUT = 2000, 1000
TOGETHER, WARM = 25, 500
MOST_ROWS = 10_000  # of a stream
POINT, SHARE = 0.01, 0.05  # what raw features may cost
STREAMS = ("Phishing", "ImageSegments", "TrumpApproval", "Shuttle", "Bikes")
COLOURS = ("red, dark", "green", "blue", 'grey "mat"')


@dataclass(slots=True)
class Row:
    """One comparison. ours, theirs: of each seed, accuracies or RMSEs (`real`). other: what ours is beside."""

    data: str
    other: str
    real: bool
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def short(self) -> float:
        """By how much ours is worse on average: a share of one, or of their RMSE."""
        ours, theirs = float(np.mean(self.ours)), float(np.mean(self.theirs))
        return ours / theirs - 1 if self.real else theirs - ours

    @property
    def reached(self) -> bool:
        """Whether that is within a point, or 5 per cent."""
        return self.short <= (SHARE if self.real else POINT)


# -- orders --------------------------------------------------------------------------------------------------------------


def orders(directory: Path, seed: int, target: str) -> tuple[Path, Path]:
    """The CSV to learn, and the one held out. target: outcome (a word) or price."""
    rng = np.random.default_rng(seed)
    n = LEARNED + HELD_OUT
    weight, colour, value = rng.normal(50, 20, n), rng.choice(COLOURS, n), rng.lognormal(0, 2, n)
    days, lacks = rng.integers(0, 700, n), rng.random(n) < 0.2
    signal = (weight - 50) / 20 + 2.0 * (colour == COLOURS[0]) - 2.0 * (colour == COLOURS[2]) + np.log(value) / 2
    signal += 1.5 * lacks + (days - 350) / 200
    told = np.where(signal + rng.normal(0, 0.5, n) > 0, "accepted", "refused")
    price = 100 + 10 * signal + rng.normal(0, 2, n)
    dates = np.datetime64("2024-01-01") + days
    paths = directory / f"{target}-{seed}-learn.csv", directory / f"{target}-{seed}-held-out.csv"
    for path, part in zip(paths, (range(LEARNED), range(LEARNED, n)), strict=True):
        with path.open("w", newline="") as file:
            out = csv.writer(file)
            out.writerow(["customer", "weight", "colour", "value", "when", target])
            for k in part:
                cells = ["" if lacks[k] else f"{weight[k]:.3f}", "" if k % 11 == 0 else colour[k], f"{value[k]:.5g}"]
                out.writerow([f"C{k:06d}", *cells, dates[k], told[k] if target == "outcome" else f"{price[k]:.3f}"])
    return paths


def sent(learn: Path, held_out: Path, target: str, seed: int) -> float:
    """Ours: a file sent as one task, the other predicted."""
    data = open_data(learn, Columns(label=target), named=True)
    learner = Learner({"train": {"seed": seed, "device": "cpu"}})
    data.check()
    form = data.form()
    for block in data.blocks():
        x, y, columns = data.batch(*block, form)
        learner.observe(x, y, schema=plain(columns or ()))
    learner.boundary()
    test = open_data(held_out, Columns(label=target), named=True)
    test.check()
    pinned = learner._session.columns
    assert pinned is not None
    test.fit(pinned.columns, data.left_out, begun=True)
    predicted, truth = [], []
    for block in test.blocks():
        x, y, columns = test.batch(*block, form)
        found = learner.predict(x, schema=plain(columns or ()))
        predicted.append(found.label if target == "outcome" else found.mean)
        assert block[1] is not None
        truth.append(test.targets(block[1]))
    return scored(np.concatenate(predicted), np.concatenate(truth), real=target == "price")


def pipeline(learn: Path, held_out: Path, target: str, seed: int) -> float:
    """scikit-learn's, on all rows at once."""
    from sklearn.compose import TransformedTargetRegressor, make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    columns = make_column_transformer((numbers, list(range(5))), (OneHotEncoder(handle_unknown="ignore"), [5]))
    how = {"hidden_layer_sizes": (100,), "random_state": seed, "max_iter": 400}
    last: Any = MLPClassifier(**how)
    if target == "price":
        last = TransformedTargetRegressor(MLPRegressor(**how), transformer=StandardScaler())
    (x, y), (test_x, test_y) = _cells(learn, target), _cells(held_out, target)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        predicted = make_pipeline(columns, last).fit(x, y).predict(test_x)
    return scored(predicted, test_y, real=target == "price")


def _cells(path: Path, target: str) -> tuple[Array, Array]:
    """Numbers, the date as three of them, and the word, as scikit-learn takes them."""
    from datetime import date

    rows, targets = [], []
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            day = date.fromisoformat(row["when"])
            numbers = [float(row["weight"] or "nan"), float(row["value"]), day.toordinal(), day.month, day.weekday()]
            rows.append([*numbers, row["colour"] or "none"])
            targets.append(row[target])
    return np.array(rows, object), np.array(targets, float if target == "price" else str)


def scored(predicted: Array, truth: Array, real: bool) -> float:
    """RMSE of real targets, accuracy of others."""
    if real:
        return float(np.sqrt(np.mean((predicted.astype(float) - truth) ** 2)))
    return float(np.mean([one == other for one, other in zip(predicted, truth, strict=True)]))


# -- streams -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Stream:
    """River's rows: numbers [n, k] with names, and targets."""

    name: str
    names: Sequence[str]
    x: Array
    y: Array
    rows: list[tuple[dict[str, float], Any]]

    @property
    def real(self) -> bool:
        """Whether targets are real numbers."""
        return self.y.dtype.kind == "f"


def stream(name: str) -> Stream | None:
    """One of River's; None where it would have to be downloaded and cannot be."""
    from river import datasets

    found = []
    try:
        for x, y in getattr(datasets, name)():
            found.append(({key: float(value) for key, value in x.items() if isinstance(value, int | float)}, y))
            if len(found) == MOST_ROWS:
                break
    except OSError:
        return None
    names = list(found[0][0])
    x = np.array([[row[key] for key in names] for row, _ in found])
    first = found[0][1]
    real = isinstance(first, float) or len({target for _, target in found}) > MOST_LABELS
    y = np.array([float(target) for _, target in found]) if real else _labels([target for _, target in found])
    return Stream(name, names, x, y, found)


def _labels(targets: list[Any]) -> Array:
    places = {target: place for place, target in enumerate(dict.fromkeys(targets))}
    return np.array([places[target] for target in targets])


def prequential(data: Stream, x: Array, named: bool, seed: int, together: int = TOGETHER) -> float:
    """Ours: each few rows predicted before they are learned, in one task that stays open."""
    likelihood = "gaussian" if data.real else "categorical"
    learner = Learner({"model": {"likelihood": likelihood}, "train": {"seed": seed, "device": "cpu"}})
    schema = [{"name": name, "kind": "number"} for name in data.names] if named else None
    predicted = [np.zeros(min(together, len(x)))]
    for start in range(0, len(x), together):
        part = slice(start, start + together)
        if start:
            found = learner.predict(x[part], schema=schema)
            predicted.append(found.mean if data.real else found.label)
        learner.observe(x[part], data.y[part], schema=schema)
    return scored(np.concatenate(predicted)[WARM:], data.y[WARM:], data.real)


def rivers(data: Stream) -> float:
    """River's scaler with its own linear model."""
    from river import linear_model, multiclass, preprocessing

    one: Any = linear_model.LinearRegression() if data.real else linear_model.LogisticRegression()
    many = not data.real and len(set(data.y.tolist())) > 2
    model = preprocessing.StandardScaler() | (multiclass.OneVsRestClassifier(one) if many else one)
    predicted = []
    for row, target in data.rows:
        predicted.append(model.predict_one(row))
        model.learn_one(row, target)
    truth = np.array([target for _, target in data.rows], float if data.real else object)
    return scored(np.array(predicted, object)[WARM:], truth[WARM:], data.real)


def compare(seeds: Sequence[int], only: str) -> Iterator[Row]:
    """Every comparison whose name contains `only`."""
    for target in ("outcome", "price"):
        if only in f"orders: {target}":
            yield _of_orders(target, seeds)
    for name in STREAMS:
        if only not in name:
            continue
        data = stream(name)
        if data is None:
            print(f"{name}: River has to download it, and cannot here; left out", flush=True)
            continue
        yield from _of_stream(data, seeds)


def _of_orders(target: str, seeds: Sequence[int]) -> Row:
    row = Row(f"orders: {target}", "scikit-learn at once", real=target == "price")
    with tempfile.TemporaryDirectory() as place:
        for seed in seeds:
            paths = orders(Path(place), seed, target)
            started = time.monotonic()
            row.ours.append(sent(*paths, target, seed))
            row.seconds.append(time.monotonic() - started)
            row.theirs.append(pipeline(*paths, target, seed))
    return row


def _of_stream(data: Stream, seeds: Sequence[int]) -> Iterator[Row]:
    scaled, river = Row(data.name, "scaled by hand", data.real), Row(data.name, "River's linear model", data.real)
    spread = data.x.std(0)
    by_hand = (data.x - data.x.mean(0)) / np.where(spread > 0, spread, 1)
    for seed in seeds:
        for row, together in ((scaled, TOGETHER), (river, 1)):
            started = time.monotonic()
            row.ours.append(prequential(data, data.x, True, seed, together))
            row.seconds.append(time.monotonic() - started)
        scaled.theirs.append(prequential(data, by_hand, False, seed))
        river.theirs.append(rivers(data))
    yield from (scaled, river)


def run(seeds: Sequence[int], only: str, out: Path | None) -> int:
    """Print the comparisons, and write them as JSON; 1 where one falls short by more than a point, or 5 per cent."""
    rows = []
    print(f"{'data':<18}{'beside':<24}{'ours':>10}{'theirs':>10}{'short by':>12}{'seconds':>10}", flush=True)
    for row in compare(seeds, only):
        rows.append(row)
        short = f"{100 * row.short:.1f} {'%' if row.real else 'points'}"
        figures = f"{np.mean(row.ours):>10.4f}{np.mean(row.theirs):>10.4f}{short:>12}{np.mean(row.seconds):>10.1f}"
        print(f"{row.data:<18}{row.other:<24}{figures}", flush=True)
    document = {
        "benchmark": "tables",
        "seeds": list(seeds),
        "rows": [{**asdict(row), "short": row.short, "reached": row.reached} for row in rows],
    }
    if out is not None:
        out.write_text(json.dumps(document, indent=2) + "\n")
    return 0 if rows and all(row.reached for row in rows) else 1
