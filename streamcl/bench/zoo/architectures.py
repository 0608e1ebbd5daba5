"""Small architectures as people write them, each with the data it is for.

``build(name, outputs)`` is the factory of all of them. Those of `REFUSED` have something that cannot be learned; of the
others every parameter's Fisher is compared with a loop. Nothing here is written for streamcl: no layer knows of it.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, rnn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

Rows = npt.NDArray[Any]
Factory = Callable[[int], nn.Module]
WORDS, TOKENS, FEATURES, TIMES, NODES = 9, 6, 8, 5, 4


def _flat(rng: np.random.Generator, n: int) -> Rows:
    return rng.normal(size=(n, FEATURES))


def _series(rng: np.random.Generator, n: int) -> Rows:
    return rng.normal(size=(n, TIMES, FEATURES))


def _images(rng: np.random.Generator, n: int) -> Rows:
    return rng.normal(size=(n, 1, 8, 8))


def _nodes(rng: np.random.Generator, n: int) -> Rows:
    return rng.normal(size=(n, NODES, 3))


def _words(rng: np.random.Generator, n: int) -> Rows:
    """Sentences of one to six words; what is behind a sentence's end is 0."""
    words = rng.integers(1, WORDS, (n, TOKENS))
    return words * (np.arange(TOKENS) < rng.integers(1, TOKENS + 1, (n, 1)))


DATA = {"flat": _flat, "series": _series, "images": _images, "nodes": _nodes, "words": _words}
ZOO: dict[str, tuple[str, Factory]] = {}
REFUSED: set[str] = set()


def _of(data: str, refused: bool = False) -> Callable[[Callable[[int], nn.Module]], Callable[[int], nn.Module]]:
    """Take a factory into the zoo under its own name."""

    def take(factory: Factory) -> Factory:
        name = getattr(factory, "__name__", "").strip("_")
        ZOO[name] = data, factory
        if refused:
            REFUSED.add(name)
        return factory

    return take


def build(name: str, outputs: int) -> nn.Module:
    """One of the zoo."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of old ways to write things, which is what they are here for
        return ZOO[name][1](outputs)


class Then(nn.Module):
    """A function of a module and its input as a module: keeps the parts of small architectures in one place."""

    def __init__(self, forward: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, x: Tensor) -> Any:
        """x: [n, ...]."""
        return self._forward(self, x)


# -- feed-forward ------------------------------------------------------------------------------------------------------


@_of("flat")
def linear(outputs: int) -> nn.Module:
    return nn.Linear(FEATURES, outputs)


@_of("flat")
def mlp(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, outputs))


@_of("flat")
def dropout_in_place(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(12, outputs))


@_of("flat")
def residual(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.enter(x))
        return m.head(m.norm(h + m.block(h)))

    block = nn.Sequential(nn.Linear(12, 12), nn.SiLU(), nn.Linear(12, 12))
    return Then(forward, enter=nn.Linear(FEATURES, 12), block=block, norm=nn.LayerNorm(12), head=nn.Linear(12, outputs))


@_of("flat")
def highway(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        gate = torch.sigmoid(m.gate(x))
        return m.head(gate * torch.tanh(m.way(x)) + (1 - gate) * x)

    return Then(
        forward, gate=nn.Linear(FEATURES, FEATURES), way=nn.Linear(FEATURES, FEATURES), head=nn.Linear(FEATURES, outputs)
    )


@_of("flat")
def gated_linear_units(outputs: int) -> nn.Module:
    return nn.Sequential(nn.LayerNorm(FEATURES), nn.Linear(FEATURES, 16), nn.GLU(), nn.Linear(8, outputs))


@_of("flat")
def maxout(outputs: int) -> nn.Module:
    return Then(
        lambda m, x: m.head(m.wide(x).unflatten(1, (6, 3)).amax(2)),
        wide=nn.Linear(FEATURES, 18),
        head=nn.Linear(6, outputs),
    )


@_of("flat")
def bilinear(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.both(x[:, :4], x[:, 4:]), both=nn.Bilinear(4, 4, outputs))


@_of("flat")
def scale_and_shift(outputs: int) -> nn.Module:
    """FiLM: one half of a row conditions what is made of the other."""

    def forward(m: Any, x: Tensor) -> Any:
        scale, shift = m.condition(x[:, 4:]).chunk(2, dim=1)
        return m.head(torch.tanh(m.enter(x[:, :4])) * scale + shift)

    return Then(forward, condition=nn.Linear(4, 12), enter=nn.Linear(4, 6), head=nn.Linear(6, outputs))


@_of("flat")
def hypernetwork(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        weights = m.writer(x[:, 4:]).view(-1, 4, 5)
        return m.head(torch.tanh(torch.bmm(x[:, None, :4], weights).squeeze(1)))

    return Then(forward, writer=nn.Linear(4, 20), head=nn.Linear(5, outputs))


@_of("flat")
def radial_basis(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(torch.exp(-torch.cdist(x, m.centres).square() * m.width.exp()))

    centres, width = nn.Parameter(torch.randn(7, FEATURES)), nn.Parameter(torch.full((7,), -3.0))
    return Then(forward, centres=centres, width=width, head=nn.Linear(7, outputs))


@_of("flat")
def low_rank_adapter(outputs: int) -> nn.Module:
    base = nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh()).requires_grad_(False)
    down, up = nn.Parameter(torch.randn(2, FEATURES) / 3), nn.Parameter(torch.randn(12, 2) / 3)
    return Then(
        lambda m, x: m.head(m.base(x) + x @ m.down.T @ m.up.T), base=base, down=down, up=up, head=nn.Linear(12, outputs)
    )


# -- images ------------------------------------------------------------------------------------------------------------


@_of("images")
def convolutional(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, outputs))


@_of("images")
def depthwise_separable(outputs: int) -> nn.Module:
    layers = [
        nn.Conv2d(1, 4, 3, padding=1),
        nn.GroupNorm(2, 4),
        nn.ReLU6(),
        nn.Conv2d(4, 4, 3, groups=4),
        nn.Conv2d(4, 6, 1),
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, outputs))


@_of("images")
def residual_with_frozen_batch_norm(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = F.relu(m.first(m.enter(x)))
        return m.head((h + m.second(m.conv(h))).mean((2, 3)))

    return Then(
        forward,
        enter=nn.Conv2d(1, 4, 3, padding=1),
        first=nn.BatchNorm2d(4).eval(),
        conv=nn.Conv2d(4, 4, 3, padding=1, bias=False),
        second=nn.BatchNorm2d(4).eval(),
        head=nn.Linear(4, outputs),
    )


@_of("images")
def squeeze_and_excite(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.conv(x))
        return m.head((h * torch.sigmoid(m.excite(h.mean((2, 3))))[:, :, None, None]).flatten(1))

    return Then(forward, conv=nn.Conv2d(1, 4, 3, stride=2), excite=nn.Linear(4, 4), head=nn.Linear(36, outputs))


@_of("images")
def transposed_convolution(outputs: int) -> nn.Module:
    up = nn.ConvTranspose2d(3, 2, 3, stride=2)
    return nn.Sequential(nn.Conv2d(1, 3, 4, stride=4), nn.Tanh(), up, nn.ELU(), nn.Flatten(), nn.Linear(50, outputs))


@_of("images")
def patches_and_a_class_token(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        patches = m.patch(x).flatten(2).transpose(1, 2)
        h = torch.cat([m.token.expand(len(x), -1, -1), patches], 1) + m.places
        return m.head(m.block(h)[:, 0])

    block = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.1, batch_first=True, norm_first=True)
    token, places = nn.Parameter(torch.zeros(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8) / 8)
    return Then(
        forward, patch=nn.Conv2d(1, 8, 4, stride=4), token=token, places=places, block=block, head=nn.Linear(8, outputs)
    )


@_of("images")
def mixer(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = m.enter(x.squeeze(1))
        h = h + m.across(F.gelu(h).transpose(1, 2)).transpose(1, 2)
        return m.head((h + m.along(F.gelu(h))).mean(1))

    return Then(forward, enter=nn.Linear(8, 6), across=nn.Linear(8, 8), along=nn.Linear(6, 6), head=nn.Linear(6, outputs))


# -- series ------------------------------------------------------------------------------------------------------------


@_of("series")
def one_dimensional_convolutions(outputs: int) -> nn.Module:
    layers = nn.Sequential(nn.Conv1d(FEATURES, 6, 3, padding=2, dilation=2), nn.Tanh(), nn.Conv1d(6, 4, 2))
    return Then(lambda m, x: m.head(m.layers(x.transpose(1, 2)).amax(2)), layers=layers, head=nn.Linear(4, outputs))


@_of("series")
def lstm(outputs: int) -> nn.Module:
    return Then(
        lambda m, x: m.head(m.lstm(x)[0][:, -1]), lstm=nn.LSTM(FEATURES, 6, batch_first=True), head=nn.Linear(6, outputs)
    )


@_of("series")
def two_layers_both_directions(outputs: int) -> nn.Module:
    layers = nn.LSTM(FEATURES, 4, num_layers=2, bidirectional=True, dropout=0.2, batch_first=True)
    return Then(lambda m, x: m.head(m.lstm(x)[0].mean(1)), lstm=layers, head=nn.Linear(8, outputs))


@_of("series")
def gru_time_first(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.head(m.gru(x.transpose(0, 1))[1][-1]), gru=nn.GRU(FEATURES, 5), head=nn.Linear(5, outputs))


@_of("series")
def elman(outputs: int) -> nn.Module:
    return Then(
        lambda m, x: m.head(m.rnn(x)[1].squeeze(0)), rnn=nn.RNN(FEATURES, 5, batch_first=True), head=nn.Linear(5, outputs)
    )


@_of("series")
def a_cell_in_a_loop(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = x.new_zeros(len(x), 5)
        c = h
        for t in range(x.shape[1]):
            h, c = m.cell(x[:, t], (h, c))
        return m.head(h)

    return Then(forward, cell=nn.LSTMCell(FEATURES, 5), head=nn.Linear(5, outputs))


@_of("series")
def rows_and_times_in_one(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        n, t, d = x.shape
        return m.head(torch.tanh(m.each(x.reshape(n * t, d))).reshape(n, t, -1).sum(1))

    return Then(forward, each=nn.Linear(FEATURES, 6), head=nn.Linear(6, outputs))


@_of("series")
def times_and_rows_in_one(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        t = x.shape[1]
        h = m.norm(torch.tanh(m.each(x.transpose(0, 1).flatten(0, 1))))
        return m.head(h.unflatten(0, (t, -1)).mean(0))

    return Then(forward, each=nn.Linear(FEATURES, 6), norm=nn.LayerNorm(6), head=nn.Linear(6, outputs))


@_of("series")
def laid_out_by_size(outputs: int) -> nn.Module:
    """Rows before times in a small batch, times before rows in a large one, as a kernel may prefer."""

    def forward(m: Any, x: Tensor) -> Any:
        n, t, _ = x.shape
        if n <= 3:
            h = torch.tanh(m.each(x.flatten(0, 1))).reshape(n, t, -1).sum(1)
        else:
            h = torch.tanh(m.each(x.transpose(0, 1).flatten(0, 1))).reshape(t, n, -1).sum(0)
        return m.head(h)

    return Then(forward, each=nn.Linear(FEATURES, 6), head=nn.Linear(6, outputs))


@_of("series")
def encoder_layer(outputs: int) -> nn.Module:
    layer = nn.TransformerEncoderLayer(FEATURES, 2, 10, dropout=0.1, batch_first=True)
    return Then(lambda m, x: m.head(m.layer(x).mean(1)), layer=layer, head=nn.Linear(FEATURES, outputs))


@_of("series")
def attention_time_first(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        x = x.transpose(0, 1)
        return m.head(m.attention(x, x, x)[0].sum(0))

    return Then(forward, attention=nn.MultiheadAttention(FEATURES, 2), head=nn.Linear(FEATURES, outputs))


@_of("series")
def causal_attention(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = m.query(x), m.key(x), m.value(x)
        scores = (q @ k.mT / math.sqrt(6)).masked_fill(m.future, float("-inf"))
        return m.head((scores.softmax(-1) @ v)[:, -1])

    parts = {name: nn.Linear(FEATURES, 6) for name in ("query", "key", "value")}
    future = torch.ones(TIMES, TIMES, dtype=torch.bool).triu(1)
    return Then(forward, **parts, future=future, head=nn.Linear(6, outputs))


@_of("series")
def fused_causal_attention(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        q, k, v = (part.unflatten(2, (2, 4)).transpose(1, 2) for part in m.qkv(x).chunk(3, dim=2))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return m.head(m.out(mixed.transpose(1, 2).flatten(2)).mean(1))

    return Then(forward, qkv=nn.Linear(FEATURES, 24), out=nn.Linear(8, 8), head=nn.Linear(8, outputs))


@_of("series")
def fourier_filter(outputs: int) -> nn.Module:
    """Filters in the frequencies, their real and imaginary parts being what is trained."""

    def forward(m: Any, x: Tensor) -> Any:
        spectrum = torch.fft.rfft(x, dim=1) * torch.view_as_complex(m.filter)
        return m.head(torch.fft.irfft(spectrum, n=x.shape[1], dim=1).flatten(1))

    return Then(forward, filter=nn.Parameter(torch.randn(3, FEATURES, 2)), head=nn.Linear(TIMES * FEATURES, outputs))


@_of("series")
def fixed_complex_filter(outputs: int) -> nn.Module:
    filters = torch.exp(1j * torch.arange(3.0))[:, None]
    return Then(
        lambda m, x: m.head(torch.fft.irfft(torch.fft.rfft(x, dim=1) * m.filters, n=TIMES, dim=1).tanh().flatten(1)),
        filters=filters,
        head=nn.Linear(TIMES * FEATURES, outputs),
    )


@_of("series", refused=True)
def complex_parameter(outputs: int) -> nn.Module:
    return Then(
        lambda m, x: m.head((torch.fft.rfft(x, dim=1) * m.filter).abs().flatten(1)),
        filter=nn.Parameter(torch.randn(3, FEATURES, dtype=torch.complex64)),
        head=nn.Linear(3 * FEATURES, outputs),
    )


# -- words -------------------------------------------------------------------------------------------------------------


def _table() -> nn.Embedding:
    return nn.Embedding(WORDS, 5, padding_idx=0)


@_of("words")
def packed_gru(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        lengths = (x != 0).sum(1)
        packed = rnn.pack_padded_sequence(m.table(x), lengths.cpu(), batch_first=True, enforce_sorted=False)
        return m.head(m.gru(packed)[1][-1])

    return Then(forward, table=_table(), gru=nn.GRU(5, 6, batch_first=True), head=nn.Linear(6, outputs))


@_of("words")
def linear_on_packed(outputs: int) -> nn.Module:
    """What a packed sequence holds has its rows interleaved by time, however many there are."""

    def forward(m: Any, x: Tensor) -> Any:
        lengths = (x != 0).sum(1).cpu()
        packed = rnn.pack_padded_sequence(m.table(x), lengths, batch_first=True, enforce_sorted=False)
        each = packed._replace(data=torch.tanh(m.each(packed.data)))
        padded, _ = rnn.pad_packed_sequence(each, batch_first=True, total_length=x.shape[1])
        return m.head(padded.sum(1))

    return Then(forward, table=_table(), each=nn.Linear(5, 6), head=nn.Linear(6, outputs))


@_of("words")
def masked_mean(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        mask = (x != 0).unsqueeze(2)
        return m.head((torch.tanh(m.each(m.table(x))) * mask).sum(1) / mask.sum(1))

    return Then(forward, table=_table(), each=nn.Linear(5, 6), head=nn.Linear(6, outputs))


@_of("words")
def words_taken_out_by_a_mask(outputs: int) -> nn.Module:
    """Only the words that are there go through the layer, all rows' in one."""

    def forward(m: Any, x: Tensor) -> Any:
        rows, places = (x != 0).nonzero(as_tuple=True)
        each = torch.tanh(m.each(m.table(x[rows, places])))
        return m.head(each.new_zeros(len(x), 6).index_add(0, rows, each))

    return Then(forward, table=_table(), each=nn.Linear(5, 6), head=nn.Linear(6, outputs))


@_of("words")
def bag(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.head(m.bag(x)), bag=nn.EmbeddingBag(WORDS, 5, mode="mean"), head=nn.Linear(5, outputs))


@_of("words")
def one_table_for_two_fields(outputs: int) -> nn.Module:
    return Then(
        lambda m, x: m.head(torch.cat([m.table(x[:, 0]), m.table(x[:, 1])], 1)),
        table=nn.Embedding(WORDS, 5),
        head=nn.Linear(10, outputs),
    )


@_of("words")
def tied_decoder(outputs: int) -> nn.Module:
    """The table that words come in by is the one that they are told by."""

    def forward(m: Any, x: Tensor) -> Any:
        return m.head(F.linear(torch.tanh(m.turn(m.table(x).mean(1))), m.table.weight))

    return Then(forward, table=nn.Embedding(WORDS, 5), turn=nn.Linear(5, 5), head=nn.Linear(WORDS, outputs))


@_of("words")
def padding_mask(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        mask = x == 0
        h = m.layer(m.table(x) + m.places, src_key_padding_mask=mask)
        return m.head(h.masked_fill(mask.unsqueeze(2), 0).sum(1))

    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.1, batch_first=True)
    places = nn.Parameter(torch.randn(TOKENS, 6) / 6)
    return Then(
        forward, table=nn.Embedding(WORDS, 6, padding_idx=0), places=places, layer=layer, head=nn.Linear(6, outputs)
    )


@_of("words")
def nested_sentences(outputs: int) -> nn.Module:
    """A list of sentences of their own lengths, one after the other."""

    def forward(m: Any, x: Tensor) -> Any:
        return torch.stack([m.head(torch.tanh(m.each(m.table(row[row != 0]))).amax(0)) for row in x])

    return Then(forward, table=_table(), each=nn.Linear(5, 6), head=nn.Linear(6, outputs))


@_of("words", refused=True)
def norm_limited_table(outputs: int) -> nn.Module:
    return Then(
        lambda m, x: m.head(m.table(x).mean(1)), table=nn.Embedding(WORDS, 5, max_norm=1.0), head=nn.Linear(5, outputs)
    )


# -- rows that go ways of their own ------------------------------------------------------------------------------------


def _experts(outputs: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(nn.Linear(FEATURES, 6), nn.Tanh(), nn.Linear(6, outputs)) for _ in range(3))


@_of("flat")
def soft_mixture(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        each = torch.stack([expert(x) for expert in m.experts], 1)
        return (m.gate(x).softmax(1).unsqueeze(2) * each).sum(1)

    return Then(forward, gate=nn.Linear(FEATURES, 3), experts=_experts(outputs))


@_of("flat")
def one_expert_a_row(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        weights, best = m.gate(x).softmax(1).max(1)
        output = x.new_zeros(len(x), m.outputs)
        for number, expert in enumerate(m.experts):
            rows = best == number
            output[rows] = expert(x[rows]) * weights[rows, None]
        return output

    return Then(forward, gate=nn.Linear(FEATURES, 3), experts=_experts(outputs), outputs=outputs)


@_of("flat")
def two_experts_a_row(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        weights, best = m.gate(x).softmax(1).topk(2, dim=1)
        output = x.new_zeros(len(x), m.outputs)
        for number, expert in enumerate(m.experts):
            rows, slot = (best == number).nonzero(as_tuple=True)
            if len(rows):
                output = output.index_add(0, rows, expert(x[rows]) * weights[rows, slot, None])
        return output

    return Then(forward, gate=nn.Linear(FEATURES, 3), experts=_experts(outputs), outputs=outputs)


@_of("flat")
def experts_on_sorted_rows(outputs: int) -> nn.Module:
    """Rows sorted by their expert first, as fast kernels want them: no row is where it was."""

    def forward(m: Any, x: Tensor) -> Any:
        best = m.gate(x).argmax(1)
        order = best.argsort(stable=True)
        h = torch.tanh(m.shared(x[order]))
        h = h * m.scales[best[order]]
        return m.head(h[order.argsort()])

    scales = nn.Parameter(torch.rand(3, 6) + 0.5)
    return Then(
        forward,
        gate=nn.Linear(FEATURES, 3).requires_grad_(False),
        shared=nn.Linear(FEATURES, 6),
        scales=scales,
        head=nn.Linear(6, outputs),
    )


@_of("flat", refused=True)
def experts_of_limited_capacity(outputs: int) -> nn.Module:
    """A row that comes late in its batch finds its expert taken."""

    def forward(m: Any, x: Tensor) -> Any:
        best = F.one_hot(m.gate(x).argmax(1), 3)
        kept = best * (best.cumsum(0) <= max(1, len(x) // 6))
        each = torch.stack([expert(x) for expert in m.experts], 1)
        return (kept.to(x.dtype).unsqueeze(2) * each).sum(1)

    return Then(forward, gate=nn.Linear(FEATURES, 3).requires_grad_(False), experts=_experts(outputs))


@_of("flat")
def early_exit(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.first(x))
        output = m.exit(h)
        unsure = output.softmax(1).amax(1) < 0.45
        if unsure.any():
            output = output.clone()
            output[unsure] = m.last(torch.tanh(m.second(h[unsure])))
        return output

    parts = {"first": nn.Linear(FEATURES, 8), "second": nn.Linear(8, 8)}
    return Then(forward, **parts, exit=nn.Linear(8, outputs), last=nn.Linear(8, outputs))


@_of("flat")
def early_exit_of_the_whole_batch(outputs: int) -> nn.Module:
    """All rows are done once the first layer is sure of each of them, which it never is."""

    def forward(m: Any, x: Tensor) -> Any:
        h = torch.tanh(m.first(x))
        output = m.exit(h)
        return output if bool((output.softmax(1).amax(1) > 0.999).all()) else output + m.last(torch.tanh(m.second(h)))

    parts = {"first": nn.Linear(FEATURES, 8), "second": nn.Linear(8, 8)}
    return Then(forward, **parts, exit=nn.Linear(8, outputs), last=nn.Linear(8, outputs))


@_of("flat")
def sorted_rows(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        order = x[:, 0].argsort() if len(x) > 3 else torch.arange(len(x))
        return m.head(torch.tanh(m.first(x[order]))[order.argsort()])

    return Then(forward, first=nn.Linear(FEATURES, 6), head=nn.Linear(6, outputs))


@_of("flat")
def large_batches_in_halves(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        parts = [x] if len(x) < 5 else [x[::2], x[1::2]]
        each = [m.head(torch.tanh(m.first(part))) for part in parts]
        if len(each) == 1:
            return each[0]
        output = x.new_zeros(len(x), each[0].shape[1])
        output[::2], output[1::2] = each
        return output

    return Then(forward, first=nn.Linear(FEATURES, 6), head=nn.Linear(6, outputs))


@_of("flat", refused=True)
def rows_beside_each_other(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.head(torch.tanh(x - x.mean(0))), head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def attention_over_the_batch(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head((m.query(x) @ m.key(x).T).softmax(1) @ x)

    return Then(forward, query=nn.Linear(FEATURES, 4), key=nn.Linear(FEATURES, 4), head=nn.Linear(FEATURES, outputs))


# -- graphs ------------------------------------------------------------------------------------------------------------


def _adjacency() -> Tensor:
    ring = torch.eye(NODES) + torch.eye(NODES).roll(1, 0) + torch.eye(NODES).roll(-1, 0)
    return ring / ring.sum(1, keepdim=True)


@_of("nodes")
def graph_convolution(outputs: int) -> nn.Module:
    """A sparse neighbourhood, all rows' features beside each other."""

    def forward(m: Any, x: Tensor) -> Any:
        h = m.each(x)
        n, nodes, d = h.shape
        mixed = torch.sparse.mm(m.neighbours, h.transpose(0, 1).reshape(nodes, n * d)).reshape(nodes, n, d).transpose(0, 1)
        return m.head(torch.relu(mixed).flatten(1))

    return Then(forward, neighbours=_adjacency().to_sparse(), each=nn.Linear(3, 4), head=nn.Linear(4 * NODES, outputs))


@_of("nodes")
def graph_convolution_by_rows(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(torch.stack([torch.tanh(m.each(m.neighbours @ row)).sum(0) for row in x]))

    return Then(forward, neighbours=_adjacency().to_sparse_csr(), each=nn.Linear(3, 5), head=nn.Linear(5, outputs))


@_of("nodes")
def messages_along_edges(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        start, end = m.edges
        sent = torch.tanh(m.message(torch.cat([x[:, start], x[:, end]], 2)))
        heard = sent.new_zeros(len(x), NODES, sent.shape[2]).index_add(1, end, sent)
        return m.head(heard.mean(1))

    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    return Then(forward, edges=edges, message=nn.Linear(6, 5), head=nn.Linear(5, outputs))


@_of("nodes")
def one_large_graph(outputs: int) -> nn.Module:
    """All rows' graphs as one, without edges between them."""

    def forward(m: Any, x: Tensor) -> Any:
        n = len(x)
        offset = (torch.arange(n) * NODES).repeat_interleave(m.edges.shape[1])
        start, end = m.edges.repeat(1, n) + offset
        h = m.each(x.flatten(0, 1))
        mixed = h.index_add(0, end, h[start])
        owner = torch.arange(n).repeat_interleave(NODES)
        return m.head(h.new_zeros(n, h.shape[1]).index_add(0, owner, torch.tanh(mixed)))

    edges = torch.tensor([[0, 1, 2, 3, 0], [1, 2, 3, 0, 2]])
    return Then(forward, edges=edges, each=nn.Linear(3, 5), head=nn.Linear(5, outputs))


@_of("nodes")
def sets_of_points(outputs: int) -> nn.Module:
    inner = nn.Sequential(nn.Linear(3, 6), nn.ELU(), nn.Linear(6, 6))
    return Then(lambda m, x: m.outer(m.inner(x).sum(1)), inner=inner, outer=nn.Linear(6, outputs))


# -- weights made of others --------------------------------------------------------------------------------------------


@_of("flat")
def weight_norm(outputs: int) -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(FEATURES, 6)), nn.Tanh(), nn.Linear(6, outputs))


@_of("flat")
def weight_norm_by_a_hook(outputs: int) -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(FEATURES, 6)), nn.Tanh(), nn.Linear(6, outputs))


@_of("flat", refused=True)
def spectral_norm(outputs: int) -> nn.Module:
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(FEATURES, 6)), nn.Tanh(), nn.Linear(6, outputs))


@_of("flat")
def frozen_spectral_norm(outputs: int) -> nn.Module:
    layer = parametrizations.spectral_norm(nn.Linear(FEATURES, 6))
    layer.parametrizations.weight.eval()  # type: ignore[union-attr]
    return nn.Sequential(layer, nn.Tanh(), nn.Linear(6, outputs))


@_of("flat", refused=True)
def spectral_norm_by_a_hook(outputs: int) -> nn.Module:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(FEATURES, 6)), nn.Tanh(), nn.Linear(6, outputs))


@_of("flat")
def orthogonal(outputs: int) -> nn.Module:
    return nn.Sequential(
        parametrizations.orthogonal(nn.Linear(FEATURES, FEATURES)), nn.Tanh(), nn.Linear(FEATURES, outputs)
    )


@_of("flat")
def tied_layers(outputs: int) -> nn.Module:
    one, two = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
    two.weight = one.weight
    return nn.Sequential(one, nn.Tanh(), two, nn.Tanh(), nn.Linear(FEATURES, outputs))


@_of("flat")
def one_layer_again_and_again(outputs: int) -> nn.Module:
    again = nn.Linear(FEATURES, FEATURES)
    return nn.Sequential(again, nn.Tanh(), again, nn.Tanh(), again, nn.Linear(FEATURES, outputs))


@_of("flat")
def transposed_tie(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(torch.tanh(F.linear(torch.tanh(m.down(x)), m.down.weight.t())))

    return Then(forward, down=nn.Linear(FEATURES, 4), head=nn.Linear(FEATURES, outputs))


@_of("flat")
def lazy(outputs: int) -> nn.Module:
    return nn.Sequential(nn.LazyLinear(7), nn.Tanh(), nn.LazyLinear(outputs))


@_of("images")
def lazy_convolutional(outputs: int) -> nn.Module:
    return nn.Sequential(nn.LazyConv2d(3, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(outputs))


# -- graphs of computation ---------------------------------------------------------------------------------------------


@_of("flat")
def checkpointed(outputs: int) -> nn.Module:
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    return Then(
        lambda m, x: m.head(checkpoint(m.block, m.enter(x), use_reentrant=False)),
        enter=nn.Linear(FEATURES, 8),
        block=block,
        head=nn.Linear(8, outputs),
    )


@_of("flat")
def checkpointed_reentrant(outputs: int) -> nn.Module:
    block = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    return Then(
        lambda m, x: m.head(checkpoint(m.block, m.enter(x), use_reentrant=True)),
        enter=nn.Linear(FEATURES, 8),
        block=block,
        head=nn.Linear(8, outputs),
    )


@_of("flat", refused=True)
def checkpointed_reentrant_from_the_start(outputs: int) -> nn.Module:
    """Nothing that goes in needs a gradient, so PyTorch gives the block's parameters none."""
    block = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh())
    return Then(lambda m, x: m.head(checkpoint(m.block, x, use_reentrant=True)), block=block, head=nn.Linear(8, outputs))


@_of("flat")
def checkpointed_sequence(outputs: int) -> nn.Module:
    in_segments: Callable[..., Tensor] = checkpoint_sequential
    layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
    return Then(
        lambda m, x: m.head(in_segments(m.layers, 2, m.enter(x), use_reentrant=False)),
        enter=nn.Linear(FEATURES, 8),
        layers=layers,
        head=nn.Linear(8, outputs),
    )


class _Rounded(torch.autograd.Function):
    """Quantised on the way there, the identity on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return (x * 8).round() / 8

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


@_of("flat")
def straight_through(outputs: int) -> nn.Module:
    rounded: Any = _Rounded
    enter = nn.Linear(FEATURES, 6)
    return Then(lambda m, x: m.head(rounded.apply(torch.tanh(m.enter(x)))), enter=enter, head=nn.Linear(6, outputs))


@_of("flat", refused=True)
def quantised_dynamically(outputs: int) -> nn.Module:
    """The scale of what is rounded is the batch's, whichever rows are in it."""
    quantize: Callable[..., nn.Module] = torch.ao.quantization.quantize_dynamic
    front = quantize(nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh(), nn.Linear(8, 8)), dtype=torch.qint8)
    return Then(lambda m, x: m.head(m.front(x.float()).to(x.dtype)), front=front, head=nn.Linear(8, outputs))


@_of("flat")
def weights_in_eight_bits(outputs: int) -> nn.Module:
    """A frozen layer kept as integers with a scale."""
    weight = torch.randn(8, FEATURES)
    scale = weight.abs().amax(1, keepdim=True) / 127
    return Then(
        lambda m, x: m.head(torch.tanh(F.linear(x, m.integers.to(x.dtype) * m.scale))),
        integers=(weight / scale).round().to(torch.int8),
        scale=scale,
        head=nn.Linear(8, outputs),
    )


@_of("flat")
def compiled_part(outputs: int) -> nn.Module:
    front = torch.compile(nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()), backend="eager")
    return Then(lambda m, x: m.head(m.front(x)), front=front, head=nn.Linear(8, outputs))


@_of("flat")
def scripted_part(outputs: int) -> nn.Module:
    front = torch.jit.script(nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()))
    return Then(lambda m, x: m.head(m.front(x)), front=front, head=nn.Linear(8, outputs))


@_of("flat")
def backbone_in_bfloat16(outputs: int) -> nn.Module:
    backbone = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()).to(torch.bfloat16).requires_grad_(False)
    return Then(
        lambda m, x: m.head(m.backbone(x.to(torch.bfloat16)).to(x.dtype)), backbone=backbone, head=nn.Linear(8, outputs)
    )


@_of("flat")
def table_in_double_precision(outputs: int) -> nn.Module:
    times = 1.7e9 + torch.arange(FEATURES, dtype=torch.float64)
    return Then(lambda m, x: m.head((m.times - 1.7e9 + x).to(x.dtype)), times=times, head=nn.Linear(FEATURES, outputs))


# -- normalisation and state -------------------------------------------------------------------------------------------


@_of("images")
def instance_norm(outputs: int) -> nn.Module:
    norm = nn.InstanceNorm2d(3, affine=True)
    return nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(108, outputs))


@_of("images", refused=True)
def tracked_instance_norm(outputs: int) -> nn.Module:
    norm = nn.InstanceNorm2d(3, affine=True, track_running_stats=True)
    return nn.Sequential(nn.Conv2d(1, 3, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(108, outputs))


@_of("flat")
def root_mean_square_norm(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        return m.head(m.gain * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))

    return Then(forward, gain=nn.Parameter(torch.ones(FEATURES)), head=nn.Linear(FEATURES, outputs))


def _normed(norm: nn.Module, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 6), norm, nn.ReLU(), nn.Linear(6, outputs))


@_of("flat", refused=True)
def batch_norm(outputs: int) -> nn.Module:
    return _normed(nn.BatchNorm1d(6), outputs)


@_of("flat", refused=True)
def batch_norm_without_statistics(outputs: int) -> nn.Module:
    return _normed(nn.BatchNorm1d(6, track_running_stats=False).eval(), outputs)


@_of("flat")
def frozen_batch_norm(outputs: int) -> nn.Module:
    return _normed(nn.BatchNorm1d(6).eval(), outputs)


@_of("flat", refused=True)
def moving_average_in_a_buffer(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        if m.training:
            m.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return m.head(x - m.mean)

    return Then(forward, mean=torch.zeros(FEATURES), head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def moving_average_of_its_own(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        if m.training:
            m.seen.append(x.detach().mean(0))
        return m.head(x - sum(m.seen) / max(1, len(m.seen)))

    return Then(forward, seen=[], head=nn.Linear(FEATURES, outputs))


# -- outputs and inputs ------------------------------------------------------------------------------------------------


@_of("flat", refused=True)
def two_heads_in_training(outputs: int) -> nn.Module:
    return Then(
        lambda m, x: (m.head(x), m.aux(x)) if m.training else m.head(x),
        head=nn.Linear(FEATURES, outputs),
        aux=nn.Linear(FEATURES, outputs),
    )


@_of("flat", refused=True)
def named_outputs(outputs: int) -> nn.Module:
    return Then(lambda m, x: {"logits": m.head(x), "hidden": [x]}, head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def nested_outputs(outputs: int) -> nn.Module:
    return Then(lambda m, x: [(m.head(x), [x])], head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def classes_rather_than_logits(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.head(x).argmax(1), head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def squeezed(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.head(x).squeeze(), head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def without_a_gradient(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.head(x).detach(), head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def dropout_in_evaluation(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.head(F.dropout(x, 0.5)), head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def writes_into_its_input(outputs: int) -> nn.Module:
    return Then(lambda m, x: m.head(x.mul_(2)), head=nn.Linear(FEATURES, outputs))


@_of("flat", refused=True)
def leaves_the_process(outputs: int) -> nn.Module:
    def forward(m: Any, x: Tensor) -> Any:
        raise SystemExit("no GPU")

    return Then(forward, head=nn.Linear(FEATURES, outputs))
