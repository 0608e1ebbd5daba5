"""The checkpoint: one file that holds all that was learned, replaced in one atomic rename.

Written as described in `verified`. Its size does not grow with the number of tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from streamcl.storage import verified
from streamcl.storage.disk import Disk
from streamcl.storage.verified import Saved

NAME = "checkpoint"
POSTERIOR = "posterior."  # of the posterior's arrays


def save(directory: Path, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], disk: Disk) -> None:
    """Make this the checkpoint; raises OSError or SyncFailed and leaves the old one, Damaged if it reads back wrong."""
    verified.save(directory / NAME, meta, tensors, disk)


def load(directory: Path, disk: Disk | None = None) -> Saved | None:
    """The checkpoint, verified; None if there is none. Raises Damaged, UnknownFormat.

    For the one process that saves: what an unfinished `save` left is removed, and the name is synced, since the
    process that renamed it may have died before doing so, and segments are about to be dropped because of it.
    """
    disk = disk or Disk()
    path = directory / NAME
    disk.unlink(verified.aside(path))
    if not path.exists():
        return None
    disk.sync_directory(directory)
    return verified.load(path)


def read_posterior(directory: Path) -> tuple[int, dict[str, npt.NDArray[Any]]] | None:
    """The number of consolidations and the posterior's arrays, verified; None if no checkpoint has a model.

    Raises Damaged, UnknownFormat.
    """
    try:
        saved = verified.load(directory / NAME)
    except FileNotFoundError:
        return None
    arrays = under(POSTERIOR, saved.tensors)
    return (saved.meta["consolidations"], arrays) if arrays else None


def under(prefix: str, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}


def read_meta(directory: Path) -> dict[str, Any] | None:
    """The checkpoint's metadata alone, verified; None if there is no checkpoint. Raises as `load`."""
    path = directory / NAME
    return verified.read_meta(path) if path.exists() else None


def position(meta: Mapping[str, Any] | None) -> tuple[int, int]:
    """The number of the record after a checkpoint, and of the oldest one still needed: the first of the open task."""
    if meta is None:
        return 0, 0
    task = meta["open_task"]
    return meta["next_lsn"], meta["next_lsn"] if task is None else task["first_lsn"]
