"""The trainer's parts, each by itself."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl import Learner, entries
from streamcl.config import from_tree
from streamcl.daemon import commit, memory, words
from streamcl.daemon.channel import Channel
from streamcl.daemon.orders import Orders
from streamcl.daemon.tasks import Tasks
from streamcl.daemon.trainer import Trainer
from streamcl.entries import Standing
from streamcl.errors import ModelRefused, Refused, StreamclError
from streamcl.learning.failing import MOST_FAILURES
from streamcl.learning.fitting import Fitting
from streamcl.protocol.session import StreamSession, Terms
from streamcl.storage import beside, checkpoint, container, published, quarantine
from streamcl.storage.beside import Beside
from streamcl.storage.disk import Disk, SyncFailed
from streamcl.storage.log import LogWriter
from streamcl.storage.records import Batch, Boundary, array_spec

X, Y = np.random.default_rng(0).normal(size=(8, 3)).astype("<f4"), np.arange(8) % 3
PATIENCE = 60.0
SPECS = (array_spec("x", X), array_spec("y", Y))


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

    def sync_directory(self, path: Path) -> None:
        self._note(f"sync {path.name}")
        super().sync_directory(path)

    def _note(self, what: str) -> None:
        if what == self.full_at:
            self.full_at = None
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self.done.append(what)


class Held(Beside):
    """Does nothing until it is let."""

    def begin(self, action: Callable[[], None]) -> None:
        self.may = threading.Event()

        def once_let() -> None:
            assert self.may.wait(PATIENCE)
            action()

        super().begin(once_let)

    def let(self) -> None:
        self.may.set()
        assert self.ended(PATIENCE)


class Training:
    """A trainer amid a task, fed batch by batch; checkpoints are due all the time, and written when they are let."""

    def __init__(self, home: Path, disk: Disk | None = None) -> None:
        (up, self.supervisor), (side, self.ingest) = ([Channel(end) for end in Channel.pair()] for _ in range(2))
        tree: dict[str, Any] = {"model": {"factory": "streamcl.models:linear", "classes": 3}, "train": {"epochs": 1}}
        self.beside, self.home, self.sent = Held(), home, 0
        home.mkdir(exist_ok=True)
        self.log = LogWriter.recover(home / "log", Disk())
        self.trainer = Trainer(
            from_tree({**tree, "state_dir": str(home)}),
            up,
            side,
            disk,
            pause=lambda channels, seconds: None,
            beside=self.beside,
            checkpoint_seconds=0.0,
        )
        self.trainer.recover()

    def batch(self) -> None:
        new = (0, 1, 2) if self.sent == 0 else ()
        self._append(Batch(**self._own(), samples=8, arrays=SPECS, new_labels=new, outputs=new), X, Y)

    def boundary(self) -> None:
        self._append(Boundary(**self._own()))

    def _own(self) -> dict[str, Any]:
        self.sent += 1
        return {"producer": "p", "epoch": 0, "task": "t", "seq": self.sent}

    def _append(self, record: Batch | Boundary, *arrays: Any) -> None:
        self.log.append(record, [array.data.cast("B") for array in arrays])
        self.trainer.orders.durable = self.log.sync()
        self.trainer.turn()

    def said(self, kind: type[words.Word]) -> list[Any]:
        return [word for word in self.ingest.receive() if isinstance(word, kind)]

    def on_disk(self) -> int:
        saved = checkpoint.read_meta(self.home)
        return 0 if saved is None else saved.next_lsn


def test_a_checkpoint_written_beside_counts_once_it_is_there_and_has_what_was_copied(tmp_path: Path) -> None:
    training = Training(tmp_path / "state")
    training.batch()
    before = training.trainer.replay.snapshot(0)[1]["theta"].copy()
    training.batch()
    assert training.said(words.Checkpointed) == []
    assert (training.on_disk(), training.trainer.commit.checkpointed_lsn) == (0, 0)
    training.beside.let()
    training.batch()
    (said,) = training.said(words.Checkpointed)
    assert (said.batches, said.sequences, said.numbers) == (1, {"p": 1}, [])
    saved = checkpoint.read(training.home)
    assert saved.meta.next_lsn == training.trainer.commit.checkpointed_lsn == 1
    np.testing.assert_array_equal(saved.tensors["theta"], before)
    assert (training.trainer.replay.snapshot(0)[1]["theta"] != before).any()


def test_memory_for_a_large_copy_is_made_beside_training_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "PREPARED_BYTES", 0)
    training = Training(tmp_path / "state")
    training.batch()
    training.beside.let()
    training.batch()
    assert training.said(words.Checkpointed) == []
    training.beside.let()
    training.batch()
    assert [said.batches for said in training.said(words.Checkpointed)] == [2]
    assert training.on_disk() == 2


def test_who_asks_for_a_checkpoint_is_not_answered_with_an_older_one(tmp_path: Path) -> None:
    training = Training(tmp_path / "state")
    training.batch()
    training.trainer.orders.checkpoints.append(7)
    threading.Timer(0.1, training.beside.may.set).start()
    training.batch()
    assert [(said.batches, said.numbers) for said in training.said(words.Checkpointed)] == [(1, []), (2, [7])]
    assert training.on_disk() == 2


def test_a_boundary_waits_for_what_is_written_beside_so_that_nothing_older_replaces_it(tmp_path: Path) -> None:
    training = Training(tmp_path / "state")
    training.batch()
    threading.Timer(0.1, training.beside.may.set).start()
    training.boundary()
    assert [said.batches for said in training.said(words.Checkpointed)] == [1, 1]
    assert training.on_disk() == 2
    assert training.trainer.commit.begun is None


def test_on_a_full_disk_training_waits_for_room_at_the_next_record(tmp_path: Path) -> None:
    disk = NotedDisk()
    training = Training(tmp_path / "state", disk)
    training.batch()
    disk.full_at = "write checkpoint.tmp"
    training.beside.let()
    assert training.on_disk() == 0
    disk.full_at = "write checkpoint.tmp"
    training.batch()
    assert any(said.full for said in training.said(words.Progress))
    assert training.on_disk() == 2
    assert training.trainer.full is None


def test_an_error_of_the_disk_beside_ends_the_trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training(tmp_path / "state")
    training.batch()

    def fail(fd: int) -> None:
        raise SyncFailed("the disk is broken")

    monkeypatch.setattr(training.trainer.commit.disk, "sync_data", fail)
    training.beside.let()
    with pytest.raises(SyncFailed):
        training.batch()
    assert training.on_disk() == 0


def test_where_no_copy_fits_training_waits_and_people_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "_left_of_group", lambda: 100)
    training = Training(tmp_path / "state")
    for number in (1, 2):
        training.batch()
        assert training.on_disk() == number
    (said,) = training.said(words.Noted)
    assert "more than half of the memory that is left" in said.text


KINDS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "diagonal": {"posterior": {"curvature": "diagonal", "expectation": "mode"}},
    "kronecker": {"posterior": {"curvature": "kronecker"}},
    "full": {"posterior": {"curvature": "full"}},
    "with factors": {"posterior": {"mode": "factors"}},
    "online": {"posterior": {"mode": "online"}},
    "exact": {"model": {"learner": "exact", "args": {"width": 6}}},
    "exact, forgetting": {"model": {"learner": "exact", "args": {"width": 6}}, "posterior": {"half_life": 40.0}},
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_checkpoint_written_beside_does_not_copy_is_only_ever_replaced(kind: str) -> None:
    small = {"model": {"args": {"hidden": [4]}, "classes": 3}, "train": {"epochs": 1}}
    tree = KINDS[kind] if "model" in KINDS[kind] else {**small, **KINDS[kind]}
    learner = Learner(tree)
    learner.observe(X, Y, task="a")
    learner.boundary("a")
    taken: list[tuple[Any, bytes]] = []

    def take() -> None:
        arrays = learner._replay.snapshot(0)[1]
        shared = [array for name, array in arrays.items() if name.startswith(commit.REPLACED)]
        assert shared
        taken.extend((array, array.tobytes()) for array in shared)

    revisits = "mode" in tree.get("posterior", {})
    for task in ("b", "a") if revisits else ("b", "c"):
        if task == "a":
            learner.revisit("a")
        for _ in range(2):
            learner.observe(X, Y, task=task)
            take()
        learner.boundary(task)
    assert all(array.tobytes() == bytes_then for array, bytes_then in taken)


def learn_a_task(home: Path, disk: Disk) -> tuple[Trainer, list[words.Word]]:
    """A trainer in factor mode that has learned one task; what it said to ingest."""
    (trainer, said), *_ = learn_tasks(home, disk, 1)
    return trainer, said


def learn_tasks(home: Path, disk: Disk, tasks: int) -> Iterator[tuple[Trainer, list[words.Word]]]:
    """The trainer after each of so many tasks, with one version kept; what it said to ingest of it."""
    (up, _), (side, ingest) = ([Channel(end) for end in Channel.pair()] for _ in range(2))
    tree: dict[str, Any] = {"model": {"factory": "streamcl.models:linear", "classes": 3}, "train": {"epochs": 1}}
    config = from_tree({**tree, "posterior": {"mode": "factors", "keep": 1}, "state_dir": str(home)})
    home.mkdir()
    writer = LogWriter.recover(home / "log", Disk())
    trainer = Trainer(config, up, side, disk, pause=lambda channels, seconds: None)
    trainer.recover()
    shared: dict[str, Any] = {"producer": "p", "epoch": 0}
    for number in range(tasks):
        new = (0, 1, 2) if number == 0 else ()
        shared |= {"task": f"task {number}"}
        batch = Batch(seq=2 * number + 1, samples=8, arrays=SPECS, new_labels=new, outputs=new, **shared)
        writer.append(batch, [X.data.cast("B"), Y.data.cast("B")])
        writer.append(Boundary(seq=2 * number + 2, **shared))
        trainer.orders.durable = writer.sync()
        trainer.turn()
        trainer.turn()
        yield trainer, list(ingest.receive())


def test_what_is_learned_is_dropped_only_after_the_checkpoint_that_has_it(tmp_path: Path) -> None:
    disk = NotedDisk()
    trainer, said = learn_a_task(tmp_path / "state", disk)
    factor = next(number for number, what in enumerate(disk.done) if what.endswith(".factor"))
    assert factor < disk.done.index("take checkpoint") < disk.done.index("unlink .seg"), disk.done
    kinds = [type(word) for word in said if isinstance(word, words.Checkpointed | words.Dropped | words.Done)]
    assert kinds == [words.Checkpointed, words.Dropped, words.Done]
    assert trainer.commit.checkpointed_lsn == trainer.learner.next_lsn == 2


def test_a_boundary_syncs_no_directory_twice(tmp_path: Path) -> None:
    disk = NotedDisk()
    learned, behind = learn_tasks(tmp_path / "state", disk, 4), [0]
    for trainer, _ in learned:
        behind.append(len(disk.done))
        assert trainer.commit.checkpointed_lsn == trainer.learner.next_lsn
    done = disk.done[behind[-2] :]
    assert trainer.commit.versions.numbers() == [3, 4]
    assert done.count("unlink .checkpoint") == 2, done  # the version beyond the bound, and what may have the new one's name
    assert [what for what in done if what.startswith("sync")] == ["sync factors", "sync state", "sync versions", "sync log"]


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


def test_parameters_that_a_full_disk_has_no_room_for_are_published_once_there_is_room_and_nothing_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training = Training(tmp_path / "state")
    trainer, written = training.trainer, container.pack

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    training.batch()
    trainer._publish(force=True)
    shown = published.read(trainer.state.parameters)
    monkeypatch.setattr(container, "pack", full)
    training.batch()
    trainer._publish(force=True)
    assert "readers get older parameters" in str(trainer.publisher.full)
    assert len(list(trainer.state.parameters.parent.glob("parameters.*"))) == 1
    still = published.read(trainer.state.parameters)
    assert shown is not None
    assert still is not None
    assert still[0] == shown[0]
    monkeypatch.setattr(container, "pack", written)
    trainer._publish(force=True)
    assert trainer.publisher.full is None
    after = published.read(trainer.state.parameters)
    assert after is not None
    assert after[0]["position"] == 2


def test_a_record_that_cannot_even_be_passed_over_is_said_to_be_in_the_way_and_tried_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamcl.daemon.trainer.HELP_SECONDS", 0.0)
    begun = Fitting.begin

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory on this device")

    monkeypatch.setattr(Fitting, "begin", fails)
    training = Training(tmp_path / "state")
    training.batch()
    for _ in range(MOST_FAILURES + 3):
        training.trainer.turn()
    assert len(training.trainer.commit.failures) == MOST_FAILURES  # and no more, however often it is tried
    said = training.said(words.Trouble)
    assert {each.role for each in said} == {"learning"}
    assert "no memory on this device" in said[-1].reason
    assert training.trainer.learner.next_lsn == 0
    monkeypatch.setattr(Fitting, "begin", begun)
    training.trainer.turn()
    assert training.trainer.learner.next_lsn == 1
    assert [each.reason for each in training.said(words.Trouble)] == [None]


def test_a_learner_in_process_does_not_try_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Learner({"model": {"factory": "streamcl.models:linear", "classes": 3}})
    begun = Fitting.begin

    def fails(*_: Any, **__: Any) -> None:
        raise RuntimeError("no memory on this device")

    monkeypatch.setattr(Fitting, "begin", fails)
    with pytest.warns(RuntimeWarning), pytest.raises(Refused, match=r"no memory .* cannot be passed over") as refused:
        learner.observe(X, Y, task="t")
    assert refused.value.code == "unlearnable"
    monkeypatch.setattr(Fitting, "begin", begun)
    learner.observe(X, Y, task="t")
    assert learner.boundary("t")["samples"] == len(X)


def test_a_boundary_is_not_over_before_its_task_can_be_told(tmp_path: Path) -> None:
    training = Training(tmp_path / "state")
    training.batch()
    threading.Timer(0.1, training.beside.may.set).start()
    training.boundary()
    said = [word for word in training.ingest.receive() if isinstance(word, words.Progress | words.Done)]
    places = [place for place, word in enumerate(said) if isinstance(word, words.Done)]
    states = [word.state for word in said[: places[0]] if isinstance(word, words.Progress)]
    assert "consolidating" in states
    assert states.index("idle", states.index("consolidating")) == len(states) - 1  # directly before it


def test_a_model_that_cannot_be_made_again_in_the_midst_of_a_failure_ends_this_process_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the daemon, as `ModelRefused` would: what ails it may pass, as with no memory on a device."""
    training = Training(tmp_path / "state")
    training.batch()

    def refused(*_: Any) -> None:
        raise ModelRefused("no memory")

    monkeypatch.setattr(training.trainer, "recover", refused)
    with pytest.raises(RuntimeError, match="cannot be made again: no memory"):
        training.trainer._begin_anew()


def test_words_that_cannot_be_written_do_not_keep_a_record_from_being_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise ValueError("bad \udcff text")

    monkeypatch.setattr(Fitting, "take", fails)
    training = Training(tmp_path / "state")
    training.batch()
    training.trainer.turn()
    assert [failure.reason for failure in training.trainer.commit.failures] == ["task 't': ValueError: bad ? text"]
    assert training.trainer.learner.next_lsn == 1


def test_the_reason_of_a_streams_later_task_is_found_by_its_records(tmp_path: Path) -> None:
    """Its failures are told under the name that its producer uses."""
    failure = quarantine.Failure(lsn=7, stage="boundary", task="V", producer="p", seq=3, reason="why", time=0.0)
    kept = Standing(held={"V.3": entries.Held(task="V.3", lsn=8, samples=50, first_lsn=6, end_lsn=9)})
    tasks = Tasks(StreamSession(Terms()), tmp_path, kept, [failure])
    assert tasks.reason("V.3") == "why"
