"""What an exact learner's sums cost beside the symmetric product that they are made of, alone and with all around them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from streamcl.bench.exact.updates import bare, summed
from streamcl.bench.speed.table import Row, as_fast, spent
from streamcl.estimator import Learner

FEATURES, ROWS, STREAMED, BATCH = 1000, 8192, 32_768, 256
PRODUCT = "bare symmetric product"


def rows(rounds: int) -> list[Row]:
    """Updates in small and in large batches, and a whole task: scored, summed, solved for again and again, consolidated.

    In the processor's seconds: all of this is arithmetic in one process.
    """
    short, long = _numbers(ROWS), _numbers(STREAMED)
    made = [
        as_fast(
            f"exact sums, {FEATURES} features, {n} rows a batch",
            PRODUCT,
            0.8,
            _of(summed, short, n),
            _of(bare, short),
            3 * rounds,
        )
        for n in (64, 1024)
    ]
    name = f"exact learner, {STREAMED:,} rows, scored to consolidated"
    return [*made, as_fast(name, PRODUCT, 0.2, spent(lambda: _learned(long)), _of(bare, long), max(1, rounds // 2))]


def _of(action: Callable[..., None], *given: Tensor | int) -> Callable[[], float]:
    return spent(lambda: action(*given))


def _numbers(rows: int) -> Tensor:
    return torch.randn((rows, FEATURES), generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _learned(x: Tensor) -> None:
    model = {"learner": "exact", "factory": "streamcl.models:identity"}
    learner = Learner({"model": model, "train": {"dtype": "float64"}})
    labels = torch.arange(len(x)) % 10
    for start in range(0, len(x), BATCH):
        learner.observe(x[start : start + BATCH].numpy(), labels[start : start + BATCH].numpy(), task="task")
    learner.boundary("task")
