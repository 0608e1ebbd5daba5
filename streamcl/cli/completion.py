"""``streamcl completion``: the scripts that complete commands, options, values, files and the daemon's tasks in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from streamcl import config
from streamcl.cli.common import command, first_sentence

SHELLS = {
    "bash": "~/.local/share/bash-completion/completions/streamcl",
    "zsh": '"${fpath[1]}/_streamcl"',
    "fish": "~/.config/fish/completions/streamcl.fish",
}
STEPS = "\n".join(
    ["to have it in every new shell:", *(f"  streamcl completion {s} > {path}" for s, path in SHELLS.items())]
)
DIRECTORIES = ("DIR", "STATE_DIR")
NAMES = "streamcl tasks --names 2>/dev/null"  # of the daemon of the state directory in the environment, or the default one
TASKS = {"bash": "_streamcl_tasks", "zsh": "_streamcl_tasks", "fish": f"({NAMES})"}
PREAMBLE = {
    "bash": f"""_streamcl_tasks() {{ local IFS=$'\\n'; compgen -W "$({NAMES})" -- "$1"; }}""",
    "zsh": f"""_streamcl_tasks() {{ local -a tasks; tasks=("${{(@f)$({NAMES})}}"); compadd -a tasks; }}""",
}


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "completion",
        completion,
        "Print a script that makes a shell complete streamcl's commands, options and their values, files, and the names of "
        "the running daemon's tasks.",
        'eval "$(streamcl completion bash)"',
    )
    parser.epilog = f"{parser.epilog}\n{STEPS}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=tuple(SHELLS), metavar="SHELL", help=" | ".join(SHELLS))


def completion(options: argparse.Namespace) -> None:
    """Print the script."""
    import shtab

    from streamcl.cli import build_parser

    parser = build_parser()
    for inner in _parsers(parser):
        inner.description = first_sentence(inner.description or "")
        for action in inner._actions:
            _describe(action, shtab)
    print(shtab.complete(parser, options.shell, preamble=PREAMBLE.get(options.shell, "")))


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for inner in action.choices.values():
                yield from _parsers(inner)


def _describe(action: Any, shtab: Any) -> None:
    """What an option takes: files, directories, tasks, or one of a few words."""
    action.option_strings = [s for s in action.option_strings if s.replace("_", "-") == s] or action.option_strings
    if action.metavar == "TASK" or (action.dest == "task" and action.option_strings):
        action.complete = TASKS
    elif action.dest in ("state_dir", "key:state_dir") or action.metavar in DIRECTORIES:
        action.complete = shtab.DIRECTORY
    elif action.type is Path or "FILE" in str(action.metavar) or action.dest.startswith("key:security."):
        action.complete = shtab.FILE
    elif action.dest.startswith("key:"):
        action.choices = _words(action.dest.removeprefix("key:"))


def _words(key: str) -> list[str] | None:
    """The values that a key of the configuration can take, if they are few."""
    hint = next(hint for name, hint, _ in config.all_keys() if name == key)
    bare = get_args(hint)[0] if get_origin(hint) is Annotated else hint
    return list(get_args(bare)) if get_origin(bare) is Literal else None
