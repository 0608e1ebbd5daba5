"""``streamcl demo``: forgetting, with and without the penalty, on real data through real daemons.

Scikit-learn's handwritten digits, each task with its own fixed permutation of the pixels. Two daemons get the same
stream: one as it is without any configuration, the other with ``posterior.scale = 0``, which leaves every step the same but
keeps nothing of a task: plain fine-tuning.
"""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamcl.bench.local import LocalDaemon
from streamcl.bench.permuted import Images, run_tasks
from streamcl.config import Auto
from streamcl.errors import StreamclError

if TYPE_CHECKING:
    from rich.table import Table

Array = npt.NDArray[Any]
TEST_ROWS = 400
METHODS: tuple[tuple[str, dict[str, Any]], ...] = (("streamcl", {}), ("fine-tuning", {"scale": 0.0}))


def run(out: Path, tasks: int = 5, epochs: int | Auto = "auto", seed: int = 0) -> dict[str, Array]:
    """Run the demo; writes ``demo.png`` and ``demo.json`` into `out`, which must be a directory or not exist yet.

    Returns for each method the accuracies [after task i, on task j]. Raises StreamclError if the extra `demo` is not
    installed.
    """
    images = digits()
    permutations = images.permutations(tasks, seed)
    print(f"{tasks} tasks of {len(images.train_x)} handwritten digits, each with its own permutation of the pixels")
    started = time.monotonic()
    matrices = {name: _run_method(name, posterior, images, permutations, epochs) for name, posterior in METHODS}
    _print_result(matrices)
    out.mkdir(parents=True, exist_ok=True)
    figures = {name: [[v for v in row if v == v] for row in m.tolist()] for name, m in matrices.items()}
    (out / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    plot(matrices, out / "demo.png")
    print(f"\nplot: {out / 'demo.png'}   figures: {out / 'demo.json'}   ({time.monotonic() - started:.0f} s)")
    return matrices


def digits() -> Images:
    """1,797 digits of 8 x 8 pixels, shuffled; the last 400 for testing."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise StreamclError("the demo needs scikit-learn and matplotlib: pip install 'streamcl[demo]'") from None
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    x, y = (data.data[order] / 16.0).astype(np.float32), data.target[order].astype(np.int64)
    return Images(x[:-TEST_ROWS], y[:-TEST_ROWS], x[-TEST_ROWS:], y[-TEST_ROWS:])


def _run_method(
    name: str, posterior: dict[str, Any], images: Images, permutations: list[Array], epochs: int | Auto
) -> Array:
    tree = {"train": {"epochs": epochs}, "posterior": posterior}
    with LocalDaemon(tree) as daemon, _live(name, len(permutations)) as show:

        def after(number: int, scores: list[float], done: dict[str, Any]) -> None:
            show(number, scores, done, _scrape(daemon))

        return run_tasks(daemon, images, permutations, after)


def _scrape(daemon: LocalDaemon) -> dict[str, float]:
    """What a monitor would see: the values at /metrics."""
    with urllib.request.urlopen(daemon.url("/metrics"), timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in samples}


# -- what is shown -----------------------------------------------------------------------------------------------------


@contextmanager
def _live(name: str, tasks: int) -> Iterator[Any]:
    """A table that grows with every boundary on a terminal, a line a boundary elsewhere."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    rows: list[tuple[list[float], dict[str, Any], dict[str, float]]] = []
    if not console.is_terminal:
        yield lambda number, scores, done, metrics: print(_line(name, number, scores, metrics), flush=True)
        return
    with Live(_table(name, tasks, rows), console=console, refresh_per_second=4) as live:

        def show(number: int, scores: list[float], done: dict[str, Any], metrics: dict[str, float]) -> None:
            rows.append((scores, done, metrics))
            live.update(_table(name, tasks, rows))

        yield show


def _line(name: str, number: int, scores: list[float], metrics: dict[str, float]) -> str:
    shown = " ".join(f"{score:.2f}" for score in scores)
    prequential = metrics["streamcl_prequential_accuracy_ratio"]
    return f"{name:>11}  after task {number + 1}: accuracy on each {shown}   (prequential {prequential:.2f})"


def _table(name: str, tasks: int, rows: list[tuple[list[float], dict[str, Any], dict[str, float]]]) -> Table:
    from rich.table import Table

    table = Table(title=f"{name}: test accuracy on every task so far", title_justify="left")
    table.add_column("after")
    for task in range(tasks):
        table.add_column(f"task {task + 1}", justify="right", min_width=6)
    for heading in ("mean", "prequential", "seconds"):
        table.add_column(heading, justify="right")
    for number, (scores, done, metrics) in enumerate(rows):
        cells = [_coloured(score) for score in scores] + [""] * (tasks - len(scores))
        prequential = f"{metrics['streamcl_prequential_accuracy_ratio']:.2f}"
        table.add_row(f"task {number + 1}", *cells, f"{np.mean(scores):.3f}", prequential, f"{done['seconds']:.1f}")
    return table


def _coloured(score: float) -> str:
    colour = "green" if score > 0.85 else "yellow" if score > 0.6 else "red"
    return f"[{colour}]{score:.2f}[/{colour}]"


def _print_result(matrices: dict[str, Array]) -> None:
    tasks = len(next(iter(matrices.values())))
    print("\naccuracy after the last task, on each")
    print(f"{'':>12}" + "".join(f"{f'task {task + 1}':>9}" for task in range(tasks)) + f"{'mean':>9}{'forgotten':>11}")
    for name, matrix in matrices.items():
        last = matrix[-1]
        print(f"{name:>12}" + "".join(f"{v:9.3f}" for v in last) + f"{last.mean():9.3f}{forgotten(matrix):11.3f}")


def forgotten(matrix: Array) -> float:
    """Mean loss of accuracy since each task was learned, over all tasks but the newest."""
    return float((np.diag(matrix) - matrix[-1])[:-1].mean()) if len(matrix) > 1 else 0.0


def plot(matrices: dict[str, Array], path: Path) -> None:
    """Two heat maps, accuracy on each task after each boundary, and the mean over time."""
    from streamcl.bench.figure import Figure, save

    figure = Figure(figsize=(13, 4.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for axes, (name, matrix) in zip((left, middle), matrices.items(), strict=True):
        image = _heat_map(axes, name, matrix)
    figure.colorbar(image, ax=[left, middle], label="test accuracy", shrink=0.85)
    for name, matrix in matrices.items():
        means = [np.nanmean(row) for row in matrix]
        right.plot(range(1, len(means) + 1), means, marker="o", linewidth=2, label=name)
    right.set(xlabel="after task", ylabel="mean accuracy on all tasks so far", ylim=(0, 1.02), title="Mean accuracy")
    right.set_xticks(range(1, len(next(iter(matrices.values()))) + 1))
    right.grid(alpha=0.3)
    right.legend(loc="lower left")
    figure.suptitle("Permuted digits, one task after another, no data kept")
    save(figure, path)


def _heat_map(axes: Any, name: str, matrix: Array) -> Any:
    image = axes.imshow(matrix, vmin=0, vmax=1, cmap="viridis")
    for (row, column), value in np.ndenumerate(matrix):
        if value == value:
            axes.text(
                column,
                row,
                f"{value:.2f}",
                ha="center",
                va="center",
                color="white" if value < 0.6 else "black",
            )
    ticks, labels = range(len(matrix)), [str(n + 1) for n in range(len(matrix))]
    axes.set_xticks(ticks, labels)
    axes.set_yticks(ticks, labels)
    axes.set(xlabel="accuracy on task", ylabel="after task", title=name)
    return image
