"""Precisions: what a Gaussian over the flat parameters knows of its curvature, by kind.

A precision is a positive semi-definite operator on R^P with the little algebra that posteriors are made of: sums, weights,
and what it does to a vector. What holds for every kind is written once, in `gaussian` and `consolidation`, in terms of
`Precision`; nobody beyond this package needs to know which kind it is. Every operation but `add_` gives a new object and
leaves its inputs as they were. Precisions of two kinds, or of two sizes, do not mix: a TypeError or ValueError says so.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self, TypeVar

import torch
from torch import Tensor

from streamcl.core.basis import Basis, Matrix, Side
from streamcl.core.eigen import eigenvectors
from streamcl.errors import UnknownFormat


@dataclass(frozen=True, slots=True)
class Curvature:
    """How steep a penalty is: its largest curvature, and the sum over all parameters (the trace)."""

    largest: float
    total: float


class Penalty(Protocol):
    """A weighted penalty as training steps need it."""

    def weigh(self, weight: float) -> None:
        """Use `weight` times the penalty from here on."""

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """Its gradient at theta, [P]."""

    def proximal(self, theta: Tensor, rate: float) -> None:
        """Move theta, in place, to the minimum of ``penalty + |theta' - theta|^2 / (2 rate)``."""


class Precision(Protocol):
    """Lambda, in units of nats per squared parameter, summed over samples."""

    kind: ClassVar[str]

    @property
    def size(self) -> int:
        """P."""

    def is_finite(self) -> bool:
        """Whether every number of it is."""

    def diagonal(self) -> Tensor:
        """The diagonal of Lambda in the parameters' own coordinates, [P]; not to be written to."""

    def trace(self) -> float:
        """The sum of the diagonal, in whatever coordinates."""

    def curvature(self) -> Curvature:
        """Its largest eigenvalue and its trace."""

    def times(self, vector: Tensor) -> Tensor:
        """``Lambda v``, [P]."""

    def plus(self, other: Self) -> Self:
        """The sum."""

    def less(self, other: Self) -> Self:
        """The difference, which need not be a precision: see `clipped`."""

    def clipped(self) -> Self:
        """With no curvature below zero, where rounding left some."""

    def weighted(self, weight: float) -> Self:
        """`weight` times it."""

    def towards(self, other: Self, share: float) -> Self:
        """``(1 - share) self + share other``."""

    def copy(self) -> Self:
        """One of its own, for `add_`."""

    def add_(self, other: Self) -> None:
        """The sum in place, without new memory; for a copy."""

    def mean(self, shift: Tensor) -> Tensor:
        """Where ``Lambda m = shift``, [P]; 0 in directions without precision."""

    def potential(self, theta: Tensor, shift: Tensor) -> float:
        """``1/2 theta Lambda theta - shift theta`` in the directions that have precision."""

    def distance(self, theta: Tensor, shift: Tensor, least: float) -> float:
        """``1/2 (theta - m) Lambda (theta - m)`` in the directions whose precision is above `least`."""

    def sample(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from ``N(centre, 1 / Lambda)``, [P]; at its centre in directions without precision."""

    def penalty(self, shift: Tensor, weight: float) -> Penalty:
        """`weight` times the penalty of the Gaussian of this precision and shift."""

    def within(self, basis: Basis) -> Self:
        """The same in another basis, where it depends on one."""

    def axes(self, pinned: bool = False) -> tuple[Basis, Tensor] | None:
        """The basis in which it is a diagonal, and that [P]; None where that is the parameters' own, or too dear.

        pinned: as of `eigen`, for who works along the axes one by one.
        """

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """A working copy."""

    def on_host(self) -> Self:
        """The same with its numbers on the host; a basis stays where it is."""

    def state(self) -> dict[str, Tensor]:
        """All of it, by name."""


@dataclass(frozen=True, eq=False, slots=True)
class Diagonal:
    """A precision for every parameter by itself.

    values: [P], not negative. Raises ValueError unless it is a vector. What holds it together is `Precision`, each of whose
    operations is a method.
    """

    values: Tensor
    kind: ClassVar[str] = "diagonal"

    def __post_init__(self) -> None:
        if self.values.ndim != 1:
            raise ValueError(f"precision: expected a vector [P], got {list(self.values.shape)}")

    @classmethod
    def isotropic(cls, precision: float, like: Tensor) -> Diagonal:
        """The same for every entry of `like` [P]; takes the memory of one number."""
        return cls(torch.tensor(precision, dtype=like.dtype, device=like.device).expand_as(like))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Diagonal:
        """What `state` gave."""
        return cls(state["precision"])

    def state(self) -> dict[str, Tensor]:
        """Lambda [P]."""
        return {"precision": self.values}

    @property
    def size(self) -> int:
        """P."""
        return self.values.numel()

    def is_finite(self) -> bool:
        """Whether every number of it is."""
        return is_finite(self.values)

    def diagonal(self) -> Tensor:
        """Lambda, [P]."""
        return self.values

    def trace(self) -> float:
        """The sum of the entries."""
        return float(self.values.sum())

    def curvature(self) -> Curvature:
        """The largest entry, and their sum."""
        return Curvature(float(self.values.max()), self.trace())

    def times(self, vector: Tensor) -> Tensor:
        """Elementwise."""
        return self.values * vector

    def plus(self, other: Diagonal) -> Diagonal:
        """The sum."""
        return Diagonal(self.values + _alike(self, other).values)

    def less(self, other: Diagonal) -> Diagonal:
        """The difference."""
        return Diagonal(self.values - _alike(self, other).values)

    def clipped(self) -> Diagonal:
        """With no entry below zero."""
        return Diagonal(self.values.clamp(min=0))

    def weighted(self, weight: float) -> Diagonal:
        """`weight` times it."""
        return Diagonal(self.values * weight)

    def towards(self, other: Diagonal, share: float) -> Diagonal:
        """``(1 - share) self + share other``."""
        return Diagonal(torch.lerp(self.values, _alike(self, other).values, share))

    def copy(self) -> Diagonal:
        """One of its own."""
        return Diagonal(self.values.clone())

    def add_(self, other: Diagonal) -> None:
        """The sum in place."""
        self.values.add_(_alike(self, other).values)

    def mean(self, shift: Tensor) -> Tensor:
        """``eta / Lambda``, [P]; 0 where there is no precision."""
        return torch.where(self.values > 0, shift / self.values.clamp(min=torch.finfo(shift.dtype).tiny), 0)

    def potential(self, theta: Tensor, shift: Tensor) -> float:
        """``sum 1/2 Lambda theta^2 - eta theta`` where Lambda > 0; divides nothing."""
        return float(torch.where(self.values > 0, (0.5 * self.values * theta - shift) * theta, 0.0).sum())

    def distance(self, theta: Tensor, shift: Tensor, least: float) -> float:
        """``1/2 sum (Lambda theta - eta)^2 / Lambda`` where Lambda is above `least`."""
        away = self.values * theta - shift
        return 0.5 * float(torch.where(self.values > least, away.square() / self.values, 0.0).sum())

    def sample(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from ``N(centre, 1 / Lambda)``; an entry without precision stays at its centre."""
        return centre + _noise(centre, generator) * self.deviations().to(centre.dtype)

    def deviations(self) -> Tensor:
        """``1 / sqrt(Lambda)``, [P]; 0 where there is no precision."""
        return torch.where(self.values > 0, self.values.clamp(min=torch.finfo(self.values.dtype).tiny).rsqrt(), 0)

    def penalty(self, shift: Tensor, weight: float) -> Penalty:
        """One fused multiply-add a step."""
        return _DiagonalPenalty(self.values, shift, weight)

    def within(self, basis: Basis) -> Diagonal:
        """Itself."""
        return self

    def axes(self, pinned: bool = False) -> None:
        """The parameters' own."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Diagonal:
        """A working copy."""
        return Diagonal(self.values.to(device, dtype))

    def on_host(self) -> Diagonal:
        """On the host."""
        return Diagonal(self.values.cpu())


class _DiagonalPenalty:
    """``weight * (1/2 sum Lambda theta^2 - sum eta theta)``; shares Lambda and eta [P] with the Gaussian it is of."""

    def __init__(self, precision: Tensor, shift: Tensor, weight: float) -> None:
        self.precision = precision
        self.shift = shift
        self._offset = torch.empty_like(shift)  # -weight * eta
        self.weigh(weight)

    def weigh(self, weight: float) -> None:
        """Another weight, in one pass over [P] and without new memory."""
        self.weight = weight
        torch.mul(self.shift, -weight, out=self._offset)

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """``weight * (Lambda * theta - eta)``, [P], in one fused multiply-add."""
        return torch.addcmul(self._offset, self.precision, theta, value=self.weight, out=out)

    def proximal(self, theta: Tensor, rate: float) -> None:
        """``theta <- (theta + r eta) / (1 + r Lambda)`` with r = rate * weight, in place: stable at any rate."""
        step = rate * self.weight
        theta.add_(self.shift, alpha=step).div_(torch.add(1.0, self.precision, alpha=step))


@dataclass(frozen=True, eq=False, slots=True)
class Full:
    """A precision between any two parameters, for few of them: P^2 numbers, P^3 operations where one is inverted.

    matrix: [P, P], symmetric and positive semi-definite. Raises ValueError unless it is square. What holds it together is
    `Precision`, each of whose operations is a method.
    """

    matrix: Tensor
    kind: ClassVar[str] = "full"

    def __post_init__(self) -> None:
        if self.matrix.ndim != 2 or self.matrix.shape[0] != self.matrix.shape[1]:
            raise ValueError(f"precision: expected a square matrix [P, P], got {list(self.matrix.shape)}")

    @classmethod
    def isotropic(cls, precision: float, like: Tensor) -> Full:
        """`precision` times the identity, for vectors like `like` [P]."""
        return cls(precision * torch.eye(len(like), dtype=like.dtype, device=like.device))

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Full:
        """What `state` gave."""
        return cls(state["precision"])

    def state(self) -> dict[str, Tensor]:
        """Lambda [P, P]."""
        return {"precision": self.matrix}

    @property
    def size(self) -> int:
        """P."""
        return len(self.matrix)

    def is_finite(self) -> bool:
        """Whether every number of it is."""
        return is_finite(self.matrix)

    def diagonal(self) -> Tensor:
        """The matrix's diagonal, [P]."""
        return self.matrix.diagonal()

    def trace(self) -> float:
        """The matrix's."""
        return float(self.matrix.trace())

    def curvature(self) -> Curvature:
        """The largest eigenvalue, and the trace."""
        return Curvature(float(torch.linalg.eigvalsh(self.matrix)[-1]), self.trace())

    def times(self, vector: Tensor) -> Tensor:
        """The matrix's product with a vector [P]."""
        return self.matrix @ vector

    def plus(self, other: Full) -> Full:
        """The sum."""
        return Full(self.matrix + _alike(self, other).matrix)

    def less(self, other: Full) -> Full:
        """The difference."""
        return Full(self.matrix - _alike(self, other).matrix)

    def clipped(self) -> Full:
        """With no eigenvalue below zero; where none is, the same numbers."""
        values, vectors = torch.linalg.eigh(self.matrix)
        if values[0] >= 0:
            return Full(self.matrix.clone())
        return Full((vectors * values.clamp(min=0)) @ vectors.T)

    def weighted(self, weight: float) -> Full:
        """`weight` times it."""
        return Full(self.matrix * weight)

    def towards(self, other: Full, share: float) -> Full:
        """``(1 - share) self + share other``."""
        return Full(torch.lerp(self.matrix, _alike(self, other).matrix, share))

    def copy(self) -> Full:
        """One of its own."""
        return Full(self.matrix.clone())

    def add_(self, other: Full) -> None:
        """The sum in place."""
        self.matrix.add_(_alike(self, other).matrix)

    def mean(self, shift: Tensor) -> Tensor:
        """``Lambda^+ eta``, [P]: nothing in directions without precision."""
        values, vectors = self._held(0.0)
        return vectors @ ((vectors.T @ shift) / values)

    def potential(self, theta: Tensor, shift: Tensor) -> float:
        """``1/2 theta Lambda theta - eta theta`` in the directions that have precision."""
        values, vectors = self._held(0.0)
        along = vectors.T @ theta
        return float((0.5 * values * along - vectors.T @ shift) @ along)

    def distance(self, theta: Tensor, shift: Tensor, least: float) -> float:
        """``1/2 (Lambda theta - eta) Lambda^+ (Lambda theta - eta)`` in the directions of precision above `least`."""
        values, vectors = self._held(least)
        away = values * (vectors.T @ theta) - vectors.T @ shift
        return 0.5 * float((away.square() / values).sum())

    def sample(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from ``N(centre, Lambda^+)``."""
        values, vectors = self._held(0.0)
        deviations: Tensor = vectors * values.rsqrt()
        return centre + (deviations @ (vectors.T @ _noise(centre, generator).to(vectors.dtype))).to(centre.dtype)

    def penalty(self, shift: Tensor, weight: float) -> Penalty:
        """One product of matrix and vector a step."""
        return _FullPenalty(self.matrix, shift, weight)

    def within(self, basis: Basis) -> Full:
        """Itself."""
        return self

    def axes(self, pinned: bool = False) -> None:
        """Not looked for."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Full:
        """A working copy."""
        return Full(self.matrix.to(device, dtype))

    def on_host(self) -> Full:
        """On the host."""
        return Full(self.matrix.cpu())

    def _held(self, least: float) -> tuple[Tensor, Tensor]:
        """Eigenvalues above `least`, and above what is rounding, [r], and their eigenvectors [P, r]."""
        values, vectors = torch.linalg.eigh(self.matrix)
        rounding = float(values[-1].clamp(min=0)) * len(values) * torch.finfo(values.dtype).eps
        held = values > max(least, rounding)
        return values[held], vectors[:, held]


class _FullPenalty:
    """``weight * (1/2 theta Lambda theta - eta theta)``; shares Lambda [P, P] and eta [P] with the Gaussian it is of."""

    def __init__(self, matrix: Tensor, shift: Tensor, weight: float) -> None:
        self.matrix = matrix
        self.shift = shift
        self.weight = weight

    def weigh(self, weight: float) -> None:
        """Another weight."""
        self.weight = weight

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """``weight * (Lambda theta - eta)``, [P]."""
        return torch.addmv(self.shift, self.matrix, theta, beta=-self.weight, alpha=self.weight, out=out)

    def proximal(self, theta: Tensor, rate: float) -> None:
        """``theta <- (1 + r Lambda)^-1 (theta + r eta)`` with r = rate * weight, in place."""
        step = rate * self.weight
        identity = torch.eye(len(theta), dtype=theta.dtype, device=theta.device)
        theta.copy_(torch.linalg.solve(identity + step * self.matrix, theta + step * self.shift))


@dataclass(frozen=True, eq=False, slots=True)
class Layered:
    """A diagonal in each layer's eigenbasis, and a full block for layers that are small (`basis`, `Block`).

    values: [P], not negative, in the basis' coordinates; 0 in the places of blocks. One of another basis is re-expressed in
    this one's (`Basis.expressed`) before it is combined with it: without its off-diagonal part here. What holds it together
    is `Precision`, each of whose operations is a method.
    """

    basis: Basis
    values: Tensor
    blocks: tuple[Block, ...] = ()
    kind: ClassVar[str] = "layered"

    def __post_init__(self) -> None:
        if self.values.shape != (self.basis.size,):
            raise ValueError(f"precision: expected a vector [{self.basis.size}], got {list(self.values.shape)}")

    @classmethod
    def isotropic(cls, precision: float, like: Tensor) -> Layered:
        """The same for every entry of `like` [P], in the parameters' own coordinates; takes the memory of one number."""
        return cls(Basis.unturned(len(like)), Diagonal.isotropic(precision, like).values)

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Layered:
        """What `state` gave."""
        basis = Basis.from_state(state)
        blocks = tuple(Block(matrix, state[f"block.{matrix.key}"]) for matrix in basis.matrices if matrix.stacked)
        return cls(basis, state["precision"], blocks)

    def state(self) -> dict[str, Tensor]:
        """The values [P], the blocks and the basis."""
        blocks = {f"block.{block.matrix.key}": block.values for block in self.blocks}
        return {"precision": self.values, **blocks, **self.basis.state()}

    @property
    def size(self) -> int:
        """P."""
        return self.basis.size

    def is_finite(self) -> bool:
        """Whether every number of it is."""
        return is_finite(self.values) and all(is_finite(block.values) for block in self.blocks)

    def axes(self, pinned: bool = False) -> tuple[Basis, Tensor]:
        """The basis in which all of it is a diagonal, and that [P]: blocks are turned to their eigenvectors."""
        if not self.blocks:
            return self.basis, self.values
        values, sides = self.values.clone(), dict(zip(self.basis.matrices, self.basis.sides, strict=True))
        places = dict(self.basis.offsets())
        for block in self.blocks:
            found, vectors = eigenvectors(block.values, pinned)
            values[places[block.matrix]] = found.clamp(min=0)
            sides[block.matrix] = (Side(vectors, found), None)
        return Basis(self.size, self.basis.matrices, tuple(sides.values())), values

    def _as_diagonal(self) -> tuple[Basis, Diagonal]:
        basis, values = self.axes()
        return basis, Diagonal(_without_rounding(values) if self.blocks else values)

    def diagonal(self) -> Tensor:
        """The diagonal in the parameters' own coordinates, [P]."""
        own = self.basis.diagonal(self.values)
        for block in self.blocks:
            block.matrix.scatter(block.values.diagonal().unsqueeze(1), own)
        return own

    def trace(self) -> float:
        """The sum of the entries, and of the blocks' diagonals."""
        return float(self._spread().sum())

    def curvature(self) -> Curvature:
        """The largest entry, and their sum."""
        return self._as_diagonal()[1].curvature()

    def times(self, vector: Tensor) -> Tensor:
        """Elementwise in the basis."""
        turned = self.basis.into(vector)
        product = self.values * turned
        for place, block in self.placed():
            product[place] = block @ turned[place]
        return self.basis.back(product)

    def placed(self) -> list[tuple[slice, Tensor]]:
        """The blocks' numbers, each with its place in coordinates."""
        places = dict(self.basis.offsets())
        return [(places[block.matrix], block.values) for block in self.blocks]

    def within(self, basis: Basis) -> Layered:
        """The same in another basis, without what is off the diagonal there; blocks stay whole."""
        if basis is self.basis:
            return self
        own, blocks = {block.matrix: block for block in self.blocks}, []
        values = basis.expressed(self.basis, self._spread())
        for matrix, place in basis.offsets():
            if matrix.stacked:
                blocks.append(own.get(matrix) or Block(matrix, torch.diag(values[place])))
        values = values.clone() if blocks else values
        for place in (place for matrix, place in basis.offsets() if matrix.stacked):
            values[place] = 0
        return Layered(basis, values, tuple(blocks))

    def _spread(self) -> Tensor:
        """The values with the blocks' diagonals in their places."""
        if not self.blocks:
            return self.values
        values = self.values.clone()
        for place, block in self.placed():
            values[place] = block.diagonal()
        return values

    def _with(self, values: Tensor, blocks: Iterable[Tensor]) -> Layered:
        pairs = zip(self.blocks, blocks, strict=True)
        return Layered(self.basis, values, tuple(Block(block.matrix, numbers) for block, numbers in pairs))

    def _both(self, other: Layered) -> list[tuple[Tensor, Tensor]]:
        """The blocks of both, once the other is in this basis."""
        return [(one.values, two.values) for one, two in zip(self.blocks, other.blocks, strict=True)]

    def _here(self, other: Layered) -> Layered:
        return _alike(self, other).within(self.basis)

    def plus(self, other: Layered) -> Layered:
        """The sum."""
        other = self._here(other)
        return self._with(self.values + other.values, (a + b for a, b in self._both(other)))

    def less(self, other: Layered) -> Layered:
        """The difference."""
        other = self._here(other)
        return self._with(self.values - other.values, (a - b for a, b in self._both(other)))

    def clipped(self) -> Layered:
        """With no entry, and no eigenvalue of a block, below zero."""
        return self._with(self.values.clamp(min=0), (Full(block.values).clipped().matrix for block in self.blocks))

    def weighted(self, weight: float) -> Layered:
        """`weight` times it."""
        return self._with(self.values * weight, (block.values * weight for block in self.blocks))

    def towards(self, other: Layered, share: float) -> Layered:
        """``(1 - share) self + share other``."""
        other = self._here(other)
        return self._with(
            torch.lerp(self.values, other.values, share), (torch.lerp(a, b, share) for a, b in self._both(other))
        )

    def copy(self) -> Layered:
        """One of its own."""
        return self._with(self.values.clone(), (block.values.clone() for block in self.blocks))

    def add_(self, other: Layered) -> None:
        """The sum in place."""
        other = self._here(other)
        self.values.add_(other.values)
        for mine, theirs in self._both(other):
            mine.add_(theirs)

    def mean(self, shift: Tensor) -> Tensor:
        """``Lambda^-1 eta``, [P]; 0 in directions without precision."""
        basis, diagonal = self._as_diagonal()
        return basis.back(diagonal.mean(basis.into(shift)))

    def potential(self, theta: Tensor, shift: Tensor) -> float:
        """``1/2 theta Lambda theta - eta theta`` in the directions that have precision."""
        basis, diagonal = self._as_diagonal()
        return diagonal.potential(basis.into(theta), basis.into(shift))

    def distance(self, theta: Tensor, shift: Tensor, least: float) -> float:
        """``1/2 sum (Lambda theta - eta)^2 / Lambda`` over the axes whose Lambda is above `least`."""
        basis, diagonal = self._as_diagonal()
        return diagonal.distance(basis.into(theta), basis.into(shift), least)

    def sample(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """A draw from ``N(centre, 1 / Lambda)``; at its centre along axes without precision.

        What is drawn are the parameters' own numbers, turned by the symmetric root of ``1 / Lambda``: which eigenvectors
        stand for a block makes no difference.
        """
        basis, diagonal = self._as_diagonal()
        noise = basis.into(_noise(centre, generator).to(diagonal.values.dtype))
        return centre + basis.back(noise * diagonal.deviations()).to(centre.dtype)

    def sample_along(self, centre: Tensor, generator: torch.Generator) -> Tensor:
        """As `sample`, of numbers drawn along the axes, as they come: what `Vintage.pins` is not."""
        basis, diagonal = self._as_diagonal()
        away = diagonal.sample(torch.zeros_like(diagonal.values), generator)
        return centre + basis.back(away).to(centre.dtype)

    def penalty(self, shift: Tensor, weight: float) -> Penalty:
        """Turned there and back at every step: cheaper for who works in the `axes` himself."""
        if not self.basis.matrices:  # as of a prior: the parameters' own coordinates, in their order
            return Diagonal(self.values).penalty(shift, weight)
        return _LayeredPenalty(self, shift, weight)

    def to(self, device: torch.device, dtype: torch.dtype) -> Layered:
        """A working copy, a diagonal in its `axes`: rounded, a block would lose what is small beside its largest."""
        basis, values = self.axes()
        return Layered(basis.to(device, dtype), values.to(device, dtype))

    def on_host(self) -> Layered:
        """On the host, blocks and all."""
        return self._with(self.values.cpu(), (block.values.cpu() for block in self.blocks))


@dataclass(frozen=True, eq=False, slots=True)
class Block:
    """The precision between any two of a matrix' parameters, [p, p]."""

    matrix: Matrix
    values: Tensor


class _LayeredPenalty:
    """``weight * (1/2 theta Lambda theta - eta theta)``, for steps on the parameters' own coordinates."""

    def __init__(self, precision: Layered, shift: Tensor, weight: float) -> None:
        self._precision, self._shift, self.weight = precision, shift, weight
        self._turned = precision.basis.into(shift)

    def weigh(self, weight: float) -> None:
        """Another weight."""
        self.weight = weight

    def gradient(self, theta: Tensor, out: Tensor | None = None) -> Tensor:
        """``weight * (Lambda theta - eta)``, [P]."""
        product = self._precision.times(theta)
        return torch.sub(product.mul_(self.weight), self._shift, alpha=self.weight, out=out)

    def proximal(self, theta: Tensor, rate: float) -> None:
        """``theta <- (1 + r Lambda)^-1 (theta + r eta)`` with r = rate * weight, in place: stable at any rate."""
        step, basis = rate * self.weight, self._precision.basis
        turned = basis.into(theta).add_(self._turned, alpha=step)
        moved = turned / torch.add(1.0, self._precision.values, alpha=step)
        for place, numbers in self._precision.placed():
            identity = torch.eye(len(numbers), dtype=theta.dtype, device=theta.device)
            moved[place] = torch.linalg.solve(identity + step * numbers, turned[place])
        basis.back(moved, theta)


def _noise(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)


def _without_rounding(values: Tensor) -> Tensor:
    """Eigenvalues with those at 0 that are rounding beside the largest."""
    rounding = float(values.max().clamp(min=0)) * 16 * torch.finfo(values.dtype).eps
    return torch.where(values > rounding, values, 0.0)


K = TypeVar("K", Diagonal, Full, Layered)
KINDS: dict[str, type[Any]] = {each.kind: each for each in (Diagonal, Full, Layered)}


def of_kind(kind: str) -> type[Any]:
    """The class of a kind; raises UnknownFormat."""
    if kind not in KINDS:
        raise UnknownFormat(f"a posterior of curvature {kind!r}; this streamcl knows {', '.join(KINDS)}: upgrade it")
    return KINDS[kind]


def observed(sums: Tensor) -> Precision:
    """What was summed over samples as a precision: squared gradients [P], or their products [P, P]."""
    found: Precision = Full(sums) if sums.ndim == 2 else Diagonal(sums)
    return found


def is_finite(numbers: Tensor) -> bool:
    """Whether every entry is finite: true if their sum is, which is much cheaper to find."""
    return math.isfinite(float(numbers.sum())) or bool(torch.isfinite(numbers).all())


def _alike(one: K, other: K) -> K:
    """`other`, if it can be combined with `one`."""
    if type(one) is not type(other):
        raise TypeError(f"expected a {one.kind} precision, as it is to be combined with one, got {other!r}"[:300])
    if one.size != other.size:
        raise ValueError(f"expected precisions over the same parameters, got {one.size} and {other.size}")
    return other
