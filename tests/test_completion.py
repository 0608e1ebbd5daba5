"""`streamcl completion`, in the shells that it is for, and what the parser suggests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.cli import main

Complete = Callable[..., set[str]]
BASH = 'source ./script; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shtab_streamcl; printf "%s\\n" "${COMPREPLY[@]}"'


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    """A daemon that knows two tasks."""
    tree = {"model": {"classes": 2}, "train": {"epochs": 1}}
    with LocalDaemon(tree, tmp_path_factory.mktemp("completion") / "state") as running, running.producer() as producer:
        for task in ("monday", "monday in may"):
            producer.send(np.eye(2, dtype="<f4"), np.arange(2), task)
            producer.boundary(task)
        yield running


def environment(daemon: LocalDaemon) -> dict[str, str]:
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": programs, "STREAMCL_STATE_DIR": str(daemon.state_dir)}


def script(shell: str, path: Path) -> Path:
    written = subprocess.run([sys.executable, "-m", "streamcl", "completion", shell], capture_output=True, check=True)
    path.write_bytes(written.stdout)
    return path


def shell(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


@pytest.fixture
def bash(daemon: LocalDaemon, tmp_path: Path) -> Complete:
    """What bash offers for the last of some words."""
    program = shell("bash")
    script("bash", tmp_path / "script")

    def complete(*words: str) -> set[str]:
        command = [program, "--norc", "-c", BASH, "bash", "streamcl", *words]
        ran = subprocess.run(command, cwd=tmp_path, env=environment(daemon), capture_output=True, text=True, check=True)
        return set(ran.stdout.split("\n")) - {""}

    return complete


def test_bash_completes_commands_options_and_their_values(bash: Complete) -> None:
    assert bash("bo") == {"boundary"}
    assert bash("config", "") == {"check", "show"}
    assert bash("boundary", "--w") == {"--wait", "--weight"}
    assert bash("serve", "--train.op") == {"--train.optimizer"}
    assert bash("serve", "--train.optimizer", "") == {"adam", "sgd", "lbfgs"}
    assert {"accuracy", "order-bias", "all"} <= bash("plot", "")
    assert bash("sweep", "x.csv", "--order", "re") == {"reverse"}


def test_bash_completes_files_directories_and_the_daemons_tasks(bash: Complete, tmp_path: Path) -> None:
    (tmp_path / "data.csv").touch()
    (tmp_path / "data.d").mkdir()
    assert "data.csv" in bash("send", "da")
    assert bash("doctor", "da") == {"data.d"}
    assert bash("boundary", "mon") == {"monday", "monday in may"}
    assert bash("send", "data.csv", "--task", "monday i") == {"monday in may"}


def test_bash_knows_the_function_for_streamcl(daemon: LocalDaemon, tmp_path: Path) -> None:
    command = f"source {script('bash', tmp_path / 'script')}; complete -p streamcl"
    ran = subprocess.run([shell("bash"), "--norc", "-c", command], capture_output=True, text=True, check=True)
    assert "-F _shtab_streamcl streamcl" in ran.stdout


def test_fish_completes(daemon: LocalDaemon, tmp_path: Path) -> None:
    program, path = shell("fish"), script("fish", tmp_path / "script.fish")

    def complete(line: str) -> set[str]:
        command = [program, "--no-config", "-c", f"source {path}; complete -C '{line}'"]
        ran = subprocess.run(command, env=environment(daemon), capture_output=True, text=True, check=True)
        return {row.split("\t")[0] for row in ran.stdout.splitlines()}

    assert complete("streamcl bo") == {"boundary"}
    assert {"adam", "sgd", "lbfgs"} <= complete("streamcl serve --train.optimizer ")
    assert "monday" in complete("streamcl boundary mon")


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_every_script_is_sound(name: str, tmp_path: Path) -> None:
    subprocess.run([shell(name), "-n", str(script(name, tmp_path / f"script.{name}"))], check=True)


def test_zsh_takes_the_script_as_a_completion(tmp_path: Path) -> None:
    path = script("zsh", tmp_path / "_streamcl")
    assert path.read_text().startswith("#compdef streamcl")
    code = f"fpath=({tmp_path} $fpath); autoload -U compinit; compinit -u -d {tmp_path}/dump; print $_comps[streamcl]"
    ran = subprocess.run([shell("zsh"), "-f", "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "_streamcl"


# -- what the parser suggests ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["stauts"], "unknown command 'stauts'; did you mean status? (`streamcl --help` lists all)"),
        (["config", "chek"], "unknown command 'chek'; did you mean check?"),
        (["bench", "sped"], "unknown benchmark 'sped'; did you mean speed?"),
        (["zzz"], "unknown command 'zzz' (`streamcl --help` lists all)"),
        (["serve", "--train.epoch", "3"], "unknown --train.epoch 3; did you mean --train.epochs?"),
        (["status", "--jsn"], "did you mean --json?"),
        (["--vresion"], "unknown --vresion; did you mean --version?"),
        (["bench", "--json", "sped"], "did you mean speed?"),
    ],
)
def test_a_slip_is_met_with_the_nearest(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(("arguments", "listed"), [([], "boundary"), (["config"], "show"), (["bench"], "speed")])
def test_without_a_command_the_help_is_printed(
    arguments: list[str], listed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert listed in capsys.readouterr().err
