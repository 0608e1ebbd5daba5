"""The processes: serve supervises; ingest, trainer and predictor work. They wire the floors below and decide little."""

import sys

if "rich" not in sys.modules:
    # structlog imports it, if it is there, to draw tracebacks as we never have them drawn: a fifth of what a process of
    # the daemon imports besides PyTorch.
    sys.modules["rich"] = None  # type: ignore[assignment]  # what the import system takes for a module that is not there
    import structlog  # noqa: F401

    del sys.modules["rich"]
