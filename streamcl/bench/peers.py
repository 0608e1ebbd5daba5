"""``streamcl bench peers``: the Fisher and the penalty beside public libraries, as far as they are installed.

Everything is computed on one trained network and the same rows. A peer's result is compared first: times count only
for the same quantity. Times are medians of turns that alternate, so that noise that comes in waves meets all.
"""

from __future__ import annotations

import copy
import importlib.metadata
import importlib.util
import json
import statistics
import time
import types
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.trained import BATCH, CLASSES, digits, train
from streamcl.bench.versions import versions
from streamcl.config import NOTED_RATE
from streamcl.core.fisher import Fisher
from streamcl.core.gaussian import Gaussian
from streamcl.core.likelihood import Categorical, FisherKind
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import observed

PEERS = {"backpack": "backpack-for-pytorch", "laplace": "laplace-torch", "avalanche": "avalanche-lib"}
REMEDY = "not installed: pip install 'streamcl[peers]'"
SAME = 1e-5  # of the largest entry
ROWS = 512  # in a block
KINDS: tuple[FisherKind, ...] = ("empirical", "exact")


@dataclass(frozen=True, slots=True)
class Row:
    """One Fisher beside a peer's. ratio: of seconds, theirs over ours. difference: over the largest entry. size: of the sum
    of all entries, theirs over ours."""

    peer: str
    quantity: str
    network: str
    rows: int
    ratio: float | None = None
    seconds: float | None = None
    peer_seconds: float | None = None
    difference: float | None = None
    size: float | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """The verdict in words."""
        if self.ratio is None or self.difference is None:
            return self.note
        if self.difference > SAME:
            return f"another quantity: {self.size:.3f} of it in all"
        return "equal and faster" if self.ratio > 1 else "equal and slower"


@dataclass(frozen=True, slots=True)
class Step:
    """A training step with a penalty over one without, and what the penalty holds."""

    method: str
    tasks: int
    ratio: float | None
    bytes: int | None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Network:
    """A trained network of plain layers, which is all that some peers accept, and the rows that it was trained on."""

    name: str
    module: nn.Sequential
    parameters: FlatParameters
    x: Tensor
    y: Tensor

    def chunks(self, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The data, in blocks."""
        return zip(torch.split(self.x, rows), torch.split(self.y, rows), strict=True)

    def first(self, rows: int) -> Network:
        """This network with fewer rows."""
        return Network(self.name, self.module, self.parameters, self.x[:rows], self.y[:rows])

    def fisher(self, kind: FisherKind) -> Tensor:
        """Ours, summed over the rows."""
        found = Fisher(self.module, self.parameters, Categorical(CLASSES), kind)
        for x, y in self.chunks(ROWS):
            found.add(x, y)
        return found.total


def networks(rows: int, epochs: int, hidden: int) -> list[Network]:
    """A multilayer perceptron and a convolutional network."""
    torch.manual_seed(0)
    made = [
        (f"MLP 784-{hidden}-{hidden}-10", models.mlp((784,), CLASSES, hidden=[hidden, hidden]), (784,)),
        ("convolutional", models.convnet((1, 28, 28), CLASSES, channels=(8, 16), hidden=64), (1, 28, 28)),
    ]
    found = []
    for name, module, shape in made:
        assert isinstance(module, nn.Sequential)
        layers = nn.Sequential(*list(module)[1:])  # without the cast of integers
        parameters, (x, y) = FlatParameters(layers), digits(shape)
        train(layers, parameters, x, y, epochs)
        found.append(Network(name, layers, parameters, x[:rows], y[:rows]))
    return found


def medians(actions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Median seconds of each, called in turn, after one call each that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for number in range(rounds + 1):
        for name, action in actions.items():
            started = time.perf_counter()
            action()
            if number:
                taken[name].append(time.perf_counter() - started)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}


# -- the peers' Fishers ------------------------------------------------------------------------------------------------


def backpack(network: Network, kind: FisherKind) -> Callable[[], Tensor]:
    """BackPACK's SumGradSquared and DiagGGNExact of the summed loss."""
    from backpack import backpack, extend
    from backpack.extensions import DiagGGNExact, SumGradSquared

    module, loss = extend(copy.deepcopy(network.module)), extend(nn.CrossEntropyLoss(reduction="sum"))
    extension, name = (SumGradSquared, "sum_grad_squared") if kind == "empirical" else (DiagGGNExact, "diag_ggn_exact")

    def run() -> Tensor:
        total = torch.zeros(network.parameters.size, dtype=torch.float64)
        for x, y in network.chunks(ROWS):
            module.zero_grad()
            with backpack(extension()):
                loss(module(x), y).backward()
            total += torch.cat([getattr(p, name).reshape(-1) for p in module.parameters()])
        return total

    return run


def laplace(network: Network, backend: str | None) -> Callable[[], Tensor]:
    """laplace-torch's DiagLaplace, by its default backend or another."""
    from laplace import DiagLaplace
    from torch.utils.data import DataLoader, TensorDataset

    module = copy.deepcopy(network.module)
    loader = DataLoader(TensorDataset(network.x, network.y), batch_size=ROWS)
    more = {} if backend is None else {"backend": getattr(importlib.import_module("laplace.curvature"), backend)}

    def run() -> Tensor:
        found = DiagLaplace(module, "classification", **more)
        found.fit(loader)
        curvature: Tensor = found.H
        return curvature.detach()

    return run


def avalanche(network: Network) -> Callable[[], Tensor]:
    """Avalanche's importances, which are means over batches: times the rows, as all the others are sums over samples."""
    plugin = _avalanche_plugin("separate")
    module = copy.deepcopy(network.module)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    data = [(x, int(y), 0) for x, y in zip(network.x, network.y, strict=True)]

    def run() -> Tensor:
        found = plugin.compute_importances(module, nn.CrossEntropyLoss(), optimizer, data, "cpu", BATCH)
        return len(data) * torch.cat([each.data.reshape(-1) for each in found.values()]).double()

    return run


def _avalanche_plugin(mode: str) -> Any:
    from avalanche.training.plugins.ewc import EWCPlugin

    return EWCPlugin(1e-3, mode, decay_factor=1.0 if mode == "online" else None)


def rows(networks: list[Network], few: int, rounds: int) -> Iterator[Row]:
    """Every Fisher beside every peer that has it."""
    for network in networks:
        small = network.first(few)
        for kind in KINDS:
            yield _beside("backpack", "BackPACK", network, kind, partial(backpack, network, kind), rounds)
        fast, default = partial(laplace, network, "BackPackGGN"), partial(laplace, small, None)
        yield _beside("laplace", "laplace-torch, BackPackGGN", network, "exact", fast, rounds)
        yield _beside("laplace", "laplace-torch, its default", small, "exact", default, 1)
        yield _beside("avalanche", "Avalanche EWC", network, "empirical", partial(avalanche, network), rounds)


def _beside(
    package: str, peer: str, network: Network, kind: FisherKind, theirs: Callable[[], Callable[[], Tensor]], rounds: int
) -> Row:
    about = (peer, f"{kind} Fisher", network.name, len(network.x))
    if not installed(package):
        return Row(*about, note=REMEDY)
    try:
        run = theirs()
        expected, actual = network.fisher(kind), run().double()
    except Exception as error:  # whatever a peer raises here must not end the others
        return Row(*about, note=f"{type(error).__name__}: {error}".splitlines()[0])
    difference = float((actual - expected).abs().max() / expected.abs().max())
    seconds = medians({"ours": lambda: network.fisher(kind), "theirs": run}, rounds)
    ours, peers = seconds["ours"], seconds["theirs"]
    return Row(*about, peers / ours, ours, peers, difference, float(actual.sum() / expected.sum()))


# -- the penalty -------------------------------------------------------------------------------------------------------


def steps(network: Network, tasks: list[int], rounds: int) -> Iterator[Step]:
    """A training step with each penalty after so many tasks, over the same step without: Avalanche's over its own."""
    for count in tasks:
        actions: dict[str, Callable[[], None]] = {"streamcl": _streamcl(network), "plain": _plain(network)}
        held: dict[str, int] = {"streamcl": 3 * 4 * network.parameters.size}  # precision, shift, negated shift
        notes: dict[str, str] = {}
        for mode in ("online", "separate"):
            name = f"Avalanche EWC, {mode}"
            try:
                actions[name], held[name] = _avalanche_step(network, mode, count)
                actions["plain Avalanche"], _ = _avalanche_step(network, "separate", 0)
            except Exception as error:
                missing = f"{type(error).__name__}: {error}".splitlines()[0]
                notes[name] = missing if installed("avalanche") else REMEDY
        seconds = medians(actions, rounds)
        for name in held:
            plain = seconds["plain" if name == "streamcl" else "plain Avalanche"]
            yield Step(name, count, seconds[name] / plain, held[name])
        for name, note in notes.items():
            yield Step(name, count, None, None, note)


def _plain(network: Network) -> Callable[[], None]:
    return _training(network, network.parameters.grad.zero_)


def _streamcl(network: Network) -> Callable[[], None]:
    theta, grad = network.parameters.theta.detach(), network.parameters.grad
    gaussian = Gaussian(observed(torch.rand_like(theta)), torch.rand_like(theta)).scaled(1e-3)
    return _training(network, lambda: gaussian.gradient(theta, out=grad))


def _training(network: Network, start: Callable[[], Any]) -> Callable[[], None]:
    optimizer = _optimizer([network.parameters.theta])
    x, y = network.x[:BATCH], network.y[:BATCH]

    def step() -> None:
        start()
        torch.autograd.backward(nn.functional.cross_entropy(network.module(x), y))
        optimizer.step()

    return step


def _avalanche_step(network: Network, mode: str, tasks: int) -> tuple[Callable[[], None], int]:
    """Its penalty after so many tasks, in a plain step on ordinary parameters; and the bytes that its plugin holds."""
    from avalanche.training.utils import ParamData

    plugin, module = _avalanche_plugin(mode), copy.deepcopy(network.module)
    for task in range(tasks) if mode == "separate" else [tasks - 1]:
        for kept in (plugin.saved_params, plugin.importances):
            kept[task] = {name: ParamData(name, init_tensor=torch.rand_like(p)) for name, p in module.named_parameters()}
    held = [v.data for kept in (plugin.saved_params, plugin.importances) for task in kept.values() for v in task.values()]
    strategy = types.SimpleNamespace(clock=types.SimpleNamespace(train_exp_counter=tasks), model=module, device="cpu")
    optimizer, (x, y) = _optimizer(list(module.parameters())), (network.x[:BATCH], network.y[:BATCH])

    def step() -> None:
        optimizer.zero_grad()
        strategy.loss = nn.functional.cross_entropy(module(x), y)
        plugin.before_backward(strategy)
        strategy.loss.backward()
        optimizer.step()

    return step, sum(each.numel() * each.element_size() for each in held)


def _optimizer(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=NOTED_RATE, fused=True)


# -- what is installed -------------------------------------------------------------------------------------------------


def installed(package: str) -> bool:
    """Whether a peer is there."""
    return importlib.util.find_spec(package) is not None


_declared: list[Any] = []


def declare_detection_operators() -> bool:
    """Let torchvision be imported where its compiled operators do not fit this PyTorch, as a peer imports it on the way.

    Declares the two that its import asks for; neither does anything, and nothing here calls them. Returns whether it did.
    """
    if not installed("torchvision"):
        return False
    if not _declared and not hasattr(torch.ops.torchvision, "nms") and not _torchvision_loads():
        _declared.append(torch.library.Library("torchvision", "DEF"))  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            _declared[0].define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return bool(_declared)


def _torchvision_loads() -> bool:
    found = importlib.util.find_spec("torchvision")
    library = Path(found.origin or "").parent / "_C.so" if found else Path()
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
    except OSError:
        return False
    return True


def _peer_versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for package, name in PEERS.items() if installed(package)}


# -- report ------------------------------------------------------------------------------------------------------------


def run(out: Path | None, samples: int = 1024, rounds: int = 5, epochs: int = 40, hidden: int = 400) -> int:
    """Every comparison, printed and written."""
    with as_in_the_trainer(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Full backward hook is firing|no QP solver")
        return _run(out, samples, rounds, epochs, hidden)


def _run(out: Path | None, samples: int, rounds: int, epochs: int, hidden: int) -> int:
    declared = declare_detection_operators()
    found, fishers, penalties = networks(samples, epochs, hidden), [], []
    print(f"{'Fisher':<18}{'network':<20}{'peer':<28}{'rows':>6}{'theirs/ours':>13}{'difference':>12}")
    for row in rows(found, max(1, samples // 32), rounds):
        fishers.append(row)
        numbers = f"{'':>25}" if row.ratio is None else f"{row.ratio:13.2f}{row.difference:12.1e}"
        print(f"{row.quantity:<18}{row.network:<20}{row.peer:<28}{row.rows:>6}{numbers}  {row.verdict}", flush=True)
    print(f"\n{'a training step with the penalty, over one without':<52}{'tasks':>6}{'ratio':>8}{'MB held':>9}")
    for step in steps(found[0], [1, 10, 50], 10 * rounds):
        penalties.append(step)
        numbers = "" if step.ratio is None or step.bytes is None else f"{step.ratio:8.2f}{step.bytes / 1e6:9.1f}"
        print(f"{step.method:<52}{step.tasks:>6}{numbers}  {step.note}", flush=True)
    if out is not None:
        document = {
            "benchmark": "peers",
            "threads": torch.get_num_threads(),
            "rounds": rounds,
            "versions": versions() | _peer_versions(),
            "torchvision's missing operators declared": declared,
            "fisher": [{**asdict(row), "verdict": row.verdict} for row in fishers],
            "penalty": [asdict(step) for step in penalties],
        }
        out.write_text(json.dumps(document, indent=2) + "\n")
    return 0
