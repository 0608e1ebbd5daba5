"""The byte-level example of protocol.md: messages as a client sends them and as the daemon answers.

python tests/wire.py        writes them into streamcl/docs/protocol.md
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import zmq

from streamcl.bench.local import LocalDaemon

PAGE = Path(__file__).parents[1] / "streamcl" / "docs" / "protocol.md"
PLACE = re.compile(r"(?<=<!-- bytes -->\n).*?(?=<!-- end of bytes -->)", re.S)
X, Y = np.array([[0.5, -1.0], [2.0, 0.25]], "<f4"), np.array([1, 0], "<i8")
ARRAYS = [{"name": "x", "dtype": "<f4", "shape": [2, 2]}, {"name": "y", "dtype": "<i8", "shape": [2]}]
REQUESTS: list[tuple[dict[str, Any], list[bytes]]] = [
    ({"v": 1, "type": "hello", "producer": "sensor-1"}, []),
    ({"v": 1, "type": "batch", "seq": 1, "task": "monday", "arrays": ARRAYS}, [X.tobytes(), Y.tobytes()]),
    ({"v": 1, "type": "boundary", "seq": 2, "task": "monday"}, []),
]
REPLIES = (1, 1, 2)


def conversation(endpoint: str) -> list[tuple[str, list[bytes]]]:
    """Who says what, frame by frame."""
    socket = zmq.Context.instance().socket(zmq.DEALER)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RCVTIMEO, 60_000)
    socket.connect(endpoint)
    said = []
    for (header, payloads), replies in zip(REQUESTS, REPLIES, strict=True):
        frames = [msgpack.packb(header), *payloads]
        socket.send_multipart(frames)
        said.append((f"client: {header['type']}", frames))
        for _ in range(replies):
            answer = socket.recv_multipart()
            said.append((f"daemon: {msgpack.unpackb(answer[0])['type']}", answer))
    socket.close()
    return said


def page_text(said: list[tuple[str, list[bytes]]]) -> str:
    """As on the page: one line for each field of a header and for each array."""
    return "".join(f"**{who}**\n\n```\n{_dump(frames)}```\n\n" for who, frames in said)


def _dump(frames: list[bytes]) -> str:
    header = msgpack.unpackb(frames[0])
    text = f"frame 0, the header, {len(frames[0])} bytes\n{_hex(bytes([frames[0][0]]))}  a map of {len(header)}\n"
    for key, value in header.items():
        text += f"{_hex(msgpack.packb(key) + msgpack.packb(value))}  {key}: {value!r}\n"
    for number, frame in enumerate(frames[1:], 1):
        spec = header["arrays"][number - 1]
        values = np.frombuffer(frame, spec["dtype"]).tolist()
        text += f"frame {number}, array {spec['name']}, {len(frame)} bytes\n{_hex(frame)}  {values}\n"
    return text


def _hex(raw: bytes) -> str:
    lines = [raw[start : start + 16].hex(" ") for start in range(0, len(raw), 16)]
    return "\n".join([*lines[:-1], f"{lines[-1]:<47}"])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place, LocalDaemon({}, Path(place) / "state") as daemon:
        text = page_text(conversation(daemon.endpoints["stream"]))
    PAGE.write_text(PLACE.sub(lambda _: "\n" + text, PAGE.read_text()))
