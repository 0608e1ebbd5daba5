"""What an exact learner's updates cost, beside the symmetric product that they are made of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from streamcl.core.moments import BLOCK_ROWS, Moments, Summing

WIDTHS, ROWS = (500, 1000, 2000), 8192


@dataclass(frozen=True, slots=True)
class Update:
    """Rows a second at d features: of bare symmetric products z^T z of blocks, and of the sums, rows coming in batches."""

    width: int
    batch: int
    bare: float
    sums: float

    @property
    def share(self) -> float:
        """Of the bare product's rate."""
        return self.sums / self.bare


def updates(widths: Sequence[int] = WIDTHS, rounds: int = 5) -> Iterator[Update]:
    """The best of some rounds, one beside the other."""
    for width in widths:
        z = torch.randn((ROWS, width), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for batch in (64, 1024):
            each = [(_seconds(bare, z), _seconds(summed, z, batch)) for _ in range(rounds)]
            plainly, own = (min(seconds) for seconds in zip(*each, strict=True))
            yield Update(width, batch, ROWS / plainly, ROWS / own)


def _seconds(action: Callable[..., None], *given: Any) -> float:
    started = time.perf_counter()
    action(*given)
    return time.perf_counter() - started


def bare(z: Tensor) -> None:
    """z^T z of every block of rows [n, d]."""
    rows = z.numpy()
    for start in range(0, len(rows), BLOCK_ROWS):
        block = rows[start : start + BLOCK_ROWS]
        block.T @ block


def summed(z: Tensor, batch: int) -> None:
    """The sums of rows [n, d] of ten classes that come so many at a time."""
    groups = torch.arange(len(z)) % 10
    summing = Summing(Moments.none(10, z.shape[1]))
    for start in range(0, len(z), batch):
        summing.add(z[start : start + batch], groups[start : start + batch])
    summing.settle()
