"""The stream's endpoint: what producers send, judged, and stored whole or refused.

Guarantees: a refusal changes nothing; a message that waits is judged again by what holds when it is taken up; a producer's
messages are stored in their order. The journal stores, `Queues` holds what has to wait, `Replies` answers, the observers
show it: here is the order of it all.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import msgspec

from streamcl.daemon import words
from streamcl.daemon.connections import Identity, Replies
from streamcl.daemon.endpoint import Endpoint, Port, Received
from streamcl.daemon.guard import Guard
from streamcl.daemon.journal import Journal
from streamcl.daemon.link import Link
from streamcl.daemon.observers import Observers
from streamcl.daemon.sockets import Peer
from streamcl.daemon.tasks import Tasks
from streamcl.daemon.view import View
from streamcl.daemon.waiting import FirstBatch, Pending, Queues, Trials
from streamcl.errors import Refused
from streamcl.protocol import messages
from streamcl.protocol.frames import Buffer
from streamcl.protocol.session import StreamSession
from streamcl.storage.log import record_bytes
from streamcl.storage.records import Batch, Record

GROUP_BYTES = 32 << 20  # at most this much is synced together, so that no acknowledgement waits for more


class Stream:
    """Takes what producers send, on one port.

    What holds it together: one message meets every part here, and what is checked, what waits, what is stored and what is
    answered must be in one order, which no part may know alone.
    """

    def __init__(
        self,
        port: Port,
        session: StreamSession,
        guard: Guard,
        journal: Journal,
        link: Link,
        tasks: Tasks,
        trials: Trials,
        view: View,
        observers: Observers,
    ) -> None:
        self.port, self.session, self.guard = port, session, guard
        self.journal, self.link, self.tasks = journal, link, tasks
        self.trials, self.view, self.observers = trials, view, observers
        self.endpoint = Endpoint(
            messages.StreamMessage, self._authorise, {messages.Batch: ("x", "y")}, lacking=self._lacking
        )
        self.replies = Replies(port, session, tasks)
        self.waiting = Queues(session.terms.credit)

    # -- taking messages in --------------------------------------------------------------------------------------

    def take_group(self) -> None:
        """What has arrived, as much as one sync should be for."""
        held = 0
        for peer, parts in self.port.receive():
            self.take(peer, parts)
            held += sum(len(part) for part in parts)
            if held > GROUP_BYTES:
                return

    def take(self, peer: Peer, parts: Sequence[Buffer]) -> None:
        """One message: its records into the log, or a refusal that changes nothing."""
        taken = self.endpoint.take(peer, parts, self._act)
        if taken.refused is not None:
            self._refuse(peer, taken.refused, taken.seq, taken.id)

    def _authorise(self, peer: Peer, message: Any) -> None:
        if isinstance(message, messages.Hello):
            self.guard.check(peer, message)
        else:
            self._authorise_as(self._identify(peer), peer, message)

    def _authorise_as(self, producer: str, peer: Peer, message: Any) -> None:
        self.guard.check(peer, message, producer)
        another = None if self.session.is_open(message.task) else self.session.open_task
        self.guard.check_closing(peer, another, message)

    def _identify(self, peer: Peer) -> str:
        identity = self.replies.connections.of(peer)
        if identity is None or identity.producer not in self.session.producers:
            raise Refused("not_ready", "expected `hello` first on this connection; say it, then go on", retryable=True)
        if self.link.closing:
            raise Refused("not_ready", "the daemon is stopping; send again to the next one", retryable=True)
        self.session.producers.check_epoch(identity.producer, identity.epoch)
        if not self.replies.connections.is_newest(peer, identity.producer):
            # what is left of an older connection may bear numbers that were refused there and used again since
            raise Refused("not_ready", "another connection has said `hello` since; say it here again", retryable=True)
        return identity.producer

    def _act(self, received: Received) -> None:
        peer, message = received.peer, received.message
        if isinstance(message, messages.Hello):
            self._welcome(peer, message)
        else:
            own = self.replies.connections.identities[peer.routing_id]
            if isinstance(message, messages.Batch) and message.schema is None and own.schema is not None:
                message = msgspec.structs.replace(message, schema=own.schema)
            self._judge(own.producer, Pending(peer, message, received.arrays, record_bytes(received.parts)))

    def _lacking(self, peer: Peer, message: Any) -> Sequence[str]:
        """In which arrays a value may be missing: a table's x."""
        own = self.replies.connections.of(peer)
        named = isinstance(message, messages.Batch) and (message.schema or (own is not None and own.schema))
        return ("x",) if named or self.session.columns is not None else ()

    def _welcome(self, peer: Peer, message: messages.Hello) -> None:
        if message.schema is not None:
            self.session.check_schema(message.schema)
        self.guard.claim(peer, message.producer)
        state = self.session.producers.hello(message)
        identity = Identity(message.producer, state.epoch, peer.key, message.schema)
        self.replies.connections.add(peer, identity, self.session.producers)
        self.replies.welcome(peer, message, self._what_waits(message.producer))

    def _what_waits(self, producer: str) -> dict[str, Any]:
        """Whether the daemon is at work on what a producer waits for; if not, why."""
        pending = self.waiting.first(producer)
        if pending is None or self.view.problem() is not None:
            return {"working": self.view.working(), "waiting": self.view.waiting()}
        if isinstance(pending.message, messages.Boundary):
            return {"working": False, "waiting": self.unmet(pending)}
        return {"working": True, "waiting": "the first batch waits until the trainer has tried the model on it"}

    def unmet(self, pending: Pending | None = None) -> str | None:
        """What a boundary's barrier waits for, by default the first one's that does; None where none waits."""
        firsts = map(self.waiting.first, self.waiting.producers()) if pending is None else [pending]
        boundaries = [first.message for first in firsts if first and isinstance(first.message, messages.Boundary)]
        return self.session.producers.unmet(boundaries[0].task, boundaries[0].barrier) if boundaries else None

    def _judge(self, producer: str, pending: Pending) -> None:
        """Duplicate, next, held back, or refused."""
        seq = pending.message.seq
        if self.session.producers.is_duplicate(producer, seq):
            self._acknowledge_again(producer, pending)
            return
        before = self.waiting.replace(producer, pending)
        if before is not None:
            if self.trials.current is not None and self.trials.current.pending is before:
                self.trials.current.follow(pending)
            return
        self.waiting.withdraw(producer, pending.message.begins)
        held = self.waiting.last(producer)
        self.session.producers.check_sequence(producer, seq, pending.message.first, held)
        if held is not None or self._must_wait(pending):
            self._hold(producer, pending)
        else:
            self._store(producer, pending)

    def _acknowledge_again(self, producer: str, pending: Pending) -> None:
        self.observers.duplicate()
        self.replies.acks.add(pending.peer, producer, pending.message)
        entry = self.tasks.closed_by(producer, pending.message.seq)
        if entry is not None:
            self.replies.acks.done.append(entry)

    def _must_wait(self, pending: Pending) -> bool:
        """Whether a barrier is open, or the trainer has yet to say that a model fits the first batch."""
        if isinstance(pending.message, messages.Boundary):
            return not self.session.producers.barrier_holds(pending.message.barrier)
        return self.trials.awaits(pending)

    def _hold(self, producer: str, pending: Pending) -> None:
        """Keep a message until it may be stored; raises Refused where there is no room, or no hope for it."""
        self.waiting.check_room(producer, pending.nbytes)
        if not self.waiting.count(producer) and isinstance(pending.message, messages.Batch):
            self._records(producer, pending)
        self.waiting.add(producer, pending)

    def _records(self, producer: str, pending: Pending) -> Sequence[Record]:
        """What would store a message; raises Refused."""
        message = pending.message
        match message:
            case messages.Batch():
                return self.session.admit_batch(producer, message, pending.arrays, pending.nbytes)
            case messages.Boundary():
                return self.session.admit_boundary(producer, message)
        return self.session.admit_revisit(producer, message.seq, message.task, message.damping)

    def end_due(self) -> None:
        """Store the boundary that the clock sets, where it is due; raises Refused ``no_space``."""
        for record in () if self.link.closing else self.session.due():
            self.journal.append(record)

    def end_due_soon(self) -> None:
        """As `end_due`, though nobody has sent anything; while the disk is full, it is put off."""
        if self.journal.full is not None:
            return
        try:
            self.end_due()
        except Refused:
            self.observers.full(str(self.journal.full))

    def _store(self, producer: str, pending: Pending) -> None:
        if isinstance(pending.message, messages.Batch):
            self.end_due()
        message, records = pending.message, self._records(producer, pending)
        for record in records:
            self.journal.append(record, pending.arrays.payloads if record is records[-1] else ())
        if isinstance(message, messages.Batch):
            batch = records[-1]
            assert isinstance(batch, Batch)
            self.observers.stored(producer, batch, pending.nbytes)
        if not isinstance(message, messages.Batch) or message.boundary:
            self.observers.closed_or_reopened(self.guard.called(pending.peer), producer, message)
        self.replies.acks.stored.append(time.monotonic())
        self.replies.acks.add(pending.peer, producer, message)

    # -- what waits ----------------------------------------------------------------------------------------------

    def release(self) -> None:
        """Take up messages that no longer have to wait, in their order; have the model tried on the next first batch."""
        for producer in self.waiting.producers():
            while (pending := self.waiting.first(producer)) is not None and not self._must_wait(pending):
                self.waiting.take_first(producer)
                try:
                    self._authorise_again(producer, pending)
                    self._store(producer, pending)
                except Refused as refused:
                    self._refuse_waiting(producer, pending, refused)
        if self.session.signature is None:
            self._try_next()

    def _authorise_again(self, producer: str, pending: Pending) -> None:
        """Since it came, rights may have changed, and a newer process may have taken its producer's name over."""
        identity = self.replies.connections.of(pending.peer)
        if identity is not None:
            self.session.producers.check_epoch(producer, identity.epoch)
        self._authorise_as(producer, pending.peer, pending.message)

    def _try_next(self) -> None:
        for producer in self.waiting.producers():
            pending = self.waiting.first(producer)
            if self.trials.current is not None or pending is None:
                return
            if self.trials.awaits(pending):
                try:
                    batch = self._records(producer, pending)[-1]
                    assert isinstance(batch, Batch)
                    self.trials.begin(producer, pending, batch)
                except Refused as refused:
                    self._refuse_waiting(producer, self.waiting.take_first(producer), refused)

    def model_tried(self, word: words.ModelTried) -> None:
        """The trainer has spoken about a first batch."""
        self._refuse_model(self.trials.tried(word))

    def trainer_started(self) -> None:
        """A new trainer tries the model again, unless too many have died of it."""
        self._refuse_model(self.trials.again())

    def _refuse_model(self, verdict: tuple[FirstBatch, str] | None) -> None:
        if verdict is None:
            return
        first, reason = verdict
        self.observers.model_refused(first.producer, first.pending.message.seq, reason)
        if self.waiting.first(first.producer) is first.pending:
            self._refuse_waiting(first.producer, self.waiting.take_first(first.producer), Refused("bad_shape", reason))

    def _refuse_waiting(self, producer: str, pending: Pending, refused: Refused) -> None:
        """Refuse the message, and as a gap all that waited behind it."""
        self._refuse(pending.peer, refused, pending.message.seq, pending.message.id)
        for later in self.waiting.take_all(producer):
            try:
                self.session.producers.check_sequence(producer, later.message.seq, later.message.first)
            except Refused as gap:
                self._refuse(later.peer, gap, later.message.seq, later.message.id)

    def _refuse(self, peer: Peer, refused: Refused, seq: int | None, request: Any) -> None:
        if refused.code == "no_space" and self.journal.full is not None:
            self.observers.full(self.journal.full)
        self.observers.refused(peer, refused, self.replies.connections.called(peer), self.guard.called(peer))
        self.replies.refuse(peer, refused, seq, request)
