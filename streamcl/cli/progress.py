"""What a command shows while it works: on a terminal bars on standard error, elsewhere nothing but its result.

A display is a context manager with `counting`, `waiting` and `note`; those that show nothing are `Silent`.
"""

from __future__ import annotations

import argparse
import os
import sys
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
    try:
        with show.waiting(task, connector(options)):
            yield
    except KeyboardInterrupt:
        show.note(f"the daemon continues with the consolidation of {task}; `streamcl top` shows its progress")
        raise


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
