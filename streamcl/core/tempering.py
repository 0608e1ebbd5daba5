"""How much of a posterior's width predictions should have, judged by the rows that it was made of.

A penalty on tens of thousands of parameters is wider than what a network is unsure of: its prior allows directions that no
row ever speaks of. So the outputs are ``N(f, e(x) tau J Sigma J^T)``:

* tau, one of a few, is that under which the rows predict best when each is left out, by more than the standard error.
  Without row n the parameters would be ``theta* + Sigma J_n^T g_n`` (the infinitesimal jackknife; g: the gradient of its
  NLL with respect to its outputs), and its outputs ``f_n + J_n Sigma J_n^T g_n``: no row is learned again. tau = 0, the
  plain prediction, is among them, and is all that few rows can speak for. Of a linear model of Gaussian targets, in which
  tau = 1 is exact, it is the largest one that is not measurably worse.
* e(x) keeps what goes beyond the width that is usual among these rows (`Likelihood.beyond`): training at a point has
  fitted their probabilities without any correction, so what they would get too is in the logits already; and a network's
  noise is found from what its residuals are, so it is in the noise. All is kept where the noise is the data's own: of a
  linear model, or where it was given.

Sums over the rows of all tasks so far are kept: losses and usual widths for each tau, whatever the number of tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from streamcl.core.likelihood import Likelihood
from streamcl.core.linearised import Outputs, root

TAUS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WORSE = 2.0  # standard errors by which tau must lose to be measurably worse than the plain prediction,
BETTER = 1.0  # or gain to be better,
FEWEST = 100  # of so many rows: of fewer, a row's own part is too large for the jackknife
ROWS = 2048  # of a task, at most,
NUMBERS = 1 << 22  # and of their covariances


@dataclass(frozen=True, eq=False, slots=True)
class Tempering:
    """sums [4, len(TAUS)], float64, over rows: for each tau, 1, the loss of a row that is left out above that of the plain
    prediction, its square, and the usual width."""

    sums: Tensor

    def plus(self, other: Tempering | None) -> Tempering:
        """With the rows of another task."""
        return self if other is None else Tempering(self.sums + other.sums)

    def chosen(self, exact: bool, linear: bool = False) -> tuple[float, float]:
        """tau, and the usual width under it.

        The best of those that are measurably better than 0. exact: of a likelihood whose closed form is; linear: of such a
        model too, so that 1 is right: the largest that is not measurably worse.
        """
        rows, more, squares, usual = self.sums
        usual = usual - usual[0] if exact else usual  # without that of older versions, which took 1 for every row
        mean = more / rows
        error = ((squares / rows - mean.square()).clamp(min=0) / rows).sqrt()
        if linear:
            place = int((mean <= WORSE * error).nonzero().max())
        elif rows[0] < FEWEST:
            place = 0
        else:
            place = int(torch.where(mean < -BETTER * error, mean, 0.0).argmin())
        return TAUS[place], float(usual[place] / rows[place])


def tempering(found: Sequence[Outputs], likelihood: Likelihood, y: Tensor, whole: bool) -> Tempering | None:
    """What rows with these outputs and targets y say, of those that they were trained on; None where it is not finite.

    whole: the usual width is in nothing yet, so that all of it counts.
    """
    outputs = torch.cat([each.outputs for each in found]).double()
    covariance = torch.cat([each.spread for each in found]).double()
    gradient = likelihood.cotangents(outputs, "empirical", y, None)[0]
    moved = torch.einsum("nij,nj->ni", covariance, gradient.reshape(len(gradient), -1)).view_as(outputs)
    variances = likelihood.variances(root(covariance))
    sums = torch.zeros(4, len(TAUS), dtype=torch.float64)
    plain = likelihood.spread_nll(outputs + moved, torch.zeros_like(variances), y)
    for place, tau in enumerate(TAUS):
        usual = likelihood.usual(torch.zeros_like(variances) if whole else tau * variances)
        more = likelihood.spread_nll(outputs + moved, likelihood.beyond(tau * variances, float(usual)), y) - plain
        sums[:, place] = torch.stack([usual.new_tensor(len(y)), more.sum(), more.square().sum(), len(y) * usual]).cpu()
    return Tempering(sums) if torch.isfinite(sums).all() else None


def rows_looked_at(samples: int, outputs: int) -> int:
    """Of a task with so many rows."""
    return min(samples, ROWS, NUMBERS // max(1, outputs**2))
