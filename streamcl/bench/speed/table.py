"""Rows of a comparison: two things timed in turns, the ratio of their medians, and whether the goal is met."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, Literal

Timed = Callable[[], float]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. ratio: streamcl's figure over the yardstick's. goal: the most, or the least, that it may be.

    mine, yardstick: the two figures, in `unit`.
    """

    name: str
    against: str
    ratio: float
    bound: Literal["at most", "at least"]
    goal: float
    mine: float
    yardstick: float
    unit: str = "s"

    @property
    def verdict(self) -> Literal["met", "missed"]:
        """Whether the goal is met."""
        return "met" if (self.ratio <= self.goal if self.bound == "at most" else self.ratio >= self.goal) else "missed"

    def plain(self) -> dict[str, Any]:
        """For a JSON document."""
        return {**asdict(self), "verdict": self.verdict}

    def text(self) -> str:
        """For a terminal."""
        sign = "<=" if self.bound == "at most" else ">="
        return f"{self.name:<58}{self.against:<46}{self.ratio:8.2f}  {sign} {self.goal:<6g}{self.verdict}"


def timed(action: Callable[[], Any]) -> Timed:
    """An action that returns the seconds it took."""

    def run() -> float:
        started = time.perf_counter()
        action()
        return time.perf_counter() - started

    return run


def spent(action: Callable[[], Any]) -> Timed:
    """An action that returns the processor's seconds that it took, of all its threads: other programs count for nothing."""

    def run() -> float:
        started = time.process_time()
        action()
        return time.process_time() - started

    return run


def interleaved(one: Timed, other: Timed, rounds: int) -> tuple[float, float]:
    """Medians of what both return, called in turn, after one call each that does not count.

    In turns, so that noise that comes in waves affects both.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for action, kept in zip((one, other), taken, strict=True):
            figure = action()
            if number:
                kept.append(figure)
    return statistics.median(taken[0]), statistics.median(taken[1])


def slower(name: str, against: str, goal: float, one: Timed, other: Timed, rounds: int) -> Row:
    """How many times the yardstick's seconds streamcl takes, at most `goal`."""
    mine, yardstick = interleaved(one, other, rounds)
    return Row(name, against, mine / yardstick, "at most", goal, mine, yardstick)


def as_fast(name: str, against: str, goal: float, one: Timed, other: Timed, rounds: int) -> Row:
    """Which share of the yardstick's rate streamcl reaches, at least `goal`; both return seconds for the same work."""
    mine, yardstick = interleaved(one, other, rounds)
    return Row(name, against, yardstick / mine, "at least", goal, mine, yardstick)
