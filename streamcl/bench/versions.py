"""What figures were taken with."""

from __future__ import annotations

import platform

from streamcl.version import __version__


def versions() -> dict[str, str]:
    """The versions of everything that figures may depend on."""
    import torch

    return {"streamcl": __version__, "torch": torch.__version__, "python": platform.python_version()}
