"""What ends a task by what its rows show: other detectors than ADWIN, the inputs, a fall of the score.

Each has a stream whose right answer is known, and steady ones on which it must say nothing; saved anywhere, it finds the
same.
"""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
from waiting import PATIENCE, until

from streamcl import Learner
from streamcl.bench.local import LocalDaemon
from streamcl.config import DETECTORS, from_tree
from streamcl.errors import ConfigError
from streamcl.learning.detectors import Detector
from streamcl.learning.drift import Drift
from streamcl.learning.fall import Fall
from streamcl.learning.shifts import CALIBRATION, COLUMNS, KEPT, Shifts
from streamcl.learning.watch import Watch

FAST = [name for name in DETECTORS if name != "kswin"]  # which takes 0.2 ms a row


def errors_at(rates: list[tuple[float, int]], seed: int = 0) -> list[float]:
    rng = np.random.default_rng(seed)
    return [float(v) for rate, n in rates for v in rng.random(n) < rate]


def by(name: str, likelihood: str = "categorical", least: int = 500) -> Drift:
    made = Drift(likelihood, 0.002, least, name)
    made.open_task()
    return made


def plain(state: dict[str, Any]) -> dict[str, Any]:
    """As a checkpoint gives it back."""
    restored: dict[str, Any] = msgpack.unpackb(msgpack.packb(state))
    return restored


# -- detectors on the score --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FAST)
def test_every_detector_finds_a_rise_and_tells_it_in_numbers(name: str) -> None:
    drift = by(name)
    drift.add(errors_at([(0.1, 2000), (0.6, 1000)]))
    assert drift.found is not None
    assert 2000 < drift.found.row < 2300
    assert drift.found.before == pytest.approx(0.1, abs=0.05)
    assert drift.found.after > 0.25
    if name != "adwin":  # which keeps what it holds for unchanged too
        assert abs(drift.found.row - 2000 - drift.found.since) < 60


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("rates", [[(0.2, 20_000)], [(0.9, 400), (0.5, 400), (0.1, 8000)]], ids=["noise", "learning"])
def test_neither_noise_nor_learning_is_drift(name: str, rates: list[tuple[float, int]]) -> None:
    for seed in range(2):
        drift = by(name)
        drift.add(errors_at(rates, seed))
        assert drift.found is None


def test_kswin_finds_a_rise_by_what_it_draws_and_a_steady_stream_is_left_alone() -> None:
    drift = by("kswin")
    drift.add(errors_at([(0.1, 600)]))
    assert drift.found is None
    drift.add(errors_at([(0.7, 300)], 1))
    assert drift.found is not None
    assert 600 < drift.found.row < 750


@pytest.mark.parametrize("name", FAST)
def test_a_task_of_few_rows_is_left_alone(name: str) -> None:
    drift = by(name, least=2000)
    drift.add(errors_at([(0.0, 1000), (1.0, 999)]))
    assert drift.found is None


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("likelihood", ["categorical", "gaussian"])
def test_saved_and_restored_anywhere_a_detector_finds_the_same(name: str, likelihood: str) -> None:
    most = 1300 if name == "kswin" else 3000
    stream = errors_at([(0.1, most - 500), (0.7, 500)])
    whole = by(name, likelihood)
    whole.add(stream)
    for cut in (CALIBRATION // 2, 700, most - 450):
        first, second = by(name, likelihood), by(name, likelihood)
        first.add(stream[:cut])
        second.restore(plain(first.state()))
        second.add(stream[cut:])
        assert second.state() == whole.state()


def test_a_window_that_begins_again_is_bounded_and_restored_too() -> None:
    stream = np.random.default_rng(0).integers(100, 150, 150).tolist()
    whole = Detector("kswin", {"window_size": 30, "stat_size": 10})
    whole.begin(0)
    for level in stream:
        whole.add(level)
        if whole.is_full:
            whole.begin(0, whole.seen[-whole.kept :])
    assert len(whole.seen) < 60
    again = Detector("kswin", {"window_size": 30, "stat_size": 10})
    again.begin(0, whole.seen)
    assert [whole.add(255) for _ in range(30)] == [again.add(255) for _ in range(30)]


def test_another_detector_than_the_one_that_was_saved_begins_afresh() -> None:
    old, new = by("adwin"), by("ddm")
    old.add(errors_at([(0.1, 900)]))
    state = old.state()
    del state["by"]  # as older versions wrote it
    new.restore(plain(state))
    assert new.rows == 900
    new.add(errors_at([(0.1, 600), (0.8, 300)], 1))
    assert new.found is not None
    again = by("adwin")
    again.restore(plain(state))
    assert again.state() == old.state()


# -- a fall of the score -----------------------------------------------------------------------------------------------


def falling(least: float = 0.1, window: int = 200, likelihood: str = "categorical", rows: int = 500) -> Fall:
    made = Fall(likelihood, least, window, 0.002, rows)
    made.open_task()
    return made


def test_a_fall_from_the_best_is_found_with_the_window_that_shows_it() -> None:
    fall = falling()
    fall.add([0.0] * 1000 + [1.0, 0.0] * 100)
    assert fall.found is not None
    assert (fall.found.before, fall.found.after, fall.found.row, fall.found.at) == (1.0, 0.5, 1200, 200)
    assert "the score of 200 rows fell from 1, its best, to 0.5" in str(fall.found)
    assert "(stream.score_fall, and what chance explains), found at row 1200 of the task" in str(fall.found)


def test_a_smaller_fall_than_was_asked_for_ends_no_task_however_sure_it_is() -> None:
    fall = falling(0.3, 5000)
    fall.add(errors_at([(0.1, 20_000), (0.35, 20_000)]))
    assert fall.found is None
    fall.add(errors_at([(0.5, 5000)]))
    assert fall.found is not None
    assert fall.found.least == 0.3


def test_learning_is_no_fall_and_a_task_of_few_rows_is_left_alone() -> None:
    fall = falling()
    fall.add(errors_at([(0.9, 2000), (0.5, 2000), (0.1, 6000)]))
    assert fall.found is None
    fall = falling(rows=5000)
    fall.add(errors_at([(0.0, 2000), (1.0, 2600)]))
    assert fall.found is None


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_steady_tasks_end_by_mistake_no_more_often_than_promised(rate: float) -> None:
    """A risk of 0.002 a task at most, whatever fall was asked for: so hardly ever one of 40, each of 300 windows."""
    rng = np.random.default_rng(1)
    ended = 0
    for _ in range(40):
        fall = falling(1e-9, 20)
        fall.add((rng.random(6000) < rate).astype(float).tolist())
        ended += fall.found is not None
    assert ended == 0


def test_saved_and_restored_anywhere_a_fall_is_the_same() -> None:
    for likelihood in ("categorical", "gaussian"):
        stream = errors_at([(0.1, 1000), (0.8, 500)])
        whole = falling(likelihood=likelihood)
        whole.add(stream)
        for cut in (50, 650, 1150, 1400):
            first, second = falling(likelihood=likelihood), falling(likelihood=likelihood)
            first.add(stream[:cut])
            second.restore(plain(first.state()))
            second.add(stream[cut:])
            assert second.state() == whole.state()


# -- the inputs --------------------------------------------------------------------------------------------------------


def looking(least: int = 300) -> Shifts:
    made = Shifts(0.002, least)
    made.open_task()
    return made


def normal(n: int, width: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype("<f4")


def test_the_input_that_moved_is_named_whatever_its_unit() -> None:
    for unit in (1e-9, 1.0, 1e12):
        shifts, x = looking(), normal(1600) * np.float32(unit)
        x[1000:, 2] += np.float32(1.5 * unit)
        shifts.look(x)
        assert shifts.found is not None
        assert shifts.found.what == "input 2"
        assert 1000 < shifts.found.row < 1200
        assert shifts.found.before < shifts.found.after


def test_a_fall_a_spread_and_a_constant_that_moves_are_changes_too() -> None:
    x = normal(1600)
    down, wide, constant = x.copy(), x.copy(), x.copy()
    down[1000:, 1] -= 1.5
    wide[1000:] *= 4
    constant[:, 3] = 7
    constant[1000:, 3] = 7.001
    for moved, what in ((down, "input 1"), (wide, "their spread"), (constant, "input 3")):
        shifts = looking()
        shifts.look(moved)
        assert shifts.found is not None
        assert shifts.found.what == what


@pytest.mark.parametrize("name", ["page_hinkley", "hddm_a"])
def test_detectors_that_look_for_a_rise_of_errors_find_a_fall_of_inputs_too(name: str) -> None:
    shifts, x = Shifts(0.002, 300, name), normal(1600)
    shifts.open_task()
    x[1000:] *= 0.1
    shifts.look(x)
    assert shifts.found is not None
    assert shifts.found.what == "their spread"
    assert shifts.found.before > shifts.found.after


def test_wide_inputs_and_tokens_are_watched_by_a_few_numbers() -> None:
    wide = normal(1600, 300)
    wide[1000:] += 0.5
    tokens = np.random.default_rng(0).integers(0, 50, (1600, 12))
    tokens[1000:] = tokens[1000:] // 2
    for x, what in ((wide, "of the 300 inputs"), (tokens, "of the tokens in random half")):
        shifts = looking()
        shifts.look(x[:1000])
        assert shifts.found is None
        assert len(shifts.state()["seen"]) == COLUMNS + 1
        shifts.look(x[1000:])
        assert shifts.found is not None
        assert what in str(shifts.found)


@pytest.mark.parametrize("name", ["adwin", "page_hinkley", "hddm_a", "hddm_w"])
def test_steady_inputs_are_left_alone_and_the_state_is_bounded(name: str) -> None:
    shifts = Shifts(0.002, 300, name)
    shifts.open_task()
    shifts.look(normal(2 * KEPT + 500, 2))
    assert shifts.found is None
    assert len(msgpack.packb(shifts.state())) < 3 * 2 * KEPT + 1000


def test_saved_and_restored_anywhere_the_inputs_show_the_same() -> None:
    x = normal(2 * KEPT + 1000, 2)
    x[2 * KEPT + 500 :] += 2
    whole = looking()
    whole.look(x)
    assert whole.found is not None
    for cut in (60, 800, 2 * KEPT + 200, 2 * KEPT + 520):
        first, second = looking(), looking()
        first.look(x[:cut])
        second.restore(plain(first.state()))
        second.look(x[cut:])
        assert second.state() == whole.state()


def test_a_change_that_comes_too_soon_and_wider_rows_begin_everything_again() -> None:
    shifts, x = Shifts(0.002, 1000, "page_hinkley"), normal(3000)
    shifts.open_task()
    x[500:] += 3
    shifts.look(x)
    assert shifts.found is None
    shifts.look(normal(900, 5))
    assert shifts.found is None
    shifts.look(normal(300, 5, seed=1) + 3)
    assert shifts.found is not None


# -- learners ----------------------------------------------------------------------------------------------------------


def tree(**stream: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "streamcl.models:linear", "classes": 4},
        "train": {"batch_size": 8, "epochs": 2, "learning_rate": 0.05},
        "posterior": {"scale": 0.01},
        "stream": {"least_rows": 200, "drift_rows": 200, **stream},
    }


SCORE = tree(boundary="score", score_window=100, score_fall=0.2)
INPUTS = tree(boundary="drift", drift_on="inputs")
DDM = tree(boundary="drift", drift_detector="ddm", drift_args={"warm_start": 100})


def rows(seed: int, shift: int = 0, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Four classes that a linear model tells apart; shift: the labels turned by so many, and the last input by as much."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    x = np.eye(4, 6, dtype="<f4")[y] * 4 + rng.normal(scale=0.1, size=(n, 6)).astype("<f4")
    x[:, 5] += 0.3 * shift
    return x, (y + shift) % 4


SHIFTS = [0] * 40 + [1] * 20


@pytest.mark.parametrize(("settings", "origin"), [(SCORE, "score"), (INPUTS, "drift"), (DDM, "drift")])
def test_saved_anywhere_a_learner_splits_its_stream_in_the_same_place(
    settings: dict[str, Any], origin: str, tmp_path: Path
) -> None:
    once, again, told = Learner(settings), Learner(settings), []
    for number, shift in enumerate(SHIFTS):
        told.append(once.observe(*rows(number, shift), task="a"))
        again.observe(*rows(number, shift), task="a")
        if number % 7 == 0:
            again.save(tmp_path / "saved")
            again = Learner.load(tmp_path / "saved")
    (at,) = [number for number, each in enumerate(told) if each is not None]
    assert 40 <= at < 50
    assert told[at] | {"seconds": 0, "loss": 0} == {
        "task": "a",
        "kind": "boundary",
        "samples": 20 * (at + 1),
        "loss": 0,
        "seconds": 0,
        "origin": origin,
        "set_aside": 0,
    }
    assert [task["samples"] for task in again.tasks()] == [20 * (at + 1)]
    np.testing.assert_array_equal(once.parameters().theta, again.parameters().theta)


def test_a_table_is_watched_once_its_scale_is_known() -> None:
    settings = {**tree(boundary="drift", drift_on="inputs"), "model": {"args": {"hidden": [8]}}}
    learner, schema = Learner(settings), [{"name": "a", "kind": "number"}, {"name": "b", "kind": "number"}]
    for number in range(60):
        x = 1000 + 50 * normal(40, 2, number)
        learner.observe(x, (x[:, 0] > 1000).astype(int), schema=schema)
    assert learner.tasks() == []
    for number in range(10):
        x = 1100 + 50 * normal(40, 2, number)
        learner.observe(x, (x[:, 0] > 1100).astype(int), schema=schema)
    assert len(learner.tasks()) == 1


# -- the daemon --------------------------------------------------------------------------------------------------------


def stream(daemon: LocalDaemon, first: int, end: int) -> None:
    with daemon.producer(timeout=120) as producer:
        for number in range(first, end):
            producer.send(*rows(number, SHIFTS[number]), "a")
            producer.flush()  # each a message by itself


def tasks(daemon: LocalDaemon) -> list[tuple[str, int]]:
    with daemon.admin() as admin:
        return [(task["task"], task["samples"]) for task in admin.tasks()]


@pytest.mark.parametrize(("settings", "kind", "said"), [(SCORE, "score", "fell from"), (INPUTS, "drift", "input 5 went")])
def test_through_a_daemon_an_event_says_why(
    start: Callable[..., LocalDaemon], settings: dict[str, Any], kind: str, said: str
) -> None:
    learner = Learner(settings)
    for number, shift in enumerate(SHIFTS):
        learner.observe(*rows(number, shift), task="a")
    daemon = start(settings)
    stream(daemon, 0, len(SHIFTS))
    until(lambda: tasks(daemon) == [(task["task"], task["samples"]) for task in learner.tasks()])
    with daemon.admin() as admin:
        until(lambda: admin.status()["samples_seen"] == 20 * len(SHIFTS))
        assert admin.status()["task"] == "a.2"
        assert admin.metrics()[f'streamcl_tasks_ended_total{{by="{kind}"}}'] == 1
        assert admin.metrics()["streamcl_drift_detected_total"] == float(kind == "drift")
    with urllib.request.urlopen(daemon.url("/history?seconds=0"), timeout=PATIENCE) as answer:
        (event,) = [event for event in json.loads(answer.read())["events"] if event["kind"] == kind]
    assert event["task"] == "a"
    assert said in event["text"]


@pytest.mark.campaign
@pytest.mark.parametrize("settings", [SCORE, INPUTS, DDM], ids=["score", "inputs", "ddm"])
def test_killed_in_between_it_splits_in_the_same_place_with_the_same_bits(
    start: Callable[..., LocalDaemon], settings: dict[str, Any]
) -> None:
    learner, daemon = Learner(settings), start(settings)
    for number, shift in enumerate(SHIFTS):
        learner.observe(*rows(number, shift), task="a")
    learner.boundary("a")
    stream(daemon, 0, 41)
    with daemon.admin() as admin:
        admin.checkpoint()  # wherever the trainer is
    stream(daemon, 41, 42)
    daemon.kill_all()
    daemon.start()
    stream(daemon, 42, len(SHIFTS))
    with daemon.admin() as admin:
        admin.boundary("a")
        found = admin.parameters()
    assert tasks(daemon) == [(task["task"], task["samples"]) for task in learner.tasks()]
    np.testing.assert_array_equal(found.theta, learner.parameters().theta)
    np.testing.assert_array_equal(found.precision, learner.parameters().precision)


# -- settings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream", "said"),
    [
        ({"drift_detector": "eddm"}, "stream.drift_detector: expected one of adwin | page_hinkley | kswin | ddm | hddm_a"),
        ({"drift_args": {"lambda": 1}}, "stream.drift_args: adwin has no 'lambda' here; expected clock, max_buckets"),
        ({"drift_args": {"delta": 0.1}}, "its delta is stream.drift_delta"),
        (
            {"drift_detector": "ddm", "drift_args": {"warm_start": 1.5}},
            "warm_start: expected a whole number greater than 0",
        ),
        ({"drift_detector": "ddm", "drift_args": {"drift_threshold": -1}}, "drift_threshold: expected a number greater"),
        ({"drift_detector": "kswin", "drift_args": {"alpha": 2}}, "alpha: expected a number between 0 and 1, got 2"),
        ({"drift_detector": "kswin", "drift_args": {"stat_size": 200}}, "expected window_size of at least 400, got 300"),
        (
            {"drift_detector": "hddm_a", "drift_delta": 0.1},
            "stream.drift_delta: ADWIN's significance, which hddm_a has not",
        ),
        ({"drift_detector": "ddm", "drift_on": "inputs"}, "stream.drift_detector: ddm finds a rise only"),
        ({"boundary": "score", "drift_on": "inputs"}, "stream.drift_on: inputs have no score"),
        ({"score_fall": 1.0}, "stream.score_fall: expected float < 1.0"),
        ({"score_window": 5}, "stream.score_window: expected int >= 10"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_with_what_was_expected(stream: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_tree({"stream": {"boundary": "drift", **stream}})
    assert said in str(caught.value)


def test_a_score_takes_steps_and_inputs_take_none() -> None:
    lbfgs = {"train": {"optimizer": "lbfgs"}}
    with pytest.raises(ConfigError, match=r"stream\.boundary: a fall of the score shows in the errors"):
        from_tree({**lbfgs, "stream": {"boundary": "score"}})
    settings = from_tree({**lbfgs, "stream": {"boundary": "drift", "drift_on": "inputs"}})
    assert isinstance(Watch.of(settings).drift, Shifts)
