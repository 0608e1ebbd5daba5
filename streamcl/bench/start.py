"""``streamcl bench start``: from nothing to ready, after a stop, and after a death, beside one import of PyTorch.

Everything is timed in turn, round by round, and medians are compared, so that what else the machine does meets all alike.
Another version of streamcl can be timed in the same run: its checkout is named.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.local import LocalDaemon
from streamcl.bench.versions import versions

GOAL = 1.3  # imports of PyTorch, for a start
IMPORT = [sys.executable, "-c", "import torch"]
TREE: Mapping[str, Any] = {
    "model": {"factory": "streamcl.models:linear", "classes": 3},
    "train": {"epochs": 1},
    "log": {"level": "debug", "format": "json"},
}
NEW = ": new, start to ready"
FRESH = f"streamcl{NEW}"  # what the goal is for
READY = '"child": "trainer", "seconds": '  # in the daemon's log, once for every trainer that has become ready
ROWS = 64


def run(rounds: int, beside: Path | None, out: Path | None) -> int:
    """Measure, print and write; 1 if a start takes longer than it may."""
    codes = {"streamcl": None} if beside is None else {"streamcl": None, "beside": beside.resolve()}
    with tempfile.TemporaryDirectory(prefix="streamcl-start-") as home:
        actions = dict(_actions(Path(home), codes))
        taken = _in_turn(actions, rounds)
    medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
    importing = medians["import torch"]
    figures = {name: {"seconds": round(each, 3), "imports": round(each / importing, 2)} for name, each in medians.items()}
    met = figures[FRESH]["imports"] <= GOAL
    _show(figures, met)
    if out is not None:
        document = {"benchmark": "start", "versions": versions(), "rounds": rounds, "processors": os.cpu_count()}
        out.write_text(json.dumps({**document, "goal": GOAL, "figures": figures}, indent=2) + "\n")
    return 0 if met else 1


def _show(figures: Mapping[str, Mapping[str, float]], met: bool) -> None:
    print(f"{'what':<52}{'seconds':>9}{'over one import':>17}")
    for name, row in figures.items():
        print(f"{name:<52}{row['seconds']:>9.3f}{row['imports']:>17.2f}")
    print(f"a start takes {'at most' if met else 'more than'} {GOAL} imports of PyTorch")


def _actions(home: Path, codes: Mapping[str, Path | None]) -> Iterator[tuple[str, Callable[[], float]]]:
    """What is timed, by name."""
    yield "import torch", _import
    for name, code in codes.items():
        old = LocalDaemon(TREE, home / name, code)
        yield f"{name}{NEW}", partial(_new, home, name, code)
        yield f"{name}: with two tasks learned, start to ready", partial(_again, old)
        yield f"{name}: kill -9 of the trainer to a trainer ready", partial(_killed, old)


def _in_turn(actions: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Seconds of every action, of all rounds but a first one that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            seconds = action()
            if number:
                taken[name].append(seconds)
    return taken


def _import() -> float:
    started = time.perf_counter()
    subprocess.run(IMPORT, check=True)
    return time.perf_counter() - started


def _new(home: Path, name: str, code: Path | None) -> float:
    """A daemon with nothing on disk."""
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=home))
    with _timed(LocalDaemon(TREE, directory / "state", code)) as seconds:
        return seconds


def _again(daemon: LocalDaemon) -> float:
    """A daemon with a checkpoint of two tasks, and a third one begun."""
    if not daemon.endpoints:
        with daemon:
            _learn(daemon)
    with _timed(daemon) as seconds:
        return seconds


def _killed(daemon: LocalDaemon) -> float:
    """From the trainer's death to its successor."""
    with daemon:
        before = daemon.log_text().count(READY)
        started = time.perf_counter()
        os.kill(daemon.children()["trainer"], signal.SIGKILL)
        while daemon.log_text().count(READY) == before:
            time.sleep(0.005)
        return time.perf_counter() - started


@contextmanager
def _timed(daemon: LocalDaemon) -> Iterator[float]:
    """The seconds that a start takes; the daemon is stopped afterwards."""
    started = time.perf_counter()
    with daemon:
        yield time.perf_counter() - started


def _learn(daemon: LocalDaemon) -> None:
    rng = np.random.default_rng(0)
    with daemon.producer() as producer:
        for task in ("a", "b", "c"):
            producer.send(rng.standard_normal((ROWS, 4), np.float32), rng.integers(0, 3, ROWS), task)
            if task != "c":
                producer.boundary(task)
        producer.flush()
