"""The newest rows of the open task, beside which the few rows of a small message are learned.

A step on one row follows that row's noise. A message of fewer rows than `SMALL` is therefore learned in steps of
`TOGETHER`, filled up with rows of the same task that came before it, the newer the more often: how long ago a row came is
drawn evenly on a scale of powers of two, so that half of the rows are among the newest 32, and what changes is followed.
Messages of more rows are learned as they are: on streams of River's, filling up 25 at a time gained nothing.

Guarantees: a function of the rows in their order, the seed and the position; bounded memory, which a checkpoint holds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

SMALL = 16  # rows of a message, below which it is filled up
TOGETHER = 32  # rows in a step of it
MOST, MOST_BYTES = 1024, 4 << 20  # rows that are kept, and what they may take
X, Y = "recent.x", "recent.y"  # in a checkpoint

Ages = npt.NDArray[np.int64]


class Recent:
    """Rows x [n, ...] with their targets y [n, ...], as the model takes them; of a task that begins, none.

    rows: that there have been.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._kept: tuple[Tensor, Tensor] | None = None  # the row that came k-th at place k modulo their number

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]], device: torch.device) -> Recent:
        """As they were when `state` gave these."""
        recent = cls()
        if X in arrays:
            recent.add(torch.tensor(arrays[X], device=device), torch.tensor(arrays[Y], device=device))
        return recent

    @property
    def _room(self) -> int:
        return 0 if self._kept is None else len(self._kept[0])

    @property
    def held(self) -> int:
        """How many are kept."""
        return min(self.rows, self._room)

    def add(self, x: Tensor, y: Tensor) -> None:
        """More rows, as they come; the oldest make room."""
        if self._kept is None:
            room = _room_for(x, y)
            self._kept = x.new_zeros((room, *x.shape[1:])), y.new_zeros((room, *y.shape[1:]))
        first = max(0, len(x) - self._room)
        places = torch.arange(self.rows + first, self.rows + len(x), device=x.device) % max(1, self._room)
        for kept, new in zip(self._kept, (x, y), strict=True):
            kept[places] = new[first:]
        self.rows += len(x)

    def draws(self, message: int, seed: int) -> Ages | None:
        """How long ago the rows came that each row's step of so small a message is filled up with, [message, `TOGETHER`]
        from 1 on, the newest; None where it is not: the message is large enough, or nothing has come before it."""
        if message >= SMALL or self.held == 0:
            return None
        return ages(self.held, (message, TOGETHER), np.random.default_rng(seed))

    def at(self, ages: Ages) -> tuple[Tensor, Tensor]:
        """The rows that came so long ago."""
        if self._kept is None:
            raise IndexError("expected rows to have been added")
        x, y = self._kept
        places = torch.from_numpy((self.rows - ages) % self._room).to(x.device)
        return x[places], y[places]

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """For a snapshot: the rows kept, the oldest first."""
        if self.held == 0:
            return {}
        x, y = self.at(np.arange(self.held, 0, -1))
        return {X: x.cpu().numpy(), Y: y.cpu().numpy()}


def ages(rows: int, shape: tuple[int, ...], generator: np.random.Generator) -> Ages:
    """Ages from 1 to `rows`: first a power of two, each as likely, then one from it on to below the next; the last power is
    one that has as many above it."""
    powers = max(1, rows.bit_length() - 1)
    power = generator.integers(0, powers, shape)
    low = 1 << power
    found: Ages = generator.integers(low, np.where(power == powers - 1, rows + 1, 2 * low))
    return found


def _room_for(x: Tensor, y: Tensor) -> int:
    """How many rows like these are kept."""
    row = sum(math.prod(each.shape[1:]) * each.element_size() for each in (x, y))
    return min(MOST, MOST_BYTES // max(1, row))
