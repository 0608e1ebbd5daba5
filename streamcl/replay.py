"""A record of the log becomes a call of the learner.

Guarantees: every kind of record has its call, so the learner is a function of the log; what each producer has sent by then
is counted here. The learner itself knows neither records nor the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from streamcl.columns import Columns
from streamcl.entries import Mark, Standing
from streamcl.learning.data import Block, Rows
from streamcl.learning.learner import Learner, Steps
from streamcl.learning.outcomes import Outcome
from streamcl.learning.watch import ByClock
from streamcl.snapshot import LearnerState, Meta
from streamcl.storage.log import Entry as Stored
from streamcl.storage.log import LogReader
from streamcl.storage.records import Abandon, Batch, Boundary, Drop, Forget, Lost, Retry, Revisit, Rollback


@dataclass(frozen=True, slots=True)
class LogStore:
    """The log as the learner's store of rows."""

    log: LogReader

    def read(self, lsn: int, verify: bool = True) -> Block:
        """The rows of one batch; raises Damaged."""
        arrays = next(iter(self.log.read(lsn, lsn + 1, verify))).arrays
        return arrays["x"], arrays["y"]

    def columns(self, lsn: int) -> Columns | None:
        """As they were sent; raises Damaged."""
        record = next(iter(self.log.read(lsn, lsn + 1, False))).record
        return record.schema if isinstance(record, Batch) else None

    def batches(self, first: int, end: int, verify: bool = True) -> Iterator[tuple[int, int]]:
        """LSN and rows of every batch from `first` to below `end`; raises Damaged."""
        for stored in self.log.read(first, end, verify):
            if isinstance(stored.record, Batch):
                yield stored.lsn, stored.record.samples


class Replay:
    """Applies records to a learner, in order. sequences: epoch and last number of each producer."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.sequences: dict[str, tuple[int, int]] = {}

    def apply(self, stored: Stored) -> Steps:
        """Take one record; a generator that yields after every step, so that its caller can look up.

        Returns the outcome where the record changed a task's standing. Raises Unlearnable, Damaged.
        """
        record = stored.record
        outcome = yield from self._call(Mark(stored.lsn, record.producer, record.seq), stored)
        if record.producer is not None:
            self.sequences[record.producer] = (record.epoch, record.seq)
        return outcome

    def _call(self, mark: Mark, stored: Stored) -> Steps:
        learner = self.learner
        match stored.record:
            case Batch() as batch:
                return (yield from learner.observe(mark, _rows(batch, stored.arrays), batch.boundary))
            case Boundary(origin=origin, reason=reason) as boundary if boundary.by_clock:
                return (yield from learner.end(mark, ByClock(origin, reason or "")))
            case Boundary(weight=weight):
                return (yield from learner.close(mark, weight))
            case Revisit(task=task, damping=damping):
                learner.revisit(mark, task, damping)
                return None
            case Abandon(task=task):
                return learner.abandon(mark, task)
            case Forget(task=task):
                return learner.forget(mark, task)
            case Retry(task=task):
                return (yield from learner.retry(mark, task))
            case Drop(task=task):
                return learner.drop(mark, task)
            case Rollback(task=task, to=to, undone=undone, revisits_undone=revisits):
                return learner.roll_back(mark, task, to, undone, revisits)
            case Lost():
                learner.pass_over(mark)
                return None

    def snapshot(self, entries: int) -> tuple[Meta, dict[str, npt.NDArray[Any]]]:
        """What a checkpoint holds, with so many entries of the ledger."""
        state, tensors = self.learner.snapshot()
        numbers = {name: getattr(state, name) for name in LearnerState.__struct_fields__}
        return Meta(**numbers, ledger=entries, sequences=dict(self.sequences)), tensors

    def restore(self, meta: Meta, tensors: Mapping[str, npt.NDArray[Any]], standing: Standing) -> None:
        """Take over what `snapshot` gave; raises as the learner's does."""
        self.sequences = dict(meta.sequences)
        self.learner.restore(meta, tensors, standing)


def _rows(batch: Batch, arrays: Mapping[str, npt.NDArray[Any]]) -> Rows:
    named = batch.schema, batch.left_out, batch.new_words
    return Rows(batch.task, arrays["x"], arrays["y"], batch.new_labels, batch.outputs, batch.tag, *named)


def run_through(steps: Steps) -> Outcome | None:
    """What a record comes to, where nobody needs to look up meanwhile."""
    while True:
        try:
            next(steps)
        except StopIteration as finished:
            outcome: Outcome | None = finished.value
            return outcome
