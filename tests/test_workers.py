"""A daemon whose trainer shares its work: the same answers, whatever becomes of the processes that share it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import ranks
import torch.distributed as dist
from waiting import PATIENCE, until

from streamcl import Admin, Producer
from streamcl.bench import local
from streamcl.bench.local import LocalDaemon
from streamcl.config import Config
from streamcl.core.reduce import ALONE
from streamcl.daemon import group, words

TASKS = ranks.TASKS


def tree(workers: int, **train: Any) -> dict[str, Any]:
    return {**ranks.DAEMONS, "train": {**ranks.DAEMONS["train"], "workers": workers, **train}}


def rows(task: int) -> Iterator[tuple[Any, Any]]:
    return ranks.batches(task, real=True)


def helpers(daemon: LocalDaemon) -> list[int]:
    """The processes that the trainer has started."""
    trainer = daemon.children().get("trainer")
    if trainer is None:
        return []
    try:
        return [int(pid) for pid in Path(f"/proc/{trainer}/task/{trainer}/children").read_text().split()]
    except OSError:  # just ended
        return []


def trainers(daemon: LocalDaemon) -> list[int]:
    """The one that leads, twice, so that it is struck whatever the count."""
    return [pid for role, pid in daemon.children().items() if role == "trainer"] * 2


def alive(pid: int) -> bool:
    """What is left of one until somebody buries it does not count."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def learn(endpoints: Mapping[str, str]) -> dict[str, Any]:
    """Three tasks, and the first one again."""
    with (
        Producer(endpoints["stream"], "p", timeout=300, gather_bytes=0) as producer,
        Admin(endpoints["admin"], timeout=300) as admin,
    ):
        for task in range(TASKS):
            for x, y in rows(task):
                producer.send(x, y, task=f"task-{task}")
            producer.boundary(f"task-{task}")
        producer.revisit("task-0")
        for x, y in rows(0):
            producer.send(x, y, task="task-0")
        producer.boundary("task-0")
        vectors = admin.parameters()
        return {"theta": np.array(vectors.theta), "precision": np.array(vectors.precision), "status": admin.status()}


def in_process(revisits: bool = True) -> dict[str, Any]:
    return ranks.as_a_daemon(ALONE, revisits)


def close_to(found: dict[str, Any], expected: dict[str, Any]) -> None:
    for key in ("theta", "precision"):
        np.testing.assert_allclose(found[key], expected[key], rtol=0, atol=1e-10 * np.abs(expected[key]).max(), err_msg=key)


def test_two_processes_learn_what_one_learns_and_none_is_left_behind() -> None:
    with LocalDaemon(tree(2)) as daemon:
        started = helpers(daemon)
        found = learn(daemon.endpoints)
        assert len(started) == 1
        assert found["status"]["workers"] == 2
    until(lambda: not any(map(alive, started)))
    close_to(found, in_process())


Blow = tuple[signal.Signals, Callable[[LocalDaemon], list[int]]]
KILLS: list[Blow] = [(signal.SIGKILL, whom) for whom in (helpers, trainers, helpers, helpers, trainers)]
HANGS: list[Blow] = [(signal.SIGSTOP, helpers)] * 2


def beset(daemon: LocalDaemon, blows: Sequence[Blow]) -> dict[str, Any]:
    """What is learned while one of the processes after the other is struck."""
    done, struck = threading.Event(), set[int]()

    def strike() -> None:
        while not done.wait(0.3) and len(struck) < len(blows):
            how, whom = blows[len(struck)]
            for pid in whom(daemon)[len(struck) % 2 :][:1]:
                if pid not in struck:
                    struck.add(pid)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, how)

    striking = threading.Thread(target=strike)
    striking.start()
    try:
        found = learn(daemon.endpoints)
    finally:
        done.set()
        striking.join()
    assert struck
    return found


@pytest.mark.campaign
def test_whichever_process_is_lost_the_records_are_learned_to_the_same_bits() -> None:
    """At moments that no clock repeats, and so never at the same ones; a hung one is found by the watchdog."""
    found = []
    for blows in (KILLS, HANGS):
        with LocalDaemon(tree(3, watchdog_seconds=5)) as daemon:
            found.append(beset(daemon, blows))
    close_to(found[0], in_process())
    for key in ("theta", "precision"):
        np.testing.assert_array_equal(found[0][key], found[1][key])


@pytest.mark.campaign
def test_the_next_start_may_have_another_number_of_them(tmp_path: Path) -> None:
    """Four, then two, then one, each begun in the midst of a task."""
    records = [(task, kind) for task in range(TASKS) for kind in (*rows(task), None)]
    lives = {4: records[:8], 2: records[8:14], 1: records[14:]}
    for workers, share in lives.items():
        with (
            LocalDaemon({**tree(workers), "posterior": {"mode": "single"}}, tmp_path / "state") as daemon,
            Producer(daemon.endpoints["stream"], "p", timeout=120, gather_bytes=0) as producer,
            Admin(daemon.endpoints["admin"], timeout=120) as admin,
        ):
            for task, batch in share:
                if batch is None:
                    producer.boundary(f"task-{task}")
                else:
                    producer.send(*batch, task=f"task-{task}")
            producer.flush()
            vectors = admin.parameters()
            found = {"theta": np.array(vectors.theta), "precision": np.array(vectors.precision)}
    close_to(found, in_process(revisits=False))


@pytest.mark.campaign
def test_under_torchrun_its_processes_are_the_daemon_and_its_helpers() -> None:
    daemon = LocalDaemon(tree(1))
    daemon.command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
        "-m",
        "streamcl",
    ]
    with daemon:
        found = learn(daemon.endpoints)
    assert found["status"]["workers"] == 2
    close_to(found, in_process())


FOLLOWER = """
from streamcl.config import Config
from streamcl.daemon import worker

worker.LOOK_SECONDS = 0.05
worker.under_torchrun(Config())
"""


@pytest.mark.campaign
def test_a_follower_that_hangs_where_the_first_one_left_it_comes_when_it_is_called_again() -> None:
    """The first one dies between calling a generation and entering it; of a machine beyond a cut link nothing is heard."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "TORCHELASTIC_RUN_ID": "a test",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(store.port),
        "RANK": "1",
        "WORLD_SIZE": "2",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    followers: list[subprocess.Popen[bytes]] = []

    def has_come() -> bool:
        """One that Gloo itself has ended, as it may where a connection goes, is started again, as torchrun does."""
        if not followers or followers[-1].poll() is not None:
            followers.append(subprocess.Popen([sys.executable, "-c", FOLLOWER], env={**os.environ, **environment}))
        return bool(store.check([group._here_for(store.add(group.GENERATION, 0), 1)]))

    try:
        for _ in range(2):
            store.add(group.GENERATION, 1)  # and no more
            until(has_come)
        first = group.Group(group.Place(store, 0, 2, "gloo"), [])
        first.form()
        assert (first.generation, first.reduction.size) == (3, 2)
        dist.destroy_process_group()
        assert followers[-1].poll() is None
    finally:
        followers[-1].kill()
        followers[-1].wait()


SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]
ENTERS = f"""
import subprocess
import sys

import torch.distributed as dist

from streamcl.core.ranks import Lost, stay_on_this_machine
from streamcl.daemon.channel import Channel
from streamcl.daemon.group import Group, Place, _here_for
from streamcl.daemon.nursery import Begun

stay_on_this_machine()
helper = Begun(subprocess.Popen({SLEEPER}), Channel.pair()[0])
store = dist.FileStore(sys.argv[1], 2)
store.set(_here_for(1, 1), "")  # it has come
group = Group(Place(store, 0, 2, "gloo"), [helper], sign=helper.process.kill)
try:
    group.form()
except Lost as error:
    print(error)
"""


def test_one_that_ends_while_the_others_enter_keeps_nobody_waiting(tmp_path: Path) -> None:
    found = subprocess.run(
        [sys.executable, "-c", ENTERS, str(tmp_path / "meeting")],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert "process 1 of those that share the work has ended, with status -9" in found.stdout, found.stderr


def test_one_that_hangs_before_it_comes_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group, "STILL_SECONDS", 0.5)
    process = subprocess.Popen(SLEEPER)
    process.send_signal(signal.SIGSTOP)
    helper = group.Begun(process, group.Channel.pair()[0])
    lost = group.Group(group.Place(dist.FileStore(str(tmp_path / "meeting"), 2), 0, 2, "gloo"), [helper])
    try:
        with pytest.raises(group.Lost, match="process 1 hangs"):
            lost.form()
    finally:
        helper.abandon()


def test_what_an_earlier_trainer_has_started_takes_nobodys_place(tmp_path: Path) -> None:
    """It may still be importing when its trainer dies, and enter before it notices."""
    earlier, later = (group._fresh(tmp_path / "live" / "ranks") for _ in range(2))
    assert earlier != later
    store = dist.FileStore(later, 2)
    store.add(group.GENERATION, 1)
    begun = group.spawn(group.ROLE)
    late = group.Channel(begun.end)
    late.send(words.Configuration(tree=msgspec.to_builtins(Config())))
    late.send(words.Join(store=earlier, rank=1, size=2))
    late.close()
    begun.process.wait(PATIENCE)
    assert not store.check([group._here_for(1, 1)])


DELICATE = """
from torch import nn


class Delicate(nn.Linear):
    def forward(self, x):
        if (x > 50).any():
            raise ValueError("too large for this model")
        return super().forward(x)


def model(input_shape, outputs):
    return Delicate(input_shape[0], outputs)
"""


@pytest.mark.campaign
def test_rows_that_one_process_cannot_learn_are_set_aside_as_one_alone_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "delicate.py").write_text(DELICATE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    settings = {**tree(2, learning_rate=0.01), "model": {"factory": "delicate:model", "likelihood": "gaussian"}}
    with (
        LocalDaemon(settings) as daemon,
        Producer(daemon.endpoints["stream"], "p", timeout=120, gather_bytes=0) as producer,
        Admin(daemon.endpoints["admin"], timeout=120) as admin,
    ):
        for number, (x, y) in enumerate(rows(0)):
            if number == 2:
                x[-1] = 100.0  # in the last process's part alone
            producer.send(x, y, task="task")
        done = producer.boundary("task")
        aside = admin.quarantine()
    assert done["set_aside"] == 30
    assert done["samples"] == 61 + 1 + 2 + 40
    assert [row["rows"] for row in aside] == [30]


def end(process: subprocess.Popen[bytes]) -> None:
    """Of a machine, with all that it has started."""
    for pid in list(local._family(process.pid)):  # all of them, before the first one leaves the others behind
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


@pytest.mark.slow  # and by torchrun's clocks, which no loaded machine should be judged by
@pytest.mark.campaign
def test_under_an_elastic_torchrun_those_that_are_left_go_on(tmp_path: Path) -> None:
    """One machine of two is gone for good, in the midst of a task."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1:2", "--nproc-per-node", "1"]
    port, quick = local.own_port(), "last_call_timeout=30,keep_alive_interval=2,keep_alive_max_attempt=8"
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-conf", quick]
    daemon = LocalDaemon(tree(1, watchdog_seconds=20, elastic=True), tmp_path / "state")
    daemon.command = [*torchrun, *meeting, "--max-restarts", "9", "-m", "streamcl"]
    daemon.launch()
    assert daemon.process is not None
    started = [daemon.process]
    try:
        until(lambda: listens(port))  # whoever comes first keeps the list of those that come
        serve = [*daemon.command, *daemon.arguments, *daemon._flags()]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        started.append(subprocess.Popen(serve, env=environment, stderr=subprocess.DEVNULL))
        daemon.endpoints = daemon._wait_until_ready()
        with daemon.admin() as admin, daemon.producer(timeout=300) as producer:
            assert admin.status()["workers"] == 2
            first, *more = rows(0)
            producer.send(*first, task="task-0")
            producer.flush()
            end(started.pop())
            for batch in more:
                producer.send(*batch, task="task-0")
            producer.boundary("task-0")
        with daemon.admin() as admin:
            assert [task["samples"] for task in admin.tasks()] == [sum(len(x) for x, _ in rows(0))]
            assert admin.status()["workers"] == 1
    finally:
        for process in started:
            end(process)
