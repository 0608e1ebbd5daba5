"""``streamcl demo --keep``: a daemon that is kept running, with tasks and revisits streaming in for the dashboard to show.

Two producers send handwritten digits, each task with its own permutation of the pixels, at a person's pace; then every
task is revisited, again and again. The state directory stays: the next start continues where this one ended.
"""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.demo import digits
from streamcl.bench.local import FREE_ENDPOINTS, LocalDaemon
from streamcl.bench.permuted import Images, task_rows
from streamcl.client import Admin, Producer
from streamcl.config import Auto, Config

BATCH_ROWS = 64
PACE_SECONDS = 0.1  # between two batches
REVISIT_PACE_SECONDS = 0.5
PRODUCERS = ("camera-1", "camera-2")


def keep(out: Path, tasks: int, epochs: int | Auto, announce: Callable[[LocalDaemon], None], seed: int = 0) -> None:
    """Run until Ctrl-C or SIGTERM; everything is kept under `out`.

    announce: called once the daemon is ready. Raises StreamclError if the extra `demo` is not installed or the daemon
    does not start.
    """
    images = digits()
    names = {f"digits-{number + 1}": p for number, p in enumerate(images.permutations(tasks, seed))}
    _write_evaluation_sets(out / "evaluation", images, names)
    tree = {
        "train": {"epochs": epochs},
        "posterior": {"mode": "factors"},
        "evaluation": {"directory": str((out / "evaluation").resolve())},
        "endpoints": _endpoints(),
    }
    with _until_told_to_stop(), LocalDaemon(tree, out / "state") as daemon:
        announce(daemon)
        _stream(daemon, images, names)
    print(f"\nstopped; what was learned is in {out / 'state'}: the same command continues from there", flush=True)


def _write_evaluation_sets(directory: Path, images: Images, names: dict[str, Any]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name, permutation in names.items():
        np.savez(directory / f"{name}.npz", x=images.test_x[:, permutation], y=images.test_y)


def _endpoints() -> dict[str, str]:
    """The default ones, so that every command finds the daemon; any free ones if something already listens there."""
    usual = Config().endpoints
    endpoints = {name: getattr(usual, name) for name in FREE_ENDPOINTS}
    return endpoints if all(map(_is_free, endpoints.values())) else FREE_ENDPOINTS


def _is_free(endpoint: str) -> bool:
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def _until_told_to_stop() -> Iterator[None]:
    """Ctrl-C and SIGTERM end what is inside in an orderly way."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _stream(daemon: LocalDaemon, images: Images, names: dict[str, Any]) -> None:
    with contextlib.ExitStack() as stack:
        producers = [stack.enter_context(daemon.producer(name)) for name in PRODUCERS]
        admin = stack.enter_context(daemon.admin())
        _drop_a_half_fed_revisit(admin)
        known = {task["task"] for task in admin.tasks()}
        for name, permutation in names.items():
            if name not in known:
                _feed(producers, images, permutation, name, PACE_SECONDS)
                print(f"learned {name}", flush=True)
        while True:
            for name, permutation in names.items():
                producers[0].revisit(name)
                _feed(producers, images, permutation, name, REVISIT_PACE_SECONDS)
                print(f"revisited {name}", flush=True)


def _drop_a_half_fed_revisit(admin: Admin) -> None:
    """Of the run before."""
    task = admin.status()["task"]
    if task is not None and task in {known["task"] for known in admin.tasks()}:
        admin.abandon(task)


def _feed(producers: list[Producer], images: Images, permutation: Any, name: str, pace: float) -> None:
    """One task from both producers in turn, closed once each has everything stored."""
    x, y = task_rows(images, permutation)
    for number, start in enumerate(range(0, len(x), BATCH_ROWS)):
        producer = producers[number % len(producers)]
        producer.send(x[start : start + BATCH_ROWS], y[start : start + BATCH_ROWS], name)
        time.sleep(pace)
    for producer in producers:
        producer.flush()
    producers[0].boundary(name)
