"""Predictions of many rows, at the parameters or averaged over draws from the posterior. Bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from streamcl.core.gaussian import Gaussian
from streamcl.errors import Refused
from streamcl.learning.data import Array
from streamcl.learning.network import Network

PREDICT_ROWS = 4096  # rows at a time, so that a large request needs little memory


def predict(network: Network, x: Array, most_bytes: int | None = None) -> dict[str, Array]:
    """The predictive distribution of rows x [n, ...] as the likelihood gives it: arrays of n rows by name.

    Raises Refused ``bad_shape bad_array`` where x is not rows of the model's signature, ``too_large`` where the answer
    would take more than most_bytes.
    """
    return _outputs(network, _chunks(network, x), most_bytes)


def averaged(
    network: Network,
    x: Array,
    posterior: Gaussian,
    samples: int,
    seed: int,
    most_bytes: int | None = None,
) -> dict[str, Array]:
    """As `predict`, averaged over so many draws of the parameters from N(theta, 1 / precision); theta is put back.

    Mixture moments: mean probabilities; or the mean of the means, and the mean variance plus their spread. most_bytes: of
    one draw's answer.
    """
    chunks = _chunks(network, x)
    theta = network.parameters.theta.detach().clone()
    master = network.master()
    generator = torch.Generator().manual_seed(seed)
    draws = []
    try:
        for _ in range(samples):
            drawn = posterior.sample(master, generator)
            network.parameters.load(drawn.to(theta.device, theta.dtype))
            draws.append(_outputs(network, chunks, most_bytes))
    finally:
        network.parameters.load(theta)
    return _moments(draws)


def _chunks(network: Network, x: Array) -> list[torch.Tensor]:
    network.signature.check_x(x)
    if len(x) == 0:
        raise Refused("bad_shape", "predict.x: expected at least one row, got none")
    return [network.conversion.x(x[i : i + PREDICT_ROWS]) for i in range(0, len(x), PREDICT_ROWS)]


def _outputs(network: Network, chunks: Sequence[torch.Tensor], most_bytes: int | None) -> dict[str, Array]:
    held, parts = 0, []
    for x in chunks:
        parts.append(network.predict(x))
        held += sum(part.nbytes for part in parts[-1].values())
        if most_bytes is not None and held > most_bytes:
            raise Refused(
                "too_large", f"predict.x: the outputs of its rows take more than {most_bytes} bytes; ask for fewer rows"
            )
    return {name: np.concatenate([part[name].cpu().numpy() for part in parts]) for name in parts[0]}


def _moments(draws: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    stacked = {name: np.stack([draw[name] for draw in draws]).astype(np.float64) for name in draws[0]}
    moments = {name: values.mean(0) for name, values in stacked.items()}
    if "variance" in stacked:
        moments["variance"] = moments["variance"] + stacked["mean"].var(0)
    return {name: values.astype(draws[0][name].dtype) for name, values in moments.items()}
