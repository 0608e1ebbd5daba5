"""The learner in this process: the daemon's own rules and code, without sockets, files or other processes.

Every call becomes the record that the daemon would have stored, and takes effect before it returns. Guarantees: on the CPU
the same bits as a daemon that is sent the same batches, boundaries and revisits in the same order; the same refusals, by
code; a call that raises has changed nothing, but for rows that are kept because they could not be learned.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np
import numpy.typing as npt
from torch import nn

from streamcl import columns as tables
from streamcl import config as configuration
from streamcl import dataframes, entries, gauge, snapshot
from streamcl.arrays import as_array
from streamcl.client import ParameterVectors, Prediction
from streamcl.client.reader import named as labels_named
from streamcl.config import Config
from streamcl.core import stored as stored_state
from streamcl.core.reduce import ALONE, Reduction
from streamcl.entries import (
    Confirmed,
    Consolidated,
    Entry,
    Held,
    Standing,
    StillAside,
    closing_figures,
    standing,
)
from streamcl.errors import ConfigError, ModelRefused, Refused, UnknownFormat, no_model_yet
from streamcl.inputs import encoded
from streamcl.learning import kinds, scenario
from streamcl.learning import learner as learning
from streamcl.learning.data import Array, Block, Rows
from streamcl.learning.failing import MOST_FAILURES, Unlearnable
from streamcl.learning.kinds import AnyModel
from streamcl.learning.network import Network
from streamcl.learning.open_task import OpenTask
from streamcl.learning.outcomes import Outcome
from streamcl.learning.predictive import Predicted
from streamcl.protocol import messages
from streamcl.protocol.frames import NamedArrays, check_finite, portable
from streamcl.protocol.restoring import restore
from streamcl.protocol.session import StreamSession, Terms
from streamcl.replay import Replay, run_through
from streamcl.schema import chosen
from streamcl.snapshot import Meta, under
from streamcl.storage import container, verified
from streamcl.storage.disk import Disk
from streamcl.storage.log import Entry as Stored
from streamcl.storage.records import Batch, Record

ITSELF = "learner"  # the producer that this process is to the session
NO_EFFECT = (
    "state_dir",
    "endpoints",
    "evaluation",
    "security",
    "log",
    "train.watchdog_seconds",
    "train.workers",
    "train.elastic",
    "posterior.keep",
    "stream.credit",
    "stream.producers",
)
FORMAT = 1
ROWS, FACTOR = "rows.", "factor."  # of the arrays' names in a file


@dataclass(slots=True)
class Memory:
    """What a daemon has on disk: the records of the open task, those that are kept, and the factors."""

    records: dict[int, Stored] = field(default_factory=dict)
    factors: dict[int, Mapping[str, npt.NDArray[Any]]] = field(default_factory=dict)

    def keep_only(self, needed: int, kept: Sequence[tuple[int, int]], factors: set[int]) -> None:
        """Let go of every record below `needed` that is in none of the ranges, and of every other factor."""
        gone = [lsn for lsn in self.records if lsn < needed and not any(first <= lsn < end for first, end in kept)]
        for lsn in gone:
            del self.records[lsn]
        for number in self.factors.keys() - factors:
            del self.factors[number]

    def held_bytes(self) -> int:
        """Of the rows."""
        return sum(stored.nbytes for stored in self.records.values())


@dataclass(frozen=True, slots=True)
class _Rows:
    """The learner's store."""

    memory: Memory

    def read(self, lsn: int, verify: bool = True) -> Block:
        """One batch's rows."""
        arrays = self.memory.records[lsn].arrays
        return arrays["x"], arrays["y"]

    def columns(self, lsn: int) -> tables.Columns | None:
        """Of one batch's table."""
        record = self.memory.records[lsn].record
        return record.schema if isinstance(record, Batch) else None

    def batches(self, first: int, end: int, verify: bool = True) -> Iterator[tuple[int, int]]:
        """Position and rows of every batch between."""
        for lsn, stored in sorted(self.memory.records.items()):
            if first <= lsn < end and isinstance(stored.record, Batch):
                yield lsn, stored.record.samples


@dataclass(frozen=True, slots=True)
class _Factors:
    """The learner's source of factors."""

    memory: Memory

    def read(self, number: int, task: str, verify: bool = True) -> Mapping[str, npt.NDArray[Any]]:
        """One factor's arrays."""
        return self.memory.factors[number]


class Learner:
    """A continual learner in this process.

    config: keys as in the daemon's TOML file, nested; those that only a daemon has a use for are refused. module: the model
    itself, instead of ``model.factory``; it is copied, and its parameters are where learning starts. reduction: with
    `core.ranks.Ranks`, in every process of a `torch.distributed` group that makes the same calls with the same rows, each
    does its part of the work and all come to the same. Raises ConfigError.

    Tasks as in the daemon: the first batch of a task opens it, `boundary` consolidates it into the posterior and lets its
    rows go. Not safe to use from several threads at once.

    What holds it together: every call is one record, and session, learner, rows and factors take it in or are put back
    together.
    """

    predicts_as_scored = False  # an exact learner: by the head of the last solution, and not one of all rows so far

    def __init__(
        self, config: Mapping[str, Any] | None = None, module: nn.Module | None = None, *, reduction: Reduction = ALONE
    ) -> None:
        if config is not None and not isinstance(config, Mapping):
            raise ConfigError(f"configuration: expected a mapping of keys, got {type(config).__name__}")
        self._begin(_settings(_plain(config or {}), module), module, reduction)

    def _begin(self, settings: Config, module: nn.Module | None, reduction: Reduction = ALONE) -> None:
        self.config = settings
        self._module, self._reduction = copy.deepcopy(module), reduction
        self._memory = Memory()
        self._entries: list[Entry] = []
        self._failures: dict[int, dict[str, int]] = {}
        self._reasons: dict[str, str] = {}
        self._session = StreamSession(Terms.of(self.config))
        self._session.producers.hello(messages.Hello(producer=ITSELF))
        self._replay = self._fresh()
        self._place: tuple[Meta, dict[str, npt.NDArray[Any]]]
        self._mark_place()

    def _fresh(self) -> Replay:
        factory = None if self._module is None else _copies(self._module)
        learner = learning.Learner(self.config, _Rows(self._memory), _Factors(self._memory), None, factory, self._reduction)
        learner.wary = self._failures
        return Replay(learner)

    # -- learning ------------------------------------------------------------------------------------------------

    def observe(
        self, x: Any, y: Any, task: str = "default", boundary: bool = False, schema: Sequence[Any] | None = None
    ) -> dict[str, Any] | None:
        """Learn from rows x [n, ...] and y [n] or [n, ...] of a task; the first batch of a task opens it.

        x may be a table of pandas, Polars or Arrow, and y then also the name of one of its columns; schema: of an
        array's columns, as for a `Producer`. boundary: the task ends with these rows; then returns what `boundary`
        does, as where a task ends by itself (``stream.boundary``). Rows on which the model fails are tried again at the
        boundary, with a RuntimeWarning now. Raises Refused (``task_closed task_mismatch bad_shape bad_array bad_label
        nonfinite no_credit``), and ModelRefused with the first batch where the model cannot be learned.
        """
        x, y, named = self._as_table(x, y, schema)
        lacking = named is not None or self._session.columns is not None
        arrays = {"x": self._checked("x", x, lacking), "y": self._checked("y", y)}
        header = {"type": "batch", "seq": self._next_seq, "task": task, "boundary": boundary, "schema": named}
        message = messages.decode(header, messages.Batch)
        nbytes = sum(array.nbytes for array in arrays.values())
        ended = self._take(self._session.due())
        records = self._session.admit_batch(ITSELF, message, NamedArrays(arrays), nbytes)
        first = self._session.signature is None
        if first:
            self._try_model(records[-1], arrays)
        told = self._take(records, {name: array.copy() for name, array in arrays.items()}, nbytes) or ended
        for doubt in filter(None, (self._learner.inputs.unscaled, self._learner.doubt) if first else ()):
            warnings.warn(doubt, RuntimeWarning, stacklevel=2)
        return told

    def _try_model(self, batch: Record, arrays: Mapping[str, Array]) -> None:
        assert isinstance(batch, Batch)
        rows = chosen(arrays["x"], arrays["y"])
        tried = Rows("", *rows, batch.new_labels, columns=batch.schema, new_words=batch.new_words)
        try:
            self._learner.try_model(tried, lambda: None)
        except ModelRefused as error:
            raise _interrupt(error) or error from error.__cause__

    def boundary(self, task: str = "default", weight: float | None = None) -> dict[str, Any]:
        """Consolidate the open task and let its rows go. weight: lambda_t, by default the configured scale times N_t.

        Returns its figures: task, kind, samples, loss (mean NLL in nats a sample), seconds, set_aside. Raises Refused
        ``unknown_task task_closed``, and ``unlearnable`` where nothing of it could be learned: its rows are kept then,
        until `retry` or `drop`.
        """
        header = {"type": "boundary", "seq": self._next_seq, "task": task, "weight": weight}
        message = messages.decode(header, messages.Boundary)
        return self._take(self._session.admit_boundary(ITSELF, message)) or {}

    def rename(self, name: str) -> None:
        """Give the open task another name, before its boundary makes it known by that.

        Raises Refused ``unknown_task`` where none is open, ``task_mismatch`` during a revisit or with drift, which has
        names of its own, ``task_closed`` where the name is taken.
        """
        opened = self._learner.open_task
        if opened is None:
            raise Refused("unknown_task", "no task is open; its first batch opens one")
        if name == opened.name:
            return
        messages.decode({"type": "batch", "seq": 1, "task": name}, messages.Batch)
        if opened.revisited is not None or self._session.of_stream:
            raise Refused(
                "task_mismatch", f"task {opened.name!r}: a revisit, or a task that ends by itself, keeps its name"
            )
        if name in self._session.closed:
            raise Refused("task_closed", f"task {name!r} is closed already; expected a name that is not taken")
        self._rename(opened, name)

    def _rename(self, opened: OpenTask, name: str) -> None:
        self._memory.records = {
            lsn: replace(stored, record=msgspec.structs.replace(stored.record, task=name))
            if stored.record.task == opened.name
            else stored
            for lsn, stored in self._memory.records.items()
        }
        meta, tensors = self._place
        if meta.open_task is not None:
            meta = msgspec.structs.replace(meta, open_task=msgspec.structs.replace(meta.open_task, name=name))
            self._place = meta, tensors
        opened.name = self._session.open_task = self._session.open_tag = name

    def revisit(self, task: str, damping: float | None = None) -> None:
        """Reopen a consolidated task (``posterior.mode`` factors or online): feed it again, then its `boundary`.

        damping: of its new factor. Raises Refused ``not_in_factor_mode unknown_task task_closed task_mismatch``.
        """
        header = {"type": "revisit", "seq": self._next_seq, "task": task, "damping": damping}
        message = messages.decode(header, messages.Revisit)
        self._take(self._session.admit_revisit(ITSELF, message.seq, message.task, message.damping))

    def abandon(self) -> None:
        """Give up the open revisit; everything is as before it. Raises Refused ``unknown_task``."""
        self._take(self._session.admit_abandon(None))

    def forget(self, task: str) -> None:
        """Withdraw a task's factor for good (factor mode). Raises Refused as the daemon does."""
        self._take(self._session.admit_forget(task))

    def retry(self, task: str) -> dict[str, Any]:
        """Learn what was kept of a task. Raises Refused ``unknown_task not_ready``, ``unlearnable`` if it fails again."""
        return self._take(self._session.admit_retry(task)) or {}

    def drop(self, task: str) -> None:
        """Give up what was kept of a task. Raises Refused ``unknown_task``."""
        self._take(self._session.admit_drop(task))

    # -- what was learned ------------------------------------------------------------------------------------------

    def predict(
        self,
        x: Any,
        samples: int = 0,
        uncertainty: bool = False,
        task: str | None = None,
        schema: Sequence[Any] | None = None,
    ) -> Prediction:
        """What the model says of rows x, an array or a table; with what the posterior leaves open of it, if asked for.

        samples: averaged over so many draws of the outputs, from the linearised predictive ``N(f(x), J Sigma J^T)``.
        uncertainty: the same in closed form: probabilities after the probit correction, or the outputs' variance added to
        the noise's. One of the two.

        task: whose rows they are, where `model.scenario` is task: an answer is then one of that task's labels.

        During a revisit, with the parameters from before it. Raises Refused ``not_ready`` before the first batch,
        ``bad_shape bad_array nonfinite``, ``bad_header unknown_task`` for a task that says nothing.
        """
        header = {"type": "predict", "samples": samples, "uncertainty": uncertainty, "task": task}
        asked = messages.decode(header, messages.Predict)
        x, _, named = self._as_table(x, None, schema)
        inputs, sights, sent = self._learner.inputs, self._learner.sights, self._learner.sent
        rows = self._checked("x", x, named is not None or inputs.pinned is not None)
        with self._served() as network, network.seeing(*scenario.asked(self.config, network.told, task, sights)):
            columns = None if named is None else tables.from_plain(named)
            found = self._predicted(network, encoded(inputs, sent, rows, columns) if sent is not None else rows, asked)
            labels, unseen = None, network.unseen()
            if self._learner.config.model.family == "categorical":
                labels = labels_named(network.columns().tolist(), inputs.words.known)
        return Prediction(self._learner.steps, found.arrays, labels, found.note, unseen=unseen)

    def _predicted(self, network: Network, rows: Array, asked: messages.Predict) -> Predicted:
        seed = self.config.train.seed + self._learner.steps
        how = (lambda: kinds.posterior_of(self._model)), asked.samples, asked.uncertainty, seed
        return kinds.answered(network, rows, *how)

    def _as_table(self, x: Any, y: Any, schema: Sequence[Any] | None) -> tuple[Any, Any, list[dict[str, Any]] | None]:
        """Rows, targets and their columns, whatever they were given as."""
        if dataframes.is_table(x):
            pinned = self._session.columns
            found = dataframes.batch(x, y, None if pinned is None else pinned.kinds)
            if pinned is None and y is not None and (doubts := dataframes.doubts(found)) is not None:
                warnings.warn(doubts, RuntimeWarning, stacklevel=3)
            return found.x, found.y, tables.plain(found.columns or ())
        return x, y, None if schema is None else tables.plain(tables.from_plain(schema))

    def _checked(self, name: str, values: Any, lacking: bool = False) -> Array:
        """An array as the wire would carry it; raises Refused ``bad_array nonfinite``, also beyond what the model takes."""
        array = portable(name, as_array(values))
        check_finite(name, array, missing=lacking)
        if not lacking and array.dtype.str == "<f8" and self.config.train.dtype == "float32" and array.size:
            largest = float(np.abs(array).max())
            if largest > float(np.finfo(np.float32).max):  # as a float32, it would be compared as one
                raise Refused(
                    "nonfinite", f"{name}: {largest:g} is beyond float32; scale it, or use train.dtype = 'float64'"
                )
        return array

    @contextmanager
    def _served(self) -> Iterator[Network]:
        """The network at the parameters that predictions are made with."""
        network = self._model.network
        if self.predicts_as_scored and not (self._learner.open_task and self._learner.open_task.before):
            yield network
            return
        served = self._learner.served()
        now = _copied(network.state())
        if served.keys() == now.keys() and all(np.array_equal(served[name], now[name]) for name in served):
            yield network
            return
        network.load(served)
        try:
            yield network
        finally:
            network.load(now)

    def parameters(self) -> ParameterVectors:
        """theta, precision and shift [P] float64 in the model's parameter order, with names and shapes.

        Raises Refused ``not_ready`` before the first batch.
        """
        network, state = self._model.network, self._model.posterior_state()
        shapes = [list(shape) for shape in network.parameters.shapes]
        theta = np.array(self._learner.served()["theta"], np.float64)
        precision, shift = (
            np.array(stored_state.diagonal(state), np.float64),
            np.array(state[stored_state.SHIFT], np.float64),
        )
        return ParameterVectors(theta, precision, shift, list(network.parameters.names), shapes)

    def tasks(self) -> list[dict[str, Any]]:
        """One map a task, in the order they were first closed: task, samples, weight, loss, revisits, penalty, penalty_rise
        (both None but in factor mode), closed_at, set_aside, state (consolidated or held); rise_bound (``lower``: as a rule
        the rise is more, ``chance``: it has come to where guessing does as well), chance (what that costs, in nats a
        sample), at_chance (None where it is not known)."""
        followed, standing, lower = self._followed(), self._learner.standing, gauge.understates(self._learner.config)
        shown = [_shown(entry, followed.get(task), standing, lower) for task, entry in standing.tasks.items()]
        held = [entry for task, entry in standing.held.items() if task not in standing.tasks]
        return [*shown, *(_shown(entry, None, standing, lower) for entry in held)]

    def past(self) -> dict[str, Any]:
        """All tasks together: tasks, samples, rise of their mean loss since each was learned (nats a sample, by their
        quadratic, with what the open task has done; None where nothing is held), rise_bound and at_chance as of `tasks`."""
        learner = self._learner
        rises = None
        if self.config.posterior.mode == "factors":
            rises = {task: rise for task, (_, rise) in self._followed().items()}
        task = learner.open_task
        open_now = learner.model is not None and task is not None and task.revisited is None
        moved = learner.model.moved(task) if learner.model is not None and open_now else None
        found = gauge.past(learner.standing, rises, moved, gauge.understates(self._learner.config))
        return dict(msgspec.to_builtins(found))

    def _followed(self) -> dict[str, tuple[float, float]]:
        model = self._learner.model
        if model is None:
            return {}
        return {task: (penalty, rise) for task, penalty, rise in model.follow({})}

    @property
    def open_task(self) -> str | None:
        """The name of the task being learned."""
        return self._session.open_task

    @property
    def module(self) -> nn.Module:
        """The model itself, as it is now. Raises Refused ``not_ready`` before the first batch."""
        return self._model.network.module

    # -- kept ----------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write everything to one file (no pickle), in a single rename; raises OSError.

        The rows of an open task are in it, and those that are kept because they could not be learned.
        """
        verified.save(Path(path), *self._state(), Disk())

    @classmethod
    def load(cls, path: str | os.PathLike[str], module: nn.Module | None = None, *, device: str | None = None) -> Self:
        """What `save` wrote. module: as it was given to the learner saved. device: instead of its ``train.device``, where
        that is of another machine.

        Raises FileNotFoundError, Damaged, UnknownFormat, ConfigError.
        """
        saved = verified.load(Path(path))
        return cls.__new__(cls)._restored(_on(saved.meta, device), saved.tensors, module)

    def __getstate__(self) -> dict[str, Any]:
        meta, arrays = self._state()
        saved = b"".join(container.pack(meta, arrays, digests=True))
        return {"saved": saved, "module": self._module, "predicts_as_scored": self.predicts_as_scored}

    def __setstate__(self, state: dict[str, Any]) -> None:
        meta, arrays = container.unpack(memoryview(state["saved"]), Path("a copied Learner"))
        self._restored(meta, arrays, state["module"])
        self.predicts_as_scored = state.get("predicts_as_scored", False)  # not in what older versions have pickled

    def _state(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        meta, tensors = self._replay.snapshot(len(self._entries))
        records, factors = self._memory.records, self._memory.factors
        rows = {f"{ROWS}{lsn}.{name}": array for lsn, each in records.items() for name, array in each.arrays.items()}
        kept = {f"{FACTOR}{number}.{name}": array for number, each in factors.items() for name, array in each.items()}
        plain = {
            "format": FORMAT,
            "module": self._module is not None,
            "config": msgspec.to_builtins(self.config),
            "checkpoint": snapshot.to_plain(meta),
            "entries": [entries.to_plain(entry) for entry in self._entries],
            "records": [[lsn, msgspec.to_builtins(each.record), each.nbytes] for lsn, each in records.items()],
            "factors": list(factors),
            "failures": [[lsn, stages] for lsn, stages in self._failures.items()],
            "reasons": self._reasons,
        }
        return plain, {**tensors, **rows, **kept}

    def _restored(self, plain: Mapping[str, Any], arrays: Mapping[str, Any], module: nn.Module | None) -> Self:
        if plain.get("format") != FORMAT:
            raise UnknownFormat(f"a learner of format {plain.get('format')}: this version reads format {FORMAT}; upgrade")
        self._begin(_saved_settings(plain, module), module)
        for lsn, record, nbytes in plain["records"]:
            own = under(f"{ROWS}{lsn}.", arrays)
            self._memory.records[lsn] = Stored(lsn, msgspec.convert(record, Record), _copied(own), nbytes)
        for number in plain["factors"]:
            self._memory.factors[number] = _copied(under(f"{FACTOR}{number}.", arrays))
        self._entries = [entries.from_plain(entry) for entry in plain["entries"]]
        self._failures.update({lsn: dict(stages) for lsn, stages in plain["failures"]})
        self._reasons.update(plain["reasons"])
        meta = snapshot.from_plain(plain["checkpoint"])
        self._replay.restore(meta, arrays, standing(self._entries))
        needed = [(lsn, each.record, each.nbytes) for lsn, each in self._memory.records.items() if lsn >= meta.needed]
        restore(self._session, meta, self._entries, needed)
        self._mark_place()
        return self

    # -- a record --------------------------------------------------------------------------------------------------

    def _take(
        self, records: Sequence[Record], arrays: dict[str, Array] | None = None, nbytes: int = 0
    ) -> dict[str, Any] | None:
        """Learn records one after another; what a boundary among them came to. Raises Refused ``unlearnable``."""
        told = None
        for record in records:
            mine = (arrays or {}, nbytes) if isinstance(record, Batch) else ({}, 0)
            entry = self._learn(Stored(self._session.next_lsn, record, *mine))
            told = self._told(entry) or told
        return told

    def _learn(self, stored: Stored) -> Entry | None:
        """Learn one record; whatever is raised, everything is as before it."""
        self._memory.records[stored.lsn] = stored
        try:
            outcome = self._outcome(stored)
        except BaseException:
            del self._memory.records[stored.lsn]
            self._failures.pop(stored.lsn, None)
            self._go_back()
            raise
        self._session.apply(stored.lsn, stored.record, stored.nbytes)
        self._session.producers.synced()
        if outcome is not None:
            self._settle(outcome)
        self._session.trained(self._learner.next_lsn)
        return None if outcome is None else outcome.entry

    def _outcome(self, stored: Stored) -> Outcome | None:
        """What a record comes to, with what cannot be learned of it passed over, set aside or held, as in the daemon."""
        while True:
            try:
                return run_through(self._replay.apply(stored))
            except Unlearnable as error:
                if (interrupt := _interrupt(error)) is not None:
                    raise interrupt from None
                self._note(stored, error)
                self._go_back()
                if sum(self._failures[stored.lsn].values()) > MOST_FAILURES:
                    told = f"{error}; it cannot be passed over either: mend the model or its configuration"
                    raise Refused("unlearnable", told) from error

    def _note(self, stored: Stored, error: Unlearnable) -> None:
        stages = self._failures.setdefault(stored.lsn, {})
        stages[error.stage] = stages.get(error.stage, 0) + 1
        self._reasons[stored.record.task] = str(error)
        if error.stage.startswith("batch"):
            warnings.warn(f"{error}; tried again at the task's boundary", RuntimeWarning, stacklevel=6)

    def _settle(self, outcome: Outcome) -> None:
        """What a record changed for good holds for everything that comes now."""
        entry, session, learner = outcome.entry, self._session, self._learner
        self._entries.append(entry)
        if outcome.factor is not None:
            self._memory.factors[entry.lsn] = _copied(outcome.factor.state())
        session.take_entry(entry, learner.standing)
        self._memory.keep_only(learner.needed, learner.standing.kept(), learner.standing.factors())
        session.room.total_spool = self._memory.held_bytes()
        for lsn in self._failures.keys() - self._memory.records.keys():
            del self._failures[lsn]
        self._mark_place()

    def _told(self, entry: Entry | None) -> dict[str, Any] | None:
        """What a caller is told of an entry; raises Refused ``unlearnable``."""
        if isinstance(entry, Held | StillAside):
            reason = self._reasons.get(entry.task, "the model failed on all of them")
            raise Refused(
                "unlearnable",
                f"task {entry.task!r}: {entry.samples} rows could not be learned: {reason}; they are kept: retry() learns "
                "them, also after load() with a mended module, drop() gives them up",
            )
        if not isinstance(entry, Consolidated | Confirmed):
            return None
        if isinstance(entry, Consolidated) and entry.warning:
            warnings.warn(f"task {entry.task!r}: {entry.warning}", RuntimeWarning, stacklevel=4)
        return closing_figures(entry)

    # -- where it was ----------------------------------------------------------------------------------------------

    def _mark_place(self) -> None:
        """From here on, records are learned again where one of them fails."""
        meta, tensors = self._replay.snapshot(len(self._entries))
        self._place = meta, _copied(tensors)

    def _go_back(self) -> None:
        """To behind the last record that was learned."""
        while not self._has_come_back():
            pass

    def _has_come_back(self) -> bool:
        """Learn again what was learned since; False where a record of it fails now, which is noted for the next attempt."""
        self._replay = self._fresh()
        meta, tensors = self._place
        self._replay.restore(meta, _copied(tensors), standing(self._entries))
        for stored in list(self._memory.records.values()):
            if not meta.next_lsn <= stored.lsn < self._session.next_lsn:
                continue  # in the snapshot already, or not learned yet
            try:
                run_through(self._replay.apply(stored))
            except Unlearnable as error:
                self._note(stored, error)
                if sum(self._failures[stored.lsn].values()) > MOST_FAILURES:
                    raise
                return False
        return True

    @property
    def _learner(self) -> learning.Learner:
        return self._replay.learner

    @property
    def _model(self) -> AnyModel:
        model = self._learner.model
        if model is None:
            raise no_model_yet()
        return model

    @property
    def _next_seq(self) -> int:
        return self._session.producers[ITSELF].stored + 1


def _settings(tree: dict[str, Any], module: nn.Module | None) -> Config:
    for key in NO_EFFECT:
        if _is_given(tree, key):
            raise ConfigError(f"configuration: {key} has no effect on a learner in this process; leave it out")
    if module is None:
        return configuration.from_tree(tree)
    for key in ("model.factory", "model.args"):
        if _is_given(tree, key):
            raise ConfigError(f"configuration: expected either a module or {key}, got both")
    model = {**tree.get("model", {}), "factory": _described(module)}
    return configuration.from_tree({**tree, "model": model})


def _described(module: nn.Module) -> str:
    """What stands for a module in the configuration: the name of its class."""
    return f"{type(module).__module__}:{type(module).__qualname__.replace('<locals>.', '')}"


def _is_given(tree: Mapping[str, Any], key: str) -> bool:
    section, _, name = key.partition(".")
    return section in tree and (not name or name in tree[section])


def _saved_settings(saved: Mapping[str, Any], module: nn.Module | None) -> Config:
    """A saved learner's configuration; raises ConfigError where its module is missing, or one too many."""
    settings = configuration.from_tree(saved["config"])
    made_of = settings.model.factory
    if module is None:
        if saved["module"]:
            raise ConfigError(
                f"the learner was made of a module, {made_of}: expected one like it, Learner.load(path, module=...)"
            )
        return settings
    if not saved["module"]:
        raise ConfigError(f"the learner was made with model.factory {made_of!r}: expected no module")
    model = msgspec.structs.replace(settings.model, factory=_described(module))
    return msgspec.structs.replace(settings, model=model)


def _interrupt(error: Exception) -> BaseException | None:
    """Ctrl-C, or an end that a signal's handler asked for, which the learner would take for the model's doing."""
    cause = error.__cause__
    return cause if isinstance(cause, KeyboardInterrupt | SystemExit) else None


def _plain(tree: Any) -> Any:
    """A configuration with dotted keys nested, and numbers of NumPy's as Python's own; raises ConfigError."""
    if isinstance(tree, np.generic):
        return tree.item()
    if isinstance(tree, list | tuple):
        return [_plain(value) for value in tree]
    if not isinstance(tree, Mapping):
        return tree
    plain: dict[str, Any] = {}
    for key, value in tree.items():
        section, dot, name = str(key).partition(".")
        if dot:
            plain[section] = {**plain.get(section, {}), **_plain({name: value})}
        else:
            given = _plain(value)
            plain[section] = {**plain[section], **given} if isinstance(given, dict) and section in plain else given
    return plain


def over(tree: Mapping[str, Any], config: Mapping[str, Any] | None) -> dict[str, Any]:
    """A configuration with further keys over it, nested or dotted; raises ConfigError where they are none."""
    found = dict(tree)
    for section, values in _plain(config or {}).items():
        if not isinstance(values, Mapping):
            raise ConfigError(f"config: expected sections with keys in them, got {section!r}: {values!r}")
        found[section] = {**found.get(section, {}), **values}
    return found


def _on(plain: Mapping[str, Any], device: str | None) -> Mapping[str, Any]:
    """What was saved, as of a learner on this device; None: on its own."""
    if device is None or plain.get("format") != FORMAT:
        return plain
    config = plain["config"]
    return {**plain, "config": {**config, "train": {**config["train"], "device": device}}}


def _copies(module: nn.Module) -> Callable[[], nn.Module]:
    """A factory of copies."""
    return lambda: copy.deepcopy(module)


def _copied(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    return {name: np.array(array) for name, array in arrays.items()}


def _shown(
    entry: Consolidated | Held, followed: tuple[float, float] | None, standing: Standing, lower: bool
) -> dict[str, Any]:
    penalty, rise = followed or (None, None)
    chances = gauge.figures(entry, rise, None, lower) if isinstance(entry, Consolidated) else dict.fromkeys(gauge.FIGURES)
    weight, loss = (entry.weight, entry.loss) if isinstance(entry, Consolidated) else (0.0, None)
    return {
        "task": entry.task,
        "samples": entry.samples,
        "weight": weight,
        "loss": loss,
        "revisits": entry.revisits if isinstance(entry, Consolidated) else 0,
        "penalty": penalty,
        "penalty_rise": rise,
        **chances,
        "closed_at": entry.closed_at,
        "set_aside": entry.rows_aside if isinstance(entry, Consolidated) else 0,
        "state": "held" if entry.task in standing.held else "consolidated",
    }
