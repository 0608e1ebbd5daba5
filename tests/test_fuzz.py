"""A short run of `bench fuzz`; the long one's figures are in streamcl/bench/figures/fuzz.json."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamcl.bench.fuzz import bench, through_sockets
from streamcl.bench.fuzz.contract import breach
from streamcl.bench.fuzz.guided import pack, unpack
from streamcl.bench.fuzz.mutants import KINDS, mutant
from streamcl.protocol import frames, messages
from streamcl.protocol.session import StreamSession

pytestmark = pytest.mark.campaign


def test_hostile_messages_break_no_promise_without_sockets() -> None:
    found = bench.campaign(20_000, seed=1)
    assert not found.broken, found.broken[:3]
    assert found.messages > 20_000
    assert set(found.replies) >= {
        "bad_header",
        "bad_array",
        "too_large",
        "gap",
        "task_mismatch",
        "nonfinite",
        "welcome",
        "ok",
    }


def test_hostile_messages_through_sockets_leave_the_posterior_to_the_bit() -> None:
    found = through_sockets.campaign(2000, seed=1)
    assert not found.broken, found.broken[:3]
    assert found.clean


def test_a_broken_judge_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hostile batch that is let in, a crash, a code of nobody's: the campaign finds each."""
    with monkeypatch.context() as broken:
        broken.setattr(StreamSession, "_check_task_takes_data", lambda *_: None)
        assert not bench.campaign(5000, seed=2).clean
    with monkeypatch.context() as broken:
        broken.setattr(frames, "_check_id", lambda header: None)
        assert any(bench.campaign(5000, seed=seed).broken for seed in range(2, 8))
    with monkeypatch.context() as broken:
        broken.setattr(messages, "legible_seq", lambda header: "one")
        assert bench.campaign(2000, seed=2).broken


@given(st.integers(0, 2**32), st.sampled_from(sorted(KINDS)))
def test_an_input_of_the_guided_fuzzer_is_a_message(seed: int, socket: str) -> None:
    parts = [part for part in mutant(random.Random(seed), socket) if len(part) < 2**16]
    assert unpack(pack(0, parts)) == (parts or [b""])


@pytest.mark.parametrize(
    "reply",
    [[], [b""], [b"\xc1"], [b"\x81\xa1v\x02"], [b"\x82\xa1v\x01\xa4type\xa3ack"], [b"\x82\xa1v\x01\xa4type\xa5hello"]],
)
def test_a_reply_outside_the_contract_is_noticed(reply: list[bytes]) -> None:
    assert breach("stream", reply)
