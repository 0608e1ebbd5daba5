"""The session: sequences, epochs, tasks, credit; decisions change nothing, only records do."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, ClassVar, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcl.errors import Refused
from streamcl.protocol import messages
from streamcl.protocol.frames import NamedArrays
from streamcl.protocol.session import TASK_STAGES, StreamSession, TaskStage, Terms
from streamcl.schema import LabelMap
from streamcl.storage import records
from streamcl.storage.records import Record


def batch(seq: int, task: str = "a", **fields: Any) -> messages.Batch:
    return messages.Batch(seq=seq, task=task, **fields)


def data(n: int = 4, width: int = 3, labels: Any = (0, 1)) -> NamedArrays:
    y = np.resize(np.array(labels, "<i8"), n)
    return NamedArrays({"x": np.ones((n, width), "<f4"), "y": y})


def session(**terms: Any) -> StreamSession:
    started = StreamSession(Terms(**terms))
    started.producers.hello(messages.Hello(producer="p"))
    return started


def store(state: StreamSession, message: Any, arrays: NamedArrays | None = None, nbytes: int = 100) -> None:
    match message:
        case messages.Batch():
            stored = state.admit_batch("p", message, arrays or data(), nbytes)
        case messages.Boundary():
            stored = state.admit_boundary("p", message)
        case messages.Revisit():
            stored = state.admit_revisit("p", message.seq, message.task, message.damping)
        case messages.Abandon():
            stored = state.admit_abandon(message.task)
        case messages.Forget():
            stored = state.admit_forget(message.task)
        case messages.Retry():
            stored = state.admit_retry(message.task)
        case messages.Drop():
            stored = state.admit_drop(message.task)
    for record in stored:
        state.apply(state.next_lsn, record, nbytes)
    state.producers.synced()


def refused(state: StreamSession, message: Any, arrays: NamedArrays | None = None, nbytes: int = 100) -> str:
    before = copy.deepcopy(state)
    with pytest.raises(Refused) as caught:
        store(state, message, arrays, nbytes)
    assert state == before
    return caught.value.code


class OneHeld:
    """What the ledger says where task a could not be learned."""

    forgotten: frozenset[str] = frozenset()
    held = frozenset({"a"})
    freed: ClassVar[dict[str, int]] = {}

    def closed(self) -> set[str]:
        return {"a"}

    def set_aside(self) -> dict[str, int]:
        return {}


def brought_to(stage: TaskStage) -> StreamSession:
    """A session whose task a stands so."""
    state = session(mode="factors")
    if stage is not TaskStage.NEW:
        store(state, batch(1, boundary=stage is not TaskStage.OPEN))
    match stage:
        case TaskStage.REOPENED | TaskStage.FED_AGAIN:
            store(state, messages.Revisit(seq=2, task="a"))
        case TaskStage.WITHDRAWN:
            store(state, messages.Forget(task="a"))
        case TaskStage.HELD:
            state.took_effect(0)
            state.settle(cast(Any, OneHeld()))
    if stage is TaskStage.FED_AGAIN:
        store(state, batch(3))
    assert state.stage("a") is stage
    return state


ASKED: dict[type[Record], Callable[[int], messages.Message]] = {
    records.Batch: batch,
    records.Boundary: lambda seq: messages.Boundary(seq=seq, task="a"),
    records.Revisit: lambda seq: messages.Revisit(seq=seq, task="a"),
    records.Abandon: lambda _: messages.Abandon(task="a"),
    records.Forget: lambda _: messages.Forget(task="a"),
    records.Retry: lambda _: messages.Retry(task="a"),
    records.Drop: lambda _: messages.Drop(task="a"),
}


@pytest.mark.parametrize("stage", TaskStage)
@pytest.mark.parametrize("kind", ASKED, ids=lambda kind: kind.__name__)
def test_a_task_moves_as_its_table_says_and_in_no_other_way(stage: TaskStage, kind: type[Record]) -> None:
    state = brought_to(stage)
    message = ASKED[kind](state.producers["p"].stored + 1)
    if kind in TASK_STAGES[stage]:
        store(state, message)
        assert state.stage("a") is TASK_STAGES[stage][kind]
    else:
        refused(state, message)


def test_every_stage_is_in_the_table_and_every_change_of_it_is_tried() -> None:
    assert set(TASK_STAGES) == set(TaskStage)
    assert {kind for changes in TASK_STAGES.values() for kind in changes} == set(ASKED)


def test_what_an_earlier_process_has_sent_counts_before_the_next_one_is_welcome() -> None:
    state = session()
    (record,) = state.admit_batch("p", batch(1), data(), 100)
    state.apply(0, record, 100)
    for _ in range(2):
        with pytest.raises(Refused) as caught:
            state.producers.hello(messages.Hello(producer="p", epoch=5))
        assert (caught.value.code, caught.value.retryable) == ("not_ready", True)
    with pytest.raises(Refused, match="a newer process has taken this name over"):  # by then the earlier one is fenced
        state.producers.check_epoch("p", 0)
    state.producers.synced()
    assert state.producers.hello(messages.Hello(producer="p", epoch=5)).durable == 1
    (record,) = state.admit_batch("p", batch(2), data(), 100)
    state.apply(1, record, 100)
    assert state.producers.hello(messages.Hello(producer="p", epoch=5)).durable == 1  # its own it sends again


def test_one_task_is_open_at_a_time_and_closes_for_good() -> None:
    state = session()
    store(state, batch(1))
    assert state.open_task == "a"
    assert refused(state, batch(2, "b")) == "task_mismatch"
    store(state, messages.Boundary(seq=2, task="a"))
    assert state.open_task is None
    assert refused(state, batch(3, "a")) == "task_closed"
    store(state, batch(3, "b"))
    assert state.open_task == "b"


@pytest.mark.parametrize(("task", "code"), [("a", "task_closed"), ("never", "unknown_task")])
def test_a_boundary_needs_its_task_open(task: str, code: str) -> None:
    state = session()
    store(state, batch(1, boundary=True))
    assert refused(state, messages.Boundary(seq=2, task=task)) == code
    store(state, batch(2, "b"))
    assert refused(state, messages.Boundary(seq=3, task=task)) == code


def test_a_batch_with_boundary_closes_its_task() -> None:
    state = session()
    store(state, batch(1, boundary=True))
    assert state.open_task is None
    assert state.closed == {"a"}


def test_boundaries_on_change_close_the_open_task_first() -> None:
    state = session(on_change=True)
    store(state, batch(1))
    store(state, batch(2, "b"))
    assert state.closed == {"a"}
    assert state.open_task == "b"


def test_with_drift_a_tag_is_open_until_its_boundary_whatever_the_trainer_has_told() -> None:
    told, untold = session(drift=True), session(drift=True)
    for state in (told, untold):
        store(state, batch(1))
        store(state, batch(2))
    told.trained(2)
    told.consolidated("a", 1, by_drift=True)
    assert (told.open_task, untold.open_task) == (None, "a")
    for state in (told, untold):
        assert refused(state, batch(3, "b")) == "task_mismatch"
        assert refused(state, batch(3, "a.2")) == "task_mismatch"
        record, *_ = state.admit_boundary("p", messages.Boundary(seq=3, task="a"))
        assert record.task == "a"
        store(state, messages.Boundary(seq=3, task="a"))
        assert refused(state, messages.Boundary(seq=4, task="a")) == "task_closed"
        store(state, batch(4, "b"))


def test_with_drift_names_and_room_follow_what_the_trainer_tells() -> None:
    state = session(drift=True)
    for seq in range(1, 4):
        store(state, batch(seq))
    assert (state.open_task, state.room.task_spool) == ("a", 300)
    last = state.next_lsn - 1
    state.trained(last)
    state.consolidated("a", last - 1, by_drift=True)
    assert (state.open_task, state.room.task_spool, state.closed) == ("a.2", 100, {"a"})
    store(state, messages.Boundary(seq=4, task="a.2"))  # as an operator reads it
    store(state, batch(5))
    state.consolidated("a.2", last + 1, by_drift=False)
    assert state.open_task == "a.3"
    assert refused(state, batch(6, "c" * 125)) == "task_mismatch"
    assert refused(session(drift=True), batch(1, "c" * 125)) == "bad_header"


def test_with_drift_a_name_not_heard_of_may_yet_come() -> None:
    state = session(drift=True, mode="factors")
    store(state, batch(1))
    store(state, messages.Boundary(seq=2, task="a"))
    state.trained(state.next_lsn)
    assert refused(state, messages.Revisit(seq=3, task="a.2")) == "not_ready"
    state.took_effect(state.next_lsn)
    assert refused(state, messages.Revisit(seq=3, task="a.2")) == "unknown_task"


def test_gaps_and_duplicates_are_told_apart() -> None:
    state = session()
    store(state, batch(1))
    assert state.producers.is_duplicate("p", 1)
    with pytest.raises(Refused) as caught:
        state.producers.check_sequence("p", 3)
    assert caught.value.fields["expected"] == 2
    state.producers.check_sequence("p", 2)


def test_an_older_epoch_is_fenced() -> None:
    state = session()
    state.producers.hello(messages.Hello(producer="p", epoch=5))
    with pytest.raises(Refused) as caught:
        state.producers.hello(messages.Hello(producer="p", epoch=4))
    assert (caught.value.code, caught.value.fields["epoch"]) == ("stale_epoch", 5)
    with pytest.raises(Refused):
        state.producers.check_epoch("p", 4)


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        (data(width=4), "bad_shape"),
        (NamedArrays({"x": np.ones((2, 3), "<f4"), "y": np.ones(3, "<i8")}), "bad_shape"),
        (NamedArrays({"x": np.ones((0, 3), "<f4"), "y": np.ones(0, "<i8")}), "bad_shape"),
        (NamedArrays({"x": np.float32(1.0) * np.ones(()), "y": np.ones((), "<i8")}), "bad_shape"),
        (NamedArrays({"x": np.ones((2, 3), "<i8"), "y": np.ones(2, "<i8")}), "bad_array"),
        (NamedArrays({"x": np.ones((2, 3), "<f4"), "y": np.ones(2, "<f4")}), "bad_label"),
        (NamedArrays({"x": np.ones((2, 3), "<f4"), "y": np.ones((2, 1), "<i8")}), "bad_shape"),
        (data(labels=(0, 10)), "bad_label"),
        (data(labels=(-1,)), "bad_label"),
    ],
)
def test_data_unlike_the_first_batch_is_refused(arrays: NamedArrays, code: str) -> None:
    state = session()
    store(state, batch(1))
    assert refused(state, batch(2), arrays) == code


def test_bernoulli_targets_are_zeros_and_ones() -> None:
    state = session(likelihood="bernoulli")
    store(state, batch(1))
    assert refused(state, batch(2), data(labels=(0, 2))) == "bad_label"


def test_gaussian_targets_may_have_any_shape_but_one() -> None:
    state = session(likelihood="gaussian")
    store(state, batch(1), NamedArrays({"x": np.ones((2, 3), "<f4"), "y": np.ones((2, 5), "<f8")}))
    assert refused(state, batch(2), NamedArrays({"x": np.ones((2, 3), "<f4"), "y": np.ones(2, "<f8")})) == "bad_shape"


def test_a_full_task_gets_no_credit_and_room_comes_back_with_its_consolidation() -> None:
    state = session(task_bytes=3000)
    store(state, batch(1), nbytes=1000)
    assert state.room.credit() == {"messages": 16, "bytes": 2000}
    store(state, batch(2), nbytes=1000)
    assert state.room.credit() == {"messages": 0, "bytes": 1000}
    assert refused(state, batch(3), nbytes=1001) == "no_credit"
    store(state, messages.Boundary(seq=3, task="a"), nbytes=0)
    assert state.room.credit()["messages"] == 16


def test_a_batch_that_can_never_fit_is_too_large() -> None:
    assert refused(session(task_bytes=99), batch(1)) == "too_large"


def test_a_barrier_holds_once_everyone_is_durable() -> None:
    state = session()
    assert state.producers.barrier_holds(None)
    assert not state.producers.barrier_holds({"p": 1})
    assert not state.producers.barrier_holds({"stranger": 0})
    store(state, batch(1))
    assert state.producers.barrier_holds({"p": 1})


@given(st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=8))
def test_labels_in_range_are_their_own_outputs(batches: list[list[int]]) -> None:
    labels = LabelMap(7)
    for values in batches:
        y = np.array(values, "<i8")
        labels.add(labels.new_labels(y))
        np.testing.assert_array_equal(labels.to_outputs(y), y)


@given(st.lists(st.lists(st.integers(-5, 1000), min_size=1, max_size=4), min_size=1, max_size=8))
def test_an_output_once_given_never_moves(batches: list[list[int]]) -> None:
    labels = LabelMap(8)
    given_outputs: dict[int, int] = {}
    for values in batches:
        y = np.array(values, "<i8")
        try:
            labels.add(labels.new_labels(y))
        except Refused:
            continue
        for label, output in zip(values, labels.to_outputs(y).tolist(), strict=True):
            assert given_outputs.setdefault(label, output) == output
            assert 0 <= output < 8
            assert labels.labels()[output] == label
    assert len(set(given_outputs.values())) == len(given_outputs)


FAMILIES = {
    2: ([0, 1], [1, 2], [-1, 1], [-1, 7]),
    3: ([0, 1, 2], [1, 2, 3], [-1, 0, 1], [100, 1, -5]),
    7: ([1, 2, 3, 4, 5, 6, 7], [-3, -2, -1, 0, 1, 2, 3], [3, 4, 5, 6, 7, 8, 9], [2, 5]),
}
STRANGERS = {2: [(0, -1), (0, 2)], 3: [(0, 5), (-1, 0, 2), (0, 3)], 7: [(0, 7), (-1, 0, 4), (0, -4)]}


@given(st.data())
def test_labels_are_taken_whatever_their_order_and_however_they_are_cut(data: st.DataObject) -> None:
    classes = data.draw(st.sampled_from(sorted(FAMILIES)))
    values = data.draw(st.permutations(data.draw(st.sampled_from(FAMILIES[classes]))))
    labels, rest = LabelMap(classes), list(values)
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        y, rest = np.array(rest[:size], "<i8"), rest[size:]
        labels.add(labels.new_labels(y))
    assert sorted(labels.outputs) == sorted(values)
    assert len(set(labels.outputs.values())) == len(values)
    assert all(
        labels.outputs[label] == label
        for label in values
        if 0 <= label < classes and min(values) >= 0 and max(values) <= classes
    )


@given(st.data())
def test_labels_that_do_not_go_together_are_refused_whatever_their_order(data: st.DataObject) -> None:
    classes = data.draw(st.sampled_from(sorted(STRANGERS)))
    values = data.draw(st.permutations(data.draw(st.sampled_from(STRANGERS[classes]))))
    labels = LabelMap(classes)
    with pytest.raises(Refused, match=r"number the labels from 0"):
        for value in values:
            labels.add(labels.new_labels(np.array([value], "<i8")))


def test_a_log_of_an_earlier_version_gives_the_same_outputs() -> None:
    """The first batch decided; later ones went on from there. Such a map goes on, whatever is in it."""
    labels = LabelMap(4)
    labels.add_as_before((0, 9))
    labels.add_as_before((1,))
    assert labels.outputs == {0: 0, 9: 1, 1: 2}
    fresh = labels.new_labels(np.array([5, 9], "<i8"))
    labels.add(fresh, labels.places(fresh))
    assert labels.outputs[5] == 3
    counted = LabelMap(4)
    counted.add_as_before((2, 1))
    assert counted.outputs == {2: 2, 1: 1}


@pytest.mark.parametrize(
    ("y", "words"), [([0.0, 1.0], "send them as integers"), ([0.0, 1.5], "such as 1.5; to learn real")]
)
def test_real_targets_are_told_of_the_likelihood(y: list[float], words: str) -> None:
    with pytest.raises(Refused, match=words) as refused:
        LabelMap(3).new_labels(np.array(y, "<f4"))
    assert "model.likelihood = 'gaussian'" in str(refused.value)


def test_more_names_than_outputs_are_refused() -> None:
    labels = LabelMap(3)
    labels.add(labels.new_labels(np.array([100, 200], "<i8")))
    with pytest.raises(Refused):
        labels.new_labels(np.array([300, 400], "<i8"))
    labels.add(labels.new_labels(np.array([300], "<i8")))
    assert labels.labels().tolist() == [100, 200, 300]


def test_a_revisit_opens_a_closed_task_once_more() -> None:
    state = session(mode="factors")
    store(state, batch(1, boundary=True))
    store(state, messages.Revisit(seq=2, task="a"))
    assert (state.open_task, state.revisiting) == ("a", True)
    assert refused(state, messages.Boundary(seq=3, task="a")) == "not_ready"  # nothing to learn from yet
    assert refused(state, batch(3, "b")) == "task_mismatch"
    assert refused(state, messages.Revisit(seq=3, task="a")) == "task_mismatch"
    store(state, batch(3))
    store(state, messages.Boundary(seq=4, task="a"))
    assert (state.open_task, state.revisiting) == (None, False)
    assert refused(state, batch(5)) == "task_closed"


def test_what_cannot_be_revisited_is_refused() -> None:
    state = session(mode="factors")
    store(state, batch(1))
    assert refused(state, messages.Revisit(seq=2, task="a")) == "unknown_task"  # open, never consolidated
    assert refused(state, messages.Revisit(seq=2, task="z")) == "unknown_task"
    store(state, messages.Boundary(seq=2, task="a"))
    store(state, batch(3, "b"))
    assert refused(state, messages.Revisit(seq=4, task="a")) == "task_mismatch"
    for mode in ("single", "multi-anchor"):
        other = session(mode=mode)
        store(other, batch(1, boundary=True))
        assert refused(other, messages.Revisit(seq=2, task="a")) == "not_in_factor_mode"
    online = session(mode="online")
    store(online, batch(1, boundary=True))
    assert refused(online, messages.Revisit(seq=2, task="a", damping=0.5)) == "bad_header"
    store(online, messages.Revisit(seq=2, task="a"))


def test_an_abandoned_revisit_leaves_the_task_closed() -> None:
    state = session(mode="factors")
    store(state, batch(1, boundary=True))
    assert refused(state, messages.Abandon()) == "unknown_task"
    store(state, messages.Revisit(seq=2, task="a"))
    store(state, batch(3))
    assert refused(state, messages.Abandon(task="b")) == "unknown_task"
    store(state, messages.Abandon(task="a"))
    assert (state.open_task, state.revisiting, state.room.task_spool) == (None, False, 0)
    assert refused(state, batch(4)) == "task_closed"
    store(state, messages.Revisit(seq=4, task="a"))


def test_a_withdrawn_task_is_not_used_again() -> None:
    state = session(mode="factors")
    store(state, batch(1, boundary=True))
    assert refused(state, messages.Forget(task="z")) == "unknown_task"
    store(state, messages.Revisit(seq=2, task="a"))
    assert refused(state, messages.Forget(task="a")) == "task_mismatch"
    store(state, messages.Abandon())
    store(state, batch(3, "b"))
    store(state, messages.Forget(task="a"))  # also while another task is open
    assert state.open_task == "b"
    store(state, messages.Boundary(seq=4, task="b"))
    for message in (messages.Revisit(seq=5, task="a"), messages.Forget(task="a"), batch(5)):
        assert refused(state, message) == "task_closed"
    assert refused(session(), messages.Forget(task="a")) == "not_in_factor_mode"


def test_with_boundaries_on_change_a_revisit_without_data_is_abandoned() -> None:
    state = session(mode="factors", on_change=True)
    store(state, batch(1, boundary=True))
    store(state, messages.Revisit(seq=2, task="a"))
    records = state.admit_batch("p", batch(3, "b"), data(), 100)
    assert [type(record).__name__ for record in records] == ["Abandon", "Batch"]


def test_recovery_is_the_same_call_as_live() -> None:
    live, replayed = session(on_change=True), StreamSession(Terms(on_change=True))
    log = []
    for message in (batch(1), batch(2), batch(3, "b"), batch(4, "b", boundary=True), batch(5, "c")):
        for record in live.admit_batch("p", message, data(), 10):
            live.apply(len(log), record, 10)
            log.append(record)
    live.producers.synced()
    for lsn, record in enumerate(log):
        replayed.apply(lsn, record, 10)
    replayed.producers.synced()
    assert replayed == live
