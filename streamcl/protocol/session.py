"""What a message may do now: sequences, epochs, credit, and the life of tasks as producers see it.

Rules, stated once:
  * A session's state is a function of the log: `apply` takes every record stored, live and in recovery alike.
  * `admit_*` decide and change nothing. They return the records to store, or raise `Refused`; an empty answer is a
    duplicate, to be acknowledged again. Only after the records are stored does `apply` see them.
  * One sequence a producer, from 1, without gaps, over batches, boundaries and revisits, each of which may stand for
    several numbers (`producers`).
  * A task that could not be learned is held, and batches of one may be set aside: their rows stay on disk until they are
    learned (`retry`) or given up (`drop`). While a task is held no new one is opened, unless the terms allow it.
  * One task is open at a time. Its first batch opens it, its boundary closes it. A revisit opens a closed task once
    more, until its boundary or until it is abandoned. A task that was withdrawn stays closed. `TASK_STAGES` has it all.
  * With boundaries by the clock, `due` gives the record that ends the open task, once that is due; it is stored before the
    batch that comes next, or without one. The stream goes on behind it, as with drift.
  * With boundaries by drift, what producers name (the tag) is a stream of tasks: TAG, TAG.2, TAG.3 and so on, a name once
    taken being passed over. Where one ends and the next begins follows from the log, and the trainer is the first to
    know; so nothing here depends on it. The tag is open from its first batch to its boundary, which may say the tag or
    the open task's own name, and closes whichever of its tasks is open by then. Everything else (a revisit, say) takes a
    task's own name. `open_task` is the name as last reported by the trainer, for people to read.
Knows nothing of sockets, files or torch.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from streamcl import columns as tables
from streamcl.columns import Columns, Pinned, Words
from streamcl.config import Config, finds_likelihood, for_labels_only
from streamcl.entries import Closing, Consolidated, Entry, Standing, by_drift
from streamcl.errors import Refused
from streamcl.naming import numbered, stream_name, stream_of
from streamcl.protocol import messages
from streamcl.protocol.frames import MESSAGE_BYTES, NamedArrays
from streamcl.protocol.producers import Producers
from streamcl.protocol.schedule import Schedule
from streamcl.schema import Array, LabelMap, Signature, check_rows, no_integers
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


class TaskStage(Enum):
    """How a task stands, as its producers see it."""

    NEW = "nothing of it is stored, or its name is free again"
    OPEN = "it takes data; its boundary closes it"
    CLOSED = "its boundary is stored; consolidated, or about to be"
    REOPENED = "a revisit that has no data yet"
    FED_AGAIN = "a revisit that takes data; its boundary replaces what the task was"
    HELD = "it could not be learned; its rows are kept"
    WITHDRAWN = "forgotten for good; its name cannot be used again"


TASK_STAGES: Mapping[TaskStage, Mapping[type[Record], TaskStage]] = {  # what is not here is refused, and changes nothing
    TaskStage.NEW: {Batch: TaskStage.OPEN},
    TaskStage.OPEN: {Batch: TaskStage.OPEN, Boundary: TaskStage.CLOSED},
    TaskStage.CLOSED: {Revisit: TaskStage.REOPENED, Forget: TaskStage.WITHDRAWN},
    TaskStage.REOPENED: {Batch: TaskStage.FED_AGAIN, Abandon: TaskStage.CLOSED},
    TaskStage.FED_AGAIN: {Batch: TaskStage.FED_AGAIN, Boundary: TaskStage.CLOSED, Abandon: TaskStage.CLOSED},
    TaskStage.HELD: {Retry: TaskStage.HELD, Drop: TaskStage.HELD},  # until the trainer tells what came of it (`settle`)
    TaskStage.WITHDRAWN: {},
}
REVISITING = frozenset({"factors", "online"})  # modes in which a task may be fed again
TASK_CHARACTERS = 128
KEPT_REMEDY = "`streamcl retry TASK` tries again to learn them, `streamcl drop TASK` gives them up"
CLOSED_ALREADY = "is closed already"  # and neither held nor withdrawn
WITHDRAWN = "was withdrawn (forget); its name cannot be used again"
HEAVIEST = {"float32": 1e30, "float64": 1e290}  # lambda_t that a penalty in these numbers has room for
SPOOL_FACTOR = 2  # closed tasks awaiting consolidation may hold as much disk again as the open one


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration fixes for a session.

    task_bytes: disk budget of the open task. credit: messages a producer may hold unacknowledged. tasks, producers: how
    many names are kept at most. drift: the daemon closes tasks: when their stream changes, at a number of rows, or by the
    clock, which schedule then makes. hold: no new task is opened while one is held. missing, words: whether a table's
    numbers may be missing, and whether it may have columns of words. heaviest: weight of a boundary. only_labels: the
    setting that has no use for real targets.
    """

    likelihood: str = "categorical"
    classes: int | None = 10
    mode: str = "single"
    on_change: bool = False
    drift: bool = False
    hold: bool = True
    missing: bool = True
    words: bool = True
    task_bytes: int = 8 << 30
    credit: int = 16
    heaviest: float = HEAVIEST["float32"]
    message_bytes: int = MESSAGE_BYTES
    tasks: int = 100_000
    producers: int = 100_000
    schedule: Callable[[], Schedule] | None = None
    only_labels: str = ""

    @classmethod
    def of(cls, config: Config) -> Terms:
        """What a configuration fixes."""
        stream = config.stream
        return cls(
            likelihood="auto" if finds_likelihood(config) else config.model.family,
            classes=config.model.outputs,
            mode=config.posterior.mode,
            on_change=stream.boundary == "on-change",
            drift=stream.ends_tasks,
            hold=stream.on_failure == "hold",
            missing=config.input.missing != "refuse",
            words=config.input.categories != "refuse",
            task_bytes=stream.task_bytes,
            credit=stream.credit,
            heaviest=HEAVIEST[config.train.dtype],
            tasks=stream.tasks,
            producers=stream.producers,
            schedule=Schedule.of(stream),
            only_labels=for_labels_only(config),
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
    opened_lsn, of the record that opened the tag; ahead, LSN and bytes on disk of each batch that is not trained on
    yet. columns: of a table, as its first batch pinned them; words: of its targets. held: tasks that could not be
    learned. set_aside: rows of batches that could not be learned, by task. resolving: of both, by task, the LSN of a
    retry or drop on its way. freed: names whose task was undone or dropped, by the LSN that did it. closing_lsn: of the
    newest record whose effect on the tasks is still waited for; settled_lsn: of the last that has taken effect, as have
    all before it. clock: seconds since 1970, asked only where tasks end by it, and what it says is stored.
    """

    terms: Terms
    clock: Callable[[], float] = field(default=time.time, repr=False, compare=False)
    producers: Producers = field(init=False)
    room: Room = field(init=False)
    open_task: str | None = None
    open_tag: str | None = None
    open_batches: int = 0
    revisit_lsn: int | None = None
    closed: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    signature: Signature | None = None
    columns: Pinned | None = None
    labels: LabelMap = field(init=False)
    words: Words = field(default_factory=Words)
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
    schedule: Schedule | None = None
    _closing_lsns: dict[int, str] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.schedule = None if self.terms.schedule is None else self.terms.schedule()
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
        fresh, new_words = self._check_data(x, y, message)
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
            schema=message.schema,
            left_out=message.left_out if self.signature is None else (),
            new_words=new_words,
            at=None if self.schedule is None else self.clock(),
        )
        return (*self._closing_before(task), batch)

    def due(self) -> tuple[Record, ...]:
        """The record by which the clock ends the open task, where that is due."""
        if self.schedule is None or self.open_tag is None or not self.of_stream:
            return ()
        if self.open_batches == 0 or len(self.closed) + 1 >= self.terms.tasks:  # or the next would have no name
            return ()
        why = self.schedule.due(self.clock(), not self.unsettled)
        if why is None:
            return ()
        origin = self.schedule.kind
        return (Boundary(producer=None, epoch=0, seq=0, task=self.open_tag, origin=origin, reason=why),)

    def admit_boundary(self, producer: str, message: messages.Boundary) -> tuple[Record, ...]:
        """The record of a boundary; raises Refused ``bad_header task_mismatch task_closed unknown_task``."""
        self._check_weight(message.weight)
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
        self._check_weight(weight)
        own = self._opened_as(task)
        return (Boundary(producer=None, epoch=0, seq=0, task=own, weight=weight, origin="admin"),)

    def _check_weight(self, weight: float | None) -> None:
        if weight is not None and weight > self.terms.heaviest:
            raise Refused(
                "bad_header",
                f"boundary.weight: expected at most {self.terms.heaviest:g}, for which the penalty's numbers (train.dtype) "
                f"have room, got {weight:g}",
            )

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

    def _check_not_withdrawn(self, task: str) -> None:
        if task in self.forgotten:
            raise Refused("task_closed", f"task {task!r} {WITHDRAWN}")

    def _check_known(self, task: str) -> None:
        self._check_not_withdrawn(task)
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

    def admit_rollback(
        self, task: str, to: int, undone: tuple[str, ...], revisits: tuple[str, ...] = ()
    ) -> tuple[Record, ...]:
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
        return (Rollback(producer=None, epoch=0, seq=0, task=task, to=to, undone=undone, revisits_undone=revisits),)

    def stage(self, task: str) -> TaskStage:
        """How a task stands, by its own name."""
        if self.open_tag is not None and task == self.open_task:
            again = TaskStage.FED_AGAIN if self.open_batches else TaskStage.REOPENED
            return again if self.revisiting else TaskStage.OPEN
        if task in self.held:
            return TaskStage.HELD
        if task in self.forgotten:
            return TaskStage.WITHDRAWN
        return TaskStage.CLOSED if task in self.closed else TaskStage.NEW

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
            self._check_not_withdrawn(task)
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
                f"task: expected at most {longest} characters, since a number is appended to them, got {len(task)}",
            )

    def _closing_before(self, task: str) -> tuple[Record, ...]:
        """With boundaries on change, the record that closes the open task before another one's first batch."""
        if self.open_tag in (None, task):
            return ()
        if self.open_batches == 0:
            return (_abandoned(str(self.open_task)),)
        return (Boundary(producer=None, epoch=0, seq=0, task=str(self.open_task), weight=None, origin="on-change"),)

    def _check_data(self, x: Array, y: Array, message: messages.Batch) -> tuple[tuple[int, ...], tuple[str, ...]]:
        """The labels of y not yet known, and of a target of words those words."""
        check_rows(x, y)
        self._check_columns(x, message)
        words = self._words_of(message.schema)
        if words is None:
            fresh, new_words = self._check_targets(y, message.schema is not None), tuple[str, ...]()
        else:
            fresh, new_words = self._check_words(y, words)
        if self.signature is not None:
            self.signature.check_y(y)
        return fresh, new_words

    def _check_columns(self, x: Array, message: messages.Batch) -> None:
        columns = message.schema
        if columns is None and self.columns is None:
            if self.signature is not None:
                self.signature.check_x(x)
            return
        if columns is not None:
            self.check_schema(columns, rows=True)
            if self.columns is None:
                tables.check_size(columns, message.left_out)
        else:
            assert self.columns is not None
            columns = unnamed(self.columns)
        tables.check_rows(x, columns, missing=self.terms.missing, words=self.terms.words)

    def check_schema(self, columns: Columns, rows: bool = False) -> None:
        """Raise Refused ``bad_header bad_shape bad_array`` where a producer's columns are not the stream's.

        rows: they come with some, whose words they have.
        """
        tables.check(columns, rows)
        if self.columns is not None:
            self.columns.order(columns)
        elif self.signature is not None:
            raise Refused(
                "bad_shape",
                "header.schema: the first batch of this stream had no schema, so its columns have no names to be matched "
                "with; send the rows as plain arrays, in the same order, or begin a new state directory",
            )

    def _words_of(self, columns: Columns | None) -> Sequence[str] | None:
        """The words of a batch's targets, None where they are numbers; raises Refused ``bad_label``."""
        named = None if columns is None else tables.target(columns)
        words = None if named is None else named.categories
        expected = self.columns is not None and self.columns.words
        if self.signature is not None and expected != (words is not None):
            kinds = ("words, with their `categories` in the schema", "numbers")
            raise Refused(
                "bad_label", "batch.y: expected {}, as in the first batch, got {}".format(*kinds[:: 1 if expected else -1])
            )
        if words is not None and self.likelihood not in ("auto", "categorical"):
            raise Refused(
                "bad_label",
                f"batch.y: expected numbers for model.likelihood = {self.likelihood!r}, got words such as "
                f"{next(iter(words), '')!r}; to learn words, set model.likelihood = 'categorical'",
            )
        return words

    def _check_words(self, y: Array, words: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
        fresh = self.words.new(y, words)
        self.words.check_sort(y, words)
        try:
            return self.labels.new_labels(self.words.to_labels(y, words, fresh)), fresh
        except Refused as refused:
            known = ", ".join(repr(word) for word in (*self.words.known, *fresh)[:12])
            raise Refused(refused.code, f"{refused.message} (the target's words: {known})") from None

    @property
    def likelihood(self) -> str:
        """Of the targets; auto as long as that is found in the first batch, and none has come."""
        if self.terms.likelihood != "auto" or self.signature is None:
            return self.terms.likelihood
        return "gaussian" if self.signature.y_real else "categorical"

    def _check_targets(self, y: Array, named: bool) -> tuple[int, ...]:
        """The labels not yet known. named: of a table; its real numbers, if they come first, make the model gaussian."""
        match self.likelihood:
            case "auto" if not (named and y.dtype.kind == "f"):
                return self.labels.new_labels(y)
            case "categorical" if self.terms.only_labels and y.dtype.kind not in "iu":
                raise Refused("bad_label", no_integers(y, self.terms.only_labels))
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
        self._check_not_withdrawn(task)
        if task in self.closed:
            raise Refused("task_closed", f"task {task!r} {CLOSED_ALREADY}")
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
            case Boundary() if record.by_clock and self.of_stream:
                self._end(lsn)
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
            self.columns = None if record.schema is None else Pinned.of(record.schema, record.left_out)
        self.words.add(record.new_words)
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
        if self.schedule is not None and record.of_stream:
            self.schedule.add(record.samples, self.clock() if record.at is None else record.at)
        self.room.take(nbytes)
        if record.boundary:
            self._close(lsn, record.task)

    def _close(self, lsn: int, task: str) -> None:
        self.closed.add(task)
        self._closing_lsns[lsn] = task
        self.open_task = self.open_tag = self.revisit_lsn = None
        self._empty()

    def _end(self, lsn: int) -> None:
        """The clock has ended the open task; its tag stays open."""
        self.closed.add(str(self.open_task))
        self._closing_lsns[lsn] = str(self.open_task)
        self.opened_lsn, self.open_task = lsn, None
        self._empty()

    def _empty(self) -> None:
        """The open task, if there is one, has no rows yet."""
        self.room.task_spool = self.open_batches = 0
        if self.schedule is not None:
            self.schedule.end()

    def spend(self, entry: Entry) -> None:
        """A boundary took effect, in this life or an earlier one: it is paid for."""
        if self.schedule is not None:
            self.schedule.spend(entry)

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
            self._empty()

    def settle(self, standing: Standing) -> None:
        """The tasks' standing by the ledger; names that are no longer in it may be used again."""
        self.closed = {*standing.closed(), *self._closing_lsns.values()}
        self.forgotten.update(standing.forgotten)
        self.held, self.set_aside, self.freed = frozenset(standing.held), standing.set_aside(), dict(standing.freed)

    def take_entry(self, entry: Entry, standing: Standing) -> None:
        """A record took effect: what it changed, which `standing` has already, holds for everything that comes now."""
        self.took_effect(entry.lsn)
        self.spend(entry)
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


def unnamed(pinned: Pinned) -> Columns:
    """The columns of a batch without a schema on a stream that has one: those of the first batch, by position.

    Raises Refused ``bad_array`` where some are of words, whose codes would mean nothing.
    """
    if pinned.has_words or pinned.words:
        raise Refused(
            "bad_array",
            "batch.x: expected a schema, since this stream has words, and codes without their `categories` mean nothing",
        )
    return pinned.columns


def signature_of(batch: Batch) -> Signature:
    """The signature that a stored batch has."""
    specs = {spec.name: spec for spec in batch.arrays}
    x, y = specs["x"], specs["y"]
    return Signature(tuple(x.shape[1:]), x.dtype in ("<i4", "<i8"), tuple(y.shape[1:]), y.dtype[1] == "f")
