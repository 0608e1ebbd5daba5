"""When a stream has changed: River's ADWIN over the errors that rows had before they were learned from.

Guarantees: a function of the errors alone, whether or not it was saved and restored in between (without pickle); bounded
memory and state. Only a rise of the error is drift; a fall is learning. Knows nothing of tasks' names, the log or sockets.

ADWIN compares the means of every two parts of a window. Its bound is for numbers from 0 to 1:
  * categorical: 1 for a wrong row, else 0. bernoulli: the share of a row's targets that are wrong.
  * gaussian: s / (1 + s) with s a row's mean squared error over the median of `CALIBRATION` rows before, so that neither
    the targets' unit nor a single outlier matters.
Each error is rounded to a 255th, so that the newest of them are a state of a byte a row; after `2 * RECENT` rows without a
change the window begins again with the newest `RECENT`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from streamcl.learning.evaluation import right

RECENT = 32_768
CALIBRATION = 100
GRACE = 10  # rows, River's own least


@dataclass(frozen=True, slots=True)
class Rise:
    """A rise of the mean error, found at a task's row number `row`; ADWIN holds the newest `since` rows for changed."""

    before: float
    after: float
    row: int
    since: int

    def __str__(self) -> str:
        rose = f"the error rose from {self.before:.3g} to {self.after:.3g}"
        return f"{rose}, found at row {self.row} of the task, of which the newest {self.since} look changed"


def errors(likelihood: str, output: Tensor, target: Tensor) -> list[float]:
    """What `Drift.add` takes, a number a row: the share of its targets that is wrong; gaussian: the mean squared error."""
    if likelihood == "gaussian":
        wrong = (output - target).double().square().reshape(len(target), -1).mean(1)
    else:
        wrong = 1.0 - right(likelihood, output, target)
    return torch.nan_to_num(wrong, nan=1e300, posinf=1e300).tolist()


@dataclass(slots=True)
class Drift:
    """Watches one task's errors at a time.

    delta: ADWIN's significance, the risk of a false alarm at one comparison. least_rows: of a task before it is found to
    have changed. found: the rise, once there was one; nothing after it is looked at until the next task.
    """

    likelihood: str
    delta: float
    least_rows: int
    rows: int = 0
    found: Rise | None = None
    _began: int = 0  # the row before the first that the detector could see
    _scale: float | None = None  # gaussian
    _first: list[float] = field(default_factory=list)  # gaussian: errors that the scale will be made of
    _seen: bytearray = field(default_factory=bytearray)
    _adwin: Any = field(init=False, repr=False, compare=False)  # River has no types

    def __post_init__(self) -> None:
        self._adwin = self._fresh()

    def _fresh(self) -> Any:
        from river.drift import ADWIN  # here, because it takes a second, which only drift should cost

        return ADWIN(  # type: ignore[no-untyped-call]
            delta=self.delta, grace_period=max(GRACE, self.least_rows - self._began)
        )

    def open_task(self) -> None:
        """Another task: everything before it is forgotten."""
        self.rows, self.found = 0, None
        self._begin()

    def _begin(self) -> None:
        self._began, self._scale = self.rows, None
        self._first, self._seen = [], bytearray()
        self._adwin = self._fresh()

    def add(self, errors: Iterable[float]) -> None:
        """The next rows' errors, in their order."""
        for error in errors:
            if self.found is not None:
                return
            self.rows += 1
            level = self._level(error)
            if level is not None:
                self._look(level)

    def _level(self, error: float) -> int | None:
        """An error as a 255th, None while there is no scale for it."""
        if self.likelihood != "gaussian":
            return round(255 * error)
        if self._scale is None:
            self._first.append(error)
            if len(self._first) >= CALIBRATION:
                self._scale = statistics.median(self._first) or 1e-300
                self._first = []
            return None
        relative = error / self._scale
        return round(255 * (1.0 if relative > 1e6 else relative / (1.0 + relative)))

    def _look(self, level: int) -> None:
        self._seen.append(level)
        self._judge(level)
        if self.found is None and len(self._seen) >= 2 * RECENT:
            recent = self._seen[-RECENT:]
            self._began, self._seen = self.rows - RECENT, recent
            self._adwin = self._fresh()
            for older in recent:
                self._adwin.update(older / 255)

    def _judge(self, level: int) -> None:
        """What ADWIN found: the mean of what it keeps of its window tells a rise from a fall."""
        before = self._adwin.estimation
        self._adwin.update(level / 255)
        if not self._adwin.drift_detected:
            return
        after = self._adwin.estimation
        if after > before:
            self.found = Rise(before, after, self.rows, int(self._adwin.width))
        else:
            self._begin()

    def state(self) -> dict[str, Any]:
        """Plain containers for a checkpoint; at most ``2 * RECENT`` bytes and a few numbers."""
        found = self.found
        return {
            "rows": self.rows,
            "found": None if found is None else [found.before, found.after, found.row, found.since],
            "began": self._began,
            "scale": self._scale,
            "first": list(self._first),
            "seen": bytes(self._seen),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self.rows, self._began, self._scale = state["rows"], state["began"], state["scale"]
        self.found = None if state["found"] is None else Rise(*state["found"])
        self._first, self._seen = list(state["first"]), bytearray(state["seen"])
        self._adwin = self._fresh()
        for level in self._seen:
            self._adwin.update(level / 255)
