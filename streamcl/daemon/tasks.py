"""What has become of the tasks, as the trainer has told: what stands, what failed, and what to answer who asks.

Guarantees: a record's outcome counts once, however often a restarted trainer says it; the session judges by it from then
on. Knows nothing of sockets; shows nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from streamcl.entries import (
    Closing,
    Confirmed,
    Consolidated,
    Dropped,
    Entry,
    Forgotten,
    Held,
    Revisited,
    RollbackFailed,
    RolledBack,
    Standing,
    StillAside,
    closing_figures,
    standing,
    undone_in_words,
)
from streamcl.protocol.session import KEPT_REMEDY, StreamSession
from streamcl.storage import ledger
from streamcl.storage.quarantine import Failure


class Tasks:
    """standing: what holds after the ledger. failures: what the quarantine has. directory: of the ledger. unreadable: by
    task, why not all of its kept rows can be read."""

    def __init__(
        self,
        session: StreamSession,
        directory: Path,
        standing: Standing,
        failures: list[Failure],
        unreadable: Mapping[str, str] | None = None,
    ) -> None:
        self.session, self.directory = session, directory
        self.standing, self.failures = standing, failures
        self.unreadable = dict(unreadable or {})
        self._last_lsn = -1
        self._by_message: dict[tuple[str | None, int], Closing] | None = None

    def is_news(self, entry: Entry) -> bool:
        """Whether this outcome is not known yet: a restarted trainer says its last word again, in case it was lost."""
        return entry.lsn > self._last_lsn

    def take(self, entry: Entry) -> None:
        """A record took effect: what it changed holds for everything that comes now."""
        self._last_lsn, self._by_message = entry.lsn, None
        self.standing.take(entry, lambda count: standing(ledger.read(self.directory, count)))
        if self.unreadable and entry.task not in self.standing.kept_of():
            self.unreadable.pop(entry.task, None)
        self.session.take_entry(entry, self.standing)

    def closed_by(self, producer: str, seq: int) -> Closing | None:
        """The entry of the task that this message closed, if it is consolidated already, or held."""
        if self._by_message is None:
            closed: list[Closing] = [*self.standing.held.values(), *self.standing.tasks.values()]
            self._by_message = {(entry.producer, entry.seq): entry for entry in reversed(closed)}
        return self._by_message.get((producer, seq))

    def set_aside(self, failure: Failure) -> None:
        """The trainer could not learn a record."""
        self.failures = [*self.failures, failure]

    def forgive(self, lsns: Iterable[int]) -> None:
        """Only the failures of these records still matter."""
        still = set(lsns)
        self.failures = [failure for failure in self.failures if failure.lsn in still]

    def reason(self, task: str) -> str:
        """Why a task is held, or rows of it are set aside: the newest failure's words.

        Of its records too, since a stream's tasks have other names than their producers use.
        """
        places = self.standing.kept_of().get(task, ())
        failures = [
            failure.reason
            for failure in self.failures
            if failure.task == task or any(first <= failure.lsn < end for first, end in places)
        ]
        return failures[-1] if failures else "the reason was not kept"

    def kept(self, task: str) -> str:
        """Whether the rows that were not learned are still there, and what can be done."""
        if task in self.unreadable:
            problem = self.unreadable[task]
            told = "" if problem in self.reason(task) else f" ({problem})"
            remedy = "restore the file and start again, or give the rows up with `streamcl drop TASK`"
            return f"not all of these rows can be read any more{told}: {remedy}"
        return f"its rows are kept: {KEPT_REMEDY}"

    def verdict(self, entry: Closing | Confirmed) -> dict[str, Any]:
        """The answer to a boundary: `done`, or `failed` if nothing was learned."""
        if isinstance(entry, Held):
            message = f"{self.reason(entry.task)}; {self.kept(entry.task)}"
            return {"type": "failed", "task": entry.task, "samples": entry.samples, "message": message}
        return {"type": "done", **closing_figures(entry)}


def in_words(entry: Entry, reason: str) -> str:
    """What a record changed for good. reason: of a task that is held."""
    match entry:
        case Consolidated():
            aside = entry.rows_aside
            kept = f"; {aside} rows could not be learned and are set aside" if aside else ""
            verb = "revisited" if isinstance(entry, Revisited) else "consolidated"
            return f"{verb}: {entry.samples} samples, loss {entry.loss:.4g}, {entry.seconds:.2f} s{kept}"
        case Held():
            return f"held: {entry.samples} rows could not be learned: {reason}"
        case StillAside():
            return f"{entry.samples} rows could not be learned this time either"
        case Dropped():
            return "its kept rows are given up"
        case RolledBack():
            return f"undone: {undone_in_words(entry.undone, entry.revisits_undone) or 'its revisit'}"
        case RollbackFailed():
            return f"could not be undone: {entry.reason}"
        case Forgotten():
            return "withdrawn: its factor is deleted"
    return "the revisit was abandoned"
