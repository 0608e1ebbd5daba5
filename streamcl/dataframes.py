"""Tables in memory, of pandas, Polars or Arrow, as a batch: one array of columns, their schema, and the targets.

Numbers, and True and False, are numbers, a missing one NaN. Words, and whatever else is no number, are categories, a
missing one -1. A date becomes four numbers: ``NAME.days`` since 1970, ``NAME.month``, ``NAME.weekday`` (Monday is 0),
``NAME.hour``. Imports none of these packages: who has such a table has imported its own.
"""

from __future__ import annotations

import datetime
import numbers
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamcl.arrays import unmasked
from streamcl.columns import Column, Columns, Kind
from streamcl.errors import Refused

Array = npt.NDArray[Any]
PARTS = ("days", "month", "weekday", "hour")
PACKAGES = ("pandas", "polars", "pyarrow")
DAY = 86_400_000_000  # microseconds
LEAST_ROWS = 20  # before a column's words may be taken for identifiers
OWN = 0.9  # distinct words a row
ID_NAME = re.compile(r"(?i:(^|[_\s.-])(id|ids|uid|uuid|guid|index|idx|rowid|row_?number|key)$)|[a-z](Id|ID)$")


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows as they travel. y: None where there are no targets."""

    x: Array
    y: Array | None
    columns: Columns | None


def is_table(values: Any) -> bool:
    """Whether this is a table of named columns."""
    package = type(values).__module__.partition(".")[0]
    return package in PACKAGES and (
        hasattr(values, "column_names")
        or (hasattr(values, "columns") and values.ndim == 2 if package == "pandas" else hasattr(values, "columns"))
    )


def batch(x: Any, y: Any = None, kinds: Mapping[str, Kind] | None = None, left_out: Collection[str] = ()) -> Batch:
    """Rows x and targets y as they travel, x being a table.

    y: an array or column, words or numbers; or the name of one of x's columns; or None. kinds: of the stream's columns, as
    far as they are known. left_out: columns of x that do not travel. Raises Refused ``bad_array bad_shape``.
    """
    known = kinds or {}
    names = _names(x)
    target = y if isinstance(y, str) else None
    if target is not None and target not in names:
        raise Refused("bad_shape", f"y: expected an array, or the name of one of the table's columns, {names}; got {y!r}")
    parts = [
        part
        for name in names
        if name != target and name not in left_out
        for part in column(name, _values(x, name), known.get(name))
    ]
    if not parts:
        raise Refused("bad_shape", "x: expected at least one column beside the target")
    rows = np.column_stack([values.astype(np.float64) for _, values in parts])
    schema = tuple(each for each, _ in parts)
    if y is None:
        return Batch(rows, None, schema)
    named, targets = targets_of(target or _name_of(y), _values(x, target) if target is not None else y)
    return Batch(rows, targets, (*schema, named))


def doubts(found: Batch) -> str | None:
    """What is odd about the columns of a stream's first rows, which fix them; None where nothing is."""
    names = [each.name for each, values in zip(found.columns or (), found.x.T, strict=False) if _identifies(each, values)]
    if not names:
        return None
    return (
        f"x: {', '.join(map(repr, names))}: nearly every row has its own, as an identifier or free text has: nothing can "
        "be learned from that, and the stream's first rows fix its columns; drop it first, unless it is meant"
    )


def _identifies(each: Column, values: Array) -> bool:
    """Whether a column of x looks like one of identifiers."""
    words = each.kind == "category"
    known = values[values >= 0] if words else values
    if len(known) < LEAST_ROWS:
        return False
    if words:
        return len(np.unique(known)) >= OWN * len(known)
    whole = ID_NAME.search(each.name) is not None and bool((known == np.floor(known)).all())
    return whole and len(np.unique(known)) == len(known)


def is_plain(x: Any) -> bool:
    """Whether a table has nothing but numbers, and one in every cell."""
    columns = (_values(x, name) for name in _names(x))
    return all(values.dtype.kind in "biuf" and bool(np.isfinite(values).all()) for values in columns)


def records(rows: Sequence[Mapping[Any, Any]], kinds: Mapping[Any, Literal["number", "category", "date"]]) -> Batch:
    """Rows that map names to values, as they travel. kinds: of the columns, in their order.

    What a row lacks is missing in it.
    """
    given = {name: [row.get(name) for row in rows] for name in kinds}
    parts = [part for name, kind in kinds.items() for part in _recorded(str(name), given[name], kind)]
    x = np.column_stack([values.astype(np.float64) for _, values in parts])
    return Batch(x, None, tuple(each for each, _ in parts))


def _recorded(name: str, given: list[Any], kind: str) -> Iterator[tuple[Column, Array]]:
    values = _objects(_one_each(given))
    if kind == "date" and all(map(is_missing, given)):
        values = np.full(len(given), "NaT", "datetime64[us]")
    return column(name, values, "category" if kind == "category" else None)


def _one_each(values: list[Any]) -> Array:
    """Objects, one a row, whatever they hold."""
    found = np.empty(len(values), object)
    for place, value in enumerate(values):
        found[place] = value.item() if isinstance(value, np.generic) else value
    return found


def targets_of(name: str, values: Any) -> tuple[Column, Array]:
    """Targets as they travel: numbers as they are, words as codes."""
    given = _series(values)
    if given.dtype.kind in "OUSMm":
        codes, found = coded(given)
        if (codes < 0).any():
            raise Refused("bad_label", f"y: row {int((codes < 0).argmax())}: a target cannot be missing")
        return Column(name, "target", found), codes.astype(np.int32)
    return Column(name, "target"), given.astype(np.uint8) if given.dtype == np.bool_ else given


def column(name: str, values: Array, kind: Kind | None = None) -> Iterator[tuple[Column, Array]]:
    """A column's schema and values as they travel; of a date, four of them. kind: what the stream has it for; without that,
    one of which nothing is known is of numbers."""
    if values.dtype.kind == "O" and kind in (None, "number") and all(map(is_missing, values.tolist())):
        values = np.full(len(values), np.nan)
    if values.dtype.kind in "biuf" and kind != "category":
        yield _number(name, values.astype(np.float64))
    elif values.dtype.kind == "M":
        for part, numbers_ in zip(PARTS, date_parts(values), strict=True):
            yield _number(f"{name}.{part}", numbers_)
    else:
        codes, words = coded(values.tolist())
        yield Column(name, "category", words), codes


def _number(name: str, values: npt.NDArray[np.float64]) -> tuple[Column, Array]:
    return Column(name, "number", missing=bool(np.isnan(values).any())), values


def coded(values: Iterable[Any]) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """Words as codes, by the order of their appearance; -1 where one is missing."""
    known: dict[str, int] = {}
    found = [-1 if is_missing(value) else known.setdefault(_word(value), len(known)) for value in values]
    return np.array(found, np.int64), tuple(known)


def is_missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, NaT, pandas's NA."""
    return value is None or type(value).__name__ in ("NAType", "NaTType") or (isinstance(value, float) and value != value)


def date_parts(dates: Array) -> list[npt.NDArray[np.float64]]:
    """`PARTS` of datetime64 values, NaN where one is missing."""
    fine, missing = dates.astype("datetime64[us]"), np.isnat(dates)
    whole, months = fine.astype("datetime64[D]"), fine.astype("datetime64[M]")
    micros = np.where(missing, 0, fine.astype(np.int64))
    parts = [
        micros / DAY,
        months.astype(np.int64) % 12 + 1.0,
        (whole.astype(np.int64) + 3) % 7 + 0.0,  # 1 January 1970 was a Thursday
        (micros % DAY) / (DAY / 24),
    ]
    return [np.where(missing, np.nan, part) for part in parts]


# -- of each package ---------------------------------------------------------------------------------------------------


def _names(table: Any) -> list[str]:
    names = table.column_names if hasattr(table, "column_names") else list(table.columns)
    found = [str(name) for name in names]
    if len(set(found)) < len(found):
        twice = next(name for name in found if found.count(name) > 1)
        raise Refused("bad_header", f"x: expected each column to have its own name, got {twice!r} twice")
    return found


def _values(table: Any, name: str) -> Array:
    """A column: float64, bool, datetime64 or objects."""
    package = type(table).__module__.partition(".")[0]
    if package == "pyarrow":
        return _arrow(table.column(name))
    if package == "pandas":
        place = [str(each) for each in table.columns].index(name)
        return _series(table.iloc[:, place])
    return _series(table[name])


def _series(values: Any) -> Array:
    package = type(values).__module__.partition(".")[0]
    if package == "pandas":
        return _pandas(values)
    if package == "polars":
        return _polars(values)
    if package == "pyarrow":
        return _arrow(values)
    if isinstance(values, np.ma.MaskedArray):
        values = unmasked(values)
    array = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    return _objects(array) if array.dtype.kind in "OUS" else array


def _pandas(series: Any) -> Array:
    kind = getattr(series.dtype, "kind", "O")
    if kind == "M":
        own = series.dt.tz_convert("UTC").dt.tz_localize(None) if getattr(series.dtype, "tz", None) is not None else series
        return np.asarray(own.to_numpy(), "datetime64[us]")
    if kind in "iub" and not series.isna().any():
        return np.asarray(series.to_numpy(dtype=bool if kind == "b" else None))
    if kind in "iufb" and str(series.dtype) != "category":
        return np.asarray(series.to_numpy(dtype=np.float64, na_value=np.nan))
    return _objects(np.asarray(series.astype(object).to_numpy(), object))


def _polars(series: Any) -> Array:
    kind = series.dtype
    if kind.is_numeric() or str(kind) == "Boolean":
        if series.null_count():
            return np.array([np.nan if value is None else float(value) for value in series.to_list()])
        return np.asarray(series.to_numpy())
    if str(kind).startswith(("Date", "Datetime")):
        stamps = [np.datetime64("NaT") if value is None else value for value in series.dt.timestamp("us").to_list()]
        return np.array(
            [np.datetime64(value, "us") if isinstance(value, int) else value for value in stamps], "datetime64[us]"
        )
    return _objects(np.array(series.to_list(), object))


def _arrow(column: Any) -> Array:
    import pyarrow as pa

    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        if column.null_count == 0 and not pa.types.is_decimal(kind):
            return np.asarray(column.to_numpy(zero_copy_only=False) if hasattr(column, "buffers") else column.to_numpy())
        whole = column.cast(pa.int8()) if pa.types.is_boolean(kind) else column
        return np.asarray(whole.cast(pa.float64(), safe=False).to_numpy(), np.float64)
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return np.asarray(column.cast(pa.timestamp("us")).to_numpy(), "datetime64[us]")
    return _objects(np.array(column.to_pylist(), object))


def _without_zone(value: datetime.date) -> datetime.date:
    """A time with a zone, as it is in UTC."""
    if isinstance(value, datetime.datetime) and value.tzinfo is not None:
        return value.astimezone(datetime.UTC).replace(tzinfo=None)
    return value


def _objects(values: Array) -> Array:
    """Objects as what they are: numbers, True and False, dates, or words."""
    known = [value for value in values.ravel().tolist() if not is_missing(value)]
    if known and all(isinstance(value, numbers.Number) or type(value).__name__ == "Decimal" for value in known):
        if len(known) == values.size and all(isinstance(value, int) for value in known):
            return np.array(known)
        return np.array([np.nan if is_missing(value) else float(value) for value in values.tolist()])
    if known and all(isinstance(value, datetime.date) for value in known):
        return np.array(
            [np.datetime64("NaT") if is_missing(value) else _without_zone(value) for value in values.tolist()],
            "datetime64[us]",
        )
    out = np.empty(values.shape, object)
    out[...] = values
    return out


def _word(value: Any) -> str:
    return value if type(value) is str else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _name_of(y: Any) -> str:
    name = getattr(y, "name", None)
    return str(name) if isinstance(name, str) and name else "target"
