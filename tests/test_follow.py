"""`send --follow`: a file that grows, in pieces, through interruptions, each row once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.cli import follow, main

SMALL = {"model": {"args": {"hidden": [8]}}, "train": {"device": "cpu", "epochs": 1}}
HEAD = "size,colour,told\n"
Said = tuple[int, str, str]


def lines(first: int, end: int) -> str:
    """Rows by their number; a cell with a comma and a line's end, and a number that is whole at times."""
    return "".join(
        f'{k / 2:g},"{("red", "blue, dark", "two" + chr(10) + "lines")[k % 3]}",{("no", "yes")[k % 2]}\n'
        for k in range(first, end)
    )


class Grower:
    """Appends the next piece where the follower would wait, and ends it when there are none."""

    def __init__(self, path: Path, pieces: list[str]) -> None:
        self.path, self.pieces = path, iter(pieces)

    def __call__(self, told: Any) -> None:
        piece = next(self.pieces, None)
        if piece is None:
            told.set()
        else:
            with self.path.open("a") as file:
                file.write(piece)


@pytest.fixture
def daemon(start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LocalDaemon:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return start(SMALL)


@pytest.fixture
def run(daemon: LocalDaemon, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    def go(path: Path, *more: str, pieces: list[str]) -> Said:
        monkeypatch.setattr(follow, "_pause", Grower(path, pieces))
        status = main(["send", str(path), "--follow", "--task", "t", *more, "--state-dir", str(daemon.state_dir)])
        said = capsys.readouterr()
        return status, said.out, said.err

    return go


def rows_of(daemon: LocalDaemon) -> int:
    with daemon.producer("closing") as producer:
        return int(producer.boundary("t")["samples"])


def test_rows_leave_as_they_come_each_once_and_through_restarts(
    run: Callable[..., Said], daemon: LocalDaemon, tmp_path: Path
) -> None:
    path = tmp_path / "growing.csv"
    path.write_text("size,col")
    whole = lines(0, 90)
    cut = whole.index("two\n", 400) + 4  # within a quoted cell
    pieces = ["our,told\n", lines(0, 5), whole[len(lines(0, 5)) : cut], whole[cut:-3]]
    status, out, err = run(path, "--rows", "8", pieces=pieces)
    assert status == 0, err
    assert "sent 89 rows" in out
    assert path.read_text() == HEAD + whole[:-3]
    status, out, err = run(path, "--rows", "8", pieces=[whole[-3:] + lines(90, 100), lines(100, 130)])
    assert status == 0, err
    assert "sent 41 rows" in out
    daemon.kill()
    daemon.start()
    status, out, err = run(path, "--rows", "16", pieces=[lines(130, 140)])
    assert status == 0, err
    assert "sent 10 rows" in out
    assert rows_of(daemon) == 140


def test_an_interrupted_run_goes_on_within_a_piece(
    run: Callable[..., Said], daemon: LocalDaemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "growing.csv"
    path.write_text(HEAD + lines(0, 20))
    from streamcl.client import Producer

    sent, send = [], Producer.send

    def dies(self: Producer, x: Any, y: Any, *more: Any, **others: Any) -> Any:
        if len(sent) == 7:
            raise KeyboardInterrupt
        sent.append(len(x))
        return send(self, x, y, *more, **others)

    monkeypatch.setattr(Producer, "send", dies)
    assert run(path, "--rows", "8", pieces=[lines(20, 100)])[0] == 130
    monkeypatch.setattr(Producer, "send", send)
    status, _, err = run(path, "--rows", "8", pieces=[lines(100, 103)])
    assert status == 0, err
    assert rows_of(daemon) == 103


def test_json_lines_and_plain_numbers_are_followed_too(run: Callable[..., Said], tmp_path: Path) -> None:
    path = tmp_path / "growing.jsonl"
    path.write_text("")
    each = [
        json.dumps({"size": k / 2, "colour": ("red", "blue")[k % 2], "told": ("no", "yes")[k % 2]}) + "\n"
        for k in range(30)
    ]
    status, out, err = run(path, "--label", "told", pieces=["".join(each[:9]), "".join(each[9:])])
    assert status == 0, err
    assert "sent 30 rows" in out


def test_a_stream_without_names(run: Callable[..., Said], daemon: LocalDaemon, tmp_path: Path) -> None:
    path = tmp_path / "growing.csv"
    path.write_text("1.5,2.5,0\n2.5,1.5,1\n")
    for pieces, sent in ((["3,4,1\n", "5,6,0\n7,8,1\n"], 5), (["9,9,0\n"], 1)):
        status, out, err = run(path, pieces=pieces)
        assert status == 0, err
        assert f"sent {sent} rows" in out
    assert rows_of(daemon) == 6


def test_a_file_that_is_another_one_now_ends_it(run: Callable[..., Said], daemon: LocalDaemon, tmp_path: Path) -> None:
    path = tmp_path / "growing.csv"
    path.write_text(HEAD + lines(0, 30))
    assert run(path, pieces=[lines(30, 40)])[0] == 0
    text = path.read_text()
    path.write_text(text.replace("1,", "8,", 1) + lines(40, 50))
    status, _, err = run(path, pieces=[])
    assert status == 2
    assert "are not those that were sent" in err
    path.write_text(text)

    def cut(told: Any) -> None:
        path.write_text(HEAD)

    follow._pause = cut  # the fixture puts back what was there
    status = main(["send", str(path), "--follow", "--task", "t", "--state-dir", str(daemon.state_dir)])
    assert status == 2
    assert rows_of(daemon) == 40


def test_it_ends_where_nothing_comes_and_closes_the_task(run: Callable[..., Said], tmp_path: Path) -> None:
    path = tmp_path / "growing.csv"
    path.write_text(HEAD + lines(0, 30) + "7,re")
    status, out, err = run(path, "--idle", "1.0", "--boundary", pieces=["", "", ""])
    assert status == 0, err
    assert "consolidated: 30 samples" in out
    assert "4 bytes behind its last line's end were not sent" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--idle", "3"], "of --follow"),
        (["--follow", "--skip-rows", "3"], "not with --follow"),
        (["--follow", "--boundary"], "say with --idle SECONDS"),
    ],
)
def test_odd_uses_are_refused(arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(HEAD)
    assert main(["send", str(path), *arguments]) == 2
    assert said in capsys.readouterr().err
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert main(["send", str(tmp_path / "a.parquet"), "--follow"]) == 2
    assert "whose rows are lines" in capsys.readouterr().err
