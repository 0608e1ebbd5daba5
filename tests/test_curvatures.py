"""Every curvature through the learner in process: replay to the bit, revisits, withdrawals, what is kept, odd models."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamcl import Learner
from streamcl.core import basis, stored
from streamcl.errors import ModelRefused, Refused

FEATURES, CLASSES = 20, 3
CURVATURES: dict[str, dict[str, Any]] = {
    "the note's": {"curvature": "diagonal", "expectation": "mode"},
    "diagonal": {"curvature": "diagonal"},
    "default": {},
    "at the optimum": {"expectation": "mode"},
    "no blocks": {"curvature": "kronecker"},
    "full": {"curvature": "full"},
}
each_curvature = pytest.mark.parametrize("name", CURVATURES)
OTHERS = ("at the optimum", "no blocks", "full")
each_in_turn = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.campaign if name in OTHERS else ()) for name in CURVATURES]
)
MODES = ("single", "factors")
each_mode = pytest.mark.parametrize("mode", MODES)


def rows(seed: int, n: int = 45, features: int = FEATURES) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % CLASSES
    return (rng.normal(size=(n, features)) + rng.normal(size=(CLASSES, features))[y]).astype("<f4"), y


def settings(name: str, mode: str = "single", **train: Any) -> dict[str, Any]:
    """Wide enough that products of matrices take their fast ways, whose results depend on where in memory things are."""
    hidden = [12] if name == "full" else [40, 33]
    model = {"args": {"hidden": hidden}, "classes": CLASSES}
    train = {"device": "cpu", "epochs": 1, **train}
    return {"model": model, "posterior": {"mode": mode, **CURVATURES[name]}, "train": train}


def state(one: Learner) -> dict[str, np.ndarray]:
    """All that a checkpoint and factors hold."""
    arrays = dict(one._replay.snapshot(0)[1])
    return arrays | {f"factor {n} {name}": a for n, each in one._memory.factors.items() for name, a in each.items()}


def assert_same(one: Learner, other: Learner) -> None:
    left, right = state(one), state(other)
    assert left.keys() == right.keys()
    differing = [name for name in left if not np.array_equal(left[name], right[name])]
    assert not differing


# -- the same bits -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "name"),
    [
        pytest.param(
            mode, name, marks=pytest.mark.campaign if name in OTHERS or (mode, name) == ("factors", "diagonal") else ()
        )
        for mode in MODES
        for name in CURVATURES
    ],
)
def test_a_learner_that_is_saved_at_any_moment_ends_with_the_same_bits(name: str, mode: str, tmp_path: Path) -> None:
    """In mid-task under a penalty, in a revisit, behind a boundary: everything comes from arrays that lie elsewhere."""

    def run(saved: bool) -> Learner:
        one = Learner(settings(name, mode))

        def moment() -> None:
            nonlocal one
            if saved:
                one.save(tmp_path / "learner")
                one = Learner.load(tmp_path / "learner")

        for task in range(3):
            for part in range(2):
                one.observe(*rows(10 * task + part), task=f"t{task}")
                moment()
            one.boundary(f"t{task}")
            moment()
        if mode == "factors":
            one.revisit("t0")
            moment()
            one.observe(*rows(0), task="t0")
            moment()
            one.observe(*rows(1), task="t0", boundary=True)
            moment()
            one.observe(*rows(40), task="t3")
            one.forget("t1")  # another penalty in mid-task
            moment()
            one.observe(*rows(41), task="t3")
            moment()
            one.boundary("t3")
        return one

    assert_same(run(saved=True), run(saved=False))


@each_in_turn
def test_the_seed_and_the_position_decide_the_draws_and_nothing_else(name: str) -> None:
    one, same, other = (Learner(settings(name, seed=seed)) for seed in (0, 0, 1))
    for each in (one, same, other):
        torch.manual_seed(int(np.random.default_rng().integers(1000)))
        each.observe(*rows(0), task="a", boundary=True)
    assert_same(one, same)
    assert not np.array_equal(one.parameters().precision, other.parameters().precision)


# -- what is learned may be taken out again ------------------------------------------------------------------------------


@each_in_turn
def test_totals_are_the_prior_times_the_factors_whatever_happens(name: str) -> None:
    """Looked at as the doctor does; bases move with every task that is new."""
    one = Learner(settings(name, "factors"))

    def look() -> None:
        arrays = one._replay.snapshot(0)[1]
        total = {key.removeprefix("posterior."): a for key, a in arrays.items() if key.startswith("posterior.")}
        factors = list(one._memory.factors.values())
        assert stored.remainder(total, factors) < 1e-9
        shifts = sum(factor["shift"] for factor in factors)
        np.testing.assert_allclose(total["shift"], shifts, rtol=1e-9, atol=1e-9 * np.abs(shifts).max())

    for task in range(3):
        one.observe(*rows(task), task=f"t{task}", boundary=True)
        look()
    one.revisit("t1")
    one.observe(*rows(1), task="t1", boundary=True)
    look()
    one.revisit("t2", damping=0.5)
    one.observe(*rows(2), task="t2", boundary=True)
    look()
    one.forget("t0")
    look()
    one.observe(*rows(9), task="t9", boundary=True)
    look()


@each_curvature
def test_an_abandoned_revisit_has_never_been(name: str) -> None:
    one = Learner(settings(name, "factors"))
    for task in range(2):
        one.observe(*rows(task), task=f"t{task}", boundary=True)
    before = state(one)
    one.revisit("t0")
    one.observe(*rows(5), task="t0")
    one.abandon()
    after = state(one)
    assert all(np.array_equal(before[key], after[key]) for key in before)
    assert before.keys() == after.keys()


@pytest.mark.campaign
@each_curvature
def test_sizes_do_not_grow_with_the_number_of_tasks(name: str) -> None:
    one, sizes = Learner(settings(name, epochs=1)), {}
    for task in range(1, 13):
        one.observe(*rows(task, n=12), task=f"t{task}", boundary=True)
        sizes[task] = {key: array.nbytes for key, array in state(one).items()}
    assert sizes[3] == sizes[12]


@pytest.mark.parametrize("name", ["default", "no blocks", "full"])
def test_a_later_task_costs_an_earlier_one_little(name: str) -> None:
    """Another permutation of the features: what the first task's rows are worth is held, and both are learned."""
    one, order = Learner(settings(name, epochs=20, learning_rate=3e-3)), np.random.default_rng(1).permutation(FEATURES)
    x, y = rows(3, n=300)
    for task, each in {"a": x, "b": x[:, order]}.items():
        one.observe(each, y, task=task, boundary=True)
        assert float((one.predict(x).label == y).mean()) > 0.95
    assert float((one.predict(x[:, order]).label == y).mean()) > 0.9


# -- what comes late, or by itself -----------------------------------------------------------------------------------------


class Odd(nn.Module):
    """Refuses rows that begin with 9, until it is mended."""

    mended = False

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(FEATURES, 24), nn.ReLU(), nn.Linear(24, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0] == 9).any()) and not Odd.mended:
            raise ValueError("odd rows")
        return self.layers(x)


@each_mode
@pytest.mark.parametrize("name", ["the note's", "default", "no blocks"])
def test_rows_kept_are_added_to_their_task_when_retried(name: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tree = {**settings(name, mode), "model": {"classes": CLASSES}}
    one, (x, y) = Learner(tree, module=Odd()), rows(1)
    x[:, 0] = 9
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.observe(*rows(0), task="a")
        one.observe(x, y, task="a")
        one.boundary("a")
        one.observe(*rows(2), task="b", boundary=True)
        one.observe(x, y, task="c")
        with pytest.raises(Refused):
            one.boundary("c")
    before = one.parameters()
    monkeypatch.setattr(Odd, "mended", True)
    assert one.retry("c")["samples"] == 45
    assert one.retry("a")["samples"] == 90
    after = one.parameters()
    assert after.precision.sum() > before.precision.sum()
    if mode == "factors":
        total = {k.removeprefix("posterior."): a for k, a in one._replay.snapshot(0)[1].items() if "posterior." in k}
        assert stored.remainder(total, list(one._memory.factors.values())) < 1e-9
        one.forget("a")
        one.forget("c")
        assert len(one._memory.factors) == 1


@each_in_turn
@pytest.mark.parametrize("n", [1, 2])
def test_a_task_of_a_row_or_two_is_a_task(name: str, n: int) -> None:
    one = Learner(settings(name, "factors"))
    for task in range(3):
        one.observe(*rows(task, n=n), task=f"t{task}", boundary=True)
    one.revisit("t0")
    one.observe(*rows(0, n=n), task="t0", boundary=True)
    assert np.isfinite(one.parameters().theta).all()
    assert (one.parameters().precision > 0).all()


@each_in_turn
@each_mode
def test_a_task_without_weight_holds_nothing_and_moves_the_rest(name: str, mode: str) -> None:
    one = Learner(settings(name, mode))
    one.observe(*rows(0), task="a", boundary=True)
    before = one.parameters().precision
    one.observe(*rows(1), task="b")
    one.boundary("b", weight=0.0)
    after = one.parameters().precision
    assert np.isclose(after.sum(), before.sum())
    one.observe(*rows(2), task="c", boundary=True)
    assert one.parameters().precision.sum() > after.sum()
    if mode == "factors":
        one.forget("b")


@each_in_turn
def test_a_first_task_without_weight_is_learned_all_the_same(name: str) -> None:
    one = Learner(settings(name))
    one.observe(*rows(0), task="a")
    one.boundary("a", weight=0.0)
    np.testing.assert_allclose(one.parameters().precision, 1.0)
    one.observe(*rows(1), task="b", boundary=True)


# -- models of all kinds ---------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """One branch for rows whose first feature is high, another for the rest: a task may reach one only."""

    def __init__(self) -> None:
        super().__init__()
        self.high, self.low, self.head = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        if bool((x[:, 0] > 0).all()):
            return self.head(torch.tanh(self.high(x)))
        if bool((x[:, 0] <= 0).all()):
            return self.head(torch.tanh(self.low(x)))
        mixed = torch.where(x[:, :1] > 0, self.high(x), self.low(x))
        return self.head(torch.tanh(mixed))


class Shared(nn.Module):
    """A layer used twice, and one weight under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.one, self.other = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.one.weight
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.inner(torch.tanh(self.inner(x))))
        return self.head(torch.tanh(self.other(torch.tanh(self.one(x)))))


class Normalised(nn.Module):
    """Scales of a layer norm and of a batch norm that is frozen in evaluation, and a scale of no axis."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, CLASSES)
        self.batch = nn.BatchNorm1d(6, track_running_stats=True)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.train()

    def train(self, mode: bool = True) -> Normalised:
        super().train(mode)
        self.batch.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.batch(self.norm(self.first(x))))) * self.scale


def frozen() -> nn.Module:
    """A frozen layer between two that learn, one weight frozen whose bias is not."""
    module = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Linear(6, CLASSES))
    module[2].requires_grad_(False)
    module[4].weight.requires_grad_(False)
    return module


def bias_alone() -> nn.Module:
    """All that learns is one bias."""
    module = nn.Linear(4, CLASSES)
    module.weight.requires_grad_(False)
    return module


MODELS = {
    "branching": Branching,
    "shared": Shared,
    "normalised": Normalised,
    "frozen": frozen,
    "bias alone": bias_alone,
    "one layer": lambda: nn.Linear(4, CLASSES, bias=False),
    "recurrent": lambda: Recurrent(nn.GRU),
}


class Recurrent(nn.Module):
    """The last state of a recurrent layer over the features."""

    def __init__(self, kind: type[nn.Module]) -> None:
        super().__init__()
        self.inner, self.head = kind(1, 5, batch_first=True), nn.Linear(5, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(x.unsqueeze(-1))[0][:, -1])


@pytest.mark.parametrize(
    ("model", "name"),
    [(model, "default") for model in ("frozen", "bias alone", "one layer")]
    + [
        pytest.param(*case, marks=pytest.mark.campaign)
        for case in (
            *((model, "default") for model in ("branching", "recurrent", "shared", "normalised")),
            *((model, "no blocks") for model in MODELS),
            ("normalised", "full"),
            ("frozen", "full"),
            ("shared", "diagonal"),
        )
    ],
)
def test_any_model_is_learned_revisited_and_forgotten(model: str, name: str, tmp_path: Path) -> None:
    """Its tasks reach different parts of it; saved in between, it goes on to the same bits."""
    torch.manual_seed(0)
    module = MODELS[model]()
    tree = {**settings(name, "factors"), "model": {"classes": CLASSES}}

    def run(saved: bool) -> Learner:
        one = Learner(tree, module=module)
        for task, sign in enumerate((1, -1, 0)):
            x, y = rows(task, features=4)
            x[:, 0] = np.abs(x[:, 0]) * sign if sign else x[:, 0]
            one.observe(x[:30], y[:30], task=f"t{task}")
            if saved:
                one.save(tmp_path / "learner")
                one = Learner.load(tmp_path / "learner", module=module)
            one.observe(x[30:], y[30:], task=f"t{task}", boundary=True)
        one.revisit("t0")
        one.observe(*rows(0, features=4), task="t0", boundary=True)
        one.forget("t1")
        return one

    one = run(saved=False)
    assert_same(one, run(saved=True))
    assert np.isfinite(one.parameters().precision).all()
    assert (one.parameters().precision >= 1 - 1e-9).all()
    total = {k.removeprefix("posterior."): a for k, a in one._replay.snapshot(0)[1].items() if "posterior." in k}
    assert stored.remainder(total, list(one._memory.factors.values())) < 1e-9


@pytest.mark.parametrize("name", CURVATURES)
def test_a_model_of_one_number_is_a_model(name: str) -> None:
    tree = {**settings(name, "factors"), "model": {"likelihood": "gaussian", "noise_variance": 0.5}}
    one = Learner(tree, module=nn.Linear(1, 1, bias=False))
    for task in range(2):
        x = np.random.default_rng(task).normal(size=(30, 1))
        one.observe(x, 2 * x[:, 0], task=f"t{task}", boundary=True)
    one.revisit("t0")
    one.observe(x, 2 * x[:, 0], task="t0", boundary=True)
    assert one.parameters().precision[0] > 60
    assert np.isfinite(one.predict(x, samples=5).mean).all()


@pytest.mark.parametrize("name", ["default", "no blocks"])
def test_very_wide_inputs_are_turned_to_few_directions_and_take_a_small_multiple_of_their_precision(name: str) -> None:
    one, wide = (
        Learner(settings(name, "factors", epochs=1) | {"model": {"args": {"hidden": [5]}, "classes": CLASSES}}),
        5000,
    )
    for task in range(2):
        one.observe(*rows(task, n=30, features=wide), task=f"t{task}", boundary=True)
    one.revisit("t0")
    one.observe(*rows(0, n=30, features=wide), task="t0", boundary=True)
    held = {key: array for key, array in one._replay.snapshot(0)[1].items() if key.startswith("posterior.")}
    size = len(held["posterior.shift"])
    assert size == 5 * (wide + 1) + 6 * CLASSES
    assert held["posterior.left.0"].shape == (5, 5)
    assert held["posterior.right.0"].shape == (wide + 1, 16)
    assert sum(array.nbytes for array in held.values()) < 8 * (2 * size + 2 * 16 * (wide + 1) + 2000)


def test_a_network_too_large_for_a_full_matrix_is_refused_at_its_first_batch() -> None:
    tree = settings("full")
    tree["model"]["args"] = {"hidden": [200]}
    with pytest.raises(ModelRefused, match=r"posterior.curvature full.*4803 parameters.*2048.*auto"):
        Learner(tree).observe(*rows(0), task="a")


# -- what is not finite ----------------------------------------------------------------------------------------------------


class Steep(nn.Module):
    """Finite at parameters that are near 0, and nowhere else: draws from any posterior leave it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, CLASSES)
        nn.init.zeros_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        away = self.layer.weight.abs().amax()
        return self.layer(x) + torch.where(away > 0.08, torch.full_like(away, float("nan")), 0 * away)


@pytest.mark.parametrize("fisher", ["exact", "mc", "empirical"])
@pytest.mark.parametrize("name", ["default", "no blocks", "diagonal"])
def test_draws_without_a_finite_curvature_are_left_out_and_said(name: str, fisher: str) -> None:
    tree = {**settings(name, learning_rate=1e-5), "model": {"classes": CLASSES}}
    tree["posterior"] = {**tree["posterior"], "fisher": fisher}
    one = Learner(tree, module=Steep())
    for task in ("a", "b"):
        with pytest.warns(RuntimeWarning, match="draws from the posterior gave no finite curvature"):
            one.observe(*rows(ord(task), n=20, features=4), task=task, boundary=True)
        assert (one.parameters().precision > 1).any()


@pytest.mark.parametrize("name", ["default", "at the optimum", "no blocks"])
def test_a_task_whose_moments_are_no_numbers_is_held_and_changes_nothing(name: str) -> None:
    """Inputs whose squares overflow, though the loss does not."""
    one, (x, y) = Learner(settings(name)), rows(0)
    one.observe(x, y, task="a", boundary=True)
    before = one.parameters()
    with warnings.catch_warnings(), pytest.raises(Refused, match=r"second moments.*scale the data"):
        warnings.simplefilter("ignore")
        one.observe(x * 3e18, y, task="b", boundary=True)
    after = one.parameters()
    for vector in ("theta", "precision", "shift"):
        np.testing.assert_array_equal(getattr(before, vector), getattr(after, vector))


# -- the linear-Gaussian model -------------------------------------------------------------------------------------------

NOISE, PRIOR, TASKS = 0.5, 0.3, 4


def regression(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    x = rng.normal(size=(50, 6)) * rng.uniform(0.3, 2, 6)
    return x, x @ np.linspace(-1, 1, 6) + 0.5 + rng.normal(size=50) * NOISE**0.5


def joint() -> tuple[np.ndarray, np.ndarray]:
    """Precision and mean given the data of all tasks at once."""
    xs, ys = zip(*map(regression, range(TASKS)), strict=True)
    a = np.c_[np.concatenate(xs), np.ones(50 * TASKS)]
    precision = PRIOR * np.eye(7) + a.T @ a / NOISE
    return precision, np.linalg.solve(precision, a.T @ np.concatenate(ys) / NOISE)


def regressor(name: str, mode: str, **posterior: Any) -> Learner:
    return Learner(
        {
            "model": {"factory": "streamcl.models:linear", "likelihood": "gaussian", "noise_variance": NOISE},
            "train": {"optimizer": "lbfgs", "dtype": "float64", "epochs": 5},
            "posterior": {"prior_precision": PRIOR, "mode": mode, **CURVATURES[name], **posterior},
        }
    )


@each_mode
@pytest.mark.parametrize("name", ["default", "full", "at the optimum"])
def test_with_a_full_block_one_pass_is_joint_training(name: str, mode: str) -> None:
    one, (precision, mean) = regressor(name, mode), joint()
    for task in range(TASKS):
        one.observe(*regression(task), task=f"t{task}", boundary=True)
    np.testing.assert_allclose(one.parameters().theta, mean, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(one.parameters().precision, np.diag(precision), rtol=1e-10)
    block = one._replay.snapshot(0)[1]
    (found,) = [array for key, array in block.items() if ".block." in key]
    np.testing.assert_allclose(found, precision, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(block["posterior.shift"], precision @ mean, rtol=1e-9, atol=1e-9)
    if mode == "factors":
        one.revisit("t1")
        one.observe(*regression(1), task="t1", boundary=True)
        np.testing.assert_allclose(one.parameters().theta, mean, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("name", "share", "sweeps"),
    [("diagonal", 1.0, 8), ("no blocks", 1.0, 8), pytest.param("no blocks", 0.3, 36, marks=pytest.mark.campaign)],
)
def test_sweeps_of_revisits_end_at_joint_training(name: str, share: float, sweeps: int) -> None:
    """Each leaves the data behind; of one that takes out a share, the rest of it is there for the next."""
    one, (_, mean) = regressor(name, "factors", share=share), joint()
    for task in range(TASKS):
        one.observe(*regression(task), task=f"t{task}", boundary=True)
    assert np.abs(one.parameters().theta - mean).max() > 1e-4
    for _ in range(sweeps):
        for task in (2, 0, 3, 1):
            one.revisit(f"t{task}", damping=1.0)
            one.observe(*regression(task), task=f"t{task}", boundary=True)
    np.testing.assert_allclose(one.parameters().theta, mean, rtol=1e-6, atol=1e-7)


# -- sides of which not all is kept ---------------------------------------------------------------------------------------


def wide_rows(seed: int, n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    """400 numbers a row, of which twelve directions matter; every task has its own."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, CLASSES, n)
    directions = np.random.default_rng(seed % 10).normal(size=(CLASSES, 12)) @ rng.normal(size=(12, 400)) / 4
    return (directions[y] + 0.3 * rng.normal(size=(n, 400))).astype("float32"), y


def test_wide_and_leading_sides_are_kept_replayed_and_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(basis, "WIDEST", 300)

    def module() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(400, 200), nn.Tanh(), nn.Linear(200, CLASSES))

    tree: dict[str, Any] = {"model": {"classes": CLASSES}, "posterior": {"mode": "factors"}, "train": {"epochs": 8}}
    one, two = (Learner(tree, module=module()) for _ in range(2))
    tasks = [wide_rows(seed) for seed in range(3)]
    for number, (x, y) in enumerate(tasks):
        one.observe(x, y, task=f"t{number}", boundary=True)
        two.observe(x, y, task=f"t{number}", boundary=True)
    assert_same(one, two)
    model = one._learner.model
    assert model is not None
    (left, right), (_, inner) = model.posterior.total.precision.basis.sides
    assert (left.is_wide, left.reflections.v.shape[1]) == (False, 32)
    assert (right.is_wide, right.vectors.shape) == (True, (401, 128))
    assert (inner.is_wide, inner.reflections is not None) == (False, True)
    values = model.posterior.total.precision.values[: 200 * 401].view(200, 401)[:, 128:]
    torch.testing.assert_close(values, values[:, :1].expand_as(values))  # one precision beyond, row by row
    for x, y in tasks:
        assert (one.predict(x).probs.argmax(1) == y).mean() > 0.9

    total = {k.removeprefix("posterior."): a for k, a in one._replay.snapshot(0)[1].items() if "posterior." in k}
    np.testing.assert_allclose(stored.diagonal(total), model.posterior.total.precision.diagonal().numpy(), rtol=1e-9)
    assert stored.remainder(total, list(one._memory.factors.values())) < 1e-9
    one.revisit("t0")
    one.observe(*tasks[0], task="t0", boundary=True)
    one.forget("t1")
    total = {k.removeprefix("posterior."): a for k, a in one._replay.snapshot(0)[1].items() if "posterior." in k}
    assert stored.remainder(total, list(one._memory.factors.values())) < 1e-9
