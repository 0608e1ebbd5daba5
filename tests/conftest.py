"""Shared pieces: one torch thread, a daemon for each test, a client that knows only the contract."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; what the tests start must hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

from streamcl.bench.local import LocalDaemon

ANSWER_MS = 30_000


class PlainClient:
    """ZeroMQ and msgpack, written against the contract alone; uses nothing of streamcl."""

    def __init__(self, endpoint: str, kind: int = zmq.DEALER) -> None:
        self.socket = zmq.Context.instance().socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(endpoint)

    def send(self, kind: str, arrays: dict[str, Any] | None = None, **fields: Any) -> None:
        arrays = {name: np.ascontiguousarray(array) for name, array in (arrays or {}).items()}
        header = {"v": 1, "type": kind, **fields}
        if arrays:
            header["arrays"] = [{"name": name, "dtype": a.dtype.str, "shape": list(a.shape)} for name, a in arrays.items()]
        self.raw(msgpack.packb(header), *(a.tobytes() for a in arrays.values()))

    def raw(self, *parts: bytes) -> None:
        self.socket.send_multipart(parts)

    def receive(self) -> dict[str, Any]:
        assert self.socket.poll(ANSWER_MS), "no answer"
        header, *self.payloads = self.socket.recv_multipart()
        answer: dict[str, Any] = msgpack.unpackb(header)
        assert answer["v"] == 1
        return answer

    def ask(self, kind: str, arrays: dict[str, Any] | None = None, **fields: Any) -> dict[str, Any]:
        self.send(kind, arrays, **fields)
        return self.receive()

    def receive_until(self, kind: str) -> dict[str, Any]:
        while (answer := self.receive())["type"] != kind:
            pass
        return answer

    def arrays(self, answer: dict[str, Any]) -> dict[str, Any]:
        return {
            spec["name"]: np.frombuffer(raw, spec["dtype"]).reshape(spec["shape"])
            for spec, raw in zip(answer["arrays"], self.payloads, strict=True)
        }

    def close(self) -> None:
        self.socket.close()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What commands cache for later runs stays in the tests' directory."""
    os.environ["XDG_CACHE_HOME"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def connect() -> Iterator[Callable[..., PlainClient]]:
    """Makes plain clients and closes them."""
    made: list[PlainClient] = []

    def make(endpoint: str, kind: int = zmq.DEALER) -> PlainClient:
        made.append(PlainClient(endpoint, kind))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., LocalDaemon]]:
    """Starts daemons and ends them, whatever the test does."""
    started: list[LocalDaemon] = []

    def make(tree: dict[str, Any] | None = None, name: str = "state") -> LocalDaemon:
        started.append(LocalDaemon(tree or {}, tmp_path / name).start())
        return started[-1]

    yield make
    for daemon in started:
        daemon.kill()
