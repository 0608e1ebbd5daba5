"""A channel between two of the daemon's processes: `words` over a Unix SEQPACKET socket pair.

Guarantees: a message arrives whole or not at all, also where the sender is killed; sending never blocks (what does not
fit waits in this process). Has no path on disk, so nobody else can open it. When the other end is gone,
`closed` turns true.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Protocol

from streamcl.daemon import words

MESSAGE_BYTES = 128 * 1024
WAITING_MESSAGES = 10_000
ALIVE_SECONDS = 1.0


class Pollable(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """The descriptor."""


def wait(sources: Iterable[Pollable | int], seconds: float | None = None) -> None:
    """Until one of the sources can be read, or for so long; unlike select(), with descriptors of any number."""
    poll = select.poll()
    for source in sources:
        poll.register(source, select.POLLIN)
    poll.poll(None if seconds is None else max(0.0, seconds) * 1000)


class Channel:
    """One end; `fileno` makes it pollable."""

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._waiting: deque[bytes] = deque(maxlen=WAITING_MESSAGES)
        self._last_alive = 0.0
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

    def send(self, word: words.Word) -> None:
        """Queue a word and send what the socket takes."""
        self._waiting.append(words.encode(word))
        self.flush()

    def alive(self, sign: words.Alive) -> None:
        """Show the supervisor a sign of progress, seldom enough to cost nothing; call it in every loop."""
        now = time.monotonic()
        if now - self._last_alive > ALIVE_SECONDS:
            self._last_alive = now
            self.send(sign)

    def flush(self) -> None:
        """Send what waits, as far as the socket takes it; call it in every loop."""
        while self._waiting and not self.closed:
            try:
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self.closed = True
                return
            self._waiting.popleft()

    def receive(self) -> Iterator[words.Word]:
        """Every word that has arrived; never waits. Raises StreamclError for what is none."""
        while not self.closed:
            try:
                packet = self._socket.recv(MESSAGE_BYTES)
            except BlockingIOError:
                return
            except OSError:
                packet = b""
            if not packet:
                self.closed = True
                return
            yield words.decode(packet)
