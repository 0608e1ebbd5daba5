"""The diagonal Fisher of any module: sums over samples of squared per-sample gradients.

``F_i = sum_n E[(d log p(y | x_n) / d theta_i)^2]``, with y from the model's own predictive distribution (exact, mc) or
observed (empirical, what the note writes); Martens (2014) on the difference. Squaring a mini-batch's gradient is
another, wrong quantity: it came to a few hundredths of this one on a trained network.

One forward pass; then, for every cotangent, a backward pass to the outputs of the functions with a closed form
(`closed_forms`) and no further. The parameters of anything else get per-sample gradients, in chunks of bounded memory;
and where not even those can be had (vmap has no rule for some operation), a loop over samples. A self-check on the first
rows compares each closed form with that loop and so decides which way is sound for which parameter: ties,
parametrisations and layers used twice come out right.

Guarantees: evaluation mode during the computation; training flags, gradients and parameters are left as they
were. Squares of small gradients are denormal and slow on CPUs: the process that trains flushes them
(`torch.set_flush_denormal`), this module leaves that process-wide setting alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from streamcl.core.closed_forms import Layout, Names, Site
from streamcl.core.likelihood import FisherKind, Likelihood
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters
from streamcl.core.products import fast_products
from streamcl.core.recorder import Recorder

CHUNK_BYTES = 256 << 20  # per-sample gradients held at once,
CPU_CHUNK_BYTES = 8 << 20  # and on a CPU, whose caches are small
BLOCK_BYTES = 256 << 20  # inputs and outputs of closed forms held at once,
CPU_BLOCK_BYTES = 16 << 20
PROBE_ROWS = 3


@dataclass(frozen=True, slots=True)
class _Closed:
    """A site whose closed form is sound: for these names, with its samples there."""

    names: Names
    layout: Layout


@dataclass(frozen=True, slots=True)
class _Plan:
    """How each parameter's Fisher is computed, as the self-check found it sound.

    calls: the keys of all sites of a forward pass. closed: by the position in it. width: numbers held for a sample.
    """

    calls: list[tuple[object, ...]]
    closed: dict[int, _Closed]
    general: list[str]
    vectorised: bool
    width: int

    def sites(self, found: list[Site], samples: int) -> list[Site] | None:
        """The sites with a sound closed form; None where this forward pass went another way than the first."""
        if [site.key for site in found] != self.calls:
            return None
        if not all(found[index].fits(closed.layout, samples) for index, closed in self.closed.items()):
            return None
        return [found[index].at(closed.names, closed.layout, samples) for index, closed in self.closed.items()]


class DiagonalFisher:
    """Accumulates the diagonal Fisher of a module at its current parameters.

    parameters: of that module. kind: ``exact``, ``mc`` or ``empirical``. generator: for ``mc``, on the module's device.
    total: [P] float64, the sum over all samples added. unvectorised: why per-sample gradients had to be taken one by
    one, None where they did not.
    """

    def __init__(
        self,
        module: nn.Module,
        parameters: FlatParameters,
        likelihood: Likelihood,
        kind: FisherKind = "exact",
        generator: torch.Generator | None = None,
    ) -> None:
        self.module = module
        self.parameters = parameters
        self.likelihood = likelihood
        self.kind = kind
        self.generator = generator
        self.total = torch.zeros_like(parameters.theta.detach(), dtype=torch.float64)
        self.unvectorised: str | None = None
        self._sums = parameters.split(self.total)
        self._by_name = dict(zip(parameters.names, parameters.parameters, strict=True))
        self._plan: _Plan | None = None

    @property
    def without_closed_form(self) -> list[str]:
        """The parameters that per-sample gradients are taken of, once samples were added."""
        return self._plan.general if self._plan else []

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add the samples x [n, ...] with targets y (needed by ``empirical`` only)."""
        flags = TrainingFlags(self.module)
        flags.eval()
        try:
            with fast_products():
                if self._plan is None:
                    self._plan = self._make_plan(x[:PROBE_ROWS])
                self._add(self._plan, x, y)
        finally:
            flags.train()

    def _add(self, plan: _Plan, x: Tensor, y: Tensor | None) -> None:
        rows = self._block_rows(plan, x)
        for start in range(0, len(x), rows):
            self._add_block(plan, x[start : start + rows], None if y is None else y[start : start + rows])

    def _block_rows(self, plan: _Plan, x: Tensor) -> int:
        itemsize = self.parameters.theta.element_size()
        limit = CPU_BLOCK_BYTES if x.device.type == "cpu" else BLOCK_BYTES
        return max(1, min(len(x), limit // (itemsize * max(1, plan.width))))

    def _add_block(self, plan: _Plan, x: Tensor, y: Tensor | None) -> None:
        output, found = self._record(x)
        cotangents = self.likelihood.cotangents(output.detach(), self.kind, y, self.generator).to(output.dtype)
        sites = plan.sites(found, len(x))
        with torch.no_grad():
            if sites is None:
                self._add_one_by_one(self.parameters.names, x, cotangents)
                return
            if sites:
                self._add_closed(sites, output, cotangents)
            del found, sites, output
            if plan.general and plan.vectorised:
                self._add_vectorised(plan.general, x, cotangents)
            elif plan.general:
                self._add_one_by_one(plan.general, x, cotangents)

    # -- closed forms ----------------------------------------------------------------------------------------------

    def _record(self, x: Tensor) -> tuple[Tensor, list[Site]]:
        with Recorder(self._by_name.items()) as recorder, torch.enable_grad():
            output: Tensor = self.module(x)
        return output, recorder.sites

    def _add_closed(self, sites: list[Site], output: Tensor, cotangents: Tensor) -> None:
        for site in sites:
            site.prepare()
        for gradients in _output_gradients(output, sites, cotangents):
            for site, gradient in zip(sites, gradients, strict=True):
                if gradient is not None:
                    site.add(gradient, self._sums)
        for site in sites:
            site.finish(self._sums)

    # -- per-sample gradients --------------------------------------------------------------------------------------

    def _add_vectorised(self, names: list[str], x: Tensor, cotangents: Tensor) -> None:
        values = {name: self._by_name[name].detach() for name in names}
        size = sum(value.numel() for value in values.values()) * len(cotangents)
        chunk = CPU_CHUNK_BYTES if x.device.type == "cpu" else CHUNK_BYTES
        rows = max(1, chunk // (size * self.parameters.theta.element_size()))
        for start in range(0, len(x), rows):
            gradients = self._per_sample(values, x[start : start + rows], cotangents[:, start : start + rows])
            for name, gradient in gradients.items():
                self._sums[name] += gradient.square().sum((0, 1))

    def _per_sample(self, values: dict[str, Tensor], x: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        """Gradients [n, k, *shape] of each sample's output against each of its cotangents."""

        def one_sample(row: Tensor, vectors: Tensor) -> dict[str, Tensor]:
            def forward(values: dict[str, Tensor]) -> Tensor:
                output: Tensor = functional_call(self.module, values, (row.unsqueeze(0),))
                return output.squeeze(0)

            pull = vjp(forward, values)[1]
            gradients: dict[str, Tensor] = vmap(lambda vector: pull(vector)[0])(vectors)
            return gradients

        gradients: dict[str, Tensor] = vmap(one_sample, in_dims=(0, 1))(x, cotangents)
        return gradients

    def _add_one_by_one(self, names: list[str], x: Tensor, cotangents: Tensor) -> None:
        for n in range(len(x)):
            for name, squares in self._one_sample(names, x[n : n + 1], cotangents[:, n : n + 1]).items():
                self._sums[name] += squares

    def _one_sample(self, names: list[str], x: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        """Sums over k of squared gradients of one sample, by plain backward passes."""
        parameters = [self._by_name[name] for name in names]
        sums = {name: torch.zeros_like(p) for name, p in zip(names, parameters, strict=True)}
        with torch.enable_grad():
            output = self.module(x)
            for vector in cotangents:
                gradients = torch.autograd.grad(output, parameters, vector, retain_graph=True, allow_unused=True)
                for name, gradient in zip(names, gradients, strict=True):
                    if gradient is not None:
                        sums[name] += gradient.square()
        return sums

    # -- which way for which parameter -----------------------------------------------------------------------------

    def _make_plan(self, x: Tensor) -> _Plan:
        x = x[torch.arange(PROBE_ROWS, device=x.device) % len(x)]
        output, found = self._record(x)
        calls = [site.key for site in found]
        closed = self._sound(x, output, found)
        covered = {name for each in closed.values() for name in each.names}
        general = [name for name in self.parameters.names if name not in covered]
        k = len(self.likelihood.cotangents(output.detach(), self.kind, None, None)) if self.kind == "exact" else 1
        numbers = x.numel() + k * output.numel() + sum(found[index].numbers for index in closed)
        batched = k if output.is_cuda else 1
        vectorised = bool(general) and self._vectorises(general, x, output.detach())
        return _Plan(calls, closed, general, vectorised, batched * numbers // len(x))

    def _sound(self, x: Tensor, output: Tensor, found: list[Site]) -> dict[int, _Closed]:
        """Which sites' closed forms equal a loop over samples, for one random cotangent."""
        used = Counter(name for site in found for name in site.names)
        cotangent = _random(output, 1, seed=0)
        names = [name for name in used if name is not None]
        expected = self._loop(names, x, cotangent)
        (gradients,) = _output_gradients(output, found, cotangent)
        sound = {}
        for index, (site, gradient) in enumerate(zip(found, gradients, strict=True)):
            once = _only(site.names, {name for name in names if used[name] == 1})
            if gradient is None:
                continue
            for layout in site.layouts(len(x)):
                agreeing = _only(once, _agreeing(copy(site).at(once, layout, len(x)), gradient, expected))
                if any(agreeing):
                    sound[index] = _Closed(agreeing, layout)
                    break
        return sound

    def _loop(self, names: list[str], x: Tensor, cotangents: Tensor) -> dict[str, Tensor]:
        sums = {name: torch.zeros_like(self._by_name[name]) for name in names}
        for n in range(len(x)):
            for name, squares in self._one_sample(names, x[n : n + 1], cotangents[:, n : n + 1]).items():
                sums[name] += squares
        return sums

    def _vectorises(self, names: list[str], x: Tensor, output: Tensor) -> bool:
        """Whether vmap takes this module and agrees with plain backward passes on a few rows."""
        cotangents = _random(output, 2, seed=1)
        values = {name: self._by_name[name].detach() for name in names}
        try:
            gradients = self._per_sample(values, x, cotangents)
        except Exception as error:  # whatever torch raises where an operation has no batching rule
            self.unvectorised = f"{type(error).__name__}: {error}".splitlines()[0]
            return False
        for n in range(len(x)):
            for name, squares in self._one_sample(names, x[n : n + 1], cotangents[:, n : n + 1]).items():
                if not _agree(gradients[name][n].square().sum(0), squares):
                    self.unvectorised = f"vmap gives another gradient for {name}"
                    return False
        return True


def _output_gradients(output: Tensor, sites: Sequence[Site], cotangents: Tensor) -> Iterator[Sequence[Tensor | None]]:
    """The gradients of all sites' outputs, for one cotangent after the other.

    All at once where launching kernels is what takes time; on a CPU one by one, so that they stay in the cache.
    """
    edges = [site.edge for site in sites]
    if not edges or not output.requires_grad:
        return
    if output.is_cuda and len(cotangents) > 1:
        try:
            batched = torch.autograd.grad(
                output, edges, cotangents, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
        except RuntimeError:  # an operation without a batching rule
            pass
        else:
            for k in range(len(cotangents)):
                yield [None if gradient is None else gradient[k] for gradient in batched]
            return
    for cotangent in cotangents:
        yield torch.autograd.grad(output, edges, cotangent, retain_graph=True, allow_unused=True)


def _random(output: Tensor, k: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((k, *output.shape), generator=generator, dtype=output.dtype).to(output.device)


def _only(names: Names, kept: set[str]) -> Names:
    weight, bias = names
    return weight if weight in kept else None, bias if bias in kept else None


def _agreeing(site: Site, gradient: Tensor, expected: dict[str, Tensor]) -> set[str]:
    """The names for which a site's closed form gives what is expected; zeros prove nothing."""
    sums = {name: torch.zeros_like(expected[name]) for name in site.names if name is not None}
    with torch.no_grad():
        site.prepare()
        site.add(gradient, sums)
        site.finish(sums)
    return {name for name, squares in sums.items() if squares.any() and _agree(squares, expected[name])}


def _agree(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-8
    scale = float(other.abs().max()) if other.numel() else 0.0
    return bool((one - other).abs().max() <= tolerance * scale) if other.numel() else True
