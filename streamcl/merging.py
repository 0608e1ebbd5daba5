"""Exact learners that never saw each other's data become one: their exports' sums are added.

Guarantees: what comes out is what one learner would have come to that saw all of it, up to rounding, whatever the order;
what cannot be added is refused, and nothing is written then. Reads exports alone; needs no daemon.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import Tensor

from streamcl import config as configuration
from streamcl import joining
from streamcl.config import Config
from streamcl.core import stored
from streamcl.core.moments import Moments
from streamcl.entries import Consolidated
from streamcl.errors import DataError, StreamclError
from streamcl.inputs import FOUND
from streamcl.joining import Stage
from streamcl.learning import exact
from streamcl.learning.data import Block
from streamcl.learning.learner import Learner
from streamcl.replay import Replay
from streamcl.schema import Signature
from streamcl.storage import checkpoint, exported
from streamcl.storage.disk import Disk
from streamcl.storage.frozen import FrozenStore
from streamcl.storage.ledger import Ledger

HEAD = "head."  # of a module's state: what the sums determine
STATE = "state"  # in the directory that is made: a state directory that a daemon goes on from
IDENTITY = "streamcl.models:identity"
NOT_COMPARED = ("classes", "scenario")  # of a model: say nothing to an exact learner


@dataclass(frozen=True, slots=True)
class Part:
    """One learner's export. told: what its sums are of. features: the arrays of its map, by name."""

    directory: Path
    told: Mapping[str, Any]
    moments: Moments
    features: Mapping[str, Tensor]
    stage: Stage

    @classmethod
    def read(cls, directory: Path) -> Part:
        """What `streamcl export` wrote; raises DataError."""
        path = directory / exported.SUMS
        if not path.exists():
            known = (directory / exported.MODEL).exists()
            what = "the export of a network, whose parameters cannot be added" if known else "no export"
            raise DataError(
                f"{directory}: expected the export of an exact learner (`streamcl export DIR`, model.learner exact), it is "
                f"{what}: there is no {exported.SUMS}"
            )
        try:
            with safe_open(path, "np") as file:
                told = json.loads(file.metadata()["description"])
                arrays = {name: np.array(file.get_tensor(name)) for name in exported.SUMMED}
            with safe_open(directory / exported.STATE, "pt") as file:
                names = [name for name in file.keys() if not name.startswith(HEAD)]  # noqa: SIM118
                features = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise DataError(f"{directory}: not a whole export ({error}); export it again") from None
        if told.get("format") != exported.FORMAT:
            raise DataError(
                f"{path}: format {told.get('format')}; this streamcl reads format {exported.FORMAT}: upgrade it"
            )
        if told.get("sha256") not in (None, exported.sums_digest(arrays)):  # None: of an earlier version
            raise DataError(f"{path}: its numbers are not those that were exported (SHA-256); export it again")
        moments = Moments.from_state({**arrays, "scatter": _whole(arrays["scatter"])})
        return cls(directory, told, moments, features, _stage(directory, told))

    @property
    def labels(self) -> list[int] | None:
        """The label of every group, where groups are classes."""
        labels: list[int] | None = self.told["labels"]
        return None if labels is None else labels[: len(self.moments.counts)]

    @property
    def words(self) -> dict[int, str]:
        """The word of every label, where targets are words."""
        return dict(enumerate(self.stage.words))

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """Names and figures of its consolidated tasks."""
        found: list[dict[str, Any]] = self.told["tasks"]
        return found


def _stage(directory: Path, told: Mapping[str, Any]) -> Stage:
    """What its rows went through; raises DataError where an older export does not say."""
    if "stage" in told:
        return Stage.of(told["stage"])
    if told.get("inputs"):
        raise DataError(
            f"{directory}: it does not say what became of a table's columns: export it again with this streamcl"
        )
    return Stage(None)


def merge(directories: Sequence[Path], out: Path, same_tasks: bool = False) -> dict[str, Any]:
    """Add the sums of exports; write an export, and a state directory that a daemon goes on from, to `out`.

    same_tasks: tasks of one name are parts of one task. Returns what was made: tasks, samples, labels, directories. Raises
    DataError for what cannot be added, and where `out` is there already.
    """
    if len(directories) < 2:
        raise DataError(f"merge: expected two exports or more, got {len(directories)}")
    if out.exists() and any(out.iterdir()):
        raise DataError(f"{out}: expected a directory that is not there yet or is empty")
    parts = [Part.read(directory) for directory in directories]
    _check(parts, same_tasks)
    learner = _learner(parts)
    _write(learner, out)
    tasks = learner.standing.tasks
    labels = sorted(learner.labels.outputs) if parts[0].labels is not None else None
    samples = sum(entry.samples for entry in tasks.values())
    return {"export": str(out), "state": str(out / STATE), "tasks": len(tasks), "samples": samples, "labels": labels}


# -- what can be added -------------------------------------------------------------------------------------------------


def _check(parts: Sequence[Part], same_tasks: bool) -> None:
    """Raise DataError with everything that keeps these sums from being added."""
    first = parts[0]
    problems = [problem for other in parts[1:] for problem in _differences(first, other)]
    problems += [
        f"{part.directory}: its rows fade by a half-life, in the order in which they came; whose row is older than whose "
        "is not known of two learners"
        for part in parts
        if part.told["half_life"]
    ]
    if not same_tasks:
        problems += list(_twice(parts))
    if problems:
        raise DataError("\n  ".join(["merge: these sums cannot be added:", *problems]))


def _differences(one: Part, two: Part) -> Iterator[str]:
    both = f"{one.directory} and {two.directory}"
    mine, theirs = (_model(part) for part in (one, two))
    for key in mine.keys() | theirs.keys():
        if mine.get(key) != theirs.get(key):
            yield f"{both}: {key} {mine.get(key)!r} and {theirs.get(key)!r}"
    rearranged = _rearranged(one)
    apart = list(joining.problems(one.stage, two.stage, _input(one)["scale"] != "none", rearranged))
    yield from (f"{both}: {problem}" for problem in apart)
    if apart or (rearranged and one.stage.columns is not None):
        return
    if one.told["signature"] != two.told["signature"]:
        yield f"{both}: rows of shape {one.told['signature']} and {two.told['signature']}"
    elif one.features.keys() != two.features.keys() or one.moments.width != two.moments.width:
        yield f"{both}: other features, {one.moments.width} and {two.moments.width} numbers a row"
    else:
        different = [name for name, array in one.features.items() if not torch.equal(array, two.features[name])]
        if different:
            yield f"{both}: other features: {', '.join(different[:3])} differ{_remedy(different, one)}"


def _input(part: Part) -> dict[str, Any]:
    """Its settings of the input stage."""
    found: dict[str, Any] = part.told["config"]["input"]
    return found


def _rearranged(part: Part) -> bool:
    """Whether its features are the row itself, so that they may stand in another order."""
    maker = configuration.from_tree({"model": dict(part.told["config"]["model"])}).model.maker
    return maker == IDENTITY


def _remedy(different: Sequence[str], part: Part) -> str:
    if not all(name.rpartition(".")[2] in ("shift", "scale", "settled") for name in different):
        return "; start all daemons with the same model.factory, model.args and train.seed"
    scale, shift = (np.unique(part.features[f"body.{name}"]) for name in ("scale", "shift"))
    given = f" = {{ scale = {float(scale[0]):g}, shift = {float(shift[0]):g} }}" if len(scale) == len(shift) == 1 else ""
    return (
        f"; each scales its input by its own first rows: start all daemons with the same model.args{given}, or use "
        "streamcl.models:identity"
    )


def _model(part: Part) -> dict[str, Any]:
    settings = {f"model.{name}": value for name, value in part.told["config"]["model"].items() if name not in NOT_COMPARED}
    more = {"train.dtype": part.told["config"]["train.dtype"], "train.seed": part.told["seed"]}
    more |= {f"input.{name}": value for name, value in _input(part).items()}
    return {**settings, **more, "posterior.prior_precision": part.told["prior_precision"]}


def _twice(parts: Sequence[Part]) -> Iterator[str]:
    seen: dict[str, Path] = {}
    for part in parts:
        for entry in part.tasks:
            name = entry["task"]
            if name in seen:
                yield (
                    f"{seen[name]} and {part.directory}: both have a task {name!r}; if the same rows are in both they "
                    "would count twice: withdraw one (`streamcl forget`); if they are parts of one task, say --same-tasks"
                )
            seen[name] = part.directory


def _whole(packed: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The symmetric matrix of what is on and above its diagonal."""
    width = (int(np.sqrt(8 * len(packed) + 1)) - 1) // 2
    matrix = np.zeros((width, width))
    start = 0
    for place in range(width):
        end = start + width - place
        matrix[place, place:] = matrix[place:, place] = packed[start:end]
        start = end
    return matrix


# -- made ------------------------------------------------------------------------------------------------------------------


class _NoRows:
    """A store of nothing: what is consolidated is no longer there."""

    def columns(self, lsn: int) -> None:
        """Never asked for."""

    def read(self, lsn: int, verify: bool = True) -> Block:
        """Never asked for."""
        raise StreamclError(f"there is no record {lsn}")

    def batches(self, first: int, end: int, verify: bool = True) -> Iterator[tuple[int, int]]:
        """None."""
        return iter(())


def _settings(told: Mapping[str, Any]) -> Config:
    tree = {
        "model": dict(told["config"]["model"]),
        "input": dict(told["config"]["input"]),
        "train": {"dtype": told["config"]["train.dtype"], "seed": told["seed"], "device": "cpu"},
        "posterior": {"prior_precision": told["prior_precision"]},
    }
    return configuration.from_tree(tree)


def _learner(parts: Sequence[Part]) -> Learner:
    """One that has seen what all have seen."""
    first, stage = parts[0], joining.joined([part.stage for part in parts])
    learner = Learner(_settings(first.told), _NoRows())
    sent = Signature.from_plain(first.told.get("sent") or first.told["signature"])
    columns = None if stage.columns is None else joining.pinned(stage)
    found = {} if stage.found is None else {FOUND: np.array(stage.found)}
    learner.inputs.load(columns, stage.words, stage.plain, found, sent)
    every = {label for part in parts for label in _labels(part, learner)}
    learner.labels.outputs = {label: place for place, label in enumerate(sorted(every))}
    learner.labels.named = bool(stage.words)
    learner.sent = sent
    learner.standing.tasks = {entry.task: entry for entry in _entries(parts)}
    signature = learner.inputs.signature(sent)
    model = learner.recipe.model(signature, learner.standing.tasks, 1, False)
    assert isinstance(model, exact.Model)
    model.network.module.load_state_dict({**model.network.module.state_dict(), **first.features})
    sums = (_placed(part, stage, learner) for part in parts)
    model.posterior.total = Moments.none(0, model.fitting.width).product(sums)
    model.fitting.put(model.posterior.fitted())
    learner.model = model
    learner.next_lsn = learner.consolidations = len(learner.standing.tasks)
    learner.samples = sum(entry.samples for entry in learner.standing.tasks.values())
    return learner


def _labels(part: Part, learner: Learner) -> list[int]:
    """The labels of a part's groups, as all have them: a word's label may be another in each."""
    known = learner.inputs.words.labels
    return [known[part.words[label]] if label in part.words else label for label in part.labels or ()]


def _placed(part: Part, whole: Stage, learner: Learner) -> Moments:
    """A part's sums with every class and every input where the labels and columns of all have it."""
    moments, matrix = part.moments, joining.placed(part.stage, whole) if _rearranged(part) else None
    if matrix is not None:
        moments = moments.mapped(torch.from_numpy(matrix))
    if part.labels is None:
        return moments
    return moments.ordered([learner.labels.outputs[label] for label in _labels(part, learner)])


def _entries(parts: Sequence[Part]) -> Iterator[Consolidated]:
    together: dict[str, dict[str, Any]] = {}
    for entry in (entry for part in parts for entry in part.tasks):
        known = together.get(entry["task"])
        if known is None:
            together[entry["task"]] = dict(entry)
            continue
        samples = known["samples"] + entry["samples"]
        known["loss"] = (known["samples"] * known["loss"] + entry["samples"] * entry["loss"]) / max(1, samples)
        known |= {"samples": samples, "weight": known["weight"] + entry["weight"]}
        known["closed_at"] = max(known["closed_at"], entry["closed_at"])
    for lsn, entry in enumerate(together.values()):
        yield Consolidated(lsn=lsn, **entry)


def _write(learner: Learner, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    _write_export(learner, out)
    _write_state(learner, out / STATE)


def _write_export(learner: Learner, out: Path) -> None:
    """The files of `streamcl export`."""
    model = learner.model
    assert isinstance(model, exact.Model)
    arrays, posterior, layout = model.network.state(), model.posterior_state(), model.network.parameters.layout
    meta = {
        "version": learner.steps,
        "signature": model.signature.plain(),
        "sent": None if learner.sent is None else learner.sent.plain(),
        "columns": None if learner.inputs.pinned is None else learner.inputs.pinned.plain(),
        "words": learner.inputs.words.known,
        "inputs": learner.inputs.plain(),
        "input_stage": learner.inputs.description(),
        "labels": learner.labels.labels().tolist(),
        "parameters": layout.plain(),
        "layout": model.network.layout(),
    }
    tasks = [
        {name: getattr(entry, name) for name in ("task", "samples", "weight", "loss", "closed_at")}
        for entry in learner.standing.tasks.values()
    ]
    described = exported.description(meta, arrays, learner.config)
    vectors = {"theta": arrays["theta"], "precision": posterior[stored.PRECISION], "shift": posterior[stored.SHIFT]}
    named = {"names": layout.names, "shapes": [list(shape) for shape in layout.shapes]}
    save_file(vectors, out / exported.PARAMETERS, metadata={name: json.dumps(value) for name, value in named.items()})
    (out / exported.DESCRIPTION).write_text(json.dumps({"tasks": tasks, **named}, indent=2))
    (out / exported.MODEL).write_text(json.dumps(described, indent=2) + "\n")
    (out / exported.STATE).write_bytes(exported.state_file(meta, arrays))
    (out / exported.SUMS).write_bytes(exported.sums_file(meta, learner.inputs.state(), posterior, tasks, learner.config))


def _write_state(learner: Learner, directory: Path) -> None:
    """A state directory whose daemon has learned all of this: ledger, then checkpoint."""
    disk = Disk()
    directory.mkdir(mode=0o700)
    entries = list(learner.standing.tasks.values())
    ledger = Ledger.recover(directory, 0, disk)
    for entry in entries:
        ledger.append(entry)
    ledger.close()
    meta, tensors = Replay(learner).snapshot(len(entries))
    checkpoint.save(directory, meta, FrozenStore(directory, disk).referred(tensors), disk)
