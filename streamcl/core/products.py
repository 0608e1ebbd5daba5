"""Matrix products in single precision by the library that is faster on this CPU.

MKL, which PyTorch calls for float32, leaves half of each vector unit idle on CPUs of other makers; oneDNN,
which comes with PyTorch too, does not: on an AMD EPYC products took half the time. PyTorch uses it for float32 only
if bfloat16 is allowed as well (``torch.backends.mkldnn.matmul.fp32_precision``). oneDNN makes use of that on CPUs
with matrix units for bfloat16 (AMX) and keeps single precision on others.

Guarantees: full single precision, since the setting is left alone unless products under it were found to have it; and
the setting is restored. It belongs to the process, not to a thread.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from torch import Tensor

WORTHWHILE = 2_000_000  # multiplications in a product, on average
ROUNDING = 1e-5  # of the largest entry; bfloat16 is two hundred times as far off


@contextmanager
def fast_products() -> Iterator[None]:
    """Inside, matrix products of float32 on the CPU use oneDNN, if that costs no precision."""
    if not _keeps_single_precision():
        yield
        return
    with _bfloat16_allowed():
        yield


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Inside, cuDNN's convolutions and recurrent layers are of single precision.

    PyTorch lets them round what they are given to ten bits (TF32), in which no closed form of a gradient agrees with the
    loop that it is checked against. On other devices nothing changes.
    """
    settings = _cudnn_settings() if device.type == "cuda" else []
    before = [getattr(holder, name) for holder, name, _ in settings]
    for holder, name, full in settings:
        setattr(holder, name, full)
    try:
        yield
    finally:
        for (holder, name, _), value in zip(settings, before, strict=True):
            setattr(holder, name, value)


def _cudnn_settings() -> list[tuple[Any, str, Any]]:
    """Holder, name and value: the one switch or, where somebody has set its parts by hand (PyTorch 2.9 on), those."""
    cudnn = torch.backends.cudnn
    try:
        cudnn.allow_tf32  # noqa: B018  # raises then
    except RuntimeError:
        return [(getattr(cudnn, part), "fp32_precision", "ieee") for part in ("conv", "rnn")]
    return [(cudnn, "allow_tf32", False)]


def products_for(shapes: Iterable[tuple[int, ...]], rows: int) -> Callable[[], AbstractContextManager[None]]:
    """`fast_products` for steps on so many rows if the weights of these shapes are large enough for it, else nothing.

    Calling oneDNN takes some 15 us more than calling MKL: products of a million multiplications break even. Decided by
    size, not by a trial, so that the same model is always computed in the same way.
    """
    weights = [math.prod(shape) for shape in shapes if len(shape) == 2]
    large = bool(weights) and rows * sum(weights) / len(weights) >= WORTHWHILE
    return fast_products if large else nullcontext


@cache
def _keeps_single_precision() -> bool:
    """Whether oneDNN is there, and on this CPU neither can use bfloat16 nor was found to."""
    if _setting() is None or not torch._C._has_mkldnn:
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or torch.cpu._is_amx_tile_supported():
        return False
    generator = torch.Generator().manual_seed(0)
    shapes = [(96, 160, 80), (512, 10, 400), (8, 16, 196, 72), (16, 128, 28, 64)]
    pairs = [
        (torch.randn(*n, a, b, generator=generator), torch.randn(*n, b, c, generator=generator)) for *n, a, b, c in shapes
    ]
    with _bfloat16_allowed():
        return all(_error(a, b) < ROUNDING and _error(b.mT, a.mT) < ROUNDING for a, b in pairs)


def _error(a: Tensor, b: Tensor) -> float:
    exact = a.double() @ b.double()
    return float((a @ b - exact).abs().max() / exact.abs().max())


def _setting() -> Any:
    """PyTorch's, from 2.9 on."""
    return getattr(torch.backends.mkldnn, "matmul", None)


@contextmanager
def _bfloat16_allowed() -> Iterator[None]:
    setting = _setting()
    before = setting.fp32_precision
    setting.fp32_precision = "bf16"
    try:
        yield
    finally:
        setting.fp32_precision = before
