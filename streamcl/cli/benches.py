"""``streamcl demo`` and ``streamcl bench``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import add_json, command, print_json

if TYPE_CHECKING:
    from streamcl.bench.local import LocalDaemon

SPEED_PARTS = ("ingest", "training", "penalty", "fisher", "boundary", "prediction", "memory", "start")


def add_commands(commands: Any) -> None:
    """Add this module's commands."""
    parser = command(
        commands,
        "demo",
        demo,
        "Watch forgetting, with and without the penalty: five tasks of handwritten digits through real daemons.",
        "streamcl demo --out ./streamcl-demo",
    )
    parser.add_argument("--out", type=Path, default=Path("streamcl-demo"), help="where the plot and the figures go")
    parser.add_argument("--tasks", type=int, default=5, help="how many tasks (default 5)")
    parser.add_argument("--epochs", type=int, default=30, help="epochs at each boundary (default 30)")
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave one daemon running instead, with tasks and revisits streaming in, to look at its dashboard; until "
        "Ctrl-C",
    )
    add_json(parser)
    bench = commands.add_parser("bench", help="Reproducible comparisons.", description="Reproducible comparisons.")
    benches = bench.add_subparsers(title="benchmarks", metavar="BENCHMARK", required=True)
    _add_permuted_mnist(benches)
    _add_revisit(benches)
    _add_order_bias(benches)
    _add_speed(benches)
    _add_start(benches)
    _add_growth(benches)
    _add_peers(benches)
    _add_faults(benches)
    _add_soak(benches)
    _add_fuzz(benches)
    _add_curve(benches)
    _add_zoo(benches)


def _add_permuted_mnist(benches: Any) -> None:
    parser = command(
        benches,
        "permuted-mnist",
        permuted_mnist,
        "Permuted MNIST, task after task through a real daemon in single-penalty mode; mean test accuracy at the end.",
        "streamcl bench permuted-mnist --data mnist.npz --scale 10 30",
    )
    _add_mnist(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, nargs="+", default=[10.0, 30.0], help="lambda_t = scale * N_t, each in turn")
    parser.add_argument("--baseline", action="store_true", help="fine-tuning (scale 0) as well")


def _add_revisit(benches: Any) -> None:
    parser = command(
        benches,
        "revisit",
        revisit,
        "Revisits on permuted MNIST beside fine-tuning, multi-anchor EWC, online EWC, the single penalty and joint "
        "training; mean test accuracy after one pass and after every sweep.",
        "streamcl bench revisit --data mnist.npz --seeds 0 1 2 --plot revisit.png",
    )
    _add_mnist(parser)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--sweeps", type=int, default=3)
    parser.add_argument("--only", default="", metavar="TEXT", help="only methods whose name contains this")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it (PNG or SVG)")


def _add_order_bias(benches: Any) -> None:
    parser = command(
        benches,
        "order-bias",
        order_bias,
        "A penalty at every optimum (multi-anchor EWC) beside the single penalty: error by position in the task order, "
        "exact on linear-Gaussian tasks and, with --data, on permuted MNIST through the daemon.",
        "streamcl bench order-bias --data mnist.npz --plot order-bias.png",
    )
    _add_mnist(parser, required=False)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of permuted MNIST")
    parser.add_argument("--scale", type=float, default=30.0, help="of permuted MNIST (default 30)")
    parser.add_argument("--repeats", type=int, default=1000, help="linear-Gaussian data sets (default 1000)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it (PNG or SVG)")


def _add_speed(benches: Any) -> None:
    parser = command(
        benches,
        "speed",
        speed,
        "What streamcl costs, beside the plainest loop that does the same: ingest, training, the penalty in a step, "
        "the Fisher, a boundary, a "
        "prediction, memory, a start; as ratios, each with its goal. Exits with 1 if a goal is missed.",
        "streamcl bench speed --json speed.json",
    )
    parser.add_argument("--rounds", type=int, default=9, help="of every comparison (default 9)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", choices=SPEED_PARTS, help=", ".join(SPEED_PARTS))
    _add_figures(parser)


def _add_start(benches: Any) -> None:
    parser = command(
        benches,
        "start",
        start,
        "How long a daemon takes to be ready, new, started again, and after its trainer was killed, beside one import of "
        "PyTorch. Ends with 1 if a new one takes longer than 1.3 imports.",
        "streamcl bench start --json start.json",
    )
    parser.add_argument("--rounds", type=int, default=9, help="of every comparison (default 9)")
    parser.add_argument("--beside", type=Path, metavar="DIR", help="another checkout of streamcl, timed in the same run")
    _add_figures(parser)


def _add_growth(benches: Any) -> None:
    parser = command(
        benches,
        "growth",
        growth,
        "How the cost of a training step and of a boundary grows: with the number of tasks (it must not), with the "
        "parameters and with the samples (linearly).",
        "streamcl bench growth --json growth.json --plot growth.png",
    )
    parser.add_argument("--tasks", type=int, default=500, help="tasks learned, in single and in factor mode (default 500)")
    parser.add_argument("--parameters", type=int, default=10**8, help="of the largest model (default 100 million)")
    parser.add_argument("--samples", type=int, default=32_000, help="of the largest task (default 32,000)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the curves (PNG or SVG)")
    _add_figures(parser)


def _add_peers(benches: Any) -> None:
    parser = command(
        benches,
        "peers",
        peers,
        "The Fisher and the penalty beside BackPACK, laplace-torch and Avalanche, those of them that are installed: is it "
        "the same quantity, and how much longer do they take.",
        "streamcl bench peers --json peers.json",
    )
    parser.add_argument("--rows", type=int, default=1024, help="the Fisher is taken of (default 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="of every comparison (default 5)")
    _add_figures(parser)


def _add_faults(benches: Any) -> None:
    parser = command(
        benches,
        "faults",
        faults,
        "Break the daemon in every way it must survive: a fault at every disk operation and acknowledgement, power cuts, "
        "kill -9; and break its code, to check that the campaigns notice. Exits with 1 if any promise was broken.",
        "streamcl bench faults --crashes 2000 --log-cuts 20000 --kills 2000 --json faults.json",
    )
    parser.add_argument("--crashes", type=int, default=100, help="random kills, and power cuts, each (default 100)")
    parser.add_argument("--log-cuts", type=int, default=3000, help="runs of the log alone (default 3000)")
    parser.add_argument("--kills", type=int, default=100, help="kill -9 of the real daemon (default 100, about 2 s each)")
    parser.add_argument("--seed", type=int, default=0)
    _add_figures(parser)


def _add_soak(benches: Any) -> None:
    parser = command(
        benches,
        "soak",
        soak,
        "Learn, revisit and predict without end, and count memory, file handles and segments (Linux). Exits with 1 if any "
        "of them grew.",
        "streamcl bench soak --minutes 30 --json soak.json",
    )
    parser.add_argument("--minutes", type=float, default=30.0)
    _add_figures(parser)


def _add_fuzz(benches: Any) -> None:
    parser = command(
        benches,
        "fuzz",
        fuzz,
        "Hostile messages around a clean stream: against all that judges messages, without sockets, and through real "
        "ones with real keys. Exits with 1 if anything crashed, hung, grew, left the contract or changed what was learned.",
        "streamcl bench fuzz --messages 1000000 --socket-messages 100000 --json fuzz.json",
    )
    parser.add_argument("--messages", type=int, default=100_000, help="without sockets (default 100000)")
    parser.add_argument("--socket-messages", type=int, default=10_000, help="through sockets (default 10000)")
    parser.add_argument("--guided", type=int, default=0, help="guided by coverage; needs atheris (default 0)")
    parser.add_argument("--seed", type=int, default=0)
    _add_figures(parser)


def _add_curve(benches: Any) -> None:
    parser = command(
        benches,
        "curve",
        curve,
        "What encryption costs: large and small batches through a daemon with keys and through one without, in turns.",
        "streamcl bench curve --json curve.json",
    )
    parser.add_argument("--rounds", type=int, default=9, help="of every comparison (default 9)")
    _add_figures(parser)


def _add_zoo(benches: Any) -> None:
    parser = command(
        benches,
        "zoo",
        zoo,
        "Small architectures as people write them, in both precisions, with all three kinds of Fisher: each is learned "
        "with the Fisher of a loop over samples, or refused on its first batch with a remedy. Exits with 1 if one is "
        "neither.",
        "streamcl bench zoo --json zoo.json",
    )
    parser.add_argument("--only", default="", metavar="TEXT", help="only architectures whose name contains this")
    _add_figures(parser)


def _add_mnist(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """What every benchmark on permuted images takes."""
    parser.add_argument("--data", type=Path, required=required, help="NPZ with train_x train_y test_x test_y (uint8)")
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--train-rows", type=int, default=10_000, help="training images (default the first 10,000)")
    _add_figures(parser)


def _add_figures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, configuration and versions here")


def demo(options: argparse.Namespace) -> None:
    """Run the demo, or keep it running; with --json, words go to standard error."""
    words = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    with words:
        figures = _keep(options) if options.keep else _demo(options)
    if options.json and figures:
        print_json(figures)


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    from streamcl.bench.demo import run

    matrices = run(options.out, tasks=options.tasks, epochs=options.epochs)
    return {name: matrix.tolist() for name, matrix in matrices.items()}


def _keep(options: argparse.Namespace) -> dict[str, Any]:
    from streamcl.bench.live import keep

    out = sys.__stdout__

    def announce(daemon: LocalDaemon) -> None:
        where = {"dashboard": daemon.url("/"), **daemon.endpoints, "state_dir": str(daemon.state_dir)}
        if options.json:
            print(json.dumps(where), file=out, flush=True)
            return
        print(f"dashboard: {where['dashboard']}")
        print(f"the same on a terminal: streamcl top --state-dir {where['state_dir']}")
        print("Ctrl-C stops the daemon", flush=True)

    keep(options.out, options.tasks, options.epochs, announce)
    return {}


def permuted_mnist(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    from streamcl.bench.permuted_mnist import Settings, run

    scales = [0.0] * options.baseline + options.scale
    run(options.data, scales, options.seed, Settings(options.tasks, options.epochs, options.train_rows), options.json)


def revisit(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    from streamcl.bench.permuted_mnist import Settings
    from streamcl.bench.revisit import run

    settings = Settings(options.tasks, options.epochs, options.train_rows)
    run(options.data, options.seeds, options.sweeps, settings, options.only, options.json, options.plot)


def order_bias(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    from streamcl.bench.order_bias import run
    from streamcl.bench.permuted_mnist import Settings

    settings = Settings(options.tasks, options.epochs, options.train_rows)
    run(
        options.data,
        options.tasks,
        options.repeats,
        options.seeds,
        options.scale,
        settings,
        options.json,
        options.plot,
    )


def faults(options: argparse.Namespace) -> int:
    """Run the campaigns."""
    from streamcl.bench.faults.report import run

    return run(options.crashes, options.log_cuts, options.kills, options.seed, options.json)


def soak(options: argparse.Namespace) -> int:
    """Run the soak."""
    from streamcl.bench.faults.soak import run

    return run(options.minutes, options.json)


def fuzz(options: argparse.Namespace) -> int:
    """Run the campaigns."""
    from streamcl.bench.fuzz.report import run

    return run(options.messages, options.socket_messages, options.guided, options.seed, options.json)


def curve(options: argparse.Namespace) -> int:
    """Run the comparison."""
    from streamcl.bench.curve import run

    return run(options.rounds, options.json)


def zoo(options: argparse.Namespace) -> int:
    """Go through the zoo."""
    from streamcl.bench.zoo import run

    return run(options.json, options.only)


def speed(options: argparse.Namespace) -> int:
    """Run the comparisons."""
    from streamcl.bench.speed import run

    return run(options.rounds, options.only, options.json)


def start(options: argparse.Namespace) -> int:
    """Run the comparison."""
    from streamcl.bench.start import run

    return run(options.rounds, options.beside, options.json)


def growth(options: argparse.Namespace) -> None:
    """Run the measurements."""
    from streamcl.bench.growth import run

    run(options.tasks, options.parameters, options.samples, options.json, options.plot)


def peers(options: argparse.Namespace) -> int:
    """Run the comparisons."""
    from streamcl.bench.peers import run

    return run(options.json, options.rows, options.rounds)
