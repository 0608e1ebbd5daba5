"""What the HTTP port shows: status, overview, history; and /metrics as Prometheus itself reads it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from waiting import PATIENCE, until

from streamcl.bench.local import LocalDaemon

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
TASKS = ("a", "b", "c")


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalDaemon]:
    tree = {
        "model": {"factory": "streamcl.models:linear", "classes": 3},
        "train": {"epochs": 1},
        "posterior": {"mode": "factors"},
    }
    with LocalDaemon(tree, tmp_path_factory.mktemp("shown") / "state") as made:
        rng = np.random.default_rng(0)
        with made.producer("camera") as camera, made.producer("lidar") as lidar:
            for task in TASKS:
                for producer in (camera, lidar):
                    producer.send(rng.normal(size=(30, 4)), rng.integers(0, 3, 30), task)
                    producer.flush()
                camera.boundary(task)
        yield made


def get(daemon: LocalDaemon, path: str, accept: str = "*/*") -> tuple[int, str, str]:
    request = urllib.request.Request(daemon.url(path), headers={"Accept": accept})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers["Content-Type"], error.read().decode()


def test_the_overview_has_tasks_and_producers(daemon: LocalDaemon) -> None:
    overview = json.loads(get(daemon, "/overview")[2])
    assert [task["task"] for task in overview["tasks"]] == list(TASKS)
    assert (overview["tasks_total"], overview["producers_total"]) == (3, 2)
    assert {p["producer"]: p["durable"] for p in overview["producers"]} == {"camera": 6, "lidar": 3}


def test_the_history_has_series_rises_and_events_for_the_time_asked_for(daemon: LocalDaemon) -> None:
    until(lambda: sum(json.loads(get(daemon, "/history?seconds=0")[2])["samples"]["rows"]) == 180)
    history = json.loads(get(daemon, "/history?seconds=0")[2])
    lengths = {name: len(column) for name, column in history["samples"].items()}
    assert len(set(lengths.values())) == 1
    assert sum(history["samples"]["rows"]) == 180
    assert {row["task"] for row in history["penalties"]} == set(TASKS)
    assert [change["task"] for change in history["changes"]] == list(TASKS)
    kinds = [event["kind"] for event in history["events"]]
    assert kinds.count("boundary") == 3
    assert kinds[-1] == "started"
    recent = json.loads(get(daemon, "/history?seconds=1")[2])
    assert len(recent["samples"]["time"]) <= 2
    assert recent["now"] - recent["since"] == pytest.approx(1.0)


@pytest.mark.parametrize("query", ["seconds=soon", "seconds=-1", "seconds=nan", "seconds=inf", "seconds=1e300"])
def test_a_time_that_is_none_is_refused_in_words(daemon: LocalDaemon, query: str) -> None:
    status, _, text = get(daemon, f"/history?{query}")
    assert status == 400
    assert "seconds: expected a number from 0 (all)" in text


def test_the_status_over_http_is_the_operators(daemon: LocalDaemon) -> None:
    shown = json.loads(get(daemon, "/status")[2])
    with daemon.admin() as admin:
        asked = admin.status()
        producers = admin.producers()
    assert set(shown) <= set(asked)
    assert (shown["tasks"], shown["samples_seen"], shown["producers_total"]) == (3, 180, 2)
    assert shown["credit"]["messages"] == 16
    assert shown["task_bytes"] == {"used": 0, "budget": 8589934592}
    assert sorted(producer["producer"] for producer in producers) == ["camera", "lidar"]
    assert all(producer["age_seconds"] >= 0 for producer in producers)


def test_promtool_finds_nothing_to_complain_of_in_the_metrics(daemon: LocalDaemon) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        if os.environ.get("STREAMCL_CHECKERS"):
            pytest.fail("promtool is missing: `sh deploy/ci-tools` installs prometheus")
        pytest.skip("promtool is not installed (Debian: prometheus)")
    text = get(daemon, "/metrics")[2]
    done = subprocess.run(
        [promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=120, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_exposition_is_what_prometheus_parses(daemon: LocalDaemon) -> None:
    status, kind, text = get(daemon, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    families = {family.name: family for family in prometheus(text)}
    assert families["streamcl_boundaries"].samples[0].value == 3
    assert {s.labels["task"] for s in families["streamcl_task_penalty"].samples} == set(TASKS)
    assert "# {" not in text
    for family in families.values():
        if family.type == "histogram":
            buckets = [s.value for s in family.samples if s.name.endswith("_bucket")]
            assert buckets == sorted(buckets)


def test_openmetrics_are_given_to_who_asks_and_name_the_slow_task(daemon: LocalDaemon) -> None:
    status, kind, text = get(daemon, "/metrics", OPENMETRICS)
    assert status == 200
    assert kind.startswith("application/openmetrics-text")
    families = {family.name: family for family in openmetrics(text)}
    buckets = families["streamcl_consolidation_duration_seconds"].samples
    named = {sample.exemplar.labels["task"] for sample in buckets if sample.exemplar}
    assert named
    assert named <= set(TASKS)
