"""When a stream's inputs have changed, whatever the model makes of them: River's detectors over a few numbers a row.

Guarantees: a function of the rows alone, whether or not it was saved and restored in between; bounded memory and state.

The numbers of a row (`channels`):
  * real inputs of at most `COLUMNS` numbers a row: each of them; of more: `COLUMNS` sums of them with random signs.
  * tokens: for each of `COLUMNS` random halves of all tokens, the share of the row's that are in it.
Each is taken relative to its mean and deviation over the task's first `CALIBRATION` rows and drawn into 0 to 1, with 0.5
where it was: 0.5 + 0.5 z / (1 + |z|). One number more, the mean of z^2 / (1 + z^2), shows whether they have spread. The
detectors share ADWIN's significance among them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from streamcl.learning.detectors import Detector, Shift

COLUMNS = 16
CALIBRATION = 100
KEPT = 4096  # numbers that each detector begins again with
SEED = 0x5EED

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Shifted:
    """The inputs have changed: `what` of them, from before to after, on a scale from 0 to 1."""

    what: str
    before: float
    after: float
    row: int
    since: int
    origin: ClassVar[str] = "drift"

    def __str__(self) -> str:
        went = (
            f"the inputs have changed: {self.what} went from {self.before:.3g} to {self.after:.3g} (on a scale of 0 to 1)"
        )
        return f"{went}, found at row {self.row} of the task, of which the newest {self.since} look changed"


def channels(x: Array) -> Array:
    """The numbers that are watched of rows x [n, ...], [n, C] float64; C is at most `COLUMNS`."""
    rows = x.reshape(len(x), -1)
    if rows.dtype.kind in "iu":
        odd = np.random.default_rng(SEED).integers(1 << 62, size=COLUMNS, dtype=np.uint64) * 2 + 1
        halves = (rows.astype(np.uint64)[:, :, None] + np.uint64(1)) * odd
        shares: Array = (halves >> np.uint64(63)).mean(1, dtype=np.float64)
        return shares
    width = rows.shape[1]
    if width <= COLUMNS:
        return rows.astype(np.float64)
    sums: Array = rows.astype(np.float64) @ _signs(width)
    return sums


@lru_cache(maxsize=1)
def _signs(width: int) -> Array:
    return np.random.default_rng([SEED, width]).choice(np.array([-1.0, 1.0]), (width, COLUMNS))


def named(number: int, width: int, tokens: bool) -> str:
    """What the watched number is, of rows of so many numbers."""
    if number == (COLUMNS if tokens else min(width, COLUMNS)):
        return "their spread"
    if tokens:
        return f"the share of the tokens in random half {number}"
    return f"input {number}" if width <= COLUMNS else f"random sum {number} of the {width} inputs"


@dataclass(slots=True)
class Shifts:
    """Watches one task's inputs at a time.

    delta: ADWIN's significance, for all detectors together. least_rows: of a task before they are found to have changed.
    found: the change, once there was one; nothing after it is looked at until the next task.
    """

    delta: float
    least_rows: int
    name: str = "adwin"
    settings: Mapping[str, float] = field(default_factory=dict)
    rows: int = 0
    found: Shifted | None = None
    _began: int = 0
    _width: int = 0
    _first: list[list[float]] = field(default_factory=list)  # rows that mean and deviation will be taken of
    _at: list[list[float]] = field(default_factory=list)  # mean, deviation
    _detectors: list[Detector] = field(default_factory=list)

    @property
    def by(self) -> str:
        """By what it goes."""
        return f"{self.name} on the inputs"

    def open_task(self) -> None:
        """Another task: everything before it is forgotten."""
        self.rows, self.found = 0, None
        self._begin()

    def _begin(self) -> None:
        self._began = self.rows
        self._first, self._at, self._detectors = [], [], []

    def look(self, x: Array) -> None:
        """The next rows, as the model takes them [n, ...]; where they have become wider, everything begins again."""
        if self.found is not None:
            return
        width = x.reshape(len(x), -1).shape[1]
        if self._width != width:
            self._begin()
        self._width = width
        watched, tokens = channels(x), x.dtype.kind in "iu"
        while len(watched) and self.found is None:
            taken = self._watch(watched, tokens) if self._at else self._calibrate(watched)
            watched = watched[taken:]

    def _calibrate(self, watched: Array) -> int:
        """Take in the first rows, which say where the numbers are; returns how many of these are among them."""
        taken = watched[: CALIBRATION - len(self._first)].tolist()
        self._first += taken
        self.rows += len(taken)
        if len(self._first) == CALIBRATION:
            first = np.array(self._first)
            deviation = np.maximum(first.std(0), 1e-9 * np.abs(first).max(0) + 1e-300)
            self._first, self._at = [], [first.mean(0).tolist(), deviation.tolist()]
            self._detectors = [self._detector() for _ in range(first.shape[1] + 1)]
            for detector in self._detectors:
                detector.begin(self.least_rows - self.rows)
        return len(taken)

    def _levels(self, watched: Array) -> Array:
        """The numbers of rows as 255ths, and their spread, [n, C + 1]."""
        z = (watched - np.array(self._at[0])) / np.array(self._at[1])
        with np.errstate(over="ignore"):
            spread = np.mean(1 - 1 / (1 + z * z), axis=1, keepdims=True)
        drawn = np.concatenate([0.5 + 0.5 * z / (1 + np.abs(z)), spread], axis=1)
        levels: Array = np.rint(255 * drawn).astype(np.uint8)
        return levels

    def _detector(self) -> Detector:
        delta = {"delta": self.delta / (len(self._at[0]) + 1)} if self.name == "adwin" else {}
        return Detector(self.name, {**delta, **self.settings}, either=True, recent=KEPT)

    def _watch(self, watched: Array, tokens: bool) -> int:
        """Look at rows until a change is found, or everything begins again; returns how many those are."""
        for number, levels in enumerate(self._levels(watched)):
            self.rows += 1
            self._look(levels, tokens)
            if self.found is not None or not self._at:
                return number + 1
        return len(watched)

    def _look(self, levels: Array, tokens: bool) -> None:
        for number, (detector, level) in enumerate(zip(self._detectors, levels.tolist(), strict=True)):
            shift = detector.add(level)
            if shift is not None:
                self._judge(shift, named(number, self._width, tokens))
                return
            if detector.is_full:
                detector.begin(self.least_rows - self.rows, detector.seen[-detector.kept :])

    def _judge(self, shift: Shift, what: str) -> None:
        if self.rows >= self.least_rows:
            self.found = Shifted(what, shift.before, shift.after, self.rows, shift.since)
        else:
            self._begin()

    def state(self) -> dict[str, Any]:
        """Plain containers for a checkpoint; at most ``2 * KEPT`` bytes for each number, and a few."""
        found = self.found
        return {
            "by": self.by,
            "rows": self.rows,
            "found": None if found is None else [found.what, found.before, found.after, found.row, found.since],
            "began": self._began,
            "width": self._width,
            "first": [list(row) for row in self._first],
            "at": [list(each) for each in self._at],
            "seen": [bytes(detector.seen) for detector in self._detectors],
            "begun": [detector.grace for detector in self._detectors],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over what `state` gave; of another trigger, nothing but how far the task has come."""
        self.rows = state["rows"]
        self._begin()
        if state.get("by") != self.by:
            return
        self.found = None if state["found"] is None else Shifted(*state["found"])
        self._began, self._width = state["began"], state["width"]
        self._first, self._at = [list(row) for row in state["first"]], [list(each) for each in state["at"]]
        for seen, grace in zip(state["seen"], state["begun"], strict=True):
            self._detectors.append(self._detector())
            self._detectors[-1].begin(grace, seen)
