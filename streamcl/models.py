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

from streamcl.errors import ConfigError, ModelRefused, in_words

Factory = str | Callable[..., Any]  # its name in the configuration, or the callable

OWN = frozenset(  # what comes with streamcl; a follower makes these without being told to
    {
        *(f"streamcl.models:{name}" for name in ("linear", "mlp", "convnet", "identity", "random_features")),
        "streamcl.sentences:encoder",
    }
)

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
    """Casts inputs to the dtype of the layer after it, and flattens them if asked; integers come in as int64."""

    def __init__(self, like: nn.Linear | nn.Conv2d, flatten: bool) -> None:
        super().__init__()
        self._like = [like]  # in a list, so that it is not registered here too
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, ...]."""
        x = x.to(self._like[0].weight.dtype)
        return x.flatten(1) if self.flatten and x.ndim != 2 else x


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
    layers = [nn.Linear(before, after) for before, after in itertools.pairwise(widths)]
    parts = [part for layer in layers for part in (layer, ACTIVATIONS[activation]())]
    return nn.Sequential(Cast(layers[0], flatten=True), *parts[:-1])


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
    layers += [nn.Flatten(), nn.Linear(depth * height * width, hidden), nn.ReLU(), nn.Linear(hidden, outputs)]
    first = [nn.Unflatten(1, (1, int(input_shape[0])))] if len(input_shape) == 2 else []
    like = next(layer for layer in layers if isinstance(layer, nn.Conv2d | nn.Linear))
    return nn.Sequential(Cast(like, flatten=False), *first, *layers)


# -- feature maps, for exact learners ------------------------------------------------------------------------------------

WIDTHS = (1000, 2000)  # of random features, chosen by the inputs: of few, of many
MANY_INPUTS = 200
UNIT = 4.0  # scales are powers of it, so that rows of one kind come to the same one
REACH = 8.0  # how many scales from zero an input may lie
LEAST_SIDE = 7  # of an image, for windows
ALIKE = 8.0  # columns within this factor of one another are measured in the same unit


class Identity(nn.Module):
    """The row itself, flattened."""

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, ...]."""
        return x.flatten(1)


def identity() -> nn.Module:
    """The row itself as its features."""
    return Identity()


class RandomFeatures(nn.Module):
    """``relu(z W + b)`` or ``sqrt(2) cos(z W + b)`` of inputs ``z = (x - shift) / scale``, cut off at `REACH`; float64.

    Columns of W have length 1 on average; b is normal for ReLUs (Rahimi & Recht 2007 for the
    cosines, with a length scale of the inputs' own typical distance).
    """

    def __init__(self, shape: Sequence[int], width: int, seed: int, kind: str, shift: Any, scale: Any) -> None:
        super().__init__()
        inputs = math.prod(shape)
        generator = torch.Generator().manual_seed(seed)
        weights = torch.randn((inputs, width), generator=generator, dtype=torch.float64)
        seen = _windows(shape, width, generator)
        weights = weights * seen / seen.sum(0).sqrt()
        offsets = torch.randn(width, generator=generator, dtype=torch.float64)
        if kind == "fourier":
            offsets = torch.rand(width, generator=generator, dtype=torch.float64) * 2 * math.pi
        self.kind = kind
        self.register_buffer("weights", weights)
        self.register_buffer("offsets", offsets)
        self.register_buffer("shift", _column(0.0 if shift == "auto" else shift, inputs, "shift"))
        self.register_buffer("scale", _column(1.0 if scale == "auto" else scale, inputs, "scale"))
        self.register_buffer("settled", torch.tensor([float(scale != "auto")], dtype=torch.float64))

    @property
    def unsettled(self) -> bool:
        """Whether shift and scale may still be found."""
        return not bool(self.get_buffer("settled"))

    def keep(self) -> None:
        """Shift and scale stay as they are."""
        self.get_buffer("settled").fill_(1.0)

    def settle(self, x: Tensor) -> None:
        """Find shift and scale on rows [n, ...]; the scale is a power of `UNIT` and the shift a multiple of that, of every
        column or, where columns are alike (pixels), of all: other rows of the same kind give the same."""
        flat = x.flatten(1).double()
        spread, middle = flat.std(0, correction=0), flat.mean(0)
        varies = spread > 1e-9 * middle.abs().clamp(min=torch.finfo(torch.float64).tiny)
        common = spread[varies].square().mean().sqrt() if varies.any() else spread.new_ones(())
        near = (spread[varies] > common / ALIKE).double().mean() if varies.any() else 1.0
        each = torch.where(varies, spread, common) if near < 0.75 else common.expand_as(spread)
        scale = UNIT ** (each.log() / math.log(UNIT)).round()
        middle = flat.mean().expand_as(middle) if near >= 0.75 else middle
        self.get_buffer("scale").copy_(scale)
        self.get_buffer("shift").copy_((middle / (UNIT * scale)).round() * UNIT * scale)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, ...]."""
        z = (x.flatten(1).double() - self.get_buffer("shift")) / self.get_buffer("scale")
        projected = torch.addmm(self.get_buffer("offsets"), z.clamp(-REACH, REACH), self.get_buffer("weights"))
        return projected.relu_() if self.kind == "relu" else projected.cos_().mul_(math.sqrt(2))


def random_features(
    input_shape: Sequence[int],
    width: int | str = "auto",
    seed: int = 0,
    kind: str = "relu",
    shift: Any = "auto",
    scale: Any = "auto",
) -> nn.Module:
    """So many random features of the flattened input; of an image, every other one of a window in it.

    width: "auto" by the number of inputs. kind: relu or fourier. shift, scale: of the inputs, a number or one for each;
    "auto" finds both on the first rows of the stream. Learners whose sums are to be added must have the same. Raises
    ModelRefused.
    """
    inputs = math.prod(input_shape)
    if kind not in ("relu", "fourier"):
        raise ModelRefused(f"random_features.kind: expected relu or fourier, got {kind!r}")
    if width == "auto":
        width = WIDTHS[inputs >= MANY_INPUTS]
    if isinstance(width, bool) or not isinstance(width, int) or width < 1:
        raise ModelRefused(f"random_features.width: expected auto or a positive whole number, got {width!r}")
    if (shift == "auto") != (scale == "auto"):
        raise ModelRefused("random_features: expected both shift and scale, or neither")
    return RandomFeatures(input_shape, width, seed, kind, shift, scale)


def _windows(shape: Sequence[int], width: int, generator: torch.Generator) -> Tensor:
    """Which inputs each feature sees, [inputs, width] of zeros and ones: all or, for every other one of an image's, those
    in a window of it (McDonnell et al. 2015). A flat row whose length is a square may be an image too."""
    seen = torch.ones((width, math.prod(shape)), dtype=torch.float64)
    side = math.isqrt(shape[0]) if len(shape) == 1 else 0
    image = (side, side) if side * side == shape[0] else tuple(shape[-2:]) if len(shape) in (2, 3) else ()
    if not image or min(image) < LEAST_SIDE:
        return seen.T.contiguous()
    maps = seen.view(width, -1, *image)
    for feature in range(0, width, 2):
        window = torch.zeros(image, dtype=torch.float64)
        window[tuple(_stretch(length, generator) for length in image)] = 1.0
        maps[feature] *= window
    return seen.T.contiguous()


def _stretch(length: int, generator: torch.Generator) -> slice:
    """A window along one side: a fifth to under a half of it."""
    low = max(3, round(0.18 * length))
    size = int(torch.randint(low, max(low, round(0.43 * length)) + 1, (), generator=generator))
    start = int(torch.randint(0, length - size + 1, (), generator=generator))
    return slice(start, start + size)


def _column(values: Any, inputs: int, name: str) -> Tensor:
    """One number for each input."""
    try:
        found = torch.as_tensor(values, dtype=torch.float64).reshape(-1)
        found = found.expand(inputs) if len(found) == 1 else found
    except (TypeError, ValueError, RuntimeError):
        found = torch.zeros(0)
    if len(found) != inputs or not torch.isfinite(found).all() or (name == "scale" and not (found > 0).all()):
        wanted = "positive " if name == "scale" else ""
        raise ModelRefused(f"random_features.{name}: expected auto, a {wanted}number, or {inputs} of them, got {values!r}")
    return found.clone()


def build(
    factory: Factory,
    args: Mapping[str, Any],
    input_shape: Sequence[int],
    outputs: int | None,
    seed: int,
    integers: bool = False,
    grows: bool = False,
    task: Callable[[], int] | None = None,
) -> nn.Module:
    """Call a factory, seeded; the global generators (PyTorch's, NumPy's, Python's) are left as they were.

    outputs: None for a feature map, whose number of outputs is its own. grows: a module that a factory has not been told
    the number is given so many (`with_outputs`). task: tells a module whose forward takes `task` which it is.

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
                f"{list(input_shape)} and {'its own' if outputs is None else outputs} outputs: {in_words(error)}"
            ) from error
        if grows and outputs is not None and not takes_outputs(factory, args) and isinstance(module, nn.Module):
            with_outputs(module, outputs)
        if task is not None and isinstance(module, nn.Module) and takes_task(module):
            _tell(module, task)
        if not isinstance(module, nn.Module):
            raise ModelRefused(f"model.factory {name}: expected a torch.nn.Module, got {type(module).__name__}")
        _materialise(module, input_shape, integers)
    return module


GROWTH_REMEDY = (
    "as model.classes is not set, outputs are added as labels come: let model.factory take `outputs`, how many there are "
    "to be, and make the last layer with it; or give the module a method grow(classes), after which it has so many, those "
    "that it had first and unchanged; or set model.classes to the number of labels there will be"
)


def takes_outputs(factory: Factory, args: Mapping[str, Any]) -> bool:
    """Whether a factory is told how many outputs there are to be."""
    function = load_factory(factory)
    return (
        bool(_accepted(function, {"outputs": 0}) or _required(function, {"classes": 0}))
        and not {
            "outputs",
            "classes",
        }
        & args.keys()
    )


def takes_task(module: nn.Module) -> bool:
    """Whether a module's forward pass takes ``task`` beside the rows."""
    try:
        return "task" in inspect.signature(module.forward).parameters
    except (TypeError, ValueError):
        return False


def needs_task(module: nn.Module) -> bool:
    """Whether it cannot do without."""
    if not takes_task(module):
        return False
    return inspect.signature(module.forward).parameters["task"].default is inspect.Parameter.empty


def _tell(module: nn.Module, task: Callable[[], int]) -> None:
    """Let every forward pass have the number of the task, wherever it is called from."""
    module.register_forward_pre_hook(lambda _, args, others: (args, {"task": task(), **others}), with_kwargs=True)


def with_outputs(module: nn.Module, outputs: int) -> None:
    """Give a module more outputs: by its own method ``grow(classes)``, or the last `nn.Linear` more rows, drawn as that
    layer draws them. One with as many, or more, stays. Raises ModelRefused where it has neither."""
    if callable(grow := getattr(module, "grow", None)):
        try:
            grow(outputs)
        except (Exception, SystemExit) as error:
            raise ModelRefused(f"the module's grow({outputs}) failed: {in_words(error)}") from error
        return
    head = last_linear(module)
    if head is None:
        raise ModelRefused(f"the module has no nn.Linear as its last layer; {GROWTH_REMEDY}")
    if head.out_features >= outputs:
        return
    wider = nn.Linear(head.in_features, outputs, head.bias is not None, head.weight.device, head.weight.dtype)
    with torch.no_grad():
        wider.weight[: head.out_features] = head.weight
        if head.bias is not None:
            wider.bias[: head.out_features] = head.bias
    for name, parameter in list(wider.named_parameters()):
        parameter.requires_grad_(getattr(head, name).requires_grad)
        setattr(head, name, parameter)
    head.out_features = outputs


def last_linear(module: nn.Module) -> nn.Linear | None:
    """The last `nn.Linear` of a module, in the order in which it holds its parts."""
    found = [part for part in module.modules() if type(part) is nn.Linear]
    return found[-1] if found else None


def arguments(
    function: Callable[..., Any], args: Mapping[str, Any], input_shape: Sequence[int], outputs: int | None
) -> dict[str, Any]:
    """What a factory is called with: the sizes for which it has parameters, and `args`."""
    sizes = {"input_shape": tuple(input_shape)} | ({} if outputs is None else {"outputs": outputs})
    named = {} if outputs is None else _required(function, {"classes": outputs})
    return {**_accepted(function, sizes), **named, **args}


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds every global generator that a factory or a model may draw from; restores them afterwards.

    Of GPUs only where this process uses them already: asked for their state, CUDA would take hundreds of megabytes of one
    for a process, the predictor say, that computes on the CPU.
    """
    python, numpy = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        with torch.random.fork_rng(devices):
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
    if not module_name or not name:
        raise ConfigError(f"model.factory: expected 'package.module:callable', got {factory!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(f"model.factory {factory!r}: {_not_found(module_name, error, here)}") from None
    except (Exception, SystemExit) as error:  # whatever the module does when it is imported
        raise ConfigError(f"model.factory {factory!r}: importing it failed: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if function is None:
        place = getattr(module, "__file__", None) or module_name
        raise ConfigError(
            f"model.factory {factory!r}: module {module_name!r} ({place}) has no {name!r}; expected a callable"
        )
    if not callable(function):
        raise ConfigError(f"model.factory {factory!r}: expected a callable, got {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _not_found(module: str, error: ModuleNotFoundError, here: str) -> str:
    """Which module is missing: the factory's own, or one that it imports."""
    missing = error.name or ""
    if missing == module or module.startswith(f"{missing}."):
        return f"cannot import {module!r}: {error}; expected it installed in this Python, or in {here}"
    return f"importing {module!r} failed: {error}; expected what it imports installed in this Python, or in {here}"


def _accepted(function: Callable[..., Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of the sizes that the factory has parameters for."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return sizes
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return sizes
    return {name: value for name, value in sizes.items() if any(p.name == name for p in parameters)}


def _required(function: Callable[..., Any], sizes: dict[str, Any]) -> dict[str, Any]:
    """Those of the sizes that the factory cannot be called without, by name."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):
        return {}
    return {k: v for k, v in sizes.items() if k in parameters and parameters[k].default is inspect.Parameter.empty}


def _signature(function: Callable[..., Any]) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "(...)"
