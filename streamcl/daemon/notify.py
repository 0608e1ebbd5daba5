"""What the daemon tells the service manager that started it: sd_notify(3), systemd's datagrams.

Guarantees: nothing is sent if no manager listens (NOTIFY_SOCKET is unset); a manager that is gone or slow never holds
the daemon up; child processes do not inherit the socket's name, so that only the supervisor speaks. The watchdog is fed by
progress: if the trainer has sent nothing since it was last fed, it is not fed.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Callable, MutableMapping

MICRO = 1_000_000
NAMES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")  # of the environment, for the supervisor alone
SHORTEST_WATCHDOG = 10.0  # seconds; a trainer speaks every two, so that anything shorter would end healthy daemons


class Notifier:
    """The connection to the service manager; construct it once, from the supervisor's environment, and it clears that.

    Raises nothing: a setting that is not for this process, or not understood, counts as no manager.
    """

    def __init__(self, environment: MutableMapping[str, str], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._address = environment.pop("NOTIFY_SOCKET", "")
        if self._address.startswith("@"):  # an abstract name
            self._address = "\0" + self._address[1:]
        self.present = self._address[:1] in ("/", "\0")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) if self.present else None
        self.watchdog_seconds = _watchdog(environment) if self.present else None
        self._fed = float("-inf")
        self._status = ""

    def say(self, *assignments: str) -> None:
        """Send lines such as ``READY=1`` in one datagram, or lose them."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.sendto("\n".join(assignments).encode(), socket.MSG_DONTWAIT, self._address)

    def status(self, text: str) -> None:
        """One line for `systemctl status`, sent if it has changed."""
        text = " ".join(text.split())
        if text != self._status:
            self._status = text
            self.say(f"STATUS={text}")

    def reloading(self) -> None:
        """A reload has begun; `READY=1` ends it."""
        self.say("RELOADING=1", f"MONOTONIC_USEC={int(self._clock() * MICRO)}")

    def extend(self, seconds: float) -> None:
        """Ask for that much more time; to be repeated within it."""
        self.say(f"EXTEND_TIMEOUT_USEC={int(seconds * MICRO)}")

    def feed(self, heard: float) -> None:
        """Feed the watchdog if that is due and the trainer has spoken since the last time (`heard`: when, by the clock)."""
        now = self._clock()
        if self.watchdog_seconds is not None and heard > self._fed and now - self._fed >= self.watchdog_seconds / 2:
            self._fed = now
            self.say("WATCHDOG=1")


def _watchdog(environment: MutableMapping[str, str]) -> float | None:
    """Within how many seconds the manager wants to hear from this process, if it does."""
    interval, pid = environment.pop("WATCHDOG_USEC", ""), environment.pop("WATCHDOG_PID", "")
    meant = pid in ("", str(os.getpid()))
    return int(interval) / MICRO if meant and interval.isdigit() and int(interval) > 0 else None
