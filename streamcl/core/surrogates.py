"""Inputs that stand for a task's own once these are gone: draws from the Gaussian that has their mean and covariance.

What outputs have moved between two sets of parameters can so be seen on the outputs themselves. A quadratic of the loss
knows what they move in first order alone, which of a network's real outputs is a small part: an output that is fitted well
moves by whole standard deviations of the noise, along a path on which its Jacobian turns. With residuals that are
uncorrelated with the move, as at an optimum they are, the loss of real targets with noise s2 rises by

    E_x [ |f(x; theta) - f(x; theta*)|^2 ] / (2 s2)

which for a linear model is the quadratic itself, whatever the distribution of x, as long as its second moments are kept.
Guarantees: the same draws every time; memory that does not depend on the number of rows or tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

WIDEST = 512  # numbers a row; of more, their covariance would take as much memory as many a network
ROWS = 1024  # drawn
SEED = 0
ROUNDING = 1e-10  # of an input's mean square, that rounding leaves of its variance


def moments(x: Tensor) -> Tensor:
    """Second moments [d + 1, d + 1] of rows x [n, ...] of d numbers each and a 1 behind them, a row's mean; float64."""
    rows = x.reshape(len(x), -1).double()
    rows = torch.cat([rows, rows.new_ones(len(rows), 1)], 1)
    return rows.T @ rows / len(rows)


def drawn(moments: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows [ROWS, *shape], float64, of which `moments`, or a multiple, are the moments, up to rounding."""
    held = moments / moments[-1, -1]
    mean = held[-1, :-1]
    covariance = held[:-1, :-1] - torch.outer(mean, mean)
    own = held.diagonal()[:-1].clamp(min=torch.finfo(held.dtype).tiny)
    covariance.diagonal().add_(ROUNDING * own)  # inputs that never change, or are sums of others, have no variance
    root, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt()
    rows: Tensor = mean + _white(len(mean)) @ root.T
    return rows.reshape(ROWS, *shape)


@lru_cache(maxsize=2)
def _white(width: int) -> Tensor:
    """Noise [ROWS, width] of mean 0 and covariance 1, exactly."""
    noise = torch.randn(ROWS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    noise -= noise.mean(0)
    white: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(noise.T @ noise / ROWS), noise.T, upper=False)
    return white.T
