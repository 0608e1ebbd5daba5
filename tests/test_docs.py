"""The documentation is true: its commands run, its output is what they print, its links lead somewhere.

What cannot be run in a test is listed in `NOT_RUN` with the reason, and checked as far as it can be.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from console import BLOCK, Shell, cut, replay, steps, words
from wire import PAGE, PLACE, conversation, page_text

from streamcl import client
from streamcl.bench.local import LocalDaemon
from streamcl.cli import build_parser
from streamcl.docs.reference import explanations, reference

TOP = Path(__file__).parents[1]
DOCS = TOP / "streamcl" / "docs"
PAGES = [TOP / "README.md", *sorted(DOCS.glob("*.md"))]
NOT_RUN = {
    "sh deploy/gpu-check": "needs a GPU; tests/test_gpu_check.py rehearses it",
    "sh deploy/run": "makes a virtual environment, or runs these tests: .ci/run does it",
    "streamcl bench": "takes minutes to hours",
    "pip install": "installs from a package index",
    "torchrun": "needs several machines: test_workers.py does it on one",
    "eval": "changes the shell: test_completion.py does it",
}
REPLAYED = {"tutorial.md", "howto.md", "security.md"}


def shell_lines(page: Path) -> Iterator[str]:
    """The commands of a page's ``sh`` blocks, without comments."""
    for block in re.findall(r"^```sh\n(.*?)^```$", page.read_text(), re.M | re.S):
        for line in block.splitlines():
            yield from (part.strip() for part in line.partition("  #")[0].split(";") if part.strip())


@pytest.mark.campaign
@pytest.mark.parametrize("name", sorted(REPLAYED))
def test_the_commands_of_a_page_print_what_it_shows(name: str, tmp_path: Path) -> None:
    wrong = []
    for step, _, lines in replay((DOCS / name).read_text(), tmp_path):
        expected, got = words(step.output), words(cut(step, lines))
        if expected != got:
            wrong.append("\n".join([f"$ {step.command}", "  shown:", *expected, "  printed:", *got]))
    assert not wrong, f"`python tests/console.py streamcl/docs/{name}` renews the page\n" + "\n".join(wrong)


def test_no_other_page_has_commands_with_output() -> None:
    assert {page.name for page in PAGES if BLOCK.search(page.read_text())} == REPLAYED


@pytest.mark.campaign
def test_the_commands_of_the_readme_work(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 200)
    rows = [",".join(map(str, [*np.round(np.eye(3)[t] + rng.normal(size=3) / 9, 3), t])) for t in y]
    for name in ("monday.csv", "new.csv"):
        (tmp_path / name).write_text("\n".join(["a,b,c,label", *rows]) + "\n")
    commands = [line for line in shell_lines(TOP / "README.md") if not line.startswith(tuple(NOT_RUN))]
    assert len(commands) >= 6
    shell = Shell(tmp_path)
    try:
        for command in commands:
            status, printed = shell.run(command)
            assert status == 0, f"{command}: {printed}"
    finally:
        shell.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_not_run_are_at_least_understood(page: Path) -> None:
    for line in shell_lines(page):
        words_of = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
        if line.startswith("sh deploy/run") and words_of[2:3] != ["test"]:
            words_of = ["streamcl", *words_of[2:]]
        if words_of[:2] == ["pip", "install"]:
            extra = re.fullmatch(r"streamcl\[(\w+)\]", words_of[2])
            assert extra, line
            assert extra[1] in tomllib.loads((TOP / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        elif words_of[0] == "streamcl":
            build_parser().parse_args([word for word in words_of[1:] if word != "&"])
        elif page.name != "README.md":
            assert line.startswith(tuple(NOT_RUN)), f"{line}: neither run nor understood"


def test_every_command_is_in_the_table() -> None:
    (table,) = re.findall(r"\| command \| does \|.*?\n\n", (DOCS / "commands.md").read_text(), re.S)
    named = set(re.findall(r"`(\w+)", table)) | {"config"}
    actions = next(action for action in build_parser()._actions if action.choices and action.dest != "help")
    assert set(actions.choices or ()) <= named


def python_blocks(mark: str) -> list[Any]:
    """The blocks of Python that a comment says how to run, of every page."""
    pattern = rf"<!-- {mark} -->\n```python\n(.*?)^```$"
    found = [(page.name, re.findall(pattern, page.read_text(), re.M | re.S)) for page in PAGES]
    return [pytest.param(code, id=f"{name} {n}") for name, codes in found for n, code in enumerate(codes, start=1)]


def surroundings() -> dict[str, Any]:
    """What the pages say is there when their Python begins."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 96)
    x = (np.eye(3, 8)[y] + rng.normal(size=(96, 8)) / 9).astype("float32")
    torch.manual_seed(0)
    return {
        "x": x,
        "batches": [(x[:48], y[:48]), (x[48:], y[48:])],
        "tasks": {"monday": (x[:48], y[:48]), "tuesday": (x[48:], y[48:])},
        "stream": [(dict(zip("abcdefgh", row.tolist(), strict=True)), int(label)) for row, label in zip(x, y, strict=True)],
        "model": torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10)),
    }


def outcome(code: str, directory: Path) -> dict[str, Any]:
    """What a page's code leaves behind, run as a module of its own."""
    path = directory / "page.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("page", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    vars(module).update(surroundings())
    spec.loader.exec_module(module)
    return vars(module)


@pytest.mark.campaign
@pytest.mark.parametrize("code", python_blocks("with a daemon"))
def test_python_that_speaks_to_a_daemon_works(
    code: str, start: Callable[..., LocalDaemon], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    endpoints = start({"model": {"classes": 3}}).endpoints
    for name, endpoint in (("Producer", "stream"), ("Reader", "predict"), ("Admin", "admin")):
        monkeypatch.setattr(client, name, partial(getattr(client, name), endpoints[endpoint]))
    namespace = outcome(code, tmp_path)
    assert "boundary(" in code
    probabilities = namespace["prediction"].probs if "prediction" in namespace else namespace["probabilities"]
    assert probabilities.shape == (len(namespace["x"]), 3)


@pytest.mark.parametrize("code", python_blocks("in process"))
def test_python_in_process_works(code: str, tmp_path: Path) -> None:
    namespace = outcome(code, tmp_path)
    assert "boundary(" in code or "end_task(" in code
    if "probabilities" in namespace:
        assert len(namespace["probabilities"]) == len(namespace["x"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path) if path else page
        assert other.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(other.read_text()), f"{page.name}: {target}"
    for name in re.findall(r"`((?:streamcl|tests|deploy)/[\w./-]+\.\w+)", text):
        assert (TOP / name).exists(), f"{page.name}: {name}"


def anchors(text: str) -> set[str]:
    """As GitHub makes them of headings, and those that are written."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M)
    made = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return made | set(re.findall(r'<a id="(\w+)">', text))


def test_every_alert_has_its_runbook() -> None:
    groups = yaml.safe_load((TOP / "deploy" / "prometheus" / "rules.yaml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"] if "alert" in rule]
    for rule in rules:
        page, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert anchor == rule["alert"]
        assert f'<a id="{anchor}"></a>\n### {anchor}\n' in (TOP / page).read_text()
    assert len(re.findall(r'<a id="Streamcl', (DOCS / "operate.md").read_text())) == len(rules)


def test_the_reference_is_what_the_code_says() -> None:
    assert (DOCS / "reference.md").read_text() == reference(), (
        "python -m streamcl.docs.reference > streamcl/docs/reference.md"
    )
    assert all(explanations().values())


def test_the_bytes_of_the_protocol_are_those_on_the_wire(start: Callable[..., LocalDaemon]) -> None:
    said = page_text(conversation(start({}).endpoints["stream"]))
    shown = PLACE.search(PAGE.read_text())
    assert shown is not None
    assert messages(shown[0], "client") == messages(said, "client")
    assert figureless(shown[0]) == figureless(said)


def messages(text: str, who: str) -> list[str]:
    return re.findall(rf"\*\*{who}: .*?^```$.*?^```$", text, re.M | re.S)


def figureless(text: str) -> list[str]:
    """Fields and types, without the values that differ: loss and seconds."""
    values = [line.split("  ", 1)[1] for line in text.splitlines() if re.match(r"[0-9a-f]{2} .*  \S", line)]
    return [re.sub(r"\d+\.\d+(e-\d+)?$", "#", line.strip()) for line in values]


@pytest.mark.campaign
def test_the_whole_client_of_the_protocol_page_works(start: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.M | re.S)
    (tmp_path / "client.py").write_text(code)
    daemon = start({"model": {"factory": "streamcl.models:linear", "classes": 3}})
    command = [sys.executable, str(tmp_path / "client.py"), daemon.endpoints["stream"]]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "'type': 'done'" in done.stdout.splitlines()[-1]
    with daemon.admin() as admin:
        assert [(task["task"], task["samples"]) for task in admin.tasks()] == [("monday", 320)]


def test_a_changed_output_is_noticed() -> None:
    (step,) = steps("$ streamcl stop\nstate  stopped 12 s\n")
    assert words(step.output) == words(["state stopped 7.5 s"]) != words(["state  ended 12 s"])
