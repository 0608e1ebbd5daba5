"""Names of the tasks that drift makes of a stream: TAG, TAG.2, TAG.3, ..."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count


def numbered(tag: str, number: int) -> str:
    """The name of a stream's task of this number, counted from 1."""
    return tag if number == 1 else f"{tag}.{number}"


def stream_name(tag: str, taken: Callable[[str], bool]) -> str:
    """The name of the next task of a stream: the tag with the first number that gives a name that is not taken."""
    return next(name for number in count(1) if not taken(name := numbered(tag, number)))


def stream_of(task: str) -> str:
    """The tag that a task's name was made of, as far as the name tells."""
    return re.sub(r"\.([2-9]|[1-9]\d+)\Z", "", task)
