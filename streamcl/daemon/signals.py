"""What signals ask of the supervisor.

Guarantees: a signal only counts, and wakes whoever waits on `wake`; what it comes to is decided by the loop that waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass

ENDING = (signal.SIGTERM, signal.SIGINT)


@dataclass(slots=True)
class Signals:
    """asked: how often to end. hung_up: whether SIGHUP has come, until someone clears it. wake: to be waited on."""

    asked: int = 0
    hung_up: bool = False
    wake: int = -1

    def watch(self, hang_up: bool) -> None:
        """From now on, in the main thread. hang_up: SIGHUP asks for something; else it ends the process, as ever."""
        self.wake, write = os.pipe()
        os.set_blocking(self.wake, False)
        os.set_blocking(write, False)
        signal.set_wakeup_fd(write)
        for number in (*ENDING, signal.SIGCHLD, *([signal.SIGHUP] if hang_up else [])):
            signal.signal(number, self._note)

    def _note(self, number: int, frame: object) -> None:
        self.hung_up = self.hung_up or number == signal.SIGHUP
        self.asked += number in ENDING

    def calm(self) -> None:
        """Whoever waits has woken."""
        with contextlib.suppress(BlockingIOError):
            os.read(self.wake, 4096)
