"""`model.likelihood = "auto"`: found in the first batch, kept with what was learned; and predictions beside keys."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.config import Config, finds_likelihood, from_tree
from streamcl.datafiles import Columns, open_data
from streamcl.errors import Refused
from streamcl.estimator import Learner
from streamcl.protocol import messages
from streamcl.protocol.frames import NamedArrays
from streamcl.protocol.session import StreamSession, Terms
from streamcl.schema import LabelMap

Start = Callable[..., LocalDaemon]
SMALL: dict[str, Any] = {"model": {"args": {"hidden": [8]}}, "train": {"device": "cpu", "epochs": 2}}
GAUSSIAN: dict[str, Any] = {**SMALL, "model": {**SMALL["model"], "likelihood": "gaussian"}}
CATEGORICAL: dict[str, Any] = {**SMALL, "model": {**SMALL["model"], "likelihood": "categorical"}}
SCHEMA = [{"name": "size", "kind": "number"}, {"name": "weight", "kind": "number"}, {"name": "price", "kind": "target"}]


def rows(n: int = 60, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 2)) * [900, 0.1] + [5000, 2]
    return x, x[:, 0] / 10 + rng.normal(size=n)


def learned(config: dict[str, Any], y_of: Callable[[np.ndarray], np.ndarray] = np.asarray) -> Learner:
    learner = Learner(config)
    for seed in range(2):
        x, y = rows(seed=seed)
        learner.observe(x, y_of(y), "a", schema=SCHEMA)
    learner.boundary("a")
    return learner


def table(path: Path, prices: list[Any], n: int = 240) -> Path:
    x, _ = rows(n)
    with path.open("w", newline="") as file:
        out = csv.writer(file)
        out.writerow(["customer", "size", "price"])
        out.writerows([f"C{k:04d}", f"{x[k, 0]:.2f}", prices[k]] for k in range(n))
    return path


# -- in this process ---------------------------------------------------------------------------------------------------


def test_real_targets_of_a_table_make_a_gaussian_model_and_labels_another() -> None:
    x, _ = rows(seed=9)
    found, told = learned(SMALL), learned(GAUSSIAN)
    np.testing.assert_array_equal(found.parameters().theta, told.parameters().theta)
    np.testing.assert_array_equal(found.predict(x, schema=SCHEMA).mean, told.predict(x, schema=SCHEMA).mean)
    whole, labels = (learned(config, lambda y: (y > 500).astype("<i4")) for config in (SMALL, CATEGORICAL))
    np.testing.assert_array_equal(whole.parameters().theta, labels.parameters().theta)
    assert set(whole.predict(x, schema=SCHEMA).label) <= {0, 1}


def test_it_stays_what_the_first_batch_said(tmp_path: Path) -> None:
    x, y = rows(seed=3)
    found, told = learned(SMALL), learned(GAUSSIAN)
    found.save(tmp_path / "learner")
    found = Learner.load(tmp_path / "learner")
    for each in (found, told):
        each.observe(x, y.astype("<i8"), "b", schema=SCHEMA)  # whole ones are numbers too
        each.boundary("b")
    np.testing.assert_array_equal(found.parameters().theta, told.parameters().theta)
    words = [*SCHEMA[:2], {**SCHEMA[2], "categories": ["cheap", "dear"]}]
    with pytest.raises(Refused, match="expected numbers, as in the first batch"):
        found.observe(x, (y > 500).astype("<i4"), "c", schema=words)
    labels = learned(SMALL, lambda y: (y > 500).astype("<i4"))
    with pytest.raises(Refused, match="expected integer labels"):
        labels.observe(x, y, "b", schema=SCHEMA)


def test_plain_arrays_are_refused_as_ever() -> None:
    x, y = rows()
    learner = Learner(SMALL)
    with pytest.raises(Refused, match=r"expected integer labels .* set model.likelihood = 'gaussian'"):
        learner.observe(x, y)
    learner.observe(x, (y > 500).astype("<i4"))
    assert learner.boundary()["samples"] == 60


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"evaluation": {"directory": "sets"}}, "without evaluation.directory, which is for labels only"),
        ({"model": {"scenario": "domain"}}, "without model.scenario = 'domain', which is for labels only"),
    ],
)
def test_where_only_labels_make_sense_real_targets_are_refused(tree: dict[str, Any], said: str) -> None:
    assert finds_likelihood(Config())
    assert not finds_likelihood(from_tree(tree))
    session = StreamSession(Terms.of(from_tree(tree)))
    session.producers.hello(messages.Hello(producer="p"))
    x, y = rows()
    for targets in (y, np.round(y)):
        with pytest.raises(Refused, match=f"expected integer labels .*{said}"):
            session.admit_batch("p", messages.Batch(seq=1, task="a"), NamedArrays({"x": x, "y": targets}), 100)
    with pytest.raises(Refused, match=r"\(in a new state directory\)$"):
        LabelMap(None).new_labels(y)


def test_an_exact_learner_finds_it_too() -> None:
    x, _ = rows(seed=9)
    found, told = (learned({"model": {"learner": "exact", **more}}) for more in ({}, {"likelihood": "gaussian"}))
    np.testing.assert_array_equal(found.predict(x, schema=SCHEMA).mean, told.predict(x, schema=SCHEMA).mean)


# -- the daemon --------------------------------------------------------------------------------------------------------


def test_the_daemon_finds_it_and_remembers_it_through_kills(start: Start, tmp_path: Path) -> None:
    learner = Learner(GAUSSIAN)
    daemon = start(SMALL)
    with daemon.producer(gather_bytes=0) as producer:
        for seed in range(2):
            producer.send(*rows(seed=seed), "a", schema=SCHEMA)
            learner.observe(*rows(seed=seed), "a", schema=SCHEMA)
        producer.flush()
    daemon.kill()
    daemon.start()
    with daemon.producer(gather_bytes=0) as producer:
        producer.boundary("a")
        learner.boundary("a")
    daemon.kill()
    daemon.start()
    x, _ = rows(seed=7)
    with daemon.reader() as reader, daemon.admin() as admin:
        found = reader.predict(x, schema=SCHEMA)
        expected = learner.predict(x, schema=SCHEMA)
        np.testing.assert_array_equal(found.mean, expected.mean)
        np.testing.assert_array_equal(found.variance, expected.variance)
        assert found.labels is None
        assert admin.export().description["likelihood"] == "gaussian"
    daemon.stop()
    with pytest.raises(Exception, match=r"model.likelihood was 'gaussian', is 'categorical'"):
        start(CATEGORICAL, daemon.state_dir)
    with start(GAUSSIAN, daemon.state_dir).reader() as reader:
        np.testing.assert_array_equal(reader.predict(x, schema=SCHEMA).mean, expected.mean)


@pytest.mark.campaign
def test_before_the_first_batch_any_may_still_be_set(start: Start) -> None:
    daemon = start(SMALL)
    with daemon.admin() as admin:
        admin.checkpoint()
    daemon.stop()
    with start(GAUSSIAN, daemon.state_dir).producer() as producer:
        producer.send(*rows(), "a")
        assert producer.boundary("a")["samples"] == 60


# -- files -------------------------------------------------------------------------------------------------------------


def test_many_different_whole_numbers_are_measurements_and_few_are_labels(tmp_path: Path) -> None:
    for name, prices, kind, said in (
        ("many", list(range(1000, 1240)), "f", True),
        ("few", [k % 90 for k in range(240)], "i", False),
        ("real", [k / 7 for k in range(240)], "f", False),
    ):
        data = open_data(table(tmp_path / f"{name}.csv", prices), Columns(label="price"), named=True)
        data.check()
        _, y, _ = data.batch(*next(data.blocks()), data.form())
        assert y is not None
        assert y.dtype.kind == kind
        assert any("go as measurements" in note for note in data.reading.notes) == said
        if name == "many":
            _, labels, _ = data.batch(*next(data.blocks()), data.form(integer_targets=data.whole_targets()))
            assert labels is not None
            assert labels.dtype.kind == "i"


def test_labels_written_as_real_numbers_are_doubted_where_they_decide_what_targets_are(tmp_path: Path) -> None:
    said = "as labels are, but written as real ones"
    for number, (targets, doubted) in enumerate(
        [
            ([k % 3 + 1.0 for k in range(40)], True),
            ([k % 3 + 0.5 for k in range(40)], False),
            ([k % 3 + 1 for k in range(40)], False),
            ([float(k % 30) for k in range(40)], False),
        ]
    ):
        data = open_data(table(tmp_path / f"{number}.csv", targets, 40), Columns(label="price"), named=True)
        data.check()
        assert any(said in note for note in data.reading.notes) == doubted
        frame, y = pa.table({"size": np.random.default_rng(0).normal(size=40)}), np.array(targets)
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            Learner({}).observe(frame, y, task="a")
            Learner({"model": {"likelihood": "gaussian"}}).observe(frame, y.astype("<f8"), task="a")
        assert sum(said in str(each.message) for each in found) == doubted


def test_a_daemon_says_that_its_measurements_may_be_labels(start: Start) -> None:
    daemon = start(SMALL)
    with daemon.producer() as producer, daemon.admin() as admin:
        producer.send(rows()[0], np.arange(60) % 3 + 1.0, "a", schema=SCHEMA)
        producer.boundary("a")
        assert any("3 different whole numbers" in str(event) for event in admin.status()["events"])


def test_a_table_of_measurements_from_send_to_a_file_of_predictions(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start(SMALL)
    path = table(tmp_path / "prices.csv", [int(500 + 7.0 * k) for k in range(240)])
    where = ("--state-dir", str(daemon.state_dir))
    assert main(["send", str(path), "--label", "price", "--boundary", *where]) == 0
    assert "go as measurements" in capsys.readouterr().out
    out, columnar = tmp_path / "answers.csv", tmp_path / "answers.parquet"
    assert main(["predict", str(path), "--out", str(out), *where]) == 0
    with out.open(newline="") as file:
        written = list(csv.DictReader(file))
    assert list(written[0]) == ["customer", "predicted", "variance"]
    assert [row["customer"] for row in written] == [f"C{k:04d}" for k in range(240)]
    assert main(["predict", str(path), "--out", str(columnar), "--keep", "price,customer", *where]) == 0
    found = pq.read_table(columnar)
    assert found.column_names == ["price", "customer", "predicted", "variance"]
    np.testing.assert_allclose(found["predicted"].to_numpy(), [float(row["predicted"]) for row in written], rtol=1e-6)
    capsys.readouterr()
    for odd, expected in (
        (["--out", str(tmp_path / "x.xlsx")], "expected a file that ends with .csv, .parquet, .npz"),
        (["--out", str(tmp_path / "x.csv"), "--keep", "nothing"], "no column 'nothing' (--keep); it has customer, size"),
        (["--keep", "size"], "add --out FILE.csv"),
    ):
        assert main(["predict", str(path), *odd, *where]) == 2
        assert expected in capsys.readouterr().err
    assert not (tmp_path / "x.csv").exists()


def test_a_key_column_with_the_name_of_a_prediction_is_refused(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    daemon = start(CATEGORICAL)
    x, y = rows(80)
    whole = pa.table({"size": x[:, 0], "predicted": x[:, 1], "kind": np.where(y > 500, "dear", "cheap")})
    path, where = tmp_path / "kinds.parquet", ("--state-dir", str(daemon.state_dir))
    pq.write_table(whole, path)
    assert main(["send", str(path), "--label", "kind", "--boundary", *where]) == 0
    out = tmp_path / "answers.parquet"
    assert main(["predict", str(path), "--out", str(out), "--keep", "predicted", *where]) == 2
    assert "has the name of a column of predictions" in capsys.readouterr().err
    assert main(["predict", str(path), "--out", str(out), "--keep", "kind", *where]) == 0
    found = pq.read_table(out)
    assert found.column_names == ["kind", "predicted", "probability.cheap", "probability.dear"]
    sums = found["probability.cheap"].to_numpy() + found["probability.dear"].to_numpy()
    np.testing.assert_allclose(sums, 1, atol=1e-5)
    assert set(found["predicted"].to_pylist()) <= {"cheap", "dear"}
    capsys.readouterr()


def test_measurements_are_no_words_of_a_stream_whose_targets_are_words(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--state-dir", str(start(SMALL).state_dir))
    kinds = table(tmp_path / "kinds.csv", [("cheap", "dear")[k % 2] for k in range(240)])
    assert main(["send", str(kinds), "--label", "price", "--boundary", *where]) == 0
    for name, prices in (("real", [k / 7 for k in range(240)]), ("whole", list(range(240)))):
        path = table(tmp_path / f"{name}.csv", prices)
        capsys.readouterr()
        assert main(["send", str(path), "--label", "price", "--boundary", *where]) == 2
        assert "more than 100 different numbers, where the stream's targets are words" in capsys.readouterr().err
    few = table(tmp_path / "few.csv", [k % 3 for k in range(240)])
    assert main(["send", str(few), "--label", "price", "--boundary", *where]) == 1
    assert "expected words, as this stream's targets are (['cheap', 'dear'])" in capsys.readouterr().err
