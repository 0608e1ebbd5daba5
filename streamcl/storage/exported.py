"""What an export holds: the model's state as one safetensors file, and what it takes to make the module again.

Guarantees: the file's keys are those of `module.state_dict()`, its values bitwise those published. Runs
without torch: the trainer has published where each entry is kept (`Network.layout`).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.config import Config
from streamcl.core.layout import Layout

Arrays = Mapping[str, npt.NDArray[Any]]
FORMAT = 1
DTYPES = {  # as torch and as safetensors call them
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "complex64": "C64",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}


def state_file(meta: Mapping[str, Any], arrays: Arrays) -> bytes:
    """The bytes of a safetensors file with every entry of the module's state; tied ones appear under each name."""
    kept = dict(_kept(meta, arrays))
    header: dict[str, Any] = {}
    parts, end = [], 0
    for key, name, dtype, shape in meta["layout"]["state"]:
        if dtype in DTYPES:
            parts.append(kept[name])
            start, end = end, end + len(kept[name])
            header[key] = {"dtype": DTYPES[dtype], "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def _kept(meta: Mapping[str, Any], arrays: Arrays) -> Iterator[tuple[str, bytes]]:
    """Every tensor's bytes by the name that it is kept under."""
    for name, piece in Layout.from_plain(meta["parameters"]).split(arrays["theta"]).items():
        yield name, piece.tobytes()
    for name, array in arrays.items():
        if name.startswith("fixed."):
            yield name, np.ascontiguousarray(array).tobytes()


def description(meta: Mapping[str, Any], config: Config) -> dict[str, Any]:
    """What it takes to make the module again and to read its outputs, for JSON.

    left_out: keys of its state that the file lacks, since safetensors cannot hold them: constants.
    """
    layout, signature, model = meta["layout"], meta["signature"], config.model
    package, _, name = model.factory.partition(":")
    unnamed = [key for key, _, dtype, _ in layout["state"] if dtype not in DTYPES]
    return {
        "format": FORMAT,
        "factory": model.factory,
        "module": package,
        "callable": name,
        "arguments": layout["arguments"],
        "seed": config.train.seed,
        "dtype": config.train.dtype,
        "input": {"shape": signature["x_shape"], "dtype": "int64" if signature["x_integer"] else config.train.dtype},
        "target_shape": signature["y_shape"],
        "outputs": layout["outputs"],
        "likelihood": model.likelihood,
        "labels": meta["labels"] if model.likelihood == "categorical" else None,
        "noise_variance": model.noise_variance if model.likelihood == "gaussian" else None,
        "version": meta["version"],
        "left_out": layout["left_out"] + unnamed,
    }
