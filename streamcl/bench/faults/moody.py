"""A linear model that fails on demand, for campaigns in which tasks are held and rows are set aside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Mood = Literal["well", "never", "rows"]
ODD = 50.0  # inputs beyond it are what the mood `rows` refuses

mood: Mood = "well"


def feel(new: Mood) -> None:
    """Set the mood of every such model: whether it computes, fails on anything, or on odd rows."""
    global mood
    mood = new


class Moody(nn.Linear):
    """Computes what its base computes, if it is in the mood."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, in]; raises ValueError by its mood."""
        if mood == "never" or (mood == "rows" and bool((x > ODD).any())):
            raise ValueError(f"not in the mood for {len(x)} rows")
        return super().forward(x)


def model(input_shape: Sequence[int], outputs: int) -> nn.Module:
    """The factory."""
    return Moody(input_shape[0], outputs)
