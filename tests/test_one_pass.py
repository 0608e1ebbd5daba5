"""The bench of one pass learns through a daemon, revisits what it says, and writes its figures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from streamcl.bench import one_pass
from streamcl.bench.permuted import Images
from streamcl.cli import main


def images() -> Images:
    """Rows around a point of their label's."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, 400)
    x = (2 * rng.normal(size=(10, 12))[y] + rng.normal(size=(400, 12)) / 4).astype("float32")
    return Images(x, y, x, y)


@pytest.mark.campaign
def test_one_stream_is_scored_after_every_number_of_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(one_pass, "digits", images)
    found = []
    for number, tasks in enumerate((["3", "1"], ["1"])):
        out = tmp_path / f"{number}.json"
        options = ["--case", "sites", "--tasks", *tasks, "--seeds", "3", "--hidden", "16", "--json", str(out)]
        assert main(["bench", "one-pass", *options]) == 0
        found.append({row["tasks"]: row["accuracy"] for row in json.loads(out.read_text())["results"]})
    assert list(found[0]) == [1, 3]
    assert found[0][1] == found[1][1]


@pytest.mark.campaign
def test_a_pass_a_sweep_and_joint_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(one_pass, "digits", images)
    out = tmp_path / "one-pass.json"
    options = ["--case", "sites", "--tasks", "2", "--seeds", "3", "--hidden", "64", "--sweeps", "1", "--joint"]
    assert main(["bench", "one-pass", *options, "--json", str(out)]) == 0
    document = json.loads(out.read_text())
    assert [(row["seed"], row["tasks"], row["sweep"]) for row in document["results"]] == [
        (3, 2, 0),
        (3, 2, 1),
        (3, 2, None),
    ]
    assert document["settings"] == {"data": "digits", "hidden": [64]}
    assert min(row["mean"] for row in document["results"]) > 0.7
    printed = capsys.readouterr().out
    assert "sites, 2 tasks, after 1 sweeps" in printed
    assert "sites, 2 tasks, joint training" in printed
