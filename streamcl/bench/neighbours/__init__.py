"""``streamcl bench neighbours``: the defaults beside other methods of constant memory and without old data."""

from __future__ import annotations

from streamcl.bench.neighbours.bench import run

__all__ = ["run"]
