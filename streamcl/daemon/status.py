"""What `status` answers, to operators and on the HTTP port: the contract's fields, then what else is known."""

from __future__ import annotations

from typing import Any

import msgspec

from streamcl.daemon.words import Scores
from streamcl.storage.quarantine import Failure


class Consolidating(msgspec.Struct, frozen=True):
    """A boundary under way: its phase, epoch of epochs, the fraction done (0 to 1) and the seconds left."""

    task: str | None
    phase: str
    epoch: int
    epochs: int
    fraction: float
    seconds_left: float | None


class Spool(msgspec.Struct, frozen=True):
    """Bytes on disk of the open task, and how many it may have."""

    used: int
    budget: int


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """The daemon at one moment, by the names of the contract.

    train_loss: of the newest batch or epoch, nats a row. prequential: scores of rows before they were learned from.
    ingest_rate: rows, batches and bytes a second. lag_batches: durable ones that are in no checkpoint yet. problem: what an
    operator must see to. working: whether who waits may go on waiting; waiting: if not, why.
    """

    version: str
    state: str
    task: str | None
    mode: str
    samples_seen: int
    batches_durable: int
    batches_applied: int
    parameters: int
    tasks: int
    uptime_seconds: float
    spool_bytes: int
    device: str | None
    train_loss: float | None
    prequential: Scores
    consolidation: Consolidating | None
    ingest_rate: dict[str, float]
    lag_batches: int
    credit: dict[str, int]
    task_bytes: Spool
    producers_total: int
    events: list[dict[str, Any]]
    steps: int
    problem: str | None
    working: bool
    waiting: str | None
    warning: str | None
    torn_bytes: int
    held_tasks: int
    set_aside_rows: int
    quarantined: int
    last_quarantined: Failure | None

    def plain(self) -> dict[str, Any]:
        """As a reply's fields."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields
