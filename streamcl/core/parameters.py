"""A module's trainable parameters as one flat vector, with the parameters and their gradients as views into it.

Guarantees: autograd accumulates straight into `grad`, an optimiser of `theta` moves every parameter, a tied
parameter appears in it once and a frozen one not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from streamcl.core.layout import Layout, Shape
from streamcl.errors import ModelRefused


class FlatParameters:
    """The trainable parameters of a module, which must already be on its device and in its dtype.

    theta: [P], a leaf that an optimiser takes as its one parameter. grad: [P], its gradient. layout: what stands where in
    them, in the module's order. gradients: False where nothing will be trained; `grad` is empty then. Who keeps the current
    parameters elsewhere for a while (`owe`) is asked for them before theta is looked at. Raises ModelRefused where there is
    nothing to train or dtypes differ.
    """

    def __init__(self, module: nn.Module, gradients: bool = True) -> None:
        trainable = {name: p for name, p in module.named_parameters() if p.requires_grad}
        _check_uniform(trainable)
        self.layout = layout_of(module)
        self.parameters = list(trainable.values())
        flat = torch.cat([p.detach().reshape(-1) for p in self.parameters])
        self._theta = nn.Parameter(flat)
        self._owed: Callable[[], None] | None = None
        self.grad = torch.zeros_like(flat) if gradients else flat.new_empty(0)
        with torch.no_grad():
            for p, value in zip(self.parameters, self._pieces(self.theta.data), strict=True):
                p.data = value
        if gradients:
            self._make_gradients()

    @property
    def theta(self) -> nn.Parameter:
        """The vector, up to date."""
        if self._owed is not None:
            self._owed()
            self._owed = None
        return self._theta

    @property
    def unsettled(self) -> Tensor:
        """The vector as it is, for who brings it up to date."""
        return self._theta.detach()

    def owe(self, settle: Callable[[], None]) -> None:
        """The vector is out of date until `settle` is called: before it is next looked at."""
        self._owed = settle

    def _make_gradients(self) -> None:
        self.theta.grad = self.grad
        for p, gradient in zip(self.parameters, self._pieces(self.grad), strict=True):
            p.grad = gradient

    def _pieces(self, vector: Tensor) -> Iterable[Tensor]:
        return self.split(vector).values()

    @property
    def names(self) -> list[str]:
        """Of the parameters, in the module's order."""
        return self.layout.names

    @property
    def shapes(self) -> list[Shape]:
        """Of the parameters, in the module's order."""
        return self.layout.shapes

    @property
    def size(self) -> int:
        """P, the number of trainable parameters."""
        return self.theta.numel()

    def load(self, vector: Tensor) -> None:
        """Copy a vector [P] in; every parameter changes with it."""
        self._owed = None
        with torch.no_grad():
            self._theta.copy_(vector)

    def split(self, vector: Tensor) -> dict[str, Tensor]:
        """A flat vector [P] as views in the parameters' shapes, by name."""
        return self.layout.split(vector)


def layout_of(module: nn.Module) -> Layout:
    """Where a module's trainable parameters stand in a flat vector, and what of it is frozen, a buffer or tied."""
    parameters, buffers = dict(module.named_parameters()), dict(module.named_buffers())
    own = {id(tensor): name for name, tensor in (*buffers.items(), *parameters.items())}
    every = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    return Layout.of(
        trained=[(name, p.shape) for name, p in parameters.items() if p.requires_grad],
        frozen=[name for name, p in parameters.items() if not p.requires_grad],
        buffers=buffers,
        tied=[(name, own[id(tensor)]) for name, tensor in every if own[id(tensor)] != name],
    )


def _check_uniform(trainable: dict[str, nn.Parameter]) -> None:
    if not trainable:
        raise ModelRefused("the model has no trainable parameters; expected at least one with requires_grad")
    for name, p in trainable.items():
        _check_real(name, p)
    kinds = {(p.dtype, p.device) for p in trainable.values()}
    if len(kinds) > 1:
        found = ", ".join(sorted(f"{dtype} on {device}" for dtype, device in kinds))
        raise ModelRefused(f"the model's parameters must share one dtype and device, got {found}")


def _check_real(name: str, p: nn.Parameter) -> None:
    if p.is_complex():
        raise ModelRefused(
            f"model: parameter {name} is complex, and the posterior is one over real numbers; make its real and imaginary "
            "parts the parameter (torch.view_as_real) and use torch.view_as_complex of it in forward"
        )
    if not p.is_floating_point() or p.layout != torch.strided:
        raise ModelRefused(
            f"model: parameter {name} is of {p.dtype}, {p.layout}; expected dense real numbers: train its values as a "
            "dense parameter and put them in their places in forward, or keep it from training (requires_grad_(False))"
        )
