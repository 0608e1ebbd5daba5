"""The daemon's own log: one event a line on standard error, readable on a terminal, JSON otherwise.

Never a value of anybody's data: shapes, names, counts and codes only.
"""

from __future__ import annotations

import logging
import sys

import structlog


def configure(role: str) -> None:
    """Set up structured logging for one process; every event carries its `role`."""
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
