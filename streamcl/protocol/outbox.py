"""The producer's half of exactly-once: what was offered, what of it the daemon holds, what has to be sent again.

Rules, stated once:
  * Every message offered gets the next sequence number, or all from that to one that its sender names. It is kept until the
    daemon says that it is durable, a boundary that a verdict is awaited of until that has come. Nothing else is ever
    forgotten but what the daemon refused for good.
  * On every new connection: hello first; the welcome says how far the daemon is; all that is kept is sent again from there.
  * A refused message's number is used again, and so are those of all behind it: they were refused as a gap. What may still
    be on its way, because nothing was heard of it, is never given up.
  * What was said on a connection before the present one is not listened to.

An `Outbox` is told what happens (`offer`, `hear`, `passed`, `lost`) and returns what is to be done about it, in order
(`Effect`). It has no socket, no thread and no clock: `now` is any clock that does not go back, in seconds. The daemon's
half is `session`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from streamcl.errors import StreamclError
from streamcl.protocol import frames
from streamcl.protocol.frames import Array, Buffer
from streamcl.protocol.messages import (
    Ack,
    Batch,
    Boundary,
    Hello,
    Nack,
    Revisit,
    StreamReply,
    Verdict,
    Welcome,
    plain,
)
from streamcl.protocol.patience import Patience

# -- the conversation, and the life of each message in it ----------------------------------------------------------------


class Contact(Enum):
    """How the conversation with the daemon stands."""

    APART = "no connection; one is made when it is time"
    GREETING = "hello is said, the welcome is waited for"
    OPEN = "welcomed; messages go out as they are offered"


class Sign(Enum):
    """What becomes of a conversation."""

    TIME = "it is time to connect"
    WELCOME = "the daemon answers this connection's hello"
    OUTDATED = "a clock-made epoch is behind; the next free one is taken"
    LATER = "the hello, or the first message that is not stored, cannot be taken yet"
    PROGRESS = "acknowledged, decided, or refused for good"
    SILENCE = "nothing is heard although a word is owed"
    LOST = "the connection is gone"


CONTACT: Mapping[Contact, Mapping[Sign, Contact]] = {
    Contact.APART: {Sign.TIME: Contact.GREETING, Sign.LOST: Contact.APART},
    Contact.GREETING: {
        Sign.WELCOME: Contact.OPEN,
        Sign.OUTDATED: Contact.APART,
        Sign.LATER: Contact.APART,
        Sign.SILENCE: Contact.APART,
        Sign.LOST: Contact.APART,
    },
    Contact.OPEN: {
        Sign.PROGRESS: Contact.OPEN,
        Sign.LATER: Contact.APART,
        Sign.SILENCE: Contact.APART,
        Sign.LOST: Contact.APART,
    },
}


class Stage(Enum):
    """How far one message has come."""

    OFFERED = "not sent yet"
    SENT = "sent: it may be stored, lost or on its way"
    PUT_OFF = "the daemon does not have it and has said: not now"
    STORED = "durable; kept only if a verdict is awaited"
    DECIDED = "its verdict is there"
    REFUSED = "never stored; forgotten, and its number used again"


class Fate(Enum):
    """What happens to one message."""

    TRANSMITTED = "sent, or sent again"
    DEFERRED = "a nack that another try may undo"
    DURABLE = "acknowledged, alone or with those before it"
    JUDGED = "done or failed"
    DENIED = "refused for good, or put off until patience ended; or one before it was"


STAGES: Mapping[Stage, Mapping[Fate, Stage]] = {
    Stage.OFFERED: {Fate.TRANSMITTED: Stage.SENT, Fate.DENIED: Stage.REFUSED},
    Stage.SENT: {
        Fate.TRANSMITTED: Stage.SENT,
        Fate.DEFERRED: Stage.PUT_OFF,
        Fate.DURABLE: Stage.STORED,
        Fate.DENIED: Stage.REFUSED,
    },
    Stage.PUT_OFF: {
        Fate.TRANSMITTED: Stage.SENT,
        Fate.DURABLE: Stage.STORED,
        Fate.DENIED: Stage.REFUSED,
    },
    Stage.STORED: {Fate.TRANSMITTED: Stage.STORED, Fate.DURABLE: Stage.STORED, Fate.JUDGED: Stage.DECIDED},
    Stage.DECIDED: {Fate.DURABLE: Stage.DECIDED, Fate.JUDGED: Stage.DECIDED},
    Stage.REFUSED: {},
}

SILENCE_SECONDS = 2.0  # without a word for so long while one is owed, it asks again
PAUSES = {"not_ready": 0.05, "no_credit": 0.05, "no_space": 0.5, "gap": 0.0}  # seconds, before it sends again
NO_ROOM = frozenset({"no_credit", "no_space"})


# -- effects: what is to be done -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connect:
    """Make a new connection; whatever the one before has yet to say is not listened to."""


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send this message on the present connection. seq: its number; None for a hello."""

    seq: int | None
    message: list[Buffer]


@dataclass(frozen=True, slots=True)
class Delayed:
    """Tell whoever wants to know why nothing moves."""

    words: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """A message was refused and is forgotten, with `behind` later ones; without a seq, the conversation itself was."""

    nack: Nack
    forgotten: bool
    behind: int


@dataclass(frozen=True, slots=True)
class Unlearned:
    """A task could not be learned, and nobody waits for its verdict."""

    verdict: Verdict


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Patience has ended; everything is kept, and the next call may go on."""

    words: str


@dataclass(frozen=True, slots=True)
class Diverged:
    """The daemon holds less than it acknowledged, or more than was sent: this producer cannot go on."""

    words: str


Effect = Connect | Transmit | Delayed | Refusal | Unlearned | GaveUp | Diverged


@dataclass(slots=True)
class _Kept:
    """A message that may have to be sent again. first: of the numbers, up to seq, that it stands for. awaited: its verdict
    is."""

    seq: int
    first: int
    is_batch: bool
    message: list[Buffer]
    awaited: bool
    stage: Stage = Stage.OFFERED
    verdict: Verdict | None = None

    def meets(self, fate: Fate) -> None:
        self.stage = STAGES[self.stage][fate]


class Outbox:
    """One producer's messages between `offer` and the daemon's disk.

    What holds it together: the conversation, the sequence kept and the caller's patience move together; whatever is heard,
    or not heard, changes all three.

    epoch: fences older processes of the name. clocked: the epoch is a clock's, so where it is behind another may be taken
    until the first welcome. durable, applied: as the daemon last said. credit: messages that may be unacknowledged.
    """

    def __init__(self, producer: str, epoch: int, *, clocked: bool, seconds: float, now: float) -> None:
        self.producer = producer
        self.epoch = epoch
        self.contact = Contact.APART
        self.durable = self.applied = 0
        self.credit = 1
        self.patience = Patience(seconds, now)
        self._clocked = clocked
        self._met = False  # welcomed at least once: before, the daemon alone knows where the sequence stands
        self._next, self._sent = 1, 0  # the number to come, the highest that ever went out
        self._kept: dict[int, _Kept] = {}
        self._apart_until = self._since = now
        self._told: str | None = None

    # -- what is asked of it -------------------------------------------------------------------------------------

    @property
    def last(self) -> int:
        """The newest sequence number in use."""
        return self._next - 1

    @property
    def unsafe(self) -> int:
        """How many messages are not known to be durable."""
        return sum(seq > self.durable for seq in self._kept)

    @property
    def has_credit(self) -> bool:
        """Whether one more message may be offered now."""
        return self.unsafe < self.credit

    @property
    def due(self) -> float:
        """Until when to listen before `passed` is called; while apart there is nothing to listen to."""
        if self.contact is Contact.APART:
            return self._apart_until
        silence = self._since + min(SILENCE_SECONDS, self.patience.seconds / 4)
        if self.contact is Contact.OPEN and self.patience.refusal is not None:
            return silence  # what was put off and sent again is answered for, patience or not
        return min(silence, max(self.patience.end, self._since))

    def begin(self, seconds: float, now: float) -> None:
        """A call begins: patience anew."""
        self.patience.seconds = seconds
        self.patience.moved(now)
        self._since = now

    def offer(
        self,
        message: Batch | Boundary | Revisit,
        arrays: Mapping[str, Array],
        now: float,
        *,
        awaited: bool = False,
        seq: int | None = None,
    ) -> list[Effect]:
        """Take a message over, under the next number, `last` from now on; awaited: `verdict` will be asked for.

        seq: instead, it stands for all numbers from the next one to this. The message's own `seq` is not looked at. Raises
        StreamclError before the first welcome, and for a number that is taken; Refused ``bad_array`` for a dtype that does
        not travel; then nothing is taken.
        """
        if not self._met:
            raise StreamclError(f"producer {self.producer}: expected a welcome before the first message; connect first")
        number = self._next if seq is None else seq
        if number < self._next:
            raise StreamclError(f"producer {self.producer}: expected a seq of at least {self._next}, got {number}")
        numbered = msgspec.structs.replace(message, seq=number, first=self._next if number > self._next else None)
        kept = _Kept(number, self._next, isinstance(message, Batch), frames.build(plain(numbered), arrays), awaited)
        self._kept[number] = kept
        self._next = number + 1
        self._since = now
        return [self._transmit(kept)] if self.contact is Contact.OPEN else []

    def verdict(self, seq: int) -> Verdict | None:
        """What an awaited boundary came to, once; None as long as that is not known."""
        kept = self._kept.get(seq)
        if kept is None or kept.verdict is None:
            return None
        del self._kept[seq]
        return kept.verdict

    def waive(self, seq: int) -> None:
        """Nobody waits for this verdict any more; should it be a bad one, `Unlearned` says so."""
        if seq in self._kept:
            self._kept[seq].awaited = False
            self._forget_stored()

    # -- what happens to it --------------------------------------------------------------------------------------

    def passed(self, now: float) -> list[Effect]:
        """Nothing was heard until `due`."""
        if self.patience.end <= now:
            return self._give_up(now)
        if self.contact is not Contact.APART:
            self._part(Sign.SILENCE, now)
        return self._greet(now)

    def lost(self, now: float) -> None:
        """The connection is gone."""
        self._part(Sign.LOST, now)

    def hear(self, reply: StreamReply, now: float) -> list[Effect]:
        """The daemon has said something on the present connection."""
        match self.contact, reply:
            case Contact.GREETING, Welcome():
                return self._welcomed(reply, now)
            case Contact.GREETING, Nack(seq=None):
                return self._hello_refused(reply, now)
            case Contact.OPEN, Ack():
                return self._acknowledged(reply, now)
            case Contact.OPEN, Verdict():
                return self._judged(reply, now)
            case Contact.OPEN, Nack():
                return self._refused(reply, now)
        return []

    # -- connecting ----------------------------------------------------------------------------------------------

    def _move(self, sign: Sign) -> None:
        self.contact = CONTACT[self.contact][sign]

    def _part(self, sign: Sign, now: float, pause: float = 0.0) -> None:
        self._move(sign)
        self._apart_until = now + pause

    def _greet(self, now: float) -> list[Effect]:
        self._move(Sign.TIME)
        self._since = now
        hello = Hello(producer=self.producer, epoch=self.epoch)
        return [Connect(), Transmit(None, frames.build(plain(hello)))]

    def _welcomed(self, welcome: Welcome, now: float) -> list[Effect]:
        if not self._met:
            self._met, self._clocked = True, False
            self.durable = self._sent = welcome.durable
            self._next = welcome.durable + 1
        refusal = self.patience.refusal
        if refusal is not None and refusal.seq is None:  # of a hello before this one
            self.patience.refusal = None
        self.patience.heard = True
        if welcome.durable < self.durable:
            return self._diverged(
                f"the daemon had acknowledged {self.durable} messages, it now knows of {welcome.durable}: its state "
                "directory was replaced; start this producer again to go on from there",
                now,
            )
        if welcome.durable > self._sent:
            return self._overtaken(welcome, now)
        self._advance(welcome, now)
        self.patience.told(welcome.working, welcome.waiting, now)
        self._move(Sign.WELCOME)
        self._since = now
        return [*self._reasons(welcome.waiting), *self._transmit_again()]

    def _overtaken(self, said: Ack | Welcome, now: float) -> list[Effect]:
        return self._diverged(
            f"the daemon holds {said.durable} messages of it, {self._sent} were sent here: another process sends under "
            "this name and epoch; give each a name of its own",
            now,
        )

    def _diverged(self, words: str, now: float) -> list[Effect]:
        self._part(Sign.LATER, now)
        return [Diverged(f"producer {self.producer}: {words}")]

    def _hello_refused(self, nack: Nack, now: float) -> list[Effect]:
        if nack.code == "stale_epoch" and self._clocked and nack.epoch is not None:
            self.epoch = nack.epoch + 1
            self._part(Sign.OUTDATED, now)
            return []
        self._part(Sign.LATER, now, PAUSES["not_ready"] if nack.retryable else 0.0)
        if nack.retryable:
            self.patience.refusal = nack
            return []
        return [Refusal(nack, forgotten=False, behind=0)]

    def _reasons(self, words: str | None) -> list[Effect]:
        """Why nothing moves, each reason once."""
        news = words is not None and words != self._told and bool(self._kept or self.credit == 0)
        self._told = words
        return [Delayed(words)] if words is not None and news else []

    def _transmit_again(self) -> list[Effect]:
        return [self._transmit(kept) for kept in self._kept.values() if kept.stage is not Stage.DECIDED]

    def _transmit(self, kept: _Kept) -> Effect:
        kept.meets(Fate.TRANSMITTED)
        self._sent = max(self._sent, kept.seq)
        return Transmit(kept.seq, kept.message)

    # -- what is stored, and what comes of it --------------------------------------------------------------------

    def _acknowledged(self, ack: Ack, now: float) -> list[Effect]:
        if ack.durable < self.durable:
            return []  # overtaken by a newer one
        self.patience.heard = True
        if ack.durable > self._sent:
            return self._overtaken(ack, now)
        self._move(Sign.PROGRESS)
        self._advance(ack, now)
        self._since = now
        return []

    def _advance(self, said: Ack | Welcome, now: float) -> None:
        if said.durable > self.durable:
            self.patience.moved(now)
        self.durable, self.applied, self.credit = said.durable, said.applied, said.credit.messages
        self._forget_stored()

    def _forget_stored(self) -> None:
        for seq in [seq for seq in self._kept if seq <= self.durable]:
            kept = self._kept[seq]
            kept.meets(Fate.DURABLE)
            if not kept.awaited:
                del self._kept[seq]

    def _judged(self, verdict: Verdict, now: float) -> list[Effect]:
        self.patience.heard = True
        self._move(Sign.PROGRESS)
        if verdict.learned:
            self.patience.moved(now)
        self._since = now
        if self.durable < verdict.seq <= self._sent:  # it has overtaken the acknowledgement
            self.durable = verdict.seq
            self._forget_stored()
        kept = self._kept.get(verdict.seq)
        if kept is not None and kept.awaited:
            kept.meets(Fate.JUDGED)
            kept.verdict = verdict
        elif not verdict.learned:
            return [Unlearned(verdict)]
        return []

    # -- what is refused -----------------------------------------------------------------------------------------

    def _first_unsafe(self) -> _Kept | None:
        return next((kept for seq, kept in self._kept.items() if seq > self.durable), None)

    def _refused(self, nack: Nack, now: float) -> list[Effect]:
        """For now: go on from where the daemon says it is, once for a burst of refusals. Or for good."""
        self.patience.heard = True
        kept, first = self._kept.get(nack.seq or 0), self._first_unsafe()
        if nack.code not in PAUSES or (nack.code in NO_ROOM and kept is None):
            return self._denied(nack, now)
        if nack.code in NO_ROOM:
            self.credit, self.patience.no_room = 0, nack.message
        if kept is not None and kept is first:
            kept.meets(Fate.DEFERRED)
        if nack.code == "not_ready" and kept is not None and kept is first:
            self.patience.refusal = nack
        if (nack.seq is None and nack.code != "gap") or (kept is not None and kept is first):
            self._part(Sign.LATER, now, PAUSES[nack.code])
        return []

    def _denied(self, nack: Nack, now: float) -> list[Effect]:
        """A number that was never stored may be used again: forget the message, and everything sent behind it."""
        self._move(Sign.PROGRESS)
        self._since = now
        if nack.seq is not None and nack.seq not in self._kept:
            return []  # the caller was told when it was forgotten, with one before it
        if nack.seq is None:
            return [Refusal(nack, forgotten=False, behind=0)]
        return [self._forget_from(nack.seq, nack)]

    def _forget_from(self, seq: int, nack: Nack) -> Refusal:
        self._kept[seq].awaited = False
        gone = [kept for number, kept in self._kept.items() if number >= max(seq, self.durable + 1)]
        for kept in gone:
            self._kept.pop(kept.seq).meets(Fate.DENIED)
        self._next = gone[0].first if gone else self._next
        self._sent = min(self._sent, self.last)
        self._forget_stored()
        return Refusal(nack, forgotten=bool(gone), behind=max(len(gone) - 1, 0))

    # -- the end of patience -------------------------------------------------------------------------------------

    def _give_up(self, now: float) -> list[Effect]:
        if self.contact is not Contact.OPEN:
            self._part(Sign.LOST, now)
            if not self.patience.heard:
                return [GaveUp(self._nobody_answered())]
        refusal, first = self.patience.refusal, self._first_unsafe()
        if refusal is not None and first is not None and first.stage is Stage.PUT_OFF and not first.is_batch:
            words = f"{refusal.message} (sent again and again for {self.patience.seconds:g} s)"
            nack = Nack(code=refusal.code, message=words, retryable=True, seq=first.seq)
            return [self._forget_from(first.seq, nack)]
        if refusal is not None:
            self.patience.words = refusal.message
        return [GaveUp(f"{self.patience.reason()}; {self._what_is_stored()}")]

    def _nobody_answered(self) -> str:
        refusal = self.patience.refusal
        said = "" if refusal is None else f"; it was last refused: {refusal.code}: {refusal.message}"
        kept = f"; {self._what_is_stored()}" if self.unsafe else ""
        return (
            f"no streamcl daemon answered within {self.patience.seconds:g} s{said}; start one with `streamcl serve`, or "
            f"check the endpoint{kept}"
        )

    def _what_is_stored(self) -> str:
        if self.unsafe == 0:
            return "everything sent is stored"
        return f"{self.unsafe} messages from seq {self.durable + 1} on are not known to be stored; they are kept here"
