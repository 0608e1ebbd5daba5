"""Memory that a process no longer uses, back to the system.

The C library keeps freed blocks of up to 32 MiB for itself: after a consolidation that can be several times the model.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

SECONDS = 5.0  # between two times: what was given back has to be asked for again


class Memory:
    """Gives back free heap pages, where the C library can (glibc's malloc_trim), and not too often."""

    def __init__(self) -> None:
        self._last = float("-inf")
        self._trim = _trim()

    def give_back(self) -> None:
        """Return free pages to the system; call it wherever much may have become free."""
        now = time.monotonic()
        if self._trim is not None and now - self._last > SECONDS:
            self._last = now
            self._trim(0)


def _trim() -> Callable[[int], int] | None:
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (AttributeError, OSError):
        return None
    return trim
