"""What an export holds: the model's state as one safetensors file, and what it takes to make the module again.

Guarantees: the file's keys are those of `module.state_dict()`, its values bitwise those published. Runs
without torch: the trainer has published where each entry is kept (`Network.layout`).
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl import joining
from streamcl.binding import fingerprint
from streamcl.config import Config
from streamcl.core.layout import Layout

Arrays = Mapping[str, npt.NDArray[Any]]
FORMAT = 1
SUMS = "sums.safetensors"  # in an export's directory, with MODEL and STATE
MODEL, STATE, PARAMETERS, DESCRIPTION = "model.json", "model.safetensors", "parameters.safetensors", "export.json"
SUMMED = ("counts", "means", "rows", "scatter")  # of SUMS
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


def sums_file(
    meta: Mapping[str, Any], arrays: Arrays, posterior: Arrays, tasks: list[dict[str, Any]], config: Config
) -> bytes:
    """An exact learner's sums, as a safetensors file: what `streamcl merge` adds. meta, arrays: of what is published.

    Of the scatter, the part on and above the diagonal, row by row. The metadata's "description" is JSON: what they are of.
    """
    told = {
        "format": FORMAT,
        "config": fingerprint(config),
        "seed": config.train.seed,
        "half_life": config.posterior.half_life,
        "prior_precision": config.posterior.prior_precision,
        "signature": meta["signature"],
        "sent": meta.get("sent"),
        "inputs": meta.get("columns") is not None or "shape" in (meta.get("inputs") or {}),
        "stage": joining.told(meta.get("columns"), meta.get("words") or (), meta.get("inputs"), arrays),
        "labels": meta["labels"] if config.model.family == "categorical" else None,
        "targets": int(posterior["targets"][0]),
        "tasks": tasks,
    }
    sums = {name: posterior[name] for name in SUMMED if name != "scatter"}
    sums["scatter"] = np.concatenate([row[place:] for place, row in enumerate(posterior["scatter"])])
    header: dict[str, Any] = {"__metadata__": {"description": json.dumps({**told, "sha256": sums_digest(sums)})}}
    parts, end = [], 0
    for name, array in sums.items():
        parts.append(np.ascontiguousarray(array).tobytes())
        start, end = end, end + len(parts[-1])
        header[name] = {"dtype": "F64", "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([struct.pack("<Q", len(text)), text, *parts])


def sums_digest(sums: Arrays) -> str:
    """The SHA-256 of an export's sums, in the order of `SUMMED`."""
    found = hashlib.sha256()
    for name in SUMMED:
        found.update(np.ascontiguousarray(sums[name]).tobytes())
    return found.hexdigest()


def description(meta: Mapping[str, Any], arrays: Arrays, config: Config) -> dict[str, Any]:
    """What it takes to make the module again and to read its outputs, for JSON.

    left_out: keys of its state that the file lacks, since safetensors cannot hold them: constants. Of real targets, where
    these are not null, the mean is ``target_offset + target_scale * output``, the variance ``noise_variance *
    target_scale**2``.
    """
    layout, signature, model = meta["layout"], meta["signature"], config.model
    package, _, name = model.maker.partition(":")
    unnamed = [key for key, _, dtype, _ in layout["state"] if dtype not in DTYPES]
    return {
        "format": FORMAT,
        "learner": model.learner,
        "factory": model.maker,
        "module": package,
        "callable": name,
        "arguments": layout["arguments"],
        "seed": config.train.seed,
        "dtype": config.train.dtype,
        "input": {"shape": signature["x_shape"], "dtype": "int64" if signature["x_integer"] else config.train.dtype},
        "target_shape": signature["y_shape"],
        "outputs": layout["outputs"],
        "likelihood": model.family,
        "input_stage": meta.get("input_stage"),
        "labels": _labels(meta["labels"], layout["outputs"]) if model.family == "categorical" else None,
        "words": meta.get("words") or None,
        **_targets(arrays, config),
        "version": meta["version"],
        "left_out": layout["left_out"] + unnamed,
    }


def _labels(known: list[int], outputs: int) -> list[int]:
    """The label of every output, -1 where none has come."""
    return known + [-1] * (outputs - len(known))


def _targets(arrays: Arrays, config: Config) -> dict[str, Any]:
    """How a gaussian model's outputs are read: as they are, unless that was learned; an exact learner has a number for the
    noise of each target."""
    if "head.noise" in arrays and config.model.family == "gaussian":
        return {"noise_variance": arrays["head.noise"].tolist(), "target_offset": None, "target_scale": None}
    model, learned = config.model, "targets.noise" in arrays
    noise = 1.0 if model.noise_variance == "auto" else model.noise_variance
    if learned:
        noise = float(arrays["targets.noise"][0])
    return {
        "noise_variance": noise if model.family == "gaussian" else None,
        "target_offset": arrays["targets.offset"].tolist() if learned else None,
        "target_scale": arrays["targets.scale"].tolist() if learned else None,
    }
