"""How the neighbours learn: with the network, the rows, the minibatches and the passes that streamcl has."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.bench.ablations import CLASSES, Array, Result, Task, result_of, score, streamed
from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.neighbours.rules import Rule
from streamcl.config import ROWS, Config, Model
from streamcl.learning.optimisation import LAST_EPOCH_RATE

Make = Callable[[nn.Module, int], Rule]  # a network and its outputs


def network(model: Mapping[str, Any], tasks: list[Task], seed: int) -> tuple[nn.Module, int]:
    """The network that streamcl starts from with the same section and seed, and the number of its outputs."""
    section = Model(**model)
    classes = section.outputs or CLASSES
    built = models.build(section.factory, section.args, tasks[0].x.shape[1:], classes, seed)
    return built, classes


def taught(name: str, make: Make, rate: float, case: str, tasks: list[Task], model: Mapping[str, Any], seed: int) -> Result:
    """Learn every task in turn with a rule, and score them all at the end.

    Epochs as many as streamcl's, and one more, for its pass while the rows arrive; the last at a tenth of the rate, as
    there.
    """
    started = time.monotonic()
    module, outputs = network(model, tasks, seed)
    rule, epochs = make(module, outputs), Config().epochs(len(tasks[0].x)) + 1
    with as_in_the_trainer():
        for number, (_, x, y) in enumerate(streamed(tasks, False, seed)):
            rows, labels = torch.from_numpy(x), torch.from_numpy(y)
            fit(rule, module, rate, rows, labels, epochs, torch.Generator().manual_seed(1000 * seed + number))
            rule.consolidate(rows, labels)
        scores = [score(_probabilities(module, task.test_x), task.test_y) for task in tasks]
    return result_of(case, name, seed, scores, started)


def fit(rule: Rule, module: nn.Module, rate: float, x: Tensor, y: Tensor, epochs: int, generator: torch.Generator) -> None:
    """One task."""
    optimiser = rule.optimiser(rate)
    for epoch in range(epochs):
        if epoch == epochs - 1:
            optimiser.param_groups[0]["lr"] = LAST_EPOCH_RATE * rate
        for rows in torch.split(torch.randperm(len(x), generator=generator), ROWS):
            optimiser.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(module(x[rows]), y[rows]))
            rule.adjust(len(x))
            optimiser.step()
            rule.stepped()


def _probabilities(module: nn.Module, x: Array) -> Array:
    with torch.no_grad():
        found: Array = module(torch.from_numpy(np.ascontiguousarray(x))).softmax(1).numpy()
    return found
