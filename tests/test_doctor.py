"""`streamcl doctor` and `streamcl repair` on state directories that a real daemon left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamcl.bench.local import LocalDaemon
from streamcl.cli import main
from streamcl.errors import StreamclError
from streamcl.storage.segments import sound_records

TREE: dict[str, Any] = {
    "model": {"factory": "streamcl.models:linear", "classes": 3},
    "posterior": {"mode": "factors"},
}


def rows(seed: int, n: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, 4)).astype("<f4"), rng.integers(0, 3, n)


@pytest.fixture
def stopped(start: Callable[..., LocalDaemon]) -> LocalDaemon:
    """A daemon killed with two tasks consolidated, and of a third 3 batches applied and 4 only durable."""
    daemon = start(TREE)
    with daemon.producer() as producer, daemon.admin() as admin:
        for task in ("a", "b"):
            producer.send(*rows(ord(task)), task)
            producer.boundary(task)
        for seed in range(3):
            producer.send(*rows(seed), "c")
        producer.flush()
        while admin.checkpoint()["batches_applied"] < 5:
            pass
        admin.pause()
        for seed in range(3, 7):
            producer.send(*rows(seed), "c")
            producer.flush()  # a later sync bears witness to an earlier one
    daemon.kill_all()
    return daemon


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str]:
    capsys.readouterr()
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def damage(daemon: LocalDaemon, lsn: int) -> int:
    """Flip a bit in the middle of a record of the log; its offset."""
    (path,) = (daemon.state_dir / "log").glob("*.seg")
    offset, head = next((offset, head) for offset, head, _ in sound_records(path) if head.lsn == lsn)
    flip(path, offset + head.size // 2)
    return offset


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_sound_directory_is_found_sound(stopped: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in stopped.state_dir.rglob("*") if path.is_file() and path.name != "lock"}
    status, text = run(capsys, "doctor", stopped.state_dir)
    assert (status, "nothing is damaged" in text) == (0, True)
    assert "task 'c' open from record 4" in text
    assert "2 factors; with the prior they add up to the total" in text
    assert "records 4 to 10" in text
    assert before == {path: path.read_bytes() for path in before}
    status, text = run(capsys, "doctor", stopped.state_dir, "--json")
    assert json.loads(text)["damaged"] == 0
    assert run(capsys, "repair", stopped.state_dir) == (0, "the log needs no repair\n")


def test_a_running_daemon_is_left_alone(start: Callable[..., LocalDaemon], capsys: pytest.CaptureFixture[str]) -> None:
    daemon = start(TREE)
    for command in ("doctor", "repair"):
        status, text = run(capsys, command, daemon.state_dir)
        assert (status, "in use by the daemon" in text) == (1, True)
    assert run(capsys, "doctor", daemon.state_dir / "nowhere")[0] == 2


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        ("checkpoint", "do not match"),
        ("factors/*.factor", "do not match"),
        ("ledger", "entry 0 is missing or damaged"),
    ],
)
def test_a_flipped_bit_is_found_and_named(
    stopped: LocalDaemon, capsys: pytest.CaptureFixture[str], pattern: str, said: str
) -> None:
    path = sorted(stopped.state_dir.glob(pattern))[0]
    flip(path, path.stat().st_size - 9 if pattern != "ledger" else 20)
    status, text = run(capsys, "doctor", stopped.state_dir)
    assert status == 1
    assert any("damaged" in line and str(path) in line and said in line for line in text.splitlines())


def test_factors_that_do_not_add_up_are_found(stopped: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    """Each file is sound by itself, but one is from another history."""
    from streamcl.storage import verified
    from streamcl.storage.disk import Disk

    path = sorted((stopped.state_dir / "factors").glob("*.factor"))[0]
    saved = verified.load(path)
    held = [name for name in saved.tensors if name == "precision" or name.startswith("block.")]
    tensors = {**saved.tensors, **{name: saved.tensors[name] * 1.01 for name in held}}
    verified.save(path, saved.meta, tensors, Disk())
    for command in ("doctor", "repair"):  # which knows nothing to do about it, and says so
        status, text = run(capsys, command, stopped.state_dir)
        assert (status, "do not add up" in text) == (1, True)


def test_a_damaged_record_stops_the_start_and_a_repair_loses_no_more_than_it(
    stopped: LocalDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    """Record 5 was applied: the model has taken its steps; only the boundary must do without it."""
    offset = damage(stopped, 5)
    with pytest.raises(StreamclError, match=f"offset {offset}: record 5 is damaged.*streamcl repair"):
        stopped.start()
    status, text = run(capsys, "doctor", stopped.state_dir)
    assert (status, f"offset {offset}" in text) == (1, True)
    status, text = run(capsys, "repair", stopped.state_dir)
    assert (status, "records 5;" in text, "nothing has been changed" in text) == (1, True, True)
    assert run(capsys, "doctor", stopped.state_dir)[0] == 1
    status, text = run(capsys, "repair", stopped.state_dir, "--yes")
    assert (status, "set-aside-1" in text) == (0, True)
    status, text = run(capsys, "doctor", stopped.state_dir)
    assert (status, "delete it once you no longer need it" in text) == (0, True)
    stopped.start()
    with stopped.producer() as producer:
        assert producer.durable == 11
        assert producer.boundary("c")["samples"] == 6 * 20


def test_what_lies_behind_a_record_that_was_only_durable_is_given_up(
    stopped: LocalDaemon, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(stopped, 8)
    status, text = run(capsys, "repair", stopped.state_dir)
    assert status == 1
    assert "record 8, unreadable, and everything after it" in text
    assert "producer producer, messages 10-11" in text
    assert run(capsys, "repair", stopped.state_dir, "--yes")[0] == 0
    stopped.start()
    with stopped.producer() as producer:
        assert producer.durable == 8
        producer.send(*rows(4), "c")
        assert producer.boundary("c")["samples"] == 5 * 20


def test_a_repair_that_was_cut_off_is_taken_up_again(stopped: LocalDaemon, capsys: pytest.CaptureFixture[str]) -> None:
    damage(stopped, 5)
    (stopped.state_dir / "log.repaired").mkdir()
    with pytest.raises(StreamclError, match="run `streamcl repair` again"):
        stopped.start()
    assert run(capsys, "repair", stopped.state_dir, "--yes")[0] == 0
    assert stopped.start().children()


def test_a_producer_hears_that_the_daemon_has_lost_what_it_acknowledged(stopped: LocalDaemon) -> None:
    producer = stopped.start().producer()
    assert producer.durable == 11
    stopped.kill_all()
    damage(stopped, 8)
    main(["repair", str(stopped.state_dir), "--yes"])
    stopped.start()
    with pytest.raises(StreamclError, match="had acknowledged 11 messages, it now knows of 8"):
        producer.boundary("c")
    producer.close(flush=False)


@pytest.mark.parametrize("task_open", [True, False])
def test_a_checkpoint_that_is_missing_is_not_taken_for_a_beginning(
    start: Callable[..., LocalDaemon], capsys: pytest.CaptureFixture[str], task_open: bool
) -> None:
    daemon = start(TREE)
    with daemon.producer() as producer:
        for task in ("a", "b"):
            producer.send(*rows(ord(task)), task)
            producer.boundary(task)
        if task_open:
            producer.send(*rows(0), "c")
    daemon.stop()
    saved = (daemon.state_dir / "checkpoint").read_bytes()
    (daemon.state_dir / "checkpoint").unlink()
    kept = [daemon.state_dir / "ledger", *(daemon.state_dir / "log").iterdir(), *(daemon.state_dir / "factors").iterdir()]
    before = {path: path.read_bytes() for path in kept}
    status, said = run(capsys, "doctor", daemon.state_dir)
    assert (status, "checkpoint: it is missing" in said) == (1, True)
    with pytest.raises(StreamclError, match=r"status 2[\s\S]*checkpoint: it is missing"):
        daemon.start()
    assert before == {path: path.read_bytes() for path in kept}
    (daemon.state_dir / "checkpoint").write_bytes(saved)
    daemon.start()
    with daemon.admin() as admin:
        assert [task["task"] for task in admin.tasks()] == ["a", "b"]


@pytest.mark.parametrize("gone", [True, False])
def test_a_damaged_factor_stops_the_start_also_while_a_task_is_open(stopped: LocalDaemon, gone: bool) -> None:
    path = min((stopped.state_dir / "factors").iterdir())
    content = path.read_bytes()
    if gone:
        path.unlink()
    else:
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    with pytest.raises(StreamclError, match=rf"status 2[\s\S]*{path.name}"):
        stopped.start()
    path.write_bytes(content)
    stopped.start()
