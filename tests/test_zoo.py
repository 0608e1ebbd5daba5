"""The zoo: whatever people write is learned correctly or refused with a reason; and breakage on purpose is noticed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamcl.bench.zoo.architectures import REFUSED, ZOO
from streamcl.bench.zoo.bench import KINDS, TOLERANCES, Run, outcome, outcomes_of, table
from streamcl.cli import main
from streamcl.core import provenance
from streamcl.core.closed_forms import Dense, Site

pytestmark = pytest.mark.campaign

FIGURES = Path(__file__).parents[1] / "streamcl" / "bench" / "figures" / "zoo.json"
WORDS_OF_A_REMEDY = ("look for ", "use ", "Use ", "call ", "expected ", "make ", "let ")


@pytest.mark.parametrize("name", ZOO)
def test_there_is_no_third_outcome(name: str) -> None:
    outcomes = [each for each in outcomes_of(name) if each.architecture == name]
    assert len(outcomes) == len(KINDS) * len(TOLERANCES)
    assert {each.outcome for each in outcomes} == {"refused" if name in REFUSED else "learned"}, outcomes
    if name in REFUSED:
        assert all(any(word in (each.words or "") for word in WORDS_OF_A_REMEDY) for each in outcomes)


def test_the_zoo_is_large_and_its_figures_are_of_these_architectures() -> None:
    document = json.loads(FIGURES.read_text())
    assert len(ZOO) >= 50
    assert {each["architecture"] for each in document["outcomes"]} == set(ZOO)
    assert {each["outcome"] for each in document["outcomes"]} == {"learned", "refused"}
    page = (FIGURES.parents[2] / "docs" / "benchmarks.md").read_text()
    assert table(document["outcomes"]) in page


def test_the_command_prints_a_line_for_each_and_ends_with_the_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "zoo", "--only", "highway", "--json", str(tmp_path / "zoo.json")]) == 0
    printed = capsys.readouterr().out
    assert "highway" in printed
    assert "0 with a third outcome" in printed
    assert len(json.loads((tmp_path / "zoo.json").read_text())["outcomes"]) == 6


# -- broken on purpose -------------------------------------------------------------------------------------------------


def wrong_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """A closed form that squares the first three rows as it should, which the plan is made on, and more of them not."""
    right = Dense.add

    def wrong(site: Dense, gradient: Tensor, sums: dict[str, Tensor]) -> None:
        right(site, gradient * (1 if len(gradient) <= 3 else 1.1), sums)

    monkeypatch.setattr(Dense, "add", wrong)


def test_a_closed_form_that_is_wrong_is_noticed_by_the_zoo(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_for_many(monkeypatch)
    monkeypatch.setattr("streamcl.core.fisher.Fisher.verified", lambda _: True)
    found = outcome("mlp", "float64", "exact")
    assert found.outcome == "wrong"
    assert found.error == pytest.approx(0.21, abs=0.01)


def test_a_closed_form_that_is_wrong_is_noticed_at_the_end_of_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong_for_many(monkeypatch)
    run = Run("mlp", "float64", "exact")
    assert run.boundary_error() < 1e-10
    assert "taken again row by row" in str(run.learner.warning)


def test_rows_taken_for_others_are_noticed_at_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the check of numbers, a block that is laid out in another way than the first rows comes out wrong."""
    monkeypatch.setattr("streamcl.core.company._agree", lambda *_: True)
    monkeypatch.setattr("streamcl.core.fisher.Fisher.verified", lambda _: True)
    assert outcome("laid_out_by_size", "float64", "exact").outcome == "wrong"


def test_the_check_at_the_end_has_the_whole_task_taken_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamcl.core.company._agree", lambda *_: True)
    run = Run("laid_out_by_size", "float64", "exact")
    assert run.boundary_error() < 1e-10
    assert "taken again row by row" in str(run.learner.warning)


def test_a_proof_that_let_everything_pass_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.Rows, "apart", lambda *_: True)
    monkeypatch.setattr("streamcl.core.fisher.Fisher.verified", lambda _: True)
    assert outcome("laid_out_by_size", "float64", "exact").outcome == "wrong"


def test_a_site_knows_the_moments_of_what_it_squares() -> None:
    """``sum_n w_n g_n`` of a form is the plain gradient of the weighted sum, wherever the samples are."""
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(3, 2).double(), torch.randn(5, 4, 3, dtype=torch.float64)
    output = layer(x.transpose(0, 1))
    site: Site = Dense(("weight", "bias"), output, x.transpose(0, 1))
    (layout,) = [each for each in site.layouts(5) if each.axis == 1 and not each.inner]
    site = site.at(("weight", "bias"), layout, 5)
    weights, gradient = torch.randn(5, dtype=torch.float64), torch.randn(output.shape, dtype=torch.float64)
    moments: dict[str, Any] = {"weight": torch.zeros(2, 3).double(), "bias": torch.zeros(2).double()}
    site.prepare()
    site.mix(gradient, weights)
    site.moments(moments)
    expected = torch.autograd.grad((output * gradient * weights[:, None]).sum(), [layer.weight, layer.bias])
    torch.testing.assert_close(list(moments.values()), list(expected))
