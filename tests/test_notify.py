"""What the service manager is told: sd_notify's datagrams over a real socket, from the real daemon."""

from __future__ import annotations

import os
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.daemon.notify import Notifier

pytestmark = pytest.mark.campaign

PATIENCE = 120.0
SMALL = {"model": {"args": {"hidden": [8]}, "classes": 3}, "train": {"epochs": 1}}


class ServiceManager:
    """A datagram socket that remembers what it was told, and when."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._waiting: list[str] = []

    def _receive(self, deadline: float) -> bool:
        self.socket.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            self._waiting += self.socket.recv(4096).decode().split("\n")
        except TimeoutError:
            return False
        return True

    def listen(self, seconds: float) -> list[str]:
        """What has arrived, and what arrives within the time, line by line."""
        deadline = time.monotonic() + seconds
        while self._receive(deadline):
            pass
        came, self._waiting = self._waiting, []
        return came

    def wait_for(self, line: str) -> list[str]:
        """Everything up to and including the first line that begins so; what came after it is left for later."""
        deadline, came = time.monotonic() + PATIENCE, []
        while not came or not came[-1].startswith(line):
            if self._waiting:
                came.append(self._waiting.pop(0))
            else:
                assert self._receive(deadline), f"never said {line}; said {came}"
        return came


@pytest.fixture
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ServiceManager]:
    abstract = getattr(request, "param", "path") == "abstract"
    manager = ServiceManager(f"@streamcl-test-{os.getpid()}" if abstract else str(tmp_path / "notify"))
    yield manager
    manager.socket.close()


@pytest.fixture
def under(manager: ServiceManager, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Has the daemons that this test starts find the manager, and its watchdog of so many seconds."""

    def prepare(watchdog_seconds: float | None = None) -> None:
        monkeypatch.setenv("NOTIFY_SOCKET", manager.address)
        if watchdog_seconds is not None:
            monkeypatch.setenv("WATCHDOG_USEC", str(int(watchdog_seconds * 1e6)))

    return prepare


def one_batch(daemon: LocalDaemon, task: str) -> None:
    with daemon.producer() as producer:
        producer.send(np.ones((4, 4), "<f4"), np.arange(4, dtype="<i8") % 3, task)
        producer.flush()


@pytest.mark.parametrize("manager", ["path", "abstract"], indirect=True)
def test_ready_is_said_when_it_is_so_and_the_status_names_the_task(
    manager: ServiceManager, under: Callable[..., None], start: Callable[..., LocalDaemon]
) -> None:
    under()
    daemon = start(SMALL)
    assert any(line.startswith("STATUS=starting: ") for line in manager.wait_for("READY=1"))
    assert (daemon.state_dir / "daemon.json").exists()
    manager.wait_for("STATUS=idle")
    one_batch(daemon, "monday")
    manager.wait_for("STATUS=training, task monday")
    with daemon.admin() as admin:
        admin.pause()
    manager.wait_for("STATUS=paused, task monday")
    for pid in daemon.children().values():  # only the supervisor speaks
        assert b"NOTIFY_SOCKET" not in Path(f"/proc/{pid}/environ").read_bytes()


def test_stopping_is_said_and_more_time_asked_for_while_the_trainer_finishes(
    manager: ServiceManager, under: Callable[..., None], start: Callable[..., LocalDaemon]
) -> None:
    under()
    daemon = start({**SMALL, "train": {"epochs": 100_000}})
    with daemon.producer() as producer:
        producer.send(np.ones((4, 4), "<f4"), np.arange(4, dtype="<i8") % 3, "long")
        producer.boundary("long", wait=False)
    with daemon.admin() as admin:
        admin.stop(drain=True)
    lines = manager.wait_for("EXTEND_TIMEOUT_USEC")
    assert lines[-1] == "EXTEND_TIMEOUT_USEC=30000000"
    assert "STOPPING=1" in lines
    if "STATUS=stopping: consolidating, task long" not in lines:
        manager.wait_for("STATUS=stopping: consolidating, task long")
    manager.wait_for("EXTEND_TIMEOUT_USEC")
    daemon.kill()


def test_a_reload_begins_and_ends(manager: ServiceManager, under: Callable[..., None], tmp_path: Path) -> None:
    """With an HTTP token alone, no keys; what is wrong with it is in the status, and the old token stays."""
    token = tmp_path / "token"
    token.write_text("the-first-token-of-all\n")
    token.chmod(0o600)
    under()
    with LocalDaemon({**SMALL, "security": {"http_token": str(token)}}, tmp_path / "state") as daemon:
        assert daemon.process is not None
        manager.wait_for("STATUS=idle")
        token.write_text("short")
        daemon.process.send_signal(signal.SIGHUP)
        assert "expected at least 16 characters" in manager.wait_for("STATUS=idle; reload refused")[-1]
        token.write_text("the-second-token-of-all\n")
        daemon.process.send_signal(signal.SIGHUP)
        lines = manager.wait_for("STATUS=idle")
        assert int(lines[lines.index("RELOADING=1") + 1].removeprefix("MONOTONIC_USEC=")) > 0
        assert lines.index("RELOADING=1") < lines.index("READY=1")
        assert answer(daemon, "the-first-token-of-all") == 401
        assert answer(daemon, "the-second-token-of-all") == 200


def answer(daemon: LocalDaemon, token: str) -> int:
    request = urllib.request.Request(daemon.url("/healthz"), headers={"Authorization": f"Bearer {token}"})
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return int(reply.status)
    except urllib.error.HTTPError as error:
        return error.code


def test_a_reload_with_nothing_to_read_leaves_the_daemon_running(
    manager: ServiceManager, under: Callable[..., None], start: Callable[..., LocalDaemon]
) -> None:
    under()
    daemon = start(SMALL)
    assert daemon.process is not None
    manager.wait_for("READY=1")
    daemon.process.send_signal(signal.SIGHUP)
    lines = manager.wait_for("READY=1")
    assert lines.index("RELOADING=1") < lines.index("READY=1")
    assert "nothing to read again" in daemon.log_text()
    assert daemon.stop() == 0


def test_without_a_service_manager_a_hang_up_ends_the_daemon(start: Callable[..., LocalDaemon]) -> None:
    """A terminal that is closed ends the daemon in it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # what the daemon inherits; under nohup it would be ignored
    try:
        daemon = start(SMALL)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGHUP)
    assert daemon.process.wait(PATIENCE) == -signal.SIGHUP


def test_the_watchdog_is_fed_by_the_trainers_progress_alone(
    manager: ServiceManager, under: Callable[..., None], start: Callable[..., LocalDaemon]
) -> None:
    under(watchdog_seconds=2.0)
    daemon = start(SMALL)
    for _ in range(3):
        manager.wait_for("WATCHDOG=1")
    trainer = daemon.children()["trainer"]
    os.kill(trainer, signal.SIGSTOP)
    manager.listen(2.5)  # what it had said before may still have been on its way
    assert "WATCHDOG=1" not in manager.listen(5.0)
    assert daemon.process is not None
    assert daemon.process.poll() is None  # the supervisor itself is well
    os.kill(trainer, signal.SIGCONT)
    manager.wait_for("WATCHDOG=1")


def test_a_watchdog_less_patient_than_the_supervisor_is_warned_of(
    manager: ServiceManager, under: Callable[..., None], start: Callable[..., LocalDaemon]
) -> None:
    under(watchdog_seconds=120.0)
    assert "watchdog_seconds" in start(SMALL).log_text()
    patient = start({**SMALL, "train": {"watchdog_seconds": 60.0}}, name="patient")
    assert "watchdog_seconds" not in patient.log_text()


def test_a_fatal_error_is_the_last_status(manager: ServiceManager, under: Callable[..., None], tmp_path: Path) -> None:
    under()
    daemon = LocalDaemon({"model": {"factory": "nowhere:model"}}, tmp_path / "state")
    daemon.launch()
    assert daemon.process is not None
    assert daemon.process.wait(PATIENCE) == 2
    assert any(line.startswith("STATUS=cannot go on: model.factory 'nowhere:model'") for line in manager.listen(1.0))


def test_feeding_waits_for_half_the_interval_and_for_a_new_word() -> None:
    now = 0.0
    address = f"@streamcl-feed-{os.getpid()}"
    manager = ServiceManager(address)
    environment = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "10000000", "WATCHDOG_PID": str(os.getpid()), "HOME": "/"}
    notifier = Notifier(environment, clock=lambda: now)
    assert environment == {"HOME": "/"}
    fed = []
    for now, spoke in [(0.0, -1.0), (4.0, 3.0), (5.0, 4.5), (10.0, 4.5), (11.0, 10.5), (30.0, 10.9)]:
        notifier.feed(spoke)
        if "WATCHDOG=1" in manager.listen(0.02):
            fed.append(now)
    manager.socket.close()
    assert fed == [0.0, 5.0, 11.0]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"NOTIFY_SOCKET": ""},
        {"NOTIFY_SOCKET": "vsock:2:1234"},
        {"NOTIFY_SOCKET": "/nowhere/at/all"},
        {"NOTIFY_SOCKET": "@nobody-listens", "WATCHDOG_USEC": "x"},
        {"NOTIFY_SOCKET": "@nobody-listens", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"},
    ],
)
def test_where_nobody_listens_nothing_happens(environment: dict[str, str]) -> None:
    notifier = Notifier(environment)
    notifier.say("READY=1")
    notifier.status("idle")
    notifier.feed(time.monotonic())
    assert environment == {}
    assert notifier.watchdog_seconds is None


def test_a_manager_that_does_not_read_holds_nothing_up() -> None:
    manager = ServiceManager(f"@streamcl-deaf-{os.getpid()}")
    notifier = Notifier({"NOTIFY_SOCKET": manager.address})
    for number in range(2000):  # or it waits here for ever
        notifier.status(f"task {number}")
    assert len(manager.listen(0.0)) < 2000
    manager.socket.close()
