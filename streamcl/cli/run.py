"""``streamcl serve`` and ``follow``: every key of the configuration is also a flag and a variable of the environment."""

from __future__ import annotations

import argparse
import contextlib
import ipaddress
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from streamcl.cli.common import command
from streamcl.cli.configuration import PRECEDENCE, add_keys, gathered
from streamcl.config import Config, Follow
from streamcl.daemon.launch import launched
from streamcl.errors import ConfigError

OF_FOLLOWERS = ("state_dir", "endpoints", "model.factory", "security", "follow", "log")  # keys, and sections of them
LOOPBACK = {"localhost": "127.0.0.1"}
EVERY_ADDRESS = ("*", "0.0.0.0", "::")
FOLLOWER_DIRECTORY = "./streamcl-follower"


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "serve",
        serve,
        "Run the daemon until it is stopped (`streamcl stop`, SIGTERM or Ctrl-C). With --workers N, or under `torchrun`, "
        f"several processes share the rows of every step. {PRECEDENCE}",
        "streamcl serve --config streamcl.toml --train.epochs 3",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; every key is optional")
    parser.add_argument("--workers", dest="key:train.workers", metavar="N", help="the same as --train.workers")
    add_keys(parser, "--config FILE", "--workers N", left_out=("follow",))
    _add_follow(commands)


def _add_follow(commands: Any) -> None:
    parser = command(
        commands,
        "follow",
        follow,
        "Serve the predictions of a daemon that runs elsewhere, until it is stopped. ENDPOINT is where that daemon "
        "answers predictions (its endpoints.predict). Its parameters are fetched, and again whenever they are published "
        "anew; requests are answered from what is here, also while the daemon is not heard. Everything else is refused: "
        "ask the daemon. What the model is, the daemon's configuration says; a factory that does not come with streamcl "
        "must be named here too.",
        "streamcl follow tcp://trainer.example:5758 --key follower.key --state-dir follower",
    )
    parser.add_argument(
        "key:follow.endpoint",
        nargs="?",
        metavar="ENDPOINT",
        default=argparse.SUPPRESS,  # what --follow.endpoint gives stays
        help="the same as --follow.endpoint",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; every key is optional")
    parser.add_argument("--bind", dest="key:endpoints.predict", metavar="ENDPOINT", help="the same as --endpoints.predict")
    parser.add_argument("--key", dest="key:follow.key", metavar="FILE", help="the same as --follow.key")
    parser.add_argument("--server-key", dest="key:follow.server_key", metavar="KEY", help="the same as --follow.server-key")
    own = ("ENDPOINT", "--config FILE", "--bind ENDPOINT", "--key FILE", "--server-key KEY")
    add_keys(parser, *own, only=OF_FOLLOWERS)


def serve(options: argparse.Namespace) -> int:
    """Run the daemon."""
    settings = gathered(options, options.config).config()
    if settings.follow != Follow():
        raise ConfigError("configuration: [follow]: a follower's, which learns nothing; run it with `streamcl follow`")
    if launched():
        return share(settings)
    return _run(settings)


def follow(options: argparse.Namespace) -> int:
    """Run a follower."""
    found = gathered(options, options.config)
    if "state_dir" not in found.origins:
        found.tree["state_dir"] = FOLLOWER_DIRECTORY
    settings = found.config()
    if not settings.follow.endpoint:
        raise ConfigError(
            "configuration: follow.endpoint: expected where the daemon answers predictions, such as tcp://HOST:5758: "
            "`streamcl follow ENDPOINT`"
        )
    own = _own(settings)
    if own is not None:
        raise ConfigError(
            f"configuration: follow.endpoint: expected another daemon's, got {settings.follow.endpoint}, which is this "
            f"follower's own {own}, {getattr(settings.endpoints, own.partition('.')[2])}; where both are on one machine, "
            "give the follower a port of its own (--bind tcp://127.0.0.1:*)"
        )
    idle = [key for key in found.origins if not _is_of(key, OF_FOLLOWERS)]
    if idle:
        print(f"streamcl: of no use to a follower, where the daemon's own hold: {', '.join(idle)}", file=sys.stderr)
    return _run(settings)


def _own(settings: Config) -> str | None:
    """The key of the endpoint of this follower's own that it would follow, or None."""
    named = {name: getattr(settings.endpoints, name) for name in ("predict", "stream", "admin")}
    named["http"] = f"tcp://{settings.endpoints.http}"
    return next((f"endpoints.{name}" for name, bound in named.items() if _meets(bound, settings.follow.endpoint)), None)


def _meets(bound: str, followed: str) -> bool:
    """Whether what connects to the one comes out at the other; decided without asking for any name's address."""
    (host, port), (other, to) = _place(bound), _place(followed)
    if bound == followed or port != to or not port.isdigit():
        return bound == followed
    return host == other or (host in EVERY_ADDRESS and _is_here(other))


def _place(endpoint: str) -> tuple[str, str]:
    """Host and port of a tcp endpoint; of another, itself and nothing."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    return (LOOPBACK.get(host, host).strip("[]"), port) if endpoint.startswith("tcp://") else (endpoint, "")


def _is_here(host: str) -> bool:
    """Whether a host is this machine, by its own name or a numerical address."""
    if host == socket.gethostname() or host in EVERY_ADDRESS:
        return True
    with contextlib.suppress(OSError, ValueError):
        address = ipaddress.ip_address(host)
        with socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET) as probe:
            probe.bind((host, 0))  # which only an address of this machine can be
            return True
    return False


def _run(settings: Config) -> int:
    from streamcl.daemon import nursery

    begun = nursery.begin()  # before the next import: it takes longest, and has nothing to wait for
    try:
        from streamcl.daemon.serve import serve as run_daemon

        return run_daemon(settings, begun)
    finally:
        if begun is not None:
            begun.abandon()


def share(settings: Config) -> int:
    """Share the work of the daemon that `torchrun` has started as its first process."""
    from streamcl.daemon import worker

    return worker.under_torchrun(settings)


def _is_of(key: str, names: Sequence[str]) -> bool:
    """Whether a key is one of these, or in a section that is."""
    return key in names or key.partition(".")[0] in names
