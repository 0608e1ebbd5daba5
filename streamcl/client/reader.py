"""A reader: predictions of the model as it stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamcl.arrays import as_array
from streamcl.client.requests import Requester
from streamcl.handshake import KeysGiven, ServerGiven
from streamcl.protocol.frames import Array

PREDICT = "tcp://127.0.0.1:5758"


@dataclass(frozen=True, slots=True)
class Prediction:
    """The model's predictions for some rows.

    version: of the parameters, growing with training. Categorical: probs [n, classes], labels [classes], the label of
    each output (-1 where none was seen yet). Bernoulli: probs. Gaussian: mean and variance.
    """

    version: int
    arrays: dict[str, Array] = field(repr=False)
    labels: Array | None = field(default=None, repr=False)

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
        """The most probable label of each row, [n] (categorical)."""
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

    def predict(self, x: Any, samples: int = 0) -> Prediction:
        """Predictions for the rows x [n, ...]; with samples > 0, averaged over draws from the posterior."""
        header: dict[str, Any] = {"type": "predict"}
        if samples:
            header["samples"] = int(samples)
        reply, arrays = self._request(header, {"x": as_array(x)})
        labels = reply.get("labels")
        return Prediction(
            reply["version"],
            {name: array.copy() for name, array in arrays.by_name.items()},
            None if labels is None else np.array(labels, np.int64),
        )
