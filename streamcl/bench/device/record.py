"""What a run on a device comes to, row by row: a comparison, or why there is none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol


class Record(Protocol):
    """A row of the document."""

    @property
    def good(self) -> bool:
        """Whether nothing is wrong with it."""

    def plain(self) -> dict[str, Any]:
        """For a JSON document."""

    def text(self) -> str:
        """For a terminal."""


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. ratio: streamcl's seconds over the yardstick's. goal: the most that it may be; None: it is only
    to be known.

    mine, yardstick: in `unit`. parameters: of the network. rows: in one call. peak: bytes of the device's memory that the
    comparison came to, all that was there before it included; None on a CPU. rounds: how many were timed.
    """

    name: str
    against: str
    ratio: float
    goal: float | None
    mine: float
    yardstick: float
    parameters: int
    rows: int
    precision: str
    rounds: int
    peak: int | None = None
    unit: str = "s"

    @property
    def verdict(self) -> str:
        """Whether the goal is met, where there is one."""
        if self.goal is None:
            return ""
        return "met" if self.ratio <= self.goal else "missed"

    @property
    def good(self) -> bool:
        """Whether it misses no goal."""
        return self.verdict != "missed"

    def plain(self) -> dict[str, Any]:
        """For a JSON document."""
        return {**asdict(self), "verdict": self.verdict}

    def text(self) -> str:
        """For a terminal."""
        goal = "" if self.goal is None else f"<= {self.goal:<6g}{self.verdict}"
        peak = "" if self.peak is None else f"  {self.peak / 1e9:.1f} GB"
        return f"{self.name:<72}{self.against:<44}{self.ratio:8.3f}  {goal}{peak}"


@dataclass(frozen=True, slots=True)
class Skipped:
    """A row that there is not, and why. fits: it could not have been had on this device; failed: something went wrong."""

    name: str
    why: str
    fits: bool = True
    failed: bool = False

    @property
    def good(self) -> bool:
        """Whether the device's memory, or what it is, is all that is in its way."""
        return self.fits and not self.failed

    def plain(self) -> dict[str, Any]:
        """For a JSON document."""
        return {"name": self.name, "failed" if self.failed else "skipped" if self.fits else "not reached": self.why}

    def text(self) -> str:
        """For a terminal."""
        return f"{self.name:<72}{'FAILED' if self.failed else 'left out'}: {self.why}"


def memory(records: Sequence[Record], most: int) -> Iterator[Row]:
    """The most memory that any part has come to at each size, beside so many bytes; nothing where none was counted."""
    sizes: dict[int, list[Row]] = {}
    for record in records:
        if isinstance(record, Row) and record.peak is not None:
            sizes.setdefault(record.parameters, []).append(record)
    for parameters, rows in sizes.items():
        largest = max(rows, key=lambda row: row.peak or 0)
        peak, name = float(largest.peak or 0), f"the most memory, by {largest.name}"
        yield Row(name, f"{most / 1e9:g} GB", peak / most, 1.0, peak, most, parameters, 0, "", 1, largest.peak, "bytes")


def written(out: Path | None, document: Mapping[str, Any]) -> None:
    """Put the whole document where it belongs, by a rename: whoever reads it finds all of one version."""
    if out is None:
        return
    aside = out.with_name(f".{out.name}.{os.getpid()}")
    aside.write_text(json.dumps(document, indent=2) + "\n")
    aside.replace(out)
