"""The state of the process that figures are taken in, put back afterwards."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
import torch


@contextmanager
def as_in_the_trainer() -> Iterator[None]:
    """Denormal numbers flushed, as the trainer process has them, and no log but errors."""
    before = structlog.get_config()
    torch.set_flush_denormal(True)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
        structlog.configure(**before)
