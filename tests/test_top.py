"""`streamcl top`: the daemon at a glance, through a real terminal."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from terminals import Terminal
from waiting import until

from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.cli.screen import draw
from streamcl.cli.watch import Seen

pytestmark = pytest.mark.campaign

TREE = {
    "model": {"args": {"hidden": [64]}, "classes": 3},
    "train": {"epochs": 2},
    "posterior": {"mode": "factors"},
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    """A daemon that has learned two tasks, one of them twice, from two producers, and has one open."""
    with LocalDaemon(TREE, tmp_path_factory.mktemp("top") / "state") as running:
        rng = np.random.default_rng(0)
        with running.producer("camera-1") as one, running.producer("camera-2") as two:
            for producer, task in ((one, "monday"), (two, "tuesday"), (one, "wednesday")):
                producer.send(rng.normal(size=(60, 4)).astype("<f4"), rng.integers(0, 3, 60), task)
                if task != "wednesday":
                    producer.boundary(task)
        with running.admin() as admin:
            until(lambda: admin.status()["state"] == "training")  # of wednesday: durable is not yet learned
        yield running


def on(daemon: LocalDaemon, *arguments: Any) -> list[str]:
    return ["top", *map(str, arguments), "--state-dir", str(daemon.state_dir)]


def test_once_shows_everything_and_ends(daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(on(daemon, "--once")) == 0
    out = capsys.readouterr().out
    for said in (
        *("training", "wednesday", "monday", "tuesday", "camera-1", "camera-2", "producers 2", "tasks 2"),
        *("rows/s", "behind", "credit 16", "of 8.59 GB", "loss", "accuracy", "boundary tuesday: ", "started: "),
    ):
        assert said in out
    assert "\x1b" not in out


def test_json_is_one_document_a_look(daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(on(daemon, "--once", "--json")) == 0
    (document,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert document["answered"] is True
    assert document["status"]["task"] == "wednesday"
    assert [task["task"] for task in document["tasks"]] == ["monday", "tuesday"]
    assert {row["producer"]: row["durable"] for row in document["producers"]} == {"camera-1": 3, "camera-2": 2}
    command = [sys.executable, "-m", "streamcl", *on(daemon, "--json", "--interval", 0.1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
        assert watching.stdout is not None
        times = [json.loads(watching.stdout.readline())["time"] for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=120)
    assert times == sorted(set(times))


@pytest.mark.parametrize("key", ["q", "\x03"])
def test_it_draws_in_80_by_24_and_leaves_the_terminal_as_it_was(daemon: LocalDaemon, key: str) -> None:
    with Terminal(*on(daemon, "--interval", 0.2)) as terminal:
        terminal.wait_for("wednesday", "camera-1", "tasks 2", "events", "q quits")
        terminal.press(key)
        assert terminal.end() == (0 if key == "q" else 130)
    assert terminal.written.count("\x1b[?1049h") == terminal.written.count("\x1b[?1049l") == 1  # the alternate screen
    assert terminal.written.rindex("\x1b[?25h") > terminal.written.rindex("\x1b[?25l")  # the cursor is back


def test_it_follows_what_happens(daemon: LocalDaemon) -> None:
    with Terminal(*on(daemon, "--interval", 0.2)) as terminal, daemon.admin() as admin:
        terminal.wait_for("training")
        admin.pause()
        terminal.wait_for("paused")
        admin.resume()
        terminal.wait_for("training")


def test_it_is_drawn_again_at_once_when_the_window_changes(daemon: LocalDaemon) -> None:
    with Terminal(*on(daemon, "--interval", 3600)) as terminal:
        terminal.wait_for("q quits")
        terminal.resize(40, 100)

        def redrawn() -> bool:
            terminal.read()
            return len(terminal.written.split("\x1b[H")[-1].splitlines()) == 40

        until(redrawn)


def test_it_survives_a_restart_of_the_daemon(tmp_path: Path) -> None:
    with (
        LocalDaemon(TREE, tmp_path / "state") as daemon,
        Terminal(*on(daemon, "--interval", 0.1), columns=120) as terminal,
    ):
        terminal.wait_for("idle")
        daemon.stop()
        terminal.wait_for("no answer for", "streamcl serve")
        daemon.endpoints = {}  # elsewhere, this time
        daemon.start()
        with daemon.producer() as producer:
            producer.send(np.ones((4, 2), "<f4"), np.zeros(4, int), "after")
        terminal.wait_for("after", "training")
        terminal.press("q")
        assert terminal.end() == 0


def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--once", "--state-dir", str(tmp_path)]) == 1
    assert "streamcl serve" in capsys.readouterr().err
    assert main(["top", "--interval", "0", "--state-dir", str(tmp_path)]) == 2


# -- the screen --------------------------------------------------------------------------------------------------------


def many() -> Seen:
    names = [f"task-{number:03}-{'x' * 60}" for number in range(200)]
    tasks = [
        {
            "task": name,
            "samples": 10**9,
            "loss": 0.1,
            "penalty_rise": i / 100,
            "revisits": 1,
            "closed_at": 0.0,
            "accuracy": 0.5,
        }
        for i, name in enumerate(names)
    ]
    producers = [{"producer": name, "durable": 10**12, "applied": 10**12, "age_seconds": None} for name in names]
    status = {
        "state": "consolidating",
        "task": "t" * 200,
        "consolidation": {"task": "t" * 200, "phase": "fisher", "fraction": 0.5, "seconds_left": 75.0},
        "problem": "the disk is full " * 20,
        "warning": "the learning rate is high " * 20,
        "quarantined": 3,
        "tasks": len(tasks),
        "credit": {"messages": 0, "bytes": 0},
        "task_bytes": {"used": 9 * 10**9, "budget": 10**10},
        "events": [{"id": i, "time": 0.0, "kind": "failed", "task": None, "text": "e" * 300} for i in range(20)],
    }
    return Seen(0.0, status, tasks, producers, tuple(range(3600)), (None, 0.5))


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 60), (80, 12), (40, 10)])
def test_every_screen_fits_and_the_worst_comes_first(width: int, height: int) -> None:
    out = StringIO()
    Console(file=out, width=width, height=height).print(draw(many(), width, height, "somewhere", "q quits"))
    lines = out.getvalue().splitlines()
    assert all(len(line) <= width for line in lines)
    if height >= 24:
        assert len(lines) <= height
        assert "problem: the disk is full" in out.getvalue()
        assert "task-199" in out.getvalue()  # the highest rise
        assert "q quits" in lines[-1]
    if width >= 80:
        assert "measuring the penalty  1:15 left" in out.getvalue()


def test_what_is_missing_is_said_first_and_nothing_old_is_shown_as_the_state() -> None:
    out = StringIO()
    Console(file=out, width=80).print(draw(replace(many(), missing="nobody is there"), 80))
    assert "nobody is there" in out.getvalue().splitlines()[1]
    assert "no answer" in out.getvalue()
    assert "consolidating" not in out.getvalue()


def test_a_follower_that_has_nothing_yet_is_drawn_too() -> None:
    status = {"state": "waiting", "follows": "tcp://there:5758", "serves": None, "tasks": None, "mode": None}
    out = StringIO()
    Console(file=out, width=80).print(draw(Seen(0.0, {**status, "problem": "it is not heard"}), 80))
    assert "the daemon at tcp://there:5758" in out.getvalue()
    assert "problem: it is not heard" in out.getvalue()
    assert "nothing yet" in out.getvalue()
    assert "None" not in out.getvalue()


def test_an_empty_answer_is_drawn_too() -> None:
    out = StringIO()
    Console(file=out, width=80).print(draw(Seen(0.0), 80))
    assert "no task is open" in out.getvalue()
