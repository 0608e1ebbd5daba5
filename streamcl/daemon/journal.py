"""The log as ingest writes it, the session that follows from it, and what holds while the disk is full.

Guarantees: a record reaches the session only once it is in the log; what cannot be counted after it was stored ends the
process, since only a new start, from disk, can tell what holds. Knows nothing of messages and sockets.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from streamcl.errors import Refused, StreamclError
from streamcl.protocol.frames import Buffer
from streamcl.protocol.session import StreamSession
from streamcl.storage import log
from streamcl.storage.disk import FULL, Disk
from streamcl.storage.records import Record

PROBE_SECONDS = 1.0  # between two looks at a full disk
ROOM_BYTES = 1 << 20  # what must fit before a disk counts as no longer full


class Writer(Protocol):
    """What is asked of `log.LogWriter`."""

    @property
    def durable(self) -> int:
        """All records below are on disk."""

    @property
    def next_lsn(self) -> int:
        """Of the record to come."""

    @property
    def end_bytes(self) -> int:
        """Written so far."""

    def append(self, record: Record, payloads: Sequence[Any] = ()) -> int:
        """Write a record, return its LSN."""

    def sync(self) -> Any:
        """Make everything written durable."""

    def rotate(self) -> None:
        """Begin a new segment with the next record."""


class Journal:
    """Appends and syncs; tells nobody."""

    def __init__(self, writer: Writer, session: StreamSession, disk: Disk, directory: Path) -> None:
        self.writer, self.session, self.disk, self.directory = writer, session, disk, directory
        self.full: str | None = None  # what the disk said, while it is full
        self._last_probe = 0.0

    @property
    def durable(self) -> int:
        """All records below are on disk."""
        return self.writer.durable

    @property
    def synced(self) -> bool:
        """Whether nothing waits for a sync."""
        return self.writer.durable >= self.writer.next_lsn

    def append(self, record: Record, payloads: Sequence[Buffer] = ()) -> int:
        """Put a record into the log, then into the session, and return its LSN.

        Raises Refused ``no_space`` where the disk is full; StreamclError, which ends the process, where it fails otherwise.
        """
        before = self.writer.end_bytes
        try:
            lsn = self.writer.append(record, payloads)
        except OSError as error:
            if error.errno not in FULL:
                raise StreamclError(f"the log cannot be written: {error}; stopping, to recover from disk") from error
            self._fill(str(error))
            raise Refused("no_space", f"the disk is full ({error.strerror}); free some", retryable=True) from None
        self._empty()
        try:
            self.session.apply(lsn, record, self.writer.end_bytes - before)
        except Exception as error:  # stored but not counted
            raise StreamclError(f"record {lsn}: {type(error).__name__}: {error}") from error
        if self.session.open_task is None:
            self.writer.rotate()
        return lsn

    def _fill(self, reason: str) -> None:
        self.full, self.session.room.full, self._last_probe = reason, True, time.monotonic()

    def _empty(self) -> None:
        self.full, self.session.room.full = None, False

    def sync(self) -> float | None:
        """Make durable what was appended; the seconds it took, None where there was nothing to sync."""
        if self.synced:
            return None
        started = time.monotonic()
        self.writer.sync()
        seconds = time.monotonic() - started
        self.session.producers.synced()
        return seconds

    def look_for_room(self) -> bool:
        """While the disk is full no credit is given; now and then, whether there is room again is looked at."""
        if self.full is None or time.monotonic() - self._last_probe <= PROBE_SECONDS:
            return False
        self._last_probe = time.monotonic()
        if self.disk.has_room(self.directory, max(self.session.room.largest_batch, ROOM_BYTES)):
            self._empty()
        return self.full is None

    def rotate(self) -> None:
        """What is stored from now on shall not keep what is there already on disk."""
        self.writer.rotate()

    def measure(self) -> None:
        """Count what the log takes on disk."""
        self.session.room.total_spool = log.spool_bytes(self.directory)
