"""What the ingest process knows when it starts: the checkpoint's numbers, the ledger's tasks, then the log's records.

Guarantees: the session after recovery equals the session before the end, up to what was never acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from streamcl.errors import Damaged
from streamcl.protocol.session import ProducerState, StreamSession
from streamcl.protocol.signature import Signature
from streamcl.storage import checkpoint, ledger, log
from streamcl.storage.disk import Disk
from streamcl.storage.records import Batch, Record
from streamcl.storage.state import StateDirectory

ATTEMPTS = 5  # a running trainer may replace the checkpoint and drop segments while we read them


def recover(state: StateDirectory, session: StreamSession, disk: Disk) -> tuple[log.LogWriter, ledger.Standing]:
    """Open the log for writing and bring a fresh session up to date; also returns the tasks' standing.

    Raises Damaged, UnknownFormat.
    """
    for attempt in range(1, ATTEMPTS + 1):
        meta = checkpoint.read_meta(state.path)
        entries = [] if meta is None else ledger.read(state.path, meta["ledger"])
        standing = ledger.standing(entries)
        try:
            writer = log.LogWriter.recover(state.log, disk, *checkpoint.position(meta), kept=standing.kept())
            stored = log.LogReader(state.log).read(writer.first_lsn, writer.next_lsn, verify=False)  # the writer just did
            held = [(e.lsn, e.record, e.nbytes) for e in stored]
        except Damaged:
            if attempt == ATTEMPTS or not _has_moved(state, meta):
                raise
            continue
        if not _has_moved(state, meta):  # otherwise numbers of records dropped meanwhile would be used again
            break
        writer.close()
    else:
        raise Damaged(f"{state.path}: the checkpoint changed during each of {ATTEMPTS} recoveries; start again")
    if meta is not None:
        _take_over(session, meta)
    session.settle(standing)
    _replay(session, held, meta or {"next_lsn": 0}, {e["lsn"]: e["task"] for e in entries if ledger.by_drift(e)})
    session.synced()
    return writer, standing


def _has_moved(state: StateDirectory, meta: Mapping[str, Any] | None) -> bool:
    """Whether the checkpoint has been replaced by now, by one at another place in the log."""
    return checkpoint.position(checkpoint.read_meta(state.path)) != checkpoint.position(meta)


def _take_over(session: StreamSession, meta: Mapping[str, Any]) -> None:
    for name, (epoch, seq) in meta["sequences"].items():
        session.producers[name] = ProducerState(epoch, seq, seq, seq)
    session.labels.outputs = dict(meta["labels"])
    session.stored_batches = session.applied_batches = meta["batches"]
    if meta["signature"] is not None:
        session.signature = Signature.from_plain(meta["signature"])


def _replay(
    session: StreamSession, held: Iterable[tuple[int, Record, int]], meta: Mapping[str, Any], drifted: Mapping[int, str]
) -> None:
    """Every record still in the log; those that the checkpoint covers count only towards their task's bytes on disk.

    drifted: what drift closed, by the record that showed it.
    """
    applied = session.next_lsn = meta["next_lsn"]
    records = list(held)
    for lsn, record, nbytes in records:
        if lsn >= applied:
            break
        session.apply(lsn, record, nbytes)
        session.stored_batches -= isinstance(record, Batch)
        if lsn in drifted:
            session.consolidated(drifted[lsn], lsn, by_drift=True)
    session.next_lsn = applied
    if meta.get("drifted") is not None:
        session.drifted(meta["drifted"]["tag"])
    for lsn, record, nbytes in records:
        if lsn >= applied:
            session.apply(lsn, record, nbytes)
    session.trained(applied)
    session.took_effect(applied - 1)
    if session.open_task in session.closed and not session.revisiting:
        session.open_task = session.open_tag = None  # consolidated, but its records were not unlinked before the end
