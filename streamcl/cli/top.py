"""``streamcl top``: the daemon at a glance, live; reads and changes nothing."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import PIPE_COLUMNS, add_connection, add_json, asked, clean, command, keys
from streamcl.cli.progress import can_redraw
from streamcl.cli.watch import Poller, Seen, Watch
from streamcl.errors import Unreachable

if TYPE_CHECKING:
    from rich.console import Console

    from streamcl.client import Admin

ANSWER_SECONDS = 3.0
QUIT = "qQ\x03\x04"
KEYS = "q quits"


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "top",
        top,
        "Watch the daemon: what it is doing and for how much longer, loss and accuracy, what comes in and from whom, what "
        "each task has lost, recent events. Changes nothing; q quits. "
        "If the output is not a terminal, it is printed once.",
        "streamcl top --interval 2",
    )
    parser.add_argument("--interval", type=float, default=1.0, metavar="SECONDS", help="between two looks (default 1)")
    parser.add_argument("--once", action="store_true", help="print once and end")
    add_connection(parser, "admin")
    add_json(parser)
    parser.epilog = f"{parser.epilog}; with --json, each look is one line"


def top(options: argparse.Namespace) -> int:
    """Watch, or look once."""
    if not options.interval >= 0.05:
        print("streamcl: --interval: expected at least 0.05 seconds", file=sys.stderr)
        return 2
    watch = Watch(lambda: _connect(options), None if options.admin else Path(options.state_dir) / "history.sqlite")
    seen = watch.look()
    if seen.missing is not None:
        raise Unreachable(seen.missing)
    if options.json:
        _print_documents(watch, options)
    elif options.once or not can_redraw(sys.stdout):
        _print_once(seen, options)
    else:
        _live(watch, options)
    return 0


def _connect(options: argparse.Namespace) -> Admin:
    from streamcl.client import Admin

    return Admin(asked(options, "admin"), timeout=ANSWER_SECONDS, keys=keys(options))


def _where(options: argparse.Namespace) -> str:
    return str(options.admin or options.state_dir)


def _print_documents(watch: Watch, options: argparse.Namespace) -> None:
    while True:
        print(json.dumps(clean(watch.seen.document())), flush=True)
        if options.once:
            return
        time.sleep(options.interval)
        watch.look()


def _print_once(seen: Seen, options: argparse.Namespace) -> None:
    from rich.console import Console

    from streamcl.cli.screen import draw

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console = Console(width=PIPE_COLUMNS // 2)
    console.print(draw(seen, console.width, where=_where(options)))


# -- live --------------------------------------------------------------------------------------------------------------


def _live(watch: Watch, options: argparse.Namespace) -> None:
    """Draw again after every look, every change of the window's size, and until a key ends it."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    with _woken() as (wake, tell), _keys() as keyboard:
        poller = Poller(watch, options.interval, tell)
        with Live(console=console, screen=True, auto_refresh=False) as live:
            poller.start()
            try:
                while poller.failure is None:
                    live.update(_screen(watch.seen, console, options), refresh=True)
                    if _wait([wake, *keyboard], keyboard):
                        return
            finally:
                poller.end()
    raise poller.failure


def _screen(seen: Seen, console: Console, options: argparse.Namespace) -> Any:
    from streamcl.cli.screen import draw

    width, height = console.size
    keys = f"{KEYS}; every {options.interval:g} s"
    return draw(seen, width, height, _where(options), keys)


def _wait(sources: list[int], keyboard: list[int]) -> bool:
    """Wait until there is something to draw; returns whether a key that quits was pressed, or the keyboard is gone."""
    for source in select.select(sources, [], [])[0]:
        pressed = os.read(source, 1024)
        if source in keyboard and (not pressed or any(key in QUIT for key in pressed.decode(errors="replace"))):
            return True
    return False


@contextmanager
def _woken() -> Iterator[tuple[int, Any]]:
    """A descriptor that becomes readable when the window changes its size or the function beside it is called."""
    read, write = os.pipe()
    os.set_blocking(write, False)

    def tell(*_: object) -> None:
        with contextlib.suppress(BlockingIOError, OSError):
            os.write(write, b".")

    # the signal itself writes, not its handler: that runs between two bytecodes only, never once a select() has begun
    woken = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGWINCH, lambda *_: None)
    try:
        yield read, tell
    finally:
        signal.signal(signal.SIGWINCH, before)
        signal.set_wakeup_fd(woken)
        os.close(read)
        os.close(write)


@contextmanager
def _keys() -> Iterator[list[int]]:
    """Standard input, key by key, as descriptors to wait for; none if it is not a terminal. Restored afterwards."""
    import termios
    import tty

    if not sys.stdin.isatty():
        yield []
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield [descriptor]
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
