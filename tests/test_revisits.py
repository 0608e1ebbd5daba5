"""Factor mode through the real daemon: debiased factors and Laplace propagation against exact linear-Gaussian answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.client import Admin, Producer
from streamcl.errors import Refused, StreamclError
from streamcl.storage import verified

NOISE, PRIOR, FEATURES, TASKS, ROWS = 0.5, 0.3, 6, 5, 50
ORDERS = {"forwards": [0, 1, 2, 3, 4], "backwards": [4, 3, 2, 1, 0], "mixed": [2, 0, 4, 1, 3]}


def tree(mode: str = "factors", **posterior: Any) -> dict[str, Any]:
    return {
        "model": {"factory": "streamcl.models:linear", "likelihood": "gaussian", "noise_variance": NOISE},
        "train": {"optimizer": "lbfgs", "dtype": "float64", "epochs": 5},
        "posterior": {"prior_precision": PRIOR, "mode": mode, "curvature": "diagonal", "expectation": "mode", **posterior},
    }


def task_data(number: int, dead: bool = False) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(number)
    x = rng.normal(size=(ROWS, FEATURES))
    if dead:
        x[:, 3] = 0.0
    return x, x @ np.linspace(-1, 1, FEATURES) + 0.5 + rng.normal(size=ROWS) * NOISE**0.5


def joint_mean(dead: bool = False, m0: Any = 0.0, tasks: Sequence[int] = range(TASKS)) -> np.ndarray:
    """The exact posterior mean given the data of all tasks at once."""
    precision, shift = PRIOR * np.eye(FEATURES + 1), PRIOR * np.ones(FEATURES + 1) * m0
    for number in tasks:
        x, y = task_data(number, dead)
        a = np.c_[x, np.ones(ROWS)]
        precision, shift = precision + a.T @ a / NOISE, shift + a.T @ y / NOISE
    return np.linalg.solve(precision, shift)


def learn(producer: Producer, number: int, dead: bool = False, weight: float | None = None) -> dict[str, Any]:
    x, y = task_data(number, dead)
    for rows in np.array_split(np.arange(ROWS), 3):
        producer.send(x[rows], y[rows], f"task-{number}")
    return producer.boundary(f"task-{number}", weight=weight)


def sweep(producer: Producer, order: Sequence[int], damping: float | None, dead: bool = False) -> None:
    for number in order:
        producer.revisit(f"task-{number}", damping)
        assert learn(producer, number, dead)["kind"] == "revisit"


def mean_of(admin: Admin) -> np.ndarray:
    got = admin.parameters()
    return got.shift / got.precision


def factor_files(daemon: LocalDaemon) -> list[tuple[np.ndarray, np.ndarray]]:
    """Precision and shift of every standing factor, read from its own file."""
    saved = [verified.load(path).tensors for path in sorted((daemon.state_dir / "factors").glob("*.factor"))]
    return [(tensors["precision"], tensors["shift"]) for tensors in saved]


@pytest.mark.parametrize(
    "case",
    [
        "plain",
        *(
            pytest.param(case, marks=pytest.mark.campaign)
            for case in ("dead feature", "weight", "prior at the initial weights")
        ),
    ],
)
def test_the_sum_of_the_factors_is_the_single_penalty(start: Callable[..., LocalDaemon], case: str) -> None:
    dead, weight = case == "dead feature", 7.0 if case == "weight" else None
    options = {"prior_mean": "init"} if "initial" in case else {}
    single, factored = start(tree("single", **options), "single"), start(tree(**options), "factors")
    prior_shift: Any = 0.0
    for daemon in (single, factored):
        with daemon.producer() as producer:
            if "initial" in case:
                producer.send(*task_data(0), "task-0")
                producer.flush()
                with daemon.admin() as admin:
                    admin.checkpoint()
                    prior_shift = PRIOR * admin.parameters().theta
                producer.boundary("task-0", weight=weight)
            for number in range(1 if "initial" in case else 0, TASKS):
                learn(producer, number, dead, weight)
    with single.admin() as one, factored.admin() as many:
        expected, got = one.parameters(), many.parameters()
        precisions, shifts = zip(*factor_files(factored), strict=True)
    assert len(precisions) == TASKS
    np.testing.assert_allclose(got.precision, expected.precision, rtol=1e-10)
    np.testing.assert_allclose(got.shift, expected.shift, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(PRIOR + np.sum(precisions, axis=0), expected.precision, rtol=1e-10)
    np.testing.assert_allclose(prior_shift + np.sum(shifts, axis=0), expected.shift, rtol=1e-10, atol=1e-10)


@pytest.mark.campaign
@pytest.mark.parametrize(("order", "damping", "sweeps"), [(order, 1.0, 10) for order in ORDERS] + [("mixed", None, 40)])
def test_sweeps_of_revisits_end_at_the_joint_posterior_mean(
    start: Callable[..., LocalDaemon], order: str, damping: float | None, sweeps: int
) -> None:
    """Ten undamped sweeps in any order; damped by the default of one half, which takes longer."""
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        for number in range(TASKS):
            learn(producer, number)
        assert np.abs(mean_of(admin) - joint_mean()).max() > 1e-4  # one pass is not there
        for _ in range(sweeps):
            sweep(producer, ORDERS[order], damping)
        np.testing.assert_allclose(mean_of(admin), joint_mean(), rtol=1e-8, atol=1e-8)
        assert [task["revisits"] for task in admin.tasks()] == [sweeps] * TASKS


@pytest.mark.campaign
@pytest.mark.parametrize("case", ["dead feature", "scale", "prior at the initial weights"])
def test_the_joint_mean_is_reached_also_when(start: Callable[..., LocalDaemon], case: str) -> None:
    dead, m0 = case == "dead feature", 0.0
    daemon = start(tree(**({"scale": 1.7} if case == "scale" else {"prior_mean": "init"} if "prior" in case else {})))
    with daemon.producer() as producer, daemon.admin() as admin:
        for number in range(TASKS):
            if number == 0 and "prior" in case:
                producer.send(*task_data(0), "task-0")
                producer.flush()
                admin.checkpoint()
                m0 = admin.parameters().theta
                producer.boundary("task-0")
            else:
                learn(producer, number, dead)
        for _ in range(12):
            sweep(producer, ORDERS["mixed"], 1.0, dead)
        np.testing.assert_allclose(mean_of(admin), joint_mean(dead, m0), rtol=1e-8, atol=1e-8)


def test_a_withdrawn_task_leaves_the_posterior_of_the_others(start: Callable[..., LocalDaemon]) -> None:
    """The totals are those of the other factors at once, the mean that of the others' data after sweeps over them."""
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        for number in range(TASKS):
            learn(producer, number)
        before, theta = factor_files(daemon), admin.parameters().theta
        assert admin.forget("task-1")["kind"] == "forget"
        after = admin.parameters()
        rest = [factor for number, factor in enumerate(before) if number != 1]
        np.testing.assert_allclose(after.precision, PRIOR + sum(p for p, _ in rest), rtol=1e-12)
        np.testing.assert_allclose(after.shift, sum(s for _, s in rest), rtol=1e-12, atol=1e-12)
        np.testing.assert_array_equal(after.theta, theta)  # said so in the docs
        assert [task["task"] for task in admin.tasks()] == ["task-0", "task-2", "task-3", "task-4"]
        assert not any(row["task"] == "task-1" for row in admin.history())
        assert 'streamcl_task_penalty{task="task-1"}' not in admin.metrics()
        with pytest.raises(Refused, match="withdrawn"):
            admin.forget("task-1")
        for _ in range(7):
            sweep(producer, [0, 2, 3, 4], 1.0)
        np.testing.assert_allclose(mean_of(admin), joint_mean(tasks=[0, 2, 3, 4]), rtol=1e-8, atol=1e-8)
    daemon.stop()
    daemon.start()
    with daemon.admin() as admin, pytest.raises(Refused, match="withdrawn"):
        admin.forget("task-1")


def test_an_abandoned_revisit_leaves_everything_as_it_was(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin, daemon.reader() as reader:
        for number in range(3):
            learn(producer, number)
        x = task_data(9)[0]
        before, predicted, factors = admin.parameters(), reader.predict(x).mean, factor_files(daemon)
        producer.revisit("task-0")
        producer.send(*task_data(7), "task-0")
        producer.flush()
        assert admin.status()["task"] == "task-0"
        admin.abandon("task-0")
        after = admin.parameters()
        for name in ("theta", "precision", "shift"):
            np.testing.assert_array_equal(getattr(after, name), getattr(before, name))
        np.testing.assert_array_equal(reader.predict(x).mean, predicted)
        assert not list((daemon.state_dir / "log").glob("*.seg"))
        for (p0, s0), (p1, s1) in zip(factors, factor_files(daemon), strict=True):
            np.testing.assert_array_equal(p0, p1)
            np.testing.assert_array_equal(s0, s1)
        with pytest.raises(Refused, match="no"):
            admin.abandon()
        sweep(producer, [0], 1.0)  # and the task may be revisited after all


@pytest.mark.campaign
def test_new_data_of_a_task_replaces_the_old(start: Callable[..., LocalDaemon]) -> None:
    """The note's footnote 2: a revisit with other draws; undamped, nothing of the first draws is left."""
    daemon = start(tree())
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*task_data(8), "task-0")
        producer.boundary("task-0")
        for number in range(1, TASKS):
            learn(producer, number)
        for _ in range(8):
            sweep(producer, ORDERS["forwards"], 1.0)  # task 0 is now fed task_data(0)
        np.testing.assert_allclose(mean_of(admin), joint_mean(), rtol=1e-8, atol=1e-8)


def test_online_ewc_decays_and_may_be_fed_again(start: Callable[..., LocalDaemon]) -> None:
    """Schwarz et al.: what was before is decayed by gamma before each task, revisits included."""
    gamma = 0.8
    daemon = start(tree("online", gamma=gamma))
    precision, mean = np.full(FEATURES + 1, PRIOR), np.zeros(FEATURES + 1)
    with daemon.producer() as producer, daemon.admin() as admin:
        for number in (0, 1, 0):
            if number == 0 and mean.any():
                producer.revisit("task-0")
            learn(producer, number)
            x, y = task_data(number)
            a = np.c_[x, np.ones(ROWS)]
            precision = PRIOR + gamma * (precision - PRIOR)
            mean = np.linalg.solve(np.diag(precision) + a.T @ a / NOISE, precision * mean + a.T @ y / NOISE)
            precision = precision + (a**2).sum(0) / NOISE
            got = admin.parameters()
            np.testing.assert_allclose(got.precision, precision, rtol=1e-9)
            np.testing.assert_allclose(got.theta, mean, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(got.shift, precision * mean, rtol=1e-7, atol=1e-9)
        assert [task["revisits"] for task in admin.tasks()] == [1, 0]


def test_multi_anchor_ewc_counts_early_tasks_again(start: Callable[..., LocalDaemon]) -> None:
    """Kirkpatrick et al.: a penalty at every optimum. It stays away from the joint mean; the reference is NumPy."""
    daemon = start(tree("multi-anchor"))
    precision, shift = np.full(FEATURES + 1, PRIOR), np.zeros(FEATURES + 1)
    with daemon.producer() as producer, daemon.admin() as admin:
        for number in range(TASKS):
            learn(producer, number)
            x, y = task_data(number)
            a = np.c_[x, np.ones(ROWS)]
            theta = np.linalg.solve(np.diag(precision) + a.T @ a / NOISE, shift + a.T @ y / NOISE)
            fisher = (a**2).sum(0) / NOISE
            precision, shift = precision + fisher, shift + fisher * theta
        got = admin.parameters()
    np.testing.assert_allclose(got.theta, theta, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(got.precision, precision, rtol=1e-9)
    np.testing.assert_allclose(got.shift, shift, rtol=1e-7, atol=1e-9)


# -- crashes -----------------------------------------------------------------------------------------------------------

CLASSES: dict[str, Any] = {
    "model": {"args": {"hidden": [64]}, "classes": 4},  # on the defaults: both layers have a basis
    "train": {"epochs": 3, "learning_rate": 0.01},
    "posterior": {"mode": "factors", "scale": 3.0},
}


def class_rows(seed: int, n: int = 96) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 4, n)
    return (rng.normal(size=(n, 5)) + y[:, None]).astype("<f4"), y


def revisiting(daemon: LocalDaemon, between: Callable[[int], None] = lambda number: None) -> None:
    """Three tasks, a revisit of the first, an abandoned one of the second, the last withdrawn; `between` after each."""

    def feed(task: int, seed: int, producer: Producer) -> None:
        for part in range(2):
            producer.send(*class_rows(seed + part), f"task-{task}")
            producer.flush()
            between(next(numbers))

    numbers = iter(range(1, 100))
    with daemon.producer(timeout=120) as producer:
        for task in range(3):
            feed(task, 10 * task, producer)
            producer.boundary(f"task-{task}", wait=False)
            between(next(numbers))
        producer.revisit("task-0", 0.7)
        between(next(numbers))
        feed(0, 0, producer)
        producer.boundary("task-0", wait=False)
        between(next(numbers))
        producer.revisit("task-1")
        between(next(numbers))
        feed(1, 50, producer)
    with daemon.admin() as admin:
        admin.abandon("task-1")
        between(next(numbers))
        admin.forget("task-2")
        between(next(numbers))
        admin.checkpoint()


def outcome(daemon: LocalDaemon) -> list[Any]:
    with daemon.admin() as admin:
        got, tasks = admin.parameters(), admin.tasks()
    shown = [{name: task[name] for name in ("task", "samples", "revisits", "loss", "penalty_rise")} for task in tasks]
    return [got.theta.tolist(), got.precision.tolist(), got.shift.tolist(), shown, files_of(daemon)]


def files_of(daemon: LocalDaemon) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (daemon.state_dir / "factors").iterdir()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    with LocalDaemon(CLASSES, tmp_path_factory.mktemp("whole") / "state") as daemon:
        revisiting(daemon)
        return outcome(daemon)


@pytest.mark.campaign
@pytest.mark.parametrize("moments", [(3, 9, 10, 11), (12, 13, 14), (8, 15, 16), (17, 18)])
def test_killed_in_revisits_it_ends_with_the_same_bits(
    start: Callable[..., LocalDaemon], undisturbed: list[Any], moments: tuple[int, ...]
) -> None:
    """kill -9 of the whole daemon behind given messages: within revisits, boundaries, before and after an abandon."""
    daemon = start(CLASSES)

    def between(number: int) -> None:
        if number in moments:
            daemon.kill()
            daemon.start()

    revisiting(daemon, between)
    assert outcome(daemon) == undisturbed


def test_predictions_do_not_change_before_a_revisit_is_done(start: Callable[..., LocalDaemon]) -> None:
    """Served parameters never mix: during the revisit, and after a restart in it, they are the earlier ones."""
    daemon = start(CLASSES)
    x = class_rows(99)[0]
    with daemon.producer() as producer, daemon.reader() as reader, daemon.admin() as admin:
        for task in range(2):
            producer.send(*class_rows(task), f"task-{task}")
            producer.boundary(f"task-{task}")
        before = reader.predict(x).probs
        producer.revisit("task-0")
        producer.send(*class_rows(0), "task-0")
        producer.flush()
        while admin.checkpoint()["batches_applied"] < 3:
            pass
        assert admin.status()["state"] == "revisiting"
        np.testing.assert_array_equal(reader.predict(x).probs, before)
        daemon.kill()
        daemon.start()
        admin.checkpoint()
        np.testing.assert_array_equal(reader.predict(x).probs, before)
        producer.boundary("task-0")
        assert np.abs(reader.predict(x).probs - before).max() > 1e-4


def test_a_missing_or_damaged_factor_stops_the_revisit_that_needs_it(start: Callable[..., LocalDaemon]) -> None:
    daemon = start(CLASSES)
    with daemon.producer() as producer:
        for task in range(2):
            producer.send(*class_rows(task), f"task-{task}")
            producer.boundary(f"task-{task}")
    assert daemon.stop() == 0
    path = sorted((daemon.state_dir / "factors").glob("*.factor"))[1]
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(StreamclError, match=path.name):
        daemon.start()


def test_tasks_are_ranked_by_what_a_revisit_would_repay(start: Callable[..., LocalDaemon]) -> None:
    daemon = start({**CLASSES, "posterior": {"mode": "factors", "scale": 0.1}})  # it forgets
    with daemon.producer() as producer, daemon.admin() as admin:
        for task in range(3):
            x, y = class_rows(task)
            producer.send(np.roll(x, task, axis=1) * (-1) ** task, (y + task) % 4, f"task-{task}")
            producer.boundary(f"task-{task}")
        tasks = {task["task"]: task for task in admin.tasks()}
        rises = {name: task["penalty_rise"] for name, task in tasks.items()}
        assert rises["task-2"] == 0
        assert min(rises["task-0"], rises["task-1"]) > 0
        best = max(rises, key=rises.__getitem__)
        assert tasks[best]["revisit_rank"] == 1
        assert f"{rises[best]:.3g} nats a sample" in tasks[best]["revisit_reason"]
        assert tasks["task-2"]["revisit_rank"] is None
        metrics = admin.metrics()
        for name, rise in rises.items():
            assert metrics[f'streamcl_task_penalty_rise{{task="{name}"}}'] == rise
            assert metrics[f'streamcl_task_penalty{{task="{name}"}}'] == tasks[name]["penalty"]
        history = admin.history()
        assert [row["task"] for row in history] == ["task-0", "task-0", "task-1", "task-0", "task-1", "task-2"]
        assert {row["task"]: row["penalty_rise"] for row in history[3:]} == rises
        daemon.kill()
        daemon.start()
        assert {task["task"]: task["penalty_rise"] for task in admin.tasks()} == rises
