"""What the penalty costs a step, and the Fisher a task, in epochs of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.bench.speed.table import Row, slower, timed
from streamcl.bench.trained import BATCH, CLASSES, digits, train
from streamcl.config import Train
from streamcl.core.fisher import DiagonalFisher
from streamcl.core.gaussian import Gaussian
from streamcl.core.likelihood import Categorical, FisherKind
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import observed
from streamcl.learning.optimisers import Adam

# -- models ------------------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """One small encoder layer over rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, 28, 28]."""
        output: Tensor = self.head(self.layer(self.embed(x)).mean(1))
        return output


def _model(name: str) -> tuple[nn.Module, tuple[int, ...], int]:
    """A module, the shape of its rows, and how many of them the Fisher is timed with."""
    match name:
        case "MLP 784-400-400-10":
            return models.mlp((784,), CLASSES, hidden=[400, 400]), (784,), 4096
        case "convolutional":
            return models.convnet((1, 28, 28), CLASSES, channels=(8, 16), hidden=64), (1, 28, 28), 512
        case _:
            return Transformer(), (28, 28), 512


def _data(shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((rows, *shape), generator=generator), torch.randint(0, CLASSES, (rows,), generator=generator)


# -- rows --------------------------------------------------------------------------------------------------------------


def fisher(kind: FisherKind, name: str, goal: float, rounds: int) -> Row:
    """The diagonal Fisher of a trained network against one epoch of forward and backward passes over the same rows."""
    torch.manual_seed(0)
    module, shape, rows = _model(name)
    x, y = digits(shape)
    parameters = FlatParameters(module)
    likelihood = Categorical(CLASSES)
    train(module, parameters, x, y)
    x, y = x.repeat(3, *[1] * len(shape))[:rows], y.repeat(3)[:rows]

    def epoch() -> None:
        module.train()
        for start in range(0, rows, BATCH):
            parameters.grad.zero_()
            torch.autograd.backward(likelihood.nll(module(x[start : start + BATCH]), y[start : start + BATCH]).mean())

    def whole() -> None:
        found = DiagonalFisher(module, parameters, likelihood, kind)
        for start in range(0, rows, 512):
            found.add(x[start : start + 512], y[start : start + 512])

    against = "a forward and backward epoch"
    return slower(f"{kind} Fisher, {name}", against, goal, timed(whole), timed(epoch), rounds)


def penalty(rounds: int) -> Row:
    """A training step with the penalty in it against the same step without."""
    torch.manual_seed(0)
    module, shape, _ = _model("MLP 784-400-400-10")
    x, y = _data(shape, BATCH)
    parameters = FlatParameters(module)
    likelihood = Categorical(CLASSES)
    theta = parameters.theta.detach()
    optimiser = Adam(theta, parameters.grad, Train().learning_rate)
    gaussian = Gaussian(observed(torch.rand_like(theta)), torch.rand_like(theta)).scaled(1e-3)

    def step(start: Callable[[], Any]) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(20):
                start()
                torch.autograd.backward(likelihood.nll(module(x), y).mean())
                optimiser.step()

        return steps

    with_it = step(lambda: gaussian.gradient(theta, out=parameters.grad))
    without = step(lambda: parameters.grad.zero_())
    name, against = "a training step with the penalty", "the step without it"
    return slower(name, against, 1.03, timed(with_it), timed(without), 5 * rounds)
