"""Drift: a rise of the error closes the open task and names the next; a fall does not; a restart changes nothing."""

from __future__ import annotations

import json
import os
import signal
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from waiting import PATIENCE, until

from streamcl.bench.local import LocalDaemon
from streamcl.client import Admin
from streamcl.errors import Refused, StreamclError
from streamcl.learning.drift import CALIBRATION, RECENT, Drift, errors

LEAST = 100


def errors_at(rates: list[tuple[float, int]], seed: int = 0) -> list[float]:
    """0 or 1 for each row, wrong at one rate for a number of rows, then at the next."""
    rng = np.random.default_rng(seed)
    return [float(v) for rate, n in rates for v in rng.random(n) < rate]


def watch(likelihood: str = "categorical", delta: float = 0.002) -> Drift:
    made = Drift(likelihood, delta, LEAST)
    made.open_task()
    return made


# -- the detector ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_a_rise_is_found_soon_and_told_in_numbers(seed: int) -> None:
    drift = watch()
    drift.add(errors_at([(0.1, 1000), (0.6, 400)], seed))
    assert drift.found is not None
    assert 1000 < drift.found.row < 1150
    assert drift.found.before < drift.found.after
    assert f"found at row {drift.found.row}" in str(drift.found)


@pytest.mark.parametrize("seed", range(5))
def test_neither_learning_nor_noise_is_drift(seed: int) -> None:
    for rates in ([(0.9, 300), (0.4, 300), (0.1, 3000)], [(0.3, 4000)]):
        drift = watch()
        drift.add(errors_at(rates, seed))
        assert drift.found is None


def test_a_task_of_few_rows_is_left_alone() -> None:
    drift = watch()
    drift.add(errors_at([(0.0, 30), (1.0, LEAST - 30)]))
    assert drift.found is None


def test_the_next_task_begins_anew() -> None:
    drift = watch()
    drift.add(errors_at([(0.0, 500), (1.0, 200)]))
    assert drift.found is not None
    drift.open_task()
    assert (drift.found, drift.rows) == (None, 0)
    drift.add(errors_at([(1.0, 1000)]))
    assert drift.found is None


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_real_numbers_are_judged_whatever_their_unit_and_an_outlier_is_not_drift(scale: float) -> None:
    rng = np.random.default_rng(0)
    quiet, loud = scale * rng.chisquare(1, 1500), 25 * scale * rng.chisquare(1, 500)
    drift = watch("gaussian")
    drift.add([*quiet, 1e12 * scale, *quiet])
    assert drift.found is None
    drift.add(loud)
    assert drift.found is not None
    assert drift.found.row > 3001


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_saved_and_restored_anywhere_it_finds_the_same(data: st.DataObject) -> None:
    likelihood = data.draw(st.sampled_from(["categorical", "gaussian"]))
    rates = [(data.draw(st.floats(0, 1)), data.draw(st.integers(1, 700))) for _ in range(3)]
    stream = errors_at(rates, data.draw(st.integers(0, 9)))
    cut = data.draw(st.integers(0, len(stream)))
    whole, first = watch(likelihood), watch(likelihood)
    whole.add(stream)
    first.add(stream[:cut])
    second = Drift(likelihood, 0.002, LEAST)
    second.restore(msgpack.unpackb(msgpack.packb(first.state())))
    second.add(stream[cut:])
    assert second.state() == whole.state()


def test_its_state_is_bounded() -> None:
    drift = watch()
    drift.add(errors_at([(0.2, 2 * RECENT + 5000)]))
    assert drift.found is None
    assert len(msgpack.packb(drift.state())) < 2 * RECENT + 1000
    assert len(watch("gaussian").state()["first"]) <= CALIBRATION


def test_errors_are_the_share_of_a_rows_targets_that_is_wrong() -> None:
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]])
    assert errors("categorical", logits, torch.tensor([0, 0])) == [0.0, 1.0]
    assert errors("bernoulli", torch.tensor([[1.0, -1.0]]), torch.tensor([[1.0, 1.0]])) == [0.5]
    assert errors("gaussian", torch.tensor([[3.0], [float("inf")]]), torch.tensor([[1.0], [0.0]])) == [4.0, 1e300]


# -- the daemon --------------------------------------------------------------------------------------------------------


def tree(**stream: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "streamcl.models:linear", "classes": 4},
        "train": {"batch_size": 8, "epochs": 2, "learning_rate": 0.05},
        "posterior": {"mode": "factors", "scale": 0.01},
        "stream": {"boundary": "drift", "drift_rows": LEAST, **stream},
    }


def rows(seed: int, shift: int = 0, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Four classes that a linear model tells apart; shift: the labels turned by so many."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    return np.eye(4, 6, dtype="<f4")[y] * 4 + rng.normal(scale=0.1, size=(n, 6)).astype("<f4"), (y + shift) % 4


def stream(daemon: LocalDaemon, shifts: list[int], first: int = 0, tag: str = "a") -> None:
    with daemon.producer() as producer:
        for number, shift in enumerate(shifts):
            producer.send(*rows(first + number, shift), tag)
        producer.flush()


def tasks(daemon: LocalDaemon) -> list[str]:
    with daemon.admin() as admin:
        return [task["task"] for task in admin.tasks()]


def learned(daemon: LocalDaemon, batches: int) -> None:
    with daemon.admin() as admin:
        until(lambda: admin.status()["samples_seen"] == 20 * batches)


def test_a_stream_that_changes_becomes_the_next_task_and_the_producer_need_not_know(
    start: Callable[..., LocalDaemon],
) -> None:
    daemon = start(tree())
    stream(daemon, [0] * 30)
    learned(daemon, 30)
    assert tasks(daemon) == []
    stream(daemon, [1] * 30, first=30)
    until(lambda: tasks(daemon) == ["a"])
    learned(daemon, 60)
    with daemon.admin() as admin:
        assert admin.status()["task"] == "a.2"
        assert admin.metrics()["streamcl_drift_detected_total"] == 1
        assert admin.boundary("a")["task"] == "a.2"  # its own tag closes it, as always
        assert tasks(daemon) == ["a", "a.2"]
        assert sum(task["samples"] for task in admin.tasks()) == 20 * 60
    with urllib.request.urlopen(daemon.url("/history?seconds=0"), timeout=PATIENCE) as answer:
        events = json.loads(answer.read())["events"]
    (found,) = [event for event in events if event["kind"] == "drift"]
    assert found["task"] == "a"
    assert "the error rose from" in found["text"]
    stream(daemon, [1] * 2, first=60)
    learned(daemon, 62)
    with daemon.admin() as admin:
        assert admin.status()["task"] == "a.3"


def test_a_steady_stream_stays_one_task(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    stream(daemon, [0] * 60)
    learned(daemon, 60)
    with daemon.admin() as admin:
        assert admin.status()["task"] == "a"
        assert admin.metrics()["streamcl_drift_detected_total"] == 0
    assert tasks(daemon) == []


@pytest.mark.campaign
@pytest.mark.parametrize("checkpoint", [True, False])
def test_a_crash_before_or_amid_the_change_leaves_the_same_tasks_and_parameters(
    start: Callable[..., LocalDaemon], checkpoint: bool
) -> None:
    whole, broken = start(tree(), "whole"), start(tree(), "broken")
    for daemon in (whole, broken):
        for batch in range(48):
            stream(daemon, [int(batch >= 30)], first=batch)
            learned(daemon, batch + 1)
            if daemon is broken and batch in (28, 31, 33):
                with daemon.admin() as admin:
                    if checkpoint:
                        admin.checkpoint()
                daemon.kill_all()
                daemon.start()
        with daemon.admin() as admin:
            admin.boundary("a")
    with whole.admin() as one, broken.admin() as other:
        assert samples(other) == samples(one)
        np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)
        np.testing.assert_array_equal(one.parameters().precision, other.parameters().precision)


# -- the same log, the same tasks --------------------------------------------------------------------------------------

SHIFTS = [0] * 30 + [1] * 30 + [2] * 12


def ending(daemon: LocalDaemon) -> tuple[Any, ...]:
    """Every task with its figures, and all that was learned."""
    with daemon.admin() as admin:
        figures = [(t["task"], t["samples"], t["loss"], t["weight"]) for t in admin.tasks()]
        found = admin.parameters()
    return figures, found.theta.tobytes(), found.precision.tobytes(), found.shift.tobytes()


def in_peace(daemon: LocalDaemon) -> None:
    """A batch, and the next once it is learned."""
    for number, shift in enumerate(SHIFTS):
        stream(daemon, [shift], first=number)
        learned(daemon, number + 1)


def all_at_once(daemon: LocalDaemon) -> None:
    """Everything is stored before anything is learned; the boundary too."""
    with daemon.admin() as admin:
        admin.pause()
        until(lambda: admin.status()["state"] == "paused")
        stream(daemon, SHIFTS)
        admin.boundary("a", wait=False)
        admin.resume()


def killing_the_trainer(daemon: LocalDaemon) -> None:
    """The trainer dies every dozen batches, wherever it is."""
    with daemon.producer() as producer:
        for number, shift in enumerate(SHIFTS):
            producer.send(*rows(number, shift), "a")
            if number % 12 == 7:
                producer.flush()
                until(lambda: "trainer" in daemon.children())
                os.kill(daemon.children()["trainer"], signal.SIGKILL)


def killing_all(daemon: LocalDaemon) -> None:
    """Every process dies, amid the backlog and behind it."""
    with daemon.producer() as producer:
        for number, shift in enumerate(SHIFTS):
            producer.send(*rows(number, shift), "a")
            if number in (29, 38, 66):
                producer.flush()
                daemon.kill_all()
                daemon.start()


@pytest.mark.campaign
@pytest.mark.timeout(400)
def test_where_it_splits_depends_on_the_rows_alone(start: Callable[..., LocalDaemon]) -> None:
    ends = {}
    for feed in (in_peace, all_at_once, killing_the_trainer, killing_all):
        daemon = start(tree(credit=2 if feed is killing_all else 16), feed.__name__)
        feed(daemon)
        with daemon.admin() as admin:
            if feed is not all_at_once:
                admin.boundary("a")
            until(lambda: sum(task["samples"] for task in admin.tasks()) == 20 * len(SHIFTS))
        ends[feed.__name__] = ending(daemon)
        daemon.kill()
    assert [name for name, *_ in ends["in_peace"][0]] == ["a", "a.2", "a.3"]
    assert len(set(map(repr, ends.values()))) == 1, {name: end[0] for name, end in ends.items()}


def changed_at(start: Callable[..., LocalDaemon]) -> int:
    """How many batches it takes until the change of a stream is found."""
    daemon = start(tree(), "scout")
    with daemon.admin() as admin, daemon.producer() as producer:
        for number in range(60):
            producer.send(*rows(number, int(number >= 30)), "a")
        producer.flush()
        until(admin.tasks)
        return int(admin.tasks()[0]["samples"]) // 20


@pytest.mark.campaign
def test_a_boundary_right_behind_the_change_is_told_the_task_that_drift_closed(start: Callable[..., LocalDaemon]) -> None:
    batches = changed_at(start)
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        admin.pause()  # nobody knows yet
        for number in range(batches):
            producer.send(*rows(number, int(number >= 30)), "a")
        waiting = producer.boundary("a", weight=3.5, wait=False)
        with pytest.raises(Refused, match="task_closed"):
            producer.boundary("a", wait=False)
            producer.flush()
        admin.resume()
        learned(daemon, batches)
        until(lambda: tasks(daemon) == ["a"])
        assert waiting["seq"] == batches + 1
        until(lambda: admin.status()["warning"] is not None)
        assert "the boundary's own, 3.5, is not used" in admin.status()["warning"]
        producer.send(*rows(99, 1), "a")  # a new stretch of the tag: the task after the one that drift closed
        done = producer.boundary("a")
        assert (done["task"], done["samples"]) == ("a.2", 20)
        assert "origin" not in done
        (first, _) = admin.tasks()
        assert first["weight"] == 0.01 * first["samples"]


@pytest.mark.campaign
def test_a_boundary_after_a_change_known_to_all_is_answered_too_and_after_a_restart(
    start: Callable[..., LocalDaemon],
) -> None:
    batches = changed_at(start)
    daemon = start(tree())
    stream(daemon, [int(number >= 30) for number in range(batches)])
    until(lambda: tasks(daemon) == ["a"])
    with daemon.producer("other") as other, pytest.raises(Refused, match="task_mismatch"):
        other.send(*rows(1), "b")  # the tag is open until a boundary says so: whether drift came first changes nothing
        other.flush()
    daemon.kill_all()
    daemon.start()
    with daemon.producer("other") as other, pytest.raises(Refused, match="task_mismatch"):
        other.send(*rows(1), "b")
        other.flush()
    with daemon.admin() as admin:
        done = admin.boundary("a")
        assert {name: done[name] for name in ("task", "kind", "origin", "samples")} == {
            "task": "a",
            "kind": "boundary",
            "origin": "drift",
            "samples": 20 * batches,
        }
        assert admin.status()["task"] is None
        assert admin.metrics()["streamcl_boundaries_total"] <= 1  # it is no second one
    with daemon.producer("other") as other:
        other.send(*rows(1), "b")
        assert other.boundary("b")["samples"] == 20


@pytest.mark.campaign
def test_a_change_found_by_a_revisited_name_is_passed_over(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    with daemon.producer() as producer:
        producer.send(*rows(0), "a.2")
        producer.boundary("a.2")
        for number in range(60):
            producer.send(*rows(number, int(number >= 30)), "a")
        done = producer.boundary("a")
    assert tasks(daemon) == ["a.2", "a", "a.3"]
    assert done["task"] == "a.3"


@pytest.mark.campaign
def test_a_state_directory_with_drifts_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    """Of aca4cef: ingest had written the boundary of `a` into the log, `a.2` was open; killed."""
    name = "state-with-drift-of-an-earlier-version.tar.gz"
    with tarfile.open(Path(__file__).parent / "data" / name) as archive:
        archive.extractall(tmp_path, filter="data")
    with LocalDaemon(tree(), tmp_path / "state") as daemon, daemon.producer() as producer, daemon.admin() as admin:
        assert admin.status()["task"] == "a.2"
        for number in range(60, 64):
            producer.send(*rows(number, 1), "a")
        done = producer.boundary("a")
        assert (done["task"], done["samples"]) == ("a.2", 580)
        found = admin.parameters()
    expected = np.load(tmp_path / "state" / "expected.npz", allow_pickle=False)
    for vector in ("theta", "precision", "shift"):
        np.testing.assert_allclose(getattr(found, vector), expected[vector], rtol=1e-4, atol=1e-5)  # by another processor


def samples(admin: Admin) -> dict[str, int]:
    return {task["task"]: task["samples"] for task in admin.tasks()}


def test_another_tag_is_another_task_only_after_a_boundary(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    stream(daemon, [0] * 3)
    with daemon.producer("other") as other, pytest.raises(Refused, match="task_mismatch"):
        other.send(*rows(1), "b")
        other.flush()
    with daemon.admin() as admin:
        assert admin.boundary("a")["samples"] == 60


@pytest.mark.campaign
def test_a_revisit_is_no_drift(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    stream(daemon, [0] * 30)
    with daemon.producer("again") as producer, daemon.admin() as admin:
        producer.boundary("a")
        producer.revisit("a")
        for number in range(30):
            producer.send(*rows(number, number // 15), "a")
        done = producer.boundary("a")
        assert done["samples"] == 600
        assert admin.metrics()["streamcl_drift_detected_total"] == 0


def test_an_optimiser_that_learns_at_boundaries_only_cannot_watch(start: Callable[..., LocalDaemon]) -> None:
    with pytest.raises(StreamclError, match=r"stream\.boundary: drift shows in the errors"):
        start({**tree(), "train": {"optimizer": "lbfgs"}})
