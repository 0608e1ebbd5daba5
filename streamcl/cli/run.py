"""``streamcl serve``: every key of the configuration is also a flag and a variable of the environment."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from streamcl.cli.common import command
from streamcl.cli.configuration import PRECEDENCE, add_keys, gathered


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "serve",
        serve,
        f"Run the daemon until it is stopped (`streamcl stop`, SIGTERM or Ctrl-C). {PRECEDENCE}",
        "streamcl serve --config streamcl.toml --train.epochs 3",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; every key is optional")
    add_keys(parser, "--config FILE")


def serve(options: argparse.Namespace) -> int:
    """Run the daemon."""
    settings = gathered(options, options.config).config()
    from streamcl.daemon import nursery

    begun = nursery.begin()  # before the next import: it takes longest, and has nothing to wait for
    try:
        from streamcl.daemon.serve import serve as run_daemon

        return run_daemon(settings, begun)
    finally:
        if begun is not None:
            begun.abandon()
