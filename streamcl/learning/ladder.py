"""A learning rate that the stream chooses: a few copies of the parameters, each learned at a rate of its own.

The one whose predictions have lately been best, of rows that it had not learned, is followed: it predicts, and the others
are trials. They are judged as what is reported is scored: step by step, or all rows of a message before any is learned. One
that has fallen behind begins again from where the best one is. Minibatches grow with the task: its first rows are few, and
worth a step each. One more copy, which is never followed, takes the plain pass over them that a boundary's epochs begin
from where there are earlier tasks: what follows a stream closely has moved further from what those know than epochs bring
back.

Guarantees: a function of the rows alone, in their order; between calls, and whenever a caller is let look up, the network
holds the parameters of the copy that is followed. Memory: three vectors of P numbers a copy, four copies; time: three steps
for one, and one for 64 rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from streamcl.config import RATE
from streamcl.learning.optimisers import Adam

RATES = (3e-3, 1e-2, 3e-2)
CALM = len(RATES)  # the number of the copy that takes the plain pass
FIRST = 1  # the copy that is followed before anything is known
LARGEST = 2**17  # parameters of a network that is worth it; a larger one's step takes too long to be taken so often
ROWS = 64  # between two looks at which is best
KEPT = 0.996  # of what is known of a copy, a row later: about the last 250 rows count
BEHIND = 1.2  # times the loss of the best, and a copy begins again from there
GROWTH = ((128, 1), (256, 2), (1024, 4))  # up to so many rows of the task, minibatches of so many;
MINIBATCH = 8  # beyond them
TURNED = 4  # times as many rows where a step turns into the penalty's coordinates and back

Step = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]  # of rows, and where in their block they begin
Losses = Callable[[Tensor, Tensor], Tensor]
PLACE = "ladder"  # of its numbers in a checkpoint


@dataclass(slots=True)
class Copy:
    """optimiser: at its own rate, with moments of its own. values [P]: where it is while it is not the network's."""

    optimiser: Adam
    values: Tensor
    loss: float = 0.0


class Ladder:
    """Copies of the parameters at several rates.

    values [P], grad [P]: what is learned, and its gradient. settle: called when the values have been changed. turned:
    whether a step turns coordinates.
    """

    def __init__(self, values: Tensor, grad: Tensor, settle: Callable[[], None], turned: bool) -> None:
        self._live, self._settle = values, settle
        self._turned = turned
        self.copies = [Copy(Adam(values, grad, rate), values.clone()) for rate in (*RATES, RATE)]
        self.leader = self._present = FIRST
        self._rows = 0  # since the last look
        self._noted: list[tuple[int, int, Tensor, float]] = []  # losses that no number has been made of yet

    @property
    def optimiser(self) -> Adam:
        """Of the copy that the network has at present."""
        return self.copies[self._present].optimiser

    def minibatch(self, rows: int) -> int:
        """Rows in a step, after so many of the task."""
        size = next((size for most, size in GROWTH if rows < most), MINIBATCH)
        return size * TURNED if self._turned else size

    def take(
        self, x: Tensor, y: Tensor, before: int, step: Step, scored: Losses | None, least: float = 0.0
    ) -> Generator[None, None, tuple[Tensor, Tensor]]:
        """Learn rows that come behind `before` others of the task, as all copies do.

        scored: gives the NLL [n] of rows where the network is, where they are scored before any of them is learned; None
        where they are scored step by step. least: NLL there is. Yields after the steps of the copy that is followed;
        returns the NLL [n] and the output that each row had from it before the step that learned it.
        """
        parts = []
        for start in range(0, len(x), ROWS):
            block = x[start : start + ROWS], y[start : start + ROWS]
            parts += yield from self._block(*block, self.minibatch(before + start), step, scored, least)
        nlls, outputs = zip(*parts, strict=True)
        return torch.cat(nlls), torch.cat(outputs)

    def _block(
        self, x: Tensor, y: Tensor, size: int, step: Step, scored: Losses | None, least: float
    ) -> Generator[None, None, list[tuple[Tensor, Tensor]]]:
        """The trials first, so that what others see between two steps is the copy that is followed."""
        others = [number for number in range(len(self.copies)) if number != self.leader]
        for number in [*others, self.leader]:
            self._become(number)
            known = None if scored is None else scored(x, y)
            parts = []
            rows = ROWS if number == CALM else size
            for at in range(0, len(x), rows):
                parts.append(step(x[at : at + rows], y[at : at + rows], at))
                if number == self.leader and len(parts) * size < len(x):
                    self._count_losses()
                    yield None
            for nll in [nll for nll, _ in parts] if known is None else [known]:
                self._note(number, nll, least)
        self._count_losses()
        self._rows += len(x)
        if self._rows >= ROWS:
            self._look()
        yield None
        return parts

    def _note(self, number: int, nll: Tensor, least: float) -> None:
        self._noted.append((number, len(nll), nll.double().mean(), least))

    def _count_losses(self) -> None:
        """All that were noted at once, so that no step of a copy waits for the device."""
        if not self._noted:
            return
        means = torch.stack([mean for _, _, mean, _ in self._noted]).tolist()
        for (number, rows, _, least), mean in zip(self._noted, means, strict=True):
            copy, kept, loss = self.copies[number], KEPT**rows, mean - least
            copy.loss = kept * copy.loss + (1 - kept) * (loss if math.isfinite(loss) else math.inf)
        self._noted = []

    def _look(self) -> None:
        """Follow the best, and let what has fallen behind begin again from there."""
        self._rows = 0
        best = min(range(CALM), key=lambda number: self.copies[number].loss)
        self.leader = best
        self._become(best)
        for copy in self.copies[:CALM]:
            if copy.loss > BEHIND * self.copies[best].loss:
                copy.values.copy_(self._live)
                copy.loss = self.copies[best].loss
                copy.optimiser.load({name: held.clone() for name, held in self.optimiser.state().items()})

    def leave(self, loss: Callable[[], float] | None) -> None:
        """At the boundary: behind earlier tasks, the network goes on from where a plain pass has come; else from there or
        from the copy that was followed, whichever has less loss on the task's rows. Rows that came class by class leave
        what follows them closely far from all but the last ones.

        loss: of the rows where the network is; None where the one that was followed is taken unseen.
        """
        if self._turned or (loss is not None and self._is_better(CALM, loss)):
            self._become(CALM)

    def _is_better(self, number: int, loss: Callable[[], float]) -> bool:
        """Whether a copy has less loss than the one that the network has, which it has again afterwards."""
        present, here = self._present, loss()
        self._become(number)
        there = loss()
        self._become(present)
        return there < here or not math.isfinite(here)

    def _become(self, number: int) -> None:
        """The network takes over a copy's values; those that it had are held."""
        if number == self._present:
            return
        self.copies[self._present].values.copy_(self._live)
        self._live.copy_(self.copies[number].values)
        self._present = number
        self._settle()

    # -- what a checkpoint holds ---------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """Every copy's values and moments, but for the values that the network has."""
        numbers = [float(self.leader), float(self._rows), *(copy.loss for copy in self.copies)]
        every = {PLACE: torch.tensor(numbers, dtype=torch.float64)}
        for number, copy in enumerate(self.copies):
            held = copy.optimiser.state() | ({} if number == self.leader else {"values": copy.values})
            every |= {f"{PLACE}.{number}.{name}": tensor for name, tensor in held.items()}
        return every

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave; the network already has the values of the copy that was followed."""
        leader, rows, *losses = state[PLACE].tolist()
        self.leader = self._present = int(leader)
        self._rows = int(rows)
        for number, copy in enumerate(self.copies):
            copy.loss = losses[number]
            prefix = f"{PLACE}.{number}."
            held = {name.removeprefix(prefix): each for name, each in state.items() if name.startswith(prefix)}
            if "values" in held:
                copy.values.copy_(held.pop("values"))
            copy.optimiser.load(held)
