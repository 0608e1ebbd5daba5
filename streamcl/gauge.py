"""What has been forgotten, without the data: the estimates, how far they can be trusted, and when a task is at chance.

Every task's quadratic, or the whole past's, says how much its loss has risen since it was learned. Guarantees: what such a
quadratic cannot know is said beside the figure (`Bound`). Values in, values out; nothing here decides what is learned.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from streamcl.config import Config
from streamcl.entries import Consolidated, Standing, no_better

LINEAR = "streamcl.models:linear"
ENOUGH = 0.75  # of what a task had over guessing: an estimate of so much says that all of it may be lost
FIGURES = ("rise_bound", "chance", "at_chance")  # of a task's map
Bound = Literal["lower", "chance"]
"""lower: as a rule the rise is more than that, perhaps many times as much. chance: it has come to where guessing does as
well, beyond which a quadratic, which neither saturates nor turns, knows nothing."""


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a task's evaluation set: the share that is predicted right; and of one answer to every row, the best there is."""

    accuracy: float
    constant: float | None = None

    @property
    def at_chance(self) -> bool | None:
        """Whether the same answer to every row is right as often; None where that is not known."""
        return None if self.constant is None else self.accuracy <= self.constant


class Past(msgspec.Struct, frozen=True, kw_only=True):
    """All tasks together.

    tasks, samples: how many. rise: of their mean loss since each was learned, in nats a sample, a task counted by its
    weight; None where nothing is held. rise_bound: what the quadratic does not know. at_chance: whether the tasks before
    the newest have lost all that they had learned, beside guessing; None where that is not known.
    """

    tasks: int
    samples: int
    rise: float | None
    rise_bound: Bound | None
    at_chance: bool | None


def is_linear_gaussian(config: Config) -> bool:
    """Whether a task's loss is a quadratic, as far as the factory's name says."""
    return config.model.family == "gaussian" and config.model.factory == LINEAR


def understates(config: Config) -> bool:
    """Whether the curvature says less than there is.

    At an optimum that fits its data it all but vanishes; in mode online that of old tasks is let go; and where a network's
    real outputs have moved far, what they have moved beyond the linear is not in it (of a linear model, nothing is). It is
    seen in the outputs where a task's inputs have left their mean and covariance. An exact learner's sums know all of it.
    """
    if config.model.learner == "exact":
        return False
    real = config.model.family == "gaussian" and not is_linear_gaussian(config)
    return real or config.posterior.expectation == "mode" or config.posterior.mode == "online"


def over_guessing(entry: Consolidated) -> tuple[float, float] | None:
    """A task's loss when it was learned, and that of guessing, in what its rises are measured in; None where not known."""
    if entry.scores is not None:
        return entry.scores
    return None if entry.chance is None else (entry.loss, entry.chance)


def _lost_at(entry: Consolidated) -> tuple[float, float] | None:
    """As `over_guessing`, with the loss at which the task is said to be lost: where rises of labels are seen on drawn
    inputs, a little below that of guessing, since they are as often too small as too large."""
    known = over_guessing(entry)
    if known is None or not entry.inputs or entry.scores is not None:
        return known
    return known[0], known[0] + ENOUGH * (known[1] - known[0])


def at_chance(
    entry: Consolidated, rise: float | None, measured: Measured | None = None, lower: bool = False
) -> bool | None:
    """Whether a task is predicted no better than by guessing. What was measured says more than an estimate.

    None where neither is known, or the rise is more than is known. lower: as `understates`.
    """
    if measured is not None and measured.at_chance is not None:
        return measured.at_chance
    if (known := _lost_at(entry)) is None:
        return None
    if known[0] + max(rise or 0.0, 0.0) >= known[1]:
        return True
    return None if rise is None or (lower and not entry.inputs) else False


def bound(entry: Consolidated, rise: float | None, lower: bool) -> Bound | None:
    """What is not known of a task's rise. lower: as `understates`."""
    if rise is None:
        return None
    if (known := _lost_at(entry)) is not None and known[0] + rise >= known[1]:
        return "chance"
    return "lower" if lower and not entry.inputs else None


def past(standing: Standing, rises: Mapping[str, float] | None, moved: float | None, lower: bool) -> Past:
    """All tasks together.

    rises: of each task, as far as they have been followed, where factors are kept; else the boundaries' costs count. moved:
    what the open task's steps have cost so far, in nats; None where none is open. lower: as `understates`.
    """
    tasks = list(standing.tasks.values())
    lost, weight = (standing.risen, standing.weight) if rises is None else _followed(tasks, rises)
    lost += moved or 0.0
    chance = _at_chance(_before_newest(tasks) if moved is None else tasks, lost)
    unseen = lower and not all(entry.inputs for entry in tasks)
    least: Bound | None = "lower" if unseen or (rises is None and standing.uncounted) else None
    return Past(
        tasks=len(tasks),
        samples=sum(entry.samples for entry in tasks),
        rise=lost / weight if weight > 0 else None,
        rise_bound=None if weight <= 0 else "chance" if chance else least,
        at_chance=chance if chance or least is None else None,
    )


def _followed(tasks: Collection[Consolidated], rises: Mapping[str, float]) -> tuple[float, float]:
    known = [(entry.weight, rises[entry.task]) for entry in tasks if entry.task in rises]
    return sum(weight * rise for weight, rise in known), sum(weight for weight, _ in known)


def _before_newest(tasks: Collection[Consolidated]) -> list[Consolidated]:
    newest = max((entry.lsn for entry in tasks), default=-1)
    return [entry for entry in tasks if entry.lsn < newest]


def _at_chance(tasks: Collection[Consolidated], lost: float) -> bool | None:
    """Whether what these tasks have lost together, in nats, is all that they had over guessing."""
    held = [entry for entry in tasks if entry.samples and entry.weight > 0]
    known = [(entry.weight, found) for entry in held if (found := _lost_at(entry)) is not None]
    if not held or len(known) < len(held):
        return None
    return lost >= sum(weight * (guessing - learned) for weight, (learned, guessing) in known)


# -- in words ----------------------------------------------------------------------------------------------------------


def lost(rise: float, limit: str | None) -> str:
    """A rise, in a sentence: how much was lost."""
    if limit == "chance":
        return f"{rise:.3g} nats a sample, all that it was better than guessing,"
    return f"{'at least ' if limit == 'lower' else ''}{rise:.3g} nats a sample"


def task_warning(
    entry: Consolidated, rise: float | None, measured: Measured | None, factors: bool, exact: bool = False
) -> str:
    """Why a task is at chance, and what can be done. exact: of a learner that forgets nothing."""
    name = entry.task
    if measured is not None and measured.at_chance:
        why = (
            f"accuracy {measured.accuracy:.3g} on its evaluation set, where one and the same answer to every row has "
            f"{measured.constant:.3g}"
        )
    elif exact:
        why = "what its scores miss has come to what guessing misses"
    elif (told := no_better(entry.loss, entry.chance)) is not None:
        return f"task {name!r} was {told}"
    else:
        why = (
            f"its loss of {entry.loss:.3g} is estimated to have risen past the {_guessing(entry):.3g} nats a sample that "
            f"guessing costs{'' if entry.scores is None else ' with the noise that it was learned with'}"
        )
    again = EXACT if exact else f"feed it again: `streamcl revisit {name}`, or `streamcl sweep`" if factors else NO_FACTORS
    return f"task {name!r} is at chance: {why}; {again}"


def _guessing(entry: Consolidated) -> float:
    known = over_guessing(entry)
    return float("nan") if known is None else known[1]


def past_warning(found: Past, factors: bool, exact: bool = False) -> str:
    """As `task_warning`, of all tasks together."""
    again = EXACT if exact else "feed the tasks again: `streamcl sweep`" if factors else NO_FACTORS
    return (
        f"what was learned before is estimated to be at chance, over {found.tasks} tasks: their loss has risen by all that "
        f"they were better than guessing; {again}"
    )


EXACT = (
    "nothing is forgotten, but no one head on these features fits all tasks: take more features (model.args width) or your "
    "own, each on a new state directory, withdraw what contradicts (`streamcl forget`, factor mode), or let the past fade "
    "(posterior.half_life)"
)
NO_FACTORS = (
    'a larger network holds more, posterior.mode = "factors" can feed tasks again (each takes a new state directory), and '
    "an evaluation set (evaluation.directory) says which tasks are lost"
)


def figures(entry: Consolidated, rise: float | None, measured: Measured | None, lower: bool) -> dict[str, Any]:
    """What a task's map says of all this."""
    return {
        "rise_bound": bound(entry, rise, lower),
        "chance": entry.chance,
        "at_chance": at_chance(entry, rise, measured, lower),
    }
