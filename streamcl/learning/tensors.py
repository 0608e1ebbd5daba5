"""A module's fixed tensors as arrays of a file and back: any dtype bitwise, sparse ones by their parts.

Dtypes that the file format lacks (bfloat16, complex numbers, int16, ...) are stored as bytes; the tensor that they are
read into determines what they mean.

Arrays become tensors by `torch.tensor`, here and in the other modules, not as views: what is computed must not depend on
where NumPy put an array, and products may be rounded otherwise where memory is aligned otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.errors import ConfigError, ModelRefused

NAMED = (torch.float64, torch.float32, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool)
Arrays = Mapping[str, npt.NDArray[Any]]
_PARTS: dict[torch.layout, Callable[[Tensor], dict[str, Tensor]]] = {
    torch.strided: lambda t: {"": t},
    torch.sparse_coo: lambda t: {".indices": t.coalesce().indices(), ".values": t.coalesce().values()},
    **dict.fromkeys(
        (torch.sparse_csr, torch.sparse_bsr),
        lambda t: {".rows": t.crow_indices(), ".columns": t.col_indices(), ".values": t.values()},
    ),
    **dict.fromkeys(
        (torch.sparse_csc, torch.sparse_bsc),
        lambda t: {".columns": t.ccol_indices(), ".rows": t.row_indices(), ".values": t.values()},
    ),
}


def check_storable(name: str, tensor: Tensor) -> None:
    """Raise ModelRefused for a tensor that no file can hold to the bit."""
    if tensor.is_quantized or tensor.layout not in _PARTS or type(tensor) not in (Tensor, torch.nn.Parameter):
        kind = f"{type(tensor).__name__} of {tensor.dtype}, {tensor.layout}"
        raise ModelRefused(
            f"model: {name} is a {kind}, which a checkpoint cannot hold; expected a plain or sparse tensor: keep the scale "
            "and the integers in buffers of their own"
        )


def host(tensor: Tensor) -> npt.NDArray[Any]:
    """A dense tensor as an array on the host."""
    tensor = tensor.detach().cpu()
    if tensor.dtype in NAMED:
        array: npt.NDArray[Any] = tensor.resolve_neg().numpy()
        return array
    plain = tensor.resolve_conj().resolve_neg().contiguous().reshape(-1)
    return plain.view(torch.uint8).numpy()


def packed(name: str, tensor: Tensor) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """A tensor's parts, by their names in a file."""
    for part, values in _PARTS[tensor.layout](tensor.detach()).items():
        yield f"{name}{part}", host(values)


def unpack(name: str, tensor: Tensor, arrays: Arrays) -> None:
    """Copy what `packed` gave into a tensor of the same kind; raises ConfigError if it comes from another model."""
    try:
        parts = {part: _like(values, arrays[f"{name}{part}"]) for part, values in _PARTS[tensor.layout](tensor).items()}
        _fill(tensor, parts)
    except (KeyError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model: {name}, {tensor.dtype} {list(tensor.shape)}, is not what the state directory holds under this name "
            f"({type(error).__name__}); use the configuration it was made with, or a new state_dir"
        ) from None


def _fill(tensor: Tensor, parts: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        if tensor.layout == torch.strided:
            tensor.copy_(parts[""])
        elif tensor.layout == torch.sparse_coo:
            tensor.copy_(torch.sparse_coo_tensor(parts[".indices"], parts[".values"], tensor.shape, check_invariants=True))
        else:
            tensor.values().copy_(parts[".values"])  # the positions of its values belong to the factory


def _like(tensor: Tensor, array: npt.NDArray[Any]) -> Tensor:
    """An array as a tensor of the kind that it came from."""
    found = torch.tensor(array)
    if tensor.dtype not in NAMED and found.dtype == torch.uint8:
        found = found.view(tensor.dtype).reshape(tensor.shape if found.numel() == tensor.nbytes else (-1,))
    return found.to(tensor.device)
