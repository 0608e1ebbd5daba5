"""The process state in which figures are taken, restored afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import torch


@contextmanager
def as_in_the_trainer() -> Iterator[None]:
    """Denormal numbers flushed, as in the trainer process, and only errors logged."""
    before = structlog.get_config()
    torch.set_flush_denormal(True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        structlog.configure(**before)
