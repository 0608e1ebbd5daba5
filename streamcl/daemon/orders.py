"""What the trainer has been told: how far the log is durable, whether to pause or to stop, which checkpoints are asked for.

The other end of `link`. Acts on nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from streamcl.daemon import words
from streamcl.daemon.channel import Channel


class Orders:
    """Taken in as they are heard, until something else is said."""

    def __init__(self, up: Channel, side: Channel) -> None:
        self.up, self.side = up, side
        self.durable = 0
        self.paused = False
        self.stopping: Literal["drain", "now"] | None = None
        self.checkpoints: list[int] = []

    def hear(self) -> Iterator[words.Pause | words.Resume | words.TryModel]:
        """Take in all that has come; those words that call for an answer at once."""
        self.side.flush()
        for word in self.side.receive():
            match word:
                case words.Durable(lsn=lsn):
                    self.durable = lsn
                case words.WriteCheckpoint(number=number):
                    self.checkpoints.append(number)
                case words.Pause() | words.Resume():
                    self.paused = isinstance(word, words.Pause)
                    yield word
                case words.TryModel():
                    yield word
                case _:
                    words.unexpected(word, "trainer")
        for word in self.up.receive():
            if not isinstance(word, words.Stop):
                words.unexpected(word, "trainer")
            self.stopping = "drain" if word.drain else "now"

    @property
    def abandoned(self) -> bool:
        """Whether the supervisor is gone."""
        return self.up.closed

    def take_checkpoints(self) -> list[int]:
        """Those that a checkpoint written now is for."""
        taken, self.checkpoints = self.checkpoints, []
        return taken

    def drained(self, next_lsn: int) -> bool:
        """Whether to end now: at once, or since all below `next_lsn` is learned and that is all there is."""
        return self.stopping == "now" or (self.stopping == "drain" and next_lsn >= self.durable)
