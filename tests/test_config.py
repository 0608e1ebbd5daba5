"""The configuration: the contract's keys and defaults, and errors that name the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamcl import binding, config
from streamcl.config import from_tree
from streamcl.errors import ConfigError

CONTRACT = {
    "state_dir": "./streamcl-state",
    "endpoints.stream": "tcp://127.0.0.1:5757",
    "endpoints.predict": "tcp://127.0.0.1:5758",
    "endpoints.admin": "tcp://127.0.0.1:5759",
    "endpoints.http": "127.0.0.1:5780",
    "model.learner": "network",
    "model.factory": "streamcl.models:mlp",
    "model.args": {},
    "model.likelihood": "auto",
    "model.classes": "auto",
    "model.scenario": "class",
    "model.noise_variance": "auto",
    "train.optimizer": "adam",
    "train.learning_rate": "auto",
    "train.batch_size": "auto",
    "train.epochs": "auto",
    "train.tolerance": 0.0,
    "train.device": "auto",
    "train.dtype": "float32",
    "train.seed": 0,
    "posterior.mode": "single",
    "posterior.prior_precision": "auto",
    "posterior.prior_mean": "zero",
    "posterior.scale": 1.0,
    "posterior.curvature": "auto",
    "posterior.fisher": "exact",
    "posterior.damping": "auto",
    "stream.boundary": "explicit",
    "stream.boundary_rows": 10_000,
    "stream.task_bytes": 8589934592,
    "stream.credit": 16,
}

OURS = {
    "posterior.half_life": 0.0,
    "train.autocast": "off",
    "train.watchdog_seconds": 300.0,
    "train.workers": 1,
    "train.elastic": False,
    "posterior.convention": "streamcl",
    "posterior.gamma": 0.95,
    "posterior.expectation": "posterior",
    "posterior.share": "auto",
    "posterior.keep": 3,
    "input.scale": "tables",
    "input.missing": "mean",
    "input.categories": "one-hot",
    "stream.on_failure": "hold",
    "evaluation.directory": "",
    "stream.boundary_seconds": 86_400.0,
    "stream.budget_seconds": 3_600.0,
    "stream.least_rows": 500,
    "stream.score_fall": 0.1,
    "stream.score_window": 1000,
    "stream.drift_detector": "adwin",
    "stream.drift_args": {},
    "stream.drift_on": "score",
    "stream.recurring": "off",
    "stream.recurring_distance": 0.2,
    "stream.drift_delta": 0.002,
    "stream.drift_rows": 500,
    "stream.tasks": 100_000,
    "stream.producers": 100_000,
    "security.server_key": "",
    "security.policy": "",
    "security.http_token": "",
    "security.http_certificate": "",
    "security.http_key": "",
    "follow.endpoint": "",
    "follow.key": "",
    "follow.server_key": "",
    "follow.interval": 0.0,
    "log.level": "info",
    "log.format": "auto",
}


def test_keys_and_defaults_are_those_of_the_contract_and_few_more() -> None:
    assert {key: default for key, _, default in config.all_keys()} == CONTRACT | OURS


def test_a_file_is_overridden_by_flags(tmp_path: Path) -> None:
    path = tmp_path / "streamcl.toml"
    path.write_text("[train]\nepochs = 7\nlearning_rate = 1\n[model]\nargs = { hidden = [3] }\n[stream]\ncredit = 2\n")
    loaded = config.load(path, {"train.epochs": "9", "model.likelihood": "bernoulli", "posterior.scale": "2"})
    assert (loaded.train.epochs, loaded.train.learning_rate, loaded.stream.credit) == (9, 1.0, 2)
    assert loaded.model.args == {"hidden": [3]}
    assert (loaded.model.likelihood, loaded.posterior.scale) == ("bernoulli", 2.0)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"train.epoch": "3"}, "did you mean train.epochs"),
        ({"trian.epochs": "3"}, "trian: unknown key; did you mean [train]?"),
        ({"stream.scoer": "0.2"}, "stream.scoer: unknown key; did you mean stream.score_fall?"),
        ({"train.batch": "8"}, "did you mean train.batch_size?"),
        ({"stream.epochs": "8"}, "did you mean train.epochs?"),
        ({"stream.qqqq": "8"}, "stream.qqqq: unknown key; known: "),
        ({"train.epochs": "0"}, "train.epochs"),
        ({"train.autocast": "bfloat16", "train.dtype": "float64"}, "train.autocast"),
        ({"train.autocast": "bfloat16", "train.optimizer": "lbfgs"}, "train.autocast"),
        ({"train.epochs": "many"}, "--train.epochs"),
        ({"train.epochs": "1.5"}, "train.epochs"),
        ({"train.learning_rate": "nan"}, "train.learning_rate"),
        ({"train.learning_rate": "inf"}, "finite"),
        ({"posterior.scale": "-1"}, "posterior.scale"),
        ({"posterior.damping": "0"}, "posterior.damping"),
        ({"model.likelihood": "poisson"}, "model.likelihood"),
        ({"model.factory": "no colon"}, "package.module:callable"),
        ({"endpoints.stream": "http://x"}, "tcp://HOST:PORT"),
        ({"endpoints.http": "5780"}, "HOST:PORT"),
        ({"posterior.share": "0"}, "posterior.share"),
        ({"posterior.curvature": "kronekker"}, "posterior.curvature"),
        ({"train.learning_rate": "automatic"}, "train.learning_rate"),
        ({"stream.boundary": "drift", "train.optimizer": "lbfgs"}, "stream.boundary: drift"),
        ({"stream.drift_delta": "1.0"}, "stream.drift_delta"),
        ({"stream.boundary": "hourly"}, "stream.boundary: expected one of explicit | on-change | rows | time | budget"),
        ({"stream.boundary_seconds": "0"}, "stream.boundary_seconds: expected float > 0.0, got 0"),
        ({"stream.budget_seconds": "86401"}, "stream.budget_seconds: expected float <= 86400.0, got 86401"),
        ({"stream.least_rows": "0"}, "stream.least_rows"),
        ({"endpoints.stream": "tcp://0.0.0.0:5757"}, "endpoints.stream: tcp://0.0.0.0:5757 can be reached"),
        ({"endpoints.predict": "tcp://*:5757"}, "keygen"),
        ({"endpoints.admin": "tcp://eth0:5757"}, "security.server_key"),
        ({"endpoints.stream": "tcp://[::]:5757"}, "security.server_key"),
        ({"endpoints.http": "0.0.0.0:80"}, "http_token"),
        ({"endpoints.http": "0.0.0.0:80", "security.http_token": "t"}, "http_certificate"),
        ({"security.server_key": "s.key"}, "both server_key and policy"),
        ({"security.http_key": "s.key"}, "both http_certificate"),
        ({"endpoints.stream": "ipc://@name"}, "ipc://PATH"),
        ({"endpoints.stream": "ipc:///" + "a" * 107}, "at most 107 bytes"),
        ({"stream.tasks": "0"}, "stream.tasks"),
    ],
)
def test_an_error_names_the_key(flags: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config.load(flags=flags)
    assert said in str(caught.value)


def test_a_file_that_is_none_or_not_toml_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        config.load(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[train\n")
    with pytest.raises(ConfigError, match="not TOML"):
        config.load(tmp_path / "bad.toml")


def test_loopback_needs_no_keys_and_keys_open_every_address() -> None:
    for host in ("127.0.0.1", "127.0.0.2", "localhost", "[::1]"):
        config.load(flags={"endpoints.stream": f"tcp://{host}:1", "endpoints.http": f"{host}:2"})
    keys = {"security.server_key": "a", "security.policy": "b"}
    config.load(flags={"endpoints.stream": "tcp://0.0.0.0:1", **keys})
    tls = {"security.http_token": "a", "security.http_certificate": "b", "security.http_key": "c"}
    config.load(flags={"endpoints.http": "0.0.0.0:1", **tls})


def test_a_configuration_is_frozen() -> None:
    with pytest.raises(AttributeError):
        config.Config().train.epochs = 3  # type: ignore[misc]


# -- what a state directory is bound to ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "differing"),
    [
        ({}, []),
        ({"curvature": "diagonal"}, []),
        ({"curvature": "auto", "expectation": "posterior"}, []),  # what is the default is left to the directory
        ({"expectation": "mode"}, []),
        ({"curvature": "kronecker"}, ["posterior.curvature"]),
        ({"curvature": "full", "expectation": "mode"}, ["posterior.curvature"]),
    ],
)
def test_a_directory_from_before_curvatures_could_be_chosen_goes_on_as_the_note_has_it(
    settings: dict[str, str], differing: list[str]
) -> None:
    made = binding.fingerprint(from_tree({"posterior": {"curvature": "diagonal", "expectation": "mode"}}))
    old = {key: value for key, value in made.items() if key != "posterior.expectation"}
    now = from_tree({"posterior": settings})
    assert [each.key for each in binding.differences(old, now)] == differing
    if not differing:
        gone_on = binding.adopted(old, now)
        assert gone_on.posterior.as_in_the_note
        assert (gone_on.rate, gone_on.epochs(10), gone_on.posterior.effective_damping) == (1e-3, 5, 0.5)


@pytest.mark.parametrize("settings", [{"curvature": "kronecker"}, {"expectation": "mode"}, {"curvature": "diagonal"}, {}])
def test_a_directory_keeps_the_curvature_that_it_was_made_with(settings: dict[str, str]) -> None:
    made, default = from_tree({"posterior": settings}), from_tree({})
    assert list(binding.differences(binding.fingerprint(made), default)) == []
    assert binding.adopted(binding.fingerprint(made), default).posterior == made.posterior
    other = from_tree({"posterior": {"curvature": "full"}})
    assert [each.key for each in binding.differences(binding.fingerprint(made), other)] == ["posterior.curvature"]
