"""What changed a task's standing for good: the ledger's entries, and what holds after all of them.

Guarantees: an entry that decodes is of a kind that this version knows, with fields of the right types; any other is an
`UnknownFormat`. Entries are frozen; `Standing` holds replaced copies of them. No files: `storage.ledger` keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from streamcl.errors import UnknownFormat

MOST_FREED = 200  # names, which a `welcome` holds
BY_ITSELF = {  # what ends a stream's tasks, as an entry's `origin` has it and as people read it
    "drift": "drift",
    "rows": "the number of its rows",
    "time": "its age",
    "budget": "the budget of boundaries",
    "score": "a fall of its score",
}

Places = tuple[tuple[int, int], ...]  # of batches: LSN and rows of each


class Mark(msgspec.Struct, frozen=True):
    """Where in the sequence of all calls something was asked, and by whom.

    lsn: the position, from which everything random about it is drawn. producer: whom to tell of it, None for an operator
    or the daemon itself; seq: of its message.
    """

    lsn: int
    producer: str | None = None
    seq: int = 0


class _Entry(msgspec.Struct, frozen=True, kw_only=True, tag_field="kind", omit_defaults=True):
    """What every entry carries. lsn: of the record. seconds: that it took. closed_at: when, in seconds since 1970."""

    task: str
    lsn: int
    producer: str | None = None
    seq: int = 0
    seconds: float = 0.0
    closed_at: float = 0.0

    @property
    def kind(self) -> str:
        """Its name in the ledger, in messages and in the chronicle."""
        return str(self.__struct_config__.tag)


class Consolidated(_Entry, frozen=True, tag="boundary"):
    """A task's data has entered the posterior.

    samples: N_t. weight: lambda_t. loss: mean NLL at the optimum, in nats a sample. revisits: how often it was fed again.
    factor: the number of its factor, None where none is kept. potential: of that factor at the optimum. aside: batches that
    could not be learned and are kept. warning: for the operator. origin: what closed it where the daemon did (`BY_ITSELF`),
    reason: in words; lsn is then the batch that showed it, or the record by which the clock did. added: rows were added to
    a task that had been consolidated.
    cost: what this boundary cost the tasks before it, in nats: by their quadratic, or as their outputs show. chance: what
    the task's rows would cost without a look at them, in nats a sample (`core.chance`). None where an older version wrote
    it. recurs: the earlier task whose rows its own look like, which is its own name where it was learned as a revisit;
    likeness: how much, in words.
    inputs: whether the mean and covariance of its inputs are kept, so that its rises are seen in outputs.
    scores: what rises are of, where that is not the loss, a row: at the optimum, and for guessing. Of an exact learner of
    classes, or of zeros and ones, half the squared error of its scores; of real targets whose noise is learned, the loss
    with that noise, also for guessing.
    """

    samples: int = 0
    weight: float = 0.0
    loss: float = 0.0
    revisits: int = 0
    factor: int | None = None
    potential: float | None = None
    aside: Places = ()
    warning: str | None = None
    origin: str | None = None
    reason: str | None = None
    added: bool = False
    cost: float | None = None
    chance: float | None = None
    recurs: str | None = None
    likeness: str | None = None
    scores: tuple[float, float] | None = None
    inputs: bool = False

    @property
    def rows_aside(self) -> int:
        """How many of its rows were set aside."""
        return sum(rows for _, rows in self.aside)


class Revisited(Consolidated, frozen=True, tag="revisit"):
    """A consolidated task was fed again, and its part of the posterior replaced."""


class Held(_Entry, frozen=True, tag="held"):
    """A boundary at which nothing could be learned: its records, first_lsn to below end_lsn, are kept.

    samples: their rows. weight: as the boundary asked, None for the configured one. damping: of a revisit. origin, reason:
    as of `Consolidated`.
    """

    samples: int
    first_lsn: int
    end_lsn: int
    weight: float | None = None
    damping: float | None = None
    origin: str | None = None
    reason: str | None = None


class Confirmed(_Entry, frozen=True, tag="confirm"):
    """A boundary of a stream whose last task drift had closed by then, with that task's figures."""

    samples: int = 0
    weight: float = 0.0
    loss: float = 0.0
    origin: str | None = None


class Abandoned(_Entry, frozen=True, tag="abandon"):
    """An open revisit was given up."""


class Forgotten(_Entry, frozen=True, tag="forget"):
    """A task was withdrawn for good."""


class Dropped(_Entry, frozen=True, tag="drop"):
    """What was kept of a task was given up."""


class StillAside(_Entry, frozen=True, tag="still-aside"):
    """Batches that were set aside could not be learned this time either. samples: their rows."""

    samples: int = 0


class NothingKept(_Entry, frozen=True, tag="nothing"):
    """A retry of a task of which nothing is kept."""


class RolledBack(_Entry, frozen=True, tag="rollback"):
    """Everything since a version is undone. to: the version, a number of entries. undone: tasks that are unknown again.
    revisits_undone: those that are as they were before they were fed again."""

    to: int
    undone: tuple[str, ...] = ()
    revisits_undone: tuple[str, ...] = ()


class RollbackFailed(_Entry, frozen=True, tag="rollback-failed"):
    """A version could not be used; nothing was undone. reason: why."""

    to: int
    reason: str
    undone: tuple[str, ...] = ()


Entry = (
    Consolidated
    | Revisited
    | Held
    | Confirmed
    | Abandoned
    | Forgotten
    | Dropped
    | StillAside
    | NothingKept
    | RolledBack
    | RollbackFailed
)
Closing = Consolidated | Held  # a boundary, learned or not


def encode(entry: Entry) -> bytes:
    """An entry as msgpack."""
    return _encoder.encode(entry)


def decode(packed: bytes | memoryview) -> Entry:
    """The entry of `encode`; raises UnknownFormat for one that this version does not know."""
    try:
        entry: Entry = _decoder.decode(packed)
    except msgspec.MsgspecError as error:
        raise UnknownFormat(
            f"ledger entry: {error}; it was written by another version of streamcl: start that one, or upgrade"
        ) from None
    return entry


def to_plain(entry: Entry) -> dict[str, Any]:
    """As plain containers, for a message."""
    plain: dict[str, Any] = msgspec.to_builtins(entry)
    return plain


def from_plain(plain: Mapping[str, Any]) -> Entry:
    """What `to_plain` gave; raises msgspec.ValidationError."""
    entry: Entry = msgspec.convert(plain, Entry)
    return entry


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Entry)


@dataclass(slots=True)
class Standing:
    """What holds after all entries of a ledger.

    tasks: the newest entry of each consolidated task, in the order they were first learned; its ``aside`` is what is still
    kept. forgotten: withdrawn tasks. held: by task, the entry of a boundary at which nothing could be learned. freed: the
    newest names whose task was undone or dropped, so that its data may come again: by the LSN of what did it. risen: what
    the tasks have lost together since each was learned, by the boundaries' costs, in nats; uncounted: whether the cost of
    some boundary is not known. weight: of all tasks.
    """

    tasks: dict[str, Consolidated] = field(default_factory=dict)
    forgotten: set[str] = field(default_factory=set)
    held: dict[str, Held] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)
    risen: float = 0.0
    weight: float = 0.0
    uncounted: bool = False

    def take(self, entry: Entry, earlier: Callable[[int], Standing]) -> None:
        """One more entry. earlier: what stood after so many entries, for a rollback."""
        task = entry.task
        match entry:
            case Consolidated():
                self._count(entry)
                self.tasks[task] = entry
                self.held.pop(task, None)
            case Confirmed() if task in self.tasks:  # who asked for a boundary that already stands
                self._replace(task, producer=entry.producer, seq=entry.seq)
            case Held():
                self.held[task] = entry
            case Forgotten():
                self._discount(task)
                self.tasks.pop(task, None)
                self.held.pop(task, None)
                self.forgotten.add(task)
            case Dropped():
                self._drop(task)
                self._free([] if task in self.tasks else [task], entry.lsn)
            case RolledBack():
                self._free(entry.undone, entry.lsn)
                then = earlier(entry.to)
                self.tasks = self._as_kept(then.tasks)
                self.risen, self.weight, self.uncounted = then.risen, then.weight, then.uncounted

    def _count(self, entry: Consolidated) -> None:
        """What a boundary cost the tasks before it. One that was learned again has lost nothing any more."""
        known = self.tasks.get(entry.task)
        if known is not None and known.lsn == entry.lsn:  # said again, with what closed it
            return
        if not entry.added:
            self._discount(entry.task)
        self.weight += entry.weight - (known.weight if entry.added and known is not None else 0.0)
        self.risen += entry.cost or 0.0
        self.uncounted |= entry.cost is None and entry.samples > 0

    def _discount(self, task: str) -> None:
        """A task's part goes: what it has lost itself is not known here, and taken to be what all have, by weight."""
        known = self.tasks.get(task)
        if known is not None and self.weight > 0:
            self.risen *= max(0.0, 1 - known.weight / self.weight)
            self.weight -= known.weight

    def _replace(self, task: str, **fields: Any) -> None:
        self.tasks[task] = msgspec.structs.replace(self.tasks[task], **fields)

    def _free(self, names: Iterable[str], lsn: int) -> None:
        for name in names:
            self.freed.pop(name, None)
            self.freed[name] = lsn
        for name in list(self.freed)[:-MOST_FREED]:
            del self.freed[name]

    def _drop(self, task: str) -> None:
        self.held.pop(task, None)
        if task in self.tasks:
            self._replace(task, aside=())

    def _as_kept(self, tasks: Mapping[str, Consolidated]) -> dict[str, Consolidated]:
        """A version's tasks, which stand again; of what was set aside then, only what is still kept."""
        kept = {lsn for entry in self.tasks.values() for lsn, _ in entry.aside}

        def still(entry: Consolidated) -> Places:
            return tuple(pair for pair in entry.aside if pair[0] in kept)

        return {task: msgspec.structs.replace(entry, aside=still(entry)) for task, entry in tasks.items()}

    def closed(self) -> set[str]:
        """The names that take no data: of every task that is consolidated, held or withdrawn."""
        return {*self.tasks, *self.forgotten, *self.held}

    def set_aside(self) -> dict[str, int]:
        """How many rows are set aside, of each consolidated task of which any are."""
        return {task: entry.rows_aside for task, entry in self.tasks.items() if entry.aside}

    def factors(self) -> set[int]:
        """The numbers of the factors that stand."""
        return {entry.factor for entry in self.tasks.values() if entry.factor is not None}

    def kept(self) -> list[tuple[int, int]]:
        """The records that must stay in the log, from and to below, since their rows were not learned."""
        return sorted(place for places in self.kept_of().values() for place in places)

    def kept_of(self) -> dict[str, list[tuple[int, int]]]:
        """As `kept`, by task."""
        places = {task: [(lsn, lsn + 1) for lsn, _ in entry.aside] for task, entry in self.tasks.items() if entry.aside}
        for task, held in self.held.items():
            places.setdefault(task, []).append((held.first_lsn, held.end_lsn))
        return places


def standing(entries: Sequence[Entry]) -> Standing:
    """What holds after all entries, from the first one on."""
    result = Standing()
    for entry in entries:
        result.take(entry, lambda count: standing(entries[:count]))
    return result


def undone_in_words(undone: Sequence[str], revisits: Sequence[str]) -> str:
    """What a rollback takes back: tasks, and what others were fed again."""
    again = f"the revisit{'s' if len(revisits) > 1 else ''} of {', '.join(revisits)}" if revisits else ""
    return " and ".join(filter(None, (", ".join(undone), again)))


def by_drift(entry: Entry) -> bool:
    """Whether the daemon has set this boundary: `lsn` is the batch that showed a change of the stream, or that made the
    task's rows as many as there are to be, or the record by which the clock ended it."""
    return isinstance(entry, Closing) and entry.origin in BY_ITSELF


def figures(entry: Entry) -> dict[str, Any]:
    """What the sender of a record is told about it; `origin` where it was drift that closed the task before."""
    names = ("task", "kind", "samples", "loss", "seconds", "origin", "recurs", "undone", "revisits_undone", "warning")
    known = {name: getattr(entry, name) for name in names if getattr(entry, name, None) is not None}
    return known | ({"kind": "boundary"} if isinstance(entry, Confirmed) else {})


def closing_figures(entry: Consolidated | Confirmed) -> dict[str, Any]:
    """As `figures`, of a boundary that was learned: also how many rows were set aside."""
    return {**figures(entry), "set_aside": entry.rows_aside if isinstance(entry, Consolidated) else 0}


def no_better(loss: float, chance: float | None) -> str | None:
    """That a task was learned no better than by guessing; None where it was. loss, chance: nats a sample."""
    if chance is None or loss < chance:
        return None
    return (
        f"learned no better than chance: loss {loss:.3g}, guessing {chance:.3g} nats a sample; look at "
        "the task's targets, raise train.epochs, or take a larger network"
    )
