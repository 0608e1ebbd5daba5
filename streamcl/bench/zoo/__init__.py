"""``streamcl bench zoo``: whatever people write is learned correctly or refused with a reason, nothing else."""

from __future__ import annotations

from streamcl.bench.zoo.bench import run

__all__ = ["run"]
