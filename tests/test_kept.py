"""What cannot be learned is kept: held tasks, batches set aside, retries, drops; and what was learned wrongly is undone."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from waiting import until

from streamcl import entries
from streamcl.bench.local import LocalDaemon
from streamcl.client import Producer
from streamcl.errors import Refused, StreamclError
from streamcl.storage import doctor, versions
from streamcl.storage.disk import Disk
from streamcl.storage.segments import list_segments
from streamcl.storage.state import StateDirectory

MODELS = """
import os
import torch
from torch import nn

HERE = os.path.dirname(__file__)

class Odd(Exception):
    def __str__(self):
        raise ValueError("no words")

class Moody(nn.Linear):
    '''Raises on rows that hold the number 7, in training, while the file `mood` says so.'''
    def forward(self, x):
        mood = open(os.path.join(HERE, "mood")).read()
        if mood == "rows" and bool((x == 7).any()):
            raise ValueError("seven is not for me")
        if mood == "exit":
            raise SystemExit("gone")
        if mood == "interrupt":
            raise KeyboardInterrupt
        if mood == "odd":
            raise Odd
        if mood == "boundary" and len(x) > 35:
            raise ValueError("too much at once")
        return super().forward(x)

def moody(input_shape, outputs):
    return Moody(input_shape[0], outputs)

class Grumpy(nn.Linear):
    def forward(self, x):
        raise OSError(5, open(os.path.join(HERE, "mood")).read())

def grumpy(input_shape, outputs):
    return Grumpy(input_shape[0], outputs)

def normed(input_shape, outputs):
    return nn.Sequential(nn.BatchNorm1d(input_shape[0]), nn.Linear(input_shape[0], outputs))

def wider(input_shape, outputs):
    return nn.Sequential(nn.Linear(input_shape[0], 9), nn.Tanh(), nn.Linear(9, outputs))
"""


def tree(**sections: Any) -> dict[str, Any]:
    base = {
        "model": {"factory": "moods:moody", "likelihood": "gaussian", "noise_variance": 1},
        "train": {"dtype": "float64", "batch_size": 40, "learning_rate": 0.01},
    }
    return {name: {**base.get(name, {}), **sections.get(name, {})} for name in {**base, **sections}}


def data(seed: int, n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 3))
    return x, x.sum(1) + rng.normal(size=n)


def sevens(n: int = 30) -> tuple[np.ndarray, np.ndarray]:
    x, y = data(7, n)
    x[:, 0] = 7
    return x, y


@pytest.fixture
def mood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What the model is in the mood for: `well`, `rows` or `boundary`."""
    (tmp_path / "moods.py").write_text(MODELS)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))

    def be(mood: str) -> None:
        (tmp_path / "mood").write_text(mood)

    be("well")
    return be


def hold(producer: Producer, mood: Callable[[str], None]) -> None:
    """Task a, of 60 rows, is held."""
    producer.send(*data(0), "a")
    producer.send(*data(1), "a")
    producer.flush()
    mood("boundary")
    with pytest.raises(Refused, match="too much at once"):
        producer.boundary("a")


def held_and_gone_on(start: Callable[..., LocalDaemon], mood: Callable[[str], None], *behind: int) -> LocalDaemon:
    """Task a is held, b is learned, and c is open with batches of these seeds; stopped."""
    daemon = start(tree(stream={"on_failure": "set-aside"}))
    with daemon.producer() as producer:
        hold(producer, mood)
        producer.send(*data(2), "b")
        producer.boundary("b")
        for seed in behind:
            producer.send(*data(seed), "c")
        producer.flush()
    daemon.stop()
    return daemon


def command(daemon: LocalDaemon, *words: str) -> subprocess.CompletedProcess[str]:
    arguments = [sys.executable, "-m", "streamcl", *words, "--state-dir", str(daemon.state_dir)]
    return subprocess.run(arguments, text=True, capture_output=True, timeout=120, check=False)


def ready(daemon: LocalDaemon) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(daemon.url("/readyz")) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_a_boundary_that_fails_keeps_its_rows_and_says_so(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon, clean = start(tree()), start(tree(), name="clean")
    for one in (daemon, clean):
        with one.producer() as producer:
            producer.send(*data(0), "a")
            assert producer.boundary("a")["set_aside"] == 0
    with daemon.producer() as producer, daemon.admin() as admin:
        before = admin.parameters()
        producer.send(*data(1), "b")
        producer.send(*data(2), "b")
        producer.flush()
        mood("boundary")
        with pytest.raises(Refused, match="ValueError: too much at once") as refused:
            producer.boundary("b")
        assert refused.value.code == "unlearnable"
        after = admin.parameters()
        np.testing.assert_array_equal(before.precision, after.precision)
        np.testing.assert_allclose(before.theta, after.theta, rtol=1e-12)
        held = [task for task in admin.tasks() if task["state"] == "held"]
        assert [(task["task"], task["samples"]) for task in held] == [("b", 60)]
        status = admin.status()
        assert (status["held_tasks"], status["quarantined"]) == (1, 1)
        assert "too much at once" in status["problem"]
        assert admin.metrics()["streamcl_held_tasks"] == 1
        code, text = ready(daemon)
        assert code == 503
        assert "task 'b' is held" in text
    retried = command(daemon, "retry", "b")
    assert retried.returncode == 1
    assert "too much at once" in retried.stderr
    daemon.kill_all()  # it is all on disk
    daemon.start()
    with daemon.admin() as admin:
        assert ready(daemon)[0] == 503
        assert [row["rows"] for row in admin.quarantine()] == [60]
        with pytest.raises(Refused, match="too much at once"):  # the start has tried again by itself
            admin.retry("b")
        mood("well")
        done = admin.retry("b")
        assert (done["kind"], done["samples"], done["set_aside"]) == ("boundary", 60, 0)
        assert admin.quarantine() == []
        assert ready(daemon)[0] == 200
        assert [task["state"] for task in admin.tasks()] == ["consolidated"] * 2
        assert admin.status()["spool_bytes"] == 0
        learned = admin.parameters()
    with clean.producer() as producer, clean.admin() as admin:
        producer.send(*data(1), "b")
        producer.send(*data(2), "b")
        producer.boundary("b")
        np.testing.assert_allclose(learned.precision, admin.parameters().precision, rtol=1e-6)


def test_whatever_a_model_raises_holds_the_task_and_ends_nothing(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon = start(tree(stream={"on_failure": "set-aside"}))
    trainer = daemon.children()["trainer"]
    with daemon.producer() as producer, daemon.admin() as admin:
        for seed, (feeling, words) in enumerate(
            {"exit": "SystemExit: gone", "interrupt": "Keyboard", "odd": "Odd"}.items()
        ):
            producer.send(*data(seed), feeling)
            producer.flush()
            until(lambda: admin.checkpoint()["batches_applied"] == admin.status()["batches_durable"])
            mood(feeling)
            with pytest.raises(Refused, match=words):
                producer.boundary(feeling)
            mood("well")
            assert admin.retry(feeling)["samples"] == 30
    assert daemon.children()["trainer"] == trainer


def test_a_restart_with_a_mended_model_learns_every_row(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None], tmp_path: Path
) -> None:
    daemon = start(tree())
    with daemon.producer() as producer:
        hold(producer, mood)
        with pytest.raises(Refused, match="no new task is opened while task 'a' is held"):
            producer.send(*data(2), "b")
            producer.flush()
    daemon.stop()
    daemon.tree["model"]["factory"] = "moods:wider"  # another network: nothing was consolidated, so nothing holds it back
    daemon.start()
    with daemon.admin() as admin:
        until(lambda: admin.status()["held_tasks"] == 0 and admin.status()["tasks"] == 1)
        assert [(task["samples"], task["state"]) for task in admin.tasks()] == [(60, "consolidated")]
        assert admin.status()["parameters"] == 3 * 9 + 9 + 9 + 1
    with daemon.producer() as producer:
        producer.send(*data(2), "b")
        assert producer.boundary("b")["samples"] == 30


@pytest.mark.campaign
def test_a_mended_model_is_tried_like_a_new_one_and_a_worse_one_is_refused(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon = start(tree())
    with daemon.producer() as producer:
        hold(producer, mood)
    daemon.stop()
    daemon.tree["model"]["factory"] = "moods:normed"
    with pytest.raises(StreamclError, match="running"):
        daemon.start()
    daemon.tree["model"]["factory"] = "moods:grumpy"
    with pytest.raises(StreamclError, match="OSError"):
        daemon.start()
    mood("well")
    daemon.tree["model"]["factory"] = "moods:moody"
    daemon.start()
    with daemon.admin() as admin:
        until(lambda: admin.status()["tasks"] == 1)
        assert admin.tasks()[0]["samples"] == 60


def test_the_reason_is_the_newest_and_a_table_shows_it(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon = start(tree(posterior={"mode": "factors"}))
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*sevens(20), "a")
        producer.send(*sevens(20), "a")
        producer.flush()
        mood("boundary")
        with pytest.raises(Refused, match="too much at once"):
            producer.boundary("a")
        mood("rows")
        with pytest.raises(Refused, match="seven is not for me"):
            admin.retry("a")
        assert "seven is not for me" in admin.status()["problem"]
        table = command(daemon, "quarantine")
        assert table.returncode == 0
        assert "seven" in table.stdout
        again = command(daemon, "boundary", "a")
        assert again.returncode == 1
        assert "is held" in again.stderr


def test_nothing_kept_is_undone_away(start: Callable[..., LocalDaemon], mood: Callable[[str], None]) -> None:
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.boundary("a")
        before = admin.parameters()
        producer.send(*data(1), "b")
        producer.flush()
        mood("rows")
        producer.send(*sevens(), "b")
        producer.flush()
        until(lambda: any(row["state"] == "doubtful" for row in admin.quarantine()))
        assert producer.boundary("b")["set_aside"] == 30
        with pytest.raises(Refused, match="would lose them"):
            admin.rollback("b")
        mood("well")
        assert admin.retry("b")["samples"] == 60
        assert admin.rollback("b")["undone"] == ["b"]  # with what the retry has learned
        np.testing.assert_array_equal(admin.parameters().precision, before.precision)


def test_data_may_be_sent_again_after_a_rollback_or_a_drop(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None], tmp_path: Path
) -> None:
    daemon = start(tree())
    file = tmp_path / "monday.npz"
    np.savez(file, x=data(0, 60)[0], y=data(0, 60)[1])
    send = ("send", str(file), "--task", "monday", "--boundary")
    assert command(daemon, *send).returncode == 0
    assert command(daemon, "rollback", "monday", "--yes").returncode == 0
    mood("boundary")
    failed = command(daemon, *send)
    assert failed.returncode == 1
    assert "too much at once" in failed.stderr
    assert command(daemon, "drop", "monday", "--yes").returncode == 0
    mood("well")
    assert "sent 60 rows" in command(daemon, *send).stdout
    with daemon.admin() as admin:
        assert [(task["task"], task["samples"]) for task in admin.tasks()] == [("monday", 60)]


def test_versions_that_a_rollback_went_back_over_are_not_used_up(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        for seed, task in enumerate("abc"):
            producer.send(*data(seed), task)
            producer.boundary(task)
        for task in "cdc":
            admin.rollback(admin.tasks()[-1]["task"])
            producer.send(*data(5), task)
            producer.boundary(task)
        assert [row["task"] for row in admin.versions()] == ["a", "b", "c"]
        assert admin.rollback("b")["undone"] == ["b", "c"]


def test_rows_that_the_model_refuses_are_set_aside_and_learned_later(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon = start(tree(posterior={"mode": "factors"}))
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.flush()
        mood("rows")
        producer.send(*sevens(), "a")
        producer.send(*data(1), "a")
        done = producer.boundary("a")
        assert (done["samples"], done["set_aside"]) == (60, 30)
        (row,) = admin.quarantine()
        assert (row["task"], row["state"], row["rows"], row["seq"]) == ("a", "set-aside", 30, 2)
        assert "seven is not for me" in row["reason"]
        assert ready(daemon)[0] == 503
        assert admin.metrics()["streamcl_set_aside_rows"] == 30
        producer.send(*data(2), "b")  # the task was consolidated: the stream goes on
        assert producer.boundary("b")["set_aside"] == 0
        again = command(daemon, "retry", "a")
        assert again.returncode == 1
        assert "seven is not for me" in again.stderr
        alone = admin.parameters()
        mood("well")
        done = admin.retry("a")
        assert (done["samples"], done["set_aside"]) == (90, 0)
        precision = admin.parameters().precision
        gained = (precision - alone.precision)[:3]
        np.testing.assert_allclose(gained, (sevens()[0] ** 2).sum(0), rtol=1e-9)  # x^2 summed, with unit noise
        assert ready(daemon)[0] == 200
        assert admin.status()["spool_bytes"] == 0
        admin.forget("a")  # its factor has both parts
        np.testing.assert_allclose(admin.parameters().precision[:3], 1 + (data(2)[0] ** 2).sum(0), rtol=1e-9)


def test_what_is_kept_is_dropped_only_by_command(start: Callable[..., LocalDaemon], mood: Callable[[str], None]) -> None:
    daemon = start(tree(stream={"on_failure": "set-aside"}))
    with daemon.producer() as producer, daemon.admin() as admin:
        hold(producer, mood)
        producer.send(*data(2), "b")  # the stream goes on
        assert producer.boundary("b")["samples"] == 30
        with pytest.raises(Refused, match="is held") as refused:
            producer.send(*data(3), "a")
            producer.flush()
        assert refused.value.code == "task_closed"
        assert admin.status()["spool_bytes"] > 0
    unsure = command(daemon, "drop", "a")
    assert unsure.returncode == 2
    assert "60 rows" in unsure.stderr
    assert command(daemon, "drop", "a", "--yes").returncode == 0
    with daemon.producer() as producer, daemon.admin() as admin:
        assert admin.status()["spool_bytes"] < 500  # no rows, but the record of the command itself
        assert [task["task"] for task in admin.tasks()] == ["b"]
        with pytest.raises(Refused, match="there is none"):
            admin.retry("a")
        producer.send(*data(0), "a")  # its name is free
        assert producer.boundary("a")["samples"] == 30


def test_a_file_of_a_held_task_that_is_sent_again_is_not_said_to_be_learned(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None], tmp_path: Path
) -> None:
    daemon, file = start(tree()), tmp_path / "a.csv"
    rows = np.column_stack(data(0, 60))
    np.savetxt(file, rows, delimiter=",", header="p,q,r,y", comments="")
    mood("boundary")
    first, again = (command(daemon, "send", str(file), "--boundary") for _ in range(2))
    assert (first.returncode, again.returncode) == (1, 1)
    assert "is held: its rows could not be learned" in again.stderr


@pytest.mark.parametrize("deleted", [False, True])
@pytest.mark.parametrize("followed", [False, True])
def test_kept_rows_that_cannot_be_read_any_more_are_told_of_at_the_start(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None], deleted: bool, followed: bool
) -> None:
    daemon = held_and_gone_on(start, mood, *([3] if followed else []))  # by a task that is still open
    segment, *_ = list_segments(StateDirectory(daemon.state_dir).log)
    whole = segment.read_bytes()
    segment.unlink() if deleted else segment.write_bytes(whole[:200] + b"\xff" * 8 + whole[208:])
    daemon.start()
    with daemon.producer("another" if not followed else "producer") as producer, daemon.admin() as admin:
        code, problem = ready(daemon)
        assert (code, "not all of these rows can be read" in problem) == (503, True)
        assert "`streamcl drop TASK`" in problem
        assert "and were kept, cannot be read" in daemon.log_text()
        if not followed:
            producer.send(*data(3), "c")  # nothing waits for them
        assert producer.boundary("c")["samples"] == 30
        with pytest.raises(Refused, match="not all of these rows can be read any more") as refused:
            admin.retry("a")
        assert refused.value.code == "unlearnable"
        admin.drop("a")
        assert ready(daemon)[0] == 200


def test_a_repair_gives_up_kept_rows_whose_damage_hides_where_the_log_ends(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon = held_and_gone_on(start, mood)
    state = StateDirectory(daemon.state_dir)
    (segment,) = list_segments(state.log)
    with segment.open("r+b") as file:
        file.truncate(segment.stat().st_size - 8)
        file.seek(200)
        file.write(b"\xff" * 8)
    with pytest.raises(StreamclError, match="see what `streamcl repair` would lose"):
        daemon.start()
    plan = doctor.plan_repair(state)
    assert plan.needed
    assert segment.name in "\n".join(plan.lines())
    doctor.repair(state, plan, Disk())
    daemon.start()
    with daemon.producer("another") as producer, daemon.admin() as admin:
        assert "not all of these rows can be read" in ready(daemon)[1]
        with pytest.raises(Refused, match="restore the file"):  # what the start itself tries has failed by then
            admin.retry("a")
        admin.drop("a")
        producer.send(*data(3), "c")
        assert producer.boundary("c")["samples"] == 30


def test_doctor_and_repair_know_what_is_kept(start: Callable[..., LocalDaemon], mood: Callable[[str], None]) -> None:
    daemon = held_and_gone_on(start, mood, 3, 4)
    state = StateDirectory(daemon.state_dir)
    findings = {finding.file: finding for finding in doctor.examine(state)}
    assert "damaged" not in {finding.state for finding in findings.values()}
    first, last = list_segments(state.log)
    assert "kept, since they could not be learned" in findings[f"log/{first.name}"].what
    with last.open("r+b") as file:  # damage to the first record of the open task
        file.seek(100)
        file.write(b"\xff" * 8)
    plan = doctor.plan_repair(state)
    assert plan.aside == [first]
    doctor.repair(state, plan, Disk())
    mood("well")
    daemon.start()
    with daemon.producer() as producer, daemon.admin() as admin:
        assert producer.boundary("c")["samples"] == 30
        until(lambda: admin.status()["held_tasks"] == 0)
        assert {task["task"]: task["samples"] for task in admin.tasks()} == {"b": 30, "c": 30, "a": 60}


def test_a_held_revisit_leaves_the_old_factor_until_it_is_learned(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon = start(tree(posterior={"mode": "factors"}))
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data(0), "a")
        producer.boundary("a")
        before = admin.parameters()
        producer.revisit("a")
        producer.send(*data(1, 60), "a")
        producer.flush()
        mood("boundary")
        with pytest.raises(Refused, match="too much at once"):
            producer.boundary("a")
        after = admin.parameters()
        np.testing.assert_array_equal(before.theta, after.theta)
        np.testing.assert_array_equal(before.precision, after.precision)
        assert admin.tasks()[0]["state"] == "held"
        with pytest.raises(Refused, match="is held"):
            admin.revisit("a")
        mood("well")
        assert admin.retry("a")["kind"] == "revisit"
        assert admin.tasks()[0]["revisits"] == 1


def test_a_rollback_undoes_to_the_bit_and_the_names_are_free(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        states = []
        for number, task in enumerate("abcde"):
            states.append(None if task == "a" else admin.parameters())
            producer.send(*data(number), task)
            producer.boundary(task)
        assert [row["task"] for row in admin.versions()] == ["c", "d", "e"]  # posterior.keep = 3
        assert [row["undone"] for row in admin.versions()] == [["c", "d", "e"], ["d", "e"], ["e"]]
        with pytest.raises(Refused, match=r"among the last 3"):
            admin.rollback("b")
        producer.send(*data(9), "open")
        producer.flush()
        assert admin.rollback("d")["undone"] == ["d", "e"]
        undone = admin.parameters()
        np.testing.assert_array_equal(undone.theta, states[3].theta)
        np.testing.assert_array_equal(undone.precision, states[3].precision)
        np.testing.assert_array_equal(undone.shift, states[3].shift)
        assert [task["task"] for task in admin.tasks()] == ["a", "b", "c"]
        daemon.kill_all()
    daemon.start()
    with daemon.producer() as producer, daemon.admin() as admin:
        np.testing.assert_array_equal(admin.parameters().precision, states[3].precision)
        assert producer.boundary("open")["samples"] == 30  # an open task goes on, from there
        producer.send(*data(3), "d")
        assert producer.boundary("d")["samples"] == 30
        assert [task["task"] for task in admin.tasks()] == ["a", "b", "c", "open", "d"]


def test_what_a_rollback_takes_back_is_told_revisits_included() -> None:
    told: dict[str, Any] = {"samples": 10, "weight": 10.0}
    learned = [entries.Consolidated(task=task, lsn=lsn, **told) for lsn, task in enumerate("abc")]
    again = [entries.Revisited(task=task, lsn=lsn, **told) for lsn, task in enumerate("ba", 3)]
    book = [*learned, *again, entries.Consolidated(task="d", lsn=5, **told)]
    found = versions.undoing("b", book, range(1, 7), keep=9)
    assert found == versions.Undoing(3, ("d",), ("a", "b"))
    assert entries.undone_in_words(found.undone, found.revisits) == "d and the revisits of a, b"
    assert versions.undoing("a", book[:5], range(1, 6), keep=9) == versions.Undoing(4, (), ("a",))


def test_a_rollback_of_the_first_task_begins_anew_and_none_passes_a_withdrawal(
    start: Callable[..., LocalDaemon], mood: Callable[[str], None]
) -> None:
    daemon, fresh = start(tree(posterior={"mode": "factors"})), start(tree(posterior={"mode": "factors"}), name="fresh")
    with daemon.producer() as producer, daemon.admin() as admin:
        for task in "ab":
            producer.send(*data(0), task)
            producer.boundary(task)
        admin.forget("a")
        with pytest.raises(Refused, match="no withdrawal since"):
            admin.rollback("b")
    with fresh.producer() as producer, fresh.admin() as admin:
        producer.send(*data(0), "wrong")
        producer.boundary("wrong")
        revisited = admin.parameters()
        producer.revisit("wrong")
        producer.send(*data(5), "wrong")
        producer.boundary("wrong")
        assert "the revisit of wrong" in command(fresh, "versions").stdout
        done = admin.rollback("wrong")
        assert (done["undone"], done["revisits_undone"]) == ([], ["wrong"])  # the revisit alone
        np.testing.assert_array_equal(admin.parameters().shift, revisited.shift)
        assert admin.rollback("wrong")["undone"] == ["wrong"]
        assert admin.tasks() == []
        np.testing.assert_array_equal(admin.parameters().precision, np.ones(4))
        producer.send(*data(0), "wrong")
        producer.boundary("wrong")
        np.testing.assert_allclose(admin.parameters().precision, revisited.precision, rtol=1e-9)
