"""The diagonal Fisher of any module: sums over samples of squared per-sample gradients.

``F_i = sum_n E[(d log p(y | x_n) / d theta_i)^2]``, with y from the model's own predictive distribution (exact, mc) or
observed (empirical, what the note writes); Martens (2014) on the difference. Squaring a mini-batch's gradient is
another, wrong quantity: it came to a few hundredths of this one on a trained network.

For a linear layer with inputs A [n, in] and output gradients G [n, out] the sum over samples has a closed form,
``(G*G)^T (A*A)``: one matrix product. Other parameters get per-sample gradients, in chunks of bounded memory; and
where not even those can be had (vmap has no rule for some operation), a loop over samples. A self-check on the first
rows decides which way is sound for which parameter, so that ties, parametrisations and layers used twice are right.

Guarantees: evaluation mode during the computation; training flags, gradients and parameters are left as they
were. Squares of small gradients are denormal and slow on CPUs: the process that trains flushes them
(`torch.set_flush_denormal`), this module leaves that process-wide setting alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from streamcl.core.likelihood import FisherKind, Likelihood
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters

CHUNK_BYTES = 256 << 20  # per-sample gradients held at once,
CPU_CHUNK_BYTES = 8 << 20  # and on a CPU, whose caches are small
BLOCK_BYTES = 32 << 20  # output gradients held at once, were they all to be
PROBE_ROWS = 3


@dataclass(slots=True)
class _Captured:
    """What one linear layer saw in a forward pass: inputs and outputs of each call."""

    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)


@dataclass(slots=True)
class _Plan:
    """How each parameter's Fisher is computed, as the self-check found it sound."""

    layers: dict[str, nn.Linear]
    general: list[str]
    vectorised: bool
    width: int


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

    def add(self, x: Tensor, y: Tensor | None = None) -> None:
        """Add the samples x [n, ...] with targets y (needed by ``empirical`` only)."""
        flags = TrainingFlags(self.module)
        flags.eval()
        try:
            if self._plan is None:
                self._plan = self._make_plan(x[:PROBE_ROWS])
            self._add(self._plan, x, y)
        finally:
            flags.train()

    def _add(self, plan: _Plan, x: Tensor, y: Tensor | None) -> None:
        start = 0
        while start < len(x):
            rows = x[start : start + self._block_rows(plan, x)]
            target = None if y is None else y[start : start + len(rows)]
            self._add_block(plan, rows, target)
            start += len(rows)

    def _block_rows(self, plan: _Plan, x: Tensor) -> int:
        itemsize = self.parameters.theta.element_size()
        return max(1, min(len(x), BLOCK_BYTES // (itemsize * max(1, plan.width))))

    def _add_block(self, plan: _Plan, x: Tensor, y: Tensor | None) -> None:
        with self._capturing(plan.layers) as captured, torch.enable_grad():
            output = self.module(x)
        cotangents = self.likelihood.cotangents(output.detach(), self.kind, y, self.generator).to(output.dtype)
        with torch.no_grad():
            if plan.layers:
                self._add_layers(plan, captured, output, cotangents)
            del captured, output
            if plan.general and plan.vectorised:
                self._add_vectorised(plan, x, cotangents)
            elif plan.general:
                self._add_one_by_one(plan, x, cotangents)

    # -- closed form -----------------------------------------------------------------------------------------------

    @contextmanager
    def _capturing(self, layers: dict[str, nn.Linear]) -> Iterator[dict[str, _Captured]]:
        captured = {name: _Captured() for name in layers}
        handles = [layer.register_forward_hook(_capture(captured[name])) for name, layer in layers.items()]
        try:
            yield captured
        finally:
            for handle in handles:
                handle.remove()

    def _add_layers(self, plan: _Plan, captured: dict[str, _Captured], output: Tensor, cotangents: Tensor) -> None:
        """``(sum_k G_k*G_k)^T (A*A)`` for weights, ``sum G_k*G_k`` for biases."""
        outputs = [captured[name].outputs[0] for name in plan.layers]
        sums = _squared_output_gradients(output, outputs, cotangents)
        for (name, layer), squares in zip(plan.layers.items(), sums, strict=True):
            weight, bias = _names(name)
            if weight in self._sums and layer.weight.requires_grad:
                self._sums[weight] += squares.T @ captured[name].inputs[0].detach().square()
            if bias in self._sums and layer.bias is not None and layer.bias.requires_grad:
                self._sums[bias] += squares.sum(0)

    # -- per-sample gradients --------------------------------------------------------------------------------------

    def _add_vectorised(self, plan: _Plan, x: Tensor, cotangents: Tensor) -> None:
        values = {name: self._by_name[name].detach() for name in plan.general}
        size = sum(value.numel() for value in values.values()) * len(cotangents)
        chunk = CPU_CHUNK_BYTES if x.device.type == "cpu" else CHUNK_BYTES
        rows = max(1, chunk // (size * self.parameters.theta.element_size()))
        for start in range(0, len(x), rows):
            gradients = self._per_sample(values, x[start : start + rows], cotangents[:, start : start + rows])
            for name, gradient in gradients.items():
                self._sums[name] += gradient.square_().sum((0, 1))

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

    def _add_one_by_one(self, plan: _Plan, x: Tensor, cotangents: Tensor) -> None:
        for n in range(len(x)):
            for name, squares in self._one_sample(plan.general, x[n : n + 1], cotangents[:, n : n + 1]).items():
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
        layers = self._sound_layers(x)
        covered = {name for layer in layers for name in _names(layer)}
        general = [name for name in self.parameters.names if name not in covered]
        with torch.no_grad():
            output = self.module(x)
            k = len(self.likelihood.cotangents(output, "exact", None, None)) if self.kind == "exact" else 1
        width = k * sum(layer.out_features for layer in layers.values()) + sum(x.shape[1:])
        return _Plan(layers, general, bool(general) and self._vectorises(general, x, output), width)

    def _sound_layers(self, x: Tensor) -> dict[str, nn.Linear]:
        """Linear layers called once, on [n, in], whose closed form gives autograd's gradient of their parameters.

        The comparison, on a few rows and one random cotangent, notices a weight that is used elsewhere too.
        """
        candidates = {name: part for name, part in self.module.named_modules() if type(part) is nn.Linear}
        with self._capturing(candidates) as captured, torch.enable_grad():
            output = self.module(x)
        used = {
            name: layer
            for name, layer in candidates.items()
            if len(captured[name].inputs) == 1
            and captured[name].inputs[0].ndim == 2
            and len(captured[name].inputs[0]) == len(x)
            and captured[name].outputs[0].requires_grad
        }
        generator = torch.Generator().manual_seed(0)
        cotangent = torch.randn(output.shape, generator=generator, dtype=output.dtype).to(output.device)
        return {
            name: layer for name, layer in used.items() if self._is_sound(name, layer, captured[name], output, cotangent)
        }

    def _is_sound(self, name: str, layer: nn.Linear, captured: _Captured, output: Tensor, cotangent: Tensor) -> bool:
        (g,) = torch.autograd.grad(output, captured.outputs, cotangent, retain_graph=True, materialize_grads=True)
        weight, bias = _names(name)
        closed = {weight: g.T @ captured.inputs[0], bias: g.sum(0)}
        for parameter_name, expected in closed.items():
            parameter = self._by_name.get(parameter_name)
            if parameter is None:
                if parameter_name == weight and layer.weight.requires_grad:
                    return False  # tied under another name, or made by a parametrisation
                continue
            (actual,) = torch.autograd.grad(output, parameter, cotangent, retain_graph=True, allow_unused=True)
            if actual is None or not _agree(actual, expected):
                return False
        return True

    def _vectorises(self, names: list[str], x: Tensor, output: Tensor) -> bool:
        """Whether vmap takes this module and agrees with plain backward passes on a few rows."""
        generator = torch.Generator().manual_seed(1)
        cotangents = torch.randn((2, *output.shape), generator=generator, dtype=output.dtype).to(output.device)
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


def _names(layer: str) -> tuple[str, str]:
    prefix = f"{layer}." if layer else ""
    return f"{prefix}weight", f"{prefix}bias"


def _capture(captured: _Captured):  # type: ignore[no-untyped-def]
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        captured.inputs.append(inputs[0].detach())
        captured.outputs.append(output)
        return output.clone()  # an in-place operation behind the layer must not change what was captured

    return hook


def _squared_output_gradients(output: Tensor, outputs: list[Tensor], cotangents: Tensor) -> list[Tensor]:
    """``sum_k G_k * G_k`` [n, out] of each layer's output gradients.

    All k at once where launching kernels is what takes time; on a CPU one after the other, so that they stay in the cache.
    """
    if output.is_cuda and len(cotangents) > 1:
        try:
            gradients = torch.autograd.grad(output, outputs, cotangents, is_grads_batched=True, retain_graph=True)
            return [gradient.square().sum(0) for gradient in gradients]
        except RuntimeError:  # an operation without a batching rule
            pass
    sums = [torch.zeros_like(each) for each in outputs]
    for vector in cotangents:
        for total, gradient in zip(sums, torch.autograd.grad(output, outputs, vector, retain_graph=True), strict=True):
            total.addcmul_(gradient, gradient)
    return sums


def _agree(one: Tensor, other: Tensor) -> bool:
    tolerance = 1e-3 if one.dtype in (torch.float32, torch.float16, torch.bfloat16) else 1e-8
    scale = float(other.abs().max()) if other.numel() else 0.0
    return bool((one - other).abs().max() <= tolerance * scale) if other.numel() else True
