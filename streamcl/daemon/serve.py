"""``streamcl serve`` and ``follow``: start-up, main loop, shutdown. Supervises the working processes and does nothing else.

Three work: ingest, trainer and predictor; on a follower two, follower and predictor. Trainer and predictor need PyTorch,
which takes long to import: where the system can
(Linux), a nursery imports it once and they are forked from it, at the start and whenever one of them died.

Guarantees: one daemon a state directory; `daemon.json` is there exactly while the daemon is ready; a process that
dies, or makes no progress, is started again, after a growing pause, and one that dies again and again is a problem that
`status` and readiness show, whatever it dies of; starting is progress as long as it takes processor time; SIGTERM and
SIGINT drain for at most `DRAIN_SECONDS`, a second one stops at once; SIGHUP has policy, token and certificate read again
(where none is configured and no service manager listens, it ends the daemon, as a closed terminal should). Killed itself,
its children end too, since their channels close. A service manager is told all of it, and its watchdog is fed by the
trainer's words.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import structlog

from streamcl import keys
from streamcl.config import Config, Security
from streamcl.daemon import nursery, words
from streamcl.daemon.channel import Channel, wait
from streamcl.daemon.logs import configure
from streamcl.daemon.notify import SHORTEST_WATCHDOG, Notifier
from streamcl.daemon.nursery import Begun
from streamcl.daemon.processes import Child, reap
from streamcl.daemon.signals import Signals
from streamcl.errors import ConfigError, Damaged
from streamcl.handshake import client_keys
from streamcl.storage import checkpoint, published
from streamcl.storage.lock import StateLock
from streamcl.storage.mirror import Mirror
from streamcl.storage.state import StateDirectory

DRAIN_SECONDS = 30.0
LOCK_SECONDS = 60.0  # the children of a killed daemon end once they notice: on a busy machine, behind a long step
WATCH_SECONDS = 60.0  # without a sign of life of ingest or the predictor
LOOK_SECONDS = 1.0
EXTENSION_SECONDS = 30.0  # asked of the service manager again and again while the trainer finishes
FATAL = 3


def serve(config: Config, begun: Begun | None) -> int:
    """Run the daemon until it is stopped; returns the exit status (0, or 1 after a fatal error).

    begun: the nursery (`nursery.begin`), or None where there is none, so that every process is started by itself.
    """
    configure("serve", config.log)
    config = _absolute(config)
    check_secrets(config.security)
    if config.follow.endpoint:
        client_keys(config.follow.key or None, config.follow.server_key or None)
    lock = StateLock.acquire(Path(config.state_dir), LOCK_SECONDS)
    try:
        Path(config.state_dir).chmod(0o700)  # others can have made it, and what is in it is nobody else's business
        return Supervisor(config, lock, Notifier(os.environ), begun).run()
    finally:
        lock.release()


def check_secrets(security: Security) -> None:
    """What the processes will read, read once before any of them starts; raises ConfigError."""
    if security.server_key:
        from streamcl.daemon.guard import Guard

        Guard(security).load()
    if security.http_token or security.http_certificate:
        from streamcl.daemon.http import read_secrets

        read_secrets(security)


def _absolute(config: Config) -> Config:
    files = {name: str(Path(path).resolve()) for name, path in msgspec.to_builtins(config.security).items() if path}
    security = msgspec.structs.replace(config.security, **files)
    return msgspec.structs.replace(config, state_dir=str(Path(config.state_dir).resolve()), security=security)


def _check_watchdog(patience: float | None, ours: float) -> None:
    """A service manager less patient than this supervisor would restart the whole daemon, not one process."""
    if patience is not None and patience <= max(ours, SHORTEST_WATCHDOG):
        structlog.get_logger().warning(
            "the service manager's watchdog ends the daemon before the trainer alone is started again; expected "
            "WatchdogSec above train.watchdog_seconds",
            watchdog_sec=patience,
            watchdog_seconds=ours,
        )


@dataclass(slots=True)
class Supervisor:
    """Starts, watches and ends the working processes.

    What holds it together: one loop in which signals, words, deaths and deadlines all bear on one question, which processes
    shall run; what can be said of a single one is `Child`'s. Which these are, a follower's or not, is said here alone.
    """

    config: Config
    lock: StateLock
    manager: Notifier
    begun: Begun | None
    children: dict[str, Child] = field(default_factory=dict)
    workers: dict[str, Child] = field(default_factory=dict)
    announced: bool = False
    stopping: str | None = None
    deadline: float = float("inf")
    signals: Signals = field(default_factory=Signals)
    failure: str | None = None
    activity: str = "recovering"
    problem: str | None = None
    ended: bool = False
    troubles: dict[str, str | None] = field(default_factory=dict)

    def run(self) -> int:
        """Start-up, main loop, shutdown."""
        self._start_up()
        try:
            while not self.ended:
                self._wait()
                self._hear()
                self._tend()
                self._tell_manager()
        finally:
            self._shut_down()
        return 1 if self.failure else 0

    # -- start-up ------------------------------------------------------------------------------------------------

    def _start_up(self) -> None:
        self.signals.watch(hang_up=self.manager.present or self._reloadable)
        _check_watchdog(
            self.manager.watchdog_seconds, WATCH_SECONDS if self.follows else self.config.train.watchdog_seconds
        )
        self.manager.status("starting")
        state = StateDirectory(Path(self.config.state_dir))
        if self.follows:
            mirror = Mirror(state.path)
            mirror.recover()  # before anybody reads what is there
            mirror.note(self.config.follow.endpoint)
            self.workers = {role: Child(role) for role in ("follower", "predictor")}
        else:
            try:
                checkpoint.check_is_there(state)  # before anybody takes the rest for a beginning
            except Damaged as error:
                raise ConfigError(str(error)) from None
            for path in (state.parameters, state.posterior):  # of another life, perhaps of another checkpoint
                published.clear(path)
            ingest_side, trainer_side = Channel.pair()
            self.workers = {
                "ingest": Child("ingest", ingest_side),
                "trainer": Child("trainer", trainer_side),
                "predictor": Child("predictor"),
            }
        self.children = dict(self.workers)
        if self.begun is not None:
            self.children = {nursery.ROLE: Child(nursery.ROLE), **self.workers}
            self.children[nursery.ROLE].take(self.begun, self.config)
        self._start_due()

    @property
    def follows(self) -> bool:
        """Whether this is a follower."""
        return bool(self.config.follow.endpoint)

    @property
    def front(self) -> str:
        """The role of the process that speaks for this daemon."""
        return "follower" if self.follows else "ingest"

    @property
    def main(self) -> Child:
        """The process whose life is the daemon's: it is asked to end first, and feeds the watchdog."""
        return self.children["follower" if self.follows else "trainer"]

    @property
    def _reloadable(self) -> bool:
        """Whether there is a file that SIGHUP has read again."""
        security = self.config.security
        return bool(security.policy or security.http_token or security.http_certificate)

    # -- main loop -----------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        channels = [child.channel for child in self.children.values() if child.channel and not child.channel.closed]
        due = [child.restart_at for child in self.children.values() if self._missing(child)]
        timeout = min([self.deadline, *due]) - time.monotonic()
        wait([self.signals.wake, *channels], min(timeout, LOOK_SECONDS))
        self.signals.calm()

    def _missing(self, child: Child) -> bool:
        """Whether it can be started: it does not run, shall, and the nursery is ready if it comes from there."""
        if child.process is not None or child.expected_to_end:
            return False
        mother = self._mother(child)
        return mother is None or (mother.ready is not None and mother.alive)

    def _mother(self, child: Child) -> Child | None:
        """The nursery, for what is forked from it."""
        return self.children.get(nursery.ROLE) if child.role in nursery.MODULES else None

    def _start_due(self) -> None:
        for child in self.children.values():
            if self._missing(child) and time.monotonic() >= child.restart_at:
                mother = self._mother(child)
                child.start(self.config, self.lock.fd, mother.channel if mother else None)

    def _hear(self) -> None:
        for child in self.children.values():
            if child.channel is None:
                continue
            child.channel.flush()
            for word in child.channel.receive():
                child.heard = child.spoke = time.monotonic()
                self._take(child, word)
        if self.signals.hung_up:
            self.signals.hung_up = False
            self._reload()
        if self.signals.asked and self.stopping is None:
            self._stop(drain=True, deadline=time.monotonic() + DRAIN_SECONDS)
        elif self.signals.asked > 1:
            self.ended = True

    def _reload(self) -> None:
        """Have policy, token and certificate read again; ingest says how that went."""
        self.manager.reloading()
        if self._reloadable:
            self._tell(self.front, words.Reload())
            self._tell("predictor", words.Reload())
        else:
            structlog.get_logger().info("nothing to read again: the configuration names no policy, token or certificate")
            self._reloaded(None)

    def _reloaded(self, problem: str | None) -> None:
        self.problem = None if problem is None else f"reload refused, the old settings remain: {problem}"
        if self.announced:
            self.manager.say("READY=1")

    def _take(self, child: Child, word: words.Word) -> None:
        match word:
            case words.Ready():
                self._ready(child, word)
            case words.Born(role=role, pid=pid):
                self._born(self.children[role], pid)
            case words.Stop(drain=drain):
                self._stop(drain=drain, deadline=float("inf"))
            case words.Fatal(reason=reason):
                self.failure = reason
                structlog.get_logger().error("cannot go on", role=child.role, reason=reason)
                self._stop(drain=False, deadline=time.monotonic() + DRAIN_SECONDS)
            case words.Alive(activity=activity):
                self.activity = self.activity if activity is None else activity
                child.passed, child.at_work = word.checkpointed, word.at_work
            case words.Reloaded(problem=problem):
                self._reloaded(problem)
            case words.TurnedAway() | words.Serving():
                self._tell(self.front, word)
            case words.Followed():
                self._tell("predictor", word)
            case words.Failed(reason=reason):
                self._tell(self.front, words.Crashed(role=child.role, reason=reason))
            case _:
                words.unexpected(word, "supervisor")

    def _born(self, child: Child, pid: int) -> None:
        child.born(pid, self.config)
        if self.stopping is not None:  # which it was not there to be told
            child.tell(words.Stop(drain=self.stopping == "drain"))

    def _ready(self, child: Child, word: words.Ready) -> None:
        seconds = round(time.monotonic() - child.started, 3)
        structlog.get_logger().debug("process ready", child=child.role, seconds=seconds)
        child.ready, child.ready_at = word, time.monotonic()
        if child.role == self.front:
            self.troubles = {}  # it knows of none
        for name, endpoint in word.endpoints.items():  # a restart binds the same ports again
            endpoints = msgspec.structs.replace(self.config.endpoints, **{name: endpoint})
            self.config = msgspec.structs.replace(self.config, endpoints=endpoints)
        if not self.announced and child.role == self.front:
            self._tell(self.front, words.Begin())  # not after a restart of it alone: nothing has been corrected then
        if self.announced and child.role == self.front:
            self._reloaded(None)  # it has read everything afresh; a reload that it died in is over
        if not self.announced and all(child.ready for child in self.workers.values()):
            self._announce()

    def _announce(self) -> None:
        endpoints = msgspec.to_builtins(self.config.endpoints)
        server = self.config.security.server_key
        known = {"pid": os.getpid(), "endpoints": endpoints}
        if server:
            known["public_key"] = keys.load(Path(server)).public  # local clients find it here
        path = StateDirectory(Path(self.config.state_dir)).daemon
        aside = path.with_suffix(".tmp")
        aside.write_text(json.dumps(known) + "\n")
        aside.replace(path)
        self.announced = True
        self.manager.say("READY=1")
        structlog.get_logger().info("ready", state_dir=self.config.state_dir, **endpoints)

    def _tend(self) -> None:
        """Start again what died; while stopping, end the processes in their order."""
        for child in self.children.values():
            self._watch(child)
            if child.process is not None and not child.alive and not child.expected_to_end:
                self._died(child)
            self._tell_trouble(child)
        self._start_due()
        if not any(child.unborn for child in self.children.values()):  # of which one may be dead already
            reap([child.process.pid for child in self.children.values() if child.process and child.process.pid])
        if self.stopping is not None:
            self._go_on_stopping()

    def _watch(self, child: Child) -> None:
        """End a process that makes no progress; it is then started again like one that died."""
        patience = self.config.train.watchdog_seconds
        if child.role != "trainer":
            patience = min(patience, WATCH_SECONDS)
        if child.starting():
            child.heard = time.monotonic()
        if child.process is not None and child.alive and time.monotonic() - child.heard > patience:
            structlog.get_logger().error("no progress; ending the process", role=child.role, seconds=patience)
            child.watchdog = f"by this daemon's watchdog, having made no progress for {patience:g} s"
            child.process.kill()
            child.process.wait()

    def _died(self, child: Child) -> None:
        status = child.bury()
        structlog.get_logger().error("process ended", role=child.role, status=status)
        if child.role == nursery.ROLE:
            for each in self.workers.values():
                each.stillborn(status)
        if self.stopping is None:
            child.died(status)
        child.expected_to_end = status == FATAL or self.stopping is not None

    def _tell_trouble(self, child: Child) -> None:
        """Have ingest show that a process dies again and again, and that it lives again."""
        trouble = child.trouble()
        if trouble == self.troubles.get(child.role) or not self.children[self.front].ready:
            return
        self.troubles[child.role] = trouble
        self._tell(self.front, words.Trouble(role=child.role, reason=trouble))
        if trouble is None:
            structlog.get_logger().info("the process has recovered", role=child.role)
        else:
            structlog.get_logger().error("a process dies again and again", role=child.role, reason=trouble)

    # -- the service manager -------------------------------------------------------------------------------------

    def _tell_manager(self) -> None:
        """The daemon's state, that it is alive, and, while the trainer finishes, that stopping takes longer."""
        self.manager.status(self._status())
        self.manager.feed(self.main.spoke)
        if self.stopping is not None and self.main.alive:
            self.manager.extend(EXTENSION_SECONDS)

    def _status(self) -> str:
        if self.failure is not None:
            return f"cannot go on: {self.failure}"
        if self.stopping is not None:
            return f"stopping: {self.activity if self.main.alive else 'closing'}"
        for child in self.children.values():
            if (trouble := child.trouble()) is not None:
                return trouble
        missing = [child.role for child in self.workers.values() if child.ready is None or not child.alive]
        if missing:
            return f"{'starting' if not self.announced else 'starting again'}: {', '.join(missing)}"
        return self.activity if self.problem is None else f"{self.activity}; {self.problem}"

    # -- shutdown ------------------------------------------------------------------------------------------------

    def _stop(self, drain: bool, deadline: float) -> None:
        """Ask the trainer to finish; ingest takes nothing more in. A follower has nothing to finish."""
        self.stopping, self.deadline = "drain" if drain else "now", deadline
        self.manager.say("STOPPING=1")
        structlog.get_logger().info("stopping", drain=drain)
        if not self.follows:
            self._tell("ingest", words.Close())
        self.main.tell(words.Stop(drain=drain))
        self.main.expected_to_end = True

    def _go_on_stopping(self) -> None:
        if not self.main.alive:
            self.ended = True
        elif time.monotonic() > self.deadline and self.stopping == "drain":
            structlog.get_logger().warning("drain took too long; the rest is learned after the next start")
            self._stop(drain=False, deadline=time.monotonic() + DRAIN_SECONDS)
        elif time.monotonic() > self.deadline:
            self.ended = True

    def _tell(self, role: str, word: words.Word) -> None:
        self.children[role].tell(word)

    def _shut_down(self) -> None:
        """End what still runs: ask, then kill; everything durable is on disk already."""
        StateDirectory(Path(self.config.state_dir)).daemon.unlink(missing_ok=True)
        mother = self.children.get(nursery.ROLE)
        if mother is not None and mother.process is not None:
            mother.process.kill()  # it has nothing to finish
        for child in self.children.values():
            self._tell(child.role, words.Stop(drain=False))
        patience = time.monotonic() + (0.0 if self.signals.asked > 1 else 5.0)
        for child in self.children.values():
            if child.process is not None and not child.unborn:  # which ends with its channel, if it is born at all
                try:
                    child.process.wait(max(0.0, patience - time.monotonic()))
                except subprocess.TimeoutExpired:
                    child.process.kill()
                    child.process.wait()
        if self.failure:
            raise ConfigError(self.failure)
