"""Key files: small TOML texts, the secret one readable by its owner alone, the public one by everybody.

Guarantees: a secret file is created 0600 and never overwritten; one that others can read is refused, with the remedy.
Keys are CURVE keys in Z85, 40 characters. Knows nothing of sockets or of what a key may do.

    NAME.key    name, public, secret, and the daemon's public key if it is known (server)
    NAME.pub    name, public
"""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

from streamcl.errors import ConfigError

KEY = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
MOST_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Keys:
    """A key pair in Z85, its name, and the public key of the daemon that it is for, if known."""

    public: str
    secret: str = field(repr=False)
    name: str = ""
    server: str | None = None


def write(directory: Path, keys: Keys) -> tuple[Path, Path]:
    """Write NAME.key (0600) and NAME.pub (0644); raises ConfigError if either exists already."""
    if not NAME.fullmatch(keys.name):
        raise ConfigError(f"key name {keys.name!r}: expected 1 to 128 of A-Z a-z 0-9 . _ -, not beginning with a dot")
    secret, public = directory / f"{keys.name}.key", directory / f"{keys.name}.pub"
    for path in (secret, public):
        if path.exists():
            raise ConfigError(f"{path}: exists already and is not overwritten; move it away, or choose another name")
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    server = "" if keys.server is None else f'server = "{keys.server}"\n'
    shown = f'name = "{keys.name}"\npublic = "{keys.public}"\n'
    _create(secret, 0o600, f'# secret: whoever has this file is {keys.name}\n{shown}secret = "{keys.secret}"\n{server}')
    _create(public, 0o644, shown)
    return secret, public


def _create(path: Path, mode: int, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(fd, "w") as file:
        os.fchmod(fd, mode)  # whatever the umask is
        file.write(text)


def load(path: Path) -> Keys:
    """The key pair of a secret file; raises ConfigError, also if others can read the file."""
    if path.suffix == ".pub":
        raise ConfigError(f"{path}: a public key; expected the file of the secret one, NAME.key")
    fields = _fields(path, read_private(path))
    for name in ("public", "secret"):
        if not _is_key(fields.get(name)):
            raise ConfigError(f"{path}: {name}: expected a key of 40 characters; make a file with `streamcl keygen NAME`")
    server = fields.get("server")
    if server is not None and not _is_key(server):
        raise ConfigError(f"{path}: server: expected the daemon's public key, 40 characters")
    return Keys(str(fields["public"]), str(fields["secret"]), str(fields.get("name", "")), server)


def public_key(given: str | os.PathLike[str]) -> str:
    """A public key, given as such or as the path of a file that holds one; raises ConfigError."""
    text = os.fspath(given)
    if _is_key(text):
        return text
    path = Path(text)
    try:
        public = _fields(path, path.read_text(errors="replace")).get("public")
    except OSError as error:
        raise ConfigError(f"{path}: expected a public key of 40 characters or a NAME.pub file: {error.strerror}") from None
    if not _is_key(public):
        raise ConfigError(f"{path}: public: expected a key of 40 characters")
    return str(public)


def read_private(path: Path) -> str:
    """The text of a file that only its owner may read; raises ConfigError if others can."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    with os.fdopen(fd, "rb") as file:
        mode = os.fstat(fd).st_mode & 0o777
        if mode & (0o037 if _is_credential(path) else 0o077):
            raise ConfigError(f"{path}: expected permissions 0600, got {mode:04o}: others can read it; chmod 600 {path}")
        return file.read(MOST_BYTES).decode(errors="replace")


def _is_credential(path: Path) -> bool:
    """Whether systemd made this copy for this service alone; its right to read it may show in the group's bits (an ACL)."""
    directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
    return directory.startswith("/") and path.resolve().parent == Path(directory).resolve()


def _fields(path: Path, text: str) -> dict[str, str]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: expected a key file as `streamcl keygen` writes it: {error}") from None


def _is_key(value: object) -> bool:
    return isinstance(value, str) and KEY.fullmatch(value) is not None
