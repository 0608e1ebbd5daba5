"""Checkpoints that are written beside training: the copy, the thread, and a daemon that is killed amid them."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl import Learner
from streamcl.bench.local import LocalDaemon
from streamcl.daemon import memory
from streamcl.storage import verified
from streamcl.storage.beside import Beside, Copy
from streamcl.storage.disk import Disk
from streamcl.storage.frozen import Changed, FrozenStore

PATIENCE = 60.0


def arrays(seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    return {
        "a": rng.normal(size=(7, 3)),
        "empty": np.zeros((0, 4), "<i4"),
        "scalar": np.array(rng.normal()),
        "long": rng.normal(size=900),
        "strided": rng.normal(size=(6, 4)).astype("<f4")[::2, ::3],
        "flags": rng.integers(0, 2, 5).astype(bool),
    }


def test_a_copy_holds_what_the_arrays_held_and_its_memory_is_used_again() -> None:
    copy, first = Copy(), arrays()
    wanted = {name: array.copy() for name, array in first.items()}
    made = copy.of(first)
    assert made is not None
    first["a"][:] = 0
    for name, array in wanted.items():
        np.testing.assert_array_equal(made[name], array)
        assert made[name].dtype == array.dtype
    again = copy.of(arrays(1))
    assert again is not None
    assert again["a"].base is not None
    assert np.shares_memory(again["a"], made["a"])
    np.testing.assert_array_equal(again["strided"], arrays(1)["strided"])


def test_a_copy_for_which_there_is_no_room_is_none_and_says_how_much_it_would_take() -> None:
    asked: list[int] = []
    copy = Copy(lambda nbytes: asked.append(nbytes) or False)  # type: ignore[func-returns-value]
    assert copy.of({"a": np.zeros(1000)}) is None
    assert asked == [8000]
    assert "8,000 bytes" in copy.misfit({"a": np.zeros(1000)})


def test_memory_has_room_for_half_of_what_is_left_under_the_least_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable: 8000 kB",
        "/proc/self/cgroup": "0::/pod/daemon",
        "/sys/fs/cgroup/pod/memory.max": "6000000",
        "/sys/fs/cgroup/pod/memory.current": "5000000",
        "/sys/fs/cgroup/pod/memory.stat": "anon 1\nactive_file 900000\ninactive_file 100000",
        "/sys/fs/cgroup/pod/daemon/memory.max": "max",
    }
    monkeypatch.setattr(memory, "_lines", lambda path: files.get(str(path), "").splitlines())
    assert (memory.has_room(1_000_000), memory.has_room(1_000_001)) == (True, False)
    files["/sys/fs/cgroup/pod/memory.max"] = "max"
    assert (memory.has_room(4000 << 10), memory.has_room((4000 << 10) + 1)) == (True, False)
    files.clear()
    assert memory.has_room(1 << 60)  # nothing is known of it


def test_a_file_written_slowly_is_the_same_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verified, "WRITTEN_BYTES", 1000)
    monkeypatch.setattr(verified, "COMPARED_BYTES", 999)
    meta, breaths = {"number": 3}, []
    wanted = {name: np.ascontiguousarray(array) for name, array in arrays().items() if name != "flags"}
    verified.save(tmp_path / "at once", meta, wanted, Disk())
    verified.save(tmp_path / "slowly", meta, wanted, Disk(), lambda: breaths.append(1))
    assert (tmp_path / "at once").read_bytes() == (tmp_path / "slowly").read_bytes()
    assert len(breaths) > 5
    verified.load(tmp_path / "slowly")


def test_what_is_done_beside_leaves_its_share_to_others_until_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    beside, waited, clock = Beside(share=0.25), [], iter([0.0, 1.0, 3.0, 10.0])
    monkeypatch.setattr(time, "thread_time", lambda: next(clock))

    def work() -> None:
        for number in range(3):
            if number == 2:
                beside.hurry()
            beside.breathe()

    monkeypatch.setattr(beside._hurry, "wait", waited.append)
    beside.begin(work)
    assert beside.ended(PATIENCE)
    assert beside.take() is None
    assert waited == [3.0, 6.0]


def test_one_thing_is_done_beside_at_a_time_and_what_it_raised_is_taken() -> None:
    beside = Beside()
    assert not beside.ended()

    def fail() -> None:
        raise OSError("no")

    beside.begin(fail)
    with pytest.raises(RuntimeError, match="have been taken"):
        beside.begin(fail)
    assert beside.ended(PATIENCE)
    assert isinstance(beside.take(), OSError)


def test_what_was_taken_for_constant_and_is_not_is_noticed(tmp_path: Path) -> None:
    store, backbone = FrozenStore(tmp_path, Disk()), np.arange(10_000.0)
    referred, (presumed,) = store.presumed({"fixed.backbone": backbone, "theta": np.zeros(3)})
    assert set(referred) == {"by-digest.fixed.backbone", "theta"}
    presumed.check(lambda: None)
    backbone[1234] += 1
    with pytest.raises(Changed, match=r"fixed\.backbone has changed"):
        presumed.check(lambda: None)


OFTEN = """
from streamcl.daemon import trainer
from streamcl.models import mlp as model

trainer.Trainer.__init__.__kwdefaults__["checkpoint_seconds"] = 0.0
"""
TREE: dict[str, Any] = {
    "model": {"args": {"hidden": [300]}, "classes": 4},
    "train": {"epochs": 3, "device": "cpu"},
    "posterior": {"mode": "factors", "curvature": "diagonal", "expectation": "mode"},
}
TASKS, BATCHES, KILLS = 2, 20, 4


def batches(task: int) -> Any:
    rng = np.random.default_rng(task)
    return [(rng.normal(size=(64, 50)).astype("<f4"), rng.integers(0, 4, 64)) for _ in range(BATCHES)]


@pytest.mark.campaign
def test_a_trainer_killed_while_it_writes_beside_learns_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "often.py").write_text(OFTEN)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    done, killed, rng = threading.Event(), [], random.Random(0)
    tree = {**TREE, "model": {**TREE["model"], "factory": "often:model"}}
    with LocalDaemon(tree, tmp_path / "state") as daemon, daemon.producer(timeout=PATIENCE) as producer:

        def kill() -> None:
            unfinished = daemon.state_dir / "checkpoint.tmp"
            while len(killed) < KILLS and not done.wait(rng.uniform(0.0, 0.5)):
                while not unfinished.exists() and not done.is_set():
                    time.sleep(0.001)
                with contextlib.suppress(KeyError, ProcessLookupError):  # it is being started again
                    os.kill(daemon.children()["trainer"], signal.SIGKILL)
                    killed.append(unfinished.exists())

        thread = threading.Thread(target=kill)
        thread.start()
        try:
            for task in range(TASKS):
                for x, y in batches(task):
                    producer.send(x, y, task=f"task-{task}")
                producer.boundary(f"task-{task}")
        finally:
            done.set()
            thread.join()
        with daemon.admin() as admin:
            found = admin.parameters()
    learner = Learner(TREE)
    for task in range(TASKS):
        for x, y in batches(task):
            learner.observe(x, y, task=f"task-{task}")
        learner.boundary(f"task-{task}")
    assert any(killed)
    for name in ("theta", "precision", "shift"):
        np.testing.assert_array_equal(getattr(found, name), np.asarray(getattr(learner.parameters(), name)), err_msg=name)
