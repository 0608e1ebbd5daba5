"""River estimators that learn one task after another: `learn_one`, `learn_many`, `end_task`, `predict_one` and so on.

The same learner as `streamcl.Learner`, and so as the daemon. Every call is a step on its rows, in the order they come. The
rows of a task are kept in memory until `end_task`, or until there are `task_rows` of them; they are then consolidated into
one penalty of constant size, so that a stream without end takes bounded memory. Features are taken as they are: put a
scaler in front, as in ``preprocessing.StandardScaler() | Classifier()``.

The features of the first row are the model's inputs. One that is missing later counts as 0; one that comes new later has no
input and is left out, which is said once (`RuntimeWarning`).
"""

from __future__ import annotations

import numbers
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from river import base

from streamcl.estimator import Learner

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

Array = npt.NDArray[Any]
Features = dict[Any, Any]


class _Estimator(base.Estimator):
    """What classifier and regressor share."""

    _likelihood = "gaussian"

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        learning_rate: float = 0.001,
        task_rows: int = 1000,
        epochs: int = 5,
        scale: float = 1.0,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        module: nn.Module | None = None,
    ) -> None:
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
        self._features: list[Any] = []
        self._known: set[Any] = set()
        self._rows = 0
        self._tasks = 0
        self._learner = Learner(self._tree(), module)

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
        args = {} if self.module is not None else {"args": {"hidden": list(self.hidden)}}
        tree: dict[str, dict[str, Any]] = {
            "model": {"likelihood": self._likelihood, **args, **self._model()},
            "train": {
                "learning_rate": self.learning_rate,
                "epochs": self.epochs,
                "seed": self.seed,
                "dtype": "float64",
                "device": "cpu",
            },
            "posterior": {"scale": self.scale},
        }
        for section, values in (self.config or {}).items():
            tree[section] = {**tree.get(section, {}), **values}
        return tree

    @property
    def learner(self) -> Learner:
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

    def _learn(self, x: Array, y: Array) -> None:
        self._learner.observe(x, y, task=self._learner.open_task or self._next_task())
        self._rows += len(x)
        if self._rows >= self.task_rows:
            self.end_task()

    def _inputs(self, rows: Sequence[Mapping[Any, Any]], learning: bool) -> Array:
        """Rows [n, features] in the first row's order of names; raises ValueError for what is not a number."""
        if learning and not self._features:
            self._features = sorted(rows[0], key=str)
            self._known = set(self._features)
            if not self._features:
                raise ValueError("x: expected at least one feature in the first row, got none")
        if learning:
            self._notice_new(rows)
        return np.array([[_number(row.get(name, 0), name) for name in self._features] for row in rows], "<f8")

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
    """A classifier of any number of labels up to `classes`.

    Parameters
    ----------
    classes
        How many labels there may be at the most: as many outputs the network has.
    hidden
        Widths of the hidden layers of a multilayer perceptron.
    learning_rate
        Of Adam.
    task_rows
        A task of so many rows ends by itself; in memory there are never more.
    epochs
        Passes over a task's rows at its end.
    scale
        How hard earlier tasks are held: ``lambda_t = scale * N_t``.
    seed
        Of everything random.
    config
        Further keys as in the daemon's TOML file, nested; they go before the arguments.
    module
        The network itself, instead of a perceptron; its outputs are `classes` logits.

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
        classes: int = 10,
        hidden: Sequence[int] = (64,),
        learning_rate: float = 0.001,
        task_rows: int = 1000,
        epochs: int = 5,
        scale: float = 1.0,
        seed: int = 0,
        config: Mapping[str, Any] | None = None,
        module: nn.Module | None = None,
    ) -> None:
        self.classes = classes
        self._outputs: dict[Any, int] = {}
        super().__init__(hidden, learning_rate, task_rows, epochs, scale, seed, config, module)

    def _model(self) -> dict[str, Any]:
        return {"classes": self.classes}

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
        probs = self._learner.predict(self._inputs(rows, learning=False)).probs[:, : len(self._outputs)].astype(np.float64)
        shares: Array = probs / probs.sum(1, keepdims=True)
        return shares

    def _places(self, labels: Sequence[Any]) -> Array:
        """The output of every label, int64; a new one takes the next."""
        if any(label is None for label in labels):
            raise ValueError("y: expected a label, got None; learn from the row once its label has come")
        fresh = list(dict.fromkeys(label for label in labels if label not in self._outputs))
        if len(self._outputs) + len(fresh) > self.classes:
            raise ValueError(
                f"y: expected at most {self.classes} labels, got another, {fresh[-1]!r}; make the model with classes= as "
                "many as there will be"
            )
        self._outputs.update({label: len(self._outputs) + place for place, label in enumerate(fresh)})
        return np.array([self._outputs[label] for label in labels], "<i8")


class Regressor(_Estimator, base.MiniBatchRegressor):
    """A regressor with Gaussian noise; its variance is ``config["model"]["noise_variance"]``, 1 by default.

    Parameters
    ----------
    hidden
        Widths of the hidden layers of a multilayer perceptron.
    learning_rate
        Of Adam.
    task_rows
        A task of so many rows ends by itself; in memory there are never more.
    epochs
        Passes over a task's rows at its end.
    scale
        How hard earlier tasks are held: ``lambda_t = scale * N_t``.
    seed
        Of everything random.
    config
        Further keys as in the daemon's TOML file, nested; they go before the arguments.
    module
        The network itself, instead of a perceptron; it has one output.

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
        return self._learner.predict(self._inputs(rows, learning=False)).mean


def _number(value: Any, name: Any) -> float:
    if not isinstance(value, numbers.Real | np.bool_):
        raise ValueError(f"feature {name!r}: expected a number, got {value!r}; encode it (preprocessing.OneHotEncoder)")
    return float(value)
