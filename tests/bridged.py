"""What the tests of every bridge need: records, and those that a source gives."""

from __future__ import annotations

import json
from typing import Any

from waiting import until

from streamcl.bridges.records import Record


def row(number: int, **more: Any) -> bytes:
    """A record's value."""
    return json.dumps({"i": number, "w": "ab"[number % 2], "label": number % 3, **more}).encode()


def fetched(source: Any, count: int) -> list[Record]:
    """So many records of a source, or a few more."""
    found: list[Record] = []

    def enough() -> bool:
        found.extend(each for each in source.poll(100, 0.1) if isinstance(each, Record))
        return len(found) >= count

    until(enough)
    return found
