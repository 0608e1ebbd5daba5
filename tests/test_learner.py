"""The learner and its optimiser without a daemon: when training stops, what keeps it stable, what it holds."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch

from streamcl import estimator, snapshot
from streamcl.config import from_tree
from streamcl.conventions import to_scale
from streamcl.core.gaussian import Gaussian
from streamcl.core.products import fast_products, products_for
from streamcl.errors import ConfigError, Refused
from streamcl.learning.data import TaskData
from streamcl.learning.learner import Learner
from streamcl.learning.network import Network
from streamcl.learning.optimisation import EpochResult, Optimisation
from streamcl.learning.optimisers import Adam, Sgd
from streamcl.learning.outcomes import Outcome
from streamcl.replay import LogStore, Replay
from streamcl.schema import LabelMap, Signature
from streamcl.storage.disk import Disk
from streamcl.storage.factors import Factors
from streamcl.storage.log import LogReader, LogWriter
from streamcl.storage.records import Batch, Boundary, Record, Revisit, array_spec

ROWS, FEATURES = 32, 5
SIGNATURE = Signature((FEATURES,), False, ())


def rows(seed: int, n: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (rng.normal(size=(n, FEATURES)) + y[:, None]).astype("<f4"), y


def optimisation(penalty: float = 1.0, **train: Any) -> tuple[Optimisation, TaskData]:
    args = {"hidden": [8], "activation": "tanh"}  # smooth: at a kink two optimisers need not meet
    config = from_tree({"model": {"args": args, "classes": 3}, "train": {"device": "cpu", **train}})
    network = Network(config, SIGNATURE, LabelMap(3), torch.device("cpu"))
    network.labels.add((0, 1, 2))
    anchor = torch.linspace(-1, 1, network.parameters.size, dtype=torch.float64)
    prior = Gaussian.prior(anchor, penalty)
    data = TaskData(lambda window: [rows(number) for number in window], [ROWS] * 4, 20, network.conversion)
    return Optimisation(network, prior, config.train, config.rate), data


def epochs(optimiser: Optimisation, data: TaskData) -> list[EpochResult]:
    passes = optimiser.train.epochs
    return [event for event in optimiser.fit(data, 0, passes if passes != "auto" else 5) if event is not None]


def test_without_a_tolerance_every_epoch_runs_also_when_the_objective_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    optimiser, data = optimisation(epochs=5)
    rising = iter(range(100))
    monkeypatch.setattr(optimiser, "penalty_value", lambda: 1e6 * next(rising))
    assert [result.epoch for result in epochs(optimiser, data)] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("tolerance", [0.0, 0.5])
def test_the_last_epoch_anneals_whenever_it_comes(tolerance: float, monkeypatch: pytest.MonkeyPatch) -> None:
    optimiser, data = optimisation(epochs=6, tolerance=tolerance, learning_rate=1e-3)
    rates = []
    step = optimiser.step
    monkeypatch.setattr(optimiser, "step", lambda x, y: (rates.append(optimiser.optimiser.rate), step(x, y))[1])
    results = epochs(optimiser, data)
    assert len(results) == (6 if tolerance == 0 else 3)  # settled after two, and one more to anneal
    per_epoch = len(rates) // len(results)
    assert rates == [1e-3] * (len(rates) - per_epoch) + [1e-4] * per_epoch


def test_plain_sgd_is_stable_far_beyond_the_explicit_limit() -> None:
    """The curvature is a million times what an explicit step could take; the parameters go to the anchor."""
    optimiser, data = optimisation(penalty=2e9, optimizer="sgd", learning_rate=0.1)
    epochs(optimiser, data)
    anchor = torch.linspace(-1, 1, optimiser.network.parameters.size)
    torch.testing.assert_close(optimiser.network.parameters.theta.detach(), anchor, atol=1e-6, rtol=0)


def test_an_implicit_step_has_the_optimum_of_the_objective_as_its_fixed_point() -> None:
    implicit, data = optimisation(
        penalty=300.0, optimizer="sgd", learning_rate=0.05, epochs=400, dtype="float64", batch_size=1000
    )
    epochs(implicit, data)
    theta = implicit.network.parameters.theta.detach()
    exact, data = optimisation(penalty=300.0, optimizer="lbfgs", epochs=10, dtype="float64")
    epochs(exact, data)
    torch.testing.assert_close(theta, exact.network.parameters.theta.detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("optimizer", "penalty"), [("sgd", 1e6), ("adam", 1e7)])
def test_an_unstable_learning_rate_is_warned_of_with_one_that_would_do(optimizer: str, penalty: float) -> None:
    unstable, _ = optimisation(penalty=penalty, optimizer=optimizer, learning_rate=0.1)
    warning = unstable.warning(128)
    assert warning is not None
    rate = float(warning.split(" would work")[0].split()[-1])
    assert 0 < rate < 0.1
    stable, _ = optimisation(penalty=penalty, optimizer=optimizer, learning_rate=rate)
    assert stable.warning(128) is None


def test_a_lambda_of_another_library_means_the_same_here() -> None:
    """Each convention's objective written out for one task of N samples after another of N, against ours."""
    n, fisher, distance, nll_sum = 40, 0.7, 0.3, 12.0
    theirs = {
        "van-de-ven": lambda lam: nll_sum / n + 0.5 * lam * fisher * distance**2,
        "avalanche": lambda lam: nll_sum / n + lam * fisher * distance**2,
        "mammoth": lambda lam: nll_sum / n + lam * fisher * distance**2,
        "laplace-torch": lambda temperature: (nll_sum + 0.5 / temperature * n * fisher * distance**2) / n,
        "streamcl": lambda scale: (nll_sum + 0.5 * scale * n * fisher * distance**2) / n,
    }
    for convention, objective in theirs.items():
        ours = nll_sum + 0.5 * to_scale(convention, 3.0) * n * fisher * distance**2  # type: ignore[arg-type]
        assert ours / n == pytest.approx(objective(3.0)), convention
    with pytest.raises(ValueError, match="temperature"):
        to_scale("laplace-torch", 0.0)


# -- what a learner holds ----------------------------------------------------------------------------------------------


class Run:
    """A learner in factor mode on a log of its own."""

    def __init__(self, directory: Path, **tree: Any) -> None:
        self.writer = LogWriter.recover(directory / "log", Disk())
        self.reader = LogReader(directory / "log")
        self.factors = Factors(directory / "factors", Disk())
        model = {"args": {"hidden": [64]}, "classes": 3}
        config = from_tree({"model": model, "posterior": {"mode": "factors"}, **tree})
        self.learner = Learner(config, LogStore(self.reader), self.factors)
        self.replay = Replay(self.learner)
        self.seq = 0

    def add(self, record: Record, payloads: tuple[bytes, ...] = ()) -> Outcome | None:
        """Store one record, learn it, keep its factor."""
        lsn = self.writer.append(record, payloads)
        self.writer.sync()
        (entry,) = self.reader.read(lsn, lsn + 1)
        steps = self.replay.apply(entry)
        outcome = None
        try:
            while True:
                next(steps)
        except StopIteration as finished:
            outcome = finished.value
        if outcome is not None and outcome.factor is not None:
            tensors = outcome.factor.state()
            self.factors.write(outcome.entry.lsn, outcome.entry.task, tensors)
        return outcome

    def task(self, name: str, seed: int) -> None:
        """One batch and its boundary."""
        x, y = rows(seed)
        self.seq += 2
        specs = (array_spec("x", x), array_spec("y", y))
        shared = {"producer": "p", "epoch": 0, "task": name}
        new = () if self.learner.labels.outputs else (0, 1, 2)
        batch = Batch(seq=self.seq, samples=len(x), arrays=specs, new_labels=new, **shared)
        self.add(batch, (x.tobytes(), y.tobytes()))
        self.add(Boundary(seq=self.seq + 1, **shared))


def tensor_bytes() -> int:
    """Bytes of all live torch tensors, shared storage counted once."""
    gc.collect()
    storages = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in gc.get_objects()
        if issubclass(type(tensor), torch.Tensor)
    }
    return sum(storages.values())


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, train={"epochs": 1})


@pytest.mark.parametrize(("expectation", "tasks"), [pytest.param("mode", 100, marks=pytest.mark.slow), ("posterior", 5)])
def test_what_is_held_after_many_tasks_is_what_is_held_after_2(tmp_path: Path, expectation: str, tasks: int) -> None:
    run = Run(tmp_path, train={"epochs": 1}, posterior={"mode": "factors", "expectation": expectation})
    held = {}
    for number in range(1, tasks + 1):
        run.task(f"task-{number}", number)
        if number in (2, tasks):
            run.add(Revisit(producer="p", epoch=0, seq=run.seq + 2, task="task-1"))
            during = tensor_bytes()
            run.task("task-1", 0)
            held[number] = during, tensor_bytes()
    assert held[2] == held[tasks]
    assert held[2][1] > 0
    assert len(list(run.factors.directory.glob("*.factor"))) == tasks + 2


# -- optimisers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["adam", "sgd"])
def test_an_optimiser_moves_as_pytorchs_own_does(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    theta = torch.randn(50, generator=rng)
    ours, theirs = theta.clone(), torch.nn.Parameter(theta.clone())
    grad = torch.empty(50)
    one = Adam(ours, grad, 0.01) if name == "adam" else Sgd(ours, grad, 0.01)
    kinds = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
    other = kinds[name]([theirs], lr=0.01, **({"fused": True} if name == "adam" else {}))
    for _ in range(5):
        grad.copy_(torch.randn(50, generator=rng))
        theirs.grad = grad.clone()
        one.step()
        other.step()
    assert torch.equal(ours, theirs.detach())


def test_an_optimiser_goes_on_from_its_state() -> None:
    theta, grad = torch.zeros(5), torch.arange(5.0)
    straight = Adam(theta, grad, 0.1)
    straight.step()
    other = theta.clone()
    resumed = Adam(other, grad, 0.1)
    resumed.load({name: tensor.clone() for name, tensor in straight.state().items()})
    straight.step()
    resumed.step()
    assert torch.equal(theta, other)


def test_training_a_task_imports_no_compiler(tmp_path: Path) -> None:
    """TorchDynamo and SymPy take seconds and some hundred megabytes; nothing that training does needs them."""
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, 'tests'); from test_learner import Run\n"
        "for name in ('adam', 'sgd', 'lbfgs'):\n"
        f"    Run(Path({str(tmp_path)!r}) / name, train={{'epochs': 1, 'optimizer': name}}).task('a', 1)\n"
        "print(sorted({'torch._dynamo', 'sympy'} & set(sys.modules)))"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_autocast_trains_in_bfloat16_what_is_scored_and_kept_in_float32(tmp_path: Path) -> None:
    seen = []
    forward = torch.nn.functional.linear
    plain, cast = (
        Run(tmp_path / name, train={"epochs": 1, "learning_rate": 1e-3, "autocast": name}, posterior={"mode": "single"})
        for name in ("off", "bfloat16")
    )
    plain.task("a", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "linear", lambda *args: (seen.append((out := forward(*args)).dtype), out)[1])
        cast.task("a", 1)
    assert {torch.bfloat16, torch.float32} == set(seen)
    theta = cast.learner.model.network.parameters.theta.detach()
    assert theta.dtype == torch.float32
    torch.testing.assert_close(theta, plain.learner.model.network.parameters.theta.detach(), atol=2e-2, rtol=0)
    assert not torch.equal(theta, plain.learner.model.network.parameters.theta.detach())
    assert cast.learner.watch.prequential.state() == plain.learner.watch.prequential.state()


def test_only_large_products_are_handed_to_the_library_that_is_fast_at_them() -> None:
    assert products_for([(400, 784), (400,), (400, 400), (10, 400)], 64) is fast_products
    assert products_for([(16, 64), (16,), (10, 16)], 64) is nullcontext
    assert products_for([(8, 1, 3, 3), (8,)], 64) is nullcontext  # a convolution's products are not theirs


# -- scores ------------------------------------------------------------------------------------------------------------


class Dropping(torch.nn.Sequential):
    """A factory whose training mode is not its evaluation mode."""

    def __init__(self, input_shape: tuple[int, ...], outputs: int) -> None:
        super().__init__(torch.nn.Linear(*input_shape, 16), torch.nn.Dropout(0.5), torch.nn.Linear(16, outputs))


@pytest.mark.parametrize(("factory", "steady"), [("streamcl.models:mlp", True), ("test_learner:Dropping", False)])
def test_every_row_is_scored_before_a_step_learns_from_it(factory: str, steady: bool, tmp_path: Path) -> None:
    """One batch, one minibatch: the score is that of the untrained model in evaluation mode, dropout or not."""
    train = {"epochs": 1, "learning_rate": 1e-3, "batch_size": ROWS}
    run = Run(tmp_path, model={"factory": factory, "classes": 3}, train=train)
    untrained = Network(run.learner.config, SIGNATURE, run.learner.labels, torch.device("cpu"))
    run.task("a", 1)
    assert run.learner.model is not None
    assert run.learner.model.network.steady == steady
    x, y = rows(1)
    with untrained.evaluating():
        output = untrained.module(torch.from_numpy(x))
    scores = run.learner.watch.prequential.overall.scores()
    assert scores["accuracy"] == pytest.approx((output.argmax(1).numpy() == y).mean())
    nll = untrained.likelihood.nll(output, torch.from_numpy(y)).mean()
    assert scores["log_loss"] == pytest.approx(float(nll), rel=1e-5)


class Turned(torch.nn.Module):
    """Two layers of one shape, in an order or the other; `renamed`, under other names."""

    def __init__(self, width: int, outputs: int, names: Sequence[str]) -> None:
        super().__init__()
        for name in names:
            self.add_module(name, torch.nn.Linear(width, width))
        self.head = torch.nn.Linear(width, outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.children():
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize(("names", "taken"), [("ab", True), ("ba", False), ("cd", True)])
def test_parameters_that_changed_places_since_are_refused_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: str, taken: bool
) -> None:
    model = {"factory": "streamcl.models:linear", "classes": 3}
    order = "ab"
    monkeypatch.setattr("streamcl.models.linear", lambda input_shape, outputs: Turned(input_shape[0], outputs, order))
    first = Run(tmp_path, model=model)
    first.task("a", 1)
    meta, tensors = first.replay.snapshot(0)
    meta = snapshot.from_plain(msgpack.unpackb(msgpack.packb(snapshot.to_plain(meta))))
    order = names
    again = Learner(from_tree({"model": model, "posterior": {"mode": "factors"}}), LogStore(first.reader), first.factors)
    if taken:
        again.restore(meta, tensors, first.learner.standing)
        assert np.array_equal(again.snapshot()[1]["theta"], tensors["theta"])
    else:
        with pytest.raises(ConfigError, match=r"a\.weight .* where the other has b\.weight"):
            again.restore(meta, tensors, first.learner.standing)


def test_a_weight_that_the_penalty_has_no_numbers_for_holds_its_task_and_the_next_is_learned(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And one that they have no room for at all is refused before."""
    monkeypatch.setattr("streamcl.learning.boundary.ROOM", 1e30)
    model = estimator.Learner({"model": {"classes": 3}})
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(60, 4)).astype("<f4"), rng.integers(0, 3, 60)
    model.observe(x, y, task="a")
    with pytest.raises(Refused, match=r"expected at most 1e\+30") as refused:
        model.boundary("a", weight=1e31)
    assert refused.value.code == "bad_header"
    with pytest.raises(Refused, match="beyond what numbers of float32 hold"):
        model.boundary("a", weight=1e15)
    model.drop("a")
    model.observe(x, y, task="b")
    assert model.boundary("b", weight=60)["samples"] == 60
    assert np.isfinite(model.predict(x).probs).all()


@pytest.mark.parametrize(("offset", "scale"), [(1e8, 1.0), (1.7e9, 30.0), (0.0, 1e30), (0.0, 1e-30)])
def test_real_targets_far_from_zero_or_of_any_size_are_learned_as_others_are(offset: float, scale: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(600, 3)).astype("<f4")
    y = x[:, 0].astype(float) + 0.5 * x[:, 1] + 0.1 * rng.normal(size=600)
    answers = []
    for targets in (y, offset + scale * y):
        model = estimator.Learner({"model": {"likelihood": "gaussian", "args": {"hidden": [16]}}, "train": {"epochs": 10}})
        model.observe(x[:500], targets[:500], task="a")
        model.boundary("a")
        answers.append([model.predict(x[500:], **how) for how in ({}, {"uncertainty": True}, {"samples": 20})])
    for plain, far in zip(*answers, strict=True):
        assert float(((plain.mean - y[500:]) ** 2).mean()) < 0.1
        np.testing.assert_allclose((far.mean - offset) / scale, plain.mean, atol=0.01)
        np.testing.assert_allclose(far.variance / scale / scale, plain.variance, rtol=0.01)


@pytest.mark.parametrize("first", [np.zeros(100), np.full(50, 4e5), np.array([5.5e5])])
def test_a_first_task_of_one_value_leaves_the_scale_of_targets_to_the_next(first: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(700, 3)).astype("<f4")
    y = 5e5 + 1e5 * (x[:, 0] + 0.5 * x[:, 1]) + 2e4 * rng.normal(size=700)
    model = estimator.Learner({"model": {"likelihood": "gaussian", "args": {"hidden": [32]}}})
    model.observe(x[: len(first)], first, task="nothing yet")
    model.boundary("nothing yet")
    np.testing.assert_allclose(model.predict(x[:9]).mean, first[0], atol=1)
    model = copy.deepcopy(model)
    for number, start in enumerate((100, 350)):
        model.observe(x[start : start + 250], y[start : start + 250], task=f"t{number}")
        model.boundary(f"t{number}")
    error = ((model.predict(x[600:]).mean - y[600:]) ** 2).mean() / y[600:].var()
    assert error < (0.4 if len(first) == 100 else 0.15)
