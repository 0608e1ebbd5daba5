"""Where everything lies in the state directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The paths of a state directory; creates nothing.

    log: segments of raw data. checkpoint and ledger: what was learned. live: parameters for the predictor. daemon:
    pid and endpoints of the running daemon.
    """

    path: Path

    @property
    def log(self) -> Path:
        """Directory of the log's segments."""
        return self.path / "log"

    @property
    def parameters(self) -> Path:
        """Published parameters, replaced by rename."""
        return self.path / "live" / "parameters"

    @property
    def posterior(self) -> Path:
        """Published posterior, replaced by rename at boundaries."""
        return self.path / "live" / "posterior"

    @property
    def daemon(self) -> Path:
        """``daemon.json``: there while the daemon is ready."""
        return self.path / "daemon.json"
