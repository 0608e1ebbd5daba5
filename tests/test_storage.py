"""The log, the checkpoint and the ledger on real files, some of them damaged on purpose."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as numpy_strategies
from msgspec.structs import replace
from snapshots import META

from streamcl import entries, snapshot
from streamcl.entries import Consolidated, Forgotten
from streamcl.errors import Damaged, StateInUse, UnknownFormat
from streamcl.storage import checkpoint, container, ledger, log, published, quarantine, segments, verified
from streamcl.storage.checksum import crc32
from streamcl.storage.disk import Buffer, Disk, SyncFailed
from streamcl.storage.lock import StateLock
from streamcl.storage.records import ArraySpec, Batch, Boundary, Record, decode, encode
from streamcl.storage.state import StateDirectory

DISK = Disk()


def batch(seq: int, x: np.ndarray | None = None, task: str = "a", **fields: Any) -> tuple[Batch, list[bytes]]:
    x = np.arange(6, dtype="<f4").reshape(2, 3) + seq if x is None else x
    y = np.arange(len(x), dtype="<i8")
    specs = (ArraySpec("x", x.dtype.str, x.shape), ArraySpec("y", y.dtype.str, y.shape))
    record = Batch(producer="p", epoch=0, seq=seq, task=task, samples=len(x), arrays=specs, **fields)
    return record, [x.tobytes(), y.tobytes()]


def boundary(seq: int, task: str = "a") -> Boundary:
    return Boundary(producer="p", epoch=0, seq=seq, task=task)


def written(directory: Path, count: int, **options: Any) -> log.LogWriter:
    writer = log.LogWriter.recover(directory, DISK, **options)
    for seq in range(writer.next_lsn + 1, writer.next_lsn + count + 1):
        writer.append(*batch(seq))
    writer.sync()
    return writer


def contents(directory: Path, next_lsn: int = 0) -> list[tuple[int, Record]]:
    writer = log.LogWriter.recover(directory, DISK, next_lsn)
    writer.close()
    entries = log.LogReader(directory).read(writer.first_lsn, writer.next_lsn)
    return [(entry.lsn, entry.record) for entry in entries]


# -- the log -----------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(
    shapes=st.lists(st.tuples(st.integers(1, 5), st.integers(1, 7)), min_size=1, max_size=12),
    segment_bytes=st.sampled_from([64, 500, 1 << 20]),
)
def test_records_come_back_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, shapes: list[tuple[int, int]], segment_bytes: int
) -> None:
    directory = tmp_path_factory.mktemp("log")
    writer = log.LogWriter.recover(directory, DISK, segment_bytes=segment_bytes)
    sent = [batch(n, np.random.default_rng(n).normal(size=shape)) for n, shape in enumerate(shapes, start=1)]
    for record, payloads in sent:
        writer.append(record, payloads)
    assert writer.sync() == len(sent)
    entries = list(log.LogReader(directory).read(0, len(sent)))
    for number, ((record, (x, y)), entry) in enumerate(zip(sent, entries, strict=True)):
        assert (entry.lsn, entry.record) == (number, record)
        assert (entry.arrays["x"].tobytes(), entry.arrays["y"].tobytes()) == (x, y)
    assert sum(entry.nbytes for entry in entries) + 32 * len(list(directory.iterdir())) == log.spool_bytes(directory)


def test_a_reader_follows_a_log_that_grows(tmp_path: Path) -> None:
    writer = log.LogWriter.recover(tmp_path, DISK, segment_bytes=300)
    reader = log.LogReader(tmp_path)
    for number in range(20):
        writer.append(*batch(number + 1))
        writer.sync()
        (entry,) = reader.read(number, number + 1)
        assert entry.record.seq == number + 1
    assert [entry.lsn for entry in reader.read(3, 9)] == list(range(3, 9))


def test_recovery_goes_on_where_the_log_ends(tmp_path: Path) -> None:
    written(tmp_path, 3).close()
    written(tmp_path, 2).close()
    assert [lsn for lsn, _ in contents(tmp_path)] == [0, 1, 2, 3, 4]


def test_the_log_truncated_at_any_byte_of_its_last_two_records_loses_only_what_is_cut(tmp_path: Path) -> None:
    written(tmp_path / "whole", 4).close()
    (segment,) = (tmp_path / "whole").iterdir()
    data = segment.read_bytes()
    sizes = [entry.nbytes for entry in log.LogReader(tmp_path / "whole").read(0, 4)]
    for cut in range(len(data) - sum(sizes[2:]), len(data)):
        directory = tmp_path / str(cut)
        directory.mkdir()
        (directory / segment.name).write_bytes(data[:cut])
        writer = log.LogWriter.recover(directory, DISK)
        writer.close()
        assert writer.next_lsn == (2 if cut < len(data) - sizes[3] else 3)
        left = cut - (len(data) - sum(sizes[2:]) + (0 if writer.next_lsn == 2 else sizes[2]))
        assert (writer.torn.nbytes if writer.torn else 0) == left
        assert (directory / segment.name).stat().st_size == cut - left
        assert len(contents(directory)) == writer.next_lsn


class Recorder(Disk):
    """Notes what it is asked to do, in order."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.directories: list[Path] = []

    def create(self, path: Path) -> int:
        self.calls.append("create")
        return super().create(path)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        self.calls.append("write")
        return super().write(fd, buffers, offset)

    def sync_data(self, fd: int) -> None:
        self.calls.append("sync")
        super().sync_data(fd)

    def sync_directory(self, path: Path) -> None:
        self.calls.append("sync directory")
        self.directories.append(path)
        super().sync_directory(path)

    def replace(self, source: Path, target: Path) -> None:
        self.calls.append("rename")
        super().replace(source, target)


def written_one_by_one(directory: Path, count: int) -> Path:
    """A log whose records were synced each for itself; its only segment."""
    for _ in range(count):
        written(directory, 1).close()
    (segment,) = directory.iterdir()
    return segment


def test_every_flipped_byte_of_a_synced_record_is_damage(tmp_path: Path) -> None:
    segment = written_one_by_one(tmp_path, 4)
    data = segment.read_bytes()
    sizes = [entry.nbytes for entry in log.LogReader(tmp_path).read(0, 4)]
    for offset in range(32 + sizes[0] + sizes[1]):  # the segment's header, and two records with others behind them
        segment.write_bytes(flipped(data, offset))
        with pytest.raises(Damaged, match=segment.name):
            log.LogWriter.recover(tmp_path, DISK)
        if offset >= 32:
            with pytest.raises(Damaged):
                list(log.LogReader(tmp_path).read(0, 2))


def flipped(data: bytes, offset: int) -> bytes:
    return data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :]


def test_an_unsynced_record_torn_before_a_whole_one_is_no_damage(tmp_path: Path) -> None:
    """The disk writes the records of one sync in any order, so a power cut may leave the later ones alone."""
    segment = written_one_by_one(tmp_path, 2)
    end = segment.stat().st_size
    writer = written(tmp_path, 2)  # both in one sync
    writer.close()
    segment.write_bytes(flipped(segment.read_bytes(), end + 60))
    writer = log.LogWriter.recover(tmp_path, DISK)
    assert writer.next_lsn == 2
    assert writer.torn is not None
    assert writer.torn.offset == end


def test_a_record_that_the_checkpoint_holds_is_never_a_torn_tail(tmp_path: Path) -> None:
    segment = written_one_by_one(tmp_path, 2)
    segment.write_bytes(segment.read_bytes()[:-1])
    with pytest.raises(Damaged, match="checkpoint holds all below 2"):
        log.LogWriter.recover(tmp_path, DISK, next_lsn=2, needed=0)


def test_absorbed_segments_that_came_back_are_dropped_whatever_else_is_missing(tmp_path: Path) -> None:
    """A power cut while segments are unlinked may bring back any of them."""
    writer = log.LogWriter.recover(tmp_path, DISK, segment_bytes=1)
    for seq in range(1, 6):
        writer.append(*batch(seq))
    writer.sync()
    writer.close()
    first, second, third, *_ = sorted(tmp_path.glob("*.seg"))
    second.unlink()
    writer = log.LogWriter.recover(tmp_path, DISK, next_lsn=5, needed=3)
    assert (writer.first_lsn, writer.next_lsn) == (3, 5)
    assert not first.exists()
    assert not third.exists()
    writer.close()
    assert log.LogWriter.recover(tmp_path, DISK, next_lsn=9).next_lsn == 9
    assert not list(tmp_path.glob("*.seg"))


def test_records_that_are_still_needed_are_missed(tmp_path: Path) -> None:
    with pytest.raises(Damaged, match="expected records from LSN 2 on"):
        log.LogWriter.recover(tmp_path, DISK, next_lsn=5, needed=2)


def test_a_segment_is_synced_before_the_next_one_begins(tmp_path: Path) -> None:
    disk = Recorder()
    writer = log.LogWriter.recover(tmp_path, disk)
    disk.calls.clear()
    begin = ["create", "write", "sync", "sync directory"]
    writer.append(*batch(1))
    writer.append(boundary(2))
    assert disk.calls == [*begin, "write", "write"]
    writer.append(*batch(3, task="b"))
    assert disk.calls[6:] == ["sync", *begin, "write"]
    assert writer.durable == 0
    assert writer.sync() == 3
    assert disk.calls[-1] == "sync"


def test_a_flipped_byte_of_the_last_record_costs_that_record_and_is_reported(tmp_path: Path) -> None:
    written(tmp_path, 3).close()
    (segment,) = tmp_path.iterdir()
    data = bytearray(segment.read_bytes())
    data[-9] ^= 1
    segment.write_bytes(data)
    writer = log.LogWriter.recover(tmp_path, DISK)
    assert writer.next_lsn == 2
    assert writer.torn is not None
    assert writer.torn.path == segment


def test_zeros_behind_the_end_are_a_torn_tail(tmp_path: Path) -> None:
    written(tmp_path, 2).close()
    (segment,) = tmp_path.iterdir()
    with segment.open("ab") as file:
        file.write(bytes(5000))
    assert [lsn for lsn, _ in contents(tmp_path)] == [0, 1]


def test_a_last_segment_without_a_whole_header_is_removed(tmp_path: Path) -> None:
    writer = written(tmp_path, 2)
    writer.rotate()
    writer.sync()
    (tmp_path / f"{2:020d}.seg").write_bytes(b"SCLLOG")
    writer = log.LogWriter.recover(tmp_path, DISK)
    assert writer.next_lsn == 2
    writer.append(*batch(3))
    writer.sync()
    assert len(contents(tmp_path)) == 3


def test_a_missing_segment_is_damage(tmp_path: Path) -> None:
    written(tmp_path, 9, segment_bytes=300).close()
    sorted(tmp_path.iterdir())[1].unlink()
    with pytest.raises(Damaged, match="missing"):
        log.LogWriter.recover(tmp_path, DISK)


def test_damage_in_an_older_segment_stops_the_start(tmp_path: Path) -> None:
    written(tmp_path, 9, segment_bytes=300).close()
    older = sorted(tmp_path.iterdir())[0]
    older.write_bytes(older.read_bytes()[:-1])
    with pytest.raises(Damaged, match="offset"):
        log.LogWriter.recover(tmp_path, DISK)


def test_a_newer_format_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log, "VERSION", 2)
    written(tmp_path, 1).close()
    monkeypatch.undo()
    with pytest.raises(UnknownFormat, match="format 2"):
        log.LogWriter.recover(tmp_path, DISK)


def test_an_unknown_record_is_never_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = encode(boundary(1)).replace(b"boundary", b"bouncing")
    with pytest.raises(UnknownFormat):
        decode(newer)
    writer = log.LogWriter.recover(tmp_path, DISK)
    monkeypatch.setattr(log, "encode", lambda record: newer)
    writer.append(boundary(1))
    writer.sync()
    with pytest.raises(UnknownFormat, match=r"seg: offset 32: .*upgrade"):
        log.LogWriter.recover(tmp_path, DISK)


class FullDisk(Disk):
    """Writes a few bytes of a record, then finds no room."""

    room = 1 << 30

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        data = b"".join(bytes(buffer) for buffer in buffers)
        if len(data) > self.room:
            super().write(fd, [data[: self.room]], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(fd, [data], offset)


def test_a_full_disk_begins_no_segment(tmp_path: Path) -> None:
    disk = FullDisk()
    writer = log.LogWriter.recover(tmp_path, disk)
    writer.append(boundary(1))
    disk.room = 20
    with pytest.raises(OSError, match="No space"):
        writer.append(*batch(2, task="b"))
    assert len(list(tmp_path.iterdir())) == 1
    disk.room = 1 << 30
    assert writer.append(*batch(2, task="b")) == 1
    assert writer.sync() == 2
    assert [record.seq for _, record in contents(tmp_path)] == [1, 2]


@pytest.mark.parametrize("room", [0, 10, 100])
def test_a_full_disk_leaves_the_log_as_it_was(tmp_path: Path, room: int) -> None:
    disk = FullDisk()
    writer = log.LogWriter.recover(tmp_path, disk)
    writer.append(*batch(1))
    disk.room = room
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(OSError, match="No space"):
        writer.append(*batch(2))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    disk.room = 1 << 30
    assert writer.append(*batch(2)) == 1
    writer.sync()
    assert [record.seq for _, record in contents(tmp_path)] == [1, 2]


def test_a_failed_sync_is_said_and_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path, 1)
    calls: list[int] = []

    def fail(fd: int) -> None:
        calls.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    writer.append(*batch(2))
    with pytest.raises(SyncFailed):
        writer.sync()
    assert len(calls) == 1
    assert writer.durable == 1


def test_dropping_unlinks_whole_tasks_and_numbers_go_on(tmp_path: Path) -> None:
    writer = written(tmp_path, 3)
    writer.append(boundary(4))
    writer.rotate()
    writer.append(*batch(5, task="b"))
    writer.sync()
    assert log.drop_before(tmp_path, 4, DISK) == 1
    assert [record.task for _, record in contents(tmp_path, 4)] == ["b"]
    writer.append(boundary(6, "b"))
    writer.rotate()
    writer.sync()
    assert log.drop_before(tmp_path, 6, DISK) == 1
    assert list(tmp_path.iterdir()) == []
    writer = log.LogWriter.recover(tmp_path, DISK, next_lsn=6)
    assert writer.append(*batch(7, task="c")) == 6


def test_dropping_spares_every_segment_with_a_record_that_is_needed(tmp_path: Path) -> None:
    writer = written(tmp_path, 5, segment_bytes=300)
    before = sorted(tmp_path.iterdir())
    last = int(before[-1].stem)
    assert log.drop_before(tmp_path, last - 1, DISK) == len(before) - 2
    assert log.drop_before(tmp_path, 5, DISK) == 1  # the last one's task is still open: the writer goes on in it
    writer.append(boundary(6))
    writer.sync()
    assert log.drop_before(tmp_path, 5, DISK) == 0
    assert log.drop_before(tmp_path, 6, DISK) == 1


def test_no_closed_task_is_held_open_after_a_sync(tmp_path: Path) -> None:
    """An open descriptor would keep the bytes of an unlinked segment on the disk."""
    writer = written(tmp_path, 1)
    writer.append(boundary(2))
    writer.sync()
    held = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    assert not [path for path in held if path.startswith(str(tmp_path))]


def test_a_segment_dropped_while_recovery_looks_is_not_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = written(tmp_path, 2)
    writer.append(boundary(3))
    writer.append(*batch(4, task="b"))
    writer.sync()
    real = segments.map_file

    def drop_then_map(path: Path) -> memoryview:
        monkeypatch.setattr(segments, "map_file", real)
        log.drop_before(tmp_path, 3, DISK)
        return real(path)

    monkeypatch.setattr(segments, "map_file", drop_then_map)
    writer = log.LogWriter.recover(tmp_path, DISK, next_lsn=3)
    assert (writer.first_lsn, writer.next_lsn) == (3, 4)


def test_a_directory_is_on_disk_before_it_is_used(tmp_path: Path) -> None:
    disk = Recorder()
    log.LogWriter.recover(tmp_path / "state" / "log", disk)
    assert [tmp_path, tmp_path / "state"] == disk.directories[:2]
    disk.directories.clear()
    log.LogWriter.recover(tmp_path / "state" / "log", disk)
    assert tmp_path / "state" in disk.directories  # whoever made the directory may have died before syncing its name


def test_a_segment_that_a_crash_left_empty_is_gone_on_with_though_a_new_one_is_asked_for(tmp_path: Path) -> None:
    written(tmp_path, 2).close()
    first = (tmp_path / f"{0:020d}.seg").read_bytes()
    empty = log.SEGMENT_HEADER.pack(log.SEGMENT_MAGIC, log.VERSION, 0, 2, 0, 0)
    (tmp_path / f"{2:020d}.seg").write_bytes(log.sealed(empty))
    writer = log.LogWriter.recover(tmp_path, DISK)
    writer.rotate()
    writer.append(*batch(3))
    writer.sync()
    writer.close()
    assert [lsn for lsn, _ in contents(tmp_path)] == [0, 1, 2]
    assert (tmp_path / f"{0:020d}.seg").read_bytes() == first


def test_after_a_boundary_recovery_begins_a_new_segment(tmp_path: Path) -> None:
    writer = written(tmp_path, 1)
    writer.append(boundary(2))
    writer.sync()
    writer.close()
    writer = log.LogWriter.recover(tmp_path, DISK)
    writer.append(*batch(3, task="b"))
    writer.sync()
    assert [path.name for path in sorted(tmp_path.iterdir())] == [f"{0:020d}.seg", f"{2:020d}.seg"]


# -- the checkpoint ----------------------------------------------------------------------------------------------------

DTYPES = st.sampled_from(["<f4", "<f8", "<f2", "<i8", "<i4", "|u1", "|b1"])
SHAPES = numpy_strategies.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
OTHER = replace(META, next_lsn=9)
ARRAYS = {
    "theta": np.arange(5, dtype="<f4"),
    "precision": np.ones((2, 3)),
    "step": np.array(3, "<i8"),
    "empty": np.zeros((0, 2), "|u1"),
}


def test_a_checkpoint_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    assert checkpoint.load(tmp_path) is None
    assert checkpoint.read_meta(tmp_path) is None
    checkpoint.save(tmp_path, OTHER, {}, DISK)
    checkpoint.save(tmp_path, META, ARRAYS, DISK)
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert saved.meta == META == checkpoint.read_meta(tmp_path)
    assert list(saved.tensors) == list(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(saved.tensors[name], array)
        assert (saved.tensors[name].dtype, saved.tensors[name].shape) == (array.dtype, array.shape)


def test_its_arrays_are_a_safetensors_file(tmp_path: Path) -> None:
    body = b"".join(bytes(buffer) for buffer in container._safetensors(ARRAYS))
    for name, array in safetensors.numpy.load(body).items():
        np.testing.assert_array_equal(array, ARRAYS[name])


def test_every_flipped_byte_of_a_checkpoint_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, META, ARRAYS, DISK)
    path = tmp_path / checkpoint.NAME
    data = memoryview(path.read_bytes())
    for offset in range(len(data)):
        with pytest.raises((Damaged, UnknownFormat)):
            container.unpack(memoryview(flipped(bytes(data), offset)), path)


@settings(deadline=None, max_examples=40)
@given(
    arrays=st.dictionaries(st.text(max_size=8), numpy_strategies.arrays(DTYPES, SHAPES), max_size=4),
    meta=st.dictionaries(st.text(max_size=8), st.none() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False)),
)
def test_any_metadata_and_arrays_come_back(arrays: dict[str, np.ndarray], meta: dict[str, Any]) -> None:
    data = b"".join(bytes(buffer) for buffer in container.pack(meta, arrays, digests=True))
    got_meta, got = container.unpack(memoryview(data), Path("file"))
    assert got_meta == meta
    assert {name: (a.dtype.str, a.shape, a.tobytes()) for name, a in got.items()} == {
        name: (a.dtype.str, a.shape, a.tobytes()) for name, a in arrays.items()
    }


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text() | st.binary(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.integers(-(2**63), 2**63) | st.binary(), inner),
    max_leaves=20,
)


@settings(deadline=None, max_examples=100)
@given(meta=st.dictionaries(st.text(max_size=8), PLAIN, max_size=5))
def test_metadata_is_written_and_read_as_the_msgpack_package_does_that_older_versions_used(meta: dict[str, Any]) -> None:
    made = container.contents(meta, ARRAYS)
    assert made.meta[0] == msgpack.packb(meta)
    data = b"".join(bytes(buffer) for buffer in (made.first_page(True), *made.buffers))
    assert container.unpack_meta(memoryview(data), Path("file")) == msgpack.unpackb(made.meta[0], strict_map_key=False)


@pytest.mark.parametrize("raw", [b"\xc1", b"\xa2\xff\xfe", b"\x93\x01", b"\x81\x90", b"\x91" * 5000, b"\x01", b""])
def test_metadata_that_is_none_is_damage(raw: bytes) -> None:
    made = container.Contents([raw, bytes(-len(raw) % container.PAGE)], len(raw), [], 1)
    data = b"".join(bytes(buffer) for buffer in (made.first_page(True), *made.buffers))
    with pytest.raises(Damaged, match="not msgpack"):
        container.unpack_meta(memoryview(data), Path("file"))


def test_a_checkpoint_is_synced_before_it_is_renamed_and_its_name_after(tmp_path: Path) -> None:
    disk = Recorder()
    checkpoint.save(tmp_path, META, ARRAYS, disk)
    assert disk.calls == ["create", "write", "sync", "rename", "sync directory"]


def test_a_large_file_is_hashed_beside_the_writing_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "BESIDE_BYTES", 0)
    disk = Recorder()
    checkpoint.save(tmp_path, META, ARRAYS, disk)
    assert disk.calls == ["create", "write", "write", "sync", "rename", "sync directory"]
    saved = checkpoint.load(tmp_path)
    assert saved is not None
    assert saved.meta == META
    assert all((saved.tensors[name] == array).all() for name, array in ARRAYS.items())
    with pytest.raises(Damaged):
        checkpoint.save(tmp_path, OTHER, ARRAYS, WrongDisk())
    assert checkpoint.read_meta(tmp_path) == META


def test_what_an_unfinished_save_left_is_removed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, META, ARRAYS, DISK)
    (tmp_path / "checkpoint.tmp").write_bytes(b"half")
    disk = Recorder()
    assert checkpoint.load(tmp_path, disk) is not None
    assert disk.directories == [tmp_path]  # the rename may not have been synced
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]


def test_a_full_disk_leaves_the_checkpoint_before_and_no_half_of_another(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, META, ARRAYS, DISK)
    disk = FullDisk()
    disk.room = 4000
    with pytest.raises(OSError, match="No space"):
        checkpoint.save(tmp_path, OTHER, ARRAYS, disk)
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.NAME]
    assert checkpoint.read_meta(tmp_path) == META


def test_a_truncated_checkpoint_is_noticed(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, META, ARRAYS, DISK)
    path = tmp_path / checkpoint.NAME
    data = path.read_bytes()
    for length in (0, 10, 4095, 4096, 8192, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(Damaged):
            checkpoint.load(tmp_path)


class WrongDisk(Disk):
    """Writes one byte other than it was given."""

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        data = bytearray(b"".join(bytes(buffer) for buffer in buffers))
        data[-1] ^= 1
        return super().write(fd, [data], offset)


def test_a_checkpoint_that_reads_back_wrong_leaves_the_one_before(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, META, ARRAYS, DISK)
    with pytest.raises(Damaged):
        checkpoint.save(tmp_path, OTHER, ARRAYS, WrongDisk())
    assert checkpoint.read_meta(tmp_path) == META


def test_its_size_does_not_follow_the_digits_of_its_numbers(tmp_path: Path) -> None:
    sizes = set()
    for number in (1, 10**3, 10**6, 10**12):
        checkpoint.save(tmp_path, replace(META, next_lsn=number, samples=number), ARRAYS, DISK)
        sizes.add((tmp_path / checkpoint.NAME).stat().st_size)
    assert len(sizes) == 1


# -- the ledger, what is published, the lock ---------------------------------------------------------------------------


def test_ledger_entries_behind_the_checkpoint_are_cut_off(tmp_path: Path) -> None:
    book = ledger.Ledger.recover(tmp_path, 0, DISK)
    for number in range(3):
        book.append(Consolidated(task=f"t{number}", lsn=number, loss=0.5))
    book.close()
    disk = Recorder()
    book = ledger.Ledger.recover(tmp_path, 2, disk)
    assert len(book) == 2
    with pytest.raises(Damaged, match="entry 2"):
        ledger.read(tmp_path, 3)
    assert disk.calls == ["sync directory", "sync"]
    book.append(Forgotten(task="again", lsn=3))
    assert disk.calls[2:] == ["write", "sync"]
    assert [entry.task for entry in ledger.read(tmp_path, 3)] == ["t0", "t1", "again"]
    with pytest.raises(Damaged, match="entry 3"):
        ledger.read(tmp_path, 4)


def test_a_flipped_byte_of_the_ledger_is_noticed(tmp_path: Path) -> None:
    book = ledger.Ledger.recover(tmp_path, 0, DISK)
    book.append(Consolidated(task="t", lsn=0))
    path = tmp_path / ledger.NAME
    data = path.read_bytes()
    for offset in range(len(data)):
        path.write_bytes(flipped(data, offset))
        with pytest.raises(Damaged):
            ledger.read(tmp_path, 1)


def test_an_entry_of_another_version_is_an_error() -> None:
    for wrong in ({"kind": "merged", "task": "t"}, {"kind": "boundary", "task": 1}, {"task": "t"}):
        with pytest.raises(UnknownFormat, match="another version"):
            entries.decode(msgpack.packb({"lsn": 1, **wrong}))
    with pytest.raises(UnknownFormat, match="another version"):
        snapshot.from_plain({"next_lsn": "many"})


def test_what_is_published_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "live" / "parameters"
    assert published.read(path) is None
    assert published.stamp(path) is None
    stamps = set()
    for version in range(3):
        published.publish(path, {"version": version}, {"theta": np.full(4, float(version))})
        found = published.read(path)
        assert found is not None
        assert found[0]["version"] == found[1]["theta"][0]
        stamps.add(published.stamp(path))
    assert len(stamps) == 3


def test_of_all_that_was_published_the_newest_is_left(tmp_path: Path) -> None:
    path = tmp_path / "parameters"
    for version in range(3):
        published.publish(path, {"version": version}, {})
    assert len(list(tmp_path.iterdir())) == 2  # the link and what it leads to
    published.clear(path)
    assert list(tmp_path.iterdir()) == []


def test_the_posterior_is_the_checkpoints_once_there_is_one(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    assert published.posterior(state) is None
    published.publish(state.posterior, {"posterior": 0}, {"precision": np.ones(2)})
    assert published.posterior(state)[0] == 0
    arrays = {"theta": np.zeros(2), "posterior.precision": np.full(2, 7.0)}
    checkpoint.save(tmp_path, META, arrays, DISK)
    number, posterior = published.posterior(state)
    assert number == 3
    assert posterior.keys() == {"precision"}
    assert (posterior["precision"] == 7).all()


def test_a_published_file_cut_short_is_as_good_as_none(tmp_path: Path) -> None:
    path = tmp_path / "parameters"
    published.publish(path, {"version": 1}, {"theta": np.ones(4)})
    data = path.read_bytes()
    for left in (b"", data[:100], data[:4096], bytes(len(data)), data[:8192] + bytes(len(data) - 8192)):
        path.write_bytes(left)
        assert published.read(path) is None


def test_a_state_directory_has_one_daemon(tmp_path: Path) -> None:
    lock = StateLock.acquire(tmp_path / "state")
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700
    with pytest.raises(StateInUse, match=str(os.getpid())):
        StateLock.acquire(tmp_path / "state", wait_seconds=5)
    lock.release()
    StateLock.acquire(tmp_path / "state").release()


# -- the quarantine ----------------------------------------------------------------------------------------------------

FAILED = {"lsn": 3, "stage": "batch", "task": "a", "producer": "p", "seq": 4, "reason": "odd", "time": 1.5, "rows": 6}


def test_failures_come_back_as_they_were_kept_also_those_of_before_rows_were(tmp_path: Path) -> None:
    older = {name: value for name, value in FAILED.items() if name != "rows"}
    verified.save(tmp_path / quarantine.NAME, {"failures": [older, FAILED]}, {}, DISK)
    known = quarantine.load(tmp_path)
    assert [failure.plain() for failure in known] == [{**FAILED, "rows": 0}, FAILED]
    assert quarantine.failures(known) == {3: {"batch": 2}}
    quarantine.save(tmp_path, known[1:], DISK)
    assert verified.load(tmp_path / quarantine.NAME).meta["failures"] == [FAILED]


@pytest.mark.parametrize("wrong", [{**FAILED, "lsn": "3"}, {**FAILED, "more": 1}, {"lsn": 3}])
def test_a_failure_that_is_none_is_damage(tmp_path: Path, wrong: dict[str, Any]) -> None:
    verified.save(tmp_path / quarantine.NAME, {"failures": [wrong]}, {}, DISK)
    with pytest.raises(Damaged, match="expected a list of failures"):
        quarantine.load(tmp_path)


def test_checksums_are_those_of_zlib() -> None:
    """Whatever computes them: a log must be read where another did."""
    data = np.random.default_rng(0).integers(0, 256, 100_003, dtype=np.uint8)
    for part in (data[:0], data[:1], data[3:4096], data):
        for buffer in (part.tobytes(), memoryview(part)):
            assert crc32(buffer) == zlib.crc32(buffer)
            assert crc32(buffer, 0xFFFFFFFF) == zlib.crc32(buffer, 0xFFFFFFFF)
