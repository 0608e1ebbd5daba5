"""What a process does with memory that it has freed (with glibc; elsewhere, nothing).

A training step frees tens of megabytes and asks for them again at once. By default the C library gives the end of its heap
back to the system every time, and the system hands out new, zeroed pages: a small convolutional network then trains a
third slower. So freed memory is kept, and given back when it may be large and long unused: at checkpoints.
"""

from __future__ import annotations

import ctypes
import time

SECONDS = 5.0  # between two times when memory is given back
KEPT_BYTES = 256 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_MMAP_BYTES = 32 << 20  # the most that the C library allows: larger blocks are always mapped, and unmapped when freed


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
