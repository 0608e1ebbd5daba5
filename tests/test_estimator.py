"""The learner in this process: the daemon's bits and refusals, nothing half-done, a file that it comes back from."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor, nn

import streamcl
from streamcl import ConfigError, Learner, ModelRefused, Producer, Refused
from streamcl.bench.local import LocalDaemon
from streamcl.client import Admin

FEATURES = 4
MODEL = {"args": {"hidden": [8]}, "classes": 3}


def rows(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, n)
    return (rng.normal(size=(n, FEATURES)) + y[:, None]).astype("<f4"), y


def learner(**tree: Any) -> Learner:
    return Learner({"model": MODEL, "train": {"device": "cpu", "epochs": 2}, **tree})


class Odd(nn.Module):
    """Raises on rows whose first feature is large, as long as it is not mended."""

    mended = False

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not Odd.mended and bool((x[:, 0] > 50).any()):
            raise ValueError("odd rows")
        return self.layer(x)


@pytest.fixture(autouse=True)
def unmended() -> None:
    Odd.mended = False


def odd_rows(seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = rows(seed)
    x[3, 0] = 60
    return x, y


# -- the same bits -----------------------------------------------------------------------------------------------------


def in_process(tree: dict[str, Any]) -> Learner:
    found = Learner(tree)
    for name in ("a", "b"):
        for seed in range(3):
            found.observe(*rows(seed), task=name)
        found.boundary(name, weight=20.0 if name == "b" else None)
    found.revisit("a", damping=0.7)
    found.observe(*rows(7), task="a", boundary=True)
    found.observe(*rows(8), task="c")
    return found


def test_the_same_batches_give_the_daemons_bits(tmp_path: Path) -> None:
    tree = {"model": MODEL, "train": {"epochs": 2, "device": "cpu"}, "posterior": {"mode": "factors"}}
    ours = in_process(tree)
    with (
        LocalDaemon(tree, tmp_path / "state") as daemon,
        Producer(daemon.endpoints["stream"], producer="p") as producer,
        Admin(daemon.endpoints["admin"]) as admin,
    ):
        for name in ("a", "b"):
            for seed in range(3):
                producer.send(*rows(seed), task=name)
                producer.flush()  # else small batches travel as one
            producer.boundary(name, weight=20.0 if name == "b" else None)
        producer.revisit("a", damping=0.7)
        producer.send(*rows(7), task="a")
        producer.flush()
        producer.boundary("a")
        theirs_closed = admin.parameters()
        tasks = admin.tasks()
    closed = Learner(tree)
    for name in ("a", "b"):
        for seed in range(3):
            closed.observe(*rows(seed), task=name)
        closed.boundary(name, weight=20.0 if name == "b" else None)
    closed.revisit("a", damping=0.7)
    closed.observe(*rows(7), task="a")
    figures = closed.boundary("a")
    mine = closed.parameters()
    for name in ("theta", "precision", "shift"):
        np.testing.assert_array_equal(getattr(mine, name), getattr(theirs_closed, name), err_msg=name)
    assert (mine.names, mine.shapes) == (theirs_closed.names, theirs_closed.shapes)
    assert figures["kind"] == "revisit"
    for own, other in zip(closed.tasks(), tasks, strict=True):
        assert {n: own[n] for n in ("task", "samples", "weight", "loss", "revisits")} == {
            n: other[n] for n in ("task", "samples", "weight", "loss", "revisits")
        }
    assert ours.open_task == "c"


def test_what_was_saved_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    tree = {"model": MODEL, "train": {"epochs": 2, "device": "cpu"}, "posterior": {"mode": "factors"}}
    going = in_process(tree)
    going.save(tmp_path / "learner")
    others = [Learner.load(tmp_path / "learner"), copy.deepcopy(going)]
    for each in (going, *others):
        each.observe(*rows(9), task="c")
        each.boundary("c")
        each.forget("b")
    for other in others:
        assert other.tasks() == [
            {**task, "closed_at": other.tasks()[i]["closed_at"]} for i, task in enumerate(going.tasks())
        ]
        for name in ("theta", "precision", "shift"):
            np.testing.assert_array_equal(getattr(going.parameters(), name), getattr(other.parameters(), name))
        with pytest.raises(Refused, match="withdrawn"):
            other.revisit("b")


def without_times(one: Learner) -> list[dict[str, Any]]:
    return [{name: value for name, value in task.items() if name != "closed_at"} for task in one.tasks()]


# -- refusals ----------------------------------------------------------------------------------------------------------


REFUSALS: dict[str, tuple[Callable[[Learner], Any], str]] = {
    "no model yet": (lambda _: Learner().predict(np.zeros((1, 2))), "not_ready"),
    "a closed task": (lambda one: one.observe(*rows(1), task="a"), "task_closed"),
    "another task": (lambda one: one.observe(*rows(1), task="z"), "task_mismatch"),
    "an unknown task": (lambda one: one.boundary("z"), "unknown_task"),
    "no factors": (lambda one: one.revisit("a"), "not_in_factor_mode"),
    "no factors to forget": (lambda one: one.forget("a"), "not_in_factor_mode"),
    "no revisit": (lambda one: one.abandon(), "unknown_task"),
    "nothing kept": (lambda one: one.retry("a"), "unknown_task"),
    "another shape": (lambda one: one.observe(rows(1)[0][:, :2], rows(1)[1], task="b"), "bad_shape"),
    "another length": (lambda one: one.observe(rows(1)[0], rows(1)[1][:3], task="b"), "bad_shape"),
    "no rows": (lambda one: one.observe(np.zeros((0, FEATURES)), [], task="b"), "bad_shape"),
    "not a number": (lambda one: one.observe(np.full((1, FEATURES), np.nan), [0], task="b"), "nonfinite"),
    "a label too many": (lambda one: one.observe(*(rows(1)[0], rows(1)[1] + 5), task="b"), "bad_label"),
    "real labels": (lambda one: one.observe(rows(1)[0], rows(1)[1] + 0.5, task="b"), "bad_label"),
    "words": (lambda one: one.observe(np.array([["x"] * FEATURES]), [0], task="b"), "bad_array"),
    "an empty name": (lambda one: one.observe(*rows(1), task=""), "bad_header"),
    "a negative weight": (lambda one: one.boundary("b", weight=-1.0), "bad_header"),
    "rows of another shape to predict": (lambda one: one.predict(np.zeros((1, 9))), "bad_shape"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_refusal_has_the_daemons_code_and_changes_nothing(case: str) -> None:
    call, code = REFUSALS[case]
    one = learner()
    one.observe(*rows(0), task="a", boundary=True)
    one.observe(*rows(1), task="b")
    before, tasks = one.parameters(), one.tasks()
    with pytest.raises(Refused) as refused:
        call(one)
    assert refused.value.code == code
    np.testing.assert_array_equal(before.theta, one.parameters().theta)
    assert one.tasks() == tasks
    assert one.open_task == "b"
    one.boundary("b")


def test_keys_that_only_a_daemon_uses_are_refused() -> None:
    for tree in ({"state_dir": "x"}, {"endpoints": {}}, {"train": {"watchdog_seconds": 9}}, {"stream": {"credit": 2}}):
        with pytest.raises(ConfigError, match="no effect"):
            Learner(tree)
    with pytest.raises(ConfigError, match="either a module"):
        Learner({"model": {"factory": "streamcl.models:mlp"}}, module=Odd())
    with pytest.raises(ConfigError, match="unknown key"):
        Learner({"train": {"rate": 1}})


def test_a_model_that_cannot_be_learned_is_refused_with_the_first_batch() -> None:
    one = Learner({"model": {"classes": 3}}, module=nn.Sequential(nn.Linear(FEATURES, 3), nn.BatchNorm1d(3)))
    with pytest.raises(ModelRefused, match="GroupNorm"):
        one.observe(*rows(0))
    assert one.open_task is None
    assert one.tasks() == []


def test_what_it_raises_is_exported() -> None:
    for name in ("ConfigError", "Damaged", "Learner", "ModelRefused", "Refused", "StreamclError", "UnknownFormat"):
        assert name in streamcl.__all__
        assert issubclass(getattr(streamcl, name), object)


# -- what cannot be learned --------------------------------------------------------------------------------------------


def test_rows_on_which_the_model_fails_are_kept_said_and_learned_later(tmp_path: Path) -> None:
    one = Learner({"model": {"classes": 3}, "posterior": {"mode": "factors"}}, module=Odd())
    one.observe(*rows(0), task="a")
    with pytest.warns(RuntimeWarning, match="odd rows"):
        one.observe(*odd_rows(1), task="a")
    assert one.boundary("a")["set_aside"] == 40
    with pytest.warns(RuntimeWarning, match="odd rows"):
        one.observe(*odd_rows(2), task="b")
    before = one.parameters()
    with pytest.raises(Refused, match="they are kept"):
        one.boundary("b")
    np.testing.assert_array_equal(before.theta, one.parameters().theta)
    assert [task["state"] for task in one.tasks()] == ["consolidated", "held"]
    with pytest.raises(Refused, match="held"):
        one.observe(*rows(3), task="c")
    one.save(tmp_path / "learner")
    with pytest.raises(ConfigError, match="module="):
        Learner.load(tmp_path / "learner")
    Odd.mended = True
    mended = Learner.load(tmp_path / "learner", module=Odd())
    assert mended.retry("b")["samples"] == 40
    assert mended.retry("a")["samples"] == 80
    assert [task["set_aside"] for task in mended.tasks()] == [0, 0]


def test_what_is_kept_goes_only_when_dropped() -> None:
    one = Learner({"model": {"classes": 3}}, module=Odd())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.observe(*rows(0), task="a", boundary=True)
        one.observe(*odd_rows(0), task="b")
        with pytest.raises(Refused, match="unlearnable"):
            one.boundary("b")
        with pytest.raises(Refused, match="unlearnable"):
            one.retry("b")
    one.drop("b")
    one.observe(*rows(1), task="b", boundary=True)
    assert [task["samples"] for task in one.tasks()] == [40, 40]


def test_a_task_renamed_is_learned_as_if_it_had_been_called_so(tmp_path: Path) -> None:
    one, other = (Learner({"model": {"classes": 3}}, module=Odd()) for _ in range(2))
    for each, name in ((one, "before"), (other, "after")):
        each.observe(*rows(0), task="a", boundary=True)
        each.observe(*rows(1), task=name)
        each.observe(*rows(2), task=name)
    for taken, code in (("a", "task_closed"), ("", "bad_header")):
        with pytest.raises(Refused, match=code):
            one.rename(taken)
    one.rename("after")
    one.save(tmp_path / "learner")
    for each in (one, Learner.load(tmp_path / "learner", module=Odd()), other):
        with pytest.warns(RuntimeWarning, match="odd rows"):  # so that it goes back, and comes again
            each.observe(*odd_rows(3), task="after")
        assert each.boundary("after") | {"seconds": 0} == {
            "task": "after",
            "kind": "boundary",
            "samples": 80,
            "set_aside": 40,
            "loss": each.tasks()[-1]["loss"],
            "seconds": 0,
        }
        np.testing.assert_array_equal(each.parameters().theta, one.parameters().theta)
    with pytest.raises(Refused, match="unknown_task"):
        one.rename("x")


class Interrupted(nn.Module):
    """Is interrupted from the keyboard once."""

    calls = -1

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        Interrupted.calls -= 1
        if Interrupted.calls == 0:
            raise KeyboardInterrupt
        return self.layer(x)


def test_an_interrupt_changes_nothing() -> None:
    torch.manual_seed(0)
    module = Interrupted()
    one, other = (Learner({"model": {"classes": 3}}, module=module) for _ in range(2))
    for each in (one, other):
        each.observe(*rows(0), task="a", boundary=True)
        each.observe(*rows(1), task="b")
    for call in (lambda: one.observe(*rows(2), task="b"), lambda: one.boundary("b")):
        Interrupted.calls = 1
        with pytest.raises(KeyboardInterrupt):
            call()
    assert one.open_task == "b"
    for each in (one, other):
        each.observe(*rows(3), task="b", boundary=True)
    np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)


# -- predictions -------------------------------------------------------------------------------------------------------


def test_during_a_revisit_predictions_are_those_from_before() -> None:
    one = learner(posterior={"mode": "factors"})
    one.observe(*rows(0), task="a", boundary=True)
    before = one.predict(rows(5)[0])
    one.revisit("a")
    one.observe(*rows(6), task="a")
    np.testing.assert_array_equal(one.predict(rows(5)[0]).probs, before.probs)
    one.abandon()
    np.testing.assert_array_equal(one.predict(rows(5)[0]).probs, before.probs)


def test_predictions_disturb_no_training() -> None:
    one, other = learner(), learner()
    for seed in range(3):
        for each in (one, other):
            each.observe(*rows(seed), task="a")
        one.predict(rows(9)[0], samples=4)
    np.testing.assert_array_equal(one.parameters().theta, other.parameters().theta)


def test_lists_tensors_and_booleans_are_taken() -> None:
    one = Learner({"model": {"likelihood": "bernoulli"}, "train": {"device": "cpu"}})
    one.observe([[0.5, 1.0], [2.0, 3.0]], [True, False])
    one.observe(torch.ones(3, 2, requires_grad=True), torch.tensor([1, 0, 1]))
    assert one.boundary()["samples"] == 5
    assert one.predict([[1.0, 1.0]]).probs.shape == (1,)


def test_it_holds_the_rows_of_the_open_task_alone() -> None:
    one = learner()
    for name in ("a", "b"):
        for seed in range(4):
            one.observe(*rows(seed), task=name)
        assert len(one._memory.records) == 4
        one.boundary(name)
        assert one._memory.records == {}


def test_drift_closes_tasks_in_this_process_too() -> None:
    stream = {"boundary": "drift", "drift_rows": 30, "drift_delta": 0.3}
    one = learner(stream=stream, train={"epochs": 1, "batch_size": 4, "learning_rate": 0.2, "device": "cpu"})
    closed = []
    for batch in range(40):
        x, y = rows(batch, 6)
        x = (4 * np.eye(FEATURES)[y] + 0.1 * x).astype("<f4")
        closed.append(one.observe(x, (y + int(batch >= 20)) % 3, task="s"))
    assert [task["task"] for task in one.tasks()] == ["s"]
    told = next(each for each in closed if each is not None)
    assert told["origin"] == "drift"
    assert one.open_task == "s.2"


# -- what a newcomer tried ---------------------------------------------------------------------------------------------


class Ended(Interrupted):
    """As `Interrupted`, but by a handler that ends the process."""

    def forward(self, x: Tensor) -> Tensor:
        try:
            return super().forward(x)
        except KeyboardInterrupt:
            raise SystemExit(3) from None


@pytest.mark.parametrize(("module", "kind"), [(Interrupted, KeyboardInterrupt), (Ended, SystemExit)])
def test_an_interrupt_is_never_taken_for_the_models_doing(module: type[Interrupted], kind: type[BaseException]) -> None:
    one = Learner({"model": {"classes": 3}}, module=module())
    for call in (lambda: one.observe(*rows(0), task="a"), lambda: one.boundary("a")):
        for _ in range(2):
            Interrupted.calls = 1
            with pytest.raises(kind):
                call()
            Interrupted.calls = -1
            one.open_task or one.observe(*rows(0), task="a")
    assert one.boundary("a")["set_aside"] == 0


def test_keys_may_be_dotted_and_numbers_numpys_own() -> None:
    nested = learner(train={"epochs": 4, "learning_rate": 0.5, "device": "cpu"})
    dotted = Learner(
        {"model": MODEL, "train.epochs": np.int64(4), "train.learning_rate": np.float64(0.5), "train": {"device": "cpu"}}
    )
    assert dotted.config == nested.config
    with pytest.raises(ConfigError, match="unknown key"):
        Learner({"train.rate": 1})
    with pytest.raises(ConfigError, match="expected a mapping"):
        Learner("train.epochs")  # type: ignore[arg-type]


def test_a_class_defined_in_a_function_is_a_module_too() -> None:
    class Local(nn.Linear):
        pass

    one = Learner({"model": {"classes": 3}}, module=Local(FEATURES, 3))
    one.observe(*rows(0), boundary=True)


def test_numbers_beyond_the_models_are_refused() -> None:
    one = learner()
    one.observe(*rows(0), task="a")
    x, y = rows(1)[0].astype("<f8") * 1e200, rows(1)[1]
    for call in (lambda: one.observe(x, y, task="a"), lambda: one.predict(x)):
        with pytest.raises(Refused, match=r"nonfinite: x: .* beyond float32"):
            call()


@pytest.mark.parametrize("samples", [-1, 1.5, "3", None, 10**9])
def test_so_many_draws_are_refused(samples: Any) -> None:
    one = learner()
    one.observe(*rows(0))
    with pytest.raises(Refused, match="samples"):
        one.predict(rows(1)[0], samples=samples)


def test_a_prediction_has_what_its_likelihood_predicts() -> None:
    one = learner()
    one.observe(*rows(0))
    assert not hasattr(one.predict(rows(1)[0]), "mean")


def test_tensors_of_any_kind_are_taken() -> None:
    one = Learner({"model": {"classes": 3}})
    for x in (torch.ones(3, 2, dtype=torch.bfloat16), torch.ones(3, 2).to_sparse(), torch.ones(3, 2, dtype=torch.float16)):
        one.observe(x, [0, 1, 2])
    assert one.boundary()["samples"] == 9


def test_inputs_of_a_size_that_a_network_learns_badly_are_said() -> None:
    x = np.random.default_rng(0).normal((0, 700_000), size=(20, 2))
    with pytest.warns(RuntimeWarning, match=r"column 1 of x is of size 7e.05.*input.scale = 'auto'"):
        Learner().observe(x, np.arange(20) % 2)
    for settings in ({"input.scale": "auto"}, {"model.learner": "exact"}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            Learner(settings).observe(x, np.arange(20) % 2)


@pytest.mark.parametrize("y", [np.array(["no", "yes"]), np.array(["no", "yes"], object), ["no", "yes"]])
def test_words_beside_a_plain_array_are_refused_with_how_they_go(y: Any) -> None:
    x = np.array([[1.0], [2.0]])
    with pytest.raises(Refused, match=r"^bad_array: y: .*; words go with a table of pandas, Polars or Arrow as x"):
        Learner({}).observe(x, y)
    schema = [{"name": "a", "kind": "number"}, {"name": "said", "kind": "target", "categories": ["no", "yes"]}]
    for given in ({"x": pa.table({"a": x[:, 0]}), "y": y}, {"x": x, "y": np.array([0, 1]), "schema": schema}):
        learner = Learner({"model": {"args": {"hidden": [4]}}})
        learner.observe(**given)
        learner.boundary()
        assert sorted(learner.predict(given["x"], schema=given.get("schema")).labels.tolist()) == ["no", "yes"]


def test_masked_numbers_are_missing_and_integers_that_would_wrap_are_refused() -> None:
    x, y = np.ma.masked_less(np.array([[1.0, -9999.0], [2.0, 3.0]]), -100), np.array([0, 1])
    with pytest.raises(Refused, match=r"nonfinite|NaN"):
        Learner({}).observe(x, y)
    with pytest.raises(Refused, match="no masked values in an array of int64"):
        Learner({}).observe(x.filled(0), np.ma.masked_equal(y, 1))
    with pytest.raises(Refused, match="at most 9223372036854775807"):
        Learner({}).observe(x.filled(0), np.array([1, 2**63], np.uint64))
    with pytest.raises(Refused, match="no masked values in an array of int64"):
        Learner({}).observe(pa.table({"a": [1.5, 2.5]}), np.ma.masked_equal(y, 1))
    with pytest.raises(Refused, match=r"y: expected finite numbers, got nan at y\[1\]"):
        Learner({}).observe(pa.table({"a": [1.5, 2.5]}), np.ma.masked_equal([1.5, -9999.0], -9999.0))
    learner = Learner({})
    learner.observe(np.ma.masked_less(x.filled(0), -100), y.astype(np.uint64))  # nothing is masked, or too large
    assert learner.boundary()["samples"] == 2
