"""What the trainer does in quiet moments: following what the tasks' penalties come to, and scoring evaluation sets.

Guarantees: a step of either is short, and data never waits for more than one. Both say what they find to `say`, in words of
bounded size; they learn nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import structlog

from streamcl.config import Config
from streamcl.daemon import words
from streamcl.daemon.evaluator import Evaluated, Evaluator
from streamcl.learning import scenario
from streamcl.learning.learner import Learner
from streamcl.schema import Signature

FOLLOWED_AT_ONCE = 16  # tasks, at a boundary; more of them for
FOLLOW_SHARE = 0.02  # this share of the time that it took; the rest when there is nothing to learn, as of an open task
TOGETHER = 500  # tasks in one word to ingest
NOTHING_LEARNED = 0  # where the record would be behind which figures of a network with nothing learned stand
EVALUATE_SHARE = 0.05  # at most this share of the time goes into evaluation sets while there is something to learn
_END = object()

Say = Callable[[words.Word], None]


class Following:
    """What every task's penalty has come to at the parameters behind a boundary.

    A boundary must not wait for a walk over all the factors, however many tasks there are.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self._rest: Iterator[tuple[str, float, float]] = iter(())
        self._followed: dict[str, int] = {}  # when each task was last looked at
        self._lsn, self._time = 0, 0.0
        self._looked, self._look_again = -1, 0.0
        self._found: list[tuple[str, float, float]] = []

    @property
    def under_way(self) -> bool:
        """Whether there is something that has not been said."""
        return bool(self._found)

    def begin(self, learner: Learner, seconds: float = 0.0) -> None:
        """Anew, at the parameters as they are; some tasks, and for so long, now, the rest by and by."""
        model = learner.model
        if model is None or learner.open_task is not None:
            return
        self._tell(learner)
        self._rest = model.follow(self._followed)
        self._lsn, self._time = learner.next_lsn, time.time()
        self.go_on(learner, seconds, FOLLOWED_AT_ONCE)

    def go_on(self, learner: Learner, seconds: float, least: int = 1) -> None:
        """At least so many tasks more, and no longer than that once they are done."""
        deadline = time.monotonic() + seconds
        for number, row in enumerate(self._rest, start=1):
            self._followed[row[0]] = self._lsn
            self._found.append(row)
            if number >= least and time.monotonic() > deadline:
                return
        self._tell(learner)

    def look(self, learner: Learner) -> None:
        """What the open task has cost the others so far, once behind a record; a revisit is not served yet."""
        model, task, began = learner.model, learner.open_task, time.monotonic()
        if model is None or task is None or task.revisited is not None or learner.next_lsn == self._looked:
            return
        if began < self._look_again:
            return
        self._looked = learner.next_lsn
        if learner.standing.tasks:
            self._say(words.Moved(lsn=learner.next_lsn, task=task.name, nats=model.moved(task)))
            ended = time.monotonic()
            self._look_again = ended + (ended - began) / FOLLOW_SHARE

    def _tell(self, learner: Learner) -> None:
        """Say what has been found; some tasks may be withdrawn by now."""
        rows, self._found = [row for row in self._found if row[0] in learner.standing.tasks], []
        for start in range(0, len(rows), TOGETHER):
            self._say(words.Penalties(lsn=self._lsn, time=self._time, rows=rows[start : start + TOGETHER]))


class Evaluating:
    """Accuracies on the tasks' evaluation sets, with the parameters from directly after a boundary."""

    def __init__(self, config: Config, learner: Learner, say: Say) -> None:
        self._say = say
        found = Evaluator(config, learner.recipe.device, self._complain) if config.evaluation.directory else None
        self._evaluator = found
        self._next: tuple[int, float, Mapping[str, Any], int] | None = None  # LSN, time, parameters and outputs
        self._steps: Iterator[None] | None = None
        self._learner = learner  # the newest there is: some tasks may be withdrawn before a result can be said
        self._began = self._spent = 0.0

    @property
    def under_way(self) -> bool:
        """Whether a set is being scored."""
        return self._steps is not None

    def soon(self, learner: Learner) -> None:
        """Keep the parameters of this boundary, to be evaluated in quiet moments after those that are being evaluated."""
        if self._evaluator is None or learner.model is None or learner.open_task is not None:
            return
        state = {name: np.array(array) for name, array in learner.served().items()}
        self._next = (learner.next_lsn, time.time(), state, learner.model.network.outputs)

    def in_between(self, learner: Learner) -> None:
        """A block, if there was little of that lately: data must not wait for evaluations."""
        if self._steps is None or self._spent < EVALUATE_SHARE * (time.monotonic() - self._began):
            self.go_on(learner, 0.0)

    def go_on(self, learner: Learner, seconds: float) -> None:
        """A block at least, and no longer than that after it."""
        started, self._learner = time.monotonic(), learner
        if self._steps is None and self._next is not None:
            self._steps = self._evaluation(learner, *self._next)
            self._next = None
            self._began, self._spent = started, 0.0
        while self._steps is not None:
            if next(self._steps, _END) is _END:
                self._steps = None
            if time.monotonic() - started >= seconds:
                break
        self._spent += time.monotonic() - started

    def _evaluation(
        self, learner: Learner, lsn: int, when: float, state: Mapping[str, Any], outputs: int
    ) -> Iterator[None]:
        assert self._evaluator is not None
        assert learner.model is not None
        results: list[Evaluated] = []
        tasks, signature, sights = list(learner.standing.tasks), learner.model.signature, dict(learner.sights)

        def sight(task: str) -> tuple[int, list[int] | None]:
            return scenario.sight(task, sights) if task in sights else (0, None)

        ahead = self._evaluator.ahead({*tasks, *learner.standing.forgotten, *learner.standing.held})
        if len(tasks) == 1:
            fresh = learner.recipe.network(signature)
            yield from self._beside([*tasks, *ahead], NOTHING_LEARNED, when, signature, fresh.state(), fresh.outputs)
        inputs = learner.inputs
        for result in self._evaluator.evaluate(tasks, signature, learner.labels, state, outputs, inputs, sight):
            if result is not None:
                results.append(result)
            yield None
        known = self._learner.standing.tasks
        rows = [(each.task, each.accuracy, each.rows, each.constant) for each in results if each.task in known]
        beside: list[tuple[str, float, float | None, int]]
        beside = [(each.task, each.accuracy, each.calibration, each.rows) for each in results if each.task in known]
        for start in range(0, len(rows), TOGETHER):
            part = slice(start, start + TOGETHER)
            self._say(words.Accuracies(lsn=lsn, time=when, rows=rows[part], beside=beside[part]))
        yield from self._beside(ahead, lsn, when, signature, state, outputs)

    def _beside(
        self, tasks: Sequence[str], lsn: int, when: float, signature: Signature, state: Mapping[str, Any], outputs: int
    ) -> Iterator[None]:
        """Sets of tasks that these parameters know nothing of."""
        assert self._evaluator is not None
        found: list[tuple[str, float, float | None, int]] = []
        learner = self._learner
        for result in self._evaluator.evaluate(tasks, signature, learner.labels, state, outputs, learner.inputs):
            if result is not None:
                found.append((result.task, result.accuracy, None, result.rows))
            yield None
        gone = learner.standing.forgotten
        for start in range(0, len(found), TOGETHER):
            rows = [row for row in found[start : start + TOGETHER] if row[0] not in gone]
            self._say(words.Accuracies(lsn=lsn, time=when, rows=[], beside=rows))

    def _complain(self, task: str, text: str) -> None:
        structlog.get_logger().warning("evaluation", task=task or None, reason=text)
        self._say(words.Noted(text=text, task=task or None))
