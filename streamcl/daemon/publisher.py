"""The parameters, put where the predictor, the operators and exports read them: seldom enough to cost almost nothing.

Guarantees: what is published is whole and finite; a revisit shows at its boundary, not before.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.config import Config, of_model
from streamcl.core.parameters import FlatParameters
from streamcl.learning.arithmetic import arithmetic
from streamcl.learning.kinds import AnyModel
from streamcl.learning.learner import Learner
from streamcl.learning.network import Network
from streamcl.storage import published
from streamcl.storage.disk import FULL
from streamcl.storage.frozen import FrozenStore
from streamcl.storage.state import StateDirectory

PUBLISH_SECONDS = 0.2
PUBLISH_SHARE = 0.01  # at most this share of the time goes into it


class Publisher:
    """Publishes one learner's parameters at a time. frozen: where what never changes is stored once. full: why the newest
    parameters are not shown yet.

    What it writes is all that predictions take, beside the posterior and the factory's code: also on another machine.
    """

    def __init__(self, state: StateDirectory, frozen: FrozenStore, config: Config) -> None:
        self.state, self.frozen = state, frozen
        self._told = {"configuration": of_model(config), "arithmetic": arithmetic()}
        self._last = self._cost = 0.0
        self.full: str | None = None
        self._laid_out: tuple[FlatParameters, dict[str, Any]] | None = None
        self._rested: tuple[int, ...] | None = None  # what was published between two records

    def publish(self, learner: Learner, *, force: bool = False, before_any: bool = False, at_rest: bool = False) -> None:
        """Where it is time, or `force`; on a full disk what was published stays, `full` says so, and the next one is due
        soon.

        before_any: no checkpoint has a posterior yet, so the prior is published too.
        at_rest: between two records, where nothing more comes for now; what was published so already is not again.
        """
        started = time.monotonic()
        model = learner.model
        if model is None or (not force and started - self._last < max(PUBLISH_SECONDS, self._cost / PUBLISH_SHARE)):
            return
        if not force and learner.open_task is not None and learner.open_task.revisited is not None:
            return
        try:
            self._publish(learner, model, before_any, at_rest)
        except OSError as error:
            if error.errno not in FULL:
                raise
            self.full = f"{error.strerror}; readers get older parameters until there is room, training goes on"
        else:
            self.full = None
        if not at_rest or self.full is not None:  # what comes next is published as soon as it would have been
            self._last = time.monotonic()
            self._cost = self._last - started

    def _publish(self, learner: Learner, model: AnyModel, before_any: bool, at_rest: bool) -> None:
        state = learner.steps, learner.next_lsn, learner.samples, learner.consolidations
        if at_rest and state == self._rested:
            return
        served = learner.served()
        if not np.isfinite(served["theta"]).all():
            return  # about to be rolled back
        if before_any and not self.state.posterior.exists():
            self._publish_prior(learner.consolidations, model)
        meta = {
            "version": learner.steps,
            "signature": model.signature.plain(),
            "sent": None if learner.sent is None else learner.sent.plain(),
            "columns": None if learner.inputs.pinned is None else learner.inputs.pinned.plain(),
            "words": learner.inputs.words.known,
            "inputs": learner.inputs.plain(),
            "input_stage": learner.inputs.description(),
            "labels": learner.labels.labels().tolist(),
            "outputs": [[label, output] for label, output in learner.labels.outputs.items()],
            "posterior": learner.consolidations,
            "parameters": model.network.parameters.layout.plain(),
            "layout": self._layout_of(model.network),
            "blocks": model.network.blocks,
            "grows": model.network.grows,
            "sights": [[task, outputs] for task, outputs in learner.sights.items()],
            "position": learner.next_lsn,
            "rows": learner.samples,
            **self._told,
        }
        published.publish(self.state.parameters, meta, self._referred(served))
        self._rested = state if at_rest else None

    def _referred(self, served: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """With references in the place of what is stored by digest; on a full disk, the arrays themselves."""
        try:
            return self.frozen.referred(served, whole=False)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return served

    def _layout_of(self, network: Network) -> dict[str, Any]:
        """Found out once a network: it does not change while it learns, but for new outputs, which are other parameters."""
        if self._laid_out is None or self._laid_out[0] is not network.parameters:
            self._laid_out = network.parameters, network.layout()
        return self._laid_out[1]

    def _publish_prior(self, consolidations: int, model: AnyModel) -> None:
        """Until there is a checkpoint, which holds the posterior, show the one there is before any task."""
        published.publish(self.state.posterior, {"posterior": consolidations}, model.posterior_state())
