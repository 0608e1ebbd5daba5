"""What held of a model with fewer outputs, as the same of one with more.

A parameter that belongs to the outputs is larger there in one or more axes; what it was stands in its leading corner, and
everything else is new. Guarantees: old numbers are copied, never computed: parameters, shift and precision of what was
there are bitwise what they were, in the parameters' own coordinates and in a basis, but for a full block that has become
too large to be one. Of what is new a Gaussian says what it is asked to say: the prior, or, as a factor that was taken
before there was any of it, nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.core.basis import Basis, Matrix, Reflections, Side
from streamcl.core.gaussian import Gaussian
from streamcl.core.layout import Layout, Part, Shape
from streamcl.core.precision import Block, Diagonal, Full, Layered, Precision
from streamcl.core.stored import State
from streamcl.errors import ModelRefused

Array = npt.NDArray[np.generic]

LARGEST_BLOCK = 2048  # parameters of a layer that keeps a full block as it grows: 32 MiB


def corner(shape: Shape) -> tuple[slice, ...]:
    """The leading corner of this shape in a larger tensor."""
    return tuple(slice(0, size) for size in shape)


@dataclass(frozen=True, slots=True)
class Growth:
    """From one layout to that of the same module with more outputs; raises ModelRefused where it is none of the kind."""

    old: Layout
    new: Layout

    def __post_init__(self) -> None:
        old, new = self.old, self.new
        if old.names != new.names or old.tied != new.tied:
            changed = sorted(set(old.names) ^ set(new.names)) or ["which of them are tied"]
            raise ModelRefused(f"with more outputs the module has other trained parameters ({', '.join(changed[:3])})")
        for one, two in zip(old.parts, new.parts, strict=True):
            _check_larger(one, two)

    # -- in the parameters' own coordinates --------------------------------------------------------------------------

    def vector(self, old: Tensor, new: Tensor) -> Tensor:
        """A vector [P'] that is `old` [P] where the old parameters stand, and `new` [P'] elsewhere."""
        found = new.clone()
        for one, two in zip(self.old.parts, self.new.parts, strict=True):
            found[two.place].view(two.shape)[corner(one.shape)] = old[one.place].view(one.shape)
        return found

    def places(self) -> Tensor:
        """Where in the new vector each old entry stands, [P]."""
        return torch.cat([_places(one, two) for one, two in zip(self.old.parts, self.new.parts, strict=True)])

    # -- in a basis --------------------------------------------------------------------------------------------------

    def matrix(self, old: Matrix) -> Matrix:
        """The same parameters as a matrix."""
        parts = {part.name: part for part in self.new.parts}
        mine = [parts[name] for name in old.names]
        if old.stacked:
            return Matrix.stack(mine)
        found = Matrix.of(mine[0], mine[1] if len(mine) > 1 else None)
        if found.biased and found.columns != old.columns:
            raise ModelRefused(f"with more outputs {old.key} takes more inputs, and has a bias behind them")
        return found

    def stacked_places(self, old: Matrix) -> Tensor:
        """Where in the column of a stacked matrix each of its old entries stands."""
        before = {part.name: part for part in self.old.parts}
        after = {part.name: part for part in self.new.parts}
        found, at = [], 0
        for name in old.names:
            found.append(_places(before[name], after[name]) - after[name].offset + at)
            at += math.prod(after[name].shape)
        return torch.cat(found)

    def basis(self, old: Basis) -> Basis:
        """Old directions as they were; what is new, in its own coordinates."""
        matrices = tuple(self.matrix(each) for each in old.matrices)
        sides = tuple(
            self._sides(before, after, both) for before, after, both in zip(old.matrices, matrices, old.sides, strict=True)
        )
        return Basis(self.new.size, matrices, sides)

    def _sides(self, old: Matrix, new: Matrix, sides: tuple[Side | None, Side | None]) -> tuple[Side | None, Side | None]:
        left, right = sides
        if old.stacked and left is not None:
            return stacked_side(left, self.stacked_places(old), new.rows), right
        return left and widened(left, new.rows), right and widened(right, new.columns)

    def coordinates(self, basis: Basis, old: Tensor, grown: Basis, new: Tensor) -> Tensor:
        """As `vector`, in the coordinates of a basis and of what `basis` makes of it, `grown`."""
        found = new.clone()
        pairs = zip(basis.offsets(), grown.offsets(), basis.sides, strict=True)
        for (before, one), (after, two), (left, _) in pairs:
            if not before.stacked:
                view = found[two].view(after.rows, after.columns)
                view[: before.rows, : before.columns] = old[one].view(before.rows, before.columns)
            elif left is None:
                found[two][self.stacked_places(before)] = old[one]
            else:  # along the vectors of its block, which come first
                found[two][: before.rows] = old[one]
        return self._rest(basis, old, grown, found)

    def _rest(self, basis: Basis, old: Tensor, grown: Basis, found: Tensor) -> Tensor:
        """What is in no matrix: in the order of the flat vectors."""
        flat_old, flat_new = old.new_zeros(basis.size), found.new_zeros(grown.size)
        for place, (start, stop) in basis.rest_offsets():
            flat_old[start:stop] = old[place]
        for place, (start, stop) in grown.rest_offsets():
            flat_new[start:stop] = found[place]
        both = self.vector(flat_old, flat_new)
        for place, (start, stop) in grown.rest_offsets():
            found[place] = both[start:stop]
        return found

    # -- Gaussians ---------------------------------------------------------------------------------------------------

    def precision(self, old: Precision, fill: float) -> Precision:
        """With `fill` for every new parameter."""
        match old:
            case Diagonal(values=values):
                return Diagonal(self.vector(values, values.new_full((self.new.size,), fill)))
            case Full(matrix=matrix):
                return Full(_bordered(matrix, self.places(), self.new.size, fill))
            case Layered():
                return self._layered(old, fill)
        raise TypeError(f"expected a diagonal, full or layered precision, got {old.kind}")

    def _layered(self, old: Layered, fill: float) -> Layered:
        basis = self.basis(old.basis)
        values = self.coordinates(old.basis, old.values, basis, old.values.new_full((self.new.size,), fill))
        blocks = []
        for block in old.blocks:
            places, matrix = self.stacked_places(block.matrix), self.matrix(block.matrix)
            blocks.append(Block(matrix, _bordered(block.values, places, matrix.size, fill)))
        for matrix, place in basis.offsets():
            if matrix.stacked:
                values[place] = 0
        return self._without_large(Layered(basis, values, tuple(blocks)))

    def _without_large(self, grown: Layered) -> Layered:
        """With what has grown too large for a full block as a diagonal in the eigenbasis of its sides instead."""
        parts = {part.name: part for part in self.new.parts}
        large = [b for b in grown.blocks if b.matrix.size > LARGEST_BLOCK and len(b.matrix.names) <= 2]
        if not large:
            return grown
        turned = {b.matrix: _as_diagonal(b, [parts[name] for name in b.matrix.names]) for b in large}
        places, basis = dict(grown.basis.offsets()), grown.basis
        found = [
            turned.get(matrix, (matrix, both, grown.values[places[matrix]]))
            for matrix, both in zip(basis.matrices, basis.sides, strict=True)
        ]
        rest = grown.values[sum(matrix.size for matrix in basis.matrices) :]
        kept = tuple(block for block in grown.blocks if block.matrix not in turned)
        matrices, sides, values = zip(*found, strict=True)
        return Layered(Basis(grown.size, matrices, sides), torch.cat([*values, rest]), kept)

    def gaussian(self, old: Gaussian, prior: Gaussian | None) -> Gaussian:
        """Of new parameters it says what the prior (of the new layout) says; None: nothing, as of a factor."""
        fill = 0.0 if prior is None else float(prior.precision.diagonal()[0])
        new = old.shift.new_zeros(self.new.size)
        shift = self.vector(old.shift, new if prior is None else prior.shift)
        optimum = old.optimum
        if optimum is not None:
            optimum = self.vector(optimum, new if prior is None else prior.mean)
        grown = Gaussian(self.precision(old.precision, fill), shift)
        return replace(grown, tempering=old.tempering, optimum=optimum, inputs=old.inputs)

    def fixed(
        self, old: Mapping[str, npt.NDArray[np.generic]], new: Mapping[str, npt.NDArray[np.generic]]
    ) -> dict[str, Array]:
        """Arrays that no flat vector holds (buffers), those of another shape in the leading corner of the new ones."""
        found: dict[str, Array] = {}
        for name, array in old.items():
            wider = new.get(name)
            if wider is None or wider.shape == array.shape:
                found[name] = array
                continue
            found[name] = np.array(wider)
            found[name][corner(array.shape)] = array
        return found


def widened_factor(state: State, shapes: Sequence[Sequence[int]], layout: Mapping[str, Any]) -> State:
    """A factor's arrays, from when the parameters of a layout (in plain containers) had these shapes."""
    new = Layout.from_plain(layout)
    old = Layout.of(zip(new.names, shapes, strict=True), new.frozen, new.buffers, new.tied)
    return Growth(old, new).gaussian(Gaussian.from_state(state), None).state()


def _as_diagonal(block: Block, parts: list[Part]) -> tuple[Matrix, tuple[Side, Side], Tensor]:
    """A block [p, p] over [W b] as a diagonal in the eigenbasis of its two partial traces; the trace stays."""
    matrix = Matrix.of(parts[0], parts[1] if len(parts) > 1 else None)
    sizes = [math.prod(part.shape) for part in parts]
    every = torch.arange(block.matrix.size)
    order = matrix.joined([every[sum(sizes[:k]) : sum(sizes[: k + 1])] for k in range(len(sizes))]).reshape(-1)
    four = block.values[order][:, order].view(matrix.rows, matrix.columns, matrix.rows, matrix.columns)
    left = Side.of(torch.einsum("iaja->ij", four))
    right = Side.of(torch.einsum("iaib->ab", four))
    half = torch.einsum("iajb,jk,bc->iakc", four, left.vectors, right.vectors)
    values = torch.einsum("iakc,ik,ac->kc", half, left.vectors, right.vectors)
    return matrix, (left, right), values.clamp(min=0).reshape(-1)


def _check_larger(one: Part, two: Part) -> None:
    alike = one.name == two.name and len(one.shape) == len(two.shape)
    if not alike or any(a > b for a, b in zip(one.shape, two.shape, strict=True)):
        raise ModelRefused(f"with more outputs {one.name} {list(one.shape)} becomes {two.name} {list(two.shape)}")
    changed = [axis for axis, (a, b) in enumerate(zip(one.shape, two.shape, strict=True)) if a != b]
    if any(axis > 0 for axis in changed) and len(one.shape) > 2:
        raise ModelRefused(
            f"with more outputs {one.name} {list(one.shape)} becomes {list(two.shape)}: expected more along its first axis"
        )


def _places(one: Part, two: Part) -> Tensor:
    size = math.prod(two.shape)
    every = torch.arange(two.offset, two.offset + size).view(two.shape)
    return every[corner(one.shape)].reshape(-1)


def _bordered(old: Tensor, places: Tensor, size: int, fill: float) -> Tensor:
    """A matrix [size, size]: `old` between the entries at `places`, `fill` on the diagonal of the others."""
    found = torch.diag(old.new_full((size,), fill))
    found[places.unsqueeze(1), places] = old
    return found


def widened(side: Side, entries: int) -> Side:
    """With so many entries, each new one in a direction of its own, along which nothing has moved yet.

    Of a side of leading vectors only (`Side.is_wide`), new entries lie among the directions that share one precision.
    """
    more = entries - side.entries
    if more == 0:
        return side
    reflections = side.reflections
    if reflections is not None:
        reflections = Reflections(_padded(reflections.v, more), reflections.t)
    if side.is_wide:
        return Side(_padded(side.vectors, more), side.values, reflections, side.rest)
    values = torch.cat([side.values, side.values.new_zeros(more)])
    return Side(_with_units(side.vectors, more), values, reflections, side.rest)


def stacked_side(side: Side, places: Tensor, entries: int) -> Side:
    """Of a block's vectors, whose old entries stand at `places` now: the old directions first, then each new entry."""
    old = side.entries
    vectors = side.vectors.new_zeros((entries, entries))
    vectors[places, :old] = side.vectors
    left = torch.ones(entries, dtype=torch.bool)
    left[places] = False
    vectors[left.nonzero().squeeze(1), torch.arange(old, entries)] = 1
    return Side(vectors, torch.cat([side.values, side.values.new_zeros(entries - old)]))


def _padded(vectors: Tensor, more: int) -> Tensor:
    return torch.cat([vectors, vectors.new_zeros((more, vectors.shape[1]))])


def _with_units(vectors: Tensor, more: int) -> Tensor:
    size = len(vectors) + more
    found = torch.eye(size, dtype=vectors.dtype, device=vectors.device)
    found[: len(vectors), : len(vectors)] = vectors
    return found
