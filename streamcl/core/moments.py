"""Sums over rows that determine a Gaussian head: counts and means of groups, and how rows scatter about their group's.

    counts [K]     n_k, the weight of every group's rows
    means [K, D]   m_k
    scatter [D, D] sum over groups and rows of  (z - m_k) (z - m_k)^T

A group is a class; where targets are numbers there is one group, and a row z has its targets behind its features. Kept
about their own means (Chan, Golub & LeVeque 1983) and not as raw sums: nothing large is subtracted from anything large,
however far from zero the rows lie, and sums of different rows add without a common reference.

Guarantees: float64; adding is commutative and associative but for rounding. `plus`, `less`, `weighted` and `faded` give new
objects and leave their inputs as they were; `Summing` alone changes, and only as rows are added to it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.errors import Refused

BLOCK_ROWS = 2048  # whose products are taken together: a pass over the scatter costs what some fifty rows do
PIECE_ROWS = 128  # that are gone through together: of 1,000 numbers each they fit in a core's cache
TINY = torch.finfo(torch.float64).tiny

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, slots=True)
class Moments:
    """Sums of rows. rows: how many have come since they were begun, whatever they weigh: the clock of a half-life."""

    counts: Tensor
    means: Tensor
    scatter: Tensor
    rows: float = 0.0

    @classmethod
    def none(cls, groups: int, width: int, device: torch.device | str = "cpu") -> Moments:
        """Of no rows. width: D."""
        zero = torch.zeros((), dtype=torch.float64, device=device)
        return cls(zero.new_zeros(groups), zero.new_zeros(groups, width), zero.expand(width, width))  # takes no memory

    @classmethod
    def of(cls, z: Tensor, groups: Tensor | None = None, classes: int = 1) -> Moments:
        """Of rows z [n, D], each of its group; for tests and few rows."""
        summing = Summing(cls.none(classes, z.shape[1], z.device))
        summing.add(z, groups)
        return summing.moments()

    @property
    def width(self) -> int:
        """D."""
        return self.scatter.shape[0]

    @property
    def total(self) -> float:
        """The weight of all rows."""
        return float(self.counts.sum())

    @property
    def mean(self) -> Tensor:
        """Of all rows, [D]; zeros where there are none."""
        return self.counts @ self.means / max(self.total, TINY)

    def about_the_mean(self) -> Tensor:
        """Scatter of all rows about their common mean, [D, D]: within the groups, and of the groups."""
        apart = (self.means - self.mean) * self.counts.clamp(min=0).sqrt().unsqueeze(1)
        return self.scatter.addmm(apart.T, apart)

    # -- sums of sums ------------------------------------------------------------------------------------------------

    def plus(self, other: Moments) -> Moments:
        """Of the rows of both."""
        one, two = _alike(self, other)
        counts = one.counts + two.counts
        share = two.counts / counts.clamp(min=TINY)
        apart = two.means - one.means
        moved = apart * (one.counts * share).clamp(min=0).sqrt().unsqueeze(1)
        means = one.means + share.unsqueeze(1) * apart
        return Moments(counts, means, (one.scatter + two.scatter).addmm_(moved.T, moved), one.rows + two.rows)

    def less(self, other: Moments) -> Moments:
        """Of the rows of this one that are not the other's, which it must contain. Digits are lost where little remains."""
        one, two = _alike(self, other)
        counts = one.counts - two.counts
        counts = torch.where(counts > 1e-9 * one.counts, counts, torch.zeros_like(counts))
        left = counts > 0
        share = torch.where(left, two.counts / counts.where(left, torch.ones_like(counts)), torch.zeros_like(counts))
        means = torch.where(left.unsqueeze(1), one.means + share.unsqueeze(1) * (one.means - two.means), 0.0)
        apart = torch.where(left.unsqueeze(1), means - two.means, one.means - two.means)
        both = torch.where(left, counts * two.counts / one.counts.clamp(min=1e-300), torch.zeros_like(counts))
        moved = apart * both.sqrt().unsqueeze(1)
        return Moments(counts, means, one.scatter - two.scatter - moved.T @ moved, one.rows - two.rows)

    def product(self, others: Iterable[Moments]) -> Moments:
        """With all others, one of them held at a time."""
        found = self
        for other in others:
            found = found.plus(other)
        return found

    def weighted(self, weight: float) -> Moments:
        """As if every row counted `weight` times."""
        return Moments(self.counts * weight, self.means.clone(), self.scatter * weight, self.rows)

    def faded(self, rows: float, half_life: float) -> Moments:
        """As they count once so many more rows have come: ``0.5^(rows / half_life)`` as much. half_life 0: as much."""
        return self if half_life == 0 or rows == 0 else self.weighted(0.5 ** (rows / half_life))

    def grown(self, groups: int) -> Moments:
        """With so many groups, the new ones empty."""
        more = groups - len(self.counts)
        if more <= 0:
            return self
        counts = torch.cat([self.counts, self.counts.new_zeros(more)])
        return Moments(counts, torch.cat([self.means, self.means.new_zeros(more, self.width)]), self.scatter, self.rows)

    def ordered(self, places: list[int]) -> Moments:
        """With group k as the groups of another map have it: at places[k]."""
        size = max(places, default=-1) + 1
        counts, means = self.counts.new_zeros(size), self.means.new_zeros(size, self.width)
        index = torch.tensor(places, dtype=torch.int64, device=counts.device)
        counts[index], means[index] = self.counts[: len(places)], self.means[: len(places)]
        return Moments(counts, means, self.scatter, self.rows)

    def mapped(self, matrix: Tensor) -> Moments:
        """Of the same rows, ``matrix`` [e, d] times the d numbers before their targets in these numbers' place."""
        behind = torch.eye(self.width - matrix.shape[1], dtype=matrix.dtype, device=matrix.device)
        whole = torch.block_diag(matrix, behind) if len(behind) else matrix  # type: ignore[no-untyped-call]
        return Moments(self.counts, self.means @ whole.T, whole @ self.scatter @ whole.T, self.rows)

    # -- kept ----------------------------------------------------------------------------------------------------------

    def to(self, device: torch.device) -> Moments:
        """On a device."""
        return Moments(self.counts.to(device), self.means.to(device), self.scatter.to(device), self.rows)

    def is_finite(self) -> bool:
        """Whether every number is."""
        return bool(torch.isfinite(self.scatter).all() and torch.isfinite(self.means).all())

    def state(self) -> dict[str, Array]:
        """As host arrays by name."""
        named = {"counts": self.counts, "means": self.means, "scatter": self.scatter}
        return {name: tensor.cpu().contiguous().numpy() for name, tensor in named.items()} | {"rows": np.array([self.rows])}

    @classmethod
    def from_state(cls, state: Mapping[str, Array]) -> Moments:
        """What `state` gave, copied."""
        counts, means, scatter = (torch.tensor(state[name]) for name in ("counts", "means", "scatter"))
        return cls(counts, means, scatter, float(state["rows"][0]))


class Summing:
    """Moments that rows are added to, in place; rows wait until a block of them is full.

    half_life: in rows, 0 for none: the newest row counts 1, one that came so many rows before it a half. Blocks begin where
    the last was taken in, so the same rows with the same calls of `settle` give the same bits, however they are cut.
    """

    def __init__(self, moments: Moments, half_life: float = 0.0, waiting: Tensor | None = None) -> None:
        self._moments, self.half_life = moments, half_life
        self._owned = False  # whether the scatter may be written to
        self._numbers = {"dtype": torch.float64, "device": moments.scatter.device}
        self._rows = torch.empty((0, moments.width), **self._numbers)  # type: ignore[call-overload]
        self._groups = torch.zeros(BLOCK_ROWS, dtype=torch.int64, device=moments.scatter.device)
        self._totals = torch.zeros_like(moments.means)  # of the rows that wait, by group, where `_early`
        self._filled = 0
        if waiting is not None and len(waiting):
            waiting = waiting.to(moments.scatter.device)
            self.add(waiting[:, :-1], waiting[:, -1].long())

    @property
    def _early(self) -> bool:
        """Whether rows are totalled as they come, while they are in the processor's cache: one by one, so that it is the
        same to the bit however they are cut. On a GPU, and where what a row weighs is not known yet, with their block."""
        return self._totals.device.type == "cpu" and not self.half_life

    def _make_room(self) -> None:
        """For a block, and behind it for a row of every group."""
        groups = len(self._moments.counts)
        if len(self._rows) < BLOCK_ROWS + groups:
            old = self._rows
            self._rows = torch.empty((BLOCK_ROWS + groups, self._moments.width), **self._numbers)  # type: ignore[call-overload]
            self._rows[: self._filled] = old[: self._filled]
        if len(self._totals) < groups:
            self._totals = torch.nn.functional.pad(self._totals, (0, 0, 0, groups - len(self._totals)))

    @property
    def waiting(self) -> Tensor:
        """Rows that wait for their block to be full, their group behind them: [n, D + 1]."""
        return torch.cat([self._rows[: self._filled], self._groups[: self._filled].double().unsqueeze(1)], 1)

    @property
    def settled(self) -> Moments:
        """Without the rows that wait."""
        return self._moments

    @property
    def rows(self) -> float:
        """That have come."""
        return self._moments.rows + self._filled

    def add(self, z: Tensor, groups: Tensor | None = None) -> None:
        """More rows [n, D], each of its group (the first, where there is one)."""
        if groups is not None and len(groups):
            self._moments = self._moments.grown(int(groups.max()) + 1)
        self._make_room()
        most, start = PIECE_ROWS if self._early else BLOCK_ROWS, 0
        while start < len(z):
            end = min(len(z), start + min(most, BLOCK_ROWS - self._filled))
            self._put(z[start:end], None if groups is None else groups[start:end])
            start = end
            if self._filled == BLOCK_ROWS:
                self.settle()

    def _put(self, z: Tensor, groups: Tensor | None) -> None:
        """Rows for which there is room."""
        here = slice(self._filled, self._filled + len(z))
        self._rows[here] = z
        self._groups[here] = 0 if groups is None else groups
        if self._early:
            self._totals.index_add_(0, self._groups[here], self._rows[here])
        self._filled = here.stop

    def settle(self) -> Moments:
        """Take in the rows that wait."""
        if self._filled:
            self._moments = self._with(self._rows, in_place=True)
            self._totals.zero_()
            self._filled = 0
        return self._moments

    def moments(self) -> Moments:
        """Of all rows so far; those that wait go on waiting."""
        if not self._filled:
            return _copy(self._moments)
        rows = torch.empty((self._filled + len(self._moments.counts), self._moments.width), **self._numbers)  # type: ignore[call-overload]
        rows[: self._filled] = self._rows[: self._filled]
        return self._with(rows, in_place=False)

    def _with(self, room: Tensor, in_place: bool) -> Moments:
        """With the rows that wait, in `room`, which is written over: they are centred there, and what moved put behind."""
        rows, old, weights = self._filled, self._moments, None
        z, groups = room[:rows], self._groups[:rows]
        if self.half_life:
            ages = torch.arange(rows - 1, -1, -1, **self._numbers)  # type: ignore[call-overload]
            weights = 0.5 ** (ages / self.half_life)
            old, in_place = old.faded(rows, self.half_life), False
        counts = _counts(groups, len(old.counts), weights)
        totals = self._totals if self._early else _totals(z, groups, len(counts), weights)
        means = totals / counts.clamp(min=TINY).unsqueeze(1)
        _centre(z, groups, means, weights)
        both = old.counts + counts
        share = counts / both.clamp(min=TINY)
        apart = means - old.means
        moved = (share > 0) & (old.counts > 0)
        behind = rows + int(moved.sum())
        room[rows:behind] = (apart * (old.counts * share).sqrt().unsqueeze(1))[moved]
        scatter = _gram(room[:behind])
        if old.rows:  # else there is nothing to add to
            owned = old.scatter if in_place and self._owned else old.scatter.clone()
            scatter = owned.add_(scatter)
        self._owned = self._owned or in_place
        return Moments(both, old.means + share.unsqueeze(1) * apart, scatter, old.rows + rows)


def _counts(groups: Tensor, size: int, weights: Tensor | None) -> Tensor:
    """What the rows of each group weigh, [size]."""
    if weights is None:
        return torch.bincount(groups, minlength=size).double()
    return _totals(weights.unsqueeze(1), groups, size).squeeze(1)


def _totals(z: Tensor, groups: Tensor, size: int, weights: Tensor | None = None) -> Tensor:
    """Sums of weighted rows by their group, [size, D]: row by row on the processor; on a GPU, where the order of such sums
    is left open, as a product."""
    if z.device.type != "cpu":
        member = torch.nn.functional.one_hot(groups, size).to(z.dtype)
        return (member if weights is None else member * weights.unsqueeze(1)).T @ z
    found = z.new_zeros((size, z.shape[1]))
    return found.index_add_(0, groups, z if weights is None else z * weights.unsqueeze(1))


def _centre(z: Tensor, groups: Tensor, means: Tensor, weights: Tensor | None) -> None:
    """Rows z [n, D] less their group's mean, in place, and times the root of their weight."""
    rows = PIECE_ROWS if z.device.type == "cpu" else len(z)
    for here in (slice(start, start + rows) for start in range(0, len(z), rows)):
        z[here] -= means.index_select(0, groups[here])
    if weights is not None:
        z *= weights.sqrt().unsqueeze(1)


def _gram(z: Tensor) -> Tensor:
    """``z^T z``, by the processor's symmetric product, which takes half the operations; on a GPU by its own.

    Into memory of PyTorch's: where NumPy puts a result, products with it are rounded otherwise from run to run
    (`learning.tensors`).
    """
    if z.device.type != "cpu":
        return z.T @ z
    rows, found = z.numpy(), z.new_empty((z.shape[1], z.shape[1]))
    np.matmul(rows.T, rows, out=found.numpy())
    return found


def _alike(one: Moments, two: Moments) -> tuple[Moments, Moments]:
    if one.width != two.width:
        raise Refused("bad_shape", f"moments of {one.width} and of {two.width} numbers a row cannot be added")
    groups = max(len(one.counts), len(two.counts))
    return one.grown(groups), two.grown(groups)


def _copy(moments: Moments) -> Moments:
    return Moments(moments.counts.clone(), moments.means.clone(), moments.scatter.clone(), moments.rows)
