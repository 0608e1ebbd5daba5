"""NATS JetStream, as a bridge fetches from it: an ephemeral consumer without acknowledgements, from a number of ours.

A stream's sequence numbers are the producer's. A message that is lost on its way leaves a hole in the consumer's own count:
the consumer is then made anew from the next number. What the stream no longer has (its limits, a purge) is never skipped by
itself. The stream's time of creation is part of the producer's name, so that one made anew is another.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
import ssl
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from streamcl.bridges.bridge import End
from streamcl.bridges.lane import BridgeError
from streamcl.bridges.records import Record
from streamcl.errors import ConfigError

try:
    import nats
    from nats.js import api
    from nats.js.errors import APIError, NotFoundError
except ImportError as error:
    raise ConfigError("the package nats-py is not installed: pip install 'streamcl[nats]'") from error

FIRST_SECONDS = 30.0  # for the server to answer at all
ASKING_SECONDS = 5.0
LOOK_SECONDS = 1.0  # without a message, after which it is asked whether there is one
KEPT_SECONDS = 300.0  # by the server, of a consumer that fetches nothing
FOR_GOOD = ("Authorization Violation", "Authentication", "nkeys", "certificate", "CERTIFICATE")
MOST = 512  # messages in one fetch

T = TypeVar("T")


def security(
    creds: Path | None, nkey: Path | None, ca: Path | None, certificate: Path | None, key: Path | None
) -> dict[str, Any]:
    """Files as options of `nats.connect`. Raises ConfigError, OSError."""
    found: dict[str, Any] = {}
    if creds is not None or nkey is not None:
        try:
            import nkeys  # noqa: F401
        except ImportError:
            raise ConfigError("--creds and --nkey need the package nkeys: pip install nkeys") from None
    for name, file in (("user_credentials", creds), ("nkeys_seed", nkey)):
        if file is not None:
            file.read_bytes()  # that it cannot be read is said here, by its name
            found[name] = str(file)
    if (certificate is None) != (key is None):
        raise ConfigError("--tls-cert and --tls-key are a certificate and its key: give both or none")
    if ca is not None or certificate is not None:
        try:
            context = ssl.create_default_context(cafile=None if ca is None else str(ca))
            if certificate is not None and key is not None:
                context.load_cert_chain(str(certificate), str(key))
        except ssl.SSLError as error:
            raise ConfigError(f"TLS: {error}; expected PEM files for --tls-ca, --tls-cert and --tls-key") from None
        found["tls"] = context
    return found


class Nats:
    """One stream, or what of it has a subject. servers: addresses. options: of `nats.connect`. start: where it begins if
    the daemon holds nothing: ``earliest``, ``latest`` or a sequence number. accept_loss: go on behind what the stream no
    longer has. name: of the producer, instead of one made of the stream's name and time of creation. Raises BridgeError.

    What holds it together: one connection and one consumer, made anew after every break, and how far the stream was read.
    """

    def __init__(
        self,
        stream: str,
        servers: Sequence[str],
        say: Callable[[str], None],
        *,
        options: Mapping[str, Any] | None = None,
        subject: str = ">",
        start: str = "earliest",
        accept_loss: bool = False,
        name: str | None = None,
    ) -> None:
        self.stream, self.servers, self.say, self.subject = stream, list(servers), say, subject
        self.start, self.accept_loss = start, accept_loss
        self._lost = self._counted = 0
        self._next = 1
        self._anywhere = True  # where it begins is not known yet: the daemon holds nothing
        self._looked = time.monotonic()
        self._told = ""
        self._fatal: str | None = None
        self._subscription: Any = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="nats", daemon=True)
        self._thread.start()
        self._client: Any = None
        try:
            created = self._first_word(dict(options or {}))
        except BaseException:
            self.close()
            raise
        own = hashlib.sha256(str(created).encode()).hexdigest()[:8]
        whole = name or f"nats-{own}-{stream}" + ("" if subject == ">" else f"-{_digest(subject)}")
        self._name = whole if re.fullmatch(r"[A-Za-z0-9._-]{1,128}", whole) else f"nats-{own}-{_digest(whole)}"

    def _await(self, coroutine: Coroutine[Any, Any, T], seconds: float = ASKING_SECONDS) -> T:
        """In the thread that answers the server's pings, whatever else the bridge is waiting for."""
        waiting = asyncio.run_coroutine_threadsafe(asyncio.wait_for(coroutine, seconds), self._loop)
        try:
            return waiting.result()
        except BaseException:
            waiting.cancel()
            raise

    # -- the server ----------------------------------------------------------------------------------------------------

    def _first_word(self, options: dict[str, Any]) -> Any:
        """Connect; when the stream was created."""
        deadline, reason = time.monotonic() + FIRST_SECONDS, "no answer"
        while time.monotonic() < deadline:
            try:
                if self._client is None:
                    self._client = self._connected(options, deadline)
                return self._info().created
            except BridgeError:
                raise
            except (nats.errors.Error, OSError, TimeoutError) as error:
                reason = self._told or _words(error)
                self._check(reason)
            time.sleep(0.1)
        raise BridgeError(
            f"no server answered at {', '.join(map(_without_password, self.servers))} in {FIRST_SECONDS:g} s ({reason}): "
            "check --server, that JetStream is on, and the security settings"
        )

    def _connected(self, options: Mapping[str, Any], deadline: float) -> Any:
        """It tries again and again by itself; what is refused for good ends that."""
        connecting = asyncio.run_coroutine_threadsafe(self._connect(options), self._loop)
        while not connecting.done():
            if self._fatal is not None or time.monotonic() > deadline:
                connecting.cancel()
                self._check(self._fatal or "")
                raise TimeoutError("no answer")
            time.sleep(0.02)
        return connecting.result()

    async def _connect(self, options: Mapping[str, Any]) -> Any:
        async def failed(error: Exception) -> None:
            self._note(_words(error))
            if any(text in _words(error) for text in FOR_GOOD):
                self._fatal = _words(error)

        return await nats.connect(
            self.servers,
            name="streamcl-bridge",
            error_cb=failed,
            max_reconnect_attempts=-1,
            reconnect_time_wait=1,
            **{"allow_reconnect": True, **options},
        )

    def _check(self, reason: str) -> None:
        if any(text in reason for text in FOR_GOOD):
            raise BridgeError(f"stream {self.stream}: {reason}")

    def _note(self, reason: str) -> None:
        if reason and reason != self._told:
            self._told = reason
            self.say(f"the server: {reason}")

    def _info(self) -> Any:
        try:
            return self._await(self._client.jetstream(timeout=ASKING_SECONDS).stream_info(self.stream))
        except NotFoundError as error:
            raise BridgeError(f"stream {self.stream}: {error.description or 'not found'}") from None

    # -- as every source -----------------------------------------------------------------------------------------------

    def partitions(self) -> Sequence[int]:
        """One."""
        return (0,)

    def name(self, partition: int) -> str:
        """Of the stream, when it was created, and the subject."""
        return self._name

    def place(self, partition: int, number: int) -> str:
        """Stream and sequence number."""
        return f"stream {self.stream}, message {number}"

    def whole(self, partition: int) -> str:
        """Stream."""
        return f"stream {self.stream}"

    def begin(self, durable: Mapping[int, int]) -> None:
        """As `rewind`: there is one partition."""
        self.rewind(durable)

    def rewind(self, durable: Mapping[int, int]) -> None:
        """What was fetched is forgotten; the next fetch makes a consumer from here."""
        self._next, self._anywhere = durable[0] + 1, durable[0] == 0
        if self._anywhere and self.start.isdecimal():
            self._next = max(int(self.start), 1)
        self._leave()

    def _leave(self) -> None:
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            with contextlib.suppress(nats.errors.Error, OSError, TimeoutError):
                self._await(subscription.unsubscribe())

    def poll(self, most: int, seconds: float) -> Iterator[Record | End]:
        """Raises BridgeError."""
        self._check(self._fatal or "")
        try:
            if self._subscription is None:
                self._subscription, self._counted = self._consume(), 0
            messages = self._fetch(min(max(most, 2), MOST), max(seconds, 0.05))
        except (nats.errors.Error, OSError, TimeoutError) as error:
            self._broken(error)
            time.sleep(seconds)
            return
        yield from self._taken(messages)

    def _broken(self, error: BaseException) -> None:
        """The server is away, or has forgotten the consumer: make another from the next number."""
        reason = _words(error)
        self._check(reason)
        if (
            isinstance(error, APIError)
            and error.code is not None
            and 400 <= error.code < 500
            and error.code not in (404, 408, 409)
        ):
            raise BridgeError(f"stream {self.stream}: {reason}")
        self._note(reason)
        self._subscription = None

    def _consume(self) -> Any:
        """A consumer from the next number on. Raises BridgeError where the stream no longer has what comes next."""
        state = self._info().state
        if self._anywhere and self.start == "latest":
            self._next, self._anywhere = state.last_seq + 1, False
        self._check_range(state.first_seq, state.last_seq)
        config = api.ConsumerConfig(
            deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
            opt_start_seq=self._next,
            ack_policy=api.AckPolicy.NONE,
            inactive_threshold=KEPT_SECONDS,
            mem_storage=True,
            num_replicas=1,
        )
        stream = self._client.jetstream(timeout=ASKING_SECONDS)
        return self._await(stream.pull_subscribe(self.subject, stream=self.stream, config=config))

    def _check_range(self, first: int, last: int) -> None:
        if self._next > last + 1 and self._anywhere:
            raise BridgeError(f"stream {self.stream}: --from {self._next}: the stream has the messages {first} to {last}")
        if self._next > last + 1:
            raise BridgeError(
                f"stream {self.stream}: the daemon holds all up to message {self._next - 1}, the stream ends at {last}: it "
                "has lost its end (an older copy was restored?). To read it from its beginning, give the bridge another "
                "--name"
            )
        if first <= self._next or self._anywhere:
            return
        self._miss(self._next, first)

    def _miss(self, wanted: int, there: int) -> None:
        """Numbers below the stream's first, which it had and has no more."""
        atmost = "" if self.subject == ">" else "at most "
        which = f"{atmost}{there - wanted} messages, {wanted} to {there - 1},"
        if not self.accept_loss:
            raise BridgeError(
                f"stream {self.stream}: {which} were removed (limits, or a purge) before they were read. To go on without "
                "them, start once with --accept-loss"
            )
        self._lost += there - wanted
        self.say(f"stream {self.stream}: {which} are lost; goes on at {there} (--accept-loss)")
        self._next = there

    def _fetch(self, most: int, seconds: float) -> Sequence[Any]:
        return self._await(_fetched(self._subscription, most, seconds), seconds + ASKING_SECONDS)

    def _taken(self, messages: Sequence[Any]) -> Iterator[Record | End]:
        for message in messages:
            place = message.metadata
            if place.sequence.consumer != self._counted + 1:  # one before it was lost on its way
                self._leave()
                return
            self._counted += 1
            number = place.sequence.stream
            if number > self._next and not self._anywhere:
                self._look_behind(number)
            self._next, self._anywhere = number + 1, False
            yield self._record(message, number)
            if place.num_pending == 0:
                yield End(0)
        self._looked = time.monotonic() if messages else self._looked
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            yield from self._look()

    def _record(self, message: Any, number: int) -> Record:
        if self._told:
            self._told = ""
            self.say("the server answers again")
        headers = {name: value.encode() for name, value in (message.headers or {}).items()}
        return Record(0, number, self.stream, message.data, message.subject.encode(), headers)

    def _look_behind(self, number: int) -> None:
        """Numbers are missing: messages deleted one by one, or of other subjects; or removed by limits before they came."""
        try:
            first = self._info().state.first_seq
        except (nats.errors.Error, OSError, TimeoutError):
            return
        if first > self._next:
            self._miss(self._next, min(first, number))

    def _look(self) -> Iterator[End]:
        """Nothing has come for a while: is there nothing, or was it lost on its way, or is the consumer gone?"""
        self._looked = time.monotonic()
        try:
            info = self._await(self._subscription.consumer_info())
        except (nats.errors.Error, OSError, TimeoutError) as error:
            self._broken(error)
            return
        if info.delivered.consumer_seq > self._counted:
            self._leave()
        elif info.num_pending == 0:
            yield End(0)

    def lost(self) -> int:
        """Numbers that limits or a purge had removed; of a subject, at most so many messages."""
        return self._lost

    def close(self) -> None:
        """Acknowledges nothing."""
        with contextlib.suppress(Exception):
            if self._client is not None:
                self._await(self._client.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(ASKING_SECONDS)


async def _fetched(subscription: Any, most: int, seconds: float) -> Sequence[Any]:
    """What comes by then; nothing is no error."""
    try:
        found: Sequence[Any] = await subscription.fetch(most, timeout=seconds)
    except TimeoutError:
        return ()
    return found


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _words(error: BaseException) -> str:
    return str(getattr(error, "description", None) or error) or type(error).__name__


def _without_password(server: str) -> str:
    return re.sub(r"//[^/@]*@", "//...@", server)
