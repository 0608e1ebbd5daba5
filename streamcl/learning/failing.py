"""What cannot be learned: how it is told, and whose fault it is.

The fault of the model or its data is `Unlearnable`; a full disk, no memory on the host, or damage to what was stored goes
through as it is.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from streamcl.errors import Damaged, StreamclError, WrongOutput, in_words

DIVERGED = {"batch": "batch-diverged", "boundary": "boundary-diverged"}  # the stage of a failure that the steps caused
MOST_CHARACTERS = 2000  # of a reason
MOST_FAILURES = 8  # of a record; behind these it is not the record that is at fault, and passing it over does not help


class Unlearnable(StreamclError):
    """A record could not be learned: the loss was not finite, or the model failed on it.

    stage: ``batch`` or ``boundary`` where the model raised, else ``batch-diverged`` or ``boundary-diverged``. The learner
    cannot continue then: restore it, and tell it to be wary.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(message)
        self.stage = stage


class Diverged(FloatingPointError):
    """The loss, the parameters or the curvature are no longer finite."""


@contextmanager
def blaming(stage: str, task: str) -> Iterator[None]:
    """What the model or its data do wrong is the record's fault: raises Unlearnable.

    Damage found at a boundary is of rows: the task is held, and learning goes on.
    """
    try:
        yield
    except Damaged as error:
        if stage != "boundary":
            raise
        raise Unlearnable(stage, str(error)) from error
    except WrongOutput as error:
        raise Unlearnable(stage, f"task {task!r}: {error}"[:MOST_CHARACTERS]) from error
    except (StreamclError, MemoryError):
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # none of which may end the process again and again
        if isinstance(error, OSError) and not _raised_by_a_module(error):
            raise
        stage = DIVERGED[stage] if isinstance(error, Diverged) else stage
        raise Unlearnable(stage, f"task {task!r}: {in_words(error)}"[:MOST_CHARACTERS]) from error


def _raised_by_a_module(error: BaseException) -> bool:
    """Whether an error came out of a call of an nn.Module, and not out of reading the log or a factor."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_name == "_call_impl" for frame, _ in frames)
