"""`streamcl plan --parameters`: its arithmetic by hand, against what a learner holds, and against what was measured."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from streamcl import scale
from streamcl.bench import ranks_model
from streamcl.cli import main
from streamcl.config import from_tree
from streamcl.core import basis
from streamcl.daemon import commit, trainer
from streamcl.estimator import Learner
from streamcl.learning import curvature
from streamcl.learning import plan as planned
from streamcl.scale import Device, Machine, Side, Times, Work

DOCS = Path(scale.__file__).parent / "docs"
WIDE = 300  # enough parameters that no copies learn at rates of their own
TOY = Device("toy", {"float32": 100.0, "float64": 50.0}, 0.5, 1e6, 10.0, (4.0, 2.0), 0.25, 0.0, 4, 1e7, 8.0, 6.0)
PLAIN = Work(
    parameters=100,
    width=10,
    step_rows=8,
    task_rows=16,
    row_bytes=2.0,
    epochs=3,
    cotangents=2,
    curvature="diagonal",
    averaged=False,
    middle=False,
)


def machine(devices: int = 1, **changed: Any) -> Machine:
    return Machine.of(replace(TOY, **changed), "float32", devices)


# -- the same as elsewhere ---------------------------------------------------------------------------------------------


def test_its_constants_are_those_of_the_code_that_does_it() -> None:
    here = (scale.LEAST_LEADING, scale.LEADING, scale.WORTH_LEADING, scale.WIDEST, scale.MOST_WIDE, scale.OVERSAMPLED)
    assert here == (
        basis.LEAST_LEADING,
        basis.LEADING,
        basis.WORTH_LEADING,
        basis.WIDEST,
        basis.MOST_WIDE,
        basis.OVERSAMPLED,
    )
    draws = (scale.DRAWS, scale.DRAW_ROWS, scale.ROUNDS, scale.BLOCK_ROWS)
    assert draws == (curvature.DRAWS, curvature.DRAW_ROWS, curvature.ROUNDS, curvature.ROWS)
    assert scale.SKETCHED == curvature.SKETCHED
    assert (scale.MASTER_BYTES, scale.EIGEN) == (planned.POSTERIOR_BYTES, planned.EIGEN)
    assert scale.CHECKPOINT_SECONDS == trainer.CHECKPOINT_SECONDS


@pytest.mark.parametrize("entries", [64, 191, 192, 448, 1024, 4096, 4097, 10_240])
def test_a_side_takes_what_the_plan_of_a_model_says(entries: int) -> None:
    wide = basis.is_wide(entries, entries)
    leading = basis.wide_leading(entries) if wide else basis.leading(entries)
    known, side = planned.Width(entries, leading, wide=wide), Side(entries)
    assert (side.wide, side.leading, side.numbers, side.row) == (wide, leading, known.numbers, known.row)
    assert side.sums == entries * basis.sketch_shape(entries, entries)[1]


def learner(
    kind: str, expectation: str = "posterior", optimizer: str = "adam", classes: int = WIDE
) -> tuple[Learner, Work]:
    """With a second task open, of a network of two layers that are nearly square; and what stands for it.

    classes: with fewer, of a small third layer too.
    """
    tree = {
        "model": {"classes": classes, "args": {"hidden": [WIDE] if classes == WIDE else [WIDE, WIDE]}},
        "train": {"epochs": 1, "optimizer": optimizer, "device": "cpu"},
        "posterior": {"curvature": kind, "expectation": expectation, "fisher": "mc"},
    }
    x, y = np.random.default_rng(0).normal(size=(64, WIDE - 1)).astype("float32"), np.arange(64) % classes
    found = Learner(tree)
    found.observe(x, y, task="a")
    found.boundary("a")
    found.observe(x, y, task="b")
    model, settings = found._learner.model, from_tree(tree)
    assert model is not None
    work = Work(
        parameters=model.network.parameters.size,
        width=WIDE,
        step_rows=64,
        task_rows=64,
        row_bytes=4.0 * WIDE,
        epochs=1,
        cotangents=1,
        curvature=kind,  # type: ignore[arg-type]
        averaged=expectation == "posterior",
        middle=settings.posterior.keeps_middle,
        optimizer=optimizer,  # type: ignore[arg-type]
    )
    return found, work


def held(least: int) -> int:
    """Bytes of tensors that anything refers to; of at least so many."""
    gc.collect()
    tensors = [each for each in gc.get_objects() if type(each) in (torch.Tensor, torch.nn.Parameter)]
    storages = {each.untyped_storage().data_ptr(): each.untyped_storage().nbytes() for each in tensors}
    return sum(size for size in storages.values() if size >= least)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expectation", "optimizer"),
    [
        ("diagonal", "posterior", "adam"),
        ("diagonal", "mode", "adam"),
        ("diagonal", "posterior", "sgd"),
        ("auto", "posterior", "adam"),
        ("auto", "posterior", "sgd"),
    ],
)
def test_the_memory_is_what_a_learner_holds(kind: str, expectation: str, optimizer: str) -> None:
    before = held(20_000)
    found, work = learner(kind, expectation, optimizer)
    need = scale.memory(work, 1)
    expected = sum(need.device.values()) - need.activations + need.host
    assert held(20_000) - before == pytest.approx(expected, rel=0.05)
    assert found.tasks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "expectation"), [("diagonal", "posterior"), ("diagonal", "mode"), ("auto", "posterior"), ("auto", "mode")]
)
def test_the_memory_of_a_boundary_is_what_it_takes_at_most(kind: str, expectation: str) -> None:
    found, work = learner(kind, expectation, classes=10)
    gc.collect()  # what earlier tests have left is not let go of meanwhile
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as watched:
        found.boundary("b")
    events = watched.profiler.kineto_results.events()  # type: ignore[union-attr]
    taken = [each for each in events if each.name() == "[memory]"]
    sizes = [each.nbytes() for each in sorted(taken, key=lambda each: each.start_ns())]
    need = scale.memory(work, 1)
    assert max(np.cumsum(sizes)) == pytest.approx(need.boundary + need.host_boundary, rel=0.3)


@pytest.mark.parametrize("expectation", ["posterior", pytest.param("mode", marks=pytest.mark.campaign)])
@pytest.mark.parametrize("kind", [pytest.param("diagonal", marks=pytest.mark.campaign), "auto"])
@pytest.mark.campaign
def test_the_plan_of_a_model_counts_a_copy_and_a_boundary_alike(kind: str, expectation: str) -> None:
    found, work = learner(kind, expectation)
    x, y = np.random.default_rng(0).normal(size=(64, WIDE - 1)).astype("float32"), np.arange(64) % WIDE
    taken, need = planned.plan(found.config, x, y, 64).memory, scale.memory(work, 1)
    assert taken.copy == pytest.approx(need.copied, rel=0.02)
    assert taken.boundary == pytest.approx(need.boundary + need.host_boundary, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diagonal", "auto"])
def test_a_checkpoint_has_the_size_of_what_is_saved(kind: str) -> None:
    found, work = learner(kind)
    _, arrays = found._learner.snapshot()
    assert sum(array.nbytes for array in arrays.values()) == pytest.approx(scale.checkpoint_bytes(work, True), rel=0.02)
    copied = {name: array for name, array in arrays.items() if not name.startswith(commit.REPLACED)}
    assert sum(array.nbytes for array in copied.values()) == pytest.approx(scale.copied_bytes(work), rel=0.05)
    found.boundary("b")
    _, arrays = found._learner.snapshot()
    assert sum(array.nbytes for array in arrays.values()) == pytest.approx(scale.checkpoint_bytes(work), rel=0.02)


@pytest.mark.parametrize("kind", ["diagonal", "auto"])
def test_operations_are_those_that_the_plan_of_a_model_counts(kind: str) -> None:
    settings = from_tree(
        {
            "model": {"classes": WIDE, "args": {"hidden": [WIDE, WIDE]}},
            "posterior": {"curvature": kind, "fisher": "mc"},
            "train": {"device": "cpu"},
        }
    )
    known = planned.plan(settings, *planned.noise([WIDE - 1], False, settings), 2000)
    counted = replace(TOY, utilisation=1.0, bytes_per_second=1e30, flops={"float32": 1.0, "float64": 1.0})
    work = Work(known.parameters, WIDE, 64, 2000, 4.0 * WIDE, 5, 1, curvature=kind)  # type: ignore[arg-type]
    alone = Machine.of(counted, "float32", 1)
    epoch = 6 * work.parameters * work.task_rows
    for rounds, boundary in zip(scale.ROUNDS, known.cost.boundary, strict=True):
        # there the first layer's backward pass has no inputs to go to, so that a plain epoch is less
        assert scale.curvature(work, alone, 1, rounds).seconds / epoch == pytest.approx(boundary, rel=0.15)
    assert known.cost.step is not None
    step = scale.step(work, alone, 1).seconds / (6 * work.parameters * 64)
    assert step == pytest.approx(known.cost.step, abs=0.15)  # the first layer's rows are turned once for all epochs


# -- by hand -----------------------------------------------------------------------------------------------------------


def test_a_ring_takes_two_rounds_of_all_but_one() -> None:
    assert machine().all_reduce_seconds(400, 1) == 0
    assert machine(4).all_reduce_seconds(400, 4) == pytest.approx(2 * 3 / 4 * 400 / 4 + 6 * 0.25)
    assert machine(8).all_reduce_seconds(400, 8) == pytest.approx(2 * 7 / 8 * 400 / 2 + 14 * 0.25)


def test_a_step_is_products_or_traffic_then_vectors_then_the_sum() -> None:
    alone = scale.step(PLAIN, machine(), 1)
    assert scale.COMPUTE not in alone.parts  # 6 * 100 * 8 / 50 = 96 s, beside 6 * 400 / 10 = 240 s
    assert alone.parts[scale.BANDWIDTH] == pytest.approx(240 + 11 * 400 / 10)
    used = replace(PLAIN, uses=10)
    assert scale.step(used, machine(), 1).parts[scale.COMPUTE] == pytest.approx(960)
    three = scale.step(used, machine(3), 3)
    assert three.parts[scale.COMPUTE] == pytest.approx(6 * 100 * 3 * 10 / 50)  # the one with the most rows has 3 of 8
    assert three.parts[scale.LINK] == pytest.approx(2 * 2 / 3 * 400 / 4 + 4 * 0.25)
    assert three.seconds == pytest.approx(360 + 440 + 2 * 2 / 3 * 100 + 1)


def test_while_rows_arrive_losses_are_put_together_too() -> None:
    arriving, once = (scale.step(PLAIN, machine(4), 4, each).parts[scale.LINK] for each in (True, False))
    assert arriving - once == pytest.approx(2 * machine(4).all_reduce_seconds(4 * 8, 4))


def test_curvature_is_one_pass_or_two_with_draws_of_their_own() -> None:
    fast = machine(bytes_per_second=1e30)
    check = 39 * 400 / 10  # of vectors, beside products of 192 s, and 3 * 400 + 1,600 bytes for the one block
    assert scale.curvature(PLAIN, machine(), 1).parts[scale.BANDWIDTH] == pytest.approx(check + (1200 + 1600) / 10)
    plain = scale.curvature(PLAIN, fast, 1)
    assert plain.seconds == pytest.approx(2 * 100 * (1 + 2) * 16 / 50)
    averaged = scale.curvature(replace(PLAIN, averaged=True), fast, 1, rounds=4)
    assert averaged.seconds == pytest.approx(plain.seconds + 12 * 2 * 100 * 2 * 16 / 50)
    turned = scale.curvature(replace(PLAIN, curvature="auto"), fast, 1)
    row = 2 * 100 * (1 + 2) + 2 * 100 * (2 + 1)
    assert turned.seconds == pytest.approx(2 * row * 16 / 50 + 9 * 2 * 10**3 / 25)


def test_the_sums_of_curvature_have_64_bits() -> None:
    one = machine(4).all_reduce_seconds(800, 4)
    assert scale.curvature(PLAIN, machine(4), 4).parts[scale.LINK] == pytest.approx(one)
    averaged = scale.curvature(replace(PLAIN, averaged=True), machine(4), 4, rounds=4)
    assert averaged.parts[scale.LINK] == pytest.approx(13 * one)


def test_memory_of_the_note_s_diagonal_by_hand() -> None:
    need = scale.memory(PLAIN, 2)
    assert {name: value for name, value in need.device.items() if value} == {
        "parameters": 400,
        "gradient": 400,
        "moments": 800,
        "penalty": 1200,
        "activations": 4 * 4 * 2 * 10,
    }
    assert (need.host, need.copied, need.boundary, need.host_boundary) == (1600, 1200, 1600, 5600)
    assert need.on_host == 1600 + 1200 + 5600
    assert need.needed(apart=True) == 2800 + 320 + 1600
    assert need.sharded(2, apart=True) == (2800 + 1600) / 2 + 800 + 320


def test_a_checkpoint_is_written_and_read_back() -> None:
    assert scale.checkpoint_bytes(PLAIN) == 100 * (4 + 16)
    assert scale.checkpoint_bytes(PLAIN, task_open=True) == 100 * (4 + 16 + 8)
    assert scale.checkpoint_bytes(replace(PLAIN, middle=True)) == 100 * (4 + 24)
    assert scale.checkpoint_seconds(TOY, 2000) == 500
    assert scale.factor_bytes(PLAIN) == 1600


def test_rows_come_in_as_fast_as_the_slowest_lets_them() -> None:
    def rows(devices: int = 1, **changed: Any) -> float:
        return scale.ingest_rows_per_second(PLAIN, machine(devices, **changed), devices)

    assert rows() == 8.0 / 2 / 2  # the disk's, written and read once
    assert rows(8) == 8.0 / 3 / 2  # read by two machines
    assert rows(network_bytes_per_second=1.0) == 1.0 / 2
    fast = {"disk_bytes_per_second": 1e30, "network_bytes_per_second": 1e30}
    assert rows(**fast) == scale.INGEST_BYTES / 2 if scale.INGEST_BYTES / 2 < scale.INGEST_ROWS else scale.INGEST_ROWS


def test_several_on_the_same_processors_divide_only_the_rows() -> None:
    assert scale.shared(8.0, 1.0, 4) == 12.0
    assert scale.shared(8.0, 1.0, 4, gain=4) == 3.0


def test_widths_are_those_of_known_transformers() -> None:
    assert scale.usual_width(6.7e9) == pytest.approx(4096, rel=0.04)
    assert scale.usual_width(175e9) == 12_288


# -- what follows ------------------------------------------------------------------------------------------------------

H100 = scale.DEVICES["h100"]


def estimates(work: Work, devices: Sequence[int], device: Device = H100) -> list[scale.Estimate]:
    return list(scale.estimates(work, device, "float32", devices))


@pytest.mark.parametrize("size", [1e7, 1e8, 7e9, 1e11])
@pytest.mark.parametrize("kind", ["auto", "diagonal"])
def test_more_devices_take_less_compute_and_no_less_link(size: float, kind: Any) -> None:
    work = Work(size, scale.usual_width(size), 4096, 1e7, 3144, 5, 9, uses=64, curvature=kind)
    every = estimates(work, [2**k for k in range(11)])
    for fewer, more in pairwise(every):
        assert more.memory.needed(True) <= fewer.memory.needed(True)
        assert more.sharded_bytes < fewer.sharded_bytes
        assert more.step.parts.get(scale.COMPUTE, 0) <= fewer.step.parts.get(scale.COMPUTE, 0) or (
            scale.COMPUTE not in fewer.step.parts
        )
        assert more.step.parts[scale.LINK] > fewer.step.parts[scale.LINK]
        assert more.ingest_rows_per_second <= fewer.ingest_rows_per_second


@pytest.mark.parametrize("kind", ["auto", "diagonal"])
def test_more_parameters_take_more_of_everything(kind: Any) -> None:
    sizes = [1e7 * 10 ** (k / 4) for k in range(17)]
    works = [Work(size, 1024, 4096, 1e7, 3144, 5, 9, curvature=kind) for size in sizes]
    every = [estimates(work, [8])[0] for work in works]
    for less, more in pairwise(every):
        assert more.memory.needed(True) > less.memory.needed(True)
        assert more.step.seconds > less.step.seconds
        assert more.consolidation_seconds > less.consolidation_seconds
        assert more.checkpoint_seconds > less.checkpoint_seconds
        assert more.trained_rows_per_second < less.trained_rows_per_second
    assert every[0].fits
    assert not every[-1].fits


SMALL = Work(1e8, 1024, 4096, 1e7, 3144, 5, 9, curvature="diagonal")


@pytest.mark.parametrize(
    ("name", "work", "changed", "devices"),
    [
        (scale.COMPUTE, replace(SMALL, uses=16), {}, 1),
        (scale.BANDWIDTH, replace(SMALL, step_rows=32), {"launch_seconds": 0.0}, 1),
        (scale.LAUNCHES, replace(SMALL, step_rows=32), {"launch_seconds": 1.0}, 1),
        (scale.LINK, SMALL, {"link_bytes_per_second": (1e8, 1e8)}, 8),
        (scale.DISK, replace(SMALL, task_rows=1000), {"disk_bytes_per_second": 1e5}, 1),
        (scale.INGEST, SMALL, {"network_bytes_per_second": 1e5}, 1),
        (scale.TOO_LARGE, replace(SMALL, parameters=1e11), {}, 1024),
        (scale.TOO_LARGE, SMALL, {"host_bytes": 1e9}, 8),
    ],
)
def test_the_bottleneck_is_named(name: str, work: Work, changed: dict[str, Any], devices: int) -> None:
    (found,) = estimates(work, [devices], replace(H100, **changed))
    assert found.bottleneck == name
    assert found.share == max(found.task.parts.values()) / sum(found.task.parts.values())


def test_the_largest_that_fits_does_and_the_next_does_not() -> None:
    alone = Machine.of(H100, "float32", 1)
    most = scale.largest(SMALL, alone, 1, lambda _: 1024)
    assert scale.fits(replace(SMALL, parameters=most), alone, 1)
    assert not scale.fits(replace(SMALL, parameters=most * 1.011), alone, 1)


def test_sharded_it_fits_from_so_many_devices_on() -> None:
    work = replace(SMALL, parameters=7e9)
    count = scale.devices_if_sharded(work, H100)
    assert count is not None
    assert scale.would_fit(work, H100, count)
    assert not scale.would_fit(work, H100, count - 1)
    assert scale.devices_if_sharded(replace(work, width=120_000), H100) is None  # one layer alone is too large


def test_times_add_up() -> None:
    found = Times({"a": 1.0}).plus(Times({"a": 1.0, "b": 2.0}), 3)
    assert found.parts == {"a": 4.0, "b": 6.0}
    assert found.seconds == 10.0


# -- against what was measured -----------------------------------------------------------------------------------------


def measured() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(ranks_model.FIGURES.read_text())
    return found


def test_what_was_measured_is_what_was_predicted_within_a_factor() -> None:
    found = list(ranks_model.compared(measured()))
    assert {row.processes for row in found} >= {2}
    for row in found:
        for predicted, taken in (row.step, row.fisher):
            assert 1 / ranks_model.WITHIN < predicted / taken < ranks_model.WITHIN, row


def test_the_table_of_the_documentation_is_that_of_the_figures() -> None:
    assert "\n".join(ranks_model.table(measured())) in (DOCS / "benchmarks.md").read_text()


def test_what_several_processes_take_follows_from_one_by_hand() -> None:
    alone = {"network": "n", "parameters": 4_000_000, "processes": 1, "step_ms": 100.0, "fisher_seconds": 2.0}
    replicated = 11 * 4 * 4e6 / 16e9  # of 0.1 s, by both processors
    step, fisher = ranks_model.predicted(alone, 4, 0.03, 2)
    assert step == pytest.approx(0.1 + 3 * replicated + 0.03)
    own = (39 * 4 + 24) * 4e6 / 8e9 / 2
    assert fisher == pytest.approx(2.06 + 3 * own)


# -- the command -------------------------------------------------------------------------------------------------------


def asked(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
    assert main(["plan", "--parameters", *options, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_command_prints_a_table_with_a_bottleneck_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--parameters", "7B", "--devices", "1,8,64,1024", "--rows", "1M"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("memory: does not fit") == 4
    assert "7,000,000,000 parameters" in printed
    assert "that is not built" in printed
    assert main(["plan", "--parameters", "10M", "--devices", "1", "--rows-per-step", "1024", "--uses", "64"]) == 0
    printed = capsys.readouterr().out
    assert "compute (" in printed
    assert "does not fit" not in printed


def test_the_command_writes_what_it_was_asked_about(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(
        capsys, "1e9", "--devices", "8,2", "--rows", "2M", "--batch", "4k", "--row-bytes", "16kB", "--device", "a100"
    )
    assert (found["parameters"], found["task_rows"], found["step_rows"]) == (1e9, 2_000_000, 4000)
    assert (found["row_bytes"], found["device"]["name"]) == (16_000, "a100")
    assert [each["devices"] for each in found["estimates"]] == [8, 2]
    for each in found["estimates"]:
        assert sum(each["step"]["of_it"].values()) == pytest.approx(each["step"]["seconds"])
        assert sum(each["task"]["of_it"].values()) == pytest.approx(each["task"]["seconds"])


def test_a_machine_of_one_s_own_is_taken(capsys: pytest.CaptureFixture[str]) -> None:
    own = ("--flops", "10T", "--memory", "16GiB", "--bandwidth", "300GB/s", "--link", "1e9", "--disk", "500MB/s")
    device = asked(capsys, "10M", *own, "--network", "125MB", "--utilisation", "0.25")["device"]
    assert device["flops"] == 1e13
    assert device["memory_bytes"] == 16 * 2**30
    assert device["memory_bytes_per_second"] == 3e11
    assert device["link_bytes_per_second"] == [1e9, 1e9]
    assert (device["disk_bytes_per_second"], device["network_bytes_per_second"]) == (5e8, 1.25e8)
    assert device["utilisation"] == 0.25


def test_the_configuration_is_heeded(capsys: pytest.CaptureFixture[str]) -> None:
    plain = asked(capsys, "10M", "--devices", "1")
    diagonal = asked(capsys, "10M", "--devices", "1", "--curvature", "diagonal")
    assert diagonal["curvature"] == "diagonal"
    assert diagonal["checkpoint_bytes"] < plain["checkpoint_bytes"]
    assert asked(capsys, "10M", "--posterior.fisher", "mc")["cotangents"] == 1
    assert asked(capsys, "10M", "--model.classes", "1000")["cotangents"] == 999
    assert asked(capsys, "10M", "--train.epochs", "3")["epochs"] == 3
    assert asked(capsys, "10M", "--train.batch-size", "256")["step_rows"] == 256
    assert asked(capsys, "10M", "--posterior.mode", "factors")["factor_bytes"] > 0
    double = asked(capsys, "10M", "--devices", "1", "--train.dtype", "float64")["estimates"][0]["memory"]["of_device"]
    assert double["parameters"] == 8e7
    assert asked(capsys, "10M", "--train.device", "cpu")["device"]["name"] == "cpu"
    assert [each["devices"] for each in asked(capsys, "10M", "--train.workers", "3")["estimates"]] == [3]
    half = asked(capsys, "10M", "--train.autocast", "bfloat16")["device"]["flops"]
    assert half > plain["device"]["flops"]


def test_the_smallest_are_estimated_with_a_word_of_caution(capsys: pytest.CaptureFixture[str]) -> None:
    found = asked(capsys, "5", "--devices", "1")
    assert found["width"] == 2
    assert any("below a million" in note for note in found["notes"])


def test_of_epochs_as_many_as_rows_of_a_step_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert asked(capsys, "10M", "--rows", "10k", "--batch", "64")["epochs"] == 5
    assert asked(capsys, "10M", "--rows", "10k", "--batch", "256")["epochs"] == 13


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--parameters", "many"], "--parameters: expected a whole number"),
        (["--parameters", "-7B"], "--parameters: expected"),
        (["--parameters", "0"], "--parameters: expected"),
        (["--parameters", "1.5"], "--parameters: expected a whole number"),
        (["--parameters", "nan"], "--parameters: expected"),
        (["--parameters", "1e14"], "at most 1e+13"),
        (["--parameters", "7X"], "--parameters: expected"),
        (["--parameters", "7B", "--devices", "8,none"], "--devices: expected"),
        (["--parameters", "7B", "--devices", "0"], "--devices: expected"),
        (["--parameters", "7B", "--devices", "10M"], "at most 1,048,576"),
        (["--parameters", "7B", "--device", "h900"], "h100"),
        (["--parameters", "7B", "--rows", "monday.csv"], "--rows: beside --parameters"),
        (["--parameters", "7B", "--rows", "0"], "--rows: beside --parameters"),
        (["--parameters", "7B", "--link", "fast"], "--link: expected bytes"),
        (["--parameters", "7B", "--utilisation", "1.5"], "--utilisation: expected a share"),
        (["--parameters", "7B", "--utilisation", "nan"], "--utilisation: expected a share"),
        (["--parameters", "7B", "--memory", "0GB"], "--memory: expected bytes"),
        (["--parameters", "1M", "--width", "2000"], "--width: expected"),
        (["--parameters", "7B", "--posterior.curvature", "full"], "expected auto"),
        (["--parameters", "7B", "--train.optimizer", "lbfgs"], "expected adam or sgd"),
        (["--parameters", "7B", "--model.learner", "exact"], "model.learner is exact"),
        (["--parameters", "7B", "--label", "y"], "--label: says how a file is read"),
        (["--parameters", "7B", "--input-shape", "3"], "--input-shape: says how"),
        (["--parameters", "7B", "--tokens"], "--uses N"),
        (["--devices", "8"], "--devices: goes with --parameters"),
        (["--input-shape", "3", "--link", "1e9"], "--link: goes with --parameters"),
        (["--input-shape", "3", "--batch", "64"], "--rows-per-step: goes with --parameters"),
    ],
)
def test_what_is_wrong_is_refused_with_what_was_expected(
    options: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status = main(["plan", *options])
    except SystemExit as error:
        assert isinstance(error.code, int)
        status = error.code
    assert status == 2
    assert expected in capsys.readouterr().err


def test_it_needs_no_torch() -> None:
    code = "import sys; from streamcl.cli import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, "plan", "--parameters", "10M"], check=True, capture_output=True)
