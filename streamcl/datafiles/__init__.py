"""Data files as a stream of (x, y) row blocks, in bounded memory: text (CSV and its relatives), Parquet and NPZ.

Guarantees: a file has been read whole and is sound before its first block is given; how it was read can be seen
(`Reading`). The same file and options give the same blocks in the same order, so that an interrupted upload can continue
where it was. No number is changed on the way. Never unpickles. Runs where torch is absent, and imports pyarrow only for a
file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streamcl.columns import PINNED_BYTES, names_bytes, target
from streamcl.columns import Columns as Schema
from streamcl.columns import Kind as ColumnKind
from streamcl.datafiles import extent, source
from streamcl.datafiles.arrow import Arrow
from streamcl.datafiles.choice import LAST, Choice, Columns, choose, listed
from streamcl.datafiles.extent import Extent, Form, Kind
from streamcl.datafiles.npz import Npz
from streamcl.datafiles.parquet import Parquet
from streamcl.datafiles.reading import Reading
from streamcl.datafiles.source import Array, Source
from streamcl.datafiles.table import MOST_LABELS, Table
from streamcl.datafiles.text import Text, head_of
from streamcl.errors import DataError, NoRows
from streamcl.schema import taken_for

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["Array", "Columns", "DataFile", "Form", "Kind", "Reading", "Schema", "TableFile", "open_data"]

BLOCK_BYTES = 16 << 20  # a block holds as many rows as asked for, but no more bytes than that
Block = tuple[Array, Array | None]


def open_data(path: Path, columns: Columns | None = None, rows: int = 256, named: bool = False) -> DataFile:
    """A data file by its ending: text (.csv .tsv .tab .txt .dat, or with .gz), .parquet, .arrow, .jsonl or .npz.

    Its beginning is looked at; `check` reads it all. rows: of a block, at most. named: a table's columns may be of words,
    and go by their names (`TableFile`); else all must be numbers. Raises DataError.
    """
    said = columns or Columns()
    source.refuse_odd_paths(path)
    ending, packed = source.endings(path)
    _refuse_options(path, ending, said)
    if not packed:
        source.refuse_misnamed(path, ending)
    if ending == ".npz":
        arrays = Npz(path)
        return DataFile(path, arrays, arrays.choose(said), rows)
    table = _table(path, ending, packed, said)
    choice = choose(path, table.names, said, table.indexes)
    if not named:
        return DataFile(path, table, choice, rows)
    return TableFile(path, table, choice, rows, said)


def _table(path: Path, ending: str, packed: bool, said: Columns) -> Text | Parquet:
    if ending in (".parquet", ".pq"):
        return Parquet(path)
    if ending in (*source.ARROW_ENDINGS, *source.LINES_ENDINGS):
        return Arrow(path, ending in source.LINES_ENDINGS)
    return Text(path, packed, said.header)


def _refuse_options(path: Path, ending: str, said: Columns) -> None:
    """Raise DataError for an option that does not apply to this kind of file: none is ever ignored."""
    if ending == ".npz" and (said.features or said.drop):
        raise DataError(
            f"{path}: --features and --drop are for tables; an NPZ file's arrays are named with --x and --label"
        )
    if ending != ".npz" and said.x is not None:
        raise DataError(f"{path}: --x names an NPZ file's array; a table's columns are named with --features")
    if ending not in source.TEXT_ENDINGS and said.header is not None:
        raise DataError(f"{path}: --header is for text files; this one carries its names")


class DataFile:
    """A data file whose columns are chosen.

    path: of the file. rows: of a block, at most. named: whether its columns go by their names. `reading` is known once it
    has been checked.

    What holds it together: one file that is read several times (looked at, checked, sent, predicted on), and must be the
    same in all of them.
    """

    named = False

    def __init__(self, path: Path, table: Source, choice: Choice, rows: int) -> None:
        self.path = path
        self.source = table
        self.choice = choice
        self.rows = rows
        self._seen: dict[str, Extent] = {}
        self._reading: Reading | None = None
        self._version = _version(path)

    # -- the first pass ----------------------------------------------------------------------------------------------

    def check(self) -> Reading:
        """Read all of it; returns how it was read. Raises DataError naming file, place and remedy."""
        for _ in self.checking():
            pass
        return self.reading

    def checking(self) -> Iterator[int]:
        """`check` in steps; gives the number of rows read so far."""
        if self._reading is not None:
            return
        names, row = self.choice.used, 0
        seen = {name: Extent() for name in names}
        for chunk in self.source.chunks(names):
            self._refuse_nested_mixture(chunk)
            if self.source.declared:  # a text's cells are finite as they were made numbers
                for name, array in zip(names, chunk, strict=True):
                    source.refuse_nonfinite(self.path, self.source, name, array, row)
            extent.see_all([seen[name] for name in self.choice.features], chunk[: len(self.choice.features)], row)
            if self.choice.label is not None:
                seen[self.choice.label].see(chunk[-1], row)
            row += len(chunk[0])
            yield row
        if row == 0:
            raise NoRows(f"{self.path}: expected at least one row")
        self._seen = seen
        self._refuse_what_would_change()
        self._reading = self._read(row)

    def _refuse_nested_mixture(self, chunk: list[Array]) -> None:
        """A column of lists beside other columns has no common shape with them."""
        features = self.choice.features
        nested = [name for name, array in zip(features, chunk, strict=False) if array.ndim > 1]
        if nested and len(features) > 1:
            other = next(name for name in features if name != nested[0])
            raise DataError(
                f"{self.path}: column {nested[0]!r} has a list in each row and is beside {other!r}: expected "
                f"one column of lists, or columns of numbers only; say --features {nested[0]}, or --drop {nested[0]}"
            )

    def _refuse_what_would_change(self) -> None:
        for name, column in self._seen.items():
            if column.mixed:
                raise DataError(f"{self.path}: column {name!r}: expected numbers, or True and False only, got both")
            if column.large is not None and column.dtype().kind == "f":
                raise self._too_large(name, column.large)
        dtype = extent.natural(self._features(), self.source.declared)
        if dtype.kind == "f":
            for name in self.choice.features:
                large = self._seen[name].large
                if large is not None:
                    raise self._too_large(name, large)

    def _too_large(self, name: str, row: int) -> DataError:
        return DataError(
            f"{self.path}: {self.source.place(row)}, column {name!r}: a whole number with more digits than a 64-bit float "
            "holds, as its column becomes; a model cannot learn from an identifier: leave the column out (--drop)"
        )

    def _features(self) -> list[Extent]:
        return [self._seen[name] for name in self.choice.features]

    @property
    def reading(self) -> Reading:
        """How the file was read; checks it first if that has not been done."""
        if self._reading is None:
            self.check()
        assert self._reading is not None
        return self._reading

    def _read(self, rows: int) -> Reading:
        label = self.choice.label
        y = None if label is None else self._seen[label]
        truths = [name for name, column in self._seen.items() if any(dtype.kind == "b" for dtype in column.dtypes)]
        notes = [*self.source.notes]
        if truths:
            notes.append(f"true and false taken as 1 and 0: {listed(truths)}")
        notes += [
            f"column {name!r} lies between {column.low:.10g} and {column.high:.10g}: float32, in which models compute by "
            'default, cannot tell most of its values apart; subtract an offset, or set train.dtype = "float64"'
            for name, column in self._seen.items()
            if column.blurred() and (name != label or column.dtype().kind == "f")
        ]
        return Reading(
            file=str(self.path),
            kind=self.source.kind,
            rows=rows,
            header=self.source.header,
            features=self.choice.features,
            x=(str(extent.natural(self._features(), self.source.declared)), self._row_shape()),
            label=label,
            label_why=self.choice.label_why,
            y=None if y is None else (str(y.dtype()), y.shape),
            left_out=self.choice.left_out,
            notes=notes,
        )

    def _row_shape(self) -> tuple[int, ...]:
        features = self._features()
        if len(features) > 1 or (self.source.kind != "NPZ" and features[0].shape == ()):
            return (len(features),)
        return features[0].shape

    # -- what it can be given as -------------------------------------------------------------------------------------

    def kind(self) -> Kind:
        """Whether x is of integers or of real numbers unless another kind is asked for."""
        _ = self.reading
        return extent.kind_of(extent.natural(self._features(), self.source.declared))

    def refuse_kind(self, kind: Kind) -> None:
        """Raise DataError, naming the place, where x cannot be given as this kind without changing a number."""
        _ = self.reading
        for name in self.choice.features:
            column = self._seen[name]
            if kind == "integer" and column.fraction is not None:
                raise DataError(
                    f"{self.path}: {self.source.place(column.fraction)}, column {name!r}: a fraction, where x is to be of "
                    "whole numbers"
                )
            if kind == "real" and column.large is not None:
                raise self._too_large(name, column.large)

    def whole_targets(self) -> bool:
        """Whether the targets are real numbers that are all whole, as labels are after a detour through floats."""
        _ = self.reading
        return self._whole

    @property
    def _whole(self) -> bool:
        label = self.choice.label
        return label is not None and self._seen[label].dtype().kind == "f" and self._seen[label].whole

    def form(self, kind: Kind | None = None, integer_targets: bool = False) -> Form:
        """How blocks are to be changed to be of a kind, with targets that are `whole_targets` as integers if asked for.

        Raises DataError where that would change a number.
        """
        if kind is not None:
            self.refuse_kind(kind)
        return Form(kind, integer_targets and self.whole_targets())

    # -- the second pass ---------------------------------------------------------------------------------------------

    @property
    def block_rows(self) -> int:
        """Rows of every block but the last."""
        dtype, shape = self._x_dtype(), self.reading.x[1]
        row_bytes = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        return max(1, min(self.rows, BLOCK_BYTES // max(1, row_bytes)))

    def _x_dtype(self) -> np.dtype[np.generic]:
        _ = self.reading
        return extent.natural(self._features(), self.source.declared)

    def blocks(self, skip: int = 0) -> Iterator[Block]:
        """(x [n, ...], y [n, ...] or None) for every block behind `skip` rows; `Form.of` makes another kind of them.

        Raises DataError naming file, place and remedy; before the first block, unless the file is changed meanwhile.
        """
        y = self.reading.y
        typed = self._typed(self._x_dtype(), None if y is None else np.dtype(y[0]))
        yield from _cut(_behind_rows(typed, skip), self.block_rows)

    def _typed(self, x_dtype: np.dtype[np.generic], y_dtype: np.dtype[np.generic] | None) -> Iterator[Block]:
        """Chunks in the form in which they are sent."""
        features, row = self.choice.features, 0
        for chunk in self.source.chunks(self.choice.used):
            self._refuse_changed_file(row)
            columns = chunk[: len(features)]
            if len(columns) == 1:
                x = columns[0].astype(x_dtype, copy=False).reshape(-1, *self.reading.x[1])
            else:
                x = np.empty((len(columns[0]), len(columns)), x_dtype)
                for number, column in enumerate(columns):
                    x[:, number] = column
            yield x, None if y_dtype is None else chunk[-1].astype(y_dtype, copy=False)
            row += len(x)
        self._refuse_changed_file(row)

    def _refuse_changed_file(self, row: int) -> None:
        if _version(self.path) != self._version:
            raise DataError(
                f"{self.path}: it was changed while it was being read, after row {row}; send it again once it is written"
            )

    def count(self) -> int:
        """The number of rows."""
        return self.reading.rows

    def place(self, row: int) -> str:
        """Where a row is, as the user counts."""
        return self.source.place(row)

    @property
    def measured(self) -> bool:
        """Whether whole numbers as targets go as measurements, since there are too many different ones for labels."""
        return False

    @property
    def truths(self) -> bool:
        """Whether True and False as targets go as words."""
        return False

    def word_counts(self) -> dict[str, int]:
        """How many different words each column of words has."""
        return {}

    # -- as it is written ------------------------------------------------------------------------------------------

    @property
    def names(self) -> Sequence[str]:
        """A table's columns; an NPZ file has none."""
        return ()

    def cells(self, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """These columns of a table whole, as text, or of the type that the file declares."""
        return {}

    def head(self) -> bytes:
        """What stands before a text file's first row, its header for one."""
        return b""

    # -- with names ------------------------------------------------------------------------------------------------

    def fit(self, schema: Schema | None, left_out: Sequence[str], begun: bool, check: bool = True) -> None:
        """Read on as the stream's first batch says, where its columns have names; these have none."""

    @property
    def left_out(self) -> Sequence[str]:
        """Columns of a table with names that are not sent."""
        return ()

    def batch(self, x: Array, y: Array | None, form: Form) -> tuple[Array, Array | None, Schema | None]:
        """A block in a form, as it travels, and its columns if they have names."""
        return *form.of(x, y), None

    def targets(self, y: Array) -> Array:
        """A block's targets as their user has them."""
        return y

    def spelled(self, x: Array, y: Array | None) -> bytes:
        """What a block's codes of words stand for, to tell it from one with the same codes; nothing where it has none."""
        return b""


class TableFile(DataFile):
    """A table whose columns go by their names, and may be of words, dates and missing values (`table`).

    said: by the user. Where the stream's first batch had no names, and for a text file without a header whose cells are all
    numbers, it is what `DataFile` is.
    """

    def __init__(self, path: Path, table: Text | Parquet, choice: Choice, rows: int, said: Columns) -> None:
        self.table = Table(path, table)
        super().__init__(path, self.table, choice, rows)  # type: ignore[arg-type]
        self.said, self._chosen, self._own = said, choice, table
        self.named = True
        self._pinned: dict[str, ColumnKind] | None = None
        self._was_left_out: tuple[str, ...] = ()
        self._words = False
        self._fitted: tuple[Schema | None, tuple[str, ...]] | None = None

    def checking(self) -> Iterator[int]:
        """As of `DataFile`; the file is looked at before."""
        if self._reading is not None:
            return
        if self._chosen.label is not None and self._chosen.label_why == LAST and isinstance(self._own, Arrow):
            self._own.refuse_other_last(self._chosen.label)
        if not self.table.looks:
            for _ in self.table.look(self._chosen.used, self._chosen.label):
                yield 0
        if any(look.nested for name, look in self.table.looks.items() if name != self._chosen.label):
            self._go_unnamed()
        if self.named:
            asked = bool(self.said.features)
            begun = self._fitted is not None
            self.choice = self.table.settle(self._chosen, self._pinned, self._was_left_out, asked, self._words, begun)
            self.named = not (self._has_no_names and self.table.plain)
            size = names_bytes([*self.choice.used, *self.choice.left_out])
            if size > PINNED_BYTES:
                if not self.table.plain:
                    raise DataError(
                        f"{self.path}: the names of its {len(self.choice.used)} columns come to {size} bytes, of "
                        f"{PINNED_BYTES} at most, and it has words, dates or missing cells, which cannot go by their "
                        "positions: shorten the names, or leave columns out (--features, --drop)"
                    )
                self._go_unnamed()
                self._own.notes.append(
                    "it has more names than a daemon keeps: columns go by their positions, and are taken as they are"
                )
        yield from super().checking()

    @property
    def names(self) -> Sequence[str]:
        """As of `DataFile`."""
        return self._own.names

    def cells(self, names: Sequence[str]) -> dict[str, pa.ChunkedArray]:
        """As of `DataFile`."""
        import pyarrow as pa

        parts = list(self._own.cells(names)) if names else []
        return {name: pa.chunked_array([part[place] for part in parts]) for place, name in enumerate(names)}

    def head(self) -> bytes:
        """As of `DataFile`."""
        return head_of(self._own) if isinstance(self._own, Text) else b""

    @property
    def _has_no_names(self) -> bool:
        """Whether the columns are called by their numbers, for want of names."""
        return isinstance(self._own, Text) and (self._own.header or "").startswith("no")

    def _go_unnamed(self) -> None:
        self.named, self.source, self.choice = False, self._own, self._chosen

    def fit(self, schema: Schema | None, left_out: Sequence[str], begun: bool, check: bool = True) -> None:
        """Read on as the stream's first batch says: its columns' kinds, and what its first sender left out.

        check: read all of it now. Raises DataError where this file's columns cannot be that.
        """
        if not begun or not self.named or self._fitted == (schema, tuple(left_out)):
            return
        self._reading, self._fitted = None, (schema, tuple(left_out))
        if schema is None:
            self._go_unnamed()
            self._own.notes.append("the stream began without names: columns go by their positions, and must be numbers")
        else:
            self._pinned = {column.name: column.kind for column in schema if column.kind != "target"}
            self._was_left_out = tuple(left_out)
            named = target(schema)
            self._words = named is not None and named.categories is not None
            self._find_target(None if named is None else named.name)
        if check:
            self.check()

    def _find_target(self, name: str | None) -> None:
        """The stream's target is this file's, unless the user says otherwise."""
        if name is None or self.said.label is not None or name not in self._own.names or name == self._chosen.label:
            return
        self._chosen = choose(self.path, self._own.names, replace(self.said, label=name), self._own.indexes)
        self._chosen = replace(self._chosen, label_why="as in the stream's first batch")
        self.table.looks = {}

    @property
    def left_out(self) -> Sequence[str]:
        """As of `DataFile`."""
        return tuple(self.choice.left_out) if self.named else ()

    def kind(self) -> Kind:
        """Numbers of a table with names are real ones, however they are written, unless they are asked for as tokens."""
        tokens = self._pinned is not None and "token" in self._pinned.values()
        return super().kind() if not self.named else "integer" if tokens else "real"

    def refuse_kind(self, kind: Kind) -> None:
        """As of `DataFile`; also raises DataError where words or missing values are to be tokens."""
        if self.named and kind == "integer" and not self.table.plain:
            raise DataError(f"{self.path}: it has words, dates or missing values, which cannot go as integers of its own")
        super().refuse_kind(kind)

    def form(self, kind: Kind | None = None, integer_targets: bool = False) -> Form:
        """As of `DataFile`; of a stream of tokens, as tokens."""
        tokens = self.named and kind is None and self.kind() == "integer"
        return super().form("integer" if tokens else kind, integer_targets)

    def batch(self, x: Array, y: Array | None, form: Form) -> tuple[Array, Array | None, Schema | None]:
        """As of `DataFile`; only its own words stand in its schema."""
        if not self.named:
            return super().batch(x, y, form)
        tokens = (form.kind or self.kind()) == "integer"
        own = Form("integer", form.integer_targets) if tokens else form
        first = self._pinned is None
        return self.table.batch(*own.of(x, y), self.choice, tokens, first=first, labels=form.integer_targets)

    def whole_targets(self) -> bool:
        """As of `DataFile`; also of integers that go as measurements, and of True and False."""
        _ = self.reading
        return super().whole_targets() or self.measured or self.truths

    @property
    def measured(self) -> bool:
        """As of `DataFile`."""
        label = self.choice.label
        many = self.named and self.table.measured
        return many and label is not None and self._seen[label].dtype().kind in "iu"

    @property
    def truths(self) -> bool:
        """As of `DataFile`."""
        return self.named and self.table.truths

    def word_counts(self) -> dict[str, int]:
        """As of `DataFile`."""
        return {
            name: len(self.table.words[name]) for name in self.choice.features if self.named and name in self.table.words
        }

    def targets(self, y: Array) -> Array:
        """As of `DataFile`: words where they are."""
        return self.table.targets(y, self.choice.label) if self.named else y

    def spelled(self, x: Array, y: Array | None) -> bytes:
        """As of `DataFile`: each column's words up to the last of these."""
        if not self.named or not self.table.words:
            return b""
        columns = {name: x[:, place] for place, name in enumerate(self.choice.features)}
        if y is not None and self.choice.label is not None:
            columns[self.choice.label] = y
        own = {name: list(words) for name, words in self.table.words.items() if name in columns}
        seen = {name: words[: int(columns[name].max()) + 1] for name, words in own.items()}
        return repr(sorted(seen.items())).encode()

    def _read(self, rows: int) -> Reading:
        found = super()._read(rows)
        if not self.named:
            return found
        notes = [note for note in found.notes if "lies between" not in note]  # they become float32 once they are scaled
        words = self.choice.label in self.table.words
        if self.measured:
            notes.append(
                f"target {self.choice.label!r}: more than {MOST_LABELS} different whole numbers: they go as measurements, "
                "not as labels (model.likelihood = 'categorical' takes them as labels)"
            )
        if self.table.few is not None and self._whole:
            notes.append(f"target {self.choice.label!r}: {taken_for(self.table.few)}")
        return replace(found, notes=[*notes, *self.table.notes_on(self.choice)], words=words)


def _version(path: Path) -> tuple[int, int]:
    seen = os.stat(path)
    return seen.st_mtime_ns, seen.st_size


def _cut(chunks: Iterator[Block], rows: int) -> Iterator[Block]:
    """Blocks of exactly `rows` rows, the last one aside, however the chunks are cut."""
    rest: Block | None = None
    for chunk in chunks:
        x, y = chunk if rest is None else _behind(rest, chunk)
        whole = len(x) - len(x) % rows
        for start in range(0, whole, rows):
            part = slice(start, start + rows)
            yield x[part], None if y is None else y[part]
        rest = None if whole == len(x) else (x[whole:], None if y is None else y[whole:])
    if rest is not None:
        yield rest


def _behind_rows(chunks: Iterator[Block], skip: int) -> Iterator[Block]:
    """Chunks without the first rows."""
    for x, y in chunks:
        left, skip = min(skip, len(x)), max(0, skip - len(x))
        if left < len(x):
            yield x[left:], None if y is None else y[left:]


def _behind(first: Block, second: Block) -> Block:
    y = None if first[1] is None or second[1] is None else np.concatenate([first[1], second[1]])
    return np.concatenate([first[0], second[0]]), y
