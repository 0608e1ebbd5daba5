"""The audit log: who asked for what, for which task, when, and with what result. JSON lines, only ever appended to.

Guarantees: 0600; bounded, since a full file is set aside and the oldest one removed; a flood of the same refusal takes
few lines, which say how many they stand for. Holds names, codes and keys, never a value from anybody's data. Nothing waits
for it, and an entry that cannot be written is lost: auditing never stops the service.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE_BYTES = 8 << 20
FILES = 4
REFUSALS_A_SECOND = 20
NEVER_LEFT_OUT = ("ok", "failed")  # what was done, and an operator's own errors: only refusals come in floods


class Audit:
    """Appends entries; without a path it drops them."""

    def __init__(self, path: Path | None = None, file_bytes: int = FILE_BYTES) -> None:
        self.path = path
        self.file_bytes = file_bytes
        self._second = self._written = self._left_out = 0

    def write(self, action: str, result: str = "ok", **fields: Any) -> None:
        """Append one entry; fields that are None are left out."""
        if self.path is None or (result not in NEVER_LEFT_OUT and self._is_flooded()):
            return
        if self._left_out:
            fields, self._left_out = {**fields, "refusals_left_out": self._left_out}, 0
        entry = {"time": _now(), "action": action, "result": result, **fields}
        line = json.dumps({key: value for key, value in entry.items() if value is not None}) + "\n"
        with contextlib.suppress(OSError):
            self._append(line.encode())

    def _is_flooded(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._written = second, 0
        self._written += 1
        self._left_out += self._written > REFUSALS_A_SECOND
        return self._written > REFUSALS_A_SECOND

    def _append(self, line: bytes) -> None:
        assert self.path is not None
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            os.write(fd, line)
            full = os.fstat(fd).st_size >= self.file_bytes
        finally:
            os.close(fd)
        if full:
            for old, new in reversed(list(zip(_names(self.path), _names(self.path)[1:], strict=False))):
                with contextlib.suppress(FileNotFoundError):
                    old.replace(new)


def _names(path: Path) -> list[Path]:
    """The file written to, then the ones set aside, the newest first."""
    return [path, *(path.with_name(f"{path.name}.{number}") for number in range(1, FILES))]


def _now() -> str:
    seconds = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{int(seconds * 1000) % 1000:03d}Z"


def read(path: Path) -> Iterator[dict[str, Any]]:
    """Every entry that is still there, the oldest first."""
    for name in reversed(_names(path)):
        with contextlib.suppress(FileNotFoundError):
            for line in name.read_text(errors="replace").splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # the last line before a crash
                    yield json.loads(line)
