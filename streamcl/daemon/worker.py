"""A process that shares the trainer's work: applies the records that it is told to, as the trainer does, and keeps nothing.

Guarantees: reads the state directory and writes nothing there; ends with the trainer that has started it. What `torchrun`
has started, perhaps on another machine, comes when it is called together again, whatever it hangs in; if need be, it begins
anew.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from threading import Thread
from typing import NoReturn

import structlog
import torch

from streamcl import models
from streamcl.config import Config
from streamcl.core.ranks import Lost
from streamcl.daemon import linux, words
from streamcl.daemon.channel import Channel, wait
from streamcl.daemon.commit import EarlierStates
from streamcl.daemon.group import Calls, Group, joined, launched_follower
from streamcl.daemon.logs import configure
from streamcl.entries import standing
from streamcl.errors import StreamclError
from streamcl.learning.failing import Unlearnable
from streamcl.learning.learner import Learner
from streamcl.replay import LogStore, Replay, run_through
from streamcl.storage import checkpoint, ledger, log, quarantine
from streamcl.storage.disk import Disk
from streamcl.storage.factors import Factors
from streamcl.storage.state import StateDirectory
from streamcl.storage.versions import Versions

LOOK_SECONDS = 0.5  # between two looks whether the others have called
MISSED = 10  # looks in a row, after which a process that hears of the loss of another would have come
DESCRIPTORS = 65_536


def run(config: Config, up: Channel) -> None:
    """The process's main function; ends with the one that started it."""
    linux.die_with_parent()
    word = _first_word(up)
    if word is not None:
        Thread(target=_end_with, args=[up], daemon=True).start()
        work(config, joined(config, word))


def under_torchrun(config: Config) -> int:
    """As a process that `torchrun` has started beside the daemon's; it ends this one."""
    configure("worker", config.log)
    try:
        group, calls = launched_follower(config)
        Thread(target=_keep_up, args=[calls], daemon=True).start()
        group.follow()
        work(config, group)
    except StreamclError as error:
        structlog.get_logger().error("cannot go on", reason=str(error))
    return 1


def _keep_up(calls: Calls) -> None:
    """Begin anew once the others wait for this process and it does not come, whatever it hangs in."""
    missed = 0
    while missed < MISSED:
        time.sleep(LOOK_SECONDS)
        missed = missed + 1 if calls.missed() else 0
    structlog.get_logger().warning("the others have gone on without this process, which begins anew")
    os.closerange(3, DESCRIPTORS)  # connections that are none any more, and a GPU's memory
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _end_with(up: Channel) -> None:
    """End this process, whatever it waits for, once its trainer is gone."""
    while not up.closed:
        wait([up])
        for _ in up.receive():
            pass
    os._exit(0)


def _first_word(up: Channel) -> words.Join | None:
    while not up.closed:
        wait([up])
        for word in up.receive():
            if isinstance(word, words.Join):
                return word
            words.unexpected(word, "worker")
    return None


def work(config: Config, group: Group) -> NoReturn:
    """Do what the first one says, generation after generation."""
    models.load_factory(config.model.factory)
    torch.set_flush_denormal(True)
    worker = Worker(config, group)
    while True:
        try:
            worker.hear()
        except Unlearnable as error:
            group.fail(error)
            group.follow()
        except Lost as error:
            structlog.get_logger().info("waiting to be called together again", reason=str(error))
            group.follow()


class Worker:
    """One learner beside the trainer's, restored and fed as that is."""

    def __init__(self, config: Config, group: Group) -> None:
        self.config, self.group = config, group
        self.state = StateDirectory(Path(config.state_dir))
        self.reader = log.LogReader(self.state.log)
        self.replay = self._fresh()

    def _fresh(self) -> Replay:
        disk = Disk()
        factors = Factors(self.state.factors, disk)
        past = EarlierStates(self.state.path, Versions(self.state.path, disk))
        return Replay(Learner(self.config, LogStore(self.reader), factors, past, reduction=self.group.reduction))

    def hear(self) -> None:
        """Do one thing; raises Unlearnable, Lost."""
        match self.group.hear():
            case words.Restore(saved=saved):
                self._restore(saved)
            case words.Apply(lsn=lsn, wary=wary):
                self._apply(lsn, wary)
            case word:
                words.unexpected(word, "worker")

    def _restore(self, saved: bool) -> None:
        """Take over what the trainer does: the checkpoint, if there is one."""
        self.reader = log.LogReader(self.state.log)
        self.replay = self._fresh()
        learner = self.replay.learner
        learner.wary = quarantine.failures(quarantine.load(self.state.path))
        if saved:
            found = checkpoint.read(self.state.path)
            self.replay.restore(found.meta, found.tensors, standing(ledger.read(self.state.path, found.meta.ledger)))
        self.group.agree(learner)

    def _apply(self, lsn: int, wary: dict[str, int]) -> None:
        learner = self.replay.learner
        learner.wary = {lsn: wary} if wary else {}
        if run_through(self.replay.apply(next(iter(self.reader.read(lsn, lsn + 1))))) is not None:
            self.group.agree(learner)
            self.reader.forget(learner.needed)
