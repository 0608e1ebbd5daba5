"""A channel between two of the daemon's processes: small msgpack maps over a Unix SEQPACKET socket pair.

Guarantees: a message arrives whole or not at all, even if the sender is killed; sending never blocks (what does not
fit waits in this process). Has no path on disk, so nobody else can open it. When the other end is gone, and all that it
said has been received, `closed` turns true. A message may bring open descriptors along, which are the receiver's to close.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from streamcl.daemon import words

MESSAGE_BYTES = 128 * 1024
WAITING_MESSAGES = 10_000
MOST_DESCRIPTORS = 8  # with one message
ALIVE_SECONDS = 1.0


class Pollable(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


def wait(sources: Iterable[Pollable | int], seconds: float | None = None) -> None:
    """Wait until one of the sources can be read, or that long; unlike select(), for descriptors of any number."""
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    poll.poll(None if seconds is None else max(0.0, seconds) * 1000)


class Channel:
    """One end; `fileno` makes it pollable."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._waiting: deque[tuple[bytes, list[int]]] = deque(maxlen=WAITING_MESSAGES)
        self._last_alive = 0.0
        self._deaf = False  # the other end takes nothing more
        self.closed = False

    @classmethod
    def pair(cls) -> tuple[socket.socket, socket.socket]:
        """The two raw ends; hand one to a child process, wrap the other."""
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def fileno(self) -> int:
        """For pollers."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close this end."""
        self.closed = True
        self._socket.close()

    def send(self, word: words.Word, descriptors: Sequence[int] = ()) -> None:
        """Queue a word and send what the socket takes; of the descriptors, the receiver gets copies."""
        self._waiting.append((words.encode(word), [os.dup(each) for each in descriptors]))
        self.flush()

    def alive(self, sign: words.Alive) -> None:
        """Show the supervisor a sign of progress; cheap enough to be called in every loop."""
        now = time.monotonic()
        if now - self._last_alive > ALIVE_SECONDS:
            self._last_alive = now
            self.send(sign)

    def flush(self) -> None:
        """Send what is waiting, as far as the socket takes it; call it in every loop."""
        while self._waiting and not self.closed and not self._deaf:
            try:
                self._send(*self._waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self._deaf = True  # what it has said before its end is still to be heard
                return
            self._waiting.popleft()

    def _send(self, packet: bytes, descriptors: list[int]) -> None:
        if not descriptors:
            self._socket.send(packet)
            return
        socket.send_fds(self._socket, [packet], descriptors)
        for each in descriptors:
            os.close(each)

    def receive(self) -> Iterator[words.Word]:
        """Every word that has arrived; never waits. Raises StreamclError for what is none."""
        for word, _ in self.receive_with_descriptors():
            yield word

    def receive_with_descriptors(self) -> Iterator[tuple[words.Word, list[int]]]:
        """As `receive`, each word with the descriptors that came with it."""
        while not self.closed:
            descriptors: list[int] = []
            try:
                packet, descriptors, _, _ = socket.recv_fds(self._socket, MESSAGE_BYTES, MOST_DESCRIPTORS)
            except BlockingIOError:
                return
            except ConnectionResetError:  # it ended without having read all of ours: said once, before its last words
                continue
            except OSError:
                packet = b""
            if not packet:
                self.closed = True
                return
            for each in descriptors:
                os.set_inheritable(each, False)  # by what this process starts in its turn
            yield words.decode(packet), descriptors
