"""The daemon's log: one event a line, for machines or for eyes, and never anybody's data. From the real daemon."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pty
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog

from streamcl.bench.local import FREE_ENDPOINTS, LocalDaemon
from streamcl.config import Log
from streamcl.daemon import logs
from streamcl.daemon.logs import configure
from streamcl.errors import ConfigError

pytestmark = pytest.mark.campaign

PATIENCE = 120.0
SMALL: dict[str, Any] = {"model": {"args": {"hidden": [8]}, "classes": 3}, "train": {"epochs": 1}}
SECRET = 31337.5  # a value of somebody's data
TALKATIVE = """
import logging, warnings
from torch import nn

class Talkative(nn.Linear):
    def forward(self, x):
        if self.training and float(x.max()) > 31000:
            raise {error}(f"cannot stand {{float(x.max())}}")
        return super().forward(x)

def model(input_shape, outputs):
    warnings.warn("an old way of building models\\nover two lines")
    logging.getLogger("models").error("built with %d outputs", outputs)
    return Talkative(input_shape[0], outputs)
"""


def events(daemon: LocalDaemon) -> list[dict[str, Any]]:
    """Every line of the log, each a JSON object; the last may be on its way there."""
    return [json.loads(line) for line in daemon.log_text().rpartition("\n")[0].splitlines()]


def wait_for(found: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (result := found()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return result


def talk(start: Callable[..., LocalDaemon], home: Path, monkeypatch: pytest.MonkeyPatch, error: str) -> LocalDaemon:
    """A daemon whose model speaks where it can, and fails on a batch with words that hold its data."""
    (home / "talkative.py").write_text(TALKATIVE.format(error=error))
    monkeypatch.chdir(home)
    daemon = start({"model": {"factory": "talkative:model", "classes": 3}})
    with daemon.producer() as producer:
        producer.send(np.ones((4, 4), "<f4"), np.arange(4, dtype="<i8") % 3, "a")
        producer.flush()
        producer.send(np.full((4, 4), SECRET, "<f4"), np.arange(4, dtype="<i8") % 3, "a")
        producer.flush()
    return daemon


def event(daemon: LocalDaemon, name: str) -> dict[str, Any]:
    """The first event of this name, once it is there."""
    return wait_for(lambda: next((each for each in events(daemon) if each["event"] == name), None))


def test_every_event_is_one_line_of_json_with_time_level_and_role(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(SMALL)
    ready = event(daemon, "ready")
    assert (ready["level"], ready["role"], ready["stream"]) == ("info", "serve", daemon.endpoints["stream"])
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", ready["timestamp"])
    assert daemon.stop() == 0
    assert {each["role"] for each in events(daemon)} >= {"serve", "trainer"}
    assert "\x1b" not in daemon.log_text()


def test_what_ends_a_process_is_one_event_too_and_holds_no_data(
    start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Out of memory, say: the trainer is started again, its traceback is logged, the model's words are not."""
    daemon = talk(start, tmp_path, monkeypatch, "MemoryError")
    ended = event(daemon, "ended by an error")
    assert (ended["level"], ended["role"]) == ("critical", "trainer")
    assert "talkative.py" in ended["exception"]
    assert "MemoryError: (message withheld" in ended["exception"]
    assert event(daemon, "process ended")["role"] == "trainer"
    daemon.kill_all()
    assert "31337" not in daemon.log_text()


def test_what_a_model_says_of_data_is_in_the_status_and_not_in_the_log(
    start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = talk(start, tmp_path, monkeypatch, "ValueError")
    assert "ValueError" in event(daemon, "rolled back: a record cannot be learned")["reason"]
    with daemon.admin() as admin:
        assert "31337" in wait_for(lambda: admin.status()["last_quarantined"])["reason"]
    daemon.kill_all()
    assert "31337" not in daemon.log_text()


def test_what_libraries_warn_of_and_log_become_events(
    start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = talk(start, tmp_path, monkeypatch, "ValueError")
    warned = event(daemon, "an old way of building models\nover two lines")
    assert (warned["level"], warned["category"], warned["role"]) == ("warning", "UserWarning", "trainer")
    logged = event(daemon, "built with 3 outputs")
    assert (logged["level"], logged["library"]) == ("error", "models")


def test_the_level_is_the_operators_choice(start: Callable[..., LocalDaemon]) -> None:
    quiet = start({**SMALL, "log": {"level": "error"}}, name="quiet")
    full = start({**SMALL, "log": {"level": "debug"}}, name="full")
    for daemon in (quiet, full):
        with daemon.admin() as admin:
            admin.checkpoint()
        assert daemon.stop() == 0
    assert quiet.log_text() == ""
    ready = {each["child"] for each in events(full) if each["event"] == "process ready"}
    assert ready >= {"ingest", "trainer", "predictor"}
    assert event(full, "checkpoint written and verified")["level"] == "debug"


@pytest.mark.parametrize(
    ("variables", "flags", "coloured", "human"),
    [
        ({}, [], True, True),
        ({"NO_COLOR": "1"}, [], False, True),
        ({"TERM": "dumb"}, [], False, True),
        ({"NO_COLOR": ""}, [], True, True),  # no-color.org: empty is unset
        ({}, ["--log.format", "json"], False, False),
    ],
)
def test_on_a_terminal_it_is_for_eyes(
    tmp_path: Path, variables: dict[str, str], flags: list[str], coloured: bool, human: bool
) -> None:
    text = on_a_terminal(tmp_path / "state", {"TERM": "xterm", **variables}, flags)
    assert ("\x1b[" in text) == coloured
    plain = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert bool(re.search(r"\[info +\] ready", plain)) == human
    assert ('{"state_dir"' in plain or '"event": "ready"' in plain) != human


def on_a_terminal(state: Path, variables: dict[str, str], flags: list[str]) -> str:
    """What a daemon that runs in a terminal shows there until it is ready and stopped."""
    ours, theirs = pty.openpty()
    inherited = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "TERM", "FORCE_COLOR")}
    command = [sys.executable, "-m", "streamcl", "serve", "--state-dir", str(state), *flags]
    command += [text for name, value in FREE_ENDPOINTS.items() for text in (f"--endpoints.{name}", value)]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env={**inherited, **variables})
    os.close(theirs)
    try:
        wait_for(lambda: (state / "daemon.json").exists() or process.poll() is not None)
        process.terminate()
        return b"".join(_until_closed(ours)).decode()
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def _until_closed(terminal: int) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # how Linux says that nobody is at the other end
        while data := os.read(terminal, 65536):
            yield data


def test_human_form_in_a_pipe_has_no_colour(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**SMALL, "log": {"format": "human"}})
    wait_for(lambda: "ready" in daemon.log_text())
    assert re.search(r"\[info +\] ready", daemon.log_text())
    assert "\x1b" not in daemon.log_text()


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], dict[str, Any]]]:
    """Logs into memory, in this process; gives the newest event."""
    stream = io.StringIO()
    hooks = sys.excepthook, logging.getLogger().handlers, logging.getLogger().level
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("warnings.showwarning", None)
    monkeypatch.setattr("threading.excepthook", None)
    configure("test", Log(format="json"))
    yield lambda: json.loads(stream.getvalue().splitlines()[-1])
    sys.excepthook, logging.getLogger().handlers = hooks[:2]
    logging.getLogger().setLevel(hooks[2])
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def test_arrays_and_whatever_is_large_are_shown_by_their_type(logged: Callable[[], dict[str, Any]]) -> None:
    array = np.full(3, SECRET)
    structlog.get_logger().info(
        "x",
        array=array,
        raw=array.tobytes(),
        rows=[array],
        many=[SECRET] * 400,
        text="y" * 9000,
        loss=float("nan"),
        n=[1, 2],
    )
    shown = logged()
    assert (shown["array"], shown["raw"], shown["rows"]) == ("<ndarray>", "<bytes>", ["<ndarray>"])
    assert (shown["many"], len(shown["text"]), shown["loss"], shown["n"]) == ("<list>", 4001, "nan", [1, 2])
    assert str(SECRET) not in json.dumps(shown)


def test_a_traceback_shows_the_chain_without_foreign_messages_or_locals(logged: Callable[[], dict[str, Any]]) -> None:
    try:
        try:
            raise ValueError(f"cannot stand {SECRET}")
        except ValueError as error:
            raise ConfigError("train.epochs: expected 1 or more") from error
    except ConfigError:
        structlog.get_logger().exception("failed")
    text = logged()["exception"]
    assert text.index("builtins.ValueError: (message withheld") < text.index(
        "ConfigError: train.epochs: expected 1 or more"
    )
    assert str(SECRET) not in text.replace('f"cannot stand {SECRET}"', "")
    assert logs.WITHHELD in text
