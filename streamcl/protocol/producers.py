"""How far each producer's sequence has come, and which of its processes may speak: sequences and epochs.

One sequence a producer, from 1, without gaps, over batches, boundaries and revisits; a message may stand for several
numbers of it (`first` to `seq`), such as the offsets of another log. Its counterpart is `outbox`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from streamcl.errors import Refused
from streamcl.protocol.messages import Hello


@dataclass(slots=True)
class ProducerState:
    """One producer's epoch and how far its sequence has come.

    stored: in the log, perhaps not yet synced. durable: synced. applied: trained and in a checkpoint. inherited: stored by
    processes before this epoch's.
    """

    epoch: int = 0
    stored: int = 0
    durable: int = 0
    applied: int = 0
    inherited: int = 0


class Producers(dict[str, ProducerState]):
    """The producers by name; `most` are kept, of those that never stored anything the first to come is forgotten first."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most

    # -- who may speak -------------------------------------------------------------------------------------------

    def hello(self, message: Hello) -> ProducerState:
        """Register a producer.

        Raises Refused ``stale_epoch`` (with the current `epoch`) for a fenced one, ``too_large`` for one too many,
        ``not_ready`` until the last that an earlier process of this name has sent is synced: `durable` would not count it,
        and a message under its number would be taken for it.
        """
        self._make_room_for(message.producer)
        state, epoch = self.setdefault(message.producer, ProducerState()), message.epoch or 0
        self.check_epoch(message.producer, epoch)
        if epoch > state.epoch:
            state.epoch, state.inherited = epoch, state.stored
        if state.durable < state.inherited:
            raise Refused(
                "not_ready",
                f"producer {message.producer}: what an earlier process of this name has sent is being stored; say hello "
                "again",
                retryable=True,
            )
        return state

    def _make_room_for(self, producer: str) -> None:
        """With as many producers as are kept, forget one that never stored anything."""
        if producer in self or len(self) < self.most:
            return
        idle = next((name for name, state in self.items() if state.stored == 0), None)
        if idle is None:
            raise Refused("too_large", f"producer {producer}: {self.most} are known already (stream.producers)")
        del self[idle]

    def check_epoch(self, producer: str, epoch: int) -> None:
        """Raise Refused ``stale_epoch`` where a newer incarnation of the producer has said hello."""
        current = self[producer].epoch
        if epoch < current:
            raise Refused(
                "stale_epoch",
                f"producer {producer}: expected an epoch of at least {current}, got {epoch}; a newer process has "
                "taken this name over: stop this one, or start it with a larger epoch",
                epoch=current,
            )

    # -- which message comes next --------------------------------------------------------------------------------

    def is_duplicate(self, producer: str, seq: int) -> bool:
        """Whether the message is stored already."""
        return seq <= self[producer].stored

    def check_sequence(self, producer: str, seq: int, first: int | None = None, held: int | None = None) -> None:
        """Raise Refused ``gap`` unless a message's first number, seq unless given, is the next one.

        held: the last number of the earlier messages that are held back, if any.
        """
        expected = (self[producer].stored if held is None else held) + 1
        begins = seq if first is None else first
        if begins != expected:
            got = f"seq {seq}" if first is None else f"first {first} (seq {seq})"
            raise Refused(
                "gap",
                f"producer {producer}: expected seq {expected}, got {got}; continue from {expected}",
                seq=seq,
                retryable=True,
                expected=expected,
            )

    def barrier_holds(self, barrier: Mapping[str, int] | None) -> bool:
        """Whether every producer of a barrier has its sequence number stored and synced."""
        return all(name in self and self[name].durable >= seq for name, seq in (barrier or {}).items())

    def unmet(self, task: str, barrier: Mapping[str, int] | None) -> str:
        """What a boundary's barrier waits for, as text."""
        late = {n: s for n, s in (barrier or {}).items() if n not in self or self[n].durable < s}
        far = (f"{n!r} to reach {s} (now {self[n].durable if n in self else 0})" for n, s in late.items())
        return f"the boundary of {task!r} waits for producer {', '.join(far)}"

    # -- what was stored -----------------------------------------------------------------------------------------

    def advance(self, producer: str, epoch: int, seq: int) -> None:
        """A message is in the log."""
        state = self.setdefault(producer, ProducerState())
        state.epoch = max(state.epoch, epoch)
        state.stored = max(state.stored, seq)

    def synced(self) -> None:
        """Everything stored so far has reached the disk."""
        for state in self.values():
            state.durable = state.stored

    def applied(self, sequences: Mapping[str, int]) -> None:
        """A checkpoint holds everything up to these sequence numbers."""
        for name, seq in sequences.items():
            self.setdefault(name, ProducerState()).applied = seq
