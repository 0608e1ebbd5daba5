"""A boundary's cost besides its epochs and its Fisher: loss, totals, factor, ledger, checkpoint, drop, publication."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.speed.table import Row, interleaved
from streamcl.bench.speed.workloads import CLASSES
from streamcl.config import Config, from_tree
from streamcl.daemon import words
from streamcl.daemon.channel import Channel
from streamcl.daemon.trainer import Moment, Trainer
from streamcl.learning.fitting import Event, Progress
from streamcl.storage.disk import Disk
from streamcl.storage.log import LogWriter
from streamcl.storage.records import Batch, Boundary, array_spec
from streamcl.storage.state import StateDirectory

ROWS = 256


@dataclass(frozen=True, slots=True)
class Taken:
    """Seconds of a step; of a boundary besides epochs and Fisher until all is durable; and with what comes after that."""

    step: float
    durable: float
    whole: float


class Boundaries:
    """A real trainer without sockets, fed tasks of one batch through a real log."""

    def __init__(self, directory: Path, tree: Mapping[str, Any], features: int = 784, rows: int = ROWS) -> None:
        tree = {"train": {"epochs": 1, "device": "cpu"}, **tree, "state_dir": str(directory)}
        config: Config = from_tree(tree)
        self.state = StateDirectory(directory)
        self._ends = [Channel.pair(), Channel.pair()]
        self.writer = LogWriter.recover(self.state.log, Disk())
        up, side = (Channel(ours) for ours, _ in self._ends)
        self._ingest = Channel(self._ends[1][1])
        self.watch = Stopwatch()
        self.trainer = Trainer(config, up, side, watch=self.watch)
        self.trainer.memory.keep()
        self.trainer.recover()
        rng = np.random.default_rng(0)
        self._x = rng.standard_normal((rows, features), np.float32)
        self._y = rng.integers(0, CLASSES, rows)
        self._tasks = 0

    def learn_a_task(self) -> Taken:
        """Stream one batch and close its task."""
        self._tasks += 1
        name, seq = f"task-{self._tasks}", 2 * self._tasks
        shared: dict[str, Any] = {"producer": "p", "epoch": 0, "task": name}
        specs = (array_spec("x", self._x), array_spec("y", self._y))
        new = tuple(range(CLASSES)) if self._tasks == 1 else ()
        batch = Batch(seq=seq - 1, samples=len(self._x), arrays=specs, new_labels=new, **shared)
        self.writer.append(batch, [self._x.data.cast("B"), self._y.data.cast("B")])
        self.writer.append(Boundary(seq=seq, **shared))
        self.trainer.orders.durable = self.writer.sync()
        self.trainer.turn()
        self.trainer.turn()
        end, watch = time.perf_counter(), self.watch
        return Taken(float(np.median(watch.steps)), watch.durable - watch.resumed, end - watch.resumed)

    def said(self) -> list[words.Word]:
        """What the trainer has said to ingest since the last call."""
        return list(self._ingest.receive())

    def close(self) -> None:
        """Close the log and the channels."""
        self.writer.close()
        for pair in self._ends:
            for end in pair:
                end.close()


class Stopwatch:
    """When the learner last came up for air, how long its steps took, and when all was durable."""

    def __init__(self) -> None:
        self.resumed = self.durable = 0.0
        self.steps: list[float] = []

    def __call__(self, moment: Moment, event: Event | None) -> None:
        """As the trainer's `watch`."""
        now = time.perf_counter()
        match moment:
            case "record":
                self.steps, self.resumed = [], now
            case "step":
                if isinstance(event, Progress) and event.phase == "epochs" and event.result is None:
                    self.steps.append(now - self.resumed)
            case "resumed":
                self.resumed = now
            case "durable":
                self.durable = now


def rows(rounds: int) -> list[Row]:
    """Single mode and factor mode, with a diagonal at the mode and with the defaults."""
    return [
        _row(mode, curvature, expectation, rounds)
        for curvature, expectation in (("diagonal", "mode"), ("auto", "posterior"))
        for mode in ("single", "factors")
    ]


def _row(mode: str, curvature: str, expectation: str, rounds: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="streamcl-") as name:
        model = {"args": {"hidden": [400, 400]}, "classes": CLASSES}
        posterior = {"mode": mode, "curvature": curvature, "expectation": expectation}
        made = Boundaries(Path(name) / "state", {"model": model, "posterior": posterior})
        try:
            made.learn_a_task()
            bare = Path(name) / "bare"
            content = (made.state.path / "checkpoint").read_bytes()
            for factor in list(made.state.factors.glob("*.factor"))[:1]:
                content += factor.read_bytes()
            mine, yardstick = interleaved(lambda: made.learn_a_task().durable, lambda: _write(bare, content), 3 * rounds)
        finally:
            made.close()
    against = f"writing the checkpoint's bytes{' and the factor' if mode == 'factors' else ''} with fsync"
    what = f"a boundary besides epochs and Fisher, {'' if curvature == 'diagonal' else 'eigenbasis, '}{mode}"
    return Row(what, against, mine / yardstick, "at most", 1.5, mine, yardstick)


def _write(path: Path, content: bytes) -> float:
    started = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, content)
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - started
