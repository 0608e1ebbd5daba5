"""One of the daemon's processes as its supervisor sees it: started, heard, ended, its deaths counted.

Guarantees: a process is our child and its end is told to us, whether we started it or the nursery forked it; none is
forgotten half born: what the nursery has not told the number of never gets a configuration, and ends with its channel. What
died is started again after a growing pause; starting is progress as long as it takes processor time.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec
import structlog

from streamcl.config import Config
from streamcl.daemon import linux, words
from streamcl.daemon.channel import Channel
from streamcl.daemon.nursery import Begun, spawn

FIRST_PAUSE, LONGEST_PAUSE = 0.2, 30.0
DEATHS = 3  # one after another before it is a problem
DEATHS_SECONDS = 600.0  # between one and the next, else they are unrelated
STEADY_SECONDS = 20.0  # after which a process that is ready, and passed what the one before died at, counts as living
START_SECONDS = 600.0  # of processor time; what is not ready by then never will be
LOOK_SECONDS = 0.005  # between two looks at a process that is to end
SHOWN = {
    "nursery": "nursery (the process that trainer and predictor are forked from)"
}  # where a role's name says too little


class Forked:
    """A process that the nursery was asked for: the part of `subprocess.Popen` that a supervisor needs.

    pid: None until the nursery has told it. returncode: as Popen has it.
    """

    def __init__(self) -> None:
        self.pid: int | None = None
        self.returncode: int | None = None

    def stillborn(self, status: int | None) -> None:
        """It will not come: the nursery ended first, with this status."""
        if self.pid is None:
            self.returncode = -signal.SIGKILL if status is None else status

    def poll(self) -> int | None:
        """What it ended with, or None."""
        if self.returncode is None and self.pid is not None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """What it ended with, once it has; raises TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("forked process", timeout or 0.0)
            time.sleep(LOOK_SECONDS)
        return status

    def kill(self) -> None:
        """End it at once."""
        if self.pid is not None and self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


@dataclass(slots=True)
class Child:
    """One process, its channel, and when it may be started again.

    process: None where there is none, at first or after a death. busy: processor time taken so far. deaths: when it died,
    the last few; cause: of the last. watchdog: why it was ended. passed: up to which record the trainer's checkpoint has
    come, fatal_at: had come when it died last. at_work: whether it has something to learn.
    """

    role: str
    side: socket.socket | None = None
    process: subprocess.Popen[bytes] | Forked | None = None
    channel: Channel | None = None
    ready: words.Ready | None = None
    started: float = 0.0
    heard: float = 0.0
    spoke: float = float("-inf")
    pause: float = FIRST_PAUSE
    restart_at: float = 0.0
    expected_to_end: bool = False
    ready_at: float = float("inf")
    busy: float = 0.0
    deaths: list[float] = field(default_factory=list)
    cause: str = ""
    watchdog: str | None = None
    passed: int = -1
    fatal_at: int = -1
    at_work: bool = False

    def start(self, config: Config, lock: int, nursery: Channel | None = None) -> None:
        """Start the process, or ask the nursery for it; it holds the state directory's lock and is handed its
        configuration."""
        side = [self.side.fileno()] if self.side else []
        if nursery is None:
            self.take(spawn(self.role, side, [lock]), config)
            return
        ours, theirs = Channel.pair()
        with theirs:
            nursery.send(words.Fork(role=self.role), [lock, theirs.fileno(), *side])
        self._begin(Forked(), ours)

    def take(self, begun: Begun, config: Config) -> None:
        """Take on a process that has been started."""
        self._begin(begun.process, begun.end)
        self._configure(config)

    def _begin(self, process: subprocess.Popen[bytes] | Forked, end: socket.socket) -> None:
        self.process, self.channel, self.ready = process, Channel(end), None
        self.started = self.heard = time.monotonic()
        self.busy, self.ready_at, self.watchdog, self.at_work = 0.0, float("inf"), None, False

    def born(self, pid: int, config: Config) -> None:
        """The nursery has forked the process."""
        if self.unborn:
            self.process.pid = pid  # type: ignore[union-attr]
            self._configure(config)

    def _configure(self, config: Config) -> None:
        self.tell(words.Configuration(tree=msgspec.to_builtins(config)))
        structlog.get_logger().debug("process started", child=self.role, pid=self.process.pid)  # type: ignore[union-attr]

    @property
    def unborn(self) -> bool:
        """Whether the nursery has been asked for it and has not forked it yet."""
        return self.process is not None and self.process.pid is None and self.process.poll() is None

    def tell(self, word: words.Word) -> None:
        """Say a word to the process; one that is not there does not hear it."""
        if self.channel is not None and self.process is not None and self.process.pid is not None:
            self.channel.send(word)

    def schedule_restart(self) -> None:
        """A process that lived long is restarted at once, one that keeps dying after ever longer pauses."""
        if time.monotonic() - self.started > LONGEST_PAUSE:
            self.pause = FIRST_PAUSE
        self.restart_at = time.monotonic() + self.pause
        self.pause = min(2 * self.pause, LONGEST_PAUSE)

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self.process is not None and self.process.poll() is None

    def stillborn(self, status: int | None) -> None:
        """The nursery has ended, with this status; what it was asked for will not come."""
        if isinstance(self.process, Forked):
            self.process.stillborn(status)

    def bury(self) -> int | None:
        """Take note that the process has ended; returns what with."""
        status = self.process.returncode if self.process else None
        if self.process is not None and self.process.pid is None and self.channel is not None:
            self.channel.close()  # so that one that was forked after all, and that nobody knows, ends too
        self.process = None
        self.schedule_restart()
        return status

    def died(self, status: int | None) -> None:
        """Count a death; those long before it have nothing to do with it."""
        now = time.monotonic()
        if self.deaths and now - self.deaths[-1] > DEATHS_SECONDS:
            self.deaths = []
        self.deaths = [*self.deaths, now][-DEATHS:]
        self.cause = self.watchdog or death(status)
        self.fatal_at = self.passed

    def trouble(self) -> str | None:
        """Why this is a process that dies again and again, or None; of how many deaths does not change the words."""
        if len(self.deaths) < DEATHS or self._lives():
            return None
        name = SHOWN.get(self.role, self.role)
        return (
            f"the {name} has died again and again, {DEATHS} times or more, the last time {self.cause}; it is started "
            "again after a pause (the daemon's log has the reason; `streamcl doctor` examines a stopped daemon's state)"
        )

    def _lives(self) -> bool:
        """Whether it has lived since: it is ready and, if it learns, has come past where the one before it died."""
        if self.passed > self.fatal_at >= 0:
            self.deaths = []
            return True
        return self.alive and time.monotonic() - self.ready_at > STEADY_SECONDS and not self.at_work

    def starting(self) -> bool:
        """Whether it is not ready yet, but getting there: it takes processor time, however little there is, or is the
        nursery's to bring forth, which is watched itself."""
        if self.ready is not None or self.process is None:
            return False
        if self.process.pid is None:
            return True
        before, self.busy = self.busy, linux.processor_seconds(self.process.pid)
        return before < self.busy < START_SECONDS


def death(status: int | None) -> str:
    """What a process died of, as text."""
    if status is None or status >= 0:
        return f"with exit status {status}"
    name = signal.Signals(-status).name if -status in set(signal.Signals) else "unknown"
    killed = " (kill -9, or the kernel for lack of memory)" if -status == signal.SIGKILL else ""
    return f"by signal {-status}, {name}{killed}"


def reap(known: Collection[int]) -> None:
    """Take note of the ends of orphans that came to us (`linux.become_subreaper`) and that nobody waits for."""
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)) and ended.si_pid not in known:
            os.waitpid(ended.si_pid, os.WNOHANG)
