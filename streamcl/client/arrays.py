"""What a client takes for arrays, and small blocks of rows that travel as one message."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from streamcl.columns import Columns
from streamcl.protocol.frames import Array


def _alike(one: Array, other: Array) -> bool:
    """Whether these are rows of one kind."""
    return one.dtype == other.dtype and one.shape[1:] == other.shape[1:]


def _same(one: Columns | None, other: Columns | None) -> bool:
    """Whether these are the same columns, in whichever rows a number may be missing."""
    if one is None or other is None:
        return one is other
    return [(c.name, c.kind, c.categories) for c in one] == [(c.name, c.kind, c.categories) for c in other]


def is_block(x: Array, y: Array) -> bool:
    """Whether these are rows and as many targets."""
    return x.ndim > 0 and y.ndim > 0 and 0 < len(x) == len(y)


@dataclass(slots=True)
class Gathered:
    """Small blocks of one task that will be sent as one message: rows of one shape and dtype, of the same columns.

    seq: the number that the newest was given by its sender, None where they are counted.
    """

    task: str
    since: float
    columns: Columns | None = None
    seq: int | None = None
    x: list[Array] = field(default_factory=list)
    y: list[Array] = field(default_factory=list)
    nbytes: int = 0

    def takes(self, x: Array, y: Array, task: str, columns: Columns | None = None, seq: int | None = None) -> bool:
        """Whether a block can be joined to the others without changing its meaning."""
        alike = _same(columns, self.columns) and _alike(x, self.x[0]) and _alike(y, self.y[0])
        return alike and task == self.task and (seq is None) == (self.seq is None)

    def add(self, x: Array, y: Array) -> None:
        """One more block."""
        self.x.append(x)
        self.y.append(y)
        self.nbytes += x.nbytes + y.nbytes

    def joined(self) -> dict[str, Array]:
        """All blocks as one batch."""
        return {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in (("x", self.x), ("y", self.y))
        }
