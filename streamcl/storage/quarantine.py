"""Records that could not be learned: what failed and why, kept so that every later start skips them in the same way.

One verified file; it grows by one entry for each failure, of which there are few, and holds no raw data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamcl.storage import verified
from streamcl.storage.disk import Disk

NAME = "quarantine"


def load(directory: Path) -> list[dict[str, Any]]:
    """Every failure so far; raises Damaged, UnknownFormat."""
    path = directory / NAME
    return list(verified.load(path).meta["failures"]) if path.exists() else []


def save(directory: Path, failures: Sequence[Mapping[str, Any]], disk: Disk) -> None:
    """Replace the list, durable on return; raises OSError, SyncFailed."""
    verified.save(directory / NAME, {"failures": [dict(failure) for failure in failures]}, {}, disk)


def failures(entries: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, int]]:
    """How often each record, by LSN, has failed at each stage."""
    counts: dict[int, dict[str, int]] = {}
    for entry in entries:
        stages = counts.setdefault(entry["lsn"], {})
        stages[entry["stage"]] = stages.get(entry["stage"], 0) + 1
    return counts
