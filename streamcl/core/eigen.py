"""Eigenvectors that depend on a matrix, not on how it was rounded.

Where eigenvalues are equal, or next to nothing beside the largest, rounding chooses among the orthonormal vectors of their
space: units that are never on, pixels that are never lit, all logits shifted together. Who then works along these axes one
by one, as Adam does, comes to another end on another machine, or with rows summed in another order. So such a space gets
the axes that lie nearest to the coordinates' own.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

EQUAL, NOTHING = 1e-10, 1e-7  # of the largest: eigenvalues that are as near as that, or all of them as small, are one
LARGE = 256  # dimensions of a space that has most of them: fewer are found by pivots
ZERO = 1e-6  # of a column's length: a pivot that is rounding
WITHIN = 1 - 1e-6  # of the largest share: axes that lie as far within a space; the first of them is taken


def eigenvectors(matrix: Tensor, pinned: bool, most: int = 0) -> tuple[Tensor, Tensor]:
    """Eigenvalues [n], ascending, and vectors [n, n], in columns, of a symmetric matrix [n, n].

    most: so many of the largest; 0 for all. pinned: by rule, as `pin` and `leading` have them.
    """
    values, vectors = torch.linalg.eigh(matrix)
    if not pinned:
        return values[-most:], vectors[:, -most:]
    if not most:
        return values, pin(values, vectors)
    return leading(values[-most:], vectors[:, -most:])


def leading(values: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Of the eigenvectors [n, m] of the m largest eigenvalues: those of the directions that matter as `pin` has them, the
    others what lies outside of these, by the same rule."""
    matter = values > NOTHING * values.max()
    known = pin(values[matter], vectors[:, matter])
    found = torch.empty_like(vectors)
    found[:, matter], found[:, ~matter] = known, _outside(known, int((~matter).sum()))
    return torch.where(matter, values, 0.0), found


def pin(values: Tensor, vectors: Tensor) -> Tensor:
    """Orthonormal vectors [n, m] of the eigenvalues [m], in any order, by rule where rounding alone would choose.

    Those of a space, as above, are turned among one another: the first is what the space makes of the coordinate that lies
    furthest within it, the next what is left of the space makes of the next one, and so on (Gram-Schmidt, with pivots). A
    vector's largest entry is positive. A space of most dimensions is what reflections make of the others' complement.
    """
    host = torch.device("cpu")
    if vectors.device != host:
        return pin(values.to(host), vectors.to(host)).to(vectors.device)
    if not len(values):
        return vectors
    sizes = values.abs() / values.abs().max().clamp(min=torch.finfo(values.dtype).tiny)
    apart = (sizes.diff().abs() > EQUAL) & (torch.maximum(sizes[1:], sizes[:-1]) > NOTHING)
    edges = [0, *(apart.nonzero().flatten() + 1).tolist(), len(values)]
    pinned, most = vectors.clone(), slice(0, 0)
    for start, stop in pairwise(edges):
        if stop - start > LARGE and 2 * (stop - start) > len(vectors) == len(values):
            most = slice(start, stop)
        elif stop - start > 1:
            pinned[:, start:stop] = _axes(vectors[:, start:stop])
    pinned = _turned(pinned)
    if most.stop:  # by pivots, it would take longer than the eigenvectors did
        v, t = compact(*reflectors(torch.cat([pinned[:, : most.start], pinned[:, most.stop :]], 1)))
        others = v.shape[1]
        completing = -v @ (t @ v[others:].T)
        completing[others:].diagonal().add_(1)
        pinned[:, most] = _turned(completing)
    return pinned


def _turned(vectors: Tensor) -> Tensor:
    """With a positive largest entry each."""
    largest = _first_largest(vectors.abs().T)
    signs = vectors[largest, torch.arange(vectors.shape[1])].sign()
    return vectors * torch.where(signs == 0, 1.0, signs)


def reflectors(columns: Tensor) -> tuple[Tensor, Tensor]:
    """The reflections ``1 - s v v^T`` that turn orthonormal columns [n, r] to the first r axes, up to signs.

    As `torch.geqrf` gives them: each v [n] below the diagonal, where its first entry is 1, and s [r]. A pivot that is next
    to 0 counts as positive.
    """
    left = columns.clone()
    scales = left.new_empty(left.shape[1])
    for k in range(left.shape[1]):
        v = left[k:, k].clone()
        v[0] += v.norm() * (-1.0 if v[0] < -ZERO else 1.0)
        v /= v[0].clone()
        scales[k] = 2 / (v @ v)
        rest = left[k:, k + 1 :]
        rest -= torch.outer(v * scales[k], v @ rest)
        left[k + 1 :, k] = v[1:]
    return left, scales


def compact(reflectors: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
    """V [n, r] and T [r, r], with ``1 - V T V^T`` the product of reflections as `reflectors` gives them (Schreiber & Van
    Loan 1989)."""
    v = reflectors.tril(-1)
    v.diagonal().fill_(1)
    inverse = torch.diag(1 / scales) + (v.T @ v).triu(1)
    identity = torch.eye(len(scales), dtype=v.dtype, device=v.device)
    return v, torch.linalg.solve_triangular(inverse, identity, upper=True)


def _axes(space: Tensor) -> Tensor:
    """Orthonormal vectors [n, k] of the space of others [n, k], by the pivots that `pin` names."""
    shares = space.square().sum(1)  # of each coordinate's square, within the space
    whole = (shares > WITHIN).nonzero().flatten()[: space.shape[1]]  # coordinates that lie in it: one another's complement
    turning = torch.linalg.qr(space[whole].T)[0] if len(whole) else space.new_zeros(space.shape[1], 0)
    if len(whole):
        turning = turning * (space[whole].T * turning).sum(0).sign()
    shares = shares - (space @ turning).square().sum(1)
    for _ in range(space.shape[1] - len(whole)):
        pivot = _orthogonal(space[int(_first_largest(shares))], turning)
        turning = torch.cat([turning, pivot.unsqueeze(1)], 1)
        shares = shares - (space @ pivot).square()
    return space @ turning


def _outside(space: Tensor, count: int) -> Tensor:
    """So many orthonormal vectors [n, count] outside the space of others [n, k], by the same pivots."""
    known = space
    shares = 1 - known.square().sum(1)
    for _ in range(count):
        pivot = torch.zeros(len(space), dtype=space.dtype, device=space.device)
        pivot[_first_largest(shares)] = 1.0
        pivot = _orthogonal(pivot, known)
        known = torch.cat([known, pivot.unsqueeze(1)], 1)
        shares = shares - pivot.square()
    return known[:, space.shape[1] :]


def _orthogonal(vector: Tensor, others: Tensor) -> Tensor:
    """What of a vector [n] is orthogonal to orthonormal others [n, k], of length 1."""
    for _ in range(2):  # once more, for what rounding has left
        vector = vector - others @ (others.T @ vector)
    return vector.div(vector.norm())


def _first_largest(numbers: Tensor) -> Tensor:
    """Where each of [..., n] has the first of those that are the largest but for rounding."""
    return (numbers >= WITHIN * numbers.amax(-1, keepdim=True)).int().argmax(-1)
