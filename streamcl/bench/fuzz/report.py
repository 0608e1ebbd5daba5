"""``streamcl bench fuzz``: every campaign, its figures, and whether a promise was broken."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from streamcl.bench.fuzz import bench, through_sockets
from streamcl.bench.versions import versions


def run(messages: int, socket_messages: int, guided: int, seed: int, out: Path | None) -> int:
    """Run the campaigns, print and write the results; 1 if a promise was broken."""
    figures: dict[str, Any] = {"benchmark": "fuzz", "seed": seed, "versions": versions()}
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "without sockets": lambda: bench.campaign(messages, seed).plain(),
        "guided by coverage": lambda: coverage_guided(guided, seed),
        "through sockets": lambda: through_sockets.campaign(socket_messages, seed).plain(),
    }
    for name, campaign in parts.items():
        if (name == "guided by coverage" and not guided) or (name == "through sockets" and not socket_messages):
            continue
        started = time.monotonic()
        figures[name] = {**campaign(), "seconds": round(time.monotonic() - started)}
        print(name, json.dumps(figures[name], indent=2), flush=True)
        if out is not None:
            out.write_text(json.dumps(figures, indent=2) + "\n")
    return int(any(part["violations"] for part in figures.values() if isinstance(part, dict) and "violations" in part))


def coverage_guided(runs: int, seed: int) -> dict[str, Any]:
    """The fuzzer that looks at coverage, in a process of its own, since it never returns."""
    if find_spec("atheris") is None:
        return {"messages": 0, "skipped": "needs atheris: pip install 'streamcl[fuzz]'"}
    command = [sys.executable, "-m", "streamcl.bench.fuzz.guided", f"-runs={runs}", f"-seed={seed + 1}", "-max_len=4096"]
    done = subprocess.run([*command, "-print_final_stats=1"], capture_output=True, text=True, check=False)
    executed = re.search(r"number_of_executed_units: (\d+)", done.stderr)
    covered = re.findall(r"cov: (\d+)", done.stderr)
    return {
        "messages": int(executed[1]) if executed else 0,
        "edges covered, at the beginning and at the end": [int(covered[0]), int(covered[-1])] if covered else [],
        "violations": int(done.returncode != 0),
        "first": done.stderr[-2000:] if done.returncode else None,
    }
