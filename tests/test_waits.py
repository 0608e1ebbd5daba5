"""Every wait of a client ends and says why; while the daemon is at work it is waited for, however long that takes."""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unhurried
from waiting import PATIENCE, until

from streamcl.bench.local import LocalDaemon
from streamcl.client import Admin, Producer, Reader
from streamcl.errors import Refused, Unreachable

TIMEOUT = 4.0  # of the clients whose wait is to end; whatever else they ask for has longer
BUDGET = 40_000
TREE: dict[str, Any] = {
    "model": {"factory": "streamcl.models:linear", "classes": 3},
    "train": {"epochs": 1},
    "posterior": {"mode": "factors"},
}
SMALL = {**TREE, "stream": {"task_bytes": BUDGET}}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(64, 8)).astype("<f4"), RNG.integers(0, 3, 64)


def learn(daemon: LocalDaemon, task: str) -> None:
    with daemon.producer(f"first-{task}") as producer:
        producer.send(X, Y, task)
        producer.boundary(task)


def pause(admin: Admin) -> None:
    admin.pause()
    until(lambda: admin.status()["state"] == "paused")


def fill(producer: Any) -> None:
    for _ in range(BUDGET):
        producer.send(X, Y, "a")


# -- a producer --------------------------------------------------------------------------------------------------------


@pytest.mark.campaign
def test_a_revisits_boundary_without_data_is_refused_in_the_end_and_may_be_sent_again(
    start: Callable[..., LocalDaemon],
) -> None:
    daemon = start(TREE)
    learn(daemon, "b")
    with daemon.producer() as producer:
        producer.revisit("b")
        producer.timeout = TIMEOUT
        began = time.monotonic()
        with pytest.raises(Refused, match="the revisit of 'b' has no data yet") as refused:
            producer.boundary("b")
        assert time.monotonic() - began >= TIMEOUT
        assert (refused.value.code, refused.value.retryable) == ("not_ready", True)
        producer.timeout = PATIENCE
        producer.send(X, Y, "b")
        assert producer.boundary("b")["kind"] == "revisit"


def test_a_boundary_of_a_paused_daemon_is_not_waited_for_for_ever(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.admin() as admin, daemon.producer() as producer:
        pause(admin)
        producer.send(X, Y, "a")
        producer.flush()
        producer.timeout = TIMEOUT
        with pytest.raises(Unreachable, match=r"training is paused.*everything sent is stored"):
            producer.boundary("a")
        admin.resume()
        until(lambda: [task["samples"] for task in admin.tasks()] == [64])


@pytest.mark.parametrize("paused", [True, pytest.param(False, marks=pytest.mark.campaign)])
def test_a_full_budget_ends_a_wait_with_the_remedy(start: Callable[..., LocalDaemon], paused: bool) -> None:
    daemon = start(SMALL)
    said: list[str] = []
    with daemon.admin() as admin, daemon.producer(on_waiting=said.append) as producer:
        producer.timeout = TIMEOUT
        if paused:
            pause(admin)
        expected = "training is paused.*the disk budget" if paused else "the disk budget of the open task 'a' is used up"
        with pytest.raises(Unreachable, match=expected):
            fill(producer)
        status = admin.status()
        assert ("paused" in (status["problem"] or "")) is paused
        assert not status["working"]
        assert len(said) >= 1
        assert said[-1] in str(status["waiting"])
        held = producer.durable
        producer.timeout = PATIENCE
        admin.resume()
        assert admin.boundary("a")["samples"] == 64 * held
        with pytest.raises(Refused, match="task_closed"):
            producer.flush()  # what was on its way to the task that is closed now
        producer.send(X, Y, "c")
        assert producer.boundary("c")["samples"] == 64


@pytest.mark.campaign
def test_what_was_taken_is_kept_until_there_is_room(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(SMALL)
    taken = 0
    with daemon.producer(gather_bytes=3 * X.nbytes, linger=PATIENCE) as producer:
        producer.timeout = TIMEOUT
        with pytest.raises(Unreachable, match="budget"):
            while True:
                producer.send(X, Y, "a")
                taken += len(X)
        daemon.stop()
        daemon.tree["stream"] = {"task_bytes": 10 * BUDGET}
        daemon.start()
        producer.timeout = PATIENCE
        assert producer.boundary("a")["samples"] == taken


@contextlib.contextmanager
def left(producer: Producer) -> Iterator[Producer]:
    """Closed in the end without waiting for what it has under way."""
    try:
        yield producer
    finally:
        producer.close(flush=False)


@pytest.mark.campaign
def test_a_barrier_that_nobody_meets_ends_with_its_name(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    words = "the boundary of 'a' waits for producer 'other' to reach 5 .now 0."
    with (
        left(daemon.producer()) as producer,
        Admin(daemon.endpoints["admin"], timeout=TIMEOUT) as admin,
    ):
        producer.send(X, Y, "a")
        producer.flush()
        producer.timeout = TIMEOUT
        with pytest.raises(Unreachable, match=words):
            admin.boundary("a", barrier={"other": 5})
        with pytest.raises(Unreachable, match=words):
            producer.boundary("a", barrier={"other": 5})
        with daemon.admin() as another:  # who did not ask for it sees what is waited for
            assert re.search(words, another.status()["waiting"])


@pytest.mark.campaign
def test_work_is_waited_for_however_long_it_takes(
    start: Callable[..., LocalDaemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    steps = 1.5 * TIMEOUT / unhurried.SECONDS
    model = {"factory": "unhurried:make", "classes": 3}
    daemon = start({**TREE, "model": model, "train": {"epochs": math.ceil(steps / 8), "batch_size": 8}})
    with daemon.producer() as producer, daemon.admin() as admin:
        for task in ("a", "b"):
            producer.timeout = PATIENCE
            producer.send(X, Y, task)
            producer.flush()
            producer.timeout = admin.timeout = TIMEOUT
            began = time.monotonic()
            assert (producer if task == "a" else admin).boundary(task)["samples"] == 64
            assert time.monotonic() - began > 1.5 * TIMEOUT  # or this shows nothing


@pytest.mark.campaign
def test_a_daemon_that_stands_still_ends_every_wait(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    learn(daemon, "a")
    with (
        left(daemon.producer()) as producer,
        Admin(daemon.endpoints["admin"], timeout=TIMEOUT) as admin,
        Reader(daemon.endpoints["predict"], timeout=TIMEOUT) as reader,
    ):
        producer.timeout = TIMEOUT
        for role in ("ingest", "predictor"):
            os.kill(daemon.children()[role], signal.SIGSTOP)
        producer.send(X, Y, "b")
        calls: tuple[Callable[[], Any], ...] = (
            producer.flush,
            lambda: producer.boundary("b"),
            lambda: reader.predict(X),
            admin.status,
            admin.checkpoint,
            lambda: admin.boundary("b"),
        )
        for call in calls:
            with pytest.raises(Unreachable, match=r"no answer|answered within"):
                call()
        with pytest.raises(Unreachable):
            for _ in range(3000):  # more than find room on their way out
                producer.boundary("b", wait=False)


# -- a fork ------------------------------------------------------------------------------------------------------------

FORK = """
import multiprocessing, sys
import numpy as np
from streamcl.client import Admin, Producer, Reader
from streamcl.errors import StreamclError

stream, predict, admin = sys.argv[1:]
x, y = np.zeros((4, 8), "<f4"), np.arange(4) % 3
made = Producer(stream, "before", timeout=120), Reader(predict), Admin(admin)
made[0].send(x, y, "a")  # its thread lives by now

def child():
    producer, reader, operator = made
    for call in (
        lambda: producer.send(x, y, "a"), producer.flush, lambda: producer.boundary("a"),
        lambda: producer.revisit("a"), lambda: reader.predict(x), operator.status, lambda: operator.boundary("a"),
    ):
        try:
            call()
        except StreamclError as error:
            assert "a fork of it: make a new" in str(error), error
        else:
            raise SystemExit(3)
    for client in made:
        client.close()
    try:
        with producer:
            pass
    except StreamclError:
        pass
    with Producer(stream, "after") as new:
        new.send(x, y, "a")
    assert Admin(admin).status()["task"] == "a"

process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
assert process.exitcode == 0, process.exitcode
assert made[0].flush() == 1
print(made[0].boundary("a")["samples"])
"""


def test_a_fork_is_told_to_make_its_own(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    endpoints = [daemon.endpoints[name] for name in ("stream", "predict", "admin")]
    done = subprocess.run(
        [sys.executable, "-c", FORK, *endpoints], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "8"), done.stderr


# -- the command line --------------------------------------------------------------------------------------------------


def test_send_says_on_standard_error_why_it_waits(start: Callable[..., LocalDaemon], tmp_path: Any) -> None:
    daemon = start(SMALL)
    np.savez(tmp_path / "flood.npz", x=np.repeat(X, 40, 0), y=np.repeat(Y, 40))
    with daemon.admin() as admin:
        pause(admin)
        command = [sys.executable, "-m", "streamcl", "send", str(tmp_path / "flood.npz"), "--task", "a"]
        with subprocess.Popen(
            [*command, "--state-dir", str(daemon.state_dir)], stderr=subprocess.PIPE, text=True
        ) as sending:
            assert sending.stderr is not None
            line = sending.stderr.readline()
            sending.kill()
    assert line.startswith("streamcl: waiting: training is paused")
    assert "resume" in line


def test_several_threads_may_ask_one_after_another(start: Callable[..., LocalDaemon]) -> None:
    from concurrent.futures import ThreadPoolExecutor

    daemon = start(TREE)
    with daemon.admin() as admin, ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: admin.status()["tasks"], range(40)))
    assert answers == [0] * 40
