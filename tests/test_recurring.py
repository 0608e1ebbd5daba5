"""Tasks that come back: recognised by what their rows are like, told by an event, and learned as a revisit where asked."""

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
from streamcl.config import from_tree
from streamcl.errors import ConfigError
from streamcl.learning.recurring import MOST, Recurring


def tree(recurring: str, **parts: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": {"factory": "streamcl.models:linear", "classes": 4, **parts.get("model", {})},
        "train": {"batch_size": 8, "epochs": 2, "learning_rate": 0.05} if "model" not in parts else {},
        "posterior": {"mode": "factors"},
        "stream": {"boundary": "rows", "boundary_rows": 300, "recurring": recurring, **parts.get("stream", {})},
    }


def rows(seed: int, shift: int = 0, n: int = 100) -> tuple[np.ndarray, np.ndarray]:
    """Four classes that a linear model tells apart; shift: the labels turned by so many, with the same inputs."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    return np.eye(4, 6, dtype="<f4")[y] * 4 + rng.normal(scale=0.5, size=(n, 6)).astype("<f4"), (y + shift) % 4


def seen(*concepts: tuple[int, int, int], most: float = 0.2, labelled: bool = True) -> Recurring:
    """Tasks t0, t1, ... of a shift and so many rows each, the last one open."""
    recurring = Recurring(most, labelled)
    for number, (seed, shift, n) in enumerate(concepts):
        if number:
            recurring.end(f"t{number - 1}")
        x, y = rows(seed, shift, n)
        recurring.look(x, y if labelled else x[:, :1] * np.float32(shift - 1))
    return recurring


KNOWN = {f"t{number}": None for number in range(MOST + 9)}

# -- what is alike -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labelled", [True, False])
def test_the_same_again_is_recognised_and_others_are_not(labelled: bool) -> None:
    recurring = seen((0, 0, 500), (1, 1, 500), (2, 2, 500), (3, 1, 500), labelled=labelled)
    found = recurring.alike(KNOWN)
    assert found is not None
    assert found.task == "t1"
    assert found.distance < 0.1
    assert "its rows look like those of task 't1'" in str(found)
    assert recurring.alike({"t0": None, "t2": None}) is None  # it was withdrawn, or undone


def test_no_steady_task_is_missed_and_no_other_taken_for_it() -> None:
    """Of 40 of each; a few rows of what came before or after, which drift takes to be found, change nothing."""
    for seed in range(40):
        assert seen((seed, 0, 400), (100 + seed, 3, 400)).alike(KNOWN) is None
        again = seen((seed, 0, 400), (100 + seed, 3, 30))
        again.look(*rows(200 + seed, 0, 400))
        assert again.alike(KNOWN) is not None


def test_too_few_rows_are_not_judged() -> None:
    assert seen((0, 0, 500), (1, 0, 60)).alike(KNOWN) is None
    assert seen((0, 0, 60), (1, 0, 500)).alike(KNOWN) is None
    assert seen((0, 0, 500), (1, 0, 300)).alike(KNOWN) is not None


def test_saved_and_restored_anywhere_it_is_the_same() -> None:
    whole, first = seen((0, 0, 500)), seen((0, 0, 60))
    x, y = rows(0, 0, 500)
    for cut in (60, 300):
        first, second = Recurring(0.2, True), Recurring(0.2, True)
        first.look(x[:cut], y[:cut])
        second.restore(msgpack.unpackb(msgpack.packb(first.state())))
        second.look(x[cut:], y[cut:])
        assert second.open.rows == whole.open.rows
        np.testing.assert_allclose(second.open.moments(), whole.open.moments(), atol=1e-12)


def test_what_is_kept_is_bounded() -> None:
    recurring = Recurring(0.2, True)
    for number in range(MOST + 9):
        recurring.look(*rows(number, 0, 100))
        recurring.end(f"t{number}")
    assert len(recurring.known) == MOST
    assert len(msgpack.packb(recurring.state())) < MOST * 4000


# -- learners ----------------------------------------------------------------------------------------------------------

SHIFTS = [0] * 3 + [1] * 3 + [0] * 3 + [2] * 3


def fed(learner: Learner) -> list[dict[str, Any]]:
    return [told for n, shift in enumerate(SHIFTS) if (told := learner.observe(*rows(n, shift), task="s")) is not None]


def figures(learner: Learner) -> list[tuple[str, int, int]]:
    return [(task["task"], task["samples"], task["revisits"]) for task in learner.tasks()]


def test_told_only_every_stretch_is_a_task_of_its_own() -> None:
    learner = Learner({**tree("tell"), "posterior": {"mode": "single"}})
    assert [(told["task"], told.get("recurs")) for told in fed(learner)] == [
        ("s", None),
        ("s.2", None),
        ("s.3", "s"),
        ("s.4", None),
    ]


@pytest.mark.parametrize("model", [None, {"learner": "exact", "factory": "streamcl.models:identity"}])
def test_revisited_the_task_that_comes_back_is_learned_as_itself(
    model: dict[str, Any] | None,
) -> None:
    settings = tree("revisit", **({} if model is None else {"model": model}))
    if model is not None:
        settings["model"]["args"] = {}
    learner = Learner(settings)
    told = fed(learner)
    assert [(each["task"], each["kind"], each.get("recurs")) for each in told] == [
        ("s", "boundary", None),
        ("s.2", "boundary", None),
        ("s", "revisit", "s"),
        ("s.3", "boundary", None),
    ]
    assert figures(learner) == [("s", 300, 1), ("s.2", 300, 0), ("s.3", 300, 0)]
    assert sorted(learner._memory.factors) == [5, 8, 11]  # the old one of s, at 2, has gone
    if model is not None:  # exact: its statistics are replaced, whatever order they came in
        asked = Learner({**settings, "stream": {}})
        for name, first in (("a", 6), ("b", 3), ("c", 9)):
            for number in range(first, first + 3):
                asked.observe(*rows(number, SHIFTS[number]), task=name)
            asked.boundary(name)
        found, expected = (np.sort(each.parameters().theta) for each in (learner, asked))  # labels are in another order
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_saved_anywhere_it_goes_on_as_if_it_had_not_been(tmp_path: Path) -> None:
    once, again = Learner(tree("revisit")), Learner(tree("revisit"))
    for number, shift in enumerate(SHIFTS):
        once.observe(*rows(number, shift), task="s")
        again.observe(*rows(number, shift), task="s")
        again.save(tmp_path / "saved")
        again = Learner.load(tmp_path / "saved")
    assert figures(once) == figures(again) == [("s", 300, 1), ("s.2", 300, 0), ("s.3", 300, 0)]
    np.testing.assert_array_equal(once.parameters().theta, again.parameters().theta)
    np.testing.assert_array_equal(once.parameters().precision, again.parameters().precision)


def test_a_withdrawn_task_does_not_come_back() -> None:
    learner = Learner(tree("revisit"))
    for number in range(6):
        learner.observe(*rows(number, SHIFTS[number]), task="s")
    learner.boundary("s")
    learner.forget("s")
    for number in range(6, 9):
        learner.observe(*rows(number, 0), task="s")
    assert [task for task, _, _ in figures(learner)] == ["s.2", "s.3"]


# -- the daemon --------------------------------------------------------------------------------------------------------


def stream(daemon: LocalDaemon, first: int, end: int) -> None:
    with daemon.producer(timeout=120) as producer:
        for number in range(first, end):
            producer.send(*rows(number, SHIFTS[number]), "s")
            producer.flush()


def test_through_a_daemon_that_is_killed_it_is_told_and_the_bits_are_the_same(start: Callable[..., LocalDaemon]) -> None:
    learner, daemon = Learner(tree("revisit")), start(tree("revisit"))
    fed(learner)
    stream(daemon, 0, 8)
    daemon.kill_all()
    daemon.start()
    stream(daemon, 8, len(SHIFTS))
    with daemon.admin() as admin:
        until(lambda: len(admin.tasks()) == 3)
        assert [(task["task"], task["samples"], task["revisits"]) for task in admin.tasks()] == figures(learner)
        assert admin.metrics()["streamcl_revisits_total"] == 1
        assert admin.metrics()["streamcl_tasks_recurred_total"] == 1
        assert admin.boundary("s")["origin"] == "rows"
        found = admin.parameters()
    np.testing.assert_array_equal(found.theta, learner.parameters().theta)
    np.testing.assert_array_equal(found.precision, learner.parameters().precision)
    with urllib.request.urlopen(daemon.url("/history?seconds=0"), timeout=PATIENCE) as answer:
        (event,) = [event for event in json.loads(answer.read())["events"] if event["kind"] == "recurs"]
    assert event["task"] == "s"
    assert "its rows look like those of task 's'" in event["text"]


@pytest.mark.parametrize(
    ("stream", "mode", "said"),
    [
        (
            {"boundary": "rows", "recurring": "revisit"},
            "single",
            "expected posterior.mode factors, got single; or recurring",
        ),
        ({"boundary": "explicit", "recurring": "tell"}, "factors", "expected stream.boundary rows, time, budget, score or"),
        ({"boundary": "rows", "recurring": "yes"}, "factors", "stream.recurring: expected one of off | tell | revisit"),
        ({"boundary": "rows", "recurring_distance": 0}, "factors", "stream.recurring_distance: expected float > 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(stream: dict[str, Any], mode: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        from_tree({"posterior": {"mode": mode}, "stream": stream})
    assert said in str(caught.value)
