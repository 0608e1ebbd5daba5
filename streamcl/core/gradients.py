"""Plain backward passes and how their results are compared.

Guarantees: gradients that parameters already hold are left as they were; a tolerance is relative to the largest number
present, since what is zero in exact arithmetic (the bias of an attention's keys) is otherwise noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from streamcl.core.closed_forms import Site

SINGLE = (torch.float32, torch.float16, torch.bfloat16)


def output_gradients(output: Tensor, sites: Sequence[Site], cotangents: Tensor) -> Iterator[Sequence[Tensor | None]]:
    """The gradients of all sites' outputs, for one cotangent after another.

    All at once where launching kernels takes the time; one by one on a CPU, so that they stay in the cache.
    """
    edges = [site.edge for site in sites]
    if not edges or not output.requires_grad:
        return
    if output.is_cuda and len(cotangents) > 1:
        try:
            batched = torch.autograd.grad(
                output, edges, cotangents, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
        except RuntimeError:  # an operation without a batching rule
            pass
        else:
            for k in range(len(cotangents)):
                yield [None if gradient is None else gradient[k] for gradient in batched]
            return
    for cotangent in cotangents:
        yield pulled(output, edges, cotangent)


def pulled(output: Tensor, inputs: Sequence[Any], cotangent: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of ``output . cotangent``. As a scalar: given a cotangent, PyTorch imports all of SymPy first."""
    return torch.autograd.grad(_scalar(output, cotangent), inputs, retain_graph=True, allow_unused=True)


def parameter_gradients(output: Tensor, parameters: Sequence[Tensor], cotangent: Tensor) -> Sequence[Tensor | None]:
    """`pulled` with respect to parameters, whatever the model is made of; all None if nothing depends on them.

    Some functions (`torch.utils.checkpoint` with ``use_reentrant=True``) take part in ``backward()`` only.
    """
    if not output.requires_grad:
        return [None] * len(parameters)
    try:
        return pulled(output, parameters, cotangent)
    except RuntimeError:
        return _accumulated(output, parameters, cotangent)


def _accumulated(output: Tensor, parameters: Sequence[Tensor], cotangent: Tensor) -> list[Tensor | None]:
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    try:
        torch.autograd.backward(_scalar(output, cotangent), retain_graph=True, inputs=None)
        return [p.grad for p in parameters]
    finally:
        for p, gradient in zip(parameters, before, strict=True):
            p.grad = gradient


def _scalar(output: Tensor, cotangent: Tensor) -> Tensor:
    with torch.enable_grad():
        return (output * cotangent).sum()


def random_like(output: Tensor, k: int, seed: int) -> Tensor:
    """Cotangents [k, *output.shape], the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((k, *output.shape), generator=generator, dtype=output.dtype).to(output.device)


def agree(one: Tensor, other: Tensor, floor: float = 0.0) -> bool:
    """Whether two tensors are equal up to rounding, or both negligible beside `floor`."""
    if not other.numel():
        return True
    tolerance = 1e-3 if one.dtype in SINGLE else 1e-8
    return bool((one - other).abs().max() <= max(tolerance * float(other.abs().max()), floor))


def largest(tensors: Mapping[str, Tensor] | Iterable[Tensor]) -> float:
    """The largest magnitude in any of them."""
    values = tensors.values() if isinstance(tensors, Mapping) else tensors
    return max((float(tensor.abs().max()) for tensor in values if tensor.numel()), default=0.0)


def noise(dtype: torch.dtype) -> float:
    """Rounding errors of gradients, relative to the largest of a model's."""
    return 16 * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0


def same_outputs(one: Tensor, other: Tensor, rounding: float = 1e-4) -> bool:
    """Whether rows computed together and apart are the same, up to rounding (in single precision)."""
    if one.shape != other.shape:
        return False
    finite = other[torch.isfinite(other)]
    scale = float(finite.abs().max()) if finite.numel() else 0.0
    tolerance = rounding if one.dtype in SINGLE else 1e-5 * rounding
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
