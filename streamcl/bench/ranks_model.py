"""What `scale` says of `bench ranks`, beside what was measured there.

From one process's figures, and what it takes to sum the gradient alone, follow those of several on the same machine:

* a step's penalty and update read and write whole vectors, which every process does for itself; the rest of it is rows,
  shared. The first is taken by arithmetic, 11 vectors at the bandwidth of all processors.
* the Fisher's self-check and what its sums read and write every process does for itself as well (`scale.curvature`); its
  sums have 64 bits, and so take twice the gradient's time to sum.

One process has all of the machine's processors there (`bench.ranks`), so that several reach no more operations a second.
`python -m streamcl.bench.ranks_model` prints the table of the documentation.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl import scale

FIGURES = Path(__file__).parent / "figures" / "ranks.json"
ITEM_BYTES = 4
FISHER_ROWS = 512  # that `bench.ranks` takes
WITHIN = 2.0  # the factor that predictions are within


@dataclass(frozen=True, slots=True)
class Compared:
    """A network with so many processes: predicted and measured, in seconds."""

    network: str
    processes: int
    step: tuple[float, float]
    fisher: tuple[float, float]


def compared(document: Mapping[str, Any]) -> Iterator[Compared]:
    """Every row of several processes, in order. document: what `bench ranks` writes."""
    alone = {row["network"]: row for row in document["rows"] if row["processes"] == 1}
    for row in document["rows"]:
        if row["processes"] > 1:
            step, fisher = predicted(alone[row["network"]], row["processes"], row["sum_ms"] / 1e3, document["processors"])
            yield Compared(row["network"], row["processes"], (step, row["step_ms"] / 1e3), (fisher, row["fisher_seconds"]))


def predicted(alone: Mapping[str, Any], processes: int, sum_seconds: float, processors: int) -> tuple[float, float]:
    """Seconds of a step and of the Fisher, from one process's row and the time to sum the gradient alone."""
    step, cpu = alone["step_ms"] / 1e3, scale.DEVICES["cpu"]
    vectors = (scale.PENALTY + scale.UPDATE["adam"]) * ITEM_BYTES * alone["parameters"]
    replicated = min(step, vectors / (processors * cpu.bytes_per_second))
    once = min(alone["fisher_seconds"], _own_part_of_fisher(alone["parameters"]) / processors)
    gain = min(processors, processes * max(1, processors // processes)) / processors  # threads, as `bench.ranks` gives them
    taken = scale.shared(step - replicated, replicated, processes, gain) + sum_seconds
    return taken, scale.shared(alone["fisher_seconds"] - once, once, processes, gain) + 2 * sum_seconds


def _own_part_of_fisher(parameters: int) -> float:
    """Seconds of one processor: the check, and sums of a block of rows, made in 32 bits and added in 64."""
    sums = FISHER_ROWS / scale.BLOCK_ROWS * (2 * ITEM_BYTES + 2 * scale.MASTER_BYTES)
    return (scale.CHECK * ITEM_BYTES + sums) * parameters / scale.DEVICES["cpu"].bytes_per_second


def table(document: Mapping[str, Any]) -> list[str]:
    """Its lines, for `docs/benchmarks.md`."""
    head = "| network | processes | step: predicted | measured | ratio | Fisher: predicted | measured | ratio |"
    return [head, "|---|---|---|---|---|---|---|---|", *(_line(each) for each in compared(document))]


def _line(row: Compared) -> str:
    step = f"{1e3 * row.step[0]:.1f} ms | {1e3 * row.step[1]:.1f} ms | {row.step[0] / row.step[1]:.2f}"
    fisher = f"{row.fisher[0]:.2f} s | {row.fisher[1]:.2f} s | {row.fisher[0] / row.fisher[1]:.2f}"
    return f"| {row.network} | {row.processes} | {step} | {fisher} |"


if __name__ == "__main__":
    print(*table(json.loads(FIGURES.read_text())), sep="\n")
