"""The operators' endpoint: each request is answered by `ok` or `error`; what takes time is answered when it is done.

`Answers` has what changes nothing. What changes something is a record for the journal, or a word for another process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from streamcl.daemon import sockets, words
from streamcl.daemon.answers import Answers
from streamcl.daemon.endpoint import Endpoint, Port, Received
from streamcl.daemon.guard import Guard
from streamcl.daemon.journal import Journal
from streamcl.daemon.link import Link
from streamcl.daemon.observers import Observers
from streamcl.daemon.sockets import Peer
from streamcl.daemon.tasks import Tasks
from streamcl.daemon.view import View
from streamcl.entries import Confirmed, Consolidated, Entry, Held, RollbackFailed, StillAside, figures
from streamcl.errors import Refused
from streamcl.protocol import frames, messages
from streamcl.protocol.frames import Array, Buffer
from streamcl.protocol.session import StreamSession
from streamcl.storage.records import Record

MOST_WAITING = 256  # requests that are answered later
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
Deferrable = messages.AdminBoundary | messages.Retry | messages.Rollback


@dataclass(frozen=True, slots=True)
class Request:
    """Whom to answer, and the id to give back."""

    peer: Peer
    id: Any


@dataclass(slots=True)
class Later:
    """Answers owed: when a record of this LSN has taken effect, for checkpoints by number, when all is synced; and requests
    that cannot be stored yet: boundaries behind a barrier, retries while a task is open, rollbacks behind a boundary."""

    done: dict[int, list[Request]] = field(default_factory=dict)
    checkpoints: dict[int, Request] = field(default_factory=dict)
    waiting: list[tuple[Request | None, Deferrable]] = field(default_factory=list)
    stored: list[tuple[Request, dict[str, Any]]] = field(default_factory=list)

    def check_room(self) -> None:
        """Raise Refused ``no_credit`` where too many wait already."""
        waiting = len(self.done) + len(self.checkpoints) + len(self.waiting) + len(self.stored)
        if waiting >= MOST_WAITING:
            raise Refused("no_credit", f"{waiting} requests wait for their answers already; ask later", retryable=True)


class Admin:
    """Answers operators, on one port."""

    def __init__(
        self,
        port: Port,
        session: StreamSession,
        guard: Guard,
        journal: Journal,
        link: Link,
        tasks: Tasks,
        answers: Answers,
        view: View,
        observers: Observers,
    ) -> None:
        self.port, self.session, self.guard = port, session, guard
        self.journal, self.link, self.tasks = journal, link, tasks
        self.answers, self.view, self.observers = answers, view, observers
        self.endpoint = Endpoint(messages.AdminMessage, guard.check)
        self.later = Later()

    # -- requests ------------------------------------------------------------------------------------------------

    def take_all(self) -> None:
        """Answer every request that has arrived."""
        for peer, parts in self.port.receive():
            self.take(peer, parts)

    def take(self, peer: Peer, parts: Sequence[Buffer]) -> None:
        """Answer one request: `ok`, `error`, or later."""
        taken = self.endpoint.take(peer, parts, self._act)
        self.observers.requested(peer, self.guard.called(peer), taken.header, taken.refused)
        if taken.refused is not None:
            self._error(Request(peer, taken.id), taken.refused)

    def _act(self, received: Received) -> None:
        request, message = Request(received.peer, received.message.id), received.message
        answer = self.answers.of(message)
        if answer is None:
            self._change(request, message)
            return
        fields, arrays = answer
        if isinstance(message, messages.Status):
            fields = fields | self._what_waits(request.peer)
        self._ok(request, fields, arrays)

    def _change(self, request: Request, message: messages.Message) -> None:
        session = self.session
        if type(message) in ANSWERED_LATER:
            self.later.check_room()
        match message:
            case messages.AdminBoundary() | messages.Retry() | messages.Rollback():
                self._take_up(request, message)
            case messages.AdminRevisit(task=task, damping=damping):
                self._store(request, session.admit_revisit(None, 0, task, damping), wait=False)
            case messages.Abandon(task=task):
                self._store(request, session.admit_abandon(task), wait=True)
            case messages.Forget(task=task):
                self._store(request, session.admit_forget(task), wait=True)
            case messages.Drop(task=task):
                self._store(request, session.admit_drop(task), wait=True)
            case messages.Checkpoint():
                self.later.checkpoints[self.link.checkpoint()] = request
            case messages.Pause() | messages.Resume():
                paused = isinstance(message, messages.Pause)
                if self.link.pause(paused):
                    self.observers.paused(paused)
                self._ok(request, {})
            case messages.Stop(drain=drain):
                self.link.stop(drain)
                self._ok(request, {"drain": drain})

    def _what_waits(self, peer: Peer) -> dict[str, Any]:
        """For a client whose boundary waits for a barrier, or whose retry waits for an open task: what it waits for."""
        session = self.session
        for request, message in self.later.waiting:
            if request is None or request.peer.routing_id != peer.routing_id:
                continue
            match message:
                case messages.AdminBoundary() if self.view.trouble() is None:
                    return {"working": False, "waiting": session.producers.unmet(message.task, message.barrier)}
                case messages.Retry() if session.open_task is not None:
                    text = f"task {message.task!r} is learned once task {session.open_task!r} is closed"
                    return {"working": False, "waiting": text}
        return {}

    def unmet(self) -> str | None:
        """What the barrier of a boundary that an operator asked for waits for; None where none waits."""
        boundaries = [message for _, message in self.later.waiting if isinstance(message, messages.AdminBoundary)]
        return self.session.producers.unmet(boundaries[0].task, boundaries[0].barrier) if boundaries else None

    def _take_up(self, request: Request | None, message: Deferrable) -> None:
        match message:
            case messages.AdminBoundary():
                self._boundary(request, message)
            case messages.Retry():
                self._retry(request, message)
            case messages.Rollback():
                self._roll_back(request, message)

    def _boundary(self, request: Request | None, message: messages.AdminBoundary) -> None:
        if not self.session.producers.barrier_holds(message.barrier):
            self.later.waiting.append((request, message))
            return
        self._store(request, self.session.admit_admin_boundary(message.task, message.weight), message.wait)

    def retry_all(self) -> None:
        """The daemon has started, perhaps with a mended model or configuration: everything kept is tried again."""
        session = self.session
        tasks = dict.fromkeys([*sorted(session.held), *session.set_aside])
        self.later.waiting += [(None, messages.Retry(task=task)) for task in tasks if task not in session.resolving]

    def _retry(self, request: Request | None, message: messages.Retry) -> None:
        """As soon as no task is open: what is learned then has the whole posterior to itself."""
        session = self.session
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
        if self.session.unsettled:
            self.later.waiting.append((request, message))
            return
        found = self.answers.undoing(message.task)
        records = self.session.admit_rollback(message.task, found.version, found.undone, found.revisits)
        self._store(request, records, wait=True)

    def _store(self, request: Request | None, records: Sequence[Record], wait: bool) -> None:
        """Put an operator's records into the log; answered when durable or, with `wait`, when the last took effect."""
        if self.link.closing:
            raise Refused("not_ready", "the daemon is stopping", retryable=True)
        for record in records:
            lsn = self.journal.append(record)
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
                    self.guard.check(request.peer, message)
                self._take_up(request, message)
            except Refused as refused:
                if request is not None:
                    self._error(request, refused)
                elif refused.retryable:
                    self.later.waiting.append((request, message))

    def done(self, entry: Entry) -> None:
        """A record took effect: answer whoever waits for it."""
        for request in self.later.done.pop(entry.lsn, ()):
            self._answer_done(request, entry)

    def _answer_done(self, request: Request, entry: Entry) -> None:
        match entry:
            case Held() | StillAside():
                rows = f"task {entry.task!r}: {entry.samples} rows could not be learned"
                reason = self.tasks.reason(entry.task)
                self._error(request, Refused("unlearnable", f"{rows}: {reason}; {self.tasks.kept(entry.task)}"))
            case RollbackFailed():
                self._error(request, Refused("internal", f"task {entry.task!r}: {entry.reason}"))
            case Consolidated() | Confirmed():
                self._ok(request, self.tasks.verdict(entry))
            case _:
                self._ok(request, figures(entry))

    def checkpointed(self, word: words.Checkpointed) -> None:
        """A checkpoint was written, for these requests or of itself."""
        for number in word.numbers:
            request = self.later.checkpoints.pop(number, None)
            if request is not None:
                self._ok(request, {"batches_applied": word.batches, "seconds": word.seconds})

    # -- replies -------------------------------------------------------------------------------------------------

    def _ok(self, request: Request, fields: dict[str, Any], arrays: dict[str, Array] | None = None) -> None:
        self._reply(request, {**fields, "type": "ok"}, arrays)

    def _error(self, request: Request, refused: Refused) -> None:
        if request.id is None:
            request = Request(request.peer, refused.fields.get("id"))
        if refused.code == "no_space" and self.journal.full is not None:
            self.observers.full(self.journal.full)
        self.observers.request_refused(refused)
        header = {"type": "error", "code": refused.code, "message": refused.message}
        self._reply(request, {**header, "retryable": refused.retryable})

    def _reply(self, request: Request, header: dict[str, Any], arrays: dict[str, Array] | None = None) -> None:
        if request.id is not None:
            header = {**header, "id": request.id}
        message: list[Buffer] = frames.build(header, arrays, delimited=request.peer.delimited)
        if arrays:
            sockets.check_reads(request.peer, message)
        self.port.send(request.peer, message)
