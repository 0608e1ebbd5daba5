"""What commands show while they work: on a terminal the progress and the time left, elsewhere the result alone."""

from __future__ import annotations

import doctest
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from terminals import Terminal

from streamcl import config
from streamcl.bench.local import LocalDaemon
from streamcl.cli import readable

pytestmark = pytest.mark.campaign

TREE = {
    "model": {"args": {"hidden": [256, 256]}, "classes": 3},
    "train": {"epochs": 15, "batch_size": 32},
    "posterior": {"mode": "factors"},
}
COLOUR = re.compile(r"\x1b\[[0-9;]*(3[0-9]|9[0-7]|4[0-7])(;[0-9]+)*m")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    with LocalDaemon(TREE, tmp_path_factory.mktemp("progress") / "state") as running:
        yield running


def data(path: Path, rows: int = 3000, seed: int = 0) -> Path:
    rng = np.random.default_rng(seed)
    np.savez(path, x=rng.normal(size=(rows, 32)).astype("<f4"), y=rng.integers(0, 3, rows))
    return path


def on(daemon: LocalDaemon, *arguments: Any) -> list[str]:
    return [*map(str, arguments), "--state-dir", str(daemon.state_dir)]


@pytest.mark.parametrize("module", [readable, config])
def test_the_examples_in_the_docstrings_hold(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


def test_send_shows_rows_then_the_consolidation_with_its_phases_and_the_time_left(
    daemon: LocalDaemon, tmp_path: Path
) -> None:
    send = on(daemon, "send", data(tmp_path / "monday.npz"), "--task", "monday", "--rows", 1, "--boundary")
    with Terminal(*send, columns=120) as terminal:
        assert terminal.end() == 0
    assert "monday.npz" in terminal.text
    assert re.search(r"[1-9][\d,]*/3,000 rows  [\d,]+ rows/s .*\d:\d\d left", terminal.text)
    assert re.search(r"monday .*epoch [1-9]\d* of 15 .*\d:\d\d left", terminal.text)
    assert "sent 3000 rows in 3000 batches to task 'monday'" in terminal.text
    assert COLOUR.search(terminal.written)


def test_boundary_waits_with_progress_and_takes_the_explicit_wait(daemon: LocalDaemon, tmp_path: Path) -> None:
    sent = [sys.executable, "-m", "streamcl", *on(daemon, "send", data(tmp_path / "t.npz"), "--task", "tuesday", "--json")]
    subprocess.run(sent, check=True, timeout=120, capture_output=True)
    with Terminal(*on(daemon, "boundary", "tuesday", "--wait"), columns=120) as terminal:
        assert terminal.end() == 0
    assert re.search(r"tuesday .*epoch [1-9]\d* of 15", terminal.text)
    assert re.search(r"samples +3000", terminal.text)


def test_a_sweep_shows_how_far_it_is(daemon: LocalDaemon, tmp_path: Path) -> None:
    files = [data(tmp_path / f"{name}.npz", 600, seed) for seed, name in enumerate(("one", "two"))]
    with Terminal(*on(daemon, "sweep", *files, "--sweeps", 1, "--tolerance", 0), columns=120) as terminal:
        assert terminal.end() == 0
    for said in ("learning one", "sweep 1/1, 2/2 two", "sweep 1: mean accuracy", "/2 revisits"):
        assert said in terminal.text


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_no_colour_where_none_is_wanted(daemon: LocalDaemon, tmp_path: Path, environment: dict[str, str]) -> None:
    name = next(iter(environment))
    send = on(daemon, "send", data(tmp_path / "c.npz", 100), "--task", f"colour-{name}", "--boundary")
    with Terminal(*send, **environment) as terminal:
        assert terminal.end() == 0
    assert not COLOUR.search(terminal.written)
    assert "consolidated: 100 samples" in terminal.text


def test_elsewhere_there_is_nothing_but_the_result(daemon: LocalDaemon, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "streamcl", *on(daemon, "send", data(tmp_path / "p.npz", 500), "--task", "piped")]
    piped = subprocess.run([*command, "--boundary"], capture_output=True, text=True, check=True, timeout=120)
    assert piped.stderr == ""
    assert [line.split()[0] for line in piped.stdout.splitlines()] == ["read", "sent", "consolidated:"]
    assert "\x1b" not in piped.stdout
    with Terminal(*on(daemon, "tasks", "--json")) as terminal:
        assert terminal.end() == 0
    assert {"piped"} <= {task["task"] for task in json.loads(terminal.written)["tasks"]}


def test_an_interrupted_wait_says_that_the_daemon_goes_on(daemon: LocalDaemon, tmp_path: Path) -> None:
    send = on(daemon, "send", data(tmp_path / "i.npz", 6000), "--task", "interrupted", "--boundary")
    with Terminal(*send, columns=120) as terminal:
        terminal.wait_for("epoch ")
        terminal.process.send_signal(signal.SIGINT)
        assert terminal.end() == 130
    assert "the daemon continues with the consolidation of interrupted" in terminal.text


def test_a_send_that_may_not_ask_for_the_status_still_waits(daemon: LocalDaemon, tmp_path: Path) -> None:
    stream = daemon.endpoints["stream"]
    send = ("send", data(tmp_path / "s.npz", 200), "--task", "unseen", "--boundary", "--stream", stream)
    with Terminal(*send, "--state-dir", tmp_path) as terminal:
        assert terminal.end() == 0
    assert "consolidated: 200 samples" in terminal.text
