"""The operators' commands: status and tasks, boundaries and revisits, exports, pausing and stopping."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli import readable
from streamcl.cli.common import (
    add_connection,
    add_json,
    admin,
    command,
    event_line,
    lives,
    print_fields,
    print_json,
    print_table,
    said_of_rows_aside,
    show_fields,
)
from streamcl.cli.progress import Silent, display, waited_for
from streamcl.errors import StreamclError, Unreachable
from streamcl.storage.exported import SUMS

if TYPE_CHECKING:
    from streamcl.client import Admin

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
    if options.json:
        print_json(said)
        return
    events = [event_line(event) for event in said["events"]]
    if "follows" in said:
        known = {name: value for name, value in said.items() if value is not None}
        if "published_at" in known:
            known["published_at"] = readable.time_of(known["published_at"])
        print_fields({**known, "events": events})
        return
    kept: dict[str, Any] = {"curvature": _curvature(said.get("curvature", {})), "past": _past(said.get("past") or {})}
    kept["schema"] = ", ".join(f"{column['name']} ({column['kind']})" for column in said.get("schema") or ())
    print_fields({**said, **kept, "events": events})


def _past(past: Mapping[str, Any]) -> dict[str, Any]:
    """What all tasks have lost together; of a daemon that does not say, nothing."""
    if not past:
        return {}
    found = {"tasks": past["tasks"], "samples": past["samples"], "rise": "-"}
    if past["rise"] is not None:
        found["rise"] = f"{readable.rise(past['rise'], past['rise_bound'])} (estimated, nats a sample)"
    return found


def _curvature(kept: Mapping[str, Any]) -> dict[str, str]:
    """How precisions are kept, a line for each way; of a daemon that does not say, nothing."""
    lines = {"setting": str(kept.get("setting", "-"))}
    if not kept.get("settled"):
        return lines | {"by layer": "decided at the first boundary (`streamcl plan` says how)"}
    if "features" in kept:  # an exact learner's
        return lines | {"features": str(kept["features"])}
    for kind in ("turned", "full_blocks", "own_coordinates"):
        these = kept[kind]
        lines[kind] = f"{these['parameters']:,} parameters: {', '.join(these['names'])}" if these["parameters"] else "none"
    return lines


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
        row["closed"] = readable.time_of(row["closed_at"])
        if row.get("rise_bound"):
            row["penalty_rise"] = readable.rise(row["penalty_rise"], row["rise_bound"])
        row["at_chance"] = "at chance" if row.get("at_chance") else ""
    advised = "revisit_rank" in rows[0] if rows else False
    aside = any(row["set_aside"] for row in rows)
    lost = any(row["at_chance"] for row in rows)
    columns = TASK_COLUMNS + ["set_aside"] * aside + ["revisit_rank"] * advised + ["at_chance"] * lost
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
    while lives(pid):
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


# -- predictions and parameters ----------------------------------------------------------------------------------------


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
    if found.sums is not None:
        written["sums"] = options.directory / SUMS
        written["sums"].write_bytes(found.sums)
    left_out = {"left_out": found.description["left_out"]} if found.description["left_out"] else {}
    show_fields(options, {**{name: str(path) for name, path in written.items()}, "size": len(parameters.theta), **left_out})
