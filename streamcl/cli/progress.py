"""What a command shows while it works: on a terminal bars on standard error, elsewhere nothing but its result.

A display is a context manager with `counting`, `waiting` and `note`; those that show nothing are `Silent`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, TextIO

from streamcl.cli.common import admin

if TYPE_CHECKING:
    from streamcl.cli.bars import Bars
    from streamcl.client import Admin


def can_redraw(stream: TextIO) -> bool:
    """Whether a stream is a terminal on which a line can be drawn again."""
    return stream.isatty() and os.environ.get("TERM", "dumb") not in ("dumb", "unknown")


def display(options: argparse.Namespace) -> Bars | Silent:
    """The display that suits this terminal; silent beside JSON."""
    if options.json or not can_redraw(sys.stderr):
        return Silent()
    from streamcl.cli.bars import Bars

    return Bars()


def connector(options: argparse.Namespace) -> Callable[[], Admin] | None:
    """How to reach the same daemon's admin socket for its progress; None if it might be another daemon's."""
    elsewhere = getattr(options, "stream", None) and not options.admin
    return None if elsewhere else lambda: admin(options)


@contextmanager
def waited_for(show: Bars | Silent, options: argparse.Namespace, task: str) -> Iterator[None]:
    """While a task is being consolidated: shows its progress; if interrupted, says that the daemon goes on."""
    goes_on = (
        f"the daemon continues with the consolidation of {task}, if it has been asked for it: `streamcl top` shows its "
        "progress, `streamcl tasks` what came of it"
    )
    with interruptible(lambda: goes_on), show.waiting(task, connector(options)):
        yield


@contextmanager
def interruptible(said: Callable[[], str]) -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, with status 143 or 130; what is `said` by then goes to standard error."""
    number = signal.SIGINT

    def end(received: int, _: object) -> None:
        nonlocal number
        number = signal.Signals(received)
        raise KeyboardInterrupt

    in_main = threading.current_thread() is threading.main_thread()
    before = signal.signal(signal.SIGTERM, end) if in_main else None
    try:
        yield
    except KeyboardInterrupt:
        print(f"streamcl: interrupted: {said()}", file=sys.stderr, flush=True)
        raise SystemExit(128 + number) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, before)


class Silent:
    """Shows nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def counting(self, text: str, total: int | None, unit: str = "rows") -> nullcontext[Callable[[int], None]]:
        """Takes counts."""
        return nullcontext(lambda count: None)

    def waiting(self, task: str, connect: Callable[[], Admin] | None) -> nullcontext[None]:
        """Asks nobody."""
        return nullcontext()

    def note(self, text: str) -> None:
        """Says nothing."""
