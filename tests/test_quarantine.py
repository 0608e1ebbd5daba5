"""What cannot be learned is set aside with its reason, and the stream goes on; a process that hangs is noticed."""

from __future__ import annotations

import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import unhurried
from waiting import until

from streamcl.bench.local import LocalDaemon
from streamcl.errors import Refused

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
        "model": {"factory": "streamcl.models:linear", "likelihood": "gaussian", "noise_variance": 1.0},
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
            done = producer.boundary("a")
            assert (done["samples"], done["set_aside"]) == (90, 30 * (one is daemon))
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
        done = producer.boundary("a")
        assert (done["samples"], done["set_aside"]) == (60, 30)
        assert admin.status()["quarantined"] == 1
        assert admin.status()["batches_applied"] == 3


def test_a_task_of_nothing_but_poison_is_held_and_changes_nothing(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**tree(), "stream": {"on_failure": "set-aside"}})
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.boundary("a")
        before = admin.parameters()
        producer.send(*poison(), "b")
        with pytest.raises(Refused, match="30 rows could not be learned"):
            producer.boundary("b")
        after = admin.parameters()
        assert [(task["task"], task["state"]) for task in admin.tasks()] == [("a", "consolidated"), ("b", "held")]
        producer.send(*data(1), "c")
        assert producer.boundary("c")["samples"] == 30
    np.testing.assert_allclose(before.theta, after.theta, rtol=1e-12)
    np.testing.assert_array_equal(before.precision, after.precision)


@pytest.mark.parametrize("training", [True, False])
def test_a_boundary_that_fails_in_its_epochs_or_in_its_fisher_holds_the_task(
    start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: bool
) -> None:
    """Batches of 30 fit, the boundary's 60 rows do not."""
    (tmp_path / "delicate.py").write_text(DELICATE.format(training=training))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    daemon = start({**tree(), "model": {"factory": "delicate:model", "likelihood": "gaussian"}})
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.send(*data(1), "a")
        with pytest.raises(Refused, match="99 GiB"):
            producer.boundary("a")
        assert admin.status()["quarantined"] == 1  # a model that raised would raise again
        assert (admin.parameters().precision == 1.0).all()
        assert [row["rows"] for row in admin.quarantine()] == [60]


@pytest.mark.campaign
def test_steps_that_diverge_are_tried_more_calmly_and_said(start: Callable[..., LocalDaemon]) -> None:
    """Plain gradient descent far beyond its limit: no row is at fault, so every one is learned, at a rate that does."""
    daemon = start({**tree(optimizer="sgd", learning_rate=1e3, batch_size=8, epochs=200)})
    with daemon.producer() as producer, daemon.admin() as admin:
        for seed in range(3):
            producer.send(*data(seed), "a")
        done = producer.boundary("a")
        assert (done["samples"], done["set_aside"]) == (90, 0)
        assert "training diverged" in admin.status()["warning"]
        x, y = (np.concatenate(parts) for parts in zip(*map(data, range(3)), strict=True))
        inputs = np.column_stack([x, np.ones(len(x))])
        best = np.linalg.solve(inputs.T @ inputs + np.eye(4), inputs.T @ y)
        np.testing.assert_allclose(admin.parameters().theta, best, atol=0.5)


@pytest.mark.parametrize("factory", [pytest.param("mlp", marks=pytest.mark.campaign), "linear"])
def test_features_of_size_1000_under_plain_sgd_are_learned_and_the_rate_is_named(
    start: Callable[..., LocalDaemon], factory: str
) -> None:
    daemon = start(
        {
            "model": {"factory": f"streamcl.models:{factory}", "classes": 3},
            "train": {"optimizer": "sgd", "learning_rate": 0.1},
            "posterior": {"curvature": "diagonal", "expectation": "mode"},
        }
    )
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 600)
    x = (1000 * (rng.normal(size=(600, 8)) + 3 * np.eye(3, 8)[y])).astype("<f4")
    with daemon.producer() as producer, daemon.reader() as reader:
        for begin in range(0, 600, 100):
            producer.send(x[begin : begin + 100], y[begin : begin + 100], "a")
        done = producer.boundary("a")
        assert (done["samples"], done["set_aside"]) == (600, 0)
        assert "lower train.learning_rate" in done["warning"]
        assert float((reader.predict(x).label == y).mean()) > 0.9


def test_steps_that_diverge_at_every_rate_hold_the_task(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**tree(optimizer="sgd", learning_rate=1e12, batch_size=8)})
    with daemon.producer() as producer, daemon.admin() as admin:
        for seed in range(3):
            producer.send(*data(seed), "a")
        with pytest.raises(Refused, match="Diverged"):
            producer.boundary("a")
        assert [row["rows"] for row in admin.quarantine()] == [90]
    daemon.stop()
    daemon.tree["train"] = {**daemon.tree["train"], "learning_rate": 0.01}
    daemon.start()
    with daemon.admin() as admin:
        until(lambda: admin.status()["tasks"] == 1)
        assert admin.tasks()[0]["samples"] == 90


def test_poison_in_a_revisit_leaves_the_old_factor(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**tree(), "posterior": {"mode": "factors"}})
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.boundary("a")
        before = admin.parameters()
        producer.revisit("a")
        producer.send(*poison(), "a")
        with pytest.raises(Refused, match="unlearnable"):
            admin.boundary("a")
        after = admin.parameters()
    np.testing.assert_array_equal(before.theta, after.theta)
    np.testing.assert_array_equal(before.precision, after.precision)


@pytest.mark.campaign
@pytest.mark.parametrize("role", ["trainer", "ingest", "predictor"])
def test_a_process_that_hangs_is_ended_and_started_again(start: Callable[..., LocalDaemon], role: str) -> None:
    daemon = start(tree(watchdog_seconds=5.0))
    with daemon.producer() as producer, daemon.reader() as reader:
        producer.send(*data(0), "a")
        producer.flush()
        hanging = daemon.children()[role]
        os.kill(hanging, signal.SIGSTOP)
        until(lambda: daemon.children().get(role, hanging) != hanging)
        producer.send(*data(1), "a")
        assert producer.boundary("a")["samples"] == 60
        assert reader.predict(data(2)[0]).mean.shape == (30,)
    assert "no progress" in daemon.log_text()


@pytest.mark.campaign
def test_a_long_consolidation_is_progress(start: Callable[..., LocalDaemon], monkeypatch: pytest.MonkeyPatch) -> None:
    """The watchdog follows steps, not records: many epochs may take longer than its patience."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    settings = tree(watchdog_seconds=8.0, epochs=25, batch_size=10, dtype="float32")
    daemon = start({**settings, "model": {"factory": "unhurried:make", "likelihood": "gaussian"}})
    with daemon.producer() as producer:
        producer.send(*data(0, n=200), "a")
        assert producer.boundary("a")["seconds"] > 25 * 20 * unhurried.SECONDS > 8.0
    assert "no progress" not in daemon.log_text()
