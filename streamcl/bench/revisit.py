"""``streamcl bench revisit``: what revisits gain on permuted MNIST, through the real daemon, compared with other methods.

Every method sees the same tasks in the same order and holds one task's data at a time, except joint training, the
ceiling, which gets all of them as one task. A sweep feeds every task once more.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.bench.local import LocalDaemon
from streamcl.bench.permuted import Images, Scores, score_tasks, stream_task, task_name, task_rows
from streamcl.bench.permuted_mnist import Settings, document, load_images
from streamcl.client import Admin, Producer, Reader

Array = npt.NDArray[Any]
SCALES = (1.0, 10.0, 100.0)  # decades, for what needs one


@dataclass(frozen=True, slots=True)
class Method:
    """A configuration of the posterior, and how many sweeps of revisits follow the first pass."""

    name: str
    posterior: dict[str, Any]
    sweeps: int = 0
    joint: bool = False
    follow: bool = False


@dataclass(slots=True)
class Result:
    """Mean accuracy over the tasks after the first pass and after every sweep."""

    method: str
    accuracies: list[float] = field(default_factory=list)
    tasks: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    following: list[dict[str, Any]] = field(default_factory=list)


def methods(sweeps: int, tasks: int) -> Iterator[Method]:
    """Everything that is compared: the defaults, and what is published, in the note's diagonal at each of `SCALES`."""
    yield Method("fine-tuning", {"scale": 0.0})
    for scale in SCALES:
        note = {"curvature": "diagonal", "expectation": "mode", "scale": scale}
        yield Method(f"multi-anchor EWC, scale {scale:g}", {**note, "mode": "multi-anchor"})
        yield Method(f"online EWC, gamma 0.95, scale {scale:g}", {**note, "mode": "online", "gamma": 0.95})
        yield Method(f"the note's single penalty, scale {scale:g}", note)
        yield Method(f"the note's revisits, damping 0.5, scale {scale:g}", {**note, "mode": "factors"}, sweeps)
    gamma = 1 - 1 / tasks
    yield Method(f"online, gamma {gamma:g} (stochastic EP)", {"mode": "online", "gamma": gamma}, sweeps)
    yield Method("single penalty (the defaults)", {})
    yield Method("revisits, whole factors (share 1)", {"mode": "factors", "share": 1.0}, sweeps)
    yield Method("revisits (the defaults)", {"mode": "factors"}, sweeps, follow=True)
    yield Method("joint training", {}, joint=True)


def run(
    data: Path, seeds: list[int], sweeps: int, settings: Settings, only: str, out: Path | None, plot_to: Path | None
) -> dict[str, list[Result]]:
    """Run every method whose name contains `only` with every seed, print the table, write figures and plot."""
    images = load_images(data, settings.train_rows)
    results: dict[str, list[Result]] = {}
    for seed in seeds:
        for method in methods(sweeps, settings.tasks):
            if only not in method.name:
                continue
            result = _run_method(method, images, settings, seed)
            results.setdefault(method.name, []).append(result)
            shown = "  ".join(f"{value:.4f}" for value in result.accuracies)
            print(f"seed {seed}  {method.name:<42} {shown}   ({result.seconds:.0f} s)", flush=True)
            if out is not None:
                out.write_text(json.dumps(_document(results, settings, seeds), indent=2) + "\n")
    _print_table(results, sweeps)
    if plot_to is not None:
        plot(results, plot_to)
    return results


def _run_method(method: Method, images: Images, settings: Settings, seed: int) -> Result:
    result, started = Result(method.name), time.monotonic()
    permutations = images.permutations(settings.tasks, seed)
    with (
        LocalDaemon(settings.configuration(seed, method.posterior)) as daemon,
        daemon.producer("bench") as producer,
        daemon.reader() as reader,
        daemon.admin() as admin,
    ):
        if method.joint:
            _learn_jointly(producer, images, permutations)
        else:
            _first_pass(method, producer, reader, admin, images, permutations, result)
        _score(reader, images, permutations, result)
        for _ in range(method.sweeps):
            for number, permutation in enumerate(permutations):
                producer.revisit(task_name(number))
                stream_task(producer, task_name(number), *task_rows(images, permutation))
            _score(reader, images, permutations, result)
    result.seconds = time.monotonic() - started
    return result


def _learn_jointly(producer: Producer, images: Images, permutations: list[Array]) -> None:
    for permutation in permutations:
        x, y = task_rows(images, permutation)
        for start in range(0, len(x), 256):
            producer.send(x[start : start + 256], y[start : start + 256], "all")
    producer.boundary("all")


def _first_pass(
    method: Method,
    producer: Producer,
    reader: Reader,
    admin: Admin,
    images: Images,
    permutations: list[Array],
    result: Result,
) -> None:
    learned: dict[str, float] = {}
    for number, permutation in enumerate(permutations):
        stream_task(producer, task_name(number), *task_rows(images, permutation))
        if method.follow:
            _follow(reader, admin, images, permutations[: number + 1], learned, result)


def _follow(
    reader: Reader, admin: Admin, images: Images, permutations: list[Array], learned: dict[str, float], result: Result
) -> None:
    """Beside each task's estimated rise, the rise of its loss on held-out rows, which the daemon never sees."""
    scores = score_tasks(reader, images, permutations)
    estimates = {task["task"]: task["penalty_rise"] for task in admin.tasks()}
    for number, score in enumerate(scores):
        name = task_name(number)
        learned.setdefault(name, score.loss)
        if number + 1 < len(scores):
            after = task_name(len(scores) - 1)
            row = {"task": name, "after": after, "estimated": estimates[name], "true": score.loss - learned[name]}
            result.following.append(row)


def _score(reader: Reader, images: Images, permutations: list[Array], result: Result) -> None:
    scores: list[Scores] = score_tasks(reader, images, permutations)
    result.tasks.append([round(score.accuracy, 4) for score in scores])
    result.accuracies.append(float(np.mean([score.accuracy for score in scores])))


def rank_correlation(a: list[float], b: list[float]) -> float:
    """Spearman's rho of two samples without ties."""
    ranks = [np.argsort(np.argsort(values)) for values in (a, b)]
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def correlations(results: list[Result]) -> dict[str, float]:
    """Rank correlation of estimated and true rise: over all tasks and boundaries, and over the tasks at the end."""
    rows = [row for result in results for row in result.following]
    last = [[row for row in result.following if row["after"] == result.following[-1]["after"]] for result in results]
    at_end = [rank_correlation([r["estimated"] for r in rows], [r["true"] for r in rows]) for rows in last]
    everywhere = rank_correlation([row["estimated"] for row in rows], [row["true"] for row in rows])
    return {
        "all tasks and boundaries": everywhere,
        "tasks after the last boundary, mean over seeds": float(np.mean(at_end)),
    }


# -- what is shown -----------------------------------------------------------------------------------------------------


def _print_table(results: dict[str, list[Result]], sweeps: int) -> None:
    columns = "".join(f"{f'{n} sweep' + 's' * (n > 1):>24}" for n in range(1, sweeps + 1))
    print(f"\n{'mean accuracy over the tasks':<42}{'one pass':>24}{columns}")
    for name, runs in results.items():
        cells = zip(*(run.accuracies for run in runs), strict=True)
        print(f"{name:<42}" + "".join(f"{_cell(cell):>24}" for cell in cells))
    followed = [run for runs in results.values() for run in runs if run.following]
    if followed:
        print("\nrank correlation of a task's estimated rise with that of its held-out loss")
        for name, value in correlations(followed).items():
            print(f"  {name}: {value:.3f}")


def _cell(values: tuple[float, ...]) -> str:
    spread = f" ({min(values):.4f}-{max(values):.4f})" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}" + (spread if len(values) > 1 else "")


def _document(results: dict[str, list[Result]], settings: Settings, seeds: list[int]) -> dict[str, Any]:
    rows = [
        {
            "method": name,
            "mean_accuracy": [
                round(float(np.mean(values)), 4) for values in zip(*(r.accuracies for r in runs), strict=True)
            ],
            "by_seed": [[round(value, 4) for value in run.accuracies] for run in runs],
            "by_task": [run.tasks for run in runs],
            "seconds": [round(run.seconds, 1) for run in runs],
        }
        for name, runs in results.items()
    ]
    followed = [run for runs in results.values() for run in runs if run.following]
    extra = (
        {"rank_correlation": correlations(followed), "following": [run.following for run in followed]} if followed else {}
    )
    return document("revisit", settings, rows) | {"seeds": seeds} | extra


def plot(results: dict[str, list[Result]], path: Path) -> None:
    """Accuracy over sweeps, one-pass methods as level lines, joint training as the ceiling; and the rises followed."""
    from streamcl.bench.figure import Figure, save

    followed = [row for runs in results.values() for run in runs for row in run.following]
    figure = Figure(figsize=(14 if followed else 9, 5.2), layout="constrained")
    axes = figure.subplots(1, 2 if followed else 1, squeeze=False, width_ratios=[1.6, 1] if followed else [1])[0]
    most = max(len(run.accuracies) for runs in results.values() for run in runs)
    for name, runs in results.items():
        means = np.mean([run.accuracies for run in runs], axis=0)
        if len(means) > 1:
            axes[0].plot(range(len(means)), means, marker="o", linewidth=2, label=name)
        else:
            style = {"color": "black", "linestyle": "-"} if name == "joint training" else {"linestyle": ":"}
            axes[0].plot([0, most - 1], [means[0]] * 2, label=name, linewidth=1.4, **style)
    axes[0].set_xticks(range(most), ["one pass", *(f"sweep {n}" for n in range(1, most))])
    axes[0].set(ylabel="mean test accuracy over all tasks", title="Permuted MNIST: what revisits gain")
    axes[0].grid(alpha=0.3)
    axes[0].legend(loc="lower right", fontsize=8)
    if followed:
        axes[1].scatter([row["estimated"] for row in followed], [row["true"] for row in followed], s=14)
        axes[1].set(
            xlabel="estimated rise, nats a sample (no data)",
            ylabel="rise of the loss on held-out rows, nats a sample",
            title="Following tasks without their data",
        )
        axes[1].grid(alpha=0.3)
    save(figure, path)
