"""Commands in a terminal of their own, as a person would run them."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from types import TracebackType
from typing import Any, Self

PATIENCE = 120.0
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b\][^\x07]*\x07|\x1b[()][A-Z0-9]|\x1b[=>78]")


class Still:
    """Whether nothing new has been written for too long: no letter or number, whatever turns meanwhile."""

    def __init__(self, patience: float) -> None:
        self._patience, self._last = patience, ""
        self._deadline = time.monotonic() + patience

    def too_long(self, text: str) -> bool:
        """Given all that was written so far."""
        last = re.sub(r"[^\w:.]+", " ", text[-400:])
        if last != self._last:
            self._last, self._deadline = last, time.monotonic() + self._patience
        return time.monotonic() > self._deadline


class Terminal:
    """``streamcl ARGUMENTS`` with standard input, output and error on a pseudo-terminal."""

    def __init__(self, *arguments: Any, rows: int = 24, columns: int = 80, **environment: str) -> None:
        self.master, side = pty.openpty()
        self.written = ""
        self.resize(rows, columns)
        known = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "streamcl", *map(str, arguments)],
            stdin=side,
            stdout=side,
            stderr=side,
            env={**known, "TERM": "xterm-256color", **environment},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that ^C and a new size reach it as signals
        )
        os.close(side)

    def resize(self, rows: int, columns: int) -> None:
        """Another size of the window."""
        fcntl.ioctl(self.master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def press(self, keys: str) -> None:
        """Type."""
        os.write(self.master, keys.encode())

    def read(self, seconds: float = 0.1) -> str:
        """What has been written in the meantime, escapes and all; empty if nothing came, or the command has ended."""
        if not select.select([self.master], [], [], seconds)[0]:
            return ""
        try:
            text = os.read(self.master, 1 << 16).decode(errors="replace")
        except OSError:
            return ""
        self.written += text
        return text

    @property
    def text(self) -> str:
        """Everything written so far, without escapes."""
        return ESCAPES.sub("", self.written)

    def wait_for(self, *texts: str, patience: float = PATIENCE) -> None:
        """Read on until all of these have been written since the last call."""
        start, still = len(self.written), Still(patience)
        while missing := [text for text in texts if text not in ESCAPES.sub("", self.written[start:])]:
            if still.too_long(self.text):
                raise AssertionError(f"{missing} did not come; this did:\n{ESCAPES.sub('', self.written[start:])[-4000:]}")
            self.read()

    def end(self, patience: float = PATIENCE) -> int:
        """Read until the command has ended; returns its exit status."""
        still = Still(patience)
        while self.process.poll() is None:
            assert not still.too_long(self.text), f"it does not end; it wrote:\n{self.text[-4000:]}"
            self.read()
        while self.read():
            pass
        return self.process.returncode

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
