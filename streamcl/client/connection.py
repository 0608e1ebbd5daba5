"""One DEALER socket of a client, thrown away and made again as often as it takes."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from typing import Any

import zmq

from streamcl.config import is_ipv6
from streamcl.errors import Refused, StreamclError, Unreachable
from streamcl.handshake import Handshake
from streamcl.keys import Keys
from streamcl.protocol import frames
from streamcl.protocol.frames import NamedArrays


class Connection:
    """One DEALER socket that can be thrown away and made again; of this process alone.

    timeout: seconds for which a message may find no room on its way out.
    """

    def __init__(self, endpoint: str, keys: Keys | None = None, timeout: float = 60.0) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self.timeout = timeout
        self._process = os.getpid()
        self._socket: zmq.Socket[bytes] | None = None
        self._handshake: Handshake | None = None

    def open(self) -> None:
        self.close()
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, int(is_ipv6(self.endpoint)))
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        self._handshake = Handshake(self._socket, self.endpoint, self.keys)
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise Unreachable(f"{self.endpoint}: not an endpoint ({error}); expected tcp://HOST:PORT") from None

    @property
    def ours(self) -> bool:
        """Whether this process made it; a fork takes no sockets and threads along."""
        return os.getpid() == self._process

    def check_process(self, kind: str) -> None:
        """Raise StreamclError in any process but the one that made this."""
        if not self.ours:
            raise StreamclError(
                f"this {kind} was made in process {self._process} and cannot be used in process {os.getpid()}, a fork of "
                f"it: make a new {kind} after the fork" + (", under a name of its own" if kind == "Producer" else "")
            )

    def close(self) -> None:
        if self._socket is not None and self._handshake is not None and self.ours:
            self._handshake.close()
            self._socket.close()
            self._socket = None

    def send(self, message: list[frames.Buffer]) -> None:
        """Raises Refused where the daemon does not let this client in, Unreachable where there is no room for too long."""
        socket, handshake = self._opened()
        with contextlib.suppress(zmq.Again):
            socket.send_multipart(message, zmq.NOBLOCK, copy=False)
            return
        with self._turned_away():
            if not handshake.wait_for_room(max(1, int(1000 * self.timeout))):
                raise Unreachable(f"{self.endpoint}: has taken no message for {self.timeout:g} s: nothing there reads them")
        socket.send_multipart(message, copy=False)

    def receive(self, timeout_ms: float) -> tuple[dict[str, Any], NamedArrays] | None:
        """The next message within the time, or None. Raises Refused where the daemon does not let this client in."""
        socket, handshake = self._opened()
        with self._turned_away():
            if not handshake.wait(max(0, math.ceil(timeout_ms))):
                return None
        parts = socket.recv_multipart(copy=False)
        envelope = frames.parse([part.buffer for part in parts], message_bytes=1 << 40)
        names = [spec["name"] for spec in envelope.header.get("arrays", [])]
        return envelope.header, frames.open_arrays(envelope, names)

    def sources(self) -> tuple[zmq.Socket[bytes], ...]:
        """What can be read where `receive` has anything to do; nothing while it is closed."""
        return () if self._socket is None or self._handshake is None else self._handshake.sources

    def take_cut(self) -> bool:
        """As of `Handshake`."""
        return self._handshake is not None and self._handshake.take_cut()

    @contextlib.contextmanager
    def _turned_away(self) -> Iterator[None]:
        try:
            yield
        except Refused:
            self.close()  # ZeroMQ would go on trying, ten times a second
            raise

    def _opened(self) -> tuple[zmq.Socket[bytes], Handshake]:
        """The socket, opened again if it was turned away: the daemon may have been told of this key by now."""
        if self._socket is None or self._handshake is None:
            self.open()
        assert self._socket is not None
        assert self._handshake is not None
        return self._socket, self._handshake
