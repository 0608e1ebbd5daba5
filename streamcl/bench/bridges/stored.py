"""What a daemon's log holds, row by row: the witness of a bridge's campaign."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np

from streamcl.errors import Damaged
from streamcl.storage.log import LogReader
from streamcl.storage.records import Batch
from streamcl.storage.segments import first_lsn_of, list_segments


def numbers(log: Path, column: str) -> Counter[int]:
    """How often each whole number stands in a column of the batches that a log holds (those not consolidated yet).

    column: of tables; of bare arrays, whose columns have no names, it is the first. The daemon does not run, or is idle.
    """
    found: Counter[int] = Counter()
    paths = list_segments(log)
    reader, lsn, place = LogReader(log), first_lsn_of(paths[0]) if paths else 0, 0
    while True:
        try:
            (entry,) = reader.read(lsn, lsn + 1)
        except Damaged:  # the end: nobody but the daemon knows where it is
            return found
        if isinstance(entry.record, Batch):
            if entry.record.schema is not None:
                place = [each.name for each in entry.record.schema if each.kind != "target"].index(column)
            found.update(entry.arrays["x"][:, place].astype(np.int64).tolist())
        lsn += 1
