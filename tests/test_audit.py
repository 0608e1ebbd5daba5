"""The audit log and the names' owners: bounded, 0600, whole after a crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamcl.storage.audit import FILES, REFUSALS_A_SECOND, Audit, read
from streamcl.storage.disk import Disk
from streamcl.storage.owners import NAME, Owners


def test_it_is_bounded_by_rotation_and_its_owners_alone(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log", file_bytes=1000)
    for number in range(200):
        audit.write("boundary", task=str(number))
    files = sorted(tmp_path.iterdir())
    assert 2 <= len(files) <= FILES
    assert all(file.stat().st_size < 1200 and file.stat().st_mode & 0o777 == 0o600 for file in files)
    tasks = [int(entry["task"]) for entry in read(tmp_path / "audit.log")]
    assert tasks == list(range(tasks[0], 200))


def test_a_flood_of_refusals_takes_few_lines_and_says_how_many(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    for _ in range(10_000):
        audit.write("stream", "not_allowed")
    audit.write("pause")
    entries = list(read(tmp_path / "audit.log"))
    assert len(entries) <= 10 * REFUSALS_A_SECOND
    assert sum(entry.get("refusals_left_out", 0) for entry in entries) + len(entries) - 1 == 10_000


def test_what_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    Audit(tmp_path / "none" / "audit.log").write("pause")
    Audit().write("pause")


def test_a_torn_claim_is_cut_off(tmp_path: Path) -> None:
    owners = Owners.recover(tmp_path, Disk())
    owners.claim("a", "key-1")
    owners.claim("b", "key-2")
    owners.claim("a", "key-3")
    whole = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(whole + b'["c", "ke')
    again = Owners.recover(tmp_path, Disk())
    assert (again.of("a"), again.of("b"), again.of("c")) == ("key-3", "key-2", None)
    again.claim("c", "key-4")
    assert Owners.recover(tmp_path, Disk()).of("c") == "key-4"


def test_a_claim_is_synced_before_it_is_granted(tmp_path: Path) -> None:
    calls: list[str] = []

    class Recorder(Disk):
        def write(self, *arguments: Any) -> int:
            calls.append("write")
            return super().write(*arguments)

        def sync_data(self, fd: int) -> None:
            calls.append("sync")
            super().sync_data(fd)

    Owners.recover(tmp_path, Recorder()).claim("a", "key-1")
    assert calls == ["write", "sync"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "audit.log").symlink_to(tmp_path / "elsewhere")
    Audit(tmp_path / "audit.log").write("pause")
    assert not (tmp_path / "elsewhere").exists()


def test_a_failed_reload_is_written_in_the_midst_of_a_flood(tmp_path: Path) -> None:
    audit = Audit(tmp_path / "audit.log")
    for _ in range(100):
        audit.write("stream", "not_allowed")
    audit.write("reload", "failed", reason="nonsense")
    assert list(read(tmp_path / "audit.log"))[-1]["action"] == "reload"
