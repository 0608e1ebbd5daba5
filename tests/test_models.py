"""Factories and flat parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from torch import nn

from streamcl import models
from streamcl.core.layout import Layout
from streamcl.core.likelihood import Bernoulli, Categorical, Gaussian
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters
from streamcl.errors import ConfigError, ModelRefused

FACTORIES = [
    ("streamcl.models:linear", {}, (7,)),
    ("streamcl.models:linear", {"bias": False}, (2, 3)),
    ("streamcl.models:mlp", {}, (5,)),
    ("streamcl.models:mlp", {"hidden": []}, (5,)),
    ("streamcl.models:mlp", {"hidden": [4, 3, 2], "activation": "gelu"}, (2, 2)),
    ("streamcl.models:convnet", {}, (8, 8)),
    ("streamcl.models:convnet", {"channels": [4, 8, 8, 8]}, (3, 9, 5)),
    ("torch.nn:Identity", {}, (3,)),
]


@pytest.mark.parametrize(("factory", "args", "shape"), FACTORIES[:-1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_factory_is_sized_from_the_first_batch(
    factory: str, args: dict[str, Any], shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    module = models.build(factory, args, shape, 3, seed=0).to(dtype)
    assert module(torch.ones(2, *shape, dtype=dtype)).shape == (2, 3)
    assert module(torch.ones(2, *shape, dtype=torch.int64)).dtype == dtype


def test_the_seed_decides_the_weights_and_nothing_else_is_touched() -> None:
    before = torch.get_rng_state()
    one, same, other = (models.build("streamcl.models:mlp", {}, (3,), 2, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one[1].weight, same[1].weight)
    assert not torch.equal(one[1].weight, other[1].weight)


@pytest.mark.parametrize(
    ("factory", "args", "error", "said"),
    [
        (
            "nowhere.at_all:mlp",
            {},
            ConfigError,
            "cannot import 'nowhere.at_all': No module named 'nowhere'; expected it installed",
        ),
        ("json.at_all:mlp", {}, ConfigError, "cannot import 'json.at_all': No module named 'json.at_all'"),
        ("streamcl.models:nothing", {}, ConfigError, "has no 'nothing'"),
        ("nowhere", {}, ConfigError, "expected 'package.module:callable'"),
        ("streamcl.models:ACTIVATIONS", {}, ConfigError, "callable"),
        ("streamcl.models:mlp", {"hiden": [3]}, ModelRefused, "hidden"),
        ("streamcl.models:mlp", {"activation": "rely"}, ModelRefused, "leaky_relu"),
        ("streamcl.models:convnet", {}, ModelRefused, "[C, H, W]"),
        ("builtins:dict", {}, ModelRefused, "torch.nn.Module"),
    ],
)
def test_a_factory_that_cannot_be_used_is_refused_with_the_reason(
    factory: str, args: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        models.build(factory, args, (4,), 2, 0)
    assert said in str(caught.value)


def test_a_factory_beside_the_configuration_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_model_xyz.py").write_text("from torch import nn\ndef make():\n    return nn.Linear(4, 2)\n")
    monkeypatch.chdir(tmp_path)
    assert isinstance(models.build("my_model_xyz:make", {}, (4,), 2, 0), nn.Linear)


def test_a_factory_whose_module_lacks_another_is_said_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacking_xyz.py").write_text("import nowhere_xyz\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="importing 'lacking_xyz' failed: No module named 'nowhere_xyz'") as caught:
        models.build("lacking_xyz:make", {}, (4,), 2, 0)
    assert "package.module:callable" not in str(caught.value)


def test_training_flags_come_back_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    model[1].eval()
    flags = TrainingFlags(model)
    flags.eval()
    flags.train()
    assert (model[0].training, model[1].training) == (True, False)


def test_flat_parameters_are_views() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.Tanh(), shared, nn.Linear(3, 2))
    model[3].bias.requires_grad_(False)
    flat = FlatParameters(model)
    assert flat.names == ["0.weight", "0.bias", "3.weight"]
    assert flat.size == 9 + 3 + 6
    flat.load(torch.arange(18.0))
    assert torch.equal(model[0].weight, torch.arange(9.0).reshape(3, 3))
    model(torch.ones(1, 3)).sum().backward()
    assert flat.theta.grad is flat.grad
    assert flat.grad.abs().sum() > 0
    assert torch.equal(flat.split(flat.grad)["3.weight"], model[3].weight.grad)
    torch.optim.SGD([flat.theta], lr=1.0).step()
    assert torch.equal(flat.split(flat.theta.detach())["0.weight"], model[0].weight)


def test_a_layout_says_where_everything_stands() -> None:
    shared = nn.Linear(3, 3)
    model = nn.Sequential(shared, nn.BatchNorm1d(3), shared, nn.Linear(3, 2))
    model[3].bias.requires_grad_(False)
    layout = FlatParameters(model).layout
    assert [(part.name, part.shape, part.offset) for part in layout.parts] == [
        ("0.weight", (3, 3), 0),
        ("0.bias", (3,), 9),
        ("1.weight", (3,), 12),
        ("1.bias", (3,), 15),
        ("3.weight", (2, 3), 18),
    ]
    assert (layout.frozen, layout.size) == (("3.bias",), 24)
    assert layout.buffers == ("1.running_mean", "1.running_var", "1.num_batches_tracked")
    assert layout.tied == (("2.weight", "0.weight"), ("2.bias", "0.bias"))
    assert Layout.from_plain(msgpack.unpackb(msgpack.packb(layout.plain()))) == layout
    pieces = layout.split(np.arange(24.0))
    assert pieces["3.weight"].tolist() == [[18, 19, 20], [21, 22, 23]]
    assert pieces["1.bias"].base is not None  # a view


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([("a", [2, 3]), ("b", [3, 2])], None),
        ([("new", [2, 3]), ("b", [3, 2])], None),
        ([("a", [3, 2]), ("b", [2, 3])], r"a [2, 3] where the other has a [3, 2]"),
        ([("a", [2, 3])], "2 trained parameters where the other has 1"),
    ],
)
def test_layouts_differ_by_shapes_but_not_by_a_new_name(other: list[Any], words: str | None) -> None:
    assert Layout.of([("a", [2, 3]), ("b", [3, 2])]).difference(Layout.of(other)) == words


def test_two_parameters_of_one_shape_that_change_places_are_a_difference() -> None:
    one, other = Layout.of([("a", [2]), ("b", [2])]), Layout.of([("b", [2]), ("a", [2])])
    assert one.difference(other) == "a [2] where the other has b [2]"


def test_a_model_without_anything_to_train_is_refused() -> None:
    with pytest.raises(ModelRefused, match="no trainable"):
        FlatParameters(nn.ReLU())
    with pytest.raises(ModelRefused, match="one dtype"):
        FlatParameters(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()))


def test_saturated_logits_stay_finite() -> None:
    logits = torch.tensor([[800.0, -800.0, 0.0]], requires_grad=True)
    assert torch.isfinite(Categorical(3).nll(logits, torch.tensor([1]))).all()
    assert torch.isfinite(Categorical(3).cotangents(logits.detach(), "exact", None, None)).all()
    assert torch.isfinite(Bernoulli().nll(logits, torch.tensor([[0.0, 1.0, 1.0]]))).all()
    exact = Bernoulli().cotangents(torch.tensor([[40.0]]), "exact", None, None)
    assert exact.item() == pytest.approx(torch.tensor(-20.0).exp().item(), rel=1e-4)


def test_targets_of_one_number_may_come_out_as_a_column() -> None:
    output, target = torch.tensor([[1.0], [2.0]]), torch.tensor([1.0, 4.0])
    torch.testing.assert_close(Gaussian(2.0).nll(output, target), Gaussian(2.0).nll(output[:, 0], target))
    with pytest.raises(ModelRefused):
        Gaussian(1.0).nll(torch.ones(2, 3), target)
    with pytest.raises(ModelRefused):
        Categorical(3).nll(torch.ones(2, 4), torch.tensor([0, 1]))


class Counted(nn.Linear):
    """One that wants to know when it is trained."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "training":
            self.told.append(value)
        super().__setattr__(name, value)


def test_training_flags_come_back_and_a_module_that_sets_them_itself_is_asked() -> None:
    own, frozen = Counted(2, 2), nn.Dropout().eval()
    own.told = []
    module = nn.Sequential(own, frozen, nn.Dropout())
    flags = TrainingFlags(module)
    flags.eval()
    assert not any(part.training for part in module.modules())
    flags.train()
    assert [part.training for part in module.modules()] == [True, True, False, True]
    assert own.told == [False, True]
    flags.rest()
    flags.train()
    assert not any(part.training for part in module.modules())
