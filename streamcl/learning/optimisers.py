"""Optimisers of one flat parameter vector: Adam and plain SGD as PyTorch's own kernels, L-BFGS as its class.

`torch.optim`'s classes import the whole of TorchDynamo when the first of them is made: seconds, and some hundred megabytes,
for wrappers that nothing here uses. Its functional forms do not, nor does a class without these wrappers; the results are
bitwise the same.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.optim.adam import adam

LBFGS_ITERATIONS = 20  # an epoch of L-BFGS
BETAS, EPSILON = (0.9, 0.999), 1e-8


class Adam:
    """Adam (Kingma & Ba 2015), fused. theta, grad: [P], the vector and where its gradient is."""

    def __init__(self, theta: Tensor, grad: Tensor, rate: float) -> None:
        self.rate = rate
        self._theta, self._grad = theta, grad
        self._moments: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self) -> None:
        """One step along the current gradient."""
        if not self._moments:
            self._moments = {
                "step": torch.zeros((), device=self._theta.device),
                "exp_avg": torch.zeros_like(self._theta),
                "exp_avg_sq": torch.zeros_like(self._theta),
            }
        held = self._moments
        adam(
            [self._theta],
            [self._grad],
            [held["exp_avg"]],
            [held["exp_avg_sq"]],
            [],
            [held["step"]],
            fused=True,
            amsgrad=False,
            has_complex=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=self.rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )

    def state(self) -> dict[str, Tensor]:
        """The number of steps and both moments."""
        return dict(self._moments)

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over what `state` gave."""
        self._moments = {name: tensor.to(self._theta.device) for name, tensor in state.items()}


class Sgd:
    """Plain stochastic gradient descent, without any state of its own."""

    def __init__(self, theta: Tensor, grad: Tensor, rate: float) -> None:
        self.rate = rate
        self._theta, self._grad = theta, grad

    @torch.no_grad()
    def step(self) -> None:
        """``theta <- theta - rate * gradient``."""
        self._theta.add_(self._grad, alpha=-self.rate)

    def state(self) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""


class _Search(torch.optim.LBFGS):
    """PyTorch's, made without its compiler."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)


class Lbfgs:
    """L-BFGS with a strong Wolfe line search, on a whole task; its line search finds the step, `rate` is not used.

    theta: a leaf whose ``.grad`` is the flat gradient.
    """

    def __init__(self, theta: Tensor, rate: float) -> None:
        self.rate = rate
        self._search = _Search(
            [theta],
            max_iter=LBFGS_ITERATIONS,
            history_size=LBFGS_ITERATIONS,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            line_search_fn="strong_wolfe",
        )

    def minimise(self, objective: Callable[[], float]) -> None:
        """Up to `LBFGS_ITERATIONS` iterations; `objective` returns its value and leaves the gradient behind."""
        self._search.step(objective)  # type: ignore[no-untyped-call]

    def state(self) -> dict[str, Tensor]:
        """Nothing: it works within one boundary."""
        return {}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Nothing to take over."""
