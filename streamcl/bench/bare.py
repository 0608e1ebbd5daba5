"""Yardsticks: the plainest loops that use the socket, the disk or PyTorch, as processes of their own.

``python -m streamcl.bench.bare echo|log|train|file ...``. Each prints its port or ``ready``, then works until it is
killed or its standard input ends. None of streamcl's own code paths is used here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from typing import Any, Self

import msgpack
import zmq

GROUP = 64  # messages synced together at the most
FILE_ROWS = 32  # of a step over a file


class Bare:
    """One yardstick as a child process; `first` is the first line it printed."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.first = self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def ask(self) -> float:
        """Let it do its work once; returns the seconds that it took."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self._line())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()


class Window:
    """A client of the bare log: keeps `window` messages unacknowledged."""

    def __init__(self, port: str, window: int) -> None:
        self.window = window
        self.socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.connect(f"tcp://127.0.0.1:{port}")
        self.sent = self.durable = 0

    def send(self, header: dict[str, Any], *payloads: Any) -> None:
        """One message, once there is room in the window."""
        while self.sent - self.durable >= self.window:
            self._hear()
        self.sent += 1
        self.socket.send_multipart([msgpack.packb({**header, "seq": self.sent}), *payloads], copy=False)

    def flush(self) -> None:
        """Until everything sent is durable."""
        while self.durable < self.sent:
            self._hear()

    def _hear(self) -> None:
        self.durable = msgpack.unpackb(self.socket.recv())["durable"]

    def close(self) -> None:
        """Close the socket."""
        self.socket.close()


def echo() -> None:
    """Send everything back."""
    socket, port = _router()
    print(port, flush=True)
    while True:
        socket.send_multipart(socket.recv_multipart(copy=False), copy=False)


def log(path: str) -> None:
    """ROUTER, checksum, append, one sync for all that has arrived, one cumulative acknowledgement."""
    socket, port = _router()
    fd, end = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC), 0
    print(port, flush=True)
    while True:
        socket.poll()
        for _ in range(GROUP):
            try:
                peer, header, *payloads = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                break
            seq = msgpack.unpackb(header.buffer)["seq"]
            buffers = [header.buffer, *(payload.buffer for payload in payloads)]
            checksum = 0
            for buffer in buffers:
                checksum = zlib.crc32(buffer, checksum)
            end += os.pwritev(fd, [checksum.to_bytes(4, "little"), *buffers], end)
        os.fdatasync(fd)
        socket.send_multipart([peer, msgpack.packb({"type": "ack", "durable": seq})], copy=False)


def _router() -> tuple[zmq.Socket[bytes], int]:
    socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    socket.setsockopt(zmq.RCVHWM, 64)
    return socket, socket.bind_to_random_port("tcp://127.0.0.1")


def train(settings: str) -> None:
    """The plainest PyTorch loop: for every line on standard input, `steps` steps of Adam on data held in memory."""
    import torch

    from streamcl.bench.speed.workloads import Workload

    workload = Workload(**json.loads(settings))
    torch.set_flush_denormal(True)
    module = workload.module()
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
    x, y = workload.tensors()
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(workload.repeats):
            for start in range(0, len(x), workload.batch_size):
                optimizer.zero_grad()
                output = module(x[start : start + workload.batch_size])
                torch.autograd.backward(torch.nn.functional.cross_entropy(output, y[start : start + workload.batch_size]))
                optimizer.step()
        print(time.perf_counter() - started, flush=True)


def file(settings: str) -> None:
    """The plainest PyTorch loop over a CSV whose last column is the label: for every line on standard input, read it, and
    take so many steps of Adam, each of `FILE_ROWS` rows, over its rows in their order."""
    import csv

    import torch

    from streamcl import models

    asked = json.loads(settings)
    torch.set_flush_denormal(True)
    print("ready", flush=True)
    for _ in sys.stdin:
        started = time.perf_counter()
        with open(asked["path"], newline="") as source:
            _, *lines = csv.reader(source)
        table = torch.tensor([[float(cell) for cell in line] for line in lines])
        x, y = table[:, :-1], table[:, -1].long()
        module = models.build("streamcl.models:mlp", {}, (x.shape[1],), 10, 0)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)
        for step in range(asked["steps"]):
            start = step * (len(x) - FILE_ROWS) // asked["steps"]
            optimizer.zero_grad()
            output = module(x[start : start + FILE_ROWS])
            torch.autograd.backward(torch.nn.functional.cross_entropy(output, y[start : start + FILE_ROWS]))
            optimizer.step()
        print(time.perf_counter() - started, flush=True)


KINDS: dict[str, Callable[..., None]] = {"echo": echo, "log": log, "train": train, "file": file}


if __name__ == "__main__":
    kind, *arguments = sys.argv[1:]
    KINDS[kind](*arguments)
