"""Training and evaluation modes, as the model's author set them.

A factory may freeze a part of its model by putting it into evaluation mode; ``module.train()`` would undo that.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


class TrainingFlags:
    """The training flag of every submodule, as it was when this object was made."""

    def __init__(self, module: nn.Module) -> None:
        self._flags = [(part, part.training) for part in module.modules()]
        self._recurrent = [part for part in module.modules() if isinstance(part, nn.RNNBase)]

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

    def differentiable(self) -> AbstractContextManager[None]:
        """Forward passes in there have gradients, in evaluation mode too.

        cuDNN gives none of a recurrent layer that is not in training mode: it is left alone while there is such a layer.
        """
        evaluated = any(not part.training and _on_gpu(part) for part in self._recurrent)
        return _without_cudnn() if evaluated else _AS_IT_IS


_AS_IT_IS = nullcontext()


@contextmanager
def _without_cudnn() -> Iterator[None]:
    before = torch.backends.cudnn.enabled
    torch.backends.cudnn.enabled = False
    try:
        yield
    finally:
        torch.backends.cudnn.enabled = before


def _on_gpu(part: nn.Module) -> bool:
    return any(tensor.is_cuda for tensor in part.parameters())
