"""The cells of a text file's column as numbers: decimal points and commas, signs, blanks, True and False.

Guarantees: a cell gives the number that it shows, or a `BadCell` that says why not; whole numbers keep every digit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]
EXACT = 2**53  # whole numbers up to here are 64-bit floats
MISSING = frozenset(
    {"", "na", "n/a", "nan", "-nan", "+nan", "null", "none", "nil", "-", "--", "?", ".", "<na>", "nat", "missing"}
    | {"#n/a", "#na", "#value!", "#ref!", "#div/0!", "#num!", "#name?", "#null!", "n.a.", "\\n"}
)
BOOLEANS = {"true": True, "false": False}
NUMBER = re.compile(r"[+-]?(\d+([.,]\d*)?|[.,]\d+)([eE][+-]?\d+)?|[+-]?(nan|inf|infinity)", re.I)
COMMA = r"^[+-]?(\d+(,\d*)?|,\d+)([eE][+-]?\d+)?$"  # at most one comma, no point
GROUPED = re.compile(r"[+-]?[1-9]\d{0,2}([,. '\u00a0\u202f]\d{3})+([.,]\d+)?")
LONG = r"^[+-]?\d{16,}$"
SHOWN = 40

MISSING_REMEDY = "fill it, or drop the row"


class BadCell(ValueError):
    """A cell that is not a number: its row in the chunk, and what is wrong with it."""

    def __init__(self, index: int, text: str) -> None:
        super().__init__(text)
        self.index = index


@dataclass(slots=True)
class Marks:
    """Which decimal marks a file has shown so far: the first row and column of each, counted over the whole file.

    proven: a comma that cannot be one between thousands has been seen.
    """

    point: tuple[int, str] | None = None
    comma: tuple[int, str] | None = None
    proven: bool = False


def looks_numeric(text: str) -> bool:
    """Whether a cell is a number, or stands for a missing one."""
    text = text.strip()
    return NUMBER.fullmatch(text) is not None or text.casefold() in MISSING or text.casefold() in BOOLEANS


def is_missing(text: str) -> bool:
    """Whether a cell stands for a missing number."""
    return text.strip().casefold() in MISSING


def shown(text: str) -> str:
    """A cell for a message."""
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")


def numbers(column: str, cells: pa.Array, row: int, marks: Marks) -> Array:
    """The cells of one chunk: int64 where all are whole numbers as written, bool, else float64. row: of its first cell.

    Raises BadCell.
    """
    for form in (_as_written, _trimmed, _with_commas, _truths):
        found = form(column, cells, row, marks)
        if found is not None:
            _refuse_infinite(found, cells)
            return found
    raise _first_bad(cells)


def together(columns: Sequence[str], cells: Sequence[pa.Array], row: int, marks: Marks) -> list[Array] | None:
    """Many columns of one chunk at once, where all cells are plain numbers; None where some need a closer look."""
    import pyarrow as pa

    if marks.comma is not None or len(columns) < 2 or len(cells[0]) == 0:
        return None
    own, height = Marks(), len(cells[0])
    try:
        found = _as_written("", pa.concat_arrays(list(cells)), 0, own)
    except BadCell:
        return None
    if found is None or (found.dtype.kind == "f" and not np.isfinite(found).all()):
        return None
    if own.point is not None and marks.point is None:
        column, index = divmod(own.point[0], height)
        marks.point = (row + index, columns[column])
    return list(found.reshape(len(columns), height))


def _as_written(column: str, cells: pa.Array, row: int, marks: Marks) -> Array | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        whole: Array = pc.cast(cells, pa.int64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return _floats(column, cells, row, marks)
    return None if _where(pc.match_substring(cells, "x", ignore_case=True)) is not None else whole


def _floats(column: str, cells: pa.Array, row: int, marks: Marks) -> Array | None:
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        real: Array = pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False)
    except pa.ArrowInvalid:
        return None
    if _where(pc.starts_with(cells, "+")) is not None:
        return None  # a whole number with a sign: without it, it is one for Arrow too
    _refuse_long(cells)
    if marks.point is None:
        index = _where(pc.match_substring(cells, "."))
        if index is not None:
            _refuse_both(marks.comma, "a comma", index, cells)
            marks.point = (row + index, column)
    return real


def _trimmed(column: str, cells: pa.Array, row: int, marks: Marks) -> Array | None:
    import pyarrow.compute as pc

    plain = pc.replace_substring_regex(pc.utf8_trim_whitespace(cells), r"^\+([\d.])", r"\1")
    return _as_written(column, plain, row, marks)


def _with_commas(column: str, cells: pa.Array, row: int, marks: Marks) -> Array | None:
    """Decimal commas; whole numbers and other cells of the chunk may stand beside them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    plain = pc.replace_substring_regex(pc.utf8_trim_whitespace(cells), r"^\+", "")
    if _where(pc.invert(pc.match_substring_regex(plain, COMMA))) is not None:
        return None
    index = _where(pc.match_substring(plain, ","))
    if index is None:
        return None
    _refuse_both(marks.point, "a point", index, cells)
    if marks.comma is None:
        marks.comma = (row + index, column)
    if not marks.proven:
        with_comma = plain.filter(pc.match_substring(plain, ","))
        marks.proven = any(GROUPED.fullmatch(cell) is None for cell in with_comma.to_pylist())
    real: Array = pc.cast(pc.replace_substring(plain, ",", "."), pa.float64()).to_numpy(zero_copy_only=False)
    return real


def _truths(column: str, cells: pa.Array, row: int, marks: Marks) -> Array | None:
    found = [BOOLEANS.get(cell.strip().casefold()) for cell in cells.to_pylist()]
    return None if None in found else np.array(found, np.bool_)


def _refuse_both(other: tuple[int, str] | None, what: str, index: int, cells: pa.Array) -> None:
    if other is not None:
        raise BadCell(
            index,
            f"expected one decimal mark in the whole file, got {shown(cells[index].as_py())} where column {other[1]!r} has "
            f"{what}; write all numbers with a decimal point and no thousands separators",
        )


def _refuse_long(cells: pa.Array) -> None:
    """A whole number with more digits than a 64-bit float holds, in a column that is not of 64-bit integers."""
    import pyarrow.compute as pc

    long = pc.match_substring_regex(cells, LONG)
    if _where(long) is None:
        return
    for index in np.flatnonzero(long.to_numpy(zero_copy_only=False)):
        cell = cells[int(index)].as_py()
        if int(float(cell)) != int(cell):
            raise BadCell(
                int(index),
                f"{cell} has more digits than the file's numbers can keep (64-bit integers, or 64-bit floats beside "
                "fractions); a model cannot learn from an identifier: leave the column out (--drop)",
            )


def _refuse_infinite(found: Array, cells: pa.Array) -> None:
    if found.dtype.kind != "f":
        return
    wrong = ~np.isfinite(found)
    if wrong.any():
        index = int(wrong.argmax())
        what = "a number" if np.isnan(found[index]) else "a finite number"
        raise BadCell(index, f"expected {what}, it is {shown(cells[index].as_py())}; {MISSING_REMEDY}")


def _first_bad(cells: pa.Array) -> BadCell:
    """The first cell that is no number; where each alone is one, the first that does not go with those before."""
    texts = cells.to_pylist()
    for judge in (_wrong, _grouped):
        for index, text in enumerate(texts):
            why = judge(text.strip())
            if why is not None:
                return BadCell(index, why)
    odd = _odd(texts)
    return BadCell(odd, f"expected cells of one kind, got {shown(texts[odd])} beside {shown(texts[0])}")


def wrong_cell(text: str) -> str | None:
    """What is wrong with a cell that is to be a number; None where nothing is."""
    return _wrong(text.strip())


def _wrong(text: str) -> str | None:
    if text.casefold() in MISSING:
        what = "it is empty" if not text else f"it is {shown(text)}"
        return f"expected a number, {what}; {MISSING_REMEDY}"
    if looks_numeric(text):
        return None
    if GROUPED.fullmatch(text):
        return f"expected a number without a thousands separator, got {shown(text)}; write it as {_ungrouped(text)}"
    return f"expected numbers, got {shown(text)}; make the words numbers, or leave the column out (--drop)"


def _grouped(text: str) -> str | None:
    if GROUPED.fullmatch(text):
        return f"expected numbers with a decimal point, got {shown(text)}; write all of them with a point"
    return None


def _odd(texts: list[str]) -> int:
    kind: Callable[[str], bool] = lambda text: text.strip().casefold() in BOOLEANS  # noqa: E731
    return next((index for index, text in enumerate(texts) if kind(text) != kind(texts[0])), 0)


def _ungrouped(text: str) -> str:
    """A number without what stands between its thousands; its last mark is a decimal one if it differs from the others."""
    marks = re.findall(r"[^\d+-]", text)
    decimal = marks[-1] if len(set(marks)) > 1 else ""
    whole, _, rest = text.rpartition(decimal) if decimal else (text, "", "")
    return re.sub(r"[^\d+-]", "", whole) + (f".{rest}" if rest else "")


def _where(mask: pa.Array) -> int | None:
    """The first place where a mask is true."""
    found = mask.index(True).as_py()
    return None if found < 0 else int(found)
