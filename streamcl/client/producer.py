"""A producer: a socket, a clock and a thread around the outbox, which decides what is sent, kept and sent again."""

from __future__ import annotations

import atexit
import contextlib
import sys
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar

import zmq

from streamcl import columns, dataframes
from streamcl.arrays import as_array
from streamcl.client.arrays import Gathered, is_block
from streamcl.client.connection import Connection
from streamcl.columns import Columns, Kind
from streamcl.errors import Refused, StreamclError, Unreachable
from streamcl.handshake import KeysGiven, ServerGiven, client_keys
from streamcl.protocol import frames
from streamcl.protocol.frames import Array
from streamcl.protocol.messages import Batch, Boundary, Revisit, Verdict, Welcome, decode_reply
from streamcl.protocol.outbox import (
    Connect,
    Contact,
    Delayed,
    Diverged,
    Effect,
    GaveUp,
    Outbox,
    Refusal,
    Transmit,
    Unlearned,
)

STREAM = "tcp://127.0.0.1:5757"
GATHER_BYTES = 128 * 1024  # small blocks are joined into messages of this size: larger ones gain little
LINGER_SECONDS = 0.05
EXIT_SECONDS = 5.0  # that the end of a program waits, while nothing moves, for a producer that was not closed

T = TypeVar("T")


class Producer:
    """Streams batches of tasks to a daemon, exactly once.

    endpoint: the daemon's stream endpoint. producer: this stream's name, 1-128 of ``[A-Za-z0-9._-]``; the daemon
    remembers how far a name has come, so a restarted producer goes on from `durable`. epoch: grows at each restart
    and fences older processes of the same name; the clock in milliseconds unless given. timeout: seconds for which any
    call waits while nothing moves: nothing more is stored, and the daemon is not at work on what it has. Then Unreachable
    is raised with the daemon's reason (training is paused, a disk or budget is full, a barrier is not met, ...), and what
    was sent is kept; or Refused where it refused a boundary or revisit all that time, which then is forgotten.
    gather_bytes: smaller blocks of one task are joined until they come to so many bytes, and travel, are stored, learned
    from and refused as one message; 0 sends each by itself, so that the same calls always make the same messages. linger:
    seconds after which gathered blocks are sent anyway. on_waiting: called with the daemon's reason while a call waits and
    nothing moves, each reason once. keys: where the daemon asks for keys, this client's secret file of `streamcl keygen`;
    server_key: the daemon's public key or its file, unless the secret file has it.

    What holds it together: one socket and one outbox, which every call drives until what it waits for has come.

    >>> with Producer(producer="camera-1") as producer:     # doctest: +SKIP
    ...     producer.send(x, y, task="monday")
    ...     producer.boundary("monday")
    """

    def __init__(
        self,
        endpoint: str = STREAM,
        producer: str = "producer",
        *,
        epoch: int | None = None,
        timeout: float = 60.0,
        gather_bytes: int = GATHER_BYTES,
        linger: float = LINGER_SECONDS,
        on_waiting: Callable[[str], None] | None = None,
        keys: KeysGiven = None,
        server_key: ServerGiven = None,
    ) -> None:
        self.on_waiting = on_waiting
        self.producer = producer
        self.gather_bytes = gather_bytes
        self.linger = linger
        self.timeout = timeout
        self.welcome: dict[str, Any] = {}
        self.done: dict[str, Any] = {}  # what became of the task of the last boundary that was waited for
        self._kinds: dict[str, Kind] = {}  # of the columns of tables, by the first that was sent
        self.left_out: Sequence[str] = ()  # columns of a table that are not sent, to be said with the stream's first batch
        number = epoch if epoch is not None else time.time_ns() // 1_000_000
        self._outbox = Outbox(producer, number, clocked=epoch is None, seconds=timeout, now=time.monotonic())
        self._gathered: Gathered | None = None
        self._lock = threading.RLock()  # between the caller's thread and the one that sends what has lingered
        self._closed = threading.Event()
        self._lingering: threading.Thread | None = None
        self._connection = Connection(endpoint, client_keys(keys, server_key), timeout)
        try:
            self._until(lambda: self._outbox.contact is Contact.OPEN)
        except BaseException:
            self._connection.close()
            raise
        _OPEN.add(self)

    @property
    def durable(self) -> int:
        """The newest sequence number that the daemon is known to hold safely."""
        return self._outbox.durable

    @property
    def unsafe(self) -> int:
        """How many messages that were sent are not known to be durable."""
        return self._outbox.unsafe

    @property
    def applied(self) -> int:
        """The newest sequence number that is known to be trained and in a checkpoint."""
        return self._outbox.applied

    @property
    def credit(self) -> int:
        """How many messages may be unacknowledged."""
        return self._outbox.credit

    def send(
        self,
        x: Any,
        y: Any,
        task: str,
        *,
        boundary: bool = False,
        schema: Sequence[Any] | None = None,
        seq: int | None = None,
        wait: bool = False,
    ) -> int:
        """Send one batch, waiting while there is no credit; returns the sequence number it travels under.

        x: [n, ...], y: [n] or [n, ...]. Or x is a table of pandas, Polars or Arrow, whose columns are matched by name,
        and y an array, a column or the name of one of the table's: words are taken for what they are. schema: of an
        array's columns, as mappings of name, kind and categories (`docs/protocol.md`). seq: the batch stands for all
        sequence numbers up to this one that no message before it has: so the position in another log that it ends at is
        kept with it, and `durable` tells where to go on. wait: with boundary, until the task is consolidated, which `done`
        then tells of, raising as `boundary` does. The batch may still be on its way, or be waiting to be
        joined by others: `flush` waits until it is durable. The arrays must not be changed before that. Raises Refused,
        Unreachable; a refusal may be of an earlier batch, and then nothing sent since is stored. Where Unreachable is
        raised these rows are not taken, and may be given again; all before them are kept.
        """
        x, y, named = self._as_batch(x, y, schema)
        x, y = frames.portable("x", as_array(x)), frames.portable("y", as_array(y))
        with self._call():
            sound = is_block(x, y)
            if self._gathered is not None and not (sound and self._gathered.takes(x, y, task, named, seq)):
                self._send_gathered()
            gathered = self._gathered.nbytes if self._gathered is not None else 0
            now = boundary or not sound or gathered + x.nbytes + y.nbytes >= self.gather_bytes
            if now:
                self._wait_for_credit()
            if not sound:  # for the daemon to refuse, by itself
                return self._post(self._batch(task, boundary, named), {"x": x, "y": y}, seq=seq)
            if self._gathered is None:
                self._gathered = Gathered(task, time.monotonic(), named)
            self._gathered.add(x, y)
            self._gathered.seq = seq
            if now:
                number = self._send_gathered(boundary, awaited=boundary and wait)
                if boundary and wait:
                    self.done = self._wait_for_verdict(number)
                return number
            self._watch_linger()
            return self._outbox.last + 1 if seq is None else seq

    def boundary(
        self,
        task: str,
        weight: float | None = None,
        barrier: Mapping[str, int] | None = None,
        wait: bool = True,
        seq: int | None = None,
    ) -> dict[str, Any]:
        """Close a task; with `wait`, until it is consolidated, and return the `done` (samples, loss, seconds, set_aside).

        weight: lambda_t, instead of scale * N_t. barrier: sequence numbers of other producers to wait for. seq: as of
        `send`. set_aside: rows that could not be learned and are kept, 0 as a rule. It waits as long as the daemon is
        at work. Raises Unreachable (what is stored by then is consolidated all the same), and Refused, ``unlearnable``
        where nothing could be learned: the task is held, with all its rows. Without `wait`, or after Unreachable, the next
        call that hears of it raises that.
        """
        weight = None if weight is None else float(weight)
        message = Boundary(seq=0, task=task, weight=weight, barrier=dict(barrier) if barrier else None)
        with self._call():
            self._send_gathered()
            number = self._post(message, {}, awaited=wait, seq=seq)
            return self._wait_for_verdict(number) if wait else {"seq": number, "task": task}

    def revisit(self, task: str, damping: float | None = None) -> int:
        """Reopen a consolidated task, whose data is sent again after this; returns the sequence number."""
        message = Revisit(seq=0, task=task, damping=None if damping is None else float(damping))
        with self._call():
            self._send_gathered()
            seq = self._post(message, {})
            self._flush()
        return seq

    def flush(self) -> int:
        """Wait until everything sent is durable; returns the last durable sequence number."""
        with self._call():
            self._send_gathered()
            self._flush()
        return self.durable

    def close(self, flush: bool = True) -> None:
        """Send what has been gathered, wait until everything sent is durable, and close the connection.

        flush: without, what is not durable yet is left to the next process of this name, which must send it again, and rows
        that were still being gathered are gone. Raises as `flush` does; the connection is closed all the same.
        """
        if not self._connection.ours or self._closed.is_set():
            return  # sockets and thread belong to the process that made them
        try:
            if flush and (self._gathered is not None or self._outbox.unsafe):
                self.flush()
        finally:
            self._closed.set()
            if self._lingering is not None:
                self._lingering.join()
            self._connection.close()
            _OPEN.discard(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(flush=kind is None)

    @contextmanager
    def _call(self) -> Iterator[None]:
        """What every call begins with: it is this process's producer, nobody else uses it, and patience begins anew."""
        self._connection.check_process("Producer")  # before the lock, which a fork may have left locked for ever
        with self._lock:
            self._outbox.begin(self.timeout, time.monotonic())
            yield

    # -- small blocks --------------------------------------------------------------------------------------------

    def _send_gathered(self, boundary: bool = False, awaited: bool = False) -> int:
        """Send what has been gathered, if anything; returns its sequence number."""
        if self._gathered is None:
            return self._outbox.last
        self._wait_for_credit()
        gathered, self._gathered = self._gathered, None
        batch = self._batch(gathered.task, boundary, gathered.columns)
        return self._post(batch, gathered.joined(), awaited, seq=gathered.seq)

    def _as_batch(self, x: Any, y: Any, schema: Sequence[Any] | None) -> tuple[Any, Any, Columns | None]:
        """Rows, targets and columns, whatever they were given as; of a table, by what the stream's columns are known
        to be."""
        if dataframes.is_table(x):
            known = self._kinds or {column["name"]: column["kind"] for column in self.welcome.get("schema") or ()}
            found = dataframes.batch(x, y, known, {*self.left_out, *(self.welcome.get("left_out") or ())})
            if not known and (doubts := dataframes.doubts(found)) is not None:
                warnings.warn(doubts, RuntimeWarning, stacklevel=3)
            self._kinds = self._kinds or {column.name: column.kind for column in found.columns or ()}
            return found.x, found.y, found.columns
        return x, y, None if schema is None else columns.from_plain(schema)

    def _batch(self, task: str, boundary: bool, named: Columns | None) -> Batch:
        left_out = () if named is None else tuple(self.left_out)
        return Batch(seq=0, task=task, boundary=boundary, schema=named, left_out=left_out)

    def _watch_linger(self) -> None:
        if self._lingering is None:
            self._lingering = threading.Thread(target=self._send_lingering, name=f"linger {self.producer}", daemon=True)
            self._lingering.start()

    def _send_lingering(self) -> None:
        """In a thread of its own: send blocks that no other has joined for a while, if there is credit.

        Reads and waits for nothing: the caller's thread handles the daemon's answers.
        """
        while not self._closed.wait(self.linger):
            with self._lock:
                due = self._gathered is not None and time.monotonic() - self._gathered.since >= self.linger
                if due and self._outbox.has_credit:
                    gathered, self._gathered = self._gathered, None
                    assert gathered is not None
                    with contextlib.suppress(StreamclError, zmq.ZMQError):  # it is kept, for the caller's thread to send
                        batch = self._batch(gathered.task, False, gathered.columns)
                        self._transmit(batch, gathered.joined(), seq=gathered.seq)

    # -- the conversation ----------------------------------------------------------------------------------------

    def _post(
        self,
        message: Batch | Boundary | Revisit,
        arrays: Mapping[str, Array],
        awaited: bool = False,
        seq: int | None = None,
    ) -> int:
        """Send, and take in what the daemon has said so far; returns the sequence number."""
        number = self._transmit(message, arrays, awaited, seq)
        self._hear(0.0)
        self._until(lambda: self._outbox.contact is Contact.OPEN)
        return number

    def _transmit(
        self,
        message: Batch | Boundary | Revisit,
        arrays: Mapping[str, Array],
        awaited: bool = False,
        seq: int | None = None,
    ) -> int:
        self._perform(self._outbox.offer(message, arrays, time.monotonic(), awaited=awaited, seq=seq))
        return self._outbox.last

    def _wait_for_credit(self) -> None:
        self._until(lambda: self._outbox.has_credit)

    def _flush(self) -> None:
        self._until(lambda: self._outbox.unsafe == 0)

    def _wait_for_verdict(self, seq: int) -> dict[str, Any]:
        try:
            verdict = self._until(lambda: self._outbox.verdict(seq))
        except BaseException:
            self._outbox.waive(seq)
            raise
        if not verdict.learned:
            raise _unlearnable(verdict)
        return dict(verdict.said)

    def _until(self, reached: Callable[[], T | None]) -> T:
        """Listen, and do what the outbox says, until there is what is waited for."""
        while not (there := reached()):
            left = max(self._outbox.due - time.monotonic(), 0.0)
            if self._outbox.contact is Contact.APART:
                time.sleep(left)
            if self._outbox.contact is Contact.APART or not self._hear(left):
                self._perform(self._outbox.passed(time.monotonic()))
        return there

    def _hear(self, seconds: float) -> bool:
        """Take in all that the daemon says by then at the latest; returns whether it was anything."""
        received = self._receive(seconds)
        heard = received is not None
        while received is not None:
            reply = decode_reply(received)
            if isinstance(reply, Welcome):
                self.welcome = received
            if reply is not None:
                self._perform(self._outbox.hear(reply, time.monotonic()))
            received = self._receive(0.0) if self._outbox.contact is not Contact.APART else None
        return heard

    def _receive(self, seconds: float) -> dict[str, Any] | None:
        with self._let_in():
            received = self._connection.receive(1000 * seconds)
        return None if received is None else received[0]

    @contextmanager
    def _let_in(self) -> Iterator[None]:
        """Where the daemon does not let this client in, it is knocked again at the next call."""
        try:
            yield
        except Refused:
            self._outbox.lost(time.monotonic())
            raise

    def _perform(self, effects: Iterable[Effect]) -> None:
        for effect in effects:
            match effect:
                case Transmit():
                    with self._let_in():
                        self._connection.send(effect.message)
                case Connect():
                    self._connection.open()
                case Delayed():
                    if self.on_waiting is not None:
                        self.on_waiting(effect.words)
                case Refusal():
                    raise self._refused(effect)
                case Unlearned():
                    raise _unlearnable(effect.verdict)
                case GaveUp():
                    raise Unreachable(f"{self._connection.endpoint}: {effect.words}")
                case Diverged():
                    raise StreamclError(effect.words)

    def _refused(self, refusal: Refusal) -> Refused:
        """As an exception; with a message that is forgotten goes what was gathered behind it."""
        later = refusal.behind + (self._gathered is not None)
        if refusal.forgotten:
            self._gathered = None
        behind = f" ({later} later messages were not stored either)" if refusal.forgotten and later else ""
        nack = refusal.nack
        return Refused(nack.code, nack.message + behind, retryable=nack.retryable, seq=nack.seq)


def _unlearnable(verdict: Verdict) -> Refused:
    failed = verdict.said
    rows = f"task {failed['task']!r}: {failed['samples']} rows could not be learned"
    return Refused("unlearnable", f"{rows}: {failed['message']}", seq=verdict.seq)


_OPEN: weakref.WeakSet[Producer] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A program that ends without having closed its producers loses no rows, or is told of it."""
    for producer in list(_OPEN):
        producer.timeout = min(producer.timeout, EXIT_SECONDS)
        try:
            producer.close()
        except StreamclError as error:
            print(
                f"streamcl: producer {producer.producer!r} was not closed, and not all was stored: {error}", file=sys.stderr
            )
