"""An operator's afternoon, through the command line: start, stream, watch, pause, fill the budget, recover, revisit, back
up, restore elsewhere, upgrade."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamcl.bench.local import LocalDaemon
from streamcl.errors import StreamclError
from streamcl.storage.container import VERSION

pytestmark = pytest.mark.campaign

PATIENCE = 120.0
ROW_BYTES = 20 * 4 + 8
BUDGET = 150_000
CONFIG = """
state_dir = "{state}"
[endpoints]
stream = "tcp://127.0.0.1:*"
predict = "tcp://127.0.0.1:*"
admin = "tcp://127.0.0.1:*"
http = "127.0.0.1:0"
[model]
factory = "streamcl.models:linear"
classes = 3
[train]
epochs = 2
[posterior]
mode = "factors"
[stream]
task_bytes = {budget}
"""


class Desk:
    """Where the operator sits: a directory, a daemon in the background, and the command line."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.state = place / "state"
        self.running: list[subprocess.Popen[str]] = []
        self.daemon: subprocess.Popen[str] | None = None
        self.configure(BUDGET)

    def configure(self, budget: int) -> None:
        (self.place / "streamcl.toml").write_text(CONFIG.format(state=self.state, budget=budget))

    def type(self, *words: Any, status: int = 0) -> str:
        """A command; what it prints."""
        done = subprocess.run(self._command(*words), capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert done.returncode == status, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def read(self, *words: Any) -> dict[str, Any]:
        """A command's JSON."""
        answer: dict[str, Any] = json.loads(self.type(*words, "--json"))
        return answer

    def begin(self, *words: Any) -> subprocess.Popen[str]:
        """A command that keeps running in the background."""
        made = subprocess.Popen(self._command(*words), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.running.append(made)
        return made

    def _command(self, *words: Any) -> list[str]:
        own = [] if words[0] in ("serve", "config", "health", "doctor") else ["--state-dir", str(self.state)]
        return [sys.executable, "-m", "streamcl", *map(str, words), *own]

    def start(self) -> None:
        log = (self.place / "daemon.log").open("a")
        command = self._command("serve", "--config", self.place / "streamcl.toml")
        self.daemon = subprocess.Popen(command, stdout=log, stderr=log, text=True)
        self.running.append(self.daemon)
        self.until(lambda: self.ready() == 0)

    def ready(self) -> int:
        command = self._command("health", "--config", self.place / "streamcl.toml")
        return subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False).returncode

    def stop(self) -> None:
        assert self.daemon is not None
        self.type("stop")
        assert self.daemon.wait(PATIENCE) == 0

    def until(self, condition: Callable[[], Any]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, (self.place / "daemon.log").read_text()[-2000:]
            time.sleep(0.05)

    def fetch(self, path: str) -> str:
        http = json.loads((self.state / "daemon.json").read_text())["endpoints"]["http"]
        with urllib.request.urlopen(f"http://{http}{path}", timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def file(self, name: str, rows: int) -> Path:
        rng = np.random.default_rng(len(name))
        y = rng.integers(0, 3, rows)
        path = self.place / f"{name}.npz"
        np.savez(path, x=np.eye(3, 20, dtype="<f4")[y] + rng.normal(scale=0.2, size=(rows, 20)).astype("<f4"), y=y)
        return path

    def close(self) -> None:
        for process in self.running:
            if process.poll() is None:
                process.kill()
            process.communicate()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.close()


def test_an_operators_afternoon(desk: Desk) -> None:
    assert "good" in desk.type("config", "check", desk.place / "streamcl.toml")
    desk.start()
    stream_from_two_producers(desk)
    pause_and_resume(desk)
    fill_the_budget_and_recover(desk)
    revisit(desk)
    back_up_and_restore_elsewhere(desk)


def stream_from_two_producers(desk: Desk) -> None:
    senders = [
        desk.begin("send", desk.file(name, 300), "--task", "monday", "--producer", name) for name in ("camera", "lidar")
    ]
    for sender in senders:
        said, _ = sender.communicate(timeout=PATIENCE)
        assert sender.returncode == 0, said
        assert "sent 300 rows" in said
    desk.until(lambda: desk.read("status")["samples_seen"] == 600)
    seen = desk.read("top", "--once")
    assert {"camera", "lidar"} <= {each["producer"] for each in seen["producers"]}
    assert "monday" in desk.type("top", "--once")
    assert json.loads(desk.fetch("/overview"))["producers_total"] == 2
    assert 'streamcl_batches_received_total{producer="lidar"} 2.0' in desk.fetch("/metrics")
    assert desk.read("boundary", "monday")["samples"] == 600


def pause_and_resume(desk: Desk) -> None:
    desk.type("pause")
    desk.until(lambda: desk.read("status")["state"] == "paused")
    seen = desk.read("status")["samples_seen"]
    assert "sent 200 rows" in desk.type("send", desk.file("paused", 200), "--task", "tuesday", "--producer", "camera")
    assert desk.read("status")["samples_seen"] == seen
    assert "rows" in desk.type("predict", desk.file("question", 10), "--out", desk.place / "answers.npz")
    desk.type("resume")
    desk.until(lambda: desk.read("status")["samples_seen"] == seen + 200)
    assert desk.read("boundary", "tuesday")["samples"] == 200


def fill_the_budget_and_recover(desk: Desk) -> None:
    rows = 3 * BUDGET // ROW_BYTES
    sender = desk.begin("send", desk.file("flood", rows), "--task", "wednesday")
    desk.until(lambda: desk.read("status")["credit"]["messages"] == 0)
    status = desk.read("status")
    assert 0.7 * BUDGET < status["task_bytes"]["used"] <= BUDGET
    assert "streamcl_credit_messages 0.0" in desk.fetch("/metrics")
    assert sender.poll() is None, "the sender waits"
    desk.stop()
    desk.configure(10 * BUDGET)  # as the runbook says: raise stream.task_bytes, and restart
    assert "good" in desk.type("config", "check", desk.place / "streamcl.toml")
    desk.start()
    again = desk.begin("send", desk.place / "flood.npz", "--task", "wednesday")
    sender.kill()  # its daemon's port was another; the file, sent again, goes on where the disk is
    said, _ = again.communicate(timeout=PATIENCE)
    assert again.returncode == 0, said
    assert desk.read("boundary", "wednesday")["samples"] == rows
    assert desk.read("status")["samples_seen"] == 600 + 200 + rows


def revisit(desk: Desk) -> None:
    desk.type("revisit", "tuesday")
    desk.type("send", desk.place / "paused.npz", "--task", "tuesday", "--boundary")
    tasks = {task["task"]: task for task in desk.read("tasks")["tasks"]}
    assert (tasks["tuesday"]["revisits"], tasks["tuesday"]["samples"]) == (1, 200)
    assert tasks["monday"]["revisits"] == 0


def back_up_and_restore_elsewhere(desk: Desk) -> None:
    desk.type("export", desk.place / "before")
    desk.stop()
    with tarfile.open(desk.place / "backup.tar", "w") as archive:
        archive.add(desk.state, "state")
    (desk.place / "elsewhere").mkdir()
    elsewhere = Desk(desk.place / "elsewhere")
    with tarfile.open(desk.place / "backup.tar") as archive:
        archive.extractall(elsewhere.place, filter="data")
    try:
        assert "nothing is damaged" in elsewhere.type("doctor", elsewhere.state)
        elsewhere.start()
        elsewhere.type("export", elsewhere.place / "after")
        before = load_file(desk.place / "before" / "parameters.safetensors")
        after = load_file(elsewhere.place / "after" / "parameters.safetensors")
        assert set(before) == set(after)
        for name, array in before.items():
            np.testing.assert_array_equal(array, after[name])
        elsewhere.type("send", elsewhere.file("thursday", 100), "--task", "thursday", "--boundary")
        assert [task["task"] for task in elsewhere.read("tasks")["tasks"]] == ["monday", "tuesday", "wednesday", "thursday"]
    finally:
        elsewhere.close()


# -- upgrades ----------------------------------------------------------------------------------------------------------


def test_a_state_directory_of_an_earlier_version_is_gone_on_with(tmp_path: Path) -> None:
    """Of 744afb6 (2026-11-25), before the history had time series: two tasks consolidated, one open, killed."""
    with tarfile.open(Path(__file__).parent / "data" / "state-of-an-earlier-version.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    tree = {
        "model": {"factory": "streamcl.models:linear", "classes": 3},
        "train": {"epochs": 2, "batch_size": 8},
        "posterior": {"mode": "factors"},
    }
    with LocalDaemon(tree, tmp_path / "state") as daemon, daemon.admin() as admin:
        assert [task["task"] for task in admin.tasks()] == ["monday", "tuesday"]
        assert len(admin.history()) == 3
        assert admin.boundary("wednesday")["samples"] == 24
        with urllib.request.urlopen(daemon.url("/history?seconds=0"), timeout=PATIENCE) as answer:
            kinds = [event["kind"] for event in json.loads(answer.read())["events"] if event["kind"] != "warning"]
        found = admin.parameters()
    assert kinds == [
        "boundary",
        "boundary",
        "started",
    ]  # the last entry before the upgrade is reported again, since it is not recorded
    expected = np.load(tmp_path / "state" / "expected.npz", allow_pickle=False)  # of that version, after the same boundary
    for name in ("theta", "precision", "shift"):
        np.testing.assert_allclose(getattr(found, name), expected[name], rtol=1e-4, atol=1e-5)  # by another processor


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"curvature": "kronecker"}, "posterior.curvature was 'diagonal', is 'kronecker'.*new state directory"),
        ({"curvature": "full"}, "posterior.curvature was 'diagonal', is 'full'"),
    ],
)
def test_what_an_earlier_version_learned_is_not_taken_for_another_curvature(
    tmp_path: Path, settings: dict[str, str], said: str
) -> None:
    with tarfile.open(Path(__file__).parent / "data" / "state-of-an-earlier-version.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    model = {"factory": "streamcl.models:linear", "classes": 3}
    tree = {"model": model, "train": {"epochs": 2, "batch_size": 8}, "posterior": {"mode": "factors", **settings}}
    before = (tmp_path / "state" / "checkpoint").read_bytes()
    with pytest.raises(StreamclError, match=said), LocalDaemon(tree, tmp_path / "state"):
        pass
    assert (tmp_path / "state" / "checkpoint").read_bytes() == before


def test_a_state_directory_of_a_newer_version_is_refused_and_left_as_it_is(desk: Desk) -> None:
    desk.start()
    desk.type("send", desk.file("monday", 50), "--task", "monday", "--boundary")
    desk.stop()
    path = desk.state / "checkpoint"
    raw = bytearray(path.read_bytes())
    raw[8:12] = (VERSION + 1).to_bytes(4, "little")  # the format, and the header's checksum
    raw[28:32] = zlib.crc32(raw[:28]).to_bytes(4, "little")
    path.write_bytes(raw)
    said = desk.type("serve", "--config", desk.place / "streamcl.toml", status=2)
    assert f"{path}: format {VERSION + 1}; this streamcl reads up to {VERSION}: upgrade it" in said
    assert path.read_bytes() == raw
