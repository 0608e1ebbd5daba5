"""The daemon's own log: one event a line on standard error, readable on a terminal, JSON otherwise.

Never a value from anybody's data: only shapes, names, counts, codes and reasons. What is not a short plain value is shown
by its type; a traceback has files and lines, no local variables, and no messages except those of our own errors and the
system's. What libraries warn of or log, and what ends a process, become events like any other. An event that cannot be
written, on a full disk or to a reader that has gone, is lost: logging never stops the service.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from types import TracebackType
from typing import Any, TextIO

import structlog

from streamcl.config import Log
from streamcl.errors import StreamclError

MOST_CHARACTERS = 4000  # of one text
MOST_ITEMS = 32  # of one list or map
TOLD = (StreamclError, OSError, ImportError)  # exceptions whose messages are ours, the system's or the import system's
WITHHELD = "(message withheld: it may hold data)"


class _Forgiving:
    """A text stream that drops what cannot be written."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or do not."""
        with contextlib.suppress(OSError, ValueError):
            return self._stream.write(text)
        return 0

    def flush(self) -> None:
        """Flush, or do not."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


def configure(role: str, settings: Log | None = None) -> None:
    """Set up structured logging for one process; every event carries its `role`. May be called again."""
    settings = settings or Log()
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _without_data,
            _renderer(settings.format, sys.stderr),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(_Forgiving(sys.stderr)),  # type: ignore[arg-type]
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(role=role)
    _take_strays(level)


def _renderer(wanted: str, stream: TextIO) -> structlog.typing.Processor:
    """For people, in colour on a terminal unless NO_COLOR is set (no-color.org), or JSON."""
    terminal = stream.isatty()
    if wanted == "json" or (wanted == "auto" and not terminal):
        return structlog.processors.JSONRenderer()
    colours = terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)


def _without_data(
    logger: object, method: str, event: structlog.typing.EventDict
) -> structlog.typing.EventDict:  # structlog's signature
    """The event with plain, short values only, and its exception without anybody's data."""
    error = event.pop("exc_info", None)
    shown = {key: _plain(value) for key, value in event.items()}
    if error:
        raised = error if isinstance(error, BaseException) else error[1] if isinstance(error, tuple) else sys.exc_info()[1]
        shown["exception"] = _traced(raised)
    return shown


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)  # JSON cannot express it
        case str():
            return value if len(value) <= MOST_CHARACTERS else value[:MOST_CHARACTERS] + "…"
        case list() | tuple() if len(value) <= MOST_ITEMS:
            return [_plain(item) for item in value]
        case Mapping() if len(value) <= MOST_ITEMS:
            return {str(key): _plain(item) for key, item in value.items()}
    return f"<{type(value).__name__}>"


def _traced(error: BaseException | None) -> str:
    """Where an error arose and what led to it, the oldest first."""
    parts: list[str] = []
    while error is not None:
        frames = "".join(traceback.format_tb(error.__traceback__))
        message = str(error) if isinstance(error, TOLD) else WITHHELD if error.args else ""
        parts.append(f"{frames}{type(error).__module__}.{type(error).__qualname__}: {message}".rstrip(": "))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\nwhich led to\n".join(reversed(parts))


def _take_strays(level: int) -> None:
    """What Python and libraries would print by themselves becomes events."""
    sys.excepthook = _uncaught
    threading.excepthook = lambda hook: _uncaught(hook.exc_type, hook.exc_value, hook.exc_traceback)
    warnings.showwarning = _warned
    root = logging.getLogger()
    root.handlers = [_ToEvents(level)]
    root.setLevel(max(level, logging.WARNING))  # what libraries log below that does not concern the daemon


def _uncaught(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    structlog.get_logger().critical("ended by an error", exc_info=error)


def _warned(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    structlog.get_logger().warning(str(message), category=category.__name__, where=f"{filename}:{lineno}")


class _ToEvents(logging.Handler):
    """Passes on to structlog what libraries log."""

    def emit(self, record: logging.LogRecord) -> None:
        """One record, one event."""
        event = structlog.get_logger().bind(library=record.name)
        event.log(record.levelno, record.getMessage(), exc_info=record.exc_info)
