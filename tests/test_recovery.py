"""What ingest knows when it starts, even while the trainer is running."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl.daemon import recovery
from streamcl.protocol.session import StreamSession, Terms
from streamcl.snapshot import Meta
from streamcl.storage import checkpoint, log
from streamcl.storage.disk import Disk
from streamcl.storage.records import Batch, Boundary, array_spec
from streamcl.storage.state import StateDirectory

DISK = Disk()
X, Y = np.ones((2, 3), "<f4"), np.zeros(2, "<i8")


def batch(seq: int, task: str) -> Batch:
    specs = (array_spec("x", X), array_spec("y", Y))
    return Batch(producer="p", epoch=0, seq=seq, task=task, samples=2, arrays=specs)


def two_tasks(directory: Path) -> int:
    """A log with a closed task and an open one; returns the LSN behind the closed one."""
    writer = log.LogWriter.recover(directory, DISK)
    writer.append(batch(1, "a"), [X.tobytes(), Y.tobytes()])
    writer.append(Boundary(producer="p", epoch=0, seq=2, task="a"))
    writer.sync()
    writer.close()
    return writer.next_lsn


def save(state: StateDirectory, next_lsn: int, seq: int, **fields: Any) -> None:
    numbers: dict[str, Any] = {
        "steps": 0,
        "samples": 0,
        "batches": next_lsn,
        "consolidations": 0,
        "train_loss": 0.0,
        "labels": [],
        "open_task": None,
        "prequential": {},
        "signature": None,
        **fields,
    }
    meta = Meta(fingerprint={}, next_lsn=next_lsn, ledger=0, sequences={"p": (0, seq)}, **numbers)
    checkpoint.save(state.path, meta, {}, DISK)


def test_a_checkpoint_that_moves_during_recovery_is_taken_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trainer absorbs and drops everything between our two looks: no LSN may then be given out twice."""
    state = StateDirectory(tmp_path)
    end = two_tasks(state.log)
    looks = []

    def moving(directory: Path) -> Meta | None:
        looks.append(directory)
        if len(looks) == 2:
            save(state, end, 2)
            log.drop_before(state.log, end, DISK)
        return read(directory)

    read = checkpoint.read_meta
    monkeypatch.setattr(recovery.checkpoint, "read_meta", moving)
    session = StreamSession(Terms(classes=3))
    writer, _ = recovery.recover(state, session, DISK)
    assert len(looks) == 4
    assert (writer.first_lsn, writer.next_lsn) == (end, end)
    assert session.producers["p"].applied == 2
    assert writer.append(batch(3, "b"), [X.tobytes(), Y.tobytes()]) == end


def test_a_trainer_with_many_boundaries_to_learn_does_not_end_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a machine on which reading takes longer than learning: the trainer comes to the end of the log, and rests."""
    state = StateDirectory(tmp_path)
    end = two_tasks(state.log)
    moves = iter([True] * 50)
    monkeypatch.setattr(recovery, "_has_moved", lambda *_: next(moves, False))
    writer, _ = recovery.recover(state, StreamSession(Terms(classes=3)), DISK)
    assert writer.next_lsn == end


def test_a_segment_dropped_while_the_log_is_read_is_no_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = StateDirectory(tmp_path)
    end = two_tasks(state.log)
    recover = log.LogWriter.recover
    tries = []

    def dropped_behind(*args: Any, **options: Any) -> log.LogWriter:
        writer = recover(*args, **options)
        tries.append(writer)
        if len(tries) == 1:
            save(state, end, 2)
            log.drop_before(state.log, end, DISK)
        return writer

    monkeypatch.setattr(recovery.log.LogWriter, "recover", dropped_behind)
    session = StreamSession(Terms(classes=3))
    writer, _ = recovery.recover(state, session, DISK)
    assert (len(tries), writer.next_lsn) == (2, end)
    assert session.producers["p"].stored == 2


def test_a_segment_dropped_between_two_looks_at_it_is_no_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in the list of the directory, and gone when it is opened."""
    state = StateDirectory(tmp_path)
    end = two_tasks(state.log)
    recover, tries = log.LogWriter.recover, []

    def gone(*args: Any, **options: Any) -> log.LogWriter:
        tries.append(args)
        if len(tries) == 1:
            log.drop_before(state.log, end, DISK)
            raise FileNotFoundError(str(state.log))
        return recover(*args, **options)

    save(state, end, 2)  # already when the checkpoint was read
    monkeypatch.setattr(recovery.log.LogWriter, "recover", gone)
    session = StreamSession(Terms(classes=3))
    writer, _ = recovery.recover(state, session, DISK)
    assert (len(tries), writer.next_lsn, session.producers["p"].stored) == (2, end, 2)


def test_a_checkpoint_from_before_the_first_batch_was_learned_is_taken_as_it_is(tmp_path: Path) -> None:
    """Its loss is NaN, which is not equal to itself."""
    state = StateDirectory(tmp_path)
    end = two_tasks(state.log)
    save(state, 0, 0, train_loss=float("nan"))
    session = StreamSession(Terms())
    writer, _ = recovery.recover(state, session, DISK)
    assert writer.next_lsn == end
    assert session.producers["p"].durable == 2
