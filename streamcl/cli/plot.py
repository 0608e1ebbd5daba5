"""``streamcl plot``: figures of the history in a state directory, whether or not its daemon runs."""

from __future__ import annotations

import argparse
import math
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import add_json, command, default_state, print_json, refuse_follower
from streamcl.cli.readable import number
from streamcl.errors import DataError

if TYPE_CHECKING:
    from streamcl.plots import Past

KINDS = ("accuracy", "forgetting", "penalty", "order-bias", "loss")
ENDINGS = (".png", ".svg")


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "plot",
        plot,
        "Draw what the history in the state directory holds, as PNG or SVG. accuracy: of each task, on its evaluation set, "
        "after every boundary. forgetting: each task's estimated rise, with a star at each revisit (factor mode). penalty: "
        "what each task's factor costs (factor mode). order-bias: rise and accuracy by the order of learning. loss: loss "
        "and prequential accuracy over time. all: every one for which there are data. Needs matplotlib: pip install "
        "'streamcl[demo]'.",
        "streamcl plot forgetting --out forgetting.svg",
    )
    parser.add_argument("kind", choices=(*KINDS, "all"), metavar="KIND", help=" | ".join((*KINDS, "all")))
    parser.add_argument("--out", type=Path, help="FILE.png or FILE.svg (default: KIND.png), or with all a directory")
    parser.add_argument("--format", choices=("png", "svg"), default="png", help="of `all` (default png)")
    parser.add_argument("--hours", type=float, help="only the last HOURS hours of the history")
    parser.add_argument("--state-dir", default=default_state(), help="the daemon's state directory")
    add_json(parser)


def plot(options: argparse.Namespace) -> int:
    """Draw one, or all."""
    if options.hours is not None and not options.hours > 0:
        raise DataError(f"--hours: expected a number greater than 0, got {options.hours}")
    if options.kind != "all":
        out = options.out or Path(f"{options.kind}.png")
        if out.suffix.lower() not in ENDINGS:
            raise DataError(f"--out: expected FILE.png or FILE.svg, got {out}")
        _print(options, [_draw(options.kind, _past(options), out)], {})
        return 0
    past, directory = _past(options), options.out or Path("streamcl-plots")
    drawn, skipped = _draw_all(past, directory, options.format)
    _print(options, drawn, skipped)
    return 0 if drawn else 1


def _past(options: argparse.Namespace) -> Past:
    """The history. Raises DataError if it cannot be read."""
    from streamcl.plots import Past
    from streamcl.storage.state import StateDirectory

    path = StateDirectory(Path(options.state_dir)).history
    try:
        return Past.read(path, None if options.hours is None else 3600 * options.hours)
    except FileNotFoundError:
        refuse_follower(Path(options.state_dir), "plot")
        raise DataError(
            f"{path}: there is no history; a daemon keeps one in its state directory: name that with --state-dir"
        ) from None
    except sqlite3.DatabaseError as error:
        raise DataError(
            f"{path}: not a history that this version reads ({error}); the daemon brings an older one up to date, and sets "
            "a damaged one aside, at its next start"
        ) from None


def _draw(kind: str, past: Past, out: Path) -> dict[str, Any]:
    from streamcl import plots

    drawn = plots.KINDS[kind](past)
    try:
        plots.write(drawn, out)
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}; name another file with --out") from None
    return {"kind": kind, "file": str(out), **drawn.numbers}


def _draw_all(past: Past, directory: Path, ending: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    from streamcl.plots import NothingToDraw

    drawn, skipped = [], {}
    for kind in KINDS:
        try:
            drawn.append(_draw(kind, past, directory / f"{kind}.{ending}"))
        except NothingToDraw as reason:
            skipped[kind] = str(reason)
    return drawn, skipped


def _print(options: argparse.Namespace, drawn: list[dict[str, Any]], skipped: dict[str, str]) -> None:
    if options.json:
        print_json({"plots": drawn, "skipped": skipped})
        return
    for figure in drawn:
        said = ", ".join(_said(figure))
        print(figure["file"] + (f": {said}" if said else ""))
    for kind, reason in skipped.items():
        print(f"{kind} is not drawn: {reason}")


def _said(figure: dict[str, Any]) -> list[str]:
    """A figure's numbers, in a line."""
    flat = {name: value for name, value in figure.items() if isinstance(value, int | float)}
    for name in ("rise", "accuracy"):
        if isinstance(figure.get(name), dict):
            flat[f"rank correlation of {name}"] = figure[name]["rank_correlation"]
    return [f"{name.replace('_', ' ')} {_shown(value)}" for name, value in flat.items()]


def _shown(value: float) -> str:
    from streamcl.plots import UNDEFINED

    return UNDEFINED if math.isnan(value) else number(value)
