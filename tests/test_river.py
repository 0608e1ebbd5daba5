"""The River estimators: its own checks, pipelines, progressive validation, and one task after another."""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from river import checks, datasets, evaluate, metrics, preprocessing, stats

from streamcl import Refused
from streamcl.learning.evaluation import Mean
from streamcl.river import Classifier, Regressor

MODELS = {
    "classifier": Classifier(task_rows=100, hidden=(8,), epochs=1),
    "regressor": Regressor(task_rows=100, hidden=(8,), epochs=1),
}


def every_check() -> list[Any]:
    found, seen = [], set()
    for name, model in MODELS.items():
        for number, check in enumerate(checks.yield_checks(model)):
            skipped = check.__name__ in model._unit_test_skips()
            reason = "a batch is one step on all of its rows, and n rows are n steps"
            marks = [pytest.mark.skip(reason=reason)] if skipped else []
            if check.__name__ == "check_bounded_memory_growth" and (name, check.__name__) in seen:
                marks.append(pytest.mark.slow)  # of another dataset; each takes seconds
            seen.add((name, check.__name__))
            found.append(pytest.param(name, check, id=f"{name}-{check.__name__}-{number}", marks=marks))
    return found


@pytest.mark.campaign
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
    assert [task["samples"] for task in model.learner_.tasks()] == [30]
    with pytest.raises(Refused, match="task_closed"):
        model.end_task("task-1")
    assert model.end_task("by hand")["samples"] == 10
    assert [task["task"] for task in model.learner_.tasks()] == ["task-1", "by hand"]
    with pytest.raises(Refused, match="unknown_task"):
        model.end_task()
    for x, y in rows[40:]:
        model.learn_one(x, y)
    assert model.learner_.open_task == "task-3"


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
    for label in (True, np.bool_(False)):
        model.learn_one({"a": 1.0}, label)
    with pytest.raises(ValueError, match=r"'a': expected a number, got 'red'.*kinds={'a': 'category'}"):
        model.learn_one({"a": "red"}, 0)
    with pytest.raises(ValueError, match=r"'a': expected a number, got None.*kinds={'a': 'number'}"):
        model.predict_one({"a": None})
    with pytest.raises(ValueError, match="at most 2 labels"):
        model.learn_one({"a": 1.0}, "third")
    with pytest.raises(ValueError, match="task_rows"):
        Classifier(task_rows=0)


def _row(rng: np.random.Generator, number: int) -> tuple[dict[str, object], str]:
    """Words, a number of another size, a date, and cells that are empty now and then."""
    colour = str(rng.choice(["red", "green", "blue"]))
    row: dict[str, object] = {"colour": colour, "size": rng.normal(400, 30), "day": datetime.date(2026, 1, 1 + number % 28)}
    if number % 5 == 4:
        row.pop("size")
    if number % 7 == 6:
        row |= {"day": None, "size": float("nan")}
    return row, "hot" if colour == "red" else "cold"


def test_rows_with_words_dates_and_empty_cells_are_learned_as_they_are() -> None:
    rng, model = np.random.default_rng(0), Classifier()
    right = []
    for number in range(150):
        row, label = _row(rng, number)
        right.append(model.predict_one(row) == label)
        model.learn_one(row, label)
    assert sum(right[75:]) >= 70
    assert [*model.learner_._session.columns.kinds][:2] == ["colour", "day.days"]  # type: ignore[union-attr]
    one, other = (_row(rng, 0)[0] | {"colour": "red"}), {"colour": "red"}
    assert model.predict_proba_one(dict(reversed(one.items()))) == model.predict_proba_one(one)
    model.predict_one(other)  # all that it lacks is missing
    model.learn_one(one | {"colour": "violet"}, "cold")  # a category that comes new
    with pytest.raises(ValueError, match="'size': expected a number, as in the first row, got 'large'"):
        model.learn_one(one | {"size": "large"}, "hot")
    with pytest.raises(ValueError, match="'day': expected a date, as in the first row, got 3"):
        model.learn_one(one | {"day": 3}, "hot")


def test_kinds_say_what_the_first_row_does_not() -> None:
    model = Regressor(kinds={"zip": "category"})
    for number in range(60):
        code = int(number % 3)
        row = {"zip": [10115, 80331, 20095][code], "x": number / 60 if number % 4 else None}
        model.learn_one(row, [1.0, 20.0, -7.0][code])
    model.end_task()
    found = [model.predict_one({"zip": code, "x": 0.5}) for code in (10115, 80331, 20095)]
    assert found[2] < found[0] < found[1]
    with pytest.raises(ValueError, match="kinds: expected features of the first row, \\['a'\\], got \\['b'\\]"):
        Regressor(kinds={"b": "category"}).learn_one({"a": 1.0}, 1.0)
    with pytest.raises(ValueError, match="kinds: expected number or category for each, got 'a': 'words'"):
        Regressor(kinds={"a": "words"})  # type: ignore[dict-item]


def test_the_prequential_mean_is_rivers_to_the_bit_before_and_after_a_restart() -> None:
    rng = np.random.default_rng(0)
    ours, theirs = Mean(), stats.Mean()
    for value, rows in zip((10 ** rng.normal(size=500)).tolist(), rng.integers(1, 5000, 500).tolist(), strict=True):
        ours.add(value, rows)
        theirs.update(value, w=rows)
        ours, theirs = Mean(ours.weight, ours.value), stats.Mean._from_state(theirs.n, theirs.get())
        assert [ours.weight, ours.value] == [theirs.n, theirs.get()]
