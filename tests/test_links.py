"""Two processes that share the work from two hosts: network namespaces whose link is slow, or cut for a while."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_reduce
import test_workers
from waiting import until

from streamcl import Admin, Producer
from streamcl.bench.local import LocalDaemon

pytestmark = pytest.mark.campaign
NAME, LINK, PORT, FIRST, SECOND = "streamcl-link", "streamcl-link", "29517", "10.213.7.1", "10.213.7.2"
PATIENCE, STOP_SECONDS, LIMIT = 120.0, 60.0, 400  # of a machine that does much else; the last is of the whole test
WATCHDOG, SHORT_CUTS, SHORT_SECONDS = 5.0, 3, 0.5
CASE = "as a daemon"  # of two processes on one machine (`ranks`)
EVERYTHING = 1 << 30
HUNG = "no progress"  # what the daemon's log says of a trainer that its watchdog has ended
SLOW = ["tbf", "rate", "2mbit", "burst", "8kb", "latency", "400ms"]


def ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True, timeout=PATIENCE).stdout


def end(namespace: str) -> None:
    """Every process in it, and itself."""
    with contextlib.suppress(subprocess.CalledProcessError):  # there is none of this name
        while pids := ip("netns", "pids", namespace).split():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        ip("netns", "del", namespace)


def end_what_killed_runs_left() -> None:
    """Those named for a process that is no more."""
    for line in ip("netns", "list").splitlines():
        name = line.split()[0]
        if name.startswith(f"{NAME}-") and not Path("/proc", name.split("-")[2]).exists():
            end(name)


class Hosts:
    """Two of them, joined by one link."""

    def __init__(self) -> None:
        self.names = [f"{NAME}-{os.getpid()}-{number}" for number in (1, 2)]

    def __enter__(self) -> Hosts:
        one, two = self.names
        try:
            end_what_killed_runs_left()
            for name in self.names:
                ip("netns", "add", name)
                ip("-n", name, "link", "set", "lo", "up")
            ip("-n", one, "link", "add", LINK, "type", "veth", "peer", "name", LINK, "netns", two)
            for name, address in zip(self.names, (FIRST, SECOND), strict=True):
                ip("-n", name, "addr", "add", f"{address}/24", "dev", LINK)
                ip("-n", name, "link", "set", LINK, "up")
            self._tc("replace", *SLOW)
            self._tc("delete")
        except (subprocess.SubprocessError, OSError) as error:
            self.__exit__()
            pytest.skip(f"no network namespaces with a link here: {getattr(error, 'stderr', None) or error}")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            end(name)

    def torchrun(self, number: int) -> list[str]:
        within = ["ip", "netns", "exec", self.names[number], "env", f"GLOO_SOCKET_IFNAME={LINK}", "OMP_NUM_THREADS=1"]
        place = [
            "--nnodes=2",
            f"--node-rank={number}",
            "--nproc-per-node=1",
            f"--master-addr={FIRST}",
            f"--master-port={PORT}",
        ]
        return [*within, sys.executable, "-m", "torch.distributed.run", *place, "-m", "streamcl"]

    def slow(self) -> None:
        """Two megabits a second, each way."""
        self._tc("replace", *SLOW)

    def _tc(self, change: str, *kind: str) -> None:
        for name in self.names:
            subprocess.run(
                ["tc", "-n", name, "qdisc", change, "dev", LINK, "root", *kind],
                check=True,
                capture_output=True,
                timeout=PATIENCE,
            )

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        """For as long as the block takes."""
        ip("-n", self.names[0], "link", "set", LINK, "down")
        try:
            yield
        finally:
            ip("-n", self.names[0], "link", "set", LINK, "up")


@pytest.fixture
def hosts() -> Iterator[Hosts]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "tc"))):
        pytest.skip("network namespaces need root and iproute2")
    with Hosts() as made:
        yield made


class Daemon:
    """One that works from both hosts, and is spoken to from here; at its end every process of it is gone."""

    def __init__(self, hosts: Hosts, home: Path) -> None:
        endpoints = {name: f"ipc://{home}/{name}" for name in ("stream", "predict", "admin")}
        settings = {
            **test_workers.tree(1, watchdog_seconds=WATCHDOG),
            "endpoints": {**endpoints, "http": "127.0.0.1:0"},
        }
        self.endpoints, self.hosts = endpoints, hosts
        self.first, self.second = (LocalDaemon(settings, home / "state") for _ in range(2))
        self.first.command, self.second.command = hosts.torchrun(0), hosts.torchrun(1)

    def __enter__(self) -> Daemon:
        self.second.launch()
        self.first.launch()
        until(lambda: self._ready() or not self._run(), PATIENCE)
        assert self._run(), self.said()
        return self

    def _ready(self) -> bool:
        return (self.first.state_dir / "daemon.json").exists()

    def _run(self) -> bool:
        return all(each.process is not None and each.process.poll() is None for each in (self.first, self.second))

    def said(self, last: int = 6000) -> str:
        return self.first.log_text()[-last:]

    def __exit__(self, kind: Any, *_: object) -> None:
        """In good order; where that does not go, as every process of the two hosts ends."""
        if kind is not None:
            print(self.said())
        assert self.first.process is not None
        assert self.second.process is not None
        try:
            self.first.process.terminate()
            self.first.process.wait(STOP_SECONDS)
        finally:
            for name in self.hosts.names:
                end(name)
            self.second.process.wait(STOP_SECONDS)


def cut_until_the_watchdog_has_ended_the_trainer(daemon: Daemon) -> None:
    before = daemon.said(EVERYTHING).count(HUNG)
    with daemon.hosts.cut():
        until(lambda: daemon.said(EVERYTHING).count(HUNG) > before, PATIENCE)


def cut_again_and_again(daemon: Daemon) -> None:
    for _ in range(SHORT_CUTS):
        with daemon.hosts.cut():
            time.sleep(SHORT_SECONDS)  # less than anybody waits
        time.sleep(SHORT_SECONDS)


def learn(producer: Producer, name: str, task: int) -> None:
    for x, y in test_workers.rows(task):
        producer.send(x, y, task=name)
    producer.boundary(name)


@pytest.mark.timeout(LIMIT)
def test_over_a_link_that_is_cut_and_then_slow_the_records_are_learned_to_the_same_bits(
    hosts: Hosts, tmp_path: Path
) -> None:
    with (
        ThreadPoolExecutor(1) as aside,
        Daemon(hosts, tmp_path) as daemon,
        Producer(daemon.endpoints["stream"], "p", timeout=PATIENCE, gather_bytes=0) as producer,
        Admin(daemon.endpoints["admin"], timeout=PATIENCE) as admin,
    ):
        for task, disturb in enumerate((cut_again_and_again, cut_until_the_watchdog_has_ended_the_trainer)):
            disturbed = aside.submit(disturb, daemon)
            learn(producer, f"task-{task}", task)
            disturbed.result(PATIENCE)
        hosts.slow()
        learn(producer, "task-2", 2)
        producer.revisit("task-0")
        learn(producer, "task-0", 0)
        vectors, status = admin.parameters(), admin.status()
    assert status["workers"] == 2
    test_reduce.together(2, [CASE], tmp_path)
    undisturbed = np.load(tmp_path / f"{CASE}.0.npz", allow_pickle=False)
    for key in ("theta", "precision"):
        np.testing.assert_array_equal(np.array(getattr(vectors, key)), undisturbed[key], err_msg=key)
