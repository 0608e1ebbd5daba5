"""What continual learning is measured by, from the accuracy on each task after each: the figures as the field defines them.

R[i, j] is the accuracy on task j's evaluation set once tasks 1 to i have been learned; b[j] that of a network with nothing
learned. Of T tasks, with the newest accuracies for R[T, .] (after revisits, they are newer):

    average accuracy      mean over j of R[T, j]                                   (Lopez-Paz & Ranzato 2017, ACC)
    anytime accuracy      mean over i of the mean over j <= i of R[i, j]           (Rebuffi 2017, average incremental)
    forgetting            mean over j < T of max over i < T of R[i, j] - R[T, j]   (Chaudhry et al. 2018, eq. 3)
    backward transfer     mean over j < T of R[T, j] - R[j, j]                     (Lopez-Paz & Ranzato 2017, BWT)
    forward transfer      mean over j > 1 of R[j - 1, j] - b[j]                    (Lopez-Paz & Ranzato 2017, FWT)
    calibration error     mean over j, weighed by rows, of each set's              (Guo et al. 2017, eq. 3; 15 bins)

Guarantees: what was not measured is left out, and said; a figure of nothing is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Row = Mapping[str, Any]
NOTHING_LEARNED = 0  # the mark of figures of a network with nothing learned


@dataclass(frozen=True, slots=True)
class Matrix:
    """learned: tasks in order, each with the mark behind its boundary. at: accuracy by mark and task, also of sets whose
    task has not come. now: the newest of each task. begun: of a network with nothing learned. calibration: newest error and
    rows of each task."""

    learned: Sequence[tuple[str, int]]
    at: Mapping[tuple[int, str], float]
    now: Mapping[str, float]
    begun: Mapping[str, float] = field(default_factory=dict)
    calibration: Mapping[str, tuple[float, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, learned: Sequence[tuple[str, int]], accuracies: Iterable[Row], beside: Iterable[Row]) -> Matrix:
        """Of rows of a history, in order: lsn, task, accuracy and, beside, calibration and rows."""
        known, more = list(accuracies), list(beside)
        names = {task for task, _ in learned}
        at = {(row["lsn"], row["task"]): row["accuracy"] for row in [*more, *known] if row["lsn"] != NOTHING_LEARNED}
        scored = [row for row in more if row["calibration"] is not None and row["task"] in names]
        return cls(
            learned,
            at,
            {row["task"]: row["accuracy"] for row in known if row["task"] in names},
            {row["task"]: row["accuracy"] for row in more if row["lsn"] == NOTHING_LEARNED},
            {row["task"]: (row["calibration"], row["rows"]) for row in scored},
        )

    @property
    def tasks(self) -> list[str]:
        """The tasks, in the order in which they were learned."""
        return [task for task, _ in self.learned]

    def rows(self) -> list[list[float | None]]:
        """R, a row for each task learned; None where that was not measured."""
        return [[self.at.get((mark, task)) for task in self.tasks] for _, mark in self.learned]

    def figures(self) -> dict[str, float | None]:
        """Each figure by its name."""
        return {
            "average_accuracy": _mean(self.now.values()),
            "anytime_accuracy": self._anytime(),
            "forgetting": self._forgetting(),
            "backward_transfer": self._backward(),
            "forward_transfer": self._forward(),
            "calibration_error": self._calibration(),
        }

    def missing(self) -> list[str]:
        """What was not measured, in words."""
        found = []
        without = [task for task in self.tasks if task not in self.now]
        if without:
            found.append(f"no accuracy of {_named(without)}: no evaluation set, or not scored yet")
        passed = [task for task, mark in self.learned if not any((mark, other) in self.at for other in self.tasks)]
        if passed:
            found.append(
                f"nothing was scored behind the boundary of {_named(passed)}: the next one came before there was time"
            )
        if len(self.learned) > 1 and self._forward() is None:
            found.append("no forward transfer: no task's set was there, and scored, before its rows came")
        return found

    def _anytime(self) -> float | None:
        means = [_mean(v for v in row[: number + 1] if v is not None) for number, row in enumerate(self.rows())]
        return _mean(mean for mean in means if mean is not None)

    def _earlier(self) -> list[tuple[str, int]]:
        """Tasks other than the last, of which there are newest accuracies."""
        return [(task, mark) for task, mark in self.learned[:-1] if task in self.now]

    def _forgetting(self) -> float | None:
        lost = []
        for task, own in self._earlier():
            marks = sorted(mark for mark, name in self.at if name == task and mark >= own)
            before = [self.at[mark, task] for mark in marks[:-1]]
            lost += [max(before) - self.now[task]] if before else []
        return _mean(lost)

    def _backward(self) -> float | None:
        return _mean(self.now[task] - self.at[own, task] for task, own in self._earlier() if (own, task) in self.at)

    def _forward(self) -> float | None:
        pairs = zip(self.learned, self.tasks[1:], strict=False)
        return _mean(
            self.at[mark, after] - self.begun[after]
            for (_, mark), after in pairs
            if (mark, after) in self.at and after in self.begun
        )

    def _calibration(self) -> float | None:
        rows = sum(rows for _, rows in self.calibration.values())
        return sum(error * rows for error, rows in self.calibration.values()) / rows if rows else None


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None


def _named(tasks: Sequence[str]) -> str:
    return ", ".join(tasks[:3]) + (f" and {len(tasks) - 3} more" if len(tasks) > 3 else "")
