"""Whether a model can be learned on the rows of a first batch, which ingest has put down.

Guarantees: one verdict a question, however often it is asked; what a model says about its data stays out of the log.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import structlog

from streamcl import columns as tables
from streamcl.daemon import words
from streamcl.errors import ConfigError, ModelRefused
from streamcl.learning.data import Rows
from streamcl.learning.learner import Learner
from streamcl.storage import published


class Judge:
    """Reads the rows at `path`; remembers its last verdict."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: words.ModelTried | None = None

    def verdict(self, number: int, learner: Learner, alive: Callable[[], None]) -> words.ModelTried | None:
        """Of question `number`; None where it has been judged, and ingest has heard of it. alive: called in between."""
        if self._last is None or self._last.number != number:
            found = published.read(self.path)
            if found is None:
                return None
            self._last = words.ModelTried(number=number, refused=_tried(learner, *found, alive))
        return self._last


def _tried(learner: Learner, meta: Mapping[str, Any], arrays: Mapping[str, Any], alive: Callable[[], None]) -> str | None:
    """Why the model is refused, or None."""
    columns = None if meta["schema"] is None else tables.from_plain(meta["schema"])
    rows = Rows(
        "", arrays["x"], arrays["y"], tuple(meta["new_labels"]), columns=columns, new_words=tuple(meta["new_words"])
    )
    try:
        learner.try_model(rows, alive)
    except (ModelRefused, ConfigError) as error:
        private = isinstance(error, ModelRefused) and error.private
        structlog.get_logger().error("the model is refused", reason=loggable(error) if private else str(error))
        return str(error)
    return None


def loggable(error: Exception) -> str:
    """The reason in a form fit for the log: what a model says about its data stays in the state directory."""
    cause = error.__cause__
    return str(error) if cause is None else f"{type(cause).__name__}; its message, which may hold data, is in `status`"
