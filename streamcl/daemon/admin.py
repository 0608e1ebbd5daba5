"""The operators' socket: each request is answered by `ok` or `error`; what takes time is answered when it is done."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgpack
import numpy as np
import zmq

from streamcl.daemon import sockets
from streamcl.daemon.sockets import Peer
from streamcl.daemon.view import figures
from streamcl.errors import Damaged, Refused, StreamclError
from streamcl.protocol import frames, messages
from streamcl.protocol.frames import HEADER_BYTES, Array, Buffer
from streamcl.protocol.session import KEPT_REMEDY
from streamcl.storage import checkpoint, exported, ledger, published
from streamcl.storage.records import Record
from streamcl.storage.versions import Versions, undoing

if TYPE_CHECKING:
    from streamcl.daemon.ingest import Ingest

MOST_WAITING = 256  # requests that are answered later
PAGE_ROWS = 2000  # read of the history at once; the header's size decides how many are sent
CHANGING = frozenset(
    {"boundary", "revisit", "abandon", "forget", "retry", "drop", "rollback", "checkpoint", "pause", "resume", "stop"}
)
ANSWERED_LATER = frozenset(
    {
        messages.AdminBoundary,
        messages.AdminRevisit,
        messages.Abandon,
        messages.Forget,
        messages.Retry,
        messages.Drop,
        messages.Rollback,
        messages.Checkpoint,
    }
)
Waiting = messages.AdminBoundary | messages.Retry | messages.Rollback


@dataclass(frozen=True, slots=True)
class Request:
    """Whom to answer, and the id to give back."""

    peer: Peer
    id: Any


@dataclass(slots=True)
class Later:
    """Answers owed: when a record of this LSN has taken effect, for checkpoints by number; and requests that cannot be
    stored yet: boundaries behind a barrier, retries while a task is open, rollbacks behind a boundary."""

    done: dict[int, list[Request]] = field(default_factory=dict)
    checkpoints: dict[int, Request] = field(default_factory=dict)
    waiting: list[tuple[Request | None, Waiting]] = field(default_factory=list)
    stored: list[tuple[Request, dict[str, Any]]] = field(default_factory=list)
    next_checkpoint: int = 0

    def check_room(self) -> None:
        """Raise Refused ``no_credit`` where too many wait already."""
        waiting = len(self.done) + len(self.checkpoints) + len(self.waiting) + len(self.stored)
        if waiting >= MOST_WAITING:
            raise Refused("no_credit", f"{waiting} requests wait for their answers already; ask later", retryable=True)


class Admin:
    """Answers one ROUTER socket; runs in the ingest process's loop."""

    def __init__(self, socket: zmq.Socket[bytes], ingest: Ingest) -> None:
        self.socket = socket
        self.ingest = ingest
        self.later = Later()

    # -- requests ------------------------------------------------------------------------------------------------

    def take(self) -> None:
        """Answer every request that has arrived."""
        for peer, parts in sockets.receive(self.socket, self.ingest.guard.gate):
            self.judge(peer, parts)

    def judge(self, peer: Peer, parts: Sequence[Buffer]) -> None:
        """Answer one request: `ok`, `error`, or later."""
        header: dict[str, Any] = {}
        refused = None
        try:
            envelope = frames.parse(parts)
            header = envelope.header
            frames.open_arrays(envelope, [])
            message = messages.decode(header, messages.AdminMessage)
            self.ingest.guard.check(peer, message)
            self._answer(Request(peer, message.id), message)
        except Refused as error:
            refused = error
        except StreamclError:
            raise
        except Exception as error:  # a defect of ours: one request must not end the service for everyone else
            self.ingest.log.exception("a request could not be answered")
            refused = Refused("internal", f"{type(error).__name__}: {error}"[:500], retryable=True)
        self._note(peer, header, refused)
        if refused is not None:
            self._error(Request(peer, header.get("id")), refused)

    def _note(self, peer: Peer, header: dict[str, Any], refused: Refused | None) -> None:
        """For the audit log: what changes anything, and what was not allowed."""
        kind = header.get("type")
        if kind in CHANGING or (refused is not None and refused.code == "not_allowed"):
            task = header.get("task")
            self.ingest.audit.write(
                str(kind)[:32],
                "ok" if refused is None else refused.code,
                who=self.ingest.guard.called(peer),
                key=peer.key or None,
                task=task[:128] if isinstance(task, str) else None,
            )

    def _answer(self, request: Request, message: messages.Message) -> None:
        ingest = self.ingest
        if type(message) in ANSWERED_LATER:
            self.later.check_room()
        match message:
            case messages.Status():
                self._ok(request, ingest.view.status() | self._what_waits(request.peer))
            case messages.Tasks():
                tasks = ingest.view.tasks()
                self._ok(request, {**self._page("tasks", tasks[message.offset :]), "total": len(tasks)})
            case messages.Metrics():
                self._ok(request, ingest.metrics.as_map())
            case messages.Parameters():
                self._ok(request, *self._parameters(message.model))
            case messages.AdminBoundary():
                self._boundary(request, message)
            case messages.AdminRevisit():
                self._store(request, ingest.session.admit_revisit(None, 0, message.task, message.damping), wait=False)
            case messages.Abandon():
                self._store(request, ingest.session.admit_abandon(message.task), wait=True)
            case messages.Forget():
                self._store(request, ingest.session.admit_forget(message.task), wait=True)
            case messages.Retry():
                self._retry(request, message)
            case messages.Drop():
                self._store(request, ingest.session.admit_drop(message.task), wait=True)
            case messages.Rollback():
                self._roll_back(request, message)
            case messages.Quarantine():
                rows = ingest.view.quarantined()
                self._ok(request, {**self._page("quarantine", rows[message.offset :]), "total": len(rows)})
            case messages.Versions():
                self._ok(request, self._page("versions", self._versions()))
            case messages.History():
                self._ok(request, self._page("rows", ingest.history.read(message.offset, PAGE_ROWS)))
            case messages.Producers():
                rows = ingest.chronicle.producers(message.offset, PAGE_ROWS)
                self._ok(request, {**self._page("producers", rows), "total": len(ingest.session.producers)})
            case messages.Checkpoint():
                self._ask_for_checkpoint(request)
            case messages.Pause() | messages.Resume():
                self._pause(isinstance(message, messages.Pause))
                self._ok(request, {})
            case messages.Stop():
                ingest.up.send("stop", drain=message.drain)
                self._ok(request, {"drain": message.drain})

    def _what_waits(self, peer: Peer) -> dict[str, Any]:
        """To who asks while a boundary of its own waits behind a barrier, or a retry behind an open task: for whom."""
        session = self.ingest.session
        for request, message in self.later.waiting:
            if request is None or request.peer.routing_id != peer.routing_id:
                continue
            match message:
                case messages.AdminBoundary() if self.ingest.view.trouble() is None:
                    return {"working": False, "waiting": session.producers.unmet(message.task, message.barrier)}
                case messages.Retry() if session.open_task is not None:
                    text = f"task {message.task!r} is learned once task {session.open_task!r} is closed"
                    return {"working": False, "waiting": text}
        return {}

    def _pause(self, paused: bool) -> None:
        """Training stops at the end of its batch, or goes on."""
        ingest = self.ingest
        if paused != ingest.view.paused:
            text = "training waits; batches are stored" if paused else "training goes on"
            ingest.chronicle.note("paused" if paused else "resumed", text)
        ingest.view.paused = paused
        ingest.side.send("pause" if paused else "resume")

    @staticmethod
    def _page(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """As many of the rows as a header holds."""
        page, size = [], 1024
        for row in rows:
            size += len(msgpack.packb(row))
            if size > HEADER_BYTES:
                break
            page.append(row)
        return {name: page}

    def _parameters(self, model: bool) -> tuple[dict[str, Any], dict[str, Array]]:
        """theta, precision and shift as published, float64; the posterior is that of the newest boundary.

        model: also `state`, the bytes of a safetensors file, and `description`, those of a JSON text.
        """
        parameters = published.read(self.ingest.state.parameters)
        posterior = published.posterior(self.ingest.state)
        if parameters is None or posterior is None:
            raise Refused("not_ready", "there is no model yet: its shapes come with the first batch", retryable=True)
        vectors = {
            "theta": parameters[1]["theta"],
            "precision": posterior[1]["precision"],
            "shift": posterior[1]["shift"],
        }
        fields = {name: parameters[0][name] for name in ("names", "shapes", "version")}
        found = {name: np.asarray(vector, np.float64) for name, vector in vectors.items()}
        if model:
            text = json.dumps(exported.description(parameters[0], self.ingest.config), default=str).encode()
            found["description"] = np.frombuffer(text, np.uint8)
            found["state"] = np.frombuffer(exported.state_file(*parameters), np.uint8)
        return fields, found

    def _ask_for_checkpoint(self, request: Request) -> None:
        self.later.next_checkpoint += 1
        self.later.checkpoints[self.later.next_checkpoint] = request
        self.ingest.side.send("checkpoint", id=self.later.next_checkpoint)

    def ask_again(self) -> None:
        """A new trainer knows nothing of the checkpoints that the one before it was asked for."""
        for number in self.later.checkpoints:
            self.ingest.side.send("checkpoint", id=number)

    def _boundary(self, request: Request | None, message: messages.AdminBoundary) -> None:
        session = self.ingest.session
        if not session.producers.barrier_holds(message.barrier):
            self.later.waiting.append((request, message))
            return
        self._store(request, session.admit_admin_boundary(message.task, message.weight), message.wait)

    def retry_all(self) -> None:
        """The daemon has started, perhaps with a mended model or configuration: everything kept is tried again."""
        session = self.ingest.session
        tasks = dict.fromkeys([*sorted(session.held), *session.set_aside])
        self.later.waiting += [(None, messages.Retry(task=task)) for task in tasks if task not in session.resolving]

    def _retry(self, request: Request | None, message: messages.Retry) -> None:
        """As soon as no task is open: what is learned then has the whole posterior to itself."""
        session = self.ingest.session
        if message.task in session.resolving:  # by itself, after a start: whoever asks now waits for that
            if request is not None:
                self.later.done.setdefault(session.resolving[message.task], []).append(request)
            return
        if session.open_task is not None and (message.task in session.held or message.task in session.set_aside):
            self.later.waiting.append((request, message))
            return
        self._store(request, session.admit_retry(message.task), wait=True)

    def _roll_back(self, request: Request | None, message: messages.Rollback) -> None:
        """Once every boundary before it has taken effect: only then is it known what there is to undo."""
        ingest = self.ingest
        if ingest.session.unsettled:
            self.later.waiting.append((request, message))
            return
        versions = Versions(ingest.state.path, ingest.disk)
        found = undoing(message.task, self._entries(), versions.numbers(), ingest.config.posterior.keep)
        if found is None:
            raise Refused(
                "unknown_task",
                f"task {message.task!r}: expected one whose boundary is among the last {ingest.config.posterior.keep} "
                f"(posterior.keep), with no withdrawal since; `streamcl versions` lists what can be undone",
            )
        problem = versions.problem(found.version)
        if problem is not None:
            raise Refused("internal", f"version {found.version} cannot be used: {problem}")
        self._store(request, ingest.session.admit_rollback(message.task, found.version, found.undone), wait=True)

    def _entries(self) -> list[dict[str, Any]]:
        """The ledger, as far as the checkpoint counts it."""
        path = self.ingest.state.path
        try:
            meta = checkpoint.read_meta(path)
            return [] if meta is None else ledger.read(path, meta["ledger"])
        except Damaged as error:
            raise Refused("internal", str(error)) from None

    def _versions(self) -> list[dict[str, Any]]:
        """What a rollback of each task would do, for those of which one is possible, the newest last."""
        versions, entries = Versions(self.ingest.state.path, self.ingest.disk), self._entries()
        numbers, rows = versions.numbers(), []
        for task, entry in ledger.standing(entries).tasks.items():
            found = undoing(task, entries, numbers, self.ingest.config.posterior.keep)
            if found is not None:
                row = {
                    "task": task,
                    "closed_at": entry["closed_at"],
                    "version": found.version,
                    "undone": list(found.undone),
                }
                rows.append(row | {"bytes": versions.size(found.version), "problem": versions.problem(found.version)})
        return rows

    def _store(self, request: Request | None, records: Sequence[Record], wait: bool) -> None:
        """Put an operator's records into the log; answered when durable or, with `wait`, when the last took effect."""
        if self.ingest.closing:
            raise Refused("not_ready", "the daemon is stopping", retryable=True)
        for record in records:
            lsn = self.ingest.append(record)
        if request is None:
            return
        if wait:
            self.later.done.setdefault(lsn, []).append(request)
        else:
            self.later.stored.append((request, {"task": records[-1].task}))

    # -- what happened since -------------------------------------------------------------------------------------

    def release(self) -> None:
        """Everything appended is durable: answer who waits for that, and boundaries whose barrier holds now."""
        for asked, fields in self.later.stored:
            self._ok(asked, fields)
        self.later.stored.clear()
        waiting, self.later.waiting = self.later.waiting, []
        for request, message in waiting:
            try:
                if request is not None:
                    self.ingest.guard.check(request.peer, message)
                self._take_up(request, message)
            except Refused as refused:
                if request is not None:
                    self._error(request, refused)
                elif refused.retryable:
                    self.later.waiting.append((request, message))

    def _take_up(self, request: Request | None, message: Waiting) -> None:
        match message:
            case messages.Retry():
                self._retry(request, message)
            case messages.Rollback():
                self._roll_back(request, message)
            case messages.AdminBoundary():
                self._boundary(request, message)

    def done(self, entry: dict[str, Any]) -> None:
        """A record took effect: answer whoever waits for it."""
        for request in self.later.done.pop(entry["lsn"], ()):
            self._answer_done(request, entry)

    def _answer_done(self, request: Request, entry: dict[str, Any]) -> None:
        match entry["kind"]:
            case "held" | "still-aside":
                rows = f"task {entry['task']!r}: {entry['samples']} rows could not be learned"
                reason = self.ingest.view.reason(entry["task"])
                self._error(request, Refused("unlearnable", f"{rows}: {reason}; they are kept: {KEPT_REMEDY}"))
            case "rollback-failed":
                self._error(request, Refused("internal", f"task {entry['task']!r}: {entry['reason']}"))
            case "boundary" | "revisit" | "confirm":
                self._ok(request, self.ingest.verdict(entry))
            case _:
                self._ok(request, figures(entry))

    def checkpointed(self, message: dict[str, Any]) -> None:
        """A checkpoint was written, for these requests or of itself."""
        for number in message["ids"]:
            request = self.later.checkpoints.pop(number, None)
            if request is not None:
                self._ok(request, {"batches_applied": message["batches"], "seconds": message["seconds"]})

    # -- replies -------------------------------------------------------------------------------------------------

    def _ok(self, request: Request, fields: dict[str, Any], arrays: dict[str, Array] | None = None) -> None:
        self._reply(request, {**fields, "type": "ok"}, arrays)

    def _error(self, request: Request, refused: Refused) -> None:
        if request.id is None:
            request = Request(request.peer, refused.fields.get("id"))
        self.ingest.metrics.batches_rejected.labels(refused.code).inc()
        header = {"type": "error", "code": refused.code, "message": refused.message}
        self._reply(request, {**header, "retryable": refused.retryable})

    def _reply(self, request: Request, header: dict[str, Any], arrays: dict[str, Array] | None = None) -> None:
        if request.id is not None:
            header = {**header, "id": request.id}
        message: list[Buffer] = frames.build(header, arrays, delimited=request.peer.delimited)
        if arrays:
            sockets.check_reads(request.peer, message)
        sockets.send(self.socket, request.peer, message)
