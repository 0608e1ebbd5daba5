"""The process that answers asks for short turns of the processors, and no other."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import threading

import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.daemon import linux
from streamcl.daemon.child import PROMPT

_GET = {"x86_64": 315, "aarch64": 275}  # sched_getattr

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in _GET, reason="sched_getattr is called by its number here"
)


def turn(thread: int) -> int:
    """What a thread asks for, in nanoseconds; 0 where the kernel does not say."""
    found = linux.Schedule()
    library = ctypes.CDLL(None, use_errno=True)
    if library.syscall(_GET[platform.machine()], thread, ctypes.byref(found), ctypes.sizeof(found), 0) != 0:
        pytest.skip(f"the kernel does not say how it schedules: {os.strerror(ctypes.get_errno())}")
    return int(found.runtime)


def granted() -> int:
    """What a thread gets that asks for short turns, and one that it starts; what others have stays."""
    found: list[int] = []

    def ask() -> None:
        if linux.take_short_turns():
            inner = threading.Thread(target=lambda: found.append(turn(0)))
            inner.start()
            inner.join()

    before = turn(0)
    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert turn(0) == before
    return found[0] if found else 0


def test_a_thread_that_asks_gets_short_turns_and_so_do_its_own() -> None:
    if not (length := granted()):
        pytest.skip("this kernel knows no such wish (Linux 6.12 does)")
    assert length == linux.TURN_NS


def test_every_thread_that_predicts_has_asked_and_no_other_process() -> None:
    if not granted():
        pytest.skip("this kernel knows no such wish (Linux 6.12 does)")
    with LocalDaemon({"model": {"factory": "streamcl.models:linear"}}) as daemon:
        asked = {
            role: {turn(int(thread)) == linux.TURN_NS for thread in os.listdir(f"/proc/{pid}/task")}
            for role, pid in daemon.children().items()
        }
    assert {role for role, every in asked.items() if every == {True}} == set(PROMPT)
    assert all(len(every) == 1 for every in asked.values())


def test_a_policy_of_another_kind_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getscheduler", lambda pid: os.SCHED_BATCH)
    assert not linux.take_short_turns()
