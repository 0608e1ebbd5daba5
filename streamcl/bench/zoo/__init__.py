"""``streamcl bench zoo``: whatever people write is learned right or refused in words; there is no third outcome."""

from __future__ import annotations

from streamcl.bench.zoo.bench import run

__all__ = ["run"]
