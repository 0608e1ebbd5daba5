"""Network, exact head, or both, on the kinds of streams that there are.

Learners in this process at their defaults, nothing tuned. Streams are made of the digits of scikit-learn (1,797 images, a
quarter held out) or of an NPZ file with train_x, train_y, test_x and test_y:

    classes    two classes a task, each output new; scored on all classes at the end
    split      two classes a task, told apart by one output: the second of the pair or not; on all pairs at the end
    permuted   the pixels of every task in an order of their own; on all orders at the end
    drifting   every task calls the classes by the next label; on the newest task alone: the past is wrong by then

The methods:

    network     streamcl's default
    exact       sums of random features
    half-life   the same, a row counting half after a quarter of a task; on the drifting stream
    both        a network's body, trained on the first task and frozen, under an exact head
    refreshed   a network that learns on, and an exact head on its body: a task's sums are taken at its boundary, under the
                body as it is then, and are not taken again (the rows are gone) when the body moves on
    joint       what the exact head is to come near, on the classes alone: logistic regression on the same features of all
                rows at once, its penalty chosen on a fifth of them
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamcl.bench.exact.joint import jointly
from streamcl.core import heads
from streamcl.core.moments import Moments
from streamcl.estimator import Learner

Array = npt.NDArray[Any]
TASKS, BATCH = 5, 200
KINDS = ("classes", "split", "permuted", "drifting")
METHODS = ("network", "exact", "half-life", "both", "refreshed", "joint")
ONLY = {"half-life": "drifting", "joint": "classes"}  # methods that are of one stream


@dataclass(frozen=True, slots=True)
class Images:
    """Rows and labels, to learn and held out."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


@dataclass(frozen=True, slots=True)
class Task:
    """Rows of a task, and those that it is scored on."""

    x: Array
    y: Array
    test_x: Array
    test_y: Array


@dataclass(frozen=True, slots=True)
class Row:
    """One method on one stream: accuracies and seconds, one of each seed."""

    stream: str
    method: str
    accuracies: list[float]
    seconds: list[float]


def digits(seed: int) -> Images:
    """scikit-learn's, a quarter held out."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = np.split(order, [3 * len(x) // 4])
    return Images(x[train].astype("<f4"), y[train].astype("<i8"), x[test].astype("<f4"), y[test].astype("<i8"))


def load(path: Path) -> Images:
    """An NPZ file's, as real numbers."""
    with np.load(path, allow_pickle=False) as file:
        found = {name: file[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    x, test_x = (found[name].astype("<f4") for name in ("train_x", "test_x"))
    return Images(x, found["train_y"].astype("<i8"), test_x, found["test_y"].astype("<i8"))


def streams(images: Images, seed: int) -> dict[str, list[Task]]:
    """The tasks of every kind of stream."""
    pairs = [(np.isin(images.y, (2 * k, 2 * k + 1)), np.isin(images.test_y, (2 * k, 2 * k + 1))) for k in range(TASKS)]
    classes = [Task(images.x[a], images.y[a], images.test_x[b], images.test_y[b]) for a, b in pairs]
    split = [Task(each.x, each.y % 2, each.test_x, each.test_y % 2) for each in classes]
    rng = np.random.default_rng(seed)
    width = images.x.shape[1]
    orders = [np.arange(width), *(rng.permutation(width) for _ in range(TASKS - 1))]
    permuted = [Task(images.x[:, order], images.y, images.test_x[:, order], images.test_y) for order in orders]
    parts = np.array_split(rng.permutation(len(images.x)), TASKS)
    drifting = [
        Task(images.x[part], (images.y[part] + k) % 10, images.test_x, (images.test_y + k) % 10)
        for k, part in enumerate(parts)
    ]
    return {"classes": classes, "split": split, "permuted": permuted, "drifting": drifting}


OF_TEN = {"model": {"classes": 10}}


def _learner(method: str, tasks: Sequence[Task], seed: int) -> Learner:
    """With nothing learned. tasks: of the stream, whose length a half-life goes by."""
    tree: dict[str, Any] = {"train": {"seed": seed}}
    if method == "network":
        return Learner({**tree, **OF_TEN})
    tree["model"] = {"learner": "exact"}
    if method == "both":
        return Learner(tree, _Body(_trained(tasks[0], seed)))
    tree["model"]["args"] = {"seed": seed}
    if method == "half-life":
        tree["posterior"] = {"half_life": float(len(tasks[0].x)) / 4}
    return Learner(tree)


class _Body(nn.Module):
    """All of a network but its last layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*list(network.children())[:-1])

    def forward(self, x: Tensor) -> Tensor:
        """x: rows."""
        found: Tensor = self.layers(x)
        return found


def _trained(task: Task, seed: int) -> nn.Module:
    learner = Learner({"train": {"seed": seed}, **OF_TEN})
    _feed(learner, "first", task)
    return learner.module


def _feed(learner: Learner, name: str, task: Task) -> None:
    for start in range(0, len(task.x), BATCH):
        learner.observe(task.x[start : start + BATCH], task.y[start : start + BATCH], task=name)
    learner.boundary(name)


def score(learner: Learner, tasks: Sequence[Task]) -> float:
    """The share of held-out rows of these tasks that is predicted right."""
    right = [_right(learner, task) for task in tasks]
    return float(np.concatenate(right).mean())


def _right(learner: Learner, task: Task) -> Array:
    found = learner.predict(task.test_x)
    assert found.labels is not None
    right: Array = found.labels[found.probs.argmax(1)] == task.test_y
    return right


def compare(
    images: Callable[[int], Images], seeds: Sequence[int], kinds: Sequence[str], methods: Sequence[str] = METHODS
) -> Iterator[Row]:
    """Every method on every kind of stream."""
    for kind in kinds:
        for method in (method for method in methods if ONLY.get(method, kind) == kind):
            found = [_run(streams(images(seed), seed)[kind], kind, method, seed) for seed in seeds]
            yield Row(kind, method, [accuracy for accuracy, _ in found], [seconds for _, seconds in found])


def _run(tasks: Sequence[Task], kind: str, method: str, seed: int) -> tuple[float, float]:
    started = time.monotonic()
    scored = tasks[-1:] if kind == "drifting" else tasks
    if method == "refreshed":
        return _refreshed(tasks, scored, seed), time.monotonic() - started
    learner = _learner(method, tasks, seed)
    for number, task in enumerate(tasks):
        _feed(learner, f"task-{number}", task)
    if method == "joint":
        started = time.monotonic()
        return _jointly(learner, tasks), time.monotonic() - started
    return score(learner, scored), time.monotonic() - started


def _jointly(learner: Learner, tasks: Sequence[Task]) -> float:
    """By the features of a learner that has settled the scale of its input."""
    x, y, test_x, test_y = (
        np.concatenate([getattr(task, name) for task in tasks]) for name in ("x", "y", "test_x", "test_y")
    )
    body = learner.module.get_submodule("body")
    return jointly(_features(body, x), y, _features(body, test_x), test_y)


def _features(body: nn.Module, x: Array) -> Array:
    """[n, d]."""
    with torch.no_grad():
        found: Array = body(torch.from_numpy(x)).numpy()
    return found


def _refreshed(tasks: Sequence[Task], scored: Sequence[Task], seed: int) -> float:
    """Accuracy of an exact head on the body of a network that has learned all tasks."""
    learner, total = Learner({"train": {"seed": seed}}), None
    for number, task in enumerate(tasks):
        _feed(learner, f"task-{number}", task)
        phi = torch.from_numpy(_features(_Body(learner.module), task.x)).double()
        own = Moments.of(phi, torch.from_numpy(task.y), int(task.y.max()) + 1)
        total = own if total is None else total.plus(own)
    assert total is not None
    head, body = heads.discriminant(total).head, _Body(learner.module)
    right = [_told(head, _features(body, task.test_x)) == task.test_y for task in scored]
    return float(np.concatenate(right).mean())


def _told(head: heads.Head, features: Array) -> Array:
    found: Array = head.outputs(torch.from_numpy(features).double()).argmax(1).numpy()
    return found
