"""What the commands that read data files share: options, how a file was read, agreeing on types with the daemon."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, TypeVar

from streamcl.cli.progress import display
from streamcl.errors import DataError, Refused

if TYPE_CHECKING:
    from streamcl.datafiles import Array, Columns, DataFile, Form, Reading

T = TypeVar("T")
KIND_CODES = frozenset({"bad_array", "bad_shape"})  # with which a daemon or its model refuses one kind of x
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


def opened(options: argparse.Namespace, path: Path, rows: int, labelled: bool = True) -> DataFile:
    """A data file that has been read whole and is sound; on a terminal, with progress. Raises DataError."""
    from streamcl.datafiles import open_data

    data = open_data(path, columns(options, labelled), rows)
    with display(options) as show, show.counting(f"checking {path.name}", None) as advance:
        before = 0
        for row in data.checking():
            advance(row - before)
            before = row
    if options.numbers is not None:
        data.refuse_kind(options.numbers)
    return data


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

    def of(self, x: Array, y: Array | None) -> tuple[Array, Array | None]:
        """A block in the form agreed on."""
        assert self.form is not None
        return self.form.of(x, y)

    def try_on(self, x: Array, y: Array | None, trial: Callable[[Array, Array | None], T]) -> T:
        """The first block in the first form that the trial takes. Raises the first refusal if it takes none."""
        first: Refused | None = None
        form: Form | None = self.data.form(self.said)
        tried: list[Form] = []
        while form is not None and form not in tried:
            tried.append(form)
            try:
                done = trial(*form.of(x, y))
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
            if refused.code == "bad_array":
                raise Refused(refused.code, f"{refused.message}; {error}", seq=refused.seq) from None
            return None

    def _note(self, form: Form) -> None:
        if form.kind is not None and form.kind != self.data.kind():
            why = "as --numbers says" if self.said else "the only kind of numbers that the daemon's model takes"
            self.notes.append(f"{self.data.path}: features go as {WORDS[form.kind]}, {why}; none is changed by it")
        if form.integer_targets:
            self.notes.append(f"{self.data.path}: labels such as 1.0 go as integers; none is changed by it")

    def blocks(self, trial: Callable[[Array, Array | None], T], then: Callable[[Array, Array | None], T]) -> Iterator[T]:
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
