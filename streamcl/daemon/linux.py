"""What only Linux offers a daemon of several processes; elsewhere each of these says so, or does nothing."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import signal
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h
_SCHED_SETATTR = {"x86_64": 314, "aarch64": 274}  # asm/unistd.h
TURN_NS = 100_000  # the shortest that the kernel grants
_ARG_START, _ARG_END = 45, 46  # in /proc/self/stat, counted behind the command's name (proc(5))


def become_subreaper() -> bool:
    """Have orphaned descendants become this process's children, to be waited for; whether that is so now (Linux 3.4)."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Have the kernel end this process with its parent; those forked from it are not meant."""
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> bool:
    return sys.platform == "linux" and bool(ctypes.CDLL(None).prctl(option, value, 0, 0, 0) == 0)


class Schedule(ctypes.Structure):
    """How the kernel schedules a thread, `sched_attr` in linux/sched/types.h, as far as every kernel knows it."""

    _fields_ = (
        ("size", ctypes.c_uint32),
        ("policy", ctypes.c_uint32),
        ("flags", ctypes.c_uint64),
        ("nice", ctypes.c_int32),
        ("priority", ctypes.c_uint32),
        ("runtime", ctypes.c_uint64),
        ("deadline", ctypes.c_uint64),
        ("period", ctypes.c_uint64),
    )


def take_short_turns() -> bool:
    """Have this thread, and those that it will start, ask the scheduler for turns of `TURN_NS`; whether the kernel took it.

    Whoever wants less at a time is let in sooner when it wakes, before a thread at work has had its own turn (EEVDF, from
    Linux 6.12 on; earlier kernels take the wish and do nothing). Its share of the processors stays the same.
    """
    number = _SCHED_SETATTR.get(platform.machine()) if sys.platform == "linux" else None
    if number is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return False
    wish = Schedule(size=ctypes.sizeof(Schedule), nice=os.getpriority(os.PRIO_PROCESS, 0), runtime=TURN_NS)
    return bool(ctypes.CDLL(None).syscall(number, 0, ctypes.byref(wish), 0) == 0)


def retitle(old: str, new: str) -> None:
    """Have `ps` show the argument `new` in the place of `old` and of all behind it; where there is no room, not."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        arguments = Path("/proc/self/cmdline").read_bytes().split(b"\0")
        title = b"\0".join([*arguments[: arguments.index(old.encode())], new.encode(), b""])
        fields = _stat("self")
        start, end = int(fields[_ARG_START]), int(fields[_ARG_END])
        if 0 < start <= end - len(title):
            ctypes.memmove(start, title.ljust(end - start, b"\0"), end - start)


def _stat(pid: str) -> list[str]:
    """What the kernel says of a process, behind its command's name (proc(5)); raises OSError."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def processor_seconds(pid: int) -> float:
    """The processor time that a process has taken so far; without /proc, the time that passes."""
    try:
        fields = _stat(str(pid))
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        return time.monotonic() if not Path("/proc/self/stat").exists() else 0.0
