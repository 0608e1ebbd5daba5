"""Durable ingest through the real daemon, training paused, beside a bare ROUTER with a group-committed log."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.bare import Bare, Window
from streamcl.bench.local import LocalDaemon
from streamcl.bench.speed.table import Row, as_fast, interleaved, timed
from streamcl.client import Producer

WINDOW = 16
LARGE, SMALL = 784, 20  # columns
ROWS = 256
BLOCK = 32  # rows handed to `Producer.send` at a time
LARGE_BATCHES, SMALL_ROWS = 150, 200_000
BARE = "a bare ROUTER and group-committed log"


def rows(rounds: int) -> list[Row]:
    """Large batches, then small rows in small blocks and in large ones."""
    with tempfile.TemporaryDirectory(prefix="streamcl-") as name:
        return [large(Path(name), rounds), *small(Path(name), rounds)]


def large(directory: Path, rounds: int) -> Row:
    """803 KB batches, `WINDOW` of them unacknowledged."""
    x, y = _data(ROWS, LARGE)

    def through(producer: Producer) -> None:
        for _ in range(LARGE_BATCHES):
            producer.send(x, y, "open")

    def bare(window: Window) -> None:
        for _ in range(LARGE_BATCHES):
            window.send({"type": "batch", "task": "open"}, x, y)

    name = f"durable ingest, {x.nbytes // 1000} KB batches, window {WINDOW}"
    with _Pair(directory / "large", LARGE) as pair:
        return as_fast(name, BARE, 0.95, pair.through(through), pair.bare(bare), rounds)


def small(directory: Path, rounds: int) -> list[Row]:
    """Rows of 20 numbers in blocks of `BLOCK` and of 256 rows, beside 256 rows a message; and how many a second."""
    x, y = _data(ROWS, SMALL)

    def blocks_of(size: int) -> Callable[[Producer], None]:
        def send(producer: Producer) -> None:
            for _ in range(SMALL_ROWS // size):
                producer.send(x[:size], y[:size], "open")

        return send

    def bare(window: Window) -> None:
        for _ in range(SMALL_ROWS // ROWS):
            window.send({"type": "batch", "task": "open"}, x, y)

    with _Pair(directory / "small", SMALL) as pair:
        against = f"{BARE}, 256 rows a message"
        made = []
        for size in (BLOCK, ROWS):
            mine, yardstick = interleaved(pair.through(blocks_of(size)), pair.bare(bare), rounds)
            name = f"durable ingest, rows of 20 numbers in blocks of {size}"
            rate = SMALL_ROWS / mine / 1e6
            made.append(Row(name, against, yardstick / mine, "at least", 0.9, mine, yardstick))
            made.append(Row(name, "1 million rows a second", rate, "at least", 1.0, rate, 1.0, "million rows/s"))
        return made


def _data(rows: int, columns: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    return rng.standard_normal((rows, columns), np.float32), rng.integers(0, 10, rows)


class _Pair:
    """A daemon whose training is paused, and a bare log, on the same disk."""

    def __init__(self, directory: Path, columns: int) -> None:
        directory.mkdir()
        self._bare = Bare("log", str(directory / "bare.log"))
        self._daemon = LocalDaemon({"model": {"args": {"hidden": [8]}}}, directory / "state")
        self._columns = columns

    def __enter__(self) -> _Pair:
        self._daemon.start()
        self._producer = Producer(self._daemon.endpoints["stream"])  # gathering small blocks, as it does by default
        self._producer.send(*_data(ROWS, self._columns), "open")
        self._producer.flush()
        with self._daemon.admin() as admin:
            while admin.status()["samples_seen"] == 0:  # the model is built with the first batch
                time.sleep(0.02)
            admin.pause()
        self._window = Window(self._bare.first, WINDOW)
        return self

    def through(self, send: Callable[[Producer], None]) -> Callable[[], float]:
        """Seconds until everything that `send` sends is durable in the daemon."""

        def run() -> None:
            send(self._producer)
            self._producer.flush()

        return timed(run)

    def bare(self, send: Callable[[Window], None]) -> Callable[[], float]:
        """Seconds until everything that `send` sends is durable in the bare log."""

        def run() -> None:
            send(self._window)
            self._window.flush()

        return timed(run)

    def __exit__(self, *_: object) -> None:
        self._producer.close()
        self._window.close()
        self._daemon.kill_all()
        self._bare.__exit__()
