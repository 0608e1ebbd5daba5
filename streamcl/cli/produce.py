"""``streamcl send``: a data file as batches of one task, resumable."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import add_connection, add_json, command, print_json, producer, said_of_rows_aside
from streamcl.cli.files import Agreement, add_columns, opened, read_as, say, streamed
from streamcl.cli.progress import Silent, connector, display, interruptible, waited_for
from streamcl.cli.upload import Upload, send_blocks, starting
from streamcl.errors import DataError, NoRows, Refused, StreamclError
from streamcl.protocol.session import CLOSED_ALREADY

if TYPE_CHECKING:
    from streamcl.cli.bars import Bars
    from streamcl.client import Producer
    from streamcl.datafiles import DataFile


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "send",
        send,
        "Stream a data file (CSV, Parquet, Arrow, JSON lines, NPZ; - is standard input) to the daemon as batches of one "
        "task; or every data file of a directory, in the order of their names, each as its own task, or all as --task. "
        "Run again after an interruption, it continues where the daemon's disk left off, and nothing is trained on twice.",
        "streamcl send monday.csv --task monday --label price --boundary",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="a data file, or a directory of them")
    parser.add_argument(
        "--task", help="the task the data belongs to (default: the file's name without its suffix; reported)"
    )
    parser.add_argument("--boundary", action="store_true", help="close the task after it and wait until it is consolidated")
    parser.add_argument("--weight", type=float, help="with --boundary: lambda_t instead of scale * N_t")
    add_columns(
        parser,
        "the target's column or array (default: label, target, class or y, by name, else the last column; of JSON lines, "
        "the last key, where every object has the same; reported)",
    )
    parser.add_argument("--rows", type=int, default=256, help="rows a batch (default 256; fewer if large)")
    parser.add_argument("--skip-rows", type=int, default=0, metavar="N", help="send only what comes after the first N rows")
    parser.add_argument(
        "--follow",
        action="store_true",
        help="go on as the file (text, JSON lines) grows, until Ctrl-C or --idle; started again, it goes on where it was",
    )
    parser.add_argument("--idle", type=float, metavar="SECONDS", help="with --follow: end where nothing came for so long")
    parser.add_argument(
        "--producer",
        help="a name of your own for the stream; the file is then sent whole, every time (default: made of the file's "
        "content and the task, so that a file sent again continues where it was)",
    )
    add_connection(parser, "stream", "admin")
    add_json(parser)


def send(options: argparse.Namespace) -> int:
    """Send what the daemon does not hold yet, then close the task if asked; a file, or every one of a directory."""
    wrong = _wrong_use(options)
    if wrong is not None:
        print(f"streamcl: {wrong}", file=sys.stderr)
        return 2
    if options.follow:
        return _follow(options)
    if not options.file.is_dir():
        return _send_file(options)
    return _send_directory(options, _files_of(options))


def _send_directory(options: argparse.Namespace, files: list[Path]) -> int:
    """Every file in turn; one without rows, as of a day on which nothing happened, is passed over, and said to be."""
    worst = 0
    for number, file in enumerate(files):
        last = file is files[-1]
        ends = options.boundary and (options.task is None or last)
        each = argparse.Namespace(
            **{**vars(options), "file": file, "boundary": ends, "weight": options.weight if ends else None}
        )
        try:
            worst = max(worst, _send_file(each))
        except NoRows as error:
            print(f"streamcl: {error}; passed over", file=sys.stderr)
            if ends and options.task is not None:
                worst = max(worst, _end(each))
        except StreamclError:
            if not last:
                behind = ", ".join(path.name for path in files[number + 1 :])
                print(f"streamcl: not sent, behind {file.name}: {behind}", file=sys.stderr)
            raise
    return worst


def _end(options: argparse.Namespace) -> int:
    """Close a task whose last file has no rows."""
    with producer(options, f"{options.task}-end") as stream, display(options) as show:
        report = _closed(options, stream, show, already=True)
    _print(options, {"rows": 0, "batches": 0, "batches_already_there": 0, "task": options.task, "notes": [], **report})
    return said_of_rows_aside(report)


def _files_of(options: argparse.Namespace) -> list[Path]:
    """A directory's data files, in the order of their names; says which of its files are none."""
    from streamcl.datafiles.source import ENDINGS

    if options.skip_rows or options.producer:
        raise DataError("--skip-rows, --producer: of one file; name a file of the directory")
    every = sorted(path for path in options.file.iterdir() if path.is_file() and not path.name.startswith("."))
    files = [path for path in every if path.name.lower().removesuffix(".gz").endswith(ENDINGS)]
    others = [path.name for path in every if path not in files]
    if others:
        said = "no data files, by their endings, and not sent"
        print(f"streamcl: {options.file}: {said}: {', '.join(others)}", file=sys.stderr)
    if not files:
        raise DataError(f"{options.file}: expected files that end with {', '.join(ENDINGS)}; it has none")
    names = [_task_of(path) for path in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if options.task is None and twice is not None:
        raise DataError(f"{options.file}: two of its files would be the task {twice!r}; rename one, or say --task")
    return files


def _follow(options: argparse.Namespace) -> int:
    from streamcl.cli.follow import follow

    started = time.monotonic()
    options.task = options.task or _task_of(options.file)
    report = follow(options)
    if options.boundary and not report["told"]:
        with (
            producer(options, f"{options.producer or 'follow'}-end") as stream,
            display(options) as show,
            waited_for(show, options, options.task),
        ):
            report |= _closed(options, stream, show, already=False)
    _print(options, report | {"elapsed": time.monotonic() - started})
    return said_of_rows_aside(report)


def _send_file(options: argparse.Namespace) -> int:
    started = time.monotonic()
    options.task = options.task or _task_of(options.file)
    data = opened(options, options.file, options.rows, known=streamed(options))
    if options.skip_rows >= data.count():
        raise DataError(
            f"{options.file}: it has {data.count()} rows; nothing is left after --skip-rows {options.skip_rows}"
        )
    upload = starting(options, data)
    say(options, data.reading)
    agreement = Agreement(data, options.numbers)
    upload.stream.left_out, before = data.left_out, upload.stream.durable
    with interruptible(lambda: _stored(options, data, upload, before)), upload.stream, display(options) as show:
        report = send_blocks(options, data, upload, agreement, show)
        if options.boundary:
            report |= _closed(options, upload.stream, show, already=report["rows"] == 0)
    _print(options, report | {"elapsed": time.monotonic() - started, "read": read_as(agreement)})
    return said_of_rows_aside(report)


def _stored(options: argparse.Namespace, data: DataFile, upload: Upload, before: int) -> str:
    """What of a file is safe where sending it was interrupted, and how to go on. before: durable when it began."""
    total = data.count() - options.skip_rows
    rows = min(total, upload.rows + (upload.stream.durable - before) * data.block_rows)
    stored = f"{rows} of {total} rows of {options.file} are stored, safe on the daemon's disk"
    if options.producer:  # such a stream counts on, and repeats what is sent again
        return f"{stored}; the same command with --skip-rows {options.skip_rows + rows} sends the rest"
    if rows < total or not options.boundary:
        return f"{stored}; the same command again goes on behind them"
    if upload.stream.unsafe or upload.stream.durable == before + -(-(total - upload.rows) // data.block_rows):
        return f"{stored}, and whether the boundary is stored is not known: the same command again sends it if it is not"
    return (
        f"{stored}, and so is the boundary: the daemon continues with the consolidation of {options.task}, whoever waits. "
        f"`streamcl top` shows its progress, `streamcl tasks` what came of it; the same command again sends nothing twice"
    )


def _closed(options: argparse.Namespace, stream: Producer, show: Bars | Silent, already: bool) -> dict[str, Any]:
    """Close the task, for a report. already: all rows had been stored before, so that it may well be closed too."""
    try:
        with show.waiting(options.task, connector(options)):
            done = stream.boundary(options.task, weight=options.weight)
    except Refused as refused:
        if not already or not refused.message.endswith(CLOSED_ALREADY):  # but held, or withdrawn
            raise
        return {"closed_before": True}
    names = ("samples", "loss", "seconds", "set_aside", "warning")
    return {name: done[name] for name in names if name in done}


def _task_of(file: Path) -> str:
    stem = Path(file.name.removesuffix(".gz")).stem
    return "stdin" if str(file) == "-" else "".join(filter(str.isprintable, stem))[:128] or "file"


def _wrong_use(options: argparse.Namespace) -> str | None:
    if options.task == "":
        return "--task: expected a name, got an empty one"
    if options.rows < 1:
        return "--rows: expected at least 1"
    if options.skip_rows < 0:
        return "--skip-rows: expected at least 0"
    if options.idle is not None and not options.follow:
        return "--idle: of --follow; add it"
    if options.follow and options.skip_rows:
        return "--skip-rows: not with --follow, which sends every row that its stream has not"
    if options.follow and (str(options.file) == "-" or options.file.is_dir()):
        return "--follow: expected one text file that grows"
    if options.follow and options.boundary and options.idle is None:
        return "--boundary: with --follow, say with --idle SECONDS when the file has ended"
    if options.weight is not None and not options.boundary:
        return "--weight is given at a task's boundary; add --boundary"
    return None


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
    if "closed_before" in report:
        print(f"task {report['task']!r} had been closed with them before")
    if "loss" in report:
        print(f"consolidated: {report['samples']} samples, loss {report['loss']:.4g}, {report['seconds']:.2f} s")
