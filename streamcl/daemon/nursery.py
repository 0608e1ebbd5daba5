"""The nursery process: imports PyTorch once, and forks trainer and predictor whenever the supervisor asks for one.

Guarantees: what it forks could have been started afresh. Nothing here computes, starts a thread of PyTorch's, touches an
accelerator, draws a random number, or knows the model factory, whose module each process imports for itself, as it is on
disk at that time. The processes are the supervisor's children, not the nursery's (`linux.become_subreaper`), which may end
at any time without them; itself it ends with the supervisor.
"""

from __future__ import annotations

import gc
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module, invalidate_caches

from streamcl.daemon import linux, words
from streamcl.daemon.channel import ALIVE_SECONDS, Channel, wait
from streamcl.daemon.notify import NAMES

ROLE = "nursery"
MODULES = {"trainer": "streamcl.daemon.trainer", "predictor": "streamcl.daemon.predictor"}
PID_BYTES = 32

Born = tuple[str, list[Channel]]


@dataclass(frozen=True, slots=True)
class Begun:
    """A process that has just been started, and our end of its channel."""

    process: subprocess.Popen[bytes]
    end: socket.socket

    def abandon(self) -> None:
        """End it, if it has not ended: nobody needs it any more."""
        self.end.close()
        self.process.kill()
        self.process.wait()


def spawn(role: str, descriptors: Sequence[int] = (), inherited: Sequence[int] = ()) -> Begun:
    """Start one of the daemon's processes afresh; the descriptors are its channels' beside the one to us."""
    ours, theirs = Channel.pair()
    with theirs:
        channels = [theirs.fileno(), *descriptors]
        process = subprocess.Popen(
            [sys.executable, "-m", "streamcl.daemon.child", role, *map(str, channels)],
            pass_fds=[*channels, *inherited],
            stdin=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if name not in NAMES},
        )
    return Begun(process, ours)


def begin() -> Begun | None:
    """Start the nursery, whose processes will be the caller's; None where the system has no way to arrange that."""
    return spawn(ROLE) if linux.become_subreaper() else None


def run(up: Channel) -> Born | None:
    """Fork until the supervisor is gone or has enough: None then; in every process forked, its role and its channels."""
    linux.die_with_parent()
    _warm()
    up.send(words.Ready())
    while not up.closed:
        wait([up], ALIVE_SECONDS)
        up.alive(words.Alive())
        for word, descriptors in up.receive_with_descriptors():
            match word:
                case words.Stop():
                    return None
                case words.Fork(role=role):
                    if (born := _bear(up, role, descriptors)) is not None:
                        return born
                case _:
                    words.unexpected(word, ROLE)
    return None


def _warm() -> None:
    """Import what will be needed, in one go: nothing of it is garbage, so nobody need look for any."""
    gc.disable()
    for module in (*MODULES.values(), "numpy.random"):  # which NumPy imports when it is used first
        import_module(module)
    gc.freeze()  # so that no collection in a process forked copies the pages that it shares with the others


def _bear(up: Channel, role: str, descriptors: list[int]) -> Born | None:
    """Fork one process and say its number; returns None, and in that process what it is.

    descriptors: the state directory's lock, which it only holds, then its channels.
    """
    pid = _fork(role)
    if pid:
        for descriptor in descriptors:
            os.close(descriptor)
        up.send(words.Born(role=role, pid=pid))
        return None
    up.close()
    _afresh()
    return role, [Channel(socket.socket(fileno=descriptor)) for descriptor in descriptors[1:]]


def _fork(role: str) -> int:
    """Fork twice, so that the one that stays is an orphan at once; its number, and 0 in it. Raises OSError."""
    read, write = os.pipe()
    between = os.fork()
    if between == 0:
        try:
            linux.retitle(ROLE, role)
            pid = os.fork()
        except BaseException:
            os._exit(1)  # whatever it was, there must not be a second nursery
        if pid:
            os.write(write, str(pid).encode())
            os._exit(0)
        os.close(read)
        os.close(write)
        return 0
    os.close(write)
    os.waitpid(between, 0)  # after which the new process is the supervisor's
    with open(read, "rb") as pipe:
        number = pipe.read(PID_BYTES)
    if not number:
        raise OSError(f"no {role} could be forked: the system has no room for another process")
    return int(number)


def _afresh() -> None:
    """What a process that was started, not forked, would have of its own."""
    import numpy as np

    gc.enable()
    np.random.seed()
    invalidate_caches()  # of directories that may have other modules by now
