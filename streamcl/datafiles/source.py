"""What every kind of file has in common: named columns in chunks of numbers, and the place of each row as people count.

Also what can be told about a file before it is read: whether it is one, and of which kind by its first bytes.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from streamcl.errors import DataError

Array = npt.NDArray[Any]
TEXT_ENDINGS = (".csv", ".tsv", ".tab", ".txt", ".dat")
ARROW_ENDINGS, LINES_ENDINGS = (".arrow", ".feather", ".ipc"), (".jsonl", ".ndjson")
ENDINGS = (*TEXT_ENDINGS, ".parquet", ".pq", ".npz", *ARROW_ENDINGS, *LINES_ENDINGS)
TAKEN = ".tsv, .tab, .txt, .dat, .arrow, .jsonl, .csv, .parquet or .npz"
MAGIC = (  # the first bytes of files that are not text, what they are, and what to do
    (b"PAR1", "a Parquet file", "rename it to end with .parquet"),
    (b"\x1f\x8b", "compressed with gzip", "rename it to end with .csv.gz, or unpack it (gunzip)"),
    (b"BZh", "compressed with bzip2", "unpack it first (bunzip2), or pack it with gzip"),
    (b"\xfd7zXZ\x00", "compressed with xz", "unpack it first (unxz), or pack it with gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "unpack it first (unzstd), or pack it with gzip"),
    (b"\x89HDF", "an HDF5 file", "write its arrays with numpy.savez(FILE, x=..., y=...)"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook (.xls)", "save the sheet as CSV UTF-8"),
    (b"SQLite format 3", "an SQLite database", "export the table as CSV"),
    (b"ARROW1", "an Arrow (Feather) file", "rename it to end with .arrow"),
    (b"FEA1", "a Feather file", "write it as Parquet (pyarrow.parquet.write_table)"),
    (b"ORC", "an ORC file", "write it as Parquet"),
    (b"Obj\x01", "an Avro file", "write it as Parquet or CSV"),
    (b"\x93NUMPY", "one NumPy array without a name (.npy)", "write numpy.savez(FILE, x=..., y=...)"),
    (b"MATLAB 5.0", "a MATLAB file", "write its arrays with numpy.savez(FILE, x=..., y=...)"),
    (b"\x80\x04\x95", "a pickle, which is never opened", "write it as Parquet, CSV or NPZ"),
    (b"\x80\x05\x95", "a pickle, which is never opened", "write it as Parquet, CSV or NPZ"),
    (b"\x89PNG", "an image", "write the pixels with numpy.savez(FILE, x=..., y=...)"),
    (b"\xff\xd8\xff", "an image", "write the pixels with numpy.savez(FILE, x=..., y=...)"),
    (b"%PDF", "a PDF file", "export its table as CSV"),
)


class Source(Protocol):
    """A file whose columns are known.

    kind: of file, in a word. names: all columns. indexes: those that are row names, and how that is known. declared:
    whether the file itself says what numbers its columns hold. header: what its first line was taken for, where it has
    lines. notes: what else was assumed or done, in words.
    """

    kind: str
    names: Sequence[str]
    indexes: Mapping[str, str]
    declared: bool
    header: str | None
    notes: list[str]

    def chunks(self, names: Sequence[str]) -> Iterator[list[Array]]:
        """These columns, [n, ...] each, chunk by chunk, always cut alike. Raises DataError naming the place."""
        ...

    def place(self, row: int) -> str:
        """Where a row is, as the user counts."""
        ...


def refuse_odd_paths(path: Path) -> None:
    """Raise DataError unless the path is a file that can be read twice."""
    if str(path) == "-" and not path.exists():
        raise DataError("-: a file is read twice, so standard input cannot be one; write it to a file first")
    if path.is_dir():
        raise DataError(f"{path}: expected a file, this is a directory; name one of the files in it")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if not path.is_file():
        raise DataError(f"{path}: a file is read twice, so a pipe or device cannot be one; write it to a file first")


def endings(path: Path) -> tuple[str, bool]:
    """The ending that tells the kind of file, and whether .gz follows it. Raises DataError for an unknown one."""
    name = path.name.lower()
    packed = name.endswith(".gz")
    ending = Path(name.removesuffix(".gz")).suffix
    if ending not in ENDINGS:
        raise DataError(f"{path}: expected a file that ends with {TAKEN} (a text file also with .gz behind it)")
    if packed and ending not in TEXT_ENDINGS:
        raise DataError(f"{path}: {ending} files are compressed already; unpack this one first (gunzip)")
    return ending, packed


def refuse_misnamed(path: Path, ending: str) -> None:
    """Raise DataError if the first bytes are of a kind of file other than the name says."""
    with path.open("rb") as file:
        start = file.read(512)
    if ending in (*ARROW_ENDINGS, *LINES_ENDINGS):
        return  # their readers say what they are not
    own = {".parquet": b"PAR1", ".pq": b"PAR1", ".npz": b"PK\x03\x04"}.get(ending)
    if own is not None and start.startswith(own):
        if ending == ".npz":
            _refuse_other_zips(path, ending)
        return
    if start.startswith(b"PK\x03\x04"):
        _refuse_other_zips(path, ending)
    for magic, what, remedy in MAGIC:
        if start.startswith(magic):
            raise DataError(f"{path}: this is {what}, by its first bytes; {remedy}")
    if own is None:
        _refuse_other_text(path, start)


def _refuse_other_zips(path: Path, ending: str) -> None:
    """A ZIP archive may be NumPy's, a workbook, or anything."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError):
        raise DataError(f"{path}: not an NPZ file: a damaged ZIP archive; copy it again") from None
    if any(name.startswith("xl/") for name in names):
        raise DataError(f"{path}: this is an Excel workbook, by its content; save the sheet as CSV UTF-8")
    if "content.xml" in names:
        raise DataError(f"{path}: this is an OpenDocument spreadsheet, by its content; save the sheet as CSV")
    arrays = any(name.endswith(".npy") for name in names)
    if ending != ".npz" and arrays:
        raise DataError(f"{path}: this is an NPZ file, by its content; rename it to end with .npz")
    if ending != ".npz":
        raise DataError(f"{path}: this is a ZIP archive; unpack it first (unzip)")


def _refuse_other_text(path: Path, start: bytes) -> None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] in (b"{", b"["):
        raise DataError(
            f"{path}: expected lines of as many numbers each, got JSON; if it has an object a line, rename it to end with "
            ".jsonl, or write it as CSV or Parquet"
        )
    if text[:1] == b"<":
        raise DataError(
            f"{path}: expected lines of as many numbers each, got HTML or XML (a download that failed?); save it as CSV"
        )


def refuse_nonfinite(path: Path, source: Source, name: str, array: Array, row: int) -> None:
    """Raise DataError where numbers that are not finite stand in a chunk whose first row is `row`."""
    if array.dtype.kind != "f":
        return
    wrong = ~np.isfinite(array).reshape(len(array), -1).all(axis=1)
    if wrong.any():
        index = int(wrong.argmax())
        bad = array[index].reshape(-1)
        value = bad[~np.isfinite(bad)][0]
        raise DataError(
            f"{path}: {source.place(row + index)}, column {name!r}: expected a number, it is {value}; fill it, or drop the "
            "row"
        )
