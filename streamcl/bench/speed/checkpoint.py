"""What a periodic checkpoint costs training: the copy for which it stands still, and steps while a thread writes.

The trainer itself, in this process, on a log and a disk of its own; every record is one step of a task that stays open.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.speed.table import Row
from streamcl.config import from_tree
from streamcl.daemon.channel import Channel
from streamcl.daemon.trainer import Trainer
from streamcl.storage.disk import Disk
from streamcl.storage.log import LogWriter
from streamcl.storage.records import Batch, array_spec

FEATURES, CLASSES = 784, 10
STALL, COPY = 1.05, 0.5  # goals: of a step, and of what it takes to write at once
STEPS = 10  # between two checkpoints, at least


@dataclass(frozen=True, slots=True)
class Size:
    """A network by its hidden layers, and the rows of a step."""

    name: str
    hidden: tuple[int, ...]
    rows: int


SIZES = (Size("1 M parameters", (600, 800), 256), Size("64 M parameters", (7600, 7600), 64))


def rows(rounds: int) -> list[Row]:
    """Two for every size."""
    return [row for size in SIZES for row in checkpoints(size, rounds)]


def checkpoints(size: Size, rounds: int) -> list[Row]:
    """In every round steps without, steps beside a checkpoint, and one that is written at once; medians."""
    alone: list[float] = []
    amid: list[float] = []
    copies: list[float] = []
    whole: list[float] = []
    with _training(size) as training:
        training.steps(3)
        for number in range(rounds + 1):
            without = training.steps(STEPS)
            copied, beside = training.beside()
            written = training.at_once()
            if number:  # the first has new memory to touch
                alone += without
                amid += beside
                copies.append(copied)
                whole.append(written)
    step, slowed, copied, written = map(statistics.median, (alone, amid, copies, whole))
    return [
        Row(
            f"a step while a checkpoint is written, {size.name}",
            "while none is",
            slowed / step,
            "at most",
            STALL,
            slowed,
            step,
        ),
        Row(
            f"standing for a checkpoint, {size.name}",
            "one written at once",
            copied / written,
            "at most",
            COPY,
            copied,
            written,
        ),
    ]


class _Training:
    """A trainer amid a task, fed record by record; no checkpoint but those that are asked for here."""

    def __init__(self, size: Size, home: Path) -> None:
        (up, self._supervisor), (side, self._ingest) = ([Channel(end) for end in Channel.pair()] for _ in range(2))
        tree: dict[str, Any] = {
            "model": {"args": {"hidden": list(size.hidden)}, "classes": CLASSES},
            "train": {"learning_rate": 1e-4, "batch_size": size.rows, "device": "cpu"},
            "posterior": {"curvature": "diagonal", "expectation": "mode"},
            "state_dir": str(home),
        }
        self._log, self._sent = LogWriter.recover(home / "log", Disk()), 0
        rng = np.random.default_rng(0)
        self._x = rng.normal(size=(size.rows, FEATURES)).astype("<f4")
        self._y = rng.integers(0, CLASSES, size.rows)
        self._trainer = Trainer(from_tree(tree), up, side, pause=lambda *_: None, checkpoint_seconds=float("inf"))
        self._trainer.recover()

    def steps(self, count: int) -> list[float]:
        """Seconds of each."""
        return [self._step() for _ in range(count)]

    def beside(self) -> tuple[float, list[float]]:
        """Seconds that the copy takes, and that each step does until the checkpoint is there."""
        commit = self._trainer.commit
        started = time.perf_counter()
        commit.begin(self._trainer.replay)
        copied, taken = time.perf_counter() - started, []
        while commit.begun is not None:
            taken.append(self._step())
        return copied, taken

    def at_once(self) -> float:
        """Seconds of one for which training waits."""
        started = time.perf_counter()
        for _ in self._trainer.commit.checkpoint(self._trainer.replay):
            pass
        return time.perf_counter() - started

    def _step(self) -> float:
        self._append()
        started = time.perf_counter()
        self._trainer.turn()
        taken = time.perf_counter() - started
        for _ in self._ingest.receive():
            pass
        return taken

    def _append(self) -> None:
        self._sent += 1
        labels = tuple(range(CLASSES)) if self._sent == 1 else ()
        specs = (array_spec("x", self._x), array_spec("y", self._y))
        record = Batch(
            producer="p",
            epoch=0,
            task="task",
            seq=self._sent,
            samples=len(self._x),
            arrays=specs,
            new_labels=labels,
            outputs=labels,
        )
        self._log.append(record, [self._x.data.cast("B"), self._y.data.cast("B")])
        self._trainer.orders.durable = self._log.sync()


@contextmanager
def _training(size: Size) -> Iterator[_Training]:
    with tempfile.TemporaryDirectory(prefix="streamcl-checkpoints-") as home:
        yield _Training(size, Path(home))
