"""Text files as spreadsheets, pandas, R, databases and instruments write them: CSV and its relatives.

Guarantees: the dialect is determined from the file's beginning and applies to all of it; what does not fit is refused with
its line. A row holds as many cells as every other. Files are read in blocks; a line is the largest thing held.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import itertools
import re
import threading
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from streamcl.datafiles.cells import BadCell, Marks, looks_numeric, numbers, shown, together
from streamcl.datafiles.source import Array
from streamcl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

READ_BYTES = 1 << 20
MANY_LINES, MOST_BYTES = 64, 1 << 25
SAMPLE_ROWS = 100
SAMPLE_LINES_BYTES = 1 << 20
BLANKS = " "  # as a delimiter: any number of blanks
DELIMITERS = ("\t", ";", "|", ",")  # in this order, if two of them explain a file equally well
CALLED = {"\t": "tabs", ";": "semicolons", "|": "bars", ",": "commas", BLANKS: "blanks"}
COUNTING = 4  # from this many columns on, a first row 0, 1, 2, 3 is a header
UNNAMED = "Unnamed: 0"
ROW_NAMES = "row.names"
AS_MANY = "expected lines of as many numbers each"
COMMENT = ("#", "%")
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

Record = tuple[int, list[str]]  # the line that it begins on, from 1, and its cells


@dataclass(slots=True)
class Layout:
    """How a text file is written.

    skip: lines before the first row. trailing: each row ends with a delimiter.
    """

    encoding: str = "utf-8"
    packed: bool = False
    delimiter: str = ","
    skip: int = 0
    names: list[str] = field(default_factory=list)
    header: str = ""
    trailing: bool = False
    longest: int = 0


class Text:
    """A text file as a source of columns."""

    declared = False

    def __init__(self, path: Path, packed: bool, header: bool | None) -> None:
        self.path = path
        self.notes: list[str] = []
        self.row_names: dict[str, str] = {}
        self.layout = Layout(packed=packed)
        self._unpaired = False
        self._find_encoding()
        _Beginning(self, header).understand()
        if self._unpaired:
            self._refuse_open_end()
        self.names: Sequence[str] = self.layout.names
        self.indexes: Mapping[str, str] = self.row_names
        self.header: str | None = self.layout.header
        self.kind = "text"

    # -- encoding ----------------------------------------------------------------------------------------------------

    def _find_encoding(self) -> None:
        """By the mark at its beginning, else UTF-8 if all of it is valid, else Windows-1252; reads the file once."""
        with self.bytes() as file:
            start = file.read(4)
        marked = next((name for mark, name in BOMS if start.startswith(mark)), None)
        if marked == "utf-32":
            raise DataError(f"{self.path}: expected UTF-8, got UTF-32; save it as UTF-8")
        self.layout.encoding = marked or "utf-8"
        self.layout.longest, sound = self._measure()
        if marked == "utf-16":
            self.notes.append("encoding: UTF-16, by the mark at its beginning")
        elif not sound:
            self.layout.encoding = "cp1252"
            self.notes.append("encoding: not UTF-8, so Windows-1252 (Latin-1) was assumed")

    def _measure(self) -> tuple[int, bool]:
        """The longest line in bytes, and whether all is in the encoding found; notes unpaired quotation marks."""
        decoder = codecs.getincrementaldecoder(self.layout.encoding)()
        longest = held = quotes = 0
        sound = True
        with self.bytes() as file:
            while block := file.read(READ_BYTES):
                if self.layout.encoding != "utf-16" and b"\0" in block:
                    raise DataError(
                        f"{self.path}: expected text, got zero bytes; is it another kind of file, or UTF-16 without its "
                        "mark? Save it as UTF-8"
                    )
                ends = np.flatnonzero(np.isin(np.frombuffer(block, np.uint8), (10, 13)))
                edges = np.concatenate([[-held], ends, [len(block)]])
                longest = max(longest, int(np.diff(edges).max()))
                held = len(block) - int(ends[-1]) if len(ends) else held + len(block)
                quotes += block.count(b'"')
                sound = sound and self._decodes(decoder, block)
        self._unpaired = quotes % 2 == 1 or (quotes > 0 and self.layout.encoding == "utf-16")  # whose bytes say little
        return longest, sound and self._decodes(decoder, b"", final=True)

    def _decodes(self, decoder: codecs.IncrementalDecoder, block: bytes, final: bool = False) -> bool:
        try:
            decoder.decode(block, final)
        except UnicodeDecodeError as error:
            if self.layout.encoding == "utf-16":
                raise DataError(f"{self.path}: not UTF-16 as its mark says ({error.reason}); save it as UTF-8") from None
            return False
        return True

    @contextmanager
    def bytes(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked."""
        try:
            with gzip.open(self.path) if self.layout.packed else self.path.open("rb") as file:
                yield file  # type: ignore[misc]
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise DataError(f"{self.path}: not a whole gzip file ({error}); copy it again, or unpack it (gunzip)") from None

    @contextmanager
    def lines(self, skip: int = 0) -> Iterator[io.TextIOWrapper]:
        """The file's text after `skip` lines, line ends unchanged."""
        errors = "replace" if self.layout.encoding == "cp1252" else "strict"
        with self.bytes() as file:
            text = io.TextIOWrapper(file, self.layout.encoding, errors=errors, newline="")
            for _ in range(skip):
                text.readline()
            yield text

    # -- rows --------------------------------------------------------------------------------------------------------

    def records(self, text: io.TextIOWrapper, skipped: int) -> Iterator[Record]:
        """Rows as written, with the line on which each begins; blank lines do not count. Slow; for messages and samples."""
        return records(self.path, text, self.layout.delimiter, skipped)

    def _refuse_open_end(self) -> None:
        """Raise DataError where the last row ends within quotation marks, as where a file was cut off."""
        with self.lines(self.layout.skip) as text:
            lines = map(_single_blanks, text) if self.layout.delimiter == BLANKS else text
            marked = itertools.chain(lines, ["\n", "end"])  # which a quotation mark that is open takes in
            for line, cells in _quoted(self.path, marked, self.layout.delimiter, self.layout.skip):
                last = line, cells
        if last[1] != ["end"]:
            raise DataError(
                f"{self.path}: line {last[0]}: a quotation mark is opened there and never closed: the file may have been "
                "cut off; copy it again, or correct the line"
            )

    def place(self, row: int) -> str:
        """The line of a row."""
        found = self._record(row)
        return f"row {row} (from 0)" if found is None else f"line {found[0]}"

    def _record(self, row: int) -> Record | None:
        with self.lines(self.layout.skip) as text:
            return next(itertools.islice(self.records(text, self.layout.skip), row, None), None)

    def chunks(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """Columns as int64, float64 or bool, as each chunk has them. Raises DataError with line and column."""
        marks, row = Marks(), 0
        for batch in self._batches():
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            if self.layout.trailing:
                self._check_trailing(columns[""], row)
            *most, last = names
            found = together(most, [columns[name] for name in most], row, marks) or [
                self._numbers(name, columns[name], row, marks) for name in most
            ]
            yield [*found, self._numbers(last, columns[last], row, marks)]
            row += batch.num_rows
        self._judge(marks)

    def cells(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        """Columns as text. Raises DataError with the line."""
        row = 0
        for batch in self._batches():
            columns = dict(zip(batch.schema.names, batch.columns, strict=True))
            if self.layout.trailing:
                self._check_trailing(columns[""], row)
            yield [columns[name] for name in names]
            row += batch.num_rows

    def numbers(self, name: str, cells: pa.Array, row: int, marks: Marks) -> Array:
        """Cells, none of which is missing, as int64, float64 or bool. Raises DataError with line and column."""
        return self._numbers(name, cells, row, marks)

    def judge(self, marks: Marks) -> None:
        """Raise DataError where commas may be thousands separators."""
        self._judge(marks)

    def _numbers(self, name: str, cells: pa.Array, row: int, marks: Marks) -> Array:
        try:
            return numbers(name, cells, row, marks)
        except BadCell as bad:
            raise DataError(f"{self.path}: {self.place(row + bad.index)}, column {name!r}: {bad}") from None

    def _judge(self, marks: Marks) -> None:
        """Commas that might be thousands separators are refused, unless semicolons show that they are not."""
        if marks.comma is None:
            return
        row, column = marks.comma
        if not marks.proven and self.layout.delimiter != ";":
            raise DataError(
                f"{self.path}: {self.place(row)}, column {column!r}: is its comma a decimal one, or a thousands "
                "separator? Write the numbers with a decimal point and no thousands separators"
            )
        note = "decimal commas: 1,5 is one and a half"
        if note not in self.notes:
            self.notes.append(note)

    def _check_trailing(self, cells: pa.Array, row: int) -> None:
        import pyarrow.compute as pc

        filled = pc.greater(pc.utf8_length(pc.utf8_trim_whitespace(cells)), 0).index(True).as_py()
        if filled >= 0:
            raise DataError(
                f"{self.path}: {self.place(row + filled)}: expected nothing after the last delimiter, as in the lines "
                f"above, got {shown(cells[filled].as_py())}"
            )

    def _batches(self) -> Iterator[pa.RecordBatch]:
        """All cells as text."""
        import pyarrow as pa
        from pyarrow import csv as arrow

        names = [*self.layout.names, *([""] if self.layout.trailing else [])]
        with self.lines(self.layout.skip) as text:
            feed = _Feed(_squeezed(text) if self.layout.delimiter == BLANKS else _blocks(text))
            source = pa.PythonFile(feed, mode="r")
            try:
                yield from arrow.open_csv(
                    source,
                    arrow.ReadOptions(column_names=names, block_size=self._block_size(), use_threads=False),
                    arrow.ParseOptions(delimiter=self.layout.delimiter, newlines_in_values=True),
                    arrow.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False),
                )
            except pa.ArrowInvalid as error:
                feed.end()
                _ENDED.append(source)
                if "Empty CSV" in str(error):
                    return
                self._refuse_ragged()
                raise DataError(f"{self.path}: {error}; {AS_MANY}") from None

    def _block_size(self) -> int:
        """At least several lines, and many as long as that takes little memory."""
        longest = self.layout.longest
        return max(READ_BYTES, 4 * longest, min(MANY_LINES * longest, MOST_BYTES))

    def _refuse_ragged(self) -> None:
        """Raise DataError naming the line whose number of cells differs from the rest."""
        width = len(self.layout.names) + self.layout.trailing
        with self.lines(self.layout.skip) as text:
            for line, cells in self.records(text, self.layout.skip):
                if len(cells) != width:
                    raise ragged(self.path, line, len(cells), width, cells)


def head_of(text: Text) -> bytes:
    """What stands before its first row, as it is written."""
    with text.bytes() as file:
        return b"".join(file.readline() for _ in range(text.layout.skip))


def records(path: Path, lines: Iterator[str], delimiter: str, skipped: int = 0) -> Iterator[Record]:
    """Rows of lines, with the line each begins on; blank lines are no rows."""
    if delimiter == BLANKS:
        for number, line in enumerate(lines, skipped + 1):
            if line.strip():
                yield number, line.split()
        return
    yield from _quoted(path, lines, delimiter, skipped)


def _quoted(path: Path, lines: Iterator[str], delimiter: str, skipped: int) -> Iterator[Record]:
    """As `records`, by single delimiters, with cells in quotation marks."""
    reader = csv.reader(lines, delimiter=delimiter)
    before = 0
    try:
        for cells in reader:
            if cells:
                yield skipped + before + 1, cells
            before = reader.line_num
    except csv.Error as error:
        raise DataError(
            f"{path}: line {skipped + before + 1}: {error}; is a quotation mark opened there and never closed?"
        ) from None


def ragged(path: Path, line: int, got: int, width: int, cells: Sequence[str]) -> DataError:
    """A line with too few or too many cells."""
    opened = any("\n" in cell or "\r" in cell for cell in cells)
    hint = "; is a quotation mark opened there and never closed?" if opened else ""
    return DataError(
        f"{path}: line {line}: {AS_MANY}, {width} as in the others, got {got}{hint or '; correct or delete it'}"
    )


_ENDED: list[Any] = []  # sources that Arrow's thread may still hold: if it let go last, as Python ends, it would abort
READING_SECONDS = 0.5  # for that thread to come to the end of a file that nobody reads on


class _Feed:
    """Blocks of bytes as a file to read from."""

    closed = False

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._held = b""  # at most a read and a block
        self._turn, self._ended = threading.Lock(), threading.Event()

    def read(self, size: int = -1) -> bytes:
        """`size` bytes, fewer at the end only: Arrow cuts its chunks where a read ends."""
        with self._turn:
            part = self._read(size)
        if not part:
            self._ended.set()
        return part

    def end(self) -> None:
        """There is nothing more from here on. Arrow reads ahead in a thread of its own, also of what it has refused: it is
        waited for, since a thread that wants Python while it ends aborts the process."""
        with self._turn:
            self._blocks, self._held = iter(()), b""
        self._ended.wait(READING_SECONDS)

    def _read(self, size: int) -> bytes:
        while size < 0 or len(self._held) < size:
            block = next(self._blocks, b"")
            if not block:
                break
            self._held += block
        part, self._held = (self._held, b"") if size < 0 else (self._held[:size], self._held[size:])
        return part

    def close(self) -> None:
        """Nothing to close: the text underneath belongs to its owner."""


def _blocks(text: io.TextIOWrapper) -> Iterator[bytes]:
    while block := text.read(READ_BYTES):
        yield block.encode()


def _single_blanks(line: str) -> str:
    """A line with a single blank between cells."""
    return " ".join(line.split()) + "\n"


def _squeezed(text: io.TextIOWrapper) -> Iterator[bytes]:
    """Lines with a single blank between cells."""
    while lines := text.readlines(READ_BYTES):
        yield "".join(map(_single_blanks, lines)).encode()


# -- what a beginning tells ----------------------------------------------------------------------------------------------


class _Beginning:
    """A file's first rows, and what they say of the rest."""

    def __init__(self, text: Text, header: bool | None) -> None:
        self.text = text
        self.path = text.path
        self.layout = text.layout
        self.said = header
        self.lines: list[str] = []
        self.comment: str | None = None

    def understand(self) -> None:
        """Find delimiter, header and names."""
        self._read_lines()
        self._skip_preamble()
        rows = self._rows()
        self._name(rows)

    def _read_lines(self) -> None:
        size = 0
        with self.text.lines() as text:
            for line in text:
                self.lines.append(line)
                size += len(line)
                if len(self.lines) > SAMPLE_ROWS and size > SAMPLE_LINES_BYTES:
                    break

    def _skip_preamble(self) -> None:
        """Comments and blank lines at the top, and the line by which Excel is told the delimiter."""
        at = comments = 0
        while at < len(self.lines) and (not self.lines[at].strip() or self.lines[at].lstrip().startswith(COMMENT)):
            if self.lines[at].strip():
                comments, self.comment = comments + 1, self.lines[at].strip()
            at += 1
        if comments:
            self.text.notes.append(f"{comments} comment {'line' if comments == 1 else 'lines'} at the top skipped")
        self.layout.skip = at
        told = re.fullmatch(r"sep=(.)\s*", self.lines[at]) if at < len(self.lines) else None
        if told is not None:
            self.layout.skip += 1
        rest = self.lines[self.layout.skip :]
        self.layout.delimiter = told[1] if told is not None else _delimiter(self.path, rest)

    def _rows(self) -> list[Record]:
        found = records(self.path, iter(self.lines[self.layout.skip :]), self.layout.delimiter, self.layout.skip)
        rows = [(line, [cell.strip() for cell in cells]) for line, cells in itertools.islice(found, SAMPLE_ROWS)]
        if not rows:
            raise DataError(f"{self.path}: {AS_MANY}, it is empty")
        if self.layout.delimiter != ",":
            self.text.notes.append(f"delimiter: {CALLED.get(self.layout.delimiter, self.layout.delimiter)}")
        return rows

    def _name(self, rows: list[Record]) -> None:
        """The columns' names, and where the first row of data is."""
        first, rest = rows[0][1], [cells for _, cells in rows[1:]]
        width = Counter(map(len, rest)).most_common(1)[0][0] if rest else len(first)
        empty_end = all(cells[-1] == "" for cells in rest if len(cells) == width) if rest else first[-1] == ""
        named = _are_row_names([cells[0] for cells in rest if len(cells) == width])
        named = named and (len(first) > 1 or self.layout.delimiter != ",")  # otherwise more likely a decimal comma
        short = bool(rest) and len(first) == width - 1 and (empty_end or named)
        taken, why = self._is_header(rows, short)
        if taken:
            names = list(first)
            if short and not empty_end:
                names = [ROW_NAMES, *first]
                self.text.row_names[ROW_NAMES] = "row names, which R writes without a name above them"
            self.layout.trailing = empty_end and width > 1 and (short or first[-1] == "")
            if self.layout.trailing and not short:
                names.pop()
            self._skip_header(rows)
        elif short and rest:
            raise self._first_odd(rows, width)
        else:
            from_comment = self._names_of_comment(len(first)) if self.said is None else None
            names, why = from_comment if from_comment is not None else ([str(n) for n in range(len(first))], why)
            self.layout.trailing = empty_end and width > 1 and first[-1] == ""
            if self.layout.trailing:
                names.pop()
        if self.layout.trailing:
            self.text.notes.append("each line ends with a delimiter; nothing follows it")
        if rest and len(names) + self.layout.trailing != width and len(first) != width and not short:
            raise self._first_odd(rows, width)
        self.layout.header = why
        self.layout.names = self._told_apart(names, taken)

    def _first_odd(self, rows: list[Record], width: int) -> DataError:
        """The first row is not as wide as most others; but if one of these spans several lines, it is blamed first."""
        for line, cells in rows[1:]:
            if len(cells) != len(rows[0][1]) and any("\n" in cell for cell in cells):
                return ragged(self.path, line, len(cells), len(rows[0][1]), cells)
        return ragged(self.path, rows[0][0], len(rows[0][1]), width, rows[0][1])

    def _skip_header(self, rows: list[Record]) -> None:
        """Everything up to the line on which the row after the header begins."""
        self.layout.skip = rows[1][0] - 1 if len(rows) > 1 else len(self.lines)

    def _names_of_comment(self, width: int) -> tuple[list[str], str] | None:
        """Names in the last comment, as numpy.savetxt writes its header."""
        if self.comment is None:
            return None
        text = self.comment.lstrip("".join(COMMENT)).strip()
        cells = next(records(self.path, iter([text]), self.layout.delimiter), (0, [""]))[1]
        cells = [cell.strip() for cell in cells]
        if len(cells) != width or any(looks_numeric(cell) for cell in cells) or len(set(cells)) < width:
            return None
        return cells, "yes (the comment at the top has a name for each column)"

    def _told_apart(self, names: list[str], header: bool) -> list[str]:
        """Gives every column its own name."""
        if header and names[0] == "":
            names[0] = UNNAMED
        if header and names[0] == UNNAMED:
            self.text.row_names[UNNAMED] = "row names, as pandas and R write them"
        found: dict[str, None] = {}
        for number, name in enumerate(names):
            own = name or f"column {number}"
            copies = itertools.count(1)
            while own in found:
                own = f"{name}.{next(copies)}"
            if own != name and name:
                self.text.notes.append(f"two columns are named {name!r}; the second is {own!r} here")
            found[own] = None
        return list(found)

    # -- is the first row a header? ----------------------------------------------------------------------------------

    def _is_header(self, rows: list[Record], short: bool) -> tuple[bool, str]:
        """Whether the first row has names, and how that is known. Raises DataError where it cannot be known."""
        line, first = rows[0]
        rest = [cells for _, cells in rows[1:]]
        if self.said is not None:
            return self.said, f"{'yes' if self.said else 'no'} (--header)"
        if all(looks_numeric(cell) for cell in first):
            return self._numeric_header(line, first, rest)
        words = [at for at, cell in enumerate(first) if not looks_numeric(cell)]
        shift = int(short)
        below = [[cells[at + shift] for cells in rest if len(cells) > at + shift] for at in words]
        also_words = bool(rest) and all(column and not any(map(looks_numeric, column)) for column in below)
        if also_words and len(words) < len(first):
            return False, f"no (line {line} has numbers, and words only where the lines below have words)"
        named = [_is_like_a_name(first[at]) for at in words]
        if not all(named) and (len(words) < len(first) or not any(named)):
            odd = first[words[named.index(False)]]
            raise DataError(
                f"{self.path}: line {line} has {odd!r}, which is neither a number nor like a column's name: is this a "
                "header, or a row with a bad cell? Say --header yes, or --header no, or correct it"
            )
        return True, f"yes (line {line} has names)"

    def _numeric_header(self, line: int, first: list[str], rest: list[list[str]]) -> tuple[bool, str]:
        """A first row of numbers is data, unless it counts the columns, as pandas writes a frame without names."""
        core = first[1:] if first[0] == "" else first
        if not core or core != [str(n) for n in range(len(core))]:
            return False, f"no (line {line} has numbers)"
        if first[0] == "":  # above pandas's index: whole numbers, each once
            index = [cells[0] for cells in rest]
            counted = index == [str(n) for n in range(len(index))]
            whole = all(cell.isdecimal() for cell in index) and len(set(index)) == len(index)
            if index and (counted or (whole and len(core) >= COUNTING)):
                return True, f"yes (line {line} counts the columns, as pandas does)"
            return False, f"no (line {line} has numbers)"
        goes_on = bool(rest) and rest[0] == [str(n + len(core)) for n in range(len(core))]
        if not rest or len(core) < COUNTING or goes_on:
            raise DataError(
                f"{self.path}: line {line} is {','.join(core[:3])}{',...' if len(core) > 3 else ''}: are "
                "these the columns' numbers, as pandas writes them above a frame without names, or a row of data? Say "
                "--header yes or --header no"
            )
        return True, f"yes (line {line} counts the columns from 0, as pandas does; if it is a row, say --header no)"


def _is_like_a_name(cell: str) -> bool:
    """Whether a cell that is no number begins as names do: not with a digit, a sign, a currency."""
    return not cell or cell[0].isalpha() or cell[0] in "_#\"'"


def _are_row_names(cells: list[str]) -> bool:
    """Whether a column without a name above it is R's: words, or a count from 1."""
    counted = cells == [str(n) for n in range(1, len(cells) + 1)]
    return counted or not any(map(looks_numeric, cells))


def _delimiter(path: Path, lines: list[str]) -> str:
    """What separates cells: whatever cuts most lines into the same number of cells, more than one."""
    best, share = ",", 0.0
    for delimiter in DELIMITERS:
        try:
            counts = Counter(
                len(cells) for _, cells in itertools.islice(records(path, iter(lines), delimiter), SAMPLE_ROWS)
            )
        except DataError:
            continue
        width, alike = max(counts.items(), key=lambda item: (item[1], item[0]), default=(1, 0))
        agreed = alike / max(1, sum(counts.values()))
        if width > 1 and agreed > share:
            best, share = delimiter, agreed
    return BLANKS if share == 0.0 and _by_blanks(lines) else best


def _by_blanks(lines: list[str]) -> bool:
    """Whether lines of more than one number are separated by blanks, the first one aside."""
    rows = [line.split() for line in lines[:SAMPLE_ROWS] if line.strip()]
    body = rows[1:] or rows
    return bool(body) and len(body[0]) > 1 and all(len(r) == len(body[0]) and any(map(looks_numeric, r)) for r in body)
