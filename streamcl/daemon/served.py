"""The model that predictions are computed with: the newest that is published, kept whole.

Guarantees: `newest` is one publication's network, input stage and configuration, or the one before; nothing half made is
ever used. On a follower, whose publications come from another machine, no module is imported that its own operator has not
named, and what cannot be made here leaves in place what was there, with the reason in `problem`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from streamcl import models
from streamcl.config import Config, settled, with_model
from streamcl.core import stored
from streamcl.errors import ConfigError, Refused, StreamclError, in_words, no_model_yet
from streamcl.inputs import Inputs
from streamcl.learning import kinds
from streamcl.learning.arithmetic import differs
from streamcl.learning.features import FeatureNetwork
from streamcl.learning.kinds import AnyPosterior
from streamcl.learning.network import Network
from streamcl.schema import Signature
from streamcl.storage import published
from streamcl.storage.frozen import Frozen
from streamcl.storage.state import StateDirectory
from streamcl.version import __version__

Forms = Mapping[str, tuple[tuple[int, ...], str]]  # shape and dtype of arrays, by their names


@dataclass(frozen=True, slots=True)
class Made:
    """What one publication is made into. sent: of rows as they are sent. columns: the label of every column of an answer,
    where any label may be one. sights: the outputs of every task, in the order in which they came."""

    config: Config
    inputs: Inputs
    network: Network
    meta: Mapping[str, Any]
    sent: Signature
    columns: list[int]
    sights: Mapping[str, list[int]]


class Served:
    """Reads one state directory. following: it is a follower's. problem: why its newest publication is not served; unheard:
    why there may be a newer one that is not here."""

    def __init__(self, config: Config, state: StateDirectory) -> None:
        self.config, self.state = config, state
        self.following = bool(config.follow.endpoint)
        self.made: Made | None = None
        self.problem: str | None = None
        self.unheard = f"the daemon at {config.follow.endpoint} is not heard yet" if self.following else None
        self._frozen = Frozen(state.path)
        self._place = str(state.parameters)  # looked at for every answer
        self._stamp: published.Stamp | None = None
        self._forms: Forms = {}
        self._posterior: AnyPosterior | None = None
        self._posterior_is: tuple[Any, ...] | None = None
        self._size = 0  # of the posterior's vectors

    @property
    def inputs(self) -> Inputs:
        """The input stage; before there is a model, as configured."""
        return Inputs.of(self.config) if self.made is None else self.made.inputs

    def newest(self) -> Made:
        """The newest publication, made; raises Refused ``not_ready`` where there is none."""
        stamp = published.stamp(self._place)
        if stamp is not None and stamp != self._stamp:
            self._take(stamp)
        if self.made is None or (stamp is None and not self.following):
            reason = self.problem or self.unheard or "its publication is being fetched"
            place = self.config.follow.endpoint
            text = f"nothing of the daemon at {place} can be served yet: {reason}"
            raise Refused("not_ready", text, retryable=True) if self.following else no_model_yet()
        return self.made

    def warning(self) -> str | None:
        """What is different here from where the parameters were learned; None where nothing is."""
        theirs = {} if self.made is None else self.made.meta.get("arithmetic", {})
        found = differs(theirs) if theirs else None
        return None if found is None else f"predictions may differ from the daemon's in their last bits: {found}"

    def posterior(self, made: Made) -> AnyPosterior:
        """What says how uncertain outputs are, the newest there is; raises Refused ``not_ready`` where nothing does."""
        wanted = made.meta["posterior"], published.stamp(self.state.posterior)
        if self._posterior is None or self._posterior_is != wanted:
            found = published.posterior(self.state)
            if found is None:
                raise Refused("not_ready", "there is no posterior yet", retryable=True)
            number, tensors = found
            self._posterior = kinds.posterior(made.config, tensors)
            self._posterior_is, self._size = (number, wanted[1]), tensors[stored.SHIFT].size
        if not isinstance(made.network, FeatureNetwork) and self._size != made.network.parameters.size:
            text = "the network has got outputs for new labels; how uncertain they are is known at the end of this boundary"
            raise Refused("not_ready", f"{text}: ask for plain predictions, or again then", retryable=True)
        return self._posterior

    def _take(self, stamp: published.Stamp) -> None:
        if not self.following:
            self.made = self._load()
            self._stamp = stamp
            return
        try:
            self.made, self.problem = self._load(), None
        except Exception as error:  # of a factory, which may raise anything
            self._complain(error)
        self._stamp = stamp

    def _complain(self, error: Exception) -> None:
        text = str(error) if isinstance(error, StreamclError) else in_words(error)
        if text != self.problem:
            structlog.get_logger().error("the newest publication cannot be served", reason=text)
        self.problem = text

    # -- making it -----------------------------------------------------------------------------------------------

    def _load(self) -> Made:
        found = published.read(self.state.parameters, self._frozen)
        if found is None:
            raise no_model_yet()
        meta, tensors = found
        if "outputs" not in meta:  # of an earlier version, which ran on this directory before
            raise Refused("not_ready", "the parameters have not been published yet by this version", retryable=True)
        config = self._configured(meta)
        inputs = Inputs.of(config)
        sent = Signature.from_plain(meta.get("sent") or meta["signature"])
        inputs.load(meta.get("columns"), meta.get("words", ()), meta.get("inputs"), tensors, sent)
        config = settled(config, sent.y_real)
        forms = {name: (array.shape, array.dtype.str) for name, array in tensors.items()}
        network = self._network(config, meta, forms)
        network.load(tensors)
        network.compute_in(meta["blocks"])
        network.grows = meta["grows"]  # a state directory may be bound to a number that the configuration leaves out
        labels = network.labels
        labels.classes = None if network.grows else len(meta["labels"])
        labels.named = bool(inputs.words.known)
        labels.outputs = dict(meta["outputs"])
        self._forms = forms
        return Made(config, inputs, network, meta, sent, network.columns().tolist(), dict(meta["sights"]))

    def _configured(self, meta: Mapping[str, Any]) -> Config:
        """This process's configuration; a follower's, with what the daemon's says of the model. Raises ConfigError."""
        if not self.following:
            return self.config
        try:
            config = with_model(self.config, meta["configuration"])
        except (KeyError, ConfigError) as error:
            raise ConfigError(
                f"the daemon's configuration is not one that this streamcl, {__version__}, knows; expected the same "
                f"version on both machines: {error}"
            ) from None
        maker = config.model.maker
        if maker not in models.OWN and maker != self.config.model.factory:
            raise ConfigError(
                f"the daemon's model is made by {maker!r}, code that this follower was not told to run; expected "
                f"`--model.factory {maker}`, with that module installed here or in the directory it is started in"
            )
        return config

    def _network(self, config: Config, meta: Mapping[str, Any], forms: Forms) -> Network:
        """A network for these parameters: the one that is there, where it would be made again.

        A follower's, which must not fail half-way, takes only arrays of the forms that it has taken before.
        """
        signature, outputs = Signature.from_plain(meta["signature"]), meta["layout"]["outputs"]
        if self.made is not None and self.made.config == config and (not self.following or forms == self._forms):
            network = self.made.network
            if network.signature == signature and network.outputs == outputs and not self._misfit(network, meta):
                return network
        made = config, signature, kinds.labels(config), torch.device("cpu")
        network = kinds.network(*made, False, None, outputs)
        network.flags.rest()
        if (wrong := self._misfit(network, meta)) is not None:
            raise ConfigError(
                f"model.factory {config.model.maker!r} makes another model here than the daemon's: the daemon's has "
                f"{wrong}; expected the same version of that module on both machines"
            )
        return network

    def _misfit(self, network: Network, meta: Mapping[str, Any]) -> str | None:
        """On a follower, why the parameters are not of what the factory makes here; a head alone takes any size."""
        if not self.following or isinstance(network, FeatureNetwork):
            return None
        return network.misfit(meta["parameters"])
