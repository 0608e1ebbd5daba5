"""What cannot be learned is set aside with its reason, and the stream goes on; a process that hangs is noticed."""

from __future__ import annotations

import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl.bench.local import LocalDaemon

DELICATE = """
import torch
from torch import nn

class Delicate(nn.Linear):
    def forward(self, x):
        if self.training == {training} and len(x) > 40:
            raise RuntimeError("out of memory: tried to allocate 99 GiB")
        return super().forward(x)

def model(input_shape, outputs):
    return Delicate(input_shape[0], outputs)
"""


def tree(**train: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "streamcl.models:linear", "likelihood": "gaussian"},
        "train": {"dtype": "float64", "batch_size": 10_000, "learning_rate": 0.01, **train},
    }


def data(seed: int, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, x.sum(1) + rng.normal(size=n)


def poison(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    """Finite, so it is let in; but the square of its error is not."""
    return np.full((n, 3), 1e200), np.full(n, -1e200)


def counted(daemon: LocalDaemon) -> float:
    with urllib.request.urlopen(daemon.url("/metrics")) as answer:
        lines = answer.read().decode().splitlines()
    return float(next(line for line in lines if line.startswith("streamcl_quarantined_total ")).split()[1])


@pytest.mark.parametrize("place", [0, 1, 3])
def test_a_batch_that_makes_the_loss_infinite_is_set_aside(start: Callable[..., LocalDaemon], place: int) -> None:
    daemon, clean = start(tree()), start(tree(), name="clean")
    batches = [data(seed) for seed in range(3)]
    learned = []
    for one, stream in ((daemon, [*batches[:place], poison(), *batches[place:]]), (clean, batches)):
        with one.producer() as producer, one.admin() as admin:
            for x, y in stream:
                producer.send(x, y, "a")
            assert producer.boundary("a")["samples"] == 90
            producer.send(*data(9), "b")
            producer.boundary("b")
            learned.append(admin.parameters())
            status = admin.status()
            if one is daemon:
                assert status["quarantined"] == 1
                assert status["last_quarantined"]["seq"] == place + 1
                assert status["last_quarantined"]["producer"] == "producer"
                assert "loss is" in status["last_quarantined"]["reason"]
                assert counted(daemon) == 1
    np.testing.assert_allclose(learned[0].theta, learned[1].theta, rtol=1e-9)
    np.testing.assert_allclose(learned[0].precision, learned[1].precision, rtol=1e-9)
    assert learned[1].precision.min() > 1.5
    assert "rolled back" in daemon.log_text()


def test_what_was_set_aside_stays_so_after_a_restart(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.send(*poison(), "a")
        producer.send(*data(1), "a")
        producer.flush()
        while admin.checkpoint()["batches_applied"] < 3:  # the one with the set-aside batch behind it
            pass
    daemon.kill_all()
    daemon.start()
    with daemon.producer() as producer, daemon.admin() as admin:
        assert producer.durable == 3
        assert producer.boundary("a")["samples"] == 60
        assert admin.status()["quarantined"] == 1
        assert admin.status()["batches_applied"] == 3


def test_a_task_of_nothing_but_poison_changes_nothing(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.boundary("a")
        before = admin.parameters()
        producer.send(*poison(), "b")
        done = producer.boundary("b")
        after = admin.parameters()
        assert (done["samples"], admin.status()["quarantined"]) == (0, 1)
        assert [task["task"] for task in admin.tasks()] == ["a", "b"]
        producer.send(*data(1), "c")
        assert producer.boundary("c")["samples"] == 30
    np.testing.assert_array_equal(before.theta, after.theta)
    np.testing.assert_array_equal(before.precision, after.precision)


@pytest.mark.parametrize(("training", "failures", "samples"), [(True, 3, 60), (False, 4, 0)])
def test_a_boundary_that_fails_is_tried_more_calmly_then_taken_as_it_is(
    start: Callable[..., LocalDaemon],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    training: bool,
    failures: int,
    samples: int,
) -> None:
    """Batches of 30 fit, the boundary's 60 rows do not, in its epochs or in its Fisher: no reason to stop."""
    (tmp_path / "delicate.py").write_text(DELICATE.format(training=training))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    daemon = start({**tree(), "model": {"factory": "delicate:model", "likelihood": "gaussian"}})
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.send(*data(1), "a")
        done = producer.boundary("a")
        status = admin.status()
        precision = admin.parameters().precision
        producer.send(*data(2), "b")
        assert producer.boundary("b")["samples"] == 30
    assert done["samples"] == samples
    assert status["quarantined"] == failures
    assert "99 GiB" in status["last_quarantined"]["reason"]
    assert (precision.min() > 1.5) == (samples > 0)


def test_poison_in_a_revisit_leaves_the_old_factor(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**tree(), "posterior": {"mode": "factors"}})
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.boundary("a")
        before = admin.parameters()
        producer.revisit("a")
        producer.send(*poison(), "a")
        admin.boundary("a")
        after = admin.parameters()
    np.testing.assert_array_equal(before.theta, after.theta)
    np.testing.assert_array_equal(before.precision, after.precision)


@pytest.mark.parametrize("role", ["trainer", "ingest", "predictor"])
def test_a_process_that_hangs_is_ended_and_started_again(start: Callable[..., LocalDaemon], role: str) -> None:
    daemon = start(tree(watchdog_seconds=5.0))
    with daemon.producer() as producer, daemon.reader() as reader:
        producer.send(*data(0), "a")
        producer.flush()
        hanging = daemon.children()[role]
        os.kill(hanging, signal.SIGSTOP)
        deadline = time.monotonic() + 30
        while daemon.children().get(role, hanging) == hanging:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        producer.send(*data(1), "a")
        assert producer.boundary("a")["samples"] == 60
        assert reader.predict(data(2)[0]).mean.shape == (30,)
    assert "no progress" in daemon.log_text()


def test_a_long_consolidation_is_progress(start: Callable[..., LocalDaemon]) -> None:
    """The watchdog follows steps, not records: many epochs may take longer than its patience."""
    daemon = start(tree(watchdog_seconds=5.0, epochs=4000, batch_size=8))
    with daemon.producer() as producer:
        producer.send(*data(0, n=200), "a")
        assert producer.boundary("a")["seconds"] > 5
    assert "no progress" not in daemon.log_text()
