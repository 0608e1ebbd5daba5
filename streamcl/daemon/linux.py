"""What only Linux offers a daemon of several processes; elsewhere each of these says so, or does nothing."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_ARG_START, _ARG_END = 45, 46  # in /proc/self/stat, counted behind the command's name (proc(5))


def become_subreaper() -> bool:
    """Have orphaned descendants become this process's children, to be waited for; whether that is so now (Linux 3.4)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Have the kernel end this process with its parent; those forked from it are not meant."""
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    return sys.platform == "linux" and bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)


def retitle(old: str, new: str) -> None:
    """Have `ps` show the argument `new` in the place of `old` and of all behind it; where there is no room, not."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        title = b"\0".join([*arguments[: arguments.index(old.encode())], new.encode(), b""])
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        if 0 < start <= end - len(title):
            ctypes.memmove(start, title.ljust(end - start, b"\0"), end - start)
