"""``streamcl send``: a data file as batches of one task, resumable."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import add_connection, add_json, command, print_json, said_of_rows_aside
from streamcl.cli.files import Agreement, add_columns, opened, placed, read_as, say
from streamcl.cli.progress import Silent, display, waited_for
from streamcl.cli.upload import Upload, starting
from streamcl.errors import DataError

if TYPE_CHECKING:
    from streamcl.cli.bars import Bars
    from streamcl.datafiles import DataFile


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "send",
        send,
        "Stream a data file (CSV, Parquet, NPZ) to the daemon as batches of one task. Run again after an interruption, it "
        "continues where the daemon's disk left off, and nothing is trained on twice.",
        "streamcl send monday.csv --task monday --label price --boundary",
    )
    parser.add_argument("file", type=Path, metavar="FILE")
    parser.add_argument("--task", required=True, help="the task the data belongs to")
    parser.add_argument("--boundary", action="store_true", help="close the task after it and wait until it is consolidated")
    parser.add_argument("--weight", type=float, help="with --boundary: lambda_t instead of scale * N_t")
    add_columns(
        parser, "the target's column or array (default: label, target, class or y, by name, else the last; reported)"
    )
    parser.add_argument("--rows", type=int, default=256, help="rows a batch (default 256; fewer if large)")
    parser.add_argument("--skip-rows", type=int, default=0, metavar="N", help="send only what comes after the first N rows")
    parser.add_argument(
        "--producer",
        help="a name of your own for the stream; the file is then sent whole, every time (default: made of the file's "
        "content and the task, so that a file sent again continues where it was)",
    )
    add_connection(parser, "stream", "admin")
    add_json(parser)


def send(options: argparse.Namespace) -> int:
    """Send what the daemon does not hold yet, then close the task if asked."""
    wrong = _wrong_use(options)
    if wrong is not None:
        print(f"streamcl: {wrong}", file=sys.stderr)
        return 2
    started = time.monotonic()
    data = opened(options, options.file, options.rows)
    if options.skip_rows >= data.count():
        raise DataError(
            f"{options.file}: it has {data.count()} rows; nothing is left after --skip-rows {options.skip_rows}"
        )
    say(options, data.reading)
    agreement = Agreement(data, options.numbers)
    upload = starting(options, data)
    with upload.stream as stream, display(options) as show:
        report = _send_blocks(options, data, upload, agreement, show)
        if options.boundary:
            with waited_for(show, options, options.task):
                done = stream.boundary(options.task, weight=options.weight)
            names = ("samples", "loss", "seconds", "set_aside", "warning")
            report |= {name: done[name] for name in names if name in done}
    _print(options, report | {"elapsed": time.monotonic() - started, "read": read_as(agreement)})
    return said_of_rows_aside(report)


def _wrong_use(options: argparse.Namespace) -> str | None:
    if options.rows < 1:
        return "--rows: expected at least 1"
    if options.skip_rows < 0:
        return "--skip-rows: expected at least 0"
    if options.weight is not None and not options.boundary:
        return "--weight is given at a task's boundary; add --boundary"
    return None


def _send_blocks(
    options: argparse.Namespace, data: DataFile, upload: Upload, agreement: Agreement, show: Bars | Silent
) -> dict[str, Any]:
    rows = batches = 0
    stream, before = upload.stream, upload.stream.durable
    start = options.skip_rows + upload.rows

    def first_row(seq: int) -> int:
        return int(start + (seq - 1 - before) * data.block_rows)

    def send_first(x: Any, y: Any) -> None:
        stream.send(x, y, options.task)
        stream.flush()  # so that a refusal comes now

    with show.counting(options.file.name, data.count() - options.skip_rows) as advance, placed(data, first_row):
        advance(upload.rows)
        for number, (x, y) in enumerate(data.blocks(start), start=upload.batches + 1):
            upload.note(number, x, y)
            if agreement.form is None:
                agreement.try_on(x, y, send_first)
            else:
                stream.send(*agreement.of(x, y), options.task)
            rows, batches = rows + len(x), batches + 1
            advance(len(x))
        stream.flush()
    skipped = upload.batches
    notes = [note for note in (upload.said, *agreement.notes) if note is not None]
    return {"task": options.task, "rows": rows, "batches": batches, "batches_already_there": skipped, "notes": notes}


def _print(options: argparse.Namespace, report: dict[str, Any]) -> None:
    if options.json:
        print_json(report)
        return
    there = report["batches_already_there"]
    print(*report["notes"], sep="\n", end="\n" if report["notes"] else "")
    print(
        f"sent {report['rows']} rows in {report['batches']} batches to task {report['task']!r}"
        + (f" ({there} batches were already stored)" if there else "")
    )
    if "loss" in report:
        print(f"consolidated: {report['samples']} samples, loss {report['loss']:.4g}, {report['seconds']:.2f} s")
