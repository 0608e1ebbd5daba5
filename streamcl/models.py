"""Ready-made model factories, and how any factory named in the configuration is called.

A factory is any callable that returns an `nn.Module`. It is given ``input_shape`` (of one row) and ``outputs`` (their
number) if it has parameters of these names, and ``model.args``. What it freezes (``requires_grad_(False)``: a pretrained
backbone) and its buffers are stored once, beside the checkpoints, however large they are.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import math
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from streamcl.errors import ConfigError, ModelRefused

Factory = str | Callable[..., Any]  # its name in the configuration, or the callable

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


class Cast(nn.Module):
    """Casts inputs to the dtype of the layers after it, and flattens them if asked; integers come in as int64."""

    def __init__(self, like: nn.Module, flatten: bool) -> None:
        super().__init__()
        self._like = [like]  # in a list, so that it is not registered here too
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, ...]."""
        x = x.to(next(self._like[0].parameters()).dtype)
        return x.flatten(1) if self.flatten else x


def linear(input_shape: Sequence[int], outputs: int, bias: bool = True) -> nn.Module:
    """One linear layer on the flattened input."""
    layer = nn.Linear(math.prod(input_shape), outputs, bias=bias)
    return nn.Sequential(Cast(layer, flatten=True), layer)


def mlp(
    input_shape: Sequence[int], outputs: int, hidden: Sequence[int] = (256, 256), activation: str = "relu"
) -> nn.Module:
    """A multilayer perceptron on the flattened input; `hidden` may be of any length. Raises ModelRefused."""
    if activation not in ACTIVATIONS:
        raise ModelRefused(f"activation: expected one of {', '.join(ACTIVATIONS)}, got {activation!r}")
    widths = [math.prod(input_shape), *hidden, outputs]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(Cast(layers[0], flatten=True), *layers[:-1])


def convnet(input_shape: Sequence[int], outputs: int, channels: Sequence[int] = (32, 64), hidden: int = 128) -> nn.Module:
    """A small convolutional network for images [H, W] or [C, H, W]; no batch normalisation. Raises ModelRefused."""
    if len(input_shape) not in (2, 3):
        raise ModelRefused(f"convnet: expected rows of shape [H, W] or [C, H, W], got {list(input_shape)}")
    depth, height, width = (1, *input_shape) if len(input_shape) == 2 else tuple(input_shape)
    layers: list[nn.Module] = []
    for after in channels:
        layers += [nn.Conv2d(depth, after, 3, padding=1), nn.ReLU()]
        if min(height, width) > 1:
            layers.append(nn.MaxPool2d(2))
            height, width = height // 2, width // 2
        depth = after
    head = [nn.Flatten(), nn.Linear(depth * height * width, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    first = [nn.Unflatten(1, (1, int(input_shape[0])))] if len(input_shape) == 2 else []
    return nn.Sequential(Cast(nn.Sequential(*layers, *head), flatten=False), *first, *layers, *head)


def build(
    factory: Factory,
    args: Mapping[str, Any],
    input_shape: Sequence[int],
    outputs: int,
    seed: int,
    integers: bool = False,
) -> nn.Module:
    """Call a factory, seeded; the global generators (PyTorch's, NumPy's, Python's) are left as they were.

    Lazy layers get their sizes from rows of zeros, or of ones, of `input_shape` (int64 for `integers`). Raises ConfigError
    if there is no such callable, ModelRefused if it fails or returns something else.
    """
    function, name = load_factory(factory), factory if isinstance(factory, str) else "(a callable)"
    with seeded(seed):
        try:
            module = function(**arguments(function, args, input_shape, outputs))
        except ModelRefused:
            raise
        except (Exception, SystemExit) as error:
            raise ModelRefused(
                f"model.factory {name}{_signature(function)} failed with args {dict(args)} for rows of shape "
                f"{list(input_shape)} and {outputs} outputs: {type(error).__name__}: {error}"
            ) from error
        if not isinstance(module, nn.Module):
            raise ModelRefused(f"model.factory {name}: expected a torch.nn.Module, got {type(module).__name__}")
        _materialise(module, input_shape, integers)
    return module


def arguments(
    function: Callable[..., Any], args: Mapping[str, Any], input_shape: Sequence[int], outputs: int
) -> dict[str, Any]:
    """What a factory is called with: the sizes for which it has parameters, and `args`."""
    return {**_accepted(function, {"input_shape": tuple(input_shape), "outputs": outputs}), **args}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every global generator that a factory or a model may draw from; restores them afterwards."""
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def _materialise(module: nn.Module, input_shape: Sequence[int], integers: bool) -> None:
    """Give lazy layers their sizes, which depend on the shape of the rows and not on their values."""
    flags = [(part, part.training) for part in module.modules()]
    reason = ""
    for value, training in itertools.product((0, 1), (False, True)):
        if not _lazy(module):
            break
        for part, flag in flags:
            part.training = flag and training
        example = torch.full((2, *input_shape), value, dtype=torch.int64 if integers else torch.get_default_dtype())
        try:
            with torch.no_grad():
                module(example)
        except (Exception, SystemExit) as error:
            reason = f" ({type(error).__name__}: {error})"
    for part, flag in flags:
        part.training = flag
    if _lazy(module):
        raise ModelRefused(
            f"the lazy layers {', '.join(_lazy(module))} cannot get their sizes from rows of zeros or ones of shape "
            f"{list(input_shape)}{reason}; give them their sizes in the factory, which may take input_shape"
        )


def _lazy(module: nn.Module) -> list[str]:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return [name for name, tensor in tensors if is_lazy(tensor)]


def load_factory(factory: Factory) -> Callable[..., Any]:
    """The callable of ``package.module:name``, also from the working directory; one given is itself. Raises ConfigError."""
    if not isinstance(factory, str):
        return factory
    module_name, _, name = factory.partition(":")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        function = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"model.factory {factory!r}: {error}; expected 'package.module:callable'") from None
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise ConfigError(f"model.factory {factory!r}: importing it failed: {type(error).__name__}: {error}") from error
    if not callable(function):
        raise ConfigError(f"model.factory {factory!r}: expected a callable, got {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _accepted(function: Callable[..., Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of the sizes that the factory has parameters for."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return sizes
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return sizes
    return {name: value for name, value in sizes.items() if any(p.name == name for p in parameters)}


def _signature(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"
