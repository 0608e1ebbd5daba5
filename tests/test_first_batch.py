"""What a model is asked on the first batch, through real daemons: learned correctly, or refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peculiar
import pytest
import torch

from streamcl import Learner
from streamcl.bench.local import LocalDaemon
from streamcl.bench.zoo import oracle
from streamcl.errors import Refused

RNG = np.random.default_rng(0)


def flat(n: int = 30) -> dict[str, Any]:
    return {"x": RNG.normal(size=(n, 8)).astype("<f4"), "y": np.arange(n, dtype="<i8") % 3}


def words(n: int = 30, width: int = 5) -> np.ndarray:
    """No row is empty; zeros only after a row's end."""
    lengths = RNG.integers(1, width + 1, (n, 1))
    return RNG.integers(1, peculiar.WORDS, (n, width)) * (np.arange(width) < lengths)


@pytest.fixture
def begin(start: Callable[..., LocalDaemon], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., LocalDaemon]:
    """Starts a daemon whose model is the peculiar one that was named last (`show`)."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent) + ":" + str(Path(__file__).parents[1]))
    monkeypatch.setenv("PECULIAR", str(tmp_path / "peculiar"))

    def make(model: str, name: str = "state", **tree: Any) -> LocalDaemon:
        show(tmp_path, model)
        return start({"model": {"factory": "peculiar:current", "classes": 3}, "train": {"epochs": 1}, **tree}, name)

    return make


def show(tmp_path: Path, model: str) -> None:
    (tmp_path / "peculiar").write_text(model)


@pytest.mark.parametrize(
    ("model", "make"),
    [
        pytest.param("Recurrent", lambda: RNG.normal(size=(30, 5, 8)).astype("<f4"), marks=pytest.mark.campaign),
        pytest.param("TwoFields", lambda: RNG.integers(0, peculiar.WORDS, (30, 2)), marks=pytest.mark.campaign),
        pytest.param("Checkpointed", lambda: RNG.normal(size=(30, 8)).astype("<f4"), marks=pytest.mark.campaign),
        ("Packed", words),
        pytest.param("Sorting", lambda: RNG.normal(size=(30, 8)).astype("<f4"), marks=pytest.mark.campaign),
    ],
)
def test_what_is_learned_has_the_fisher_of_a_loop(begin: Callable[..., LocalDaemon], model: str, make: Any) -> None:
    x, y = make(), np.arange(30) % 3
    daemon = begin(model, posterior={"prior_precision": 1e-6, "curvature": "diagonal", "expectation": "mode"})
    with daemon.producer() as producer:
        producer.send(x[:18], y[:18], "a")
        producer.send(x[18:], y[18:], "a")
        assert producer.boundary("a")["samples"] == 30
        with daemon.admin() as admin:
            learned, status = admin.parameters(), admin.status()
    module = getattr(peculiar, model)()
    torch.nn.utils.vector_to_parameters(torch.from_numpy(np.array(learned.theta)).float(), module.parameters())
    expected = 1e-6 + oracle.fisher(module, torch.from_numpy(x), None).numpy()
    np.testing.assert_allclose(learned.precision, expected, rtol=1e-3, atol=1e-5 * expected.max())
    slow = model in ("Checkpointed", "Packed", "Sorting")
    assert ("row by row" in str(status["warning"])) == slow


REFUSALS = {
    "TwoHeads": ["tuple of 2", "training mode", "expected one tensor [n, 3]"],
    "raises_in_training": ["ZeroDivisionError: out of sorts", "training mode"],
    "raises_in_evaluation": ["LookupError: nothing there", "evaluation mode"],
    "exits": ["SystemExit: no licence"],
    "exits_when_made": ["SystemExit: no licence at all"],
    "squeezing": ["[3] for a single row", "squeeze()"],
    "by_the_batch": ["single row", "GroupNorm or LayerNorm", "'1'"],
    "tracking": ["1.running_mean", ".eval() in the factory on module '1'"],
}


def test_what_a_model_raises_is_a_refusal_in_words(
    begin: Callable[..., LocalDaemon], connect: Callable[..., Any], tmp_path: Path
) -> None:
    """One daemon, one model after the other, and at last one that can be learned."""
    daemon = begin("good")
    client = connect(daemon.endpoints["stream"])
    client.ask("hello", producer="p")
    with daemon.admin() as admin:
        for model, said in REFUSALS.items():
            show(tmp_path, model)
            answer = client.ask("batch", flat(), seq=1, task="a")
            assert (answer["type"], answer["code"], answer["seq"]) == ("nack", "bad_shape", 1), model
            assert all(words in answer["message"] for words in said), answer["message"]
            events = [event["text"] for event in admin.status()["events"]]
            assert any(answer["message"][:150] in text for text in events)
        show(tmp_path, "good")
        assert client.ask("batch", flat(), seq=1, task="a")["type"] == "ack"
        client.send("boundary", seq=2, task="a")
        assert client.receive_until("done")["samples"] == 30
        assert admin.status()["problem"] is None
    assert "nothing there" not in daemon.log_text()  # a model's words may quote the data
    assert not list((daemon.state_dir / "live").glob("trial*"))


def test_a_model_that_ends_the_process_is_refused_after_a_few_times(
    begin: Callable[..., LocalDaemon], connect: Callable[..., Any], tmp_path: Path
) -> None:
    daemon = begin("fatal")
    client = connect(daemon.endpoints["stream"])
    client.ask("hello", producer="p")
    client.send("batch", flat(), seq=1, task="a")
    assert client.socket.poll(240_000), "no answer"
    answer = client.receive()
    assert (answer["type"], answer["code"]) == ("nack", "bad_shape")
    assert "ended 3 times" in answer["message"]
    show(tmp_path, "good")
    client.send("batch", flat(), seq=1, task="a")
    assert client.socket.poll(240_000), "no answer"
    assert client.receive()["type"] == "ack"


def test_first_batches_are_judged_by_themselves(begin: Callable[..., LocalDaemon], connect: Callable[..., Any]) -> None:
    """The model takes rows of eight: a batch of seven is refused, whoever is tried first, and the other one learned."""
    daemon = begin("good")
    with daemon.admin() as admin:
        clients = [connect(daemon.endpoints["stream"]) for _ in range(4)]
        for number, client in enumerate(clients):
            client.ask("hello", producer=f"p{number}")
        for number, client in enumerate(clients):
            rows = flat()
            client.send("batch", {**rows, "x": rows["x"][:, : 8 - (number % 2 == 0)]}, seq=1, task="a")
        answers = [client.receive() for client in clients]
        assert [answer["type"] for answer in answers] == ["nack", "ack", "nack", "ack"]
        assert all("7" in answers[number]["message"] for number in (0, 2))
        assert admin.boundary("a")["samples"] == 60


def test_the_same_batch_again_is_the_one_that_is_being_tried(
    begin: Callable[..., LocalDaemon], connect: Callable[..., Any]
) -> None:
    daemon = begin("squeezing")
    client = connect(daemon.endpoints["stream"])
    client.ask("hello", producer="p")
    rows = flat()
    for _ in range(3):
        client.send("batch", rows, seq=1, task="a")
    assert client.receive()["type"] == "nack"


def test_lazy_layers_are_the_same_after_a_restart(begin: Callable[..., LocalDaemon], tmp_path: Path) -> None:
    """Killed within the task, before there is any checkpoint: the log alone says what the model was."""
    batches = [flat() for _ in range(3)]
    learned = []
    for name in ("killed", "clean"):
        daemon = begin("lazy", name)
        for number, batch in enumerate(batches):
            with daemon.producer() as producer:
                producer.send(batch["x"], batch["y"], "a")
                producer.flush()
            if name == "killed" and number == 1:
                daemon.kill_all()
                daemon.start()
        with daemon.producer() as producer, daemon.admin() as admin:
            assert producer.boundary("a")["samples"] == 90
            learned.append(admin.parameters())
    np.testing.assert_array_equal(learned[0].theta, learned[1].theta)
    np.testing.assert_array_equal(learned[0].precision, learned[1].precision)


def test_a_row_on_which_the_model_fails_is_named(begin: Callable[..., LocalDaemon]) -> None:
    x, y = RNG.integers(0, peculiar.WORDS, (30, 2)), np.arange(30) % 3
    daemon = begin("TwoFields")
    with daemon.producer() as producer, daemon.reader() as reader:
        producer.send(x, y, "a")
        producer.boundary("a")
        x[17, 1] = peculiar.WORDS
        for how in ({}, {"samples": 2}, {"uncertainty": True}):
            with pytest.raises(
                Refused, match=r"bad_array: predict\.x: row 17: the model raises IndexError: index out of range"
            ):
                reader.predict(x, **how)
        assert len(reader.predict(x[:17]).probs) == 17
    learner = Learner({"model": {"classes": 3}}, module=peculiar.TwoFields())
    learner.observe(x[:17], y[:17], task="a")
    with pytest.raises(Refused, match="row 17"):
        learner.predict(x)
