"""Permuted-pixel tasks from one labelled image set, streamed through a daemon and scored after every boundary."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.bench.local import LocalDaemon
from streamcl.client import Producer, Reader

Array = npt.NDArray[Any]
BATCH_ROWS = 256


@dataclass(frozen=True, slots=True)
class Images:
    """Rows of pixels in [0, 1] float32 [n, d] and labels int64 [n], for training and for testing."""

    train_x: Array
    train_y: Array
    test_x: Array
    test_y: Array

    def permutations(self, tasks: int, seed: int) -> list[Array]:
        """One fixed permutation of the pixels a task; the first task has the pixels in their order."""
        rng = np.random.default_rng(seed)
        width = self.train_x.shape[1]
        return [np.arange(width), *(rng.permutation(width) for _ in range(tasks - 1))]


def accuracy(reader: Reader, x: Array, y: Array) -> float:
    """The share of rows that the daemon predicts right."""
    right = 0
    for start in range(0, len(x), 4096):
        part = slice(start, start + 4096)
        right += int((reader.predict(x[part]).label == y[part]).sum())
    return right / len(x)


def stream_task(producer: Producer, name: str, x: Array, y: Array) -> dict[str, Any]:
    """Send one task in batches and close it; returns the daemon's `done`."""
    for start in range(0, len(x), BATCH_ROWS):
        producer.send(x[start : start + BATCH_ROWS], y[start : start + BATCH_ROWS], name)
    return producer.boundary(name)


def run_tasks(
    daemon: LocalDaemon,
    images: Images,
    permutations: list[Array],
    after: Callable[[int, list[float], dict[str, Any]], None],
) -> Array:
    """Learn every task in turn; returns accuracy [after task i, on task j], NaN where j is yet to come.

    after: called behind each boundary with the task's number, the accuracies so far and the `done`.
    """
    scores = np.full((len(permutations), len(permutations)), np.nan)
    with daemon.producer("bench") as producer, daemon.reader() as reader:
        for number, permutation in enumerate(permutations):
            x = np.ascontiguousarray(images.train_x[:, permutation])
            done = stream_task(producer, f"permutation-{number}", x, images.train_y)
            for seen in range(number + 1):
                test = np.ascontiguousarray(images.test_x[:, permutations[seen]])
                scores[number, seen] = accuracy(reader, test, images.test_y)
            after(number, scores[number, : number + 1].tolist(), done)
    return scores
