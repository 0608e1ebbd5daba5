"""What a network learns of real targets beside its parameters: offset, scale and noise variance, while tasks are fitted.

Guarantees: nothing changes for other likelihoods, or once offset and scale are fixed, but for the noise.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from streamcl.core import likelihood as likelihoods
from streamcl.learning.curvature import Taken
from streamcl.learning.data import TaskData
from streamcl.learning.network import Network
from streamcl.learning.optimisation import mean_nll


class Units:
    """Of one network's targets."""

    def __init__(self, network: Network) -> None:
        self._network = network

    @property
    def learns(self) -> bool:
        """Whether offset and scale are still to be found."""
        return self._network.targets is not None and not self._network.targets.fixed

    @property
    def least(self) -> float:
        """NLL of a row that is predicted exactly, in nats; 0 where that is not known to differ."""
        likelihood = self._network.likelihood
        return likelihood.least(self._a_row) if isinstance(likelihood, likelihoods.Gaussian) else 0.0

    @property
    def _a_row(self) -> int:
        """Targets a row."""
        return math.prod(self._network.signature.y_shape)

    def add(self, y: Tensor) -> None:
        """More targets, as they come."""
        if self._network.targets is not None:
            self._network.targets.add(y)
            self._network.retarget()

    def _squares(self, nll: float) -> float:
        """The mean squared residual, in the outputs' units, of rows with this mean NLL."""
        likelihood = self._network.likelihood
        assert isinstance(likelihood, likelihoods.Gaussian)
        return max(0.0, nll - self.least) * 2 * likelihood.noise_variance / self._a_row

    def follow(self, nll: Tensor) -> None:
        """What rows with these NLL [n] say of the noise, as they come."""
        loss = float(nll.double().mean())
        if self._network.targets is not None and math.isfinite(loss):
            self._network.targets.follow(self._squares(loss), len(nll))
            self._network.retarget()

    def find(self, data: TaskData) -> None:
        """Offset and scale of a first task's targets, of all its rows, before its epochs."""
        targets = self._network.targets
        if targets is None or targets.fixed:
            return
        targets.begin_anew()
        for _, y in data.chunks():
            targets.add(y)
        self._network.retarget()

    def find_noise(self, data: TaskData) -> None:
        """The noise that a task's residuals show, with which its curvature is taken; of a revisit, it stays."""
        targets = self._network.targets
        if targets is not None:
            targets.preview(self._squares(mean_nll(self._network, data)), data.samples * self._a_row)
            self._network.retarget()

    def noted(self, taken: Taken, data: TaskData) -> Taken:
        """The noise once effective parameters are known, and what was taken of the curvature with it; units stay."""
        targets = self._network.targets
        if targets is None:
            return taken
        squares, before = self._squares(taken.loss), targets.noise
        targets.fit(squares, data.samples * self._a_row, effective_parameters(taken))
        targets.fix()
        self._network.retarget()
        loss = self.least + self._a_row * squares / (2 * targets.noise)
        return replace(taken, curvature=taken.curvature.weighted(before / targets.noise), loss=loss)


def effective_parameters(taken: Taken) -> float:
    """How many parameters the task's own data determine, beside what their penalty says of them (MacKay 1992)."""
    own, others = taken.curvature.diagonal(), taken.cavity.precision.diagonal()
    return float((own / (own + others).clamp(min=torch.finfo(own.dtype).tiny)).sum())
