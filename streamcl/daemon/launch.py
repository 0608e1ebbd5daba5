"""Whether `torchrun` has started this process, and would again; read from its environment without PyTorch."""

from __future__ import annotations

import os


def launched() -> int | None:
    """This process's rank among those of `torchrun`; None where it was not started so, or is the only one."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return None
    return int(os.environ["RANK"])


def would_start_again() -> bool:
    """Whether `torchrun` starts its processes again where one of them fails, as many as there are machines for by then."""
    most = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    return launched() is not None and int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) < most
