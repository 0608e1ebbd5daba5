"""What a process does with memory that it has freed (with glibc; elsewhere, nothing).

A training step frees tens of megabytes and asks for them again at once. By default the C library gives the end of its heap
back to the system every time, and the system hands out new, zeroed pages: a small convolutional network then trains a
third slower. So freed memory is kept, and given back when it may be large and long unused: at checkpoints.
"""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

FILES = ("inactive_file", "active_file")
SECONDS = 5.0  # between two times when memory is given back
KEPT_BYTES = 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_BYTES = 32 << 20  # the most that the C library allows: larger blocks are always mapped, and unmapped when freed


def has_room(nbytes: int) -> bool:
    """Whether so many bytes more are at most half of what the machine, or this process's control group, has left."""
    return all(2 * nbytes <= left for left in (_left_of_machine(), _left_of_group()) if left is not None)


def _left_of_machine() -> int | None:
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) << 10
    return None


def _left_of_group() -> int | None:
    """Of the least of its limits and those above it (version 2): what it holds of files can be given up."""
    own = next((line.partition("::")[2] for line in _lines(Path("/proc/self/cgroup")) if line.startswith("0::")), "/")
    place, lefts = Path("/sys/fs/cgroup", own.lstrip("/")), []
    for each in (place, *place.parents):
        limit = next(iter(_lines(each / "memory.max")), "max")
        used = next(iter(_lines(each / "memory.current")), None)
        if limit != "max" and used is not None:
            files = [int(line.split()[1]) for line in _lines(each / "memory.stat") if line.split()[0] in FILES]
            lefts.append(int(limit) - int(used) + sum(files))
    return min(lefts, default=None)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


class Memory:
    """The C library's heap."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._library = ctypes.CDLL(None)

    def keep(self) -> None:
        """From here on, keep up to `KEPT_BYTES` of freed memory for the next step."""
        if hasattr(self._library, "mallopt"):
            self._library.mallopt(_M_MMAP_THRESHOLD, _MMAP_BYTES)
            self._library.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)

    def give_back(self) -> None:
        """Return free pages to the system, no more often than every few seconds."""
        now = time.monotonic()
        if hasattr(self._library, "malloc_trim") and now - self._last > SECONDS:
            self._last = now
            self._library.malloc_trim(0)
