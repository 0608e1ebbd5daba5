"""ROUTER sockets as the daemon uses them: bounded before bind, peers by routing id, replies that never block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import zmq

from streamcl.errors import ConfigError
from streamcl.protocol.frames import MESSAGE_BYTES, Buffer, is_delimited

RECEIVE_QUEUE = 16  # messages a peer that ZeroMQ buffers; the rest waits in the peer's TCP window
SEND_QUEUE = 1000
BURST = 64


@dataclass(frozen=True, slots=True)
class Peer:
    """Where a reply goes. delimited: it starts with an empty frame. waits_for_one: a REQ socket, one reply each."""

    routing_id: bytes
    delimited: bool
    waits_for_one: bool


def bind_router(endpoint: str) -> zmq.Socket[bytes]:
    """A bound ROUTER socket with every limit set before the bind; raises ConfigError where it cannot bind."""
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    for option, value in (
        (zmq.LINGER, 1000),
        (zmq.ROUTER_MANDATORY, 1),
        (
            zmq.MAXMSGSIZE,
            2 * MESSAGE_BYTES,
        ),  # beyond the protocol's own limit, so that `too_large` can be said
        (zmq.RCVHWM, RECEIVE_QUEUE),
        (zmq.SNDHWM, SEND_QUEUE),
        (zmq.HANDSHAKE_IVL, 10_000),
        (zmq.HEARTBEAT_IVL, 10_000),
        (zmq.HEARTBEAT_TIMEOUT, 30_000),
        (zmq.BACKLOG, 128),
    ):
        socket.setsockopt(option, value)
    try:
        socket.bind(endpoint.replace("tcp://*:", "tcp://0.0.0.0:"))
    except zmq.ZMQError as error:
        socket.close(0)
        raise ConfigError(f"endpoint {endpoint}: cannot listen there: {error}; is another daemon running?") from None
    return socket


def receive(socket: zmq.Socket[bytes], most: int = BURST) -> Iterator[tuple[Peer, list[Buffer]]]:
    """Up to `most` messages that have arrived, without waiting: the peer and the frames behind its routing id."""
    for _ in range(most):
        try:
            routing_id, *parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return
        buffers: list[Buffer] = [part.buffer for part in parts]
        kind = parts[0].get("Socket-Type") if parts else ""
        yield Peer(routing_id.bytes, is_delimited(buffers), kind == "REQ"), buffers


def send(socket: zmq.Socket[bytes], peer: Peer, message: Sequence[Buffer]) -> None:
    """Reply to a peer; one that has gone or does not read loses the reply, and nobody waits for it."""
    with contextlib.suppress(zmq.ZMQError):
        socket.send_multipart([peer.routing_id, *message], zmq.NOBLOCK, copy=False)


def close(socket: zmq.Socket[bytes]) -> None:
    """Close, giving replies on their way a second."""
    socket.close(1000)


def endpoint(socket: zmq.Socket[bytes]) -> str:
    """Where a socket is bound, its port resolved."""
    return bytes(socket.getsockopt(zmq.LAST_ENDPOINT)).rstrip(b"\0").decode()
