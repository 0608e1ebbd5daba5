"""``streamcl plan --parameters``: what other sizes of model, task and group of devices would take; nothing is run."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import msgspec

from streamcl import scale
from streamcl.cli.common import print_fields, print_json, print_table
from streamcl.cli.readable import number, size, span
from streamcl.errors import ConfigError

if TYPE_CHECKING:
    from streamcl.config import Config
    from streamcl.scale import Device, Estimate, Work

MOST_PARAMETERS, MOST_DEVICES = 1e13, 2**20
FEW_PARAMETERS = 1e6  # below, a step is mostly what Python and PyTorch take for themselves
DEFAULT_DEVICES = (1, 8, 64, 1024)
DEFAULT_DEVICE = "h100"
ROW_BYTES, TOKEN_BYTES = 3144, 4  # 784 numbers in float32 and a label; a token
OUTPUTS = 10  # that a network has to begin with
TIMES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15}
BYTES = {**{f"{k}b" if k else "b": v for k, v in TIMES.items() if k != "b"}, **{k: TIMES[k] for k in ("", *"kmgt")}}
BYTES |= {f"{letter}ib": 1024.0 ** (k + 1) for k, letter in enumerate("kmgt")}
QUANTITY = re.compile(r"(\d[\d_,]*\.?\d*(?:e[+-]?\d+)?)\s*([a-z]*)(/s)?", re.I)
STEP_PARTS = (scale.COMPUTE, scale.BANDWIDTH, scale.LAUNCHES, scale.LINK)
OWN = {  # of --parameters, by their names in the namespace
    "devices": "--devices",
    "device": "--device",
    "step_rows": "--rows-per-step",
    "row_bytes": "--row-bytes",
    "uses": "--uses",
    "width": "--width",
    "flops": "--flops",
    "utilisation": "--utilisation",
    "memory": "--memory",
    "bandwidth": "--bandwidth",
    "link": "--link",
    "disk": "--disk",
    "network": "--network",
}


# -- options -----------------------------------------------------------------------------------------------------------


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those that go with --parameters."""
    sizes = parser.add_argument_group("other sizes, instead of the configured model: an estimate by arithmetic")
    sizes.add_argument("--parameters", type=_parameters, metavar="N", help="of the model, such as 10M, 7B or 1e9")
    sizes.add_argument(
        "--devices",
        type=_devices,
        metavar="N,...",
        help="numbers of devices that share the rows (default: train.workers where that is set, else 1,8,64,1024)",
    )
    sizes.add_argument(
        "--device",
        choices=sorted(scale.DEVICES),
        help=f"their kind, by the maker's data sheet (default {DEFAULT_DEVICE}; cpu if train.device is)",
    )
    sizes.add_argument(
        "--rows-per-step",
        "--batch",
        dest="step_rows",
        type=count,
        metavar="N",
        help="rows of a step, of all devices together (default: train.batch_size)",
    )
    sizes.add_argument(
        "--row-bytes",
        type=_bytes,
        metavar="BYTES",
        help=f"of a row and its target (default {ROW_BYTES}; with --uses, {TOKEN_BYTES} a use)",
    )
    sizes.add_argument(
        "--uses", type=count, metavar="N", help="how often a row uses each parameter: its tokens, or positions (default 1)"
    )
    sizes.add_argument("--width", type=count, metavar="N", help="of square layers (default: a transformer's of that size)")
    sizes.add_argument("--flops", type=_flops, metavar="N", help="a device's operations a second at best, such as 67T")
    sizes.add_argument("--utilisation", type=_share, metavar="X", help="the share of them that training reaches")
    sizes.add_argument("--memory", type=_bytes, metavar="BYTES", help="of a device, such as 80GB")
    sizes.add_argument("--bandwidth", type=_bytes, metavar="BYTES", help="of that memory, a second, such as 3.35TB/s")
    sizes.add_argument(
        "--link", type=_bytes, metavar="BYTES", help="between devices, a second, past a ring's slowest point"
    )
    sizes.add_argument("--disk", type=_bytes, metavar="BYTES", help="of the state directory's disk, a second")
    sizes.add_argument("--network", type=_bytes, metavar="BYTES", help="by which rows come in, a second")
    sizes.add_argument(
        "--curvature", dest="key:posterior.curvature", metavar="KIND", help="the same as --posterior.curvature"
    )


def _quantity(text: str, units: Mapping[str, float], what: str) -> float:
    match = QUANTITY.fullmatch(text.strip())
    factor = None if match is None else units.get(match[2].lower())
    if match is None or factor is None:
        raise argparse.ArgumentTypeError(f"expected {what}, got {text!r}")
    found = float(match[1].replace(",", "").replace("_", "")) * factor
    if not 0 < found < 1e18:
        raise argparse.ArgumentTypeError(f"expected {what}, above 0 and below 1e18, got {text!r}")
    return found


def count(text: str) -> int:
    """A whole number from 1 on, such as 64, 10M, 7B, 1.5k or 1e9. Raises ArgumentTypeError.

    >>> count("7B"), count("1e6"), count("1.5k"), count("10_000")
    (7000000000, 1000000, 1500, 10000)
    """
    found = _quantity(text, TIMES, "a whole number from 1 on, such as 64, 10M, 7B or 1e9")
    if abs(found - round(found)) > 1e-9 * found:
        raise argparse.ArgumentTypeError(f"expected a whole number, such as 64, 10M, 7B or 1e9, got {text!r}")
    return round(found)


def _parameters(text: str) -> int:
    found = count(text)
    if found > MOST_PARAMETERS:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_PARAMETERS:g} parameters, got {text!r}")
    return found


def _devices(text: str) -> tuple[int, ...]:
    found = tuple(dict.fromkeys(count(each) for each in text.split(",")))
    if max(found) > MOST_DEVICES:
        raise argparse.ArgumentTypeError(f"expected at most {MOST_DEVICES:,} devices, got {text!r}")
    return found


def _bytes(text: str) -> float:
    return _quantity(text, BYTES, "bytes, such as 3144, 80GB, 64GiB or 450e9")


def _flops(text: str) -> float:
    return _quantity(text, TIMES, "operations a second, such as 67T or 67e12")


def _share(text: str) -> float:
    try:
        found = float(text)
    except ValueError:
        found = 0.0
    if not 0 < found <= 1:
        raise argparse.ArgumentTypeError(f"expected a share above 0 and at most 1, such as 0.4, got {text!r}")
    return found


def check_alone(options: argparse.Namespace) -> None:
    """Raise ConfigError for an option of other sizes, where the configured model is asked about."""
    for name, flag in OWN.items():
        if getattr(options, name) is not None:
            raise ConfigError(f"{flag}: goes with --parameters N, the size to estimate; the configured model has its own")


# -- what is asked -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Asked:
    """chosen: whether the layers' width was."""

    work: Work
    device: Device
    number_format: str
    devices: Sequence[int]
    chosen: bool

    @classmethod
    def of(cls, options: argparse.Namespace, config: Config) -> Asked:
        """Of the options and the configuration. Raises ConfigError."""
        rows = _task_rows(options)
        if options.step_rows is not None:
            train = msgspec.structs.replace(config.train, batch_size=options.step_rows)
            config = msgspec.structs.replace(config, train=train)
        uses = options.uses or 1
        posterior, train = config.posterior, config.train
        if train.optimizer == "lbfgs" or posterior.curvature == "full":
            raise ConfigError(_beyond(config))
        work = scale.Work(
            parameters=options.parameters,
            width=options.width or scale.usual_width(options.parameters),
            step_rows=train.rows,
            task_rows=rows,
            row_bytes=options.row_bytes or (ROW_BYTES if uses == 1 else TOKEN_BYTES * uses),
            epochs=config.epochs(rows),
            cotangents=_cotangents(config),
            uses=uses,
            curvature=posterior.curvature,
            averaged=posterior.expectation == "posterior",
            middle=posterior.keeps_middle,
            factors=posterior.mode == "factors",
            optimizer=train.optimizer,
            item_bytes=8 if train.dtype == "float64" else 4,
        )
        if work.width**2 > work.parameters:
            raise ConfigError(
                f"--width: expected layers of at most {options.parameters:,} numbers, got {work.width} x {work.width}"
            )
        number_format = "bfloat16" if train.autocast != "off" else train.dtype
        devices = options.devices or (DEFAULT_DEVICES if train.workers == 1 else (train.workers,))
        return cls(work, _device(options, train.device), number_format, devices, options.width is not None)


def _task_rows(options: argparse.Namespace) -> int:
    for name in ("input_shape", "label", "features", "drop", "header", "x", "numbers"):
        if getattr(options, name):
            raise ConfigError(f"--{name.replace('_', '-')}: says how a file is read; --parameters N reads none")
    if options.tokens:
        raise ConfigError("--tokens: goes with --input-shape; beside --parameters, --uses N is how many tokens a row has")
    if options.rows is None:
        return int(options.samples)
    try:
        return count(str(options.rows))
    except argparse.ArgumentTypeError as error:
        raise ConfigError(
            f"--rows: beside --parameters, the rows of a task: {error}; without it, a file for the configured model"
        ) from None


def _beyond(config: Config) -> str:
    """Why these settings have no estimate."""
    if config.posterior.curvature == "full":
        return (
            "posterior.curvature: full is one block for at most 2,048 parameters; beside --parameters, expected auto, "
            "kronecker or diagonal"
        )
    return "train.optimizer: lbfgs takes no steps of some rows; beside --parameters, expected adam or sgd"


def _cotangents(config: Config) -> int:
    """As `learning.plan` counts them, for a network without rows."""
    if config.posterior.fisher != "exact" or config.model.family != "categorical":
        return 1
    return max(1, (config.model.outputs or OUTPUTS) - 1)


def _device(options: argparse.Namespace, configured: str) -> Device:
    device = scale.DEVICES[options.device or ("cpu" if configured == "cpu" else DEFAULT_DEVICE)]
    if options.flops is not None:
        device = replace(device, flops=dict.fromkeys(device.flops, options.flops))
    if options.link is not None:
        device = replace(device, link_bytes_per_second=(options.link, options.link))
    given = {
        "utilisation": options.utilisation,
        "memory_bytes": options.memory,
        "bytes_per_second": options.bandwidth,
        "disk_bytes_per_second": options.disk,
        "network_bytes_per_second": options.network,
    }
    return replace(device, **{name: value for name, value in given.items() if value is not None})


# -- what is said ------------------------------------------------------------------------------------------------------


def show(options: argparse.Namespace, config: Config) -> None:
    """Print the estimates. Raises ConfigError."""
    if config.model.learner == "exact":
        raise ConfigError(
            "--parameters: estimates a network that is trained, and model.learner is exact; without --parameters, the plan "
            "says what its sums take"
        )
    asked = Asked.of(options, config)
    found = list(scale.estimates(asked.work, asked.device, asked.number_format, asked.devices))
    if options.json:
        print_json(plain(asked, found))
        return
    rows = [_row(asked, each) for each in found]
    print_table(rows, list(rows[0]), "")
    print_fields(_fields(asked, found))


def _row(asked: Asked, found: Estimate) -> dict[str, str]:
    least, most = (span(each) for each in found.consolidation_seconds)
    parts = found.step.parts
    return {
        "devices": number(found.devices),
        "memory each": size(found.memory.needed(asked.device.apart)),
        "if sharded": size(found.sharded_bytes),
        "step": span(found.step.seconds),
        **{name: span(parts.get(name, 0.0)) for name in STEP_PARTS},
        "consolidation": most if least == most else f"{least} to {most}",
        "ingest rows/s": number(float(round(found.ingest_rows_per_second, 1))),
        "trained rows/s": number(float(round(found.trained_rows_per_second, 1))),
        "bottleneck": f"{found.bottleneck} ({found.share:.0%})" if found.fits else found.bottleneck,
    }


def _fields(asked: Asked, found: Sequence[Estimate]) -> dict[str, Any]:
    work, device, need = asked.work, asked.device, found[0].memory
    opened = scale.checkpoint_bytes(work, task_open=True)
    return {
        "model": f"{number(work.parameters)} parameters, in {number(round(work.layers, 1))} layers of {_square(work)}; "
        f"{'--width' if asked.chosen else 'a guess, by a transformer of that size'}; each used {_times(work.uses)} a row",
        "task": f"{number(work.task_rows)} rows of {size(work.row_bytes)}, {number(work.step_rows)} a step; then "
        f"{work.epochs} epochs, and curvature with {number(work.backward(scale.SKETCHED[0]))} backward passes a row",
        "device": _described(asked),
        "memory_each": ", ".join(f"{name} {size(value)}" for name, value in need.device.items() if value)
        + f"; at a boundary {size(need.boundary)} more",
        "host": f"{size(need.host)} for each process, {size(need.host_boundary)} more at a boundary; "
        f"{size(need.copied)} to write checkpoints from" + ("" if device.apart else "; of the same memory"),
        "checkpoint": f"{size(scale.checkpoint_bytes(work))}, {span(found[0].checkpoint_seconds)} to write and read back; "
        f"{size(opened)} while a task is open",
        **({"factor": f"{size(scale.factor_bytes(work))} for each task, on disk"} if work.factors else {}),
        "largest": _largest(asked),
        "notes": list(_notes(asked, found)),
    }


def _square(work: Work) -> str:
    return f"{number(work.width)} x {number(work.width)}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{number(count)} times"


def _described(asked: Asked) -> str:
    device = asked.device
    link = " or ".join(dict.fromkeys(f"{size(each)}/s" for each in device.link_bytes_per_second))
    products = f"{device.flops[asked.number_format] / 1e12:.3g} TFLOP/s in {asked.number_format}"
    return (
        f"{device.name}: {products}, {device.utilisation:.0%} reached; {size(device.memory_bytes)} at "
        f"{size(device.bytes_per_second)}/s; link {link} (within or beyond {device.a_machine}); disk "
        f"{size(device.disk_bytes_per_second)}/s; network {size(device.network_bytes_per_second)}/s"
    )


def _largest(asked: Asked) -> str:
    fit, devices = _most(asked), max(asked.devices)
    if not fit:
        return f"no model of this kind fits, on {number(devices)} of them, as all of it is kept today"
    return f"about {_short(fit)} parameters fit, on {number(devices)} of them, as each keeps all of it today"


def _short(parameters: float) -> str:
    """Such as 450M or 1.5B."""
    unit, each = next((u, e) for u, e in (("T", 1e12), ("B", 1e9), ("M", 1e6), ("k", 1e3)) if parameters >= e)
    return f"{parameters / each:.3g}{unit}"


def _most(asked: Asked) -> float:
    """Parameters, with a width that is chosen, or the usual one of that size, on as many devices as were asked about."""
    devices = max(asked.devices)
    machine = scale.Machine.of(asked.device, asked.number_format, devices)
    width = (lambda _: asked.work.width) if asked.chosen else scale.usual_width
    return scale.largest(asked.work, machine, devices, width)


def _notes(asked: Asked, found: Sequence[Estimate]) -> Iterator[str]:
    work, device = asked.work, asked.device
    yield (
        "an estimate: nothing was run. It is within a factor of 2 of 1, 2 and 4 processes on one machine of two processors "
        "(docs/benchmarks.md); beyond that, and on GPUs, the arithmetic is all there is"
    )
    yield "bottleneck: what takes most of a task, from its rows' arrival to its checkpoint, one thing after the other"
    if not all(each.fits for each in found):
        yield from _does_not_fit(asked, found)
    idle = [each.devices for each in found if each.devices > work.step_rows]
    if idle:
        yield (
            f"a step of {number(work.step_rows)} rows leaves devices beyond that many without one; --rows-per-step "
            f"{max(idle)} or more gives each of {number(max(idle))} some"
        )
    standing, writing = scale.copy_seconds(work), scale.checkpoint_seconds(device, scale.checkpoint_bytes(work, True))
    if standing > scale.CHECKPOINT_SECONDS / 100:
        yield (
            f"while a task is open, training stands for {span(standing)} every {span(scale.CHECKPOINT_SECONDS + writing)}, "
            f"until {size(scale.copied_bytes(work))} are copied; the checkpoint is written beside it"
        )
    if work.parameters < FEW_PARAMETERS:
        yield "below a million parameters, most of a step is overhead: `streamcl plan --rows FILE` tries the model itself"


def _devices_text(count: int) -> str:
    return f"{number(count)} device{'s' * (count > 1)}"


def _does_not_fit(asked: Asked, found: Sequence[Estimate]) -> Iterator[str]:
    """Where it ends, and what would be needed."""
    device, worst = asked.device, next(each for each in found if not each.fits)
    need, count = worst.memory, scale.devices_if_sharded(asked.work, device)
    here = f"{size(need.needed(device.apart))} a device, which has {size(device.memory_bytes)}"
    if device.apart:
        here += f"; {size(need.on_host)} a process on the host, which has {size(device.host_bytes)}"
    enough = f"it would fit from {_devices_text(count)} on" if count else "it would still not fit"
    yield (
        f"does not fit {_devices_text(worst.devices)}: every process keeps all of the model ({here}). Fully sharded, "
        f"penalty and optimiser alike, {enough}: that is not built. Times are as if it fitted"
    )
    if need.activations > device.memory_bytes / 2:
        yield f"{size(need.activations)} of that are activations: fewer rows a step, or more devices, take less"


# -- as data -----------------------------------------------------------------------------------------------------------


def plain(asked: Asked, found: Sequence[Estimate]) -> dict[str, Any]:
    """As plain containers; seconds, bytes, rows a second."""
    work, device = asked.work, asked.device
    needed = scale.devices_if_sharded(work, device)
    return {
        "parameters": work.parameters,
        "width": work.width,
        "layers": work.layers,
        "uses": work.uses,
        "task_rows": work.task_rows,
        "step_rows": work.step_rows,
        "row_bytes": work.row_bytes,
        "epochs": work.epochs,
        "cotangents": work.cotangents,
        "curvature": work.curvature,
        "device": {
            "name": device.name,
            "flops": device.flops[asked.number_format],
            "utilisation": device.utilisation,
            "memory_bytes": device.memory_bytes,
            "memory_bytes_per_second": device.bytes_per_second,
            "link_bytes_per_second": list(device.link_bytes_per_second),
            "disk_bytes_per_second": device.disk_bytes_per_second,
            "network_bytes_per_second": device.network_bytes_per_second,
            "devices_a_machine": device.a_machine,
        },
        "checkpoint_bytes": scale.checkpoint_bytes(work),
        "checkpoint_open_bytes": scale.checkpoint_bytes(work, task_open=True),
        "factor_bytes": scale.factor_bytes(work) if work.factors else None,
        "largest_parameters": _most(asked),
        "devices_if_sharded": needed,
        "notes": list(_notes(asked, found)),
        "estimates": [_plain(asked, each) for each in found],
    }


def _plain(asked: Asked, found: Estimate) -> dict[str, Any]:
    need = found.memory
    return {
        "devices": found.devices,
        "fits": found.fits,
        "memory": {
            "device_bytes": need.needed(asked.device.apart),
            "host_bytes": need.host,
            "host_boundary_bytes": need.host_boundary,
            "host_copied_bytes": need.copied,
            "of_device": dict(need.device),
            "boundary_bytes": need.boundary,
            "sharded_bytes_not_built": found.sharded_bytes,
            "sharded_would_fit": found.sharded_fits,
        },
        "step": {"seconds": found.step.seconds, "of_it": dict(found.step.parts)},
        "consolidation": {
            "seconds": list(found.consolidation_seconds),
            "epochs_seconds": found.epochs.seconds,
            "curvature_seconds": [each.seconds for each in found.curvature],
            "checkpoint_seconds": found.checkpoint_seconds,
        },
        "ingest_rows_per_second": found.ingest_rows_per_second,
        "trained_rows_per_second": found.trained_rows_per_second,
        "task": {"seconds": found.task.seconds, "of_it": dict(found.task.parts)},
        "bottleneck": found.bottleneck,
        "bottleneck_share": found.share if found.fits else None,
    }
