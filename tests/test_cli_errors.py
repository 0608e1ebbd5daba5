"""Errors of the command line: each says what was wrong and what to do, and none is a traceback."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl.bench.local import FREE_ENDPOINTS, LocalDaemon
from streamcl.cli import main
from streamcl.cli.remedies import REMEDIES
from streamcl.protocol.messages import CODES

Run = Callable[..., tuple[int, str]]
FILES = {
    "letters.csv": "a,b,y\n1,x,0\n",
    "empty.csv": "",
    "heading.csv": "a,b,y\n",
    "holes.csv": "a,b,y\n1,nan,1\n",
    "ragged.csv": "a,b,y\n1,2,3\n1,2\n",
    "no.parquet": "not one",
    "no.npz": "not one",
    "no.doc": "text",
    "good.csv": "a,b,y\n1,2,0\n3,4,1\n",
    "wide.csv": "a,b,c,y\n1,2,3,0\n",
    "label.csv": "a,b,y\n1,2,77\n",
}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    """A daemon that has closed a task and has another open."""
    tree = {"model": {"classes": 10}, "train": {"epochs": 1}}
    with LocalDaemon(tree, tmp_path_factory.mktemp("errors") / "state") as running:
        with running.producer() as producer:
            for task in ("closed", "open"):
                producer.send(np.ones((2, 2), "<f4"), np.arange(2), task, boundary=task == "closed")
        yield running


@pytest.fixture
def run(daemon: LocalDaemon, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command where `FILES` are; returns its exit status and its errors."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).write_text(text)

    def command(*arguments: Any, on: Path = daemon.state_dir) -> tuple[int, str]:
        status = main([*map(str, arguments), "--state-dir", str(on)])
        return status, capsys.readouterr().err

    return command


def test_every_code_of_the_protocol_has_a_remedy_and_nothing_else_has() -> None:
    assert list(REMEDIES) == list(CODES)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("boundary", "nope"), "unknown_task"),
        (("abandon",), "unknown_task"),
        (("revisit", "closed"), "not_in_factor_mode"),
        (("forget", "closed", "--yes"), "not_in_factor_mode"),
        (("send", "good.csv", "--task", "other"), "task_mismatch"),
        (("send", "good.csv", "--task", "closed"), "task_closed"),
        (("send", "wide.csv", "--task", "open"), "bad_shape"),
        (("send", "label.csv", "--task", "open"), "bad_label"),
        (("boundary", "open", "--weight", "-1"), "bad_header"),
    ],
)
def test_a_refusal_is_followed_by_what_to_do(run: Run, arguments: tuple[str, ...], code: str) -> None:
    status, err = run(*arguments)
    assert status == 1
    assert err.startswith(f"streamcl: {code}: ")
    assert err.endswith(f"  what to do: {REMEDIES[code]}\n")


def test_advice_that_would_lead_nowhere_is_not_given(run: Run, start: Callable[..., LocalDaemon]) -> None:
    status, err = run("boundary", "closed")
    assert (status, "is closed already" in err, "revisit" in err) == (1, True, False)
    assert "streamcl tasks" in err
    status, err = run("predict", "good.csv", on=start().state_dir)
    assert (status, "no model yet" in err, "send rows first" in err) == (1, True, True)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("none.csv", "no such file"),
        ("letters.csv", "leave the column out"),
        ("empty.csv", "expected lines of as many numbers"),
        ("heading.csv", "expected at least one row"),
        ("holes.csv", "fill it, or drop the row"),
        ("ragged.csv", "expected lines of as many numbers"),
        ("no.parquet", "not a Parquet file"),
        ("no.npz", "numpy.savez"),
        ("no.doc", ".csv, .parquet or .npz"),
    ],
)
def test_a_data_file_that_cannot_be_read_is_said_with_its_name_and_the_remedy(run: Run, file: str, said: str) -> None:
    status, err = run("send", file, "--task", "open")
    assert status == 2
    assert err.startswith(f"streamcl: {file}: ")
    assert said in err


def test_a_place_that_cannot_be_written_is_said(run: Run) -> None:
    assert run("export", "good.csv/there") == (2, "streamcl: good.csv/there: Not a directory\n")
    assert run("predict", "good.csv", "--out", "none/there.npz") == (
        2,
        "streamcl: none/there.npz: No such file or directory\n",
    )


@pytest.mark.parametrize("written", ["{", "{}", "[]"])
def test_a_daemon_json_that_is_none_is_said(run: Run, tmp_path: Path, written: str) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "daemon.json").write_text(written)
    status, err = run("status", on=tmp_path / "other")
    assert status == 1
    assert "not a daemon's" in err
    assert "--admin" in err


def serve(state_dir: Path, **endpoints: str) -> tuple[int, str]:
    flags = [text for name, value in (FREE_ENDPOINTS | endpoints).items() for text in (f"--endpoints.{name}", value)]
    command = [sys.executable, "-m", "streamcl", "serve", "--state-dir", str(state_dir), *flags]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    return ran.returncode, ran.stderr.splitlines()[-1]


def test_a_state_directory_in_use_says_how_its_daemon_is_stopped(daemon: LocalDaemon) -> None:
    status, err = serve(daemon.state_dir)
    assert (status, f"streamcl stop --state-dir {daemon.state_dir}" in err) == (1, True)


@pytest.mark.parametrize(
    "name", ["stream", *(pytest.param(name, marks=pytest.mark.campaign) for name in ("predict", "http"))]
)
def test_a_port_in_use_says_which_key_gives_another(tmp_path: Path, name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        status, err = serve(tmp_path / "state", **{name: address if name == "http" else f"tcp://{address}"})
    assert status == 2
    assert address in err
    assert "--endpoints." in err
