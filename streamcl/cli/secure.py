"""``streamcl keygen`` and ``streamcl audit``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from streamcl.cli.common import add_json, command, default_state, print_json
from streamcl.keys import Keys, public_key, write

OF_FOLLOWER = " here: this is a follower of the daemon at {}, and answers predictions alone; ask that daemon for its own"
STEPS = """
how a daemon is opened to other machines:
  streamcl keygen daemon --out keys                       the daemon's own key
  streamcl keygen camera-1 --out keys --server keys/daemon.pub
                                                          one for each client; carry NAME.key there safely
  policy.toml:  [[grant]]
                key = "..."                               what keygen printed, or NAME.pub has
                roles = ["produce"]                       produce | predict | follow | read | admin
                producers = ["camera-1"]                  the names it may send under
  streamcl serve --security.server-key keys/daemon.key --security.policy policy.toml --endpoints.stream tcp://0.0.0.0:5757
  streamcl send monday.csv --task monday --stream tcp://HOST:5757 --key camera-1.key
After a change of policy.toml: kill -HUP PID of `streamcl serve`. The new policy applies at once, on open connections too.
"""


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "keygen",
        keygen,
        "Make a key pair: NAME.key, secret (0600), and NAME.pub. Nothing is overwritten.",
        "streamcl keygen camera-1 --out keys --server keys/daemon.pub",
    )
    parser.epilog = f"{parser.epilog}\n{STEPS}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="NAME", help="whose key it is; A-Z a-z 0-9 . _ -")
    parser.add_argument("--out", type=Path, default=Path("."), metavar="DIR", help="directory to write to (default: here)")
    parser.add_argument(
        "--server",
        metavar="KEY",
        help="the daemon's public key or its file, to be kept in NAME.key: one file to carry",
    )
    add_json(parser)
    parser = command(
        commands,
        "audit",
        audit,
        "Print the audit log: who asked for what, for which task, when, and with what result.",
        "streamcl audit --state-dir ./streamcl-state",
    )
    parser.add_argument("--state-dir", default=default_state(), help="the daemon's state directory")
    add_json(parser)


def keygen(options: argparse.Namespace) -> None:
    """Make a key pair."""
    import zmq

    server = None if options.server is None else public_key(options.server)
    public, secret = (key.decode() for key in zmq.curve_keypair())
    paths = write(options.out, Keys(public, secret, options.name, server))
    if options.json:
        print_json({"name": options.name, "public": public, "secret_file": str(paths[0]), "public_file": str(paths[1])})
    else:
        print(f"{paths[0]}  secret: keep it where only {options.name} can read it\n{paths[1]}  public: {public}")


def audit(options: argparse.Namespace) -> None:
    """Print the audit log."""
    from streamcl.storage.audit import read
    from streamcl.storage.mirror import followed_by
    from streamcl.storage.state import StateDirectory

    entries = list(read(StateDirectory(Path(options.state_dir)).audit))
    if options.json:
        print_json({"audit": entries})
        return
    for entry in entries:
        rest = " ".join(f"{key}={value}" for key, value in entry.items() if key not in ("time", "action", "result"))
        print(f"{entry['time']} {entry['action']}: {entry['result']} {rest}")
    if not entries:
        place = followed_by(Path(options.state_dir))
        print("nothing has been asked for yet" + ("" if place is None else OF_FOLLOWER.format(place)))
