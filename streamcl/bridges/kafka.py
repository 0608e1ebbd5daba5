"""Kafka, as a bridge fetches from it: partitions are assigned at offsets of ours, no group is joined, nothing is committed.

An offset + 1 is a sequence number, so that `durable` is the next offset. What the broker says it does not have (retention
has removed it, or the topic was made anew) is never skipped by itself: ``auto.offset.reset`` is ``error``. Confluent's
maintainers advise this use for offsets in a store of one's own (confluent-kafka-python#95).
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from streamcl.bridges.bridge import End
from streamcl.bridges.lane import BridgeError
from streamcl.bridges.records import Record
from streamcl.errors import ConfigError

try:
    import confluent_kafka as kafka
except ImportError as error:
    raise ConfigError("the package confluent-kafka is not installed: pip install 'streamcl[kafka]'") from error

OURS: Mapping[str, Any] = {  # what exactly once rests on
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "auto.offset.reset": "error",
    "enable.partition.eof": True,
}
DEFAULTS: Mapping[str, Any] = {
    "bootstrap.servers": "localhost:9092",
    "group.id": "streamcl-bridge",  # librdkafka wants one; it is never joined
    "client.id": "streamcl-bridge",
    "isolation.level": "read_committed",
    "queued.max.messages.kbytes": 16384,  # of a partition: back-pressure reaches the broker
    "reconnect.backoff.max.ms": 2000,
}
FOR_GOOD = ("_AUTHENTICATION", "_SSL", "TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "_INVALID_ARG")
FIRST_SECONDS = 30.0  # for the broker to answer at all
ASKING_SECONDS = 5.0
NAME_CHARACTERS = 128


def settings(given: Sequence[str], file: Path | None) -> dict[str, str]:
    """``key=value`` texts over a file of such lines, as Kafka's own tools read them. Raises ConfigError."""
    lines = [] if file is None else file.read_text().splitlines()
    found: dict[str, str] = {}
    for line in (*lines, *given):
        key, equals, value = line.partition("=")
        if not line.strip() or line.lstrip().startswith(("#", "!")):
            continue
        if not equals or not key.strip():
            raise ConfigError(f"expected key=value for librdkafka, got {line!r}")
        if key.strip() in OURS:
            raise ConfigError(f"{key.strip()} is the bridge's own, {OURS[key.strip()]!r}: exactly once rests on it")
        found[key.strip()] = value.strip()
    return found


class Kafka:
    """One topic. bootstrap: brokers, instead of the config's. only: these of its partitions. start: where a partition
    begins of which the daemon holds nothing: ``earliest``, ``latest`` or an offset. accept_loss: go on behind what the
    broker no longer has. name: of the producers, instead of one made of cluster and topic. Raises BridgeError, ConfigError.
    """

    def __init__(
        self,
        topic: str,
        bootstrap: str | None,
        say: Callable[[str], None],
        *,
        config: Mapping[str, Any] | None = None,
        only: Sequence[int] = (),
        start: str = "earliest",
        accept_loss: bool = False,
        name: str | None = None,
    ) -> None:
        self.topic, self.say, self.only, self.start, self.accept_loss = topic, say, tuple(only), start, accept_loss
        self._lost = 0
        self._next: dict[int, int] = {}
        self._held: dict[int, int] = {}  # the last number of each that the daemon holds
        self._told: set[str] = set()  # of one absence
        self._fatal: str | None = None
        where = {} if bootstrap is None else {"bootstrap.servers": bootstrap}
        self._config = {**DEFAULTS, **(config or {}), **where, **OURS}
        self._consumer = self._connected()
        try:
            cluster = self._first_word()
        except BaseException:
            self._consumer.close()
            raise
        own = hashlib.sha256(cluster.encode()).hexdigest()[:8]
        self._name = name or f"kafka-{own}-{topic}"

    def _connected(self) -> Any:
        quiet = logging.getLogger("streamcl.bridges.kafka")
        quiet.addHandler(logging.NullHandler())
        quiet.propagate = False  # librdkafka repeats itself twenty times a second; what matters comes to `_hear`
        try:
            return kafka.Consumer({**self._config, "error_cb": self._hear}, logger=quiet)
        except kafka.KafkaException as error:
            raise ConfigError(f"librdkafka: {error.args[0].str()}") from None

    def _hear(self, error: Any) -> None:
        """What librdkafka has to say beside records."""
        if error.fatal() or error.name() in FOR_GOOD:
            self._fatal = f"{error.name()}: {error.str()}"
            return
        alike = re.sub(r"\d+", "N", error.str())
        if alike not in self._told:
            self._told.add(alike)
            self.say(f"the broker: {error.str()}")

    def _check(self) -> None:
        if self._fatal is not None:
            raise BridgeError(f"topic {self.topic}: {self._fatal}")

    def _first_word(self) -> str:
        """Wait for the broker; the cluster's name."""
        deadline = time.monotonic() + FIRST_SECONDS
        while True:
            self._consumer.poll(0.0)  # errors are heard only so
            self._check()
            try:
                cluster = self._metadata().cluster_id or ""
                break
            except kafka.KafkaException as error:
                if time.monotonic() > deadline:
                    brokers = self._config["bootstrap.servers"]
                    raise BridgeError(
                        f"no broker answered at {brokers} within {FIRST_SECONDS:g} s ({error.args[0].str()}): check "
                        "--bootstrap, and the security settings (--config)"
                    ) from None
        return str(cluster)

    def _metadata(self) -> Any:
        """Of the topic. Raises BridgeError where there is none, KafkaException where the broker does not answer."""
        found = self._consumer.list_topics(self.topic, timeout=ASKING_SECONDS)
        topic = found.topics[self.topic]
        if topic.error is not None:
            if topic.error.retriable() and topic.error.name() != "UNKNOWN_TOPIC_OR_PART":
                raise kafka.KafkaException(topic.error)
            raise BridgeError(f"topic {self.topic}: {topic.error.str()}")
        return found

    # -- partitions ----------------------------------------------------------------------------------------------------

    def partitions(self) -> Sequence[int]:
        """Those of the topic, or those asked for; those known where the broker does not answer now. Raises BridgeError."""
        try:
            there = sorted(self._metadata().topics[self.topic].partitions)
        except kafka.KafkaException as error:
            if not self._next:
                raise BridgeError(f"topic {self.topic}: its partitions are not known ({error.args[0].str()})") from None
            return sorted(self._next)
        absent = [partition for partition in self.only if partition not in there]
        if absent:
            raise BridgeError(f"topic {self.topic} has the partitions {there}; there is no {absent[0]}")
        return self.only or there

    def name(self, partition: int) -> str:
        """Of cluster, topic and partition, in the characters of a producer's name."""
        whole = f"{self._name}-{partition}"
        if len(whole) <= NAME_CHARACTERS and re.fullmatch(r"[A-Za-z0-9._-]+", whole):
            return whole
        return f"kafka-{hashlib.sha256(whole.encode()).hexdigest()[:32]}-{partition}"

    def place(self, partition: int, number: int) -> str:
        """Topic, partition and offset."""
        return f"{self.whole(partition)}, offset {number - 1}"

    def whole(self, partition: int) -> str:
        """Topic and partition."""
        return f"topic {self.topic}, partition {partition}"

    def begin(self, durable: Mapping[int, int]) -> None:
        """Assign more partitions."""
        self._consumer.incremental_assign([self._from(partition, number) for partition, number in durable.items()])

    def rewind(self, durable: Mapping[int, int]) -> None:
        """Assign these partitions, and no other; what was fetched of them is forgotten."""
        if self._next:  # what this one has fetched may still come out of it, and would be taken for what comes next
            self._consumer.close()
            self._consumer = self._connected()
        self._next.clear()
        self._consumer.assign([self._from(partition, number) for partition, number in durable.items()])

    def _from(self, partition: int, durable: int) -> Any:
        """Where a partition goes on: the next offset is the number that the daemon holds."""
        self._next[partition] = self._held[partition] = offset = durable
        if durable == 0:
            logical = {"earliest": kafka.OFFSET_BEGINNING, "latest": kafka.OFFSET_END}
            offset = logical[self.start] if self.start in logical else int(self.start)
            self._next[partition] = max(offset, 0)
        return kafka.TopicPartition(self.topic, partition, offset)

    # -- records -------------------------------------------------------------------------------------------------------

    def poll(self, most: int, seconds: float) -> Iterator[Record | End]:
        """Raises BridgeError."""
        messages = self._consumer.consume(most, seconds)
        self._check()
        for message in messages:
            error = message.error()
            if error is None:
                yield self._record(message)
            elif error.code() == kafka.KafkaError._PARTITION_EOF:
                yield End(message.partition())
            elif error.code() == kafka.KafkaError._AUTO_OFFSET_RESET:
                self._out_of_range(message.partition())
            elif error.retriable() or error.code() in (kafka.KafkaError._TRANSPORT, kafka.KafkaError._ALL_BROKERS_DOWN):
                self._hear(error)
            else:
                raise BridgeError(f"topic {self.topic}, partition {message.partition()}: {error.name()}: {error.str()}")

    def _record(self, message: Any) -> Record:
        self._next[message.partition()] = message.offset() + 1
        if self._told:
            self._told.clear()
            self.say("the broker answers again")
        headers = {name: value for name, value in message.headers() or () if value is not None}
        return Record(message.partition(), message.offset() + 1, message.topic(), message.value(), message.key(), headers)

    def _out_of_range(self, partition: int) -> None:
        """The broker does not have the next offset: too old, or the topic is another one."""
        wanted = self._next[partition]
        low, high = self._consumer.get_watermark_offsets(
            kafka.TopicPartition(self.topic, partition), timeout=ASKING_SECONDS
        )
        where = self.whole(partition)
        if not self._held[partition] and not low <= wanted <= high:
            raise BridgeError(f"{where}: --from {wanted}: the broker has the offsets {low} to {high - 1}")
        if wanted > high:
            raise BridgeError(
                f"{where}: the daemon holds all up to offset {wanted - 1}, the broker ends at {high - 1}: the "
                "topic was made anew, or the broker has lost its end. To read it from its beginning, give the bridge "
                "another --name"
            )
        if not self.accept_loss:
            raise BridgeError(
                f"{where}: {low - wanted} offsets, {wanted} to {low - 1}, were removed (retention) before they were read. "
                "To go on without them, start once with --accept-loss"
            )
        self._lost += low - wanted
        self.say(f"{where}: {low - wanted} offsets, {wanted} to {low - 1}, are lost; goes on at {low} (--accept-loss)")
        self._next[partition] = low
        self._consumer.incremental_unassign([kafka.TopicPartition(self.topic, partition)])
        self._consumer.incremental_assign([kafka.TopicPartition(self.topic, partition, low)])

    def lost(self) -> int:
        """Offsets that retention had removed."""
        return self._lost

    def close(self) -> None:
        """Commits nothing."""
        self._consumer.close()
