"""Where everything is in the state directory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class StateDirectory:
    """The paths of a state directory; creates nothing.

    log: segments of raw data. checkpoint, ledger and factors: what was learned. frozen: what training does not change of
    the model. live: parameters for the predictor, and while a model is tried some rows of the first batch. history: what
    was observed over time. audit: who asked for what. daemon: pid and endpoints of the running daemon.
    """

    path: Path

    @property
    def log(self) -> Path:
        """Directory of the log's segments."""
        return self.path / "log"

    @property
    def factors(self) -> Path:
        """Directory of the tasks' factors (factor mode)."""
        return self.path / "factors"

    @property
    def history(self) -> Path:
        """The history's database."""
        return self.path / "history.sqlite"

    @property
    def parameters(self) -> Path:
        """Published parameters, replaced by rename."""
        return self.path / "live" / "parameters"

    @property
    def posterior(self) -> Path:
        """Published posterior, replaced by rename at boundaries."""
        return self.path / "live" / "posterior"

    @property
    def trial(self) -> Path:
        """Rows of a first batch, while the model is being tried on them."""
        return self.path / "live" / "trial"

    @property
    def audit(self) -> Path:
        """Who asked for what."""
        return self.path / "audit.log"

    @property
    def ranks(self) -> Path:
        """How the file's name begins where processes that share a trainer's work find one another: one file a trainer."""
        return self.path / "live" / "ranks"

    @property
    def daemon(self) -> Path:
        """``daemon.json``: there while the daemon is ready."""
        return self.path / "daemon.json"
