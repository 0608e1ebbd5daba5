"""The diagonal Fisher against a loop over samples in float64, which squares each sample's gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcl import models
from streamcl.core.fisher import Fisher
from streamcl.core.likelihood import Bernoulli, Categorical, Gaussian, Likelihood
from streamcl.core.parameters import FlatParameters
from streamcl.core.products import _keeps_single_precision, fast_products
from streamcl.core.provenance import Rows
from streamcl.core.recorder import Recorder

OUT = 3


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.block = nn.TransformerEncoderLayer(6, 2, 7, dropout=0.3, batch_first=True)
        self.head = nn.Linear(6, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x)).mean(1))


class Tied(nn.Module):
    """One weight in two layers, one layer used twice, and one weight used again by a function."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.two.weight = self.one.weight
        self.again, self.lent = nn.Linear(4, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.two(torch.tanh(self.one(x))))
        x = torch.tanh(self.again(torch.tanh(self.again(x))))
        return self.head(F.linear(torch.tanh(self.lent(x)), self.lent.weight))


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(9, 4)
        self.head = nn.Linear(4, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.embedding(x).mean(1))


class Repeats(nn.Module):
    """Tokens that come more than once in a sample, and one that is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(4, 5, padding_idx=-2)
        self.head = nn.Linear(5, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.embedding((x[..., 0] > 0).long() + 2 * (x[..., 1] > 0))).sum(1))


class TimeFirst(nn.Module):
    """Samples along the second axis, and rows of all samples and times in one."""

    def __init__(self, times_last: bool) -> None:
        super().__init__()
        self.times_last = times_last
        self.one, self.two, self.norm = nn.Linear(4, 5), nn.Linear(5, 6), nn.LayerNorm(6)
        self.head = nn.Linear(6, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.one(x.transpose(0, 1)))
        rows = x.transpose(0, 1).flatten(0, 1) if self.times_last else x.flatten(0, 1)
        folded = self.norm(torch.tanh(self.two(rows)))
        return self.head(folded.unflatten(0, (-1, 3)).mean(1) if self.times_last else folded.unflatten(0, (3, -1)).mean(0))


class CrossAttention(nn.Module):
    def __init__(self, separate: bool) -> None:
        super().__init__()
        more: dict[str, Any] = {"kdim": 5, "vdim": 5} if separate else {}
        self.narrow = nn.Linear(4, 5) if separate else nn.Linear(4, 6)
        self.wide = nn.Linear(4, 6)
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True, add_bias_kv=True, **more)
        self.head = nn.Linear(6, OUT)

    def forward(self, x: Tensor) -> Tensor:
        memory = torch.tanh(self.narrow(x))
        return self.head(self.attention(torch.tanh(self.wide(x)), memory, memory)[0].sum(1))


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, OUT)

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(0, 1)
        return self.head(self.attention(x, x, x, need_weights=False)[0].sum(0))


class Branching(nn.Module):
    """A sample's values decide what is done with it, which vmap cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.head(row * self.scale if row.sum() > 0 else row)[None] for row in x])


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, OUT))
    model[0].weight.requires_grad_(False)
    model[2].bias.requires_grad_(False)
    return model


def normalised() -> nn.Module:
    batch_norm = nn.BatchNorm1d(5).eval()
    return nn.Sequential(nn.Linear(4, 5), batch_norm, nn.LayerNorm(5), nn.Linear(5, OUT))


MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (lambda: nn.Sequential(nn.Linear(4, OUT)), (4,)),
    "bare linear": (lambda: nn.Linear(4, OUT), (4,)),
    "mlp with in-place relu and dropout": (
        lambda: nn.Sequential(nn.Linear(4, 6), nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(6, OUT, bias=False)),
        (4,),
    ),
    "convolutional": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(12, OUT)),
        (1, 6, 6),
    ),
    "recurrent": (Recurrent, (3, 4)),
    "attention": (Attention, (3, 4)),
    "tied": (Tied, (4,)),
    "frozen": (frozen, (4,)),
    "normalised": (normalised, (4,)),
    "branching": (Branching, (4,)),
    "weight norm": (
        lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, OUT)),
        (4,),
    ),
}


def convolution(layer: nn.Module, shape: tuple[int, ...]) -> tuple[Callable[[], nn.Module], tuple[int, ...]]:
    """A copy of the layer before a nonlinearity and a linear layer."""
    return lambda: nn.Sequential(copy.deepcopy(layer), nn.Tanh(), nn.Flatten(), nn.LazyLinear(OUT)), shape


# every parameter of these has a closed form
CLOSED: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "plain convolution": convolution(nn.Conv2d(2, 4, 3), (2, 5, 6)),
    "strided and padded": convolution(nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2)), (2, 6, 5)),
    "dilated": convolution(nn.Conv2d(2, 4, 3, dilation=(2, 1), padding=1), (2, 6, 6)),
    "grouped": convolution(nn.Conv2d(4, 6, 3, groups=2, bias=False), (4, 5, 5)),
    "depthwise": convolution(nn.Conv2d(3, 6, 2, groups=3), (3, 4, 4)),
    "padded to the same size": convolution(nn.Conv2d(2, 3, (3, 4), padding="same"), (2, 5, 5)),
    "padded with a reflection": convolution(nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 4, 4)),
    "of one place": convolution(nn.Conv2d(2, 3, 1), (2, 4, 4)),
    "in one direction": convolution(nn.Conv1d(3, 4, 3, stride=2, padding=2, dilation=2), (3, 9)),
    "in three directions": convolution(nn.Conv3d(2, 3, 2, stride=(1, 2, 1), padding=1), (2, 3, 4, 3)),
    "on sequences": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(15, OUT)), (3, 4)),
    "on images of rows": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Flatten(), nn.Linear(30, OUT)), (2, 3, 4)),
    "time first": (lambda: TimeFirst(times_last=False), (3, 4)),
    "times last": (lambda: TimeFirst(times_last=True), (3, 4)),
    "layer norm of two axes": (
        lambda: nn.Sequential(nn.LayerNorm((3, 4)), nn.Flatten(), nn.Tanh(), nn.Linear(24, OUT)),
        (2, 3, 4),
    ),
    "group norm": (
        lambda: nn.Sequential(nn.Conv2d(2, 4, 2), nn.GroupNorm(2, 4), nn.Tanh(), nn.Flatten(), nn.Linear(36, OUT)),
        (2, 4, 4),
    ),
    "frozen batch norm": (
        lambda: nn.Sequential(nn.Conv1d(2, 4, 2), nn.BatchNorm1d(4).eval(), nn.Tanh(), nn.Flatten(), nn.Linear(16, OUT)),
        (2, 5),
    ),
    "root mean square norm": (lambda: nn.Sequential(nn.RMSNorm(4), nn.Flatten(), nn.Linear(12, OUT)), (3, 4)),
    "repeated tokens": (Repeats, (6, 2)),
    "self-attention": (SelfAttention, (3, 4)),
    "transformer layer": (Attention, (3, 4)),
    "in-place relu after a convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(48, OUT)),
        (1, 6, 6),
    ),
}
MODELS |= CLOSED | {
    "attention to something else": (lambda: CrossAttention(separate=False), (3, 4)),
    "attention with its own widths": (lambda: CrossAttention(separate=True), (3, 4)),
}
LIKELIHOODS: dict[str, tuple[Likelihood, Callable[[int], Tensor]]] = {
    "categorical": (Categorical(OUT), lambda n: torch.arange(n) % OUT),
    "bernoulli": (Bernoulli(), lambda n: (torch.arange(n * OUT).reshape(n, OUT) % 2).double()),
    "gaussian": (
        Gaussian(0.3),
        lambda n: torch.linspace(-1, 1, n * OUT, dtype=torch.float64).reshape(n, OUT),
    ),
}


def log_likelihood(name: str, output: Tensor, y: Tensor) -> Tensor:
    """log p(y | output) of one sample, written out again."""
    if name == "categorical":
        return torch.log_softmax(output, 0)[y]
    if name == "bernoulli":
        return (y * F.logsigmoid(output) + (1 - y) * F.logsigmoid(-output)).sum()
    return torch.distributions.Normal(output, 0.3**0.5).log_prob(y).sum()


def expectation(name: str, output: Tensor) -> list[tuple[float, Tensor]]:
    """(probability, y) for every y a sample may have; for a Gaussian, quadrature points that give the exact answer."""
    if name == "categorical":
        return [(float(p), torch.tensor(c)) for c, p in enumerate(output.softmax(0))]
    if name == "bernoulli":
        p, every = output.sigmoid(), torch.cartesian_prod(*[torch.arange(2.0, dtype=torch.float64)] * OUT)
        return [(float(torch.where(y == 1, p, 1 - p).prod()), y) for y in every]
    deviation = (OUT * 0.3) ** 0.5  # a spherical rule of degree 3
    return [
        (1 / (2 * OUT), output + sign * deviation * torch.eye(OUT, dtype=torch.float64)[j])
        for j in range(OUT)
        for sign in (-1, 1)
    ]


def loop(name: str, model: nn.Module, x: Tensor, kind: str, y: Tensor) -> Tensor:
    """sum_n E[(d log p / d theta)^2], one backward pass at a time."""
    model.eval()
    parameters = [p for p in model.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for n in range(len(x)):
        output = model(x[n : n + 1])[0]
        outcomes = [(1.0, y[n])] if kind == "empirical" else expectation(name, output.detach())
        for probability, label in outcomes:
            gradients = torch.autograd.grad(
                log_likelihood(name, output, label), parameters, retain_graph=True, allow_unused=True
            )
            flat = [
                torch.zeros(p.numel()) if g is None else g.reshape(-1) for g, p in zip(gradients, parameters, strict=True)
            ]
            total += probability * torch.cat(flat).double().square()
    return total


def build(model: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = MODELS[model]
    x = torch.randn(7, *shape, dtype=torch.float64)
    module = make().double()
    module(x)  # lazy layers
    return module, x


@pytest.mark.parametrize("kind", ["exact", "empirical"])
@pytest.mark.parametrize("likelihood", LIKELIHOODS)
@pytest.mark.parametrize("model", MODELS)
def test_it_equals_a_loop_over_samples(model: str, likelihood: str, kind: Any) -> None:
    module, x = build(model)
    rule, targets = LIKELIHOODS[likelihood]
    y = targets(len(x))
    expected = loop(likelihood, module, x, kind, y)
    fisher = Fisher(module, FlatParameters(module), rule, kind)
    fisher.add(x[:4], y[:4])
    fisher.add(x[4:], y[4:])
    torch.testing.assert_close(fisher.total, expected, rtol=1e-10, atol=1e-10 * float(expected.max()))


@pytest.mark.parametrize("model", CLOSED)
def test_every_parameter_has_a_closed_form(model: str) -> None:
    module, x = build(model)
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x)
    assert fisher.without_closed_form == []


def test_what_has_no_closed_form_does_not_take_it_from_the_others() -> None:
    module, x = build("recurrent")
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x)
    assert {name.split(".")[0] for name in fisher.without_closed_form} == {"lstm"}
    module, x = build("tied")
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x)
    assert fisher.without_closed_form == ["one.weight", "again.weight", "again.bias", "lent.weight"]


@pytest.mark.parametrize("rows", [1, 2, 3, 9])
@pytest.mark.parametrize("model", ["time first", "times last", "self-attention", "on sequences"])
def test_any_number_of_rows_after_any_other(model: str, rows: int) -> None:
    """As many rows as times must not be taken for one another."""
    module, _ = build(model)
    x = torch.randn(rows, 3, 4, dtype=torch.float64)
    expected = loop("categorical", module, x, "exact", torch.zeros(rows))
    for first in (1, rows):
        fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
        fisher.add(x[:first])
        fisher.add(x[first:])
        torch.testing.assert_close(fisher.total, expected, rtol=1e-10, atol=1e-10 * float(expected.max()))


def test_a_forward_pass_that_goes_another_way_is_noticed() -> None:
    class Way(nn.Module):
        """Large batches in two halves."""

        def __init__(self) -> None:
            super().__init__()
            self.one, self.head = nn.Linear(4, 4), nn.Linear(4, OUT)

        def forward(self, x: Tensor) -> Tensor:
            parts = [x] if len(x) < 5 else [x[:2], x[2:]]
            return torch.cat([self.head(torch.tanh(self.one(part))) for part in parts])

    torch.manual_seed(0)
    module, x = Way().double(), torch.randn(9, 4, dtype=torch.float64)
    expected = loop("categorical", module, x, "exact", torch.zeros(9))
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x[:4])
    fisher.add(x[4:])
    torch.testing.assert_close(fisher.total, expected, rtol=1e-10, atol=1e-10 * float(expected.max()))


def test_single_precision_is_kept() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(60, 200), nn.ReLU(), nn.Linear(200, 200), nn.Tanh(), nn.Linear(200, OUT))
    x = torch.randn(300, 60)
    totals = []
    for dtype in (torch.float32, torch.float64):
        again = copy.deepcopy(module).to(dtype)
        fisher = Fisher(again, FlatParameters(again), Categorical(OUT))
        fisher.add(x.to(dtype))
        totals.append(fisher.total)
    torch.testing.assert_close(*totals, rtol=1e-5, atol=1e-6 * float(totals[1].max()))


def test_the_setting_for_products_is_put_back() -> None:
    before = torch.backends.mkldnn.matmul.fp32_precision
    with pytest.raises(ZeroDivisionError), fast_products():
        1 / 0  # noqa: B018
    assert torch.backends.mkldnn.matmul.fp32_precision == before


def test_products_are_left_alone_where_bfloat16_would_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamcl.core.products._error", lambda a, b: 2.0**-9)
    _keeps_single_precision.cache_clear()
    before = torch.backends.mkldnn.matmul.fp32_precision
    with fast_products():
        assert torch.backends.mkldnn.matmul.fp32_precision == before
    _keeps_single_precision.cache_clear()


def test_integer_inputs_are_taken() -> None:
    torch.manual_seed(0)
    module, x = Tokens().double(), torch.randint(0, 9, (6, 5))
    y = torch.arange(6) % OUT
    expected = loop("categorical", module, x, "empirical", y)
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT), "empirical")
    fisher.add(x, y)
    torch.testing.assert_close(fisher.total, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_monte_carlo_approaches_the_exact_one(likelihood: str) -> None:
    module, x = build("mlp with in-place relu and dropout")
    rule, targets = LIKELIHOODS[likelihood]
    exact = loop(likelihood, module, x, "exact", targets(len(x)))
    parameters, draws = FlatParameters(module), 4000
    fisher = Fisher(module, parameters, rule, "mc", torch.Generator().manual_seed(0))
    for _ in range(draws // 100):
        fisher.add(x.repeat(100, 1))
    torch.testing.assert_close(fisher.total / draws, exact, rtol=0.15, atol=0.02 * float(exact.max()))


def test_monte_carlo_is_reproducible() -> None:
    module, x = build("linear")
    totals = []
    for _ in range(2):
        fisher = Fisher(module, FlatParameters(module), Categorical(OUT), "mc", torch.Generator().manual_seed(3))
        fisher.add(x)
        totals.append(fisher.total)
    torch.testing.assert_close(*totals, rtol=0, atol=0)


def test_everything_is_left_as_it_was() -> None:
    module, x = build("mlp with in-place relu and dropout")
    module[2].eval()
    parameters = FlatParameters(module)
    parameters.grad.fill_(7.0)
    theta, flags, state = (
        parameters.theta.detach().clone(),
        [m.training for m in module.modules()],
        torch.get_rng_state(),
    )
    Fisher(module, parameters, Categorical(OUT)).add(x)
    assert [m.training for m in module.modules()] == flags
    assert torch.equal(parameters.theta, theta)
    assert torch.equal(torch.get_rng_state(), state)
    assert (parameters.grad == 7.0).all()
    assert all(p.grad is not None and (p.grad == 7.0).all() for p in module.parameters())


def test_the_reason_for_a_loop_over_samples_is_recorded() -> None:
    module, x = build("branching")
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x)
    assert fisher.unvectorised
    module, x = build("attention")
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x)
    assert fisher.unvectorised is None


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one sample's gradients only, the answer is the same."""
    module, x = build("convolutional")
    y = torch.arange(len(x)) % OUT
    expected = loop("categorical", module, x, "exact", y)
    monkeypatch.setattr("streamcl.core.per_sample.CPU_CHUNK_BYTES", 1)
    monkeypatch.setattr("streamcl.core.fisher.CPU_BLOCK_BYTES", 1)
    monkeypatch.setattr("streamcl.core.closed_forms.CPU_TILE_BYTES", 1)
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x)
    torch.testing.assert_close(fisher.total, expected, rtol=1e-10, atol=1e-12)


class Stretching(nn.Module):
    """Beyond three rows, times come before rows: as many numbers on the same axis, which belong to others."""

    def __init__(self) -> None:
        super().__init__()
        self.each, self.head = nn.Linear(4, 5), nn.Linear(5, OUT)

    def forward(self, x: Tensor) -> Tensor:
        if len(x) <= 3:
            return self.head(torch.tanh(self.each(x.flatten(0, 1))).reshape(len(x), 3, -1).sum(1))
        return self.head(torch.tanh(self.each(x.transpose(0, 1).flatten(0, 1))).reshape(3, len(x), -1).sum(0))


class Company(nn.Module):
    """What a row becomes depends on the rows beside it, once there are more than three."""

    def __init__(self, detached: bool) -> None:
        super().__init__()
        self.detached = detached
        self.one, self.head = nn.Linear(4, 5), nn.Linear(5, OUT)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x)
        if len(x) > 3:
            mean = h.mean(0)
            h = h - (mean.detach() if self.detached else mean)
        return self.head(torch.tanh(h))


@pytest.mark.parametrize("module", [Stretching(), Company(False), Company(True)])
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_a_block_whose_rows_are_not_where_they_seem_takes_the_loop(module: nn.Module, kind: Any) -> None:
    torch.manual_seed(0)
    module = copy.deepcopy(module).double()
    x = torch.randn(13, 3, 4, dtype=torch.float64) if isinstance(module, Stretching) else torch.randn(13, 4).double()
    y = torch.arange(13) % OUT
    expected = loop("categorical", module, x, kind, y)
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT), kind)
    for start, end in ((0, 3), (3, 9), (9, 13)):
        fisher.add(x[start:end], y[start:end])
    torch.testing.assert_close(fisher.total, expected, rtol=1e-10, atol=1e-10 * float(expected.max()))
    assert "10 of 13 rows" in str(fisher.slow)
    assert fisher.verified()


@pytest.mark.parametrize("model", ["mlp with in-place relu and dropout", "convolutional", "frozen", "group norm"])
def test_plain_models_are_proven_and_need_no_check(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = build(model)
    monkeypatch.setattr(Fisher, "_add_checked", None)
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x)
    assert fisher.unvectorised is None
    assert fisher.verified()


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
@pytest.mark.parametrize("make", [models.mlp, models.linear, models.convnet])
def test_models_that_come_with_streamcl_are_proven(
    make: Callable[..., nn.Module], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = (1, 8, 8)
    module, x = make(shape, OUT), torch.randn(9, *shape).to(dtype)
    monkeypatch.setattr(Fisher, "_add_checked", None)
    for rows in (x, x.flatten(1)) if make is not models.convnet else (x,):
        fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
        fisher.add(rows)
        assert fisher.unvectorised is None
        assert fisher.verified()


def test_a_layer_under_two_names_stays_itself() -> None:
    """`functional_call` left to itself puts a detached tensor in the place of its weight."""
    again = nn.Linear(4, 4)
    module = nn.Sequential(again, nn.Tanh(), again, nn.Linear(4, OUT)).double()
    parameters, x = FlatParameters(module), torch.randn(5, 4, dtype=torch.float64)
    expected = loop("categorical", module, x, "exact", torch.zeros(5))
    fisher = Fisher(module, parameters, Categorical(OUT))
    fisher.add(x)
    assert again.weight is parameters.parameters[0]
    torch.testing.assert_close(fisher.total, expected, rtol=1e-10, atol=1e-10 * float(expected.max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN, partial(nn.RNN, nonlinearity="relu")])
def test_a_recurrent_layer_needs_no_loop(layer: Callable[..., nn.Module], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x = Recurrent(), torch.randn(20, 3, 4, dtype=dtype)
    module.lstm = layer(4, 3, 2, bidirectional=True, batch_first=True)
    module.head = nn.Linear(6, OUT)
    module.to(dtype)
    expected = loop("categorical", copy.deepcopy(module).double(), x.double(), "exact", torch.zeros(20))
    fisher = Fisher(module, FlatParameters(module), Categorical(OUT))
    fisher.add(x)
    assert fisher.slow is None
    assert fisher.without_closed_form
    torch.testing.assert_close(fisher.total, expected, rtol=1e-4, atol=1e-5 * float(expected.max()))


def test_what_ends_a_proof() -> None:
    """Reading the batch's length, writing through a view, and what is not listed: none is followed any further."""
    for function in (
        lambda x: torch.relu(x) * len(x),
        lambda x: torch.relu(x).flip(0),
        lambda x: torch.relu(x) + x.mean(0),
        lambda x: x.flatten(0, 1),
        lambda x: torch.relu(x)[torch.arange(4)],
    ):
        x = torch.randn(4, 2)
        rows = Rows(x, [])
        with Recorder([], rows):
            output = function(x)
        assert not rows.apart(output)
    x = torch.randn(4, 2)
    rows = Rows(x, [])
    with Recorder([], rows):
        hidden = torch.relu(x)
        view = hidden.unflatten(1, (2, 1))
    assert rows.apart(view)
    with Recorder([], rows):
        F.relu(hidden, inplace=True)
    assert rows.apart(hidden)
    assert not rows.apart(view)


def test_what_pytorch_says_of_its_batching_rules_reaches_no_user(recwarn: pytest.WarningsRecorder) -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags = nn.EmbeddingBag(5, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.bags(x)
            return found

    module = Bags().double()
    fisher = Fisher(module, FlatParameters(module), Categorical(3), "exact", torch.Generator())
    fisher.add(torch.randint(5, (12, 4), generator=torch.Generator().manual_seed(0)))
    assert fisher.verified()
    assert not [each for each in recwarn if "batching rule" in str(each.message)]
