"""What a process knows about who may do what: the daemon's key, the policy, and which key owns which producer's name.

Without security configured, everyone who reaches the sockets may do everything; they are then on loopback only. With it,
every message is judged by the policy as it stands at that moment, so a key taken out of it is refused on open connections
too.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from streamcl import keys
from streamcl.config import Security
from streamcl.daemon.gate import Gate
from streamcl.daemon.sockets import Peer
from streamcl.errors import ConfigError, Refused
from streamcl.protocol import messages
from streamcl.protocol.policy import Policy
from streamcl.storage.disk import FULL
from streamcl.storage.owners import Owners

LOCAL = "local"  # whoever asks if there are no keys


class Guard:
    """Judges messages by key; constructed open to all, closed by `load`."""

    def __init__(self, security: Security) -> None:
        self.security = security
        self.policy: Policy | None = None
        self.owners: Owners | None = None
        self.gate = Gate()

    @property
    def secured(self) -> bool:
        """Whether keys are asked for."""
        return self.policy is not None

    def load(self) -> None:
        """Read the daemon's key and the policy, if the configuration names them. Raises ConfigError."""
        if self.security.server_key:
            pair = keys.load(Path(self.security.server_key))
            self.policy = read_policy(self.security)
            self.gate = Gate(pair.secret, self.knows)

    def reload(self) -> str | None:
        """Read the policy again; if it is wrong the old one stays, and the reason is returned."""
        if not self.security.policy:  # there may be an HTTP token alone
            return None
        try:
            self.policy = read_policy(self.security)
        except ConfigError as error:
            return str(error)
        return None

    def knows(self, key: str) -> bool:
        """Whether the key may do anything at all."""
        return self.policy is None or self.policy.knows(key)

    def called(self, peer: Peer) -> str:
        """Who asks, for the audit log."""
        return LOCAL if self.policy is None else self.policy.called(peer.key)

    def check(self, peer: Peer, message: messages.Message, producer: str | None = None) -> None:
        """Raise Refused ``not_allowed`` unless this peer may send this message now (on the stream: as this producer)."""
        if self.policy is not None:
            self.policy.check(peer.key, message, producer)

    def check_closing(self, peer: Peer, open_task: str | None, message: messages.Message) -> None:
        """If another task's data closes the open one, the peer must have the right to close that one too."""
        another = isinstance(message, messages.Batch | messages.Revisit) and open_task not in (None, message.task)
        if another and self.policy is not None and not self.policy.may_touch(peer.key, str(open_task)):
            raise Refused("not_allowed", f"task {open_task!r} is open, and this key has no rights to close it")

    def claim(self, peer: Peer, producer: str) -> None:
        """Make the producer's name the peer's own; raises Refused ``not_allowed`` where it is another key's."""
        if self.policy is None or self.owners is None:
            return
        owner = self.owners.of(producer)
        if owner == peer.key:
            return
        if owner is not None and self.policy.may_send_as(owner, producer):
            raise Refused(
                "not_allowed",
                f"producer {producer}: the name belongs to another key; choose another name, or have that key's right "
                f"to it "
                "taken out of the policy",
            )
        try:
            self.owners.claim(producer, peer.key)
        except OSError as error:
            if error.errno not in FULL:
                raise
            raise Refused("no_space", f"the disk is full ({error.strerror}); free some", retryable=True) from None

    def turned_away(self) -> Iterator[dict[str, Any]]:
        """What the gate has done since the last call, for the audit log."""
        while self.gate.notes:
            what, key = self.gate.notes.popleft()
            yield {"action": what, "who": key}


def read_policy(security: Security) -> Policy:
    """The policy file as it is now; raises ConfigError."""
    try:
        return Policy.parse(Path(security.policy).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"security.policy: {security.policy}: cannot be read: {error}") from None
    except ConfigError as error:
        raise ConfigError(f"security.policy: {security.policy}: {error}") from None
