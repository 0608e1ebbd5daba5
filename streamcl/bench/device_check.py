"""What `deploy/gpu-check` does: the tests marked ``cuda``, then a device's figures, size by size, within so many seconds.

Needs nothing but Python, so that what is missing can be said. Each part is a process of its own, which may die, or be
ended for want of time; the document is written anew whenever one has come to something, so that a run that is cut off
leaves what it had.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TOP = Path(__file__).parents[2]
CARRIED = TOP / ".gpu-packages"  # wheels of packages that a machine without a network may lack
MODULES = {"pyzmq": "zmq"}  # of distributions that are called otherwise
REHEARSED = Path("gpu-rehearsal.json")
FIGURES = Path(__file__).parent / "figures" / "gpu.json"
TESTS = "tests/test_cuda.py"
NEEDED = ("numpy", "msgspec", "structlog")  # of the figures,
OF_TESTS = ("pytest", "zmq", "msgpack")  # and of the tests besides
WORTH_HAVING = ("river", "pytest_timeout", "xdist", "sklearn")
TEST_SHARE = 0.35  # of the time, at the most
LEAST_SECONDS = 10.0  # with which a part is begun
WORKERS = 6  # of the tests, each with a context of its own on the GPU
LOOK_SECONDS = 0.5
LINES = 40  # of what a part has said, kept where it failed

TOUCHED = """
import torch
torch.ones(2, dtype=torch.float64, device={device!r}).sum().item()
print("PyTorch", torch.__version__, "CUDA", torch.version.cuda)
"""

SIZES = {"cuda": ("1M", "100M", "1G"), "cpu": ("tiny",)}


@dataclass(frozen=True, slots=True)
class Ran:
    """A process that has ended. cut: for want of time."""

    status: int
    lines: list[str]
    cut: bool

    @property
    def last(self) -> str:
        """What it said last."""
        return self.lines[-1] if self.lines else ""

    def why(self) -> str:
        """What went wrong."""
        return "cut off: no time was left" if self.cut else f"exit status {self.status}: {self.last}"


@dataclass(slots=True)
class Check:
    """One run. device: as PyTorch reads it. seconds: for all of it. out: where the document is kept.

    chosen: of the tests, as pytest's -k has it. path: where modules are looked for, beside those of this Python.
    """

    device: str
    seconds: float
    out: Path
    sizes: Sequence[str]
    rehearsal: bool
    chosen: str = ""
    path: Sequence[str] = (str(TOP),)
    document: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    def run(self) -> int:
        """All parts; 0 if each ran to its end and is well."""
        lacking = [name for name in (*NEEDED, *OF_TESTS, *WORTH_HAVING) if not there(name)]
        self.document = {
            "benchmark": "gpu-check",
            "rehearsal": self.rehearsal,
            "device": self.device,
            "python": platform.python_version(),
            "lacking": lacking,
            "parts": {},
        }
        self._keep()
        self._part("device", self._is_there)
        if self.document["parts"]["device"]["state"] == "well":
            self._part("tests", self._tests)
            for size in self.sizes:
                self._part(f"figures, {size}", lambda size=size: self._figures(size))  # type: ignore[misc]
        self.document["seconds"] = round(time.monotonic() - self.started, 1)
        self._keep()
        return self._verdict()

    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.started)

    def _part(self, name: str, part: Callable[[], dict[str, Any]]) -> None:
        print(f"-- {name}", flush=True)
        began = time.monotonic()
        if self.left() < LEAST_SECONDS:
            found: dict[str, Any] = {"state": "left out", "why": "no time was left"}
        else:
            try:
                found = part()
            except Exception as error:  # the other parts are worth having
                found = {"state": "failed", "why": f"{type(error).__name__}: {error}"}
        self.document["parts"][name] = {**found, "seconds": round(time.monotonic() - began, 1)}
        self._keep()
        print(f"   {found['state']}{': ' + found['why'] if found.get('why') else ''}", flush=True)

    def _verdict(self) -> int:
        bad = {name: part for name, part in self.document["parts"].items() if part["state"] != "well"}
        for name, part in bad.items():
            print(f"{name}: {part['state']}: {part.get('why', '')}")
        print(f"{self.out}: {'a rehearsal' if self.rehearsal else 'results'}, {self.document['seconds']:g} s")
        return 1 if bad else 0

    def _keep(self) -> None:
        """The document as it is, by a rename."""
        aside = self.out.with_name(f".{self.out.name}.{os.getpid()}")
        aside.write_text(json.dumps(self.document, indent=2) + "\n")
        aside.replace(self.out)

    # -- parts -------------------------------------------------------------------------------------------------------

    def _is_there(self) -> dict[str, Any]:
        """Whether PyTorch can compute there, and what the driver says."""
        ran = self._ran([sys.executable, "-c", TOUCHED.format(device=self.device)], self.seconds / 4, {})
        if ran.status != 0:
            return {"state": "failed", "why": f"PyTorch cannot use {self.device} here: {ran.why()}"}
        return {"state": "well", "said": [*ran.lines, *_driver()]}

    def _tests(self) -> dict[str, Any]:
        lacking = [name for name in (*NEEDED, *OF_TESTS) if not there(name)]
        if lacking:
            return {"state": "left out", "why": f"for want of {', '.join(lacking)}{_remedy()}"}
        command = [sys.executable, "-m", "pytest", "--noconftest", TESTS, "-m", "cuda", "-o", "addopts=", "-q", "-ra"]
        command += ["-p", "no:cacheprovider", "--tb=short", *(["-k", self.chosen] if self.chosen else [])]
        if there("xdist") and not self.rehearsal:
            command += ["--numprocesses", str(min(WORKERS, os.cpu_count() or 1))]
        ran = self._ran(command, TEST_SHARE * self.seconds, {"STREAMCL_TEST_DEVICE": self.device})
        counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|error)", ran.last)}
        found = {"counts": counts, "skipped": [line for line in ran.lines if line.startswith("SKIPPED")]}
        if ran.status == 0 and counts.get("passed"):
            return {"state": "well", **found}
        return {"state": "failed", "why": ran.why(), **found, "said": ran.lines[-LINES:]}

    def _figures(self, size: str) -> dict[str, Any]:
        lacking = [name for name in NEEDED if not there(name)]
        if lacking:
            return {"state": "left out", "why": f"for want of {', '.join(lacking)}{_remedy()}"}
        seconds = self._share(size)
        with tempfile.TemporaryDirectory(prefix="streamcl-") as name:
            kept = Path(name) / "figures.json"
            command = [sys.executable, "-m", "streamcl.bench.device", "--device", self.device, "--sizes", size]
            command += ["--seconds", f"{0.8 * seconds:.0f}", "--json", str(kept)]
            command += ["--rounds", "2"] if self.rehearsal else []

            def look() -> None:
                if kept.exists():
                    self.document["parts"][f"figures, {size}"] = {"state": "cut off", **json.loads(kept.read_text())}
                    self._keep()

            ran = self._ran(command, seconds, {}, look)
            look()
        found = self.document["parts"].get(f"figures, {size}", {})
        rows = found.get("rows", [])
        wrong = [row["name"] for row in rows if "failed" in row]
        missed = [row["name"] for row in rows if row.get("verdict") == "missed"]
        if ran.status == 0 or (ran.status == 1 and rows and not wrong and (missed and self.rehearsal)):
            return {**found, "state": "well", "missed": missed}
        late = [row["name"] for row in rows if "not reached" in row]
        said = {"failed": wrong, "not reached": late, "goal missed": missed}
        why = "; ".join(f"{what}: {name}" for what, names in said.items() for name in names)
        return {**found, "state": "failed", "why": why or ran.why(), "missed": missed, "said": ran.lines[-LINES:]}

    def _share(self, size: str) -> float:
        """Of the time that is left: a fair part, where larger sizes are still to come."""
        return self.left() / (len(self.sizes) - list(self.sizes).index(size)) - 1.0

    def _ran(
        self, command: Sequence[str], seconds: float, more: dict[str, str], look: Callable[[], None] = lambda: None
    ) -> Ran:
        """A process, ended with its own after so many seconds; what it said is shown then. look: called now and then."""
        environment = {**os.environ, **more, "PYTHONPATH": os.pathsep.join(self.path)}
        until = time.monotonic() + min(seconds, self.left())
        with tempfile.TemporaryFile("w+") as said:
            process = subprocess.Popen(
                command, cwd=TOP, env=environment, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
            )
            try:
                while process.poll() is None and time.monotonic() < until:
                    time.sleep(LOOK_SECONDS)
                    look()
            finally:
                cut = process.poll() is None
                if cut:
                    os.killpg(process.pid, signal.SIGKILL)
                status = process.wait()
            said.seek(0)
            lines = said.read().splitlines()
        for line in lines:
            print(f"   {line}", flush=True)
        return Ran(status, lines, cut)


def _driver() -> list[str]:
    fields = "name,driver_version,memory.total,memory.used,clocks.sm,clocks.mem,power.limit"
    try:
        asked = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv"]
        return subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True).stdout.splitlines()
    except (OSError, subprocess.SubprocessError) as error:
        return [f"nvidia-smi says nothing: {error}"]


def there(name: str) -> bool:
    """Whether a module can be had; of those that every part needs, whether it can be imported."""
    if name in WORTH_HAVING:
        return importlib.util.find_spec(name) is not None
    try:
        importlib.import_module(name)
    except Exception:  # an extension module of another Python, say
        return False
    return True


def _remedy() -> str:
    carried = "" if CARRIED.is_dir() else "; `sh deploy/gpu-check pack`, where there is a network, brings them along"
    return f" ({platform.python_implementation()} {platform.python_version()}){carried}"


def unpacked(into: Path) -> list[str]:
    """The wheels that were brought along and whose package is not there, unpacked; the directories to look in."""
    for wheel in sorted(CARRIED.glob("*.whl")) if CARRIED.is_dir() else ():
        name = wheel.name.partition("-")[0]
        if importlib.util.find_spec(MODULES.get(name, name)) is None:
            zipfile.ZipFile(wheel).extractall(into)
    return [str(into)] if any(into.iterdir()) else []


def main(arguments: Sequence[str] | None = None) -> int:
    """As `deploy/gpu-check` says."""
    parser = argparse.ArgumentParser(prog="sh deploy/gpu-check", description="the tests and the figures of a GPU")
    parser.add_argument("--device", default="cuda", help="as PyTorch reads it (default cuda)")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at small sizes: to see that it would run")
    parser.add_argument("--seconds", type=float, default=480.0, help="for all of it (default 480)")
    parser.add_argument("--sizes", nargs="+", choices=("1M", "100M", "1G", "tiny"), help="of network (default 1M 100M 1G)")
    parser.add_argument("--tests", default="", metavar="EXPRESSION", help="only these, as pytest's -k has it")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results (default streamcl/bench/figures/gpu.json)")
    given = parser.parse_args(arguments)
    device = "cpu" if given.rehearse else given.device
    sizes = given.sizes or SIZES["cpu" if given.rehearse else "cuda"]
    out = given.json or (REHEARSED if given.rehearse else FIGURES)
    with tempfile.TemporaryDirectory(prefix="streamcl-packages-") as name:
        path = [*unpacked(Path(name)), str(TOP)]
        sys.path.extend(path)
        return Check(device, given.seconds, out, sizes, given.rehearse, given.tests, path).run()


if __name__ == "__main__":
    sys.exit(main())
