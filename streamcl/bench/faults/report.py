"""``streamcl bench faults``: every campaign, its figures, and whether all promises held."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from streamcl.bench.faults import campaigns
from streamcl.bench.faults.kills import random_kills
from streamcl.bench.versions import versions

VARIANT_RUNS, VARIANT_LOG_RUNS = 30, 300


def run(crashes: int, log_cuts: int, kills: int, seed: int, out: Path | None) -> int:
    """Run the campaigns, print and write the results; 1 if a promise was broken or a broken daemon went unnoticed."""
    figures: dict[str, Any] = {"benchmark": "faults", "seed": seed, "versions": versions()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "a fault at every operation": lambda: campaigns.every_step(alone=False).plain(),
        "a fault at every operation, one process only": lambda: campaigns.every_step(alone=True).plain(),
        "random kills": lambda: campaigns.random_crashes(crashes, seed, cut=False).plain(),
        "power cuts": lambda: campaigns.random_crashes(crashes, seed, cut=True).plain(),
        "a fault at every operation amid the clock's boundaries": lambda: campaigns.every_step(
            alone=False, about="clock"
        ).plain(),
        "a fault at every operation amid drift": lambda: campaigns.every_step(alone=False, about="drift").plain(),
        "a fault at every operation amid what cannot be learned": lambda: campaigns.every_step(
            alone=False, about="kept"
        ).plain(),
        "kills amid what cannot be learned": lambda: campaigns.random_crashes(
            crashes // 4, seed, cut=False, about="kept"
        ).plain(),
        "power cuts amid what cannot be learned": lambda: campaigns.random_crashes(
            crashes // 4, seed, cut=True, about="kept"
        ).plain(),
        "kills amid drift": lambda: campaigns.random_crashes(crashes // 4, seed, cut=False, about="drift").plain(),
        "power cuts amid drift": lambda: campaigns.random_crashes(crashes // 4, seed, cut=True, about="drift").plain(),
        "a fault at every operation of an exact learner": lambda: campaigns.every_step(alone=False, about="exact").plain(),
        "power cuts of an exact learner": lambda: campaigns.random_crashes(
            crashes // 4, seed, cut=True, about="exact"
        ).plain(),
        "a fault at every operation amid checkpoints written beside": lambda: campaigns.every_step(
            alone=False, about="beside"
        ).plain(),
        "power cuts amid checkpoints written beside": lambda: campaigns.random_crashes(
            crashes // 4, seed, cut=True, about="beside"
        ).plain(),
        "power cuts of the log": lambda: campaigns.log_cuts(log_cuts, seed).plain(),
        "kill -9 of the daemon": lambda: random_kills(kills, seed, _say).plain(),
        "violations found in broken daemons": lambda: campaigns.broken_variants(VARIANT_RUNS, VARIANT_LOG_RUNS, seed),
    }
    for name, campaign in parts.items():
        started = time.monotonic()
        figures[name] = campaign()
        print(f"{name} ({time.monotonic() - started:.0f} s)", flush=True)
        for key, value in figures[name].items():
            print(f"    {key}: {value}", flush=True)
        if out is not None:
            out.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if _holds(figures) else 1


def _holds(figures: dict[str, Any]) -> bool:
    broken = figures["violations found in broken daemons"]
    sound = [part for part in figures.values() if isinstance(part, dict) and "violations" in part]
    return all(part["violations"] == 0 for part in sound) and all(broken.values())


def _say(text: str) -> None:
    print(f"    {text}", file=sys.stderr, flush=True)
