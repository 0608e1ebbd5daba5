"""Exact learners through the real daemon: any order, crashes, revisits, withdrawal, new labels, what operators see."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import BayesianRidge, Ridge

from streamcl import Learner
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.errors import ConfigError, Refused

Start = Callable[..., LocalDaemon]
X, Y = load_digits(return_X_y=True)
IDENTITY = "streamcl.models:identity"


def exact(likelihood: str = "categorical", posterior: dict[str, Any] | None = None, **model: Any) -> dict[str, Any]:
    return {
        "model": {"learner": "exact", "likelihood": likelihood, **model},
        "train": {"dtype": "float64"},
        "posterior": posterior or {},
    }


def pairs(task: int) -> tuple[np.ndarray, np.ndarray]:
    rows = task == Y // 2
    return X[rows], Y[rows]


def feed(daemon: LocalDaemon, tasks: list[int], cut: int = 70) -> None:
    with daemon.producer() as producer:
        for task in tasks:
            x, y = pairs(task)
            for start in range(0, len(x), cut):
                producer.send(x[start : start + cut], y[start : start + cut], f"task-{task}")
            producer.boundary(f"task-{task}")


def probs(daemon: LocalDaemon, x: np.ndarray = X) -> np.ndarray:
    """By label, whatever the order in which labels came."""
    with daemon.reader() as reader:
        found = reader.predict(x)
    assert found.labels is not None
    return found.probs[:, np.argsort(found.labels)]


def test_classes_come_in_any_order_and_no_number_of_them_is_set(start: Start) -> None:
    one, other = start(exact(factory=IDENTITY, classes=2), "one"), start(exact(factory=IDENTITY), "other")
    feed(one, [0, 1, 2, 3, 4])
    feed(other, [3, 1, 4, 0, 2], cut=111)
    np.testing.assert_allclose(probs(one), probs(other), atol=1e-10)
    assert (probs(one).argmax(1) == Y).mean() > 0.95
    whole = Learner(exact(factory=IDENTITY))
    whole.observe(X, Y)
    whole.boundary()
    found = whole.predict(X)
    np.testing.assert_allclose(probs(one), found.probs[:, np.argsort(found.labels)], atol=1e-10)


def test_without_a_prior_the_daemons_classes_are_scikit_learns(start: Start) -> None:
    kept = X.std(0) > 0
    daemon = start(exact(factory=IDENTITY, posterior={"prior_precision": 1e-9}))
    with daemon.producer() as producer:
        for part in np.array_split(np.arange(len(X)), 9):
            producer.send(X[part][:, kept], Y[part], "all")
        producer.boundary("all")
    theirs = LinearDiscriminantAnalysis(solver="lsqr").fit(X[:, kept], Y)
    np.testing.assert_allclose(probs(daemon, X[:, kept]), theirs.predict_proba(X[:, kept]), atol=1e-8)


def test_real_targets_are_bayesian_least_squares(start: Start) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(500, 7)) + 2
    y = x @ rng.normal(size=(7, 2)) + rng.normal(size=(500, 2)) * [0.3, 2.0] + [5, -100]
    daemon = start(exact("gaussian", factory=IDENTITY))
    with daemon.producer() as producer:
        for task, part in enumerate(np.array_split(np.arange(500), 4)):
            producer.send(x[part], y[part], f"t{task}")
            done = producer.boundary(f"t{task}")
    for k in range(2):
        theirs = BayesianRidge(alpha_1=0, alpha_2=0, lambda_1=0, lambda_2=0, tol=1e-14, max_iter=10**5).fit(x, y[:, k])
        mean, deviation = theirs.predict(x[:20], return_std=True)
        with daemon.reader() as reader:
            found = reader.predict(x[:20], uncertainty=True)
            plain = reader.predict(x[:20])
        np.testing.assert_allclose(found.mean[:, k], mean, atol=1e-8)
        np.testing.assert_allclose(plain.mean[:, k], mean, atol=1e-8)
        np.testing.assert_allclose(plain.variance[:, k], 1 / theirs.alpha_, rtol=1e-8)
        # the intercept's own uncertainty is counted here, and not there
        np.testing.assert_allclose(found.variance[:, k], deviation**2 + 1 / theirs.alpha_ / 500, rtol=1e-8)
    noise = plain.variance[0]
    nll = (0.5 * np.log(2 * np.pi * noise) + (y[part] - daemon_mean(daemon, x[part])) ** 2 / (2 * noise)).sum(1).mean()
    assert done["loss"] == pytest.approx(nll, rel=1e-8)


def daemon_mean(daemon: LocalDaemon, x: np.ndarray) -> np.ndarray:
    with daemon.reader() as reader:
        return reader.predict(x).mean


def test_with_prior_and_noise_given_parameters_are_ridges(start: Start) -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, 5)) + 1, rng.normal(size=80)
    daemon = start(exact("gaussian", factory=IDENTITY, noise_variance=0.5, posterior={"prior_precision": 0.3}))
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(x, y, "t", boundary=True)
        producer.flush()
        admin.checkpoint()
        found = admin.parameters()
    theirs = Ridge(alpha=0.15, solver="cholesky").fit(x, y)
    np.testing.assert_allclose(found.theta, [*theirs.coef_, theirs.intercept_], atol=1e-8)
    a = np.c_[x, np.ones(80)]
    matrix = a.T @ a / 0.5 + np.diag([0.3] * 5 + [0.0])
    np.testing.assert_allclose(found.precision, np.diag(matrix), rtol=1e-8)
    np.testing.assert_allclose(found.shift, matrix @ found.theta, rtol=1e-7)


def test_a_withdrawn_task_has_never_been(start: Start) -> None:
    with_it = start(exact(posterior={"mode": "factors"}, args={"width": 150}), "with")
    without = start(exact(posterior={"mode": "factors"}, args={"width": 150}), "without")
    feed(with_it, [0, 1, 2, 3])
    feed(without, [0, 2, 3])
    with with_it.admin() as admin:
        admin.forget("task-1")
        admin.checkpoint()
    for seen in (0, 1, 4, 5, 6, 7):
        x = X[seen == Y]
        known = [0, 1, 4, 5, 6, 7]
        np.testing.assert_allclose(probs(with_it, x)[:, known], probs(without, x), atol=1e-8)
    assert probs(with_it)[:, 2:4].max() < 1e-8
    with pytest.raises(Refused, match="task_closed"), with_it.producer(name="again") as producer:
        producer.send(*pairs(1), "task-1")
        producer.flush()


def test_a_revisit_puts_new_sums_in_the_place_of_a_tasks(start: Start) -> None:
    daemon = start(exact(posterior={"mode": "factors"}, factory=IDENTITY), "wrong")
    plain = start(exact(factory=IDENTITY), "right")
    with daemon.producer() as producer:
        for task in range(3):
            x, y = pairs(task)
            producer.send(x, y if task else y[::-1], f"task-{task}")
            producer.boundary(f"task-{task}")
        before = probs(daemon)
        producer.revisit("task-0")
        producer.send(*pairs(0), "task-0")
        producer.flush()
        np.testing.assert_array_equal(probs(daemon), before)  # until its boundary
        done = producer.boundary("task-0")
    assert done["kind"] == "revisit"
    feed(plain, [0, 1, 2])
    np.testing.assert_allclose(probs(daemon), probs(plain), atol=1e-10)


@pytest.mark.parametrize("factory", [IDENTITY, pytest.param("streamcl.models:random_features", marks=pytest.mark.campaign)])
def test_a_kill_between_any_batches_changes_no_bit(start: Start, factory: str) -> None:
    args = {"width": 120} if factory.endswith("features") else {}
    tree = exact(posterior={"mode": "factors", "half_life": 900.0}, factory=factory, args=args)
    killed, calm = start(tree, "killed"), start(tree, "calm")
    x, y = X[:900], Y[:900]
    for daemon in (killed, calm):
        for number, part in enumerate(np.array_split(np.arange(len(x)), 9)):
            with daemon.producer(name="p") as producer:
                producer.send(x[part], y[part], f"task-{number // 4}")
                if number % 4 == 3:
                    producer.boundary(f"task-{number // 4}")
                producer.flush()
            if daemon is killed and number in (0, 1, 4, 6):
                if number == 4:
                    with daemon.admin() as admin:
                        admin.checkpoint()
                daemon.kill()
                daemon.start()
    with killed.admin() as one, calm.admin() as other:
        one.checkpoint()
        other.checkpoint()
        np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)
        np.testing.assert_array_equal(one.parameters().precision, other.parameters().precision)
        assert one.status()["prequential"] == other.status()["prequential"]


@pytest.mark.campaign
def test_new_labels_come_in_the_hundredth_task_without_a_restart(start: Start) -> None:
    rng = np.random.default_rng(0)
    daemon = start(exact(factory=IDENTITY))
    with daemon.producer() as producer:
        for task in range(100):
            y = np.full(6, 7 * task - 50)
            producer.send(rng.normal(size=(6, 3)) + np.array([task, 0, 0]), y, f"t{task}")
            producer.boundary(f"t{task}")
    with daemon.admin() as admin:
        admin.checkpoint()
        assert admin.status()["tasks"] == 100
    with daemon.reader() as reader:
        found = reader.predict(np.array([[99.0, 0, 0], [3.0, 0, 0]]))
    assert sorted(found.labels) == [7 * task - 50 for task in range(100)]
    assert abs(int(found.labels[found.probs[0].argmax()]) - 643) <= 14
    np.testing.assert_allclose(found.probs.sum(1), 1, rtol=1e-12)


def test_operators_see_what_they_see_of_a_network(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    daemon = start(exact(posterior={"mode": "factors"}, args={"width": 100}))
    feed(daemon, [0, 1, 2])
    with daemon.admin() as admin:
        admin.checkpoint()
        status, tasks = admin.status(), admin.tasks()
        assert status["curvature"]["setting"] == "exact"
        assert status["parameters"] == 6 * 101
        assert [task["samples"] for task in tasks] == [len(pairs(k)[0]) for k in range(3)]
        assert status["prequential"]["overall"]["accuracy"] > 0.5
        assert admin.versions()
        assert main(["status", "--state-dir", str(daemon.state_dir)]) == 0
        assert "100" in next(line for line in capsys.readouterr().out.splitlines() if "features" in line)
        admin.rollback("task-2")
        assert [task["task"] for task in admin.tasks()] == ["task-0", "task-1"]
    feed(daemon, [3])
    assert (probs(daemon, X[Y < 4]).argmax(1) == Y[Y < 4]).mean() > 0.95


def test_a_tasks_rise_is_what_its_own_sums_say(start: Start) -> None:
    rng = np.random.default_rng(0)
    daemon = start(exact("gaussian", factory=IDENTITY, posterior={"mode": "factors"}))
    data = [(x := rng.normal(size=(60, 3)), x @ rng.normal(size=3) + rng.normal(size=60)) for _ in range(2)]

    def loss() -> float:
        with daemon.reader() as reader:
            found = reader.predict(data[0][0])
        return float(
            (0.5 * np.log(2 * np.pi * found.variance) + (data[0][1] - found.mean) ** 2 / (2 * found.variance)).mean()
        )

    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(*data[0], "a")
        done = producer.boundary("a")
        assert done["loss"] == pytest.approx(loss(), rel=1e-9)
        producer.send(*data[1], "b")
        producer.boundary("b")
        admin.checkpoint()
        rise = next(task for task in admin.tasks() if task["task"] == "a")["penalty_rise"]
    assert rise == pytest.approx(loss() - done["loss"], rel=1e-8)
    assert rise > 0.1


@pytest.mark.campaign
def test_a_state_directory_of_a_network_is_not_taken_for_an_exact_learners(start: Start, tmp_path: Path) -> None:
    daemon = start({"model": {"args": {"hidden": [4]}}}, "network")
    feed(daemon, [0])
    daemon.stop()
    run = [sys.executable, "-m", "streamcl", "serve", "--state_dir", str(daemon.state_dir), "--model.learner", "exact"]
    run += [word for socket in ("stream", "predict", "admin") for word in (f"--endpoints.{socket}", "tcp://127.0.0.1:0")]
    run += ["--endpoints.http", "127.0.0.1:0"]
    found = subprocess.run(run, capture_output=True, text=True, timeout=120)
    assert found.returncode != 0
    assert "model.learner was 'network', is 'exact'" in found.stderr


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"model": {"learner": "exact"}, "train": {"epochs": 3}}, "train.epochs: has no effect with model.learner exact"),
        ({"model": {"learner": "exact"}, "posterior": {"mode": "online"}}, "expected single or factors"),
        ({"posterior": {"half_life": 5.0}}, "a half-life is an exact learner's"),
        ({"model": {"learner": "exact"}, "posterior": {"curvature": "diagonal"}}, "posterior.curvature"),
    ],
)
def test_keys_that_say_nothing_to_a_learner_are_refused(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Learner(tree)
