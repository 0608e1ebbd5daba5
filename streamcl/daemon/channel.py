"""A channel between two of the daemon's processes: small msgpack maps over a Unix SEQPACKET socket pair.

Guarantees: a message arrives whole or not at all, even if the sender is killed; sending never blocks (what does not
fit waits in this process). Has no path on disk, so nobody else can open it. When the other end is gone,
`closed` turns true.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import msgpack

MESSAGE_BYTES = 128 * 1024
WAITING_MESSAGES = 10_000
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

    def send(self, kind: str, **fields: Any) -> None:
        """Queue a message and send what the socket takes."""
        self._waiting.append(msgpack.packb({"type": kind, **fields}))
        self.flush()

    def alive(self, **fields: Any) -> None:
        """Show the supervisor a sign of progress; cheap enough to be called in every loop."""
        now = time.monotonic()
        if now - self._last_alive > ALIVE_SECONDS:
            self._last_alive = now
            self.send("alive", **fields)

    def flush(self) -> None:
        """Send what is waiting, as far as the socket takes it; call it in every loop."""
        while self._waiting and not self.closed:
            try:
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                return
            except OSError:
                self.closed = True
                return
            self._waiting.popleft()

    def receive(self) -> Iterator[dict[str, Any]]:
        """Every message that has arrived; never waits."""
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
            yield msgpack.unpackb(packet)
