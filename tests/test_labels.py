"""Labels through the daemon: which are taken does not depend on the first batch; real numbers are told where to go."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.errors import Refused

SEVEN = np.arange(1, 8)


def rows(labels: np.ndarray, n: int = 140) -> tuple[np.ndarray, np.ndarray]:
    """One-hot rows of the labels, in turn."""
    y = np.resize(labels, n)
    return 4 * np.eye(len(np.unique(labels)), dtype="<f4")[np.searchsorted(np.unique(labels), y)], y


def start_with(start: Callable[..., LocalDaemon], classes: int, name: str) -> LocalDaemon:
    model = {"factory": "streamcl.models:linear", "classes": classes}
    return start({"model": model, "train": {"epochs": 20, "learning_rate": 0.1, "batch_size": 16}}, name)


@pytest.mark.parametrize(
    "first",
    [
        [1],
        [7, 6, 5, 4, 3, 2, 1],
        *(pytest.param(first, marks=pytest.mark.campaign) for first in ([7], [1, 2, 3, 4, 5, 6], [3, 7])),
    ],
    ids=lambda first: "-".join(map(str, first)),
)
def test_labels_from_one_are_learned_whatever_comes_first(start: Callable[..., LocalDaemon], first: list[int]) -> None:
    daemon = start_with(start, 7, "state")
    x, y = rows(SEVEN)
    with daemon.producer() as producer, daemon.reader() as reader:
        chosen = np.isin(y, first)
        producer.send(x[chosen], y[chosen], "a")
        producer.flush()
        daemon.kill_all()
        daemon.start()
        producer.send(x, y, "a")
        producer.boundary("a")
        found = reader.predict(x)
        assert (found.label == y).all()
        assert found.labels is not None
        assert found.labels.tolist() == [7, 1, 2, 3, 4, 5, 6]
        with pytest.raises(Refused, match="7 outputs, 7 of them taken, cannot hold 1 new labels such as 8"):
            producer.send(x[:7], SEVEN + 1, "b")
            producer.flush()
    with daemon.admin() as admin:
        assert "label 7 is output 0" in {event["text"] for event in admin.status()["events"] if event["kind"] == "labels"}


@pytest.mark.parametrize("labels", [[-1, 0, 1], [-1, 1, 7], [100, 200, 300]], ids=str)
def test_other_numbers_are_learned_too(start: Callable[..., LocalDaemon], labels: list[int]) -> None:
    daemon = start_with(start, 3, "state")
    x, y = rows(np.array(labels), 90)
    with daemon.producer() as producer, daemon.reader() as reader:
        for label in sorted(labels, reverse=True):  # one label a message: nothing can be seen of the others
            producer.send(x[y == label], y[y == label], "a")
        producer.boundary("a")
        assert (reader.predict(x).label == y).all()


def test_real_targets_are_told_of_the_likelihood(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    daemon = start_with(start, 3, "state")
    np.savez(tmp_path / "real.npz", x=np.ones((3, 2), "<f4"), y=np.array([0.0, 1.0, 0.5]))
    command = [sys.executable, "-m", "streamcl", "send", str(tmp_path / "real.npz"), "--task", "a"]
    done = subprocess.run(
        [*command, "--state-dir", str(daemon.state_dir)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "such as 0.5; to learn real numbers, set model.likelihood = 'gaussian'" in done.stderr


def test_whole_real_targets_are_told_of_both_ways(start: Callable[..., LocalDaemon]) -> None:
    daemon = start_with(start, 3, "state")
    with daemon.producer() as producer, pytest.raises(Refused, match="labels, send them as integers") as refused:
        producer.send(np.ones((2, 2), "<f4"), np.array([0.0, 1.0]), "a")
        producer.flush()
    assert "set model.likelihood = 'gaussian'" in str(refused.value)


@pytest.mark.parametrize(("labels", "classes"), [([0, 1, -1], "auto"), ([5, -1], 4), ([-7, -1], "auto"), ([1, 0], 3)])
def test_a_label_of_minus_one_is_told_from_an_output_without_any(
    start: Callable[..., LocalDaemon], tmp_path: Path, labels: list[int], classes: int | str
) -> None:
    daemon = start({"model": {"factory": "streamcl.models:linear", "classes": classes}, "train": {"epochs": 20}})
    path, out = tmp_path / "mood.csv", tmp_path / "out.csv"
    x, y = rows(np.array(labels))
    lines = [",".join(map(str, [*row, label])) for row, label in zip(x, y, strict=True)]
    path.write_text("\n".join([",".join([*"abc"[: x.shape[1]], "label"]), *lines]))
    where = ["--state-dir", str(daemon.state_dir)]

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "streamcl", *words, *where], text=True, capture_output=True, timeout=120, check=True
        )

    run("send", str(path), "--task", "a", "--boundary")
    said = run("predict", str(path), "--out", str(out))
    assert "not come yet" not in said.stdout + said.stderr
    header = out.read_text().splitlines()[0].replace('"', "").split(",")
    assert header == ["predicted", *(f"probability.{label}" for label in sorted(labels))]
    with daemon.reader() as reader:
        found = reader.predict(x)
        assert found.labels is not None
        assert sorted(found.labels[found.seen].tolist()) == sorted(labels)
    named = json.loads(run("predict", str(path), "--json").stdout)
    assert named["labels"] == found.labels.tolist()
    run("predict", str(path), "--out", str(tmp_path / "out.npz"))
    with np.load(tmp_path / "out.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["labels"], found.labels)
        assert ("unseen" in arrays, "unseen" in named) == (-1 in labels, -1 in labels)
        if -1 in labels:
            unseen = sorted({*range(len(found.labels))} - {*found.seen})
            assert arrays["unseen"].tolist() == named["unseen"] == unseen
