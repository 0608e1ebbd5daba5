"""``streamcl init``: looks at a data file, and writes a configuration for a stream of its kind, with the reasons beside it.

Nothing in it has to be set: it says what the defaults would find, so that it can be read, and changed, before a daemon is
started. What depends on the file's values alone (which column is what) is told as comments; keys are those that decide
what is learned.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import add_json, command, print_json
from streamcl.cli.files import add_columns, opened
from streamcl.config import from_tree
from streamcl.errors import ConfigError
from streamcl.inputs import MOST_PLACES

if TYPE_CHECKING:
    from streamcl.datafiles import DataFile

ROWS = 256
FEW = 500  # rows of a task, below which its curvature is a rough guess


@dataclass(frozen=True, slots=True)
class Line:
    """One key, and why."""

    key: str
    value: Any
    why: str


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "init",
        init,
        "Look at a data file and write a configuration for it, with the reasons as comments.",
        "streamcl init orders.csv --label outcome",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a data file, as `send` takes it")
    add_columns(parser, "the target's column or array (default: as `send` finds it)")
    parser.add_argument(
        "--out", type=Path, default=Path("streamcl.toml"), metavar="TOML", help="where it goes (default streamcl.toml)"
    )
    parser.add_argument("--force", action="store_true", help="replace a file that is there")
    add_json(parser)


def init(options: argparse.Namespace) -> None:
    """Write it, and say what comes next."""
    if options.out.exists() and not options.force:
        raise ConfigError(f"{options.out}: it exists already; name another with --out, or replace it with --force")
    data = opened(options, options.file, ROWS)
    lines = list(found(data))
    text = written(data, lines)
    from_tree(tomllib.loads(text))  # what is written can be read
    options.out.write_text(text)
    place = ["--state-dir", str(tomllib.loads(text)["state_dir"])]
    send = shlex.join(["streamcl", "send", str(options.file), *_said(options), "--boundary", *place])
    if options.json:
        keys = {line.key: {"value": line.value, "why": line.why} for line in lines}
        print_json({"out": str(options.out), "keys": keys, "read": data.reading.plain(), "next": send})
        return
    print(*data.reading.lines(), sep="\n")
    print(f"\nwrote {options.out}: {', '.join(f'{line.key} = {json.dumps(line.value)}' for line in lines)}")
    print(f"\nnext:  streamcl serve --config {shlex.quote(str(options.out))}\n       {send}")


def _said(options: argparse.Namespace) -> Iterator[str]:
    """What was said of how to read the file, for another command."""
    for name in ("label", "features", "drop", "header", "x", "numbers"):
        given = getattr(options, name)
        for value in given if isinstance(given, list) else [given] if given is not None else []:
            yield from [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def found(data: DataFile) -> Iterator[Line]:
    """Every key that the file decides."""
    yield Line(
        "state_dir", f"./{_name(data.path)}-state", "where the daemon keeps what it has learned, and the open task's rows"
    )
    yield _likelihood(data)
    yield from _inputs(data)
    rows = data.count()
    few = f". {rows} rows are few to tell how sure a task has made each parameter" if rows < FEW else ""
    why = 'one penalty of constant size; "factors" keeps one a task, so that a task can be fed again (revisited)'
    yield Line("posterior.mode", "single", f"{why}{few}")


def _likelihood(data: DataFile) -> Line:
    y = data.reading.y
    label = data.choice.label
    if y is None or label is None:
        raise ConfigError(f"{data.path}: expected a target beside the rows; say which column or array with --label")
    if data.reading.words:
        return Line("model.likelihood", "categorical", f"{label!r} is of words: they are labels, and new ones may come")
    if y[1] and data.named:
        return Line("model.likelihood", "gaussian", f"{label!r} has several numbers a row: each has a mean and a variance")
    if y[0].startswith(("<f", "float")) or data.measured:
        what = "more different whole numbers than labels have" if data.measured else "fractions"
        return Line("model.likelihood", "gaussian", f"{label!r} has {what}: a mean and a variance are predicted")
    return Line(
        "model.likelihood", "categorical", f"{label!r} is of few whole numbers: labels; gaussian if they are measured"
    )


def _inputs(data: DataFile) -> Iterator[Line]:
    words = data.word_counts()
    many = {name: count for name, count in words.items() if 2 * count > MOST_PLACES}
    if many:
        name, count = max(many.items(), key=lambda pair: pair[1])
        yield Line("input.categories", "embedding", f"{name!r} has {count} words: more than have an input each")
    elif words:
        yield Line(
            "input.categories",
            "one-hot",
            f"at most {max(words.values())} words a column: an input each, and room for new ones",
        )
    if data.named:
        yield Line("input.scale", "tables", "its columns have names: numbers are brought to scale as they come")
    else:
        yield Line("input.scale", "auto", "its columns have no names: without this they would be taken as they are")


def written(data: DataFile, lines: list[Line]) -> str:
    """The file's text."""
    told = [f"# {line.strip()}" for line in data.reading.lines()]
    head = [
        "# Made by `streamcl init`. Every other key has its default: `streamcl config show`, docs/reference.md.",
        *told,
        "",
    ]
    sections: dict[str, list[str]] = {}
    for line in lines:
        section, _, key = line.key.rpartition(".")
        sections.setdefault(section, []).extend([f"# {line.why}", f"{key} = {json.dumps(line.value)}"])
    for section, body in sections.items():
        head += [*([f"[{section}]"] if section else []), *body, ""]
    return "\n".join(head)


def _name(path: Path) -> str:
    return re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "streamcl"
