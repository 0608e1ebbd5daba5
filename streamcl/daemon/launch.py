"""Whether `torchrun` has started this process, read from its environment without PyTorch."""

from __future__ import annotations

import os


def launched() -> int | None:
    """This process's rank among those of `torchrun`; None where it was not started so, or is the only one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return int(os.environ["RANK"])
