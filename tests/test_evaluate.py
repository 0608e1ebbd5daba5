"""`streamcl evaluate`: the figures of continual learning as the field defines them, against ones worked out by hand."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from waiting import until

from streamcl.accuracies import Matrix
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.learning.evaluation import Calibration, confidence
from streamcl.storage.history import History, HistoryReader

LEARNED = [("a", 10), ("b", 20), ("c", 30)]
R = {
    (10, "a"): 0.9, (10, "b"): 0.3, (10, "c"): 0.1,
    (20, "a"): 0.95, (20, "b"): 0.8, (20, "c"): 0.25,
    (30, "a"): 0.7, (30, "b"): 0.85, (30, "c"): 0.99,
}  # fmt: skip
BEGUN = {"a": 0.1, "b": 0.2, "c": 0.15}


def matrix(without: tuple[tuple[int, str], ...] = (), begun: dict[str, float] = BEGUN) -> Matrix:
    order = [task for task, _ in LEARNED]
    known = [
        {"lsn": mark, "task": task, "accuracy": R[mark, task]}
        for number, (_, mark) in enumerate(LEARNED)
        for task in order[: number + 1]
        if (mark, task) not in without
    ]
    ahead = [(mark, task) for number, (_, mark) in enumerate(LEARNED) for task in order[number + 1 :]]
    beside = [{"lsn": 0, "task": task, "accuracy": value, "calibration": None, "rows": 5} for task, value in begun.items()]
    beside += [
        {"lsn": mark, "task": task, "accuracy": R[mark, task], "calibration": None, "rows": 5}
        for mark, task in ahead
        if (mark, task) not in without
    ]
    newest = [{"lsn": 30, "task": task, "accuracy": R[30, task], "calibration": 0.1 * k, "rows": k} for k, task in
              enumerate(order, start=1)]  # fmt: skip
    return Matrix.of(LEARNED, known, sorted([*beside, *newest], key=lambda row: row["lsn"]))


def test_the_figures_are_the_fields() -> None:
    found = matrix().figures()
    assert found["average_accuracy"] == pytest.approx((0.7 + 0.85 + 0.99) / 3)
    assert found["anytime_accuracy"] == pytest.approx((0.9 + (0.95 + 0.8) / 2 + (0.7 + 0.85 + 0.99) / 3) / 3)
    assert found["forgetting"] == pytest.approx(((0.95 - 0.7) + (0.8 - 0.85)) / 2)
    assert found["backward_transfer"] == pytest.approx(((0.7 - 0.9) + (0.85 - 0.8)) / 2)
    assert found["forward_transfer"] == pytest.approx(((0.3 - 0.2) + (0.25 - 0.15)) / 2)
    assert found["calibration_error"] == pytest.approx((0.1 * 1 + 0.2 * 2 + 0.3 * 3) / 6)
    assert matrix().missing() == []
    assert matrix().rows()[1] == [0.95, 0.8, 0.25]


def test_what_was_not_measured_is_left_out_and_said() -> None:
    found = matrix(without=((20, "a"), (20, "b"), (20, "c")), begun={})
    assert found.rows()[1] == [None, None, None]
    figures = found.figures()
    assert figures["forward_transfer"] is None
    assert figures["forgetting"] == pytest.approx(0.9 - 0.7)
    assert figures["backward_transfer"] == pytest.approx(0.7 - 0.9)
    text = "; ".join(found.missing())
    assert "behind the boundary of b" in text
    assert "no forward transfer" in text
    alone = Matrix.of(LEARNED[:1], [], [])
    assert set(alone.figures().values()) == {None}
    assert "no accuracy of a" in alone.missing()[0]


def test_a_calibration_error_against_numpy() -> None:
    rng = np.random.default_rng(0)
    sure, right = rng.random(500), (rng.random(500) < 0.6).astype(float)
    found = Calibration()
    for part in (slice(0, 123), slice(123, 500)):
        found.add(torch.from_numpy(sure[part]), torch.from_numpy(right[part]))
    place = np.minimum((sure * 15).astype(int), 14)
    bins = [place == k for k in range(15) if (place == k).any()]
    expected = sum(abs(right[mine].mean() - sure[mine].mean()) * mine.mean() for mine in bins)
    assert found.error == pytest.approx(expected)
    logits = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(confidence("categorical", logits), logits.softmax(1).amax(1), rtol=1e-6)
    np.testing.assert_allclose(confidence("bernoulli", logits[:, :1]), [0.8808, 0.5], atol=1e-4)


def test_an_older_history_has_nothing_beside(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite")
    history.add_accuracies(3, 1.0, [("a", 0.5, 7)])
    history.add_beside(3, 1.0, [("a", 0.5, 0.1, 7), ("later", 0.2, None, 7)])
    history.add_beside(4, 1.0, [])
    with HistoryReader(tmp_path / "history.sqlite") as reader:
        assert [row["task"] for row in reader.beside()] == ["a", "later"]
    history.forget("a")
    with HistoryReader(tmp_path / "history.sqlite") as reader:
        assert [row["task"] for row in reader.beside()] == ["later"]
    history._database.execute("drop table beside")
    with HistoryReader(tmp_path / "history.sqlite") as reader:
        assert reader.beside() == []
    history.close()


CENTRES = np.random.default_rng(3).normal(size=(6, 5)) * 4


def rows(labels: list[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, *labels])
    y = np.resize(np.array(labels), 60)
    return (CENTRES[y] + rng.normal(size=(60, 5))).astype("<f4"), y


def command(daemon: LocalDaemon, *more: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "streamcl", "evaluate", "--state-dir", str(daemon.state_dir), *more]
    return subprocess.run(line, capture_output=True, text=True, check=False)


def test_from_a_daemons_history(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    sets.mkdir()
    tasks = {"a": [0, 1], "b": [2, 3], "c": [4, 5]}
    for task, labels in tasks.items():
        x, y = rows(labels, 9)
        np.savez(sets / f"{task}.npz", x=x, y=y)
    daemon = start({"model": {"args": {"hidden": [16]}}, "evaluation": {"directory": str(sets)}})
    refused = command(daemon)
    assert refused.returncode == 1
    assert "evaluation.directory" in refused.stderr
    found: dict[str, Any] = {}
    with daemon.producer() as producer:
        for number, (task, labels) in enumerate(tasks.items()):
            producer.send(*rows(labels, 1), task)
            producer.boundary(task)
            # each is scored before the next comes, so that every figure is known
            until(lambda number=number: _ahead(daemon, number + 1) == 2 - number)
            asked = command(daemon, "--json")
            assert asked.returncode == 0, asked.stderr
            found = json.loads(asked.stdout)
            assert len(found["now"]) == number + 1
    assert found["tasks"] == ["a", "b", "c"]
    assert found["missing"] == []
    now = found["accuracy"][2]
    assert found["average_accuracy"] == pytest.approx(np.mean(now))
    assert found["backward_transfer"] == pytest.approx(np.mean([now[j] - found["accuracy"][j][j] for j in (0, 1)]))
    assert found["accuracy"][0][1:] == [0.0, 0.0]  # labels that had not come
    assert 0 <= found["calibration_error"] <= 1
    assert set(found["nothing_learned"]) == {"a", "b", "c"}
    shown = command(daemon)
    assert shown.returncode == 0
    assert "backward transfer" in shown.stdout
    assert shown.stdout.splitlines()[0].split() == ["accuracy", "on", "a", "b", "c"]


def _ahead(daemon: LocalDaemon, learned: int) -> int:
    """How many sets ahead of the stream have been scored behind the newest boundary."""
    from streamcl.storage.state import StateDirectory

    with HistoryReader(StateDirectory(daemon.state_dir).history) as history:
        marks = sorted({row["lsn"] for row in history.accuracies()})
        if len(marks) < learned:
            return -1
        return sum(row["lsn"] == marks[-1] and row["calibration"] is None for row in history.beside())


def test_without_a_history_it_says_where_one_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--state-dir", str(tmp_path)]) == 2
    assert "there is no history" in capsys.readouterr().err
