"""``streamcl bench speed``: what streamcl costs over what it does, as ratios taken in one run on one machine.

Each row times the thing and its yardstick in turn, many times, and compares medians: machines are noisy, and noise that
comes in waves meets both.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.bench.local import LocalDaemon
from streamcl.bench.trained import digits, train
from streamcl.bench.versions import versions
from streamcl.config import Train
from streamcl.core.fisher import DiagonalFisher
from streamcl.core.gaussian import DiagonalGaussian
from streamcl.core.likelihood import Categorical, FisherKind
from streamcl.core.parameters import FlatParameters

CLASSES, BATCH = 10, 128
IMPORT_TORCH = [sys.executable, "-c", "import torch"]


@dataclass(frozen=True, slots=True)
class Row:
    """One comparison. ratio: of medians, streamcl's seconds over the yardstick's. goal: the most it may be."""

    name: str
    against: str
    ratio: float
    goal: float
    seconds: float
    yardstick_seconds: float

    @property
    def verdict(self) -> Literal["met", "missed"]:
        """Whether the goal is met."""
        return "met" if self.ratio <= self.goal else "missed"


def interleaved(one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> tuple[float, float]:
    """Median seconds of both, called in turn, after one call each that does not count."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for action, taken in zip((one, other), seconds, strict=True):
            started = time.perf_counter()
            action()
            if number:
                taken.append(time.perf_counter() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def compare(name: str, against: str, goal: float, one: Callable[[], Any], other: Callable[[], Any], rounds: int) -> Row:
    """One row."""
    mine, yardstick = interleaved(one, other, rounds)
    return Row(name, against, mine / yardstick, goal, mine, yardstick)


# -- models ------------------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """One small encoder layer over rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(28, 64)
        self.layer = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, 28, 28]."""
        output: Tensor = self.head(self.layer(self.embed(x)).mean(1))
        return output


def _model(name: str) -> tuple[nn.Module, tuple[int, ...], int]:
    """A module, the shape of its rows, and how many of them the Fisher is timed with."""
    match name:
        case "MLP 784-400-400-10":
            return models.mlp((784,), CLASSES, hidden=[400, 400]), (784,), 4096
        case "convolutional":
            return models.convnet((1, 28, 28), CLASSES, channels=(8, 16), hidden=64), (1, 28, 28), 512
        case _:
            return Transformer(), (28, 28), 512


def _data(shape: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((rows, *shape), generator=generator), torch.randint(0, CLASSES, (rows,), generator=generator)


# -- rows --------------------------------------------------------------------------------------------------------------


def fisher(kind: FisherKind, name: str, goal: float, rounds: int) -> Row:
    """The diagonal Fisher of a trained network against one epoch of forward and backward passes over the same rows."""
    torch.manual_seed(0)
    module, shape, rows = _model(name)
    x, y = digits(shape)
    parameters = FlatParameters(module)
    likelihood = Categorical(CLASSES)
    train(module, parameters, x, y)
    x, y = x.repeat(3, *[1] * len(shape))[:rows], y.repeat(3)[:rows]

    def epoch() -> None:
        module.train()
        for start in range(0, rows, BATCH):
            parameters.grad.zero_()
            torch.autograd.backward(likelihood.nll(module(x[start : start + BATCH]), y[start : start + BATCH]).mean())

    def whole() -> None:
        found = DiagonalFisher(module, parameters, likelihood, kind)
        for start in range(0, rows, 512):
            found.add(x[start : start + 512], y[start : start + 512])

    return compare(f"{kind} Fisher, {name}", "a forward and backward epoch", goal, whole, epoch, rounds)


def penalty(rounds: int) -> Row:
    """A training step with the penalty in it against the same step without."""
    torch.manual_seed(0)
    module, shape, _ = _model("MLP 784-400-400-10")
    x, y = _data(shape, BATCH)
    parameters = FlatParameters(module)
    likelihood = Categorical(CLASSES)
    optimizer = torch.optim.Adam([parameters.theta], lr=Train().learning_rate, fused=True)
    theta = parameters.theta.detach()
    gaussian = DiagonalGaussian(torch.rand_like(theta), torch.rand_like(theta)).scaled(1e-3)

    def step(start: Callable[[], Any]) -> Callable[[], None]:
        def steps() -> None:
            for _ in range(40):
                start()
                torch.autograd.backward(likelihood.nll(module(x), y).mean())
                optimizer.step()

        return steps

    with_it = step(lambda: gaussian.gradient(theta, out=parameters.grad))
    without = step(lambda: parameters.grad.zero_())
    return compare("a training step with the penalty", "the step without it", 1.03, with_it, without, 3 * rounds)


def prediction(rounds: int) -> list[Row]:
    """A round trip of one row while a task is being learned, against a bare echo and a bare forward pass."""
    module, shape, _ = _model("MLP 784-400-400-10")
    x = np.zeros((1, *shape), "<f4")
    tree = {
        "model": {"args": {"hidden": [400, 400]}, "classes": CLASSES},
        "train": {"epochs": 10_000, "batch_size": BATCH},
    }
    rng = np.random.default_rng(0)
    echo = subprocess.Popen([sys.executable, "-c", _ECHO], stdout=subprocess.PIPE)
    try:
        with LocalDaemon(tree) as daemon, daemon.producer() as producer, daemon.reader() as reader:
            producer.send(rng.normal(size=(4096, 784)).astype("<f4"), rng.integers(0, CLASSES, 4096), "busy")
            producer.boundary("busy", wait=False)
            producer.flush()
            _until(lambda: _answers(lambda: reader.predict(x)))
            assert echo.stdout is not None
            bare = _bare_client(int(echo.stdout.readline()), module)
            mine: list[float] = []
            yardstick: list[float] = []
            for _ in range(100 * rounds):
                for action, taken in ((lambda: reader.predict(x), mine), (lambda: bare(x), yardstick)):
                    started = time.perf_counter()
                    action()
                    taken.append(time.perf_counter() - started)
            with daemon.admin() as admin:
                admin.stop(drain=False)
    finally:
        echo.kill()
        echo.wait()
    return [_at(mine, yardstick, 50, 2.0), _at(mine, yardstick, 99, 5.0)]


def _at(mine: list[float], yardstick: list[float], percentile: int, goal: float) -> Row:
    one, median = float(np.percentile(mine, percentile)), float(np.median(yardstick))
    name = f"predict one row while training, percentile {percentile}"
    return Row(name, "a bare echo and a bare forward pass, median", one / median, goal, one, median)


_ECHO = """
import zmq
socket = zmq.Context().socket(zmq.ROUTER)
print(socket.bind_to_random_port("tcp://127.0.0.1"), flush=True)
while True:
    socket.send_multipart(socket.recv_multipart(copy=False), copy=False)
"""


def _bare_client(port: int, module: nn.Module) -> Callable[[Any], None]:
    import zmq

    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"tcp://127.0.0.1:{port}")

    def ask(x: Any) -> None:
        socket.send_multipart([b"header", x], copy=False)
        _, payload = socket.recv_multipart()
        with torch.no_grad():
            module(torch.frombuffer(bytearray(payload), dtype=torch.float32).reshape(x.shape))

    return ask


def _answers(action: Callable[[], Any]) -> bool:
    from streamcl.errors import Refused

    try:
        action()
    except Refused:
        return False
    return True


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


def start(rounds: int) -> Row:
    """From nothing to ready, against importing torch (which two of its processes must, at once)."""

    def ready() -> None:
        daemon = LocalDaemon({})
        daemon.start()
        daemon.kill_all()

    mine, yardstick = interleaved(ready, lambda: subprocess.run(IMPORT_TORCH, check=True), max(3, rounds // 2))
    return Row("start to ready, seconds over importing torch", "1.5 s", (mine - yardstick) / 1.5, 1.0, mine, yardstick)


# -- report ------------------------------------------------------------------------------------------------------------


def run(rounds: int, out: Path | None) -> int:
    """Every row, printed and written; 1 if a goal was missed."""
    torch.set_flush_denormal(True)
    rows: list[Row] = []
    mlp, convolutional, transformer = "MLP 784-400-400-10", "convolutional", "transformer"
    parts: list[Callable[[], Row | list[Row]]] = [
        lambda: penalty(rounds),
        lambda: fisher("exact", mlp, 1.2, rounds),
        lambda: fisher("empirical", mlp, 0.8, rounds),
        lambda: fisher("exact", convolutional, 3.0, rounds),
        lambda: fisher("empirical", convolutional, 2.0, rounds),
        lambda: fisher("exact", transformer, 3.0, rounds),
        lambda: fisher("empirical", transformer, 2.0, rounds),
        lambda: prediction(rounds),
        lambda: start(rounds),
    ]
    print(f"{'what':<50}{'against':<46}{'ratio':>8}{'goal':>8}")
    for part in parts:
        made = part()
        for row in made if isinstance(made, list) else [made]:
            rows.append(row)
            print(f"{row.name:<50}{row.against:<46}{row.ratio:8.2f}{row.goal:8.2f}  {row.verdict}", flush=True)
    if out is not None:
        table = [{**asdict(row), "verdict": row.verdict} for row in rows]
        document = {"benchmark": "speed", "rounds": rounds, "threads": torch.get_num_threads(), "versions": versions()}
        out.write_text(json.dumps({**document, "rows": table}, indent=2) + "\n")
    return 0 if all(row.verdict == "met" for row in rows) else 1
