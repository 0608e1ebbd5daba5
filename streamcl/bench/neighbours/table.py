"""The figures as tables, which the command prints and the documentation shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

HEADER = ("accuracy after the last task", "log loss", "at, of so many cells", "code")
RULE = "---"


def table(document: dict[str, Any]) -> str:
    """Every case: a row a method at its best cell, mean of the seeds (least-largest), and what is published beside."""
    cases = dict.fromkeys(row["case"] for row in document["results"])
    return "\n\n".join(_of_case(case, document) for case in cases)


def _of_case(case: str, document: dict[str, Any]) -> str:
    chosen = [row for row in document["results"] if row["case"] == case and row["best"]]
    names = dict.fromkeys(row["method"] for row in chosen)
    rows = [(name, *_cells([row for row in chosen if row["method"] == name])) for name in names]
    beside = [
        (f"*published:* {each['method']}", _percent(each["percent"]), "", "", each["source"])
        for each in document["published"].get(case, ())
    ]
    return _aligned([(case, *HEADER), *rows, *beside])


def _cells(seeds: Sequence[dict[str, Any]]) -> tuple[str, ...]:
    means, first = [row["mean"] for row in seeds], seeds[0]
    accuracy = f"{np.mean(means):.3f} ({min(means):.3f}-{max(means):.3f})"
    if "passes" in first:
        passes = np.mean([row["passes"] for row in seeds], axis=0)
        accuracy += "; by pass " + ", ".join(f"{value:.3f}" for value in passes)
    return accuracy, f"{np.mean([row['log_loss'] for row in seeds]):.3f}", _setting(first), first["source"]


def _setting(row: dict[str, Any]) -> str:
    """Where in its grid the best cell was; on an edge a larger grid might have done better."""
    if not row["setting"]:
        return "nothing is searched for"
    return f"{row['setting']} (of {row['cells']}{', on an edge' if row['edge'] else ''})"


def _percent(values: Sequence[float]) -> str:
    return " to ".join(f"{value / 100:.3f}" for value in values)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "|".join(RULE for _ in widths) + "|", *lines[1:]])
