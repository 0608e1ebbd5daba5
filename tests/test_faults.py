"""The fault campaigns, as many as fit in CI; `streamcl bench faults` runs the long ones."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path

import pytest

from streamcl.bench.faults import campaigns, report
from streamcl.bench.faults.disk import surviving
from streamcl.bench.faults.kills import random_kills
from streamcl.cli import main

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("alone", [False, True], ids=["all processes", "one process"])
@pytest.mark.parametrize("fault", campaigns.FAULTS)
def test_a_fault_at_every_operation_changes_nothing(fault: campaigns.Fault, alone: bool) -> None:
    tally = campaigns.every_step([fault], alone=alone)
    assert tally.violations == []
    assert tally.met[fault] > 150


@pytest.mark.parametrize("alone", [False, True], ids=["all processes", "one process"])
def test_a_kill_at_every_operation_amid_drift_leaves_the_same_tasks(alone: bool) -> None:
    tally = campaigns.every_step(["kill"], alone=alone, about="drift")
    assert tally.violations == []
    assert tally.met["kill"] > 100


@pytest.mark.parametrize("fault", campaigns.FAULTS)
def test_a_fault_at_every_operation_loses_nothing_that_could_not_be_learned(fault: campaigns.Fault) -> None:
    tally = campaigns.every_step([fault], alone=False, about="kept", stride=4 if fault == "kill" else 13)
    assert tally.violations == []
    assert tally.met[fault] > 5


@pytest.mark.parametrize("cut", [False, True], ids=["kills", "power cuts"])
def test_random_crashes_lose_nothing_that_could_not_be_learned(cut: bool) -> None:
    tally = campaigns.random_crashes(20, cut=cut, about="kept")
    assert tally.violations == []
    assert tally.runs > 12


def test_the_script_of_what_cannot_be_learned_meets_what_it_is_about() -> None:
    with campaigns.small_world(campaigns.kept_script(), tree=campaigns.MOODY) as world:
        end = world.run()
    assert list(end["tasks"]) == ["a", "b", "h", "g"]
    assert [end["tasks"][task][3] for task in "ahg"] == [12, 12, 18]
    assert end["held"]["w"][3] == 12
    assert all(not figures[8] for figures in end["tasks"].values())


def test_the_drifting_script_meets_what_it_is_about() -> None:
    """A boundary right behind the change, and one behind data of the task after it."""
    with campaigns.small_world(campaigns.drifting_script(), tree=campaigns.DRIFTING) as world:
        tasks = world.run()["tasks"]
    assert tasks["a"][1:4] == ["boundary", "drift", 22 * campaigns.ROWS]
    assert tasks["a"][6:8] == ["p", 23]
    ends = [campaigns.undisturbed(campaigns.drifting(random.Random(n)), tree=campaigns.DRIFTING) for n in range(8)]
    assert any("drift" in figures for end in ends for figures in end["tasks"].values())


@pytest.mark.parametrize("cut", [False, True], ids=["kills", "power cuts"])
def test_random_crashes_amid_drift_leave_the_same_tasks(cut: bool) -> None:
    tally = campaigns.random_crashes(40, cut=cut, about="drift")
    assert tally.violations == []
    assert tally.runs > 25


@pytest.mark.parametrize("cut", [False, True], ids=["kills", "power cuts"])
def test_random_crashes_of_two_producers_tasks(cut: bool) -> None:
    tally = campaigns.random_crashes(100, cut=cut)
    assert tally.violations == []
    assert tally.runs > 60
    assert tally.lives > 2 * 100 + tally.runs


def test_power_cuts_of_the_log() -> None:
    tally = campaigns.log_cuts(3000)
    assert tally.violations == []
    assert tally.met["cut"] > 5000


@pytest.mark.parametrize("name", campaigns.VARIANTS)
def test_the_campaigns_notice_a_broken_daemon(name: str) -> None:
    variant = campaigns.VARIANTS[name]
    found = campaigns.log_cuts(300, variant=variant).violations
    assert found or campaigns.random_crashes(20, variant=variant, cut=True).violations


@pytest.mark.timeout(1200)
def test_killed_100_times_it_learns_what_one_left_in_peace_learns() -> None:
    result = random_kills(100)
    assert result.violations == []
    assert result.total == 100
    assert result.batches >= 90 * result.rounds


def test_a_power_cut_leaves_what_was_synced() -> None:
    rng = random.Random(0)
    synced, now = bytes(range(200)), bytes(range(200)) + b"x" * 3000
    ends = [surviving(synced, now, rng) for _ in range(200)]
    assert all(end[:200] == synced for end in ends)
    assert len({len(end) for end in ends}) > 50
    assert any(end == now for end in ends)
    assert any(len(end) == len(now) and end != now for end in ends)


def test_the_report_is_printed_and_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(campaigns, "every_step", lambda alone, about="tasks": campaigns.Tally(runs=1))
    monkeypatch.setattr(report, "VARIANT_RUNS", 4)
    out = tmp_path / "faults.json"
    assert main(["bench", "faults", "--crashes", "2", "--log-cuts", "2", "--kills", "0", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["power cuts of the log"]["violations"] == 0
    assert set(figures["violations found in broken daemons"]) == set(campaigns.VARIANTS)
    assert "power cuts" in capsys.readouterr().out


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is shown to people is taken from it."""
    rng = random.Random(1)
    monkeypatch.setattr(time, "time", lambda: rng.uniform(-1e9, 4e9))
    tally = campaigns.random_crashes(10, cut=True)
    assert tally.violations == []
