"""What people are told of the daemon that is followed: in the log and among the events, once, and again when it changes."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable

import structlog

PATIENCE_SECONDS = 5.0  # after the start, until a daemon that was never heard is said not to be
LOOK_SECONDS = 30.0  # between two look-ups of a name


def unheard(endpoint: str, name: str | None) -> str:
    """That a daemon is not heard; name: what is wrong with its host's name, or None."""
    return f"the daemon at {endpoint} is not heard" + ("" if name is None else f": {name}")


class HostName:
    """Whether a tcp endpoint's host has an address. problem: why not, or None, as long as that is not known."""

    def __init__(self, endpoint: str, clock: Callable[[], float] = time.monotonic) -> None:
        kind, _, rest = endpoint.partition("://")
        self.host = rest.rpartition(":")[0].strip("[]") if kind == "tcp" else ""
        self.problem: str | None = None
        self._clock, self._looked = clock, float("-inf")
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Look it up once in a while, beside everything else: it may take long, and nothing waits for it."""
        now = self._clock()
        if not self.host or now - self._looked < LOOK_SECONDS or (self._thread is not None and self._thread.is_alive()):
            return
        self._looked = now
        self._thread = threading.Thread(target=self._resolve, name="host name", daemon=True)
        self._thread.start()

    def _resolve(self) -> None:
        try:
            socket.getaddrinfo(self.host, None)
            self.problem = None
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            self.problem = f"the host name {self.host!r} cannot be resolved ({reason})"


class Tidings:
    """Says what has changed. note: takes an event's kind and text."""

    def __init__(
        self, endpoint: str, note: Callable[[str, str], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.endpoint, self._note, self._clock = endpoint, note, clock
        self._begun = clock()
        self._connected: bool | None = None
        self._problem: str | None = None
        self._never: str | None = None  # what was said of a daemon that was never heard

    def tell(self, connected: bool, problem: str | None, name: str | None, serves: bool) -> None:
        """How it is now. problem: why the daemon cannot be followed. name: what is wrong with its host's name. serves:
        whether there is anything to predict with."""
        meanwhile = "predictions go on from what is here" if serves else "there is nothing to predict with yet"
        if problem != self._problem:
            self._of_problem(problem, connected, meanwhile)
        if connected and self._connected is not True:
            structlog.get_logger().info("the daemon is heard", follows=self.endpoint)
            self._note("heard", f"the daemon at {self.endpoint} is heard")
        elif not connected and self._connected:
            self._lost("the daemon is not heard any more", meanwhile)
        elif not connected and self._connected is None and problem is None:
            self._of_nobody(name, meanwhile)
        self._connected = True if connected else None if self._connected is None else False

    def _of_problem(self, problem: str | None, connected: bool, meanwhile: str) -> None:
        self._problem = problem
        log = structlog.get_logger()
        if problem is None and connected:
            log.info("the daemon can be followed again", follows=self.endpoint)
        elif problem is not None:
            log.warning("the daemon cannot be followed now", follows=self.endpoint, reason=f"{problem}; {meanwhile}")
            self._note("failed", f"the daemon cannot be followed now: {problem}")

    def _of_nobody(self, name: str | None, meanwhile: str) -> None:
        """The daemon was never heard."""
        reason = name or "nothing answers there as a daemon does; expected its endpoints.predict"
        if self._clock() - self._begun >= PATIENCE_SECONDS and reason != self._never:
            self._never = reason
            self._lost("the daemon is not heard", f"{reason}; {meanwhile}")

    def _lost(self, text: str, reason: str) -> None:
        structlog.get_logger().warning(text, follows=self.endpoint, reason=reason)
        self._note("lost", f"{text.replace('daemon', f'daemon at {self.endpoint}', 1)}; {reason}")
