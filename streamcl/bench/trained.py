"""Networks trained on real digits, since a Fisher is only ever taken at or near an optimum."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from streamcl.config import NOTED_RATE
from streamcl.core.likelihood import Categorical
from streamcl.core.parameters import FlatParameters
from streamcl.learning.optimisers import Adam

CLASSES, BATCH = 10, 128


def digits(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """The 1,797 real digits that come with scikit-learn, 28 x 28."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.images).float().unsqueeze(1) / 16
    x = torch.nn.functional.interpolate(images, (28, 28), mode="bilinear").reshape(-1, *shape)
    return x, torch.from_numpy(found.target).long()


def train(module: nn.Module, parameters: FlatParameters, x: Tensor, y: Tensor, epochs: int = 40) -> None:
    """Adam on the mean negative log likelihood."""
    optimiser = Adam(parameters.theta.detach(), parameters.grad, NOTED_RATE)
    for _ in range(epochs):
        for start in range(0, len(x), BATCH):
            parameters.grad.zero_()
            loss = Categorical(CLASSES).nll(module(x[start : start + BATCH]), y[start : start + BATCH]).mean()
            torch.autograd.backward(loss)
            optimiser.step()
