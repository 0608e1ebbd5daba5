"""What a question about one task's rows may be answered with (`model.scenario` task).

The scenarios are van de Ven & Tolias' (2019): tasks that bring classes of their own, which are all told apart (class);
tasks of the same classes on other rows (domain); and tasks that whoever asks can name (task), so that an answer is one of
that task's labels and a model whose forward pass takes ``task`` is told its number.
"""

from __future__ import annotations

from collections.abc import Mapping

from streamcl.config import Config
from streamcl.errors import Refused

SHOWN = 10  # tasks that a refusal names


def asked(config: Config, told: bool, task: str | None, sights: Mapping[str, list[int]]) -> tuple[int, list[int] | None]:
    """The number of the task that rows are said to be of, and the outputs of its labels; None: of any.

    told: the model is told its task, and cannot do without. sights: the outputs of every task, in the order in which they
    came. Raises Refused ``bad_header``, ``unknown_task``.
    """
    if config.model.scenario != "task":
        if task is not None:
            raise Refused(
                "bad_header",
                f"predict.task: expected model.scenario = 'task', in which rows are of a task that is named; it is "
                f"{config.model.scenario!r}: leave the task out",
            )
        return 0, None
    if task is None:
        if told:
            raise Refused("bad_header", f"predict.task: expected the task that the rows are of, one of {_named(sights)}")
        return 0, None
    if task not in sights:
        raise Refused("unknown_task", f"predict.task: expected a task that has come, one of {_named(sights)}, got {task!r}")
    return sight(task, sights)


def sight(task: str, sights: Mapping[str, list[int]]) -> tuple[int, list[int] | None]:
    """The number of a task, in the order in which they came, and the outputs of its labels; None where it has none."""
    return list(sights).index(task), sights[task] or None


def _named(sights: Mapping[str, list[int]]) -> str:
    names = list(sights)
    return ", ".join(map(repr, names[:SHOWN])) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
