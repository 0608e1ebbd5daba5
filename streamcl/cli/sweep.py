"""``streamcl sweep``: every task's data file fed once more, sweep after sweep, until the posterior hardly moves."""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import (
    add_connection,
    add_json,
    admin,
    command,
    print_json,
    print_table,
    producer,
    reader,
)
from streamcl.cli.files import Agreement, add_columns, fit_as_predicted, opened, placed, read_as, say, streamed
from streamcl.cli.predict import scores
from streamcl.cli.progress import Silent, display
from streamcl.errors import DataError, StreamclError

if TYPE_CHECKING:
    from streamcl.cli.bars import Bars
    from streamcl.client import Admin, Prediction, Producer, Reader
    from streamcl.datafiles import DataFile

ORDERS = ("given", "reverse", "random", "advised")
PRODUCER = "sweep"


@dataclass(frozen=True, slots=True)
class TaskFile:
    """A task, the file with its data, and the form in which the daemon takes them."""

    task: str
    data: DataFile
    agreement: Agreement


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "sweep",
        sweep,
        "Revisit tasks from their data files (factor mode), sweep after sweep. A task that the daemon does not know yet is "
        "learned first. Reports the score and how far the posterior mean moved, and stops once it moves less than the "
        "tolerance. Interrupted, the revisit under way is abandoned and nothing else is lost.",
        "streamcl sweep monday.csv tuesday.csv --order reverse --damping 0.5 --sweeps 3",
    )
    parser.add_argument(
        "files", nargs="+", metavar="[TASK=]FILE", help="the task is the file's name without its extension, unless given"
    )
    parser.add_argument("--order", choices=ORDERS, default="given", help="advised: the highest estimated rise first")
    parser.add_argument("--seed", type=int, default=0, help="of --order random")
    parser.add_argument("--damping", type=float, help="0 < d <= 1, instead of posterior.damping")
    parser.add_argument("--sweeps", type=int, default=3, help="at most how many (default 3)")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-3,
        help="stop once a sweep moves the posterior mean by less than this, relative to its length (default 0.001)",
    )
    parser.add_argument(
        "--test", nargs="+", default=[], metavar="[TASK=]FILE", help="score these files instead of the data"
    )
    add_columns(
        parser, "the target's column or array (default: label, target, class or y, by name, else the last; reported)"
    )
    parser.add_argument("--rows", type=int, default=256, help="rows a batch (default 256; fewer if large)")
    add_connection(parser, "stream", "predict", "admin")
    add_json(parser)


def sweep(options: argparse.Namespace) -> int:
    """Learn what is new, then sweep."""
    if options.sweeps < 1 or options.rows < 1 or options.tolerance < 0:
        print("streamcl: expected --sweeps and --rows of at least 1, and --tolerance of at least 0", file=sys.stderr)
        return 2
    files = [_task_file(text, options) for text in options.files]
    tests = [_task_file(text, options) for text in options.test] or files
    if len({file.task for file in files}) < len(files):
        raise DataError("two files name the same task; write TASK=FILE")
    every = files if tests is files else [*files, *tests]
    for file in every:
        say(options, file.data.reading)
    with (
        admin(options) as operator,
        reader(options) as model,
        producer(options, PRODUCER) as stream,
        display(options) as show,
    ):
        rows = _swept(_Walk(options, operator, model, stream, show), files, tests)
    _print(options, rows, every)
    return 0


def _swept(walk: _Walk, files: list[TaskFile], tests: list[TaskFile]) -> list[dict[str, Any]]:
    """The report before the first sweep and after each."""
    known = {task["task"] for task in walk.operator.tasks()}
    for file in files:
        if file.task not in known:
            walk.feed(file, f"learning {file.task}")
    rows = [walk.report(0, tests, None, 0.0)]
    with walk.show.counting("sweeps", walk.options.sweeps * len(files), "revisits") as advance:
        for number in range(1, walk.options.sweeps + 1):
            rows.append(walk.sweep(number, files, tests, advance))
            if rows[-1]["movement"] < walk.options.tolerance:
                break
    return rows


def _task_file(text: str, options: argparse.Namespace) -> TaskFile:
    task, equals, path = text.rpartition("=")
    data = opened(options, Path(path), options.rows, known=streamed(options))
    return TaskFile(task if equals else Path(path).stem, data, Agreement(data, options.numbers))


@dataclass(frozen=True, slots=True)
class _Walk:
    """The order in which the tasks are visited."""

    options: argparse.Namespace
    operator: Admin
    model: Reader
    stream: Producer
    show: Bars | Silent

    def sweep(
        self, number: int, files: list[TaskFile], tests: list[TaskFile], advance: Callable[[int], None]
    ) -> dict[str, Any]:
        """Every task once; returns the report."""
        started, before = time.monotonic(), self._mean()
        for at, file in enumerate(self._ordered(number, files), start=1):
            self.stream.revisit(file.task, self.options.damping)
            try:
                self.feed(file, f"sweep {number}/{self.options.sweeps}, {at}/{len(files)} {file.task}")
            except BaseException:
                with contextlib.suppress(StreamclError):  # it may be closed already, or the daemon may be gone
                    self.operator.abandon(file.task)
                raise
            advance(1)
        return self.report(number, tests, before, time.monotonic() - started)

    def feed(self, file: TaskFile, text: str) -> None:
        """One task's data and its boundary."""
        base = self.stream.durable
        fit_as_predicted(file.data, self.model)
        self.stream.left_out = file.data.left_out

        def send(x: Any, y: Any, schema: Any) -> int:
            self.stream.send(x, y, file.task, schema=schema)
            return len(x)

        def send_first(x: Any, y: Any, schema: Any) -> int:
            send(x, y, schema)
            self.stream.flush()  # so that a refusal comes now
            return len(x)

        with (
            self.show.counting(text, file.data.count()) as advance,
            placed(file.data, lambda seq: (seq - 1 - base) * file.data.block_rows, stored=False),
        ):
            for count in file.agreement.blocks(send_first, send):
                advance(count)
            self.stream.flush()
        with self.show.waiting(file.task, lambda: admin(self.options)):
            self.stream.boundary(file.task)

    def report(self, number: int, tests: list[TaskFile], before: Any, seconds: float) -> dict[str, Any]:
        """The scores of every test file, and how far the posterior mean has moved."""
        by_task = {file.task: self._score(file.agreement) for file in tests}
        (kind,) = {name for score in by_task.values() for name in score}
        values = [score[kind] for score in by_task.values()]
        movement = None if before is None else _movement(before, self._mean())
        row = {"sweep": number, kind: sum(values) / len(values), "movement": movement, "seconds": seconds}
        moved = "" if movement is None else f", the posterior mean moved by {movement:.2e}"
        self.show.note(f"sweep {number}: mean {kind} {row[kind]:.4f}{moved}")
        return {**row, "by_task": {task: score[kind] for task, score in by_task.items()}}

    def _ordered(self, number: int, files: list[TaskFile]) -> list[TaskFile]:
        match self.options.order:
            case "reverse":
                return files[::-1]
            case "random":
                return random.Random(f"{self.options.seed}/{number}").sample(files, len(files))
            case "advised":
                ranks = {task["task"]: task["revisit_rank"] or len(files) + 1 for task in self.operator.tasks()}
                return sorted(files, key=lambda file: ranks[file.task])
        return files

    def _mean(self) -> Any:
        import numpy as np

        got = self.operator.parameters()
        return np.divide(got.shift, got.precision, out=np.zeros_like(got.shift), where=got.precision > 0)

    def _score(self, file: Agreement) -> dict[str, float]:
        import numpy as np

        fit_as_predicted(file.data, self.model)

        def ask(x: Any, y: Any, schema: Any) -> Prediction:
            return self.model.predict(x, schema=schema)

        answers = list(file.blocks(ask, ask))
        targets = [file.data.targets(y) for _, y in file.data.blocks() if y is not None]
        arrays = {name: np.concatenate([a.arrays[name] for a in answers]) for name in answers[0].arrays}
        if answers[0].labels is not None:
            arrays["label"] = np.concatenate([answer.label for answer in answers])
        return scores(arrays, np.concatenate(targets))


def _movement(before: Any, after: Any) -> float:
    import numpy as np

    return float(np.linalg.norm(after - before) / max(np.linalg.norm(after), np.finfo(float).tiny))


def _print(options: argparse.Namespace, rows: list[dict[str, Any]], files: list[TaskFile]) -> None:
    if options.json:
        print_json({"sweeps": rows, "read": [{"task": file.task, **read_as(file.agreement)} for file in files]})
        return
    for file in files:
        print(*file.agreement.notes, sep="\n", end="\n" if file.agreement.notes else "")
    kind = next(name for name in rows[0] if name in ("accuracy", "rmse"))
    print_table(rows, ["sweep", kind, "movement", "seconds"], "nothing was swept")
