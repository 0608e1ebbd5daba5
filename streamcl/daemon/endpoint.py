"""How a message is taken in, at the stream's, the operators' and the readers' socket alike: parse, decode, authorise, open
its arrays, act; or refuse.

Guarantees: this order, so that nothing is touched before the last check; whatever a message brings about, an answer can be
given: a defect of ours is refused as ``internal`` and ends nothing. Knows nothing of what messages mean.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from streamcl.daemon.sockets import Peer
from streamcl.errors import Refused, StreamclError
from streamcl.protocol import frames, messages
from streamcl.protocol.frames import Buffer, NamedArrays

NOTHING: Mapping[type, Sequence[str]] = {}


class Port(Protocol):
    """Where messages come from and replies go to: a ROUTER socket, or whoever stands in for its peers."""

    def receive(self) -> Iterator[tuple[Peer, list[Buffer]]]:
        """What has arrived, without waiting."""

    def send(self, peer: Peer, message: Sequence[Buffer]) -> None:
        """Reply to a peer; never waits."""


@dataclass(slots=True)  # not frozen, which costs a microsecond a message
class Received:
    """A message that passed every check which takes no knowledge of the state. parts: its frames."""

    peer: Peer
    header: Mapping[str, Any]
    message: Any
    arrays: NamedArrays
    parts: Sequence[Buffer]


@dataclass(slots=True)
class Taken:
    """What came of a message. header: as far as it could be read. refused: why nothing was done, or None. acted: what the
    action gave."""

    header: Mapping[str, Any]
    refused: Refused | None = None
    acted: Any = None

    @property
    def id(self) -> Any:
        """The request's id, for the answer."""
        own = self.header.get("id")
        return self.refused.fields.get("id") if own is None and self.refused is not None else own

    @property
    def seq(self) -> int | None:
        """The sequence number that an answer names."""
        if self.refused is not None and self.refused.seq is not None:
            return self.refused.seq
        return frames.legible_seq(self.header)


class Endpoint:
    """One socket's way in.

    kinds: the messages it takes. authorise: raises Refused unless this peer may send this message now. brings: the names of
    the arrays that come with a message, by its type. fatal: what is raised, since only a new start can mend it. lacking: in
    which arrays of a message NaN is a missing value.
    """

    def __init__(
        self,
        kinds: Any,
        authorise: Callable[[Peer, Any], None],
        brings: Mapping[type, Sequence[str]] = NOTHING,
        fatal: tuple[type[Exception], ...] = (StreamclError,),
        lacking: Callable[[Peer, Any], Sequence[str]] = lambda peer, message: (),
    ) -> None:
        self.kinds, self.authorise, self.brings, self.fatal = kinds, authorise, brings, fatal
        self.lacking = lacking

    def take(self, peer: Peer, parts: Sequence[Buffer], act: Callable[[Received], Any]) -> Taken:
        """Check a message and act on it; what `act` raises as Refused is a refusal too."""
        header: dict[str, Any] = {}
        try:
            envelope = frames.parse(parts)
            header = envelope.header
            message = messages.decode(header, self.kinds)
            self.authorise(peer, message)
            arrays = frames.open_arrays(envelope, self.brings.get(type(message), ()), self.lacking(peer, message))
            return Taken(header, acted=act(Received(peer, header, message, arrays, parts)))
        except Refused as refused:
            return Taken(header, refused)
        except self.fatal:
            raise
        except Exception as error:  # one message must not end the service for everyone else
            if self.fatal:  # else it may be the model's, and every question would be logged
                structlog.get_logger().exception("a message could not be judged")
            defect = Refused("internal", f"{type(error).__name__}: {error}"[:500], retryable=True)
            return Taken(header, defect)
