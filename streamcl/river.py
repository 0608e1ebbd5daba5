"""River estimators that learn one task after another: `learn_one`, `learn_many`, `end_task`, `predict_one` and so on.

The same learner as `streamcl.Learner`, and so as the daemon. Every call is a step on its rows, in the order they come, with
earlier rows of the task beside them where they are few (but where the learning rate or the batch size is set). The rows of
a task are kept in memory until `end_task`, or until there are `task_rows` of them; they are then consolidated into one
penalty of constant size, so that a stream without end takes bounded memory.

Where the first row has nothing but numbers, features are taken as they are: put a scaler in front, as in
``preprocessing.StandardScaler() | Classifier()``. Where it has a word, a date or an empty value (None, NaN), or `kinds`
says so, rows are taken as the daemon takes a table: numbers are standardised, words are categories that may grow, and what
is missing, or not in a row, is told as such; no scaler, encoder or imputer is needed.

With ``learner="exact"`` there is no network and no step: sums of fixed features determine a Gaussian head, which predicts
with what was solved for last, at most a quarter of the task's rows ago.

The features of the first row are the model's inputs. One that is not in a later row counts as 0 where all are numbers; one
that comes new later has no input and is left out, which is said once (`RuntimeWarning`).
"""

from __future__ import annotations

import datetime
import decimal
import numbers
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt
from river import base

from streamcl import columns, dataframes
from streamcl.client import Prediction
from streamcl.config import Auto
from streamcl.estimator import Learner, over

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Array = npt.NDArray[Any]
Features = dict[Any, Any]
Inputs = tuple[Array, list[dict[str, Any]] | None]
KINDS = ("number", "category")
Of = Literal["number", "category", "date"]


class _Estimator(base.Estimator):
    """What classifier and regressor share."""

    _likelihood = "gaussian"

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        learning_rate: float | Auto = "auto",
        task_rows: int = 1000,
        epochs: int | Auto = "auto",
        scale: float = 1.0,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        module: nn.Module | None = None,
        learner: str = "network",
        kinds: Mapping[Any, Literal["number", "category"]] | None = None,
    ) -> None:
        if wrong := [f"{name!r}: {kind!r}" for name, kind in (kinds or {}).items() if kind not in KINDS]:
            raise ValueError(f"kinds: expected number or category for each, got {', '.join(wrong)}")
        if learner not in ("network", "exact"):
            raise ValueError(f"learner: expected network or exact, got {learner!r}")
        if task_rows < 1:
            raise ValueError(f"task_rows: expected at least 1, got {task_rows}")
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.task_rows = task_rows
        self.epochs = epochs
        self.scale = scale
        self.seed = seed
        self.config = config
        self.module = module
        self.learner = learner
        self.kinds = kinds
        self._features: dict[Any, Of] = {}
        self._named = False
        self._known: set[Any] = set()
        self._rows = 0
        self._tasks = 0
        self._learner = Learner(self._tree(), module)
        self._learner.predicts_as_scored = learner == "exact"  # every row asks, and a solution costs more than a row

    @classmethod
    def _unit_test_params(cls) -> Iterator[dict[str, Any]]:
        yield {"task_rows": 100}

    def _unit_test_skips(self) -> set[str]:
        """A batch of rows is one step on all of them, and n rows are n steps: neither is the other."""
        return {"check_learn_many_matches_learn_one"}

    def _model(self) -> dict[str, Any]:
        return {}

    def _tree(self) -> dict[str, Any]:
        """The learner's configuration: the arguments, and `config` over them."""
        is_exact = self.learner == "exact"
        args = {} if self.module is not None or is_exact else {"args": {"hidden": list(self.hidden)}}
        steps = {"learning_rate": self.learning_rate, "epochs": self.epochs}
        given = [name for name, value in (*steps.items(), ("hidden", self.hidden)) if value not in ("auto", (64,))]
        if is_exact and given:
            raise ValueError(f"{', '.join(given)}: no effect with learner='exact', which trains nothing; leave it out")
        tree: dict[str, dict[str, Any]] = {
            "model": {"learner": self.learner, "likelihood": self._likelihood, **args, **self._model()},
            "train": {**({} if is_exact else steps), "seed": self.seed, "dtype": "float64", "device": "cpu"},
            "posterior": {"scale": self.scale},
        }
        return over(tree, self.config)

    @property
    def learner_(self) -> Learner:
        """The learner behind it: its tasks, parameters, and what else River has no name for."""
        return self._learner

    def end_task(self, name: str | None = None) -> dict[str, Any]:
        """Consolidate the rows since the last task's end; those that follow are of another one.

        name: of the task that ends, by default task-1, task-2 and so on. Returns the boundary's figures; raises Refused
        ``unknown_task`` where there are no rows, ``task_closed`` where the name is taken, ``unlearnable`` where none of the
        rows could be learned.
        """
        if name is not None:
            self._learner.rename(name)
        figures = self._learner.boundary(self._learner.open_task or self._next_task())
        self._rows, self._tasks = 0, self._tasks + 1
        return figures

    def _next_task(self) -> str:
        return f"task-{self._tasks + 1}"

    def _learn(self, inputs: Inputs, y: Array) -> None:
        x, schema = inputs
        self._learner.observe(x, y, task=self._learner.open_task or self._next_task(), schema=schema)
        self._rows += len(x)
        if self._rows >= self.task_rows:
            self.end_task()

    def _set_features(self, row: Mapping[Any, Any]) -> None:
        """The model's inputs are the first row's."""
        given = self.kinds or {}
        if not row:
            raise ValueError("x: expected at least one feature in the first row, got none")
        if missing := [name for name in given if name not in row]:
            raise ValueError(f"kinds: expected features of the first row, {sorted(row, key=str)}, got {missing}")
        self._named = bool(given) or not all(map(_is_plain, row.values()))
        self._features = {name: given.get(name, _kind(row[name])) for name in sorted(row, key=str)}
        self._known = set(self._features)

    def _inputs(self, rows: Sequence[Mapping[Any, Any]], learning: bool) -> Inputs:
        """Rows [n, features] in the order of the features, and their columns where they are a table's.

        Raises ValueError for what is not of its feature's kind.
        """
        if learning and not self._features:
            self._set_features(rows[0])
        if learning:
            self._notice_new(rows)
        if self._named:
            self._check_kinds(rows)
            found = dataframes.records(rows, self._features)
            return found.x, columns.plain(found.columns or ())
        return np.array([[_number(row.get(name, 0), name) for name in self._features] for row in rows], "<f8"), None

    def _check_kinds(self, rows: Sequence[Mapping[Any, Any]]) -> None:
        for row in rows:
            for name, kind in self._features.items():
                value = row.get(name)
                if kind != "category" and not dataframes.is_missing(value) and _kind(value) != kind:
                    raise ValueError(
                        f"feature {name!r}: expected a {kind}, as in the first row, got {value!r}; "
                        f"if it is a category, say so: kinds={{{name!r}: 'category'}}"
                    )

    def _predicted(self, rows: Sequence[Mapping[Any, Any]]) -> Prediction:
        x, schema = self._inputs(rows, learning=False)
        return self._learner.predict(x, schema=schema)

    def _notice_new(self, rows: Sequence[Mapping[Any, Any]]) -> None:
        new = sorted({name for row in rows for name in row} - self._known, key=str)
        if new:
            self._known.update(new)
            warnings.warn(
                f"features {', '.join(map(str, new))} came after the first row, which fixed the model's inputs "
                f"({', '.join(map(str, self._features))}): they are left out",
                RuntimeWarning,
                stacklevel=4,
            )


class Classifier(_Estimator, base.MiniBatchClassifier):
    """A classifier of any number of labels, or of `classes` at the most.

    Parameters
    ----------
    classes
        How many labels there may be at the most: as many outputs the network has. None: any number, its outputs grow as
        labels come; an exact learner takes any.
    hidden
        Widths of the hidden layers of a multilayer perceptron.
    learning_rate
        Of Adam; automatically, of three the one that predicts best, each with steps of its own on every row.
    task_rows
        A task of so many rows ends by itself; in memory there are never more.
    epochs
        Passes over a task's rows at its end; "auto" chooses by their number.
    scale
        How hard earlier tasks are held: ``lambda_t = scale * N_t``.
    seed
        Of everything random.
    config
        Further keys as in the daemon's TOML file, nested; they go before the arguments.
    module
        The network itself, instead of a perceptron; its outputs are logits, `classes` of them where that is given.
    learner
        "network", or "exact": sums that determine a head on fixed features; module is then the map to these.
    kinds
        Of features, by name: "number" or "category"; of the others by their values in the first row. Where any is given,
        rows are taken as a table's.

    Examples
    --------
    >>> from river import datasets, evaluate, metrics, preprocessing
    >>> from streamcl.river import Classifier
    >>> model = preprocessing.StandardScaler() | Classifier(classes=2)
    >>> evaluate.progressive_val_score(datasets.Phishing().take(200), model, metrics.Accuracy()).get() > 0.6
    True

    """

    _likelihood = "categorical"

    def __init__(
        self,
        classes: int | None = None,
        hidden: Sequence[int] = (64,),
        learning_rate: float | Auto = "auto",
        task_rows: int = 1000,
        epochs: int | Auto = "auto",
        scale: float = 1.0,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        module: nn.Module | None = None,
        learner: str = "network",
        kinds: Mapping[Any, Literal["number", "category"]] | None = None,
    ) -> None:
        self.classes = classes
        self._outputs: dict[Any, int] = {}
        super().__init__(hidden, learning_rate, task_rows, epochs, scale, seed, config, module, learner, kinds)

    def _model(self) -> dict[str, Any]:
        return {} if self.learner == "exact" or self.classes is None else {"classes": self.classes}

    @property
    def _multiclass(self) -> bool:
        return True

    def learn_one(self, x: Features, y: base.typing.ClfTarget) -> None:
        """One step on one row. Raises ValueError for one label more than `classes`."""
        self._learn(self._inputs([x], learning=True), self._places([y]))

    def learn_many(self, X: pd.DataFrame, y: pd.Series) -> None:
        """Steps on the rows of a frame, `batch_size` at a time."""
        self._learn(self._inputs(X.to_dict("records"), learning=True), self._places(list(y)))

    def predict_proba_one(self, x: Features, **kwargs: Any) -> dict[base.typing.ClfTarget, float]:
        """The probability of each label seen so far; empty before the first."""
        if not self._outputs:
            return {}
        (shares,) = self._shares([x])
        return dict(zip(self._outputs, shares.tolist(), strict=True))

    def predict_proba_many(self, X: pd.DataFrame) -> pd.DataFrame:
        """A frame with a column for each label seen so far, the rows' index kept."""
        import pandas as pd

        if not self._outputs:
            return pd.DataFrame(index=X.index)
        return pd.DataFrame(self._shares(X.to_dict("records")), index=X.index, columns=list(self._outputs))

    def _shares(self, rows: Sequence[Mapping[Any, Any]]) -> Array:
        """Probabilities among the labels seen so far, [n, labels] float64."""
        probs = self._predicted(rows).probs[:, : len(self._outputs)].astype(np.float64)
        probs = np.pad(probs, ((0, 0), (0, len(self._outputs) - probs.shape[1])))  # of what could not be learned, nothing
        shares: Array = probs / probs.sum(1, keepdims=True)
        return shares

    def _places(self, labels: Sequence[Any]) -> Array:
        """The output of every label, int64; a new one takes the next."""
        if any(label is None for label in labels):
            raise ValueError("y: expected a label, got None; learn from the row once its label has come")
        fresh = list(dict.fromkeys(label for label in labels if label not in self._outputs))
        most = None if self.learner == "exact" else self.classes
        if most is not None and len(self._outputs) + len(fresh) > most:
            raise ValueError(
                f"y: expected at most {most} labels, got another, {fresh[-1]!r}; make the model with classes= as many as "
                "there will be, or without"
            )
        self._outputs.update({label: len(self._outputs) + place for place, label in enumerate(fresh)})
        return np.array([self._outputs[label] for label in labels], "<i8")


class Regressor(_Estimator, base.MiniBatchRegressor):
    """A regressor with Gaussian noise, whose variance it learns, as it does where the targets lie and how far they spread.

    ``config["model"]["noise_variance"]`` sets the noise and takes the targets as they are.

    Parameters
    ----------
    hidden
        Widths of the hidden layers of a multilayer perceptron.
    learning_rate
        Of Adam; automatically, of three the one that predicts best, each with steps of its own on every row.
    task_rows
        A task of so many rows ends by itself; in memory there are never more.
    epochs
        Passes over a task's rows at its end; "auto" chooses by their number.
    scale
        How hard earlier tasks are held: ``lambda_t = scale * N_t``.
    seed
        Of everything random.
    config
        Further keys as in the daemon's TOML file, nested; they go before the arguments.
    module
        The network itself, instead of a perceptron; it has one output.
    learner
        "network", or "exact": sums that determine a head on fixed features; module is then the map to these.
    kinds
        Of features, by name: "number" or "category"; of the others by their values in the first row. Where any is given,
        rows are taken as a table's.

    Examples
    --------
    >>> from river import datasets, evaluate, metrics, preprocessing
    >>> from streamcl.river import Regressor
    >>> model = preprocessing.StandardScaler() | preprocessing.TargetStandardScaler(Regressor())
    >>> evaluate.progressive_val_score(datasets.TrumpApproval().take(200), model, metrics.MAE()).get() < 5
    True

    """

    def learn_one(self, x: Features, y: base.typing.RegTarget) -> None:
        """One step on one row."""
        self._learn(self._inputs([x], learning=True), np.array([y], "<f8"))

    def learn_many(self, X: pd.DataFrame, y: pd.Series) -> None:
        """Steps on the rows of a frame, `batch_size` at a time."""
        self._learn(self._inputs(X.to_dict("records"), learning=True), np.asarray(y, "<f8"))

    def predict_one(self, x: Features) -> base.typing.RegTarget:
        """The predictive mean; 0 before the first row."""
        return float(self._means([x])[0])

    def predict_many(self, X: pd.DataFrame) -> pd.Series:
        """The predictive means, the rows' index kept."""
        import pandas as pd

        return pd.Series(self._means(X.to_dict("records")), index=X.index, name="prediction")

    def _means(self, rows: Sequence[Mapping[Any, Any]]) -> Array:
        if not self._features:
            return np.zeros(len(rows))
        return self._predicted(rows).mean


def _is_plain(value: Any) -> bool:
    return isinstance(value, numbers.Real | np.bool_) and not dataframes.is_missing(value)


def _kind(value: Any) -> Of:
    """Of a feature, by a value; one that is missing is a number."""
    if isinstance(value, numbers.Real | decimal.Decimal | np.bool_) or dataframes.is_missing(value):
        return "number"
    return "date" if isinstance(value, datetime.date | np.datetime64) else "category"


def _number(value: Any, name: Any) -> float:
    if not isinstance(value, numbers.Real | np.bool_):
        raise ValueError(
            f"feature {name!r}: expected a number, got {value!r}, after a first row of numbers alone; "
            f"say which features may have words or be missing: kinds={{{name!r}: {_kind(value)!r}}}"
        )
    return float(value)
