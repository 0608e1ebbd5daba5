"""Exact learners in process: `Learner`, the estimators for scikit-learn and River, and what a stream leaves in memory."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from river import checks, datasets, evaluate, metrics
from sklearn.datasets import load_diabetes, load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import BayesianRidge, Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from streamcl import Learner, gauge, river
from streamcl import sklearn as ours

X, Y = load_digits(return_X_y=True)
IDENTITY = {"model": {"factory": "streamcl.models:identity"}}


def exact(likelihood: str, mode: str = "single", **model: Any) -> Learner:
    tree = {"learner": "exact", "likelihood": likelihood, "factory": "streamcl.models:identity", **model}
    return Learner({"model": tree, "train": {"dtype": "float64"}, "posterior": {"mode": mode}})


# -- scikit-learn ----------------------------------------------------------------------------------------------------------


@pytest.mark.campaign
@parametrize_with_checks([ours.Classifier(learner="exact"), ours.Regressor(learner="exact")])
def test_scikit_learns_own_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_a_regressor_on_the_rows_themselves_is_bayesian_ridge_whatever_the_parts() -> None:
    x, y = load_diabetes(return_X_y=True)
    model = ours.Regressor(learner="exact", config=IDENTITY)
    for part in np.array_split(np.arange(len(x)), 3):
        model.partial_fit(x[part], y[part])
        model.end_task()
    theirs = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-12, max_iter=10_000).fit(x, y)
    np.testing.assert_allclose(model.predict(x), theirs.predict(x), rtol=1e-6)
    given = ours.Regressor(
        learner="exact", prior_precision=2.0, config={"model": {**IDENTITY["model"], "noise_variance": 0.5}}
    )
    np.testing.assert_allclose(given.fit(x, y).predict(x), Ridge(alpha=1.0).fit(x, y).predict(x), rtol=1e-8)


def test_a_classifier_takes_one_class_after_another_and_is_discriminant_analysis() -> None:
    x, y = X[:, X.std(0) > 1], Y
    model = ours.Classifier(learner="exact", prior_precision=1e-9, config=IDENTITY)
    for label in range(10):
        model.partial_fit(x[y == label], y[y == label], classes=np.arange(10))
        model.end_task(f"digit-{label}")
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(x, y)
    np.testing.assert_allclose(model.predict_proba(x), theirs.predict_proba(x), atol=1e-7)
    assert [task["task"] for task in model.learner_.tasks()] == [f"digit-{label}" for label in range(10)]


@pytest.mark.parametrize("name", ["hidden", "epochs", "batch_size", "learning_rate"])
def test_what_says_nothing_to_an_exact_learner_is_refused(name: str) -> None:
    value: Any = (8,) if name == "hidden" else 3
    with pytest.raises(ValueError, match=f"{name}: no effect with learner='exact'"):
        ours.Classifier(learner="exact", **{name: value}).fit(X[:50], Y[:50])
    with pytest.raises(ValueError, match="expected network or exact, got 'ridge'"):
        ours.Regressor(learner="ridge").fit(X[:50], Y[:50])


# -- River -----------------------------------------------------------------------------------------------------------------

NARROW: dict[str, Any] = {"model": {"args": {"width": 20}}}  # at more, the sums' full size is taken for a growth
ESTIMATORS = {
    "classifier": river.Classifier(learner="exact", config=NARROW),
    "regressor": river.Regressor(learner="exact", config=NARROW),
}
CHECKS = [
    pytest.param(name, check, id=f"{name}-{check.__name__}-{number}")
    for name, model in ESTIMATORS.items()
    for number, check in enumerate(checks.yield_checks(model))
    if check.__name__ not in model._unit_test_skips()
]


@pytest.mark.campaign
@pytest.mark.parametrize(("name", "check"), CHECKS)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_rivers_own_checks(name: str, check: Any) -> None:
    check(ESTIMATORS[name].clone())


@pytest.mark.campaign
def test_river_needs_no_scaler_and_no_number_of_labels() -> None:
    found = evaluate.progressive_val_score(
        datasets.ImageSegments().take(600), river.Classifier(learner="exact"), metrics.Accuracy()
    )
    assert found.get() > 0.8
    model = river.Classifier(learner="exact", classes=2)
    for number in range(60):
        model.learn_one({"a": float(number % 20), "b": 1.0}, number % 20)
    assert set(model.predict_proba_one({"a": 3.0, "b": 1.0})) == set(range(20))


# -- Learner ---------------------------------------------------------------------------------------------------------------


def test_copies_and_files_go_on_as_the_learner_itself(tmp_path: Path) -> None:
    learner = Learner({"model": {"learner": "exact", "args": {"width": 60}}, "posterior": {"mode": "factors"}})
    for part in range(3):
        learner.observe(X[part * 200 : part * 200 + 200], Y[part * 200 : part * 200 + 200], task=f"part-{part // 2}")
        if part == 1:
            learner.boundary("part-0")
    learner.save(tmp_path / "saved")
    others = [Learner.load(tmp_path / "saved"), copy.deepcopy(learner)]
    for each in (learner, *others):
        each.observe(X[600:900], Y[600:900], task="part-1")
        each.boundary("part-1")
        each.forget("part-0")
    for other in others:
        np.testing.assert_array_equal(other.predict(X).probs, learner.predict(X).probs)
        np.testing.assert_array_equal(other.predict(X, uncertainty=True).probs, learner.predict(X, uncertainty=True).probs)


def test_what_an_open_task_would_cost_the_others_is_their_own_loss() -> None:
    rng = np.random.default_rng(0)
    learner = exact("gaussian")
    data = [(x := rng.normal(size=(80, 3)), x @ rng.normal(size=3) + rng.normal(size=80)) for _ in range(2)]

    def loss() -> float:
        found = learner.predict(data[0][0])
        squares = (data[0][1] - found.mean) ** 2
        return float((0.5 * np.log(2 * np.pi * found.variance) + squares / (2 * found.variance)).mean())

    learner.observe(*data[0], task="a")
    learner.boundary("a")
    learned = loss()
    assert learner.past()["rise"] == 0
    learner.observe(*data[1], task="b")
    assert learner.past()["rise"] == pytest.approx(loss() - learned, rel=1e-9)
    assert learner.past()["rise"] > 0.01
    before = learner.past()["rise"]
    learner.boundary("b")
    assert learner.past()["rise"] == pytest.approx(before / 2, rel=1e-9)  # over the rows of both


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_an_open_task_costs_the_others_what_its_boundary_says(likelihood: str) -> None:
    rng = np.random.default_rng(0)
    learner = exact(likelihood)
    for task in ("a", "b"):
        x = rng.normal(size=(80, 3))
        y = x @ rng.normal(size=3) > 0
        learner.observe(x, y.astype("<i8" if likelihood == "categorical" else "<f8"), task=task)
        if task == "b":
            before = learner.past()["rise"]
        learner.boundary(task)
    assert before > 0.01
    assert learner.past()["rise"] == pytest.approx(before / 2, rel=1e-9)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
@pytest.mark.parametrize("mode", ["single", "factors"])
def test_tasks_at_odds_are_at_chance_and_the_remedy_is_no_revisit(likelihood: str, mode: str) -> None:
    rng = np.random.default_rng(0)
    learner, x = exact(likelihood, mode=mode), rng.normal(size=(300, 3))
    y = (x[:, 0] > 0).astype("<i8" if likelihood == "categorical" else "<f8")
    learner.observe(x, y, task="a")
    learner.boundary("a")
    assert learner.past()["at_chance"] is not True
    learner.observe(x, 1 - y, task="b")
    learner.boundary("b")
    assert learner.past()["at_chance"] is True
    at_chance = [task["at_chance"] for task in learner.tasks()]
    assert at_chance == ([True, True] if mode == "factors" else [None, True])
    found = gauge.Past(tasks=2, samples=600, rise=0.1, rise_bound="chance", at_chance=True)
    assert "sweep" not in gauge.past_warning(found, True, exact=True)


def test_a_revisit_shows_no_cost_before_its_boundary() -> None:
    learner = exact("categorical", mode="factors")
    for task in range(2):
        learner.observe(X[task == Y // 2], Y[task == Y // 2], task=f"task-{task}")
        learner.boundary(f"task-{task}")
    before = learner.past()["rise"]
    learner.revisit("task-0")
    learner.observe(X[Y == 0], Y[Y == 0], task="task-0")
    assert learner.past()["rise"] == before


# -- memory ------------------------------------------------------------------------------------------------------------

MANY = 400_000
CODE = f"from streamcl.bench.exact.memory import held\nprint([each.mebibytes for each in held({MANY}, 'in process')])"


@pytest.mark.campaign
@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read from /proc")
def test_rows_that_are_consolidated_leave_nothing_in_memory() -> None:
    """In a process of its own: nine tenths of the rows are 26 MiB."""
    found = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=500, check=True)
    early, late = map(float, found.stdout.strip("[]\n").split(","))
    assert late - early < 10
