"""What the trainer says of itself, to ingest and to its supervisor: seldom enough to cost almost nothing."""

from __future__ import annotations

import time

import numpy as np

from streamcl.daemon import words
from streamcl.daemon.channel import Channel
from streamcl.daemon.forecast import Activity
from streamcl.learning.learner import Learner

REPORT_SECONDS = 0.05
MOST_STEPS = 500  # whose seconds one report has


class Reports:
    """Counts from one report to the next."""

    def __init__(self, up: Channel, side: Channel) -> None:
        self.up, self.side = up, side
        self._last = 0.0
        self._samples = 0
        self._steps: list[float] = []

    @property
    def due(self) -> bool:
        """Whether it is time for the next."""
        return time.monotonic() - self._last >= REPORT_SECONDS

    def begin(self, learner: Learner) -> None:
        """What the learner has already counts as reported."""
        self._samples = learner.samples

    def stepped(self, seconds: float) -> None:
        """A training step took so long."""
        self._steps.append(seconds)

    def say(self, learner: Learner, activity: Activity, *, paused: bool, full: str | None, alive: words.Alive) -> None:
        """Report. alive: for the supervisor; what is shown there is said here."""
        self._last = time.monotonic()
        task = None if learner.open_task is None else learner.open_task.name
        state = "paused" if paused else activity.name
        shown = state if task is None else f"{state}, task {task}"
        self.up.alive(words.Alive(activity=shown, checkpointed=alive.checkpointed, at_work=alive.at_work))
        self.side.send(
            words.Progress(
                state=state,
                task=task,
                next_lsn=learner.next_lsn,
                samples=learner.samples,
                new_samples=learner.samples - self._samples,
                loss=learner.train_loss if np.isfinite(learner.train_loss) else None,
                scores=words.Scores(learner.prequential.overall.scores(), learner.prequential.task.scores()),
                parameters=0 if learner.network is None else learner.network.parameters.size,
                steps=learner.steps,
                consolidation=activity.consolidation(),
                step_seconds=self._steps[-MOST_STEPS:],
                device=str(learner.device),
                full=full,
            )
        )
        self._samples, self._steps = learner.samples, []
