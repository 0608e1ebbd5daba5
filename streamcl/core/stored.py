"""A Gaussian's state as arrays of a file, for those who read it without torch: its kind, and what every kind can say.

What `Gaussian.state` gives: "kind", the kind's name in bytes (a state without one is a diagonal: so were all before there
were kinds); "shift", eta [P]; "precision", Lambda, as the kind keeps it: [P], or [P, P].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import UnknownFormat

KIND, PRECISION, SHIFT = "kind", "precision", "shift"

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
        case kind:
            raise UnknownFormat(f"a posterior of curvature {kind!r}; this streamcl does not know it: upgrade it")


def remainder(total: State, factors: Iterable[State]) -> float:
    """How far Lambda without these factors is from a multiple of the identity, which a prior's is.

    Relative to the total's largest entry, or to 1 where that is less. Raises UnknownFormat where a factor is of another
    kind than the total.
    """
    rest = total[PRECISION]
    for factor in factors:
        if kind_of(factor) != kind_of(total):
            raise UnknownFormat(f"a factor of curvature {kind_of(factor)!r} in a posterior of {kind_of(total)!r}")
        rest = rest - factor[PRECISION]
    own = diagonal({**total, PRECISION: rest})
    beside = rest - np.diag(own) if rest.ndim == 2 else np.zeros(1)
    return max(float(np.ptp(own)), float(np.abs(beside).max())) / max(1.0, float(np.abs(total[PRECISION]).max()))
