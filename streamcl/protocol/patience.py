"""How long a client goes on waiting: until nothing has moved for so many seconds.

Pure bookkeeping: the time, in seconds of a clock that never goes back, is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamcl.protocol.messages import Nack


@dataclass(slots=True)
class Patience:
    """How long a wait may last without progress, and the daemon's last reason for it.

    seconds: the client's timeout. since: when something last moved. refusal, no_room: what is refused again and again,
    although it may be sent again. heard: whether anything was said since.
    """

    seconds: float
    since: float
    words: str | None = None
    refusal: Nack | None = None
    no_room: str | None = None
    heard: bool = False

    def moved(self, now: float) -> None:
        """There was progress, or something new is waited for."""
        self.since, self.heard = now, False
        self.words = self.refusal = self.no_room = None

    def told(self, working: bool, waiting: str | None, now: float) -> None:
        """Of a status or welcome: the daemon is at work, or says why it is not."""
        before, self.heard = self.words, True
        self.words = waiting
        another = waiting is not None and before is not None and waiting != before
        if self.refusal is None and (working or another):
            self.since = now

    @property
    def end(self) -> float:
        """When it is over, unless something moves before."""
        return self.since + self.seconds

    def reason(self) -> str:
        """Why the wait has ended."""
        if not self.heard and self.words is None:
            return f"no answer for {self.seconds:g} s"
        words = self.words or self.no_room or "the daemon has nothing to do"
        return f"there has been no progress for {self.seconds:g} s: {words}"
