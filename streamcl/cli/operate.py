"""The operators' commands: status and tasks, boundaries and revisits, predictions, pausing and stopping."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import (
    add_connection,
    add_json,
    admin,
    command,
    event_line,
    print_fields,
    print_json,
    print_table,
    reader,
    said_of_rows_aside,
    show_fields,
)
from streamcl.cli.files import Agreement, add_columns, opened, read_as, say
from streamcl.cli.progress import Silent, display, waited_for
from streamcl.errors import DataError, Refused, StreamclError, Unreachable

if TYPE_CHECKING:
    from streamcl.client import Admin, Prediction, Reader
    from streamcl.datafiles import Array, Reading

PREDICT_ROWS = 4096
SCORES = frozenset({"accuracy", "rmse"})
ASK_SECONDS = 1.0  # between two looks at a daemon that is ending
END_SECONDS = 60.0
TASK_COLUMNS = ["task", "samples", "weight", "loss", "revisits", "penalty", "penalty_rise", "closed", "state"]


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    for name, run, text in (
        ("status", status, "Show what the daemon is doing."),
        ("tasks", tasks, "List the tasks learned so far."),
        ("checkpoint", checkpoint, "Write a checkpoint of everything applied."),
        ("pause", pause, "Stop training; data are still taken in and predictions still answered."),
        ("resume", resume, "Go on training."),
    ):
        parser = command(commands, name, run, text, f"streamcl {name}")
        add_connection(parser, "admin")
        add_json(parser)
        if name == "tasks":
            parser.add_argument("--names", action="store_true", help="print only the names, one a line")
    _add_boundary(commands)
    _add_revisit(commands)
    _add_abandon_and_forget(commands)
    _add_predict(commands)
    _add_export(commands)
    _add_stop(commands)


def _add_boundary(commands: Any) -> None:
    parser = command(
        commands,
        "boundary",
        boundary,
        "Close a task and wait until it is consolidated.",
        "streamcl boundary monday",
    )
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("--weight", type=float, help="lambda_t instead of scale * N_t")
    parser.add_argument(
        "--wait",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="wait until it is consolidated (the default), or return as soon as the boundary is durable",
    )
    add_connection(parser, "admin")
    add_json(parser)


def _add_revisit(commands: Any) -> None:
    parser = command(
        commands,
        "revisit",
        revisit,
        "Reopen a consolidated task (factor mode); then send its data again, and its boundary.",
        "streamcl revisit monday",
    )
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("--damping", type=float, help="0 < d <= 1, instead of posterior.damping")
    add_connection(parser, "admin")
    add_json(parser)


def _add_abandon_and_forget(commands: Any) -> None:
    parser = command(
        commands,
        "abandon",
        abandon,
        "Give up the open revisit: parameters and posterior return to those from before it.",
        "streamcl abandon",
    )
    parser.add_argument("task", metavar="TASK", nargs="?", help="only if this is the task that is being revisited")
    add_connection(parser, "admin")
    add_json(parser)
    parser = command(
        commands,
        "forget",
        forget,
        "Withdraw a task for good (factor mode): its factor is deleted and the posterior recomputed from the others. What "
        "the parameters have learned from it stays until other tasks are revisited; its name cannot be used again.",
        "streamcl forget monday --yes",
    )
    parser.add_argument("task", metavar="TASK")
    parser.add_argument("--yes", action="store_true", help="do not ask")
    add_connection(parser, "admin")
    add_json(parser)
    parser = command(
        commands,
        "history",
        history,
        "Print each task's penalty, and its estimated rise, after every boundary (factor mode).",
        "streamcl history --json",
    )
    add_connection(parser, "admin")
    add_json(parser)


def _add_predict(commands: Any) -> None:
    parser = command(
        commands,
        "predict",
        predict,
        "Predict every row of a data file, one line each; with targets in it, score the predictions too. The score, and "
        "how the file was read, go to standard error, beside the predictions (with --out or --json, they are "
        "among the results).",
        "streamcl predict test.csv --label price",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--samples", type=int, default=0, help="average over this many draws from the posterior")
    add_columns(
        parser,
        "the target's column or array, if the file has one (default: one named label, target, class or y; else the last "
        "column, if the model takes one column fewer; reported)",
    )
    parser.add_argument("--out", type=Path, help="write the predictions to this NPZ file")
    add_connection(parser, "predict")
    add_json(parser)


def _add_export(commands: Any) -> None:
    parser = command(
        commands,
        "export",
        export,
        "Write the model to a directory, for use without streamcl (model.safetensors: every entry of the module's "
        "state_dict; model.json: factory, arguments, labels, likelihood), with the flat parameters and posterior "
        "(parameters.safetensors), tasks and status (export.json). Three lines of PyTorch load it: see docs/howto.md.",
        "streamcl export ./export",
    )
    parser.add_argument("directory", type=Path, metavar="DIR")
    add_connection(parser, "admin")
    add_json(parser)


def _add_stop(commands: Any) -> None:
    parser = command(commands, "stop", stop, "End the daemon once everything durable has been learned.", "streamcl stop")
    parser.add_argument("--no-drain", action="store_true", help="end now; the rest is learned after the next start")
    parser.add_argument("--no-wait", action="store_true", help="do not wait until it has ended")
    add_connection(parser, "admin")
    add_json(parser)


# -- the commands ------------------------------------------------------------------------------------------------------


def status(options: argparse.Namespace) -> None:
    """Print the daemon's status."""
    with admin(options) as daemon:
        said = daemon.status()
    show_fields(options, said if options.json else {**said, "events": [event_line(event) for event in said["events"]]})


def tasks(options: argparse.Namespace) -> None:
    """Print the tasks."""
    with admin(options) as daemon:
        rows = daemon.tasks()
    if options.names:
        for row in rows:
            print(row["task"])
        return
    if options.json:
        print_json({"tasks": rows})
        return
    for row in rows:
        row["closed"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(row["closed_at"]))
    advised = "revisit_rank" in rows[0] if rows else False
    aside = any(row["set_aside"] for row in rows)
    columns = TASK_COLUMNS + ["set_aside"] * aside + ["revisit_rank"] * advised
    print_table(rows, columns, "no task has been consolidated yet")
    best = next((row for row in rows if row.get("revisit_rank") == 1), None)
    if best is not None:
        print(f"A revisit of {best['task']} would repay most: it is {best['revisit_reason']}.")


def boundary(options: argparse.Namespace) -> int:
    """Close a task; exit status 1 if not all of it could be learned."""
    showing = display(options) if options.wait else Silent()
    with admin(options) as daemon, showing as show, waited_for(show, options, options.task):
        done = daemon.boundary(options.task, weight=options.weight, wait=options.wait)
    show_fields(options, done)
    return said_of_rows_aside(done)


def revisit(options: argparse.Namespace) -> None:
    """Reopen a task."""
    with admin(options) as daemon:
        show_fields(options, daemon.revisit(options.task, damping=options.damping))


def abandon(options: argparse.Namespace) -> None:
    """Abandon the open revisit."""
    with admin(options) as daemon:
        show_fields(options, daemon.abandon(options.task))


def forget(options: argparse.Namespace) -> int:
    """Withdraw a task, once the operator is sure."""
    if not options.yes:
        if not sys.stdin.isatty():
            print("streamcl: forget cannot be undone; add --yes", file=sys.stderr)
            return 2
        if input(f"Withdraw task {options.task!r} for good? [y/N] ").strip().lower() not in ("y", "yes"):
            return 1
    with admin(options) as daemon:
        show_fields(options, daemon.forget(options.task))
    return 0


def history(options: argparse.Namespace) -> None:
    """Print the history."""
    with admin(options) as daemon:
        rows = daemon.history()
    if options.json:
        print_json({"history": rows})
    else:
        print_table(rows, ["task", "lsn", "penalty", "penalty_rise"], "no task's penalty has been followed yet")


def checkpoint(options: argparse.Namespace) -> None:
    """Write a checkpoint."""
    with admin(options) as daemon:
        show_fields(options, daemon.checkpoint())


def pause(options: argparse.Namespace) -> None:
    """Pause training."""
    with admin(options) as daemon:
        daemon.pause()
    show_fields(options, {"state": "paused"})


def resume(options: argparse.Namespace) -> None:
    """Resume training."""
    with admin(options) as daemon:
        daemon.resume()
    show_fields(options, {"state": "resumed"})


def stop(options: argparse.Namespace) -> None:
    """Stop the daemon and, unless told otherwise, wait until it has ended."""
    pid = _pid(options)
    with admin(options) as daemon:
        daemon.stop(drain=not options.no_drain)
        if not options.no_wait and pid is not None:
            daemon.timeout = ASK_SECONDS
            _wait_for_end(pid, daemon)
    show_fields(options, {"state": "stopping" if options.no_wait or pid is None else "stopped"})


def _wait_for_end(pid: int, daemon: Admin) -> None:
    """Wait until the daemon has ended; raises Unreachable with its reason if it makes no progress."""
    since = asked = time.monotonic()
    reason = "it does not answer"
    while _lives(pid):
        time.sleep(0.05)
        now = time.monotonic()
        if now - asked > ASK_SECONDS:
            asked = now
            with contextlib.suppress(StreamclError):  # the sockets close before the last process ends
                said = daemon.status()
                reason = said["waiting"] or "it has nothing to do"
                since = time.monotonic() if said["working"] else since
        if now - since > END_SECONDS:
            raise Unreachable(
                f"the daemon (pid {pid}) has not ended, and has made no progress for {END_SECONDS:g} s: {reason}; "
                "`streamcl stop --no-drain` ends it now, and what is stored is learned after the next start"
            )


def _pid(options: argparse.Namespace) -> int | None:
    """The daemon's pid, if it runs on this machine and its state directory was given."""
    path = Path(options.state_dir) / "daemon.json"
    if options.admin or not path.exists():
        return None
    return int(json.loads(path.read_text())["pid"])


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


# -- predictions and parameters ----------------------------------------------------------------------------------------


def predict(options: argparse.Namespace) -> None:
    """Predict a file's rows."""
    import numpy as np

    with reader(options) as daemon:
        file, (answers, targets) = _asked(options, daemon)
    arrays = {name: np.concatenate([answer.arrays[name] for answer in answers]) for name in answers[0].arrays}
    if "probs" in arrays and answers[0].labels is not None:
        arrays["label"] = np.concatenate([answer.label for answer in answers])
    _report(options, file, arrays, np.concatenate(targets) if targets else None, answers[-1].version)


def _asked(options: argparse.Namespace, daemon: Reader) -> tuple[Agreement, tuple[list[Prediction], list[Array]]]:
    """A file, its rows' predictions and their targets.

    A table without a column named like a target may still have one: its last column, if the model takes one fewer.
    """
    data = opened(options, options.file, PREDICT_ROWS, labelled=options.label is not None)
    try:
        agreement = Agreement(data, options.numbers)
        answered = _answers(options, daemon, agreement)
    except Refused as refused:
        if (
            refused.code != "bad_shape"
            or data.choice.label is not None
            or len(data.choice.features) < 2
            or options.features
        ):
            _say(options, data.reading)
            raise
        other = opened(options, options.file, PREDICT_ROWS)
        agreement = Agreement(other, options.numbers)
        try:
            answered = _answers(options, daemon, agreement)
        except Refused:
            _say(options, data.reading)
            raise refused from None
    _say(options, agreement.data.reading)
    return agreement, answered


def _say(options: argparse.Namespace, reading: Reading) -> None:
    say(options, reading, sys.stdout if options.out is not None else sys.stderr)


def _answers(options: argparse.Namespace, daemon: Reader, agreement: Agreement) -> tuple[list[Prediction], list[Array]]:
    def ask(x: Array, y: Array | None) -> tuple[Prediction, Array | None]:
        return daemon.predict(x, samples=options.samples), y

    pairs = list(agreement.blocks(ask, ask))
    return [answer for answer, _ in pairs], [y for _, y in pairs if y is not None]


def _report(options: argparse.Namespace, file: Agreement, arrays: dict[str, Any], y: Any, version: int) -> None:
    import numpy as np

    if options.out is not None:
        with options.out.open("wb") as out:
            np.savez(out, **arrays)
    summary: dict[str, Any] = {"rows": len(next(iter(arrays.values()))), "version": version}
    if y is not None:
        summary |= _scored(file, arrays, y)
    if options.json:
        print_json(summary | {name: array.tolist() for name, array in arrays.items()} | {"read": read_as(file)})
        return
    notes = sys.stdout if options.out is not None else sys.stderr
    print(*file.notes, sep="\n", end="\n" if file.notes else "", file=notes)
    if options.out is not None:
        print_fields(summary)
        return
    name = next(name for name in ("label", "mean", "probs") if name in arrays)
    for value in arrays[name]:
        print(value if np.ndim(value) == 0 else " ".join(f"{v:.6g}" for v in np.ravel(value)))
    sys.stdout.flush()
    for kind in SCORES & summary.keys():
        print(f"{kind} {summary[kind]:.4g} over {summary['rows']} rows", file=sys.stderr)


def _scored(file: Agreement, arrays: dict[str, Any], y: Any) -> dict[str, float]:
    """The score; if the targets do not fit this model, says so instead."""
    try:
        return scores(arrays, y)
    except DataError as error:
        file.notes.append(f"{file.data.path}: not scored: {error}")
        return {}


def scores(arrays: dict[str, Any], y: Any) -> dict[str, float]:
    """Accuracy, or the root mean square error. Raises DataError if the targets' shape differs from the predictions'."""
    import numpy as np

    name = next(name for name in ("label", "probs", "mean") if name in arrays)
    predicted = arrays[name]
    if predicted.size != y.size or len(predicted) != len(y):
        raise DataError(f"expected targets of shape {list(predicted.shape)}, as the predictions, got {list(y.shape)}")
    y = y.reshape(predicted.shape)
    if name == "mean":
        return {"rmse": float(np.sqrt(np.mean((predicted.astype(np.float64) - y) ** 2)))}
    return {"accuracy": float(np.mean(predicted == y if name == "label" else (predicted > 0.5) == y))}


def export(options: argparse.Namespace) -> None:
    """Write the model, parameters, posterior, tasks and status to a directory."""
    from safetensors.numpy import save_file

    with admin(options) as daemon:
        found, description = daemon.export(), {"status": daemon.status(), "tasks": daemon.tasks()}
    parameters = found.vectors
    options.directory.mkdir(parents=True, exist_ok=True)
    vectors = {name: getattr(parameters, name) for name in ("theta", "precision", "shift")}
    layout = {"names": json.dumps(parameters.names), "shapes": json.dumps(parameters.shapes)}
    tensors, texts = options.directory / "parameters.safetensors", options.directory / "export.json"
    save_file(vectors, tensors, metadata=layout)
    texts.write_text(json.dumps({**description, "names": parameters.names, "shapes": parameters.shapes}, indent=2))
    model, state = options.directory / "model.json", options.directory / "model.safetensors"
    model.write_text(json.dumps(found.description, indent=2) + "\n")
    state.write_bytes(found.state)
    written = {"model": model, "state": state, "parameters": tensors, "description": texts}
    left_out = {"left_out": found.description["left_out"]} if found.description["left_out"] else {}
    show_fields(options, {**{name: str(path) for name, path in written.items()}, "size": len(parameters.theta), **left_out})
