"""What `status` answers, to operators and on the HTTP port: the contract's fields, then what else is known."""

from __future__ import annotations

from typing import Any

import msgspec

from streamcl.daemon.words import Scores
from streamcl.gauge import Past
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
    ingest_rate: rows, batches and bytes a second. lag_batches: durable ones that are in no checkpoint yet. problem:
    what an operator must see to. curvature: which parameters' precisions are turned to their layer's eigenbasis, which
    are a full block, which stay in their own coordinates; settled at the first boundary. working: whether who waits may
    go on waiting; waiting: if not, why. past: what the tasks have lost together since each was learned, by their
    quadratic. schema: names and kinds of a table's columns, as the first batch pinned them, null of plain arrays;
    inputs: what the input stage has found. left_out: columns that the first sender kept back. tasks_at_chance: those
    that are predicted no better than by guessing.
    """

    version: str
    state: str
    task: str | None
    mode: str
    samples_seen: int
    batches_durable: int
    batches_applied: int
    parameters: int
    curvature: dict[str, Any]
    schema: list[dict[str, Any]] | None
    left_out: list[str]
    inputs: dict[str, Any]
    tasks: int
    past: Past
    tasks_at_chance: int
    uptime_seconds: float
    spool_bytes: int
    device: str | None
    workers: int
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


class Fetching(msgspec.Struct, frozen=True):
    """A publication under way, and how many bytes have come since it was begun."""

    publication: str
    bytes: int


class Following(msgspec.Struct, frozen=True, kw_only=True):
    """A follower at one moment: the contract's fields of `status`, as far as they mean anything, and what else is known.

    state: following; alone, while the daemon that it `follows` is not heard; waiting, while there is nothing to serve.
    publication: which one is in place. serves: version, position and rows of what predictions come from; newest: of what
    the daemon has published last; behind: how far the one is behind the other, and the seconds since the daemon was heard.
    publications, fetched_bytes: in all. followers: of this follower. problem: what an operator must see to; warning: how
    this machine computes otherwise than the daemon's.
    """

    version: str
    state: str
    follows: str
    connected: bool
    publication: str | None
    published_at: float | None
    serves: dict[str, int] | None
    newest: dict[str, int] | None
    behind: dict[str, Any]
    fetching: Fetching | None
    publications: int
    fetched_bytes: int
    followers: int
    samples_seen: int
    parameters: int
    uptime_seconds: float
    device: str
    events: list[dict[str, Any]]
    problem: str | None
    waiting: str | None
    warning: str | None
    working: bool = False
    task: str | None = None
    mode: str | None = None
    tasks: int | None = None
    batches_durable: int = 0
    batches_applied: int = 0
    spool_bytes: int = 0

    def plain(self) -> dict[str, Any]:
        """As a reply's fields."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields
