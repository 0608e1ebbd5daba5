"""Steps on coordinates: layers that work on them as they are, and rows that are turned once for all epochs."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamcl.config import from_tree
from streamcl.core.basis import Basis, matrices_in
from streamcl.core.gaussian import Gaussian
from streamcl.core.precision import Layered
from streamcl.learning.coordinates import Coordinates, leading_sides
from streamcl.learning.data import TaskData
from streamcl.learning.network import Network
from streamcl.learning.optimisation import Optimisation
from streamcl.schema import LabelMap, Signature

FEATURES, CLASSES, ROWS = 12, 10, 40
WIDE = 200  # a side that is turned to its leading eigenvectors


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)


class Wrapped(nn.Module):
    """A linear layer of what `change` makes of the rows, then another."""

    def __init__(self, change: str) -> None:
        super().__init__()
        self.change = change
        width = WIDE if change == "wide" else 11
        self.first, self.second = nn.Linear(FEATURES, width), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.tanh(self.first(self.changed(x.flatten(1)))))

    def changed(self, x: Tensor) -> Tensor:
        match self.change:
            case "doubled":
                return 2 * x
            case "in place":
                return x.mul_(2)
            case "turned over":
                return x.flip(1)
        return x


class TwoTowers(nn.Module):
    """Two layers take the rows, one of them a second time."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(FEATURES, 11), nn.Linear(FEATURES, 11)
        self.head = nn.Linear(11, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.one(x) * self.other(x) + self.one(-x)))


class Tied(nn.Module):
    """A weight is used by a layer, and once more without it; where its layer idles for half of the rows, all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 11), nn.Linear(11, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(self.first(x)) * (x[:, :1] > 0)
        return self.second(hidden + 0.1 * F.linear(x, self.first.weight))


class Edge(nn.Module):
    """Units that are on or off by rounding alone, for rows of nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(FEATURES, 11), nn.Linear(11, CLASSES)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(x)))


def module(change: str) -> nn.Module:
    match change:
        case "tied":
            return Tied()
        case "edge":
            return Edge()
        case "two towers":
            return TwoTowers()
        case "a layer's own kind":
            return nn.Sequential(Scaled(FEATURES, 11), nn.Tanh(), nn.Linear(11, CLASSES))
    return Wrapped(change)


def built(change: str, shape: tuple[int, ...] = (FEATURES,), dtype: str = "float64") -> tuple[Optimisation, TaskData]:
    config = from_tree(
        {
            "model": {"classes": CLASSES},
            "train": {"device": "cpu", "dtype": dtype, "batch_size": 4, "learning_rate": 0.01},
        }
    )
    labels = LabelMap(CLASSES)
    labels.add(tuple(range(CLASSES)))
    network = Network(config, Signature(shape, False, ()), labels, torch.device("cpu"), factory=lambda **_: module(change))
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(ROWS, *shape)), np.arange(ROWS) % CLASSES
    data = TaskData(lambda _: [tuple(each.copy() for each in rows)], [ROWS], 8 * FEATURES, network.conversion)
    return Optimisation(network, penalty(network), config.train, config.rate), data


def penalty(network: Network) -> Gaussian:
    """In a basis of its own for each layer."""
    layout, random = network.parameters.layout, torch.Generator().manual_seed(0)
    names = [name for name in layout.names if name.endswith("weight")]
    matrices = matrices_in(layout, [(name, name.replace("weight", "bias")) for name in names])

    def moments(size: int) -> Tensor:
        square = torch.randn(size, size, dtype=torch.float64, generator=random)
        return square @ square.T

    basis = Basis.unturned(layout.size).moved(
        matrices,
        {matrix.key: (moments(matrix.rows), moments(matrix.columns)) for matrix in matrices},
        {(matrix.key, k) for matrix in matrices for k in (0, 1)},
    )
    values = 1 + torch.rand(layout.size, dtype=torch.float64, generator=random)
    return Gaussian(Layered(basis, values), torch.randn(layout.size, dtype=torch.float64, generator=random))


def learned(change: str, shape: tuple[int, ...] = (FEATURES,)) -> tuple[Tensor, Optimisation]:
    optimisation, data = built(change, shape)
    for _ in optimisation.fit(data, 0, 3):
        pass
    return optimisation.network.master(), optimisation


@pytest.fixture
def by_weights(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No layer works on coordinates: weights are turned there and back at every step."""
    with monkeypatch.context() as patch:
        patch.setattr(Coordinates, "try_layers", lambda self, loss, x, y: None)
        yield patch


def directly(optimisation: Optimisation) -> set[str]:
    """The layers that work on coordinates."""
    assert optimisation.coordinates is not None
    return {each.matrix.key for each in optimisation.coordinates._directly}


CHANGES = ["", "wide", "tied", "doubled", "in place", "turned over", "two towers", "a layer's own kind"]


@pytest.mark.parametrize("change", CHANGES)
def test_rows_turned_once_train_to_what_turned_weights_do(change: str, by_weights: pytest.MonkeyPatch) -> None:
    expected, _ = learned(change)
    by_weights.undo()
    found, optimisation = learned(change)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert optimisation.coordinates is not None
    taken = optimisation.coordinates.turned_rows is not None
    assert taken == (change in ("", "wide", "two towers"))  # where the rows themselves go into a layer that can


def test_a_unit_that_rounding_turns_on_or_off_does_not_decide_how_a_task_is_learned() -> None:
    """One row among those of the first step; turning weights instead takes several times as long."""
    optimisation, data = built("edge", dtype="float32")
    x, y = next(data.chunks(8))
    x[0] = 0
    optimisation.step(x, y)
    assert directly(optimisation) == {"first.weight", "second.weight"}
    coordinates = optimisation.coordinates
    assert coordinates is not None
    found, _ = coordinates._compared(coordinates._turned, lambda x, y: _loss(optimisation, x, y), x, y)
    assert "differs" in found  # or this shows nothing


def _loss(optimisation: Optimisation, x: Tensor, y: Tensor) -> Tensor:
    return optimisation.network.likelihood.nll(optimisation.network.module(x), y).sum()


def test_a_module_that_writes_into_its_rows_is_given_them_as_they_are() -> None:
    optimisation, data = built("in place")
    x, y = next(data.chunks(8))
    before = x.clone()
    optimisation._try_layers(optimisation.coordinates, x, y)  # type: ignore[arg-type]
    assert torch.equal(x, before)


def test_a_weight_that_is_used_without_its_layer_is_turned() -> None:
    assert directly(learned("tied")[1]) == {"second.weight"}


def test_the_sides_that_lead_are_those_through_which_a_step_turns_something() -> None:
    """Not the inputs of a layer that takes the rows, and nothing of what is no plain linear layer."""
    for change, rows_first in (("", True), ("doubled", False), ("in place", False)):
        optimisation, data = built(change)
        network = optimisation.network
        matrices = optimisation.coordinates.basis.matrices if optimisation.coordinates else ()
        x, _ = next(data.chunks(8))
        found = leading_sides(network.module, network.parameters, matrices, x.clone())
        both = {(key, k) for key in ("first.weight", "second.weight") for k in (0, 1)}
        assert found == both - ({("first.weight", 1)} if rows_first else set())
    optimisation, data = built("a layer's own kind")
    network = optimisation.network
    assert optimisation.coordinates is not None
    x, _ = next(data.chunks(8))
    found = leading_sides(network.module, network.parameters, optimisation.coordinates.basis.matrices, x)
    assert found == {("2.weight", 0), ("2.weight", 1)}


def test_images_that_a_model_flattens_are_rows_too(by_weights: pytest.MonkeyPatch) -> None:
    expected, _ = learned("", (3, 4))
    by_weights.undo()
    found, optimisation = learned("", (3, 4))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
    assert optimisation.coordinates is not None
    assert optimisation.coordinates.turned_rows is not None


def test_rows_are_turned_once_whatever_the_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    turned = []
    taking = Coordinates._take_rows

    def counted(self: Coordinates, first: object) -> None:
        taking(self, first)  # type: ignore[arg-type]
        inward = self.turned_rows
        assert inward is not None
        self.turned_rows = lambda x: turned.append(len(x)) or inward(x)  # type: ignore[func-returns-value]

    monkeypatch.setattr(Coordinates, "_take_rows", counted)
    learned("")
    assert turned == [ROWS]


def test_a_checkpoint_holds_which_layers_work_on_coordinates() -> None:
    """A restart that tried them on other rows could come to another answer, near the tolerance."""
    optimisation, data = built("")
    x, y = next(data.chunks(8))
    optimisation.step(x, y)
    again, _ = built("")
    again.network.parameters.load(optimisation.network.parameters.theta.detach())
    again.load(optimisation.state())
    assert again.coordinates is not None
    assert optimisation.coordinates is not None
    assert again.coordinates.tried
    assert again.coordinates.turned_rows is not None
    for one in (optimisation, again):
        one.step(x, y)
    assert torch.equal(optimisation.network.parameters.theta, again.network.parameters.theta)
    assert torch.equal(
        optimisation.coordinates.state()["coordinates.direct"], again.coordinates.state()["coordinates.direct"]
    )
