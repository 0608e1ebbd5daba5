"""Training and evaluation modes, as the model's author set them.

A factory may freeze a part of its model by putting it into evaluation mode; ``module.train()`` would undo that.
"""

from __future__ import annotations

from torch import nn


class TrainingFlags:
    """The training flag of every submodule, as it was when this object was made."""

    def __init__(self, module: nn.Module) -> None:
        self._flags = [(part, part.training) for part in module.modules()]

    def train(self) -> None:
        """Restore every flag."""
        for part, flag in self._flags:
            if part.training is not flag:  # a module's attributes are slow to set
                part.training = flag

    def eval(self) -> None:
        """Evaluation mode everywhere."""
        for part, _ in self._flags:
            if part.training:
                part.training = False
