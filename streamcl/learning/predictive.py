"""Predictions of many rows: at the parameters, or with what the posterior leaves open of the outputs. Bounded memory.

The uncertainty is that of the linearised predictive (`core.linearised`): the outputs are Gaussian around the network's own,
in closed form or by draws of the outputs. Weights are never drawn for a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from streamcl.core.gaussian import Gaussian
from streamcl.core.linearised import Gram, Linearised, drawn, is_linear, root
from streamcl.core.tempering import ROWS, Tempering, rows_looked_at, tempering
from streamcl.errors import OF_ROWS, Refused, in_words
from streamcl.learning.data import Array, TaskData
from streamcl.learning.network import Network

MOST_DRAWN = 256 << 20  # bytes of draws of one output, over all rows of a question
PREDICT_ROWS = 4096  # rows at a time, so that a large request needs little memory
SPREAD_BYTES = 1 << 30  # that one row's covariance, or Jacobian, may take
LOOKED_AT = 8  # rows, of which it is asked whether the model is linear
DRAW_BYTES = 64 << 20  # of draws at a time

Named = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Predicted:
    """arrays: of n rows, by name, as the likelihood gives them. note: what a reader should know of how they came about."""

    arrays: dict[str, Array]
    note: str | None = None


SIZE = "expected inputs of the size that it has learned from: these overflow its arithmetic"


def check_numbers(arrays: Mapping[str, Array]) -> None:
    """Raise Refused ``nonfinite`` where an answer has no number for a row, as of inputs whose size overflows the model."""
    for array in arrays.values():
        if np.isnan(array).any():
            row = int(np.isnan(array).reshape(len(array), -1).any(1).argmax())
            raise Refused(
                "nonfinite",
                f"predict.x: what the model makes of row {row} is not a number; {SIZE}",
            )


def blamed(network: Network, x: Array, error: Exception) -> Refused | None:
    """What the module raised for rows x [n, ...] as a refusal, ``bad_array``, that names the row; None where no row does so
    by itself."""
    row = next((number for number in range(min(len(x), PREDICT_ROWS)) if _fails(network, x[number : number + 1])), None)
    if row is None:
        return None
    text = f"predict.x: row {row}: the model raises {in_words(error)}; {OF_ROWS}"
    return Refused("bad_array", text)


def _fails(network: Network, row: Array) -> bool:
    try:
        network.predict(network.conversion.x(row))
    except Exception:
        return True
    return False


def predict(network: Network, x: Array, most_bytes: int | None = None) -> dict[str, Array]:
    """The predictive distribution of rows x [n, ...] as the likelihood gives it: arrays of n rows by name.

    Raises Refused ``bad_shape bad_array`` where x is not rows of the model's signature, ``too_large`` where the answer
    would take more than most_bytes.
    """
    return gathered(map(network.predict, chunks(network, x)), most_bytes)


def uncertain(network: Network, x: Array, posterior: Gaussian, most_bytes: int | None = None) -> Predicted:
    """As `predict`, with the outputs' uncertainty in it, in closed form (`Likelihood.spread`)."""
    every = chunks(network, x)
    tau, usual = width(network, posterior, every[0])

    def closed(output: Tensor, variances: Tensor) -> Named:
        return network.of_known(network.likelihood.spread(output, network.likelihood.beyond(tau * variances, usual)))

    return _linearised(network, every, posterior, _told(posterior, tau), most_bytes, network.likelihood.variances, closed)


def width(network: Network, posterior: Gaussian, x: Tensor) -> tuple[float, float]:
    """tau, and what is usual among rows that were learned; 1 and nothing where no task's have been asked. x: some rows."""
    if posterior.tempering is None:
        return 1.0, float(network.likelihood.usual(torch.zeros(1)))
    return Tempering(posterior.tempering).chosen(network.likelihood.exact, _is_linear(network, x))


def _is_linear(network: Network, x: Tensor) -> bool:
    """Whether a width of 1 is right, of a likelihood whose closed form is exact. x: some rows."""
    with network.evaluating():
        return network.likelihood.exact and is_linear(network.module, network.parameters, x[:LOOKED_AT])


def _told(posterior: Gaussian, tau: float) -> str:
    """What a reader should know of the width."""
    if posterior.tempering is None:
        return "no task's rows have said yet how wide the posterior should be: it is taken as it is, which may be too wide"
    if not tau:
        return (
            "tau = 0: left out in turn, the rows learned so far are predicted best without the posterior's width, so "
            "this is the plain prediction"
        )
    return f"tau = {tau:g} of the posterior's width, as the rows learned so far are predicted best when left out in turn"


def tempered(
    network: Network, posterior: Gaussian, data: TaskData, seed: int, known: Tensor | None
) -> Generator[None, None, Gaussian]:
    """The posterior, just made of a task's rows at the network's parameters, with what they say of its width.

    known: what earlier tasks have said. The posterior as it is where the model's Jacobians cannot be had. Yields after
    every block of rows.
    """
    x, y = next(iter(data.minibatches(min(ROWS, data.samples), np.random.default_rng([seed, 2]))))
    with network.evaluating():
        outputs = math.prod(network.module(x[:1]).shape)
    rows = rows_looked_at(len(x), outputs)
    linearised = Linearised(network.module, network.parameters, posterior.precision)
    blocks = []
    for block in linearised.of(x[:rows]):
        blocks.append(block)
        yield
    whole = network.likelihood.exact and (network.targets is None or _is_linear(network, x))
    found = tempering(blocks, network.likelihood, y[:rows], whole) if blocks else None
    before = None if known is None else Tempering(known)
    if found is None:
        return replace(posterior, tempering=known)
    return replace(posterior, tempering=Tempering(found.sums).plus(before).sums)


def averaged(
    network: Network,
    x: Array,
    posterior: Gaussian,
    samples: int,
    seed: int,
    most_bytes: int | None = None,
) -> Predicted:
    """As `predict`, averaged over so many draws of the outputs from ``N(f, e(x) tau J Sigma J^T)`` (`core.tempering`).

    Mixture moments: mean probabilities; or the mean of the means, and the mean variance plus their spread. The same seed
    and rows, the same answer.
    """
    generator = torch.Generator().manual_seed(seed)
    every = chunks(network, x)
    tau, usual = width(network, posterior, every[0])
    if 8 * samples * len(x) > MOST_DRAWN:
        raise Refused(
            "too_large",
            f"predict.samples: {samples} draws of {len(x)} rows are too many for one question; ask for fewer rows or draws "
            "at a time, or for uncertainty=True, which needs none",
        )

    def mean(output: Tensor, covariance: Tensor) -> Named:
        width = covariance.shape[1]
        rows = max(1, DRAW_BYTES // (8 * samples * width))
        parts = []
        for start in range(0, len(output), rows):
            part = slice(start, start + rows)
            noise = torch.randn((samples, len(output[part]), width), generator=generator, dtype=torch.float64)
            beyond = _beyond(network, tau * covariance[part].double(), usual)
            draws = drawn(output[part].double(), beyond, noise.to(output.device))  # the likelihood is on that device too
            parts.append(_moments(network, draws))
        plain = network.of_known(network.likelihood.predict(output[:1]))
        return {name: torch.cat([each[name] for each in parts]).to(plain[name].dtype) for name in parts[0]}

    return _linearised(network, every, posterior, _told(posterior, tau), most_bytes, None, mean)


def _beyond(network: Network, covariance: Tensor, usual: float) -> Tensor:
    """What of a covariance [n, K, K] goes beyond what is usual: every row's, or every output's, by one factor."""
    likelihood = network.likelihood
    variances = likelihood.variances(root(covariance))
    tiny = torch.finfo(variances.dtype).tiny
    shares = (likelihood.beyond(variances, usual) / variances.clamp(min=tiny)).sqrt()
    return covariance * shares.unsqueeze(1) * shares.unsqueeze(2)


def _moments(network: Network, draws: Tensor) -> dict[str, Tensor]:
    """Of draws [s, n, ...] of the outputs."""
    each = network.of_known(network.likelihood.predict(draws.flatten(0, 1)))
    stacked = {name: values.view(*draws.shape[:2], *values.shape[1:]) for name, values in each.items()}
    moments = {name: values.mean(0) for name, values in stacked.items()}
    if "variance" in stacked:
        moments["variance"] = moments["variance"] + stacked["mean"].var(0, correction=0)
    return moments


def _linearised(
    network: Network,
    every: Sequence[Tensor],
    posterior: Gaussian,
    told: str,
    most_bytes: int | None,
    gram: Gram | None,
    finished: Callable[[Tensor, Tensor], Named],
) -> Predicted:
    """Of the rows' chunks. told: of the width.

    finished: makes a prediction of outputs and their what `gram` gives, or their covariance [n, K, K].
    """
    _check_size(network, every[0], gram)
    linearised = Linearised(network.module, network.parameters, posterior.precision)

    def parts() -> Iterator[Named]:
        for chunk in every:
            with network.evaluating():
                outputs = network.module(chunk)
            at = 0
            for found in linearised.of(chunk, gram):
                output = network.shaped(outputs[at : at + len(found.spread)])
                at += len(output)
                yield finished(output, found.spread)

    arrays = gathered(parts(), most_bytes)
    return Predicted(arrays, "; ".join(filter(None, (linearised.note, told))))


def _check_size(network: Network, x: Tensor, gram: Gram | None) -> None:
    """Raises Refused ``too_large`` where one row's uncertainty would take more memory than there should be."""
    with network.evaluating():
        outputs = network.module(x[:1]).numel()
    if gram is None and 3 * 8 * outputs**2 > SPREAD_BYTES:
        raise Refused(
            "too_large",
            f"predict.samples: the covariance of {outputs} outputs takes too much memory; ask for uncertainty=True, which "
            "needs their variances alone, or for the plain prediction",
        )


def chunks(network: Network, x: Array) -> list[torch.Tensor]:
    """Rows as the model takes them, a few at a time; raises Refused as `predict`."""
    network.signature.check_x(x)
    if len(x) == 0:
        raise Refused("bad_shape", "predict.x: expected at least one row, got none")
    return [network.conversion.x(x[i : i + PREDICT_ROWS]) for i in range(0, len(x), PREDICT_ROWS)]


def gathered(parts: Iterable[Named], most_bytes: int | None) -> dict[str, Array]:
    """Predictions of parts of the rows as one, on the host; raises Refused ``too_large``."""
    held, found = 0, []
    for part in parts:
        found.append(part)
        held += sum(values.nbytes for values in part.values())
        if most_bytes is not None and held > most_bytes:
            raise Refused(
                "too_large", f"predict.x: the outputs of its rows take more than {most_bytes} bytes; ask for fewer rows"
            )
    if len(found) == 1:
        return {name: values.cpu().numpy().copy() for name, values in found[0].items()}
    return {name: np.concatenate([part[name].cpu().numpy() for part in found]) for name in found[0]}
