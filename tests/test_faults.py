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
from streamcl.daemon.commit import Commit

pytestmark = pytest.mark.campaign


@pytest.mark.parametrize("alone", [False, True], ids=["all processes", "one process"])
@pytest.mark.parametrize("fault", campaigns.FAULTS)
def test_a_fault_at_every_operation_changes_nothing(fault: campaigns.Fault, alone: bool) -> None:
    """Every second operation for kills of one process, every third otherwise: all of them take `bench faults`."""
    stride = 4 if fault == "kill" and alone else 5
    tally = campaigns.every_step([fault], alone=alone, stride=stride)
    assert tally.violations == []
    assert tally.met[fault] > 150 / stride


@pytest.mark.parametrize("alone", [False, True], ids=["all processes", "one process"])
def test_a_kill_at_every_operation_amid_drift_leaves_the_same_tasks(alone: bool) -> None:
    tally = campaigns.every_step(["kill"], alone=alone, about="drift", stride=4)
    assert tally.violations == []
    assert tally.met["kill"] > 30


@pytest.mark.parametrize("fault", campaigns.FAULTS)
def test_a_fault_at_every_operation_loses_nothing_that_could_not_be_learned(fault: campaigns.Fault) -> None:
    tally = campaigns.every_step([fault], alone=False, about="kept", stride=8 if fault == "kill" else 17)
    assert tally.violations == []
    assert tally.met[fault] > 5


@pytest.mark.parametrize("fault", campaigns.FAULTS)
def test_a_fault_at_every_operation_leaves_an_exact_learner_the_same_bits(fault: campaigns.Fault) -> None:
    tally = campaigns.every_step([fault], alone=fault == "kill", about="exact", stride=5 if fault == "kill" else 15)
    assert tally.violations == []
    assert tally.met[fault] > 5


@pytest.mark.parametrize("fault", campaigns.FAULTS)
def test_a_fault_at_every_operation_amid_checkpoints_written_beside_changes_nothing(fault: campaigns.Fault) -> None:
    """Training's operations, and those of the thread that writes."""
    tally = campaigns.every_step([fault], alone=fault == "kill", about="beside", stride=17 if fault == "kill" else 53)
    assert tally.violations == []
    assert tally.met[fault] > 2


@pytest.mark.parametrize("cut", [False, True], ids=["kills", "power cuts"])
def test_random_crashes_amid_checkpoints_written_beside_leave_the_same_bits(cut: bool) -> None:
    tally = campaigns.random_crashes(3, cut=cut, about="beside")
    assert tally.violations == []
    assert tally.runs > 1


def test_checkpoints_written_beside_are_begun_again_and_again_and_waited_for_at_boundaries() -> None:
    """What the campaigns above are about."""
    seen = {"begun": 0, "waited": 0}
    with campaigns.small_world(campaigns.long_script(), beside=True) as world, pytest.MonkeyPatch.context() as patch:
        begin, settle = Commit.begin, Commit.settle
        patch.setattr(Commit, "begin", lambda *own: _count(seen, "begun", begin(*own)))
        patch.setattr(Commit, "settle", lambda own: (_count(seen, "waited", own.begun is not None) and settle(own)) or ())
        world.run()
    assert seen["begun"] > 5
    assert seen["waited"] > 2


def _count(seen: dict[str, int], what: str, happened: bool) -> bool:
    seen[what] += happened
    return happened


@pytest.mark.parametrize("cut", [False, True], ids=["kills", "power cuts"])
def test_random_crashes_leave_an_exact_learner_the_same_bits(cut: bool) -> None:
    tally = campaigns.random_crashes(6, cut=cut, about="exact")
    assert tally.violations == []
    assert tally.runs > 3


@pytest.mark.parametrize("cut", [False, True], ids=["kills", "power cuts"])
def test_random_crashes_lose_nothing_that_could_not_be_learned(cut: bool) -> None:
    tally = campaigns.random_crashes(10, cut=cut, about="kept")
    assert tally.violations == []
    assert tally.runs > 5


def test_the_script_of_what_cannot_be_learned_meets_what_it_is_about() -> None:
    with campaigns.small_world(campaigns.kept_script(), tree=campaigns.MOODY) as world:
        end = world.run()
    assert list(end["tasks"]) == ["a", "b", "h", "g"]
    assert [end["tasks"][task][3] for task in "ahg"] == [12, 12, 18]
    assert end["held"]["w"][3] == 12
    assert all(not figures[8] for figures in end["tasks"].values())


def test_the_clocks_script_meets_what_it_is_about() -> None:
    with campaigns.small_world(campaigns.clocked_script(), tree=campaigns.CLOCKED) as world:
        tasks = world.run()["tasks"]
    ends = {name: (origin, rows // campaigns.ROWS) for name, (_, _, origin, rows, *_) in tasks.items()}
    assert {name for name, (origin, _) in ends.items() if origin == "time"} == {"a", "a.4", "b"}  # a.2 was fed again
    assert (ends["a"], ends["a.3"]) == (("time", 3), (None, 1))


@pytest.mark.campaign
@pytest.mark.parametrize("alone", [True, False], ids=["one process", "all processes"])
def test_a_kill_at_every_operation_amid_the_clocks_boundaries_leaves_the_same_tasks(alone: bool) -> None:
    """At every sixth; all of them take `bench faults`."""
    tally = campaigns.every_step(["kill"], alone=alone, about="clock", stride=6)
    assert tally.violations == []
    assert tally.met["kill"] > 20


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
    tally = campaigns.random_crashes(12, cut=cut, about="drift")
    assert tally.violations == []
    assert tally.runs > 6


@pytest.mark.parametrize("cut", [False, True], ids=["kills", "power cuts"])
def test_random_crashes_of_two_producers_tasks(cut: bool) -> None:
    tally = campaigns.random_crashes(14, cut=cut)
    assert tally.violations == []
    assert tally.runs > 7
    assert tally.lives > 2 * 14 + tally.runs


def test_power_cuts_of_the_log() -> None:
    tally = campaigns.log_cuts(1200)
    assert tally.violations == []
    assert tally.met["cut"] > 2000


@pytest.mark.parametrize("name", campaigns.VARIANTS)
def test_the_campaigns_notice_a_broken_daemon(name: str) -> None:
    variant = campaigns.VARIANTS[name]
    found = campaigns.log_cuts(300, variant=variant).violations
    assert found or campaigns.random_crashes(20, variant=variant, cut=True).violations


@pytest.mark.timeout(1200)
def test_killed_16_times_it_learns_what_one_left_in_peace_learns() -> None:
    result = random_kills(16)
    assert result.violations == []
    assert result.total == 16
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
    few = dict(list(campaigns.VARIANTS.items())[:2])
    monkeypatch.setattr(campaigns, "VARIANTS", few)
    out = tmp_path / "faults.json"
    assert main(["bench", "faults", "--crashes", "2", "--log-cuts", "2", "--kills", "0", "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["power cuts of the log"]["violations"] == 0
    assert set(figures["violations found in broken daemons"]) == set(few)
    assert "power cuts" in capsys.readouterr().out


def test_a_clock_that_jumps_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what is shown to people is taken from it."""
    rng = random.Random(1)
    monkeypatch.setattr(time, "time", lambda: rng.uniform(-1e9, 4e9))
    tally = campaigns.random_crashes(10, cut=True)
    assert tally.violations == []
