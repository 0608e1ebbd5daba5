"""Shared pieces: one torch thread, a daemon for each test, a client that knows only the contract."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; what the tests start must hear Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

from zygote import Zygote

from streamcl.bench.local import LocalDaemon

ANSWER_MS = 60_000


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


USERS_WAY = {"test_faults", "test_deaths", "test_nursery", "test_notify", "test_afternoon", "test_logs", "test_speed"}


class _Starting:
    """How daemons start: from a warm process, made when it is needed first; in some modules' campaigns, as by users."""

    def __init__(self) -> None:
        self.zygote: Zygote | None = None

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Before any fixture, those of a module among them."""
        as_users = item.get_closest_marker("campaign") and item.path.stem in USERS_WAY
        LocalDaemon.popen = subprocess.Popen if as_users else self._popen

    def _popen(self, arguments: list[str], **how: Any) -> Any:
        self.zygote = self.zygote or Zygote()
        return self.zygote.popen(arguments, **how)

    def pytest_sessionfinish(self) -> None:
        """The warm process is no longer needed."""
        if self.zygote is not None:
            self.zygote.end()


class _Drawing:
    """A test draws the same numbers whatever ran before it in its process, by the global generators and its module's."""

    def __init__(self) -> None:
        self.states: dict[Any, list[tuple[np.random.Generator, Any]]] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Where the modules' own generators stand once all are imported."""
        for module in {getattr(item, "module", None) for item in session.items} - {None}:
            found = [each for each in vars(module).values() if isinstance(each, np.random.Generator)]
            self.states[module] = [(each, each.bit_generator.state) for each in found]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Before any fixture."""
        random.seed(0)
        np.random.seed(0)
        if "torch" in sys.modules:
            sys.modules["torch"].manual_seed(0)
        for generator, state in self.states.get(getattr(item, "module", None), ()):
            generator.bit_generator.state = state


def pytest_configure(config: pytest.Config) -> None:
    """Daemons start fast; Hypothesis asks for no speed; nothing is drawn by chance."""
    settings.register_profile("loaded", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("loaded")
    config.pluginmanager.register(_Drawing())
    if sys.platform == "linux":
        config.pluginmanager.register(_Starting())


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
