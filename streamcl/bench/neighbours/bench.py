"""``streamcl bench neighbours``: the defaults beside other methods that keep a constant amount and no old rows.

On the same tasks, network, rows and passes, in process. streamcl has its defaults; every neighbour has a small grid, and
is shown at the cell that was best on the test rows with the first seed, which nobody who uses it can know. What is not of
a public package is this benchmark's own code, after the papers, and said to be.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
from torch import nn

from streamcl.bench.ablations import NOTE, Method, Result, measure
from streamcl.bench.demo import digits
from streamcl.bench.neighbours.kronecker import LAPLACE, laplace_factors, laplace_version, nearest, summed
from streamcl.bench.neighbours.published import PUBLISHED
from streamcl.bench.neighbours.rules import (
    KroneckerPenalty,
    Merge,
    NaturalContinual,
    OrthogonalModification,
    Source,
    SynapticIntelligence,
    own_factors,
)
from streamcl.bench.neighbours.scenarios import Case, Scenario, scenario
from streamcl.bench.neighbours.table import table
from streamcl.bench.neighbours.training import Make, taught
from streamcl.bench.permuted_mnist import load_images
from streamcl.bench.versions import versions
from streamcl.core.likelihood import Categorical

DIGITS = "digits"
OURS, OWN = "streamcl", "this benchmark's own"
RATES = {"adam": (1e-3, 3e-3), "sgd": (0.01, 0.03, 0.1)}
ONE_RATE = {"adam": (3e-3,), "sgd": (0.03,)}
STRENGTHS = (1.0, 10.0, 100.0, 1e3)
SCALES = (*STRENGTHS, 1e4, 1e6)  # van de Ven's split of MNIST took lambdas of 1e5 to 1e10, of the mean
TEMPERS = (0.1, 1.0, 10.0)  # of NCL
ALPHAS = (1e-4, 1e-3, 1e-2)  # of OWM
IMPORTANCES = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4)  # SI's c, over the mean NLL
PASSES = 5  # Schwarz et al.'s
Rates = Mapping[str, Sequence[float]]  # of each optimiser
Run = Callable[[Case, Scenario, int], Result]


@dataclass(frozen=True, slots=True)
class Cell:
    """One setting of a method. at: its place in the grid, along each of the grid's sides."""

    setting: str
    run: Run
    at: tuple[tuple[int, int], ...] = ()

    @property
    def on_an_edge(self) -> bool:
        """Whether a larger grid might have done better, along a side of more than two."""
        return any(place in (0, length - 1) for place, length in self.at if length > 2)


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A method with its grid. source: whose code it is."""

    name: str
    source: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Found:
    """A method at one cell with one seed."""

    neighbour: Neighbour
    cell: Cell
    result: Result


# -- who is compared ---------------------------------------------------------------------------------------------------


def neighbours(case: Case, rates: Rates = RATES) -> tuple[Neighbour, ...]:
    """Of a case: revisits are streamcl's and online EWC's; anything else is one pass of everybody."""
    return _of_passes() if case == "revisits" else _of_one_pass(case, rates)


def _of_one_pass(case: Case, rates: Rates) -> tuple[Neighbour, ...]:
    kron, whose = _laplace() if not case.endswith("task") else (_own, OWN)
    return (
        _fixed("streamcl, nothing set", {}),
        _scales("diagonal online EWC (the note's)", NOTE),
        _grid("Kronecker products at the mode", whose, rates["adam"], "strength", STRENGTHS, _penalty(kron, summed, True)),
        _grid("KFAC-EWC", OWN, rates["adam"], "strength", STRENGTHS, _penalty(_own, nearest, False)),
        _grid("OWM", OWN, rates["sgd"], "alpha", ALPHAS, lambda alpha: lambda net, _: OrthogonalModification(net, alpha)),
        _grid("NCL", OWN, rates["sgd"], "strength", TEMPERS, lambda t: lambda net, k: NaturalContinual(net, _own(k), t)),
        _grid("SI", OWN, rates["adam"], "c", IMPORTANCES, lambda c: lambda net, _: SynapticIntelligence(net, c)),
        _fixed("fine-tuning", {"scale": 0.0}),
        _fixed("joint training", {}, joint=True),
    )


def _of_passes() -> tuple[Neighbour, ...]:
    return (
        _fixed("streamcl, factor mode, nothing else set", {"mode": "factors"}, passes=PASSES),
        _scales("online EWC, gamma 0.95", {**NOTE, "mode": "online", "gamma": 0.95}, passes=PASSES),
        _fixed("fine-tuning", {"scale": 0.0, "mode": "online"}, passes=PASSES),
        _fixed("joint training", {}, joint=True),
    )


def _fixed(name: str, posterior: Mapping[str, Any], joint: bool = False, passes: int = 1) -> Neighbour:
    """streamcl's own, with a configuration that is not searched for."""
    method = Method(name, posterior, joint=joint)
    return Neighbour(name, OURS, (Cell("", partial(_learned, method, passes)),))


def _scales(name: str, posterior: Mapping[str, Any], passes: int = 1) -> Neighbour:
    """streamcl's own, with a scale that is searched for."""
    cells = [
        Cell(
            f"scale {scale:g}",
            partial(_learned, Method(name, {**posterior, "scale": scale}), passes),
            ((place, len(SCALES)),),
        )
        for place, scale in enumerate(SCALES)
    ]
    return Neighbour(name, OURS, tuple(cells))


def _learned(method: Method, passes: int, case: Case, given: Scenario, seed: int) -> Result:
    return measure(method, case, given.tasks, given.model, seed, passes)


def _grid(
    name: str, source: str, rates: Sequence[float], what: str, values: Sequence[float], make: Callable[[float], Make]
) -> Neighbour:
    cells = [
        Cell(
            f"{what} {value:g}, rate {rate:g}",
            partial(_ruled, name, make(value), rate),
            ((row, len(values)), (column, len(rates))),
        )
        for (row, value), (column, rate) in product(enumerate(values), enumerate(rates))
    ]
    return Neighbour(name, source, tuple(cells))


def _ruled(name: str, make: Make, rate: float, case: Case, given: Scenario, seed: int) -> Result:
    return taught(name, make, rate, case, given.tasks, given.model, seed)


def _penalty(source: Callable[[int], Source], merge: Merge, ridge: bool) -> Callable[[float], Make]:
    return lambda strength: lambda net, outputs: KroneckerPenalty(net, source(outputs), strength, merge, ridge)


def _own(outputs: int) -> Source:
    return own_factors(Categorical(outputs))


def _laplace() -> tuple[Callable[[int], Source], str]:
    """laplace-torch's factors where it is installed, and otherwise our own; and whose they are."""
    version = laplace_version()
    if version is None:
        return _own, OWN
    return lambda outputs: lambda module, x, y: laplace_factors(_plain(module), x, y), f"factors of {LAPLACE} {version}"


def _plain(module: nn.Module) -> nn.Sequential:
    """A copy, without the cast of integers at its front: BackPACK takes plain layers, and leaves its hooks on them."""
    assert isinstance(module, nn.Sequential)
    return nn.Sequential(*copy.deepcopy(list(module)[1:]))


# -- what is run -------------------------------------------------------------------------------------------------------


def run(
    data: Path | None,
    cases: list[Case],
    tasks: int,
    seeds: list[int],
    only: list[str],
    one_rate: bool,
    out: Path | None,
) -> dict[Case, list[Found]]:
    """Every method whose name contains one of `only`, printed as it comes and as tables, and written to `out`."""
    images, hidden = (digits(), [256, 256]) if data is None else (load_images(data, 10_000), [200, 200])
    shown = {"data": DIGITS if data is None else data.name, "tasks": tasks, "hidden": hidden, "seeds": seeds}
    settings = {**shown, "one_rate": one_rate, "only": only}
    rates = ONE_RATE if one_rate else RATES
    found: dict[Case, list[Found]] = {}
    for case in cases:
        given = {seed: scenario(case, images, tasks, hidden, seed) for seed in seeds}
        found[case] = []
        for one in _measured([n for n in neighbours(case, rates) if any(part in n.name for part in only)], case, given):
            found[case].append(one)
            _say(one)
            if out is not None:
                out.write_text(json.dumps(document(found, settings), indent=2) + "\n")
    print(f"\n{table(document(found, settings))}")
    return found


def _measured(chosen: list[Neighbour], case: Case, given: Mapping[int, Scenario]) -> Iterator[Found]:
    first, *others = given
    for neighbour in chosen:
        searched = []
        for cell in neighbour.cells:
            searched.append(Found(neighbour, cell, cell.run(case, given[first], first)))
            yield searched[-1]
        cell = _best(searched)
        for seed in others:
            yield Found(neighbour, cell, cell.run(case, given[seed], seed))


def best(found: Sequence[Found]) -> dict[str, list[Found]]:
    """By method, every seed of the cell that was best with the first."""
    methods = dict.fromkeys(each.neighbour.name for each in found)
    return {name: _best_cell([each for each in found if each.neighbour.name == name]) for name in methods}


def _best_cell(found: Sequence[Found]) -> list[Found]:
    cell = _best([each for each in found if each.result.seed == found[0].result.seed])
    return [each for each in found if each.cell is cell]


def _best(found: Sequence[Found]) -> Cell:
    return max(found, key=lambda each: each.result.mean).cell


# -- what is shown -----------------------------------------------------------------------------------------------------


def _say(one: Found) -> None:
    shown = " ".join(f"{value:.3f}" for value in one.result.accuracy)
    name = f"{one.neighbour.name}, {one.cell.setting}" if one.cell.setting else one.neighbour.name
    result = one.result
    print(f"{result.case} {result.seed}  {name:<62} {result.mean:.4f}  {shown}  ({result.seconds:.0f} s)", flush=True)


def document(found: Mapping[Case, list[Found]], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Every figure, those of the best cells marked, what is published, and what all was taken with."""
    chosen = {id(each) for every in found.values() for seeds in best(every).values() for each in seeds}
    rows = [_row(each, id(each) in chosen) for every in found.values() for each in every]
    beside = {} if settings["data"] == DIGITS else PUBLISHED  # which are of MNIST
    published = {case: [msgspec.to_builtins(each) for each in beside.get(case, ())] for case in found}
    about = {"benchmark": "neighbours", "settings": dict(settings), "versions": versions() | _peers()}
    return {**about, "published": published, "results": rows}


def _row(one: Found, chosen: bool) -> dict[str, Any]:
    grid = {"setting": one.cell.setting, "cells": len(one.neighbour.cells), "edge": one.cell.on_an_edge}
    return one.result.row() | grid | {"best": chosen, "source": one.neighbour.source}


def _peers() -> dict[str, str]:
    version = laplace_version()
    return {} if version is None else {LAPLACE: version}
