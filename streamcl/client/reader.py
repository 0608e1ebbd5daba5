"""A reader: predictions of the model as it stands."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcl import columns, dataframes
from streamcl.arrays import as_array
from streamcl.client.requests import Requester
from streamcl.errors import Refused
from streamcl.handshake import KeysGiven, ServerGiven
from streamcl.protocol.frames import Array

PREDICT = "tcp://127.0.0.1:5758"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's predictions for some rows.

    version: of the parameters, growing with training. Categorical: probs [n, classes], labels [classes], the label of
    each column: -1 where none was seen yet or, of a stream whose labels are words, None. Bernoulli: probs. Gaussian:
    mean and variance. note: what a reader should know of how they were computed (row by row, say); None where that is
    nothing. position: the log record that the parameters have come to. behind: of a follower's answer, how far that is
    behind what the daemon has published last, in steps, records and rows, and the seconds since the daemon was heard; None
    of the daemon's own. unseen: of a stream that has a label -1, the columns whose label has not come.
    """

    version: int
    arrays: dict[str, Array] = field(repr=False)
    labels: Array | None = field(default=None, repr=False)
    note: str | None = None
    position: int | None = None
    behind: Mapping[str, Any] | None = None
    unseen: Sequence[int] | None = None

    @property
    def seen(self) -> list[int]:
        """The columns of `probs` whose label has come."""
        if self.labels is None:
            return []
        if self.unseen is not None:
            return [place for place in range(len(self.labels)) if place not in self.unseen]
        return [place for place, label in enumerate(self.labels.tolist()) if label is not None and label != -1]

    @property
    def probs(self) -> Array:
        """Probabilities, [n, classes] or like the targets (Bernoulli)."""
        return self._found("probs")

    @property
    def mean(self) -> Array:
        """Predictive means, like the targets (Gaussian)."""
        return self._found("mean")

    @property
    def variance(self) -> Array:
        """Predictive variances, like the targets (Gaussian)."""
        return self._found("variance")

    def _found(self, name: str) -> Array:
        if name not in self.arrays:
            raise AttributeError(f"this likelihood predicts {', '.join(self.arrays)}, no {name}")
        return self.arrays[name]

    @property
    def label(self) -> Array:
        """The most probable label of each row, [n] (categorical): a number, or a word."""
        best: Array = self.probs.argmax(1)
        return best if self.labels is None else np.asarray(self.labels)[best]


class Reader(Requester):
    """Asks a daemon for predictions; `keys` and `server_key` as for a Producer. Raises Refused, Unreachable."""

    def __init__(
        self,
        endpoint: str = PREDICT,
        *,
        timeout: float = 30.0,
        keys: KeysGiven = None,
        server_key: ServerGiven = None,
    ) -> None:
        super().__init__(endpoint, timeout, keys, server_key)
        self._known: tuple[dict[str, columns.Kind], frozenset[str]] | None = None

    def predict(
        self,
        x: Any,
        samples: int = 0,
        uncertainty: bool = False,
        task: str | None = None,
        schema: Sequence[Any] | None = None,
    ) -> Prediction:
        """Predictions for the rows x [n, ...]; with what the posterior leaves open of the outputs, if asked for.

        x: an array, or a table of pandas, Polars or Arrow, whose columns are matched by name; its target, and what the
        stream's first sender left out, stay here. samples: averaged over so many draws of the outputs (linearised
        predictive). uncertainty: the same in closed form. task: whose rows they are, where `model.scenario` is task: an
        answer is then one of that task's labels. schema: of x's columns, as mappings of name, kind and categories, where x
        is an array with names.
        """
        header: dict[str, Any] = {"type": "predict"}
        if dataframes.is_table(x):
            kinds, not_sent = self._told()
            found = dataframes.batch(x, kinds=kinds, left_out=not_sent)
            x, schema = found.x, found.columns
        if schema is not None:
            header["schema"] = columns.plain(columns.from_plain(schema))
        if samples:
            header["samples"] = int(samples)
        if uncertainty:
            header["uncertainty"] = True
        if task is not None:
            header["task"] = task
        reply, arrays = self._request(header, {"x": as_array(x)})
        labels = reply.get("labels")
        return Prediction(
            reply["version"],
            {name: array.copy() for name, array in arrays.by_name.items()},
            None if labels is None else named(labels, reply.get("words")),
            reply.get("note"),
            reply.get("position"),
            reply.get("behind"),
            reply.get("unseen"),
        )

    def _told(self) -> tuple[dict[str, columns.Kind], frozenset[str]]:
        """Kinds of the stream's columns, and the columns that are not to be sent; asked for once, and nothing of a daemon
        that does not say."""
        if self._known is None:
            with contextlib.suppress(Refused):
                found = self.schema() or {"schema": [], "left_out": []}
                kinds = {each["name"]: each["kind"] for each in found["schema"]}
                targets = [name for name, kind in kinds.items() if kind == "target"]
                self._known = kinds, frozenset([*found["left_out"], *targets])
        return self._known or ({}, frozenset())

    def schema(self) -> dict[str, Any] | None:
        """The columns that the stream's first batch pinned: `schema`, a list of maps of name and kind, and `left_out`.

        None where that had no schema. Raises Refused ``not_ready`` before the first batch.
        """
        reply, _ = self._request({"type": "schema"}, {})
        return None if reply["schema"] is None else {name: reply[name] for name in ("schema", "left_out")}


def named(labels: Sequence[int], words: Sequence[str] | None) -> Array:
    """The labels of outputs as an array: numbers or, where there are words, those."""
    if not words:
        return np.array(labels, np.int64)
    found = np.empty(len(labels), object)
    found[:] = [words[label] if label >= 0 else None for label in labels]
    return found
