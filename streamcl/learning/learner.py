"""The learner: a function of the log. Batches are scored and learned from, boundaries consolidated.

Guarantees: after the same records in the same order, the same parameters to the bit (on the CPU); every random
number is drawn from (seed, position in the log), so no generator's state has to be saved. A snapshot holds all that
the next record needs. Writes no files and knows no sockets: the trainer persists what `snapshot` gives.
"""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from streamcl.config import Config
from streamcl.core.consolidation import assumed_density_filtering, task_precision
from streamcl.core.fisher import DiagonalFisher
from streamcl.core.gaussian import DiagonalGaussian
from streamcl.errors import ConfigError, StreamclError
from streamcl.learning.data import Block, TaskData
from streamcl.learning.evaluation import Prequential
from streamcl.learning.network import Network, choose_device
from streamcl.learning.optimisation import EpochResult, Optimisation, mean_nll
from streamcl.protocol.session import signature_of
from streamcl.protocol.signature import LabelMap, Signature
from streamcl.storage.log import LogReader
from streamcl.storage.records import Batch, Boundary

FISHER_ROWS = 512  # between two looks at the channels, also where gradients are taken one by one
FINGERPRINT = ("model", "posterior.mode", "posterior.curvature", "train.dtype")


class Diverged(StreamclError):
    """Training left the finite numbers; names the remedy."""


@dataclass(slots=True)
class OpenTask:
    """The task being learned: where its records are and how many rows they hold."""

    name: str
    lsns: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """N_t so far."""
        return sum(self.sizes)

    def add(self, lsn: int, batch: Batch) -> None:
        """One more record of this task."""
        self.lsns.append(lsn)
        self.sizes.append(batch.samples)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a consolidation has come; `result` is set by the event that ends an epoch."""

    task: str
    epoch: int
    epochs: int
    steps: int
    result: EpochResult | None = None


Event = Progress | None
T = TypeVar("T")
Steps = Generator[Event, None, "dict[str, Any] | None"]


class Learner:
    """Holds the network, its posterior and everything counted; `apply` takes one log record at a time."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = choose_device(config.train.device)
        self.labels = LabelMap(config.model.classes)
        self.signature: Signature | None = None
        self.network: Network | None = None
        self.posterior: DiagonalGaussian | None = None
        self.optimisation: Optimisation | None = None
        self.open_task: OpenTask | None = None
        self.prequential = Prequential(config.model.likelihood)
        self.sequences: dict[str, tuple[int, int]] = {}
        self.next_lsn = 0
        self.steps = 0
        self.samples = 0
        self.batches = 0
        self.tasks = 0
        self.train_loss = math.nan

    # -- the model -----------------------------------------------------------------------------------------------

    def try_model(self, signature: Signature) -> None:
        """Build a model for rows of this signature and throw it away; raises ModelRefused, ConfigError."""
        Network(self.config, signature, LabelMap(self.config.model.classes), self.device)

    def _build(self, signature: Signature) -> None:
        self.signature = signature
        self.network = Network(self.config, signature, self.labels, self.device)
        self.posterior = self._prior(self.network)

    def _prior(self, network: Network) -> DiagonalGaussian:
        posterior = self.config.posterior
        theta = torch.from_numpy(np.array(network.theta(), np.float64))
        centre = theta if posterior.prior_mean == "init" else torch.zeros_like(theta)
        return DiagonalGaussian.prior(centre, posterior.prior_precision)

    # -- records -------------------------------------------------------------------------------------------------

    def apply(self, lsn: int, record: Any, arrays: Mapping[str, npt.NDArray[Any]], log: LogReader) -> Steps:
        """Take one record of the log; a generator that yields after every step, so that its caller can look up.

        Returns the ledger's entry where the record closed a task. Raises Diverged.
        """
        entry = None
        match record:
            case Batch():
                yield from self._learn(lsn, record, arrays)
                if record.boundary:
                    entry = yield from self._consolidate(lsn, record, None, log)
            case Boundary():
                entry = yield from self._consolidate(lsn, record, record.weight, log)
        if record.producer is not None:
            self.sequences[record.producer] = (record.epoch, record.seq)
        self.next_lsn = lsn + 1
        return entry

    def _learn(self, lsn: int, batch: Batch, arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[None]:
        """Score a batch, then take one pass of steps over it, with N_T the rows received so far."""
        if self.network is None:
            self._build(signature_of(batch))
        network = self._network
        self.labels.add(batch.new_labels)
        task = self._opened(batch.task)
        task.add(lsn, batch)
        self.samples += batch.samples
        self.batches += 1
        x, y = network.conversion.x(arrays["x"]), network.conversion.y(arrays["y"])
        self._score(x, y)
        optimisation = self._optimisation
        if optimisation.full_batch:
            return
        torch.manual_seed(self._seed(lsn))
        optimisation.set_samples(task.samples)
        size = self.config.train.batch_size
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start in range(0, len(x), size):
            total += optimisation.step(x[start : start + size], y[start : start + size])[0].sum()
            self.steps += 1
            yield None
        self.train_loss = float(total) / len(x)
        self._check_finite(self.train_loss, batch.task)

    def _opened(self, name: str) -> OpenTask:
        if self.open_task is None:
            self.open_task = OpenTask(name)
            self.optimisation = Optimisation(self._network, self._posterior, self.config.train)
            self.prequential.open_task()
        return self.open_task

    def _score(self, x: torch.Tensor, y: torch.Tensor) -> None:
        network = self._network
        with network.evaluating():
            output = network.shaped(network.module(x))
            nll, prediction = network.likelihood.nll(output, y), network.likelihood.predict(output)
        self.prequential.score(nll, prediction, y)

    def _consolidate(self, lsn: int, record: Batch | Boundary, weight: float | None, log: LogReader) -> Steps:
        """The boundary of a task: the configured epochs, then eqs. 10-11 at the optimum found."""
        started = time.monotonic()
        task = self._open
        data = self._task_data(task, log)
        torch.manual_seed(self._seed(lsn))
        before = self._optimisation.steps
        result = None
        for event in self._optimisation.fit(data, self._seed(lsn)):
            self.steps += event is None
            result = event or result
            epoch = result.epoch if result else 0
            yield Progress(task.name, epoch, self.config.train.epochs, self._optimisation.steps - before, event)
        weight = self.config.posterior.scale * data.samples if weight is None else weight
        yield from self._absorb(data, weight, self._seed(lsn))
        loss = mean_nll(self._network, data)
        self._check_finite(loss, task.name)
        self.train_loss = loss
        self.tasks += 1
        self.open_task = self.optimisation = None
        return {
            "task": task.name,
            "kind": "boundary",
            "samples": data.samples,
            "weight": weight,
            "loss": loss,
            "revisits": 0,
            "penalty": None,
            "penalty_rise": None,
            "producer": record.producer,
            "seq": record.seq,
            "lsn": lsn,
            "seconds": time.monotonic() - started,
            "closed_at": time.time(),
        }

    def _absorb(self, data: TaskData, weight: float, seed: int) -> Iterator[None]:
        """Fisher at the optimum, then the new posterior; nothing is kept of either unless both are finite."""
        network = self._network
        generator = torch.Generator(device=self.device).manual_seed(seed)
        fisher = DiagonalFisher(
            network.module,
            network.parameters,
            network.likelihood,
            self.config.posterior.fisher,
            generator=generator,
        )
        for x, y in data.chunks(FISHER_ROWS):
            fisher.add(x, y)
            yield None
        theta = torch.from_numpy(np.array(network.theta(), np.float64))
        self._check_finite(float(theta.sum()), self._open.name)
        curvature = task_precision(fisher.total.cpu().double(), data.samples, weight)
        self.posterior = assumed_density_filtering(self._posterior, curvature, theta)

    def _task_data(self, task: OpenTask, log: LogReader) -> TaskData:
        def blocks(window: Any) -> Iterator[Block]:
            for index in window:
                entry = next(iter(log.read(task.lsns[index], task.lsns[index] + 1, verify=False)))
                yield entry.arrays["x"], entry.arrays["y"]

        row = math.prod(self._network.signature.x_shape) * self._network.dtype.itemsize
        return TaskData(blocks, task.sizes, row, self._network.conversion)

    def _seed(self, lsn: int) -> int:
        """The seed of everything random about one record."""
        return int(np.random.SeedSequence([self.config.train.seed, lsn]).generate_state(1)[0])

    def _check_finite(self, value: float, task: str) -> None:
        if not math.isfinite(value):
            raise Diverged(
                f"task {task!r}: training diverged (loss {value}); lower train.learning_rate (now "
                f"{self.config.train.learning_rate:g}) or posterior.scale (now {self.config.posterior.scale:g})"
            )

    # -- what a checkpoint holds ---------------------------------------------------------------------------------

    def snapshot(self) -> tuple[dict[str, Any], dict[str, npt.NDArray[Any]]]:
        """All that the next record needs, as plain numbers and host arrays; of constant size."""
        meta = {
            "fingerprint": fingerprint(self.config),
            "next_lsn": self.next_lsn,
            "steps": self.steps,
            "samples": self.samples,
            "batches": self.batches,
            "tasks": self.tasks,
            "train_loss": self.train_loss,
            "labels": [[label, output] for label, output in self.labels.outputs.items()],
            "sequences": {name: list(pair) for name, pair in self.sequences.items()},
            "open_task": None
            if self.open_task is None
            else {"name": self.open_task.name, "first_lsn": self.open_task.lsns[0]},
            "prequential": self.prequential.state(),
            "signature": self.snapshot_signature(),
        }
        return meta, self._tensors()

    def snapshot_signature(self) -> dict[str, Any] | None:
        """The signature as plain containers, None before the first batch."""
        return None if self.signature is None else self.signature.plain()

    def _tensors(self) -> dict[str, npt.NDArray[Any]]:
        if self.network is None:
            return {}
        posterior = {f"posterior.{name}": tensor.numpy() for name, tensor in self._posterior.state().items()}
        optimiser = {} if self.optimisation is None else self.optimisation.state()
        return {**self.network.state(), **posterior, **optimiser}

    def restore(self, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], log: LogReader) -> None:
        """Take over what `snapshot` gave; raises ConfigError where the configuration is another model's."""
        check_fingerprint(meta["fingerprint"], self.config)
        for name in ("next_lsn", "steps", "samples", "batches", "tasks", "train_loss"):
            setattr(self, name, meta[name])
        self.labels.outputs = dict(meta["labels"])
        self.sequences = {name: (epoch, seq) for name, (epoch, seq) in meta["sequences"].items()}
        self.prequential.restore(meta["prequential"])
        if meta["signature"] is not None:
            self._restore_model(meta, tensors, log)

    def _restore_model(self, meta: Mapping[str, Any], tensors: Mapping[str, npt.NDArray[Any]], log: LogReader) -> None:
        self._build(Signature.from_plain(meta["signature"]))
        self._network.load(tensors)
        self.posterior = DiagonalGaussian.from_state(
            {
                name.removeprefix("posterior."): torch.from_numpy(np.array(array))
                for name, array in tensors.items()
                if name.startswith("posterior.")
            }
        )
        if meta["open_task"] is not None:
            self.open_task = self._reopened(meta, log)
            self.optimisation = Optimisation(self._network, self._posterior, self.config.train)
            self.optimisation.load(tensors)

    def _reopened(self, meta: Mapping[str, Any], log: LogReader) -> OpenTask:
        task = OpenTask(meta["open_task"]["name"])
        for entry in log.read(meta["open_task"]["first_lsn"], self.next_lsn, verify=False):
            if isinstance(entry.record, Batch):
                task.add(entry.lsn, entry.record)
        return task

    # -- what must exist by now ----------------------------------------------------------------------------------

    @property
    def _network(self) -> Network:
        return _existing(self.network)

    @property
    def _posterior(self) -> DiagonalGaussian:
        return _existing(self.posterior)

    @property
    def _optimisation(self) -> Optimisation:
        return _existing(self.optimisation)

    @property
    def _open(self) -> OpenTask:
        return _existing(self.open_task)


def _existing(value: T | None) -> T:
    if value is None:
        raise RuntimeError("a boundary or step came before the first batch: the log is not one the daemon wrote")
    return value


def fingerprint(config: Config) -> dict[str, Any]:
    """The parts of a configuration that a state directory is bound to."""

    tree = msgspec.to_builtins(config)
    return {key: _lookup(tree, key) for key in FINGERPRINT}


def _lookup(tree: Mapping[str, Any], key: str) -> Any:
    for part in key.split("."):
        tree = tree[part]
    return tree


def check_fingerprint(saved: Mapping[str, Any], config: Config) -> None:
    """Raise ConfigError naming the keys in which the configuration differs from the state directory's."""
    now = fingerprint(config)
    changed = [key for key in FINGERPRINT if saved[key] != now[key]]
    if changed:
        differences = "; ".join(f"{key} was {saved[key]!r}, is {now[key]!r}" for key in changed)
        raise ConfigError(
            f"configuration: {differences}. The state directory was made with the former: restore it, or choose a "
            "new state_dir"
        )
