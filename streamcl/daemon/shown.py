"""What the HTTP port shows as JSON: the status, what is known of tasks and producers, and the history.

Read by HTTP threads; bounded, however many tasks and producers there are. Changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import math
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from streamcl.daemon.chronicle import Chronicle
from streamcl.daemon.view import View
from streamcl.errors import Refused
from streamcl.storage.history import SAMPLE, HistoryReader
from streamcl.storage.matrix import matrix_of

MOST_TASKS = 60  # in the tables and the matrix of the dashboard
MOST_BOUNDARIES = 60
MOST_PRODUCERS = 50
MOST_EVENTS = 200
POINTS = 1800
LONGEST_SECONDS = 10 * 366 * 86400.0

Query = Mapping[str, str]
Json = Callable[[Query], Any]


class Shown:
    """The routes that answer with JSON."""

    def __init__(self, view: View, chronicle: Chronicle, history: Path) -> None:
        self.view, self.chronicle, self.history = view, chronicle, history
        self._figures: tuple[object, dict[str, float | None]] = (None, {})

    def routes(self) -> dict[str, Json]:
        """Path to what answers it."""
        return {"/status": lambda query: self.view.status().plain(), "/overview": self.overview, "/history": self.past}

    def overview(self, query: Query) -> dict[str, Any]:
        """Tasks, at most `MOST_TASKS`: those with the highest rises, then the newest; and the producers heard last."""
        tasks = self.view.tasks()
        shown = set(self._chosen(tasks))
        return {
            "tasks": [task for task in tasks if task["task"] in shown],
            "tasks_total": len(tasks),
            "producers": self.chronicle.producers(0, MOST_PRODUCERS),
            "producers_total": len(self.view.session.producers),
        }

    def _evaluated(self, newest: list[dict[str, Any]]) -> dict[str, float | None]:
        """Of all tasks; worked out anew where more has been measured."""
        mark = max(((row["lsn"], row["time"]) for row in newest), default=None), len(newest)
        if newest and self._figures[0] != mark:
            self._figures = (mark, matrix_of(self.history.parent).figures())
        return self._figures[1] if newest else {}

    @staticmethod
    def _chosen(tasks: list[dict[str, Any]]) -> list[str]:
        names = [task["task"] for task in reversed(tasks)]
        risen = sorted(tasks, key=lambda task: -(task["penalty_rise"] or 0.0))[: MOST_TASKS // 2]
        return list(dict.fromkeys([*(task["task"] for task in risen if task["penalty_rise"]), *names]))[:MOST_TASKS]

    def past(self, query: Query) -> dict[str, Any]:
        """The last `seconds` (default one hour, 0 for all) of the time series, column by column; the tasks' rises and
        accuracies, and the rise of all together, after each of at most `MOST_BOUNDARIES` boundaries; the figures of
        `streamcl evaluate`, where there are accuracies; events, newest first.

        Raises Refused ``bad_header`` for a query that is not a number.
        """
        seconds, now = _seconds(query), time.time()
        empty = {"now": now, "since": now - seconds, "samples": {name: [] for name in ("time", "seconds", *SAMPLE)}}
        with contextlib.suppress(FileNotFoundError, sqlite3.DatabaseError), HistoryReader(self.history) as history:
            since = now - seconds if seconds else history.first_sample() or now
            rows = history.samples(since, now, POINTS)
            tasks = self._chosen(self.view.tasks())
            penalties = history.newest("penalty", tasks, MOST_BOUNDARIES)
            accuracies = history.newest("accuracy", tasks, MOST_BOUNDARIES)
            together = history.past()[-MOST_BOUNDARIES:]
            return {
                "now": now,
                "since": since,
                "samples": {name: [row[name] for row in rows] for name in ("time", "seconds", *SAMPLE)},
                "penalties": penalties,
                "past": together,
                "accuracies": accuracies,
                "figures": self._evaluated(accuracies),
                "changes": history.changes(sorted({row["lsn"] for row in [*penalties, *accuracies, *together]})),
                "events": history.events(MOST_EVENTS),
            }
        return {**empty, "penalties": [], "past": [], "accuracies": [], "changes": [], "events": []}


def _seconds(query: Query) -> float:
    text = query.get("seconds", "3600")
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0.0 <= seconds <= LONGEST_SECONDS:
        raise Refused("bad_header", f"seconds: expected a number from 0 (all) to {LONGEST_SECONDS:.0f}, got {text[:50]!r}")
    return seconds


def encode(data: Any) -> bytes:
    """JSON; numbers that it cannot express become null."""
    try:
        return json.dumps(data, allow_nan=False).encode()
    except ValueError:
        return json.dumps(_finite(data), allow_nan=False).encode()


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, list | tuple) else data
