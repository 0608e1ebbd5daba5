"""What is summed of the gradients of samples: their squares, in their own coordinates or in a basis, or their moments.

A measure says which sums there are, and what one sample's gradients add to them: given as they are, by name, or by a call
with a closed form (`closed_forms`), which is then wrapped. `fisher` sees to it that every sample counts, whichever way.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence, Set
from typing import Protocol

import torch
from torch import Tensor

from streamcl.core.basis import Basis, Matrix, Sides, sketch_shape, sketched, turned_into
from streamcl.core.closed_forms import Convolution, Dense, Lookup, Names, Site, add_squared_products
from streamcl.core.layout import Layout, Shape
from streamcl.core.precision import Block, Layered, Precision, observed

Sums = dict[str, Tensor]


class Measure(Protocol):
    """What is summed of one sample's gradients."""

    @property
    def shapes(self) -> dict[str, Shape]:
        """Of the sums, by name, in their order in one flat vector."""

    def together(self, names: Names, site: Site) -> bool:
        """Whether a call with a closed form for just these names can be wrapped."""

    def wrapped(self, site: Site) -> Site:
        """A call that adds to these sums."""

    def of(self, gradients: Mapping[str, Tensor]) -> Sums:
        """What the gradients [..., *shape] of some samples add, all leading axes summed over."""

    def keys(self, names: Set[str]) -> list[str]:
        """The sums that these parameters' gradients add to."""


class Squares:
    """Squares in the parameters' own coordinates: the diagonal Fisher."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.shapes = dict(zip(layout.names, layout.shapes, strict=True))

    def together(self, names: Names, site: Site) -> bool:
        """Any."""
        return True

    def wrapped(self, site: Site) -> Site:
        """As it is."""
        return site

    def of(self, gradients: Mapping[str, Tensor]) -> Sums:
        """``sum g^2``, by name."""
        return {name: _summed(gradient.square(), len(self.shapes[name])) for name, gradient in gradients.items()}

    def keys(self, names: Set[str]) -> list[str]:
        """By name."""
        return [name for name in self.shapes if name in names]

    def precision(self, total: Tensor) -> Precision:
        """The sums [P] as a precision."""
        return observed(total)


class SquaresIn:
    """Squares in a basis, and products of any two of a small layer's: exact second moments there.

    For a layer with inputs a and output gradients g, ``sum (U_G^T g)^2 ((U_A^T a)^2)^T``. basis: of the sums, on their
    device and in their dtype.
    """

    def __init__(self, layout: Layout, basis: Basis, blocks: Sequence[Matrix]) -> None:
        self.basis = basis
        self._own = Squares(layout)
        self._blocks = {matrix.key: matrix for matrix in blocks}
        self._sides = {matrix.key: sides for matrix, sides in zip(basis.matrices, basis.sides, strict=True)}
        self._turned = {matrix.key: matrix for matrix in basis.matrices}
        self._matrix_of = {name: matrix for matrix in basis.matrices for name in matrix.names}
        coordinates = {key: (matrix.rows, matrix.columns) for key, matrix in self._turned.items()}
        rest = {name: shape for name, shape in self._own.shapes.items() if name not in self._matrix_of}
        blocks_of = {f"{key} x {key}": (matrix.size, matrix.size) for key, matrix in self._blocks.items()}
        self.shapes: dict[str, Shape] = {**coordinates, **rest, **blocks_of}

    def together(self, names: Names, site: Site) -> bool:
        """Whether they are all of a matrix whose sides the call has, or of none."""
        found = [self._matrix_of.get(name) for name in names if name is not None]
        matrix = found[0] if found else None
        if matrix is None:
            return all(each is None for each in found)
        if matrix.names != tuple(name for name in names if name is not None) or not turnable(names, site):
            return False
        if matrix.key in self._blocks:
            return not isinstance(site, Lookup)
        return not isinstance(site, Lookup) or self._sides[matrix.key][0] is None

    def wrapped(self, site: Site) -> Site:
        """One that turns what it is given."""
        names = [name for name in site.names if name is not None]
        matrix = self._matrix_of.get(names[0])
        if matrix is None:
            return site
        if matrix.key in self._blocks:
            return _Outer(site, self._sum_of(matrix))
        return _Turned(site, matrix, self._sides[matrix.key])

    def of(self, gradients: Mapping[str, Tensor]) -> Sums:
        """``sum (U_G^T g U_A)^2`` for every matrix, by its key."""
        sums = self._own.of({name: g for name, g in gradients.items() if name not in self._matrix_of})
        for key, matrix in self._turned.items():
            if key in gradients:
                sums |= self._of_matrix(matrix, _joined(matrix, gradients, self._own.shapes))
        return sums

    def _of_matrix(self, matrix: Matrix, gradient: Tensor) -> Sums:
        if matrix.key in self._blocks:
            rows = gradient.reshape(-1, matrix.size)
            return {self._sum_of(matrix): rows.T @ rows}
        return {matrix.key: _summed(turned_into(self._sides[matrix.key], gradient).square(), 2)}

    def keys(self, names: Set[str]) -> list[str]:
        """The matrices' keys, and the names of what is in none."""
        return [
            *self._own.keys(names - self._matrix_of.keys()),
            *(self._sum_of(m) for m in self._turned.values() if m.key in names),
        ]

    def _sum_of(self, matrix: Matrix) -> str:
        return f"{matrix.key} x {matrix.key}" if matrix.key in self._blocks else matrix.key

    def precision(self, total: Tensor, basis: Basis) -> Layered:
        """The flat sums as a precision; basis: the measure's, in the total's dtype."""
        blocks, at = [], basis.size
        for matrix in self._blocks.values():
            blocks.append(Block(matrix, total[at : at + matrix.size**2].view(matrix.size, matrix.size).clone()))
            at += matrix.size**2
        return Layered(basis, basis.evened(total[: basis.size]).clone(), tuple(blocks))


class Moments:
    """Second moments of a layer's inputs and of its outputs' gradients, whose eigenvectors are its basis.

    ``A = mean a a^T``, ``G = sum g g^T``. Of a matrix whose inputs are not known, those of its gradient M:
    ``mean M^T M``, ``sum M M^T``. Of a wide side its sketch, ``A O``.
    """

    def __init__(self, layout: Layout, matrices: Sequence[Matrix], tables: Collection[str] = ()) -> None:
        """tables: keys of matrices whose rows are looked up, and stay as they are."""
        self._own = Squares(layout)
        self.matrices = [matrix for matrix in matrices if not matrix.stacked]
        self._matrix_of = {name: matrix for matrix in self.matrices for name in matrix.names}
        self.shapes: dict[str, Shape] = {}
        for matrix in self.matrices:
            if matrix.key not in tables:
                self.shapes[f"{matrix.key} left"] = sketch_shape(matrix.rows, matrix.columns)
            self.shapes[f"{matrix.key} right"] = sketch_shape(matrix.columns, matrix.rows)

    def together(self, names: Names, site: Site) -> bool:
        """Whether they are all of a matrix whose sides the call has, or of none."""
        given = tuple(name for name in names if name is not None)
        matrix = self._matrix_of.get(given[0]) if given else None
        if matrix is None:
            return all(name not in self._matrix_of for name in given)
        known = turnable(names, site) and not (isinstance(site, Lookup) and f"{matrix.key} left" in self.shapes)
        return known and matrix.names == given

    def wrapped(self, site: Site) -> Site:
        """One that sums moments; nothing for what is in no matrix."""
        matrix = self._matrix_of.get(next(name for name in site.names if name is not None))
        return _Nothing(site) if matrix is None else _Moments(site, matrix, set(self.shapes))

    def of(self, gradients: Mapping[str, Tensor]) -> Sums:
        """Of every matrix, both sides."""
        sums: Sums = {}
        for matrix in self.matrices:
            if matrix.key in gradients:
                each = _joined(matrix, gradients, self._own.shapes).reshape(-1, matrix.rows, matrix.columns)
                for name, rows in ((f"{matrix.key} left", each.mT), (f"{matrix.key} right", each)):
                    if name in self.shapes:
                        sums[name] = _squared(rows.reshape(-1, rows.shape[2]), self.shapes[name])
        return sums

    def keys(self, names: Set[str]) -> list[str]:
        """None that could be compared: a call's moments are of its inputs, not of its gradients."""
        return []

    def found(self, total: Tensor, samples: int) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        """A [columns, columns] over `samples` and G [rows, rows] of each matrix by its key, from the flat sums."""
        sums = split(total, self.shapes)
        found = {}
        for matrix in self.matrices:
            left, right = sums.get(f"{matrix.key} left"), sums.get(f"{matrix.key} right")
            found[matrix.key] = (left, None if right is None else right / samples)
        return found


def split(total: Tensor, shapes: Mapping[str, Shape]) -> Sums:
    """A flat vector as views of these shapes, one after the other."""
    sums, at = {}, 0
    for name, shape in shapes.items():
        sums[name] = total[at : at + math.prod(shape)].view(shape)
        at += math.prod(shape)
    return sums


def size(shapes: Mapping[str, Shape]) -> int:
    """How many numbers there are."""
    return sum(map(math.prod, shapes.values()))


def turnable(names: Names, site: Site) -> bool:
    """Whether a call with this closed form has one matrix product of a weight in it, whose basis can be found."""
    if names[0] is None:
        return False
    return isinstance(site, Dense | Lookup) or (isinstance(site, Convolution) and site.ungrouped)


def _summed(values: Tensor, dimensions: int) -> Tensor:
    """Over the leading axes."""
    lead = values.ndim - dimensions
    return values.sum(tuple(range(lead))) if lead else values


def _joined(matrix: Matrix, gradients: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> Tensor:
    every = ((gradients[name], len(shapes[name])) for name in matrix.names)
    return matrix.joined([g.flatten(g.ndim - axes) if axes else g.unsqueeze(-1) for g, axes in every])


class _Wrapped(Site):
    """A call whose inputs and gradients are used otherwise than squared one by one."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.names, self.edge, self.shape, self.numbers = site.names, site.edge, site.shape, site.numbers

    def prepare(self) -> None:
        self.site.prepare()

    def mix(self, gradient: Tensor, weights: Tensor) -> None:
        self.site.mix(gradient, weights)

    def moments(self, sums: Sums) -> None:
        self.site.moments(sums)

    def finish(self, sums: Sums) -> None:
        """Nothing was deferred."""


class _Nothing(_Wrapped):
    def add(self, gradient: Tensor, sums: Sums) -> None:
        """Of no interest."""


class _Turned(_Wrapped):
    """Squares in a basis. sides: of the matrix."""

    def __init__(self, site: Site, matrix: Matrix, sides: Sides) -> None:
        super().__init__(site)
        self._matrix, (self._left, self._right) = matrix, sides
        self._squares: Tensor | None = None

    def prepare(self) -> None:
        self.site.prepare()
        if not isinstance(self.site, Lookup):
            columns = columns_of(self.site, self._matrix)
            self._columns = columns if self._right is None else self._right.into(columns)

    def add(self, gradient: Tensor, sums: Sums) -> None:
        if isinstance(self.site, Lookup):
            self.site.add(gradient if self._right is None else self._right.into(gradient), sums)
            return
        g = self.site.rows_of(gradient)
        if self._left is not None:
            g = self._left.into(g)
        if g.shape[1] > 1:
            add_squared_products(sums[self._matrix.key], g.mT, self._columns.mT)
        elif self._squares is None:
            self._squares = g.squeeze(1).square()
        else:
            self._squares.addcmul_(g.squeeze(1), g.squeeze(1))

    def finish(self, sums: Sums) -> None:
        if self._squares is not None:
            sums[self._matrix.key] += self._squares.mT @ self._columns.squeeze(1).square()


class _Outer(_Wrapped):
    """Products of any two entries of a small layer's gradients. key: of their sums."""

    def __init__(self, site: Site, key: str) -> None:
        super().__init__(site)
        self._key = key

    def add(self, gradient: Tensor, sums: Sums) -> None:
        g = self.site.rows_of(gradient)
        weight = (g.mT @ self.site.columns_of()).flatten(1)
        each = weight if self.names[1] is None else torch.cat([weight, g.sum(1)], 1)
        sums[self._key] += each.T @ each


class _Moments(_Wrapped):
    """Second moments of inputs, once, and of gradients. kept: the sums that there are."""

    def __init__(self, site: Site, matrix: Matrix, kept: set[str]) -> None:
        super().__init__(site)
        self._matrix, self._kept = matrix, kept
        self._counted = False

    def add(self, gradient: Tensor, sums: Sums) -> None:
        g = self.site.rows_of(gradient).flatten(0, 1)
        left, right = f"{self._matrix.key} left", f"{self._matrix.key} right"
        if isinstance(self.site, Lookup):  # the features are its columns, and the tokens need no turning
            left, right = right, left
        if left in self._kept:
            sums[left] += _squared(g, tuple(sums[left].shape))
        if isinstance(self.site, Lookup) or self._counted or right not in self._kept:
            return
        self._counted = True
        columns = columns_of(self.site, self._matrix).flatten(0, 1)
        sums[right] += _squared(columns, tuple(sums[right].shape))


def _squared(rows: Tensor, shape: Shape) -> Tensor:
    """``rows^T rows`` of rows [m, n], [n, n]; of a wide side, what its sketch makes of it, [n, s]."""
    if shape[0] == shape[1]:
        return rows.T @ rows
    return rows.T @ (rows @ sketched(*shape).to(rows))


def columns_of(site: Site, matrix: Matrix) -> Tensor:
    """Inputs [n, t, columns], a 1 at the end of each where there is a bias."""
    columns = site.columns_of()
    return torch.cat([columns, columns.new_ones((*columns.shape[:2], 1))], 2) if matrix.biased else columns
