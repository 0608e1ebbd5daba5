"""What was observed over time, for plots and the dashboard: an SQLite database of bounded size.

Guarantees: every table is bounded: the oldest rows make room; a time series is kept in tiers, coarser the older it is; a
reader never holds up the writer (write-ahead log). Nothing depends on it, so it is written
without waiting for the disk; a database that cannot be read is set aside and a new one begun.
"""

from __future__ import annotations

import contextlib
import itertools
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

MAX_ROWS = 500_000  # of penalties, and of accuracies
MAX_EVENTS = 10_000
TEXT_CHARACTERS = 300
WAL_BYTES = 1 << 20
OPEN_SECONDS = 30.0  # that somebody else may have it to himself while it is opened
# seconds that a row covers and rows kept: an hour, half a day, 5 days, a year, 10 years
TIERS = ((2, 1800), (30, 1440), (240, 1800), (3600, 8760), (21600, 14610))
SAMPLE = ("loss", "accuracy", "rows", "batches", "bytes", "lag", "spool", "open_bytes", "credit")
_TABLES = """
create table if not exists penalty (
    lsn integer not null, time real not null, task text not null, penalty real, rise real, primary key (lsn, task)
) without rowid;
create table if not exists accuracy (
    lsn integer not null, time real not null, task text not null, accuracy real, rows integer, primary key (lsn, task)
) without rowid;
create table if not exists beside (
    lsn integer not null, time real not null, task text not null, accuracy real, calibration real, rows integer,
    primary key (lsn, task)
) without rowid;
create table if not exists past (
    lsn integer primary key, time real not null, rise real
) without rowid;
create table if not exists sample (
    tier integer not null, time integer not null, seconds real not null, loss real, accuracy real, rows integer,
    batches integer, bytes integer, lag real, spool real, open_bytes real, credit real, primary key (tier, time)
) without rowid;
create table if not exists event (
    id integer primary key autoincrement, time real not null, kind text not null, task text, text text not null, lsn integer
);
"""
_COARSER = """
insert or replace into sample
select ?, ?, sum(seconds), avg(loss), avg(accuracy), sum(rows), sum(batches), sum(bytes), avg(lag), avg(spool),
       avg(open_bytes), avg(credit)
from sample where tier = ? and time >= ? and time < ? having count(*) > 0
"""


class History:
    """The writer, of which there is one, in the ingest process. On a full disk, what is written is lost."""

    def __init__(self, path: Path, max_rows: int = MAX_ROWS) -> None:
        self.max_rows = max_rows
        try:
            self._database = self._open(path)
        except sqlite3.DatabaseError as error:
            if _is_held(error):
                raise
            path.replace(path.with_name(path.name + ".damaged"))
            for ending in ("-wal", "-shm"):
                path.with_name(path.name + ending).unlink(missing_ok=True)
            self._database = self._open(path)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        """Waits for a reader that takes in what a killed daemon has left; from then on, nothing is waited for."""
        database = sqlite3.connect(path, isolation_level=None, timeout=OPEN_SECONDS)
        database.execute("pragma journal_mode = wal")
        database.execute("pragma synchronous = off")
        database.execute("pragma secure_delete = on")
        database.execute(f"pragma journal_size_limit = {WAL_BYTES}")
        database.executescript(_TABLES)
        database.execute("pragma busy_timeout = 0")
        return database

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        """A transaction; lost if the disk is full."""
        with contextlib.suppress(sqlite3.OperationalError), self._database as database:
            cursor = database.cursor()
            cursor.execute("begin")
            yield cursor

    def add_penalties(self, lsn: int, time: float, rows: Iterable[Sequence[Any]]) -> None:
        """Rows of task, penalty in nats and rise in nats per sample, after record `lsn` - 1."""
        self._add("penalty", lsn, time, rows)

    def add_accuracies(self, lsn: int, time: float, rows: Iterable[Sequence[Any]]) -> None:
        """Rows of task, share of its evaluation set predicted correctly, and that set's rows, after record `lsn` - 1."""
        self._add("accuracy", lsn, time, rows)

    def add_beside(self, lsn: int, time: float, rows: Iterable[Sequence[Any]]) -> None:
        """What else an evaluation found: rows of task, accuracy, calibration error or None, and its set's rows. Of learned
        tasks, and of sets whose task has not come; at lsn 0: of a network with nothing learned."""
        self._add("beside", lsn, time, rows)

    def add_past(self, lsn: int, time: float, rise: float | None) -> None:
        """The rise of all tasks together in nats a sample, None where it is not known, after record `lsn` - 1."""
        with self._writing() as cursor:
            cursor.execute("insert or replace into past values (?, ?, ?)", (lsn, time, rise))
            (count,) = cursor.execute("select count(*) from past").fetchone()
            if count > self.max_rows:
                cursor.execute(
                    "delete from past where lsn in (select lsn from past order by lsn limit ?)", (count - self.max_rows,)
                )

    def _add(self, table: str, lsn: int, time: float, rows: Iterable[Sequence[Any]]) -> None:
        every = [(lsn, time, *row) for row in rows]
        if not every:
            return
        with self._writing() as cursor:
            places = ", ".join("?" * len(every[0]))
            cursor.executemany(f"insert or replace into {table} values ({places})", every)
            (count,) = cursor.execute(f"select count(*) from {table}").fetchone()
            if count > self.max_rows:
                cursor.execute(
                    f"delete from {table} where lsn <= (select lsn from {table} order by lsn limit 1 offset ?)",
                    (count - self.max_rows,),
                )

    def add_sample(self, time: float, seconds: float, figures: dict[str, Any]) -> None:
        """What the daemon did in the `seconds` before `time` (Unix seconds), by the names of `SAMPLE`.

        rows, batches and bytes are counts, summed in coarser tiers; the others are values, averaged there.
        """
        with self._writing() as cursor:
            finest = TIERS[0][0]
            at = int(time) // finest * finest
            row = (finest, at, seconds, *(figures.get(name) for name in SAMPLE))
            cursor.execute(f"insert or replace into sample values ({', '.join('?' * len(row))})", row)
            for (fine, _), (coarse, _) in itertools.pairwise(TIERS):
                start = at // coarse * coarse
                cursor.execute(_COARSER, (coarse, start, fine, start, start + coarse))
            for tier, kept in TIERS:
                cursor.execute("delete from sample where tier = ? and time <= ?", (tier, at - tier * kept))

    def note(self, time: float, kind: str, text: str, task: str | None = None, lsn: int | None = None) -> None:
        """An event: a boundary, a failure, a start; what is long is cut."""
        with self._writing() as cursor:
            row = (time, kind, task, text[:TEXT_CHARACTERS], lsn)
            cursor.execute("insert into event (time, kind, task, text, lsn) values (?, ?, ?, ?, ?)", row)
            cursor.execute("delete from event where id <= (select max(id) from event) - ?", (MAX_EVENTS,))

    def has_event(self, kind: str, lsn: int) -> bool:
        """Whether an event of this kind was noted of this record."""
        found = self._database.execute("select 1 from event where kind = ? and lsn = ? limit 1", (kind, lsn))
        return found.fetchone() is not None

    def latest_penalties(self) -> dict[str, tuple[float, float]]:
        """Each task's newest penalty and rise."""
        query = "select task, penalty, rise from penalty where lsn = (select max(lsn) from penalty)"
        return {task: (penalty, rise) for task, penalty, rise in self._database.execute(query)}

    def latest_accuracies(self) -> dict[str, float]:
        """Each task's newest accuracy."""
        query = "select task, accuracy from accuracy where lsn = (select max(lsn) from accuracy)"
        return dict(self._database.execute(query).fetchall())

    def read(self, offset: int, count: int) -> list[dict[str, Any]]:
        """Penalties in order of time: lsn, time, task, penalty, rise. Where no task has one, the rise of all together: its
        task is None."""
        (followed,) = self._database.execute("select exists (select 1 from penalty)").fetchone()
        each = "select lsn, time, task, penalty, rise from penalty order by lsn, task limit ? offset ?"
        together = "select lsn, time, null, null, rise from past order by lsn limit ? offset ?"
        names = ("lsn", "time", "task", "penalty", "penalty_rise")
        found = self._database.execute(each if followed else together, (count, offset))
        return [dict(zip(names, row, strict=True)) for row in found]

    def events(self, count: int) -> list[dict[str, Any]]:
        """The newest events, the newest first."""
        return _events(self._database, count)

    def forget(self, task: str) -> None:
        """Remove a withdrawn task's figures, also from the write-ahead log."""
        with self._writing() as cursor:
            cursor.execute("delete from penalty where task = ?", (task,))
            cursor.execute("delete from accuracy where task = ?", (task,))
            cursor.execute("delete from beside where task = ?", (task,))
        with contextlib.suppress(sqlite3.OperationalError):
            self._database.execute("pragma wal_checkpoint(truncate)")

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def _is_held(error: sqlite3.DatabaseError) -> bool:
    """Whether somebody else has the database to himself at the moment: it is none the worse for it."""
    return error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def open_to_read(path: Path, untouched: bool = False) -> sqlite3.Connection:
    """A read-only connection; to a database that a daemon has closed, without even a lock file beside it.

    untouched: the same for one that was not closed, whose newest rows, in the write-ahead log, are then not seen.
    """
    closed = untouched or not path.with_name(path.name + "-wal").exists()
    address = f"{path.absolute().as_uri()}?mode=ro{'&immutable=1' if closed else ''}"
    return sqlite3.connect(address, uri=True, timeout=1.0)


class HistoryReader:
    """Reads a history while the daemon writes it, or after; from any thread or process. Use it as a context manager.

    Raises FileNotFoundError if there is none, sqlite3.DatabaseError if it cannot be read.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"{path}: no history; the daemon keeps one in its state directory")
        self._database = open_to_read(path)

    def __enter__(self) -> HistoryReader:
        return self

    def __exit__(self, *error: object) -> None:
        self._database.close()

    def samples(self, since: float, until: float, points: int = 1800) -> list[dict[str, Any]]:
        """The time series between two times (Unix seconds), from the finest tier that has at most `points` rows for
        that interval and reaches back that far; else the coarsest. Each row: time, seconds, and the names of `SAMPLE`."""
        tier = self._tier(since, until, points)
        names = ("time", "seconds", *SAMPLE)
        query = f"select {', '.join(names)} from sample where tier = ? and time >= ? and time <= ? order by time"
        return _rows(self._database.execute(query, (tier, since - tier, until)), names)

    @staticmethod
    def _tier(since: float, until: float, points: int) -> int:
        span = until - since
        fitting = (tier for tier, kept in TIERS if span <= tier * min(points, kept))
        return next(fitting, TIERS[-1][0])

    def first_sample(self) -> float | None:
        """When the time series begins, Unix seconds; None before the first sample.

        A row of a coarse tier has the time at which its interval starts, so finer tiers, if they reach, are more precise.
        """
        begins = dict(self._database.execute("select tier, min(time) from sample group by tier"))
        first, width = None, 0
        for tier in sorted(begins, reverse=True):
            if first is None or begins[tier] < first + width:
                first, width = begins[tier], tier
        return None if first is None else float(first)

    def last_sample(self) -> float | None:
        """When the time series ends, Unix seconds; None before the first sample."""
        (last,) = self._database.execute("select max(time) from sample").fetchone()
        return None if last is None else float(last)

    def events(self, count: int = 200) -> list[dict[str, Any]]:
        """The newest events, the newest first: id, time, kind, task, text, lsn."""
        return _events(self._database, count)

    def penalties(self) -> list[dict[str, Any]]:
        """Every task's penalty and rise after every boundary, in order: lsn, time, task, penalty, rise."""
        return self._table("penalty", ("lsn", "time", "task", "penalty", "rise"))

    def accuracies(self) -> list[dict[str, Any]]:
        """Every evaluated task's accuracy after every boundary, in order: lsn, time, task, accuracy, rows."""
        return self._table("accuracy", ("lsn", "time", "task", "accuracy", "rows"))

    def beside(self) -> list[dict[str, Any]]:
        """What else evaluations found, in order: lsn, time, task, accuracy, calibration, rows; none in an older history."""
        try:
            return self._table("beside", ("lsn", "time", "task", "accuracy", "calibration", "rows"))
        except sqlite3.OperationalError:
            return []

    def past(self) -> list[dict[str, Any]]:
        """The rise of all tasks together after every boundary, in order: lsn, time, rise."""
        columns = ("lsn", "time", "rise")
        return _rows(self._database.execute("select lsn, time, rise from past order by lsn"), columns)

    def newest(self, table: str, tasks: Sequence[str], boundaries: int) -> list[dict[str, Any]]:
        """The rows of some tasks in `penalty` or `accuracy`, at that many boundaries, including the first and the last."""
        columns = ("lsn", "time", "task", *{"penalty": ("penalty", "rise"), "accuracy": ("accuracy", "rows")}[table])
        marks = [lsn for (lsn,) in self._database.execute(f"select distinct lsn from {table} order by lsn")]
        step = (len(marks) - 1) / max(boundaries - 1, 1)
        chosen = marks if len(marks) <= boundaries else [marks[round(number * step)] for number in range(boundaries)]
        query = (
            f"select {', '.join(columns)} from {table} where lsn in ({', '.join('?' * len(chosen))}) "
            f"and task in ({', '.join('?' * len(tasks))}) order by lsn, task"
        )
        return _rows(self._database.execute(query, (*chosen, *tasks)), columns)

    def changes(self, marks: Sequence[int]) -> list[dict[str, Any]]:
        """What happened at the record before each of some LSNs, if it is known: lsn (the mark), time, kind, task."""
        query = (
            "select lsn + 1, time, kind, task from event where kind in ('boundary', 'revisit', 'forget') "
            f"and lsn + 1 in ({', '.join('?' * len(marks))}) order by lsn"
        )
        return _rows(self._database.execute(query, tuple(marks)), ("lsn", "time", "kind", "task"))

    def _table(self, table: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        return _rows(self._database.execute(f"select {', '.join(columns)} from {table} order by lsn, task"), columns)


def _events(database: sqlite3.Connection, count: int) -> list[dict[str, Any]]:
    names = ("id", "time", "kind", "task", "text", "lsn")
    return _rows(database.execute(f"select {', '.join(names)} from event order by id desc limit ?", (count,)), names)


def _rows(cursor: Iterable[Sequence[Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    return [dict(zip(names, row, strict=True)) for row in cursor]
