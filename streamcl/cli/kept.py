"""Commands for what could not be learned, and for what was learned wrongly."""

from __future__ import annotations

import argparse
import sys
import time
from typing import Any

from streamcl.cli.common import (
    add_connection,
    add_json,
    admin,
    command,
    print_json,
    print_table,
    said_of_rows_aside,
    show_fields,
)
from streamcl.cli.progress import display, waited_for
from streamcl.entries import undone_in_words


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    for name, run, text in (
        (
            "retry",
            retry,
            "Try again to learn what could not be learned of a task and was kept: a held task, or batches that were set "
            "aside. Waits until no task is open, then until it is learned; exit status 1 if it fails again. The "
            "daemon uses "
            "the model's code as it was at the start: a corrected one needs a restart, which tries again by itself.",
        ),
        (
            "drop",
            drop,
            "Give up what was kept of a task because it could not be learned: its rows are deleted, unlearned. A held "
            "task's name may be used again.",
        ),
        (
            "rollback",
            rollback,
            "Undo a task's newest boundary, or revisit, and everything learned since: parameters and posterior return to "
            "exactly those from before it. The tasks' names may be used again; an open task stays open, and is "
            "learned from "
            "there. Possible for the last posterior.keep boundaries, but not past a withdrawal.",
        ),
    ):
        parser = command(commands, name, run, text, f"streamcl {name} monday" + " --yes" * (name != "retry"))
        parser.add_argument("task", metavar="TASK")
        if name != "retry":
            parser.add_argument("--yes", action="store_true", help="do not ask")
        add_connection(parser, "admin")
        add_json(parser)
    for name, show, text in (
        ("quarantine", quarantine, "List what could not be learned and is kept, with the reason."),
        ("versions", versions, "List the boundaries that can be undone, and what else undoing each would undo."),
    ):
        parser = command(commands, name, show, text, f"streamcl {name}")
        add_connection(parser, "admin")
        add_json(parser)


def retry(options: argparse.Namespace) -> int:
    """Have the daemon try again to learn what was kept of a task."""
    with admin(options) as daemon, display(options) as show, waited_for(show, options, options.task):
        done = daemon.retry(options.task)
    show_fields(options, done)
    return said_of_rows_aside(done)


def drop(options: argparse.Namespace) -> int:
    """Give up what was kept of a task, once the operator is sure."""
    with admin(options) as daemon:
        rows = sum(row["rows"] for row in daemon.quarantine() if row["task"] == options.task)
        if not _sure(options, f"Delete {rows} rows of task {options.task!r}, unlearned?"):
            return 2
        show_fields(options, daemon.drop(options.task))
    return 0


def rollback(options: argparse.Namespace) -> int:
    """Undo a task and everything learned since, once the operator is sure."""
    with admin(options) as daemon:
        found = next((row for row in daemon.versions() if row["task"] == options.task), None)
        undone = "" if found is None else f" of {_undoes(found)}"
        if not _sure(options, f"Undo everything learned{undone}?"):
            return 2
        show_fields(options, daemon.rollback(options.task))
    return 0


def _sure(options: argparse.Namespace, question: str) -> bool:
    if options.yes:
        return True
    if not sys.stdin.isatty():
        print(f"streamcl: {question} This cannot be undone; add --yes", file=sys.stderr)
        return False
    return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")


def quarantine(options: argparse.Namespace) -> None:
    """Print what is kept."""
    with admin(options) as daemon:
        rows = daemon.quarantine()
    if options.json:
        print_json({"quarantine": rows})
        return
    for row in rows:
        row |= {"producer": row.get("producer"), "seq": row.get("seq"), "since": _when(row.get("time"))}
    print_table(rows, ["task", "state", "rows", "producer", "seq", "since", "reason"], "everything could be learned")


def versions(options: argparse.Namespace) -> None:
    """Print what can be undone."""
    with admin(options) as daemon:
        rows = daemon.versions()
    if options.json:
        print_json({"versions": rows})
        return
    for row in rows:
        row |= {"closed": _when(row["closed_at"]), "undoes": _undoes(row)}
    print_table(rows, ["task", "closed", "undoes", "bytes", "problem"], "no boundary can be undone")


def _undoes(version: dict[str, Any]) -> str:
    """What a rollback would undo; of a daemon of an earlier version, which names no revisits, that it is one."""
    return undone_in_words(version["undone"], version.get("revisits_undone", ())) or f"the revisit of {version['task']}"


def _when(seconds: float | None) -> str:
    return "" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))
