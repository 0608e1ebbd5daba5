"""Heads that sums determine: least squares with its noise and prior found from the evidence, and classes from the same.

With T the scatter of the features about their mean m, c = T_xy that of features and targets, n the rows, a head is

    f(x) = B^T (phi(x) - m) + ybar          B = (T + rho I)^-1 c            (ridge; the intercept is not penalised)

rho = lambda s2, prior precision times noise variance, is where the evidence is greatest (MacKay 1992, Bishop 2006, 3.5): at
`gamma = rho |B|^2 n / E`, with gamma the effective parameters and E the penalised squared residuals; s2 = E / n. One
eigendecomposition of T serves every target and every rho; scikit-learn's `BayesianRidge` comes to the same numbers.

Classes: one-hot targets give scores f, which span the same directions as discriminant analysis with the shared covariance
``(W + rho I) / n``, W the scatter within classes (Hastie, Buja & Tibshirani 1995, penalised discriminant analysis). Classes
are Gaussian there with that covariance, and Bayes' rule gives logits that are linear in phi. What of the
scores' separation is owed to the rows having been fitted is taken out first, by the mean leverage h = (1 + gamma) / n, as
in generalised cross-validation (Craven & Wahba 1979): a residual r becomes r / (1 - h). So probabilities are calibrated,
also where there are fewer rows than features; and where scores have heavier tails than a Gaussian's (`_temperature`). With
a given prior neither is done: with next to none, that is scikit-learn's `LinearDiscriminantAnalysis`.

Guarantees: functions of the sums alone, in float64; collinear and constant features, targets that do not vary, and a single
row give finite heads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from streamcl.core.likelihood import PROBIT
from streamcl.core.moments import Moments

GRID = 96  # of rho, over all that can matter
STEPS = 80  # of bisection, to the last digit
FLOOR = 1e-12  # of the largest eigenvalue: below, a direction is one in which no row varies
LEAST_LEFT = 1e-3  # of a residual that leverage may leave: 1 - h
UNSEEN = 1e-12  # the share of a class without rows
TINY = torch.finfo(torch.float64).tiny
HALF = 0.5  # a row, added to zeros and to ones: neither is impossible for not having come


@dataclass(frozen=True, slots=True)
class Known:
    """What is given instead of found: prior precision and noise variance; None: found from the evidence."""

    precision: float | None = None
    noise: float | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Basis:
    """T in its eigenvectors: values [d], vectors [d, d]; mean m [d]; rows n."""

    values: Tensor
    vectors: Tensor
    mean: Tensor
    rows: float

    @classmethod
    def of(cls, scatter: Tensor, mean: Tensor, rows: float) -> Basis:
        """Of a scatter [d, d]; what rounding leaves below zero is zero."""
        values, vectors = torch.linalg.eigh((scatter + scatter.T) / 2)
        values = torch.where(values > FLOOR * values[-1].clamp(min=0), values, 0.0)
        return cls(values, vectors, mean, rows)

    def effective(self, rho: Tensor) -> Tensor:
        """gamma [m], the parameters that the rows determine, of each rho [m]."""
        return (self.values / (self.values + rho.unsqueeze(1))).sum(1)

    def leverage(self, phi: Tensor, rho: Tensor) -> Tensor:
        """``(phi - m)^T (T + rho I)^-1 (phi - m)`` of rows [n, d], [n, m]: times s2, what is left open of a row's mean."""
        turned = (phi - self.mean) @ self.vectors
        return turned.square() @ (1 / (self.values + rho.unsqueeze(1))).T


@dataclass(frozen=True, eq=False, slots=True)
class Head:
    """weight [K, d], bias [K]: outputs are ``weight phi + bias``, means or logits. noise: variance of each target [K], 0 of
    a class without rows.

    rho [m]: lambda s2 of each target, or the one of all classes.
    """

    weight: Tensor
    bias: Tensor
    noise: Tensor
    rho: Tensor

    def outputs(self, phi: Tensor) -> Tensor:
        """Of rows [n, d], [n, K]."""
        return phi @ self.weight.T + self.bias


@dataclass(frozen=True, eq=False, slots=True)
class Fitted:
    """A head and what it was fitted to. ridge: coefficients B [d, m] and means ybar [m] of the least squares behind it.

    noise [m]: variance of each target about it.
    """

    head: Head
    basis: Basis
    coefficients: Tensor
    targets: Tensor
    noise: Tensor


def behind(fitted: Fitted) -> Head:
    """The least squares behind logits, as a head."""
    bias = fitted.targets - fitted.coefficients.T @ fitted.basis.mean
    return Head(fitted.coefficients.T.contiguous(), bias, fitted.noise, fitted.head.rho)


def natural(fitted: Fitted, outputs: int) -> tuple[Tensor, Tensor]:
    """Diagonal of the precision, and ``Lambda theta``, of the least squares in (weights, biases): [K (d + 1)] both.

    Lambda is ``(Phi^T Phi + rho I) / s2`` of every target, its intercept a feature of ones without a penalty. outputs: K,
    more than there are targets where labels have come since, whose shift is zero.
    """
    basis, n, more = fitted.basis, fitted.basis.rows, outputs - len(fitted.targets)
    coefficients, targets = F.pad(fitted.coefficients, (0, more)), F.pad(fitted.targets, (0, more))
    noise = F.pad(fitted.noise, (0, more), value=1.0).unsqueeze(1)
    rho = fitted.head.rho if len(fitted.head.rho) == 1 else F.pad(fitted.head.rho, (0, more))
    squares = basis.vectors.square() @ basis.values + n * basis.mean.square()
    turned = basis.vectors @ (basis.values.unsqueeze(1) * (basis.vectors.T @ coefficients))
    cross = turned + rho * coefficients + n * basis.mean.unsqueeze(1) * targets
    precision = torch.cat([((squares + rho.reshape(-1, 1)) / noise).reshape(-1), (n / noise).reshape(-1)])
    return precision, torch.cat([(cross.T / noise).reshape(-1), n * targets / noise.squeeze(1)])


# -- least squares -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, slots=True)
class Problem:
    """Least squares of m targets in a basis: projections q = U^T T_xy [d, m], squares T_yy [m].

    pseudo: rows added to the evidence, each with a residual of what the targets themselves vary. One keeps it bounded where
    the features could fit every row, and the noise from zero where classes lie apart.
    """

    basis: Basis
    cross: Tensor
    squares: Tensor
    pseudo: float = 0.0

    @property
    def rows(self) -> float:
        """Of the evidence."""
        return self.basis.rows + self.pseudo

    def penalised(self, rho: Tensor) -> Tensor:
        """E [m]: squared residuals and penalty, at rho [m]."""
        explained = (self.cross.square() / (self.basis.values.unsqueeze(1) + rho)).sum(0)
        left = (self.squares - explained).clamp(min=FLOOR * self.squares)
        return left if not self.pseudo else left + self.pseudo / max(self.basis.rows, 1.0) * self.squares

    def size(self, rho: Tensor) -> Tensor:
        """|B|^2 [m]."""
        return (self.cross / (self.basis.values.unsqueeze(1) + rho)).square().sum(0)

    def noise(self, rho: Tensor) -> Tensor:
        """s2 [m] at its best."""
        return self.penalised(rho) / self.rows

    def evidence(self, rho: Tensor) -> Tensor:
        """log p(targets | rho) [m] with the noise at its best, up to a constant, in nats."""
        fit = -0.5 * self.rows * self.penalised(rho).clamp(min=TINY).log()
        return fit - 0.5 * torch.log1p(self.basis.values / rho.unsqueeze(1)).sum(1)

    def steeper(self, rho: Tensor) -> Tensor:
        """Whether the evidence still rises with rho, as a number [m]: its derivative by log rho, in nats."""
        return 0.5 * (self.basis.effective(rho) - rho * self.size(rho) / self.noise(rho).clamp(min=TINY))


def found_rho(problem: Problem, score: Callable[[Tensor], Tensor], slope: Callable[[Tensor], Tensor], m: int) -> Tensor:
    """rho [m] at which `score` is greatest: the best of a grid, then the root of its slope beside that."""
    values = problem.basis.values
    largest = values[-1].clamp(min=TINY)
    steps = torch.logspace(-11, 9, GRID, dtype=torch.float64, device=values.device)
    grid = (largest * steps).unsqueeze(1).expand(-1, m)
    best = torch.stack([score(each) for each in grid]).argmax(0)
    low = grid.gather(0, (best - 1).clamp(min=0).unsqueeze(0))[0].log()
    high = grid.gather(0, (best + 1).clamp(max=GRID - 1).unsqueeze(0))[0].log()
    for _ in range(STEPS):
        middle = (low + high) / 2
        rises = slope(middle.exp()) > 0
        low, high = torch.where(rises, middle, low), torch.where(rises, high, middle)
    return ((low + high) / 2).exp()


def by_evidence(problem: Problem, known: Known = Known()) -> Tensor:
    """rho [m] of each target by itself."""
    m = len(problem.squares)
    if known.precision is not None and known.noise is not None:
        return problem.squares.new_full((m,), known.precision * known.noise)
    if known.precision is not None:
        return _given_precision(problem, known.precision)
    if known.noise is not None:
        return _given_noise(problem, known.noise)
    return found_rho(problem, problem.evidence, problem.steeper, m)


def _given_precision(problem: Problem, precision: float) -> Tensor:
    """rho = lambda s2 where lambda is known and s2 found: the evidence is over s2 alone."""
    n = problem.rows

    def score(rho: Tensor) -> Tensor:
        noise = rho / precision
        shape = torch.log1p(problem.basis.values / rho.unsqueeze(1)).sum(1)
        return -0.5 * (n * noise.log() + problem.penalised(rho) / noise + shape)

    def slope(rho: Tensor) -> Tensor:
        noise = rho / precision
        spread = (problem.penalised(rho) - rho * problem.size(rho)) / noise
        return 0.5 * (spread - n + problem.basis.effective(rho))

    return found_rho(problem, score, slope, len(problem.squares))


def _given_noise(problem: Problem, noise: float) -> Tensor:
    """rho = lambda s2 where s2 is known and lambda found."""

    def score(rho: Tensor) -> Tensor:
        return -0.5 * (problem.penalised(rho) / noise + torch.log1p(problem.basis.values / rho.unsqueeze(1)).sum(1))

    def slope(rho: Tensor) -> Tensor:
        return 0.5 * (problem.basis.effective(rho) - rho * problem.size(rho) / noise)

    return found_rho(problem, score, slope, len(problem.squares))


def regression(moments: Moments, targets: int, known: Known = Known()) -> Fitted:
    """Least squares of the last `targets` numbers of every row on those before them."""
    d, n = moments.width - targets, moments.total
    mean, scatter = moments.mean, moments.about_the_mean()
    basis = Basis.of(scatter[:d, :d], mean[:d], n)
    fits_all = float((basis.values > 0).sum()) > n - 2  # every row, were there no noise
    squares = scatter.diagonal()[d:].clamp(min=0)
    problem = Problem(basis, basis.vectors.T @ scatter[:d, d:], squares, pseudo=float(fits_all))
    rho = by_evidence(problem, known)
    coefficients = _coefficients(problem, rho)
    noise = problem.noise(rho).clamp(min=TINY) if known.noise is None else rho.new_full((targets,), known.noise)
    if known.noise is None and known.precision is not None:
        noise = rho / known.precision
    noise = torch.where(problem.squares > 0, noise, torch.maximum(noise, FLOOR * mean[d:].square().clamp(min=1.0)))
    bias = mean[d:] - coefficients.T @ mean[:d]
    head = Head(coefficients.T.contiguous(), bias, noise, rho)
    return Fitted(head, basis, coefficients, mean[d:], noise)


def _coefficients(problem: Problem, rho: Tensor) -> Tensor:
    """B [d, m]."""
    basis = problem.basis
    return basis.vectors @ (problem.cross / (basis.values.unsqueeze(1) + rho))


def mean_nll(moments: Moments, head: Head) -> float:
    """Of rows with their targets behind their features, in nats a row, from their sums alone: Gaussian targets."""
    squares = _squared_errors(moments, head)
    return float((0.5 * (2 * math.pi * head.noise).log() + squares / (2 * head.noise)).sum())


def squared_error(moments: Moments, head: Head) -> float:
    """As `mean_nll`: of a row on average, summed over its targets."""
    return float(_squared_errors(moments, head).sum())


def _squared_errors(moments: Moments, head: Head) -> Tensor:
    """Of each target, [m]."""
    d = head.weight.shape[1]
    mean, n = moments.mean, max(moments.total, TINY)
    scatter = moments.about_the_mean() / n
    off = mean[d:] - head.outputs(mean[:d])
    crossed = (head.weight @ scatter[:d, d:]).diagonal()
    squares = off.square() + scatter.diagonal()[d:] - 2 * crossed + ((head.weight @ scatter[:d, :d]) * head.weight).sum(1)
    return squares.clamp(min=0)


# -- classes -----------------------------------------------------------------------------------------------------------


def by_evidence_together(problem: Problem) -> Tensor:
    """The one rho [1] of all targets, each with noise of its own."""
    return found_rho(
        problem,
        lambda rho: problem.evidence(rho).sum(0, keepdim=True),
        lambda rho: problem.steeper(rho).sum(0, keepdim=True),
        1,
    )


def discriminant(moments: Moments, known: Known = Known()) -> Fitted:
    """Logits of classes, one a group. One without rows has next to no probability, and changes nothing of the others."""
    classes = _Classes.of(moments)
    basis = Basis.of(moments.about_the_mean(), classes.mean, classes.rows)
    problem = Problem(basis, basis.vectors.T @ classes.cross, classes.squares, pseudo=1.0)
    rho = by_evidence_together(problem) if known.precision is None else classes.prior.new_full((1,), known.precision)
    coefficients, noise = _coefficients(problem, rho), problem.noise(rho)
    head = classes.head(moments, coefficients, noise, rho, float(basis.effective(rho)), known)
    whole = coefficients.new_zeros(len(coefficients), len(classes.seen))
    whole[:, classes.seen] = coefficients
    return Fitted(head, basis, whole, _over(classes.seen, classes.prior), head.noise.clamp(min=FLOOR))


def discriminant_at(moments: Moments, rho: Tensor | None, known: Known = Known()) -> Head:
    """As `discriminant`, at a rho [1] that is known, for a fraction of the cost; None: at one that does for a few rows."""
    classes, scatter = _Classes.of(moments), moments.about_the_mean()
    if rho is None or known.precision is not None:
        rho = _first_rho(scatter) if known.precision is None else classes.prior.new_full((1,), known.precision)
    coefficients, gamma = _direct(scatter, classes.cross, float(rho))
    left = (classes.squares - (classes.cross * coefficients).sum(0)).clamp(min=0)
    noise = (left + classes.squares / classes.rows) / (classes.rows + 1)
    return classes.head(moments, coefficients, noise, rho, gamma, known)


def _first_rho(scatter: Tensor) -> Tensor:
    """[1]: a fiftieth of the mean eigenvalue, as a rule of thumb."""
    return (scatter.diagonal().mean() / 50).clamp(min=TINY**0.5).reshape(1)


def _direct(scatter: Tensor, cross: Tensor, rho: float) -> tuple[Tensor, float]:
    """B [d, m] and the effective parameters, by Cholesky's factor."""
    least = FLOOR * float(scatter.diagonal().max().clamp(min=0)) * len(scatter)
    rho = max(rho, least, TINY**0.5)
    lower = torch.linalg.cholesky(scatter + rho * torch.eye(len(scatter), dtype=scatter.dtype, device=scatter.device))
    gamma = len(scatter) - rho * float(torch.cholesky_inverse(lower).diagonal().sum())
    return torch.cholesky_solve(cross, lower), max(gamma, 0.0)


@dataclass(frozen=True, eq=False, slots=True)
class _Classes:
    """Classes that have rows, seen [K] of all: prior, squares of their one-hot targets, T_xy [d, m]; the overall mean."""

    seen: Tensor
    mean: Tensor
    rows: float
    prior: Tensor
    apart: Tensor
    cross: Tensor
    squares: Tensor

    @classmethod
    def of(cls, moments: Moments) -> _Classes:
        seen = moments.counts > 0
        counts, n, mean = moments.counts[seen], moments.total, moments.mean
        prior, apart = counts / n, moments.means[seen] - mean
        return cls(seen, mean, n, prior, apart, (apart * counts.unsqueeze(1)).T, n * prior * (1 - prior))

    def head(self, moments: Moments, coefficients: Tensor, noise: Tensor, rho: Tensor, gamma: float, known: Known) -> Head:
        """The logits of scores with these coefficients [d, m]; gamma: effective parameters."""
        left = _left(gamma, self.rows, known)
        ones = torch.eye(len(self.prior), dtype=self.prior.dtype, device=self.prior.device)
        centres = ones - (ones - (self.apart @ coefficients + self.prior)) / left
        spread = coefficients.T @ (moments.scatter @ coefficients + rho * coefficients) / (self.rows * left**2)
        span = self._span(coefficients, spread)
        weight, offset = _by_bayes(centres, spread, span, self.prior)
        cooler = 1.0 if known.precision is not None else _temperature(centres, spread, span, weight, self.prior)
        weight, offset = weight / cooler, offset / cooler
        bias = self.prior.log() + offset + weight @ (self.prior - coefficients.T @ self.mean)
        return Head(*_with_unseen(weight @ coefficients.T, bias, self.seen), _over(self.seen, noise), rho)

    def _span(self, coefficients: Tensor, spread: Tensor) -> Tensor:
        """Orthonormal columns [K, r]: the directions in which scores vary at all, and so say anything.

        Scores sum to 1; and with more classes than features they are in fewer directions than K - 1.
        """
        contrasts = _contrasts(self.prior)
        fitted = (self.apart @ coefficients) @ contrasts
        total = contrasts.T @ ((spread + spread.T) / 2) @ contrasts + fitted.T @ (self.prior.unsqueeze(1) * fitted)
        values, vectors = torch.linalg.eigh(total)
        span: Tensor = contrasts @ vectors[:, values > FLOOR * values[-1:].clamp(min=TINY)]
        return span


def _over(seen: Tensor, values: Tensor) -> Tensor:
    """Of all classes [K]; zero of one without rows."""
    found = values.new_zeros(len(seen))
    found[seen] = values
    return found


def _left(effective: float, rows: float, known: Known) -> float:
    """What the features' leverage leaves of a residual, 1 - h; with a given prior, all: plain discriminant analysis.

    Not the mean's, 1 / n: without its row each class's share is less, which moves the classes' centres apart where the
    features say nothing, by far more than what is left of the scores' spread then.
    """
    return 1.0 if known.precision is not None else max(1 - effective / max(rows, 1.0), LEAST_LEFT)


def _by_bayes(centres: Tensor, spread: Tensor, span: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of scores, weight [K, K] and bias [K] but for the prior: classes at `centres` [K, K], one covariance `spread`,
    in the directions of `span`."""
    if span.shape[1] == 0:
        return torch.zeros_like(centres), torch.zeros_like(prior)
    places = centres @ span
    apart = places - prior @ places
    between = float((prior.unsqueeze(1) * apart.square()).sum())
    values, vectors = torch.linalg.eigh(span.T @ ((spread + spread.T) / 2) @ span)
    least = FLOOR * max(between, float(values[-1].clamp(min=0)), TINY)
    weight = places @ (vectors / values.clamp(min=least)) @ vectors.T @ span.T
    return weight, -0.5 * (weight * centres).sum(1)


def _temperature(centres: Tensor, spread: Tensor, span: Tensor, weight: Tensor, prior: Tensor) -> float:
    """What to divide the evidence of Gaussian classes by, 1 or more: scores have heavier tails than a Gaussian's.

    A row of class k whose score leads that of the nearest class by g has the log odds ``sqrt(8 / pi) g / s`` if scores are
    known but for noise of variance s^2, the mean variance within classes (the probit's logistic, MacKay 1992). Gaussian
    classes put half their squared distance there; where that is more, on average over classes, it is too much. With
    more classes than directions in which scores vary, no score leads: that says nothing then.
    """
    if span.shape[1] < len(prior) - 1 or len(prior) == 1:
        return 1.0
    products = weight @ centres.T
    half = 0.5 * (products.diagonal().unsqueeze(1) + products.diagonal() - products - products.T)
    nearest = half.fill_diagonal_(math.inf).argmin(1, keepdim=True)
    lead = centres.diagonal() - centres.gather(1, nearest).squeeze(1)
    odds = float(prior @ lead.clamp(min=0)) / math.sqrt(PROBIT * max(float(spread.diagonal().mean()), TINY))
    return max(1.0, float(prior @ half.gather(1, nearest).squeeze(1)) / max(odds, 1e-3))


def _contrasts(like: Tensor) -> Tensor:
    """Orthonormal columns [K, K - 1] that sum to zero (Helmert)."""
    k = torch.arange(1, len(like), dtype=like.dtype, device=like.device)
    above = torch.triu(torch.ones((len(like), len(like) - 1), dtype=like.dtype, device=like.device))
    below = torch.diag_embed(-k, offset=-1)[:, :-1]
    return (above + below) / (k * (k + 1)).sqrt()


def _with_unseen(weight: Tensor, bias: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Of all classes: one without rows has the overall mean's logits, and next to no probability."""
    whole, biases = weight.new_zeros(len(seen), weight.shape[1]), bias.new_zeros(len(seen))
    if len(bias) < len(seen):
        whole[~seen] = weight.mean(0)
        biases[~seen] = bias.mean() + math.log(UNSEEN)
    whole[seen], biases[seen] = weight, bias
    return whole, biases


def scores_nll(moments: Moments, fitted: Fitted) -> float:
    """Half the squared error of the scores behind the logits, summed over classes, of a row on average: from sums alone.

    Nats, were the scores' noise of variance 1. Its rise is what a task's separation has lost; the logits' own loss is no
    function of sums.
    """
    n = max(moments.total, TINY)
    grown = moments.grown(len(fitted.targets))
    scores = (grown.means - fitted.basis.mean) @ fitted.coefficients + fitted.targets
    off = scores - torch.eye(len(scores), dtype=scores.dtype, device=scores.device)
    within = ((grown.scatter @ fitted.coefficients) * fitted.coefficients).sum(0)
    squares = (grown.counts.unsqueeze(1) * off.square()).sum(0) + within
    return float(squares.sum() / (2 * n))


def regression_at(moments: Moments, targets: int, rho: Tensor | None, known: Known = Known()) -> Head:
    """As `regression`, at rho [m] or, where that is None, at what does for a first few rows."""
    d, n = moments.width - targets, moments.total
    mean, scatter = moments.mean, moments.about_the_mean()
    rho = _first_rho(scatter[:d, :d]).expand(targets) if rho is None else rho
    columns = [_direct(scatter[:d, :d], scatter[:d, d + k : d + k + 1], float(rho[k]))[0] for k in range(targets)]
    coefficients = torch.cat(columns, 1)
    left = (scatter.diagonal()[d:] - (scatter[:d, d:] * coefficients).sum(0)).clamp(min=0)
    noise = (left + scatter.diagonal()[d:] / max(n, 1.0)) / (n + 1)
    noise = noise.clamp(min=FLOOR) if known.noise is None else noise.new_full((targets,), known.noise)
    return Head(coefficients.T.contiguous(), mean[d:] - coefficients.T @ mean[:d], noise, rho)


# -- zeros and ones ------------------------------------------------------------------------------------------------------


def binary(moments: Moments, targets: int, known: Known = Known()) -> Fitted:
    """Logits of the last `targets` numbers of every row, zeros and ones, each by itself: two classes, one covariance."""
    d, n = moments.width - targets, moments.total
    mean, scatter = moments.mean, moments.about_the_mean()
    basis, share = Basis.of(scatter[:d, :d], mean[:d], n), mean[d:].clamp(0, 1)
    problem = Problem(basis, basis.vectors.T @ scatter[:d, d:], scatter.diagonal()[d:].clamp(min=0), pseudo=1.0)
    rho = by_evidence(problem) if known.precision is None else problem.squares.new_full((targets,), known.precision)
    coefficients = _coefficients(problem, rho)
    varies = problem.squares > FLOOR * n
    both = torch.where(varies, problem.squares, torch.ones_like(problem.squares))
    reached = torch.where(varies, (problem.cross * (basis.vectors.T @ coefficients)).sum(0) / both, 0.0)
    left = rho.new_tensor([_left(float(each), basis.rows, known) for each in basis.effective(rho)])
    one, zero = 1 - (1 - share) * (1 - reached) / left, share * (1 - reached) / left
    total = ((scatter[:d, :d] @ coefficients + rho * coefficients) * coefficients).sum(0)
    spread = (total - both * reached.square()).clamp(min=0) / (n * left.square())
    slope = torch.where(varies, (one - zero) / spread.clamp(min=FLOOR), 0.0)
    if known.precision is None:  # as `_temperature`: half the squared distance against the logistic's odds of the lead
        slope = slope / ((one - zero) / 2 * math.sqrt(PROBIT) / spread.clamp(min=FLOOR).sqrt()).clamp(min=1.0)
    odds = ((share * n + HALF) / ((1 - share) * n + HALF)).log()
    bias = odds + slope * (share - (one + zero) / 2 - coefficients.T @ mean[:d])
    noise = problem.noise(rho).clamp(min=FLOOR)
    head = Head((coefficients * slope).T.contiguous(), bias, noise, rho)
    return Fitted(head, basis, coefficients, mean[d:], noise)
