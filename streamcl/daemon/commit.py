"""How what was learned becomes durable, and what it ends is dropped.

Order, which nothing may change: write and verify the factor, if factors are kept; append to the ledger and sync; write and
verify what the checkpoint refers to; write, verify and rename the checkpoint; keep it as a version; only then unlink the
task's records and the factor that was replaced; last, the failures that no longer matter. Records whose rows were not
learned (`kept`) stay. A crash anywhere repeats the work from the checkpoint before, with the same result.

Every step is a generator: it yields what happened, and `Full` while the disk is, to be resumed for another try. Waits for
nothing but what it has begun, says nothing to anybody.

A checkpoint between two records may be written beside what is learned next (`begin`, `look`): from a copy, by a thread that
knows files alone. It is none before `look` has found it written. One at a time; whatever else is written waits for it
(`settle`), so that none replaces a newer one. What goes wrong there is as if it had gone wrong here; on a full disk, and
where something has changed that was taken for constant, the next checkpoint is not written beside (`overdue`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from streamcl import snapshot
from streamcl.entries import Entry, Forgotten, Standing, standing
from streamcl.learning.learner import Learner
from streamcl.learning.outcomes import Outcome
from streamcl.replay import Replay
from streamcl.snapshot import POSTERIOR, Meta
from streamcl.storage import checkpoint, ledger, log, published, quarantine, versions
from streamcl.storage.beside import Array, Beside, Copy
from streamcl.storage.checkpoint import Checkpoint
from streamcl.storage.container import REFERENCE
from streamcl.storage.disk import FULL, Disk
from streamcl.storage.factors import Factors
from streamcl.storage.frozen import BEFORE, Changed, FrozenStore, Presumed
from streamcl.storage.ledger import Ledger
from streamcl.storage.quarantine import Failure
from streamcl.storage.state import StateDirectory
from streamcl.storage.versions import Versions

Kept = Callable[[Standing], Sequence[tuple[int, int]]]
REPLACED = (POSTERIOR, BEFORE, REFERENCE)  # names of arrays in which nothing is ever changed, but all of it
LOOK_SECONDS = 0.05  # of waiting for what was begun, between two looks at everything else


@dataclass(frozen=True, slots=True)
class Full:
    """The disk is full; going on tries again."""

    reason: str


@dataclass(frozen=True, slots=True)
class Written:
    """A checkpoint is on disk, verified. sequences: how far each producer's has come in it. beside: what was learned since
    is not in it."""

    seconds: float
    batches: int
    sequences: Mapping[str, tuple[int, int]]
    beside: bool


@dataclass(frozen=True, slots=True)
class Waiting:
    """The checkpoint that is written beside is not there yet, or not every file read; going on waits a little longer."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What the checkpoint has absorbed is unlinked; of the log, records below `first` but those that are kept."""

    first: int


@dataclass(frozen=True, slots=True)
class Forgiven:
    """Some failures matter no longer; the others are `Commit.failures`."""


Event = Full | Written | Waiting | Dropped | Forgiven


@dataclass(frozen=True, slots=True)
class Begun:
    """A checkpoint that is written beside; without meta: the memory for its copy is made, and it is to be begun again."""

    meta: Meta | None
    started: float


@dataclass(frozen=True, slots=True)
class EarlierStates:
    """What was learned earlier, as the ledger and the versions on disk have it."""

    directory: Path
    versions: Versions

    def standing(self, entries: int) -> Standing:
        """What held after so many entries of the ledger; raises Damaged."""
        return standing(ledger.read(self.directory, entries))

    def version(self, number: int) -> Mapping[str, Any]:
        """The arrays of a version; raises Damaged, FileNotFoundError."""
        return self.versions.read(number).tensors


class Commit:
    """Factors, ledger, checkpoint, versions and quarantine of one state directory.

    keep: how many versions. kept: which records stay in the log, by what stands. copy, beside: for a checkpoint that is
    written beside. checkpointed_lsn: all below is in the checkpoint. last_entry: the newest of the ledger. failures: what
    the quarantine has. begun: what is being written beside. overdue: whether that could not be. cramped: why the copy
    for it does not fit.
    """

    def __init__(
        self,
        state: StateDirectory,
        disk: Disk,
        keep: int,
        kept: Kept = Standing.kept,
        copy: Copy | None = None,
        beside: Beside | None = None,
    ) -> None:
        self.state, self.disk, self.keep, self.kept = state, disk, keep, kept
        self._copy, self._beside = copy or Copy(), beside or Beside()
        self.begun: Begun | None = None
        self.overdue = False
        self.cramped: str | None = None
        self.factors = Factors(state.factors, disk)
        self.versions = Versions(state.path, disk)
        self.frozen = FrozenStore(state.path, disk)
        self.last_entry: Entry | None = None
        self.failures: list[Failure] = []
        self.checkpointed_lsn = 0
        self._ledger: Ledger | None = None
        self._version_factors: dict[int, set[int]] = {}
        self._usable: list[int] = []

    @property
    def past(self) -> EarlierStates:
        """For a learner that goes back."""
        return EarlierStates(self.state.path, self.versions)

    # -- recovery ------------------------------------------------------------------------------------------------

    def recover(self) -> tuple[Checkpoint | None, Standing]:
        """The checkpoint, if there is one, and what stands by the ledger that it counts; cuts off what is behind that."""
        saved = checkpoint.load(self.state.path, self.disk, self.frozen)
        self.failures = quarantine.load(self.state.path)
        count = 0 if saved is None else saved.meta.ledger
        entries = ledger.read(self.state.path, count)
        self.last_entry = entries[-1] if entries else None
        self.checkpointed_lsn = 0 if saved is None else saved.meta.next_lsn
        self.overdue = False
        if self._ledger is not None:
            self._ledger.close()
        self._ledger = Ledger.recover(self.state.path, count, self.disk)
        self._recover_versions(entries)
        return saved, standing(entries)

    def _recover_versions(self, entries: list[Entry]) -> None:
        """What the versions on disk hold, and which of them may be used."""
        numbers = [number for number in self.versions.numbers() if number <= len(entries)]
        self._version_factors = {number: standing(entries[:number]).factors() for number in numbers}
        self._usable = []
        for count, entry in enumerate(entries, start=1):
            self._usable = versions.usable(self._usable, count, entry)
        self._prune_versions()

    def check_factors(self, holds: Standing) -> Iterator[Event]:
        """See that every factor that stands is sound, before anything more is taken in; raises Damaged."""
        for task, entry in holds.tasks.items():
            if entry.factor is not None:
                self.factors.read(entry.factor, task)
                yield Waiting()

    def resume(self, learner: Learner) -> Iterator[Event]:
        """What the life before us may not have come to, after its checkpoint."""
        if learner.open_task is None and self.last_entry is not None:
            yield from self._keep_version(self.last_entry, learner)
        yield self._drop(learner)

    # -- what a record changed -----------------------------------------------------------------------------------

    def end(self, outcome: Outcome, replay: Replay) -> Iterator[Event]:
        """Everything that is to be done about a record that changed something for good, in its order."""
        entry, learner = outcome.entry, replay.learner
        if outcome.factor is not None:
            tensors = outcome.factor.state()
            yield from _patiently(lambda: self.factors.write(entry.lsn, entry.task, tensors))
        yield from _patiently(lambda: self._written.append(entry))
        self.last_entry = entry
        yield from self.checkpoint(replay)
        yield from self._keep_version(entry, learner)
        yield self._drop(learner)
        yield from self._forgive(learner)

    @property
    def _written(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    def checkpoint(self, replay: Replay) -> Iterator[Event]:
        """Write what the learner holds."""
        yield from self.settle()
        started = time.monotonic()
        meta, tensors = replay.snapshot(len(self._written))
        yield from _patiently(lambda: checkpoint.save(self.state.path, meta, self.frozen.referred(tensors), self.disk))
        yield self._took(meta, started, beside=False)

    def _took(self, meta: Meta, started: float, beside: bool) -> Written:
        self.checkpointed_lsn = meta.next_lsn
        self.overdue = False
        published.clear(self.state.posterior)
        return Written(time.monotonic() - started, meta.batches, meta.sequences, beside)

    # -- written beside what is learned next ---------------------------------------------------------------------

    def begin(self, replay: Replay) -> bool:
        """Begin to write what the learner holds now, or to make memory for that; False where the copy does not fit, or the
        disk is full."""
        started = time.monotonic()
        meta, tensors = replay.snapshot(len(self._written))
        try:
            referred, presumed = self.frozen.presumed(tensors)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        changing = {name: array for name, array in referred.items() if not name.startswith(REPLACED)}
        if needed := self._copy.worth_preparing(changing):
            self.begun = Begun(None, started)
            self._beside.begin(lambda: self._copy.prepare(needed, self._beside.breathe))
            return True
        copied = self._copied(referred, changing)
        if copied is None:
            return False
        plain = snapshot.to_plain(meta)
        self.begun = Begun(meta, started)
        self._beside.begin(lambda: self._write(plain, copied, presumed))
        return True

    def _copied(self, tensors: Mapping[str, Array], changing: Mapping[str, Array]) -> dict[str, Array] | None:
        """Those that training changes in place copied: what is known of earlier tasks, and what holds again if a revisit is
        abandoned, is only ever replaced."""
        copied = self._copy.of(changing)
        self.cramped = None if copied is not None else self._copy.misfit(changing)
        return None if copied is None else {name: copied.get(name, array) for name, array in tensors.items()}

    def _write(self, plain: Mapping[str, Any], tensors: Mapping[str, Array], presumed: Sequence[Presumed]) -> None:
        """In a thread of its own."""
        for array in presumed:
            array.check(self._beside.breathe)
        checkpoint.put(self.state.path, plain, tensors, self.disk, self._beside.breathe)

    def look(self, seconds: float = 0.0) -> Iterator[Event]:
        """Whether what was begun is written, within some seconds; raises what went wrong, but for what makes it overdue."""
        if self.begun is None or not self._beside.ended(seconds):
            return
        begun, self.begun = self.begun, None
        failure = self._beside.take()
        if failure is None and begun.meta is not None:
            yield self._took(begun.meta, begun.started, beside=True)
        elif failure is None:
            return
        elif isinstance(failure, Changed | MemoryError) or (isinstance(failure, OSError) and failure.errno in FULL):
            self.overdue = True
        else:
            raise failure

    def settle(self) -> Iterator[Event]:
        """Wait for what was begun."""
        self._beside.hurry()
        while self.begun is not None:
            yield from self.look(LOOK_SECONDS)
            if self.begun is not None:
                yield Waiting()

    def _drop(self, learner: Learner) -> Dropped:
        """Unlink what the checkpoint has absorbed for good: records of closed tasks, factors that were replaced."""
        first, model, holds = learner.needed, learner.model, learner.standing
        log.drop_before(self.state.log, first, self.disk, self.kept(holds))
        if model is not None and model.posterior.keeps_factors:
            self.factors.keep_only(holds.factors().union(*self._version_factors.values()))
        return Dropped(first)

    def _keep_version(self, entry: Entry, learner: Learner) -> Iterator[Event]:
        """After a boundary, the checkpoint just written is one to go back to; those beyond the bound, and those that may
        not be used any more, go."""
        number = len(self._written)
        self._usable = versions.usable(self._usable, number, entry)
        clean = not isinstance(entry, Forgotten) or learner.open_task is None  # no parameters in the midst of a task
        if self.keep and clean and number in self._usable and number not in self._version_factors:
            self._version_factors[number] = learner.standing.factors()
            yield from _patiently(lambda: self._prune_versions(new=number))
        else:
            self._prune_versions()

    def sweep(self) -> None:
        """Remove arrays of the model that neither the checkpoint, nor a version, nor what is published refers to."""
        versions = map(self.versions.path, self.versions.numbers())
        self.frozen.sweep([self.state.path / checkpoint.NAME, *versions, self.state.parameters])

    def _prune_versions(self, new: int | None = None) -> None:
        known = [number for number in self._usable if number in self._version_factors]
        kept = known[-self.keep - 1 :] if self.keep else []
        self.versions.keep_only(kept, new)
        self._usable = kept
        self._version_factors = {number: self._version_factors[number] for number in kept}

    # -- what cannot be learned ----------------------------------------------------------------------------------

    def set_aside(self, failure: Failure) -> Iterator[Event]:
        """Keep for every later life that a record could not be learned."""
        yield from self.settle()
        yield from self._keep_failures([*self.failures, failure])

    def _forgive(self, learner: Learner) -> Iterator[Event]:
        """Failures of records that are neither kept nor to come are no longer of use: none of their rows is lost."""
        first, holds = learner.needed, learner.standing
        kept = holds.kept()
        held = {entry.lsn for entry in holds.held.values()}
        failures = [
            failure
            for failure in self.failures
            if failure.lsn >= first or failure.lsn in held or any(a <= failure.lsn < b for a, b in kept)
        ]
        if len(failures) < len(self.failures):
            yield from self._keep_failures(failures)
            yield Forgiven()

    def _keep_failures(self, failures: list[Failure]) -> Iterator[Event]:
        yield from _patiently(lambda: quarantine.save(self.state.path, failures, self.disk))
        self.failures = failures


def _patiently(action: Callable[[], Any]) -> Iterator[Full]:
    """Do something to the disk, again and again while it is full; whatever else goes wrong is raised."""
    while True:
        try:
            action()
        except OSError as error:
            if error.errno not in FULL:
                raise
            yield Full(str(error))
        else:
            return
