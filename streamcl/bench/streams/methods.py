"""What one would do with a stream. Each is told its task's end, and the classes of the whole stream, which streamcl is not.

    streamcl      a network at the defaults          exact         an exact learner at the defaults
    fine-tuning   goes on from task to task          replay        the same, half of each step of 500 old rows
    retraining    from scratch on all rows so far, at a task's end, or every 1,000 rows
    forest        River's adaptive random forest     tree          its adaptive Hoeffding tree
    linear        its own linear model, row by row
    partial_fit   scikit-learn's network, a step for each 16 rows

Those of PyTorch are one network, Adam at 0.001 in batches of 16 while rows come and of 64 afterwards, with as many epochs
behind a task's end as streamcl's defaults take. Numbers to be told are scaled for them by those of all rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamcl.bench.streams.sources import Stream
from streamcl.config import Config
from streamcl.estimator import Learner

Array = npt.NDArray[Any]
RATE, STEP, BATCH = 0.001, 16, 64
BUFFER = 500  # rows
ANEW = 1000  # rows between two trainings from scratch, where no task ends
SOLVED_ANEW = (
    100  # inputs up to which an exact learner is asked by all rows so far; else, and of tables, by its last solution
)


class Method(Protocol):
    """One way to learn a stream."""

    def learn(self, rows: Array) -> None:
        """Rows of the open task, by their places in the stream."""

    def end(self) -> None:
        """The task ends with the rows so far."""

    def predict(self, rows: Array) -> Array:
        """Labels, or numbers."""

    def kept(self) -> tuple[int, int]:
        """Rows that are held, and bytes of everything that is needed to go on."""


class Ours:
    """A learner of this process, nothing set but what kind of targets there are."""

    def __init__(self, stream: Stream, seed: int, hidden: Sequence[int], kind: str) -> None:
        model: dict[str, Any] = {"learner": kind, "likelihood": "gaussian" if stream.real else "categorical"}
        if kind == "network":
            model["args"] = {"hidden": list(hidden)}
        self._stream = stream
        self._learner = Learner({"model": model, "train": {"seed": seed, "device": "cpu"}})
        large = stream.kind == "tables" or stream.x.shape[1] > SOLVED_ANEW
        self._learner.predicts_as_scored = kind == "exact" and large
        self._open, self._task = 0, ""

    def learn(self, rows: Array) -> None:
        """As the protocol has it."""
        self._open += len(rows)
        self._task = f"task {self._stream.task[rows[0]]}"
        self._learner.observe(self._stream.sent[rows], self._stream.y[rows], self._task, schema=self._stream.schema)

    def end(self) -> None:
        """As the protocol has it."""
        self._open = 0
        self._learner.boundary(self._task)

    def predict(self, rows: Array) -> Array:
        """As the protocol has it."""
        found = self._learner.predict(self._stream.sent[rows], schema=self._stream.schema)
        return np.asarray(found.mean if self._stream.real else found.label)

    def kept(self) -> tuple[int, int]:
        """The bytes of its file."""
        with tempfile.TemporaryDirectory() as place:
            path = Path(place) / "learner"
            self._learner.save(path)
            return self._open, path.stat().st_size


class FineTuning:
    """A network that goes on. Rows of a task are held until its end, as streamcl holds them."""

    def __init__(self, stream: Stream, seed: int, hidden: Sequence[int]) -> None:
        self._stream, self._hidden = stream, hidden
        self._x = torch.from_numpy(stream.x.reshape(len(stream.x), -1))
        y = stream.y
        self._centre, self._spread = (float(y.mean()), float(y.std()) or 1.0) if stream.real else (0.0, 1.0)
        self._y = torch.tensor((y - self._centre) / self._spread if stream.real else y)
        self._rng = np.random.default_rng(seed)
        torch.manual_seed(seed)
        self._begin()
        self._open: list[int] = []

    def _begin(self) -> None:
        outputs = 1 if self._stream.real else int(self._stream.y.max()) + 1
        widths = [self._x.shape[1], *self._hidden, outputs]
        layers = [part for a, b in pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self._network = nn.Sequential(*layers[:-1])
        self._optimiser = torch.optim.Adam(self._network.parameters(), lr=RATE)

    def learn(self, rows: Array) -> None:
        """As the protocol has it."""
        for start in range(0, len(rows), STEP):
            self._step(rows[start : start + STEP])
        self._open += rows.tolist()

    def end(self) -> None:
        """As the protocol has it."""
        self._epochs(np.array(self._open))
        self._open = []

    def _epochs(self, rows: Array) -> None:
        for _ in range(Config().epochs(len(rows))):
            order = self._rng.permutation(rows)
            for start in range(0, len(order), BATCH):
                self._step(order[start : start + BATCH])

    def _step(self, rows: Array) -> None:
        self._optimiser.zero_grad()
        self._loss(self._network(self._x[rows]), self._y[rows]).backward()  # type: ignore[no-untyped-call]
        self._optimiser.step()

    def _loss(self, output: Tensor, y: Tensor) -> Tensor:
        if self._stream.real:
            return nn.functional.mse_loss(output[:, 0], y)
        return nn.functional.cross_entropy(output, y)

    def predict(self, rows: Array) -> Array:
        """As the protocol has it."""
        with torch.no_grad():
            output = self._network(self._x[rows])
        found = output[:, 0] * self._spread + self._centre if self._stream.real else output.argmax(1)
        return np.asarray(found.numpy())

    def kept(self) -> tuple[int, int]:
        """Parameters and the optimiser's two moments; and the rows."""
        rows = self._rows()
        numbers = 3 * sum(p.numel() for p in self._network.parameters())
        return rows, 4 * numbers + rows * (self._stream.sent[0].nbytes + self._stream.y[:1].nbytes)

    def _rows(self) -> int:
        return len(self._open)


class Replay(FineTuning):
    """Beside as many rows of a reservoir (Vitter 1985; experience replay, Chaudhry et al. 2019)."""

    def __init__(self, stream: Stream, seed: int, hidden: Sequence[int]) -> None:
        super().__init__(stream, seed, hidden)
        self._buffer: list[int] = []
        self._seen = 0

    def learn(self, rows: Array) -> None:
        """As the protocol has it."""
        super().learn(rows)
        for row in rows.tolist():
            self._seen += 1
            if len(self._buffer) < BUFFER:
                self._buffer.append(row)
            elif (place := int(self._rng.integers(self._seen))) < BUFFER:
                self._buffer[place] = row

    def _step(self, rows: Array) -> None:
        old = self._rng.choice(self._buffer, len(rows)) if self._buffer else np.array([], int)
        super()._step(np.concatenate([rows, old]))

    def _rows(self) -> int:
        return len(self._open) + len(self._buffer)


class Retraining(FineTuning):
    """On all rows so far, from scratch, now and then; in between nothing is learned."""

    def __init__(self, stream: Stream, seed: int, hidden: Sequence[int]) -> None:
        super().__init__(stream, seed, hidden)
        self._trained = 0

    def learn(self, rows: Array) -> None:
        """As the protocol has it."""
        self._open += rows.tolist()
        if not self._stream.tasks and len(self._open) >= self._trained + ANEW:
            self.end()

    def end(self) -> None:
        """As the protocol has it."""
        self._begin()
        self._epochs(np.array(self._open))
        self._trained = len(self._open)


class River:
    """One of River's models, row by row."""

    def __init__(self, stream: Stream, seed: int, kind: str) -> None:
        from river import forest, linear_model, multiclass, preprocessing, tree

        real = stream.real
        linear: Any = linear_model.LinearRegression() if real else linear_model.LogisticRegression()
        made: dict[str, Callable[[], Any]] = {
            "forest": lambda: (forest.ARFRegressor if real else forest.ARFClassifier)(seed=seed),
            "tree": lambda: (tree.HoeffdingAdaptiveTreeRegressor if real else tree.HoeffdingAdaptiveTreeClassifier)(
                seed=seed
            ),
            "linear": lambda: preprocessing.StandardScaler() | (linear if real else multiclass.OneVsRestClassifier(linear)),
        }
        self._stream, self._model = stream, made[kind]()

    def _row(self, row: int) -> dict[int, float]:
        return dict(enumerate(self._stream.x[row].reshape(-1).tolist()))

    def learn(self, rows: Array) -> None:
        """As the protocol has it."""
        for row in rows.tolist():
            self._model.learn_one(self._row(row), self._stream.y[row].item())

    def end(self) -> None:
        """Nothing: it is told of no tasks."""

    def predict(self, rows: Array) -> Array:
        """As the protocol has it."""
        found = [self._model.predict_one(self._row(row)) for row in rows.tolist()]
        return np.array([-1 if each is None else each for each in found])

    def kept(self) -> tuple[int, int]:
        """As River counts its objects."""
        return 0, int(self._model._raw_memory_usage)


class PartialFit:
    """scikit-learn's network."""

    def __init__(self, stream: Stream, seed: int, hidden: Sequence[int]) -> None:
        from sklearn.neural_network import MLPClassifier, MLPRegressor

        self._stream = stream
        self._x = stream.x.reshape(len(stream.x), -1)
        self._centre, self._spread = (float(stream.y.mean()), float(stream.y.std()) or 1.0) if stream.real else (0.0, 1.0)
        self._model: Any = (MLPRegressor if stream.real else MLPClassifier)(
            hidden_layer_sizes=tuple(hidden), random_state=seed
        )
        self._classes = {} if stream.real else {"classes": np.arange(int(stream.y.max()) + 1)}

    def learn(self, rows: Array) -> None:
        """As the protocol has it."""
        for start in range(0, len(rows), STEP):
            part = rows[start : start + STEP]
            y = (self._stream.y[part] - self._centre) / self._spread if self._stream.real else self._stream.y[part]
            self._model.partial_fit(self._x[part], y, **self._classes)

    def end(self) -> None:
        """Nothing: it is told of no tasks."""

    def predict(self, rows: Array) -> Array:
        """As the protocol has it."""
        return np.asarray(self._model.predict(self._x[rows]) * self._spread + self._centre)

    def kept(self) -> tuple[int, int]:
        """Its weights, and the optimiser's two moments."""
        return 0, 3 * sum(each.nbytes for each in (*self._model.coefs_, *self._model.intercepts_))


METHODS: dict[str, Callable[[Stream, int, Sequence[int]], Method]] = {
    "streamcl": lambda stream, seed, hidden: Ours(stream, seed, hidden, "network"),
    "exact": lambda stream, seed, hidden: Ours(stream, seed, hidden, "exact"),
    "fine-tuning": FineTuning,
    "replay": Replay,
    "retraining": Retraining,
    "forest": lambda stream, seed, hidden: River(stream, seed, "forest"),
    "tree": lambda stream, seed, hidden: River(stream, seed, "tree"),
    "linear": lambda stream, seed, hidden: River(stream, seed, "linear"),
    "partial_fit": PartialFit,
}
