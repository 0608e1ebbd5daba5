"""The task being learned: where its rows are, and what it is learned under."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy.typing as npt

from streamcl.entries import Consolidated, Held
from streamcl.snapshot import OpenTaskState


class Known(Protocol):
    """What is asked of a posterior."""

    @property
    def total(self) -> Any:
        """What all tasks come to."""

    def cavity(self, revisited: str | None) -> Any:
        """What a task is learned under."""


@dataclass(slots=True)
class OpenTask:
    """The task being learned: where its rows are and how many they are.

    first_lsn: of the record that opened it. penalty: what it is learned under, of the model's own kind. damping: of a
    revisit's new factor, None where the task is learned for the first time. before: what is served during a revisit, and
    comes back if it is abandoned. tag: what its producers call it; its name, but for drift. suspects: LSN and rows of
    batches that failed as they came, in neither `lsns` nor `sizes`. stalled: no more steps before the boundary, since they
    diverged. samples: N_t so far. start: what the past came to where it opened (`Posterior.past`), in nats.
    """

    name: str
    first_lsn: int
    penalty: Any
    damping: float | None = None
    before: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    lsns: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    tag: str | None = None
    suspects: list[tuple[int, int]] = field(default_factory=list)
    stalled: bool = False
    samples: int = 0
    start: float | None = None

    @property
    def revisited(self) -> str | None:
        """Its name if this is a revisit."""
        return None if self.damping is None else self.name

    @property
    def is_empty(self) -> bool:
        """Whether it has no rows at all."""
        return not self.lsns and not self.suspects

    def add(self, lsn: int, rows: int) -> None:
        """One more batch of this task."""
        self.lsns.append(lsn)
        self.sizes.append(rows)
        self.samples += rows

    def admit(self, sound: Callable[[int], bool]) -> None:
        """Take in, in the order received, the suspects that turn out to be sound after all."""
        found = [pair for pair in self.suspects if sound(pair[0])]
        self.suspects = [pair for pair in self.suspects if pair not in found]
        together = sorted([*zip(self.lsns, self.sizes, strict=True), *found])
        self.lsns, self.sizes = [lsn for lsn, _ in together], [rows for _, rows in together]
        self.samples = sum(self.sizes)

    def state(self) -> OpenTaskState:
        """For a snapshot."""
        return OpenTaskState(
            self.name, self.first_lsn, self.damping, self.tag, self.stalled, tuple(self.suspects), self.start
        )


def kept_task(kept: Held | Consolidated, lsn: int, posterior: Known, before: Mapping[str, npt.NDArray[Any]]) -> OpenTask:
    """A task to be learned again at position `lsn`: a held one as it was, or what was set aside of a consolidated one.

    That is learned under the whole posterior, its own task's part of it included. before: as of `OpenTask`.
    """
    if isinstance(kept, Held):
        penalty = posterior.cavity(None if kept.damping is None else kept.task)
        return OpenTask(kept.task, kept.first_lsn, penalty, kept.damping, before)
    return OpenTask(kept.task, lsn, posterior.total, None, before)
