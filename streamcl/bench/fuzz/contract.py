"""What a reply may be, by the contract alone: its type, its fields, its codes, the request's id."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgpack

from streamcl.protocol.messages import CODES

HEADER_BYTES = 64 * 1024
INTEGER, TEXT, MAP, REAL = (int,), (str,), (dict,), (float, int)
REPLIES: dict[str, dict[str, dict[str, tuple[type, ...]]]] = {
    "stream": {
        "welcome": {"producer": TEXT, "durable": INTEGER, "applied": INTEGER, "credit": MAP, "limits": MAP},
        "ack": {"durable": INTEGER, "applied": INTEGER, "credit": MAP},
        "done": {
            "seq": INTEGER,
            "task": TEXT,
            "kind": TEXT,
            "samples": INTEGER,
            "loss": REAL,
            "seconds": REAL,
        },
        "nack": {"code": TEXT, "retryable": (bool,), "message": TEXT, "seq": (int, type(None))},
    },
    "predict": {
        "prediction": {"version": INTEGER, "arrays": (list,)},
        "schema": {"version": INTEGER},
        "publication": {"publication": TEXT},
        "part": {"digest": TEXT, "offset": INTEGER, "bytes": INTEGER, "arrays": (list,)},
        "error": {"code": TEXT, "message": TEXT},
    },
    "admin": {"ok": {}, "error": {"code": TEXT, "message": TEXT}},
}
MOST_TEXT = 2000


def breach(socket: str, frames: Sequence[Any]) -> str | None:
    """What is wrong with a reply, or None."""
    body = [bytes(frame) for frame in frames]
    if len(body) > 1 and not body[0]:
        body = body[1:]
    if not body or len(body[0]) > HEADER_BYTES:
        return f"a header of {len(body[0]) if body else 0} bytes"
    try:
        header = msgpack.unpackb(body[0])
    except Exception as error:
        return f"not msgpack: {error}"
    return _breach(socket, header, len(body) - 1)


def _breach(socket: str, header: Any, arrays: int) -> str | None:
    if not isinstance(header, dict) or header.get("v") != 1:
        return f"not a map of version 1: {str(header)[:200]}"
    fields = REPLIES[socket].get(header.get("type", ""))
    if fields is None:
        return f"{header.get('type')!r} is not a reply of the {socket} socket"
    for name, types in fields.items():
        if type(header.get(name)) not in types:
            return f"{header['type']}.{name}: {str(header.get(name))[:200]}"
    if len(header.get("arrays", [])) != arrays:
        return f"{arrays} arrays beside a description of {len(header.get('arrays', []))}"
    if header["type"] in ("nack", "error"):
        return _refusal(header)
    return None


def _refusal(header: dict[str, Any]) -> str | None:
    if header["code"] not in CODES:
        return f"code {header['code']!r}"
    if header["code"] == "internal":
        return f"a defect: {header['message']}"
    if not 0 < len(header["message"]) <= MOST_TEXT:
        return f"a message of {len(header['message'])} characters"
    return None
