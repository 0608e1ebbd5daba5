"""When a stream has changed: one of River's detectors over the errors that rows had before they were learned from.

Guarantees: a function of the errors alone, whether or not it was saved and restored in between; bounded memory and state.
Only a rise of the error is drift; a fall is learning. Knows nothing of tasks' names, the log or sockets.

An error is a number from 0 to 1:
  * categorical: 1 for a wrong row, else 0. bernoulli: the share of a row's targets that are wrong.
  * gaussian: s / (1 + s) with s a row's mean squared error over the median of `CALIBRATION` rows before, so that neither
    the targets' unit nor a single outlier matters.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from streamcl.learning.detectors import RECENT, Detector, Shift
from streamcl.learning.evaluation import right

__all__ = ["CALIBRATION", "RECENT", "Drift", "Levels", "Reached", "Rise", "errors"]

CALIBRATION = 100


@dataclass(frozen=True, slots=True)
class Rise:
    """A rise of the mean error, found at a task's row number `row`; the newest `since` rows are held for changed."""

    before: float
    after: float
    row: int
    since: int
    origin: ClassVar[str] = "drift"

    def __str__(self) -> str:
        rose = f"the error rose from {self.before:.3g} to {self.after:.3g}"
        return f"{rose}, found at row {self.row} of the task, of which the newest {self.since} look changed"


@dataclass(frozen=True, slots=True)
class Reached:
    """A task has as many rows as one is to have, with those of its last message."""

    rows: int
    least: int
    origin: ClassVar[str] = "rows"

    def __str__(self) -> str:
        return f"the task has {self.rows} rows, at least the {self.least} that end one (stream.boundary_rows)"


def errors(likelihood: str, output: Tensor, target: Tensor) -> list[float]:
    """What `Drift.add` takes, a number a row: the share of its targets that is wrong; gaussian: the mean squared error."""
    if likelihood == "gaussian":
        wrong = (output - target).double().square().reshape(len(target), -1).mean(1)
    else:
        wrong = 1.0 - right(likelihood, output, target)
    return torch.nan_to_num(wrong, nan=1e300, posinf=1e300).tolist()


@dataclass(slots=True)
class Levels:
    """Errors as 255ths of numbers from 0 to 1. scale, first (gaussian): the median error, and those it will be made of."""

    likelihood: str
    scale: float | None = None
    first: list[float] = field(default_factory=list)

    def of(self, error: float) -> int | None:
        """One error, None while there is no scale for it."""
        if self.likelihood != "gaussian":
            return round(255 * error)
        if self.scale is None:
            self.first.append(error)
            if len(self.first) >= CALIBRATION:
                self.scale = statistics.median(self.first) or 1e-300
                self.first = []
            return None
        relative = error / self.scale
        return round(255 * (1.0 if relative > 1e6 else relative / (1.0 + relative)))


@dataclass(slots=True)
class Drift:
    """Watches one task's errors at a time.

    delta: ADWIN's significance, the risk of a false alarm at one comparison. least_rows: of a task before it is found to
    have changed. name, settings: of another detector. found: the rise, once there was one; nothing after it is looked at
    until the next task.
    """

    likelihood: str
    delta: float
    least_rows: int
    name: str = "adwin"
    settings: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    found: Rise | None = None
    _began: int = 0  # the row before the first that the detector could see
    _levels: Levels = field(init=False)
    _detector: Detector = field(init=False)

    def __post_init__(self) -> None:
        delta = {"delta": self.delta} if self.name == "adwin" else {}
        self._detector = Detector(self.name, {**delta, **self.settings})
        self._begin()

    @property
    def by(self) -> str:
        """By what it goes."""
        return f"{self.name} on the score"

    def open_task(self) -> None:
        """Another task: everything before it is forgotten."""
        self.rows, self.found = 0, None
        self._begin()

    def _begin(self) -> None:
        self._began, self._levels = self.rows, Levels(self.likelihood)
        self._detector.begin(self.least_rows - self._began)

    def add(self, errors: Iterable[float]) -> None:
        """The next rows' errors, in their order."""
        for error in errors:
            if self.found is not None:
                return
            self.rows += 1
            level = self._levels.of(error)
            if level is not None:
                self._look(level)

    def _look(self, level: int) -> None:
        shift = self._detector.add(level)
        if shift is not None:
            self._judge(shift)
        elif self._detector.is_full:
            recent = self._detector.seen[-self._detector.kept :]
            self._began = self.rows - len(recent)
            self._detector.begin(self.least_rows - self._began, recent)

    def _judge(self, shift: Shift) -> None:
        """A rise, unless it comes too soon; a fall is learning, and what came before it says nothing any more."""
        if shift.after > shift.before and self.rows >= self.least_rows:
            self.found = Rise(shift.before, shift.after, self.rows, shift.since)
        else:
            self._begin()

    def state(self) -> dict[str, Any]:
        """Plain containers for a checkpoint; at most ``2 * RECENT`` bytes and a few numbers."""
        found = self.found
        return {
            "by": self.by,
            "rows": self.rows,
            "found": None if found is None else [found.before, found.after, found.row, found.since],
            "began": self._began,
            "scale": self._levels.scale,
            "first": list(self._levels.first),
            "seen": bytes(self._detector.seen),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; of another detector, nothing but how far the task has come."""
        self.rows = state["rows"]
        if state.get("by", "adwin on the score") != self.by:
            self._begin()
            return
        self._began = state["began"]
        self.found = None if state["found"] is None else Rise(*state["found"])
        self._levels = Levels(self.likelihood, state["scale"], list(state["first"]))
        self._detector.begin(self.least_rows - self._began, state["seen"])
