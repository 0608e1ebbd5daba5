"""Producer, Reader and Admin: the Python side of the protocol.

Guarantees: what `Producer.send` took is kept until the daemon holds it durably; it survives lost connections and
restarts of the daemon, and is never trained on twice. Every wait has an end: `timeout` seconds after the daemon last showed
that what is waited for gets on, with what it last said about it. NumPy arrays and torch tensors go in, NumPy arrays come
out. Runs where torch is absent. One thread at a time may use a client, and only in the process that made it.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, Self

import numpy as np
import numpy.typing as npt
import zmq

from streamcl.config import is_ipv6
from streamcl.errors import Refused, StreamclError, Unreachable
from streamcl.handshake import Handshake, KeysGiven, ServerGiven, client_keys
from streamcl.keys import Keys
from streamcl.protocol import frames
from streamcl.protocol.frames import NamedArrays

Array = npt.NDArray[Any]

STREAM = "tcp://127.0.0.1:5757"
PREDICT = "tcp://127.0.0.1:5758"
ADMIN = "tcp://127.0.0.1:5759"
PING_SECONDS = 5.0  # how often a patient request makes sure that the daemon still lives
NO_ROOM_SECONDS = {"no_credit": 0.05, "no_space": 0.5}
SILENCE_MS = 2000  # without a word for so long while one is owed, a producer asks again
GATHER_BYTES = 128 * 1024  # of small blocks that travel as one message: beyond it, larger messages gain little
LINGER_SECONDS = 0.05


def _array(values: Any) -> Array:
    """A NumPy array of anything array-like; torch tensors by way of the host, without importing torch."""
    if hasattr(values, "detach"):
        values = values.detach().cpu().numpy()
    array = np.asarray(values)
    if array.dtype == np.bool_:
        return array.astype(np.uint8)
    if array.dtype.kind in "iu" and array.dtype.str not in frames.DTYPES:
        return array.astype(np.int64)
    return array


def _alike(one: Array, other: Array) -> bool:
    """Whether these are rows of one kind."""
    return one.dtype == other.dtype and one.shape[1:] == other.shape[1:]


def _is_block(x: Array, y: Array) -> bool:
    """Whether these are rows and as many targets."""
    return x.ndim > 0 and y.ndim > 0 and 0 < len(x) == len(y)


def _boundary(task: str, weight: float | None, barrier: Mapping[str, int] | None) -> dict[str, Any]:
    header: dict[str, Any] = {"type": "boundary", "task": task}
    if weight is not None:
        header["weight"] = float(weight)
    return {**header, "barrier": dict(barrier)} if barrier else header


def _unlearnable(failed: Mapping[str, Any]) -> Refused:
    rows = f"task {failed['task']!r}: {failed['samples']} rows could not be learned"
    return Refused("unlearnable", f"{rows}: {failed['message']}", seq=failed["seq"])


def _revisit(task: str, damping: float | None) -> dict[str, Any]:
    header: dict[str, Any] = {"type": "revisit", "task": task}
    return header if damping is None else {**header, "damping": float(damping)}


@dataclass(slots=True)
class _Patience:
    """How long a wait may go on without anything moving, and what the daemon last said of why nothing does.

    seconds: the client's timeout. refusal, no_room: what is refused again and again, although it may be sent again.
    """

    seconds: float
    since: float = field(default_factory=time.monotonic)
    words: str | None = None
    refusal: Refused | None = None
    no_room: str | None = None
    heard: bool = False

    def moved(self) -> None:
        """What is waited for has come nearer, or something new is waited for."""
        self.since, self.heard = time.monotonic(), False
        self.words = self.refusal = self.no_room = None

    def told(self, said: Mapping[str, Any]) -> None:
        """A status or welcome: the daemon is at work, or says why it is not; one too old to say is taken to be at work."""
        before, self.heard = self.words, True
        self.words = said.get("waiting")
        another = self.words is not None and before is not None and self.words != before
        if self.refusal is None and (said.get("working", True) or another):
            self.since = time.monotonic()

    def left(self) -> float:
        """Seconds."""
        return self.since + self.seconds - time.monotonic()

    def reason(self) -> str:
        """Why the wait has ended."""
        if not self.heard and self.words is None:
            return f"no answer for {self.seconds:g} s"
        words = self.words or self.no_room or "the daemon has nothing to do"
        return f"nothing has moved for {self.seconds:g} s: {words}"


class _Connection:
    """One DEALER socket that can be thrown away and made again; of this process alone.

    timeout: seconds for which a message may find no room on its way out.
    """

    def __init__(self, endpoint: str, keys: Keys | None = None, timeout: float = 60.0) -> None:
        self.endpoint = endpoint
        self.keys = keys
        self.timeout = timeout
        self._process = os.getpid()
        self._socket: zmq.Socket[bytes] | None = None
        self._handshake: Handshake | None = None

    def open(self) -> None:
        self.close()
        self._socket = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.setsockopt(zmq.IPV6, int(is_ipv6(self.endpoint)))
        self._socket.setsockopt(zmq.SNDTIMEO, max(1, int(1000 * self.timeout)))
        self._socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
        self._socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 15000)
        self._handshake = Handshake(self._socket, self.endpoint, self.keys)
        try:
            self._socket.connect(self.endpoint)
        except zmq.ZMQError as error:
            raise Unreachable(f"{self.endpoint}: not an endpoint ({error}); expected tcp://HOST:PORT") from None

    @property
    def ours(self) -> bool:
        """Whether this process made it; a fork takes no sockets and threads along."""
        return os.getpid() == self._process

    def check_process(self, kind: str) -> None:
        """Raise StreamclError in any process but the one that made this."""
        if not self.ours:
            raise StreamclError(
                f"this {kind} was made in process {self._process} and cannot be used in process {os.getpid()}, a fork of "
                f"it: make a new {kind} after the fork" + (", under a name of its own" if kind == "Producer" else "")
            )

    def close(self) -> None:
        if self._socket is not None and self._handshake is not None and self.ours:
            self._handshake.close()
            self._socket.close()
            self._socket = None

    def send(self, message: list[frames.Buffer]) -> None:
        try:
            self._opened()[0].send_multipart(message, copy=False)
        except zmq.Again:
            raise Unreachable(
                f"{self.endpoint}: no room for another message for {self.timeout:g} s: nobody there takes them"
            ) from None

    def receive(self, timeout_ms: float) -> tuple[dict[str, Any], NamedArrays] | None:
        """The next message within the time, or None. Raises Refused where the daemon does not let this client in."""
        socket, handshake = self._opened()
        try:
            if not handshake.wait(max(0, int(timeout_ms))):
                return None
        except Refused:
            self.close()  # ZeroMQ would go on knocking, ten times a second
            raise
        parts = socket.recv_multipart(copy=False)
        envelope = frames.parse([part.buffer for part in parts], message_bytes=1 << 40)
        names = [spec["name"] for spec in envelope.header.get("arrays", [])]
        return envelope.header, frames.open_arrays(envelope, names)

    def _opened(self) -> tuple[zmq.Socket[bytes], Handshake]:
        """The socket, opened again if it was turned away: the daemon may have been told of this key by now."""
        if self._socket is None or self._handshake is None:
            self.open()
        assert self._socket is not None
        assert self._handshake is not None
        return self._socket, self._handshake


@dataclass(slots=True)
class _Unacknowledged:
    kind: str
    message: list[frames.Buffer]
    done_wanted: bool = False


@dataclass(slots=True)
class _Gathered:
    """Small blocks of one task that will travel as one message: rows of one shape and dtype."""

    task: str
    since: float
    x: list[Array] = field(default_factory=list)
    y: list[Array] = field(default_factory=list)
    nbytes: int = 0

    def takes(self, x: Array, y: Array, task: str) -> bool:
        """Whether a block can be joined to the others without changing what it says."""
        return task == self.task and _alike(x, self.x[0]) and _alike(y, self.y[0])

    def add(self, x: Array, y: Array) -> None:
        """One more block."""
        self.x.append(x)
        self.y.append(y)
        self.nbytes += x.nbytes + y.nbytes

    def joined(self) -> dict[str, Array]:
        """All blocks as one batch."""
        return {
            name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in (("x", self.x), ("y", self.y))
        }


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
        self.durable = 0
        self.applied = 0
        self.credit = 1
        self.welcome: dict[str, Any] = {}
        self._epoch = epoch if epoch is not None else time.time_ns() // 1_000_000
        self._epoch_is_ours = epoch is None
        self._next = 1
        self._kept: OrderedDict[int, _Unacknowledged] = OrderedDict()
        self._done: dict[int, dict[str, Any]] = {}
        self._patience = _Patience(timeout)
        self._told: str | None = None
        self._gathered: _Gathered | None = None
        self._lock = threading.RLock()  # between the caller's thread and the one that sends what has lingered
        self._closed = threading.Event()
        self._lingering: threading.Thread | None = None
        self._connection = _Connection(endpoint, client_keys(keys, server_key), timeout)
        try:
            self._connect()
        except BaseException:
            self._connection.close()
            raise
        self._next = self.durable + 1

    def send(self, x: Any, y: Any, task: str, *, boundary: bool = False) -> int:
        """Send one batch, waiting while there is no credit; returns the sequence number it travels under.

        x: [n, ...], y: [n] or [n, ...]. The batch may still be on its way, or be waiting to be joined by others: `flush`
        waits until it is durable. The arrays must not be changed before that. Raises Refused, Unreachable; a refusal
        may be of an earlier batch, and then nothing sent since is stored. Where Unreachable is raised these rows are not
        taken, and may be given again; all before them are kept.
        """
        x, y = frames.portable("x", _array(x)), frames.portable("y", _array(y))
        with self._call():
            sound = _is_block(x, y)
            if self._gathered is not None and not (sound and self._gathered.takes(x, y, task)):
                self._send_gathered()
            gathered = self._gathered.nbytes if self._gathered is not None else 0
            now = boundary or not sound or gathered + x.nbytes + y.nbytes >= self.gather_bytes
            if now:
                self._wait_for_credit()
            if not sound:  # for the daemon to refuse, by itself
                return self._send_batch({"x": x, "y": y}, task, boundary)
            if self._gathered is None:
                self._gathered = _Gathered(task, time.monotonic())
            self._gathered.add(x, y)
            if now:
                return self._send_gathered(boundary)
            self._watch_linger()
            return self._next

    def boundary(
        self,
        task: str,
        weight: float | None = None,
        barrier: Mapping[str, int] | None = None,
        wait: bool = True,
    ) -> dict[str, Any]:
        """Close a task; with `wait`, until it is consolidated, and return the `done` (samples, loss, seconds, set_aside).

        weight: lambda_t, instead of scale * N_t. barrier: sequence numbers of other producers to wait for. set_aside: rows
        that could not be learned and are kept, 0 as a rule. It waits as long as the daemon is at work. Raises Unreachable
        (what is stored by then is consolidated all the same), and Refused, ``unlearnable`` where nothing could be learned:
        the task is held, with all its rows. Without `wait` the next call that hears of it raises that.
        """
        with self._call():
            self._send_gathered()
            seq = self._post(_boundary(task, weight, barrier), {}, done_wanted=wait)
            return self._wait_for_done(seq) if wait else {"seq": seq, "task": task}

    def revisit(self, task: str, damping: float | None = None) -> int:
        """Reopen a consolidated task, whose data is sent again after this; returns the sequence number."""
        with self._call():
            self._send_gathered()
            seq = self._post(_revisit(task, damping), {})
            self._flush()
        return seq

    def flush(self) -> int:
        """Wait until everything sent is durable; returns the last durable sequence number."""
        with self._call():
            self._send_gathered()
            self._flush()
        return self.durable

    def _flush(self) -> None:
        while any(seq > self.durable for seq in self._kept):
            self._pump()

    @contextmanager
    def _call(self) -> Iterator[None]:
        """What every call begins with: it is this process's producer, nobody else uses it, and patience begins anew."""
        self._connection.check_process("Producer")  # before the lock, which a fork may have left taken for ever
        with self._lock:
            self._patience.seconds = self.timeout
            self._patience.moved()
            yield

    def close(self) -> None:
        """Close the connection; what is not durable yet is left to the next process of this name."""
        if not self._connection.ours:
            return  # sockets and thread stayed with the process that made them
        self._closed.set()
        if self._lingering is not None:
            self._lingering.join()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self.flush()
        finally:
            self.close()

    # -- small blocks --------------------------------------------------------------------------------------------

    def _send_gathered(self, boundary: bool = False) -> int:
        """Send what has been gathered, if anything; returns its sequence number."""
        if self._gathered is None:
            return self._next - 1
        self._wait_for_credit()
        gathered, self._gathered = self._gathered, None
        return self._send_batch(gathered.joined(), gathered.task, boundary)

    def _send_batch(self, arrays: dict[str, Array], task: str, boundary: bool) -> int:
        return self._post({"type": "batch", "task": task, "boundary": boundary}, arrays)

    def _watch_linger(self) -> None:
        if self._lingering is None:
            self._lingering = threading.Thread(target=self._send_lingering, name=f"linger {self.producer}", daemon=True)
            self._lingering.start()

    def _send_lingering(self) -> None:
        """In a thread of its own: send blocks that no other has joined for a while, if there is credit.

        Hears nothing and waits for nothing: what the daemon says to it, the caller's thread takes up.
        """
        while not self._closed.wait(self.linger):
            with self._lock:
                due = self._gathered is not None and time.monotonic() - self._gathered.since >= self.linger
                if due and self._unsafe() < self.credit:
                    gathered, self._gathered = self._gathered, None
                    assert gathered is not None
                    with contextlib.suppress(StreamclError, zmq.ZMQError):  # it is kept, for the caller's thread to send
                        self._transmit({"type": "batch", "task": gathered.task}, gathered.joined())

    # -- the conversation ----------------------------------------------------------------------------------------

    def _post(self, header: dict[str, Any], arrays: dict[str, Array], done_wanted: bool = False) -> int:
        seq = self._transmit(header, arrays, done_wanted)
        self._pump(wait=False)
        return seq

    def _transmit(self, header: dict[str, Any], arrays: dict[str, Array], done_wanted: bool = False) -> int:
        seq = self._next
        message = frames.build({**header, "seq": seq}, arrays)
        self._next += 1
        self._kept[seq] = _Unacknowledged(header["type"], message, done_wanted)
        self._connection.send(message)
        return seq

    def _unsafe(self) -> int:
        """How many messages are not known to be durable."""
        return sum(seq > self.durable for seq in self._kept)

    def _wait_for_credit(self) -> None:
        while self._unsafe() >= self.credit:
            self._pump()

    def _wait_for_done(self, seq: int) -> dict[str, Any]:
        while seq not in self._done:
            self._pump()
        self._kept.pop(seq, None)
        done = self._done.pop(seq)
        if done["type"] == "failed":
            raise _unlearnable(done)
        return done

    def _pump(self, wait: bool = True) -> None:
        """Take in what the daemon said; when it owes a word and stays silent, connect again and send again."""
        silence = min(SILENCE_MS, 250 * self.timeout, 1000 * max(self._patience.left(), 0.001))
        received = self._connection.receive(silence if wait else 0)
        if received is None and wait:
            self._reconnect()
        while received is not None:
            self._hear(received[0])
            received = self._connection.receive(0)

    def _hear(self, header: dict[str, Any]) -> None:
        self._patience.heard = True
        match header["type"]:
            case "ack":
                self._acknowledge(header)
            case "welcome":
                self._acknowledge(header)
                self._patience.told(header)
                self._say_why()
            case "done":
                self._patience.moved()
                self._done[header["seq"]] = header
            case "failed":
                kept = self._kept.get(header["seq"])
                if kept is None or not kept.done_wanted:
                    raise _unlearnable(header)
                self._done[header["seq"]] = header
            case "nack":
                self._refused(header)

    def _acknowledge(self, header: dict[str, Any]) -> None:
        if header["durable"] < self.durable:
            raise StreamclError(
                f"producer {self.producer}: the daemon had acknowledged {self.durable} messages, it now knows of "
                f"{header['durable']}: its state directory was replaced; start this producer again to go on from there"
            )
        if header["durable"] > self.durable:
            self._patience.moved()
        self.durable, self.applied = header["durable"], header["applied"]
        self.credit = header["credit"]["messages"]
        for seq in [s for s, kept in self._kept.items() if s <= self.durable and not kept.done_wanted]:
            del self._kept[seq]

    def _refused(self, nack: dict[str, Any]) -> None:
        seq = nack.get("seq")
        no_room = nack["code"] in NO_ROOM_SECONDS and seq in self._kept
        if nack["code"] in ("not_ready", "gap") or no_room:
            if no_room:
                self.credit, self._patience.no_room = 0, nack["message"]
                time.sleep(NO_ROOM_SECONDS[nack["code"]])  # ask again, no faster than this
            if nack["code"] == "not_ready" and seq is not None and seq == self._first_unsafe():
                self._patience.refusal = Refused(nack["code"], nack["message"], retryable=True, seq=seq)
            self._rewind(nack)
            return
        self._forget_from(nack)

    def _forget_from(self, nack: Mapping[str, Any]) -> NoReturn:
        """A refused message's number may be used again: forget it and everything sent behind it; raises Refused."""
        seq = nack["seq"]
        lost = [s for s in self._kept if seq is not None and s >= seq]
        for s in lost:
            del self._kept[s]
        if lost:
            self._next = lost[0]
            later = len(lost) - 1 + (self._gathered is not None)
            self._gathered = None
        behind = f" ({later} later messages were not stored either)" if lost and later else ""
        raise Refused(nack["code"], nack["message"] + behind, retryable=nack["retryable"], seq=seq)

    def _rewind(self, nack: dict[str, Any]) -> None:
        """Go on from where the daemon says it is; only for the first refusal of a burst."""
        if nack["code"] == "gap" and nack.get("seq") != self._first_unsafe():
            return
        if nack["code"] != "gap" and nack.get("seq") not in (None, self._first_unsafe()):
            return
        self._reconnect(throttle=nack["code"] == "not_ready")

    def _first_unsafe(self) -> int | None:
        return next((seq for seq in self._kept if seq > self.durable), None)

    def _reconnect(self, throttle: bool = False) -> None:
        if throttle:
            time.sleep(0.05)
        self._check_patience()
        self._connect()
        for seq, kept in list(self._kept.items()):
            if seq > self.durable or kept.done_wanted:
                self._connection.send(kept.message)

    def _say_why(self) -> None:
        """Tell whoever wants to know why nothing moves, once for each reason."""
        words = self._patience.words
        if words is not None and words != self._told and self.on_waiting is not None and (self._kept or self.credit == 0):
            self.on_waiting(words)
        self._told = words

    def _check_patience(self) -> None:
        """Raise Unreachable, or what is refused again and again, once nothing has moved for too long."""
        if self._patience.left() > 0:
            return
        refusal, first = self._patience.refusal, self._first_unsafe()
        if refusal is not None and first is not None and self._kept[first].kind != "batch":
            words = f"{refusal.message} (sent again and again for {self.timeout:g} s)"
            self._forget_from({"code": refusal.code, "message": words, "seq": first, "retryable": True})
        if refusal is not None:
            self._patience.words = refusal.message
        raise Unreachable(f"{self._connection.endpoint}: {self._patience.reason()}; {self._what_is_stored(first)}")

    def _what_is_stored(self, first: int | None) -> str:
        if first is None:
            return "everything sent is stored"
        return f"{self._unsafe()} messages from seq {first} on are not known to be stored; they are kept here"

    def _connect(self) -> None:
        """Say hello until welcomed; a fresh producer whose clock is behind takes the next free epoch."""
        while True:
            self._connection.open()
            self._connection.send(frames.build({"type": "hello", "producer": self.producer, "epoch": self._epoch}))
            if self._welcomed():
                return
            if self._patience.left() <= 0:
                if self._patience.heard:
                    self._check_patience()
                refusal, first = self._patience.refusal, self._first_unsafe()
                said = "" if refusal is None else f"; it was last refused: {refusal}"
                kept = "" if first is None else f"; {self._what_is_stored(first)}"
                raise Unreachable(
                    f"{self._connection.endpoint}: no streamcl daemon answered within {self.timeout:g} s{said}; "
                    f"start one with `streamcl serve`, or check the endpoint{kept}"
                )

    def _welcomed(self) -> bool:
        received = self._connection.receive(min(SILENCE_MS, max(self._patience.left(), 0.001) * 1000))
        if received is None:
            return False
        header = received[0]
        if header["type"] == "welcome":
            self.welcome, self._epoch_is_ours = header, False
            if self._patience.refusal is not None and self._patience.refusal.seq is None:  # of a hello before this one
                self._patience.refusal = None
            self._hear(header)
            return True
        if header.get("code") == "stale_epoch" and self._epoch_is_ours:
            self._epoch = header["epoch"] + 1
            return False
        if header.get("retryable"):
            self._patience.refusal = Refused(header["code"], header["message"], retryable=True)
            time.sleep(0.05)
            return False
        raise Refused(header.get("code", "internal"), header.get("message", str(header)))


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the model says of some rows.

    version: of the parameters, growing with training. Categorical: probs [n, classes], labels [classes], the label of
    each output (-1 where none was seen yet). Bernoulli: probs. Gaussian: mean and variance.
    """

    version: int
    arrays: dict[str, Array] = field(repr=False)
    labels: Array | None = field(default=None, repr=False)

    @property
    def probs(self) -> Array:
        """Probabilities, [n, classes] or like the targets (Bernoulli)."""
        return self.arrays["probs"]

    @property
    def mean(self) -> Array:
        """Predictive means, like the targets (Gaussian)."""
        return self.arrays["mean"]

    @property
    def variance(self) -> Array:
        """Predictive variances, like the targets (Gaussian)."""
        return self.arrays["variance"]

    @property
    def label(self) -> Array:
        """The most probable label of each row, [n] (categorical)."""
        best: Array = self.probs.argmax(1)
        return best if self.labels is None else np.asarray(self.labels)[best]


class _Requester:
    """Sends one request and waits for the reply that carries its id."""

    def __init__(self, endpoint: str, timeout: float, keys: KeysGiven = None, server_key: ServerGiven = None) -> None:
        self.timeout = timeout
        self._ids: Iterator[int] = iter(range(1, 2**62))
        self._lock = threading.Lock()  # between threads, of which one at a time asks
        self._connection = _Connection(endpoint, client_keys(keys, server_key), timeout)
        self._connection.open()

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _request(
        self, header: Mapping[str, Any], arrays: dict[str, Array] | None = None, *, patient: bool = False
    ) -> tuple[dict[str, Any], NamedArrays]:
        """Ask and wait for the answer; `patient`: for as long as the daemon shows that it is at work."""
        self._connection.check_process(type(self).__name__)
        with self._lock:
            return self._answered(next(self._ids), header, arrays, _Patience(self.timeout), patient)

    def _answered(
        self,
        number: int,
        header: Mapping[str, Any],
        arrays: dict[str, Array] | None,
        patience: _Patience,
        patient: bool,
    ) -> tuple[dict[str, Any], NamedArrays]:
        self._connection.send(frames.build({**header, "id": number}, arrays))
        ping = min(PING_SECONDS, self.timeout / 4)
        while (left := patience.left()) > 0:
            received = self._connection.receive(1000 * min(left, ping))
            if received is None and patient:
                self._connection.send(frames.build({"type": "status", "id": 0}))
            elif received is not None and received[0].get("id") == number:
                return self._checked(received)
            elif received is not None and patient and received[0]["type"] == "ok":
                patience.told(received[0])
        self._connection.open()  # a late answer must not meet the next request
        if patience.heard:
            raise Unreachable(
                f"{self._connection.endpoint}: {header['type']!r} is not done: {patience.reason()}; the daemon goes on "
                "with it when it can"
            )
        raise Unreachable(
            f"{self._connection.endpoint}: no answer to {header['type']!r} within {self.timeout:g} s; "
            "is a daemon running there (`streamcl serve`)?"
        )

    @staticmethod
    def _checked(received: tuple[dict[str, Any], NamedArrays]) -> tuple[dict[str, Any], NamedArrays]:
        header = received[0]
        if header["type"] in ("error", "nack"):
            raise Refused(header["code"], header["message"], retryable=header.get("retryable", False))
        return received


class Reader(_Requester):
    """Asks a daemon for predictions; `keys` and `server_key` as for a Producer. Raises Refused, Unreachable."""

    def __init__(
        self,
        endpoint: str = PREDICT,
        *,
        timeout: float = 30.0,
        keys: KeysGiven = None,
        server_key: ServerGiven = None,
    ) -> None:
        super().__init__(endpoint, timeout, keys, server_key)

    def predict(self, x: Any, samples: int = 0) -> Prediction:
        """Predictions for the rows x [n, ...]; with samples > 0, averaged over draws from the posterior."""
        header: dict[str, Any] = {"type": "predict"}
        if samples:
            header["samples"] = int(samples)
        reply, arrays = self._request(header, {"x": _array(x)})
        labels = reply.get("labels")
        return Prediction(
            reply["version"],
            {name: array.copy() for name, array in arrays.by_name.items()},
            None if labels is None else np.array(labels, np.int64),
        )


@dataclass(frozen=True, slots=True)
class ParameterVectors:
    """The flat float64 vectors of the model and its posterior, with the layout of the parameters in them."""

    theta: Array = field(repr=False)
    precision: Array = field(repr=False)
    shift: Array = field(repr=False)
    names: list[str]
    shapes: list[list[int]]


@dataclass(frozen=True, slots=True)
class Export:
    """A model to be used elsewhere.

    description: factory, arguments, labels and the like (`model.json`). state: the bytes of a safetensors file with every
    entry of the module's `state_dict()`.
    """

    vectors: ParameterVectors
    description: dict[str, Any] = field(repr=False)
    state: bytes = field(repr=False)


def _vectors(reply: Mapping[str, Any], arrays: NamedArrays) -> ParameterVectors:
    vectors = {name: arrays[name].copy() for name in ("theta", "precision", "shift")}
    return ParameterVectors(**vectors, names=reply["names"], shapes=reply["shapes"])


class Admin(_Requester):
    """An operator's requests; `keys` and `server_key` as for a Producer.

    timeout: seconds to wait for an answer; of what takes effect later (a boundary, `abandon`, `forget`, a checkpoint),
    seconds for which the daemon is not at work and says why. Each returns the reply's fields; raises Refused, Unreachable.
    """

    def __init__(
        self,
        endpoint: str = ADMIN,
        *,
        timeout: float = 30.0,
        keys: KeysGiven = None,
        server_key: ServerGiven = None,
    ) -> None:
        super().__init__(endpoint, timeout, keys, server_key)

    def status(self) -> dict[str, Any]:
        """What the daemon is doing."""
        return self._ask({"type": "status"})

    def tasks(self, offset: int = 0) -> list[dict[str, Any]]:
        """One map a task, from the `offset`-th on: task, samples, weight, loss, revisits, penalty, penalty_rise, closed_at.

        In factor mode also revisit_rank (1: a revisit would repay most) and revisit_reason.
        """
        return self._pages("tasks", "tasks", offset)

    def metrics(self) -> dict[str, float]:
        """The values of /metrics by sample name."""
        return self._ask({"type": "metrics"})

    def boundary(
        self,
        task: str,
        weight: float | None = None,
        barrier: Mapping[str, int] | None = None,
        wait: bool = True,
    ) -> dict[str, Any]:
        """Close a task after everything durable now; with `wait`, until it is consolidated."""
        return self._ask({**_boundary(task, weight, barrier), "wait": wait}, patient=wait)

    def revisit(self, task: str, damping: float | None = None) -> dict[str, Any]:
        """Reopen a consolidated task, whose data is sent again after this."""
        return self._ask(_revisit(task, damping))

    def abandon(self, task: str | None = None) -> dict[str, Any]:
        """Give up the open revisit; returns once what was before it holds again."""
        return self._ask({"type": "abandon"} | ({} if task is None else {"task": task}), patient=True)

    def forget(self, task: str) -> dict[str, Any]:
        """Withdraw a task's factor for good; returns once the posterior is without it."""
        return self._ask({"type": "forget", "task": task}, patient=True)

    def retry(self, task: str) -> dict[str, Any]:
        """Have what was kept of a task learned; returns once it is. Raises Refused ``unlearnable`` where it cannot be."""
        return self._ask({"type": "retry", "task": task}, patient=True)

    def drop(self, task: str) -> dict[str, Any]:
        """Give up what was kept of a task because it could not be learned, for good."""
        return self._ask({"type": "drop", "task": task}, patient=True)

    def quarantine(self, offset: int = 0) -> list[dict[str, Any]]:
        """What could not be learned and is kept, a map each: task, state (held or set-aside), rows, reason, time; of a
        batch also its producer and seq."""
        return self._pages("quarantine", "quarantine", offset)

    def rollback(self, task: str) -> dict[str, Any]:
        """Undo a task's newest boundary, or revisit, and everything learned since: parameters and posterior are those from
        before it, to the bit. `undone`: the tasks that are unknown again."""
        return self._ask({"type": "rollback", "task": task}, patient=True)

    def versions(self) -> list[dict[str, Any]]:
        """What a rollback of each task would do, where one is possible: task, version, undone, bytes, problem."""
        versions: list[dict[str, Any]] = self._ask({"type": "versions"})["versions"]
        return versions

    def history(self) -> list[dict[str, Any]]:
        """Each task's penalty and its rise after every boundary: lsn, time, task, penalty, penalty_rise."""
        return self._pages("history", "rows")

    def producers(self, most: int | None = None) -> list[dict[str, Any]]:
        """The producers, those heard most recently first: producer, durable, applied, age_seconds (since it last stored
        anything; None where that was before the daemon's start), batches_per_second. No more than `most`, if given."""
        return self._pages("producers", "producers", most=most)[:most]

    def checkpoint(self) -> dict[str, Any]:
        """Write a checkpoint of everything applied; waits for a consolidation under way."""
        return self._ask({"type": "checkpoint"}, patient=True)

    def pause(self) -> dict[str, Any]:
        """Stop training; data is still taken in."""
        return self._ask({"type": "pause"})

    def resume(self) -> dict[str, Any]:
        """Go on training."""
        return self._ask({"type": "resume"})

    def stop(self, drain: bool = True) -> dict[str, Any]:
        """End the daemon; with `drain`, after everything durable has been applied. Returns at once."""
        return self._ask({"type": "stop", "drain": drain})

    def parameters(self) -> ParameterVectors:
        """theta, precision and shift as flat float64 vectors in the model's parameter order."""
        return _vectors(*self._request({"type": "parameters"}))

    def export(self) -> Export:
        """The same vectors, and what it takes to use the model without streamcl, all of one moment."""
        reply, arrays = self._request({"type": "parameters", "model": True})
        description = json.loads(arrays["description"].tobytes())
        return Export(_vectors(reply, arrays), description, arrays["state"].tobytes())

    def _pages(self, request: str, name: str, offset: int = 0, most: int | None = None) -> list[dict[str, Any]]:
        """All rows of a request that is answered page by page; no more pages than needed for `most`."""
        rows: list[dict[str, Any]] = []
        while page := self._ask({"type": request, "offset": offset + len(rows)})[name]:
            rows += page
            if most is not None and len(rows) >= most:
                break
        return rows

    def _ask(self, header: Mapping[str, Any], *, patient: bool = False) -> dict[str, Any]:
        reply, _ = self._request(header, patient=patient)
        return {key: value for key, value in reply.items() if key not in ("v", "type", "id")}
