"""``streamcl bench ranks``: what several processes that share the rows gain, by networks and their number.

Every number of processes is timed in turn, round by round, and medians are compared. Beside a step and the Fisher stands
what it takes to sum the gradient alone: what a step cannot fall below, however many share its rows.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from streamcl.bench.versions import versions
from streamcl.config import NOTED_RATE, from_tree
from streamcl.core.fisher import Fisher
from streamcl.core.gaussian import Gaussian
from streamcl.core.ranks import Ranks, stay_on_this_machine
from streamcl.core.reduce import ALONE, Reduction
from streamcl.learning.network import Network
from streamcl.learning.optimisation import Optimisation
from streamcl.schema import LabelMap, Signature

CLASSES, STEPS, FISHER_ROWS = 10, 15, 512
SIZES = (1, 2, 4)


@dataclass(frozen=True, slots=True)
class Workload:
    """A network, the shape of its rows, and how many of them a step takes."""

    name: str
    factory: str
    args: dict[str, Any]
    shape: tuple[int, ...]
    rows: int


WORKLOADS = (
    Workload("MLP 784-400-400-10", "mlp", {"hidden": [400, 400]}, (784,), 256),
    Workload("MLP 784-2048-2048-2048-10", "mlp", {"hidden": [2048, 2048, 2048]}, (784,), 256),
    Workload("convolutional 32-64", "convnet", {"channels": [32, 64], "hidden": 64}, (1, 28, 28), 128),
)


def run(rounds: int, out: Path | None) -> int:
    """Measure, print and write."""
    sizes = [size for size in SIZES if size <= max(2, 2 * (os.cpu_count() or 1))]
    taken: dict[tuple[str, int], list[dict[str, float]]] = {}
    for _ in range(rounds):
        for size in sizes:
            for name, figures in _together(size).items():
                taken.setdefault((name, size), []).append(figures)
    rows = [_row(name, size, every, taken[name, 1]) for (name, size), every in taken.items()]
    rows.sort(key=lambda row: ([each.name for each in WORKLOADS].index(row["network"]), row["processes"]))
    print(f"{'network':<28}{'processes':>10}{'step ms':>10}{'sum ms':>9}{'gain':>7}{'Fisher s':>10}{'gain':>7}")
    for row in rows:
        print(
            f"{row['network']:<28}{row['processes']:>10}{row['step_ms']:>10.1f}{row['sum_ms']:>9.1f}"
            f"{row['step_gain']:>7.2f}{row['fisher_seconds']:>10.2f}{row['fisher_gain']:>7.2f}"
        )
    if out is not None:
        known = {"benchmark": "ranks", "versions": versions(), "processors": os.cpu_count(), "rounds": rounds}
        out.write_text(json.dumps({**known, "rows": rows}, indent=2) + "\n")
    return 0


def _row(name: str, size: int, every: list[dict[str, float]], alone: list[dict[str, float]]) -> dict[str, Any]:
    """Medians over the rounds, and how many times as fast as one process."""
    here, one = ({key: statistics.median(each[key] for each in found) for key in found[0]} for found in (every, alone))
    workload = next(each for each in WORKLOADS if each.name == name)
    return {
        "network": name,
        "parameters": int(here["parameters"]),
        "rows": workload.rows,
        "processes": size,
        "step_ms": round(here["step_ms"], 3),
        "sum_ms": round(here["sum_ms"], 3),
        "fisher_seconds": round(here["fisher_seconds"], 3),
        "step_gain": round(one["step_ms"] / here["step_ms"], 2),
        "fisher_gain": round(one["fisher_seconds"] / here["fisher_seconds"], 2),
    }


def _together(size: int) -> dict[str, dict[str, float]]:
    """So many processes at once; what the first one has measured."""
    threads = str(max(1, (os.cpu_count() or 1) // size))
    with tempfile.TemporaryDirectory(prefix="streamcl-ranks-") as home:
        out = Path(home) / "figures.json"
        command = [sys.executable, "-m", "streamcl.bench.ranks"]
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "OMP_WAIT_POLICY": "passive"}
        places = [[str(rank), str(size), str(Path(home) / "store"), str(out)] for rank in range(size)]
        processes = [subprocess.Popen([*command, *place], env=environment) for place in places]
        try:
            for process in processes:
                if process.wait() != 0:
                    raise RuntimeError(f"a process ended with status {process.returncode}; what it said is above")
        finally:
            for process in processes:
                process.kill()
                process.wait()
        found: dict[str, dict[str, float]] = json.loads(out.read_text())
        return found


# -- one of them -------------------------------------------------------------------------------------------------------


def measure(reduction: Reduction) -> dict[str, dict[str, float]]:
    """Every workload's figures, as this process has them."""
    return {workload.name: _measured(workload, reduction) for workload in WORKLOADS}


def _measured(workload: Workload, reduction: Reduction) -> dict[str, float]:
    torch.manual_seed(0)
    model = {"factory": f"streamcl.models:{workload.factory}", "args": workload.args, "classes": CLASSES}
    config = from_tree({"model": model, "train": {"batch_size": workload.rows, "device": "cpu"}})
    labels = LabelMap(CLASSES)
    labels.add(tuple(range(CLASSES)))
    signature = Signature(workload.shape, False, ())
    network = Network(config, signature, labels, torch.device("cpu"), reduction=reduction)
    theta = network.master()
    penalty = Gaussian.prior(torch.zeros_like(theta), 1.0, "diagonal")
    optimisation = Optimisation(network, penalty, config.train, NOTED_RATE)
    optimisation.set_samples(FISHER_ROWS)
    x = torch.randn((FISHER_ROWS, *workload.shape))
    y = torch.randint(0, CLASSES, (FISHER_ROWS,))
    gradient = torch.zeros_like(network.parameters.grad)

    def fisher() -> None:
        found = Fisher(network.module, network.parameters, network.likelihood, reduction=reduction)
        found.add(x, y)
        found.summed()

    step = lambda: optimisation.step(x[: workload.rows], y[: workload.rows])  # noqa: E731
    return {
        "parameters": network.parameters.size,
        "step_ms": 1e3 * _seconds(step, reduction, STEPS),
        "sum_ms": 1e3 * _seconds(lambda: reduction.sum(gradient), reduction, STEPS),
        "fisher_seconds": _seconds(fisher, reduction, 3),
    }


def _seconds(action: Callable[[], Any], reduction: Reduction, times: int) -> float:
    """The median, each time begun by all processes together; the first is not counted."""

    def taken() -> Iterator[float]:
        for _ in range(times + 1):
            reduction.any(False)
            started = time.perf_counter()
            action()
            yield time.perf_counter() - started

    return float(np.median(list(taken())[1:]))


def main(rank: int, size: int, store: str, out: Path) -> None:
    """One process of so many."""
    torch.set_flush_denormal(True)
    if size > 1:
        stay_on_this_machine()
        meeting = dist.FileStore(store, size)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=meeting, rank=rank, world_size=size)
    figures = measure(Ranks(alike=True) if size > 1 else ALONE)
    if rank == 0:
        out.write_text(json.dumps(figures))
    if size > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], Path(sys.argv[4]))
