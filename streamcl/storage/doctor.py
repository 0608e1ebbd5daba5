"""Examines a state directory without its daemon: what is sound, what is not, and what a repair of the log would lose.

Examining changes nothing. A repair writes a new log beside the old one, of every record that is sound and can be used, and
sets the old one aside, whole.
"""

from __future__ import annotations

import contextlib
import math
import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from streamcl.core import stored
from streamcl.entries import Entry, standing
from streamcl.errors import StreamclError
from streamcl.snapshot import POSTERIOR, from_plain, under
from streamcl.storage import checkpoint, ledger, quarantine, verified
from streamcl.storage.checkpoint import Checkpoint
from streamcl.storage.disk import Disk
from streamcl.storage.factors import Factors
from streamcl.storage.frozen import Frozen, references
from streamcl.storage.history import open_to_read
from streamcl.storage.log import SEGMENT_BYTES, LogWriter, Ranges, holds, only_kept, unfinished_repair
from streamcl.storage.records import Lost, Record
from streamcl.storage.segments import (
    Head,
    Scan,
    first_lsn_of,
    list_segments,
    map_file,
    payload_at,
    scan_segment,
    sound_records,
)
from streamcl.storage.state import StateDirectory
from streamcl.storage.versions import Versions

ROUNDING = 1e-9  # by how much the factors' sum may differ from the total, relative to its largest entry
SYNC_RECORDS = 256

State = Literal["sound", "note", "damaged"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One file or group of files: sound; worth a note, and repaired by the next start; or damaged."""

    file: str
    state: State
    what: str


def examine(state: StateDirectory) -> list[Finding]:
    """Verify everything; nothing else may use the directory meanwhile."""
    return list(_examine(state))


def _examine(state: StateDirectory) -> Iterator[Finding]:
    saved = None
    try:
        saved = _load(state)
        yield _checkpoint(saved)
    except StreamclError as error:
        yield Finding(checkpoint.NAME, "damaged", str(error))
        return  # everything else is judged by it
    entries: list[Entry] = []
    try:
        entries = ledger.read(state.path, saved.meta.ledger if saved else 0)
        yield Finding(ledger.NAME, "sound", f"{len(entries)} entries")
    except StreamclError as error:
        yield Finding(ledger.NAME, "damaged", str(error))
    yield from _factors(state, saved, entries)
    yield from _log(state, saved, standing(entries).kept())
    yield from _versions(state)
    yield from _frozen(state, saved)
    yield from _quarantine(state)
    yield from _history(state)
    yield from _leftovers(state)


def _load(state: StateDirectory) -> Checkpoint | None:
    """The checkpoint, its references as they are: what they refer to is examined by itself."""
    path = state.path / checkpoint.NAME
    checkpoint.check_is_there(state)
    if not path.exists():
        return None
    saved = verified.load(path)
    return Checkpoint(from_plain(saved.meta), saved.tensors)


def _checkpoint(saved: Checkpoint | None) -> Finding:
    if saved is None:
        return Finding(checkpoint.NAME, "sound", "none yet")
    next_lsn, needed = checkpoint.position(saved.meta)
    opened = saved.meta.open_task
    task = "no task open" if opened is None else f"task {opened.name!r} open from record {needed}"
    return Finding(
        checkpoint.NAME,
        "sound",
        f"all records below {next_lsn}; {saved.meta.batches} batches, {saved.meta.consolidations} boundaries; {task}",
    )


def _as_wide(factor: stored.State, saved: Checkpoint) -> stored.State:
    """A factor that was taken when the network had fewer outputs, as one of now."""
    meta = saved.meta
    narrow = [shapes for shapes in meta.narrower if sum(map(math.prod, shapes)) == len(factor[stored.SHIFT])]
    if not narrow or meta.layout is None:
        return factor
    from streamcl.core.growth import widened_factor  # needs PyTorch, which the rest does not

    return widened_factor(factor, narrow[0], meta.layout)


def _factors(state: StateDirectory, saved: Checkpoint | None, entries: list[Entry]) -> Iterator[Finding]:
    tasks = standing(entries).tasks
    numbers = {entry.factor: task for task, entry in tasks.items() if entry.factor is not None}
    if saved is None or not numbers:
        return
    factors, broken = Factors(state.factors, Disk()), False
    for number, task in numbers.items():
        try:
            factors.read(number, task)
        except StreamclError as error:
            broken = True
            yield Finding(f"factors/{factors.path(number).name}", "damaged", str(error))
    if broken:
        return
    kept = (factors.read(number, task, verify=False) for number, task in numbers.items())
    each = (_as_wide(state, saved) for state in kept)
    try:
        miss = stored.remainder(under(POSTERIOR, saved.tensors), each)
    except StreamclError as error:
        yield Finding("factors", "damaged", str(error))
        return
    if miss > ROUNDING:
        yield Finding("factors", "damaged", f"{len(numbers)} factors do not add up to the checkpoint's total ({miss:.1e})")
    else:
        yield Finding("factors", "sound", f"{len(numbers)} factors; with the prior they add up to the total")


def _log(state: StateDirectory, saved: Checkpoint | None, kept: Ranges) -> Iterator[Finding]:
    if unfinished_repair(state.log).exists():
        yield Finding("log", "damaged", "a repair was not finished: run `streamcl repair` again")
    next_lsn, needed = checkpoint.position(saved.meta if saved else None)
    end: int | None = None
    found: list[tuple[int, int]] = []
    for path, scan in _scans(state.log):
        name = f"log/{path.name}"
        first = first_lsn_of(path)
        size = path.stat().st_size
        found.append((first, scan.next_lsn))
        if scan.damage is not None:
            yield Finding(name, "damaged", str(scan.damage))
        elif end not in (None, first) and first > needed:
            yield Finding(name, "damaged", f"expected a segment from record {end} on, this begins with {first}")
        elif holds(path, min(scan.next_lsn, needed), kept):
            what = f"records {first} to {scan.next_lsn - 1}, {size} bytes: kept, since they could not be learned"
            yield Finding(name, "note", what)
        elif scan.next_lsn <= needed and scan.next_lsn < next_lsn:
            yield Finding(name, "note", "absorbed by the checkpoint; the next start unlinks it")
        elif scan.end < size:
            torn = f"a torn tail of {size - scan.end} bytes at offset {scan.end}, never acknowledged, will be cut off"
            yield Finding(name, "note", f"records {first} to {scan.next_lsn - 1}; {torn}")
        else:
            yield Finding(name, "sound", f"records {first} to {scan.next_lsn - 1}, {size} bytes")
        end = scan.next_lsn
    if not _covered(found, needed, next_lsn):
        yield Finding(
            "log", "damaged", f"records {needed} to {next_lsn - 1} of the open task are needed, not all are there"
        )
    for first, behind in kept:
        if not _covered(found, first, behind):
            text = f"records {first} to {behind - 1} could not be learned and were to be kept; not all are there"
            yield Finding("log", "damaged", text)


def _covered(found: list[tuple[int, int]], first: int, end: int) -> bool:
    """Whether segments with these records, from and to below, have every one from `first` to below `end`."""
    for start, behind in sorted(found):
        if start <= first < behind:
            first = behind
    return first >= end


def _versions(state: StateDirectory) -> Iterator[Finding]:
    versions = Versions(state.path, Disk())
    for number in versions.numbers():
        problem = versions.problem(number)
        name = f"{versions.directory.name}/{versions.path(number).name}"
        if problem is None:
            yield Finding(name, "sound", "to roll back to")
        else:
            yield Finding(name, "note", f"cannot be rolled back to: {problem}")


def _frozen(state: StateDirectory, saved: Checkpoint | None) -> Iterator[Finding]:
    """What the checkpoint refers to must be there; the rest is of versions, each judged by itself, or of no use."""
    frozen, versions = Frozen(state.path), Versions(state.path, Disk())
    needed = set() if saved is None else set(references(saved.tensors).values())
    others = {digest for number in versions.numbers() for digest in versions.references(number)} - needed
    there = {path.name for path in frozen.directory.glob("*")}
    for digest in sorted(needed):
        try:
            size = frozen.read(digest).nbytes
            yield Finding(f"frozen/{digest}", "sound", f"{size} bytes of the model that training does not change")
        except StreamclError as error:
            yield Finding(f"frozen/{digest}", "damaged", str(error))
    for name in sorted(there & others):
        yield Finding(f"frozen/{name}", "sound", "of a version to roll back to")
    for name in sorted(there - needed - others):
        yield Finding(f"frozen/{name}", "note", "nothing refers to it; the next start removes it")


def _scans(directory: Path) -> Iterator[tuple[Path, Scan]]:
    paths = list_segments(directory)
    for path in paths:
        yield path, scan_segment(path, last=path == paths[-1])


def _quarantine(state: StateDirectory) -> Iterator[Finding]:
    try:
        failures = quarantine.load(state.path)
    except StreamclError as error:
        yield Finding(quarantine.NAME, "damaged", str(error))
    else:
        if failures:
            yield Finding(quarantine.NAME, "note", f"{len(failures)} failures; the last: {failures[-1].reason}")


def _history(state: StateDirectory) -> Iterator[Finding]:
    if not state.history.exists():
        return
    try:
        with contextlib.closing(open_to_read(state.history, untouched=True)) as database:
            (verdict,) = database.execute("pragma quick_check").fetchone()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict == "ok":
        yield Finding(state.history.name, "sound", "nothing depends on it")
    else:
        yield Finding(state.history.name, "note", f"{verdict}; nothing depends on it, the next start begins a new one")


def _leftovers(state: StateDirectory) -> Iterator[Finding]:
    for path in sorted(state.path.glob("set-aside-*")):
        yield Finding(
            path.name, "note", "the log from before a repair, with raw data in it: delete it once you no longer need it"
        )
    for path in sorted(state.path.glob("*.tmp")):
        yield Finding(path.name, "note", "left by an unfinished save; the next one removes it")


# -- repair ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Found:
    """A sound record and where it lies."""

    path: Path
    offset: int
    head: Head
    record: Record


@dataclass(slots=True)
class Plan:
    """What a repair of the log would do.

    aside: segments of records that could not be learned and are kept, as they are. spoilt: one of these whose damage keeps
    the daemon from starting. kept: the records that go into the new log, by number. replaced: records of the open task
    that are unreadable; their places are kept. lost: what is given up after the first gap that no checkpoint bridges, as
    far as it can be read.
    """

    first: int
    aside: list[Path] = field(default_factory=list)
    spoilt: list[Path] = field(default_factory=list)
    kept: dict[int, Found] = field(default_factory=dict)
    replaced: list[int] = field(default_factory=list)
    lost: list[Record] = field(default_factory=list)
    unreadable_from: int | None = None
    task: str = ""
    tag: str | None = None

    @property
    def needed(self) -> bool:
        """Whether there is anything to repair."""
        return bool(self.replaced or self.lost or self.spoilt or self.unreadable_from is not None)

    def lines(self) -> list[str]:
        """In words."""
        text = [f"kept: {len(self.kept)} records"]
        if self.aside:
            text.append(f"kept as they are, since they could not be learned: {', '.join(path.name for path in self.aside)}")
        if self.spoilt:
            names = ", ".join(path.name for path in self.spoilt)
            text.append(f"given up: the rows of {names}, which could not be learned and are damaged where it ends")
        if self.replaced:
            text.append(
                f"lost of the open task {self.task!r}: records {_ranges(self.replaced)}; the model has taken steps on "
                "them; its boundary will do without them"
            )
        if self.unreadable_from is not None:
            text.append(f"lost: record {self.unreadable_from}, unreadable, and everything after it")
        for producer, seqs in _by_producer(self.lost).items():
            text.append(f"lost, though readable: producer {producer}, messages {_ranges(seqs)}; it may send them again")
        return text


def plan_repair(state: StateDirectory) -> Plan:
    """What can be kept of the log; raises Damaged if the checkpoint itself is unsound, UnknownFormat."""
    saved = _load(state)
    next_lsn, needed = checkpoint.position(saved.meta if saved else None)
    found: dict[int, Found] = {}
    for path in list_segments(state.log):
        for offset, head, record in sound_records(path):
            if head.lsn >= first_lsn_of(path):
                found.setdefault(head.lsn, Found(path, offset, head, record))
    opened = None if saved is None else saved.meta.open_task
    entries = ledger.read(state.path, saved.meta.ledger) if saved else []
    kept = standing(entries).kept()
    paths = list_segments(state.log)
    held = [path for path in paths if holds(path, needed, kept)]
    doubtful = held[-1:] if held[-1:] == paths[-1:] else []  # another segment says where the one before it ends
    spoilt = [path for path in doubtful if scan_segment(path, last=True).damage and not only_kept(path, needed, kept)]
    aside = [path for path in held if path not in spoilt]
    plan = Plan(
        needed, aside, spoilt, task="" if opened is None else opened.name, tag=None if opened is None else opened.tag
    )
    lsn = needed
    while lsn < next_lsn or lsn in found:
        if lsn in found:
            plan.kept[lsn] = found[lsn]
        else:
            plan.replaced.append(lsn)
        lsn += 1
    behind = sorted(number for number in found if number > lsn)
    if behind or _is_damaged_at(state, lsn):
        plan.unreadable_from = lsn
        plan.lost = [found[number].record for number in behind]
    return plan


def _is_damaged_at(state: StateDirectory, lsn: int) -> bool:
    """Whether something synced was there; a torn tail was never acknowledged."""
    return any(scan.damage is not None and scan.next_lsn >= lsn for _, scan in _scans(state.log))


def repair(state: StateDirectory, plan: Plan, disk: Disk) -> Path:
    """Put a new log in the old one's place; returns where the old one is now."""
    fresh = unfinished_repair(state.log)
    for path in list_segments(fresh):
        disk.unlink(path)
    disk.make_directory(fresh)
    for path in plan.aside:
        disk.link(path, fresh / path.name)
    writer = LogWriter(fresh, disk, SEGMENT_BYTES, plan.first, plan.first)
    task = None
    for lsn in sorted([*plan.kept, *plan.replaced]):
        found = plan.kept.get(lsn)
        record = found.record if found else Lost(producer=None, epoch=0, seq=0, task=plan.task, tag=plan.tag)
        if record.task != task:  # no segment holds two tasks
            writer.rotate()
            task = record.task
        writer.append(record, [payload_at(map_file(found.path), found.offset, found.head)] if found else [])
        if lsn % SYNC_RECORDS == 0:
            writer.sync()
    writer.sync()
    writer.close()
    aside = _free_name(state.path)
    if state.log.exists():
        os.rename(state.log, aside)
    os.rename(fresh, state.log)
    disk.sync_directory(state.path)
    return aside


def _free_name(directory: Path) -> Path:
    number = 1
    while (path := directory / f"set-aside-{number}").exists():
        number += 1
    return path


def _by_producer(records: list[Record]) -> dict[str, list[int]]:
    seqs: dict[str, list[int]] = {}
    for record in records:
        if record.producer is not None:
            seqs.setdefault(record.producer, []).append(record.seq)
    return seqs


def _ranges(numbers: list[int]) -> str:
    """1-3, 7."""
    parts: list[list[int]] = []
    for number in sorted(numbers):
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)
