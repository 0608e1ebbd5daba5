"""What a Gaussian model learns of its targets beside their means: where they lie, how far they spread, and their noise.

The network's outputs stand for ``(y - offset) / scale``, so that targets far from zero, or large, are as easily learned as
any; offset and scale are the rows' mean and standard deviation, found while the first task is open and fixed at its
boundary: every penalty is about outputs that mean the same. Where all its targets are alike, that boundary fixes the
offset alone, for which its outputs stand, and the next task that varies the scale, about it. The noise variance, in
squared scales, follows the residuals that rows have before they are learned, until the first boundary; from there on it is

    (v + sum of squared residuals) / (1 + targets - effective parameters)

over all tasks learned for the first time, as they were fitted (MacKay 1992): one target's worth of v, what the first
task's residuals were before its rows were learned (from 0.01 to 1, what targets themselves vary), keeps it from zero.
Guarantees: a function of the rows; its state is 5 + 3 k numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.core.likelihood import Gaussian, Units

OFFSET, SCALE, NOISE, SUMS = (f"targets.{name}" for name in ("offset", "scale", "noise", "sums"))  # in a checkpoint
KEPT = 0.996  # of what is known of the residuals, a row later, until the first boundary
ANCHORED = 0.5  # in a checkpoint, between not fixed and fixed
FAR = 1e4  # standard deviations from zero: beyond, 32 bits round targets by more than a thousandth of one
LARGE = 1e15  # a scale whose square 32 bits have room for, as for that of its inverse
LEAST_WORTH = 0.01  # of v: targets without noise would leave no width at all
MOST_FITTED = 0.5  # of the targets, that effective parameters may account for

Array = npt.NDArray[Any]


class Targets:
    """Of rows with k targets each. rows: that offset and scale were found on. fixed: by a boundary; anchored: the offset
    alone. noise: variance."""

    def __init__(self, k: int) -> None:
        self.rows = 0
        self.fixed = self.anchored = False
        self.noise = 1.0
        self._mean, self._squares = np.zeros(k), np.zeros(k)  # of deviations from the mean, summed (Welford)
        self._counted = self._residuals = 0.0  # targets less effective parameters, and their squared residuals

    @property
    def offset(self) -> Array:
        """[k]."""
        return self._mean

    @property
    def scale(self) -> Array:
        """[k]; 1 where the targets have not been seen to vary."""
        spread = np.sqrt(self._squares / max(1, self.rows))
        least = 1e-9 * np.abs(self._mean)  # no more than rounding
        return np.where(spread > least, spread, 1.0)

    @property
    def _is_far(self) -> bool:
        """Whether 32 bits would lose what targets differ by, or their variances' size."""
        scale = self.scale
        return bool((np.abs(self.offset) > FAR * scale).any() or (scale > LARGE).any() or (scale < 1 / LARGE).any())

    def likelihood(self, device: torch.device, dtype: torch.dtype) -> Gaussian:
        """As they are now."""
        kind = torch.float64 if self._is_far else dtype
        offset, scale = (torch.tensor(each).to(device, kind) for each in (self.offset, self.scale))
        return Gaussian(self.noise, Units(offset, scale))

    def before(self, y: Tensor) -> Tensor:
        """What was to be expected of each of the first rows [n, ...] that there are: the mean of those before it."""
        flat = y.reshape(len(y), -1).double()
        sums = flat.cumsum(0) - flat
        count = torch.arange(len(y), dtype=sums.dtype, device=y.device).clamp(min=1)
        return (sums / count.unsqueeze(1)).to(y.dtype).reshape(y.shape)

    # -- learned -------------------------------------------------------------------------------------------------

    def add(self, y: Tensor) -> None:
        """More rows [n, ...], which offset and scale are found on too."""
        flat = y.detach().reshape(len(y), -1).double().cpu().numpy()
        rows, mean = len(flat), flat.mean(0)
        total = self.rows + rows
        if self.anchored:
            self._squares, self.rows = self._squares + ((flat - self._mean) ** 2).sum(0), total
            return
        apart = mean - self._mean
        self._squares = self._squares + ((flat - mean) ** 2).sum(0) + apart**2 * (self.rows * rows / total)
        self._mean = self._mean + apart * (rows / total)
        self.rows = total

    def begin_anew(self) -> None:
        """Offset and scale are to be found on the rows that follow."""
        self.rows, self._squares = 0, np.zeros_like(self._squares)
        if not self.anchored:
            self._mean = np.zeros_like(self._mean)

    def follow(self, squares: float, rows: int) -> None:
        """The mean squared residual of so many rows, in squared scales, as they were predicted before they were learned."""
        kept = KEPT**rows
        self._counted = kept * self._counted + rows
        self._residuals = kept * self._residuals + rows * squares
        self._settle()

    def fit(self, squares: float, targets: int, fitted: float) -> None:
        """A task as it was fitted: its mean squared residual, and the effective parameters that came of its targets."""
        if self._is_unknown:
            self._counted, self._residuals, self.noise = 0.0, 0.0, 1.0
            return
        self._counted, self._residuals = self._so_far()
        self._counted += targets - min(fitted, MOST_FITTED * targets)
        self._residuals += targets * squares
        self._settle()

    def fix(self) -> None:
        """Offset and scale stay as they are from here on; the offset alone, where no target has been seen to vary."""
        vary = bool((self._squares > 0).any())
        self.fixed, self.anchored = vary, not vary

    @property
    def _is_unknown(self) -> bool:
        """Whether no scale is known, so that no residual tells how large the noise is."""
        return not self.fixed and not (self._squares > 0).any()

    def preview(self, squares: float, targets: int) -> None:
        """The noise alone, as if no parameter had been fitted: while a task's curvature is taken."""
        if self._is_unknown:
            self.noise = 1.0
            return
        counted, residuals = self._so_far()
        self.noise = (1 + residuals + targets * squares) / (1 + counted + targets)

    def _so_far(self) -> tuple[float, float]:
        """Targets counted and squared residuals of the tasks before; of none, what v differs from 1 by."""
        if self.fixed:
            return self._counted, self._residuals
        worth = self._residuals / self._counted if self._counted > 0 else 1.0
        return 0.0, min(max(worth, LEAST_WORTH), 1.0) - 1.0

    def _settle(self) -> None:
        self.noise = (1 + self._residuals) / (1 + self._counted)

    # -- what a checkpoint holds ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Array]:
        """What predictions are made with, and the sums that go on, as float64."""
        how = ANCHORED if self.anchored else float(self.fixed)
        sums = [float(self.rows), how, self._counted, self._residuals, *self._squares]
        plain = {OFFSET: self.offset.copy(), SCALE: self.scale, NOISE: np.array([self.noise]), SUMS: np.array(sums)}
        return {name: np.asarray(array, np.float64) for name, array in plain.items()}

    def load(self, state: Mapping[str, Array]) -> None:
        """Take over what `state` gave; without it, of a model made before they were learned, outputs are the targets."""
        if SUMS not in state:
            self._take(np.array([0.0, 1.0, 0.0, 0.0]), np.zeros_like(self._mean), np.zeros_like(self._mean), 1.0)
            return
        sums = np.asarray(state[SUMS], np.float64)
        self._take(sums[:4], np.array(state[OFFSET], np.float64), sums[4:].copy(), float(state[NOISE][0]))

    def _take(self, sums: Array, mean: Array, squares: Array, noise: float) -> None:
        rows, fixed, self._counted, self._residuals = sums.tolist()
        self.rows, self.fixed, self.anchored, self.noise = int(rows), fixed == 1.0, fixed == ANCHORED, noise
        self._mean, self._squares = mean, squares
