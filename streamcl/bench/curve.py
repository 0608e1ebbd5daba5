"""What encryption costs: the same batches through a daemon with keys and through one without, in turns."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.fuzz.through_sockets import keyed_daemon
from streamcl.bench.local import LocalDaemon
from streamcl.bench.versions import versions
from streamcl.client import Admin, Producer
from streamcl.keys import Keys

GRANTS = {"bench": {"roles": ["produce", "admin"], "producers": ["*"]}}
TREE = {"model": {"factory": "streamcl.models:linear", "likelihood": "gaussian"}, "train": {"epochs": 1}}
SIZES = {"803 KB (256 x 784)": ((256, 784), 40), "80 bytes (1 x 20)": ((1, 20), 400)}


def run(rounds: int, out: Path | None) -> int:
    """Measure, print and write; training is paused meanwhile, the disk syncs as usual."""
    figures: dict[str, Any] = {"benchmark": "curve", "versions": versions(), "rounds": rounds}
    for name, (shape, batches) in SIZES.items():
        figures[name] = _compare(shape, batches, rounds)
        print(name, json.dumps(figures[name]), flush=True)
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def _compare(shape: tuple[int, int], batches: int, rounds: int) -> dict[str, float]:
    x = np.ones(shape, "<f4")
    seconds: dict[str, list[float]] = {"plain": [], "curve": []}
    with tempfile.TemporaryDirectory(prefix="streamcl-curve-") as home:
        keyed, keys = keyed_daemon(Path(home), GRANTS, TREE)
        with LocalDaemon(TREE, Path(home) / "plain") as plain, keyed:
            streams = {"plain": _stream(plain, None, x), "curve": _stream(keyed, keys["bench"], x)}
            for number in range(rounds):
                for kind in sorted(streams, reverse=bool(number % 2)):
                    started = time.perf_counter()
                    for _ in range(batches):
                        streams[kind].send(x, x[:, 0], "bench")
                    streams[kind].flush()
                    seconds[kind].append(time.perf_counter() - started)
            for stream in streams.values():
                stream.close()
    plain_seconds, curve_seconds = (statistics.median(seconds[kind]) for kind in ("plain", "curve"))
    return {
        "plain, messages/s": round(batches / plain_seconds, 1),
        "curve, messages/s": round(batches / curve_seconds, 1),
        "time, curve over plain": round(curve_seconds / plain_seconds, 2),
    }


def _stream(daemon: LocalDaemon, keys: Keys | None, x: Any) -> Producer:
    """A producer whose first batch has been learned; training is paused."""
    producer = Producer(daemon.endpoints["stream"], "bench", keys=keys)
    producer.send(x, x[:, 0], "bench")
    producer.flush()
    with Admin(daemon.endpoints["admin"], keys=keys) as admin:
        admin.pause()
    return producer
