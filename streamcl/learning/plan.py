"""How each parameter's precision is kept, and what that costs, before anything is learned: for people to read.

Decides nothing: which parameters are turned together is `curvature`'s choice, found on rows that the model is tried on, and
which sides are turned is `measures`'. Costs are counted in operations, not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from streamcl import models, scale
from streamcl.config import Config, settled
from streamcl.core.basis import OVERSAMPLED, Basis, Matrix, Side, is_wide, leading, turning_cost, wide_leading
from streamcl.core.layout import Layout, Part
from streamcl.core.likelihood import Likelihood
from streamcl.core.measures import Moments
from streamcl.core.precision import Layered, Precision
from streamcl.gauge import is_linear_gaussian
from streamcl.learning.curvature import DRAW_ROWS, DRAWS, LARGEST_BLOCK, ROUNDS, SKETCHED, VECTORS, TaskCurvature, a_row
from streamcl.learning.data import Array, TaskData
from streamcl.learning.network import Network, choose_device
from streamcl.learning.trial import Trial, first_width
from streamcl.schema import LabelMap, Signature

Treatment = Literal["turned on both sides", "turned on one side", "full block", "own coordinates"]
Settings = Literal["auto", "diagonal", "kronecker", "full"]
POSTERIOR_BYTES = 8  # of a number in a checkpoint
EIGEN = 9  # operations times n^3, about, for all eigenvectors of a symmetric [n, n]
PASS = 3.0  # what a row costs in an epoch: one forward pass, and a backward pass that costs two


@dataclass(frozen=True, slots=True)
class Kept:
    """Parameters whose precision is kept in one way. numbers: held for it beside two for each parameter."""

    names: tuple[str, ...]
    rows: int
    columns: int
    treatment: Treatment
    why: str
    numbers: int = 0

    @property
    def parameters(self) -> int:
        """How many."""
        return self.rows * self.columns


@dataclass(frozen=True, slots=True)
class Width:
    """A side that is turned, of n entries. leading: to so many eigenvectors; 0: all. once: for all steps of a task.

    wide: only those that lead are written down.
    """

    entries: int
    leading: int = 0
    once: bool = False
    wide: bool = False

    @classmethod
    def of(cls, side: Side | None) -> Width | None:
        """Of a basis; None where it is not turned."""
        if side is None:
            return None
        return cls(side.entries, side.leads, wide=side.is_wide)

    @property
    def numbers(self) -> int:
        """Of the vectors, the moments along them, and the reflections."""
        written = self.leading if self.wide else self.entries
        return written * (self.entries + 1) + self.leading * (self.entries + self.leading) + self.wide

    @property
    def row(self) -> int:
        """Multiplications to turn a row."""
        return turning_cost(self.entries, self.leading)


@dataclass(frozen=True, slots=True)
class Turned:
    """A matrix of a choice, and its sides that are turned."""

    matrix: Matrix
    left: Width | None
    right: Width | None

    @property
    def sums(self) -> int:
        """That its moments are taken as."""
        if self.matrix.stacked:
            return 0
        return sum(side.entries * (side.leading + OVERSAMPLED if side.wide else side.entries) for side in self.sides)

    @property
    def sides(self) -> list[Width]:
        """Those that there are."""
        return [side for side in (self.left, self.right) if side is not None]

    @property
    def numbers(self) -> int:
        """Of a block; or of its sides."""
        return self.matrix.size**2 if self.matrix.stacked else sum(side.numbers for side in self.sides)


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes. posterior: in a checkpoint. factor: in the file of each. device: while a task is learned, activations and
    rows aside. plain: of that, what training without a penalty takes. copy: on the host, of what is trained, while a
    checkpoint is written beside training. boundary: more, on device and host, while a task's curvature is taken."""

    posterior: int
    factor: int
    device: int
    plain: int
    copy: int
    boundary: int


@dataclass(frozen=True, slots=True)
class Cost:
    """Operations beside those of plain training; None where they could not be counted.

    step: of one, over a plain one. boundary: what follows the epochs of a task of `samples` rows, in epochs: the least, the
    most. eigenvectors: of that, their part.
    """

    batch: int
    step: float | None
    samples: int
    boundary: tuple[float, float]
    eigenvectors: float | None


@dataclass(frozen=True, slots=True)
class Plan:
    """All of it."""

    curvature: str
    parameters: int
    kept: list[Kept]
    memory: Memory
    cost: Cost


# -- what is kept how --------------------------------------------------------------------------------------------------


def kept(
    layout: Layout, turned: Sequence[Turned], setting: Settings, tables: Collection[str] = (), unknown: Collection[str] = ()
) -> list[Kept]:
    """In the layout's order. tables: weights whose rows are looked up. unknown: those without a closed form."""
    parts = {part.name: part for part in layout.parts}
    by_name = {name: each for each in turned for name in each.matrix.names}
    found: dict[tuple[str, ...], Kept] = {}
    for name, part in parts.items():
        each = by_name.get(name)
        if each is None:
            found[name,] = _own(part, setting)
        else:
            found.setdefault(each.matrix.names, _together(each, setting, tables, unknown))
    return list(found.values())


def _own(part: Part, setting: Settings) -> Kept:
    if setting == "diagonal":
        why = "posterior.curvature is diagonal"
    elif len(part.shape) < 2:
        why = "a scale, or a bias that does not stand beside a weight of its own"
    else:
        why = "what it is used for is no one product of a matrix (a grouped or transposed convolution, say)"
    size = part.place.stop - part.offset
    rows = part.shape[0] if part.shape else 1
    return Kept((part.name,), rows, size // max(1, rows), "own coordinates", why)


def _together(each: Turned, setting: Settings, tables: Collection[str], unknown: Collection[str]) -> Kept:
    matrix = each.matrix
    whole = (matrix.names, matrix.rows, matrix.columns)
    if matrix.stacked and setting == "full":
        return Kept(*whole, "full block", "posterior.curvature is full: one block for all", each.numbers)
    if matrix.stacked:
        return Kept(*whole, "full block", f"at most {LARGEST_BLOCK} parameters", each.numbers)
    moments = "its gradients, as its inputs are not known" if matrix.key in unknown else "its inputs and output gradients"
    if each.left and each.right:
        return Kept(*whole, "turned on both sides", f"by the moments of {moments}{_leads(each)}", each.numbers)
    why = "; ".join(_unturned(each, tables))
    if each.left or each.right:
        side = "output" if each.left else "input"
        return Kept(*whole, "turned on one side", f"{side} side by the moments of {moments}; {why}", each.numbers)
    return Kept(*whole, "own coordinates", why)


def _leads(each: Turned) -> str:
    """Which sides are turned to some of their eigenvectors only."""
    both = ((each.left, "outputs"), (each.right, "inputs"))
    found = [f"{side.leading} of {side.entries} {name}" for side, name in both if side is not None and side.leading]
    return f"; leading {', '.join(found)}" if found else ""


def _unturned(each: Turned, tables: Collection[str]) -> Iterator[str]:
    """Why sides are not turned."""
    for turned, side in ((each.left, "output"), (each.right, "input")):
        if not turned and each.matrix.key in tables:
            yield "a table, whose rows are looked up one by one"
        elif not turned:
            yield f"{side} side: no moments"


def in_use(precision: Precision, layout: Layout, setting: Settings) -> list[Kept] | None:
    """What a posterior has come to; None before its first task has settled it."""
    if not isinstance(precision, Layered):
        return kept(layout, [], "diagonal")
    basis = precision.basis
    if not basis.matrices:
        return None
    return kept(layout, _sides_of(basis), setting, tables=_without_left(basis))


def _sides_of(basis: Basis) -> list[Turned]:
    sides = zip(basis.matrices, basis.sides, strict=True)
    return [Turned(matrix, Width.of(left), Width.of(right)) for matrix, (left, right) in sides]


def _without_left(basis: Basis) -> list[str]:
    return [each.matrix.key for each in _sides_of(basis) if not each.left]


NAMES = 20  # of a kind that are told one by one


def summary(found: Sequence[Kept] | None) -> dict[str, Any]:
    """Names and numbers of parameters by what is done with them; `settled` is False before a first task has decided it."""
    return {"settled": found is not None} | {
        kind: _summed([each for each in found or () if each.treatment in treatments]) for kind, treatments in KINDS.items()
    }


KINDS: dict[str, tuple[Treatment, ...]] = {
    "turned": ("turned on both sides", "turned on one side"),
    "full_blocks": ("full block",),
    "own_coordinates": ("own coordinates",),
}


def _summed(found: Sequence[Kept]) -> dict[str, Any]:
    names = [name for each in found for name in each.names]
    more = [f"and {len(names) - NAMES} more"] if len(names) > NAMES else []
    return {"parameters": sum(each.parameters for each in found), "names": [*names[:NAMES], *more]}


# -- before anything is learned ----------------------------------------------------------------------------------------


def plan(config: Config, x: Array, y: Array, samples: int, factory: Callable[..., nn.Module] | None = None) -> Plan:
    """Of the configured model on rows like x, y [n, ...], for a task of `samples` rows.

    Raises ModelRefused for a model that cannot be learned, ConfigError, and Refused for labels that it does not take.
    """
    config = settled(config, y.dtype.kind == "f")
    labels, signature, device = LabelMap(config.model.outputs), Signature.of(x, y), choose_device(config.train.device)
    new = labels.new_labels(y) if config.model.family == "categorical" else ()
    labels.add(new)
    Trial(config, signature, device, x, y, new, factory=factory).run()
    classes = first_width(config, factory, signature, x, labels.known)
    network = Network(config, signature, labels, device, factory=factory, classes=classes)
    with models.seeded(config.train.seed):
        turned, tables, unknown = _chosen(config, network, x, y)
        plain = _step_operations(config, network, x)
    layout = network.parameters.layout
    found = kept(layout, turned, config.posterior.curvature, tables, unknown)
    cost = _cost(config, network, turned, plain, samples, bool(unknown))
    size = network.parameters.size
    return Plan(config.posterior.curvature, size, found, _memory(config, network, turned), cost)


def _chosen(config: Config, network: Network, x: Array, y: Array) -> tuple[list[Turned], Sequence[str], Sequence[str]]:
    if config.posterior.curvature == "diagonal":
        return [], [], []
    data = TaskData(lambda records: [(x, y)], [len(x)], x[:1].nbytes, network.conversion)
    found = TaskCurvature(config, network, data, config.train.seed).choice()
    shapes = Moments(network.parameters.layout, found.matrices).shapes

    def side(matrix: Matrix, k: int) -> Width | None:
        if f"{matrix.key} {('left', 'right')[k]}" not in shapes or (k == 0 and matrix.key in found.tables):
            return None
        leads, (entries, other) = (matrix.key, k) in found.leading, ((matrix.rows, matrix.columns)[:: 1 - 2 * k])
        once = k == 1 and (matrix.key, 0) in found.leading and not leads
        if is_wide(entries, other):
            return Width(entries, wide_leading(other), once, wide=True)
        return Width(entries, leading(entries) if leads else 0, once)

    return [Turned(m, side(m, 0), side(m, 1)) for m in found.matrices], found.tables, found.unknown


def _memory(config: Config, network: Network, turned: Sequence[Turned]) -> Memory:
    """Plain: parameters, gradient and Adam's two averages. Penalty: two numbers a parameter; the values and their gradient
    in a basis, where there is one, and the basis itself."""
    size, numbers = network.parameters.size, sum(each.numbers for each in turned)
    item = network.parameters.theta.element_size()
    averages = {"adam": 2, "sgd": 0, "lbfgs": 0}[config.train.optimizer]
    coordinates = any(each.numbers for each in turned) and config.train.optimizer == "adam"
    basis = 2 * size + numbers if coordinates else numbers
    plain = item * (2 + averages) * size
    penalty = POSTERIOR_BYTES * (2 * size + numbers)
    factor = penalty if config.posterior.as_in_the_note else penalty + POSTERIOR_BYTES * size
    posterior = penalty + POSTERIOR_BYTES * size * (config.posterior.keeps_middle and not is_linear_gaussian(config))
    return Memory(
        posterior,
        factor,
        plain + item * (2 * size + basis),
        plain,
        item * (1 + averages + coordinates) * size,
        _boundary_memory(config.posterior.expectation == "posterior", size, item, turned),
    )


def _boundary_memory(averaged: bool, size: int, item: int, turned: Sequence[Turned]) -> int:
    """As `scale.memory` counts it: vectors of 64 bits, the new basis in both places and two working copies of it; or
    moments and their eigenvectors, where these are more."""
    there, here = scale.BOUNDARY[averaged]
    numbers, sums = sum(each.numbers for each in turned), sum(each.sums for each in turned)
    curvature = POSTERIOR_BYTES * there * size + (POSTERIOR_BYTES + 2 * item) * numbers
    return max(curvature, 2 * POSTERIOR_BYTES * sums) + POSTERIOR_BYTES * (here * size + numbers)


def _step_operations(config: Config, network: Network, x: Array) -> int | None:
    """Of a forward and a backward pass over one minibatch; None where PyTorch counts none."""
    rows = network.conversion.x(x[[k % len(x) for k in range(config.train.rows)]])
    with FlopCounterMode(display=False) as counter:
        output = network.training_output(rows)
        output.sum().backward()  # type: ignore[no-untyped-call]
    network.parameters.grad.zero_()
    return counter.get_total_flops() or None


def _cost(
    config: Config, network: Network, turned: Sequence[Turned], plain: int | None, samples: int, one_by_one: bool
) -> Cost:
    """one_by_one: some gradients are taken sample by sample, not only back to the layers' outputs."""
    batch = config.train.rows
    extra = sum(_turning(each, batch, _linear(network.module, each.matrix, network)) for each in turned)
    eigen = EIGEN * sum(n**3 for each in turned for n in _widths(each))
    share = None if plain is None else eigen * batch / (plain * samples)

    def row(backward: int) -> float:
        turning = 0.0 if plain is None else batch / plain * sum(_turning_a_row(each, backward) for each in turned)
        return (1 + backward * (2 if one_by_one else 1)) / PASS + turning

    every = _cotangents(config, network.likelihood, network.signature)
    averaged = config.posterior.expectation == "posterior"
    moments, squares = (row(min(every, a_row(vectors, samples)) if averaged else every) for vectors in SKETCHED)
    passes = squares + (moments if any(not each.matrix.stacked for each in turned) else 0.0)
    draws = [DRAWS * rounds * min(DRAW_ROWS, samples) / samples if averaged else 0.0 for rounds in ROUNDS]
    low, high = (passes + drawn * row(VECTORS) + (share or 0.0) for drawn in draws)
    return Cost(batch, None if plain is None else 1 + extra / plain, samples, (low, high), share)


def _widths(each: Turned) -> Iterable[int]:
    """Of the symmetric matrices whose eigenvectors are taken."""
    every = (side.leading if side.wide else side.entries for side in each.sides)
    return (each.matrix.size,) if each.matrix.stacked else every


def _turning(each: Turned, batch: int, linear: bool) -> int:
    """Operations of a step: the gradient turned there and the values back; or what goes through a linear layer."""
    rows, columns = each.matrix.rows, each.matrix.columns
    if each.matrix.stacked:
        return 4 * each.matrix.size**2
    left, right = (0 if side is None else side.row for side in (each.left, each.right))
    by_weight = 4 * (columns * left + rows * right)
    if (
        not linear
        or each.left is None
        or each.right is None
        or batch * (left + right) >= each.matrix.size * (rows + columns)
    ):
        return by_weight
    return 4 * batch * (left + (0 if each.right.once else right))


def _turning_a_row(each: Turned, backward: int) -> int:
    """Operations in a pass of the Fisher, with one use of a layer a row: gradients and inputs into the basis."""
    left, right = (0 if side is None else side.row for side in (each.left, each.right))
    return 0 if each.matrix.stacked else 2 * (backward * left + right)


def _linear(module: nn.Module, matrix: Matrix, network: Network) -> bool:
    """Whether its weight is an `nn.Linear`'s."""
    by_name = dict(zip(network.parameters.names, network.parameters.parameters, strict=True))
    return any(type(each) is nn.Linear and each.weight is by_name[matrix.key] for each in module.modules())


def _cotangents(config: Config, likelihood: Likelihood, signature: Signature) -> int:
    """Backward passes a row that the Fisher takes."""
    if config.posterior.fisher != "exact":
        return 1
    outputs = likelihood.outputs(signature.y_shape)
    return max(1, outputs - 1) if config.model.family == "categorical" else max(1, outputs)


def plain(found: Plan) -> dict[str, Any]:
    """As plain containers."""
    rows = [
        {"names": list(k.names), "rows": k.rows, "columns": k.columns, "parameters": k.parameters}
        | {"treatment": k.treatment, "why": k.why, "numbers": k.numbers}
        for k in found.kept
    ]
    memory, cost = found.memory, found.cost
    return {
        "curvature": found.curvature,
        "parameters": found.parameters,
        "layers": rows,
        "memory": {"posterior_bytes": memory.posterior, "factor_bytes": memory.factor}
        | {"device_bytes": memory.device, "plain_device_bytes": memory.plain}
        | {"copy_bytes": memory.copy, "boundary_bytes": memory.boundary},
        "cost": {
            "batch_rows": cost.batch,
            "step": cost.step,
            "task_rows": cost.samples,
            "boundary_epochs": list(cost.boundary),
            "eigenvectors_epochs": cost.eigenvectors,
        },
    }


def noise(shape: Sequence[int], integers: bool, config: Config, targets: Sequence[int] = ()) -> tuple[Array, Array]:
    """A few rows of this shape to try a model on: noise, or tokens 0 and 1."""
    numbers = torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    x = (numbers > 0).long().numpy() if integers else numbers.numpy()
    labels = config.model.family == "categorical"
    y = torch.zeros(8, *targets, dtype=torch.int64 if labels else torch.float32)
    return x, y.numpy()
