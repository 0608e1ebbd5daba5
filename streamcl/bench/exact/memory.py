"""Ten million rows in constant memory: what an exact learner holds early in a stream and at its end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.bench.faults.soak import anonymous_kib
from streamcl.bench.local import LocalDaemon
from streamcl.estimator import Learner

Array = npt.NDArray[Any]
FEATURES, BATCH, TASKS = 16, 8192, 20
TREE = {"model": {"learner": "exact", "factory": "streamcl.models:identity"}}
IN_PROCESS, DAEMON = "in process", "daemon"


@dataclass(frozen=True, slots=True)
class Held:
    """What a process held for itself once so many rows had been consolidated, in MiB (Linux). seconds: since the first."""

    where: str
    process: str
    rows: int
    mebibytes: float
    seconds: float


def held(rows: int, where: str) -> Iterator[Held]:
    """After a tenth of the rows, and after all; they come in `TASKS` tasks."""
    yield from _in_process(rows) if where == IN_PROCESS else _through_a_daemon(rows)


def _in_process(rows: int) -> Iterator[Held]:
    import os

    learner, started = Learner(TREE), time.monotonic()
    for done in _sent(rows, lambda x, y, task: learner.observe(x, y, task=task), learner.boundary):
        yield Held(IN_PROCESS, "learner", done, anonymous_kib(os.getpid()) / 1024, time.monotonic() - started)


def _through_a_daemon(rows: int) -> Iterator[Held]:
    with LocalDaemon(TREE) as daemon, daemon.producer() as producer:
        assert daemon.process is not None
        started = time.monotonic()
        for done in _sent(rows, producer.send, producer.boundary):
            seconds = time.monotonic() - started
            for process, pid in {"supervisor": daemon.process.pid, **daemon.children()}.items():
                yield Held(DAEMON, process, done, anonymous_kib(pid) / 1024, seconds)


def _sent(rows: int, send: Callable[[Array, Array, str], Any], boundary: Callable[[str], Any]) -> Iterator[int]:
    """Rows in tasks; yields their number where it is looked at."""
    rng, each, done = np.random.default_rng(0), rows // TASKS, 0
    for task in range(TASKS):
        name = f"task-{task}"
        for start in range(0, each, BATCH):
            y = rng.integers(0, 10, min(BATCH, each - start))
            send(rng.standard_normal((len(y), FEATURES), np.float32) + y[:, None].astype("<f4") / 5, y, name)
        boundary(name)
        done += each
        if task + 1 in (TASKS // 10, TASKS):
            yield done
