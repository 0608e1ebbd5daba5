"""The daemon that is followed: asked for its newest publication, one question at a time, and what it gives put in place.

A question for something new waits at the daemon (`WAIT_SECONDS`), so that nothing is asked in vain and the daemon is heard
all the same. Guarantees: what cannot be had now is asked for again, whatever the reason; a part is as large as the link
takes in about a second, so that a slow one makes progress; nothing waits here. What is put in place is `storage.mirror`'s.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from streamcl.client.connection import Connection
from streamcl.errors import Damaged, Refused, StreamclError, UnknownFormat
from streamcl.keys import Keys
from streamcl.protocol import frames
from streamcl.protocol.frames import NamedArrays
from streamcl.storage.mirror import Mirror, Newest, Publication

WAIT_SECONDS = 2.0  # that a question for something new waits at the daemon
LOST_SECONDS = 5.0  # without a word, the daemon counts as lost
FOLLOW_SECONDS, PART_SECONDS = 5.0, 60.0  # for an answer; then the question is asked anew, over another connection
AGAIN_SECONDS, SOON_SECONDS = 1.0, 0.1  # after a refusal; after one that has waited at the daemon
FIRST_BYTES, LEAST_BYTES, MOST_BYTES = 256 << 10, 16 << 10, 4 << 20  # of a part
NOT_FOLLOWED = (
    "this may not be a predict endpoint: expected where the daemon answers predictions, its endpoints.predict; or the "
    "daemon is of an earlier streamcl, which gives nothing to followers: upgrade it"
)
QUICK_SECONDS, SLOW_SECONDS = 0.25, 1.0  # that a part takes, beyond which the next one is larger, or smaller


class Answer(msgspec.Struct, frozen=True):
    """What every answer says: where the daemon stands, and how old that knowledge is (of one that follows another)."""

    newest: Newest | None = None
    age: float | None = 0.0


class Heartbeat(Answer, frozen=True):
    """A publication by its name alone: there is none but the one that was had."""

    publication: str = ""


class PartOf(Answer, frozen=True, kw_only=True):
    """Some bytes of a file that has so many."""

    digest: str
    offset: int
    bytes: int


@dataclass(slots=True)
class Question:
    """One that has not been answered yet. digest: of the file of which a part is asked for, None of a publication."""

    number: int
    asked: float
    until: float
    digest: str | None = None


class Upstream:
    """One daemon. connected, problem: as of the last turn; whether it was heard lately. newest, heard: what was last heard
    of the daemon, and when. wanted: what is being fetched. publications, fetched: how many, and bytes, in all."""

    def __init__(
        self,
        endpoint: str,
        keys: Keys | None,
        interval: float,
        mirror: Mirror,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.endpoint, self.interval, self.mirror, self._clock = endpoint, interval, mirror, clock
        self._connection = Connection(endpoint, keys)
        self._connection.open()
        self.connected = False
        self.newest: Newest | None = None
        self.heard: float | None = None
        self.wanted: Publication | None = None
        self.problem: str | None = None
        self.publications = self.fetched = 0
        self._seconds: list[float] = []
        self._counted = (0, 0)
        self._question: Question | None = None
        self._numbers = 0
        self._not_before = 0.0
        self._begun = float("-inf")
        self._bytes = FIRST_BYTES
        self._adopted = float("-inf")
        self._cut = False
        self._before = 0
        self._answered = False  # in this turn
        self._of_answer = False  # the problem is what the daemon has said of itself, and nothing once it is not heard
        self._stuck = False  # the problem is with what is fetched, and lasts until nothing is lacking, whatever is heard

    # -- the loop ------------------------------------------------------------------------------------------------

    def sources(self) -> tuple[zmq.Socket[bytes], ...]:
        """What can be read where there is something to hear."""
        return self._connection.sources()

    def rest_seconds(self) -> float:
        """How long nothing is to be done unless something is heard."""
        due = self._not_before if self._question is None else self._question.until
        return max(0.0, due - self._clock())

    def turn(self) -> bool:
        """Hear what was answered and ask what is next; whether another publication was put in place."""
        adopted = self._answered = False
        try:
            while (received := self._connection.receive(0)) is not None:
                adopted = self._hear(*received) or adopted
                self._ask()
            if self._connection.take_cut():
                self._question, self._cut = None, True
            self._ask()
        except Refused as refused:  # this follower is not let in, or what came is no message
            self._give_up(refused.message)
        except Damaged as error:
            self._give_up(str(error))
        except UnknownFormat as error:
            self._give_up(f"{error} (this follower)")
        except StreamclError as error:
            self._give_up(str(error))
        except OSError as error:
            self._give_up(f"{self.mirror.state.path}: {error.strerror or error}")
        self.connected = not self._cut and self.heard is not None and self._clock() - self.heard < LOST_SECONDS
        if self._of_answer and not self.connected:
            self.problem, self._of_answer = None, False
        return adopted

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def take_counts(self) -> tuple[int, int, list[float]]:
        """Publications and bytes since this was last asked, and the seconds that each publication took."""
        (publications, fetched), self._counted = self._counted, (self.publications, self.fetched)
        seconds, self._seconds = self._seconds, []
        return self.publications - publications, self.fetched - fetched, seconds

    def fetched_of_wanted(self) -> int:
        """Bytes that have come since what is being fetched was begun."""
        return self.fetched - self._before

    # -- asking --------------------------------------------------------------------------------------------------

    def _ask(self) -> None:
        now = self._clock()
        if self._question is not None and now >= self._question.until:
            self._question = None
            self._connection.open()  # a late answer must not be taken for another's
        if self._question is not None or now < self._not_before:
            return
        digest = None if self.wanted is None else self.mirror.lacking(self.wanted)
        self._numbers += 1
        header: dict[str, Any] = {"id": self._numbers}
        if digest is None:
            have = None if self.mirror.current is None else self.mirror.current.publication or None
            after = max(0.0, self._adopted + self.interval - now)
            header |= {"type": "follow", "wait": WAIT_SECONDS, "after": after} | ({"have": have} if have else {})
        else:
            header |= {"type": "part", "digest": digest, "offset": self.mirror.fetched(digest), "most": self._bytes}
        self._connection.send(frames.build(header))
        patience = FOLLOW_SECONDS if digest is None else PART_SECONDS
        self._question = Question(self._numbers, now, now + patience, digest)

    def _give_up(self, reason: str, pause: float = AGAIN_SECONDS) -> None:
        """Ask anew a little later."""
        self._of_answer = False
        self._stuck = self._answered or self.wanted is not None
        self.problem, self._question, self.wanted = reason, None, None
        self._not_before = self._clock() + pause

    # -- hearing -------------------------------------------------------------------------------------------------

    def _hear(self, header: Mapping[str, Any], arrays: NamedArrays) -> bool:
        """One answer; whether another publication is in place now. Raises Refused, Damaged, UnknownFormat, OSError."""
        question = self._question
        if question is None or header.get("id") != question.number:
            return False
        self._question = None
        match header["type"]:
            case "publication":
                self._heard(_typed(header, Heartbeat))
                return self._offered(header)
            case "part":
                part = _typed(header, PartOf)
                self._heard(part)
                return self._part(question, part, arrays)
            case _:
                self._refused(header)
                return False

    def _heard(self, answer: Answer) -> None:
        """The daemon has said where it stands; one that follows another, how long ago it knew."""
        if answer.age is not None:
            self.heard = max(self.heard or float("-inf"), self._clock() - answer.age)
        self.newest, self._cut, self._answered = answer.newest, False, True
        if not self._stuck:
            self.problem = None

    def _mended(self) -> None:
        """Nothing is lacking here, so that what was wrong is over."""
        self.problem, self._stuck = None, False

    def _offered(self, header: Mapping[str, Any]) -> bool:
        current = self.mirror.current
        if "parameters" not in header or (current is not None and header["publication"] == current.publication):
            self._mended()
            return False
        wanted = _typed(header, Publication)
        self.mirror.keep_only(wanted)
        self.wanted, self._begun, self._before = wanted, self._clock(), self.fetched
        return self._adopt_if_whole()

    def _part(self, question: Question, part: PartOf, arrays: NamedArrays) -> bool:
        digest, mirror = part.digest, self.mirror
        data = arrays.by_name.get("data")
        if self.wanted is None or digest != question.digest or data is None or part.offset != mirror.fetched(digest):
            return False
        mirror.append(digest, data.reshape(-1).view("u1").data)
        self.fetched += data.nbytes
        took = self._clock() - question.asked
        if took > SLOW_SECONDS:
            self._bytes = max(LEAST_BYTES, self._bytes // 2)
        elif took < QUICK_SECONDS and data.nbytes >= self._bytes:
            self._bytes = min(MOST_BYTES, self._bytes * 2)
        if mirror.fetched(digest) < part.bytes and data.nbytes:
            return False
        mirror.complete(self.wanted, digest)
        return self._adopt_if_whole()

    def _adopt_if_whole(self) -> bool:
        if self.wanted is None or self.mirror.lacking(self.wanted) is not None:
            return False
        self.mirror.adopt(self.wanted)
        self._mended()
        self._adopted = self._clock()
        self._seconds.append(self._adopted - self._begun)
        self.publications += 1
        self.wanted = None
        return True

    def _refused(self, header: Mapping[str, Any]) -> None:
        """`not_ready`: there is no model, or what was being fetched is not offered any more."""
        code, text = header.get("code"), str(header.get("message"))
        if code != "bad_header":  # which anything that speaks streamcl's protocol may say
            self.heard, self._cut = self._clock(), False
        if code == "not_ready" and self.wanted is not None:
            self.wanted = None
            return
        if code == "bad_header":
            text = f"{text} ({NOT_FOLLOWED})"
        self._give_up(f"{self.endpoint}: {text}", SOON_SECONDS if code == "not_ready" else AGAIN_SECONDS)
        self._of_answer = code != "bad_header"


def _typed(header: Mapping[str, Any], kind: type[Any]) -> Any:
    try:
        return msgspec.convert(header, kind)
    except msgspec.ValidationError as error:
        raise Refused("bad_header", f"the daemon's answer: {error}"[:500]) from None
