"""The tasks' factors of factor mode: one verified file each, mapped when it is read.

STATE/factors holds a file for each factor, named for the log record that made it, so that a revisit's new factor
stands beside the old one until the checkpoint that counts it is on disk. The ledger says which of them are valid.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from streamcl.errors import Damaged
from streamcl.storage import verified
from streamcl.storage.disk import Disk


class Factors:
    """Writes, maps and removes factors by number; holds none of them in memory."""

    def __init__(self, directory: Path, disk: Disk) -> None:
        self.directory = directory
        self.disk = disk

    def path(self, number: int) -> Path:
        """The path of a factor."""
        return self.directory / f"{number:020d}.factor"

    def write(self, number: int, task: str, tensors: Mapping[str, npt.NDArray[Any]]) -> None:
        """Store one factor, verified and durable on return; raises OSError, SyncFailed, Damaged."""
        self.disk.make_directory(self.directory)
        verified.save(self.path(number), {"task": task, "number": number}, tensors, self.disk)

    def read(self, number: int, task: str, verify: bool = True) -> dict[str, npt.NDArray[Any]]:
        """A factor's arrays as private views of its file; raises Damaged if it is missing or, when verified, unsound."""
        path = self.path(number)
        try:
            saved = verified.load(path, verify)
        except FileNotFoundError:
            raise Damaged(f"{path}: the factor of task {task!r} is missing; restore it from a backup") from None
        if saved.meta != {"task": task, "number": number}:
            raise Damaged(f"{path}: expected factor {number} of task {task!r}, it holds {saved.meta}")
        return saved.tensors

    def keep_only(self, numbers: Iterable[int]) -> None:
        """Remove every other file: factors that were replaced, withdrawn or never counted, and unfinished ones."""
        kept = {self.path(number).name for number in numbers}
        doomed = [path for path in self.directory.glob("*.factor*") if path.name not in kept]
        for path in doomed:
            self.disk.unlink(path)
        if doomed:
            self.disk.sync_directory(self.directory)
