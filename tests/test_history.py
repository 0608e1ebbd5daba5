"""The time series and events: bounded, downsampled without losing sums, kept over restarts; rates, producers, forecasts."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamcl.daemon import words
from streamcl.daemon.chronicle import MOST_EVENTS, RATE_SECONDS, SHOWN_EVENTS, Chronicle
from streamcl.daemon.forecast import Forecast
from streamcl.learning.fitting import Progress
from streamcl.protocol.producers import ProducerState
from streamcl.protocol.session import StreamSession, Terms
from streamcl.storage.history import MAX_EVENTS, TIERS, History, HistoryReader

START = 1_700_000_000 // 21600 * 21600  # where every tier's rows begin


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "history.sqlite"


def figures(rows: int = 10, loss: float = 1.0) -> dict[str, float]:
    return {"rows": rows, "batches": 1, "bytes": 100 * rows, "loss": loss, "lag": 3, "credit": 16}


# -- the database ------------------------------------------------------------------------------------------------------


def test_each_tier_sums_counts_and_averages_values(path: Path) -> None:
    history = History(path)
    for number in range(3600):  # two hours
        history.add_sample(START + 2 * number, 2.0, figures(rows=number, loss=number / 3600))
    with HistoryReader(path) as reader:
        hours = reader.samples(START, START + 7199, points=10)
        assert [(row["time"], row["seconds"]) for row in hours] == [(START, 3600.0), (START + 3600, 3600.0)]
        assert [row["rows"] for row in hours] == [sum(range(1800)), sum(range(1800, 3600))]
        assert hours[0]["loss"] == pytest.approx(sum(range(1800)) / 1800 / 3600)
        minutes = reader.samples(START, START + 7199, points=300)
        assert {row["seconds"] for row in minutes} == {30.0}
        assert sum(row["rows"] for row in minutes) == sum(range(3600))
        assert len(reader.samples(START + 6000, START + 7199)) > 590  # the newest still one by one
        assert reader.first_sample() == START
        assert reader.last_sample() == START + 7198


@pytest.mark.campaign
def test_it_stays_small_however_long_the_daemon_runs(path: Path) -> None:
    history = History(path)
    step = 3000  # seconds; nearly twelve years of them
    for number in range(120_000):
        history.add_sample(START + step * number, 2.0, figures())
    with HistoryReader(path) as reader:
        counts = dict(reader._database.execute("select tier, count(*) from sample group by tier").fetchall())
        oldest = reader.first_sample()
    assert all(counts[tier] <= kept + 1 for tier, kept in TIERS)
    assert counts[21600] == 14610
    assert oldest is not None
    assert oldest > START + step * 120_000 - 14611 * 21600
    history.close()
    assert path.stat().st_size < 8 << 20


def test_penalties_and_events_make_room_for_newer_ones(path: Path) -> None:
    history = History(path, max_rows=100)
    for lsn in range(60):
        history.add_penalties(lsn, START + lsn, [(task, 1.0, 0.5) for task in "abcde"])
    for number in range(MAX_EVENTS + 50):
        history.note(START + number, "boundary", f"number {number}" * 100)
    with HistoryReader(path) as reader:
        kept = reader.penalties()
        assert len(kept) <= 100
        assert kept[-1]["lsn"] == 59
        events = reader.events(2 * MAX_EVENTS)
        assert len(events) == MAX_EVENTS
        assert events[0]["text"].startswith(f"number {MAX_EVENTS + 49}")
        assert max(len(event["text"]) for event in events) == 300


def test_what_was_written_is_there_after_a_restart_and_withdrawn_tasks_are_not(path: Path) -> None:
    first = History(path)
    first.add_penalties(5, START, [("a", 1.5, 0.1), ("b", 2.5, 0.2)])
    first.add_accuracies(5, START, [("a", 0.9, 100), ("b", 0.8, 100)])
    first.note(START, "boundary", "consolidated", "b", 4)
    first.close()
    second = History(path)
    assert second.latest_penalties() == {"a": (1.5, 0.1), "b": (2.5, 0.2)}
    assert second.latest_accuracies() == {"a": 0.9, "b": 0.8}
    assert [event["text"] for event in second.events(5)] == ["consolidated"]
    second.forget("b")
    assert list(second.latest_penalties()) == list(second.latest_accuracies()) == ["a"]
    with HistoryReader(path) as reader:
        assert reader.changes([5, 6]) == [{"lsn": 5, "time": START, "kind": "boundary", "task": "b"}]


def test_a_damaged_one_is_set_aside_and_begun_afresh(path: Path) -> None:
    path.write_bytes(b"this is no database" * 100)
    History(path).add_penalties(1, START, [("a", 1.0, 0.0)])
    assert path.with_name("history.sqlite.damaged").read_bytes().startswith(b"this is no database")
    with HistoryReader(path) as reader:
        assert len(reader.penalties()) == 1


def test_one_that_somebody_holds_for_a_moment_is_waited_for_and_kept(path: Path) -> None:
    """As a reader does that comes first after a kill: it must not be taken for damaged."""
    first = History(path)
    first.add_penalties(1, START, [("a", 1.0, 0.0)])
    first.close()
    holder = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    holder.execute("pragma locking_mode = exclusive")
    holder.execute("begin immediate")
    with pytest.raises(sqlite3.OperationalError, match="locked"), HistoryReader(path) as reader:
        reader.penalties()
    letting_go = threading.Timer(0.2, holder.close)
    letting_go.start()
    assert History(path).latest_penalties() == {"a": (1.0, 0.0)}
    letting_go.join()
    assert not path.with_name("history.sqlite.damaged").exists()


def test_a_reader_holds_nobody_up(path: Path) -> None:
    history = History(path)
    history.add_sample(START, 2.0, figures())
    with HistoryReader(path) as reader:
        reader._database.execute("begin")
        assert reader.last_sample() == START
        history.add_sample(START + 2, 2.0, figures())
        assert history._database.execute("select max(time) from sample where tier = 2").fetchone() == (START + 2,)
    with HistoryReader(path) as reader:
        assert reader.last_sample() == START + 2


def test_many_boundaries_are_thinned_out_with_the_first_and_the_last_kept(path: Path) -> None:
    history = History(path)
    for lsn in range(1, 1001):
        history.add_accuracies(lsn, START + lsn, [("a", lsn / 1000, 10), ("b", 0.0, 10)])
    with HistoryReader(path) as reader:
        rows = reader.newest("accuracy", ["a"], 60)
    assert len(rows) == 60
    assert (rows[0]["lsn"], rows[-1]["lsn"]) == (1, 1000)


def test_nothing_there_is_said(path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no history"):
        HistoryReader(path)
    with pytest.raises(sqlite3.DatabaseError):
        path.write_bytes(b"x" * 5000)
        HistoryReader(path).events()


# -- the chronicle -----------------------------------------------------------------------------------------------------


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def chronicle(path: Path, clock: Clock) -> Chronicle:
    session = StreamSession(Terms())
    for name in ("camera", "lidar", "silent"):
        session.producers[name] = ProducerState(durable=7, applied=5)
    return Chronicle(session, History(path), clock, lambda: START + clock.now)


def test_rates_are_means_of_the_last_ten_seconds_and_fall_to_nothing(chronicle: Chronicle, clock: Clock) -> None:
    for _ in range(200):
        clock.now += 0.1
        chronicle.stored("camera", 64, 1000)
        chronicle.tick(words.Progress())
    assert chronicle.rates()["rows"] == pytest.approx(640, rel=0.05)
    assert chronicle.rates()["batches"] == pytest.approx(10, rel=0.05)
    for _ in range(30):
        clock.now += 1.0
        chronicle.tick(words.Progress())
    assert chronicle.rates() == {"rows": 0.0, "batches": 0.0, "bytes": 0.0}


def test_producers_are_listed_by_who_was_heard_last(chronicle: Chronicle, clock: Clock) -> None:
    chronicle.stored("camera", 1, 1)
    clock.now += 5.0
    for _ in range(40):
        clock.now += 0.5
        chronicle.stored("lidar", 1, 1)
    shown = chronicle.producers(0, 10)
    assert [each["producer"] for each in shown] == ["lidar", "camera", "silent"]
    assert [each["age_seconds"] for each in shown] == [0.0, 25.0, None]
    assert shown[0]["batches_per_second"] == pytest.approx(2.0, rel=0.2)
    assert shown[1]["batches_per_second"] == 0.0
    assert (shown[2]["durable"], shown[2]["applied"]) == (7, 5)
    assert [each["producer"] for each in chronicle.producers(1, 1)] == ["camera"]


def test_names_that_the_session_dropped_are_not_kept(chronicle: Chronicle) -> None:
    for number in range(1000):
        chronicle.stored(f"stranger-{number}", 1, 1)
    assert len(chronicle._heard) <= 5


def test_an_event_is_news_once_a_minute_and_a_flood_is_cut_off(chronicle: Chronicle, clock: Clock, path: Path) -> None:
    for _ in range(50):
        chronicle.note("refused", "sensor: bad_shape")
    assert len(chronicle.events) == 1
    clock.now += 61.0
    chronicle.note("refused", "sensor: bad_shape")
    assert len(chronicle.events) == 2
    for number in range(10 * MOST_EVENTS):
        chronicle.note("refused", f"number {number}")
    assert len(chronicle.events) == SHOWN_EVENTS
    with HistoryReader(path) as reader:
        assert len(reader.events(10_000)) <= MOST_EVENTS + 2


def test_a_record_is_told_of_once_even_by_a_restarted_trainer(chronicle: Chronicle, clock: Clock) -> None:
    chronicle.note("boundary", "consolidated: 0.10 s", "a", 17)
    for number in range(2 * SHOWN_EVENTS):
        clock.now += 600
        chronicle.note("refused", f"sensor {number}: bad_shape")
    chronicle.note("boundary", "consolidated: 0.12 s", "a", 17)
    assert "boundary" not in {event["kind"] for event in chronicle.events}


def test_every_two_seconds_become_a_row(chronicle: Chronicle, clock: Clock, path: Path) -> None:
    for number in range(100):
        clock.now += 0.5
        chronicle.stored("camera", 10, 80)
        chronicle.tick(words.Progress(loss=number / 100, scores=words.Scores({"accuracy": 0.5}, {"accuracy": 0.75})))
    with HistoryReader(path) as reader:
        rows = reader.samples(START, START + 2000)
    assert 24 <= len(rows) <= 25
    assert sum(row["rows"] for row in rows) == pytest.approx(1000, abs=40)
    assert {row["accuracy"] for row in rows} == {0.75}
    assert rows[0]["credit"] == 16


# -- the forecast ------------------------------------------------------------------------------------------------------


def consolidate(
    forecast: Forecast, clock: Clock, epochs: int, epoch_seconds: float, fisher_seconds: float
) -> list[tuple[float, float, float | None]]:
    """What was shown on the way: the true seconds left, the fraction, the seconds left."""
    total, shown = epochs * epoch_seconds + fisher_seconds, []
    began = clock.now
    forecast.begin()
    for phase, seconds in (("epochs", epochs * epoch_seconds), ("fisher", fisher_seconds)):
        for step in range(1, 101):
            clock.now += seconds / 100
            epoch = min(epochs, int(step / 100 * epochs)) if phase == "epochs" else epochs
            forecast.saw(Progress("t", phase, step / 100, epoch, epochs, step))  # type: ignore[arg-type]
            shown.append((began + total - clock.now, forecast.fraction(), forecast.seconds_left()))
    forecast.saving()
    return shown


def test_the_second_forecast_is_right_and_none_goes_back(clock: Clock) -> None:
    forecast = Forecast(clock)
    assert forecast.seconds_left() is None
    for number in range(2):
        shown = consolidate(forecast, clock, epochs=10, epoch_seconds=2.0, fisher_seconds=15.0)
        fractions = [fraction for _, fraction, _ in shown]
        assert fractions == sorted(fractions)
        assert 0 < fractions[0] < fractions[-1] <= 1.0
        if number:
            assert all(left == pytest.approx(true, abs=0.5) for true, _, left in shown[10:])
    assert (forecast.phase, forecast.fraction(), forecast.seconds_left()) == ("saving", 1.0, 0.0)


@given(epochs=st.integers(1, 50), epoch=st.floats(0.01, 100), fisher=st.floats(0.001, 1000))
@settings(max_examples=30, deadline=None)
def test_whatever_a_consolidation_costs_the_fraction_stays_within_bounds(epochs: int, epoch: float, fisher: float) -> None:
    clock = Clock()
    forecast = Forecast(clock)
    for _ in range(2):
        for _, fraction, left in consolidate(forecast, clock, epochs, epoch, fisher):
            assert 0.0 <= fraction <= 1.0 + 1e-9
            assert left is None or left >= -1e-6


def test_rates_are_over_the_time_that_is_documented() -> None:
    assert RATE_SECONDS == 10.0
