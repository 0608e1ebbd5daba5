"""What a daemon does, shown in a notebook: a line below the cell, for as long as its block runs.

On a terminal the line is the last of standard error; elsewhere nothing is shown.
"""

from __future__ import annotations

import html
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

from streamcl.errors import StreamclError

LOOK_SECONDS = 0.5
NOTEBOOK_SHELLS = ("ZMQInteractiveShell", "Shell")  # Jupyter's and Colab's

Show = Callable[[str, float | None], None]


class Asked(Protocol):
    """An `Admin`, as far as it is needed."""

    def status(self) -> dict[str, Any]:
        """What the daemon is doing."""


@contextmanager
def watching(admin: Asked, seconds: float = LOOK_SECONDS) -> Iterator[None]:
    """Show what a daemon does while the block runs, and what it came to at its end.

    admin: asked every so many seconds, by a thread of its own; the block must not use it meanwhile. A daemon that does not
    answer is said so, and asked again.
    """
    show, done = _display(), threading.Event()
    watcher = threading.Thread(target=_watch, args=[admin, show, done, seconds], daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _watch(admin: Asked, show: Show, done: threading.Event, seconds: float) -> None:
    while True:
        last = done.is_set()
        try:
            status = admin.status()
            show(line(status), share(status))
        except StreamclError as error:
            show(f"no answer: {error}", None)
        if last:
            return
        done.wait(seconds)


def line(status: Mapping[str, Any]) -> str:
    """One line of a daemon's status.

    >>> line({"state": "training", "task": "monday", "samples_seen": 1200, "lag_batches": 3})
    'training, task monday: 1,200 rows learned, 3 batches not yet in a checkpoint'
    """
    now = status.get("consolidation")
    state = status["state"] if status.get("task") is None else f"{status['state']}, task {status['task']}"
    parts = [f"{status.get('samples_seen', 0):,} rows learned"]
    if now:
        left = now.get("seconds_left")
        parts = [f"{now['phase']} {now['fraction']:.0%}" + ("" if left is None else f", {left:.0f} s left")]
    elif waiting := status.get("lag_batches"):
        parts.append(f"{waiting:,} batches not yet in a checkpoint")
    if status.get("problem"):
        parts.append(str(status["problem"]))
    return f"{state}: {', '.join(parts)}"


def share(status: Mapping[str, Any]) -> float | None:
    """How far a consolidation has come, from 0 to 1; None where there is none."""
    now = status.get("consolidation")
    return None if not now else float(now["fraction"])


def _display() -> Show:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if type(shell).__name__ in NOTEBOOK_SHELLS:
        return _below_the_cell()
    return _on_a_terminal if sys.stderr.isatty() else _nowhere


def _below_the_cell() -> Show:
    from IPython import display

    handle = display.display(display.HTML(""), display_id=True)

    def show(words: str, done: float | None) -> None:
        bar = "" if done is None else f'<progress value="{done:.3f}" max="1"></progress> '
        handle.update(display.HTML(f"<div>{bar}{html.escape(words)}</div>"))

    return show


def _on_a_terminal(words: str, done: float | None) -> None:
    print(f"\r\033[K{words}", end="", file=sys.stderr, flush=True)


def _nowhere(words: str, done: float | None) -> None:
    pass
