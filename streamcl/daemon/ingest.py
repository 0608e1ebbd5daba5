"""The ingest process: takes messages in, makes them durable, acknowledges; speaks for the daemon to everyone else.

Order, which nothing may change: check everything; append to the log; sync once for the whole group; acknowledge; tell
the trainer. One thread owns the sockets. It never imports torch, so nothing that trains can hold it up.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import structlog
import zmq
from prometheus_client import CollectorRegistry

from streamcl import __version__
from streamcl.config import Config, split_host_port
from streamcl.daemon import sockets
from streamcl.daemon.admin import Admin
from streamcl.daemon.channel import Channel
from streamcl.daemon.chronicle import Chronicle
from streamcl.daemon.guard import Guard
from streamcl.daemon.http import HttpServer
from streamcl.daemon.metrics import Metrics
from streamcl.daemon.recovery import recover
from streamcl.daemon.shown import Shown
from streamcl.daemon.sockets import Peer
from streamcl.daemon.view import View, figures
from streamcl.errors import Refused, StreamclError
from streamcl.protocol import frames, messages
from streamcl.protocol.firsts import chosen
from streamcl.protocol.frames import Buffer, NamedArrays
from streamcl.protocol.session import KEPT_REMEDY, StreamSession, Terms
from streamcl.protocol.signature import Signature
from streamcl.storage import ledger, log, published, quarantine
from streamcl.storage.audit import Audit
from streamcl.storage.disk import FULL, Disk
from streamcl.storage.history import History
from streamcl.storage.owners import Owners
from streamcl.storage.records import Batch, Record
from streamcl.storage.state import StateDirectory

GROUP_BYTES = 32 << 20  # synced together at the most, so that an acknowledgement never waits for more
IDLE_MS = 1000
PROBE_SECONDS = 1.0  # between two looks at a full disk
ROOM_BYTES = 1 << 20  # what must fit before a disk counts as no longer full
WAITING_BYTES = 512 << 20  # of all messages together that wait for a barrier or for the model
MOST_DEATHS = 3  # of trainers that try a model on one batch; then it is the model that is refused
MOST_CONNECTIONS = 10_000  # that have said hello; older ones are asked to say it again


@dataclass(frozen=True, slots=True)
class Identity:
    """Which producer a connection speaks for, as which incarnation, and with which key."""

    producer: str
    epoch: int
    key: str = ""


@dataclass(slots=True)
class Pending:
    """A message that is sound but has to wait: for a barrier, for the model, or for one that waits before it."""

    peer: Peer
    message: messages.Batch | messages.Boundary | messages.Revisit
    arrays: NamedArrays
    nbytes: int


@dataclass(slots=True)
class ModelTrial:
    """A first batch, on rows of which the trainer tries the model.

    life: which trainer was asked. deaths: how many trainers have ended before they answered.
    """

    number: int
    producer: str
    pending: Pending
    life: int
    deaths: int = 0

    @property
    def signature(self) -> Signature:
        """Of the batch."""
        return Signature.of(self.pending.arrays["x"], self.pending.arrays["y"])

    def follow(self, pending: Pending) -> None:
        """The same batch was sent again: the verdict is about that one too."""
        old, new = self.pending.arrays, pending.arrays
        if all(np.array_equal(old[name], new[name]) for name in ("x", "y")):
            self.pending = pending


@dataclass(slots=True)
class Acknowledgements:
    """What the next sync will let us say: one cumulative `ack` a producer, or one each where a reply is owed."""

    owed: list[tuple[Peer, str, Any]] = field(default_factory=list)
    cumulative: dict[tuple[bytes, str], Peer] = field(default_factory=dict)

    def add(self, peer: Peer, producer: str, message: messages.Message) -> None:
        """Remember whom to answer. A REQ socket and a request with an id each get their own reply."""
        if message.id is not None or peer.delimited:
            self.owed.append((peer, producer, message.id))
        else:
            self.cumulative[peer.routing_id, producer] = peer

    def take(self) -> list[tuple[Peer, str, Any]]:
        """Everyone to answer now; starts afresh."""
        taken = self.owed + [(peer, producer, None) for (_, producer), peer in self.cumulative.items()]
        self.owed, self.cumulative = [], {}
        return taken


def run(config: Config, up: Channel, side: Channel) -> None:
    """The process's main function; returns when the daemon stops."""
    ingest = Ingest(config, up, side)
    ingest.start()
    try:
        while not ingest.finished:
            ingest.turn()
    finally:
        ingest.close()


class Ingest:
    """The stream socket and the loop that also serves the admin socket."""

    def __init__(self, config: Config, up: Channel, side: Channel, disk: Disk | None = None) -> None:
        self.config = config
        self.disk = disk or Disk()
        self.up, self.side = up, side
        self.state = StateDirectory(Path(config.state_dir))
        self.metrics = Metrics(CollectorRegistry())
        self.log = structlog.get_logger()
        self.session = StreamSession(
            Terms(
                likelihood=config.model.likelihood,
                classes=config.model.classes,
                mode=config.posterior.mode,
                on_change=config.stream.boundary == "on-change",
                drift=config.stream.boundary == "drift",
                hold=config.stream.on_failure == "hold",
                task_bytes=config.stream.task_bytes,
                credit=config.stream.credit,
                tasks=config.stream.tasks,
                producers=config.stream.producers,
            )
        )
        self.view = View(config, self.session)
        self.guard = Guard(config.security)
        self.audit = Audit()
        self.identities: OrderedDict[bytes, Identity] = OrderedDict()
        self.peers: dict[str, Peer] = {}
        self.waiting: dict[str, OrderedDict[int, Pending]] = {}
        self.acks = Acknowledgements()
        self.done_later: list[dict[str, Any]] = []
        self.model_accepted: Signature | None = None
        self.trial: ModelTrial | None = None
        self._trials = self._lives = 0  # models tried, trainers that have started
        self.closing = False
        self.finished = False
        self._arrivals: list[float] = []
        self._last_credit = self._done_lsn = -1
        self._last_probe = 0.0

    # -- life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Recover from disk, bind, and say so."""
        self.recover()
        self.listen()

    def recover(self) -> None:
        """Take over what is on disk."""
        self.writer, self.view.standing = recover(self.state, self.session, self.disk)
        self.metrics.kept(self.session)
        if self.writer.torn is not None:
            torn = self.writer.torn
            self.view.torn_bytes = torn.nbytes
            self.log.warning("cut off a torn tail", path=str(torn.path), offset=torn.offset, nbytes=torn.nbytes)
        self.history = History(self.state.history)
        self.chronicle = self.view.chronicle = Chronicle(self.session, self.history)
        self._show_penalties(self.history.latest_penalties())
        self._show_accuracies(self.history.latest_accuracies())
        self.view.quarantine = quarantine.load(self.state.path)
        self.model_accepted = self.session.signature
        published.clear(self.state.trial)
        self._tell_trainer()
        self._watch_spool()

    def listen(self) -> None:
        """Bind every socket, and say so."""
        endpoints = self.config.endpoints
        self.guard.load()
        self.audit = Audit(self.state.audit)
        if self.guard.secured:
            self.guard.owners = Owners.recover(self.state.path, self.disk)
        self.stream = sockets.bind_router(endpoints.stream, self.guard.gate)
        self.admin = Admin(sockets.bind_router(endpoints.admin, self.guard.gate), self)
        self.guard.gate.open()
        self.http = HttpServer(
            split_host_port(endpoints.http),
            self.metrics.registry,
            Shown(self.view, self.chronicle, self.state.history).routes(),
            self.view.not_ready,
            self.config.security,
        )
        self.metrics.certificate(self.http.certificate_expiry)
        self.chronicle.note("started", f"streamcl {__version__}")
        self.up.send(
            "ready",
            endpoints={
                "stream": sockets.endpoint(self.stream),
                "admin": sockets.endpoint(self.admin.socket),
                "http": self.http.address,
            },
        )
        self.poller = zmq.Poller()
        for source in (self.stream, self.admin.socket, self.up.fileno(), self.side.fileno()):
            self.poller.register(source, zmq.POLLIN)

    def turn(self) -> None:
        """One turn of the loop: hear the other processes, take a group in, make it durable, answer."""
        self.poller.poll(IDLE_MS)
        self._hear_supervisor()
        self.hear_trainer()
        self._take_group()
        self._release()
        self.admin.take()
        self.make_durable()
        self._look_for_room()
        self._note_turned_away(self.guard.turned_away())
        self.chronicle.tick(self.view.progress)
        self.up.alive()

    def close(self) -> None:
        """Close the sockets, letting replies on their way go out."""
        self.http.close()
        self.history.close()
        sockets.close(self.stream)
        sockets.close(self.admin.socket)
        self.guard.gate.join()
        zmq.Context.instance().term()

    # -- taking messages in --------------------------------------------------------------------------------------

    def _take_group(self) -> None:
        held = 0
        for peer, parts in sockets.receive(self.stream, self.guard.gate):
            self.take(peer, parts)
            held += sum(len(part) for part in parts)
            if held > GROUP_BYTES:
                return

    def take(self, peer: Peer, parts: Sequence[Buffer]) -> None:
        """One message: its records into the log, or a refusal that changes nothing."""
        header: dict[str, Any] = {}
        try:
            envelope = frames.parse(parts)
            header = envelope.header
            message = messages.decode(header, messages.StreamMessage)
            if isinstance(message, messages.Hello):
                frames.open_arrays(envelope, [])
                self.guard.check(peer, message)
                self._welcome(peer, message)
                return
            producer = self._identify(peer)
            self._authorise(producer, peer, message)
            arrays = frames.open_arrays(envelope, ["x", "y"] if isinstance(message, messages.Batch) else [])
            self._judge(producer, Pending(peer, message, arrays, log.record_bytes(parts)))
        except Refused as refused:
            self._refuse(peer, refused, frames.legible_seq(header), header.get("id"))
        except StreamclError:
            raise
        except Exception as error:  # a defect of ours: one message must not end the service for everyone else
            self.log.exception("a message could not be judged")
            defect = Refused("internal", f"{type(error).__name__}: {error}"[:500], retryable=True)
            self._refuse(peer, defect, frames.legible_seq(header), header.get("id"))

    def _identify(self, peer: Peer) -> str:
        identity = self.identities.get(peer.routing_id)
        if identity is None or identity.key != peer.key or identity.producer not in self.session.producers:
            raise Refused("not_ready", "expected `hello` first on this connection; say it, then go on", retryable=True)
        if self.closing:
            raise Refused("not_ready", "the daemon is stopping; send again to the next one", retryable=True)
        self.session.producers.check_epoch(identity.producer, identity.epoch)
        if self.peers.get(identity.producer, peer).routing_id != peer.routing_id:
            # what is left of an older connection may bear numbers that were refused there and used again since
            raise Refused("not_ready", "another connection has said `hello` since; say it here again", retryable=True)
        return identity.producer

    def _authorise(self, producer: str, peer: Peer, message: Any) -> None:
        self.guard.check(peer, message, producer)
        another = None if self.session.is_open(message.task) else self.session.open_task
        self.guard.check_closing(peer, another, message)

    def _welcome(self, peer: Peer, message: messages.Hello) -> None:
        self.guard.claim(peer, message.producer)
        state = self.session.producers.hello(message)
        self.identities[peer.routing_id] = Identity(message.producer, state.epoch, peer.key)
        self.identities.move_to_end(peer.routing_id)
        self.peers[message.producer] = peer
        self._forget_the_oldest()
        self._reply(
            peer,
            {
                "type": "welcome",
                "producer": message.producer,
                "durable": state.durable,
                "applied": state.applied,
                "credit": self.session.room.credit(),
                "limits": self.session.limits(),
                "task": self.session.open_task,
                "revisit": self.session.revisit_lsn,
                "freed": self.session.freed,
                **self._what_waits(message.producer),
            },
            message.id,
        )

    def _what_waits(self, producer: str) -> dict[str, Any]:
        """Whether the daemon is at work on what a producer waits for; if not, why."""
        pending = next(iter(self.waiting.get(producer, {}).values()), None)
        if pending is None or self.view.problem() is not None:
            return {"working": self.view.working(), "waiting": self.view.waiting()}
        if isinstance(pending.message, messages.Boundary):
            unmet = self.session.producers.unmet(pending.message.task, pending.message.barrier)
            return {"working": False, "waiting": unmet}
        return {"working": True, "waiting": "the first batch waits until the trainer has tried the model on it"}

    def _forget_the_oldest(self) -> None:
        """Bound what is kept of connections and producers; the session has forgotten those that stored nothing."""
        if len(self.identities) > MOST_CONNECTIONS:
            self.identities.popitem(last=False)
        if len(self.peers) > len(self.session.producers):
            self.peers = {name: peer for name, peer in self.peers.items() if name in self.session.producers}

    def _judge(self, producer: str, pending: Pending) -> None:
        """Duplicate, next, held back, or refused."""
        message = pending.message
        if self.session.producers.is_duplicate(producer, message.seq):
            self._acknowledge_again(producer, pending)
            return
        waiting = self.waiting.get(producer)
        if waiting and message.seq in waiting:
            if self.trial is not None and self.trial.pending is waiting[message.seq]:
                self.trial.follow(pending)
            waiting[message.seq] = pending
            return
        self.session.producers.check_sequence(producer, message.seq, ahead=len(waiting or ()))
        if waiting or self._must_wait(message, pending.arrays):
            self._hold(producer, pending)
        else:
            self._store(producer, pending)

    def _acknowledge_again(self, producer: str, pending: Pending) -> None:
        self.metrics.duplicates.inc()
        self.acks.add(pending.peer, producer, pending.message)
        entry = self.view.closed_by(producer, pending.message.seq)
        if entry is not None:
            self.done_later.append(entry)

    def _must_wait(self, message: Any, arrays: NamedArrays) -> bool:
        """Whether a barrier is open, or the trainer has yet to say that a model fits the first batch."""
        if isinstance(message, messages.Boundary):
            return not self.session.producers.barrier_holds(message.barrier)
        if isinstance(message, messages.Batch) and self.session.signature is None:
            signature = Signature.of(arrays["x"], arrays["y"]) if arrays["x"].ndim and arrays["y"].ndim else None
            return signature is not None and signature != self.model_accepted
        return False

    def _hold(self, producer: str, pending: Pending) -> None:
        waiting = self.waiting.setdefault(producer, OrderedDict())
        if len(waiting) >= self.session.terms.credit:
            raise Refused("no_credit", "too many messages behind one that waits; wait for its `ack`", retryable=True)
        held = sum(other.nbytes for messages in self.waiting.values() for other in messages.values())
        if held + pending.nbytes > WAITING_BYTES:
            raise Refused("no_credit", f"{held} bytes wait for barriers already; send it later", retryable=True)
        if not waiting and isinstance(pending.message, messages.Batch):
            self._records(producer, pending)
        waiting[pending.message.seq] = pending

    def _records(self, producer: str, pending: Pending) -> Sequence[Record]:
        """What would store a message; raises Refused."""
        message = pending.message
        match message:
            case messages.Batch():
                return self.session.admit_batch(producer, message, pending.arrays, pending.nbytes)
            case messages.Boundary():
                return self.session.admit_boundary(producer, message)
        return self.session.admit_revisit(producer, message.seq, message.task, message.damping)

    # -- trying a model ------------------------------------------------------------------------------------------

    def _try_next(self) -> None:
        """Have the model tried on the next first batch, one at a time: each is judged by its own rows."""
        if self.session.signature is not None:
            return
        for producer, waiting in list(self.waiting.items()):
            if self.trial is not None:
                return
            pending = next(iter(waiting.values()))
            if isinstance(pending.message, messages.Batch) and self._must_wait(pending.message, pending.arrays):
                try:
                    self._try(producer, pending)
                except Refused as refused:
                    self._drop_first(producer, refused)

    def _try(self, producer: str, pending: Pending) -> None:
        """Put a few rows where the trainer finds them, until it has spoken; raises Refused ``no_space`` and others."""
        (*_, batch) = self._records(producer, pending)
        assert isinstance(batch, Batch)
        x, y = chosen(pending.arrays["x"], pending.arrays["y"])
        self._trials += 1
        trial = ModelTrial(self._trials, producer, pending, self._lives)
        meta = {"signature": trial.signature.plain(), "new_labels": list(batch.new_labels)}
        try:
            published.publish(self.state.trial, meta, {"x": x, "y": y})
        except OSError as error:
            published.clear(self.state.trial)
            reason = f"no room to try the model on the first batch ({error.strerror}); free some"
            raise Refused("no_space", reason, retryable=True) from None
        self.trial = trial
        self.side.send("try_model", number=trial.number)

    def _try_again(self) -> None:
        """A trainer has started; where the one before died of trying a model, not for ever."""
        self._lives += 1
        trial = self.trial
        if trial is None:
            return
        trial.deaths += trial.life > 0
        trial.life = self._lives
        if trial.deaths < MOST_DEATHS:
            self.side.send("try_model", number=trial.number)
            return
        self._judged(
            trial,
            f"the process that tried the model on the first batch ended {trial.deaths} times while it did (a crash in "
            "native code, os._exit, memory, or no sign of life for train.watchdog_seconds); try the model on such rows by "
            "itself, with python -X faulthandler",
        )

    def _model_judged(self, message: dict[str, Any]) -> None:
        """The trainer has tried the model on a first batch, or says why it cannot be learned."""
        trial = self.trial
        if trial is not None and trial.number == message["number"]:
            self._judged(trial, message["refused"])

    def _judged(self, trial: ModelTrial, reason: str | None) -> None:
        self.trial = None
        published.clear(self.state.trial)
        if reason is None:
            self.model_accepted = trial.signature
            return
        self.chronicle.note("failed", f"the model is refused: {reason}")
        self.log.error("the first batch is refused with the model", producer=trial.producer, seq=trial.pending.message.seq)
        waiting = self.waiting.get(trial.producer)
        if waiting and next(iter(waiting.values())) is trial.pending:
            self._drop_first(trial.producer, Refused("bad_shape", reason))

    def _drop_first(self, producer: str, refused: Refused) -> None:
        """Refuse the first of a producer's messages that wait, and with it those behind."""
        _, pending = self.waiting[producer].popitem(last=False)
        self._refuse_waiting(producer, pending, refused)
        if not self.waiting[producer]:
            del self.waiting[producer]

    def _store(self, producer: str, pending: Pending) -> None:
        message, records = pending.message, self._records(producer, pending)
        for record in records:
            self.append(record, pending.arrays.payloads if record is records[-1] else ())
        if isinstance(message, messages.Batch):
            self.metrics.batches_received.labels(self.metrics.label("producer", producer)).inc()
            self.chronicle.stored(producer, len(pending.arrays["y"]), pending.nbytes)
            self._tell_labels(records[-1])
        if not isinstance(message, messages.Batch) or message.boundary:
            kind = "revisit" if isinstance(message, messages.Revisit) else "boundary"
            who = self.guard.called(pending.peer)
            self.audit.write(kind, who=who, producer=producer, seq=message.seq, task=message.task)
        self._arrivals.append(time.monotonic())
        self.acks.add(pending.peer, producer, message)

    def _tell_labels(self, batch: Any) -> None:
        """Say which output a label was given that is not its own number."""
        moved = [
            f"label {label} is output {out}"
            for label, out in zip(batch.new_labels, batch.outputs, strict=True)
            if label != out
        ]
        if moved:
            self.chronicle.note("labels", ", ".join(moved[:10]) + (", ..." if moved[10:] else ""), batch.task)

    def append(self, record: Record, payloads: Sequence[Buffer] = ()) -> int:
        """Put a record into the log, then into the session, and return its LSN.

        Raises Refused ``no_space`` where the disk is full; StreamclError, which ends the process, where it fails otherwise.
        """
        before = self.writer.end_bytes
        try:
            lsn = self.writer.append(record, payloads)
        except OSError as error:
            if error.errno not in FULL:
                raise StreamclError(f"the log cannot be written: {error}; stopping, to recover from disk") from error
            self.session.room.full, self._last_probe = True, time.monotonic()
            self.log.error("the disk is full", reason=str(error))
            self.chronicle.note("disk_full", "the disk is full; nothing is taken in until there is room")
            raise Refused("no_space", f"the disk is full ({error.strerror}); free some", retryable=True) from None
        self.session.room.full = False
        try:
            self.session.apply(lsn, record, self.writer.end_bytes - before)
        except Exception as error:  # stored but not counted: only a new start, from disk, can tell what holds
            raise StreamclError(f"record {lsn}: {type(error).__name__}: {error}") from error
        if self.session.open_task is None:
            self.writer.rotate()
        return lsn

    def _release(self) -> None:
        """Take up messages that no longer have to wait, in their order."""
        for producer, waiting in list(self.waiting.items()):
            while waiting:
                seq, pending = next(iter(waiting.items()))
                if self._must_wait(pending.message, pending.arrays):
                    break
                del waiting[seq]
                try:
                    self._authorise(producer, pending.peer, pending.message)  # what held when it came may hold no more
                    self._store(producer, pending)
                except Refused as refused:
                    self._refuse_waiting(producer, pending, refused)
            if not waiting:
                del self.waiting[producer]
        self._try_next()

    def _refuse_waiting(self, producer: str, pending: Pending, refused: Refused) -> None:
        """Refuse the message, and as a gap all that waited behind it."""
        self._refuse(pending.peer, refused, pending.message.seq, pending.message.id)
        behind = self.waiting.get(producer, OrderedDict())
        while behind:
            seq, later = behind.popitem(last=False)
            try:
                self.session.producers.check_sequence(producer, seq)
            except Refused as gap:
                self._refuse(later.peer, gap, seq, later.message.id)

    # -- answering -----------------------------------------------------------------------------------------------

    def make_durable(self) -> None:
        """Sync what was appended; only then acknowledge it and let the trainer have it."""
        if self.writer.durable < self.writer.next_lsn:
            started = time.monotonic()
            self.writer.sync()
            self.metrics.fsync_duration.observe(time.monotonic() - started)
            self.session.producers.synced()
            self._tell_trainer()
        for peer, producer, request in self.acks.take():
            self._reply(peer, self._ack(producer), request)
        now = time.monotonic()
        for arrived in self._arrivals:
            self.metrics.ack_latency.observe(now - arrived)
        self._arrivals.clear()
        for entry in self.done_later:
            self._send_done(entry)
        self.done_later.clear()
        self._release()
        self.admin.release()
        if self.writer.durable < self.writer.next_lsn:  # a barrier was opened by this very sync
            self.make_durable()

    def _look_for_room(self) -> None:
        """While the disk is full no credit is given; now and then, see whether there is room again."""
        if self.session.room.full and time.monotonic() - self._last_probe > PROBE_SECONDS:
            self._last_probe = time.monotonic()
            room = self.session.room
            room.full = not self.disk.has_room(self.state.log, max(room.largest_batch, ROOM_BYTES))
            self._offer_credit()

    def _ack(self, producer: str) -> dict[str, Any]:
        state, credit = self.session.producers[producer], self.session.room.credit()
        self._last_credit = min(self._last_credit, credit["messages"])  # whoever is told of less is told when there is more
        return {"type": "ack", "durable": state.durable, "applied": state.applied, "credit": credit}

    def _refuse(self, peer: Peer, refused: Refused, seq: int | None, request: Any) -> None:
        self.metrics.batches_rejected.labels(refused.code).inc()
        if not refused.retryable:
            self.chronicle.note("refused", f"{self._who(peer)}: {refused.code}")
        if refused.code == "not_allowed":
            self.audit.write("stream", refused.code, who=self.guard.called(peer), key=peer.key, reason=refused.message)
        fields = {key: value for key, value in refused.fields.items() if key != "id"}
        header = {
            "type": "nack",
            "seq": refused.seq if refused.seq is not None else seq,
            "code": refused.code,
            "retryable": refused.retryable,
            "message": refused.message,
            **fields,
        }
        self._reply(peer, header, request if request is not None else refused.fields.get("id"))

    def _who(self, peer: Peer) -> str:
        identity = self.identities.get(peer.routing_id)
        return "a client that has not said hello" if identity is None else f"producer {identity.producer}"

    def _reply(self, peer: Peer, header: dict[str, Any], request: Any = None) -> None:
        if request is not None:
            header = {**header, "id": request}
        sockets.send(self.stream, peer, frames.build(header, delimited=peer.delimited))

    def _send_done(self, entry: dict[str, Any]) -> None:
        """Tell the producer that closed a task; a REQ socket can take only the reply to its request."""
        peer = self.peers.get(entry["producer"] or "")
        if peer is not None and not peer.waits_for_one:
            self._reply(peer, self.verdict(entry) | {"seq": entry["seq"]})

    def verdict(self, entry: dict[str, Any]) -> dict[str, Any]:
        """What a boundary came to: `done`, or `failed` where nothing was learned."""
        if entry["kind"] == "held":
            message = f"{self.view.reason(entry['task'])}; its rows are kept: {KEPT_REMEDY}"
            return {"type": "failed", "task": entry["task"], "samples": entry["samples"], "message": message}
        return {"type": "done", **figures(entry), "set_aside": ledger.rows_aside(entry)}

    def _offer_credit(self) -> None:
        """Tell every producer when there is credit again; that it has run out stands in the batches' own acks."""
        credit = self.session.room.credit()["messages"]
        if credit > self._last_credit >= 0:
            for producer, peer in self.peers.items():
                if not peer.waits_for_one:
                    self._reply(peer, self._ack(producer))
        self._last_credit = credit

    # -- the other processes -------------------------------------------------------------------------------------

    def _hear_supervisor(self) -> None:
        self.up.flush()
        for message in self.up.receive():
            match message["type"]:
                case "closing":
                    self.closing = True
                    self.view.paused = False  # what is stored is learned before the end, paused or not
                case "begin":
                    self.admin.retry_all()
                case "stop":
                    self.finished = True
                case "failed":
                    self.view.failed(message["role"], message["message"])
                    self.chronicle.note("crashed", f"{message['role']}: {message['message']}")
                case "trouble":
                    self._in_trouble(message["process"], message["message"])
                case "reload":
                    self._reload()
                case "refused":
                    for code, number in message["codes"].items():
                        self.metrics.batches_rejected.labels(code).inc(number)
                    self._note_turned_away(message["notes"])
        self.finished = self.finished or self.up.closed

    def _in_trouble(self, role: str, text: str | None) -> None:
        """A process dies again and again, or lives again."""
        if text is None and self.view.troubles.pop(role, None) is not None:
            self.chronicle.note("recovered", f"the {role} lives again")
        elif text is not None:
            self.view.troubles[role] = text
            self.chronicle.note("crashed", text)

    def _reload(self) -> None:
        """Take the policy, token and certificate as they are now; what is wrong leaves everything as it was."""
        problem = self.guard.reload() or self.http.reload()
        self.audit.write("reload", "ok" if problem is None else "failed", reason=problem)
        self.up.send("reloaded", problem=problem)
        if problem is not None:
            self.log.error("the old policy, token and certificate stay", reason=problem)
            self.chronicle.note("failed", f"the old policy, token and certificate stay: {problem}")
            return
        self.metrics.certificate(self.http.certificate_expiry)
        self.log.info("policy, token and certificate read again")
        self.peers = {name: peer for name, peer in self.peers.items() if self.guard.knows(peer.key)}

    def _note_turned_away(self, notes: Iterable[dict[str, Any]]) -> None:
        """Those whom the gate let in no further, here or at the predictor."""
        for note in notes:
            self.chronicle.note("refused", str(note["action"]))
            if note["action"] != "predict":  # counted by its code already
                code = "not_allowed" if note["action"] == "key refused" else "too_large"
                self.metrics.batches_rejected.labels(code).inc()
            self.audit.write(note.pop("action"), "refused", **note)

    def _tell_trainer(self) -> None:
        self.side.send("durable", lsn=self.writer.durable)

    def hear_trainer(self) -> None:
        """Take what the trainer has to say, and pass it on."""
        self.side.flush()
        for message in self.side.receive():
            match message["type"]:
                case "recovered":
                    self.session.trained(message["next_lsn"])
                    self._greet_trainer()
                case "progress":
                    self._progressed(message)
                case "done":
                    self._done(message["entry"], message["warning"])
                case "failed":
                    self._set_aside(message["failure"])
                case "forgiven":
                    self._forgive(set(message["lsns"]))
                case "penalties":
                    self._take_penalties(message)
                case "accuracies":
                    self._take_accuracies(message)
                case "noted":
                    self.chronicle.note("warning", message["text"], message["task"])
                case "checkpointed":
                    self._checkpointed(message)
                case "dropped":
                    self._watch_spool()
                case "model":
                    self._model_judged(message)
        self.metrics.trainer_up.set(self.view.trainer_up())
        self.metrics.ingested(self.session)
        self._offer_credit()

    def _progressed(self, message: dict[str, Any]) -> None:
        self.view.progressed(message)
        self.metrics.trained(message)
        self.session.trained(message["next_lsn"])
        if message["full"] is not None:
            self.chronicle.note("disk_full", "the disk is full; training waits for room")

    def _set_aside(self, failure: dict[str, Any]) -> None:
        """The trainer could not learn a record."""
        self.view.quarantine.append(failure)
        self.metrics.quarantined.inc()
        self.chronicle.note("failed", str(failure["reason"]), failure["task"])

    def _forgive(self, lsns: set[int]) -> None:
        """Only of these records the failures still matter."""
        self.view.quarantine = [failure for failure in self.view.quarantine if failure["lsn"] in lsns]

    def _greet_trainer(self) -> None:
        """A trainer has (re)started: say how far the log goes and what it was asked before."""
        self._tell_trainer()
        self.view.recovered_trainer()
        if self.view.paused:
            self.side.send("pause")
        self._try_again()
        self.admin.ask_again()

    def _done(self, entry: dict[str, Any], warning: str | None) -> None:
        """A task was consolidated, for the first time or again, withdrawn, or its revisit abandoned."""
        if entry["lsn"] <= self._done_lsn:  # a restarted trainer says its last word again, in case we have not had it
            return
        self._done_lsn = entry["lsn"]
        self._settle(entry)
        self.view.done(entry, warning)
        if ledger.by_drift(entry):
            self._drifted(entry)
        if entry["kind"] != "confirm":
            self.chronicle.note(
                _NOTED.get(entry["kind"], entry["kind"]), self._in_words(entry), entry["task"], entry["lsn"]
            )
        if warning is not None:
            self.chronicle.note("warning", warning, entry["task"])
        match entry["kind"]:
            case "boundary" | "revisit":
                self.session.consolidated(entry["task"], entry["lsn"], by_drift=ledger.by_drift(entry))
                self.metrics.consolidated(entry)
                self._send_done(entry)
            case "held" | "confirm":
                self._send_done(entry)
            case "forget":
                self._unlearned([entry["task"]])
            case "rollback":
                self._unlearned(entry["undone"])
        self.admin.done(entry)

    def _drifted(self, entry: Mapping[str, Any]) -> None:
        """The trainer has closed a task because its stream had changed."""
        self.metrics.drift_detected.inc()
        self.log.warning("drift: the task is closed", task=entry["task"], lsn=entry["lsn"], reason=entry["reason"])
        self.chronicle.note("drift", entry["reason"], entry["task"], entry["lsn"])
        self.writer.rotate()  # so that what is stored from now on does not keep the closed task's records on disk

    def _unlearned(self, tasks: Iterable[str]) -> None:
        for task in tasks:
            self.history.forget(task)
            self.metrics.forget_task(task)

    def _settle(self, entry: dict[str, Any]) -> None:
        """What a record changed holds for everything that comes now."""
        session, standing = self.session, self.view.standing
        standing.take(entry, lambda count: ledger.standing(ledger.read(self.state.path, count)))
        session.took_effect(entry["lsn"])
        if entry["kind"] in ("boundary", "revisit", "held"):
            session.consolidated(entry["task"], entry["lsn"], by_drift=ledger.by_drift(entry))
        if entry["kind"] not in ("boundary", "revisit") or session.held or session.set_aside or ledger.aside(entry):
            session.settle(standing)
        self.metrics.kept(session)

    def _in_words(self, entry: Mapping[str, Any]) -> str:
        """What a record changed for good."""
        match entry["kind"]:
            case "boundary" | "revisit":
                aside = ledger.rows_aside(entry)
                kept = f"; {aside} rows could not be learned and are set aside" if aside else ""
                verb = "consolidated" if entry["kind"] == "boundary" else "revisited"
                figures = f"{entry['samples']} samples, loss {entry['loss']:.4g}, {entry['seconds']:.2f} s"
                return f"{verb}: {figures}{kept}"
            case "held":
                return f"held: {entry['samples']} rows could not be learned: {self.view.reason(entry['task'])}"
            case "still-aside":
                return f"{entry['samples']} rows could not be learned this time either"
            case "drop":
                return "what was kept of it is given up"
            case "rollback":
                return f"undone: {', '.join(entry['undone']) or 'its revisit'}"
            case "rollback-failed":
                return f"could not be undone: {entry['reason']}"
            case "forget":
                return "withdrawn: its factor is deleted"
        return "the revisit was abandoned"

    def _take_penalties(self, message: dict[str, Any]) -> None:
        self.history.add_penalties(message["lsn"], message["time"], message["rows"])
        self._show_penalties({task: (penalty, rise) for task, penalty, rise in message["rows"]})

    def _show_penalties(self, penalties: dict[str, tuple[float, float]]) -> None:
        self.view.penalties.update(penalties)
        self.metrics.followed(penalties)

    def _take_accuracies(self, message: dict[str, Any]) -> None:
        self.history.add_accuracies(message["lsn"], message["time"], message["rows"])
        self._show_accuracies({task: accuracy for task, accuracy, _ in message["rows"]})

    def _show_accuracies(self, accuracies: dict[str, float]) -> None:
        self.view.accuracies.update(accuracies)
        self.metrics.evaluated(accuracies)

    def _checkpointed(self, message: dict[str, Any]) -> None:
        self.session.applied(message["sequences"], message["batches"])
        self.metrics.checkpoint_duration.observe(message["seconds"])
        self.metrics.checkpoint_time.set(message["time"])
        self.admin.checkpointed(message)

    def _watch_spool(self) -> None:
        self.session.room.total_spool = log.spool_bytes(self.state.log)


_NOTED = {"held": "failed", "still-aside": "failed", "rollback-failed": "failed"}  # kinds of entries as events
