"""The few file operations that durability rests on, in one injectable place.

Guarantees: `write` writes everything or raises; a failed sync raises `SyncFailed` and is never tried again, since the
kernel may have dropped the pages (the process must end and recover from what is on disk).
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from pathlib import Path

from streamcl.errors import StreamclError

Buffer = bytes | bytearray | memoryview
MAX_VECTORS = 512
COPIED_BYTES = 8 << 20
_NO_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})  # no room; any other error is another matter


class SyncFailed(StreamclError):
    """The disk did not confirm a write; what is on it is unknown until the next start reads it."""


class Disk:
    """The real disk; tests replace it by one that fails, or records what it is asked to do."""

    def make_directory(self, path: Path) -> None:
        """Create a directory (0700) and its parents if they are missing; on disk on return. Raises SyncFailed."""
        missing = [each for each in (path, *path.parents) if not each.exists()]
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in reversed(missing):
            self.sync_directory(each.parent)

    def create(self, path: Path) -> int:
        """Open a new file for writing; raises FileExistsError."""
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)

    def open(self, path: Path) -> int:
        """Open an existing file for writing."""
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, fd: int, buffers: Sequence[Buffer], offset: int) -> int:
        """Write all buffers at an offset; returns the offset after them. Raises OSError, with some bytes written."""
        views = [memoryview(buffer).cast("B") for buffer in buffers if len(buffer)]
        while views:
            written = os.pwritev(fd, views[:MAX_VECTORS], offset)
            offset += written
            while views and written >= len(views[0]):
                written -= len(views.pop(0))
            if written:
                views[0] = views[0][written:]
        return offset

    def sync_data(self, fd: int) -> None:
        """fdatasync: the bytes and the length are on disk. Raises SyncFailed."""
        try:
            os.fdatasync(fd)
        except OSError as error:
            raise SyncFailed(f"fdatasync failed: {error}; stopping, to recover from what is on disk") from error

    def sync_directory(self, path: Path) -> None:
        """Names created, renamed and removed in a directory are on disk. Raises SyncFailed."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        except OSError as error:
            raise SyncFailed(f"fsync of {path} failed: {error}; stopping, to recover from disk") from error
        finally:
            os.close(fd)

    def truncate(self, fd: int, length: int) -> None:
        """Truncate a file to a length."""
        os.ftruncate(fd, length)

    def replace(self, source: Path, target: Path) -> None:
        """Atomic rename."""
        os.replace(source, target)

    def link(self, source: Path, target: Path) -> None:
        """A second name for a file that is never written to again; a synced copy if the file system has no hard links.

        Raises OSError.
        """
        try:
            os.link(source, target)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            self._copy(source, target)

    def _copy(self, source: Path, target: Path) -> None:
        fd = self.create(target)
        try:
            with source.open("rb") as file:
                offset = 0
                while block := file.read(COPIED_BYTES):
                    offset = self.write(fd, [block], offset)
            self.sync_data(fd)
        except OSError:
            self.unlink(target)
            raise
        finally:
            self.close(fd)

    def unlink(self, path: Path) -> None:
        """Remove a file, if it is still there."""
        path.unlink(missing_ok=True)

    def has_room(self, directory: Path, nbytes: int) -> bool:
        """Whether a file of so many bytes could be written there now."""
        probe = directory / "room.tmp"
        fd = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.posix_fallocate(fd, 0, nbytes)
        except OSError as error:
            if error.errno not in FULL:
                raise
            return False
        finally:
            os.close(fd)
            probe.unlink()
        return True

    def close(self, fd: int) -> None:
        """Close a descriptor."""
        os.close(fd)
