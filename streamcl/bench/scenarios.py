"""``streamcl bench scenarios``: what each `model.scenario` can hope for, on the handwritten digits that scikit-learn ships.

Class-incremental: two classes a task, told apart from all others when asked. Task-incremental: the same tasks, and whoever
asks says of which the rows are. Domain-incremental: all ten digits in every task, each with a permutation of the pixels of
its own. Learners of this process, one pass, nothing tuned; a quarter of the rows is to test.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.bench.ablations import Task
from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.versions import versions
from streamcl.estimator import Learner

Array = npt.NDArray[Any]
MESSAGE = 64  # rows
TASKS = 5
SETTINGS: dict[str, Mapping[str, Any]] = {
    "class": {},
    "class, model.classes = 10": {"model.classes": 10},
    "task": {"model.scenario": "task"},
    "task, not told when asked": {"model.scenario": "task"},
    "class, asked with the task": {},
    "domain": {"model.scenario": "domain"},
    "domain, as class": {},
    "domain, model.classes = 10": {"model.classes": 10},
}


@dataclass(slots=True)
class Result:
    """Of one setting: by seed, mean accuracy over all tasks at the end, and seconds."""

    setting: str
    accuracies: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


def tasks(domain: bool, seed: int) -> list[Task]:
    """Of two digits each or, in the domain scenario, of all of them with pixels in another order."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    x, y = (digits.data / 16).astype(np.float32), digits.target.astype(np.int64)
    x, test_x, y, test_y = train_test_split(x, y, test_size=0.25, random_state=seed, stratify=y)
    rng = np.random.default_rng(seed)
    found = []
    for number in range(TASKS):
        if domain:
            pixels = rng.permutation(x.shape[1])
            found.append(Task(f"task-{number}", x[:, pixels], y, test_x[:, pixels], test_y))
        else:
            mine, tested = y // 2 == number, test_y // 2 == number
            order = rng.permutation(int(mine.sum()))
            found.append(Task(f"task-{number}", x[mine][order], y[mine][order], test_x[tested], test_y[tested]))
    return found


def run(
    seeds: Sequence[int], only: str = "", path: Path | None = None, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Every setting whose name contains `only`; prints a line each, and writes figures to `path`."""
    as_in_the_trainer()
    results = []
    for setting in (name for name in SETTINGS if only in name):
        result = Result(setting)
        for seed in seeds:
            started = time.perf_counter()
            result.accuracies.append(_accuracy(setting, tasks(setting.startswith("domain"), seed), seed))
            result.seconds.append(time.perf_counter() - started)
        each = ", ".join(f"{accuracy:.3f}" for accuracy in result.accuracies)
        say(f"{setting:<28} {np.mean(result.accuracies):.3f}   {each}   {np.mean(result.seconds):.0f} s a seed")
        results.append(result)
    figures = {"results": [asdict(result) for result in results], "seeds": list(seeds), "versions": versions()}
    if path is not None:
        path.write_text(json.dumps(figures, indent=1))
    return figures


def _accuracy(setting: str, learned: list[Task], seed: int) -> float:
    learner = Learner({"train.seed": seed, **SETTINGS[setting]})
    for task in learned:
        for start in range(0, len(task.x), MESSAGE):
            learner.observe(task.x[start : start + MESSAGE], task.y[start : start + MESSAGE], task=task.name)
        learner.boundary(task.name)
    return float(np.mean([_right(setting, learner, task).mean() for task in learned]))


def _right(setting: str, learner: Learner, task: Task) -> Array:
    """Which rows are answered right."""
    if setting == "class, asked with the task":  # masks by hand: the best of the labels that the task had
        found = learner.predict(task.test_x)
        assert found.labels is not None
        mine = np.isin(found.labels, np.unique(task.y))
        best: Array = found.labels[mine][found.probs[:, mine].argmax(1)]
        return np.asarray(best == task.test_y)
    named = task.name if setting == "task" else None
    return np.asarray(learner.predict(task.test_x, task=named).label == task.test_y)
