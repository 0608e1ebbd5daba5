"""What an exact learner's predictions leave open: how far a row lies from those that the head was solved for.

With leverage ``h(x) = 1/n + (phi - m)^T (T + rho I)^-1 (phi - m)`` (`core.heads`), real targets have the variance
``s2 (1 + h(x))``, the predictive of Bayesian least squares itself. Scores of classes spread by the same factor; what is
usual among rows that were learned is in their covariance already, so that a row's evidence for one class against another
is divided by ``r = (1 + h(x)) / (1 + mean h)``, where that is more than 1: far from everything, the classes' shares remain.
By draws, of the outputs: for classes with the variance whose probit correction is r.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from streamcl.config import Config
from streamcl.core.heads import HALF, Fitted
from streamcl.core.likelihood import PROBIT
from streamcl.core.moments import Moments
from streamcl.learning import exact
from streamcl.learning.data import Array
from streamcl.learning.features import FeatureNetwork
from streamcl.learning.predictive import DRAW_BYTES, Predicted, chunks, gathered

NOTHING = (
    "no task has been consolidated yet, so nothing is known of what predictions leave open: this is the plain prediction"
)


@dataclass(frozen=True, slots=True)
class Openness:
    """Of the sums of all consolidated tasks. fitted: None where there are none."""

    likelihood: str
    fitted: Fitted | None

    @classmethod
    def of(cls, config: Config, state: Mapping[str, npt.NDArray[Any]]) -> Openness:
        """From a posterior's arrays."""
        return cls.of_moments(config, Moments.from_state(state), int(state["targets"][0]))

    @classmethod
    def of_moments(cls, config: Config, moments: Moments, targets: int) -> Openness:
        """From sums."""
        found = exact.fitted(config, moments, targets) if moments.total > 0 else None
        return cls(config.model.family, found)

    def uncertain(self, network: FeatureNetwork, x: Array, most_bytes: int | None = None) -> Predicted:
        """As `predictive.uncertain`: in closed form."""
        return self._over(network, x, most_bytes, lambda output, wider: self._closed(network, output, wider))

    def averaged(
        self, network: FeatureNetwork, x: Array, samples: int, seed: int, most_bytes: int | None = None
    ) -> Predicted:
        """As `predictive.averaged`: over so many draws of the outputs."""
        generator = torch.Generator().manual_seed(seed)
        return self._over(
            network, x, most_bytes, lambda output, wider: self._drawn(network, output, wider, samples, generator)
        )

    def _over(
        self,
        network: FeatureNetwork,
        x: Array,
        most_bytes: int | None,
        finished: Callable[[Tensor, Tensor], dict[str, Tensor]],
    ) -> Predicted:
        """finished: makes a prediction of outputs [n, K] and what is left open of them, `_wider`."""

        def parts() -> Iterator[dict[str, Tensor]]:
            for chunk in chunks(network, x):
                phi = network.phi(chunk)
                output = network.of_features(phi)
                wider = self._wider(phi)
                yield network.predict(chunk) if wider is None else finished(output, wider)

        return Predicted(gathered(parts(), most_bytes), NOTHING if self.fitted is None else None)

    def _wider(self, phi: Tensor) -> Tensor | None:
        """Of real targets, the variance of each mean, [n, K]; else r, [n, 1] or [n, K]."""
        if self.fitted is None:
            return None
        basis, head = self.fitted.basis, self.fitted.head
        leverage = 1 / basis.rows + basis.leverage(phi, head.rho)
        if self.likelihood == "gaussian":
            return leverage * head.noise
        usual = (1 + basis.effective(head.rho)) / basis.rows
        return ((1 + leverage) / (1 + usual)).clamp(min=1.0)

    def _shares(self, output: Tensor) -> Tensor:
        """What logits are where a row says nothing: [K]; a class that has come since has its own."""
        assert self.fitted is not None
        share, n = self.fitted.targets, self.fitted.basis.rows
        if self.likelihood == "bernoulli":
            return ((share * n + HALF) / ((1 - share) * n + HALF)).log()
        logs = output.new_full((output.shape[1],), float("nan"))
        logs[: len(share)] = torch.where(share > 0, share.log(), float("nan"))
        return logs

    def _closed(self, network: FeatureNetwork, output: Tensor, wider: Tensor) -> dict[str, Tensor]:
        if self.likelihood == "gaussian":
            return network.likelihood.spread(network.shaped(output), wider)
        shares = self._shares(output)
        moved = shares + (output - shares) / wider
        return network.likelihood.predict(network.shaped(torch.where(shares.isnan(), output, moved)))

    def _drawn(
        self, network: FeatureNetwork, output: Tensor, wider: Tensor, samples: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        variance = wider if self.likelihood == "gaussian" else (wider.square() - 1) / PROBIT
        rows = max(1, DRAW_BYTES // (8 * samples * output.shape[1]))
        parts = []
        for start in range(0, len(output), rows):
            mean, deviation = output[start : start + rows], variance[start : start + rows].sqrt()
            noise = torch.randn((samples, *mean.shape), generator=generator, dtype=torch.float64).to(mean.device)
            draws = network.shaped((mean + deviation * noise).flatten(0, 1))
            each = network.likelihood.predict(draws)
            stacked = {name: values.view(samples, len(mean), *values.shape[1:]) for name, values in each.items()}
            found = {name: values.mean(0) for name, values in stacked.items()}
            if "variance" in stacked:
                found["variance"] = found["variance"] + stacked["mean"].var(0, correction=0)
            parts.append(found)
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
