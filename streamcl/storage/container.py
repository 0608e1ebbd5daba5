"""One file of metadata and arrays: the format of checkpoints and of published parameters.

    0       magic "SCLTENS\\0", version u32, metadata length u32, arrays length u64, flags u32, crc32 u32 of the former
    32      sha256 of the metadata and its padding, sha256 of the arrays (zeros where the file has no digests);
            zeros up to 4096
    4096    metadata: msgpack, padded with zeros to a multiple of 4096, so that the size does not follow the
            number of digits of what is counted
    ...     arrays: a safetensors file (header length u64, JSON header, raw buffers); from format 2 on, one whose name
            begins with "by-digest." is the sha256 of an array that `frozen` keeps

Guarantees: with digests, a flipped bit anywhere is noticed (safetensors alone does not). No pickle. Arrays come back as
read-only views of the file.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamcl.errors import Damaged, UnknownFormat
from streamcl.storage.checksum import crc32
from streamcl.storage.disk import Buffer

VERSION = 2  # 1: every array is in the file itself; still written where that is so
REFERENCE = "by-digest."  # before the name of an array that lies elsewhere, whose digest stands in its place
PAGE = 4096
_HEAD = struct.Struct("<8sIIQII")
_MAGIC = b"SCLTENS\0"
_DIGESTS = 1
_DIGEST_BYTES = 32
_ZEROS = _HEAD.size + 2 * _DIGEST_BYTES  # from here to the metadata
_TO_SAFETENSORS = {
    "<f8": "F64",
    "<f4": "F32",
    "<f2": "F16",
    "<i8": "I64",
    "<i4": "I32",
    "|u1": "U8",
    "|b1": "BOOL",
}
_FROM_SAFETENSORS = {name: dtype for dtype, name in _TO_SAFETENSORS.items()}

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Contents:
    """What follows a file's first page: the metadata with its padding, and the arrays, not copied."""

    meta: list[Buffer]
    meta_length: int
    body: list[Buffer]
    version: int

    @property
    def buffers(self) -> list[Buffer]:
        """All of it, in order."""
        return [*self.meta, *self.body]

    def first_page(self, digests: bool) -> bytes:
        """The header; with digests, one pass over everything."""
        return self.headed((_sha256(self.meta), _sha256(self.body)) if digests else None)

    def headed(self, digests: tuple[bytes, bytes] | None) -> bytes:
        """The header with these digests, of the metadata and of the arrays."""
        length = sum(len(buffer) for buffer in self.body)
        head = _HEAD.pack(_MAGIC, self.version, self.meta_length, length, 0 if digests is None else _DIGESTS, 0)[:-4]
        head += struct.pack("<I", crc32(head))
        head += bytes(2 * _DIGEST_BYTES) if digests is None else b"".join(digests)
        return head + bytes(PAGE - len(head))


def contents(meta: Mapping[str, Any], arrays: Mapping[str, Array]) -> Contents:
    """A file's contents without its first page."""
    packed = msgspec.msgpack.encode(dict(meta))
    version = VERSION if any(name.startswith(REFERENCE) for name in arrays) else 1
    return Contents([packed, bytes(-len(packed) % PAGE)], len(packed), _safetensors(arrays), version)


def pack(meta: Mapping[str, Any], arrays: Mapping[str, Array], *, digests: bool) -> list[Buffer]:
    """The buffers of a whole file, the arrays among them not copied."""
    made = contents(meta, arrays)
    return [made.first_page(digests), *made.buffers]


def unpack_meta(data: memoryview, path: Path) -> dict[str, Any]:
    """The metadata, verified; raises Damaged, UnknownFormat."""
    length, _, digests = _read_head(data, path)
    if digests is not None and _sha256([data[PAGE : PAGE + length + -length % PAGE]]) != digests[0]:
        raise _damaged(path, "its metadata does not match its digest")
    try:
        meta = msgspec.msgpack.decode(data[PAGE : PAGE + length], type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _damaged(path, f"its metadata is not msgpack ({error})") from None
    return meta


def unpack(data: memoryview, path: Path, verify: bool = True) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata and arrays, verified if the file has digests (the arrays only with `verify`).

    Raises Damaged, UnknownFormat.
    """
    meta = unpack_meta(data, path)
    length, body_length, digests = _read_head(data, path)
    start = PAGE + length + -length % PAGE
    body = data[start : start + body_length]
    if len(body) != body_length or len(data) != start + body_length:
        raise _damaged(path, f"expected {start + body_length} bytes, it has {len(data)}")
    if verify and digests is not None and _sha256([body]) != digests[1]:
        raise _damaged(path, "its arrays do not match their digest")
    try:
        return meta, _open_safetensors(body)
    except (ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise _damaged(path, f"its arrays are not safetensors ({error})") from None


def _read_head(data: memoryview, path: Path) -> tuple[int, int, tuple[bytes, bytes] | None]:
    if len(data) < PAGE:
        raise _damaged(path, f"expected at least {PAGE} bytes, it has {len(data)}")
    magic, version, length, body_length, flags, checksum = _HEAD.unpack_from(data)
    if magic != _MAGIC or checksum != crc32(data[: _HEAD.size - 4]) or any(data[_ZEROS:PAGE]):
        raise _damaged(path, "its header is not one that streamcl wrote")
    if version > VERSION:
        raise UnknownFormat(f"{path}: format {version}; this streamcl reads up to {VERSION}: upgrade it")
    at = _HEAD.size
    digests = bytes(data[at : at + _DIGEST_BYTES]), bytes(data[at + _DIGEST_BYTES : at + 2 * _DIGEST_BYTES])
    return length, body_length, digests if flags & _DIGESTS else None


def _damaged(path: Path, what: str) -> Damaged:
    return Damaged(f"{path}: {what}; restore the state directory from a backup")


def _sha256(buffers: list[Any]) -> bytes:
    digest = hashlib.sha256()
    for buffer in buffers:
        digest.update(buffer)
    return digest.digest()


def _safetensors(arrays: Mapping[str, Array]) -> list[Buffer]:
    header, buffers, offset = {}, [], 0
    for name, array in arrays.items():
        array = np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension
        raw = array.reshape(-1).view(np.uint8).data
        header[name] = {
            "dtype": _TO_SAFETENSORS[array.dtype.str],
            "shape": list(array.shape),
            "data_offsets": [offset, offset + len(raw)],
        }
        buffers.append(raw)
        offset += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 64)
    return [struct.pack("<Q", len(text)), text, *buffers]


def _open_safetensors(body: memoryview) -> dict[str, Array]:
    (length,) = struct.unpack_from("<Q", body)
    start = 8 + length
    arrays = {}
    for name, spec in json.loads(bytes(body[8:start])).items():
        begin, end = spec["data_offsets"]
        dtype = np.dtype(_FROM_SAFETENSORS[spec["dtype"]])
        arrays[name] = np.frombuffer(body[start + begin : start + end], dtype).reshape(spec["shape"])
    return arrays
