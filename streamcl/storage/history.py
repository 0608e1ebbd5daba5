"""What was observed over time, for plots: an SQLite database of bounded size.

Nothing is decided by it and nothing is lost with it, so it is written without waiting for the disk; a database that cannot
be read is set aside and begun afresh.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

MAX_ROWS = 500_000
_TABLE = """
create table if not exists penalty (
    lsn integer not null, time real not null, task text not null, penalty real, rise real, primary key (lsn, task)
) without rowid
"""


class History:
    """Each task's penalty and its rise after every boundary."""

    def __init__(self, path: Path, max_rows: int = MAX_ROWS) -> None:
        self.max_rows = max_rows
        try:
            self._database = self._open(path)
        except sqlite3.DatabaseError:
            path.replace(path.with_name(path.name + ".damaged"))
            self._database = self._open(path)

    @staticmethod
    def _open(path: Path) -> sqlite3.Connection:
        database = sqlite3.connect(path, isolation_level=None)
        database.execute("pragma journal_mode = truncate")
        database.execute("pragma synchronous = off")
        database.execute("pragma secure_delete = on")
        database.execute(_TABLE)
        return database

    def add(self, lsn: int, time: float, rows: Iterable[Sequence[Any]]) -> None:
        """Rows of task, penalty in nats and rise in nats a sample, behind record `lsn` - 1; the oldest make room.

        On a full disk they are lost.
        """
        with contextlib.suppress(sqlite3.OperationalError), self._database as database:
            cursor = database.cursor()
            cursor.execute("begin")
            cursor.executemany("insert or replace into penalty values (?, ?, ?, ?, ?)", ((lsn, time, *r) for r in rows))
            (count,) = cursor.execute("select count(*) from penalty").fetchone()
            if count > self.max_rows:
                cursor.execute(
                    "delete from penalty where lsn <= (select lsn from penalty order by lsn limit 1 offset ?)",
                    (count - self.max_rows,),
                )

    def latest(self) -> dict[str, tuple[float, float]]:
        """Each task's newest penalty and rise."""
        query = "select task, penalty, rise from penalty where lsn = (select max(lsn) from penalty)"
        return {task: (penalty, rise) for task, penalty, rise in self._database.execute(query)}

    def read(self, offset: int, count: int) -> list[dict[str, Any]]:
        """Rows in order of time: lsn, time, task, penalty, rise."""
        query = "select lsn, time, task, penalty, rise from penalty order by lsn, task limit ? offset ?"
        names = ("lsn", "time", "task", "penalty", "penalty_rise")
        return [dict(zip(names, row, strict=True)) for row in self._database.execute(query, (count, offset))]

    def forget(self, task: str) -> None:
        """Remove a withdrawn task's rows."""
        self._database.execute("delete from penalty where task = ?", (task,))

    def close(self) -> None:
        """Close the database."""
        self._database.close()
