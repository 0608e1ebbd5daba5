"""Kronecker factors of linear layers' curvature at one place, as the neighbours keep them; nothing here is streamcl's own.

A layer is one matrix [W b], out x (in + 1). Its curvature is taken for G kron A, with ``A = mean a a^T`` of its inputs (a 1
at their end) and ``G = sum g g^T`` of the gradients by its outputs (Martens & Grosse 2015), of the exact Fisher.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from streamcl.core.likelihood import Cotangents

ROWS = 1000  # in a pass
LAPLACE = "laplace-torch"


@dataclass(frozen=True, slots=True)
class Kronecker:
    """G kron A of one layer. left: G [out, out]. right: A [in + 1, in + 1]. rows: that A is a mean over."""

    left: Tensor
    right: Tensor
    rows: int

    @classmethod
    def ridge(cls, layer: Layer, precision: float) -> Self:
        """A multiple of the identity, as NCL's prior: the root of it on either side."""
        rows, columns = layer.matrix().shape
        return cls(precision**0.5 * torch.eye(rows), precision**0.5 * torch.eye(columns), 0)

    def times(self, matrix: Tensor) -> Tensor:
        """Its product with a matrix [out, in + 1]: G M A."""
        return self.left @ matrix @ self.right

    def inverse(self) -> Kronecker:
        """G^-1 kron A^-1."""
        left, right = (torch.linalg.inv(side.double()).to(side.dtype) for side in (self.left, self.right))
        return Kronecker(left, right, self.rows)

    def weighted(self, weight: float) -> Kronecker:
        """Times a number."""
        return Kronecker(weight * self.left, self.right, self.rows)


def summed(one: Kronecker, other: Kronecker) -> Kronecker:
    """laplace-torch's sum of two tasks: the G are added, the A averaged, weighted by their rows."""
    share = other.rows / (one.rows + other.rows)
    right = torch.lerp(one.right, other.right, share)
    return Kronecker(one.left + other.left, right, one.rows + other.rows)


def nearest(one: Kronecker, other: Kronecker) -> Kronecker:
    """One product for the sum of two, as Martens & Grosse (2015, section 6.3) damp and van de Ven's code has it for NCL.

    ``(G + pi G') kron (A + A' / pi)``, pi^2 = tr G tr A' / (tr G' tr A), which makes the least of the trace of what it has
    too much: ``pi G' kron A + G kron A' / pi``.
    """
    traces = one.left.trace() * other.right.trace() / (other.left.trace() * one.right.trace())
    if not (traces.isfinite() and traces > 0):  # one of them is nothing
        return other if one.left.trace() * one.right.trace() == 0 else one
    pi = traces.sqrt()
    return Kronecker(one.left + pi * other.left, one.right + other.right / pi, one.rows + other.rows)


class Layer:
    """A linear layer as one matrix."""

    def __init__(self, module: nn.Linear) -> None:
        self.module = module

    def matrix(self) -> Tensor:
        """[W b], a copy."""
        return self._joined(self.module.weight.detach(), None if self.module.bias is None else self.module.bias.detach())

    def gradient(self) -> Tensor:
        """Of [W b], a copy."""
        weight, bias = self.module.weight, self.module.bias
        assert weight.grad is not None
        return self._joined(weight.grad, None if bias is None else bias.grad)

    def set_gradient(self, gradient: Tensor) -> None:
        """Of [W b]."""
        weight, bias = self.module.weight, self.module.bias
        weight.grad = gradient[:, : weight.shape[1]].clone()
        if bias is not None:
            bias.grad = gradient[:, -1].clone()

    def inputs(self, x: Tensor) -> Tensor:
        """Rows [n, in] with the 1 that goes with a bias."""
        return x if self.module.bias is None else torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)

    @staticmethod
    def _joined(weight: Tensor, bias: Tensor | None) -> Tensor:
        return weight.clone() if bias is None else torch.cat([weight, bias.unsqueeze(1)], 1)


def layers_of(module: nn.Module) -> list[Layer]:
    """Every linear layer, in the module's order; a network for this benchmark has no other parameters."""
    return [Layer(each) for each in module.modules() if isinstance(each, nn.Linear)]


@contextmanager
def _recorded(layers: list[Layer]) -> Iterator[dict[Layer, tuple[Tensor, Tensor]]]:
    """Inputs and outputs of every layer in a forward pass."""
    found: dict[Layer, tuple[Tensor, Tensor]] = {}

    def hook(layer: Layer) -> Any:
        return lambda module, inputs, output: found.__setitem__(layer, (inputs[0], output))

    handles = [layer.module.register_forward_hook(hook(layer)) for layer in layers]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def input_moments(module: nn.Module, x: Tensor) -> list[Tensor]:
    """``mean a a^T`` of every linear layer's inputs, [in + 1, in + 1]."""
    layers = layers_of(module)
    with torch.no_grad(), _recorded(layers) as found:
        module(x)
    rows = [layer.inputs(found[layer][0]) for layer in layers]
    return [each.T @ each / len(x) for each in rows]


def factors(module: nn.Module, likelihood: Cotangents, x: Tensor) -> list[Kronecker]:
    """Of every linear layer, over rows x [n, ...]: our own, some thirty lines."""
    layers = layers_of(module)
    left = [torch.zeros(len(layer.module.weight), len(layer.module.weight), dtype=x.dtype) for layer in layers]
    for part in torch.split(x, ROWS):
        with _recorded(layers) as found:
            output = module(part)
        outputs = [found[layer][1] for layer in layers]
        for cotangent in likelihood.cotangents(output.detach(), "exact", None, None):
            for sums, g in zip(left, torch.autograd.grad(output, outputs, cotangent, retain_graph=True), strict=True):
                sums += g.T @ g
    return [Kronecker(g, a, len(x)) for g, a in zip(left, input_moments(module, x), strict=True)]


def laplace_factors(module: nn.Sequential, x: Tensor, y: Tensor) -> list[Kronecker]:
    """The same by laplace-torch's Kron, of a network of plain layers. It keeps a bias apart from its weight."""
    from laplace import KronLaplace
    from laplace.curvature import BackPackGGN
    from torch.utils.data import DataLoader, TensorDataset

    found = KronLaplace(module, "classification", backend=BackPackGGN)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing")
        found.fit(DataLoader(TensorDataset(x, y), batch_size=ROWS))
    kept = iter([each.detach() for each in sides] for sides in found.H_facs.kfacs)
    return [_with_bias(next(kept), next(kept), len(x)) for _ in layers_of(module)]


def _with_bias(weight: list[Tensor], bias: list[Tensor], rows: int) -> Kronecker:
    assert torch.allclose(
        weight[0], bias[0], rtol=1e-3, atol=1e-4 * float(bias[0].abs().max())
    )  # one G for both, so that they are one product
    return Kronecker(weight[0].clone(), _beside_a_one(weight[1]), rows)


def _beside_a_one(moments: Tensor) -> Tensor:
    """As of inputs whose last entry is a 1 that goes with none of the others."""
    wider = torch.eye(len(moments) + 1)
    wider[:-1, :-1] = moments
    return wider


def laplace_version() -> str | None:
    """Of laplace-torch, where it is installed."""
    return importlib.metadata.version(LAPLACE) if importlib.util.find_spec("laplace") is not None else None
