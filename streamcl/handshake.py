"""A client's key and its handshakes: a client that is not let in is told why, at once, instead of waiting for ever.

ZeroMQ itself says nothing to a client that is turned away; it goes on trying. Only the socket's monitor knows.
"""

from __future__ import annotations

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from streamcl import keys
from streamcl.errors import ConfigError, Refused
from streamcl.keys import Keys

KeysGiven = Keys | str | os.PathLike[str] | None
ServerGiven = str | os.PathLike[str] | None
MISMATCH = 0x11000002  # ZMQ_PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
FAILURES = 3  # handshakes without a reason given, one after another: a daemon that is stopping causes one
EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_DISCONNECTED
)
_numbers = itertools.count()


def client_keys(given: KeysGiven, server: ServerGiven = None) -> Keys | None:
    """The keys a client was given: a `Keys`, or a secret file's path; and the daemon's public key or its file.

    Raises ConfigError if one is given without the other.
    """
    pair = given if given is None or isinstance(given, Keys) else keys.load(Path(given))
    if pair is None:
        if server is not None:
            raise ConfigError(
                "the daemon's public key was given, but this client has no key of its own; make one with `streamcl keygen`"
            )
        return None
    if server is not None:
        pair = replace(pair, server=keys.public_key(server))
    if pair.server is None:
        raise ConfigError(f"key {pair.name or pair.public}: expected the daemon's public key beside it (server_key)")
    return pair


class Handshake:
    """Watches one DEALER socket, from before it connects."""

    def __init__(self, socket: zmq.Socket[bytes], endpoint: str, pair: Keys | None) -> None:
        self._socket, self._endpoint, self._keys = socket, endpoint, pair
        if pair is not None:
            socket.setsockopt_string(zmq.CURVE_SERVERKEY, str(pair.server))
            socket.setsockopt_string(zmq.CURVE_PUBLICKEY, pair.public)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, pair.secret)
        name = f"inproc://handshake-{next(_numbers)}"
        socket.monitor(name, EVENTS)
        self._monitor: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.PAIR)
        self._monitor.setsockopt(zmq.LINGER, 0)
        self._monitor.connect(name)
        self._messages, self._room = zmq.Poller(), zmq.Poller()
        for poller, direction in ((self._messages, zmq.POLLIN), (self._room, zmq.POLLOUT)):
            poller.register(socket, direction)
            poller.register(self._monitor, zmq.POLLIN)
        self._failures = 0
        self._cut = False

    def take_cut(self) -> bool:
        """Whether the connection has ended since this was last asked, as far as `wait` has seen; what was on its way is
        lost."""
        cut, self._cut = self._cut, False
        return cut

    def wait(self, timeout_ms: int) -> bool:
        """Whether a message arrives within the time; raises Refused ``not_allowed`` once the client is turned away."""
        return self._wait(self._messages, timeout_ms)

    def wait_for_room(self, timeout_ms: int) -> bool:
        """Whether a message can be sent within the time; raises as `wait`. Of a client that is turned away before it has
        sent anything, ZeroMQ takes no message any more."""
        return self._wait(self._room, timeout_ms)

    def _wait(self, poller: zmq.Poller, timeout_ms: int) -> bool:
        deadline = time.monotonic() + timeout_ms / 1000
        while True:
            ready = dict(poller.poll(max(0, int(1000 * (deadline - time.monotonic())))))
            if self._monitor not in ready:
                return self._socket in ready
            self._take(parse_monitor_message(self._monitor.recv_multipart()))

    @property
    def sources(self) -> tuple[zmq.Socket[bytes], ...]:
        """What can be read where `wait` has anything to do."""
        return self._socket, self._monitor

    def close(self) -> None:
        """Stop watching; before the socket is closed."""
        self._socket.monitor(None, 0)
        self._monitor.close()

    def _take(self, event: Any) -> None:
        match event["event"]:
            case zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._failures = 0
            case zmq.EVENT_DISCONNECTED:
                self._cut = True
            case zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                public = self._keys.public if self._keys else "none"
                raise self._refused(
                    f"the daemon does not know this client's key, {public}; have a role granted to it in the daemon's "
                    f"policy"
                )
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL if int(event["value"]) == MISMATCH and self._keys is None:
                raise self._refused(
                    "the daemon only lets in clients with a key; give one (keys=, or --key on the command line)"
                )
            case zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL if int(event["value"]) == MISMATCH:
                raise self._refused(
                    "the daemon has no key, so nothing would be encrypted; configure security.server_key there, or leave "
                    "this client's key out"
                )
            case _ if self._keys is not None:
                self._failures += 1
                if self._failures >= FAILURES:
                    raise self._refused(
                        f"the handshake failed {FAILURES} times: the daemon's public key is not {self._keys.server}, "
                        "or the daemon has no key at all"
                    )

    def _refused(self, text: str) -> Refused:
        return Refused("not_allowed", f"{self._endpoint}: {text}")
