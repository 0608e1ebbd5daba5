"""Coordinates in which a penalty is a diagonal: each layer's Kronecker eigenbasis, other parameters in their own.

For a layer with weight W [out, in] and a bias, seen as one matrix [W b] of `rows` by `columns`, with inputs a (a 1 at
their end) and gradients g of its outputs, the eigenvectors U_A of ``A = sum over tasks of mean a a^T`` and U_G of ``G = sum
g g^T`` turn it to the coordinates ``U_G^T [W b] U_A`` (George et al. 2018, EKFAC; Liu et al. 2018, "Rotate your networks").
A convolution is such a layer of its unfolded inputs (Grosse & Martens 2016), one that is shared over tokens has the sum
over them (Eschenhagen et al. 2023, "expand"), an embedding is turned on the side of its features only. What has no known
inputs (a recurrent layer's weights) takes the moments of its gradients on both sides instead, as Shampoo does.

Where turning what goes through a layer is to take less than n^2 multiplications a row, a wide side is turned to its leading
eigenvectors only, completed by whatever r reflections leave of the rest: 2 r n. There the rest of the moments, and of a
precision, is a diagonal in directions that are no eigenvectors. Of a side wider than `WIDEST` not even the moments are
kept, but what a fixed random matrix O makes of them, M O (Nystrom's approximation; Tropp et al. 2017): it too leads, and
all its other directions have one precision, row by row.

Vectors turn exactly, back and forth. Coordinates are one vector [P] too: matrix by matrix, then everything else in its
order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from streamcl.core import eigen
from streamcl.core.layout import Layout, Part

LEAST_LEADING, LEADING = 32, 8  # of a side of n that leads, so many eigenvectors, or n / LEADING where that is more;
WORTH_LEADING = 6  # n is at least so many times that, or all are taken
WIDEST = 4096  # of a side with more entries, moments and vectors would take the memory of their square
WIDE_RATIO = 128  # or more entries than so many times the other side's: they would take many times the parameters' memory
LEAST_WIDE, MOST_WIDE = 16, 128  # eigenvectors that lead on such a side, beside as many as the other side has entries;
OVERSAMPLED = 32  # columns of O beyond them
SINGULAR = 1e-11  # of the largest eigenvalue of O^T M O: below, rounding


@dataclass(frozen=True, slots=True)
class Matrix:
    """Some parameters as one matrix of rows by columns; what is not a column of a weight is its bias, the last one.

    names: of the parameters, the weight first. places: theirs in a flat vector. stacked: all numbers in one column instead.
    """

    names: tuple[str, ...]
    places: tuple[tuple[int, int], ...]
    rows: int
    columns: int
    stacked: bool = False

    @classmethod
    def of(cls, weight: Part, bias: Part | None = None) -> Matrix:
        """A weight [rows, ...], and the bias [rows] that stands beside it."""
        rows, columns = weight.shape[0], math.prod(weight.shape[1:])
        parts = [weight] if bias is None else [weight, bias]
        return cls(*_named(parts), rows, columns + len(parts) - 1)

    @classmethod
    def stack(cls, parts: Sequence[Part]) -> Matrix:
        """All numbers of some parameters in one column."""
        return cls(*_named(parts), sum(part.place.stop - part.offset for part in parts), 1, stacked=True)

    @property
    def key(self) -> str:
        """Its name: the weight's."""
        return self.names[0]

    @property
    def size(self) -> int:
        """How many numbers it has."""
        return self.rows * self.columns

    @property
    def biased(self) -> bool:
        """Whether its last column is a bias."""
        return len(self.names) > 1 and not self.stacked

    def joined(self, tensors: Sequence[Tensor]) -> Tensor:
        """[..., rows, columns] of its parameters' [..., *shape] (or flattened), in the order of `names`."""
        if self.stacked:
            lead = tensors[0].shape[: tensors[0].ndim - 1]
            return torch.cat(list(tensors), -1).reshape(*lead, self.rows, 1)
        weight = tensors[0]
        weight = weight.reshape(*weight.shape[:-1], self.rows, self.columns - self.biased)
        return torch.cat([weight, tensors[1].unsqueeze(-1)], -1) if self.biased else weight

    def gather(self, vector: Tensor) -> Tensor:
        """[rows, columns] of a flat vector [P]."""
        return self.joined([vector[start:stop] for start, stop in self.places])

    def scatter(self, values: Tensor, vector: Tensor) -> None:
        """Put [rows, columns] where they belong in a flat vector [P]."""
        if self.stacked:
            at = 0
            for start, stop in self.places:
                vector[start:stop] = values[at : at + stop - start, 0]
                at += stop - start
            return
        start, stop = self.places[0]
        vector[start:stop].view(self.rows, -1).copy_(values[:, : self.columns - self.biased])
        if self.biased:
            start, stop = self.places[1]
            vector[start:stop] = values[:, -1]


def _named(parts: Sequence[Part]) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    return tuple(part.name for part in parts), tuple((part.offset, part.place.stop) for part in parts)


@dataclass(frozen=True, eq=False, slots=True)
class Reflections:
    """An orthonormal matrix ``Q = 1 - V T V^T`` as a product of r reflections (Schreiber & Van Loan 1989).

    v: [n, r], t: [r, r]. What it turns, [..., n], takes 2 r n multiplications a row.
    """

    v: Tensor
    t: Tensor
    _into: Tensor = field(init=False, repr=False)
    _back: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "v", self.v.contiguous())  # as read from a file, for the same bits
        object.__setattr__(self, "t", self.t.contiguous())
        object.__setattr__(self, "_into", self.v @ self.t)
        object.__setattr__(self, "_back", self.v @ self.t.T)

    @classmethod
    def onto(cls, leading: Tensor, pinned: bool = True) -> Reflections:
        """With orthonormal columns [n, r], up to their signs, as Q's first ones.

        pinned: what completes them does not depend on rounding, as LAPACK's choice does where a pivot is next to 0.
        """
        reflectors, scales = eigen.reflectors(leading) if pinned else torch.geqrf(leading)
        return cls(*eigen.compact(reflectors, scales))

    def into(self, rows: Tensor) -> Tensor:
        """``rows Q``."""
        return self._reflected(rows, self._into)

    def back(self, rows: Tensor) -> Tensor:
        """``rows Q^T``."""
        return self._reflected(rows, self._back)

    def _reflected(self, rows: Tensor, by: Tensor) -> Tensor:
        flat = rows.reshape(-1, rows.shape[-1])
        return torch.addmm(flat, flat @ by, self.v.T, alpha=-1).view(rows.shape)

    def to(self, device: torch.device, dtype: torch.dtype) -> Reflections:
        """A working copy."""
        return Reflections(self.v.to(device, dtype), self.t.to(device, dtype))


@dataclass(frozen=True, eq=False, slots=True)
class Side:
    """One side of a matrix: orthonormal vectors [n, m] in columns, and the moments [m] along them.

    Eigenvectors all of them; with reflections, the first r are, and the others are what completes them. Of a wide side only
    those r are written down, m = r, and `rest` is the moment along any other direction. Row by row in memory, as it is read
    from a file: products of the other order round otherwise.
    """

    vectors: Tensor
    values: Tensor
    reflections: Reflections | None = None
    rest: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "vectors", self.vectors.contiguous())

    @classmethod
    def of(cls, moments: Tensor, lead: int = 0, pinned: bool = True) -> Side:
        """The eigenvectors of moments [n, n], as of `eigen`; so many of them that lead, unless there is no `lead`."""
        values, vectors = eigen.eigenvectors((moments + moments.T) / 2, pinned, lead)
        if not lead:
            return cls(vectors, values.clamp(min=0))
        reflections = Reflections.onto(vectors.flip(1), pinned)
        turned = reflections.into(torch.eye(len(moments), dtype=vectors.dtype, device=vectors.device))
        return cls(turned, ((moments @ turned) * turned).sum(0).clamp(min=0), reflections)

    @classmethod
    def wide(cls, sketch: Tensor, pinned: bool = True) -> Side:
        """Of moments M [n, n], known by ``sketch = M O`` [n, s]: eigenvectors that lead, and the mean along all others."""
        random, most = sketched(*sketch.shape).to(sketch.device), sketch.shape[1] - OVERSAMPLED
        core, turning = torch.linalg.eigh((random.T @ sketch + sketch.T @ random) / 2)
        known = core > SINGULAR * core[-1].clamp(min=0)  # fewer than s where there were fewer rows
        half = torch.where(known, core.clamp(min=torch.finfo(core.dtype).tiny).rsqrt(), 0.0) * (sketch @ turning)
        vectors, roots, _ = torch.linalg.svd(half, full_matrices=False)
        values, vectors = roots[:most].square(), vectors[:, :most]
        if pinned:
            values, vectors = eigen.leading(values, vectors)
        trace = float((random * sketch).sum()) / sketch.shape[1]  # in expectation, as O's entries are independent
        rest = max(0.0, trace - float(values.sum())) / (len(sketch) - len(values))
        reflections = Reflections.onto(vectors, pinned)
        eye = torch.eye(len(sketch), len(values), dtype=sketch.dtype, device=sketch.device)
        return cls(eye - reflections.v @ (reflections.t @ reflections.v[: len(values)].T), values, reflections, rest)

    @property
    def entries(self) -> int:
        """n."""
        return len(self.vectors)

    @property
    def is_wide(self) -> bool:
        """Whether only the leading vectors are written down."""
        return self.vectors.shape[1] < self.entries

    @property
    def leads(self) -> int:
        """How many vectors are eigenvectors that lead; 0: all are."""
        return 0 if self.reflections is None else self.reflections.v.shape[1]

    @property
    def cost(self) -> int:
        """Multiplications to turn one row."""
        return turning_cost(self.entries, self.leads)

    def with_moments(self, more: Tensor, leads: bool, pinned: bool = True) -> Side:
        """Once more moments [n, n] have come, or a sketch of them [n, s]; as many eigenvectors lead as before.

        As the outputs grow, a side may have become wide, or no longer be.
        """
        rest = self.rest if self.is_wide else 0.0
        beyond = self.vectors * (self.values - rest)
        if more.shape[0] == more.shape[1]:
            before = beyond @ self.vectors.T
            if self.is_wide:
                before.diagonal().add_(rest)
            if self.reflections is not None and not self.is_wide:
                return Side.of(before + more, self.reflections.v.shape[1], pinned)
            return Side.of(before + more, leading(len(more)) if leads else 0, pinned)
        random = sketched(*more.shape).to(more.device)
        return Side.wide(beyond @ (self.vectors.T @ random) + rest * random + more, pinned)

    def into(self, rows: Tensor) -> Tensor:
        """What is [..., n] in coordinates."""
        return rows @ self.vectors if self.reflections is None else self.reflections.into(rows)

    def back(self, rows: Tensor) -> Tensor:
        """What `into` gave rows [..., n]."""
        return rows @ self.vectors.T if self.reflections is None else self.reflections.back(rows)

    def own(self, values: Tensor) -> Tensor:
        """The diagonal, in the entries themselves, of what is a diagonal [..., n] in coordinates."""
        return self._through(self.vectors.square(), values)

    def restated(self, values: Tensor, there: Side | None) -> Tensor:
        """The diagonal here of what is a diagonal [..., n] in the coordinates of `there`, None the entries themselves: by
        the squares of ``U_here^T U_there``. The trace stays."""
        turning = (self.vectors.T if there is None else self.vectors.T @ there.vectors).square()
        turned = values @ turning.T if there is None else there._through(turning, values)
        if not self.is_wide:
            return turned
        left = (values.sum(-1, keepdim=True) - turned.sum(-1, keepdim=True)) / (self.entries - turned.shape[-1])
        return torch.cat([turned, left.expand(*left.shape[:-1], self.entries - turned.shape[-1])], -1)

    def _through(self, squares: Tensor, values: Tensor) -> Tensor:
        """What of diagonals [..., n] in coordinates lies in directions [..., k], by their squared overlaps [k, m] with the
        vectors that are written down; each has a length of 1."""
        if not self.is_wide:
            return values @ squares.T
        first, rest = self._parts(values)
        return first @ squares.T + rest * (1 - squares.sum(1))

    def evened(self, values: Tensor) -> Tensor:
        """Diagonals [..., n] in coordinates, with the mean in every place beyond the vectors that are written down."""
        if not self.is_wide:
            return values
        first, rest = self._parts(values)
        return torch.cat([first, rest.expand(*rest.shape[:-1], self.entries - first.shape[-1])], -1)

    def _parts(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """Along the vectors that are written down, and [..., 1] the mean of the others."""
        most = self.vectors.shape[1]
        return values[..., :most], values[..., most:].mean(-1, keepdim=True)

    def to(self, device: torch.device, dtype: torch.dtype) -> Side:
        """A working copy."""
        reflections = self.reflections and self.reflections.to(device, dtype)
        return Side(self.vectors.to(device, dtype), self.values.to(device, dtype), reflections, self.rest)

    def state(self, name: str) -> dict[str, Tensor]:
        """All of it, under a name."""
        arrays = {name: self.vectors, f"{name}.moments": self.values}
        if self.reflections is not None:
            arrays |= {f"{name}.reflections": self.reflections.v, f"{name}.factor": self.reflections.t}
        if self.is_wide:
            arrays[f"{name}.rest"] = torch.tensor(self.rest, dtype=torch.float64)
        return arrays

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor], name: str) -> Side | None:
        """What `state` gave; None where there is nothing of that name."""
        if name not in state:
            return None
        v, rest = state.get(f"{name}.reflections"), state.get(f"{name}.rest")
        reflections = None if v is None else Reflections(v, state[f"{name}.factor"])
        return cls(state[name], state[f"{name}.moments"], reflections, 0.0 if rest is None else float(rest))


@cache
def sketched(size: int, columns: int) -> Tensor:
    """O [size, columns]: standard normal, the same for a size always."""
    return torch.randn(size, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(size))


def wide_leading(other: int) -> int:
    """How many eigenvectors lead on a wide side of a matrix whose other side has so many entries: a small multiple of its
    parameters in memory."""
    return min(MOST_WIDE, max(LEAST_WIDE, other))


def sketch_shape(size: int, other: int) -> tuple[int, int]:
    """Of what is summed of a side of so many entries: [n, n] moments, or a sketch of them."""
    return size, wide_leading(other) + OVERSAMPLED if is_wide(size, other) else size


def is_wide(size: int, other: int) -> bool:
    """Whether only leading eigenvectors of a side are written down, where the other side has `other` entries."""
    return size > WIDEST or size > WIDE_RATIO * other


def turning_cost(entries: int, leads: int) -> int:
    """Multiplications to turn a row of so many entries, to so many leading eigenvectors; 0: to all."""
    return 2 * leads * entries if leads else entries**2


def leading(size: int) -> int:
    """How many eigenvectors a side of so many entries is turned to, where it leads; 0: all.

    The nearest multiple of 16, what a vector unit takes at once: a few columns more take as long as 16 more.
    """
    most = max(LEAST_LEADING, (size // LEADING + 8) // 16 * 16)
    return most if size >= WORTH_LEADING * most else 0


NO_SIDES: tuple[None, None] = (None, None)
Sides = tuple[Side | None, Side | None]


@dataclass(frozen=True, eq=False, slots=True)
class Basis:
    """matrices: which parameters are turned together; sides: left and right of each, None for one that is not turned."""

    size: int
    matrices: tuple[Matrix, ...] = ()
    sides: tuple[Sides, ...] = ()
    _rest: tuple[tuple[int, int], ...] = field(init=False)

    def __post_init__(self) -> None:
        taken = sorted(place for matrix in self.matrices for place in matrix.places)
        edges = [(0, 0), *taken, (self.size, self.size)]
        rest = tuple((stop, start) for (_, stop), (start, _) in pairwise(edges) if start > stop)
        object.__setattr__(self, "_rest", rest)

    @classmethod
    def unturned(cls, size: int, matrices: Sequence[Matrix] = ()) -> Basis:
        """The parameters' own coordinates, matrix by matrix."""
        return cls(size, tuple(matrices), (NO_SIDES,) * len(matrices))

    @property
    def turns(self) -> bool:
        """Whether any side of a matrix is turned."""
        return any(side is not None for both in self.sides for side in both)

    @property
    def rest(self) -> tuple[tuple[int, int], ...]:
        """Places of what is in no matrix."""
        return self._rest

    def offsets(self) -> Iterator[tuple[Matrix, slice]]:
        """Each matrix with its place in coordinates."""
        stops = accumulate((matrix.size for matrix in self.matrices), initial=0)
        for matrix, start in zip(self.matrices, stops, strict=False):
            yield matrix, slice(start, start + matrix.size)

    def rest_offsets(self) -> Iterator[tuple[slice, tuple[int, int]]]:
        """The places of what is in no matrix: in coordinates, and in a flat vector."""
        at = sum(matrix.size for matrix in self.matrices)
        for start, stop in self._rest:
            yield slice(at, at + stop - start), (start, stop)
            at += stop - start

    def sides_of(self, matrix: Matrix) -> Sides:
        """Left and right of a matrix; none where it is not turned here."""
        return dict(zip(self.matrices, self.sides, strict=True)).get(matrix, NO_SIDES)

    def into(self, vector: Tensor) -> Tensor:
        """A flat vector [P] in coordinates, a new one."""
        turned = [
            turned_into(both, matrix.gather(vector)).reshape(-1)
            for matrix, both in zip(self.matrices, self.sides, strict=True)
        ]
        return torch.cat([*turned, *(vector[start:stop] for start, stop in self._rest)])

    def back(self, coordinates: Tensor, out: Tensor | None = None) -> Tensor:
        """What `into` gave the coordinates, [P]."""
        turned = torch.empty_like(coordinates) if out is None else out
        for (matrix, place), both in zip(self.offsets(), self.sides, strict=True):
            matrix.scatter(turned_back(both, coordinates[place].view(matrix.rows, matrix.columns)), turned)
        self._put_rest(coordinates, turned)
        return turned

    def diagonal(self, values: Tensor) -> Tensor:
        """The diagonal, in the parameters' own coordinates [P], of an operator that is the diagonal `values` in these."""
        own = torch.empty_like(values)
        for (matrix, place), (left, right) in zip(self.offsets(), self.sides, strict=True):
            each = values[place].view(matrix.rows, matrix.columns)
            each = each if left is None else left.own(each.mT).mT
            matrix.scatter(each if right is None else right.own(each), own)
        self._put_rest(values, own)
        return own

    def _put_rest(self, coordinates: Tensor, vector: Tensor) -> None:
        for place, (start, stop) in self.rest_offsets():
            vector[start:stop] = coordinates[place]

    def expressed(self, other: Basis, values: Tensor) -> Tensor:
        """A diagonal `values` in the coordinates of `other`, as a diagonal in these: without its off-diagonal part here.

        By squares, ``(R_G * R_G) S (R_A * R_A)^T`` with ``R = U_here^T U_there``, which keeps the trace.
        """
        if self.equals(other):
            return values
        places = dict(other.offsets())
        own = values if self.matrices == other.matrices else other.diagonal(values)
        pieces = []
        for matrix, here in zip(self.matrices, self.sides, strict=True):
            there = other.sides_of(matrix)
            known = matrix in places
            squares = values[places[matrix]].view(matrix.rows, matrix.columns) if known else matrix.gather(own)
            squares = _restated(here[0], there[0], squares.mT).mT
            pieces.append(_restated(here[1], there[1], squares).reshape(-1))
        if self.matrices == other.matrices:  # what is in none stands at the end in both
            return torch.cat([*pieces, values[sum(matrix.size for matrix in self.matrices) :]])
        return torch.cat([*pieces, *(own[start:stop] for start, stop in self._rest)])

    def moved(
        self,
        matrices: Sequence[Matrix],
        moments: Mapping[str, tuple[Tensor | None, Tensor | None]],
        lead: Collection[tuple[str, int]] = (),
        pinned: bool = True,
    ) -> Basis:
        """The basis once a task has added its moments [n, n], or a wide side's sketch of them, left and right by the key.

        A side without keeps its own. lead: the key and the side (0 left, 1 right) of those that are turned to their leading
        eigenvectors from now on. pinned: as of `eigen`.
        """
        sides = tuple(
            tuple(
                _added(before, more, (matrix.key, k) in lead, pinned)
                for k, (before, more) in enumerate(zip(self.sides_of(matrix), moments[matrix.key], strict=True))
            )
            for matrix in matrices
        )
        return Basis(self.size, tuple(matrices), sides)  # type: ignore[arg-type]

    def evened(self, values: Tensor) -> Tensor:
        """A diagonal [P] in these coordinates as it is kept: one precision in all directions that no vector is kept of."""
        if not any(side is not None and side.is_wide for both in self.sides for side in both):
            return values
        values = values.clone()
        for (matrix, place), (left, right) in zip(self.offsets(), self.sides, strict=True):
            each = values[place].view(matrix.rows, matrix.columns)
            each = each if left is None else left.evened(each.mT).mT
            values[place] = (each if right is None else right.evened(each)).reshape(-1)
        return values

    def to(self, device: torch.device, dtype: torch.dtype) -> Basis:
        """A working copy."""

        def copied(side: Side | None) -> Side | None:
            return side and side.to(device, dtype)

        return Basis(self.size, self.matrices, tuple((copied(left), copied(right)) for left, right in self.sides))

    def equals(self, other: Basis) -> bool:
        """Whether coordinates are the same in both."""
        if other is self:
            return True
        mine, theirs = ([each for sides in basis.sides for each in sides] for basis in (self, other))
        return self.matrices == other.matrices and all(
            (one is None) is (two is None) and (one is None or two is None or torch.equal(one.vectors, two.vectors))
            for one, two in zip(mine, theirs, strict=True)
        )

    def state(self) -> dict[str, Tensor]:
        """All of it, by name."""
        described = [[m.names, m.places, m.rows, m.columns, m.stacked] for m in self.matrices]
        text = json.dumps([self.size, described]).encode()
        arrays = {"matrices": torch.frombuffer(bytearray(text), dtype=torch.uint8)}
        for k, both in enumerate(self.sides):
            for name, side in zip(("left", "right"), both, strict=True):
                if side is not None:
                    arrays |= side.state(f"{name}.{k}")
        return arrays

    @classmethod
    def from_state(cls, state: Mapping[str, Tensor]) -> Basis:
        """What `state` gave."""
        size, described = json.loads(state["matrices"].numpy().tobytes())
        matrices = tuple(
            Matrix(tuple(names), tuple((a, b) for a, b in places), rows, columns, stacked)
            for names, places, rows, columns, stacked in described
        )
        sides = ((Side.from_state(state, f"left.{k}"), Side.from_state(state, f"right.{k}")) for k in range(len(matrices)))
        return cls(size, matrices, tuple(sides))


def turned_into(sides: Sides, values: Tensor) -> Tensor:
    """``U_G^T W U_A`` of W [..., rows, columns]."""
    left, right = sides
    values = values if left is None else left.into(values.mT).mT
    return values if right is None else right.into(values)


def turned_back(sides: Sides, values: Tensor) -> Tensor:
    """What `turned_into` gave the values [..., rows, columns]."""
    left, right = sides
    values = values if left is None else left.back(values.mT).mT
    return values if right is None else right.back(values)


def matrices_in(layout: Layout, pairs: Sequence[tuple[str, str | None]]) -> list[Matrix]:
    """The matrices of some weights and their biases, by name, in the layout's order."""
    parts = {part.name: part for part in layout.parts}
    found = [Matrix.of(parts[weight], parts[bias] if bias else None) for weight, bias in pairs]
    return sorted(found, key=lambda matrix: matrix.places[0])


def _restated(here: Side | None, there: Side | None, values: Tensor) -> Tensor:
    """A diagonal [..., n] in the coordinates of one side in those of another."""
    if here is there:
        return values
    if here is None:
        return values if there is None else there.own(values)
    return here.restated(values, there)


def _added(side: Side | None, moments: Tensor | None, leads: bool, pinned: bool) -> Side | None:
    """The eigenvectors with more moments [n, n], or a sketch of them; those that were there where there are none.

    Found where the moments are, in float64: of a few thousand entries a GPU takes seconds, a processor a minute.
    """
    if moments is None:
        return side
    more, host = moments.double(), torch.device("cpu")
    there = side if side is None or more.device == host else side.to(more.device, more.dtype)
    if there is not None:
        found = there.with_moments(more, leads, pinned)
    elif more.shape[0] == more.shape[1]:
        found = Side.of(more, leading(len(more)) if leads else 0, pinned)
    else:
        found = Side.wide(more, pinned)
    return found if more.device == host else found.to(host, more.dtype)
