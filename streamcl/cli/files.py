"""What the commands that read data files share: options, how a file was read, agreeing on types with the daemon."""

from __future__ import annotations

import argparse
import atexit
import contextlib
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO, TypeAlias, TypeVar

from streamcl import columns as tables
from streamcl.cli.common import admin
from streamcl.cli.progress import display
from streamcl.errors import OF_ROWS, DataError, Refused, StreamclError

if TYPE_CHECKING:
    from streamcl.client import Reader
    from streamcl.datafiles import Array, Columns, DataFile, Form, Reading, Schema

T = TypeVar("T")
Trial: TypeAlias = "Callable[[Array, Array | None, Schema | None], T]"
KIND_CODES = frozenset({"bad_array", "bad_shape"})  # with which a daemon or its model refuses one kind of x
HEAD_BYTES = 512
STARTS: tuple[tuple[bytes, str], ...] = (
    (b"PAR1", ".parquet"),
    (b"ARROW1", ".arrow"),
    (b"PK\x03\x04", ".npz"),
    (b"{", ".jsonl"),
)
STARTS += ((b"\x1f\x8b", ".csv.gz"),)
WORDS = {"integer": "64-bit integers", "real": "64-bit floats"}


def add_columns(parser: argparse.ArgumentParser, label: str) -> None:
    """Options that say how to read a data file."""
    parser.add_argument("--label", "--y", metavar="COLUMN", help=label)
    parser.add_argument(
        "--features",
        action="append",
        default=[],
        metavar="A,B,C",
        help="a table's columns of data, in this order (default: all but the label and an index)",
    )
    parser.add_argument(
        "--drop", action="append", default=[], metavar="A,B", help="a table's columns to leave out; may be given again"
    )
    parser.add_argument(
        "--header",
        choices=("yes", "no"),
        help="whether a text file's first line has the columns' names (default: detected, and reported); without names, "
        "columns are named by their numbers, from 0, or backwards from -1",
    )
    parser.add_argument("--x", help="the array of inputs in an NPZ file")
    parser.add_argument(
        "--numbers",
        choices=("integer", "real"),
        help="send inputs as integers, for an embedding, or as real numbers (default: as a Parquet or NPZ file has them, a "
        "text file's as real numbers; where the model takes the other kind only, as that)",
    )


def columns(options: argparse.Namespace, labelled: bool = True) -> Columns:
    """What the options say about a file."""
    from streamcl.datafiles import Columns

    header = None if options.header is None else options.header == "yes"
    return Columns(options.x, options.label, labelled, tuple(options.features), tuple(options.drop), header)


def opened(
    options: argparse.Namespace, path: Path, rows: int, labelled: bool = True, known: Mapping[str, Any] | None = None
) -> DataFile:
    """A data file that has been read whole and is sound; on a terminal, with progress. Raises DataError.

    The file ``-`` is standard input, which is put down first, since a file is read twice. known: as for `fit`, where it is
    known before.
    """
    from streamcl.datafiles import open_data

    path = _put_down(sys.stdin.buffer) if str(path) == "-" and not path.exists() else path
    data = open_data(path, columns(options, labelled), rows, named=True)
    if known is not None:
        fit(data, known, check=False)
    with display(options) as show, show.counting(f"checking {path.name}", None) as advance:
        before = 0
        for row in data.checking():
            advance(row - before)
            before = row
    if options.numbers is not None:
        data.refuse_kind(options.numbers)
    return data


def _put_down(stream: BinaryIO) -> Path:
    """What is read to its end as a file, for as long as this process lives; named for what its first bytes are."""
    start = stream.read(HEAD_BYTES)
    ending = next((ending for magic, ending in STARTS if start.lstrip().startswith(magic)), ".csv")
    directory = Path(tempfile.mkdtemp(prefix="streamcl-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    path = directory / f"standard-input{ending}"
    with path.open("wb") as file:
        file.write(start)
        shutil.copyfileobj(stream, file)
    return path


def fit(data: DataFile, said: Mapping[str, Any], check: bool = True) -> None:
    """Read a file on as a daemon's welcome says: by the columns of its stream, if it has begun. Raises DataError."""
    schema = said.get("schema")
    columns = None if schema is None else tables.from_plain(schema)
    data.fit(columns, said.get("left_out", ()), bool(said.get("begun", False)), check)


def predicted(daemon: Reader) -> dict[str, Any]:
    """What `fit` takes, by what the predictor knows; before the first batch, and of a daemon that does not say, nothing."""
    with contextlib.suppress(Refused):
        return {"begun": True, **(daemon.schema() or {})}
    return {}


def fit_as_predicted(data: DataFile, daemon: Reader) -> None:
    """As `fit`, by what the predictor knows."""
    fit(data, predicted(daemon))


def streamed(options: argparse.Namespace) -> dict[str, Any] | None:
    """What `fit` takes, by what the daemon says to operators; None where it may not be asked, and says so to producers."""
    if getattr(options, "stream", None) and not options.admin:
        return None  # it is not known which daemon's admin endpoint to ask
    with contextlib.suppress(StreamclError, OSError), admin(options) as daemon:
        said = daemon.status()
        return {"begun": said["batches_durable"] > 0, "schema": said.get("schema"), "left_out": said.get("left_out", ())}
    return None


def say(options: argparse.Namespace, reading: Reading, stream: TextIO | None = None) -> None:
    """Print how the file was read, unless that goes into JSON."""
    if not options.json:
        print(*reading.lines(), sep="\n", file=stream or sys.stdout, flush=True)


def read_as(agreement: Agreement) -> dict[str, Any]:
    """How the file was read, and what was changed on the way, for JSON."""
    plain = agreement.data.reading.plain()
    return {**plain, "notes": [*plain["notes"], *agreement.notes]}


class Agreement:
    """The form of a file's numbers that the daemon and its model take: as they are, or another that changes none of them.

    said: the kind of x asked for. note: what had to be changed, in words, once it is known.
    """

    def __init__(self, data: DataFile, said: str | None) -> None:
        self.data = data
        self.said: Any = said
        self.form: Form | None = None
        self.notes: list[str] = []

    def of(self, x: Array, y: Array | None) -> tuple[Array, Array | None, Schema | None]:
        """A block in the form agreed on, and its columns if they have names."""
        assert self.form is not None
        return self.data.batch(x, y, self.form)

    def try_on(self, x: Array, y: Array | None, trial: Trial[T]) -> T:
        """The first block in the first form that the trial takes. Raises the first refusal if it takes none."""
        first: Refused | None = None
        form: Form | None = self.data.form(self.said)
        tried: list[Form] = []
        while form is not None and form not in tried:
            tried.append(form)
            try:
                done = trial(*self.data.batch(x, y, form))
            except Refused as refused:
                first = first or refused
                form = self._other(form, refused)
                continue
            self.form = form
            self._note(form)
            return done
        assert first is not None
        raise first

    def _other(self, form: Form, refused: Refused) -> Form | None:
        """The form to try after a refusal, if there is one."""
        if refused.code == "bad_label" and self.data.whole_targets() and not form.integer_targets:
            return self.data.form(form.kind, integer_targets=True)
        if refused.code not in KIND_CODES or self.said is not None:
            return None
        kind = form.kind or self.data.kind()
        try:
            return self.data.form("real" if kind == "integer" else "integer", form.integer_targets)
        except DataError as error:
            if refused.code == "bad_array" and OF_ROWS not in refused.message:
                raise Refused(refused.code, f"{refused.message}; {error}", seq=refused.seq) from None
            return None

    def _note(self, form: Form) -> None:
        if form.kind is not None and form.kind != self.data.kind():
            why = "as --numbers says" if self.said else "the only kind of numbers that the daemon's model takes"
            self.notes.append(f"{self.data.path}: features go as {WORDS[form.kind]}, {why}; none is changed by it")
        if form.integer_targets and self.data.truths:
            self.notes.append(f"{self.data.path}: True and False go as 1 and 0: the daemon's model takes numbers")
        elif form.integer_targets:
            self.notes.append(f"{self.data.path}: labels go as integers; none is changed by it")

    def blocks(self, trial: Trial[T], then: Trial[T]) -> Iterator[T]:
        """Every block of the file; the first one is tried, unless a form was agreed on before."""
        for x, y in self.data.blocks():
            yield self.try_on(x, y, trial) if self.form is None else then(*self.of(x, y))


@contextlib.contextmanager
def placed(data: DataFile, first_row: Callable[[int], int], stored: bool = True) -> Iterator[None]:
    """Refusals of a batch say which rows of the file it has. first_row: of the batch of a sequence number."""
    try:
        yield
    except Refused as refused:
        if refused.seq is None:
            raise
        start = first_row(refused.seq)
        end = min(start + data.block_rows, data.count())
        behind = f"; the {start} rows before are stored: correct the file and send it again" if stored else ""
        where = f"in {data.path}, {data.place(start)} to {data.place(end - 1)}{behind if start else ''}"
        raise Refused(
            refused.code, f"{refused.message}; {where}", retryable=refused.retryable, seq=refused.seq, **refused.fields
        ) from None
