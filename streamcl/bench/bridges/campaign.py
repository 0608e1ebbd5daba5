"""``kill -9`` of a bridge, of the daemon, of its trainer and of the broker at random moments, while numbered records come.

In the end the daemon's log says how often it holds each number: exactly once is the promise. A broker in memory comes back
empty (Kafka, `brokers.Tansu`): it is filled again with the same records at the same offsets, as a disk would have kept
them. A bridge that ends by itself is started again, as its supervisor would; how often, and what it said, is reported.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from streamcl.bench.bridges import stored
from streamcl.bench.bridges.brokers import Broker, NatsServer, Tansu
from streamcl.bench.local import LocalDaemon

TREE = {
    "model": {"factory": "streamcl.models:mlp", "args": {"hidden": [8]}, "classes": 2},
    "train": {"epochs": 1, "batch_size": 256},
}
TOPIC = "numbered"
PARTS = ("bridge", "daemon", "trainer", "broker")
BROKERS = ("kafka", "nats")
PAUSE = 0.01  # seconds between two records
ROUND = 25  # kills of each part, before the records are counted
LONGEST_WAIT = 0.6  # seconds between two kills
END_SECONDS = 600.0


def payload(number: int) -> bytes:
    """A record that says which it is."""
    return json.dumps({"number": number, "half": number / 2, "label": number % 2}).encode()


class Feeder(Protocol):
    """Fills a broker with numbered records, whatever happens to it."""

    broker: Broker
    published: int

    def run(self) -> None:
        """Until `stop`."""

    def kill(self) -> None:
        """Kill the broker, start it again, and have it hold what it held."""

    def stop(self) -> None:
        """No more records; returns when all are in."""


class KafkaFeeder:
    """Record n is at offset n, before and after the broker was killed."""

    def __init__(self, home: Path) -> None:
        self.broker = Tansu(home)
        self.published = 0
        self.violations: list[str] = []
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._client: Any = None

    def begin(self) -> None:
        """Start the broker, with what has been published so far."""
        self.broker.start()
        self.broker.create(TOPIC)
        self._client = self.broker.client()
        for number in range(self.published):
            self._publish(number)
        self._flush()

    def _publish(self, number: int) -> None:
        def delivered(error: Any, message: Any) -> None:
            if error is None and message.offset() != number:
                self.violations.append(f"record {number} has got offset {message.offset()}")

        while True:
            try:
                self._client.produce(TOPIC, payload(number), partition=0, on_delivery=delivered)
                return
            except BufferError:
                self._client.poll(0.1)

    def _flush(self) -> None:
        while self._client.flush(1.0):
            pass

    def run(self) -> None:
        """Until `stop`."""
        while not self._ended.wait(PAUSE):
            with self._lock:
                self._publish(self.published)
                self.published += 1
                self._client.poll(0.0)

    def kill(self) -> None:
        """What the killed broker held is produced again, in its order, by a client that sends nothing of its own again."""
        with self._lock:
            self.broker.kill()
            self._client.purge()
            self._client = None
            self.begin()

    def stop(self) -> None:
        """No more records."""
        self._ended.set()
        self._flush()


class NatsFeeder:
    """Record n is message n + 1; sent again until it is acknowledged, under an id that the server knows it by."""

    def __init__(self, home: Path) -> None:
        self.broker = NatsServer(home)
        self.published = 0
        self.violations: list[str] = []
        self._ended = threading.Event()

    def begin(self) -> None:
        """Start the broker and make the stream."""
        self.broker.start()
        asyncio.run(self._make())

    async def _make(self) -> None:
        import nats

        client = await nats.connect(f"nats://{self.broker.address}")
        await client.jetstream().add_stream(name=TOPIC, subjects=[f"{TOPIC}.>"])
        await client.close()

    def run(self) -> None:
        """Until `stop`."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        import nats

        async def quiet(error: Exception) -> None:
            """It is killed on purpose."""

        client = await nats.connect(
            f"nats://{self.broker.address}", error_cb=quiet, max_reconnect_attempts=-1, reconnect_time_wait=0.05
        )
        stream = client.jetstream()
        owed = False  # the last was sent, and may be stored, but no acknowledgement came
        while owed or not self._ended.is_set():
            owed = True
            with contextlib.suppress(nats.errors.Error, asyncio.TimeoutError, OSError):
                headers = {"Nats-Msg-Id": str(self.published)}
                said = await stream.publish(f"{TOPIC}.all", payload(self.published), timeout=1.0, headers=headers)
                if said.seq != self.published + 1:
                    self.violations.append(f"record {self.published} has become message {said.seq}")
                self.published, owed = self.published + 1, False
            await asyncio.sleep(PAUSE)
        await client.close()

    def kill(self) -> None:
        """Its disk has everything."""
        self.broker.kill()
        self.broker.start()

    def stop(self) -> None:
        """No more records."""
        self._ended.set()


@dataclass(slots=True)
class Bridging:
    """The bridge's process. ended: how often it ended by itself, by what it said last."""

    command: Sequence[str]
    log: Path
    ended: Counter[str] = field(default_factory=Counter)
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, if it does not run."""
        if self.process is not None and self.process.poll() is None:
            return
        if self.process is not None and self.process.returncode != -signal.SIGKILL:
            lines = self.log.read_text(errors="replace").splitlines() or [""]
            self.ended[_without_numbers(lines[-1].replace(str(self.log.parent), "HOME"))] += 1
        self._launch()

    def _launch(self, *more: str) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen([*self.command, *more], stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def finish(self) -> int:
        """Stop it, and let one run to the end; its exit status."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait()
        self._launch("--until-end")
        return self.process.wait(END_SECONDS)


def _without_numbers(text: str) -> str:
    return "".join("N" if each.isdigit() else each for each in text)[:160]


@dataclass(slots=True)
class Killed:
    """What was done, and what was found."""

    kills: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    records: int = 0
    lost: int = 0
    twice: int = 0
    strange: int = 0
    learned: int = 0
    ended: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)

    def add(self, other: Killed) -> None:
        """Another round's."""
        for name in self.__slots__:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def plain(self) -> dict[str, Any]:
        """For a report."""
        return {
            "kills": {part: self.kills[part] for part in PARTS},
            "rounds counted": self.rounds,
            "records": self.records,
            "lost": self.lost,
            "twice": self.twice,
            "unknown": self.strange,
            "rows learned at the boundary": self.learned,
            "bridge ended by itself": dict(self.ended),
            "violations": self.violations[:5],
        }

    @property
    def sound(self) -> bool:
        """Whether every record is there once."""
        return not (self.lost or self.twice or self.strange or self.violations) and self.learned == self.records


def campaign(broker: str, kills: int, seed: int = 0, told: Callable[[Killed], None] = lambda so_far: None) -> Killed:
    """Kill each part at least that many times, in rounds of a new daemon and a new broker; returns what was found."""
    rng, result = random.Random(seed), Killed()
    while not result.violations and (left := kills - min(result.kills[part] for part in PARTS)) > 0:
        result.add(_round(broker, min(left, ROUND), rng))
        told(result)
    return result


def _round(broker: str, kills: int, rng: random.Random) -> Killed:
    """Until each part has been killed so often; then every record is counted."""
    result = Killed(rounds=1)
    with tempfile.TemporaryDirectory(prefix="streamcl-bridge-") as home:
        root = Path(home)
        feeder: Any = KafkaFeeder(root / "broker") if broker == "kafka" else NatsFeeder(root / "broker")
        feeder.begin()
        feeding = threading.Thread(target=feeder.run, daemon=True)
        try:
            with LocalDaemon(TREE, root / "state") as daemon:
                bridge = Bridging(_command(broker, feeder.broker, daemon), root / "bridge.log")
                feeding.start()
                bridge.start()
                try:
                    _harass(daemon, bridge, feeder, kills, rng, result)
                    feeder.stop()
                    feeding.join()
                    status = bridge.finish()
                finally:
                    bridge.kill()
                if status:
                    result.violations.append(f"the last bridge ended with {status}: {bridge.log.read_text()[-500:]}")
                _count(daemon, feeder, result)
                result.ended = bridge.ended
        finally:
            feeder.broker.kill()
    return result


def _command(kind: str, broker: Broker, daemon: LocalDaemon) -> list[str]:
    where = ["--bootstrap", broker.address] if kind == "kafka" else ["--server", f"nats://{broker.address}"]
    own = ["--task", "all", "--rows", "16", "--linger", "0.05", "--state-dir", str(daemon.state_dir)]
    return [sys.executable, "-m", "streamcl", "bridge", kind, TOPIC, *where, *own]


def _harass(
    daemon: LocalDaemon,
    bridge: Bridging,
    feeder: Any,
    kills: int,
    rng: random.Random,
    result: Killed,
) -> None:
    while left := [part for part in PARTS if result.kills[part] < kills]:
        time.sleep(rng.uniform(0.0, LONGEST_WAIT))
        bridge.start()
        (part,) = rng.choices(left, [kills - result.kills[each] for each in left])
        result.kills[_kill(part, daemon, bridge, feeder)] += 1


def _kill(part: str, daemon: LocalDaemon, bridge: Bridging, feeder: Any) -> str:
    """Kill it, and start it again; which it was: the daemon where its trainer waits, after kills, to be started again."""
    match part:
        case "bridge":
            bridge.kill()
            bridge.start()
        case "broker":
            feeder.kill()
        case "trainer":
            with contextlib.suppress(KeyError, ProcessLookupError):
                os.kill(daemon.children()["trainer"], signal.SIGKILL)
                return part
            return _kill("daemon", daemon, bridge, feeder)
        case _:
            daemon.kill_all()
            daemon.start()
    return part


def _count(daemon: LocalDaemon, feeder: Any, result: Killed) -> None:
    found = stored.numbers(daemon.state_dir / "log", "number")
    result.records = feeder.published
    result.violations += feeder.violations[:5]
    result.lost = sum(found[number] == 0 for number in range(feeder.published))
    result.twice = sum(count > 1 for count in found.values())
    result.strange = sum(not 0 <= number < feeder.published for number in found)
    with daemon.admin() as admin:
        admin.boundary("all")
        result.learned = sum(int(task["samples"]) for task in admin.tasks())


def run(kills: int, brokers: Sequence[str], seed: int, out: Path | None) -> int:
    """Run the campaigns, print and write what was found, after every round; 1 if anything was lost or learned twice."""
    from streamcl.bench.versions import versions

    command = f"streamcl bench bridge --kills {kills} --brokers {' '.join(brokers)} --seed {seed}"
    figures: dict[str, Any] = {"benchmark": "bridge", "command": command, "versions": versions()}
    sound = True
    for broker in brokers:
        started = time.monotonic()

        def told(so_far: Killed, broker: str = broker, started: float = started) -> None:
            figures[broker] = so_far.plain() | {"minutes": round((time.monotonic() - started) / 60, 1)}
            print(f"    {broker}: {json.dumps(figures[broker])}", file=sys.stderr, flush=True)
            if out is not None:
                out.write_text(json.dumps(figures, indent=2) + "\n")

        sound &= campaign(broker, kills, seed, told).sound
        print(f"{broker}: {json.dumps(figures[broker], indent=2)}", flush=True)
    return 0 if sound else 1
