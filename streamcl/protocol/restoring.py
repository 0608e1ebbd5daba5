"""A session brought to where it was: from a checkpoint's numbers, what holds of the tasks, and the records since.

Guarantees: the session afterwards equals the session before the end, up to what was never acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from streamcl.binding import bound
from streamcl.columns import Pinned
from streamcl.entries import Entry, by_drift, standing
from streamcl.protocol.producers import ProducerState
from streamcl.protocol.session import StreamSession
from streamcl.snapshot import Meta
from streamcl.storage.records import Batch, Record

Stored = tuple[int, Record, int]  # LSN, record, bytes that it takes


def restore(session: StreamSession, meta: Meta | None, entries: Sequence[Entry], stored: Iterable[Stored]) -> None:
    """Bring a fresh session up to date.

    meta: the checkpoint's, None if there is none. entries: the ledger's that it counts. stored: every record still in
    the log, in order.
    """
    if meta is not None:
        _take_over(session, meta)
    session.settle(standing(entries))
    for entry in entries:
        session.spend(entry)
    _replay(session, list(stored), meta, {entry.lsn: entry.task for entry in entries if by_drift(entry)})
    session.producers.synced()


def _take_over(session: StreamSession, meta: Meta) -> None:
    for name, (epoch, seq) in meta.sequences.items():
        session.producers[name] = ProducerState(epoch, seq, seq, seq)
    session.labels.outputs = dict(meta.labels)
    if session.labels.classes is None:
        session.labels.classes = bound(meta.fingerprint)
    session.stored_batches = session.applied_batches = meta.batches
    session.signature = meta.signature
    session.columns = None if meta.columns is None else Pinned.from_plain(meta.columns)
    session.words.add(meta.words)


def _replay(session: StreamSession, records: Sequence[Stored], meta: Meta | None, drifted: dict[int, str]) -> None:
    """Every record still in the log; those that the checkpoint covers count only towards their task's bytes on disk.

    drifted: what drift closed, by the record that showed it.
    """
    applied = session.next_lsn = 0 if meta is None else meta.next_lsn
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
