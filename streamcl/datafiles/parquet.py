"""Parquet files: columns as they are declared, lists as arrays.

Guarantees: a number arrives in the type it was written in; what is not a number, or a ragged list, is refused with its
column and row. Holds one batch of rows in memory.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamcl.datafiles.cells import Marks
from streamcl.datafiles.source import Array
from streamcl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

CHUNK_BYTES = 1 << 23
MOST_ROWS = 1 << 16
PANDAS_INDEX = re.compile(r"__index_level_\d+__")


class Parquet:
    """A Parquet file as a source of columns."""

    kind = "Parquet"
    declared = True
    header: str | None = None

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path = path
        self.notes: list[str] = []
        try:
            with pq.ParquetFile(path) as file:
                schema, self.rows = file.schema_arrow, int(file.metadata.num_rows)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: not a Parquet file: {error}; write it again, or copy it again") from None
        self.names: Sequence[str] = schema.names
        twice = next((name for name, count in Counter(schema.names).items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{path}: expected each column to have its own name, got {twice!r} twice")
        self.indexes: Mapping[str, str] = _indexes(schema)
        self._fields = {name: schema.field(name).type for name in schema.names}

    def place(self, row: int) -> str:
        """The row, counted as pandas does."""
        return f"row {row} (from 0)"

    def chunks(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """Columns as declared. Raises DataError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        for name in names:
            self._refuse_type(name, self._fields[name])
        row = 0
        shapes: dict[str, tuple[int, ...]] = {}
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=self._chunk_rows(names), columns=list(names), use_threads=False):
                    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                    yield [self._numbers(name, columns[name], row, shapes) for name in names]
                    row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: damaged after row {row}: {error}; copy it again") from None

    def cells(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        """Columns as declared, whatever they hold. Raises DataError."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        row = 0
        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=self._chunk_rows(names), columns=list(names), use_threads=False):
                    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
                    yield [columns[name] for name in names]
                    row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: damaged after row {row}: {error}; copy it again") from None

    def numbers(self, name: str, cells: pa.Array, row: int, marks: Marks) -> Array:
        """Numbers as declared, none of which is missing; words that are numbers as those."""
        import pyarrow as pa

        if pa.types.is_dictionary(cells.type):
            cells = cells.dictionary_decode()
        if pa.types.is_string(cells.type) or pa.types.is_large_string(cells.type):
            cells = cells.cast(pa.float64())
        return self._numbers(name, cells, row, {})

    def judge(self, marks: Marks) -> None:
        """Declared numbers have no marks."""

    def _chunk_rows(self, names: Sequence[str]) -> int:
        """As many rows as make a chunk of some megabytes, estimated from the unpacked size of all rows."""
        import pyarrow.parquet as pq

        with pq.ParquetFile(self.path) as file:
            groups = [file.metadata.row_group(n) for n in range(file.metadata.num_row_groups)]
        row_bytes = max(sum(group.total_byte_size for group in groups) / max(1, self.rows), 8 * len(names))
        return int(max(1, min(MOST_ROWS, CHUNK_BYTES // max(1, row_bytes))))

    # -- columns -----------------------------------------------------------------------------------------------------

    def _refuse_type(self, name: str, kind: pa.DataType) -> None:
        """Raise DataError for a column that holds no numbers, before any row is read."""
        import pyarrow as pa

        leaf = _leaf(kind)
        if pa.types.is_integer(leaf) or pa.types.is_floating(leaf) or pa.types.is_boolean(leaf):
            return
        if pa.types.is_decimal(leaf):
            note = f"column {name!r}: {leaf} taken as 64-bit floats"
            if note not in self.notes:
                self.notes.append(note)
            return
        raise DataError(f"{self.path}: column {name!r}: expected numbers, got {kind}{self._sample(name)}; {_remedy(leaf)}")

    def _sample(self, name: str) -> str:
        """The first value of a column, for a message."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                for batch in file.iter_batches(batch_size=1024, columns=[name]):
                    known = batch.column(0).is_valid().index(True).as_py()
                    if known >= 0:
                        value = str(batch.column(0)[known])
                        return f", such as {value[:40]!r} in row {known} (from 0)"
        except (pa.ArrowException, OSError, ValueError, UnicodeDecodeError):  # a value that cannot be shown
            return ""
        return ""

    def _numbers(self, name: str, column: pa.Array, row: int, shapes: dict[str, tuple[int, ...]]) -> Array:
        import pyarrow as pa

        if isinstance(column, pa.ExtensionArray):
            column = self._of_extension(name, column)
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if pa.types.is_nested(column.type):
            self._refuse_type(name, column.type)
        values, shape = self._flattened(name, column, row, per_row=1)
        known = shapes.setdefault(name, shape)
        if shape != known:
            raise self._ragged(name, row, known, shape)
        return values.reshape(len(column), *shape)

    def _of_extension(self, name: str, column: Any) -> pa.Array:
        import pyarrow as pa

        if isinstance(column.type, pa.FixedShapeTensorType):
            return _tensor_lists(column)
        raise DataError(f"{self.path}: column {name!r}: expected numbers, got {column.type}; leave it out (--drop {name})")

    def _flattened(self, name: str, column: pa.Array, row: int, per_row: int) -> tuple[Array, tuple[int, ...]]:
        """The numbers of a column that may be of lists, and the shape of one row. per_row: so many entries are a row."""
        if column.null_count:
            index = column.is_null().index(True).as_py() // per_row
            raise DataError(
                f"{self.path}: {self.place(row + index)}, column {name!r}: expected a number, it is empty; fill it, or "
                "drop the row"
            )
        if not _is_list(column.type):
            return self._leaf_numbers(name, column, row, per_row), ()
        width = self._width(name, column, row, per_row)
        values, inner = self._flattened(name, column.flatten(), row, per_row * width)
        return values, (width, *inner)

    def _width(self, name: str, column: pa.Array, row: int, per_row: int) -> int:
        """How long every list of a column is."""
        import pyarrow as pa
        import pyarrow.compute as pc

        if pa.types.is_fixed_size_list(column.type):
            width = int(column.type.list_size)
        else:
            lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
            width = int(lengths[0]) if len(lengths) else 0
            wrong = lengths != width
            if wrong.any():
                index = int(wrong.argmax())
                raise self._ragged(name, row + index // per_row, (width,), (int(lengths[index]),))
        if width == 0:
            raise DataError(f"{self.path}: {self.place(row)}, column {name!r}: expected numbers, got an empty list")
        return width

    def _ragged(self, name: str, row: int, expected: tuple[int, ...], got: tuple[int, ...]) -> DataError:
        sizes = [" x ".join(map(str, shape)) or "one number" for shape in (expected, got)]
        return DataError(
            f"{self.path}: {self.place(row)}, column {name!r}: expected lists of one size, {sizes[0]} as in the rows "
            f"before, got {sizes[1]}; pad or cut them to one size"
        )

    def _leaf_numbers(self, name: str, column: pa.Array, row: int, per_row: int) -> Array:
        import pyarrow as pa

        if pa.types.is_decimal(column.type):
            column = column.cast(pa.float64())
        numbers: Array = column.to_numpy(zero_copy_only=False)
        if numbers.dtype == np.uint64 and len(numbers) and numbers.max() > np.iinfo(np.int64).max:
            index = int((numbers > np.iinfo(np.int64).max).argmax())
            raise DataError(
                f"{self.path}: {self.place(row + index // per_row)}, column {name!r}: {numbers[index]} is beyond 64-bit "
                "integers with a sign; a model cannot learn from an identifier: leave the column out (--drop)"
            )
        return numbers


def _indexes(schema: pa.Schema) -> dict[str, str]:
    """The columns that are pandas's index, by the file's metadata or by their names."""
    found = {name: "pandas's index, by its name" for name in schema.names if PANDAS_INDEX.fullmatch(name)}
    try:
        said = json.loads((schema.metadata or {}).get(b"pandas", b"{}"))["index_columns"]
    except (ValueError, KeyError, TypeError):
        return found
    said = said if isinstance(said, list) else []
    return found | {name: "pandas's index, as the file says" for name in said if name in schema.names}


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _leaf(kind: pa.DataType) -> pa.DataType:
    """What the lists of a type are made of."""
    import pyarrow as pa

    if isinstance(kind, pa.FixedShapeTensorType):
        return kind.value_type
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return _leaf(kind.value_type) if _is_list(kind) else kind


def _tensor_lists(column: Any) -> pa.Array:
    """A column of tensors as lists of lists, in the order of its shape."""
    import pyarrow as pa

    if len(column) == 0 or column.null_count:
        return column.storage
    array = column.to_numpy_ndarray()
    lists = pa.array(np.ascontiguousarray(array).reshape(-1))
    for width in array.shape[:0:-1]:
        lists = pa.FixedSizeListArray.from_arrays(lists, width)
    return lists


def _remedy(kind: pa.DataType) -> str:
    import pyarrow as pa

    if pa.types.is_temporal(kind):
        return "make it numbers (such as seconds since a start), or leave the column out (--drop)"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "make the words numbers, or leave the column out (--drop)"
    return "make it numbers, or leave the column out (--drop)"
