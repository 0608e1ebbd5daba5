"""Labels that come at any time: what a network was stays to the bit as it grows, in process, through files and crashes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamcl import Learner, schema
from streamcl.bench.local import LocalDaemon
from streamcl.core.basis import Basis, Matrix, Side
from streamcl.core.gaussian import Gaussian
from streamcl.core.growth import Growth
from streamcl.core.layout import Layout
from streamcl.core.precision import Block, Diagonal, Full, Layered
from streamcl.errors import ConfigError, ModelRefused, Refused
from streamcl.learning import growing
from streamcl.schema import LabelMap
from streamcl.storage.doctor import examine
from streamcl.storage.state import StateDirectory

CENTRES = np.random.default_rng(5).normal(size=(40, 6)) * 4
SMALL: dict[str, Any] = {"model": {"args": {"hidden": [12]}}, "train": {"epochs": 2}}
WAYS: dict[str, dict[str, Any]] = {
    "auto": {},
    "blocks": {"model": {"args": {"hidden": [4]}}},
    "diagonal": {"posterior": {"curvature": "diagonal"}},
    "kronecker": {"posterior": {"curvature": "kronecker"}},
    "full": {"model": {"args": {"hidden": [4]}}, "posterior": {"curvature": "full", "mode": "factors"}},
    "factors": {"posterior": {"mode": "factors"}},
    "online": {"posterior": {"mode": "online"}},
    "note": {"posterior": {"mode": "factors", "curvature": "diagonal", "expectation": "mode"}},
    "init": {"posterior": {"prior_mean": "init"}},
    "sgd": {"train": {"optimizer": "sgd", "learning_rate": 0.05}},
    "rate": {"train": {"learning_rate": 1e-3}},
    "linear": {"model": {"factory": "streamcl.models:linear", "args": {}}},
}


def settings(way: str) -> dict[str, Any]:
    mine = WAYS[way]
    return {section: {**SMALL.get(section, {}), **mine.get(section, {})} for section in {*SMALL, *mine}}


def rows(labels: list[int], n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([seed, *map(abs, labels)])
    y = np.resize(np.array(labels), n)
    return (CENTRES[y] + rng.normal(size=(n, 6))).astype("<f4"), y


def teach(learner: Learner, tasks: dict[str, list[int]]) -> None:
    for name, labels in tasks.items():
        for part in range(2):
            learner.observe(*rows(labels, seed=part), task=name)
        learner.boundary(name)


def logits(learner: Learner, x: np.ndarray) -> Tensor:
    network = learner._model.network
    with network.evaluating():
        found: Tensor = network.module(network.conversion.x(x))
    return found


@pytest.fixture(autouse=True)
def few_make_it_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    """In process, a network has no ten outputs to begin with; a daemon's has, and is sent more labels."""
    monkeypatch.setattr(growing, "COLUMNS", 0)


# -- in process ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_what_there_was_stays_to_the_bit(way: str) -> None:
    learner = Learner(settings(way))
    teach(learner, {"a": [0, 1]})
    x, y = rows([0, 1, 2])
    learner.observe(x, y, task="b")  # growth comes while a task is open, and its optimiser has moments
    inner = learner._learner
    before, plain = inner._model, inner._model.network.parameters.layout
    theta, total = before.network.master(), before.posterior.total
    sizes = (1, 2, 3, 7, 16, 33, 60)
    said = [logits(learner, x[:n]) for n in sizes]
    inner.labels.add(range(10, 17))
    inner._grow(inner.next_lsn)
    after = inner._model
    growth = Growth(plain, after.network.parameters.layout)
    assert (before.network.outputs, after.network.outputs) == (10, 18)
    assert torch.equal(after.network.master()[growth.places()], theta)
    for n, expected in zip(sizes, said, strict=True):
        assert torch.equal(logits(learner, x[:n])[:, :10], expected)
    grown, new = after.posterior.total, torch.ones(after.network.parameters.size, dtype=torch.bool)
    new[growth.places()] = False
    held = grown.precision.diagonal()
    np.testing.assert_allclose(held[growth.places()], total.precision.diagonal(), rtol=1e-12)
    np.testing.assert_allclose(held[new], 1.0, rtol=1e-12)
    assert torch.equal(grown.shift[growth.places()], total.shift)
    assert torch.equal(grown.shift[new], after.posterior.prior.shift[new])
    moved = torch.randn(len(theta), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wide = torch.zeros(len(new), dtype=torch.float64)
    wide[growth.places()] = moved
    product = grown.precision.times(wide)
    np.testing.assert_allclose(product[growth.places()], total.precision.times(moved), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(product[new], 0.0, atol=1e-12)


@pytest.mark.parametrize(
    "way", [way if way in ("auto", "diagonal") else pytest.param(way, marks=pytest.mark.campaign) for way in WAYS]
)
def test_saved_anywhere_it_goes_on_to_the_same_bits(way: str, tmp_path: Path) -> None:
    def taught(saves: bool) -> Learner:
        learner = Learner(settings(way))
        for number, labels in enumerate(([0, 1], [2, 3], [4, 5, 6, 7], [8, 9, 10, 11])):
            for part in range(3):
                learner.observe(*rows(labels[: 1 + part], n=24, seed=part), task=f"t{number}")
                if saves and part == number % 3:
                    learner.save(tmp_path / "saved")
                    learner = Learner.load(tmp_path / "saved")
            learner.boundary(f"t{number}")
        return learner

    once, again = taught(False), taught(True)
    assert len(once._learner.recipe.widths) > 1
    for one, two in zip(*((p.theta, p.precision, p.shift) for p in (once.parameters(), again.parameters())), strict=True):
        np.testing.assert_array_equal(one, two)
    x, _ = rows(list(range(12)))
    np.testing.assert_array_equal(once.predict(x).probs, again.predict(x).probs)


@pytest.mark.parametrize("curvature", ["kronecker", "auto"])
def test_the_moments_of_the_optimiser_are_kept(curvature: str) -> None:
    learner = Learner({**settings("rate"), "posterior": {"curvature": curvature}})
    teach(learner, {"a": [0, 1]})
    learner.observe(*rows([0, 1, 2]), task="b")
    inner = learner._learner
    before = inner._model.fitting.optimisation
    inner.labels.add(range(10, 17))
    inner._grow(inner.next_lsn)
    after = inner._model.fitting.optimisation
    held, now = before.optimiser.state(), after.optimiser.state()
    growth = inner._model.network.widening.growth(before.network.parameters.size)
    old, new = before.coordinates.basis, after.coordinates.basis
    assert float(now["step"]) == float(held["step"]) > 0
    for name in ("exp_avg", "exp_avg_sq"):
        if curvature == "kronecker":
            assert torch.equal(now[name], growth.coordinates(old, held[name], new, torch.zeros(new.size)))
            assert float(now[name].abs().sum()) == pytest.approx(float(held[name].abs().sum()), rel=1e-5)
    mean = growth.vector(old.back(held["exp_avg"]), torch.zeros(new.size))  # the axes of full blocks have moved
    np.testing.assert_allclose(new.back(now["exp_avg"]), mean, atol=1e-5 * float(mean.abs().max()))
    assert float(now["exp_avg_sq"].sum()) == pytest.approx(float(held["exp_avg_sq"].sum()), rel=1e-4)


def test_new_outputs_are_drawn_from_the_seed_and_the_position() -> None:
    def new(seed: int, lsn: int) -> Tensor:
        learner = Learner({**SMALL, "train": {"epochs": 1, "seed": seed}})
        teach(learner, {"a": [0, 1]})
        inner = learner._learner
        inner.labels.add(range(10, 17))
        inner._grow(lsn)
        return inner._model.network.module[-1].weight.detach()[10:].clone()

    assert torch.equal(new(0, 7), new(0, 7))
    assert not torch.equal(new(0, 7), new(0, 8))
    assert not torch.equal(new(0, 7), new(1, 7))


@pytest.mark.parametrize(
    "curvature", ["auto", *(pytest.param(kind, marks=pytest.mark.campaign) for kind in ("diagonal", "kronecker", "full"))]
)
def test_factors_of_fewer_outputs_say_nothing_of_new_ones(curvature: str) -> None:
    hidden = [4 if curvature == "full" else 12]
    learner = Learner(
        {**SMALL, "model": {"args": {"hidden": hidden}}, "posterior": {"mode": "factors", "curvature": curvature}}
    )
    tasks = {"a": [0, 1], "b": list(range(2, 9)), "c": list(range(9, 16))}
    teach(learner, tasks)
    assert len(learner._learner.recipe.widths) == 3
    first = learner._model.posterior
    whole = first.prior.beside(first.total).product(first._factors(without=None))
    np.testing.assert_allclose(whole.precision.diagonal(), first.total.precision.diagonal(), rtol=1e-8)
    learner.revisit("a")
    learner.observe(*rows([0, 1], seed=7), task="a")
    learner.boundary("a")
    found = learner._model.posterior
    again = found.prior.beside(found.total).product(found._factors(without=None))
    np.testing.assert_allclose(again.precision.diagonal(), found.total.precision.diagonal(), rtol=1e-8)
    assert all(np.isfinite(task["penalty"]) for task in learner.tasks())
    for task in tasks:
        learner.forget(task)
    left = learner.parameters()
    np.testing.assert_allclose(left.precision, 1.0, rtol=1e-9)
    np.testing.assert_allclose(left.shift, 0.0, atol=1e-7)


def test_labels_that_come_in_a_revisit_stay_when_it_is_abandoned() -> None:
    learner = Learner({**SMALL, "posterior": {"mode": "factors"}})
    teach(learner, {"a": [0, 1]})
    x, _ = rows([0, 1])
    before = logits(learner, x)
    learner.revisit("a")
    learner.observe(*rows(list(range(9))), task="a")
    learner.abandon()
    assert learner._model.network.outputs > before.shape[1]
    assert torch.equal(logits(learner, x)[:, : before.shape[1]], before)


def test_predictions_have_the_labels_that_have_come_in_their_order() -> None:
    learner = Learner(SMALL)
    teach(learner, {"a": [7, 3]})
    found = learner.predict(rows([3, 7])[0])
    assert found.labels.tolist() == [-1, -1, -1, 3, -1, -1, -1, 7, -1, -1]  # as if model.classes were 10
    assert not found.probs[:, found.labels < 0].any()
    np.testing.assert_allclose(found.probs.sum(1), 1.0, rtol=1e-6)
    assert (found.label == rows([3, 7])[1]).all()
    for more in ({"samples": 8}, {"uncertainty": True}):
        spread = learner.predict(rows([3, 7])[0], **more)
        assert spread.probs.shape == (60, 10)
        np.testing.assert_allclose(spread.probs.sum(1), 1.0, rtol=1e-6)
    learner.observe(*rows([-4, 5]), task="b")
    assert learner.predict(rows([3])[0]).labels.tolist() == [-4, 3, 5, 7]


def test_with_classes_set_a_label_more_is_refused_as_before() -> None:
    learner = Learner({"model": {"args": {"hidden": [12]}, "classes": 2}})
    teach(learner, {"a": [0, 1]})
    with pytest.raises(Refused, match=r"set model\.classes"):
        learner.observe(*rows([2]), task="b")


# -- modules of one's own ------------------------------------------------------------------------------------------------


class Convolved(nn.Module):
    """Its outputs are channels: nothing that is recognised as a last layer."""

    def __init__(self, outputs: int = 3) -> None:
        super().__init__()
        self.last = nn.Conv1d(1, outputs, 6)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(x.unsqueeze(1)).squeeze(2)
        return found


class Growing(Convolved):
    def grow(self, classes: int) -> None:
        wider = nn.Conv1d(1, classes, 6)
        with torch.no_grad():
            wider.weight[: self.last.out_channels], wider.bias[: self.last.out_channels] = self.last.weight, self.last.bias
        self.last = wider


class Matrixed(nn.Module):
    """A matrix of its own, with the outputs along its second axis."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, outputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrix


class Interleaved(nn.Module):
    """Two numbers an output: the rows of what it had are not the first ones of what it has."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.last = nn.Linear(6, 2 * outputs)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(x)
        return found[:, : found.shape[1] // 2] + found[:, found.shape[1] // 2 :]


def interleaved(outputs: int) -> nn.Module:
    return Interleaved(outputs)


def matrixed(outputs: int) -> nn.Module:
    return Matrixed(outputs)


def named(classes: int) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, classes))


def test_a_module_keeps_its_own_outputs_and_grows_beyond_them() -> None:
    learner = Learner({"train": {"epochs": 2}}, module=nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)))
    teach(learner, {"a": [0, 1]})
    assert learner._model.network.outputs == 3
    teach(learner, {"b": [2, 3]})
    assert learner._model.network.outputs == 12
    assert learner.predict(rows([0])[0]).labels.tolist() == [0, 1, 2, 3, *[-1] * 6]


@pytest.mark.parametrize("factory", ["test_growth:matrixed", "test_growth:named"])
def test_a_factory_that_is_told_the_number_grows(factory: str) -> None:
    learner = Learner({"model": {"factory": factory}})
    teach(learner, {"a": [0, 1], "b": list(range(2, 9)), "c": list(range(9, 20))})
    assert [outputs for _, outputs in learner._learner.recipe.widths] == [10, 17, 28]
    x, y = rows(list(range(9, 20)))
    assert (learner.predict(x).label == y).mean() > (0.5 if factory.endswith("named") else 0.0)


def test_a_module_may_grow_by_itself() -> None:
    learner = Learner({"train": {"epochs": 2}}, module=Growing())
    teach(learner, {"a": [0, 1], "b": list(range(2, 9))})
    assert learner.module.last.out_channels == learner._model.network.outputs > 9


@pytest.mark.parametrize("given", [{"module": Convolved()}, {"config": {"model": {"factory": "test_growth:interleaved"}}}])
def test_a_model_that_cannot_grow_is_refused_with_what_to_do(given: dict[str, Any]) -> None:
    with pytest.raises((ModelRefused, Refused), match=r"last layer|another output.*grow\(classes\).*set model.classes"):
        Learner(**given).observe(*rows([0, 1]), task="a")
    config = {"model": {**given.get("config", {}).get("model", {}), "classes": 3}}
    Learner(config, module=given.get("module")).observe(*rows([0, 1]), task="a")


# -- the algebra -----------------------------------------------------------------------------------------------------------


def layouts() -> tuple[Layout, Layout]:
    before = Layout.of([("b", (3,)), ("w", (4, 3)), ("c", (4,)), ("free", (2,)), ("v", (5, 2))])
    return before, Layout.of([("b", (3,)), ("w", (6, 3)), ("c", (6,)), ("free", (2,)), ("v", (5, 4))])


def layered(layout: Layout, stacked: bool) -> Layered:
    parts = {part.name: part for part in layout.parts}
    head = [parts["w"], parts["c"]]
    own = Matrix.stack(head) if stacked else Matrix.of(*head)
    generator = torch.Generator().manual_seed(3)

    def side(n: int) -> Side:
        root = torch.randn(n, n, dtype=torch.float64, generator=generator)
        return Side.of(root @ root.T)

    sides = (None, None) if stacked else (side(4), side(4))
    basis = Basis(layout.size, (own, Matrix.of(parts["v"])), (sides, (side(5), side(2))))
    values = torch.rand(layout.size, dtype=torch.float64, generator=generator)
    if not stacked:
        return Layered(basis, values)
    values[: own.size] = 0
    root = torch.randn(own.size, own.size, dtype=torch.float64, generator=generator)
    return Layered(basis, values, (Block(own, root @ root.T),))


def dense(precision: Any, size: int) -> Tensor:
    return torch.stack([precision.times(unit) for unit in torch.eye(size, dtype=torch.float64)])


@pytest.mark.parametrize("kind", ["diagonal", "full", "layered", "stacked"])
def test_a_precision_grows_by_rows_and_columns_of_the_prior(kind: str) -> None:
    before, after = layouts()
    growth = Growth(before, after)
    generator = torch.Generator().manual_seed(2)
    root = torch.randn(before.size, before.size, dtype=torch.float64, generator=generator)
    old: Any = {
        "diagonal": lambda: Diagonal(torch.rand(before.size, dtype=torch.float64, generator=generator)),
        "full": lambda: Full(root @ root.T),
        "layered": lambda: layered(before, False),
        "stacked": lambda: layered(before, True),
    }[kind]()
    expected = torch.diag(torch.full((after.size,), 0.5, dtype=torch.float64))
    places = growth.places()
    expected[places.unsqueeze(1), places] = dense(old, before.size)
    np.testing.assert_allclose(dense(growth.precision(old, 0.5), after.size), expected, atol=1e-12)
    factor = growth.gaussian(Gaussian(old, torch.ones(before.size, dtype=torch.float64)), None)
    new = torch.ones(after.size, dtype=torch.bool)
    new[places] = False
    assert not factor.precision.times(new.double()).abs().max() > 1e-12
    assert not factor.shift[new].any()


def test_a_block_that_has_grown_too_large_becomes_a_diagonal_of_the_same_trace() -> None:
    before, after = Layout.of([("w", (2, 30)), ("c", (2,))]), Layout.of([("w", (80, 30)), ("c", (80,))])
    matrix = Matrix.stack(before.parts)
    generator = torch.Generator().manual_seed(2)
    left, right = (torch.randn(n, n, dtype=torch.float64, generator=generator) for n in (2, 31))
    product = torch.kron(left @ left.T, right @ right.T)  # over [w c], row by row
    order = Matrix.of(*before.parts).joined([torch.arange(60), torch.arange(60, 62)]).reshape(-1)
    values = torch.zeros_like(product)
    values[order.unsqueeze(1), order] = product
    old = Layered(Basis.unturned(62, [matrix]), torch.zeros(62, dtype=torch.float64), (Block(matrix, values),))
    growth = Growth(before, after)
    grown = growth.precision(old, 0.0)
    assert not grown.blocks
    places = growth.places()
    found = dense(grown, after.size)[places.unsqueeze(1), places]
    np.testing.assert_allclose(found, values, atol=1e-9 * float(values.abs().max()))  # a Kronecker product is kept whole


@pytest.mark.campaign
def test_a_block_that_has_grown_too_large_is_told_at_the_boundary() -> None:
    learner = Learner({"model": {"args": {"hidden": [20]}}, "train": {"epochs": 1}, "posterior": {"expectation": "mode"}})
    teach(learner, {"a": [0, 1]})
    assert "too large for a full block" not in str(learner._learner.warning)
    x, y = np.random.default_rng(0).normal(size=(120, 6)).astype("<f4"), np.arange(120)
    learner.observe(x, y, task="b")
    with pytest.warns(RuntimeWarning, match=r"3\.weight grew too large for a full block"):
        learner.boundary("b")


@pytest.mark.parametrize(
    ("columns", "rows_", "more", "k"), [(1290, 2, 8, 1), pytest.param(3, 300, 60, 0, marks=pytest.mark.campaign)]
)
def test_a_side_that_becomes_wide_or_no_longer_is_goes_on(columns: int, rows_: int, more: int, k: int) -> None:
    settled = {"fisher": "mc", "expectation": "mode", "curvature": "kronecker"}
    learner = Learner({"model": {"factory": "streamcl.models:linear"}, "train": {"epochs": 1}, "posterior": settled})
    width, wide = columns - 1, []
    rng = np.random.default_rng(0)
    for name, labels in (("a", np.arange(rows_)), ("b", np.arange(rows_, rows_ + more))):
        y = np.resize(labels, max(len(labels), 32))
        learner.observe(rng.normal(size=(len(y), width)).astype("<f4"), y, task=name)
        learner.boundary(name)
        wide.append(learner._model.posterior.total.basis.sides[0][k].is_wide)
    assert wide == [k == 1, k == 0]
    assert np.isfinite(learner.parameters().precision).all()


# -- through the daemon ----------------------------------------------------------------------------------------------------

TREE: dict[str, Any] = {"model": {"args": {"hidden": [12]}}, "train": {"epochs": 2}, "posterior": {"mode": "factors"}}
STREAM = [[0, 1], [2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14, 15]]


def send(daemon: LocalDaemon, tasks: range, between: Callable[[int], None] = lambda number: None) -> None:
    number = 0
    with daemon.producer(timeout=120) as producer:
        for task in tasks:
            for part in range(2):
                producer.send(*rows(STREAM[task], seed=part), f"task-{task}")
                between(number := number + 1)
            producer.boundary(f"task-{task}")
            between(number := number + 1)


def predicted(daemon: LocalDaemon) -> tuple[list[int], np.ndarray]:
    with daemon.reader() as reader:
        found = reader.predict(rows(list(range(16)))[0])
    assert found.labels is not None
    return found.labels.tolist(), found.probs


def test_grown_through_a_daemon_it_is_the_same_after_a_restart(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    send(daemon, range(1))
    assert predicted(daemon)[0] == [0, 1, *[-1] * 8]
    for tasks, known in ((range(1, 3), 10), (range(3, 4), 16)):
        send(daemon, tasks)
        before, (labels, probs) = parameters(daemon), predicted(daemon)
        assert labels == list(range(known))
        daemon.kill_all()
        found = {each.file: each for each in examine(StateDirectory(daemon.state_dir))}
        assert (found["factors"].state, "add up" in found["factors"].what) == ("sound", True)
        daemon.start()
        for one, two in zip(before, parameters(daemon), strict=True):
            np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(predicted(daemon)[1], probs)
    with daemon.admin() as admin:
        admin.rollback("task-1")
        assert predicted(daemon)[0] == list(range(16))  # labels stay; what was learned of them does not


def parameters(daemon: LocalDaemon) -> list[np.ndarray]:
    with daemon.admin() as admin:
        got = admin.parameters()
    return [got.theta, got.precision, got.shift]


@pytest.mark.campaign
@pytest.mark.parametrize("moments", [(4, 7), (5, 8, 10), (1, 11)])
def test_killed_while_it_grows_it_ends_with_the_same_bits(
    start: Callable[..., LocalDaemon], moments: tuple[int, ...]
) -> None:
    whole, broken = start(TREE, "whole"), start(TREE, "broken")
    send(whole, range(4))

    def between(number: int) -> None:
        if number in moments:
            broken.kill()
            broken.start()

    send(broken, range(4), between)
    for one, two in zip(parameters(whole), parameters(broken), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_directory_of_before_keeps_its_number_of_classes(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**TREE, "model": {**TREE["model"], "classes": 4}})
    send(daemon, range(1))
    before = parameters(daemon)
    daemon.stop()
    daemon.tree = {**daemon.tree, "model": TREE["model"]}
    daemon.start()
    for one, two in zip(before, parameters(daemon), strict=True):
        np.testing.assert_array_equal(one, two)
    with daemon.producer() as producer, pytest.raises(Refused, match="4 outputs, 2 of them taken"):
        producer.send(*rows([5, 6, 7]), "more")
        producer.flush()


def test_a_bounded_number_cannot_be_set_behind_a_network_that_grew(tmp_path: Path) -> None:
    learner = Learner(SMALL)
    teach(learner, {"a": [0, 1]})
    learner.save(tmp_path / "saved")
    fresh = Learner({**SMALL, "model": {**SMALL["model"], "classes": 10}})
    meta, tensors = learner._replay.snapshot(1)
    with pytest.raises(ConfigError, match=r"model\.classes was 'auto', is 10"):
        fresh._learner.restore(meta, tensors, learner._learner.standing)


def test_labels_of_a_log_of_before_keep_their_outputs() -> None:
    labels = LabelMap(None)
    labels.take((3, 7), (3, 7))  # as a network of ten outputs had them
    assert (labels.known, labels.order(), labels.labels().tolist()) == (8, [3, 7], [-1, -1, -1, 3, -1, -1, -1, 7])
    assert labels.places((1, 2)) == (8, 9)
    assert growing.width(labels.known) > 9


def test_spare_outputs_are_at_hand_for_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "COLUMNS", schema.COLUMNS)
    widths = ((0, growing.width(2)),)
    assert growing.width(2) == 10  # what version 1 has where nothing is said
    assert growing.due(widths, 10, learned=False) is None
    assert growing.due(widths, 11, learned=False) == 19
    assert growing.due(widths, 6) is None
    assert growing.due(widths, 7) == 15  # others may follow, of which the rows of today should have spoken
    assert growing.width(800) == 900
    assert growing.due((), 7) is None


class _Limited(nn.Module):
    """Of as many outputs as there is memory for."""

    most = 100

    def __init__(self, outputs: int) -> None:
        super().__init__()
        if outputs > self.most:
            raise MemoryError(f"no memory for {outputs} outputs")
        self.last = nn.Linear(4, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(x)


def limited(input_shape: Any, outputs: int) -> nn.Module:
    return _Limited(outputs)


def test_labels_that_the_model_cannot_grow_for_are_learned_once_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner({"model": {"factory": "test_growth:limited"}})
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 4)).astype("<f4")
    learner.observe(x, np.arange(40) % 3, task="a")
    learner.boundary("a")
    monkeypatch.setattr(_Limited, "most", len(learner.module.last.weight))
    with pytest.warns(RuntimeWarning), pytest.raises(Refused, match=r"no memory for .* cannot be passed over") as refused:
        learner.observe(x, np.arange(40), task="b")
    assert refused.value.code == "unlearnable"
    assert learner.predict(x).labels.max() == 2
    monkeypatch.setattr(_Limited, "most", 100)
    learner.observe(x, np.arange(40), task="b")
    assert learner.boundary("b")["samples"] == 40
    assert learner.predict(x).labels.max() == 39
