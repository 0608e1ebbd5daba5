"""The ingest process: takes messages in, makes them durable, acknowledges; speaks for the daemon to everyone else.

Order, which nothing may change: check everything; append to the log; sync once for the whole group; acknowledge; tell
the trainer. One thread owns the sockets. It never imports torch, so nothing that trains can hold it up.

Here are the wiring and the loop. `endpoint` takes a message in, `stream` and `admin` judge it, `waiting` keeps what must
wait, `journal` stores, `tasks` knows what became of it, `link` speaks with the other processes, `connections` answers
producers, `answers` operators, and `observers` show it all to people.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import zmq
from prometheus_client import CollectorRegistry

from streamcl.config import Config, split_host_port
from streamcl.daemon import words
from streamcl.daemon.admin import Admin
from streamcl.daemon.answers import Answers
from streamcl.daemon.channel import Channel
from streamcl.daemon.chronicle import Chronicle
from streamcl.daemon.endpoint import Port
from streamcl.daemon.guard import Guard
from streamcl.daemon.http import HttpServer
from streamcl.daemon.journal import Journal
from streamcl.daemon.link import Link
from streamcl.daemon.metrics import Metrics
from streamcl.daemon.observers import Observers
from streamcl.daemon.recovery import Found, take_over
from streamcl.daemon.shown import Shown
from streamcl.daemon.sockets import Router, bind_router
from streamcl.daemon.stream import Stream
from streamcl.daemon.tasks import Tasks
from streamcl.daemon.view import View
from streamcl.daemon.waiting import Trials
from streamcl.entries import Closing, Confirmed, by_drift
from streamcl.protocol.session import StreamSession, Terms
from streamcl.storage.audit import Audit
from streamcl.storage.disk import Disk
from streamcl.storage.owners import Owners

IDLE_MS = 1000


def run(config: Config, up: Channel, side: Channel) -> None:
    """The process's main function; returns when the daemon stops."""
    service = start(config, up, side)
    try:
        while not service.ingest.finished:
            service.turn()
    finally:
        service.close()
        zmq.Context.instance().term()


def start(config: Config, up: Channel, side: Channel) -> Service:
    """Recover from disk, bind, and say so; raises Damaged, UnknownFormat, ConfigError."""
    found = take_over(config, Disk(), StreamSession(Terms.of(config)))
    guard, endpoints = Guard(config.security), config.endpoints
    guard.load()
    if guard.secured:
        guard.owners = Owners.recover(found.state.path, found.disk)
    stream, admin = (Router(bind_router(place, guard.gate), guard.gate) for place in (endpoints.stream, endpoints.admin))
    guard.gate.open()
    ingest = Ingest(config, found, Link(up, side), stream, admin, guard, Audit(found.state.audit))
    ingest.begin()
    service = Service(ingest, stream, admin, _show(config, ingest))
    ingest.link.ready({"stream": stream.endpoint, "admin": admin.endpoint, "http": service.http.address})
    return service


def _show(config: Config, ingest: Ingest) -> HttpServer:
    """The HTTP port, over what the observers keep."""
    shown = Shown(ingest.view, ingest.observers.chronicle, ingest.found.state.history)
    address, registry = split_host_port(config.endpoints.http), ingest.metrics.registry
    ingest.http = HttpServer(address, registry, shown.routes(), ingest.view.not_ready, config.security)
    ingest.observers.started(ingest.http.certificate_expiry)
    return ingest.http


@dataclass(slots=True)
class Service:
    """Ingest behind its sockets."""

    ingest: Ingest
    stream: Router
    admin: Router
    http: HttpServer
    _poller: zmq.Poller = field(default_factory=zmq.Poller)

    def __post_init__(self) -> None:
        link = self.ingest.link
        for source in (self.stream.socket, self.admin.socket, link.up.fileno(), link.side.fileno()):
            self._poller.register(source, zmq.POLLIN)

    def turn(self) -> None:
        """Wait until there is something to do, and do it."""
        self._poller.poll(IDLE_MS)
        self.ingest.turn()

    def close(self) -> None:
        """Close the sockets, letting replies on their way go out."""
        self.http.close()
        self.ingest.found.history.close()
        self.stream.close()
        self.admin.close()
        self.ingest.guard.gate.join()


class Ingest:
    """The parts, wired, and one turn of the loop; its ports are its caller's to open and to close."""

    def __init__(
        self,
        config: Config,
        found: Found,
        link: Link,
        stream: Port,
        admin: Port,
        guard: Guard | None = None,
        audit: Audit | None = None,
    ) -> None:
        session, history = found.session, found.history
        self.guard = guard or Guard(config.security)
        self.link, self.session, self.found = link, session, found
        self.journal = Journal(found.writer, session, found.disk, found.state.log)
        self.tasks = Tasks(session, found.state.path, found.standing, found.failures, found.unreadable)
        self.metrics, chronicle = Metrics(CollectorRegistry()), Chronicle(session, history)
        self.view = View(config, session, self.tasks, link, chronicle)
        self.observers = Observers(session, self.tasks, self.view, self.metrics, chronicle, history, audit or Audit())
        judges = (session, self.guard, self.journal, link, self.tasks)
        trials = Trials(session, link, found.state.trial)
        self.stream = Stream(stream, *judges, trials, self.view, self.observers)
        reads = (config, found.state, found.disk, session)
        answers = Answers(*reads, self.view, self.metrics, chronicle, history)
        self.admin = Admin(admin, *judges, answers, self.view, self.observers)
        self.view.unmet = lambda: self.stream.unmet() or self.admin.unmet()
        self.http: HttpServer | None = None
        self.finished = False

    def begin(self) -> None:
        """Show what was found, and have the trainer learn it."""
        self.observers.recovered(self.found.torn)
        self.link.durable(self.journal.durable)
        self.journal.measure()

    def turn(self) -> None:
        """Hear the other processes, take a group in, make it durable, answer; never waits."""
        self.hear()
        self.stream.end_due_soon()
        self.stream.take_group()
        self.stream.release()
        self.admin.take_all()
        self.make_durable()
        if self.journal.look_for_room():
            self.stream.replies.offer_credit()
        self.observers.turned_away(self.guard.turned_away())
        self.observers.turned()
        self.link.alive()

    def make_durable(self) -> None:
        """Sync what was appended; only then acknowledge it and let the trainer have it."""
        seconds = self.journal.sync()
        if seconds is not None:
            self.observers.synced(seconds)
            self.link.durable(self.journal.durable)
        self.observers.acknowledged(self.stream.replies.acknowledge())
        self.stream.release()
        self.admin.release()
        if not self.journal.synced:  # a barrier was opened by this very sync
            self.make_durable()

    def hear(self) -> None:
        """Take what supervisor and trainer say: what it changes, what people see of it, whom it is told to."""
        for word in self.link.hear():
            if isinstance(word, words.Done) and not self.tasks.is_news(word.entry):
                continue
            self._act(word)
            self.observers.said(word)
            self._pass_on(word)
        self.finished = self.finished or self.link.broken
        self.observers.heard()
        self.stream.replies.offer_credit()

    def _act(self, word: words.Word) -> None:
        match word:
            case words.Begin():
                self.admin.retry_all()
            case words.Stop():
                self.finished = True
            case words.Reload():
                self._reload()
            case words.Recovered(next_lsn=next_lsn):
                self.session.trained(next_lsn)
                self.link.greet(self.journal.durable)
                self.stream.trainer_started()
            case words.Progress(next_lsn=next_lsn):
                self.session.trained(next_lsn)
            case words.Done(entry=entry):
                self.tasks.take(entry)
            case words.SetAside(failure=failure):
                self.tasks.set_aside(failure)
            case words.Forgiven(lsns=lsns):
                self.tasks.forgive(lsns)
            case words.Checkpointed(sequences=sequences, batches=batches):
                self.session.applied(sequences, batches)
                self.link.checkpointed(word)
            case words.Dropped():
                self.journal.measure()
            case words.ModelTried():
                self.stream.model_tried(word)
            case words.Close():  # the link has taken it in
                pass
            case words.Crashed() | words.Trouble() | words.TurnedAway() | words.Serving():  # for people alone
                pass
            case words.Penalties() | words.Moved() | words.Accuracies() | words.Noted():
                pass
            case _:
                words.unexpected(word, "ingest process")

    def _pass_on(self, word: words.Word) -> None:
        match word:
            case words.Done(entry=entry):
                if by_drift(entry):
                    self.journal.rotate()  # what is stored from now on must not keep the closed task's records on disk
                if isinstance(entry, Closing | Confirmed):
                    self.stream.replies.done(entry)
                self.admin.done(entry)
            case words.Checkpointed():
                self.admin.checkpointed(word)

    def _reload(self) -> None:
        """Take policy, token and certificate as they are now; what is wrong leaves everything as it was."""
        problem = self.guard.reload() or (self.http.reload() if self.http is not None else None)
        self.link.reloaded(problem)
        self.observers.reloaded(problem, self.http.certificate_expiry if self.http is not None else None)
        if problem is None:
            self.stream.replies.connections.keep(self.guard)
