"""What is watched of the stream: how well rows are predicted before they are learned, and whether the stream has changed.

Guarantees: a function of the scores alone; decides nothing. Which task a change closes is the learner's to say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from msgspec.structs import replace
from torch import Tensor

from streamcl.config import Config, Stream
from streamcl.entries import Closing, Consolidated
from streamcl.learning.data import Array, Rows
from streamcl.learning.drift import Drift, Reached, errors
from streamcl.learning.evaluation import Prequential
from streamcl.learning.fall import Fall
from streamcl.learning.open_task import OpenTask
from streamcl.learning.shifts import Shifts
from streamcl.snapshot import Drifted, LearnerState

Trigger = Drift | Fall | Shifts


class Why(Protocol):
    """Why a task ends without anybody's saying so; in words, as a string."""

    @property
    def origin(self) -> str:
        """As of an entry, one of `entries.BY_ITSELF`."""


@dataclass(frozen=True, slots=True)
class ByClock:
    """The clock ended it, as the log has it."""

    origin: str
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(slots=True)
class Watch:
    """Scores of the rows as they come. drift: what ends a task by what its rows show, where that does. least: rows that
    end a task, where they do. drifted: the task that was closed so last, while no row of its stream has come since."""

    prequential: Prequential
    drift: Trigger | None = None
    drifted: Drifted | None = None
    least: int | None = None

    @classmethod
    def of(cls, config: Config) -> Watch:
        """As configured."""
        least = config.stream.boundary_rows if config.stream.boundary == "rows" else None
        return cls(Prequential(config.model.family), _trigger(config.stream, config.model.family), least=least)

    def open_task(self) -> None:
        """Another task of the stream."""
        self.drifted = None
        self.prequential.open_task()
        if self.drift is not None:
            self.drift.open_task()

    def score(self, nll: Tensor, output: Tensor, target: Tensor, *, anew: bool) -> float:
        """Score what n rows had before they were learned from; returns their mean NLL. nll: [n]. anew: not of a revisit."""
        if self.drift is not None and anew and not isinstance(self.drift, Shifts):
            self.drift.add(errors(self.prequential.likelihood, output, target))
        return self.prequential.score(nll, output, target)

    def look(self, x: Array, *, anew: bool) -> None:
        """See the inputs of rows, before they are learned from, as the model takes them [n, ...]; anew: as for `score`."""
        if isinstance(self.drift, Shifts) and anew:
            self.drift.look(x)

    def risen(self, task: OpenTask | None, rows: Rows) -> Why | None:
        """What shows that the open task's stream has changed, or its number of rows where that ends it; never of a
        revisit.

        Rows that name no stream of tasks wait for a boundary of their own.
        """
        if task is None or task.revisited is not None or not rows.of_stream:
            return None
        if self.least is not None:  # those too that have failed so far: a function of the log alone
            every = task.samples + sum(number for _, number in task.suspects)
            return Reached(every, self.least) if every >= self.least else None
        return None if self.drift is None else self.drift.found

    def closed(self, tag: str | None, entry: Closing, why: Why) -> Closing:
        """The entry of a boundary that was set so; its task is then the one that the daemon itself closed last."""
        entry = replace(entry, origin=why.origin, reason=str(why))
        loss = entry.loss if isinstance(entry, Consolidated) else None
        figures = entry.samples, entry.weight, loss, entry.seconds, entry.closed_at
        self.drifted = Drifted(tag, entry.task, *figures, origin=entry.origin or "drift")
        return entry

    def restore(self, state: LearnerState, alike: bool) -> None:
        """Take over what a snapshot has of it. alike: scored by the same model; another's scores begin afresh."""
        if alike:
            self.prequential.restore(state.prequential)
        if self.drift is not None and state.drift is not None and alike:
            self.drift.restore(state.drift)
        self.drifted = state.drifted


def _trigger(stream: Stream, likelihood: str) -> Trigger | None:
    """What ends a task by what its rows show, as configured."""
    if stream.boundary == "score":
        return Fall(likelihood, stream.score_fall, stream.score_window, stream.drift_delta, stream.least_rows)
    if stream.boundary != "drift":
        return None
    shared = stream.drift_delta, stream.drift_rows, stream.drift_detector, stream.drift_args
    return Shifts(*shared) if stream.drift_on == "inputs" else Drift(likelihood, *shared)
