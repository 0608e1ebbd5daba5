"""The comparison with other libraries runs even if none of them is installed, and reports what is installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamcl.bench import peers

pytestmark = pytest.mark.campaign


def test_it_runs_without_the_peers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(peers, "installed", lambda package: False)
    monkeypatch.setattr(peers, "_avalanche_step", absent)
    out = tmp_path / "peers.json"
    assert peers.run(out, samples=8, rounds=1, epochs=1, hidden=8) == 0
    document = json.loads(out.read_text())
    assert {row["verdict"] for row in document["fisher"]} == {peers.REMEDY}
    ours = [step for step in document["penalty"] if step["method"] == "streamcl"]
    assert [step["tasks"] for step in ours] == [1, 10, 50]
    assert len({step["bytes"] for step in ours}) == 1
    assert {step["note"] for step in document["penalty"] if step not in ours} == {peers.REMEDY}
    assert "pip install" in capsys.readouterr().out


def absent(*arguments: object) -> None:
    raise ModuleNotFoundError("No module named 'avalanche'")


def test_another_quantity_is_never_faster() -> None:
    row = peers.Row("peer", "empirical Fisher", "network", 8, 9.0, 1.0, 9.0, difference=0.9, size=0.02)
    assert row.verdict == "another quantity: 0.020 of it in all"
    row = peers.Row("peer", "exact Fisher", "network", 8, 0.5, 2.0, 1.0, difference=1e-7, size=1.0)
    assert row.verdict == "equal and slower"
