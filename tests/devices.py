"""Which device the tests marked ``cuda`` run on, and one way to enter it.

``STREAMCL_TEST_DEVICE``: ``cuda`` (or any device that PyTorch knows), ``cpu`` for a rehearsal, ``pretended`` for the CPU in
the guise of a second device (`pretend`). Unset: ``cuda`` where there is one; else these tests are skipped.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest
import torch

VARIABLE = "STREAMCL_TEST_DEVICE"


def chosen() -> str | None:
    """The device's name; None where there is none to test on."""
    return os.environ.get(VARIABLE) or ("cuda" if torch.cuda.is_available() else None)


@contextlib.contextmanager
def entered(name: str) -> Iterator[str]:
    """Inside, there is such a device; what `train.device` is to be."""
    if name != "pretended":
        yield name
        return
    from pretend import Pretended  # of PyTorch's own parts, which other versions may not have

    with Pretended().entered():
        yield "cuda"


needed = pytest.mark.skipif(chosen() is None, reason=f"no CUDA here; {VARIABLE}=cpu rehearses them")
