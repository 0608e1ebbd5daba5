"""Data files as a stream of (x, y) row blocks, in bounded memory: text (CSV and its relatives), Parquet and NPZ.

Guarantees: a file has been read whole and is sound before its first block is given; how it was read can be seen
(`Reading`). The same file and options give the same blocks in the same order, so that an interrupted upload can continue
where it was. No number is changed on the way. Never unpickles. Runs where torch is absent, and imports pyarrow only for a
file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from streamcl.datafiles import extent, source
from streamcl.datafiles.choice import Choice, Columns, choose, listed
from streamcl.datafiles.extent import Extent, Form, Kind
from streamcl.datafiles.npz import Npz
from streamcl.datafiles.parquet import Parquet
from streamcl.datafiles.reading import Reading
from streamcl.datafiles.source import Array, Source
from streamcl.datafiles.text import Text
from streamcl.errors import DataError

__all__ = ["Array", "Columns", "DataFile", "Form", "Kind", "Reading", "open_data"]

BLOCK_BYTES = 16 << 20  # a block holds as many rows as asked for, but no more bytes than that
Block = tuple[Array, Array | None]


def open_data(path: Path, columns: Columns | None = None, rows: int = 256) -> DataFile:
    """A data file by its ending: text (.csv .tsv .tab .txt .dat, or with .gz), .parquet or .npz.

    Its beginning is looked at; `check` reads it all. rows: of a block, at most. Raises DataError.
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
    table: Source = Parquet(path) if ending in (".parquet", ".pq") else Text(path, packed, said.header)
    return DataFile(path, table, choose(path, table.names, said, table.indexes), rows)


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

    path: of the file. rows: of a block, at most. `reading` is known once it has been checked.
    """

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
            raise DataError(f"{self.path}: expected at least one row")
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
            "holds, in a column with fractions; a model cannot learn from an identifier: leave the column out (--drop)"
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
