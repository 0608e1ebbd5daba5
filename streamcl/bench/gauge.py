"""``streamcl bench gauge``: what the gauge of forgetting says, beside what has been forgotten.

After every boundary each earlier task's rise is estimated without its data (factor mode), and so is that of the past as a
whole (single mode, by the boundaries' costs; factor mode, by the factors); the truth is the loss on the tasks' own rows,
which the learner no longer has. Domain-incremental streams: sites of digits, turned digits, a regression of which every
domain has its own coefficients, permuted MNIST; class-incremental: two classes a task. At the defaults, and where the gauge
is known to fail: hardly held, and the note's way. In process: the daemon learns by the same code.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.demo import digits
from streamcl.bench.permuted import BATCH_ROWS, Images
from streamcl.bench.permuted_mnist import load_images
from streamcl.bench.versions import versions
from streamcl.client.reader import Prediction
from streamcl.estimator import Learner

Array = npt.NDArray[Any]
NOTE = {"curvature": "diagonal", "expectation": "mode"}
WAYS: dict[str, Mapping[str, Any]] = {"defaults": {}, "scale": {"scale": 0.01}, "note": NOTE}
RANGE, FACTOR = (0.1, 3.0), 4.0  # nats a sample between which the estimate is to be within that factor of the truth
TINY = float(np.finfo(np.float32).tiny)
ANGLE = 15.0  # degrees from one turned site to the next; a six turned by 180 is a nine
What = Literal["task", "past", "past (factors)"]


@dataclass(frozen=True, slots=True)
class Stream:
    """Tasks in turn, rows and targets of each. hidden: widths of the network."""

    likelihood: str
    hidden: tuple[int, ...]
    tasks: list[tuple[Array, Array]]


@dataclass(frozen=True, slots=True)
class Point:
    """A rise after a boundary, estimated and true, in nats a sample; whether it was called lost, and is.

    what: of one task, or of the past as a whole. after: tasks learned. bound: as of `gauge.Past`. before: the loss as it
    was learned. chance: what guessing costs.
    """

    what: What
    after: int
    task: int | None
    estimate: float | None
    bound: str | None
    alarm: bool | None
    true: float
    lost: bool
    before: float
    chance: float

    @property
    def counts(self) -> bool:
        """Whether the truth lies where the estimate must be good."""
        return RANGE[0] <= self.true <= RANGE[1]

    @property
    def ratio(self) -> float | None:
        """Estimate to truth, where that is no rounding."""
        return None if self.estimate is None or abs(self.true) < 1e-3 else self.estimate / self.true

    @property
    def good(self) -> bool:
        """Whether the estimate is within the factor."""
        return self.ratio is not None and 1 / FACTOR <= self.ratio <= FACTOR


def run(data: Path | None, seeds: list[int], only: str, ways: list[str], out: Path | None) -> list[dict[str, Any]]:
    """Every stream whose name contains `only` (MNIST if `data` is given), in every way, printed and written one by one."""
    found: list[dict[str, Any]] = []
    made = [(name, seed, make(seed)) for name, make in streams(data).items() for seed in seeds if only in name]
    for way in ways:
        for name, seed, stream in made:
            points = [point for mode in ("factors", "single") for point in measure(stream, WAYS[way], mode, seed)]
            found += [{"stream": name, "way": way, "seed": seed, **_plain(point)} for point in points]
            print(f"{way:<10}{name:<24}{seed:>3}  {said(points)}", flush=True)
            _write(out, found, data, seeds)
    print_table(found)
    return found


def measure(stream: Stream, posterior: Mapping[str, Any], mode: str, seed: int) -> list[Point]:
    """Learn every task in turn; after each boundary but the first, what is estimated of the earlier ones, and the truth."""
    model = {"likelihood": stream.likelihood, "args": {"hidden": list(stream.hidden)}, "classes": 10}
    with as_in_the_trainer():
        learner = Learner({"model": model, "train": {"seed": seed}, "posterior": {**posterior, "mode": mode}})
        truth, points = _Truth(learner), []
        for number, (x, y) in enumerate(stream.tasks):
            _learn(learner, number, x, y, seed)
            truth.learned(x, y)
            if number:
                points += truth.points(mode)
    return points


def _learn(learner: Learner, number: int, x: Array, y: Array, seed: int) -> None:
    order = np.random.default_rng([seed, number]).permutation(len(x))
    for start in range(0, len(x), BATCH_ROWS):
        rows = order[start : start + BATCH_ROWS]
        learner.observe(x[rows], y[rows], task=f"task {number}")
    learner.boundary(f"task {number}")


class _Truth:
    """The rows of every task so far, and what they cost when they had just been learned."""

    def __init__(self, learner: Learner) -> None:
        self.learner = learner
        self.rows: list[tuple[Array, Array]] = []
        self.before: list[float] = []
        self.noise: list[float] = []
        self.chance: list[float] = []

    def learned(self, x: Array, y: Array) -> None:
        """One more task, just closed."""
        answer = self.learner.predict(x)
        self.noise.append(float(answer.variance.reshape(-1)[0]) if "variance" in answer.arrays else 1.0)
        self.rows.append((x, y))
        self.before.append(_loss(answer, y, self.noise[-1]))
        self.chance.append(_guessing(y, self.noise[-1], "variance" in answer.arrays))

    def points(self, mode: str) -> list[Point]:
        """Of the earlier tasks, in factor mode each by itself, and of all together."""
        answers = [(self.learner.predict(x), y, noise) for (x, y), noise in zip(self.rows, self.noise, strict=True)]
        losses = [_loss(*each) for each in answers]
        rises = [now - before for now, before in zip(losses, self.before, strict=True)]
        lost = [
            now >= chance or _is_constant(answer, y)
            for now, chance, (answer, y, _) in zip(losses, self.chance, answers, strict=True)
        ]
        tasks = self.learner.tasks() if mode == "factors" else []
        after, earlier = len(rises), range(len(rises) - 1)
        each = [
            Point("task", after, k, *_said(tasks[k], "penalty_rise"), rises[k], lost[k], self.before[k], self.chance[k])
            for k in (earlier if tasks else ())
        ]
        return [*each, self._together(mode, rises, losses)]

    def _together(self, mode: str, rises: list[float], losses: list[float]) -> Point:
        """Of the past as a whole: the rise over all tasks, lost where those before the newest are."""
        weights = np.array([float(len(x)) for x, _ in self.rows])
        true = float(np.average(rises, weights=weights))
        older = slice(0, len(rises) - 1)
        now, before, chance = (
            float(np.average(values[older], weights=weights[older])) for values in (losses, self.before, self.chance)
        )
        what: What = "past" if mode == "single" else "past (factors)"
        return Point(what, len(rises), None, *_said(self.learner.past(), "rise"), true, now >= chance, before, chance)


def _said(figures: Mapping[str, Any], rise: str) -> tuple[float | None, str | None, bool | None]:
    return figures[rise], figures["rise_bound"], figures["at_chance"]


def _loss(answer: Prediction, y: Array, noise: float) -> float:
    """Mean negative log likelihood; of real targets with the noise that there was when they were learned."""
    if "probs" not in answer.arrays:
        return float((0.5 * np.log(2 * np.pi * noise) + (y - answer.mean.reshape(-1)) ** 2 / (2 * noise)).mean())
    return float(-np.log(np.maximum(answer.probs[np.arange(len(y)), y], TINY)).mean())


def _guessing(y: Array, noise: float, real: bool) -> float:
    if real:
        return float(0.5 * np.log(2 * np.pi * noise) + y.var() / (2 * noise))
    shares = np.unique(y, return_counts=True)[1] / len(y)
    return float(-(shares * np.log(shares)).sum())


def _is_constant(answer: Prediction, y: Array) -> bool:
    """Whether one and the same answer to every row is right as often."""
    if "probs" not in answer.arrays:
        return False
    return float((answer.probs.argmax(1) == y).mean()) <= float(np.unique(y, return_counts=True)[1].max() / len(y))


# -- data ------------------------------------------------------------------------------------------------------------------


def streams(data: Path | None) -> dict[str, Callable[[int], Stream]]:
    """By name, each a function of the seed; those of MNIST where there is some."""
    found: dict[str, Callable[[int], Stream]] = {
        "digits, sites": lambda seed: _sites(digits(), (16,), 6, seed),
        "digits, two classes": lambda seed: _pairs(digits(), (32,)),
        "digits, turned": lambda seed: _turned(digits(), (16,), 8),
        "regression, regions": lambda seed: _regions(6, 600, seed),
        "regression, at odds": lambda seed: _at_odds(6, 600, seed),
    }
    if data is None:
        return found
    images = load_images(data, 5000)
    some = Images(images.train_x[:2000], images.train_y[:2000], images.test_x, images.test_y)
    return found | {
        "MNIST, permuted": lambda seed: _sites(some, (16,), 6, seed),
        "MNIST, two classes": lambda seed: _pairs(images, (50,)),
    }


def _sites(images: Images, hidden: tuple[int, ...], tasks: int, seed: int) -> Stream:
    orders = images.permutations(tasks, seed)
    return Stream("categorical", hidden, [(np.ascontiguousarray(images.train_x[:, o]), images.train_y) for o in orders])


def _pairs(images: Images, hidden: tuple[int, ...]) -> Stream:
    chosen = [images.train_y // 2 == pair for pair in range(5)]
    return Stream("categorical", hidden, [(images.train_x[rows], images.train_y[rows]) for rows in chosen])


def _turned(images: Images, hidden: tuple[int, ...], tasks: int) -> Stream:
    """The same images, each site's turned by so many degrees more."""
    from scipy.ndimage import rotate

    side = round(images.train_x.shape[1] ** 0.5)
    square = images.train_x.reshape(-1, side, side)

    def turned(angle: float) -> Array:
        found = rotate(square, angle, axes=(1, 2), reshape=False, order=1)
        return np.ascontiguousarray(found.reshape(len(square), -1), np.float32)

    return Stream("categorical", hidden, [(turned(ANGLE * number), images.train_y) for number in range(tasks)])


def _regions(tasks: int, rows: int, seed: int) -> Stream:
    """Real targets, as prices by place: a region a task, of one map whose level and coefficients change smoothly."""
    rng = np.random.default_rng(seed)
    waves, phases = rng.normal(size=(2, 7)), rng.uniform(0, 2 * np.pi, size=7)
    made = []
    for number in range(tasks):
        angle = 2 * np.pi * number / tasks
        place = 2 * np.array([np.cos(angle), np.sin(angle)]) + 0.5 * rng.normal(size=(rows, 2))
        features = rng.normal(size=(rows, 6))
        level, *slopes = np.sin(place @ waves + phases).T
        y = level + 0.4 * (features * np.stack(slopes, 1)).sum(1) + 0.5 * rng.normal(size=rows)
        made.append((np.concatenate([place, features], 1).astype(np.float32), y.astype(np.float32)))
    return Stream("gaussian", (64, 64), made)


def _at_odds(tasks: int, rows: int, seed: int) -> Stream:
    """Real targets: a domain has its own place among the features and its own coefficients; noise 0.5 of a signal of 1."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(tasks):
        place, coefficients = rng.normal(size=8), rng.normal(size=8) / 8**0.5
        x = place + rng.normal(size=(rows, 8))
        y = (x - place) @ coefficients + 0.5 * rng.normal(size=rows)
        made.append((x.astype(np.float32), y.astype(np.float32)))
    return Stream("gaussian", (64, 64), made)


# -- what is shown -----------------------------------------------------------------------------------------------------


def _plain(point: Point) -> dict[str, Any]:
    rounded = {name: round(value, 5) if isinstance(value, float) else value for name, value in asdict(point).items()}
    return {**rounded, "ratio": None if point.ratio is None else round(point.ratio, 3)}


def said(points: Iterable[Point]) -> str:
    """A line: of the tasks and of the past, how many estimates count and are good; and the alarms."""
    return "   ".join(f"{name} {summary(chosen)}" for name, chosen in _kinds(points).items() if chosen)


def _kinds(points: Iterable[Point]) -> dict[str, list[Point]]:
    """By what they are of: the tasks; the past in single mode; the past in factor mode."""
    points = list(points)
    return {what: [point for point in points if point.what == what] for what in ("task", "past", "past (factors)")}


def summary(points: list[Point]) -> str:
    """Good estimates of those that count, the ratios' range, and alarms: right of those there must be, and false ones."""
    counting = [point for point in points if point.counts]
    ratios = [point.ratio for point in counting if point.ratio is not None]
    spread = f" ({min(ratios):.2g} to {max(ratios):.2g})" if ratios else ""
    missed = sum(point.lost and not point.alarm for point in points)
    wrong = sum(bool(point.alarm) and not point.lost for point in points)
    right = sum(bool(point.alarm) and point.lost for point in points)
    return (
        f"{sum(p.good for p in counting)}/{len(counting)} good{spread}, alarms {right} right {missed} missed {wrong} false"
    )


def print_table(found: list[dict[str, Any]]) -> None:
    """Of every stream and way, over all seeds."""
    names = list(Point.__dataclass_fields__)
    print()
    for way in dict.fromkeys(row["way"] for row in found):
        for stream in [*dict.fromkeys(row["stream"] for row in found), ""]:
            rows = [row for row in found if row["way"] == way and row["stream"] in (stream or row["stream"])]
            points = [Point(**{name: row[name] for name in names}) for row in rows]
            for kind, chosen in _kinds(points).items():
                print(f"{way:<10}{stream or 'all':<24}{kind:<16}{summary(chosen)}")


def _write(out: Path | None, found: list[dict[str, Any]], data: Path | None, seeds: list[int]) -> None:
    if out is None:
        return
    settings = {"data": None if data is None else data.name, "seeds": seeds, "range": RANGE, "factor": FACTOR}
    whole = {"benchmark": "gauge", "settings": settings, "versions": versions(), "results": found}
    out.write_text(json.dumps(whole, indent=1) + "\n")
