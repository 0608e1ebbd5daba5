"""An export is loaded into plain PyTorch by the three lines of the how-to guides, and predicts what the daemon does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from streamcl.bench.local import LocalDaemon
from streamcl.cli import main

pytestmark = pytest.mark.campaign

TOP = Path(__file__).parents[1]
HOWTO = TOP / "streamcl" / "docs" / "howto.md"
MODELS = """
import math
import torch
from torch import nn

class Strange(nn.Module):
    def __init__(self, inputs, outputs, width):
        super().__init__()
        self.backbone = nn.Linear(inputs, width)
        for parameter in self.backbone.parameters():
            parameter.requires_grad_(False)
        self.encode = nn.Linear(width, width, bias=False)
        self.decode = nn.Linear(width, width, bias=False)
        self.decode.weight = self.encode.weight
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(width, outputs)
        self.register_buffer("scale", torch.linspace(0.5, 1.5, width))
        self.register_buffer("steps", torch.arange(3))
        self.register_buffer("passes", torch.rand(width), persistent=False)
        self.register_buffer("small", torch.rand(width).bfloat16())
        self.register_buffer("phase", torch.randn(width, dtype=torch.complex64))
        self.register_buffer("mask", torch.rand(width) > 0.2)

    def forward(self, x):
        x = torch.tanh(self.backbone(x) * self.scale.to(x.dtype) + self.small.to(x.dtype))
        x = self.dropout(self.decode(torch.tanh(self.encode(x)))) * self.mask
        return self.head(x + self.passes.to(x.dtype) + self.phase.abs().to(x.dtype) + self.steps.sum())

def strange(input_shape, outputs, width=8):
    return Strange(math.prod(input_shape), outputs, width)

class Graph(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.register_buffer("links", torch.eye(inputs).to_sparse())
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x):
        return self.head((self.links @ x.T).T)

def graph(input_shape, outputs):
    return Graph(*input_shape, outputs)

class Words(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.head = nn.LazyLinear(outputs)

    def forward(self, x):
        return self.head(self.table(x).mean(1))

def words(outputs):
    return Words(outputs)
"""
SEED = "import torch; torch.manual_seed(0)\n"
AFTER = """
import sys, torch
assert "streamcl" not in sys.modules or model["module"].startswith("streamcl")
import numpy as np
x = torch.tensor(np.load("x.npy", allow_pickle=False)).to(getattr(torch, model["input"]["dtype"]))
with torch.no_grad():
    outputs = module(x)
np.save("outputs.npy", (outputs.softmax(1) if model["likelihood"] == "categorical" else outputs).numpy())
print(model["labels"], type(module).__name__)
"""
REAL = {"x": np.random.default_rng(0).normal(size=(60, 5)).astype("<f4"), "y": np.arange(60) % 3 + 1}
TOKENS = {"x": np.random.default_rng(0).integers(0, 11, (60, 4)), "y": np.arange(60) % 3 + 1}
CASES: dict[str, tuple[dict[str, Any], dict[str, np.ndarray]]] = {
    "tied, frozen, buffers": ({"model": {"factory": "mine:strange", "args": {"width": 12}, "classes": 3}}, REAL),
    "the same in float64": ({"model": {"factory": "mine:strange", "classes": 3}, "train": {"dtype": "float64"}}, REAL),
    "sparse": ({"model": {"factory": "mine:graph", "classes": 3}}, REAL),
    "tokens, lazy": ({"model": {"factory": "mine:words", "classes": 3}}, TOKENS),
    "the default": ({"model": {"classes": 4}}, REAL),
    "the default in float64": ({"train": {"dtype": "float64"}}, REAL),
    "real targets": (
        {"model": {"factory": "streamcl.models:linear", "likelihood": "gaussian"}},
        {"x": REAL["x"], "y": REAL["x"][:, :2] * 2},
    ),
}


def three_lines() -> str:
    (block,) = re.findall(r"<!-- three lines -->\n```python\n(.*?)^```$", HOWTO.read_text(), re.M | re.S)
    imports, code = block.split("\n\n")
    assert imports.startswith("import ")
    assert len(imports.splitlines()) == 1
    assert len(code.strip().splitlines()) == 3
    return str(block)


@pytest.mark.parametrize("case", CASES)
def test_three_lines_load_it_and_it_predicts_the_same(
    start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    tree, data = CASES[case]
    (tmp_path / "mine.py").write_text(MODELS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    daemon = start({"posterior": {"scale": 0.1}, **tree, "train": {"epochs": 2, **tree.get("train", {})}})
    with daemon.producer() as producer, daemon.reader() as reader:
        producer.send(data["x"], data["y"], "a")
        producer.boundary("a")
        expected = reader.predict(data["x"])
    monkeypatch.chdir(tmp_path)
    assert main(["export", "export", "--state-dir", str(daemon.state_dir)]) == 0
    np.save("x.npy", data["x"])
    environment = {
        **os.environ,
        "PYTHONPATH": f"{tmp_path}:{TOP if case.startswith(('the default', 'real')) else ''}",
    }
    done = subprocess.run(
        [sys.executable, "-c", SEED * ("mine:strange" in str(tree)) + three_lines() + AFTER],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    found = np.load("outputs.npy", allow_pickle=False)
    if case == "real targets":
        told = json.loads((tmp_path / "export" / "model.json").read_text())
        found = np.array(told["target_offset"]) + np.array(told["target_scale"]) * found
        np.testing.assert_allclose(found, expected.mean, rtol=1e-5, atol=1e-6)
        return
    told = json.loads((tmp_path / "export" / "model.json").read_text())["labels"]
    assert str(told) in done.stdout
    if "classes" not in tree.get("model", {}):  # any labels may come: those that have share what others got
        found[:, [label < 0 for label in told]] = 0
        found /= found.sum(1, keepdims=True)
    assert expected.labels is not None
    of_label = {label: expected.probs[:, column] for column, label in enumerate(expected.labels.tolist())}
    assert {label for label in of_label if label >= 0} == {label for label in told if label >= 0}
    for output, label in enumerate(told):
        if label >= 0:
            np.testing.assert_allclose(found[:, output], of_label[label], rtol=1e-5, atol=1e-6)


def test_what_is_left_out_is_named(
    start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(MODELS)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    daemon = start({"model": {"factory": "mine:graph", "classes": 3}})
    with daemon.producer() as producer:
        producer.send(REAL["x"], REAL["y"], "a")
        producer.boundary("a")
    assert main(["export", str(tmp_path / "export"), "--json", "--state-dir", str(daemon.state_dir)]) == 0
    assert json.loads(capsys.readouterr().out)["left_out"] == ["links"]
    found = json.loads((tmp_path / "export" / "model.json").read_text())
    assert found["left_out"] == ["links"]
    assert found["factory"] == "mine:graph"
    assert found["arguments"] == {"input_shape": [5], "outputs": 3}
    assert set(load_file(tmp_path / "export" / "model.safetensors")) == {"head.weight", "head.bias"}
