"""The learner on a GPU: whatever is learned there comes out as on the CPU, and goes on there.

Run where there is CUDA; with STREAMCL_TEST_DEVICE=cpu on the CPU, which rehearses the tests, and =pretended on a device
that only says it is one (`pretend`), which finds what would be computed on two devices at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import devices
import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("zmq", reason="the learner in process needs pyzmq")
pytest.importorskip("msgpack", reason="the learner in process needs msgpack")

from streamcl.core.basis import Basis, Matrix, matrices_in
from streamcl.core.consolidation import assumed_density_filtering, matched_factor, task_precision
from streamcl.core.fisher import Fisher
from streamcl.core.gaussian import Gaussian
from streamcl.core.likelihood import Bernoulli, Categorical
from streamcl.core.likelihood import Gaussian as Normal
from streamcl.core.measures import Moments, SquaresIn
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Precision
from streamcl.estimator import Learner

pytestmark = [pytest.mark.cuda, devices.needed]

FEATURES, CLASSES = 8, 3
NETWORK: dict[str, Any] = {"args": {"hidden": [16]}}
EXACT: dict[str, Any] = {"learner": "exact", "factory": "streamcl.models:identity"}
Data = tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]
CENTRES = np.random.default_rng(1).normal(size=(64, FEATURES)) * 2


@pytest.fixture
def device() -> Iterator[str]:
    """Where to learn."""
    with devices.entered(str(devices.chosen())) as name:
        yield name


def labelled(seed: int, n: int = 96, first: int = 0, classes: int = CLASSES) -> Data:
    rng = np.random.default_rng(seed)
    y = rng.integers(first, first + classes, n)
    return (CENTRES[y] + 0.5 * rng.normal(size=(n, FEATURES))).astype("f4"), y


def real(seed: int, n: int = 96) -> Data:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, FEATURES)).astype("f4")
    return x, (40 + 3 * x[:, 0] - x[:, 1] + 0.1 * rng.normal(size=n)).astype("f4")


def binary(seed: int, n: int = 96) -> Data:
    x, _ = real(seed, n)
    return x, (x[:, :2] > 0).astype("f4")


def learner(device: str, model: dict[str, Any], **sections: dict[str, Any]) -> Learner:
    steps = {} if model.get("learner") == "exact" else {"epochs": 3, "learning_rate": 0.01, "batch_size": 32}
    train = {**steps, **sections.pop("train", {}), "device": device}
    return Learner({"model": model, "train": train, **sections})


def two_tasks(made: Learner, data: Callable[..., Data] = labelled) -> Learner:
    for seed, task in enumerate("ab"):
        made.observe(*data(2 * seed), task=task)
        made.observe(*data(2 * seed + 1), task=task)
        made.boundary(task)
    return made


def answers(made: Learner, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    asked: list[dict[str, Any]] = [{}, {"uncertainty": True}, {"samples": 16}]
    return [array for how in asked for array in made.predict(x, **how).arrays.values()]


def on_both(make: Callable[[str], Learner], device: str, x: np.ndarray[Any, Any], tolerance: float = 0.05) -> None:
    """What is answered on the device is what the CPU answers, up to what rounding does in some steps of training."""
    for found, expected in zip(answers(make(device), x), answers(make("cpu"), x), strict=True):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["auto", "diagonal", "kronecker", "full"])
def test_two_tasks_are_learned_as_on_the_cpu(device: str, curvature: str) -> None:
    x, _ = labelled(9, 12)
    model = {"args": {"hidden": [4]}} if curvature == "full" else NETWORK
    on_both(lambda where: two_tasks(learner(where, model, posterior={"curvature": curvature})), device, x)


@pytest.mark.parametrize("optimizer", ["adam", "sgd", "lbfgs"])
def test_every_optimiser_learns(device: str, optimizer: str) -> None:
    made = two_tasks(learner(device, NETWORK, train={"optimizer": optimizer, "epochs": 10}))
    x, y = labelled(9)
    assert (made.predict(x).probs.argmax(1) == y).mean() > 0.9


def test_the_rate_that_the_stream_chooses_is_learned_with(device: str) -> None:
    made = two_tasks(Learner({"model": NETWORK, "train": {"device": device, "epochs": 3}}))
    x, y = labelled(9)
    assert (made.predict(x).probs.argmax(1) == y).mean() > 0.9


@pytest.mark.parametrize("mode", ["multi-anchor", "online"])
@pytest.mark.parametrize("fisher", ["mc", "empirical"])
def test_every_mode_and_every_fisher_learn(device: str, mode: str, fisher: str) -> None:
    made = two_tasks(learner(device, NETWORK, posterior={"mode": mode, "fisher": fisher}))
    assert all(np.isfinite(array).all() for array in answers(made, labelled(9, 8)[0]))


def test_bfloat16_learns(device: str) -> None:
    made = two_tasks(learner(device, NETWORK, train={"autocast": "bfloat16", "epochs": 10}))
    x, y = labelled(9)
    assert (made.predict(x).probs.argmax(1) == y).mean() > 0.9


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_real_and_binary_targets_come_out_as_on_the_cpu(device: str, likelihood: str) -> None:
    data = real if likelihood == "gaussian" else binary
    model = {**NETWORK, "likelihood": likelihood}
    on_both(lambda where: two_tasks(learner(where, model), data), device, data(9, 12)[0])


@pytest.mark.parametrize("likelihood", ["categorical", "gaussian", "bernoulli"])
def test_an_exact_learner_is_the_same_to_many_digits(device: str, likelihood: str) -> None:
    data = {"categorical": labelled, "gaussian": real, "bernoulli": binary}[likelihood]
    model = {**EXACT, "likelihood": likelihood}
    on_both(lambda where: two_tasks(learner(where, model), data), device, data(9, 12)[0], 1e-6)


def test_random_features_that_fade_are_the_same_to_many_digits(device: str) -> None:
    model = {"learner": "exact", "factory": "streamcl.models:random_features", "args": {"width": 32}}
    x, _ = labelled(9, 12)
    on_both(lambda where: two_tasks(learner(where, model, posterior={"half_life": 100.0})), device, x, 1e-5)


class Attention(nn.Module):
    """Tokens in, by way of an embedding and one encoder layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [n, tokens]."""
        output: torch.Tensor = self.head(self.layer(self.embed(x)).mean(1))
        return output


def test_a_transformer_and_a_convolution_learn(device: str) -> None:
    rng = np.random.default_rng(0)
    train = {"epochs": 2, "learning_rate": 0.01, "device": device}
    tokens = rng.integers(0, 20, (24, 5)), rng.integers(0, CLASSES, 24)
    images = rng.normal(size=(24, 1, 8, 8)).astype("f4"), tokens[1]
    transformer = Learner({"model": {"classes": CLASSES}, "train": train}, Attention())
    convolution = Learner({"model": {"factory": "streamcl.models:convnet", "args": {"channels": [4, 4]}}, "train": train})
    for made, (x, y) in ((transformer, tokens), (convolution, images)):
        made.observe(x, y, task="a")
        made.boundary("a")
        assert all(np.isfinite(array).all() for array in answers(made, x[:4]))


class Recurrent(nn.Module):
    """cuDNN's on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = nn.GRU(FEATURES, 6, batch_first=True)
        self.head = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: [n, steps, FEATURES]."""
        output: torch.Tensor = self.head(self.steps(x)[0][:, -1])
        return output


@pytest.mark.skipif(devices.chosen() == "pretended", reason="a recurrent layer turns its tensors around in place")
@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
def test_a_recurrent_network_learns(device: str, optimizer: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(24, 5, FEATURES)).astype("f4"), rng.integers(0, CLASSES, 24)
    made = Learner(
        {"model": {"classes": CLASSES}, "train": {"epochs": 2, "device": device, "optimizer": optimizer}}, Recurrent()
    )
    made.observe(x, y, task="a")
    assert made.boundary("a")["samples"] == 24
    assert all(np.isfinite(array).all() for array in answers(made, x[:4]))


# -- the life of a stream ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curvature", ["auto", "diagonal"])
def test_a_task_is_revisited_given_up_and_withdrawn(device: str, curvature: str) -> None:
    made = two_tasks(learner(device, NETWORK, posterior={"mode": "factors", "curvature": curvature}))
    made.revisit("a")
    made.observe(*labelled(0), task="a")
    made.boundary("a")
    before = made.predict(labelled(9, 8)[0]).probs
    made.revisit("b")
    made.observe(*labelled(2), task="b")
    made.abandon()
    np.testing.assert_array_equal(made.predict(labelled(9, 8)[0]).probs, before)
    made.forget("b")
    assert [task["task"] for task in made.tasks()] == ["a"]


@pytest.mark.parametrize("model", [NETWORK, EXACT], ids=["network", "exact"])
def test_outputs_grow_with_their_labels(device: str, model: dict[str, Any]) -> None:
    made = learner(device, model, posterior={"mode": "factors"})
    for number in range(3):
        x, y = labelled(number, first=5 * number, classes=5)
        made.observe(x, y, task=str(number))
        made.boundary(str(number))
    found = made.predict(labelled(9, 8)[0], samples=4)
    assert len(set(found.labels)) >= 15
    assert np.isfinite(found.probs).all()


@pytest.mark.parametrize("watched", ["score", "inputs"])
def test_drift_ends_a_task(device: str, watched: str) -> None:
    pytest.importorskip("river", reason="drift is found by River's detectors")
    stream = {"boundary": "drift", "drift_rows": 200, "drift_on": watched}
    made = learner(device, NETWORK, stream=stream)
    for number in range(20):
        x, y = labelled(number, 64)
        made.observe(x if number < 10 else -x, y if number < 10 else CLASSES - 1 - y)
    assert len(made.tasks()) >= 1


@pytest.mark.parametrize("model", [NETWORK, EXACT], ids=["network", "exact"])
@pytest.mark.parametrize("back", [False, True], ids=["from the device", "to the device"])
def test_what_was_saved_on_one_device_goes_on_on_the_other(
    device: str, tmp_path: Path, model: dict[str, Any], back: bool
) -> None:
    first, second = ("cpu", device) if back else (device, "cpu")
    made = two_tasks(learner(first, model))
    made.observe(*labelled(4), task="c")
    made.save(tmp_path / "learner")
    there = moved(tmp_path / "learner", second)
    x, _ = labelled(9, 12)
    for found, expected in zip(answers(there, x), answers(made, x), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    there.observe(*labelled(5), task="c")
    assert there.boundary("c")["samples"] == 192


@pytest.mark.skipif(devices.chosen() == "pretended", reason="other processes know nothing of a pretended device")
def test_a_daemon_learns_there_and_so_does_the_trainer_that_replaces_one(device: str) -> None:
    """Each trainer is forked from a process that must not have touched CUDA."""
    for package in ("prometheus_client", "structlog", "rich"):
        pytest.importorskip(package, reason="a daemon needs it")
    from streamcl.bench.local import LocalDaemon

    train = {"epochs": 3, "learning_rate": 0.01, "batch_size": 32, "device": device}
    with (
        LocalDaemon({"model": NETWORK, "train": train}) as daemon,
        daemon.producer() as producer,
        daemon.reader() as reader,
        daemon.admin() as admin,
    ):
        for number, task in enumerate("ab"):
            producer.send(*labelled(number), task)
            assert producer.boundary(task)
            assert str(admin.status()["device"]).startswith(device)
            os.kill(daemon.children()["trainer"], signal.SIGKILL)
        x, y = labelled(9)
        assert (reader.predict(x).probs.argmax(1) == y).mean() > 0.9
        assert np.isfinite(reader.predict(x[:4], samples=4).probs).all()
        admin.stop(drain=False)


def moved(path: Path, device: str) -> Learner:
    """What was saved, on a device: the file says where it was."""
    return Learner.load(path, device=device)


# -- parts -------------------------------------------------------------------------------------------------------------


def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 12), nn.Tanh(), nn.Linear(12, CLASSES))


def fisher_of(device: str, kind: str, measure: str, likelihood: Any, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    made = module().to(device)
    parameters = FlatParameters(made)
    layout = parameters.layout
    matrices = matrices_in(layout, [("0.weight", "0.bias"), ("2.weight", "2.bias")])
    chosen = {
        "squares": lambda: None,
        "moments": lambda: Moments(layout, matrices),
        "basis": lambda: SquaresIn(layout, basis(layout.size, matrices).to(torch.device(device), torch.float32), []),
    }[measure]()
    found = Fisher(made, parameters, likelihood, kind, measure=chosen)  # type: ignore[arg-type]
    found.add(x.to(device), y.to(device))
    assert found.verified()
    assert found.slow is None
    return found.summed()


def basis(size: int, matrices: list[Matrix]) -> Basis:
    generator = torch.Generator().manual_seed(0)

    def moments(n: int) -> torch.Tensor:
        rows = torch.randn(2 * n, n, dtype=torch.float64, generator=generator)
        return rows.T @ rows

    both = {matrix.key: (moments(matrix.rows), moments(matrix.columns)) for matrix in matrices}
    return Basis.unturned(size).moved(matrices, both)


@pytest.mark.parametrize("measure", ["squares", "moments", "basis"])
@pytest.mark.parametrize(
    "likelihood", [Categorical(CLASSES), Bernoulli(), Normal(0.5)], ids=lambda each: type(each).__name__
)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_the_fisher_is_the_cpus(device: str, kind: str, measure: str, likelihood: Any) -> None:
    x, y = labelled(0, 40)
    targets = torch.tensor(y) if isinstance(likelihood, Categorical) else torch.rand(40, CLASSES)
    found = fisher_of(device, kind, measure, likelihood, torch.tensor(x), targets)
    expected = fisher_of("cpu", kind, measure, likelihood, torch.tensor(x), targets)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max()))


def test_moments_turn_to_the_same_basis_wherever_they_were_summed(device: str) -> None:
    matrices = [Matrix(("w",), ((0, 12 * 400),), 12, 400)]
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(900, 400, dtype=torch.float64, generator=generator) * torch.linspace(0.1, 4, 400)
    left = rows[:, :12].T @ rows[:, :12]

    def found(where: str) -> Basis:
        both = {"w": (left.to(where), (rows.T @ rows).to(where))}
        once = Basis.unturned(4800).moved(matrices, both, {("w", 1)})
        return once.moved(matrices, both, {("w", 1)})

    values = torch.rand(4800, dtype=torch.float64, generator=generator)
    here, there = found("cpu"), found(device)
    assert all(side is not None and side.vectors.device.type == "cpu" for side in there.sides[0])
    torch.testing.assert_close(
        there.diagonal(values.sort().values), here.diagonal(values.sort().values), rtol=1e-6, atol=1e-6
    )


def precisions(where: str) -> list[Precision]:
    """A diagonal, and a diagonal in a basis."""
    generator = torch.Generator().manual_seed(3)
    layout = FlatParameters(module()).layout
    values = torch.rand(layout.size, dtype=torch.float64, generator=generator)
    matrices = matrices_in(layout, [("0.weight", "0.bias"), ("2.weight", "2.bias")])
    turned = Gaussian.prior(values, 1.0, "layered").within(basis(layout.size, matrices))
    plain = Gaussian.prior(values, 1.0)
    return [each.to(torch.device(where), torch.float64).precision for each in (plain, turned)]


@pytest.mark.parametrize("kind", [0, 1], ids=["diagonal", "eigenbasis"])
def test_consolidation_is_the_cpus(device: str, kind: int) -> None:
    def made(where: str) -> list[torch.Tensor]:
        precision = precisions(where)[kind]
        theta = torch.linspace(-1, 1, precision.size, dtype=torch.float64).to(where)
        own = task_precision(precision.weighted(3.0), 10, 20.0)
        cavity = Gaussian.anchored(precision, theta)
        filtered = assumed_density_filtering(cavity, own, theta * 0.5)
        factor = matched_factor(cavity, own, theta * 0.5)
        whole = cavity.times(factor)
        numbers = [filtered.value(theta), whole.value(theta), torch.tensor(whole.penalty(theta))]
        vectors = [
            filtered.shift,
            whole.mean,
            whole.without(factor).shift,
            whole.gradient(theta),
            factor.damped(factor, 0.5).shift,
        ]
        return [each.cpu() for each in (*numbers, *vectors)]

    for found, expected in zip(made(device), made("cpu"), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
