"""Records that could not be learned: what failed and why, kept so that every later start skips them in the same way.

One verified file; it grows by one entry for each failure, of which there are few, and holds no raw data.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamcl.errors import Damaged
from streamcl.storage import verified
from streamcl.storage.disk import Disk

NAME = "quarantine"


class Failure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One time that a record could not be learned. stage: where, as `learning.failing.Unlearnable` has it. time: Unix
    seconds. rows: of a batch."""

    lsn: int
    stage: str
    task: str
    producer: str | None
    seq: int
    reason: str
    time: float
    rows: int = 0

    def plain(self) -> dict[str, Any]:
        """As it is stored, and shown."""
        fields: dict[str, Any] = msgspec.to_builtins(self)
        return fields


def load(directory: Path) -> list[Failure]:
    """Every failure so far; raises Damaged, UnknownFormat."""
    path = directory / NAME
    if not path.exists():
        return []
    try:
        return msgspec.convert(verified.load(path).meta["failures"], list[Failure])
    except (KeyError, msgspec.ValidationError) as error:
        raise Damaged(f"{path}: expected a list of failures: {error}; restore it from a backup") from None


def save(directory: Path, failures: Sequence[Failure], disk: Disk) -> None:
    """Replace the list, durable on return; raises OSError, SyncFailed."""
    verified.save(directory / NAME, {"failures": [failure.plain() for failure in failures]}, {}, disk)


def failures(known: Iterable[Failure]) -> dict[int, dict[str, int]]:
    """How often each record, by LSN, has failed at each stage."""
    counts: dict[int, dict[str, int]] = {}
    for failure in known:
        stages = counts.setdefault(failure.lsn, {})
        stages[failure.stage] = stages.get(failure.stage, 0) + 1
    return counts
