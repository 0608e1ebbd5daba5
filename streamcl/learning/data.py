"""A task's data as the log holds it: minibatches in a seeded order, in bounded memory.

Guarantees: the order depends on the data, the seed and `WINDOW_BYTES` alone, never on the machine; at most one
window is copied into memory. A task that fits in one window is shuffled whole; of a larger one the records are
shuffled, packed into windows, and each window is shuffled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.columns import Columns
from streamcl.inputs import Inputs

WINDOW_BYTES = 512 << 20

Array = npt.NDArray[Any]
Block = tuple[Array, Array]
Derived = Callable[[Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Rows:
    """A batch as it comes: rows x [n, ...] and y [n, ...] of a task.

    new_labels: labels first seen here, in order of appearance, and the outputs that they were given. tag: with drift, the
    name of the stream; where it is `task` as well, the task's own name is the learner's to find. columns: of a table, as
    they were sent; left_out, new_words: as of `storage.records.Batch`.
    """

    task: str
    x: Array
    y: Array
    new_labels: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    tag: str | None = None
    columns: Columns | None = None
    left_out: tuple[str, ...] = ()
    new_words: tuple[str, ...] = ()

    @property
    def of_stream(self) -> bool:
        """Whether its task is a stream of tasks, which drift tells apart."""
        return self.tag == self.task


class Store(Protocol):
    """Where the rows of the open task, and those that are kept, can be read again, by the position at which they came."""

    def read(self, lsn: int, verify: bool = True) -> Block:
        """One batch; raises Damaged. verify: False where its digest has been compared before."""

    def batches(self, first: int, end: int, verify: bool = True) -> Iterator[tuple[int, int]]:
        """Position and rows of every batch from `first` to below `end`; raises Damaged."""

    def columns(self, lsn: int) -> Columns | None:
        """Those of one batch's table, as they were sent; None of plain arrays. Raises Damaged."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A store's rows as the model takes them, by what the input stage knows when they are read."""

    sent: Store
    inputs: Inputs

    def read(self, lsn: int, verify: bool = True) -> Block:
        """One batch; raises Damaged."""
        x, y = self.sent.read(lsn, verify)
        if self.inputs.plain_arrays:
            return x, y
        columns = self.sent.columns(lsn)
        return self.inputs.encode(x, columns), self.inputs.labels(y, columns)

    def batches(self, first: int, end: int, verify: bool = True) -> Iterator[tuple[int, int]]:
        """As of the store."""
        return self.sent.batches(first, end, verify)

    def columns(self, lsn: int) -> Columns | None:
        """As of the store."""
        return self.sent.columns(lsn)


NUMPY = {torch.float32: np.float32, torch.float64: np.float64, torch.int64: np.int64}


@dataclass(frozen=True, slots=True)
class Conversion:
    """How the log's arrays are converted to what the model takes: real inputs in `dtype`, integers as int64, on `device`.

    to_outputs: labels to output indices (categorical); None keeps targets as real numbers, of the dtype `targets`.
    """

    dtype: torch.dtype
    device: torch.device
    to_outputs: Callable[[Array], npt.NDArray[np.int64]] | None = None
    targets: torch.dtype = torch.float64

    def x(self, *arrays: Array) -> Tensor:
        """Inputs [n, ...] as the model takes them; several arrays are concatenated."""
        return self._place(arrays, torch.int64 if arrays[0].dtype.kind == "i" else self.dtype)

    def y(self, *arrays: Array) -> Tensor:
        """Targets: output indices [n] int64, or real numbers [n, ...]."""
        if self.to_outputs is not None:
            return self._place([self.to_outputs(y) for y in arrays], torch.int64)
        return self._place(arrays, self.targets)

    def _place(self, arrays: Sequence[Array], dtype: torch.dtype) -> Tensor:
        """Every row copied and converted once; on its way to a GPU through pinned memory, asynchronously."""
        if len(arrays) == 1 and self.device.type == "cpu":
            return torch.from_numpy(arrays[0].astype(NUMPY[dtype], order="C"))
        rows = sum(len(array) for array in arrays)
        host = torch.empty((rows, *arrays[0].shape[1:]), dtype=dtype, pin_memory=self.device.type == "cuda")
        np.concatenate(arrays, out=host.numpy(), casting="unsafe")
        return host.to(self.device, non_blocking=True)


@dataclass(slots=True)
class TaskData:
    """The rows of one task, read again from the log for every epoch.

    blocks: gives the task's (x, y) arrays, one pair a record, in the order received; called once an epoch.
    sizes: rows of each record. row_bytes: bytes of one row of x as the model takes it.
    """

    blocks: Callable[[Iterable[int]], Iterable[Block]]
    sizes: list[int]
    row_bytes: int
    conversion: Conversion
    _cache: tuple[Tensor, Tensor] | None = field(default=None, repr=False)
    _derived: tuple[Derived, Tensor] | None = field(default=None, repr=False)

    @property
    def samples(self) -> int:
        """N_t, the number of rows."""
        return sum(self.sizes)

    def minibatches(
        self, batch_size: int, generator: np.random.Generator, derived: Derived | None = None
    ) -> Iterator[tuple[Tensor, ...]]:
        """One epoch in random order, as (x, y); the last minibatch of a window may be smaller.

        derived: gives a third tensor, row by row, of a window's x; of a task of one window it is asked once.
        """
        order = generator.permutation(len(self.sizes))
        for window in self._windows(order):
            every = self._with(derived, *self._load(window))
            x = every[0]
            rows = torch.from_numpy(generator.permutation(len(x))).to(x.device)
            for start in range(0, len(x), batch_size):
                index = rows[start : start + batch_size]
                yield tuple(each[index] for each in every)

    def _with(self, derived: Derived | None, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        if derived is None:
            return x, y
        if self._derived is not None and self._derived[0] is derived:
            return x, y, self._derived[1]
        found = derived(x)
        if self._cache is not None:
            self._derived = derived, found
        return x, y, found

    def chunks(self, rows: int = 4096) -> Iterator[tuple[Tensor, Tensor]]:
        """Every row once, in the order received."""
        for window in self._windows(np.arange(len(self.sizes))):
            x, y = self._load(window)
            for start in range(0, len(x), rows):
                yield x[start : start + rows], y[start : start + rows]

    def _windows(self, order: npt.NDArray[np.int64]) -> Iterator[list[int]]:
        if self.samples * self.row_bytes <= WINDOW_BYTES:
            yield list(range(len(self.sizes)))  # one window: shuffled whole, so records keep their order
            return
        window: list[int] = []
        held = 0
        for record in map(int, order):
            nbytes = self.sizes[record] * self.row_bytes
            if window and held + nbytes > WINDOW_BYTES:
                yield window
                window, held = [], 0
            window.append(record)
            held += nbytes
        yield window

    def _load(self, window: list[int]) -> tuple[Tensor, Tensor]:
        """One window as two tensors; a task of one window is read from the log once."""
        if self._cache is not None:
            return self._cache
        xs, ys = zip(*self.blocks(window), strict=True)
        loaded = self.conversion.x(*xs), self.conversion.y(*ys)
        if len(window) == len(self.sizes):
            self._cache = loaded
        return loaded
