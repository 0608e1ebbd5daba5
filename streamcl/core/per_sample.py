"""Per-sample gradients of any module: by vmap where it has rules and agrees, and by a loop, which is the definition."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from enum import Enum

import torch
from torch import Tensor
from torch.func import functional_call, vjp, vmap

from streamcl.core.gradients import agree, largest, noise, parameter_gradients, random_like
from streamcl.core.measures import Measure, Squares, Sums, size, split
from streamcl.core.watched import Watched, first_line
from streamcl.core.written_out import WrittenOut

CHUNK_BYTES = 256 << 20  # per-sample gradients held at once,
CPU_CHUNK_BYTES = 8 << 20  # and on a CPU, whose caches are small
UNBATCHED = "There is a performance drop because we have not yet implemented the batching rule"


class Mode(Enum):
    """How vmap is let at a module: some kernels (a recurrent layer's) are chosen by whether gradients are wanted, and not
    all have a batching rule."""

    PLAIN = "with gradients"
    WITHOUT = "without"
    WRITTEN_OUT = "with gradients, recurrent layers in elementary operations"

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While it is, a module is called in this way."""
        written_out = WrittenOut() if self is Mode.WRITTEN_OUT else nullcontext()
        with torch.set_grad_enabled(self is not Mode.WITHOUT), written_out:
            yield


class PerSample:
    """Of one module, in evaluation mode."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self.squares = Squares(watched.parameters.layout)  # what ways are compared by

    # -- by vmap -----------------------------------------------------------------------------------------------------

    def vectorised(self, names: Sequence[str], x: Tensor, cotangents: Tensor, mode: Mode) -> Sums:
        """Gradients [n, k, *shape] of each sample's output against each of its cotangents [k, n, ...]."""
        every = {name: p.detach() for name, p in self._watched.by_name.items()}
        wanted = {name: every.pop(name) for name in names}

        def one_sample(row: Tensor, vectors: Tensor) -> Sums:
            def forward(values: Sums) -> Tensor:
                given = {**every, **values}
                tensors = {place: given[name] for place, name in self._watched.places.items()}
                output: Tensor = functional_call(self._watched.module, tensors, (row.unsqueeze(0),), tie_weights=False)
                return output.squeeze(0)

            pull = vjp(forward, wanted)[1]
            gradients: Sums = vmap(lambda vector: pull(vector)[0])(vectors)
            return gradients

        with mode.entered(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", UNBATCHED)  # of PyTorch's loops within, and to be told to PyTorch
            gradients: Sums = vmap(one_sample, in_dims=(0, 1))(x, cotangents)
        return {name: gradient.detach() for name, gradient in gradients.items()}

    def add_vectorised(
        self,
        names: Sequence[str],
        x: Tensor,
        cotangents: Tensor,
        mode: Mode,
        measure: Measure,
        sums: Sums,
        weights: Tensor,
    ) -> Sums:
        """Add a measure of these parameters' gradients, in bounded memory; returns ``sum_n w_n g_n`` of weights [k, n]."""
        moments = self._watched.zeros(names)
        numbers = sum(moment.numel() for moment in moments.values()) * len(cotangents)
        chunk = CPU_CHUNK_BYTES if x.device.type == "cpu" else CHUNK_BYTES
        rows = max(1, chunk // (numbers * self._watched.parameters.theta.element_size()))
        for start in range(0, len(x), rows):
            part = slice(start, start + rows)
            gradients = self.vectorised(names, x[part], cotangents[:, part], mode)
            for key, more in measure.of(gradients).items():
                sums[key] += more
            for name, gradient in gradients.items():
                moments[name] += torch.einsum("kn,nk...->...", weights[:, part].to(gradient), gradient)
        return moments

    def mode(self, names: Sequence[str], x: Tensor, output: Tensor) -> Mode | None:
        """The first way in which vmap takes this module and agrees with plain backward passes on a few rows, or None."""
        cotangents = random_like(output, 2, seed=1)
        expected = [self.loop(names, x[n : n + 1], cotangents[:, n : n + 1], self.squares) for n in range(len(x))]
        reasons = []
        for mode in Mode:
            reason = self._tried(names, x, cotangents, expected, mode)
            if reason is None:
                return mode
            reasons.append(reason)
        self._watched.slowness.because(reasons[0])
        return None

    def _tried(self, names: Sequence[str], x: Tensor, cotangents: Tensor, expected: list[Sums], mode: Mode) -> str | None:
        """What is wrong with gradients by vmap, or None."""
        try:
            gradients = self.vectorised(names, x, cotangents, mode)
        except Exception as error:  # whatever torch raises where an operation has no batching rule
            return first_line(error)
        for n, sums in enumerate(expected):
            floor = noise(cotangents.dtype) ** 2 * largest(sums)
            for name in names:
                squares = sums[name]
                if not agree(gradients[name][n].square().sum(0), squares, floor):
                    return f"vmap gives another gradient for {name}"
        return None

    # -- by the loop -------------------------------------------------------------------------------------------------

    def loop(self, names: Sequence[str], x: Tensor, cotangents: Tensor, measure: Measure) -> Sums:
        """A measure's sums over samples x [n, ...]."""
        theta = self._watched.parameters.theta.detach()
        sums = split(theta.new_zeros(size(measure.shapes)), measure.shapes)
        for n in range(len(x)):
            self._one_sample(names, x[n : n + 1], cotangents[:, n : n + 1], measure, sums)
        return sums

    def add_one_by_one(self, names: Sequence[str], x: Tensor, cotangents: Tensor, measure: Measure, sums: Sums) -> None:
        """Add a measure of these parameters' gradients."""
        if not names:
            return
        started = time.perf_counter()
        for n in range(len(x)):
            self._one_sample(names, x[n : n + 1], cotangents[:, n : n + 1], measure, sums)
        self._watched.slowness.took(names, len(x), time.perf_counter() - started)

    def _one_sample(self, names: Sequence[str], x: Tensor, cotangents: Tensor, measure: Measure, sums: Sums) -> None:
        """Add one sample's gradients, by plain backward passes."""
        parameters = [self._watched.by_name[name] for name in names]
        with torch.enable_grad():
            output = self._watched.module(x)
            for vector in cotangents:
                gradients = parameter_gradients(output, parameters, vector)
                if all(gradient is None for gradient in gradients):
                    continue
                every = zip(names, parameters, gradients, strict=True)
                known = {name: torch.zeros_like(p) if g is None else g for name, p, g in every}
                for key, more in measure.of(known).items():
                    sums[key] += more

    def one_by_one(self, names: Sequence[str], x: Tensor, cotangents: Tensor) -> Sums:
        """As `vectorised`, by plain backward passes."""
        started = time.perf_counter()
        parameters = [self._watched.by_name[name] for name in names]
        found = [p.detach().new_zeros((len(x), len(cotangents), *p.shape)) for p in parameters]
        for n in range(len(x)):
            with torch.enable_grad():
                output = self._watched.module(x[n : n + 1])
            for k, vector in enumerate(cotangents[:, n : n + 1]):
                for each, gradient in zip(found, parameter_gradients(output, parameters, vector), strict=True):
                    if gradient is not None:
                        each[n, k] = gradient
        self._watched.slowness.took(names, len(x), time.perf_counter() - started)
        return dict(zip(names, found, strict=True))
