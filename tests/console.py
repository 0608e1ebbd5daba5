"""Runs the ``console`` blocks of a page of the documentation, in order, in one shell, and compares or renews their output.

    python tests/console.py streamcl/docs/tutorial.md       writes into the page what its commands print now

Figures differ from machine to machine, so only the words are compared: all numbers count as equal.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from streamcl.bench.local import own_port

MARK = "---the command has ended---"
START_SECONDS = 120.0
ENDPOINTS = {"STREAM": 5757, "PREDICT": 5758, "ADMIN": 5759, "HTTP": 5780}
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)


@dataclass
class Step:
    """A command as a person types it, and the lines that it prints."""

    command: str
    output: list[str] = field(default_factory=list)


def steps(block: str) -> list[Step]:
    """The commands of a block, lines after ``$`` continued by a backslash or a here-document, each with its output."""
    found: list[Step] = []
    open_end = ""
    for line in block.splitlines():
        if open_end or (found and not found[-1].output and found[-1].command.endswith("\\")):
            found[-1].command += "\n" + line
            open_end = "" if line == open_end else open_end
        elif line.startswith("$ "):
            found.append(Step(line[2:]))
            heredoc = re.search(r"<<'?(\w+)'?", line)
            open_end = heredoc[1] if heredoc else ""
        else:
            found[-1].output.append(line)
    return found


class Shell:
    """A bash in a directory, in which the usual endpoints are free ones and `streamcl` is this environment's."""

    def __init__(self, directory: Path) -> None:
        self.ports = {name: own_port() for name in ENDPOINTS}
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        own = {variable(name): f"{'' if name == 'HTTP' else 'tcp://'}127.0.0.1:{port}" for name, port in self.ports.items()}
        environment = {**os.environ, **own, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "TERM": "dumb"}
        self.process = subprocess.Popen(
            ["bash", "--norc"],
            cwd=directory,
            env=environment,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def run(self, command: str) -> tuple[int, list[str]]:
        """Status and lines of a command; after a daemon was put into the background, once that is ready."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        for name, port in self.ports.items():
            command = re.sub(rf"\b{ENDPOINTS[name]}\b", str(port), command)
        command = command.replace("0.0.0.0", "127.0.0.1")  # a test binds to nothing else
        if command.startswith("streamcl config"):  # which would report our variables
            command = f"env {' '.join(f'-u {variable(name)}' for name in ENDPOINTS)} {command}"
        self.process.stdin.write(f"{command}\nended=$?; echo; echo {MARK} $ended\n")
        self.process.stdin.flush()
        lines = []
        for line in self.process.stdout:
            if line.startswith(MARK):
                if lines and not lines[-1]:
                    lines.pop()
                status = int(line.split()[-1])
                return (self._wait_until_ready(command) if command.rstrip().endswith("&") else status), lines
            lines.append(line.rstrip())
        raise AssertionError(f"the shell ended at {command!r}")

    def _wait_until_ready(self, command: str) -> int:
        named = re.search(r"--state-dir \S+", command)
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            status, _ = self.run(f"streamcl health {named[0] if named else ''} >/dev/null 2>&1")
            if status == 0:
                return 0
            time.sleep(0.2)
        return 1

    def close(self) -> None:
        """End it and all that it started."""
        self.run("streamcl stop --now >/dev/null 2>&1 || streamcl stop >/dev/null 2>&1")
        self.run("kill $(jobs -p) 2>/dev/null; wait")
        self.process.kill()
        self.process.communicate()


def variable(name: str) -> str:
    return f"STREAMCL_ENDPOINTS__{name}"


def words(lines: list[str]) -> list[str]:
    """What two outputs of one command have in common: no figures, no bars, no widths."""
    text = "\n".join(line for line in lines if line.strip(" ─-"))
    text = re.sub(r"send-[0-9a-f]+(-\d+)?", "send-#", text)
    text = re.sub(r"(?<=public: )\S+", "#", text)
    text = re.sub(r"[▁▂▃▄▅▆▇█]+", "~", text)
    text = re.sub(r"[+-]?\d[\d,.:]*(e[+-]?\d+)?", "#", text)
    text = re.sub(r"# ?(k|M|G|Ki|Mi|Gi)?B\b", "# B", text)
    text = re.sub(r"# (s|min)\b", "# s", text)
    text = re.sub(r"(?<=\s)-(?=\s|$)", "#", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def replay(page: str, directory: Path) -> Iterator[tuple[Step, int, list[str]]]:
    """Every command of a page with its status and what it printed."""
    shell = Shell(directory)
    try:
        for block in BLOCK.findall(page):
            for step in steps(block):
                yield step, *shell.run(step.command)
    finally:
        shell.close()


def renewed(page: str, directory: Path) -> str:
    """The page with its commands' output as it is now; an output that ends in ``...`` stays as short as it was."""
    outputs = iter([cut(step, lines) for step, _, lines in replay(page, directory)])

    def block(match: re.Match[str]) -> str:
        parts = (f"$ {step.command}\n" + "".join(f"{line}\n" for line in next(outputs)) for step in steps(match[1]))
        return "```console\n" + "".join(parts) + "```"

    return BLOCK.sub(block, page)


def cut(step: Step, lines: list[str]) -> list[str]:
    """The lines as the page shows them: as many as before ``...``, if it has that."""
    kept = [line for line in lines if line.strip()]
    return [*kept[: len(step.output) - 1], "..."] if step.output[-1:] == ["..."] else kept


if __name__ == "__main__":
    for name in sys.argv[1:]:
        place = Path(tempfile.mkdtemp(prefix="streamcl-docs-"))
        Path(name).write_text(renewed(Path(name).read_text(), place))
        shutil.rmtree(place)
