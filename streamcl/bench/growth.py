"""``streamcl bench growth``: how the cost of a step and of a boundary grows with tasks, parameters and samples.

With the number of tasks both must stay constant; with parameters and samples they grow linearly. Measured on a real
trainer with a real log and disk, without sockets.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch

from streamcl import models
from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.speed.boundary import Boundaries, Taken
from streamcl.bench.speed.workloads import CLASSES
from streamcl.bench.versions import versions
from streamcl.core.fisher import Fisher
from streamcl.core.likelihood import Categorical
from streamcl.core.parameters import FlatParameters

FEATURES = 784
WIDTHS = {10_000: 12, 100_000: 125, 1_000_000: 680, 10_000_000: 2_790, 100_000_000: 9_600}  # of two hidden layers
PARTS = (32, 16, 8, 4, 2, 1)  # of the samples
WINDOW = 25  # tasks averaged over
ROWS = 64


@dataclass(frozen=True, slots=True)
class Point:
    """One measurement. at: tasks, parameters or samples. All times are medians, in seconds."""

    curve: str
    at: int
    step: float
    boundary: float


def by_tasks(tasks: int, mode: str) -> Iterator[Point]:
    """After every `WINDOW` tasks, the medians over them; boundary: everything after its epochs and Fisher."""
    with _boundaries({"model": _model(64), "posterior": {"mode": mode}}) as made:
        made.learn_a_task()
        taken: list[Taken] = []
        for number in range(2, tasks + 1):
            taken.append(made.learn_a_task())
            if len(taken) == WINDOW or number == tasks:
                yield _point(f"tasks, {mode}", number, taken)
                taken = []


def by_parameters(most: int) -> Iterator[Point]:
    """Two hidden layers of growing width."""
    for size, width in WIDTHS.items():
        if size > most:
            return
        with _boundaries({"model": _model(width, width)}) as made:
            taken = [made.learn_a_task() for _ in range(4)][1:]
            model = made.trainer.learner.model
            assert model is not None
            yield _point("parameters", model.network.parameters.size, taken)


def _point(curve: str, at: int, taken: Sequence[Taken]) -> Point:
    return Point(curve, at, statistics.median(each.step for each in taken), statistics.median(each.whole for each in taken))


def by_samples(most: int) -> Iterator[Point]:
    """An exact Fisher of an MLP 784-400-400-10, as `boundary`; one step, the same for all, as `step`."""
    module = models.mlp((FEATURES,), CLASSES, hidden=[400, 400])
    parameters = FlatParameters(module)
    for samples in (most // divisor for divisor in PARTS):
        x = torch.randn(samples, FEATURES)
        seconds = statistics.median(_fisher_seconds(module, parameters, x) for _ in range(3))
        yield Point("samples", samples, 0.0, seconds)


def _fisher_seconds(module: torch.nn.Module, parameters: FlatParameters, x: torch.Tensor) -> float:
    fisher = Fisher(module, parameters, Categorical(CLASSES))
    started = time.perf_counter()
    for start in range(0, len(x), 512):
        fisher.add(x[start : start + 512])
    return time.perf_counter() - started


def _model(*hidden: int) -> dict[str, Any]:
    return {"args": {"hidden": list(hidden)}, "classes": CLASSES}


class _boundaries:
    """`Boundaries` in a temporary directory."""

    def __init__(self, tree: dict[str, Any]) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix="streamcl-")
        self._made = Boundaries(Path(self._directory.name) / "state", tree, rows=ROWS)

    def __enter__(self) -> Boundaries:
        return self._made

    def __exit__(self, *_: object) -> None:
        self._made.close()
        self._directory.cleanup()


def growth(points: Sequence[Point], curve: str) -> dict[str, float]:
    """For a curve, the cost of its last point over that of its first, and what linear growth would give."""
    found = [point for point in points if point.curve == curve]
    first, last = found[0], found[-1]
    ratios = {"boundary": last.boundary / first.boundary, "at": last.at / first.at}
    return ratios | ({"step": last.step / first.step} if first.step else {})


def run(tasks: int, parameters: int, samples: int, out: Path | None, plot: Path | None) -> None:
    """Every curve, printed, written and drawn."""
    points: list[Point] = []
    print(f"{'curve':<18}{'at':>12}{'step, ms':>12}{'boundary, ms':>14}")
    sources = by_tasks(tasks, "single"), by_tasks(tasks, "factors"), by_parameters(parameters), by_samples(samples)
    with as_in_the_trainer():
        for point in chain(*sources):
            points.append(point)
            print(f"{point.curve:<18}{point.at:>12,}{1e3 * point.step:>12.3f}{1e3 * point.boundary:>14.2f}", flush=True)
    curves = list(dict.fromkeys(point.curve for point in points))
    ratios = {curve: growth(points, curve) for curve in curves}
    for curve, ratio in ratios.items():
        print(f"{curve}: " + ", ".join(f"{name} x {value:,.2f}" for name, value in ratio.items()))
    if out is not None:
        document = {"benchmark": "growth", "threads": torch.get_num_threads(), "versions": versions(), "growth": ratios}
        out.write_text(json.dumps({**document, "points": [asdict(point) for point in points]}, indent=2) + "\n")
    if plot is not None:
        draw(points, plot)


def draw(points: Sequence[Point], path: Path) -> None:
    """Three panels: tasks, parameters, samples."""
    from streamcl.bench.figure import Figure, save

    figure = Figure(figsize=(14, 4.2), layout="constrained")
    panels = {"tasks": "number of tasks", "parameters": "parameters", "samples": "samples of the task"}
    for axes, (panel, label) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
        for curve in dict.fromkeys(point.curve for point in points if point.curve.startswith(panel)):
            _draw_curve(axes, curve, [point for point in points if point.curve == curve])
        axes.set(xlabel=label, ylabel="milliseconds", yscale="log", xscale="linear" if panel == "tasks" else "log")
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, path)


def _draw_curve(axes: Any, curve: str, points: Sequence[Point]) -> None:
    at = [point.at for point in points]
    what = "exact Fisher" if curve == "samples" else f"boundary ({curve})"
    axes.plot(at, [1e3 * point.boundary for point in points], marker="o", label=what)
    if points[0].step:
        axes.plot(at, [1e3 * point.step for point in points], marker="s", linestyle="--", label=f"step ({curve})")
