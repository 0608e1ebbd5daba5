"""The gradients of every single output of rows: the Jacobians, never larger than a block of rows at a time.

From the outputs of calls of one product of a weight; by vmap for what is in none; by plain backward passes, row by row,
where that is not sound.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamcl.core.closed_forms import FIRST, Site
from streamcl.core.company import Company, mixed
from streamcl.core.gradients import output_gradients, same_outputs
from streamcl.core.likelihood import Cotangents, one_at_a_time
from streamcl.core.measures import Measure, Sums
from streamcl.core.parameters import FlatParameters
from streamcl.core.per_sample import Mode, PerSample
from streamcl.core.watched import Forward, Watched, first_line
from streamcl.core.ways import PROBE_ROWS, Ways, find_ways

BLOCK_BYTES = 256 << 20  # of gradients held at once,
CPU_BLOCK_BYTES = 16 << 20  # and on a CPU


@dataclass(frozen=True, slots=True)
class RowGradients:
    """The gradients of every output of some rows, each row's by themselves.

    outputs: [n, ...], with all rows together. calls: of one product of a weight each, with the gradients [k, ...] of their
    outputs. others: [n, k, *shape] of the parameters in none of these, by name. mixing: a row's outputs depend on the rows
    beside it.
    """

    outputs: Tensor
    calls: list[tuple[Site, Tensor]]
    others: Sums
    mixing: bool


class Jacobians:
    """Of a module at its current parameters. likelihood, measure: by which sites are found sound and wrapped."""

    def __init__(self, module: nn.Module, parameters: FlatParameters, likelihood: Cotangents, measure: Measure) -> None:
        self._watched = Watched(module, parameters)
        self._per_sample = PerSample(self._watched)
        self._company = Company(self._watched)
        self._likelihood, self._measure = likelihood, measure
        self._ways: Ways | None = None
        self._tried = False
        self._mode: Mode | None = None  # whether vmap takes all parameters

    @property
    def slow(self) -> str | None:
        """What was taken one row after the other, why, and what that has cost; None where nothing was."""
        return self._watched.slowness.said("the Jacobian")

    def of(self, x: Tensor) -> Iterator[RowGradients]:
        """Of the rows x [n, ...], some at a time."""
        with self._watched.evaluating():
            if self._ways is None:
                self._ways = find_ways(self._watched, self._per_sample, self._measure, self._likelihood, "exact", x)
            at = 0
            while at < len(x):
                rows = self._rows_held(self._ways, x[at : at + 1])
                yield self._each_row(self._ways, x[at : at + rows])
                at += rows

    def _rows_held(self, ways: Ways, row: Tensor) -> int:
        """How many rows' gradients are held at once."""
        with torch.no_grad():
            outputs: int = self._watched.module(row).numel()
        parameters = sum(self._watched.by_name[name].numel() for name in self._uncalled(ways))
        limit = CPU_BLOCK_BYTES if row.device.type == "cpu" else BLOCK_BYTES
        numbers = outputs * (ways.width + parameters)
        return max(1, limit // (self._watched.parameters.theta.element_size() * max(1, numbers)))

    def _uncalled(self, ways: Ways) -> list[str]:
        """The parameters that are in no call of one product."""
        covered = {name for names in ways.products for name in names}
        return [name for name in self._watched.parameters.names if name not in covered]

    def _each_row(self, ways: Ways, x: Tensor) -> RowGradients:
        self._watched.slowness.rows += len(x)
        forward = self._watched.forward(x)
        outputs = self._watched.one_by_one(x) if forward is None else forward.output
        cotangents = one_at_a_time(torch.ones_like(outputs.detach()))
        calls = self._called(ways, forward, x, cotangents)
        names = self._watched.parameters.names if calls is None else self._uncalled(ways)
        others = self._by_parameter(names, x, cotangents) if names else {}
        mixing = calls is None and forward is not None and not self._apart(x, outputs.detach())
        return RowGradients(outputs.detach(), calls or [], others, mixing)

    def _apart(self, x: Tensor, outputs: Tensor) -> bool:
        """Whether rows have the same outputs in another company."""
        with torch.no_grad():
            halves = [slice(start, None, 2) for start in range(min(2, len(x)))]
            return all(same_outputs(self._watched.module(x[half]), outputs[half]) for half in halves)

    # -- from the outputs of calls -----------------------------------------------------------------------------------

    def _called(
        self, ways: Ways, forward: Forward | None, x: Tensor, cotangents: Tensor
    ) -> list[tuple[Site, Tensor]] | None:
        """The calls with their gradients; None where these are not known to be each row's own."""
        if forward is None:
            return None
        products = ways.of_products()
        sites = products.sites(forward.sites, len(x), self._measure)
        if not sites:
            return None
        pairs = self._pulled(forward, sites, cotangents)
        first = all(each.layout == FIRST for each in products.closed.values())
        return pairs if (forward.proven and first) or self._own_rows(forward, x, pairs, cotangents) else None

    @staticmethod
    def _pulled(forward: Forward, sites: list[Site], cotangents: Tensor) -> list[tuple[Site, Tensor]]:
        """[k, ...] of each site's output, one cotangent's after another."""
        with torch.no_grad():
            for site in sites:
                site.prepare()
            pulled = list(output_gradients(forward.output, sites, cotangents))
        pairs = zip(sites, zip(*pulled, strict=True), strict=True)
        return [(site, torch.stack([g for g in each if g is not None])) for site, each in pairs if each[0] is not None]

    def _own_rows(self, forward: Forward, x: Tensor, pairs: list[tuple[Site, Tensor]], cotangents: Tensor) -> bool:
        """Whether the gradients of calls, weighted and summed, are those of plain backward passes in another company."""
        self._company.begin()
        weights = self._company.weights(cotangents)
        moments = self._watched.zeros(name for site, _ in pairs for name in site.names if name is not None)
        with torch.no_grad():
            for site, gradients in pairs:
                for gradient, weight in zip(gradients, weights, strict=True):
                    site.mix(gradient, weight)
                site.moments(moments)
        reason = self._company.matters(moments, x, forward.output.detach(), mixed(weights, cotangents))
        if reason is not None:
            self._watched.slowness.because(reason)
        return reason is None

    # -- of parameters -----------------------------------------------------------------------------------------------

    def _by_parameter(self, names: list[str], x: Tensor, cotangents: Tensor) -> Sums:
        if not self._tried:
            self._tried = True
            with torch.no_grad():
                output = self._watched.module(x[:PROBE_ROWS])
            self._mode = self._per_sample.mode(self._watched.parameters.names, x[:PROBE_ROWS], output)
        if self._mode is not None:
            try:
                return self._per_sample.vectorised(names, x, cotangents, self._mode)
            except Exception as error:  # by what is in these rows, say
                self._watched.slowness.because(first_line(error))
        return self._per_sample.one_by_one(names, x, cotangents)
