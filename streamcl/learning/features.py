"""A fixed map of rows to features, and a linear head on them: what an exact learner predicts with.

The map is the operator's module or one of `models`, in evaluation mode and frozen; it computes in the precision that it was
made in, what comes out of it goes on in float64. Guarantees: the same configuration and signature make the same map to the
bit; it is never trained. Only what scales its input, where it asks for that, is found on the first rows and then stays.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.config import Config
from streamcl.core import likelihood as likelihoods
from streamcl.core.heads import UNSEEN, Head
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters
from streamcl.core.reduce import ALONE, Reduction
from streamcl.errors import ConfigError, ModelRefused
from streamcl.learning import tensors
from streamcl.learning.data import Conversion
from streamcl.learning.growing import Widening
from streamcl.learning.network import DTYPES, Network
from streamcl.schema import LabelMap, Signature

NOISE = "head.noise"  # in a checkpoint: the variance of each target
PHI_ROWS = 4096  # at a time, so that many rows need little memory


class Features(nn.Module):
    """A frozen module with a linear head, both as one module: outputs are means or logits, [n, K] float64."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.head = nn.Linear(1, 1, dtype=torch.float64)

    @property
    def dtype(self) -> torch.dtype:
        """What the body computes in."""
        tensors = [*self.body.parameters(), *self.body.buffers()]
        return next((each.dtype for each in tensors if each.is_floating_point()), torch.float64)

    def phi(self, x: Tensor) -> Tensor:
        """Features [n, d] float64 of rows."""
        given = x if not x.is_floating_point() else x.to(self.dtype)
        out = self.body(given)
        if not isinstance(out, Tensor) or out.ndim == 0 or len(out) != len(x):
            shape = list(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ModelRefused(
                f"the feature map returns {shape} for {len(x)} rows; expected one tensor [n, d], a row's features beside "
                "each other: pool over tokens or pixels, and return one tensor, from a wrapper module if need be"
            )
        return out.reshape(len(out), -1).double()

    def forward(self, x: Tensor) -> Tensor:
        """x: rows [n, ...]."""
        return self.head(self.phi(x))  # type: ignore[no-any-return]


class FeatureNetwork(Network):
    """What `Network` is, of a frozen map and a head that is solved for; its parameters are the head's, in float64.

    width: d. noise [K]: of every target.
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
        self._config, self._factory = config, factory or config.model.maker
        self.signature, self.labels, self.device, self.reduction = signature, labels, device, reduction
        self.dtype = torch.float64
        self.targets, self.autocast, self.steady = None, False, False
        self._trained, self._loaded = trained, {}
        self.widening, self._visible, self.told = Widening(()), None, False
        self.task = 0
        self.grows, self.blocks, self._blocks = False, {}, []  # it has an output for every label, and no more
        self.conversion = Conversion(self.dtype, device, labels.to_outputs if self._labelled(config) else None)
        self.module: Features = self._built(config)
        self.width = self._find_width()
        self._resize(self._outputs_now())
        for name, tensor in self.fixed().items():
            tensors.check_storable(name, tensor)

    def _built(self, config: Config) -> Features:
        body = models.build(
            self._factory, config.model.args, self.signature.x_shape, None, config.train.seed, self.signature.x_integer
        )
        body.eval()
        for parameter in body.parameters():
            parameter.requires_grad_(False)
        dtype = DTYPES[config.train.dtype]
        narrow = lambda t: t.to(dtype) if t.is_floating_point() and t.dtype.itemsize < dtype.itemsize else t  # noqa: E731
        body._apply(lambda tensor: narrow(tensor).to(self.device))  # type: ignore[no-untyped-call]
        return Features(body).to(self.device)

    def _find_width(self) -> int:
        """d, by a row of zeros or, where that fails, of ones."""
        kind = torch.int64 if self.signature.x_integer else torch.float64
        failure: Exception | None = None
        for value in (0, 1):
            row = torch.full((1, *self.signature.x_shape), value, dtype=kind, device=self.device)
            try:
                with torch.no_grad():
                    return self.module.phi(row).shape[1]
            except (ModelRefused, MemoryError, torch.OutOfMemoryError):  # of which the latter say nothing of the map
                raise
            except Exception as error:  # whatever a module may raise
                failure = error
        raise ModelRefused(
            f"the feature map fails on a row of zeros, and of ones, of shape {list(self.signature.x_shape)}: "
            f"{type(failure).__name__}: {failure}; expected features [n, d] of rows of this shape"
        ) from failure

    # -- the head --------------------------------------------------------------------------------------------------

    def _outputs_now(self) -> int:
        if self._labelled(self._config):
            return max(1, len(self.labels.outputs))
        return self._likelihood_of(1).outputs(self.signature.y_shape)

    @property
    def outputs(self) -> int:
        """K."""
        return self.module.head.out_features

    def _likelihood_of(self, outputs: int) -> likelihoods.Likelihood:
        model = self._config.model
        if model.family == "gaussian":
            return likelihoods.Noises(1.0, each=torch.ones(outputs, dtype=self.dtype, device=self.device))
        return likelihoods.likelihood(model.family, outputs)

    def _resize(self, outputs: int) -> None:
        """A head of so many outputs, which says nothing yet."""
        head = nn.Linear(1, 1, dtype=self.dtype, device=self.device)  # without drawing numbers that nobody needs
        head.in_features, head.out_features = self.width, outputs
        head.weight = nn.Parameter(torch.zeros((outputs, self.width), dtype=self.dtype, device=self.device))
        head.bias = nn.Parameter(torch.zeros(outputs, dtype=self.dtype, device=self.device))
        self.module.head = head
        self.module.eval()
        self.flags = TrainingFlags(self.module)
        self.parameters = FlatParameters(self.module, gradients=False)
        self.likelihood = self._likelihood_of(outputs)
        self.noise = torch.ones(outputs, dtype=self.dtype, device=self.device)

    def grow(self) -> None:
        """An output for every label that there is by now; new ones have next to no probability."""
        more = self._outputs_now() - self.outputs
        if self._labelled(self._config) and more > 0:
            self.put(grown(Head(self.module.head.weight, self.module.head.bias, self.noise, self.noise), more))

    def put(self, head: Head) -> None:
        """Predict with this head from now on."""
        weight, bias, noise = head.weight.detach().clone(), head.bias.detach().clone(), head.noise.detach().clone()
        if len(weight) != self.outputs:
            self._resize(len(weight))
        with torch.no_grad():
            self.module.head.weight.copy_(weight)
            self.module.head.bias.copy_(bias)
        self._take_noise(noise)

    def _take_noise(self, noise: Tensor) -> None:
        self.noise = noise
        if self._config.model.family == "gaussian":
            self.likelihood = likelihoods.Noises(1.0, each=noise)

    def phi(self, x: Tensor) -> Tensor:
        """Features [n, d] of rows as the model takes them. Raises ValueError where they are not finite."""
        return self._phi(x, ALONE)

    def shared_phi(self, x: Tensor) -> Tensor:
        """As `phi`, of rows that all processes are about to learn: of a map with parameters each takes its part."""
        return self._phi(x, self.reduction if self.has_parameters else ALONE)

    @property
    def has_parameters(self) -> bool:
        """Whether the map is a network of its own, and not the row or some random features of it."""
        return any(True for _ in self.module.body.parameters())

    def _phi(self, x: Tensor, reduction: Reduction) -> Tensor:
        with torch.no_grad():
            parts = [self._of_block(x[start : start + PHI_ROWS], reduction) for start in range(0, len(x), PHI_ROWS)]
        found = torch.cat(parts)
        if not torch.isfinite(found).all():
            raise ValueError(
                "the features of these rows are not finite numbers: NaN or infinity came out of the feature map"
            )
        return found

    def _of_block(self, x: Tensor, reduction: Reduction) -> Tensor:
        own = x[reduction.part(len(x))]
        phi = self.module.phi(own) if len(own) else x.new_empty((0, self.width), dtype=torch.float64)
        return reduction.whole(phi, len(x))

    def of_features(self, phi: Tensor) -> Tensor:
        """Outputs of rows whose features are known."""
        with torch.no_grad():
            output: Tensor = self.module.head(phi)
        return output

    # -- scaling of the input ----------------------------------------------------------------------------------------

    @property
    def scales(self) -> bool:
        """Whether the map is still to find out how its input is scaled."""
        return bool(getattr(self.module.body, "unsettled", False))

    def scale_by(self, x: Tensor) -> None:
        """Scale the input by these rows."""
        self.module.body.settle(x)  # type: ignore[operator]

    def scaled(self) -> None:
        """The scale stays as it is."""
        self.module.body.keep()  # type: ignore[operator]

    # -- kept ----------------------------------------------------------------------------------------------------------

    def layout(self) -> dict[str, Any]:
        """As of `Network`: of the whole module, map and head."""
        model = self._config.model
        given = models.arguments(models.load_factory(self._factory), model.args, self.signature.x_shape, None)
        names = {id(p): name for name, p in self.module.named_parameters() if p.requires_grad}
        names |= {id(tensor): f"fixed.{name}" for name, tensor in self._kept_vars().items()}
        found = self._entries(names)
        return {"arguments": json.loads(json.dumps(given, default=str)), "outputs": self.outputs, **found}

    def state(self) -> dict[str, npt.NDArray[Any]]:
        """As of `Network`, and the noise of every target."""
        return {**super().state(), NOISE: tensors.host(self.noise)}

    def load(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take over what `state` gave; raises ConfigError if it comes from another map."""
        size = state["theta"].size
        if size % (self.width + 1):
            raise ConfigError(
                f"model: the state directory holds a head of {size} numbers, which is none on {self.width} features; use "
                "the configuration it was made with, or a new state_dir"
            )
        if size != self.parameters.size:
            self._resize(size // (self.width + 1))
        super().load(state)
        if NOISE in state:
            self._take_noise(torch.tensor(state[NOISE], dtype=torch.float64).to(self.device))
        if self._trained:
            self.grow()

    def takes(self, state: Mapping[str, npt.NDArray[Any]]) -> bool:
        """Whether these arrays come from a map like this one, with any number of labels."""
        fixed = {name: array.shape for name, array in self.state().items() if name not in ("theta", NOISE)}
        alike = all(name in state and state[name].shape == shape for name, shape in fixed.items())
        return alike and "theta" in state and NOISE in state and state["theta"].size % (self.width + 1) == 0

    def misfit(self, plain: Mapping[str, Any] | None) -> str | None:
        """As of `Network`, whatever the number of labels."""
        if plain is None:
            return None
        shapes = dict(zip(plain["names"], plain["shapes"], strict=True))
        width = next((shape[1] for name, shape in shapes.items() if name == "head.weight"), None)
        if width is None:
            return "a network that is trained"
        return None if width == self.width else f"{width} features where the other has {self.width}"


def grown(head: Head, more: int) -> Head:
    """With so many outputs more, of which nothing is known: the mean logits, and next to no probability."""
    weight, bias = head.weight.detach(), head.bias.detach()
    weights = torch.cat([weight, weight.mean(0, keepdim=True).expand(more, -1)])
    biases = torch.cat([bias, (bias.mean() + np.log(UNSEEN)).expand(more)])
    return Head(weights, biases, torch.cat([head.noise, head.noise.new_zeros(more)]), head.rho)
