"""``streamcl config check`` and ``config show``, and the options that every key of the configuration is.

Here, and nowhere below, the process's environment is read for keys.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from streamcl import config
from streamcl.binding import REMEDY, Difference, differences
from streamcl.cli.common import add_json, command, group, print_json
from streamcl.config import Config, Gathered
from streamcl.entries import standing
from streamcl.errors import ConfigError, StreamclError

PRECEDENCE = (
    "In order of precedence: flag, environment variable, file, default. The variable of a key is "
    "STREAMCL_SECTION__KEY, with two underscores: STREAMCL_TRAIN__EPOCHS=3, STREAMCL_STATE_DIR=/var/lib/streamcl. Other "
    "variables that begin with STREAMCL_ are left alone, unless they have two underscores or lack only one."
)


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    commands = group(commands, "config", "Check a configuration before it is used; show what holds and why.")
    parser = command(
        commands,
        "check",
        check,
        "Report everything that is wrong with a configuration file, as `serve --config FILE` would read it here: with this "
        "environment, and with the state directory as it is. Exits 2 if anything is wrong. What cannot be found from here "
        "(key files, the model's module) is a warning, or an error with --strict.",
        "streamcl config check streamcl.toml",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="TOML file")
    parser.add_argument("--strict", action="store_true", help="exit with 2 after a warning, too")
    add_json(parser)
    add_keys(parser, "--strict", "--json")
    parser.usage = f"{parser.usage} FILE"
    parser = command(
        commands,
        "show",
        show,
        f"Print every key's value and where it comes from, as TOML that can be used again. {PRECEDENCE}",
        "streamcl config show --config streamcl.toml --train.epochs 3",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; every key is optional")
    parser.add_argument("--changed", action="store_true", help="only what is not a default")
    add_json(parser)
    add_keys(parser, "--config FILE", "--changed", "--json")


def add_keys(
    parser: argparse.ArgumentParser, *options: str, only: Sequence[str] = (), left_out: Sequence[str] = ()
) -> None:
    """Every key of the configuration as an option; `options`: the command's own, for its usage line.

    only: just these keys, and those of these sections; left_out: sections without which.
    """
    shown = "".join(f" [{option}]" for option in options)
    parser.usage = f"{parser.prog}{shown} [--KEY VALUE ...]"
    keys = parser.add_argument_group("configuration keys; each overrides the environment and the file")
    for key, hint, default in config.all_keys():
        section = key.partition(".")[0]
        if section in left_out or (only and key not in only and section not in only):
            continue
        spellings = dict.fromkeys([f"--{key.replace('_', '-')}", f"--{key}"])
        keys.add_argument(*spellings, dest=f"key:{key}", metavar="VALUE", help=f"{_allowed(hint)}default {_shown(default)}")


def _allowed(hint: Any) -> str:
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return f"{' | '.join(get_args(bare))}; " if get_origin(bare) is Literal else ""


def _shown(default: Any) -> str:
    return "{ } (a TOML table)" if isinstance(default, dict) else str(default).replace("%", "%%")


def gathered(options: argparse.Namespace, path: Path | None) -> Gathered:
    """Every value and its origin: of the file, this process's environment and the options given."""
    flags = {
        name.removeprefix("key:"): value
        for name, value in vars(options).items()
        if name.startswith("key:") and value is not None
    }
    return config.gather(path, flags, os.environ)


# -- check -------------------------------------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> int:
    """Check and report."""
    found = gathered(options, options.file)
    problems = [{"key": p.key, "problem": p.text, "from": p.origin.kind, "name": p.origin.name} for p in found.problems()]
    lines, warnings, state = [str(problem) for problem in found.problems()], [], None
    if not problems:
        settings = found.config()
        state, refused = _state(settings)
        problems += refused
        lines += [f"{problem['key']}: {problem['problem']}" for problem in refused]
        warnings = list(_warnings(settings))
    good = not problems and not (warnings and options.strict)
    if options.json:
        print_json(
            {"file": str(options.file), "good": good, "problems": problems, "warnings": warnings, "state_dir": state}
        )
    else:
        _print_findings(options.file, found, lines, warnings, state)
    return 0 if good else 2


def _print_findings(
    path: Path, found: Gathered, lines: list[str], warnings: list[str], state: Mapping[str, Any] | None
) -> None:
    for line in lines:
        print(line)
    for warning in warnings:
        print(f"warning: {warning}")
    if lines:
        print(f"{path}: {len(lines)} {'problem' if len(lines) == 1 else 'problems'}")
    elif state is not None:
        fits = "which it fits" if state["exists"] else "which is new"
        print(f"{path}: good. {len(found.origins)} keys set; state directory {state['path']}, {fits}")


def _differences_on_disk(directory: Path, config: Config) -> list[Difference]:
    """The keys that the daemon would refuse on this state directory; none if it is new.

    Raises Damaged, UnknownFormat.
    """
    from streamcl.storage import checkpoint, ledger

    meta = checkpoint.read_meta(directory)
    if meta is None or not standing(ledger.read(directory, meta.ledger)).tasks:
        return []  # nothing was consolidated that another model could not take
    return list(differences(meta.fingerprint, config))


def _state(settings: Config) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The state directory, and what it would refuse about this configuration."""
    directory = Path(settings.state_dir)
    described = {"path": str(directory), "exists": (directory / "checkpoint").exists()}
    try:
        found = _differences_on_disk(directory, settings)
    except (StreamclError, OSError) as error:
        problem = f"{directory} cannot be used: {error}; see `streamcl doctor {directory}`"
        return described, [{"key": "state_dir", "problem": problem}]
    made = f"needs a new state directory: {directory} was made with"
    return described, [
        {
            "key": one.key,
            "problem": f"{made} {one.was!r}, this is {one.now!r}; {one.why}. {REMEDY}",
            "needs_new_state_dir": True,
        }
        for one in found
    ]


def _warnings(settings: Config) -> Iterator[str]:
    """What a start would look for and cannot be found from here."""
    from streamcl.daemon.serve import check_secrets

    try:
        check_secrets(settings.security)
    except (StreamclError, OSError) as error:
        yield str(error)
    module = settings.model.factory.partition(":")[0]
    if not _importable(module):
        where = f"no module {module} is found from {Path.cwd()}"
        yield f"model.factory: {where}; start the daemon in the directory where it is, or install it"


def _importable(module: str) -> bool:
    """Whether there is such a module, installed or in the working directory; runs nothing of it."""
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


# -- show --------------------------------------------------------------------------------------------------------------


def show(options: argparse.Namespace) -> None:
    """Print the effective values and their origins."""
    found = gathered(options, options.config)
    tree = msgspec.to_builtins(found.config())
    keys = [key for key, _, _ in config.all_keys() if not options.changed or found.origin(key).kind != "default"]
    if options.json:
        rows = {key: (config.lookup(tree, key), found.origin(key)) for key in keys}
        print_json({key: {"value": value, "from": at.kind, "name": at.name} for key, (value, at) in rows.items()})
        return
    lines = list(_lines(tree, keys))
    width = max((len(line) for line, _ in lines if len(line) < 60), default=0)
    for line, key in lines:
        print(f"{line:<{width}}  # {found.origin(key)}" if key else line)


def _lines(tree: Mapping[str, Any], keys: list[str]) -> Iterator[tuple[str, str]]:
    """TOML, line by line, each with its key."""
    section = ""
    for key in keys:
        where, _, leaf = key.rpartition(".")
        if where != section:
            section = where
            yield f"[{section}]", ""
        yield f"{leaf} = {_toml(config.lookup(tree, key))}", key


def _toml(value: Any) -> str:
    """A value as TOML; whatever was read from TOML can be written as TOML."""
    match value:
        case Mapping():
            return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(inner)}" for key, inner in value.items()) + "}"
        case list():
            return f"[{', '.join(map(_toml, value))}]"
        case datetime() | date() | time():
            return value.isoformat()
        case str():
            return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
    raise ConfigError(f"configuration: expected a value that TOML can express, got {value!r}")
