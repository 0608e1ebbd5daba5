"""Waiting on the channels between the daemon's processes."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from streamcl.daemon.channel import Channel, wait

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
        Channel(right).send("hello")
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


def test_a_message_brings_descriptors_along_in_its_order() -> None:
    left, right = Channel.pair()
    sender, receiver = Channel(left), Channel(right)
    read, write = os.pipe()
    sender.send("before")
    sender.send("with", descriptors=[write, read])
    sender.send("after")
    os.close(write)
    before, brought, after = receiver.receive()
    assert [before, after] == [{"type": "before"}, {"type": "after"}]
    with open(brought["descriptors"][0], "wb") as pipe:
        pipe.write(b"hello")
    assert os.read(read, 10) == b"hello"
    assert os.read(read, 10) == b""  # no copy of the other end is left open, in the sender either
    assert not os.get_inheritable(brought["descriptors"][1])
    for each in (read, brought["descriptors"][1]):
        os.close(each)
    sender.close()
    receiver.close()
