"""Training through the real daemon while data streams in, beside the plainest PyTorch loop on data held in memory."""

from __future__ import annotations

import json
import time

from streamcl.bench.bare import Bare
from streamcl.bench.local import LocalDaemon
from streamcl.bench.speed.table import Row, as_fast
from streamcl.bench.speed.workloads import Workload
from streamcl.client import Admin, Producer

LOOK_SECONDS = 0.01
RECORDS = {"MLP 784-400-400-10": 160, "convolutional": 50}


def rows(rounds: int) -> list[Row]:
    """Samples a second for every model; each round streams new records of one open task."""
    return [training(Workload(model, records), rounds) for model, records in RECORDS.items()]


def training(workload: Workload, rounds: int) -> Row:
    """From the first batch sent until the last one is learned, against the same steps on the same rows."""
    x, y = workload.arrays()
    with (
        Bare("train", json.dumps(workload.plain())) as bare,
        LocalDaemon(workload.tree()) as daemon,
        daemon.producer() as producer,
        daemon.admin() as admin,
    ):

        def through() -> float:
            before = admin.status()["samples_seen"]
            started = time.perf_counter()
            _send(producer, workload, x, y)
            _until_learned(admin, before + len(x))
            return time.perf_counter() - started

        row = as_fast(f"training while data streams in, {workload.model}", "a bare loop", 0.95, through, bare.ask, rounds)
        admin.stop(drain=False)
    return row


def _send(producer: Producer, workload: Workload, x: object, y: object) -> None:
    for start in range(0, workload.records * workload.rows, workload.rows):
        producer.send(x[start : start + workload.rows], y[start : start + workload.rows], "open")  # type: ignore[index]
    producer.flush()


def _until_learned(admin: Admin, samples: int) -> None:
    while admin.status()["samples_seen"] < samples:
        time.sleep(LOOK_SECONDS)
