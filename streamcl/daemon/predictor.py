"""The predictor process: answers `predict` from the newest whole set of published parameters.

Guarantees: one answer comes from one version; training neither waits for predictions nor delays them. Reads what the
trainer publishes by atomic rename and shares nothing else with it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zmq

from streamcl.config import Config
from streamcl.core.gaussian import DiagonalGaussian
from streamcl.daemon.channel import Channel
from streamcl.daemon.guard import Guard
from streamcl.daemon.sockets import Peer, bind_router, check_reads, endpoint, receive, send
from streamcl.errors import Refused
from streamcl.learning.network import Network
from streamcl.protocol import frames, messages
from streamcl.protocol.frames import Array, NamedArrays
from streamcl.protocol.signature import LabelMap, Signature
from streamcl.storage import published
from streamcl.storage.state import StateDirectory

IDLE_MS = 1000  # between two turns without anything to answer
REPORT_SECONDS = 1.0  # between two reports of what was refused
MOST_NOTES = 20
PREDICT_ROWS = 4096  # rows at a time, so that a large request needs little memory
DRAWN_BYTES = 8 * frames.MESSAGE_BYTES  # of all draws' outputs together


def run(config: Config, up: Channel) -> None:
    """The process's main function; returns when the daemon stops."""
    torch.set_num_threads(1)  # one core answers; the others belong to training
    guard = Guard(config.security)
    guard.load()
    socket = bind_router(config.endpoints.predict, guard.gate)
    guard.gate.open()
    predictor = Predictor(config, guard)
    up.send("ready", endpoints={"predict": endpoint(socket)})
    poller = zmq.Poller()
    poller.register(socket, zmq.POLLIN)
    poller.register(up.fileno(), zmq.POLLIN)
    while not up.closed:
        for message in up.receive():
            if message["type"] == "stop":
                return
            if message["type"] == "reload":
                guard.reload()  # ingest reports what is wrong with it
        poller.poll(IDLE_MS)
        up.alive()
        for peer, parts in receive(socket, guard.gate):
            send(socket, peer, predictor.answer(parts, peer))
        predictor.keep_up()
        predictor.report(up)


class Predictor:
    """A network kept at the newest published parameters."""

    def __init__(self, config: Config, guard: Guard) -> None:
        self.config = config
        self.guard = guard
        self.refused: Counter[str] = Counter()
        self.notes: list[dict[str, Any]] = []
        self._reported = 0.0
        self.state = StateDirectory(Path(config.state_dir))
        self._parameters = self.state.parameters
        self.network: Network | None = None
        self.posterior: DiagonalGaussian | None = None
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
        identity: dict[str, Any] = {}
        try:
            envelope = frames.parse(parts)
            identity = {"id": envelope.header["id"]} if "id" in envelope.header else {}
            request = messages.decode(envelope.header, messages.Predict)
            self.guard.check(peer, request)
            arrays = frames.open_arrays(envelope, ["x"])
            fields, outputs = self._predict(request, arrays)
            reply = frames.build({"type": "prediction", **identity, **fields}, outputs, delimited=peer.delimited)
            check_reads(peer, reply)
            return reply
        except Refused as refused:
            reason = refused
        except Exception as error:
            reason = Refused("internal", f"{type(error).__name__}: {error}"[:500])
        self._count(peer, reason)
        identity = identity or {name: value for name, value in reason.fields.items() if name == "id" and value is not None}
        header = {"type": "error", **identity, "code": reason.code, "message": reason.message}
        return frames.build({**header, "retryable": reason.code in messages.RETRYABLE}, delimited=peer.delimited)

    def _count(self, peer: Peer, refused: Refused) -> None:
        self.refused[refused.code] += 1
        if refused.code == "not_allowed" and len(self.notes) < MOST_NOTES:
            self.notes.append({"action": "predict", "who": self.guard.called(peer), "key": peer.key})

    def report(self, up: Channel) -> None:
        """Now and then, tell ingest what was refused here: it keeps the counters and the audit log."""
        self.notes += list(self.guard.turned_away())[: MOST_NOTES - len(self.notes)]
        if (self.refused or self.notes) and time.monotonic() - self._reported > REPORT_SECONDS:
            up.send("refused", codes=dict(self.refused), notes=self.notes)
            self.refused, self.notes, self._reported = Counter(), [], time.monotonic()

    def _predict(self, request: messages.Predict, arrays: NamedArrays) -> tuple[dict[str, Any], dict[str, Array]]:
        network = self._newest()
        x = arrays["x"]
        network.signature.check_x(x)
        if len(x) == 0:
            raise Refused("bad_shape", "predict.x: expected at least one row, got none")
        chunks = [network.conversion.x(x[i : i + PREDICT_ROWS]) for i in range(0, len(x), PREDICT_ROWS)]
        outputs = self._averaged(network, chunks, request.samples) if request.samples else _outputs(network, chunks)
        header: dict[str, Any] = {"version": self.meta["version"]}
        if self.config.model.likelihood == "categorical":
            header["labels"] = self.meta["labels"]
        return header, outputs

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
        found = published.read(self._parameters)
        if found is None:
            raise Refused("not_ready", "there is no model yet: its shapes come with the first batch", retryable=True)
        meta, tensors = found
        signature = Signature.from_plain(meta["signature"])
        if self.network is None or self.network.signature != signature:
            labels = LabelMap(self.config.model.classes)
            self.network = Network(self.config, signature, labels, torch.device("cpu"), trained=False)
        self.network.load(tensors)
        self.meta = meta

    def _averaged(self, network: Network, chunks: Sequence[torch.Tensor], samples: int) -> dict[str, Array]:
        """Moments over draws of the parameters from N(theta, 1/precision); theta is put back afterwards."""
        theta = network.parameters.theta.detach().clone()
        posterior = self._newest_posterior()
        generator = torch.Generator().manual_seed(self.config.train.seed + self.meta["version"])
        draws = []
        try:
            for _ in range(samples):
                network.parameters.load(posterior.sample(theta.double(), generator).to(theta.dtype))
                draws.append(_outputs(network, chunks, samples))
        finally:
            network.parameters.load(theta)
        return _moments(draws)

    def _newest_posterior(self) -> DiagonalGaussian:
        if self.posterior is None or self._posterior_number != self.meta["posterior"]:
            found = published.posterior(self.state)
            if found is None:
                raise Refused("not_ready", "there is no posterior yet", retryable=True)
            self._posterior_number, tensors = found
            self.posterior = DiagonalGaussian.from_state(
                {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
            )
        return self.posterior


def _outputs(network: Network, chunks: Sequence[torch.Tensor], draws: int = 1) -> dict[str, Array]:
    """The outputs of every row; raises Refused ``too_large`` if an answer, or that many draws of it, would be."""
    most, held, parts = min(frames.MESSAGE_BYTES, DRAWN_BYTES // draws), 0, []
    for x in chunks:
        parts.append(network.predict(x))
        held += sum(part.nbytes for part in parts[-1].values())
        if held > most:
            raise Refused(
                "too_large", f"predict.x: the outputs of its rows take more than {most} bytes; ask for fewer rows"
            )
    return {name: np.concatenate([part[name].numpy() for part in parts]) for name in parts[0]}


def _moments(draws: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """Mixture moments: mean probabilities; or the mean of the means, and the mean variance plus their spread."""
    stacked = {name: np.stack([draw[name] for draw in draws]).astype(np.float64) for name in draws[0]}
    moments = {name: values.mean(0) for name, values in stacked.items()}
    if "variance" in stacked:
        moments["variance"] = moments["variance"] + stacked["mean"].var(0)
    return {name: values.astype(draws[0][name].dtype) for name, values in moments.items()}
