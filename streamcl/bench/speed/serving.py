"""What the daemon costs its users: a prediction while it trains, memory, and the time until it is ready."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import torch
import zmq

from streamcl.bench.bare import Bare
from streamcl.bench.local import LocalDaemon
from streamcl.bench.speed.table import Row, interleaved, timed
from streamcl.bench.speed.workloads import CLASSES, Workload
from streamcl.errors import Refused

IMPORT_TORCH = [sys.executable, "-c", "import torch"]
MIB = 1 << 20
WIDE = [9216, 9216]  # hidden layers: 92 million parameters, so that they outweigh the interpreters
LOG_BYTES = 1 << 30


def prediction(rounds: int) -> list[Row]:
    """A round trip of one row while a task is being learned, against a bare echo and a bare forward pass."""
    workload = Workload("MLP 784-400-400-10", 16)
    tree = workload.tree()
    tree["train"]["epochs"] = 10_000
    x, y = workload.arrays()
    mine: list[float] = []
    yardstick: list[float] = []
    with Bare("echo") as echo, LocalDaemon(tree) as daemon, daemon.producer() as producer, daemon.reader() as reader:
        producer.send(x, y, "busy")
        producer.boundary("busy", wait=False)
        producer.flush()
        _until(lambda: _answers(lambda: reader.predict(x[:1])))
        bare = timed(_bare_client(echo.first, workload.module(), x[:1]))
        through = timed(lambda: reader.predict(x[:1]))
        for _ in range(200 * rounds):
            mine.append(through())
            yardstick.append(bare())
        with daemon.admin() as admin:
            admin.stop(drain=False)
    return [_at(mine, yardstick, 50, 2.0), _at(mine, yardstick, 99, 5.0)]


def _at(mine: list[float], yardstick: list[float], percentile: int, goal: float) -> Row:
    one, median = float(np.percentile(mine, percentile)), float(np.median(yardstick))
    name = f"predict one row while training, percentile {percentile}"
    return Row(name, "a bare echo and forward pass, median", one / median, "at most", goal, one, median)


def _bare_client(port: str, module: torch.nn.Module, x: Any) -> Callable[[], None]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.connect(f"tcp://127.0.0.1:{port}")
    header = {"v": 1, "type": "predict", "id": 1}

    def ask() -> None:
        socket.send_multipart([msgpack.packb(header), x], copy=False)
        _, payload = socket.recv_multipart()
        with torch.no_grad():
            module(torch.frombuffer(bytearray(payload), dtype=torch.float32).reshape(x.shape))

    return ask


def _answers(action: Callable[[], Any]) -> bool:
    try:
        action()
    except Refused:
        return False
    return True


def _until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.02)


# -- memory ------------------------------------------------------------------------------------------------------------


def memory() -> Row:
    """All processes' proportional memory after a task, against the size of model, optimiser and penalty.

    Per parameter: theta, gradient and two moments in float32; the penalty's two vectors in float32 on the device and in
    float64 as the master that is checkpointed; the predictor's theta.
    """
    model = {"factory": "streamcl.models:mlp", "args": {"hidden": WIDE}, "classes": CLASSES}
    rng = np.random.default_rng(0)
    with LocalDaemon({"model": model, "train": {"epochs": 1}}) as daemon, daemon.producer() as producer:
        for _ in range(2):
            producer.send(rng.standard_normal((64, 784), np.float32), rng.integers(0, CLASSES, 64), "a")
        producer.boundary("a")
        producer.send(rng.standard_normal((64, 784), np.float32), rng.integers(0, CLASSES, 64), "b")
        producer.flush()
        with daemon.admin() as admin:
            _until(lambda: admin.status()["samples_seen"] == 3 * 64)
            admin.checkpoint()
            parameters = admin.status()["parameters"]
        with daemon.reader() as reader:
            reader.predict(np.zeros((1, 784), np.float32))
        assert daemon.process is not None
        held = sum(_proportional(pid) for pid in (daemon.process.pid, *daemon.children().values()))
    arithmetic = parameters * (4 * 4 + 2 * 4 + 2 * 8 + 4)
    ratio = (held - 300 * MIB) / arithmetic
    against = "model, optimiser and penalty"
    return Row("memory less 300 MiB, 92 million parameters", against, ratio, "at most", 1.2, held, arithmetic, "bytes")


def _proportional(pid: int) -> int:
    """A process's memory, shared pages divided among those that share them (Linux)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/{pid}/smaps_rollup: expected a line `Pss:`")


# -- start -------------------------------------------------------------------------------------------------------------


def start(rounds: int) -> list[Row]:
    """From nothing to ready, and after a crash with a log of 1 GiB, against importing torch."""
    name = "start to ready, seconds over importing torch"
    with tempfile.TemporaryDirectory(prefix="streamcl-") as directory:
        fresh = LocalDaemon({}, Path(directory) / "fresh")
        crashed = LocalDaemon({"model": {"args": {"hidden": [8]}}}, Path(directory) / "crashed")
        _crash(crashed)
        return [_start(name, fresh, rounds), _start(f"{name}, {LOG_BYTES // MIB} MiB of log", crashed, rounds)]


def _start(name: str, daemon: LocalDaemon, rounds: int) -> Row:
    def ready() -> float:
        started = time.perf_counter()
        daemon.start()
        taken = time.perf_counter() - started
        daemon.kill_all()
        return taken

    mine, yardstick = interleaved(ready, timed(lambda: subprocess.run(IMPORT_TORCH, check=True)), max(3, rounds // 2))
    return Row(name, "1.5 s", (mine - yardstick) / 1.5, "at most", 1.0, mine, yardstick)


def _crash(daemon: LocalDaemon) -> None:
    """Kill a daemon with `LOG_BYTES` in its log, next to none of them learned."""
    x, y = np.zeros((256, 784), np.float32), np.zeros(256, np.int64)
    daemon.start()
    with daemon.admin() as admin, daemon.producer() as producer:
        producer.send(x, y, "open")
        _until(lambda: admin.status()["samples_seen"] > 0)
        admin.pause()
        for _ in range(LOG_BYTES // x.nbytes):
            producer.send(x, y, "open")
    daemon.kill_all()
