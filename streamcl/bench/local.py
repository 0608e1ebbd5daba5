"""A real daemon for a demo, a benchmark or a test: on free loopback ports, and ended whatever happens."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from streamcl.client import Admin, Producer, Reader
from streamcl.config import PREFIX
from streamcl.daemon.linux import processor_seconds
from streamcl.errors import StreamclError

STILL_SECONDS = 60.0  # without
LEAST_SECONDS = 0.5  # of processor time, a daemon that is not ready never will be
STOP_SECONDS = 60.0
FREE_ENDPOINTS = {
    "stream": "tcp://127.0.0.1:*",
    "predict": "tcp://127.0.0.1:*",
    "admin": "tcp://127.0.0.1:*",
    "http": "127.0.0.1:0",
}
FIRST_PORT, PORTS, BLOCKS = 15_000, 80, 200  # of each process, below what systems give to outgoing connections
_turns = itertools.count()
_claims: list[socket.socket] = []


def own_endpoints() -> dict[str, str]:
    """Endpoints on ports of one's own (`own_port`)."""
    return {name: endpoint.rpartition(":")[0] + f":{own_port()}" for name, endpoint in FREE_ENDPOINTS.items()}


def own_port() -> int:
    """A free loopback port that no outgoing connection is given, so that who listens there finds it free again after a
    restart; each process takes those of its own block in turn."""
    ports = (FIRST_PORT + _block() * PORTS + turn % PORTS for turn in _turns)
    return next(port for port in ports if _is_free(port))


@cache
def _block() -> int:
    """One that no other process has; where that cannot be claimed (abstract sockets are Linux's), by our own number."""
    first = os.getpid() % BLOCKS
    blocks: list[int] = [*range(first, BLOCKS), *range(first)]
    while blocks and sys.platform == "linux":
        block = blocks.pop(0)
        claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            claim.bind(f"\0streamcl-ports-{block}")
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        return block
    return os.getpid() % BLOCKS


def _is_free(port: int) -> bool:
    with socket.socket() as probe, contextlib.suppress(OSError):
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
        return True
    return False


TABLES = ("model.args", "stream.drift_args")  # keys whose values are tables


class LocalDaemon:
    """``streamcl serve`` as a child process.

    tree: the configuration as nested maps; endpoints default to free loopback ports. state_dir: a temporary one unless
    given. code: a checkout of streamcl to run instead of this one. Raises StreamclError with the end of the daemon's log
    where it does not become ready; how long that takes does not matter while it takes processor time.
    popen: what starts it, called as `subprocess.Popen` is.
    """

    popen: ClassVar[Callable[..., Any]] = subprocess.Popen

    arguments: ClassVar[tuple[str, ...]] = ("serve",)

    def __init__(self, tree: Mapping[str, Any], state_dir: Path | None = None, code: Path | None = None) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="streamcl-") if state_dir is None else None
        self.state_dir = Path(self._temporary.name) / "state" if self._temporary else Path(str(state_dir))
        self.tree = {"endpoints": own_endpoints(), **tree, "state_dir": str(self.state_dir)}
        self.code = code
        self.command = [sys.executable, "-m", "streamcl"]
        self.process: subprocess.Popen[bytes] | None = None
        self.endpoints: dict[str, str] = {}

    def start(self) -> Self:
        """Start it and wait until it is ready; started again, it listens where it did before."""
        self.launch()
        try:
            self.endpoints = self._wait_until_ready()
        except BaseException:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Start it without waiting."""
        self.state_dir.mkdir(parents=True, exist_ok=True)
        self._wait_until_gone()
        with self._log.open("ab") as log:
            self.process = type(self).popen(
                [*self.command, *self.arguments, *self._flags()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(self.code),
                cwd=self.code,
            )

    @property
    def _log(self) -> Path:
        return self.state_dir.with_name(self.state_dir.name + ".log")

    def log_text(self) -> str:
        """What the daemon has written to its standard error."""
        return self._log.read_text(errors="replace")

    def _flags(self) -> list[str]:
        tree = {**self.tree, "endpoints": self.endpoints} if self.endpoints else self.tree
        return [text for key, value in _leaves(tree) for text in (f"--{key}", _flag(value))]

    def _wait_until_gone(self) -> None:
        """A daemon.json left by a killed daemon must not be taken for the new one's."""
        (self.state_dir / "daemon.json").unlink(missing_ok=True)

    def _wait_until_ready(self) -> dict[str, str]:
        spent, deadline = self._processor_seconds(), time.monotonic() + STILL_SECONDS
        path = self.state_dir / "daemon.json"
        while True:
            if self.process is not None and self.process.poll() is not None:
                raise StreamclError(f"the daemon ended with status {self.process.returncode}:\n{self.log_text()[-2000:]}")
            if path.exists():
                endpoints: dict[str, str] = json.loads(path.read_text())["endpoints"]
                return endpoints
            if time.monotonic() > deadline:
                before, spent = spent, self._processor_seconds()
                if spent < before + LEAST_SECONDS:
                    raise StreamclError(f"the daemon stands still and is not ready:\n{self.log_text()[-2000:]}")
                deadline = time.monotonic() + STILL_SECONDS
            time.sleep(0.01)

    def _processor_seconds(self) -> float:
        """What its processes have taken so far (Linux; elsewhere nothing is known of it)."""
        if self.process is None or sys.platform != "linux":
            return 0.0
        return sum(map(processor_seconds, _family(self.process.pid)))

    def producer(self, name: str = "producer", **options: Any) -> Producer:
        """A producer connected to it; by default every call is one message, so that figures are reproducible."""
        return Producer(self.endpoints["stream"], name, **{"gather_bytes": 0, **options})

    def reader(self) -> Reader:
        """A reader connected to it."""
        return Reader(self.endpoints["predict"])

    def admin(self) -> Admin:
        """An operator connected to it."""
        return Admin(self.endpoints["admin"])

    def url(self, path: str) -> str:
        """The address of an HTTP path."""
        return f"http://{self.endpoints['http']}{path}"

    def children(self) -> dict[str, int]:
        """The pids of its working processes by role (Linux)."""
        roles = {}
        for pid in self._child_pids():
            with contextlib.suppress(OSError, IndexError):  # just ended, or not yet started fully
                roles[Path(f"/proc/{pid}/cmdline").read_text().split("\0")[3]] = int(pid)
        return roles

    def _child_pids(self) -> list[str]:
        """Looked at until two looks agree: while one child ends, the kernel may leave out another."""
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        before, pids = None, path.read_text().split()
        while pids != before:
            before, pids = pids, path.read_text().split()
        return pids

    def kill(self) -> None:
        """SIGKILL, as in a crash; its children end by themselves."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def kill_all(self) -> None:
        """SIGKILL to every one of its processes at once; on return none of them holds a file any more."""
        pids = [int(pid) for pid in self._child_pids()]
        self.kill()
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        while any(map(_lives, pids)):
            time.sleep(0.005)

    def stop(self) -> int:
        """Stop it in an orderly way; returns its exit status."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            raise

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            self.stop()
        finally:
            if self._temporary is not None:
                with contextlib.suppress(OSError):
                    self._temporary.cleanup()


class LocalFollower(LocalDaemon):
    """``streamcl follow`` as a child process, of the daemon at an endpoint; otherwise as a `LocalDaemon`."""

    arguments: ClassVar[tuple[str, ...]] = ("follow",)

    def __init__(self, endpoint: str, tree: Mapping[str, Any] | None = None, state_dir: Path | None = None) -> None:
        tree = tree or {}
        super().__init__({**tree, "follow": {**tree.get("follow", {}), "endpoint": endpoint}}, state_dir)


def _family(pid: int) -> Iterator[int]:
    """A process and all that come from it: under a launcher, those who work are further down."""
    yield pid
    with contextlib.suppress(OSError):  # it has just ended
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            yield from _family(int(child))


def _lives(pid: int) -> bool:
    """Whether there is such a process that has not ended; what is left of one until it is buried does not count."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def _environment(code: Path | None) -> dict[str, str]:
    """This process's, without the variables that would configure the daemon."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    return kept if code is None else {**kept, "PYTHONPATH": str(code)}


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested maps as dotted keys; what is itself a value (``model.args``) stays one."""
    leaves = []
    for key, value in tree.items():
        name = prefix + key
        if isinstance(value, Mapping) and name not in TABLES:
            leaves += _leaves(value, f"{name}.")
        else:
            leaves.append((name, value))
    return leaves


def _flag(value: Any) -> str:
    """A value as a flag's text: strings bare, the rest as TOML."""
    if isinstance(value, str):
        return value
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {json.dumps(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)
