"""``streamcl bench speed --device``: what streamcl costs on one device, at several sizes of network.

Every row times streamcl and its yardstick in turns, the device having finished before each look at the clock. What does
not fit the device's memory, or the time there is, is left out, and the row says by how much. The document is written anew
after every row, so that a run that is cut off leaves what it had come to.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from streamcl.bench.conditions import as_in_the_trainer
from streamcl.bench.device.clock import Clock
from streamcl.bench.device.hardware import hardware
from streamcl.bench.device.parts import PARTS
from streamcl.bench.device.record import Record, Skipped, memory, written
from streamcl.bench.device.setting import SIZES, Setting
from streamcl.bench.versions import versions
from streamcl.errors import StreamclError

MOST_BYTES = 80_000_000_000  # what everything is to come to, at the most


def run(name: str, sizes: Sequence[str], rounds: int, seconds: float, only: Sequence[str], out: Path | None) -> int:
    """Every row, printed and written; 1 if one failed, was left out for want of time, or missed its goal.

    name: of the device, as PyTorch reads it. seconds: for all of it. only: the parts to run, all if there are none.
    """
    device, until = _device(name), time.monotonic() + seconds
    document = {
        "benchmark": "speed on a device",
        "device": str(device),
        "hardware": hardware(device),
        "versions": versions(),
        "rounds": rounds,
    }
    records: list[Record] = []
    print(f"{'what':<72}{'against':<44}{'ratio':>8}     goal")
    with as_in_the_trainer():
        for size in sizes:
            for record in _of_size(Setting(device, SIZES[size], Clock(device, rounds, until)), only):
                records.append(record)
                print(record.text(), flush=True)
                written(out, {**document, "rows": [each.plain() for each in records]})
    for row in memory(records, MOST_BYTES):
        records.append(row)
        print(row.text(), flush=True)
    written(out, {**document, "rows": [each.plain() for each in records]})
    return 0 if records and all(record.good for record in records) else 1


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise StreamclError(f"--device: expected one that PyTorch can use here, got {name!r}: {error}") from None
    return device


def _of_size(setting: Setting, only: Sequence[str]) -> Iterator[Record]:
    for name, part in PARTS.items():
        if only and name not in only:
            continue
        if setting.clock.left() <= 0:
            yield Skipped(f"{name}, {setting.size.name} parameters", "no time was left", fits=False)
            continue
        try:
            yield from part(setting)
        except Exception as error:  # of one part; the others are worth having
            yield _failed(setting, name, error)
        setting.clock.release()


def _failed(setting: Setting, name: str, error: Exception) -> Record:
    what = f"{type(error).__name__}: {error}".splitlines()[0][:500]
    return Skipped(f"{name}, {setting.size.name} parameters", what, fits=False, failed=True)
