"""The Python producer: small blocks are sent together, with the same effect as if sent singly."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from waiting import until

from streamcl.bench.local import LocalDaemon
from streamcl.client import GATHER_BYTES, Admin, Producer
from streamcl.errors import Refused

TREE: dict[str, Any] = {"model": {"args": {"hidden": [8]}, "classes": 3}, "train": {"epochs": 1, "batch_size": 8}}
X, Y = np.random.default_rng(0).normal(size=(600, 20)).astype("<f4"), np.arange(600) % 3


def durable(admin: Admin) -> int:
    return int(admin.status()["batches_durable"])


def test_small_blocks_travel_as_one_message_and_all_their_rows_are_learned(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer(gather_bytes=GATHER_BYTES, linger=60.0) as producer, daemon.admin() as admin:
        numbers = {producer.send(X[i : i + 10], Y[i : i + 10], "a") for i in range(0, 600, 10)}
        assert numbers == {1}
        assert durable(admin) == 0
        assert producer.boundary("a")["samples"] == 600
        assert durable(admin) == 1


def test_a_full_load_is_sent_at_once_and_a_large_block_alone(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer(gather_bytes=1000, linger=60.0) as producer, daemon.admin() as admin:
        assert producer.send(X[:300], Y[:300], "a") == 1
        assert [producer.send(X[i : i + 5], Y[i : i + 5], "a") for i in range(300, 315, 5)] == [2, 2, 2]
        until(lambda: durable(admin) == 2)
        producer.flush()
        assert producer.durable == 2


def test_what_cannot_be_joined_goes_by_itself(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**TREE, "stream": {"boundary": "on-change"}})
    with daemon.producer(gather_bytes=GATHER_BYTES, linger=60.0) as producer, daemon.admin() as admin:
        one = X[:4], Y[:4]
        assert producer.send(*one, "a") == 1
        assert producer.send(X[:4].astype("<f8"), Y[:4], "a") == 2
        assert producer.send(X[:4].astype("<f8"), Y[:4].astype("<i4"), "a") == 3
        assert producer.send(*one, "b") == 4
        assert producer.send(*one, "b", boundary=True) == 4
        producer.flush()
        until(lambda: admin.status()["tasks"] == 2)
        assert [task["samples"] for task in admin.tasks()] == [12, 8]


def test_a_lone_block_is_sent_after_a_while_without_another_call(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer(gather_bytes=GATHER_BYTES, linger=0.02) as producer, daemon.admin() as admin:
        producer.send(X[:4], Y[:4], "a")
        until(lambda: admin.status()["samples_seen"] == 4)
        producer.send(X[:4], Y[:4], "a")
        until(lambda: admin.status()["samples_seen"] == 8)
        assert producer.flush() == 2


def test_without_gathering_every_block_is_a_message(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer(gather_bytes=0) as producer:
        assert [producer.send(X[i : i + 2], Y[i : i + 2], "a") for i in (0, 2, 4)] == [1, 2, 3]
        assert producer.flush() == 3


@pytest.mark.parametrize(("y", "code"), [(Y[:3], "bad_shape"), (np.full(4, 7), "bad_label")])
def test_a_refused_block_takes_none_down_that_was_stored_before(
    y: Any, code: str, start: Callable[..., LocalDaemon]
) -> None:
    daemon = start(TREE)
    with daemon.producer(gather_bytes=GATHER_BYTES, linger=60.0) as producer:
        producer.send(X[:4], Y[:4], "a")
        producer.flush()
        producer.send(X[:4], Y[:4], "a")
        with pytest.raises(Refused) as refused:
            producer.send(X[:4], y, "a")
            producer.flush()
        assert refused.value.code == code
        producer.send(X[:4], Y[:4], "a")
        samples = producer.boundary("a")["samples"]
    assert samples == (12 if code == "bad_shape" else 8)  # of another form it went alone, a wrong label took its load along


def test_a_dtype_that_does_not_travel_is_refused_at_once(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with (
        daemon.producer(gather_bytes=GATHER_BYTES) as producer,
        pytest.raises(Refused, match=r"x: expected a dtype of .*, got <c8"),
    ):
        producer.send(X[:4].astype("<c8"), Y[:4], "a")


def test_closed_without_more_ado_it_has_stored_everything_or_says_what_not(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    producer = Producer(daemon.endpoints["stream"], "closed", linger=60.0)
    for _ in range(7):
        producer.send(X, Y, "a")
    producer.close()
    producer.close()  # nothing more to do
    with daemon.admin() as admin:
        until(lambda: admin.status()["samples_seen"] == 7 * len(X))
        stored = durable(admin)
        refused = Producer(daemon.endpoints["stream"], "refused", linger=60.0)
        refused.send(X[:, :1], Y, "a")
        with pytest.raises(Refused, match="bad_shape"):
            refused.close()
        left = Producer(daemon.endpoints["stream"], "left", linger=60.0)
        left.send(X, Y, "a")
        left.close(flush=False)
        assert durable(admin) == stored


def test_a_program_that_ends_without_closing_loses_nothing_or_is_told(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    program = (
        "import sys, numpy as np; from streamcl.client import Producer\n"
        "rows = int(sys.argv[2])\n"
        "producer = Producer(sys.argv[1], 'ends', linger=60.0)\n"
        "producer.send(np.ones((4, rows)), np.arange(4) % 3, 'a')\n"
    )

    def ends(columns: int) -> str:
        words = [sys.executable, "-c", program, daemon.endpoints["stream"], str(columns)]
        return subprocess.run(words, text=True, capture_output=True, timeout=60, check=True).stderr

    with daemon.admin() as admin:
        assert ends(X.shape[1]) == ""
        assert durable(admin) == 1
        assert "producer 'ends' was not closed, and not all was stored: bad_shape" in ends(X.shape[1] + 1)
