"""What the daemon shows of itself: status and tasks, from the session and the trainer's last words.

Read by the loop and by HTTP threads; every answer is built afresh, nothing here decides anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from streamcl import __version__
from streamcl.config import Config
from streamcl.daemon.chronicle import Chronicle
from streamcl.protocol.session import KEPT_REMEDY, StreamSession
from streamcl.storage import ledger

SILENCE_SECONDS = 30.0
PAUSED = "training is paused (`streamcl resume` lets it go on)"
SHOWN = ("task", "samples", "weight", "loss", "revisits", "penalty", "penalty_rise", "closed_at")


class View:
    """The daemon's state as others see it."""

    def __init__(self, config: Config, session: StreamSession) -> None:
        self.config = config
        self.session = session
        self.chronicle: Chronicle | None = None
        self.started = time.monotonic()
        self.paused = False
        self.standing = ledger.Standing()
        self.penalties: dict[str, tuple[float, float]] = {}
        self.accuracies: dict[str, float] = {}
        self.quarantine: list[dict[str, Any]] = []
        self.troubles: dict[str, str] = {}  # of processes that die again and again, by role
        self.torn_bytes = 0
        self._warning: str | None = None
        self.progress: Mapping[str, Any] = {}
        self._heard = 0.0
        self._problem: str | None = None

    # -- what happened -------------------------------------------------------------------------------------------

    @property
    def entries(self) -> dict[str, dict[str, Any]]:
        """The newest ledger entry of each consolidated task."""
        return self.standing.tasks

    def recovered_trainer(self) -> None:
        """A trainer has started and restored its checkpoint."""
        self._problem, self._heard = None, time.monotonic()

    def progressed(self, message: Mapping[str, Any]) -> None:
        """The trainer reported."""
        self.progress, self._heard = message, time.monotonic()

    def done(self, entry: dict[str, Any], warning: str | None) -> None:
        """A record took effect on the tasks; `standing` has it already."""
        if entry["kind"] in ("boundary", "revisit", "confirm"):
            self._warning = warning
        for followed in (self.penalties, self.accuracies):
            for task in [task for task in followed if task not in self.entries]:
                del followed[task]

    def failed(self, role: str, message: str) -> None:
        """A process ended with an error; it is being started again."""
        self._problem = f"{role}: {message}"
        self._heard = 0.0 if role == "trainer" else self._heard

    # -- what waits ----------------------------------------------------------------------------------------------

    def working(self) -> bool:
        """Whether the daemon goes on with what it has by itself, so that whoever waits for it may go on waiting.

        Also while the trainer is silent: the supervisor ends one that makes no progress, and counts how often.
        """
        return self.trouble() is None and not self.paused and self._behind()

    def waiting(self) -> str | None:
        """Why what is stored is not learned now, or nothing more is taken in, and the remedy; None where nothing waits.

        The same words as long as it is the same reason.
        """
        if self.trouble() is not None:
            return self.trouble()
        if self.paused and self._behind():
            return PAUSED
        budget = self.session.terms.task_bytes
        if self.session.room.credit()["messages"] == 0 and not self._behind():
            task = self.session.open_task
            return (
                f"the disk budget of the open task {task!r} is used up ({budget} bytes, stream.task_bytes): close it "
                f"(`streamcl boundary {task}`), or raise the budget and restart"
            )
        return None

    def _behind(self) -> bool:
        """Whether the trainer has yet to learn, or to consolidate, what is stored."""
        progress = self.progress
        return progress.get("next_lsn", 0) < self.session.next_lsn or progress.get("consolidation") is not None

    # -- what is shown -------------------------------------------------------------------------------------------

    def closed_by(self, producer: str, seq: int) -> dict[str, Any] | None:
        """The entry of the task that this message closed, if it is consolidated already, or held."""
        closed = (*self.standing.held.values(), *self.entries.values())
        return next((e for e in closed if (e["producer"], e["seq"]) == (producer, seq)), None)

    def reason(self, task: str) -> str:
        """Why a task is held, or rows of it are set aside: the newest failure's words."""
        failures = [failure["reason"] for failure in self.quarantine if failure["task"] == task]
        return str(failures[-1]) if failures else "the reason was not kept"

    def trainer_up(self) -> bool:
        """Whether the trainer has reported lately."""
        return time.monotonic() - self._heard < SILENCE_SECONDS and self._heard > 0.0

    def problem(self) -> str | None:
        """What an operator must see to now, or None."""
        return self.trouble() or self._kept()

    def trouble(self) -> str | None:
        """What keeps the daemon from working, or None."""
        for trouble in list(self.troubles.values()):
            return trouble
        if self._problem is not None:
            return self._problem
        if self.session.room.full:
            return f"the disk of {self.config.state_dir} is full; nothing more is taken in until there is room"
        full = self.progress.get("full")
        if full is not None:
            return f"the disk of {self.config.state_dir} is full: {full}; training waits for room"
        if self.paused and self.session.room.credit()["messages"] == 0:
            return f"{PAUSED}; the disk budget (stream.task_bytes) is used up, so producers wait"
        return None

    def _kept(self) -> str | None:
        """What could not be learned, in words that name the way out."""
        if self.standing.held:
            task = next(iter(self.standing.held))
            more = f" (and {len(self.standing.held) - 1} more)" if len(self.standing.held) > 1 else ""
            return f"task {task!r}{more} is held: its rows could not be learned: {self.reason(task)}; {KEPT_REMEDY}"
        if self.session.set_aside:
            task, rows = next(iter(self.session.set_aside.items()))
            return f"{rows} rows of task {task!r} are set aside: {self.reason(task)}; {KEPT_REMEDY}"
        return None

    def not_ready(self) -> str | None:
        """Why the daemon is not ready, or None."""
        if self.problem() is not None:
            return self.problem()
        return None if self.trainer_up() else "the trainer does not answer"

    def status(self) -> dict[str, Any]:
        """The contract's fields of `status`, then what else is known."""
        progress = self.progress
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
            "spool_bytes": self.session.room.total_spool,
            "device": progress.get("device", self.config.train.device),
            "train_loss": progress.get("loss"),
            "prequential": progress.get("scores", {"overall": {}, "task": {}}),
            "consolidation": self._consolidation(),
            **self._ingest(),
            "steps": progress.get("steps", 0),
            "problem": self.problem(),
            "working": self.working(),
            "waiting": self.waiting(),
            "warning": self._warning,
            "torn_bytes": self.torn_bytes,
            "held_tasks": len(self.standing.held),
            "set_aside_rows": sum(self.session.set_aside.values()),
            "quarantined": len(self.quarantine),
            "last_quarantined": self.quarantine[-1] if self.quarantine else None,
        }

    def _state(self) -> str:
        if not self.trainer_up():
            return "recovering"
        return "paused" if self.paused else str(self.progress.get("state", "recovering"))

    def _consolidation(self) -> dict[str, Any] | None:
        """Its task, phase, epoch of epochs, the fraction done (0 to 1) and the seconds left, or None."""
        progress = self.progress
        consolidation = progress.get("consolidation")
        return None if consolidation is None else {"task": progress.get("task"), **consolidation}

    def _ingest(self) -> dict[str, Any]:
        """What comes in, how far training is behind, what there is room for, what happened last."""
        session, chronicle = self.session, self.chronicle
        return {
            "ingest_rate": {} if chronicle is None else chronicle.rates(),
            "lag_batches": session.stored_batches - session.applied_batches,
            "credit": session.room.credit(),
            "task_bytes": {"used": session.room.task_spool, "budget": session.terms.task_bytes},
            "producers_total": len(session.producers),
            "events": [] if chronicle is None else list(chronicle.events),
        }

    def tasks(self) -> list[dict[str, Any]]:
        """One map a task, in the order they were first closed; `state` says whether it is consolidated or held.

        In factor mode with the task's penalty, its rise, and how well a revisit would repay: `revisit_rank` 1 is the
        best, None where nothing is estimated to be lost, and `revisit_reason` says why.
        """
        entries = list(self.entries.values())
        ranks = self._ranks()
        consolidated = [self._task(entry, ranks.get(entry["task"]), entries) for entry in entries]
        return [
            *consolidated,
            *(self._held(entry) for task, entry in self.standing.held.items() if task not in self.entries),
        ]

    def _held(self, entry: dict[str, Any]) -> dict[str, Any]:
        """A task of which nothing was learned yet."""
        shown = dict.fromkeys(SHOWN) | {"revisits": 0, "weight": 0.0, "set_aside": 0, "state": "held"}
        ranked = {"revisit_rank": None, "revisit_reason": None} if self.config.posterior.mode == "factors" else {}
        return {**shown, **ranked, **{name: entry[name] for name in ("task", "samples", "closed_at")}}

    def quarantined(self) -> list[dict[str, Any]]:
        """What could not be learned and is kept, a map each: task, state, rows, reason.

        state: held; set-aside, a batch; or doubtful, one of the open task, which its boundary will try again.
        """
        held = [
            {
                "task": task,
                "state": "held",
                "rows": entry["samples"],
                "reason": self.reason(task),
                "time": entry["closed_at"],
            }
            for task, entry in self.standing.held.items()
        ]
        failures = {failure["lsn"]: failure for failure in self.quarantine}
        batches = [(task, lsn, rows) for task, entry in self.entries.items() for lsn, rows in ledger.aside(entry)]
        open_task = self.session.open_task
        doubtful = [
            {**_aside(failure["task"], failure.get("rows", 0), failure), "state": "doubtful"}
            for failure in self.quarantine
            if failure["task"] == open_task and failure["stage"].startswith("batch")
        ]
        return [*held, *(_aside(task, rows, failures.get(lsn, {})) for task, lsn, rows in batches), *doubtful]

    def _ranks(self) -> dict[str, int]:
        """Tasks whose penalty has risen since they were learned, the highest rise first."""
        penalties = list(self.penalties.items())  # the loop may add to them meanwhile
        risen = [(rise, task) for task, (_, rise) in penalties if task in self.entries and rise > 0]
        return {task: rank for rank, (_, task) in enumerate(sorted(risen, reverse=True), start=1)}

    def _task(self, entry: dict[str, Any], rank: int | None, entries: list[dict[str, Any]]) -> dict[str, Any]:
        penalty, rise = self.penalties.get(entry["task"], (None, None))
        shown = {name: entry.get(name) for name in SHOWN} | {"penalty": penalty, "penalty_rise": rise}
        shown["set_aside"] = ledger.rows_aside(entry)
        shown["state"] = "held" if entry["task"] in self.standing.held else "consolidated"
        if entry["task"] in self.accuracies:
            shown["accuracy"] = self.accuracies[entry["task"]]
        if self.config.posterior.mode != "factors":
            return shown
        since = sum(other["lsn"] > entry["lsn"] for other in entries)
        reason = "nothing is estimated to be lost" if rank is None else _reason(rise or 0.0, since)
        return {**shown, "revisit_rank": rank, "revisit_reason": reason if rise is not None else None}


def figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What whoever asked for a record is told of it; `origin` where it was drift that closed the task before."""
    names = ("task", "kind", "samples", "loss", "seconds", "origin", "undone", "warning")
    known = {name: entry[name] for name in names if name in entry}
    return known | ({"kind": "boundary"} if known["kind"] == "confirm" else {})


def _aside(task: str, rows: int, failure: Mapping[str, Any]) -> dict[str, Any]:
    """A batch that was set aside."""
    known = {name: failure.get(name) for name in ("producer", "seq", "reason", "time")}
    return {"task": task, "state": "set-aside", "rows": rows, **known}


def _reason(rise: float, since: int) -> str:
    tasks = "1 task" if since == 1 else f"{since} tasks"
    return f"estimated to have lost {rise:.3g} nats a sample to the {tasks} learned since"
