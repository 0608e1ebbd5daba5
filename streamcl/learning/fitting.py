"""How one network is fitted to a task and its Fisher taken: passes over batches, epochs, what became of them.

Guarantees: every random number is drawn from (seed, position), so no generator's state has to be saved. Knows one network
and the penalty that it is under; nothing of names, of earlier tasks, or of what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from streamcl.config import Config
from streamcl.core import likelihood as likelihoods
from streamcl.core.gaussian import Gaussian
from streamcl.learning.curvature import Restated, Taken, TaskCurvature
from streamcl.learning.data import Array, TaskData
from streamcl.learning.failing import Diverged
from streamcl.learning.ladder import Step
from streamcl.learning.network import Network
from streamcl.learning.optimisation import EpochResult, Optimisation, mean_nll
from streamcl.learning.recent import TOGETHER, Ages, Recent
from streamcl.learning.units import Units
from streamcl.snapshot import Vintage

WORSE_NATS = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a consolidation has got: `done` is the share of its phase, the epochs or the Fisher, from 0 to 1.

    `result` is set by the event that ends an epoch.
    """

    task: str
    phase: Literal["epochs", "fisher"]
    done: float
    epoch: int
    epochs: int
    steps: int
    result: EpochResult | None = None


Event = Progress | None


def seed_at(config: Config, lsn: int, rank: int = 0) -> int:
    """The seed of everything random about one position; rank: of a process that draws for its own rows alone."""
    place = [config.train.seed, lsn] + [rank] * (rank > 0)
    return int(np.random.SeedSequence(place).generate_state(1)[0])


class Fitting:
    """One network, and the optimisation under the penalty of the task that is open.

    units: what is learned of real targets. steps: taken in all. share: what the open task's NLL counts (power EP). warning:
    what is wrong with the rate, for the operator. fisher_note: what the last Fisher cost for want of a fast way.
    growth_note: what was approximated when the outputs grew, until the next boundary says so. recent: the rows beside which
    small messages are learned, where the stream chooses rate and minibatches; None in directories made before there were
    any.

    What holds it together: parameters, optimiser and units move as one, by a step, an epoch or a return to what was kept,
    and no other place steps.
    """

    def __init__(self, config: Config, network: Network, steps: int, vintage: Vintage) -> None:
        self.config, self._vintage = config, vintage
        self.network, self.units = network, Units(network)
        self.device = network.device
        self.steps = steps
        self.optimisation: Optimisation | None = None
        self.share = 1.0
        self.warning: str | None = None
        self.fisher_note: str | None = None
        self.growth_note: str | None = None
        self.recent = Recent() if vintage.fills else None

    @property
    def _running(self) -> Optimisation:
        if self.optimisation is None:
            raise RuntimeError("a step came with no task open")
        return self.optimisation

    def begin(self, penalty: Gaussian, calmer: float = 1.0, share: float = 1.0) -> None:
        """A task opens under a penalty, or begins again with `calmer` times the configured rate, which is then said."""
        rate = calmer * self.config.rate
        self.share = share
        if calmer < 1:
            self.warning = f"training diverged; the task is learned at rate {rate:g}: lower train.learning_rate"
        self.recent = None if self.recent is None else Recent()
        chooses = self.config.learns_rate and calmer == 1.0
        train, pins = self.config.train, self._vintage.pins and not self.config.posterior.as_in_the_note
        self.optimisation = Optimisation(self.network, penalty, train, rate, share, chooses, pins)

    def go_on(self, before: Fitting) -> None:
        """With what the optimiser of a network with fewer outputs held, once a task has begun here."""
        if before.optimisation is not None:
            self._running.go_on(before.optimisation, self.network.widening)
            self.recent = before.recent

    def end(self) -> None:
        """No task is open any more."""
        self.optimisation = None

    def set_penalty(self, penalty: Gaussian) -> None:
        """Another penalty from here on."""
        self._running.set_penalty(penalty)

    def learn_under(self, penalty: Gaussian, share: float) -> None:
        """The open task is another's revisit from here on."""
        self.share = self._running.share = share
        self.set_penalty(penalty)

    def load(self, arrays: Mapping[str, Any]) -> None:
        """Take over what `state` gave."""
        self._running.load(arrays)
        if self.recent is not None:
            self.recent = Recent.of(arrays, self.device)

    # -- a batch -------------------------------------------------------------------------------------------------

    @property
    def scores_as_it_steps(self) -> bool:
        """Whether a step's own forward pass computes what a prediction does (no dropout, no autocast, known units)."""
        return self.network.steady and self.takes_steps and not self.units.learns

    @property
    def takes_steps(self) -> bool:
        """Whether batches are learned from as they come, and not at the boundary alone."""
        return not self._running.full_batch

    def take(self, x: Tensor, y: Tensor, samples: int, lsn: int) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """One pass of steps over a batch, with N the task's `samples` so far.

        Returns the NLL [n] and the output that each row had before the step that learned from it.
        """
        optimisation = self._running
        self.seed_torch(lsn, optimisation.sharing.rank)
        optimisation.set_samples(samples)
        if self.units.learns:
            self.units.add(y)
        if optimisation.ladder is None:
            found = yield from self._steps(x, y)
        else:
            found = yield from self._counted(optimisation, x, y, samples - len(x), self._filled(len(x), lsn))
            if self.recent is not None:
                self.recent.add(x, y)
        if self.units.learns:
            self.units.follow(found[0])
        return found

    def _filled(self, message: int, lsn: int) -> Ages | None:
        """The earlier rows that the steps of a message of so many rows are filled up with; None where they are not."""
        return None if self.recent is None else self.recent.draws(message, self.seed(lsn))

    def _counted(
        self, optimisation: Optimisation, x: Tensor, y: Tensor, before: int, filled: Ages | None
    ) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """As the copies at several rates learn them; the steps of the one that is followed count."""
        assert optimisation.ladder is not None
        scored = None if self.scores_as_it_steps else lambda x, y: self.nll(x, y)[0]
        step = self._step_beside(optimisation, filled)
        taking = optimisation.ladder.take(x, y, before, step, scored, self.units.least)
        while True:
            try:
                next(taking)
            except StopIteration as end:
                found: tuple[Tensor, Tensor] = end.value
                return found
            self.steps += 1
            yield None

    def _step_beside(self, optimisation: Optimisation, filled: Ages | None) -> Step:
        """Steps on rows and, beside them, as many of those before as are wanting; what is returned is of the rows alone."""
        if filled is None or self.recent is None:
            return lambda x, y, at: optimisation.learned(x, y)
        others = [self.recent.at(ages) for ages in filled]
        both: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}  # the same for every copy

        def step(x: Tensor, y: Tensor, at: int) -> tuple[Tensor, Tensor]:
            (other_x, other_y), more = others[at], TOGETHER - len(x)
            if (at, more) not in both:
                both[at, more] = torch.cat([x, other_x[:more]]), torch.cat([y, other_y[:more]])
            nll, output = optimisation.learned(*both[at, more])
            return nll[: len(x)], output[: len(x)]

        return step

    def _steps(self, x: Tensor, y: Tensor) -> Generator[None, None, tuple[Tensor, Tensor]]:
        optimisation, size = self._running, self.config.train.rows
        parts = []
        for start in range(0, len(x), size):
            parts.append(optimisation.learned(x[start : start + size], y[start : start + size]))
            self.steps += 1
            yield None
        nlls, outputs = zip(*parts, strict=True)
        return torch.cat(nlls), torch.cat(outputs)

    def nll(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The NLL [n] and the outputs of rows as a prediction has them."""
        with self.network.evaluating():
            output = self.network.module(x)
            return self.network.likelihood.nll(output, y), output

    def before(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The NLL [n] of rows that nothing has been learned of, and what is predicted of them, in the targets' units."""
        targets = self.network.targets
        if targets is not None and targets.rows == 0 and not targets.fixed:  # the very first: no unit is known
            expected = targets.before(y)
            return likelihoods.Gaussian(1.0).nll(expected, y), expected
        nll, output = self.nll(x, y)
        return nll, self.network.predicted(output)

    def is_finite(self, x: Tensor, y: Tensor) -> bool:
        """Whether every row's loss is a finite number here."""
        return bool(torch.isfinite(self.nll(x, y)[0]).all())

    def check_sound(self, x: Array, y: Array) -> None:
        """Raise whatever a batch raises in either mode, forwards or backwards; ValueError for what is not finite."""
        network = self.network
        rows, targets = network.conversion.x(x), network.conversion.y(y)
        network.parameters.grad.zero_()
        nll = network.likelihood.nll(network.training_output(rows), targets)
        torch.autograd.backward(nll.mean())
        finite = bool(torch.isfinite(network.parameters.grad).all()) and bool(torch.isfinite(nll).all())
        if not (finite and self.is_finite(rows, targets)):
            raise ValueError("the loss of these rows, or its gradient, is not a finite number")

    # -- a whole task ----------------------------------------------------------------------------------------------

    def fit(self, task: str, data: TaskData, lsn: int) -> Iterator[Event]:
        """The configured epochs over a task's rows."""
        optimisation, before = self._running, self._running.steps
        result, planned = None, self.config.epochs(data.samples)
        for event in optimisation.fit(data, self.seed(lsn), planned, self._vintage.compares):
            self.steps += event is None
            result = event or result
            epoch, epochs = (result.epoch, result.epochs) if result else (0, planned)
            steps = optimisation.steps - before
            done = min(1.0, steps / (epochs * optimisation.steps_an_epoch(data)))
            yield Progress(task, "epochs", done, epoch, epochs, steps, event)

    def look_at_rate(self, samples: int) -> None:
        """Note whether the learning rate suits the penalty, for a task of so many samples."""
        self.warning = "; ".join(filter(None, (self._running.warning(samples), self.growth_note))) or None
        self.growth_note = None

    def curvature(
        self, task: str, data: TaskData, seed: int, cavity: Gaussian, weight: float, restated: Restated | None
    ) -> Generator[Event, None, Taken]:
        """The task's precision lambda_T F_T, in float64 on the host, and the mean NLL at the optimum."""
        taking = TaskCurvature(self.config, self.network, data, seed, self._vintage)
        steps = taking.take(cavity, weight, self.share, restated)
        epochs, furthest = self.config.epochs(data.samples), 0.0
        while True:
            try:
                furthest = max(furthest, 0.99 * next(steps))
            except StopIteration as end:
                taken: Taken = end.value
                break
            yield Progress(task, "fisher", furthest, epochs, epochs, 0)
        yield self.curvature_taken(task, data)  # with its own check, which is no part of what follows
        self.fisher_note = "; ".join(taken.notes) or None
        self.warning = "; ".join(filter(None, (self.warning, self.fisher_note))) or None
        return taken

    def curvature_taken(self, task: str, data: TaskData) -> Progress:
        """What is left is the width of predictions, and to save it all."""
        epochs = self.config.epochs(data.samples)
        return Progress(task, "fisher", 1.0, epochs, epochs, 0)

    def check_gained(self, loss: float, data: TaskData, anchor: Callable[[], Tensor]) -> None:
        """Raise Diverged where training has made the task much worse than it was at the anchor, although all is finite.

        By more than a nat a sample and more than twofold: no suitable rate does that. Costs a pass over the task, except
        when the loss is too small for it.
        """
        if self.config.model.family != "gaussian" and loss <= WORSE_NATS:
            return
        before = self.at(anchor(), lambda: mean_nll(self.network, data))
        if loss - before > max(WORSE_NATS, abs(before)):
            raise Diverged(
                f"training took the loss from {before:.4g} to {loss:.4g} nats a sample; lower train.learning_rate (now "
                f"{self.config.rate:g}) or scale the data"
            )

    def check_finite(self, value: float) -> None:
        """Raise Diverged for a loss, or a sum, that left the finite numbers."""
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value}; if this goes on, lower train.learning_rate (now "
                f"{self.config.rate:g}) or posterior.scale (now {self.config.posterior.scale:g})"
            )

    # -- where and with what -----------------------------------------------------------------------------------------

    def move_to(self, theta: Tensor) -> None:
        """Other parameters [P]."""
        self.network.move_to(theta)

    def at(self, theta: Tensor, question: Callable[[], T]) -> T:
        """What holds at other parameters [P]; those that were are put back."""
        before = self.network.parameters.theta.detach().clone()
        self.move_to(theta)
        try:
            return question()
        finally:
            self.network.parameters.load(before)

    def seed(self, lsn: int) -> int:
        """The seed of everything random about one position."""
        return seed_at(self.config, lsn)

    def seed_torch(self, lsn: int, rank: int) -> None:
        """Seed what dropout draws from, for this process's rows.

        `torch.manual_seed` does the same, but formats a stack trace at every call.
        """
        if self.network.steady:
            return
        seed = seed_at(self.config, lsn, rank)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def state(self) -> dict[str, Any]:
        """The optimiser's arrays, for a snapshot; and the rows beside which it learns small messages."""
        if self.optimisation is None:
            return {}
        return self.optimisation.state() | ({} if self.recent is None else self.recent.state())
