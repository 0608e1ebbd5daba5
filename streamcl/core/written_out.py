"""Recurrent layers in elementary operations: PyTorch's own kernels of `nn.GRU`, `nn.RNN` and, in double precision, of
`nn.LSTM` have no batching rule.

The operations are those of PyTorch's decompositions, which it keeps for compilers. Where a release lacks them, or the rows
come packed, the layer is called as it is, and whoever asked finds out by trying.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch import _decomp as decomposed
from torch.overrides import TorchFunctionMode

NAMES = {"lstm": "lstm_impl", "gru": "gru_impl", "rnn_tanh": "rnn_tanh_input", "rnn_relu": "rnn_relu_input"}


class WrittenOut(TorchFunctionMode):
    """While it is entered, every recurrent layer that is called on rows of one length is written out."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Call the function, or what it is made of."""
        known = NAMES.get(getattr(func, "__name__", ""), "")
        other = getattr(decomposed.decompositions, known, None)
        if other is not None and not _packed(args):
            func = other
        return func(*args, **(kwargs or {}))


def _packed(args: Sequence[Any]) -> bool:
    """Whether rows are followed by their lengths, not by a state."""
    return isinstance(args[1], Tensor) and not args[1].is_floating_point()
