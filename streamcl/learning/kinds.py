"""The kinds of learner, network and exact: the one place that tells them apart.

Everything above asks here for a model, a batch and a boundary of the configured kind, and then knows what they have in
common.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from streamcl.config import Config
from streamcl.core.gaussian import Gaussian
from streamcl.core.reduce import ALONE, Reduction
from streamcl.errors import Refused
from streamcl.learning import exact, predictive
from streamcl.learning.boundary import Boundary
from streamcl.learning.data import Array, Block, Rows, Store
from streamcl.learning.exact_predictive import Openness
from streamcl.learning.features import FeatureNetwork
from streamcl.learning.incoming import Incoming
from streamcl.learning.model import Model, Recipe
from streamcl.learning.network import Network
from streamcl.learning.open_task import OpenTask
from streamcl.learning.posterior import FactorSource, from_arrays
from streamcl.learning.predictive import Predicted
from streamcl.schema import LabelMap, Signature

AnyModel = Model | exact.Model
AnyRecipe = Recipe | exact.Recipe
AnyBoundary = Boundary | exact.Boundary
AnyPosterior = Gaussian | Openness


def labels(config: Config) -> LabelMap:
    """A label map that knows no label yet."""
    return LabelMap(config.model.outputs)


def network(
    config: Config,
    signature: Signature,
    labels: LabelMap,
    device: torch.device,
    trained: bool = True,
    factory: Callable[..., nn.Module] | None = None,
    classes: int | None = None,
) -> Network:
    """A network as the factory makes it. classes: as of `Network`; an exact learner's head has as many as it is given."""
    if config.model.learner == "exact":
        return FeatureNetwork(config, signature, labels, device, trained, factory)
    return Network(config, signature, labels, device, trained, factory, classes=classes)


def grown(model: AnyModel, lsn: int, known: int) -> tuple[Model, Model] | None:
    """The model, and it with more outputs from position lsn on, where so many labels ask for them; None where not."""
    if isinstance(model, exact.Model):
        return None
    outputs = model.recipe.due(known, bool(model.posterior.tasks))
    return None if outputs is None else (model, model.grown(lsn, outputs))


def recipe(
    config: Config,
    device: torch.device,
    labels: LabelMap,
    factors: FactorSource | None,
    factory: Callable[..., nn.Module] | None,
    reduction: Reduction = ALONE,
) -> AnyRecipe:
    """What models are made by."""
    kind = exact.Recipe if config.model.learner == "exact" else Recipe
    return kind(config, device, labels, factors, factory, reduction=reduction)


def posterior(config: Config, arrays: Mapping[str, npt.NDArray[Any]]) -> AnyPosterior:
    """What says how uncertain predictions are, of a posterior's arrays."""
    return Openness.of(config, arrays) if config.model.learner == "exact" else from_arrays(arrays)


def posterior_of(model: AnyModel) -> AnyPosterior:
    """As `posterior`, of a model."""
    if isinstance(model, exact.Model):
        return Openness.of_moments(model.fitting.config, model.posterior.total, model.fitting.targets)
    return model.posterior.total


def answered(
    network: Network,
    x: Array,
    posterior: Callable[[], AnyPosterior],
    samples: int,
    uncertainty: bool,
    seed: int,
    most_bytes: int | None = None,
) -> Predicted:
    """A prediction as it is asked for: plain, or with what the posterior leaves open, by draws or in closed form.

    Raises Refused as `predictive.predict`, ``bad_array`` for a row on which the model fails, and ``nonfinite`` for one of
    which it makes no number.
    """
    try:
        if uncertainty:
            found = uncertain(network, x, posterior(), most_bytes)
        elif samples:
            found = averaged(network, x, posterior(), samples, seed, most_bytes)
        else:
            found = Predicted(predictive.predict(network, x, most_bytes))
        predictive.check_numbers(found.arrays)
        return found
    except Refused:
        raise
    except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
        raise Refused("nonfinite", f"predict.x: how uncertain these rows are is not a number; {predictive.SIZE}") from error
    except Exception as error:
        refused = predictive.blamed(network, x, error)
        if refused is None:
            raise
        raise refused from error


def uncertain(network: Network, x: Array, posterior: AnyPosterior, most_bytes: int | None = None) -> Predicted:
    """A prediction with the outputs' uncertainty in it, in closed form."""
    if isinstance(posterior, Openness):
        assert isinstance(network, FeatureNetwork)
        return posterior.uncertain(network, x, most_bytes)
    return predictive.uncertain(network, x, posterior, most_bytes)


def averaged(
    network: Network, x: Array, posterior: AnyPosterior, samples: int, seed: int, most_bytes: int | None = None
) -> Predicted:
    """A prediction averaged over so many draws of the outputs."""
    if isinstance(posterior, Openness):
        assert isinstance(network, FeatureNetwork)
        return posterior.averaged(network, x, samples, seed, most_bytes)
    return predictive.averaged(network, x, posterior, samples, seed, most_bytes)


def incoming(model: AnyModel, task: OpenTask, lsn: int, rows: Rows, failed: Mapping[str, int]) -> Incoming | exact.Incoming:
    """A batch of the open task."""
    if isinstance(model, exact.Model):
        return exact.Incoming(model, task, lsn, rows, failed)
    return Incoming(model, task, lsn, rows, failed)


def take_again(model: AnyModel, blocks: Iterable[Block]) -> None:
    """The open task's rows mean something else from here on: of a network nothing is to be done before its boundary."""
    if isinstance(model, exact.Model):
        model.fitting.take_again(blocks)


def boundary(model: AnyModel, store: Store, task: OpenTask, lsn: int, failed: Mapping[str, int]) -> AnyBoundary:
    """A task at its boundary."""
    if isinstance(model, exact.Model):
        return exact.Boundary(model, store, task, lsn, failed)
    return Boundary(model, store, task, lsn, failed)
