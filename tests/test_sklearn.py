"""The scikit-learn estimators: its own checks, pipelines and searches, and one task after another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.datasets import load_diabetes, load_digits, load_iris
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks
from torch import nn

from streamcl import ModelRefused, Refused
from streamcl.config import Config
from streamcl.errors import ConfigError
from streamcl.sklearn import Classifier, Regressor


@pytest.mark.campaign
@parametrize_with_checks([Classifier(), Regressor()])
def test_it_keeps_to_scikit_learns_conventions(estimator: Any, check: Callable[[Any], None]) -> None:
    check(estimator)


def test_it_works_in_pipelines_and_searches() -> None:
    x, y = load_iris(return_X_y=True)
    words = np.array(["setosa", "versicolor", "virginica"])[y]
    pipeline = make_pipeline(StandardScaler(), Classifier(epochs=20))
    assert cross_val_score(pipeline, x, words, cv=3).mean() > 0.9
    search = GridSearchCV(pipeline, {"classifier__epochs": [1, 20]}, cv=3).fit(x, words)
    assert search.best_params_ == {"classifier__epochs": 20}
    assert set(search.predict(x)) == set(words)
    x, y = load_diabetes(return_X_y=True)
    regressor = make_pipeline(StandardScaler(), Regressor(epochs=20))
    assert cross_val_score(regressor, x, (y - y.mean()) / y.std(), cv=3).mean() > 0.3


def test_one_task_after_another_is_what_the_learner_learns() -> None:
    x, y = load_digits(return_X_y=True)
    x = x / 16
    model = Classifier(epochs=2, scale=10.0)
    for name, part in (("low", y < 5), ("high", y >= 5)):
        model.partial_fit(x[part], y[part], classes=range(10), task=name)
        assert model.end_task(name)["samples"] == part.sum()
    model.partial_fit(x[:50], y[:50]).partial_fit(x[50:90], y[50:90])
    assert model.end_task("named at its end")["samples"] == 90
    assert [task["task"] for task in model.learner_.tasks()] == ["low", "high", "named at its end"]
    assert model.predict_proba(x, samples=2).shape == (len(x), 10)
    with pytest.raises(Refused, match="task_closed"):
        model.partial_fit(x[:5], y[:5], task="low")
    with pytest.raises(ValueError, match="labels among"):
        model.partial_fit(x[:5], y[:5] + 20)
    with pytest.raises(ValueError, match="as in the first call"):
        model.partial_fit(x[:5], y[:5], classes=[1, 2])


def _orders(n: int) -> tuple[pa.Table, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Words, a number far from 0 with empty cells; a word to be told, and a price."""
    rng = np.random.default_rng(0)
    colour = rng.choice(["red", "green", "blue"], n)
    size = rng.normal(400, 30, n)
    cells = [None if number % 6 == 5 else float(value) for number, value in enumerate(size)]
    return pa.table({"colour": colour.tolist(), "size": cells}), np.where(colour == "red", "hot", "cold"), size * 3


def test_a_table_with_words_and_empty_cells_is_learned_as_it_is() -> None:
    table, words, price = _orders(300)
    model = Classifier().fit(table, words)
    assert model.score(table, words) > 0.98
    assert model.feature_names_in_.tolist() == ["colour", "size"]
    assert model.n_features_in_ == 2
    turned = table.select(["size", "colour"])
    np.testing.assert_array_equal(model.predict_proba(turned), model.predict_proba(table))
    model.partial_fit(table.slice(0, 20).set_column(0, "colour", [["violet"] * 20]), words[:20])
    assert set(model.predict(table.slice(0, 5))) <= {"hot", "cold"}
    told = np.array([cell is not None for cell in table["size"].to_pylist()])
    regressor = Regressor(epochs=200).fit(table, price)
    assert np.abs(regressor.predict(table) - price)[told].mean() < 0.5 * np.abs(price - price.mean()).mean()
    with pytest.raises(ValueError, match=r"a table with columns .'colour', 'size'., as the first was, got ndarray"):
        model.predict(np.zeros((2, 2)))
    with pytest.raises(Refused, match="size"):
        model.predict(table.select(["colour"]))
    with pytest.raises(ValueError, match="inconsistent numbers"):
        Classifier().fit(table, words[:-1])
    plain = pa.table({"a": [1.0, 2.0, 3.0], "b": [0.5, 0.1, 0.7]})
    with pytest.raises(ValueError, match="NaN"):
        Classifier().fit(plain, [0, 1, 1]).predict(pa.table({"a": [1.0], "b": [None]}))


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_row_without_a_label_is_said_to_be_one(missing: Any) -> None:
    x, y = np.zeros((4, 2)), np.array(["a", "b", missing, "a"], object)
    for estimator in (Classifier(), Classifier(learner="exact")):
        for learn in (estimator.fit, estimator.partial_fit):
            with pytest.raises(ValueError, match=r"row 2: expected a label|contains NaN"):
                learn(x, y)


def test_a_module_and_further_keys_are_used() -> None:
    x, y = load_iris(return_X_y=True)
    tree = {"posterior": {"mode": "factors"}, "train": {"dtype": "float32"}}
    model = Classifier(module=nn.Linear(4, 3), config=tree).fit(x, y)
    assert model.learner_.parameters().shapes == [[3, 4], [3]]
    model.learner_.revisit("task-1")
    model.learner_.abandon()


def test_a_regressor_gives_deviations_and_takes_several_targets() -> None:
    x, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    model = Regressor(epochs=5, config={"model": {"noise_variance": 0.25}}).fit(x, np.stack([y, -y], 1))
    mean, deviation = model.predict(x, return_std=True)
    assert mean.shape == deviation.shape == (len(x), 2)
    assert np.allclose(deviation, 0.5)
    assert (model.predict(x, return_std=True, samples=8)[1] > 0.5).all()


def test_a_fit_that_fails_leaves_the_estimator_as_it_was() -> None:
    x, y = load_iris(return_X_y=True)
    fitted, fresh = Classifier(epochs=2).fit(x, y), Classifier(module=nn.Linear(9, 3))
    before = fitted.predict_proba(x)
    fitted.set_params(module=nn.Linear(9, 3))
    for model in (fitted, fresh):
        with pytest.raises(ModelRefused):
            model.fit(x, y)
    np.testing.assert_array_equal(fitted.predict_proba(x), before)
    with pytest.raises(NotFittedError):
        fresh.predict(x)


def test_the_daemon_s_rate_and_epochs_can_be_had() -> None:
    found = Classifier(learning_rate="auto", epochs="auto").fit(*rows_of_auto())
    assert (found.learner_.config.rate, found.learner_.config.epochs(90)) == (Config().rate, Config().epochs(90))


def rows_of_auto() -> tuple[np.ndarray, np.ndarray]:
    y = np.arange(90) % 3
    return np.eye(3, 4)[y] + np.random.default_rng(0).normal(size=(90, 4)) / 9, y


def test_further_keys_may_be_dotted_and_what_is_none_is_said() -> None:
    x, y = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 3
    dotted, nested = (Classifier(config=config).fit(x, y) for config in ({"train.epochs": 2}, {"train": {"epochs": 2}}))
    np.testing.assert_array_equal(dotted.predict_proba(x), nested.predict_proba(x))
    for config, said in (({"train.epohcs": 3}, "did you mean train.epochs"), ({"train": 3}, "expected sections")):
        with pytest.raises(ConfigError, match=said):
            Classifier(config=config).fit(x, y)
