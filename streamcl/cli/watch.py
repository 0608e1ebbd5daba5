"""What `streamcl top` knows: asked of the daemon again and again, over a connection that is made anew when it breaks.

Guarantees: bounded requests, however many tasks and producers there are; a daemon that does not answer is shown as such
and looked for again where the state directory says it is.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.errors import Unreachable

if TYPE_CHECKING:
    from streamcl.client import Admin

MOST_TASKS = 500  # the newest; asked for with every tick
MOST_PRODUCERS = 50
KEPT = 3600  # of loss and accuracy, one a tick
PAST_SECONDS = 600.0  # of the history, shown at the start


@dataclass(frozen=True, slots=True)
class Seen:
    """One look at the daemon. missing: why there is no answer, and `time` then is that of the last one."""

    time: float
    status: dict[str, Any] = field(default_factory=dict)
    tasks: list[dict[str, Any]] = field(default_factory=list)
    producers: list[dict[str, Any]] = field(default_factory=list)
    loss: tuple[float | None, ...] = ()
    accuracy: tuple[float | None, ...] = ()
    missing: str | None = None

    def document(self) -> dict[str, Any]:
        """For --json: everything the daemon said, or why it said nothing."""
        told = {"status": self.status, "tasks": self.tasks, "producers": self.producers}
        rest = {"error": self.missing} if self.missing is not None else told
        return {"time": self.time if self.missing is None else time.time(), "answered": self.missing is None, **rest}


class Watch:
    """Looks at a daemon. connect: makes an Admin, of the daemon that runs now. history: of the daemon, if it is known."""

    def __init__(self, connect: Callable[[], Admin], history: Path | None = None) -> None:
        self._connect = connect
        self._admin: Admin | None = None
        self._loss: deque[float | None] = deque(maxlen=KEPT)
        self._accuracy: deque[float | None] = deque(maxlen=KEPT)
        self.seen = Seen(time.time())
        if history is not None:
            self._take_past(history)

    def _take_past(self, path: Path) -> None:
        """What the daemon has kept of the last minutes, so that the curves do not begin empty."""
        from streamcl.storage.history import HistoryReader

        with contextlib.suppress(OSError, sqlite3.DatabaseError), HistoryReader(path) as history:
            for row in history.samples(time.time() - PAST_SECONDS, time.time()):
                self._loss.append(row["loss"])
                self._accuracy.append(row["accuracy"])

    def look(self) -> Seen:
        """Ask; if there is no answer, `missing` says why and the last look stays. Raises Refused."""
        try:
            if self._admin is None:
                self._admin = self._connect()
            self.seen = self._ask(self._admin)
        except Unreachable as error:
            self.close()
            self.seen = replace(self.seen, missing=str(error))
        return self.seen

    def _ask(self, daemon: Admin) -> Seen:
        status = daemon.status()
        self._loss.append(status.get("train_loss"))
        scores = status.get("prequential") or {}
        self._accuracy.append(accuracy_of(scores))
        tasks, producers = ([], []) if "follows" in status else _asked_of(daemon, status["tasks"])
        return Seen(time.time(), status, tasks, producers, tuple(self._loss), tuple(self._accuracy))

    def close(self) -> None:
        """Close the connection."""
        if self._admin is not None:
            self._admin.close()
            self._admin = None


def _asked_of(daemon: Admin, tasks: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Tasks and producers, which a follower has not."""
    return daemon.tasks(max(0, tasks - MOST_TASKS)), daemon.producers(MOST_PRODUCERS)


def accuracy_of(prequential: dict[str, Any]) -> float | None:
    """Accuracy of the predictions made before learning, of the open task, else of all; None where none is scored."""
    scores = prequential.get("task") or prequential.get("overall") or {}
    value = scores.get("accuracy")
    return None if value is None else float(value)


class Poller:
    """A thread that looks every `interval` seconds, and calls `tell` after each."""

    def __init__(self, watch: Watch, interval: float, tell: Callable[[], None]) -> None:
        self.watch, self.interval, self.tell = watch, interval, tell
        self.failure: BaseException | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="top", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.wait(self.interval):
                self.watch.look()
                self.tell()
        except BaseException as error:
            self.failure = error
            self.tell()
        finally:
            self.watch.close()

    def end(self) -> None:
        """Stop; does not wait for an answer that is still owed."""
        self._ended.set()
        self._thread.join(0.5)
