"""Lines of progress at the bottom of a terminal: rows sent with their rate, a consolidation with its phase, the time left.

Decides nothing; what is not known is not shown.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

from streamcl.cli import readable
from streamcl.errors import StreamclError

if TYPE_CHECKING:
    from streamcl.client import Admin

LOOK_SECONDS = 0.2


class _Done(ProgressColumn):
    """How much is done and at what rate, or what was said."""

    def render(self, task: Task) -> Text:
        """Such as 1,200/5,000 rows  340 rows/s."""
        if "words" in task.fields:
            return Text(task.fields["words"])
        unit = task.fields["unit"]
        whole = "" if task.total is None else f"/{task.total:,.0f}"
        rate = f"  {task.speed:,.0f} {unit}/s" if task.speed and task.speed >= 1 else ""
        return Text(f"{task.completed:,.0f}{whole} {unit}{rate}")


class _Left(ProgressColumn):
    """The time left, where it is known; else the time passed."""

    def render(self, task: Task) -> Text:
        """Such as 0:12 left."""
        left = task.fields.get("left", task.time_remaining)
        if left is None:
            return Text(readable.duration(task.elapsed or 0.0), style="progress.elapsed")
        return Text(f"{readable.duration(left)} left", style="progress.remaining")


class _Speed:
    """How fast the daemon learns what comes before the boundary, as text; empty until it is known."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def __call__(self, status: dict[str, Any]) -> str:
        now, seen = time.monotonic(), int(status.get("samples_seen") or 0)
        if self._first is None:
            self._first = now, seen
        since, before = self._first
        if now - since < LOOK_SECONDS or seen == before:
            return ""
        return f"  {seen - before:,} samples learned, {(seen - before) / (now - since):,.0f}/s"


class Bars:
    """The lines; as a context manager, which leaves the terminal as it was."""

    def __init__(self) -> None:
        columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), _Done(), _Left())
        self._bars = Progress(*columns, console=Console(stderr=True), transient=True)

    def __enter__(self) -> Bars:
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    @contextmanager
    def counting(self, text: str, total: int | None, unit: str = "rows") -> Iterator[Callable[[int], None]]:
        """A line that counts up, to a total if there is one; yields the function to call with each count."""
        with self._line(text, total, unit=unit) as line:
            yield lambda count: self._bars.advance(line, count)

    @contextmanager
    def waiting(self, task: str, connect: Callable[[], Admin] | None) -> Iterator[None]:
        """A line that follows a task's consolidation by asking the daemon over a connection of its own, if given."""
        ended = threading.Event()
        with self._line(task, None, words="consolidating", left=None) as line:
            asking = threading.Thread(target=self._follow, args=(line, task, connect, ended), daemon=True)
            asking.start()
            try:
                yield
            finally:
                ended.set()
                asking.join(1.0)

    def note(self, text: str) -> None:
        """A line above the others that stays."""
        self._bars.console.print(text, markup=False, highlight=False)

    @contextmanager
    def _line(self, text: str, total: float | None, **fields: Any) -> Iterator[TaskID]:
        line = self._bars.add_task(escape(text), total=total, **fields)
        try:
            yield line
        finally:
            self._bars.remove_task(line)

    def _follow(self, line: TaskID, task: str, connect: Callable[[], Admin] | None, ended: threading.Event) -> None:
        """In a thread of its own: ask and show, until the wait has ended or nobody answers."""
        if connect is None:
            return
        speed = _Speed()
        try:
            with connect() as daemon:
                while not ended.wait(LOOK_SECONDS):
                    self._show(line, task, daemon.status(), speed)
        except (StreamclError, KeyError):  # no such daemon, no right to ask, or the connection is gone
            return

    def _show(self, line: TaskID, task: str, status: dict[str, Any], speed: _Speed) -> None:
        now = status.get("consolidation") or {}
        if now.get("task") == task:
            done, left = now.get("fraction") or 0.0, now.get("seconds_left") or None
            self._bars.update(line, total=1.0, completed=done, left=left, words=readable.consolidation(now))
            return
        self._bars.update(line, total=None, left=None, words=f"{status.get('state')}{speed(status)}")
