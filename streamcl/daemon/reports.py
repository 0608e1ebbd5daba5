"""What the trainer says of itself, to ingest and to its supervisor: seldom enough to cost almost nothing."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from streamcl.core.precision import Precision
from streamcl.daemon import words
from streamcl.daemon.channel import Channel
from streamcl.daemon.forecast import Activity
from streamcl.learning import exact, plan
from streamcl.learning.learner import Learner

REPORT_SECONDS = 0.05
MOST_STEPS = 500  # whose seconds one report has


class Reports:
    """Counts from one report to the next. workers: processes that share the rows."""

    def __init__(self, up: Channel, side: Channel, workers: int = 1) -> None:
        self.up, self.side, self.workers = up, side, workers
        self._last = 0.0
        self._samples = 0
        self._steps: list[float] = []
        self._said_of_inputs: set[str] = set()
        self._kept: tuple[Precision, dict[str, Any]] | None = None

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
                scores=words.Scores(learner.watch.prequential.overall.scores(), learner.watch.prequential.task.scores()),
                parameters=0 if learner.model is None else learner.model.network.parameters.size,
                steps=learner.steps,
                consolidation=activity.consolidation(),
                step_seconds=self._steps[-MOST_STEPS:],
                device=str(learner.recipe.device),
                workers=self.workers,
                full=full,
                curvature=self._curvature(learner),
                inputs=learner.inputs.summary(),
            )
        )
        self._say_what_inputs_are(learner)
        self._samples, self._steps = learner.samples, []

    def _say_what_inputs_are(self, learner: Learner) -> None:
        """Once: that rows come in a scale which is in the model's way, and that measurements may be labels."""
        for text in filter(None, (learner.inputs.unscaled, learner.doubt)):
            if text not in self._said_of_inputs:
                self._said_of_inputs.add(text)
                self.side.send(words.Noted(text=text, task=None))

    def _curvature(self, learner: Learner) -> dict[str, Any]:
        """Found out once a posterior."""
        model = learner.model
        if model is None:
            return {}
        if isinstance(model, exact.Model):
            return model.described()
        precision = model.posterior.total.precision
        if self._kept is None or self._kept[0] is not precision:
            setting = learner.config.posterior.curvature
            found = plan.in_use(precision, model.network.parameters.layout, setting)
            self._kept = precision, {"setting": setting, **plan.summary(found)}
        return self._kept[1]
