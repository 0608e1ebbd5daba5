"""What a record of a broker's log says: rows of a task, the end of one, both, or nothing.

Guarantees: a record that can be read gives a `Portion`; one that cannot is a `BadRecord` that says why. Columns are matched
by name to those of the stream: once these are known, no record changes what a column is. Knows nothing of brokers.
"""

from __future__ import annotations

import csv
import datetime
import decimal
import io
import json
import math
import re
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from streamcl import columns, dataframes
from streamcl.bridges.choice import Choice
from streamcl.datafiles.cells import BOOLEANS, NUMBER, is_missing, shown
from streamcl.datafiles.choice import COORDINATE, LABEL_NAMES
from streamcl.errors import StreamclError
from streamcl.protocol.frames import MESSAGE_BYTES

Array = npt.NDArray[Any]
Row = dict[str, Any]
DATE = re.compile(r"\d{4}-\d{2}-\d{2}([T ]\d{2}:\d{2}(:\d{2}([.,]\d+)?)?(Z|[+-]\d{2}:?\d{2})?)?")
TASK = re.compile(r"[^\x00-\x1f\x7f\ud800-\udfff]{1,128}")
WORD_CHARACTERS = 4096
LARGEST = 2**63 - 1
NOT_SAID = frozenset({b"0", b"false", b"no"})  # of a boundary header: not this time


class BadRecord(StreamclError):
    """A record that cannot be read, and why."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record. number: its sequence number, from 1: a Kafka offset + 1, a JetStream sequence number. topic: the topic
    or stream that it is of. key: of NATS, the subject. value: None of a tombstone."""

    partition: int
    number: int
    topic: str
    value: bytes | None
    key: bytes | None = None
    headers: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Portion:
    """What a record holds. rows: of named fields, or x: [n, ...] and y: [n, ...]; none of both where it only closes a task.
    task: None where it does not say."""

    task: str | None
    rows: Sequence[Row] = ()
    x: Array | None = None
    y: Array | None = None
    boundary: bool = False

    @property
    def count(self) -> int:
        """How many rows."""
        return len(self.rows) if self.x is None else len(self.x)


class Reader:
    """Reads the records of one stream.

    known: the stream's columns and what they are, in order: number, category or date; None until its first batch. label:
    the target's field, once it is known. left_out: fields that the first sender left out.
    """

    def __init__(self, choice: Choice) -> None:
        self.choice = choice
        self.known: dict[str, str] | None = None
        self.label = choice.label
        self.word_targets = False
        self.left_out: frozenset[str] = frozenset()
        self._decode = _DECODERS[choice.format]

    def adopt(self, welcome: Mapping[str, Any]) -> None:
        """Take over what the daemon knows of the stream's columns."""
        schema = welcome.get("schema")
        if not schema:
            return
        found = columns.from_plain(schema)
        self.known = _with_dates({column.name: str(column.kind) for column in columns.features(found)})
        target = columns.target(found)
        if target is not None:
            self.word_targets = target.categories is not None
            self.label = self.label or target.name
        self.left_out = frozenset(welcome.get("left_out") or ())

    def read(self, record: Record) -> Portion | None:
        """What a record says; None of a tombstone that closes nothing. Raises BadRecord."""
        ends = closes(record, self.choice)
        if not record.value:
            return Portion(self._task(record, {}), boundary=True) if ends else None
        decoded = self._decode(record.value, self.choice)
        if isinstance(decoded, tuple):
            return self._arrays(decoded, self._task(record, {}), ends)
        if not decoded:
            raise BadRecord("expected at least one row")
        ends |= self.choice.boundary_field is not None and bool(decoded[-1].get(self.choice.boundary_field))
        task = self._task(record, decoded[0])
        if any(self._task(record, row) != task for row in decoded):
            raise BadRecord("expected rows of one task in a record")
        listed = self._listed(decoded[0])
        if listed is not None:
            return self._arrays(self._from_lists(decoded, listed), task, ends)
        return Portion(task, [self._row(row) for row in decoded], boundary=ends)

    # -- the task -----------------------------------------------------------------------------------------------------

    def _task(self, record: Record, row: Row) -> str | None:
        task = self._named(record, row)
        if task is not None and TASK.fullmatch(task) is None:
            raise BadRecord(f"expected a task's name of 1 to 128 characters that can be printed, got {shown(repr(task))}")
        return task

    def _named(self, record: Record, row: Row) -> str | None:
        if self.choice.task is not None:
            return self.choice.task
        kind, _, name = self.choice.task_from.partition(":")
        match kind:
            case "topic":
                return record.topic
            case "key":
                return _text(record.key, "key")
            case "header":
                return _text(record.headers.get(name), f"header {name!r}")
        if not row and not record.value:
            return None
        if not isinstance(row.get(name), str | int):
            raise BadRecord(f"expected the task's name in field {name!r}, got {row.get(name)!r}")
        return str(row[name])

    # -- named fields -------------------------------------------------------------------------------------------------

    def _row(self, given: Row) -> Row:
        """Features in the stream's order where that is known, and the target last."""
        label = self._label(given)
        row = {name: self._cell(name, given.get(name)) for name in self._features(given, label)}
        row[label] = self._target(label, given.get(label))
        return row

    def _label(self, given: Row) -> str:
        if self.label is None:
            named = [name for name in given if name.casefold() in LABEL_NAMES]
            named = named or [name for name in given if name.casefold() == COORDINATE]
            if len(named) != 1:
                raise BadRecord(f"which field is the target? {_listed(given)}: say --label FIELD")
            self.label = named[0]
        if self.label not in given:
            raise BadRecord(f"expected the target in field {self.label!r}, there are {_listed(given)} (--label)")
        return self.label

    def _features(self, given: Row, label: str) -> list[str]:
        choice = self.choice
        aside = {label, choice.task_field, choice.boundary_field, *choice.drop}
        there = [name for name in given if name not in aside]
        if self.known is None:
            wanted = list(choice.features) or there
            absent = [name for name in wanted if name not in given]
            if absent:
                raise BadRecord(f"expected field {absent[0]!r}, there are {_listed(given)} (--features)")
            if not wanted:
                raise BadRecord("expected at least one field beside the target")
            return wanted
        new = [name for name in there if name not in self.known and name not in self.left_out]
        if new and not choice.features:
            raise BadRecord(
                f"field {new[0]!r} is none of the stream's columns, {_listed(self.known)}: leave it out (--drop {new[0]})"
            )
        return list(self.known)

    def _cell(self, name: str, value: Any) -> Any:
        """A feature as what its column is; what it is by itself where that is not known yet."""
        kind = "category" if name in self.choice.words else (self.known or {}).get(name)
        if isinstance(value, str) and self.choice.format == "csv":
            value = _from_text(value, kind)
        if dataframes.is_missing(value):
            return None
        if isinstance(value, list | dict | tuple):
            raise BadRecord(f"field {name!r}: expected a number or a word, got {shown(repr(value))}; --drop {name}")
        if isinstance(value, decimal.Decimal):
            value = float(value)
        if isinstance(value, int) and abs(value) > LARGEST and kind != "category":
            raise BadRecord(f"field {name!r}: {shown(str(value)[:40])} is too large for a number (--words {name})")
        if isinstance(value, int | float) and kind != "category":
            return value if kind != "date" else _date(name, value)
        if kind == "date" or (kind is None and isinstance(value, datetime.date)):
            return _date(name, value)
        if kind in ("number", "token"):
            raise BadRecord(f"field {name!r}: expected a number, got {shown(repr(value))}")
        return _word(name, value)

    def _target(self, name: str, value: Any) -> Any:
        if isinstance(value, str) and self.choice.format == "csv":
            value = _from_text(value, "category" if self.word_targets else None)
        if dataframes.is_missing(value) or not isinstance(value, str | int | float):
            raise BadRecord(f"field {name!r}, the target: expected a number or a word, got {shown(repr(value))}")
        if name in self.choice.words or self.word_targets or isinstance(value, str):
            return _word(name, value)
        if isinstance(value, int) and abs(value) > LARGEST:
            raise BadRecord(f"field {name!r}, the target: {shown(str(value)[:40])} is too large for a number")
        return int(value) if isinstance(value, bool) else value

    # -- arrays -------------------------------------------------------------------------------------------------------

    def _listed(self, row: Row) -> str | None:
        """The one field whose value is a list: the features as they are."""
        if self.choice.format == "arrow" or self.known is not None:
            return None
        names = self.choice.features or [name for name, value in row.items() if isinstance(value, list)]
        return names[0] if len(names) == 1 and isinstance(row.get(names[0]), list) else None

    def _from_lists(self, rows: Sequence[Row], name: str) -> tuple[Array, Array]:
        targets = [self._target(self._label(row), row[self._label(row)]) for row in rows]
        if any(isinstance(target, str) for target in targets):
            raise BadRecord(f"field {self.label!r}, the target: expected a number beside a list, got {targets[0]!r}")
        try:
            x = np.array([row[name] for row in rows], "<f4")
        except (ValueError, TypeError, KeyError) as error:
            raise BadRecord(f"field {name!r}: expected lists of numbers of one length ({error})") from None
        return x, np.array(targets)

    def _arrays(self, arrays: tuple[Array, Array], task: str | None, ends: bool) -> Portion:
        x, y = arrays
        if x.ndim == 0 or y.ndim == 0 or len(x) != len(y) or not len(x):
            raise BadRecord(f"expected as many targets as rows, got x {list(x.shape)} and y {list(y.shape)}")
        return Portion(task, x=x, y=y, boundary=ends)


# -- of each format ----------------------------------------------------------------------------------------------------


def _json(value: bytes, choice: Choice) -> Sequence[Row]:
    try:
        return _rows(json.loads(value))
    except (ValueError, RecursionError) as error:
        raise BadRecord(f"not JSON ({error}): {_start(value)}") from None


def _msgpack(value: bytes, choice: Choice) -> Sequence[Row]:
    try:
        return _rows(msgpack.unpackb(value, raw=False, timestamp=3))
    except (ValueError, RecursionError, msgpack.UnpackException) as error:
        raise BadRecord(f"not msgpack ({error}): {_start(value)}") from None


def _rows(decoded: Any) -> Sequence[Row]:
    rows = decoded if isinstance(decoded, list) else [decoded]
    for row in rows:
        if not isinstance(row, dict) or not all(isinstance(name, str) for name in row):
            raise BadRecord(f"expected fields by name, or a list of such rows, got {shown(repr(row))}")
    return rows


def _csv(value: bytes, choice: Choice) -> Sequence[Row]:
    try:
        lines = [line for line in csv.reader(io.StringIO(value.decode())) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRecord(f"not CSV ({error}): {_start(value)}") from None
    for line in lines:
        if len(line) != len(choice.columns):
            raise BadRecord(f"expected {len(choice.columns)} cells (--columns), got {len(line)}: {_start(value)}")
    return [dict(zip(choice.columns, line, strict=True)) for line in lines]


def _arrow(value: bytes, choice: Choice) -> Sequence[Row]:
    import pyarrow as pa

    try:
        rows: list[Row] = pa.ipc.open_stream(pa.BufferReader(value)).read_all().to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise BadRecord(f"not an Arrow IPC stream ({error}): {_start(value)}") from None
    return rows


def _npz(value: bytes, choice: Choice) -> tuple[Array, Array]:
    """A bare pair of arrays: x, or the one that `features` names, and y, or `label`."""
    x, y = (choice.features or ("x",))[0], choice.label or "y"
    try:
        with zipfile.ZipFile(io.BytesIO(value)) as packed:
            size = sum(each.file_size for each in packed.infolist())
        if size > MESSAGE_BYTES:
            raise BadRecord(f"unpacked it has {size} bytes, of {MESSAGE_BYTES} at most that a message may have")
        with np.load(io.BytesIO(value), allow_pickle=False) as arrays:
            if isinstance(arrays, np.ndarray) or not {x, y} <= set(arrays.files):
                raise BadRecord(f"expected an NPZ file with the arrays {x!r} and {y!r} (--features, --label)")
            return arrays[x], arrays[y]
    except BadRecord:
        raise
    except Exception as error:  # zipfile, zlib and NumPy raise a dozen kinds for bytes that are no NPZ file
        raise BadRecord(f"not an NPZ file ({error}): {_start(value)}") from None


_DECODERS: Mapping[str, Callable[[bytes, Choice], Sequence[Row] | tuple[Array, Array]]] = {
    "json": _json,
    "csv": _csv,
    "msgpack": _msgpack,
    "arrow": _arrow,
    "npz": _npz,
}


# -- values ------------------------------------------------------------------------------------------------------------


def first_kinds(rows: Sequence[Row], label: str, words: frozenset[str]) -> dict[str, str]:
    """What the columns of a stream's first rows are. Raises BadRecord for one of both numbers and words."""
    names = [name for name in rows[0] if name != label]
    if any(row.keys() != rows[0].keys() for row in rows):
        raise BadRecord("the stream's first records have different fields: name those to learn from (--features)")
    return {name: "category" if name in words else _kind(name, [row[name] for row in rows]) for name in names}


def _kind(name: str, values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    if all(isinstance(value, int | float) for value in known):
        return "number"
    if all(_is_date(value) for value in known):
        return "date"
    odd = next((value for value in known if isinstance(value, int | float)), None)
    if odd is not None:
        raise BadRecord(f"field {name!r} has words, and numbers such as {odd!r}: say --words {name}, or correct it")
    return "category"


def _is_date(value: Any) -> bool:
    return isinstance(value, datetime.date) or (isinstance(value, str) and DATE.fullmatch(value) is not None)


def _date(name: str, value: Any) -> Any:
    """Of a text, the moment in UTC."""
    if isinstance(value, datetime.datetime):
        return value.astimezone(datetime.UTC).replace(tzinfo=None) if value.tzinfo else value
    if isinstance(value, datetime.date):
        return datetime.datetime(value.year, value.month, value.day)
    try:
        return _date(name, datetime.datetime.fromisoformat(str(value).replace(",", ".")))
    except ValueError:
        raise BadRecord(f"field {name!r}: expected a date such as 2026-11-27, got {shown(repr(value))}") from None


def table(rows: Sequence[Row], kinds: Mapping[str, str], label: str) -> Any:
    """Rows as a table of Arrow's, every column of the type of its kind."""
    import pyarrow as pa

    types = {"date": pa.timestamp("us"), "category": pa.string()}
    data = {}
    for name, kind in kinds.items():
        values = [_typed(name, row[name], kind) for row in rows]
        data[name] = pa.array(values, types.get(kind, pa.float64()))
    targets = [row[label] for row in rows]
    if any(isinstance(target, str) for target in targets):
        data[label] = pa.array([_word(label, target) for target in targets], pa.string())
    else:
        data[label] = pa.array(targets, pa.int64() if all(isinstance(t, int) for t in targets) else pa.float64())
    return pa.table(data)


def _typed(name: str, value: Any, kind: str) -> Any:
    if value is None:
        return None
    match kind:
        case "date":
            return _date(name, value)
        case "category":
            return _word(name, value)
    return float(value)


def _word(name: str, value: Any) -> str:
    """A number that is a word is the one that is written: 3, not 3.0."""
    whole = isinstance(value, float) and value.is_integer()
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(int(value) if whole else value)
    if len(text) > WORD_CHARACTERS or (not text.isascii() and _is_torn(text)):
        raise BadRecord(
            f"field {name!r}: expected a word of at most {WORD_CHARACTERS} characters of Unicode, got {shown(text)!a}"
        )
    return text


def _is_torn(text: str) -> bool:
    """Whether half of a surrogate pair stands alone in it, which no encoding has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _from_text(text: str, kind: str | None) -> Any:
    """A cell of a CSV line."""
    if is_missing(text):
        return None
    bare = text.strip()
    if kind in ("category", "date"):
        return bare
    if bare.casefold() in BOOLEANS:
        return BOOLEANS[bare.casefold()]
    if NUMBER.fullmatch(bare) is None:
        return bare
    try:
        return int(bare)
    except ValueError:
        with_point = bare.replace(",", ".")
        return float(with_point) if math.isfinite(float(with_point)) else bare


def _with_dates(kinds: Mapping[str, str]) -> dict[str, str]:
    """The four numbers of a date are one field of a record."""
    found: dict[str, str] = {}
    for name, kind in kinds.items():
        whole, _, part = name.rpartition(".")
        of_date = part in dataframes.PARTS and all(f"{whole}.{each}" in kinds for each in dataframes.PARTS)
        found[whole if of_date else name] = "date" if of_date else kind
    return found


def closes(record: Record, choice: Choice) -> bool:
    """Whether a record's header closes its task."""
    return _says_so(record.headers.get(choice.boundary_header))


def _says_so(header: bytes | None) -> bool:
    return header is not None and header.strip().lower() not in NOT_SAID


def _text(value: bytes | None, what: str) -> str:
    try:
        text = "" if value is None else value.decode()
    except UnicodeDecodeError:
        text = ""
    if not text:
        raise BadRecord(f"expected the task's name in the record's {what}, got {value!r} (--task-from)")
    return text


def _listed(names: Any) -> str:
    from streamcl.datafiles.choice import listed

    return listed(list(names))


def _start(value: bytes) -> str:
    return repr(value[:60])
