"""Daemons that start without importing anything: forked from a process that has imported it all, once a session.

Most of what a test with a daemon takes is the import of PyTorch. Here ``streamcl serve`` runs in a fork of a warm process,
and its first children in forks of that. What becomes of them is as always: processes of their own, by their roles in
``/proc``, with the channels and files that they were given and nothing else. In some modules' campaigns
daemons start as users start them.

Run as ``python zygote.py FD serve PADDING``, so that `linux.retitle` finds room for a role.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

LARGEST = 1 << 20  # bytes of a request
LOOK_SECONDS = 0.005
PADDING = 64  # arguments' bytes


class Zygote:
    """The warm process, and our end of the socket to it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            arguments = [sys.executable, __file__, str(theirs.fileno()), "serve", "-" * PADDING]
            self.process = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
        self.socket = ours
        self.lock = threading.Lock()

    def popen(self, arguments: list[str], **how: Any) -> subprocess.Popen[bytes] | Born:
        """As `subprocess.Popen`, with stdout and stderr in a file; other commands than ours are started as they are."""
        if arguments[:3] != [sys.executable, "-m", "streamcl"] or how["cwd"] is not None:
            return subprocess.Popen(arguments, **how)
        request = {"fork": arguments[3:], "env": how["env"], "cwd": os.getcwd()}
        return Born(self, int(self.ask(request, how["stdout"].fileno())))

    def ask(self, request: dict[str, Any], *descriptors: int) -> Any:
        """One request, one answer, whichever thread asks."""
        with self.lock:
            socket.send_fds(self.socket, [json.dumps(request).encode()], list(descriptors))
            return json.loads(self.socket.recv(LARGEST))

    def end(self) -> None:
        """It ends with the socket."""
        self.socket.close()
        self.process.wait()


class Born:
    """A process that the zygote has forked, as much like a `Popen` as the tests need."""

    def __init__(self, zygote: Zygote, pid: int) -> None:
        self._zygote, self.pid = zygote, pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """What it ended with; None while it runs."""
        if self.returncode is None:
            self.returncode = self._zygote.ask({"poll": self.pid})
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """What it ended with, once it has; raises TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (status := self.poll()) is None:
            if deadline is not None and time.monotonic() >= deadline:
                raise subprocess.TimeoutExpired("forked daemon", timeout or 0.0)
            time.sleep(LOOK_SECONDS)
        return status

    def send_signal(self, number: int) -> None:
        """Unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.wait()


# -- in the warm process -----------------------------------------------------------------------------------------------


def run(descriptor: int) -> None:
    """Fork daemons and say what became of them, until the other end is closed."""
    _warm()
    ended: dict[int, int] = {}
    with socket.socket(fileno=descriptor) as up:
        while True:
            data, files, _, _ = socket.recv_fds(up, LARGEST, 1)
            if not data:
                return
            request = json.loads(data)
            if "poll" in request:
                answer = _ended(request["poll"], ended)
            else:
                answer = os.fork()
                if answer == 0:
                    up.close()
                    _become_daemon(files[0], **request)
                os.close(files[0])
            up.send(json.dumps(answer).encode())


def _warm() -> None:
    import numpy.random  # noqa: F401

    import streamcl.daemon.child
    import streamcl.daemon.ingest
    import streamcl.daemon.predictor
    import streamcl.daemon.serve
    import streamcl.daemon.trainer  # noqa: F401
    from streamcl.cli import build_parser

    build_parser()
    gc.freeze()


def _ended(pid: int, known: dict[int, int]) -> int | None:
    if pid not in known:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found:
            return None
        known[pid] = os.waitstatus_to_exitcode(status)
    return known[pid]


def _become_daemon(log: int, fork: list[str], env: dict[str, str], cwd: str) -> None:
    """Run the command line here, as a process of its own would."""
    status = 1
    try:
        os.chdir(cwd)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.closerange(3, 4096)
        os.environ.clear()
        os.environ.update(env)
        for place in reversed(env.get("PYTHONPATH", "").split(os.pathsep)):
            if place:
                sys.path.insert(1, place)
        status = _daemon(fork)
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _daemon(arguments: list[str]) -> int:
    import traceback

    from streamcl.cli import main
    from streamcl.daemon import nursery, processes

    nursery.spawn = processes.spawn = _Spawning(nursery.spawn)  # type: ignore[attr-defined]
    try:
        return main(arguments)
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1


class _Spawning:
    """`nursery.spawn` by a fork; only the first time for each role, since later the daemon has threads."""

    def __init__(self, afresh: Any) -> None:
        self._afresh = afresh
        self._done: set[str] = set()

    def __call__(self, role: str, descriptors: Sequence[int] = (), inherited: Sequence[int] = ()) -> Any:
        from streamcl.daemon.channel import Channel
        from streamcl.daemon.nursery import Begun
        from streamcl.daemon.processes import Forked

        if role in self._done:
            return self._afresh(role, descriptors, inherited)
        self._done.add(role)
        ours, theirs = Channel.pair()
        with theirs:
            channels = [theirs.fileno(), *descriptors]
            pid = os.fork()
            if pid == 0:
                _become_child(role, channels, {*channels, *inherited})
        forked = Forked()
        forked.pid = pid
        return Begun(forked, ours)  # type: ignore[arg-type]


def _become_child(role: str, channels: list[int], kept: set[int]) -> None:
    status = 1
    try:
        from streamcl.daemon import child, linux
        from streamcl.daemon.notify import NAMES

        linux.retitle("serve", role)
        for number in range(3, 1024):
            if number not in kept:
                with contextlib.suppress(OSError):
                    os.close(number)
        for name in NAMES:
            os.environ.pop(name, None)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        signal.set_wakeup_fd(-1)
        status = child.main([role, *map(str, channels)])
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    run(int(sys.argv[1]))
