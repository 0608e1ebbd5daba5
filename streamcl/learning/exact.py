"""An exact learner's model: sums of a Gaussian head on fixed features, beside a network's with the same calls.

    open task    its own sums, row by row as they come (`Fitting`)
    posterior    the sums of all consolidated tasks; in factor mode each task's own on disk too (`Totals`)
    head         solved for from both (`core.heads`), at positions that the rows alone decide

Nothing is trained, so nothing is forgotten: whatever the order of rows, tasks and batches, the sums come to the same. A
revisit puts new sums in the place of a task's, and a withdrawal leaves exactly what was there without it; totals are then
summed afresh from the tasks' own, never subtracted from. Guarantees as of `Learner`: a function of the calls, to the bit.

With a half-life of h rows (`posterior.half_life`) a row counts ``0.5^(age / h)``, its age in rows that have come since,
recursive least squares with a forgetting factor. Nothing fades otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.config import Config, Posterior
from streamcl.core import heads
from streamcl.core import likelihood as likelihoods
from streamcl.core.chance import Chance
from streamcl.core.heads import Fitted, Known
from streamcl.core.moments import Moments, Summing
from streamcl.core.reduce import ALONE, Reduction
from streamcl.core.stored import EXACT, KIND, named
from streamcl.entries import Consolidated
from streamcl.learning.data import Array, Block, Rows, Store, TaskData
from streamcl.learning.features import NOISE, FeatureNetwork, grown
from streamcl.learning.features_trial import FeatureTrial
from streamcl.learning.fitting import Event, Progress
from streamcl.learning.growing import Widths
from streamcl.learning.open_task import OpenTask
from streamcl.learning.outcomes import Learned
from streamcl.learning.posterior import FactorSource
from streamcl.learning.targets import Targets
from streamcl.learning.watch import Watch
from streamcl.schema import LabelMap, Signature
from streamcl.snapshot import NEWEST, POSTERIOR, Vintage, under

OPEN, SUMS = "open.", "sums."  # before the names of arrays in a snapshot: of the open task, of its settled sums
WARM_ROWS = 256  # on which the input's scale is found; fewer where the first task has fewer
SOLVED_EVERY = 8  # times d rows: what a solution costs, about, beside the sums of so many
SMALL, MOST_AT_ONCE = 300, 4  # features and targets up to which every solution is a whole one
LOSS_ROWS = 8192  # of a task, at most, whose mean loss is shown

T = TypeVar("T")


def _known(settings: Config) -> Known:
    model, precision = settings.model, settings.posterior.prior_precision
    noise = None if model.noise_variance == "auto" else model.noise_variance
    return Known(None if precision == "auto" else precision, noise if model.likelihood == "gaussian" else None)


def fitted(settings: Config, moments: Moments, targets: int) -> Fitted:
    """The head that sums determine. targets: numbers behind a row's features, of real or binary targets."""
    known = _known(settings)
    match settings.model.family:
        case "gaussian":
            return heads.regression(moments, targets, known)
        case "bernoulli":
            return heads.binary(moments, targets, known)
    return heads.discriminant(moments, known)


def fitted_at(settings: Config, moments: Moments, targets: int, last: Fitted | None) -> heads.Head:
    """As `fitted`, for rows to be scored with: of many features with the rho of the `last` solution, which costs less."""
    d, likelihood = moments.width - targets, settings.model.family
    if d <= SMALL or targets > MOST_AT_ONCE or likelihood == "bernoulli":
        return fitted(settings, moments, targets).head
    rho, known = None if last is None else last.head.rho, _known(settings)
    if likelihood == "gaussian":
        return heads.regression_at(moments, targets, rho, known)
    return heads.discriminant_at(moments, rho, known)


def own_loss(settings: Config, moments: Moments, found: Fitted) -> float:
    """Of a task's rows, a row on average, from its sums: the loss itself of real targets, in nats; of others half the
    squared error of the least squares behind their logits."""
    if settings.model.family == "gaussian":
        return heads.mean_nll(moments, found.head)
    if settings.model.family == "bernoulli":
        return heads.squared_error(moments, heads.behind(found)) / 2
    return heads.scores_nll(moments, found)


def of_guessing(moments: Moments, targets: int) -> float:
    """What `own_loss` is where every row has the same scores, the shares of its classes, of zeros and ones; where all are
    of one class, those of all classes alike. targets: as of `fitted`."""
    if targets:
        return float(moments.about_the_mean().diagonal()[-targets:].sum() / (2 * moments.total))
    share, k = moments.counts / moments.total, len(moments.counts)
    return float(1 - share.square().sum()) / 2 or (1 - 1 / k) / 2


# -- the posterior -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Totals:
    """What `Posterior` is, of sums. total: of every consolidated task, as it counts once `total.rows` rows have come."""

    config: Config
    source: FactorSource | None
    total: Moments
    targets: int
    tasks: dict[str, Consolidated] = field(default_factory=dict)
    _fitted: tuple[Moments, Fitted] | None = None

    @property
    def settings(self) -> Posterior:
        """The section of the configuration."""
        return self.config.posterior

    def fitted(self) -> Fitted | None:
        """The head of the total; None where there are no rows. Solved for once a total."""
        if self.total.total <= 0:
            return None
        if self._fitted is None or self._fitted[0] is not self.total:
            self._fitted = self.total, fitted(self.config, self.total, self.targets)
        return self._fitted[1]

    @property
    def keeps_factors(self) -> bool:
        """Whether each task's sums are kept."""
        return self.settings.mode == "factors"

    def share_of(self, revisited: str | None) -> float:
        """All of a task is taken out to be fed again."""
        return 1.0

    def cavity(self, revisited: str | None) -> Moments:
        """The sums beside which a task is learned: all, or all others."""
        return self.total if revisited is None else self._without(revisited)

    def absorb(self, cavity: Moments, own: Moments, revisited: str | None, damping: float) -> Moments | None:
        """Take a task in; returns its factor where factors are kept. Arguments as of `Posterior.absorb`."""
        self.total = self._faded(cavity, own.rows).plus(own)
        if not self.keeps_factors:
            return None
        if revisited is not None and damping < 1:
            old = self._as_now(self._factor(revisited))
            own = own if old is None else old.weighted(1 - damping).plus(own.weighted(damping))
            self.total = self._at(cavity.plus(own), self.total.rows)
        return self._at(own, self.total.rows)

    def extend(self, task: str, own: Moments) -> Moments | None:
        """More rows of a consolidated task; returns its factor with them, where factors are kept."""
        self.total = self._faded(self.total, own.rows).plus(own)
        old = self._as_now(self._factor(task)) if self.keeps_factors else None
        both = own if old is None else old.plus(own)
        return self._at(both, self.total.rows) if self.keeps_factors else None

    def forget(self, task: str) -> None:
        """The sums of all others, summed afresh."""
        self.total = self._without(task)

    def _without(self, task: str) -> Moments:
        """Of all tasks but one, as they count now."""
        none = Moments.none(len(self.total.counts), self.total.width, self.total.scatter.device)
        others = (self._as_now(self._factor(other)) for other in self.tasks if other != task)
        return self._at(none.product(each for each in others if each is not None), self.total.rows)

    def factors(self, verify: Callable[[str], bool]) -> Iterator[tuple[str, Moments]]:
        """Each task's sums, as they count now. verify: whether its file's digest is to be compared."""
        for task in list(self.tasks):
            if task in self.tasks and (found := self._as_now(self._factor(task, verify(task)))) is not None:
                yield task, found

    def _as_now(self, factor: Moments | None) -> Moments | None:
        return None if factor is None else self._faded(factor, self.total.rows - factor.rows)

    def _faded(self, moments: Moments, rows: float) -> Moments:
        return moments.faded(rows, self.settings.half_life)

    @staticmethod
    def _at(moments: Moments, rows: float) -> Moments:
        """As of so many rows."""
        return Moments(moments.counts, moments.means, moments.scatter, rows)

    def _factor(self, task: str, verify: bool = True) -> Moments | None:
        number = self.tasks[task].factor
        if number is None:
            return None
        if self.source is None:
            raise RuntimeError("factors are kept in factor mode only")
        return Moments.from_state(self.source.read(number, task, verify)).to(self.total.scatter.device)


@dataclass(frozen=True, slots=True)
class Factor:
    """A task's sums, to be kept as a file."""

    moments: Moments

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """As host arrays by name, their kind among them."""
        return {KIND: named(EXACT), **self.moments.state()}


# -- the open task -----------------------------------------------------------------------------------------------------


class Fitting:
    """The open task's own sums, and the head that is solved for from them and those of all others.

    steps: batches taken in and changes of what is known, in all. cavity: the sums beside the open task's. What holds it
    together: rows enter sums, and when the head is solved for follows from how many have; a snapshot has both.
    """

    def __init__(self, settings: Config, network: FeatureNetwork, steps: int) -> None:
        self.config, self.network, self.steps = settings, network, steps
        self.warning: str | None = None
        self.cavity: Moments | None = None
        self._own: Summing | None = None
        self._first: list[tuple[Tensor, Tensor]] = []  # rows that wait for the input's scale
        self._next = 1.0  # rows of the task at the next solution
        self._whole: tuple[float, Fitted | None] | None = None  # rows at which that was solved for, whole
        self.last: Callable[[], Fitted | None] = lambda: None  # the head of what is consolidated

    @property
    def width(self) -> int:
        """Of a row in the sums: features, and targets that are numbers."""
        return self.network.width + self.targets

    @property
    def targets(self) -> int:
        """Numbers behind a row's features: none of classes, which are groups."""
        labelled = self.network.conversion.to_outputs is not None
        return 0 if labelled else math.prod(self.network.signature.y_shape)

    def begin(self, penalty: Moments, calmer: float = 1.0, share: float = 1.0) -> None:
        """A task opens, beside these sums."""
        self.cavity, self.warning, self._first = penalty, None, []
        self._own = Summing(self.none(), self.config.posterior.half_life)
        self._whole, self._next = None, 1.0

    def end(self) -> None:
        """No task is open any more."""
        self._own, self.cavity, self._first = None, None, []

    def set_penalty(self, penalty: Moments) -> None:
        """Other sums beside the open task's."""
        self.cavity, self._whole = penalty, None
        self.solve()

    def learn_under(self, penalty: Moments, share: float) -> None:
        """The open task is another's revisit from here on."""
        self.set_penalty(penalty)

    def none(self) -> Moments:
        """Sums of no rows."""
        return Moments.none(self._groups, self.width, self.network.device)

    @property
    def _groups(self) -> int:
        return self.network.outputs if self.targets == 0 else 1

    @property
    def own(self) -> Summing:
        """The open task's sums."""
        if self._own is None:
            raise RuntimeError("rows came with no task open")
        return self._own

    @property
    def rows(self) -> float:
        """Of the open task, taken in or waiting for the input's scale."""
        return self.own.rows + sum(len(x) for x, _ in self._first)

    # -- rows ----------------------------------------------------------------------------------------------------

    def add(self, x: Tensor, y: Tensor, phi: Tensor | None) -> None:
        """More rows; phi: their features, where they are known and the scale of the input is settled."""
        if not self.network.scales:
            self._add(self.network.shared_phi(x) if phi is None else phi, y)
            return
        self._first.append((x, y))
        if self.rows >= WARM_ROWS:
            self.settle_scale()

    def settle_scale(self) -> None:
        """The scale of the input is what the rows so far say, from here on, and these rows enter the sums."""
        if self.network.scales and self._first:
            self._scale()
            self.network.scaled()
            x, y = self._all_first()
            self._first = []
            self._add(self.network.shared_phi(x), y)

    def take_again(self, blocks: Iterable[Block]) -> None:
        """The open task's rows, all of them, since what they mean has settled."""
        self.forget_rows()
        for x, y in blocks:
            self.network.grow()
            self.add(self.network.conversion.x(x), self.network.conversion.y(y), None)
        self.solve()

    def _scale(self) -> None:
        self.network.scale_by(self._all_first()[0])

    def _all_first(self) -> tuple[Tensor, Tensor]:
        """Together, as a snapshot has them: products of other numbers of rows may round otherwise."""
        x, y = zip(*self._first, strict=True)
        return torch.cat(x), torch.cat(y)

    def _add(self, phi: Tensor, y: Tensor) -> None:
        z, groups = self._row(phi, y)
        self.own.add(z, groups)

    def _row(self, phi: Tensor, y: Tensor) -> tuple[Tensor, Tensor | None]:
        return (phi, y) if self.targets == 0 else (torch.cat([phi, y.reshape(len(y), -1).double()], 1), None)

    # -- the head ------------------------------------------------------------------------------------------------

    @property
    def due(self) -> bool:
        """Whether the head is to be solved for again, for rows to be scored with: after a quarter more of the task's rows,
        but after `SOLVED_EVERY` d rows at the latest."""
        return self.rows >= self._next

    def solve_if_due(self) -> None:
        """As the rows decide."""
        if self.due:
            self.solve()
            self._next = self.rows + min(max(1.0, self.rows // 4), float(SOLVED_EVERY * self.network.width))

    def solve(self) -> None:
        """Predict with what the sums say now; rows that waited are taken in, so that their products are made once."""
        if self._first:
            self._scale()
        every = self._beside(self._first_too(self.own.settle()))
        if every.total > 0:
            self.network.put(fitted_at(self.config, every, self.targets, self.last()))

    def put(self, found: Fitted | None) -> None:
        """Predict with this, with no task open; None: with nothing."""
        self.network.put(self._nothing() if found is None else found.head)
        self.network.grow()

    def _nothing(self) -> heads.Head:
        network = self.network
        weight = torch.zeros((network.outputs, network.width), dtype=torch.float64, device=network.device)
        return heads.Head(weight, weight.new_zeros(network.outputs), weight.new_ones(network.outputs), weight.new_ones(1))

    def whole(self) -> Fitted | None:
        """The whole solution of what the sums say now; solved for once, for the same rows. None where there are none."""
        if self._own is None:
            return None
        if self._whole is None or self._whole[0] != self.rows:
            every = self.everything()
            found = None if every.total <= 0 else fitted(self.config, every, self.targets)
            self._whole = self.rows, found
        return self._whole[1]

    def everything(self) -> Moments:
        """The sums of all tasks and of the open one so far."""
        assert self.cavity is not None
        return self._beside(self._first_too(self.own.moments()))

    def _beside(self, own: Moments) -> Moments:
        assert self.cavity is not None
        return self.cavity.faded(own.rows, self.config.posterior.half_life).plus(own).grown(self._groups)

    def _first_too(self, own: Moments) -> Moments:
        """With the rows that wait, under the scale as it is now."""
        if not self._first:
            return own
        x, y = self._all_first()
        summing = Summing(own, self.config.posterior.half_life)
        summing.add(*self._row(self.network.phi(x), y))
        return summing.moments()

    def fresh(self) -> dict[str, npt.NDArray[Any]]:
        """The arrays of the head that the sums give now, where that is not the one that rows are scored with."""
        found = self.whole()
        if found is None:
            return {}
        theta = torch.cat([found.head.weight.reshape(-1), found.head.bias])
        return {"theta": theta.cpu().numpy(), NOISE: found.head.noise.cpu().numpy()}

    # -- kept ----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """The open task's arrays, for a snapshot."""
        if self._own is None:
            return {}
        sums = {f"{OPEN}{SUMS}{name}": array.copy() for name, array in self._own.settled.state().items()}
        place = np.array([self._next])
        found = {**sums, f"{OPEN}waiting": self._own.waiting.cpu().numpy().copy(), f"{OPEN}place": place}
        if self._first:
            x, y = (each.cpu().numpy() for each in self._all_first())
            found |= {f"{OPEN}first.x": x, f"{OPEN}first.y": y}
        return found

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state` gave."""
        kept = under(OPEN, arrays)
        if not kept:
            return
        device = self.network.device
        sums, waiting = Moments.from_state(under(SUMS, kept)).to(device), torch.tensor(kept["waiting"])
        self._own, self._whole = Summing(sums, self.config.posterior.half_life, waiting), None
        self._next = float(kept["place"][0])
        if "first.x" in kept:
            x, y = (torch.tensor(kept[f"first.{name}"]).to(device) for name in "xy")
            self._first = [(x, y)]

    def forget_rows(self) -> None:
        """The open task's sums begin again."""
        self._own, self._first, self._whole = Summing(self.none(), self.config.posterior.half_life), [], None


# -- a batch, and a boundary -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Model:
    """A frozen map with its head, the sums of all tasks, and those of the open one; made by `Recipe` for one signature."""

    signature: Signature
    network: FeatureNetwork
    fitting: Fitting
    posterior: Totals

    def settle(self, x: Array) -> None:
        """Nothing is to be found out but the input's scale, which takes more rows."""

    def return_to_anchor(self, before: Mapping[str, npt.NDArray[Any]]) -> None:
        """The head of what is consolidated."""
        if before:
            self.network.load(before)
        else:
            self.fitting.put(self.posterior.fitted())

    def copied(self) -> dict[str, npt.NDArray[Any]]:
        """The network's arrays as they are now."""
        return {name: array.copy() for name, array in self.network.state().items()}

    def served(self, before: Mapping[str, npt.NDArray[Any]]) -> Mapping[str, npt.NDArray[Any]]:
        """What predictions are made with: what all rows so far say or, during a revisit, those from before it."""
        if not before:
            return {**self.network.state(), **self.fitting.fresh()}
        return {**before, **_as_many(before, self.network)}

    def forget(self, task: str) -> None:
        """As if the task had never been; the head too."""
        self.posterior.forget(task)
        self.fitting.steps += 1
        if self.fitting.cavity is None:
            self.fitting.put(self.posterior.fitted())

    def follow(self, followed: Mapping[str, int]) -> Iterator[tuple[str, float, float]]:
        """As `Posterior.follow`: what every task has lost, from its sums: exactly, for real targets; for classes, of the
        least squares behind their logits."""
        posterior, settings = self.posterior, self.fitting.config
        found = posterior.fitted() if posterior.keeps_factors else None
        if found is None:
            return
        for task, moments in posterior.factors(lambda name: name not in followed):
            entry = posterior.tasks.get(task)
            if entry is not None:
                rise = own_loss(settings, moments, found) - (entry.potential or 0.0)
                yield task, rise * (entry.weight or entry.samples), rise

    def moved(self, task: OpenTask | None) -> float:
        """What the open task would cost the tasks before it, were it to end now, from their sums: in nats, as its boundary
        will say it. Of a revisit nothing: it is not served yet."""
        others = self.fitting.cavity
        if task is None or task.revisited is not None or others is None:
            return 0.0
        return self.cost(others, self.posterior.fitted(), self.fitting.whole())

    def cost(self, others: Moments, before: Fitted | None, found: Fitted | None) -> float:
        """What a new head costs other tasks beside the old one, from their sums, in nats."""
        if before is None or found is None or others.total <= 0:
            return 0.0
        settings = self.fitting.config
        return (own_loss(settings, others, found) - own_loss(settings, others, before)) * others.total

    def past(self, before: Mapping[str, npt.NDArray[Any]] | None = None) -> float:
        """Where an open task begins to count: at nothing, since `moved` compares heads by itself."""
        return 0.0

    def described(self) -> dict[str, Any]:
        """How the posterior is kept, for `status`."""
        return {"setting": EXACT, "settled": True, "features": self.network.width}

    def posterior_state(self) -> dict[str, npt.NDArray[Any]]:
        """For the predictor, operators and exports."""
        numbers = {"targets": self.fitting.targets, "half_life": self.posterior.settings.half_life}
        found = {KIND: named(EXACT), **{name: np.array([float(value)]) for name, value in numbers.items()}}
        found |= self.posterior.total.state()
        if (fit := self.posterior.fitted()) is not None:
            precision, shift = heads.natural(fit, self.network.outputs)
            found |= {"precision": precision.cpu().numpy(), "shift": shift.cpu().numpy()}
        else:
            found |= {name: np.zeros(self.network.parameters.size) for name in ("precision", "shift")}
        return found

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """For a snapshot: the arrays of network, posterior and open task."""
        posterior = {f"{POSTERIOR}{name}": array for name, array in self.posterior_state().items()}
        return {**self.network.state(), **posterior, **self.fitting.state()}

    def load(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over network and posterior, as `state` gave them."""
        self.network.load(arrays)
        self.posterior.total = Moments.from_state(under(POSTERIOR, arrays)).to(self.network.device)


def _as_many(before: Mapping[str, npt.NDArray[Any]], network: FeatureNetwork) -> dict[str, npt.NDArray[Any]]:
    """A head from before with an output for every label that has come since."""
    width = network.width
    outputs = before["theta"].size // (width + 1)
    theta = torch.tensor(before["theta"])
    noise = torch.tensor(before[NOISE])
    head = heads.Head(theta[: outputs * width].view(outputs, width), theta[outputs * width :], noise, noise)
    more = network.outputs - outputs
    if more <= 0:
        return {}
    head = grown(head, more)
    return {"theta": torch.cat([head.weight.reshape(-1), head.bias]).numpy(), NOISE: head.noise.numpy()}


class Incoming:
    """A batch of the open task: scored, then taken in. failed: how often its position has failed at each stage."""

    def __init__(self, model: Model, task: OpenTask, lsn: int, rows: Rows, failed: Mapping[str, int]) -> None:
        model.network.grow()
        self.model, self.task, self.lsn, self.failed = model, task, lsn, failed
        self.x, self.y = model.network.conversion.x(rows.x), model.network.conversion.y(rows.y)

    def joins(self) -> bool:
        """Whether it joins the rows of its task, as it then does; one that has failed is a suspect until the boundary."""
        if self.failed.get("batch", 0) or self.failed.get("batch-diverged", 0):
            self.task.suspects.append((self.lsn, len(self.x)))
            return False
        self.task.add(self.lsn, len(self.x))
        return True

    def learn(self, watch: Watch) -> Generator[None, None, float | None]:
        """Score the rows and add them to the sums; returns their mean NLL. Raises ValueError for what is not finite."""
        fitting, network = self.model.fitting, self.model.network
        _check_summable(self.x, self.y)
        phi = network.shared_phi(self.x)
        nll, output = self._scored(phi)
        loss = watch.score(nll, output, self.y, anew=self.task.revisited is None)
        fitting.add(self.x, self.y, phi)
        fitting.solve_if_due()
        fitting.steps += 1
        yield None
        return loss

    def _scored(self, phi: Tensor) -> tuple[Tensor, Tensor]:
        """The NLL [n] and the outputs that rows have before they are learned."""
        fitting, network = self.model.fitting, self.model.network
        known = fitting.rows + (0.0 if fitting.cavity is None else fitting.cavity.total)
        if network.likelihood.exact and known == 0:  # the very first: no unit is known
            expected = Targets(fitting.targets).before(self.y)
            return likelihoods.Gaussian(1.0).nll(expected, self.y), expected
        output = network.shaped(network.of_features(phi))
        nll = network.likelihood.nll(output, self.y)
        if fitting.targets == 0:  # a label that has never come counts as one row beside all that have
            nll = torch.where(network.noise[self.y] == 0, math.log(known + network.outputs), nll)
        return nll, output


def _check_summable(x: Tensor, y: Tensor) -> None:
    """Raise ValueError for rows whose squares may add up to no finite number: no sum that they enter would be one."""
    for name, values in (("features", x), ("targets", y)):
        if not values.is_floating_point() or not values.numel():
            continue
        largest = float(torch.stack(torch.aminmax(values)).abs().max())  # one look at each, and no copy
        if not math.isfinite(largest * largest * values.numel()):
            raise ValueError(f"their {name} are so large that the squares of these are not finite numbers; scale them")


class Boundary:
    """A task at its boundary, at position lsn: its sums are complete, or made so, and enter the posterior.

    failed: how often that has failed at each stage; what has failed once fails again, for nothing in it is random.
    """

    def __init__(self, model: Model, store: Store, task: OpenTask, lsn: int, failed: Mapping[str, int]) -> None:
        self.model, self.store, self.task, self.lsn = model, store, task, lsn
        self.fails_for_good = bool(failed.get("boundary", 0) or failed.get("boundary-diverged", 0))
        self._unsound: BaseException | None = None

    def admit(self) -> bool:
        """Take in what was passed over and is sound after all; whether the task then has any rows."""
        self.task.admit(self._is_sound)
        return self.task.samples > 0

    def readmit(self) -> None:
        """Take in what is kept and is sound now; raises what the last of it was found unsound for if none is."""
        if not self.admit():
            raise self._unsound or ValueError("none of its rows can be learned")

    def _is_sound(self, lsn: int) -> bool:
        """Whether a batch has features, and sums; if not, why is noted."""
        try:
            conversion = self.model.network.conversion
            x, y = self.store.read(lsn)
            rows, targets = conversion.x(x), conversion.y(y)
            _check_summable(rows, targets)
            self.model.network.phi(rows)
        except (Exception, SystemExit, KeyboardInterrupt) as error:  # whatever a module may raise
            self._unsound = error
            return False
        return True

    def begin(self) -> None:
        """Nothing is to be made ready."""

    def learn(self, weight: float | None, added: bool) -> Generator[Event, None, Learned]:
        """The task's sums enter the posterior. weight: lambda_t, by default the configured scale times N_t. added: to the
        part that the task has there already."""
        model, task, rows = self.model, self.task, self.task.samples
        yield from self._complete()
        weight = model.fitting.config.posterior.effective_scale * rows if weight is None else weight
        own, others, before = self._own(weight / rows), _given(model.fitting.cavity), model.posterior.fitted()
        if added:
            factor = model.posterior.extend(task.name, own)
        else:
            factor = model.posterior.absorb(others, own, task.revisited, task.damping or 1.0)
        found = self._solved()
        kept = None if factor is None else Factor(factor)
        potential = None if factor is None or found is None else own_loss(model.fitting.config, factor, found)
        loss = self._loss(own, found)
        yield Progress(task.name, "epochs", 1.0, 1, 1, 0)
        cost, chance = model.cost(others, before, found), self._chance(own) if own.total > 0 else None
        scores = self._scores(own, found)
        return Learned(rows, weight, loss, kept, potential, model.fitting.warning, cost, chance, scores)

    def _scores(self, own: Moments, found: Fitted | None) -> tuple[float, float] | None:
        """What a rise is to be measured by, where it is not in nats."""
        settings = self.model.fitting.config
        if found is None or own.total <= 0 or settings.model.family == "gaussian":
            return None
        guessing = of_guessing(own, self.model.fitting.targets)
        return (own_loss(settings, own, found), guessing) if guessing > 0 else None

    def _chance(self, own: Moments) -> float | None:
        """What the task's rows would cost without a look at them (`core.chance`), in nats a sample."""
        k, likelihood = self.model.fitting.targets, self.model.network.likelihood
        if k == 0:
            return Chance.of(likelihood, own.counts).loss(likelihood)
        mean, rows = own.means[0, -k:], own.counts
        squares = own.scatter.diagonal()[-k:] + rows * mean.square()
        return Chance.of(likelihood, torch.cat([rows, rows * mean, squares])).loss(likelihood)

    def _own(self, weight: float) -> Moments:
        """The task's own sums; finite, or nothing changes."""
        own = self.model.fitting.own.settle()
        if not own.is_finite():
            raise ValueError("the sums of this task are not finite numbers: its features or targets are too large")
        return own if weight == 1.0 else own.weighted(weight)

    def _complete(self) -> Iterator[Event]:
        """Where batches are missing from the sums, or the input's scale is not settled, every row is gone through again."""
        fitting = self.model.fitting
        if fitting.rows != self.task.samples:
            fitting.forget_rows()
            for done, lsn in enumerate(self.task.lsns, start=1):
                conversion = self.model.network.conversion
                x, y = self.store.read(lsn, verify=False)
                self.model.network.grow()
                fitting.add(conversion.x(x), conversion.y(y), None)
                yield Progress(self.task.name, "epochs", done / len(self.task.lsns), 0, 1, done)
        fitting.settle_scale()

    def _solved(self) -> Fitted | None:
        """The head of all that is consolidated now."""
        found = self.model.posterior.fitted()
        self.model.fitting.put(found)
        return found

    def _loss(self, own: Moments, found: Fitted | None) -> float:
        """The rows' mean NLL under the new head: of real targets from the sums, else of up to `LOSS_ROWS` rows."""
        if found is not None and self.model.fitting.config.model.family == "gaussian" and own.total > 0:
            return heads.mean_nll(own, found.head)
        network, total, seen = self.model.network, 0.0, 0
        for x, y in self._data().chunks(1024):
            nll = network.likelihood.nll(network.shaped(network.of_features(network.phi(x))), y)
            total, seen = total + float(nll.sum()), seen + len(x)
            if seen >= LOSS_ROWS:
                break
        return total / seen

    def _data(self) -> TaskData:
        def blocks(window: Any) -> Iterator[Block]:
            for index in window:
                yield self.store.read(self.task.lsns[index], verify=False)

        network = self.model.network
        sizes = self.task.sizes
        upto = next((k for k, rows in enumerate(np.cumsum(sizes), start=1) if rows >= LOSS_ROWS), len(sizes))
        row = math.prod(network.signature.x_shape) * network.dtype.itemsize
        return TaskData(blocks, sizes[:upto], row, network.conversion)


def _given(value: T | None) -> T:
    if value is None:
        raise RuntimeError("a boundary came with no task open")
    return value


# -- made --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Recipe:
    """As `learning.model.Recipe`: all that a model is made of but its shapes."""

    config: Config
    device: torch.device
    labels: LabelMap
    factors: FactorSource | None = None
    factory: Callable[..., torch.nn.Module] | None = None
    widths: Widths = ()  # none are kept: a head has an output for every label that its sums know
    reduction: Reduction = ALONE
    vintage: Vintage = NEWEST  # says nothing: there are no steps, nor is there a curvature to average

    def begun(self, lsn: int, signature: Signature, x: Array, known: int) -> Recipe:
        """As it is."""
        return self

    def network(self, signature: Signature) -> FeatureNetwork:
        """A network as the factory makes it, with nothing learned."""
        return FeatureNetwork(self.config, signature, self.labels, self.device, True, self.factory, self.reduction)

    def model(self, signature: Signature, tasks: dict[str, Consolidated], steps: int, steady: bool) -> Model:
        """A model with nothing learned; arguments as of `learning.model.Recipe.model`."""
        network = self.network(signature)
        fitting = Fitting(self.config, network, steps)
        totals = Totals(self.config, self.factors, fitting.none(), fitting.targets, tasks)
        fitting.last = totals.fitted
        return Model(signature, network, fitting, totals)

    def try_out(
        self, signature: Signature, x: Array, y: Array, new_labels: tuple[int, ...], look_up: Callable[[], None]
    ) -> None:
        """Try a model on rows of a first batch and throw it away; raises ModelRefused, ConfigError."""
        FeatureTrial(self.config, signature, self.device, x, new_labels, look_up, self.factory).run()
