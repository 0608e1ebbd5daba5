"""``streamcl evaluate``: what was learned and forgotten, by the accuracies in a state directory's history."""

from __future__ import annotations

import argparse
import sqlite3
from pathlib import Path
from typing import Any

from streamcl.accuracies import Matrix
from streamcl.cli.common import add_json, command, default_state, print_json, refuse_follower
from streamcl.errors import DataError, StreamclError

MOST_SHOWN = 12  # tasks in the table; the figures are of all
NAME = 14  # characters of a task's name there
SAID = {
    "average_accuracy": "now, mean over the tasks",
    "anytime_accuracy": "mean over all boundaries of the mean over the tasks so far",
    "forgetting": "from each earlier task's best to now",
    "backward_transfer": "from when each earlier task was learned to now",
    "forward_transfer": "on a task just before it was learned, beside nothing learned",
    "calibration_error": "between how sure and how right answers are now",
}


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "evaluate",
        evaluate,
        "What was learned and forgotten, from the accuracies on the tasks' evaluation sets that the daemon has measured "
        "after each boundary (evaluation.directory): the accuracy matrix, average and anytime accuracy, forgetting, "
        "backward and forward transfer, calibration error. Reads the state directory, whether or not its daemon runs. "
        "Sets that are there before their task comes are scored too, which forward transfer needs.",
        "streamcl evaluate --json",
    )
    parser.add_argument("--state-dir", default=default_state(), help="the daemon's state directory")
    add_json(parser)


def evaluate(options: argparse.Namespace) -> int:
    """Print the matrix and the figures. Raises StreamclError where no accuracy is known."""
    matrix = _matrix(Path(options.state_dir))
    if not matrix.now:
        raise StreamclError(
            "no accuracy of any task that stands is in the history: the daemon measures it behind each boundary, on files "
            "TASK.csv, TASK.npz or TASK.parquet in evaluation.directory; set that, and see `streamcl status` for a file "
            "that it cannot use"
        )
    figures, missing = matrix.figures(), matrix.missing()
    if not options.json:
        _print(matrix, figures, missing)
        return 0
    found = {"tasks": matrix.tasks, "accuracy": matrix.rows(), "now": dict(matrix.now)}
    calibration = {task: error for task, (error, _) in matrix.calibration.items()}
    print_json({**found, "nothing_learned": dict(matrix.begun), "calibration": calibration, **figures, "missing": missing})
    return 0


def _matrix(directory: Path) -> Matrix:
    """What the state directory holds. Raises DataError if it cannot be read."""
    from streamcl.storage.matrix import matrix_of
    from streamcl.storage.state import StateDirectory

    history = StateDirectory(directory).history
    try:
        return matrix_of(directory)
    except FileNotFoundError:
        refuse_follower(directory, "evaluate")
        raise DataError(
            f"{history}: there is no history; a daemon keeps one in its state directory: name that with --state-dir"
        ) from None
    except sqlite3.DatabaseError as error:
        raise DataError(f"{history}: not a history that this version reads ({error})") from None


def _print(matrix: Matrix, figures: dict[str, float | None], missing: list[str]) -> None:
    shown = matrix.tasks[-MOST_SHOWN:]
    width = max(len("nothing learned"), *(min(NAME, len(task)) for task in shown)) + 2
    print("accuracy on".ljust(width) + "".join(_short(task).rjust(NAME + 2) for task in shown))
    if any(task in matrix.begun for task in shown):
        print("nothing learned".ljust(width) + "".join(_cell(matrix.begun.get(task)) for task in shown))
    rows = list(zip(matrix.tasks, matrix.rows(), strict=True))[-MOST_SHOWN:]
    for task, row in rows:
        print(_short(task).ljust(width) + "".join(_cell(value) for value in row[-len(shown) :]))
    print("now".ljust(width) + "".join(_cell(matrix.now.get(task)) for task in shown))
    if len(shown) < len(matrix.tasks):
        print(f"the last {len(shown)} of {len(matrix.tasks)} tasks; all of them with --json")
    print()
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):<18} {'not known' if value is None else format(value, '.4f'):>9}  {SAID[name]}")
    for text in missing:
        print(f"note: {text}")


def _short(task: str) -> str:
    return task if len(task) <= NAME else task[: NAME - 1] + "…"


def _cell(value: float | None) -> str:
    return ("-" if value is None else f"{value:.3f}").rjust(NAME + 2)
