"""``streamcl merge``: the exports of exact learners added, without a daemon."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from streamcl.cli.common import add_json, command, show_fields


def add_commands(commands: Any) -> None:
    """Add this module's command."""
    parser = command(
        commands,
        "merge",
        merge,
        "Add the sums of exact learners (model.learner exact) that never saw each other's data, from what `streamcl "
        "export` wrote of each. Writes an export of what one learner that saw all of it would have come to, whatever the "
        "order, and beside it a state directory from which `streamcl serve` goes on. Refuses what cannot be added: "
        "networks, other features, rows that fade by a half-life, tables whose numbers each brought to its own scale.",
        "streamcl merge ./clinic-a ./clinic-b --out ./both",
    )
    parser.add_argument("exports", type=Path, nargs="+", metavar="DIR", help="directories that `streamcl export` wrote")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new directory for what they come to")
    parser.add_argument(
        "--same-tasks",
        action="store_true",
        help="tasks of one name are parts of one task, whose rows are in one export each",
    )
    add_json(parser)


def merge(options: argparse.Namespace) -> None:
    """Add, write, and say what came of it."""
    from streamcl.merging import merge as merge_exports

    show_fields(options, merge_exports(options.exports, options.out, options.same_tasks))
