"""`streamcl plan` and `status` say how each parameter's precision is kept, and what a checkpoint of it takes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamcl import config
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.estimator import Learner
from streamcl.learning.exact_plan import exact_plan
from streamcl.learning.plan import Kept, noise, plan, summary

ROWS, LABELS = np.random.default_rng(0).normal(size=(40, 5)).astype("float32"), np.arange(40) % 3


class Many(nn.Module):
    """One layer of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv1d(2, 4, 3, groups=2)
        self.full = nn.Conv1d(4, 8, 3)
        self.norm = nn.LayerNorm(8)
        self.wide = nn.Linear(8, 40)
        self.head = nn.Linear(40, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.full(self.grouped(x).relu()).relu().mean(2)
        output: Tensor = self.head(self.wide(self.norm(x)).relu())
        return output


class Tokens(nn.Module):
    """A table of more rows than a side may have, and one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(5000, 6)
        self.head = nn.Linear(6, 60)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.head(self.table(x).mean(1))
        return output


def planned(tree: dict[str, Any], shape: tuple[int, ...], factory: Any = None, integers: bool = False) -> dict[str, Kept]:
    settings = config.from_tree(tree)
    found = plan(settings, *noise(shape, integers, settings), 100, factory)
    return {each.names[0]: each for each in found.kept}


def test_every_layer_is_told_with_how_it_is_kept_and_why() -> None:
    found = planned({"model": {"classes": 3}}, (2, 16), Many)
    told = {name: (each.treatment, each.parameters) for name, each in found.items()}
    assert told == {
        "grouped.weight": ("own coordinates", 12),
        "grouped.bias": ("own coordinates", 4),
        "full.weight": ("full block", 104),
        "norm.weight": ("own coordinates", 8),
        "norm.bias": ("own coordinates", 8),
        "wide.weight": ("turned on both sides", 360),
        "head.weight": ("full block", 123),
    }
    assert "grouped" in found["grouped.weight"].why
    assert "scale" in found["norm.weight"].why
    assert "256" in found["head.weight"].why


def test_a_table_is_turned_on_the_side_of_its_features_only() -> None:
    found = planned({"model": {"classes": 60}}, (4,), Tokens, integers=True)
    assert (found["table.weight"].treatment, found["table.weight"].numbers) == ("turned on one side", 6 * 6 + 6)


def test_of_a_wide_side_the_leading_eigenvectors_are_kept() -> None:
    (layer,) = planned({"model": {"factory": "streamcl.models:linear", "classes": 10}}, (4096,)).values()
    numbers = 10 * 10 + 10 + 16 * 4097 + 16 + 1 + 16 * (4097 + 16)
    assert (layer.treatment, layer.numbers) == ("turned on both sides", numbers)
    assert "leading 16 of 4097 inputs" in layer.why


@pytest.mark.parametrize(
    ("curvature", "expected"),
    [("diagonal", {"own coordinates"}), ("kronecker", {"turned on both sides"}), ("full", {"full block"})],
)
def test_the_plan_follows_the_setting(curvature: str, expected: set[str]) -> None:
    tree = {"model": {"classes": 3, "factory": "streamcl.models:linear"}, "posterior": {"curvature": curvature}}
    assert {each.treatment for each in planned(tree, (5,)).values()} == expected


@pytest.mark.parametrize(
    ("curvature", "width"), [("auto", 20), ("auto", 200), ("diagonal", 20), ("kronecker", 20), ("full", 20)]
)
def test_the_memory_planned_is_the_memory_taken(curvature: str, width: int) -> None:
    tree: dict[str, Any] = {"model": {"classes": 3, "args": {"hidden": [width]}}, "posterior": {"curvature": curvature}}
    learner = Learner(tree)
    learner.observe(ROWS, LABELS, task="a")
    learner.boundary("a")
    model = learner._learner.model
    assert model is not None
    total = model.posterior.total
    numbers = [
        array for array in (*total.precision.state().values(), total.shift, total.optimum) if array.dtype == torch.float64
    ]
    settings = config.from_tree(tree)
    found = plan(settings, ROWS, LABELS, 40)
    assert found.memory.posterior == sum(array.nbytes for array in numbers)


def test_a_step_costs_what_turning_takes() -> None:
    settings = config.from_tree({"model": {"classes": 3, "args": {"hidden": [300]}}})
    planned = plan(settings, *noise((200,), False, settings), 1000)
    turned = planned.cost
    assert "leading 32 of 300 outputs" in planned.kept[0].why
    flat = config.from_tree({"model": {"classes": 3, "args": {"hidden": [300]}}, "posterior": {"curvature": "diagonal"}})
    assert plan(flat, *noise((200,), False, flat), 1000).cost.step == 1.0
    plain = 64 * (4 * 200 * 300 + 6 * 300 * 3)  # the first layer's inputs have no gradient
    first = 4 * 64 * 2 * 32 * 300  # its outputs lead, and its inputs are turned once a task
    extra = first + 4 * (301 * 3**2 + 3 * 2 * 32 * 301)
    assert turned.step == pytest.approx(1 + extra / plain, rel=0.01)


def test_the_command_prints_it_and_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=ROWS, y=LABELS)
    assert main(["plan", "--rows", str(path), "--model.classes", "3"]) == 0
    printed = capsys.readouterr().out
    assert "turned on both sides" in printed
    assert "times a plain one" in printed
    assert main(["plan", "--input-shape", "5", "--model.classes", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["parameters"] == sum(layer["parameters"] for layer in document["layers"])
    assert document["memory"]["posterior_bytes"] > 8 * 2 * document["parameters"]


def test_what_is_missing_or_wrong_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan"]) == 2
    assert "--rows FILE or --input-shape" in capsys.readouterr().err
    assert main(["plan", "--input-shape", "5", "--samples", "0"]) == 2
    assert main(["plan", "--input-shape", "5", "--model.factory", "streamcl.models:convnet"]) == 1
    assert "convnet: expected rows" in capsys.readouterr().err


def test_a_state_directory_s_curvature_holds_and_its_rows_are_known(
    start: Callable[..., LocalDaemon], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start({"model": {"classes": 3}, "posterior": {"curvature": "diagonal"}, "train": {"epochs": 1}})
    with daemon.producer() as producer:
        producer.send(ROWS, LABELS, "a")
        producer.boundary("a")
    assert main(["plan", "--state-dir", str(daemon.state_dir), "--model.classes", "3", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["curvature"] == "diagonal"
    assert document["layers"][0]["columns"] == 5
    with daemon.admin() as admin:
        assert admin.status()["curvature"]["own_coordinates"]["parameters"] == document["parameters"]


def test_a_summary_names_some_and_counts_all() -> None:
    found = [Kept((f"layer{n}.weight",), 3, 4, "turned on both sides", "") for n in range(30)]
    told = summary(found)["turned"]
    assert (told["parameters"], len(told["names"]), told["names"][-1]) == (360, 21, "and 10 more")
    assert summary(None)["settled"] is False


def test_status_says_what_is_turned_once_a_task_has_settled_it(
    start: Callable[..., LocalDaemon], capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start({"model": {"classes": 3, "args": {"hidden": [60]}}, "train": {"epochs": 1}})
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(ROWS, LABELS, "a")
        producer.boundary("a")
        told = admin.status()["curvature"]
    assert told["settled"]
    assert told["turned"] == {"parameters": 360, "names": ["1.weight", "1.bias"]}
    assert told["full_blocks"] == {"parameters": 183, "names": ["3.weight", "3.bias"]}
    assert main(["status", "--state-dir", str(daemon.state_dir)]) == 0
    assert "360 parameters: 1.weight, 1.bias" in capsys.readouterr().out


def test_planning_changes_no_global_random_numbers() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    planned({"model": {"classes": 3}}, (5,))
    assert torch.equal(torch.get_rng_state(), before)


# -- exact learners --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("likelihood", "factory"), [("categorical", "random_features"), ("gaussian", "identity")])
def test_the_memory_planned_of_sums_is_the_memory_taken(likelihood: str, factory: str) -> None:
    tree = {"model": {"learner": "exact", "likelihood": likelihood, "factory": f"streamcl.models:{factory}"}}
    y = LABELS if likelihood == "categorical" else np.stack([ROWS[:, 0], ROWS[:, 1]], 1)
    learner = Learner({**tree, "posterior": {"mode": "factors"}})
    learner.observe(ROWS, y, task="a", boundary=True)
    model = learner._learner.model
    assert model is not None
    kept = sum(array.nbytes for array in model.posterior_state().values() if array.dtype == np.float64)
    (factor,) = learner._memory.factors.values()
    found = exact_plan(config.from_tree(tree), ROWS, y)
    assert found.features == model.network.width
    assert found.posterior_bytes == kept
    assert found.factor_bytes == sum(array.nbytes for array in factor.values() if array.dtype == np.float64)


def test_the_command_plans_an_exact_learner(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, x=ROWS, y=LABELS)
    assert main(["plan", "--rows", str(path), "--model.learner", "exact"]) == 0
    assert "nothing is trained" in capsys.readouterr().out
    assert main(["plan", "--input-shape", "5", "--model.learner", "exact", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["learner"] == "exact"
    assert document["row_operations"] == 2 * document["features"] ** 2
