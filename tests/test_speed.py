"""The benchmarks of speed and growth run, and their main claims hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamcl.bench.growth import Point, growth
from streamcl.bench.speed.boundary import Boundaries
from streamcl.bench.speed.table import Row
from streamcl.cli import main
from streamcl.daemon.quiet import FOLLOWED_AT_ONCE
from streamcl.daemon.words import Penalties

pytestmark = pytest.mark.campaign

TREE: dict[str, Any] = {"model": {"args": {"hidden": [8]}, "classes": 10}}


def test_speed_prints_and_writes_every_row_with_its_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "speed.json"
    status = main(["bench", "speed", "--rounds", "1", "--only", "penalty", "boundary", "--json", str(out)])
    document = json.loads(out.read_text())
    printed = capsys.readouterr().out
    assert [row["goal"] for row in document["rows"]] == [1.03, 1.3, 1.3, 1.5, 1.5, 1.5, 1.5]
    assert all(row["name"] in printed and row["ratio"] > 0 for row in document["rows"])
    assert status == (0 if all(row["verdict"] == "met" for row in document["rows"]) else 1)


def test_a_verdict_follows_its_goal() -> None:
    assert [Row("", "", ratio, "at most", 2.0, 1, 1).verdict for ratio in (1.9, 2.0, 2.1)] == ["met", "met", "missed"]
    assert [Row("", "", ratio, "at least", 0.9, 1, 1).verdict for ratio in (0.89, 0.9, 1.0)] == ["missed", "met", "met"]


def test_growth_measures_and_draws_its_curves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, plot = tmp_path / "growth.json", tmp_path / "growth.png"
    sizes = ["--tasks", "4", "--parameters", "20000", "--samples", "500"]
    assert main(["bench", "growth", *sizes, "--json", str(out), "--plot", str(plot)]) == 0
    curves = {point["curve"] for point in json.loads(out.read_text())["points"]}
    assert curves == {"tasks, single", "tasks, factors", "parameters", "samples"}
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "samples" in capsys.readouterr().out


def test_growth_is_the_last_point_over_the_first() -> None:
    points = [Point("tasks", 10, 1.0, 2.0), Point("other", 1, 9.0, 9.0), Point("tasks", 40, 1.5, 3.0)]
    assert growth(points, "tasks") == {"step": 1.5, "boundary": 1.5, "at": 4.0}


def test_a_boundary_follows_some_tasks_and_quiet_time_the_rest(tmp_path: Path) -> None:
    """Otherwise a boundary would wait for as many factors as there have been tasks."""
    made = Boundaries(tmp_path / "state", {**TREE, "posterior": {"mode": "factors"}}, features=5, rows=16)

    def followed() -> list[list[str]]:
        return [[row[0] for row in word.rows] for word in made.said() if isinstance(word, Penalties)]

    try:
        said: list[list[str]] = []
        for _ in range(FOLLOWED_AT_ONCE + 4):
            made.learn_a_task()
            said += followed()
        tasks = {f"task-{number}" for number in range(1, FOLLOWED_AT_ONCE + 5)}
        assert all(len(names) <= FOLLOWED_AT_ONCE + 2 for names in said)  # two records follow one more each
        assert {name for names in said for name in names} < tasks
        made.trainer.turn()  # nothing to learn
        assert {name for names in followed() for name in names} == tasks
    finally:
        made.close()
