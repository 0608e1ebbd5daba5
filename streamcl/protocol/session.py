"""What a message may do now: sequences, epochs, credit, and the life of tasks as producers see it.

Rules, stated once:
  * A session's state is a function of the log: `apply` takes every record stored, live and in recovery alike.
  * `admit_*` decide and change nothing. They return the records to store, or raise `Refused`; an empty answer is a
    duplicate, to be acknowledged again. Only after the records are stored does `apply` see them.
  * One sequence a producer, from 1, without gaps, over batches, boundaries and revisits.
  * One task is open at a time. Its first batch opens it, its boundary closes it. A revisit opens a closed task once
    more, until its boundary or until it is abandoned. A task that was withdrawn stays closed.
Knows nothing of sockets, files or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from streamcl.errors import Refused
from streamcl.protocol import messages
from streamcl.protocol.frames import MESSAGE_BYTES, NamedArrays
from streamcl.protocol.signature import Array, LabelMap, Signature, check_rows
from streamcl.storage.log import RECORD_OVERHEAD
from streamcl.storage.records import Abandon, Batch, Boundary, Forget, Lost, Record, Revisit, array_spec

REVISITING = frozenset({"factors", "online"})  # modes in which a task may be fed again
SPOOL_FACTOR = 2  # closed tasks awaiting consolidation may hold as much disk again as the open one


@dataclass(frozen=True, slots=True)
class Terms:
    """What the configuration fixes for a session.

    task_bytes: disk budget of the open task. credit: messages a producer may hold unacknowledged. tasks, producers: how
    many names are kept at the most.
    """

    likelihood: str = "categorical"
    classes: int = 10
    mode: str = "single"
    on_change: bool = False
    task_bytes: int = 8 << 30
    credit: int = 16
    message_bytes: int = MESSAGE_BYTES
    tasks: int = 100_000
    producers: int = 100_000


@dataclass(slots=True)
class ProducerState:
    """One producer's epoch and how far its sequence has come.

    stored: in the log, perhaps not yet synced. durable: synced. applied: trained and in a checkpoint.
    """

    epoch: int = 0
    stored: int = 0
    durable: int = 0
    applied: int = 0


@dataclass(slots=True)
class StreamSession:
    """The state that every producer's messages are judged by."""

    terms: Terms
    producers: dict[str, ProducerState] = field(default_factory=dict)
    open_task: str | None = None
    open_batches: int = 0
    revisit_lsn: int | None = None
    closed: set[str] = field(default_factory=set)
    forgotten: set[str] = field(default_factory=set)
    signature: Signature | None = None
    labels: LabelMap = field(init=False)
    task_spool: int = 0
    total_spool: int = 0
    largest_batch: int = 0
    stored_batches: int = 0
    applied_batches: int = 0
    full: bool = False

    def __post_init__(self) -> None:
        self.labels = LabelMap(self.terms.classes)

    # -- producers -----------------------------------------------------------------------------------------------

    def hello(self, message: messages.Hello) -> ProducerState:
        """Register a producer.

        Raises Refused ``stale_epoch`` (with the current `epoch`) for a fenced one, ``too_large`` for one too many.
        """
        self._make_room_for(message.producer)
        state = self.producers.setdefault(message.producer, ProducerState())
        self.check_epoch(message.producer, message.epoch or 0)
        state.epoch = message.epoch or 0
        return state

    def _make_room_for(self, producer: str) -> None:
        """With as many producers as are kept, forget one that never stored anything."""
        if producer in self.producers or len(self.producers) < self.terms.producers:
            return
        idle = next((name for name, state in self.producers.items() if state.stored == 0), None)
        if idle is None:
            raise Refused("too_large", f"producer {producer}: {self.terms.producers} are known already (stream.producers)")
        del self.producers[idle]

    def check_epoch(self, producer: str, epoch: int) -> None:
        """Raise Refused ``stale_epoch`` where a newer incarnation of the producer has said hello."""
        current = self.producers[producer].epoch
        if epoch < current:
            raise Refused(
                "stale_epoch",
                f"producer {producer}: expected an epoch of at least {current}, got {epoch}; a newer process has "
                "taken this name over: stop this one, or start it with a larger epoch",
                epoch=current,
            )

    # -- decisions -----------------------------------------------------------------------------------------------

    def is_duplicate(self, producer: str, seq: int) -> bool:
        """Whether the message is stored already."""
        return seq <= self.producers[producer].stored

    def check_sequence(self, producer: str, seq: int, ahead: int = 0) -> None:
        """Raise Refused ``gap`` unless seq is the next one, `ahead` earlier messages being held back."""
        expected = self.producers[producer].stored + ahead + 1
        if seq != expected:
            raise Refused(
                "gap",
                f"producer {producer}: expected seq {expected}, got {seq}; send on from {expected}",
                seq=seq,
                retryable=True,
                expected=expected,
            )

    def admit_batch(self, producer: str, message: messages.Batch, arrays: NamedArrays, nbytes: int) -> tuple[Record, ...]:
        """The records that store a batch, its sequence number having been checked.

        nbytes: what it takes on disk. Raises Refused: ``task_mismatch task_closed bad_shape bad_array bad_label
        nonfinite no_credit``.
        """
        self._check_task_takes_data(message.task)
        x, y = arrays["x"], arrays["y"]
        fresh = self._check_data(x, y)
        self._check_room(nbytes)
        batch = Batch(
            producer=producer,
            epoch=self.producers[producer].epoch,
            seq=message.seq,
            task=message.task,
            samples=len(x),
            arrays=tuple(array_spec(name, array) for name, array in arrays.by_name.items()),
            boundary=message.boundary,
            new_labels=fresh,
        )
        return (*self._closing_before(message.task), batch)

    def admit_boundary(self, producer: str, message: messages.Boundary) -> tuple[Record, ...]:
        """The record of a boundary; raises Refused ``task_mismatch task_closed unknown_task``."""
        self._check_open(message.task)
        epoch = self.producers[producer].epoch
        return (
            Boundary(
                producer=producer,
                epoch=epoch,
                seq=message.seq,
                task=message.task,
                weight=message.weight,
                origin="stream",
            ),
        )

    def admit_admin_boundary(self, task: str, weight: float | None) -> tuple[Record, ...]:
        """The record of an operator's boundary; raises Refused as `admit_boundary`."""
        self._check_open(task)
        return (Boundary(producer=None, epoch=0, seq=0, task=task, weight=weight, origin="admin"),)

    def admit_revisit(self, producer: str | None, seq: int, task: str, damping: float | None) -> tuple[Record, ...]:
        """The record that reopens a task, on the stream or (without a producer) for an operator.

        Raises Refused ``not_in_factor_mode task_closed unknown_task task_mismatch bad_header``.
        """
        self._check_revisitable(task)
        if damping is not None and self.terms.mode != "factors":
            raise Refused("bad_header", f"revisit.damping: expected posterior.mode = 'factors', got {self.terms.mode!r}")
        if self.open_task is not None and (self.open_task == task or not self.terms.on_change):
            raise Refused("task_mismatch", f"task {self.open_task!r} is open; expected its boundary before a revisit")
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
            raise Refused("task_closed", f"task {task!r} was withdrawn (forget); its name is not used again")
        if task not in self.closed:
            raise Refused("unknown_task", f"task {task!r}: expected a consolidated task")

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
                f"forget of {task!r}: expected posterior.mode = 'factors', got {self.terms.mode!r}; only there does a "
                "task's part of the posterior stand by itself",
            )
        self._check_known(task)
        if task == self.open_task:
            raise Refused("task_mismatch", f"a revisit of task {task!r} is open; abandon it first")
        return (Forget(producer=None, epoch=0, seq=0, task=task),)

    @property
    def revisiting(self) -> bool:
        """Whether the open task is a revisit."""
        return self.revisit_lsn is not None

    def barrier_holds(self, barrier: Mapping[str, int] | None) -> bool:
        """Whether every producer of a barrier has its sequence number stored and synced."""
        return all(name in self.producers and self.producers[name].durable >= seq for name, seq in (barrier or {}).items())

    def _check_task_takes_data(self, task: str) -> None:
        if task in self.closed and task != self.open_task:
            raise Refused(
                "task_closed",
                f"task {task!r} is closed; expected data of an open or a new task, or a `revisit` first (factor mode)",
            )
        if self.open_task not in (None, task) and not self.terms.on_change:
            raise Refused(
                "task_mismatch",
                f"expected data of the open task {self.open_task!r}, got {task!r}; close it first",
            )
        if task not in self.closed and task != self.open_task and len(self.closed) >= self.terms.tasks:
            raise Refused("too_large", f"task {task!r}: {self.terms.tasks} tasks are known already (stream.tasks)")

    def _closing_before(self, task: str) -> tuple[Record, ...]:
        """With boundaries on change, the record that closes the open task before another one's first batch."""
        if self.open_task in (None, task):
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
                    raise Refused("bad_label", "batch.y: expected 0 or 1 in every place (likelihood bernoulli)")
        return ()

    def _check_room(self, nbytes: int) -> None:
        if nbytes > self.terms.task_bytes:
            raise Refused(
                "too_large",
                f"a batch of {nbytes} bytes never fits a task of {self.terms.task_bytes} (stream.task_bytes)",
            )
        room = self.room()
        if nbytes > room:
            raise Refused(
                "no_credit",
                f"the open task has {room} of its {self.terms.task_bytes} bytes of disk left (stream.task_bytes), the "
                f"batch takes {nbytes}; close the task, or wait until closed ones are consolidated",
                retryable=True,
            )

    def _check_open(self, task: str) -> None:
        if task == self.open_task:
            if self.open_batches == 0:
                raise Refused("not_ready", f"the revisit of {task!r} has no data yet: send it, or abandon", retryable=True)
            return
        if task in self.closed:
            raise Refused("task_closed", f"task {task!r} is closed already")
        if self.open_task is None:
            raise Refused("unknown_task", f"no task is open; the first batch of {task!r} would open it")
        raise Refused("unknown_task", f"task {task!r} has no data; the open task is {self.open_task!r}")

    # -- what was stored -----------------------------------------------------------------------------------------

    def apply(self, lsn: int, record: Record, nbytes: int) -> None:
        """Take over record `lsn`, stored with `nbytes` on disk; the same call live and in recovery."""
        self._advance(record)
        self.total_spool += nbytes
        match record:
            case Batch():
                self._apply_batch(record, nbytes)
            case Boundary() | Abandon():
                self._close(record.task)
            case Revisit():
                self.open_task, self.revisit_lsn = record.task, lsn
            case Forget():
                self.forgotten.add(record.task)
            case Lost():
                self.open_task = record.task
                if record.task in self.closed:
                    self.revisit_lsn = lsn

    def _advance(self, record: Record) -> None:
        if record.producer is None:
            return
        state = self.producers.setdefault(record.producer, ProducerState())
        state.epoch = max(state.epoch, record.epoch)
        state.stored = max(state.stored, record.seq)

    def _apply_batch(self, record: Batch, nbytes: int) -> None:
        self.stored_batches += 1
        self.largest_batch = max(self.largest_batch, nbytes)
        if self.signature is None:
            self.signature = signature_of(record)
        self.labels.add(record.new_labels)
        self.open_task = record.task
        self.open_batches += 1
        self.task_spool += nbytes
        if record.boundary:
            self._close(record.task)

    def _close(self, task: str) -> None:
        self.closed.add(task)
        self.open_task = self.revisit_lsn = None
        self.task_spool = self.open_batches = 0

    def synced(self) -> None:
        """Everything stored so far has reached the disk."""
        for state in self.producers.values():
            state.durable = state.stored

    def applied(self, sequences: Mapping[str, int], batches: int) -> None:
        """A checkpoint holds everything up to these sequence numbers."""
        for name, seq in sequences.items():
            self.producers.setdefault(name, ProducerState()).applied = seq
        self.applied_batches = batches

    # -- credit --------------------------------------------------------------------------------------------------

    def room(self) -> int:
        """Bytes that batches of the open task may still take on disk."""
        task = self.terms.task_bytes - self.task_spool
        total = SPOOL_FACTOR * self.terms.task_bytes - self.total_spool
        return max(0, min(task, total))

    def credit(self) -> dict[str, int]:
        """What each producer may hold unacknowledged: no messages once another batch might not fit on disk."""
        room = 0 if self.full else self.room()
        return {
            "messages": self.terms.credit if room >= self.largest_batch + RECORD_OVERHEAD else 0,
            "bytes": room,
        }

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
