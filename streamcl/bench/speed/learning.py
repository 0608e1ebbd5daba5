"""What the penalty costs a step, and the Fisher a task, in epochs of training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.bench.speed.table import Row, slower, timed
from streamcl.bench.trained import BATCH, CLASSES, digits, train
from streamcl.config import NOTED_RATE, from_tree
from streamcl.core.basis import Basis, matrices_in
from streamcl.core.fisher import Fisher
from streamcl.core.gaussian import Gaussian
from streamcl.core.likelihood import Categorical, FisherKind
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Layered, observed
from streamcl.learning.coordinates import leading_sides
from streamcl.learning.network import Network
from streamcl.learning.optimisation import Optimisation
from streamcl.learning.optimisers import Adam
from streamcl.schema import LabelMap, Signature

ROWS_OF_TASK = 1024

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
        found = Fisher(module, parameters, likelihood, kind)
        for start in range(0, rows, 512):
            found.add(x[start : start + 512], y[start : start + 512])
        assert found.verified()  # the check of itself is part of its price

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
    optimiser = Adam(theta, parameters.grad, NOTED_RATE)
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


def turned(batch: int, goal: float, rounds: int) -> Row:
    """A step of a task's epochs on the default penalty, in its eigenbasis, against one under the prior; rows of `batch`."""
    torch.manual_seed(0)
    pair = [_fitted(batch, in_basis) for in_basis in (True, False)]
    x, y = _data((784,), ROWS_OF_TASK)

    def steps(optimisation: Optimisation) -> Callable[[], None]:
        optimisation.step(x[:batch], y[:batch])  # in which the layers that work on coordinates are found
        coordinates = optimisation.coordinates
        rows = [x] if coordinates is None or coordinates.turned_rows is None else [x, coordinates.turned_rows(x)]

        def some() -> None:
            for start in range(0, ROWS_OF_TASK, batch):
                index = torch.arange(start, start + batch)
                given, *more = (each[index] for each in rows)
                optimisation.step(given, y[index], *more)

        return some

    in_basis, plain = map(steps, pair)
    name, against = f"a training step in the eigenbasis, {batch} rows", "the step under the prior alone"
    return slower(name, against, goal, timed(in_basis), timed(plain), rounds)


def _fitted(batch: int, in_basis: bool) -> Optimisation:
    """Of the MLP, ready to take steps; in the basis that a first task would have moved."""
    model = {"args": {"hidden": [400, 400]}, "classes": CLASSES}
    config = from_tree({"model": model, "train": {"batch_size": batch, "device": "cpu"}})
    labels = LabelMap(CLASSES)
    labels.add(tuple(range(CLASSES)))
    network = Network(config, Signature((784,), False, ()), labels, torch.device("cpu"))
    theta = network.master()
    zeros = torch.zeros_like(theta)
    penalty = Gaussian(_layered(network), zeros) if in_basis else Gaussian.prior(zeros, 1.0, "layered")
    optimisation = Optimisation(network, penalty, config.train, NOTED_RATE)
    optimisation.set_samples(ROWS_OF_TASK)
    return optimisation


def _layered(network: Network) -> Layered:
    """A diagonal in a basis of random moments, with the sides that lead where they would."""
    layout = network.parameters.layout
    matrices = matrices_in(layout, [(name, name.replace("weight", "bias")) for name in layout.names if "weight" in name])
    x, _ = _data((784,), 8)
    lead = leading_sides(network.module, network.parameters, matrices, x)

    def moments(size: int) -> Tensor:
        rows = torch.randn(2 * size, size, dtype=torch.float64)
        return rows.T @ rows

    both = {matrix.key: (moments(matrix.rows), moments(matrix.columns)) for matrix in matrices}
    basis = Basis.unturned(layout.size).moved(matrices, both, lead)
    return Layered(basis, torch.rand(layout.size, dtype=torch.float64))
