"""The neighbours of the benchmark are what they are called: each against what is exact for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamcl.bench.ablations import Method, Result
from streamcl.bench.ablations import measure as learned
from streamcl.bench.neighbours import bench, scenarios
from streamcl.bench.neighbours.bench import Cell, Found, Neighbour, best, neighbours
from streamcl.bench.neighbours.kronecker import (
    Kronecker,
    Layer,
    factors,
    input_moments,
    laplace_factors,
    layers_of,
    nearest,
    summed,
)
from streamcl.bench.neighbours.rules import (
    KroneckerPenalty,
    NaturalContinual,
    OrthogonalModification,
    SynapticIntelligence,
    own_factors,
)
from streamcl.bench.neighbours.scenarios import Case, scenario
from streamcl.bench.neighbours.table import table
from streamcl.bench.neighbours.training import fit, network, taught
from streamcl.bench.permuted import Images
from streamcl.cli import main
from streamcl.cli.benches import NEIGHBOUR_CASES
from streamcl.core.fisher import Fisher
from streamcl.core.likelihood import Categorical, Gaussian
from streamcl.core.parameters import FlatParameters

NOISE = 0.5


def images(rows: int = 200) -> Images:
    """Rows whose largest pixel is their label."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, rows)
    x = (3 * np.eye(12)[y] + rng.normal(size=(rows, 12)) / 4).astype("float32")
    return Images(x, y, x, y)


def patterns(rows: int = 200, width: int = 40) -> Images:
    """Rows near one of ten patterns, which no permutation makes another's: all tasks can be learned together."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, rows)
    x = (rng.normal(size=(10, width))[y] + rng.normal(size=(rows, width)) / 4).astype("float32")
    return Images(x, y, x, y)


def linear(inputs: int, outputs: int, dtype: torch.dtype = torch.float64) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(inputs, outputs, dtype=dtype)


def rows(count: int, width: int, seed: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(count, width, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def with_one(x: Tensor) -> Tensor:
    return torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], 1)


def dense(product: Kronecker) -> Tensor:
    return torch.kron(product.left, product.right)


# -- Kronecker products ------------------------------------------------------------------------------------------------


def test_factors_of_a_linear_gaussian_layer_are_its_exact_precision() -> None:
    x = with_one(rows(30, 4, 1))
    (found,) = factors(linear(4, 3), Gaussian(NOISE), x[:, :4])
    exact = torch.kron(torch.eye(3, dtype=torch.float64), x.T @ x / NOISE)
    torch.testing.assert_close(dense(found), exact)


def test_the_trace_of_the_factors_of_an_output_layer_is_that_of_the_fisher() -> None:
    """Of one row there is no averaging in between: the product's diagonal is the Fisher's, entry by entry."""
    module, x = nn.Sequential(linear(4, 5), nn.Tanh(), linear(5, 3)), rows(1, 4, 2)
    exact = Fisher(module, FlatParameters(module), Categorical(3))
    exact.add(x)
    found = factors(module, Categorical(3), x)
    parts = [
        part
        for layer, product in zip(layers_of(module), found, strict=True)
        for part in split_bias(dense(product).diagonal().view_as(layer.matrix()))
    ]
    torch.testing.assert_close(torch.cat(parts), exact.total.to(torch.float64))


def split_bias(matrix: Tensor) -> list[Tensor]:
    return [matrix[:, :-1].reshape(-1), matrix[:, -1]]


def test_factors_are_summed_over_chunks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = nn.Sequential(linear(4, 5), nn.Tanh(), linear(5, 3)), rows(25, 4, 2)
    whole = factors(module, Categorical(3), x)
    monkeypatch.setattr("streamcl.bench.neighbours.kronecker.ROWS", 10)
    for one, other in zip(whole, factors(module, Categorical(3), x), strict=True):
        torch.testing.assert_close(dense(one), dense(other))


def test_two_tasks_of_a_linear_gaussian_layer_add_up_exactly() -> None:
    """Where all tasks have the same G a row, the mean of A and the sum of G lose nothing, whatever their sizes."""
    module, parts = linear(4, 3), [rows(10, 4, 1), rows(40, 4, 2)]
    one, other = (factors(module, Gaussian(NOISE), x)[0] for x in parts)
    x = with_one(torch.cat(parts))
    torch.testing.assert_close(dense(summed(one, other)), torch.kron(torch.eye(3, dtype=x.dtype), x.T @ x / NOISE))


def test_the_nearest_sum_has_the_two_mixed_products_too_much_and_no_other_share_has_less() -> None:
    one, other = (Kronecker(rows(9, 3, n).T @ rows(9, 3, n), rows(9, 4, n).T @ rows(9, 4, n), 9) for n in (1, 2))
    merged = dense(nearest(one, other))
    pi = (merged - dense(one) - dense(other)).trace() / 2 / (other.left.trace() * one.right.trace())
    mixed = pi * torch.kron(other.left, one.right) + torch.kron(one.left, other.right) / pi
    torch.testing.assert_close(merged, dense(one) + dense(other) + mixed)
    for share in (0.9 * pi, 1.1 * pi):
        assert torch.kron(one.left + share * other.left, one.right + other.right / share).trace() > merged.trace()
    nothing = Kronecker(torch.zeros_like(one.left), one.right, 9)
    torch.testing.assert_close(dense(nearest(one, nothing)), dense(one))
    torch.testing.assert_close(dense(nearest(nothing, one)), dense(one))


def test_a_penalty_holds_a_linear_gaussian_layer_at_the_joint_optimum() -> None:
    """The gradient that is left there, after the first task, is 0: the product is the exact precision."""
    x, y = [rows(20, 4, seed) for seed in (1, 2)], [rows(20, 3, seed) for seed in (3, 4)]
    module = linear(4, 3)
    rule = KroneckerPenalty(module, lambda net, a, b: factors(net, Gaussian(NOISE), a), 1.0, summed, ridge=True)
    set_to(module, ridge(x[:1], y[:1]))
    rule.consolidate(x[0], y[0])
    set_to(module, ridge(x, y))
    torch.autograd.backward(0.5 * (module(x[1]) - y[1]).square().sum() / NOISE / 20)
    rule.adjust(20)
    gradient = Layer(module).gradient()
    prior = Layer(module).matrix() - rule.anchors[0]  # the ridge pulls to the newest optimum, which the prior was part of
    torch.testing.assert_close(20 * gradient, torch.zeros_like(prior), atol=1e-9, rtol=0)


def ridge(x: list[Tensor], y: list[Tensor]) -> Tensor:
    """The exact posterior mean under the prior of precision 1."""
    inputs, targets = with_one(torch.cat(x)), torch.cat(y)
    precision = inputs.T @ inputs / NOISE + torch.eye(5, dtype=torch.float64)
    return torch.linalg.solve(precision, inputs.T @ targets / NOISE).T


def set_to(module: nn.Linear, matrix: Tensor) -> None:
    module.zero_grad()
    with torch.no_grad():
        module.weight.copy_(matrix[:, :-1])
        module.bias.copy_(matrix[:, -1])


@pytest.mark.parametrize("chunk", [1000, 15])
def test_laplace_torch_has_the_same_factors_but_for_the_bias(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamcl.bench.neighbours.kronecker.ROWS", chunk)
    pytest.importorskip("laplace", reason="laplace-torch is not installed")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = rows(40, 4, 1, torch.float32), torch.arange(40) % 3
    for own, theirs in zip(factors(module, Categorical(3), x), laplace_factors(module, x, y), strict=True):
        torch.testing.assert_close(own.left, theirs.left, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(own.right[:-1, :-1], theirs.right[:-1, :-1], rtol=1e-4, atol=1e-5)
        assert theirs.right[-1].tolist() == [*[0.0] * (len(theirs.right) - 1), 1.0]


# -- the other rules ---------------------------------------------------------------------------------------------------


def step_along(rule: object, module: nn.Module, rate: float, x: Tensor, y: Tensor, steps: int) -> None:
    for _ in range(steps):
        module.zero_grad()
        torch.autograd.backward(0.5 * (module(x) - y).square().sum(1).mean())
        rule.adjust(len(x))  # type: ignore[attr-defined]
        with torch.no_grad():
            for p in module.parameters():
                assert p.grad is not None
                p -= rate * p.grad
        rule.stepped()  # type: ignore[attr-defined]


def test_owm_leaves_a_linear_layers_outputs_for_old_inputs_as_they_were() -> None:
    module = linear(6, 2)
    old, new = rows(20, 2, 1) @ rows(2, 6, 9), rows(20, 6, 2)  # the old inputs lie in a plane
    rule = OrthogonalModification(module, alpha=1e-9)
    step_along(rule, module, 0.1, old, rows(20, 2, 3), 20)
    rule.consolidate(old, old)
    before, new_before = module(old).detach(), module(new).detach()
    step_along(rule, module, 0.1, new, rows(20, 2, 4), 50)
    torch.testing.assert_close(module(old), before, atol=1e-6, rtol=0)
    assert (module(new) - new_before).abs().max() > 0.1


def test_owm_keeps_the_mean_of_all_tasks_inputs() -> None:
    module, parts = linear(4, 2), [rows(10, 4, seed) for seed in range(3)]
    rule = OrthogonalModification(module, alpha=1.0)
    for x in parts:
        rule.consolidate(x, x)
    mean = sum(with_one(x).T @ with_one(x) / 10 for x in parts) / 3
    torch.testing.assert_close(rule._moments[0], mean)
    torch.testing.assert_close(input_moments(module, parts[0])[0], with_one(parts[0]).T @ with_one(parts[0]) / 10)


def test_si_s_contributions_sum_to_the_fall_of_the_loss_on_a_quadratic() -> None:
    module, x, y = linear(4, 2), rows(30, 4, 1), rows(30, 2, 2)
    rule = SynapticIntelligence(module, strength=1.0)

    def loss() -> float:
        return float(0.5 * (module(x) - y).square().sum(1).mean().detach())

    before = loss()
    step_along(rule, module, 1e-3, x, y, 2000)
    counted = sum(float(total.sum()) for total in rule.contributions)
    assert counted == pytest.approx(before - loss(), rel=2e-3)
    moved = [end.detach() - start for end, start in zip(module.parameters(), rule._start, strict=True)]
    expected = [total.clamp(min=0) / (d.square() + 0.1) for total, d in zip(rule.contributions, moved, strict=True)]
    rule.consolidate(x, y)
    torch.testing.assert_close(rule.importance, expected)
    assert all(float(total.abs().sum()) == 0 for total in rule.contributions)


def test_si_s_penalty_is_no_part_of_what_the_path_counts() -> None:
    module, x, y = linear(3, 1), rows(20, 3, 1), rows(20, 1, 2)
    rule = SynapticIntelligence(module, strength=100.0)
    step_along(rule, module, 0.05, x, y, 50)
    rule.consolidate(x, y)
    before = float(0.5 * (module(x) - 1).square().mean().detach())
    step_along(rule, module, 1e-4, x, torch.ones(20, 1, dtype=x.dtype), 1000)
    fall = before - float(0.5 * (module(x) - 1).square().mean().detach())
    assert sum(float(total.sum()) for total in rule.contributions) == pytest.approx(fall, rel=2e-3)


def test_ncl_steps_along_directions_that_the_past_leaves_flat() -> None:
    module, old = linear(4, 2, torch.float32), torch.zeros(500, 4)
    old[:, 0] = 10  # the past has curvature in the first input and in the bias, and nowhere else
    rule = NaturalContinual(module, lambda net, x, y: factors(net, Gaussian(NOISE), x), strength=1.0)
    rule.consolidate(old, old)
    torch.autograd.backward((module(torch.ones(4, 4)) - 100).square().mean())
    before = Layer(module).gradient()
    rule.adjust(500)
    kept = (Layer(module).gradient() / before).abs()
    assert kept[:, 1:4].min() > 5 * kept[:, 0].max()


def test_ncl_rests_where_the_penalised_loss_does() -> None:
    """Lambda times its step, times the rows, is the penalised objective's gradient."""
    module, x, y = linear(4, 3, torch.float32), rows(50, 4, 1, torch.float32), rows(50, 3, 2, torch.float32)
    rule = NaturalContinual(module, lambda net, a, b: factors(net, Gaussian(NOISE), a), strength=1.0)
    rule.consolidate(x, y)
    with torch.no_grad():
        module.weight.add_(0.3)
    torch.autograd.backward(module(x).square().sum(1).mean())
    plain, pull = Layer(module).gradient(), rule.pull(0)
    rule.adjust(50)
    torch.testing.assert_close(
        50 * rule.products[0].times(Layer(module).gradient()), 50 * plain + pull, rtol=1e-3, atol=1e-2
    )


# -- what is compared --------------------------------------------------------------------------------------------------


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["KFAC-EWC", "Kronecker products at the mode", "OWM", "NCL", "SI"])
def test_every_neighbour_forgets_less_than_fine_tuning_at_one_of_its_cells(name: str) -> None:
    given = scenario("permuted-domain", patterns(), 5, [16], 0)
    plain = taught("plain", lambda net, _: _Nothing(net), 3e-3, "permuted-domain", given.tasks, given.model, 0)
    (neighbour,) = [each for each in neighbours("permuted-domain") if each.name == name]
    found = [cell.run("permuted-domain", given, 0) for cell in neighbour.cells]
    assert all(np.isfinite(each.loss) and len(each.accuracy) == 5 for each in found)
    assert max(each.mean for each in found) > plain.mean + 0.05


class _Nothing(SynapticIntelligence):
    """Fine-tuning: no strength at all."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module, 0.0)


@pytest.mark.campaign
def test_streamcl_forgets_less_than_fine_tuning() -> None:
    given = scenario("permuted-domain", patterns(), 5, [16], 0)
    kept, lost = (
        learned(Method("", posterior), "permuted-domain", given.tasks, given.model, 0) for posterior in ({}, {"scale": 0.0})
    )
    assert kept.mean > lost.mean + 0.05


def test_a_rule_starts_from_the_network_that_streamcl_starts_from() -> None:
    given = scenario("split-class", images(), 5, [16], 3)
    module, outputs = network(given.model, given.tasks, 3)
    rule = SynapticIntelligence(module, 0.0)
    before = [p.detach().clone() for p in module.parameters()]
    assert outputs == 10
    fit(rule, module, 1e-3, torch.from_numpy(given.tasks[0].x), torch.from_numpy(given.tasks[0].y), 1, torch.Generator())
    again, _ = network(given.model, given.tasks, 3)
    assert all(torch.equal(old, p) for old, p in zip(before, again.parameters(), strict=True))
    assert not any(torch.equal(old, p) for old, p in zip(before, module.parameters(), strict=True))


def test_scenarios_have_the_labels_that_their_names_promise() -> None:
    labels = {
        case: [sorted(set(task.y.tolist())) for task in scenario(case, images(), 3, [8], 0).tasks]
        for case in ("split-class", "split-domain", "split-task", "permuted-class", "permuted-domain")
    }
    assert labels["split-class"] == labels["split-task"] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert labels["split-domain"] == 5 * [[0, 1]]
    assert labels["permuted-domain"] == 3 * [list(range(10))]
    assert labels["permuted-class"] == [list(range(first, first + 10)) for first in (0, 10, 20)]
    assert scenario("permuted-class", images(), 3, [8], 0).model["classes"] == 30


@pytest.mark.parametrize("case", ["split-task", "permuted-task"])
def test_a_row_that_says_its_task_is_given_none_of_the_others_classes(case: Case) -> None:
    given = scenario(case, images(), 3, [8], 0)
    module, outputs = network(given.model, given.tasks, 0)
    assert len(factors(module, Categorical(outputs), torch.from_numpy(given.tasks[1].x))) == 2
    for task in given.tasks:
        probs = module(torch.from_numpy(task.test_x)).softmax(1)
        own = sorted(set(task.y.tolist()))
        torch.testing.assert_close(probs[:, own].sum(1), torch.ones(len(probs)))


def test_streamcl_learns_where_rows_say_their_task() -> None:
    given = scenario("split-task", images(), 5, [32], 0)
    found = learned(Method("", {}), "split-task", given.tasks[:3], given.model, 0)
    assert min(found.accuracy) > 0.9


@pytest.mark.campaign
def test_passes_are_one_after_another() -> None:
    given = scenario("revisits", images(100), 2, [16], 0)
    found = learned(Method("", {"mode": "factors"}), "revisits", given.tasks, given.model, 0, passes=3)
    assert len(found.passes) == 3
    assert found.passes[-1] == pytest.approx(found.mean, abs=1e-4)
    assert found.row()["passes"] == list(found.passes)


def test_the_best_cell_is_the_one_that_is_best_with_the_first_seed() -> None:
    never = lambda *given: pytest.fail("nothing is run")  # noqa: E731
    cells = tuple(Cell(f"c {place}", never, ((place, 3),)) for place in range(3))
    neighbour = Neighbour("SI", "own", cells)
    means = {0: (0.5, 0.8), 1: (0.6, 0.7), 2: (0.2, 0.9)}
    found = [
        Found(neighbour, cells[place], Result("split-class", "SI", seed, [mean], 0.0, 0.0))
        for place, each in means.items()
        for seed, mean in enumerate(each)
    ]
    assert [each.result.mean for each in best(found)["SI"]] == [0.6, 0.7]
    assert [cell.on_an_edge for cell in cells] == [True, False, True]
    assert not replace(cells[0], at=((0, 2),)).on_an_edge
    assert not replace(cells[0], at=((0, 1),)).on_an_edge


@pytest.mark.parametrize("case", NEIGHBOUR_CASES)
def test_every_case_of_the_command_line_is_one(case: Case) -> None:
    assert scenario(case, images(), 2, [8], 0).tasks
    assert {each.name for each in neighbours(case)} > {"fine-tuning", "joint training"}
    assert case in scenarios.Case.__args__  # type: ignore[attr-defined]


def test_the_command_prints_a_table_and_writes_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "IMPORTANCES", (1.0, 10.0, 100.0))
    out, data, made = tmp_path / "neighbours.json", tmp_path / "data.npz", patterns()
    x = (60 * made.train_x + 128).clip(0, 255).astype("uint8")
    np.savez(data, train_x=x, train_y=made.train_y, test_x=x, test_y=made.test_y)
    options = ["--data", str(data), "--case", "split-class", "--seeds", "0", "1", "--only", "SI", "--json", str(out)]
    assert main(["bench", "neighbours", *options]) == 0
    document = json.loads(out.read_text())
    rows = document["results"]
    assert len(rows) == 7  # three strengths, two rates; the best of them with the other seed
    assert [row["seed"] for row in rows if row["best"]] == [0, 1]
    assert len({row["setting"] for row in rows if row["best"]}) == 1
    assert {row["source"] for row in rows} == {bench.OWN}
    assert document["published"]["split-class"][0]["percent"] == [20.0]
    printed = capsys.readouterr().out
    assert ("on an edge" in printed) == any(row["edge"] for row in rows if row["best"])
    assert "*published:* SI" in printed
    assert table(document) in printed


def test_what_is_published_of_mnist_is_not_put_beside_the_digits() -> None:
    (neighbour,) = [each for each in neighbours("split-class") if each.name == "SI"]
    found = {"split-class": [Found(neighbour, neighbour.cells[0], Result("split-class", "SI", 0, [0.2], 0.0, 0.0))]}
    assert bench.document(found, {"data": "mnist.npz"})["published"]["split-class"]
    assert not bench.document(found, {"data": bench.DIGITS})["published"]["split-class"]


def test_one_rate_leaves_the_strengths_to_be_searched_for() -> None:
    cells = {each.name: len(each.cells) for each in neighbours("split-class", bench.ONE_RATE)}
    assert [cells[name] for name in ("KFAC-EWC", "OWM", "streamcl, nothing set")] == [4, 3, 1]
    assert all(cell.setting.endswith("0.003") for cell in neighbours("split-class", bench.ONE_RATE)[3].cells)


FIGURES = Path(__file__).parents[1] / "streamcl" / "bench" / "figures"


@pytest.mark.parametrize(
    "name", ["neighbours.json", "neighbours-mnist.json", "neighbours-permuted.json", "neighbours-revisits.json"]
)
def test_the_documentation_has_the_tables_of_the_figures(name: str) -> None:
    page = (FIGURES.parents[1] / "docs" / "benchmarks.md").read_text()
    assert table(json.loads((FIGURES / name).read_text())) in page


def test_own_factors_are_the_default_where_laplace_torch_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "laplace_version", lambda: None)
    (kron,) = [each for each in neighbours("split-class") if each.name == "Kronecker products at the mode"]
    assert kron.source == bench.OWN
    x = rows(5, 4, 1)
    (found,) = own_factors(Gaussian(NOISE))(linear(4, 3), x, x)
    torch.testing.assert_close(dense(found), dense(factors(linear(4, 3), Gaussian(NOISE), x)[0]))
