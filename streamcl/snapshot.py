"""What a checkpoint holds beside its arrays: every number that the next record needs.

Guarantees: one that decodes has fields of the right types; older ones get the values that they stand for. The layout on
disk is flat, as it always was.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy.typing as npt

from streamcl.errors import UnknownFormat
from streamcl.schema import Signature

POSTERIOR = "posterior."  # of the posterior's arrays


class OpenTaskState(msgspec.Struct, frozen=True):
    """The task being learned; its rows are in the log.

    suspects: LSN and rows of batches that failed as they came; None in older checkpoints, where the quarantine says so.
    The other fields are those of `learning.open_task.OpenTask`.
    """

    name: str
    first_lsn: int
    damping: float | None = None
    tag: str | None = None
    stalled: bool = False
    suspects: tuple[tuple[int, int], ...] | None = None
    start: float | None = None


class Drifted(msgspec.Struct, frozen=True):
    """The task that drift, or its number of rows (origin), closed last, while no row of its stream has come since."""

    tag: str | None
    task: str
    samples: int | None = None
    weight: float | None = None
    loss: float | None = None
    seconds: float | None = None
    closed_at: float | None = None
    origin: str = "drift"


@dataclass(frozen=True, slots=True)
class Vintage:
    """What versions do differently: whoever began with one goes on in its way, to the same bits.

    fills: small messages are learned beside earlier rows. sketches: curvature that is averaged away is taken of a few
    vectors a row. settles: curvature is averaged until its sum settles, rather than each of its directions. compares: a
    first task's epochs begin with whichever copy predicts its rows better, the one that was followed or the calm one. pins:
    what depends on a posterior's eigenvectors depends on the posterior alone (`core.eigen`), and in float64 a step leaves
    alone what is rounding.
    """

    fills: bool = True
    sketches: bool = True
    settles: bool = True
    compares: bool = True
    pins: bool = True


NEWEST = Vintage()


class LearnerState(msgspec.Struct, kw_only=True):
    """What a learner counts. next_lsn: of the next call. labels: pairs of label and output. steady: None where unknown.

    signature: of rows as they are sent. widths: positions from which on a network has had so many outputs, where there may
    be any number of labels. narrower: the shapes of its parameters at each of them but the last. sights: with
    model.scenario task, every task in the order in which they came, and the outputs of its labels. columns: of a table, as
    pinned. words: of its targets, by their labels. inputs: what its input stage has found, beside its arrays. fills,
    sketches, settles, compares, pins: as of `Vintage`; not where an older version began.
    """

    fingerprint: dict[str, Any]
    next_lsn: int
    steps: int
    samples: int
    batches: int
    consolidations: int
    train_loss: float
    labels: list[tuple[int, int]]
    open_task: OpenTaskState | None
    prequential: dict[str, Any]
    drift: dict[str, Any] | None = None
    drifted: Drifted | None = None
    recurring: dict[str, Any] | None = None
    signature: Signature | None
    steady: bool | None = None
    layout: dict[str, Any] | None = None
    widths: list[tuple[int, int]] = []
    narrower: list[list[list[int]]] = []
    columns: dict[str, Any] | None = None
    words: list[str] = []
    inputs: dict[str, Any] | None = None
    sights: list[tuple[str, list[int]]] = []
    fills: bool = False
    sketches: bool = False
    settles: bool = False
    compares: bool = False
    pins: bool = False

    @property
    def vintage(self) -> Vintage:
        """What it began with."""
        return Vintage(self.fills, self.sketches, self.settles, self.compares, self.pins)

    @property
    def needed(self) -> int:
        """The oldest record still needed: the first of the open task."""
        return self.next_lsn if self.open_task is None else self.open_task.first_lsn


class Meta(LearnerState, kw_only=True):
    """A checkpoint's metadata. ledger: how many of its entries count. sequences: epoch and last number of each producer."""

    ledger: int = 0
    sequences: dict[str, tuple[int, int]] = {}


def to_plain(state: LearnerState) -> dict[str, Any]:
    """As plain containers."""
    plain: dict[str, Any] = msgspec.to_builtins(state, builtin_types=(bytes,))
    return plain


def from_plain(plain: Mapping[str, Any]) -> Meta:
    """What `to_plain` gave; raises UnknownFormat where another version wrote it."""
    try:
        return msgspec.convert(plain, Meta)
    except msgspec.ValidationError as error:
        raise UnknownFormat(
            f"checkpoint: {error}; it was written by another version of streamcl: start that one, or upgrade"
        ) from None


def under(prefix: str, tensors: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The arrays whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
