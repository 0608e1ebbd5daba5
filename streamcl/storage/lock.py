"""One daemon a state directory: an exclusive lock that the daemon's processes inherit.

Guarantees: held until the last of them has ended, so that a new daemon never meets the old one's writers.
"""

from __future__ import annotations

import fcntl
import os
import time
from pathlib import Path

from streamcl.errors import StateInUse
from streamcl.storage.disk import Disk

NAME = "lock"


class StateLock:
    """A held lock; released by `release`, or when every process that has the descriptor has ended."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def acquire(cls, directory: Path, wait_seconds: float = 0.0) -> StateLock:
        """Create the directory (0700) if need be and lock it; raises StateInUse naming the holder."""
        Disk().make_directory(directory)
        fd = os.open(directory / NAME, os.O_RDWR | os.O_CREAT, 0o600)
        os.set_inheritable(fd, True)
        deadline = time.monotonic() + wait_seconds
        while not _locked(fd):
            if time.monotonic() > deadline or _holder_lives(fd):
                holder = _holder(fd)
                os.close(fd)
                raise StateInUse(
                    f"{directory}: in use by the daemon with pid {holder}; stop it (`streamcl stop --state-dir "
                    f"{directory}`), or name another state_dir"
                )
            time.sleep(0.05)
        os.truncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        return cls(fd)

    def release(self) -> None:
        """Release it in this process."""
        os.close(self.fd)


def is_held(directory: Path) -> bool:
    """Whether a daemon has the directory, as far as can be seen."""
    try:
        fd = os.open(directory / NAME, os.O_RDONLY)
        try:
            return not _locked(fd, fcntl.LOCK_SH)
        finally:
            os.close(fd)
    except OSError:
        return False


def _locked(fd: int, kind: int = fcntl.LOCK_EX) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(fd: int) -> str:
    return os.pread(fd, 20, 0).decode(errors="replace") or "unknown"


def _holder_lives(fd: int) -> bool:
    """Whether the supervisor itself runs; if only its children are left, they are about to end."""
    try:
        os.kill(int(_holder(fd)), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
