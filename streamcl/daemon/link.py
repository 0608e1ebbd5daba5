"""Ingest's ends of the channels to the supervisor and the trainer: what is asked of them, and what they say.

Guarantees: a trainer that starts hears again what the one before it was asked and had not answered. Here is the one truth
of whether training is paused and whether the daemon is closing. Shows nothing, stores nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from streamcl.daemon import words
from streamcl.daemon.channel import Channel


class Link:
    """Says words and yields those that come."""

    def __init__(self, up: Channel, side: Channel) -> None:
        self.up, self.side = up, side
        self.paused = self.closing = False
        self.trainers = 0  # that have started
        self._checkpoints: set[int] = set()
        self._asked = 0

    def hear(self) -> Iterator[words.Word]:
        """Every word that has come; the supervisor's first."""
        for channel in (self.up, self.side):
            channel.flush()
            for word in channel.receive():
                if isinstance(word, words.Close):
                    self.closing, self.paused = True, False  # what is stored is learned before the end, paused or not
                yield word

    @property
    def broken(self) -> bool:
        """Whether the supervisor is gone."""
        return self.up.closed

    # -- to the trainer ------------------------------------------------------------------------------------------

    def durable(self, lsn: int) -> None:
        """The log is synced below this record."""
        self.side.send(words.Durable(lsn=lsn))

    def pause(self, paused: bool) -> bool:
        """Training stops at the end of its batch, or goes on; whether that is a change."""
        changes, self.paused = paused != self.paused, paused
        self.side.send(words.Pause() if paused else words.Resume())
        return changes

    def checkpoint(self) -> int:
        """Ask for a checkpoint; the number of the question."""
        self._asked += 1
        self._checkpoints.add(self._asked)
        self.side.send(words.WriteCheckpoint(number=self._asked))
        return self._asked

    def checkpointed(self, word: words.Checkpointed) -> None:
        """These questions are answered."""
        self._checkpoints.difference_update(word.numbers)

    def try_model(self, number: int) -> None:
        """Ask for a verdict on the model, on the rows that have been put down for it."""
        self.side.send(words.TryModel(number=number))

    def greet(self, durable: int) -> None:
        """A trainer has (re)started: say how far the log goes and what it was asked before."""
        self.trainers += 1
        self.durable(durable)
        if self.paused:
            self.side.send(words.Pause())
        for number in sorted(self._checkpoints):
            self.side.send(words.WriteCheckpoint(number=number))

    # -- to the supervisor ---------------------------------------------------------------------------------------

    def ready(self, endpoints: Mapping[str, str]) -> None:
        """Everything is bound."""
        self.up.send(words.Ready(endpoints=dict(endpoints)))

    def alive(self) -> None:
        """A sign of life, in every turn of the loop."""
        self.up.alive(words.Alive())

    def stop(self, drain: bool) -> None:
        """An operator asks for the daemon's end."""
        self.up.send(words.Stop(drain=drain))

    def reloaded(self, problem: str | None) -> None:
        """How reading again went."""
        self.up.send(words.Reloaded(problem=problem))
