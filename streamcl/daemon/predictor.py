"""The predictor process: answers `predict` from the newest whole set of published parameters.

Guarantees: one answer comes from one version of the parameters; draws are spread by the newest posterior, which may be of
a later boundary than they. Training does not wait for predictions. Reads what the trainer publishes by atomic rename and
shares nothing else with it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import zmq

from streamcl.config import Config
from streamcl.core.gaussian import Gaussian
from streamcl.daemon import words
from streamcl.daemon.channel import Channel
from streamcl.daemon.endpoint import Endpoint, Received
from streamcl.daemon.guard import Guard
from streamcl.daemon.sockets import Peer, bind_router, check_reads, endpoint, receive, send
from streamcl.errors import Refused
from streamcl.learning.network import Network
from streamcl.learning.posterior import from_arrays
from streamcl.learning.predictive import averaged, predict
from streamcl.protocol import frames, messages
from streamcl.protocol.frames import Array, NamedArrays
from streamcl.schema import LabelMap, Signature
from streamcl.storage import published
from streamcl.storage.frozen import Frozen
from streamcl.storage.state import StateDirectory

IDLE_MS = 1000  # between two turns without anything to answer
REPORT_SECONDS = 1.0  # between two reports of what was refused
MOST_NOTES = 20
DRAWN_BYTES = 8 * frames.MESSAGE_BYTES  # of all draws' outputs together


def run(config: Config, up: Channel) -> None:
    """The process's main function; returns when the daemon stops."""
    torch.set_num_threads(1)  # one core answers; the others belong to training
    guard = Guard(config.security)
    guard.load()
    socket = bind_router(config.endpoints.predict, guard.gate)
    guard.gate.open()
    predictor = Predictor(config, guard)
    up.send(words.Ready(endpoints={"predict": endpoint(socket)}))
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(up.fileno(), zmq.POLLIN)
    while not up.closed:
        for word in up.receive():
            match word:
                case words.Stop():
                    return
                case words.Reload():
                    guard.reload()  # ingest reports what is wrong with it
                case _:
                    words.unexpected(word, "predictor")
        poller.poll(IDLE_MS)
        up.alive(words.Alive())
        for peer, parts in receive(socket, guard.gate):
            send(socket, peer, predictor.answer(parts, peer))
        predictor.keep_up()
        predictor.report(up)


class Predictor:
    """A network kept at the newest published parameters."""

    def __init__(self, config: Config, guard: Guard) -> None:
        self.config = config
        self.guard = guard
        self._endpoint = Endpoint(messages.Predict, guard.check, {messages.Predict: ("x",)}, fatal=())
        self.refused: Counter[str] = Counter()
        self.notes: list[dict[str, Any]] = []
        self._reported = 0.0
        self.state = StateDirectory(Path(config.state_dir))
        self._parameters = self.state.parameters
        self._frozen = Frozen(self.state.path)
        self.network: Network | None = None
        self.posterior: Gaussian | None = None
        self.meta: dict[str, Any] = {}
        self._stamp: Any = None
        self._posterior_number = -1

    def keep_up(self) -> None:
        """Load what has been published since, if a model is in use: now, rather than while somebody waits."""
        if self.network is not None:
            with contextlib.suppress(Refused):
                self._newest()

    def answer(self, parts: Sequence[frames.Buffer], peer: Peer) -> list[frames.Buffer]:
        """The reply to one message: a prediction or an error, never an exception."""
        replies: list[list[frames.Buffer]] = []
        taken = self._endpoint.take(peer, parts, lambda received: replies.append(self._reply(received)))
        if taken.refused is None:
            return replies[0]
        self._count(peer, taken.refused)
        header = {"type": "error", **_identity(taken.header), "code": taken.refused.code, "message": taken.refused.message}
        if taken.id is not None:
            header["id"] = taken.id
        return frames.build({**header, "retryable": taken.refused.code in messages.RETRYABLE}, delimited=peer.delimited)

    def _reply(self, received: Received) -> list[frames.Buffer]:
        """A prediction; raises Refused, and whatever the model does."""
        fields, outputs = self._predict(received.message, received.arrays)
        header = {"type": "prediction", **_identity(received.header), **fields}
        reply = frames.build(header, outputs, delimited=received.peer.delimited)
        check_reads(received.peer, reply)
        return reply

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

    def _predict(self, request: messages.Predict, arrays: NamedArrays) -> tuple[dict[str, Any], dict[str, Array]]:
        network = self._newest()
        outputs = self._outputs(network, arrays["x"], request.samples)
        header: dict[str, Any] = {"version": self.meta["version"]}
        if self.config.model.likelihood == "categorical":
            header["labels"] = self.meta["labels"]
        return header, outputs

    def _outputs(self, network: Network, x: Array, samples: int) -> dict[str, Array]:
        """Of every row; raises Refused ``too_large`` where an answer, or so many draws of it, would be."""
        most = min(frames.MESSAGE_BYTES, DRAWN_BYTES // max(1, samples))
        if not samples:
            return predict(network, x, most)
        seed = self.config.train.seed + self.meta["version"]
        return averaged(network, x, self._newest_posterior(), samples, seed, most)

    def _newest(self) -> Network:
        """The network at the newest published parameters; raises Refused ``not_ready`` before the first."""
        stamp = published.stamp(self._parameters)
        if stamp is None:
            raise Refused("not_ready", "there is no model yet: its shapes come with the first batch", retryable=True)
        if stamp != self._stamp:
            self._load()
            self._stamp = stamp
        assert self.network is not None
        return self.network

    def _load(self) -> None:
        found = published.read(self._parameters, self._frozen)
        if found is None:
            raise Refused("not_ready", "there is no model yet: its shapes come with the first batch", retryable=True)
        meta, tensors = found
        signature = Signature.from_plain(meta["signature"])
        if self.network is None or self.network.signature != signature:
            labels = LabelMap(self.config.model.classes)
            self.network = Network(self.config, signature, labels, torch.device("cpu"), trained=False)
        self.network.load(tensors)
        self.meta = meta

    def _newest_posterior(self) -> Gaussian:
        if self.posterior is None or self._posterior_number != self.meta["posterior"]:
            found = published.posterior(self.state)
            if found is None:
                raise Refused("not_ready", "there is no posterior yet", retryable=True)
            self._posterior_number, tensors = found
            self.posterior = from_arrays(tensors)
        return self.posterior


def _identity(header: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": header["id"]} if "id" in header else {}
