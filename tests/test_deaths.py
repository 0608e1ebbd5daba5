"""A process that dies again and again is a problem, whatever it dies of; one that starts slowly is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE, until

from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.daemon import processes, serve
from streamcl.daemon.linux import processor_seconds
from streamcl.daemon.processes import DEATHS, Child, death
from streamcl.daemon.serve import Supervisor
from streamcl.daemon.words import Ready
from streamcl.errors import Unreachable

pytestmark = pytest.mark.campaign

LETHAL = """
import ctypes, os, pathlib, signal
import torch
from torch import nn

class Lethal(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x):
        if pathlib.Path({flag!r}).exists():
            {cause}
        return self.head(x)

def make(input_shape, outputs):
    return Lethal(*input_shape, outputs)
"""
CAUSES = {
    "os._exit(7)": "with exit status 7",
    "ctypes.string_at(0)": "by signal 11, SIGSEGV",
    "os.kill(os.getpid(), signal.SIGKILL)": "by signal 9, SIGKILL",
}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 4)).astype("<f4"), RNG.integers(0, 3, 32)


@pytest.fixture
def lethal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a model that dies of the cause while a file is there; returns the file."""

    def make(cause: str) -> Path:
        (tmp_path / "lethal.py").write_text(LETHAL.format(flag=str(tmp_path / "die"), cause=cause))
        monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
        return tmp_path / "die"

    return make


def readiness(daemon: LocalDaemon) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(daemon.url("/readyz"), timeout=PATIENCE) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def in_trouble(daemon: LocalDaemon, role: str) -> bool:
    with daemon.admin() as admin:
        return f"the {role} has died again and again" in (admin.status()["problem"] or "")


def healthy(daemon: LocalDaemon) -> bool:
    with daemon.admin() as admin:
        return admin.status()["problem"] is None and readiness(daemon)[0] == 200


@pytest.mark.timeout(400)
@pytest.mark.parametrize("cause", CAUSES)
def test_a_trainer_that_dies_of_its_model_turns_health_red_and_green_again_once_it_lives(
    start: Callable[..., LocalDaemon],
    lethal: Callable[[str], Path],
    cause: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    flag = lethal(cause)
    daemon = start({"model": {"factory": "lethal:make", "classes": 3}, "train": {"epochs": 1}})
    with daemon.producer() as producer:
        producer.send(X, Y, "a")
        producer.flush()
        flag.touch()
        producer.boundary("a", wait=False)
        producer.flush()
        until(lambda: in_trouble(daemon, "trainer"), 3 * PATIENCE)
        status, reason = readiness(daemon)
        assert status == 503
        assert CAUSES[cause] in reason
        assert main(["health", "--state-dir", str(daemon.state_dir)]) == 1
        assert CAUSES[cause] in capsys.readouterr().err
        producer.send(X, Y, "b")
        producer.flush()
        producer.timeout = 4.0
        with pytest.raises(Unreachable, match="the trainer has died again and again"):
            producer.boundary("b")
        producer.timeout = PATIENCE
        flag.unlink()
        until(lambda: healthy(daemon), 3 * PATIENCE)
    with daemon.admin() as admin:
        until(lambda: [task["samples"] for task in admin.tasks()] == [32, 32])


def test_a_predictor_that_is_killed_again_and_again_is_a_problem_until_it_lives(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({"model": {"factory": "streamcl.models:linear", "classes": 3}})
    with daemon.producer() as producer:
        producer.send(X, Y, "a")
        producer.boundary("a")
    for number in range(DEATHS):
        assert healthy(daemon), number
        until(lambda: "predictor" in daemon.children())
        before = daemon.children()["predictor"]
        os.kill(before, signal.SIGKILL)
        until(lambda: daemon.children().get("predictor", before) != before)  # noqa: B023
    until(lambda: in_trouble(daemon, "predictor"))
    assert "SIGKILL" in readiness(daemon)[1]
    until(lambda: healthy(daemon), 3 * PATIENCE)
    with daemon.reader() as reader:
        assert reader.predict(X).probs.shape == (32, 3)


# -- starting ----------------------------------------------------------------------------------------------------------

BUSY = "while True: pass"
STILL = "import time; time.sleep(1000)"


@pytest.fixture
def child() -> Iterator[Callable[[str], Child]]:
    made: list[Child] = []

    def make(program: str) -> Child:
        process = subprocess.Popen([sys.executable, "-c", program])
        made.append(Child("predictor", process=process))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for each in made:
        assert each.process is not None
        each.process.kill()
        each.process.wait()


def watched(child: Child, seconds: float, monkeypatch: pytest.MonkeyPatch) -> Callable[[], bool]:
    """A supervisor's looks at one process, with little patience; whether the process lives."""
    monkeypatch.setattr(serve, "WATCH_SECONDS", seconds)
    supervisor: Any = object.__new__(Supervisor)
    supervisor.config = serve.Config()

    def look() -> bool:
        Supervisor._watch(supervisor, child)
        return child.alive

    return look


def test_starting_is_progress_as_long_as_it_takes_processor_time(
    child: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = child(BUSY)
    look = watched(busy, 0.5, monkeypatch)
    busy.heard = 0.0  # long ago
    assert busy.process is not None
    until(lambda: processor_seconds(busy.process.pid) > 0.0)  # type: ignore[union-attr]
    assert look()
    before = busy.busy
    until(lambda: processor_seconds(busy.process.pid) > before + 1.0)  # type: ignore[union-attr]
    assert look()
    monkeypatch.setattr(processes, "START_SECONDS", 1.0)  # what is not ready by then never will be
    until(lambda: not look())
    assert "watchdog" in str(busy.watchdog)


def test_a_process_that_stands_still_while_it_starts_is_ended(
    child: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch
) -> None:
    look = watched(child(STILL), 0.5, monkeypatch)
    until(lambda: not look())


def test_once_ready_processor_time_is_no_progress(child: Callable[[str], Child], monkeypatch: pytest.MonkeyPatch) -> None:
    busy = child(BUSY)
    busy.ready = Ready()
    look = watched(busy, 0.5, monkeypatch)
    until(lambda: not look())


def test_what_a_process_died_of_is_said_in_words() -> None:
    assert death(-9) == "by signal 9, SIGKILL (kill -9, or the kernel for lack of memory)"
    assert death(-200) == "by signal 200, unknown"
    assert death(1) == "with exit status 1"
