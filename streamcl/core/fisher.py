"""The diagonal Fisher of any module: sums over samples of squared per-sample gradients.

``F_i = sum_n E[(d log p(y | x_n) / d theta_i)^2]``, with y from the model's own predictive distribution (exact, mc) or
observed (empirical, what the note writes); Martens (2014) on the difference. Squaring a mini-batch's gradient is
another, wrong quantity: it came to a few hundredths of this one on a trained network.

One forward pass; then, for every cotangent, a backward pass to the outputs of the functions with a closed form
(`closed_forms`) and no further. The parameters of anything else get per-sample gradients (`per_sample`), in chunks of
bounded memory; and where not even those can be had (vmap has no rule for some operation), a loop over samples. A
self-check on the first rows (`ways`) compares each closed form with that loop and so decides which way is sound for which
parameter: ties, parametrisations and layers used twice come out right.

What is sound on some rows need not be on others: a model may sort, pack, route or drop rows by what is in them. So which
sample is where is established for every block of rows: either the forward pass is a proof of it (`provenance`), every
function that it called keeps rows apart; or numbers are compared (`company`). A block that fails takes the loop, which is
the definition. `verified`, at the end, holds a few rows of some block against the loop, whichever way they came.

Guarantees: evaluation mode during the computation; training flags, gradients and parameters are left as they
were; only what the model itself raises is raised. Squares of small gradients are denormal and slow on CPUs: the process
that trains flushes them (`torch.set_flush_denormal`), this module leaves that process-wide setting alone.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamcl.core.closed_forms import Names, Site
from streamcl.core.company import Company, mixed
from streamcl.core.gradients import agree, largest, noise, output_gradients
from streamcl.core.likelihood import Cotangents, FisherKind, Mixed
from streamcl.core.measures import Measure, Squares, Sums, size, split
from streamcl.core.parameters import FlatParameters
from streamcl.core.per_sample import PerSample
from streamcl.core.precision import Precision
from streamcl.core.reduce import ALONE, EVERY, Reduction
from streamcl.core.watched import Forward, Watched, first_line
from streamcl.core.ways import PROBE_ROWS, Ways, find_ways

BLOCK_BYTES = 256 << 20  # inputs and outputs of closed forms held at once,
CPU_BLOCK_BYTES = 16 << 20  # and on a CPU, whose caches are small
VERIFIED_ROWS = 3  # at the end, of one block,
VERIFIED_COMPANY = 64  # among so many of its rows where they are proven apart, else among all
PATIENCE = 3  # blocks in a row that fail their check; those after them are not tried


@dataclass(frozen=True, slots=True)
class _Kept:
    """A block to be verified at the end, with the cotangents that it had."""

    x: Tensor
    cotangents: Tensor


class Undecided(Exception):
    """The sums are of no use: take the whole Fisher again, by the loop."""


class Fisher:
    """Accumulates a measure of a module's Fisher at its current parameters: its diagonal, in some coordinates, or more.

    parameters: of that module. kind: ``exact``, ``mc`` or ``empirical``. generator: for ``mc``, on the module's device.
    by_loop: take every sample by itself. measure: what is summed, by default squares in the parameters' own coordinates.
    total: float64, the measure's sums over all samples added, one after the other.

    What holds it together: one sum; closed forms, per-sample gradients and the loop add to it block by block, each block
    by the fastest way that is sound for it.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: FlatParameters,
        likelihood: Cotangents,
        kind: FisherKind = "exact",
        generator: torch.Generator | None = None,
        by_loop: bool = False,
        seed: int = 0,
        reduction: Reduction = ALONE,
        measure: Measure | None = None,
    ) -> None:
        self.parameters = parameters
        self.likelihood = likelihood
        self.kind = kind
        self.generator = generator
        self.reduction = reduction
        self.measure: Measure = Squares(parameters.layout) if measure is None else measure
        self.total = parameters.theta.detach().new_zeros(size(self.measure.shapes), dtype=torch.float64)
        self._sums = split(self.total, self.measure.shapes)
        self._watched = Watched(module, parameters, by_loop)
        self._per_sample = PerSample(self._watched)
        self._company = Company(self._watched)
        self._ways: Ways | None = None
        self._scratch: Tensor | None = None
        self._random = torch.Generator().manual_seed(seed)
        self._kept: _Kept | None = None
        self._failed = self._candidates = 0  # blocks in a row; blocks that might be kept

    def again(self) -> Fisher:
        """Another sum over samples like these, at other parameters; what was found sound is sound."""
        other = copy(self)
        other.total = self.total.new_zeros(size(other.measure.shapes))
        other._sums = split(other.total, other.measure.shapes)
        other._scratch = other._kept = None
        other._candidates = 0
        return other

    # -- what was found ----------------------------------------------------------------------------------------------

    def summed(self, on_host: bool = True) -> Tensor:
        """What was summed, by all who share the samples, on the host or where it is; once, at the end."""
        found = self.reduction.sum(self.total)
        return found.cpu() if on_host else found

    def precision(self, on_host: bool = True) -> Precision:
        """The squares that were summed as a posterior's precision; once, at the end."""
        if not isinstance(self.measure, Squares):
            raise TypeError("a precision of squares in the parameters' own coordinates: another measure was summed")
        return self.measure.precision(self.summed(on_host))

    def products(self, x: Tensor) -> tuple[list[Names], list[str]]:
        """Of weights and their biases, whose calls are one product; and of the weights those that are tables.

        x [n, ...]: samples. Weights with two axes or more that have no closed form are among them, without a bias.
        """
        with self._watched.evaluating():
            ways = self._found(x)
        shapes = dict(zip(self.parameters.names, self.parameters.shapes, strict=True))
        general: list[Names] = [(name, None) for name in ways.general if len(shapes[name]) > 1]
        return [*ways.products, *general], list(ways.lookups)

    @property
    def without_closed_form(self) -> list[str]:
        """The parameters that per-sample gradients are taken of, once samples were added."""
        return self._ways.general if self._ways else []

    @property
    def unvectorised(self) -> str | None:
        """Why per-sample gradients had to be taken one by one; None where they did not."""
        return self._watched.slowness.reason

    @property
    def loop_seconds(self) -> float:
        """What that took."""
        return self._watched.slowness.seconds

    @property
    def slow(self) -> str | None:
        """What was taken one sample after the other, why, and what that has cost; None where nothing was."""
        return self._watched.slowness.said("the Fisher")

    # -- samples -----------------------------------------------------------------------------------------------------

    def add(self, x: Tensor, y: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Add the samples x [n, ...] with targets y (needed by ``empirical`` only), of every block this process's part.

        Returns the outputs that those have, and which they are, [m].
        """
        outputs, own = [], []
        every = torch.arange(len(x), device=x.device)
        with self._watched.evaluating():
            ways = self._found(x)
            rows = self._block_rows(ways, x)
            for start in range(0, len(x), rows):
                block = slice(start, start + rows)
                part = self.reduction.part(len(x[block]))
                own.append(every[block][part])
                self._watched.slowness.rows += len(own[-1])
                outputs.append(self._add_block(ways, x[block], None if y is None else y[block], part))
        return (torch.cat(outputs), torch.cat(own)) if outputs else (x.new_empty(0), every)

    def _found(self, x: Tensor) -> Ways:
        if self._ways is None:
            first = x[:PROBE_ROWS]
            self._ways = find_ways(self._watched, self._per_sample, self.measure, self.likelihood, self.kind, first)
        return self._ways

    def _block_rows(self, ways: Ways, x: Tensor) -> int:
        itemsize = self.parameters.theta.element_size()
        limit = CPU_BLOCK_BYTES if x.device.type == "cpu" else BLOCK_BYTES
        return max(1, min(len(x), limit // (itemsize * max(1, ways.width))))

    def _add_block(self, ways: Ways, block: Tensor, targets: Tensor | None, part: slice) -> Tensor:
        x, y = block[part], None if targets is None else targets[part]
        forward = self._watched.forward(x) if len(x) else None
        values = self._watched.one_by_one(x if len(x) else block[:1]) if forward is None else forward.output.detach()
        cotangents = self._drawn(values[: len(x)], y, block, targets, part)
        if len(x) == 0:
            return values[:0]
        if forward is not None and self._failed < PATIENCE and self._add_fast(ways, forward, x, cotangents):
            self._failed = 0
            self._keep(x, cotangents)
            return values
        self._failed += 1
        if forward is not None:
            values = self._watched.one_by_one(x)  # which may be others than with all rows together
            cotangents = self._cotangents(values, y) if part == EVERY else cotangents
        self._per_sample.add_one_by_one(self.parameters.names, x, cotangents, self.measure, self._sums)
        return values

    def _drawn(self, values: Tensor, y: Tensor | None, block: Tensor, targets: Tensor | None, part: slice) -> Tensor:
        """Cotangents of this process's rows of a block; where they are drawn, as one process draws them of all rows."""
        if part == EVERY or not (self.kind == "mc" or isinstance(self.likelihood, Mixed)):
            return self._cotangents(values, y)
        return self._cotangents(self.reduction.whole(values, len(block)), targets)[:, part]

    def _cotangents(self, values: Tensor, y: Tensor | None) -> Tensor:
        return self.likelihood.cotangents(values, self.kind, y, self.generator).to(values.dtype)

    # -- one block, without a loop -----------------------------------------------------------------------------------

    def _add_fast(self, ways: Ways, forward: Forward, x: Tensor, cotangents: Tensor) -> bool:
        """Add a block without a loop; False, and nothing added, where that is not known to be right."""
        if not ways.fast:
            return False
        proven = forward.proven and ways.samples_first
        try:
            sites = ways.sites(forward.sites, len(x), self.measure)
            if sites is None:
                self._watched.slowness.because(
                    "the forward pass of some rows calls other functions than that of the first rows"
                )
                return False
            with torch.no_grad():
                if proven:
                    _add_closed(sites, forward.output, cotangents, self._sums)
                    return True
                return self._add_checked(ways, sites, forward.output, x, cotangents)
        except Exception as error:
            if proven:  # some of it may have been added
                raise Undecided(first_line(error)) from error
            self._watched.slowness.because(first_line(error))
            return False

    def _add_checked(self, ways: Ways, sites: list[Site], output: Tensor, x: Tensor, cotangents: Tensor) -> bool:
        self._company.begin()
        weights = self._company.weights(cotangents)
        scratch, sums = self._scratch_sums()
        moments = self._add_parts(ways, sites, output, x, cotangents, sums, weights)
        reason = self._company.matters(moments, x, output.detach(), mixed(weights, cotangents))
        if reason is not None:
            self._watched.slowness.because(reason)
            return False
        if not ways.vectorised:
            self._per_sample.add_one_by_one(ways.general, x, cotangents, self.measure, sums)
        self.total += scratch
        return True

    def _scratch_sums(self) -> tuple[Tensor, Sums]:
        """Where a block waits until it has passed its check."""
        if self._scratch is None:
            self._scratch = torch.zeros_like(self.total)
        return self._scratch, split(self._scratch.zero_(), self.measure.shapes)

    def _add_parts(
        self,
        ways: Ways,
        sites: list[Site],
        output: Tensor,
        x: Tensor,
        cotangents: Tensor,
        sums: Sums,
        weights: Tensor,
    ) -> Sums:
        """Add what needs no loop; returns ``sum_n w_n g_n`` of the gradients that were squared, by name."""
        moments = self._watched.zeros(_named(sites))
        if sites:
            _add_closed(sites, output, cotangents, sums, weights)
            for site in sites:
                site.moments(moments)
        if ways.mode is not None:
            moments |= self._per_sample.add_vectorised(ways.general, x, cotangents, ways.mode, self.measure, sums, weights)
        return moments

    # -- at the end --------------------------------------------------------------------------------------------------

    def _keep(self, x: Tensor, cotangents: Tensor) -> None:
        """One of the blocks that took no loop, each as likely as the others."""
        self._candidates += 1
        if float(torch.rand((), generator=self._random)) < 1 / self._candidates:
            self._kept = _Kept(x.clone(), cotangents)

    def verified(self) -> bool:
        """Whether a few random rows come out as the loop has them, in the block that they were in.

        For a random mixture of their cotangents, of size 1 in every row: those of rows that a model is sure of are so small
        that their squares vanish, in a closed form sooner than in the loop. True where everything came from the loop.
        """
        if self._kept is None or self._ways is None or not self.measure.keys(set(self.parameters.names)):
            return True
        x, cotangents = self._kept.x, self._kept.cotangents
        one = mixed(self._company.weights(cotangents), cotangents)
        sizes = one.abs().reshape(len(one), -1).amax(1).view(-1, *[1] * (one.ndim - 1))
        one = torch.where(sizes > 0, one / sizes, one)
        order = torch.randperm(len(x), generator=self._random).to(x.device)
        with self._watched.evaluating():
            x, one = self._small_company(self._ways, x[order], one[order])
            one[VERIFIED_ROWS:] = 0  # the others keep these company, and add nothing
            chosen = slice(0, VERIFIED_ROWS)
            expected = self._per_sample.loop(self.parameters.names, x[chosen], one[chosen].unsqueeze(0), self.measure)
            found = self._fast_alone(self._ways, x, one.unsqueeze(0))
        floor = noise(one.dtype) ** 2 * largest(expected)
        return all(agree(found[name].to(one.dtype), expected[name], floor) for name in found)

    def _small_company(self, ways: Ways, x: Tensor, cotangent: Tensor) -> tuple[Tensor, Tensor]:
        """A block's rows; not all of a large one where they are proven not to matter to each other."""
        forward = self._watched.forward(x[:VERIFIED_COMPANY])
        proven = forward is not None and forward.proven and ways.samples_first
        return (x[:VERIFIED_COMPANY], cotangent[:VERIFIED_COMPANY]) if proven else (x, cotangent)

    def _fast_alone(self, ways: Ways, x: Tensor, cotangents: Tensor) -> Sums:
        """What a block adds for these cotangents; nothing where it takes the loop."""
        forward = self._watched.forward(x)
        sites = None if forward is None else ways.sites(forward.sites, len(x), self.measure)
        if forward is None or sites is None:
            return {}
        sums = self._scratch_sums()[1]
        with torch.no_grad():
            self._add_parts(ways, sites, forward.output, x, cotangents, sums, self._company.weights(cotangents))
        return {key: sums[key] for key in self.measure.keys(_named(sites) | set(ways.general if ways.vectorised else []))}


def _named(sites: list[Site]) -> set[str]:
    return {name for site in sites for name in site.names if name is not None}


def _add_closed(sites: list[Site], output: Tensor, cotangents: Tensor, sums: Sums, weights: Tensor | None = None) -> None:
    """Add what sites with a closed form have of these cotangents; weights [k, n]: and mix them, for a check."""
    for site in sites:
        site.prepare()
    for k, gradients in enumerate(output_gradients(output, sites, cotangents)):
        for site, gradient in zip(sites, gradients, strict=True):
            if gradient is None:
                continue
            if weights is not None:
                site.mix(gradient, weights[k])
            site.add(gradient, sums)
    for site in sites:
        site.finish(sums)
