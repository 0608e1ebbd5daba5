"""Evaluation sets: scored after each boundary with its parameters, shown, kept, and never in the way."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE, until

from streamcl.bench.local import LocalDaemon
from streamcl.errors import StreamclError

pytestmark = pytest.mark.campaign


def tree(directory: Path, mode: str = "factors", **train: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "streamcl.models:linear", "classes": 4},
        "train": {"batch_size": 16, "epochs": 20, "learning_rate": 0.05, **train},
        "posterior": {"mode": mode, "scale": 1.0},
        "evaluation": {"directory": str(directory)},
    }


GREEDY = """
import traceback
from torch import nn

def model(input_shape, outputs):
    if "evaluate" in {frame.name for frame in traceback.extract_stack()}:
        raise MemoryError("no room for a second one")
    return nn.Linear(input_shape[0], outputs)
"""


def rows(seed: int, n: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Four classes that a linear model tells apart without an error."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    return np.eye(4, 6, dtype="<f4")[y] * 4 + rng.normal(scale=0.1, size=(n, 6)).astype("<f4"), y


def save(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez(path, x=x, y=y)


def learn(daemon: LocalDaemon, *tasks: str) -> None:
    with daemon.producer() as producer:
        for number, task in enumerate(tasks):
            producer.send(*rows(number), task)
            producer.boundary(task)


def fetch(daemon: LocalDaemon, path: str) -> Any:
    with urllib.request.urlopen(daemon.url(path), timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def metrics(daemon: LocalDaemon) -> dict[str, float]:
    with daemon.admin() as admin:
        known: dict[str, float] = admin.metrics()
    return {name: value for name, value in known.items() if name.startswith("streamcl_task_accuracy_ratio")}


def columns(daemon: LocalDaemon) -> dict[int, dict[str, float]]:
    """Accuracy by task after each boundary."""
    found: dict[int, dict[str, float]] = {}
    for row in fetch(daemon, "/history?seconds=0")["accuracies"]:
        found.setdefault(row["lsn"], {})[row["task"]] = row["accuracy"]
    return found


@pytest.mark.parametrize("mode", ["single", "factors"])
def test_each_boundary_is_followed_by_the_accuracy_of_every_task_so_far(
    start: Callable[..., LocalDaemon], tmp_path: Path, mode: str
) -> None:
    x, y = rows(9, 3000)
    save(tmp_path / "sets" / "a.npz", x, y)
    save(tmp_path / "sets" / "b.npz", x, np.where(np.arange(3000) % 4 == 0, (y + 1) % 4, y))  # a quarter is labelled wrong
    daemon = start(tree(tmp_path / "sets", mode))
    learn(daemon, "a")
    until(lambda: len(columns(daemon)) == 1)
    learn(daemon, "b")
    until(lambda: len(columns(daemon)) == 2)
    first, second = (columns(daemon)[lsn] for lsn in sorted(columns(daemon)))
    assert first == {"a": 1.0}
    assert second == {"a": 1.0, "b": 0.75}
    assert metrics(daemon) == {
        'streamcl_task_accuracy_ratio{task="a"}': 1.0,
        'streamcl_task_accuracy_ratio{task="b"}': 0.75,
    }
    assert [task["accuracy"] for task in fetch(daemon, "/overview")["tasks"]] == [1.0, 0.75]


def test_the_accuracy_is_that_of_the_predictions(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(500, 6)).astype("<f4"), rng.integers(0, 4, 500)
    save(tmp_path / "sets" / "a.npz", x, y)
    daemon = start(tree(tmp_path / "sets"))
    learn(daemon, "a")
    until(lambda: columns(daemon))
    with daemon.reader() as reader:
        predicted = reader.predict(x).probs.argmax(1)
    assert metrics(daemon)['streamcl_task_accuracy_ratio{task="a"}'] == pytest.approx((predicted == y).mean())


def test_it_is_each_boundarys_own_parameters_that_are_scored_while_the_next_tasks_stream_in(
    start: Callable[..., LocalDaemon], tmp_path: Path
) -> None:
    x, y = rows(9, 100_000)
    save(tmp_path / "sets" / "a.npz", x, y)
    save(tmp_path / "sets" / "b.npz", x, (y + 1) % 4)
    daemon = start({**tree(tmp_path / "sets"), "posterior": {"scale": 0.0}})  # so that each task unlearns the one before
    with daemon.producer() as producer:
        for shift, task in enumerate("abc"):
            own_x, own_y = rows(shift, 1000)
            producer.send(own_x, (own_y + shift) % 4, task)
            if task != "c":
                producer.boundary(task, wait=False)
        producer.flush()
        until(lambda: len(columns(daemon)) == 2)
    first, second = (columns(daemon)[lsn] for lsn in sorted(columns(daemon)))
    assert first == {"a": 1.0}
    assert second == {"a": 0.0, "b": 1.0}


def test_a_restart_shows_what_was_known_and_a_withdrawn_task_is_shown_no_more(
    start: Callable[..., LocalDaemon], tmp_path: Path
) -> None:
    save(tmp_path / "sets" / "a.npz", *rows(9))
    save(tmp_path / "sets" / "b.npz", *rows(9))
    daemon = start(tree(tmp_path / "sets"))
    learn(daemon, "a", "b")
    until(lambda: len(metrics(daemon)) == 2)
    with daemon.producer("late") as producer:
        producer.send(*rows(5), "c")  # open at the end, so that nothing can be evaluated anew
        producer.flush()
    before = columns(daemon)
    daemon.kill_all()
    daemon.start()
    assert len(metrics(daemon)) == 2
    assert columns(daemon) == before
    with daemon.admin() as admin:
        admin.forget("a")
    assert list(metrics(daemon)) == ['streamcl_task_accuracy_ratio{task="b"}']
    assert all("a" not in column for column in columns(daemon).values())


def test_csv_and_names_that_no_file_can_have(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    x, y = rows(9)
    (tmp_path / "sets").mkdir()
    lines = [
        ",".join([*(f"x{n}" for n in range(6)), "y"]),
        *(",".join(map(str, [*r, t])) for r, t in zip(x, y, strict=True)),
    ]
    (tmp_path / "sets" / "plain.csv").write_text("\n".join(lines) + "\n")
    save(tmp_path / "sets" / "..%2Fsite%2F1.npz", x, y)
    daemon = start(tree(tmp_path / "sets"))
    learn(daemon, "plain", "../site/1")
    until(lambda: len(metrics(daemon)) == 2)
    assert set(metrics(daemon).values()) == {1.0}


def test_what_is_wrong_with_a_file_is_said_once_and_holds_up_nothing(
    start: Callable[..., LocalDaemon], tmp_path: Path
) -> None:
    x, y = rows(9)
    sets = tmp_path / "sets"
    save(sets / "good.npz", x, y)
    save(sets / "narrow.npz", x[:, :5], y)
    save(sets / "floats.npz", x, y + 0.5)
    (sets / "text.csv").write_text("1,2,secret-word\n3,4\n")
    (sets / "torn.npz").write_bytes(b"PK\x03\x04 torn")
    (sets / "strange.npz").mkdir()
    daemon = start(tree(sets))
    tasks = ("narrow", "floats", "text", "torn", "strange", "good")
    learn(daemon, *tasks)
    until(lambda: metrics(daemon))
    learn(daemon, "another")
    until(lambda: len(columns(daemon)) >= 2)
    warnings = [event for event in fetch(daemon, "/history?seconds=0")["events"] if event["kind"] == "warning"]
    assert sorted(event["task"] for event in warnings) == ["floats", "narrow", "text", "torn"]
    assert "shape [6], as in the stream, got [5]" in next(e["text"] for e in warnings if e["task"] == "narrow")
    assert daemon.log_text().count("narrow.npz") == 1
    assert "secret-word" not in daemon.log_text() + json.dumps(warnings)
    assert list(metrics(daemon)) == ['streamcl_task_accuracy_ratio{task="good"}']


def test_labels_that_were_never_learned_count_as_wrong(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    x, y = rows(9, 400)
    save(tmp_path / "sets" / "a.npz", x, np.where(np.arange(400) < 100, 77, y))
    daemon = start(tree(tmp_path / "sets"))
    learn(daemon, "a")
    until(lambda: metrics(daemon))
    assert list(metrics(daemon).values()) == [0.75]


def test_an_accuracy_of_real_numbers_is_refused_at_the_start(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    settings = tree(tmp_path)
    settings["model"] = {"factory": "streamcl.models:linear", "likelihood": "gaussian"}
    with pytest.raises(StreamclError, match=r"evaluation\.directory: an accuracy is a share of right answers"):
        start(settings)


def test_a_model_that_cannot_be_had_twice_learns_on_without_being_scored(
    start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "greedy.py").write_text(GREEDY)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    save(tmp_path / "sets" / "a.npz", *rows(9))
    daemon = start({**tree(tmp_path / "sets"), "model": {"factory": "greedy:model", "classes": 4}})
    learn(daemon, "a", "b")
    until(lambda: "no second network" in json.dumps(fetch(daemon, "/history?seconds=0")["events"]))
    assert metrics(daemon) == {}
    learn(daemon, "c")


def test_a_directory_that_is_not_there_is_said_and_nothing_else_happens(
    start: Callable[..., LocalDaemon], tmp_path: Path
) -> None:
    daemon = start(tree(tmp_path / "nowhere"))
    learn(daemon, "a", "b")
    until(lambda: "No such file" in json.dumps(fetch(daemon, "/history?seconds=0")["events"]))
    assert metrics(daemon) == {}
