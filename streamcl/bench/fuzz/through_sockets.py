"""Hostile messages through real sockets, from keys with every right but `admin`, around a clean stream.

No process may end, no question of an honest client may go unanswered, no reply may be outside the contract, memory and file
handles must not grow, and the posterior at the end must be bitwise that of the clean stream alone.
"""

from __future__ import annotations

import contextlib
import json
import random
import socket as sockets
import tempfile
import time
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from streamcl.bench.faults.soak import anonymous_kib
from streamcl.bench.fuzz.bench import SOCKETS, WARM_SHARE, Found
from streamcl.bench.fuzz.contract import breach
from streamcl.bench.fuzz.mutants import CLASSES, CLEAN, FEATURES, mutant
from streamcl.bench.local import LocalDaemon
from streamcl.client import Admin, Producer, Reader
from streamcl.errors import StreamclError
from streamcl.keys import Keys, write

TREE = {"model": {"args": {"hidden": [16]}, "classes": CLASSES}, "train": {"epochs": 2}}
STEPS = 100  # batches of the clean stream
BATCHES = 10  # a task
TOGETHER = 50  # hostile messages between two honest questions
ANSWER_MS = 20_000
HEARERS = ("ingest", "predictor")  # the trainer never meets a hostile message
GROWTH_KIB = 16 * 1024
GREETINGS = (
    b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48),
    b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0CURVE" + bytes(47),
    b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    b"\xff" * 64,
    b"",
)


def key_pair(directory: Path, name: str, server: str | None = None) -> Keys:
    """A new key pair, in files as well."""
    public, secret = (key.decode() for key in zmq.curve_keypair())
    keys = Keys(public, secret, name, server)
    write(directory, keys)
    return keys


Grants = dict[str, dict[str, Any]]


def keyed_daemon(home: Path, grants: Grants, tree: dict[str, Any]) -> tuple[LocalDaemon, dict[str, Keys]]:
    """A daemon that lets in these names, each with its grant; and their keys."""
    server = key_pair(home, "daemon")
    keys = {name: key_pair(home, name, server.public) for name in grants}
    lines = []
    for name, grant in grants.items():
        given = {"key": keys[name].public, "name": name, **grant}
        lines += ["[[grant]]", *(f"{field} = {json.dumps(value)}" for field, value in given.items())]
    (home / "policy.toml").write_text("\n".join(lines) + "\n")
    security = {"server_key": str(home / "daemon.key"), "policy": str(home / "policy.toml")}
    return LocalDaemon({**tree, "security": security}, home / "state"), keys


GRANTS: Grants = {
    "honest": {"roles": ["produce", "predict", "read", "admin"], "producers": [CLEAN]},
    "hostile": {"roles": ["produce", "predict", "read"], "producers": ["hostile*"]},
}


class Hostile:
    """A hostile key's connections, and what came back on them."""

    def __init__(self, daemon: LocalDaemon, keys: Keys, found: Found) -> None:
        self.daemon, self.found = daemon, found
        self.sockets = {name: _dealer(daemon.endpoints[name], keys) for name in SOCKETS}

    def send(self, rng: random.Random, number: int) -> None:
        """A number of messages, and now and then bytes that are not even ZeroMQ."""
        for _ in range(number):
            name = rng.choice(SOCKETS)
            with contextlib.suppress(zmq.Again):
                self.sockets[name].send_multipart(mutant(rng, name), zmq.NOBLOCK)
                self.found.messages += 1
        _greet_wrongly(rng, self.daemon)
        self.hear(0)

    def hear(self, wait_ms: int) -> None:
        """Check every reply that has come."""
        for name, socket in self.sockets.items():
            while socket.poll(wait_ms):
                reply = socket.recv_multipart()
                wrong = breach(name, reply)
                header = {} if wrong else msgpack.unpackb(reply[0] or reply[1])
                self.found.replies[header.get("code") or header.get("type", "?")] += 1
                if wrong is not None:
                    self.found.broken.append(wrong)

    def close(self) -> None:
        """End."""
        for socket in self.sockets.values():
            socket.close(0)


def _dealer(endpoint: str, keys: Keys) -> zmq.Socket[bytes]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt_string(zmq.CURVE_SERVERKEY, str(keys.server))
    socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
    socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
    socket.connect(endpoint)
    return socket


def _greet_wrongly(rng: random.Random, daemon: LocalDaemon) -> None:
    """A TCP connection to any port, with the beginning of some greeting, or noise."""
    address = rng.choice(list(daemon.endpoints.values())).removeprefix("tcp://")
    host, _, port = address.rpartition(":")
    with contextlib.suppress(OSError), sockets.create_connection((host, int(port)), timeout=1) as connection:
        raw = bytearray(rng.choice(GREETINGS) + rng.randbytes(rng.choice((0, 10, 200))))
        if raw:
            raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        connection.sendall(raw[: rng.randint(0, len(raw))])


def _batch(number: int) -> tuple[Any, Any]:
    rng = np.random.default_rng(number)
    return rng.normal(size=(8, FEATURES)).astype("<f4"), rng.integers(0, CLASSES, 8)


def campaign(messages: int, seed: int) -> Found:
    """Hostile messages around a clean stream, and the clean stream alone."""
    found = Found()
    with tempfile.TemporaryDirectory(prefix="streamcl-fuzz-") as home:
        for place in ("attacked", "alone"):
            (Path(home) / place).mkdir()
        attacked = _learn(Path(home) / "attacked", messages, seed, found)
        alone = _learn(Path(home) / "alone", 0, seed, Found())
    found.clean = attacked == alone
    if not found.clean:
        found.broken.append("the posterior is not that of the clean stream alone")
    return found


def _learn(home: Path, messages: int, seed: int, found: Found) -> list[bytes]:
    """The clean stream through a daemon, hostile messages between its batches; theta, precision and shift at the end."""
    rng = random.Random(seed)
    daemon, keys = keyed_daemon(home, GRANTS, TREE)
    with (
        daemon,
        Producer(daemon.endpoints["stream"], CLEAN, keys=keys["honest"]) as producer,
        Admin(daemon.endpoints["admin"], keys=keys["honest"]) as admin,
        Reader(daemon.endpoints["predict"], keys=keys["honest"]) as reader,
    ):
        hostile, before = Hostile(daemon, keys["hostile"], found), daemon.children()
        handles: list[int] = []
        for step in range(STEPS):
            ends = step % BATCHES == BATCHES - 1
            producer.send(*_batch(step), f"{CLEAN}-{step // BATCHES}", boundary=ends and step < STEPS - 1)
            if ends:
                continue  # the next task's first batch follows at once: a task of the clean stream is always open
            producer.flush()
            _harass(hostile, rng, messages // (STEPS - STEPS // BATCHES), (admin, reader) if messages else ())
            if step in (int(WARM_SHARE * STEPS), STEPS - 2):
                found.memory.append(sum(anonymous_kib(daemon.children()[role]) for role in HEARERS))
                handles.append(sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in daemon.children().values()))
        producer.boundary(f"{CLEAN}-{(STEPS - 1) // BATCHES}")
        hostile.hear(100)
        hostile.close()
        if daemon.children() != before:
            found.broken.append(f"a process ended: {before} became {daemon.children()}; {daemon.log_text()[-500:]}")
        _check_growth(found, handles)
        vectors = admin.parameters()
    return [vectors.theta.tobytes(), vectors.precision.tobytes(), vectors.shift.tobytes()]


def _harass(hostile: Hostile, rng: random.Random, messages: int, honest: Any) -> None:
    """Hostile messages, and an honest question after every few, which must be answered."""
    while messages > 0:
        hostile.send(rng, min(messages, TOGETHER))
        messages -= TOGETHER
        started = time.perf_counter()
        try:
            for client in honest:
                client.status() if isinstance(client, Admin) else client.predict(_batch(0)[0])
        except StreamclError as error:
            if getattr(error, "code", "") != "not_ready":  # the first batch is still being learned
                hostile.found.broken.append(f"an honest question: {error}")
        hostile.found.slowest = max(hostile.found.slowest, time.perf_counter() - started)


def _check_growth(found: Found, handles: list[int]) -> None:
    if found.memory[1:] and found.memory[-1] - found.memory[0] > GROWTH_KIB:
        found.broken.append(f"memory grew: {found.memory} KiB")
    if handles[1:] and handles[-1] > handles[0] + 64:  # wrong greetings are still being waited for
        found.broken.append(f"file handles: {handles}")
