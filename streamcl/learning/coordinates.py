"""The parameters in the coordinates in which their penalty is a diagonal, for an optimiser that works there.

Under a stiff penalty Adam never settles in the parameters' own coordinates: its steps mix directions that are held with
directions that are free. Where the penalty is a diagonal every direction has its own step (as in SOAP, Vyas et al. 2025,
whose basis is the gradients').

Turning a weight [out, in] to its coordinates T and its gradient back takes ``2 out in (out + in)`` multiplications a step,
whatever the batch; turning what goes through the layer instead, ``z = U_G (T (U_A^T a))``, takes ``2 b (out^2 + in^2)`` for
a batch of b rows, and the gradient of T falls out of the backward pass. So `nn.Linear` layers do that for the length of a
step, where it is less and gives the gradient that the layer has: tried on the first rows. Their weights follow when they
are next looked at. What goes into a layer that takes the rows as they are does not change while a task's epochs pass: it is
turned once for all of them (`turned_rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcl.core.basis import Basis, Matrix, Sides, turned_back, turned_into
from streamcl.core.gaussian import Gaussian
from streamcl.core.gradients import agree
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Diagonal

NAME = "coordinates"  # of the values in a checkpoint
DIRECT = "coordinates.direct"  # of the matrices whose layers work on them

TURNING = 1e-8  # of a gradient's norm, in float64: rounding along axes that are known as well as `core.eigen.EQUAL` has it
ADDING = 1e-12  # and where nothing is turned
SINGLE_ROWS = 16  # that are asked where all of them together do not agree
AGREES, IDLE, DIFFERS = "agrees", "idle", "differs"  # IDLE: there is no gradient to compare

Loss = Callable[[Tensor, Tensor], Tensor]
Turn = Callable[[Tensor], Tensor]


@dataclass(slots=True)
class _Turned:
    """A matrix of the basis: its place in coordinates, its sides, and the layers that can work on it as they are."""

    matrix: Matrix
    place: slice
    sides: Sides
    layers: list[nn.Linear]

    def view(self, vector: Tensor) -> Tensor:
        """[rows, columns] of coordinates [P]."""
        return vector[self.place].view(self.matrix.rows, self.matrix.columns)


class Coordinates:
    """values [P], which are what is learned while a task is open; the parameters follow from them.

    basis: in the parameters' dtype, on their device. grad [P]: the gradient here. module: what the parameters are of. rows:
    of a step. tried: whether it is known which layers work on coordinates. turned_rows: makes of rows [n, ...] what the
    layer that takes them as they are makes of them, [n, columns]; None where there is none.
    """

    def __init__(self, parameters: FlatParameters, basis: Basis, module: nn.Module, rows: int) -> None:
        self.basis = basis
        self._parameters = parameters
        self.values = basis.into(parameters.theta.detach())
        self.grad = torch.zeros_like(self.values)
        pairs = zip(basis.offsets(), basis.sides, strict=True)
        self._turned = [_Turned(matrix, place, sides, []) for (matrix, place), sides in pairs]
        self._directly: list[_Turned] = []
        self._by_weight = self._turned
        self.tried = False
        self._first: _Turned | None = None
        self.turned_rows: Callable[[Tensor], Tensor] | None = None
        self._rows = _Given()
        self._find_layers(module, rows)

    @classmethod
    def of(
        cls, parameters: FlatParameters, penalty: Gaussian, module: nn.Module, rows: int, pinned: bool
    ) -> tuple[Coordinates, Gaussian] | None:
        """The penalty's axes, pinned or not (`core.eigen`), and it as a diagonal there; None where they are the
        parameters' own."""
        axes = penalty.precision.axes(pinned)
        if axes is None or not axes[0].turns:
            return None
        basis, values = axes
        device, dtype = parameters.theta.device, parameters.theta.dtype
        turned = Gaussian(Diagonal(values), basis.into(penalty.shift)).to(device, dtype)
        return cls(parameters, basis.to(device, dtype), module, rows), turned

    def _find_layers(self, module: nn.Module, rows: int) -> None:
        layers = linear_layers(module, self._parameters)
        for each in self._turned:
            if not each.matrix.stacked and None not in each.sides and _is_less(each, rows):
                each.layers = layers.get(each.matrix.names, [])

    # -- a step ------------------------------------------------------------------------------------------------------

    def try_layers(self, loss: Loss, x: Tensor, y: Tensor) -> None:
        """Let those layers work on coordinates whose gradient is what it is without that; loss: the sum over rows.

        Rounding turns a unit on in the one way that is off in the other where its input is next to zero, and then a row's
        gradient is another one. That happens to a row among many: where all rows together do not agree, single ones are
        asked.
        """
        self.tried = True
        able = [each for each in self._turned if each.layers]
        if not able:
            return
        found, taking = self._compared(able, loss, x, y)
        right = [each for each, same in zip(able, found, strict=True) if same in (AGREES, IDLE)]
        doubtful = [each for each in able if each not in right]
        if doubtful:
            rows = [self._compared(doubtful, loss, x[n : n + 1], y[n : n + 1])[0] for n in range(min(len(x), SINGLE_ROWS))]
            right += [each for each, of_rows in zip(doubtful, zip(*rows, strict=True), strict=True) if _mostly(of_rows)]
        self._let([each for each in able if each in right])
        self._take_rows(next((each for each in self._directly if each.matrix.key in taking), None))

    def _compared(self, able: list[_Turned], loss: Loss, x: Tensor, y: Tensor) -> tuple[list[str], set[str]]:
        """Whether the gradient of each is the same with its layers working on coordinates; which layers take the rows."""
        self._parameters.grad.zero_()
        self._let([])
        torch.autograd.backward(loss(x.clone(), y))  # some modules write into their inputs
        expected = self.basis.into(self._parameters.grad)
        self._let(able)
        self.grad.zero_()
        x = x.clone()
        with self.in_use(x):
            torch.autograd.backward(loss(x, y))
            taking = self._rows.takers
        pairs = [(each.view(self.grad), each.view(expected)) for each in able]
        return [
            (AGREES if one.any() or other.any() else IDLE) if agree(one, other) else DIFFERS for one, other in pairs
        ], taking

    def _let(self, directly: list[_Turned]) -> None:
        self._directly = directly
        self._by_weight = [each for each in self._turned if each not in directly]

    def _take_rows(self, first: _Turned | None) -> None:
        """The layer that takes the rows as they are."""
        self._first = first
        if first is not None:
            inward = _inward(first)
            self.turned_rows = lambda x: inward(x.flatten(1))

    @contextmanager
    def in_use(self, x: Tensor, turned: Tensor | None = None) -> Iterator[None]:
        """Inside, layers work on coordinates where they can, and add to `grad` by themselves.

        x [n, ...]: the rows that go through the module. turned [n, columns]: `turned_rows` of them.
        """
        self._rows = _Given(x, turned, "" if self._first is None else self._first.matrix.key)
        for each in self._directly:
            forward = _forward(each, each.view(self.values), each.view(self.grad), self._rows)
            for layer in each.layers:
                layer.__dict__["forward"] = forward
        try:
            yield
        finally:
            self._rows = _Given()
            for each in self._directly:
                for layer in each.layers:
                    del layer.__dict__["forward"]

    def clear(self) -> None:
        """Before a backward pass: the parameters' gradient, from which `gather` adds what no layer adds by itself."""
        for each in self._by_weight:
            for start, stop in each.matrix.places:
                self._parameters.grad[start:stop].zero_()
        for start, stop in self.basis.rest:
            self._parameters.grad[start:stop].zero_()

    def gather(self) -> None:
        """Add the parameters' gradient to the one here."""
        gradient = self._parameters.grad
        for each in self._by_weight:
            each.view(self.grad).add_(turned_into(each.sides, each.matrix.gather(gradient)))
        for place, (start, stop) in self.basis.rest_offsets():
            self.grad[place] += gradient[start:stop]

    def drop_rounding(self) -> None:
        """Of each matrix' gradient, what is no more than turning it in float64 leaves."""
        for each in self._turned:
            drop_rounding(each.view(self.grad), TURNING)

    @torch.no_grad()
    def follow(self) -> None:
        """After a step: the parameters of what no layer works on as it is; those of the others when they are looked at."""
        theta = self._parameters.unsettled
        for each in self._by_weight:
            self._put(each, theta)
        for place, (start, stop) in self.basis.rest_offsets():
            theta[start:stop] = self.values[place]
        if self._directly:
            self._parameters.owe(self._settle)

    @torch.no_grad()
    def _settle(self) -> None:
        for each in self._directly:
            self._put(each, self._parameters.unsettled)

    def _put(self, each: _Turned, theta: Tensor) -> None:
        each.matrix.scatter(turned_back(each.sides, each.view(self.values)), theta)

    # -- kept --------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Tensor]:
        """The values: turned back and forth, others would differ from them by rounding; and what the first rows showed."""
        if not self.tried:
            return {NAME: self.values}
        numbers = [self._turned.index(each) for each in self._directly]
        first = [] if self._first is None else [self._turned.index(self._first)]
        return {NAME: self.values, DIRECT: torch.tensor([len(first), *first, *numbers])}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self.values.copy_(state[NAME])
        if DIRECT in state:
            known, *numbers = state[DIRECT].tolist()
            first, direct = numbers[:known], numbers[known:]
            self._let([self._turned[number] for number in direct])
            self._take_rows(self._turned[first[0]] if first else None)
            self.tried = True


def drop_rounding(gradient: Tensor, share: float) -> None:
    """Set to 0 what is below a share of the gradient's norm, and therefore rounding.

    Adam makes whole steps of it otherwise, and two machines, or two numbers of processes, different ones.
    """
    gradient.masked_fill_(gradient.abs() < share * gradient.norm(), 0.0)


def linear_layers(module: nn.Module, parameters: FlatParameters) -> dict[tuple[str, ...], list[nn.Linear]]:
    """The `nn.Linear` layers of a module, by the names of the weight and the bias that they use."""
    names = {id(p): name for name, p in zip(parameters.names, parameters.parameters, strict=True)}
    found: dict[tuple[str, ...], list[nn.Linear]] = {}
    for layer in module.modules():
        if type(layer) is nn.Linear:
            used = tuple(str(names.get(id(p))) for p in (layer.weight, layer.bias) if p is not None)
            found.setdefault(used, []).append(layer)
    return found


@torch.no_grad()
def leading_sides(
    module: nn.Module, parameters: FlatParameters, matrices: Sequence[Matrix], x: Tensor
) -> set[tuple[str, int]]:
    """The sides (a matrix's key, 0 left or 1 right) at which a step turns what goes through a layer, x [n, ...] first.

    Not the right one of a layer that takes the rows: they are turned once a task, whatever that takes.
    """
    layers, rows = linear_layers(module, parameters), _Given(x)
    used = [matrix for matrix in matrices if not matrix.stacked and matrix.names in layers]
    hooks = [
        layer.register_forward_pre_hook(lambda _, args, key=matrix.key: (rows.of(key, args[0]), None)[1])
        for matrix in used
        for layer in layers[matrix.names]
    ]
    try:
        module(x)
    finally:
        for hook in hooks:
            hook.remove()
    return {(matrix.key, k) for matrix in used for k in (0, 1) if not (k == 1 and matrix.key in rows.takers)}


def _mostly(rows: Sequence[str]) -> bool:
    """Whether more of the rows agree than differ."""
    return rows.count(AGREES) > rows.count(DIFFERS)


def _is_less(each: _Turned, rows: int) -> bool:
    """Whether turning what goes through a layer takes less than turning its weight, for so many rows."""
    through = sum(side.cost for side in each.sides if side is not None)
    return rows * through < each.matrix.size * (each.matrix.rows + each.matrix.columns)


class _Given:
    """The rows that a module is given, and what their first layer makes of them, if that is known.

    takers: the keys of layers that took the rows as they are. key: of the one that `turned` is of.
    """

    def __init__(self, x: Tensor | None = None, turned: Tensor | None = None, key: str = "") -> None:
        self._x, self._turned, self._key = x, turned, key
        self._version = 0 if x is None else x._version
        self.takers: set[str] = set()

    def of(self, key: str, input: Tensor) -> Tensor | None:
        """What a layer makes of its input, where that is the rows; they may have another shape, and are not changed."""
        x = self._x
        if x is None or input.data_ptr() != x.data_ptr() or input.ndim != 2 or not self._is_whole(input, x):
            return None
        self.takers.add(key)
        return self._turned if key == self._key else None

    def _is_whole(self, input: Tensor, x: Tensor) -> bool:
        alike = len(input) == len(x) and input.numel() == x.numel() and input.dtype == x.dtype
        return alike and input.is_contiguous() and x.is_contiguous() and x._version == self._version


def _inward(each: _Turned) -> Turn:
    """What turns a linear layer's inputs [..., in], and the 1 behind them where it has a bias: [..., columns]."""
    right = each.sides[1]
    assert right is not None
    if right.reflections is not None:
        into = right.reflections.into
        return (lambda input: into(F.pad(input, (0, 1), value=1.0))) if each.matrix.biased else into
    columns = len(right.vectors) - each.matrix.biased
    inward, first = right.vectors[:columns].T, right.vectors[columns] if each.matrix.biased else None
    return lambda input: F.linear(input, inward, first)


def _forward(each: _Turned, values: Tensor, gradient: Tensor, rows: _Given) -> Turn:
    """A linear layer's forward pass on its coordinates [rows, columns], whose gradient is added where it belongs."""
    left, right = each.sides
    if left is None or right is None:
        raise ValueError("expected a matrix that is turned on both sides")
    coordinates = values.detach().requires_grad_()
    coordinates.grad = gradient
    inward, outward, key = _inward(each), left.back, each.matrix.key

    def forward(input: Tensor) -> Tensor:
        turned = rows.of(key, input)
        return outward(F.linear(inward(input) if turned is None else turned, coordinates))

    return forward
