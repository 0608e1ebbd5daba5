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
            if part.training is not flag:
                _set(part, flag)

    def eval(self) -> None:
        """Evaluation mode everywhere."""
        for part, _ in self._flags:
            if part.training:
                _set(part, False)

    def rest(self) -> None:
        """Evaluation mode from now on: it is never trained, and nothing need be put back."""
        self.eval()
        self._flags = [(part, False) for part, _ in self._flags]

    def differentiable(self) -> AbstractContextManager[None]:
        """Forward passes in there have gradients, in evaluation mode too.

        cuDNN gives none of a recurrent layer that is not in training mode: it is left alone while there is such a layer.
        """
        evaluated = any(not part.training and _on_gpu(part) for part in self._recurrent)
        return _without_cudnn() if evaluated else _AS_IT_IS


def _set(part: nn.Module, flag: bool) -> None:
    """As the module would; its own way, which looks for parameters and submodules of that name, is slow."""
    if type(part).__setattr__ is nn.Module.__setattr__ and "training" in part.__dict__:
        part.__dict__["training"] = flag
    else:
        part.training = flag


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
