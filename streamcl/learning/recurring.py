"""Whether a task is one that was there before: by means of its inputs, its targets and their products.

Guarantees: a function of the rows alone, whether or not it was saved and restored in between; a few kilobytes for each of
the newest `MOST` tasks, whose rows are not kept.

Of a row, x is the numbers of `learning.shifts.channels`, and real targets likewise, each relative to its mean and deviation
over the first `CALIBRATION` rows of all and drawn into -1 to 1; t is those targets, or `TARGETS` random signs of the label.
A task is summed up by the means m and variances v of x, of t and of all products of the two. Of tasks of n and n' rows,

    distance^2 = (sum (m - m')^2 - sum (v / n + v' / n')) / (sum (v + v') / 2)

is what lies between their means, in deviations, without what chance adds to it; the largest of the three counts. The
nearest task is recognised where that is `most` or less. Nothing is said of a task of so few rows that chance alone makes
more than a quarter of most^2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.config import Config
from streamcl.learning.shifts import CALIBRATION, COLUMNS, channels
from streamcl.schema import LabelMap

TARGETS = 8
MOST = 256
SEED = 0x7A5C

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Alike:
    """An earlier task, and how far from it this one is."""

    task: str
    distance: float
    most: float

    def __str__(self) -> str:
        return (
            f"its rows look like those of task {self.task!r}: {max(0.0, self.distance):.3g} deviations apart, at most "
            f"{self.most:g} (stream.recurring_distance)"
        )


@dataclass(slots=True)
class Sums:
    """Of the features of n rows: their sums and squares, [2, D] float64."""

    rows: int = 0
    sums: Array | None = None

    def add(self, features: Array) -> None:
        """More rows' features [n, D]."""
        both = np.stack([features.sum(0), np.square(features).sum(0)])
        self.rows, self.sums = self.rows + len(features), both if self.sums is None else self.sums + both

    def moments(self) -> tuple[Array, Array]:
        """Mean and variance, [D] each."""
        assert self.sums is not None
        mean = self.sums[0] / self.rows
        return mean, np.maximum(self.sums[1] / self.rows - mean * mean, 0.0)

    def plain(self) -> list[Any]:
        """For a checkpoint."""
        return [self.rows, b"" if self.sums is None else self.sums.tobytes()]

    @classmethod
    def of(cls, plain: list[Any]) -> Sums:
        """What `plain` gave."""
        rows, packed = plain
        return cls(rows, np.frombuffer(packed).reshape(2, -1).copy() if packed else None)


def apart(one: Sums, other: Sums, parts: Sequence[int]) -> tuple[float, float]:
    """The squared distance of two tasks, and what chance adds to it: both in squared deviations, the largest of all parts.

    parts: where the second and later parts of the features begin.
    """
    (mean, variance), (mean2, variance2) = one.moments(), other.moments()
    off, chances = np.square(mean - mean2), variance / one.rows + variance2 / other.rows
    split = [np.split(each, parts) for each in (off, chances, variance + variance2)]
    found = [(float(o.sum()), float(c.sum()), float(u.sum()) / 2 or 1e-300) for o, c, u in zip(*split, strict=True)]
    return max((o - c) / u for o, c, u in found), max(c / u for _, c, u in found)


@dataclass(slots=True)
class Recurring:
    """What is known of the tasks of streams.

    most: the distance to which a task is recognised. labelled: whether targets are outputs. open: of the open task; known:
    by name, the newest last. shape: of rows and targets; where it changes, everything begins again.
    """

    most: float
    labelled: bool
    open: Sums = field(default_factory=Sums)
    known: dict[str, Sums] = field(default_factory=dict)
    shape: tuple[int, int] = (0, 0)
    _first: list[list[float]] = field(default_factory=list)
    _at: list[list[float]] = field(default_factory=list)  # mean, deviation
    _waiting: list[list[float]] = field(default_factory=list)  # targets of the first rows

    def look(self, x: Array, t: Array) -> None:
        """Rows of the open task: x [n, ...] as the model takes them, t their outputs [n] or real targets [n, ...]."""
        shape = int(np.prod(x.shape[1:])), int(np.prod(t.shape[1:]))
        if shape != self.shape:
            self.shape, self.open, self.known = shape, Sums(), {}
            self._first, self._at, self._waiting = [], [], []
        numbers, signs = channels(x), self._signs(t)
        if not self.labelled:
            numbers = np.concatenate([numbers, channels(t.astype(np.float64))], axis=1)
        if not self._at:
            numbers, signs = self._calibrate(numbers, signs)
        if len(numbers):
            self.open.add(self._features(numbers, signs))

    def _signs(self, t: Array) -> Array:
        if not self.labelled:
            return np.zeros((len(t), 0))
        values, inverse = np.unique(t, return_inverse=True)
        drawn = [np.random.default_rng([SEED, int(value)]).choice(np.array([-1.0, 1.0]), TARGETS) for value in values]
        return np.array(drawn)[inverse]

    def _calibrate(self, numbers: Array, signs: Array) -> tuple[Array, Array]:
        """Keep the first rows until they are enough; then all of them are to be summed."""
        self._first += numbers.tolist()
        self._waiting += signs.tolist()
        if len(self._first) < CALIBRATION:
            return numbers[:0], signs[:0]
        numbers, signs = np.array(self._first), np.array(self._waiting).reshape(len(self._first), -1)
        first = numbers[:CALIBRATION]
        deviation = np.maximum(first.std(0), 1e-9 * np.abs(first).max(0) + 1e-300)
        self._first, self._waiting, self._at = [], [], [first.mean(0).tolist(), deviation.tolist()]
        return numbers, signs

    def _features(self, numbers: Array, signs: Array) -> Array:
        z = (numbers - np.array(self._at[0])) / np.array(self._at[1])
        drawn = z / (1 + np.abs(z))
        inputs = drawn.shape[1] - (0 if self.labelled else min(self.shape[1], COLUMNS))
        x, t = drawn[:, :inputs], signs if self.labelled else drawn[:, inputs:]
        products = (x[:, :, None] * t[:, None, :]).reshape(len(x), -1)
        return np.concatenate([x, t, products], axis=1)

    @property
    def _parts(self) -> tuple[int, int]:
        """Where the features of targets begin, and those of products."""
        targets = min(self.shape[1], COLUMNS)
        inputs = len(self._at[0]) - (0 if self.labelled else targets)
        return inputs, inputs + (TARGETS if self.labelled else targets)

    def alike(self, among: Mapping[str, Any]) -> Alike | None:
        """The nearest of these tasks, where it is near enough to be the open one again."""
        found = None
        for task in self.known if self.open.rows else ():
            squared, chance = apart(self.open, self.known[task], self._parts)
            if task in among and 4 * chance <= self.most**2 and squared <= self.most**2:
                distance = float(np.sqrt(max(0.0, squared)))
                found = found if found is not None and found.distance <= distance else Alike(task, distance, self.most)
        return found

    def end(self, task: str | None) -> None:
        """The open task has ended and is known by this name from now on; None where it is not to be."""
        if task is not None and self.open.rows:
            self.known.pop(task, None)
            self.known[task] = self.open
            for name in list(self.known)[:-MOST]:
                del self.known[name]
        self.open, self._first, self._waiting = Sums(), [], []

    def state(self) -> dict[str, Any]:
        """Plain containers for a checkpoint."""
        return {
            "shape": list(self.shape),
            "open": self.open.plain(),
            "known": [[task, *sums.plain()] for task, sums in self.known.items()],
            "first": [list(row) for row in self._first],
            "waiting": [list(row) for row in self._waiting],
            "at": [list(each) for each in self._at],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        width, targets = state["shape"]
        self.shape, self.open = (width, targets), Sums.of(state["open"])
        self.known = {task: Sums.of(plain) for task, *plain in state["known"]}
        self._first, self._waiting, self._at = list(state["first"]), list(state["waiting"]), list(state["at"])


@dataclass(slots=True)
class Recognition:
    """As configured. tasks: None where none is to be recognised. revisits: whether one that is becomes a revisit."""

    tasks: Recurring | None = None
    revisits: bool = False

    @classmethod
    def of(cls, config: Config) -> Recognition:
        """As configured."""
        stream, labelled = config.stream, config.model.family == "categorical"
        if stream.recurring == "off":
            return cls()
        return cls(Recurring(stream.recurring_distance, labelled), stream.recurring == "revisit")

    def look(self, x: Array, y: Array, labels: LabelMap) -> None:
        """Rows of the open task of a stream, x as the model takes them and y as labels or real targets."""
        if self.tasks is not None:
            self.tasks.look(x, labels.to_outputs(y) if self.tasks.labelled else y)

    def alike(self, among: Mapping[str, Any]) -> Alike | None:
        """The one of these tasks that has come back."""
        return None if self.tasks is None else self.tasks.alike(among)

    def end(self, task: str | None) -> None:
        """The open task has ended, as `Recurring.end`."""
        if self.tasks is not None:
            self.tasks.end(task)

    def state(self) -> dict[str, Any] | None:
        """For a checkpoint."""
        return None if self.tasks is None else self.tasks.state()

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """What `state` gave; tasks from before it was asked for are not known."""
        if self.tasks is not None and state is not None:
            self.tasks.restore(state)
