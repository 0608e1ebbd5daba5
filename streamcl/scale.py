"""What sizes of model, task and group of devices would take, by arithmetic alone; for `streamcl plan --parameters`.

A network is P parameters in square layers of n x n, each of which a row uses `uses` times; M devices share the rows of
every step as `core.ranks` does it, each with all of the model. Nothing is run and nothing is read: time is operations,
bytes and collectives over what a machine does of each in a second (the roofline of Williams, Waterman & Patterson 2009),
memory the tensors that the daemon keeps. `shared` is checked against what was measured with 1, 2 and 4 processes
(`bench.ranks_model`), memory against the tensors of a learner (`tests/test_scale.py`).

Knows no PyTorch and nothing else of streamcl: the constants of `core.basis` and `learning.curvature` stand here again, and
a test holds them to be the same. Symbols below: P parameters, n the width, s bytes of a number, b rows of a step, N rows of
a task, M devices, K cotangents a row (K - 1 classes for the exact Fisher, 1 otherwise).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

Curvature = Literal["auto", "kronecker", "diagonal"]

LEAST_LEADING, LEADING, WORTH_LEADING = 32, 8, 6  # as in `core.basis`
WIDEST, MOST_WIDE, OVERSAMPLED = 4096, 128, 32
DRAWS, DRAW_ROWS, ROUNDS, BLOCK_ROWS = 3, 700, (4, 12), 512  # as in `learning.curvature`,
SKETCHED = (8192, 2100)  # and here
COPIED_BYTES = 2.5e9  # a second, from memory to memory or off a GPU: a quarter of what a quiet machine does
CHECKPOINT_SECONDS = 30.0  # between two of them, as in `daemon.trainer`
MASTER_BYTES = 8  # of a number of the posterior
BOUNDARY = {True: (8, 8), False: (2, 7)}  # vectors of 64 bits while curvature is taken, averaged or not: device, host
MOST_DEVICES = 2**24
EIGEN = 9  # operations times n^3 for the eigenvectors of an [n, n], as in `learning.plan`

TRAFFIC = 6  # vectors of a forward and a backward pass: weights twice; the gradient made, read, and added (read, written)
PENALTY = 4  # offset, precision and parameters read, the gradient written
UPDATE = {"adam": 7, "sgd": 12}  # gradient, parameters and moments read and written; SGD's includes its proximal step
CHECK = (
    39  # vectors that a Fisher's self-check reads and writes: a loop over three rows beside the closed forms (`core.ways`)
)
TURNED_BY_WEIGHT = 8  # gradient there, values back: two products each, read and written
INGEST_ROWS, INGEST_BYTES = 1.55e6, 1.4e9  # a second, that one process takes in: `streamcl bench speed`, two cores

COMPUTE, BANDWIDTH, LAUNCHES = "compute", "memory bandwidth", "kernel launches"
LINK, DISK, INGEST, TOO_LARGE = "link", "disk", "ingest", "memory: does not fit"


# -- machines ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Device:
    """A device, and what stands around it, at their best.

    flops: operations a second of dense products, by the format they take. utilisation: the share of them that training's
    products reach. bytes_per_second: of its memory. link_bytes_per_second: past the slowest point of a ring, within a
    machine and between machines. latency_seconds: of one hop of it. launch_seconds: to start what one layer does in a
    step. a_machine: how many of them one has. apart: whether it has memory of its own beside the host's.
    """

    name: str
    flops: Mapping[str, float]
    utilisation: float
    memory_bytes: float
    bytes_per_second: float
    link_bytes_per_second: tuple[float, float]
    latency_seconds: float
    launch_seconds: float
    a_machine: int
    host_bytes: float
    disk_bytes_per_second: float
    network_bytes_per_second: float
    apart: bool = True


def _gpu(name: str, single: float, half: float, memory: float, traffic: float, link: tuple[float, float]) -> Device:
    """float32 on the plain units, in full precision (`core.products` allows no TF32); float64 as fast on tensor cores."""
    return Device(
        name,
        {"float64": single, "float32": single, "bfloat16": half},
        0.4,
        memory,
        traffic,
        link,
        5e-6,
        6e-5,
        8,
        2e12,
        3e9,
        1.25e9,
    )


DEVICES: Mapping[str, Device] = {
    "a100": _gpu("a100", 19.5e12, 312e12, 80e9, 2.04e12, (300e9, 200e9)),
    "h100": _gpu("h100", 67e12, 989e12, 80e9, 3.35e12, (450e9, 400e9)),
    "h200": _gpu("h200", 67e12, 989e12, 141e9, 4.8e12, (450e9, 400e9)),
    "cpu": Device(
        "cpu",
        {"float64": 48e9, "float32": 96e9, "bfloat16": 96e9},
        *(0.5, 8e9, 8e9, (1e9, 1.25e9), 5e-5, 1e-4, 64, 0.0, 1e9, 1.25e9),
        apart=False,
    ),
}
"""The makers' data sheets: A100 and H100 SXM with 80 GB, H200 SXM. Eight of them a machine, on NVLink, one way, within it;
between machines by eight network adapters of 200 (A100) or 400 Gbit/s, all of which a ring uses. 2 TB of memory a machine,
NVMe disks, 10 Gbit/s for rows. cpu: one core with AVX2 at 3 GHz, its share of memory and of its bandwidth, Gloo on the
loopback interface, 64 a machine. Utilisations, latencies and launches are rules of thumb, without a compiler."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What holds for one number of devices. flops: a second that training reaches; doubles: of 64-bit numbers."""

    device: Device
    flops: float
    doubles: float
    link_bytes_per_second: float

    @classmethod
    def of(cls, device: Device, number_format: str, devices: int) -> Machine:
        """For so many devices, which train in a format."""
        link = device.link_bytes_per_second[devices > device.a_machine]
        flops, doubles = (device.utilisation * device.flops[each] for each in (number_format, "float64"))
        return cls(device, flops, doubles, link)

    def all_reduce_seconds(self, size_bytes: float, devices: int) -> float:
        """Of a ring: ``2 (M - 1) / M bytes / link + 2 (M - 1) latency`` (Patarasu & Yuan 2009; Thakur et al. 2005)."""
        if devices == 1:
            return 0.0
        return 2 * (devices - 1) * (size_bytes / devices / self.link_bytes_per_second + self.device.latency_seconds)


# -- what is trained ---------------------------------------------------------------------------------------------------


def usual_width(parameters: float) -> int:
    """n of a transformer of so many parameters, ``P = 12 L n^2`` with ``n = 128 L``, as LLaMA 7B (4,096, 32 layers) and
    GPT-3 (12,288, 96 layers) have them.

    >>> usual_width(7e9), usual_width(175e9)
    (4224, 12288)
    """
    return max(1, min(math.isqrt(int(parameters)), max(64, 64 * round(math.cbrt(32 * parameters / 3) / 64))))


@dataclass(frozen=True, slots=True)
class Side:
    """One side of a layer of n x n that is turned to its eigenbasis; leading: eigenvectors that lead, 0: all are."""

    entries: int

    @property
    def wide(self) -> bool:
        """Whether only those that lead are written down."""
        return self.entries > WIDEST

    @property
    def leading(self) -> int:
        """r."""
        if self.wide:
            return min(MOST_WIDE, self.entries)
        most = max(LEAST_LEADING, (self.entries // LEADING + 8) // 16 * 16)
        return most if self.entries >= WORTH_LEADING * most else 0

    @property
    def numbers(self) -> int:
        """Of the vectors, the moments along them, and the reflections ``r (n + r)``."""
        written = self.leading if self.wide else self.entries
        return written * (self.entries + 1) + self.leading * (self.entries + self.leading) + self.wide

    @property
    def held(self) -> int:
        """In memory: what `core.basis.Reflections` multiplies by as well, ``2 r n``."""
        return self.numbers + 2 * self.leading * self.entries

    @property
    def sums(self) -> int:
        """That its moments are taken as: n^2, or a sketch of them."""
        return self.entries * (self.leading + OVERSAMPLED if self.wide else self.entries)

    @property
    def row(self) -> int:
        """Multiplications to turn a row: n^2, or 2 r n."""
        return 2 * self.leading * self.entries if self.leading else self.entries**2

    @property
    def eigen(self) -> int:
        """n of the symmetric matrix whose eigenvectors are taken."""
        return self.leading + OVERSAMPLED if self.wide else self.entries


@dataclass(frozen=True, slots=True)
class Work:
    """What is trained, on what, and how.

    parameters: P. width: n. uses: how often a row uses each parameter (tokens of a sequence). step_rows: b, of all devices
    together. task_rows: N. row_bytes: of a row as it is sent, its target with it. epochs: over a task at its boundary.
    cotangents: K. averaged: whether the curvature is averaged over the posterior. middle: whether the mean of the optima is
    kept. factors: whether each task's part of the posterior is. item_bytes: s.
    """

    parameters: float
    width: int
    step_rows: int
    task_rows: float
    row_bytes: float
    epochs: int
    cotangents: int
    uses: int = 1
    curvature: Curvature = "auto"
    averaged: bool = True
    middle: bool = True
    factors: bool = False
    optimizer: Literal["adam", "sgd"] = "adam"
    item_bytes: int = 4

    @property
    def layers(self) -> float:
        """P / n^2; a part of one counts as that."""
        return self.parameters / self.width**2

    @property
    def turned(self) -> bool:
        """Whether the penalty is a diagonal in an eigenbasis."""
        return self.curvature != "diagonal"

    @property
    def side(self) -> Side:
        """Either of a layer."""
        return Side(self.width)

    def backward(self, vectors: int) -> int:
        """Passes a row where so many vectors of all rows would do, if the curvature is then averaged."""
        return min(self.cotangents, max(1, math.ceil(vectors / self.task_rows))) if self.averaged else self.cotangents

    def both(self, count: int) -> float:
        """A number of a side, over both sides of all layers; 0 where nothing is turned."""
        return 2 * self.layers * count if self.turned else 0.0

    @property
    def steps(self) -> float:
        """Of a pass over a task."""
        return math.ceil(self.task_rows / self.step_rows)

    @property
    def vector_bytes(self) -> float:
        """Of a number a parameter, as it is trained: s P."""
        return self.item_bytes * self.parameters

    @property
    def through(self) -> bool:
        """Whether what goes through a layer is turned, not its weight: with Adam, where it is less (`Coordinates`)."""
        return self.optimizer == "adam" and self.step_rows * 2 * self.side.row < self.width**2 * 2 * self.width

    def own_rows(self, rows: float, devices: int) -> int:
        """Of so many, the most that a device has."""
        return math.ceil(rows / devices)


# -- memory ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Memory:
    """In bytes, of each process. device: what a device holds while it trains, by what it is. host: of the processor's
    memory; on a CPU it is the same memory. copied: there, what a checkpoint is written from. boundary, host_boundary:
    on top of that, while a task's curvature is taken. gathered: of one layer, that would be put together again and
    again if everything were sharded."""

    device: Mapping[str, float]
    host: float
    copied: float
    boundary: float
    host_boundary: float
    gathered: float

    @property
    def model(self) -> float:
        """All that does not depend on the rows of a step."""
        return sum(self.device.values()) - self.activations + self.boundary

    @property
    def activations(self) -> float:
        """Of a step."""
        return self.device["activations"]

    @property
    def on_host(self) -> float:
        """At most."""
        return self.host + self.copied + self.host_boundary

    def needed(self, apart: bool) -> float:
        """At most, on a device."""
        return self.model + self.activations + (0.0 if apart else self.on_host)

    def sharded(self, devices: int, apart: bool) -> float:
        """What a device would need if everything but activations were divided, as FSDP2 (Zhao et al. 2023) divides
        parameters, gradients and moments: penalty, basis and sums too. Not built."""
        return (self.model + (0.0 if apart else self.on_host)) / devices + self.gathered + self.activations


def memory(work: Work, devices: int) -> Memory:
    """As every process keeps it today: all of the model, whatever the number of devices.

    Trained in s bytes: parameters and gradient, Adam's two moments; the penalty's precision and shift, and the offset that
    a step takes (3 P); where it is turned, the coordinates and their gradient (2 P), and the basis. Activations: of every
    layer its n inputs and n outputs, for b / M rows. On the host: precision, shift and the mean of the optima in 64 bits,
    the basis with them; the first one also has what a checkpoint is written from, beside training. While curvature is
    taken, in 64 bits, as counted on a CPU: 16 P, of which 8 are made where the network is; without draws 9 and 2; the new
    basis in both places, and two working copies of it; or moments and their eigenvectors, where these are more.
    """
    size, item = work.parameters, work.vector_bytes
    basis = work.both(work.side.held)
    coordinates = work.turned and work.optimizer == "adam"
    rows = work.own_rows(work.step_rows, devices) * work.uses
    device = {
        "parameters": item,
        "gradient": item,
        "moments": 2 * item if work.optimizer == "adam" else 0.0,
        "penalty": 3 * item,
        "coordinates": 2 * item if coordinates else 0.0,
        "basis": work.item_bytes * basis,
        "activations": work.item_bytes * rows * 2 * size / work.width,
    }
    there, here = BOUNDARY[work.averaged]
    curvature = MASTER_BYTES * there * size + (MASTER_BYTES + 2 * work.item_bytes) * basis
    moments = 2 * MASTER_BYTES * work.both(work.side.sums)
    return Memory(
        device,
        MASTER_BYTES * ((3 if work.middle else 2) * size + basis),
        copied_bytes(work),
        max(curvature, moments),
        MASTER_BYTES * (here * size + basis),
        2 * work.item_bytes * work.width**2,
    )


def fits(work: Work, machine: Machine, devices: int) -> bool:
    """Whether a device has room for it, and a machine for the masters of its processes."""
    need, device = memory(work, devices), machine.device
    here = min(devices, device.a_machine)
    return need.needed(device.apart) <= device.memory_bytes and (
        not device.apart or here * need.on_host <= device.host_bytes
    )


def largest(work: Work, machine: Machine, devices: int, width: Callable[[float], int] = usual_width) -> float:
    """The most parameters that fit as they are kept today, to 1 %; 0 where not even 1,000 do."""
    size = 1e13
    while size >= 1000:
        if fits(replace(work, parameters=size, width=width(size)), machine, devices):
            return size
        size /= 1.01
    return 0.0


def would_fit(work: Work, device: Device, devices: int) -> bool:
    """Whether it would, were everything sharded."""
    need = memory(work, devices)
    here = min(devices, device.a_machine) * need.on_host / devices
    return need.sharded(devices, device.apart) <= device.memory_bytes and (not device.apart or here <= device.host_bytes)


def devices_if_sharded(work: Work, device: Device) -> int | None:
    """How many devices it would take if everything were sharded; None where no number would do."""
    count = 1
    while not would_fit(work, device, count):
        count *= 2
        if count > MOST_DEVICES:
            return None
    low = count // 2
    while count - low > 1:
        middle = (low + count) // 2
        low, count = (low, middle) if would_fit(work, device, middle) else (middle, count)
    return count


# -- time --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds, by what they go into; what is done at once counts once, as the slowest of it."""

    parts: Mapping[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        """All of them."""
        return sum(self.parts.values())

    def plus(self, other: Times, times: float = 1.0) -> Times:
        """And so many times another's."""
        names = dict.fromkeys([*self.parts, *other.parts])
        return Times({name: self.parts.get(name, 0.0) + times * other.parts.get(name, 0.0) for name in names})


def slowest(compute: float, traffic: float, launches: float = 0.0) -> Times:
    """Of what one device does at once."""
    every = {COMPUTE: compute, BANDWIDTH: traffic, LAUNCHES: launches}
    name = max(every, key=lambda each: every[each])
    return Times({name: every[name]})


def turning_operations(work: Work, rows: float) -> float:
    """Of a step in coordinates: ``4 b (left + right)`` a layer, or ``4 n (left + right)`` where its weight is turned."""
    if not work.turned:
        return 0.0
    return work.layers * 4 * 2 * work.side.row * (rows * work.uses if work.through else work.width)


def step(work: Work, machine: Machine, devices: int, arriving: bool = False) -> Times:
    """Of b rows: products of ``6 P`` operations a row (a forward pass, and a backward pass of two; Kaplan et al. 2020) and
    what turning takes; then penalty and update, which read and write whole vectors; then the gradient's all-reduce, which
    waits for all of that, as nothing overlaps today.

    arriving: while rows arrive, losses and outputs are put together as well, by two more collectives.
    """
    rows, traffic = work.own_rows(work.step_rows, devices), machine.device.bytes_per_second
    by_weight = work.turned and not work.through
    products = 6 * work.parameters * rows * work.uses + turning_operations(work, rows)
    basis = work.item_bytes * work.both(work.side.held)
    passes = TRAFFIC * work.vector_bytes + basis
    vectors = (PENALTY if work.optimizer == "adam" else 1) + UPDATE[work.optimizer] + TURNED_BY_WEIGHT * by_weight
    device = slowest(products / machine.flops, passes / traffic, work.layers * machine.device.launch_seconds)
    link = machine.all_reduce_seconds(work.vector_bytes, devices)
    if arriving:
        link += 2 * machine.all_reduce_seconds(work.item_bytes * work.step_rows, devices)
    return device.plus(Times({BANDWIDTH: vectors * work.vector_bytes / traffic, LINK: link}))


def curvature(work: Work, machine: Machine, devices: int, rounds: int = ROUNDS[1]) -> Times:
    """Of a task's precision: a pass over its rows for squares, one more for the moments where it is turned; a row takes a
    forward pass and K to the layers' outputs, ``2 P (1 + K)``, and turning. If averaged, 3 draws a round of 700 rows,
    with K = 1, and in the passes no more than make 8,192 and 2,100 of all rows (`Work.backward`).

    Every block of 512 rows, shared, reads the weights in each of those, and adds to sums in 64 bits. All-reduced: those
    sums, the moments', and each draw's. Not shared: what is read and written for a block, a pass's self-check on three
    rows, and eigenvectors, ``9 n^3`` a side.
    """
    draws = DRAWS * rounds if work.averaged else 0
    drawn = min(DRAW_ROWS, work.task_rows)
    passes = [work.backward(vectors) for vectors in (SKETCHED if work.turned else SKETCHED[1:])]
    found = Times({LINK: machine.all_reduce_seconds(MASTER_BYTES * work.parameters, devices) * (1 + draws)})
    for cotangents in passes:
        found = found.plus(_rows_of_curvature(work, machine, devices, work.task_rows, cotangents))
    found = found.plus(Times({BANDWIDTH: CHECK * work.vector_bytes / machine.device.bytes_per_second}), len(passes))
    found = found.plus(_rows_of_curvature(work, machine, devices, drawn, 1), draws)
    if work.turned:
        moments = machine.all_reduce_seconds(MASTER_BYTES * work.both(work.side.sums), devices)
        eigenvectors = EIGEN * work.both(work.side.eigen**3) / machine.doubles
        found = found.plus(Times({LINK: moments, COMPUTE: eigenvectors}))
    return found


def _rows_of_curvature(work: Work, machine: Machine, devices: int, rows: float, cotangents: int) -> Times:
    turning = work.layers * 2 * work.side.row * (cotangents + 1) if work.turned else 0.0
    operations = work.uses * (2 * work.parameters * (1 + cotangents) + turning) * work.own_rows(rows, devices)
    block = (1 + cotangents) * work.vector_bytes + 2 * MASTER_BYTES * work.parameters
    traffic = math.ceil(rows / BLOCK_ROWS) * block / machine.device.bytes_per_second
    started = 2 if machine.device.apart else 1 + cotangents  # a GPU takes all cotangents at once; of three passes in a step
    launches = math.ceil(rows / BLOCK_ROWS) * started / 3 * work.layers * machine.device.launch_seconds
    return slowest(operations / machine.flops, traffic, launches)


def shared(shared_seconds: float, replicated_seconds: float, processes: int, gain: float = 1.0) -> float:
    """What several processes take for what one takes ``shared + replicated``: each its part of the rows, and all the rest.

        (shared + processes * replicated) / gain

    gain: how many times the operations a second of that one all of them reach together: as many as there are, where each
    has a device of its own; 1, where one alone has all of a machine's processors, which they then divide.
    """
    return (shared_seconds + processes * replicated_seconds) / gain


# -- disk and network --------------------------------------------------------------------------------------------------


def copied_bytes(work: Work) -> float:
    """What training changes in place while a task is open: parameters, Adam's moments, and the coordinates."""
    return work.vector_bytes * (1 + _open_vectors(work))


def copy_seconds(work: Work) -> float:
    """For which training stands, whenever a checkpoint is due."""
    return copied_bytes(work) / COPIED_BYTES


def _open_vectors(work: Work) -> int:
    if work.optimizer != "adam":
        return 0
    return 3 if work.turned else 2


def checkpoint_bytes(work: Work, task_open: bool = False) -> float:
    """Parameters in s bytes and the posterior in 8; while a task is open also Adam's moments, and the coordinates."""
    open_vectors = _open_vectors(work) if task_open else 0
    posterior = (3 if work.middle else 2) * work.parameters + work.both(work.side.numbers)
    return work.vector_bytes * (1 + open_vectors) + MASTER_BYTES * posterior


def factor_bytes(work: Work) -> float:
    """Of a task's file, in factor mode: precision, shift, basis; where the curvature is averaged or turned, its optimum."""
    optimum = work.parameters if work.averaged or work.turned else 0.0
    return MASTER_BYTES * (2 * work.parameters + work.both(work.side.numbers) + optimum)


def checkpoint_seconds(device: Device, size_bytes: float) -> float:
    """Written, synced, and read back: the bytes twice."""
    return 2 * size_bytes / device.disk_bytes_per_second


def ingest_rows_per_second(work: Work, machine: Machine, devices: int) -> float:
    """The least of: the network's; the disk's, to which a row is written once, and from which every machine reads it once;
    and what the one process that takes rows in has been measured to do."""
    machines = math.ceil(devices / machine.device.a_machine)
    disk = machine.device.disk_bytes_per_second / (1 + machines)
    most = min(machine.device.network_bytes_per_second, disk, INGEST_BYTES)
    return min(INGEST_ROWS, most / work.row_bytes)


# -- all of it ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Estimate:
    """For one number of devices. task: seconds of a whole task, by what they go into. rows: of training, a second."""

    devices: int
    memory: Memory
    fits: bool
    sharded_bytes: float
    sharded_fits: bool
    step: Times
    epochs: Times
    curvature: tuple[Times, Times]
    checkpoint_seconds: float
    ingest_rows_per_second: float
    trained_rows_per_second: float
    task: Times

    @property
    def bottleneck(self) -> str:
        """What does not fit, or what takes most of a task's time."""
        return max(self.task.parts, key=lambda name: self.task.parts[name]) if self.fits else TOO_LARGE

    @property
    def share(self) -> float:
        """The bottleneck's, of all that a task takes, one after the other."""
        return max(self.task.parts.values()) / self.task.seconds

    @property
    def consolidation_seconds(self) -> tuple[float, float]:
        """Epochs, curvature and a checkpoint: with the fewest rounds of draws, and with the most."""
        rest = self.epochs.seconds + self.checkpoint_seconds
        return rest + self.curvature[0].seconds, rest + self.curvature[1].seconds


def estimate(work: Work, device: Device, number_format: str, devices: int) -> Estimate:
    """All of it for M devices."""
    machine = Machine.of(device, number_format, devices)
    need, once = memory(work, devices), step(work, machine, devices)
    epochs = Times().plus(once, work.epochs * work.steps)
    least, most = (curvature(work, machine, devices, rounds) for rounds in ROUNDS)
    arriving = step(work, machine, devices, arriving=True)
    while_open = checkpoint_seconds(device, checkpoint_bytes(work, task_open=True))
    standing = copy_seconds(work)
    training = 1 - standing / (CHECKPOINT_SECONDS + while_open + standing)
    closing = checkpoint_bytes(work) + (factor_bytes(work) if work.factors else 0.0)
    saved = checkpoint_seconds(device, closing)
    ingest = ingest_rows_per_second(work, machine, devices)
    learned = Times().plus(arriving, work.steps)
    task = learned.plus(epochs).plus(most)
    task = task.plus(Times({DISK: saved + learned.seconds * (1 / training - 1), INGEST: work.task_rows / ingest}))
    return Estimate(
        devices,
        need,
        fits(work, machine, devices),
        need.sharded(devices, device.apart),
        would_fit(work, device, devices),
        once,
        epochs,
        (least, most),
        saved,
        ingest,
        training * work.step_rows / arriving.seconds,
        task,
    )


def estimates(work: Work, device: Device, number_format: str, devices: Sequence[int]) -> Iterator[Estimate]:
    """One for each number of devices."""
    return (estimate(work, device, number_format, each) for each in devices)
