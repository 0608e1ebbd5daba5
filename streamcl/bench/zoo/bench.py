"""Every architecture of the zoo: tried as on a first batch, learned as one task, its Fisher compared with a loop.

Two ways to the same Fisher are compared with the oracle: what entered the posterior at the boundary (rows in one block),
and the same parameters' Fisher taken in blocks of uneven sizes, where a layout that fits by accident would show.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from streamcl.bench.versions import versions
from streamcl.bench.zoo import oracle
from streamcl.bench.zoo.architectures import DATA, REFUSED, ZOO
from streamcl.config import Config, from_tree
from streamcl.core.fisher import Fisher
from streamcl.core.likelihood import FisherKind, Likelihood
from streamcl.entries import Mark
from streamcl.errors import ModelRefused
from streamcl.learning.data import Block, Rows
from streamcl.learning.fitting import Fitting
from streamcl.learning.learner import Learner, Steps
from streamcl.learning.network import Network
from streamcl.schema import chosen

CLASSES, ROWS = 3, 15
BLOCKS = (1, 2, 5, 3, 4)  # sums to ROWS
KINDS: tuple[FisherKind, ...] = ("exact", "mc", "empirical")
TOLERANCES = {"float32": 1e-5, "float64": 1e-10}  # of the largest entry
FACTORY = "streamcl.bench.zoo.architectures:build"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome for an architecture. error: of its Fisher, relative to the largest entry. words: the refusal, or the note
    about rows taken one by one, or what went wrong."""

    architecture: str
    dtype: str
    fisher: str
    outcome: Literal["learned", "refused", "wrong", "failed"]
    error: float | None = None
    words: str | None = None

    @property
    def good(self) -> bool:
        """Whether it is one of the two permitted outcomes."""
        return self.outcome in ("learned", "refused")


def run(out: Path | None, only: str = "") -> int:
    """Go through the zoo, print a line for each and write; 1 if any had a third outcome."""
    outcomes = list(outcomes_of(only))
    for name in dict.fromkeys(outcome.architecture for outcome in outcomes):
        print(line([outcome for outcome in outcomes if outcome.architecture == name]), flush=True)
    third = [outcome for outcome in outcomes if not outcome.good]
    names = {outcome.architecture for outcome in outcomes}
    print(f"{len(names)} architectures, {len(outcomes)} runs, {len(third)} with a third outcome")
    if out is not None:
        figures = {"benchmark": "zoo", "versions": versions(), "rows": ROWS, "tolerances": TOLERANCES}
        out.write_text(json.dumps({**figures, "outcomes": [asdict(outcome) for outcome in outcomes]}, indent=1) + "\n")
    return 1 if third else 0


def outcomes_of(only: str = "") -> Iterator[Outcome]:
    """Every architecture whose name contains this, in both precisions, with all three kinds of Fisher."""
    for name in ZOO:
        if only in name:
            for dtype in TOLERANCES:
                yield from (outcome(name, dtype, kind) for kind in KINDS)


def line(outcomes: list[Outcome]) -> str:
    """One architecture for a terminal."""
    (name,) = {outcome.architecture for outcome in outcomes}
    found = "/".join(dict.fromkeys(outcome.outcome for outcome in outcomes))
    errors = [max((o.error or 0.0 for o in outcomes if o.dtype == dtype), default=0.0) for dtype in TOLERANCES]
    figures = "" if found == "refused" else "  ".join(f"{error:8.1e}" for error in errors)
    words = next((outcome.words for outcome in outcomes if outcome.words), None) or ""
    return f"{name:<34}{found:<9}{figures:<20}{words[:110]}"


def table(outcomes: list[dict[str, Any]]) -> str:
    """The same as Markdown, from a JSON document."""
    rows = ["| architecture | outcome | float32 | float64 |", "|---|---|---|---|"]
    for name in dict.fromkeys(each["architecture"] for each in outcomes):
        mine = [each for each in outcomes if each["architecture"] == name]
        found = "/".join(dict.fromkeys(each["outcome"] for each in mine))
        errors = [max(each["error"] or 0.0 for each in mine if each["dtype"] == dtype) for dtype in TOLERANCES]
        shown = ["", ""] if found == "refused" else [f"{error:.0e}" for error in errors]
        rows.append(f"| {name.replace('_', ' ')} | {found} | {' | '.join(shown)} |")
    return "\n".join(rows) + "\n"


def outcome(name: str, dtype: str, kind: FisherKind) -> Outcome:
    """Try, learn, compare."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return _learned(name, dtype, kind)
        except ModelRefused as refused:
            return Outcome(name, dtype, kind, "refused" if name in REFUSED else "wrong", words=str(refused))
        except Exception as error:
            return Outcome(name, dtype, kind, "failed", words=f"{type(error).__name__}: {error}"[:300])


def _learned(name: str, dtype: str, kind: FisherKind) -> Outcome:
    run = Run(name, dtype, kind)
    run.try_model()
    errors = [run.boundary_error(), run.blocks_error()]
    right = all(error <= TOLERANCES[dtype] for error in errors) and name not in REFUSED
    return Outcome(name, dtype, kind, "learned" if right else "wrong", max(errors), run.fitting().fisher_note)


class Run:
    """One architecture with its data, learned as a daemon's trainer would."""

    def __init__(self, name: str, dtype: str, kind: FisherKind) -> None:
        self.kind = kind
        self.config = self._config(name, dtype, kind)
        rng = np.random.default_rng(0)
        x = DATA[ZOO[name][0]](rng, ROWS)
        self.x = x.astype("<i8" if x.dtype.kind == "i" else "<f4")
        self.y = np.arange(ROWS, dtype="<i8") % CLASSES
        self.rows = Rows("a", self.x, self.y, tuple(range(CLASSES)))
        self.learner = Learner(self.config, self)

    @staticmethod
    def _config(name: str, dtype: str, kind: FisherKind) -> Config:
        return from_tree(
            {
                "model": {"factory": FACTORY, "args": {"name": name}, "classes": CLASSES},
                "train": {"dtype": dtype, "epochs": 1, "batch_size": 8, "device": "cpu"},
                "posterior": {"fisher": kind, "curvature": "diagonal", "expectation": "mode"},
            }
        )

    def columns(self, lsn: int) -> None:
        """Plain arrays have none."""

    def try_model(self) -> None:
        """As before a first batch is acknowledged; raises ModelRefused."""
        self.learner.try_model(Rows("a", *chosen(self.x, self.y), self.rows.new_labels), lambda: None)

    def boundary_error(self) -> float:
        """One task; the error of what the posterior has gained."""
        self._run(self.learner.observe(Mark(0), self.rows))
        prior = self._posterior().precision.diagonal().clone()
        heard = self._listen()
        self._run(self.learner.close(Mark(1)))
        return self._error(self._posterior().precision.diagonal() - prior, heard)

    def blocks_error(self) -> float:
        """The error of the same Fisher in blocks."""
        network = self._network()
        heard = self._listen()
        generator = torch.Generator().manual_seed(1)
        found = Fisher(network.module, network.parameters, network.likelihood, self.kind, generator)
        x, y, start = network.conversion.x(self.x), network.conversion.y(self.y), 0
        for rows in BLOCKS:
            found.add(x[start : start + rows], y[start : start + rows])
            start += rows
        if not found.verified():
            return float("inf")
        return self._error(found.total, heard)

    def _error(self, found: Tensor, heard: _Listening) -> float:
        """Beside the loop on a network of its own, which has taken over this one's state."""
        network = self._network()
        again = Network(self.config, network.signature, network.labels, network.device)
        again.load(network.state())
        drawn = {"exact": None, "mc": heard.labels(), "empirical": network.conversion.y(self.y)}
        expected = oracle.fisher(again.module, network.conversion.x(self.x), drawn[self.kind])
        return float((found - expected).abs().max() / expected.abs().max())

    @staticmethod
    def _run(steps: Steps) -> None:
        for _ in steps:
            pass

    def read(self, lsn: int, verify: bool = True) -> Block:
        """As a store of one batch."""
        return self.x, self.y

    def batches(self, first: int, end: int, verify: bool = True) -> Iterator[tuple[int, int]]:
        """As a store of one batch."""
        return iter([(0, ROWS)][first:end])

    def fitting(self) -> Fitting:
        """How it was fitted."""
        assert self.learner.model is not None
        fitting = self.learner.model.fitting
        assert isinstance(fitting, Fitting)
        return fitting

    def _listen(self) -> _Listening:
        network = self._network()
        whole = network.likelihood.whole if isinstance(network.likelihood, _Listening) else network.likelihood
        network.likelihood = heard = _Listening(whole)
        return heard

    def _network(self) -> Network:
        assert self.learner.model is not None
        return self.learner.model.network

    def _posterior(self) -> Any:
        assert self.learner.model is not None
        return self.learner.model.posterior.total


class _Listening:
    """A likelihood that remembers which labels were drawn for the rows of each block."""

    def __init__(self, whole: Likelihood) -> None:
        self.whole = whole
        self._outputs: list[Tensor] = []
        self._labels: list[Tensor] = []

    def cotangents(self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: Any) -> Tensor:
        """As the likelihood itself; rows that come again at once are drawn again."""
        vectors = self.whole.cotangents(output, kind, target, generator)
        if kind == "mc":
            if (
                self._outputs
                and self._outputs[-1].shape == output.shape
                and torch.allclose(self._outputs[-1], output, 1e-3)
            ):
                self._outputs.pop()
                self._labels.pop()
            self._outputs.append(output)
            self._labels.append(vectors[0].argmin(1))  # p - e_y is negative at y alone
        return vectors

    def labels(self) -> Tensor | None:
        """Of all rows, in their order."""
        return torch.cat(self._labels) if self._labels else None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.whole, name)
