"""Peers that use up the daemon's memory, descriptors and time: each is bounded, and an honest client is still served."""

from __future__ import annotations

import contextlib
import socket as sockets
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from prometheus_client import CollectorRegistry
from waiting import PATIENCE, until

from streamcl.bench.faults.soak import anonymous_kib
from streamcl.bench.fuzz.through_sockets import keyed_daemon
from streamcl.bench.local import FREE_ENDPOINTS, LocalDaemon
from streamcl.client import Admin, Producer, Reader
from streamcl.config import from_tree
from streamcl.daemon import connections, waiting
from streamcl.daemon import gate as gates
from streamcl.daemon import sockets as routers
from streamcl.daemon.admin import MOST_WAITING, Later, Request
from streamcl.daemon.channel import Channel
from streamcl.daemon.ingest import Service
from streamcl.daemon.ingest import start as start_ingest
from streamcl.daemon.linux import processor_seconds
from streamcl.daemon.metrics import MAX_LABELS, Metrics
from streamcl.daemon.waiting import Pending, Queues
from streamcl.errors import ConfigError, Refused
from streamcl.keys import Keys
from streamcl.protocol import frames, messages
from streamcl.protocol.session import StreamSession, Terms

pytestmark = pytest.mark.campaign

MIB = 1024  # KiB
TREE: dict[str, Any] = {"model": {"args": {"hidden": [8]}, "classes": 3}, "train": {"epochs": 1}}
GRANTS: dict[str, dict[str, Any]] = {
    "honest": {"roles": ["produce", "predict", "admin"], "producers": ["honest"]},
    "hostile": {"roles": ["produce", "predict", "read"], "producers": ["*"]},
}
X = np.ones((4, 4), "<f4")


class Attacked:
    """A daemon with keys, its honest clients, and what it holds."""

    def __init__(self, daemon: LocalDaemon, keys: dict[str, Keys]) -> None:
        self.daemon, self.keys = daemon, keys
        self.producer = Producer(daemon.endpoints["stream"], "honest", keys=keys["honest"])
        self.admin = Admin(daemon.endpoints["admin"], keys=keys["honest"])
        self.reader = Reader(daemon.endpoints["predict"], keys=keys["honest"])
        self.producer.send(X, np.arange(4) % 3, "task")
        self.producer.flush()
        self.admin.checkpoint()

    def ingest(self) -> int:
        return self.daemon.children()["ingest"]

    def memory(self) -> int:
        return anonymous_kib(self.ingest())

    def handles(self) -> int:
        return len(list(Path(f"/proc/{self.ingest()}/fd").iterdir()))

    def is_served(self) -> None:
        """An honest client's batch, question and request are answered before ingest and predictor have worked 5 s."""
        started = self.worked()
        self.producer.send(X, np.arange(4) % 3, "task")
        self.producer.flush()
        self.reader.predict(X)
        self.admin.status()
        assert self.worked() - started < 5

    def worked(self) -> float:
        """The processor seconds of those who answer: what else the machine does makes no difference."""
        children = self.daemon.children()
        return sum(processor_seconds(children[role]) for role in ("ingest", "predictor"))

    def refused(self, code: str) -> float:
        """How many messages have been refused with this code."""
        return self.admin.metrics().get(f'streamcl_batches_rejected_total{{code="{code}"}}', 0.0)

    def port(self, name: str) -> int:
        return int(self.daemon.endpoints[name].rpartition(":")[2])

    def hostile(self, name: str, **options: int) -> zmq.Socket[bytes]:
        socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        socket.setsockopt(zmq.LINGER, 0)
        for option, value in options.items():
            socket.setsockopt(getattr(zmq, option), value)
        keys = self.keys["hostile"]
        socket.setsockopt_string(zmq.CURVE_SERVERKEY, str(keys.server))
        socket.setsockopt_string(zmq.CURVE_PUBLICKEY, keys.public)
        socket.setsockopt_string(zmq.CURVE_SECRETKEY, keys.secret)
        socket.connect(self.daemon.endpoints[name])
        return socket


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    daemon, keys = keyed_daemon(tmp_path_factory.mktemp("attacked"), GRANTS, TREE)
    with daemon:
        attacked = Attacked(daemon, keys)
        before = daemon.children()
        yield attacked
        assert daemon.children() == before  # nothing ended any of its processes
        for client in (attacked.producer, attacked.admin, attacked.reader):
            client.close()


def note(what: str, kib: int) -> None:
    """The figure, for whoever runs this with -s."""
    print(f"{what}: {kib / MIB:.1f} MiB")


def ask(socket: zmq.Socket[bytes], *parts: bytes) -> dict[str, Any]:
    socket.send_multipart(parts)
    assert socket.poll(1000 * PATIENCE), "no answer"
    answer: dict[str, Any] = msgpack.unpackb(socket.recv_multipart()[0])
    return answer


def test_a_map_bomb_and_deep_nesting_are_refused_before_they_cost_anything(attacked: Attacked) -> None:
    socket, before = attacked.hostile("stream"), attacked.memory()
    bomb = b"\xdd" + struct.pack(">I", 16_000_000) + b"\x80" * 16_000_000
    assert ask(socket, bomb)["code"] == "too_large"
    assert ask(socket, b"\xdf\xff\xff\xff\xff" + b"\x80" * 60_000)["code"] == "bad_header"
    for head in (b"\xdd\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"):
        assert ask(socket, head)["code"] == "bad_header"
    assert ask(socket, b"\x91" * 60_000 + b"\x01")["code"] == "bad_header"
    deep = {"v": 1, "type": "hello", "producer": "deep"}
    assert ask(socket, msgpack.packb(deep)[:-5] + b"\xa4deep")["type"] == "welcome"
    for name in (b"id", b"v", b"type", b"task"):
        nested = (
            b"\x84\xa1v\x01\xa4type\xa5hello\xa8producer\xa1a" + bytes([0xA0 + len(name)]) + name + b"\x91" * 1000 + b"\x01"
        )
        assert ask(socket, nested).get("code", "welcome") in ("bad_header", "too_large", "welcome")
    socket.close()
    note("map bomb", attacked.memory() - before)
    assert attacked.memory() - before < 64 * MIB
    attacked.is_served()


@pytest.mark.parametrize("kind", ["admin", "predict", "stream"])
def test_what_once_ended_a_process_is_refused(attacked: Attacked, kind: str) -> None:
    """Seeds of the fuzzer: an id nested deeper than msgpack packs, an empty array of impossible dimensions."""
    socket = attacked.hostile(kind)
    request = {"stream": "hello", "admin": "status", "predict": "predict"}[kind]
    for depth in (509, 510, 511, 600, 1000):
        header = msgpack.packb({"v": 1, "type": request, "producer": "deep", "id": None})
        assert ask(socket, header[:-1] + b"\x91" * depth + b"\x01")["type"]
    socket.close()
    socket = attacked.hostile(kind)
    huge = [{"name": "x", "dtype": "<f4", "shape": [0, 2**47, 2**47]}]
    unsound = {"v": 1, "type": request, "producer": "huge", "arrays": huge}
    assert ask(socket, msgpack.packb(unsound), b"")["code"] == "bad_array"
    socket.close()
    attacked.is_served()


def test_a_message_without_end_is_ended(attacked: Attacked) -> None:
    """A frame bomb: one message, frame after frame, 1.5 GB if it were let."""
    socket, before, most = attacked.hostile("stream", SNDHWM=1), attacked.memory(), 0
    frame, sent, refused = bytes(1 << 20), 0, attacked.refused("too_large")
    with contextlib.suppress(zmq.Again):
        socket.setsockopt(zmq.SNDTIMEO, 5000)
        while sent < 1536:
            socket.send(frame, zmq.SNDMORE)
            sent += 1
            if sent % 64 == 0:
                most = max(most, attacked.memory())
        socket.send(b"")

    def ended() -> bool:
        nonlocal most
        most = max(most, attacked.memory())
        return attacked.refused("too_large") > refused

    until(ended)
    socket.close()
    note("frame bomb of 1536 MiB, memory at the most", most - before)
    assert most - before < 512 * MIB
    attacked.is_served()


def test_four_gigabytes_announced_cost_nothing(attacked: Attacked) -> None:
    before = attacked.memory()
    with sockets.create_connection(("127.0.0.1", attacked.port("stream"))) as connection:
        connection.sendall(b"\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL" + bytes(48) + b"\x02" + struct.pack(">Q", 2**32))
        attacked.is_served()
    note("4 GB announced", attacked.memory() - before)
    assert attacked.memory() - before < 16 * MIB


@pytest.mark.campaign
def test_silent_connections_are_bounded_and_ended(attacked: Attacked) -> None:
    before, memory = attacked.handles(), attacked.memory()
    silent = [sockets.create_connection(("127.0.0.1", attacked.port("stream"))) for _ in range(500)]
    attacked.is_served()
    note("500 silent connections", attacked.memory() - memory)
    assert attacked.memory() - memory < 64 * MIB
    until(lambda: attacked.handles() <= before + 8)  # each may take 10 s to shake hands
    for connection in silent:
        connection.close()
    attacked.is_served()


def test_http_on_the_zeromq_port_and_silence_on_the_http_port(attacked: Attacked) -> None:
    host, port = attacked.daemon.endpoints["http"].split(":")
    with sockets.create_connection(("127.0.0.1", attacked.port("stream"))) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: streamcl\r\n\r\n")
        connection.settimeout(20)
        with contextlib.suppress(ConnectionResetError):
            while connection.recv(4096):  # ZeroMQ's greeting, then the end
                pass
    before = attacked.handles()
    silent = [sockets.create_connection((host, int(port))) for _ in range(200)]
    attacked.is_served()
    assert attacked.handles() - before <= 32 + 8  # as many threads as there are at the most
    for connection in silent:
        connection.close()


def test_a_reader_that_does_not_read_bounds_itself(attacked: Attacked) -> None:
    """It asks for 3 GB of parameters or predictions and takes none of them."""
    predictor = attacked.daemon.children()["predictor"]
    before, refused = anonymous_kib(predictor), attacked.refused("no_credit")
    socket = attacked.hostile("predict", RCVHWM=1, RCVBUF=4096)
    x = np.ones((200_000, 4), "|u1")  # answered with 2.4 MB
    header = {"v": 1, "type": "predict", "arrays": [{"name": "x", "dtype": "|u1", "shape": list(x.shape)}]}
    for _ in range(200):
        with contextlib.suppress(zmq.Again):
            socket.send_multipart([msgpack.packb(header), x.tobytes()], zmq.NOBLOCK)
    for _ in range(3):
        attacked.is_served()
    grown = anonymous_kib(predictor) - before
    until(lambda: attacked.refused("no_credit") > refused)  # the predictor reports each second
    codes = set()
    while "no_credit" not in codes:  # behind the answers that were let through
        assert socket.poll(1000 * PATIENCE), "no answer"
        codes.add(msgpack.unpackb(socket.recv_multipart()[0]).get("code"))
    socket.close()
    note("200 answers of 2.4 MB not read", grown)
    assert grown < 256 * MIB


def test_an_answer_larger_than_any_message_is_refused(attacked: Attacked) -> None:
    """A small question of many narrow rows; and a large number of draws."""
    socket = attacked.hostile("predict")
    for rows, samples in ((6_000_000, 0), (100_000, 1000)):  # answered, either would be 72 MB, or 1.2 GB before its mean
        x = np.ones((rows, 4), "|u1")
        header = {"v": 1, "type": "predict", "samples": samples}
        header["arrays"] = [{"name": "x", "dtype": "|u1", "shape": list(x.shape)}]
        assert ask(socket, msgpack.packb(header), x.tobytes())["code"] == "too_large"
    socket.close()
    attacked.is_served()


def test_a_flood_of_hellos_is_bounded(attacked: Attacked) -> None:
    socket, before = attacked.hostile("stream"), attacked.memory()
    for number in range(20_000):
        socket.send(msgpack.packb({"v": 1, "type": "hello", "producer": f"flood-{number}"}))
        if number % 500 == 0:
            while socket.poll(0):
                socket.recv_multipart()
    attacked.is_served()
    socket.close()
    note("20,000 hellos", attacked.memory() - before)
    assert attacked.memory() - before < 64 * MIB


# -- bounds without sockets --------------------------------------------------------------------------------------------


def test_producers_and_tasks_are_bounded() -> None:
    session = StreamSession(Terms(producers=3, tasks=2))
    for number in range(10):
        session.producers.hello(messages.Hello(producer=f"p{number}"))
    assert len(session.producers) == 3
    for state in session.producers.values():
        state.stored = 1
    with pytest.raises(Exception, match=r"stream\.producers"):
        session.producers.hello(messages.Hello(producer="one-too-many"))
    session.closed.update(("a", "b"))
    arrays = frames.NamedArrays({"x": X, "y": np.arange(4) % 3})
    with pytest.raises(Exception, match=r"stream\.tasks"):
        session.admit_batch(next(iter(session.producers)), messages.Batch(seq=2, task="c"), arrays, 100)


def test_label_values_are_bounded() -> None:
    shown = Metrics(CollectorRegistry())
    labels = {shown.label("producer", f"p{number}") for number in range(2 * MAX_LABELS)}
    assert len(labels) == MAX_LABELS + 1
    assert "other" in labels


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """The real ingest behind its real sockets, with a trainer that says nothing; three producers at the most."""
    (up, supervisor), (side, trainer) = Channel.pair(), Channel.pair()
    settings = from_tree({"state_dir": str(tmp_path / "state"), "endpoints": FREE_ENDPOINTS, "stream": {"producers": 3}})
    service = start_ingest(settings, Channel(up), Channel(side))
    yield service
    for end in (supervisor, trainer):
        end.close()
    service.close()


def test_connections_that_said_hello_are_bounded(
    service: Service, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 4)
    clients = [connect(service.stream.endpoint) for _ in range(8)]
    for number, client in enumerate(clients):
        client.send("hello", producer=f"p{number}")
        while not client.socket.poll(0):
            service.turn()
        assert client.receive()["type"] == "welcome"
    known = service.ingest.stream.replies.connections
    assert len(known.identities) == 4
    assert len(known.peers) == 3
    clients[0].send("batch", {"x": X, "y": np.arange(4) % 3}, seq=1, task="a")
    while not clients[0].socket.poll(0):
        service.turn()
    assert clients[0].receive()["code"] == "not_ready"  # it says hello again, and goes on


def test_what_waits_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    held = Queues(most=16)

    def hold(seq: int, nbytes: int) -> None:
        message = messages.Boundary(seq=seq, task="a", barrier={"b": 1})
        held.check_room("p", nbytes)
        held.add("p", Pending(routers.Peer(b"", False, False), message, frames.NamedArrays(), nbytes))

    monkeypatch.setattr(waiting, "WAITING_BYTES", 1000)
    hold(1, 600)
    with pytest.raises(Refused, match="no_credit"):
        hold(2, 600)
    for seq in range(2, 17):
        hold(seq, 1)
    with pytest.raises(Refused, match="no_credit"):
        hold(17, 1)
    assert [each.message.seq for each in held.take_all("p")] == [*range(16, 0, -1)]
    hold(1, 600)  # what does not wait any longer takes no room


def test_requests_that_wait_are_bounded() -> None:
    request = Request(routers.Peer(b"", False, False), None)
    later = Later(checkpoints=dict.fromkeys(range(MOST_WAITING - 1), request))
    later.check_room()
    later.waiting.append((request, messages.AdminBoundary(task="a")))
    with pytest.raises(Refused, match="no_credit"):
        later.check_room()


def test_unfinished_messages_of_all_together_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """None has too much alone; the worst is ended, and only once the loop has taken everything that had arrived."""
    ended: list[int] = []
    received = {1: 300, 2: 400, 3: 100}
    monkeypatch.setattr(gates, "ALL_UNFINISHED_BYTES", 700)
    monkeypatch.setattr(gates, "_bytes_received", received.__getitem__)
    monkeypatch.setattr(gates, "_end", ended.append)
    gate = gates.Gate()
    for descriptor in received:
        gate._connections[0, descriptor] = gates.Connection()
    gate._look()
    gate._look()
    assert ended == []
    gate.drained += 1
    gate._look()
    assert ended == [2]
    gate.heard, gate.drained = {2}, gate.drained + 1
    gate._look()
    assert ended == [2]  # what it sent was a message after all


@pytest.mark.parametrize("damping", [float("nan"), float("inf"), 0.0, -0.5, 1.5])
def test_a_damping_is_a_share(damping: float) -> None:
    with pytest.raises(Exception, match="damping"):
        messages.decode({"type": "revisit", "seq": 1, "task": "a", "damping": damping}, messages.StreamMessage)


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "MOST_PEERS", 3)
    gate = gates.Gate()
    router = routers.bind_router("tcp://127.0.0.1:*", gate)
    gate.open()
    port = int(routers.endpoint(router).rpartition(":")[2])
    many = [sockets.create_connection(("127.0.0.1", port)) for _ in range(6)]
    ended = 0
    for connection in many[3:]:
        connection.settimeout(5)  # sooner than ZeroMQ ends one that does not shake hands
        while connection.recv(64):
            pass
        ended += 1
    assert ended == 3
    many[0].settimeout(10)
    assert many[0].recv(1) == b"\xff"  # the first ones are still there: ZeroMQ greets them
    for connection in many:
        connection.close()
    routers.close(router)
    gate.join()


def test_an_ipc_socket_is_its_owners_alone_and_bound_once(tmp_path: Path, start: Callable[..., LocalDaemon]) -> None:
    path = tmp_path / "s"
    others = {"predict": "tcp://127.0.0.1:*", "admin": "tcp://127.0.0.1:*", "http": "127.0.0.1:0"}
    daemon = start({"endpoints": {"stream": f"ipc://{path}", **others}})
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.with_name("s.lock").stat().st_mode & 0o777 == 0o600
    with daemon.producer() as producer:
        producer.send(X, np.arange(4) % 3, "a")
        assert producer.flush() == 1
    with pytest.raises(ConfigError, match=r"cannot listen there.*another daemon"):
        routers.bind_router(f"ipc://{path}")
