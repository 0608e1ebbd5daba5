"""What training does not change is stored once, by digest: durable before anything refers to it, gone once nothing does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import snapshots
from msgspec.structs import replace

from streamcl.bench.local import LocalDaemon
from streamcl.errors import Damaged
from streamcl.storage import checkpoint, doctor, frozen, published, verified
from streamcl.storage.container import REFERENCE
from streamcl.storage.disk import Disk
from streamcl.storage.frozen import LEAST_BYTES, Frozen, FrozenStore
from streamcl.storage.state import StateDirectory
from streamcl.storage.versions import Versions

DISK = Disk()
META = replace(snapshots.META, open_task=None)
LARGE = np.arange(LEAST_BYTES // 4, dtype="<i4").reshape(64, -1)


def state(**fixed: np.ndarray) -> dict[str, np.ndarray]:
    return {"theta": np.arange(3.0), **{f"fixed.{name}": array for name, array in fixed.items()}}


def stored(directory: Path) -> set[str]:
    return {path.name for path in (directory / frozen.DIRECTORY).glob("*")}


def save(store: FrozenStore, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As a trainer saves a checkpoint; what the file itself holds."""
    directory = store.directory.parent
    checkpoint.save(directory, META, store.referred(arrays), DISK)
    store.sweep([directory / checkpoint.NAME])
    return verified.load(directory / checkpoint.NAME).tensors


def test_a_checkpoint_refers_to_what_is_fixed_and_comes_back_whole(tmp_path: Path) -> None:
    odd = np.random.default_rng(0).normal(size=(330, 33)).astype("<f2").T  # not contiguous
    arrays = state(large=LARGE, odd=odd, small=np.ones(4), flags=np.ones(LEAST_BYTES, bool), nothing=np.zeros((0, 3)))
    arrays["before.fixed.large"] = LARGE.copy()
    arrays["optimizer.m"] = LARGE.astype("<f8")
    own = save(FrozenStore(tmp_path, DISK), arrays)
    assert set(frozen.references(own)) == {"fixed.large", "fixed.odd", "fixed.flags", "before.fixed.large"}
    assert set(own) - {REFERENCE + name for name in frozen.references(own)} == {
        "theta",
        "fixed.small",
        "fixed.nothing",
        "optimizer.m",
    }
    assert len(stored(tmp_path)) == 3
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    assert loaded.tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)
        assert loaded.tensors[name].dtype == array.dtype


def test_an_old_checkpoint_that_holds_everything_itself_is_read_as_it_is(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, META, state(large=LARGE), DISK)
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.tensors["fixed.large"], LARGE)
    assert not stored(tmp_path)


def test_an_older_streamcl_refuses_references_by_their_format_and_reads_what_has_none(tmp_path: Path) -> None:
    version = slice(8, 12)
    save(FrozenStore(tmp_path, DISK), state(small=np.ones(4)))
    assert (tmp_path / checkpoint.NAME).read_bytes()[version] == (1).to_bytes(4, "little")
    save(FrozenStore(tmp_path, DISK), state(large=LARGE))
    assert (tmp_path / checkpoint.NAME).read_bytes()[version] == (2).to_bytes(4, "little")


def test_what_does_not_change_is_written_once(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path, DISK)
    save(store, state(large=LARGE))
    (name,) = stored(tmp_path)
    before = store.path(name).stat()
    save(store, state(large=LARGE.copy()))
    again = FrozenStore(tmp_path, DISK)  # the next life
    loaded = checkpoint.load(tmp_path, DISK, again)
    assert loaded is not None
    save(again, loaded.tensors)
    after = store.path(name).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("place", [0, LARGE.size // 2 + 3, LARGE.size - 1])
def test_one_number_that_changes_after_all_is_saved_and_the_old_file_goes(tmp_path: Path, place: int) -> None:
    store, changed = FrozenStore(tmp_path, DISK), LARGE.copy()
    save(store, state(large=LARGE))
    changed.reshape(-1)[place] += 1
    own = save(store, state(large=changed))
    np.testing.assert_array_equal(own["fixed.large"], changed)
    assert not stored(tmp_path)
    own = save(store, state(large=LARGE))  # and stays with what changes
    np.testing.assert_array_equal(own["fixed.large"], LARGE)


def test_a_publication_notices_a_change_of_the_whole_array(tmp_path: Path) -> None:
    store, path = FrozenStore(tmp_path, DISK), StateDirectory(tmp_path).parameters
    published.publish(path, {}, store.referred(state(large=LARGE), whole=False))
    found = published.read(path, Frozen(tmp_path))
    assert found is not None
    np.testing.assert_array_equal(found[1]["fixed.large"], LARGE)
    assert path.stat().st_size < LEAST_BYTES
    published.publish(path, {}, store.referred(state(large=LARGE + 1), whole=False))
    found = published.read(path, Frozen(tmp_path))
    assert found is not None
    np.testing.assert_array_equal(found[1]["fixed.large"], LARGE + 1)


def test_a_reader_gives_the_same_array_for_the_same_reference(tmp_path: Path) -> None:
    own, reader = save(FrozenStore(tmp_path, DISK), state(large=LARGE)), Frozen(tmp_path)
    assert reader.resolved(own)["fixed.large"] is reader.resolved(own)["fixed.large"]


def test_a_version_keeps_what_it_refers_to(tmp_path: Path) -> None:
    store, versions = FrozenStore(tmp_path, DISK), Versions(tmp_path, DISK)
    save(store, state(large=LARGE))
    versions.keep_only([1], new=1)
    other = FrozenStore(tmp_path, DISK)  # another model after a restart, say
    checkpoint.save(tmp_path, META, other.referred(state(large=LARGE + 1)), DISK)
    files = [tmp_path / checkpoint.NAME, *map(versions.path, versions.numbers())]
    other.sweep(files)
    assert len(stored(tmp_path)) == 2
    np.testing.assert_array_equal(versions.read(1).tensors["fixed.large"], LARGE)
    versions.keep_only([])
    other.sweep(files)
    assert len(stored(tmp_path)) == 1


def test_nothing_is_removed_while_a_file_cannot_be_read(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path, DISK)
    save(store, state(large=LARGE))
    other = FrozenStore(tmp_path, DISK)
    other.referred(state(large=LARGE + 1))
    (tmp_path / checkpoint.NAME).write_bytes(b"no checkpoint")
    other.sweep([tmp_path / checkpoint.NAME])
    assert len(stored(tmp_path)) == 2


@pytest.mark.parametrize("harm", ["flipped", "missing", "another"])
def test_an_unsound_file_is_damage_to_whoever_reads_it(tmp_path: Path, harm: str) -> None:
    store = FrozenStore(tmp_path, DISK)
    checkpoint.save(tmp_path, replace(META, next_lsn=0, batches=0, ledger=0), {}, DISK)
    meta = checkpoint.read(tmp_path).meta
    arrays = store.referred(state(large=LARGE, other=LARGE + 1))
    checkpoint.save(tmp_path, meta, arrays, DISK)
    one, other = (store.path(digest) for digest in frozen.references(arrays).values())
    if harm == "missing":
        one.unlink()
    elif harm == "another":
        one.write_bytes(other.read_bytes())
    else:
        raw = bytearray(one.read_bytes())
        raw[-9] ^= 1
        one.write_bytes(raw)
    with pytest.raises(Damaged, match=rf"{one}.*restore"):
        checkpoint.load(tmp_path)
    findings = {finding.file: finding for finding in doctor.examine(StateDirectory(tmp_path))}
    assert findings[f"frozen/{one.name}"].state == "damaged"
    assert findings[f"frozen/{other.name}"].state == "sound"


@pytest.mark.parametrize("harm", ["flipped", "missing"])
def test_a_file_that_is_harmed_while_the_trainer_lives_is_written_again(tmp_path: Path, harm: str) -> None:
    store = FrozenStore(tmp_path, DISK)
    save(store, state(large=LARGE))
    path = store.path(*stored(tmp_path))
    if harm == "missing":
        path.unlink()
    else:
        with path.open("r+b") as file:
            file.seek(-9, 2)
            file.write(b"x")
    save(store, state(large=LARGE))
    loaded = checkpoint.load(tmp_path)
    assert loaded is not None
    np.testing.assert_array_equal(loaded.tensors["fixed.large"], LARGE)


def test_a_file_is_on_disk_before_the_checkpoint_refers_to_it(tmp_path: Path) -> None:
    calls: list[tuple[str, str]] = []

    class Recorder(Disk):
        def sync_data(self, fd: int) -> None:
            calls.append(("sync", ""))
            super().sync_data(fd)

        def sync_directory(self, path: Path) -> None:
            calls.append(("sync directory", path.name))
            super().sync_directory(path)

        def replace(self, source: Path, target: Path) -> None:
            calls.append(("rename", target.parent.name))
            super().replace(source, target)

    disk = Recorder()
    checkpoint.save(tmp_path, META, FrozenStore(tmp_path, disk).referred(state(large=LARGE)), disk)
    root = tmp_path.name
    expected = [("sync directory", root), ("sync", ""), ("rename", "frozen"), ("sync directory", "frozen")]
    assert calls == [*expected, ("sync", ""), ("rename", root), ("sync directory", root)]


def test_doctor_says_what_nothing_refers_to(tmp_path: Path) -> None:
    store = FrozenStore(tmp_path, DISK)
    store.referred(state(large=LARGE))
    (finding,) = (each for each in doctor.examine(StateDirectory(tmp_path)) if each.file.startswith("frozen/"))
    assert (finding.state, "nothing refers to it" in finding.what) == ("note", True)


# -- a daemon with a frozen backbone -----------------------------------------------------------------------------------

BACKBONE = """
import torch
from torch import nn

class Headed(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(inputs, 2000), nn.Tanh(), nn.Linear(2000, 2000), nn.Tanh())
        self.backbone.requires_grad_(False)
        self.register_buffer("order", torch.randperm(2000))
        self.head = nn.Linear(2000, outputs)

    def forward(self, x):
        return self.head(self.backbone(x)[:, self.order])

def headed(input_shape, outputs):
    return Headed(input_shape[0], outputs)
"""
MOST = 1 << 20


@pytest.mark.campaign
def test_a_frozen_backbone_is_in_no_checkpoint_version_or_publication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "backbones.py").write_text(BACKBONE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(__file__).parents[1]}")
    monkeypatch.syspath_prepend(tmp_path)
    tree = {
        "model": {"factory": "backbones:headed", "classes": 2},
        "train": {"epochs": 1, "device": "cpu"},
        "posterior": {"mode": "factors"},
    }
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 5)).astype("<f4"), (np.arange(40) % 2).astype("<i8")
    directory = tmp_path / "state"
    with LocalDaemon(tree, directory) as daemon:
        with daemon.producer() as producer:
            for task in "ab":
                producer.send(x, y, task)
                producer.boundary(task)
        with daemon.admin() as admin, daemon.reader() as model:
            before, exported = model.predict(x).arrays["probs"], admin.export()
        live = StateDirectory(directory).parameters.stat().st_size
    saved = [directory / "checkpoint", *(directory / "versions").iterdir()]
    sizes = [path.stat().st_size for path in saved]
    assert len(sizes) == 3
    assert max(*sizes, live) < MOST
    kept = sum(path.stat().st_size for path in (directory / "frozen").iterdir())
    assert 16_000_000 < kept < 17_000_000
    assert b"backbone.2.weight" in exported.state[:2000]
    assert len(exported.state) > 16_000_000
    assert not [finding for finding in doctor.examine(StateDirectory(directory)) if finding.state == "damaged"]
    with LocalDaemon(tree, directory) as daemon, daemon.reader() as model:
        np.testing.assert_array_equal(model.predict(x).arrays["probs"], before)
    _make_old(directory)
    with LocalDaemon(tree, directory) as daemon, daemon.reader() as model, daemon.producer() as producer:
        np.testing.assert_array_equal(model.predict(x).arrays["probs"], before)
        producer.send(x, y, "c")
        producer.boundary("c")
    assert (directory / "checkpoint").stat().st_size < MOST


def _make_old(directory: Path) -> None:
    """As before there was a place for what is frozen: everything in the checkpoint itself."""
    loaded = checkpoint.load(directory)
    assert loaded is not None
    checkpoint.save(directory, loaded.meta, loaded.tensors, DISK)
    for path in (directory / "frozen").iterdir():
        path.unlink()
    assert (directory / "checkpoint").stat().st_size > 16_000_000
