"""What a newcomer came across: an interrupted wait, True and False as targets, keys in any order, a daemon that moved."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from waiting import until

from streamcl import Learner, Refused
from streamcl.bench.local import FREE_ENDPOINTS, LocalDaemon
from streamcl.cli import follow, main
from streamcl.datafiles import Columns, open_data
from streamcl.errors import DataError

SMALL = {"model": {"args": {"hidden": [8]}}, "train": {"device": "cpu", "epochs": 1}}


class Ran(NamedTuple):
    status: int
    out: str
    err: str


Run = Callable[..., Ran]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def go(daemon: LocalDaemon, *arguments: Any) -> Ran:
        status = main([*map(str, arguments), "--state-dir", str(daemon.state_dir)])
        said = capsys.readouterr()
        return Ran(status, said.out, said.err)

    return go


# -- an interrupted wait -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "json_wanted"),
    [
        (signal.SIGINT, False),
        pytest.param(signal.SIGINT, True, marks=pytest.mark.campaign),
        *(pytest.param(signal.SIGTERM, json, marks=pytest.mark.campaign) for json in (True, False)),
    ],
)
def test_an_interrupted_send_says_what_is_stored_and_how_to_go_on(
    start: Callable[..., LocalDaemon], tmp_path: Path, cache: Path, number: signal.Signals, json_wanted: bool
) -> None:
    daemon = start({**SMALL, "train": {"device": "cpu", "epochs": 100_000}})
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "long.npz", x=rng.normal(size=(600, 4)).astype("<f4"), y=rng.integers(0, 3, 600))
    command = [sys.executable, "-m", "streamcl", "send", tmp_path / "long.npz", "--boundary"]
    command += ["--state-dir", daemon.state_dir, *["--json"] * json_wanted]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as sending:
        with daemon.admin() as admin:
            until(lambda: admin.status()["state"] == "consolidating")
        sending.send_signal(number)
        _, said = sending.communicate(timeout=120)
    assert sending.returncode == 128 + number
    assert f"600 of 600 rows of {tmp_path / 'long.npz'} are stored" in said
    assert "the daemon continues with the consolidation of long" in said
    daemon.kill_all()


def test_an_interrupted_send_counts_what_is_stored(
    start: Callable[..., LocalDaemon], tmp_path: Path, cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamcl.client import Producer

    daemon = start(SMALL)
    np.savez(tmp_path / "a.npz", x=np.zeros((100, 2), "<f4"), y=np.arange(100) % 2)
    sent, send = [], Producer.send

    def interrupted(self: Producer, *given: Any, **more: Any) -> Any:
        if len(sent) == 3:
            self.flush()
            raise KeyboardInterrupt
        sent.append(given)
        return send(self, *given, **more)

    monkeypatch.setattr(Producer, "send", interrupted)
    with pytest.raises(SystemExit) as ended:
        run(daemon, "send", tmp_path / "a.npz", "--rows", "10", "--boundary")
    assert ended.value.code == 130
    monkeypatch.setattr(Producer, "send", send)
    again = run(daemon, "send", tmp_path / "a.npz", "--rows", "10", "--boundary")
    assert again.status == 0
    assert "30 of 100 rows" in again.err + again.out or "(3 batches were already stored)" in again.out
    assert "consolidated: 100 samples" in again.out


# -- True and False ------------------------------------------------------------------------------------------------------


def truths(path: Path, words: tuple[str, str] = ("True", "False")) -> Path:
    path.write_text("size,told\n" + "".join(f"{k % 2 + k / 100:g},{words[k % 2]}\n" for k in range(60)))
    return path


@pytest.mark.parametrize("words", [("True", "False"), ("TRUE", "FALSE"), ("true", "false")])
def test_true_and_false_come_back_as_they_were_written(
    start: Callable[..., LocalDaemon], tmp_path: Path, cache: Path, run: Run, words: tuple[str, str]
) -> None:
    daemon = start({**SMALL, "train": {"device": "cpu"}})
    file = truths(tmp_path / "t.csv", words)
    assert run(daemon, "send", file, "--label", "told", "--boundary").status == 0
    answers = run(daemon, "predict", file, "--label", "told")
    assert set(answers.out.split()) == {*words}
    assert "accuracy 1" in answers.err
    table = pa.table({"size": [0.1, 1.1] * 20, "told": [True, False] * 20})
    pq.write_table(table, tmp_path / "t.parquet")
    other = run(daemon, "send", tmp_path / "t.parquet", "--label", "told", "--task", "b")
    assert (other.status == 0) is (words == ("True", "False"))
    assert other.status == 0 or f"expected {words[0]!r}" in other.err


def test_a_typed_column_of_truths_comes_back_in_words(
    start: Callable[..., LocalDaemon], tmp_path: Path, cache: Path, run: Run
) -> None:
    daemon = start({**SMALL, "train": {"device": "cpu"}})
    lines = [json.dumps({"size": k % 2 + k / 100, "told": k % 2 == 0}) for k in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")
    assert run(daemon, "send", tmp_path / "t.jsonl", "--boundary").status == 0
    assert set(run(daemon, "predict", tmp_path / "t.jsonl", "--label", "told").out.split()) == {"True", "False"}


def test_a_model_of_numbers_has_true_and_false_as_1_and_0(
    start: Callable[..., LocalDaemon], tmp_path: Path, cache: Path, run: Run
) -> None:
    daemon = start({"model": {"args": {"hidden": [8]}, "likelihood": "bernoulli"}, "train": {"device": "cpu"}})
    sent = run(daemon, "send", truths(tmp_path / "t.csv"), "--label", "told", "--boundary")
    assert sent.status == 0, sent.err
    assert "True and False go as 1 and 0" in sent.out
    answers = run(daemon, "predict", tmp_path / "t.csv", "--label", "told")
    assert "accuracy 1" in answers.err


# -- targets of another sort ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then", "said"),
    [
        (["yes", "no"], ["0", "1"], "got numbers"),
        (["yes", "no"], ["True", "False"], "got True and False"),
        (["True", "False"], ["0", "1"], "got numbers"),
        (["True", "False"], ["TRUE", "FALSE"], "expected 'True'"),
        (["yes", "no"], ["yes", "1"], None),
        (["1", "none"], ["2", "3"], None),
        (["yes", "no"], ["7"], None),
        (["yes", "no"], ["maybe", "never"], None),
    ],
)
def test_targets_of_another_sort_are_refused_and_new_words_are_not(
    first: list[str], then: list[str], said: str | None
) -> None:
    found = Learner({**SMALL})

    def observe(words: list[str]) -> None:
        schema = [{"name": "a", "kind": "number"}, {"name": "t", "kind": "target", "categories": words}]
        rows = len(words) if len(words) == 1 else 8
        found.observe(np.arange(rows, dtype=float)[:, None], np.arange(rows) % len(words), schema=schema)

    observe(first)
    if said is None:
        observe(then)
        return
    with pytest.raises(Refused, match=said) as refused:
        observe(then)
    assert refused.value.code == "bad_label"
    observe(first)


def test_a_file_whose_targets_changed_their_type_is_refused_with_the_remedy(
    start: Callable[..., LocalDaemon], tmp_path: Path, cache: Path, run: Run
) -> None:
    daemon = start(SMALL)
    assert run(daemon, "send", truths(tmp_path / "a.csv", ("yes", "no")), "--label", "told").status == 0
    command = ("--label", "told", "--task", "a", "--producer", "other")
    other = run(daemon, "send", truths(tmp_path / "b.csv", ("1", "0")), *command)
    assert other.status == 1
    assert "got numbers (" in other.err
    assert "--label" in other.err
    with daemon.admin() as admin:
        assert admin.status()["samples_seen"] <= 60


def test_another_file_with_other_words_in_their_places_is_no_version_of_it(
    start: Callable[..., LocalDaemon], tmp_path: Path, cache: Path, run: Run
) -> None:
    daemon = start(SMALL)
    for name, words in (("a", ("yes", "no")), ("b", ("maybe", "never"))):
        truths(tmp_path / f"{name}.csv", words)
    assert run(daemon, "send", tmp_path / "a.csv", "--label", "told", "--rows", "20").status == 0
    other = run(daemon, "send", tmp_path / "b.csv", "--label", "told", "--rows", "20", "--task", "a")
    assert other.status == 2
    assert "differs from it there" in other.err
    truths(tmp_path / "b.csv", ("yes", "no")).open("a").write("9.5,other\n")
    longer = run(daemon, "send", tmp_path / "b.csv", "--label", "told", "--rows", "20", "--task", "a")
    assert "sent 1 rows" in longer.out, longer.err


# -- JSON lines ------------------------------------------------------------------------------------------------------------


def test_keys_in_another_order_are_no_target_to_guess(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1.5, "b": 0}\n{"a": 2.5, "b": 1}\n')
    assert open_data(path, named=True).check().label == "b"
    path.write_text('{"a": 1.5, "b": 0}\n{"b": 1, "a": 2.5}\n')
    with pytest.raises(DataError, match=r"line 2: which key is the target\? The last one, 'b'.*'a'\. Say it with --label"):
        open_data(path, named=True).check()
    assert open_data(path, Columns(label="b"), named=True).check().label == "b"
    path.write_text('{"a": 1.5, "label": 0}\n{"label": 1, "a": 2.5}\n')
    assert open_data(path, named=True).check().label == "label"


# -- init ------------------------------------------------------------------------------------------------------------------


def test_init_says_of_the_rows_only_that_they_are_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for rows, said in ((40, True), (600, False)):
        (tmp_path / "a.csv").write_text("size,told\n" + "".join(f"{k % 7}.5,{k % 3}\n" for k in range(rows)))
        out = tmp_path / f"{rows}.toml"
        assert main(["init", str(tmp_path / "a.csv"), "--label", "told", "--out", str(out)]) == 0
        assert (f"{rows} rows are few" in out.read_text()) is said
        assert "rows a task" not in out.read_text()
    capsys.readouterr()


# -- a daemon that moved -----------------------------------------------------------------------------------------------


@pytest.fixture
def moving(tmp_path: Path, cache: Path) -> Iterator[LocalDaemon]:
    """On whatever ports are free."""
    with LocalDaemon({**SMALL, "endpoints": FREE_ENDPOINTS}, tmp_path / "state") as daemon:
        yield daemon


@pytest.mark.campaign
def test_a_followed_file_goes_on_where_its_daemon_has_moved_to(
    moving: LocalDaemon, tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, ports = tmp_path / "a.csv", [moving.endpoints["stream"]]
    path.write_text("size,told\n")

    def grow(first: int, end: int) -> None:
        with path.open("a") as file:
            file.write("".join(f"{k}.5,{('no', 'yes')[k % 2]}\n" for k in range(first, end)))

    def restart() -> None:
        moving.kill()
        moving.endpoints = {}
        moving.start()
        ports.append(moving.endpoints["stream"])
        grow(30, 60)

    steps = iter([lambda: grow(0, 30), restart])

    def pause(told: threading.Event) -> None:
        step = next(steps, None)
        told.set() if step is None else step()

    monkeypatch.setattr(follow, "_pause", pause)
    monkeypatch.setattr(follow, "ANSWER_SECONDS", 2.0)
    found = run(moving, "send", path, "--follow", "--task", "t", "--rows", "8")
    assert ports[0] != ports[1]
    assert found.status == 0, found.err
    assert f"the daemon is at {ports[1]} now" in found.err
    assert "sent 60 rows" in found.out
    steps = iter([lambda: grow(60, 70)])
    again = run(moving, "send", path, "--follow", "--task", "t", "--rows", "8")
    assert "sent 10 rows" in again.out, again.err
    with moving.producer("closing") as producer:
        assert producer.boundary("t")["samples"] == 70


def test_notes_of_an_older_version_by_endpoint_are_taken_over(
    moving: LocalDaemon, tmp_path: Path, cache: Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.csv"
    path.write_text("size,told\n" + "".join(f"{k}.5,{('no', 'yes')[k % 2]}\n" for k in range(20)))
    monkeypatch.setattr(follow, "_pause", lambda told: told.set())
    at = moving.endpoints["stream"]
    by_endpoint = run(moving, "send", path, "--follow", "--task", "t", "--rows", "8", "--stream", at)
    assert "sent 20 rows" in by_endpoint.out, by_endpoint.err
    with path.open("a") as file:
        file.write("20.5,no\n")
    again = run(moving, "send", path, "--follow", "--task", "t", "--rows", "8")
    assert "sent 1 rows" in again.out, again.err
