"""What a notebook shows of a daemon: with a stand-in for IPython, and with a daemon at work."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from streamcl import Admin, Producer, notebook
from streamcl.bench.local import LocalDaemon
from streamcl.errors import Unreachable

BUSY = {
    "state": "consolidating",
    "task": "monday <1>",
    "samples_seen": 1200,
    "consolidation": {"phase": "fisher", "fraction": 0.25, "seconds_left": 3.2},
}


class ZMQInteractiveShell:
    """As a kernel's is called."""


class Page:
    """What IPython would have shown, in its order."""

    def __init__(self) -> None:
        self.shown: list[str] = []

    def update(self, markup: str) -> None:
        self.shown.append(markup)

    def display(self, markup: str, display_id: bool) -> Page:
        assert display_id
        return self


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Page:
    made = Page()
    ipython: Any = types.ModuleType("IPython")
    ipython.get_ipython = ZMQInteractiveShell
    ipython.display = types.SimpleNamespace(display=made.display, HTML=str)
    monkeypatch.setitem(sys.modules, "IPython", ipython)
    return made


class Stub:
    def __init__(self, *answers: dict[str, Any] | Exception) -> None:
        self.answers = list(answers)

    def status(self) -> dict[str, Any]:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def test_a_cell_shows_a_consolidation_with_its_share_and_then_what_it_came_to(page: Page) -> None:
    idle = {"state": "idle", "task": None, "samples_seen": 1200, "lag_batches": 0}
    with notebook.watching(Stub(BUSY, idle), seconds=0.01):
        pass
    assert page.shown[0] == (
        '<div><progress value="0.250" max="1"></progress> consolidating, task monday &lt;1&gt;: fisher 25%, 3 s left</div>'
    )
    assert page.shown[-1] == "<div>idle: 1,200 rows learned</div>"


def test_a_daemon_that_is_away_is_said_and_asked_again(page: Page) -> None:
    with notebook.watching(Stub(Unreachable("nobody there"), {"state": "idle", "samples_seen": 0}), seconds=0.01):
        pass
    assert page.shown == ["<div>no answer: nobody there</div>", "<div>idle: 0 rows learned</div>"]


def test_what_goes_wrong_in_the_block_goes_on(page: Page) -> None:
    with pytest.raises(ZeroDivisionError), notebook.watching(Stub(BUSY), seconds=0.01):
        raise ZeroDivisionError
    assert page.shown


def test_beside_no_notebook_and_no_terminal_nothing_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    with notebook.watching(Stub(BUSY), seconds=0.01):
        pass
    assert capsys.readouterr() == ("", "")


@pytest.mark.campaign
def test_it_follows_a_daemon_at_work(page: Page, start: Callable[..., LocalDaemon]) -> None:
    daemon = start({"model": {"classes": 3}})
    x = np.random.default_rng(0).normal(size=(300, 4))
    with (
        Admin(daemon.endpoints["admin"]) as admin,
        Producer(daemon.endpoints["stream"], "p") as producer,
        notebook.watching(admin, seconds=0.01),
    ):
        producer.send(x, np.arange(300) % 3, task="monday")
        producer.boundary("monday")
    assert len(page.shown) > 1
    assert page.shown[-1] == "<div>idle: 300 rows learned</div>"
