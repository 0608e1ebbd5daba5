"""What the model's outputs mean: categorical, Bernoulli or Gaussian, and the curvature each gives them.

Guarantees: everything is in nats and summed over a sample's outputs, never averaged; saturated logits stay finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from streamcl.errors import WrongOutput

PROBIT = math.pi / 8  # of the logistic function, as MacKay (1992) has it
FisherKind = Literal["exact", "mc", "empirical"]


class Cotangents(Protocol):
    """What the Fisher needs of a likelihood."""

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Vectors v [k, n, *output.shape[1:]] whose products with the Jacobian J_n of each sample's output give the Fisher.

        The diagonal Fisher, summed over the samples, is ``sum_k sum_n (J_n^T v_kn)^2``, elementwise.
        exact: the expectation over the predictive distribution. mc: one label sampled from it. empirical: the target.
        """


class Likelihood(Cotangents, Protocol):
    """p(y | output), with output = model(x)."""

    @property
    def exact(self) -> bool:
        """Whether `spread` is a linear model's own predictive, and no approximation of it."""

    def outputs(self, target_row: tuple[int, ...]) -> int:
        """How many outputs the model needs for targets [n, *target_row]."""

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihood of each sample, [n], in nats. Raises WrongOutput for outputs of a wrong shape."""

    def predict(self, output: Tensor) -> dict[str, Tensor]:
        """The predictive distribution: ``probs``, or ``mean`` and ``variance``."""

    def doubt(self, output: Tensor, sharper: float = 1.0) -> Tensor:
        """The entropy of targets drawn by outputs that are so many times as sure, [n] in nats; 0 where nobody can tell."""

    def divergence(self, before: Tensor, after: Tensor, sharper: float = 1.0) -> Tensor:
        """How much the NLL of targets drawn by some outputs, so many times as sure, is more under others, [n] in nats: for
        sharper = 1, Kullback and Leibler's."""

    def variances(self, roots: Tensor) -> Tensor:
        """Of what the closed form needs of Gaussian outputs with covariance ``R R^T``, roots R [n, K, j]: [n, K] or [n, 1].

        A sum over j: what is known of one layer adds to that of another.
        """

    def spread(self, output: Tensor, variances: Tensor) -> dict[str, Tensor]:
        """As `predict`, where the outputs themselves are Gaussian, with these `variances`: in closed form."""

    def spread_nll(self, output: Tensor, variances: Tensor, target: Tensor) -> Tensor:
        """As `nll`, of `spread`."""

    def usual(self, variances: Tensor) -> Tensor:
        """What `beyond` takes for usual in rows with these variances: a number."""

    def beyond(self, variances: Tensor, usual: float) -> Tensor:
        """What of the variances goes beyond what is usual in the rows that the model was fitted to, of the same shape.

        Training at a point fits the probabilities of its rows without any correction: one that such rows would get too is
        in them already.
        """


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of `classes` labels, the outputs being logits [n, classes]; targets int64 [n].

    bounded: for the Fisher, no class counts for less than a quadratic that is never below the loss allows (Jaakkola and
    Jordan 2000): tanh(g / 2) / (2 g), with g how far its logit is below the largest. The curvature itself vanishes with g,
    as if a class that a task lacks could never win; but later tasks will raise it. visible: the only classes that there
    are, for a task that is known to have no others; None: all.
    """

    classes: int
    bounded: bool = False
    visible: tuple[int, ...] | None = None

    exact: ClassVar[bool] = False

    def outputs(self, target_row: tuple[int, ...]) -> int:
        """One logit a class."""
        return self.classes

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """-log softmax(output)[target]."""
        return F.cross_entropy(self._checked(output), target, reduction="none")

    def predict(self, output: Tensor) -> dict[str, Tensor]:
        """Probabilities [n, classes]."""
        return {"probs": self._checked(output).softmax(1)}

    def doubt(self, output: Tensor, sharper: float = 1.0) -> Tensor:
        """Of the classes' probabilities."""
        logs = (sharper * self._checked(output)).log_softmax(1)
        return -(logs.exp() * logs).sum(1)

    def divergence(self, before: Tensor, after: Tensor, sharper: float = 1.0) -> Tensor:
        """Of the classes' probabilities."""
        old, new = self._checked(before).log_softmax(1), self._checked(after).log_softmax(1)
        return ((sharper * old).softmax(1) * (old - new)).sum(1)

    def variances(self, roots: Tensor) -> Tensor:
        """Of a logit against the mean of the others, averaged over the classes, [n, 1].

        Softmax knows differences of logits only: what all have in common is no uncertainty of it.
        """
        roots = roots if self.visible is None else roots[:, list(self.visible)]
        contrasts = (roots - roots.mean(1, keepdim=True)) * (roots.shape[1] / max(1, roots.shape[1] - 1))
        return contrasts.square().sum(2).mean(1, keepdim=True)

    def spread(self, output: Tensor, variances: Tensor) -> dict[str, Tensor]:
        """Probabilities after the probit correction, ``softmax(f / sqrt(1 + pi/8 v))`` (MacKay 1992, Gibbs 1997).

        One v a row: exact as the probit of two classes is, and the most probable class stays that of `predict`.
        """
        return self.predict(_corrected(output, variances))

    def spread_nll(self, output: Tensor, variances: Tensor, target: Tensor) -> Tensor:
        """-log of the corrected probability."""
        return self.nll(_corrected(output, variances), target)

    def usual(self, variances: Tensor) -> Tensor:
        """Mean of ``sqrt(1 + pi/8 v)``, by which the correction divides logits."""
        return _shrinkage(variances).mean()

    def beyond(self, variances: Tensor, usual: float) -> Tensor:
        """The variance whose correction is what remains of a row's, divided by the usual one; 0 where nothing remains."""
        return ((_shrinkage(variances) / usual).square() - 1).clamp(min=0) / PROBIT

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """exact: the columns of a square root of diag(p) - p p^T; otherwise p - e_y for one label y a sample."""
        logits = self._checked(output)
        p = logits.softmax(1)
        if self.bounded and kind != "empirical":
            p = _bounded(logits)
        if kind == "exact":
            return _square_root(p)
        label = (
            _required(target) if kind == "empirical" else torch.multinomial(_drawable(p), 1, generator=generator).squeeze(1)
        )
        return (p - F.one_hot(label, self.classes)).unsqueeze(0)

    def _checked(self, output: Tensor) -> Tensor:
        if output.ndim != 2 or output.shape[1] != self.classes:
            raise WrongOutput(
                f"model output: expected [n, {self.classes}] logits, got {list(output.shape)}; set model.classes to the "
                "number of the model's outputs, or give it as many as there are classes"
            )
        return self.seen(output)

    def seen(self, output: Tensor) -> Tensor:
        """Logits with those of classes that are not visible at minus infinity."""
        if self.visible is None:
            return output
        return output.masked_fill(_hidden(self.classes, self.visible, output.device), -torch.inf)


@lru_cache(maxsize=64)
def _hidden(classes: int, visible: tuple[int, ...], device: torch.device) -> Tensor:
    """Which classes are not visible, [classes]; kept, so that no step waits for a device to be told."""
    hidden = torch.ones(classes, dtype=torch.bool)
    hidden[list(visible)] = False
    return hidden.to(device)


def _bounded(logits: Tensor) -> Tensor:
    """Probabilities [n, K], none below its bound but for what makes them sum to 1."""
    gap = (logits.amax(1, keepdim=True) - logits).clamp(min=1e-3)
    p = torch.maximum(logits.softmax(1), (gap / 2).tanh() / (2 * gap))
    return p / p.sum(1, keepdim=True)


def _drawable(p: Tensor) -> Tensor:
    """Probabilities that can be drawn from; where they are no numbers neither is what comes of them, whatever is drawn."""
    return torch.where(p.isfinite(), p, 0.5)


def _square_root(p: Tensor) -> Tensor:
    """The Cholesky factor of diag(p) - p p^T for every row of p [n, K], its K - 1 columns that are not zero: [K-1, n, K].

    In closed form, with tails q_j = p_j + ... + p_K: column j is ``sqrt(p_j q_(j+1) / q_j) (e_j - sum_(i>j) p_i / q_(j+1)
    e_i)``. One vector fewer than the classes, and no difference of numbers that are nearly equal.
    """
    tiny, classes = torch.finfo(p.dtype).tiny, p.shape[1]
    tails = p.flip(1).cumsum(1).flip(1)
    head, rest = tails[:, :-1].clamp(min=tiny), tails[:, 1:].clamp(min=tiny)
    lengths = (p[:, :-1] * (rest / head)).sqrt()
    units = torch.eye(classes - 1, classes, dtype=p.dtype, device=p.device)
    shares = torch.triu(p.unsqueeze(1) / rest.unsqueeze(2), diagonal=1)
    return (lengths.unsqueeze(2) * (units - shares)).transpose(0, 1)


@dataclass(frozen=True, slots=True)
class Bernoulli:
    """Independent zeros and ones, the outputs being logits of the targets' shape."""

    exact: ClassVar[bool] = False

    def outputs(self, target_row: tuple[int, ...]) -> int:
        """One logit a target."""
        return math.prod(target_row)

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """-log p(target), summed over a sample's targets."""
        logits = _like(output, target)
        nll = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
        return nll.reshape(len(target), -1).sum(1)

    def predict(self, output: Tensor) -> dict[str, Tensor]:
        """Probabilities of one."""
        return {"probs": output.sigmoid()}

    def doubt(self, output: Tensor, sharper: float = 1.0) -> Tensor:
        """Summed over a row's targets."""
        sure = sharper * output
        each = sure.sigmoid() * F.logsigmoid(sure) + (-sure).sigmoid() * F.logsigmoid(-sure)
        return -each.reshape(len(output), -1).sum(1)

    def divergence(self, before: Tensor, after: Tensor, sharper: float = 1.0) -> Tensor:
        """Summed over a row's targets."""
        p, q = (sharper * before).sigmoid(), (-sharper * before).sigmoid()
        each = p * (F.logsigmoid(before) - F.logsigmoid(after)) + q * (F.logsigmoid(-before) - F.logsigmoid(-after))
        return each.reshape(len(before), -1).sum(1)

    def variances(self, roots: Tensor) -> Tensor:
        """Of every logit, [n, K]."""
        return roots.square().sum(2)

    def spread(self, output: Tensor, variances: Tensor) -> dict[str, Tensor]:
        """Probabilities of one after the probit correction, ``sigmoid(f / sqrt(1 + pi/8 v))`` (MacKay 1992)."""
        return self.predict(_corrected(output, variances.view_as(output)))

    def spread_nll(self, output: Tensor, variances: Tensor, target: Tensor) -> Tensor:
        """-log of the corrected probability."""
        return self.nll(_corrected(output, variances.view_as(output)), target)

    def usual(self, variances: Tensor) -> Tensor:
        """Mean of ``sqrt(1 + pi/8 v)``, by which the correction divides logits."""
        return _shrinkage(variances).mean()

    def beyond(self, variances: Tensor, usual: float) -> Tensor:
        """The variance whose correction is what remains of a row's, divided by the usual one; 0 where nothing remains."""
        return ((_shrinkage(variances) / usual).square() - 1).clamp(min=0) / PROBIT

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """exact: sqrt(p (1-p)) e_j for every output j; otherwise p - y."""
        p = output.sigmoid()
        if kind == "exact":
            # sigmoid(z) sigmoid(-z), not p (1 - p): the latter rounds to 0 for large logits
            return one_at_a_time((p * (-output).sigmoid()).sqrt())
        y = _like(_required(target), output) if kind == "empirical" else torch.bernoulli(_drawable(p), generator=generator)
        return (p - y.to(p.dtype)).unsqueeze(0)


@dataclass(frozen=True, slots=True)
class Units:
    """What outputs stand for: targets are ``offset + scale * output``. Both [k], of a row's k targets, in the precision
    that this takes, which is more than the outputs' for targets far from zero."""

    offset: Tensor
    scale: Tensor

    def into(self, target: Tensor, dtype: torch.dtype) -> Tensor:
        """Targets [n, ...] as outputs would be."""
        flat = target.reshape(len(target), -1).to(self.offset.dtype)
        return ((flat - self.offset) / self.scale).to(dtype).reshape(target.shape)

    def back(self, output: Tensor) -> Tensor:
        """Outputs [n, ...] as the targets they stand for."""
        return (output.reshape(len(output), -1) * self.scale + self.offset).reshape(output.shape)

    def squared(self, variance: Tensor) -> Tensor:
        """Variances of outputs [n, ...] as those of the targets."""
        return (variance.reshape(len(variance), -1) * self.scale.square()).reshape(variance.shape)

    def variance(self, noise: float, output: Tensor) -> Tensor:
        """Of every target, in its own units, in the outputs' shape."""
        each = noise * self.scale.square()
        return each.expand(len(output), -1).reshape(output.shape).clone()


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Real numbers with noise variance s2, the outputs being their means; units: of outputs that stand for others.

    The noise variance is then in the outputs' units, and so is the density that the NLL is of, but for its constant.
    """

    noise_variance: float
    units: Units | None = None

    exact: ClassVar[bool] = True

    def outputs(self, target_row: tuple[int, ...]) -> int:
        """One mean a target."""
        return math.prod(target_row)

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """(y - f)^2 / (2 s2) + log(2 pi s2) / 2, summed over a sample's targets."""
        wanted = self._wanted(target, output)
        error = (_like(output, wanted) - wanted).square().reshape(len(target), -1)
        return error.sum(1) / (2 * self.noise_variance) + self.least(error.shape[1])

    def _wanted(self, target: Tensor, output: Tensor) -> Tensor:
        """What outputs should be."""
        return target.to(output.dtype) if self.units is None else self.units.into(target, output.dtype)

    def least(self, k: int) -> float:
        """The NLL of a sample with k targets, each as predicted."""
        constant = 0.5 * math.log(2 * math.pi * self.noise_variance) * k
        return constant if self.units is None else constant + float(self.units.scale.double().log().sum())

    def mean(self, output: Tensor) -> Tensor:
        """The means that outputs stand for."""
        return output if self.units is None else self.units.back(output)

    def predict(self, output: Tensor) -> dict[str, Tensor]:
        """Mean and variance."""
        if self.units is not None:
            return {"mean": self.units.back(output), "variance": self.units.variance(self.noise_variance, output)}
        return {"mean": output, "variance": torch.full_like(output, self.noise_variance)}

    def doubt(self, output: Tensor, sharper: float = 1.0) -> Tensor:
        """0: no output says how sure it is."""
        return output.new_zeros(len(output))

    def divergence(self, before: Tensor, after: Tensor, sharper: float = 1.0) -> Tensor:
        """Of their means, the noise being the same, and no output surer than another."""
        return (after - before).square().reshape(len(before), -1).sum(1) / (2 * self.noise_variance)

    def variances(self, roots: Tensor) -> Tensor:
        """Of every output, [n, K]."""
        return roots.square().sum(2)

    def spread(self, output: Tensor, variances: Tensor) -> dict[str, Tensor]:
        """Mean, and the noise's variance plus the outputs'."""
        variance = self.noise_variance + variances.view_as(output)
        if self.units is None:
            return {"mean": output, "variance": variance}
        return {"mean": self.units.back(output), "variance": self.units.squared(variance)}

    def spread_nll(self, output: Tensor, variances: Tensor, target: Tensor) -> Tensor:
        """As `nll`, with the outputs' variances added to the noise's."""
        wanted = self._wanted(target, output)
        error = (_like(output, wanted) - wanted).square().reshape(len(target), -1)
        variance = self.noise_variance + variances.reshape(error.shape)
        return 0.5 * ((2 * math.pi * variance).log() + error / variance).sum(1)

    def usual(self, variances: Tensor) -> Tensor:
        """Their mean."""
        return variances.mean()

    def beyond(self, variances: Tensor, usual: float) -> Tensor:
        """What is left of them: the noise was found from residuals of rows that vary so much."""
        return (variances - usual).clamp(min=0)

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """exact: e_j / s for every output j; otherwise (f - y) / s2."""
        if kind == "exact":
            return one_at_a_time(torch.full_like(output, self.noise_variance**-0.5))
        if kind == "empirical":
            wanted = self._wanted(_required(target), output)
            return ((output - _like(wanted, output)) / self.noise_variance).unsqueeze(0)
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return noise.mul(self.noise_variance**-0.5).unsqueeze(0)

    def around(self, variances: Tensor) -> float:
        """The mean NLL of targets with these variances [k] about one prediction for all, their mean."""
        scaled = variances if self.units is None else variances / self.units.scale.to(variances).square()
        return self.least(len(variances)) + float(scaled.sum()) / (2 * self.noise_variance)


@dataclass(frozen=True, slots=True)
class Noises(Gaussian):
    """Real numbers, each of a row's targets with a noise variance of its own; `noise_variance` is not used.

    each: [k]; no outputs that stand for others.
    """

    each: Tensor = field(default_factory=lambda: torch.ones(1))

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """sum of (y - f)^2 / (2 s2_k) + log(2 pi s2_k) / 2."""
        return self.spread_nll(output, torch.zeros_like(output), target)

    def least(self, k: int) -> float:
        """The NLL of a sample with every target as predicted."""
        return float(0.5 * (2 * math.pi * self.each).log().sum())

    def around(self, variances: Tensor) -> float:
        """As `Gaussian.around`."""
        return self.least(len(variances)) + float((variances / (2 * self.each.to(variances))).sum())

    def predict(self, output: Tensor) -> dict[str, Tensor]:
        """Mean and variance."""
        return self.spread(output, torch.zeros_like(output))

    def spread(self, output: Tensor, variances: Tensor) -> dict[str, Tensor]:
        """Mean, and each noise's variance plus the output's."""
        variance = self.each + variances.reshape(len(output), -1)
        return {"mean": output, "variance": variance.reshape(output.shape)}

    def spread_nll(self, output: Tensor, variances: Tensor, target: Tensor) -> Tensor:
        """As `nll`, with the outputs' variances added to the noise's."""
        error = (_like(output, target) - target).square().reshape(len(target), -1)
        variance = self.each + variances.reshape(error.shape)
        return 0.5 * ((2 * math.pi * variance).log() + error / variance).sum(1)


@dataclass(frozen=True, slots=True)
class Mixed:
    """A likelihood whose exact Fisher is estimated from a few random vectors a sample, without bias.

    ``E[(J^T sum_k e_k v_k)^2] = sum_k (J^T v_k)^2`` for independent signs e_k. inner: the likelihood. vectors: how many.
    generator: of the signs.
    """

    inner: Cotangents
    vectors: int
    generator: torch.Generator

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """No more than `vectors` a sample."""
        every = self.inner.cotangents(output, kind, target, generator)
        if len(every) <= self.vectors:
            return every
        shape = (self.vectors, *every.shape[:2])
        signs = torch.randint(0, 2, shape, generator=self.generator).to(every) * 2 - 1
        mixed: Tensor = torch.einsum("mkn,kn...->mn...", signs, every) / self.vectors**0.5
        return mixed


def likelihood(name: str, classes: int, noise_variance: float = 1.0) -> Likelihood:
    """The likelihood of a configuration's ``model.likelihood``; raises ValueError for an unknown name."""
    match name:
        case "categorical":
            return Categorical(classes)
        case "bernoulli":
            return Bernoulli()
        case "gaussian":
            return Gaussian(noise_variance)
    raise ValueError(f"likelihood: expected categorical, bernoulli or gaussian, got {name!r}")


def _corrected(logits: Tensor, variances: Tensor) -> Tensor:
    """The logits whose sigmoid is, nearly, the mean sigmoid of Gaussian logits with these variances."""
    return logits / _shrinkage(variances)


def _shrinkage(variances: Tensor) -> Tensor:
    return (1 + PROBIT * variances).sqrt()


def one_at_a_time(scale: Tensor) -> Tensor:
    """[n, *outputs] as [k, n, *outputs], the j-th keeping the j-th output only."""
    flat = scale.reshape(len(scale), -1)
    every = torch.eye(flat.shape[1], dtype=flat.dtype, device=flat.device).unsqueeze(1)
    return (every * flat).reshape(-1, *scale.shape)


def _like(values: Tensor, other: Tensor) -> Tensor:
    """`values` in the shape of `other`, if they hold the same numbers: [n] and [n, 1] are equivalent."""
    if values.shape == other.shape:
        return values
    if len(values) != len(other) or values.numel() != other.numel():
        raise WrongOutput(f"model output: expected the targets' shape {list(other.shape)}, got {list(values.shape)}")
    return values.reshape(other.shape)


def _required(target: Tensor | None) -> Tensor:
    if target is None:
        raise ValueError("the empirical Fisher needs the observed targets")
    return target
