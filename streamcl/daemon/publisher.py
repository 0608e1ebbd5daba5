"""The parameters, put where the predictor, the operators and exports read them: seldom enough to cost almost nothing.

Guarantees: what is published is whole and finite; a revisit shows at its boundary, not before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.learning.learner import Learner
from streamcl.learning.network import Network
from streamcl.storage import published
from streamcl.storage.disk import FULL
from streamcl.storage.frozen import FrozenStore
from streamcl.storage.state import StateDirectory

PUBLISH_SECONDS = 0.2
PUBLISH_SHARE = 0.01  # at most this share of the time goes into it


class Publisher:
    """Publishes one learner's parameters at a time. frozen: where what never changes is stored once."""

    def __init__(self, state: StateDirectory, frozen: FrozenStore) -> None:
        self.state, self.frozen = state, frozen
        self._last = self._cost = 0.0
        self._laid_out: tuple[Network, dict[str, Any]] | None = None

    def publish(self, learner: Learner, *, force: bool = False, before_any: bool = False) -> None:
        """Where it is time, or `force`. before_any: no checkpoint has a posterior yet, so the prior is published too."""
        started = time.monotonic()
        network = learner.network
        if network is None or (not force and started - self._last < max(PUBLISH_SECONDS, self._cost / PUBLISH_SHARE)):
            return
        if not force and learner.open_task is not None and learner.open_task.revisited is not None:
            return
        served = learner.served()
        if not np.isfinite(served["theta"]).all():
            return  # about to be rolled back
        if before_any and not self.state.posterior.exists():
            self._publish_prior(learner)
        meta = {
            "version": learner.steps,
            "signature": None if learner.signature is None else learner.signature.plain(),
            "labels": learner.labels.labels().tolist(),
            "posterior": learner.consolidations,
            "parameters": network.parameters.layout.plain(),
            "layout": self._layout_of(network),
        }
        published.publish(self.state.parameters, meta, self._referred(served))
        self._last = time.monotonic()
        self._cost = self._last - started

    def _referred(self, served: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """With references in the place of what is stored by digest; on a full disk, the arrays themselves."""
        try:
            return self.frozen.referred(served, whole=False)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return served

    def _layout_of(self, network: Network) -> dict[str, Any]:
        """Found out once a network: it does not change while it learns."""
        if self._laid_out is None or self._laid_out[0] is not network:
            self._laid_out = network, network.layout()
        return self._laid_out[1]

    def _publish_prior(self, learner: Learner) -> None:
        """Until there is a checkpoint, which holds the posterior, show the one there is before any task."""
        if learner.posterior is None:
            return
        published.publish(self.state.posterior, {"posterior": learner.consolidations}, learner.posterior.total.state())
