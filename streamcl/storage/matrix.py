"""A state directory's accuracy matrix, for `streamcl evaluate` and the dashboard. Only reads, beside a daemon too."""

from __future__ import annotations

from pathlib import Path

from streamcl.accuracies import Matrix
from streamcl.entries import Consolidated, Revisited, standing
from streamcl.storage import checkpoint, ledger
from streamcl.storage.history import HistoryReader
from streamcl.storage.state import StateDirectory


def matrix_of(directory: Path) -> Matrix:
    """Of the tasks that stand. Raises FileNotFoundError without a history, sqlite3.DatabaseError where it is none."""
    with HistoryReader(StateDirectory(directory).history) as history:
        return Matrix.of(_learned(directory), history.accuracies(), history.beside())


def _learned(directory: Path) -> list[tuple[str, int]]:
    """The tasks that stand, in the order in which they were first learned, and the mark behind each one's boundary."""
    meta = checkpoint.read_meta(directory)
    entries = [] if meta is None else ledger.read(directory, meta.ledger)
    first: dict[str, int] = {}
    for entry in entries:
        if isinstance(entry, Consolidated) and not isinstance(entry, Revisited) and not entry.added:
            first[entry.task] = entry.lsn + 1  # of a task that was undone and learned again, the newest
    return [(task, first.get(task, entry.lsn + 1)) for task, entry in standing(entries).tasks.items()]
