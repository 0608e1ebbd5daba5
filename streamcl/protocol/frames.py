"""Frames to envelopes and back: ``[header] [array 0] ... [array k-1]``.

Guarantees: nothing is decoded before its size has been checked, and nothing is ever executed or copied: an
envelope's arrays are read-only views of the frames they came in. Any input gives an `Envelope` or `Refused`,
never another exception. Knows nothing of sockets or of what the messages mean.

The header is one msgpack map of at most `HEADER_BYTES` with ``v: 1`` and ``type``. Arrays are raw, C-contiguous,
little-endian, described in order by ``header["arrays"] = [{"name", "dtype", "shape"}]``. A message may start with
one empty delimiter frame (REQ sockets add it); its reply then starts with one too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

from streamcl.arrays import DTYPES
from streamcl.errors import Refused

VERSION = 1
HEADER_BYTES = 64 * 1024
MAX_ARRAYS = 8
MAX_DIMENSIONS = 16
MESSAGE_BYTES = 64 * 1024 * 1024
MAX_ID_BYTES = 1024
WORDS_GO = "; words go with a table of pandas, Polars or Arrow as x, or as codes with their `categories` in a schema"

Buffer = bytes | bytearray | memoryview
Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Envelope:
    """One message whose frames and header are sound; its arrays and meaning are still unchecked.

    header: the decoded msgpack map.
    payloads: the raw frames after the header, one for each array.
    delimited: the message began with an empty frame, so the reply must as well.
    """

    header: dict[str, Any]
    payloads: tuple[Buffer, ...]
    delimited: bool


@dataclass(frozen=True, slots=True)
class NamedArrays:
    """The arrays of a message by name, and the raw frames they are views of, in the order sent."""

    by_name: dict[str, Array] = field(default_factory=dict)
    payloads: tuple[Buffer, ...] = ()

    def __getitem__(self, name: str) -> Array:
        return self.by_name[name]


def parse(frames: Sequence[Buffer], message_bytes: int = MESSAGE_BYTES) -> Envelope:
    """Check the frames' number and sizes, then decode the header.

    Raises Refused: ``too_large`` for a frame count or size beyond the limits, ``bad_header`` for a header that is
    not one msgpack map of version 1. A Refused raised here carries the message's `id` and `seq` if they were legible.
    """
    delimited = is_delimited(frames)
    body = frames[1:] if delimited else frames
    _check_sizes(body, message_bytes)
    return Envelope(_unpack_header(body[0]), tuple(body[1:]), delimited)


def is_delimited(frames: Sequence[Buffer]) -> bool:
    """Whether the message starts with the empty frame that REQ sockets add."""
    return len(frames) > 1 and len(frames[0]) == 0


def _check_sizes(body: Sequence[Buffer], message_bytes: int) -> None:
    if len(body) == 0 or len(body[0]) == 0:
        raise Refused("bad_header", "header: expected one msgpack map in the first frame, got an empty message")
    if len(body) > 1 + MAX_ARRAYS:
        raise Refused("too_large", f"message: expected at most {1 + MAX_ARRAYS} frames, got {len(body)}")
    if len(body[0]) > HEADER_BYTES:
        raise Refused("too_large", f"header: expected at most {HEADER_BYTES} bytes, got {len(body[0])}")
    total = sum(len(frame) for frame in body)
    if total > message_bytes:
        raise Refused("too_large", f"message: expected at most {message_bytes} bytes, got {total}; send smaller batches")


def _unpack_header(frame: Buffer) -> dict[str, Any]:
    try:
        header = msgpack.unpackb(bytes(frame), raw=False, strict_map_key=True, max_ext_len=0, ext_hook=_refuse_extension)
    except Refused:
        raise
    except Exception as error:  # msgpack raises ValueError, its own types, and RecursionError-like StackError
        raise Refused("bad_header", f"header: not msgpack: {error or type(error).__name__}") from None
    if not isinstance(header, dict):
        raise Refused("bad_header", f"header: expected a msgpack map, got {type(header).__name__}")
    _check_id(header)
    if type(header.get("v")) is not int or header["v"] != VERSION:
        raise _refused(header, f"header.v: expected {VERSION}, got {_shown(header.get('v'))}")
    if not isinstance(header.get("type"), str):
        raise _refused(header, f"header.type: expected a string, got {_shown(header.get('type'))}")
    return header


def _check_id(header: dict[str, Any]) -> None:
    """An id comes back in the reply, whose header is limited too; one that is too large is not repeated."""
    if type(header.get("id")) in (int, type(None)):
        return
    try:
        size = len(msgpack.packb([[header["id"]]]))  # packed as in a reply, one level deeper
    except ValueError:  # nested deeper than msgpack packs
        size = HEADER_BYTES
    if size > MAX_ID_BYTES:
        raise Refused("too_large", f"header.id: expected at most {MAX_ID_BYTES} bytes of msgpack", seq=legible_seq(header))


def _shown(value: Any) -> str:
    """A value for the text of a refusal; of a container, which may be deep, only its type."""
    return type(value).__name__ if isinstance(value, list | dict) else repr(value)[:100]


def _refused(header: Mapping[str, Any], message: str) -> Refused:
    return Refused("bad_header", message[:500], seq=legible_seq(header), id=header.get("id"))


def _refuse_extension(code: int, data: bytes) -> Any:
    raise Refused("bad_header", f"header: extension types are not part of the protocol (got type {code})")


def legible_seq(header: Mapping[str, Any]) -> int | None:
    """The sequence number of a header that may be wrong otherwise, so that the refusal can name it."""
    seq = header.get("seq")
    return seq if type(seq) is int else None


def open_arrays(envelope: Envelope, expected: Sequence[str], lacking: Sequence[str] = ()) -> NamedArrays:
    """The arrays of an envelope as read-only views of its frames, after checking that they are the expected ones.

    lacking: of which arrays NaN is a missing value.

    Raises Refused ``bad_array`` for a wrong number, name, dtype or byte count, ``too_large`` for too many,
    ``nonfinite`` for NaN or infinity.
    """
    specs = envelope.header.get("arrays", [])
    if not isinstance(specs, list):
        raise Refused("bad_array", f"header.arrays: expected a list of maps, got {type(specs).__name__}")
    if len(specs) > MAX_ARRAYS:
        raise Refused("too_large", f"header.arrays: expected at most {MAX_ARRAYS}, got {len(specs)}")
    if len(specs) != len(envelope.payloads):
        raise Refused(
            "bad_array",
            f"arrays: the header describes {len(specs)}, but {len(envelope.payloads)} frames came",
        )
    arrays = {}
    for spec, payload in zip(specs, envelope.payloads, strict=True):
        name, array = _open_array(spec, payload)
        arrays[name] = array
    if sorted(arrays) != sorted(expected) or len(specs) != len(expected):
        raise Refused("bad_array", f"arrays: expected {', '.join(expected) or 'none'}, got {_names(specs)}")
    for name, array in arrays.items():
        check_finite(name, array, missing=name in lacking)
    return NamedArrays(arrays, envelope.payloads)


def _names(specs: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(str(spec["name"])[:40] for spec in specs) or "none"


def _open_array(spec: Any, payload: Buffer) -> tuple[str, Array]:
    if not isinstance(spec, dict) or not isinstance(spec.get("name"), str):
        raise Refused("bad_array", "header.arrays: expected maps of name, dtype and shape")
    name, dtype, shape = spec["name"][:64], spec.get("dtype"), spec.get("shape")
    if dtype not in DTYPES:
        raise Refused("bad_array", f"{name}.dtype: expected one of {' '.join(DTYPES)}, got {_shown(dtype)}")
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**48 for n in shape):
        raise Refused("bad_array", f"{name}.shape: expected a list of non-negative integers")
    if len(shape) > MAX_DIMENSIONS:
        raise Refused("bad_array", f"{name}.shape: expected at most {MAX_DIMENSIONS} dimensions, got {len(shape)}")
    if math.prod(n for n in shape if n) >= 2**48:  # beside a 0 the byte count says nothing; NumPy would overflow
        raise Refused("bad_array", f"{name}.shape: expected dimensions of a real array, got {shape}")
    expected = math.prod(shape) * np.dtype(dtype).itemsize  # Python integers: cannot overflow
    if expected != len(payload):
        raise Refused(
            "bad_array",
            f"{name}: shape {shape} of {dtype} takes {expected} bytes, the frame has {len(payload)}",
        )
    return name, np.frombuffer(payload, dtype).reshape(shape)


def check_finite(name: str, array: Array, *, missing: bool = False) -> None:
    """Raise Refused ``nonfinite`` if a floating-point array holds infinity or, unless that stands for what is missing,
    NaN."""
    if array.dtype.kind != "f" or np.logical_and.reduce(np.isfinite(array), axis=None):  # `all` is a detour
        return
    sound = ~np.isinf(array) if missing else np.isfinite(array)
    if sound.all():
        return
    index = np.unravel_index(int(np.argmin(sound)), array.shape)
    where = "".join(f"[{i}]" for i in index)
    raise Refused("nonfinite", f"{name}: expected finite numbers, got {array[index]} at {name}{where}")


def build(header: Mapping[str, Any], arrays: Mapping[str, Array] | None = None, *, delimited: bool = False) -> list[Buffer]:
    """The frames of one message; arrays become C-contiguous little-endian frames without a copy if they already are.

    Raises Refused ``bad_array`` for a dtype that the protocol does not carry.
    """
    arrays = {name: portable(name, array) for name, array in (arrays or {}).items()}
    fields = {"v": VERSION, **header}
    if arrays:
        fields["arrays"] = [
            {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)} for name, array in arrays.items()
        ]
    frames: list[Buffer] = [b""] if delimited else []
    frames.append(msgpack.packb(fields))
    frames.extend(array.reshape(-1).view(np.uint8).data for array in arrays.values())
    return frames


def portable(name: str, array: Array) -> Array:
    """The array as it travels: C-contiguous and little-endian, not copied if it already is.

    Raises Refused ``bad_array`` for a dtype that the protocol does not carry.
    """
    if array.flags.c_contiguous and array.dtype.str in DTYPES:
        return array
    array = np.ascontiguousarray(array)
    array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if array.dtype.str not in DTYPES:
        words = WORDS_GO if array.dtype.kind in "OSUT" else ""
        raise Refused("bad_array", f"{name}: expected a dtype of {' '.join(DTYPES)}, got {array.dtype.str}{words}")
    return array
