"""With what numbers are computed here: as long as two machines say the same, they compute the same bits."""

from __future__ import annotations

import platform

import torch


def arithmetic() -> dict[str, str]:
    """PyTorch's version, the kind of processor, and which of its instructions PyTorch has chosen."""
    return {
        "torch": str(torch.__version__),
        "machine": platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def differs(theirs: dict[str, str]) -> str | None:
    """How another machine computes, and this one, where predictions may differ in their last bits; None where not."""
    ours = arithmetic()
    if theirs == ours:
        return None
    return f"computed with {', '.join(map(str, theirs.values()))} there and with {', '.join(ours.values())} here"
