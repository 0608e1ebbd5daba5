"""The messages of protocol version 1 as typed, frozen structs.

Guarantees: a message that exists has fields of the right types and within bounds. Knows nothing of frames,
arrays or the state of a session. Fields unknown to this version are ignored, so that newer clients can talk to
an older daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, get_args

import msgspec

from streamcl.columns import Column, Name
from streamcl.errors import Refused
from streamcl.protocol.frames import legible_seq

CODES = {  # every reason to refuse a message, and what it means
    "bad_header": "the header, or one of its fields, does not follow the protocol",
    "bad_array": "an array's description does not follow the protocol, or its bytes do not fit the description",
    "bad_shape": "the shape of rows or targets differs from the first batch, or does not fit the model",
    "bad_label": "a label for which the model has no output",
    "nonfinite": "the data contain NaN or infinity",
    "too_large": "more bytes or rows than one message may have",
    "gap": "a sequence number before this one is missing",
    "stale_epoch": "a newer process has taken over this producer's name",
    "task_mismatch": "another task is open",
    "task_closed": "the task is already consolidated",
    "unknown_task": "no such task, or it has no data",
    "not_in_factor_mode": "this daemon's mode keeps nothing that could be revisited or withdrawn",
    "no_credit": "too much is waiting: unacknowledged messages, requests, or rows ahead of training",
    "no_space": "the disk is full",
    "unlearnable": "the task could not be learned; its rows are kept",
    "not_allowed": "the key does not permit this",
    "follower": "this is a follower, which answers predictions alone; the message names the daemon that takes the rest",
    "not_ready": "not possible now: something else must happen first",
    "internal": "a defect in the daemon",
}
RETRYABLE = frozenset({"no_credit", "no_space", "not_ready", "gap", "internal"})

ProducerName = Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9._-]{1,128}\Z")]
TaskName = Annotated[str, msgspec.Meta(pattern=r"\A[^\x00-\x1f\x7f]{1,128}\Z")]
Sequence = Annotated[int, msgspec.Meta(ge=1, le=2**62)]
Epoch = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Weight = Annotated[float, msgspec.Meta(ge=0.0, lt=1e300)]
Damping = Annotated[float, msgspec.Meta(gt=0.0, le=1.0)]
Barrier = Annotated[dict[ProducerName, Annotated[int, msgspec.Meta(ge=0)]], msgspec.Meta(max_length=1024)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class Message(msgspec.Struct, frozen=True, kw_only=True, tag_field="type"):
    """What every request shares; `id` is given back in the reply."""

    id: Any = None


class Hello(Message, frozen=True, tag="hello"):
    """A producer introduces itself; `epoch` grows at each of its restarts and fences the older ones.

    schema: of all its batches that have none of their own.
    """

    producer: ProducerName
    epoch: Epoch | None = None
    schema: tuple[Column, ...] | None = None


class Numbered(Message, frozen=True, kw_only=True):
    """What the messages of a producer's sequence share. first: of several numbers, up to `seq`, that it stands for."""

    seq: Sequence
    first: Sequence | None = None

    def __post_init__(self) -> None:
        if self.first is not None and self.first > self.seq:
            raise ValueError(f"first: expected at most seq, {self.seq}, got {self.first}")

    @property
    def begins(self) -> int:
        """The first number that it stands for."""
        return self.seq if self.first is None else self.first


class Batch(Numbered, frozen=True, tag="batch"):
    """Data of one task; `boundary` closes the task after it.

    schema: the columns of x, of a table. left_out: with the first one, columns that its sender has and does not send.
    """

    task: TaskName
    boundary: bool = False
    schema: tuple[Column, ...] | None = None
    left_out: tuple[Name, ...] = ()


class Boundary(Numbered, frozen=True, tag="boundary"):
    """Closes the task; `weight` sets lambda_t, `barrier` waits until those sequence numbers are in."""

    task: TaskName
    weight: Weight | None = None
    barrier: Barrier | None = None


class Revisit(Numbered, frozen=True, tag="revisit"):
    """Reopens a consolidated task."""

    task: TaskName
    damping: Damping | None = None


class Predict(Message, frozen=True, tag="predict"):
    """Asks for predictions; with what the posterior leaves open of the outputs: averaged over so many draws of them
    (`samples`), or in closed form (`uncertainty`). task: whose rows they are (model.scenario task)."""

    samples: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 0
    uncertainty: bool = False
    schema: tuple[Column, ...] | None = None
    task: TaskName | None = None

    def __post_init__(self) -> None:
        if self.samples and self.uncertainty:
            raise ValueError("expected samples or uncertainty, got both: they are two ways to the same; ask for one")


class Schema(Message, frozen=True, tag="schema"):
    """Asks, where predictions are asked for, for the columns that the stream's first batch pinned."""


class Follow(Message, frozen=True, tag="follow"):
    """Asks, where predictions are asked for, for the newest publication: answered at once where that is another than
    `have`, else once there is one, or after `wait` seconds. after: a new one no sooner than in so many seconds."""

    have: Digest | None = None
    wait: Annotated[float, msgspec.Meta(ge=0.0, le=30.0)] = 0.0
    after: Annotated[float, msgspec.Meta(ge=0.0, lt=1e9)] = 0.0


class Part(Message, frozen=True, tag="part"):
    """Asks for some bytes of one of a publication's files: from `offset` on, `most` of them."""

    digest: Digest
    offset: Offset = 0
    most: Annotated[int, msgspec.Meta(ge=1)] = 1 << 20


class Status(Message, frozen=True, tag="status"):
    """What the daemon is doing."""


class Tasks(Message, frozen=True, tag="tasks"):
    """The tasks learned so far, from number `offset` on; a reply holds as many as fit in its header."""

    offset: Offset = 0


class History(Message, frozen=True, tag="history"):
    """Each task's penalty after every boundary, from row `offset` on; a reply holds as many rows as fit in its header."""

    offset: Offset = 0


class Producers(Message, frozen=True, tag="producers"):
    """The producers, those heard most recently first, from number `offset` on; as many as fit in a reply's header."""

    offset: Offset = 0


class Metrics(Message, frozen=True, tag="metrics"):
    """The values of /metrics."""


class AdminBoundary(Message, frozen=True, tag="boundary"):
    """Closes a task after everything durable now; `wait` holds the reply until it is consolidated."""

    task: TaskName
    weight: Weight | None = None
    barrier: Barrier | None = None
    wait: bool = True


class AdminRevisit(Message, frozen=True, tag="revisit"):
    """Reopens a consolidated task."""

    task: TaskName
    damping: Damping | None = None


class Abandon(Message, frozen=True, tag="abandon"):
    """Gives up the open revisit; what was before it holds again."""

    task: TaskName | None = None


class Forget(Message, frozen=True, tag="forget"):
    """Withdraws a task's factor for good; answered when it is done."""

    task: TaskName


class Retry(Message, frozen=True, tag="retry"):
    """Tries again to learn what was kept of a task, held or set aside; answered when it is learned, or fails."""

    task: TaskName


class Drop(Message, frozen=True, tag="drop"):
    """Gives up what was kept of a task because it could not be learned, for good; answered when it is done."""

    task: TaskName


class Quarantine(Message, frozen=True, tag="quarantine"):
    """What could not be learned and is kept, from number `offset` on; as many as fit in a reply's header."""

    offset: Offset = 0


class Rollback(Message, frozen=True, tag="rollback"):
    """Undoes a task's newest boundary, or revisit, and everything learned since; answered when it is done."""

    task: TaskName


class Versions(Message, frozen=True, tag="versions"):
    """The versions that can be returned to, oldest first."""


class Checkpoint(Message, frozen=True, tag="checkpoint"):
    """Writes a checkpoint of everything applied."""


class Pause(Message, frozen=True, tag="pause"):
    """Stops training; data are still taken in and predictions still answered."""


class Resume(Message, frozen=True, tag="resume"):
    """Resumes training."""


class Stop(Message, frozen=True, tag="stop"):
    """Ends the daemon; with `drain`, after everything durable has been applied."""

    drain: bool = True


class Parameters(Message, frozen=True, tag="parameters"):
    """The flat vectors theta, precision and shift; with `model`, also what it takes to use the model elsewhere.

    sums: instead, an exact learner's sums, as a file that others' can be added to.
    """

    model: bool = False
    sums: bool = False


class Credit(msgspec.Struct, frozen=True):
    """What a producer may hold unacknowledged."""

    messages: int
    bytes: int = 0


class Welcome(Message, frozen=True, tag="welcome"):
    """The answer to a hello. working, waiting: whether the daemon is at work; if not, why (one too old to say is)."""

    durable: int
    applied: int
    credit: Credit
    working: bool = True
    waiting: str | None = None


class Ack(Message, frozen=True, tag="ack"):
    """Everything up to `durable` is stored and synced; up to `applied`, trained and in a checkpoint."""

    durable: int
    applied: int
    credit: Credit


class Nack(Message, frozen=True, tag="nack"):
    """A message was refused and has changed nothing. epoch: the current one, beside ``stale_epoch``."""

    code: str
    message: str
    retryable: bool = False
    seq: int | None = None
    epoch: int | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a boundary or revisit came to. learned: it is a `done`, no `failed`. said: all its fields."""

    seq: int
    learned: bool
    said: Mapping[str, Any]


_Reply = Welcome | Ack | Nack
StreamReply = _Reply | Verdict
StreamMessage = Hello | Batch | Boundary | Revisit
PredictMessage = Predict | Schema | Follow | Part
AdminMessage = (
    Status
    | Tasks
    | History
    | Producers
    | Metrics
    | AdminBoundary
    | AdminRevisit
    | Abandon
    | Forget
    | Retry
    | Drop
    | Quarantine
    | Rollback
    | Versions
    | Checkpoint
    | Pause
    | Resume
    | Stop
    | Parameters
)


def decode(header: Mapping[str, Any], kinds: Any) -> Any:
    """The typed message of a header, one of the union `kinds`.

    Raises Refused ``bad_header`` naming the field, with the header's `seq` and `id` where legible.
    """
    try:
        return msgspec.convert(header, _kind(header.get("type"), kinds))
    except (msgspec.ValidationError, RecursionError) as error:
        text = str(error).replace("$", "header")[:500]
        raise Refused("bad_header", text, seq=legible_seq(header), id=header.get("id")) from None


def _kind(name: Any, kinds: Any) -> Any:
    """The message of that type, where there is one: msgspec works a union out anew at every conversion, which takes ten
    times as long as the conversion itself."""
    return _by_type(kinds).get(name, kinds) if isinstance(name, str) else kinds


@cache
def _by_type(kinds: Any) -> dict[str, type[msgspec.Struct]]:
    return {str(kind.__struct_config__.tag): kind for kind in get_args(kinds) or (kinds,)}


def decode_reply(header: Mapping[str, Any]) -> StreamReply | None:
    """What the daemon says to a producer; None for what this version does not know. Raises Refused ``bad_header``."""
    match header["type"]:
        case "welcome" | "ack" | "nack":
            reply: StreamReply = decode(header, _Reply)
            return reply
        case "error":  # another of the daemon's sockets is spoken to
            refusal: Nack = decode({**header, "type": "nack"}, Nack)
            return refusal
        case "done" | "failed":
            return Verdict(header["seq"], header["type"] == "done", header)
    return None


def plain(message: Message) -> dict[str, Any]:
    """A message as the header that says it; what is not given is left out."""
    fields: dict[str, Any] = msgspec.to_builtins(message)
    return {name: value for name, value in fields.items() if value is not None and not (name == "left_out" and not value)}
