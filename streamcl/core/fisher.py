"""The diagonal Fisher of any module: sums over samples of squared per-sample gradients.

``F_i = sum_n E[(d log p(y | x_n) / d theta_i)^2]``, with y from the model's own predictive distribution (exact, mc) or
observed (empirical, what the note writes); Martens (2014) on the difference. Squaring a mini-batch's gradient is
another, wrong quantity: it came to a few hundredths of this one on a trained network.

One forward pass; then, for every cotangent, a backward pass to the outputs of the functions with a closed form
(`closed_forms`) and no further. The parameters of anything else get per-sample gradients, in chunks of bounded memory;
and where not even those can be had (vmap has no rule for some operation), a loop over samples. A self-check on the first
rows compares each closed form with that loop and so decides which way is sound for which parameter: ties,
parametrisations and layers used twice come out right.

What is sound on some rows need not be on others: a model may sort, pack, route or drop rows by what is in them. So which
sample is where is established for every block of rows. Either the forward pass is a proof of it (`provenance`): every
function that it called keeps rows apart. Or numbers are compared: the per-sample gradients g_n that were squared, weighted
by random w_n and summed, must equal ``sum_n w_n g_n`` of plain backward passes over the same rows in another company (two
halves, shuffled). A block that fails takes the loop, which is the definition. `verified`, at the end, holds a few rows of
some block against the loop, whichever way they came.

Guarantees: evaluation mode during the computation; training flags, gradients and parameters are left as they
were; only what the model itself raises is raised. Squares of small gradients are denormal and slow on CPUs: the process
that trains flushes them (`torch.set_flush_denormal`), this module leaves that process-wide setting alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from streamcl.core.closed_forms import FIRST, Layout, Names, Site
from streamcl.core.gradients import (
    agree,
    largest,
    noise,
    output_gradients,
    parameter_gradients,
    random_like,
    same_outputs,
)
from streamcl.core.likelihood import FisherKind, Likelihood
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Precision, observed
from streamcl.core.products import fast_products
from streamcl.core.provenance import Rows
from streamcl.core.recorder import Recorder
from streamcl.core.reduce import ALONE, Reduction

CHUNK_BYTES = 256 << 20  # per-sample gradients held at once,
CPU_CHUNK_BYTES = 8 << 20  # and on a CPU, whose caches are small
BLOCK_BYTES = 256 << 20  # inputs and outputs of closed forms held at once,
CPU_BLOCK_BYTES = 16 << 20
PROBE_ROWS = 3
VERIFIED_ROWS = 3  # at the end, of one block,
VERIFIED_COMPANY = 64  # among so many of its rows where they are proven apart, else among all
PATIENCE = 3  # blocks in a row that fail their check; those after them are not tried

Sums = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class _Closed:
    """A site whose closed form is sound: for these names, with its samples there."""

    names: Names
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Plan:
    """How each parameter's Fisher is computed, as the self-check found it sound.

    calls: the keys of all sites of a forward pass. closed: by the position in it. mode: vmap takes the general parameters
    with gradients enabled (True) or without, or not at all (None). width: numbers held for a sample.
    """

    calls: list[tuple[object, ...]]
    closed: dict[int, _Closed]
    general: list[str]
    mode: bool | None
    width: int

    @property
    def vectorised(self) -> bool:
        """Whether vmap takes the general parameters."""
        return self.mode is not None

    def sites(self, found: list[Site], samples: int) -> list[Site] | None:
        """The sites with a sound closed form; None where this forward pass went another way than the first."""
        if [site.key for site in found] != self.calls:
            return None
        if not all(found[index].fits(closed.layout, samples) for index, closed in self.closed.items()):
            return None
        return [found[index].at(closed.names, closed.layout, samples) for index, closed in self.closed.items()]

    @property
    def samples_first(self) -> bool:
        """Whether closed forms alone are used, all with their samples along the first axis."""
        return not self.general and all(closed.layout == FIRST for closed in self.closed.values())


@dataclass(frozen=True, slots=True)
class _Forward:
    """One forward pass with what the recorder noted. proven: its rows are the samples, without a check of numbers."""

    output: Tensor
    sites: list[Site]
    proven: bool


@dataclass(frozen=True, slots=True)
class _Kept:
    """A block to be verified at the end, with the cotangents that it had."""

    x: Tensor
    cotangents: Tensor


class Undecided(Exception):
    """The sums are of no use: take the whole Fisher again, by the loop."""


class DiagonalFisher:
    """Accumulates the diagonal Fisher of a module at its current parameters.

    parameters: of that module. kind: ``exact``, ``mc`` or ``empirical``. generator: for ``mc``, on the module's device.
    by_loop: take every sample by itself. total: [P] float64, the sum over all samples added. unvectorised: why per-sample
    gradients had to be taken one by one, None where they did not. loop_seconds: what that took.

    What holds it together: one sum, and the plan of how each parameter's part of it is taken; closed forms, per-sample
    gradients and the loop add to the same sum, are checked against one another, and change the plan where they differ.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: FlatParameters,
        likelihood: Likelihood,
        kind: FisherKind = "exact",
        generator: torch.Generator | None = None,
        by_loop: bool = False,
        seed: int = 0,
        reduction: Reduction = ALONE,
    ) -> None:
        self.module = module
        self.reduction = reduction
        self.parameters = parameters
        self.likelihood = likelihood
        self.kind = kind
        self.generator = generator
        self.by_loop = by_loop
        self.total = torch.zeros_like(parameters.theta.detach(), dtype=torch.float64)
        self.unvectorised: str | None = None
        self._sums = parameters.split(self.total)
        self._by_name = dict(zip(parameters.names, parameters.parameters, strict=True))
        self._constants = [*module.parameters(), *module.buffers()]
        self._places = _places(module, parameters)
        self._plan: _Plan | None = None
        self._scratch: Tensor | None = None
        self._random = torch.Generator().manual_seed(seed)
        self._kept: _Kept | None = None
        self._blocks = self._failed = self._rows = self._looped_rows = self._candidates = 0
        self._looped: set[str] = set()
        self.loop_seconds = 0.0

    def precision(self) -> Precision:
        """What was summed, by all who share the samples, as a posterior's precision on the host; once, at the end."""
        return observed(self.reduction.sum(self.total).cpu())

    @property
    def without_closed_form(self) -> list[str]:
        """The parameters that per-sample gradients are taken of, once samples were added."""
        return self._plan.general if self._plan else []

    @property
    def slow(self) -> str | None:
        """What was taken one sample after the other, why, and what that has cost; None where nothing was."""
        if self.unvectorised is None or not self._looped_rows:
            return None
        names, rows = sorted(self._looped), f"{self._looped_rows} of {self._rows} rows"
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        cost = f"{self.loop_seconds:.2g} s, {1e3 * self.loop_seconds / self._looped_rows:.2g} ms a row"
        return f"the Fisher of {rows} was taken row by row for {shown} ({cost}): {self.unvectorised}"

    def add(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        """Add the samples x [n, ...] with targets y (needed by ``empirical`` only); returns the outputs they have."""
        with self._evaluating():
            if self._plan is None:
                self._plan = self._make_plan(x[:PROBE_ROWS])
            self._rows += len(x)
            return self._add(self._plan, x, y)

    @contextmanager
    def _evaluating(self) -> Iterator[None]:
        flags = TrainingFlags(self.module)
        flags.eval()
        try:
            with fast_products():
                yield
        finally:
            flags.train()

    def _add(self, plan: _Plan, x: Tensor, y: Tensor | None) -> Tensor:
        rows = self._block_rows(plan, x)
        blocks = ((x[i : i + rows], None if y is None else y[i : i + rows]) for i in range(0, len(x), rows))
        outputs = [self._add_block(plan, *block) for block in blocks]
        return torch.cat(outputs) if outputs else x.new_empty(0)

    def _block_rows(self, plan: _Plan, x: Tensor) -> int:
        itemsize = self.parameters.theta.element_size()
        limit = CPU_BLOCK_BYTES if x.device.type == "cpu" else BLOCK_BYTES
        return max(1, min(len(x), limit // (itemsize * max(1, plan.width))))

    def _add_block(self, plan: _Plan, x: Tensor, y: Tensor | None) -> Tensor:
        forward = self._forward(x)
        values = self._one_by_one(x) if forward is None else forward.output.detach()
        cotangents = self._cotangents(values, y)
        if forward is not None and self._failed < PATIENCE and self._add_fast(plan, forward, x, cotangents):
            self._failed = 0
            self._keep(x, cotangents)
            return values
        self._failed += 1
        if forward is not None:
            values = self._one_by_one(x)  # which may be others than with all rows together
            cotangents = self._cotangents(values, y)
        self._add_one_by_one(self.parameters.names, x, cotangents, self._sums)
        return values

    def _cotangents(self, values: Tensor, y: Tensor | None) -> Tensor:
        return self.likelihood.cotangents(values, self.kind, y, self.generator).to(values.dtype)

    def _forward(self, x: Tensor) -> _Forward | None:
        """A forward pass, watched, or unwatched where it fails under watch; None where there is no need of one."""
        if self.by_loop:
            return None
        try:
            with Recorder(self._by_name.items(), Rows(x, self._constants)) as recorder, torch.enable_grad():
                output: Tensor = self.module(x)
            return _Forward(output, recorder.sites, recorder.rows.apart(output))
        except Exception as error:
            self._slow_because(_first_line(error))
        with torch.enable_grad():
            return _Forward(self.module(x), [], proven=False)

    def _one_by_one(self, x: Tensor) -> Tensor:
        """Outputs of rows by themselves."""
        with torch.no_grad():
            return torch.cat([self.module(x[n : n + 1]) for n in range(len(x))])

    def _slow_because(self, reason: str) -> None:
        self.unvectorised = self.unvectorised or reason

    # -- one block -------------------------------------------------------------------------------------------------

    def _add_fast(self, plan: _Plan, forward: _Forward, x: Tensor, cotangents: Tensor) -> bool:
        """Add a block without a loop; False, and nothing added, where that is not known to be right."""
        if not plan.closed and not plan.vectorised:
            return False
        try:
            sites = plan.sites(forward.sites, len(x))
            if sites is None:
                self._slow_because("the forward pass of some rows calls other functions than that of the first rows")
                return False
            with torch.no_grad():
                if forward.proven and plan.samples_first:
                    self._add_closed(sites, forward.output, cotangents, self._sums)
                    return True
                return self._add_checked(plan, sites, forward.output, x, cotangents)
        except Exception as error:
            if forward.proven and plan.samples_first:  # some of it may have been added
                raise Undecided(_first_line(error)) from error
            self._slow_because(_first_line(error))
            return False

    def _add_checked(self, plan: _Plan, sites: list[Site], output: Tensor, x: Tensor, cotangents: Tensor) -> bool:
        self._blocks += 1
        weights = self._weights(cotangents)
        sums = self._scratch_sums()
        moments = self._add_parts(plan, sites, output, x, cotangents, sums, weights)
        mixed = torch.einsum("kn,kn...->n...", weights, cotangents)
        reason = self._difference(moments, x, output.detach(), mixed)
        if reason is not None:
            self._slow_because(reason)
            return False
        general = [] if plan.vectorised else plan.general
        self._add_one_by_one(general, x, cotangents, sums)
        assert self._scratch is not None
        self.total += self._scratch
        return True

    def _weights(self, cotangents: Tensor) -> Tensor:
        """[k, n], so different from each other that no sample can stand for another."""
        generator = torch.Generator().manual_seed(self._blocks)
        weights = torch.randn(cotangents.shape[:2], generator=generator, dtype=torch.float64)
        return (weights + weights.sign()).to(cotangents)

    def _scratch_sums(self) -> Sums:
        """Where a block waits until it has passed its check."""
        if self._scratch is None:
            self._scratch = torch.zeros_like(self.total)
        return self.parameters.split(self._scratch.zero_())

    def _add_parts(
        self,
        plan: _Plan,
        sites: list[Site],
        output: Tensor,
        x: Tensor,
        cotangents: Tensor,
        sums: Sums,
        weights: Tensor,
    ) -> Sums:
        """Add what needs no loop; returns ``sum_n w_n g_n`` of the gradients that were squared, by name."""
        names = {name for site in sites for name in site.names if name is not None}
        moments = {name: torch.zeros_like(self._by_name[name]) for name in names}
        if sites:
            self._add_closed(sites, output, cotangents, sums, weights)
            for site in sites:
                site.moments(moments)
        if plan.vectorised:
            moments |= self._add_vectorised(plan, x, cotangents, sums, weights)
        return moments

    def _difference(self, moments: Sums, x: Tensor, values: Tensor, mixed: Tensor) -> str | None:
        """In what the rows differ from the same rows in another company, or None."""
        names = list(moments)
        expected = {name: torch.zeros_like(self._by_name[name]) for name in names}
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self._blocks)).to(x.device)
        for rows in order.chunk(2):
            part = x[rows]
            with Recorder((), Rows(part, ())), torch.enable_grad():  # attention in plain products, as in the block itself
                output = self.module(part)
            if not same_outputs(output.detach(), values[rows]):
                return "what comes out for a row depends on the rows beside it"
            self._accumulate(expected, output, mixed[rows])
        floor = noise(values.dtype) * largest(expected)
        wrong = [name for name in names if not _agree_moments(moments[name], expected[name], floor)]
        return f"the model mixes or moves its rows in a way of its own before {wrong[0]}" if wrong else None

    def _accumulate(self, sums: Sums, output: Tensor, cotangent: Tensor) -> None:
        gradients = parameter_gradients(output, [self._by_name[name] for name in sums], cotangent)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient

    # -- closed forms ----------------------------------------------------------------------------------------------

    def _add_closed(
        self, sites: list[Site], output: Tensor, cotangents: Tensor, sums: Sums, weights: Tensor | None = None
    ) -> None:
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

    # -- per-sample gradients --------------------------------------------------------------------------------------

    def _add_vectorised(self, plan: _Plan, x: Tensor, cotangents: Tensor, sums: Sums, weights: Tensor) -> Sums:
        """Add the general parameters' squares; returns ``sum_n w_n g_n``."""
        moments = {name: torch.zeros_like(self._by_name[name]) for name in plan.general}
        size = sum(moment.numel() for moment in moments.values()) * len(cotangents)
        chunk = CPU_CHUNK_BYTES if x.device.type == "cpu" else CHUNK_BYTES
        rows = max(1, chunk // (size * self.parameters.theta.element_size()))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            for name, gradient in self._per_sample(plan.general, x[part], cotangents[:, part], plan.mode).items():
                sums[name] += gradient.square().sum((0, 1))
                moments[name] += torch.einsum("kn,nk...->...", weights[:, part].to(gradient), gradient)
        return moments

    def _per_sample(self, names: list[str], x: Tensor, cotangents: Tensor, mode: bool | None) -> Sums:
        """Gradients [n, k, *shape] of each sample's output against each of its cotangents."""
        every = {name: p.detach() for name, p in self._by_name.items()}
        wanted = {name: every.pop(name) for name in names}

        def one_sample(row: Tensor, vectors: Tensor) -> Sums:
            def forward(values: Sums) -> Tensor:
                given = {**every, **values}
                tensors = {place: given[name] for place, name in self._places.items()}
                output: Tensor = functional_call(self.module, tensors, (row.unsqueeze(0),), tie_weights=False)
                return output.squeeze(0)

            pull = vjp(forward, wanted)[1]
            gradients: Sums = vmap(lambda vector: pull(vector)[0])(vectors)
            return gradients

        with torch.set_grad_enabled(bool(mode)):
            gradients: Sums = vmap(one_sample, in_dims=(0, 1))(x, cotangents)
        return {name: gradient.detach() for name, gradient in gradients.items()}

    def _add_one_by_one(self, names: list[str], x: Tensor, cotangents: Tensor, sums: Sums) -> None:
        if not names:
            return
        started = time.perf_counter()
        for n in range(len(x)):
            for name, squares in self._one_sample(names, x[n : n + 1], cotangents[:, n : n + 1]).items():
                sums[name] += squares
        self.loop_seconds += time.perf_counter() - started
        self._looped_rows += len(x)
        self._looped |= set(names)

    def _one_sample(self, names: list[str], x: Tensor, cotangents: Tensor) -> Sums:
        """Sums over k of squared gradients of one sample, by plain backward passes."""
        parameters = [self._by_name[name] for name in names]
        sums = {name: torch.zeros_like(p) for name, p in zip(names, parameters, strict=True)}
        with torch.enable_grad():
            output = self.module(x)
            for vector in cotangents:
                gradients = parameter_gradients(output, parameters, vector)
                for name, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += gradient.square()
        return sums

    def _loop(self, names: list[str], x: Tensor, cotangents: Tensor) -> Sums:
        sums = {name: torch.zeros_like(self._by_name[name]) for name in names}
        for n in range(len(x)):
            for name, squares in self._one_sample(names, x[n : n + 1], cotangents[:, n : n + 1]).items():
                sums[name] += squares
        return sums

    # -- which way for which parameter -----------------------------------------------------------------------------

    def _make_plan(self, x: Tensor) -> _Plan:
        x = x[torch.arange(PROBE_ROWS, device=x.device) % len(x)]
        forward = self._forward(x)
        if forward is None:
            return _Plan([], {}, self.parameters.names, mode=None, width=x[0].numel())
        output, found = forward.output, forward.sites
        calls = [site.key for site in found]
        closed = self._sound(x, output, found)
        covered = {name for each in closed.values() for name in each.names}
        general = [name for name in self.parameters.names if name not in covered]
        k = len(self.likelihood.cotangents(output.detach(), self.kind, None, None)) if self.kind == "exact" else 1
        numbers = x.numel() + k * output.numel() + sum(found[index].numbers for index in closed)
        batched = k if output.is_cuda else 1
        mode = self._vectorising_mode(general, x, output.detach()) if general else None
        return _Plan(calls, closed, general, mode, batched * numbers // len(x))

    def _sound(self, x: Tensor, output: Tensor, found: list[Site]) -> dict[int, _Closed]:
        """Which sites' closed forms equal a loop over samples, for one random cotangent."""
        used = Counter(name for site in found for name in site.names if name is not None)
        cotangent = random_like(output, 1, seed=0)
        expected = self._loop(list(used), x, cotangent)
        floor = noise(output.dtype) ** 2 * largest(expected)
        sound = {}
        for index, (site, gradient) in enumerate(zip(found, _gradients(output, found, cotangent), strict=True)):
            once = _only(site.names, {name for name, uses in used.items() if uses == 1})
            if gradient is None or once == (None, None):
                continue
            for layout in site.layouts(len(x)):
                agreeing = _only(once, _agreeing(copy(site).at(once, layout, len(x)), gradient, expected, floor))
                if any(agreeing):
                    sound[index] = _Closed(agreeing, layout)
                    break
        return sound

    def _vectorising_mode(self, names: list[str], x: Tensor, output: Tensor) -> bool | None:
        """Whether vmap takes this module and agrees with plain backward passes on a few rows, with gradients or without.

        Some kernels (a recurrent layer's) are chosen by that, and not all of them have a batching rule.
        """
        cotangents = random_like(output, 2, seed=1)
        expected = [self._one_sample(names, x[n : n + 1], cotangents[:, n : n + 1]) for n in range(len(x))]
        reasons = []
        for mode in (True, False):
            reason = self._tried(names, x, cotangents, expected, mode)
            if reason is None:
                return mode
            reasons.append(reason)
        self._slow_because(reasons[0])
        return None

    def _tried(self, names: list[str], x: Tensor, cotangents: Tensor, expected: list[Sums], mode: bool) -> str | None:
        """What is wrong with gradients by vmap, or None."""
        try:
            gradients = self._per_sample(names, x, cotangents, mode)
        except Exception as error:  # whatever torch raises where an operation has no batching rule
            return _first_line(error)
        for n, sums in enumerate(expected):
            floor = noise(cotangents.dtype) ** 2 * largest(sums)
            for name, squares in sums.items():
                if not agree(gradients[name][n].square().sum(0), squares, floor):
                    return f"vmap gives another gradient for {name}"
        return None

    # -- at the end ------------------------------------------------------------------------------------------------

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
        if self._kept is None or self._plan is None:
            return True
        x, cotangents = self._kept.x, self._kept.cotangents
        mixed = torch.einsum("kn,kn...->n...", self._weights(cotangents), cotangents)
        sizes = mixed.abs().flatten(1).amax(1).view(-1, *[1] * (mixed.ndim - 1))
        mixed = torch.where(sizes > 0, mixed / sizes, mixed)
        order = torch.randperm(len(x), generator=self._random).to(x.device)
        with self._evaluating():
            x, mixed = self._company(self._plan, x[order], mixed[order])
            mixed[VERIFIED_ROWS:] = 0  # the others keep these company, and add nothing
            chosen = slice(0, VERIFIED_ROWS)
            expected = self._loop(self.parameters.names, x[chosen], mixed[chosen].unsqueeze(0))
            found = self._fast_alone(self._plan, x, mixed.unsqueeze(0))
        floor = noise(mixed.dtype) ** 2 * largest(expected)
        return all(agree(found[name].to(mixed.dtype), expected[name], floor) for name in found)

    def _company(self, plan: _Plan, x: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
        """A block's rows; not all of a large one where they are proven not to matter to each other."""
        forward = self._forward(x[:VERIFIED_COMPANY])
        proven = forward is not None and forward.proven and plan.samples_first
        return (x[:VERIFIED_COMPANY], mixed[:VERIFIED_COMPANY]) if proven else (x, mixed)

    def _fast_alone(self, plan: _Plan, x: Tensor, cotangents: Tensor) -> Sums:
        """What a block adds for these cotangents; nothing where it takes the loop."""
        forward = self._forward(x)
        sites = None if forward is None else plan.sites(forward.sites, len(x))
        if forward is None or sites is None:
            return {}
        sums = self._scratch_sums()
        with torch.no_grad():
            self._add_parts(plan, sites, forward.output, x, cotangents, sums, self._weights(cotangents))
        names = {name for site in sites for name in site.names} | set(plan.general if plan.vectorised else [])
        return {name: total for name, total in sums.items() if name in names}


def _places(module: nn.Module, parameters: FlatParameters) -> dict[str, str]:
    """Every place of a module that holds a trainable parameter, with that one's name; a module that has several names once.

    Left to find them by itself, `functional_call` puts a layer that is used under two names back with the wrong tensors.
    """
    names = {id(p): name for name, p in zip(parameters.names, parameters.parameters, strict=True)}
    return {
        f"{path}.{own}" if path else own: names[id(p)]
        for path, part in module.named_modules()
        for own, p in part._parameters.items()
        if id(p) in names
    }


def _gradients(output: Tensor, found: list[Site], cotangent: Tensor) -> list[Tensor | None]:
    """Of the sites' outputs for one cotangent [1, ...]; None where there is no way back to one."""
    try:
        gradients = next(output_gradients(output, found, cotangent), None)
    except RuntimeError:  # a function that takes part in `backward()` only
        gradients = None
    return [None] * len(found) if gradients is None else list(gradients)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]


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


def _agree_moments(found: Tensor, expected: Tensor, floor: float) -> bool:
    """As `agree`, but closer: these are sums over many samples, among which one that is wrong must show."""
    if not expected.numel():
        return True
    tolerance = 1e-4 if found.dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-9
    return bool((found - expected).abs().max() <= max(tolerance * float(expected.abs().max()), floor))
