"""What the posterior leaves open of the outputs, against dense oracles: J by backward passes, Sigma inverted whole."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamcl.core import likelihood as likelihoods
from streamcl.core.basis import Basis, Matrix, Side, matrices_in
from streamcl.core.linearised import Linearised, Outputs, drawn, is_linear, root
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Block, Diagonal, Full, Layered, Precision
from streamcl.core.tempering import TAUS, Tempering, tempering


class Embedding(nn.Module):
    """Tokens, a normalisation, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm, self.head = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.table(x)).mean(1))
        return found


class Recurrent(nn.Module):
    """What vmap does not take."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.head = nn.LSTM(2, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.cell(x)[0][:, -1])
        return found


class Tied(nn.Module):
    """One weight used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.tanh(self.inner(torch.tanh(self.inner(x)))))
        return found


class Mixing(nn.Module):
    """Rows look at each other."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(x - x.mean(0))
        return found


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "linear": (lambda: nn.Linear(5, 1), lambda: torch.randn(7, 5)),
    "dense": (lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)), lambda: torch.randn(7, 5)),
    "tokens": (
        lambda: nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 2), nn.Flatten()),
        lambda: torch.randn(7, 3, 5),
    ),
    "convolution": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Tanh(), nn.Flatten(), nn.Linear(48, 3)),
        lambda: torch.randn(7, 1, 6, 6),
    ),
    "embedding": (Embedding, lambda: torch.randint(0, 9, (7, 4))),
    "recurrent": (Recurrent, lambda: torch.randn(7, 3, 2)),
    "tied": (Tied, lambda: torch.randn(7, 4)),
}
KINDS = ("diagonal", "layered", "blocks", "full", "prior")


def model(name: str) -> tuple[nn.Module, FlatParameters, Tensor]:
    torch.manual_seed(3)
    make, rows = MODELS[name]
    module, x = make().double().eval(), rows()
    return module, FlatParameters(module), x.double() if x.is_floating_point() else x


def side(n: int) -> Side:
    """Some orthonormal vectors."""
    values, vectors = torch.linalg.eigh(wide(n))
    return Side(vectors, values)


def wide(n: int) -> Tensor:
    """A positive definite matrix."""
    numbers = torch.randn(n, n, dtype=torch.float64)
    return numbers @ numbers.T / n + torch.eye(n, dtype=torch.float64)


def precision(kind: str, parameters: FlatParameters) -> Precision:
    """With one direction in which there is none, but for the prior and the full one."""
    layout = parameters.layout
    values = torch.rand(layout.size, dtype=torch.float64) + 0.1
    if kind == "prior":
        return Layered.isotropic(2.0, values)
    if kind == "full":
        return Full(wide(layout.size))
    values[3] = 0
    if kind == "diagonal":
        return Diagonal(values)
    parts = {part.name: part for part in layout.parts}
    biases = {name: name.removesuffix("weight") + "bias" for name in parts if name.endswith("weight")}
    pairs = [(name, bias if bias in parts else None) for name, bias in biases.items() if len(parts[name].shape) > 1]
    matrices = matrices_in(layout, pairs)
    if kind == "blocks":
        matrices[-1] = Matrix.stack([parts[name] for name in matrices[-1].names])
    sides = [(None, None) if m.stacked else (None if "table" in m.key else side(m.rows), side(m.columns)) for m in matrices]
    basis = Basis(layout.size, tuple(matrices), tuple(sides))
    blocks = []
    for matrix, place in basis.offsets():
        if matrix.stacked:
            values[place] = 0
            blocks.append(Block(matrix, wide(matrix.size)))
    return Layered(basis, values, tuple(blocks))


def jacobian(module: nn.Module, parameters: FlatParameters, x: Tensor) -> Tensor:
    """[n, K, P], by one backward pass an output."""
    rows = []
    for n in range(len(x)):
        for output in module(x[n : n + 1]).flatten():
            found = torch.autograd.grad(output, parameters.parameters, retain_graph=True, allow_unused=True)
            pairs = zip(found, parameters.parameters, strict=True)
            rows.append(torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for g, p in pairs]))
    return torch.stack(rows).view(len(x), -1, parameters.size)


def dense(module: nn.Module, parameters: FlatParameters, x: Tensor, precision: Precision) -> Tensor:
    """J Sigma J^T, [n, K, K]."""
    whole = torch.stack([precision.times(axis) for axis in torch.eye(parameters.size, dtype=torch.float64)])
    j = jacobian(module, parameters, x)
    return j @ torch.linalg.pinv(whole, hermitian=True, rtol=1e-12) @ j.mT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", MODELS)
def test_the_covariance_is_that_of_the_whole_jacobian(name: str, kind: str) -> None:
    module, parameters, x = model(name)
    given = precision(kind, parameters)
    linearised = Linearised(module, parameters, given)
    found = torch.cat([each.spread for each in linearised.of(x)])
    expected = dense(module, parameters, x, given)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    assert linearised.note is None


@pytest.mark.parametrize("kind", KINDS)
def test_variances_alone_are_the_covariances_diagonal(kind: str) -> None:
    module, parameters, x = model("dense")
    given = precision(kind, parameters)
    gram = likelihoods.Gaussian(1.0).variances
    found = torch.cat([each.spread for each in Linearised(module, parameters, given).of(x, gram)])
    torch.testing.assert_close(found, dense(module, parameters, x, given).diagonal(dim1=1, dim2=2), rtol=1e-8, atol=1e-10)


def test_few_rows_at_a_time_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    module, parameters, x = model("tokens")
    given = precision("layered", parameters)
    whole = torch.cat([each.spread for each in Linearised(module, parameters, given).of(x)])
    monkeypatch.setattr("streamcl.core.jacobians.CPU_BLOCK_BYTES", 1)
    monkeypatch.setattr("streamcl.core.linearised.TILE_BYTES", 1)
    parts = [each.spread for each in Linearised(module, parameters, given).of(x)]
    assert len(parts) == len(x)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-12)


def test_that_rows_look_at_each_other_is_said() -> None:
    module = Mixing().double()
    linearised = Linearised(module, parameters := FlatParameters(module), precision("diagonal", parameters))
    list(linearised.of(torch.randn(6, 4, dtype=torch.float64)))
    assert "depends on the rows beside it" in (linearised.note or "")


# -- what it makes of a prediction ---------------------------------------------------------------------------------------


def test_a_linear_models_predictive_is_exact() -> None:
    module, parameters, x = model("linear")
    inputs = torch.cat([torch.randn(40, 5, dtype=torch.float64), torch.ones(40, 1, dtype=torch.float64)], 1)
    exact = inputs.T @ inputs / 0.3 + torch.eye(6, dtype=torch.float64)
    gaussian = likelihoods.Gaussian(0.3)
    (found,) = Linearised(module, parameters, Full(exact)).of(x, gaussian.variances)
    spread = gaussian.spread(found.outputs, found.spread)
    rows = torch.cat([x, torch.ones(7, 1, dtype=torch.float64)], 1)
    torch.testing.assert_close(
        spread["variance"][:, 0], 0.3 + (rows @ torch.linalg.inv(exact) * rows).sum(1), rtol=1e-10, atol=0
    )


def test_two_classes_are_corrected_as_one_probability_is() -> None:
    """The difference of two logits is Bernoulli's one."""
    roots = torch.randn(5, 2, 4, dtype=torch.float64)
    logits = torch.randn(5, 2, dtype=torch.float64)
    two, one = likelihoods.Categorical(2), likelihoods.Bernoulli()
    probs = two.spread(logits, two.variances(roots))["probs"][:, 1:]
    difference = roots[:, 1:] - roots[:, :1]
    expected = one.spread(logits[:, 1:] - logits[:, :1], one.variances(difference))["probs"]
    torch.testing.assert_close(probs, expected, rtol=1e-12, atol=0)
    variance = difference.square().sum(2)
    kappa = 1 / (1 + math.pi / 8 * variance).sqrt()
    torch.testing.assert_close(expected, torch.sigmoid(kappa * (logits[:, 1:] - logits[:, :1])), rtol=1e-12, atol=0)


def test_what_all_logits_have_in_common_is_no_uncertainty() -> None:
    roots = torch.randn(5, 1, 4, dtype=torch.float64).expand(5, 3, 4)
    assert float(likelihoods.Categorical(3).variances(roots).max()) < 1e-12


def test_draws_have_the_covariance_that_they_were_asked_for() -> None:
    covariance = wide(3).expand(2, 3, 3).clone()
    covariance[1] = torch.ones(3, 3)  # singular
    noise = torch.randn(200_000, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    draws = drawn(torch.ones(2, 3, dtype=torch.float64), covariance, noise)
    for row in range(2):
        torch.testing.assert_close(draws[:, row].T.cov(), covariance[row], rtol=0.03, atol=0.03)
    torch.testing.assert_close(root(covariance) @ root(covariance).mT, covariance, rtol=1e-10, atol=1e-10)


# -- how wide ------------------------------------------------------------------------------------------------------------


def test_rows_left_out_are_where_they_would_be_without_them() -> None:
    """Linear and Gaussian: theta* + Sigma J^T g is the optimum with a row's target as it is predicted, exactly."""
    torch.manual_seed(0)
    x, noise = torch.randn(30, 4, dtype=torch.float64), 0.5
    y = x @ torch.randn(4, 1, dtype=torch.float64) + noise**0.5 * torch.randn(30, 1, dtype=torch.float64)
    exact = x.T @ x / noise + torch.eye(4, dtype=torch.float64)
    theta = torch.linalg.solve(exact, x.T @ y / noise)
    module = nn.Linear(4, 1, bias=False).double()
    parameters = FlatParameters(module)
    parameters.load(theta.flatten())
    gaussian = likelihoods.Gaussian(noise)
    found = tempering(list(Linearised(module, parameters, Full(exact)).of(x)), gaussian, y, whole=True)
    assert found is not None
    losses = []
    for n in range(30):
        row = x[n : n + 1]
        without = torch.linalg.solve(exact, (x.T @ y + row.T @ (row @ theta - y[n : n + 1])) / noise)
        variance = row @ torch.linalg.inv(exact) @ row.T
        losses.append([float(gaussian.spread_nll(row @ without, tau * variance, y[n : n + 1])) for tau in TAUS])
    expected = np.array(losses)
    np.testing.assert_allclose(found.sums[1].numpy(), (expected - expected[:, :1]).sum(0), rtol=1e-8, atol=1e-10)
    assert found.chosen(exact=True, linear=True)[0] == 1.0


def test_a_width_that_the_rows_speak_against_is_not_taken() -> None:
    rows, usual = torch.full((8,), 100.0, dtype=torch.float64), torch.ones(8, dtype=torch.float64)
    more = torch.tensor([0.0, -1, -2, -3, 10, 90, 99, 100], dtype=torch.float64)
    sums = Tempering(torch.stack([rows, more, more.square() / 100 + 100, usual * 100]))
    assert sums.chosen(exact=False)[0] == 0.0
    assert sums.chosen(exact=True)[0] == 0.0
    assert sums.chosen(exact=True, linear=True)[0] == 0.03
    better = Tempering(torch.stack([rows, 10 * more, (10 * more).square() / 100 + 100, usual * 100]))
    assert better.chosen(exact=False)[0] == 0.01
    assert Tempering(better.sums / 2).chosen(exact=False)[0] == 0.0  # fifty rows cannot speak for any width
    assert torch.equal(sums.plus(sums).sums, 2 * sums.sums)


def test_a_model_is_linear_where_its_outputs_double_with_its_parameters() -> None:
    x = torch.randn(5, 3)
    shared = nn.Linear(3, 3)
    linear = [
        nn.Linear(3, 2),
        nn.Sequential(nn.Flatten(), nn.Linear(3, 2, bias=False)),
        nn.ModuleList([nn.Linear(3, 1)])[0],
    ]
    bent = [nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)), nn.Sequential(shared, shared)]
    frozen = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.Tanh(), nn.Linear(4, 1))
    found = [is_linear(module, FlatParameters(module), x) for module in [*linear, frozen, *bent]]
    assert found == [True, True, True, True, False, False]


def test_a_networks_noise_has_the_usual_width_in_it_and_a_linear_models_has_not() -> None:
    likelihood = likelihoods.Gaussian(0.5)
    x = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    found = [Outputs(x, (0.1 * x.square()).unsqueeze(2))]
    network, linear = (tempering(found, likelihood, x, whole=kind) for kind in (False, True))
    assert network is not None
    assert linear is not None
    assert torch.equal(linear.sums[3], torch.zeros(len(TAUS), dtype=torch.float64))
    torch.testing.assert_close(network.sums[3], 3 * (0.1 * 14 / 3) * torch.tensor(TAUS, dtype=torch.float64))
    assert torch.equal(likelihood.beyond(torch.tensor([[1.0], [3.0]]), 2.0), torch.tensor([[0.0], [1.0]]))


def test_sums_of_a_gaussian_model_that_an_older_version_left_have_no_usual_width() -> None:
    rows = torch.full((8,), 200.0, dtype=torch.float64)
    taus = torch.tensor(TAUS, dtype=torch.float64)
    old = Tempering(torch.stack([rows, -rows * taus, rows * taus**2, rows]))  # it took 1 for every row, whatever tau
    new = Tempering(torch.stack([rows, -rows * taus, rows * taus**2, rows * taus]))
    assert old.chosen(exact=True) == (1.0, 0.0)
    assert new.chosen(exact=True) == (1.0, 1.0)
    assert new.plus(old).chosen(exact=True) == (1.0, 0.5)


@pytest.mark.parametrize("likelihood", [likelihoods.Categorical(3), likelihoods.Bernoulli()])
def test_only_what_goes_beyond_the_usual_is_corrected(likelihood: likelihoods.Likelihood) -> None:
    variances = torch.tensor([[1.0], [4.0]], dtype=torch.float64)
    usual = float(likelihood.usual(variances))
    beyond = likelihood.beyond(variances, usual)
    assert float(beyond[0]) == 0
    assert (1 + math.pi / 8 * float(beyond[1])) ** 0.5 == pytest.approx((1 + math.pi / 2) ** 0.5 / usual)
