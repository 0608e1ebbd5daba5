"""The comparisons, part by part; each gives its rows, and says of what does not fit why."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor

from streamcl.bench.device.clock import Timed
from streamcl.bench.device.record import Record, Row, Skipped
from streamcl.bench.device.setting import CLASSES, Plain, Setting
from streamcl.core import heads
from streamcl.core.consolidation import assumed_density_filtering, task_precision
from streamcl.core.fisher import Fisher
from streamcl.core.gaussian import Gaussian
from streamcl.core.likelihood import FisherKind
from streamcl.core.measures import Measure, SquaresIn
from streamcl.core.measures import Moments as Sides
from streamcl.core.moments import Moments, Summing
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Layered, observed
from streamcl.learning.curvature import rows_at_once
from streamcl.learning.data import Conversion
from streamcl.learning.predictive import predict, uncertain

STEPS = 5  # timed together, so that a look at the clock costs nothing
PLAIN = 16  # bytes a parameter: theta, its gradient and Adam's two averages, in float32
DIAGONAL = PLAIN + 12  # and precision, shift and what a step adds of it
TURNED = DIAGONAL + 28  # and values, their gradient, the penalty turned and unturned, and a vector on its way between
EPOCH_ROWS = 256
FEW = 32  # rows whose uncertainty is asked for at a time
FEATURES, SUMMED = 1000, 8192  # of an exact head


def _row(
    setting: Setting, name: str, against: str, goal: float | None, timed: Timed, rows: int, precision: str = "float32"
) -> Row:
    size = setting.size
    return Row(
        f"{name}{f', {rows} rows' if rows else ''}, {size.name} parameters",
        against,
        timed.mine / timed.yardstick,
        goal,
        timed.mine,
        timed.yardstick,
        size.parameters,
        rows,
        precision,
        timed.rounds,
        timed.peak,
    )


# -- steps -------------------------------------------------------------------------------------------------------------


def steps(setting: Setting) -> Iterator[Record]:
    """A step with a diagonal penalty beside the step without."""
    yield from _diagonal(setting, autocast=False)


def autocast(setting: Setting) -> Iterator[Record]:
    """The same with its forward pass in bfloat16."""
    yield from _diagonal(setting, autocast=True)


def _diagonal(setting: Setting, autocast: bool) -> Iterator[Record]:
    precision = "bfloat16 autocast" if autocast else "float32"
    name = f"a step with a diagonal penalty{', bfloat16' if autocast else ''}"
    lacking = setting.lacking(name, DIAGONAL)
    if lacking is not None:
        yield lacking
        return
    plain = Plain(setting, setting.module(), autocast)
    begin = plain.penalty()
    for rows in setting.size.rows:
        x, y = setting.data(rows)

        def several(begin: Callable[[], object] | None, x: Tensor = x, y: Tensor = y) -> None:
            for _ in range(STEPS):
                plain.step(x, y, begin)

        timed = setting.clock.compare(lambda: several(begin), lambda: several(None), 2)
        yield _row(setting, name, "the step without it", None if autocast else 1.02, timed, rows, precision)


def turned(setting: Setting) -> Iterator[Record]:
    """A step under a penalty in an eigenbasis whose leading eigenvectors are turned to, beside the step without."""
    name = "a step in an eigenbasis, leading eigenvectors"
    lacking = setting.lacking(name, TURNED + PLAIN)
    if lacking is not None:
        yield lacking
        return
    rows = setting.size.rows[0]
    x, y = setting.data(rows)
    in_basis, prior = setting.optimisation(rows, turned=True), Plain(setting, setting.module())
    in_basis.step(x, y)  # in which the layers that work on coordinates are found
    coordinates = in_basis.coordinates
    known = [] if coordinates is None or coordinates.turned_rows is None else [coordinates.turned_rows(x)]

    def mine() -> None:
        for _ in range(STEPS):
            in_basis.step(x, y, *known)

    def yardstick() -> None:
        for _ in range(STEPS):
            prior.step(x, y)

    yield _row(setting, name, "the step without it", 1.5, setting.clock.compare(mine, yardstick, 2), rows)


# -- a boundary --------------------------------------------------------------------------------------------------------


class _Task:
    """A task's rows, a network, an epoch of its forward and backward passes, and its Fisher."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.module = setting, setting.module()
        self.parameters = FlatParameters(self.module)
        self.x, self.y = setting.data(setting.size.task)

    def epoch(self) -> None:
        """The yardstick."""
        for start in range(0, len(self.x), EPOCH_ROWS):
            self.parameters.grad.zero_()
            output = self.module(self.x[start : start + EPOCH_ROWS])
            torch.autograd.backward(self.setting.likelihood.nll(output, self.y[start : start + EPOCH_ROWS]).mean())

    def taken(self, kind: FisherKind, measure: Measure | None = None) -> None:
        """The Fisher and the check of itself, which is part of its price. Raises RuntimeError unless all was fast."""
        setting, chunk = self.setting, rows_at_once(self.setting.device)
        generator = torch.Generator(device=setting.device).manual_seed(0)
        found = Fisher(self.module, self.parameters, setting.likelihood, kind, generator, measure=measure)
        for start in range(0, len(self.x), chunk):
            found.add(self.x[start : start + chunk], self.y[start : start + chunk])
        if not found.verified() or found.slow is not None:
            raise RuntimeError(f"the Fisher was not taken by its fast way: {found.slow or 'some rows differ'}")

    def row(self, name: str, goal: float | None, kind: FisherKind, measure: Measure | None = None) -> Row:
        """One comparison."""
        timed = self.setting.clock.compare(lambda: self.taken(kind, measure), self.epoch)
        return _row(self.setting, name, "a forward and backward epoch", goal, timed, len(self.x))


def fisher(setting: Setting) -> Iterator[Record]:
    """The diagonal Fisher of a task against an epoch of forward and backward passes: exact, and of drawn labels."""
    name = "the exact Fisher"
    lacking = setting.lacking(name, 32)
    if lacking is not None:
        yield lacking
        return
    task = _Task(setting)
    yield task.row(name, 1.5, "exact")
    yield task.row("the Fisher of one drawn label", None, "mc")


def moments(setting: Setting) -> Iterator[Record]:
    """The Fisher in an eigenbasis, and the moments that such a basis is made of, against the same."""
    name = "the exact Fisher in an eigenbasis"
    lacking = setting.lacking(name, 44)
    if lacking is not None:
        yield lacking
        return
    task = _Task(setting)
    precision = setting.turned(task.parameters).precision
    assert isinstance(precision, Layered)
    layout, basis = task.parameters.layout, precision.basis
    yield task.row(name, None, "exact", SquaresIn(layout, basis, []))
    yield task.row("moments of an eigenbasis", None, "exact", Sides(layout, basis.matrices))


def consolidation(setting: Setting) -> Iterator[Record]:
    """Assumed density filtering with its float64 master on the device, beside a copy of what it reads."""
    if setting.device.type == "cpu":
        yield Skipped(f"consolidation on the device, {setting.size.name} parameters", "the device is the host")
        return
    for kind in ("diagonal", "eigenbasis"):
        yield from _consolidated(setting, f"consolidation on the device, {kind}", kind, setting.device)


def master(setting: Setting) -> Iterator[Record]:
    """The same on the host, where the learner keeps it."""
    for kind in ("diagonal", "eigenbasis"):
        yield from _consolidated(setting, f"consolidation on the host, {kind}", kind, torch.device("cpu"))


def _consolidated(setting: Setting, name: str, kind: str, place: torch.device) -> Iterator[Record]:
    lacking = setting.lacking(name, 72, on_host=place.type == "cpu")
    if lacking is not None:
        yield lacking
        return
    posterior = _posterior(setting, kind, place)
    theta = torch.linspace(-1, 1, posterior.size, dtype=torch.float64, device=place)
    seen = posterior.precision.weighted(2.0)

    def mine() -> None:
        assumed_density_filtering(posterior, task_precision(seen, setting.size.task, 1.0), theta)

    held = [theta, posterior.shift]
    yield _row(
        setting, name, "a copy of two vectors", None, setting.clock.compare(mine, lambda: [t.clone() for t in held]), 0
    )


def _posterior(setting: Setting, kind: str, place: torch.device) -> Gaussian:
    """In float64, as the master is."""
    parameters = FlatParameters(setting.module(), gradients=False)
    if kind == "eigenbasis":
        return setting.turned(parameters).to(place, torch.float64)
    values = torch.rand(parameters.size, dtype=torch.float64, device=place)
    return Gaussian(observed(values), torch.rand_like(values))


# -- answers -----------------------------------------------------------------------------------------------------------


def prediction(setting: Setting) -> Iterator[Record]:
    """A prediction of rows that are on the host, beside a bare forward pass on the device; and with its uncertainty."""
    lacking = setting.lacking("a prediction", 8)
    if lacking is not None:
        yield lacking
        return
    rows = setting.size.rows[0]
    network = setting.network(rows)
    x, _ = setting.data(rows)
    host = x.cpu().numpy()

    def bare() -> None:
        with torch.no_grad():
            network.module(x)

    against, compare = "a forward pass", setting.clock.compare
    yield _row(setting, "a prediction", against, None, compare(lambda: predict(network, host), bare), rows)


def uncertainty(setting: Setting) -> Iterator[Record]:
    """Predictions with what the posterior leaves open of them, a few at a time, beside the same forward pass."""
    lacking = setting.lacking("a prediction with its uncertainty", 40)
    if lacking is not None:
        yield lacking
        return
    network = setting.network(FEW)
    x, _ = setting.data(FEW)
    host, posterior = x.cpu().numpy(), setting.turned(network.parameters)

    def bare() -> None:
        with torch.no_grad():
            network.module(x)

    timed = setting.clock.compare(lambda: uncertain(network, host, posterior), bare)
    yield _row(setting, "a prediction with its uncertainty", "a forward pass", None, timed, FEW)


def head(setting: Setting) -> Iterator[Record]:
    """The sums of an exact head beside the bare product, and its solution beside one set of eigenvectors; at one size."""
    if setting.size.name not in ("1M", "tiny"):
        return
    features = FEATURES if setting.size.name == "1M" else 32
    generator = torch.Generator(device=setting.device).manual_seed(0)
    z = torch.randn((SUMMED, features), generator=generator, dtype=torch.float64, device=setting.device)
    groups = torch.arange(SUMMED, device=setting.device) % CLASSES
    none = Moments.none(CLASSES, features, setting.device)
    summed = Summing(none)
    summed.add(z, groups)
    found = summed.moments()

    def sums() -> None:
        each = Summing(none)
        for start in range(0, SUMMED, 256):
            each.add(z[start : start + 256], groups[start : start + 256])
        each.settle()

    compare = setting.clock.compare
    product, eigen = "one product of all rows", "eigenvectors alone"
    yield _row(
        setting, f"sums of an exact head, {features} features", product, None, compare(sums, lambda: z.T @ z), SUMMED
    )
    solved = compare(lambda: heads.discriminant(found), lambda: torch.linalg.eigh(found.scatter))
    yield _row(setting, f"solution of an exact head, {features} features", eigen, None, solved, SUMMED)


# -- what might pay ----------------------------------------------------------------------------------------------------


def feed(setting: Setting) -> Iterator[Record]:
    """Steps on batches that come from the host, beside the same steps on batches that are on the device."""
    lacking = setting.lacking("steps on batches from the host", DIAGONAL)
    if lacking is not None:
        yield lacking
        return
    plain, rows = Plain(setting, setting.module()), setting.size.rows[0]
    x, y = setting.data(rows)
    batches = [(x.cpu().numpy(), y.cpu().numpy()) for _ in range(STEPS)]
    conversion = Conversion(torch.float32, setting.device, lambda labels: np.asarray(labels, np.int64))

    def fed() -> None:
        for given, labels in batches:
            plain.step(conversion.x(given), conversion.y(labels))

    def held() -> None:
        for _ in batches:
            plain.step(x, y)

    timed = setting.clock.compare(fed, held, 2)
    yield _row(setting, "steps on batches from the host", "on batches that are there", None, timed, rows)


def captured(setting: Setting) -> Iterator[Record]:
    """A step with a diagonal penalty, captured as a CUDA graph, beside that step as it is."""
    name = "a step captured as a CUDA graph"
    lacking = _no_cuda(setting, name) or setting.lacking(name, DIAGONAL + 4)
    if lacking is not None:
        yield lacking
        return
    plain, rows = Plain(setting, setting.module()), setting.size.rows[0]
    begin, (x, y) = plain.penalty(), setting.data(rows)
    replay = _graph(lambda: plain.step(x, y, begin))
    timed = setting.clock.compare(_times(replay), _times(lambda: plain.step(x, y, begin)))
    yield _row(setting, name, "the same step as it is", None, timed, rows)


def compiled(setting: Setting) -> Iterator[Record]:
    """The same step with its module compiled; the first calls, which compile, do not count."""
    name = "a step with its module compiled"
    lacking = _no_cuda(setting, name) or setting.lacking(name, DIAGONAL + 4)
    if lacking is None and setting.size.name == "1G":
        lacking = Skipped(f"{name}, 1G parameters", "the products of such layers leave nothing to fuse")
    if lacking is not None:
        yield lacking
        return
    plain, rows = Plain(setting, setting.module()), setting.size.rows[0]
    begin, (x, y) = plain.penalty(), setting.data(rows)
    ours = Compiled(plain, torch.compile(plain.module), setting)
    timed = setting.clock.compare(
        _times(lambda: ours.step(x, y, begin)), _times(lambda: plain.step(x, y, begin)), prepared=2
    )
    yield _row(setting, name, "the same step as it is", None, timed, rows)


def _no_cuda(setting: Setting, name: str) -> Skipped | None:
    if setting.device.type == "cuda":
        return None
    return Skipped(f"{name}, {setting.size.name} parameters", "only on a GPU, where launching kernels may take the time")


def _times(action: Callable[[], object]) -> Callable[[], None]:
    def several() -> None:
        for _ in range(STEPS):
            action()

    return several


class Compiled:
    """A plain step whose forward and backward passes are compiled."""

    def __init__(self, plain: Plain, module: Callable[[Tensor], Tensor], setting: Setting) -> None:
        self._plain, self._module, self._likelihood = plain, module, setting.likelihood

    def step(self, x: Tensor, y: Tensor, begin: Callable[[], object]) -> None:
        """One."""
        begin()
        torch.autograd.backward(self._likelihood.nll(self._module(x), y).mean())
        self._plain.optimiser.step()


def _graph(step: Callable[[], None]) -> Callable[[], object]:
    """What repeats a step without launching its kernels one by one (PyTorch's notes on CUDA graphs)."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


PARTS: dict[str, Callable[[Setting], Iterator[Record]]] = {
    "steps": steps,
    "turned": turned,
    "fisher": fisher,
    "moments": moments,
    "autocast": autocast,
    "prediction": prediction,
    "feed": feed,
    "captured": captured,
    "consolidation": consolidation,
    "uncertainty": uncertainty,
    "compiled": compiled,
    "head": head,
    "master": master,
}
