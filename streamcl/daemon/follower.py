"""The follower process: fetches what the daemon that is followed publishes, and speaks for this follower to everyone else.

Where a daemon has ingest and a trainer, a follower has this process; the predictor beside it is the same, and reads what is
put in place here as it would what a trainer publishes. Answers `status`, `metrics` and `stop`, and the HTTP port; whatever
else is asked is refused, with the address of the daemon that can. Never imports torch.
"""

from __future__ import annotations

import math
import time
from collections import deque
from pathlib import Path
from typing import Any

import structlog
import zmq
from prometheus_client import CollectorRegistry

from streamcl.config import Config, split_host_port
from streamcl.daemon import words
from streamcl.daemon.channel import Channel
from streamcl.daemon.endpoint import Endpoint, Port, Received
from streamcl.daemon.guard import Guard
from streamcl.daemon.http import HttpServer
from streamcl.daemon.metrics import FollowerMetrics
from streamcl.daemon.sockets import Peer, Router, bind_router
from streamcl.daemon.standing import Standing
from streamcl.daemon.status import Fetching, Following
from streamcl.daemon.tidings import HostName, Tidings, unheard
from streamcl.daemon.upstream import Upstream
from streamcl.errors import Refused
from streamcl.handshake import client_keys
from streamcl.protocol import frames, messages
from streamcl.storage.audit import Audit
from streamcl.storage.mirror import Mirror
from streamcl.version import __version__

IDLE_SECONDS = 1.0
MOST_EVENTS = 50


def run(config: Config, up: Channel) -> None:
    """The process's main function; returns when the follower stops."""
    guard = Guard(config.security)
    guard.load()
    places = (config.endpoints.stream, config.endpoints.admin)
    stream, admin = (Router(bind_router(place, guard.gate), guard.gate) for place in places)
    guard.gate.open()
    mirror = Mirror(Path(config.state_dir))
    mirror.recover()
    asked = config.follow
    upstream = Upstream(asked.endpoint, client_keys(asked.key or None, asked.server_key or None), asked.interval, mirror)
    follower = Follower(config, upstream, up, guard, stream, admin, Audit(mirror.state.audit))
    http = _show(config, follower)
    up.send(words.Ready(endpoints={"stream": stream.endpoint, "admin": admin.endpoint, "http": http.address}))
    try:
        while not follower.finished:
            _wait(follower, (stream, admin))
            follower.turn()
    finally:
        http.close()
        for router in (stream, admin):
            router.close()
        upstream.close()
        guard.gate.join()
        zmq.Context.instance().term()


def _show(config: Config, follower: Follower) -> HttpServer:
    shown = {"/status": lambda query: follower.shown.plain()}
    address, registry = split_host_port(config.endpoints.http), follower.metrics.registry
    http = HttpServer(address, registry, shown, follower.not_ready, config.security, page=None)
    follower.http = http
    follower.metrics.certificate(http.certificate_expiry)
    return http


def _wait(follower: Follower, routers: tuple[Router, ...]) -> None:
    poller = zmq.Poller()
    for source in (*(router.socket for router in routers), follower.up.fileno(), *follower.upstream.sources()):
        poller.register(source, zmq.POLLIN)
    poller.poll(math.ceil(1000 * min(IDLE_SECONDS, follower.upstream.rest_seconds())))


class Follower:
    """One follower's state, and one turn of its loop. shown: its status at the end of the last turn, for HTTP's threads."""

    def __init__(
        self, config: Config, upstream: Upstream, up: Channel, guard: Guard, stream: Port, admin: Port, audit: Audit
    ) -> None:
        self.config, self.upstream, self.up, self.guard, self.audit = config, upstream, up, guard, audit
        self.stream, self.admin = stream, admin
        self.metrics = FollowerMetrics(CollectorRegistry())
        self.standing = Standing(config.follow.endpoint)
        self.serving = words.Serving()
        self.events: deque[dict[str, Any]] = deque(maxlen=MOST_EVENTS)
        self.troubles: dict[str, str] = {}
        self.http: HttpServer | None = None
        self.finished = False
        self._started = time.monotonic()
        self._told_at = float("-inf")
        self._stream = Endpoint(messages.StreamMessage, guard.check)
        self._admin = Endpoint(messages.AdminMessage, guard.check)
        self._host = HostName(config.follow.endpoint)
        self._tidings = Tidings(config.follow.endpoint, self._note)
        self._note("started", f"streamcl {__version__}, following {config.follow.endpoint}")
        self.shown = self.status()

    # -- the loop ------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Hear the daemon, the other processes and whoever asks; never waits."""
        for word in self.up.receive():
            self._take(word)
        self.up.flush()
        adopted = self.upstream.turn()
        self._follow(adopted)
        for peer, parts in self.stream.receive():
            self._answer(self.stream, self._stream, peer, parts)
        for peer, parts in self.admin.receive():
            self._answer(self.admin, self._admin, peer, parts)
        self._audit(self.guard.turned_away())
        now = self.status()
        self.metrics.stands(now, *self.upstream.take_counts())
        self.shown = now
        self.up.alive(words.Alive(activity=self._state()))
        self.finished = self.finished or self.up.closed

    def _take(self, word: words.Word) -> None:
        match word:
            case words.Stop():
                self.finished = True
            case words.Serving():
                if word.problem is not None and word.problem != self.serving.problem:
                    self._note("failed", word.problem)
                self.serving = word
            case words.TurnedAway(codes=codes, notes=notes):
                for code, number in codes.items():
                    self.metrics.rejected(code, number)
                self._audit(notes)
            case words.Reload():
                self._reload()
            case words.Trouble(role=role, reason=reason):
                if reason is None:
                    self.troubles.pop(role, None)
                else:
                    self.troubles[role] = reason
            case words.Crashed(role=role, reason=reason):
                self._note("crashed", f"{role}: {reason}")
            case words.Begin():
                pass  # nothing is kept here that could be tried again
            case _:
                words.unexpected(word, "follower")

    def _follow(self, adopted: bool) -> None:
        """Tell the predictor where the daemon stands, and people when it is lost and found."""
        upstream = self.upstream
        now, newest = time.monotonic(), None if upstream.newest is None else upstream.newest.plain()
        self.standing.newest, self.standing.heard = newest, upstream.heard
        told = words.Followed(newest=newest, heard=upstream.heard, problem=self._unheard())
        if adopted or now - self._told_at >= IDLE_SECONDS:  # again and again: it may be another predictor by now
            self._told_at = now
            self.up.send(told)
        if not upstream.connected:
            self._host.look()
        self._tidings.tell(upstream.connected, upstream.problem, self._host.problem, bool(self.serving.serves))

    # -- who asks ------------------------------------------------------------------------------------------------

    def _answer(self, port: Port, endpoint: Endpoint, peer: Peer, parts: Any) -> None:
        """`ok`, or a refusal."""
        taken = endpoint.take(peer, parts, self._ok)
        header, refused = taken.acted, taken.refused
        if refused is not None:
            if refused.code != "not_allowed":
                refused = self.standing.refusal(taken.header) or refused
            self.metrics.rejected(refused.code)
            if refused.code == "not_allowed":
                self.audit.write(
                    str(taken.header.get("type"))[:32], refused.code, who=self.guard.called(peer), key=peer.key
                )
            header = self._refusal(port, refused, taken.seq)
        identity = {} if taken.id is None else {"id": taken.id}
        port.send(peer, frames.build({**header, **identity}, delimited=peer.delimited))

    def _refusal(self, port: Port, refused: Refused, seq: int | None) -> dict[str, Any]:
        said = {"code": refused.code, "message": refused.message, "retryable": refused.retryable}
        return {"type": "nack", "seq": seq, **said} if port is self.stream else {"type": "error", **said}

    def _ok(self, received: Received) -> dict[str, Any]:
        """The answer to what a follower is asked; raises Refused ``follower`` for anything else."""
        match received.message:
            case messages.Status():
                return {**self.status().plain(), "type": "ok"}
            case messages.Metrics():
                return {**self.metrics.as_map(), "type": "ok"}
            case messages.Stop(drain=drain):
                self.audit.write("stop", who=self.guard.called(received.peer), key=received.peer.key or None)
                self.up.send(words.Stop(drain=drain))
                return {"drain": drain, "type": "ok"}
        refusal = self.standing.refusal(received.header)
        assert refusal is not None
        raise refusal

    def _audit(self, notes: Any) -> None:
        for note in notes:
            action, rest = str(note["action"]), {name: value for name, value in note.items() if name != "action"}
            self.audit.write(action, "refused", **rest)

    def _reload(self) -> None:
        problem = self.guard.reload() or (self.http.reload() if self.http is not None else None)
        self.up.send(words.Reloaded(problem=problem))
        self.audit.write("reload", "ok" if problem is None else "failed", reason=problem)
        if problem is not None:
            structlog.get_logger().error("the old policy, token and certificate stay", reason=problem)
        elif self.http is not None:
            self.metrics.certificate(self.http.certificate_expiry)

    # -- what is shown -------------------------------------------------------------------------------------------

    def _note(self, kind: str, text: str) -> None:
        self.events.appendleft({"time": time.time(), "kind": kind, "task": None, "lsn": None, "text": text})

    def _state(self) -> str:
        if not self.serving.serves:
            return "waiting"
        return "following" if self.upstream.connected else "alone"

    def problem(self) -> str | None:
        """What an operator must see to, or None."""
        for trouble in list(self.troubles.values()):
            return trouble
        return self.serving.problem or self._unheard()

    def _unheard(self) -> str | None:
        """Why the daemon cannot be followed now, or None."""
        if self.upstream.problem is not None:
            return self.upstream.problem
        if self.upstream.connected:
            return None
        return unheard(self.config.follow.endpoint, self._host.problem)

    def not_ready(self) -> str | None:
        """Why there is nothing to predict with, or None: how old it is, is another question."""
        for trouble in list(self.troubles.values()):
            return trouble
        if self.serving.serves:
            return None
        return (
            f"nothing of the daemon at {self.config.follow.endpoint} can be served yet: {self.problem() or 'it is fetched'}"
        )

    def status(self) -> Following:
        """What this follower does."""
        upstream, serving, wanted = self.upstream, self.serving, self.upstream.wanted
        current, newest, serves = upstream.mirror.current, upstream.newest, dict(serving.serves)
        return Following(
            version=__version__,
            state=self._state(),
            follows=self.config.follow.endpoint,
            connected=upstream.connected,
            publication=None if current is None else current.publication,
            published_at=None if current is None else current.published_at,
            serves=serves or None,
            newest=None if newest is None else newest.plain(),
            behind=self.standing.behind(serves, time.monotonic()),
            fetching=None if wanted is None else self._fetching(wanted.publication),
            publications=upstream.publications,
            fetched_bytes=upstream.fetched,
            followers=serving.followers,
            samples_seen=serves.get("rows", 0),
            parameters=serving.parameters,
            uptime_seconds=time.monotonic() - self._started,
            device="cpu",
            events=list(self.events),
            problem=self.problem(),
            waiting=self.not_ready(),
            warning=serving.warning,
        )

    def _fetching(self, publication: str) -> Fetching:
        return Fetching(publication, self.upstream.fetched_of_wanted())
