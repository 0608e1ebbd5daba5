"""What the ingest process knows at its start: the checkpoint's numbers, the ledger's tasks, then the log's records.

Guarantees: the session after recovery equals the session before the end, up to what was never acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from streamcl.entries import Standing, by_drift, standing
from streamcl.errors import Damaged
from streamcl.protocol.session import ProducerState, StreamSession
from streamcl.snapshot import Meta
from streamcl.storage import checkpoint, ledger, log
from streamcl.storage.disk import Disk
from streamcl.storage.records import Batch, Record
from streamcl.storage.state import StateDirectory

ATTEMPTS = 5  # a running trainer may replace the checkpoint and drop segments while we read them


def recover(state: StateDirectory, session: StreamSession, disk: Disk) -> tuple[log.LogWriter, Standing]:
    """Open the log for writing and bring a fresh session up to date; also what holds of the tasks.

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
        except Damaged:
            if attempt == ATTEMPTS or not _has_moved(state, meta):
                raise
            continue
        if not _has_moved(state, meta):  # else what was dropped meanwhile would be numbered again
            break
        writer.close()
    else:
        raise Damaged(f"{state.path}: the checkpoint changed during each of {ATTEMPTS} recoveries; start again")
    if meta is not None:
        _take_over(session, meta)
    session.settle(holds)
    _replay(session, held, meta, {entry.lsn: entry.task for entry in entries if by_drift(entry)})
    session.synced()
    return writer, holds


def _has_moved(state: StateDirectory, meta: Meta | None) -> bool:
    """Whether the checkpoint is another one by now: one that stands elsewhere in the log."""
    return checkpoint.position(checkpoint.read_meta(state.path)) != checkpoint.position(meta)


def _take_over(session: StreamSession, meta: Meta) -> None:
    for name, (epoch, seq) in meta.sequences.items():
        session.producers[name] = ProducerState(epoch, seq, seq, seq)
    session.labels.outputs = dict(meta.labels)
    session.stored_batches = session.applied_batches = meta.batches
    session.signature = meta.signature


def _replay(
    session: StreamSession, held: Iterable[tuple[int, Record, int]], meta: Meta | None, drifted: Mapping[int, str]
) -> None:
    """Every record still in the log; those that the checkpoint has only count for what their task holds on disk.

    drifted: what drift closed, by the record that showed it.
    """
    applied = session.next_lsn = 0 if meta is None else meta.next_lsn
    records = list(held)
    for lsn, record, nbytes in records:
        if lsn >= applied:
            break
        session.apply(lsn, record, nbytes)
        session.stored_batches -= isinstance(record, Batch)
        if lsn in drifted:
            session.consolidated(drifted[lsn], lsn, by_drift=True)
    session.next_lsn = applied
    if meta is not None and meta.drifted is not None:
        session.drifted(meta.drifted.tag)
    for lsn, record, nbytes in records:
        if lsn >= applied:
            session.apply(lsn, record, nbytes)
    session.trained(applied)
    session.took_effect(applied - 1)
    if session.open_task in session.closed and not session.revisiting:
        session.open_task = session.open_tag = None  # consolidated, but its records were not unlinked before the end
