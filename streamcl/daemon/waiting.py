"""What is sound but has to wait: behind a barrier, for a model that fits the first batch, or for what waits before it.

Guarantees: bounded in messages a producer and in bytes of all together; a producer's messages keep their order. `Trials`
has the model tried on one first batch at a time, each judged by its own rows. Answers nobody: what is refused is returned,
or raised.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streamcl import columns as tables
from streamcl.daemon import words
from streamcl.daemon.link import Link
from streamcl.daemon.sockets import Peer
from streamcl.errors import Refused
from streamcl.protocol import messages
from streamcl.protocol.frames import NamedArrays
from streamcl.protocol.session import StreamSession
from streamcl.schema import Signature, chosen
from streamcl.storage import published
from streamcl.storage.records import Batch

WAITING_BYTES = 512 << 20  # of all messages together that wait
MOST_DEATHS = 3  # of trainers that try a model on one batch; then the model is refused


@dataclass(slots=True)
class Pending:
    """A message of a producer's sequence that has passed every check but those of the moment it is stored in."""

    peer: Peer
    message: messages.Batch | messages.Boundary | messages.Revisit
    arrays: NamedArrays
    nbytes: int


class Queues:
    """Every producer's messages that wait, in their order. most: of one producer."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._queues: dict[str, OrderedDict[int, Pending]] = {}

    def count(self, producer: str) -> int:
        """How many of a producer's messages wait."""
        return len(self._queues.get(producer, ()))

    def __iter__(self) -> Iterator[Pending]:
        """All that wait."""
        return (pending for queue in self._queues.values() for pending in queue.values())

    def producers(self) -> list[str]:
        """Those of whom anything waits."""
        return list(self._queues)

    def first(self, producer: str) -> Pending | None:
        """The one that the others of the producer wait behind."""
        return next(iter(self._queues.get(producer, {}).values()), None)

    def last(self, producer: str) -> int | None:
        """The last number of those of the producer that wait."""
        return next(reversed(self._queues.get(producer, {})), None)

    def replace(self, producer: str, pending: Pending) -> Pending | None:
        """Put a message that was sent again in its place; the one that had it, None where none waits under its numbers."""
        queue = self._queues.get(producer)
        before = None if queue is None else queue.get(pending.message.seq)
        if queue is None or before is None or before.message.begins != pending.message.begins:
            return None
        queue[pending.message.seq] = pending
        return before

    def withdraw(self, producer: str, number: int) -> None:
        """Forget those from this number on: nobody was told that they are stored, and their sender divides it anew."""
        while (last := self.last(producer)) is not None and last >= number:
            self._take(producer, last=True)

    def check_room(self, producer: str, nbytes: int) -> None:
        """Raise Refused ``no_credit`` where another message may not wait too."""
        if self.count(producer) >= self.most:
            raise Refused("no_credit", "too many messages behind one that waits; wait for its `ack`", retryable=True)
        held = sum(pending.nbytes for pending in self)
        if held + nbytes > WAITING_BYTES:
            raise Refused("no_credit", f"{held} bytes wait for barriers already; send it later", retryable=True)

    def add(self, producer: str, pending: Pending) -> None:
        """One more, for which there is room."""
        self._queues.setdefault(producer, OrderedDict())[pending.message.seq] = pending

    def take_first(self, producer: str) -> Pending:
        """It waits no longer."""
        return self._take(producer, last=False)

    def take_all(self, producer: str) -> Iterator[Pending]:
        """None of them waits any longer; the last comes first."""
        while self.count(producer):
            yield self._take(producer, last=True)

    def _take(self, producer: str, last: bool) -> Pending:
        queue = self._queues[producer]
        _, pending = queue.popitem(last=last)
        if not queue:
            del self._queues[producer]
        return pending


@dataclass(slots=True)
class FirstBatch:
    """A first batch, on rows of which the trainer tries the model.

    trainer: which one was asked. deaths: how many have ended before they answered.
    """

    number: int
    producer: str
    pending: Pending
    trainer: int
    deaths: int = 0

    @property
    def signature(self) -> Form:
        """Of the batch."""
        return _form(self.pending)

    def follow(self, pending: Pending) -> None:
        """The same batch was sent again: the verdict applies to that one too."""
        old, new = self.pending.arrays, pending.arrays
        if all(np.array_equal(old[name], new[name]) for name in ("x", "y")):
            self.pending = pending


Form = Signature | tuple[Signature, tuple[tuple[str, str], ...]]  # of a table's batch: also its columns' names and kinds


def _form(pending: Pending) -> Form:
    columns = (pending.message.schema if isinstance(pending.message, messages.Batch) else None) or ()
    shapes = Signature.of(pending.arrays["x"], pending.arrays["y"])
    return (shapes, tuple((column.name, column.kind) for column in columns)) if columns else shapes


class Trials:
    """Models awaited by signature, until the first batch is stored.

    path: where a few rows are put for the trainer. accepted: the signature of rows that the model is known to fit.
    """

    def __init__(self, session: StreamSession, link: Link, path: Path) -> None:
        self.session, self.link, self.path = session, link, path
        self.accepted: Form | None = session.signature
        self.current: FirstBatch | None = None
        self._begun = 0

    def awaits(self, pending: Pending) -> bool:
        """Whether the trainer has yet to say that a model fits this first batch."""
        if self.session.signature is not None or not isinstance(pending.message, messages.Batch):
            return False
        x, y = pending.arrays["x"], pending.arrays["y"]
        return bool(x.ndim and y.ndim) and _form(pending) != self.accepted

    def begin(self, producer: str, pending: Pending, batch: Batch) -> None:
        """Put a few rows where the trainer finds them, until its verdict; raises Refused ``no_space``."""
        x, y = chosen(pending.arrays["x"], pending.arrays["y"])
        self._begun += 1
        first = FirstBatch(self._begun, producer, pending, self.link.trainers)
        schema = None if batch.schema is None else tables.plain(batch.schema)
        meta = {"new_labels": list(batch.new_labels), "new_words": list(batch.new_words), "schema": schema}
        try:
            published.publish(self.path, meta, {"x": x, "y": y})
        except OSError as error:
            published.clear(self.path)
            reason = f"no room to try the model on the first batch ({error.strerror}); free some"
            raise Refused("no_space", reason, retryable=True) from None
        self.current = first
        self.link.try_model(first.number)

    def again(self) -> tuple[FirstBatch, str] | None:
        """A trainer has started; where the ones before died of trying a model, not for ever: then, why it is refused."""
        first = self.current
        if first is None:
            return None
        first.deaths += first.trainer > 0
        first.trainer = self.link.trainers
        if first.deaths < MOST_DEATHS:
            self.link.try_model(first.number)
            return None
        return self._judged(
            first,
            f"the process that tried the model on the first batch ended {first.deaths} times while it did (a crash in "
            "native code, os._exit, memory, or no sign of life for train.watchdog_seconds); try the model on such rows by "
            "itself, with python -X faulthandler",
        )

    def tried(self, word: words.ModelTried) -> tuple[FirstBatch, str] | None:
        """The trainer has tried the model on a first batch; where it cannot be learned, why."""
        first = self.current
        return None if first is None or first.number != word.number else self._judged(first, word.refused)

    def _judged(self, first: FirstBatch, reason: str | None) -> tuple[FirstBatch, str] | None:
        self.current = None
        published.clear(self.path)
        if reason is None:
            self.accepted = first.signature
            return None
        return first, reason
