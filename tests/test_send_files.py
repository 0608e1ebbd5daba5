"""Data files through the real command line: how they are read, what arrives, and what happens to a corrected file."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from waiting import until

from streamcl.bench.local import LocalDaemon
from streamcl.cli import main

MODELS = """
from torch import nn

class Shifted(nn.Module):
    "Shows its input, from an offset on: what was lost on the way cannot be seen here again."

    def __init__(self, offset):
        super().__init__()
        self.offset, self.weight = offset, nn.Parameter(__import__("torch").zeros(1))

    def forward(self, x):
        return (x - self.offset).to(self.weight.dtype)[:, :1] + self.weight

def seconds(input_shape, outputs): return Shifted(1.7e9)

def numbers(input_shape, outputs): return Shifted(2**24)

def tokens(input_shape, outputs):
    return nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8 * input_shape[0], outputs))

def plain(input_shape, outputs): return nn.Linear(input_shape[0], outputs)
"""
CLASSES = {"model": {"args": {"hidden": [8]}, "classes": 10}, "train": {"epochs": 1, "batch_size": 512}}
REAL = {"model": {"likelihood": "gaussian"}, "train": {"epochs": 1, "dtype": "float64", "learning_rate": 1e-12}}
PLAIN = "a,b,y\n" + "".join(f"{n % 7}.5,{n % 5},{n % 3}\n" for n in range(20))


class Ran(NamedTuple):
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Run = Callable[..., Ran]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    """Learns rows of two numbers in single mode; columns have no names, whichever test comes first."""
    with LocalDaemon(CLASSES, tmp_path_factory.mktemp("files") / "state") as running, running.producer() as producer:
        producer.send(np.ones((2, 2)), np.arange(2), "plain")
        producer.boundary("plain")
        yield running


def runner(daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: Any) -> Ran:
        status = main([*map(str, arguments), "--state-dir", str(daemon.state_dir)])
        output = capsys.readouterr()
        return Ran(status, output.out, output.err)

    return run


@pytest.fixture
def run(daemon: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command; returns its exit status, its output and its errors."""
    return runner(daemon, capsys)


@pytest.fixture
def with_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], start: Callable[..., LocalDaemon]
) -> Callable[..., Run]:
    """Starts a daemon with one of `MODELS`; returns what runs commands on it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file_models.py").write_text(MODELS)

    def make(name: str, tree: dict[str, Any]) -> Run:
        model = {**tree["model"], "factory": f"file_models:{name}"}
        model.pop("args", None)
        return runner(start({**tree, "model": model}), capsys)

    return make


def durable(run: Run) -> int:
    return int(run("status", "--json").json["batches_durable"])


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# -- the first row, and which column is what -----------------------------------------------------------------------------


def test_a_mark_before_the_first_number_loses_no_row(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "mark.csv", b"\xef\xbb\xbf1,2,0\n3,4,1\n")
    sent = run("send", path, "--task", "mark", "--boundary")
    assert sent.status == 0
    assert "header: no (line 1 has numbers); features: 0, 1 as float64 [2]; label: 2 (the last column) as int64" in sent.out
    assert "sent 2 rows" in sent.out
    assert "consolidated: 2 samples" in sent.out
    asked = run("predict", path)
    assert (asked.status, len(asked.out.splitlines())) == (0, 2)


def test_without_a_task_it_is_the_files_name(run: Run, tmp_path: Path) -> None:
    sent = run("send", write(tmp_path / "no task.csv", "1,2,0\n3,4,1\n"), "--boundary", "--json")
    assert (sent.status, sent.json["task"], sent.json["samples"]) == (0, "no task", 2)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (",2,0\n3,4,1\n", "line 1, column '0': expected a number, it is empty; fill it, or drop the row"),
        ("0,1,2\n0.5,1,2\n", "--header yes or --header no"),
        ("x,y,z\n1,2,0\n", "which column is the target: y, z?"),
    ],
)
@pytest.mark.parametrize("command", ["send", "predict"])
def test_what_cannot_be_told_is_refused_and_nothing_is_sent(
    run: Run, tmp_path: Path, command: str, content: str, said: str
) -> None:
    before = durable(run)
    path = write(tmp_path / "odd.csv", content)
    done = run(command, path, *(("--task", "odd") if command == "send" else ()))
    assert done.status == 2
    assert done.err.startswith(f"streamcl: {path}: ")
    assert said in done.err
    assert durable(run) == before


def test_what_cannot_be_told_can_be_said(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "said.csv", "0,1,2\n0.5,1,2\n1.5,2,0\n")
    for header, rows in (("yes", 2), ("no", 3)):
        report = run("send", path, "--task", f"said-{header}", "--header", header, "--boundary", "--json").json
        assert (report["rows"], report["samples"]) == (rows, rows)
        assert report["read"]["header"] == f"{header} (--header)"
    assert len(run("predict", path, "--header", "yes").out.splitlines()) == 2


def test_a_frame_without_names_is_not_learned_from_its_header(run: Run, tmp_path: Path) -> None:
    rows = np.arange(60).reshape(12, 5) % 7
    path = write(tmp_path / "frame.csv", "0,1,2,3,4\n" + "".join(",".join(map(str, row)) + "\n" for row in rows))
    report = run("send", path, "--task", "frame", "--features", "0,1", "--boundary", "--label", "4", "--json").json
    assert (report["rows"], report["samples"]) == (12, 12)
    assert "counts the columns from 0" in report["read"]["header"]
    assert report["read"]["left_out"] == {"2": "not of --features", "3": "not of --features"}


def test_pandas_index_is_no_target(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "shuffled.parquet"
    table = pa.table({"a": [0.5, 1.5], "b": [2.5, 3.5], "kind": [0, 1], "__index_level_0__": [900, 901]})
    pandas = json.dumps({"index_columns": ["__index_level_0__"]}).encode()
    pq.write_table(table.replace_schema_metadata({b"pandas": pandas}), path)
    report = run("send", path, "--task", "shuffled", "--boundary", "--json").json
    assert report["samples"] == 2
    assert report["read"]["label"] == "kind"
    assert report["read"]["features"] == ["a", "b"]
    assert report["read"]["left_out"] == {"__index_level_0__": "pandas's index, as the file says"}


def test_a_label_goes_before_y(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "xy.csv", "x,y,label\n1.5,700.5,3\n2.5,-800.5,4\n")
    report = run("send", path, "--task", "xy", "--boundary", "--json").json
    assert (report["samples"], report["read"]["label"], report["read"]["features"]) == (2, "label", ["x", "y"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--label", "c"), "no column 'c' (--label); it has a, b, y"),
        (("--label", "y", "--drop", "y"), "--label and --drop both name 'y'"),
        (("--features", "a,y", "--label", "y"), "a target cannot be a feature"),
        (("--features", "a", "--drop", "b", "--drop", "a"), "--features and --drop both name 'a'"),
        (("--x", "a"), "--x names an NPZ file's array"),
        (("--numbers", "integer"), "line 2, column 'a': a fraction"),
    ],
)
@pytest.mark.parametrize("command", ["send", "predict", "sweep"])
def test_contradictions_are_wrong_usage(
    run: Run, tmp_path: Path, command: str, options: tuple[str, ...], said: str
) -> None:
    path = write(tmp_path / "plain.csv", PLAIN)
    done = run(command, path, *options, *(("--task", "t") if command == "send" else ()))
    assert (done.status, said in done.err) == (2, True), done.err


# -- predictions ----------------------------------------------------------------------------------------------------------


def test_predict_prints_the_score_beside_the_predictions(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "scored.csv", PLAIN)
    assert run("send", path, "--task", "scored", "--boundary").status == 0
    asked = run("predict", path)
    predicted = [int(line) for line in asked.out.splitlines()]
    accuracy = np.mean(np.array(predicted) == np.arange(20) % 3)
    assert f"accuracy {accuracy:.4g} over 20 rows" in asked.err
    assert f"read {path}: 20 rows; header: yes (line 1 has names); features: a, b" in asked.err
    plain = run("predict", path, "--json")
    assert (plain.json["accuracy"], plain.json["read"]["label"], plain.err) == (accuracy, "y", "")
    out = run("predict", path, "--out", tmp_path / "out.npz")
    assert "accuracy" in out.out
    assert f"read {path}" in out.out


@pytest.mark.parametrize("header", ["", "a,b,kind\n"])
def test_a_last_column_that_the_model_does_not_take_is_the_target(run: Run, tmp_path: Path, header: str) -> None:
    path = write(tmp_path / "last.csv", header + PLAIN.partition("\n")[2])
    asked = run("predict", path)
    assert asked.status == 0
    assert "(the last column) as int64" in asked.err
    assert "accuracy" in asked.err
    path = write(tmp_path / "none.csv", "1.5,2\n2.5,3\n")
    asked = run("predict", path)
    assert (asked.status, "no label" in asked.err, "accuracy" in asked.err) == (0, True, False)
    asked = run("predict", write(tmp_path / "wide.csv", "1,2,3,4,5\n"))
    assert (asked.status, "bad_shape" in asked.err) == (1, True)


def test_targets_that_are_none_of_the_models_are_said(run: Run, tmp_path: Path) -> None:
    np.savez(tmp_path / "hot.npz", x=np.ones((2, 2)), y=np.eye(10)[:2])
    asked = run("predict", tmp_path / "hot.npz")
    assert (asked.status, len(asked.out.splitlines())) == (0, 2)
    assert "not scored: expected targets of shape [2], as the predictions, got [2, 10]" in asked.err


# -- numbers --------------------------------------------------------------------------------------------------------------


def shown(asked: Ran) -> list[float]:
    assert asked.status == 0, asked.err
    return [float(line) for line in asked.out.splitlines()]


def test_seconds_of_today_arrive_as_they_are(with_model: Callable[..., Run], tmp_path: Path) -> None:
    run = with_model("seconds", {**REAL, "input": {"scale": "none"}})
    pq.write_table(pa.table({"t": 1.7e9 + np.arange(30), "y": np.zeros(30)}), tmp_path / "t.parquet")
    assert run("send", "t.parquet", "--task", "t", "--boundary").status == 0
    np.testing.assert_allclose(shown(run("predict", "t.parquet")), np.arange(30), atol=1e-6)
    write(tmp_path / "t.csv", "t\n" + "".join(f"{1_700_000_000 + n}\n" for n in range(30)))
    np.testing.assert_allclose(shown(run("predict", "t.csv")), np.arange(30), atol=1e-6)


def test_integers_arrive_as_they_are(with_model: Callable[..., Run], tmp_path: Path) -> None:
    run = with_model("numbers", {**REAL, "train": {**REAL["train"], "dtype": "float32"}})
    pq.write_table(pa.table({"t": 2**24 + np.arange(30), "y": np.zeros(30)}), tmp_path / "t.parquet")
    assert run("send", "t.parquet", "--task", "t", "--numbers", "integer", "--boundary").status == 0
    np.testing.assert_allclose(shown(run("predict", "t.parquet")), np.arange(30), atol=1e-6)
    write(tmp_path / "t.csv", "t\n" + "".join(f"{2**24 + n}\n" for n in range(30)))
    np.testing.assert_allclose(shown(run("predict", "t.csv")), np.arange(30), atol=1e-6)
    refused = run("predict", write(tmp_path / "half.csv", "t\n1\n0.5\n"))
    assert refused.status == 2
    assert "line 3, column 't': a fraction" in refused.err


@pytest.mark.parametrize("ending", ["csv", "parquet", "lists"])
def test_integers_reach_an_embedding(with_model: Callable[..., Run], tmp_path: Path, ending: str) -> None:
    run = with_model("tokens", CLASSES)
    tokens, labels = np.arange(90).reshape(30, 3) % 50, np.arange(30) % 3
    path = tmp_path / f"tokens.{'csv' if ending == 'csv' else 'parquet'}"
    if ending == "csv":
        write(path, "".join(f"{','.join(map(str, row))},{label}\n" for row, label in zip(tokens, labels, strict=True)))
    elif ending == "lists":
        pq.write_table(pa.table({"tokens": tokens.tolist(), "y": labels}), path)
    else:
        pq.write_table(pa.table({**{f"t{n}": tokens[:, n] for n in range(3)}, "y": labels}), path)
    report = run("send", path, "--task", "tokens", "--boundary", "--json").json
    assert report["samples"] == 30
    assert ("64-bit integers" in str(report["read"]["notes"])) == (
        ending != "lists"
    )  # columns with names are tried as numbers
    assert len(shown(run("predict", path))) == 30


def test_integers_reach_a_model_that_takes_none(with_model: Callable[..., Run], tmp_path: Path) -> None:
    run = with_model("plain", CLASSES)
    np.savez(tmp_path / "i.npz", x=np.arange(20).reshape(10, 2), y=np.arange(10) % 3)
    sent = run("send", "i.npz", "--task", "i", "--boundary")
    assert "features go as 64-bit floats, the only kind of numbers that the daemon's model takes" in sent.out
    assert "consolidated: 10 samples" in sent.out


def test_whole_numbers_in_one_file_and_fractions_in_the_next_are_both_learned(
    with_model: Callable[..., Run], tmp_path: Path
) -> None:
    run = with_model("plain", CLASSES)
    for name, cell in (("whole", "1"), ("fraction", "0.5"), ("whole-again", "2")):
        path = write(tmp_path / f"{name}.csv", f"a,b,y\n1,2,0\n{cell},4,1\n")
        assert "consolidated: 2 samples" in run("send", path, "--task", name, "--boundary").out
    pq.write_table(pa.table({"a": [1, 2], "b": [3, 4], "y": [0.0, 1.0]}), tmp_path / "i.parquet")
    sent = run("send", "i.parquet", "--task", "i", "--boundary")
    assert "features go as" not in sent.out  # columns with names are matched by them, in whatever type they are written
    assert "labels go as integers" in sent.out
    assert "consolidated: 2 samples" in sent.out


# -- whole, and once ------------------------------------------------------------------------------------------------------


@pytest.mark.campaign
def test_a_fraction_behind_a_megabyte_of_whole_numbers_is_learned(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "late.csv", "a,b,y\n" + "1,2,0\n" * 180_000 + "0.5,2,1\n")
    report = run("send", path, "--task", "late", "--rows", 8192, "--boundary", "--json").json
    assert report["samples"] == 180_001


@pytest.mark.parametrize("cell", ["half", "", "nan"])
def test_a_bad_cell_behind_a_megabyte_is_found_before_anything_is_sent(run: Run, tmp_path: Path, cell: str) -> None:
    before = durable(run)
    path = write(tmp_path / "late.csv", "a,b,y\n" + "1,2,0\n" * 180_000 + f"{cell},2,1\n")
    sent = run("send", path, "--task", "bad-late")
    assert (sent.status, "line 180002, column 'a'" in sent.err) == (2, True)
    assert durable(run) == before


def refused_half_way(run: Run, path: Path, task: str) -> list[str]:
    """A file whose eleventh label the daemon refuses; what its lines are."""
    lines = PLAIN.splitlines()
    write(path, "\n".join([*lines[:11], "1.5,2,77", *lines[12:]]) + "\n")
    sent = run("send", path, "--task", task, "--rows", 4)
    assert sent.status == 1
    assert "bad_label" in sent.err
    assert f"in {path}, line 10 to line 13" in sent.err
    assert "the 8 rows before are stored: correct the file and send it again" in sent.err
    return lines


def test_a_mended_file_goes_on_where_the_other_stopped(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "mended.csv"
    lines = refused_half_way(run, path, "mended")
    write(path, "\n".join(lines[:16]) + "\n")  # without its end, as if it were still being written
    sent = run("send", path, "--task", "mended", "--rows", 4)
    assert "an earlier version of this file, or one that begins alike, has stored its first 8 rows" in sent.out
    assert "sent 7 rows in 2 batches to task 'mended' (2 batches were already stored)" in sent.out
    renamed = write(tmp_path / "renamed.csv", "\n".join(lines[:16]) + "\n")
    assert run("send", renamed, "--task", "mended", "--rows", 4, "--json").json["batches_already_there"] == 4
    write(path, "\n".join(lines) + "\n")  # the rest of it, from within what was the last batch
    report = run("send", path, "--task", "mended", "--rows", 4, "--json").json
    assert (report["rows"], report["batches"], report["batches_already_there"]) == (5, 2, 4)
    assert "has stored its first 15 rows" in report["notes"][0]
    assert run("send", path, "--task", "mended", "--rows", 4, "--json").json["rows"] == 0
    assert run("boundary", "mended", "--json").json["samples"] == 20


def test_a_row_that_was_stored_and_is_changed_is_said(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "changed.csv"
    lines = refused_half_way(run, path, "changed")
    mended = write(path, "\n".join([*lines[:6], "9.5,9,1", *lines[7:]]) + "\n")
    sent = run("send", mended, "--task", "changed", "--rows", 4)
    assert sent.status == 2
    assert "has stored 8 rows in task 'changed', and this one differs from it there, from line 6 on" in sent.err
    report = run("send", mended, "--task", "changed", "--rows", 4, "--skip-rows", 8, "--json").json
    assert (report["rows"], report["batches_already_there"]) == (12, 0)
    assert run("send", mended, "--task", "changed", "--rows", 4, "--skip-rows", 8, "--json").json["rows"] == 0
    assert run("boundary", "changed", "--json").json["samples"] == 20


def test_without_what_was_noted_it_is_said_how_to_go_on(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "forgotten.csv"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lines = refused_half_way(run, path, "forgotten")
    shutil.rmtree(tmp_path / "cache")
    write(path, "\n".join(lines) + "\n")
    before = durable(run)
    sent = run("send", path, "--task", "forgotten", "--rows", 4)
    assert sent.status == 2
    assert "2 batches (8 rows" in sent.err
    assert "--skip-rows 8 sends what comes after them" in sent.err
    assert durable(run) == before
    assert run("send", path, "--task", "forgotten", "--rows", 4, "--skip-rows", 8, "--json").json["rows"] == 12
    assert run("boundary", "forgotten", "--json").json["samples"] == 20


def test_the_same_file_cut_otherwise_is_not_stored_twice(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "cut.csv", PLAIN)
    assert run("send", path, "--task", "cut", "--rows", 10).status == 0
    sent = run("send", path, "--task", "cut", "--rows", 5)
    assert (sent.status, "--skip-rows" in sent.err) == (2, True)
    assert run("boundary", "cut", "--json").json["samples"] == 20


def test_two_different_files_of_a_task_are_both_stored(run: Run, tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.csv", PLAIN), write(tmp_path / "2.csv", PLAIN.replace(".5", ".25"))
    for path in (first, second):
        assert run("send", path, "--task", "both", "--json").json["rows"] == 20
    assert run("boundary", "both", "--json").json["samples"] == 40


def test_a_place_that_takes_no_notes_hinders_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(write(tmp_path / "file", "")))
    path = write(tmp_path / "plain.csv", PLAIN)
    assert run("send", path, "--task", "unnoted", "--rows", 10, "--json").json["rows"] == 20
    assert run("send", path, "--task", "unnoted", "--rows", 10, "--boundary", "--json").json["batches_already_there"] == 2


def test_a_sweep_says_what_it_took_for_what(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [write(tmp_path / f"{name}.csv", PLAIN) for name in ("one", "two")]
    with LocalDaemon({**CLASSES, "posterior": {"mode": "factors"}}, tmp_path / "state") as running:
        run = runner(running, capsys)
        swept = run("sweep", *files, "--sweeps", 1)
        assert [line.split(": ")[0] for line in swept.out.splitlines()[:2]] == [f"read {path}" for path in files]
        plain = run("sweep", *files, "--sweeps", 1, "--json").json
        assert [(each["task"], each["label"], each["features"]) for each in plain["read"]] == [
            ("one", "y", ["a", "b"]),
            ("two", "y", ["a", "b"]),
        ]
        bad = write(tmp_path / "bad.csv", PLAIN + "1,red,0\n")
        before = durable(run)
        assert "line 22, column 'b'" in run("sweep", files[0], bad, "--sweeps", 1).err
        assert durable(run) == before


def test_an_evaluation_set_has_the_streams_kind_of_numbers(
    start: Callable[..., LocalDaemon],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "file_models.py", MODELS)
    (tmp_path / "sets").mkdir()
    model = {"factory": "file_models:tokens", "classes": 10}
    daemon = start({**CLASSES, "model": model, "evaluation": {"directory": str(tmp_path / "sets")}})
    run = runner(daemon, capsys)
    tokens, labels = np.arange(90).reshape(30, 3) % 50, np.arange(30) % 3
    np.savez(tmp_path / "t.npz", x=tokens, y=labels)
    lines = [f"{','.join(map(str, row))},{label}.0\n" for row, label in zip(tokens, labels, strict=True)]
    write(
        tmp_path / "sets" / "t.csv", "".join(lines)
    )  # whole numbers as a text has them, labels after a detour through floats
    assert run("send", "t.npz", "--task", "t", "--boundary").status == 0
    accuracy = run("predict", "sets/t.csv", "--label", "-1", "--json").json["accuracy"]
    with daemon.admin() as admin:
        until(lambda: 'streamcl_task_accuracy_ratio{task="t"}' in admin.metrics())
        assert admin.metrics()['streamcl_task_accuracy_ratio{task="t"}'] == pytest.approx(accuracy)
