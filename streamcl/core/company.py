"""Whether rows are what they are whatever rows stand beside them, told by numbers where there is no proof of it.

The per-sample gradients g_n that were taken of a block, weighted by random w_n and summed, must equal ``sum_n w_n g_n`` of
plain backward passes over the same rows in another company: two halves, shuffled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamcl.core.gradients import SINGLE, largest, noise, parameter_gradients, same_outputs
from streamcl.core.measures import Sums
from streamcl.core.provenance import Rows
from streamcl.core.recorder import Recorder
from streamcl.core.watched import Watched


class Company:
    """The checks of one sum's blocks, each with weights and an order of its own."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._checks = 0

    def begin(self) -> None:
        """Another block."""
        self._checks += 1

    def weights(self, cotangents: Tensor) -> Tensor:
        """[k, n], so different from each other that no sample can stand for another."""
        generator = torch.Generator().manual_seed(self._checks)
        weights = torch.randn(cotangents.shape[:2], generator=generator, dtype=torch.float64)
        return (weights + weights.sign()).to(cotangents)

    def matters(self, moments: Sums, x: Tensor, values: Tensor, mixed: Tensor) -> str | None:
        """In what the rows x differ from the same rows in another company, or None.

        moments: ``sum_n w_n g_n`` as it was found. values: their outputs. mixed: the cotangents, weighted and summed.
        """
        names = list(moments)
        expected = self._watched.zeros(names)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(self._checks)).to(x.device)
        for rows in order.chunk(2):
            part = x[rows]
            with Recorder((), Rows(part, ())), torch.enable_grad():  # attention in plain products, as in the block itself
                output = self._watched.module(part)
            if not same_outputs(output.detach(), values[rows]):
                return "what comes out for a row depends on the rows beside it"
            self._accumulate(expected, output, mixed[rows])
        floor = noise(values.dtype) * largest(expected)
        wrong = [name for name in names if not _agree(moments[name], expected[name], floor)]
        return f"the model mixes or moves its rows in a way of its own before {wrong[0]}" if wrong else None

    def _accumulate(self, sums: Sums, output: Tensor, cotangent: Tensor) -> None:
        gradients = parameter_gradients(output, [self._watched.by_name[name] for name in sums], cotangent)
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:
                total += gradient


def mixed(weights: Tensor, cotangents: Tensor) -> Tensor:
    """[n, ...]: of each row's cotangents [k, n, ...], the sum with weights [k, n]."""
    return torch.einsum("kn,kn...->n...", weights, cotangents)


def _agree(found: Tensor, expected: Tensor, floor: float) -> bool:
    """As `gradients.agree`, but closer: these are sums over many samples, among which one that is wrong must show."""
    if not expected.numel():
        return True
    tolerance = 1e-4 if found.dtype in SINGLE else 1e-9
    return bool((found - expected).abs().max() <= max(tolerance * float(expected.abs().max()), floor))
