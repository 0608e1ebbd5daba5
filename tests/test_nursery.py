"""Trainer and predictor are forked from one process that has imported PyTorch; nobody can tell, but by the time."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from waiting import until

from streamcl.bench.local import LocalDaemon
from streamcl.config import Config
from streamcl.daemon import words
from streamcl.daemon.channel import Channel, wait
from streamcl.daemon.processes import Child, Forked, reap

pytestmark = [
    pytest.mark.campaign,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere every process is started by itself"),
]

ALL = {"nursery", "ingest", "trainer", "predictor"}
LINEAR = {"model": {"factory": "streamcl.models:linear", "classes": 3}, "train": {"epochs": 1}}
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(32, 4)).astype("<f4"), RNG.integers(0, 3, 32)
MODEL = """
import os, pathlib
from torch import nn

with pathlib.Path({out!r}).open("a") as file:
    file.write("{version} " + str(os.getpid()) + "\\n")

def make(input_shape, outputs):
    return nn.Linear(*input_shape, outputs)
"""


def lives(pid: int) -> bool:
    """Whether there is such a process, a zombie not counted."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def replaced(daemon: LocalDaemon, role: str, pid: int) -> int:
    """The process that came in the place of another."""
    found = {role: pid}
    until(lambda: found.update(daemon.children()) or found[role] != pid)
    return found[role]


def learn(daemon: LocalDaemon, task: str) -> None:
    with daemon.producer() as producer:
        producer.send(X, Y, task)
        assert producer.boundary(task)


def samples(daemon: LocalDaemon) -> list[int]:
    with daemon.admin() as admin:
        return [task["samples"] for task in admin.tasks()]


# -- the real daemon ---------------------------------------------------------------------------------------------------


def test_threads_that_wait_for_each_other_sleep(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(LINEAR)
    assert b"OMP_WAIT_POLICY=PASSIVE" in Path(f"/proc/{daemon.children()['nursery']}/environ").read_bytes().split(b"\0")


def test_a_killed_nursery_disturbs_nobody_and_what_dies_afterwards_comes_again(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(LINEAR)
    before = daemon.children()
    assert set(before) == ALL
    learn(daemon, "a")
    os.kill(before["nursery"], signal.SIGKILL)
    replaced(daemon, "nursery", before["nursery"])
    assert {role: daemon.children()[role] for role in before if role != "nursery"} == {
        role: pid for role, pid in before.items() if role != "nursery"
    }
    for role in ("trainer", "predictor"):
        os.kill(before[role], signal.SIGKILL)
        replaced(daemon, role, before[role])
    learn(daemon, "b")
    assert samples(daemon) == [32, 32]
    with daemon.reader() as reader:
        assert reader.predict(X).probs.shape == (32, 3)
    assert daemon.stop() == 0


def test_killed_together_with_its_children_it_brings_forth_others(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(LINEAR)
    before = daemon.children()
    for role in ("trainer", "nursery", "predictor"):
        os.kill(before[role], signal.SIGKILL)
    for role in ("nursery", "trainer", "predictor"):
        replaced(daemon, role, before[role])
    learn(daemon, "a")
    assert samples(daemon) == [32]


@pytest.mark.parametrize("end", [LocalDaemon.stop, LocalDaemon.kill])
def test_no_process_is_left_however_the_daemon_ends(
    start: Callable[..., LocalDaemon], end: Callable[[LocalDaemon], object]
) -> None:
    daemon = start(LINEAR)
    pids = daemon.children().values()
    end(daemon)
    until(lambda: not any(map(lives, pids)))


def test_a_daemon_killed_while_it_starts_leaves_no_process(tmp_path: Path) -> None:
    daemon = LocalDaemon(LINEAR, tmp_path / "state")
    daemon.launch()
    until(lambda: "nursery" in daemon.children())
    pids = daemon.children().values()
    daemon.kill()
    until(lambda: not any(map(lives, pids)))


def test_the_models_code_is_read_by_each_process_and_mended_code_by_a_restarted_trainer(
    start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, module = tmp_path / "imports", tmp_path / "imported.py"
    module.write_text(MODEL.format(out=str(out), version="broken"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("OMP_NUM_THREADS")  # so that threads of PyTorch's work in what was forked
    daemon = start({"model": {"factory": "imported:make", "classes": 3}, "train": {"epochs": 1}})
    first = daemon.children()
    assert out.read_text().split() == ["broken", str(first["trainer"])]
    learn(daemon, "a")
    module.write_text(MODEL.format(out=str(out), version="mended for good"))
    os.kill(first["trainer"], signal.SIGKILL)
    second = replaced(daemon, "trainer", first["trainer"])
    until(lambda: f"mended for good {second}\n" in out.read_text())
    learn(daemon, "b")
    assert samples(daemon) == [32, 32]
    assert str(first["nursery"]) not in out.read_text().split()
    assert daemon.children()["nursery"] == first["nursery"]


def test_where_nothing_can_be_forked_every_process_is_started_by_itself(tmp_path: Path) -> None:
    daemon = LocalDaemon(LINEAR, tmp_path / "state")
    program = (
        "import sys; from streamcl.daemon import linux; linux.become_subreaper = lambda: False; "
        "from streamcl.cli import main; sys.exit(main())"
    )
    daemon.command = [sys.executable, "-c", program]
    with daemon:
        before = daemon.children()
        assert set(before) == ALL - {"nursery"}
        learn(daemon, "a")
        os.kill(before["trainer"], signal.SIGKILL)
        replaced(daemon, "trainer", before["trainer"])
        learn(daemon, "b")
        assert samples(daemon) == [32, 32]


def test_what_the_nursery_imports_starts_no_thread_touches_no_accelerator_and_waits_for_no_river() -> None:
    program = (
        "import os, sys, numpy; before = len(os.listdir('/proc/self/task')); "  # NumPy's own threads know how to be forked
        "from streamcl.daemon import nursery; nursery._warm(); import torch; "
        "assert len(os.listdir('/proc/self/task')) == before; assert not torch.cuda.is_initialized(); "
        "assert 'river' not in sys.modules"  # which only a stream that ends its tasks by drift needs
    )
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


# -- one process, as the supervisor sees it ----------------------------------------------------------------------------


@pytest.fixture
def asked() -> Iterator[tuple[Child, Channel, Channel]]:
    """A trainer that a nursery was asked for, the nursery's end, and the trainer's."""
    ours, theirs = Channel.pair()
    child, mother, nursery = Child("trainer"), Channel(ours), Channel(theirs)
    with open(os.devnull, "rb") as lock:
        child.start(Config(), lock.fileno(), mother)
    ((word, (lock_descriptor, up)),) = nursery.receive_with_descriptors()
    os.close(lock_descriptor)
    assert word == words.Fork(role="trainer")
    trainer = Channel(socket.socket(fileno=up))
    yield child, nursery, trainer
    for channel in (mother, nursery, trainer):
        channel.close()


def test_what_nobody_knows_the_number_of_is_told_nothing(asked: tuple[Child, Channel, Channel]) -> None:
    child, _, trainer = asked
    child.tell(words.Stop(drain=True))
    assert list(trainer.receive()) == []
    assert child.unborn
    assert child.alive
    assert child.starting()  # so that no watchdog ends it: the nursery has one of its own
    child.born(os.getpid(), Config())
    assert [type(word) for word in trainer.receive()] == [words.Configuration]
    assert not child.unborn


def test_what_the_nursery_did_not_bring_forth_has_died_as_it_did(asked: tuple[Child, Channel, Channel]) -> None:
    child, _, trainer = asked
    child.stillborn(-signal.SIGKILL)
    assert not child.alive
    assert child.bury() == -signal.SIGKILL
    wait([trainer], 30.0)
    assert list(trainer.receive()) == []
    assert trainer.closed  # so that it ends, if it was forked after all
    child.born(os.getpid(), Config())  # which the nursery had still said
    assert child.process is None


@pytest.mark.parametrize(("program", "status"), [("import os; os._exit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_the_end_of_a_forked_process_is_told_as_that_of_a_started_one(program: str, status: int) -> None:
    process = Forked()
    assert process.poll() is None
    process.pid = os.posix_spawn(sys.executable, [sys.executable, "-c", program], os.environ)
    assert process.wait() == process.poll() == process.returncode == status
    process.kill()  # of what has ended already: nothing


def test_orphans_are_buried_and_our_own_left_to_whoever_waits_for_them() -> None:
    stranger = os.posix_spawn("/bin/true", ["true"], {})
    until(lambda: not lives(stranger))
    reap([])
    with pytest.raises(ChildProcessError):
        os.waitpid(stranger, os.WNOHANG)
    ours = subprocess.Popen(["/bin/sh", "-c", "exit 3"])
    until(lambda: not lives(ours.pid))
    reap([ours.pid])
    assert ours.wait() == 3
