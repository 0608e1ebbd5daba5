"""What a call of the learner comes to: entries of the ledger, made of a task's figures.

Guarantees: values in, values out; the times at which something took effect are all that is taken from elsewhere.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt
from msgspec.structs import replace

from streamcl.entries import BY_ITSELF, Confirmed, Consolidated, Entry, Held, Mark, Revisited, StillAside
from streamcl.learning.open_task import OpenTask
from streamcl.snapshot import Drifted

MOST_WARNING = 1000  # characters of one that are kept


class Factor(Protocol):
    """A task's part of the posterior, to be kept as a file."""

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """As host arrays by name."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a call changed for good: an entry that says so, and the factor to keep beside it in factor mode."""

    entry: Entry
    factor: Factor | None = None


@dataclass(frozen=True, slots=True)
class Learned:
    """A task whose optimum has entered the posterior.

    samples: rows. weight: lambda_t. loss: mean NLL there, in nats a sample. factor: in factor mode, potential: of it there.
    warning: for the operator. cost, chance, scores, inputs: as of `entries.Consolidated`.
    """

    samples: int
    weight: float
    loss: float
    factor: Factor | None = None
    potential: float | None = None
    warning: str | None = None
    cost: float | None = None
    chance: float | None = None
    scores: tuple[float, float] | None = None
    inputs: bool = False


def about(mark: Mark, task: str, started: float) -> dict[str, Any]:
    """What every entry says: who asked, and when it took effect. started: by the monotonic clock."""
    took = {"seconds": time.monotonic() - started, "closed_at": time.time()}
    return {"task": task, "lsn": mark.lsn, "producer": mark.producer, "seq": mark.seq, **took}


def asked_by(mark: Mark, entry: Entry) -> Mark:
    """A retry stands for the boundary that was not learned in full: its sender is told of the result."""
    return Mark(mark.lsn, entry.producer, entry.seq)


def consolidated(
    about: dict[str, Any], task: OpenTask, learned: Learned, known: Consolidated | None, added: bool
) -> Consolidated:
    """A consolidated task's entry. known: the one that it replaces.

    added: its rows were added to those of `known`: with the sums and the mean loss of all its rows.
    """
    figures: dict[str, Any] = {"samples": learned.samples, "weight": learned.weight, "loss": learned.loss}
    about["warning"] = learned.warning and learned.warning[:MOST_WARNING]
    about |= {"cost": learned.cost, "chance": learned.chance, "scores": learned.scores, "inputs": learned.inputs}
    if learned.factor is not None:
        about |= {"factor": about["lsn"], "potential": learned.potential}
    left = tuple(task.suspects)
    if known is None:
        return Consolidated(**about, **figures, aside=left)
    if added:
        together = _together(known, **figures)
        about["chance"] = _mean(known, known.chance, learned.samples, learned.chance)
        about["scores"] = _means(known, learned)
        return type(known)(**about, **together, aside=left, revisits=known.revisits, added=True)
    # what an earlier feeding left aside is still there
    return Revisited(**about, **figures, aside=(*known.aside, *left), revisits=known.revisits + 1)


def _means(known: Consolidated, learned: Learned) -> tuple[float, float] | None:
    """As of `_mean`, of both figures of the scores."""
    pairs = zip(known.scores or (None, None), learned.scores or (None, None), strict=True)
    loss, guessing = (_mean(known, old, learned.samples, new) for old, new in pairs)
    return None if loss is None or guessing is None else (loss, guessing)


def _together(known: Consolidated, samples: int, weight: float, loss: float) -> dict[str, Any]:
    """The figures of a task and of rows added to it: sums, and the mean loss of all rows."""
    total = known.samples + samples
    return {
        "samples": total,
        "weight": known.weight + weight,
        "loss": (known.samples * known.loss + samples * loss) / total,
    }


def _mean(known: Consolidated, before: float | None, samples: int, added: float | None) -> float | None:
    """Of a figure a sample, over a task's rows and those added to it; None where it is not known of both."""
    if before is None or added is None:
        return None
    return (known.samples * before + samples * added) / (known.samples + samples)


def held(about: dict[str, Any], task: OpenTask, weight: float | None) -> Held:
    """The entry of a boundary at which nothing can be learned; its record is the last that is kept."""
    rows = task.samples + sum(rows for _, rows in task.suspects)
    return Held(
        **about,
        samples=rows,
        first_lsn=task.first_lsn,
        end_lsn=about["lsn"] + 1,
        weight=weight,
        damping=task.damping,
    )


def still_kept(mark: Mark, kept: Held | Consolidated, started: float) -> Held | StillAside:
    """The entry of a retry that has failed for good: a held task is still held, or what was set aside is still there."""
    if isinstance(kept, Held):
        return replace(kept, lsn=mark.lsn, closed_at=time.time(), seconds=time.monotonic() - started)
    return StillAside(**about(mark, kept.task, started), samples=kept.rows_aside)


def confirmed(
    mark: Mark, weight: float | None, drifted: Drifted, held: Mapping[str, Held]
) -> tuple[Held | Confirmed, str | None]:
    """A boundary of a stream whose last task drift has closed, no row having come since: one answer serves both.

    Returns its entry, and a warning where the weight that it asks for comes too late.
    """
    if drifted.task in held:
        entry = replace(held[drifted.task], producer=mark.producer, seq=mark.seq, lsn=mark.lsn, origin="stream")
        return entry, None
    warning = (
        weight
        if weight is None
        else (
            f"task {drifted.task!r}: {BY_ITSELF[drifted.origin]} had closed it before its boundary came, with the weight "
            f"{drifted.weight:g}; the boundary's own, {weight:g}, is not used"
        )
    )
    return _confirmed(mark, drifted), warning


def _confirmed(mark: Mark, drifted: Drifted) -> Confirmed:
    return Confirmed(
        task=drifted.task,
        lsn=mark.lsn,
        producer=mark.producer,
        seq=mark.seq,
        seconds=drifted.seconds or 0.0,
        closed_at=drifted.closed_at or 0.0,
        samples=drifted.samples or 0,
        weight=drifted.weight or 0.0,
        loss=drifted.loss or 0.0,
        origin=drifted.origin,
    )
