"""``streamcl bench order-bias``: what a penalty at every optimum does to early and late tasks, beside the single one.

The note's claim (section 3): a task's optimum already felt the earlier penalties, so keeping a penalty at every optimum
counts early tasks again and again. On linear-Gaussian tasks everything is exact, and the joint posterior known: the error
by position in the task order is the rules' own. On permuted MNIST, through the daemon: accuracy by position.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from streamcl.bench.local import LocalDaemon
from streamcl.bench.permuted import score_tasks, stream_task, task_name, task_rows
from streamcl.bench.permuted_mnist import Settings, document, load_images
from streamcl.core.consolidation import assumed_density_filtering, multi_anchor
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Precision, observed

Array = npt.NDArray[Any]
Rule = Callable[[Gaussian, Precision, torch.Tensor], Gaussian]
RULES: dict[str, Rule] = {"multi-anchor": multi_anchor, "single penalty": assumed_density_filtering}
FEATURES, ROWS, NOISE, PRIOR = 6, 50, 0.5, 0.3


def run(
    data: Path | None,
    tasks: int,
    repeats: int,
    seeds: list[int],
    scale: float,
    settings: Settings,
    out: Path | None,
    plot_to: Path | None,
) -> dict[str, dict[str, Array]]:
    """Both cases (MNIST if `data` is given), printed as tables, and written and drawn if asked."""
    results = {"linear-Gaussian": linear_gaussian(tasks, repeats)}
    _print("linear-Gaussian, exact: loss above that of the joint posterior mean, 1e-3 nats a sample", results, 1e3)
    if data is not None:
        results["permuted MNIST"] = permuted_mnist(data, seeds, scale, settings)
        _print(f"permuted MNIST, scale {scale:g}: test accuracy, %", {"": results["permuted MNIST"]}, 100)
    if out is not None:
        rows = [
            {"case": case, "method": method, "by_position": values.tolist()}
            for case, methods in results.items()
            for method, values in methods.items()
        ]
        whole = document("order-bias", settings, rows) | {"repeats": repeats, "seeds": seeds, "scale": scale}
        out.write_text(json.dumps(whole, indent=2) + "\n")
    if plot_to is not None:
        plot(results, plot_to)
    return results


def linear_gaussian(tasks: int, repeats: int) -> dict[str, Array]:
    """Mean over data sets: each task's loss at the final mean, above that at the joint posterior mean, [tasks]."""
    errors: dict[str, Array] = {name: np.zeros(tasks) for name in RULES}
    for repeat in range(repeats):
        drawn = _draw(np.random.default_rng(repeat), tasks)
        joint = _joint_mean(drawn)
        for name, rule in RULES.items():
            final = _final_mean(drawn, rule)
            errors[name] += [_loss(x, y, final) - _loss(x, y, joint) for x, y in drawn]
    return {name: error / repeats for name, error in errors.items()}


def _draw(rng: np.random.Generator, tasks: int) -> list[tuple[Array, Array]]:
    """Tasks with one true parameter vector, each with its own input correlations, so that a diagonal is approximate."""
    truth = rng.normal(size=FEATURES)
    drawn = []
    for _ in range(tasks):
        x = rng.normal(size=(ROWS, FEATURES)) @ rng.normal(size=(FEATURES, FEATURES)) / FEATURES**0.5
        drawn.append((x, x @ truth + rng.normal(size=ROWS) * NOISE**0.5))
    return drawn


def _joint_mean(drawn: list[tuple[Array, Array]]) -> Array:
    precision = PRIOR * np.eye(FEATURES) + sum(x.T @ x / NOISE for x, _ in drawn)
    mean: Array = np.linalg.solve(precision, sum(x.T @ y / NOISE for x, y in drawn))
    return mean


def _final_mean(drawn: list[tuple[Array, Array]], rule: Rule) -> Array:
    """The optimum after the last task, each found exactly under the penalty so far."""
    posterior = Gaussian.prior(torch.zeros(FEATURES, dtype=torch.float64), PRIOR)
    theta: Array = np.zeros(FEATURES)
    for x, y in drawn:
        precision = np.diag(posterior.precision.diagonal().numpy()) + x.T @ x / NOISE
        theta = np.linalg.solve(precision, posterior.shift.numpy() + x.T @ y / NOISE)
        posterior = rule(posterior, observed(torch.from_numpy((x**2).sum(0) / NOISE)), torch.from_numpy(theta))
    return theta


def _loss(x: Array, y: Array, theta: Array) -> float:
    return float(0.5 * np.mean((y - x @ theta) ** 2) / NOISE)


def permuted_mnist(data: Path, seeds: list[int], scale: float, settings: Settings) -> dict[str, Array]:
    """Test accuracy of every task after the last, mean over seeds, [tasks]."""
    images = load_images(data, settings.train_rows)
    results = {}
    for name, mode in (("multi-anchor", "multi-anchor"), ("single penalty", "single")):
        rows = []
        for seed in seeds:
            permutations = images.permutations(settings.tasks, seed)
            tree = settings.configuration(seed, {"mode": mode, "scale": scale})
            with LocalDaemon(tree) as daemon, daemon.producer() as producer, daemon.reader() as reader:
                for number, permutation in enumerate(permutations):
                    stream_task(producer, task_name(number), *task_rows(images, permutation))
                rows.append([score.accuracy for score in score_tasks(reader, images, permutations)])
            print(f"  seed {seed}  {name}: mean accuracy {np.mean(rows[-1]):.4f}", flush=True)
        results[name] = np.mean(rows, axis=0)
    return results


# -- what is shown -----------------------------------------------------------------------------------------------------


def _print(title: str, results: dict[str, dict[str, Array]], factor: float) -> None:
    print(f"\n{title}, by position in the task order")
    for methods in results.values():
        positions = len(next(iter(methods.values())))
        print(f"{'':<16}" + "".join(f"{number + 1:>8}" for number in range(positions)) + f"{'mean':>9}")
        for name, values in methods.items():
            print(f"{name:<16}" + "".join(f"{factor * v:8.2f}" for v in values) + f"{factor * values.mean():9.2f}")


def plot(results: dict[str, dict[str, Array]], path: Path) -> None:
    """One panel a case."""
    from streamcl.bench.figure import Figure, save

    figure = Figure(figsize=(6.2 * len(results), 4.4), layout="constrained")
    labels = {
        "linear-Gaussian": "loss above the joint posterior mean's, nats a sample",
        "permuted MNIST": "test accuracy after the last task",
    }
    for axes, (case, methods) in zip(figure.subplots(1, len(results), squeeze=False)[0], results.items(), strict=True):
        for name, values in methods.items():
            axes.plot(range(1, len(values) + 1), values, marker="o", linewidth=2, label=name)
        axes.set(xlabel="position in the task order", ylabel=labels[case], title=case)
        axes.set_xticks(range(1, len(values) + 1))
        axes.grid(alpha=0.3)
        axes.legend()
    save(figure, path)
