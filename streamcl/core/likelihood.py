"""What the model's outputs mean: categorical, Bernoulli or Gaussian, and the curvature each gives them.

Guarantees: everything is in nats and summed over a sample's outputs, never averaged; saturated logits stay finite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from streamcl.errors import WrongOutput

FisherKind = Literal["exact", "mc", "empirical"]


class Likelihood(Protocol):
    """p(y | output), with output = model(x)."""

    def outputs(self, target_row: tuple[int, ...]) -> int:
        """How many outputs the model needs for targets [n, *target_row]."""

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """Negative log likelihood of each sample, [n], in nats. Raises WrongOutput for outputs of a wrong shape."""

    def predict(self, output: Tensor) -> dict[str, Tensor]:
        """The predictive distribution: ``probs``, or ``mean`` and ``variance``."""

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """Vectors v [k, n, *output.shape[1:]] whose products with the Jacobian J_n of each sample's output give the Fisher.

        The diagonal Fisher, summed over the samples, is ``sum_k sum_n (J_n^T v_kn)^2``, elementwise.
        exact: the expectation over the predictive distribution. mc: one label sampled from it. empirical: the target.
        """


@dataclass(frozen=True, slots=True)
class Categorical:
    """One of `classes` labels, the outputs being logits [n, classes]; targets int64 [n]."""

    classes: int

    def outputs(self, target_row: tuple[int, ...]) -> int:
        """One logit a class."""
        return self.classes

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """-log softmax(output)[target]."""
        return F.cross_entropy(self._checked(output), target, reduction="none")

    def predict(self, output: Tensor) -> dict[str, Tensor]:
        """Probabilities [n, classes]."""
        return {"probs": self._checked(output).softmax(1)}

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """exact: the columns of a square root of diag(p) - p p^T; otherwise p - e_y for one label y a sample."""
        p = self._checked(output).softmax(1)
        if kind == "exact":
            return _square_root(p)
        label = _required(target) if kind == "empirical" else torch.multinomial(p, 1, generator=generator).squeeze(1)
        return (p - F.one_hot(label, self.classes)).unsqueeze(0)

    def _checked(self, output: Tensor) -> Tensor:
        if output.ndim != 2 or output.shape[1] != self.classes:
            raise WrongOutput(
                f"model output: expected [n, {self.classes}] logits, got {list(output.shape)}; set model.classes to the "
                "number of the model's outputs, or give it as many as there are classes"
            )
        return output


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

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """exact: sqrt(p (1-p)) e_j for every output j; otherwise p - y."""
        p = output.sigmoid()
        if kind == "exact":
            # sigmoid(z) sigmoid(-z), not p (1 - p): the latter rounds to 0 for large logits
            return _one_at_a_time((p * (-output).sigmoid()).sqrt())
        y = _like(_required(target), output) if kind == "empirical" else torch.bernoulli(p, generator=generator)
        return (p - y.to(p.dtype)).unsqueeze(0)


@dataclass(frozen=True, slots=True)
class Gaussian:
    """Real numbers with known noise variance s2, the outputs being their means."""

    noise_variance: float

    def outputs(self, target_row: tuple[int, ...]) -> int:
        """One mean a target."""
        return math.prod(target_row)

    def nll(self, output: Tensor, target: Tensor) -> Tensor:
        """(y - f)^2 / (2 s2) + log(2 pi s2) / 2, summed over a sample's targets."""
        error = (_like(output, target) - target).square().reshape(len(target), -1)
        constant = 0.5 * math.log(2 * math.pi * self.noise_variance) * error.shape[1]
        return error.sum(1) / (2 * self.noise_variance) + constant

    def predict(self, output: Tensor) -> dict[str, Tensor]:
        """Mean and variance."""
        return {"mean": output, "variance": torch.full_like(output, self.noise_variance)}

    def cotangents(
        self, output: Tensor, kind: FisherKind, target: Tensor | None, generator: torch.Generator | None
    ) -> Tensor:
        """exact: e_j / s for every output j; otherwise (f - y) / s2."""
        if kind == "exact":
            return _one_at_a_time(torch.full_like(output, self.noise_variance**-0.5))
        if kind == "empirical":
            return ((output - _like(_required(target), output)) / self.noise_variance).unsqueeze(0)
        noise = torch.randn(output.shape, generator=generator, dtype=output.dtype, device=output.device)
        return noise.mul(self.noise_variance**-0.5).unsqueeze(0)


def likelihood(name: str, classes: int, noise_variance: float) -> Likelihood:
    """The likelihood of a configuration's ``model.likelihood``; raises ValueError for an unknown name."""
    match name:
        case "categorical":
            return Categorical(classes)
        case "bernoulli":
            return Bernoulli()
        case "gaussian":
            return Gaussian(noise_variance)
    raise ValueError(f"likelihood: expected categorical, bernoulli or gaussian, got {name!r}")


def _one_at_a_time(scale: Tensor) -> Tensor:
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
