"""Seconds on a device whose work is done behind the program's back, in turns, for as long as there is time."""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

LEAST_ROUNDS = 2
ROW_SECONDS = 12.0  # of one comparison, about


@dataclass(frozen=True, slots=True)
class Timed:
    """Medians of what two actions took, how often each was timed, and the most memory that was held meanwhile."""

    mine: float
    yardstick: float
    rounds: int
    peak: int | None


class Clock:
    """Of one device. rounds: of a comparison, where `ROW_SECONDS` allow it. until: by the monotonic clock, the end."""

    def __init__(self, device: torch.device, rounds: int, until: float) -> None:
        self.device, self.rounds, self._until = device, rounds, until
        self._is_cuda = device.type == "cuda"

    def left(self) -> float:
        """Seconds until the end."""
        return self._until - time.monotonic()

    def seconds(self, action: Callable[[], Any]) -> float:
        """What an action took, from a device at rest to one at rest again."""
        self._rest()
        started = time.perf_counter()
        action()
        self._rest()
        return time.perf_counter() - started

    def _rest(self) -> None:
        if self._is_cuda:
            torch.cuda.synchronize(self.device)

    def compare(self, mine: Callable[[], Any], yardstick: Callable[[], Any], prepared: int = 1) -> Timed:
        """Both in turns, so that noise that comes in waves affects both; `prepared` calls of each do not count."""
        if self._is_cuda:
            torch.cuda.reset_peak_memory_stats(self.device)
        for _ in range(prepared):
            self.seconds(mine), self.seconds(yardstick)
        taken: tuple[list[float], list[float]] = ([], [])
        started = time.monotonic()
        while len(taken[0]) < self.rounds and (len(taken[0]) < LEAST_ROUNDS or self._goes_on(started)):
            taken[0].append(self.seconds(mine))
            taken[1].append(self.seconds(yardstick))
        peak = int(torch.cuda.max_memory_allocated(self.device)) if self._is_cuda else None
        return Timed(statistics.median(taken[0]), statistics.median(taken[1]), len(taken[0]), peak)

    def _goes_on(self, started: float) -> bool:
        return time.monotonic() - started < ROW_SECONDS and self.left() > 0

    def release(self) -> None:
        """Give memory back that nobody holds any more."""
        gc.collect()
        if self._is_cuda:
            torch.cuda.empty_cache()

    def free(self) -> int:
        """Bytes of the device's memory that are free; on a CPU, of the machine's."""
        if self._is_cuda:
            self.release()
            return int(torch.cuda.mem_get_info(self.device)[0])
        return host_free()


def host_free() -> int:
    """Bytes of the machine's memory that could be had; all of it, where the system does not say."""
    said = Path("/proc/meminfo")
    for line in said.read_text().splitlines() if said.exists() else ():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
