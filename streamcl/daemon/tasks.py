"""What has become of the tasks, as the trainer has told: what stands, what failed, and what to answer who asks.

Guarantees: a record's outcome counts once, however often a restarted trainer says it; the session judges by it from then
on. Knows nothing of sockets; shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from streamcl.protocol.session import KEPT_REMEDY, StreamSession
from streamcl.storage import ledger
from streamcl.storage.ledger import Standing
from streamcl.storage.quarantine import Failure

TOLD = ("task", "kind", "samples", "loss", "seconds", "origin", "undone", "warning")  # of an entry, to who asked for it


class Tasks:
    """standing: what holds after the ledger. failures: what the quarantine has. directory: of the ledger."""

    def __init__(self, session: StreamSession, directory: Path, standing: Standing, failures: list[Failure]) -> None:
        self.session, self.directory = session, directory
        self.standing, self.failures = standing, failures
        self._last_lsn = -1
        self._by_message: dict[tuple[str, int], dict[str, Any]] | None = None

    def is_news(self, entry: Mapping[str, Any]) -> bool:
        """Whether this outcome is not known yet: a restarted trainer says its last word again, in case it was lost."""
        return bool(entry["lsn"] > self._last_lsn)

    def take(self, entry: Mapping[str, Any]) -> None:
        """A record took effect: what it changed holds for everything that comes now."""
        session, standing = self.session, self.standing
        self._last_lsn, self._by_message = entry["lsn"], None
        standing.take(entry, lambda count: ledger.standing(ledger.read(self.directory, count)))
        session.took_effect(entry["lsn"])
        consolidated = entry["kind"] in ("boundary", "revisit")
        if consolidated or entry["kind"] == "held":
            session.consolidated(entry["task"], entry["lsn"], by_drift=ledger.by_drift(entry))
        if not consolidated or session.held or session.set_aside or ledger.aside(entry):
            session.settle(standing)
        if consolidated:  # by the names that are taken now
            session.consolidated(entry["task"], entry["lsn"], by_drift=ledger.by_drift(entry))

    def closed_by(self, producer: str, seq: int) -> dict[str, Any] | None:
        """The entry of the task that this message closed, if it is consolidated already, or held."""
        if self._by_message is None:
            closed = (*self.standing.held.values(), *self.standing.tasks.values())
            self._by_message = {(entry["producer"], entry["seq"]): entry for entry in reversed(closed)}
        return self._by_message.get((producer, seq))

    def set_aside(self, failure: Failure) -> None:
        """The trainer could not learn a record."""
        self.failures = [*self.failures, failure]

    def forgive(self, lsns: Iterable[int]) -> None:
        """Only of these records the failures still matter."""
        still = set(lsns)
        self.failures = [failure for failure in self.failures if failure.lsn in still]

    def reason(self, task: str) -> str:
        """Why a task is held, or rows of it are set aside: the newest failure's words."""
        failures = [failure.reason for failure in self.failures if failure.task == task]
        return failures[-1] if failures else "the reason was not kept"

    def verdict(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """What a boundary came to: `done`, or `failed` where nothing was learned."""
        if entry["kind"] == "held":
            message = f"{self.reason(entry['task'])}; its rows are kept: {KEPT_REMEDY}"
            return {"type": "failed", "task": entry["task"], "samples": entry["samples"], "message": message}
        return {"type": "done", **figures(entry), "set_aside": ledger.rows_aside(entry)}


def figures(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What whoever asked for a record is told of it; `origin` where it was drift that closed the task before."""
    known = {name: entry[name] for name in TOLD if name in entry}
    return known | ({"kind": "boundary"} if known["kind"] == "confirm" else {})


def in_words(entry: Mapping[str, Any], reason: str) -> str:
    """What a record changed for good. reason: of a task that is held."""
    match entry["kind"]:
        case "boundary" | "revisit":
            aside = ledger.rows_aside(entry)
            kept = f"; {aside} rows could not be learned and are set aside" if aside else ""
            verb = "consolidated" if entry["kind"] == "boundary" else "revisited"
            return f"{verb}: {entry['samples']} samples, loss {entry['loss']:.4g}, {entry['seconds']:.2f} s{kept}"
        case "held":
            return f"held: {entry['samples']} rows could not be learned: {reason}"
        case "still-aside":
            return f"{entry['samples']} rows could not be learned this time either"
        case "drop":
            return "what was kept of it is given up"
        case "rollback":
            return f"undone: {', '.join(entry['undone']) or 'its revisit'}"
        case "rollback-failed":
            return f"could not be undone: {entry['reason']}"
        case "forget":
            return "withdrawn: its factor is deleted"
    return "the revisit was abandoned"
