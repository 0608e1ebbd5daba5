"""When the clock ends a stream's open task: after so long, or as often as a budget of boundaries' seconds allows.

Guarantees: decides nothing twice. Whoever asks stores the answer, a record of the log, which every replay obeys without a
look at a clock; what the answer follows from (when a task's first rows came, what boundaries took) is in the log and the
ledger too, so that a restart goes on where it was. A task has `least` rows before it ends so.

  * time: a task ends once its first rows are `seconds` old.
  * budget: a boundary that began at b and took s seconds is paid for at b + s * DAY / seconds; until then no other is due.
    So from any boundary that is set so, those of the day after it take `seconds` at most, and one boundary more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from streamcl.config import Stream
from streamcl.entries import Closing, Entry

DAY = 86_400.0

Kind = Literal["time", "budget"]


@dataclass(slots=True)
class Schedule:
    """What the clock says of the open task.

    seconds: of a task, or of boundaries a day. least: rows of a task. began: when its first rows were stored, in seconds
    since 1970; None where no task is open. rows: of it. paid: from when on the boundaries so far are paid for; last: what
    the newest of them took, in seconds.
    """

    kind: Kind
    seconds: float
    least: int
    began: float | None = None
    rows: int = 0
    paid: float = 0.0
    last: float = 0.0

    @classmethod
    def of(cls, stream: Stream) -> Callable[[], Schedule] | None:
        """What makes one, as configured; None where the clock ends no task."""
        match stream.boundary:
            case "time":
                return lambda: cls("time", stream.boundary_seconds, stream.least_rows)
            case "budget":
                return lambda: cls("budget", stream.budget_seconds, stream.least_rows)
        return None

    def add(self, rows: int, now: float) -> None:
        """Rows of the open task, stored at this time."""
        self.began = now if self.began is None else self.began
        self.rows += rows

    def end(self) -> None:
        """No task is open."""
        self.began, self.rows = None, 0

    def spend(self, entry: Entry) -> None:
        """What took effect; a boundary, whoever set it, is paid for out of the budget."""
        if isinstance(entry, Closing):
            self.last = entry.seconds
            self.paid = max(self.paid, entry.closed_at - entry.seconds) + entry.seconds * DAY / self.seconds

    def due(self, now: float, settled: bool) -> str | None:
        """Why the open task ends now; None where it does not. settled: what every earlier boundary took is known."""
        if self.began is None or self.rows < self.least:
            return None
        rows = f"with {self.rows} rows, at least the {self.least} of stream.least_rows"
        if self.kind == "time":
            since = now - self.began
            told = (
                f"the task's first rows came {since:.3g} s ago, at least the {self.seconds:g} s of stream.boundary_seconds"
            )
            return f"{told}, {rows}" if since >= self.seconds else None
        return f"{self._bill()}, {rows}" if settled and now >= self.paid else None

    def _bill(self) -> str:
        if not self.paid:
            return f"no boundary has been paid out of stream.budget_seconds yet, {self.seconds:g} s a day"
        when = datetime.fromtimestamp(self.paid, UTC).isoformat(timespec="seconds")
        since = f"stream.budget_seconds ({self.seconds:g} s a day) has paid since {when}"
        return f"the last boundary took {self.last:.3g} s, for which {since}"
