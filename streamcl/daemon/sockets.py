"""ROUTER sockets as the daemon uses them: bounded before bind, peers by routing id, replies that never block.

With keys, a peer is also identified by its key and its connection. A reply goes to that connection or nowhere: whoever
takes over another's routing id gets none of its replies.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket as socket_module
import struct
import termios
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zmq

from streamcl.config import is_ipv6
from streamcl.daemon.gate import Gate
from streamcl.errors import ConfigError, Refused
from streamcl.protocol.frames import MESSAGE_BYTES, Buffer, is_delimited

RECEIVE_QUEUE = 16  # messages a peer that ZeroMQ buffers; the rest waits in the peer's TCP window
SEND_QUEUE = 1000
LARGE_BYTES = 1 << 20  # a reply of this size waits for the peer to have read those before
UNREAD_BYTES = 2 << 20
BURST = 64

_locks: dict[str, int] = {}  # of ipc paths, held until the process ends


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a reply goes. delimited: it starts with an empty frame. waits_for_one: a REQ socket, one reply each.

    key: the peer's public key, empty without security. connection: descriptor and inode of its connection.
    """

    routing_id: bytes
    delimited: bool
    waits_for_one: bool
    key: str = ""
    connection: tuple[int, int] = (-1, 0)


class Router:
    """A bound ROUTER socket, behind a gate."""

    def __init__(self, socket: zmq.Socket[bytes], gate: Gate) -> None:
        self.socket, self.gate = socket, gate

    def receive(self) -> Iterator[tuple[Peer, list[Buffer]]]:
        """What has arrived, without waiting."""
        return receive(self.socket, self.gate)

    def send(self, peer: Peer, message: Sequence[Buffer]) -> None:
        """Reply to a peer; never waits."""
        send(self.socket, peer, message)

    @property
    def endpoint(self) -> str:
        """Where it is bound, its port resolved."""
        return endpoint(self.socket)

    def close(self) -> None:
        """Close, giving replies on their way a second."""
        close(self.socket)


def bind_router(endpoint: str, gate: Gate | None = None) -> zmq.Socket[bytes]:
    """A bound ROUTER socket with every limit set before the bind; raises ConfigError if it cannot bind."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    for option, value in (
        (zmq.LINGER, 1000),
        (zmq.ROUTER_MANDATORY, 1),
        (
            zmq.MAXMSGSIZE,
            2 * MESSAGE_BYTES,
        ),  # beyond the protocol's own limit, so that the reply can be `too_large`
        (zmq.RCVHWM, RECEIVE_QUEUE),
        (zmq.SNDHWM, SEND_QUEUE),
        (zmq.HANDSHAKE_IVL, 10_000),
        (zmq.HEARTBEAT_IVL, 10_000),
        (zmq.HEARTBEAT_TIMEOUT, 30_000),
        (zmq.BACKLOG, 128),
    ):
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.IPV6, int(is_ipv6(endpoint)))
    if gate is not None:
        gate.guard(socket)
    mask = os.umask(0o177)  # an ipc socket is its owner's alone from the first moment
    try:
        _lock_path(endpoint)
        socket.bind(endpoint.replace("tcp://*:", "tcp://0.0.0.0:"))
    except (zmq.ZMQError, OSError) as error:
        socket.close(0)
        raise ConfigError(
            f"endpoint {endpoint}: cannot listen there: {cannot_listen(error, endpoint)}, or give this socket another "
            "endpoint (--endpoints.stream, .predict, .admin; port 0 is any free one)"
        ) from None
    finally:
        os.umask(mask)
    return socket


def cannot_listen(error: OSError | zmq.ZMQError, endpoint: str) -> str:
    """Why an endpoint cannot be bound, by the system's word, and what to do: the first half of a remedy."""
    reason = error.strerror or str(error)
    match error.errno:
        case errno.EADDRINUSE | errno.EWOULDBLOCK:
            return f"{reason}; stop what listens there (another daemon?)"
        case errno.EADDRNOTAVAIL | errno.ENODEV | errno.EAFNOSUPPORT if is_ipv6(endpoint) and not _has_ipv6():
            return f"{reason}: this machine, or this container, has no IPv6; enable it (net.ipv6.conf.all.disable_ipv6 = 0)"
        case errno.EADDRNOTAVAIL | errno.ENODEV | socket_module.EAI_NONAME:
            return f"{reason}: no network interface of this machine has that address; use one that it has"
        case errno.EACCES | errno.EPERM:
            return f"{reason}; low ports and other users' paths need more rights: use a higher port or a path of your own"
    return f"{reason}; use an address and port of this machine"


def _has_ipv6() -> bool:
    try:
        with socket_module.create_server(("::1", 0), family=socket_module.AF_INET6):
            return True
    except OSError:
        return False


def _lock_path(endpoint: str) -> None:
    """A second bind on a live ipc path would silently take it over: hold a lock beside it."""
    path = endpoint.removeprefix("ipc://")
    if path == endpoint or path == "*" or path in _locks:
        return
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    _locks[path] = descriptor


def receive(socket: zmq.Socket[bytes], gate: Gate | None = None, most: int = BURST) -> Iterator[tuple[Peer, list[Buffer]]]:
    """Up to `most` messages that have arrived, without waiting: the peer and the frames behind its routing id."""
    secured = gate is not None and gate.secret is not None
    for _ in range(most):
        try:
            routing_id, *parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            if gate is not None:
                gate.drained += 1
            return
        buffers: list[Buffer] = [part.buffer for part in parts]
        kind = parts[0].get("Socket-Type") if parts else ""
        key, connection = "", (-1, 0)
        if gate is not None and parts:
            descriptor = parts[0].get(zmq.SRCFD)
            gate.heard.add(descriptor)
            key, connection = _identity(parts[0], descriptor) if secured else ("", (descriptor, 0))
        yield Peer(routing_id.bytes, is_delimited(buffers), kind == "REQ", key, connection), buffers


def _identity(part: zmq.Frame, descriptor: int) -> tuple[str, tuple[int, int]]:
    """A peer's key, and its connection in a way that outlasts the descriptor's reuse."""
    return str(part.get("User-Id")), (descriptor, _inode(descriptor))


def _inode(descriptor: int) -> int:
    try:
        return os.fstat(descriptor).st_ino
    except OSError:
        return -1


def check_reads(peer: Peer, message: Sequence[Buffer]) -> None:
    """Raise Refused ``no_credit`` if a large reply would only pile up, since the peer has not read those before it."""
    if peer.connection[0] < 0 or sum(len(part) for part in message) < LARGE_BYTES:
        return
    with contextlib.suppress(OSError):
        (unread,) = struct.unpack("i", fcntl.ioctl(peer.connection[0], termios.TIOCOUTQ, b"\0\0\0\0"))
        if unread > UNREAD_BYTES:
            raise Refused("no_credit", "the replies before this one have not been read; read them first", retryable=True)


def send(socket: zmq.Socket[bytes], peer: Peer, message: Sequence[Buffer]) -> None:
    """Reply to a peer; one that has gone or does not read loses the reply, and nothing waits for it."""
    if peer.key and _inode(peer.connection[0]) != peer.connection[1]:
        return  # its connection has ended; whoever has its routing id now is somebody else
    with contextlib.suppress(zmq.ZMQError):
        socket.send_multipart([peer.routing_id, *message], zmq.NOBLOCK, copy=False)


def close(socket: zmq.Socket[bytes]) -> None:
    """Close, giving replies on their way a second."""
    socket.close(1000)


def endpoint(socket: zmq.Socket[bytes]) -> str:
    """Where a socket is bound, its port resolved."""
    return bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
