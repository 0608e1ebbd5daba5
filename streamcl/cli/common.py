"""What the commands share: finding the daemon, printing data."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.config import Config, split_host_port, variable
from streamcl.errors import ConfigError, DataError, Unreachable
from streamcl.storage.lock import is_held

if TYPE_CHECKING:
    from streamcl.client import Admin, Producer, Reader
    from streamcl.keys import Keys


PIPE_COLUMNS = 200
LISTENING_SECONDS = 2.0  # for somebody to take a connection
TYPED_SECONDS, STARTING_SECONDS = 2.0, 60.0  # for a daemon to take its directory; and then to say where it listens


def command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int | None], text: str, example: str
) -> argparse.ArgumentParser:
    """Add one command with its help and an example."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name, help=first_sentence(text), description=text, epilog=f"example: {example}"
    )
    parser.set_defaults(run=run, parser=parser)
    return parser


def first_sentence(text: str) -> str:
    """The first part of the help, short enough for a list of commands."""
    return text.partition(". ")[0].removesuffix(".") + "."


def default_state() -> str:
    """The state directory unless one is given: the environment's, as for the daemon."""
    return os.environ.get(variable("state_dir"), Config().state_dir)


def group(commands: Any, name: str, text: str, member: str = "COMMAND") -> Any:
    """Add a command that has commands of its own; returns what takes them. member: what one of them is called."""
    parser = commands.add_parser(name, help=text, description=text)
    return parser.add_subparsers(title=f"{member.lower()}s", metavar=member)


def add_connection(parser: argparse.ArgumentParser, *sockets: str) -> None:
    """Options that say where the daemon is."""
    parser.add_argument(
        "--state-dir",
        default=default_state(),
        help=f"the daemon's state directory, where its endpoints are found (default: ${variable('state_dir')}, "
        f"else {Config().state_dir})",
    )
    for name in sockets:
        parser.add_argument(f"--{name}", metavar="ENDPOINT", help=f"the daemon's {name} endpoint, instead")
    parser.add_argument(
        "--key", metavar="FILE", help="this client's secret key file, if the daemon requires one (see keygen)"
    )
    parser.add_argument(
        "--server-key", metavar="KEY", help="the daemon's public key or its file (default: of --key, else of --state-dir)"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """The option that prints data as JSON."""
    parser.add_argument("--json", action="store_true", help="print JSON")


def endpoint(options: argparse.Namespace, name: str) -> str:
    """The endpoint given, or that of the daemon of the state directory, once it has started. Raises Unreachable."""
    given = getattr(options, name, None)
    if given:
        return str(given)
    path = Path(options.state_dir) / "daemon.json"
    _wait_for_start(path.parent, path.exists)
    try:
        endpoints: Mapping[str, str] = json.loads(path.read_text())["endpoints"]
        return endpoints[name]
    except FileNotFoundError:
        raise Unreachable(
            f"no daemon is running on {options.state_dir} ({path} is not there); start one with `streamcl serve "
            f"--state-dir {options.state_dir}`, or name its endpoint with --{name}"
        ) from None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise Unreachable(
            f"{path}: not a daemon's ({type(error).__name__}: {error}); start the daemon again, or name its "
            f"endpoint with --{name}"
        ) from None


def asked(options: argparse.Namespace, name: str) -> str:
    """As `endpoint`, of a daemon that is to answer now: raises Unreachable, rather than wait for it, where one that was
    killed has left ``daemon.json`` behind and no other is starting."""
    path = Path(options.state_dir) / "daemon.json"
    given = getattr(options, name, None)
    if given or _wait_for_start(path.parent, lambda: not _is_gone(path, endpoint(options, name))):
        return endpoint(options, name)
    raise Unreachable(
        f"no daemon is running on {options.state_dir}: the one that wrote daemon.json there was killed, or its machine "
        f"stopped; start it again with `streamcl serve --state-dir {options.state_dir}`: what it acknowledged is stored"
    )


def _wait_for_start(directory: Path, answers: Callable[[], bool]) -> bool:
    """Whether a daemon of this directory answers; who has only just typed `serve &` is waited for, and who holds the
    directory's lock without having said yet where it listens."""
    began = time.monotonic()
    while not answers():
        waited = time.monotonic() - began
        if waited > (STARTING_SECONDS if is_held(directory) else TYPED_SECONDS):
            return False
        time.sleep(0.05)
    return True


def _is_gone(path: Path, where: str) -> bool:
    """Whether the process that wrote the file has ended and nobody listens there. In another container, with processes of
    its own, somebody listens."""
    with contextlib.suppress(OSError, ValueError, KeyError, ConfigError):
        if lives(int(json.loads(path.read_text())["pid"])):
            return False
        try:
            socket.create_connection(split_host_port(where.partition("://")[2]), LISTENING_SECONDS).close()
        except ConnectionRefusedError:
            return True
    return False


def lives(pid: int) -> bool:
    """Whether such a process runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return False


def refuse_follower(directory: Path, what: str) -> None:
    """Raise DataError where a state directory is a follower's, which has nothing of the kind."""
    from streamcl.storage.mirror import followed_by

    place = followed_by(directory)
    if place is not None:
        raise DataError(
            f"{what}: {directory}: this is a follower of the daemon at {place}, and answers predictions alone; ask that "
            "daemon, by its own --state-dir"
        )


def keys(options: argparse.Namespace) -> Keys | None:
    """The client's key, with the daemon's: as given, else as in the key's file, else of the state directory's daemon."""
    from streamcl.handshake import client_keys
    from streamcl.keys import load

    pair = None if options.key is None else load(Path(options.key))
    server = options.server_key
    if server is None and pair is not None and pair.server is None:
        with contextlib.suppress(OSError, ValueError):
            server = json.loads((Path(options.state_dir) / "daemon.json").read_text()).get("public_key")
    return client_keys(pair, server)


def admin(options: argparse.Namespace) -> Admin:
    """An Admin connected to the daemon."""
    from streamcl.client import Admin

    return Admin(asked(options, "admin"), keys=keys(options))


def reader(options: argparse.Namespace) -> Reader:
    """A Reader connected to the daemon."""
    from streamcl.client import Reader

    return Reader(asked(options, "predict"), keys=keys(options))


def producer(options: argparse.Namespace, name: str, timeout: float = 60.0) -> Producer:
    """A Producer connected to the daemon, which says on standard error why it waits. timeout: as of the Producer."""
    from streamcl.client import Producer

    # ungathered, so that a file sent again makes the same messages
    where = asked(options, "stream")
    return Producer(where, name, timeout=timeout, gather_bytes=0, on_waiting=say_waiting, keys=keys(options))


def say_waiting(reason: str) -> None:
    """Say why a command is waiting."""
    print(f"streamcl: waiting: {reason}", file=sys.stderr, flush=True)


def print_json(data: Any) -> None:
    """Data as indented JSON; numbers that JSON cannot express become null."""
    print(json.dumps(clean(data), indent=2))


def clean(data: Any) -> Any:
    """Data in which numbers that JSON cannot express are null."""
    if isinstance(data, Mapping):
        return {key: clean(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [clean(value) for value in data]
    if isinstance(data, float) and (data != data or data in (float("inf"), float("-inf"))):
        return None
    return data


def print_fields(data: Mapping[str, Any], indent: str = "") -> None:
    """A map as aligned lines, nested maps and lists indented."""
    width = max((len(key) for key in data), default=0)
    for key, value in data.items():
        if isinstance(value, Mapping):
            print(f"{indent}{key.replace('_', ' ')}")
            print_fields(value, indent + "  ")
        elif isinstance(value, list) and value:
            print(f"{indent}{key.replace('_', ' ')}")
            print(*(f"{indent}  {_text(each)}" for each in value), sep="\n")
        else:
            print(f"{indent}{key.replace('_', ' '):<{width}}  {_text(value)}")


def _text(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def show_fields(options: argparse.Namespace, data: dict[str, Any]) -> None:
    """Print a command's result, as JSON if that is asked for."""
    if options.json:
        print_json(data)
    else:
        print_fields(data)


def said_of_rows_aside(done: Mapping[str, Any]) -> int:
    """The exit status of a boundary: 1, and why on standard error, where rows of it could not be learned.

    Warnings of the daemon are printed there too.
    """
    if done.get("warning"):
        print(f"streamcl: warning: {done['warning']}", file=sys.stderr)
    rows = done.get("set_aside", 0)
    if not rows:
        return 0
    print(
        f"streamcl: {rows} rows of task {done['task']!r} could not be learned and are set aside: `streamcl quarantine` "
        f"says why, `streamcl retry {done['task']}` tries again, `streamcl drop {done['task']}` gives them up",
        file=sys.stderr,
    )
    return 1


def event_line(event: Mapping[str, Any]) -> str:
    """An event of the daemon's history, as a line."""
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["time"]))
    task = f" {event['task']}" if event["task"] else ""
    return f"{when} {event['kind'].replace('_', ' ')}{task}: {event['text']}"


def print_table(rows: list[dict[str, Any]], columns: list[str], empty: str) -> None:
    """Rows as a table; `empty` where there are none."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    if not rows:
        print(empty)
        return
    table = Table(box=box.SIMPLE)
    for column in columns:
        table.add_column(column.replace("_", " "), justify="left" if column == columns[0] else "right")
    for row in rows:
        table.add_row(*(_text(row[column]) for column in columns))
    console = Console()
    if not console.is_terminal:
        console = Console(width=PIPE_COLUMNS)  # a file has no width
    console.print(table)
