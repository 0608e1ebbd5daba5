"""The words that the daemon's processes say to one another: supervisor, ingest, trainer and predictor.

Guarantees: what `decode` returns is one of these words, with fields of the right types; anything else is an error. Whoever
hears a word that is not for it says so by `unexpected`: nothing falls through in silence. Both ends are of one
installation, so nothing here is kept for older ones.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec

from streamcl.entries import Entry
from streamcl.errors import StreamclError
from streamcl.storage.quarantine import Failure


class Word(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag=str.lower):
    """What all words share."""


# -- supervisor to a process -------------------------------------------------------------------------------------------


class Configuration(Word, frozen=True):
    """The first word that a process hears: what `config.from_tree` takes."""

    tree: dict[str, Any]


class Fork(Word, frozen=True):
    """To the nursery: bring forth a process of this role; its descriptors come with the word."""

    role: str


class Born(Word, frozen=True):
    """Of the nursery: that process is there."""

    role: str
    pid: int


class Join(Word, frozen=True):
    """To one that shares the trainer's work: where the others are found, and which it is of how many."""

    store: str
    rank: int
    size: int


class Close(Word, frozen=True):
    """To ingest: take nothing more in, the daemon stops."""


class Begin(Word, frozen=True):
    """To ingest: the daemon has started, so what is kept is tried again."""


class Reload(Word, frozen=True):
    """Read policy, token and certificate again."""


class Crashed(Word, frozen=True):
    """To ingest: a process ended with an error; it is being started again."""

    role: str
    reason: str


class Trouble(Word, frozen=True):
    """To ingest: a process dies again and again or, without a reason, lives again."""

    role: str
    reason: str | None


class Stop(Word, frozen=True):
    """To a process: end, with `drain` after everything durable is learned. From ingest: an operator asks for that."""

    drain: bool


# -- the trainer to those that share its work --------------------------------------------------------------------------


class Restore(Word, frozen=True):
    """Begin anew where the checkpoint is, or with nothing learned where there is none."""

    saved: bool


class Apply(Word, frozen=True):
    """Learn the record with this number. wary: how often it has failed at each stage."""

    lsn: int
    wary: dict[str, int]


# -- a process to its supervisor ---------------------------------------------------------------------------------------


class Ready(Word, frozen=True):
    """The process is at work. endpoints: what it has bound, by name, the ports resolved."""

    endpoints: dict[str, str] = {}


class Alive(Word, frozen=True):
    """A sign of progress. Of the trainer: what it does, in words; up to which record its checkpoint has come; and whether
    it has something to learn."""

    activity: str | None = None
    checkpointed: int = -1
    at_work: bool = False


class Fatal(Word, frozen=True):
    """The process ends with an error that it would meet again."""

    reason: str


class Failed(Word, frozen=True):
    """The process ends with an error; another life may do better."""

    reason: str


class Reloaded(Word, frozen=True):
    """Policy, token and certificate are read again; with a problem, the old ones stay."""

    problem: str | None


class TurnedAway(Word, frozen=True):
    """From the predictor, and on to ingest: what was refused, counted by code, and notes for the audit log."""

    codes: dict[str, int]
    notes: list[dict[str, Any]]


class Serving(Word, frozen=True):
    """From the predictor, and on to who speaks for the daemon: how many follow it; and on a follower what is served
    (version, position, rows), of how many parameters, why the newest publication is not, and what is different here."""

    followers: int = 0
    serves: dict[str, int] = {}
    parameters: int = 0
    problem: str | None = None
    warning: str | None = None


class Followed(Word, frozen=True):
    """From the follower, and on to its predictor: the daemon's newest publication (version, position, rows), when it was
    last heard, and why it cannot be followed now."""

    newest: dict[str, int] | None
    heard: float | None
    problem: str | None = None


# -- ingest to the trainer ---------------------------------------------------------------------------------------------


class Durable(Word, frozen=True):
    """The log is synced below this record."""

    lsn: int


class Pause(Word, frozen=True):
    """Stop training at the end of the batch."""


class Resume(Word, frozen=True):
    """Go on training."""


class WriteCheckpoint(Word, frozen=True):
    """Write a checkpoint and bring the number back."""

    number: int


class TryModel(Word, frozen=True):
    """Try the model on the rows that are put down for it."""

    number: int


# -- the trainer to ingest ---------------------------------------------------------------------------------------------


class Recovered(Word, frozen=True):
    """A trainer has started: everything below this record is learned already."""

    next_lsn: int


class Consolidation(msgspec.Struct, frozen=True):
    """How far a boundary has come: its phase, epoch of epochs, the fraction done (0 to 1), seconds left."""

    phase: str
    epoch: int
    epochs: int
    fraction: float
    seconds_left: float | None


class Scores(msgspec.Struct, frozen=True):
    """Prequential scores by name, over everything and over the open task."""

    overall: dict[str, float] = {}
    task: dict[str, float] = {}


class Progress(Word, frozen=True):
    """What the trainer does, and what has come of it. new_samples, step_seconds: since the report before. full: what the
    disk says, while it is full. curvature: how the parameters' precisions are kept, by kind; empty without a model. inputs:
    of the input stage. workers: processes that share the rows."""

    state: str = "recovering"
    task: str | None = None
    next_lsn: int = 0
    samples: int = 0
    new_samples: int = 0
    loss: float | None = None
    scores: Scores = msgspec.field(default_factory=Scores)
    parameters: int = 0
    steps: int = 0
    consolidation: Consolidation | None = None
    step_seconds: list[float] = []
    device: str | None = None
    workers: int = 1
    full: str | None = None
    curvature: dict[str, Any] = {}
    inputs: dict[str, Any] = {}


class Done(Word, frozen=True):
    """A record took effect: its entry in the ledger."""

    entry: Entry
    warning: str | None = None


class SetAside(Word, frozen=True):
    """A record could not be learned: what the quarantine has of it."""

    failure: Failure


class Forgiven(Word, frozen=True):
    """Only the failures of these records still matter."""

    lsns: list[int]


class Penalties(Word, frozen=True):
    """Tasks with their penalties and rises at the parameters behind a record."""

    lsn: int
    time: float
    rows: list[tuple[str, float, float]]


class Moved(Word, frozen=True):
    """What the open task's steps have cost the tasks before it so far, in nats, at the parameters behind a record."""

    lsn: int
    task: str
    nats: float


class Accuracies(Word, frozen=True):
    """Tasks with their accuracies, the number of rows they are of, and the share that the best of all answers that are the
    same for every row has right; at the parameters behind a record. beside: tasks, those too whose rows have not come, with
    accuracy, calibration error and rows."""

    lsn: int
    time: float
    rows: list[tuple[str, float, int, float]]
    beside: list[tuple[str, float, float | None, int]] = []


class Noted(Word, frozen=True):
    """Something that an operator should read."""

    text: str
    task: str | None


class Checkpointed(Word, frozen=True):
    """A checkpoint is on disk. sequences: how far each producer's has come in it. numbers: of those who asked for it."""

    batches: int
    sequences: dict[str, int]
    seconds: float
    time: float
    numbers: list[int]


class Dropped(Word, frozen=True):
    """Records that the checkpoint has absorbed are unlinked."""


class ModelTried(Word, frozen=True):
    """The model was tried. refused: why nothing can be learned with it, or None."""

    number: int
    refused: str | None


FROM_SUPERVISOR = Configuration | Fork | Join | Close | Begin | Reload | Crashed | Trouble | Stop
TO_SUPERVISOR = Ready | Born | Alive | Fatal | Failed | Reloaded | TurnedAway | Serving | Followed
TO_WORKERS = Restore | Apply
TO_TRAINER = Durable | Pause | Resume | WriteCheckpoint | TryModel
FROM_TRAINER = (
    Recovered
    | Progress
    | Done
    | SetAside
    | Forgiven
    | Penalties
    | Moved
    | Accuracies
    | Noted
    | Checkpointed
    | Dropped
    | ModelTried
)


def _plain(value: Any) -> Any:
    """A number of a library's own kind, as NumPy's float64, is sent as what it is to Python."""
    if isinstance(value, float):
        return float(value)
    raise NotImplementedError(type(value).__name__)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_DECODER: msgspec.msgpack.Decoder[Word] = msgspec.msgpack.Decoder(
    FROM_SUPERVISOR | TO_SUPERVISOR | TO_WORKERS | TO_TRAINER | FROM_TRAINER
)


def encode(word: Word) -> bytes:
    """A word as msgpack."""
    return _ENCODER.encode(word)


def decode(packet: bytes) -> Word:
    """The word that `encode` was given; raises StreamclError for anything else."""
    try:
        return _DECODER.decode(packet)
    except msgspec.DecodeError as error:
        raise StreamclError(
            f"expected a word of the daemon's processes, got {packet[:60]!r}: {error}; all of them must be of one "
            "installation: restart the daemon"
        ) from None


def unexpected(word: Word, hearer: str) -> NoReturn:
    """Raise StreamclError: this word is not for who heard it."""
    raise StreamclError(f"the {hearer} expected no {type(word).__name__!r}; that is a defect in the daemon")
