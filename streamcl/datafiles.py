"""Data files as a stream of (x, y) row blocks, in bounded memory: CSV, Parquet and NPZ.

Guarantees: the same file and options give the same blocks in the same order, so that an interrupted upload can go on
where it was. Never unpickles. Runs where torch is absent.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]
LABEL_NAMES = ("y", "label", "target", "class")
NPZ_PAIRS = (
    ("x", "y"),
    ("X", "Y"),
    ("X", "y"),
    ("train_x", "train_y"),
    ("images", "labels"),
    ("test_x", "test_y"),
)
WIRE_KINDS = {"f": "<f8", "i": "<i8", "u": "<i8", "b": "|u1"}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which parts of a file are data and which are targets.

    label: the target column of a table, or y's name in an NPZ file. x: x's name in an NPZ file. labelled: False for a
    file without targets.
    """

    x: str | None = None
    label: str | None = None
    labelled: bool = True


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file that has been found and understood so far as its name goes.

    rows: how many rows a block has.
    """

    path: Path
    columns: Columns
    rows: int

    def blocks(self) -> Iterator[tuple[Array, Array | None]]:
        """(x [n, ...], y [n, ...] or None) for every block. Raises DataError naming file, place and remedy."""
        match self.path.suffix.lower():
            case ".npz":
                return _npz_blocks(self)
            case ".csv":
                return _table_blocks(self, _csv_batches(self.path))
            case _:
                return _table_blocks(self, _parquet_batches(self))

    def count(self) -> int | None:
        """The number of rows, where the file says so without being read."""
        match self.path.suffix.lower():
            case ".npz":
                return len(_npz_arrays(self)[0])
            case ".parquet":
                return _parquet_rows(self.path)
        return None


def open_data(path: Path, columns: Columns | None = None, rows: int = 256) -> DataFile:
    """A data file by its suffix: .csv, .parquet or .npz. Raises DataError."""
    if path.suffix.lower() not in (".csv", ".parquet", ".npz"):
        raise DataError(f"{path}: expected a file that ends with .csv, .parquet or .npz")
    if not path.is_file():
        raise DataError(f"{path}: no such file")
    return DataFile(path, columns or Columns(), rows)


# -- NPZ -----------------------------------------------------------------------------------------------------------------


def _npz_blocks(file: DataFile) -> Iterator[tuple[Array, Array | None]]:
    x, y = _npz_arrays(file)
    for start in range(0, len(x), file.rows):
        part = slice(start, start + file.rows)
        yield _for_the_wire(x[part]), None if y is None else _for_the_wire(y[part])


def _npz_arrays(file: DataFile) -> tuple[Array, Array | None]:
    try:
        archive = np.load(file.path, allow_pickle=False)
        names = list(archive.keys())
        x_name, y_name = _npz_names(file, names)
        x, y = archive[x_name], archive[y_name] if y_name else None
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        why = str(error) if zipfile.is_zipfile(file.path) else "it is no archive"
        raise DataError(
            f"{file.path}: not an NPZ file of plain arrays: {why}; numpy.savez(FILE, x=..., y=...) makes one"
        ) from None
    if x.ndim == 0 or (y is not None and len(y) != len(x)):
        raise DataError(f"{file.path}: expected as many rows in {x_name} as in {y_name}")
    return x, y


def _npz_names(file: DataFile, names: list[str]) -> tuple[str, str | None]:
    wanted = file.columns
    for name in (wanted.x, wanted.label):
        if name is not None and name not in names:
            raise DataError(f"{file.path}: no array {name!r}; it has {', '.join(names)}")
    pairs = [(wanted.x or x, wanted.label or y) for x, y in NPZ_PAIRS]
    if not wanted.labelled:
        found = next((x for x, _ in pairs if x in names), names[0] if len(names) == 1 else None)
        if found is not None:
            return found, None
    for x, y in pairs:
        if x in names and y in names:
            return x, y
    raise DataError(f"{file.path}: expected arrays x and y, it has {', '.join(names)}; name them with --x and --label")


def _for_the_wire(array: Array) -> Array:
    """An array in a dtype that the protocol carries."""
    if array.dtype.str in ("<f4", "<f8", "<f2", "<i8", "<i4", "|u1"):
        return array
    if array.dtype.kind not in WIRE_KINDS:
        raise DataError(f"expected numbers, got an array of {array.dtype}")
    return array.astype(WIRE_KINDS[array.dtype.kind])


# -- tables --------------------------------------------------------------------------------------------------------------


def _csv_batches(path: Path) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    from pyarrow import csv

    try:
        yield from csv.open_csv(path, csv.ReadOptions(autogenerate_column_names=not _has_header(path)))
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: {error}; expected lines of as many numbers each, separated by commas") from None


def _has_header(path: Path) -> bool:
    with path.open(encoding="utf-8", errors="replace") as file:
        cells = file.readline().strip().split(",")
    return not all(_is_number(cell) for cell in cells)


def _is_number(text: str) -> bool:
    try:
        float(text.strip().strip('"'))
    except ValueError:
        return False
    return True


def _parquet_rows(path: Path) -> int:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return int(pq.read_metadata(path).num_rows)
    except pa.ArrowInvalid as error:
        raise DataError(f"{path}: not a Parquet file: {error}") from None


def _parquet_batches(file: DataFile) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        yield from pq.ParquetFile(file.path).iter_batches(batch_size=file.rows)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.path}: not a Parquet file: {error}") from None


def _table_blocks(file: DataFile, batches: Iterator[pa.RecordBatch]) -> Iterator[tuple[Array, Array | None]]:
    """Blocks of exactly `rows` rows, however the reader cuts its batches."""
    held: list[tuple[Array, Array | None]] = []
    count, row = 0, 0
    for batch in batches:
        x, y = _split_columns(file, batch, row)
        row += len(x)
        held.append((x, y))
        count += len(x)
        while count >= file.rows:
            block, held = _take(held, file.rows)
            count -= file.rows
            yield block
    if count:
        yield _take(held, count)[0]


def _take(
    held: list[tuple[Array, Array | None]], rows: int
) -> tuple[tuple[Array, Array | None], list[tuple[Array, Array | None]]]:
    x = np.concatenate([part for part, _ in held])
    targets = [part for _, part in held if part is not None]
    y = np.concatenate(targets) if targets else None
    rest = [(x[rows:], None if y is None else y[rows:])] if len(x) > rows else []
    return (x[:rows], None if y is None else y[:rows]), rest


def _split_columns(file: DataFile, batch: pa.RecordBatch, row: int) -> tuple[Array, Array | None]:
    names = batch.schema.names
    label = _label_column(file, names)
    y = None if label is None else _numbers(file, label, batch.column(names.index(label)), row)
    features = [_numbers(file, n, batch.column(i), row) for i, n in enumerate(names) if n != label]
    if not features:
        raise DataError(f"{file.path}: expected at least one column beside the label {label!r}")
    x = features[0] if len(features) == 1 and features[0].ndim > 1 else np.stack(features, axis=1)
    return x.astype("<f4"), None if y is None else _for_the_wire(y)


def _label_column(file: DataFile, names: list[str]) -> str | None:
    if file.columns.label is not None:
        if file.columns.label not in names:
            raise DataError(f"{file.path}: no column {file.columns.label!r}; it has {', '.join(names)}")
        return file.columns.label
    by_name = next((name for name in names if name.lower() in LABEL_NAMES), None)
    if not file.columns.labelled:
        return by_name
    return by_name or names[-1]


def _numbers(file: DataFile, name: str, column: pa.Array, row: int) -> Array:
    import pyarrow as pa

    if column.null_count:
        index = column.is_null().to_numpy(zero_copy_only=False).argmax()
        raise DataError(
            f"{file.path}: column {name!r}, row {row + index}: expected a number, it is empty; fill it, or drop the row"
        )
    if pa.types.is_fixed_size_list(column.type):
        return np.asarray(column.flatten().to_numpy(zero_copy_only=False)).reshape(len(column), -1)
    if not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type) or pa.types.is_boolean(column.type)):
        raise DataError(
            f"{file.path}: column {name!r}: expected numbers, got {column.type}, such as {column[0]}; leave the "
            "column out, or make it numbers"
        )
    numbers: Array = column.to_numpy(zero_copy_only=False)
    return numbers
