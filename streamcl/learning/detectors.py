"""River's drift detectors by name, over numbers from 0 to 1.

Guarantees: what is found is a function of the numbers alone, whether or not it was saved and restored in between (without
pickle: the newest numbers are kept, and given to a new detector again); bounded memory and state.

Each number is rounded to a 255th, so that the newest of them are a state of a byte each. After twice as many as are kept
without a change, the window begins again with those that are: `RECENT`, or fewer, and KSWIN, which looks no further back,
its window.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcl.config import DETECTORS

RECENT = 32_768
GRACE = 10  # rows, River's own least
SEED = 0  # of KSWIN, which draws what it compares
TWO_SIDED: Mapping[str, Mapping[str, Any]] = {
    "page_hinkley": {"mode": "both"},
    "hddm_a": {"two_sided_test": True},
    "hddm_w": {"two_sided_test": True},
}
RISES: Mapping[str, Mapping[str, Any]] = {"page_hinkley": {"mode": "up"}}


@dataclass(frozen=True, slots=True)
class Shift:
    """A change of the mean from before to after, of which the newest `since` numbers are held for changed."""

    before: float
    after: float
    since: int


def river(name: str, settings: Mapping[str, float], grace: int, either: bool) -> Any:
    """A detector of River's. grace: numbers before it may find anything, where it can be told. either: also of a fall."""
    from river import drift  # here, because it takes a second, which only drift should cost
    from river.drift import binary

    how: dict[str, Any] = {**DETECTORS[name], **settings, **(TWO_SIDED if either else RISES).get(name, {})}
    match name:
        case "adwin":
            return drift.ADWIN(**how, grace_period=grace)  # type: ignore[no-untyped-call]
        case "kswin":
            return drift.KSWIN(**how, seed=SEED)
        case "page_hinkley":
            return drift.PageHinkley(**how)
    made = {"ddm": binary.DDM, "hddm_a": binary.HDDMA, "hddm_w": binary.HDDMW}[name]
    return made(**how)  # type: ignore[no-untyped-call]


@dataclass(slots=True)
class Detector:
    """One detector.

    either: whether it looks for a fall as well as for a rise. recent: numbers that its window begins again with; kept: the
    same, also for KSWIN. seen: the newest numbers, in 255ths. grace: numbers after the beginning of its window until
    anything may be found (ADWIN).
    """

    name: str
    settings: Mapping[str, float]
    either: bool = False
    recent: int = RECENT
    seen: bytearray = field(default_factory=bytearray)
    grace: int = 0
    kept: int = field(init=False)
    _river: Any = field(init=False, default=None, repr=False, compare=False)  # River has no types

    def __post_init__(self) -> None:
        self.kept = int({**DETECTORS[self.name], **self.settings}.get("window_size", self.recent))

    def begin(self, grace: int, seen: bytes | bytearray = b"") -> None:
        """Forget everything but `seen`."""
        self.seen, self.grace = bytearray(seen), grace
        self._river = river(self.name, self.settings, max(GRACE, grace), self.either)
        for older in self.seen:
            self._river.update(older / 255)

    @property
    def is_full(self) -> bool:
        """Whether the window should begin again."""
        return len(self.seen) >= 2 * self.kept

    def add(self, level: int) -> Shift | None:
        """One more number, in 255ths; the change that it shows."""
        self.seen.append(level)
        before = self._mean()
        self._river.update(level / 255)
        if not self._river.drift_detected:
            return None
        return Shift(before, self._mean(), int(self._river.width)) if self.name == "adwin" else self._split()

    def _mean(self) -> float:
        return float(self._river.estimation) if self.name == "adwin" else 0.0

    def _split(self) -> Shift:
        """For detectors that do not say what has changed: where the means before and after differ most, in their errors."""
        seen = np.frombuffer(bytes(self.seen), np.uint8) / 255
        count = np.arange(1, len(seen))
        before = np.cumsum(seen)[:-1] / count
        after = np.cumsum(seen[::-1])[:-1][::-1] / count[::-1]
        at = int(np.argmax(np.abs(after - before) * np.sqrt(count * count[::-1])))
        return Shift(float(before[at]), float(after[at]), len(seen) - 1 - at)
