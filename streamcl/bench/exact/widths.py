"""How many random features an exact learner should have for so many rows: what a map that is too wide costs."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from streamcl.bench.exact.streams import Images, score
from streamcl.bench.exact.streams import Task as Rows
from streamcl.estimator import Learner

WIDTHS, ROWS = (100, 300, 1000, 2000), (100, 1000, 8000)


@dataclass(frozen=True, slots=True)
class Width:
    """One task of so many rows at so many features: accuracy on held-out rows, and the processor's seconds."""

    rows: int
    width: int
    accuracy: float
    seconds: float


def compare(images: Images, seed: int, widths: Sequence[int] = WIDTHS, rows: Sequence[int] = ROWS) -> Iterator[Width]:
    """Every width on the first so many rows of an order at random; no more than there are."""
    order = np.random.default_rng(seed).permutation(len(images.x))
    for count in rows:
        if count > len(order):
            return
        task = Rows(images.x[order[:count]], images.y[order[:count]], images.test_x, images.test_y)
        for width in widths:
            started = time.process_time()
            accuracy = _learned(task, width, seed)
            yield Width(count, width, accuracy, time.process_time() - started)


def _learned(task: Rows, width: int, seed: int) -> float:
    learner = Learner({"model": {"learner": "exact", "args": {"width": width}}, "train": {"seed": seed}})
    learner.observe(task.x, task.y, task="task")
    learner.boundary("task")
    return score(learner, [task])
