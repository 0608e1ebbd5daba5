"""What operators ask and what changes nothing: the status, lists that are told page by page, parameters, versions.

Each answer is a reply's fields, and arrays where there are any. Reads the state directory; writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import numpy as np

from streamcl.config import Config, settled
from streamcl.core import stored
from streamcl.core.layout import Layout
from streamcl.daemon.chronicle import Chronicle
from streamcl.daemon.metrics import Metrics
from streamcl.daemon.view import View
from streamcl.entries import Entry, standing
from streamcl.errors import Damaged, Refused, no_model_yet
from streamcl.protocol import messages
from streamcl.protocol.frames import HEADER_BYTES, Array
from streamcl.protocol.session import StreamSession
from streamcl.schema import Signature
from streamcl.storage import checkpoint, exported, ledger, published
from streamcl.storage.disk import Disk
from streamcl.storage.frozen import Frozen
from streamcl.storage.history import History
from streamcl.storage.state import StateDirectory
from streamcl.storage.versions import Undoing, Versions, undoing

PAGE_ROWS = 2000  # read of the history at once; the header's size decides how many are sent

Answer = tuple[dict[str, Any], dict[str, Array]]


class Answers:
    """Reads what it is given; `of` answers a question."""

    def __init__(
        self,
        config: Config,
        state: StateDirectory,
        disk: Disk,
        session: StreamSession,
        view: View,
        metrics: Metrics,
        chronicle: Chronicle,
        history: History,
    ) -> None:
        self.config, self.state, self.session = config, state, session
        self.view, self.metrics, self.chronicle, self.history = view, metrics, chronicle, history
        self.versions = Versions(state.path, disk)

    def of(self, message: messages.Message) -> Answer | None:
        """The answer, None where this is no question but asks for a change. Raises Refused ``not_ready internal``."""
        match message:
            case messages.Status():
                return self.view.status().plain(), {}
            case messages.Tasks(offset=offset):
                tasks = self.view.tasks()
                return {**_page("tasks", tasks[offset:]), "total": len(tasks)}, {}
            case messages.Metrics():
                return dict(self.metrics.as_map()), {}
            case messages.Parameters(model=model, sums=sums):
                return self._sums() if sums else self._parameters(model)
            case messages.Quarantine(offset=offset):
                rows = self.view.quarantined()
                return {**_page("quarantine", rows[offset:]), "total": len(rows)}, {}
            case messages.Versions():
                return _page("versions", self._versions()), {}
            case messages.History(offset=offset):
                return _page("rows", self.history.read(offset, PAGE_ROWS)), {}
            case messages.Producers(offset=offset):
                rows = self.chronicle.producers(offset, PAGE_ROWS)
                return {**_page("producers", rows), "total": len(self.session.producers)}, {}
        return None

    def _parameters(self, model: bool) -> Answer:
        """theta, precision and shift as published, float64; the posterior is that of the newest boundary.

        model: also `state`, the bytes of a safetensors file, and `description`, those of a JSON text.
        """
        parameters = published.read(self.state.parameters, Frozen(self.state.path) if model else None)
        posterior = published.posterior(self.state)
        if parameters is None or posterior is None:
            raise no_model_yet()
        vectors = {
            "theta": parameters[1]["theta"],
            "precision": stored.diagonal(posterior[1]),
            "shift": posterior[1][stored.SHIFT],
        }
        layout = Layout.from_plain(parameters[0]["parameters"])
        fields = {"names": layout.names, "shapes": layout.shapes, "version": parameters[0]["version"]}
        found = {name: np.asarray(vector, np.float64) for name, vector in vectors.items()}
        if model:
            text = json.dumps(exported.description(*parameters, self._settled(parameters[0])), default=str).encode()
            found["description"] = np.frombuffer(text, np.uint8)
            found["state"] = np.frombuffer(exported.state_file(*parameters), np.uint8)
        return fields, found

    def _settled(self, published: Mapping[str, Any]) -> Config:
        return settled(self.config, Signature.from_plain(published["signature"]).y_real)

    def _sums(self) -> Answer:
        """An exact learner's sums of all consolidated tasks, the bytes of a safetensors file, in `sums`."""
        parameters, posterior = published.read(self.state.parameters), published.posterior(self.state)
        if parameters is None or posterior is None:
            raise no_model_yet()
        if stored.kind_of(posterior[1]) != stored.EXACT:
            raise Refused(
                "bad_header", "parameters.sums: expected model.learner = 'exact'; a network has no sums to be added"
            )
        names = ("task", "samples", "weight", "loss", "closed_at")
        tasks = [{name: getattr(entry, name) for name in names} for entry in standing(self._entries()).tasks.values()]
        text = exported.sums_file(*parameters, posterior[1], tasks, self._settled(parameters[0]))
        return {}, {"sums": np.frombuffer(text, np.uint8)}

    def undoing(self, task: str) -> Undoing:
        """What a rollback of the task would do; raises Refused ``unknown_task internal`` where none is possible."""
        keep = self.config.posterior.keep
        found = undoing(task, self._entries(), self.versions.numbers(), keep)
        if found is None:
            raise Refused(
                "unknown_task",
                f"task {task!r}: expected one whose boundary is among the last {keep} (posterior.keep), with no withdrawal "
                "since, and no rows of an earlier task that `retry` learned since; `streamcl versions` lists what can be "
                "undone",
            )
        problem = self.versions.problem(found.version)
        if problem is not None:
            raise Refused("internal", f"version {found.version} cannot be used: {problem}")
        return found

    def _entries(self) -> list[Entry]:
        """The ledger, as far as the checkpoint counts it."""
        try:
            meta = checkpoint.read_meta(self.state.path)
            return [] if meta is None else ledger.read(self.state.path, meta.ledger)
        except Damaged as error:
            raise Refused("internal", str(error)) from None

    def _versions(self) -> list[dict[str, Any]]:
        """What a rollback of each task would do, for those of which one is possible, the newest last."""
        entries, numbers, rows = self._entries(), self.versions.numbers(), []
        for task, entry in standing(entries).tasks.items():
            found = undoing(task, entries, numbers, self.config.posterior.keep)
            if found is not None:
                row = {
                    "task": task,
                    "closed_at": entry.closed_at,
                    "version": found.version,
                    "undone": list(found.undone),
                    "revisits_undone": list(found.revisits),
                }
                size, problem = self.versions.size(found.version), self.versions.problem(found.version)
                rows.append(row | {"bytes": size, "problem": problem})
        return rows


def _page(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """As many of the rows as a header holds."""
    page, size = [], 1024
    for row in rows:
        size += len(msgspec.msgpack.encode(row))
        if size > HEADER_BYTES:
            break
        page.append(row)
    return {name: page}
