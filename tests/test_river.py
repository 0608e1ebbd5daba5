"""The River estimators: its own checks, pipelines, progressive validation, and one task after another."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from river import checks, datasets, evaluate, metrics, preprocessing

from streamcl import Refused
from streamcl.river import Classifier, Regressor

MODELS = {
    "classifier": Classifier(task_rows=100, hidden=(8,), epochs=1),
    "regressor": Regressor(task_rows=100, hidden=(8,), epochs=1),
}


def every_check() -> list[Any]:
    found = []
    for name, model in MODELS.items():
        for number, check in enumerate(checks.yield_checks(model)):
            skipped = check.__name__ in model._unit_test_skips()
            reason = "a batch is one step on all of its rows, and n rows are n steps"
            marks = [pytest.mark.skip(reason=reason)] if skipped else []
            found.append(pytest.param(name, check, id=f"{name}-{check.__name__}-{number}", marks=marks))
    return found


@pytest.mark.parametrize(("name", "check"), every_check())
def test_it_keeps_to_rivers_conventions(name: str, check: Callable[[Any], None]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # features that come and go
        check(MODELS[name].clone())


def test_it_works_in_a_pipeline_under_progressive_validation() -> None:
    model = preprocessing.StandardScaler() | Classifier(classes=7, hidden=(32,), learning_rate=0.01, task_rows=200)
    assert evaluate.progressive_val_score(datasets.ImageSegments().take(600), model, metrics.Accuracy()).get() > 0.6
    target = preprocessing.TargetStandardScaler(Regressor(learning_rate=0.01))
    regressor = preprocessing.StandardScaler() | target
    assert evaluate.progressive_val_score(datasets.TrumpApproval().take(300), regressor, metrics.MAE()).get() < 5


def test_tasks_end_when_told_and_by_themselves() -> None:
    model = Classifier(task_rows=30, hidden=(4,))
    rows = [({"a": float(i % 3), "b": 1.0}, i % 3) for i in range(50)]
    for x, y in rows[:40]:
        model.learn_one(x, y)
    assert [task["samples"] for task in model.learner.tasks()] == [30]
    with pytest.raises(Refused, match="task_closed"):
        model.end_task("task-1")
    assert model.end_task("by hand")["samples"] == 10
    assert [task["task"] for task in model.learner.tasks()] == ["task-1", "by hand"]
    with pytest.raises(Refused, match="unknown_task"):
        model.end_task()
    for x, y in rows[40:]:
        model.learn_one(x, y)
    assert model.learner.open_task == "task-3"


def test_features_that_come_later_are_left_out_and_said_once() -> None:
    model = Classifier()
    model.learn_one({"a": 1.0}, "x")
    with pytest.warns(RuntimeWarning, match="features b came after the first row"):
        model.learn_one({"a": 1.0, "b": 5.0}, "y")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn_one({"b": 5.0}, "y")
    assert model.predict_proba_one({"a": 1.0, "b": 9.0}) == model.predict_proba_one({"a": 1.0})
    assert set(model.predict_proba_one({"a": 1.0})) == {"x", "y"}


def test_what_is_no_number_and_one_label_too_many_are_refused_in_words() -> None:
    model = Classifier(classes=2)
    with pytest.raises(ValueError, match="'a': expected a number, got 'red'"):
        model.learn_one({"a": "red"}, 0)
    for label in (True, np.bool_(False)):
        model.learn_one({"a": 1.0}, label)
    with pytest.raises(ValueError, match="at most 2 labels"):
        model.learn_one({"a": 1.0}, "third")
    with pytest.raises(ValueError, match="task_rows"):
        Classifier(task_rows=0)
