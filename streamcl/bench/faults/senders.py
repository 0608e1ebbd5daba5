"""The producers of a simulated world: the client's own outbox, and a network that brings messages late or twice."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from streamcl.protocol import messages
from streamcl.protocol.frames import Buffer
from streamcl.protocol.outbox import Connect, Contact, Delayed, Effect, Outbox, Transmit, Unlearned

TICK = 0.25  # seconds that a turn of the daemon takes, as the outboxes see it
PATIENCE = 1e9  # nobody gives up
REPEATED = 0.1  # of all messages, as often the network brings one again


class Violation(BaseException):
    """A promise was broken. No Exception, so that nothing of the daemon answers for it."""


@dataclass(frozen=True, slots=True)
class Send:
    """One message of a producer's sequence."""

    producer: str
    header: dict[str, Any]
    arrays: dict[str, Any] = field(default_factory=dict)

    @property
    def seq(self) -> int:
        """Its place in the producer's sequence."""
        return int(self.header["seq"])


class Sender:
    """One producer: its outbox, and what is on its way on its present connection."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.outbox = Outbox(name, 0, clocked=False, seconds=PATIENCE, now=0.0)
        self.connection = 0
        self.wire: deque[list[Buffer]] = deque()
        self.brought: list[list[Buffer]] = []

    @property
    def address(self) -> str:
        """Of its connection, for the daemon to answer."""
        return f"{self.name}/{self.connection}"

    @property
    def ready(self) -> bool:
        """Whether it may offer a message."""
        return self.outbox.contact is Contact.OPEN and self.outbox.has_credit

    def offer(self, send: Send, now: float) -> None:
        """Hand the next message of a script over."""
        self.perform(self.outbox.offer(messages.decode(send.header, messages.StreamMessage), send.arrays, now))

    def hear(self, address: str, header: Mapping[str, Any], now: float) -> None:
        """An answer has come; one to an earlier connection finds nobody there."""
        reply = messages.decode_reply(header)
        if address == self.address and reply is not None:
            self.perform(self.outbox.hear(reply, now))

    def look_at_the_clock(self, now: float) -> None:
        """Connect where it is time; ask again where a word is owed."""
        owed = self.outbox.contact is not Contact.OPEN or self.outbox.unsafe > 0 or not self.outbox.has_credit
        if owed and now >= self.outbox.due:
            self.perform(self.outbox.passed(now))

    def cut(self, now: float) -> None:
        """The daemon has ended, and with it the connection and all that was on its way."""
        self.wire.clear()
        self.brought.clear()
        self.outbox.lost(now)

    def perform(self, effects: Iterable[Effect]) -> None:
        """What the client does with a socket; raises Violation where it would raise."""
        for effect in effects:
            match effect:
                case Connect():
                    self.connection += 1
                    self.wire.clear()
                    self.brought.clear()
                case Transmit():
                    self.wire.append(effect.message)
                case Delayed() | Unlearned():
                    pass
                case _:
                    raise Violation(f"{self.name}: {effect}")

    def bring(self, rng: random.Random) -> Iterator[tuple[str, list[Buffer]]]:
        """The next message that the network brings, or one that it has brought before; and where it comes from."""
        if self.brought and rng.random() < REPEATED:
            yield self.address, rng.choice(self.brought)
        elif self.wire:
            self.brought.append(self.wire.popleft())
            yield self.address, self.brought[-1]


class Senders:
    """All producers of a script.

    place: the (producer, seq) in the order in which to send, one at a time, each once the one before is acknowledged.
    """

    def __init__(self, names: Iterable[str], rng: random.Random, place: Mapping[tuple[str, int], int] | None) -> None:
        self.by_name = {name: Sender(name) for name in sorted(names)}
        self.rng, self.place = rng, place
        self.now = 0.0

    def cut(self) -> None:
        """The daemon has ended."""
        for sender in self.by_name.values():
            sender.cut(self.now)

    def hear(self, address: str, header: Mapping[str, Any]) -> None:
        """The daemon answers one of them."""
        self.by_name[address.rpartition("/")[0]].hear(address, header, self.now)

    def turn(self, phase: Sequence[Send]) -> Iterator[tuple[str, list[Buffer]]]:
        """Offer what may be offered of a phase; then what an unpredictable network brings, up to eight messages."""
        self.now += TICK
        for sender in self.by_name.values():
            sender.look_at_the_clock(self.now)
        for send in self._due(phase):
            self.by_name[send.producer].offer(send, self.now)
        for _ in range(self.rng.randint(0, 8)):
            talking = [sender for sender in self.by_name.values() if sender.wire or sender.brought]
            if talking:
                yield from self.rng.choice(talking).bring(self.rng)

    def hold(self, phase: Sequence[Send]) -> bool:
        """Whether all of a phase is acknowledged."""
        return all(self.by_name[send.producer].outbox.durable >= send.seq for send in phase)

    def _due(self, phase: Sequence[Send]) -> Iterator[Send]:
        if self.place is not None:
            yield from self._in_order(phase, self.place)
            return
        for send in phase:
            sender = self.by_name[send.producer]
            if sender.ready and send.seq == sender.outbox.last + 1:
                yield send

    def _in_order(self, phase: Sequence[Send], place: Mapping[tuple[str, int], int]) -> Iterator[Send]:
        idle = all(sender.ready and sender.outbox.unsafe == 0 for sender in self.by_name.values())
        following = [send for send in phase if send.seq == self.by_name[send.producer].outbox.last + 1]
        if idle and following:
            yield min(following, key=lambda send: place[send.producer, send.seq])
