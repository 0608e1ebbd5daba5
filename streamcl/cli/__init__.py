"""The command line. Exit status 0, 1 (the daemon refused or did not answer, with its reason), 2 (usage).

Starts fast: nothing heavy is imported before the command that needs it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from streamcl.cli.parser import Parser
from streamcl.cli.remedies import remedy
from streamcl.errors import ConfigError, DataError, Refused, StreamclError
from streamcl.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status.

    Threads of PyTorch's products sleep while they wait for each other: by default they spin, and where other processes want
    the same cores, steps that take microseconds then take a scheduler's turn. Read by OpenMP when PyTorch is imported.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        return int(options.run(options) or 0)
    except (ConfigError, DataError) as error:
        return _fail(error, 2)
    except Refused as error:
        return _fail(error, 1, remedy(error))
    except StreamclError as error:
        return _fail(error, 1)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except OSError as error:  # of a file named on the command line; the daemon reports its own itself
        return _fail(error if error.filename is None else f"{error.filename}: {error.strerror}", 2)
    except KeyboardInterrupt:
        return 130


def _fail(error: Exception | str, status: int, advice: str | None = None) -> int:
    print(f"streamcl: {error}", file=sys.stderr)
    if advice is not None:
        print(f"  what to do: {advice}", file=sys.stderr)
    return status


def build_parser() -> Parser:
    """The parser of every command."""
    from streamcl.cli import (
        begin,
        benches,
        bridge,
        completion,
        configuration,
        evaluate,
        health,
        kept,
        merge,
        offline,
        operate,
        plan,
        plot,
        predict,
        produce,
        run,
        secure,
        sweep,
        top,
    )

    parser = Parser(
        prog="streamcl",
        description="A continual-learning daemon: stream tasks in, keep one quadratic penalty, drop the data.",
        epilog="Start with `streamcl demo`, or `streamcl serve` and, beside it, `streamcl send data.csv --task monday "
        "--boundary`.",
    )
    parser.add_argument("--version", action="version", version=f"streamcl {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for module in (
        run,
        begin,
        configuration,
        plan,
        produce,
        sweep,
        operate,
        predict,
        kept,
        top,
        health,
        plot,
        evaluate,
        secure,
        merge,
        offline,
        bridge,
        benches,
        completion,
    ):
        module.add_commands(commands)
    return parser
