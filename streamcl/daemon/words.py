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


class Closing(Word, frozen=True):
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
    disk says, while it is full."""

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
    full: str | None = None


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


class Accuracies(Word, frozen=True):
    """Tasks with their accuracies, and the number of rows they are of, at the parameters behind a record."""

    lsn: int
    time: float
    rows: list[tuple[str, float, int]]


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


FROM_SUPERVISOR = Configuration | Fork | Closing | Begin | Reload | Crashed | Trouble | Stop
TO_SUPERVISOR = Ready | Born | Alive | Fatal | Failed | Reloaded | TurnedAway
TO_TRAINER = Durable | Pause | Resume | WriteCheckpoint | TryModel
FROM_TRAINER = (
    Recovered | Progress | Done | SetAside | Forgiven | Penalties | Accuracies | Noted | Checkpointed | Dropped | ModelTried
)


def _plain(value: Any) -> Any:
    """A number of a library's own kind, as NumPy's float64, is sent as what it is to Python."""
    if isinstance(value, float):
        return float(value)
    raise NotImplementedError(type(value).__name__)


_ENCODER = msgspec.msgpack.Encoder(enc_hook=_plain)
_DECODER: msgspec.msgpack.Decoder[Word] = msgspec.msgpack.Decoder(
    FROM_SUPERVISOR | TO_SUPERVISOR | TO_TRAINER | FROM_TRAINER
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
