"""Follows the rows of a batch through a forward pass, as far as it consists of functions that keep them apart.

What is found here is a proof, not a test: row n of a tensor that is `apart` was computed from row n of the input alone,
just as it would have been without the other rows, and the parameters took part only where the recorder saw them.
Guarantees: never a wrong proof. Any function that is not listed below and is given such a tensor (or its length or shape,
since a model may decide by them) ends the proof; a tensor that was written to unseen is recognised by its version. If
there is no proof, `fisher` compares numbers instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

Given = tuple[Sequence[Any], Mapping[str, Any]]


class Rows:
    """The tensors of one forward pass whose rows are the batch's.

    x: the batch. constants: the module's own tensors. sound: whether nothing was seen that the proof cannot follow.
    """

    def __init__(self, x: Tensor, constants: Iterable[Tensor]) -> None:
        self._constants = {id(tensor) for tensor in constants}
        self._known: dict[int, tuple[Tensor, int]] = {}  # kept with the tensors, so that no id is used again
        self.sound = True
        self._add(x)

    def apart(self, tensor: object) -> bool:
        """Whether this is a tensor with the batch's rows, as it was when it was made."""
        found = self._known.get(id(tensor))
        return self.sound and found is not None and found[0]._version == found[1]

    def saw(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], output: object) -> None:
        """Take note of a call and its result."""
        if not self.sound or func in _TELLING or not any(id(value) in self._known for value in _flat((args, kwargs))):
            return
        rule = _KEEPING.get(func)
        self.sound = rule is not None and isinstance(output, Tensor) and self._keeps(rule, args, kwargs, output)
        if self.sound:
            self._add(output)  # type: ignore[arg-type]

    def _keeps(self, rule: Callable[..., bool], args: Sequence[Any], kwargs: Mapping[str, Any], output: Tensor) -> bool:
        """Whether rows came in first, as they were when they were made, and all else is no data."""
        if rule is _sum:
            return len(args) == 2 and not kwargs and self.apart(args[0]) and self.apart(args[1]) and _alike(*args)
        if any(isinstance(value, Tensor) and id(value) not in self._constants for value in _flat((args[1:], kwargs))):
            return False
        unchanged = bool(args) and self._unchanged(args[0], in_place=output is args[0])
        return unchanged and rule(*args, **kwargs)

    def _unchanged(self, tensor: Tensor, in_place: bool) -> bool:
        """Up to the one change of a function that works in place; views of its argument are outdated from then on."""
        found = self._known.get(id(tensor))
        return found is not None and found[1] <= tensor._version <= found[1] + in_place

    def _add(self, tensor: Tensor) -> None:
        self._known[id(tensor)] = (tensor, tensor._version)


def _alike(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape


def _flat(values: Any) -> Iterator[Any]:
    """The leaves of nested lists, tuples and maps."""
    for value in values.values() if isinstance(values, Mapping) else values:
        if isinstance(value, list | tuple | Mapping):
            yield from _flat(value)
        else:
            yield value


def _always(x: Tensor, *args: Any, **kwargs: Any) -> bool:
    return x.ndim > 0


def _sum(*args: Any) -> bool:
    raise NotImplementedError  # has rows on both sides


def _flatten(x: Tensor, start_dim: int = 0, end_dim: int = -1) -> bool:
    return start_dim > 0 and end_dim in (-1, x.ndim - 1)


def _unflatten(x: Tensor, dim: int, sizes: Any) -> bool:
    return dim > 0


def _dtype(x: Tensor, *args: Any, **kwargs: Any) -> bool:
    return len(args) == 1 and isinstance(args[0], torch.dtype) and not kwargs


def _convolution(x: Tensor, weight: Tensor, *args: Any, **kwargs: Any) -> bool:
    return x.ndim == weight.ndim


def _matrix(x: Tensor, *args: Any, **kwargs: Any) -> bool:
    return x.ndim > 1


def _dropout(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> bool:
    return not training


def _layer_norm(x: Tensor, normalized_shape: Sequence[int], *args: Any, **kwargs: Any) -> bool:
    return x.ndim > len(normalized_shape)


def _batch_norm(
    x: Tensor, mean: Any, var: Any, weight: Any = None, bias: Any = None, training: bool = False, *args: Any, **kwargs: Any
) -> bool:
    return not training and x.ndim > 1


_ELEMENTWISE = (
    *(F.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.softplus, F.hardtanh, F.mish),
    *(torch.tanh, torch.sigmoid, torch.relu, Tensor.tanh, Tensor.sigmoid, Tensor.relu),
    *(Tensor.float, Tensor.double),
)
_TELLING = {Tensor.ndim.__get__, Tensor.dim}  # type: ignore[attr-defined]  # alike for any rows, however many
_POOLS = (F.max_pool2d, F.avg_pool2d, torch.max_pool2d, F.max_pool1d, torch.max_pool1d, F.avg_pool1d)
_KEEPING: dict[Any, Callable[..., bool]] = {
    **dict.fromkeys(_ELEMENTWISE, _always),
    **dict.fromkeys(_POOLS, lambda x, *args, **kwargs: x.ndim > 2),
    **dict.fromkeys((torch.add, Tensor.add, Tensor.__add__), _sum),
    **dict.fromkeys((torch.flatten, Tensor.flatten), _flatten),
    **dict.fromkeys((torch.unflatten, Tensor.unflatten), _unflatten),
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _convolution),
    **dict.fromkeys((F.linear, F.group_norm), _matrix),
    Tensor.to: _dtype,
    F.dropout: _dropout,
    F.layer_norm: _layer_norm,
    F.batch_norm: _batch_norm,
}
