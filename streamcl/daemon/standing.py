"""Where a follower stands: what it has last heard of the daemon that it follows, and how far behind that it answers.

Of a daemon that follows nobody, there is nothing to say. Decides nothing but what is not a follower's to do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from streamcl.errors import Refused
from streamcl.protocol.policy import NEEDED

ELSEWHERE = frozenset(  # kinds of messages that only a daemon that learns can do anything with
    str(kind.__struct_config__.tag) for kind, role in NEEDED.items() if role not in ("predict", "follow")
)


@dataclass(slots=True)
class Standing:
    """endpoint: of the daemon that is followed, empty where none is. newest: version, position and rows of what it has
    published last. heard: when anything was last heard of it, by the clock that never goes back."""

    endpoint: str = ""
    newest: Mapping[str, Any] | None = None
    heard: float | None = None

    def told(self, newest: Mapping[str, Any] | None, heard: float | None) -> None:
        """What the follower process knows of the daemon; one that has just started may know less than was known."""
        self.newest = self.newest if newest is None else newest
        self.heard = self.heard if heard is None else heard

    def age(self, now: float) -> float | None:
        """Seconds since the daemon was heard; 0 where this is the daemon, None where it never was."""
        if not self.endpoint:
            return 0.0
        return None if self.heard is None else max(0.0, now - self.heard)

    def behind(self, meta: Mapping[str, Any], now: float) -> dict[str, Any]:
        """How far what is served is behind what is known: in steps, records and rows (less than 0 where the daemon has gone
        back since), and the seconds since the daemon was heard; None where that is not known."""
        found: dict[str, Any] = {"steps": None, "records": None, "rows": None, "seconds": _rounded(self.age(now))}
        for name, field in (("steps", "version"), ("records", "position"), ("rows", "rows")):
            if self.newest is not None and field in meta:
                found[name] = self.newest[field] - meta[field]
        return found

    def of(self, meta: Mapping[str, Any], now: float) -> dict[str, Any]:
        """What a prediction says beside its version."""
        found = {"position": meta["position"]} if "position" in meta else {}
        return {**found, "follows": self.endpoint, "behind": self.behind(meta, now)} if self.endpoint else found

    def refusal(self, header: Mapping[str, Any]) -> Refused | None:
        """Why a message of a known kind is not for a follower; None where this is none, or the kind is not known."""
        kind = header.get("type")
        if not self.endpoint or not isinstance(kind, str) or kind not in ELSEWHERE:
            return None
        text = (
            f"{kind}: this is a follower of the daemon at {self.endpoint}, and answers predictions alone; ask that daemon"
        )
        seq = header.get("seq")
        return Refused("follower", text, seq=seq if type(seq) is int else None, id=header.get("id"))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)
