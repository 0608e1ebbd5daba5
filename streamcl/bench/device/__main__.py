"""``python -m streamcl.bench.device``: `streamcl bench speed --device`, where what the command line needs is not there."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from streamcl.bench.device import run
from streamcl.bench.device.parts import PARTS
from streamcl.bench.device.setting import SIZES
from streamcl.errors import StreamclError


def main() -> int:
    """As the command."""
    parser = argparse.ArgumentParser(prog="python -m streamcl.bench.device")
    parser.add_argument("--device", required=True)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, required=True)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=480.0)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[])
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    try:
        return run(given.device, given.sizes, given.rounds, given.seconds, given.only, given.json)
    except StreamclError as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
