"""Boundaries by the clock: by a task's age, or by a budget of boundaries' seconds. It is asked once; the log has it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE, until

from streamcl import Learner
from streamcl.bench.local import LocalDaemon
from streamcl.config import from_tree
from streamcl.entries import BY_ITSELF as BY
from streamcl.entries import Consolidated
from streamcl.protocol import messages
from streamcl.protocol.frames import NamedArrays
from streamcl.protocol.restoring import restore
from streamcl.protocol.schedule import DAY, Schedule
from streamcl.protocol.session import StreamSession, Terms
from streamcl.storage.records import Batch, Boundary, Record


def tree(boundary: str, **stream: Any) -> dict[str, Any]:
    return {
        "model": {"args": {"hidden": [8]}},
        "train": {"epochs": 1},
        "stream": {"boundary": boundary, "least_rows": 100, **stream},
    }


def rows(number: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    y = rng.integers(0, 3, n)
    return (rng.normal(size=(n, 4)) + 2 * y[:, None]).astype("<f4"), y


class Clock:
    """Says what it is set to."""

    def __init__(self, now: float = 1e9) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def timed(settings: dict[str, Any], clock: Clock) -> Learner:
    learner = Learner(settings)
    learner._session.clock = clock
    return learner


# -- by a task's age ---------------------------------------------------------------------------------------------------


def test_what_comes_after_the_time_is_the_next_task() -> None:
    clock = Clock()
    learner = timed(tree("time", boundary_seconds=3600), clock)
    for number in range(12):
        learner.observe(*rows(number), task="a")
        clock.now += 600
    # rows at 0, 10, ..., 50 minutes are one task; those of the 60th minute begin the next
    assert [(task["task"], task["samples"]) for task in learner.tasks()] == [("a", 240)]
    told = learner.observe(*rows(12), task="a")
    assert told is not None
    assert (told["task"], told["samples"], told["origin"]) == ("a.2", 240, "time")
    assert learner.open_task == "a.3"


def test_a_task_of_few_rows_is_left_alone_however_old() -> None:
    clock = Clock()
    learner = timed(tree("time", boundary_seconds=1), clock)
    for number in range(3):
        learner.observe(*rows(number), task="a")
        clock.now += DAY
        assert learner.tasks() == []
    learner.observe(*rows(3), task="a")
    assert [(task["task"], task["samples"]) for task in learner.tasks()] == [("a", 120)]


def test_a_boundary_behind_it_is_told_of_it_and_the_tag_stays_open_until_then() -> None:
    session, clock = of(tree("time", boundary_seconds=60)), Clock()
    session.clock = clock
    for seq in (1, 2, 3):
        store(session, seq)
    clock.now += 61
    (ending,) = session.due()
    assert isinstance(ending, Boundary)
    assert ending.reason is not None
    assert "61 s ago, at least the 60 s of stream.boundary_seconds, with 120 rows, at least the 100" in ending.reason
    session.apply(session.next_lsn, ending, 10)
    assert (session.open_task, session.open_tag, session.due()) == (None, "a", ())
    assert session.admit_boundary("p", messages.Boundary(seq=4, task="a"))
    store(session, 4)
    assert session.open_task == "a.2"


def of(settings: dict[str, Any]) -> StreamSession:
    session = StreamSession(Terms.of(from_tree(settings)))
    session.producers.hello(messages.Hello(producer="p"))
    return session


def store(session: StreamSession, seq: int) -> list[Record]:
    x, y = rows(seq)
    batch = session.admit_batch("p", messages.Batch(seq=seq, task="a"), NamedArrays({"x": x, "y": y}), 700)
    for record in batch:
        session.apply(session.next_lsn, record, 700)
    session.producers.synced()
    return list(batch)


# -- by a budget -------------------------------------------------------------------------------------------------------


def spent(at: float, seconds: float) -> Consolidated:
    return Consolidated(task="a", lsn=0, seconds=seconds, closed_at=at + seconds)


def test_boundaries_come_as_often_as_the_budget_pays_for_them() -> None:
    schedule = Schedule("budget", 60.0, 1)  # so a boundary of a second is paid for in 1440
    schedule.add(1, 0.0)
    assert schedule.due(0.0, True) is not None
    schedule.spend(spent(0.0, 2.0))
    assert schedule.due(2879.0, True) is None
    assert schedule.due(2880.0, False) is None  # while it is not known what the last one took
    told = schedule.due(2880.0, True)
    assert told is not None
    assert "the last boundary took 2 s, for which stream.budget_seconds (60 s a day) has paid" in told
    schedule.spend(spent(2880.0, 1.0))
    schedule.spend(spent(2881.0, 1.0))  # somebody's own counts too
    assert schedule.due(2880.0 + 2879, True) is None
    assert schedule.due(2880.0 + 2880, True) is not None


@given(st.lists(st.floats(0.01, 500), min_size=1, max_size=60), st.floats(1, DAY))
@settings(max_examples=60, deadline=None)
def test_no_day_takes_more_than_the_budget_and_one_boundary(costs: list[float], budget: float) -> None:
    schedule, now, taken = Schedule("budget", budget, 1), 0.0, []
    for cost in costs:
        schedule.add(1, now)
        now = max(now, schedule.paid)
        assert schedule.due(now, True) is not None
        schedule.end()
        schedule.spend(spent(now, cost))
        taken.append((now, cost))
    for begun, _ in taken:
        day = [cost for at, cost in taken if begun <= at < begun + DAY]
        assert sum(day[:-1]) <= budget * (1 + 1e-9) + 1e-6


def test_a_learner_spends_its_budget_and_goes_on_with_it_when_loaded(tmp_path: Path) -> None:
    clock = Clock()
    learner = timed(tree("budget", budget_seconds=DAY), clock)
    for number in range(4):
        learner.observe(*rows(number), task="a")
    assert [task["samples"] for task in learner.tasks()] == [120]
    schedule = learner._session.schedule
    assert schedule is not None
    assert schedule.last > 0  # as measured
    clock.now = schedule.paid - 1e-3
    learner.save(tmp_path / "saved")
    loaded = Learner.load(tmp_path / "saved")
    loaded._session.clock = clock
    assert loaded._session.schedule == schedule
    for number in range(4, 7):
        loaded.observe(*rows(number), task="a")
    assert len(loaded.tasks()) == 1
    clock.now = schedule.paid
    loaded.observe(*rows(7), task="a")
    assert [task["samples"] for task in loaded.tasks()] == [120, 160]


# -- the log has it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("boundary", ["time", "budget"])
def test_recovery_knows_what_was_known_whatever_the_clock_says_now(boundary: str) -> None:
    live, clock, log = of(tree(boundary, boundary_seconds=100, budget_seconds=100)), Clock(), []
    live.clock = clock
    for seq in range(1, 12):
        clock.now += 30
        for record in live.due():
            live.apply(len(log), record, 700)
            log.append(record)
        log += store(live, seq)
        again = of(tree(boundary, boundary_seconds=100, budget_seconds=100))
        again.clock = Clock(5.0)
        restore(again, None, [], [(lsn, record, 700) for lsn, record in enumerate(log)])
        assert again.schedule == live.schedule
        assert (again.open_tag, again.open_task, again.open_batches) == (live.open_tag, live.open_task, live.open_batches)
        assert again.room == live.room
    ends = [lsn for lsn, record in enumerate(log) if isinstance(record, Boundary)]
    assert ends == ([4, 9] if boundary == "time" else [3])
    assert all(isinstance(record, Batch) and record.at is not None for record in log if record.__class__ is Batch)


def test_bits_are_those_of_the_log_however_it_came_about() -> None:
    clock, asked = Clock(), tree("explicit")
    del asked["stream"]["least_rows"]
    learner, explicit = timed(tree("time", boundary_seconds=100), clock), Learner(asked)
    for number in range(9):
        ends = number in (4, 8)
        if ends:
            explicit.boundary(explicit.open_task or "")
        explicit.observe(*rows(number), task=f"a.{1 + number // 4}")
        learner.observe(*rows(number), task="a")
        clock.now += 25 if number != 6 else 26
    np.testing.assert_array_equal(learner.parameters().theta, explicit.parameters().theta)
    np.testing.assert_array_equal(learner.parameters().precision, explicit.parameters().precision)


# -- the daemon --------------------------------------------------------------------------------------------------------


def send(daemon: LocalDaemon, numbers: range) -> None:
    with daemon.producer(timeout=120) as producer:
        for number in numbers:
            producer.send(*rows(number), "a")
        producer.flush()


def told(daemon: LocalDaemon) -> list[tuple[str, int]]:
    with daemon.admin() as admin:
        return [(task["task"], task["samples"]) for task in admin.tasks()]


@pytest.mark.parametrize("boundary", ["time", "budget"])
def test_a_stream_that_has_fallen_silent_ends_its_task_and_an_event_says_why(
    start: Callable[..., LocalDaemon], boundary: str
) -> None:
    daemon = start(tree(boundary, boundary_seconds=0.5))
    send(daemon, range(3))
    until(lambda: told(daemon) == [("a", 120)])
    send(daemon, range(3, 4))
    with daemon.admin() as admin:
        until(lambda: admin.status()["samples_seen"] == 160)
        assert admin.status()["task"] == "a.2"
        ended = {by: admin.metrics()[f'streamcl_tasks_ended_total{{by="{by}"}}'] for by in BY}
        assert ended == {by: float(by == boundary) for by in BY}
        assert admin.boundary("a")["task"] == "a.2"
    with urllib.request.urlopen(daemon.url("/history?seconds=0"), timeout=PATIENCE) as answer:
        (event,) = [event for event in json.loads(answer.read())["events"] if event["kind"] == boundary]
    assert event["task"] == "a"
    assert {"time": "stream.boundary_seconds", "budget": "stream.budget_seconds"}[boundary] in event["text"]


@pytest.mark.campaign
def test_killed_in_between_the_bits_are_those_of_the_log(start: Callable[..., LocalDaemon]) -> None:
    """Where tasks end is the clock's to say, once; what comes of it is compared with a learner that is told where."""
    daemon = start(tree("time", boundary_seconds=0.2))
    for number in range(12):
        send(daemon, range(number, number + 1))
        if number in (2, 5, 8):
            daemon.kill_all()
            daemon.start()
    with daemon.admin() as admin:
        until(lambda: admin.status()["samples_seen"] == 480)
        admin.boundary("a")
        ends = np.cumsum([task["samples"] for task in admin.tasks()]) // 40
        found = admin.parameters()
    assert ends[-1] == 12
    assert len(ends) > 1
    asked = tree("explicit")
    del asked["stream"]["least_rows"]
    learner = Learner(asked)
    for number in range(12):
        learner.observe(*rows(number), task=f"{np.searchsorted(ends, number, 'right')}")
        if number + 1 in ends:
            learner.boundary(learner.open_task or "")
    np.testing.assert_array_equal(found.theta, learner.parameters().theta)
    np.testing.assert_array_equal(found.precision, learner.parameters().precision)
