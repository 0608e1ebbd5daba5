"""``streamcl bench permuted-mnist``: task after task through the real daemon, one pass, one penalty, nothing set.

MLP 784-200-200-10, and the defaults but for what the command line says. The daemon holds one task's data at a time and,
between tasks, what the posterior takes, which does not grow with their number.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.local import LocalDaemon
from streamcl.bench.permuted import Images, run_tasks
from streamcl.bench.versions import versions
from streamcl.config import Auto
from streamcl.errors import DataError


@dataclass(frozen=True, slots=True)
class Settings:
    """How much of it to run."""

    tasks: int = 10
    epochs: int | Auto = "auto"
    train_rows: int = 10_000

    def configuration(self, seed: int, posterior: dict[str, Any]) -> dict[str, Any]:
        """The daemon's configuration."""
        return {
            "model": {"args": {"hidden": [200, 200]}, "classes": 10},
            "train": {"epochs": self.epochs, "seed": seed},
            "posterior": posterior,
        }


def load_images(path: Path, train_rows: int) -> Images:
    """MNIST-like arrays of an NPZ file, as rows in [0, 1]. Raises DataError."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in ("train_x", "train_y", "test_x", "test_y")}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: expected an NPZ file with train_x, train_y, test_x and test_y: {error}") from None

    def rows(x: Any) -> Any:
        return x.reshape(len(x), -1).astype(np.float32) / np.float32(255)

    return Images(
        rows(arrays["train_x"][:train_rows]),
        arrays["train_y"][:train_rows].astype(np.int64),
        rows(arrays["test_x"]),
        arrays["test_y"].astype(np.int64),
    )


def run(data: Path, scales: list[float], seed: int, settings: Settings, out: Path | None) -> list[dict[str, Any]]:
    """Run every scale, print the figures as they come, and write them to `out`."""
    images = load_images(data, settings.train_rows)
    permutations = images.permutations(settings.tasks, seed)
    print(f"permuted MNIST, {settings.tasks} tasks of {len(images.train_x)} images, epochs a task: {settings.epochs}")
    results = []
    for scale in scales:
        results.append(_run_scale(scale, images, permutations, seed, settings))
        if out is not None:
            out.write_text(json.dumps(document("permuted-mnist", settings, results) | {"seed": seed}, indent=2) + "\n")
    best = max(results, key=lambda result: result["mean_accuracy"])
    print(f"best: {best['method']}, mean accuracy {best['mean_accuracy']:.4f}")
    return results


def _run_scale(scale: float, images: Images, permutations: list[Any], seed: int, settings: Settings) -> dict[str, Any]:
    method = f"single penalty, scale {scale:g}" if scale else "fine-tuning"
    started = time.monotonic()

    def after(number: int, scores: list[float], done: dict[str, Any]) -> None:
        print(
            f"  {method}: after task {number + 1:2d}  mean {np.mean(scores):.4f}  newest {scores[-1]:.4f}",
            flush=True,
        )

    with LocalDaemon(settings.configuration(seed, {"scale": scale})) as daemon:
        matrix = run_tasks(daemon, images, permutations, after)
    result = {
        "method": method,
        "scale": scale,
        "mean_accuracy": float(matrix[-1].mean()),
        "accuracy": [[round(float(value), 4) for value in row if value == value] for row in matrix],
        "seconds": round(time.monotonic() - started, 1),
    }
    print(f"{method}: mean accuracy over the {settings.tasks} tasks {result['mean_accuracy']:.4f}", flush=True)
    return result


def document(benchmark: str, settings: Settings, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures, and what they were taken with."""
    return {
        "benchmark": benchmark,
        "settings": asdict(settings),
        "versions": versions(),
        "results": results,
    }
