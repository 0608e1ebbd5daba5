"""Every stream with every method: scores before rows are learned, of all tasks at the end, seconds, and what is kept.

    arriving    share of rows told right before they are learned, or 1 - squared error over that of their mean; from the
                second message on
    at the end  the same on held-out rows, averaged over the tasks; of streams with tasks alone
    seconds     of the processor, for learning and for telling rows before they are learned
    kept        rows and bytes, at the end of the last task

Messages of 64 rows, cut at a task's end. One thread.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.streams.methods import METHODS, Method
from streamcl.bench.streams.sources import Stream, streams
from streamcl.bench.versions import versions

Array = npt.NDArray[Any]
MESSAGE = 64  # rows
SLOW = {"forest": 200, "linear": 1000}  # inputs beyond which a method takes hours: left out, and said


@dataclass(slots=True)
class Row:
    """One method on one stream, by seed. at_end: empty where there are no tasks."""

    stream: str
    method: str
    arriving: list[float] = field(default_factory=list)
    at_end: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rows: int = 0
    bytes: int = 0

    def __str__(self) -> str:
        end = f"{np.mean(self.at_end):>10.4f}" if self.at_end else f"{'':>10}"
        kept = f"{self.rows:>8}{self.bytes / 1024:>10.0f}"
        return f"{self.stream:<28}{self.method:<13}{np.mean(self.arriving):>10.4f}{end}{np.mean(self.seconds):>9.1f}{kept}"


def messages(stream: Stream) -> Iterator[tuple[Array, bool]]:
    """Places of the rows of each message, and whether its task ends with it."""
    taught = np.flatnonzero(~stream.held)
    for task in stream.tasks or [0]:
        rows = taught[stream.task[taught] == task] if stream.tasks else taught
        for start in range(0, len(rows), MESSAGE):
            yield rows[start : start + MESSAGE], bool(stream.tasks) and start + MESSAGE >= len(rows)


def score(stream: Stream, predicted: Array, rows: Array) -> float:
    """Accuracy, or the share of the variance that is explained."""
    y = stream.y[rows]
    if not stream.real:
        return float(np.mean(predicted == y))
    return 1 - float(np.mean((predicted - y) ** 2) / np.var(y))


def learn(stream: Stream, method: Method, row: Row) -> None:
    """One pass; the row takes what came of it."""
    told, places = [], []
    started = time.process_time()
    for number, (rows, ends) in enumerate(messages(stream)):
        if number:
            told.append(method.predict(rows))
            places.append(rows)
        method.learn(rows)
        if ends:
            method.end()
    row.seconds.append(round(time.process_time() - started, 2))
    row.arriving.append(round(score(stream, np.concatenate(told), np.concatenate(places)), 4))
    if stream.tasks:
        tests = [np.flatnonzero(stream.held & (stream.task == task)) for task in stream.tasks]
        row.at_end.append(round(float(np.mean([score(stream, method.predict(rows), rows) for rows in tests])), 4))
    row.rows, row.bytes = method.kept()


def run(
    data: Path | None,
    seeds: Sequence[int],
    rows: int,
    hidden: Sequence[int],
    only: str,
    methods: Sequence[str],
    out: Path | None,
) -> int:
    """Print a line for each stream and method, and write them all; 1 where nothing has this name."""
    found: list[Row] = []
    settings = {"data": None if data is None else data.name, "seeds": list(seeds), "rows": rows, "hidden": list(hidden)}
    print(f"{'stream':<28}{'method':<13}{'arriving':>10}{'at end':>10}{'seconds':>9}{'rows':>8}{'KiB':>10}", flush=True)
    with as_in_the_trainer():
        for name, kind, make in streams(data, rows):
            if only not in name and only != kind:
                continue
            made = [make(seed) for seed in seeds]
            for method in methods:
                row = Row(name, method)
                if math.prod(made[0].x.shape[1:]) > SLOW.get(method, math.inf):
                    print(f"{name:<28}{method:<13}left out: more than {SLOW[method]} inputs take it hours", flush=True)
                    continue
                for seed, stream in zip(seeds, made, strict=True):
                    learn(stream, METHODS[method](stream, seed, hidden), row)
                print(row, flush=True)
                found.append(row)
                _write(out, settings, found)
    return 0 if found else 1


def _write(out: Path | None, settings: dict[str, Any], found: Sequence[Row]) -> None:
    if out is None:
        return
    whole = {"benchmark": "streams", "versions": versions(), **settings, "message": MESSAGE}
    out.write_text(json.dumps({**whole, "figures": [asdict(row) for row in found]}, indent=2) + "\n")
