"""What a message may do now: sequences, epochs, credit, and the life of tasks as producers see it.

Rules, stated once:
  * A session's state is a function of the log: `apply` takes every record stored, live and in recovery alike.
  * `admit_*` decide and change nothing. They return the records to store, or raise `Refused`; an empty answer is a
    duplicate, to be acknowledged again. Only after the records are stored does `apply` see them.
  * One sequence a producer, from 1, without gaps, over batches, boundaries and revisits (`producers`).
  * A task that could not be learned is held, and batches of one may be set aside: their rows stay on disk until they are
    learned (`retry`) or given up (`drop`). While a task is held no new one is opened, unless the terms allow it.
  * One task is open at a time. Its first batch opens it, its boundary closes it. A revisit opens a closed task once
    more, until its boundary or until it is abandoned. A task that was withdrawn stays closed. `STAGES` has it all.
  * With boundaries by drift, what producers name (the tag) is a stream of tasks: TAG, TAG.2, TAG.3 and so on, a name once
    taken being passed over. Where one ends and the next begins follows from the log, and the trainer is the first to
    know; so nothing here depends on it. The tag is open from its first batch to its boundary, which may say the tag or
    the open task's own name, and closes whichever of its tasks is open by then. Everything else (a revisit, say) takes a
    task's own name. `open_task` is the name as last reported by the trainer, for people to read.
Knows nothing of sockets, files or torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from streamcl.config import Config
from streamcl.entries import Closing, Consolidated, Entry, Standing, by_drift
from streamcl.errors import Refused
from streamcl.naming import numbered, stream_name, stream_of
from streamcl.protocol import messages
from streamcl.protocol.frames import MESSAGE_BYTES, NamedArrays
from streamcl.protocol.producers import Producers
from streamcl.schema import Array, LabelMap, Signature, check_rows
from streamcl.storage.log import RECORD_OVERHEAD
from streamcl.storage.records import (
    Abandon,
    Batch,
    Boundary,
    Drop,
    Forget,
    Lost,
    Record,
    Retry,
    Revisit,
    Rollback,
    array_spec,
    closes_task,
)


class Stage(Enum):
    """How a task stands, as its producers see it."""

    NEW = "nothing of it is stored, or its name is free again"
    OPEN = "it takes data; its boundary closes it"
    CLOSED = "its boundary is stored; consolidated, or about to be"
    REOPENED = "a revisit that has no data yet"
    FED_AGAIN = "a revisit that takes data; its boundary replaces what the task was"
    HELD = "it could not be learned; its rows are kept"
    WITHDRAWN = "forgotten for good; its name cannot be used again"


STAGES: Mapping[Stage, Mapping[type[Record], Stage]] = {  # what is not here is refused, and changes nothing
    Stage.NEW: {Batch: Stage.OPEN},
    Stage.OPEN: {Batch: Stage.OPEN, Boundary: Stage.CLOSED},
    Stage.CLOSED: {Revisit: Stage.REOPENED, Forget: Stage.WITHDRAWN},
    Stage.REOPENED: {Batch: Stage.FED_AGAIN, Abandon: Stage.CLOSED},
    Stage.FED_AGAIN: {Batch: Stage.FED_AGAIN, Boundary: Stage.CLOSED, Abandon: Stage.CLOSED},
    Stage.HELD: {Retry: Stage.HELD, Drop: Stage.HELD},  # until the trainer tells what came of it (`settle`)
    Stage.WITHDRAWN: {},
}
REVISITING = frozenset({"factors", "online"})  # modes in which a task may be fed again
TASK_CHARACTERS = 128
KEPT_REMEDY = "`streamcl retry TASK` tries again to learn them, `streamcl drop TASK` gives them up"
SPOOL_FACTOR = 2  # closed tasks awaiting consolidation may hold as much disk again as the open one


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration fixes for a session.

    task_bytes: disk budget of the open task. credit: messages a producer may hold unacknowledged. tasks, producers: how
    many names are kept at most. drift: the daemon closes tasks when their stream changes. hold: no new task is opened
    while one is held.
    """

    likelihood: str = "categorical"
    classes: int = 10
    mode: str = "single"
    on_change: bool = False
    drift: bool = False
    hold: bool = True
    task_bytes: int = 8 << 30
    credit: int = 16
    message_bytes: int = MESSAGE_BYTES
    tasks: int = 100_000
    producers: int = 100_000

    @classmethod
    def of(cls, config: Config) -> Terms:
        """What a configuration fixes."""
        stream = config.stream
        return cls(
            likelihood=config.model.likelihood,
            classes=config.model.classes,
            mode=config.posterior.mode,
            on_change=stream.boundary == "on-change",
            drift=stream.boundary == "drift",
            hold=stream.on_failure == "hold",
            task_bytes=stream.task_bytes,
            credit=stream.credit,
            tasks=stream.tasks,
            producers=stream.producers,
        )


@dataclass(slots=True)
class Room:
    """Disk for the batches of tasks, and the credit that follows from it.

    task_bytes: budget of the open task. messages: what a producer may hold unacknowledged while there is room. task_spool,
    total_spool: taken by the open task, by all. largest_batch: that was ever stored. full: the disk itself is.
    """

    task_bytes: int
    messages: int
    task_spool: int = 0
    total_spool: int = 0
    largest_batch: int = 0
    full: bool = False

    def left(self) -> int:
        """Bytes that batches of the open task may still take on disk."""
        task = self.task_bytes - self.task_spool
        total = SPOOL_FACTOR * self.task_bytes - self.total_spool
        return max(0, min(task, total))

    def credit(self) -> dict[str, int]:
        """What each producer may hold unacknowledged: no messages once another batch might not fit on disk."""
        left = 0 if self.full else self.left()
        return {"messages": self.messages if left >= self.largest_batch + RECORD_OVERHEAD else 0, "bytes": left}

    def check(self, nbytes: int) -> None:
        """Raise Refused ``too_large``, ``no_credit`` where a batch of so many bytes does not fit, ever or now."""
        if nbytes > self.task_bytes:
            raise Refused(
                "too_large",
                f"a batch of {nbytes} bytes never fits a task of {self.task_bytes} (stream.task_bytes)",
            )
        left = self.left()
        if nbytes > left:
            raise Refused(
                "no_credit",
                f"the open task has {left} of its {self.task_bytes} bytes of disk left (stream.task_bytes), the "
                f"batch takes {nbytes}; close the task, or wait until closed ones are consolidated",
                retryable=True,
            )

    def take(self, nbytes: int) -> None:
        """A batch of the open task is stored."""
        self.largest_batch = max(self.largest_batch, nbytes)
        self.task_spool += nbytes


@dataclass(slots=True)
class StreamSession:
    """The state that every producer's messages are judged by.

    What holds it together: one task is open at a time, so each decision about a task asks for the open one and for what has
    become of all others; a record stored, or told of by the trainer, changes both at once.

    open_tag: what producers call the open task; its name, but for drift. next_lsn: of the record to come. With drift:
    opened_lsn, of the record that opened the tag; ahead, LSN and bytes on disk of each batch that is not trained on yet.
    held: tasks that could not be learned. set_aside: rows of batches that could not be learned, by task. resolving: of
    both, by task, the LSN of a retry or drop on its way. freed: names whose task was undone or dropped, by the LSN that did
    it. closing_lsn: of the newest record whose effect on the tasks is still waited for; settled_lsn: of the last that has
    taken effect, as have all before it.
    """

    terms: Terms
    producers: Producers = field(init=False)
    room: Room = field(init=False)
    open_task: str | None = None
    open_tag: str | None = None
    open_batches: int = 0
    revisit_lsn: int | None = None
    closed: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    signature: Signature | None = None
    labels: LabelMap = field(init=False)
    stored_batches: int = 0
    applied_batches: int = 0
    next_lsn: int = 0
    opened_lsn: int = 0
    ahead: deque[tuple[int, int]] = field(default_factory=deque)
    held: frozenset[str] = frozenset()
    set_aside: dict[str, int] = field(default_factory=dict)
    freed: dict[str, int] = field(default_factory=dict)
    resolving: dict[str, int] = field(default_factory=dict)
    closing_lsn: int = -1
    settled_lsn: int = -1
    _closing_lsns: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.labels = LabelMap(self.terms.classes)
        self.producers = Producers(self.terms.producers)
        self.room = Room(self.terms.task_bytes, self.terms.credit)

    # -- decisions -----------------------------------------------------------------------------------------------

    def admit_batch(self, producer: str, message: messages.Batch, arrays: NamedArrays, nbytes: int) -> tuple[Record, ...]:
        """The records that store a batch, its sequence number having been checked.

        nbytes: what it takes on disk. Raises Refused: ``task_mismatch task_closed bad_shape bad_array bad_label
        nonfinite no_credit``.
        """
        task = message.task
        self._check_task_takes_data(task)
        x, y = arrays["x"], arrays["y"]
        fresh = self._check_data(x, y)
        self.room.check(nbytes)
        batch = Batch(
            producer=producer,
            epoch=self.producers[producer].epoch,
            seq=message.seq,
            task=task,
            tag=task if self.of_stream else None,
            samples=len(x),
            arrays=tuple(array_spec(name, array) for name, array in arrays.by_name.items()),
            boundary=message.boundary,
            new_labels=fresh,
            outputs=self.labels.places(fresh),
        )
        return (*self._closing_before(task), batch)

    def admit_boundary(self, producer: str, message: messages.Boundary) -> tuple[Record, ...]:
        """The record of a boundary; raises Refused ``task_mismatch task_closed unknown_task``."""
        task = self._opened_as(message.task)
        epoch = self.producers[producer].epoch
        return (
            Boundary(
                producer=producer,
                epoch=epoch,
                seq=message.seq,
                task=task,
                weight=message.weight,
                origin="stream",
            ),
        )

    def admit_admin_boundary(self, task: str, weight: float | None) -> tuple[Record, ...]:
        """The record of an operator's boundary; raises Refused as `admit_boundary`."""
        own = self._opened_as(task)
        return (Boundary(producer=None, epoch=0, seq=0, task=own, weight=weight, origin="admin"),)

    def admit_revisit(self, producer: str | None, seq: int, task: str, damping: float | None) -> tuple[Record, ...]:
        """The record that reopens a task, on the stream or (without a producer) for an operator.

        Raises Refused ``not_in_factor_mode task_closed unknown_task task_mismatch bad_header``.
        """
        self._check_revisitable(task)
        if damping is not None and self.terms.mode != "factors":
            raise Refused("bad_header", f"revisit.damping: expected posterior.mode = 'factors', got {self.terms.mode!r}")
        if self.open_tag is not None and (self.open_tag == task or not self.terms.on_change):
            raise Refused("task_mismatch", f"task {self.open_tag!r} is open; expected its boundary before a revisit")
        epoch = 0 if producer is None else self.producers[producer].epoch
        revisit = Revisit(producer=producer, epoch=epoch, seq=seq, task=task, damping=damping)
        return (*self._closing_before(task), revisit)

    def _check_revisitable(self, task: str) -> None:
        if self.terms.mode not in REVISITING:
            raise Refused(
                "not_in_factor_mode",
                f"task {task!r}: expected posterior.mode = 'factors', got {self.terms.mode!r}, which does not hold the "
                "tasks' separate factors",
            )
        self._check_known(task)

    def _check_known(self, task: str) -> None:
        if task in self.forgotten:
            raise Refused("task_closed", f"task {task!r} was withdrawn (forget); its name cannot be used again")
        if task not in self.closed and self.terms.drift and (self.ahead or self.unsettled):
            raise Refused(
                "not_ready",
                f"task {task!r}: expected a consolidated task; the trainer has not reached all that is stored, which may "
                "contain it: ask again",
                retryable=True,
            )
        if task not in self.closed:
            raise Refused("unknown_task", f"task {task!r}: expected a consolidated task")
        if task in self.held:
            raise Refused("task_closed", f"task {task!r} is held: its rows could not be learned; {KEPT_REMEDY}")

    def admit_abandon(self, task: str | None) -> tuple[Record, ...]:
        """The record that gives up the open revisit; raises Refused ``unknown_task``."""
        if not self.revisiting or task not in (None, self.open_task):
            named = "" if task is None else f" of {task!r}"
            raise Refused("unknown_task", f"expected an open revisit{named}; there is none")
        return (_abandoned(str(self.open_task)),)

    def admit_forget(self, task: str) -> tuple[Record, ...]:
        """The record that withdraws a task.

        Raises Refused ``not_in_factor_mode unknown_task task_closed task_mismatch``.
        """
        if self.terms.mode != "factors":
            raise Refused(
                "not_in_factor_mode",
                f"forget of {task!r}: expected posterior.mode = 'factors', got {self.terms.mode!r}; only then is a "
                "task's part of the posterior kept by itself",
            )
        self._check_known(task)
        if task == self.open_task:
            raise Refused("task_mismatch", f"a revisit of task {task!r} is open; abandon it first")
        return (Forget(producer=None, epoch=0, seq=0, task=task),)

    def admit_retry(self, task: str) -> tuple[Record, ...]:
        """The record that has what was kept of a task learned; raises Refused ``unknown_task not_ready``."""
        self._check_kept(task)
        if self.open_task is not None:
            raise Refused("not_ready", f"task {self.open_task!r} is open; close it first", retryable=True)
        return (Retry(producer=None, epoch=0, seq=0, task=task),)

    def admit_drop(self, task: str) -> tuple[Record, ...]:
        """The record that gives up what was kept of a task; raises Refused ``unknown_task not_ready``."""
        self._check_kept(task)
        return (Drop(producer=None, epoch=0, seq=0, task=task),)

    def _check_kept(self, task: str) -> None:
        if task in self._closing_lsns.values():
            raise Refused("not_ready", f"task {task!r}: its boundary has not taken effect yet; ask again", retryable=True)
        if task not in self.held and task not in self.set_aside:
            kept = sorted({*self.held, *self.set_aside})
            raise Refused(
                "unknown_task",
                f"task {task!r}: expected one that is held or has rows set aside: {', '.join(kept) or 'there is none'}",
            )
        if task in self.resolving:
            raise Refused(
                "not_ready", f"task {task!r}: what was kept of it is being learned, or dropped, now", retryable=True
            )

    def admit_rollback(self, task: str, to: int, undone: tuple[str, ...]) -> tuple[Record, ...]:
        """The record that undoes everything since version `to`; raises Refused ``task_mismatch``."""
        if self.revisiting:
            raise Refused("task_mismatch", f"a revisit of {self.open_task!r} is open; abandon it first")
        kept = sorted({task, *undone} & {*self.held, *self.set_aside})
        if kept:
            raise Refused(
                "task_mismatch",
                f"rows of task {kept[0]!r} are kept that could not be learned, and this would lose them; retry or drop "
                "them first",
            )
        return (Rollback(producer=None, epoch=0, seq=0, task=task, to=to, undone=undone),)

    def stage(self, task: str) -> Stage:
        """How a task stands, by its own name."""
        if self.open_tag is not None and task == self.open_task:
            return Stage.OPEN if not self.revisiting else Stage.FED_AGAIN if self.open_batches else Stage.REOPENED
        if task in self.held:
            return Stage.HELD
        if task in self.forgotten:
            return Stage.WITHDRAWN
        return Stage.CLOSED if task in self.closed else Stage.NEW

    @property
    def unsettled(self) -> bool:
        """Whether a boundary, or whatever else changes the tasks, is stored and has not taken effect yet."""
        return self.closing_lsn > self.settled_lsn

    @property
    def revisiting(self) -> bool:
        """Whether the open task is a revisit."""
        return self.revisit_lsn is not None

    @property
    def of_stream(self) -> bool:
        """Whether data goes to a stream of tasks, which drift tells apart."""
        return self.terms.drift and not self.revisiting

    def is_open(self, task: str) -> bool:
        """Whether this is the open task, by its own name or its producers'."""
        return self.open_tag is not None and task in (self.open_task, self.open_tag)

    def _opened_as(self, task: str) -> str:
        """What the open task is called in the log; raises Refused unless `task` means it."""
        said = str(self.open_tag) if self.is_open(task) else task
        self._check_open(said)
        return said

    def _check_task_takes_data(self, task: str) -> None:
        if task in self.held and task != self.open_tag and not self.terms.drift:
            raise Refused("task_closed", f"task {task!r} is held: its rows could not be learned; {KEPT_REMEDY}")
        if task in self.closed and task != self.open_tag and not self.terms.drift:
            raise Refused(
                "task_closed",
                f"task {task!r} is closed; expected data of an open or a new task, or a `revisit` first (factor mode)",
            )
        if self.open_tag not in (None, task) and not self.terms.on_change:
            raise Refused(
                "task_mismatch",
                f"expected data of the open task {self.open_tag!r}, got {task!r}; close it first",
            )
        opens = task != self.open_tag or not (self.open_batches or self.revisiting)
        if opens and self.held and self.terms.hold:
            still = "" if self.open_task is None else f"close task {self.open_task!r} (`streamcl boundary`), then "
            raise Refused(
                "task_mismatch",
                f"task {task!r}: no new task is opened while task {min(self.held)!r} is held, which could not be learned; "
                f"{still}{KEPT_REMEDY}, or let new tasks go on (stream.on_failure = 'set-aside')",
            )
        if task != self.open_tag and len(self.closed) >= self.terms.tasks:
            raise Refused("too_large", f"task {task!r}: {self.terms.tasks} tasks are known already (stream.tasks)")
        longest = TASK_CHARACTERS - len(numbered("", self.terms.tasks))
        if self.of_stream and len(task) > longest:
            raise Refused(
                "bad_header",
                f"task: expected at most {longest} characters, since drift appends a number to them, got {len(task)}",
            )

    def _closing_before(self, task: str) -> tuple[Record, ...]:
        """With boundaries on change, the record that closes the open task before another one's first batch."""
        if self.open_tag in (None, task):
            return ()
        if self.open_batches == 0:
            return (_abandoned(str(self.open_task)),)
        return (Boundary(producer=None, epoch=0, seq=0, task=str(self.open_task), weight=None, origin="on-change"),)

    def _check_data(self, x: Array, y: Array) -> tuple[int, ...]:
        check_rows(x, y)
        if self.signature is not None:
            self.signature.check_x(x)
        fresh = self._check_targets(y)
        if self.signature is not None:
            self.signature.check_y(y)
        return fresh

    def _check_targets(self, y: Array) -> tuple[int, ...]:
        match self.terms.likelihood:
            case "categorical":
                return self.labels.new_labels(y)
            case "bernoulli":
                if not ((y == 0) | (y == 1)).all():
                    raise Refused("bad_label", "batch.y: expected only 0 and 1 (likelihood bernoulli)")
        return ()

    def _check_open(self, task: str) -> None:
        if task == self.open_tag:
            if self.revisiting and self.open_batches == 0:
                raise Refused("not_ready", f"the revisit of {task!r} has no data yet: send it, or abandon", retryable=True)
            return
        if task in self.held:
            raise Refused("task_closed", f"task {task!r} is held: its rows could not be learned; {KEPT_REMEDY}")
        if task in self.closed:
            raise Refused("task_closed", f"task {task!r} is closed already")
        if self.open_tag is None:
            raise Refused("unknown_task", f"no task is open; the first batch of {task!r} would open it")
        raise Refused("unknown_task", f"task {task!r} has no data; the open task is {self.open_tag!r}")

    # -- what was stored -----------------------------------------------------------------------------------------

    def apply(self, lsn: int, record: Record, nbytes: int) -> None:
        """Take over record `lsn`, stored with `nbytes` on disk; the same call live and in recovery."""
        if record.producer is not None:
            self.producers.advance(record.producer, record.epoch, record.seq)
        self.next_lsn = lsn + 1
        self.room.total_spool += nbytes
        if closes_task(record) or isinstance(record, Forget | Drop | Rollback):
            self.closing_lsn = lsn
        match record:
            case Batch():
                self._apply_batch(lsn, record, nbytes)
            case Boundary() | Abandon():
                self._close(lsn, record.task)
            case Revisit():
                self.open_task = self.open_tag = record.task
                self.revisit_lsn = lsn
            case Forget():
                self.forgotten.add(record.task)
            case Retry() | Drop():
                self.resolving[record.task] = lsn
            case Lost():
                self.open_task = record.task
                named = record.tag or (stream_of(record.task) if self.terms.drift else record.task)
                self.open_tag = self.open_tag or named
                if record.task in self.closed:
                    self.revisit_lsn = lsn

    def _apply_batch(self, lsn: int, record: Batch, nbytes: int) -> None:
        self.stored_batches += 1
        if self.signature is None:
            self.signature = signature_of(record)
        self.labels.take(record.new_labels, record.outputs)
        if self.open_tag is None:
            self.opened_lsn = lsn
        self.open_tag = record.tag or record.task
        if not record.of_stream:
            self.open_task = record.task
        elif self.open_task is None:
            self.open_task = stream_name(record.task, self.closed.__contains__)
        self.open_batches += 1
        if self.terms.drift:
            self.ahead.append((lsn, nbytes))
        self.room.take(nbytes)
        if record.boundary:
            self._close(lsn, record.task)

    def _close(self, lsn: int, task: str) -> None:
        self.closed.add(task)
        self._closing_lsns[lsn] = task
        self.open_task = self.open_tag = self.revisit_lsn = None
        self.room.task_spool = self.open_batches = 0

    def consolidated(self, task: str, lsn: int, by_drift: bool) -> None:
        """The trainer has closed a task of this name at record `lsn`, because of drift or of a boundary."""
        self.closed.add(task)
        if self.open_tag is None or not self.of_stream:
            return
        since = [nbytes for batch, nbytes in self.ahead if batch > lsn]
        if by_drift and lsn >= self.opened_lsn:
            self.room.task_spool, self.open_batches, self.open_task = sum(since), len(since), None
        if self.open_batches and (self.open_task is None or self.open_task in self.closed):
            self.open_task = stream_name(self.open_tag, self.closed.__contains__)

    def drifted(self, tag: str | None) -> None:
        """As a checkpoint has it: drift has closed a task of this tag, which is open, and no row of it has come since."""
        if self.terms.drift:
            self.open_tag, self.opened_lsn, self.open_task, self.revisit_lsn = tag, self.next_lsn, None, None
            self.room.task_spool = self.open_batches = 0

    def settle(self, standing: Standing) -> None:
        """The tasks' standing by the ledger; names that are no longer in it may be used again."""
        self.closed = {*standing.closed(), *self._closing_lsns.values()}
        self.forgotten.update(standing.forgotten)
        self.held, self.set_aside, self.freed = frozenset(standing.held), standing.set_aside(), dict(standing.freed)

    def take_entry(self, entry: Entry, standing: Standing) -> None:
        """A record took effect: what it changed, which `standing` has already, holds for everything that comes now."""
        self.took_effect(entry.lsn)
        if isinstance(entry, Closing):
            self.consolidated(entry.task, entry.lsn, by_drift=by_drift(entry))
        if not isinstance(entry, Consolidated) or self.held or self.set_aside or entry.aside:
            self.settle(standing)
        if isinstance(entry, Consolidated):  # by the names that are taken now
            self.consolidated(entry.task, entry.lsn, by_drift=by_drift(entry))

    def took_effect(self, lsn: int) -> None:
        """A record has, and all before it: nobody need wait for them any more."""
        self.settled_lsn = max(self.settled_lsn, lsn)
        self.resolving = {task: number for task, number in self.resolving.items() if number > lsn}
        self._closing_lsns = {number: task for number, task in self._closing_lsns.items() if number > lsn}

    def applied(self, sequences: Mapping[str, int], batches: int) -> None:
        """A checkpoint holds everything up to these sequence numbers."""
        self.producers.applied(sequences)
        self.applied_batches = batches

    def trained(self, next_lsn: int) -> None:
        """Everything below this record has been trained on, and what that closed has been told."""
        while self.ahead and self.ahead[0][0] < next_lsn:
            self.ahead.popleft()

    # -- credit --------------------------------------------------------------------------------------------------

    def limits(self) -> dict[str, int]:
        """The bounds a producer must keep to, for its welcome."""
        return {
            "message_bytes": self.terms.message_bytes,
            "header_bytes": 65536,
            "arrays": 8,
            "task_bytes": self.terms.task_bytes,
        }


def _abandoned(task: str) -> Abandon:
    return Abandon(producer=None, epoch=0, seq=0, task=task)


def signature_of(batch: Batch) -> Signature:
    """The signature that a stored batch has."""
    specs = {spec.name: spec for spec in batch.arrays}
    x, y = specs["x"], specs["y"]
    return Signature(tuple(x.shape[1:]), x.dtype in ("<i4", "<i8"), tuple(y.shape[1:]))
