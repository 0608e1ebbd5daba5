"""Predictions from other hosts: real daemons, real followers, and a link between them that can be cut."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import select
import signal
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq
from structlog.testing import capture_logs
from test_security import House, KeyedClient
from waiting import PATIENCE, until

from streamcl import Admin, Reader, notebook
from streamcl.bench.local import LocalDaemon, LocalFollower, own_port
from streamcl.cli import main
from streamcl.cli.predict import say_behind
from streamcl.config import from_tree
from streamcl.daemon.offers import GONE_SECONDS, MOST_OFFERS, Offers
from streamcl.daemon.served import Served
from streamcl.daemon.sockets import Peer
from streamcl.daemon.tidings import HostName, Tidings, unheard
from streamcl.daemon.upstream import Upstream
from streamcl.errors import Damaged, Refused, StreamclError
from streamcl.keys import Keys, load
from streamcl.protocol import frames, messages
from streamcl.storage import container, published
from streamcl.storage.frozen import Frozen
from streamcl.storage.mirror import File, Mirror, Publication
from streamcl.storage.state import StateDirectory

RNG = np.random.default_rng(0)
X = RNG.normal(size=(48, 4)).astype("<f4")
TREE: dict[str, Any] = {"model": {"args": {"hidden": [8]}}, "train": {"epochs": 1, "batch_size": 16}}


class Link:
    """A TCP link to an endpoint, which forwards until it is cut, or until so many bytes have come from there."""

    def __init__(self, endpoint: str) -> None:
        self.there = int(endpoint.rpartition(":")[2])
        self.port = own_port()
        self.endpoint = f"tcp://127.0.0.1:{self.port}"
        self.open, self.left = True, float("inf")
        self._ended = threading.Event()
        self._server = socket.create_server(("127.0.0.1", self.port))
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self) -> None:
        while not self._ended.is_set():
            if not select.select([self._server], [], [], 0.05)[0]:
                continue
            near, _ = self._server.accept()
            with contextlib.suppress(OSError):
                far = socket.create_connection(("127.0.0.1", self.there))
                self._threads.append(threading.Thread(target=self._forward, args=(near, far), daemon=True))
                self._threads[-1].start()
                continue
            near.close()

    def _forward(self, near: socket.socket, far: socket.socket) -> None:
        other = {near: far, far: near}
        with near, far, contextlib.suppress(OSError):
            while not self._ended.is_set():
                for ready in select.select([near, far], [], [], 0.05)[0] if self.open else ():
                    data = ready.recv(1 << 14)
                    if not data:
                        return
                    if ready is far:
                        self.left -= len(data)
                        if self.left <= 0:  # and else as it is: it may have been cut meanwhile
                            self.open = False
                    other[ready].sendall(data)
                if not self.open:
                    self._ended.wait(0.02)

    def cut(self) -> None:
        """Nothing comes through any more, and nobody is told."""
        self.open = False

    def mend(self) -> None:
        """Everything comes through again."""
        self.left, self.open = float("inf"), True

    def close(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()
        self._server.close()


@pytest.fixture
def link() -> Iterator[Callable[[str], Link]]:
    made: list[Link] = []

    def make(endpoint: str) -> Link:
        made.append(Link(endpoint))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def follow(tmp_path: Path) -> Iterator[Callable[..., LocalFollower]]:
    """Starts followers and ends them, whatever the test does."""
    started: list[LocalFollower] = []

    def make(endpoint: str, tree: dict[str, Any] | None = None, name: str = "follower") -> LocalFollower:
        started.append(LocalFollower(endpoint, tree, tmp_path / name))
        started[-1].start()
        return started[-1]

    yield make
    for each in started:
        each.kill()


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    """Has learned one task of two classes; its outputs grow as labels come."""
    with LocalDaemon(TREE, tmp_path_factory.mktemp("followed") / "state") as running:
        learn(running, "first", 2)
        yield running


@pytest.fixture(scope="module")
def follower(daemon: LocalDaemon, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFollower]:
    with LocalFollower(daemon.endpoints["predict"], None, tmp_path_factory.mktemp("follower") / "state") as running:
        yield running


def learn(daemon: LocalDaemon, task: str, classes: int, first: int = 0) -> None:
    with daemon.producer(f"p-{task}") as producer:
        producer.send(X, (first + np.arange(len(X)) % classes).astype("<i8"), task)
        producer.boundary(task)


def status(follower: LocalFollower) -> dict[str, Any]:
    with follower.admin() as admin:
        return admin.status()


def answers(running: LocalDaemon, x: Any = X, **asked: Any) -> Any:
    with running.reader() as reader:
        return reader.predict(x, **asked)


def caught_up(daemon: LocalDaemon, follower: LocalFollower) -> bool:
    """Whether the follower serves what an idle daemon does."""
    with contextlib.suppress(Refused):
        said, newest = status(follower), answers(daemon)
        serves = said["serves"] or {}
        return (serves.get("version"), serves.get("position")) == (newest.version, newest.position)
    return False


def alike(one: Any, other: Any) -> bool:
    """Whether two predictions are the same to the bit, labels and notes among them."""
    same = (
        (one.version, one.position) == (other.version, other.position)
        and one.note == other.note
        and one.arrays.keys() == other.arrays.keys()
    )
    labels = one.labels is other.labels is None or np.array_equal(one.labels, other.labels)
    return same and labels and all(one.arrays[name].tobytes() == other.arrays[name].tobytes() for name in one.arrays)


def get(follower: LocalFollower, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(follower.url(path), timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


# -- the same predictions ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [{}, {"samples": 5}, {"uncertainty": True}], ids=["plain", "samples", "uncertainty"])
def test_a_follower_predicts_what_the_daemon_does_to_the_bit(
    daemon: LocalDaemon, follower: LocalFollower, asked: dict[str, Any]
) -> None:
    until(lambda: caught_up(daemon, follower))
    assert alike(answers(daemon, **asked), answers(follower, **asked))


def test_it_is_never_more_than_what_is_on_its_way_behind(daemon: LocalDaemon, follower: LocalFollower) -> None:
    with daemon.producer("steady") as producer:
        for _ in range(8):
            producer.send(X, (np.arange(len(X)) % 2).astype("<i8"), "steady")
            producer.flush()
            newest = answers(daemon).version
            until(lambda newest=newest: answers(follower).version >= newest)
    until(lambda: status(follower)["samples_seen"] == 9 * len(X))  # the last of them too, although nothing came after it
    with daemon.admin() as admin:
        admin.boundary("steady")
    until(lambda: caught_up(daemon, follower))


# -- what is not a follower's ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("socket", "message"),
    [
        ("stream", {"type": "hello", "producer": "p"}),
        ("stream", {"type": "boundary", "seq": 3, "task": "t"}),
        *(("admin", {"type": kind}) for kind in ("tasks", "checkpoint", "pause", "parameters", "quarantine")),
        ("admin", {"type": "boundary", "task": "t"}),
        ("predict", {"type": "hello", "producer": "p"}),
        ("predict", {"type": "status"}),
    ],
)
def test_everything_else_is_refused_with_the_daemon_that_can(
    daemon: LocalDaemon, follower: LocalFollower, connect: Callable[..., Any], socket: str, message: dict[str, Any]
) -> None:
    reply = connect(follower.endpoints[socket]).ask(message.pop("type"), id="q", **message)
    assert reply["type"] == ("nack" if socket == "stream" else "error")
    assert (reply["code"], reply["id"], reply["retryable"]) == ("follower", "q", False)
    assert daemon.endpoints["predict"] in reply["message"]
    assert reply.get("seq") == message.get("seq")


def test_a_batch_is_refused_to_a_producer_and_to_a_plain_client(
    daemon: LocalDaemon, follower: LocalFollower, connect: Callable[..., Any]
) -> None:
    with pytest.raises(Refused, match="follower of the daemon at"), follower.producer("p") as producer:
        producer.send(X, np.zeros(len(X), "<i8"), "t")
        producer.flush()
    arrays = {"x": X, "y": np.zeros(len(X), "<i8")}
    for place in ("stream", "predict"):
        reply = connect(follower.endpoints[place]).ask("batch", arrays, seq=1, task="t")
        assert (reply["code"], daemon.endpoints["predict"] in reply["message"]) == ("follower", True)


def test_independent_clients_need_no_change(
    follower: LocalFollower, daemon: LocalDaemon, connect: Callable[..., Any]
) -> None:
    until(lambda: caught_up(daemon, follower))
    for kind in (zmq.DEALER, zmq.REQ):
        client = connect(follower.endpoints["predict"], kind)
        if kind == zmq.REQ:
            client.socket.setsockopt(zmq.RCVTIMEO, 60_000)
        reply = client.ask("predict", {"x": X}, id=7)
        assert (reply["type"], reply["id"], reply["follows"]) == ("prediction", 7, daemon.endpoints["predict"])
        assert reply["version"] == answers(daemon).version
        assert reply["behind"]["rows"] == reply["behind"]["records"] == reply["behind"]["steps"] == 0
        assert 0 <= reply["behind"]["seconds"] < PATIENCE
    assert connect(follower.endpoints["predict"]).ask("predict", {"x": X[:, :2]})["code"] == "bad_shape"


def test_health_metrics_and_status_say_where_it_stands(daemon: LocalDaemon, follower: LocalFollower) -> None:
    until(lambda: caught_up(daemon, follower))
    assert get(follower, "/healthz")[0] == get(follower, "/readyz")[0] == 200
    shown = json.loads(get(follower, "/status")[1])
    assert (shown["state"], shown["connected"], shown["problem"]) == ("following", True, None)
    assert shown["serves"] == shown["newest"]
    text = get(follower, "/metrics")[1]
    assert "streamcl_follower_connected 1.0" in text
    assert "streamcl_follower_behind_rows 0.0" in text
    with daemon.admin() as admin:
        assert admin.metrics()["streamcl_followers"] >= 1


def test_operators_commands_show_what_a_follower_has(
    daemon: LocalDaemon, follower: LocalFollower, capsys: pytest.CaptureFixture[str]
) -> None:
    until(lambda: caught_up(daemon, follower))
    place = ["--state-dir", str(follower.state_dir)]
    assert main(["top", "--once", *place]) == 0
    shown = capsys.readouterr().out
    assert f"the daemon at {daemon.endpoints['predict']}" in shown
    assert "0 rows, 0 steps; the daemon was heard" in shown
    assert "producers" not in shown
    assert main(["top", "--once", "--json", *place]) == 0
    assert json.loads(capsys.readouterr().out)["status"]["connected"] is True
    assert main(["status", *place]) == 0
    assert re.search(r"published at +\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\n", capsys.readouterr().out)
    for command in (["evaluate"], ["plot", "loss"]):
        assert main([*command, *place]) == 2
        told = capsys.readouterr().err
        assert f"a follower of the daemon at {daemon.endpoints['predict']}, and answers predictions alone" in told
        assert "there is no history" not in told
    (follower.state_dir / "audit.log").unlink(missing_ok=True)
    assert main(["audit", *place]) == 0
    assert f"a follower of the daemon at {daemon.endpoints['predict']}" in capsys.readouterr().out
    with follower.admin() as admin, notebook.watching(admin):
        assert notebook.line(admin.status()).startswith("following: ")


def test_it_comes_by_itself_to_what_is_learned_forgotten_and_grown(daemon: LocalDaemon, follower: LocalFollower) -> None:
    learn(daemon, "second", 2)
    until(lambda: caught_up(daemon, follower))
    assert answers(follower, uncertainty=True).behind["rows"] == 0
    learn(daemon, "more", 12, first=2)  # outputs that the network had not
    until(lambda: caught_up(daemon, follower))
    grown = answers(follower)
    assert set(grown.labels) >= set(range(14))
    assert alike(answers(daemon, samples=3), answers(follower, samples=3))
    with daemon.admin() as admin:
        admin.rollback("more")
    until(lambda: caught_up(daemon, follower))
    for asked in ({}, {"uncertainty": True}):
        assert alike(answers(daemon, **asked), answers(follower, **asked))


# -- the daemon, the link, the follower go away ------------------------------------------------------------------------


def test_it_goes_on_while_the_link_is_cut_says_so_and_comes_back(
    daemon: LocalDaemon, link: Callable[[str], Link], follow: Callable[..., LocalFollower]
) -> None:
    between = link(daemon.endpoints["predict"])
    follower = follow(between.endpoint)
    until(lambda: caught_up(daemon, follower))
    before = answers(follower)
    between.cut()
    learn(daemon, "unheard", 2)
    until(lambda: status(follower)["state"] == "alone")
    until(lambda: answers(follower).behind["seconds"] > 1)
    alone = answers(follower)
    assert alone.version == before.version < answers(daemon).version
    said = status(follower)
    assert between.endpoint in said["problem"]
    assert said["events"][0]["kind"] == "lost"
    assert "streamcl_follower_connected 0.0" in get(follower, "/metrics")[1]
    assert get(follower, "/readyz")[0] == 200  # it has something to predict with
    assert "not heard any more" in follower.log_text()
    between.mend()
    until(lambda: caught_up(daemon, follower))
    assert status(follower)["problem"] is None


def test_it_outlives_the_daemon_and_its_own_death(
    start: Callable[..., LocalDaemon], follow: Callable[..., LocalFollower]
) -> None:
    daemon = start(TREE)
    learn(daemon, "first", 2)
    follower = follow(daemon.endpoints["predict"])
    until(lambda: caught_up(daemon, follower))
    before = answers(follower, samples=2)
    daemon.kill_all()
    until(lambda: status(follower)["state"] == "alone")
    assert alike(answers(follower, samples=2), before)
    for role in ("predictor", "follower"):  # one alone: what the other knows of the daemon is not lost
        os.kill(follower.children()[role], signal.SIGKILL)
        until(lambda: _stands(follower))
    follower.kill_all()
    follower.start()  # with nobody to ask
    assert alike(answers(follower, samples=2), before)
    assert status(follower)["publications"] == 0
    daemon.start()
    learn(daemon, "second", 2)
    until(lambda: caught_up(daemon, follower))
    assert alike(answers(daemon, samples=2), answers(follower, samples=2))
    follower.kill()
    follower.state_dir.joinpath("live", "parameters").resolve().write_bytes(b"half of it")
    daemon.kill_all()
    follower.start()
    with pytest.raises(Refused, match="nothing of"):  # what is not whole is not served
        answers(follower)
    assert get(follower, "/readyz")[0] == 503


SCHEMA = [
    {"name": "size", "kind": "number", "missing": True},
    {"name": "colour", "kind": "category", "categories": ["red", "blue", "green"]},
    {"name": "told", "kind": "target", "categories": ["no", "yes"]},
]
TABLE = np.array([[0.5 * k, k % 3] for k in range(40)], "<f8")


@pytest.mark.campaign
def test_another_model_comes_behind_the_same_endpoint_and_a_follower_can_be_followed(
    start: Callable[..., LocalDaemon], follow: Callable[..., LocalFollower], tmp_path: Path
) -> None:
    """Real targets; an exact learner of a table with words and gaps; a network that is told its task."""
    small = {"args": {"hidden": [8]}}
    daemon = start({**TREE, "model": {**small, "likelihood": "gaussian"}}, "first")
    with daemon.producer("p") as producer:
        producer.send(X, X[:, :1] * 3 + 1, "real")
        producer.boundary("real")
    near = follow(daemon.endpoints["predict"], name="near")
    far = follow(near.endpoints["predict"], name="far")

    def come_after(asked: list[dict[str, Any]], x: Any) -> None:
        until(lambda: _same(daemon, near, x, asked[0]) and _same(daemon, far, x, asked[0]))
        for each in asked:
            assert _same(daemon, near, x, each)
            assert _same(daemon, far, x, each)

    come_after([{}, {"samples": 2}, {"uncertainty": True}], X)
    daemon.stop()
    daemon = LocalDaemon({"model": {"learner": "exact"}, "endpoints": daemon.endpoints}, tmp_path / "second")
    with daemon, daemon.producer("p") as producer:
        x = TABLE.copy()
        x[3, 0] = np.nan
        producer.send(x, (np.arange(40) % 2).astype("<i4"), "table", schema=SCHEMA)
        producer.boundary("table")
        schema = SCHEMA[:2][::-1]  # columns go by their names
        come_after([{"schema": schema}, {"schema": schema, "uncertainty": True}], x[:, ::-1])
        with daemon.reader() as one, far.reader() as other:
            assert one.schema() == other.schema() is not None
    tree = {**TREE, "model": {**small, "scenario": "task"}, "endpoints": daemon.endpoints}
    daemon = LocalDaemon(tree, tmp_path / "third")
    with daemon:
        learn(daemon, "one", 2)
        learn(daemon, "two", 2, first=2)
        come_after([{"task": "one"}, {"task": "two", "samples": 3}, {}], X)
        assert set(answers(far, task="two").labels) == {2, 3}
        with pytest.raises(Refused, match="unknown_task"):
            answers(far, task="three")
        assert answers(far).behind["seconds"] < PATIENCE
        assert status(near)["followers"] == 1


def _same(daemon: LocalDaemon, follower: LocalFollower, x: Any, asked: dict[str, Any]) -> bool:
    with contextlib.suppress(Refused):
        return alike(answers(daemon, x, **asked), answers(follower, x, **asked))
    return False


def _stands(follower: LocalFollower) -> bool:
    """Whether both processes are there again, and know of each other."""
    place = follower.endpoints
    with (
        contextlib.suppress(StreamclError, OSError),
        Admin(place["admin"], timeout=2.0) as admin,
        Reader(place["predict"], timeout=2.0) as near,
    ):
        return bool(admin.status()["serves"]) and near.predict(X).behind["rows"] == 0
    return False


# -- what is fetched ---------------------------------------------------------------------------------------------------


BACKBONE = """
from torch import nn

class Headed(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(inputs, 500), nn.Tanh(), nn.Linear(500, 500), nn.Tanh())
        self.backbone.requires_grad_(False)
        self.head = nn.Linear(500, outputs)

    def forward(self, x):
        return self.head(self.backbone(x))

def headed(input_shape, outputs):
    return Headed(input_shape[0], outputs)
"""


@pytest.fixture
def backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A model whose factory does not come with streamcl: 1 MB that never changes, and a head of a few kB that does."""
    (tmp_path / "kept_backbones.py").write_text(BACKBONE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    return {"model": {"factory": "kept_backbones:headed", "classes": 2}, "train": {"epochs": 1, "batch_size": 16}}


def fetched(follower: LocalFollower) -> int:
    """Bytes of publications that have come since it was started, whatever was under way when a link was cut."""
    return int(status(follower)["fetched_bytes"])


def _of_backbone(daemon: LocalDaemon) -> int:
    return sum(path.stat().st_size for path in (daemon.state_dir / "frozen").glob("*"))


def test_what_never_changes_is_fetched_once_and_half_a_transfer_is_never_served(
    start: Callable[..., LocalDaemon],
    link: Callable[[str], Link],
    follow: Callable[..., LocalFollower],
    backbone: dict[str, Any],
) -> None:
    daemon = start({**backbone, "posterior": {"curvature": "diagonal"}})
    learn(daemon, "first", 2)
    between = link(daemon.endpoints["predict"])
    between.left = 600_000  # half of what never changes
    follower = follow(between.endpoint, {"model": {"factory": backbone["model"]["factory"]}})
    until(lambda: not between.open)
    with pytest.raises(Refused, match="not_ready"):
        answers(follower)
    assert get(follower, "/readyz")[0] == 503
    follower.kill_all()
    between.mend()
    follower.start()
    until(lambda: caught_up(daemon, follower))
    assert _of_backbone(daemon) > 1_000_000 > fetched(follower) > 0  # it went on where it was cut off
    before, already = answers(follower), fetched(follower)
    fixed = {path.name for path in (daemon.state_dir / "frozen").glob("*")}
    assert {path.name for path in (follower.state_dir / "frozen").glob("*")} == fixed
    between.left = 3_000  # half of a publication's parameters
    learn(daemon, "second", 2)
    until(lambda: not between.open)
    assert alike(answers(follower), before)
    between.mend()
    until(lambda: caught_up(daemon, follower))
    assert 0 < fetched(follower) - already < 200_000
    assert alike(answers(daemon, uncertainty=True), answers(follower, uncertainty=True))
    whole = max((follower.state_dir / "frozen").glob("*"), key=lambda path: path.stat().st_size)
    for damage in (lambda: whole.unlink(), lambda: whole.write_bytes(whole.read_bytes()[:-1] + b"?")):
        follower.stop()
        damage()
        follower.start()  # the daemon publishes nothing new meanwhile
        until(lambda: caught_up(daemon, follower))
        assert alike(answers(daemon, uncertainty=True), answers(follower, uncertainty=True))


def test_a_factory_that_is_not_named_here_is_not_run_and_one_that_is_not_here_is_said_at_the_start(
    start: Callable[..., LocalDaemon],
    follow: Callable[..., LocalFollower],
    backbone: dict[str, Any],
) -> None:
    daemon = start(backbone)
    learn(daemon, "first", 2)
    follower = follow(daemon.endpoints["predict"])
    until(lambda: "not told to run" in (status(follower)["problem"] or ""))
    with pytest.raises(Refused, match=r"--model\.factory kept_backbones:headed"):
        answers(follower)
    assert "streamcl_follower_problem 1.0" in get(follower, "/metrics")[1]
    with pytest.raises(StreamclError, match=r"status 2[\s\S]*No module named 'not_here'"):
        follow(daemon.endpoints["predict"], {"model": {"factory": "not_here:net"}}, "without")


def test_another_size_of_the_same_model_is_said_with_whose_is_whose(daemon: LocalDaemon, tmp_path: Path) -> None:
    theirs = daemon.state_dir
    found = published.read(StateDirectory(theirs).parameters, Frozen(theirs))
    assert found is not None
    meta, arrays = found
    shapes = [[16, 4], *meta["parameters"]["shapes"][1:]]
    state = StateDirectory(tmp_path)
    published.publish(state.parameters, {**meta, "parameters": {**meta["parameters"], "shapes": shapes}}, arrays)
    served = Served(from_tree({"follow": {"endpoint": daemon.endpoints["predict"]}}), state)
    with pytest.raises(Refused, match=r"the daemon's has \S+ \[16, 4\] where the other has \S+ \[8, 4\]"):
        served.newest()


def test_what_is_not_heard_is_not_said_to_be_fetched(tmp_path: Path) -> None:
    served = Served(from_tree({"follow": {"endpoint": "tcp://there:5758"}}), StateDirectory(tmp_path))
    with pytest.raises(Refused, match="the daemon at tcp://there:5758 is not heard yet"):
        served.newest()


def test_a_follower_takes_no_daemon_s_directory_and_a_daemon_no_follower_s_keys(
    daemon: LocalDaemon, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "learned" / "log").mkdir(parents=True)
    follower = LocalFollower(daemon.endpoints["predict"], None, tmp_path / "learned")
    with pytest.raises(StreamclError, match=r"status 2[\s\S]*is the state directory of a daemon that learns"):
        follower.start()
    assert main(["serve", "--state-dir", str(tmp_path / "state"), "--config", str(toml(tmp_path))]) == 2
    assert "run it with `streamcl follow`" in capfd.readouterr().err
    assert main(["follow", "--state-dir", str(tmp_path / "state")]) == 2
    assert "follow.endpoint" in capfd.readouterr().err
    assert main(["follow", "tcp://127.0.0.1:*"]) == 2
    assert "expected the port" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("endpoint", "bound", "own"),
    [
        ("tcp://127.0.0.1:5790", {"predict": "tcp://127.0.0.1:5790"}, "endpoints.predict"),
        ("tcp://localhost:5790", {"predict": "tcp://127.0.0.1:5790"}, "endpoints.predict"),
        ("tcp://127.0.0.1:5790", {"predict": "tcp://0.0.0.0:5790"}, "endpoints.predict"),
        ("tcp://[::1]:5790", {"predict": "tcp://[::1]:5790"}, "endpoints.predict"),
        (f"tcp://{socket.gethostname()}:5790", {"predict": "tcp://*:5790"}, "endpoints.predict"),
        ("tcp://127.0.0.1:5758", {}, "endpoints.predict"),  # the default port, of a daemon and a follower on one machine
        ("tcp://127.0.0.1:5757", {"predict": "tcp://127.0.0.1:*"}, "endpoints.stream"),
        ("ipc:///run/here", {"predict": "ipc:///run/here"}, "endpoints.predict"),
        ("tcp://127.0.0.1:5790", {"predict": "tcp://127.0.0.1:*"}, None),
        ("tcp://trainer.example:5758", {"predict": "tcp://0.0.0.0:5758"}, None),
        ("tcp://198.51.100.7:5758", {"predict": "tcp://0.0.0.0:5758"}, None),
        ("tcp://192.168.0.1:5790", {"predict": "tcp://127.0.0.1:5790"}, None),
    ],
)
def test_a_follower_does_not_follow_itself(
    endpoint: str,
    bound: dict[str, str],
    own: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr("streamcl.cli.run._run", lambda settings: ran.append(settings) or 0)
    monkeypatch.setattr("streamcl.config._exposure", lambda *_: iter(()))  # keys are another matter
    flags = [part for name, place in bound.items() for part in (f"--endpoints.{name}", place)]
    assert main(["follow", endpoint, "--state-dir", str(tmp_path), *flags]) == (2 if own else 0)
    assert bool(ran) is (own is None)
    if own:
        told = capsys.readouterr().err
        assert f"expected another daemon's, got {endpoint}, which is this follower's own {own}" in told


def toml(tmp_path: Path) -> Path:
    path = tmp_path / "streamcl.toml"
    path.write_text('[follow]\nendpoint = "tcp://127.0.0.1:5758"\n')
    return path


class Said:
    """What a log and a follower's events would have, by a clock of the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[tuple[str, str]] = []
        self.tidings = Tidings("tcp://there:5758", lambda *event: self.events.append(event), lambda: self.now)

    def lines(self, *each: tuple[bool, str | None, str | None, bool], seconds: float = 1.0) -> list[str]:
        with capture_logs() as logs:
            for said in each:
                self.now += seconds
                self.tidings.tell(*said)
        return [f"{line['event']}: {line.get('reason', '')}" for line in logs]


def test_a_trouble_that_lasts_is_said_once_and_that_it_is_over() -> None:
    said = Said()
    full = (True, "the disk is full", None, False)
    lines = said.lines(*[full] * 100)
    assert lines[0] == "the daemon cannot be followed now: the disk is full; there is nothing to predict with yet"
    assert lines[1:] == ["the daemon is heard: "]
    assert said.lines((True, "a file is there", None, True), (True, "a file is there", None, False)) == [
        "the daemon cannot be followed now: a file is there; predictions go on from what is here"
    ]
    assert said.lines(*[(True, None, None, True)] * 3) == ["the daemon can be followed again: "]
    assert said.lines(*[(False, None, None, True)] * 9) == [
        "the daemon is not heard any more: predictions go on from what is here"
    ]
    assert said.lines((False, "it has said no", None, True), (False, None, None, True))[1:] == []
    assert [kind for kind, _ in said.events][:4] == ["failed", "heard", "failed", "lost"]


def test_a_daemon_that_never_comes_is_said_after_a_few_seconds_and_that_it_has_come() -> None:
    said = Said()
    silent = (False, None, None, False)
    assert said.lines(*[silent] * 4) == []
    (line,) = said.lines(*[silent] * 50)
    assert line.startswith("the daemon is not heard: nothing answers there")
    assert "nothing to predict with yet" in line
    (line,) = said.lines(*[(False, None, "there has no address", False)] * 5)
    assert line.startswith("the daemon is not heard: there has no address")
    assert said.lines((True, None, None, False)) == ["the daemon is heard: "]


def test_a_host_name_without_an_address_is_said_as_such() -> None:
    name = HostName("tcp://no-such-host.invalid:5758")
    name.look()
    until(lambda: name.problem is not None)
    assert "'no-such-host.invalid' cannot be resolved" in unheard("tcp://no-such-host.invalid:5758", name.problem)
    for endpoint in ("tcp://127.0.0.1:1", "tcp://[::1]:1", "ipc:///tmp/x"):
        fine = HostName(endpoint)
        fine.look()
        until(lambda fine=fine: fine._thread is None or not fine._thread.is_alive())
        assert fine.problem is None


def test_a_trouble_with_what_is_fetched_stands_until_it_is_over(
    daemon: LocalDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, mirror = [0.0], Mirror(tmp_path)
    mirror.recover()
    upstream = Upstream(daemon.endpoints["predict"], None, 0.0, mirror, lambda: clock[0])
    problems: list[str | None] = []

    def full(*_: object) -> None:
        problems.append(upstream.problem)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def turn() -> None:
        clock[0] += 0.25 if upstream.rest_seconds() < 1.5 else 0.0
        zmq.select(list(upstream.sources()), [], [], 0.01)
        upstream.turn()

    with monkeypatch.context() as patched:
        patched.setattr(mirror, "append", full)
        until(lambda: turn() or len(problems) > 3)
    assert problems[0] is None
    assert set(problems[1:]) == {f"{tmp_path}: No space left on device"}
    until(lambda: turn() or mirror.current is not None)
    assert upstream.problem is None
    upstream.close()


def test_what_a_daemon_said_of_itself_is_forgotten_when_it_is_not_heard_any_more(tmp_path: Path) -> None:
    clock, router = [0.0], zmq.Context.instance().socket(zmq.ROUTER)
    port = router.bind_to_random_port("tcp://127.0.0.1")
    upstream = Upstream(f"tcp://127.0.0.1:{port}", None, 0.0, Mirror(tmp_path), lambda: clock[0])
    upstream.turn()
    peer, *parts = router.recv_multipart()
    asked = frames.parse(parts, message_bytes=1 << 20).header
    reply = {"type": "error", "id": asked["id"], "code": "not_ready", "message": "there is no model yet"}
    router.send_multipart([peer, *frames.build(reply)])
    until(lambda: upstream.turn() or upstream.problem is not None)
    assert upstream.connected
    clock[0] = 4.0
    upstream.turn()
    assert "no model yet" in str(upstream.problem)
    clock[0] = 6.0
    upstream.turn()
    assert (upstream.connected, upstream.problem) == (False, None)
    upstream.close()
    router.close(linger=0)


@pytest.mark.parametrize("place", ["stream", "admin"])
def test_another_port_than_that_of_predictions_is_said_to_be_one(daemon: LocalDaemon, tmp_path: Path, place: str) -> None:
    upstream = Upstream(daemon.endpoints[place], None, 0.0, Mirror(tmp_path))
    until(lambda: upstream.turn() or upstream.problem is not None)
    assert "this may not be a predict endpoint" in str(upstream.problem)
    assert not upstream.connected
    upstream.close()


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    house = House(tmp_path_factory.mktemp("house"))
    for name, roles in (("mirror", ["follow"]), ("asker", ["predict", "read"]), ("boss", ["admin"])):
        house.member(name, roles)
    house.member("sender", ["produce"], producers=["p"])
    with house.daemon:
        with house.stream(house_key(house, "sender")) as producer:
            producer.send(X, (np.arange(len(X)) % 3).astype("<i8"), "first")
            producer.boundary("first")
        yield house


def house_key(house: House, name: str) -> Keys:
    return load(house.home / f"{name}.key")


@pytest.mark.parametrize(("name", "may"), [("mirror", True), ("boss", True), ("asker", False), ("sender", False)])
def test_only_a_key_that_may_follow_gets_parameters(house: House, name: str, may: bool) -> None:
    client = KeyedClient(house.daemon.endpoints["predict"], house_key(house, name))
    for kind, fields in (("follow", {"wait": 5}), ("part", {"digest": "0" * 64})):
        client.send(kind, **fields)
        reply = client.receive()
        refused = reply["type"] == "error" and reply["code"] == "not_allowed"
        assert refused is not may, reply
    client.socket.close()


def test_a_follower_with_keys_is_judged_by_its_own_policy(house: House, follow: Callable[..., LocalFollower]) -> None:
    key = str(house.home / "mirror.key")
    tree = {"follow": {"key": key}, "security": {"server_key": str(house.home / "daemon.key")}}
    policy = house.home / "of-the-follower.toml"
    policy.write_text(f'[[grant]]\nkey = "{house_key(house, "asker").public}"\nroles = ["predict", "read"]\n')
    tree["security"]["policy"] = str(policy)
    follower = follow(house.daemon.endpoints["predict"], tree)
    asker = house_key(house, "asker")
    until(lambda: _serves(follower, asker))
    with Reader(follower.endpoints["predict"], keys=asker) as near, house.reader(asker) as far:
        assert alike(near.predict(X), far.predict(X))
    with Admin(follower.endpoints["admin"], keys=asker) as admin:
        with pytest.raises(Refused, match="not_allowed"):
            admin.stop()
        house.revoke("mirror")
        until(
            lambda: (
                "expected a key with the role" in (admin.status()["problem"] or "") or "no rights" in str(admin.status())
            )
        )
    with Reader(follower.endpoints["predict"], keys=asker) as near:
        near.predict(X)  # what it has, it still answers from


def _serves(follower: LocalFollower, keys: Keys) -> bool:
    with Admin(follower.endpoints["admin"], keys=keys) as admin:
        return bool(admin.status()["serves"])


# -- what is offered, and for how long ---------------------------------------------------------------------------------


def published_state(directory: Path, version: int, size: int = 100_000) -> StateDirectory:
    state = StateDirectory(directory)
    directory.mkdir(exist_ok=True)
    meta = {"version": version, "position": version, "rows": version, "posterior": 0}
    published.publish(state.parameters, meta, {"theta": np.full(size, version, "<f4")})
    return state


class Asker:
    """A follower of `Offers`, without a socket, by a clock of the test's."""

    def __init__(self, offers: Offers, name: str) -> None:
        self.offers, self.peer = offers, Peer(name.encode(), False, False)
        self.have: str | None = None
        self.offer: dict[str, Any] = {}

    def ask(self, now: float) -> None:
        """For another publication than it has."""
        self.offers.ask(self.peer, messages.Follow(have=self.have, wait=2.0), now)

    def fetch(self, now: float) -> bytes:
        part, size = b"", 1
        while len(part) < size:
            message = messages.Part(digest=self.offer["parameters"]["digest"], offset=len(part), most=150_000)
            size, data = self.offers.part(self.peer, message, now)
            part += data.tobytes()
        self.have = self.offer["publication"]
        return part


def given(offers: Offers, askers: list[Asker], now: float) -> dict[str, dict[str, Any] | None]:
    """Answers by the askers' names, as far as they are due."""
    found: dict[str, dict[str, Any] | None] = {}
    by_name = {asker.peer.routing_id: asker for asker in askers}

    def look() -> bool:
        for waiting, offer in offers.answers(now):
            found[waiting.peer.routing_id.decode()] = None if offer is None else offer.plain()
            if offer is not None:
                by_name[waiting.peer.routing_id].offer = offer.plain()
        return offers._job is None

    until(look)
    look()
    return found


def test_a_slow_follower_gets_whole_what_it_was_offered_however_much_is_published_since(tmp_path: Path) -> None:
    offers = Offers(published_state(tmp_path, 1))
    slow, quick = Asker(offers, "slow"), Asker(offers, "quick")
    slow.ask(0.0)
    assert given(offers, [slow], 0.1)["slow"]["version"] == 1
    for version in range(2, 40):
        published_state(tmp_path, version)
        now = float(version)
        quick.ask(now)
        assert given(offers, [quick], now + 0.1)["quick"]["version"] == version
        quick.fetch(now)
        assert offers.part(slow.peer, messages.Part(digest=slow.offer["parameters"]["digest"]), now)[0] > 400_000
        assert len(offers._offers) <= 3
    _, arrays = container.unpack(memoryview(slow.fetch(40.0)), tmp_path)
    assert arrays["theta"][0] == 1.0


def test_no_more_than_a_few_publications_are_kept_and_the_others_share_them(tmp_path: Path) -> None:
    offers = Offers(published_state(tmp_path, 1))
    askers = [Asker(offers, f"f{number}") for number in range(10)]
    for number, asker in enumerate(askers):
        published_state(tmp_path, 1 + number)
        asker.ask(float(number))
        given(offers, askers, number + 0.1)
        for other in askers[:number]:  # they are slow, and go on
            offers.part(other.peer, messages.Part(digest=other.offer["parameters"]["digest"]), number + 0.2)
    assert len(offers._offers) == MOST_OFFERS
    assert {asker.offer["version"] for asker in askers} == set(range(1, 1 + MOST_OFFERS))
    assert offers.newest == {"version": 10, "position": 10, "rows": 10}  # they are told what they lack
    late = Asker(offers, "late")
    late.ask(10 + GONE_SECONDS)
    assert given(offers, [late], 10.5 + GONE_SECONDS)["late"]["version"] == 10  # the others have gone
    assert len(offers._offers) == 2
    with pytest.raises(Refused, match="not offered any more"):
        offers.part(askers[0].peer, messages.Part(digest=askers[0].offer["parameters"]["digest"]), 50.0)


def test_a_question_waits_until_there_is_something_new_or_its_time_is_over(tmp_path: Path) -> None:
    offers = Offers(published_state(tmp_path, 1))
    asker = Asker(offers, "a")
    asker.ask(0.0)
    given(offers, [asker], 0.1)
    asker.fetch(0.2)
    asker.ask(1.0)
    assert given(offers, [asker], 1.1) == {}
    assert offers.wait_seconds is not None
    assert given(offers, [asker], 3.1) == {"a": None}
    assert offers.wait_seconds is None  # nobody waits: nobody looks
    published_state(tmp_path, 2)
    offers.ask(asker.peer, messages.Follow(have=asker.have, wait=5.0, after=3.0), 4.0)
    assert given(offers, [asker], 6.0) == {}
    assert given(offers, [asker], 7.5)["a"]["version"] == 2


@pytest.mark.parametrize("digest", ["../../etc/passwd", "0" * 63, "G" * 64, ""])
def test_a_part_is_asked_for_by_a_digest_and_nothing_else(digest: str) -> None:
    with pytest.raises(Refused, match="bad_header"):
        messages.decode({"type": "part", "digest": digest}, messages.PredictMessage)


# -- what is put in place ----------------------------------------------------------------------------------------------


def wanted_of(directory: Path) -> tuple[Publication, bytes]:
    data = StateDirectory(directory).parameters.read_bytes()
    return Publication("name", 1, 1, 1, File(hashlib.sha256(data).hexdigest(), len(data))), data


def test_what_is_not_what_its_digest_says_is_not_put_in_place(tmp_path: Path) -> None:
    published_state(tmp_path / "daemon", 1)
    wanted, data = wanted_of(tmp_path / "daemon")
    mirror = Mirror(tmp_path / "follower")
    mirror.state.path.mkdir()
    mirror.recover()
    digest = mirror.lacking(wanted)
    assert digest == wanted.parameters.digest
    mirror.append(digest, data[:100_000] + b"!" + data[100_001:])
    with pytest.raises(Damaged, match="fetched again"):
        mirror.complete(wanted, digest)
    assert mirror.fetched(digest) == 0
    assert mirror.current is None
    mirror.append(digest, data[:1000])
    assert Mirror(tmp_path / "follower").fetched(digest) == 1000  # another life goes on there
    mirror.append(digest, data[1000:])
    mirror.complete(wanted, digest)
    assert mirror.lacking(wanted) is None
    mirror.adopt(wanted)
    assert mirror.state.parameters.read_bytes() == data
    again = Mirror(tmp_path / "follower")
    again.recover()
    assert again.current == wanted
    place = mirror.state.parameters.resolve()
    place.write_bytes(data[:200_000] + b"!" + data[200_001:])  # as after a power cut
    again.recover()
    assert again.current is None
    assert not mirror.state.parameters.exists()


@pytest.mark.parametrize(
    ("behind", "said"),
    [
        (None, ""),
        ({"rows": 0, "records": 0, "steps": 0, "seconds": 1.5}, ""),
        ({"rows": 640, "records": 10, "steps": 40, "seconds": 1.5}, "640 rows behind"),
        ({"rows": 0, "records": 0, "steps": 0, "seconds": 300.0}, "not heard its daemon for 5 min"),
        ({"rows": None, "records": None, "steps": None, "seconds": None}, "not heard its daemon since it started"),
    ],
)
def test_the_command_line_says_when_an_answer_may_be_old(
    behind: dict[str, Any] | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    say_behind(behind)
    told = capsys.readouterr().err
    assert (said in told) if said else told == ""
