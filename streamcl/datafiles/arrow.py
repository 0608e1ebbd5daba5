"""Arrow IPC files (Feather) and JSON lines: columns as they are declared, or as their values are.

Guarantees: what is read is what is written; what is no table is refused. An IPC file is read batch by batch; JSON lines are
read whole, since only all of them say which columns there are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from streamcl.datafiles.cells import Marks
from streamcl.datafiles.parquet import Parquet
from streamcl.datafiles.source import Array
from streamcl.errors import DataError

if TYPE_CHECKING:
    import pyarrow as pa

ROWS = 1 << 14  # of a chunk


class Arrow(Parquet):
    """A file of Arrow's, or of JSON lines, as a source of columns."""

    def __init__(self, path: Path, lines: bool) -> None:
        self.path, self.lines = path, lines
        self.kind = "JSON lines" if lines else "Arrow"
        self.notes: list[str] = []
        self.indexes: Mapping[str, str] = {}
        self._table: Any = self._read_lines() if lines else None
        schema = self._opened().schema if self._table is None else self._table.schema
        self.names: Sequence[str] = schema.names
        twice = next((name for name, count in Counter(schema.names).items() if count > 1), None)
        if twice is not None:
            raise DataError(f"{path}: expected each column to have its own name, got {twice!r} twice")
        self._fields = {name: schema.field(name).type for name in schema.names}

    def _read_lines(self) -> Any:
        import pyarrow as pa
        from pyarrow import json

        try:
            return json.read_json(self.path)
        except (pa.ArrowException, OSError) as error:
            raise DataError(
                f"{self.path}: expected one JSON object a line, all with the same kinds of values: {error}"
            ) from None

    def refuse_other_last(self, name: str) -> None:
        """Raise DataError where an object of a file of JSON lines has another last key: an object's keys have no order, and
        a target that is guessed by it may be another one.
        """
        if not self.lines:
            return
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                last = _last_key(line)
                if last is not None and last != name:
                    raise DataError(
                        f"{self.path}: line {number}: which key is the target? The last one, {name!r}, was taken, since "
                        f"none is called label, target, class or y; but here the last is {last!r}. Say it with --label"
                    )

    def _opened(self) -> Any:
        import pyarrow as pa

        try:
            with self.path.open("rb") as file:
                seekable = file.read(6) == b"ARROW1"
            source = pa.memory_map(str(self.path))
            return pa.ipc.open_file(source) if seekable else pa.ipc.open_stream(source)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: not an Arrow file: {error}; write it again, or copy it again") from None

    def _pieces(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Batches of rows, always cut alike."""
        import pyarrow as pa

        if self.lines:
            yield from self._table.select(list(names)).combine_chunks().to_batches(max_chunksize=ROWS)
            return
        reader = self._opened()
        every = (reader.get_batch(n) for n in range(reader.num_record_batches)) if hasattr(reader, "get_batch") else reader
        row = 0
        try:
            for batch in every:
                for start in range(0, batch.num_rows, ROWS):
                    yield batch.select(list(names)).slice(start, ROWS)
                row += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{self.path}: damaged after row {row}: {error}; copy it again") from None

    def cells(self, names: Sequence[str]) -> Iterator[list[pa.Array]]:
        """Columns as declared."""
        for batch in self._pieces(names):
            if batch.num_rows:
                yield list(batch.columns)

    def chunks(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """Numbers as declared. Raises DataError."""
        for name in names:
            self._refuse_type(name, self._fields[name])
        row, shapes = 0, dict[str, tuple[int, ...]]()
        for columns in self.cells(names):
            yield [self._numbers(name, column, row, shapes) for name, column in zip(names, columns, strict=True)]
            row += len(columns[0])

    def numbers(self, name: str, cells: pa.Array, row: int, marks: Marks) -> Array:
        """As of `Parquet`."""
        return self._numbers(name, cells, row, {})

    def _sample(self, name: str) -> str:
        return ""


def _last_key(line: bytes) -> str | None:
    """Of the object in a line; None where there is none, as where one object has several lines."""
    try:
        found = msgspec.json.decode(line)
    except msgspec.DecodeError:
        return None
    return next(reversed(found), None) if isinstance(found, dict) else None
