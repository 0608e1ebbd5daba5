"""``streamcl bench streams``: the defaults beside what else one would do with a stream: accuracy, seconds, what is kept."""

from __future__ import annotations

from streamcl.bench.streams.bench import run

__all__ = ["run"]
