"""The processes that share a trainer's work (``train.workers``): who they are, what the first one says to the others.

The trainer is the first. It starts the others, of this machine, itself, and they end with it; under `torchrun` they are
there. All of them see every record, each takes its part of every block of rows (`core.ranks`), and all come to the same
bits, which `agree` compares whenever a record has changed something for good.

Guarantees: one that is gone, or has failed, is noticed by all at the next collective (`Lost`), whichever that is. Then
nobody goes on alone: the first one calls the next generation together (`form`), or ends. While they come together it sees
that those it has started run and do something. Later a wait has no limit of its own: the trainer is watched, the others
that it has started end with it, and those of another machine see in `Calls` that they are waited for, whatever they wait
for themselves. One that an earlier trainer has started, and that has not noticed that one's end, meets nobody.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Protocol

import msgspec
import structlog
import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from streamcl.config import Config
from streamcl.core.ranks import Lost, Ranks, stay_on_this_machine, told
from streamcl.core.reduce import ALONE, Reduction
from streamcl.daemon import linux, words
from streamcl.daemon.channel import Channel
from streamcl.daemon.launch import launched, would_start_again
from streamcl.daemon.nursery import Begun, spawn
from streamcl.errors import ConfigError, Disbanded
from streamcl.learning.failing import Unlearnable
from streamcl.learning.learner import Learner
from streamcl.learning.network import choose_device
from streamcl.storage.state import StateDirectory

ROLE = "worker"
GENERATION, FAILED = "generation", "failed"
START_SECONDS = 600.0  # for all of them to come, and again to find one another
STILL_SECONDS = 60.0  # without any processor time, after which one that is to come never will
LOOK_SECONDS = 0.05  # between two looks for the next generation
FOREVER = timedelta(days=365)


class Team(Protocol):
    """What a trainer needs of those it shares its work with."""

    @property
    def reduction(self) -> Reduction:
        """Of its learner."""

    @property
    def size(self) -> int:
        """How many there are, with this process."""

    def form(self) -> None:
        """Begin anew, with all of them where the checkpoint is."""

    def tell(self, word: words.Word) -> None:
        """Say it to all others; raises Lost."""

    def agree(self, learner: Learner) -> None:
        """Wait until all have come here, and see that they have come to the same; raises Lost."""

    def blamed(self, lost: Lost) -> Unlearnable:
        """Why another could not learn a record, where that is how it was lost; else raises `lost`."""

    def look(self) -> None:
        """See that all are there, as far as that costs nothing; raises Lost."""

    def end(self) -> None:
        """Let the others go."""


class Solo:
    """Nobody else."""

    reduction: Reduction = ALONE
    size = 1

    def form(self) -> None:
        """Nothing to do."""

    def tell(self, word: words.Word) -> None:
        """Nobody hears it."""

    def agree(self, learner: Learner) -> None:
        """It does."""

    def blamed(self, lost: Lost) -> Unlearnable:
        """Nobody is."""
        raise lost

    def look(self) -> None:
        """It is here."""

    def end(self) -> None:
        """Nothing to do."""


SOLO = Solo()


@dataclass(frozen=True, slots=True)
class Place:
    """Of a process among those that share the work. store: where they find one another."""

    store: Store
    rank: int
    size: int
    backend: str


class Group:
    """One process's end of the group, which it enters by `form` (the first one) or `follow` (all others).

    helpers: the processes that this one has started. sign: called now and then while it waits for them. patience: how long
    it waits for others, where `torchrun` would form a group without them.
    """

    def __init__(
        self,
        place: Place,
        helpers: list[Begun],
        sign: Callable[[], None] = lambda: None,
        patience: float | None = None,
    ) -> None:
        self._place, self._helpers, self._sign, self._patience = place, helpers, sign, patience
        self._generation = 0
        self._ranks: Ranks | None = None

    @property
    def reduction(self) -> Reduction:
        """Over its members."""
        assert self._ranks is not None
        return self._ranks

    @property
    def size(self) -> int:
        """How many there are."""
        return self._place.size

    @property
    def generation(self) -> int:
        """The last one that this process has been in, or has begun to enter."""
        return self._generation

    # -- coming together -----------------------------------------------------------------------------------------

    def form(self) -> None:
        """The first one calls all others together, who drop what they were at; raises Lost where one does not come, and
        Disbanded where it may be that none will."""
        self._leave()
        with told():
            called = self._place.store.add(GENERATION, 1)
            self._await(partial(self._here, called), f"not all of the {self.size} processes that share the work came")
        entering = Entering(partial(self._enter, called))
        self._await(entering.done, f"the {self.size} processes that share the work did not find one another")
        entering.found()

    def _here(self, called: int) -> bool:
        return self._place.store.check([_here_for(called, rank) for rank in range(1, self.size)])

    def _await(self, done: Callable[[], bool], otherwise: str) -> None:
        """Until then, as long as those that were started here run and do something; else raises Lost, Disbanded."""
        began = time.monotonic()
        pulses = [Pulse(begun.process.pid) for begun in self._helpers]
        while not done():
            self.look()
            self._sign()
            if (rank := _still(pulses)) is not None:
                raise Lost(f"{otherwise}: process {rank} hangs (no processor time for {STILL_SECONDS:g} s)")
            waited = time.monotonic() - began
            if self._patience is not None and waited > self._patience:
                raise Disbanded(f"{otherwise} within {self._patience:g} s; ending, so that torchrun forms another group")
            if waited > START_SECONDS:
                raise Lost(f"{otherwise} within {START_SECONDS:g} s")
            time.sleep(LOOK_SECONDS)

    def follow(self) -> None:
        """Another comes to the next generation, once it is called; raises Lost where nobody can be asked for it."""
        self._leave()
        with told():
            while (called := self._place.store.add(GENERATION, 0)) <= self._generation or self._been_at(called):
                time.sleep(LOOK_SECONDS)
            self._place.store.set(_here_for(called, self._place.rank), "")
        self._enter(called)

    def _been_at(self, called: int) -> bool:
        """Whether another life of this process has: the others cannot be joined there any more."""
        return called > 0 and self._place.store.check([_here_for(called, self._place.rank)])

    def _enter(self, generation: int) -> None:
        self._generation = generation
        place = self._place
        store = PrefixStore(f"generation-{generation}", place.store)
        with told():
            dist.init_process_group(
                place.backend,
                timeout=FOREVER,
                world_size=place.size,
                rank=place.rank,
                store=store,
                device_id=_device(place),
            )
        self._ranks = Ranks(alike=launched() is None)

    def _leave(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()

    # -- what is said --------------------------------------------------------------------------------------------

    def tell(self, word: words.Word) -> None:
        """Say it to all others, who `hear` it; raises Lost."""
        packet = torch.frombuffer(bytearray(words.encode(word)), dtype=torch.uint8)
        with told():
            dist.broadcast(torch.tensor([len(packet)]), 0)
            dist.broadcast(packet, 0)

    def hear(self) -> words.Word:
        """What the first one says next; raises Lost."""
        size = torch.zeros(1, dtype=torch.int64)
        with told():
            dist.broadcast(size, 0)
            packet = torch.empty(int(size), dtype=torch.uint8)
            dist.broadcast(packet, 0)
        return words.decode(packet.numpy().tobytes())

    def agree(self, learner: Learner) -> None:
        """Compare digests of what all have learned; raises Lost."""
        own = torch.tensor([_digest(learner)])
        every = [torch.zeros_like(own) for _ in range(self.size)]
        with told():
            dist.all_gather(every, own)
        if any(not torch.equal(each, own) for each in every):
            raise Lost(
                f"the processes that share the work have learned different parameters (digests {[int(e) for e in every]}); "
                "expected one machine's arithmetic in all of them: the same processor, PyTorch and threads"
            )

    def fail(self, error: Unlearnable) -> None:
        """Say why this process cannot go on, for the first one to find."""
        self._place.store.set(f"{FAILED}-{self._generation}", json.dumps([error.stage, str(error)]))

    def blamed(self, lost: Lost) -> Unlearnable:
        """What another said in this generation."""
        key = f"{FAILED}-{self._generation}"
        if not self._place.store.check([key]):
            raise lost
        stage, reason = json.loads(self._place.store.get(key))
        return Unlearnable(stage, reason)

    def look(self) -> None:
        """Whether the processes started here run."""
        for rank, helper in enumerate(self._helpers, start=1):
            if (status := helper.process.poll()) is not None:
                raise Lost(f"process {rank} of those that share the work has ended, with status {status}")

    def end(self) -> None:
        """End the processes started here, which have nothing to keep."""
        for helper in self._helpers:
            helper.abandon()
        self._helpers = []


class Entering:
    """A generation is entered beside whoever waits for it: it would wait for ever for one that ends meanwhile."""

    def __init__(self, enter: Callable[[], None]) -> None:
        self._enter = enter
        self._error: Exception | None = None
        self._thread = Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._enter()
        except Exception as error:  # the caller's, in whose place this is done
            self._error = error

    def done(self) -> bool:
        """Whether it has been entered, or cannot be."""
        return not self._thread.is_alive()

    def found(self) -> None:
        """Raise Lost, or whatever it was, where it cannot be."""
        if self._error is not None:
            raise self._error


class Pulse:
    """Whether a process does anything: it has taken processor time lately."""

    def __init__(self, pid: int) -> None:
        self._pid, self._seconds, self._since = pid, linux.processor_seconds(pid), time.monotonic()

    def silent(self) -> float:
        """For how many seconds it has not."""
        seconds, now = linux.processor_seconds(self._pid), time.monotonic()
        if seconds != self._seconds:
            self._seconds, self._since = seconds, now
        return now - self._since


def _still(pulses: Sequence[Pulse]) -> int | None:
    """The rank of one that hangs."""
    return next((rank for rank, pulse in enumerate(pulses, start=1) if pulse.silent() > STILL_SECONDS), None)


class Calls:
    """What a process on another machine knows of the generations, beside whatever it waits for: a collective whose other
    end went with the link, or a generation whose first process died while it was entered, never ends by itself.

    group: that process's. store: a connection of its own, since a wait keeps the other one busy.
    """

    def __init__(self, group: Group, store: Store) -> None:
        self._group, self._store = group, store

    def missed(self) -> bool:
        """Whether a generation has been called that it has not come to yet, or nobody can be asked any more."""
        try:
            return self._store.add(GENERATION, 0) > self._group.generation
        except RuntimeError:  # dist.DistError: its host is gone
            return True


def _device(place: Place) -> torch.device | None:
    return torch.device("cuda", torch.cuda.current_device()) if "nccl" in place.backend else None


def _digest(learner: Learner) -> int:
    """Of the parameters as they are."""
    digest = hashlib.blake2b(digest_size=7)
    if learner.model is not None:
        digest.update(learner.model.network.theta().tobytes())
    return int.from_bytes(digest.digest(), "little")


# -- how they begin ----------------------------------------------------------------------------------------------------


def lead(config: Config, sign: Callable[[], None]) -> Team:
    """The trainer's team, as configured, all of it there; raises ConfigError, Lost, Disbanded.

    sign: called while they come.
    """
    if launched() is not None:
        elastic = config.train.elastic and would_start_again()
        patience = min(config.train.watchdog_seconds, START_SECONDS) if elastic else None
        group = Group(_launched_place(config), [], sign, patience)
    elif config.train.workers == 1:
        return SOLO
    else:
        group = _begin(config, sign)
    try:
        group.form()
    except BaseException:
        group.end()
        raise
    return group


def _begin(config: Config, sign: Callable[[], None]) -> Group:
    """Start the others, on this machine."""
    size = config.train.workers
    path = _fresh(StateDirectory(Path(config.state_dir)).ranks)
    stay_on_this_machine()
    backend = _prepare(config, 0, size)
    store = _meeting(path, size)
    helpers = []
    for rank in range(1, size):
        begun = spawn(ROLE)
        helpers.append(begun)
        channel = Channel(begun.end)
        channel.send(words.Configuration(tree=msgspec.to_builtins(config)))
        channel.send(words.Join(store=path, rank=rank, size=size))
    structlog.get_logger().info("the work is shared", processes=size)
    return Group(Place(store, 0, size, backend), helpers, sign)


def _fresh(prefix: Path) -> str:
    """A file that no process which an earlier trainer has started can know; theirs go."""
    prefix.parent.mkdir(parents=True, exist_ok=True)
    for old in prefix.parent.glob(f"{prefix.name}*"):
        old.unlink(missing_ok=True)
    descriptor, path = tempfile.mkstemp(dir=prefix.parent, prefix=f"{prefix.name}-")
    os.close(descriptor)
    return path


def _here_for(generation: int, rank: int) -> str:
    return f"here-{generation}-{rank}"


def joined(config: Config, word: words.Join) -> Group:
    """A process that the trainer has started enters its group."""
    backend = _prepare(config, word.rank, word.size)
    group = Group(Place(_meeting(word.store, word.size), word.rank, word.size, backend), [])
    group.follow()
    return group


def launched_follower(config: Config) -> tuple[Group, Calls]:
    """A process of `torchrun`'s, other than the first, which has still to `follow`."""
    group = Group(_launched_place(config), [])
    return group, Calls(group, next(rendezvous("env://"))[0])


def _launched_place(config: Config) -> Place:
    store, rank, size = next(rendezvous("env://"))
    return Place(store, rank, size, _prepare(config, int(os.environ.get("LOCAL_RANK", rank)), _here(size)))


def _here(size: int) -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", size))


def _meeting(path: str, size: int) -> Store:
    """Where processes of one machine find one another: a file that nobody else can read."""
    return dist.FileStore(path, size)  # type: ignore[attr-defined]


def _prepare(config: Config, local_rank: int, here: int) -> str:
    """Give this process its share of the machine; returns the backend. Raises ConfigError."""
    device = choose_device(config.train.device)
    if device.type != "cuda":
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, (os.cpu_count() or 1) // here))
        return "gloo"
    if here > torch.cuda.device_count():
        raise ConfigError(f"train.workers: expected at most a process a GPU ({torch.cuda.device_count()} here), got {here}")
    if here > 1 and device.index is not None:
        raise ConfigError(
            f"train.device: expected cuda or auto, of which each process takes one, got {config.train.device!r}"
        )
    torch.cuda.set_device(local_rank)
    return "cpu:gloo,cuda:nccl"
