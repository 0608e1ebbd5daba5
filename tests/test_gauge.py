"""The gauge of what was forgotten: exact where everything is, right after what undoes, an alarm where it must be."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.nn.functional import binary_cross_entropy_with_logits
from waiting import until

from streamcl import Learner, entries, gauge
from streamcl.bench import gauge as bench
from streamcl.bench.demo import digits
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.config import from_tree
from streamcl.core import surrogates
from streamcl.core.chance import Chance
from streamcl.core.likelihood import Bernoulli, Categorical, Gaussian
from streamcl.core.reduce import ALONE
from streamcl.entries import Consolidated, Forgotten, Revisited, RolledBack, Standing, standing

NOISE, FEATURES, TASKS, ROWS = 0.5, 4, 4, 40
MODEL = {"factory": "streamcl.models:linear", "likelihood": "gaussian", "noise_variance": NOISE}
POSTERIOR = {"prior_precision": 0.3, "curvature": "full", "expectation": "mode"}


def linear(**posterior: Any) -> Learner:
    """A linear-Gaussian model, whose quadratics are its losses."""
    train = {"optimizer": "lbfgs", "dtype": "float64", "epochs": 8}
    return Learner({"model": MODEL, "train": train, "posterior": {**POSTERIOR, **posterior}})


def rows_of(number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    x = rng.normal(size=(ROWS + 10 * number, FEATURES))
    return x, x @ rng.normal(size=FEATURES) + number + rng.normal(size=len(x)) * NOISE**0.5


def loss_of(learner: Learner, number: int) -> float:
    """The sum over a task's rows, in nats."""
    x, y = rows_of(number)
    mean = learner.predict(x).mean.reshape(-1)
    return float((0.5 * (y - mean) ** 2 / NOISE + 0.5 * math.log(2 * math.pi * NOISE)).sum())


def learn(learner: Learner, number: int) -> None:
    learner.observe(*rows_of(number), task=f"t{number}")
    learner.boundary(f"t{number}")


@pytest.mark.parametrize("curvature", ["full", "auto"])
@pytest.mark.parametrize("centre", ["zero", "init"])
def test_in_a_linear_gaussian_model_the_rise_of_the_past_is_exact(curvature: str, centre: str) -> None:
    learner = linear(curvature=curvature, prior_mean=centre)
    at_own, samples = [], 0
    for number in range(TASKS):
        learn(learner, number)
        at_own.append(loss_of(learner, number))
        samples += len(rows_of(number)[0])
        true = sum(loss_of(learner, task) - at_own[task] for task in range(number + 1)) / samples
        past = learner.past()
        assert (past["tasks"], past["samples"]) == (number + 1, samples)
        assert past["rise"] == pytest.approx(true, abs=1e-8)
    assert past["rise"] > 0.1


def test_what_the_open_task_has_done_is_added_while_it_is_open() -> None:
    """Also by a learner that was put away in its midst, as the daemon is that starts again."""
    train = {"optimizer": "sgd", "learning_rate": 0.02, "dtype": "float64", "epochs": 400}
    learner = Learner({"model": MODEL, "train": train, "posterior": POSTERIOR})
    learn(learner, 0)
    before = loss_of(learner, 0)
    assert learner.past()["rise"] == 0.0
    learner.observe(*rows_of(1), task="t1")
    moved = loss_of(learner, 0) - before
    assert moved > 0.1
    assert learner.past()["rise"] == pytest.approx(moved / ROWS, rel=1e-3)
    assert copy.deepcopy(learner).past() == learner.past()


def revisit(learner: Learner, number: int) -> None:
    learner.revisit(f"t{number}")
    learn(learner, number)


def test_in_factor_mode_it_is_the_mean_over_the_tasks_whatever_was_fed_again_or_withdrawn() -> None:
    learner = linear(mode="factors", share=1.0)
    for number in range(TASKS):
        learn(learner, number)
    revisit(learner, 1)
    for left in (TASKS, TASKS - 1):
        tasks = learner.tasks()
        rises, weights = [task["penalty_rise"] for task in tasks], [task["weight"] for task in tasks]
        past = learner.past()
        assert past["tasks"] == len(tasks) == left
        assert past["rise"] == pytest.approx(float(np.average(rises, weights=weights)))
        if left == TASKS:
            learner.forget("t0")


# -- the ledger --------------------------------------------------------------------------------------------------------


def entry(task: str, lsn: int, **fields: Any) -> Consolidated:
    given: dict[str, Any] = {"samples": 10, "weight": 10.0, "loss": 0.1, "cost": 0.0, "chance": 2.0}
    kind = Revisited if fields.pop("again", False) else Consolidated
    return kind(task=task, lsn=lsn, **{**given, **fields})


def test_what_is_undone_has_cost_nothing() -> None:
    book = [entry("a", 1), entry("b", 2, cost=5.0), entry("c", 3, cost=7.0)]
    assert standing(book).risen == 12.0
    assert standing(book).weight == 30.0
    undone = standing([*book, RolledBack(task="c", lsn=4, to=2, undone=("c",))])
    assert (undone.risen, undone.weight) == (5.0, 20.0)
    assert standing([*book, RolledBack(task="a", lsn=4, to=0, undone=("a", "b", "c"))]).risen == 0.0


def test_a_task_that_is_learned_again_or_withdrawn_takes_its_share_of_what_was_lost_with_it() -> None:
    book = [entry("a", 1), entry("b", 2, cost=6.0), entry("c", 3, cost=6.0)]
    again = standing([*book, entry("a", 4, cost=1.0, again=True)])
    assert (again.risen, again.weight) == (pytest.approx(9.0), 30.0)
    without = standing([*book, Forgotten(task="a", lsn=4)])
    assert (without.risen, without.weight) == (pytest.approx(8.0), 20.0)


def test_an_entry_that_is_said_twice_counts_once() -> None:
    """Drift sets a boundary, and then says that it did."""
    stands = Standing()
    for _ in range(2):
        stands.take(entry("a", 1, cost=3.0, origin="drift"), lambda count: Standing())
    assert (stands.risen, stands.weight) == (3.0, 10.0)


def test_rows_added_to_a_task_add_what_they_cost() -> None:
    stands = standing([entry("a", 1), entry("b", 2, cost=6.0), entry("a", 3, cost=1.0, weight=15.0, added=True)])
    assert (stands.risen, stands.weight) == (7.0, 25.0)


def test_entries_of_an_older_version_are_read_and_what_they_cost_is_not_known() -> None:
    plain = {"kind": "boundary", "task": "a", "lsn": 1, "samples": 10, "weight": 10.0, "loss": 0.1}
    old = entries.decode(msgspec.msgpack.encode(plain))
    assert isinstance(old, Consolidated)
    assert (old.cost, old.chance) == (None, None)
    found = gauge.past(standing([old, entry("b", 2, cost=2.0)]), None, None, lower=False)
    assert (found.rise, found.rise_bound, found.at_chance) == (pytest.approx(0.1), "lower", None)
    assert gauge.at_chance(old, 100.0) is None
    new = entry("c", 3)
    assert [gauge.at_chance(new, rise, lower=lower) for lower in (False, True) for rise in (0.1, 3.0)] == [
        False,
        True,
        None,
        True,
    ]
    seen = msgspec.structs.replace(new, inputs=True)
    assert (gauge.at_chance(seen, 0.1, lower=True), gauge.bound(seen, 0.1, lower=True)) == (False, None)
    assert gauge.past(standing([seen]), None, None, lower=True).rise_bound is None
    assert gauge.past(standing([seen, new]), None, None, lower=True).rise_bound == "lower"
    assert gauge.at_chance(new, 3.0, gauge.Measured(0.9, 0.3)) is False
    assert gauge.at_chance(new, 0.0, gauge.Measured(0.3, 0.3)) is True
    assert "cost" not in msgspec.msgpack.decode(entries.encode(old))


@pytest.mark.parametrize(
    ("tree", "lower"),
    [
        ({}, False),
        ({"posterior": {"expectation": "mode"}}, True),
        ({"posterior": {"mode": "online"}}, True),
        ({"model": {"likelihood": "gaussian"}}, True),
        ({"model": {"likelihood": "gaussian", "factory": "streamcl.models:linear"}}, False),
        ({"model": {"likelihood": "gaussian", "learner": "exact"}}, False),
    ],
)
def test_it_is_said_where_the_curvature_says_less_than_there_is(tree: dict[str, Any], lower: bool) -> None:
    assert gauge.understates(from_tree(tree)) is lower


# -- chance ------------------------------------------------------------------------------------------------------------


def chance(likelihood: Any, *blocks: torch.Tensor) -> float | None:
    sums = Chance(likelihood, torch.device("cpu"))
    for block in blocks:
        sums.add(block)
    return sums.summed(ALONE).loss(likelihood)


def test_guessing_costs_what_the_best_constant_prediction_does() -> None:
    labels = torch.tensor([0, 0, 0, 1])
    shares = torch.tensor([0.75, 0.25]).log().expand(4, 2)
    expected = float(Categorical(2).nll(shares, labels).mean())
    assert chance(Categorical(2), labels[:3], labels[3:]) == pytest.approx(expected)
    ones = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 1.0]])
    best = ones.mean(0).logit().expand(4, 2)
    assert chance(Bernoulli(), ones) == pytest.approx(float(Bernoulli().nll(best, ones).mean()), rel=1e-6)
    y = torch.tensor([[1000.0], [1001.0], [1003.0]], dtype=torch.float64)
    known = Gaussian(0.3)
    assert chance(known, y[:1], y[1:]) == pytest.approx(float(known.nll(y.mean(0).expand(3, 1), y).mean()))


def test_a_task_of_one_class_is_measured_against_a_guess_among_all_and_one_of_one_value_against_nothing() -> None:
    assert chance(Categorical(10), torch.full((5,), 3)) == pytest.approx(math.log(10))
    assert chance(Categorical(1), torch.zeros(5, dtype=torch.long)) is None
    assert chance(Gaussian(1.0), torch.full((5, 1), 1e6)) is None
    assert chance(Bernoulli(), torch.ones(5, 1)) is None


def test_the_ledger_has_what_guessing_costs_in_the_units_of_the_loss() -> None:
    learner = Learner({"model": {"factory": "streamcl.models:linear", "likelihood": "gaussian"}})
    x, y = rows_of(0)
    learner.observe(x, 1000 + 50 * y, task="t")
    done = learner.boundary("t")
    (task,) = learner.tasks()
    assert task["chance"] > done["loss"]
    noise, residual = learner.predict(x).variance[0], 1000 + 50 * y - learner.predict(x).mean.reshape(-1)
    assert done["loss"] == pytest.approx(float(np.log(2 * np.pi * noise) + np.mean(residual**2) / noise) / 2, rel=1e-3)
    assert task["chance"] == pytest.approx(0.5 * np.log(2 * np.pi * np.e * np.var(50 * y)), rel=1e-6)


# -- the alarm ---------------------------------------------------------------------------------------------------------


def stream(seed: int, tasks: int = 4) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three classes around centres; every task has its own columns for them, so that one network can hold all of them."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(tasks):
        y = rng.integers(0, 3, 200)
        x = np.zeros((200, 4 * tasks), np.float32)
        x[:, 4 * number : 4 * number + 3] = 2 * np.eye(3)[y]
        x[:, 4 * number + 3] = 1.0
        made.append((x + 0.3 * rng.normal(size=x.shape).astype(np.float32), (y + number) % 3))
    return made


def learned(mode: str, **posterior: Any) -> Learner:
    learner = Learner(
        {
            "model": {"args": {"hidden": [16]}, "classes": 3},
            "train": {"epochs": 20},
            "posterior": {"mode": mode, **posterior},
        }
    )
    for number, (x, y) in enumerate(stream(0)):
        learner.observe(x, y, task=f"t{number}")
        learner.boundary(f"t{number}")
    return learner


@pytest.mark.parametrize("mode", ["factors", "single"])
def test_a_stream_that_is_held_sets_no_alarm(mode: str) -> None:
    learner = learned(mode)
    assert learner.past()["at_chance"] is False
    assert learner.past()["rise_bound"] is None
    assert not any(task["at_chance"] for task in learner.tasks())


@pytest.mark.parametrize("mode", ["factors", "single"])
def test_a_stream_that_is_hardly_held_sets_the_alarm(mode: str) -> None:
    """Two classes a task: what the next two are made of takes the place of the last."""
    pairs = bench.streams(None)["digits, two classes"](0)
    points = bench.measure(replace(pairs, tasks=pairs.tasks[:3]), {"scale": 0.01}, mode, 0)
    lost = [point for point in points if point.lost]
    assert lost
    assert all(point.alarm for point in lost)
    assert {point.bound for point in lost} == {"chance"}


# -- seen in outputs -----------------------------------------------------------------------------------------------------


def at_odds(number: int, n: int = 300) -> tuple[np.ndarray, np.ndarray]:
    """The second task contradicts the first, on rows from the same place."""
    rng = np.random.default_rng(number)
    x = 3 + rng.normal(size=(n, 2)).astype("<f4") * np.array([2, 0.5], "<f4")
    signal = 5 * (x[:, 0] - 3) + x[:, 1]
    return x, ((signal if number == 0 else -signal) + rng.normal(size=n)).astype("<f4")


def network(**posterior: Any) -> Learner:
    return Learner({"model": {"likelihood": "gaussian", "args": {"hidden": [32]}}, "posterior": posterior})


def taught(learner: Learner) -> float:
    """How much a row of the first task was missed by more, once the second was learned, with the noise of the first."""
    squares, noise = [], []
    for number in (0, 1):
        learner.observe(*at_odds(number), task=f"t{number}")
        learner.boundary(f"t{number}")
        answer, y = learner.predict(at_odds(0)[0]), at_odds(0)[1]
        noise.append(float(answer.variance.reshape(-1)[0]))
        squares.append(float(((answer.mean.reshape(-1) - y) ** 2).mean()))
    return (squares[1] - squares[0]) / (2 * noise[0])


@pytest.mark.parametrize("mode", ["single", "factors"])
def test_a_network_that_unlearned_real_targets_says_by_how_much_and_sets_the_alarm(mode: str) -> None:
    """No quadratic sees it: `test_without_its_inputs_a_network_says_too_little`."""
    learner = network(mode=mode)
    true, past = taught(learner), learner.past()
    assert true > 10
    assert 0.5 < 2 * past["rise"] / true < 2  # of two tasks, one of which has lost
    assert (past["at_chance"], past["rise_bound"]) == (True, "chance")
    assert copy.deepcopy(learner).past() == past
    if mode == "factors":
        first, newest = learner.tasks()
        assert 0.5 < first["penalty_rise"] / true < 2
        assert (first["at_chance"], newest["at_chance"], newest["rise_bound"]) == (True, False, None)


@pytest.mark.parametrize("mode", ["single", "factors"])
@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli"])
def test_what_a_class_has_lost_to_the_next_is_seen_where_no_line_parts_them(mode: str, likelihood: str) -> None:
    """Each task knows one class: its own rows have next to no curvature that would hold it."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(300, 4)), rng.normal(size=(300, 4))
    rows = [(near / 2).astype("<f4"), (far / np.linalg.norm(far, axis=1, keepdims=True)).astype("<f4")]
    model = {"likelihood": likelihood, "args": {"hidden": [32]}} | ({"classes": 2} if likelihood == "categorical" else {})
    learner = Learner({"model": model, "posterior": {"mode": mode}})
    losses = []
    for number, x in enumerate(rows):
        learner.observe(x, np.full(300, number), task=f"t{number}")
        learner.boundary(f"t{number}")
        probs = learner.predict(rows[0]).probs.astype(float)
        losses.append(
            -np.log(np.maximum(probs[:, 0] if likelihood == "categorical" else 1 - probs.reshape(-1), 1e-12)).mean()
        )
    past = learner.past()
    assert losses[1] - losses[0] > 0.3
    assert 0.25 < 2 * past["rise"] / (losses[1] - losses[0]) < 4
    assert past["rise_bound"] in (None, "chance")


def test_without_its_inputs_a_network_says_too_little_and_that_it_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surrogates, "WIDEST", 1)  # as of a row of too many numbers
    learner = network()
    true, past = taught(learner), learner.past()
    assert 2 * past["rise"] < true / 4
    assert (past["at_chance"], past["rise_bound"]) == (None, "lower")


def test_a_model_that_fails_on_rows_that_stand_for_a_tasks_own_is_followed_by_its_quadratic() -> None:
    class Odd(torch.nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if len(x) == surrogates.ROWS:
                raise ValueError("too much at once")
            return super().forward(x)

    torch.manual_seed(0)
    module = Odd(torch.nn.Linear(2, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    learner = Learner({"model": {"likelihood": "gaussian"}}, module)
    taught(learner)
    assert learner.past()["rise"] > 0


@pytest.mark.parametrize("mode", ["single", "factors"])
def test_outputs_that_came_after_a_task_are_nothing_that_it_has_lost(mode: str) -> None:
    """Of these its factor says nothing: zeros in their place would win where all others are learned to be low."""
    images = digits()
    found = []
    for classes in ("auto", 10):
        learner = Learner({"model": {"classes": classes}, "posterior": {"mode": mode}})
        for number in range(2):
            order = np.random.default_rng(number).permutation(64)
            learner.observe(images.train_x[:600][:, order], images.train_y[:600], task=f"t{number}")
            learner.boundary(f"t{number}")
        assert learner.past()["at_chance"] is False
        found.append(learner.past()["rise"])
        if classes == "auto":
            assert learner._learner.model.network.outputs > 10
    assert found[0] < 3 * found[1] + 0.05


def test_inputs_are_stood_for_by_rows_of_their_mean_and_covariance() -> None:
    torch.manual_seed(0)
    x = 5 + torch.randn(4000, 2, 3) @ torch.randn(3, 3)
    held = surrogates.moments(x)
    drawn = surrogates.drawn(1000 * held, (2, 3))
    assert drawn.shape == (surrogates.ROWS, 2, 3)
    rows, own = drawn.reshape(-1, 6), x.reshape(-1, 6).double()
    torch.testing.assert_close(rows.mean(0), own.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(rows.T.cov(correction=0), own.T.cov(correction=0), rtol=1e-6, atol=1e-6)
    assert torch.equal(drawn, surrogates.drawn(1000 * held, (2, 3)))
    odd = torch.tensor([[1e6, 0.001, 0.0, 7.0], [1e6, 0.003, 0.0, 9.0]])  # never changes, tiny, dead, moves with another
    same = surrogates.drawn(surrogates.moments(odd), (4,))
    assert same[:, 0].std() < 20
    torch.testing.assert_close(same[:, 1:].std(0), torch.tensor([0.001, 0, 1], dtype=torch.float64), rtol=0.01, atol=1e-9)
    torch.testing.assert_close(same[:, 3], 6 + 1000 * same[:, 1], rtol=0, atol=0.01)


# -- through the daemon ------------------------------------------------------------------------------------------------

CLASSES = {"model": {"args": {"hidden": [16]}, "classes": 3}, "train": {"epochs": 20}}


def send(daemon: LocalDaemon, tasks: list[tuple[np.ndarray, np.ndarray]], first: int = 0) -> None:
    with daemon.producer() as producer:
        for number, (x, y) in enumerate(tasks, start=first):
            producer.send(x, y, f"t{number}")
            producer.boundary(f"t{number}")


@pytest.mark.campaign
def test_the_daemon_shows_the_past_also_after_a_crash_and_a_rollback(start: Callable[..., LocalDaemon]) -> None:
    daemon, mine = start(CLASSES), Learner(CLASSES)
    figures = []
    for number, (x, y) in enumerate(stream(0)[:3]):
        send(daemon, [(x, y)], number)
        mine.observe(x, y, f"t{number}")
        mine.boundary(f"t{number}")
        with daemon.admin() as admin:
            figures.append(admin.status()["past"])
        assert figures[-1] == {**mine.past(), "rise": pytest.approx(mine.past()["rise"], rel=0.1)}
    assert figures[2]["rise"] > 0
    with daemon.admin() as admin:
        assert admin.metrics()["streamcl_past_rise_nats"] == figures[2]["rise"]
        assert [row["penalty_rise"] for row in admin.history()] == [past["rise"] for past in figures]
        assert {row["task"] for row in admin.history()} == {None}
    daemon.kill()
    daemon.start()
    with daemon.admin() as admin:
        assert admin.status()["past"] == figures[2]
        admin.rollback("t1")
        assert admin.status()["past"] == figures[0]
    send(daemon, stream(0)[1:2], 1)
    with daemon.admin() as admin:
        again = admin.status()["past"]  # at another place in the log, so with other random numbers
        assert again == {**figures[1], "rise": pytest.approx(figures[1]["rise"], rel=0.5)}


@pytest.mark.campaign
def test_what_is_sent_to_an_open_task_moves_the_gauge(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(CLASSES)
    (x, y), (other_x, other_y) = stream(0)[:2]
    send(daemon, [(x, y)])
    with daemon.producer() as producer, daemon.admin() as admin:
        assert admin.status()["past"]["rise"] == 0.0
        producer.send(other_x, other_y, "t1")
        producer.flush()
        until(lambda: admin.status()["past"]["rise"] > 0)
        assert admin.status()["past"]["tasks"] == 1


@pytest.mark.campaign
@pytest.mark.parametrize("mode", ["single", "factors"])
def test_an_evaluation_set_that_is_predicted_no_better_than_by_one_answer_is_an_alarm(
    start: Callable[..., LocalDaemon], tmp_path: Path, mode: str
) -> None:
    sets = tmp_path / "sets"
    sets.mkdir()
    (x, y), (other_x, other_y) = stream(0)[:2]
    np.savez(sets / "t0.npz", x=x, y=np.roll(y, 1))  # of which nothing can be told
    np.savez(sets / "t1.npz", x=other_x, y=other_y)
    daemon = start({**CLASSES, "posterior": {"mode": mode}, "evaluation": {"directory": str(sets)}})
    send(daemon, [(x, y), (other_x, other_y)])
    with daemon.admin() as admin:
        until(lambda: [task["at_chance"] for task in admin.tasks()] == [True, False])
        status = admin.status()
        assert status["tasks_at_chance"] == 1
        assert "task 't0' is at chance: accuracy 0.3" in status["warning"]
        assert ("streamcl revisit t0" in status["warning"]) == (mode == "factors")
        assert admin.metrics()["streamcl_tasks_at_chance"] == 1.0


# -- the bench ---------------------------------------------------------------------------------------------------------


@pytest.mark.campaign
def test_the_bench_measures_what_it_estimates(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The truth is the loss on each task's own rows, against what it was when they had just been learned."""
    small = bench.Stream("categorical", (8,), [(x, y) for x, y in stream(0)[:2]])
    monkeypatch.setattr(bench, "streams", lambda data: {"small": lambda seed: small, "other": lambda seed: small})
    out = tmp_path / "gauge.json"
    assert main(["bench", "gauge", "--only", "small", "--way", "defaults", "--json", str(out)]) == 0
    rows = json.loads(out.read_text())["results"]
    assert [(row["what"], row["after"]) for row in rows] == [("task", 2), ("past (factors)", 2), ("past", 2)]
    each, together, single = rows
    assert each["before"] < each["chance"]
    assert together["true"] == pytest.approx(each["true"] / 2, abs=2e-5)
    assert together["estimate"] == pytest.approx(each["estimate"] / 2, abs=2e-5)
    assert single["estimate"] == pytest.approx(together["estimate"], rel=1.0)


def test_an_estimate_counts_where_the_truth_is_in_range_and_is_good_within_the_factor() -> None:
    def point(estimate: float, true: float, alarm: bool = False, lost: bool = False) -> bench.Point:
        return bench.Point("task", 2, 0, estimate, None, alarm, true, lost, 0.1, 2.0)

    points = [point(0.5, 1.0), point(0.2, 1.0), point(5.0, 1.0), point(1.0, 0.01), point(9.0, 9.0)]
    assert bench.summary(points).startswith("1/3 good (0.2 to 5)")
    alarms = [point(3.0, 3.0, True, True), point(3.0, 3.0, False, True), point(3.0, 3.0, True, False)]
    assert bench.summary(alarms).endswith("alarms 1 right 1 missed 1 false")


@pytest.mark.parametrize("mode", ["factors", "single"])
def test_more_rows_of_the_same_kind_lose_nothing_of_those_before(mode: str) -> None:
    """Where few rows were learned, draws between and beyond them are nobody's: whatever becomes of these is no loss."""
    x, y = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(x))[:1400]
    learner = Learner({"posterior": {"mode": mode}})
    for number, part in enumerate(np.array_split(rows, 4)):
        learner.observe((x[part] / 16).astype("<f4"), y[part], task=f"t{number}")
        learner.boundary(f"t{number}")
    assert abs(float(learner.past()["rise"])) < 0.1
    if mode == "factors":
        assert all(abs(task["penalty_rise"]) < 0.15 for task in learner.tasks())
    assert not learner.past()["at_chance"]


def test_draws_are_as_sure_as_the_rows_that_they_stand_for() -> None:
    outputs = torch.randn(256, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    likelihood = Categorical(5)
    plain, _ = surrogates.as_sure(likelihood, outputs, loss=10.0)
    assert torch.equal(plain, torch.full((256,), 1 / 256, dtype=torch.float64))
    for loss in (0.3, 0.1, 0.001):
        weights, sharper = surrogates.as_sure(likelihood, outputs, loss)
        wanted = surrogates.MORE * loss + surrogates.LEAST
        assert float(weights.sum()) == pytest.approx(1)
        assert float(1 / weights.square().sum()) >= surrogates.FEWEST * 0.99
        assert float(weights @ likelihood.doubt(outputs, sharper)) == pytest.approx(wanted, rel=0.01)
    assert sharper > 1
    ones = surrogates.as_sure(Gaussian(0.1), outputs, loss=-3.0)  # of real outputs none is surer than another
    assert torch.equal(ones[0], plain)
    assert ones[1] == 1.0


@pytest.mark.parametrize("likelihood", [Categorical(3), Bernoulli()])
def test_doubt_and_divergence_are_those_of_the_sharpened_distribution(likelihood: Categorical | Bernoulli) -> None:
    before, after = torch.randn(2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    if isinstance(likelihood, Categorical):
        shares = (2 * before).softmax(1)
        loss = -torch.stack([(shares * each.log_softmax(1)).sum(1) for each in (before, after)])
        expected = -(shares * shares.log()).sum(1)
    else:
        shares = (2 * before).sigmoid()
        loss = torch.stack([binary_cross_entropy_with_logits(e, shares, reduction="none").sum(1) for e in (before, after)])
        expected = -(shares * shares.log() + (1 - shares) * (1 - shares).log()).sum(1)
    torch.testing.assert_close(likelihood.doubt(before, 2.0), expected)
    torch.testing.assert_close(likelihood.divergence(before, after, 2.0), loss[1] - loss[0])
