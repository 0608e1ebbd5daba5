"""Requests and their answers, one after another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, Self

from streamcl.client.connection import Connection
from streamcl.errors import Refused, Unreachable
from streamcl.handshake import KeysGiven, ServerGiven, client_keys
from streamcl.protocol import frames
from streamcl.protocol.frames import Array, NamedArrays
from streamcl.protocol.patience import Patience

PING_SECONDS = 5.0  # how often a patient request checks that the daemon is still alive


class Requester:
    """Sends one request and waits for the reply that carries its id."""

    def __init__(self, endpoint: str, timeout: float, keys: KeysGiven = None, server_key: ServerGiven = None) -> None:
        self.timeout = timeout
        self._ids: Iterator[int] = iter(range(1, 2**62))
        self._lock = threading.Lock()  # between threads, of which one at a time asks
        self._connection = Connection(endpoint, client_keys(keys, server_key), timeout)
        self._connection.open()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(
        self, header: Mapping[str, Any], arrays: dict[str, Array] | None = None, *, patient: bool = False
    ) -> tuple[dict[str, Any], NamedArrays]:
        """Ask and wait for the answer; `patient`: for as long as the daemon shows that it is at work."""
        self._connection.check_process(type(self).__name__)
        with self._lock:
            return self._answered(next(self._ids), header, arrays, Patience(self.timeout, time.monotonic()), patient)

    def _answered(
        self,
        number: int,
        header: Mapping[str, Any],
        arrays: dict[str, Array] | None,
        patience: Patience,
        patient: bool,
    ) -> tuple[dict[str, Any], NamedArrays]:
        self._connection.send(frames.build({**header, "id": number}, arrays))
        ping = min(PING_SECONDS, self.timeout / 4)
        while (left := patience.end - time.monotonic()) > 0:
            received = self._connection.receive(1000 * min(left, ping))
            if received is None and patient:
                self._connection.send(frames.build({"type": "status", "id": 0}))
            elif received is not None and received[0].get("id") == number:
                return self._checked(received)
            elif received is not None and patient and received[0]["type"] == "ok":
                patience.told(received[0].get("working", True), received[0].get("waiting"), time.monotonic())
        self._connection.open()  # a late answer must not be taken for that of the next request
        if patience.heard:
            raise Unreachable(
                f"{self._connection.endpoint}: {header['type']!r} is not done: {patience.reason()}; the daemon goes on "
                "with it when it can"
            )
        raise Unreachable(
            f"{self._connection.endpoint}: no answer to {header['type']!r} within {self.timeout:g} s; "
            "is a daemon running there (`streamcl serve`)?"
        )

    @staticmethod
    def _checked(received: tuple[dict[str, Any], NamedArrays]) -> tuple[dict[str, Any], NamedArrays]:
        header = received[0]
        if header["type"] in ("error", "nack"):
            raise Refused(header["code"], header["message"], retryable=header.get("retryable", False))
        return received
