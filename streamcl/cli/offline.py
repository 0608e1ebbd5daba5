"""``streamcl doctor`` and ``streamcl repair``: a state directory without its daemon."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from streamcl.cli.common import add_json, command, print_json
from streamcl.errors import DataError
from streamcl.storage.disk import Disk
from streamcl.storage.lock import StateLock
from streamcl.storage.state import StateDirectory

LOCK_SECONDS = 10.0  # the processes of a killed daemon need a moment to end


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "doctor",
        doctor,
        "Verify everything in a state directory whose daemon is stopped; changes nothing. Exits with 1 if anything is "
        "damaged.",
        "streamcl doctor ./streamcl-state",
    )
    _add_directory(parser)
    add_json(parser)
    parser = command(
        commands,
        "repair",
        repair,
        "Save what can be saved of a damaged log. Shows what would be lost; only with --yes does it write a new log and "
        "set the old one aside, whole.",
        "streamcl repair ./streamcl-state --yes",
    )
    _add_directory(parser)
    parser.add_argument("--yes", action="store_true", help="do it")
    add_json(parser)


def _add_directory(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("state_dir", type=Path, metavar="STATE_DIR", help="the daemon's state_dir")


@contextmanager
def _locked(directory: Path) -> Iterator[StateDirectory]:
    """The directory, with no daemon on it; raises DataError if it does not exist, StateInUse if a daemon holds it."""
    if not directory.is_dir():
        raise DataError(f"{directory}: no such directory; expected the state_dir of a daemon")
    lock = StateLock.acquire(directory, LOCK_SECONDS)
    try:
        yield StateDirectory(directory)
    finally:
        lock.release()


def doctor(options: argparse.Namespace) -> int:
    """Examine and report."""
    from streamcl.storage.doctor import examine

    with _locked(options.state_dir) as state:
        findings = examine(state)
    damaged = sum(finding.state == "damaged" for finding in findings)
    if options.json:
        print_json({"damaged": damaged, "findings": [asdict(finding) for finding in findings]})
    else:
        for finding in findings:
            print(f"{finding.state:<8} {finding.file}: {finding.what}")
        print(f"{damaged} damaged" if damaged else "nothing is damaged")
    return 1 if damaged else 0


def repair(options: argparse.Namespace) -> int:
    """Show what would be lost, and repair if told to."""
    from streamcl.storage.doctor import examine, plan_repair
    from streamcl.storage.doctor import repair as repair_log

    with _locked(options.state_dir) as state:
        plan = plan_repair(state)
        beyond = [] if plan.needed else [finding for finding in examine(state) if finding.state == "damaged"]
        aside = repair_log(state, plan, Disk()) if plan.needed and options.yes else None
    if options.json:
        done = {"needed": plan.needed, "repaired": aside is not None, "set_aside": None if aside is None else str(aside)}
        print_json({**done, "plan": plan.lines() if plan.needed else [], "beyond": [each.file for each in beyond]})
    elif not plan.needed:
        print("the log needs no repair")
        for finding in beyond:
            print(f"streamcl: beyond repair: {finding.file}: {finding.what}", file=sys.stderr)
    else:
        print("\n".join(plan.lines()))
        print(
            "nothing has been changed; add --yes to repair it" if aside is None else f"repaired; the old log is in {aside}"
        )
    return 1 if beyond or (plan.needed and aside is None) else 0
