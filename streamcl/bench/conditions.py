"""The process state in which figures are taken."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import torch

from streamcl.daemon.memory import Memory


@contextmanager
def as_in_the_trainer() -> Iterator[None]:
    """Denormal numbers flushed and freed memory kept, as in the trainer process, and only errors logged.

    Restored afterwards, but for the memory: the C library does not say how it was.
    """
    before = structlog.get_config()
    torch.set_flush_denormal(True)
    Memory().keep()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        structlog.configure(**before)
