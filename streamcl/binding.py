"""Which keys of the configuration a state directory is bound to, and why; in the same words before a start and at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from streamcl.config import Config, lookup
from streamcl.errors import ConfigError

KEPT = ("model", "posterior.mode", "posterior.curvature", "train.dtype")  # in every checkpoint
REASONS = {
    "model.factory": "the checkpoint holds the parameters of that network, which do not fit another",
    "model.args": "the checkpoint holds the parameters of that network, which do not fit another",
    "model.likelihood": "the penalty was measured under that likelihood",
    "model.classes": "each class has its own output in the parameters and the penalty",
    "model.noise_variance": "the penalty was measured with that noise, and would be weighed wrongly with another",
    "posterior.mode": "the modes keep different things for each task, and the tasks' data are gone",
    "posterior.curvature": "the penalty of every task learned so far has that form",
    "train.dtype": "parameters and optimiser are kept in it, and steps repeated after a crash must give the same bits",
}
REMEDY = (
    "What was learned cannot be converted, and the data it was learned from are deleted. Either put the former value "
    "back, or start on a new state directory (`--state-dir`) and send the tasks again; `streamcl export DIR`, with the "
    "former value, saves what the old one has learned"
)


@dataclass(frozen=True, slots=True)
class Difference:
    """A key whose value is not the one the state directory was made with."""

    key: str
    was: Any
    now: Any

    @property
    def why(self) -> str:
        """Why it cannot be changed."""
        return REASONS[self.key]

    def __str__(self) -> str:
        return f"{self.key} was {self.was!r}, is {self.now!r}: {self.why}"


def fingerprint(config: Config) -> dict[str, Any]:
    """What a checkpoint records of the configuration."""
    tree = msgspec.to_builtins(config)
    return {key: lookup(tree, key) for key in KEPT}


def differences(saved: Mapping[str, Any], config: Config) -> Iterator[Difference]:
    """The keys in which a configuration differs from a fingerprint."""
    before, after = dict(_flat(saved)), dict(_flat(fingerprint(config)))
    for key, value in after.items():
        if key in before and before[key] != value:
            yield Difference(key, before[key], value)


def _flat(saved: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in saved.items():
        if key == "model":
            yield from ((f"model.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def check_fingerprint(saved: Mapping[str, Any], config: Config) -> None:
    """Raise ConfigError naming the keys in which the configuration differs, why they must not, and what to do."""
    found = list(differences(saved, config))
    if found:
        raise ConfigError(f"configuration: {'; '.join(map(str, found))}. {REMEDY}")
