"""Producers' connections: who is behind each, and what they are told.

Guarantees: a connection speaks for a producer only with the key it said hello with; a REQ socket gets one reply to each of
its messages and nothing else; bounded, however many connect. Decides nothing of what is stored.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from streamcl import columns as tables
from streamcl.columns import Columns
from streamcl.daemon.endpoint import Port
from streamcl.daemon.guard import Guard
from streamcl.daemon.sockets import Peer
from streamcl.daemon.tasks import Tasks
from streamcl.entries import Closing, Confirmed
from streamcl.errors import Refused
from streamcl.protocol import frames, messages
from streamcl.protocol.session import StreamSession

MOST_CONNECTIONS = 10_000  # that have said hello; older ones are asked to say it again


@dataclass(frozen=True, slots=True)
class Identity:
    """Which producer a connection speaks for, as which incarnation, and with which key. schema: of batches without one."""

    producer: str
    epoch: int
    key: str = ""
    schema: Columns | None = None


@dataclass(slots=True)
class Connections:
    """Who has said hello: by connection, and the newest connection of each producer. Bounded."""

    identities: OrderedDict[bytes, Identity] = field(default_factory=OrderedDict)
    peers: dict[str, Peer] = field(default_factory=dict)

    def add(self, peer: Peer, identity: Identity, known: dict[str, Any]) -> None:
        """One that says hello; of producers that are not `known` any more the peer is forgotten."""
        self.identities[peer.routing_id] = identity
        self.identities.move_to_end(peer.routing_id)
        self.peers[identity.producer] = peer
        if len(self.identities) > MOST_CONNECTIONS:
            self.identities.popitem(last=False)
        if len(self.peers) > len(known):
            self.peers = {name: peer for name, peer in self.peers.items() if name in known}

    def of(self, peer: Peer) -> Identity | None:
        """Who this is, if it has said hello with the key that it has now."""
        identity = self.identities.get(peer.routing_id)
        return None if identity is None or identity.key != peer.key else identity

    def is_newest(self, peer: Peer, producer: str) -> bool:
        """Whether no other connection has said hello for the producer since."""
        return self.peers.get(producer, peer).routing_id == peer.routing_id

    def called(self, peer: Peer) -> str:
        """Who this is, for people."""
        identity = self.identities.get(peer.routing_id)
        return "a client that has not said hello" if identity is None else f"producer {identity.producer}"

    def keep(self, guard: Guard) -> None:
        """Tell nothing more to those whose keys are known no longer."""
        self.peers = {name: peer for name, peer in self.peers.items() if guard.knows(peer.key)}


@dataclass(slots=True)
class Acknowledgements:
    """What can be acknowledged after the next sync: one cumulative `ack` for each producer, or one for each reply owed.

    done: entries to tell those again whose boundary came again. stored: when each message was.
    """

    owed: list[tuple[Peer, str, Any]] = field(default_factory=list)
    cumulative: dict[tuple[bytes, str], Peer] = field(default_factory=dict)
    done: list[Closing] = field(default_factory=list)
    stored: list[float] = field(default_factory=list)

    def add(self, peer: Peer, producer: str, message: messages.Message) -> None:
        """Remember whom to answer. A REQ socket and a request with an id each get their own reply."""
        if message.id is not None or peer.delimited:
            self.owed.append((peer, producer, message.id))
        else:
            self.cumulative[peer.routing_id, producer] = peer

    def take(self) -> list[tuple[Peer, str, Any]]:
        """Everyone to acknowledge now; starts afresh."""
        taken = self.owed + [(peer, producer, None) for (_, producer), peer in self.cumulative.items()]
        self.owed, self.cumulative = [], {}
        return taken

    def take_done(self) -> list[Closing]:
        """Entries to tell now; starts afresh."""
        taken, self.done = self.done, []
        return taken

    def latencies(self) -> list[float]:
        """Seconds since each message was stored; starts afresh."""
        now, stored = time.monotonic(), self.stored
        self.stored = []
        return [now - each for each in stored]


class Replies:
    """What producers are told, on one port."""

    def __init__(self, port: Port, session: StreamSession, tasks: Tasks) -> None:
        self.port, self.session, self.tasks = port, session, tasks
        self.connections = Connections()
        self.acks = Acknowledgements()
        self._last_credit = -1

    def welcome(self, peer: Peer, message: messages.Hello, waits: Mapping[str, Any]) -> None:
        """A producer has said hello. waits: `working` and `waiting`."""
        session, state = self.session, self.session.producers[message.producer]
        fields = {
            "type": "welcome",
            "producer": message.producer,
            "durable": state.durable,
            "applied": state.applied,
            "credit": session.room.credit(),
            "limits": session.limits(),
            "task": session.open_task,
            "revisit": session.revisit_lsn,
            "freed": session.freed,
            "begun": session.signature is not None,
        }
        if session.columns is not None:
            fields |= {"schema": tables.plain(session.columns.columns), "left_out": list(session.columns.left_out)}
        self._send(peer, {**fields, **waits}, message.id)

    def acknowledge(self) -> list[float]:
        """Everything stored is synced: say so, and again what came of what came again; how long each message took."""
        for peer, producer, request in self.acks.take():
            self._send(peer, self._ack(producer), request)
        latencies = self.acks.latencies()
        for entry in self.acks.take_done():
            self.done(entry)
        return latencies

    def _ack(self, producer: str) -> dict[str, Any]:
        state, credit = self.session.producers[producer], self.session.room.credit()
        self._last_credit = min(
            self._last_credit, credit["messages"]
        )  # a client that was told of less must be told when there is more
        return {"type": "ack", "durable": state.durable, "applied": state.applied, "credit": credit}

    def refuse(self, peer: Peer, refused: Refused, seq: int | None, request: Any) -> None:
        """Nothing came of a message."""
        header = {
            "type": "nack",
            "seq": refused.seq if refused.seq is not None else seq,
            "code": refused.code,
            "retryable": refused.retryable,
            "message": refused.message,
            **{key: value for key, value in refused.fields.items() if key != "id"},
        }
        self._send(peer, header, request)

    def done(self, entry: Closing | Confirmed) -> None:
        """Tell the producer that closed a task; a REQ socket can take only the reply to its request."""
        peer = self.connections.peers.get(entry.producer or "")
        if peer is not None and not peer.waits_for_one:
            self._send(peer, self.tasks.verdict(entry) | {"seq": entry.seq})

    def offer_credit(self) -> None:
        """Tell every producer when there is credit again; that it has run out is in the batches' own acks."""
        credit = self.session.room.credit()["messages"]
        if credit > self._last_credit >= 0:
            for producer, peer in self.connections.peers.items():
                if not peer.waits_for_one:
                    self._send(peer, self._ack(producer))
        self._last_credit = credit

    def _send(self, peer: Peer, header: dict[str, Any], request: Any = None) -> None:
        if request is not None:
            header = {**header, "id": request}
        self.port.send(peer, frames.build(header, delimited=peer.delimited))
