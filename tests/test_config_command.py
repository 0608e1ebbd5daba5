"""`config check`, `config show`, the environment, and what is reported if a key needs a new state directory."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl import config
from streamcl.bench.local import FREE_ENDPOINTS, LocalDaemon
from streamcl.cli import main
from streamcl.errors import ConfigError

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in an empty directory; returns its exit status, its output and its errors."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments: Any) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        output = capsys.readouterr()
        return status, output.out, output.err

    return command


def written(text: str) -> Path:
    path = Path("streamcl.toml")
    path.write_text(text)
    return path


# -- precedence --------------------------------------------------------------------------------------------------------


def test_a_flag_goes_before_the_environment_that_before_the_file_and_that_before_the_default(tmp_path: Path) -> None:
    path = tmp_path / "streamcl.toml"
    path.write_text("[train]\nepochs = 1\nbatch_size = 1\nseed = 1\n")
    environment = {"STREAMCL_TRAIN__BATCH_SIZE": "2", "STREAMCL_TRAIN__SEED": "2", "HOME": "/root"}
    found = config.gather(path, {"train.seed": "3"}, environment)
    train = found.config().train
    assert (train.epochs, train.batch_size, train.seed, train.device) == (1, 2, 3, "auto")
    origins = [str(found.origin(f"train.{name}")) for name in ("epochs", "batch_size", "seed", "device")]
    assert origins == [f"file {path}", "environment STREAMCL_TRAIN__BATCH_SIZE", "flag --train.seed", "default"]


def test_every_key_has_a_variable_of_its_own() -> None:
    variables = {config.variable(key): key for key, _, _ in config.all_keys()}
    assert len(variables) == len(list(config.all_keys()))
    assert variables["STREAMCL_SECURITY__HTTP_TOKEN"] == "security.http_token"
    assert variables["STREAMCL_STATE_DIR"] == "state_dir"
    loaded = config.load(environment={"STREAMCL_MODEL__ARGS": "{ hidden = [3] }", "STREAMCL_STATE_DIR": "3"})
    assert (loaded.model.args, loaded.state_dir) == ({"hidden": [3]}, "3")


@pytest.mark.parametrize(
    ("variable", "meant"),
    [
        ("STREAMCL_TRAIN__EPOCH", "STREAMCL_TRAIN__EPOCHS"),
        ("STREAMCL_TRAIN_EPOCHS", "STREAMCL_TRAIN__EPOCHS"),
        ("STREAMCL_train__epochs", "STREAMCL_TRAIN__EPOCHS"),
        ("STREAMCL_STATE__DIR", "STREAMCL_STATE_DIR"),
        ("STREAMCL_X__Y", "SECTION__KEY"),
    ],
)
def test_a_variable_that_is_nearly_a_key_is_an_error(variable: str, meant: str) -> None:
    with pytest.raises(ConfigError, match=f"{variable}: .*{meant}"):
        config.load(environment={variable: "3"})


def test_variables_of_others_are_left_alone() -> None:
    others = ("STREAMCL_PORT", "STREAMCL_SERVICE_HOST", "STREAMCL_STREAM_PORT_5757_TCP_ADDR", "STREAMCL_STATE_PORT")
    assert config.load(environment=dict.fromkeys(others, "tcp://10.0.0.1:5757")) == config.Config()


def test_the_library_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMCL_TRAIN__EPOCHS", "9")
    assert config.load().train.epochs == config.Config().train.epochs


def test_an_error_says_where_the_value_came_from(tmp_path: Path) -> None:
    path = tmp_path / "streamcl.toml"
    path.write_text("[posterior]\nscale = -1\n")
    with pytest.raises(ConfigError) as caught:
        config.load(path, {"train.epochs": "many"}, {"STREAMCL_TRAIN__DTYPE": "int8", "STREAMCL_STREAM__CREDIT": "0"})
    for said in (
        f"posterior.scale: expected float >= 0.0, got -1 (file {path})",
        "train.epochs: expected a TOML value such as 5, got 'many' (flag --train.epochs)",
        "train.dtype: expected one of float32 | float64, got 'int8' (environment STREAMCL_TRAIN__DTYPE)",
        "stream.credit: expected int >= 1, got 0 (environment STREAMCL_STREAM__CREDIT)",
        "4 problems",
    ):
        assert said in str(caught.value)


# -- check -------------------------------------------------------------------------------------------------------------

BAD = """
epochs = 3
[trian]
seed = 1
[train]
epoch = 3
dtype = "float16"
autocast = "bfloat16"
[posterior]
scale = "much"
colour = 1
[endpoints]
stream = "tcp://0.0.0.0:5757"
"""


def test_every_problem_of_a_file_is_found_with_the_nearest_key(run: Run) -> None:
    status, out, _ = run("config", "check", written(BAD), "--json")
    found = {problem["key"]: problem for problem in json.loads(out)["problems"]}
    assert status == 2
    assert {key: near for key in found if "did you mean" in (near := found[key]["problem"])} == {
        "epochs": "unknown key; did you mean train.epochs?",
        "trian": "unknown key; did you mean [train]?",
        "train.epoch": "unknown key; did you mean train.epochs?",
    }
    assert "known: state_dir" in found["posterior.colour"]["problem"]
    assert "got 'much'" in found["posterior.scale"]["problem"]
    assert "security.server_key" in found["endpoints.stream"]["problem"]
    assert "train.dtype" in found
    assert {problem["from"] for problem in found.values()} == {"file"}
    text = run("config", "check", "streamcl.toml")[1]
    assert text.count("(file streamcl.toml)") == len(found)
    assert f"{len(found)} problems" in text


def test_a_wrong_value_is_not_blamed_again_for_what_it_must_go_with(run: Run) -> None:
    path = written("[security]\nserver_key = 3\npolicy = 'p.toml'\n[endpoints]\nstream = 'tcp://0.0.0.0:5757'\n")
    problems = json.loads(run("config", "check", path, "--json")[1])["problems"]
    assert [problem["key"] for problem in problems] == ["security.server_key"]


def test_a_good_file_is_good_and_a_file_that_is_none_is_said(run: Run) -> None:
    status, out, _ = run("config", "check", written("[train]\nepochs = 3\n"))
    assert (status, "good" in out, "which is new" in out) == (0, True, True)
    assert json.loads(run("config", "check", "streamcl.toml", "--json")[1])["good"] is True
    assert run("config", "check", written("train = 3"))[1].startswith("train: expected a table ([train]), got 3")
    assert run("config", "check", "none.toml")[0] == 2
    assert run("config", "check", written("[train"))[0] == 2


def test_the_environment_is_checked_with_the_file(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("[train]\nepochs = 3\n")
    monkeypatch.setenv("STREAMCL_TRAIN__EPOCHS", "0")
    assert "(environment STREAMCL_TRAIN__EPOCHS)" in run("config", "check", path)[1]
    monkeypatch.setenv("STREAMCL_TRAIN__EPOCHS", "1")
    monkeypatch.setenv("STREAMCL_TRAIN_SEED", "1")
    status, out, _ = run("config", "check", path)
    assert (status, "did you mean STREAMCL_TRAIN__SEED?" in out) == (2, True)


def test_what_cannot_be_found_from_here_is_a_warning_and_an_error_if_strict(run: Run) -> None:
    path = written("[model]\nfactory = 'not_yet_there:net'\n[security]\nserver_key = 'no.key'\npolicy = 'no.toml'\n")
    status, out, _ = run("config", "check", path)
    assert (status, out.count("warning: ")) == (0, 2)
    assert "no.key" in out
    assert "no module not_yet_there" in out
    assert run("config", "check", path, "--strict")[0] == 2
    Path("not_yet_there.py").write_text("raise SystemExit('was run')\n")
    assert "no module" not in run("config", "check", path)[1]


# -- show --------------------------------------------------------------------------------------------------------------


def test_show_says_where_every_value_comes_from(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written("[model]\nargs = { hidden = [3, 4], activation = 'gelu' }\n[train]\nseed = 1\n")
    monkeypatch.setenv("STREAMCL_TRAIN__EPOCHS", "7")
    arguments = ("config", "show", "--config", path, "--state-dir", '/tmp/a "b"')
    keys = json.loads(run(*arguments, "--json")[1])
    assert keys["train.epochs"] == {"value": 7, "from": "environment", "name": "STREAMCL_TRAIN__EPOCHS"}
    assert keys["train.seed"] == {"value": 1, "from": "file", "name": "streamcl.toml"}
    assert keys["state_dir"] == {"value": '/tmp/a "b"', "from": "flag", "name": "--state_dir"}
    assert keys["train.dtype"] == {"value": "float32", "from": "default", "name": ""}
    assert set(keys) == {key for key, _, _ in config.all_keys()}
    out = run(*arguments)[1]
    assert "# environment STREAMCL_TRAIN__EPOCHS" in out
    assert config.from_tree(tomllib.loads(out)) == config.load(path, {"state_dir": '/tmp/a "b"', "train.epochs": "7"})
    changed = tomllib.loads(run(*arguments, "--changed")[1])
    assert changed["train"] == {"epochs": 7, "seed": 1}


def test_show_of_what_is_wrong_exits_2(run: Run) -> None:
    status, out, err = run("config", "show", "--train.epochs", "0")
    assert (status, out) == (2, "")
    assert "train.epochs: expected int >= 1, got 0 (flag --train.epochs)" in err


# -- the state directory -----------------------------------------------------------------------------------------------


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """A state directory of a daemon that has learned one task."""
    tree = {"model": {"args": {"hidden": [4]}, "classes": 3}, "train": {"epochs": 1}}
    with LocalDaemon(tree, tmp_path / "state") as daemon, daemon.producer() as producer:
        producer.send(np.eye(3, dtype="<f4"), np.arange(3), "monday", boundary=True)
        daemon.admin().checkpoint()
    return tmp_path / "state"


def test_a_key_that_needs_a_new_state_directory_is_explained_before_the_start_and_at_it(run: Run, made: Path) -> None:
    path = written(f"state_dir = '{made}'\n[model]\nclasses = 3\nargs = {{ hidden = [4] }}\n[train]\nepochs = 9\n")
    status, out, _ = run("config", "check", path)
    assert (status, "which it fits" in out) == (0, True)
    flags = ("--posterior.mode", "factors", "--model.classes", "4", "--train.dtype", "float64")
    free = [text for name, value in FREE_ENDPOINTS.items() for text in (f"--endpoints.{name}", value)]
    status, out, _ = run("config", "check", path, *flags, "--json")
    found = {problem["key"]: problem for problem in json.loads(out)["problems"]}
    assert (status, set(found)) == (2, {"posterior.mode", "model.classes", "train.dtype"})
    assert all(problem["needs_new_state_dir"] for problem in found.values())
    serve = [sys.executable, "-m", "streamcl", "serve", "--config", str(path), *flags, *free]
    refused = subprocess.run(serve, capture_output=True, text=True, timeout=120, check=False)
    assert refused.returncode == 2
    for said in ("model.classes was 3, is 4", "posterior.mode was 'single'", "new state directory", "streamcl export"):
        assert said in refused.stderr
    for said in ("made with 3, this is 4", "each class has its own output", "new state directory", "streamcl export"):
        assert said in found["model.classes"]["problem"]
    (made / "checkpoint").write_bytes(b"not one")
    assert "streamcl doctor" in run("config", "check", path)[1]


@pytest.mark.campaign
def test_serve_takes_its_keys_from_the_environment_and_the_clients_find_it(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("STREAM", "PREDICT", "ADMIN"):
        monkeypatch.setenv(f"STREAMCL_ENDPOINTS__{name}", "tcp://127.0.0.1:*")
    monkeypatch.setenv("STREAMCL_ENDPOINTS__HTTP", "127.0.0.1:0")
    monkeypatch.setenv("STREAMCL_POSTERIOR__MODE", "online")
    monkeypatch.setenv("STREAMCL_STATE_DIR", "elsewhere")
    serving = subprocess.Popen([sys.executable, "-m", "streamcl", "serve"], stderr=subprocess.PIPE, text=True)
    try:
        assert serving.stderr is not None
        assert any("elsewhere" in line for line in serving.stderr)  # the line that says that it is ready
        assert json.loads(run("status", "--json")[1])["mode"] == "online"
    finally:
        serving.terminate()
        serving.communicate(timeout=120)
