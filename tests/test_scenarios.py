"""`model.scenario`: what a task can see, what a model is told of it, and who may ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamcl import Learner
from streamcl.bench.local import LocalDaemon
from streamcl.bench.scenarios import SETTINGS, run
from streamcl.config import Gathered
from streamcl.core.likelihood import Categorical
from streamcl.errors import ModelRefused, Refused

CENTRES = np.random.default_rng(5).normal(size=(12, 6)) * 3
TREE: dict[str, Any] = {"model": {"args": {"hidden": [16]}, "scenario": "task"}}
STREAM = {"a": [0, 1], "b": [2, 3], "c": [1, 4]}


class Headed(nn.Module):
    """A head of its own for each task: two numbers, put where the task's outputs are."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.body = nn.Linear(6, 16)
        self.last = nn.Linear(16, outputs)
        self.shifts = nn.Parameter(torch.zeros(3, 16))

    def forward(self, x: Tensor, task: int) -> Tensor:
        found: Tensor = self.last(torch.relu(self.body(x) + self.shifts[task]))
        return found


def headed(outputs: int) -> nn.Module:
    return Headed(outputs)


def rows(labels: list[int], seed: int = 0, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, *labels])
    y = np.resize(np.array(labels), n)
    return (CENTRES[y] + rng.normal(size=(n, 6))).astype("<f4"), y


def taught(settings: dict[str, Any], saved: Path | None = None) -> Learner:
    learner = Learner(settings)
    for task, labels in STREAM.items():
        for part in range(2):
            learner.observe(*rows(labels, seed=part), task=task)
            if saved is not None:
                learner.save(saved)
                learner = Learner.load(saved)
        learner.boundary(task)
    return learner


def test_an_answer_is_one_of_the_tasks_labels() -> None:
    learner = taught(TREE)
    for task, labels in STREAM.items():
        x, y = rows(labels, seed=9)
        for more in ({}, {"samples": 4}, {"uncertainty": True}):
            found = learner.predict(x, task=task, **more)
            assert found.labels.tolist() == labels
            np.testing.assert_allclose(found.probs.sum(1), 1.0, rtol=1e-5)
            assert (found.label == y).mean() > 0.9
    assert learner.predict(rows([0])[0]).labels.tolist() == [0, 1, 2, 3, 4]


def test_a_task_moves_nothing_that_it_cannot_see() -> None:
    train = {"optimizer": "sgd", "learning_rate": 0.05}
    learner = Learner({"model": {"args": {"hidden": [16]}, "scenario": "task", "classes": 4}, "train": train})
    learner.observe(*rows([0, 1]), task="a")
    before = learner._model.network.module[-1].bias.detach().clone()
    learner.observe(*rows([0, 1], seed=1), task="a")
    moved = learner._model.network.module[-1].bias.detach() - before
    assert (moved[:2].abs() > 1e-4).all()
    assert moved[2:].abs().max() < 0.1 * moved[:2].abs().max()  # the prior alone


def test_saved_anywhere_it_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    once, again = taught(TREE), taught(TREE, tmp_path / "saved")
    np.testing.assert_array_equal(once.parameters().theta, again.parameters().theta)
    np.testing.assert_array_equal(once.parameters().precision, again.parameters().precision)


def test_a_model_is_told_its_task() -> None:
    learner = taught({"model": {"factory": "test_scenarios:headed", "scenario": "task"}})
    x, _ = rows([0, 1])
    one, two = (learner.predict(x, task=task).probs for task in ("a", "b"))
    assert not np.array_equal(one, two)
    network = learner._model.network
    with network.evaluating(), network.seeing(1, None):
        told = network.module(torch.from_numpy(x))
    np.testing.assert_allclose(told, network.module(torch.from_numpy(x), task=1).detach(), rtol=1e-4, atol=1e-5)
    assert (network.module.shifts.detach().abs().sum(1) > 0).all()  # each task has moved its own
    with pytest.raises(Refused, match="expected the task that the rows are of, one of 'a', 'b', 'c'"):
        learner.predict(x)


def test_who_may_ask_for_a_task() -> None:
    learner = taught({"model": {"args": {"hidden": [16]}}})
    with pytest.raises(Refused, match=r"predict.task: expected model.scenario = 'task'.*it is 'class'"):
        learner.predict(rows([0])[0], task="a")
    with pytest.raises(Refused, match="expected a task that has come, one of 'a', 'b', 'c', got 'd'"):
        taught(TREE).predict(rows([0])[0], task="d")


def test_a_model_that_takes_a_task_needs_the_scenario() -> None:
    with pytest.raises((ModelRefused, Refused), match=r"set model\.scenario to task"):
        Learner({"model": {"factory": "test_scenarios:headed"}}).observe(*rows([0, 1]), task="a")
    model = {"scenario": "task", "likelihood": "gaussian"}
    with pytest.raises((ModelRefused, Refused), match=r"expected a forward\(x, task\)"):
        Learner({"model": model}).observe(rows([0])[0], np.zeros(60), task="a")


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ({"learner": "exact", "scenario": "task"}, "no effect with model.learner exact"),
        ({"likelihood": "gaussian", "scenario": "domain"}, "expected categorical"),
    ],
)
def test_a_scenario_that_would_say_nothing_is_an_error(model: dict[str, Any], text: str) -> None:
    assert text in str(Gathered({"model": model}).problems()[0])


def test_where_tasks_share_their_labels_no_output_is_spare() -> None:
    learner = Learner({"model": {"args": {"hidden": [16]}, "scenario": "domain"}})
    learner.observe(*rows([0, 1]), task="a")
    learner.observe(*rows([0, 1, 2, 3]), task="a")
    learner.boundary("a")
    assert [outputs for _, outputs in learner._learner.recipe.widths] == [2, 4]


def test_what_cannot_be_seen_has_no_probability_and_no_curvature() -> None:
    logits = torch.randn(7, 5, dtype=torch.float64)
    some = Categorical(5, visible=(1, 3, 4))
    alone = Categorical(3).predict(logits[:, [1, 3, 4]])["probs"]
    assert torch.equal(some.predict(logits)["probs"][:, [1, 3, 4]], alone)
    assert not some.predict(logits)["probs"][:, [0, 2]].any()
    for bounded in (False, True):
        vectors = Categorical(5, bounded, (1, 3, 4)).cotangents(logits, "exact", None, None)
        own = Categorical(3, bounded).cotangents(logits[:, [1, 3, 4]], "exact", None, None)
        squares, expected = (torch.einsum("kni,knj->nij", v, v) for v in (vectors, own))
        np.testing.assert_allclose(squares[:, [1, 3, 4]][:, :, [1, 3, 4]], expected, atol=1e-12)
        assert not squares[:, [0, 2]].any()


def test_through_a_daemon_and_its_restart(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    sets = tmp_path / "sets"
    sets.mkdir()
    for task, labels in STREAM.items():
        x, y = rows(labels, seed=9)
        np.savez(sets / f"{task}.npz", x=x, y=y)
    daemon = start({**TREE, "evaluation": {"directory": str(sets)}})
    with daemon.producer() as producer:
        for task, labels in STREAM.items():
            producer.send(*rows(labels), task)
            producer.boundary(task)
    for restart in (False, True):
        if restart:
            daemon.kill_all()
            daemon.start()
        with daemon.reader() as reader:
            for task, labels in STREAM.items():
                x, y = rows(labels, seed=9)
                found = reader.predict(x, task=task)
                assert found.labels is not None
                assert found.labels.tolist() == labels
                assert (found.label == y).mean() > 0.9
            with pytest.raises(Refused, match="unknown_task"):
                reader.predict(x, task="never")


@pytest.mark.campaign
def test_the_benchmark_has_a_row_for_each_setting(tmp_path: Path) -> None:
    said: list[str] = []
    figures = run([0], "class, asked with the task", tmp_path / "figures.json", said.append)
    assert [result["setting"] for result in figures["results"]] == ["class, asked with the task"]
    assert 0.95 < figures["results"][0]["accuracies"][0] <= 1
    assert "class, asked with the task" in SETTINGS
