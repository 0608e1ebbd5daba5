"""``streamcl bench one-pass``: tasks through the real daemon, nothing set but the network; and sweeps of revisits.

The cases of `ablations`: every task has its own permutation of the pixels, or two of the classes. Beside it, the same
network on all rows at once (joint training), through a daemon of its own, and in factor mode the same tasks fed again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.ablations import Case, Task, streamed, tasks_of
from streamcl.bench.demo import digits
from streamcl.bench.local import LocalDaemon
from streamcl.bench.permuted import score, stream_task
from streamcl.bench.permuted_mnist import load_images
from streamcl.bench.versions import versions

ROWS = 10_000  # of MNIST, for training


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracy and log loss on every task. sweep: 0 after the first pass, then those of revisits; None: joint training."""

    case: Case
    tasks: int
    seed: int
    sweep: int | None
    accuracy: list[float]
    loss: float
    seconds: float

    @property
    def mean(self) -> float:
        """Over the tasks."""
        return float(np.mean(self.accuracy))

    def __str__(self) -> str:
        what = "joint" if self.sweep is None else f"{self.sweep} sweeps" if self.sweep else "one pass"
        worst = f"first {self.accuracy[0]:.4f}, worst {min(self.accuracy):.4f}"
        place = f"{self.case} {self.tasks:3d} tasks, seed {self.seed}: {what:<9}"
        return f"{place} {self.mean:.4f} ({worst}), log loss {self.loss:.3f}, {self.seconds:.0f} s"


@dataclass(frozen=True, slots=True)
class Settings:
    """hidden: widths; none: 200 and 200 for MNIST, 256 and 256 for digits. sweeps: of revisits. joint: that as well."""

    data: Path | None = None
    hidden: tuple[int, ...] = ()
    sweeps: int = 0
    joint: bool = False

    @property
    def widths(self) -> list[int]:
        """Of the network's layers."""
        return list(self.hidden) or ([256, 256] if self.data is None else [200, 200])


def run(settings: Settings, cases: list[Case], tasks: list[int], seeds: list[int], out: Path | None) -> list[Result]:
    """Everything asked for, printed as it comes and written to `out`."""
    images = digits() if settings.data is None else load_images(settings.data, ROWS)
    results: list[Result] = []

    def found(result: Result) -> None:
        print(result, flush=True)
        results.append(result)
        _write(out, results, settings)

    for case in cases:
        for numbers in _together(settings, tasks) if case == "sites" else [tasks[:1]]:
            for seed in seeds:
                made = tasks_of(case, images, max(numbers), seed)
                scored = numbers if case == "sites" else [len(made)]
                _learn(settings, case, made, scored, seed, found)
                for number in scored if settings.joint else []:
                    _learn_jointly(settings, case, made[:number], seed, found)
    _print_table(results)
    return results


def _together(settings: Settings, tasks: list[int]) -> list[list[int]]:
    """Numbers of tasks that one stream has on its way: all, but where each is followed by revisits of its own."""
    return [[number] for number in tasks] if settings.sweeps else [sorted(tasks)]


def _learn(
    settings: Settings, case: Case, tasks: list[Task], numbers: list[int], seed: int, found: Callable[[Result], None]
) -> None:
    """One task after another. numbers: of tasks learned, where all of these are scored; so are all at the end."""
    posterior = {"mode": "factors" if settings.sweeps else "single"}
    started = time.monotonic()
    with _daemon(settings, seed, posterior) as daemon, daemon.producer() as producer:
        for sweep in range(settings.sweeps + 1):
            for learned, (name, x, y) in enumerate(streamed(tasks, False, seed), 1):
                if sweep:
                    producer.revisit(name)
                stream_task(producer, name, x, y)
                if learned in numbers and learned < len(tasks):
                    found(_scored(daemon, case, tasks[:learned], seed, sweep, started))
            found(_scored(daemon, case, tasks, seed, sweep, started))


def _learn_jointly(settings: Settings, case: Case, tasks: list[Task], seed: int, found: Callable[[Result], None]) -> None:
    started = time.monotonic()
    with _daemon(settings, seed, {}) as daemon, daemon.producer() as producer:
        for name, x, y in streamed(tasks, True, seed):
            stream_task(producer, name, x, y)
        found(_scored(daemon, case, tasks, seed, None, started))


def _daemon(settings: Settings, seed: int, posterior: dict[str, Any]) -> LocalDaemon:
    model = {"args": {"hidden": settings.widths}, "classes": 10}
    return LocalDaemon({"model": model, "train": {"seed": seed}, "posterior": posterior})


def _scored(daemon: LocalDaemon, case: Case, tasks: list[Task], seed: int, sweep: int | None, started: float) -> Result:
    with daemon.reader() as reader:
        every = [score(reader, np.ascontiguousarray(task.test_x), task.test_y) for task in tasks]
    accuracy = [round(each.accuracy, 4) for each in every]
    loss = float(np.mean([each.loss for each in every]))
    return Result(case, len(tasks), seed, sweep, accuracy, loss, round(time.monotonic() - started, 1))


def _print_table(results: list[Result]) -> None:
    """Mean over the seeds, the least and the largest."""
    print(f"\n{'':<34}{'mean':>9}{'least':>9}{'largest':>9}")
    for (case, tasks, sweep), means in _by_kind(results):
        what = "joint training" if sweep is None else f"after {sweep} sweeps" if sweep else "one pass"
        print(f"{case}, {tasks} tasks, {what:<18}{np.mean(means):9.4f}{min(means):9.4f}{max(means):9.4f}")


def _by_kind(results: list[Result]) -> Iterator[tuple[tuple[str, int, int | None], list[float]]]:
    kinds = dict.fromkeys((r.case, r.tasks, r.sweep) for r in results)
    for kind in kinds:
        yield kind, [r.mean for r in results if (r.case, r.tasks, r.sweep) == kind]


def _write(out: Path | None, results: list[Result], settings: Settings) -> None:
    if out is None:
        return
    data = "digits" if settings.data is None else settings.data.name
    rows = [
        {"case": r.case, "tasks": r.tasks, "seed": r.seed, "sweep": r.sweep, "mean": round(r.mean, 4)}
        | {"accuracy": r.accuracy, "log_loss": round(r.loss, 4), "seconds": r.seconds}
        for r in results
    ]
    what = {"data": data, "hidden": settings.widths}
    whole = {"benchmark": "one-pass", "settings": what, "versions": versions(), "results": rows}
    out.write_text(json.dumps(whole, indent=2) + "\n")
