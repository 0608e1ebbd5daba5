"""What the ingest process knows at its start: the checkpoint's numbers, the ledger's tasks, then the log's records; what
has failed before, and the history.

Guarantees: the session after recovery equals the session before the end, up to what was never acknowledged.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from streamcl.config import Config
from streamcl.daemon.journal import Writer
from streamcl.entries import Standing, standing
from streamcl.errors import Damaged
from streamcl.protocol.restoring import restore
from streamcl.protocol.session import StreamSession
from streamcl.snapshot import Meta
from streamcl.storage import checkpoint, ledger, log, published, quarantine
from streamcl.storage.disk import Disk
from streamcl.storage.history import History
from streamcl.storage.state import StateDirectory

ATTEMPTS = 1000  # a running trainer replaces the checkpoint and drops segments while we read them, until it has learned all


@dataclass(slots=True)
class Found:
    """All that was on disk, and the disk. unreadable: by task, why rows that were kept, unlearned, cannot be read."""

    state: StateDirectory
    disk: Disk
    session: StreamSession
    writer: Writer
    standing: Standing
    failures: list[quarantine.Failure]
    history: History
    torn: log.TornTail | None = None
    unreadable: dict[str, str] = field(default_factory=dict)


def take_over(config: Config, disk: Disk, session: StreamSession) -> Found:
    """Everything that the ingest process has from its last life, in a fresh session; raises Damaged, UnknownFormat."""
    state = StateDirectory(Path(config.state_dir))
    writer, holds = recover(state, session, disk)
    published.clear(state.trial)
    history = History(state.history)
    failures, unreadable = quarantine.load(state.path), _unreadable(state.log, holds)
    return Found(state, disk, session, writer, holds, failures, history, writer.torn, unreadable)


def _unreadable(directory: Path, holds: Standing) -> dict[str, str]:
    """Why rows that are kept because they could not be learned cannot be read, by task. Nothing waits for them."""
    reader, found = log.LogReader(directory), {}
    for task, places in holds.kept_of().items():
        problems = [problem for first, end in places if (problem := reader.problem(first, end)) is not None]
        if problems:
            found[task] = problems[0]
    return found


def recover(state: StateDirectory, session: StreamSession, disk: Disk) -> tuple[log.LogWriter, Standing]:
    """Open the log for writing and bring a fresh session up to date; also returns the tasks' standing.

    Raises Damaged, UnknownFormat.
    """
    for attempt in range(1, ATTEMPTS + 1):
        meta = checkpoint.read_meta(state.path)
        entries = [] if meta is None else ledger.read(state.path, meta.ledger)
        holds = standing(entries)
        try:
            writer = log.LogWriter.recover(state.log, disk, *checkpoint.position(meta), kept=holds.kept())
            stored = log.LogReader(state.log).read(writer.first_lsn, writer.next_lsn, verify=False)  # the writer just did
            held = [(e.lsn, e.record, e.nbytes) for e in stored]
        except FileNotFoundError:  # a segment went between the look at the directory and that at the file
            if attempt == ATTEMPTS:
                raise
            continue
        except Damaged:
            if attempt == ATTEMPTS or not _has_moved(state, meta):
                raise
            continue
        if not _has_moved(state, meta):  # otherwise numbers of records dropped meanwhile would be used again
            break
        writer.close()
    else:
        raise Damaged(f"{state.path}: the checkpoint changed during each of {ATTEMPTS} recoveries; start again")
    restore(session, meta, entries, held)
    return writer, holds


def _has_moved(state: StateDirectory, meta: Meta | None) -> bool:
    """Whether the checkpoint has been replaced by now, by one at another place in the log."""
    return checkpoint.position(checkpoint.read_meta(state.path)) != checkpoint.position(meta)
