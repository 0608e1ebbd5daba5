"""An operator: what the daemon is asked to do, and what it says of itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamcl.client.requests import Requester
from streamcl.handshake import KeysGiven, ServerGiven
from streamcl.protocol import messages
from streamcl.protocol.frames import Array, NamedArrays

ADMIN = "tcp://127.0.0.1:5759"


@dataclass(frozen=True, slots=True)
class ParameterVectors:
    """The flat float64 vectors of the model and its posterior, with the layout of the parameters in them."""

    theta: Array = field(repr=False)
    precision: Array = field(repr=False)
    shift: Array = field(repr=False)
    names: list[str]
    shapes: list[list[int]]


@dataclass(frozen=True, slots=True)
class Export:
    """A model to be used elsewhere.

    description: factory, arguments, labels and the like (`model.json`). state: the bytes of a safetensors file with every
    entry of the module's `state_dict()`. sums: an exact learner's, as `Admin.sums`.
    """

    vectors: ParameterVectors
    description: dict[str, Any] = field(repr=False)
    state: bytes = field(repr=False)
    sums: bytes | None = field(default=None, repr=False)


def _vectors(reply: Mapping[str, Any], arrays: NamedArrays) -> ParameterVectors:
    vectors = {name: arrays[name].copy() for name in ("theta", "precision", "shift")}
    return ParameterVectors(**vectors, names=reply["names"], shapes=reply["shapes"])


class Admin(Requester):
    """An operator's requests; `keys` and `server_key` as for a Producer.

    timeout: seconds to wait for an answer; of what takes effect later (a boundary, `abandon`, `forget`, a checkpoint),
    seconds for which the daemon is not at work and says why. Each returns the reply's fields; raises Refused, Unreachable.
    """

    def __init__(
        self,
        endpoint: str = ADMIN,
        *,
        timeout: float = 30.0,
        keys: KeysGiven = None,
        server_key: ServerGiven = None,
    ) -> None:
        super().__init__(endpoint, timeout, keys, server_key)

    def status(self) -> dict[str, Any]:
        """What the daemon is doing."""
        return self._ask({"type": "status"})

    def tasks(self, offset: int = 0) -> list[dict[str, Any]]:
        """One map a task, from the `offset`-th on: task, samples, weight, loss, revisits, penalty, penalty_rise, closed_at.

        In factor mode also revisit_rank (1: a revisit would repay most) and revisit_reason.
        """
        return self._pages("tasks", "tasks", offset)

    def metrics(self) -> dict[str, float]:
        """The values of /metrics by sample name."""
        return self._ask({"type": "metrics"})

    def boundary(
        self,
        task: str,
        weight: float | None = None,
        barrier: Mapping[str, int] | None = None,
        wait: bool = True,
    ) -> dict[str, Any]:
        """Close a task after everything durable now; with `wait`, until it is consolidated."""
        closing = messages.AdminBoundary(
            task=task,
            weight=None if weight is None else float(weight),
            barrier=dict(barrier) if barrier else None,
            wait=wait,
        )
        return self._ask(messages.plain(closing), patient=wait)

    def revisit(self, task: str, damping: float | None = None) -> dict[str, Any]:
        """Reopen a consolidated task, whose data is sent again after this."""
        reopening = messages.AdminRevisit(task=task, damping=None if damping is None else float(damping))
        return self._ask(messages.plain(reopening))

    def abandon(self, task: str | None = None) -> dict[str, Any]:
        """Give up the open revisit; returns once the earlier state is back."""
        return self._ask({"type": "abandon"} | ({} if task is None else {"task": task}), patient=True)

    def forget(self, task: str) -> dict[str, Any]:
        """Withdraw a task's factor for good; returns once the posterior is without it."""
        return self._ask({"type": "forget", "task": task}, patient=True)

    def retry(self, task: str) -> dict[str, Any]:
        """Try again to learn what was kept of a task; returns once it is. Raises Refused ``unlearnable`` if it fails."""
        return self._ask({"type": "retry", "task": task}, patient=True)

    def drop(self, task: str) -> dict[str, Any]:
        """Give up what was kept of a task because it could not be learned, for good."""
        return self._ask({"type": "drop", "task": task}, patient=True)

    def quarantine(self, offset: int = 0) -> list[dict[str, Any]]:
        """What could not be learned and is kept, a map each: task, state (held or set-aside), rows, reason, time; of a
        batch also its producer and seq."""
        return self._pages("quarantine", "quarantine", offset)

    def rollback(self, task: str) -> dict[str, Any]:
        """Undo a task's newest boundary, or revisit, and everything learned since: parameters and posterior return to
        those from before it, to the bit. `undone`: the tasks that are unknown again; `revisits_undone`: those that are
        as they were before they were fed again."""
        return self._ask({"type": "rollback", "task": task}, patient=True)

    def versions(self) -> list[dict[str, Any]]:
        """What a rollback of each task would do, where one is possible: task, version, undone, revisits_undone, bytes,
        problem."""
        versions: list[dict[str, Any]] = self._ask({"type": "versions"})["versions"]
        return versions

    def history(self) -> list[dict[str, Any]]:
        """Each task's penalty and its rise after every boundary: lsn, time, task, penalty, penalty_rise."""
        return self._pages("history", "rows")

    def producers(self, most: int | None = None) -> list[dict[str, Any]]:
        """The producers, those heard most recently first: producer, durable, applied, age_seconds (since it last stored
        anything; None where that was before the daemon's start), batches_per_second. No more than `most`, if given."""
        return self._pages("producers", "producers", most=most)[:most]

    def checkpoint(self) -> dict[str, Any]:
        """Write a checkpoint of everything applied, and publish its parameters; waits for a consolidation under way."""
        return self._ask({"type": "checkpoint"}, patient=True)

    def pause(self) -> dict[str, Any]:
        """Stop training; data is still taken in."""
        return self._ask({"type": "pause"})

    def resume(self) -> dict[str, Any]:
        """Go on training."""
        return self._ask({"type": "resume"})

    def stop(self, drain: bool = True) -> dict[str, Any]:
        """End the daemon; with `drain`, after everything durable has been applied. Returns at once."""
        return self._ask({"type": "stop", "drain": drain})

    def parameters(self) -> ParameterVectors:
        """theta, precision and shift as flat float64 vectors in the model's parameter order."""
        return _vectors(*self._request({"type": "parameters"}))

    def export(self) -> Export:
        """The same vectors, and what it takes to use the model without streamcl, all from the same moment."""
        reply, arrays = self._request({"type": "parameters", "model": True})
        description = json.loads(arrays["description"].tobytes())
        sums = self.sums() if description.get("learner") == "exact" else None
        return Export(_vectors(reply, arrays), description, arrays["state"].tobytes(), sums)

    def sums(self) -> bytes:
        """An exact learner's sums over all consolidated tasks, as a safetensors file: what `streamcl merge` adds."""
        _, arrays = self._request({"type": "parameters", "sums": True})
        return arrays["sums"].tobytes()

    def _pages(self, request: str, name: str, offset: int = 0, most: int | None = None) -> list[dict[str, Any]]:
        """All rows of a request that is answered page by page; no more pages than needed for `most`."""
        rows: list[dict[str, Any]] = []
        while page := self._ask({"type": request, "offset": offset + len(rows)})[name]:
            rows += page
            if most is not None and len(rows) >= most:
                break
        return rows

    def _ask(self, header: Mapping[str, Any], *, patient: bool = False) -> dict[str, Any]:
        reply, _ = self._request(header, patient=patient)
        return {key: value for key, value in reply.items() if key not in ("v", "type", "id")}
