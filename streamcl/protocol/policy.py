"""Who may do what: each public key's roles, and the producers and tasks it may name. Sans-IO.

Guarantees: what no grant allows is refused, including any kind of message that is not listed here. A decision changes
nothing and depends on the policy, the key and the message alone. Knows nothing of sockets or files.

    [[grant]]
    key = "..."                       # as in NAME.pub
    name = "camera-1"                 # for the logs
    roles = ["produce"]               # produce | predict | follow | read | admin (which includes read and follow)
    producers = ["camera-1"]          # names it may send under; * and ? stand for any characters
    tasks = ["*"]                     # tasks it may send data of, close and reopen; all unless given
"""

from __future__ import annotations

import fnmatch
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import msgspec

from streamcl.errors import ConfigError, Refused
from streamcl.keys import KEY
from streamcl.protocol import messages

Role = Literal["produce", "predict", "follow", "read", "admin"]
INCLUDED = frozenset({"read", "follow"})  # in admin, which may have the parameters anyway
NEEDED: dict[type[messages.Message], Role] = {
    messages.Hello: "produce",
    messages.Batch: "produce",
    messages.Boundary: "produce",
    messages.Revisit: "produce",
    messages.Predict: "predict",
    messages.Schema: "predict",
    messages.Follow: "follow",  # the whole model, as `parameters`, and nothing else that an operator may
    messages.Part: "follow",
    messages.Status: "read",
    messages.Tasks: "read",
    messages.History: "read",
    messages.Producers: "read",
    messages.Metrics: "read",
    messages.Parameters: "admin",  # the whole model: more than someone who only watches needs
    messages.AdminBoundary: "admin",
    messages.AdminRevisit: "admin",
    messages.Abandon: "admin",
    messages.Forget: "admin",
    messages.Quarantine: "read",
    messages.Versions: "read",
    messages.Retry: "admin",
    messages.Drop: "admin",
    messages.Rollback: "admin",
    messages.Checkpoint: "admin",
    messages.Pause: "admin",
    messages.Resume: "admin",
    messages.Stop: "admin",
}


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one key may do."""

    key: Annotated[str, msgspec.Meta(pattern=rf"\A{KEY.pattern}\Z")]
    roles: Annotated[tuple[Role, ...], msgspec.Meta(min_length=1)]
    name: str = ""
    producers: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ("*",)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    grant: tuple[Grant, ...] = ()


class Policy:
    """Every key's grant."""

    def __init__(self, grants: Iterable[Grant]) -> None:
        self.grants = {grant.key: grant for grant in grants}
        self._producers = {key: _matcher(grant.producers) for key, grant in self.grants.items()}
        self._tasks = {key: _matcher(grant.tasks) for key, grant in self.grants.items()}
        self._by_name: dict[str, set[str]] = {}
        for key, grant in self.grants.items():
            for name in grant.producers:
                self._by_name.setdefault(name, set()).add(key)

    @classmethod
    def parse(cls, text: str) -> Policy:
        """The policy of a TOML text; raises ConfigError naming the place."""
        try:
            file = msgspec.convert(tomllib.loads(text), _File)
        except (tomllib.TOMLDecodeError, msgspec.ValidationError) as error:
            raise ConfigError(str(error).replace("$", "policy")) from None
        policy = cls(file.grant)
        if len(policy.grants) < len(file.grant):
            raise ConfigError("policy: expected one grant for each key, got two for one key; combine their roles")
        for grant in file.grant:
            if "produce" in grant.roles and not grant.producers:
                raise ConfigError(f"policy: {policy.called(grant.key)}: expected `producers`, the names it may send under")
        return policy

    def knows(self, key: str) -> bool:
        """Whether the key may do anything at all."""
        return key in self.grants

    def called(self, key: str) -> str:
        """A key's name in the policy, for logs and refusals; the key itself if it has none."""
        grant = self.grants.get(key)
        return grant.name if grant is not None and grant.name else key

    def may_send_as(self, key: str, producer: str) -> bool:
        """Whether the key may use this producer's name; a pattern covers no name granted to another key in full."""
        if key not in self.grants or not self._producers[key](producer):
            return False
        named = self._by_name.get(producer)
        return not named or key in named

    def may_touch(self, key: str, task: str) -> bool:
        """Whether the key, as a producer, may send data of this task, close and reopen it."""
        return key in self.grants and self._tasks[key](task)

    def check(self, key: str, message: messages.Message, producer: str | None = None) -> None:
        """Raise Refused ``not_allowed`` unless the key may send this message (on the stream: as this producer)."""
        grant = self.grants.get(key)
        if grant is None:
            raise Refused("not_allowed", f"the key {key or 'of this connection'} has no rights here (any more)")
        needed = NEEDED.get(type(message))
        if needed not in grant.roles and not (needed in INCLUDED and "admin" in grant.roles):
            kind = type(message).__struct_config__.tag
            held = ", ".join(grant.roles)
            raise Refused("not_allowed", f"{kind}: expected a key with the role {needed}; this one has {held}")
        if needed == "produce":
            self._check_names(key, producer, message)

    def _check_names(self, key: str, producer: str | None, message: messages.Message) -> None:
        if isinstance(message, messages.Hello):
            producer = message.producer
        if producer is None or not self.may_send_as(key, producer):
            raise Refused("not_allowed", f"producer {producer}: this key may not send under this name")
        task = getattr(message, "task", None)
        if task is not None and not self.may_touch(key, task):
            raise Refused("not_allowed", f"task {task!r}: this key has no rights to it")


def _matcher(patterns: Sequence[str]) -> Callable[[str], bool]:
    """Whether a text matches any of the patterns; compiled once, since it is asked for every message."""
    match = re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns) or r"(?!)").match
    return lambda text: match(text) is not None
