"""``streamcl plan``: how each parameter of the configured model will be kept, and what that costs; without a daemon.

With ``--parameters``, other sizes instead (`cli.scale`)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.binding import adopted
from streamcl.cli import scale
from streamcl.cli.common import add_json, command, print_fields, print_json, print_table
from streamcl.cli.configuration import add_keys, gathered
from streamcl.cli.files import add_columns, opened, say
from streamcl.cli.readable import number, size
from streamcl.errors import ConfigError
from streamcl.inputs import Inputs

if TYPE_CHECKING:
    from streamcl.config import Config
    from streamcl.datafiles import Array
    from streamcl.learning.plan import Cost, Plan
    from streamcl.schema import Signature
    from streamcl.snapshot import Meta

ROWS = 64  # of a file, that the model is tried on
SAMPLES = 10_000


def add_commands(commands: Any) -> None:
    """Add this module's command."""
    parser = command(
        commands,
        "plan",
        plan,
        "Print how the precision of each parameter of the configured model will be kept and why (turned to its layer's "
        "eigenbasis, a full block, or in its own coordinates), how much memory that takes, and what a step and a boundary "
        "cost beside plain training. Builds the model and runs a few rows through it; needs no daemon, and writes nothing. "
        "Where there is a state directory already, its curvature holds, and the shape of a row is known. Of an exact "
        "learner: its features, sums, and what a row and a boundary cost. With --parameters N, instead, an estimate of "
        "what a model of that size takes on several numbers of devices: memory, step, consolidation, checkpoint and "
        "ingest, and the bottleneck; by arithmetic, without a model, a file or a state directory.",
        "streamcl plan --config streamcl.toml --rows monday.csv",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="TOML file; every key is optional")
    parser.add_argument(
        "--rows",
        type=Path,
        metavar="FILE",
        help="a data file, as `send` takes it, for the shape of a row; with --parameters, how many rows a task has",
    )
    parser.add_argument("--input-shape", type=int, nargs="+", metavar="N", help="the shape of a row, instead of a file")
    parser.add_argument("--tokens", action="store_true", help="with --input-shape: rows are integers, for an embedding")
    parser.add_argument("--samples", type=int, default=SAMPLES, metavar="N", help=f"rows of a task (default {SAMPLES})")
    add_columns(parser, "the target's column or array (default: as `send` finds it)")
    add_json(parser)
    scale.add_options(parser)
    own = ("--config FILE", "--rows FILE", "--input-shape N ...", "--tokens", "--samples N", "--json")
    add_keys(parser, *own, "--parameters N", "--devices N,...", "--device NAME")


def plan(options: argparse.Namespace) -> None:
    """Print it."""
    config = gathered(options, options.config).config()
    if options.samples < 1:
        raise ConfigError(f"--samples: expected a positive number of rows, got {options.samples}")
    if options.parameters is not None:
        scale.show(options, config)
        return
    scale.check_alone(options)
    _plan_configured(options, config)


def _plan_configured(options: argparse.Namespace, config: Config) -> None:
    from streamcl.learning import plan as learning
    from streamcl.storage.checkpoint import read_meta

    meta = read_meta(Path(config.state_dir))
    if meta is not None:
        config = adopted(meta.fingerprint, config)
    sys.path.insert(0, str(Path.cwd()))  # where a model of one's own is, as for `serve`
    known = None if meta is None else _as_the_model_takes_them(meta, config)
    if config.model.learner == "exact":
        _plan_exact(options, config, known)
        return
    found = learning.plan(config, *_rows(options, config, known), options.samples)
    if options.json:
        print_json(learning.plain(found))
    else:
        _print(found)


def _plan_exact(options: argparse.Namespace, config: Config, known: Signature | None) -> None:
    from streamcl.learning.exact_plan import exact_plan, plain

    found = exact_plan(config, *_rows(options, config, known))
    if options.json:
        print_json(plain(found))
        return
    print_fields(
        {
            "learner": "exact: nothing is trained; sums of features determine the head",
            "features": f"{number(found.features)}, by a map of {number(found.frozen)} numbers that stay as they are",
            "outputs": f"{number(found.outputs)} for the labels or targets of these rows; more come with new labels",
            "posterior": f"{size(found.posterior_bytes)} in a checkpoint, for any number of tasks",
            "factor": f"{size(found.factor_bytes)} for each task, on disk, in factor mode",
            "row": f"{number(found.row_operations)} operations beside the feature map's own",
            "boundary": f"{number(found.boundary_operations)} operations, whatever the rows",
        }
    )


def _rows(options: argparse.Namespace, config: Config, known: Signature | None) -> tuple[Array, Array]:
    """Rows to try the model on. known: the shape that a state directory's rows have."""
    from streamcl.learning.plan import noise

    if options.rows is not None and options.input_shape is not None:
        raise ConfigError("plan: expected either --rows FILE or --input-shape N ..., not both")
    if options.input_shape is not None:
        if min(options.input_shape) < 1:
            raise ConfigError(f"--input-shape: expected positive numbers, got {options.input_shape}")
        return noise(options.input_shape, options.tokens, config)
    if options.rows is None and known is not None:
        return noise(known.x_shape, known.x_integer, config, known.y_shape)
    if options.rows is None:
        raise ConfigError("plan: expected the shape of a row: --rows FILE or --input-shape N ...")
    data = opened(options, options.rows, ROWS)
    say(options, data.reading)
    form = data.form(options.numbers, integer_targets=_labelled(config) and data.whole_targets())
    x, y, columns = next(data.batch(*each, form) for each in data.blocks())
    if y is None:
        raise ConfigError(f"{options.rows}: expected a target beside the rows; say which column or array with --label")
    inputs = Inputs.of(config)
    inputs.begin(x, columns)
    inputs.take(x, columns, 0)
    return inputs.encode(x, columns), y


def _as_the_model_takes_them(meta: Meta, config: Config) -> Signature | None:
    """The shape of a state directory's rows behind its input stage."""
    inputs = Inputs.of(config)
    inputs.load(meta.columns, meta.words, meta.inputs, {}, meta.signature)
    return None if meta.signature is None else inputs.signature(meta.signature)


def _labelled(config: Config) -> bool:
    return config.model.family == "categorical"


def _print(found: Plan) -> None:
    rows = [
        {
            "parameters": ", ".join(each.names),
            "shape": f"{each.rows} x {each.columns}",
            "numbers": number(each.parameters),
            "kept": each.treatment,
            "more": number(each.numbers),
            "why": each.why,
        }
        for each in found.kept
    ]
    print_table(rows, ["parameters", "shape", "numbers", "kept", "more", "why"], "no parameters")
    print_fields(
        {
            "curvature": found.curvature,
            "parameters": number(found.parameters),
            "posterior": f"{size(found.memory.posterior)} in a checkpoint, for any number of tasks",
            "factor": f"{size(found.memory.factor)} for each task, on disk, in factor mode",
            "device": f"{size(found.memory.device)} while a task is learned, and activations",
            "of_that_plain": f"{size(found.memory.plain)} without a penalty",
            "host": f"{size(found.memory.copy)} for the copy that a checkpoint is written from, beside training",
            "at_a_boundary": f"{size(found.memory.boundary)} more, on device and host, while curvature is taken",
            "step": _step(found.cost),
            "boundary": _boundary(found.cost),
        }
    )


def _step(cost: Cost) -> str:
    if cost.step is None:
        return "not counted"
    return f"{cost.step:.2f} times a plain one of {cost.batch} rows, by operations"


def _boundary(cost: Cost) -> str:
    low, high = cost.boundary
    epochs = f"{low:.1f}" if high - low < 0.05 else f"{low:.1f} to {high:.1f}"
    return f"{epochs} epochs after the task's own, for {number(cost.samples)} rows, by operations; large products"
