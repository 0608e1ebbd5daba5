"""Accuracy on each task's evaluation set, with the parameters from directly after a boundary, a block of rows at a time.

Guarantees: holds one block (of an NPZ file: the file) and one copy of the network; a problem with a file is reported once
for each version of it, without any of its content, and holds nothing up. Learns nothing from these rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import numpy.typing as npt
import torch

from streamcl.config import Config
from streamcl.datafiles import open_data
from streamcl.errors import DataError
from streamcl.learning.evaluation import right
from streamcl.learning.network import Network
from streamcl.schema import LabelMap, Signature

SUFFIXES = (".npz", ".parquet", ".csv")
BLOCK_ROWS = 1024
UNKNOWN = -1  # no output: a label that the model has never been shown is predicted wrong

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Evaluated:
    """accuracy: the share of the set's rows (or of their targets) that is predicted right. rows: of the set."""

    task: str
    accuracy: float
    rows: int


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
        self, tasks: Collection[str], signature: Signature, labels: LabelMap, state: Mapping[str, Array]
    ) -> Iterator[Evaluated | None]:
        """Score a network's state on every task that has a set: None after each block, the result at each set's end."""
        found = self._find(tasks)
        if not found:
            return
        try:
            network = Network(self.config, signature, labels, self.device, trained=False)
            network.load(state)
        except Exception as error:  # no memory for a second network, most likely; learning goes on without
            self._complain(
                "", self.directory, f"evaluation: no second network for it could be made: {type(error).__name__}"
            )
            return
        for task, path in found.items():
            try:
                yield from self._score(task, path, network)
            except Exception as error:  # of the file or of the model; their text may quote what is in the file
                if not isinstance(error, DataError | OSError):
                    self._complain(task, path, f"{path.name}: the model fails on it ({type(error).__name__})")
                    continue
                expected = f"rows of shape {list(signature.x_shape)}, as in the stream, and a target for each"
                self._complain(task, path, f"{path.name} is not a readable evaluation set; expected {expected}")

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

    def _score(self, task: str, path: Path, network: Network) -> Iterator[Evaluated | None]:
        hits, rows = 0.0, 0
        data = open_data(path, rows=BLOCK_ROWS)
        for _ in data.checking():
            yield None
        labels = network.conversion.to_outputs is not None
        form = data.form("integer" if network.signature.x_integer else "real", integer_targets=labels)
        for block in data.blocks():
            x, y = form.of(*block)
            wrong = _what_is_wrong(x, y, network)
            if wrong is not None or y is None:
                self._complain(task, path, f"{path.name}: {wrong}")
                return
            hits += float(self._right(x, y, network).sum())
            rows += len(x)
            yield None
        if rows:
            yield Evaluated(task, hits / rows, rows)

    def _right(self, x: Array, y: Array, network: Network) -> torch.Tensor:
        name = self.config.model.likelihood
        target = _outputs(y, network.labels) if name == "categorical" else y
        with network.evaluating():
            output = network.shaped(network.module(network.conversion.x(x)))
            return right(name, output, torch.from_numpy(np.ascontiguousarray(target)).to(self.device))

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
