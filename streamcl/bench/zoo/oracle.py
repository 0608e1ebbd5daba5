"""The diagonal Fisher by the definition alone: one row, one backward pass a label. Shares nothing with `core.fisher`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def fisher(module: nn.Module, x: Tensor, labels: Tensor | None) -> Tensor:
    """``sum_n E_y[(d log p(y | x_n) / d theta)^2]``, [P] float64 on the host, in evaluation mode.

    x: [n, ...]. labels: one for each row, observed or drawn; None for the expectation over the model's own distribution.
    """
    module.eval()
    trained = [p for p in module.parameters() if p.requires_grad]
    total = torch.zeros(sum(p.numel() for p in trained), dtype=torch.float64)
    for n in range(len(x)):
        log_p = module(x[n : n + 1])[0].log_softmax(0)
        outcomes = range(len(log_p)) if labels is None else [int(labels[n])]
        for label in outcomes:
            share = log_p[label].detach().double().exp() if labels is None else 1.0
            total += share * _gradient(log_p[label], trained).square()
    return total


def _gradient(value: Tensor, trained: Sequence[Tensor]) -> Tensor:
    for p in trained:
        p.grad = None
    torch.autograd.backward(value, retain_graph=True)  # what any layer takes part in, unlike torch.autograd.grad
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in trained]).double()
