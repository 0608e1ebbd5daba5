"""A directory of files through `send`, and what `init` says of a file before there is a daemon."""

from __future__ import annotations

import csv
import json
import shlex
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.cli import build_parser, main
from streamcl.config import load

Start = Callable[..., LocalDaemon]
SMALL = {"model": {"args": {"hidden": [8]}}, "train": {"device": "cpu", "epochs": 1}}


def written(path: Path, told: Callable[[int], Any] = lambda k: ("no", "yes")[k % 2], n: int = 60) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["size", "colour", "told"])
        out.writerows([f"{k % 2 + k / 100:.2f}", ("red", "blue", "")[k % 3], told(k)] for k in range(n))
    return path


@pytest.fixture
def send(start: Start, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    daemon = start(SMALL)

    def run(*arguments: Any) -> tuple[int, str, str]:
        status = main([*map(str, arguments), "--state-dir", str(daemon.state_dir)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def tasks(send: Callable[..., tuple[int, str, str]]) -> dict[str, int]:
    found = json.loads(send("tasks", "--json")[1])
    return {row["task"]: row["samples"] for row in (found if isinstance(found, list) else found["tasks"])}


def test_a_day_without_rows_stops_nothing(send: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    days = tmp_path / "days"
    for name, rows in (("01-monday.csv", 60), ("03-wednesday.csv", 62)):
        written(days / name, n=rows)
    for name in ("02-tuesday.csv", "04-thursday.csv"):
        written(days / name, n=0)
    status, _, err = send("send", days, "--label", "told", "--boundary")
    assert (status, err.count("expected at least one row; passed over")) == (0, 2)
    assert tasks(send) == {"01-monday": 60, "03-wednesday": 62}
    status, out, _ = send("send", days, "--label", "told", "--task", "week", "--boundary")  # whose last day has none
    assert (status, "consolidated: 122 samples" in out) == (0, True), out
    assert tasks(send)["week"] == 122
    written(days / "02-tuesday.csv", n=2).write_text("size,colour,told\nwide,red,no\n1.5,blue\n")
    status, _, err = send("send", days, "--label", "told")
    assert status == 2
    assert "not sent, behind 02-tuesday.csv: 03-wednesday.csv, 04-thursday.csv" in err


def test_every_file_of_a_directory_is_a_task_once(send: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    days = tmp_path / "days"
    for name in ("02-tuesday.csv", "01-monday.csv"):
        written(days / name)
    (days / "notes.md").write_text("not data\n")
    (days / ".hidden.csv").write_text("a,b\n1,2\n")
    status, out, err = send("send", days, "--label", "told", "--boundary")
    assert status == 0
    assert out.index("'01-monday'") < out.index("'02-tuesday'")
    assert "not sent: notes.md" in err
    assert tasks(send) == {"01-monday": 60, "02-tuesday": 60}
    written(days / "03-wednesday.csv")
    status, out, err = send("send", days, "--label", "told", "--boundary")
    assert status == 0, err
    assert out.count("batches were already stored") == 2
    assert tasks(send) == {"01-monday": 60, "02-tuesday": 60, "03-wednesday": 60}


def test_all_files_as_one_task(send: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    for name, n in (("a.csv", 40), ("b.csv", 50)):
        written(tmp_path / "parts" / name, n=n)
    assert send("send", tmp_path / "parts", "--label", "told", "--task", "whole", "--boundary")[0] == 0
    assert tasks(send) == {"whole": 90}


def test_odd_directories_are_refused(send: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "expected files that end with" in send("send", tmp_path / "empty")[2]
    for name in ("a.csv", "a.tsv"):
        written(tmp_path / "twice" / name)
    status, _, err = send("send", tmp_path / "twice")
    assert (status, "would be the task 'a'" in err) == (2, True)
    status, _, err = send("send", tmp_path / "twice", "--skip-rows", 3)
    assert (status, "of one file" in err) == (2, True)


# -- init --------------------------------------------------------------------------------------------------------------


def made(capsys: pytest.CaptureFixture[str], path: Path, *more: Any) -> dict[str, Any]:
    out = path.with_suffix(".toml")
    assert main(["init", str(path), "--out", str(out), *map(str, more)]) == 0
    said = capsys.readouterr().out
    assert "next:  streamcl serve --config" in said
    assert f"--boundary --state-dir {tomllib.loads(out.read_text())['state_dir']}" in said
    load(out)
    return tomllib.loads(out.read_text())


def test_init_writes_what_the_file_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = made(capsys, written(tmp_path / "my orders.csv"))
    assert found["state_dir"] == "./my-orders-state"
    assert found["model"] == {"likelihood": "categorical"}
    assert found["input"] == {"categories": "one-hot", "scale": "tables"}
    text = (tmp_path / "my orders.toml").read_text()
    assert "# words: colour (2)" in text
    assert "'told' is of words" in text
    for name, told in (("real", lambda k: k / 7), ("many", lambda k: 5 * k)):
        assert made(capsys, written(tmp_path / f"{name}.csv", told, n=200))["model"] == {"likelihood": "gaussian"}
    assert made(capsys, written(tmp_path / "few.csv", lambda k: k % 5))["model"] == {"likelihood": "categorical"}


def test_what_was_said_of_the_file_is_in_the_command_that_init_prints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a file.csv").write_text("".join(f"{k},{k % 2},{k / 7},{k}\n" for k in range(60)))
    told = ["--label", "1", "--drop=-1", "--header", "no"]
    assert main(["init", "a file.csv", *told]) == 0
    sent = capsys.readouterr().out.split("\n")[-2]
    assert shlex.split(sent) == ["streamcl", "send", "a file.csv", *told, "--boundary", "--state-dir", "./a-file-state"]
    build_parser().parse_args(shlex.split(sent)[1:])


def test_init_of_plain_arrays_scales_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "plain.npz", x=np.ones((30, 3)), y=np.arange(30) / 3)
    found = made(capsys, tmp_path / "plain.npz")
    assert found["model"] == {"likelihood": "gaussian"}
    assert found["input"] == {"scale": "auto"}


def test_init_of_a_column_of_many_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "many.csv"
    rows = [f"town{k % 150},{k % 2}" for k in range(900)]
    path.write_text("town,told\n" + "\n".join(rows) + "\n")
    assert made(capsys, path)["input"]["categories"] == "embedding"


def test_init_replaces_nothing_unasked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = written(tmp_path / "a.csv"), tmp_path / "streamcl.toml"
    out.write_text("mine")
    assert main(["init", str(path), "--out", str(out)]) == 2
    assert "it exists already" in capsys.readouterr().err
    assert out.read_text() == "mine"
    assert main(["init", str(path), "--out", str(out), "--force", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["keys"]["model.likelihood"]["value"] == "categorical"
