"""Rows that come one by one are learned beside those before them: better, to the same bits, and not in old directories."""

from __future__ import annotations

import os
import signal
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.datasets import load_iris

from streamcl import Learner, Producer
from streamcl.bench.local import LocalDaemon
from streamcl.client import Admin
from streamcl.learning import recent
from streamcl.learning.recent import MOST, MOST_BYTES, SMALL, TOGETHER, Recent, ages
from streamcl.snapshot import Vintage

TREE = {"model": {"args": {"hidden": [8]}}, "train": {"device": "cpu"}}
FEATURES = 4
OLDEST = Vintage(fills=False, sketches=False, settles=False, compares=False, pins=False)


def rows(n: int, seed: int = 0, noise: float = 1.0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (noise * rng.normal(size=(n, FEATURES)) + y[:, None]).astype("<f4"), y


def each(found: Learner, x: npt.NDArray[Any], y: npt.NDArray[Any], together: int = 1) -> Learner:
    for start in range(0, len(x), together):
        found.observe(x[start : start + together], y[start : start + together], task="a")
    return found


def unfilled(tree: dict[str, Any] = TREE) -> Learner:
    """As an older version began it."""
    found = Learner(tree)
    learner = found._learner
    learner.recipe = replace(learner.recipe, vintage=OLDEST)
    found._mark_place()
    return found


def theta(found: Learner) -> npt.NDArray[Any]:
    return np.asarray(found.parameters().theta)


# -- the rows that are kept --------------------------------------------------------------------------------------------


def kept(numbers: range) -> Recent:
    found = Recent()
    for number in numbers:
        found.add(torch.tensor([[float(number)]]), torch.tensor([number]))
    return found


def test_rows_are_found_by_how_long_ago_they_came(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recent, "MOST", 7)
    found = kept(range(20))
    x, y = found.at(np.arange(1, 8))
    assert y.tolist() == [19, 18, 17, 16, 15, 14, 13]
    assert x[:, 0].tolist() == y.tolist()
    assert found.held == 7
    again = Recent.of(found.state(), torch.device("cpu"))
    for each_of in (found, again):
        each_of.add(torch.tensor([[20.0], [21.0]]), torch.tensor([20, 21]))
        assert each_of.at(np.arange(1, 8))[1].tolist() == [21, 20, 19, 18, 17, 16, 15]
    found.add(torch.arange(100.0).reshape(-1, 1), torch.arange(100))
    assert found.at(np.arange(1, 8))[1].tolist() == [99, 98, 97, 96, 95, 94, 93]


def test_large_rows_are_fewer_or_none_and_then_nothing_is_filled() -> None:
    found = Recent()
    found.add(torch.zeros(1, MOST_BYTES // 16), torch.zeros(1))
    assert found.held == 1
    found.add(torch.zeros(9, MOST_BYTES // 16), torch.zeros(9))
    assert found.held == 3  # of a quarter of what there is room for, and their targets
    huge = Recent()
    huge.add(torch.zeros(1, MOST_BYTES // 4), torch.zeros(1))
    assert huge.held == 0
    assert huge.draws(1, 0) is None
    assert huge.state() == {}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 17, MOST])
def test_half_of_what_is_drawn_is_new(n: int) -> None:
    drawn = ages(n, (4000,), np.random.default_rng(0))
    assert (drawn.min(), drawn.max()) == (1, n)
    if n == MOST:
        assert 0.45 < float((drawn < TOGETHER).mean()) < 0.55
        assert float((drawn > MOST // 2).mean()) > 0.05


def test_only_small_messages_are_filled() -> None:
    found = kept(range(50))
    assert found.draws(SMALL, 0) is None
    drawn = found.draws(SMALL - 1, 0)
    assert drawn is not None
    assert drawn.shape == (SMALL - 1, TOGETHER)
    assert Recent().draws(1, 0) is None


# -- what is learned -----------------------------------------------------------------------------------------------------


@pytest.mark.campaign
def test_single_rows_are_learned_better_than_by_themselves() -> None:
    tree = {**TREE, "model": {"args": {"hidden": [8]}, "likelihood": "gaussian"}}
    x, test_x = rows(400)[0], rows(500, seed=1)[0]
    far = []
    for found in (Learner(tree), unfilled(tree)):
        each(found, x, np.tanh(x).sum(1))
        far.append(float(np.square(found.predict(test_x).mean - np.tanh(test_x).sum(1)).mean()))
    ours, before = far
    assert ours < 0.8 * before


def test_messages_of_many_rows_are_learned_as_before() -> None:
    x, y = rows(20 * SMALL)
    one, other = each(Learner(TREE), x, y, SMALL), each(unfilled(), x, y, SMALL)
    np.testing.assert_array_equal(theta(one), theta(other))


@pytest.mark.parametrize("set_by_hand", [{"learning_rate": 0.01}, {"batch_size": 8}, {"optimizer": "sgd"}])
def test_where_rate_or_batch_are_set_a_step_is_on_the_rows_that_came(set_by_hand: dict[str, Any]) -> None:
    tree = {**TREE, "train": {"device": "cpu", **set_by_hand}}
    x, y = rows(40)
    np.testing.assert_array_equal(theta(each(Learner(tree), x, y)), theta(each(unfilled(tree), x, y)))


@pytest.mark.parametrize("target", ["labels", "numbers", "behind a task", "growing"])
def test_what_was_saved_between_single_rows_goes_on_to_the_same_bits(target: str, tmp_path: Path) -> None:
    x, labels = rows(90)
    y = x.sum(1).astype("<f4") if target == "numbers" else labels
    if target == "growing":
        y = np.arange(90) // 8
    likelihood = "gaussian" if target == "numbers" else "categorical"
    going = Learner({**TREE, "model": {**TREE["model"], "likelihood": likelihood}})
    if target == "behind a task":
        each(going, x[:20], y[:20])
        going.rename("before")
        going.boundary("before")
    each(going, x[20:60], y[20:60])
    going.save(tmp_path / "learner")
    other = Learner.load(tmp_path / "learner")
    for found in (going, other):
        each(found, x[60:], y[60:])
    np.testing.assert_array_equal(theta(going), theta(other))


def test_a_network_that_grew_learns_beside_the_rows_from_before() -> None:
    x = rows(60)[0]
    found = each(Learner(TREE), x, np.arange(60) // 5)
    model = found._learner.model
    assert model is not None
    assert len(found._learner.recipe.widths) > 1
    assert model.fitting.recent is not None
    assert model.fitting.recent.rows == 60


def test_a_task_is_never_learned_beside_rows_of_the_one_before() -> None:
    one, other = Learner(TREE), Learner(TREE)
    for found in (one, other):
        each(found, *rows(40))
        found.boundary("a")
    found = one._learner.model
    assert found is not None
    one.observe(*rows(1, seed=5), task="b")
    assert found.fitting.recent is not None
    assert found.fitting.recent.rows == 1


def test_what_an_older_version_began_goes_on_in_its_way(tmp_path: Path) -> None:
    x, y = rows(80)
    old = each(unfilled(), x[:40], y[:40])
    meta, arrays = old._state()
    for name in ("fills", "sketches", "settles", "compares"):
        del meta["checkpoint"][name]  # as it wrote it
    loaded = Learner.__new__(Learner)._restored(meta, arrays, None)
    each(loaded, x[40:], y[40:])
    np.testing.assert_array_equal(theta(loaded), theta(each(old, x[40:], y[40:])))
    loaded.boundary("a")
    loaded.save(tmp_path / "learner")
    again = Learner.load(tmp_path / "learner")
    assert again._learner.recipe.vintage == OLDEST
    assert not np.array_equal(theta(each(Learner(TREE), x, y)), theta(each(unfilled(), x, y)))


def test_rows_that_come_class_by_class_are_learned_as_in_another_order() -> None:
    """Single steps on one class after the other leave what follows them far from all but the last."""
    x, y = load_iris(return_X_y=True)
    x = ((x - x.mean(0)) / x.std(0)).astype("<f4")
    for vintage, learned in ((Vintage(), True), (Vintage(compares=False), False)):
        one = Learner({"model": {"args": {"hidden": [32]}}, "train": {"device": "cpu"}})
        one._learner.recipe = replace(one._learner.recipe, vintage=vintage)
        one.observe(x, y, task="a")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = one.boundary("a")
        assert (found["loss"] < 0.8) == learned


def test_what_an_older_version_began_takes_every_vector_of_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamcl.learning.curvature.SKETCHED", (1, 1))
    new, old = Learner(TREE), unfilled()
    state = old._state()
    again = Learner.__new__(Learner)._restored(*state, None)
    for found in (new, old, again):
        found.observe(*rows(80), task="a")
        found.boundary("a")
    assert old._learner.recipe.vintage == again._learner.recipe.vintage == OLDEST
    np.testing.assert_array_equal(old.parameters().precision, again.parameters().precision)
    assert not np.array_equal(new.parameters().precision, old.parameters().precision)


# -- the daemon ----------------------------------------------------------------------------------------------------------


def test_the_daemon_has_the_same_bits_also_when_its_trainer_is_killed(tmp_path: Path) -> None:
    x, y = rows(120)
    with LocalDaemon(TREE, tmp_path / "state") as daemon:
        with Producer(daemon.endpoints["stream"], producer="p", gather_bytes=0) as producer:
            for start in range(len(x)):
                producer.send(x[start : start + 1], y[start : start + 1], task="a")
                if start == 40:
                    producer.flush()
                    with Admin(daemon.endpoints["admin"]) as admin:
                        admin.checkpoint()
                if start == 80:
                    os.kill(daemon.children()["trainer"], signal.SIGKILL)
            producer.boundary("a")
        with Admin(daemon.endpoints["admin"]) as admin:
            theirs = admin.parameters()
    ours = each(Learner(TREE), x, y)
    ours.boundary("a")
    np.testing.assert_array_equal(theta(ours), theirs.theta)
