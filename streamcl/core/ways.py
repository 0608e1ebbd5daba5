"""Which way the Fisher of which parameter is taken: a closed form, vmap or the loop, as a few rows show it sound."""

from __future__ import annotations

from collections import Counter
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from streamcl.core.closed_forms import FIRST, Layout, Lookup, Names, Site
from streamcl.core.gradients import agree, largest, noise, output_gradients, random_like
from streamcl.core.likelihood import Cotangents, FisherKind
from streamcl.core.measures import Measure, Sums, turnable
from streamcl.core.per_sample import Mode, PerSample
from streamcl.core.watched import Watched

PROBE_ROWS = 3


@dataclass(frozen=True, slots=True)
class Closed:
    """A site whose closed form is sound: for these names, with its samples there."""

    names: Names
    layout: Layout


@dataclass(frozen=True, slots=True)
class Ways:
    """How each parameter's Fisher is computed, as the self-check found it sound.

    calls: the keys of all sites of a forward pass. closed: by the position in it. mode: in which vmap takes the
    general parameters, if it does. width: numbers held for a sample. products: the closed ones that are products of a
    weight. lookups: of these, the weights that are tables.
    """

    calls: list[tuple[object, ...]]
    closed: dict[int, Closed]
    general: list[str]
    mode: Mode | None
    width: int
    products: tuple[Names, ...] = ()
    lookups: tuple[str, ...] = ()

    @property
    def vectorised(self) -> bool:
        """Whether vmap takes the general parameters."""
        return self.mode is not None

    @property
    def fast(self) -> bool:
        """Whether anything has a way but the loop."""
        return bool(self.closed) or self.vectorised

    @property
    def samples_first(self) -> bool:
        """Whether closed forms alone are used, all with their samples along the first axis."""
        return not self.general and all(closed.layout == FIRST for closed in self.closed.values())

    def of_products(self) -> Ways:
        """Those of calls of one product of a weight alone."""
        return replace(self, closed={index: each for index, each in self.closed.items() if each.names in self.products})

    def sites(self, found: list[Site], samples: int, measure: Measure) -> list[Site] | None:
        """The sites with a sound closed form, wrapped; None where this forward pass went another way than the first."""
        if [site.key for site in found] != self.calls:
            return None
        if not all(found[index].fits(closed.layout, samples) for index, closed in self.closed.items()):
            return None
        return [
            measure.wrapped(found[index].at(closed.names, closed.layout, samples)) for index, closed in self.closed.items()
        ]


def find_ways(
    watched: Watched, per_sample: PerSample, measure: Measure, likelihood: Cotangents, kind: FisherKind, x: Tensor
) -> Ways:
    """The ways that are sound on the first of the rows x [n, ...]."""
    x = x[torch.arange(PROBE_ROWS, device=x.device) % len(x)]
    forward, names = watched.forward(x), watched.parameters.names
    if forward is None:
        return Ways([], {}, names, mode=None, width=x[0].numel())
    output, found = forward.output, forward.sites
    closed = _sound(per_sample, x, output, found)
    closed = {index: each for index, each in closed.items() if measure.together(each.names, found[index])}
    covered = {name for each in closed.values() for name in each.names}
    general = [name for name in names if name not in covered]
    k = len(likelihood.cotangents(output.detach(), kind, None, None)) if kind == "exact" else 1
    numbers = x.numel() + k * output.numel() + sum(found[index].numbers for index in closed)
    return Ways(
        calls=[site.key for site in found],
        closed=closed,
        general=general,
        mode=per_sample.mode(general, x, output.detach()) if general else None,
        width=(k if output.is_cuda else 1) * numbers // len(x),
        products=tuple(each.names for index, each in closed.items() if turnable(each.names, found[index])),
        lookups=tuple(str(each.names[0]) for index, each in closed.items() if isinstance(found[index], Lookup)),
    )


def _sound(per_sample: PerSample, x: Tensor, output: Tensor, found: list[Site]) -> dict[int, Closed]:
    """Which sites' closed forms equal a loop over samples, for one random cotangent."""
    used = Counter(name for site in found for name in site.names if name is not None)
    cotangent = random_like(output, 1, seed=0)
    expected = per_sample.loop(list(used), x, cotangent, per_sample.squares)
    floor = noise(output.dtype) ** 2 * largest(expected)
    sound = {}
    for index, (site, gradient) in enumerate(zip(found, _gradients(output, found, cotangent), strict=True)):
        once = _only(site.names, {name for name, uses in used.items() if uses == 1})
        if gradient is None or once == (None, None):
            continue
        for layout in site.layouts(len(x)):
            agreeing = _only(once, _agreeing(copy(site).at(once, layout, len(x)), gradient, expected, floor))
            if any(agreeing):
                sound[index] = Closed(agreeing, layout)
                break
    return sound


def _gradients(output: Tensor, found: list[Site], cotangent: Tensor) -> list[Tensor | None]:
    """Of the sites' outputs for one cotangent [1, ...]; None where there is no way back to one."""
    try:
        gradients = next(output_gradients(output, found, cotangent), None)
    except RuntimeError:  # a function that takes part in `backward()` only
        gradients = None
    return [None] * len(found) if gradients is None else list(gradients)


def _only(names: Names, kept: set[str]) -> Names:
    weight, bias = names
    return weight if weight in kept else None, bias if bias in kept else None


def _agreeing(site: Site, gradient: Tensor, expected: Sums, floor: float) -> set[str]:
    """The names for which a site's closed form gives what is expected; zeros prove nothing."""
    sums = {name: torch.zeros_like(expected[name]) for name in site.names if name is not None}
    try:
        with torch.no_grad():
            site.prepare()
            site.add(gradient, sums)
            site.finish(sums)
    except (RuntimeError, IndexError, ValueError):  # not a call of the shapes that the form is for
        return set()
    return {name for name, squares in sums.items() if squares.any() and agree(squares, expected[name], floor)}
