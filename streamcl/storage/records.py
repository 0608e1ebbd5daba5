"""The records of the log: what happened, in the one order that counts.

Guarantees: a record that decodes has fields of the right types. A kind of record that this version does not know is an
`UnknownFormat`, never skipped.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec
import numpy.typing as npt

from streamcl.columns import Column
from streamcl.errors import UnknownFormat


class ArraySpec(msgspec.Struct, frozen=True, array_like=True):
    """One array that follows a record: raw, C-contiguous, little-endian."""

    name: str
    dtype: Literal["<f4", "<f8", "<f2", "<i8", "<i4", "|u1"]
    shape: tuple[int, ...]


def array_spec(name: str, array: npt.NDArray[Any]) -> ArraySpec:
    """The description of an array, which must have one of the log's dtypes; that was checked when its frame was opened."""
    return ArraySpec(name, array.dtype.str, array.shape)  # type: ignore[arg-type]


class _Record(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind"):
    """What every record carries: who sent it, with which number, about which task.

    producer is None where the daemon or an operator caused the record; epoch and seq are 0 then.
    """

    producer: str | None
    epoch: int
    seq: int
    task: str


class Batch(_Record, frozen=True, tag="batch"):
    """Rows of one task. new_labels: labels first seen here, in order of appearance; outputs: what each of them was given
    (none in older logs, where the first batch decided).

    tag: with drift, what the producer called the task. If it equals `task`, the learner determines the task's own name
    (`of_stream`); in older logs ingest had determined it, and tag is set only if it differs.
    schema: the columns of a table's x, as they were sent. left_out: as of the message. new_words: of a target of words,
    those first seen here, in the order of their labels; y then holds codes, new_labels the words' labels. at: when it was
    stored, in seconds since 1970, where tasks end by the clock.
    """

    samples: int
    arrays: tuple[ArraySpec, ...]
    boundary: bool = False
    new_labels: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    tag: str | None = None
    schema: tuple[Column, ...] | None = None
    left_out: tuple[str, ...] = ()
    new_words: tuple[str, ...] = ()
    at: float | None = None

    @property
    def of_stream(self) -> bool:
        """Whether its task is a stream of tasks, which drift tells apart."""
        return self.tag == self.task


class Boundary(_Record, frozen=True, tag="boundary"):
    """The end of a task. weight: lambda_t, None for scale * N_t.

    origin: ``time`` and ``budget`` where the clock has ended the stream's open task, and `reason` says why; ``drift`` in
    older logs only: what drift closes now follows from the batches before it, and has no record.
    """

    weight: float | None = None
    origin: Literal["stream", "admin", "on-change", "drift", "time", "budget"] = "stream"
    reason: str | None = None

    @property
    def by_clock(self) -> bool:
        """Whether the clock has set it: the stream of tasks goes on behind it."""
        return self.origin in ("time", "budget")


class Revisit(_Record, frozen=True, tag="revisit"):
    """A consolidated task is reopened. damping: of its new factor, None for the configuration's."""

    damping: float | None = None


class Abandon(_Record, frozen=True, tag="abandon"):
    """The open revisit is given up; the state before it holds again."""


class Forget(_Record, frozen=True, tag="forget"):
    """A task's factor is withdrawn for good."""


class Retry(_Record, frozen=True, tag="retry"):
    """What was kept of a task because it could not be learned is learned now."""


class Drop(_Record, frozen=True, tag="drop"):
    """What was kept of a task because it could not be learned is given up for good."""


class Rollback(_Record, frozen=True, tag="rollback"):
    """Everything learned since a version is undone. to: the version. undone: the tasks that are unknown again.
    revisits_undone: those that are as they were before they were fed again."""

    to: int
    undone: tuple[str, ...] = ()
    revisits_undone: tuple[str, ...] = ()


class Lost(_Record, frozen=True, tag="lost"):
    """Takes the place of a record of the open task that a repair found damaged. tag: what its producers call it (drift)."""

    tag: str | None = None


Record = Batch | Boundary | Revisit | Abandon | Forget | Retry | Drop | Rollback | Lost

_decoder = msgspec.msgpack.Decoder(Record)
_encoder = msgspec.msgpack.Encoder()


def encode(record: Record) -> bytes:
    """A record as msgpack."""
    return _encoder.encode(record)


def decode(body: bytes | memoryview) -> Record:
    """The record of `encode`; raises UnknownFormat for one that this version does not know."""
    try:
        record: Record = _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise UnknownFormat(
            f"log record: {error}; it was written by another version of streamcl: start that one, or upgrade"
        ) from None
    return record


def closes_task(record: Record) -> bool:
    """Whether a task's data ends with this record; a retry is of data that ended before, with no task open."""
    return isinstance(record, Boundary | Abandon | Retry) or (isinstance(record, Batch) and record.boundary)
