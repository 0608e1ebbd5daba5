"""One thing done to the disk beside everything else, and the copy that it is done with.

The thread knows files, digests and NumPy arrays, and nothing of PyTorch. Guarantees: one thing at a time; what it came to
is known to nobody before it is taken; the copy holds what the arrays held when it was made, whatever becomes of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

PREPARED_BYTES, PIECE_BYTES = 16 << 20, 1 << 20  # from this size on memory is made beside training, in pieces
SLACK_BYTES = 6 << 20  # more than the newest rows that a checkpoint has of a task
PLACES = 64  # bytes to a multiple of which an array begins in the copy

Array = npt.NDArray[Any]


class Beside:
    """A thread for each thing that is begun. share: of a processor's time that it takes, until it is waited for.

    Not a matter of niceness: on a machine that does much else, what has the lowest of all never ends.
    """

    def __init__(self, share: float = 1.0) -> None:
        self.share = share
        self._hurry = threading.Event()
        self._worked = 0.0
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def begin(self, action: Callable[[], None]) -> None:
        """Do this from now on; what was begun before has been taken."""
        if self._thread is not None:
            raise RuntimeError("expected what was begun to have been taken")
        self._failure = None
        self._hurry.clear()
        self._thread = threading.Thread(target=self._do, args=[action], name="checkpoint", daemon=True)
        self._thread.start()

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does so within some seconds."""
        if self._thread is None:
            return False
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def hurry(self) -> None:
        """Somebody waits for it."""
        self._hurry.set()

    def breathe(self) -> None:
        """Called by what was begun, after every few milliseconds of work: leave its share of the time to others."""
        now = time.thread_time()
        if not self._hurry.is_set():
            self._hurry.wait((now - self._worked) * (1 / self.share - 1))
        self._worked = now

    def take(self) -> BaseException | None:
        """What it raised; the next may begin."""
        self._thread = None
        return self._failure

    def _do(self, action: Callable[[], None]) -> None:
        self._worked = time.thread_time()
        try:
            action()
        except BaseException as failure:
            self._failure = failure


class Copy:
    """Memory that is used again for every copy, as much as the largest took.

    has_room: whether so many bytes more may be used.
    """

    def __init__(self, has_room: Callable[[int], bool] = lambda nbytes: True) -> None:
        self._has_room = has_room
        self._held = np.empty(0, np.uint8)

    def of(self, arrays: Mapping[str, Array]) -> dict[str, Array] | None:
        """The arrays as they are now; None where they do not fit. Those of the copy before are overwritten."""
        needed = sum(map(_place, arrays.values()))
        if not self._make_room(needed):
            return None
        found, at = {}, 0
        for name, array in arrays.items():
            found[name] = self._held[at : at + array.nbytes].view(array.dtype).reshape(array.shape)
            np.copyto(found[name], array)
            at += _place(array)
        return found

    def misfit(self, arrays: Mapping[str, Array]) -> str:
        """In words, for whoever has to find the memory."""
        return (
            f"a copy of what they hold, {sum(map(_place, arrays.values())):,} bytes, would take more than half of the "
            "memory that is left; with more of it they are written beside training"
        )

    def worth_preparing(self, arrays: Mapping[str, Array]) -> int:
        """Bytes for a copy of them that are not there yet, where there is room for them and they are not made in a moment:
        the system hands memory out page by page, which takes many times as long as the copying. Otherwise 0."""
        needed = sum(map(_place, arrays.values()))
        missing = needed > max(len(self._held), PREPARED_BYTES)
        return needed if missing and self._has_room(needed - len(self._held)) else 0

    def prepare(self, needed: int, breathe: Callable[[], None]) -> None:
        """Have memory for so many bytes, every page of it; breathe: called between pieces. Raises MemoryError."""
        self._held = np.empty(0, np.uint8)
        held = np.empty(_with_slack(needed), np.uint8)
        for start in range(0, len(held), PIECE_BYTES):
            held[start : start + PIECE_BYTES] = 0
            breathe()
        self._held = held

    def _make_room(self, needed: int) -> bool:
        if needed <= len(self._held):
            return True
        self._held = np.empty(0, np.uint8)
        try:
            if self._has_room(needed):
                self._held = np.empty(_with_slack(needed), np.uint8)
        except MemoryError:
            return False
        return len(self._held) >= needed


def _with_slack(needed: int) -> int:
    """So that a few more rows, which the next copy has, do not take other memory."""
    return needed + max(needed >> 4, SLACK_BYTES)


def _place(array: Array) -> int:
    return array.nbytes + -array.nbytes % PLACES
