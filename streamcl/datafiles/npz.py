"""NPZ files: one array of inputs, one of targets. Never unpickles. Holds both arrays."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.datafiles.choice import Choice, Columns, listed, near
from streamcl.datafiles.source import Array
from streamcl.errors import DataError

CHUNK_BYTES = 1 << 23
PAIRS = (
    ("x", "y"),
    ("X", "Y"),
    ("X", "y"),
    ("x_train", "y_train"),
    ("X_train", "y_train"),
    ("train_x", "train_y"),
    ("train_images", "train_labels"),
    ("images", "labels"),
    ("data", "target"),
    ("data", "labels"),
    ("features", "labels"),
    ("inputs", "targets"),
    ("x_test", "y_test"),
    ("X_test", "y_test"),
    ("test_x", "test_y"),
    ("test_images", "test_labels"),
    ("arr_0", "arr_1"),
)
KINDS = {
    "O": "Python objects (never unpickled)",
    "U": "words",
    "S": "words",
    "V": "a structured type",
    "c": "complex numbers",
}
KINDS |= {"M": "dates", "m": "durations", "T": "words"}


class Npz:
    """An NPZ file as a source of columns."""

    kind = "NPZ"
    declared = True
    header: str | None = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        self.indexes: Mapping[str, str] = {}
        with self._open() as archive:
            self.names: Sequence[str] = list(archive.keys())

    def choose(self, said: Columns) -> Choice:
        """Inputs and targets: as the user said, else by their names. Raises DataError."""
        for name in (said.x, said.label):
            if name is not None and name not in self.names:
                raise DataError(f"{self.path}: no array {name!r}{near(name, self.names)}; it has {listed(self.names)}")
        if said.x is not None and said.x == said.label:
            raise DataError(f"{self.path}: --x and --label both name {said.x!r}; expected two arrays")
        x, y = self._pair(said)
        why = "" if y is None else "--label" if said.label else "by its name"
        return Choice((x,), y, why, {name: "another array" for name in self.names if name not in (x, y)})

    def _pair(self, said: Columns) -> tuple[str, str | None]:
        pairs = [(said.x or x, said.label or y) for x, y in PAIRS]
        for x, y in pairs:
            if x in self.names and y in self.names and x != y:
                return x, y
        if not said.labelled and said.label is None:
            found = next((x for x, _ in pairs if x in self.names), self.names[0] if len(self.names) == 1 else None)
            if found is not None:
                return found, None
        raise DataError(
            f"{self.path}: expected arrays x and y, it has {listed(self.names)}; name them with --x and --label"
        )

    def place(self, row: int) -> str:
        """The row, counted as NumPy does."""
        return f"row {row} (from 0)"

    def chunks(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """The arrays in slices. Raises DataError."""
        arrays = self._arrays(names)
        row_bytes = sum(array.nbytes for array in arrays) / max(1, len(arrays[0]))
        size = int(max(1, CHUNK_BYTES // max(1, row_bytes)))
        for start in range(0, len(arrays[0]), size):
            yield [array[start : start + size] for array in arrays]

    def _arrays(self, names: Sequence[str]) -> list[Array]:
        with self._open() as archive:
            arrays = [self._array(archive, name) for name in names]
        lengths = {name: len(array) for name, array in zip(names, arrays, strict=True)}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{length} in {name}" for name, length in lengths.items())
            raise DataError(f"{self.path}: expected as many rows in {names[0]} as in {names[-1]}, got {said}")
        return arrays

    def _array(self, archive: Any, name: str) -> Array:
        try:
            array: Array = archive[name]
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(
                f"{self.path}: array {name!r}: not an NPZ file of plain arrays: {error}; numpy.savez(FILE, x=..., y=...) "
                "makes one"
            ) from None
        if array.dtype.kind in KINDS:
            raise DataError(
                f"{self.path}: array {name!r}: expected numbers, got {KINDS[array.dtype.kind]} ({array.dtype}); make it "
                "numbers"
            )
        if array.ndim == 0:
            raise DataError(f"{self.path}: array {name!r}: expected rows, got a single number (shape [])")
        if array.size == 0 and len(array):
            raise DataError(f"{self.path}: array {name!r}: expected numbers in each row, got shape {list(array.shape)}")
        return self._within_bounds(name, array)

    def _within_bounds(self, name: str, array: Array) -> Array:
        if array.dtype.kind == "u" and array.dtype.itemsize == 8 and array.size and array.max() > np.iinfo(np.int64).max:
            raise DataError(f"{self.path}: array {name!r}: {array.max()} is beyond 64-bit integers with a sign")
        if array.dtype.kind == "f" and array.dtype.itemsize > 8:
            narrow: Array = array.astype(np.float64)
            if not (narrow == array).all() and f"array {name!r}" not in " ".join(self.notes):
                self.notes.append(f"array {name!r}: {array.dtype} taken as 64-bit floats, with the digits that these hold")
            return narrow
        return array

    def _open(self) -> Any:
        try:
            return np.load(self.path, allow_pickle=False)
        except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
            why = str(error) if zipfile.is_zipfile(self.path) else "it is no archive"
            raise DataError(
                f"{self.path}: not an NPZ file of plain arrays: {why}; numpy.savez(FILE, x=..., y=...) makes one"
            ) from None
