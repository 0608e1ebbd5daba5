"""The model as the daemon sees it: a module from the operator's factory, its flat parameters and its likelihood.

Guarantees: the same configuration and signature build the same network to the bit, and building runs nothing of it but the
factory (and lazy layers once); evaluation leaves the training flags as the factory set them; frozen parameters and buffers
keep their values, whatever `train.dtype` is. Whether a model can be learned is determined on rows (`trial`). Knows nothing
of tasks, the log or sockets.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.config import Config
from streamcl.core.layout import Layout
from streamcl.core.likelihood import Likelihood, likelihood
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters
from streamcl.core.reduce import ALONE, Reduction
from streamcl.errors import ConfigError
from streamcl.learning import tensors
from streamcl.learning.data import Conversion
from streamcl.schema import LabelMap, Signature

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def choose_device(name: str) -> torch.device:
    """``auto`` is CUDA if there is one, else the CPU; any other name is as PyTorch reads it. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"train.device: expected auto, cpu or an available device, got {name!r}: {error}") from None
    return device


class Network:
    """A built model; raises ModelRefused if the factory or its module cannot be used.

    config: the whole configuration. signature: shapes of one row. labels: the label map (categorical). steady: a training
    step computes what an evaluation does (no dropout), so that its outputs can be scored; False until `settle`. trained:
    False for predictions alone, which need no gradients. factory: instead of the configured one. reduction: sums over the
    samples of this network and its replicas.
    """

    def __init__(
        self,
        config: Config,
        signature: Signature,
        labels: LabelMap,
        device: torch.device,
        trained: bool = True,
        factory: Callable[..., nn.Module] | None = None,
        reduction: Reduction = ALONE,
    ) -> None:
        self._config = config
        self._factory = factory or config.model.factory
        self.reduction = reduction
        self.signature = signature
        self.labels = labels
        self.device = device
        self.dtype = DTYPES[config.train.dtype]
        self.likelihood: Likelihood = likelihood(config.model.likelihood, config.model.classes, config.model.noise_variance)
        self.autocast = config.train.autocast != "off"
        self.module = self._build(config)
        if not trained:
            self.module.eval()
        self.flags = TrainingFlags(self.module)
        self.parameters = FlatParameters(self.module, gradients=trained)
        self.conversion = Conversion(self.dtype, device, labels.to_outputs if self._labelled(config) else None)
        self.steady = False
        self._trained = trained
        self._loaded: Mapping[str, npt.NDArray[Any]] = {}  # for predictions alone: what `load` was given last
        for name, tensor in self.fixed().items():
            tensors.check_storable(name, tensor)

    @staticmethod
    def _labelled(config: Config) -> bool:
        return config.model.likelihood == "categorical"

    def _build(self, config: Config) -> nn.Module:
        module = models.build(
            self._factory,
            config.model.args,
            self.signature.x_shape,
            self.likelihood.outputs(self.signature.y_shape),
            config.train.seed,
            integers=self.signature.x_integer,
        )
        return _placed(module, self.device, self.dtype)

    def settle(self, x: Tensor) -> None:
        """Determine on some rows whether the model is steady; one that raises is not. Same rows, same answer."""
        try:
            self.steady = not self.autocast and self._is_steady(x)
        except (Exception, SystemExit, KeyboardInterrupt):  # it will be raised again when these rows are learned
            self.steady = False

    def settle_on_zeros(self) -> None:
        """As `settle`, for an older state directory, made when a model was tried on zeros."""
        zeros = np.zeros((2, *self.signature.x_shape), "<i8" if self.signature.x_integer else "<f4")
        self.settle(self.conversion.x(zeros))

    def _is_steady(self, x: Tensor) -> bool:
        """Whether a training step draws no random numbers, changes no buffers and computes what evaluation computes."""
        before = {name: tensor.clone() for name, tensor in self.fixed().items()}
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            states = _random_states(self.device)
            training = self.module(x)
            drew = any(not torch.equal(a, b) for a, b in zip(states, _random_states(self.device), strict=True))
        changed = self.changed(before)
        self.put_back(before)
        with self.evaluating():
            return not drew and not changed and torch.equal(training, self.module(x))

    def changed(self, before: Mapping[str, Tensor]) -> list[str]:
        """The names of fixed tensors that have changed, or were not there before."""
        now = self.fixed()
        missing = sorted(before.keys() ^ now.keys())
        return missing + [name for name in before if name in now and not _same(now[name], before[name])]

    def put_back(self, before: Mapping[str, Tensor]) -> None:
        """Restore the values of fixed tensors that have kept their shapes."""
        with torch.no_grad():
            for name, tensor in self.fixed().items():
                old = before.get(name)
                if old is not None and old.shape == tensor.shape and not _same(tensor, old):
                    tensor.copy_(old)

    def training_output(self, x: Tensor) -> Tensor:
        """The module's output for a training step; with `train.autocast`, in bfloat16 wherever PyTorch considers that safe.

        Scores before training, the Fisher and predictions are always computed in full precision.
        """
        if not self.autocast:
            output: Tensor = self.module(x)
            return output
        with torch.autocast(self.device.type, torch.bfloat16):
            output = self.module(x)
        return output.to(self.dtype)

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode without gradients; the training flags come back as the factory made them."""
        self.flags.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.flags.train()

    def predict(self, x: Tensor) -> dict[str, Tensor]:
        """The predictive distribution of rows x, as the likelihood gives it."""
        with self.evaluating():
            return self.likelihood.predict(self.shaped(self.module(x)))

    def shaped(self, output: Tensor) -> Tensor:
        """Outputs in the targets' shape: for targets [n], the module may return [n, 1]."""
        if self.conversion.to_outputs is not None:
            return output
        return output.reshape(len(output), *self.signature.y_shape)

    def fixed(self) -> dict[str, Tensor]:
        """Buffers and frozen parameters by name: what `theta` does not hold."""
        frozen = {name: p.detach() for name, p in self.module.named_parameters() if not p.requires_grad}
        return {**frozen, **dict(self.module.named_buffers())}

    def layout(self) -> dict[str, Any]:
        """For an export: what the factory was called with, and where each entry of `module.state_dict()` is kept.

        state: key, name (a trainable parameter's, or one of `state`), dtype and shape; tied entries share a name. left_out:
        keys that no such file can hold (sparse tensors, say): constants, which the factory makes again.
        """
        model = self._config.model
        outputs = self.likelihood.outputs(self.signature.y_shape)
        given = models.arguments(models.load_factory(self._factory), model.args, self.signature.x_shape, outputs)
        names = {id(p): name for name, p in self.module.named_parameters() if p.requires_grad}
        names |= {id(tensor): f"fixed.{name}" for name, tensor in self._kept_vars().items()}
        state: list[list[Any]] = []
        left_out = []
        for key, tensor in self.module.state_dict(keep_vars=True).items():
            if isinstance(tensor, Tensor) and id(tensor) in names and tensor.layout == torch.strided:
                state.append([key, names[id(tensor)], str(tensor.dtype).removeprefix("torch."), list(tensor.shape)])
            else:
                left_out.append(key)
        plain = json.loads(json.dumps(given, default=str))
        return {"arguments": plain, "outputs": outputs, "state": state, "left_out": left_out}

    def _kept_vars(self) -> dict[str, Tensor]:
        """As `fixed`, but the module's own tensors instead of copies."""
        frozen = {name: p for name, p in self.module.named_parameters() if not p.requires_grad}
        return {**frozen, **dict(self.module.named_buffers())}

    def theta(self) -> npt.NDArray[Any]:
        """The flat trainable parameters on the host."""
        return tensors.host(self.parameters.theta)

    def master(self) -> Tensor:
        """The flat trainable parameters as float64 on the host, [P]: what the posterior is made of."""
        return torch.from_numpy(np.array(self.theta(), np.float64))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that makes this network's predictions, as host arrays named for a file."""
        fixed = dict(part for name, tensor in self.fixed().items() for part in tensors.packed(f"fixed.{name}", tensor))
        return {"theta": self.theta(), **fixed}

    def takes(self, state: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Whether these arrays come from a model like this one."""
        shapes = {name: array.shape for name, array in self.state().items()}
        return all(name in state and state[name].shape == shape for name, shape in shapes.items())

    def misfit(self, plain: Mapping[str, Any] | None) -> str | None:
        """Why flat vectors of this layout are not this model's, or None; of before layouts were kept, nothing is known."""
        return None if plain is None else Layout.from_plain(plain).difference(self.parameters.layout)

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state` gave; raises ConfigError if they come from another model.

        For predictions, which change nothing, an array that was loaded the last time is not copied again.
        """
        if state["theta"].shape != (self.parameters.size,):
            raise ConfigError(
                f"model: the state directory holds {state['theta'].size} parameters, the configured model has "
                f"{self.parameters.size}; use the configuration it was made with, or a new state_dir"
            )
        self.parameters.load(tensors.from_array(state["theta"]))
        for name, tensor in self.fixed().items():
            key = f"fixed.{name}"
            if self._trained or key not in state or self._loaded.get(key) is not state[key]:
                tensors.unpack(key, tensor, state)
        self._loaded = {} if self._trained else {key: array for key, array in state.items() if key != "theta"}


def _placed(module: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The module on its device; what is trained in `dtype`, and with it whatever has the same dtype and loses nothing.

    Other frozen parameters and buffers stay as they are: a table of 64-bit times, complex filters, a backbone in bfloat16.
    """
    own = {p.dtype for p in module.parameters() if p.requires_grad}

    def place(tensor: Tensor) -> Tensor:
        if tensor.is_quantized or not (tensor.is_floating_point() or tensor.is_complex()):
            return tensor.to(device)
        cast = tensor.to(dtype.to_complex() if tensor.is_complex() else dtype)
        if tensor.requires_grad:
            return tensor.to(device) if tensor.is_complex() else cast.to(device)
        alike = (tensor.real.dtype if tensor.is_complex() else tensor.dtype) in own
        narrower = cast.dtype.itemsize < tensor.dtype.itemsize
        return (cast if (alike or narrower) and _same(cast.to(tensor.dtype), tensor) else tensor).to(device)

    module._apply(place)  # type: ignore[no-untyped-call]
    return module


def _same(one: Tensor, other: Tensor) -> bool:
    """Bitwise, except that NaN equals itself; for sparse tensors, the values that they hold."""
    if one.layout != torch.strided:
        one, other = (t.coalesce().values() if t.layout == torch.sparse_coo else t.values() for t in (one, other))
    if one.is_quantized:
        one, other = one.int_repr(), other.int_repr()
    if one.is_complex():
        one, other = torch.view_as_real(one.resolve_conj()), torch.view_as_real(other.resolve_conj())
    if torch.equal(one, other) or one.shape != other.shape or not one.is_floating_point():
        return torch.equal(one, other)
    return bool(((one == other) | (one.isnan() & other.isnan())).all())


def _random_states(device: torch.device) -> list[Tensor]:
    """Of the generators that a model on this device may draw from."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])
