"""The model as the daemon sees it: a module from the operator's factory, its flat parameters and its likelihood.

Guarantees: the same configuration and signature build the same network to the bit; evaluation leaves the
training flags as the factory set them. Knows nothing of tasks, the log or sockets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.config import Config
from streamcl.core.likelihood import Likelihood, likelihood
from streamcl.core.modes import TrainingFlags, refuse_batchnorm
from streamcl.core.parameters import FlatParameters
from streamcl.errors import ConfigError, ModelRefused
from streamcl.learning.data import Conversion
from streamcl.protocol.signature import LabelMap, Signature

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def choose_device(name: str) -> torch.device:
    """``auto`` as CUDA where there is one, else the CPU; any other name as PyTorch reads it. Raises ConfigError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"train.device: expected auto, cpu or an available device, got {name!r}: {error}") from None
    return device


class Network:
    """A built model; raises ModelRefused where the factory or its module cannot be used.

    config: the whole configuration. signature: shapes of one row. labels: the label map (categorical). steady: a training
    step computes what an evaluation does (no dropout), so that its outputs can be scored. trained: False for predictions
    alone, which need no gradients.
    """

    def __init__(
        self,
        config: Config,
        signature: Signature,
        labels: LabelMap,
        device: torch.device,
        trained: bool = True,
    ) -> None:
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
        self._try_forward()
        self.steady = self._is_steady()

    @staticmethod
    def _labelled(config: Config) -> bool:
        return config.model.likelihood == "categorical"

    def _build(self, config: Config) -> nn.Module:
        module = models.build(
            config.model.factory,
            config.model.args,
            self.signature.x_shape,
            self.likelihood.outputs(self.signature.y_shape),
            config.train.seed,
        )
        refuse_batchnorm(module)
        return module.to(self.device, self.dtype)

    def _two_rows(self) -> Tensor:
        return self.conversion.x(np.zeros((2, *self.signature.x_shape), "<i8" if self.signature.x_integer else "<f4"))

    def _is_steady(self) -> bool:
        """Whether a training step draws no random numbers, changes no buffers and computes what evaluation computes."""
        if self.autocast:
            return False
        x = self._two_rows()
        before = [buffer.clone() for buffer in self.module.buffers()]
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():
            states = _random_states(self.device)
            training = self.module(x)
            drew = any(not torch.equal(a, b) for a, b in zip(states, _random_states(self.device), strict=True))
        changed = False
        for buffer, old in zip(self.module.buffers(), before, strict=True):
            changed = changed or not torch.equal(buffer, old)
            buffer.copy_(old)
        with self.evaluating():
            return not drew and not changed and torch.equal(training, self.module(x))

    def _try_forward(self) -> None:
        """Two rows of zeros through the model, so that a wrong shape is refused before any data is taken."""
        x = self._two_rows()
        target_dtype = "<i8" if self.conversion.to_outputs is not None else "<f4"
        y = torch.from_numpy(np.zeros((2, *self.signature.y_shape), target_dtype)).to(self.device)
        try:
            with self.evaluating():
                self.likelihood.nll(self.module(x), y if y.dtype == torch.int64 else y.to(self.dtype))
        except ModelRefused:
            raise
        except Exception as error:
            raise ModelRefused(
                f"the model cannot take rows of shape {list(self.signature.x_shape)}: {type(error).__name__}: {error}"
            ) from error

    def training_output(self, x: Tensor) -> Tensor:
        """The module's output for a training step; with `train.autocast`, in bfloat16 wherever PyTorch holds that safe.

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
        """Outputs in the targets' shape: a target [n] may come out of the module as [n, 1]."""
        if self.conversion.to_outputs is not None:
            return output
        return output.reshape(len(output), *self.signature.y_shape)

    def fixed(self) -> dict[str, Tensor]:
        """Buffers and frozen parameters by name: what `theta` does not hold."""
        frozen = {name: p.detach() for name, p in self.module.named_parameters() if not p.requires_grad}
        return {**frozen, **dict(self.module.named_buffers())}

    def theta(self) -> npt.NDArray[Any]:
        """The flat trainable parameters on the host."""
        return _host(self.parameters.theta)

    def master(self) -> Tensor:
        """The flat trainable parameters as float64 on the host, [P]: what the posterior is made of."""
        return torch.from_numpy(np.array(self.theta(), np.float64))

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """Everything that makes this network's predictions, as host arrays named for a file."""
        fixed = {f"fixed.{name}": _host(tensor) for name, tensor in self.fixed().items()}
        return {"theta": self.theta(), **fixed}

    def takes(self, state: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Whether these arrays are of a model like this one."""
        shapes = {name: array.shape for name, array in self.state().items()}
        return all(name in state and state[name].shape == shape for name, shape in shapes.items())

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state` gave; raises ConfigError where the model is another one."""
        if state["theta"].shape != (self.parameters.size,):
            raise ConfigError(
                f"model: the state directory holds {state['theta'].size} parameters, the configured model has "
                f"{self.parameters.size}; use the configuration it was made with, or a new state_dir"
            )
        self.parameters.load(_tensor(state["theta"]))
        for name, tensor in self.fixed().items():
            tensor.copy_(_tensor(state[f"fixed.{name}"]))


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    """A tensor of an array, copied only where the array is read-only, which PyTorch does not know."""
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _random_states(device: torch.device) -> list[Tensor]:
    """Of the generators that a model on this device may draw from."""
    return [torch.get_rng_state()] + ([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])


def _host(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array
