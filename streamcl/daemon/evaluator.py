"""Accuracy on each task's evaluation set, with the parameters from directly after a boundary, a block of rows at a time.

Guarantees: holds one block (of an NPZ file: the file) and one copy of the network; a problem with a file is reported once
for each version of it, without any of its content, and holds nothing up. Learns nothing from these rows.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np
import numpy.typing as npt
import torch

from streamcl.config import Config
from streamcl.datafiles import open_data
from streamcl.errors import DataError, Refused
from streamcl.inputs import Inputs
from streamcl.learning import kinds
from streamcl.learning.evaluation import Calibration, confidence, right
from streamcl.learning.network import Network
from streamcl.schema import LabelMap, Signature

SUFFIXES = (".npz", ".parquet", ".csv")
BLOCK_ROWS = 1024
MOST_AHEAD = 100  # sets that are scored although their task has not come
UNKNOWN = -1  # no output: a label that the model has never been shown is predicted wrong

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """accuracy: the share of the set's rows (or of their targets) that is predicted right. rows: of the set. constant: the
    share that the same answer to every row has right, the best there is; of a set of one class, a guess among all.
    calibration: expected calibration error (`learning.evaluation.Calibration`)."""

    task: str
    accuracy: float
    rows: int
    constant: float
    calibration: float


class Evaluator:
    """Finds and scores the evaluation sets of a directory: files TASK.npz, TASK.parquet and TASK.csv.

    If a task's name cannot be a file name, its file is looked for with percent-encoded characters. say: called with what
    is wrong with which task's file.
    """

    def __init__(self, config: Config, device: torch.device, say: Callable[[str, str], None]) -> None:
        self.config = config
        self.device = device
        self.directory = Path(config.evaluation.directory)
        self.say = say
        self._said: dict[str, tuple[int, int]] = {}

    def evaluate(
        self,
        tasks: Collection[str],
        signature: Signature,
        labels: LabelMap,
        state: Mapping[str, Array],
        classes: int | None = None,
        inputs: Inputs | None = None,
        sight: Callable[[str], tuple[int, Collection[int] | None]] = lambda task: (0, None),
    ) -> Iterator[Evaluated | None]:
        """Score a network's state on every task that has a set: None after each block, the result at each set's end.

        classes: outputs that the network had then. sight: of a task by name, its number and the outputs of its labels,
        where it is known whose rows they are.
        """
        found = self._find(tasks)
        if not found:
            return
        try:
            network = kinds.network(self.config, signature, labels, self.device, trained=False, classes=classes)
            network.load(state)
        except Exception as error:  # no memory for a second network, most likely; learning goes on without
            self._complain(
                "", self.directory, f"evaluation: no second network for it could be made: {type(error).__name__}"
            )
            return
        for task, path in found.items():
            network.see(*sight(task))
            try:
                yield from self._score(task, path, network, inputs or Inputs.of(self.config))
            except Exception as error:  # of the file or of the model; their text may quote what is in the file
                if not isinstance(error, DataError | OSError):
                    self._complain(task, path, f"{path.name}: the model fails on it ({type(error).__name__})")
                    continue
                expected = f"rows of shape {list(signature.x_shape)}, as in the stream, and a target for each"
                self._complain(task, path, f"{path.name} is not a readable evaluation set; expected {expected}")

    def ahead(self, known: Collection[str]) -> list[str]:
        """The names of sets whose task is not among those known."""
        try:
            files = sorted(entry.name for entry in os.scandir(self.directory) if entry.is_file())
        except OSError:
            return []
        names = (unquote(name.removesuffix(Path(name).suffix)) for name in files if Path(name).suffix in SUFFIXES)
        return [name for name in dict.fromkeys(names) if name not in known][:MOST_AHEAD]

    def _find(self, tasks: Collection[str]) -> dict[str, Path]:
        """The tasks that have a file, in their order."""
        try:
            names = {entry.name for entry in os.scandir(self.directory) if entry.is_file()}
        except OSError as error:
            self._complain("", self.directory, f"evaluation.directory: {error.strerror}")
            return {}
        found = {}
        for task in tasks if names else ():
            candidates = (stem + suffix for stem in (task, quote(task, safe="")) for suffix in SUFFIXES)
            name = next((candidate for candidate in candidates if candidate in names), None)
            if name is not None:
                found[task] = self.directory / name
        return found

    def _score(self, task: str, path: Path, network: Network, inputs: Inputs) -> Iterator[Evaluated | None]:
        hits, rows, bins = 0.0, 0, Calibration()
        answers = Answers(len(network.labels.labels()))
        data = open_data(path, rows=BLOCK_ROWS, named=inputs.pinned is not None)
        for _ in data.checking():
            yield None
        if inputs.pinned is not None:
            data.fit(inputs.pinned.columns, inputs.pinned.left_out, begun=True)
        labels = network.conversion.to_outputs is not None
        form = data.form("integer" if network.signature.x_integer else "real", integer_targets=labels)
        for block in data.blocks():
            x, y, columns = data.batch(*block, form)
            try:
                x, y = inputs.encode(x, columns), None if y is None else inputs.labels(y, columns)
            except Refused as refused:
                self._complain(task, path, f"{path.name}: {refused.message}")
                return
            wrong = _what_is_wrong(x, y, network)
            if wrong is not None or y is None:
                self._complain(task, path, f"{path.name}: {wrong}")
                return
            right, confidence = self._right(x, y, network)
            hits += float(right.sum())
            bins.add(confidence, right)
            rows += len(x)
            answers.add(y, categorical=labels)
            yield None
        if rows:
            yield Evaluated(task, hits / rows, rows, answers.constant, bins.error)

    def _right(self, x: Array, y: Array, network: Network) -> tuple[torch.Tensor, torch.Tensor]:
        """The share of each row's targets that is predicted right, and how sure the model is of its answer, [n]."""
        name = self.config.model.family
        target = _outputs(y, network.labels) if name == "categorical" else y
        with network.evaluating():
            output = network.of_known_labels(network.shaped(network.module(network.conversion.x(x))))
            hits = right(name, output, torch.from_numpy(np.ascontiguousarray(target)).to(self.device))
            return hits, confidence(name, output)

    def _complain(self, task: str, path: Path, text: str) -> None:
        """Once for each version of a file."""
        try:
            seen = path.stat()
            version = (seen.st_mtime_ns, seen.st_size)
        except OSError:
            version = (0, 0)
        if self._said.get(str(path)) != version:
            self._said[str(path)] = version
            self.say(task, text)


class Answers:
    """How often each answer is the right one, in a set of rows. classes: of the model."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self._labels: Counter[int] = Counter()
        self._ones: Array = np.zeros(0)
        self._rows = 0

    def add(self, y: Array, categorical: bool) -> None:
        """A block's targets."""
        self._rows += len(y)
        if categorical:
            values, counts = np.unique(y, return_counts=True)
            self._labels.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
        else:
            ones = (y > 0.5).reshape(len(y), -1).sum(0)
            self._ones = ones + self._ones if len(self._ones) else ones

    @property
    def constant(self) -> float:
        """As of `Evaluated`."""
        if self._labels:
            (_, most), *_ = self._labels.most_common(1)
            return most / self._rows if most < self._rows else 1 / self.classes
        share = self._ones / self._rows
        likely = np.maximum(share, 1 - share)
        return float(np.where(likely < 1, likely, 0.5).mean())


def _what_is_wrong(x: Array, y: Array | None, network: Network) -> str | None:
    signature = network.signature
    if y is None:
        return "expected a target for each row"
    if x.shape[1:] != tuple(signature.x_shape):
        return f"expected rows of shape {list(signature.x_shape)}, as in the stream, got {list(x.shape[1:])}"
    if signature.x_integer and x.dtype.kind not in "iu":
        return f"expected rows of integers, as in the stream, got {x.dtype}"
    if network.conversion.to_outputs is not None and (y.ndim != 1 or y.dtype.kind not in "iu"):
        return f"expected one integer label a row, got {y.dtype} of shape {list(y.shape[1:])} a row"
    if network.conversion.to_outputs is None and y.shape[1:] != tuple(signature.y_shape):
        return f"expected targets of shape {list(signature.y_shape)}, as in the stream, got {list(y.shape[1:])}"
    return None


def _outputs(y: Array, labels: LabelMap) -> npt.NDArray[np.int64]:
    """The output of each label, `UNKNOWN` where it has none."""
    values, places = np.unique(y, return_inverse=True)
    outputs = np.array([labels.outputs.get(int(value), UNKNOWN) for value in values], np.int64)
    return outputs[places]
