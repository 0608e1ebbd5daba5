"""What an exact learner will keep, and what that costs, before anything is learned: for people to read.

Decides nothing. Costs are counted in operations, not measured; what the feature map itself takes is its own affair.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from streamcl.config import Config, settled
from streamcl.learning.data import Array
from streamcl.learning.features import FeatureNetwork
from streamcl.learning.features_trial import FeatureTrial
from streamcl.learning.network import choose_device
from streamcl.schema import LabelMap, Signature

BYTES = 8  # of a number: all are float64
EIGEN = 9  # operations times d^3, about, for all eigenvectors of the features' scatter


@dataclass(frozen=True, slots=True)
class ExactPlan:
    """features: d. outputs: K, of the labels seen, or of the targets. frozen: numbers of the feature map. posterior_bytes,
    factor_bytes: of the sums of all tasks in a checkpoint, and of one task's in its file. row_operations: to add a row.
    boundary_operations: to solve for the head."""

    features: int
    outputs: int
    frozen: int
    posterior_bytes: int
    factor_bytes: int
    row_operations: int
    boundary_operations: int


def exact_plan(config: Config, x: Array, y: Array, factory: Callable[..., nn.Module] | None = None) -> ExactPlan:
    """Of the configured feature map on rows like x, y [n, ...].

    Raises ModelRefused for a map that cannot serve, ConfigError, and Refused for labels that it does not take.
    """
    config = settled(config, y.dtype.kind == "f")
    labels, signature, device = LabelMap(config.model.outputs), Signature.of(x, y), choose_device(config.train.device)
    new = labels.new_labels(y) if config.model.family == "categorical" else ()
    labels.add(new)
    FeatureTrial(config, signature, device, x, new, lambda: None, factory).run()
    network = FeatureNetwork(config, signature, labels, device, factory=factory)
    d, k = network.width, network.outputs
    targets = 0 if config.model.family == "categorical" else k
    groups, width = (1 if targets else k), d + targets
    sums = groups * (1 + width) + width**2 + 1
    frozen = sum(tensor.numel() for tensor in network.fixed().values())
    posterior = sums + 2 * k * (d + 1) + 2
    return ExactPlan(d, k, frozen, BYTES * posterior, BYTES * sums, 2 * width**2, EIGEN * d**3)


def plain(found: ExactPlan) -> dict[str, Any]:
    """As plain containers."""
    return {"learner": "exact", **asdict(found)}
