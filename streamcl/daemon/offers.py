"""What followers are given: whole publications, a part at a time, from the process that answers predictions.

A follower asks for the newest publication (`messages.Follow`), then for its files by digest (`messages.Part`), one question
at a time. Guarantees: the trainer and ingest do nothing for followers, however many and however slow; what is offered
stays as it is until those who fetch it have it, at most `MOST_OFFERS` publications at a time, as maps of files (the disk
space of what has been replaced since, no memory of its own); a question that waits costs a look at one file's name every
`LOOK_SECONDS`. What a large file's digest takes to compute is another thread's work.
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.daemon.sockets import Peer
from streamcl.errors import Damaged, Refused, UnknownFormat
from streamcl.protocol import messages
from streamcl.protocol.frames import Array, Buffer
from streamcl.storage import container, published
from streamcl.storage.frozen import DIRECTORY
from streamcl.storage.state import StateDirectory

LOOK_SECONDS = 0.05  # between two looks whether something new is published, while anybody waits for it
SMALL_SECONDS = 0.01  # within which the digest of what is not large is there
MOST_OFFERS = 4
GONE_SECONDS = 30.0  # without a question, a follower does not fetch any more
LONGEST_SECONDS = 600.0  # that a publication is kept for those who fetch it, where others would have to wait
PART_BYTES = 4 << 20
MOST_FILES = 16  # of what never changes, kept open

Asker = tuple[bytes, str]


@dataclass(frozen=True, slots=True)
class Piece:
    """One file, as the bytes that it has, by their SHA-256."""

    digest: str
    buffers: tuple[Buffer, ...]

    @classmethod
    def of(cls, buffers: list[Buffer]) -> Piece:
        """Of these buffers, one after another."""
        digest = hashlib.sha256()
        for buffer in buffers:
            digest.update(buffer)
        return cls(digest.hexdigest(), tuple(buffers))

    @property
    def nbytes(self) -> int:
        """Of all of it."""
        return sum(len(buffer) for buffer in self.buffers)

    def read(self, offset: int, most: int) -> Array:
        """The bytes from an offset on; copied only where they come from several buffers."""
        found, at = [], 0
        for buffer in self.buffers:
            begin, end = max(0, offset - at), min(len(buffer), offset + most - at)
            if begin < end:
                found.append(np.frombuffer(buffer, np.uint8)[begin:end])
            at += len(buffer)
        return found[0] if len(found) == 1 else np.concatenate([np.empty(0, np.uint8), *found])

    def plain(self) -> dict[str, Any]:
        """As a message says it."""
        return {"digest": self.digest, "bytes": self.nbytes}


@dataclass(slots=True)
class Offer:
    """One publication. name: by which followers know it. number, stamp: of its posterior, and of that one's file.

    fetchers: who fetches it, and when each was last heard.
    """

    name: str
    about: dict[str, Any]
    parameters: Piece
    posterior: Piece | None
    number: tuple[Any, published.Stamp | None]
    since: float
    fetchers: dict[Asker, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As a message says it."""
        posterior = None if self.posterior is None else self.posterior.plain()
        return {"publication": self.name, **self.about, "parameters": self.parameters.plain(), "posterior": posterior}


@dataclass(frozen=True, slots=True)
class Waiting:
    """A question for the newest publication that has not been answered yet."""

    peer: Peer
    id: Any
    have: str | None
    until: float
    after: float


class Offers:
    """Publications of one state directory, for those who ask."""

    def __init__(self, state: StateDirectory) -> None:
        self.state = state
        self.newest: dict[str, Any] | None = None  # version, position and rows of what is published now
        self._offers: dict[str, Offer] = {}
        self._current: Offer | None = None
        self._waiting: dict[Asker, Waiting] = {}
        self._heard: dict[Asker, float] = {}
        self._stamp: published.Stamp | None = None
        self._offered: published.Stamp | None = None  # of the newest that was made an offer
        self._looked = float("-inf")
        self._thread: ThreadPoolExecutor | None = None
        self._job: Future[tuple[Offer, published.Stamp] | None] | None = None
        self._files: dict[str, mmap.mmap] = {}

    # -- questions -----------------------------------------------------------------------------------------------

    def ask(self, peer: Peer, message: messages.Follow, now: float) -> None:
        """Somebody asks for the newest, and so has what was fetched before, or has given it up."""
        asker = _asker(peer)
        for offer in self._offers.values():
            offer.fetchers.pop(asker, None)
        self._heard[asker] = now
        self._waiting[asker] = Waiting(peer, message.id, message.have, now + message.wait, now + message.after)

    def part(self, peer: Peer, message: messages.Part, now: float) -> tuple[int, Array]:
        """How large a file is, and some of its bytes; raises Refused ``not_ready`` where it is not offered any more."""
        asker = _asker(peer)
        self._heard[asker] = now
        for offer in self._offers.values():
            if asker in offer.fetchers:
                offer.fetchers[asker] = now
        buffers = self._buffers(message.digest)
        size, most = sum(len(buffer) for buffer in buffers), min(message.most, PART_BYTES)
        if message.offset > size:
            raise Refused("bad_header", f"part.offset: expected at most the file's {size} bytes, got {message.offset}")
        return size, Piece(message.digest, buffers).read(message.offset, most)

    def _buffers(self, digest: str) -> tuple[Buffer, ...]:
        for offer in self._offers.values():
            for piece in (offer.parameters, offer.posterior):
                if piece is not None and piece.digest == digest:
                    return piece.buffers
        return (memoryview(self._file(digest)),)

    def _file(self, digest: str) -> mmap.mmap:
        """One of the files of what never changes, which stays as it is even where it is removed meanwhile."""
        if digest not in self._files:
            try:
                found = _mapped(self.state.path / DIRECTORY / digest)
            except (OSError, ValueError):
                text = "part: this is not offered any more; ask for the newest publication with `follow`"
                raise Refused("not_ready", text, retryable=True) from None
            while len(self._files) >= MOST_FILES:
                del self._files[next(iter(self._files))]
            self._files[digest] = found
        return self._files[digest]

    # -- answers -------------------------------------------------------------------------------------------------

    @property
    def wait_seconds(self) -> float | None:
        """How long the process may rest; None where nobody waits."""
        return LOOK_SECONDS if self._waiting else None

    def followers(self, now: float) -> int:
        """How many have asked for anything lately."""
        self._heard = {asker: heard for asker, heard in self._heard.items() if now - heard < GONE_SECONDS}
        return len(self._heard)

    def answers(self, now: float) -> Iterator[tuple[Waiting, Offer | None]]:
        """Questions that are answered now: with a publication or, once they have waited long enough, with none."""
        if not self._waiting:
            return
        self.look(now)
        if self._offered != self._stamp and any(now >= each.after for each in self._waiting.values()):
            self._prepare(now)
        self._take()
        for asker, each in list(self._waiting.items()):
            current = self._current
            if current is not None and current.name != each.have and now >= each.after and self._stamp is not None:
                current.fetchers[asker] = now
            elif now >= each.until:
                current = None
            else:
                continue
            del self._waiting[asker]
            yield each, current

    def look(self, now: float) -> None:
        """See what is published now."""
        if now - self._looked < LOOK_SECONDS:
            return
        self._looked = now
        stamp = published.stamp(self.state.parameters)
        if stamp != self._stamp:
            self.newest, self._stamp = _about(self.state.parameters), stamp

    # -- making offers -------------------------------------------------------------------------------------------

    def _prepare(self, now: float) -> None:
        """Have the newest publication read, where there is room for one more."""
        if self._job is not None or self._stamp is None or not self._has_room(now):
            return
        self._thread = self._thread or ThreadPoolExecutor(1, thread_name_prefix="offers")
        self._job = self._thread.submit(_offer, self.state, self._current, now)
        wait([self._job], SMALL_SECONDS)

    def _has_room(self, now: float) -> bool:
        """Whether one more publication may be kept; those that nobody fetches are not."""
        for name, offer in list(self._offers.items()):
            offer.fetchers = {who: heard for who, heard in offer.fetchers.items() if now - heard < GONE_SECONDS}
            if not offer.fetchers and offer is not self._current:
                del self._offers[name]
        if len(self._offers) < MOST_OFFERS:
            return True
        oldest = min((each for each in self._offers.values() if each is not self._current), key=lambda each: each.since)
        if now - oldest.since < LONGEST_SECONDS:
            return False
        del self._offers[oldest.name]
        return True

    def _take(self) -> None:
        """The offer that has been made, if it has."""
        if self._job is None or not self._job.done():
            return
        made, self._job = self._job.result(), None
        if made is None:  # replaced while it was read
            return
        offer, self._offered = made
        self._current = self._offers.setdefault(offer.name, offer)


def _asker(peer: Peer) -> Asker:
    return peer.routing_id, peer.key


def _mapped(path: Path) -> mmap.mmap:
    return _opened(path)[1]


def _opened(path: Path) -> tuple[published.Stamp, mmap.mmap]:
    """A file as it is now, and its stamp: whatever takes its name meanwhile is another one."""
    with path.open("rb") as file:
        return published.stamp_of(os.fstat(file.fileno())), mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _about(path: Path) -> dict[str, Any] | None:
    """Version, position and rows of what is published; None where nothing is, or an earlier streamcl has published it."""
    try:
        return _told(container.unpack_meta(memoryview(_mapped(path)), path))
    except (OSError, ValueError, Damaged, UnknownFormat):
        return None


def _told(meta: Mapping[str, Any]) -> dict[str, Any] | None:
    if "position" not in meta:
        return None
    return {name: meta[name] for name in ("version", "position", "rows")}


def _offer(state: StateDirectory, before: Offer | None, now: float) -> tuple[Offer, published.Stamp] | None:
    """The newest publication, read whole; None where it was replaced meanwhile. before: the offer before it."""
    try:
        stamp, mapped = _opened(state.parameters)
        view = memoryview(mapped)
        meta = container.unpack_meta(view, state.parameters)
    except (OSError, ValueError, Damaged, UnknownFormat):
        return None
    about = _told(meta)
    if about is None:
        return None
    parameters = Piece.of([view])
    number = meta["posterior"], published.stamp(state.posterior)
    posterior = before.posterior if before is not None and before.number == number else _posterior(state)
    name = hashlib.sha256(f"{parameters.digest} {posterior and posterior.digest}".encode()).hexdigest()
    about["published_at"] = stamp[1] / 1e9
    return Offer(name, about, parameters, posterior, number, now), stamp


def _posterior(state: StateDirectory) -> Piece | None:
    """The posterior, as the file that it would be beside the parameters; None where there is none."""
    found = published.posterior(state)
    if found is None:
        return None
    number, arrays = found
    return Piece.of(container.pack({"posterior": number}, arrays, digests=False))
