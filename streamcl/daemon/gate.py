"""The gate before a process's sockets: a thread that lets connections in, and ends those that take too much.

Guarantees, whatever a peer does, with or without a key:
  * With keys, a handshake succeeds only for a key that the policy knows at that moment (ZAP, RFC 27).
  * At most `most_peers` connections a process, half-open ones included, so that files can always be opened.
  * A connection holds no more than about `UNFINISHED_BYTES` of a message that it does not finish; all connections together
    no more than `ALL_UNFINISHED_BYTES`. ZeroMQ itself bounds one frame, not how many a message has.
The loop that reads the sockets says from which connections it has read (`heard`) and when it has read everything
(`drained`); what had arrived before that and is not yet a message is unfinished. Knows nothing of what messages mean.
"""

from __future__ import annotations

import contextlib
import resource
import socket as sockets
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass

import structlog
import zmq
from zmq.utils import z85
from zmq.utils.monitor import parse_monitor_message

from streamcl.protocol.frames import HEADER_BYTES, MESSAGE_BYTES

DOMAIN = b"streamcl"
ZAP = "inproc://zeromq.zap.01"
UNFINISHED_BYTES = MESSAGE_BYTES + HEADER_BYTES + (16 << 20)
ALL_UNFINISHED_BYTES = 2 << 30
MOST_PEERS = 4096
KEPT_DESCRIPTORS = 512  # never given to connections: the log, HTTP, libraries
LOOK_MS = 100
NOTES = 1000
EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_MONITOR_STOPPED
)
_RECEIVED = struct.Struct("<Q")
_RECEIVED_AT = 128  # tcpi_bytes_received in struct tcp_info (Linux 4.1)


@dataclass(slots=True)
class Connection:
    """What one connection has sent: in all, when last looked at, and when a whole message was last taken from it."""

    received: int = 0
    finished: int = 0


class Gate:
    """Watches the sockets given to `guard`; the thread ends with them.

    secret: the daemon's CURVE key, in Z85, or None for sockets without keys. admits: whether a public key is let in.
    """

    def __init__(self, secret: str | None = None, admits: Callable[[str], bool] = lambda key: True) -> None:
        self.secret = secret
        self.admits = admits
        self.most_peers = min(MOST_PEERS, max(64, _descriptors() - KEPT_DESCRIPTORS))
        self.unfinished_bytes = UNFINISHED_BYTES
        self.heard: set[int] = set()
        self.drained = 0
        self.notes: deque[tuple[str, str | None]] = deque(maxlen=NOTES)
        self.counts: Counter[str] = Counter()
        self._connections: dict[tuple[int, int], Connection] = {}
        self._drained_before = 0
        self._monitors: list[zmq.Socket[bytes]] = []
        self._zap: zmq.Socket[bytes] | None = None
        self._thread: threading.Thread | None = None

    # -- setting up ----------------------------------------------------------------------------------------------

    def guard(self, socket: zmq.Socket[bytes]) -> None:
        """Put a socket behind the gate; to be called before it is bound, and before `open`."""
        if self.secret is not None:
            socket.setsockopt(zmq.CURVE_SERVER, 1)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, self.secret)
            socket.setsockopt(zmq.ZAP_DOMAIN, DOMAIN)
            socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
            if self._zap is None:
                self._zap = zmq.Context.instance().socket(zmq.REP)
                self._zap.bind(ZAP)
        name = f"inproc://gate-{id(self)}-{len(self._monitors)}"
        socket.monitor(name, EVENTS)
        monitor: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        monitor.setsockopt(zmq.LINGER, 0)
        monitor.connect(name)
        self._monitors.append(monitor)

    def open(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="gate", daemon=True)
        self._thread.start()

    def join(self) -> None:
        """Wait until the thread has let go of its sockets; call it after closing those that it guards."""
        if self._thread is not None:
            self._thread.join(5.0)

    # -- the thread ----------------------------------------------------------------------------------------------

    def _run(self) -> None:
        poller = zmq.Poller()
        watched = dict(enumerate(self._monitors))
        for source in (*self._monitors, *([self._zap] if self._zap else [])):
            poller.register(source, zmq.POLLIN)
        looked = time.monotonic()
        while watched:
            ready = dict(poller.poll(LOOK_MS if self._connections else None))
            if self._zap in ready:
                self._answer()
            for number, monitor in list(watched.items()):
                if monitor in ready and not self._take_events(number, monitor):
                    poller.unregister(watched.pop(number))
                    monitor.close()
            if time.monotonic() - looked > LOOK_MS / 1000:
                looked = time.monotonic()
                self._look()
        if self._zap is not None:
            self._zap.close(0)

    def _answer(self) -> None:
        """One ZAP request: a key that the policy knows becomes the messages' User-Id; any other is turned away."""
        assert self._zap is not None
        version, request, domain, _, _, mechanism, *credentials = self._zap.recv_multipart()
        key = z85.encode(credentials[0]).decode() if mechanism == b"CURVE" and len(credentials) == 1 else ""
        known = version == b"1.0" and domain == DOMAIN and self.admits(key)
        if not known:
            self._note("key refused", key)
        status = (b"200", b"OK", key.encode()) if known else (b"400", b"unknown key", b"")
        self._zap.send_multipart([b"1.0", request, *status, b""])

    def _take_events(self, number: int, monitor: zmq.Socket[bytes]) -> bool:
        """Connections that came and went; False once the socket behind the gate is closed."""
        while True:
            try:
                event = parse_monitor_message(monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return True
            match event["event"]:
                case zmq.EVENT_MONITOR_STOPPED:
                    return False
                case zmq.EVENT_ACCEPTED:
                    self._accepted(number, int(event["value"]))
                case zmq.EVENT_DISCONNECTED:
                    self._connections.pop((number, int(event["value"])), None)
                case _:
                    self.counts["handshake failed"] += 1

    def _accepted(self, number: int, descriptor: int) -> None:
        if len(self._connections) >= self.most_peers:
            self._note("too many connections", None)
            _end(descriptor)
        self._connections[number, descriptor] = Connection()

    def _look(self) -> None:
        """End connections that hold more of an unfinished message than they may; the worst, if all of them do."""
        heard, self.heard = self.heard, set()
        drained, self._drained_before = self.drained > self._drained_before, self.drained
        total, worst, most = 0, None, 0
        for (number, descriptor), connection in list(self._connections.items()):
            before, connection.received = connection.received, _bytes_received(descriptor)
            if descriptor in heard:
                connection.finished = before
            unfinished = before - connection.finished if drained else 0
            total += unfinished
            if unfinished > most:
                worst, most = (number, descriptor), unfinished
        if worst is not None and (most > self.unfinished_bytes or total > ALL_UNFINISHED_BYTES):
            self._note("message without end", None)
            _end(worst[1])

    def _note(self, what: str, key: str | None) -> None:
        self.counts[what] += 1
        self.notes.append((what, key))
        if what != "key refused":
            structlog.get_logger().warning("ended a connection", reason=what)


def _descriptors() -> int:
    """How many files this process may have open, after raising the limit as far as allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * MOST_PEERS + KEPT_DESCRIPTORS
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(wanted, hard) if hard > 0 else wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _bytes_received(descriptor: int) -> int:
    """What a TCP connection has received in total; 0 for others."""
    try:
        socket = sockets.socket(fileno=descriptor)
    except OSError:  # gone, and its event is on the way
        return 0
    try:
        information = socket.getsockopt(sockets.IPPROTO_TCP, sockets.TCP_INFO, _RECEIVED_AT + _RECEIVED.size)
        return int(_RECEIVED.unpack_from(information, _RECEIVED_AT)[0])
    except (OSError, struct.error):
        return 0
    finally:
        socket.detach()  # it is ZeroMQ's


def _end(descriptor: int) -> None:
    """Shut a connection down; ZeroMQ notices, and drops what it holds of it."""
    with contextlib.suppress(OSError):
        socket = sockets.socket(fileno=descriptor)
        try:
            socket.shutdown(sockets.SHUT_RDWR)
        finally:
            socket.detach()
