"""The channels between the daemon's processes: waiting on them, and their words."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import msgpack
import numpy as np
import pytest

from streamcl.daemon import words
from streamcl.daemon.channel import Channel, wait
from streamcl.entries import Consolidated
from streamcl.errors import StreamclError

HIGH = 1090  # beyond what select() takes


@pytest.fixture
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, HIGH + 1), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_descriptors")
def test_a_descriptor_of_any_number_can_be_waited_for() -> None:
    left, right = Channel.pair()
    high = os.dup2(left.fileno(), HIGH)
    try:
        Channel(right).send(words.Resume())
        wait([high], 30.0)
        assert left.recv(100)
    finally:
        os.close(high)
        left.close()


def test_waiting_ends_with_the_time() -> None:
    left, right = Channel.pair()
    with left, right:
        wait([left, right], 0.01)  # nothing ever comes
        wait([left], -1.0)  # overdue: not for ever


def test_the_last_words_of_one_that_ended_without_reading_ours_are_heard() -> None:
    ours, theirs = Channel.pair()
    with ours:
        us, them = Channel(ours), Channel(theirs)
        us.send(words.Resume())
        them.send(words.Fatal(reason="no such module"))
        them.close()
        assert list(us.receive()) == [words.Fatal(reason="no such module")]
        assert us.closed


SAID = [
    words.Configuration(tree={"train": {"epochs": 2}}),
    words.Trouble(role="trainer", reason=None),
    words.Alive(),
    words.Progress(loss=0.5, scores=words.Scores({"accuracy": 1.0}), step_seconds=[0.1]),
    words.Progress(consolidation=words.Consolidation("epochs", 1, 5, 0.25, None)),
    words.Penalties(lsn=3, time=1.5, rows=[("a", 0.25, float("inf"))]),
    words.Done(entry=Consolidated(task="a", lsn=7, aside=((3, 10),))),
]


@pytest.mark.parametrize("word", SAID, ids=lambda word: type(word).__name__)
def test_a_word_arrives_as_it_was_said(word: words.Word) -> None:
    left, right = (Channel(end) for end in Channel.pair())
    left.send(word)
    assert list(right.receive()) == [word]
    left.close()
    right.close()


def test_a_number_of_numpy_is_said_as_a_number() -> None:
    word = words.Progress(loss=np.float64(0.1))
    assert words.decode(words.encode(word)) == words.Progress(loss=0.1)


@pytest.mark.parametrize(
    "packet",
    [
        msgpack.packb({"type": "hello"}),
        msgpack.packb({"lsn": 1}),
        msgpack.packb({"type": "durable"}),
        msgpack.packb({"type": "durable", "lsn": "1"}),
        b"\xc1",
    ],
)
def test_what_is_no_word_is_an_error(packet: bytes) -> None:
    left, right = Channel.pair()
    with left, right:
        left.send(packet)
        with pytest.raises(StreamclError, match="of one installation"):
            list(Channel(right).receive())


def test_a_message_brings_descriptors_along_in_its_order() -> None:
    left, right = Channel.pair()
    sender, receiver = Channel(left), Channel(right)
    read, write = os.pipe()
    sender.send(words.Begin())
    sender.send(words.Fork(role="trainer"), [write, read])
    sender.send(words.Reload())
    os.close(write)
    before, (word, brought), after = receiver.receive_with_descriptors()
    assert [before, after] == [(words.Begin(), []), (words.Reload(), [])]
    assert word == words.Fork(role="trainer")
    with open(brought[0], "wb") as pipe:
        pipe.write(b"hello")
    assert os.read(read, 10) == b"hello"
    assert os.read(read, 10) == b""  # no copy of the other end is left open, in the sender either
    assert not os.get_inheritable(brought[1])
    for each in (read, brought[1]):
        os.close(each)
    sender.close()
    receiver.close()


def test_what_the_other_end_said_before_it_ended_is_heard_whoever_speaks_to_it_since() -> None:
    ours, theirs = Channel.pair()
    one, other = Channel(ours), Channel(theirs)
    other.send(words.Fatal(reason="no such module"))
    other.close()
    one.send(words.Reload())
    one.send(words.Reload())
    assert list(one.receive()) == [words.Fatal(reason="no such module")]
    assert one.closed
