"""Makes reference.md: every key, metric, code and command, in the words that the code itself uses.

    python -m streamcl.docs.reference > streamcl/docs/reference.md

Runs in a checkout, since the keys are explained in ``deploy/streamcl.example.toml``. A test compares what it prints with
the file.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from prometheus_client import CollectorRegistry

from streamcl import config
from streamcl.binding import REASONS
from streamcl.cli import build_parser
from streamcl.cli.remedies import REMEDIES
from streamcl.config import PREFIX, variable
from streamcl.daemon.metrics import FollowerMetrics, Metrics
from streamcl.protocol.messages import CODES, RETRYABLE

EXAMPLE = Path(__file__).parents[2] / "deploy" / "streamcl.example.toml"
HEAD = """# Reference

Made from the code by `python -m streamcl.docs.reference`: do not change it here.
"""


def reference() -> str:
    """The whole page, as Markdown."""
    parts = (HEAD, *_keys(), *_metrics(), *_codes(), *_commands())
    return "\n".join(parts).rstrip() + "\n"


# -- configuration -------------------------------------------------------------------------------------------------------


def _keys() -> Iterator[str]:
    yield "## Configuration\n"
    yield (
        f"Every key is also a flag (`--train.epochs 3`) and a variable (`{variable('train.epochs')}=3`). A flag goes "
        "before a variable, that before the file, that before the default. Variables that begin with "
        f"`{PREFIX}` and name no key are errors, like unknown keys. *Fixed*: belongs to the state directory.\n"
    )
    yield _row("key", "default", "", "")
    yield "|---|---|---|---|"
    texts = explanations()
    for key, _, default in config.all_keys():
        shown = f"`{_toml(default)}`"
        fixed = "fixed" if any(key == name or key.startswith(f"{name}.") for name in REASONS) else ""
        yield _row(f"`{key}`", shown, texts[key], fixed)
    yield ""


def explanations() -> dict[str, str]:
    """What the example configuration says of each key."""
    found, section, comment = {}, "", [""]
    for line in EXAMPLE.read_text().splitlines():
        if line.startswith("["):
            section, comment = line.strip("[]") + ".", []
        elif key := re.match(r"#(\w+) = ", line):
            found[section + key[1]] = " ".join(comment).replace(" [state]", "")
            comment = []
        elif line.startswith("# "):
            comment.append(line[2:])
        elif not line:
            comment = []
    return found


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{}"
    return f'"{value}"' if isinstance(value, str) else str(value)


# -- metrics, codes ------------------------------------------------------------------------------------------------------


def _metrics() -> Iterator[str]:
    yield "## Metrics\n"
    yield "At `/metrics`, in Prometheus's text format or, where asked for, OpenMetrics with exemplars.\n"
    yield _row("name", "kind", "labels", "")
    yield "|---|---|---|---|"
    daemon, follower = Metrics(CollectorRegistry()), FollowerMetrics(CollectorRegistry())
    daemon.certificate(0.0)
    rows = dict(_families(daemon.registry))
    yield from rows.values()
    yield "\nA follower has these, and of those above what its `/metrics` shows:\n"
    yield _row("name", "kind", "labels", "")
    yield "|---|---|---|---|"
    yield from (row for name, row in _families(follower.registry) if name not in rows)
    yield ""


def _families(registry: CollectorRegistry) -> Iterator[tuple[str, str]]:
    """Each metric's name and its row."""
    labels = {name: getattr(made, "_labelnames", ()) for name, made in registry._names_to_collectors.items()}
    for family in registry.collect():
        name = family.name + {"counter": "_total", "info": "_info"}.get(family.type, "")
        own = ", ".join(labels.get(name) or labels.get(family.name) or ())
        yield name, _row(f"`{name}`", family.type, own, family.documentation)


def _codes() -> Iterator[str]:
    yield "## Codes\n"
    yield "Why a message is refused; `retryable` in the refusal says whether the same one may succeed later.\n"
    yield _row("code", "means", "retryable", "what to do")
    yield "|---|---|---|---|"
    for code, meaning in CODES.items():
        yield _row(f"`{code}`", meaning, "yes" if code in RETRYABLE else "", REMEDIES[code])
    yield ""


# -- commands ------------------------------------------------------------------------------------------------------------


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    yield "All exit with 0; 1 where the daemon refused, with its reason; 2 for a wrong use.\n"
    for name, parser in _parsers(build_parser(), "streamcl"):
        yield f"### {name}\n"
        yield f"{_plain(parser.description)}\n"
        rows = [*_options(parser)]
        if rows:
            yield _row("argument", "")
            yield "|---|---|"
            yield from rows
            yield ""
        if parser.epilog:
            yield f"{_plain(parser.epilog)}\n"


def _parsers(parser: argparse.ArgumentParser, name: str) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name, parser
    for group in groups:
        for word, inner in group.choices.items():
            yield from _parsers(inner, f"{name} {word}")


def _options(parser: argparse.ArgumentParser) -> Iterator[str]:
    keys = {f"--{key}" for key, _, _ in config.all_keys()}
    for action in parser._actions:
        if action.help in (None, argparse.SUPPRESS) or "--help" in action.option_strings or keys & {*action.option_strings}:
            continue
        wanted = "" if action.nargs == 0 else f" {action.metavar or (action.dest.upper() if action.option_strings else '')}"
        names = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        yield _row(f"`{names}{wanted if action.option_strings else ''}`", _plain(action.help))
    if any(keys & {*action.option_strings} for action in parser._actions):
        yield _row("`--KEY VALUE`", "any key of the configuration, above")


def _plain(text: str | None) -> str:
    return " ".join((text or "").replace("%%", "%").split())


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(reference(), end="")
