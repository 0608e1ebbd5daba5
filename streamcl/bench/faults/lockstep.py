"""A thread of the simulated trainer, which takes one step to the disk each time it is looked at: the same in every run."""

from __future__ import annotations

import threading
from collections.abc import Callable

from streamcl.bench.faults.disk import Killed, SimulatedDisk
from streamcl.storage.beside import Beside


class Lockstep(Beside):
    """Stands before every operation of the disk until the next look; nobody else runs while it does."""

    def __init__(self, disk: SimulatedDisk) -> None:
        super().__init__()
        disk.gate = self._stand
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._over = self._dead = False

    def begin(self, action: Callable[[], None]) -> None:
        """Come to before the first operation."""
        self._over = False
        super().begin(action)
        self._back.acquire()

    def ended(self, seconds: float = 0.0) -> bool:
        """After one more operation; raises Killed where that ends the process."""
        if self._thread is None:
            return False
        if not self._over:
            self._go.release()
            self._back.acquire()
        if isinstance(self._failure, Killed):
            raise Killed
        return self._over

    def end(self) -> None:
        """With its process."""
        self._dead = True
        if self._thread is not None and not self._over:
            self._go.release()
            self._thread.join()

    def _do(self, action: Callable[[], None]) -> None:
        super()._do(action)
        self._over = True
        self._back.release()

    def _stand(self) -> None:
        if threading.current_thread() is not self._thread:
            return
        self._back.release()
        self._go.acquire()
        if self._dead:
            raise Killed
