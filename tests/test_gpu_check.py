"""`deploy/gpu-check` records what each part comes to, whatever becomes of it, and ends well only if all of them did."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from streamcl.bench import device_check
from streamcl.bench.device.clock import Clock
from streamcl.bench.device.parts import PARTS
from streamcl.bench.device.record import Row, Skipped, memory
from streamcl.bench.device.setting import SIZES, Setting
from streamcl.cli import main
from streamcl.cli.benches import DEVICE_PARTS

TOP = Path(__file__).parents[1]
PROGRAM = """#!{python}
import json, pathlib, sys, time
arguments = sys.argv[1:]
if "-c" in arguments:
    print("it is there")
    sys.exit({absent})
if "pytest" in arguments:
    print({tests!r})
    sys.exit({status})
out = pathlib.Path(arguments[arguments.index("--json") + 1])
out.write_text(json.dumps({{"rows": [{{"name": "a row", "verdict": {verdict!r}}}]}}))
if {hangs}:
    time.sleep(600)
sys.exit({verdict!r} == "missed")
"""


def checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tests: str = "3 passed in 1s",
    status: int = 0,
    verdict: str = "met",
    hangs: bool = False,
    seconds: float = 60.0,
    absent: int = 0,
) -> tuple[int, dict[str, Any]]:
    """With a program in Python's place that says what its parts come to."""
    program = tmp_path / "python"
    says = {"tests": tests, "status": status, "verdict": verdict, "hangs": hangs, "absent": absent}
    program.write_text(PROGRAM.format(python=sys.executable, **says))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(device_check, "LEAST_SECONDS", 0.0)
    monkeypatch.setattr(device_check, "LOOK_SECONDS", 0.05)
    out = tmp_path / "found.json"
    found = device_check.main(["--rehearse", "--seconds", str(seconds), "--json", str(out)])
    return found, json.loads(out.read_text())["parts"]


def test_all_is_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, parts = checked(tmp_path, monkeypatch)
    assert status == 0
    assert {name: part["state"] for name, part in parts.items()} == dict.fromkeys(
        ("device", "tests", "figures, tiny"), "well"
    )
    assert parts["tests"]["counts"] == {"passed": 3}


def test_without_the_device_nothing_else_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, parts = checked(tmp_path, monkeypatch, absent=1)
    assert status == 1
    assert list(parts) == ["device"]
    assert "PyTorch cannot use cpu here" in parts["device"]["why"]


def test_a_test_that_fails_is_recorded_and_the_figures_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, parts = checked(tmp_path, monkeypatch, "FAILED one\n1 failed, 2 passed in 1s", 1)
    assert status == 1
    assert parts["tests"]["state"] == "failed"
    assert parts["tests"]["counts"] == {"failed": 1, "passed": 2}
    assert parts["figures, tiny"]["rows"]


def test_tests_that_were_all_skipped_are_not_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, parts = checked(tmp_path, monkeypatch, "SKIPPED [3] no CUDA\n3 skipped in 1s")
    assert status == 1
    assert parts["tests"]["state"] == "failed"
    assert parts["tests"]["skipped"] == ["SKIPPED [3] no CUDA"]


@pytest.mark.campaign
def test_what_is_cut_off_leaves_the_rows_it_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, parts = checked(tmp_path, monkeypatch, hangs=True, seconds=4.0)
    assert status == 1
    assert parts["figures, tiny"]["rows"] == [{"name": "a row", "verdict": "met"}]
    assert "cut off" in parts["figures, tiny"]["why"]


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_check, "OF_TESTS", ("pytest", "no_such_package"))
    status, parts = checked(tmp_path, monkeypatch)
    assert status == 1
    assert parts["tests"]["state"] == "left out"
    assert "no_such_package" in parts["tests"]["why"]
    assert parts["figures, tiny"]["state"] == "well"


def test_a_missed_goal_is_one_but_in_a_rehearsal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, parts = checked(tmp_path, monkeypatch, verdict="missed")
    assert status == 0
    assert parts["figures, tiny"]["missed"] == ["a row"]


def test_packages_that_were_brought_along_are_unpacked_where_they_are_lacking(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import zipfile

    carried, into = tmp_path / "carried", tmp_path / "into"
    carried.mkdir()
    into.mkdir()
    for name in ("msgspec-1.whl", "brought-1-py3-none-any.whl"):
        with zipfile.ZipFile(carried / name, "w") as wheel:
            wheel.writestr(f"{name.partition('-')[0]}.py", "")
    monkeypatch.setattr(device_check, "CARRIED", carried)
    assert device_check.unpacked(into) == [str(into)]
    assert [file.name for file in into.iterdir()] == ["brought.py"]


# -- the figures -------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_left_out_with_the_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    made = Setting(torch.device("cpu"), SIZES["1G"], Clock(torch.device("cpu"), 1, 0.0))
    monkeypatch.setattr(Clock, "free", lambda self: 20_000_000_000)
    skipped = made.lacking("a step", 28)
    assert skipped is not None
    assert skipped.good
    assert "x 28 bytes" in skipped.why
    assert "31.0 GB; 20.0 GB of the device are free" in skipped.why
    assert made.lacking("a step", 8) is None


def test_sizes_have_the_parameters_that_they_are_named_for() -> None:
    for name, about in (("1M", 1e6), ("100M", 1e8), ("1G", 1e9)):
        assert 0.95 * about < SIZES[name].parameters < 1.05 * about


def test_the_most_memory_has_a_goal_of_its_own() -> None:
    def row(peak: int | None) -> Row:
        return Row("a", "b", 1.0, None, 1.0, 1.0, 10, 1, "float32", 1, peak)

    found = list(memory([row(50), row(90), row(None), Skipped("c", "d")], 80))
    assert [(each.ratio, each.verdict, each.unit) for each in found] == [(90 / 80, "missed", "bytes")]


@pytest.mark.campaign
def test_figures_on_a_device_are_printed_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "device.json"
    assert tuple(PARTS) == DEVICE_PARTS
    parts = ["--only", "steps", "turned", "head", "--sizes", "tiny", "--rounds", "2", "--json", str(out)]
    status = main(["bench", "speed", "--device", "cpu", *parts])
    document, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert len(document["rows"]) == 5
    assert all(row["name"] in printed and row["ratio"] > 0 and row["peak"] is None for row in document["rows"])
    assert status == (1 if any(row["verdict"] == "missed" for row in document["rows"]) else 0)
    assert main(["bench", "speed", "--device", "cpu", "--only", "ingest"]) == 2
    assert main(["bench", "speed", "--device", "no-such-device", "--sizes", "tiny"]) != 0


@pytest.mark.campaign
def test_it_is_rehearsed(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    command = ["sh", str(TOP / "deploy" / "gpu-check"), "--rehearse", "--tests", "consolidation", "--json", str(out)]
    ran = subprocess.run(command, capture_output=True, text=True)
    parts = json.loads(out.read_text())["parts"]
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert parts["tests"]["counts"]["passed"] == 2
    assert not [row for row in parts["figures, tiny"]["rows"] if "failed" in row]
