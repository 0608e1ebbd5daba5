"""`streamcl plot`: figures of the stored history, and what is reported if there is none."""

from __future__ import annotations

import json
import math
import sqlite3
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from streamcl import plots
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.cli.plot import _said
from streamcl.plots import NothingToDraw, Past
from streamcl.storage.history import History

pytestmark = pytest.mark.campaign

Run = Callable[..., tuple[int, str, str]]
START = 1_700_000_000.0


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Plots from `tmp_path`; returns the exit status, the output and the errors."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: Any) -> tuple[int, str, str]:
        status = main(["plot", *map(str, arguments), "--state-dir", str(tmp_path)])
        output = capsys.readouterr()
        return status, output.out, output.err

    return command


def remember(path: Path, tasks: int = 4, revisited: int = 1, accuracies: bool = True) -> Path:
    """A history of so many tasks, 10 records each, then a revisit of one; every earlier task has lost something."""
    history = History(path / "history.sqlite")
    names = [f"task {number}" for number in range(tasks)]
    rises = dict.fromkeys(names, 0.0)
    for number, (name, kind) in enumerate([*((n, "boundary") for n in names), (names[revisited], "revisit")]):
        lsn, time = 10 * number + 9, START + 60 * number
        rises = {n: rise + 0.1 for n, rise in rises.items()} | {name: 0.0}
        learned = names[: number + 1]
        history.add_penalties(lsn + 1, time, [(n, 5.0 + rises[n], rises[n]) for n in learned])
        if accuracies:
            history.add_accuracies(lsn + 1, time, [(n, 1.0 - rises[n] / 10, 100) for n in learned])
        history.note(time, kind, "consolidated", name, lsn)
        for second in range(0, 60, 2):
            history.add_sample(time + second, 2.0, {"loss": 1.0 / (1 + number), "accuracy": 0.5, "rows": 10})
    history.close()
    return path


def read(path: Path) -> Past:
    return Past.read(path / "history.sqlite")


def test_every_kind_is_drawn_as_png_and_svg(run: Run, tmp_path: Path) -> None:
    remember(tmp_path)
    for kind in plots.KINDS:
        assert run(kind, "--out", f"{kind}.svg")[0] == 0
        assert ElementTree.parse(f"{kind}.svg").getroot().tag.endswith("svg")
        status, out, _ = run(kind)
        assert (status, out.startswith(f"{kind}.png")) == (0, True)
        assert Path(f"{kind}.png").read_bytes().startswith(b"\x89PNG")
    status, out, _ = run("all", "--out", "all", "--format", "svg", "--json")
    assert status == 0
    assert {Path(figure["file"]) for figure in json.loads(out)["plots"]} == {Path("all") / f"{k}.svg" for k in plots.KINDS}
    assert json.loads(out)["skipped"] == {}


def test_forgetting_has_a_line_a_task_and_a_star_at_each_revisit(tmp_path: Path) -> None:
    drawn = plots.forgetting(read(remember(tmp_path, tasks=4, revisited=1)))
    (axes,) = drawn.figure.axes
    lines = {line.get_label(): line for line in axes.lines}
    assert list(lines["task 0"].get_xdata()) == [0, 1, 2, 3, 4]
    assert list(lines["task 3"].get_xdata()) == [3, 4]
    assert lines["task 0"].get_ydata() == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert lines["task 1"].get_ydata() == pytest.approx([0.0, 0.1, 0.2, 0.0])
    stars = [points.get_offsets() for points in axes.collections if isinstance(points, PathCollection)]
    assert [star.tolist() for star in stars if len(star)] == [[[4.0, 0.0]]]
    assert [text.get_text() for text in axes.get_xticklabels()][-1] == "again: task 1"
    assert "revisit" in [text.get_text() for text in axes.get_legend().get_texts()]
    assert drawn.numbers["by_task"] == pytest.approx({"task 0": 0.4, "task 1": 0.0, "task 2": 0.2, "task 3": 0.1})


def test_accuracy_has_the_mean_over_the_tasks_so_far(tmp_path: Path) -> None:
    drawn = plots.accuracy(read(remember(tmp_path, tasks=2, revisited=0)))
    (axes,) = drawn.figure.axes
    mean = next(line for line in axes.lines if line.get_label() == "mean")
    assert mean.get_ydata() == pytest.approx([1.0, 0.995, 0.995])
    assert drawn.numbers["mean_accuracy"] == pytest.approx(0.995)


def test_many_tasks_are_coloured_by_position_with_a_scale(tmp_path: Path) -> None:
    figure = plots.forgetting(read(remember(tmp_path, tasks=30))).figure
    axes, bar = figure.axes
    assert len({line.get_color() for line in axes.lines if str(line.get_label()).startswith("task")}) == 30
    assert "position" in bar.get_ylabel()
    assert bar.get_ylim() == (1, 30)


def test_order_bias_is_the_rank_correlation_with_the_order_of_learning(run: Run, tmp_path: Path) -> None:
    remember(tmp_path, tasks=6, revisited=5)  # the earlier, the more has been lost
    status, out, _ = run("order-bias", "--json")
    (figure,) = json.loads(out)["plots"]
    assert status == 0
    assert figure["rise"]["rank_correlation"] == pytest.approx(-1.0)
    assert figure["accuracy"]["rank_correlation"] == pytest.approx(1.0)
    assert figure["rise"]["tasks"] == [f"task {number}" for number in range(6)]
    assert figure["rise"]["slope"] < -0.05


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [([1, 2, 3], [10, 20, 15], 0.5), ([1, 2, 3, 4], [1, 1, 2, 2], 0.894427), ([1, 2], [3, 3], math.nan)],
)
def test_rank_correlation_is_spearmans(one: list[float], other: list[float], expected: float) -> None:
    assert plots.rank_correlation(one, other) == pytest.approx(expected, nan_ok=True)


def test_a_rank_that_is_none_is_said_in_words() -> None:
    assert _said({"rise": {"rank_correlation": math.nan}, "slope": 2.0}) == [
        "slope 2",
        "rank correlation of rise undefined: all alike",
    ]


def test_the_time_series_has_a_hole_where_the_daemon_did_not_run(tmp_path: Path) -> None:
    remember(tmp_path)
    history = History(tmp_path / "history.sqlite")
    history.add_sample(START + 1000, 2.0, {"loss": 0.1, "accuracy": None})
    history.close()
    upper, lower = plots.loss(read(tmp_path)).figure.axes
    values = np.asarray(upper.lines[0].get_ydata(), float)
    assert np.isnan(values).sum() == 1
    assert np.isnan(values[-2])
    assert {line.get_label() for line in upper.lines} >= {"boundary", "revisit"}
    assert len(lower.lines) == len(upper.lines)


def test_hours_leave_out_what_is_older(run: Run, tmp_path: Path) -> None:
    remember(tmp_path, tasks=10)
    assert json.loads(run("forgetting", "--json")[1])["plots"][0]["boundaries"] == 11
    assert json.loads(run("forgetting", "--hours", "0.05", "--json")[1])["plots"][0]["boundaries"] < 5
    assert run("forgetting", "--hours", "0")[0] == 2


def test_an_empty_history_is_explained_and_leaves_no_file(run: Run, tmp_path: Path) -> None:
    History(tmp_path / "history.sqlite").close()
    reasons = {"accuracy": "evaluation set", "forgetting": "factor mode", "order-bias": "fewer than two", "loss": "no loss"}
    for kind, reason in reasons.items():
        status, _, err = run(kind)
        assert (status, reason in err) == (1, True)
    status, out, _ = run("all")
    assert (status, out.count("is not drawn")) == (1, 5)
    assert not list(tmp_path.rglob("*.png"))


def test_all_draws_what_there_is_and_says_what_there_is_not(run: Run, tmp_path: Path) -> None:
    remember(tmp_path, accuracies=False)
    status, out, _ = run("all", "--out", "some")
    assert status == 0
    assert {path.stem for path in Path("some").iterdir()} == set(plots.KINDS) - {"accuracy"}
    assert "accuracy is not drawn" in out


def test_no_history_a_damaged_one_and_one_of_an_earlier_version_are_said(run: Run, tmp_path: Path) -> None:
    status, _, err = run("loss")
    assert (status, "--state-dir" in err) == (2, True)
    path = tmp_path / "history.sqlite"
    path.write_bytes(b"not a database at all, but long enough to be taken for one" * 100)
    status, _, err = run("loss")
    assert (status, "sets a damaged one aside" in err) == (2, True)
    path.unlink()
    sqlite3.connect(path).execute("create table penalty (lsn, time, task, penalty, rise)").connection.close()
    status, _, err = run("loss")
    assert (status, "brings an older one up to date" in err) == (2, True)


def test_wrong_usage_exits_2(run: Run, tmp_path: Path) -> None:
    remember(tmp_path)
    assert "FILE.png or FILE.svg" in run("loss", "--out", "loss.pdf")[2]
    (tmp_path / "file").write_text("")
    status, _, err = run("loss", "--out", "file/loss.png")
    assert (status, "--out" in err) == (2, True)
    with pytest.raises(SystemExit) as caught:
        run("los")
    assert caught.value.code == 2


def test_without_matplotlib_it_says_what_to_install(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(tmp_path)
    monkeypatch.delitem(sys.modules, "streamcl.bench.figure", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    status, _, err = run("loss")
    assert (status, "pip install 'streamcl[demo]'" in err) == (1, True)


def test_names_that_mean_something_to_matplotlib_are_shown_as_they_are(tmp_path: Path) -> None:
    history = History(tmp_path / "history.sqlite")
    names = ["_hidden", "$x$", "任務", "long " * 30, "$"]
    history.add_penalties(1, START, [(name, 1.0, 0.1) for name in names])
    history.close()
    drawn = plots.forgetting(read(tmp_path))
    plots.write(drawn, tmp_path / "names.png")
    texts = [text.get_text() for text in drawn.figure.axes[0].get_legend().get_texts()]
    assert len(texts) == 5
    assert any("_hidden" in text for text in texts)
    assert all(len(text) < 30 for text in texts)


def test_a_figure_without_anything_is_never_drawn() -> None:
    for draw in plots.KINDS.values():
        with pytest.raises(NothingToDraw):
            draw(Past([], [], [], []))


def test_a_running_daemons_history_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tree = {"model": {"classes": 3}, "train": {"epochs": 1}, "posterior": {"mode": "factors"}}
    rng = np.random.default_rng(0)
    with LocalDaemon(tree, tmp_path / "state") as daemon, daemon.producer() as producer:
        for task in ("monday", "tuesday"):
            producer.send(rng.normal(size=(60, 4)).astype("<f4"), rng.integers(0, 3, 60), task)
            producer.boundary(task)
        daemon.admin().checkpoint()
        out = tmp_path / "forgetting.png"
        assert main(["plot", "forgetting", "--out", str(out), "--state-dir", str(daemon.state_dir), "--json"]) == 0
        assert set(json.loads(capsys.readouterr().out)["plots"][0]["by_task"]) == {"monday", "tuesday"}
    assert out.stat().st_size > 10_000
