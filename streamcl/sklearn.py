"""scikit-learn estimators that learn one task after another: `fit` and `partial_fit`, `end_task`, `predict`.

The same learner as `streamcl.Learner`, and so as the daemon. `fit` begins afresh and learns its rows as one task;
`partial_fit` goes on with the open task, one pass of steps a call, until `end_task` consolidates it.

Numbers are taken as they are: put a scaler in front, as for any network. A frame of pandas, Polars or Arrow that has words,
dates or empty cells where it is first seen is taken as the daemon takes a table: its columns are known by name from then
on, in whatever order they come, and numbers are standardised, words are categories that may grow, and what is missing is
told as such.

With ``learner="exact"`` there is no network: sums of fixed features determine a Gaussian head, one pass is all data at
once, nothing is forgotten, and labels may come that were never announced.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from streamcl import dataframes
from streamcl.config import Auto
from streamcl.estimator import Learner, over

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets, unique_labels
    from sklearn.utils.validation import (
        check_array,
        check_consistent_length,
        check_is_fitted,
        column_or_1d,
        validate_data,
    )
except ImportError as error:
    raise ImportError(
        f"streamcl.sklearn needs scikit-learn 1.6 or newer ({error}): pip install 'streamcl[sklearn]'"
    ) from error

Array = npt.NDArray[Any]
OF_NETWORKS = ("hidden", "learning_rate", "epochs", "batch_size")  # arguments that say nothing to an exact learner


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share.

    hidden: widths of the layers of a multilayer perceptron. epochs: passes over a task's rows at its end. learning_rate and
    epochs may be "auto", the daemon's defaults, which are made for streams of tasks of a thousand rows and more; those here
    are made for `fit` on a few hundred. prior_precision: of the Gaussian prior over the parameters, 1 / variance. scale:
    lambda_t = scale * N_t, how hard earlier tasks are held. mode: ``single`` (one penalty) or ``factors`` (one for each
    task). random_state: seed of everything random, an integer.
    config: further keys as in the daemon's TOML file, nested; they go before the arguments. module: the network itself.
    learner: ``network`` or ``exact``, which has no use for hidden, learning_rate, epochs and batch_size, finds the prior's
    precision by the evidence unless it is given, and whose module is the map to features (random ones unless given).
    """

    _likelihood = "gaussian"

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        *,
        learning_rate: float | Auto = 0.01,
        epochs: int | Auto = 50,
        batch_size: int = 64,
        prior_precision: float | Auto = "auto",
        scale: float = 1.0,
        mode: str = "single",
        random_state: int | None = 0,
        config: Mapping[str, Any] | None = None,
        module: nn.Module | None = None,
        learner: str = "network",
    ) -> None:
        self.hidden = hidden
        self.learning_rate = learning_rate
        self.epochs = epochs
        self.batch_size = batch_size
        self.prior_precision = prior_precision
        self.scale = scale
        self.mode = mode
        self.random_state = random_state
        self.config = config
        self.module = module
        self.learner = learner

    @property
    def _is_exact(self) -> bool:
        return self.learner == "exact"

    def _check_arguments(self) -> None:
        """Raise ValueError for what has no effect."""
        if self.learner not in ("network", "exact"):
            raise ValueError(f"learner: expected network or exact, got {self.learner!r}")
        defaults = {name: each.default for name, each in inspect.signature(type(self)).parameters.items()}
        given = [name for name in OF_NETWORKS if not _alike(getattr(self, name), defaults[name])]
        if self._is_exact and given:
            raise ValueError(f"{', '.join(given)}: no effect with learner='exact', which trains nothing; leave it out")

    def _tree(self, model: dict[str, Any]) -> dict[str, Any]:
        """The learner's configuration: the arguments, and `config` over them."""
        self._check_arguments()
        plain = self.module is not None or self._is_exact
        args = {} if plain else {"args": {"hidden": [int(width) for width in self.hidden]}}
        train = {"seed": _seed(self.random_state), "dtype": "float64", "device": "cpu"}
        precision = self.prior_precision if self.prior_precision == "auto" else float(self.prior_precision)
        tree: dict[str, dict[str, Any]] = {
            "model": {"learner": self.learner, "likelihood": self._likelihood, **args, **model},
            "train": train if self._is_exact else {**train, **self._steps()},
            "posterior": {"prior_precision": precision, "scale": float(self.scale), "mode": self.mode},
        }
        return over(tree, self.config)

    def _steps(self) -> dict[str, Any]:
        """How a network is trained."""
        return {
            "learning_rate": self.learning_rate if self.learning_rate == "auto" else float(self.learning_rate),
            "epochs": self.epochs if self.epochs == "auto" else int(self.epochs),
            "batch_size": int(self.batch_size),
        }

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """What fails leaves the estimator as it was."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__ = before
            raise

    def _begin(self, model: dict[str, Any]) -> None:
        self.learner_ = Learner(self._tree(model), self.module)
        self.n_tasks_ = 0

    def _observe(self, x: Any, y: Array, task: str | None) -> None:
        name = task or self.learner_.open_task or f"task-{self.n_tasks_ + 1}"
        self.learner_.observe(x if self._named else np.ascontiguousarray(x, "<f8"), y, task=name)

    def _checked(self, X: Any, y: Any, reset: bool, **numbers: Any) -> tuple[Any, Array]:
        """Rows and targets as scikit-learn takes them, or a table as it is. reset: these are the first.

        numbers: what `validate_data` is told of targets that are numbers; without that they are labels.
        """
        if not numbers:
            _refuse_missing(y)
        if reset:
            self._named = dataframes.is_table(X) and not dataframes.is_plain(X)
        if not self._named:
            found: tuple[Any, Array] = validate_data(self, X, y, dtype=np.float64, reset=reset, **numbers)
            return found
        if reset:
            names = [str(name) for name in getattr(X, "column_names", X.columns)]
            self.feature_names_in_, self.n_features_in_ = np.array(names, object), len(names)
        y = check_array(y, ensure_2d=False, dtype=np.float64) if numbers else column_or_1d(y, warn=True)
        check_consistent_length(self._table(X), y)
        return X, y

    def _table(self, X: Any) -> Any:
        """X; raises ValueError unless it is a table, as the first rows were."""
        if not dataframes.is_table(X):
            raise ValueError(
                f"X: expected a table with columns {list(self.feature_names_in_)}, as the first was, got {type(X).__name__}"
            )
        return X

    def end_task(self, name: str | None = None, weight: float | None = None) -> dict[str, Any]:
        """Consolidate the open task and let its rows go; the rows that follow are of another one.

        name: of the task that ends, by default as `partial_fit` named it, or task-1, task-2 and so on. weight: lambda_t, by
        default scale * N_t. Returns the boundary's figures; raises Refused as `streamcl.Learner.boundary`, and
        ``task_closed`` where the name is taken.
        """
        check_is_fitted(self, "learner_")
        if name is not None:
            self.learner_.rename(name)
        figures = self.learner_.boundary(self.learner_.open_task or f"task-{self.n_tasks_ + 1}", weight)
        self.n_tasks_ += 1
        return figures

    def _rows(self, X: Any) -> Any:
        check_is_fitted(self, "learner_")
        if self._named:
            return self._table(X)
        return np.ascontiguousarray(validate_data(self, X, dtype=np.float64, reset=False), "<f8")


def _refuse_missing(y: Any) -> None:
    """Raise ValueError where there is none for a label: nothing could sort it among words."""
    labels = np.asarray(() if y is None else y)
    if labels.dtype.kind != "O":
        return
    labels = labels.ravel()
    row = next((row for row, label in enumerate(labels) if dataframes.is_missing(label)), None)
    if row is not None:
        raise ValueError(f"y: row {row}: expected a label, got {labels[row]}; leave rows without one out")


class Classifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A classifier. Labels may be anything that scikit-learn takes for classes; arguments as in `_Estimator`'s docstring:

    hidden, learning_rate, epochs, batch_size, prior_precision, scale, mode, random_state, config, module, learner.
    """

    _likelihood = "categorical"

    def fit(self, X: Any, y: Any) -> Self:
        """Begin afresh, and learn rows X [n, d] with labels y [n] as one task, consolidated."""
        with self._whole():
            X, y = self._checked(X, y, reset=True)
            self._set_classes(y, None)
            self._begin({"classes": max(2, len(self.classes_))})
            self._observe(X, self._outputs(y), None)
            self.end_task()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, *, task: str | None = None) -> Self:
        """Learn rows of the open task, or of a new one: `task` names it.

        classes: every label there will be; with the first call, as elsewhere in scikit-learn. An exact learner takes any
        label at any time, and `classes_` grows. Raises ValueError for a label that is not one of them.
        """
        first = not hasattr(self, "learner_")
        X, y = self._checked(X, y, reset=first)
        if first:
            self._set_classes(y, classes)
            self._begin({"classes": max(2, len(self.classes_))})
        elif classes is not None and not self._is_exact and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes: expected {list(self.classes_)}, as in the first call, got {list(classes)}")
        self._observe(X, self._outputs(y), task)
        return self

    def _set_classes(self, y: Array, classes: Any) -> None:
        check_classification_targets(y)
        self.classes_ = unique_labels(y if classes is None else classes)
        self._labels: list[Any] = []  # of an exact learner, in the order in which they came

    def _outputs(self, y: Array) -> Array:
        """The place of every label among the classes, int64; raises ValueError for one that is none of them."""
        check_classification_targets(y)
        if self._is_exact:
            return self._numbers(y)
        places = np.searchsorted(self.classes_, y)
        known = (places < len(self.classes_)) & (self.classes_[np.minimum(places, len(self.classes_) - 1)] == y)
        if not known.all():
            given = self.classes_.tolist()
            raise ValueError(
                f"y: expected labels among {given}, which the first call fixed, got {y[~known].tolist()[0]!r}; "
                "give it all classes= there will be, or take learner='exact', which takes any at any time"
            )
        return places.astype(np.int64)

    def _numbers(self, y: Array) -> Array:
        """The number of every label in the order in which labels came, int64; new ones are classes from now on."""
        known = set(self._labels)
        fresh = [label for label in dict.fromkeys(y.tolist()) if label not in known]
        if fresh:
            self._labels = [*self._labels, *fresh]
            self.classes_ = unique_labels(self.classes_, y)
        places = {label: place for place, label in enumerate(self._labels)}
        return np.array([places[label] for label in y.tolist()], np.int64)

    def predict_proba(self, X: Any, samples: int = 0) -> Array:
        """Probabilities [n, classes], in the order of `classes_`; averaged over `samples` draws from the posterior."""
        rows = self._rows(X)
        if self._is_exact:
            found = self.learner_.predict(rows, samples)
            order = [] if found.labels is None else found.labels.tolist()
            columns = {self._labels[label]: column for column, label in enumerate(order)}
            ordered = np.zeros((len(found.probs), len(self.classes_)))
            for place, label in enumerate(self.classes_.tolist()):
                if label in columns:
                    ordered[:, place] = found.probs[:, columns[label]]
            return ordered
        probs = self.learner_.predict(rows, samples).probs[:, : len(self.classes_)]
        shares: Array = probs / probs.sum(1, keepdims=True)
        return shares

    def predict(self, X: Any) -> Array:
        """The most probable label of each row, [n]."""
        probs = self.predict_proba(X)
        labels: Array = self.classes_[probs.argmax(1)]
        return labels


class Regressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A regressor with Gaussian noise, whose variance it learns.

    It also learns where the targets lie and how far they spread, so that only the inputs need to be scaled;
    ``config["model"]["noise_variance"]`` sets the noise and takes the targets as they are. Arguments as in
    `_Estimator`'s docstring: hidden, learning_rate, epochs, batch_size, prior_precision, scale, mode, random_state, config,
    module, learner.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Begin afresh, and learn rows X [n, d] with targets y, [n] or [n, k], as one task, consolidated."""
        with self._whole():
            X, y = self._checked(X, y, reset=True, multi_output=True, y_numeric=True)
            self._begin({})
            self._observe(X, np.ascontiguousarray(y, "<f8"), None)
            self.end_task()
        return self

    def partial_fit(self, X: Any, y: Any, *, task: str | None = None) -> Self:
        """Learn rows of the open task, or of a new one: `task` names it."""
        first = not hasattr(self, "learner_")
        X, y = self._checked(X, y, reset=first, multi_output=True, y_numeric=True)
        if first:
            self._begin({})
        self._observe(X, np.ascontiguousarray(y, "<f8"), task)
        return self

    def predict(self, X: Any, return_std: bool = False, samples: int = 0) -> Any:
        """The predictive means, like y; with return_std, their standard deviations too, noise included.

        samples: how many draws from the posterior are averaged over; without any, the deviation is the noise's alone.
        """
        rows = self._rows(X)
        found = self.learner_.predict(rows, samples)
        return (found.mean, np.sqrt(found.variance)) if return_std else found.mean

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags


def _alike(one: Any, other: Any) -> bool:
    """Whether an argument is its default."""
    return list(one) == list(other) if isinstance(other, tuple) else bool(one == other)


def _seed(random_state: int | np.random.RandomState | None) -> int:
    """An integer seed; a generator draws one, None stands for one that differs each time."""
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    return int(np.random.SeedSequence().generate_state(1)[0]) if random_state is None else int(random_state)
