"""Two replicas, each with half of the rows, come through the one seam to what one comes to that has them all."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from torch import Tensor

from streamcl.config import Config, from_tree
from streamcl.core.fisher import DiagonalFisher
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import observed
from streamcl.core.reduce import ALONE, Alone, Reduction
from streamcl.learning.data import TaskData
from streamcl.learning.evaluation import Prequential
from streamcl.learning.network import Network
from streamcl.learning.optimisation import Optimisation, mean_nll
from streamcl.schema import LabelMap, Signature

ROWS, FEATURES, WAIT = 26, 5, 120.0
T = TypeVar("T")


class Shared:
    """Two threads that add up what they have."""

    def __init__(self) -> None:
        self.barrier = threading.Barrier(2, timeout=WAIT)
        self.held: dict[int, Any] = {}

    def exchange(self, rank: int, own: Any) -> list[Any]:
        self.held[rank] = own
        self.barrier.wait()
        both = [self.held[0], self.held[1]]
        self.barrier.wait()
        return both


@dataclass
class One:
    """One of the two."""

    shared: Shared
    rank: int

    @property
    def leads(self) -> bool:
        return self.rank == 1

    def count(self, samples: int) -> int:
        return sum(self.shared.exchange(self.rank, samples))

    def mean(self, values: Tensor) -> Tensor:
        return values.sum() / self.count(values.numel())

    def sum(self, tensor: Tensor) -> Tensor:
        one, other = self.shared.exchange(self.rank, tensor.clone())
        return tensor.copy_(one + other)


@dataclass(slots=True)
class Share(TaskData):
    """Every third row of each minibatch, or the others."""

    keep: Callable[[Tensor], Tensor] = field(default=lambda x: x)

    def minibatches(self, batch_size: int, generator: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.keep(x), self.keep(y)) for x, y in TaskData.minibatches(self, batch_size, generator))

    def chunks(self, rows: int = 4096) -> Iterator[tuple[Tensor, Tensor]]:
        return ((self.keep(x), self.keep(y)) for x, y in TaskData.chunks(self, rows))


def config(likelihood: str, **train: Any) -> Config:
    model = {
        "args": {"hidden": [6], "activation": "tanh"},
        "likelihood": likelihood,
        **({"classes": 3} if likelihood == "categorical" else {}),
    }
    return from_tree({"model": model, "train": {"dtype": "float64", "device": "cpu", "batch_size": 10, **train}})


def rows(likelihood: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, ROWS).astype("<i8") if likelihood == "categorical" else rng.normal(size=ROWS)
    return rng.normal(size=(ROWS, FEATURES)), y


def built(settings: Config, reduction: Reduction) -> Network:
    """A network; one at a time, since its numbers are drawn from the process's one generator."""
    labels = LabelMap(3)
    labels.outputs = {0: 0, 1: 1, 2: 2}
    return Network(settings, Signature((FEATURES,), False, ()), labels, torch.device("cpu"), reduction=reduction)


def learned(settings: Config, network: Network, keep: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """Everything that is summed over a task's rows, by one replica."""
    likelihood = settings.model.likelihood
    data = Share(lambda _: [rows(likelihood)], [ROWS], 8 * FEATURES, network.conversion, keep=keep)
    size = network.parameters.size
    penalty = Gaussian(observed(torch.linspace(1, 2, size).double()), torch.linspace(-1, 1, size).double())
    optimisation = Optimisation(network, penalty, settings.train)
    results = [result for result in optimisation.fit(data, seed=0) if result is not None]
    x, y = next(iter(data.chunks()))
    with network.evaluating():
        output = network.shaped(network.module(x))
    scores = Prequential(likelihood)
    loss = scores.score(network.likelihood.nll(output, y), output, y, network.reduction)
    fisher = DiagonalFisher(network.module, network.parameters, network.likelihood, reduction=network.reduction)
    fisher.add(x, y)
    return {
        "theta": network.theta().copy(),
        "losses": [(result.nll, result.objective) for result in results],
        "nll": mean_nll(network, data),
        "loss": loss,
        "scores": list(scores.overall.scores().values()),
        "rows": [mean.n for mean in scores.overall.means.values()],
        "fisher": fisher.precision().diagonal().numpy(),
    }


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
def test_two_replicas_learn_what_one_learns(likelihood: str, optimizer: str) -> None:
    settings = config(likelihood, optimizer=optimizer, epochs=3, learning_rate=0.01)
    alone = learned(settings, built(settings, ALONE), lambda x: x)
    shared = Shared()
    networks = [built(settings, One(shared, rank)) for rank in range(2)]
    third = np.arange(ROWS) % 3 == 0  # unequal parts of every minibatch

    def replica(rank: int) -> dict[str, Any]:
        def keep(x: Tensor) -> Tensor:
            return x[torch.from_numpy(third[: len(x)] == (rank == 0))]

        return learned(settings, networks[rank], keep)

    with ThreadPoolExecutor(2) as threads:
        both = list(threads.map(replica, range(2)))
    for each in both:
        for name, expected in alone.items():
            np.testing.assert_allclose(each[name], expected, rtol=1e-6, atol=1e-8, err_msg=name)
    assert np.array_equal(both[0]["theta"], both[1]["theta"])


def test_one_process_alone_has_nothing_to_add() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert Alone.leads
    assert ALONE.count(3) == 3
    assert ALONE.sum(values) is values
    assert torch.equal(ALONE.mean(values), values.mean())
