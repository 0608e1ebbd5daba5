"""A follower's state directory: one publication of the daemon that it follows, put in place whole.

    live/parameters, live/posterior    as the daemon has them, byte for byte
    frozen/DIGEST                      likewise; each fetched once
    incoming/DIGEST                    what is being fetched; goes on from where it was cut off
    followed, followed.next            JSON: which publication this is, and the SHA-256 of its files; which one it will be
    follows                            where the daemon is, as text; who finds it here knows that this is a follower's

Guarantees: nothing is put in place before its digest has been verified, and the parameters come last, in one rename; so
whoever reads them has all that they refer to. Nothing is synced: what a power cut leaves is verified before it is used
(`recover`), and fetched again where it is not whole. Holds no file in memory.
"""

from __future__ import annotations

import hashlib
import mmap
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from streamcl.errors import ConfigError, Damaged, UnknownFormat
from streamcl.storage import checkpoint, container, frozen, published, verified
from streamcl.storage.state import StateDirectory

RECORD = "followed"
FOLLOWS = "follows"
INCOMING = "incoming"
DONE = ".done"  # behind the name of a file that is fetched and verified


class File(msgspec.Struct, frozen=True):
    """One of a publication's files: the SHA-256 of its bytes, and how many."""

    digest: str
    bytes: int


class Newest(msgspec.Struct, frozen=True):
    """What a daemon has published last: the version of the parameters, the log record and the rows they have come to."""

    version: int
    position: int
    rows: int

    def plain(self) -> dict[str, int]:
        """As a mapping."""
        return {"version": self.version, "position": self.position, "rows": self.rows}


class Publication(msgspec.Struct, frozen=True):
    """Which publication, and its files."""

    publication: str
    version: int
    position: int
    rows: int
    parameters: File
    posterior: File | None = None
    published_at: float | None = None

    @property
    def newest(self) -> Newest:
        """Where it stands."""
        return Newest(self.version, self.position, self.rows)


class Mirror:
    """One follower's directory. current: what is in place."""

    def __init__(self, directory: Path) -> None:
        self.state = StateDirectory(directory)
        self.incoming = directory / INCOMING
        self.record = directory / RECORD
        self.current: Publication | None = None

    def recover(self) -> None:
        """Take over what is in place, where it is whole; remove it where it is not.

        Raises ConfigError where the directory is a daemon's that learns.
        """
        if any(path.exists() for path in (self.state.path / checkpoint.NAME, self.state.log)):
            raise ConfigError(
                f"state_dir: {self.state.path} is the state directory of a daemon that learns; expected one of the "
                "follower's own (--state-dir), which may be new"
            )
        self.current = next(filter(self._is_whole, self._recorded()), None)
        if self.current is None:
            for path in (self.state.parameters, self.state.posterior):
                published.clear(path)

    def note(self, endpoint: str) -> None:
        """Whose directory this is: the follower's of the daemon at an endpoint. Raises OSError."""
        aside = self.state.path / f"{FOLLOWS}.next"
        aside.write_text(f"{endpoint}\n")
        aside.replace(self.state.path / FOLLOWS)

    def _recorded(self) -> Iterator[Publication]:
        """What may be in place: as recorded last; what was being put there; the former with the latter's posterior, which
        comes first."""
        before, after = _read(self.record), _read(self._next)
        if before is not None and after is not None:
            yield msgspec.structs.replace(before, publication="", posterior=after.posterior)
        yield from (each for each in (before, after) if each is not None)

    @property
    def _next(self) -> Path:
        return self.record.with_name(f"{RECORD}.next")

    def _is_whole(self, found: Publication) -> bool:
        files = [(self.state.parameters, found.parameters), (self.state.posterior, found.posterior)]
        if any(file is not None and _digest(path) != file.digest for path, file in files):
            return False
        sound = [self._is_sound(digest) for digest in self._references(self.state.parameters)]
        return all(sound)

    def _is_sound(self, digest: str) -> bool:
        """Whether an array that the parameters refer to is here; what is here in its place and is not it is removed."""
        try:
            _verify_frozen(self._frozen(digest), digest)
        except FileNotFoundError:
            return False
        except (Damaged, OSError, UnknownFormat):
            self._frozen(digest).unlink(missing_ok=True)
            return False
        return True

    # -- fetching ------------------------------------------------------------------------------------------------

    def lacking(self, wanted: Publication) -> str | None:
        """The digest of the next file that a publication needs and that is not here; None where all are.

        Raises Damaged where its parameters are not what streamcl publishes.
        """
        current = self.current
        if not self._has(wanted.parameters, None if current is None else current.parameters):
            return wanted.parameters.digest
        if wanted.posterior is not None and not self._has(wanted.posterior, None if current is None else current.posterior):
            return wanted.posterior.digest
        needed = self._references(self._place(wanted.parameters, self.state.parameters))
        return next((digest for digest in sorted(needed) if not self._frozen(digest).exists()), None)

    def _has(self, file: File, current: File | None) -> bool:
        return (current is not None and current.digest == file.digest) or self._done(file.digest).exists()

    def _place(self, file: File, path: Path) -> Path:
        """Where a file is: fetched, or in place."""
        done = self._done(file.digest)
        return done if done.exists() else path

    def fetched(self, digest: str) -> int:
        """How many bytes of a file are here."""
        path = self.incoming / digest
        return path.stat().st_size if path.exists() else 0

    def append(self, digest: str, data: Any) -> None:
        """More bytes of a file. Raises OSError."""
        self.incoming.mkdir(mode=0o700, exist_ok=True)
        with (self.incoming / digest).open("ab") as file:
            file.write(data)

    def complete(self, wanted: Publication, digest: str) -> None:
        """All of a file is here: verify it. Raises Damaged, and removes it, where it is not what it should be."""
        path = self.incoming / digest
        own = digest in (wanted.parameters.digest, wanted.posterior and wanted.posterior.digest)
        try:
            if own:
                self._verify_own(path, digest)
                path.rename(self._done(digest))
            else:
                _verify_frozen(path, digest)
                self._frozen(digest).parent.mkdir(mode=0o700, exist_ok=True)
                path.rename(self._frozen(digest))
        except Damaged:
            path.unlink(missing_ok=True)
            raise

    def _verify_own(self, path: Path, digest: str) -> None:
        found = _digest(path)
        if found != digest:
            raise Damaged(f"what was fetched has the digest {found}, expected {digest}; it is fetched again")

    # -- putting in place ----------------------------------------------------------------------------------------

    def adopt(self, wanted: Publication) -> None:
        """Put a publication in place, of which nothing is lacking. Raises OSError."""
        parameters = self._place(wanted.parameters, self.state.parameters)
        kept = self._references(parameters) | (self._references(self.state.parameters) if self.current else set())
        self._next.write_bytes(msgspec.json.encode(wanted))
        if wanted.posterior is not None and self._done(wanted.posterior.digest).exists():
            published.adopt(self.state.posterior, self._done(wanted.posterior.digest))
        if wanted.posterior is None:
            published.clear(self.state.posterior)
        if parameters != self.state.parameters:
            published.adopt(self.state.parameters, parameters)
        self.current = wanted
        self._next.replace(self.record)
        self._sweep(kept)

    def _sweep(self, kept: set[str]) -> None:
        """Remove what neither this publication nor the one before refers to, and what was fetched in vain."""
        shutil.rmtree(self.incoming, ignore_errors=True)
        for path in (self.state.path / frozen.DIRECTORY).glob("*"):
            if path.name not in kept:
                path.unlink(missing_ok=True)

    def keep_only(self, wanted: Publication | None) -> None:
        """Of what is being fetched, forget all that another publication than this had of its own."""
        known = set() if wanted is None else {wanted.parameters.digest, wanted.posterior and wanted.posterior.digest}
        for path in self.incoming.glob("*"):
            if path.suffix == DONE and path.stem not in known:
                path.unlink(missing_ok=True)

    def _done(self, digest: str) -> Path:
        return self.incoming / f"{digest}{DONE}"

    def _frozen(self, digest: str) -> Path:
        return self.state.path / frozen.DIRECTORY / digest

    @staticmethod
    def _references(path: Path) -> set[str]:
        with path.open("rb") as file:
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        return set(frozen.references(container.unpack(data, path)[1]).values())


def followed_by(directory: Path) -> str | None:
    """The endpoint of the daemon that a state directory's follower follows; None where it is no follower's."""
    try:
        return (directory / FOLLOWS).read_text(errors="replace").strip() or None
    except OSError:
        return None


def _read(path: Path) -> Publication | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Publication)
    except (OSError, msgspec.DecodeError):
        return None


def _verify_frozen(path: Path, digest: str) -> None:
    """Raise Damaged unless a file holds the array of this digest, and says so."""
    saved = verified.load(path)
    if saved.meta != {"digest": digest} or set(saved.tensors) != {""} or frozen.digest_of(saved.tensors[""]) != digest:
        raise Damaged(f"what was fetched is not the array of the digest {digest}; it is fetched again")


def _digest(path: Path) -> str | None:
    """The SHA-256 of a file; None where it is missing."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return None
