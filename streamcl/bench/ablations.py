"""``streamcl bench ablations``: what each part of the method is worth, in one pass, with nothing else set.

Two cases. Sites: every task has its own permutation of the pixels. Classes: every task has two of the classes, and one
output for each of them all from the beginning (class-incremental, no masks). On scikit-learn's digits, or on the MNIST of
``--data``. Each method leaves one part out; two of them, Adam's coordinates and the bound, cannot be chosen by users and
are swapped here. In process: the daemon learns by the same code.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import numpy.typing as npt

from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.demo import digits
from streamcl.bench.permuted import BATCH_ROWS, Images
from streamcl.bench.permuted_mnist import load_images
from streamcl.bench.versions import versions
from streamcl.config import Config
from streamcl.estimator import Learner
from streamcl.learning.coordinates import Coordinates
from streamcl.learning.curvature import TaskCurvature

Array = npt.NDArray[Any]
Case = Literal["sites", "classes"]
CLASSES = 10  # outputs, unless the model's section says otherwise
CASES: tuple[Case, ...] = ("sites", "classes")
Swap = Callable[[], contextlib.AbstractContextManager[Any]]
TINY = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True)
class Task:
    """Rows to learn from and to score, [n, pixels] and [n]."""

    name: str
    x: Array
    y: Array
    test_x: Array
    test_y: Array


@dataclass(frozen=True, slots=True)
class Method:
    """What differs from the defaults: keys of the configuration, or code. joint: all tasks as one.

    Each has as many epochs as the defaults give a task.
    """

    name: str
    posterior: Mapping[str, Any] = field(default_factory=dict)
    train: Mapping[str, Any] = field(default_factory=dict)
    swap: Swap = contextlib.nullcontext
    joint: bool = False


@dataclass(frozen=True, slots=True)
class Result:
    """Accuracy on every task after the last one, and the mean log loss there, nats a row. passes: the mean after each."""

    case: str
    method: str
    seed: int
    accuracy: list[float]
    loss: float
    seconds: float
    passes: tuple[float, ...] = ()

    @property
    def mean(self) -> float:
        """Over the tasks."""
        return float(np.mean(self.accuracy))

    def row(self) -> dict[str, Any]:
        """As it is written."""
        figures: dict[str, Any] = {"mean": round(self.mean, 4), "accuracy": self.accuracy, "log_loss": round(self.loss, 4)}
        if len(self.passes) > 1:
            figures["passes"] = list(self.passes)
        return {"case": self.case, "method": self.method, "seed": self.seed, **figures, "seconds": self.seconds}


def _own_coordinates() -> contextlib.AbstractContextManager[Any]:
    """Adam works on the parameters as they are; the penalty's gradient is turned at every step."""
    return patch.object(Coordinates, "of", staticmethod(lambda *given: None))


def _unbounded() -> contextlib.AbstractContextManager[Any]:
    """The curvature of a class that a task lacks is what it is: next to nothing."""
    return patch.object(TaskCurvature, "_chosen_likelihood", lambda self: self._network.likelihood)


NOTE = {"curvature": "diagonal", "expectation": "mode"}
METHODS = (
    Method("all parts (the defaults)"),
    Method("without the basis", {"curvature": "diagonal"}),
    Method("without the average: at the mode", {"expectation": "mode"}),
    Method("without Adam in the basis", swap=_own_coordinates),
    Method("without the bound on absent classes", swap=_unbounded),
    *(Method(f"the note's diagonal at the mode, scale {scale}", {**NOTE, "scale": float(scale)}) for scale in (1, 10, 100)),
    Method("fine-tuning", {"scale": 0.0}),
    Method("joint training", joint=True),
)


def run(
    data: Path | None,
    cases: list[Case],
    tasks: int,
    seeds: list[int],
    only: str,
    out: Path | None,
    methods: Sequence[Method] = METHODS,
    benchmark: str = "ablations",
) -> list[Result]:
    """Every method whose name contains `only`, printed as it comes and as a table, and written to `out`."""
    images, hidden = (digits(), [256, 256]) if data is None else (load_images(data, 10_000), [200, 200])
    results = []
    for case, seed in ((case, seed) for case in cases for seed in seeds):
        made = tasks_of(case, images, tasks, seed)
        for method in methods:
            if only in method.name:
                results.append(measure(method, case, made, mlp(hidden), seed))
                _say(results[-1])
                _write(out, results, data, tasks, hidden, benchmark)
    print_table(results)
    return results


def mlp(hidden: list[int]) -> dict[str, Any]:
    """The model's section for a multilayer perceptron of these widths."""
    return {"args": {"hidden": hidden}}


def tasks_of(case: Case, images: Images, tasks: int, seed: int) -> list[Task]:
    """Sites: as many as are asked for. Classes: two a task, as many tasks as that makes."""
    if case == "sites":
        return [
            Task(f"site-{number + 1}", images.train_x[:, order], images.train_y, images.test_x[:, order], images.test_y)
            for number, order in enumerate(images.permutations(tasks, seed))
        ]
    pairs = range(0, int(images.train_y.max()) + 1, 2)
    return [_of_classes(images, first) for first in pairs]


def _of_classes(images: Images, first: int) -> Task:
    train, test = images.train_y // 2 == first // 2, images.test_y // 2 == first // 2
    name = f"classes-{first}-{first + 1}"
    return Task(name, images.train_x[train], images.train_y[train], images.test_x[test], images.test_y[test])


def measure(method: Method, case: str, tasks: list[Task], model: Mapping[str, Any], seed: int, passes: int = 1) -> Result:
    """Learn every task in turn, each in its own order of rows, and score them all at the end.

    model: the section. passes: as many times; each but the first is a sweep of revisits.
    """
    started, means = time.monotonic(), []
    with as_in_the_trainer(), method.swap():
        learner = learner_of(method, tasks, model, seed)
        for number in range(passes):
            for name, x, y in streamed(tasks, method.joint, seed):
                if number:
                    learner.revisit(name)
                teach(learner, name, x, y)
            scores = [scored(learner, task) for task in tasks]
            means.append(round(float(np.mean([accuracy for accuracy, _ in scores])), 4))
    return result_of(case, method.name, seed, scores, started, means)


def learner_of(method: Method, tasks: list[Task], model: Mapping[str, Any], seed: int) -> Learner:
    """One that has learned nothing yet, with as many epochs as the defaults give a task."""
    train = {"seed": seed, "epochs": Config().epochs(len(tasks[0].x)), **method.train}
    return Learner({"model": {"classes": CLASSES, **model}, "train": train, "posterior": dict(method.posterior)})


def teach(learner: Learner, name: str, x: Array, y: Array) -> None:
    """One task, in batches, with its boundary."""
    for start in range(0, len(x), BATCH_ROWS):
        learner.observe(x[start : start + BATCH_ROWS], y[start : start + BATCH_ROWS], task=name)
    learner.boundary(name)


def streamed(tasks: list[Task], joint: bool, seed: int) -> Iterator[tuple[str, Array, Array]]:
    """Name, rows and labels of every task, or of all as one, in an order of rows that the seed draws."""
    rng = np.random.default_rng(seed)
    parts = [(task.name, task.x, task.y) for task in tasks]
    if joint:
        parts = [("all", np.concatenate([task.x for task in tasks]), np.concatenate([task.y for task in tasks]))]
    for name, x, y in parts:
        order = rng.permutation(len(x))
        yield name, np.ascontiguousarray(x[order]), y[order]


def scored(learner: Learner, task: Task) -> tuple[float, float]:
    """Accuracy and log loss of a task's test rows."""
    return score(learner.predict(np.ascontiguousarray(task.test_x)).probs, task.test_y)


def score(probs: Array, y: Array) -> tuple[float, float]:
    """Accuracy of probabilities [n, K] for labels [n], and their log loss in nats a row."""
    likelihood = np.maximum(probs[np.arange(len(y)), y], TINY)
    return float((probs.argmax(1) == y).mean()), float(-np.log(likelihood).mean())


def result_of(
    case: str, method: str, seed: int, scores: list[tuple[float, float]], started: float, passes: Sequence[float] = ()
) -> Result:
    """Of the scores of every task, in turn; started: on the monotonic clock."""
    accuracy, loss = zip(*scores, strict=True)
    seconds = round(time.monotonic() - started, 1)
    return Result(case, method, seed, [round(each, 4) for each in accuracy], float(np.mean(loss)), seconds, tuple(passes))


# -- what is shown -----------------------------------------------------------------------------------------------------


def _say(result: Result) -> None:
    shown = " ".join(f"{value:.3f}" for value in result.accuracy)
    print(
        f"{result.case} {result.seed}  {result.method:<42} {result.mean:.4f}  {shown}  ({result.seconds:.0f} s)", flush=True
    )


def print_table(results: list[Result]) -> None:
    """Mean over the seeds, the least and the largest, and the log loss, of each method in each case."""
    for case in dict.fromkeys(result.case for result in results):
        print(f"\n{case}: accuracy over all tasks after the last{'least':>14}{'largest':>9}{'log loss':>10}")
        for method in dict.fromkeys(result.method for result in results):
            found = [result for result in results if (result.case, result.method) == (case, method)]
            means = [result.mean for result in found]
            if found:
                loss = np.mean([result.loss for result in found])
                print(f"{method:<42}{np.mean(means):9.4f}{min(means):9.4f}{max(means):9.4f}{loss:10.3f}")


def _write(
    out: Path | None, results: list[Result], data: Path | None, tasks: int, hidden: list[int], benchmark: str
) -> None:
    if out is None:
        return
    settings = {"data": "digits" if data is None else data.name, "sites": tasks, "hidden": hidden}
    rows = [result.row() for result in results]
    whole = {"benchmark": benchmark, "settings": settings, "versions": versions(), "results": rows}
    out.write_text(json.dumps(whole, indent=2) + "\n")
