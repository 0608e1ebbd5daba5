"""What is summed in a basis, against loops over samples in float64: squares, blocks, moments; every kind of layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor, nn

from streamcl.core.basis import (
    MOST_WIDE,
    OVERSAMPLED,
    WIDEST,
    Basis,
    Matrix,
    Reflections,
    Side,
    leading,
    matrices_in,
    sketched,
)
from streamcl.core.fisher import Fisher
from streamcl.core.likelihood import Likelihood, likelihood
from streamcl.core.measures import Moments, SquaresIn
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Layered

ROWS, NOISE = 7, 0.5
SKETCHED = MOST_WIDE + OVERSAMPLED
NORMAL = "normal"


class Attention(nn.Module):
    """Self-attention over tokens, a layer norm, a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.norm, self.head = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x + self.attend(x, x, x, need_weights=False)[0]).mean(1))


class Recurrent(nn.Module):
    """The last state of a recurrent layer."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inner, self.head = kind(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x)[0][:, -1])


class Tokens(nn.Module):
    """Embedded tokens, one of them padding, through a layer; tied: the table is the output layer's weight too."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(6, 4, padding_idx=0)
        self.layer = nn.Linear(4, 4)
        self.head = nn.Linear(4, 6 if tied else 3, bias=False)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(self.table(x).mean(1))))


class Twice(nn.Module):
    """A layer that is used twice, and scales of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.scales, self.one = nn.Parameter(torch.randn(4)), nn.Parameter(torch.tensor(1.3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.layer(torch.tanh(self.layer(x)) * self.scales))) * self.one


class Odd(nn.Module):
    """Weights that no layer holds: a bilinear form, and a weight of three axes."""

    def __init__(self) -> None:
        super().__init__()
        self.form, self.mixed = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(3, 4, 2))
        self.head = nn.Linear(2, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.einsum("ni,ij,kjm,nk->nm", x, self.form, self.mixed, torch.tanh(x[:, :3])))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False), nn.Tanh(), nn.Linear(3, 3))


def convolutional() -> nn.Module:
    """A whole one, a strided one without bias, a grouped one, a normalisation."""
    layers = (nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 2, stride=2, bias=False), nn.GroupNorm(2, 4))
    return nn.Sequential(*layers, nn.Tanh(), nn.Conv2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(4, 3))


def tokenwise() -> nn.Module:
    """Layers over tokens."""
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Flatten(), nn.Linear(9, 3))


def along() -> nn.Module:
    """One-dimensional convolutions, one of them grouped to the last channel."""
    layers = (nn.Conv1d(3, 4, 2), nn.Tanh(), nn.Conv1d(4, 4, 2, groups=4), nn.Flatten(), nn.Linear(8, 3))
    return nn.Sequential(*layers)


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "linear": (mlp, (4,), 0),
    "convolutional": (convolutional, (2, 4, 4), 0),
    "convolutional along": (along, (3, 4), 0),
    "attention": (Attention, (3, 4), 0),
    "over tokens": (tokenwise, (3, 4), 0),
    "LSTM": (lambda: Recurrent(nn.LSTM), (3, 4), 0),
    "GRU": (lambda: Recurrent(nn.GRU), (3, 4), 0),
    "RNN": (lambda: Recurrent(nn.RNN), (3, 4), 0),
    "embedding": (lambda: Tokens(tied=False), (5,), 6),
    "tied": (lambda: Tokens(tied=True), (5,), 6),
    "used twice": (Twice, (4,), 0),
    "odd": (Odd, (4,), 0),
}
each_model = pytest.mark.parametrize("name", MODELS)


def made(name: str) -> tuple[nn.Module, FlatParameters, Tensor]:
    """A model in float64, and rows of its own."""
    build, shape, tokens = MODELS[name]
    torch.manual_seed(3)
    module = build().double().eval()
    rows = torch.randint(tokens, (ROWS, *shape)) if tokens else torch.randn(ROWS, *shape, dtype=torch.float64)
    return module, FlatParameters(module), rows


def of_kind(kind: str, outputs: int) -> Likelihood:
    return likelihood(kind, outputs, NOISE)


def scores(kind: str, output: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Weights and log likelihoods, both scalars, whose weighted squared gradients are one row's exact Fisher."""
    output = output.reshape(-1)
    if kind == "categorical":
        yield from zip(output.softmax(0).detach(), output.log_softmax(0), strict=True)
    elif kind == "bernoulli":
        for each in output:
            yield each.sigmoid().detach(), nn.functional.logsigmoid(each)
            yield (-each).sigmoid().detach(), nn.functional.logsigmoid(-each)
    else:
        for each in output:
            yield torch.tensor(1.0 / NOISE, dtype=torch.float64), each


def gradients(module: nn.Module, parameters: FlatParameters, kind: str, x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Every row's, one after the other: weights, and gradients [P]."""
    for row in x:
        for weight, score in scores(kind, module(row.unsqueeze(0))):
            found = torch.autograd.grad(score, parameters.parameters, retain_graph=True, allow_unused=True)
            every = zip(found, parameters.parameters, strict=True)
            yield weight, torch.cat([(torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in every])


def orthogonal(n: int) -> Side:
    return Side(torch.linalg.qr(torch.randn(n, n, dtype=torch.float64))[0], torch.rand(n, dtype=torch.float64))


def found_matrices(fisher: Fisher, x: Tensor) -> tuple[list[Matrix], list[str]]:
    pairs, tables = fisher.products(x)
    return matrices_in(fisher.parameters.layout, [(str(weight), bias) for weight, bias in pairs]), tables


def turned(parameters: FlatParameters, matrices: Sequence[Matrix], tables: Sequence[str]) -> Basis:
    """Any basis of these matrices; a table is turned on the side of its features only."""
    sides = [
        (None, None) if m.stacked else (None if m.key in tables else orthogonal(m.rows), orthogonal(m.columns))
        for m in matrices
    ]
    return Basis(parameters.size, tuple(matrices), tuple(sides))


TURNED = {
    "linear": {"0.weight", "2.weight", "4.weight"},
    "convolutional": {"0.weight", "2.weight", "7.weight"},  # not the grouped one
    "convolutional along": {"0.weight", "4.weight"},
    "attention": {"attend.in_proj_weight", "attend.out_proj.weight", "head.weight"},
    "over tokens": {"0.weight", "2.weight", "4.weight"},
    **{kind: {"inner.weight_ih_l0", "inner.weight_hh_l0", "head.weight"} for kind in ("LSTM", "GRU", "RNN")},
    "embedding": {"table.weight", "layer.weight", "head.weight"},
    "tied": {"table.weight", "layer.weight"},
    "used twice": {"layer.weight", "head.weight"},
    "odd": {"form", "mixed", "head.weight"},
}


@each_model
def test_what_has_a_basis_is_known(name: str) -> None:
    """Its weights; and their biases where inputs are known, so that they have one together."""
    module, parameters, x = made(name)
    matrices, tables = found_matrices(Fisher(module, parameters, of_kind("gaussian", 3)), x)
    assert {matrix.key for matrix in matrices} == TURNED[name]
    assert tables == (["table.weight"] if name == "embedding" else [])
    biased = {matrix.key for matrix in matrices if matrix.biased}
    expected = {
        "linear": {"0.weight", "4.weight"},
        "convolutional": {"0.weight", "7.weight"},
        "attention": {"attend.in_proj_weight", "attend.out_proj.weight", "head.weight"},
        "tied": {"layer.weight"},
        "used twice": {"head.weight"},
    }
    assert biased == expected.get(name, biased)


@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian"])
@pytest.mark.parametrize("by_loop", [False, True], ids=["fast", "by loop"])
@each_model
def test_second_moments_in_a_basis_are_those_of_a_loop_over_samples(name: str, kind: str, by_loop: bool) -> None:
    module, parameters, x = made(name)
    model = of_kind(kind, module(x[:1]).numel())
    matrices, tables = found_matrices(Fisher(module, parameters, model), x)
    parts = {part.name: part for part in parameters.layout.parts}
    last = matrices[-1]
    matrices[-1] = Matrix.stack([parts[each] for each in last.names])  # a full block
    here = turned(parameters, matrices, tables)
    measure = SquaresIn(parameters.layout, here, [matrices[-1]])
    fisher = Fisher(module, parameters, model, measure=measure, by_loop=by_loop)
    fisher.add(x[:4])
    fisher.add(x[4:])
    assert fisher.verified()
    found = measure.precision(fisher.summed(), here)
    values, block = torch.zeros(parameters.size).double(), torch.zeros(last.size, last.size).double()
    for weight, gradient in gradients(module, parameters, kind, x):
        own = matrices[-1].gather(gradient)
        values += weight * here.into(gradient).square()
        block += weight * own @ own.T
    values[dict(here.offsets())[matrices[-1]]] = 0
    torch.testing.assert_close(found.values, values, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.blocks[0].values, block, rtol=1e-9, atol=1e-12)
    assert fisher.slow is None or by_loop


@pytest.mark.parametrize("name", ["linear", "odd", "convolutional along", "embedding", "used twice"])
def test_of_a_whole_network_all_products_are_summed(name: str) -> None:
    module, parameters, x = made(name)
    whole = Matrix.stack(parameters.layout.parts)
    here = Basis.unturned(parameters.size, [whole])
    measure = SquaresIn(parameters.layout, here, [whole])
    fisher = Fisher(module, parameters, of_kind("categorical", 3), measure=measure)
    fisher.add(x)
    expected = torch.zeros(parameters.size, parameters.size).double()
    for weight, gradient in gradients(module, parameters, "categorical", x):
        expected += weight * torch.outer(gradient, gradient)
    found = measure.precision(fisher.summed(), here)
    torch.testing.assert_close(found.blocks[0].values, expected, rtol=1e-9, atol=1e-12)
    assert fisher.slow is None


# -- moments ---------------------------------------------------------------------------------------------------------------


def watched(module: nn.Module, x: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """What goes into a layer, and what comes out of it, whose gradient can be asked for."""
    held: list[Tensor] = []

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        held.extend([inputs[0].detach(), output])

    handle = module.get_submodule(name).register_forward_hook(note)
    held.append(module(x))
    handle.remove()
    return held[0], held[1]


def behind(module: nn.Module, layer: str, output: Tensor) -> Tensor:
    """The model's output, given a layer's."""
    if layer.isdigit():
        return nn.Sequential(*list(module.children())[int(layer) + 1 :])(output)
    return module.head(torch.tanh(module.layer(output.mean(1)) if layer == "table" else output))


def columns(layer: nn.Module, inputs: Tensor) -> Tensor:
    """Inputs [t, in] of one row, a 1 at their end where there is a bias."""
    if isinstance(layer, nn.Conv2d):
        pads = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        found = nn.functional.unfold(inputs, *pads)[0].T
    elif isinstance(layer, nn.Conv1d):
        found = inputs[0].unfold(1, layer.kernel_size[0], layer.stride[0]).permute(1, 0, 2).flatten(1)
    else:
        found = inputs.reshape(-1, inputs.shape[-1])
    return torch.cat([found, torch.ones(len(found), 1).double()], 1) if layer.bias is not None else found


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("linear", "0"),
        ("linear", "2"),
        ("convolutional", "0"),
        ("convolutional", "2"),
        ("convolutional along", "0"),
        ("over tokens", "2"),
        ("embedding", "layer"),
        ("embedding", "table"),
    ],
)
@pytest.mark.parametrize("kind", ["categorical", "bernoulli", "gaussian"])
def test_moments_are_of_inputs_and_of_output_gradients(name: str, layer: str, kind: str) -> None:
    module, parameters, x = made(name)
    model = of_kind(kind, 3)
    matrices, tables = found_matrices(Fisher(module, parameters, model), x)
    measure = Moments(parameters.layout, matrices, tables)
    fisher = Fisher(module, parameters, model, measure=measure)
    fisher.add(x[:3])
    fisher.add(x[3:])
    left, right = measure.found(fisher.summed(), ROWS)[f"{layer}.weight"]
    of_inputs, of_outputs = 0.0, 0.0
    for row in x:
        inputs, output = watched(module, row.unsqueeze(0), layer)
        part = module.get_submodule(layer)
        if layer != "table":
            a = columns(part, inputs)
            of_inputs = of_inputs + a.T @ a / ROWS
        for weight, score in scores(kind, behind(module, layer, output)):
            (g,) = torch.autograd.grad(score, output, retain_graph=True)
            g = g[0].flatten(1).T if isinstance(part, nn.Conv1d | nn.Conv2d) else g.reshape(-1, g.shape[-1])
            if layer == "table":
                g = g[row != 0]  # a padding token has no gradient
            of_outputs = of_outputs + weight * g.T @ g
    if layer == "table":
        assert left is None
        torch.testing.assert_close(right, of_outputs / ROWS, rtol=1e-9, atol=1e-12)
    else:
        torch.testing.assert_close(right, of_inputs, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(left, of_outputs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "weight"), [("LSTM", "inner.weight_hh_l0"), ("used twice", "layer.weight"), ("odd", "mixed")]
)
def test_moments_of_what_has_no_known_inputs_are_of_its_gradients(name: str, weight: str) -> None:
    module, parameters, x = made(name)
    matrices, tables = found_matrices(Fisher(module, parameters, of_kind("categorical", 3)), x)
    measure = Moments(parameters.layout, matrices, tables)
    fisher = Fisher(module, parameters, of_kind("categorical", 3), measure=measure)
    fisher.add(x)
    (matrix,) = [each for each in matrices if each.key == weight]
    left, right = measure.found(fisher.summed(), ROWS)[weight]
    rows, columns = torch.zeros_like(left), torch.zeros_like(right)
    for share, gradient in gradients(module, parameters, "categorical", x):
        each = matrix.gather(gradient)
        rows, columns = rows + share * each @ each.T, columns + share * each.T @ each / ROWS
    torch.testing.assert_close(left, rows, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(right, columns, rtol=1e-9, atol=1e-12)


@each_model
def test_by_loop_and_fast_the_same_sides_are_turned(name: str) -> None:
    """One task may have to be taken row by row, and the next not."""
    module, parameters, x = made(name)
    model = of_kind("categorical", module(x[:1]).numel())
    matrices, tables = found_matrices(Fisher(module, parameters, model), x)
    sides = []
    for by_loop in (False, True):
        measure = Moments(parameters.layout, matrices, tables)
        fisher = Fisher(module, parameters, model, measure=measure, by_loop=by_loop)
        fisher.add(x)
        found = measure.found(fisher.summed(), ROWS)
        sides.append({key: [side is None for side in both] for key, both in found.items()})
    assert sides[0] == sides[1]


def test_a_layered_precision_of_sums_is_finite_only_if_they_are() -> None:
    module, parameters, x = made("linear")
    matrices, tables = found_matrices(Fisher(module, parameters, of_kind("categorical", 3)), x)
    here = turned(parameters, matrices, tables)
    measure = SquaresIn(parameters.layout, here, [])
    assert isinstance(measure.precision(torch.full((parameters.size,), float("nan")).double(), here), Layered)
    assert not measure.precision(torch.full((parameters.size,), float("nan")).double(), here).is_finite()


def test_a_table_that_was_turned_on_both_sides_by_another_task_is_still_summed_right() -> None:
    """In its first task no token came twice, or it was taken row by row: then its rows have a basis as well."""
    module, parameters, x = made("embedding")
    model = of_kind("categorical", 3)
    matrices, _ = found_matrices(Fisher(module, parameters, model), x)
    here = turned(parameters, matrices, ())
    for measure in (SquaresIn(parameters.layout, here, []), Moments(parameters.layout, matrices)):
        sums = []
        for by_loop in (False, True):
            fisher = Fisher(module, parameters, model, measure=measure, by_loop=by_loop)
            fisher.add(x)
            assert fisher.verified()
            sums.append(fisher.summed())
        of_table = [slice(0, here.matrices[0].size)] if isinstance(measure, SquaresIn) else [slice(0, 36), slice(36, 52)]
        for place in of_table:
            torch.testing.assert_close(sums[0][place], sums[1][place], rtol=1e-9, atol=1e-12)


# -- wide sides, of which a sketch of the moments is kept ---------------------------------------------------------------


def low_rank(n: int, rank: int, tail: float) -> Tensor:
    """Moments of `rank` directions, and of all others a little."""
    leading = torch.randn(n, rank, dtype=torch.float64) * torch.logspace(0, -2, rank, dtype=torch.float64)
    return leading @ leading.T + tail * torch.eye(n, dtype=torch.float64)


def test_a_sketch_finds_the_leading_moments_and_the_mean_of_the_rest() -> None:
    n, rank = 600, 100
    total = low_rank(n, rank, 1e-3)
    side = Side.wide(total @ sketched(n, SKETCHED))
    assert side.is_wide
    assert side.vectors.shape == (n, MOST_WIDE)
    identity = torch.eye(MOST_WIDE, dtype=torch.float64)
    torch.testing.assert_close(side.vectors.T @ side.vectors, identity, rtol=0, atol=1e-10)
    exact = torch.linalg.eigvalsh(total).flip(0)
    torch.testing.assert_close(side.values[:60], exact[:60], rtol=0.03, atol=0)
    kept = side.vectors[:, :rank]
    assert float((kept.T @ total @ kept).trace() / total.trace()) > 0.995
    rows = torch.randn(4, n, dtype=torch.float64)
    torch.testing.assert_close(side.into(rows)[:, :MOST_WIDE].abs(), (rows @ side.vectors).abs(), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(side.back(side.into(rows)), rows, rtol=1e-10, atol=1e-10)


def test_a_wide_side_takes_in_more_moments() -> None:
    torch.manual_seed(0)  # of others, the sketch's estimate of the trace may say that there is something beyond them
    n, parts = 600, [low_rank(600, 40, 0.0) for _ in range(3)]
    side = Side.wide(parts[0] @ sketched(n, SKETCHED))
    for more in parts[1:]:
        side = side.with_moments(more @ sketched(n, SKETCHED), leads=False)
    total = sum(parts)
    exact = torch.linalg.eigvalsh(total).flip(0)
    torch.testing.assert_close(side.values[:110], exact[:110], rtol=0.02, atol=0)
    again = Side.from_state(side.state("right.0"), "right.0")
    assert again is not None
    assert (again.rest, again.is_wide) == (side.rest, True)
    assert torch.equal(again.into(total), side.into(total))


def test_fewer_rows_than_a_sketch_has_columns_are_all_there_is() -> None:
    rows = torch.randn(5, 600, dtype=torch.float64)
    side = Side.wide(rows.T @ (rows @ sketched(600, SKETCHED)))
    torch.testing.assert_close(side.values[:5], torch.linalg.svdvals(rows).square(), rtol=1e-8, atol=0)
    assert float(side.values[5:].sum()) < 1e-6
    assert all(torch.isfinite(each).all() for each in (side.vectors, side.values))


def dense(side: Side) -> Tensor:
    return side.into(torch.eye(side.entries, dtype=torch.float64))


@pytest.mark.parametrize("here_is", ["wide", "whole"])
@pytest.mark.parametrize("there_is", ["wide", "whole", "entries"])
def test_diagonals_between_wide_and_whole_sides_are_what_dense_squares_say(here_is: str, there_is: str) -> None:
    n = 400
    made = {
        "wide": lambda: Side.wide(low_rank(n, 60, 1e-2) @ sketched(n, SKETCHED)),
        "whole": lambda: orthogonal(n),
        "entries": lambda: None,
    }
    here, there = made[here_is](), made[there_is]()
    assert here is not None
    values = torch.rand(3, n, dtype=torch.float64)
    values = values if there is None else there.evened(values)
    from_there = torch.eye(n, dtype=torch.float64) if there is None else dense(there)
    expected = here.evened(values @ (dense(here).T @ from_there).square().T)
    torch.testing.assert_close(here.restated(values, there), expected, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(
        here.own(here.evened(values)), here.evened(values) @ dense(here).square().T, rtol=1e-9, atol=1e-9
    )


def test_a_layer_with_wide_inputs_has_the_squares_of_its_leading_directions_and_one_mean_beyond() -> None:
    n = WIDEST + 1
    module = nn.Sequential(nn.Linear(n, 2), nn.Linear(2, 3)).double()
    parameters, x = FlatParameters(module), torch.randn(ROWS, n).double()
    model = of_kind("categorical", 3)
    matrices, tables = found_matrices(Fisher(module, parameters, model), x)
    measure = Moments(parameters.layout, matrices, tables)
    assert measure.shapes["0.weight right"] == (n + 1, 16 + OVERSAMPLED)
    fisher = Fisher(module, parameters, model, measure=measure)
    fisher.add(x)
    here = Basis.unturned(parameters.size).moved(matrices, measure.found(fisher.summed(), ROWS))
    right = here.sides[0][1]
    assert right is not None
    a = torch.cat([x, torch.ones(ROWS, 1).double()], 1)
    torch.testing.assert_close(right.values[:ROWS], torch.linalg.svdvals(a).square() / ROWS, rtol=1e-7, atol=0)
    sums = SquaresIn(parameters.layout, here, [])
    squares = Fisher(module, parameters, model, measure=sums)
    squares.add(x)
    every = sum(w * here.into(g).square() for w, g in gradients(module, parameters, "categorical", x))
    found = sums.precision(squares.summed(), here).values
    torch.testing.assert_close(found, here.evened(every), rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.sum(), every.sum(), rtol=1e-9, atol=0)


# -- sides that are turned to their leading eigenvectors ----------------------------------------------------------------


def moments(n: int) -> Tensor:
    square = torch.randn(n, n, dtype=torch.float64) * torch.logspace(0, -3, n, dtype=torch.float64)
    return square @ square.T


def test_reflections_are_orthonormal_and_begin_with_what_they_are_made_onto() -> None:
    leading, _ = torch.linalg.qr(torch.randn(20, 6, dtype=torch.float64))
    reflections, identity = Reflections.onto(leading), torch.eye(20, dtype=torch.float64)
    turned = reflections.into(identity)
    torch.testing.assert_close(turned.T @ turned, identity, rtol=0, atol=1e-14)
    torch.testing.assert_close((turned[:, :6].T @ leading).abs(), torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-14)
    rows = torch.randn(2, 3, 20, dtype=torch.float64)
    torch.testing.assert_close(reflections.into(rows), rows @ turned, rtol=0, atol=1e-13)
    torch.testing.assert_close(reflections.back(reflections.into(rows)), rows, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("size", "expected"), [(191, 0), (192, 32), (257, 32), (400, 48), (785, 96)])
def test_a_wide_side_is_turned_to_an_eighth_of_its_eigenvectors(size: int, expected: int) -> None:
    assert leading(size) == expected
    side = Side.of(moments(size), leading(size))
    assert (0 if side.reflections is None else side.reflections.v.shape[1]) == expected
    assert Side.of(moments(size)).reflections is None


def test_a_side_goes_on_with_as_many_eigenvectors_as_it_had() -> None:
    """As it was made by a version that took others: directories go on as they were made."""
    side = Side.of(moments(400), 50).with_moments(moments(400), leads=True)
    assert side.reflections is not None
    assert side.reflections.v.shape == (400, 50)


def test_a_side_that_leads_knows_the_leading_moments_exactly_and_the_trace_of_the_rest() -> None:
    total = moments(200)
    side = Side.of(total, 32)
    first = side.vectors[:, :32]
    along = first.T @ total @ first
    torch.testing.assert_close(along, torch.diag(torch.linalg.eigvalsh(total).flip(0)[:32]), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(side.values[:32], along.diagonal(), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(side.values.sum(), total.trace(), rtol=1e-12, atol=0)
    rows = torch.randn(3, 200, dtype=torch.float64)
    torch.testing.assert_close(side.into(rows), rows @ side.vectors, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(side.back(rows), rows @ side.vectors.T, rtol=1e-11, atol=1e-11)


def test_a_basis_that_leads_goes_on_leading_and_is_kept_whole() -> None:
    matrix = Matrix(("w",), ((0, 200 * 3),), 200, 3)
    first = Basis.unturned(605).moved([matrix], {"w": (moments(200), moments(3))}, {("w", 0), ("w", 1)})
    second = first.moved([matrix], {"w": (moments(200), moments(3))})
    for basis in (first, second):
        left, right = basis.sides[0]
        assert left is not None
        assert right is not None
        assert left.reflections is not None
        assert right.reflections is None  # three entries are all taken
        again = Basis.from_state(basis.state())
        assert basis.equals(again)
        vector = torch.randn(605, dtype=torch.float64)
        assert torch.equal(again.into(vector), basis.into(vector))
        torch.testing.assert_close(basis.back(basis.into(vector)), vector, rtol=1e-11, atol=1e-11)
    values = torch.rand(605, dtype=torch.float64)
    torch.testing.assert_close(second.expressed(first, values).sum(), values.sum(), rtol=1e-11, atol=0)
