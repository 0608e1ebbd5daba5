"""Van de Ven's scenarios (2022) of one set of labelled images, each by permutations of the pixels or by pairs of classes.

Task-incremental: which task a row is of is known, also when it is predicted, and every task has outputs of its own.
Domain-incremental: it is not known, and all tasks have the same outputs. Class-incremental: it is not known, and every task
has outputs of its own. For the first, a row carries its task's number as its last entry, and the network masks the other
tasks' outputs, so that any method can learn it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.bench.ablations import Task, mlp, tasks_of
from streamcl.bench.permuted import Array, Images

Case = Literal[
    "permuted-domain", "split-class", "permuted-task", "permuted-class", "split-task", "split-domain", "revisits"
]
FACTORY = f"{__name__}:headed"
MASKED = -1e4  # in the logits: a probability of 0 in float32
TASK_CLASSES = 2  # of the split


@dataclass(frozen=True, slots=True)
class Scenario:
    """Tasks, and the model's section for them."""

    tasks: list[Task]
    model: dict[str, Any]


def scenario(case: Case, images: Images, tasks: int, hidden: list[int], seed: int) -> Scenario:
    """Of a case's name. tasks: of their own permutation; a split has as many as there are pairs of classes."""
    split = case.startswith("split")
    made = tasks_of("classes" if split else "sites", images, tasks, seed)
    each = TASK_CLASSES if split else int(images.train_y.max()) + 1
    if case in ("permuted-domain", "split-domain", "revisits"):
        made = [_labelled(task, task.y % each, task.test_y % each) for task in made]
        return Scenario(made, {**mlp(hidden), "classes": each})
    made = [_of_its_own(task, number * each, each) for number, task in enumerate(made)]
    classes = each * len(made)
    if case.endswith("task"):
        made = [_numbered(task, number) for number, task in enumerate(made)]
        return Scenario(made, {"factory": FACTORY, "args": {"hidden": hidden, "each": each}, "classes": classes})
    return Scenario(made, {**mlp(hidden), "classes": classes})


def _labelled(task: Task, y: Array, test_y: Array) -> Task:
    return replace(task, y=y, test_y=test_y)


def _of_its_own(task: Task, first: int, each: int) -> Task:
    """Labels that no other task has."""
    return _labelled(task, task.y % each + first, task.test_y % each + first)


def _numbered(task: Task, number: int) -> Task:
    def rows(x: Array) -> Array:
        return np.concatenate([x, np.full((len(x), 1), number, x.dtype)], 1)

    return replace(task, x=rows(task.x), test_x=rows(task.test_x))


class Headed(nn.Module):
    """A network whose outputs are in groups, one a task; a row's last entry says which of them are its own."""

    def __init__(self, body: nn.Module, outputs: int, each: int) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("owner", torch.arange(outputs) // each)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, d + 1]; returns logits [n, K], those of other tasks masked."""
        logits: Tensor = self.body(x[:, :-1])
        assert isinstance(self.owner, Tensor)
        return torch.where(self.owner == x[:, -1:], logits, MASKED)


def headed(input_shape: Sequence[int], outputs: int, hidden: Sequence[int], each: int) -> nn.Module:
    """A multilayer perceptron with `each` outputs for every task."""
    (width,) = input_shape
    return Headed(models.mlp((width - 1,), outputs, hidden), outputs, each)
