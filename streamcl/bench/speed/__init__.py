"""``streamcl bench speed``: what streamcl costs beside the plainest loops that do the same, as ratios of one run.

Every row times streamcl and its yardstick in turn, many times, and compares medians. The yardsticks are the plainest
loops that use the socket, the disk or PyTorch (`bare`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.speed import boundary, checkpoint, exact, ingest, learning, people, serving, training
from streamcl.bench.speed.table import Row
from streamcl.bench.versions import versions

Part = Callable[[int], list[Row]]
MODELS = {"MLP 784-400-400-10": (1.2, 0.8), "convolutional": (3.0, 2.0), "transformer": (3.0, 2.0)}


def _fishers(rounds: int) -> list[Row]:
    made = []
    for model, (every, empirical) in MODELS.items():
        made += [learning.fisher("exact", model, every, rounds), learning.fisher("empirical", model, empirical, rounds)]
    return made


PARTS: dict[str, Part] = {
    "ingest": ingest.rows,
    "training": training.rows,
    "penalty": lambda rounds: [learning.penalty(rounds), *(learning.turned(rows, 1.3, 3 * rounds) for rows in (64, 256))],
    "fisher": _fishers,
    "boundary": boundary.rows,
    "checkpoint": checkpoint.rows,
    "exact": exact.rows,
    "prediction": serving.prediction,
    "people": people.rows,
    "memory": lambda rounds: [serving.memory()],
    "start": serving.start,
}


def run(rounds: int, only: Sequence[str], out: Path | None) -> int:
    """Every row, printed and written; 1 if a goal was missed. only: the parts to run, all if there are none."""
    rows: list[Row] = []
    print(f"{'what':<58}{'against':<46}{'ratio':>8}     goal")
    with as_in_the_trainer():
        for name, part in PARTS.items():
            for row in part(rounds) if not only or name in only else []:
                rows.append(row)
                print(row.text(), flush=True)
    if out is not None:
        document = {"benchmark": "speed", "rounds": rounds, "threads": torch.get_num_threads(), "versions": versions()}
        out.write_text(json.dumps({**document, "rows": [row.plain() for row in rows]}, indent=2) + "\n")
    return 0 if all(row.verdict == "met" for row in rows) else 1
