"""The append-only log between ingest and training.

STATE/log holds segments named by their first LSN (the number of a record in the whole history, from 0, never used
again). All numbers are little-endian.

    segment   32 bytes: magic "SCLLOG\\0\\0", version u32, zero u32, first LSN u64, zero u32, crc32 u32 of the former
    record    40 bytes: magic "RECD", record length u32, payload length u64, LSN u64, durable u64 (every record below was
              synced when this one was written), crc32 u32 of what follows the header, crc32 u32 of the former; then the
              record (msgpack) padded with zeros to 8 bytes, then the payload (raw arrays) padded likewise

Guarantees: what `sync` returned for survives a power cut. A segment never holds records of two tasks, so that a
consolidated task's bytes can be unlinked. No flipped bit goes unnoticed. A torn tail is cut off at recovery and counted;
damage anywhere else raises Damaged.

How the two are told apart. A segment's header and name are synced before its first record, and a segment is synced before
the next begins: so only records of the last one can be torn. Records written since the last sync may reach the disk in any
order, so a sound record behind an unsound one proves nothing by itself. But each says what was durable when it was
written: an unsound record is damage if a sound header anywhere behind it, or the checkpoint, counts it as durable, and a
torn tail otherwise. What the very last sync covered may have no such witness; damage there is cut off too, and reported.

One process writes; another reads below the durable end and drops what it has absorbed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import Damaged, UnknownFormat
from streamcl.storage.disk import Buffer, Disk
from streamcl.storage.records import Batch, Record, closes_task, decode, encode

VERSION = 1
SEGMENT_BYTES = 64 << 20
RECORD_OVERHEAD = 512  # more than a batch's record, headers and padding add to its frames
_SEGMENT = struct.Struct("<8sIIQII")
_RECORD = struct.Struct("<4sIQQQII")
_CHECKSUM = struct.Struct("<I")
_SEGMENT_MAGIC = b"SCLLOG\0\0"
_RECORD_MAGIC = b"RECD"
_ALIGNMENT = 8

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One record read back: its number, its arrays as read-only views of the file, its bytes on disk."""

    lsn: int
    record: Record
    arrays: dict[str, Array]
    nbytes: int


@dataclass(frozen=True, slots=True)
class TornTail:
    """What recovery cut off: an append that never finished, so was never acknowledged."""

    path: Path
    offset: int
    nbytes: int


def record_bytes(parts: Sequence[Buffer]) -> int:
    """An upper bound of what a message takes in the log, known before it is stored."""
    return sum(len(part) for part in parts) + RECORD_OVERHEAD


def spool_bytes(directory: Path) -> int:
    """Bytes that all segments take."""
    total = 0
    for path in _segments(directory):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # dropped meanwhile
            continue
    return total


def drop_before(directory: Path, lsn: int, disk: Disk) -> int:
    """Unlink every segment all of whose records are below `lsn`; returns how many.

    The last segment goes only if its last record closes its task: the writer never appends to it again then.
    """
    paths = _segments(directory)
    doomed = [path for path, following in pairwise(paths) if _first_lsn(following) <= lsn]
    if paths and _first_lsn(paths[-1]) < lsn and _is_finished(paths[-1], lsn):
        doomed.append(paths[-1])
    for path in doomed:
        disk.unlink(path)
    if doomed:
        disk.sync_directory(directory)
    return len(doomed)


def _without_absorbed(directory: Path, needed: int, disk: Disk) -> list[Path]:
    """The segments that hold records from `needed` on; the others are unlinked.

    A power cut may bring any of the segments back that were being unlinked, so they need not follow on one another.
    """
    paths = _segments(directory)
    first = sum(_first_lsn(following) <= needed for following in paths[1:])
    if paths and _first_lsn(paths[-1]) < needed and _scan(paths[-1], last=True).next_lsn < needed:
        first = len(paths)
    for path in paths[:first]:
        disk.unlink(path)
    if first:
        disk.sync_directory(directory)
    return paths[first:]


def _is_finished(path: Path, lsn: int) -> bool:
    """Whether a segment ends below `lsn`, with a task's last record."""
    data, offset, last = _map(path), _SEGMENT.size, None
    while (head := _head(data, offset)) is not None:
        last, offset = (head, offset), offset + head.size
    if last is None or offset != len(data) or last[0].lsn >= lsn:
        return False
    return closes_task(_record(path, data, last[1], last[0]))


# -- writing -----------------------------------------------------------------------------------------------------------


class LogWriter:
    """Appends records and syncs them in groups; made by `recover`.

    next_lsn: number of the next record. durable: everything below is on disk. first_lsn: the oldest record still held.
    """

    def __init__(self, directory: Path, disk: Disk, segment_bytes: int, first_lsn: int, next_lsn: int) -> None:
        self.directory = directory
        self.disk = disk
        self.segment_bytes = segment_bytes
        self.first_lsn = first_lsn
        self.next_lsn = self.durable = next_lsn
        self.torn: TornTail | None = None
        self.end_bytes = 0
        self._fd: int | None = None
        self._end = 0
        self._finished = False

    @classmethod
    def recover(
        cls,
        directory: Path,
        disk: Disk,
        next_lsn: int = 0,
        needed: int | None = None,
        segment_bytes: int = SEGMENT_BYTES,
    ) -> LogWriter:
        """Drop segments that were absorbed, check every other, cut a torn tail, and go on where the log ends.

        next_lsn: everything below is in a checkpoint, so was durable; an empty log goes on there. needed: the oldest
        record that is still to be read, `next_lsn` unless a task is open. Raises Damaged, UnknownFormat.
        """
        needed = next_lsn if needed is None else needed
        while True:
            with contextlib.suppress(FileNotFoundError):  # a running trainer dropped a segment after it was listed
                disk.make_directory(directory)
                disk.sync_directory(directory.parent)  # even if it was there: its maker may have died before this
                return cls._recover(directory, disk, next_lsn, needed, segment_bytes)

    @classmethod
    def _recover(cls, directory: Path, disk: Disk, next_lsn: int, needed: int, segment_bytes: int) -> LogWriter:
        paths = _without_absorbed(directory, needed, disk)
        first = end = _first_lsn(paths[0]) if paths else next_lsn
        if first > needed:
            raise Damaged(
                f"{directory}: expected records from LSN {needed} on, found them from {first} on: a segment is missing; "
                "restore the log from a backup"
            )
        scan = None
        for path in paths:
            if _first_lsn(path) != end:
                raise Damaged(
                    f"{path}: expected a segment that begins with LSN {end}; one is missing or misnamed: restore the log "
                    "from a backup"
                )
            scan = _scan(path, last=path == paths[-1])
            end = scan.next_lsn
        if end < next_lsn:
            raise Damaged(
                f"{paths[-1]}: the log ends before LSN {end}, but the checkpoint holds all below {next_lsn}: what was "
                "synced is missing or damaged; restore the log from a backup, or move it aside to lose what is not "
                "consolidated"
            )
        writer = cls(directory, disk, segment_bytes, first, end)
        if scan is not None:
            writer._resume(paths[-1], scan)
        return writer

    def _resume(self, path: Path, scan: _Scan) -> None:
        """Cut the torn tail off the last segment, and append there unless its task is closed."""
        size = path.stat().st_size
        if scan.end < size:
            self.torn = TornTail(path, scan.end, size - scan.end)
        if scan.end < _SEGMENT.size:
            self.disk.unlink(path)
            self.disk.sync_directory(self.directory)
            return
        fd = self.disk.open(path)
        if self.torn is not None:
            self.disk.truncate(fd, scan.end)
        self.disk.sync_data(fd)  # what a crash left in the page cache counts as durable from here on
        self.disk.sync_directory(self.directory)
        if scan.last is not None and closes_task(scan.last):
            self.disk.close(fd)
        else:
            self._fd, self._end = fd, scan.end

    def append(self, record: Record, payloads: Sequence[Buffer] = ()) -> int:
        """Write one record behind the others; returns its LSN. It is durable only after `sync`.

        Raises OSError where it cannot be written (a full disk); nothing is stored then, and the log goes on as before.
        """
        body = encode(record)
        length = sum(len(payload) for payload in payloads)
        behind = [body, _padding(len(body)), *payloads, _padding(length)]
        checksum = 0
        for buffer in behind:
            checksum = zlib.crc32(buffer, checksum)
        head = _RECORD.pack(_RECORD_MAGIC, len(body), length, self.next_lsn, self.durable, checksum, 0)
        self._write([_sealed(head), *behind])
        self.next_lsn += 1
        if closes_task(record):
            self.rotate()
        return self.next_lsn - 1

    def _write(self, buffers: Sequence[Buffer]) -> None:
        if self._fd is None or self._finished or self._end >= self.segment_bytes:
            self._begin_segment()
        assert self._fd is not None
        try:
            end = self.disk.write(self._fd, buffers, self._end)
        except OSError:
            self.disk.truncate(self._fd, self._end)
            raise
        self.end_bytes += end - self._end
        self._end = end

    def _begin_segment(self) -> None:
        """Sync the segment before, then the new one's header and name, so that only records can ever be torn."""
        self.rotate()
        self._sync_segment()
        path = self.directory / f"{self.next_lsn:020d}.seg"
        fd = self.disk.create(path)
        try:
            self._end = self.disk.write(fd, [_sealed(_SEGMENT.pack(_SEGMENT_MAGIC, VERSION, 0, self.next_lsn, 0, 0))], 0)
        except OSError:
            self.disk.close(fd)
            self.disk.unlink(path)
            raise
        self._fd = fd
        self.disk.sync_data(fd)
        self.disk.sync_directory(self.directory)
        self.end_bytes += self._end

    def rotate(self) -> None:
        """Let the next record begin a new segment; a record that closes its task does so by itself."""
        self._finished = self._fd is not None

    def sync(self) -> int:
        """Make everything appended durable, with one sync for all of it; returns the durable LSN.

        Raises SyncFailed, after which the process must end.
        """
        self._sync_segment()
        self.durable = self.next_lsn
        return self.durable

    def _sync_segment(self) -> None:
        """Sync the segment, and close it if it is finished: an open file would hold a dropped task's bytes."""
        if self._fd is None:
            return
        self.disk.sync_data(self._fd)
        if self._finished:
            self.close()

    def close(self) -> None:
        """Close the file; syncs nothing."""
        if self._fd is not None:
            self.disk.close(self._fd)
        self._fd, self._finished = None, False


def _sealed(head: bytes) -> bytes:
    """A fixed header with its own checksum in the last four bytes."""
    return head[: -_CHECKSUM.size] + _CHECKSUM.pack(zlib.crc32(head[: -_CHECKSUM.size]))


def _is_sealed(head: memoryview) -> bool:
    (own,) = _CHECKSUM.unpack(head[-_CHECKSUM.size :])
    return bool(own == zlib.crc32(head[: -_CHECKSUM.size]))


def _padding(length: int) -> bytes:
    return bytes(-length % _ALIGNMENT)


def _padded(length: int) -> int:
    return length + -length % _ALIGNMENT


# -- checking ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Scan:
    """A segment's sound part: where it ends, the LSN that follows, its last record."""

    end: int
    next_lsn: int
    last: Record | None = None


@dataclass(frozen=True, slots=True)
class _Head:
    """A record's fixed header, its own checksum verified."""

    lsn: int
    durable: int
    body: int
    payload: int
    checksum: int

    @property
    def size(self) -> int:
        """Bytes of the whole record, padding included."""
        return _RECORD.size + _padded(self.body) + _padded(self.payload)


def _scan(path: Path, last: bool) -> _Scan:
    data = _map(path)
    first = _first_lsn(path)
    if not _segment_is_sound(path, data, first):
        if last and len(data) <= _SEGMENT.size:  # it has no record yet, or its header would have been synced
            return _Scan(0, first)
        raise Damaged(f"{path}: offset 0: the segment's header is damaged; restore the file from a backup")
    scan = _Scan(_SEGMENT.size, first)
    while scan.end < len(data):
        head = _sound_record(data, scan.end, scan.next_lsn)
        if head is None:
            if not last or _was_durable(data, scan.end + 1, scan.next_lsn):
                raise _damaged(path, scan)
            return scan
        scan.last = _record(path, data, scan.end, head)
        scan.end += head.size
        scan.next_lsn += 1
    return scan


def _segment_is_sound(path: Path, data: memoryview, first: int) -> bool:
    if len(data) < _SEGMENT.size:
        return False
    magic, version, _, lsn, _, _ = _SEGMENT.unpack_from(data)
    if magic != _SEGMENT_MAGIC or not _is_sealed(data[: _SEGMENT.size]) or lsn != first:
        return False
    if version > VERSION:
        raise UnknownFormat(f"{path}: log format {version}; this streamcl reads up to {VERSION}: upgrade it")
    return True


def _head(data: memoryview, offset: int) -> _Head | None:
    """The fixed header at an offset, if it is sound."""
    if offset + _RECORD.size > len(data):
        return None
    magic, body, payload, lsn, durable, checksum, _ = _RECORD.unpack_from(data, offset)
    if magic != _RECORD_MAGIC or not _is_sealed(data[offset : offset + _RECORD.size]):
        return None
    return _Head(lsn, durable, body, payload, checksum)


def _sound_record(data: memoryview, offset: int, lsn: int) -> _Head | None:
    head = _head(data, offset)
    if head is None or head.lsn != lsn or offset + head.size > len(data):
        return None
    return head if _checksum(data, offset, head) == head.checksum else None


def _checksum(data: memoryview, offset: int, head: _Head) -> int:
    return zlib.crc32(data[offset + _RECORD.size : offset + head.size])


def _record(path: Path, data: memoryview, offset: int, head: _Head) -> Record:
    body = offset + _RECORD.size
    try:
        return decode(data[body : body + head.body])
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}: offset {offset}: {error}") from None


def _damaged(path: Path, scan: _Scan) -> Damaged:
    return Damaged(
        f"{path}: offset {scan.end}: record {scan.next_lsn} is damaged though it was synced; restore the file from a "
        "backup, or move the log aside to lose what has not been consolidated"
    )


def _was_durable(data: memoryview, start: int, lsn: int) -> bool:
    """Whether a sound header anywhere behind `start` says that record `lsn` had been synced."""
    whole = data.obj
    assert isinstance(whole, mmap.mmap)
    offset = whole.find(_RECORD_MAGIC, start)
    while offset >= 0:
        head = _head(data, offset)
        if head is not None and head.lsn > lsn and head.durable > lsn:
            return True
        offset = whole.find(_RECORD_MAGIC, offset + 1)
    return False


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Segment:
    """A mapped segment and where its records lie; mapped again when the file has grown.

    offsets: of every record found whole so far, and last, where the next one would begin.
    """

    path: Path
    first_lsn: int
    data: memoryview
    offsets: list[int] = field(default_factory=lambda: [_SEGMENT.size])

    def locate(self, lsn: int) -> int | None:
        """Where a record begins; None unless the mapped part holds the whole of it."""
        while len(self.offsets) <= lsn - self.first_lsn + 1:
            head = _head(self.data, self.offsets[-1])
            if head is None or self.offsets[-1] + head.size > len(self.data):
                return None
            self.offsets.append(self.offsets[-1] + head.size)
        return self.offsets[lsn - self.first_lsn]


class LogReader:
    """Reads records below the durable end, in order or by number; opens files when first asked.

    The arrays it gives are views of the file: valid for as long as they are held, also after the file was dropped.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: list[_Segment] = []

    def read(self, first: int, end: int, verify: bool = True) -> Iterator[Entry]:
        """Records first..end-1, all of them durable. verify: check the checksums again.

        Raises Damaged where a record is not what was written or is missing.
        """
        for lsn in range(first, end):
            yield self._read(lsn, verify)

    def forget(self, lsn: int) -> None:
        """Let go of segments that begin before `lsn`, once they have been dropped."""
        self._open = [segment for segment in self._open if segment.first_lsn >= lsn]

    def _read(self, lsn: int, verify: bool) -> Entry:
        segment, offset = self._find(lsn)
        head = _head(segment.data, offset)
        if head is None or head.lsn != lsn or (verify and _checksum(segment.data, offset, head) != head.checksum):
            raise Damaged(f"{segment.path}: offset {offset}: record {lsn} is damaged; restore the file from a backup")
        record = _record(segment.path, segment.data, offset, head)
        payload = offset + _RECORD.size + _padded(head.body)
        return Entry(lsn, record, _arrays(record, segment.data, payload), head.size)

    def _find(self, lsn: int) -> tuple[_Segment, int]:
        """The segment that holds a record, and where; looks at the directory only for what is not mapped yet."""
        for look in (False, True):
            if look:
                self._look_for(lsn)
            held = [segment for segment in self._open if segment.first_lsn <= lsn]
            offset = held[-1].locate(lsn) if held else None
            if offset is not None:
                return held[-1], offset
        raise Damaged(f"{self.directory}: record {lsn} is missing or damaged; restore the log from a backup")

    def _look_for(self, lsn: int) -> None:
        """Map the newest segment that may hold a record, again if it was mapped before."""
        paths = [path for path in _segments(self.directory) if _first_lsn(path) <= lsn]
        if not paths:
            return
        first = _first_lsn(paths[-1])
        for segment in self._open:
            if segment.first_lsn == first:
                segment.data = _map(segment.path)
                return
        self._open.append(_Segment(paths[-1], first, _map(paths[-1])))
        self._open.sort(key=lambda segment: segment.first_lsn)


def _arrays(record: Record, data: memoryview, offset: int) -> dict[str, Array]:
    arrays = {}
    for spec in record.arrays if isinstance(record, Batch) else ():
        dtype = np.dtype(spec.dtype)
        count = int(np.prod(spec.shape, dtype=np.int64))
        arrays[spec.name] = np.frombuffer(data, dtype, count, offset).reshape(spec.shape)
        offset += count * dtype.itemsize
    return arrays


# -- files -------------------------------------------------------------------------------------------------------------


def _segments(directory: Path) -> list[Path]:
    return sorted(directory.glob("[0-9]*.seg"))


def _first_lsn(path: Path) -> int:
    try:
        return int(path.stem)
    except ValueError:
        raise Damaged(f"{path}: expected a segment's name of 20 digits") from None


def _map(path: Path) -> memoryview:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(fd)
