"""One of several processes that share the rows (`python tests/ranks.py RANK SIZE OUT CASE...`); tests compare what came.

Every case learns a few tasks in float64 and gives what came of it: parameters, posterior, predictions, losses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import nn

from streamcl import Learner
from streamcl.core.ranks import Ranks, stay_on_this_machine
from streamcl.core.reduce import Reduction

Found = dict[str, npt.NDArray[Any]]
FEATURES, CLASSES, PATIENCE = 5, 3, timedelta(seconds=1200)


def learner(reduction: Reduction, model: dict[str, Any] | None = None, **sections: dict[str, Any]) -> Learner:
    settings = {
        "model": {"args": {"hidden": [7], "activation": "tanh"}, "classes": CLASSES, **(model or {})},
        **{name: section for name, section in sections.items() if name != "train"},
        "train": {"dtype": "float64", "device": "cpu", **sections.get("train", {})},
    }
    return Learner(settings, reduction=reduction)


def batches(task: int, real: bool = False, sizes: tuple[int, ...] = (61, 1, 30, 2, 40)) -> Iterator[tuple[Any, Any]]:
    """Of uneven sizes; every task has its own inputs."""
    rng = np.random.default_rng(task)
    for size in sizes:
        x = rng.normal(size=(size, FEATURES)) + task
        score = (x - task) @ np.linspace(-1, 1, FEATURES)
        yield x, score + 0.1 * rng.normal(size=size) if real else np.digitize(score, [-0.5, 0.5]).astype("<i8")


def feed(learner: Learner, task: int, **kind: Any) -> dict[str, Any]:
    for x, y in batches(task, **kind):
        learner.observe(x, y, task=f"task-{task}")
    return learner.boundary(f"task-{task}")


def came(learner: Learner, outcomes: list[dict[str, Any]], x: Any) -> Found:
    answer = learner.predict(x)
    vectors = learner.parameters()
    return {
        "theta": np.asarray(vectors.theta),
        "precision": np.asarray(vectors.precision),
        "losses": np.array([outcome["loss"] for outcome in outcomes]),
        "predicted": np.asarray(next(iter(answer.arrays.values()))),
    }


def tasks(real: bool = False, **sections: Any) -> Callable[[Reduction], Found]:
    """Two of them, one after the other."""

    def case(reduction: Reduction) -> Found:
        made = learner(reduction, **sections)
        outcomes = [feed(made, task, real=real) for task in range(2)]
        return came(made, outcomes, next(batches(0))[0])

    return case


def revisited(reduction: Reduction) -> Found:
    """Fed again, and one withdrawn."""
    made = learner(reduction, REAL, posterior={"mode": "factors"})
    outcomes = [feed(made, task, real=True) for task in range(3)]
    made.revisit("task-0")
    outcomes.append(feed(made, 0, real=True))
    made.forget("task-1")
    return came(made, outcomes, next(batches(0))[0])


DAEMONS: dict[str, Any] = {  # what `test_workers` and `test_links` have a daemon learn
    "model": {"args": {"hidden": [], "activation": "tanh"}, "likelihood": "gaussian"},
    "posterior": {"mode": "factors"},
    "train": {"dtype": "float64", "device": "cpu"},
}
TASKS = 3


def as_a_daemon(reduction: Reduction, revisits: bool = True) -> Found:
    """Three tasks, and the first one again."""
    settings = DAEMONS if revisits else {**DAEMONS, "posterior": {"mode": "single"}}
    made = Learner(settings, reduction=reduction)
    for task in range(TASKS):
        feed(made, task, real=True)
    if revisits:
        made.revisit("task-0")
        feed(made, 0, real=True)
    vectors = made.parameters()
    return {"theta": np.array(vectors.theta), "precision": np.array(vectors.precision)}


def by_drift(reduction: Reduction) -> Found:
    """Tasks that end by themselves, where the stream changes."""
    made = learner(reduction, REAL, stream={"boundary": "drift", "drift_rows": 40})
    outcomes = []
    for task in (0, 3):
        for x, y in batches(task, real=True, sizes=(16,) * 12):
            ended = made.observe(x, y + 5 * task, task="site")
            outcomes += [] if ended is None else [ended]
    outcomes.append(made.boundary("site"))
    return came(made, outcomes, next(batches(0))[0])


def on_frozen(reduction: Reduction) -> Found:
    """An exact head on a network of one's own, whose features are shared out."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Linear(FEATURES, 8), nn.Tanh()).double()
    settings = {"model": {"learner": "exact"}, "train": {"dtype": "float64", "device": "cpu"}}
    made = Learner(settings, module=body, reduction=reduction)
    return came(made, [feed(made, task) for task in range(2)], next(batches(0))[0])


def with_dropout(reduction: Reduction) -> Found:
    """Every process draws for its own rows: the same in all of them, but not what one alone comes to."""
    made = of_module(nn.Sequential(nn.Linear(FEATURES, 6), nn.Dropout(0.3), nn.Tanh(), nn.Linear(6, CLASSES)), reduction)
    return came(made, [feed(made, 0)], next(batches(0))[0])


def of_module(module: nn.Module, reduction: Reduction) -> Learner:
    torch.manual_seed(0)
    for layer in module:
        if hasattr(layer, "reset_parameters"):
            layer.reset_parameters()
    settings = {"model": {"classes": CLASSES}, "train": {"dtype": "float64", "device": "cpu"}}
    return Learner(settings, module=module, reduction=reduction)


REAL = {"likelihood": "gaussian", "classes": "auto"}
WAYS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "diagonal": {"posterior": {"curvature": "diagonal", "expectation": "mode"}},
    "kronecker": {"posterior": {"curvature": "kronecker"}},
    "full": {"posterior": {"curvature": "full"}},
    "monte carlo": {"posterior": {"fisher": "mc"}},
    "empirical": {"posterior": {"fisher": "empirical", "expectation": "mode"}},
    "sgd": {"train": {"optimizer": "sgd", "learning_rate": 0.02}},
    "a given rate": {"train": {"learning_rate": 0.003, "batch_size": 16}},
    "l-bfgs": {"train": {"optimizer": "lbfgs"}},
}
SMALL = {"hidden": [7], "activation": "tanh"}
DEEP = {"hidden": [40, 40]}  # with units that are always off, or always on
ARGS: dict[str, dict[str, Any]] = {"l-bfgs": {"hidden": []}}  # whose end depends on where it began
CASES: dict[str, Callable[[Reduction], Found]] = {
    **{
        name: tasks(real=True, model={**REAL, "args": ARGS.get(name, SMALL)}, **sections) for name, sections in WAYS.items()
    },
    "labels": tasks(),
    "at the mode": tasks(posterior={"curvature": "diagonal", "expectation": "mode"}),
    "units that are off": tasks(model={"args": DEEP}),
    "units that are off, kronecker": tasks(model={"args": DEEP}, posterior={"curvature": "kronecker"}),
    "a diagonal, units that are off": tasks(model={"args": DEEP}, posterior={"curvature": "diagonal"}),
    "exact": tasks(model={"learner": "exact", "args": {}, "classes": "auto"}),
    "exact, on a network": on_frozen,
    "revisits": revisited,
    "drift": by_drift,
    "as a daemon": as_a_daemon,
    "dropout": with_dropout,
}
DRAWS_ITS_OWN = {"dropout"}


def main(rank: int, size: int, out: Path, names: list[str]) -> None:
    stay_on_this_machine()
    store = dist.FileStore(str(out / "store"), size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=PATIENCE)
    ranks = Ranks()  # as on several machines: every step is shared
    for name in names:
        np.savez(out / f"{name}.{rank}.npz", **CASES[name](ranks))
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
