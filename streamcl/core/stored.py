"""A Gaussian's state as arrays of a file, for those who read it without torch: its kind, and what every kind can say.

What `Gaussian.state` gives: "kind", the kind's name in bytes (a state without one is a diagonal: so were all before there
were kinds); "shift", eta [P]; "precision", Lambda, as the kind keeps it: [P], or [P, P].

A layered one's "precision" [P] is the diagonal in its basis: "matrices", JSON in bytes, says of which parameters each
matrix is made; "left.K" and "right.K" are orthonormal vectors of the K-th one's sides, in columns, where they are turned,
with the moments along them; where there are fewer of them than rows, all directions beyond them have one precision.
"block.NAME" [p, p] is a full block instead.

An exact learner's, "exact", is the sums of `core.moments`: "counts", "means", "scatter" and "rows", with "precision" and
"shift" of the head that they determine, the former's diagonal [P]; a factor has the sums alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import UnknownFormat

EXACT = "exact"  # the kind of an exact learner's
KIND, PRECISION, SHIFT = "kind", "precision", "shift"
TEMPERING, OPTIMUM, INPUTS = "tempering", "optimum", "inputs"

Array = npt.NDArray[Any]
State = Mapping[str, Array]


def named(kind: str) -> Array:
    """A kind as an array."""
    return np.frombuffer(kind.encode(), np.uint8).copy()


def kind_of(state: State) -> str:
    """The kind of a state."""
    return "diagonal" if KIND not in state else state[KIND].tobytes().decode(errors="replace")


def diagonal(state: State) -> Array:
    """The diagonal of Lambda in the parameters' own coordinates, [P]; raises UnknownFormat."""
    match kind_of(state):
        case "diagonal":
            return state[PRECISION]
        case "full":
            return np.diagonal(state[PRECISION])
        case kind if kind == EXACT:
            return state[PRECISION]
        case "layered":
            return _layered_diagonal(state)
        case kind:
            raise UnknownFormat(f"a posterior of curvature {kind!r}; this streamcl does not know it: upgrade it")


def remainder(total: State, factors: Iterable[State]) -> float:
    """How far Lambda without these factors is from a multiple of the identity, which a prior's is.

    Relative to the total's largest entry, or to 1 where that is less. Raises UnknownFormat where a factor is of another
    kind than the total.
    """
    factors = list(factors)
    for factor in factors:
        if kind_of(factor) != kind_of(total):
            raise UnknownFormat(f"a factor of curvature {kind_of(factor)!r} in a posterior of {kind_of(total)!r}")
    if kind_of(total) == EXACT:
        return _exact_remainder(total, factors)
    if kind_of(total) == "layered":
        return _layered_remainder(total, factors)
    rest = total[PRECISION]
    for factor in factors:
        rest = rest - factor[PRECISION]
    own = diagonal({**total, PRECISION: rest})
    beside = rest - np.diag(own) if rest.ndim == 2 else np.zeros(1)
    return max(float(np.ptp(own)), float(np.abs(beside).max())) / max(1.0, float(np.abs(total[PRECISION]).max()))


def _exact_remainder(total: State, factors: Sequence[State]) -> float:
    """Of counts: what is left of every group's without those of the factors."""
    left, half_life = total["counts"].copy(), float(total["half_life"][0])
    for factor in factors:
        age = float(total["rows"][0] - factor["rows"][0])
        left[: len(factor["counts"])] -= factor["counts"] * (0.5 ** (age / half_life) if half_life else 1.0)
    return float(np.abs(left).max(initial=0.0)) / max(1.0, float(total["counts"].max(initial=0.0)))


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A matrix of a layered state: its description, what it holds there, and its sides (None where not turned)."""

    names: list[str]
    places: list[tuple[int, int]]
    values: Array
    sides: tuple[Array | None, Array | None]
    stacked: bool

    def put(self, values: Array, vector: Array) -> None:
        """[rows, columns] where they belong in a flat vector [P]."""
        (start, stop), *others = self.places
        if self.stacked:
            parts = np.split(values[:, 0], np.cumsum([b - a for a, b in self.places])[:-1])
            for (one, end), part in zip(self.places, parts, strict=True):
                vector[one:end] = part
            return
        columns = (stop - start) // len(values)
        vector[start:stop] = values[:, :columns].reshape(-1)
        for one, end in others:
            vector[one:end] = values[:, -1]


def _matrices(state: State) -> tuple[list[_Matrix], Array]:
    """All matrices of a layered state, and a flat vector [P] with the precision of everything else, 0 elsewhere."""
    size, described = json.loads(state["matrices"].tobytes())
    found, at, own = [], 0, np.zeros(size)
    taken = np.zeros(size, bool)
    for k, (names, places, rows, columns, stacked) in enumerate(described):
        values = state[PRECISION][at : at + rows * columns].reshape(rows, columns)
        sides = state.get(f"left.{k}"), state.get(f"right.{k}")
        found.append(_Matrix(names, [(a, b) for a, b in places], values, sides, stacked))
        at += rows * columns
        for start, stop in places:
            taken[start:stop] = True
    own[~taken] = state[PRECISION][at:]
    return found, own


def _own(side: Array | None, values: Array) -> Array:
    """The diagonal, in a side's entries, of what is a diagonal [..., n] along its vectors [n, m]; as `basis.Side.own`."""
    if side is None:
        return values
    return _through(side, np.square(side), values)


def _through(side: Array, squares: Array, values: Array) -> Array:
    """As `basis.Side._through`."""
    most = side.shape[1]
    found: Array = values[..., :most] @ squares.T
    return found if most == len(side) else found + values[..., most:].mean(-1, keepdims=True) * (1 - squares.sum(1))


def _restated(here: Array | None, there: Array | None, values: Array) -> Array:
    """A diagonal [..., n] along the vectors of one side along those of another; as `basis.Side.restated`."""
    if here is there or (here is not None and there is not None and np.array_equal(here, there)):
        return values
    if here is None:
        return _own(there, values)
    squares = np.square(here.T if there is None else here.T @ there)
    turned: Array = values @ squares.T if there is None else _through(there, squares, values)
    beyond = len(here) - turned.shape[-1]
    if not beyond:
        return turned
    left = (values.sum(-1, keepdims=True) - turned.sum(-1, keepdims=True)) / beyond
    return np.concatenate([turned, np.repeat(left, beyond, -1)], -1)


def _layered_diagonal(state: State) -> Array:
    found, own = _matrices(state)
    for each in found:
        block = state.get(f"block.{each.names[0]}")
        turned = _own(each.sides[1], _own(each.sides[0], each.values.T).T)
        values = turned if block is None else np.diagonal(block)[:, None]
        each.put(values, own)
    return own


def _layered_remainder(total: State, factors: Sequence[State]) -> float:
    """By matrices, each factor re-expressed in the total's basis as the posterior does it (`basis`)."""
    matrices, rest = _matrices(total)
    others = [(factor, *_matrices(factor)) for factor in factors]
    for _, _, own in others:
        rest = rest - own
    values, beside = [], 0.0
    for k, each in enumerate(matrices):
        left = each.values.copy()
        block = total.get(f"block.{each.names[0]}")
        block = None if block is None else block.copy()
        for factor, of_factor, _ in others:
            if block is not None:
                block -= factor[f"block.{each.names[0]}"]
                continue
            (one, two), there = each.sides, of_factor[k]
            left -= _restated(two, there.sides[1], _restated(one, there.sides[0], there.values.T).T)
        values.append(left.reshape(-1) if block is None else np.diagonal(block))
        if block is not None:
            beside = max(beside, float(np.abs(block - np.diag(np.diagonal(block))).max()))
    taken = np.zeros(len(rest), bool)
    for each in matrices:
        for start, stop in each.places:
            taken[start:stop] = True
    numbers = np.concatenate([*values, rest[~taken]])
    largest = max(
        [float(np.abs(total[PRECISION]).max())] + [float(np.abs(a).max()) for n, a in total.items() if n[:6] == "block."]
    )
    return max(float(np.ptp(numbers)), beside) / max(1.0, largest)
