"""``streamcl send FILE --follow``: a text file that grows, row by row, for as long as it does.

Only whole rows leave, those that end with a line's end. They go under one producer's name, made of the path and the task;
which rows its batches have is in a journal in the user's cache, so that, started again, it goes on where the daemon's disk
left off; also where the daemon was started again at other ports, which are looked up in its state directory. What was sent
is checked first, to the byte. A file that is cut or replaced meanwhile ends it.

Ends with Ctrl-C or SIGTERM (status 0: it can go on any time; at once with the second), or where nothing has come for
``--idle`` seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import endpoint, producer
from streamcl.cli.files import Agreement, fit, opened, say, streamed
from streamcl.cli.progress import Silent
from streamcl.cli.upload import home_of, send_blocks
from streamcl.columns import plain
from streamcl.datafiles.source import LINES_ENDINGS, TEXT_ENDINGS
from streamcl.errors import DataError, Unreachable

if TYPE_CHECKING:
    from streamcl.client import Producer
    from streamcl.datafiles import Array, DataFile

PAUSE = 0.5  # seconds between two looks at the file
ANSWER_SECONDS, PATIENCE = 10.0, 60.0  # without an answer, until the daemon is looked up again, and in all
PART_BYTES = 64 << 20  # of rows that are read at once
NOTED = struct.Struct("<8sIQ")


class Tail:
    """Whole rows of a file as they come. done: bytes up to the last of them that was taken."""

    def __init__(self, path: Path) -> None:
        self.path, self.done = path, 0
        ending = path.suffix.lower()
        if ending not in (*TEXT_ENDINGS, *LINES_ENDINGS):
            kinds = ", ".join((*TEXT_ENDINGS, *LINES_ENDINGS))
            raise DataError(f"{path}: --follow: expected a file that ends with {kinds}, whose rows are lines")
        self._quotes = ending in TEXT_ENDINGS  # a quoted cell may have line ends
        self._file = path.stat().st_ino
        with path.open("rb") as file:
            if file.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise DataError(f"{path}: --follow: expected UTF-8, got UTF-16; save it as UTF-8")

    def more(self) -> bytes:
        """Whole rows that have come since, or nothing; raises DataError where the file is another one now."""
        try:
            seen = self.path.stat()
        except FileNotFoundError:
            raise DataError(f"{self.path}: --follow: it is gone; {self._so_far()}") from None
        if seen.st_ino != self._file or seen.st_size < self.done:
            raise DataError(f"{self.path}: --follow: it was replaced or cut; {self._so_far()}")
        with self.path.open("rb") as file:
            file.seek(self.done)
            found = self._whole(file.read(PART_BYTES))
        self.done += len(found)
        return found

    def rest(self) -> int:
        """Bytes behind the last whole row."""
        return self.path.stat().st_size - self.done

    def _so_far(self) -> str:
        return f"its first {self.done} bytes were sent; send what is there now as a file of its own"

    def _whole(self, text: bytes) -> bytes:
        end = text.rfind(b"\n") + 1
        while self._quotes and text.count(b'"', 0, end) % 2:
            end = text.rfind(b"\n", 0, end - 1) + 1
        return text[:end]


def follow(options: argparse.Namespace) -> dict[str, Any]:
    """Send a file's rows, and those that come; returns what was sent, for a report. Raises DataError, Unreachable."""
    with _until_told() as told, tempfile.TemporaryDirectory(prefix="streamcl-") as place:
        following, until = _Following(options, Path(place)), time.monotonic()
        while True:
            tail = Tail(options.file)
            try:
                _take_all(options, tail, following, told)
                break
            except Unreachable:
                until = time.monotonic() + PATIENCE if following.place is not None else until
                if following.begun is None or time.monotonic() > until or told.wait(PAUSE):
                    raise
                following = following.again()
        report = following.report()
    if not told.is_set() and tail.rest():
        report["notes"].append(f"{options.file}: {tail.rest()} bytes behind its last line's end were not sent")
    return report | {"told": told.is_set()}


def _take_all(options: argparse.Namespace, tail: Tail, following: _Following, told: threading.Event) -> None:
    """What is there and what comes, until it is to end."""
    try:
        quiet = 0.0
        while not told.is_set() and (options.idle is None or quiet < options.idle):
            part = tail.more()
            quiet = 0.0 if part else quiet + PAUSE
            if part:
                following.take(part)
            else:
                _pause(told)
    finally:
        following.close()


def _pause(told: threading.Event) -> None:
    told.wait(PAUSE)


@contextmanager
def _until_told() -> Iterator[threading.Event]:
    """Set by Ctrl-C and SIGTERM, inside."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(*_: object) -> None:
        if told.is_set():  # it was told before, and waits for the daemon
            raise KeyboardInterrupt
        told.set()

    before = {number: signal.signal(number, tell) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Place:
    """How far a file's stream is, in a file of the user's cache: of each batch, its rows, and what had been sent of the
    file before the part that it belongs to, in bytes and by their digest. What `send_blocks` sends with.

    batches, rows: of the part that is sent, those before it, and 0.
    """

    def __init__(self, stream: Producer, path: Path | None) -> None:
        self.stream, self.rows, self.batches = stream, 0, stream.durable
        self.said: str | None = None
        self.sent, self.digest = 0, hashlib.sha256()
        if path is None:
            raise DataError("--follow: how far it is would be kept in ~/.cache/streamcl, and there is no home directory")
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        held = os.pread(self._file, NOTED.size * stream.durable, 0)
        self.known = list(NOTED.iter_unpack(held[: len(held) - len(held) % NOTED.size]))

    def note(self, number: int, x: Array, y: Array | None) -> None:
        """A batch, from 1, before it is sent."""
        os.pwrite(self._file, NOTED.pack(self.digest.digest()[:8], len(x), self.sent), (number - 1) * NOTED.size)

    def took(self, part: bytes) -> None:
        """All of a part has been sent."""
        self.digest.update(part)
        self.sent += len(part)

    def close(self) -> None:
        """Note no more."""
        os.close(self._file)


class _Following:
    """One file's stream to a task, from its beginning or from where it was. begun: rows and batches that were stored when
    the command began, and at: its daemon's endpoint, where that has not answered since."""

    def __init__(
        self, options: argparse.Namespace, where: Path, begun: tuple[int, int] | None = None, at: str = ""
    ) -> None:
        self.options, self.where = options, where
        self.begun, self.endpoint = begun, at
        self.place: _Place | None = None
        self.head = b""  # what stands before the first row
        self.first = b""  # what came before there was a row
        self.known: Mapping[str, Any] | None = None
        self.skip = self.rows = self.batches = self.there = 0  # skip: rows that were sent by an earlier run
        self.notes: list[str] = []

    def take(self, part: bytes) -> None:
        """More whole rows."""
        if self.place is None:
            self.first += part
            part = self.first
        data = self._opened(self.head + part, self.known)
        if data is None:
            return
        if self.place is None:
            self._begin(data)
        self._send(data)
        assert self.place is not None
        self.place.took(part)

    def _opened(self, text: bytes, known: Mapping[str, Any] | None) -> DataFile | None:
        """What has come as a file; None while it has no row yet."""
        path = self.where / self.options.file.name
        path.write_bytes(text)
        options = argparse.Namespace(**{**vars(self.options), "json": True})  # no bar for each part
        is_text = path.suffix.lower() in TEXT_ENDINGS
        if known is None:
            if is_text and text.count(b"\n") < 2:
                return None  # a header alone, it may be
            return opened(options, path, options.rows, known=streamed(options))
        if is_text:
            options.header = "yes" if self.head else "no"
        return opened(options, path, options.rows, known=known)

    def _begin(self, data: DataFile) -> None:
        """Find out how far an earlier run got."""
        options = self.options
        where = hashlib.sha256(str(options.file.resolve()).encode()).hexdigest()[:8]
        name = options.producer or f"follow-{where}-{hashlib.sha256(options.task.encode()).hexdigest()[:8]}"
        stream = self._connected(name)
        fit(data, stream.welcome)
        self.place = place = _Place(stream, home_of(options, name))
        if len(place.known) < stream.durable:
            raise DataError(
                f"{options.file}: {stream.durable} batches of it are stored (producer {name}), but which of its rows they "
                "have is not noted here (were they sent from elsewhere?); send the rest as a file of its own, or give this "
                "stream a new name (--producer), which sends the file from its beginning"
            )
        if place.known:
            digest, _, sent = place.known[-1]
            with options.file.open("rb") as file:
                if hashlib.sha256(file.read(sent)).digest()[:8] != digest:
                    raise DataError(
                        f"{options.file}: its first {sent} bytes are not those that were sent of it; what is stored is not "
                        "changed. Send what is new as a file of its own, or give this stream a new name (--producer)"
                    )
            self.skip = sum(rows for _, rows, _ in place.known)
        if self.begun is None:
            say(options, replace(data.reading, file=str(options.file)))
        self.begun = self.begun or (self.skip, stream.durable)
        self.there = self.begun[1]
        self.rows, self.batches = self.skip - self.begun[0], stream.durable - self.begun[1]
        self.head = data.head()
        self.known = self._pinned(data, stream)

    def _connected(self, name: str) -> Producer:
        """To where the daemon is now, which is said where it has changed. Raises Unreachable, soon, for another look."""
        now, before = endpoint(self.options, "stream"), self.endpoint
        stream = producer(self.options, name, ANSWER_SECONDS)
        if before and now != before:
            print(f"streamcl: the daemon is at {now} now, and the file goes on there", file=sys.stderr, flush=True)
        self.endpoint = now
        return stream

    def again(self) -> _Following:
        """The same from the file's beginning, to where its daemon is now."""
        found = _Following(self.options, self.where, self.begun, self.endpoint)
        found.notes = self.notes
        return found

    def _send(self, data: DataFile) -> None:
        assert self.place is not None
        skipped = min(self.skip, data.count())
        self.skip -= skipped
        if skipped == data.count():
            return
        self.place.stream.left_out = data.left_out
        self.place.rows = skipped
        options = argparse.Namespace(**{**vars(self.options), "skip_rows": 0})
        found = send_blocks(options, data, self.place, Agreement(data, self.options.numbers), Silent())
        self.place.batches += found["batches"]
        self.rows, self.batches = self.rows + found["rows"], self.batches + found["batches"]
        self.notes += [note for note in found["notes"] if note not in self.notes]

    def _pinned(self, data: DataFile, stream: Producer) -> dict[str, Any]:
        """The columns of the stream, as every further part has them."""
        if stream.welcome.get("begun") or stream.welcome.get("schema") is not None:
            welcome = stream.welcome
            return {"begun": True, "schema": welcome.get("schema"), "left_out": welcome.get("left_out", ())}
        columns = data.batch(*next(data.blocks()), data.form())[2]
        return {"begun": True, "schema": None if columns is None else plain(columns), "left_out": list(data.left_out)}

    def close(self) -> None:
        """The stream ends here."""
        if self.place is not None:
            self.place.stream.close()
            self.place.close()

    def report(self) -> dict[str, Any]:
        """What was sent; raises DataError where no row has come."""
        if self.place is None:
            raise DataError(f"{self.options.file}: --follow: no row has come")
        return {
            "task": self.options.task,
            "rows": self.rows,
            "batches": self.batches,
            "batches_already_there": self.there,
            "notes": self.notes,
        }
