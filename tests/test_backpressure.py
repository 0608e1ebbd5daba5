"""Producers faster than the trainer: credit bounds the memory, a task's budget bounds the disk."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from streamcl.bench.faults.soak import anonymous_kib
from streamcl.bench.local import LocalDaemon

PRODUCERS, CREDIT, BATCHES, ROWS, FEATURES = 4, 4, 40, 500, 512
BATCH_KIB = ROWS * FEATURES * 4 // 1024
ALLOWED_KIB = PRODUCERS * CREDIT * BATCH_KIB + 64 * 1024


def test_memory_is_bounded_by_credit(start: Callable[..., LocalDaemon]) -> None:
    """160 MB are sent while training stands still, by four producers at once: 16 MB may be in flight."""
    tree: dict[str, Any] = {
        "model": {"factory": "streamcl.models:linear", "likelihood": "gaussian"},
        "train": {"epochs": 1, "batch_size": 500},
        "stream": {"credit": CREDIT},
    }
    daemon = start(tree)
    x = np.ones((ROWS, FEATURES), "<f4")
    with daemon.producer("first") as producer, daemon.admin() as admin:
        producer.send(x, x[:, 0], "a")
        producer.flush()
        while admin.checkpoint()["batches_applied"] < 1:
            pass
        admin.pause()
        before = {role: anonymous_kib(pid) for role, pid in daemon.children().items()}
        most = dict(before)

        def stream(number: int) -> None:
            with daemon.producer(f"producer-{number}") as one:
                for _ in range(BATCHES):
                    one.send(x, x[:, 0], "a")

        threads = [threading.Thread(target=stream, args=(number,)) for number in range(PRODUCERS)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            for role, pid in daemon.children().items():
                most[role] = max(most[role], anonymous_kib(pid))
        assert admin.status()["batches_durable"] == PRODUCERS * BATCHES + 1
        admin.resume()
        done = admin.boundary("a")
        for role, pid in daemon.children().items():
            most[role] = max(most[role], anonymous_kib(pid))
    assert done["samples"] == (PRODUCERS * BATCHES + 1) * ROWS
    grown = {role: most[role] - before[role] for role in before}
    assert sum(grown.values()) < ALLOWED_KIB, grown
    assert PRODUCERS * BATCHES * BATCH_KIB > 1.5 * ALLOWED_KIB  # else nothing would be shown
