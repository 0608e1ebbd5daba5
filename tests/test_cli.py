"""The command line as a user types it, against a real daemon."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamcl.bench import demo
from streamcl.bench.local import LocalDaemon
from streamcl.cli import build_parser, common, main

COMMANDS = (
    *("serve", "send", "boundary", "revisit", "status", "tasks", "predict"),
    *("export", "checkpoint", "pause", "resume", "stop", "demo", "bench"),
    *("sweep", "abandon", "forget", "history"),
)
TREE = {"model": {"args": {"hidden": [16]}, "classes": 3}, "train": {"epochs": 20, "learning_rate": 0.01}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    with LocalDaemon(TREE, tmp_path_factory.mktemp("cli") / "state") as running:
        yield running


@pytest.fixture
def cli(daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Runs a command on the daemon; returns its exit status, its output and its errors."""

    def run(*arguments: Any) -> tuple[int, str, str]:
        status = main([*map(str, arguments), "--state-dir", str(daemon.state_dir)])
        output = capsys.readouterr()
        return status, output.out, output.err

    return run


def data(path: Path, seed: int = 0, n: int = 60) -> Path:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    x = rng.normal(size=(n, 4)) * 0.3 + np.eye(3)[y] @ rng.normal(size=(3, 4))
    if path.suffix == ".npz":
        np.savez(path, x=x.astype("<f4"), y=y)
    else:
        rows = [",".join(map(str, [*a, b])) for a, b in zip(x, y, strict=True)]
        path.write_text("\n".join(["a,b,c,d,y", *rows]) + "\n")
    return path


def test_a_file_is_sent_closed_listed_predicted_and_exported(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = data(tmp_path / "monday.csv")
    status, out, _ = cli("send", path, "--task", "monday", "--rows", 16, "--boundary", "--json")
    report = json.loads(out)
    assert (status, report["rows"], report["batches"], report["samples"]) == (0, 60, 4, 60)

    assert "monday" in cli("tasks")[1]
    tasks = json.loads(cli("tasks", "--json")[1])["tasks"]
    assert [task["samples"] for task in tasks if task["task"] == "monday"] == [60]
    assert json.loads(cli("status", "--json")[1])["mode"] == "single"
    assert "batches durable" in cli("status")[1]

    scored = json.loads(cli("predict", path, "--label", "y", "--json")[1])
    assert scored["accuracy"] > 0.8
    assert len(scored["label"]) == 60
    status, out, _ = cli("predict", data(tmp_path / "more.npz", 0), "--samples", 2, "--out", tmp_path / "out.npz")
    assert status == 0
    assert "accuracy" in out
    assert np.load(tmp_path / "out.npz", allow_pickle=False)["probs"].shape == (60, 3)

    status, out, _ = cli("export", tmp_path / "export", "--json")
    vectors = load_file(tmp_path / "export" / "parameters.safetensors")
    assert status == 0
    assert {name: len(vector) for name, vector in vectors.items()} == dict.fromkeys(("theta", "precision", "shift"), 131)
    assert json.loads((tmp_path / "export" / "export.json").read_text())["names"][0] == "1.weight"


def test_a_file_sent_again_trains_nothing_twice(cli: Callable[..., Any], tmp_path: Path) -> None:
    path = data(tmp_path / "again.csv", 1)
    assert json.loads(cli("send", path, "--task", "again", "--rows", 10, "--json")[1])["batches"] == 6
    second = json.loads(cli("send", path, "--task", "again", "--rows", 10, "--json")[1])
    assert (second["batches"], second["batches_already_there"]) == (0, 6)
    assert "already" in cli("send", path, "--task", "again", "--rows", 10)[1]
    assert json.loads(cli("boundary", "again", "--json")[1])["samples"] == 60


def test_pause_resume_and_checkpoint(cli: Callable[..., Any]) -> None:
    assert cli("pause")[0] == 0
    assert json.loads(cli("status", "--json")[1])["state"] == "paused"
    assert json.loads(cli("checkpoint", "--json")[1])["batches_applied"] >= 0
    assert cli("resume")[0] == 0
    assert json.loads(cli("status", "--json")[1])["state"] != "paused"


def test_a_refusal_exits_1_with_its_reason(cli: Callable[..., Any], tmp_path: Path) -> None:
    status, _, err = cli("boundary", "never-seen")
    assert (status, "unknown_task" in err) == (1, True)
    status, _, err = cli("revisit", "never-seen")
    assert (status, "not_in_factor_mode" in err) == (1, True)
    np.savez(tmp_path / "wide.npz", x=np.ones((3, 9)), y=np.zeros(3, int))
    cli("send", data(tmp_path / "first.csv", 3), "--task", "refusal")
    status, _, err = cli("send", tmp_path / "wide.npz", "--task", "refusal")
    assert (status, "bad_shape" in err) == (1, True)
    assert cli("boundary", "refusal")[0] == 0


def test_wrong_usage_exits_2(cli: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli("send", tmp_path / "none.csv", "--task", "a")[0] == 2
    assert cli("send", data(tmp_path / "a.csv"), "--task", "a", "--rows", "0")[0] == 2
    assert cli("send", data(tmp_path / "a.csv"), "--task", "a", "--weight", "3")[0] == 2
    assert main(["serve", "--train.epochs", "-1"]) == 2
    assert "train.epochs" in capsys.readouterr().err
    for arguments in (["nonsense"], [], ["send"], ["serve", "--train.epoch", "3"]):
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2


def test_without_a_daemon_it_says_how_to_start_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["status", "--state-dir", str(tmp_path)]) == 1
    assert "streamcl serve" in capsys.readouterr().err


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        with pytest.raises(SystemExit) as caught:
            build_parser().parse_args([command, "--help"])
        assert caught.value.code == 0
        assert f"streamcl {command}" in capsys.readouterr().out


@pytest.fixture
def factored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Any]]:
    """Runs a command on a daemon of its own in factor mode."""
    with LocalDaemon({**TREE, "posterior": {"mode": "factors"}}, tmp_path / "factored") as running:

        def run(*arguments: Any) -> tuple[int, str, str]:
            status = main([*map(str, arguments), "--state-dir", str(running.state_dir)])
            output = capsys.readouterr()
            return status, output.out, output.err

        yield run


@pytest.mark.campaign
def test_a_sweep_learns_what_is_new_then_revisits_until_little_moves(factored: Callable[..., Any], tmp_path: Path) -> None:
    files = [data(tmp_path / "monday.csv", 1), data(tmp_path / "tuesday.npz", 2)]
    status, out, _ = factored("sweep", *files, "--sweeps", 2, "--tolerance", 0, "--json")
    sweeps = json.loads(out)["sweeps"]
    assert (status, [row["sweep"] for row in sweeps]) == (0, [0, 1, 2])
    assert sweeps[0]["movement"] is None
    assert all(row["movement"] > 0 and set(row["by_task"]) == {"monday", "tuesday"} for row in sweeps[1:])
    assert sweeps[2]["accuracy"] > 0.5
    for order in ("reverse", "random", "advised"):  # now both are known, and any movement is little enough
        status, out, _ = factored("sweep", *files, "--order", order, "--tolerance", 1e9, "--damping", 0.3)
        assert (status, len([line for line in out.splitlines() if line.split()[:1] in (["0"], ["1"], ["2"])])) == (0, 2)
    tasks = json.loads(factored("tasks", "--json")[1])["tasks"]
    assert [(task["task"], task["revisits"]) for task in tasks] == [("monday", 5), ("tuesday", 5)]
    assert "revisit" in factored("tasks")[1]
    history = json.loads(factored("history", "--json")[1])["history"]
    assert len(history) == 1 + 2 + 2 * 10


def test_a_sweep_that_fails_abandons_its_revisit(factored: Callable[..., Any], tmp_path: Path) -> None:
    good = data(tmp_path / "monday.csv", 1)
    assert factored("send", good, "--task", "monday", "--boundary")[0] == 0
    np.savez(tmp_path / "bad.npz", x=np.ones((3, 9)), y=np.zeros(3, int))
    status, _, err = factored("sweep", f"monday={tmp_path / 'bad.npz'}", "--test", f"monday={good}")
    assert (status, "bad_shape" in err) == (1, True)
    status = json.loads(factored("status", "--json")[1])
    assert (status["task"], status["state"]) == (None, "idle")


def test_a_file_is_sent_again_for_each_revisit_and_goes_on_within_one(factored: Callable[..., Any], tmp_path: Path) -> None:
    path = data(tmp_path / "monday.csv", 1)
    send = ("send", path, "--task", "monday", "--rows", 16, "--json")
    factored(*send, "--boundary")
    assert factored("revisit", "monday")[0] == 0
    assert json.loads(factored(*send)[1])["batches"] == 4
    assert json.loads(factored(*send)[1])["batches_already_there"] == 4
    assert factored("abandon")[0] == 0
    assert factored("revisit", "monday", "--damping", 1)[0] == 0
    assert json.loads(factored(*send, "--boundary")[1])["samples"] == 60
    assert factored("abandon")[0] == 1
    assert factored("forget", "monday")[0] == 2  # not without being asked
    assert json.loads(factored("forget", "monday", "--yes", "--json")[1])["kind"] == "forget"
    for again in (("forget", "monday", "--yes"), (*send, "--boundary"), (*send, "--producer", "other")):  # all is stored
        status, _, err = factored(*again)
        assert (status, "withdrawn" in err, "revisit" in err) == (1, True, False), err


def test_order_bias_is_seen_exactly_and_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot, figures = tmp_path / "bias.svg", tmp_path / "bias.json"
    options = ["bench", "order-bias", "--tasks", "5", "--repeats", "50", "--plot", str(plot), "--json", str(figures)]
    assert main(options) == 0
    rows = {row["method"]: np.array(row["by_position"]) for row in json.loads(figures.read_text())["results"]}
    multi, single = rows["multi-anchor"], rows["single penalty"]
    assert multi[0] < single[0]  # the first task is held too hard,
    assert multi[1:].mean() > 3 * single[1:].mean()  # and the others pay
    assert "<svg" in plot.read_text()
    assert "single penalty" in capsys.readouterr().out


def test_stop_waits_until_the_daemon_has_ended(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    running = LocalDaemon(TREE, tmp_path / "state").start()
    try:
        assert main(["stop", "--state-dir", str(tmp_path / "state")]) == 0
        assert "stopped" in capsys.readouterr().out
        assert not (tmp_path / "state" / "daemon.json").exists()
    finally:
        assert running.stop() == 0


def test_who_has_only_just_typed_serve_is_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = tmp_path / "state"
    with LocalDaemon(TREE, state) as running:
        written = (state / "daemon.json").read_text()
        (state / "daemon.json").unlink()  # as while it starts: it has the directory, and has not said where it listens
        later = threading.Timer(0.5 + common.TYPED_SECONDS, (state / "daemon.json").write_text, [written])
        later.start()
        assert main(["status", "--state-dir", str(state)]) == 0
        later.join()
    assert running.stop() == 0
    capsys.readouterr()
    assert main(["status", "--state-dir", str(state)]) == 1
    assert "no daemon is running" in capsys.readouterr().err


def test_the_command_line_imports_no_torch() -> None:
    code = (
        "import sys, streamcl, streamcl.client, streamcl.datafiles\n"
        "from streamcl.cli import build_parser\nbuild_parser()\n"
        "sys.exit(any(name in sys.modules for name in ('torch', 'river', 'pandas', 'pyarrow', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.campaign
def test_the_demo_shows_forgetting_and_draws_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    matrices = demo.run(tmp_path, tasks=2, epochs=10)
    assert demo.forgotten(matrices["streamcl"]) < demo.forgotten(matrices["fine-tuning"]) - 0.1
    assert (tmp_path / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert set(json.loads((tmp_path / "demo.json").read_text())) == {"streamcl", "fine-tuning"}
    assert "forgotten" in capsys.readouterr().out


def test_nobody_waits_for_a_daemon_that_was_killed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it left behind names a process that has ended, and a place where nobody listens."""
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"tcp://127.0.0.1:{server.getsockname()[1]}"
        known = {"pid": ended.pid, "endpoints": {"stream": where, "admin": where, "predict": where}}
        (tmp_path / "daemon.json").write_text(json.dumps(known))
        options = argparse.Namespace(state_dir=str(tmp_path), admin=None)
        assert common.asked(options, "admin") == where  # somebody listens: a daemon whose processes are not seen from here
    (tmp_path / "rows.csv").write_text("a,label\n1,0\n2,1\n")
    for words in (["status"], ["top", "--once"], ["predict", tmp_path / "rows.csv"], ["send", tmp_path / "rows.csv"]):
        assert main([*map(str, words), "--state-dir", str(tmp_path)]) == 1
        assert "the one that wrote daemon.json there was killed" in capsys.readouterr().err
    known["pid"] = os.getpid()  # it is being started, or ingest alone is
    (tmp_path / "daemon.json").write_text(json.dumps(known))
    assert common.asked(options, "admin") == where
