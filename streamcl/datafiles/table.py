"""A table whose columns go by their names: which are numbers, words, dates or identifiers, and how their rows travel.

The whole file is looked at first. A column's cells decide:

    number       every cell that is not missing is one, or True or False
    date         every cell is one: 2026-11-27, 2026/11/27, 27.11.2026 or 27/11/2026 (or 11/27/2026, if one of them tells
                 which), with a time of day or without; it becomes numbers (`dataframes.PARTS`)
    words        otherwise, and a new stream's target of nothing but True and False; but where nine in ten cells are
                 numbers (or dates), the others are mistakes, and refused
    identifier   words of which there is one a row, or nearly; or whole numbers, one a row, under a name like ``id``:
                 nothing can be learned from it, so it is left out, unless it is asked for (--features)

Where the stream has columns already, those decide: its words stay words even if a file's look like numbers, and what
was left out of its first file is left out of every other. All of that is said (`Reading`).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from streamcl import dataframes
from streamcl.columns import Column, Columns, Kind
from streamcl.datafiles.cells import BOOLEANS, MISSING, Marks, is_missing, shown, together, wrong_cell
from streamcl.datafiles.choice import Choice, listed
from streamcl.datafiles.source import Array, Source
from streamcl.errors import DataError, NoRows
from streamcl.schema import few

if TYPE_CHECKING:
    import pyarrow as pa

MOSTLY = 0.9  # of the cells: then the others are mistakes
MOST_LABELS = 100  # different whole numbers of a target; beyond, they are measurements
MOST_DISTINCT = 100_000  # cells of a column that are told apart
NUMBER = r"^[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?$"
DAY = r"(\d{4}-\d{2}-\d{2}|\d{4}/\d{2}/\d{2}|\d{1,2}\.\d{1,2}\.\d{4}|\d{1,2}/\d{1,2}/\d{4})"
DAY_FIRST, MONTH_FIRST = r"^(1[3-9]|2\d|3[01])/\d{1,2}/\d{4}", r"^\d{1,2}/(1[3-9]|2\d|3[01])/\d{4}"
EITHER = re.compile(r"\d{1,2}/\d{1,2}/\d{4}")
THOUSANDS = r"^[^\w\s.,+-]?\s?[+-]?[1-9]\d{0,2}([,. '\x{00a0}\x{202f}]\d{3})+([.,]\d+)?$"
CLOCK = re.compile(r"\d{1,2}:\d\d(:\d\d(\.\d+)?)?")
DRESSED = re.compile(r"\(?[$€£¥₹]?\s*[-+]?\s*[$€£¥₹]?\d[\d.,]*\s*([%€$£¥₹]|[A-Za-z°µ]{1,4}(/[A-Za-z]{1,3})?)?\)?")
ALL_OF_A_NUMBER = re.compile(r"[\d.,\s+-]")
WHOLE = re.compile(r"[+-]?\d+$")
PADDED, PADDED_ROWS = r"^0\d+$", 1000  # of a file, that are looked at for it
TIME = r"[T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?(Z| ?UTC|[+-]\d{2}:?\d{2})?"
DATE = f"^{DAY}({TIME})?$"
MOST_TOLD, TOLD_BYTES = 128, 4 << 10  # a column's words that the first batch tells of, whether they occur in it or not
HEADER_BYTES = 56 << 10  # of a batch's words, which its header has beside a little else
ColumnKind = str  # "number", "date", "words", "empty" or "nested"


class Columnar(Source, Protocol):
    """A source whose columns can be had as they are written."""

    notes: list[str]

    def cells(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        """These columns, chunk by chunk, always cut alike: text, or of the type that the file declares."""
        ...

    def numbers(self, name: str, cells: pa.Array, row: int, marks: Marks) -> Array:
        """Numbers, none of which is missing; raises DataError naming the place."""
        ...

    def judge(self, marks: Marks) -> None:
        """At the end: raise DataError where what was seen of decimal marks does not go together."""
        ...

    def place(self, row: int) -> str:
        """Where a row is, as the user counts."""
        ...


@dataclass(slots=True)
class Look:
    """What a column's cells are, all of them.

    distinct: of words, and of numbers that may identify; up to `MOST_DISTINCT`. odd, undated: the first cell that is no
    number, and no date. day_first, month_first: what dates with slashes show to be so.
    """

    rows: int = 0
    missing: int = 0
    numeric: int = 0
    dates: int = 0
    truths: int = 0
    thousands: int = 0
    day_first: bool = False
    month_first: bool = False
    nested: bool = False
    odd: tuple[int, str] | None = None
    undated: tuple[int, str] | None = None
    distinct: set[Any] = field(default_factory=set)
    looked_at: int = 0  # known cells by the time that `distinct` was full
    padded: str | None = None  # a number with zeros in front, among the first rows

    @property
    def known(self) -> int:
        """Cells that are not missing."""
        return self.rows - self.missing

    def tell_apart(self, values: Iterable[Any]) -> None:
        """Note more cells, as long as they are few enough to be kept."""
        if len(self.distinct) < MOST_DISTINCT:
            self.distinct.update(values)
            self.looked_at = self.known

    def kind(self) -> ColumnKind:
        """What they are taken for, by themselves."""
        if self.nested:
            return "nested"
        if self.known == 0:
            return "empty"
        if self.numeric == self.known or self.truths == self.known:
            return "number"
        return "date" if self.dates == self.known else "words"

    def identifies(self, name: str) -> str | None:
        """Why the column is taken for an identifier, or None."""
        alike = max(self.numeric, self.dates, self.numeric + self.thousands)
        if self.known < dataframes.LEAST_ROWS or (self.kind() == "words" and alike >= MOSTLY * self.known):
            return None
        if self.kind() == "words" and len(self.distinct) >= dataframes.OWN * self.looked_at:
            if (dressed := _dressed([str(value) for value in self.distinct])) is not None:
                return dressed
            each = "one a row" if len(self.distinct) == self.known else f"{len(self.distinct)} in {self.looked_at} rows"
            return f"an identifier or free text: {each}"
        if (
            self.kind() == "number"
            and dataframes.ID_NAME.search(name)
            and len(self.distinct) == self.looked_at > 0
            and not self.missing
            and all(WHOLE.match(str(value)) for value in self.distinct)
        ):
            return "an identifier, by its name and since each row has its own"
        return None


def _dressed(texts: Sequence[str]) -> str | None:
    """What stands beside the numbers of cells that are numbers but for that, with what to do; None where they are not."""
    if all(CLOCK.fullmatch(text) for text in texts):
        return f"times of day, as {min(texts)!r}: write them as numbers (minutes, say)"
    if not all(DRESSED.fullmatch(text) for text in texts):
        return None
    first, *others = {ALL_OF_A_NUMBER.sub("", text) for text in texts}
    if others or not first:
        return None
    return f"numbers with {first!r} beside them, as {min(texts)!r}: write them as plain numbers"


class Table:
    """A source's columns by kind, as arrays of numbers and codes. words: of each column of words, in order of
    appearance.

    What holds it together: what each column was taken for, found once and kept for every block of rows.
    """

    def __init__(self, path: Path, source: Columnar) -> None:
        self.path, self.source = path, source
        self.looks: dict[str, Look] = {}
        self.kinds: dict[str, ColumnKind] = {}
        self.words: dict[str, dict[str, int]] = {}
        self.plain = False  # every column is of numbers, and none is missing
        self.measured = False  # the targets are whole numbers, but too many different ones for labels
        self.few: int | None = None  # so many different numbers may be labels, if all are whole
        self.truths = False  # the targets are True and False, and words for that
        self.missing: dict[str, int] = {}

    # -- as every source ---------------------------------------------------------------------------------------------

    @property
    def kind(self) -> str:
        """Of file, in a word."""
        return str(self.source.kind)

    @property
    def declared(self) -> bool:
        """False: what is missing, and codes, are numbers of this table's own."""
        return bool(self.plain and self.source.declared)

    @property
    def header(self) -> str | None:
        """As of the source."""
        found: str | None = self.source.header
        return found

    @property
    def notes(self) -> list[str]:
        """As of the source."""
        found: list[str] = self.source.notes
        return found

    def place(self, row: int) -> str:
        """As of the source."""
        return str(self.source.place(row))

    # -- looked at -----------------------------------------------------------------------------------------------------

    def look(self, names: Sequence[str], label: str | None = None) -> Iterator[int]:
        """Find out what the columns are; gives the number of rows so far. label: the target."""
        self.looks = {name: Look() for name in names}
        row = 0
        for cells in self.source.cells(names):
            height = len(cells[0])
            if row == 0:
                for name, column in zip(names, cells, strict=True):
                    self.looks[name].padded = _padded(column[:PADDED_ROWS])
            if not self._all_numbers(names, cells):
                for name, column in zip(names, cells, strict=True):
                    self._see(self.looks[name], name, column, row)
            if label is not None and not self.looks[label].nested:
                self.looks[label].tell_apart(cells[list(names).index(label)].unique().to_pylist())
            row += height
            yield row

    def _all_numbers(self, names: Sequence[str], cells: list[pa.Array]) -> bool:
        """Many columns at once, where all are plainly numbers and none may be an identifier."""
        import pyarrow as pa

        if any(dataframes.ID_NAME.search(name) for name in names) or not all(
            pa.types.is_string(column.type) for column in cells
        ):
            return False
        if together(names, cells, 0, Marks()) is None:
            return False
        for look in self.looks.values():
            look.rows += len(cells[0])
            look.numeric += len(cells[0])
        return True

    def _see(self, look: Look, name: str, column: pa.Array, row: int) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        look.rows += len(column)
        kind = column.type
        if isinstance(column, pa.ExtensionArray) or pa.types.is_nested(kind):
            look.nested = True
        elif pa.types.is_dictionary(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind):
            self._see_text(look, name, column.cast(pa.string()), row)
        elif pa.types.is_timestamp(kind) or pa.types.is_date(kind):
            look.missing += column.null_count
            look.dates += len(column) - column.null_count
        elif pa.types.is_null(kind):
            look.missing += len(column)
        elif any(
            is_of(kind) for is_of in (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean, pa.types.is_decimal)
        ):
            gone = pc.is_null(column, nan_is_null=True)
            look.missing += int(pc.sum(gone).as_py() or 0)
            look.numeric += len(column) - int(pc.sum(gone).as_py() or 0)
            look.truths += (len(column) - column.null_count) * pa.types.is_boolean(kind)
            if dataframes.ID_NAME.search(name) and pa.types.is_integer(kind):
                look.tell_apart(column.drop_null().to_pylist())
        else:
            look.nested = True

    def _see_text(self, look: Look, name: str, column: pa.Array, row: int) -> None:
        import pyarrow as pa
        import pyarrow.compute as pc

        text = pc.utf8_trim_whitespace(pc.fill_null(column, ""))
        low = pc.utf8_lower(text)
        gone = pc.is_in(low, value_set=pa.array(sorted(MISSING)))
        known = pc.invert(gone)
        numeric = pc.and_(known, pc.match_substring_regex(text, NUMBER))
        dates = pc.and_(known, pc.match_substring_regex(text, DATE))
        truths = pc.and_(known, pc.is_in(low, value_set=pa.array(sorted(BOOLEANS))))
        look.missing += _count(gone)
        for which, mask in (("numeric", numeric), ("dates", dates), ("truths", truths)):
            setattr(look, which, getattr(look, which) + _count(mask))
        look.thousands += _count(pc.and_(known, pc.match_substring_regex(text, THOUSANDS)))
        if _count(dates):
            look.day_first |= _count(pc.match_substring_regex(text, DAY_FIRST)) > 0
            look.month_first |= _count(pc.match_substring_regex(text, MONTH_FIRST)) > 0
        for which, mask in (("odd", numeric), ("undated", dates)):
            at = pc.and_(known, pc.invert(mask)).index(True).as_py()
            if getattr(look, which) is None and at >= 0:
                setattr(look, which, (row + at, text[at].as_py()))
        if look.odd is not None or dataframes.ID_NAME.search(name):
            look.tell_apart(text.filter(known).unique().to_pylist())

    # -- decided -------------------------------------------------------------------------------------------------------

    def settle(
        self,
        choice: Choice,
        pinned: Mapping[str, Kind] | None = None,
        left_out: Sequence[str] = (),
        asked: bool = False,
        words: bool = False,
        begun: bool = False,
    ) -> Choice:
        """What each column is; the choice with dates as numbers, and without identifiers.

        pinned: kinds of the stream's columns, None where it has none yet. left_out: what its first sender left out. asked:
        the features were named, so that none is left out. words: the stream's targets are. begun: it has rows already;
        else targets that are all True or False are words. Raises DataError.
        """
        if all(look.rows == 0 for look in self.looks.values()):
            raise NoRows(f"{self.path}: expected at least one row")
        self.kinds = {name: look.kind() for name, look in self.looks.items()}
        out = dict(choice.left_out)
        features: list[str] = []
        for name in choice.features:
            why = None if asked else self._left_out(name, pinned, left_out)
            if why is not None:
                out[name] = why
                continue
            self._agree(name, pinned)
            features += self._parts(name)
        if not features:
            raise DataError(f"{self.path}: no column is left to learn from; left out: {listed(list(out))}; say --features")
        if choice.label is not None:
            look = self.looks[choice.label]
            self.truths = not begun and look.truths == look.known > 0
            self.kinds[choice.label] = "words" if words or self.truths else self.kinds[choice.label]
            self._check_target(choice.label, words or self.truths)
            self.measured = self.kinds[choice.label] == "number" and len(look.distinct) > MOST_LABELS
            number = not begun and self.kinds[choice.label] == "number"
            self.few = len(look.distinct) if number and few(len(look.distinct), look.known) else None
        used = {*choice.features, choice.label} - out.keys()
        self.plain = all(self.kinds[name] == "number" and not self.looks[name].missing for name in used if name is not None)
        self.words = {}
        return replace(choice, features=tuple(features), left_out=out)

    def _left_out(self, name: str, pinned: Mapping[str, Kind] | None, left_out: Sequence[str]) -> str | None:
        look, own = self.looks[name], {name, *(f"{name}.{part}" for part in dataframes.PARTS)}
        if pinned is not None and own & pinned.keys():
            return None
        if name in left_out:
            return "as in the stream's first file"
        if look.kind() == "empty":
            return None if pinned is not None else "it is empty"
        return look.identifies(name)

    def _agree(self, name: str, pinned: Mapping[str, Kind] | None) -> None:
        """A column that the stream has is what it is there; one that it has not, what most of its cells are."""
        look = self.looks[name]
        if pinned is not None and f"{name}.{dataframes.PARTS[0]}" in pinned:
            self.kinds[name] = "date"
        elif pinned is not None and name in pinned and not look.nested:
            self.kinds[name] = "words" if pinned[name] == "category" else "number"
        elif look.kind() == "empty":
            self.kinds[name] = "number"
        if pinned is None or pinned.get(name) != "category":  # words of the stream may well be numbers here
            self._refuse_mistakes(name)

    def _refuse_mistakes(self, name: str) -> None:
        look, kind = self.looks[name], self.kinds[name]
        if look.nested:
            raise DataError(f"{self.path}: column {name!r} has lists or records; leave it out (--drop {name})")
        numbers = kind == "number" or (kind == "words" and look.numeric + look.thousands >= MOSTLY * look.known)
        if numbers and look.odd is not None and look.truths != look.known:
            why = wrong_cell(look.odd[1]) or f"expected a finite number, got {shown(look.odd[1])}"
            self._refuse(name, look.odd, why if kind == "number" else f"{why}, since most of the column are numbers")
        if look.undated is not None and (kind == "date" or (kind == "words" and look.dates >= MOSTLY * look.known)):
            self._refuse(name, look.undated, f"expected a date such as 2026-11-27, got {shown(look.undated[1])}")

    def _refuse(self, name: str, where: tuple[int, str], why: str) -> None:
        raise DataError(f"{self.path}: {self.place(where[0])}, column {name!r}: {why}")

    def _check_target(self, name: str, words: bool) -> None:
        look = self.looks[name]
        if self.kinds[name] == "empty":
            raise DataError(f"{self.path}: column {name!r}: expected targets, it is empty; say --label COLUMN")
        if self.kinds[name] == "date":
            raise DataError(f"{self.path}: column {name!r}: expected numbers or words as targets, got dates; say --label")
        if look.nested:  # a list of numbers in each row is several targets
            if words:
                raise DataError(
                    f"{self.path}: column {name!r}, the target: has lists, where the stream's targets are words"
                )
        elif not words:
            self._refuse_mistakes(name)
        elif look.numeric == look.known and len(look.distinct) > MOST_LABELS:
            raise DataError(
                f"{self.path}: column {name!r}, the target: more than {MOST_LABELS} different numbers, where the stream's "
                "targets are words; measurements belong to a daemon of their own (--state-dir), or say --label"
            )
        if look.missing:
            gone = sorted({cell.strip() for cell in look.distinct if isinstance(cell, str) and is_missing(cell)} - {""})
            written = f" ({listed(gone)} is read as none)" if gone else ""
            raise DataError(
                f"{self.path}: column {name!r}, the target: {look.missing} of {look.rows} rows have none{written}; fill "
                "them in, call that class otherwise, drop the rows, or say which column is the target (--label)"
            )

    def _parts(self, name: str) -> list[str]:
        return [f"{name}.{part}" for part in dataframes.PARTS] if self.kinds[name] == "date" else [name]

    # -- read ----------------------------------------------------------------------------------------------------------

    def chunks(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """Numbers, NaN where one is missing, and codes, -1 where a word is, of columns and parts of dates."""
        if self.plain:
            yield from self.source.chunks(names)
            return
        own = list(dict.fromkeys(self._column(name) for name in names))
        marks, row = Marks(), 0
        for cells in self.source.cells(own):
            found: dict[str, Array] = {}
            for name, column in zip(own, cells, strict=True):
                found |= self._arrays(name, column, row, marks)
            yield [found[name] for name in names]
            row += len(cells[0])
        self.source.judge(marks)

    def _column(self, name: str) -> str:
        whole, _, part = name.rpartition(".")
        return whole if name not in self.kinds and part in dataframes.PARTS else name

    def _arrays(self, name: str, column: pa.Array, row: int, marks: Marks) -> dict[str, Array]:
        match self.kinds[name]:
            case "number":
                return {name: self._numbers(name, column, row, marks)}
            case "nested":
                return {name: self.source.numbers(name, column, row, marks)}
            case "date":
                parts = dataframes.date_parts(self._dates(name, column, row))
                return {f"{name}.{part}": values for part, values in zip(dataframes.PARTS, parts, strict=True)}
        known = self.words.setdefault(name, {})
        return {name: np.array([_code(text, known) for text in _texts(column)], np.int64)}

    def _numbers(self, name: str, column: pa.Array, row: int, marks: Marks) -> Array:
        import pyarrow as pa
        import pyarrow.compute as pc

        if not pa.types.is_string(column.type):
            gone = pc.is_null(column, nan_is_null=True)
        else:
            gone = pc.is_in(pc.utf8_lower(pc.utf8_trim_whitespace(column)), value_set=pa.array(sorted(MISSING)))
        if _count(gone) == 0:
            found: Array = self.source.numbers(name, column, row, marks)
            return found
        mask = gone.to_numpy(zero_copy_only=False).astype(bool)
        out = np.full(len(column), np.nan)
        if not mask.all():
            kept = np.flatnonzero(~mask)
            out[kept] = self.source.numbers(name, column.filter(pc.invert(gone)), row, marks)
        return out

    def _dates(self, name: str, column: pa.Array, row: int) -> Array:
        import pyarrow as pa

        if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
            return np.asarray(column.cast(pa.timestamp("us")).to_numpy(zero_copy_only=False), "datetime64[us]")
        found = np.full(len(column), np.datetime64("NaT"), "datetime64[us]")
        for index, text in enumerate(_texts(column)):
            if text is not None:
                found[index] = self._date(name, text, row + index)
        return found

    def _date(self, name: str, text: str, row: int) -> np.datetime64:
        import datetime

        day, _, rest = text.replace("T", " ").partition(" ")
        if "." in day:
            day = "-".join(part.zfill(2) for part in reversed(day.split(".")))
        elif EITHER.fullmatch(day):
            day = self._slashed(name, day, row)
        try:
            when = datetime.datetime.fromisoformat(f"{day.replace('/', '-')} {rest.replace('UTC', 'Z').strip()}".strip())
        except ValueError as error:
            raise DataError(
                f"{self.path}: {self.place(row)}, column {name!r}: {shown(text)} is no date ({error}); correct it"
            ) from None
        return np.datetime64(when.astimezone(datetime.UTC).replace(tzinfo=None) if when.tzinfo else when, "us")

    def _slashed(self, name: str, day: str, row: int) -> str:
        look = self.looks[name]
        if look.day_first == look.month_first:
            why = "both can be seen" if look.day_first else "nothing in the column tells"
            raise DataError(
                f"{self.path}: {self.place(row)}, column {name!r}: has {shown(day)} the day or the month first ({why})? "
                "Write dates as 2026-11-27"
            )
        first, second, year = (part.zfill(2) for part in day.split("/"))
        return f"{year}-{second}-{first}" if look.day_first else f"{year}-{first}-{second}"

    # -- sent ----------------------------------------------------------------------------------------------------------

    def notes_on(self, choice: Choice) -> list[str]:
        """What the columns were taken for, where that is not numbers."""
        words = [f"{name} ({len(self.words[name])})" for name in choice.features if name in self.words]
        dates = [name for name, kind in self.kinds.items() if kind == "date" and f"{name}.days" in choice.features]
        gaps = [
            f"{name} ({self.looks[name].missing})"
            for name in self.looks
            if self.looks[name].missing and (name in choice.features or name in dates)
        ]
        said = [f"words: {listed(words)}"] * bool(words)
        said += [f"dates, as numbers ({', '.join(dataframes.PARTS)}): {listed(dates)}"] * bool(dates)
        said += [f"missing: {listed(gaps)}"] * bool(gaps)
        padded = [
            f"{name} ({look.padded})"
            for name, look in self.looks.items()
            if look.padded and self.kinds[name] == "number" and name in choice.used
        ]
        said += [f"zeros in front of numbers are lost: {listed(padded)}"] * bool(padded)
        if choice.label is not None and (why := self.looks[choice.label].identifies(choice.label)) is not None:
            said.append(f"the target, {choice.label!r}, looks like {why}; another column can be named by --label")
        if choice.label in self.words:
            said.append(f"the target's words: {listed(list(self.words[str(choice.label)]))}")
        return said

    def batch(
        self, x: Array, y: Array | None, choice: Choice, tokens: bool, first: bool, labels: bool = False
    ) -> tuple[Array, Array | None, Columns]:
        """A block as it travels: its own words alone stand in its schema; in those of a stream's first file, all of the
        file's where these are few. labels: `measured` targets, or `truths`, are wanted as integers. Raises DataError
        where words are too many.
        """
        columns: list[Column] = []
        if self.words:
            x = np.array(x, np.float64)
        for place, name in enumerate(choice.features):
            if name in self.words:
                x[:, place], words = _own(x[:, place], list(self.words[name]), MOST_TOLD if first else 0)
                columns.append(Column(name, "category", words))
            else:
                missing = first and self.looks[self._column(name)].missing > 0
                columns.append(Column(name, "token" if tokens else "number", missing=missing))
        if choice.label is not None and y is not None:
            if choice.label in self.words and labels and self.truths:
                y = np.array([word.casefold() == "true" for word in self.words[choice.label]], np.uint8)[y]
                columns.append(Column(choice.label, "target"))
            elif choice.label in self.words:
                codes, words = _own(y, list(self.words[choice.label]))
                y = codes.astype("<i4")
                columns.append(Column(choice.label, "target", words))
            else:
                y = y.astype("<f8") if (self.measured and not labels) or y.ndim > 1 else y  # several are no labels
                columns.append(Column(choice.label, "target"))
        self._check_size(columns)
        return x, y, tuple(columns)

    def _check_size(self, columns: Sequence[Column]) -> None:
        sizes = {each.name: sum(len(word.encode()) + 3 for word in each.categories or ()) for each in columns}
        if sum(sizes.values()) > HEADER_BYTES:
            name = max(sizes, key=lambda each: sizes[each])
            raise DataError(
                f"{self.path}: the words of one batch take {sum(sizes.values())} bytes, of {HEADER_BYTES} at most, most of "
                f"them those of column {name!r}: leave it out (--drop {name}), or send fewer rows a batch (--rows)"
            )

    def targets(self, y: Array, label: str | None) -> Array:
        """Targets as their user has them: words where they are."""
        if label not in self.words:
            return y
        words = np.empty(len(self.words[str(label)]), object)
        words[:] = list(self.words[str(label)])
        found: Array = words[y]
        return found


def _padded(column: pa.Array) -> str | None:
    """A number that is written with zeros in front, as a code is; None where there is none, or the type is declared."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not pa.types.is_string(column.type):
        return None
    at = pc.fill_null(pc.match_substring_regex(column, PADDED), False).index(True).as_py()
    return column[at].as_py() if at >= 0 else None


def _own(codes: Array, words: Sequence[str], more: int = 0) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Codes among those words that occur, and these; also others, up to so many in all."""
    places = codes.astype(np.int64)
    occurring = np.unique(places[places >= 0])
    if more and len(words) <= more and sum(map(len, words)) <= TOLD_BYTES:
        occurring = np.arange(len(words))
    table = np.full(len(words) + 1, -1, np.int64)
    table[occurring] = np.arange(len(occurring))
    return table[places], tuple(words[place] for place in occurring)


def _texts(column: pa.Array) -> list[str | None]:
    """Cells as words, None where one is missing."""
    import pyarrow as pa

    cells = column if pa.types.is_boolean(column.type) else column.cast(pa.string())  # True and False, as Python has them
    texts = (str(value) if value is not None else "" for value in cells.to_pylist())
    return [None if text.strip().casefold() in MISSING else text.strip() for text in texts]


def _code(text: str | None, known: dict[str, int]) -> int:
    return -1 if text is None else known.setdefault(text, len(known))


def _count(mask: pa.Array) -> int:
    import pyarrow.compute as pc

    return int(pc.sum(mask).as_py() or 0)
