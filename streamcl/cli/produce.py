"""``streamcl send``: a data file as batches of one task, resumable."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import add_connection, add_json, command, print_json, producer, said_of_rows_aside
from streamcl.cli.progress import Silent, display, waited_for
from streamcl.errors import DataError

if TYPE_CHECKING:
    from streamcl.cli.bars import Bars


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "send",
        send,
        "Stream a data file (CSV, Parquet, NPZ) to the daemon as batches of one task. Run again after an interruption, it "
        "goes on where the daemon's disk is, and nothing is trained on twice.",
        "streamcl send monday.csv --task monday --label price --boundary",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--task", required=True, help="the task the data belongs to")
    parser.add_argument("--boundary", action="store_true", help="close the task behind it and wait for it")
    parser.add_argument("--weight", type=float, help="with --boundary: lambda_t instead of scale * N_t")
    parser.add_argument("--label", "--y", help="the target's column or array (default: y, label, target or the last)")
    parser.add_argument("--x", help="the array of inputs in an NPZ file")
    parser.add_argument("--rows", type=int, default=256, help="rows a batch (default 256)")
    parser.add_argument(
        "--producer",
        help="a name of your own for the stream; the file is then sent whole, every time (default: made of the file's "
        "content and the task, so that a file sent again goes on where it was)",
    )
    add_connection(parser, "stream", "admin")
    add_json(parser)


def send(options: argparse.Namespace) -> int:
    """Send what the daemon does not hold yet, then close the task if asked."""
    from streamcl.datafiles import Columns, open_data

    if options.rows < 1:
        print("streamcl: --rows: expected at least 1", file=sys.stderr)
        return 2
    if options.weight is not None and not options.boundary:
        print("streamcl: --weight is given at a task's boundary; add --boundary", file=sys.stderr)
        return 2
    data = open_data(options.file, Columns(options.x, options.label), options.rows)
    started = time.monotonic()
    with _stream(options) as stream, display(options) as show:
        report = _send_blocks(options, data, stream, show)
        if options.boundary:
            with waited_for(show, options, options.task):
                done = stream.boundary(options.task, weight=options.weight)
            report |= {name: done[name] for name in ("samples", "loss", "seconds", "set_aside")}
    _print(options, report | {"elapsed": time.monotonic() - started})
    return said_of_rows_aside(report)


def _stream(options: argparse.Namespace) -> Any:
    """The producer for this file; of a task that is being revisited, one for this very revisit."""
    stream = producer(options, options.producer or _name(options))
    revisit = stream.welcome["revisit"]
    if options.producer or stream.welcome["task"] != options.task or revisit is None:
        return stream
    stream.close()
    return producer(options, f"{_name(options)}-{revisit}")


def _send_blocks(options: argparse.Namespace, data: Any, stream: Any, show: Bars | Silent) -> dict[str, Any]:
    rows = batches = skipped = 0
    held = 0 if options.producer else stream.durable  # a name of one's own goes on counting, and repeats nothing
    with show.counting(options.file.name, data.count()) as advance:
        for number, (x, y) in enumerate(data.blocks(), start=1):
            if number <= held:
                skipped += 1
            else:
                stream.send(x, y, options.task)
                rows, batches = rows + len(x), batches + 1
            advance(len(x))
        stream.flush()
    if rows == skipped == 0:
        raise DataError(f"{options.file}: expected at least one row")
    return {"task": options.task, "rows": rows, "batches": batches, "batches_already_there": skipped}


def _name(options: argparse.Namespace) -> str:
    """A stable name for this file, task and way of cutting it, so that an interrupted upload is recognised."""
    digest = hashlib.sha256(repr((options.task, options.x, options.label, options.rows)).encode())
    if options.file.is_file():
        with options.file.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return f"send-{digest.hexdigest()[:16]}"


def _print(options: argparse.Namespace, report: dict[str, Any]) -> None:
    if options.json:
        print_json(report)
        return
    there = report["batches_already_there"]
    print(
        f"sent {report['rows']} rows in {report['batches']} batches to task {report['task']!r}"
        + (f" ({there} batches were there already)" if there else "")
    )
    if "loss" in report:
        print(f"consolidated: {report['samples']} samples, loss {report['loss']:.4g}, {report['seconds']:.2f} s")
