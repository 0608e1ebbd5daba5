"""The producer's half against the daemon's: every message is stored once and in order, whatever the network does.

`Daemon` is the session with what the ingest does around it, on a disk that keeps what was synced; `Network` brings messages
of every connection there has ever been. A state machine drives both halves through it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from streamcl.errors import Refused, StreamclError
from streamcl.protocol import frames, messages
from streamcl.protocol.outbox import (
    CONTACT,
    PAUSES,
    SILENCE_SECONDS,
    STAGES,
    Connect,
    Contact,
    Delayed,
    Diverged,
    Effect,
    Fate,
    GaveUp,
    Outbox,
    Refusal,
    Sign,
    Stage,
    Transmit,
    Unlearned,
    _Kept,
)
from streamcl.protocol.session import StreamSession, Terms
from streamcl.storage.records import Boundary, Record

CLASSES = 3
CREDIT = 4
FOREVER = 1e9
LONG = 3.0  # seconds of silence that nobody bears


@dataclass(frozen=True)
class Item:
    """What an application offers: a batch whose only row is its number, or the boundary of its task."""

    kind: str
    number: int
    task: str
    poison: bool = False

    def message(self) -> messages.Batch | messages.Boundary:
        if self.kind == "boundary":
            return messages.Boundary(seq=0, task=self.task)
        return messages.Batch(seq=0, task=self.task)

    def arrays(self) -> dict[str, Any]:
        if self.kind == "boundary":
            return {}
        y = np.array([0.5], "<f4") if self.poison else np.array([0], "<i8")
        return {"x": np.array([[self.number]], "<f4"), "y": y}


# -- the daemon's half ---------------------------------------------------------------------------------------------------


class Daemon:
    """A session and its log. What is synced outlives a crash; of the rest as much as the disk likes."""

    def __init__(self) -> None:
        self.log: list[tuple[Record, int]] = []
        self.synced = self.consolidated = 0
        self.start()

    def start(self) -> None:
        self.session = StreamSession(Terms(classes=CLASSES, credit=CREDIT))
        for lsn, (record, _) in enumerate(self.log):
            self.session.apply(lsn, record, 1)
        self.session.producers.synced()
        self.synced = len(self.log)
        self.identities: dict[str, tuple[str, int]] = {}
        self.newest: dict[str, str] = {}
        self.owed: list[str] = []

    def crash(self, kept: int) -> None:
        """kept: how many records beyond the synced ones happen to be on disk."""
        del self.log[self.synced + kept :]
        self.consolidated = min(self.consolidated, len(self.log))
        self.start()

    def take(self, address: str, parts: list[frames.Buffer]) -> Iterable[tuple[str, dict[str, Any]]]:
        envelope = frames.parse(parts)
        message = messages.decode(envelope.header, messages.StreamMessage)
        try:
            if isinstance(message, messages.Hello):
                yield address, self._welcome(address, message)
            else:
                yield from self._judge(address, message, envelope)
        except Refused as refused:
            seq = refused.seq if refused.seq is not None else envelope.header.get("seq")
            fields = {"code": refused.code, "message": refused.message, "retryable": refused.retryable, **refused.fields}
            yield address, {"type": "nack", "seq": seq, "id": message.id, **fields}

    def _welcome(self, address: str, message: messages.Hello) -> dict[str, Any]:
        state = self.session.producers.hello(message)
        self.identities[address] = message.producer, state.epoch
        self.newest[message.producer] = address
        return {**self._ack(message.producer), "type": "welcome", "id": message.id}

    def _ack(self, producer: str) -> dict[str, Any]:
        state = self.session.producers[producer]
        return {"type": "ack", "durable": state.durable, "applied": 0, "credit": self.session.room.credit()}

    def _judge(self, address: str, message: Any, envelope: frames.Envelope) -> Iterable[tuple[str, dict[str, Any]]]:
        if address not in self.identities:
            raise Refused("not_ready", "hello first", retryable=True)
        producer, epoch = self.identities[address]
        self.session.producers.check_epoch(producer, epoch)
        if self.newest[producer] != address:
            raise Refused("not_ready", "another connection has said hello since", retryable=True)
        if self.session.producers.is_duplicate(producer, message.seq):
            self.owed.append(address)
            return [reply for reply in self.verdicts() if reply[1]["seq"] == message.seq]
        self.session.producers.check_sequence(producer, message.seq)
        number = 0
        if isinstance(message, messages.Batch):
            arrays = frames.open_arrays(envelope, ["x", "y"])
            records = self.session.admit_batch(producer, message, arrays, 1)
            number = int(arrays["x"][0, 0])
        else:
            records = self.session.admit_boundary(producer, message)
        for record in records:
            self.log.append((record, number))
            self.session.apply(len(self.log) - 1, record, 1)
        self.owed.append(address)
        return []

    def sync(self) -> Iterable[tuple[str, dict[str, Any]]]:
        self.session.producers.synced()
        self.synced = len(self.log)
        owed, self.owed = self.owed, []
        return [(address, self._ack(self.identities[address][0])) for address in dict.fromkeys(owed)]

    def consolidate(self) -> Iterable[tuple[str, dict[str, Any]]]:
        before, self.consolidated = self.consolidated, self.synced
        return self.verdicts(before)

    def verdicts(self, first: int = 0) -> list[tuple[str, dict[str, Any]]]:
        return [
            (self.newest[str(record.producer)], {"type": "done", "seq": record.seq, "task": record.task})
            for record, _ in self.log[first : self.consolidated]
            if isinstance(record, Boundary) and record.producer in self.newest
        ]


# -- what lies between ---------------------------------------------------------------------------------------------------


@dataclass
class Network:
    """Messages on their way to the daemon, of every connection; and answers, to the present one."""

    address: str = ""
    connections: int = 0
    requests: dict[str, list[list[frames.Buffer]]] = field(default_factory=dict)
    answers: list[dict[str, Any]] = field(default_factory=list)

    def connect(self) -> None:
        self.connections += 1
        self.address = f"connection-{self.connections}"
        self.requests[self.address] = []
        self.answers.clear()

    def answer(self, replies: Iterable[tuple[str, dict[str, Any]]]) -> None:
        self.answers += [header for address, header in replies if address == self.address]

    def drop(self) -> None:
        """Nothing that is on its way arrives."""
        for waiting in self.requests.values():
            waiting.clear()
        self.answers.clear()

    def take(self, address: str, number: float) -> Iterator[list[frames.Buffer]]:
        while number > 0 and self.requests[address]:
            number -= 1
            yield self.requests[address].pop(0)

    def busy(self) -> list[str]:
        return [address for address, waiting in self.requests.items() if waiting]


class Conversation(RuleBasedStateMachine):
    """One producer, which offers, ends and comes back; a daemon, which stores, syncs, ends and comes back."""

    poisonous = True  # some messages are refused for good

    def __init__(self) -> None:
        super().__init__()
        self.daemon, self.network = Daemon(), Network()
        self.now, self.epoch, self.numbers = 0.0, 0, 0
        self.expected: list[Item] = []
        self.awaited: dict[int, Item] = {}
        self.resuming = False
        self.start()
        while self.resuming:
            self.all_goes_well()

    def start(self) -> None:
        self.outbox = Outbox("p", self.epoch, clocked=False, seconds=FOREVER, now=self.now)
        self.awaited.clear()
        self.network.address = ""
        self.resuming = True

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Connect():
                    self.network.connect()
                case Transmit():
                    self.network.requests[self.network.address].append(effect.message)
                case Refusal():
                    self.refused(effect)
                case Delayed():
                    pass
                case _:
                    raise AssertionError(effect)

    def refused(self, refusal: Refusal) -> None:
        seq = refusal.nack.seq
        assert seq is not None
        assert self.expected[seq - 1].poison, refusal
        assert refusal.forgotten
        assert refusal.behind == len(self.expected) - seq
        self.awaited = {number: item for number, item in self.awaited.items() if number < seq}
        del self.expected[seq - 1 :]

    def listen(self, header: dict[str, Any]) -> None:
        reply = messages.decode_reply(header)
        assert reply is not None
        self.perform(self.outbox.hear(reply, self.now))
        if self.resuming and self.outbox.contact is Contact.OPEN:
            del self.expected[self.outbox.durable :]  # a new process goes on from there
            self.resuming = False

    def judge(self, address: str, message: list[frames.Buffer]) -> None:
        self.network.answer(self.daemon.take(address, message))

    def task(self) -> str:
        return f"task-{sum(item.kind == 'boundary' for item in self.expected)}"

    def offer(self, item: Item, awaited: bool = False) -> None:
        self.expected.append(item)
        self.perform(self.outbox.offer(item.message(), item.arrays(), self.now, awaited=awaited))
        assert self.outbox.last == len(self.expected)
        if awaited:
            self.awaited[self.outbox.last] = item

    # -- the producer

    @precondition(lambda self: not self.resuming and self.outbox.has_credit)
    @rule(poisons=st.lists(st.booleans(), min_size=2, max_size=CREDIT))
    def send(self, poisons: list[bool]) -> None:
        for poison in poisons:
            if self.outbox.has_credit:
                self.numbers += 1
                self.offer(Item("batch", self.numbers, self.task(), self.poisonous and poison))

    @precondition(lambda self: not self.resuming and self.expected and self.expected[-1].kind == "batch")
    @rule(awaited=st.booleans())
    def close_task(self, awaited: bool) -> None:
        self.offer(Item("boundary", 0, self.task()), awaited)

    @precondition(lambda self: self.awaited)
    @rule()
    def wait_no_longer(self) -> None:
        seq = min(self.awaited)
        del self.awaited[seq]
        self.outbox.waive(seq)

    @rule(seconds=st.sampled_from([0.01, 0.1, LONG]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        owed = self.outbox.contact is not Contact.OPEN or self.outbox.unsafe or self.awaited or not self.outbox.has_credit
        if owed and self.now >= self.outbox.due:
            self.perform(self.outbox.passed(self.now))

    @rule(welcome=st.booleans())
    def make_a_new_connection(self, welcome: bool) -> None:
        """What is on its way on the old one may still arrive. welcome: before that, the new one is used."""
        self.outbox.lost(self.now)
        self.perform(self.outbox.passed(self.now))
        if welcome:
            self.the_newest_come_first()

    @precondition(lambda self: not self.resuming)
    @rule(welcome=st.booleans())
    def start_the_producer_again(self, welcome: bool) -> None:
        self.epoch += 1
        self.start()
        self.perform(self.outbox.passed(self.now))
        if welcome:
            self.the_newest_come_first()

    # -- the daemon

    @rule()
    def sync(self) -> None:
        self.network.answer(self.daemon.sync())

    @rule()
    def consolidate(self) -> None:
        self.network.answer(self.daemon.consolidate())

    @rule(kept=st.integers(0, 3), noticed=st.booleans())
    def kill_the_daemon(self, kept: int, noticed: bool) -> None:
        self.daemon.crash(kept)
        self.network.drop()
        if noticed:
            self.outbox.lost(self.now)

    # -- the network: what every one may do

    @precondition(lambda self: self.network.busy())
    @rule(data=st.data(), number=st.integers(1, CREDIT))
    def bring_messages(self, data: st.DataObject, number: int) -> None:
        address = data.draw(st.sampled_from(self.network.busy()))
        for message in self.network.take(address, number):
            self.judge(address, message)

    @precondition(lambda self: self.network.answers)
    @rule(number=st.integers(1, CREDIT))
    def bring_answers(self, number: int) -> None:
        for _ in range(min(number, len(self.network.answers))):
            if self.network.answers:  # a refusal may make a new connection
                self.listen(self.network.answers.pop(0))

    @rule()
    def the_newest_come_first(self) -> None:
        """What is on its way on the present connection arrives, and its answers, before anything else."""
        for message in self.network.take(self.network.address, FOREVER) if self.network.address else ():
            self.judge(self.network.address, message)
        self.bring_answers(len(self.network.answers))

    @rule()
    def all_goes_well(self) -> None:
        """Everything arrives, and everything awaited comes."""
        for address in self.network.busy():
            for message in self.network.take(address, FOREVER):
                self.judge(address, message)
        self.sync()
        self.consolidate()
        self.bring_answers(len(self.network.answers))
        self.time_passes(0.1)

    # -- what must hold

    @invariant()
    def every_message_is_stored_once_and_in_order(self) -> None:
        stored = [(record.seq, type(record).__name__.lower(), number) for record, number in self.daemon.log]
        offered = [(seq, item.kind, item.number) for seq, item in enumerate(self.expected, 1)]
        assert stored == offered[: len(stored)]

    @invariant()
    def nothing_is_acknowledged_that_is_not_on_disk(self) -> None:
        assert self.outbox.durable <= self.daemon.synced

    def teardown(self) -> None:
        """The network is kind again: everything arrives, and everything awaited comes."""
        for _ in range(30 + 2 * len(self.expected)):
            if self.settled():
                break
            for _ in range(4):
                self.all_goes_well()
            self.time_passes(LONG)
        assert self.settled(), (self.outbox.contact, self.outbox.unsafe, self.awaited)
        assert self.daemon.synced == len(self.expected)
        self.every_message_is_stored_once_and_in_order()

    def settled(self) -> bool:
        for seq, item in list(self.awaited.items()):
            verdict = self.outbox.verdict(seq)
            if verdict is not None:
                assert verdict.said["task"] == item.task
                del self.awaited[seq]
        return not self.resuming and self.outbox.unsafe == 0 and not self.awaited


class UnrulyConversation(Conversation):
    """Of one connection, too, messages and answers get lost, come twice and overtake each other.

    Nothing is refused for good here: a number can be used again only because one connection keeps the order.
    """

    poisonous = False

    @precondition(lambda self: self.network.busy())
    @rule(data=st.data())
    def lose_a_message(self, data: st.DataObject) -> None:
        self.network.requests[data.draw(st.sampled_from(self.network.busy()))].pop(0)

    @precondition(lambda self: self.network.busy())
    @rule(data=st.data(), again=st.booleans())
    def bring_any_message(self, data: st.DataObject, again: bool) -> None:
        address = data.draw(st.sampled_from(self.network.busy()))
        waiting = self.network.requests[address]
        place = data.draw(st.integers(0, len(waiting) - 1))
        self.judge(address, waiting[place] if again else waiting.pop(place))

    @precondition(lambda self: self.network.answers)
    @rule(data=st.data(), again=st.booleans(), lost=st.booleans())
    def bring_any_answer(self, data: st.DataObject, again: bool, lost: bool) -> None:
        place = data.draw(st.integers(0, len(self.network.answers) - 1))
        header = self.network.answers[place] if again else self.network.answers.pop(place)
        if not lost:
            self.listen(header)


def test_what_is_left_of_an_old_connection_takes_no_number_that_is_used_again() -> None:
    machine = Conversation()
    machine.send([False, True, False, False])
    old = machine.network.address
    for message in machine.network.take(old, 2):
        machine.judge(old, message)
    machine.bring_answers(2)
    assert len(machine.expected) == 1  # the second is refused, and the two on their way with it
    machine.make_a_new_connection(welcome=True)
    machine.send([False, False])
    machine.the_newest_come_first()
    for message in machine.network.take(old, FOREVER):
        machine.judge(old, message)
    machine.teardown()


MACHINE = settings(
    max_examples=200, stateful_step_count=60, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
TestConversation = Conversation.TestCase
TestConversation.settings = MACHINE
TestUnrulyConversation = UnrulyConversation.TestCase
TestUnrulyConversation.settings = MACHINE


# -- one half alone ------------------------------------------------------------------------------------------------------

SECONDS = 10.0
ROWS = {"x": np.ones((1, 2), "<f4"), "y": np.zeros(1, "<i8")}
BATCH, CLOSING = messages.Batch(seq=0, task="a"), messages.Boundary(seq=0, task="a")


def welcome(durable: int = 0, credit: int = 4, **said: Any) -> messages.Welcome:
    return messages.Welcome(durable=durable, applied=0, credit=messages.Credit(messages=credit), **said)


def ack(durable: int, credit: int = 4) -> messages.Ack:
    return messages.Ack(durable=durable, applied=0, credit=messages.Credit(messages=credit))


def nack(code: str, seq: int | None, **said: Any) -> messages.Nack:
    return messages.Nack(code=code, message="words", seq=seq, retryable=code in messages.RETRYABLE, **said)


def done(seq: int, learned: bool = True) -> messages.Verdict:
    return messages.Verdict(seq, learned, {"task": "a"})


def greeting(epoch: int = 7, clocked: bool = False) -> Outbox:
    outbox = Outbox("p", epoch, clocked=clocked, seconds=SECONDS, now=0.0)
    outbox.passed(0.0)
    return outbox


def opened(durable: int = 0, credit: int = 4) -> Outbox:
    outbox = greeting()
    outbox.hear(welcome(durable, credit), 0.0)
    return outbox


def sent(effects: list[Effect]) -> list[int]:
    return [effect.seq for effect in effects if isinstance(effect, Transmit) and effect.seq is not None]


def hello(effects: list[Effect]) -> dict[str, Any]:
    (message,) = (effect.message for effect in effects if isinstance(effect, Transmit) and effect.seq is None)
    return frames.parse(message).header


def test_a_new_connection_begins_with_hello_and_goes_on_from_where_the_daemon_is() -> None:
    outbox = opened(durable=5)
    assert outbox.last == 5
    for _ in range(3):
        effects = outbox.offer(BATCH, ROWS, 1.0)
        assert sent(effects) == [outbox.last]
    outbox.lost(2.0)
    assert sent(outbox.offer(BATCH, ROWS, 2.0)) == []
    effects = outbox.passed(2.0)
    assert isinstance(effects[0], Connect)
    assert {name: hello(effects)[name] for name in ("type", "producer", "epoch")} == {
        "type": "hello",
        "producer": "p",
        "epoch": 7,
    }
    assert sent(outbox.hear(welcome(6), 2.0)) == [7, 8, 9]
    outbox.hear(ack(9), 2.0)
    assert (outbox.durable, outbox.unsafe) == (9, 0)


def test_a_message_travels_as_the_protocol_has_it() -> None:
    outbox = opened()
    (effect,) = outbox.offer(messages.Boundary(seq=0, task="a", barrier={"q": 3}), {}, 0.0)
    assert isinstance(effect, Transmit)
    header = {"v": 1, "type": "boundary", "seq": 1, "task": "a", "barrier": {"q": 3}}
    assert frames.parse(effect.message).header == header


def test_a_message_before_the_first_welcome_has_no_number() -> None:
    with pytest.raises(StreamclError, match="connect first"):
        greeting().offer(BATCH, ROWS, 0.0)


def test_silence_while_a_word_is_owed_begins_again() -> None:
    outbox = opened()
    outbox.offer(BATCH, ROWS, 1.0)
    assert outbox.due == 1.0 + SILENCE_SECONDS
    effects = outbox.passed(outbox.due)
    assert hello(effects)
    assert outbox.hear(ack(1), 3.0) == []  # of the connection before
    assert sent(outbox.hear(welcome(), 3.0)) == [1]
    assert outbox.hear(welcome(), 3.0) == []  # once


def test_an_epoch_of_the_clock_gives_way_once_and_a_given_one_is_fenced() -> None:
    outbox = greeting(clocked=True)
    assert outbox.hear(nack("stale_epoch", None, epoch=40), 0.0) == []
    assert hello(outbox.passed(0.0))["epoch"] == 41
    outbox.hear(welcome(), 0.0)
    outbox.lost(0.0)
    outbox.passed(0.0)
    (refusal,) = outbox.hear(nack("stale_epoch", None, epoch=50), 0.0)
    assert isinstance(refusal, Refusal)
    (refusal,) = greeting().hear(nack("stale_epoch", None, epoch=40), 0.0)
    assert isinstance(refusal, Refusal)
    assert not refusal.forgotten


@pytest.mark.parametrize("code", ["no_credit", "no_space"])
def test_where_there_is_no_room_it_asks_again_and_no_faster_than_that(code: str) -> None:
    outbox = opened()
    for _ in range(2):
        outbox.offer(BATCH, ROWS, 1.0)
    assert outbox.hear(nack(code, 1), 1.0) == []
    assert (outbox.credit, outbox.contact, outbox.due) == (0, Contact.APART, 1.0 + PAUSES[code])
    assert outbox.hear(nack("gap", 2), 1.0) == []  # what still comes on that connection
    outbox.passed(outbox.due)
    assert sent(outbox.hear(welcome(), 2.0)) == [1, 2]


def test_a_gap_behind_the_first_is_no_news() -> None:
    outbox = opened()
    for _ in range(2):
        outbox.offer(BATCH, ROWS, 0.0)
    assert outbox.hear(nack("gap", 2), 0.0) == []
    assert isinstance(outbox.offer(BATCH, ROWS, 0.0)[0], Transmit)
    outbox.hear(nack("gap", 1), 0.0)
    assert outbox.contact is Contact.APART


def test_what_is_refused_for_good_is_forgotten_with_all_behind_it_and_its_number_used_again() -> None:
    outbox = opened()
    for _ in range(3):
        outbox.offer(BATCH, ROWS, 0.0)
    outbox.hear(ack(1), 0.0)
    (refusal,) = outbox.hear(nack("bad_label", 2), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.forgotten, refusal.behind, outbox.last) == (True, 1, 1)
    assert sent(outbox.offer(BATCH, ROWS, 0.0)) == [2]
    assert outbox.hear(nack("task_closed", 3), 0.0) == []  # of the one behind, which is forgotten already
    assert outbox.last == 2
    (refusal,) = outbox.hear(nack("not_allowed", None), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.forgotten, outbox.last) == (False, 2)


def test_a_message_that_stands_for_several_numbers_is_one_message() -> None:
    outbox = opened(durable=3, credit=2)
    (first,) = outbox.offer(BATCH, ROWS, 0.0, seq=9)
    (second,) = outbox.offer(BATCH, ROWS, 0.0)
    assert isinstance(first, Transmit)
    assert isinstance(second, Transmit)
    headers = [frames.parse(each.message).header for each in (first, second)]
    assert [(each.get("first"), each["seq"]) for each in headers] == [(4, 9), (None, 10)]
    assert (outbox.last, outbox.unsafe, outbox.has_credit) == (10, 2, False)
    with pytest.raises(StreamclError, match="at least 11, got 10"):
        outbox.offer(BATCH, ROWS, 0.0, seq=10)
    outbox.lost(0.0)
    outbox.passed(0.0)
    assert sent(outbox.hear(welcome(3), 0.0)) == [9, 10]  # as they were
    outbox.hear(ack(9), 0.0)
    assert (outbox.durable, outbox.unsafe) == (9, 1)


def test_a_gap_at_the_first_that_is_not_stored_goes_back_whatever_its_number() -> None:
    outbox = opened(durable=3)
    outbox.offer(BATCH, ROWS, 0.0, seq=9)
    outbox.hear(nack("gap", 9), 0.0)
    assert outbox.contact is Contact.APART


def test_all_numbers_of_what_is_refused_are_free_again() -> None:
    outbox = opened(durable=3)
    for seq in (5, 9, 12):
        outbox.offer(BATCH, ROWS, 0.0, seq=seq)
    (refusal,) = outbox.hear(nack("bad_label", 9), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.behind, outbox.last) == (1, 5)
    (again,) = outbox.offer(BATCH, ROWS, 0.0, seq=7)
    assert isinstance(again, Transmit)
    assert frames.parse(again.message).header["first"] == 6


def test_a_refusal_of_a_stored_boundary_takes_only_what_is_not_stored() -> None:
    outbox = opened()
    outbox.offer(BATCH, ROWS, 0.0)
    outbox.offer(CLOSING, {}, 0.0, awaited=True)
    outbox.hear(ack(2), 0.0)
    (refusal,) = outbox.hear(nack("stale_epoch", 2), 0.0)
    assert isinstance(refusal, Refusal)
    assert (refusal.forgotten, outbox.last) == (False, 2)  # its number stays taken


def test_a_boundary_put_off_again_and_again_is_given_up_and_one_on_its_way_is_not() -> None:
    outbox, now = opened(), 0.0
    outbox.offer(CLOSING, {}, now)
    effects: list[Effect] = []
    while now < SECONDS - 1:
        outbox.hear(nack("not_ready", 1), now)
        now = outbox.due
        outbox.passed(now)
        effects = outbox.hear(welcome(), now)
    assert sent(effects) == [1]
    assert outbox.due > SECONDS  # an answer is waited for although patience is over
    now = SECONDS + 0.1
    outbox.hear(nack("not_ready", 1), now)
    (refusal,) = outbox.passed(outbox.due)
    assert isinstance(refusal, Refusal)
    assert (refusal.nack.retryable, outbox.last) == (True, 0)
    assert "again and again for 10 s" in refusal.nack.message

    outbox.begin(SECONDS, now)
    outbox.passed(now)
    outbox.hear(welcome(), now)
    outbox.offer(CLOSING, {}, now)
    (effect,) = outbox.passed(now + SECONDS)
    assert isinstance(effect, GaveUp)
    assert "1 messages from seq 1 on are not known to be stored; they are kept here" in effect.words
    assert outbox.unsafe == 1


def test_patience_lasts_as_long_as_the_daemon_is_at_work_and_ends_with_its_reason() -> None:
    outbox = opened()
    outbox.offer(CLOSING, {}, 0.0, awaited=True)
    outbox.hear(ack(1), 0.0)
    for now in (8.0, 16.0):
        outbox.passed(now)
        outbox.hear(welcome(1, working=True, waiting=None), now)
    assert hello(outbox.passed(24.0))
    assert outbox.hear(welcome(1, working=False, waiting="paused"), 24.0)[0] == Delayed("paused")
    outbox.passed(25.0)
    again = outbox.hear(welcome(1, working=False, waiting="paused"), 25.0)
    assert not any(isinstance(effect, Delayed) for effect in again)  # each reason once
    assert outbox.passed(26.5) == [GaveUp("there has been no progress for 10 s: paused; everything sent is stored")]


def test_where_nobody_answers_it_says_so() -> None:
    (effect,) = greeting().passed(SECONDS)
    assert isinstance(effect, GaveUp)
    assert "no streamcl daemon answered within 10 s; start one with `streamcl serve`" in effect.words
    outbox = greeting()
    outbox.hear(nack("not_ready", None), 0.0)
    (effect,) = outbox.passed(SECONDS)
    assert isinstance(effect, GaveUp)
    assert "it was last refused: not_ready: words" in effect.words


def test_a_verdict_is_given_once_to_whoever_awaits_it() -> None:
    outbox = opened()
    for awaited in (True, True, False):
        outbox.offer(CLOSING, {}, 0.0, awaited=awaited)
    assert outbox.verdict(1) is None
    assert outbox.hear(done(1), 0.0) == []  # before its acknowledgement
    assert outbox.durable == 1
    assert outbox.verdict(1) == done(1)
    assert outbox.verdict(1) is None
    outbox.hear(ack(3), 0.0)
    outbox.lost(0.0)
    outbox.passed(0.0)
    assert sent(outbox.hear(welcome(3), 0.0)) == [2]  # asked for again
    outbox.waive(2)
    assert outbox.hear(done(2), 0.0) == []
    for seq in (2, 3):
        assert outbox.hear(done(seq, learned=False), 0.0) == [Unlearned(done(seq, learned=False))]


def test_a_daemon_with_another_history_is_not_gone_on_with() -> None:
    outbox = opened()
    outbox.offer(BATCH, ROWS, 0.0)
    outbox.hear(ack(1), 0.0)
    assert outbox.hear(ack(0), 0.0) == []  # only late
    outbox.lost(0.0)
    outbox.passed(0.0)
    (effect,) = outbox.hear(welcome(0), 0.0)
    assert isinstance(effect, Diverged)
    assert "its state directory was replaced" in effect.words
    for heard in (ack(3), welcome(3)):
        outbox = opened()
        outbox.offer(BATCH, ROWS, 0.0)
        if isinstance(heard, messages.Welcome):
            outbox.lost(0.0)
            outbox.passed(0.0)
        (effect,) = outbox.hear(heard, 0.0)
        assert isinstance(effect, Diverged)
        assert "another process sends under this name and epoch" in effect.words


def test_what_a_newer_daemon_says_is_not_listened_to() -> None:
    assert messages.decode_reply({"type": "news", "v": 1}) is None
    assert isinstance(messages.decode_reply({"type": "error", "code": "bad_header", "message": "m"}), messages.Nack)
    with pytest.raises(Refused, match="durable"):
        messages.decode_reply({"type": "ack", "durable": "1", "applied": 0, "credit": {"messages": 1}})


# -- the tables ----------------------------------------------------------------------------------------------------------

LINKS: dict[Contact, Callable[[], Outbox]] = {
    Contact.APART: lambda: Outbox("p", 7, clocked=True, seconds=SECONDS, now=0.0),
    Contact.GREETING: lambda: greeting(clocked=True),
    Contact.OPEN: lambda: opened(),
}
SIGNS: dict[Sign, Callable[[Outbox], Any]] = {
    Sign.WELCOME: lambda outbox: outbox.hear(welcome(), 1.0),
    Sign.OUTDATED: lambda outbox: outbox.hear(nack("stale_epoch", None, epoch=9), 1.0),
    Sign.PROGRESS: lambda outbox: outbox.hear(ack(0), 1.0),
    Sign.LOST: lambda outbox: outbox.lost(1.0),
}


@pytest.mark.parametrize("link", Contact)
@pytest.mark.parametrize("sign", SIGNS)
def test_a_conversation_moves_as_its_table_says(link: Contact, sign: Sign) -> None:
    outbox = LINKS[link]()
    assert outbox.contact is link
    if sign is Sign.OUTDATED and link is Contact.OPEN:
        return  # a clock is not behind once it was welcomed: the nack is a refusal then
    effects = SIGNS[sign](outbox)
    assert outbox.contact is CONTACT[link].get(sign, link)
    if sign not in CONTACT[link]:
        assert not effects


@pytest.mark.parametrize("link", Contact)
def test_time_and_silence_lead_to_a_new_hello(link: Contact) -> None:
    outbox = LINKS[link]()
    effects = outbox.passed(1.0)
    apart = CONTACT[link].get(Sign.SILENCE, link)
    assert outbox.contact is CONTACT[apart][Sign.TIME] is Contact.GREETING
    assert [type(effect) for effect in effects] == [Connect, Transmit]


@pytest.mark.parametrize("link", [Contact.GREETING, Contact.OPEN])
def test_a_refusal_for_now_parts(link: Contact) -> None:
    outbox = LINKS[link]()
    if link is Contact.OPEN:
        outbox.offer(BATCH, ROWS, 0.0)
    outbox.hear(nack("not_ready", 1 if link is Contact.OPEN else None), 1.0)
    assert outbox.contact is CONTACT[link][Sign.LATER]
    assert outbox.due == 1.0 + PAUSES["not_ready"]


def test_the_table_of_stages_has_every_change_that_happens_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[tuple[Stage, Fate, Stage]] = set()
    meets = _Kept.meets

    def recorded(kept: _Kept, fate: Fate) -> None:
        before = kept.stage
        meets(kept, fate)
        seen.add((before, fate, kept.stage))

    monkeypatch.setattr(_Kept, "meets", recorded)
    _every_stage()
    assert seen == {(before, fate, after) for before, fates in STAGES.items() for fate, after in fates.items()}


def _every_stage() -> None:
    outbox = opened()
    outbox.offer(BATCH, ROWS, 0.0)
    outbox.offer(CLOSING, {}, 0.0, awaited=True)
    for now in (0.0, 0.5):
        outbox.hear(nack("no_space", 1), now)
        outbox.passed(outbox.due)
        outbox.hear(welcome(int(now > 0)), 1.0)  # an earlier copy was stored after all
    outbox.hear(ack(2), 1.0)
    outbox.lost(1.0)
    outbox.passed(1.0)
    outbox.hear(welcome(2), 1.0)
    outbox.hear(done(2), 1.0)
    outbox.hear(done(2), 1.0)
    outbox.hear(ack(2), 1.0)
    for _ in range(2):
        outbox.offer(CLOSING, {}, 1.0)
    outbox.hear(nack("bad_header", 3), 1.0)
    outbox.offer(CLOSING, {}, 1.0)
    outbox.hear(nack("not_ready", 3), 1.0)
    outbox.offer(BATCH, ROWS, 1.0)
    outbox.passed(SECONDS + 1.0)


def test_every_state_is_in_its_table_and_is_reached() -> None:
    assert set(CONTACT) == set(Contact) == {after for changes in CONTACT.values() for after in changes.values()}
    assert (
        set(STAGES) == set(Stage) == {after for changes in STAGES.values() for after in changes.values()} | {Stage.OFFERED}
    )
