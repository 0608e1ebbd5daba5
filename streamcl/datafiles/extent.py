"""What a whole file's numbers are, and so in which type they can be sent without changing any of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Kind = Literal["integer", "real"]  # of x, as the daemon tells them apart: |u1 counts as real there
WIRE = ("<f4", "<f8", "<f2", "<i8", "<i4", "|u1")
EXACT = 2**53
MANY = 8  # from this many columns on it pays to look at them together
FEW = 256  # values of float32 within a column's range: with fewer, it loses what the column says


@dataclass(slots=True)
class Extent:
    """One column of a file, seen chunk by chunk.

    whole: all are whole numbers that 64 bits hold; fraction: the first row that is not. large: the first row with a whole
    number that a 64-bit float does not hold.
    """

    dtypes: set[np.dtype[Any]] = field(default_factory=set)
    shape: tuple[int, ...] = ()
    whole: bool = True
    fraction: int | None = None
    large: int | None = None
    low: float = np.inf
    high: float = -np.inf

    def see(self, array: Array, row: int) -> None:
        """Take in a chunk whose first row is `row`; its numbers are finite."""
        self.dtypes.add(array.dtype)
        self.shape = array.shape[1:]
        flat = array.reshape(len(array), -1)
        if array.size:
            self.low, self.high = min(self.low, float(array.min())), max(self.high, float(array.max()))
        if array.dtype.kind == "f" and self.whole:
            odd = ((flat != np.floor(flat)) | (np.abs(flat.astype(np.float64, copy=False)) >= 2.0**63)).any(axis=1)
            if odd.any():
                self.whole, self.fraction = False, row + int(odd.argmax())
        elif array.dtype.kind in "iu" and array.dtype.itemsize == 8 and self.large is None:
            beyond = ((flat > EXACT) | (flat < -EXACT)).any(axis=1)
            self.large = row + int(beyond.argmax()) if beyond.any() else None

    @property
    def mixed(self) -> bool:
        """Whether True and False stand among numbers."""
        return len({dtype.kind == "b" for dtype in self.dtypes}) > 1

    def blurred(self) -> bool:
        """Whether float32, in which models compute by default, distinguishes too few of the column's values."""
        if not self.low < self.high:
            return False
        step = float(np.spacing(np.float32(max(abs(self.low), abs(self.high)))))
        return self.high - self.low < FEW * step

    def dtype(self) -> np.dtype[Any]:
        """A type that holds all of them, as they were written."""
        return joined([self])


def see_all(extents: Sequence[Extent], arrays: Sequence[Array], row: int) -> None:
    """Take in a chunk of every column; those that are alike at once, since there may be thousands."""
    if len(arrays) < MANY or any(array.ndim != 1 or array.dtype != arrays[0].dtype for array in arrays):
        for extent, array in zip(extents, arrays, strict=True):
            extent.see(array, row)
        return
    table = np.stack(arrays)
    lows, highs = table.min(axis=1).tolist(), table.max(axis=1).tolist()
    ends = Extent()
    ends.see(table.T, row)  # what holds of the whole chunk holds of each column
    for extent, array, low, high in zip(extents, arrays, lows, highs, strict=True):
        if (ends.fraction is not None and extent.whole) or (ends.large is not None and extent.large is None):
            extent.see(array, row)
            continue
        extent.dtypes.add(array.dtype)
        extent.low, extent.high = min(extent.low, low), max(extent.high, high)


def joined(extents: Collection[Extent]) -> np.dtype[Any]:
    """The type on the wire that can hold several columns together."""
    common = np.result_type(*{dtype for extent in extents for dtype in extent.dtypes})
    if common.newbyteorder("<").str in WIRE:
        return common.newbyteorder("<")
    return np.dtype({"f": "<f8", "i": "<i8", "u": "<i8", "b": "|u1"}[common.kind])


def natural(extents: Sequence[Extent], declared: bool) -> np.dtype[Any]:
    """The type in which features are sent unless another is asked for.

    A type that the file declares is kept. A text file's numbers are real ones, even if all happen to be whole, since
    the next file's may not be; but never at the cost of a digit.
    """
    common = joined(extents)
    if declared or any(extent.large is not None for extent in extents):
        return common
    return np.dtype("<f8")


def kind_of(dtype: np.dtype[Any]) -> Kind:
    """As the daemon sees x."""
    return "integer" if dtype.kind == "i" else "real"


def as_kind(dtype: np.dtype[Any], kind: Kind) -> np.dtype[Any]:
    """The type for x of a kind."""
    if kind_of(dtype) == kind:
        return dtype
    return np.dtype("<i8" if kind == "integer" else "<f8")


@dataclass(frozen=True, slots=True)
class Form:
    """Another form of the same numbers: x of a kind, unless None, and targets that are whole numbers as integers."""

    kind: Kind | None = None
    integer_targets: bool = False

    def of(self, x: Array, y: Array | None) -> tuple[Array, Array | None]:
        """A block in this form."""
        if self.kind is not None:
            x = x.astype(as_kind(x.dtype, self.kind), copy=False)
        if y is not None and self.integer_targets:
            y = y.astype("<i8", copy=False)
        return x, y
