"""Messages that no honest client sends: sound ones with something wrong, and pure noise.

Never names a task of the clean stream (`CLEAN`), so no mutant can be a message that the clean stream's outcome depends on.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable
from typing import Any

import msgpack
import numpy as np

CLEAN = "clean"  # the names of the honest producer and its tasks
FEATURES, CLASSES = 4, 3
NAMES = ("hostile-1", "hostile-2", "", "a" * 128, "a" * 129, "../x", "ä", "\x00", "x\n", "hostile 3", "-", "*")
NUMBERS = (0, 1, 2, 3, -1, 2**31, 2**53, 2**62, 2**63 - 1, 2**64 - 1, -(2**63), 0.0, 0.5, 1.0, 1e300, -0.0)
ODD: tuple[Any, ...] = (
    *(None, True, False, float("nan"), float("inf"), float("-inf")),
    *(b"", b"\xff" * 9, [], {}, [[]], {"a": {}}, "", "1", "NaN"),
)
DTYPES = ("<f4", "<f8", "<f2", "<i8", "<i4", "|u1", ">f4", "|O", "<c8", "|V8", "<M8[ns]", "f4", "", "<f4" * 9)
SHAPES: tuple[Any, ...] = (
    [2, FEATURES],
    [2],
    [],
    [0],
    [-1],
    [-2, -2],
    [2**40, 2**40],
    [2**62, 4],
    [0, 2**47, 2**47],
    [1] * 16,
    [1] * 17,
    [True],
    [1.0],
    ["2"],
    "2",
    {"0": 2},
    None,
)
Frames = list[bytes]
KINDS = {
    "stream": ("hello", "batch", "boundary", "revisit"),
    "predict": ("predict", "predict", "schema", "follow", "part"),
    "admin": (
        *("status", "tasks", "history", "producers", "metrics", "parameters", "boundary", "revisit", "abandon", "forget"),
        *("checkpoint", "pause", "resume", "stop"),
    ),
}
FIELDS = (
    *("seq", "first", "task", "boundary", "producer", "epoch", "weight"),
    *("barrier", "damping", "samples", "offset", "drain", "wait"),
)


def mutant(rng: random.Random, socket: str) -> Frames:
    """One hostile message for a socket."""
    make = rng.choices((_sound, _twisted, _rewritten, _generated, _noise), (2, 4, 4, 2, 1))[0]
    frames = make(rng, socket)
    if rng.random() < 0.1:
        frames = rng.choice(_FRAMINGS)(rng, frames)
    return frames or [b""]


# -- sound messages ----------------------------------------------------------------------------------------------------


def _header(rng: random.Random, socket: str) -> dict[str, Any]:
    header: dict[str, Any] = {"v": 1, "type": rng.choice(KINDS[socket])}
    match header["type"]:
        case "hello":
            header |= {"producer": rng.choice(NAMES[:2]), "epoch": rng.choice((0, 1, 2**40))}
        case "batch" | "boundary" | "revisit" | "forget":
            header |= {"task": rng.choice(NAMES[:2]), "seq": rng.choice((1, 1, 1, 2, 3, 9))}
        case "part":
            header |= {"digest": rng.choice(("0" * 64, "f" * 63)), "offset": rng.choice((0, 1, 2**62))}
        case "follow":
            header |= {"have": rng.choice(("0" * 64, "f" * 63)), "wait": rng.choice((0.0, 1.0, 31.0))}
    if header["type"] == "boundary":
        header |= {"barrier": {rng.choice(NAMES[:2]): rng.choice((0, 1, 5))}, "weight": rng.choice((0.0, 1.0, 1e9))}
    if "seq" in header and rng.random() < 0.2:
        header["first"] = rng.choice((1, 2, header["seq"], 2**62))
    if rng.random() < 0.5:
        header["id"] = rng.choice((1, "q", b"q", [1, "a"], 2**63, 0.5))
    return header


def _arrays(rng: random.Random, kind: str) -> dict[str, Any]:
    n = rng.choice((1, 2, 3))
    x = np.ones((n, FEATURES), rng.choice(("<f4", "<f8", "<f2", "|u1")))
    if kind == "batch":
        return {"x": x, "y": np.zeros(n, "<i8")}
    return {"x": x} if kind == "predict" else {}


def _parts(rng: random.Random, socket: str) -> tuple[dict[str, Any], Frames]:
    header = _header(rng, socket)
    arrays = _arrays(rng, header["type"])
    if arrays:
        header["arrays"] = [{"name": n, "dtype": a.dtype.str, "shape": list(a.shape)} for n, a in arrays.items()]
    return header, [array.tobytes() for array in arrays.values()]


def _sound(rng: random.Random, socket: str) -> Frames:
    header, payloads = _parts(rng, socket)
    return [msgpack.packb(header), *payloads]


# -- something wrong with them -----------------------------------------------------------------------------------------


def _twisted(rng: random.Random, socket: str) -> Frames:
    """Sound msgpack, wrong in a field or in an array."""
    header, payloads = _parts(rng, socket)
    for _ in range(rng.randint(1, 3)):
        rng.choice(_TWISTS)(rng, header, payloads)
    return [_packed(header), *payloads]


def _packed(header: dict[str, Any]) -> bytes:
    packed: bytes = msgpack.packb(header)
    return packed


def _replace(rng: random.Random, header: dict[str, Any], payloads: Frames) -> None:
    header[rng.choice((*header, *FIELDS))] = _value(rng)


def _remove(rng: random.Random, header: dict[str, Any], payloads: Frames) -> None:
    header.pop(rng.choice(list(header) or ["v"]), None)


def _grow(rng: random.Random, header: dict[str, Any], payloads: Frames) -> None:
    """A long value: past a limit of its own, past the header's, or within the header's and past its reply's."""
    header[rng.choice((f"extra{rng.random()}", "id"))] = "x" * rng.choice((10, 1000, 65_480, 70_000))


def _retype(rng: random.Random, header: dict[str, Any], payloads: Frames) -> None:
    others = ("predict", "welcome", "ack", "__class__", "", _value(rng))
    header["type"] = rng.choice((*KINDS["stream"], *KINDS["admin"], *others))


def _respecify(rng: random.Random, header: dict[str, Any], payloads: Frames) -> None:
    specs = header.get("arrays")
    if not isinstance(specs, list) or not specs or not isinstance(specs[0], dict):
        header["arrays"] = rng.choice((None, [], [{}], [1], {}, "x", [{"name": "x", "dtype": "<f4", "shape": [0]}] * 9))
        return
    spec = rng.choice(specs)
    name, value = rng.choice((("dtype", rng.choice(DTYPES)), ("shape", rng.choice(SHAPES)), ("name", rng.choice(NAMES))))
    spec[name] = value if rng.random() < 0.9 else _value(rng)


def _refill(rng: random.Random, header: dict[str, Any], payloads: Frames) -> None:
    if payloads:
        place = rng.randrange(len(payloads))
        raw = payloads[place]
        nan = struct.pack("<f", float("nan")) * (len(raw) // 4)
        payloads[place] = rng.choice((raw + b"\0", raw[:-1], b"", bytes(len(raw)), b"\xff" * len(raw), nan))


def _deepen(rng: random.Random, header: dict[str, Any], payloads: Frames) -> None:
    deep: Any = 1
    for _ in range(rng.choice((3, 30, 400))):
        deep = [deep] if rng.random() < 0.5 else {"a": deep}
    header[rng.choice(("id", "task", "seq", "arrays", "v", "type", "barrier", "x"))] = deep


_TWISTS: tuple[Callable[[random.Random, dict[str, Any], Frames], None], ...] = (
    *(_replace, _replace, _remove, _grow, _retype, _respecify, _respecify, _refill, _deepen),
)


def _value(rng: random.Random) -> Any:
    return rng.choice(rng.choice((NAMES, NUMBERS, ODD, SHAPES)))


def _rewritten(rng: random.Random, socket: str) -> Frames:
    """A sound message with bytes of its header changed, lost, doubled or put elsewhere."""
    frames = _sound(rng, socket)
    raw = bytearray(frames[0])
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(raw) + 1)
        match rng.randrange(5):
            case 0 if at < len(raw):
                raw[at] ^= 1 << rng.randrange(8)
            case 1:
                raw[at:at] = rng.randbytes(rng.randint(1, 4))
            case 2:
                del raw[at : at + rng.randint(1, 8)]
            case 3:
                raw[at:at] = raw[at : at + rng.randint(1, 32)]
            case _:
                raw[at : at + 1] = rng.choice(_HEADS)
    return [bytes(raw), *frames[1:]]


_HEADS = tuple(head + b"\xff\xff\xff\xff\x01" for head in (b"\xdf", b"\xdd", b"\xdb", b"\xc6", b"\xc9"))  # 4 GB of ...


# -- pure inventions ---------------------------------------------------------------------------------------------------


def _generated(rng: random.Random, socket: str) -> Frames:
    """msgpack of any shape."""
    return [_packed({"v": 1, "type": rng.choice(KINDS[socket]), **_tree(rng, 4)}) if rng.random() < 0.7 else _any(rng)]


def _tree(rng: random.Random, depth: int) -> dict[Any, Any]:
    return {_name(rng): _node(rng, depth) for _ in range(rng.randint(0, 5))}


def _name(rng: random.Random) -> str:
    return rng.choice((*FIELDS, "id", "arrays", "v", "type", *NAMES))


def _node(rng: random.Random, depth: int) -> Any:
    if depth == 0 or rng.random() < 0.5:
        return _value(rng)
    return _tree(rng, depth - 1) if rng.random() < 0.5 else [_node(rng, depth - 1) for _ in range(rng.randint(0, 4))]


def _any(rng: random.Random) -> bytes:
    value = rng.choice(
        (
            _node(rng, 3),
            msgpack.ExtType(rng.randint(0, 127), rng.randbytes(4)),
            {"v": 1, "type": "hello", "producer": msgpack.ExtType(1, b"")},
            {rng.choice((1, b"v", None, True)): 1, "v": 1, "type": "hello"},
            msgpack.Timestamp(0),
        )
    )
    packed: bytes = msgpack.packb(value)
    return packed


def _noise(rng: random.Random, socket: str) -> Frames:
    """Bytes; or an id nested deeper than a reply can be packed."""
    if rng.random() < 0.2:
        header: bytes = msgpack.packb({"v": 1, "type": rng.choice(KINDS[socket]), "producer": NAMES[0], "id": None})
        return [header[:-1] + b"\x91" * rng.choice((509, 510, 511, 1000)) + b"\x01"]
    return [rng.randbytes(rng.choice((0, 1, 5, 50, 500))) for _ in range(rng.randint(1, 3))]


# -- frames ------------------------------------------------------------------------------------------------------------

_FRAMINGS: tuple[Callable[[random.Random, Frames], Frames], ...] = (
    lambda rng, frames: [b"", *frames],
    lambda rng, frames: [b"", b"", *frames],
    lambda rng, frames: [*frames, rng.randbytes(8)],
    lambda rng, frames: frames * rng.randint(2, 12),
    lambda rng, frames: frames[:-1],
    lambda rng, frames: frames[::-1],
    lambda rng, frames: [*frames, *[b"x"] * rng.choice((8, 9, 200))],
    lambda rng, frames: [frames[0] + bytes(66_000), *frames[1:]],
)
