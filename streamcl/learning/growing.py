"""How many outputs a network has while labels may come at any time, and what there is to know of when it had fewer.

A network has an output for every label, and a few more for labels that have not come: a row says of those too that it is
none of them, so that what is learned of a new label begins from what the tasks before it say of "another one". Guarantees:
a function of the labels so far; the widths that a network has had are all that it takes to make it anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcl.core.growth import Growth
from streamcl.core.layout import Layout
from streamcl.schema import COLUMNS

SPARE, SHARE = 8, 8  # outputs for labels that have not come: so many, or one for so many labels where that is more

Widths = tuple[tuple[int, int], ...]  # from which position in the log on a network has had how many outputs
Blocks = Mapping[str, Sequence[int]]  # rows of a weight, by its name, at each of its widths


def spare(known: int) -> int:
    """How many outputs are added for labels that have not come, beside so many that have."""
    return max(SPARE, known // SHARE)


def width(known: int, scenario: str = "class") -> int:
    """How many outputs a network begins with, for so many labels: ten, as version 1 has them, or more and some to spare.

    None to spare, and no ten, where tasks bring no new labels, or are told apart in any case.
    """
    return COLUMNS if scenario == "class" and known <= COLUMNS else _wider(known, scenario)


def _wider(known: int, scenario: str) -> int:
    return known + spare(known) if scenario == "class" else max(2, known)


def due(widths: Widths, known: int, scenario: str = "class", told: bool = True, learned: bool = True) -> int | None:
    """How many outputs there are to be, where the network has too few; None where it has enough, or a bounded number.

    told: its factory is told how many; a module that has its own number keeps to that as long as all labels have one.
    learned: a task has been; before, no rows are gone that should have spoken of labels to come.
    """
    spared = scenario == "class" and learned and (told or len(widths) > 1)
    least = known + spare(known) // 2 if spared else known
    return _wider(known, scenario) if widths and widths[-1][1] < least else None


class Widening:
    """The layouts that a network has had, from the first to that of now."""

    def __init__(self, layouts: tuple[Layout, ...]) -> None:
        self.layouts = layouts

    def growth(self, size: int) -> Growth | None:
        """From the layout of so many parameters to that of now; None where it is that, or none that is known."""
        found = next((layout for layout in self.layouts[:-1] if layout.size == size), None)
        return None if found is None else Growth(found, self.layouts[-1])

    def narrower(self) -> list[list[list[int]]]:
        """The shapes of all parameters, of every layout but that of now."""
        return [[list(shape) for shape in layout.shapes] for layout in self.layouts[:-1]]

    def blocks(self) -> dict[str, list[int]]:
        """The rows of every weight that has grown, at each width."""
        every = [dict(zip(layout.names, layout.shapes, strict=True)) for layout in self.layouts]
        grown = [name for name, shape in every[-1].items() if len(shape) == 2 and every[0][name][0] != shape[0]]
        return {name: [shapes[name][0] for shapes in every] for name in grown}


@contextmanager
def in_blocks(layers: Sequence[tuple[nn.Linear, Sequence[int]]]) -> Iterator[None]:
    """Without gradients, layers compute their outputs in the blocks in which these came.

    How a matrix product rounds depends on its width: so old outputs are bitwise what they were.
    """
    mine = [(layer, rows) for layer, rows in layers if "forward" not in layer.__dict__]
    for layer, rows in mine:
        layer.__dict__["forward"] = _forward(layer, rows)
    try:
        yield
    finally:
        for layer, _ in mine:
            layer.__dict__.pop("forward", None)


def _forward(layer: nn.Linear, rows: Sequence[int]) -> Callable[[Tensor], Tensor]:
    blocks = list(pairwise((0, *rows)))

    def forward(input: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            return F.linear(input, layer.weight, layer.bias)
        biases = [None if layer.bias is None else layer.bias[start:stop] for start, stop in blocks]
        parts = [F.linear(input, layer.weight[a:b], bias) for (a, b), bias in zip(blocks, biases, strict=True)]
        return torch.cat(parts, -1)

    return forward
