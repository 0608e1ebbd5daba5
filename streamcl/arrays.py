"""Anything array-like as the arrays that streamcl takes. Imports no torch."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import Refused

LARGEST = 2**63 - 1
DTYPES = ("<f4", "<f8", "<f2", "<i8", "<i4", "|u1")  # that travel, and are stored


def as_array(values: Any) -> npt.NDArray[Any]:
    """A NumPy array of anything array-like; torch tensors by way of the host, without importing torch.

    Booleans become 0 and 1, integers of other widths int64, bfloat16 float32; what is sparse becomes dense, and what is
    masked NaN. Raises Refused ``bad_array`` for integers that are masked, or too large.
    """
    if isinstance(values, np.ma.MaskedArray):
        values = unmasked(values)
    if hasattr(values, "detach"):
        values = _on_the_host(values)
    array = np.asarray(values)
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.str not in DTYPES:
        if array.dtype == np.uint64 and array.size and int(array.max()) > LARGEST:
            raise Refused("bad_array", f"expected integers of at most {LARGEST} (int64), got {int(array.max())}")
        return array.astype(np.int64)
    return array


def unmasked(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Without a mask: what it hides of real numbers is missing. Raises Refused ``bad_array`` for anything else hidden."""
    if not np.ma.is_masked(array):
        return np.ma.getdata(array)
    if array.dtype.kind != "f":
        raise Refused("bad_array", f"expected no masked values in an array of {array.dtype}: leave their rows out")
    return np.where(np.ma.getmaskarray(array), np.nan, np.ma.getdata(array)).astype(array.dtype)


def _on_the_host(tensor: Any) -> Any:
    dense = tensor if str(tensor.layout) == "torch.strided" else tensor.to_dense()
    known = dense.float() if str(dense.dtype) == "torch.bfloat16" else dense
    return known.detach().cpu().numpy()
