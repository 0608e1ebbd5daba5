"""What a bridge's user says of the records. Imports nothing heavy: the command line shows it in its help."""

from __future__ import annotations

from dataclasses import dataclass

FORMATS = ("json", "csv", "msgpack", "arrow", "npz")
BOUNDARY_HEADER = "streamcl-boundary"
TASKS_FROM = ("topic", "key", "header:NAME", "field:NAME")


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user said of the records.

    format: one of `FORMATS`. columns: names of a CSV line's cells. label: the target's field, else found by its name.
    features: fields to learn from, else all. drop: fields to leave out. words: fields that are words, whatever they look
    like. task: of all records; task_from: else where it stands, one of `TASKS_FROM`. boundary_header, boundary_field: what
    closes the task at a record.
    """

    format: str = "json"
    columns: tuple[str, ...] = ()
    label: str | None = None
    features: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    words: frozenset[str] = frozenset()
    task: str | None = None
    task_from: str = "topic"
    boundary_header: str = BOUNDARY_HEADER
    boundary_field: str | None = None

    @property
    def task_field(self) -> str | None:
        """The field that names the task."""
        kind, _, name = self.task_from.partition(":")
        return name if self.task is None and kind == "field" else None
