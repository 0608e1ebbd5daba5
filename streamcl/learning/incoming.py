"""A batch as it comes: scored, then learned from in one pass of steps; or, having failed before, left to the boundary.

Guarantees: every row is scored before a step learns from it. Decides nothing about tasks.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping

import torch

from streamcl.learning.data import Rows
from streamcl.learning.model import Model
from streamcl.learning.open_task import OpenTask
from streamcl.learning.watch import Watch


class Incoming:
    """A batch of the open task. failed: how often its position has failed at each stage."""

    def __init__(self, model: Model, task: OpenTask, lsn: int, rows: Rows, failed: Mapping[str, int]) -> None:
        self.model, self.task, self.lsn = model, task, lsn
        self.x, self.y = model.network.conversion.x(rows.x), model.network.conversion.y(rows.y)
        self.failed = failed

    def joins(self) -> bool:
        """Whether it joins the rows of its task, as it then does; else it is one of the suspects."""
        if self._is_passed_over():
            self.task.suspects.append((self.lsn, len(self.x)))
            return False
        self.task.add(self.lsn, len(self.x))
        return True

    def _is_passed_over(self) -> bool:
        """Whether a batch that has failed is left to the boundary; where the steps were at fault, the whole task is."""
        model, before = self.model, self.task.before
        diverged = self.failed.get("batch-diverged", 0) > 0
        if diverged and model.fitting.at(model.anchor(before), lambda: model.fitting.is_finite(self.x, self.y)):
            model.return_to_anchor(before)  # what the steps did is undone, and the boundary learns the task
            self.task.stalled = True
            return False
        return diverged or self.failed.get("batch", 0) > 0

    def learn(self, watch: Watch) -> Generator[None, None, float | None]:
        """One pass of steps; returns the rows' mean NLL, None where no step is taken. Raises Diverged."""
        fitting = self.model.fitting
        if self.task.stalled:
            return None
        scored = fitting.scores_as_it_steps
        if not scored:
            self._score(watch, *fitting.before(self.x, self.y))
        if not fitting.takes_steps:
            return None
        nll, output = yield from fitting.take(self.x, self.y, self.task.samples, self.lsn)
        loss = self._score(watch, nll, self.model.network.predicted(output)) if scored else float(nll.double().mean())
        fitting.check_finite(loss)
        return loss

    def _score(self, watch: Watch, nll: torch.Tensor, output: torch.Tensor) -> float:
        """output: in the targets' shape and units."""
        return watch.score(nll, output, self.y, anew=self.task.revisited is None)
