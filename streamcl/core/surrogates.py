"""Inputs that stand for a task's own once these are gone: draws from the Gaussian that has their mean and covariance.

What outputs have moved between two sets of parameters can so be seen on the outputs themselves. A quadratic of the loss
knows the move to second order, at one place, and only in directions in which the task's rows had curvature: a class that
they lack, or real outputs that move by many standard deviations of their noise, are next to nothing to it. If the old
outputs are what the targets were drawn by, the loss rises by

    E_x [ KL( p(y | f(x; theta*))  ||  p(y | f(x; theta)) ) ]

which for real targets is ``E_x |f(x; theta) - f(x; theta*)|^2 / (2 s2)``, and of a linear model's the quadratic itself,
whatever the distribution of x, as long as its second moments are kept. Guarantees: the same draws every time; memory that
does not depend on the number of rows or tasks.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

WIDEST = 1024  # numbers a row; of more, their covariance would take as much memory as many a network
ROWS = 256  # drawn
SEED = 0
ROUNDING = 1e-10  # of an input's mean square, that rounding leaves of its variance


def moments(x: Tensor) -> Tensor:
    """Second moments [d + 1, d + 1] of rows x [n, ...] of d numbers each and a 1 behind them, a row's mean; float64."""
    rows = x.reshape(len(x), -1).double()
    mean = rows.mean(0)
    apart = (rows - mean).to(x.dtype)  # in whose precision they are kept well enough once they are centred
    found = rows.new_ones(len(mean) + 1, len(mean) + 1)
    found[:-1, :-1] = (apart.T @ apart).double() / len(rows) + torch.outer(mean, mean)
    found[:-1, -1] = found[-1, :-1] = mean
    return found


def drawn(moments: Tensor, shape: Sequence[int]) -> Tensor:
    """Rows [ROWS, *shape], float64, of which `moments`, or a multiple, are the moments: up to rounding where there are
    more rows than numbers in each, else as far as so many draws have them."""
    held = moments / moments[-1, -1]
    mean = held[-1, :-1]
    covariance = held[:-1, :-1] - torch.outer(mean, mean)
    own = held.diagonal()[:-1].clamp(min=torch.finfo(held.dtype).tiny)
    covariance.diagonal().add_(ROUNDING * own)  # inputs that never change, or are sums of others, have no variance
    root, failed = torch.linalg.cholesky_ex(covariance)
    if int(failed):
        values, vectors = torch.linalg.eigh(covariance)
        root = vectors * values.clamp(min=0).sqrt()
    rows: Tensor = mean + _noise(len(mean)) @ root.T
    return rows.reshape(ROWS, *shape)


@lru_cache(maxsize=2)
def _noise(width: int) -> Tensor:
    """[ROWS, width] of mean 0 and, where there are rows enough, covariance 1."""
    noise = torch.randn(ROWS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    noise -= noise.mean(0)
    if width >= ROWS:
        return noise
    white: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(noise.T @ noise / ROWS), noise.T, upper=False)
    return white.T
