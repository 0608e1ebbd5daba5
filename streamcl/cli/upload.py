"""A file on its way to a task: the producer's name that it is sent under, and how far an earlier attempt got.

Guarantees: no row is stored twice and none is skipped silently. A file is recognised by its content. One that was changed
continues after the batches that an earlier version of it has stored, if these are the same to the byte, as digests in this
user's cache tell. If that cannot be told, nothing is sent, and the message says what to do.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from streamcl.cli.common import admin, endpoint, producer
from streamcl.cli.files import Agreement, fit, placed
from streamcl.errors import DataError, StreamclError

if TYPE_CHECKING:
    from streamcl.cli.bars import Bars
    from streamcl.cli.progress import Silent
    from streamcl.client import Producer
    from streamcl.datafiles import Array, DataFile

READ_BYTES = 1 << 20
NOTED = struct.Struct("<8sI")
MOST_JOURNALS = 200
NAME = re.compile(r"send-([0-9a-f]{8})-([0-9a-f]{8})-([0-9a-f]{16})(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Identity:
    """What a file's producer name is made of: task, first batch and how it is cut, content, and the revisit, or what
    undid or dropped the task before."""

    task: str
    beginning: str
    content: str
    revisit: str = ""

    @classmethod
    def of(cls, options: argparse.Namespace, data: DataFile) -> Identity:
        """Of a file as these options send it."""
        how = (data.choice.features, data.choice.label, data.block_rows, options.skip_rows)
        x, y = next(data.blocks(options.skip_rows))
        beginning = hashlib.sha256(repr(how).encode() + _digest(b"", x, y))
        content = hashlib.sha256()
        with data.path.open("rb") as file:
            while block := file.read(READ_BYTES):
                content.update(block)
        return cls(_short(options.task.encode(), 8), beginning.hexdigest()[:8], content.hexdigest()[:16])

    @property
    def name(self) -> str:
        """The producer's name."""
        revisit = f"-{self.revisit}" if self.revisit else ""
        return f"send-{self.task}-{self.beginning}-{self.content}{revisit}"

    def is_other_version(self, name: str) -> bool:
        """Whether a producer's name belongs to another version of this file, or to this file cut or read differently."""
        found = NAME.fullmatch(name)
        if found is None or name == self.name or (found[1], found[4] or "") != (self.task, self.revisit):
            return False
        return found[2] == self.beginning or found[3] == self.content


@dataclass(slots=True)
class Upload:
    """A file's stream to a task. Made by `starting`.

    data: the file. batches, rows: how much of it is stored already. digest: of that, if known. said: the message about it.
    """

    stream: Producer
    journal: Journal
    data: DataFile
    batches: int = 0
    rows: int = 0
    digest: bytes = b""
    said: str | None = None

    def note(self, number: int, x: Array, y: Array | None) -> None:
        """Note a batch, from 1, before it is sent."""
        self.digest = _digest(self.digest, x, y, self.data.spelled(x, y))
        self.journal.add(number, Noted(self.digest, len(x)))


class Sent(Protocol):
    """How far a stream of files is. batches: stored before. rows: of the file, to be left out. said: a message about it."""

    stream: Producer
    batches: int
    rows: int
    said: str | None

    def note(self, number: int, x: Array, y: Array | None) -> None:
        """Note a batch, from 1, before it is sent."""
        ...


def send_blocks(
    options: argparse.Namespace, data: DataFile, upload: Sent, agreement: Agreement, show: Bars | Silent
) -> dict[str, Any]:
    """Send a file's rows behind those that are stored; returns what of it, for a report."""
    rows = batches = 0
    stream, before = upload.stream, upload.stream.durable
    start = options.skip_rows + upload.rows

    def first_row(seq: int) -> int:
        return int(start + (seq - 1 - before) * data.block_rows)

    def send_first(x: Any, y: Any, schema: Any) -> None:
        stream.send(x, y, options.task, schema=schema)
        stream.flush()  # so that a refusal comes now

    with show.counting(options.file.name, data.count() - options.skip_rows) as advance, placed(data, first_row):
        advance(upload.rows)
        for number, (x, y) in enumerate(data.blocks(start), start=upload.batches + 1):
            upload.note(number, x, y)
            if agreement.form is None:
                agreement.try_on(x, y, send_first)
            else:
                x, y, schema = agreement.of(x, y)
                stream.send(x, y, options.task, schema=schema)
            rows, batches = rows + len(x), batches + 1
            advance(len(x))
        stream.flush()
    skipped = upload.batches
    notes = [note for note in (upload.said, *agreement.notes) if note is not None]
    return {"task": options.task, "rows": rows, "batches": batches, "batches_already_there": skipped, "notes": notes}


def starting(options: argparse.Namespace, data: DataFile) -> Upload:
    """Connect under this file's name, or under that of an earlier version that it continues. Raises DataError."""
    if options.producer:  # a name that the user chose goes on counting, and repeats nothing
        stream = producer(options, options.producer)
        fit(data, stream.welcome)
        return Upload(stream, Journal(None), data)
    identity = Identity.of(options, data)
    stream = producer(options, identity.name)
    fit(data, stream.welcome)
    revisit = stream.welcome["revisit"] if stream.welcome["task"] == options.task else None
    again = revisit if revisit is not None else stream.welcome.get("freed", {}).get(options.task)
    if again is not None:  # what was sent before that no longer counts
        stream.close()
        identity = replace(identity, revisit=str(again))
        stream = producer(options, identity.name)
    where = place_of(options)
    if stream.durable == 0 and stream.welcome["task"] == options.task and not options.skip_rows:
        stream.close()
        found = _earlier(options, data, identity, where)
        if found is not None:
            return found
        stream = producer(options, identity.name)
    return _going_on(options, data, stream, _home(where, identity.name))


def _going_on(options: argparse.Namespace, data: DataFile, stream: Producer, home: Path | None) -> Upload:
    """The stream of exactly this file, which continues where the daemon's disk left off."""
    total = data.count() - options.skip_rows
    batches = min(stream.durable, -(-total // data.block_rows))
    known = _read(home)[:batches]
    journal = Journal(home, batches)
    digest = known[-1].digest if len(known) == batches > 0 else b""
    return Upload(stream, journal, data, batches, min(batches * data.block_rows, total), digest)


def _earlier(options: argparse.Namespace, data: DataFile, identity: Identity, where: str) -> Upload | None:
    """The stream of an earlier version of this file. Raises DataError if what it has stored differs from this file."""
    for path in _journals(where, identity):
        name, known = path.name.partition(".")[2], _read(path)
        stream = producer(options, name)
        held = stream.durable
        if held and len(known) >= held:
            rows = sum(noted.rows for noted in known[:held])
            changed = _first_change(data, known[:held])
            if changed is None:
                said = f"an earlier version of this file, or one that begins alike, has stored its first {rows} rows"
                return Upload(stream, Journal(path, held), data, held, rows, known[held - 1].digest, said)
            stream.close()
            raise _changed(options, data, changed, rows)
        stream.close()
        if held:
            raise _unknown(options, data, name, held)
    for name, held in _known_to_the_daemon(options, identity):
        raise _unknown(options, data, name, held)
    return None


def _known_to_the_daemon(options: argparse.Namespace, identity: Identity) -> Iterator[tuple[str, int]]:
    """Other versions of this file of which the daemon has batches, if it may be asked."""
    if getattr(options, "stream", None) and not options.admin:
        return  # it is not known which daemon's admin endpoint to ask
    with contextlib.suppress(StreamclError, OSError), admin(options) as daemon:
        for row in daemon.producers():
            if row["durable"] and identity.is_other_version(row["producer"]):
                yield row["producer"], row["durable"]


def _first_change(data: DataFile, known: Sequence[Noted]) -> int | None:
    """The first row of the first batch that is not as it was stored; None where all are."""
    digest, row = b"", 0
    blocks = _Rows(data.blocks())
    for noted in known:
        x, y = blocks.take(noted.rows)
        digest = _digest(digest, x, y, data.spelled(x, y))
        if digest != noted.digest:
            return row
        row += len(x)
    return None


class _Rows:
    """Blocks of a file, cut again."""

    def __init__(self, blocks: Iterator[tuple[Array, Array | None]]) -> None:
        self._blocks = blocks
        self._held: list[tuple[Array, Array | None]] = []

    def take(self, rows: int) -> tuple[Array, Array | None]:
        """The next rows; fewer at the end of the file."""
        import numpy as np

        while sum(len(x) for x, _ in self._held) < rows and (block := next(self._blocks, None)) is not None:
            self._held.append(block)
        if not self._held:
            return np.empty(0), None
        x = np.concatenate([x for x, _ in self._held])
        targets = [y for _, y in self._held if y is not None]
        y = np.concatenate(targets) if targets else None
        self._held = [(x[rows:], None if y is None else y[rows:])] if len(x) > rows else []
        return x[:rows], None if y is None else y[:rows]


def _changed(options: argparse.Namespace, data: DataFile, first: int, rows: int) -> DataError:
    where = f"from {data.place(first)} on" if first < data.count() else "since it is shorter now"
    return DataError(
        f"{data.path}: an earlier version of this file, or one that begins alike, has stored {rows} rows in task "
        f"{options.task!r}, and this one differs from it there, {where}; what is stored is not changed. {_ways(rows)}"
    )


def _unknown(options: argparse.Namespace, data: DataFile, name: str, held: int) -> DataError:
    rows = held * data.block_rows
    return DataError(
        f"{data.path}: {held} batches ({rows} rows, if cut as now) of another version of this file, or of this file read "
        f"differently, are in task {options.task!r} already (producer {name}); whether its rows are the same cannot "
        f"be told from here. "
        f"{_ways(rows)}"
    )


def _ways(rows: int) -> str:
    return f"--skip-rows {rows} sends what comes after them; --producer NAME, with a new name, sends all of it again"


# -- digests of what was sent ----------------------------------------------------------------------------------------------


class Noted(NamedTuple):
    """A batch: the digest of it and all before it, and its rows."""

    digest: bytes
    rows: int


class Journal:
    """The digests of a stream's batches, each of all up to it, in a file of the user's cache.

    path: With None, or a cache that cannot be written, nothing is kept: less is then known later, and nothing else is lost.
    """

    def __init__(self, path: Path | None, held: int = 0) -> None:
        self._descriptor: int | None = None
        if path is None:
            return
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            _tidy(path.parent)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            if os.fstat(self._descriptor).st_size >= held * NOTED.size:
                os.truncate(self._descriptor, held * NOTED.size)
            else:  # some of what is stored was not recorded
                self.close()

    def add(self, number: int, noted: Noted) -> None:
        """Note a batch before it is sent."""
        if self._descriptor is not None:
            try:
                os.pwrite(self._descriptor, NOTED.pack(*noted), (number - 1) * NOTED.size)
            except OSError:
                self.close()

    def close(self) -> None:
        """Keep no more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def place_of(options: argparse.Namespace) -> str:
    """What the notes on streams to a daemon are kept under: its state directory, whatever ports it has, or the endpoint
    that it was named by. Those of older versions, always under the endpoint, are taken over."""
    by_endpoint = _short(endpoint(options, "stream").encode(), 8)
    if getattr(options, "stream", None):
        return by_endpoint
    where = _short(str(Path(options.state_dir).resolve()).encode(), 8)
    home = _home(where, "")
    if home is not None:
        for path in home.parent.glob(f"{by_endpoint}.*"):
            own = path.with_name(f"{where}.{path.name.partition('.')[2]}")
            if not own.exists():
                path.rename(own)
    return where


def home_of(options: argparse.Namespace, name: str) -> Path | None:
    """The journal of a producer's stream to a daemon; None if there is no home directory."""
    return _home(place_of(options), name)


def _home(where: str, name: str) -> Path | None:
    """The file for a stream to a daemon; None if there is no home directory."""
    base = os.environ.get("XDG_CACHE_HOME")
    try:
        cache = Path(base) if base else Path.home() / ".cache"
    except RuntimeError:
        return None
    return cache / "streamcl" / "sends" / f"{where}.{name}"


def _journals(where: str, identity: Identity) -> list[Path]:
    """Those of other versions of a file, the newest first."""
    home = _home(where, identity.name)
    if home is None or not home.parent.is_dir():
        return []
    found = [path for path in home.parent.glob(f"{where}.*") if identity.is_other_version(path.name.partition(".")[2])]
    alike = [path for path in found if f"-{identity.beginning}-" in path.name]
    return sorted(alike, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def _read(path: Path | None) -> list[Noted]:
    try:
        held = b"" if path is None else path.read_bytes()
    except OSError:
        return []
    return [Noted(*fields) for fields in NOTED.iter_unpack(held[: len(held) - len(held) % NOTED.size])]


def _tidy(directory: Path) -> None:
    """Delete all but the newest."""
    paths = sorted(directory.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    for path in paths[: max(0, len(paths) - MOST_JOURNALS)]:
        path.unlink(missing_ok=True)


def _digest(before: bytes, x: Array, y: Array | None, words: bytes = b"") -> bytes:
    """Of a batch and all before it. words: that its codes stand for."""
    digest = hashlib.sha256(before)
    for array in (x, y):
        if array is not None:
            digest.update(f"{array.dtype.str}{array.shape}".encode())
            digest.update(array.tobytes())
    digest.update(words)
    return digest.digest()[:8]


def _short(text: bytes, characters: int) -> str:
    return hashlib.sha256(text).hexdigest()[:characters]
