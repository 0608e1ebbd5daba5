"""Arrays that never change, stored once: frozen parameters and constant buffers, by the digest of what they hold.

STATE/frozen holds a verified file for each, named for its digest. What needs it (the checkpoint, its versions, published
parameters) holds 32 bytes under ``by-digest.NAME`` in its place. Small ones are not worth a file, and stay where they are.

Guarantees: a file is durable before anything refers to it, and is removed only when nothing on disk does. An array is
referred to only where it is what the file holds, to the bit; one that changes after all is written out whole from then on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.errors import Damaged, StreamclError
from streamcl.storage import verified
from streamcl.storage.container import REFERENCE
from streamcl.storage.disk import Disk

DIRECTORY = "frozen"
BEFORE = "before."  # before the names of what holds again if a revisit is abandoned
FIXED = "fixed."  # before the names of what training does not change
LEAST_BYTES = 16 << 10
PIECES = 64  # of an array, looked at where not all of it is compared

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]


def digest_of(array: Array) -> str:
    """SHA-256 of an array's dtype, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(f"{array.dtype.str} {list(array.shape)}\n".encode())
    digest.update(_bytes(array).data)
    return digest.hexdigest()


def references(arrays: Arrays) -> dict[str, str]:
    """The digests that stand in a file in the place of arrays, by the arrays' names."""
    found = {name: array for name, array in arrays.items() if name.startswith(REFERENCE)}
    return {name.removeprefix(REFERENCE): array.tobytes().hex() for name, array in found.items()}


class Changed(StreamclError):
    """What was taken for constant is not."""


@dataclass(frozen=True, slots=True)
class Presumed:
    """An array that a file refers to as the stored one."""

    name: str
    array: Array
    stored: Array

    def check(self, breathe: Callable[[], None]) -> None:
        """Compare every byte; raises Changed. breathe: called between pieces."""
        if not _is_alike(self.array, self.stored, True, breathe):
            raise Changed(f"{self.name} has changed; expected what training leaves as it is")


class Frozen:
    """Reads what is stored; each file is verified once, and what it holds is then the same array every time."""

    def __init__(self, state: Path) -> None:
        self.directory = state / DIRECTORY
        self._read: dict[str, Array] = {}

    def path(self, digest: str) -> Path:
        """Where an array lies."""
        return self.directory / digest

    def read(self, digest: str) -> Array:
        """An array, as a private view of its file; raises Damaged where that is missing or unsound."""
        if digest not in self._read:
            self._read[digest] = self._load(digest, verify=True)
        return self._read[digest]

    def resolved(self, arrays: Arrays) -> dict[str, Array]:
        """A file's arrays with those that lie elsewhere in their places; raises Damaged."""
        here = {name: array for name, array in arrays.items() if not name.startswith(REFERENCE)}
        return here | {name: self.read(digest) for name, digest in references(arrays).items()}

    def _load(self, digest: str, verify: bool) -> Array:
        path = self.path(digest)
        try:
            saved = verified.load(path, verify)
        except FileNotFoundError:
            raise Damaged(f"{path}: this part of the model is missing; restore it from a backup") from None
        if saved.meta != {"digest": digest}:
            raise Damaged(f"{path}: expected the array of this digest, it holds {saved.meta}; restore it from a backup")
        return saved.tensors[""]


class FrozenStore(Frozen):
    """Stores arrays, for the one process that saves; removes what nothing refers to."""

    def __init__(self, state: Path, disk: Disk) -> None:
        super().__init__(state)
        self.disk = disk
        self._known: dict[str, str] = {}  # digests, by name
        self._changing: set[str] = set()

    def resolved(self, arrays: Arrays) -> dict[str, Array]:
        """As a reader's; what is written next will most likely refer to the same."""
        found = super().resolved(arrays)
        self._known |= {_own_name(name): digest for name, digest in references(arrays).items()}
        return found

    def referred(self, arrays: Arrays, whole: bool = True) -> dict[str, Array]:
        """A file's arrays, references in the place of those that are stored, on disk on return.

        whole: compare every byte with what is stored; otherwise some, for a file that the next checkpoint makes up for.
        Raises OSError, SyncFailed, Damaged.
        """
        return dict(self._referred(name, array, whole) for name, array in arrays.items())

    def presumed(self, arrays: Arrays) -> tuple[dict[str, Array], list[Presumed]]:
        """As `referred`, with only some of every array compared; and what is still to be compared, in which this store has
        no further part. Raises OSError, SyncFailed, Damaged."""
        found = self.referred(arrays, whole=False)
        digests = references(found)
        return found, [Presumed(name, arrays[name], self.read(digest)) for name, digest in digests.items()]

    def sweep(self, files: Iterable[Path]) -> None:
        """Remove what neither these files, those of `verified`, nor the arrays stored last refer to."""
        there = {path.name for path in self.directory.glob("*")}
        used = set(self._known.values())
        if there <= used:
            return
        try:
            used |= {digest for path in files for digest in _in_file(path)}
        except Damaged:
            return  # whatever it needs is not known
        for name in there - used:
            self.disk.unlink(self.directory / name)
            self._read.pop(name, None)
        self.disk.sync_directory(self.directory)

    def _referred(self, name: str, array: Array, whole: bool) -> tuple[str, Array]:
        own = _own_name(name)
        if not own.startswith(FIXED) or array.nbytes < LEAST_BYTES or own in self._changing:
            return name, array
        digest = self._stored(own, array, whole)
        return (name, array) if digest is None else (REFERENCE + name, np.frombuffer(bytes.fromhex(digest), np.uint8))

    def _stored(self, name: str, array: Array, whole: bool) -> str | None:
        """The digest of an array that is stored; None for one that has changed since the last time."""
        known = self._known.get(name)
        if known is not None and self._holds(known, array, whole):
            return known
        digest = digest_of(array)
        if known not in (None, digest):
            self._changing.add(name)
            del self._known[name]
            return None
        self._store(digest, array)
        self._known[name] = digest
        return digest

    def _store(self, digest: str, array: Array) -> None:
        """Write a file, unless a sound one is there."""
        if self._holds(digest, array, whole=True):
            return
        self.disk.make_directory(self.directory)
        verified.save(self.path(digest), {"digest": digest}, {"": array}, self.disk)
        self._read[digest] = self._load(digest, verify=False)  # it was read back and compared just now

    def _holds(self, digest: str, array: Array, whole: bool) -> bool:
        """Whether the file is there and holds this array."""
        try:
            return self.path(digest).exists() and _is_alike(array, self.read(digest), whole)
        except Damaged:
            return False


def _own_name(name: str) -> str:
    """What holds before a revisit is what holds during it."""
    return name.removeprefix(BEFORE)


def _in_file(path: Path) -> Iterator[str]:
    try:
        yield from references(verified.load(path, verify=False).tensors).values()
    except FileNotFoundError:
        return


def _bytes(array: Array) -> npt.NDArray[np.uint8]:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _is_alike(array: Array, stored: Array, whole: bool, breathe: Callable[[], None] = lambda: None) -> bool:
    """Whether an array is what is stored: byte by byte, or some bytes of it."""
    if (array.dtype, array.shape) != (stored.dtype, stored.shape):
        return False
    one, other = _bytes(array), _bytes(stored)
    if not whole:
        step = max(1, len(one) // PIECES) | 1  # an odd one comes by every byte of a number
        return np.array_equal(one[::step], other[::step])
    return verified.are_alike(one, other, breathe)
