"""``kill -9`` of the real daemon at random moments, while a real producer streams; an undisturbed daemon is fed the same.

After every round the two must agree bitwise: parameters, posterior, every task's samples and loss, and the count of
batches. The producer itself notices if an acknowledged message is lost.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.local import LocalDaemon
from streamcl.client import Producer
from streamcl.errors import StreamclError

TREE = {
    "model": {"factory": "streamcl.models:mlp", "args": {"hidden": [16]}, "classes": 4},
    "train": {"epochs": 12, "batch_size": 16},
    "posterior": {"mode": "factors"},
}
BATCHES, ROWS, FEATURES = 6, 64, 8
TASKS = 10  # a round
PATIENCE = 180.0  # seconds that a producer waits for a daemon that is killed again and again
LONGEST_WAIT = 1.4  # seconds between two kills
PROCESSES = ("ingest", "trainer", "predictor", "nursery")


@dataclass(slots=True)
class Killed:
    """What was done, and what was found. kills: by victim. boundaries, batches: in the daemon that was killed."""

    kills: dict[str, int] = field(default_factory=dict)
    rounds: int = 0
    batches: int = 0
    boundaries: int = 0
    violations: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """All kills."""
        return sum(self.kills.values())

    def plain(self) -> dict[str, Any]:
        """For a report."""
        return {
            "kills": self.total,
            "by victim": self.kills,
            "rounds compared": self.rounds,
            "batches": self.batches,
            "boundaries": self.boundaries,
            "violations": len(self.violations),
            "first": self.violations[:5],
        }


def random_kills(kills: int, seed: int = 0, say: Callable[[str], None] = lambda text: None) -> Killed:
    """Kill that many times; returns what was found."""
    rng, result = random.Random(seed), Killed()
    with (
        tempfile.TemporaryDirectory(prefix="streamcl-kills-") as home,
        LocalDaemon(TREE, Path(home) / "killed") as victim,
        LocalDaemon(TREE, Path(home) / "left-in-peace") as peaceful,
        peaceful.producer() as reference,
    ):
        producer = victim.producer(timeout=PATIENCE)
        while result.total < kills and not result.violations:
            story = _round(result.rounds, rng)
            errors: list[BaseException] = []
            feeder = threading.Thread(target=_feed, args=(producer, story, errors))
            feeder.start()
            _harass(victim, feeder, rng, result, kills)
            feeder.join()
            result.violations += [f"round {result.rounds}: {error!r}" for error in errors]
            _feed(reference, story, [])
            result.violations += [f"round {result.rounds}: {text}" for text in _differences(victim, peaceful)]
            result.boundaries += sum(kind == "boundary" for kind, *_ in story)
            result.rounds += 1
            say(f"{result.total} kills, {result.rounds} rounds, {len(result.violations)} violations")
        with victim.admin() as admin:
            result.batches = admin.status()["batches_applied"]
        producer.close(flush=False)
    return result


Story = list[tuple[str, str, Any]]


def _round(number: int, rng: random.Random) -> Story:
    """New tasks, one of all those so far fed again after every other of them."""
    story: Story = []
    for task in range(number * TASKS, (number + 1) * TASKS):
        story += _fed(f"task-{task}", rng)
        if task % 2:
            again = f"task-{rng.randint(0, task)}"
            story += [("revisit", again, None), *_fed(again, rng)]
    return story


def _fed(task: str, rng: random.Random) -> Story:
    return [*(("batch", task, _data(rng)) for _ in range(BATCHES)), ("boundary", task, None)]


def _data(rng: random.Random) -> tuple[Any, Any]:
    numbers = np.random.default_rng(rng.getrandbits(32))
    return numbers.normal(size=(ROWS, FEATURES)).astype("<f4"), numbers.integers(0, 4, ROWS)


def _feed(producer: Producer, story: Story, errors: list[BaseException]) -> None:
    try:
        for kind, task, data in story:
            match kind:
                case "batch":
                    x, y = data
                    producer.send(x, y, task)
                case "revisit":
                    producer.revisit(task)
                case "boundary":
                    producer.boundary(task)
    except StreamclError as error:
        errors.append(error)


def _harass(daemon: LocalDaemon, feeder: threading.Thread, rng: random.Random, result: Killed, kills: int) -> None:
    """Kill the daemon or one of its processes, again and again, until the feeder has finished or has had enough."""
    while result.total < kills:
        feeder.join(rng.uniform(0.0, LONGEST_WAIT))
        if not feeder.is_alive():
            return
        victim = rng.choice(("all", "all", "all while starting", "supervisor", *PROCESSES))
        result.kills[victim] = result.kills.get(victim, 0) + 1
        if victim in PROCESSES:
            with contextlib.suppress(KeyError, ProcessLookupError):  # it is being started again after the last kill
                os.kill(daemon.children()[victim], signal.SIGKILL)
            continue
        if victim == "supervisor":
            daemon.kill()
        else:
            daemon.kill_all()
        if victim == "all while starting":
            daemon.launch()
            time.sleep(rng.uniform(0.0, LONGEST_WAIT))
            daemon.kill_all()
        try:
            daemon.start()
        except StreamclError as error:
            result.violations.append(f"it does not start: {error}")
            return


def _differences(daemon: LocalDaemon, peaceful: LocalDaemon) -> list[str]:
    """What the two disagree on."""
    one, other = _learned(daemon), _learned(peaceful)
    return [f"{name}: {one[name]!r} is not {other[name]!r}"[:300] for name in one if one[name] != other[name]]


def _learned(daemon: LocalDaemon) -> dict[str, Any]:
    with daemon.admin() as admin:
        admin.checkpoint()
        parameters, status, tasks = admin.parameters(), admin.status(), admin.tasks()
    figures = ("task", "samples", "weight", "loss", "revisits")
    return {
        "theta": parameters.theta.tobytes(),
        "precision": parameters.precision.tobytes(),
        "shift": parameters.shift.tobytes(),
        "batches": (status["batches_durable"], status["batches_applied"]),
        "tasks": [[task[name] for name in figures] for task in tasks],
    }
