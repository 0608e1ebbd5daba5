"""Which keys of the configuration a state directory is bound to, and why; in the same words before a start and at it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec.structs import replace

from streamcl.config import Config, lookup
from streamcl.errors import ConfigError

KEPT = (
    "model",
    "input",
    "posterior.mode",
    "posterior.curvature",
    "posterior.expectation",
    "train.dtype",
)  # in every checkpoint
BEFORE = {"posterior.curvature": "diagonal", "posterior.expectation": "mode"}  # there were these keys
BEFORE_OF_MODEL = {"learner": "network", "scenario": "class"}  # the only ones, before there were others
INPUT_BEFORE = {"scale": "tables", "missing": "mean", "categories": "one-hot"}  # takes plain arrays as they are
NOISE_BEFORE = 1.0  # the default, before it was learned
REASONS = {
    "model.learner": "the checkpoint holds what that kind of learner keeps: parameters and a penalty, or sums",
    "model.factory": "the checkpoint holds the parameters of that network, which do not fit another",
    "model.args": "the checkpoint holds the parameters of that network, which do not fit another",
    "model.likelihood": "the penalty was measured under that likelihood",
    "model.classes": "each class has its own output in the parameters and the penalty",
    "model.noise_variance": "the penalty was measured with that noise, and would be weighed wrongly with another",
    "input.scale": "the parameters were learned on inputs of that scale",
    "input.missing": "the parameters were learned on those inputs",
    "input.categories": "the parameters were learned on those inputs",
    "model.scenario": "what was learned of each task so far was learned beside other outputs",
    "posterior.mode": "the modes keep different things for each task, and the tasks' data are gone",
    "posterior.curvature": "the penalty of every task learned so far has that form",
    "posterior.expectation": "what the penalty claims of every task learned so far was measured that way",
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


def is_of(saved: Mapping[str, Any], config: Config) -> bool:
    """Whether a fingerprint is this configuration's."""
    return _with_learner(saved) == fingerprint(config)


def is_of_input(saved: Mapping[str, Any], config: Config) -> bool:
    """Whether a fingerprint has this configuration's input stage."""
    return bool(_with_learner(saved).get("input", INPUT_BEFORE) == fingerprint(config)["input"])


def _with_learner(saved: Mapping[str, Any]) -> dict[str, Any]:
    model = saved.get("model")
    if not isinstance(model, Mapping):
        return dict(saved)
    return {"input": INPUT_BEFORE, **saved, "model": {**BEFORE_OF_MODEL, **model}}


def adopted(saved: Mapping[str, Any], config: Config) -> Config:
    """The configuration with what a state directory was made with, where it leaves curvature, likelihood, noise or the
    number of classes to the default."""
    made = {key: saved.get(key, before) for key, before in BEFORE.items()}
    default, settings = msgspec.to_builtins(Config()), msgspec.to_builtins(config)
    kept = {
        key.removeprefix("posterior."): was
        for key, was in made.items()
        if lookup(settings, key) == lookup(default, key) and was != lookup(settings, key)
    }
    config = replace(config, posterior=replace(config.posterior, **kept)) if kept and saved else config
    model, made_of = config.model, saved.get("model", {})
    if model.likelihood == "auto":
        model = replace(model, likelihood=made_of.get("likelihood", "auto"))
    if model.noise_variance == "auto" and made_of.get("noise_variance") == NOISE_BEFORE:
        model = replace(model, noise_variance=NOISE_BEFORE)
    return (
        replace(config, model=replace(model, classes=bound(saved) or model.classes))
        if model.classes == "auto"
        else (replace(config, model=model))
    )


def bound(saved: Mapping[str, Any]) -> int | None:
    """How many labels a network was made for; None where there may be any number, or nothing is known."""
    model = _with_learner(saved).get("model", {})
    classes = model.get("classes")
    return classes if model.get("learner") == "network" and isinstance(classes, int) else None


def differences(saved: Mapping[str, Any], config: Config) -> Iterator[Difference]:
    """The keys in which a configuration differs from a fingerprint; what it leaves to the default is adopted."""
    before = {**(BEFORE if "posterior.expectation" not in saved else {}), **dict(_flat(_with_learner(saved)))}
    after = dict(_flat(fingerprint(adopted(saved, config))))
    for key, value in after.items():
        undecided = key == "model.likelihood" and before.get(key) == "auto"  # no batch had come
        if key in before and before[key] != value and not undecided:
            yield Difference(key, before[key], value)


def _flat(saved: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in saved.items():
        if key in ("model", "input"):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def check_fingerprint(saved: Mapping[str, Any], config: Config) -> None:
    """Raise ConfigError naming the keys in which the configuration differs, why they must not, and what to do."""
    found = list(differences(saved, config))
    if found:
        raise ConfigError(f"configuration: {'; '.join(map(str, found))}. {REMEDY}")
