"""What a snapshot holds, taken over by a model that has just been made.

Guarantees: what was consolidated is never given up: a model that it does not fit is a ConfigError. With nothing
consolidated every row is still there, and a corrected model starts afresh: it is tried like a new one, and learns the open
task's rows at their boundary.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy.typing as npt

from streamcl.config import Config
from streamcl.errors import ConfigError
from streamcl.learning import growing
from streamcl.learning.data import Store
from streamcl.learning.kinds import AnyModel, AnyRecipe
from streamcl.learning.open_task import OpenTask
from streamcl.schema import chosen
from streamcl.snapshot import LearnerState, OpenTaskState, under

Arrays = Mapping[str, npt.NDArray[Any]]


def outputs(labels: list[tuple[int, int]], classes: int | None) -> dict[int, int]:
    """The output of each label so far; raises ConfigError where there are fewer classes now (None: any number)."""
    if classes is not None and any(output >= classes for _, output in labels):
        raise ConfigError(
            f"model.classes: expected at least {len(labels)}, for the labels that have already come; got {classes}"
        )
    return dict(labels)


def widths(state: LearnerState, config: Config) -> growing.Widths:
    """Outputs that the network has had, where there may be any number of labels; of before that was so, as many as asked
    for now."""
    if state.signature is None or config.model.learner == "exact" or config.model.outputs is not None:
        return ()
    kept = tuple((lsn, outputs) for lsn, outputs in state.widths)
    return kept or ((state.needed, growing.width(_known(state), config.model.scenario)),)


def _known(state: LearnerState) -> int:
    return max((output for _, output in state.labels), default=-1) + 1


def take_over(model: AnyModel, state: LearnerState, tensors: Arrays, alike: bool) -> bool:
    """Take over parameters and posterior; False for those of another model, of which nothing was consolidated.

    alike: the configuration is that of the snapshot's model. Raises ConfigError.
    """
    network = model.network
    misfit = network.misfit(state.layout)
    if not model.posterior.tasks and not (alike and misfit is None and network.takes(tensors)):
        return False
    if misfit is not None:
        raise ConfigError(
            f"model: the configured model is not what the state directory was made with: that has {misfit}; use the "
            "configuration and the version of the factory that it was made with, or a new state_dir"
        )
    model.load(tensors)
    if state.steady is None:
        network.settle_on_zeros()
    else:
        network.steady = state.steady
    return True


def try_anew(model: AnyModel, recipe: AnyRecipe, store: Store, places: Iterable[tuple[int, int]]) -> None:
    """A corrected model is tried like a new one, on rows that are still there, from and to below; raises ModelRefused."""
    lsn = next((lsn for first, end in places for lsn, _ in store.batches(first, end)), None)
    if lsn is not None:
        x, y = chosen(*store.read(lsn))
        recipe.try_out(model.signature, x, y, tuple(recipe.labels.outputs), lambda: None)
        model.settle(x)


def open_task(
    state: OpenTaskState, end: int, model: AnyModel, store: Store, tensors: Arrays, wary: Mapping[int, Mapping[str, int]]
) -> OpenTask:
    """The open task as it was, of the batches up to below `end`; without tensors, for a corrected model.

    wary: how often each position has failed at each stage, for snapshots that do not say which batches did.
    """
    before = {name: array.copy() for name, array in under("before.", tensors).items()}
    penalty = model.posterior.cavity(None if state.damping is None else state.name)
    task = OpenTask(state.name, state.first_lsn, penalty, state.damping, before, tag=state.tag)
    task.stalled = state.stalled and bool(tensors)
    task.start = state.start if state.start is not None else model.past(before)
    suspects = {lsn for lsn, _ in state.suspects or ()}
    for lsn, rows in store.batches(task.first_lsn, end, verify=False):
        if lsn in suspects or (state.suspects is None and wary.get(lsn, {}).get("batch", 0)):
            task.suspects.append((lsn, rows))
        else:
            task.add(lsn, rows)
    return task
