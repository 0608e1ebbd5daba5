"""Predictions with what the posterior leaves open, through the daemon and in process: widths, bits, refusals, notes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from streamcl import Learner, Producer, Reader, Refused
from streamcl.bench.calibration import calibration_error
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.core.tempering import FEWEST, TAUS

TREE: dict[str, Any] = {"model": {"args": {"hidden": [8]}, "classes": 3}, "train": {"epochs": 3, "device": "cpu"}}
WAYS: list[dict[str, Any]] = [{"samples": 20}, {"uncertainty": True}]


def rows(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (rng.normal(size=(n, 4)) + 2 * np.eye(4)[y]).astype("<f4"), y


def with_tau(learner: Learner, tau: float) -> None:
    """Make it the one that the rows predict best with."""
    posterior = learner._learner.model.posterior
    assert posterior is not None
    assert posterior.total.tempering is not None
    sums = posterior.total.tempering.clone()
    sums[1:3] = torch.where(torch.tensor(TAUS) == tau, -1.0, 1e6 * sums[0])
    sums[2] = sums[1].square() / sums[0]
    sums *= FEWEST
    posterior.total = dataclasses.replace(posterior.total, tempering=sums)


def taught(tree: dict[str, Any] = TREE) -> Learner:
    learner = Learner(tree)
    learner.observe(*rows(0), task="a")
    learner.boundary("a")
    return learner


def linear(input_shape: Any, outputs: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(int(np.prod(input_shape)), outputs)


@pytest.mark.parametrize("how", WAYS)
def test_the_daemon_answers_as_the_learner_does_and_twice_the_same(start: Callable[..., LocalDaemon], how: Any) -> None:
    daemon, x = start(TREE), rows(1)[0]
    with Producer(daemon.endpoints["stream"], producer="p") as producer:
        producer.send(*rows(0), task="a")
        producer.boundary("a")
    with Reader(daemon.endpoints["predict"]) as reader:
        one, other, plain = reader.predict(x, **how), reader.predict(x, **how), reader.predict(x)
    np.testing.assert_array_equal(one.probs, other.probs)
    np.testing.assert_allclose(one.probs.sum(1), 1, rtol=1e-5)
    assert one.note is not None
    assert "tau" in one.note
    assert plain.note is None
    np.testing.assert_array_equal(one.probs, taught().predict(x, **how).probs)


def test_both_ways_at_once_are_refused_on_the_wire(start: Callable[..., LocalDaemon], connect: Callable[..., Any]) -> None:
    client = connect(start(TREE).endpoints["predict"])
    answer = client.ask("predict", {"x": rows(0)[0]}, samples=3, uncertainty=True)
    assert (answer["code"], "ask for one" in answer["message"]) == ("bad_header", True)
    with pytest.raises(Refused, match="ask for one"):
        taught().predict(rows(0)[0], samples=3, uncertainty=True)


@pytest.mark.parametrize("curvature", ["auto", "diagonal", "full"])
def test_far_from_all_rows_it_is_less_sure(curvature: str) -> None:
    learner, x = taught({**TREE, "posterior": {"curvature": curvature}}), 30 * rows(1)[0]
    with_tau(learner, 1.0)
    plain, (draws, closed) = learner.predict(x).probs.max(1), [learner.predict(x, **how).probs.max(1) for how in WAYS]
    assert closed.mean() < plain.mean() - 0.02
    assert draws.mean() < plain.mean() - 0.02
    np.testing.assert_array_equal(learner.predict(x, uncertainty=True).label, learner.predict(x).label)


def test_without_any_width_it_is_the_plain_prediction_and_says_so() -> None:
    learner, x = taught(), rows(1)[0]
    with_tau(learner, 0.0)
    for how in WAYS:
        found = learner.predict(x, **how)
        np.testing.assert_allclose(found.probs, learner.predict(x).probs, rtol=1e-6)
        assert found.note is not None
        assert found.note.startswith("tau = 0")


def test_before_any_boundary_and_in_older_states_the_width_is_the_posteriors_own_and_said() -> None:
    learner = Learner(TREE)
    learner.observe(*rows(0), task="a")
    found = learner.predict(rows(1)[0], uncertainty=True)
    assert found.note is not None
    assert "no task's rows" in found.note


def test_the_width_is_kept_in_a_file_and_grows_with_tasks(tmp_path: Path) -> None:
    learner, x = taught(), rows(1)[0]
    learner.observe(*rows(2), task="b")
    learner.boundary("b")
    posterior = learner._learner.model.posterior
    assert posterior is not None
    assert posterior.total.tempering is not None
    assert float(posterior.total.tempering[0, 0]) == 120
    learner.save(tmp_path / "kept")
    for how in WAYS:
        np.testing.assert_array_equal(
            Learner.load(tmp_path / "kept").predict(x, **how).probs, learner.predict(x, **how).probs
        )


def test_a_linear_gaussian_models_variance_is_exact() -> None:
    tree = {
        "model": {"factory": f"{__name__}:linear", "likelihood": "gaussian", "noise_variance": 0.25},
        "train": {"epochs": 300, "dtype": "float64", "device": "cpu"},
        "posterior": {"curvature": "full"},
    }
    learner, rng = Learner(tree), np.random.default_rng(0)
    x = rng.normal(size=(80, 3))
    learner.observe(x, x @ [1.0, -2.0, 0.5] + 0.5 * rng.normal(size=80), task="a")
    learner.boundary("a")
    held = rng.normal(size=(9, 3))
    inputs, asked = (np.hstack([each, np.ones((len(each), 1))]) for each in (x, held))
    covariance = np.linalg.inv(inputs.T @ inputs / 0.25 + np.eye(4))
    expected = 0.25 + np.einsum("ni,ij,nj->n", asked, covariance, asked)
    np.testing.assert_allclose(learner.predict(held, uncertainty=True).variance.reshape(-1), expected, rtol=1e-8)
    draws = learner.predict(held, samples=1000)
    np.testing.assert_allclose(draws.variance.reshape(-1), expected, rtol=0.02)


def test_a_covariance_beyond_memory_is_refused() -> None:
    learner = Learner({"model": {"factory": f"{__name__}:linear", "likelihood": "gaussian"}, "train": {"device": "cpu"}})
    x = np.zeros((2, 1), "<f4")
    learner.observe(x, np.zeros((2, 7000), "<f4"), task="a")
    with pytest.raises(Refused, match="uncertainty=True") as refused:
        learner.predict(x, samples=2)
    assert refused.value.code == "too_large"


def test_the_command_line_asks_for_it(start: Callable[..., LocalDaemon], tmp_path: Path, capsys: Any) -> None:
    daemon = start(TREE)
    with Producer(daemon.endpoints["stream"], producer="p") as producer:
        producer.send(*rows(0), task="a")
        producer.boundary("a")
    x, y = rows(1)
    np.savez(tmp_path / "held.npz", x=x, y=y)
    asked = ["predict", str(tmp_path / "held.npz"), "--predict", daemon.endpoints["predict"], "--json"]
    main([*asked, "--uncertainty"])
    out = capsys.readouterr()
    np.testing.assert_allclose(json.loads(out.out)["probs"], taught().predict(x, uncertainty=True).probs, rtol=1e-6)
    assert "tau" in out.err


def test_calibration_is_what_is_claimed_less_what_comes_true() -> None:
    assert calibration_error(np.array([0.9, 0.9, 0.6, 0.6]), np.array([1, 1, 1, 0])) == pytest.approx(0.1)


def test_the_table_is_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "calibration", "--only", "digits, 50", "--json", str(tmp_path / "figures.json")])
    (row,) = json.loads((tmp_path / "figures.json").read_text())["results"]
    assert row["closed"]["nll"] < row["plain"]["nll"] + 0.02
    assert row["draws"]["nll"] < row["plain"]["nll"] + 0.02
    assert "digits, 50 rows" in capsys.readouterr().out
