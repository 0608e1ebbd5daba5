"""scikit-learn estimators that learn one task after another: `fit` and `partial_fit`, `end_task`, `predict`.

The same learner as `streamcl.Learner`, and so as the daemon. `fit` begins afresh and learns its rows as one task;
`partial_fit` goes on with the open task, one pass of steps a call, until `end_task` consolidates it. Inputs are taken as
they are: put a scaler in front, as for any network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from torch import nn

from streamcl.estimator import Learner

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
    from sklearn.utils.multiclass import check_classification_targets, unique_labels
    from sklearn.utils.validation import check_is_fitted, validate_data
except ImportError as error:
    raise ImportError(
        f"streamcl.sklearn needs scikit-learn 1.6 or newer ({error}): pip install 'streamcl[sklearn]'"
    ) from error

Array = npt.NDArray[Any]


class _Estimator(BaseEstimator):  # type: ignore[misc]
    """What classifier and regressor share.

    hidden: widths of the layers of a multilayer perceptron. epochs: passes over a task's rows at its end. prior_precision:
    of the Gaussian prior over the parameters, 1 / variance. scale: lambda_t = scale * N_t, how hard earlier tasks are held.
    mode: ``single`` (one penalty) or ``factors`` (one for each task). random_state: seed of everything random, an integer.
    config: further keys as in the daemon's TOML file, nested; they go before the arguments. module: the network itself.
    """

    _likelihood = "gaussian"

    def __init__(
        self,
        hidden: Sequence[int] = (64,),
        *,
        learning_rate: float = 0.01,
        epochs: int = 50,
        batch_size: int = 64,
        prior_precision: float = 1.0,
        scale: float = 1.0,
        mode: str = "single",
        random_state: int | None = 0,
        config: Mapping[str, Any] | None = None,
        module: nn.Module | None = None,
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

    def _tree(self, model: dict[str, Any]) -> dict[str, Any]:
        """The learner's configuration: the arguments, and `config` over them."""
        args = {} if self.module is not None else {"args": {"hidden": [int(width) for width in self.hidden]}}
        tree: dict[str, dict[str, Any]] = {
            "model": {"likelihood": self._likelihood, **args, **model},
            "train": {
                "learning_rate": float(self.learning_rate),
                "epochs": int(self.epochs),
                "batch_size": int(self.batch_size),
                "seed": _seed(self.random_state),
                "dtype": "float64",
                "device": "cpu",
            },
            "posterior": {"prior_precision": float(self.prior_precision), "scale": float(self.scale), "mode": self.mode},
        }
        for section, values in (self.config or {}).items():
            tree[section] = {**tree.get(section, {}), **values}
        return tree

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

    def _observe(self, x: Array, y: Array, task: str | None) -> None:
        name = task or self.learner_.open_task or f"task-{self.n_tasks_ + 1}"
        self.learner_.observe(np.ascontiguousarray(x, "<f8"), y, task=name)

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

    def _rows(self, X: Any) -> Array:
        check_is_fitted(self, "learner_")
        return np.ascontiguousarray(validate_data(self, X, dtype=np.float64, reset=False), "<f8")


class Classifier(ClassifierMixin, _Estimator):  # type: ignore[misc]
    """A classifier. Labels may be anything that scikit-learn takes for classes; arguments as in `_Estimator`'s docstring:

    hidden, learning_rate, epochs, batch_size, prior_precision, scale, mode, random_state, config, module.
    """

    _likelihood = "categorical"

    def fit(self, X: Any, y: Any) -> Self:
        """Begin afresh, and learn rows X [n, d] with labels y [n] as one task, consolidated."""
        with self._whole():
            X, y = validate_data(self, X, y, dtype=np.float64)
            self._set_classes(y, None)
            self._begin({"classes": max(2, len(self.classes_))})
            self._observe(X, self._outputs(y), None)
            self.end_task()
        return self

    def partial_fit(self, X: Any, y: Any, classes: Any = None, *, task: str | None = None) -> Self:
        """Learn rows of the open task, or of a new one: `task` names it.

        classes: every label there will be; with the first call, as elsewhere in scikit-learn. Raises ValueError for a label
        that is not one of them.
        """
        first = not hasattr(self, "learner_")
        X, y = validate_data(self, X, y, dtype=np.float64, reset=first)
        if first:
            self._set_classes(y, classes)
            self._begin({"classes": max(2, len(self.classes_))})
        elif classes is not None and not np.array_equal(np.unique(classes), self.classes_):
            raise ValueError(f"classes: expected {list(self.classes_)}, as in the first call, got {list(classes)}")
        self._observe(X, self._outputs(y), task)
        return self

    def _set_classes(self, y: Array, classes: Any) -> None:
        check_classification_targets(y)
        self.classes_ = unique_labels(y if classes is None else classes)

    def _outputs(self, y: Array) -> Array:
        """The place of every label among the classes, int64; raises ValueError for one that is none of them."""
        check_classification_targets(y)
        places = np.searchsorted(self.classes_, y)
        known = (places < len(self.classes_)) & (self.classes_[np.minimum(places, len(self.classes_) - 1)] == y)
        if not known.all():
            raise ValueError(f"y: expected labels among {list(self.classes_)}, got {y[~known][0]!r}")
        return places.astype(np.int64)

    def predict_proba(self, X: Any, samples: int = 0) -> Array:
        """Probabilities [n, classes], in the order of `classes_`; averaged over `samples` draws from the posterior."""
        rows = self._rows(X)
        probs = self.learner_.predict(rows, samples).probs[:, : len(self.classes_)]
        shares: Array = probs / probs.sum(1, keepdims=True)
        return shares

    def predict(self, X: Any) -> Array:
        """The most probable label of each row, [n]."""
        probs = self.predict_proba(X)
        labels: Array = self.classes_[probs.argmax(1)]
        return labels


class Regressor(RegressorMixin, _Estimator):  # type: ignore[misc]
    """A regressor with Gaussian noise; its variance is ``config["model"]["noise_variance"]``, 1 by default.

    So scale the targets as well as the inputs: to about unit variance, as with TransformedTargetRegressor. Arguments as in
    `_Estimator`'s docstring: hidden, learning_rate, epochs, batch_size, prior_precision, scale, mode, random_state, config,
    module.
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Begin afresh, and learn rows X [n, d] with targets y, [n] or [n, k], as one task, consolidated."""
        with self._whole():
            X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True)
            self._begin({})
            self._observe(X, np.ascontiguousarray(y, "<f8"), None)
            self.end_task()
        return self

    def partial_fit(self, X: Any, y: Any, *, task: str | None = None) -> Self:
        """Learn rows of the open task, or of a new one: `task` names it."""
        first = not hasattr(self, "learner_")
        X, y = validate_data(self, X, y, dtype=np.float64, multi_output=True, y_numeric=True, reset=first)
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


def _seed(random_state: int | np.random.RandomState | None) -> int:
    """An integer seed; a generator draws one, None stands for one that differs each time."""
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31))
    return int(np.random.SeedSequence().generate_state(1)[0]) if random_state is None else int(random_state)
