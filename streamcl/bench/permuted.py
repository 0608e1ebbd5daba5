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


@dataclass(frozen=True, slots=True)
class Scores:
    """accuracy: the share of rows predicted correctly. loss: their mean negative log likelihood, nats a row."""

    accuracy: float
    loss: float


def task_name(number: int) -> str:
    """The name that every benchmark gives its task `number`."""
    return f"permutation-{number}"


def task_rows(images: Images, permutation: Array) -> tuple[Array, Array]:
    """One task's training rows and labels."""
    return np.ascontiguousarray(images.train_x[:, permutation]), images.train_y


def score(reader: Reader, x: Array, y: Array) -> Scores:
    """Scores the daemon's predictions for rows whose labels are output indices."""
    probs = np.concatenate([reader.predict(x[start : start + 4096]).probs for start in range(0, len(x), 4096)])
    likelihood = probs[np.arange(len(y)), y]
    loss = -np.log(np.maximum(likelihood, np.finfo(probs.dtype).tiny)).mean()
    return Scores(float((probs.argmax(1) == y).mean()), float(loss))


def score_tasks(reader: Reader, images: Images, permutations: list[Array]) -> list[Scores]:
    """The scores on each task's test rows."""
    return [score(reader, np.ascontiguousarray(images.test_x[:, p]), images.test_y) for p in permutations]


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
    """Learn every task in turn; returns accuracy [after task i, on task j], NaN for tasks j still to come.

    after: called after each boundary with the task's number, the accuracies so far and the `done`.
    """
    accuracies = np.full((len(permutations), len(permutations)), np.nan)
    with daemon.producer() as producer, daemon.reader() as reader:
        for number, permutation in enumerate(permutations):
            done = stream_task(producer, task_name(number), *task_rows(images, permutation))
            scores = score_tasks(reader, images, permutations[: number + 1])
            accuracies[number, : number + 1] = [each.accuracy for each in scores]
            after(number, accuracies[number, : number + 1].tolist(), done)
    return accuracies
