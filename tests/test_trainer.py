"""The trainer's parts, each by itself."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl.config import from_tree
from streamcl.daemon import commit, words
from streamcl.daemon.channel import Channel
from streamcl.daemon.orders import Orders
from streamcl.daemon.trainer import Trainer
from streamcl.errors import StreamclError
from streamcl.storage.disk import Disk
from streamcl.storage.log import LogWriter
from streamcl.storage.records import Batch, Boundary, array_spec

X, Y = np.random.default_rng(0).normal(size=(8, 3)).astype("<f4"), np.arange(8) % 3


@pytest.fixture
def ends() -> Iterator[tuple[Orders, Channel, Channel]]:
    """Orders, and the supervisor's and ingest's ends."""
    (up, supervisor), (side, ingest) = ([Channel(end) for end in Channel.pair()] for _ in range(2))
    yield Orders(up, side), supervisor, ingest
    for channel in (up, supervisor, side, ingest):
        channel.close()


def test_orders_hold_until_something_else_is_said(ends: tuple[Orders, Channel, Channel]) -> None:
    orders, supervisor, ingest = ends
    for word in (words.Durable(lsn=3), words.Pause(), words.WriteCheckpoint(number=1), words.TryModel(number=2)):
        ingest.send(word)
    assert list(orders.hear()) == [words.Pause(), words.TryModel(number=2)]
    assert (orders.durable, orders.paused, orders.take_checkpoints(), orders.take_checkpoints()) == (3, True, [1], [])
    assert not orders.drained(3)
    supervisor.send(words.Stop(drain=True))
    assert list(orders.hear()) == []
    assert (orders.drained(2), orders.drained(3)) == (False, True)
    supervisor.send(words.Stop(drain=False))
    assert list(orders.hear()) == []
    assert orders.drained(2)
    supervisor.close()
    list(orders.hear())
    assert orders.abandoned


@pytest.mark.parametrize("word", [words.Recovered(next_lsn=0), words.Stop(drain=True)])
def test_a_word_of_ingest_that_is_not_for_the_trainer_is_an_error(
    ends: tuple[Orders, Channel, Channel], word: words.Word
) -> None:
    orders, _, ingest = ends
    ingest.send(word)
    with pytest.raises(StreamclError, match="the trainer expected no"):
        list(orders.hear())


class NotedDisk(Disk):
    """Notes what becomes of which file; full at one operation, once."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.full_at: str | None = None

    def create(self, path: Path) -> int:
        self._note(f"write {path.name}")
        return super().create(path)

    def replace(self, source: Path, target: Path) -> None:
        self._note(f"take {target.name}")
        super().replace(source, target)

    def unlink(self, path: Path) -> None:
        self._note(f"unlink {path.suffix}")
        super().unlink(path)

    def _note(self, what: str) -> None:
        if what == self.full_at:
            self.full_at = None
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.done.append(what)


def learn_a_task(home: Path, disk: Disk) -> tuple[Trainer, list[words.Word]]:
    """A trainer in factor mode that has learned one task; what it said to ingest."""
    (up, _), (side, ingest) = ([Channel(end) for end in Channel.pair()] for _ in range(2))
    tree: dict[str, Any] = {"model": {"factory": "streamcl.models:linear", "classes": 3}, "train": {"epochs": 1}}
    config = from_tree({**tree, "posterior": {"mode": "factors"}, "state_dir": str(home)})
    home.mkdir()
    writer = LogWriter.recover(home / "log", Disk())
    trainer = Trainer(config, up, side, disk, pause=lambda channels, seconds: None)
    trainer.recover()
    specs = (array_spec("x", X), array_spec("y", Y))
    batch = Batch(producer="p", epoch=0, seq=1, task="a", samples=8, arrays=specs, new_labels=(0, 1, 2), outputs=(0, 1, 2))
    writer.append(batch, [X.data.cast("B"), Y.data.cast("B")])
    writer.append(Boundary(producer="p", epoch=0, seq=2, task="a"))
    trainer.orders.durable = writer.sync()
    trainer.turn()
    trainer.turn()
    return trainer, list(ingest.receive())


def test_what_is_learned_is_dropped_only_after_the_checkpoint_that_has_it(tmp_path: Path) -> None:
    disk = NotedDisk()
    trainer, said = learn_a_task(tmp_path / "state", disk)
    factor = next(number for number, what in enumerate(disk.done) if what.endswith(".factor"))
    assert factor < disk.done.index("take checkpoint") < disk.done.index("unlink .seg"), disk.done
    kinds = [type(word) for word in said if isinstance(word, words.Checkpointed | words.Dropped | words.Done)]
    assert kinds == [words.Checkpointed, words.Dropped, words.Done]
    assert trainer.commit.checkpointed_lsn == trainer.learner.next_lsn == 2


def test_on_a_full_disk_a_boundary_waits_and_says_so(tmp_path: Path) -> None:
    disk = NotedDisk()
    disk.full_at = "take checkpoint"
    trainer, said = learn_a_task(tmp_path / "state", disk)
    (reason,) = [word.full for word in said if isinstance(word, words.Progress) and word.full is not None]
    assert "No space left" in reason
    assert trainer.full is None
    assert any(isinstance(word, words.Done) for word in said)


def test_a_commit_yields_what_it_waits_for(tmp_path: Path) -> None:
    disk = NotedDisk()
    trainer, _ = learn_a_task(tmp_path / "state", disk)
    disk.full_at = "take checkpoint"
    events = list(trainer.commit.checkpoint(trainer.replay))
    assert [type(event) for event in events] == [commit.Full, commit.Written]
