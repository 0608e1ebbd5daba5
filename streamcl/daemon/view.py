"""What the daemon shows of itself: status and tasks, from the session and the trainer's last words.

Read by the loop and by HTTP threads; every answer is built afresh, nothing here decides anything.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from streamcl import __version__
from streamcl.config import Config
from streamcl.protocol.session import StreamSession

SILENCE_SECONDS = 30.0
SHOWN = ("task", "samples", "weight", "loss", "revisits", "penalty", "penalty_rise", "closed_at")


class View:
    """The daemon's state as others see it."""

    def __init__(self, config: Config, session: StreamSession) -> None:
        self.config = config
        self.session = session
        self.started = time.monotonic()
        self.paused = False
        self.entries: dict[str, dict[str, Any]] = {}
        self._progress: Mapping[str, Any] = {}
        self._heard = 0.0
        self._problem: str | None = None

    # -- what happened -------------------------------------------------------------------------------------------

    def recovered(self, entries: Iterable[dict[str, Any]]) -> None:
        """The ledger's entries at start-up."""
        self.entries = {entry["task"]: entry for entry in entries}

    def recovered_trainer(self) -> None:
        """A trainer has started and restored its checkpoint."""
        self._problem, self._heard = None, time.monotonic()

    def progressed(self, message: Mapping[str, Any]) -> None:
        """The trainer reported."""
        self._progress, self._heard = message, time.monotonic()

    def closed(self, entry: dict[str, Any]) -> None:
        """A task was consolidated."""
        self.entries[entry["task"]] = entry

    def failed(self, role: str, message: str) -> None:
        """A process ended with an error; it is being started again."""
        self._problem = f"{role}: {message}"
        self._heard = 0.0 if role == "trainer" else self._heard

    # -- what is shown -------------------------------------------------------------------------------------------

    def closed_by(self, producer: str, seq: int) -> dict[str, Any] | None:
        """The entry of the task that this message closed, if it is consolidated already."""
        return next((e for e in self.entries.values() if (e["producer"], e["seq"]) == (producer, seq)), None)

    def trainer_up(self) -> bool:
        """Whether the trainer has reported lately."""
        return time.monotonic() - self._heard < SILENCE_SECONDS and self._heard > 0.0

    def not_ready(self) -> str | None:
        """Why the daemon is not ready, or None."""
        if self._problem is not None:
            return self._problem
        return None if self.trainer_up() else "the trainer does not answer"

    def status(self) -> dict[str, Any]:
        """The contract's fields of `status`, then what else is known."""
        progress = self._progress
        return {
            "version": __version__,
            "state": self._state(),
            "task": self.session.open_task,
            "mode": self.config.posterior.mode,
            "samples_seen": progress.get("samples", 0),
            "batches_durable": self.session.stored_batches,
            "batches_applied": self.session.applied_batches,
            "parameters": progress.get("parameters", 0),
            "tasks": len(self.entries),
            "uptime_seconds": time.monotonic() - self.started,
            "spool_bytes": self.session.total_spool,
            "device": progress.get("device", self.config.train.device),
            "train_loss": progress.get("loss"),
            "prequential": progress.get("scores", {"overall": {}, "task": {}}),
            "consolidation": self._consolidation(),
            "steps": progress.get("steps", 0),
            "problem": self._problem,
        }

    def _state(self) -> str:
        if not self.trainer_up():
            return "recovering"
        return "paused" if self.paused else str(self._progress.get("state", "recovering"))

    def _consolidation(self) -> dict[str, Any] | None:
        progress = self._progress
        if progress.get("state") != "consolidating":
            return None
        return {
            "task": progress.get("task"),
            "epoch": progress.get("epoch"),
            "epochs": progress.get("epochs"),
        }

    def tasks(self) -> list[dict[str, Any]]:
        """One map a consolidated task, in the order they were closed."""
        return [{name: entry[name] for name in SHOWN} for entry in list(self.entries.values())]
