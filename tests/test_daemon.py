"""The daemon's life: crashes, restarts, several producers, what a user's model may do. Through real sockets."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import PATIENCE, until

from streamcl import Producer
from streamcl.bench.local import LocalDaemon
from streamcl.errors import Refused, StreamclError, Unreachable

TREE: dict[str, Any] = {
    "model": {"args": {"hidden": [16]}, "classes": 4},
    "train": {"epochs": 3, "learning_rate": 0.01},
    "posterior": {"scale": 3.0},
}


def rows(seed: int, n: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    return (rng.normal(size=(n, 5)) + y[:, None]).astype("<f4"), y


def learn(daemon: LocalDaemon, between: Callable[[int], None] = lambda number: None) -> None:
    """Three tasks of four batches, until they are consolidated; `between` runs behind every message."""
    send(daemon, between)
    wait_until_learned(daemon)


def send(daemon: LocalDaemon, between: Callable[[int], None] = lambda number: None) -> None:
    number = 0
    with daemon.producer(timeout=120) as producer:
        for task in range(3):
            for part in range(4):
                producer.send(*rows(10 * task + part), f"task-{task}")
                between(number := number + 1)
            producer.boundary(f"task-{task}", wait=False)
            between(number := number + 1)


def wait_until_learned(daemon: LocalDaemon) -> None:
    with daemon.admin() as admin:
        until(lambda: len(admin.tasks()) == 3, 2 * PATIENCE)


def parameters(daemon: LocalDaemon) -> list[np.ndarray]:
    with daemon.admin() as admin:
        got = admin.parameters()
    return [got.theta, got.precision, got.shift]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    with LocalDaemon(TREE, tmp_path_factory.mktemp("whole") / "state") as daemon:
        learn(daemon)
        return parameters(daemon)


def assert_equal(daemon: LocalDaemon, expected: list[np.ndarray]) -> None:
    for got, wanted in zip(parameters(daemon), expected, strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_the_same_stream_gives_the_same_bits(start: Callable[..., LocalDaemon], undisturbed: list[np.ndarray]) -> None:
    daemon = start(TREE)
    learn(daemon)
    assert_equal(daemon, undisturbed)


@pytest.mark.campaign
@pytest.mark.parametrize("moments", [(2, 7), (5, 6, 11), (1, 14)])
def test_killed_and_started_again_it_ends_with_the_same_bits(
    start: Callable[..., LocalDaemon], undisturbed: list[np.ndarray], moments: tuple[int, ...]
) -> None:
    """kill -9 of the whole daemon after given messages; the producer continues by itself."""
    daemon = start(TREE)

    def between(number: int) -> None:
        if number in moments:
            daemon.kill()
            daemon.start()

    learn(daemon, between)
    assert_equal(daemon, undisturbed)
    with daemon.admin() as admin:
        assert [task["samples"] for task in admin.tasks()] == [4 * 96] * 3
        assert admin.status()["samples_seen"] == 3 * 4 * 96


@pytest.mark.campaign
def test_a_killed_trainer_is_started_again_and_loses_nothing(
    start: Callable[..., LocalDaemon], undisturbed: list[np.ndarray]
) -> None:
    daemon = start(TREE)

    def between(number: int) -> None:
        if number in (3, 8):
            kill_child(daemon, "trainer")

    learn(daemon, between)
    assert_equal(daemon, undisturbed)


@pytest.mark.campaign
def test_a_killed_ingest_process_is_started_again_and_loses_nothing(
    start: Callable[..., LocalDaemon], undisturbed: list[np.ndarray]
) -> None:
    daemon = start(TREE)

    def between(number: int) -> None:
        if number in (3, 8):
            kill_child(daemon, "ingest")

    learn(daemon, between)
    assert_equal(daemon, undisturbed)


def kill_child(daemon: LocalDaemon, role: str) -> None:
    """SIGKILL to one working process, once it is there."""
    found: list[int] = []
    until(lambda: found.extend(children(daemon, role)) or found)
    os.kill(found[0], signal.SIGKILL)


def children(daemon: LocalDaemon, role: str) -> list[int]:
    assert daemon.process is not None
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            arguments = (path / "cmdline").read_bytes().split(b"\0")
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == daemon.process.pid and role.encode() in arguments:
            found.append(int(path.name))
    return found


@pytest.mark.campaign
def test_stopped_and_started_again_it_goes_on_in_the_middle_of_a_task(
    start: Callable[..., LocalDaemon], undisturbed: list[np.ndarray]
) -> None:
    daemon = start(TREE)

    def between(number: int) -> None:
        if number in (3, 9):
            assert daemon.stop() == 0
            daemon.start()

    learn(daemon, between)
    assert_equal(daemon, undisturbed)


def test_checkpoints_change_nothing(start: Callable[..., LocalDaemon], undisturbed: list[np.ndarray]) -> None:
    daemon = start(TREE)
    with daemon.admin() as admin:
        learn(daemon, lambda number: admin.checkpoint() and None)
    assert_equal(daemon, undisturbed)


def test_everyone_is_answered_during_a_long_consolidation(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**TREE, "train": {"epochs": 10**6}})
    with daemon.producer() as producer, daemon.admin() as admin, daemon.reader() as reader:
        producer.send(*rows(0), "long")
        producer.boundary("long", wait=False)
        until(lambda: admin.status()["state"] == "consolidating")
        first = reader.predict(rows(1)[0]).version
        producer.send(*rows(2), "next")
        assert producer.flush() == 3
        assert admin.status()["task"] == "next"
        assert "streamcl_trainer_up" in admin.metrics()
        until(lambda: reader.predict(rows(1)[0]).version != first)  # predictions follow the training
        assert admin.status()["state"] == "consolidating"
        admin.stop(drain=False)
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 0


def test_two_producers_share_a_task(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer("first") as first, daemon.producer("second") as second:
        for number in range(10):
            first.send(*rows(number), "shared")
            second.send(*rows(100 + number), "shared")
        second.flush()
        done = first.boundary("shared", barrier={"second": 10})
        assert done["samples"] == 20 * 96


def test_a_second_process_of_a_name_fences_the_first(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with (
        pytest.raises(Refused) as caught,
        daemon.producer("one", epoch=1) as old,
        daemon.producer("one", epoch=2) as new,
    ):
        new.send(*rows(0), "a")
        new.flush()
        old.send(*rows(1), "a")
        old.flush()
    assert caught.value.code == "stale_epoch"


def test_a_restarted_producer_whose_clock_is_behind_still_goes_on(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    far_ahead = 10**15
    with daemon.producer("one", epoch=far_ahead) as producer:
        producer.send(*rows(0), "a")
    with daemon.producer("one") as producer:
        assert producer.send(*rows(1), "a") == 2


def test_a_refused_batch_is_told_and_the_producer_goes_on(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer() as producer:
        producer.send(*rows(0), "a")
        producer.flush()
        with pytest.raises(Refused) as caught:
            producer.send(np.ones((4, 99), "<f4"), np.zeros(4, "<i8"), "a")
            producer.flush()
        assert caught.value.code == "bad_shape"
        producer.send(*rows(1), "a")
        assert producer.boundary("a")["samples"] == 192


def test_torch_tensors_and_booleans_are_taken(start: Callable[..., LocalDaemon]) -> None:
    torch = pytest.importorskip("torch")
    daemon = start({**TREE, "model": {"likelihood": "bernoulli", "args": {"hidden": [4]}}})
    with daemon.producer() as producer, daemon.reader() as reader:
        x = torch.randn(32, 3, requires_grad=True)
        producer.send(x, x[:, 0] > 0, "a")
        producer.boundary("a")
        assert reader.predict(x).probs.shape == (32,)


def test_a_producer_without_credit_waits_and_nothing_is_dropped(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**TREE, "stream": {"task_bytes": 20_000, "credit": 4}})
    refused: list[Refused] = []

    def produce() -> None:
        try:
            with daemon.producer("fast") as producer:
                for number in range(12):
                    producer.send(*rows(number), "a")
        except Refused as error:
            refused.append(error)

    thread = threading.Thread(target=produce, daemon=True)
    thread.start()
    with daemon.admin() as admin:
        until(lambda: admin.status()["batches_durable"] == 6)
        assert admin.status()["spool_bytes"] <= 20_000
        thread.join(0.3)
        assert thread.is_alive()  # six batches fill the budget, the seventh waits
        assert admin.boundary("a")["samples"] == 6 * 96
    thread.join(PATIENCE)
    assert [error.code for error in refused] == ["task_closed"]


def test_no_daemon_is_said_in_words() -> None:
    with pytest.raises(Unreachable, match="streamcl serve"):
        Producer("tcp://127.0.0.1:1", "p", timeout=0.3)


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"evaluation": {"directory": "nowhere"}, "model": {"likelihood": "gaussian"}}, "evaluation.directory"),
        ({"train": {"device": "cuda:99"}}, "train.device"),
        ({"model": {"factory": "nowhere:model"}}, "nowhere"),
    ],
)
def test_a_daemon_that_cannot_start_says_why(tmp_path: Path, tree: dict[str, Any], said: str) -> None:
    with pytest.raises(StreamclError, match=said):
        LocalDaemon(tree, tmp_path / "state").start()


def test_another_models_state_directory_is_refused(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer() as producer:
        producer.send(*rows(0), "a")
        producer.boundary("a")
    daemon.stop()
    with pytest.raises(StreamclError, match=r"model\.args was .*\bnew state directory"):
        start({**TREE, "model": {"args": {"hidden": [17]}, "classes": 4}})


def test_a_second_daemon_on_the_directory_is_refused(start: Callable[..., LocalDaemon]) -> None:
    start(TREE)
    with pytest.raises(StreamclError, match="in use"):
        start(TREE)


def test_sent_three_times_over_reordered_and_with_gaps_it_is_trained_once(
    start: Callable[..., LocalDaemon], connect: Callable[..., Any]
) -> None:
    """And by two processes of one name, the older of which is fenced off."""
    daemon, orderly = start(TREE), start(TREE, name="orderly")
    batches = [rows(seed) for seed in range(10)]
    with orderly.producer("p") as producer:
        for x, y in batches:
            producer.send(x, y, "a")
        producer.boundary("a")
    older, newer = connect(daemon.endpoints["stream"]), connect(daemon.endpoints["stream"])
    older.ask("hello", producer="p", epoch=1)
    newer.ask("hello", producer="p", epoch=2)
    rng, codes, durable = random.Random(0), set(), 0
    while durable < len(batches):
        for number in rng.sample(range(len(batches)), len(batches)) * 3:
            x, y = batches[number]
            client = rng.choice((older, newer, newer))
            answer = client.ask("batch", {"x": x, "y": y}, seq=number + 1, task="a", id=number)
            assert answer["id"] == number
            assert answer["type"] == "ack" or answer["code"] in ("gap", "stale_epoch")
            codes.add(answer.get("code", "ack"))
            durable = max(durable, answer.get("durable", 0))
    for _ in range(3):
        newer.send("boundary", seq=len(batches) + 1, task="a")
    assert newer.receive_until("done")["samples"] == sum(len(x) for x, _ in batches)
    assert codes == {"ack", "gap", "stale_epoch"}
    with daemon.admin() as admin, orderly.admin() as other:
        assert admin.status()["batches_durable"] == len(batches)
        np.testing.assert_array_equal(admin.parameters().theta, other.parameters().theta)
        np.testing.assert_array_equal(admin.parameters().precision, other.parameters().precision)


def test_a_torn_tail_is_cut_off_counted_and_reported(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(TREE)
    with daemon.producer() as producer:
        producer.send(*rows(0), "a")
        producer.flush()
    daemon.kill_all()
    (segment,) = (daemon.state_dir / "log").glob("*.seg")
    with segment.open("ab") as file:
        file.write(b"RECD" + bytes(1000))
    daemon.start()
    with daemon.producer() as producer, daemon.admin() as admin:
        assert admin.status()["torn_bytes"] == 1004
        assert producer.durable == 1
        assert producer.boundary("a")["samples"] == 96
    assert "torn tail" in daemon.log_text()


def test_sigterm_drains(start: Callable[..., LocalDaemon], undisturbed: list[np.ndarray]) -> None:
    """Paused at first, so that all there is to learn is still to be learned when the signal comes."""
    daemon = start(TREE)
    with daemon.admin() as admin:
        admin.pause()
        send(daemon)
        assert admin.status()["batches_applied"] == 0
    assert daemon.stop() == 0
    assert "drain took too long" not in daemon.log_text()
    daemon.start()
    with daemon.admin() as admin:
        assert admin.status()["batches_applied"] == 12
    wait_until_learned(daemon)
    assert_equal(daemon, undisturbed)


def test_a_second_sigterm_stops_at_once_and_nothing_is_lost(
    start: Callable[..., LocalDaemon], undisturbed: list[np.ndarray]
) -> None:
    """While it drains, which would take for ever; what was stored is learned by the next start."""
    daemon = start({**TREE, "train": {**TREE["train"], "epochs": 10**6}})
    with daemon.admin() as admin:
        admin.pause()
        send(daemon)
    assert daemon.process is not None
    daemon.process.terminate()
    until(lambda: "stopping" in daemon.log_text())  # else the two might come as one
    daemon.process.terminate()
    assert daemon.process.wait(PATIENCE) == 0
    assert "drain took too long" not in daemon.log_text()
    daemon.tree = {**daemon.tree, "train": TREE["train"]}
    daemon.start()
    wait_until_learned(daemon)
    assert_equal(daemon, undisturbed)
