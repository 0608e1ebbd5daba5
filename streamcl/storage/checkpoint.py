"""The checkpoint: one file that holds all that was learned, replaced in one atomic rename.

Written as described in `verified`. Its size does not grow with the number of tasks. It refers to what training does not
change (`frozen`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from streamcl import snapshot
from streamcl.errors import Damaged
from streamcl.snapshot import POSTERIOR, Meta, under
from streamcl.storage import ledger, verified
from streamcl.storage.disk import Disk
from streamcl.storage.frozen import Frozen
from streamcl.storage.segments import first_lsn_of, list_segments
from streamcl.storage.state import StateDirectory

NAME = "checkpoint"


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A loaded checkpoint; its arrays are private views of the mapped file."""

    meta: Meta
    tensors: Mapping[str, npt.NDArray[Any]]


def save(directory: Path, meta: Meta, tensors: Mapping[str, npt.NDArray[Any]], disk: Disk) -> None:
    """Make this the checkpoint; raises OSError or SyncFailed and leaves the old one, Damaged if it reads back wrong."""
    put(directory, snapshot.to_plain(meta), tensors, disk)


def put(
    directory: Path,
    plain: Mapping[str, Any],
    tensors: Mapping[str, npt.NDArray[Any]],
    disk: Disk,
    breathe: Callable[[], None] | None = None,
) -> None:
    """As `save`, of metadata that is plain already; breathe: as of `verified.save`."""
    verified.save(directory / NAME, plain, tensors, disk, breathe)


def check_is_there(state: StateDirectory) -> None:
    """Raise Damaged where there is no checkpoint, though there was one: the log begins later than with the first record of
    all, or is empty beside what only learning leaves."""
    path, segments = state.path / NAME, list_segments(state.log)
    if path.exists():
        return
    left = [state.path / ledger.NAME, *state.factors.glob("*.factor"), *(state.path / "versions").glob("*.checkpoint")]
    learned = any(each.exists() and each.stat().st_size for each in left)
    gone = min(map(first_lsn_of, segments)) > 0 if segments else learned
    if gone:
        raise Damaged(
            f"{path}: it is missing, and what it held is not in the log any more; restore it, or the state directory, from "
            "a backup. Nothing was changed: where there is versions/, its files are checkpoints of earlier boundaries"
        )


def load(directory: Path, disk: Disk | None = None, frozen: Frozen | None = None) -> Checkpoint | None:
    """The checkpoint with the arrays that it refers to, all verified; None if there is none.

    Raises Damaged, UnknownFormat.

    For the one process that saves: what an unfinished `save` left is removed, and the name is synced, since the
    process that renamed it may have died before doing so, and segments are about to be dropped because of it.
    """
    disk = disk or Disk()
    path = directory / NAME
    disk.unlink(verified.aside(path))
    if not path.exists():
        return None
    disk.sync_directory(directory)
    return read(directory, frozen)


def read(directory: Path, frozen: Frozen | None = None) -> Checkpoint:
    """As `load`, for whoever only looks; raises FileNotFoundError where there is none."""
    saved = verified.load(directory / NAME)
    return Checkpoint(snapshot.from_plain(saved.meta), (frozen or Frozen(directory)).resolved(saved.tensors))


def read_posterior(directory: Path) -> tuple[int, dict[str, npt.NDArray[Any]]] | None:
    """The number of consolidations and the posterior's arrays, verified; None if no checkpoint has a model.

    Raises Damaged, UnknownFormat.
    """
    try:
        saved = read(directory)
    except FileNotFoundError:
        return None
    arrays = under(POSTERIOR, saved.tensors)
    return (saved.meta.consolidations, arrays) if arrays else None


def read_meta(directory: Path) -> Meta | None:
    """The checkpoint's metadata alone, verified; None if there is no checkpoint. Raises as `load`."""
    path = directory / NAME
    return snapshot.from_plain(verified.read_meta(path)) if path.exists() else None


def position(meta: Meta | None) -> tuple[int, int]:
    """The number of the record after a checkpoint, and of the oldest one still needed: the first of the open task."""
    return (0, 0) if meta is None else (meta.next_lsn, meta.needed)
