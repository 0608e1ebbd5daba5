"""While data arrive: the stream chooses the rate, real targets bring units and noise, and restarts change nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from streamcl import Learner
from streamcl.binding import adopted, fingerprint
from streamcl.config import Config, from_tree
from streamcl.learning.ladder import BEHIND, CALM, FIRST, RATES, ROWS, Ladder
from streamcl.learning.targets import Targets
from streamcl.storage.exported import description

Array = npt.NDArray[Any]
HIDDEN = {"args": {"hidden": [16]}}


def labelled(rows: int = 600, seed: int = 0) -> tuple[Array, Array]:
    """Rows of three classes, which a small network learns."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 4)).astype("<f4")
    return x, (np.abs(x[:, 0] + x[:, 1]) // 0.8).clip(max=2).astype("<i8")


def numbered(rows: int, noise: float, seed: int = 0) -> tuple[Array, Array]:
    """Rows whose targets lie around 1000, with Gaussian noise of this standard deviation."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype("<f4")
    return x, (1000 + 10 * x[:, 0] + noise * rng.normal(size=rows)).astype("<f4")


def learner(**sections: Any) -> Learner:
    sections["model"] = {**HIDDEN, **sections.get("model", {})}
    sections["train"] = {"device": "cpu", **sections.get("train", {})}
    return Learner(sections)


def feed(model: Learner, x: Array, y: Array, task: str = "a", rows: int = 50) -> None:
    for start in range(0, len(x), rows):
        model.observe(x[start : start + rows], y[start : start + rows], task)


# -- the rate ----------------------------------------------------------------------------------------------------------


def test_the_stream_chooses_only_where_neither_rate_nor_batch_size_is_set() -> None:
    assert Config().learns_rate
    for train in ({"learning_rate": 3e-3}, {"batch_size": 64}, {"optimizer": "sgd"}):
        assert not from_tree({"train": train}).learns_rate
    assert not from_tree({"posterior": {"curvature": "diagonal", "expectation": "mode"}}).learns_rate


def test_a_rate_and_a_batch_size_that_are_set_are_plain_adam() -> None:
    x, y = labelled(200)
    model = learner(model={"classes": 3}, train={"learning_rate": 0.01, "batch_size": 20, "dtype": "float64"})
    model.observe(x[:20], y[:20])
    twin = learner(model={"classes": 3}, train={"learning_rate": 1e-300, "batch_size": 20, "dtype": "float64"})
    twin.observe(x[:20], y[:20])  # as it was made, but for what a rate of nothing does
    theta = torch.tensor(twin.parameters().theta, requires_grad=True)
    adam = torch.optim.Adam([theta], lr=0.01)
    order = {label: place for place, label in enumerate(model._learner.labels.labels().tolist())}
    shapes = [tuple(shape) for shape in twin.parameters().shapes]
    for begin in range(0, 200, 20):
        rows = slice(begin, begin + 20)
        parts = torch.split(theta, [int(np.prod(shape)) for shape in shapes])
        weight, bias, out, last = (part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
        logits = torch.relu(torch.tensor(x[rows], dtype=torch.float64) @ weight.T + bias) @ out.T + last
        labels = torch.tensor([order[label] for label in y[rows].tolist()])
        loss = torch.nn.functional.cross_entropy(logits, labels) + theta.square().sum() / (2 * (begin + 20))
        adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        adam.step()
    feed(model, x[20:], y[20:], "default", 20)
    np.testing.assert_allclose(model.parameters().theta, theta.detach().numpy(), rtol=1e-9, atol=1e-12)


def test_the_defaults_follow_a_stream_that_one_step_a_batch_does_not() -> None:
    pytest.importorskip("river")
    from streamcl.bench.rates import score, streams

    data = streams()["RandomRBFDrift"](0, 1000)
    chosen, plain = (score(data, 0, [64], train, 0) for train in ({}, {"learning_rate": 1e-3, "batch_size": 64}))
    assert chosen > 0.7 > 0.5 > plain


@pytest.mark.parametrize("real", [pytest.param(False, marks=pytest.mark.campaign), True])
def test_restarts_change_no_bit(real: bool, tmp_path: Path) -> None:
    x, y = numbered(420, 1.0) if real else labelled(420)
    model = {"likelihood": "gaussian"} if real else {"classes": 3}
    one, other = (learner(model=model, posterior={"mode": "factors"}) for _ in range(2))

    def stopped() -> Learner:
        other.save(tmp_path / "state")
        return Learner.load(tmp_path / "state")

    for place, start in enumerate(range(0, 420, 30)):
        task, ends = f"task {place // 7}", place % 7 == 6
        for each in (one, other):
            each.observe(x[start : start + 30], y[start : start + 30], task, boundary=ends)
        other = stopped()
    one.revisit("task 0")
    other.revisit("task 0")
    feed(one, x[:200], y[:200], "task 0")
    feed(other, x[:100], y[:100], "task 0")
    other = stopped()
    feed(other, x[100:200], y[100:200], "task 0")
    np.testing.assert_array_equal(one._learner.model.network.theta(), other._learner.model.network.theta())  # type: ignore[union-attr]
    one.boundary("task 0")
    other.boundary("task 0")
    np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)
    np.testing.assert_array_equal(one.parameters().precision, other.parameters().precision)


def climbing(losses: dict[float, float]) -> tuple[Ladder, torch.Tensor, list[float]]:
    """A ladder whose copies have a loss by their rate, and the rates of the steps as they come."""
    values, grad = torch.zeros(2), torch.ones(2)
    ladder = Ladder(values, grad, lambda: None, turned=False)
    rates: list[float] = []

    def step(x: torch.Tensor, y: torch.Tensor, at: int) -> tuple[torch.Tensor, torch.Tensor]:
        if ladder.optimiser is not ladder.copies[CALM].optimiser:
            rates.append(ladder.optimiser.rate)
        ladder.optimiser.step()
        return torch.full((len(x),), losses[ladder.optimiser.rate]), y

    rows = torch.zeros(4 * ROWS, 1)
    for _ in ladder.take(rows, rows, 0, step, None):
        assert ladder.optimiser is ladder.copies[ladder.leader].optimiser  # and so, what others see meanwhile
    return ladder, values, rates


def test_the_copy_that_predicts_best_is_followed_and_those_behind_begin_again_from_it() -> None:
    low, middle, high = RATES
    ladder, values, rates = climbing({low: 1.0, middle: 0.5, high: 0.1})
    assert (ladder.leader, ladder.optimiser.rate) == (2, high)
    assert {rates.count(rate) for rate in RATES} == {len(rates) / 3}
    assert torch.equal(ladder.copies[0].values, values)  # ten times the loss is more than BEHIND
    close = climbing({low: 1.0, middle: (1 + BEHIND) / 2, high: 2 * BEHIND})[0]
    assert close.leader == 0
    assert not torch.equal(close.copies[1].values, close.copies[2].values)


def test_a_copy_that_diverges_is_not_followed() -> None:
    low, middle, high = RATES
    ladder, values, _ = climbing({low: 1.0, middle: float("nan"), high: float("inf")})
    assert (ladder.leader, FIRST) == (0, 1)
    assert all(torch.equal(copy.values, values) and copy.loss < 2 for copy in ladder.copies[1:CALM])


def test_behind_earlier_tasks_a_boundary_begins_from_the_plain_pass_whatever_was_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = labelled(400)
    chosen = learner(model={"classes": 3})
    chosen.observe(x[:200], y[:200], "a", boundary=True)
    chosen.save(tmp_path / "state")
    plain = Learner.load(tmp_path / "state")
    feed(chosen, x[200:392], y[200:392], "b", 64)  # no message so small that it is filled up with earlier rows
    with monkeypatch.context() as patched:
        patched.setattr(Config, "learns_rate", False)
        feed(plain, x[200:392], y[200:392], "b", 64)
    assert np.abs(chosen.parameters().theta - plain.parameters().theta).max() > 0.01
    for model in (chosen, plain):
        model.boundary("b")
    np.testing.assert_allclose(chosen.parameters().theta, plain.parameters().theta, atol=1e-4)  # turned once more


# -- real targets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_targets_far_from_zero_are_learned(optimizer: str) -> None:
    x, y = numbered(800, 0.0)
    model = learner(model={"likelihood": "gaussian"}, train={"optimizer": optimizer})
    feed(model, x[:600], y[:600], rows=64)
    if optimizer == "adam":
        assert np.abs(model.predict(x[600:]).mean - y[600:]).mean() < 0.2 * y.std()
    model.boundary("a")
    predicted = model.predict(x[600:])
    assert np.abs(predicted.mean - y[600:]).mean() < 0.05 * y.std()
    assert (np.sqrt(predicted.variance) < 0.1 * y.std()).all()
    drawn = model.predict(x[600:], samples=10)
    assert np.abs(drawn.mean - y[600:]).mean() < 0.1 * y.std()


@pytest.mark.parametrize("noise", [0.5, 20.0])
def test_the_noise_is_that_of_the_targets(noise: float) -> None:
    x, y = numbered(1500, noise)
    model = Learner({"model": {"factory": "streamcl.models:linear", "likelihood": "gaussian"}, "train": {"device": "cpu"}})
    feed(model, x[:1000], y[:1000], rows=64)
    model.boundary("a")
    first = float(model.predict(x[:1]).variance[0])
    assert first == pytest.approx(noise**2, rel=0.15)
    feed(model, x[1000:], y[1000:], "b", rows=64)
    assert float(model.predict(x[:1]).variance[0]) == first  # fixed while a later task is open
    model.boundary("b")
    assert float(model.predict(x[:1]).variance[0]) == pytest.approx(noise**2, rel=0.15)


def test_effective_parameters_are_not_taken_for_a_good_fit() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(100, 40)).astype("<f4"), rng.normal(size=100).astype("<f4")
    model = Learner(
        {
            "model": {"factory": "streamcl.models:linear", "likelihood": "gaussian"},
            "train": {"device": "cpu", "optimizer": "lbfgs"},
            "posterior": {"prior_precision": 1e-3},
        }
    )
    model.observe(x, y, boundary=True)
    assert 0.8 < float(model.predict(x[:1]).variance[0]) < 1.3  # by the residuals alone, about 0.6


def test_a_noise_that_is_set_leaves_targets_as_they_are() -> None:
    x, y = numbered(100, 1.0)
    model = learner(model={"likelihood": "gaussian", "noise_variance": 0.25})
    model.observe(x, y, boundary=True)
    assert (model.predict(x).variance == 0.25).all()
    assert not any(name.startswith("targets.") for name in model._learner.served())


def test_what_an_older_directory_leaves_to_the_default_keeps_a_noise_of_one() -> None:
    made = fingerprint(from_tree({"model": {"likelihood": "gaussian", "noise_variance": 1.0}}))
    assert adopted(made, from_tree({"model": {"likelihood": "gaussian"}})).model.noise_variance == 1.0
    assert adopted(fingerprint(Config()), Config()).model.noise_variance == "auto"
    targets = Targets(2)
    targets.load({})
    assert (targets.fixed, targets.noise) == (True, 1.0)
    assert (targets.offset.tolist(), targets.scale.tolist()) == ([0, 0], [1, 1])


def test_an_export_says_how_outputs_are_read() -> None:
    x, y = numbered(300, 1.0)
    y = np.stack([y, -3 * y], 1)
    model = learner(model={"likelihood": "gaussian"})
    model.observe(x, y, boundary=True)
    network = model._learner.model.network  # type: ignore[union-attr]
    meta = {
        "layout": network.layout(),
        "signature": network.signature.plain(),
        "parameters": network.parameters.layout.plain(),
        "labels": [],
        "version": 1,
    }
    said = description(meta, model._learner.served(), model.config)
    with network.evaluating():
        output = network.module(torch.from_numpy(x)).numpy()
    offset, scale = np.array(said["target_offset"]), np.array(said["target_scale"])
    predicted = model.predict(x)
    np.testing.assert_allclose(offset + scale * output, predicted.mean, rtol=1e-5)
    np.testing.assert_allclose(said["noise_variance"] * scale**2, predicted.variance[0], rtol=1e-5)


def test_the_first_rows_are_scored_by_what_is_known_before_each() -> None:
    targets = Targets(1)
    y = torch.tensor([1000.0, 1010.0, 990.0])
    assert targets.before(y).tolist() == [0.0, 1000.0, 1005.0]
    for part in (y[:1], y[1:]):
        targets.add(part)
    assert targets.offset[0] == pytest.approx(1000)
    assert targets.scale[0] == pytest.approx(float(y.std(correction=0)))
