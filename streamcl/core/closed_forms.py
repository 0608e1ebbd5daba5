"""Closed forms of per-sample gradients, for the functions that most networks are made of.

Given the gradient G of some scalar of each sample with respect to a call's output, the gradient of that call's weight for
each sample needs no other backward pass (Goodfellow 2015; Rochette, Manoel & Tramel 2019 for convolutions), and the sum
over samples of its squares is

* linear, one row a sample: ``(G*G)^T (A*A)``, one matrix product;
* linear on sequences, and convolutions of unfolded inputs: ``sum_n (G_n^T A_n)^2``, a batched product;
* the scale of a normalisation with normalised inputs Z: ``sum_n (sum_t G_nt * Z_nt)^2``;
* embeddings: ``sum_n (sum over the places t of a token of G_nt)^2``;
* biases: ``sum_n (sum_t G_nt)^2``.

Each form can also give ``sum_n w_n g_n``, the same gradients weighted and summed without squaring, which one plain backward
pass gives as well (`mix`, `moments`): equal for random weights, they are the samples' own gradients.

Knows nothing of likelihoods, nor of how calls are found (`recorder`). Whether a form holds for a parameter (used twice,
tied, samples along another axis) is for the caller to check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

CPU_TILE_BYTES = 512 << 10  # gradients of a few samples at once, which fit in a core's cache,
TILE_BYTES = 128 << 20  # and elsewhere

Names = tuple[str | None, str | None]  # of weight and bias


@dataclass(frozen=True, slots=True)
class Layout:
    """Where a tensor has its samples: the n of an axis of n * t numbers, running slowest or, if inner, fastest."""

    axis: int
    inner: bool

    def samples_first(self, values: Tensor, samples: int) -> Tensor:
        """[n, t, ...]."""
        sizes = (-1, samples) if self.inner else (samples, -1)
        shape = (*values.shape[: self.axis], *sizes, *values.shape[self.axis + 1 :])
        return values.reshape(shape).movedim(self.axis + self.inner, 0)


FIRST = Layout(0, inner=False)


class Site:
    """One call of a known function: its inputs, where its output's gradient can be had, and whose parameters it uses.

    names: of weight and bias, None for one that is absent, frozen or not a parameter. numbers: how many are held, for the
    block's memory. features: how many of the last axes cannot be samples.
    """

    def __init__(self, names: Names, output: Tensor, features: int = 1) -> None:
        self.names = names
        self.edge: GradientEdge = get_gradient_edge(output)
        self.shape = output.shape
        self.numbers = output.numel()
        self._features = features
        self._layout, self._samples = FIRST, 0
        self._mixed: Tensor | None = None

    @property
    def key(self) -> tuple[object, ...]:
        """The same for the same call of another forward pass."""
        return type(self), self.names, len(self.shape)

    def at(self, names: Names, layout: Layout, samples: int) -> Site:
        """This site, with squares wanted for these names only, and its samples on that axis."""
        self.names, self._layout, self._samples = names, layout, samples
        return self

    @property
    def samples(self) -> int:
        """How many there are."""
        return self._samples

    def layouts(self, samples: int) -> list[Layout]:
        """Where the output may have its samples."""
        axes = range(max(0, len(self.shape) - self._features))
        every = [Layout(axis, inner) for axis in axes for inner in (False, True)]
        return [layout for layout in every if self.fits(layout, samples)]

    def fits(self, layout: Layout, samples: int) -> bool:
        """Whether the output has an axis like that."""
        return self.numbers > 0 and self.shape[layout.axis] % samples == 0

    def prepare(self) -> None:
        """Bring the inputs into the shape that the form needs, once for all cotangents; `axis` and `names` are final."""

    def add(self, gradient: Tensor, sums: dict[str, Tensor]) -> None:
        """Add the squares for one cotangent, given the gradient of the output."""
        raise NotImplementedError

    def finish(self, sums: dict[str, Tensor]) -> None:
        """Add what was deferred until all cotangents had been seen."""

    def mix(self, gradient: Tensor, weights: Tensor) -> None:
        """Remember one cotangent's gradient of the output, each sample's times its weight [n]."""
        times = self.shape[self._layout.axis] // self._samples
        spread = weights.repeat(times) if self._layout.inner else weights.repeat_interleave(times)
        spread = spread.reshape(-1, *[1] * (gradient.ndim - self._layout.axis - 1))
        self._mixed = gradient * spread if self._mixed is None else self._mixed.addcmul_(gradient, spread)

    def moments(self, sums: dict[str, Tensor]) -> None:
        """Add ``sum_n w_n g_n`` of all that was mixed."""
        if self._mixed is not None:
            self._add_moments(self._mixed, sums)

    def _add_moments(self, mixed: Tensor, sums: dict[str, Tensor]) -> None:
        raise NotImplementedError

    def rows_of(self, gradient: Tensor) -> Tensor:
        """The output's gradient as [n, t, rows], of a call that has one product of a weight: ``sum_t g_nt a_nt^T``."""
        return self._rows(gradient)

    def columns_of(self) -> Tensor:
        """The inputs [n, t, columns] of such a call, once prepared."""
        raise NotImplementedError

    def _rows(self, values: Tensor, features: int = 1) -> Tensor:
        """[n, t, features]."""
        values = values.flatten(values.ndim - features)
        return self._layout.samples_first(values, self._samples).reshape(self._samples, -1, values.shape[-1])


class Dense(Site):
    """``F.linear`` on [n, in], or on [n, ..., in] and [..., n, ..., in]."""

    def __init__(self, names: Names, output: Tensor, inputs: Tensor) -> None:
        super().__init__(names, output)
        self.inputs = inputs.detach()
        self.numbers += inputs.numel()
        self._squares: Tensor | None = None

    def prepare(self) -> None:
        self.inputs = self._rows(self.inputs).contiguous()

    def columns_of(self) -> Tensor:
        return self.inputs

    def add(self, gradient: Tensor, sums: dict[str, Tensor]) -> None:
        g = self._rows(gradient)
        if g.shape[1] == 1:
            self._put_off(g.squeeze(1))
            return
        weight, bias = self.names
        if weight is not None:
            add_squared_products(sums[weight], g.mT, self.inputs.mT)
        if bias is not None:
            sums[bias] += g.sum(1).square_().sum(0)

    def _put_off(self, g: Tensor) -> None:
        """``sum_k G_k * G_k``: the product with A * A is the same for every cotangent."""
        if self._squares is None:
            self._squares = g.square()
        else:
            self._squares.addcmul_(g, g)

    def finish(self, sums: dict[str, Tensor]) -> None:
        if self._squares is None:
            return
        weight, bias = self.names
        if weight is not None:
            sums[weight] += self._squares.mT @ self.inputs.squeeze(1).square()
        if bias is not None:
            sums[bias] += self._squares.sum(0)

    def _add_moments(self, mixed: Tensor, sums: dict[str, Tensor]) -> None:
        weight, bias = self.names
        g = self._rows(mixed).flatten(0, 1)
        if weight is not None:
            sums[weight] += g.mT @ self.inputs.flatten(0, 1)
        if bias is not None:
            sums[bias] += g.sum(0)


@dataclass(frozen=True, slots=True)
class Windows:
    """How a convolution moves over its input: one number for every direction, two of padding."""

    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int

    def unfold(self, x: Tensor) -> Tensor:
        """What each place of the output sees of x [n, channels, ...]: [n, groups, channels of a group * kernel, places]."""
        if any(map(any, self.padding)):
            x = F.pad(x, [width for widths in reversed(self.padding) for width in widths])
        x, steps = x.contiguous(), x.contiguous().stride()[2:]
        reach = zip(x.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        places = [(size - spread * (width - 1) - 1) // stride + 1 for size, width, stride, spread in reach]
        inside = [step * spread for step, spread in zip(steps, self.dilation, strict=True)]
        across = [step * stride for step, stride in zip(steps, self.stride, strict=True)]
        seen = x.as_strided((*x.shape[:2], *self.kernel, *places), (*x.stride()[:2], *inside, *across))
        return seen.reshape(len(x), self.groups, -1, math.prod(places))


class Convolution(Site):
    """``F.conv1d``, ``conv2d`` and ``conv3d`` on [n, channels, ...], any stride, padding, dilation and groups."""

    def __init__(self, names: Names, output: Tensor, inputs: Tensor, windows: Windows) -> None:
        super().__init__(names, output, output.ndim - 1)
        self.inputs = inputs.detach()
        self._windows = windows
        self.numbers += output[:, 0].numel() * inputs.shape[1] * math.prod(windows.kernel)

    def fits(self, layout: Layout, samples: int) -> bool:
        return layout == FIRST and self.shape[0] == samples > 0

    def prepare(self) -> None:
        if self.names[0] is not None:
            self.inputs = self._windows.unfold(self.inputs)

    @property
    def ungrouped(self) -> bool:
        """Whether every output sees every channel."""
        return self._windows.groups == 1

    def rows_of(self, gradient: Tensor) -> Tensor:
        return gradient.flatten(2).mT

    def columns_of(self) -> Tensor:
        return self.inputs.squeeze(1).mT

    def add(self, gradient: Tensor, sums: dict[str, Tensor]) -> None:
        weight, bias = self.names
        g = gradient.flatten(2)
        if weight is not None:
            add_squared_products(sums[weight], g.reshape(len(g), self._windows.groups, -1, g.shape[2]), self.inputs)
        if bias is not None:
            sums[bias] += g.sum(2).square_().sum(0)

    def _add_moments(self, mixed: Tensor, sums: dict[str, Tensor]) -> None:
        weight, bias = self.names
        g = mixed.flatten(2)
        if bias is not None:
            sums[bias] += g.sum((0, 2))
        if weight is not None:
            g = g.reshape(len(g), self._windows.groups, -1, g.shape[2]).permute(1, 2, 0, 3).flatten(2)
            sums[weight] += (g @ self.inputs.permute(1, 0, 3, 2).flatten(1, 2)).view_as(sums[weight])


class Scaling(Site):
    """Scale and shift of normalised inputs: features last (layer, RMS) or, where none are given, second (group, batch)."""

    def __init__(self, names: Names, output: Tensor, normalised: Tensor, features: int | None) -> None:
        super().__init__(names, output, output.ndim - 1 if features is None else features)
        self.normalised = normalised
        self._last = features is not None
        self.numbers += output.numel()

    def prepare(self) -> None:
        self.normalised = self._folded(self.normalised)

    def add(self, gradient: Tensor, sums: dict[str, Tensor]) -> None:
        weight, bias = self.names
        g = self._folded(gradient)
        if weight is not None:
            sums[weight] += (g * self.normalised).sum((1, 3)).square_().sum(0).view_as(sums[weight])
        if bias is not None:
            sums[bias] += g.sum((1, 3)).square_().sum(0).view_as(sums[bias])

    def _add_moments(self, mixed: Tensor, sums: dict[str, Tensor]) -> None:
        weight, bias = self.names
        g = self._folded(mixed)
        if weight is not None:
            sums[weight] += (g * self.normalised).sum((0, 1, 3)).view_as(sums[weight])
        if bias is not None:
            sums[bias] += g.sum((0, 1, 3)).view_as(sums[bias])

    def _folded(self, values: Tensor) -> Tensor:
        """[n, t, features, u], to be summed over t and u."""
        if self._last:
            return self._rows(values, self._features).unsqueeze(3)
        return values.reshape(self._samples, -1, values.shape[1], math.prod(values.shape[2:]))


class Lookup(Site):
    """``F.embedding`` of [n, ...] or [..., n, ...] tokens."""

    def __init__(self, names: Names, output: Tensor, tokens: Tensor, padding: int | None) -> None:
        super().__init__(names, output)
        self.tokens = tokens
        self._padding = padding

    def prepare(self) -> None:
        """Which places of the block share a sample and a token, and which token that is."""
        tokens = self._layout.samples_first(self.tokens, self._samples).reshape(self._samples, -1)
        self._used = (tokens != self._padding).flatten() if self._padding is not None else slice(None)
        owners = torch.arange(len(tokens), device=tokens.device).unsqueeze(1).expand_as(tokens)
        pairs = torch.stack([owners.flatten()[self._used], tokens.flatten()[self._used]])
        self._pairs, self._place = torch.unique(pairs, dim=1, return_inverse=True)

    def rows_of(self, gradient: Tensor) -> Tensor:
        return self._rows(gradient).flatten(0, 1)[self._used].unsqueeze(1)

    def add(self, gradient: Tensor, sums: dict[str, Tensor]) -> None:
        self._scatter(gradient, sums, squared=True)

    def _add_moments(self, mixed: Tensor, sums: dict[str, Tensor]) -> None:
        self._scatter(mixed, sums, squared=False)

    def gathered(self, gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Once prepared: samples [pairs], tokens [pairs] and their gradients [pairs, k, features], of [k, ...]."""
        each = torch.stack([self._of_pairs(gradient) for gradient in gradients], 1)
        return self._pairs[0], self._pairs[1], each

    def _of_pairs(self, gradient: Tensor) -> Tensor:
        """Of every sample's tokens, [pairs, features]."""
        g = self._rows(gradient).flatten(0, 1)[self._used]
        return g.new_zeros(self._pairs.shape[1], g.shape[1]).index_add_(0, self._place, g)

    def _scatter(self, gradient: Tensor, sums: dict[str, Tensor], squared: bool) -> None:
        weight = self.names[0]
        if weight is None:  # the form does not hold for a table that is used elsewhere too
            return
        each = self._of_pairs(gradient)
        sums[weight].index_add_(0, self._pairs[1], (each.square_() if squared else each).to(sums[weight].dtype))


def add_squared_products(total: Tensor, g: Tensor, a: Tensor) -> None:
    """``total += sum_n (g_n a_n^T)^2``, elementwise, for g [n, ..., out, t], a [n, ..., in, t]; a few samples at a time."""
    each = g[0, ..., 0].numel() * a.shape[-2] * a.element_size()
    rows = max(1, (CPU_TILE_BYTES if a.device.type == "cpu" else TILE_BYTES) // each)
    squares = torch.zeros((*g.shape[1:-1], a.shape[-2]), dtype=a.dtype, device=a.device)
    for start in range(0, len(a), rows):
        squares += (g[start : start + rows] @ a[start : start + rows].mT).square_().sum(0)
    total += squares.view_as(total)
