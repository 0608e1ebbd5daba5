"""Frames: any bytes give an envelope or a refusal; what was built parses back to itself."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamcl.errors import Refused
from streamcl.protocol import frames, messages

HEADER = {"v": 1, "type": "batch", "seq": 1, "task": "a"}


def message(header: dict[str, Any], *payloads: bytes) -> list[bytes]:
    return [msgpack.packb(header), *payloads]


def refusal(parts: list[bytes], expected: tuple[str, ...] = ("x",)) -> Refused:
    with pytest.raises(Refused) as caught:
        frames.open_arrays(frames.parse(parts), expected)
    return caught.value


def described(dtype: Any = "<f4", shape: Any = (2,), name: Any = "x") -> dict[str, Any]:
    return {**HEADER, "arrays": [{"name": name, "dtype": dtype, "shape": shape}]}


@given(
    hnp.arrays(
        st.sampled_from([np.dtype(d) for d in frames.DTYPES]),
        hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5),
        elements={"allow_nan": False, "allow_infinity": False},
    ),
    st.booleans(),
)
def test_arrays_come_back_as_they_were_sent(array: np.ndarray, delimited: bool) -> None:
    envelope = frames.parse(frames.build(HEADER, {"x": array}, delimited=delimited))
    assert envelope.delimited is delimited
    np.testing.assert_array_equal(frames.open_arrays(envelope, ["x"])["x"], array)


@given(st.lists(st.binary(max_size=200), max_size=12))
def test_any_bytes_give_an_envelope_or_a_refusal(parts: list[bytes]) -> None:
    try:
        envelope = frames.parse(parts)
        frames.open_arrays(envelope, ["x", "y"])
        messages.decode(envelope.header, messages.StreamMessage)
    except Refused as refused:
        assert refused.code in messages.CODES


JSONLIKE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=20)
    | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["hello", "batch", "boundary", "revisit", "predict", "nonsense"]),
    st.dictionaries(st.sampled_from(["seq", "task", "arrays", "epoch", "producer", "weight", "barrier", "id"]), JSONLIKE),
)
def test_any_header_gives_a_message_or_a_refusal(kind: str, fields: dict[str, Any]) -> None:
    try:
        envelope = frames.parse(message({"v": 1, "type": kind, **fields}))
        frames.open_arrays(envelope, [])
        messages.decode(envelope.header, messages.StreamMessage)
    except Refused as refused:
        assert refused.code in messages.CODES


def test_an_array_is_a_view_of_its_frame() -> None:
    payload = np.arange(6, dtype="<f4").tobytes()
    array = frames.open_arrays(frames.parse(message(described(shape=(2, 3)), payload)), ["x"])["x"]
    assert not array.flags.owndata
    assert not array.flags.writeable


@pytest.mark.parametrize(
    ("parts", "code"),
    [
        ([], "bad_header"),
        ([b""], "bad_header"),
        ([b"\xc1"], "bad_header"),
        ([msgpack.packb([1, 2])], "bad_header"),
        ([msgpack.packb({"v": 2, "type": "batch"})], "bad_header"),
        ([msgpack.packb({"v": True, "type": "batch"})], "bad_header"),
        ([msgpack.packb({"v": 1})], "bad_header"),
        ([msgpack.packb({"v": 1, "type": "batch", "x": msgpack.ExtType(4, b"")})], "bad_header"),
        ([msgpack.packb({**HEADER, "pad": b"0" * frames.HEADER_BYTES})], "too_large"),
        ([msgpack.packb(HEADER), *[b""] * 9], "too_large"),
        ([msgpack.packb({**HEADER, "arrays": [described()["arrays"][0]] * 9}), *[b"12345678"] * 8], "too_large"),
        ([msgpack.packb({**HEADER, "id": "x" * frames.MAX_ID_BYTES})], "too_large"),
        (message(described(shape=[1] * 16 + [2]), b"12345678"), "bad_array"),
        (message(described(shape=[0, 2**47, 2**47]), b""), "bad_array"),
        ([msgpack.packb(HEADER), b"1234"], "bad_array"),
        (message(described(), b"1234567"), "bad_array"),
        (message(described(dtype=">f4"), b"12345678"), "bad_array"),
        (message(described(dtype="|O"), b"12345678"), "bad_array"),
        (message(described(shape=[-2, -1]), b"12345678"), "bad_array"),
        (message(described(shape=[True]), b"1234"), "bad_array"),
        (message(described(shape=[2**40, 2**40]), b"12345678"), "bad_array"),
        (message(described(name="z"), b"12345678"), "bad_array"),
        (message(described(name=3), b"12345678"), "bad_array"),
        (message(described(), np.array([1, np.nan], "<f4").tobytes()), "nonfinite"),
        (message(described(dtype="<f2", shape=[1]), np.array([np.inf], "<f2").tobytes()), "nonfinite"),
    ],
)
def test_unsound_messages_are_refused_with_their_code(parts: list[bytes], code: str) -> None:
    assert refusal(parts).code == code


def test_too_many_bytes_are_refused_before_decoding() -> None:
    with pytest.raises(Refused) as caught:
        frames.parse([msgpack.packb(HEADER), bytes(100)], message_bytes=100)
    assert caught.value.code == "too_large"


def test_a_refusal_of_the_header_names_its_seq_and_id() -> None:
    with pytest.raises(Refused) as caught:
        frames.parse([msgpack.packb({"v": 9, "type": "batch", "seq": 7, "id": "q"})])
    assert (caught.value.seq, caught.value.fields["id"]) == (7, "q")


def test_nonfinite_names_the_place() -> None:
    values = np.zeros((2, 3), "<f8")
    values[1, 2] = np.inf
    with pytest.raises(Refused, match=r"x\[1\]\[2\]"):
        frames.check_finite("x", values)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), -1.0])
def test_a_weight_must_be_finite_and_not_negative(weight: float) -> None:
    header = {"v": 1, "type": "boundary", "seq": 1, "task": "a", "weight": weight}
    with pytest.raises(Refused) as caught:
        messages.decode(header, messages.StreamMessage)
    assert caught.value.code == "bad_header"


@pytest.mark.parametrize("name", ["", "a" * 129, "with space", "a\n", "ä"])
def test_producer_names_are_of_the_contract(name: str) -> None:
    with pytest.raises(Refused):
        messages.decode({"v": 1, "type": "hello", "producer": name}, messages.StreamMessage)


@pytest.mark.parametrize(
    "header",
    [
        {"type": "boundary", "seq": 1, "task": "a", "barrier": {f"p{number}": 1 for number in range(1025)}},
        {"type": "predict", "samples": 1001},
    ],
)
def test_what_a_message_may_ask_for_is_bounded(header: dict[str, Any]) -> None:
    with pytest.raises(Refused, match="bad_header"):
        messages.decode(header, messages.Predict if header["type"] == "predict" else messages.StreamMessage)
