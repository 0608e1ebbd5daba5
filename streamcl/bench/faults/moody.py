"""Linear models for the campaigns: with a frozen part, and one that fails on demand besides.

The frozen part is just large enough to be stored by its digest, beside the checkpoint.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Mood = Literal["well", "never", "rows"]
SIDE = 64  # of the table: 16 KiB
ODD = 50.0  # inputs beyond it are what the mood `rows` refuses

mood: Mood = "well"


def feel(new: Mood) -> None:
    """Set the mood of every such model: whether it computes, fails on anything, or on odd rows."""
    global mood
    mood = new


class Frozen(nn.Linear):
    """Inputs scaled by a table that no training changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_buffer("table", torch.linspace(0.9, 1.1, SIDE * SIDE).reshape(SIDE, SIDE))

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, in]."""
        assert isinstance(self.table, Tensor)
        return super().forward(x * self.table[0, : x.shape[1]].to(x.dtype))


class Moody(Frozen):
    """Computes what its base computes, if it is in the mood."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, in]; raises ValueError by its mood."""
        if mood == "never" or (mood == "rows" and bool((x > ODD).any())):
            raise ValueError(f"not in the mood for {len(x)} rows")
        return super().forward(x)


def frozen(input_shape: Sequence[int], outputs: int) -> nn.Module:
    """The factory of one that always computes."""
    return Frozen(input_shape[0], outputs)


def model(input_shape: Sequence[int], outputs: int) -> nn.Module:
    """The factory."""
    return Moody(input_shape[0], outputs)
