"""A long run: tasks are learned, fed again and queried without end; memory, file handles and segments are counted."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.local import LocalDaemon
from streamcl.bench.versions import versions

TREE = {
    "model": {"factory": "streamcl.models:mlp", "args": {"hidden": [64]}, "classes": 4},
    "train": {"epochs": 3},
    "posterior": {"mode": "factors"},
}
TASKS, BATCHES, ROWS, FEATURES = 10, 6, 64, 32
EVERY_SECONDS = 5.0
GROWTH_KIB = 8 * 1024  # from the second quarter's median to the last's, of one process
PAUSE_SECONDS = 0.1  # between two tasks, so that the machine has room for something else


@dataclass(slots=True)
class Course:
    """What was counted over time: KiB of anonymous memory and file handles by process, and segments in the log."""

    memory: dict[str, list[int]] = field(default_factory=dict)
    handles: dict[str, list[int]] = field(default_factory=dict)
    segments: list[int] = field(default_factory=list)
    boundaries: int = 0

    def count(self, daemon: LocalDaemon) -> None:
        """Look once, at a moment without an open task."""
        assert daemon.process is not None
        for role, pid in {"supervisor": daemon.process.pid, **daemon.children()}.items():
            self.memory.setdefault(role, []).append(anonymous_kib(pid))
            self.handles.setdefault(role, []).append(len(list(Path(f"/proc/{pid}/fd").iterdir())))
        self.segments.append(len(list((daemon.state_dir / "log").glob("*.seg"))))

    def plain(self) -> dict[str, Any]:
        """Medians of the second and of the last quarter, for a report."""
        return {
            "boundaries": self.boundaries,
            "memory, KiB": {role: _quarters(values) for role, values in self.memory.items()},
            "file handles": {role: _quarters(values) for role, values in self.handles.items()},
            "segments": _quarters(self.segments),
        }

    def is_flat(self) -> bool:
        """Whether nothing has grown since the first quarter."""
        memory = all(last - second <= GROWTH_KIB for second, last in map(_quarters, self.memory.values()))
        handles = all(last <= second for second, last in map(_quarters, [*self.handles.values(), self.segments]))
        return memory and handles


def anonymous_kib(pid: int) -> int:
    """RssAnon of a process: what it holds for itself, without mapped files (Linux)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon:")).split()[1])


def _quarters(values: list[int]) -> tuple[int, int]:
    quarter = max(1, len(values) // 4)
    return int(statistics.median(values[quarter : 2 * quarter] or values)), int(statistics.median(values[-quarter:]))


def soak(minutes: float, say: Callable[[str], None]) -> Course:
    """Run for so many minutes."""
    course, rng = Course(), np.random.default_rng(0)
    until, next_look = time.monotonic() + 60 * minutes, 0.0
    with LocalDaemon(TREE) as daemon, daemon.producer() as producer, daemon.admin() as admin, daemon.reader() as reader:
        while time.monotonic() < until:
            task = f"task-{course.boundaries % TASKS}"
            if course.boundaries >= TASKS:
                producer.revisit(task)
            for _ in range(BATCHES):
                x = rng.normal(size=(ROWS, FEATURES)).astype("<f4")
                producer.send(x, rng.integers(0, 4, ROWS), task)
            producer.boundary(task)
            reader.predict(x, samples=3)
            course.boundaries += 1
            admin.status()
            time.sleep(PAUSE_SECONDS)
            if time.monotonic() > next_look:
                next_look = time.monotonic() + EVERY_SECONDS
                course.count(daemon)
                if len(course.segments) % 12 == 0:
                    memory = ", ".join(f"{role} {values[-1]}" for role, values in course.memory.items())
                    say(f"{course.boundaries} boundaries; KiB: {memory}")
    return course


def run(minutes: float, out: Path | None) -> int:
    """Soak, print and write what was counted; 1 if anything grew."""
    course = soak(minutes, lambda text: print(text, flush=True))
    figures = {"benchmark": "soak", "minutes": minutes, "versions": versions(), **course.plain(), "flat": course.is_flat()}
    print(json.dumps(figures, indent=2))
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if course.is_flat() else 1
