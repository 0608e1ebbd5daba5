"""The public contract through real sockets, spoken by a client that knows ZeroMQ and msgpack only."""

from __future__ import annotations

import contextlib
import json
import resource
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest
import zmq
from prometheus_client.parser import text_string_to_metric_families

from streamcl.bench.local import FREE_ENDPOINTS, LocalDaemon
from streamcl.config import from_tree
from streamcl.daemon.channel import Channel
from streamcl.daemon.ingest import start as start_ingest
from streamcl.protocol.producers import Producers
from streamcl.schema import Signature

RNG = np.random.default_rng(0)
SMALL = {
    "model": {"args": {"hidden": [8]}, "classes": 3},
    "train": {"epochs": 1},
    "stream": {"credit": 4},
}


def rows(n: int = 8, width: int = 4) -> dict[str, Any]:
    return {"x": RNG.normal(size=(n, width)).astype("<f4"), "y": np.arange(n, dtype="<i8") % 3}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    """Has learned a task: whichever of these tests comes first finds something to predict with."""
    with LocalDaemon(SMALL, tmp_path_factory.mktemp("contract") / "state") as running:
        with running.producer("first") as producer:
            producer.send(*rows().values(), "first")
            producer.boundary("first")
        yield running


@pytest.fixture
def stream(daemon: LocalDaemon, connect: Callable[..., Any], request: pytest.FixtureRequest) -> Any:
    """A producer of its own for every test, on the shared daemon."""
    client = connect(daemon.endpoints["stream"])
    client.name = f"p-{abs(hash(request.node.name))}"
    client.durable = client.ask("hello", producer=client.name)["durable"]
    return client


def open_task(daemon: LocalDaemon, client: Any, task: str) -> int:
    """Send one batch of a fresh task, closing whatever is open; returns the next sequence number."""
    admin = daemon.admin()
    current = admin.status()["task"]
    if current is not None:
        admin.boundary(current)
    admin.close()
    seq = client.durable + 1
    assert client.ask("batch", rows(), seq=seq, task=task)["type"] == "ack"
    return seq + 1


def test_welcome_says_where_to_go_on(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    client = connect(daemon.endpoints["stream"])
    welcome = client.ask("hello", producer="w", epoch=3, id="q1")
    assert (welcome["type"], welcome["producer"], welcome["durable"], welcome["applied"]) == (
        "welcome",
        "w",
        0,
        0,
    )
    assert welcome["credit"]["messages"] == 4
    assert welcome["credit"]["bytes"] > 0
    assert set(welcome["limits"]) >= {"message_bytes", "header_bytes", "arrays"}
    assert "task" in welcome
    assert welcome["id"] == "q1"


def test_a_batch_is_acknowledged_and_a_boundary_done(daemon: LocalDaemon, stream: Any) -> None:
    seq = open_task(daemon, stream, "plain")
    ack = stream.ask("batch", rows(), seq=seq, task="plain", id=17)
    assert (ack["type"], ack["durable"], ack["id"]) == ("ack", seq, 17)
    assert set(ack) >= {"applied", "credit"}
    assert stream.ask("boundary", seq=seq + 1, task="plain")["type"] == "ack"
    done = stream.receive_until("done")
    assert {k: done[k] for k in ("seq", "task", "kind", "samples")} == {
        "seq": seq + 1,
        "task": "plain",
        "kind": "boundary",
        "samples": 16,
    }
    assert np.isfinite(done["loss"])
    assert done["seconds"] > 0


def test_a_req_socket_works_with_its_delimiter(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    client = connect(daemon.endpoints["stream"], zmq.REQ)
    assert client.ask("hello", producer="req")["type"] == "welcome"
    client.durable = 0
    seq = open_task(daemon, client, "req-task")
    for number in range(seq, seq + 3):
        assert client.ask("batch", rows(), seq=number, task="req-task")["durable"] == number
    assert client.ask("boundary", seq=seq + 3, task="req-task")["type"] == "ack"
    assert client.ask("hello", producer="req")["type"] == "welcome"
    reader = connect(daemon.endpoints["predict"], zmq.REQ)
    assert reader.ask("predict", {"x": rows()["x"]})["type"] == "prediction"
    assert connect(daemon.endpoints["admin"], zmq.REQ).ask("status")["type"] == "ok"


def test_a_duplicate_is_acknowledged_and_not_trained_twice(daemon: LocalDaemon, stream: Any) -> None:
    seq = open_task(daemon, stream, "twice")
    batch = rows()
    for _ in range(3):
        assert stream.ask("batch", batch, seq=seq, task="twice")["durable"] == seq
    stream.send("boundary", seq=seq + 1, task="twice")
    assert stream.receive_until("done")["samples"] == 16
    stream.send("boundary", seq=seq + 1, task="twice")
    assert stream.receive_until("done")["samples"] == 16


def test_batch_with_boundary_closes_the_task(daemon: LocalDaemon, stream: Any) -> None:
    seq = open_task(daemon, stream, "flag")
    stream.send("batch", rows(), seq=seq, task="flag", boundary=True)
    assert stream.receive_until("done")["seq"] == seq
    refused = stream.ask("batch", rows(), seq=seq + 1, task="flag")
    assert (refused["type"], refused["code"], refused["retryable"]) == ("nack", "task_closed", False)


def test_weight_sets_lambda(daemon: LocalDaemon, stream: Any) -> None:
    seq = open_task(daemon, stream, "weighted")
    stream.send("boundary", seq=seq, task="weighted", weight=123.5)
    stream.receive_until("done")
    with daemon.admin() as admin:
        assert {t["task"]: t["weight"] for t in admin.tasks()}["weighted"] == 123.5


def test_a_barrier_waits_for_the_other_producer(daemon: LocalDaemon, stream: Any, connect: Callable[..., Any]) -> None:
    seq = open_task(daemon, stream, "barrier")
    other = connect(daemon.endpoints["stream"])
    other.ask("hello", producer="barrier-other")
    stream.send("boundary", seq=seq, task="barrier", barrier={"barrier-other": 2})
    assert other.ask("batch", rows(), seq=1, task="barrier")["type"] == "ack"
    assert not stream.socket.poll(100)
    assert other.ask("batch", rows(), seq=2, task="barrier")["type"] == "ack"
    assert stream.receive()["durable"] == seq
    assert stream.receive_until("done")["samples"] == 24


# -- refusals ----------------------------------------------------------------------------------------------------------


def nan_rows() -> dict[str, Any]:
    batch = rows()
    batch["x"][3, 2] = np.nan
    return batch


REFUSALS: dict[str, tuple[str, Callable[[int], dict[str, Any]]]] = {
    "a producer's number skipped": ("gap", lambda s: {"arrays": rows(), "seq": s + 5, "task": "r"}),
    "another task": ("task_mismatch", lambda s: {"arrays": rows(), "seq": s, "task": "other"}),
    "a closed task": ("task_closed", lambda s: {"arrays": rows(), "seq": s, "task": "closed-before"}),
    "a wrong width": ("bad_shape", lambda s: {"arrays": rows(width=5), "seq": s, "task": "r"}),
    "no rows": ("bad_shape", lambda s: {"arrays": rows(n=0), "seq": s, "task": "r"}),
    "uneven rows": (
        "bad_shape",
        lambda s: {"arrays": {"x": rows()["x"], "y": rows(n=3)["y"]}, "seq": s, "task": "r"},
    ),
    "a label out of range": (
        "bad_label",
        lambda s: {"arrays": {"x": rows()["x"], "y": np.full(8, 3, "<i8")}, "seq": s, "task": "r"},
    ),
    "real labels": (
        "bad_label",
        lambda s: {"arrays": {"x": rows()["x"], "y": np.ones(8, "<f4")}, "seq": s, "task": "r"},
    ),
    "a NaN": ("nonfinite", lambda s: {"arrays": nan_rows(), "seq": s, "task": "r"}),
    "integers for reals": (
        "bad_array",
        lambda s: {"arrays": {"x": np.ones((8, 4), "<i8"), "y": rows()["y"]}, "seq": s, "task": "r"},
    ),
    "an array missing": ("bad_array", lambda s: {"arrays": {"x": rows()["x"]}, "seq": s, "task": "r"}),
    "a dtype not carried": (
        "bad_array",
        lambda s: {"arrays": {"x": rows()["x"].astype("<c8"), "y": rows()["y"]}, "seq": s, "task": "r"},
    ),
    "a seq that is text": ("bad_header", lambda s: {"arrays": rows(), "seq": "1", "task": "r"}),
    "a task that is empty": ("bad_header", lambda s: {"arrays": rows(), "seq": s, "task": ""}),
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_bad_batch_is_refused_and_changes_nothing(daemon: LocalDaemon, stream: Any, what: str) -> None:
    code, make = REFUSALS[what]
    with daemon.admin() as admin:
        if not any(task["task"] == "closed-before" for task in admin.tasks()):
            admin.boundary(close_all(daemon, stream, "closed-before"))
        seq = open_task(daemon, stream, f"r-{stream.name}") if admin.status()["task"] is None else None
        seq = seq or use_open_task(daemon, stream)
        task = admin.status()["task"]
        admin.checkpoint()
        before, parameters = settled(admin), admin.parameters()
        fields = make(seq)
        if fields["task"] == "r":
            fields["task"] = task
        refused = stream.ask("batch", fields.pop("arrays"), **fields)
        assert (refused["type"], refused["code"]) == ("nack", code), refused
        assert refused["message"]
        assert refused["retryable"] is (code == "gap")
        after = admin.parameters()
        assert settled(admin) == before
        np.testing.assert_array_equal(after.theta, parameters.theta)
        np.testing.assert_array_equal(after.precision, parameters.precision)
    assert stream.ask("batch", rows(), seq=seq, task=task)["durable"] == seq  # the number may be used again


def close_all(daemon: LocalDaemon, stream: Any, task: str) -> str:
    stream.durable = open_task(daemon, stream, task) - 1
    return task


def use_open_task(daemon: LocalDaemon, stream: Any) -> int:
    return int(stream.ask("hello", producer=stream.name)["durable"]) + 1


def settled(admin: Any) -> dict[str, Any]:
    status = admin.status()
    return {k: status[k] for k in ("task", "batches_durable", "samples_seen", "tasks", "spool_bytes", "steps")}


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([b"\xc1garbage"], "bad_header"),
        ([msgpack.packb({"v": 2, "type": "hello", "producer": "a"})], "bad_header"),
        ([msgpack.packb({"v": 1, "type": "nonsense", "seq": 1})], "bad_header"),
        ([msgpack.packb({"v": 1, "type": "hello", "producer": "no spaces"})], "bad_header"),
        ([msgpack.packb({"v": 1, "type": "hello", "producer": "a", "pad": bytes(70_000)})], "too_large"),
        ([msgpack.packb({"v": 1, "type": "hello", "producer": "a"}), *[b"x"] * 20], "too_large"),
    ],
)
def test_an_unsound_message_is_refused(
    daemon: LocalDaemon, connect: Callable[..., Any], parts: list[bytes], code: str
) -> None:
    client = connect(daemon.endpoints["stream"])
    client.raw(*parts)
    assert client.receive()["code"] == code


def test_a_message_of_too_many_bytes_is_refused(daemon: LocalDaemon, stream: Any) -> None:
    limit = stream.ask("hello", producer=stream.name)["limits"]["message_bytes"]
    header = {"v": 1, "type": "batch", "seq": 1, "task": "r"}
    stream.raw(msgpack.packb(header), bytes(limit))
    assert stream.receive()["code"] == "too_large"


def test_a_batch_before_hello_is_refused(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    refused = connect(daemon.endpoints["stream"]).ask("batch", rows(), seq=1, task="r")
    assert (refused["code"], refused["seq"]) == ("not_ready", 1)


def test_an_older_epoch_is_refused_also_on_its_own_connection(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    old, new = (connect(daemon.endpoints["stream"]) for _ in range(2))
    assert old.ask("hello", producer="fenced", epoch=1)["type"] == "welcome"
    assert new.ask("hello", producer="fenced", epoch=2)["type"] == "welcome"
    assert old.ask("batch", rows(), seq=1, task="r")["code"] == "stale_epoch"
    assert old.ask("hello", producer="fenced", epoch=1)["code"] == "stale_epoch"


def test_the_newest_connection_speaks_for_a_producer(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    """What an older one still brings may bear a number that was refused there and is used again by now."""
    old, new = (connect(daemon.endpoints["stream"]) for _ in range(2))
    for client in (old, new):
        assert client.ask("hello", producer="moved", epoch=1)["type"] == "welcome"
    refused = old.ask("batch", rows(), seq=1, task="r")
    assert (refused["code"], refused["seq"], refused["retryable"]) == ("not_ready", 1, True)
    assert old.ask("hello", producer="moved", epoch=1)["type"] == "welcome"
    assert new.ask("batch", rows(), seq=1, task="r")["code"] == "not_ready"


def test_a_revisit_needs_factor_mode(daemon: LocalDaemon, stream: Any, connect: Callable[..., Any]) -> None:
    assert stream.ask("revisit", seq=stream.durable + 1, task="plain")["code"] == "not_in_factor_mode"
    answer = connect(daemon.endpoints["admin"]).ask("revisit", task="plain")
    assert (answer["type"], answer["code"]) == ("error", "not_in_factor_mode")


def test_a_boundary_of_a_task_never_seen_is_unknown(daemon: LocalDaemon, stream: Any) -> None:
    seq = use_open_task(daemon, stream)
    assert stream.ask("boundary", seq=seq, task="never")["code"] == "unknown_task"
    assert stream.ask("boundary", seq=seq, task="never", weight=float("nan"))["code"] == "bad_header"


def test_a_full_task_withholds_credit_until_it_is_closed(
    start: Callable[..., LocalDaemon], connect: Callable[..., Any]
) -> None:
    daemon = start({**SMALL, "stream": {"task_bytes": 4096}})
    client = connect(daemon.endpoints["stream"])
    client.ask("hello", producer="p")
    seq, ack = 1, {"credit": {"messages": 1}}
    while ack["credit"]["messages"]:
        ack = client.ask("batch", rows(), seq=seq, task="a")
        assert (ack["type"], ack["durable"]) == ("ack", seq)
        seq += 1
    refused = {"type": "ack"}
    while refused["type"] == "ack":
        refused = client.ask("batch", rows(), seq=seq, task="a")
        seq += refused["type"] == "ack"
    assert (refused["code"], refused["retryable"]) == ("no_credit", True)
    client.send("boundary", seq=seq, task="a")
    assert client.receive_until("done")["samples"] == 8 * (seq - 1)
    assert client.ask("hello", producer="p")["credit"]["messages"] == 16


def test_a_model_that_does_not_fit_is_refused_before_anything_is_stored(
    start: Callable[..., LocalDaemon], connect: Callable[..., Any]
) -> None:
    daemon = start({"model": {"factory": "streamcl.models:convnet"}})
    client = connect(daemon.endpoints["stream"])
    client.ask("hello", producer="p")
    refused = client.ask("batch", rows(), seq=1, task="a")
    assert refused["code"] == "bad_shape"
    assert "[C, H, W]" in refused["message"]
    images = {"x": np.ones((4, 8, 8), "<f4"), "y": np.zeros(4, "<i8")}
    assert client.ask("batch", images, seq=1, task="a")["durable"] == 1


def test_a_full_disk_refuses_and_recovers_by_itself(start: Callable[..., LocalDaemon], connect: Callable[..., Any]) -> None:
    """The log may not grow (a file-size limit stands in for the disk's end); what was stored before stays."""
    daemon = start(SMALL)
    client = connect(daemon.endpoints["stream"])
    client.ask("hello", producer="p")
    client.ask("batch", rows(), seq=1, task="a")
    ingest = process_of(daemon, "ingest")
    (segment,) = (daemon.state_dir / "log").glob("*.seg")
    before = segment.read_bytes()
    resource.prlimit(ingest, resource.RLIMIT_FSIZE, (len(before) + 100, resource.RLIM_INFINITY))
    refused = client.ask("batch", rows(n=64), seq=2, task="a")
    assert (refused["type"], refused["code"], refused["retryable"]) == ("nack", "no_space", True)
    assert segment.read_bytes() == before
    assert client.ask("hello", producer="p")["credit"]["messages"] == 0
    with pytest.raises(urllib.error.HTTPError) as red:
        urllib.request.urlopen(daemon.url("/readyz"), timeout=60)
    assert b"full" in red.value.read()
    resource.prlimit(ingest, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    offered = client.receive()  # unasked, once there is room again
    assert (offered["type"], offered["credit"]["messages"]) == ("ack", SMALL["stream"]["credit"])
    with urllib.request.urlopen(daemon.url("/readyz"), timeout=60) as answer:
        assert answer.status == 200
    assert client.ask("batch", rows(n=64), seq=2, task="a")["durable"] == 2
    client.send("boundary", seq=3, task="a")
    assert client.receive_until("done")["samples"] == 72


def process_of(daemon: LocalDaemon, role: str) -> int:
    """The pid of one of the daemon's processes."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            arguments = path.read_bytes().split(b"\0")
            parent = int(path.with_name("stat").read_text().rpartition(")")[2].split()[1])
            if role.encode() in arguments and daemon.process is not None and parent == daemon.process.pid:
                return int(path.parent.name)
    raise AssertionError(f"no {role} process")


def test_a_defect_of_ours_is_answered_and_ends_nothing(
    tmp_path: Path, connect: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception that nobody foresaw, in the real ingest loop behind its real socket."""
    (up, supervisor), (side, trainer) = Channel.pair(), Channel.pair()
    settings = from_tree({"state_dir": str(tmp_path / "state"), "endpoints": FREE_ENDPOINTS})
    ingest = start_ingest(settings, Channel(up), Channel(side))
    try:
        client = connect(ingest.stream.endpoint)
        client.send("hello", producer="p")
        ingest.turn()
        assert client.receive()["type"] == "welcome"
        with monkeypatch.context() as broken:
            broken.setattr(Producers, "is_duplicate", lambda *_: 1 / 0)
            client.send("batch", rows(), seq=1, task="a", id=9)
            ingest.turn()
        answer = client.receive()
        assert (answer["type"], answer["code"], answer["id"], answer["seq"]) == ("nack", "internal", 9, 1)
        assert "ZeroDivisionError" in answer["message"]
        ingest.ingest.stream.trials.accepted = Signature((4,), False, ())
        client.send("batch", rows(), seq=1, task="a")
        ingest.turn()
        assert client.receive()["durable"] == 1
    finally:
        for end in (supervisor, trainer):
            end.close()
        ingest.close()


# -- predict -----------------------------------------------------------------------------------------------------------


def test_predictions_are_probabilities_of_a_version(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    client = connect(daemon.endpoints["predict"])
    for samples in ({}, {"samples": 3}):
        answer = client.ask("predict", {"x": rows(n=5)["x"]}, id="me", **samples)
        assert (answer["type"], answer["id"]) == ("prediction", "me")
        assert answer["version"] >= 0
        probs = client.arrays(answer)["probs"]
        assert probs.shape == (5, 3)
        np.testing.assert_allclose(probs.sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("arrays", "fields", "code"),
    [
        ({"x": np.ones((2, 9), "<f4")}, {}, "bad_shape"),
        ({"x": np.ones((0, 4), "<f4")}, {}, "bad_shape"),
        ({"x": np.full((2, 4), np.inf, "<f4")}, {}, "nonfinite"),
        ({}, {}, "bad_array"),
        ({"x": np.ones((2, 4), "<f4")}, {"samples": -1}, "bad_header"),
    ],
)
def test_a_bad_question_gets_an_error(
    daemon: LocalDaemon, connect: Callable[..., Any], arrays: Any, fields: Any, code: str
) -> None:
    answer = connect(daemon.endpoints["predict"]).ask("predict", arrays, id=1, **fields)
    assert (answer["type"], answer["code"], answer["id"]) == ("error", code, 1)


def test_there_is_nothing_to_predict_before_the_first_batch(
    start: Callable[..., LocalDaemon], connect: Callable[..., Any]
) -> None:
    daemon = start(SMALL)
    assert connect(daemon.endpoints["predict"]).ask("predict", {"x": rows()["x"]})["code"] == "not_ready"
    assert connect(daemon.endpoints["admin"]).ask("parameters")["code"] == "not_ready"


# -- admin and HTTP ----------------------------------------------------------------------------------------------------

STATUS = {
    "version",
    "state",
    "task",
    "mode",
    "samples_seen",
    "batches_durable",
    "batches_applied",
    "parameters",
    "tasks",
    "uptime_seconds",
    "spool_bytes",
    "device",
    "workers",
}
METRICS = [
    "samples_trained_total",
    "batches_rejected_total",
    "duplicates_total",
    "boundaries_total",
    "revisits_total",
    "drift_detected_total",
    "train_loss",
    "prequential_accuracy_ratio",
    "spool_bytes",
    "applied_lag_batches",
    "trainer_up",
    "build_info",
    "batches_received_total",
    "ack_latency_seconds_count",
    "fsync_duration_seconds_count",
    "train_step_duration_seconds_count",
    "consolidation_duration_seconds_count",
    "checkpoint_duration_seconds_count",
    "checkpoint_last_success_timestamp_seconds",
]


def test_status_has_the_fields_of_the_contract(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    status = connect(daemon.endpoints["admin"]).ask("status", id=5)
    assert status["type"] == "ok"
    assert set(status) >= STATUS
    assert status["state"] in ("idle", "training", "consolidating", "paused", "recovering")
    with urllib.request.urlopen(daemon.url("/status")) as answer:
        assert set(json.load(answer)) >= STATUS


def test_tasks_have_the_fields_of_the_contract(daemon: LocalDaemon, stream: Any) -> None:
    open_task(daemon, stream, "listed")
    with daemon.admin() as admin:
        admin.boundary("listed", weight=2.0)
        (task,) = [task for task in admin.tasks() if task["task"] == "listed"]
    assert {k: task[k] for k in ("samples", "weight", "revisits")} == {
        "samples": 8,
        "weight": 2.0,
        "revisits": 0,
    }
    assert set(task) == {
        "task",
        "samples",
        "weight",
        "loss",
        "revisits",
        "penalty",
        "state",
        "set_aside",
        "penalty_rise",
        "rise_bound",
        "chance",
        "at_chance",
        "closed_at",
    }


def test_metrics_have_the_names_of_the_contract(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    refused = connect(daemon.endpoints["stream"]).ask("batch", seq=1, task="r")
    assert refused["type"] == "nack"  # of which there is a count by code, from the first on
    with urllib.request.urlopen(daemon.url("/metrics")) as answer:
        text = answer.read().decode()
    samples = {s.name for family in text_string_to_metric_families(text) for s in family.samples}
    assert {f"streamcl_{name}" for name in METRICS} <= samples
    answer = connect(daemon.endpoints["admin"]).ask("metrics")
    assert answer["type"] == "ok"
    assert answer["streamcl_trainer_up"] == 1.0


def test_http_answers_get_and_changes_nothing(daemon: LocalDaemon) -> None:
    for path, kind in (("/healthz", "text/plain"), ("/readyz", "text/plain"), ("/", "text/html")):
        with urllib.request.urlopen(daemon.url(path)) as answer:
            assert answer.status == 200
            assert answer.headers["Content-Type"].startswith(kind)
    for request in (
        urllib.request.Request(daemon.url("/nothing")),
        urllib.request.Request(daemon.url("/status"), data=b"x", method="POST"),
    ):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(request)


@pytest.mark.parametrize(
    ("kind", "fields", "code"),
    [
        ("nonsense", {}, "bad_header"),
        ("boundary", {"task": "never"}, "unknown_task"),
        ("boundary", {}, "bad_header"),
        ("boundary", {"task": "plain-closed"}, "task_closed"),
        ("stop", {"drain": "perhaps"}, "bad_header"),
    ],
)
def test_a_bad_request_gets_an_error(
    daemon: LocalDaemon, stream: Any, connect: Callable[..., Any], kind: str, fields: Any, code: str
) -> None:
    client = connect(daemon.endpoints["admin"])
    if code == "task_closed":
        open_task(daemon, stream, "plain-closed")
        assert client.ask("boundary", task="plain-closed")["type"] == "ok"
    answer = client.ask(kind, id="x", **fields)
    assert (answer["type"], answer["code"], answer["id"]) == ("error", code, "x")


def test_parameters_are_flat_float64_vectors_with_their_layout(daemon: LocalDaemon, connect: Callable[..., Any]) -> None:
    client = connect(daemon.endpoints["admin"])
    answer = client.ask("parameters")
    arrays = client.arrays(answer)
    sizes = [int(np.prod(shape)) for shape in answer["shapes"]]
    assert list(arrays) == ["theta", "precision", "shift"]
    assert {array.dtype.str for array in arrays.values()} == {"<f8"}
    assert {len(array) for array in arrays.values()} == {sum(sizes)}
    assert len(answer["names"]) == len(sizes)
    assert (arrays["precision"] >= 1.0).all()


def test_while_paused_data_is_taken_in_and_not_trained_on(daemon: LocalDaemon, stream: Any) -> None:
    with daemon.admin() as admin:
        seq = open_task(daemon, stream, "paused")
        admin.checkpoint()
        admin.pause()
        trained = admin.status()["steps"]
        for number in range(seq, seq + 3):
            assert stream.ask("batch", rows(), seq=number, task="paused")["durable"] == number
        assert admin.status()["state"] == "paused"
        admin.checkpoint()
        assert admin.status()["steps"] == trained
        admin.resume()
        assert admin.boundary("paused")["samples"] == 32


def test_a_daemon_without_configuration_learns_its_shapes_from_the_first_batch(
    start: Callable[..., LocalDaemon], tmp_path: Path
) -> None:
    daemon = start({})
    with daemon.producer() as producer, daemon.reader() as reader, daemon.admin() as admin:
        producer.send(RNG.normal(size=(20, 2, 3)), np.arange(20) % 10, "first")
        assert producer.boundary("first")["samples"] == 20
        assert reader.predict(np.zeros((1, 2, 3))).probs.shape == (1, 10)
        assert admin.status()["parameters"] == (6 + 1) * 256 + 257 * 256 + 257 * 10
    assert not (tmp_path / "state" / "log").glob("*.seg") or not list((tmp_path / "state" / "log").glob("*.seg"))


@pytest.mark.parametrize("how", [{}, {"samples": 3}, {"uncertainty": True}])
def test_what_is_no_number_is_no_prediction(daemon: LocalDaemon, connect: Callable[..., Any], how: dict[str, Any]) -> None:
    x = rows(n=8)["x"].astype("<f8")
    x[7] = 1e300
    answer = connect(daemon.endpoints["predict"]).ask("predict", {"x": x}, **how)
    assert (answer["type"], answer["code"]) == ("error", "nonfinite")
