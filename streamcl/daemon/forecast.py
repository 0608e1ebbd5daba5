"""What the trainer does; how far a consolidation has come and how long it will still take, from those before it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from streamcl.daemon.words import Consolidation
from streamcl.learning.fitting import Progress

FISHER_EPOCHS = 1.3  # the cost of an exact Fisher, until a consolidation has shown what it is here


@dataclass(slots=True)
class Forecast:
    """One for all consolidations: it learns how long the Fisher takes beside the epochs, and the rest beside both.

    >>> clock = iter([0.0, 0.0, 1.0]).__next__
    >>> forecast = Forecast(clock)
    >>> forecast.begin(); forecast.saw(Progress("t", "epochs", 0.5, 1, 2, 10))
    >>> forecast.phase, round(forecast.fraction(), 2)
    ('epochs', 0.3)
    """

    clock: Callable[[], float] = time.monotonic
    phase: Literal["epochs", "fisher", "saving"] = "epochs"
    epoch: int = 0
    epochs: int = 1
    fisher_epochs: float = FISHER_EPOCHS
    _done: float = 0.0
    _phase_began: float = 0.0
    _seen: float = 0.0
    _epochs_seconds: float = 0.0

    def begin(self) -> None:
        """A consolidation begins."""
        self._seen = self.clock()
        self.phase, self.epoch, self._done, self._phase_began = "epochs", 0, 0.0, self._seen

    def saw(self, progress: Progress) -> None:
        """A step was taken. A phase is first reported at the end of its first step: it began with the step before."""
        if progress.phase != self.phase:
            self._enter(progress.phase)
        self._seen = self.clock()
        self.epoch, self.epochs, self._done = progress.epoch, progress.epochs, progress.done

    def saving(self) -> None:
        """Computation is over: the result is being made durable."""
        if self.phase == "fisher" and self._epochs_seconds > 0:
            self.fisher_epochs = self.epochs * (self.clock() - self._phase_began) / self._epochs_seconds
        self._enter("saving")

    def _enter(self, phase: Literal["epochs", "fisher", "saving"]) -> None:
        if self.phase == "epochs":
            self._epochs_seconds = self._seen - self._phase_began
        self.phase, self._done, self._phase_began = phase, 0.0, self._seen

    def fraction(self) -> float:
        """The share of the whole that is done, from 0 to 1, by time."""
        whole = self.epochs + self.fisher_epochs
        match self.phase:
            case "epochs":
                return self._done * self.epochs / whole
            case "fisher":
                return (self.epochs + self._done * self.fisher_epochs) / whole
        return 1.0

    def seconds_left(self) -> float | None:
        """Until the Fisher is done; None before there is anything to judge by. How long saving takes is not known."""
        if self.phase == "saving":
            return 0.0
        if self._done == 0.0:
            return None
        passed = self.clock() - self._phase_began
        rest = passed * (1.0 - self._done) / self._done
        if self.phase == "fisher":
            return rest
        return rest + passed / self._done * self.fisher_epochs / self.epochs


@dataclass(slots=True)
class Activity:
    """What the trainer does: recovering, idle, training, revisiting or consolidating; and how far that has come."""

    name: str = "recovering"
    forecast: Forecast = field(default_factory=Forecast)

    @property
    def consolidating(self) -> bool:
        """Whether a boundary is under way."""
        return self.name == "consolidating"

    def saw(self, progress: Progress) -> bool:
        """A step of a consolidation was taken; whether that is where it began."""
        began = not self.consolidating
        if began:
            self.name = "consolidating"
            self.forecast.begin()
        self.forecast.saw(progress)
        return began

    def consolidation(self) -> Consolidation | None:
        """How far it has come, where one is under way."""
        forecast = self.forecast
        if not self.consolidating:
            return None
        left = forecast.seconds_left()
        return Consolidation(forecast.phase, forecast.epoch, forecast.epochs, forecast.fraction(), left)
