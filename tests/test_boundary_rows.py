"""Boundaries by rows: where tasks end follows from the log alone, is told by an event, and never comes too soon."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE, until

from streamcl import Learner
from streamcl.bench.local import LocalDaemon

TREE: dict[str, Any] = {
    "model": {"args": {"hidden": [8]}},
    "train": {"epochs": 1},
    "stream": {"boundary": "rows", "boundary_rows": 100},
}


def rows(number: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    y = rng.integers(0, 3, n)
    return (rng.normal(size=(n, 4)) + 2 * y[:, None]).astype("<f4"), y


def test_a_task_ends_with_the_message_that_brings_it_there() -> None:
    learner = Learner(TREE)
    for number in range(7):
        learner.observe(*rows(number), task="a")
    assert [(task["task"], task["samples"]) for task in learner.tasks()] == [("a", 120), ("a.2", 120)]
    assert learner.open_task == "a.3"
    assert learner.boundary("a")["samples"] == 40
    assert [task["task"] for task in learner.tasks()] == ["a", "a.2", "a.3"]


def test_a_large_message_is_one_task_and_a_boundary_behind_it_is_told_of_it() -> None:
    learner = Learner(TREE)
    learner.observe(*rows(0, 350), task="a")
    assert [(task["task"], task["samples"]) for task in learner.tasks()] == [("a", 350)]
    told = learner.boundary("a")
    assert (told["task"], told["samples"], told["origin"]) == ("a", 350, "rows")


def test_saved_anywhere_it_ends_in_the_same_places(tmp_path: Path) -> None:
    once, again = Learner(TREE), Learner(TREE)
    for number in range(8):
        once.observe(*rows(number), task="a")
        again.observe(*rows(number), task="a")
        again.save(tmp_path / "saved")
        again = Learner.load(tmp_path / "saved")
    assert [task["task"] for task in once.tasks()] == [task["task"] for task in again.tasks()] == ["a", "a.2"]
    np.testing.assert_array_equal(once.parameters().theta, again.parameters().theta)


def send(daemon: LocalDaemon, numbers: range, between: Callable[[int], None] = lambda number: None) -> None:
    with daemon.producer(timeout=120) as producer:
        for number in numbers:
            producer.send(*rows(number), "a")
            producer.flush()
            between(number)


def told(daemon: LocalDaemon) -> list[tuple[str, int]]:
    with daemon.admin() as admin:
        return [(task["task"], task["samples"]) for task in admin.tasks()]


def test_through_a_daemon_an_event_says_why(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    send(daemon, range(7))
    until(lambda: told(daemon) == [("a", 120), ("a.2", 120)])
    with daemon.admin() as admin:
        until(lambda: admin.status()["samples_seen"] == 280)
        assert admin.status()["task"] == "a.3"
        assert admin.metrics()["streamcl_drift_detected_total"] == 0
    with urllib.request.urlopen(daemon.url("/history?seconds=0"), timeout=PATIENCE) as answer:
        events = [event for event in json.loads(answer.read())["events"] if event["kind"] == "rows"]
    assert [event["task"] for event in events] == ["a.2", "a"]
    assert "the task has 120 rows, at least the 100 that end one (stream.boundary_rows)" in events[0]["text"]


@pytest.mark.campaign
def test_killed_in_between_it_ends_in_the_same_places_with_the_same_bits(start: Callable[..., LocalDaemon]) -> None:
    whole, broken = start(TREE, "whole"), start(TREE, "broken")
    send(whole, range(8))

    def between(number: int) -> None:
        if number in (1, 2, 5):
            broken.kill()
            broken.start()

    send(broken, range(8), between)
    found = []
    for daemon in (whole, broken):
        until(lambda daemon=daemon: told(daemon) == [("a", 120), ("a.2", 120)])
        with daemon.admin() as admin:
            until(lambda admin=admin: admin.status()["samples_seen"] == 320)
            admin.boundary("a")
            found.append(admin.parameters().theta)
    np.testing.assert_array_equal(*found)
