"""The append-only log between ingest and training.

Guarantees: what `sync` returned for survives a power cut. A segment never holds records of two tasks, so that a
consolidated task's bytes can be unlinked. No flipped bit goes unnoticed. A torn tail is cut off at recovery and counted;
damage anywhere else raises Damaged (`segments` says how the two are told apart).

One process writes; another reads below the durable end and drops what it has absorbed.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import Damaged
from streamcl.storage.checksum import crc32
from streamcl.storage.disk import Buffer, Disk
from streamcl.storage.records import Batch, Record, closes_task, encode
from streamcl.storage.segments import (
    RECORD_HEADER,
    RECORD_MAGIC,
    SEGMENT_HEADER,
    SEGMENT_MAGIC,
    VERSION,
    Scan,
    checksum_at,
    first_lsn_of,
    head_at,
    list_segments,
    map_file,
    padding,
    payload_at,
    record_at,
    scan_segment,
    sealed,
    sound_records,
)

SEGMENT_BYTES = 256 << 20  # a new one costs three syncs
RECORD_OVERHEAD = 512  # more than what a batch's record, headers and padding add to its frames

Array = npt.NDArray[Any]
Ranges = Sequence[tuple[int, int]]  # of LSNs, from and to below


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
    for path in list_segments(directory):
        try:
            total += path.stat().st_size
        except FileNotFoundError:  # dropped meanwhile
            continue
    return total


def drop_before(directory: Path, lsn: int, disk: Disk, kept: Ranges = ()) -> int:
    """Unlink every segment of which all records are below `lsn`; returns how many.

    The last segment goes only if its last record closes its task: the writer never appends to it again then. kept: of the
    records below `lsn`, those (from, to below) whose segments stay anyway.
    """
    paths = list_segments(directory)
    doomed = _below(paths, lsn, kept)
    if paths and first_lsn_of(paths[-1]) < lsn and not holds(paths[-1], lsn, kept) and _is_finished(paths[-1], lsn):
        doomed.append(paths[-1])
    _unlink(doomed, directory, disk)
    return len(doomed)


def _below(paths: Sequence[Path], lsn: int, kept: Ranges) -> list[Path]:
    """The segments that are followed by another and of which all records are below `lsn`, except those that are kept."""
    ends = [(path, first_lsn_of(following)) for path, following in pairwise(paths)]
    return [path for path, end in ends if end <= lsn and not holds(path, end, kept)]


def holds(path: Path, end: int, kept: Ranges) -> bool:
    """Whether a segment whose records end below `end` has one that is kept."""
    return any(first_lsn_of(path) < behind and first < end for first, behind in kept)


def only_kept(path: Path, needed: int, kept: Ranges) -> bool:
    """Whether a damaged segment has kept records and certainly none from `needed` on: its last bytes are a sound record's,
    of which the number is below."""
    end, last = 0, needed
    for offset, head, _ in sound_records(path):
        end, last = offset + head.size, head.lsn
    return holds(path, needed, kept) and last < needed and end == path.stat().st_size


def _unlink(doomed: Sequence[Path], directory: Path, disk: Disk) -> None:
    for path in doomed:
        disk.unlink(path)
    if doomed:
        disk.sync_directory(directory)


def unfinished_repair(directory: Path) -> Path:
    """Where a repair writes a new log before it takes the old one's place."""
    return directory.with_name(directory.name + ".repaired")


def _without_absorbed(directory: Path, needed: int, disk: Disk, kept: Ranges) -> list[Path]:
    """The segments that hold records from `needed` on; the others are unlinked, but for those that are kept.

    A power cut may bring back any of the segments that were being unlinked, so there may be gaps between them.
    """
    paths = list_segments(directory)
    below = _below(paths, needed, ())
    if paths and first_lsn_of(paths[-1]) < needed:
        scan = scan_segment(paths[-1], last=True)
        absorbed = scan.next_lsn < needed if scan.damage is None else only_kept(paths[-1], needed, kept)
        if absorbed:
            below = paths
    ends = [*map(first_lsn_of, paths[1:]), needed]
    _unlink([path for path, end in zip(below, ends, strict=False) if not holds(path, end, kept)], directory, disk)
    return paths[len(below) :]


def _is_finished(path: Path, lsn: int) -> bool:
    """Whether a segment ends below `lsn`, with a task's last record."""
    data, offset, last = map_file(path), SEGMENT_HEADER.size, None
    while (head := head_at(data, offset)) is not None:
        last, offset = (head, offset), offset + head.size
    if last is None or offset != len(data) or last[0].lsn >= lsn:
        return False
    return closes_task(record_at(path, data, last[1], last[0]))


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
        kept: Ranges = (),
    ) -> LogWriter:
        """Drop segments that were absorbed, check every other, cut a torn tail, and continue where the log ends.

        next_lsn: everything below is in a checkpoint, so was durable; an empty log goes on there. needed: the oldest
        record that is still to be read, `next_lsn` unless a task is open. kept: older ones whose segments stay, unread.
        Raises Damaged, UnknownFormat.
        """
        needed = next_lsn if needed is None else needed
        while True:
            with contextlib.suppress(FileNotFoundError):  # a running trainer dropped a segment after it was listed
                if unfinished_repair(directory).exists():
                    raise Damaged(f"{unfinished_repair(directory)}: a repair was not finished: run `streamcl repair` again")
                disk.make_directory(directory)
                disk.sync_directory(directory.parent)  # even if it existed: its maker may have died before this
                paths = _without_absorbed(directory, needed, disk, kept)
                return cls._recover(directory, disk, next_lsn, needed, segment_bytes, paths)

    @classmethod
    def _recover(
        cls, directory: Path, disk: Disk, next_lsn: int, needed: int, segment_bytes: int, paths: list[Path]
    ) -> LogWriter:
        first = end = first_lsn_of(paths[0]) if paths else next_lsn
        if first > needed:
            raise Damaged(
                f"{directory}: expected records from LSN {needed} on, found them from {first} on: a segment is missing; "
                "restore the log from a backup"
            )
        scan = None
        for path in paths:
            if first_lsn_of(path) != end:
                raise Damaged(
                    f"{path}: expected a segment that begins with LSN {end}; one is missing or misnamed: restore the log "
                    "from a backup"
                )
            scan = scan_segment(path, last=path == paths[-1])
            if scan.damage is not None:
                raise scan.damage
            end = scan.next_lsn
        if end < next_lsn:
            raise Damaged(
                f"{paths[-1]}: the log ends before LSN {end}, but the checkpoint holds all below {next_lsn}: what was "
                "synced is missing or damaged; restore the log from a backup, or see what `streamcl repair` would lose"
            )
        writer = cls(directory, disk, segment_bytes, first, end)
        if scan is not None:
            writer._resume(paths[-1], scan)
        return writer

    def _resume(self, path: Path, scan: Scan) -> None:
        """Cut the torn tail off the last segment, and append there unless its task is closed."""
        size = path.stat().st_size
        if scan.end < size:
            self.torn = TornTail(path, scan.end, size - scan.end)
        if scan.end < SEGMENT_HEADER.size:
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
        """Append one record; returns its LSN. It is durable only after `sync`.

        Raises OSError if it cannot be written (a full disk); nothing is then stored, and the log is as before.
        """
        body = encode(record)
        length = sum(len(payload) for payload in payloads)
        behind = [body, padding(len(body)), *payloads, padding(length)]
        checksum = 0
        for buffer in behind:
            checksum = crc32(buffer, checksum)
        head = RECORD_HEADER.pack(RECORD_MAGIC, len(body), length, self.next_lsn, self.durable, checksum, 0)
        self._write([sealed(head), *behind])
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
            self._end = self.disk.write(
                fd, [sealed(SEGMENT_HEADER.pack(SEGMENT_MAGIC, VERSION, 0, self.next_lsn, 0, 0))], 0
            )
        except OSError:
            self.disk.close(fd)
            self.disk.unlink(path)
            raise
        self._fd = fd
        self.disk.sync_data(fd)
        self.disk.sync_directory(self.directory)
        self.end_bytes += self._end

    def rotate(self) -> None:
        """Let the next record begin a new segment; after a record that closes its task this happens by itself.

        One without a record, as a crash may leave it, already is a new one, and the next would have its name.
        """
        self._finished = self._fd is not None and self._end > SEGMENT_HEADER.size

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


# -- reading -----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Segment:
    """A mapped segment and the places of its records; mapped again when the file has grown.

    offsets: of every record found whole so far, and last, where the next one would begin.
    """

    path: Path
    first_lsn: int
    data: memoryview
    offsets: list[int] = field(default_factory=lambda: [SEGMENT_HEADER.size])

    def locate(self, lsn: int) -> int | None:
        """Where a record begins; None unless the mapped part holds the whole of it."""
        while len(self.offsets) <= lsn - self.first_lsn + 1:
            head = head_at(self.data, self.offsets[-1])
            if head is None or self.offsets[-1] + head.size > len(self.data):
                return None
            self.offsets.append(self.offsets[-1] + head.size)
        return self.offsets[lsn - self.first_lsn]


class LogReader:
    """Reads records below the durable end, in order or by number; opens files when first asked.

    The arrays it gives are views of the file: valid for as long as they are held, even after the file was dropped.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._open: list[_Segment] = []

    def read(self, first: int, end: int, verify: bool = True) -> Iterator[Entry]:
        """Records first..end-1, all of them durable. verify: check the checksums again.

        Raises Damaged if a record is not what was written, or is missing.
        """
        for lsn in range(first, end):
            yield self._read(lsn, verify)

    def problem(self, first: int, end: int) -> str | None:
        """Why not all of the records first..end-1 can be read, or None."""
        try:
            for _ in self.read(first, end):
                pass
        except (Damaged, OSError) as error:
            return str(error)
        return None

    def forget(self, lsn: int) -> None:
        """Let go of segments that begin before `lsn`, once they were dropped; those kept are mapped again if needed."""
        self._open = [segment for segment in self._open if segment.first_lsn >= lsn]

    def _read(self, lsn: int, verify: bool) -> Entry:
        segment, offset = self._find(lsn)
        head = head_at(segment.data, offset)
        if head is None or head.lsn != lsn or (verify and checksum_at(segment.data, offset, head) != head.checksum):
            raise Damaged(f"{segment.path}: offset {offset}: record {lsn} is damaged; restore the file from a backup")
        record = record_at(segment.path, segment.data, offset, head)
        return Entry(lsn, record, _arrays(record, payload_at(segment.data, offset, head)), head.size)

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
        paths = [path for path in list_segments(self.directory) if first_lsn_of(path) <= lsn]
        if not paths:
            return
        first = first_lsn_of(paths[-1])
        for segment in self._open:
            if segment.first_lsn == first:
                segment.data = map_file(segment.path)
                return
        self._open.append(_Segment(paths[-1], first, map_file(paths[-1])))
        self._open.sort(key=lambda segment: segment.first_lsn)


def _arrays(record: Record, payload: memoryview) -> dict[str, Array]:
    arrays, offset = {}, 0
    for spec in record.arrays if isinstance(record, Batch) else ():
        dtype = np.dtype(spec.dtype)
        count = math.prod(spec.shape)
        arrays[spec.name] = np.frombuffer(payload, dtype, count, offset).reshape(spec.shape)
        offset += count * dtype.itemsize
    return arrays
