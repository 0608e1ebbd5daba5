"""Which key speaks for which producer's name: the first that used it, for as long as the policy grants it the name.

STATE/owners holds one JSON line for each claim; of several for one name, the last counts. A claim is on disk before the
producer is welcomed, so no restart lets another key take its name. What a crash left half-written was never answered, and
is cut off.
"""

from __future__ import annotations

import json
from pathlib import Path

from streamcl.storage.disk import Disk

NAME = "owners"


class Owners:
    """Names and their keys; made by `recover`."""

    def __init__(self, fd: int, end: int, keys: dict[str, str], disk: Disk) -> None:
        self._fd, self._end, self._keys, self._disk = fd, end, keys, disk

    @classmethod
    def recover(cls, directory: Path, disk: Disk) -> Owners:
        """Read the file, or make it if it is missing."""
        path = directory / NAME
        if not path.exists():
            disk.close(disk.create(path))
        disk.sync_directory(directory)
        whole = path.read_bytes()
        end = whole.rfind(b"\n") + 1
        keys = dict(json.loads(line) for line in whole[:end].splitlines())
        fd = disk.open(path)
        disk.truncate(fd, end)
        return cls(fd, end, keys, disk)

    def of(self, producer: str) -> str | None:
        """The key that owns a name."""
        return self._keys.get(producer)

    def claim(self, producer: str, key: str) -> None:
        """Give a name to a key, durable on return; raises OSError, SyncFailed."""
        line = json.dumps([producer, key]).encode() + b"\n"
        end = self._disk.write(self._fd, [line], self._end)
        self._disk.sync_data(self._fd)
        self._end, self._keys[producer] = end, key
