"""Tables: columns matched by name, words, missing values, dates; and what the input stage makes of them."""

from __future__ import annotations

import copy
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
from conftest import PlainClient
from waiting import until

from streamcl import Learner, Reader
from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.columns import Column, Pinned
from streamcl.config import Config, from_tree
from streamcl.datafiles import Columns, open_data
from streamcl.errors import ConfigError, DataError, Refused, StreamclError
from streamcl.inputs import MOST_PLACES, Inputs

Start = Callable[..., LocalDaemon]
SMALL = {
    "model": {"args": {"hidden": [8]}, "classes": 3},
    "train": {"device": "cpu", "epochs": 2},
    "posterior": {"curvature": "diagonal"},
}
SCHEMA = [
    {"name": "size", "kind": "number"},
    {"name": "colour", "kind": "category", "categories": ["red", "green", "blue"]},
    {"name": "weight", "kind": "number", "missing": True},
    {"name": "kind", "kind": "target", "categories": ["cat", "dog"]},
]


def rows(n: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of SCHEMA: sizes of thousands, codes, weights of which some are missing; which kind is which follows from both."""
    rng = np.random.default_rng(seed)
    size, colour, weight = rng.normal(5000, 900, n), rng.integers(-1, 3, n), rng.normal(2, 0.1, n)
    kind = ((size > 5000) ^ (colour == 1)).astype("<i4")
    return np.column_stack([size, colour, np.where(rng.random(n) < 0.2, np.nan, weight)]), kind


def turned(x: np.ndarray, schema: list[dict[str, Any]]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """The same columns in another order, and their words with other codes."""
    words = ["blue", "red", "green"]
    codes = [words.index(word) for word in schema[1]["categories"]] + [-1]
    again = x[:, [2, 1, 0]].copy()
    again[:, 1] = [codes[int(code)] for code in x[:, 1]]
    return again, [schema[3], schema[2], {**schema[1], "categories": words}, schema[0]]


def moved(x: np.ndarray, *by: float) -> np.ndarray:
    return x + np.array(by)


def table(n: int = 200, seed: int = 0) -> dict[str, list[Any]]:
    """As people have them: a name for each row, words, gaps, dates, and a word to be told."""
    rng = np.random.default_rng(seed)
    size, colour = rng.normal(5000, 900, n), rng.choice(["red", 'blue "sky"', "green, dark"], n)
    day = np.datetime64("2026-01-01") + rng.integers(0, 300, n)
    late = (day - np.datetime64("2026-05-30")).astype(int) / 100
    kind = np.where((size - 5000) / 900 + 2 * (colour == "red") - 1 + late > 0, "accepted", "refused")
    gap = rng.random(n)
    return {
        "customer": [f"C{number:05d}" for number in range(n)],
        "size": ["" if g < 0.1 else f"{s:.1f}" for s, g in zip(size, gap, strict=True)],
        "colour": ["" if g > 0.9 else str(c) for c, g in zip(colour, gap, strict=True)],
        "when": [str(d) for d in day],
        "outcome": kind.tolist(),
    }


def write(path: Path, columns: dict[str, list[Any]]) -> Path:
    def cell(value: Any) -> str:
        text = str(value)
        return '"' + text.replace('"', '""') + '"' if set(text) & set(',"') else text

    lines = [",".join(columns), *(",".join(map(cell, row)) for row in zip(*columns.values(), strict=True))]
    path.write_text("\n".join(lines) + "\n")
    return path


# -- by name -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learner", ["network", "exact"])
def test_columns_and_words_in_another_order_are_learned_to_the_same_bits(learner: str) -> None:
    settings = SMALL if learner == "network" else {"model": {"learner": "exact"}}
    one, other = Learner(settings), Learner(settings)
    for seed in range(3):
        x, y = rows(seed=seed)
        one.observe(x, y, schema=SCHEMA)
        again, schema = turned(x, SCHEMA) if seed else (x, SCHEMA)
        other.observe(again, y, schema=schema)
    one.boundary()
    other.boundary()
    np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)
    x, _ = rows(seed=9)
    again, schema = turned(x, SCHEMA)
    found = one.predict(x, schema=SCHEMA)
    assert np.array_equal(found.probs, other.predict(again, schema=schema).probs)
    assert set(found.label) <= {"cat", "dog"}


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["size", "colour"], "missing: [weight]"),
        (["size", "colour", "weight", "height"], "new: [height]"),
        (["size", "colour", "mass"], "missing: [weight]; new: [mass]"),
    ],
)
def test_other_columns_are_refused_with_both_lists_and_nothing_changes(columns: list[str], said: str) -> None:
    learner = Learner(SMALL)
    learner.observe(*rows(), schema=SCHEMA)
    before = learner.parameters().theta.copy()
    known = {each["name"]: each for each in SCHEMA}
    schema = [*(known.get(name, {"name": name, "kind": "number"}) for name in columns), SCHEMA[3]]
    with pytest.raises(Refused, match="expected the columns of the first batch") as caught:
        learner.observe(np.zeros((4, len(columns))), np.zeros(4, "<i4"), schema=schema)
    assert caught.value.code == "bad_shape"
    assert said in str(caught.value)
    assert "[size, colour, weight, kind]" in str(caught.value)
    assert f"[{', '.join(columns)}, kind]" in str(caught.value)
    assert np.array_equal(learner.parameters().theta, before)
    learner.observe(*rows(seed=1), schema=SCHEMA)


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        (lambda x, s: (x, [s[0], s[0], *s[2:]]), "bad_header", "each name once"),
        (lambda x, s: (x[:, :2], s), "bad_shape", "[n, 3]"),
        (lambda x, s: (moved(x, 0, 7, 0), s), "bad_array", "codes from 0 to 2"),
        (lambda x, s: (moved(x, 0, 0.5, 0), s), "bad_array", "codes from 0 to 2"),
        (lambda x, s: (x, [s[0], {"name": "colour", "kind": "number"}, *s[2:]]), "bad_array", "expected a category"),
        (lambda x, s: (x, [*s[:3], {"name": "kind", "kind": "target"}]), "bad_label", "expected words"),
        (lambda x, s: (x, None), "bad_array", "expected a schema"),
        (lambda x, s: (np.full_like(x, np.inf), s), "nonfinite", "finite"),
    ],
)
def test_rows_that_are_not_these_columns_are_refused(change: Any, code: str, said: str) -> None:
    learner = Learner(SMALL)
    x, y = rows()
    learner.observe(x, y, schema=SCHEMA)
    with pytest.raises(Refused) as caught:
        changed, schema = change(x, SCHEMA)
        learner.observe(changed, y, schema=schema)
    assert caught.value.code == code
    assert said in str(caught.value)


def test_rows_without_a_schema_go_by_position_where_all_are_numbers() -> None:
    schema = [{"name": "a", "kind": "number"}, {"name": "b", "kind": "number"}]
    one, other = Learner(SMALL), Learner(SMALL)
    x, y = np.random.default_rng(0).normal(100, 5, (60, 2)), np.arange(60) % 3
    one.observe(x[:30], y[:30], schema=schema)
    other.observe(x[:30], y[:30], schema=schema)
    one.observe(x[30:], y[30:])
    other.observe(x[30:, ::-1], y[30:], schema=schema[::-1])
    np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)
    with pytest.raises(Refused, match=r"expected \[n, 2\]"):
        one.observe(np.zeros((3, 4)), np.zeros(3, int))


def test_a_stream_that_began_without_names_takes_none() -> None:
    learner = Learner(SMALL)
    learner.observe(np.zeros((4, 3)), np.zeros(4, int))
    with pytest.raises(Refused, match="no names to be matched"):
        learner.observe(np.zeros((4, 3)), np.zeros(4, "<i4"), schema=SCHEMA)


def test_plain_arrays_are_taken_as_they_are_and_said_to_be_unscaled() -> None:
    x, y = np.random.default_rng(0).normal(7e5, 100, (40, 3)), np.arange(40) % 3
    learner = Learner(SMALL)
    learner.observe(x, y)
    assert np.array_equal(learner._learner.inputs.encode(x, None), x)
    assert "input.scale = 'auto'" in str(learner._learner.inputs.unscaled)
    scaled = Learner({**SMALL, "input": {"scale": "auto"}})
    scaled.observe(x, y)
    z = scaled._learner.inputs.encode(x, None)
    assert abs(z.mean(0)).max() < 1e-9
    np.testing.assert_allclose(z.std(0), 1, rtol=1e-9)
    assert scaled._learner.inputs.unscaled is None


# -- the input stage ---------------------------------------------------------------------------------------------------


def begun(config: Config | None = None, **columns: Any) -> tuple[Inputs, Any]:
    """An input stage whose first batch has these columns; and what encodes others like them."""
    inputs = Inputs.of(config or Config())
    found = pa.table(columns)

    def batch(values: Any) -> tuple[Any, Any]:
        from streamcl.dataframes import batch as as_batch

        made = as_batch(values)
        return made.x, made.columns

    inputs.begin(*batch(found))
    inputs.take(*batch(found), 0)

    def encode(**more: Any) -> np.ndarray:
        return inputs.encode(*batch(pa.table(more)))

    return inputs, encode


def test_numbers_come_to_mean_0_and_variance_1_whatever_their_unit_and_far_ones_are_drawn_in() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(7e5, 30, 800)
    _, encode = begun(a=values)
    z = encode(a=values)[:, 0]
    assert (abs(z.mean()) < 0.01, abs(z.std() - 1) < 0.01) == (True, True)
    far = encode(a=[7e5 + 30 * 1e6])[0, 0]
    assert 4 < far < 20
    _, wild = begun(a=np.concatenate([values, [1e12, -1e12]]))
    np.testing.assert_allclose(wild(a=values)[:, 0], z, atol=0.25)  # two wild values do not set the scale


def test_a_missing_number_is_the_mean_and_says_so() -> None:
    _, encode = begun(a=[1.0, None, 3.0, 5.0], b=[1.0, 2.0, 3.0, 4.0])
    assert encode(a=[None], b=[1.0])[0, :2].tolist() == [0.0, 1.0]
    assert encode(a=[3.0], b=[1.0])[0, :2].tolist() == [0.0, 0.0]
    assert encode(a=[3.0], b=[1.0]).shape == (1, 3)  # none of b was missing: no input for it


def test_words_find_places_as_they_come_and_what_lies_beyond_is_said() -> None:
    inputs, encode = begun(c=["red", "blue", None])
    red, blue, gap = encode(c=["red", "blue", None])
    assert (red.sum(), blue.sum(), gap.sum(), (red * blue).sum()) == (1.0, 1.0, 1.0, 0.0)
    assert encode(c=["never seen"]).sum() == 0
    inputs.freeze()
    fresh = [f"w{number}" for number in range(20)]
    for number in range(2):
        x = np.arange(20.0)[:, None]
        inputs.take(x, (Column("c", "category", tuple(fresh)),), number)
    assert np.array_equal(encode(c=["red"])[0], red)  # what was learned keeps its place
    assert encode(c=["w0"]).sum() == 1
    assert np.array_equal(encode(c=["w18"]), encode(c=["w19"]))
    assert "beyond the 8" in inputs.told()[0]
    assert inputs.summary()["categories"]["c"]["beyond"] == 2 * 14


def test_a_first_batch_of_many_words_gives_each_a_place() -> None:
    words = [f"w{number}" for number in range(MOST_PLACES + 5)]
    inputs, encode = begun(c=words)
    assert len({tuple(row) for row in encode(c=words)}) == len(words)
    assert inputs.told() == []


def test_an_embedding_has_as_many_words_as_come() -> None:
    _, encode = begun(from_tree({"input": {"categories": "embedding"}}), c=["red", "blue"])
    found = encode(c=["red", "blue", "never seen", None])
    assert found.shape == (4, 17)
    np.testing.assert_allclose((found[:3, :16] ** 2).sum(1), 1)
    assert len({tuple(row) for row in found}) == 4
    assert found[:, 16].tolist() == [0, 0, 0, 1]


def test_what_inputs_mean_is_frozen_at_the_first_boundary() -> None:
    learner = Learner(SMALL)
    x, y = rows()
    learner.observe(x, y, schema=SCHEMA)
    columns = msgspec.convert(SCHEMA, tuple[Column, ...])
    moving = learner._learner.inputs.encode(x, columns)
    learner.observe(moved(x, 900, 0, 0), y, schema=SCHEMA)
    assert not np.array_equal(learner._learner.inputs.encode(x, columns), moving)
    learner.boundary()
    then = learner._learner.inputs.encode(x, columns)
    learner.observe(moved(x, 9000, 0, 3), y, task="b", schema=SCHEMA)
    learner.boundary("b")
    assert np.array_equal(learner._learner.inputs.encode(x, columns), then)


def test_an_exact_learners_rows_all_mean_what_was_frozen_whatever_their_order() -> None:
    settings = {"model": {"learner": "exact", "factory": "streamcl.models:identity"}, "train": {"dtype": "float64"}}
    x, y = rows(600)
    cut, whole = Learner(settings), Learner(settings)
    for start in range(0, 600, 50):
        cut.observe(x[start : start + 50], y[start : start + 50], schema=SCHEMA)
    whole.observe(x, y, schema=SCHEMA)
    for learner in (cut, whole):
        assert learner._learner.inputs.frozen
        learner.boundary()
    np.testing.assert_allclose(cut.predict(x, schema=SCHEMA).probs, whole.predict(x, schema=SCHEMA).probs, atol=1e-9)


@pytest.mark.parametrize("when", ["before", "within", "after"])
@pytest.mark.parametrize("learner", ["network", "exact"])
def test_saved_and_loaded_it_goes_on_to_the_same_bits(tmp_path: Path, learner: str, when: str) -> None:
    settings = SMALL if learner == "network" else {"model": {"learner": "exact"}}
    one = Learner(settings)
    one.observe(*rows(), schema=SCHEMA)
    if when != "before":
        one.observe(*rows(seed=1), schema=SCHEMA)
    if when == "after":
        one.boundary()
    one.save(tmp_path / "saved")
    other = Learner.load(tmp_path / "saved")
    for each in (one, other):
        x, y = rows(300, seed=2)
        again, schema = turned(x, SCHEMA)
        each.observe(again, 1 - y, task="b" if when == "after" else "default", schema=schema)
        each.boundary("b" if when == "after" else "default")
    np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)
    x, _ = rows(seed=3)
    assert np.array_equal(one.predict(x, schema=SCHEMA).probs, other.predict(x, schema=SCHEMA).probs)


def test_words_keep_their_labels_once_the_rows_they_came_with_are_gone(tmp_path: Path) -> None:
    learner = Learner(SMALL)
    learner.observe(*rows(), schema=SCHEMA)
    learner.boundary()
    learner.save(tmp_path / "saved")
    loaded = Learner.load(tmp_path / "saved")
    x, _ = rows(seed=1)
    fresh = [*SCHEMA[:3], {**SCHEMA[3], "categories": ["cow", "dog", "cat"]}]
    loaded.observe(x, np.zeros(40, "<i4"), task="b", schema=fresh)
    loaded.boundary("b")
    assert loaded.predict(x, schema=SCHEMA).labels.tolist() == ["cat", "dog", "cow"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("key", "x", "said"),
    [("missing", [[1.0, 0.0, np.nan]], "column 'weight'"), ("categories", [[1.0, 0.0, 2.0]], "column 'colour'")],
)
def test_what_is_to_be_refused_is_refused(key: str, x: list[list[float]], said: str) -> None:
    learner = Learner({**SMALL, "input": {key: "refuse"}})
    with pytest.raises(Refused, match=said):
        learner.observe(np.array(x), np.zeros(1, "<i4"), schema=SCHEMA)


def test_a_value_that_is_none_is_a_configuration_error() -> None:
    with pytest.raises(ConfigError, match=r"one-hot \| embedding \| refuse"):
        from_tree({"input": {"categories": "hashed"}})


def test_words_that_are_no_labels_of_this_model_are_refused() -> None:
    learner = Learner({**SMALL, "model": {"likelihood": "gaussian"}})
    with pytest.raises(Refused, match=r"model\.likelihood = 'categorical'"):
        learner.observe(*rows(), schema=SCHEMA)
    learner = Learner({**SMALL, "model": {"classes": 2}})
    words = [*SCHEMA[:3], {"name": "kind", "kind": "target", "categories": ["cat", "dog", "cow"]}]
    x, y = rows()
    with pytest.raises(Refused, match="'cow'"):
        learner.observe(x, np.arange(40, dtype="<i4") % 3, schema=words)
    learner.observe(x, y, schema=words)  # a word that has no rows takes no output


# -- tables in memory --------------------------------------------------------------------------------------------------


def frames() -> list[Any]:
    """The same table, in every package that is here."""
    columns = {
        "size": [1.5, None, 3.0, 4.0],
        "colour": ["red", "blue", None, "red"],
        "there": [True, False, True, True],
        "when": [np.datetime64("2026-11-27T12:00:00", "us")] * 3 + [None],
        "kind": ["cat", "dog", "dog", "cat"],
    }
    found: list[Any] = [pa.table({**columns, "when": pa.array(columns["when"], pa.timestamp("us"))})]
    try:
        import pandas as pd

        found.append(pd.DataFrame(columns))
    except ImportError:
        pass
    try:
        import polars as pl

        found.append(pl.from_arrow(found[0]))
    except ImportError:
        pass
    return found


def test_a_table_of_any_package_is_the_same_batch() -> None:
    from streamcl.dataframes import batch, is_table

    for frame in frames():
        assert is_table(frame)
        found = batch(frame, "kind")
        assert found.columns is not None
        assert [(c.name, c.kind, c.categories) for c in found.columns] == [
            ("size", "number", None),
            ("colour", "category", ("red", "blue")),
            ("there", "number", None),
            *((f"when.{part}", "number", None) for part in ("days", "month", "weekday", "hour")),
            ("kind", "target", ("cat", "dog")),
        ]
        np.testing.assert_array_equal(found.x[:, 0], [1.5, np.nan, 3.0, 4.0])
        assert found.x[:, 1].tolist() == [0, 1, -1, 0]
        np.testing.assert_array_equal(found.x[0, 3:], [20784.5, 11, 4, 12])
        assert np.isnan(found.x[3, 3:]).all()
        assert found.y is not None
        assert found.y.tolist() == [0, 1, 1, 0]
    assert not is_table(np.zeros((3, 2)))


# -- the daemon --------------------------------------------------------------------------------------------------------


def test_a_daemon_and_a_learner_in_process_learn_a_table_to_the_same_bits_and_so_after_a_kill(start: Start) -> None:
    daemon = start({**SMALL, "train": {**SMALL["train"], "device": "cpu"}}, "tables")
    learner = Learner(SMALL)
    batches = [rows(seed=seed) for seed in range(3)]
    with daemon.producer(gather_bytes=0) as producer:
        for number, (x, y) in enumerate(batches):
            again, schema = turned(x, SCHEMA) if number == 1 else (x, SCHEMA)
            producer.send(again, y, "a", schema=schema)
            learner.observe(x, y, "a", schema=SCHEMA)
        producer.flush()
    daemon.kill()
    daemon.start()
    with daemon.producer(gather_bytes=0) as producer:
        assert [(c["name"], c["kind"]) for c in producer.welcome["schema"]] == [(c["name"], c["kind"]) for c in SCHEMA]
        producer.boundary("a")
        learner.boundary("a")
        with pytest.raises(Refused, match="missing: "):
            producer.send(np.zeros((2, 2)), np.zeros(2, "<i4"), "b", schema=SCHEMA[:2])
            producer.flush()
    with daemon.admin() as admin:
        np.testing.assert_array_equal(admin.parameters().theta, learner.parameters().theta)
        status = admin.status()
        assert [column["name"] for column in status["schema"]] == ["size", "colour", "weight", "kind"]
        assert status["inputs"]["frozen"]
        described = admin.export().description
        assert described["words"] == ["cat", "dog"]
        assert [each["name"] for each in described["input_stage"]["columns"]] == ["size", "colour", "weight"]
    x, _ = rows(seed=7)
    again, schema = turned(x, SCHEMA)
    with daemon.reader() as reader:
        found = reader.predict(again, schema=schema)
        assert np.array_equal(found.probs, learner.predict(x, schema=SCHEMA).probs)
        assert set(found.label) <= {"cat", "dog"}
        with pytest.raises(Refused, match="expected the columns of the first batch"):
            reader.predict(x[:, :2], schema=SCHEMA[:2])
        with pytest.raises(Refused, match="expected a schema"):
            reader.predict(x)
    daemon.stop()
    daemon.start()
    fresh = [*SCHEMA[:3], {**SCHEMA[3], "categories": ["cow", "dog", "cat"]}]
    with daemon.producer(gather_bytes=0) as producer:
        for task, schema in (("b", fresh), ("c", SCHEMA)):
            producer.send(*rows(seed=5), task, schema=schema)
            producer.boundary(task)
            learner.observe(*rows(seed=5), task, schema=schema)
            learner.boundary(task)
    with daemon.admin() as admin, daemon.reader() as reader:
        np.testing.assert_array_equal(admin.parameters().theta, learner.parameters().theta)
        assert reader.predict(x, schema=SCHEMA).labels.tolist() == ["cat", "dog", "cow"]


def test_a_client_that_knows_only_the_contract_says_its_columns_with_hello(start: Start) -> None:
    daemon = start(SMALL, "hello")
    client = PlainClient(daemon.endpoints["stream"])
    x, y = rows()
    welcome = client.ask("hello", producer="p", schema=SCHEMA)
    assert (welcome["begun"], welcome.get("schema")) == (False, None)
    client.send("batch", {"x": x, "y": y}, seq=1, task="a")  # by the columns of the hello
    assert client.receive()["durable"] == 1
    again, schema = turned(x, SCHEMA)
    client.send("batch", {"x": again.astype("<f4"), "y": y}, seq=2, task="a", schema=schema)
    assert client.receive()["durable"] == 2
    nack = client.ask("batch", {"x": x, "y": y}, seq=3, task="a", schema=[{**SCHEMA[0], "name": "length"}, *SCHEMA[1:]])
    assert (nack["type"], nack["code"], "new: [length]" in nack["message"]) == ("nack", "bad_shape", True)
    client.close()
    other = PlainClient(daemon.endpoints["stream"])
    nack = other.ask("hello", producer="q", schema=[{"name": "other", "kind": "number"}])
    assert (nack["type"], nack["code"]) == ("nack", "bad_shape")
    other.close()


def test_unscaled_plain_arrays_are_an_event(start: Start) -> None:
    daemon = start(SMALL, "unscaled")
    with daemon.producer() as producer:
        producer.send(np.random.default_rng(0).normal(7e5, 100, (40, 3)), np.arange(40) % 3, "a")
        producer.boundary("a")
    with daemon.admin() as admin:
        status = admin.status()
    assert "input.scale" in status["inputs"]["unscaled"]
    assert any("input.scale" in str(event) for event in status["events"])


# -- the command line --------------------------------------------------------------------------------------------------


@pytest.fixture
def cli(start: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    daemon = start(SMALL, "files")

    def run(*words: Any) -> tuple[int, str, str]:
        status = main([*map(str, words), "--state-dir", str(daemon.state_dir)])
        out, err = capsys.readouterr()
        return status or 0, out, err

    return run


def test_a_csv_with_words_gaps_dates_and_an_identifier_is_learned_and_its_words_are_predicted(
    cli: Any, tmp_path: Path
) -> None:
    status, out, _ = cli("send", write(tmp_path / "a.csv", table()), "--task", "a", "--label", "outcome", "--boundary")
    assert status == 0
    assert "left out: customer (an identifier" in out
    assert "words: colour (3)" in out
    assert "dates, as numbers (days, month, weekday, hour): when" in out
    assert "the target's words: " in out
    assert "consolidated: 200 samples" in out

    new = table(60, seed=1)
    truth = new.pop("outcome")
    status, out, _ = cli("predict", write(tmp_path / "new.csv", dict(reversed(new.items()))))
    predicted = out.split()
    assert (status, len(predicted), set(predicted)) == (0, 60, {"accepted", "refused"})
    assert np.mean([one == other for one, other in zip(predicted, truth, strict=True)]) > 0.7

    status, out, _ = cli("predict", write(tmp_path / "scored.csv", table(60, seed=1)), "--json")
    assert json.loads(out)["accuracy"] > 0.7
    less = {name: cells for name, cells in table(30, seed=2).items() if name != "colour"}
    before = json.loads(cli("status", "--json")[1])["samples_seen"]
    status, _, err = cli("send", write(tmp_path / "less.csv", less), "--task", "b", "--label", "outcome")
    assert status == 1
    assert "missing: [colour]" in err
    assert json.loads(cli("status", "--json")[1])["samples_seen"] == before
    unlabelled = {name: cells for name, cells in less.items() if name != "outcome"}  # whose last column is no target
    status, _, err = cli("predict", write(tmp_path / "unlabelled.csv", unlabelled))
    assert (status, "missing: [colour]" in err, "the target" in err) == (1, True, False), err
    more = write(tmp_path / "more.csv", dict(reversed(table(100, seed=3).items())))
    assert cli("send", more, "--task", "b", "--boundary")[0] == 0


def test_other_kinds_of_files_and_standard_input_are_the_same_rows(
    cli: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import io
    import sys

    import pyarrow.parquet as pq

    columns = {name: [cell or None for cell in cells] for name, cells in table().items()}
    columns["size"] = [None if cell is None else float(cell) for cell in columns["size"]]
    made = pa.table(columns)
    assert cli("send", write(tmp_path / "a.csv", table()), "--task", "a", "--label", "outcome", "--boundary")[0] == 0
    expected = cli("predict", tmp_path / "a.csv")[1]
    pq.write_table(made, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink, pa.ipc.new_file(sink, made.schema) as writer:
        writer.write(made)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made.to_pylist()))
    for ending in ("parquet", "arrow", "jsonl"):
        status, out, err = cli("predict", tmp_path / f"a.{ending}")
        assert (status, out) == (0, expected), err
    for ending in ("parquet", "arrow", "jsonl"):
        assert cli("send", tmp_path / f"a.{ending}", "--task", ending, "--boundary")[0] == 0

    class Given:
        buffer = io.BytesIO((tmp_path / "a.csv").read_bytes())

    monkeypatch.setattr(sys, "stdin", Given())
    status, out, _ = cli("send", "-", "--task", "piped", "--boundary")
    assert (status, "consolidated: 200 samples" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "whole"),
    [(True, False), *(pytest.param(False, whole, marks=pytest.mark.campaign) for whole in (False, True))],
)
def test_several_targets_in_lists_leave_columns_their_names(cli: Any, tmp_path: Path, words: bool, whole: bool) -> None:
    import pyarrow.parquet as pq

    rng = np.random.default_rng(5)
    x = rng.normal(size=(300, 3)) * [1e5, 1, 1e-3] + [3e5, 0, 0]
    y = np.column_stack([3 * (x[:, 0] - 3e5) / 1e5, -2 * x[:, 1]])
    columns = {name: x[:, place] for place, name in enumerate("abc")}
    columns |= {"kind": np.array(["u", "v"] * 150)} if words else {}
    told = pa.array(np.rint(y).astype(int).tolist()) if whole else pa.array(y.tolist(), pa.list_(pa.float64(), 2))
    every = pa.table({**columns, "y": told})
    pq.write_table(every, tmp_path / "a.parquet")
    status, out, err = cli("send", tmp_path / "a.parquet", "--task", "a", "--boundary")
    assert (status, f"label: y (by its name) as {'int64' if whole else 'float64'} [2]" in out) == (0, True), err
    turned = every.select(list(reversed(every.column_names)))
    pq.write_table(turned, tmp_path / "turned.parquet")
    (tmp_path / "turned.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turned.to_pylist()))
    pq.write_table(turned.drop_columns(["y"]), tmp_path / "unlabelled.parquet")
    expected = cli("predict", tmp_path / "a.parquet")[1]
    for name in ("turned.parquet", "turned.jsonl", "unlabelled.parquet"):
        status, out, err = cli("predict", tmp_path / name)
        assert (status, out) == (0, expected), err
    pq.write_table(every.rename_columns(["other", *every.column_names[1:]]), tmp_path / "other.parquet")
    status, _, err = cli("predict", tmp_path / "other.parquet")
    assert (status, "new: [other]" in err) == (1, True)


def test_what_a_table_s_cells_were_taken_for_is_said(cli: Any, tmp_path: Path) -> None:
    columns = {
        "zip": [f"{number:05d}" for number in range(0, 60)],
        "size": ["1.5", "2"] * 30,
        "kind": ["None", "mild"] * 30,
    }
    status, _, err = cli("send", write(tmp_path / "a.csv", columns), "--task", "a", "--label", "kind")
    assert (status, "30 of 60 rows have none (None is read as none)" in err) == (2, True)
    status, _, err = cli("send", write(tmp_path / "b.csv", {**columns, "size": ["1.5"] * 59 + ["inf"]}), "--label", "zip")
    assert (status, "expected a finite number, got 'inf'" in err) == (2, True), err
    wide = {**{f"a measurement of length {number}": ["1", "2"] for number in range(900)}, "kind": ["mild", "severe"]}
    status, _, err = cli("send", write(tmp_path / "c.csv", wide), "--label", "kind")
    assert (status, "shorten the names" in err) == (2, True), err
    columns["kind"] = ["severe", "mild"] * 30
    columns["told"] = [f"T{number}" for number in range(60)]
    _, out, _ = cli("send", write(tmp_path / "d.csv", columns), "--task", "a")  # which has three outputs
    assert "zeros in front of numbers are lost: zip (00000)" in out
    assert "the target, 'told', looks like an identifier or free text: one a row" in out


def test_targets_that_are_no_labels_of_the_stream_are_not_scored(cli: Any, tmp_path: Path) -> None:
    columns = {"size": [str(number % 7) for number in range(60)], "told": ["true", "false"] * 30}
    assert cli("send", write(tmp_path / "a.csv", columns), "--task", "a", "--label", "told", "--boundary")[0] == 0
    for cells in (["TRUE", "FALSE"], ["1", "0"]):
        status, _, err = cli("predict", write(tmp_path / "b.csv", {**columns, "told": cells * 30}))
        assert (status, "not scored: its targets are" in err, "accuracy" in err) == (0, True, False)
    status, _, err = cli(
        "predict", write(tmp_path / "c.csv", {**columns, "told": ["true", "false"] * 29 + ["true", "maybe"]})
    )
    assert (status, "'maybe', where the stream's labels are 'false', 'true'" in err, "accuracy" in err) == (0, True, True)


def test_a_boundary_says_what_of_its_rows_has_no_input_and_what_was_not_learned() -> None:
    rng = np.random.default_rng(0)
    learner = Learner({"model": {"classes": 2}, "train": {"epochs": 1}})
    size, y = rng.normal(size=60), np.arange(60) % 2
    learner.observe(pa.table({"size": size + 9 * y, "colour": ["red", "blue"] * 30}), y, task="a")
    assert "warning" not in learner.boundary("a")
    words = [f"word {number % 40}" for number in range(60)]
    gaps = np.where(np.arange(60) % 3, size, np.nan)
    learner.observe(pa.table({"size": gaps, "colour": words}), rng.integers(0, 2, 60), task="b")
    with pytest.warns(RuntimeWarning, match="task 'b'"):
        told = learner.boundary("b")["warning"]
    for said in (
        "column 'size': 20 numbers are missing",
        "column 'colour': ",
        "learned no better than chance",
    ):
        assert said in told


def test_a_streams_first_frame_with_an_identifier_is_taken_with_a_warning() -> None:
    rng = np.random.default_rng(0)
    plain = {"size": rng.normal(size=40), "colour": ["red", "blue"] * 20, "visit": list(range(40))}
    y = np.arange(40) % 2
    named = {"customer": [f"C{number}" for number in range(40)], "order_id": list(range(40)), "size": plain["size"]}
    with pytest.warns(RuntimeWarning, match=r"x: 'customer', 'order_id': nearly every row has its own.*drop it first"):
        Learner({}).observe(pa.table(named), y, task="a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        learner = Learner({})
        learner.observe(pa.table(plain), y, task="a")
        learner.observe(
            pa.table({**plain, "colour": [f"C{number}" for number in range(40)]}), y, task="a"
        )  # no longer first
        Learner({}).observe(
            pa.table({name: cells[:10] for name, cells in named.items()}), y[:10], task="a"
        )  # too few to tell


def test_a_frame_leaves_out_what_the_streams_first_file_left_out(start: Start, tmp_path: Path) -> None:
    daemon = start(SMALL, "frames")
    words = ["send", str(write(tmp_path / "a.csv", table())), "--task", "a", "--label", "outcome", "--boundary"]
    assert main([*words, "--state-dir", str(daemon.state_dir)]) == 0
    columns = {name: [cell or None for cell in cells] for name, cells in table(40, seed=1).items()}
    columns["size"] = [None if cell is None else float(cell) for cell in columns["size"]]
    frame = pa.table({**columns, "when": pa.array(columns["when"]).cast(pa.timestamp("us"))})
    with daemon.producer() as producer, Reader(daemon.endpoints["predict"]) as reader:
        assert "customer" in frame.column_names
        producer.send(frame, "outcome", "b")
        assert producer.boundary("b")["samples"] == 40
        bare = frame.drop_columns(["customer", "outcome"])
        np.testing.assert_array_equal(reader.predict(frame).probs, reader.predict(bare).probs)


@pytest.mark.parametrize(
    ("cells", "said"),
    [
        (["03/04/2026", "05/06/2026"], "the day or the month first"),
        (["13/04/2026", "05/16/2026"], "the day or the month first"),
        (["1,100.50", "2,300.00"], "thousands separator"),
        (["2026-02-30", "2026-01-01"], "is no date"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused_with_its_place(tmp_path: Path, cells: list[str], said: str) -> None:
    columns = {"a": cells * 20, "y": ["0", "1"] * 20}
    with pytest.raises(DataError, match=said) as caught:
        open_data(write(tmp_path / "a.csv", columns), named=True).check()
    assert "column 'a'" in str(caught.value)


def test_dates_with_slashes_are_read_as_the_column_tells(tmp_path: Path) -> None:
    for cells in (["27/11/2026", "01/02/2026"], ["11/27/2026", "02/01/2026"], ["27.11.2026", "1.2.2026"]):
        data = open_data(write(tmp_path / "a.csv", {"when": cells, "y": ["0", "1"]}), named=True)
        x, _ = next(data.blocks())
        assert x[:, :3].tolist() == [[20784, 11, 4], [20485, 2, 6]]


def test_a_few_words_among_numbers_are_a_mistake_and_have_a_place(cli: Any, tmp_path: Path) -> None:
    columns = table()
    columns["size"][150] = "12,5 kg"
    status, _, err = cli("send", write(tmp_path / "a.csv", columns), "--task", "a", "--label", "outcome")
    assert status == 2
    assert "line 152, column 'size'" in err


def test_words_of_the_stream_stay_words_where_a_file_has_only_numbers(cli: Any, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    zone = rng.choice(["10", "20", "A3", "B7"], 60)
    rank = np.where((zone == "10") | (zone == "A3"), "1", np.where(zone == "20", "2", "3+"))
    path = write(tmp_path / "a.csv", {"zone": zone.tolist(), "size": rng.normal(size=60).tolist(), "rank": rank.tolist()})
    assert cli("send", path, "--task", "a", "--label", "rank", "--boundary")[0] == 0
    plain = {"zone": ["10", "20"] * 20, "size": [0.5] * 40, "rank": ["1", "2"] * 20}
    assert cli("send", write(tmp_path / "b.csv", plain), "--task", "b", "--boundary")[0] == 0
    status, out, _ = cli("predict", write(tmp_path / "c.csv", {"size": ["", ""], "zone": ["20", ""]}))
    assert (status, out.split()[0]) == (0, "2")


@pytest.mark.campaign
def test_a_csv_is_planned_scored_as_an_evaluation_set_and_swept(start: Start, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    write(tmp_path / "sets" / "a.csv", dict(reversed(table(80, seed=1).items())))
    path, other = write(tmp_path / "a.csv", table()), write(tmp_path / "b.csv", table(seed=2))
    settings = {**SMALL, "posterior": {"mode": "factors"}, "evaluation": {"directory": str(tmp_path / "sets")}}
    daemon = start(settings, "swept")
    state = ["--state-dir", str(daemon.state_dir)]
    assert main(["send", str(path), "--task", "a", "--label", "outcome", "--boundary", *state]) in (None, 0)

    def accuracy() -> Any:
        with daemon.admin() as admin:
            return next(row.get("accuracy") for row in admin.tasks() if row["task"] == "a")

    until(lambda: accuracy() is not None)
    assert accuracy() > 0.7
    swept = ["sweep", f"a={path}", f"b={other}", "--test", f"a={tmp_path / 'sets' / 'a.csv'}", "--sweeps", "1"]
    assert main([*swept, "--label", "outcome", "--json", *state]) in (None, 0)
    assert main(["plan", "--rows", str(path), "--label", "outcome"]) in (None, 0)


def test_with_nothing_consolidated_another_input_stage_begins_anew(start: Start) -> None:
    daemon = start(SMALL, "changed")
    with daemon.producer(gather_bytes=0) as producer:
        for seed in range(2):
            producer.send(*rows(seed=seed), "a", schema=SCHEMA)
        producer.flush()
    daemon.stop()
    again = start({**SMALL, "input": {"scale": "none"}}, "changed")
    with again.producer() as producer:
        producer.boundary("a")
    learner = Learner({**SMALL, "input": {"scale": "none"}})
    for seed in range(2):
        learner.observe(*rows(seed=seed), schema=SCHEMA)
    with again.admin() as admin:
        assert admin.status()["inputs"]["frozen"]
        assert len(admin.parameters().theta) == len(learner.parameters().theta)
    again.stop()
    with pytest.raises(StreamclError, match=r"input\.scale was 'none'"):
        start(SMALL, "changed")


def test_factors_withdrawn_and_rolled_back_leave_the_inputs_as_they_were() -> None:
    learner = Learner({**SMALL, "posterior": {"mode": "factors"}})
    for task in ("a", "b"):
        learner.observe(*rows(seed=ord(task)), task=task, schema=SCHEMA)
        learner.boundary(task)
    x, y = rows(seed=5)
    columns = msgspec.convert(SCHEMA, tuple[Column, ...])
    before = learner._learner.inputs.encode(x, columns)
    learner.revisit("a")
    learner.observe(*turned(x, SCHEMA)[:1], y, task="a", schema=turned(x, SCHEMA)[1])
    learner.boundary("a")
    learner.forget("b")
    assert np.array_equal(learner._learner.inputs.encode(x, columns), before)


def test_tokens_reach_an_embedding_as_they_are_whatever_their_order() -> None:
    from torch import nn

    body = nn.Sequential(nn.Embedding(20, 4), nn.Flatten(), nn.Linear(8, 3))
    x, y = np.random.default_rng(0).integers(0, 20, (60, 2)), np.arange(60) % 3
    schema = [{"name": "first", "kind": "token"}, {"name": "second", "kind": "token"}]
    one, other, plain = (Learner({"model": {"classes": 3}, "train": SMALL["train"]}, body) for _ in range(3))
    for learner, rows_, named in ((one, x, schema), (other, x, schema), (plain, x, None)):
        learner.observe(rows_[:30], y[:30], schema=named)
    one.observe(x[30:], y[30:], schema=schema)
    other.observe(x[30:, ::-1], y[30:], schema=schema[::-1])
    plain.observe(x[30:], y[30:])
    for learner in (one, other, plain):
        learner.boundary()
    np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)
    np.testing.assert_array_equal(one.parameters().theta, plain.parameters().theta)
    with pytest.raises(Refused, match="expected integers"):
        one.observe(x + 0.5, y, task="b", schema=schema)


@pytest.mark.campaign
@pytest.mark.parametrize("target", ["outcome", "price"])
def test_through_a_daemon_a_csv_is_learned_as_well_as_by_scikit_learn_at_once(
    start: Start, capsys: pytest.CaptureFixture[str], tmp_path: Path, target: str
) -> None:
    from streamcl.bench import tables

    likelihood = "categorical" if target == "outcome" else "gaussian"
    daemon = start({"model": {"likelihood": likelihood}}, target)
    learn, held_out = tables.orders(tmp_path, 0, target)
    state = ["--state-dir", str(daemon.state_dir), "--json"]
    assert main(["send", str(learn), "--task", "a", "--label", target, "--boundary", *state]) in (None, 0)
    capsys.readouterr()
    assert main(["predict", str(held_out), *state]) in (None, 0)
    found = json.loads(capsys.readouterr().out)
    theirs = tables.pipeline(learn, held_out, target, 0)
    if target == "outcome":
        assert found["accuracy"] >= theirs - tables.POINT
    else:
        assert found["rmse"] <= theirs * (1 + tables.SHARE)


def test_pinned_names_survive_a_checkpoint_as_they_are() -> None:
    pinned = Pinned.of(msgspec.convert(SCHEMA, tuple[Column, ...]), ["customer"])
    assert Pinned.from_plain(pinned.plain()) == pinned


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_name_that_happens_to_end_in_id_makes_no_identifier(tmp_path: Path, ending: str) -> None:
    rng = np.random.default_rng(0)
    features = {"paid": (rng.random(60) < 0.5).tolist(), "humid": rng.normal(size=60).tolist(), "malic_acid": [1.5] * 60}
    numbers = {"customer_id": list(range(60)), "rowId": list(range(60)), "y": [0, 1] * 30}
    whole = pa.table({**features, **numbers})
    path = tmp_path / f"a.{ending}"
    if ending == "parquet":
        pq.write_table(whole, path)
    elif ending == "csv":
        pa_csv.write_csv(whole, path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in whole.to_pylist()))
    data = open_data(path, Columns(), named=True)
    data.check()
    assert (set(data.choice.left_out), set(data.choice.features)) == ({"customer_id", "rowId"}, set(features))


@pytest.mark.parametrize("table", [True, False])
def test_a_column_that_lies_elsewhere_in_a_later_task_is_told_of(table: bool) -> None:
    def rows(seed: int, away: float) -> tuple[Any, Any]:
        rng = np.random.default_rng(seed)
        x = np.column_stack([away + 20 * rng.normal(size=300), rng.normal(size=300)])
        y = (x[:, 0] - away + 10 * x[:, 1] > 0).astype("<i4")
        return (pa.table({"far": x[:, 0], "near": x[:, 1], "y": y}), "y") if table else (x, y)

    learner = Learner({"input": {"scale": "tables" if table else "auto"}, "train": {"epochs": 1}})
    said = []
    for number, away in enumerate((2.0, 200.0, 2.0)):
        learner.observe(*rows(number, away), task=f"t{number}")
        if number == 1:  # what was counted outlives a save
            learner = copy.deepcopy(learner)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            learner.boundary(f"t{number}")
        said.append(" ".join(str(warning.message) for warning in told))
    name = "column 'far'" if table else "column 0 of x"
    assert [f"{name}: 300 of this task's 300 rows lie more than 4" in text for text in said] == [False, True, False]
    assert "near" not in said[1]


def test_real_targets_that_are_learned_no_better_than_their_mean_are_told_of() -> None:
    rng = np.random.default_rng(0)
    learner = Learner({"model": {"likelihood": "gaussian", "args": {"hidden": [8]}}, "train": {"epochs": 1}})
    learner.observe(rng.normal(size=(20, 3)).astype("<f4"), rng.normal(size=20), task="noise")
    with pytest.warns(RuntimeWarning, match="learned no better than chance"):
        learner.boundary("noise")
