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

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from streamcl.core.likelihood import Likelihood

WIDEST = 1024  # numbers a row; of more, their covariance would take as much memory as many a network
ROWS = 256  # drawn
SEED = 0
MORE, LEAST = 3.0, 0.02  # times a task's loss, and nats, that targets of rows like its own are in doubt
FEWEST = 16  # draws that count, at least,
MOST_TILTED, MOST_SURE = 1000.0, 100.0  # an entropy's factor in the weights' logarithm; logits' factor
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


def as_sure(likelihood: Likelihood, outputs: Tensor, loss: float) -> tuple[Tensor, float]:
    """Weights [n] of drawn rows with these outputs, and how many times as sure as the outputs their targets are, so that
    the mean entropy of targets is what it is of the rows that such draws stand for.

    loss: of those rows, in nats. Their targets' entropy is that too, if the outputs are calibrated; it is taken to be up to
    `MORE` times that and `LEAST`, since rows were fitted, and draws that are as sure as rows lie further from where
    decisions change. Draws lie between and beyond the rows, where a network is unsure, and free to become sure of anything:
    no loss. Rows of which it is surer so count for more, by exp(-l H) with the least l that does, as long as `FEWEST` of
    them are left (Kish's effective number); what is still missing is put down to targets.
    """
    entropy, doubt = likelihood.doubt(outputs), max(0.0, MORE * loss + LEAST)
    weights = torch.full_like(entropy, 1 / len(entropy))
    if float(entropy.mean()) <= doubt:
        return weights, 1.0

    def tilted(by: float) -> Tensor:
        return (-by * (entropy - entropy.min())).softmax(0)

    def is_less(by: float) -> bool:
        found = tilted(by)
        return float(found @ entropy) > doubt and float(found.square().sum()) * FEWEST <= 1

    weights = tilted(_largest(is_less, MOST_TILTED))
    return weights, _largest(lambda sharper: float(weights @ likelihood.doubt(outputs, 1 + sharper)) > doubt, MOST_SURE) + 1


def _largest(holds: Callable[[float], bool], most: float) -> float:
    """The largest number up to which something holds that holds from 0 on, to one part in a million of the most."""
    low, high = 0.0, most
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


@lru_cache(maxsize=2)
def _noise(width: int) -> Tensor:
    """[ROWS, width] of mean 0 and, where there are rows enough, covariance 1."""
    noise = torch.randn(ROWS, width, dtype=torch.float64, generator=torch.Generator().manual_seed(SEED))
    noise -= noise.mean(0)
    if width >= ROWS:
        return noise
    white: Tensor = torch.linalg.solve_triangular(torch.linalg.cholesky(noise.T @ noise / ROWS), noise.T, upper=False)
    return white.T
