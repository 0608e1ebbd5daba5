"""streamcl: a continual-learning daemon, and the clients that talk to it.

Importing this package imports neither torch nor zmq; the clients load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streamcl.client import Admin, Prediction, Producer, Reader
    from streamcl.errors import Refused, StreamclError, Unreachable

__version__ = "0.1.0"
__all__ = ["Admin", "Prediction", "Producer", "Reader", "Refused", "StreamclError", "Unreachable", "__version__"]


def __getattr__(name: str) -> Any:
    if name in {"Admin", "Prediction", "Producer", "Reader"}:
        return getattr(import_module("streamcl.client"), name)
    if name in {"Refused", "StreamclError", "Unreachable"}:  # what these raise
        return getattr(import_module("streamcl.errors"), name)
    raise AttributeError(f"module 'streamcl' has no attribute {name!r}")
