"""What people wait for: a file sent and learned, and rows that are predicted, sent and flushed one after another."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np

from streamcl.bench.bare import Bare
from streamcl.bench.local import LocalDaemon
from streamcl.bench.speed.table import Row, as_fast, timed

ONE_BY_ONE = 200  # rows a round
RECORD = bytes(400)  # what one row's record takes in the log, about


def rows(rounds: int) -> list[Row]:
    """Both."""
    return [one_by_one(rounds), file(rounds)]


def one_by_one(rounds: int) -> Row:
    """Test, then learn: each row is predicted, then sent and flushed, while what came before is learned."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ONE_BY_ONE, 20), np.float32)
    y = (x[:, 0] > 0).astype(np.int64)
    with LocalDaemon({}) as daemon, daemon.producer() as producer, daemon.reader() as reader:
        producer.send(x, y, "first")
        producer.boundary("first")

        def through() -> None:
            for row in range(ONE_BY_ONE):
                reader.predict(x[row : row + 1])
                producer.send(x[row : row + 1], y[row : row + 1], "second")
                producer.flush()

        name = "one row predicted, sent and flushed, one after another"
        with _syncing(daemon.state_dir / "bare") as bare:
            return as_fast(name, "as many syncs of a file", 0.9, timed(through), timed(bare), rounds)


def file(rounds: int) -> Row:
    """A CSV of River's Shuttle from `streamcl send` to its last row learned: one pass, nothing set, a new daemon each time.

    The yardstick reads the same file and takes as many steps of Adam, over its rows in their order.
    """
    with tempfile.TemporaryDirectory(prefix="streamcl-") as directory:
        path = Path(directory) / "shuttle.csv"
        size = _write(path)
        steps = [0]
        mine = partial(_send, path, size, steps)
        mine()
        with Bare("file", json.dumps({"path": str(path), "steps": steps[0]})) as bare:
            name = f"{size} rows of a CSV, from the file to learned, in {steps[0]} steps"
            return as_fast(name, "a bare loop over the file, as many steps", 0.9, mine, bare.ask, rounds)


def _write(path: Path) -> int:
    from river.datasets import Shuttle

    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        for number, (x, y) in enumerate(Shuttle()):
            if number == 0:
                writer.writerow([*x, "anomaly"])
            writer.writerow([*x.values(), int(y)])
    return number + 1


def _send(path: Path, size: int, steps: list[int]) -> float:
    """Seconds, without the daemon's start."""
    with LocalDaemon({}) as daemon, daemon.admin() as admin:
        command = [sys.executable, "-m", "streamcl", "send", str(path), "--label", "anomaly", "--task", "shuttle"]
        started = time.perf_counter()
        subprocess.run([*command, "--state-dir", str(daemon.state_dir)], check=True, stderr=subprocess.DEVNULL)
        while (status := admin.status())["samples_seen"] < size:
            time.sleep(0.01)
        taken = time.perf_counter() - started
        steps[0] = status["steps"]
        admin.stop(drain=False)
    return taken


@contextlib.contextmanager
def _syncing(path: Path) -> Iterator[Callable[[], None]]:
    """A file to which as much is written, and synced, as often."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT)

    def sync() -> None:
        for _ in range(ONE_BY_ONE):
            os.write(fd, RECORD)
            os.fdatasync(fd)

    try:
        yield sync
    finally:
        os.close(fd)
