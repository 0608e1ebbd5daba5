"""What has happened lately: rates of ingest, who sent when, events; and every other second a row of the history.

Guarantees: a message costs it a few additions; what it keeps is bounded by the session's producers. Decides nothing.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from streamcl.daemon.words import Progress
from streamcl.protocol.session import StreamSession
from streamcl.storage.history import TIERS, History

SAMPLE_SECONDS = float(TIERS[0][0])
RATE_SECONDS = 10.0  # over which rates are averaged
SHOWN_EVENTS = 20
ONCE_SECONDS = 60.0  # between two events of one kind and text
MOST_EVENTS = 100  # in that time, so that nobody can flood the history


@dataclass(slots=True)
class Counts:
    """What was taken in since the start."""

    rows: int = 0
    batches: int = 0
    bytes: int = 0

    def copy(self) -> Counts:
        """As it is now."""
        return Counts(self.rows, self.batches, self.bytes)


@dataclass(slots=True)
class Heard:
    """One producer: when it last stored anything, and its batches before and within the current interval."""

    at: float
    batches: int = 0
    since: float = 0.0
    before: float = 0.0  # batches a second, in the interval before

    def rate(self, now: float) -> float:
        """Batches a second lately."""
        if now - self.at > RATE_SECONDS:
            return 0.0
        stretch = now - self.since
        return self.before if stretch < RATE_SECONDS / 2 and self.before > 0 else self.batches / max(stretch, 1.0)


class Chronicle:
    """What the ingest process remembers for people: read by the status, the dashboard and `top`."""

    def __init__(
        self,
        session: StreamSession,
        history: History,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.session, self.history = session, history
        self.clock, self.wall = clock, wall
        self.counts = Counts()
        self.events: tuple[dict[str, Any], ...] = tuple(history.events(SHOWN_EVENTS))
        self._heard: dict[str, Heard] = {}
        self._marks: deque[tuple[float, Counts]] = deque([(clock(), Counts())])
        self._sampled = (clock(), Counts())
        self._noted: dict[tuple[str, str], float] = {}

    # -- what happened -------------------------------------------------------------------------------------------

    def stored(self, producer: str, rows: int, nbytes: int) -> None:
        """A batch of a producer was appended to the log."""
        self.counts.rows += rows
        self.counts.batches += 1
        self.counts.bytes += nbytes
        now = self.clock()
        heard = self._heard.get(producer)
        if heard is None:
            self._bound()
            heard = self._heard[producer] = Heard(now, since=now)
        if now - heard.since > RATE_SECONDS:
            heard.before, heard.batches, heard.since = heard.batches / (now - heard.since), 0, now
        heard.batches += 1
        heard.at = now

    def _bound(self) -> None:
        if len(self._heard) > len(self.session.producers):
            self._heard = {name: heard for name, heard in self._heard.items() if name in self.session.producers}

    def note(self, kind: str, text: str, task: str | None = None, lsn: int | None = None) -> None:
        """Keep an event, unless the same one was kept within the last minute, or for the same record."""
        now = self.clock()
        self._noted = {seen: at for seen, at in self._noted.items() if now - at < ONCE_SECONDS}
        noted = lsn is not None and self.history.has_event(kind, lsn)
        if noted or (kind, text) in self._noted or len(self._noted) >= MOST_EVENTS:
            return
        self._noted[kind, text] = now
        self.history.note(self.wall(), kind, text, task, lsn)
        self.events = tuple(self.history.events(SHOWN_EVENTS))

    def tick(self, progress: Progress) -> None:
        """Called every turn of the loop: now and then, a mark for the rates and a row of the history."""
        now = self.clock()
        if now - self._marks[-1][0] >= 1.0:
            self._marks.append((now, self.counts.copy()))
            while len(self._marks) > 2 and now - self._marks[1][0] > RATE_SECONDS:
                self._marks.popleft()
        since, before = self._sampled
        if now - since >= SAMPLE_SECONDS:
            self._sampled = (now, self.counts.copy())
            self.history.add_sample(self.wall(), now - since, self._figures(before, progress))

    def _figures(self, before: Counts, progress: Progress) -> dict[str, Any]:
        session = self.session
        return {
            "loss": progress.loss,
            "accuracy": (progress.scores.task or progress.scores.overall).get("accuracy"),
            "rows": self.counts.rows - before.rows,
            "batches": self.counts.batches - before.batches,
            "bytes": self.counts.bytes - before.bytes,
            "lag": session.stored_batches - session.applied_batches,
            "spool": session.room.total_spool,
            "open_bytes": session.room.task_spool,
            "credit": session.room.credit()["messages"],
        }

    # -- what is shown -------------------------------------------------------------------------------------------

    def rates(self) -> dict[str, float]:
        """Rows, batches and bytes taken in a second, over the last ten seconds."""
        since, before = self._marks[0]
        seconds = max(self.clock() - since, 1.0)
        now = self.counts
        return {
            "rows": (now.rows - before.rows) / seconds,
            "batches": (now.batches - before.batches) / seconds,
            "bytes": (now.bytes - before.bytes) / seconds,
        }

    def producers(self, offset: int, count: int) -> list[dict[str, Any]]:
        """Producers, those heard most recently first: their sequence numbers, how long ago they stored anything."""
        names = heapq.nlargest(offset + count, list(self.session.producers), key=self._last)[offset:]
        return [self._producer(name) for name in names if name in self.session.producers]

    def _last(self, name: str) -> float:
        heard = self._heard.get(name)
        return float("-inf") if heard is None else heard.at

    def _producer(self, name: str) -> dict[str, Any]:
        state, heard, now = self.session.producers[name], self._heard.get(name), self.clock()
        return {
            "producer": name,
            "durable": state.durable,
            "applied": state.applied,
            "age_seconds": None if heard is None else now - heard.at,
            "batches_per_second": 0.0 if heard is None else heard.rate(now),
        }
