"""Waiting for what must come, without sleeping for luck."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

PATIENCE = 120.0  # of a machine that does much else


def until(condition: Callable[[], Any], seconds: float = PATIENCE) -> None:
    """Return as soon as the condition holds; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(0.02)
