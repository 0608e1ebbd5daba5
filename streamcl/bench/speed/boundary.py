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
from streamcl.daemon.channel import Channel
from streamcl.daemon.trainer import Trainer
from streamcl.learning.learner import Event, Progress
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
        self.trainer = _Timed(config, *(Channel(ours) for ours, _ in self._ends))
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
        self.trainer.durable = self.writer.sync()
        self.trainer.turn()
        self.trainer.turn()
        end = time.perf_counter()
        trainer = self.trainer
        return Taken(
            float(np.median(trainer.steps)), trainer.before_follow - trainer.after_fisher, end - trainer.after_fisher
        )

    def close(self) -> None:
        """Close the log and the channels."""
        self.writer.close()
        for pair in self._ends:
            for end in pair:
                end.close()


class _Timed(Trainer):
    """Notes when the learner last yielded, and how long its steps took."""

    def __init__(self, config: Config, up: Channel, side: Channel) -> None:
        super().__init__(config, up, side)
        self.after_fisher = self.before_follow = 0.0
        self.steps: list[float] = []

    def _follow_tasks(self, seconds: float = 0.0) -> None:
        self.before_follow = time.perf_counter()
        super()._follow_tasks(seconds)

    def _between_steps(self, event: Event) -> None:
        now = time.perf_counter()
        if isinstance(event, Progress) and event.phase == "epochs" and event.result is None:
            self.steps.append(now - self.after_fisher)
        super()._between_steps(event)
        self.after_fisher = time.perf_counter()

    def _learn(self, entry: Any) -> None:
        self.steps, self.after_fisher = [], time.perf_counter()
        super()._learn(entry)


def rows(rounds: int) -> list[Row]:
    """Single mode and factor mode."""
    return [_row(mode, rounds) for mode in ("single", "factors")]


def _row(mode: str, rounds: int) -> Row:
    with tempfile.TemporaryDirectory(prefix="streamcl-") as name:
        model = {"args": {"hidden": [400, 400]}, "classes": CLASSES}
        made = Boundaries(Path(name) / "state", {"model": model, "posterior": {"mode": mode}})
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
    return Row(f"a boundary besides epochs and Fisher, {mode}", against, mine / yardstick, "at most", 1.5, mine, yardstick)


def _write(path: Path, content: bytes) -> float:
    started = time.perf_counter()
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, content)
    os.fsync(fd)
    os.close(fd)
    return time.perf_counter() - started
