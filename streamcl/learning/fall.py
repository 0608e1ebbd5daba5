"""When the score of a task has fallen from its best: how right its rows were before they were learned from, in windows.

Guarantees: a function of the errors alone, whether or not it was saved and restored in between; the state is a few numbers.

A row's score is 1 minus its error, a number from 0 to 1 (`learning.drift`). Windows of `window` rows follow each other.
With the k-th, the fall from the best of those before is compared with the larger of `least_fall` and

    eps_k = sqrt(log(k (k - 1)^2 / delta) / window)

By Hoeffding's inequality (JASA 58, 1963, theorem 2) the mean of a window of independent rows is below that of an earlier
one, whose expected score is no higher, by eps or more with probability exp(-window eps^2) at most. Over the k - 1 windows
before that is delta / (k (k - 1)), and the sum of it over all k is delta. So a task whose rows do not get harder ends by
mistake with probability `delta` at most, however long it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from streamcl.learning.drift import Levels


@dataclass(frozen=True, slots=True)
class Fallen:
    """The newest `window` rows scored `after`; the best before them, which ended at row `at`, `before`. row: the newest."""

    before: float
    after: float
    least: float
    window: int
    at: int
    row: int
    origin: ClassVar[str] = "score"

    def __str__(self) -> str:
        fell = f"the score of {self.window} rows fell from {self.before:.3g}, its best, to {self.after:.3g}"
        why = f"by at least {self.least:.3g} (stream.score_fall, and what chance explains)"
        return f"{fell}, {why}, found at row {self.row} of the task; the best were those up to row {self.at}"


@dataclass(slots=True)
class Fall:
    """Watches one task's score at a time.

    least_fall: of the score, in itself. window: rows of a mean. delta: the risk that a task ends by mistake. least_rows: of
    a task before it may end so. found: the fall, once there was one; nothing after it is looked at until the next task.
    windows: that are whole. best, at: the best of them, and the row that it ended at.
    """

    likelihood: str
    least_fall: float
    window: int
    delta: float
    least_rows: int
    rows: int = 0
    found: Fallen | None = None
    windows: int = 0
    best: float = -1.0
    at: int = 0
    _sum: int = 0  # of the window's errors, in 255ths
    _count: int = 0
    _levels: Levels = field(init=False)

    def __post_init__(self) -> None:
        self._levels = Levels(self.likelihood)

    @property
    def by(self) -> str:
        """By what it goes."""
        return f"a fall of the score of {self.window} rows"

    def open_task(self) -> None:
        """Another task: everything before it is forgotten."""
        self.rows, self.found, self.windows, self.best, self.at = 0, None, 0, -1.0, 0
        self._sum, self._count, self._levels = 0, 0, Levels(self.likelihood)

    def add(self, errors: Iterable[float]) -> None:
        """The next rows' errors, in their order."""
        for error in errors:
            if self.found is not None:
                return
            self.rows += 1
            level = self._levels.of(error)
            if level is not None:
                self._sum, self._count = self._sum + level, self._count + 1
                if self._count == self.window:
                    self._judge(1 - self._sum / 255 / self.window)

    def _judge(self, score: float) -> None:
        self.windows, self._sum, self._count = self.windows + 1, 0, 0
        if self.windows > 1 and self.rows >= self.least_rows and self.best - score >= self.threshold:
            self.found = Fallen(self.best, score, self.threshold, self.window, self.at, self.rows)
        if score > self.best:
            self.best, self.at = score, self.rows

    @property
    def threshold(self) -> float:
        """The fall that ends a task at the newest window, from the second on."""
        k = self.windows
        return max(self.least_fall, math.sqrt(math.log(k * (k - 1) ** 2 / self.delta) / self.window))

    def state(self) -> dict[str, Any]:
        """Plain containers for a checkpoint."""
        found = self.found
        return {
            "by": self.by,
            "rows": self.rows,
            "found": None if found is None else [found.before, found.after, found.least, found.window, found.at, found.row],
            "windows": [self.windows, self.best, self.at],
            "sum": [self._sum, self._count],
            "scale": self._levels.scale,
            "first": list(self._levels.first),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; of another trigger, nothing but how far the task has come."""
        self.rows = state["rows"]
        if state.get("by") != self.by:
            return
        self.found = None if state["found"] is None else Fallen(*state["found"])
        self.windows, self.best, self.at = state["windows"]
        self._sum, self._count = state["sum"]
        self._levels = Levels(self.likelihood, state["scale"], list(state["first"]))
