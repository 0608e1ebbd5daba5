"""Curvature averaged over the posterior that it makes, and steps in its basis, against dense oracles in float64."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from msgspec.structs import replace

from streamcl.config import Config, from_tree
from streamcl.core import eigen
from streamcl.core.basis import Basis, Matrix
from streamcl.core.fisher import Fisher
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Block, Layered
from streamcl.learning import curvature
from streamcl.learning.curvature import Taken, TaskCurvature
from streamcl.learning.data import TaskData
from streamcl.learning.network import Network
from streamcl.learning.optimisation import Optimisation
from streamcl.schema import LabelMap, Signature
from streamcl.snapshot import Vintage

CLASSES, FEATURES, ROWS = 4, 6, 400
SKETCHED = "streamcl.learning.curvature.SKETCHED"


def config(curvature: str, hidden: list[int], **train: Any) -> Config:
    model = {"args": {"hidden": hidden, "activation": "tanh"}, "classes": CLASSES}
    train = {"device": "cpu", "dtype": "float64", **train}
    return from_tree({"model": model, "posterior": {"curvature": curvature}, "train": train})


def rows() -> tuple[np.ndarray, np.ndarray]:
    """All classes, in clusters that overlap little: at the optimum next to nothing is left of the curvature."""
    rng = np.random.default_rng(0)
    y = np.arange(ROWS) % CLASSES
    return rng.normal(size=(ROWS, FEATURES)) + 4 * rng.normal(size=(CLASSES, FEATURES))[y], y


def network(settings: Config) -> tuple[Network, TaskData]:
    labels = LabelMap(CLASSES)
    labels.add(tuple(range(CLASSES)))
    made = Network(settings, Signature((FEATURES,), False, ()), labels, torch.device("cpu"))
    return made, TaskData(lambda window: [rows()], [ROWS], 8 * FEATURES, made.conversion)


def taken(curvature: str, seed: int) -> tuple[Taken, torch.Tensor]:
    """A linear model's task, learned first."""
    settings = config(curvature, [], optimizer="lbfgs")
    made, data = network(settings)
    prior = Gaussian.prior(torch.zeros(made.parameters.size).double(), 1.0, "layered")
    for _ in Optimisation(made, prior, settings.train, settings.rate).fit(data, 0, 4):
        pass
    steps = TaskCurvature(settings, made, data, seed).take(prior, ROWS, 1.0, prior.within)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value, made.master()


def fisher(theta: torch.Tensor, here: Basis) -> tuple[torch.Tensor, torch.Tensor]:
    """Squares [P] in a basis, and all products [P, P], summed over rows and classes, of every single gradient."""
    x, eye = torch.from_numpy(rows()[0]), torch.eye(CLASSES).double()
    weight, bias = theta[: CLASSES * FEATURES].view(CLASSES, -1), theta[CLASSES * FEATURES :]
    p = (x @ weight.T + bias).softmax(1)
    g = p.sqrt().unsqueeze(2) * (eye - p.unsqueeze(1))  # [n, class that is drawn, output]
    gradients = torch.cat([(g.unsqueeze(3) * x[:, None, None]).flatten(2), g], 2).flatten(0, 1)
    turned = gradients @ torch.stack([here.into(unit) for unit in torch.eye(len(theta)).double()])
    return turned.square().sum(0), gradients.T @ gradients


@pytest.mark.parametrize("curvature", ["kronecker", "auto"])
def test_one_tasks_averaged_curvature_is_the_fixed_point_of_a_long_run(curvature: str) -> None:
    """Averaged over many more draws from where it ended, the curvature is what it was; at the mode it is not."""
    found, theta = taken(curvature, seed=0)
    precision = found.curvature
    assert isinstance(precision, Layered)
    here, generator = precision.basis, torch.Generator().manual_seed(1)
    assert bool(precision.blocks) == (curvature == "auto")
    formed = Gaussian.anchored(found.cavity.precision.plus(precision), theta)
    total, draws = torch.zeros(len(theta)).double(), 400
    for _ in range(draws):
        values, whole = fisher(formed.sample(theta, generator), here)
        total += (whole.diagonal() if precision.blocks else values) / draws
    ended = precision.diagonal() if precision.blocks else precision.values
    at_mode = fisher(theta, here)[1].trace()
    assert float(ended.sum()) == pytest.approx(
        float(total.sum()), rel=0.3
    )  # of 36 draws: another seed has 0.1 more or less
    assert float(ended.sum()) > 3 * float(at_mode)
    large = total > 0.01 * total.max()
    assert float((ended[large].log() - total[large].log()).abs().mean()) < 0.5  # of a few dozen draws


def test_draws_come_from_the_seed_alone() -> None:
    one, other, another = (taken("kronecker", seed)[0].curvature for seed in (0, 0, 1))
    assert torch.equal(one.values, other.values)
    assert not torch.equal(one.values, another.values)


@pytest.mark.parametrize("least", [4, 7])
def test_draws_end_once_the_sum_of_the_curvature_has_settled(least: int, monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[float] = []

    def noted(before: Layered, after: Layered) -> bool:
        changes.append(abs(float(1 - before.diagonal().sum() / after.diagonal().sum())))
        return unpatched(before, after)

    unpatched = curvature._settled
    monkeypatch.setattr(curvature, "_settled", noted)
    monkeypatch.setattr(curvature, "ROUNDS", (least, 40))
    made, data = network(config("kronecker", []))
    prior = Gaussian.prior(torch.zeros(made.parameters.size).double(), 100.0, "layered")  # so that draws differ little
    ended(TaskCurvature(config("kronecker", []), made, data, 0).take(prior, ROWS, 1.0, prior.within))
    within = [change <= 0.02 for change in changes]
    assert within[-2:] == [True, True]
    assert not any(one and next_one for one, next_one in itertools.pairwise(within[least - 2 : -1]))
    assert least <= len(within) < 40


@pytest.mark.parametrize(("pins", "unused"), [(True, "sample_along"), (False, "sample")])
def test_what_an_older_version_began_has_its_draws_and_its_eigenvectors(
    pins: bool, unused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[bool] = set()
    unpatched = eigen.eigenvectors

    def noted(matrix: torch.Tensor, pinned: bool, most: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        asked.add(pinned)
        return unpatched(matrix, pinned, most)

    monkeypatch.setattr(eigen, "eigenvectors", noted)
    monkeypatch.delattr(Layered, unused)
    settings = config("kronecker", [])
    made, data = network(settings)
    prior = Gaussian.prior(torch.zeros(made.parameters.size).double(), 1.0, "layered")
    found = ended(TaskCurvature(settings, made, data, 0, Vintage(pins=pins)).take(prior, ROWS, 1.0, prior.within))
    assert asked == {pins}
    assert found.curvature.is_finite()


@pytest.mark.parametrize(("vintage", "rounds"), [(Vintage(), 7), (Vintage(settles=False), 6)])
def test_what_an_older_version_began_ends_its_draws_as_that_did(
    vintage: Vintage, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There, at the first round in which all directions together have changed little."""
    asked: dict[str, int] = {"_settled": 0, "_settled_everywhere": 0}

    def from_the_sixth_on(name: str) -> Any:
        def settled(before: Layered, after: Layered) -> bool:
            asked[name] += 1
            return asked[name] > 5

        return settled

    for name in asked:
        monkeypatch.setattr(curvature, name, from_the_sixth_on(name))
    settings = config("kronecker", [])
    made, data = network(settings)
    prior = Gaussian.prior(torch.zeros(made.parameters.size).double(), 1.0, "layered")
    ended(TaskCurvature(settings, made, data, 0, vintage).take(prior, ROWS, 1.0, prior.within))
    assert asked == {"_settled": rounds * vintage.settles, "_settled_everywhere": rounds * (not vintage.settles)}


def test_where_nothing_is_left_of_the_curvature_both_rules_have_settled() -> None:
    nothing = Gaussian.prior(torch.zeros(FEATURES).double(), 1.0, "layered").precision.weighted(0.0)
    assert curvature._settled(nothing, nothing)
    assert curvature._settled_everywhere(nothing, nothing)


def passes(settings: Config, sketches: bool) -> list[int]:
    """The vectors a row of a task's passes over all of its rows."""
    made, data = network(settings)
    prior = Gaussian.prior(torch.zeros(made.parameters.size).double(), 1.0, "layered")
    counted: list[int] = []

    def added(taking: TaskCurvature, fisher: Fisher) -> Any:
        x = torch.from_numpy(rows()[0])
        counted.append(len(fisher.likelihood.cotangents(made.module(x), fisher.kind, torch.zeros(len(x)).long(), None)))
        return unpatched(taking, fisher)

    unpatched = TaskCurvature._added
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TaskCurvature, "_added", added)
        for _ in TaskCurvature(settings, made, data, 0, Vintage(sketches=sketches)).take(prior, ROWS, 1.0, prior.within):
            pass
    return counted


def test_what_is_averaged_away_is_taken_of_few_vectors_and_what_stays_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SKETCHED, (2 * ROWS, ROWS))
    settings = config("kronecker", [5])
    assert passes(settings, True) == [2, 1]
    assert passes(settings, False) == [CLASSES - 1] * 2
    at_the_mode = replace(settings, posterior=replace(settings.posterior, expectation="mode"))
    assert passes(at_the_mode, True) == [CLASSES - 1] * 2
    monkeypatch.setattr(SKETCHED, (CLASSES * ROWS, CLASSES * ROWS))
    assert passes(settings, True) == [CLASSES - 1] * 2  # few rows have all they can have


def test_a_curvature_is_no_further_for_its_sketches_than_for_another_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SKETCHED, (ROWS, ROWS))
    settings = config("kronecker", [5], optimizer="lbfgs")
    made, data = network(settings)
    prior = Gaussian.prior(torch.zeros(made.parameters.size).double(), 1.0, "layered")
    for _ in Optimisation(made, prior, settings.train, settings.rate).fit(data, 0, 4):
        pass

    def traces(sketches: bool) -> torch.Tensor:
        found = []
        for seed in range(6):
            taking = TaskCurvature(settings, made, data, seed, Vintage(sketches=sketches))
            steps = taking.take(prior, ROWS, 1.0, prior.within)
            found.append(float(ended(steps).curvature.diagonal().sum()))
        return torch.tensor(found).log()

    exact, sketched = traces(False), traces(True)
    assert abs(float(exact.mean() - sketched.mean())) < 2 * float(exact.std() + sketched.std())


def ended(steps: Any) -> Taken:
    while True:
        try:
            next(steps)
        except StopIteration as end:
            taken: Taken = end.value
            return taken


# -- steps in the basis --------------------------------------------------------------------------------------------------


def penalised(curvature: str, hidden: list[int]) -> tuple[Network, Gaussian, Config]:
    """A network under a penalty in some basis, with a block for its last layer."""
    settings = config(curvature, hidden, batch_size=32)
    made, _ = network(settings)
    layout, generator = made.parameters.layout, torch.Generator().manual_seed(0)
    parts = layout.parts
    matrices = [Matrix.of(w, b) for w, b in zip(parts[:-2:2], parts[1:-2:2], strict=True)] + [Matrix.stack(parts[-2:])]

    def moments(n: int) -> torch.Tensor:
        root = torch.randn(n, n, generator=generator, dtype=torch.float64)
        return root @ root.T

    known = {m.key: (None, None) if m.stacked else (moments(m.rows), moments(m.columns)) for m in matrices}
    here = Basis.unturned(layout.size).moved(matrices, known)
    values = 10 * torch.rand(layout.size, generator=generator, dtype=torch.float64)
    block = matrices[-1]
    values[dict(here.offsets())[block]] = 0
    precision = Layered(here, values, (Block(block, moments(block.size)),))
    return made, Gaussian(precision, torch.randn(layout.size, generator=generator, dtype=torch.float64)), settings


@pytest.mark.parametrize("hidden", [[7], [40, 30]], ids=["narrow", "wide"])
def test_adam_in_the_basis_is_adam_on_the_coordinates(hidden: list[int]) -> None:
    """Against PyTorch's own Adam, on coordinates that are formed densely."""
    made, penalty, settings = penalised("auto", hidden)
    optimisation = Optimisation(made, penalty, settings.train, 1e-2, share=0.3)
    optimisation.set_samples(50)
    axes = penalty.precision.axes()
    assert axes is not None
    turn = torch.stack([axes[0].into(unit) for unit in torch.eye(made.parameters.size, dtype=torch.float64)]).T
    theta = made.master().clone()
    coordinates = torch.nn.Parameter(turn @ theta)
    adam = torch.optim.Adam([coordinates], lr=1e-2)
    oracle, _ = network(settings)
    x, y = (torch.from_numpy(array) for array in rows())
    for start in range(0, 160, 32):
        batch = x[start : start + 32], y[start : start + 32]
        nll, _ = optimisation.step(*batch)
        oracle.parameters.load(turn.T @ coordinates.detach())
        oracle.parameters.grad.zero_()
        expected = oracle.likelihood.nll(oracle.module(batch[0]), batch[1])
        torch.testing.assert_close(nll, expected.detach(), rtol=1e-8, atol=1e-10)
        torch.autograd.backward(0.3 * expected.mean())
        gradient = oracle.parameters.grad + penalty.gradient(oracle.master()) / 50
        coordinates.grad = turn @ gradient
        adam.step()
        torch.testing.assert_close(made.master(), turn.T @ coordinates.detach(), rtol=1e-7, atol=1e-9)
