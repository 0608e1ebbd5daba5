"""Deterministic fault campaigns on the simulated world: a fault at every operation, power cuts at random ones.

Each run's end is compared with that of a run without faults that was fed in the same order: every parameter, total, factor
and counter must be bitwise the same.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.faults import moody
from streamcl.bench.faults.disk import Fault, Plan
from streamcl.bench.faults.logs import Story
from streamcl.bench.faults.senders import Send, Violation
from streamcl.bench.faults.world import SOUND, Feel, Operate, Phase, Subject, Variant, World
from streamcl.protocol import messages

ROWS, FEATURES = 6, 3
FAULTS: tuple[Fault, ...] = ("kill", "torn", "error", "full")
TREE: dict[str, Any] = {
    "model": {"factory": "streamcl.bench.faults.moody:frozen", "likelihood": "categorical", "classes": 3},
    "train": {"epochs": 2, "batch_size": 4, "learning_rate": 0.05},
    # at the mode: what a crash does to a boundary does not depend on how many draws there are (kills take the defaults)
    "posterior": {"mode": "factors", "fisher": "mc", "expectation": "mode"},
}
DRIFTING = {
    **TREE,
    "train": {"epochs": 1, "batch_size": 4, "learning_rate": 0.2},
    "stream": {"boundary": "drift", "drift_rows": 30, "drift_delta": 0.3},
}
CLOCKED = {**TREE, "stream": {"boundary": "time", "boundary_seconds": 3, "least_rows": 2 * ROWS}}
EXACT: dict[str, Any] = {
    "model": {"learner": "exact", "args": {"width": 8}, "likelihood": "categorical"},
    "posterior": {"mode": "factors", "half_life": 40.0},
}
MOODY = {
    **TREE,
    "model": {**TREE["model"], "factory": "streamcl.bench.faults.moody:model"},
    "stream": {"on_failure": "set-aside"},
}
VARIANTS = {
    "no fsync": Variant(sync_data=False),
    "no directory sync": Variant(sync_directory=False),
    "no truncation": Variant(truncate=False),
    "no duplicate check": Variant(check_duplicates=False),
    "acknowledge before write": Variant(acknowledge_late=False),
    "what was not learned is dropped": Variant(keep=False),
    "drift closes where the log has come to": Variant(close_at_change=False),
}


@dataclass(slots=True)
class Tally:
    """What a campaign did. runs: that met a fault. met: how many of each kind. lives: processes started."""

    runs: int = 0
    met: dict[str, int] = field(default_factory=dict)
    lives: int = 0
    violations: list[str] = field(default_factory=list)

    def plain(self) -> dict[str, Any]:
        """For a report."""
        shown = self.violations[:5]
        return {
            "runs": self.runs,
            "met": self.met,
            "starts": self.lives,
            "violations": len(self.violations),
            "first": shown,
        }


class Producers:
    """Writes scripts: every producer's messages numbered as they are made."""

    def __init__(self) -> None:
        self.seq: dict[str, int] = {}

    def batch(self, producer: str, task: str, boundary: bool = False) -> Send:
        """Rows of a task, different every time."""
        header = self._header(producer, "batch", task) | ({"boundary": True} if boundary else {})
        rng = np.random.default_rng([*producer.encode(), header["seq"]])
        arrays = {"x": rng.normal(size=(ROWS, FEATURES)).astype("<f4"), "y": rng.integers(0, 3, ROWS)}
        return Send(producer, header, arrays)

    def learnable(self, producer: str, task: str, shift: int, boundary: bool = False) -> Send:
        """Rows that a linear model tells apart; another shift turns their labels, which is drift."""
        sent = self.batch(producer, task, boundary)
        x = 4 * np.eye(FEATURES, dtype="<f4")[sent.arrays["y"]] + 0.1 * sent.arrays["x"]
        return Send(producer, sent.header, {"x": x, "y": (sent.arrays["y"] + shift) % 3})

    def odd(self, producer: str, task: str) -> Send:
        """Rows that a moody model may refuse."""
        sent = self.batch(producer, task)
        return Send(producer, sent.header, {**sent.arrays, "x": sent.arrays["x"] + np.float32(2 * moody.ODD)})

    def boundary(self, producer: str, task: str, barrier: bool = False) -> Send:
        """A boundary, with a barrier on everything that the producers have made so far."""
        others = dict(self.seq)
        header = self._header(producer, "boundary", task)
        return Send(producer, header | ({"barrier": others} if barrier else {}))

    def revisit(self, producer: str, task: str) -> Send:
        """Reopens a task."""
        return Send(producer, self._header(producer, "revisit", task))

    def _header(self, producer: str, kind: str, task: str) -> dict[str, Any]:
        self.seq[producer] = self.seq.get(producer, 0) + 1
        return {"type": kind, "seq": self.seq[producer], "task": task}


def long_script() -> list[Phase]:
    """One producer and the operator: everything that a record can do."""
    p = Producers()
    return [
        [p.batch("p", "a"), p.batch("p", "a"), p.boundary("p", "a")],
        [p.batch("p", "b")],
        Operate(messages.Checkpoint()),
        [p.batch("p", "b", boundary=True)],
        [p.revisit("p", "a"), p.batch("p", "a")],
        Operate(messages.Checkpoint()),
        [p.batch("p", "a"), p.boundary("p", "a")],
        [p.revisit("p", "b"), p.batch("p", "b")],
        Operate(messages.Abandon("b"), over=frozenset({"unknown_task"})),
        Operate(messages.Forget("b"), over=frozenset({"task_closed"})),
        [p.batch("p", "c"), p.batch("p", "c")],
        Operate(messages.AdminBoundary(task="c", wait=False), over=frozenset({"task_closed"})),
    ]


def two_producers(rng: random.Random) -> list[Phase]:
    """Two producers of every task, interleaved at random; some tasks are fed again."""
    p = Producers()
    script: list[Phase] = []
    for task in ("a", "b", "c"):
        script.append([p.batch(name, task) for name in ("p", "q") for _ in range(rng.randint(2, 8))])
        if rng.random() < 0.5:
            script.append(Operate(messages.Checkpoint()))
        script.append([p.boundary("q", task, barrier=True)])
    script.append([p.revisit("p", "a")])
    script.append([p.batch(name, "a") for name in ("p", "q") for _ in range(2)])
    script.append([p.boundary("p", "a")])
    return script


def drifting(rng: random.Random) -> list[Phase]:
    """Streams of two producers that change without being told; boundaries, and a revisit."""
    p = Producers()
    script: list[Phase] = []
    for tag in ("a", "b"):
        for shift in range(rng.randint(2, 3)):
            sizes = (rng.randint(6, 10), rng.randint(1, 6))
            script.append([p.learnable(name, tag, shift) for name in ("p", "q") for _ in range(sizes[shift > 0])])
            if rng.random() < 0.3:
                script.append(Operate(messages.Checkpoint()))
        if rng.random() < 0.3:
            script.append([p.learnable("p", tag, 0, boundary=True)])
        else:
            script.append([p.boundary("q", tag, barrier=True)])
    script.append([p.revisit("p", "a")])
    script.append([p.learnable(name, "a", 0) for name in ("p", "q")])
    script.append([p.boundary("p", "a")])
    script.append([p.learnable("p", "a", 1) for _ in range(4)])
    return script


def drifting_script() -> list[Phase]:
    """One producer: its boundary comes directly after the batch that showed the change, then another later."""
    p = Producers()
    return [
        [p.learnable("p", "a", int(batch >= 16)) for batch in range(22)],
        [p.boundary("p", "a")],
        [p.learnable("p", "a", int(batch >= 16)) for batch in range(23)],
        Operate(messages.Checkpoint()),
        [p.learnable("p", "a", 1, boundary=True)],
        [p.revisit("p", "a.2"), p.learnable("p", "a.2", 0), p.boundary("p", "a.2")],
    ]


def clocked_script() -> list[Phase]:
    """One producer whose tasks end by their age, which in a `World` is the number of records stored meanwhile."""
    p = Producers()
    return [
        [*(p.batch("p", "a") for _ in range(7)), p.boundary("p", "a")],
        [p.batch("p", "a") for _ in range(3)],
        Operate(messages.Checkpoint()),
        [p.batch("p", "a", boundary=batch == 1) for batch in range(2)],
        [p.revisit("p", "a.2"), *(p.batch("p", "a.2") for _ in range(4)), p.boundary("p", "a.2")],
        [p.batch("p", "b") for _ in range(4)],
    ]


def kept_script() -> list[Phase]:
    """Tasks that are held, rows that are set aside, retried and dropped; what was learned is rolled back."""
    p = Producers()
    closed = frozenset({"unlearnable", "task_closed"})
    settled = frozenset({"unknown_task"})
    return [
        [p.batch("p", "a"), p.batch("p", "a"), p.boundary("p", "a")],
        [p.batch("p", "h"), p.batch("p", "h")],
        Feel("never"),
        Operate(messages.AdminBoundary(task="h"), over=closed),
        Feel("well"),
        [p.batch("p", "b"), p.boundary("p", "b")],
        Operate(messages.Retry(task="h"), over=settled),
        Feel("rows"),
        [p.batch("p", "g"), p.odd("p", "g"), p.batch("p", "g")],
        Operate(messages.AdminBoundary(task="g"), over=frozenset({"task_closed"})),
        Feel("well"),
        Operate(messages.Retry(task="g"), over=settled),
        [p.batch("p", "w"), p.boundary("p", "w")],
        Operate(messages.Rollback(task="w"), over=settled),
        [p.revisit("p", "a"), p.batch("p", "a")],
        Feel("never"),
        [p.batch("p", "a")],
        Operate(messages.AdminBoundary(task="a"), over=closed),
        Operate(messages.Drop(task="a"), over=settled),
        Feel("well"),
        [p.batch("p", "w"), p.batch("p", "w")],
        Feel("never"),
        Operate(messages.AdminBoundary(task="w"), over=closed),
    ]


SCRIPTS: dict[Subject, tuple[Callable[[], list[Phase]], dict[str, Any]]] = {
    "tasks": (long_script, TREE),
    "drift": (drifting_script, DRIFTING),
    "clock": (clocked_script, CLOCKED),
    "kept": (kept_script, MOODY),
    "exact": (long_script, EXACT),
    "beside": (long_script, TREE),
}


def every_step(faults: Iterable[Fault] = FAULTS, *, alone: bool, about: Subject = "tasks", stride: int = 1) -> Tally:
    """A fault at the first, the second, ... operation of a script, or every n-th, until none is left to meet.

    alone: a kill ends only the process that meets it. about: tasks that are learned, streams that change, tasks that end by
    the clock, what cannot be learned, tasks of an exact learner, or tasks beside which checkpoints are written all along.
    """
    make, tree = SCRIPTS[about]
    script, tally = make(), Tally()
    expected = undisturbed(script, tree=tree)
    for fault in faults:
        for at in count(1, stride):
            plan = Plan(at, fault)
            _run(tally, script, plan, lambda _: expected, alone=alone, tree=tree, beside=about == "beside")
            if plan.hit is None:
                break
    return tally


def random_crashes(runs: int, seed: int = 0, variant: Variant = SOUND, *, cut: bool, about: Subject | None = None) -> Tally:
    """Kills or power cuts at random operations of random scripts; half of the runs have a second one soon after.

    about: as for `every_step`; by default, what the variant breaks.
    """
    tally, about = Tally(), about or variant.about
    tree = SCRIPTS[about][1]
    for number in range(runs):
        rng = random.Random(f"{seed}/{number}")
        script = kept_script() if about == "kept" else drifting(rng) if about == "drift" else two_producers(rng)
        aim = rng.choice((None, "ingest: sync"))  # when most is at stake: much is written, nothing synced
        plan = _TwicePlan(rng.randint(1, 200), rng.choice(("kill", "torn")), aim, rng.choice((0, rng.randint(1, 20))))
        expected = partial(undisturbed, script, tree=tree)
        options = {"variant": variant, "tree": tree, "beside": about == "beside"}
        _run(tally, script, plan, expected, seed=number, cut=cut, alone=rng.random() < 0.3, **options)
    return tally


def log_cuts(runs: int, seed: int = 0, variant: Variant = SOUND) -> Tally:
    """Power cuts of the log alone, up to four in the life of each."""
    tally = Tally()
    for number in range(runs):
        rng = random.Random(f"{seed}/{number}")
        with tempfile.TemporaryDirectory(prefix="streamcl-faults-") as directory:
            story = Story(Path(directory), rng, variant)
            try:
                for _ in range(rng.randint(1, 4)):
                    story.live(rng.randint(0, 14))
                story.end()
            except Violation as violation:
                tally.violations.append(str(violation))
        tally.runs += 1
        tally.lives += story.lives + 1
        tally.met["cut"] = tally.met.get("cut", 0) + story.lives
    return tally


def broken_variants(runs: int, log_runs: int, seed: int = 0) -> dict[str, int]:
    """The tests of the tests: how many violations are found in each daemon that is broken on purpose."""
    found = {}
    for name, variant in VARIANTS.items():
        worlds = random_crashes(runs, seed, variant, cut=True).violations
        found[name] = len(worlds) + len(log_cuts(log_runs, seed, variant).violations)
    return found


class _TwicePlan(Plan):
    """A plan with another fault of its kind a number of operations after the first."""

    def __init__(self, at: int, fault: Fault, aim: str | None, second: int) -> None:
        super().__init__(at, fault, aim)
        self.second = second

    def meet(self, owner: str, operation: str) -> Fault | None:
        """As a plan, twice."""
        if self.hit is not None and self.second:
            self.at, self.second = self.count + self.second, 0
        return super().meet(owner, operation)


def _run(
    tally: Tally,
    script: Sequence[Phase],
    plan: Plan,
    expected: Callable[[list[tuple[str, int]]], dict[str, Any]],
    **options: Any,
) -> None:
    """One run; its end is compared with what is expected for the order in which it stored the messages."""
    with small_world(script, plan, **options) as world:
        try:
            end = world.run()
            _compare(end, expected(world.order()))
        except Violation as violation:
            tally.violations.append(f"{plan.fault} at {plan.hit}: {violation}")
        tally.runs += plan.hit is not None
        tally.lives += world.lives
        if plan.hit is not None:
            tally.met[plan.fault] = tally.met.get(plan.fault, 0) + 1


def _compare(end: dict[str, Any], expected: dict[str, Any]) -> None:
    different = [name for name in expected if end.get(name) != expected[name] and not _both_nan(end, expected, name)]
    if different:
        raise Violation(f"it ends with another {', '.join(different)}")


def _both_nan(end: dict[str, Any], expected: dict[str, Any], name: str) -> bool:
    return bool(end[name] != end[name]) and expected[name] != expected[name]


def undisturbed(
    script: Sequence[Phase], order: Sequence[tuple[str, int]] | None = None, tree: dict[str, Any] = TREE
) -> dict[str, Any]:
    """How a script ends where nothing happens to it, fed in this order."""
    with small_world(script, order=order, tree=tree) as world:
        return world.run()


@contextmanager
def small_world(
    script: Sequence[Phase], plan: Plan | None = None, tree: dict[str, Any] = TREE, **options: Any
) -> Iterator[World]:
    """A world in a directory that is removed with it."""
    with tempfile.TemporaryDirectory(prefix="streamcl-faults-") as directory:
        world = World(Path(directory), tree, script, plan, **options)
        try:
            yield world
        finally:
            world.close()
