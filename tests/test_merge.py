"""Learners that never saw each other's data: `streamcl merge` makes one that saw both."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from streamcl import joining, merging
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.errors import DataError
from streamcl.joining import Stage
from streamcl.models import random_features

Start = Callable[..., LocalDaemon]
X, Y = load_digits(return_X_y=True)


def tree(factory: str = "streamcl.models:identity", likelihood: str = "categorical", **more: Any) -> dict[str, Any]:
    model = {"learner": "exact", "factory": factory, "likelihood": likelihood, **more.pop("model", {})}
    return {"model": model, "train": {"dtype": "float64"}, "posterior": more}


def learned(start: Start, name: str, settings: dict[str, Any], tasks: dict[str, tuple[Any, Any]]) -> LocalDaemon:
    daemon = start(settings, name)
    with daemon.producer() as producer:
        for task, (x, y) in tasks.items():
            producer.send(x, y, task)
            producer.boundary(task)
    return daemon


def exported(daemon: LocalDaemon, path: Path) -> Path:
    assert main(["export", str(path), "--state-dir", str(daemon.state_dir)]) == 0
    return path


def digits(*labels: int) -> tuple[np.ndarray, np.ndarray]:
    rows = np.isin(Y, labels)
    return X[rows], Y[rows]


def probs(daemon: LocalDaemon) -> np.ndarray:
    with daemon.reader() as reader:
        found = reader.predict(X)
    return found.probs[:, np.argsort(found.labels)]


@pytest.mark.parametrize(
    "factory", [pytest.param("streamcl.models:identity", marks=pytest.mark.campaign), "streamcl.models:random_features"]
)
def test_three_add_to_one_that_saw_all_in_any_order(start: Start, tmp_path: Path, factory: str) -> None:
    settings = tree(factory, model={"args": {"width": 150}} if factory.endswith("features") else {})
    tasks = {"a": digits(7, 3), "b": digits(0, 3, 9), "c": digits(1, 2, 4, 5, 6, 8)}
    parts = [exported(learned(start, name, settings, {name: tasks[name]}), tmp_path / f"export-{name}") for name in tasks]
    whole = learned(start, "whole", settings, tasks)
    for number, order in enumerate([(0, 1, 2), (2, 0, 1)]):
        out = tmp_path / f"out-{number}"
        assert main(["merge", *[str(parts[k]) for k in order], "--out", str(out)]) == 0
        daemon = start(settings, f"out-{number}/state")
        np.testing.assert_allclose(probs(daemon), probs(whole), atol=1e-10)
        with daemon.admin() as admin:
            assert sorted(task["task"] for task in admin.tasks()) == ["a", "b", "c"]
            assert admin.status()["samples_seen"] == len(X) + len(digits(3)[0])
        daemon.stop()
    pair = tmp_path / "pair"
    assert main(["merge", str(parts[0]), str(parts[1]), "--out", str(pair)]) == 0
    assert main(["merge", str(pair), str(parts[2]), "--out", str(tmp_path / "again")]) == 0
    np.testing.assert_allclose(outputs(tmp_path / "again"), outputs(tmp_path / "out-0"), atol=1e-10)


def outputs(directory: Path) -> np.ndarray:
    """Probabilities by PyTorch alone, as the how-to guide does it."""
    state = load_file(directory / "model.safetensors")
    described = json.loads((directory / "model.json").read_text())
    x = torch.from_numpy(X)
    if "body.weights" in state:
        made = random_features((64,), width=state["body.weights"].shape[1])
        made.load_state_dict({name.removeprefix("body."): t for name, t in state.items() if name.startswith("body.")})
        x = made(x)
    found = (x @ state["head.weight"].T + state["head.bias"]).softmax(1).numpy()
    return found[:, np.argsort(described["labels"])]


def test_what_is_merged_goes_on_learning(start: Start, tmp_path: Path) -> None:
    settings = tree()
    parts = [
        exported(learned(start, name, settings, {name: digits(*labels)}), tmp_path / f"export-{name}")
        for name, labels in (("a", (0, 1)), ("b", (2, 3)))
    ]
    assert main(["merge", *map(str, parts), "--out", str(tmp_path / "out")]) == 0
    daemon = start(settings, "out/state")
    with daemon.producer() as producer:
        producer.send(*digits(4, 5), "c")
        producer.boundary("c")
    whole = learned(start, "whole", settings, {"a": digits(0, 1), "b": digits(2, 3), "c": digits(4, 5)})
    np.testing.assert_allclose(probs(daemon), probs(whole), atol=1e-10)


def test_real_targets_add_too(start: Start, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 4)) + 5
    y = x @ rng.normal(size=4) + rng.normal(size=90)
    settings = tree(likelihood="gaussian")
    halves = {"a": (x[:30], y[:30]), "b": (x[30:], y[30:])}
    parts = [exported(learned(start, n, settings, {n: halves[n]}), tmp_path / f"export-{n}") for n in halves]
    merging.merge(parts, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    whole = exported(learned(start, "whole", settings, halves), tmp_path / "export-whole")
    expected = load_file(whole / "model.safetensors")
    torch.testing.assert_close(state["head.weight"], expected["head.weight"], atol=1e-10, rtol=0)
    torch.testing.assert_close(state["head.bias"], expected["head.bias"], atol=1e-10, rtol=0)
    theirs = json.loads((whole / "model.json").read_text())["noise_variance"]
    assert json.loads((tmp_path / "out" / "model.json").read_text())["noise_variance"] == pytest.approx(theirs, rel=1e-10)


def test_what_cannot_be_added_is_refused_in_words(start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = exported(learned(start, "one", tree(), {"a": digits(0, 1)}), tmp_path / "export-one")
    others = {
        "a network": (
            exported(
                learned(start, "net", {"model": {"args": {"hidden": [4]}}, "train": {"epochs": 1}}, {"a": digits(0, 1)}),
                tmp_path / "export-net",
            ),
            "the export of a network",
        ),
        "another map": (
            exported(
                learned(
                    start, "map", tree("streamcl.models:random_features", model={"args": {"width": 9}}), {"z": digits(0)}
                ),
                tmp_path / "export-map",
            ),
            "model.factory",
        ),
        "fading": (
            exported(learned(start, "fade", tree(half_life=50.0), {"y": digits(0, 1)}), tmp_path / "export-fade"),
            "half-life",
        ),
        "the same task": (one, "--same-tasks"),
        "nothing": (tmp_path / "nowhere", "it is no export"),
    }
    for name, (other, said) in others.items():
        assert main(["merge", str(one), str(other), "--out", str(tmp_path / "out")]) == 2, name
        assert said in capsys.readouterr().err, name
        assert not (tmp_path / "out").exists(), name
    found = merging.merge([one, one], tmp_path / "out", same_tasks=True)
    assert found["tasks"] == 1
    sums = one / "sums.safetensors"
    whole = sums.read_bytes()
    sums.write_bytes(whole[:-1] + bytes([whole[-1] ^ 0x80]))  # the sign of a number
    with pytest.raises(DataError, match="not those that were exported"):
        merging.merge([one, one], tmp_path / "flipped", same_tasks=True)
    sums.write_bytes(whole)
    with pytest.raises(DataError, match="not there yet"):
        merging.merge([one, one], tmp_path / "out", same_tasks=True)


def test_other_scales_of_the_input_are_refused_with_the_remedy(start: Start, tmp_path: Path) -> None:
    settings = tree("streamcl.models:random_features", model={"args": {"width": 9}})
    one = exported(learned(start, "one", settings, {"a": digits(0, 1)}), tmp_path / "export-one")
    x, y = digits(2, 3)
    other = exported(learned(start, "two", settings, {"b": (x * 1000, y)}), tmp_path / "export-two")
    with pytest.raises(DataError, match=r"model.args = \{ scale = 4, shift = 0 \}"):
        merging.merge([one, other], tmp_path / "out")


@pytest.mark.campaign
def test_sums_beyond_a_messages_size_are_exported_and_added(start: Start, tmp_path: Path) -> None:
    """Messages to the daemon have at most 64 MiB; what it answers has no such bound. Many targets: wide sums, cheaply."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3))
    y = x @ rng.normal(size=(3, 4200)) + rng.normal(size=(60, 4200))
    settings = tree(likelihood="gaussian", prior_precision=1.0)
    settings["model"]["noise_variance"] = 0.5
    parts = []
    for name, rows in (("a", slice(0, 25)), ("b", slice(25, 60))):
        daemon = learned(start, name, settings, {name: (x[rows], y[rows])})
        parts.append(exported(daemon, tmp_path / f"export-{name}"))
        daemon.stop()
    assert (parts[0] / "sums.safetensors").stat().st_size > 64 * 2**20
    merging.merge(parts, tmp_path / "out")
    state = load_file(tmp_path / "out" / "model.safetensors")
    a, ys = x - x.mean(0), y - y.mean(0)
    expected = np.linalg.solve(a.T @ a + 0.5 * np.eye(3), a.T @ ys)
    np.testing.assert_allclose(state["head.weight"].numpy().T, expected, atol=1e-10)


SIZES = {"red": 1.0, "blue": 4.0, "green": -3.0, "grey": 0.5}


def orders(seed: int, colours: tuple[str, ...], turned: bool) -> tuple[pyarrow.Table, list[str]]:
    """Rows whose label follows from size and colour; turned: the columns in another order."""
    rng = np.random.default_rng(seed)
    colour = rng.choice(colours, 60)
    size = rng.normal(3 * seed, 2.0, 60)
    labels = np.where(size + np.array([SIZES[each] for each in colour]) + rng.normal(size=60) > 3 * seed, "yes", "no")
    columns = {"size": size, "colour": colour}
    return pyarrow.table(dict(reversed(columns.items())) if turned else columns), labels.tolist()


def test_tables_add_whose_columns_and_words_stand_in_another_order(start: Start, tmp_path: Path) -> None:
    settings = tree() | {"input": {"scale": "none"}}
    tasks = {"a": orders(1, ("red", "blue"), False), "b": orders(2, ("green", "blue", "grey"), True)}
    tasks["b"] = (tasks["b"][0], ["maybe", *tasks["b"][1][1:]])
    parts = [exported(learned(start, name, settings, {name: tasks[name]}), tmp_path / f"export-{name}") for name in tasks]
    asked = pyarrow.table({"colour": [*SIZES, None, "never"], "size": [0.0, 3.0, 2.5, -1.0, 6.0, 1.0]})
    expected = by_word(learned(start, "whole", settings, tasks), asked)
    for number, given in enumerate((parts, parts[::-1])):
        merging.merge(given, tmp_path / f"out-{number}")
        found = by_word(start(settings, f"out-{number}/state"), asked)
        assert found.keys() == {"yes", "no", "maybe"}
        for word, probabilities in expected.items():
            np.testing.assert_allclose(found[word], probabilities, atol=1e-10)
    again = merging.merge([tmp_path / "out-0", tmp_path / "out-1"], tmp_path / "out", same_tasks=True)
    assert again["samples"] == 240  # what is merged can be merged


def by_word(daemon: LocalDaemon, asked: pyarrow.Table) -> dict[str, np.ndarray]:
    with daemon.reader() as reader:
        found = reader.predict(asked)
    assert found.labels is not None
    return dict(zip(found.labels.tolist(), found.probs.T, strict=True))


def stage(**changes: Any) -> Stage:
    """Of a table of two columns, with parts of it changed."""
    columns = [{"name": "size", "kind": "number"}, {"name": "colour", "kind": "category"}]
    plain = {
        "shape": [2],
        "frozen": True,
        "places": {"colour": [8, 0, ["red", "blue"]]},
        "rows": [60, 60],
        "gaps": {"size": 0},
    }
    told = {
        "columns": {"columns": columns, "left_out": []},
        "words": [],
        "inputs": plain,
        "found": [[1.5], [2.0]],
        **changes,
    }
    told["inputs"] = {**plain, **told["inputs"]}
    return Stage.of(told)


@pytest.mark.parametrize(
    ("changes", "scaled", "rearranged", "said"),
    [
        ({}, True, False, None),
        ({"found": [[1.0], [2.0]]}, True, True, "input.scale = 'none'"),
        ({"found": [[1.0], [2.0]]}, False, False, None),
        ({"found": [[1.0], [2.0]], "inputs": {"gaps": {}}}, False, True, "fill them in"),
        ({"inputs": {"places": {"colour": [8, 0, ["blue"]]}}}, False, False, "input.categories = 'embedding'"),
        ({"inputs": {"places": {"colour": [8, 0, ["blue"]]}}}, False, True, None),
        ({"inputs": {"places": {"colour": [8, 0, ["red", "blue", "grey"]]}}}, False, False, None),
        ({"inputs": {"places": {"colour": [8, 3, ["red", "blue", "grey"]]}}}, False, True, "beyond its places"),
        ({"words": ["yes"]}, False, True, "targets are words in one"),
        ({"columns": None, "found": None}, False, True, "plain arrays in the other"),
    ],
)
def test_stages_are_joined_exactly_or_not_at_all(
    changes: dict[str, Any], scaled: bool, rearranged: bool, said: str | None
) -> None:
    found = list(joining.problems(stage(), stage(**changes), scaled, rearranged))
    assert (not found) if said is None else any(said in problem for problem in found), found
