"""The ingest process's parts, each by itself: no sockets, no torch, no other process."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from streamcl import entries
from streamcl.config import from_tree
from streamcl.daemon import words
from streamcl.daemon.channel import Channel
from streamcl.daemon.endpoint import Endpoint, Received
from streamcl.daemon.ingest import Ingest
from streamcl.daemon.journal import Journal
from streamcl.daemon.link import Link
from streamcl.daemon.recovery import take_over
from streamcl.daemon.sockets import Peer
from streamcl.daemon.tasks import Tasks
from streamcl.entries import Entry, Standing
from streamcl.errors import Refused, StreamclError
from streamcl.protocol import frames, messages
from streamcl.protocol.session import StreamSession, Terms
from streamcl.schema import Signature
from streamcl.storage.disk import Disk
from streamcl.storage.log import LogWriter
from streamcl.storage.quarantine import Failure
from streamcl.storage.records import Batch, Boundary, array_spec

PEER = Peer(b"p", delimited=False, waits_for_one=False)
X, Y = np.ones((4, 3), "<f4"), np.arange(4) % 3


class Answers:
    """A port that keeps what is sent to it."""

    def __init__(self) -> None:
        self.sent: list[dict[str, Any]] = []

    def receive(self) -> Iterator[tuple[Peer, list[frames.Buffer]]]:
        return iter(())

    def send(self, peer: Peer, message: Sequence[frames.Buffer]) -> None:
        self.sent.append(msgpack.unpackb(message[0]))

    def take(self) -> list[dict[str, Any]]:
        taken, self.sent = self.sent, []
        return taken


class Desk:
    """An ingest process's parts, and the other ends of all of its ports and channels."""

    def __init__(self, home: Path, **tree: Any) -> None:
        ends = [Channel.pair(), Channel.pair()]
        (up, self.supervisor), (side, self.trainer) = ((Channel(ours), Channel(theirs)) for ours, theirs in ends)
        config = from_tree({"state_dir": str(home), "model": {"classes": 3}, **tree})
        self.stream, self.admin = Answers(), Answers()
        found = take_over(config, Disk(), StreamSession(Terms.of(config)))
        self.ingest = Ingest(config, found, Link(up, side), self.stream, self.admin)
        self.ingest.begin()
        self.ingest.stream.trials.accepted = Signature((3,), False, ())
        self.seq = 0

    def produce(self, kind: str, arrays: dict[str, Any] | None = None, **fields: Any) -> list[dict[str, Any]]:
        if kind != "hello":
            self.seq += 1
            fields["seq"] = self.seq
        self.ingest.stream.take(PEER, frames.build({"type": kind, **fields}, arrays))
        self.ingest.make_durable()
        return self.stream.take()

    def ask(self, kind: str, **fields: Any) -> list[dict[str, Any]]:
        self.ingest.admin.take(PEER, frames.build({"type": kind, **fields}))
        self.ingest.make_durable()
        return self.admin.take()

    def trainer_says(self, *said: words.Word) -> None:
        for word in said:
            self.trainer.send(word)
        self.ingest.hear()

    def trainer_heard(self) -> list[words.Word]:
        return list(self.trainer.receive())

    def close(self) -> None:
        for channel in (self.supervisor, self.trainer, self.ingest.link.up, self.ingest.link.side):
            channel.close()
        self.ingest.found.history.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "state")
    yield desk
    desk.close()


def entry(lsn: int, kind: str = "boundary", **fields: Any) -> Entry:
    known = {"task": "a", "producer": "p", "seq": 2, "samples": 4, "loss": 0.5, "seconds": 0.1, "closed_at": 0.0}
    return entries.from_plain({"kind": kind, "lsn": lsn, "weight": 1.0, "factor": None, **known, **fields})


# -- words -------------------------------------------------------------------------------------------------------------


def test_what_is_acknowledged_was_synced_and_the_trainer_knows(desk: Desk) -> None:
    desk.produce("hello", producer="p")
    (ack,) = desk.produce("batch", {"x": X, "y": Y}, task="a")
    assert (ack["type"], ack["durable"], ack["applied"]) == ("ack", 1, 0)
    assert desk.trainer_heard()[-1] == words.Durable(lsn=1)


def test_an_outcome_counts_once_however_often_it_is_said(desk: Desk) -> None:
    desk.produce("hello", producer="p")
    desk.produce("batch", {"x": X, "y": Y}, task="a")
    desk.produce("boundary", task="a")
    desk.trainer_says(words.Done(entry=entry(1)), words.Done(entry=entry(1)))
    assert [answer["type"] for answer in desk.stream.take()] == ["done"]
    assert desk.ingest.metrics.as_map()["streamcl_boundaries_total"] == 1.0


def test_a_boundary_that_comes_again_is_told_again_what_came_of_it(desk: Desk) -> None:
    desk.produce("hello", producer="p")
    desk.produce("batch", {"x": X, "y": Y}, task="a")
    desk.produce("boundary", task="a")
    desk.trainer_says(words.Done(entry=entry(1)))
    desk.stream.take()
    desk.seq = 1
    ack, done = desk.produce("boundary", task="a")
    assert (ack["type"], ack["durable"]) == ("ack", 2)
    assert (done["type"], done["seq"], done["samples"]) == ("done", 2, 4)


@pytest.mark.parametrize("word", [words.Durable(lsn=1), words.Ready(), words.Configuration(tree={})])
def test_a_word_that_is_not_for_it_is_an_error(desk: Desk, word: words.Word) -> None:
    with pytest.raises(StreamclError, match=f"expected no '{type(word).__name__}'"):
        desk.trainer_says(word)


def test_a_new_trainer_hears_what_the_one_before_it_was_asked(desk: Desk) -> None:
    assert desk.ask("pause") == [{"v": 1, "type": "ok"}]
    assert desk.ask("checkpoint", id=1) == []
    assert desk.ask("checkpoint", id=2) == []
    answered = words.Checkpointed(batches=0, sequences={}, seconds=0.1, time=0.0, numbers=[1])
    desk.trainer_says(answered)
    assert [answer["id"] for answer in desk.admin.take()] == [1]
    desk.trainer_heard()
    desk.trainer_says(words.Recovered(next_lsn=0))
    assert desk.trainer_heard() == [words.Durable(lsn=0), words.Pause(), words.WriteCheckpoint(number=2)]


def test_closing_ends_a_pause_and_takes_nothing_more_in(desk: Desk) -> None:
    desk.produce("hello", producer="p")
    desk.ask("pause")
    desk.supervisor.send(words.Close())
    desk.ingest.hear()
    assert not desk.ingest.link.paused
    (refused,) = desk.produce("batch", {"x": X, "y": Y}, task="a")
    assert (refused["type"], refused["code"], refused["retryable"]) == ("nack", "not_ready", True)


def test_a_model_that_is_refused_refuses_the_batch_and_what_waits_behind_it(desk: Desk) -> None:
    desk.ingest.stream.trials.accepted = None
    desk.produce("hello", producer="p")
    assert desk.produce("batch", {"x": X, "y": Y}, task="a") == []
    assert desk.produce("boundary", task="a") == []
    assert desk.trainer_heard()[-1] == words.TryModel(number=1)
    desk.trainer_says(words.ModelTried(number=1, refused="it does not fit"))
    shape, gap = desk.stream.take()
    assert (shape["code"], shape["seq"], shape["message"]) == ("bad_shape", 1, "it does not fit")
    assert (gap["code"], gap["seq"], gap["expected"]) == ("gap", 2, 1)
    assert list(desk.ingest.stream.waiting) == []


def test_what_could_not_be_learned_is_in_the_status(desk: Desk) -> None:
    failure = Failure(lsn=0, stage="batch", task="a", producer="p", seq=1, reason="odd", time=0.0, rows=4)
    desk.trainer_says(words.SetAside(failure=failure))
    (status,) = desk.ask("status")
    assert (status["quarantined"], status["last_quarantined"]) == (1, failure.plain())
    desk.trainer_says(words.Forgiven(lsns=[]))
    assert desk.ask("status")[0]["quarantined"] == 0


# -- the endpoint ------------------------------------------------------------------------------------------------------


def test_a_message_is_authorised_before_its_arrays_are_looked_at() -> None:
    def refuse(peer: Peer, message: Any) -> None:
        raise Refused("not_allowed", "no")

    endpoint = Endpoint(messages.StreamMessage, refuse, {messages.Batch: ("x", "y")})
    broken = frames.build({"type": "batch", "seq": 7, "task": "a", "id": 3}, {"z": X})
    taken = endpoint.take(PEER, broken, lambda received: None)
    assert taken.refused is not None
    assert (taken.refused.code, taken.id, taken.seq) == ("not_allowed", 3, 7)
    open_to_all = Endpoint(messages.StreamMessage, lambda *_: None, {messages.Batch: ("x", "y")})
    taken = open_to_all.take(PEER, broken, lambda received: None)
    assert taken.refused is not None
    assert taken.refused.code == "bad_array"


def test_a_defect_is_refused_and_what_only_a_new_start_mends_is_raised() -> None:
    endpoint = Endpoint(messages.AdminMessage, lambda *_: None)
    asked = frames.build({"type": "status", "id": "x"})

    def fail(error: Exception) -> Any:
        def act(received: Received) -> None:
            raise error

        return act

    taken = endpoint.take(PEER, asked, fail(ZeroDivisionError("oops")))
    assert taken.refused is not None
    assert (taken.refused.code, taken.refused.message, taken.id) == ("internal", "ZeroDivisionError: oops", "x")
    with pytest.raises(StreamclError, match="the log"):
        endpoint.take(PEER, asked, fail(StreamclError("the log cannot be written")))


# -- the journal -------------------------------------------------------------------------------------------------------


class FullDisk(Disk):
    """Full while it is told to be."""

    full = False

    def write(self, fd: int, buffers: Sequence[Any], offset: int) -> int:
        if self.full:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(fd, buffers, offset)


def test_a_full_disk_refuses_and_the_session_knows_nothing_of_the_record(tmp_path: Path) -> None:
    disk, session = FullDisk(), StreamSession(Terms(classes=3))
    journal = Journal(LogWriter.recover(tmp_path / "log", disk), session, disk, tmp_path / "log")
    batch = Batch(
        producer="p", epoch=0, seq=1, task="a", samples=4, arrays=(array_spec("x", X), array_spec("y", Y)), new_labels=()
    )
    payloads = [X.data.cast("B"), Y.data.cast("B")]
    disk.full = True
    with pytest.raises(Refused, match="no_space"):
        journal.append(batch, payloads)
    assert journal.full is not None
    assert (session.next_lsn, session.room.credit()["messages"]) == (0, 0)
    disk.full = False
    assert journal.append(batch, payloads) == 0
    assert journal.full is None
    assert session.room.credit()["messages"] > 0
    assert not journal.synced
    assert journal.sync() is not None
    assert (journal.durable, journal.synced, journal.sync()) == (1, True, None)


# -- the tasks ---------------------------------------------------------------------------------------------------------


def test_a_message_finds_the_task_it_closed_also_after_that_changed(tmp_path: Path) -> None:
    session = StreamSession(Terms(mode="factors"))
    tasks = Tasks(session, tmp_path, Standing(), [])
    session.apply(0, Boundary(producer="p", epoch=0, seq=2, task="a"), 1)
    tasks.take(entry(0))
    assert tasks.closed_by("p", 2) == tasks.standing.tasks["a"]
    assert tasks.closed_by("p", 3) is None
    tasks.take(entry(1, "revisit", seq=5))
    assert tasks.closed_by("p", 2) is None
    assert tasks.closed_by("p", 5) == tasks.standing.tasks["a"]
    assert not tasks.is_news(entry(1, "revisit", seq=5))
    tasks.take(entry(2, "held", task="b", seq=7, first_lsn=1, end_lsn=2))
    assert tasks.verdict(tasks.closed_by("p", 7) or {})["type"] == "failed"
