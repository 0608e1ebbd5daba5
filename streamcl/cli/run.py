"""``streamcl serve``: every key of the configuration is also a flag."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from streamcl import config
from streamcl.cli.common import command


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "serve",
        serve,
        "Run the daemon until it is stopped (`streamcl stop`, SIGTERM or Ctrl-C).",
        "streamcl serve --config streamcl.toml --train.epochs 3",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; every key is optional")
    keys = parser.add_argument_group("configuration keys, each overriding the file's")
    for key, hint, default in config.all_keys():
        spellings = dict.fromkeys([f"--{key.replace('_', '-')}", f"--{key}"])
        keys.add_argument(*spellings, dest=f"key:{key}", metavar="VALUE", help=f"{_allowed(hint)}default {_shown(default)}")


def _allowed(hint: Any) -> str:
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return f"{' | '.join(get_args(bare))}; " if get_origin(bare) is Literal else ""


def _shown(default: Any) -> str:
    return "{ } (a TOML table)" if isinstance(default, dict) else str(default).replace("%", "%%")


def serve(options: argparse.Namespace) -> int:
    """Run the daemon."""
    flags = {
        name.removeprefix("key:"): value
        for name, value in vars(options).items()
        if name.startswith("key:") and value is not None
    }
    settings = config.load(options.config, flags)
    from streamcl.daemon.serve import serve as run_daemon

    return run_daemon(settings)
