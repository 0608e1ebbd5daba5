"""The predictor process: answers `predict` from the newest whole set of published parameters.

Guarantees: one answer comes from one version of the parameters; their uncertainty is the newest posterior's, which may be
of a later boundary than they. Training does not wait for predictions. Reads what the trainer publishes by atomic rename and
shares nothing else with it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import zmq

from streamcl import columns as tables
from streamcl.config import Config
from streamcl.daemon import words
from streamcl.daemon.channel import Channel
from streamcl.daemon.endpoint import Endpoint, Received
from streamcl.daemon.guard import Guard
from streamcl.daemon.offers import Offers
from streamcl.daemon.served import Made, Served
from streamcl.daemon.sockets import Peer, bind_router, check_reads, endpoint, receive, send
from streamcl.daemon.standing import Standing
from streamcl.errors import Refused, no_model_yet
from streamcl.inputs import encoded
from streamcl.learning import kinds, scenario
from streamcl.learning.predictive import Predicted
from streamcl.models import load_factory
from streamcl.protocol import frames, messages
from streamcl.protocol.frames import Array, NamedArrays
from streamcl.storage.state import StateDirectory

IDLE_MS = 1000  # between two turns without anything to answer
REPORT_SECONDS = 1.0  # between two reports of what was refused
MOST_NOTES = 20


def run(config: Config, up: Channel) -> None:
    """The process's main function; returns when the daemon stops."""
    torch.set_num_threads(1)  # one core answers; the others belong to training
    guard = Guard(config.security)
    guard.load()
    if config.follow.endpoint:
        load_factory(config.model.factory)  # said at the start, not at the first publication
    socket = bind_router(config.endpoints.predict, guard.gate)
    guard.gate.open()
    predictor = Predictor(config, guard)
    up.send(words.Ready(endpoints={"predict": endpoint(socket)}))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(up.fileno(), zmq.POLLIN)
    told = True  # before the first turn too
    while not up.closed:
        for word in up.receive() if told else ():
            match word:
                case words.Stop():
                    return
                case words.Reload():
                    guard.reload()  # ingest reports what is wrong with it
                case words.Followed(newest=newest, heard=heard, problem=problem):
                    predictor.standing.told(newest, heard)
                    predictor.served.unheard = problem
                case _:
                    words.unexpected(word, "predictor")
        told = any(source == up.fileno() for source, _ in poller.poll(predictor.rest_ms()))
        up.alive(words.Alive())
        for peer, parts in receive(socket, guard.gate):
            reply = predictor.answer(parts, peer)
            if reply is not None:
                send(socket, peer, reply)
        for peer, reply in predictor.answers(time.monotonic()):
            send(socket, peer, reply)
        predictor.keep_up()
        predictor.report(up)


class Predictor:
    """A network kept at the newest published parameters."""

    def __init__(self, config: Config, guard: Guard) -> None:
        self.config = config
        self.guard = guard
        self._endpoint = Endpoint(messages.PredictMessage, guard.check, {messages.Predict: ("x",)}, (), self._lacking)
        self.refused: Counter[str] = Counter()
        self.notes: list[dict[str, Any]] = []
        self._reported = self._kept_up = self._said_at = 0.0
        self._said: words.Serving | None = None
        self.served = Served(config, StateDirectory(Path(config.state_dir)))
        self.offers = Offers(self.served.state)
        self.standing = Standing(config.follow.endpoint)

    def keep_up(self) -> None:
        """Load what has been published since, if a model is in use: now, rather than while somebody waits."""
        due = self.served.following or (self.served.made is not None and time.monotonic() - self._kept_up >= IDLE_MS / 1000)
        if due:
            self._kept_up = time.monotonic()
            with contextlib.suppress(Refused):
                self.served.newest()

    def answer(self, parts: Sequence[frames.Buffer], peer: Peer) -> list[frames.Buffer] | None:
        """The reply to one message: a prediction, a part of a publication or an error, never an exception; None where it
        is among those of `answers`, later."""
        taken = self._endpoint.take(peer, parts, self._reply)
        if taken.refused is None:
            reply: list[frames.Buffer] | None = taken.acted
            return reply
        refused = self.standing.refusal(taken.header) or taken.refused
        self._count(peer, refused)
        return _error(peer, _identity(taken.header) if taken.id is None else {"id": taken.id}, refused)

    def answers(self, now: float) -> Iterator[tuple[Peer, list[frames.Buffer]]]:
        """The replies to followers that have waited for a publication, or long enough."""
        for waiting, offer in self.offers.answers(now):
            identity = {} if waiting.id is None else {"id": waiting.id}
            if offer is not None:
                told = offer.plain()
            elif waiting.have is not None and self.offers.newest is not None:
                told = {"publication": waiting.have}
            else:
                yield waiting.peer, _error(waiting.peer, identity, no_model_yet())
                continue
            header = {"type": "publication", **identity, **told, **self._of_followed(now)}
            yield waiting.peer, frames.build(header, delimited=waiting.peer.delimited)

    def rest_ms(self) -> int:
        """How long the loop may wait for messages."""
        seconds = self.offers.wait_seconds
        return IDLE_MS if seconds is None else int(1000 * seconds)

    def _reply(self, received: Received) -> list[frames.Buffer] | None:
        """A prediction, or what may be predicted; None where the answer comes later. Raises Refused, and whatever the
        model does."""
        now, outputs = time.monotonic(), dict[str, Array]()
        match received.message:
            case messages.Schema():
                header = {"type": "schema", **self._schema()}
            case messages.Follow():
                self.offers.ask(received.peer, received.message, now)
                return None
            case messages.Part():
                header, outputs = self._part(received.peer, received.message, now)
            case _:
                fields, outputs = self._predict(received.message, received.arrays)
                header = {"type": "prediction", **fields}
        reply = frames.build({**header, **_identity(received.header)}, outputs, delimited=received.peer.delimited)
        check_reads(received.peer, reply)
        return reply

    def _part(self, peer: Peer, message: messages.Part, now: float) -> tuple[dict[str, Any], dict[str, Array]]:
        size, data = self.offers.part(peer, message, now)
        self.offers.look(now)
        header = {"type": "part", "digest": message.digest, "offset": message.offset, "bytes": size}
        return {**header, **self._of_followed(now)}, {"data": data}

    def _of_followed(self, now: float) -> dict[str, Any]:
        """What there is to fetch, and how old that knowledge is: here, or at the daemon that this follower follows."""
        return {"newest": self.standing.newest or self.offers.newest, "age": self.standing.age(now)}

    def _schema(self) -> dict[str, Any]:
        made = self.served.newest()
        pinned = made.inputs.pinned
        columns = None if pinned is None else tables.plain(pinned.columns)
        left_out = [] if pinned is None else list(pinned.left_out)
        return {"version": made.meta["version"], "schema": columns, "left_out": left_out}

    def _lacking(self, peer: Peer, message: Any) -> tuple[str, ...]:
        """In which arrays a value may be missing: a table's x."""
        return ("x",) if getattr(message, "schema", None) or self.served.inputs.pinned is not None else ()

    def _count(self, peer: Peer, refused: Refused) -> None:
        self.refused[refused.code] += 1
        if refused.code == "not_allowed" and len(self.notes) < MOST_NOTES:
            self.notes.append({"action": "predict", "who": self.guard.called(peer), "key": peer.key})

    def report(self, up: Channel) -> None:
        """Now and then, tell ingest what was refused here: it keeps the counters and the audit log."""
        self.notes += list(self.guard.turned_away())[: MOST_NOTES - len(self.notes)]
        if (self.refused or self.notes) and time.monotonic() - self._reported > REPORT_SECONDS:
            up.send(words.TurnedAway(codes=dict(self.refused), notes=self.notes))
            self.refused, self.notes, self._reported = Counter(), [], time.monotonic()
        now = time.monotonic()
        serving = self._serving(now)
        again = self.served.following or serving.followers  # whoever hears it may be another process by now
        if serving != self._said or (again and now - self._said_at > REPORT_SECONDS):
            up.send(serving)
            self._said, self._said_at = serving, now

    def _serving(self, now: float) -> words.Serving:
        """What is answered from; where this is no follower, only how many of those there are is news."""
        followers, served = self.offers.followers(now), self.served
        if not served.following:
            return words.Serving(followers=followers)
        told = {} if served.made is None else {name: served.made.meta[name] for name in ("version", "position", "rows")}
        size = 0 if served.made is None else served.made.network.parameters.size
        return words.Serving(
            followers=followers, serves=told, parameters=size, problem=served.problem, warning=served.warning()
        )

    def _predict(self, request: messages.Predict, arrays: NamedArrays) -> tuple[dict[str, Any], dict[str, Array]]:
        made = self.served.newest()
        network, inputs = made.network, made.inputs
        x = encoded(inputs, made.sent, arrays["x"], request.schema)
        with network.seeing(*scenario.asked(made.config, network.told, request.task, made.sights)):
            found = self._outputs(made, x, request)
            columns = made.columns if request.task is None else network.columns().tolist()
            unseen = network.unseen()
        header: dict[str, Any] = {"version": made.meta["version"], **self.standing.of(made.meta, time.monotonic())}
        if found.note is not None:
            header["note"] = found.note
        if made.config.model.family == "categorical":
            header["labels"] = columns
            if unseen is not None:
                header["unseen"] = unseen
            if inputs.words.known:
                header["words"] = inputs.words.known
        return header, found.arrays

    def _outputs(self, made: Made, x: Array, asked: messages.Predict) -> Predicted:
        """Of every row; raises Refused ``too_large`` where an answer, or what one row's takes to compute, would be."""
        seed, posterior = made.config.train.seed + made.meta["version"], partial(self.served.posterior, made)
        how = posterior, asked.samples, asked.uncertainty, seed
        return kinds.answered(made.network, x, *how, most_bytes=frames.MESSAGE_BYTES)


def _error(peer: Peer, identity: Mapping[str, Any], refused: Refused) -> list[frames.Buffer]:
    header = {"type": "error", **identity, "code": refused.code, "message": refused.message}
    return frames.build({**header, "retryable": refused.code in messages.RETRYABLE}, delimited=peer.delimited)


def _identity(header: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": header["id"]} if "id" in header else {}
