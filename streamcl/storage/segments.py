"""The log's files: how segments and records are laid out, and which of their bytes are sound.

STATE/log holds segments named by their first LSN (the number of a record in the whole history, from 0, never used
again). All numbers are little-endian.

    segment   32 bytes: magic "SCLLOG\\0\\0", version u32, zero u32, first LSN u64, zero u32, crc32 u32 of the former
    record    40 bytes: magic "RECD", record length u32, payload length u64, LSN u64, durable u64 (every record below was
              synced when this one was written), crc32 u32 of what follows the header, crc32 u32 of the former; then the
              record (msgpack) padded with zeros to 8 bytes, then the payload (raw arrays) padded likewise

How the two are told apart. A segment's header and name are synced before its first record, and a segment is synced before
the next begins: so only records of the last one can be torn. Records written since the last sync may reach the disk in any
order, so a sound record after an unsound one proves nothing by itself. But each says what was durable when it was
written: an unsound record is damage if a sound header anywhere after it, or the checkpoint, counts it as durable, and a
torn tail otherwise. What the very last sync covered may have no such witness; damage there is cut off too, and reported.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from streamcl.errors import Damaged, UnknownFormat
from streamcl.storage.checksum import crc32
from streamcl.storage.records import Record, decode

VERSION = 1
SEGMENT_HEADER = struct.Struct("<8sIIQII")
RECORD_HEADER = struct.Struct("<4sIQQQII")
_CHECKSUM = struct.Struct("<I")
SEGMENT_MAGIC = b"SCLLOG\0\0"
RECORD_MAGIC = b"RECD"
_ALIGNMENT = 8


def sealed(head: bytes) -> bytes:
    """A fixed header with its own checksum in the last four bytes."""
    return head[: -_CHECKSUM.size] + _CHECKSUM.pack(crc32(head[: -_CHECKSUM.size]))


def _is_sealed(head: memoryview) -> bool:
    (own,) = _CHECKSUM.unpack(head[-_CHECKSUM.size :])
    return bool(own == crc32(head[: -_CHECKSUM.size]))


def padding(length: int) -> bytes:
    """Zeros up to the next multiple of 8."""
    return bytes(-length % _ALIGNMENT)


def padded(length: int) -> int:
    """A length with its padding."""
    return length + -length % _ALIGNMENT


@dataclass(slots=True)
class Scan:
    """A segment's sound part: where it ends, the LSN that follows, its last record.

    damage: set if what follows the end was synced; otherwise that is a torn tail, or nothing.
    """

    end: int
    next_lsn: int
    last: Record | None = None
    damage: Damaged | None = None


@dataclass(frozen=True, slots=True)
class Head:
    """A record's fixed header, its own checksum verified."""

    lsn: int
    durable: int
    body: int
    payload: int
    checksum: int

    @property
    def size(self) -> int:
        """Bytes of the whole record, padding included."""
        return RECORD_HEADER.size + padded(self.body) + padded(self.payload)


def scan_segment(path: Path, last: bool) -> Scan:
    """Check every record of a segment. last: no segment follows, so its tail may be torn. Raises UnknownFormat."""
    data, first = map_file(path), first_lsn_of(path)
    if not _segment_is_sound(path, data, first):
        scan = Scan(0, first)
        if not last or len(data) > SEGMENT_HEADER.size:  # it had a record, so its header was synced
            scan.damage = _damaged(path, 0, "the segment's header")
        return scan
    scan = Scan(SEGMENT_HEADER.size, first)
    while scan.end < len(data):
        head = _sound_record(data, scan.end, scan.next_lsn)
        if head is None:
            if not last or _was_durable(data, scan.end + 1, scan.next_lsn):
                scan.damage = _damaged(path, scan.end, f"record {scan.next_lsn}")
            return scan
        scan.last = record_at(path, data, scan.end, head)
        scan.end += head.size
        scan.next_lsn += 1
    return scan


def sound_records(path: Path) -> Iterator[tuple[int, Head, Record]]:
    """Every record of a segment whose checksums are right, wherever it is: offset, header, record. For repairs."""
    data, offset = map_file(path), SEGMENT_HEADER.size
    while offset + RECORD_HEADER.size <= len(data):
        head = head_at(data, offset)
        if head is not None and offset + head.size <= len(data):
            if checksum_at(data, offset, head) == head.checksum:
                yield offset, head, record_at(path, data, offset, head)
            offset += head.size
        else:
            offset = _next_magic(data, offset + 1)


def _next_magic(data: memoryview, start: int) -> int:
    """Where the next record may begin; the end if nowhere."""
    whole = data.obj
    assert isinstance(whole, mmap.mmap)
    found = whole.find(RECORD_MAGIC, start)
    return len(data) if found < 0 else found


def _segment_is_sound(path: Path, data: memoryview, first: int) -> bool:
    if len(data) < SEGMENT_HEADER.size:
        return False
    magic, version, _, lsn, _, _ = SEGMENT_HEADER.unpack_from(data)
    if magic != SEGMENT_MAGIC or not _is_sealed(data[: SEGMENT_HEADER.size]) or lsn != first:
        return False
    if version > VERSION:
        raise UnknownFormat(f"{path}: log format {version}; this streamcl reads up to {VERSION}: upgrade it")
    return True


def head_at(data: memoryview, offset: int) -> Head | None:
    """The fixed header at an offset, if it is sound."""
    if offset + RECORD_HEADER.size > len(data):
        return None
    magic, body, payload, lsn, durable, checksum, _ = RECORD_HEADER.unpack_from(data, offset)
    if magic != RECORD_MAGIC or not _is_sealed(data[offset : offset + RECORD_HEADER.size]):
        return None
    return Head(lsn, durable, body, payload, checksum)


def _sound_record(data: memoryview, offset: int, lsn: int) -> Head | None:
    head = head_at(data, offset)
    if head is None or head.lsn != lsn or offset + head.size > len(data):
        return None
    return head if checksum_at(data, offset, head) == head.checksum else None


def checksum_at(data: memoryview, offset: int, head: Head) -> int:
    """The checksum of a record's bytes, to be compared with the one in its header."""
    return crc32(data[offset + RECORD_HEADER.size : offset + head.size])


def record_at(path: Path, data: memoryview, offset: int, head: Head) -> Record:
    """The record at an offset; raises UnknownFormat."""
    body = offset + RECORD_HEADER.size
    try:
        return decode(data[body : body + head.body])
    except UnknownFormat as error:
        raise UnknownFormat(f"{path}: offset {offset}: {error}") from None


def _damaged(path: Path, offset: int, what: str) -> Damaged:
    return Damaged(
        f"{path}: offset {offset}: {what} is damaged although it was synced; restore the file from a backup, or see what "
        "`streamcl repair` would lose"
    )


def payload_at(data: memoryview, offset: int, head: Head) -> memoryview:
    """The raw arrays of the record at an offset."""
    start = offset + RECORD_HEADER.size + padded(head.body)
    return data[start : start + head.payload]


def _was_durable(data: memoryview, start: int, lsn: int) -> bool:
    """Whether a sound header anywhere after `start` says that record `lsn` had been synced."""
    offset = _next_magic(data, start)
    while offset < len(data):
        head = head_at(data, offset)
        if head is not None and head.lsn > lsn and head.durable > lsn:
            return True
        offset = _next_magic(data, offset + 1)
    return False


def list_segments(directory: Path) -> list[Path]:
    """Every segment, oldest first."""
    return sorted(directory.glob("[0-9]*.seg"))


def first_lsn_of(path: Path) -> int:
    """The number of a segment's first record; raises Damaged for a name that is not a segment's."""
    try:
        return int(path.stem)
    except ValueError:
        raise Damaged(f"{path}: expected a segment's name of 20 digits") from None


def map_file(path: Path) -> memoryview:
    """A file's bytes, valid for as long as they are held."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size == 0:
            return memoryview(b"")
        return memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(fd)
