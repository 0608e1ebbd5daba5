"""Models for the daemons of `test_first_batch`, each with something peculiar about it.

``current`` makes the one whose name stands in a file, so that one daemon can be shown one after the other.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

WORDS = 9


def current(input_shape: tuple[int, ...], outputs: int) -> nn.Module:
    name = Path(os.environ["PECULIAR"]).read_text()
    return globals()[name]()


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class TwoFields(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 4)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.table(x[:, 0]), self.table(x[:, 1])], 1))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enter, self.block = nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.block, self.enter(x), use_reentrant=True))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(WORDS, 4, padding_idx=0)
        self.gru = nn.GRU(4, 5, batch_first=True)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(self.table(x), (x != 0).sum(1), batch_first=True, enforce_sorted=False)
        return self.head(self.gru(packed)[1][-1])


class Sorting(nn.Module):
    """Rows go through the first layer in an order of their own, except three, which are the first to be looked at."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        order = x[:, 0].argsort() if len(x) > 3 else torch.arange(len(x))
        return self.head(torch.tanh(self.first(x[order]))[order.argsort()])


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.Dropout(0.2), nn.LazyLinear(3))


def good() -> nn.Module:
    return nn.Linear(8, 3)


# -- those that cannot be learned ----------------------------------------------------------------------------------------


class TwoHeads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head, self.aux = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        return (self.head(x), self.aux(x)) if self.training else self.head(x)


class Raising(nn.Linear):
    """Raises something in one of its modes."""

    def __init__(self, error: BaseException, training: bool) -> None:
        super().__init__(8, 3)
        self.error, self.when = error, training

    def forward(self, x: Tensor) -> Tensor:
        if self.training is self.when:
            raise self.error
        return super().forward(x)


def raises_in_training() -> nn.Module:
    return Raising(ZeroDivisionError("out of sorts"), True)


def raises_in_evaluation() -> nn.Module:
    return Raising(LookupError("nothing there"), False)


def exits() -> nn.Module:
    return Raising(SystemExit("no licence"), True)


def exits_when_made() -> nn.Module:
    sys.exit("no licence at all")


class Squeezing(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).squeeze()


def squeezing() -> nn.Module:
    return Squeezing(8, 3)


def by_the_batch() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16, track_running_stats=False).eval(), nn.Linear(16, 3))


def tracking() -> nn.Module:
    norm = nn.InstanceNorm1d(2, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Unflatten(1, (2, 4)), norm, nn.Flatten(), nn.Linear(8, 3))


class Fatal(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        os._exit(11)


def fatal() -> nn.Module:
    return Fatal(8, 3)
