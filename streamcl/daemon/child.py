"""How a child process of the daemon begins: ``python -m streamcl.daemon.child ROLE UP_FD [SIDE_FD]``.

The supervisor's channel brings the configuration as its first message and is the child's lifeline: when it closes,
the supervisor is gone and the child ends. Terminal and service signals are the supervisor's business alone. A process
forked from the nursery begins here too, where the nursery's own work returns in it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from importlib import import_module

import structlog

from streamcl import config
from streamcl.daemon import linux, nursery, words
from streamcl.daemon.channel import Channel, wait
from streamcl.daemon.logs import configure
from streamcl.errors import ConfigError, Damaged, Disbanded, ModelRefused, StreamclError, UnknownFormat

ROLES = {
    "ingest": "streamcl.daemon.ingest",
    "worker": "streamcl.daemon.worker",
    "follower": "streamcl.daemon.follower",
    **nursery.MODULES,
}
NICENESS = {"trainer": 5, "worker": 5}  # those that answer come first when processors are scarce; idle ones are used anyway
PROMPT = ("predictor",)  # somebody waits for each of its answers; ingest, which many messages share, gains nothing by it
FATAL = (ConfigError, Damaged, Disbanded, UnknownFormat, ModelRefused)  # a restart of it alone would fail in the same way


def main(arguments: list[str]) -> int:
    """Run one role until the supervisor ends it; 3 after an error that a restart cannot cure."""
    role, *descriptors = arguments
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    return _live(role, [Channel(socket.socket(fileno=int(descriptor))) for descriptor in descriptors])


def _live(role: str, channels: list[Channel]) -> int:
    configure(role)
    os.nice(NICENESS.get(role, 0))
    if role in PROMPT:
        linux.take_short_turns()
    born = None
    first = _first_word(channels[0])
    if first is None:
        return 0
    try:
        settings = config.from_tree(first.tree)
        configure(role, settings.log)
        if role == nursery.ROLE:
            born = nursery.run(channels[0])
        else:
            import_module(ROLES[role]).run(settings, *channels)
    except FATAL as error:
        channels[0].send(words.Fatal(reason=str(error)))
        return 3
    except StreamclError as error:
        structlog.get_logger().error("failed", reason=str(error))
        channels[0].send(words.Failed(reason=str(error)))
        return 1
    return 0 if born is None else _live(*born)


def _first_word(up: Channel) -> words.Configuration | None:
    while not up.closed:
        wait([up])
        for word in up.receive():
            if not isinstance(word, words.Configuration):
                words.unexpected(word, "new process")
            return word
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
