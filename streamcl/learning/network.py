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

    config: the whole configuration. signature: shapes of one row. labels: the label map (categorical).
    """

    def __init__(self, config: Config, signature: Signature, labels: LabelMap, device: torch.device) -> None:
        self.signature = signature
        self.labels = labels
        self.device = device
        self.dtype = DTYPES[config.train.dtype]
        self.likelihood: Likelihood = likelihood(config.model.likelihood, config.model.classes, config.model.noise_variance)
        self.module = self._build(config)
        self.flags = TrainingFlags(self.module)
        self.parameters = FlatParameters(self.module)
        self.conversion = Conversion(self.dtype, device, labels.to_outputs if self._labelled(config) else None)
        self._try_forward()

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

    def _try_forward(self) -> None:
        """Two rows of zeros through the model, so that a wrong shape is refused before any data is taken."""
        x = self.conversion.x(np.zeros((2, *self.signature.x_shape), "<i8" if self.signature.x_integer else "<f4"))
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

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state` gave; raises ConfigError where the model is another one."""
        if state["theta"].shape != (self.parameters.size,):
            raise ConfigError(
                f"model: the state directory holds {state['theta'].size} parameters, the configured model has "
                f"{self.parameters.size}; use the configuration it was made with, or a new state_dir"
            )
        self.parameters.load(torch.from_numpy(np.array(state["theta"])))
        for name, tensor in self.fixed().items():
            tensor.copy_(torch.from_numpy(np.array(state[f"fixed.{name}"])))


def _host(tensor: Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy()
    return array
