"""Training and evaluation modes, as the model's author set them.

A factory may freeze a part of its model by putting it into evaluation mode; ``module.train()`` would undo that.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from streamcl.errors import ModelRefused


class TrainingFlags:
    """The training flag of every submodule as it was when this was made."""

    def __init__(self, module: nn.Module) -> None:
        self._flags = [(part, part.training) for part in module.modules()]

    def train(self) -> None:
        """Put every flag back to what it was."""
        for part, flag in self._flags:
            if part.training is not flag:  # a module's attributes are slow to set
                part.training = flag

    def eval(self) -> None:
        """Evaluation mode everywhere."""
        for part, _ in self._flags:
            if part.training:
                part.training = False


def refuse_batchnorm(module: nn.Module) -> None:
    """Raise ModelRefused for batch normalisation in training mode, naming the layers and the remedy.

    Its running statistics follow the newest data, are not part of the posterior, and so would be forgotten freely.
    """
    layers = [name for name, part in module.named_modules() if isinstance(part, _BatchNorm) and part.training]
    if layers:
        raise ModelRefused(
            f"batch normalisation in training mode ({', '.join(layers) or 'the model itself'}): its running statistics "
            "are not part of the posterior, so every task would overwrite them. Use GroupNorm or LayerNorm, or freeze "
            "the statistics by calling .eval() on these layers in the factory"
        )
