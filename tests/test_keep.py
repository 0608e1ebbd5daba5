"""`streamcl demo --keep`: one command to a working dashboard with live data."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import PATIENCE, until

pytestmark = pytest.mark.campaign


@contextmanager
def kept(out: Path) -> Iterator[tuple[subprocess.Popen[str], dict[str, str]]]:
    command = [
        sys.executable,
        "-m",
        "streamcl",
        "demo",
        "--keep",
        "--json",
        "--tasks",
        "2",
        "--epochs",
        "2",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield process, json.loads(process.stdout.readline())
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)


def fetch(where: dict[str, str], path: str) -> Any:
    with urllib.request.urlopen(where["dashboard"] + path, timeout=PATIENCE) as answer:
        return json.loads(answer.read())


def test_one_command_leaves_a_dashboard_with_live_data_and_the_next_goes_on_from_there(tmp_path: Path) -> None:
    with kept(tmp_path / "demo") as (process, where):
        with urllib.request.urlopen(where["dashboard"], timeout=PATIENCE) as page:
            assert b"<title>streamcl" in page.read()
        until(lambda: any(task["revisits"] for task in fetch(where, "overview")["tasks"]))
        until(lambda: all(task.get("accuracy", 0.0) > 0.2 for task in fetch(where, "overview")["tasks"]))
        overview, history = fetch(where, "overview"), fetch(where, "history?seconds=0")
        assert {task["task"] for task in overview["tasks"]} == {"digits-1", "digits-2"}
        assert {producer["producer"] for producer in overview["producers"]} == {"camera-1", "camera-2"}
        assert {"boundary", "revisit"} <= {event["kind"] for event in history["events"]}
        assert len(history["samples"]["time"]) > 2
        process.send_signal(signal.SIGINT)
        _, words = process.communicate(timeout=PATIENCE)
        assert process.returncode == 0
        assert "continues from there" in words
    with kept(tmp_path / "demo") as (_, where):
        samples = fetch(where, "status")["samples_seen"]
        until(lambda: fetch(where, "status")["samples_seen"] > samples)
        assert len(fetch(where, "overview")["tasks"]) == 2
        assert set(history["samples"]["time"]) <= set(fetch(where, "history?seconds=0")["samples"]["time"])
