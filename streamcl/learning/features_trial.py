"""Whether a feature map can serve an exact learner, tried on a few rows of a first batch and thrown away.

Guarantees: whatever a module raises becomes a ModelRefused, with the exception's type and text and a remedy; random
generators are left as they were. As `trial` is for a network that is trained.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamcl import models
from streamcl.config import Config
from streamcl.core.gradients import same_outputs
from streamcl.errors import ModelRefused, StreamclError, in_words
from streamcl.learning.data import Array
from streamcl.learning.features import FeatureNetwork
from streamcl.schema import LabelMap, Signature

REPEATED = 1e-6  # by how much features that are computed twice in the same way may differ, relatively


@dataclass(frozen=True, slots=True)
class FeatureTrial:
    """A map to be tried on rows x of a first batch; arguments as of `trial.Trial`."""

    config: Config
    signature: Signature
    device: torch.device
    x: Array
    new_labels: tuple[int, ...]
    look_up: Callable[[], None]
    factory: Callable[..., nn.Module] | None = None

    def run(self) -> None:
        """Raise ModelRefused (or ConfigError) unless it can serve."""
        with models.seeded(self.config.train.seed):
            labels = LabelMap(None)
            labels.add(self.new_labels)
            network = self._network(labels)
            self.look_up()
            x = network.conversion.x(self.x)
            if network.scales:
                network.scale_by(x)
            self._check(network, x)

    def _network(self, labels: LabelMap) -> FeatureNetwork:
        try:
            return FeatureNetwork(self.config, self.signature, labels, self.device, factory=self.factory)
        except StreamclError:
            raise
        except (Exception, SystemExit) as error:
            raise ModelRefused(f"the feature map cannot be made: {in_words(error)}") from error

    def _check(self, network: FeatureNetwork, x: Tensor) -> None:
        fixed = {name: tensor.clone() for name, tensor in network.fixed().items()}
        given = x.clone()
        phi = self._phi(network, given)
        self.look_up()
        if not torch.equal(given, x):
            raise ModelRefused("the feature map writes into its input; use x = x.clone() first")
        if not same_outputs(self._phi(network, x), phi, REPEATED):
            raise ModelRefused(
                "the feature map gives other features for the same rows a second time; expected the same: let it draw no "
                "random numbers in evaluation mode, and keep no state"
            )
        if changed := network.changed(fixed):
            raise ModelRefused(
                f"an evaluation changes {', '.join(changed[:3])}; expected a map that keeps no state of its own"
            )
        alone = torch.cat([self._phi(network, x[n : n + 1]) for n in range(len(x))])
        if not same_outputs(alone, phi):
            raise ModelRefused(
                "what the feature map gives for a row depends on the rows beside it; expected each row's features to be "
                "its own: use running statistics (.eval() in the factory), and pad to a fixed length"
            )

    def _phi(self, network: FeatureNetwork, x: Tensor) -> Tensor:
        try:
            return network.phi(x).to(network.module.dtype)
        except StreamclError:
            raise
        except ValueError as error:
            raise ModelRefused(f"{error}; look for a division by zero, or a row that is entirely masked") from error
        except (Exception, SystemExit) as error:
            raise ModelRefused(f"the feature map fails on {len(x)} rows: {in_words(error)}", private=True) from error
