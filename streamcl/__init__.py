"""streamcl: a continual-learning daemon, the clients that talk to it, and the same learner in this process.

Importing this package imports neither torch nor zmq; clients and learner load on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from streamcl.version import __version__

if TYPE_CHECKING:
    from streamcl.client import Admin, Prediction, Producer, Reader
    from streamcl.errors import ConfigError, Damaged, ModelRefused, Refused, StreamclError, UnknownFormat, Unreachable
    from streamcl.estimator import Learner

__all__ = [
    "Admin",
    "ConfigError",
    "Damaged",
    "Learner",
    "ModelRefused",
    "Prediction",
    "Producer",
    "Reader",
    "Refused",
    "StreamclError",
    "UnknownFormat",
    "Unreachable",
    "__version__",
]
_HOMES = {
    "streamcl.client": ("Admin", "Prediction", "Producer", "Reader"),
    "streamcl.estimator": ("Learner",),
    "streamcl.errors": (  # what these raise
        "ConfigError",
        "Damaged",
        "ModelRefused",
        "Refused",
        "StreamclError",
        "UnknownFormat",
        "Unreachable",
    ),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'streamcl' has no attribute {name!r}")
