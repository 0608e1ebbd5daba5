"""How one network is fitted to a task and its Fisher taken: passes over batches, epochs, what became of them.

Guarantees: every random number is drawn from (seed, position), so no generator's state has to be saved. Knows one network
and the penalty that it is under; nothing of names, of earlier tasks, or of what is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import torch
from torch import Tensor

from streamcl.config import Config
from streamcl.core.fisher import DiagonalFisher, Undecided
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Precision
from streamcl.learning.data import Array, TaskData
from streamcl.learning.failing import Diverged
from streamcl.learning.network import Network
from streamcl.learning.optimisation import EpochResult, Optimisation, mean_nll

FISHER_ROWS = 512  # between two looks at the channels, also where gradients are taken one by one
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


class Fitting:
    """One network, and the optimisation under the penalty of the task that is open.

    steps: taken in all. warning: what is wrong with the rate, for the operator. fisher_note: what the last Fisher cost for
    want of a fast way.
    """

    def __init__(self, config: Config, network: Network, steps: int) -> None:
        self.config = config
        self.network = network
        self.device = network.device
        self.steps = steps
        self.optimisation: Optimisation | None = None
        self.warning: str | None = None
        self.fisher_note: str | None = None

    @property
    def _running(self) -> Optimisation:
        if self.optimisation is None:
            raise RuntimeError("a step came with no task open")
        return self.optimisation

    def begin(self, penalty: Gaussian, calmer: float = 1.0) -> None:
        """A task opens under a penalty, or begins again with `calmer` times the configured rate, which is then said."""
        rate = calmer * self.config.train.learning_rate
        if calmer < 1:
            self.warning = f"training diverged; the task is learned at rate {rate:g}: lower train.learning_rate"
        train = msgspec.structs.replace(self.config.train, learning_rate=rate)
        self.optimisation = Optimisation(self.network, penalty, train)

    def end(self) -> None:
        """No task is open any more."""
        self.optimisation = None

    # -- a batch -------------------------------------------------------------------------------------------------

    @property
    def scores_as_it_steps(self) -> bool:
        """Whether a step's own forward pass computes what a prediction does (no dropout, no autocast)."""
        return self.network.steady and self.takes_steps

    @property
    def takes_steps(self) -> bool:
        """Whether batches are learned from as they come, and not at the boundary alone."""
        return not self._running.full_batch

    def take(self, x: Tensor, y: Tensor, samples: int, lsn: int) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """One pass of steps over a batch, with N the task's `samples` so far.

        Returns the NLL [n] and the output that each row had before the step that learned from it.
        """
        self.seed_torch(lsn)
        optimisation, size = self._running, self.config.train.batch_size
        optimisation.set_samples(samples)
        parts = []
        for start in range(0, len(x), size):
            parts.append(optimisation.step(x[start : start + size], y[start : start + size]))
            self.steps += 1
            yield None
        nlls, outputs = zip(*parts, strict=True)
        return torch.cat(nlls), torch.cat(outputs)

    def nll(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """The NLL [n] and the outputs of rows as a prediction has them."""
        with self.network.evaluating():
            output = self.network.module(x)
            return self.network.likelihood.nll(output, y), output

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
        result = None
        for event in optimisation.fit(data, self.seed(lsn)):
            self.steps += event is None
            result = event or result
            epoch, epochs = (result.epoch, result.epochs) if result else (0, self.config.train.epochs)
            steps = optimisation.steps - before
            done = min(1.0, steps / (epochs * optimisation.steps_an_epoch(data)))
            yield Progress(task, "epochs", done, epoch, epochs, steps, event)

    def look_at_rate(self, samples: int) -> None:
        """Note whether the learning rate suits the penalty, for a task of so many samples."""
        self.warning = self._running.warning(samples)

    def fisher(self, task: str, data: TaskData, seed: int) -> Generator[Event, None, tuple[Precision, float]]:
        """The Fisher at the optimum, in float64 on the host, and the mean NLL there: one forward pass serves both.

        If a few rows show that the fast ways cannot be trusted with this task, the loop does all of it.
        """
        fisher = self._diagonal_fisher(seed, by_loop=False)
        try:
            loss = yield from self._fisher_pass(task, data, fisher)
            wrong = None if fisher.verified() else "some rows have a different Fisher when taken by themselves"
        except Undecided as error:
            wrong = str(error)
        self.fisher_note = fisher.slow
        if wrong is not None:
            fisher = self._diagonal_fisher(seed, by_loop=True)
            loss = yield from self._fisher_pass(task, data, fisher)
            self.fisher_note = (
                f"the Fisher was found to be wrong ({wrong}) and was taken again row by row, in {fisher.loop_seconds:.2g} s"
            )
        self.warning = "; ".join(filter(None, (self.warning, self.fisher_note))) or None
        return fisher.precision(), loss

    def _diagonal_fisher(self, seed: int, by_loop: bool) -> DiagonalFisher:
        network = self.network
        generator = torch.Generator(device=self.device).manual_seed(seed)
        kind = self.config.posterior.fisher
        return DiagonalFisher(
            network.module,
            network.parameters,
            network.likelihood,
            kind,
            generator,
            by_loop=by_loop,
            seed=seed,
            reduction=network.reduction,
        )

    def _fisher_pass(self, task: str, data: TaskData, fisher: DiagonalFisher) -> Generator[Event, None, float]:
        """Add every row of a task; returns their mean NLL."""
        network = self.network
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        epochs, rows = self.config.train.epochs, 0
        for x, y in data.chunks(FISHER_ROWS):
            total += network.likelihood.nll(fisher.add(x, y), y).sum()
            rows += len(x)
            yield Progress(task, "fisher", rows / data.samples, epochs, epochs, 0)
        return float(network.reduction.sum(total)) / data.samples

    def check_gained(self, loss: float, data: TaskData, anchor: Callable[[], Tensor]) -> None:
        """Raise Diverged where training has made the task much worse than it was at the anchor, although all is finite.

        By more than a nat a sample and more than twofold: no suitable rate does that. Costs a pass over the task, except
        when the loss is too small for it.
        """
        if self.config.model.likelihood != "gaussian" and loss <= WORSE_NATS:
            return
        before = self.at(anchor(), lambda: mean_nll(self.network, data))
        if loss - before > max(WORSE_NATS, abs(before)):
            raise Diverged(
                f"training took the loss from {before:.4g} to {loss:.4g} nats a sample; lower train.learning_rate (now "
                f"{self.config.train.learning_rate:g}) or scale the data"
            )

    def check_finite(self, value: float) -> None:
        """Raise Diverged for a loss, or a sum, that left the finite numbers."""
        if not math.isfinite(value):
            raise Diverged(
                f"the loss is {value}; if this goes on, lower train.learning_rate (now "
                f"{self.config.train.learning_rate:g}) or posterior.scale (now {self.config.posterior.scale:g})"
            )

    # -- where and with what -----------------------------------------------------------------------------------------

    def move_to(self, theta: Tensor) -> None:
        """Other parameters [P]."""
        self.network.parameters.load(theta.to(self.device, self.network.dtype))

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
        return int(np.random.SeedSequence([self.config.train.seed, lsn]).generate_state(1)[0])

    def seed_torch(self, lsn: int) -> None:
        """Seed what dropout draws from. `torch.manual_seed` does the same, but formats a stack trace at every call."""
        if self.network.steady:
            return
        seed = self.seed(lsn)
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def state(self) -> dict[str, Any]:
        """The optimiser's arrays, for a snapshot."""
        return {} if self.optimisation is None else self.optimisation.state()
