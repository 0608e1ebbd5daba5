"""A model tried on rows of the first batch, in this process: what is refused, why, and that the remedy works."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from streamcl import Learner
from streamcl.config import Config, from_tree
from streamcl.errors import ConfigError, ModelRefused
from streamcl.learning import tensors
from streamcl.learning.network import Network
from streamcl.learning.trial import Trial
from streamcl.schema import TRIED_BYTES, TRIED_ROWS, LabelMap, Signature, chosen

CPU = torch.device("cpu")
X = np.random.default_rng(0).normal(size=(30, 8)).astype("<f4")
Y = np.arange(30) % 3
MADE: list[Callable[[], nn.Module]] = []


def factory() -> nn.Module:
    """Whatever the test has put there last."""
    return MADE[-1]()


@pytest.fixture
def given() -> Iterator[Callable[[Callable[[], nn.Module]], None]]:
    yield MADE.append
    MADE.clear()


def instance_normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (2, 4)), norm, nn.Flatten(), nn.Linear(8, 3))


def spectral() -> nn.Module:
    return nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(8, 3)))


def config(**tree: Any) -> Config:
    return from_tree({"model": {"factory": "test_trial:factory", "classes": 3}, "train": {"device": "cpu"}, **tree})


def network(**tree: Any) -> Network:
    return Network(config(**tree), Signature.of(X, Y), LabelMap(3), CPU)


def attempt(x: np.ndarray = X, y: np.ndarray = Y, **tree: Any) -> None:
    Trial(config(**tree), Signature.of(x, y), CPU, *chosen(x, y), (0, 1, 2)).run()


class Function(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any], **parts: Any) -> None:
        super().__init__()
        self.function, self.head = function, nn.Linear(8, 3)
        for name, part in parts.items():
            self.register_buffer(name, part)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


# -- state outside the posterior -----------------------------------------------------------------------------------------


def normed(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), norm, nn.Linear(6, 3))


STATEFUL: dict[str, tuple[Callable[[], nn.Module], str, Callable[[], nn.Module]]] = {
    "batch norm": (
        lambda: normed(nn.BatchNorm1d(6)),
        r"running_mean.*GroupNorm.*\.eval\(\).*'1'",
        lambda: normed(nn.BatchNorm1d(6).eval()),
    ),
    "batch norm of the batch": (
        lambda: normed(nn.BatchNorm1d(6, track_running_stats=False).eval()),
        r"'1' normalises by the batch's own statistics: use GroupNorm or LayerNorm",
        lambda: normed(nn.LayerNorm(6)),
    ),
    "instance norm": (
        lambda: instance_normed(nn.InstanceNorm1d(2, track_running_stats=True)),
        r"running_mean.*\.eval\(\).*'1'",
        lambda: instance_normed(nn.InstanceNorm1d(2, track_running_stats=True).eval()),
    ),
    "spectral norm": (
        spectral,
        r"\.eval\(\) in the factory on module '0.parametrizations.weight.0'",
        lambda: evaluated(spectral(), "0.parametrizations.weight.0"),
    ),
    "a counter": (
        lambda: Function(lambda m, x: (m.count.add_(1), m.head(x))[1], count=torch.zeros((), dtype=torch.int64)),
        "changes count.*parameter",
        lambda: Function(lambda m, x: m.head(x), count=torch.zeros((), dtype=torch.int64)),
    ),
    "a buffer that is made on the way": (
        lambda: Function(lambda m, x: (m.register_buffer("late", x[0].detach()), m.head(x))[1]),
        "changes late",
        lambda: Function(lambda m, x: m.head(x), late=torch.zeros(8)),
    ),
}


def evaluated(module: nn.Module, name: str) -> nn.Module:
    module.get_submodule(name).eval()
    return module


@pytest.mark.parametrize("name", STATEFUL)
def test_state_that_training_changes_is_refused_with_a_remedy_that_works(name: str, given: Any) -> None:
    module, said, mended = STATEFUL[name]
    given(module)
    with pytest.raises(ModelRefused, match=said):
        attempt()
    given(mended)
    attempt()


# -- outputs -------------------------------------------------------------------------------------------------------------

PECULIAR: dict[str, tuple[Callable[[Any, Tensor], Any], str]] = {
    "a tuple": (lambda m, x: (m.head(x), x), "a tuple of 2"),
    "a mapping": (lambda m, x: {"logits": m.head(x)}, "a mapping .dict with logits"),
    "nothing": (lambda m, x: None, "a NoneType"),
    "one number": (lambda m, x: m.head(x).mean(), "returns .. for 30 rows"),
    "another number of rows": (lambda m, x: m.head(x)[:-1], "returns .29, 3. for 30 rows"),
    "too many classes": (lambda m, x: torch.cat([m.head(x), x], 1), "expected .n, 3. logits"),
    "complex numbers": (lambda m, x: torch.complex(m.head(x), m.head(x)), "complex64"),
    "no gradient in evaluation": (
        lambda m, x: m.head(x) if m.training else m.head(x).detach(),
        "no gradient in evaluation",
    ),
    "nan": (lambda m, x: m.head(x) / 0 * 0, "nan before anything was learned"),
    "a gradient that is not finite": (
        lambda m, x: m.head(x) + (m.head.weight[0, 0] * 0).sqrt(),
        "gradient on the first rows",
    ),
    "a recursion": (lambda m, x: m(x), "RecursionError"),
    "only some numbers of rows": (lambda m, x: m.head(x) if len(x) > 1 else 1 / 0, "single row.*ZeroDivisionError"),
}


@pytest.mark.parametrize("name", PECULIAR)
def test_outputs_that_are_no_outputs_are_named(name: str, given: Any) -> None:
    function, said = PECULIAR[name]
    given(lambda: Function(function))
    with pytest.raises(ModelRefused, match=said):
        attempt()


def test_what_a_batch_of_huge_numbers_does_is_not_the_models_fault(given: Any) -> None:
    given(lambda: nn.Linear(8, 1))
    tree = {"model": {"factory": "test_trial:factory", "likelihood": "gaussian"}, "train": {"dtype": "float64"}}
    attempt(np.full((4, 8), 1e200), np.full(4, -1e200), **tree)


# -- what is cast ----------------------------------------------------------------------------------------------------------


def test_a_cast_changes_nothing_but_what_is_trained(given: Any) -> None:
    times, filters = 1.7e9 + torch.arange(8, dtype=torch.float64), torch.exp(1j * torch.arange(5.0))
    given(lambda: Function(lambda m, x: m.head(x), times=times, filters=filters, ones=torch.ones(3, dtype=torch.float64)))
    single = dict(network().module.named_buffers())
    assert torch.equal(single["times"], times)
    assert torch.equal(single["filters"], filters)
    assert single["ones"].dtype == torch.float32  # which loses nothing
    double = network(train={"dtype": "float64"}).module
    assert double.head.weight.dtype == torch.float64
    assert double.get_buffer("filters").dtype == torch.complex128


class Backbone(nn.Module):
    """A layer whose outputs are cut off from their gradient; or frozen; or of a branch that few rows take."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.body, self.head, self.rare = how, nn.Linear(8, 5), nn.Linear(5, 3), nn.Linear(8, 5)
        self.body.requires_grad_(how != "frozen")

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.body(x))
        if self.how == "rare" and bool((x > 50).any()):
            hidden = hidden + self.rare(x)
        return self.head(hidden.detach() if self.how == "cut off" else hidden)


def test_what_outputs_depend_on_without_a_gradient_is_refused_with_the_remedy(given: Any) -> None:
    """The prior alone would have drawn it to zero."""
    given(lambda: Backbone("cut off"))
    with pytest.raises(ModelRefused, match=r"depend on body\.weight, body\.bias .*requires_grad_\(False\)"):
        attempt()
    for fine in ("frozen", "rare"):
        given(lambda fine=fine: Backbone(fine))
        attempt()


def test_what_does_not_fit_a_dtype_is_refused_by_name(given: Any) -> None:
    times = 1.7e9 + torch.arange(8, dtype=torch.float64)
    given(lambda: Function(lambda m, x: m.head(x - m.times), times=times))
    with pytest.raises(ModelRefused, match=r"times \(torch.float64\) was left as it is.*train.dtype"):
        attempt()
    attempt(train={"dtype": "float64"})


def test_a_complex_parameter_is_refused_with_the_remedy(given: Any) -> None:
    given(lambda: nn.Sequential(nn.Linear(8, 3), nn.ParameterList([torch.ones(3, dtype=torch.complex64)])))
    with pytest.raises(ModelRefused, match="view_as_real"):
        attempt()


KINDS: dict[str, Callable[[], Tensor]] = {  # made when they are needed: other tests count live tensors
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "complex": lambda: torch.tensor([1 + 2j, 3j]),
    "bfloat16": lambda: torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "int16": lambda: torch.tensor([[1, -2], [3, 4]], dtype=torch.int16),
    "bool": lambda: torch.tensor([True, False]),
    "scalar": lambda: torch.tensor(3, dtype=torch.int8),
    "empty": lambda: torch.empty(0),
}


@pytest.mark.parametrize("name", KINDS)
def test_a_fixed_tensor_of_any_kind_comes_back_to_the_bit(name: str, given: Any) -> None:
    given(lambda: Function(lambda m, x: m.head(x), kept=KINDS[name]()))
    one, other = network(), network()
    kept = other.module.get_buffer("kept")
    with torch.no_grad():
        (kept.values() if name == "compressed" else kept).zero_()
    other.load(one.state())
    dense = [each.module.get_buffer("kept") for each in (one, other)]
    assert torch.equal(*(each.to_dense() if each.layout != torch.strided else each for each in dense))
    assert other.module.get_buffer("kept").dtype == one.module.get_buffer("kept").dtype


def test_another_models_tensors_are_not_taken(given: Any) -> None:
    given(lambda: Function(lambda m, x: m.head(x), kept=torch.ones(3, dtype=torch.int16)))
    state = {**network().state(), "fixed.kept": np.zeros(5, np.uint8)}
    with pytest.raises(ConfigError, match=r"fixed\.kept"):
        network().load(state)


@pytest.mark.parametrize(
    ("likelihood", "last", "told"),
    [
        ("categorical", nn.Softmax(-1), True),
        ("categorical", nn.Sigmoid(), True),
        ("categorical", nn.LogSoftmax(-1), False),
        ("categorical", nn.Identity(), False),
        ("categorical", nn.Tanh(), True),
        ("categorical", nn.Hardtanh(), True),
        ("bernoulli", nn.Sigmoid(), True),
        ("bernoulli", nn.Identity(), False),
        ("gaussian", nn.Sigmoid(), False),
    ],
)
def test_a_model_that_ends_with_probabilities_is_told_so_at_the_boundary(
    likelihood: str, last: nn.Module, told: bool
) -> None:
    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0)).numpy()
    module = nn.Sequential(nn.Linear(4, 2), last)
    learner = Learner({"model": {"likelihood": likelihood, "classes": 2}, "train": {"learning_rate": 0.1}}, module=module)
    y = (x[:, 0] > 0).astype("<i8")
    learner.observe(x, y if likelihood == "categorical" else (x[:, :2] > 0).astype("<f4"), task="a")
    with warnings.catch_warnings(record=True):
        found = str(learner.boundary("a").get("warning"))
    assert ("streamcl takes logits" in found) == told


@pytest.mark.parametrize("last", [nn.Softmax, nn.LogSoftmax])
def test_a_model_whose_outputs_may_grow_and_end_with_a_softmax_is_told_that_this_is_in_the_way(last: Any) -> None:
    class Soft(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.last = nn.Linear(4, 2), last(-1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.head(x))

        def grow(self, classes: int) -> None:
            self.head = nn.Linear(4, classes)

    with pytest.raises(ModelRefused, match="ends with a softmax"):
        Learner({}, module=Soft()).observe(X[:, :4], Y, task="a")


def test_a_single_output_a_row_may_be_confined_too() -> None:
    class One(nn.Module):
        def __init__(self, last: nn.Module) -> None:
            super().__init__()
            self.head, self.last = nn.Linear(4, 1), last

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.head(x)).squeeze(-1)

    x = torch.randn(120, 4, generator=torch.Generator().manual_seed(0)).numpy()
    for last, told in ((nn.Tanh(), True), (nn.Identity(), False)):
        learner = Learner({"model": {"likelihood": "bernoulli"}, "train": {"learning_rate": 0.1}}, module=One(last))
        learner.observe(x, (x[:, 0] > 0).astype("<f4"), task="a")
        with warnings.catch_warnings(record=True):
            assert ("streamcl takes logits" in str(learner.boundary("a").get("warning"))) == told


@pytest.mark.parametrize("likelihood", ["gaussian", "bernoulli"])
def test_a_model_may_give_one_number_a_row(likelihood: str) -> None:
    class One(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(x).squeeze(-1)

    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0)).numpy()
    learner = Learner({"model": {"likelihood": likelihood}, "train": {"learning_rate": 0.1}}, module=One())
    learner.observe(x, (x[:, 0] > 0).astype("<f4"), task="a")
    assert "width" not in str(learner.boundary("a").get("warning"))
    for how in ({}, {"uncertainty": True}, {"samples": 3}):
        assert all(array.shape == (60,) for array in learner.predict(x, **how).arrays.values())


def test_a_quantised_buffer_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelRefused, match="scale"):
        tensors.check_storable("kept", torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.quint8))


# -- what a trial leaves behind ------------------------------------------------------------------------------------------


def test_a_trial_leaves_every_generator_as_it_was(given: Any) -> None:
    def module() -> nn.Module:
        np.random.random()
        random.random()
        return nn.Sequential(nn.Linear(8, 6), nn.Dropout(), nn.LazyLinear(3))

    given(module)
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    attempt()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


def test_the_same_configuration_builds_the_same_network(given: Any) -> None:
    """Lazy layers too, and a factory that draws from other generators than PyTorch's."""

    def module() -> nn.Module:
        layers = nn.Sequential(nn.LazyLinear(6), nn.Tanh(), nn.LazyLinear(3))
        layers.register_buffer("drawn", torch.from_numpy(np.random.random(3)) + random.random())
        return layers

    given(module)
    one, other = network(), network()
    assert torch.equal(one.parameters.theta, other.parameters.theta)
    assert torch.equal(one.module.get_buffer("drawn"), other.module.get_buffer("drawn"))


def test_lazy_layers_that_zeros_and_ones_do_not_reach_are_refused(given: Any) -> None:
    class Choosing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.other = nn.LazyLinear(3), nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.other(x) if bool((x == 7).any()) else self.head(x)

    given(Choosing)
    with pytest.raises(ModelRefused, match=r"other\.weight.*input_shape"):
        attempt()


def test_rows_to_try_come_from_all_over_a_batch() -> None:
    x, y = np.arange(1000.0)[:, None], np.arange(1000)
    few, targets = chosen(x, y)
    assert len(few) == TRIED_ROWS
    assert (few[0, 0], few[-1, 0]) == (0, 999)
    np.testing.assert_array_equal(few[:, 0], targets)
    wide = np.zeros((5, TRIED_BYTES // 2), np.uint8)
    assert len(chosen(wide, np.arange(5))[0]) == 2
    assert len(chosen(x[:1], y[:1])[0]) == 1
