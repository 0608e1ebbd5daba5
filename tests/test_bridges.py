"""Bridges without a broker: what a record says, and a source of the test's own through the real daemon."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcl.bench.bridges.stored import numbers
from streamcl.bench.local import LocalDaemon
from streamcl.bridges.bridge import Bridge, End
from streamcl.bridges.choice import FORMATS, Choice
from streamcl.bridges.lane import BridgeError
from streamcl.bridges.records import BadRecord, Portion, Reader, Record, first_kinds, table
from streamcl.client import Producer
from streamcl.errors import Refused, StreamclError, Unreachable

TREE: dict[str, Any] = {"model": {"args": {"hidden": [8]}, "classes": 3}, "train": {"epochs": 1, "batch_size": 8}}


def record(value: Any, number: int = 1, partition: int = 0, **fields: Any) -> Record:
    encoded = value if value is None or isinstance(value, bytes) else json.dumps(value).encode()
    return Record(partition, number, "orders", encoded, **fields)


def read(value: Any, choice: Choice | None = None, **fields: Any) -> Portion:
    portion = Reader(choice or Choice()).read(record(value, **fields))
    assert portion is not None
    return portion


INFINITE = float("inf")
ROW = {"a": 1.5, "b": "red", "label": 2}


# -- what a record says ------------------------------------------------------------------------------------------------


def test_every_format_says_the_same() -> None:
    table = pa.table({"a": [1.5], "b": ["red"], "label": [2]})
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    said = {
        "json": json.dumps(ROW).encode(),
        "csv": b"1.5,red,2",
        "msgpack": msgpack.packb(ROW),
        "arrow": sink.getvalue(),
    }
    for form, value in said.items():
        choice = Choice(form, columns=("a", "b", "label") if form == "csv" else ())
        assert read(value, choice).rows == [ROW], form


def test_several_rows_in_a_record_are_all_taken() -> None:
    assert read([ROW, ROW]).count == 2
    assert read(b"1.5,red,2\n2.5,blue,1\n", Choice("csv", columns=("a", "b", "label"))).count == 2


def test_arrays_of_an_npz_file_and_lists_of_numbers_are_features_as_they_are() -> None:
    file = io.BytesIO()
    np.savez(file, x=np.arange(6.0).reshape(2, 3), y=np.array([0, 1]))
    portion = read(file.getvalue(), Choice("npz"))
    assert portion.x is not None
    assert portion.x.tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    listed = read({"x": [1, 2.5], "y": 1})
    assert listed.x is not None
    assert listed.y is not None
    assert (listed.x.tolist(), listed.y.tolist()) == ([[1.0, 2.5]], [1])


@pytest.mark.parametrize(
    ("value", "choice", "why"),
    [
        (b"{", Choice(), "not JSON"),
        (b"[]", Choice(), "at least one row"),
        (b"7", Choice(), "fields by name"),
        ({"a": 1}, Choice(), "--label"),
        ({"a": 1, "target": 1, "label": 2}, Choice(), "--label"),
        ({"label": 1}, Choice(), "beside the target"),
        ({"a": {"deep": 1}, "label": 1}, Choice(), "--drop a"),
        ({"a": 1, "label": None}, Choice(), "target"),
        ({"x": [1, "two"], "y": 1}, Choice(), "lists of numbers"),
        ({"x": [1, 2], "y": "yes"}, Choice(), "number beside a list"),
        ({"a": 1, "label": 1}, Choice(features=("a", "z")), "'z'"),
        ({"a": 1, "label": 1}, Choice(task_from="field:t"), "'t'"),
        ({"a": 1, "label": 1}, Choice(task_from="header:t"), "--task-from"),
        ({"a": 1, "label": 1}, Choice(task_from="key"), "--task-from"),
        (b"1,2", Choice("csv", columns=("a", "b", "label")), "expected 3 cells"),
        (b"\xff\xfe", Choice("csv", columns=("a", "label")), "not CSV"),
        (b"\xc1", Choice("msgpack"), "not msgpack"),
        (b"nothing", Choice("arrow"), "Arrow"),
        (b"nothing", Choice("npz"), "NPZ"),
        (b"PK\x03\x04nothing", Choice("npz"), "NPZ"),
    ],
)
def test_what_cannot_be_read_says_why(value: Any, choice: Choice, why: str) -> None:
    with pytest.raises(BadRecord, match=why):
        Reader(choice).read(record(value))


@pytest.mark.parametrize(
    ("row", "why"),
    [
        ({"a": 10**400, "label": 1}, "--words a"),
        ({"a": 1, "label": 10**30}, "too large"),
        ({"a": "w" * 5000, "label": 1}, "at most 4096"),
        ({"a": "\ud800", "label": 1}, "Unicode"),
        ({"a": 1, "label": "\ud800"}, "Unicode"),
        ({"a": 1, "label": 1, "t": "x\n"}, "task's name"),
        ({"a": 1, "label": 1, "t": "x" * 129}, "task's name"),
        ({"a": 1, "label": 1, "t": ""}, "task's name"),
    ],
)
def test_what_the_protocol_cannot_say_is_a_bad_record(row: Any, why: str) -> None:
    with pytest.raises(BadRecord, match=why):
        read(row, Choice(task_from="field:t") if "t" in row else None)


def test_what_would_unpack_to_more_than_a_message_is_not_unpacked() -> None:
    file = io.BytesIO()
    np.savez_compressed(file, x=np.zeros((9_000_000, 1)), y=np.zeros(9_000_000, "|u1"))
    assert len(file.getvalue()) < 1 << 20
    with pytest.raises(BadRecord, match="unpacked"):
        read(file.getvalue(), Choice("npz"))


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6) | st.datetimes().map(str),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(value=st.binary(max_size=200), form=st.sampled_from(FORMATS))
def test_bytes_are_read_or_refused_and_nothing_else(value: bytes, form: str) -> None:
    with contextlib.suppress(BadRecord):
        Reader(Choice(form, columns=("a", "label"))).read(record(value))


@given(rows=st.lists(st.fixed_dictionaries({"a": VALUES, "label": VALUES}), min_size=1, max_size=3))
def test_whatever_fields_hold_becomes_a_table_or_is_refused(rows: list[dict[str, Any]]) -> None:
    reader = Reader(Choice())
    with contextlib.suppress(BadRecord):
        portion = reader.read(record(rows))
        assert portion is not None
        if portion.x is None:
            table(portion.rows, first_kinds(portion.rows, "label", frozenset()), "label")


def test_no_array_of_objects_is_read() -> None:
    file = io.BytesIO()
    np.savez(file, x=np.array([{"a": 1}], object), y=np.array([1]))
    with pytest.raises(BadRecord):
        Reader(Choice("npz")).read(record(file.getvalue()))


def test_the_task_is_named_where_the_user_says() -> None:
    fields: dict[str, Any] = {"key": b"by key", "headers": {"t": b"by header"}}
    row = {**ROW, "t": "by field"}
    assert read(row, Choice(drop=("t",)), **fields).task == "orders"
    assert read(row, Choice(drop=("t",), task_from="key"), **fields).task == "by key"
    assert read(row, Choice(drop=("t",), task_from="header:t"), **fields).task == "by header"
    of_field = read(row, Choice(task_from="field:t"), **fields)
    assert (of_field.task, of_field.rows) == ("by field", [ROW])
    assert read(row, Choice(drop=("t",), task="said"), **fields).task == "said"


def test_a_header_or_a_field_closes_the_task_and_a_tombstone_says_nothing() -> None:
    header = {"streamcl-boundary": b""}
    assert read(ROW, headers=header).boundary
    assert not read(ROW, headers={"streamcl-boundary": b"false"}).boundary
    assert read({**ROW, "last": True}, Choice(boundary_field="last")).boundary
    assert not read({**ROW, "last": False}, Choice(boundary_field="last")).boundary
    alone = read(None, headers=header)
    assert (alone.boundary, alone.count) == (True, 0)
    assert Reader(Choice()).read(record(None)) is None
    assert Reader(Choice()).read(record(b"")) is None


def test_once_the_columns_are_known_no_record_changes_what_they_are() -> None:
    reader = Reader(Choice())
    reader.adopt(
        {
            "schema": [
                {"name": "a", "kind": "number"},
                {"name": "b", "kind": "category"},
                {"name": "label", "kind": "target"},
            ],
            "left_out": ["id"],
        }
    )

    def row(value: Any) -> Mapping[str, Any]:
        portion = reader.read(record(value))
        assert portion is not None
        return portion.rows[0]

    assert row({"label": 1, "b": 7, "a": 2, "id": "x"}) == {"a": 2, "b": "7", "label": 1}
    assert row({"label": 1, "b": "x"}) == {"a": None, "b": "x", "label": 1}
    with pytest.raises(BadRecord, match="expected a number"):
        row({"a": "two", "label": 1})
    with pytest.raises(BadRecord, match="--drop c"):
        row({"a": 1, "c": 2, "label": 1})


# -- a source of the test's own ----------------------------------------------------------------------------------------


class Log:
    """A broker's log in a list. removed: numbers below this are not there any more."""

    def __init__(self, *records: Record, name: str = "log") -> None:
        self.records, self.given = list(records), name
        self.next: dict[int, int] = {}
        self.polls = 0
        self.on_poll: Callable[[int], None] = lambda polls: None

    def partitions(self) -> Sequence[int]:
        return sorted({each.partition for each in self.records})

    def name(self, partition: int) -> str:
        return f"{self.given}-{partition}"

    def place(self, partition: int, number: int) -> str:
        return f"partition {partition}, number {number}"

    def whole(self, partition: int) -> str:
        return f"partition {partition}"

    def begin(self, durable: Mapping[int, int]) -> None:
        self.next |= durable

    def rewind(self, durable: Mapping[int, int]) -> None:
        self.next = dict(durable)

    def poll(self, most: int, seconds: float) -> Iterator[Record | End]:
        self.polls += 1
        self.on_poll(self.polls)
        new = [each for each in self.records if each.number > self.next.get(each.partition, each.number)]
        for each in new:
            self.next[each.partition] = each.number
            yield each
        for partition in self.next:
            yield End(partition)

    def lost(self) -> int:
        return 0

    def close(self) -> None:
        pass


def bridge(daemon: LocalDaemon, log: Log, choice: Choice | None = None, **options: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []

    def connect(name: str) -> Producer:
        return Producer(daemon.endpoints["stream"], name, gather_bytes=0)

    moving = Bridge(log, choice or Choice(), connect, said.append, until_end=True, **{"linger": 0.0, **options})
    found = moving.run().plain()
    return found, [line for line in said if not line.startswith("from ")]


def counted(number: int, partition: int = 0, **fields: Any) -> Record:
    row = {"i": 10 * partition + number, "w": "ab"[number % 2], "label": number % 3}
    return record({**row, **fields.pop("row", {})}, number, partition, **fields)


def held(daemon: LocalDaemon) -> dict[int, int]:
    return dict(numbers(daemon.state_dir / "log", "i"))


def test_numbers_that_no_record_has_leave_no_gap_and_nothing_is_sent_twice(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    log = Log(counted(4), counted(5), record(None, 6), counted(9), counted(9))
    found, _ = bridge(daemon, log, rows=2)
    assert found["durable"] == {"0": 9}
    assert (found["rows"], found["tombstones"], found["unnumbered"], found["again"]) == (3, 1, 2, 1)
    log.records += [record(None, 20), counted(21)]
    found, _ = bridge(daemon, log)
    assert (found["rows"], found["durable"]) == (1, {"0": 21})
    assert held(daemon) == {4: 1, 5: 1, 9: 1, 21: 1}


def test_a_record_that_cannot_be_learned_ends_the_bridge_and_all_before_it_is_stored(
    start: Callable[..., LocalDaemon],
) -> None:
    daemon = start(TREE)
    for bad, why in ((record(b"{", 4), "not JSON"), (counted(4, row={"label": 9}), "bad_label")):
        log = Log(counted(1), counted(2), counted(3), bad, counted(5))
        with pytest.raises(BridgeError, match=f"number 4: .*{why}.*--on-bad skip"):
            bridge(daemon, log)
        assert held(daemon) == {1: 1, 2: 1, 3: 1}


def test_bad_records_are_passed_over_where_asked_each_told_of_once(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    aside: list[int] = []
    log = Log(
        record(b"{", 1), counted(2), counted(3, row={"i": INFINITE}), counted(4), counted(5, row={"i": "odd"}), counted(6)
    )
    found, said = bridge(daemon, log, skip=True, set_aside=lambda each, reason: aside.append(each.number))
    assert aside == [1, 3, 5]
    assert len([line for line in said if line.startswith("passed over")]) == 3
    assert (found["rows"], found["bad"], found["records"]) == (3, 3, 6)
    assert held(daemon) == {2: 1, 4: 1, 6: 1}


def test_a_first_record_that_is_refused_decides_nothing(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    log = Log(record({"i": INFINITE, "z": 1, "label": 1}, 1), counted(2))
    found, _ = bridge(daemon, log, skip=True, rows=1)
    assert (found["bad"], held(daemon)) == (1, {2: 1})


def test_a_boundary_closes_the_task_after_its_row_or_without_one(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)

    def of(task: str, mark: bool = False) -> dict[str, bytes]:
        return {"t": task.encode(), **({"streamcl-boundary": b"1"} if mark else {})}

    log = Log(
        counted(1, headers=of("one")),
        counted(2, headers=of("one", mark=True)),
        record(None, 3, headers=of("one")),
        counted(4, headers=of("two")),
        counted(5, headers=of("two")),
        record(None, 6, headers=of("two", mark=True)),
        counted(7, headers=of("three")),
    )
    found, said = bridge(daemon, log, Choice(task_from="header:t"))
    assert (found["boundaries"], found["durable"], found["failed"]) == (2, {"0": 7}, 0)
    assert [line for line in said if not line.startswith("warning")] == [
        "task 'one' consolidated: 2 samples",
        "task 'two' consolidated: 2 samples",
    ]
    with daemon.admin() as admin:
        assert [(task["task"], task["samples"]) for task in admin.tasks()][:2] == [("one", 2), ("two", 2)]


def test_a_field_closes_the_task_too_and_a_bare_record_closes_the_one_that_is_open(
    start: Callable[..., LocalDaemon],
) -> None:
    daemon = start(TREE)
    first = Log(counted(1, row={"t": "one"}), counted(2, row={"t": "one", "end": True}), counted(3, row={"t": "two"}))
    choice = Choice(task_from="field:t", boundary_field="end")
    assert bridge(daemon, first, choice)[0]["boundaries"] == 1
    first.records.append(record(None, 4, headers={"streamcl-boundary": b""}))  # says no task; another process sent its rows
    said = bridge(daemon, first, choice)[1]
    assert [line for line in said if not line.startswith("warning")] == ["task 'two' consolidated: 1 samples"]


def test_of_two_bridges_on_one_partition_the_newer_goes_on(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    log, other = Log(counted(1), counted(2)), Log(counted(1), counted(2), counted(3))

    def overtake(polls: int) -> None:
        if polls == 2:
            log.records.append(counted(3))
            bridge(daemon, other)

    log.on_poll = overtake
    slow = Bridge(
        log, Choice(), lambda name: Producer(daemon.endpoints["stream"], name, gather_bytes=0), print, linger=0.0, rows=1
    )
    with pytest.raises(StreamclError, match=r"stale_epoch|another process"):
        slow.run()
    assert held(daemon) == {1: 1, 2: 1, 3: 1}


def test_what_the_daemon_refuses_whatever_the_record_ends_the_bridge_with_its_place(
    start: Callable[..., LocalDaemon],
) -> None:
    daemon = start(TREE)
    log = Log(counted(1, headers={"t": b"one"}), counted(2, headers={"t": b"two"}))
    with pytest.raises(BridgeError, match="number 2: the daemon refused it: task_mismatch"):
        bridge(daemon, log, Choice(task_from="header:t"), skip=True)
    assert held(daemon) == {1: 1}


def test_a_boundary_among_several_partitions_is_refused(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    log = Log(counted(1), counted(1, 1), counted(2, headers={"streamcl-boundary": b""}))
    with pytest.raises(BridgeError, match=r"partition 0, number 2: .*streamcl boundary TASK"):
        bridge(daemon, log)


def test_each_partition_is_a_producer_and_new_ones_join(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    log = Log(*(counted(number, partition) for number in (1, 2) for partition in (0, 1)))

    def grow(polls: int) -> None:
        if polls == 2:
            log.records += [counted(1, 2), counted(2, 2)]
            log.next.pop(2, None)

    log.on_poll = grow
    said: list[str] = []
    moving = Bridge(
        log,
        Choice(),
        lambda name: Producer(daemon.endpoints["stream"], name, gather_bytes=0),
        said.append,
        linger=0.0,
        refresh=0.0,
    )

    class Enough(Exception):
        pass

    def stop(polls: int) -> None:
        grow(polls)
        if polls > 6:
            raise Enough

    log.on_poll = stop
    with pytest.raises(Enough):
        moving.run()
    assert said == [
        "from partition 0, new to the daemon, as producer log-0",
        "from partition 1, new to the daemon, as producer log-1",
        "from partition 2, new to the daemon, as producer log-2",
    ]
    assert held(daemon) == {number + 10 * partition: 1 for number in (1, 2) for partition in (0, 1, 2)}
    with daemon.admin() as admin:
        assert {row["producer"]: row["durable"] for row in admin.producers()} == {"log-0": 2, "log-1": 2, "log-2": 2}


def test_columns_that_one_partition_decides_hold_for_the_others(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    log = Log(counted(1), counted(1, 1, row={"w": 7}), counted(2, 1))
    found, _ = bridge(daemon, log, rows=1, linger=9.0)
    assert found["rows"] == 3
    assert held(daemon) == {1: 1, 11: 1, 12: 1}


def test_with_the_daemon_away_it_waits_and_goes_on_where_that_is(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    log = Log(*(counted(number) for number in range(1, 6)))

    def break_it(polls: int) -> None:
        if polls == 2:
            daemon.kill()
            log.records += [counted(number) for number in range(6, 9)]
            daemon.start()

    log.on_poll = break_it
    moving = Bridge(
        log,
        Choice(),
        lambda name: Producer(daemon.endpoints["stream"], name, gather_bytes=0),
        lambda text: None,
        linger=0.0,
        rows=2,
        until_end=True,
    )
    moving.run()
    bridge(daemon, log)
    assert held(daemon) == dict.fromkeys(range(1, 9), 1)


def test_patience_ends_with_what_was_waited_for() -> None:
    def nobody(name: str) -> Producer:
        raise Unreachable("nobody is there")

    said: list[str] = []
    with pytest.raises(Unreachable, match="nobody"):
        Bridge(Log(counted(1)), Choice(), nobody, said.append, patience=0.0).run()
    assert said == ["waiting for the daemon: nobody is there"]


def test_patience_counts_from_where_it_began_to_wait_and_each_reason_is_said_once(
    start: Callable[..., LocalDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = start(TREE)
    clock = iter(range(10**9))
    monkeypatch.setattr("streamcl.bridges.bridge.time.sleep", lambda seconds: next(clock))
    said: list[str] = []
    failures = [Unreachable("one"), Unreachable("one"), Unreachable("two")]

    def connect(name: str) -> Producer:
        if failures:
            raise failures.pop(0)
        return Producer(daemon.endpoints["stream"], name, gather_bytes=0)

    moving = Bridge(Log(counted(1)), Choice(), connect, said.append, linger=0.0, until_end=True, patience=60.0)
    moving.run()
    assert said == [
        "waiting for the daemon: one",
        "waiting for the daemon: two",
        "from partition 0, new to the daemon, as producer log-0",
        "the daemon takes records in again",
    ]


# -- numbers that a message stands for ---------------------------------------------------------------------------------

X, Y = np.zeros((2, 3), "<f4"), np.array([0, 1])


def test_a_message_stands_for_the_numbers_up_to_its_own(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer() as producer:
        assert producer.send(X, Y, "t", seq=7) == 7
        assert producer.send(X, Y, "t") == 8
        with pytest.raises(StreamclError, match="at least 9, got 8"):
            producer.send(X, Y, "t", seq=8)
        assert producer.boundary("t", seq=20)["samples"] == 4
        assert producer.durable == 20
    with daemon.producer() as producer:
        assert producer.durable == 20
    daemon.kill()
    daemon.start()
    with daemon.producer() as producer:
        assert producer.durable == 20


def test_gathered_blocks_have_the_number_of_the_last(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer(gather_bytes=1 << 20, linger=60.0) as producer, daemon.admin() as admin:
        assert [producer.send(X, Y, "t", seq=number) for number in (3, 9)] == [3, 9]
        assert producer.send(X, Y, "t") == 10  # counted: a message of its own
        producer.flush()
        assert (producer.durable, admin.status()["batches_durable"]) == (10, 2)


@pytest.mark.campaign
def test_a_refused_message_gives_all_its_numbers_back(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer() as producer:
        producer.send(X, Y, "t", seq=5)
        producer.flush()
        with pytest.raises(Refused, match="bad_label"):
            producer.send(X, Y + 7, "t", seq=9)
            producer.flush()
        assert producer.send(X, Y, "t", seq=8) == 8
        assert producer.flush() == 8


def test_the_first_of_the_numbers_is_the_next_one_or_the_message_is_a_gap(
    start: Callable[..., LocalDaemon], connect: Callable[..., Any]
) -> None:
    client = connect(start(TREE).endpoints["stream"])
    client.ask("hello", producer="p")
    arrays = {"x": X, "y": Y.astype("<i8")}
    assert client.ask("batch", arrays, seq=5, first=2, task="t")["expected"] == 1
    assert client.ask("batch", arrays, seq=5, task="t")["code"] == "gap"
    assert client.ask("batch", arrays, seq=5, first=6, task="t")["code"] == "bad_header"
    assert client.ask("batch", arrays, seq=5, first=1, task="t")["durable"] == 5
    assert client.ask("batch", arrays, seq=5, first=1, task="t")["durable"] == 5  # a duplicate
    assert client.ask("batch", arrays, seq=4, first=3, task="t")["durable"] == 5  # and so is what is wholly below
    assert client.ask("batch", arrays, seq=7, first=5, task="t")["expected"] == 6
    assert client.ask("batch", arrays, seq=7, first=6, task="t")["durable"] == 7


@pytest.mark.campaign
def test_a_restarted_producer_may_divide_what_still_waits_otherwise(
    start: Callable[..., LocalDaemon], connect: Callable[..., Any]
) -> None:
    """A boundary behind a barrier and what follows it are not stored; their sender's next process has other numbers."""
    daemon = start(TREE)
    one, other = connect(daemon.endpoints["stream"]), connect(daemon.endpoints["stream"])
    arrays = {"x": X, "y": Y.astype("<i8")}
    one.ask("hello", producer="p", epoch=1)
    assert one.ask("batch", arrays, seq=3, first=1, task="t")["durable"] == 3
    one.send("boundary", seq=6, first=4, task="t", barrier={"q": 1})
    one.send("batch", arrays, seq=9, first=7, task="t")
    one.ask("hello", producer="p", epoch=1)  # behind both: they have been taken in
    assert other.ask("hello", producer="p", epoch=2)["durable"] == 3
    assert other.ask("batch", arrays, seq=5, first=4, task="t")["durable"] == 5
    assert other.ask("batch", arrays, seq=6, first=6, task="t")["durable"] == 6
