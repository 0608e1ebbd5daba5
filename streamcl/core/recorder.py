"""Finds the calls of functions with a closed form (`closed_forms`) in a forward pass, wherever they come from.

A layer, a bare ``F.linear`` and the inside of an attention block are all seen at the function that they call, with the
parameter that they pass to it. Guarantees: the outputs are unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from streamcl.core.closed_forms import Convolution, Dense, Lookup, Names, Scaling, Site, Windows
from streamcl.core.provenance import Rows

PLAIN_ATTENTION = 128 * 128  # scores of a head and sample, up to which they are kept


class Recorder(TorchFunctionMode):
    """Notes calls of functions with a closed form while it is active.

    parameters: by name. rows: follows the batch's rows. sites: in the order of the calls.
    """

    def __init__(self, parameters: Iterable[tuple[str, Tensor]], rows: Rows) -> None:
        super().__init__()
        self._names = {id(p): name for name, p in parameters}
        self.rows = rows
        self.sites: list[Site] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.multi_head_attention_forward:
            with self:
                return _attention(*args, **kwargs)
        noted = _NOTED.get(func)
        output = func(*args, **kwargs) if noted is None else noted(self, func, *args, **kwargs)
        self.rows.saw(func, args, kwargs, output)
        return output

    def names(self, weight: Tensor | None, bias: Tensor | None) -> Names:
        """Of these two, where they are parameters."""
        return self._names.get(id(weight)), self._names.get(id(bias))

    def note(self, output: Tensor, site: Callable[[], Site]) -> None:
        """Remember a call, if anything depends on its output."""
        if output.requires_grad:
            self.sites.append(site())


def _linear(recorder: Recorder, func: Any, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    output: Tensor = func(input, weight, bias)
    names = recorder.names(weight, bias)
    if names != (None, None):
        recorder.note(output, lambda: Dense(names, output, input))
    return output


def _convolution(
    recorder: Recorder,
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    output: Tensor = func(input, weight, bias, stride, padding, dilation, groups)
    names = recorder.names(weight, bias)
    if names != (None, None) and output.ndim == weight.ndim:
        kernel = tuple(weight.shape[2:])
        spread = _each(dilation, kernel)
        windows = Windows(kernel, _each(stride, kernel), _widths(padding, kernel, spread), spread, groups)
        recorder.note(output, lambda: Convolution(names, output, input, windows))
    return output


def _widths(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, int], ...]:
    """Padding before and after, in every direction."""
    match padding:
        case "valid":
            return ((0, 0),) * len(kernel)
        case "same":
            total = [spread * (width - 1) for spread, width in zip(dilation, kernel, strict=True)]
            return tuple((both // 2, both - both // 2) for both in total)
    return tuple((width, width) for width in _each(padding, kernel))


def _each(value: Any, kernel: tuple[int, ...]) -> tuple[int, ...]:
    """One number for every direction."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * len(kernel) if len(numbers) == 1 else numbers


def _layer_norm(
    recorder: Recorder,
    func: Any,
    input: Tensor,
    normalized_shape: Any,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
) -> Tensor:
    output: Tensor = func(input, normalized_shape, weight, bias, eps)
    return _scaled(
        recorder, output, weight, bias, lambda: func(input, normalized_shape, None, None, eps), len(normalized_shape)
    )


def _rms_norm(
    recorder: Recorder, func: Any, input: Tensor, normalized_shape: Any, weight: Any = None, eps: Any = None
) -> Tensor:
    output: Tensor = func(input, normalized_shape, weight, eps)
    return _scaled(recorder, output, weight, None, lambda: func(input, normalized_shape, None, eps), len(normalized_shape))


def _group_norm(
    recorder: Recorder, func: Any, input: Tensor, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5
) -> Tensor:
    output: Tensor = func(input, num_groups, weight, bias, eps)
    return _scaled(recorder, output, weight, bias, lambda: func(input, num_groups, None, None, eps), None)


def _batch_norm(
    recorder: Recorder,
    func: Any,
    input: Tensor,
    running_mean: Any,
    running_var: Any,
    weight: Any = None,
    bias: Any = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    output: Tensor = func(input, running_mean, running_var, weight, bias, training, momentum, eps)
    if training:
        return output  # its statistics mix the samples
    return _scaled(
        recorder,
        output,
        weight,
        bias,
        lambda: func(input, running_mean, running_var, None, None, False, momentum, eps),
        None,
    )


def _scaled(
    recorder: Recorder,
    output: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    normalised: Callable[[], Tensor],
    features: int | None,
) -> Tensor:
    names = recorder.names(weight, bias)
    if names != (None, None):
        with torch.no_grad():
            z = normalised()
        recorder.note(output, lambda: Scaling(names, output, z, features))
    return output


def _embedding(
    recorder: Recorder,
    func: Any,
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: Any = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    output: Tensor = func(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    names = recorder.names(weight, None)
    if names != (None, None) and max_norm is None and not scale_grad_by_freq:
        padding = padding_idx if padding_idx is None or padding_idx >= 0 else len(weight) + padding_idx
        recorder.note(output, lambda: Lookup(names, output, input, padding))
    return output


def _dot_product_attention(recorder: Recorder, func: Any, query: Tensor, key: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """As plain products while they are small: many backward passes through those cost less than through a fused kernel."""
    if query.shape[-2] * key.shape[-2] > PLAIN_ATTENTION:
        return func(query, key, *args, **kwargs)  # type: ignore[no-any-return]
    with sdpa_kernel(SDPBackend.MATH):
        return func(query, key, *args, **kwargs)  # type: ignore[no-any-return]


_NOTED: dict[Any, Callable[..., Tensor]] = {
    F.linear: _linear,
    F.conv1d: _convolution,
    F.conv2d: _convolution,
    F.conv3d: _convolution,
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
    F.batch_norm: _batch_norm,
    F.embedding: _embedding,
    F.scaled_dot_product_attention: _dot_product_attention,
}
if hasattr(F, "rms_norm"):
    _NOTED[F.rms_norm] = _rms_norm


def _packed(q: Tensor, k: Tensor, v: Tensor, w: Tensor, b: Tensor | None = None) -> Sequence[Tensor]:
    """Query, key and value by one product, as torch makes them, but taken apart at once.

    Each index of torch's own fills zeros of all three on the way back, for every cotangent; the numbers are the same.
    """
    if q is not k or k is not v:
        return _in_projection_packed(q, k, v, w, b)  # type: ignore[no-any-return]
    each = torch.unflatten(F.linear(q, w, b), -1, (3, q.size(-1))).unsqueeze(0)
    return torch.unbind(each.transpose(0, -2).squeeze(-2).contiguous())


# torch's own code, except for that, and that it does not hand itself over to the recorder before it starts
_GLOBALS = F.multi_head_attention_forward.__globals__
_in_projection_packed = _GLOBALS["_in_projection_packed"]
_attention = FunctionType(
    F.multi_head_attention_forward.__code__,
    {**_GLOBALS, "has_torch_function": lambda _: False, "_in_projection_packed": _packed},
    argdefs=F.multi_head_attention_forward.__defaults__,
)
