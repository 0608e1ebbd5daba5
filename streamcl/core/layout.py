"""What stands where in a flat vector of parameters, and what of the module stands in none; known without torch.

The same layout holds for theta and for every vector beside it: gradient, shift, the diagonal of a precision, moments of the
optimiser.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Part:
    """One trained parameter: its entries begin at `offset`."""

    name: str
    shape: Shape
    offset: int

    @property
    def place(self) -> slice:
        """Its entries in a flat vector."""
        return slice(self.offset, self.offset + math.prod(self.shape))


@dataclass(frozen=True, slots=True)
class Layout:
    """parts: the trained parameters, in order and without gaps. frozen, buffers: names of what no flat vector holds.

    tied: every further name of a parameter or buffer, and the one that it stands under.
    """

    parts: tuple[Part, ...]
    frozen: tuple[str, ...] = ()
    buffers: tuple[str, ...] = ()
    tied: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(
        cls,
        trained: Iterable[tuple[str, Iterable[int]]],
        frozen: Iterable[str] = (),
        buffers: Iterable[str] = (),
        tied: Iterable[tuple[str, str]] = (),
    ) -> Layout:
        """trained: names and shapes, in order."""
        parts, offset = [], 0
        for name, shape in trained:
            parts.append(Part(name, tuple(shape), offset))
            offset = parts[-1].place.stop
        return cls(tuple(parts), tuple(frozen), tuple(buffers), tuple((name, own) for name, own in tied))

    @property
    def names(self) -> list[str]:
        """Of the trained parameters."""
        return [part.name for part in self.parts]

    @property
    def shapes(self) -> list[Shape]:
        """Of the trained parameters."""
        return [part.shape for part in self.parts]

    @property
    def size(self) -> int:
        """P, the length of a flat vector."""
        return self.parts[-1].place.stop if self.parts else 0

    def split(self, vector: Any) -> dict[str, Any]:
        """A flat vector [P], of NumPy or torch, as views in the parameters' shapes, by name."""
        return {part.name: vector[part.place].reshape(part.shape) for part in self.parts}

    def plain(self) -> dict[str, Any]:
        """As plain containers, for a file."""
        return {
            "names": self.names,
            "shapes": [list(shape) for shape in self.shapes],
            "frozen": list(self.frozen),
            "buffers": list(self.buffers),
            "tied": [list(pair) for pair in self.tied],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> Layout:
        """What `plain` gave."""
        trained = zip(plain["names"], plain["shapes"], strict=True)
        return cls.of(trained, plain["frozen"], plain["buffers"], plain["tied"])

    def difference(self, other: Layout) -> str | None:
        """Why a flat vector of one is none of the other, in words; None where it is one. A new name alone is no reason.

        Other shapes are; and so is a name that stands elsewhere in the other: its numbers would be another parameter's.
        """
        for one, two in zip(self.parts, other.parts, strict=False):
            moved = one.name != two.name and (one.name in other.names or two.name in self.names)
            if one.shape != two.shape or moved:
                return f"{one.name} {list(one.shape)} where the other has {two.name} {list(two.shape)}"
        if len(self.parts) != len(other.parts):
            return f"{len(self.parts)} trained parameters where the other has {len(other.parts)}"
        return None
