"""The judges of every message, without sockets, disk or torch: hostile messages around a clean stream.

After every message: no exception, and a reply within the contract that carries the request's id. At the end the log of the
clean stream must equal, record for record, that of a run without hostile messages; training is a function of that log.
"""

from __future__ import annotations

import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from streamcl.bench.faults.soak import anonymous_kib
from streamcl.bench.faults.world import SilentChannel
from streamcl.bench.fuzz.contract import breach
from streamcl.bench.fuzz.mutants import CLASSES, CLEAN, FEATURES, Frames, mutant
from streamcl.config import from_tree
from streamcl.daemon import recovery
from streamcl.daemon.ingest import Ingest
from streamcl.daemon.link import Link
from streamcl.daemon.sockets import Peer
from streamcl.entries import Standing
from streamcl.errors import Refused
from streamcl.protocol import frames
from streamcl.protocol.session import StreamSession, Terms
from streamcl.schema import Signature
from streamcl.storage.disk import Disk
from streamcl.storage.history import History
from streamcl.storage.records import Record, encode
from streamcl.storage.state import StateDirectory

SOCKETS = ("stream", "admin", "predict")
SLOW_SECONDS = 1.0
WARM_SHARE = 0.25  # of the messages, after which memory must not grow
GROWTH_KIB = 8 * 1024
HOSTILE = tuple(Peer(f"hostile-{number}".encode(), False, False) for number in range(4))
HONEST = Peer(b"honest", False, False)


@dataclass(slots=True)
class Found:
    """What a campaign met."""

    messages: int = 0
    replies: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)
    slowest: float = 0.0
    memory: list[int] = field(default_factory=list)
    clean: bool = True

    def plain(self) -> dict[str, Any]:
        """For a report."""
        return {
            "messages": self.messages,
            "replies": dict(self.replies.most_common()),
            "slowest message, seconds": round(self.slowest, 4),
            "memory, KiB, warm and at the end": self.memory,
            "clean stream unharmed": self.clean,
            "violations": len(self.broken),
            "first": self.broken[:5],
        }


class _Log:
    """The log in memory: encoded records and their arrays, forgotten once they have been digested into a list."""

    def __init__(self) -> None:
        self.kept: list[tuple[bytes, tuple[bytes, ...]]] = []
        self.next_lsn = self.durable = self.end_bytes = 0

    def append(self, record: Record, payloads: Sequence[Any] = ()) -> int:
        self.kept.append((encode(record), tuple(bytes(payload) for payload in payloads)))
        self.end_bytes += 1000
        self.next_lsn += 1
        return self.next_lsn - 1

    def sync(self) -> None:
        self.durable = self.next_lsn

    def rotate(self) -> None:
        pass


class _Replies:
    """A port whose replies go to a list."""

    def __init__(self, socket: str, replies: list[tuple[str, list[Any]]]) -> None:
        self.socket, self.replies = socket, replies

    def receive(self) -> Iterator[tuple[Peer, list[frames.Buffer]]]:
        """Nothing: messages are handed over."""
        return iter(())

    def send(self, peer: Peer, message: Sequence[frames.Buffer]) -> None:
        """A reply."""
        self.replies.append((self.socket, list(message)))


def bare_ingest(directory: str, log: _Log, replies: list[tuple[str, list[Any]]]) -> Ingest:
    """The judges of every message, on a log in memory, with replies that go to a list."""
    config = from_tree({"state_dir": directory, "model": {"classes": CLASSES}, "stream": {"producers": 64}})
    state, session = StateDirectory(Path(directory)), StreamSession(Terms.of(config))
    found = recovery.Found(state, Disk(), session, log, Standing(), [], History(state.history))
    link = Link(SilentChannel(), SilentChannel())
    ingest = Ingest(config, found, link, _Replies("stream", replies), _Replies("admin", replies))
    ingest.stream.trials.accepted = Signature((FEATURES,), False, ())
    return ingest


class Bench:
    """Feeds messages and watches the replies."""

    def __init__(self, directory: str) -> None:
        from streamcl.daemon.predictor import Predictor

        self.log = _Log()
        self.replies: list[tuple[str, list[Any]]] = []
        self.ingest = bare_ingest(directory, self.log, self.replies)
        self.predictor = Predictor(self.ingest.view.config, self.ingest.guard)
        self.found = Found()
        self._clean_seq = 0

    def feed(self, socket: str, peer: Peer, parts: Frames) -> None:
        """One message, and everything that follows from it."""
        started = time.perf_counter()
        self.replies.clear()
        held = [_text(other.message.id) for other in self.ingest.stream.waiting]
        try:
            self._judge(socket, Peer(peer.routing_id, frames.is_delimited(parts), False), parts)
            self.ingest.make_durable()
        except Exception as error:
            self.found.broken.append(f"{type(error).__name__}: {error}: {socket} {[bytes(p)[:200] for p in parts[:12]]!r}")
        self.found.slowest = max(self.found.slowest, time.perf_counter() - started)
        self.found.messages += 1
        self._check(parts, {_id(parts), *held})

    def _judge(self, socket: str, peer: Peer, parts: Frames) -> None:
        match socket:
            case "stream":
                self.ingest.stream.take(peer, parts)
            case "admin":
                self.ingest.admin.take(peer, parts)
            case "predict":
                reply = self.predictor.answer(parts, peer)
                self.replies += [] if reply is None else [("predict", reply)]
                self.replies += [("predict", later) for _, later in self.predictor.answers(math.inf)]

    def _check(self, parts: Frames, ids: set[str]) -> None:
        for socket, reply in self.replies:
            wrong = breach(socket, reply)
            header = {} if wrong else msgpack.unpackb(reply[0] or reply[1])
            self.found.replies[header.get("code") or header.get("type", "?")] += 1
            if wrong is None and _text(header.get("id")) not in ids:
                wrong = f"an id came back as {_text(header.get('id'))[:100]}"
            if wrong is not None:
                self.found.broken.append(f"{wrong}: answer to {[bytes(part)[:200] for part in parts[:12]]!r}")

    def honest(self, header: dict[str, Any], arrays: dict[str, Any] | None = None) -> None:
        """A message of the clean stream."""
        self.feed("stream", HONEST, [bytes(frame) for frame in frames.build(header, arrays)])

    def clean_step(self, boundary: bool) -> None:
        """The clean stream's next batch; where it ends a task, the next one's first follows at once."""
        if self._clean_seq == 0:
            self.honest({"type": "hello", "producer": CLEAN})
        for closes in (True, False) if boundary else (False,):
            self._clean_seq += 1
            x = np.full((2, FEATURES), self._clean_seq % 100, "<f4")
            task = f"{CLEAN}-{len(self.ingest.session.closed)}"
            header = {"type": "batch", "seq": self._clean_seq, "task": task, "boundary": closes}
            self.honest(header, {"x": x, "y": np.arange(2, dtype="<i8")})


def _id(parts: Frames) -> str:
    """The id that a reply must bring back: the request's, where one could be read."""
    try:
        return _text(frames.parse(parts).header.get("id"))
    except Refused as refused:
        return _text(refused.fields.get("id"))


def _text(value: Any) -> str:
    """A value as text that can be compared, even NaN."""
    try:
        return repr(value)
    except RecursionError:
        return "too deep to be shown"


def run(messages: int, seed: int, hostile: bool = True, every: int = 500) -> tuple[Found, list[Any]]:
    """A number of hostile messages around a clean stream; returns what was found, and the log."""
    rng = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="streamcl-fuzz-") as directory:
        bench = Bench(directory)
        for number in range(messages):
            if number % every == 0:
                bench.clean_step(boundary=number % (10 * every) == 9 * every)
            if hostile:
                socket = rng.choice(SOCKETS)
                bench.feed(socket, rng.choice(HOSTILE), mutant(rng, socket))
            if number in (int(WARM_SHARE * messages), messages - 1):
                bench.found.memory.append(anonymous_kib_of_this_process())
            if bench.found.broken[20:]:
                break
        return bench.found, bench.log.kept


def anonymous_kib_of_this_process() -> int:
    """Resident memory of its own, without shared pages."""
    import os

    return anonymous_kib(os.getpid())


def campaign(messages: int, seed: int) -> Found:
    """Hostile messages around a clean stream, compared with the clean stream alone."""
    found, log = run(messages, seed)
    _, alone = run(messages, seed, hostile=False)
    found.clean = log == alone
    if not found.clean:
        found.broken.append("the clean stream's log differs from that without hostile messages")
    if found.memory[1:] and found.memory[-1] - found.memory[0] > GROWTH_KIB:
        found.broken.append(f"memory grew: {found.memory} KiB")
    if found.slowest > SLOW_SECONDS:
        found.broken.append(f"a message took {found.slowest:.1f} s")
    return found
