"""On a device that only says it is one (`pretend`): nothing is computed on two at once, and no step waits for it."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pretend import Pretended
from torch import nn

from streamcl.bench.device.clock import Clock
from streamcl.bench.device.setting import SIZES, Setting
from streamcl.core.fisher import Fisher
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters
from streamcl.core.watched import Watched
from streamcl.estimator import Learner

RNG = np.random.default_rng(0)


@pytest.fixture
def device() -> Iterator[Pretended]:
    with Pretended().entered() as entered:
        yield entered


def setting() -> Setting:
    return Setting(torch.device("cuda"), SIZES["tiny"], Clock(torch.device("cpu"), 1, 0.0))


# -- the device itself -------------------------------------------------------------------------------------------------


def test_what_cuda_would_refuse_is_refused(device: Pretended) -> None:
    here, there = torch.ones(3), torch.ones(3, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    with pytest.raises(RuntimeError, match="same device"):
        torch.cat([here, there])
    with pytest.raises(RuntimeError, match="same device"):
        here.add_(there.sum())
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.randn(3, device="cuda", generator=torch.Generator())


def test_what_cuda_would_do_is_done(device: Pretended) -> None:
    there = torch.ones(3, device="cuda", requires_grad=True)
    (there * torch.tensor(2.0)).sum().backward()
    assert there.grad is not None
    assert there.grad.device.type == "cuda"
    assert there.grad.cpu().tolist() == [2.0, 2.0, 2.0]
    assert torch.zeros(4, device="cuda")[torch.tensor([0, 1])].cpu().shape == (2,)


def test_what_waits_for_the_device_is_counted(device: Pretended) -> None:
    there = torch.ones(3, device="cuda")
    assert device.synchronised == Counter()
    float(there.sum())
    there.cpu()
    assert device.synchronised == {"aten::_local_scalar_dense": 1, "aten::_to_copy to the host": 1}


def test_predictions_are_drawn_where_their_units_are(device: Pretended) -> None:
    made = Learner({"model": {"args": {"hidden": [4]}, "likelihood": "gaussian"}, "train": {"epochs": 1, "device": "cuda"}})
    x = RNG.normal(size=(32, 5)).astype("f4")
    made.observe(x, 40 + x[:, 0], task="a")
    made.boundary("a")
    assert np.isfinite(made.predict(x, samples=4).mean).all()


def test_a_learner_goes_on_on_the_device_that_it_is_loaded_for(device: Pretended, tmp_path: Path) -> None:
    made = Learner({"model": {"args": {"hidden": [4]}}, "train": {"epochs": 1, "device": "cuda"}})
    x, y = RNG.normal(size=(32, 5)).astype("f4"), RNG.integers(0, 3, 32)
    made.observe(x, y, task="a")
    made.save(tmp_path / "learner")
    there, here = Learner.load(tmp_path / "learner"), Learner.load(tmp_path / "learner", device="cpu")
    assert [next(each.module.parameters()).device.type for each in (there, here)] == ["cuda", "cpu"]
    np.testing.assert_allclose(here.predict(x).probs, made.predict(x).probs, rtol=1e-5)
    assert here.boundary("a")["samples"] == 32


# -- steps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("turned", [True, False], ids=["eigenbasis", "prior"])
def test_no_step_waits_for_the_device(device: Pretended, turned: bool) -> None:
    made, (x, y) = setting().optimisation(32, turned), setting().data(32)
    made.step(x, y)  # in which the layers that work on coordinates are found
    assert (made.coordinates is not None) is turned
    device.synchronised.clear()
    for _ in range(3):
        made.step(x, y)
    assert device.synchronised == Counter()


def waits(device: Pretended, steps: int, **train: Any) -> int:
    """How often a task of so many steps waits for the device, as its rows come and at its boundary."""
    train = {"epochs": 1, "batch_size": 16, "device": "cuda", **train}
    made = Learner({"model": {"args": {"hidden": [8]}}, "train": train, "posterior": {"expectation": "mode"}})
    x, y = RNG.normal(size=(16 * steps, 5)).astype("f4"), RNG.integers(0, 3, 16 * steps)
    made.observe(x, y, task="first")
    made.boundary("first")
    device.synchronised.clear()
    made.observe(x, y, task="second")
    made.boundary("second")
    return device.synchronised.total()


def test_more_steps_wait_no_more_often(device: Pretended) -> None:
    assert waits(device, 2, learning_rate=1e-3) == waits(device, 10, learning_rate=1e-3)


@pytest.mark.campaign
def test_copies_at_several_rates_wait_a_few_times_for_sixty_four_rows(device: Pretended) -> None:
    few, many = (waits(device, steps, batch_size="auto") for steps in (4, 12))
    assert 0 < many - few <= 2 * 4  # two blocks of 64 rows more, of some eighty steps each


def test_a_fisher_without_a_loop_waits_only_for_what_it_checks(device: Pretended) -> None:
    made = setting()
    module = made.module()
    found = Fisher(module, FlatParameters(module), made.likelihood)
    x, y = made.data(64)
    found.add(x, y)
    device.synchronised.clear()
    found.add(x, y)
    assert device.synchronised == Counter()


def test_cudnn_is_left_alone_where_it_gives_no_gradients(device: Pretended) -> None:
    module = nn.Sequential(nn.GRU(3, 4), nn.Linear(4, 2)).to("cuda")
    parameters, enabled = FlatParameters(module), torch.backends.cudnn.enabled
    with Watched(module, parameters).evaluating():
        assert not torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.allow_tf32  # in which no closed form would agree with the loop
    assert torch.backends.cudnn.enabled is enabled
    assert torch.backends.cudnn.allow_tf32
    with TrainingFlags(module).differentiable():  # in training mode it does
        assert torch.backends.cudnn.enabled is enabled


# -- processes that compute on the CPU ---------------------------------------------------------------------------------

UNTOUCHED = """
import torch
def refuse(*_, **__): raise SystemExit("CUDA was touched")
for name in ("_lazy_init", "is_available", "current_device", "get_rng_state", "set_rng_state"):
    setattr(torch.cuda, name, refuse)
torch.cuda.device_count = lambda: 1
{what}
assert not torch.cuda.is_initialized()
"""
WHAT = {
    "the nursery": "from streamcl.daemon.nursery import _warm; _warm()",
    "the predictor": """
from streamcl.config import from_tree
from streamcl.learning import kinds
from streamcl.schema import Signature
config = from_tree({"model": {"classes": 3}})
kinds.network(config, Signature((4,), False, ()), kinds.labels(config), torch.device("cpu"), False)
""",
}


@pytest.mark.parametrize("what", WHAT)
def test_cuda_is_left_alone(what: str) -> None:
    """What is forked from a process that has touched it cannot use it; and it would hold memory of a GPU for nothing."""
    ran = subprocess.run([sys.executable, "-c", UNTOUCHED.format(what=WHAT[what])], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
