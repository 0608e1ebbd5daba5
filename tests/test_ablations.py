"""The bench of ablations leaves out what it says, and writes its figures."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from streamcl.bench import ablations, demo, revisit, sensitivity
from streamcl.bench.ablations import METHODS, measure, mlp, tasks_of
from streamcl.bench.permuted import Images
from streamcl.bench.permuted_mnist import Settings
from streamcl.cli import main
from streamcl.core.likelihood import Categorical
from streamcl.core.measures import SquaresIn
from streamcl.learning import curvature
from streamcl.learning.coordinates import Coordinates
from streamcl.learning.curvature import TaskCurvature

BY_NAME = {method.name: method for method in METHODS}


def images(rows: int = 80) -> Images:
    """Rows whose largest pixel is their label."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 10, rows)
    x = (3 * np.eye(12)[y] + rng.normal(size=(rows, 12)) / 4).astype("float32")
    return Images(x, y, x, y)


def test_tasks_have_two_classes_or_their_own_permutation() -> None:
    pairs = tasks_of("classes", images(), 5, 0)
    assert [sorted(set(task.y.tolist())) for task in pairs] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    sites = tasks_of("sites", images(), 3, 0)
    assert len({task.x.tobytes() for task in sites}) == 3
    assert {task.y.tobytes() for task in sites} == {images().train_y.tobytes()}


@pytest.fixture
def used() -> Iterator[dict[str, bool]]:
    """Which parts were at work: Adam's coordinates, the bound, the basis, the average."""
    found = dict.fromkeys(("coordinates", "bound", "basis", "average"), False)
    cotangents, squares, averaged = Categorical.cotangents, SquaresIn.precision, TaskCurvature._averaged

    def noted(name, function, when=lambda *given: True):  # type: ignore[no-untyped-def]
        def called(*given, **named):  # type: ignore[no-untyped-def]
            found[name] = found[name] or when(*given)
            return function(*given, **named)

        return called

    with (
        patch.object(Coordinates, "__init__", noted("coordinates", Coordinates.__init__)),
        patch.object(Categorical, "cotangents", noted("bound", cotangents, lambda self, *_: self.bounded)),
        patch.object(SquaresIn, "precision", noted("basis", squares)),
        patch.object(TaskCurvature, "_averaged", noted("average", averaged)),
    ):
        yield found


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("all parts (the defaults)", set()),
        ("without the basis", {"basis", "coordinates"}),
        ("without the average: at the mode", {"average", "bound"}),
        ("without Adam in the basis", {"coordinates"}),
        ("without the bound on absent classes", {"bound"}),
        ("the note's diagonal at the mode, scale 1", {"basis", "coordinates", "average", "bound"}),
    ],
)
def test_a_method_leaves_out_what_its_name_says(used: dict[str, bool], name: str, left_out: set[str]) -> None:
    measure(BY_NAME[name], "classes", tasks_of("classes", images(), 5, 0)[:2], mlp([20]), 0)
    assert {part for part, seen in used.items() if not seen} == left_out


def test_no_benchmark_has_a_scale_found_by_hand() -> None:
    """The defaults have none, fine-tuning has 0, and what needs one is shown at several decades."""
    posteriors = [method.posterior for method in (*METHODS, *revisit.methods(1, 5))] + [
        method for _, method in demo.METHODS
    ]
    scales: dict[bool, set[float]] = {True: set(), False: set()}
    for posterior in posteriors:
        scales[posterior.get("expectation") == "mode" and posterior.get("curvature") == "diagonal"].add(
            posterior.get("scale", 1)
        )
    assert scales == {True: {1, 10, 100}, False: {0, 1}}
    assert Settings().configuration(0, {})["train"] == {"epochs": "auto", "seed": 0}


def test_joint_training_has_all_rows_at_once() -> None:
    result = measure(BY_NAME["joint training"], "classes", tasks_of("classes", images(300), 5, 0), mlp([20]), 0)
    assert result.mean > 0.9


@pytest.mark.campaign
def test_the_command_prints_a_table_and_writes_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "digits", images)
    out = tmp_path / "ablations.json"
    options = ["--case", "sites", "--tasks", "2", "--seeds", "0", "1", "--only", "all parts", "--json", str(out)]
    assert main(["bench", "ablations", *options]) == 0
    document = json.loads(out.read_text())
    assert [(row["case"], row["seed"], len(row["accuracy"])) for row in document["results"]] == [
        ("sites", n, 2) for n in (0, 1)
    ]
    assert "all parts (the defaults)" in capsys.readouterr().out


@pytest.mark.campaign
def test_what_a_setting_gains_is_told_beside_the_defaults(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ablations, "digits", images)
    out = tmp_path / "sensitivity.json"
    options = ["--case", "classes", "--only", "scale", "--json", str(out)]
    assert main(["bench", "sensitivity", *options]) == 0
    assert "the most that a setting gains over the defaults is" in capsys.readouterr().out
    document = json.loads(out.read_text())
    assert document["benchmark"] == "sensitivity"
    expected = ["the defaults", *(f"posterior.scale {scale:g}" for scale in sensitivity.SCALES)]
    assert [row["method"] for row in document["results"]] == expected


@pytest.mark.campaign
def test_a_setting_changes_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, tuple[float, ...]] = {}
    taking = TaskCurvature._averaged

    def noted(self: TaskCurvature, *given: object) -> object:
        settings = self._settings
        seen[name] = (settings.scale, settings.prior_precision, self._rate, *curvature.ROUNDS)
        return taking(self, *given)  # type: ignore[arg-type]

    monkeypatch.setattr(TaskCurvature, "_averaged", noted)
    tasks = tasks_of("classes", images(40), 5, 0)[:1]
    for method in sensitivity.METHODS:
        name = method.name
        measure(method, "classes", tasks, mlp([8]), 0)
    assert len(set(seen.values())) == len(sensitivity.METHODS)
    assert seen["24 rounds of draws"][3:] == (24, 24)
