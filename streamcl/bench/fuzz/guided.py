"""Fuzzing that looks at which lines a message reaches: ``python -m streamcl.bench.fuzz.guided [-runs=N] [CORPUS]``.

Needs atheris (pip install 'streamcl[fuzz]'). An input is a byte for the socket, then frames, each after its length in two
bytes. Stops at the first message that breaks a promise, and prints it.
"""

from __future__ import annotations

import random
import struct
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from streamcl.bench.fuzz.mutants import KINDS, Frames, mutant

_LENGTH = struct.Struct("<H")
SEEDS = 200


def pack(socket: int, parts: Frames) -> bytes:
    """A message as an input."""
    return bytes([socket]) + b"".join(_LENGTH.pack(len(part)) + part for part in parts if len(part) < 2**16)


def unpack(data: bytes) -> Frames:
    """The frames of an input, whatever it is."""
    return list(_frames(data)) or [b""]


def _frames(data: bytes) -> Iterator[bytes]:
    at = 1
    while at + _LENGTH.size <= len(data):
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        yield data[at : at + length]
        at += length


def write_seeds(directory: Path) -> None:
    """Some messages of every kind to begin with."""
    rng = random.Random(0)
    for number in range(SEEDS):
        socket = number % len(KINDS)
        (directory / f"seed-{number}").write_bytes(pack(socket, mutant(rng, list(KINDS)[socket])))


def main(arguments: list[str]) -> None:
    """Fuzz until told to stop."""
    import atheris

    for name in [name for name in sys.modules if name.startswith("streamcl.") and ".fuzz" not in name]:
        del sys.modules[name]  # imported again, with every branch counted this time
    with atheris.instrument_imports(include=["streamcl.protocol", "streamcl.daemon", "streamcl.errors"]):
        from streamcl.bench.fuzz.bench import HOSTILE, SOCKETS, Bench

    with tempfile.TemporaryDirectory(prefix="streamcl-fuzz-") as directory, tempfile.TemporaryDirectory() as seeds:
        write_seeds(Path(seeds))
        bench = Bench(directory)
        bench.clean_step(boundary=False)

        def one(data: bytes) -> None:
            if data:
                bench.feed(SOCKETS[data[0] % len(SOCKETS)], HOSTILE[0], unpack(data))
            if bench.found.broken:
                raise AssertionError(bench.found.broken[0])

        atheris.Setup([sys.argv[0], *arguments, seeds], one)
        atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1:])
