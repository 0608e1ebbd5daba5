"""How a file was read, for its user to see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamcl.datafiles.choice import listed


@dataclass(frozen=True, slots=True)
class Reading:
    """A file as it was understood, all of it having been read once.

    features, label: columns of a table or arrays of an NPZ file. x, y: dtype and shape of a row. left_out: what is not
    used, and why. notes: what else was assumed. words: the targets are.
    """

    file: str
    kind: str
    rows: int
    header: str | None
    features: Sequence[str]
    x: tuple[str, tuple[int, ...]]
    label: str | None
    label_why: str
    y: tuple[str, tuple[int, ...]] | None
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = ()
    words: bool = False

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        y = None if self.y is None else {"dtype": self.y[0], "shape": list(self.y[1])}
        return {
            "file": self.file,
            "kind": self.kind,
            "rows": self.rows,
            "header": self.header,
            "label": self.label,
            "label_found": self.label_why or None,
            "features": list(self.features),
            "left_out": dict(self.left_out),
            "x": {"dtype": self.x[0], "shape": list(self.x[1])},
            "y": y,
            "notes": list(self.notes),
        }

    def lines(self) -> list[str]:
        """For people: one line, and one for each thing that was left out or assumed."""
        parts = [f"read {self.file}: {self.rows} {'row' if self.rows == 1 else 'rows'}"]
        if self.header is not None:
            parts.append(f"header: {self.header}")
        parts.append(f"features: {listed(self.features)} as {self.x[0]}{_shape(self.x[1])}")
        if self.label is None or self.y is None:
            parts.append("no label")
        else:
            how = "words" if self.words else f"{self.y[0]}{_shape(self.y[1])}"
            parts.append(f"label: {self.label} ({self.label_why}) as {how}")
        whys: dict[str, list[str]] = {}
        for name, why in self.left_out.items():
            whys.setdefault(why, []).append(name)
        out = [f"  left out: {listed(names)} ({why})" for why, names in whys.items()]
        return ["; ".join(parts), *out, *(f"  {note}" for note in self.notes)]


def _shape(shape: Sequence[int]) -> str:
    return f" {list(shape)}" if shape else ""
