"""Networks of several sizes, made on their device, and the penalties that they are learned under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor, nn

from streamcl.bench.device.clock import Clock
from streamcl.bench.device.record import Skipped
from streamcl.config import NOTED_RATE, from_tree
from streamcl.core.basis import Basis, Reflections, Side, is_wide, leading, matrices_in, wide_leading
from streamcl.core.gaussian import Gaussian
from streamcl.core.likelihood import Categorical
from streamcl.core.parameters import FlatParameters
from streamcl.core.precision import Layered, observed
from streamcl.learning.network import Network
from streamcl.learning.optimisation import Optimisation
from streamcl.learning.optimisers import Adam
from streamcl.schema import LabelMap, Signature

CLASSES = 10
SPARE = 1.1  # times what the arithmetic of a part comes to: activations, and what the allocator cannot use


@dataclass(frozen=True, slots=True)
class Size:
    """A perceptron. inputs, hidden: widths. rows: of a minibatch, the usual and a large one. task: rows of a task."""

    name: str
    inputs: int
    hidden: tuple[int, ...]
    rows: tuple[int, int]
    task: int

    @property
    def parameters(self) -> int:
        """How many."""
        widths = (self.inputs, *self.hidden, CLASSES)
        return sum((a + 1) * b for a, b in pairwise(widths))


SIZES = {
    "tiny": Size("tiny", 32, (48, 32), (32, 64), 128),
    "1M": Size("1M", 784, (700, 600), (256, 2048), 65_536),
    "100M": Size("100M", 4080, (4080,) * 6, (256, 2048), 4096),
    "1G": Size("1G", 8192, (8192,) * 15, (256, 2048), 2048),
}


@dataclass(slots=True)
class Setting:
    """One device, one size, one clock."""

    device: torch.device
    size: Size
    clock: Clock
    likelihood: Categorical = field(default_factory=lambda: Categorical(CLASSES))

    def lacking(self, what: str, bytes_each: float, more: int = 0, on_host: bool = False) -> Skipped | None:
        """Why a part that takes so many bytes a parameter, and some more, does not fit; None where it does."""
        free = self.clock.free() if not on_host else Clock(torch.device("cpu"), 1, 0.0).free()
        needed = SPARE * (self.size.parameters * bytes_each + more)
        if needed <= free:
            return None
        where = "the host's memory" if on_host else "the device"
        return Skipped(
            f"{what}, {self.size.name} parameters",
            f"{self.size.parameters:,} parameters x {bytes_each:g} bytes{f' and {more / 1e9:.1f} GB' if more else ''}, a "
            f"tenth to spare, are {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB of {where} are free",
        )

    def module(self) -> nn.Module:
        """The perceptron, seeded, made on its device."""
        torch.manual_seed(0)
        widths, layers = (self.size.inputs, *self.size.hidden), list[nn.Module]()
        with torch.device(self.device):
            for a, b in pairwise(widths):
                layers += [nn.Linear(a, b), nn.ReLU()]
            return nn.Sequential(*layers, nn.Linear(widths[-1], CLASSES))

    def data(self, rows: int) -> tuple[Tensor, Tensor]:
        """Rows x and labels y, on the device."""
        generator = torch.Generator(device=self.device).manual_seed(0)
        x = torch.randn((rows, self.size.inputs), generator=generator, device=self.device)
        return x, torch.randint(0, CLASSES, (rows,), generator=generator, device=self.device)

    def network(self, rows: int) -> Network:
        """The perceptron as the learner has it; rows: of a minibatch."""
        train = {"batch_size": rows, "device": str(self.device)}
        config = from_tree({"model": {"classes": CLASSES}, "train": train})
        labels = LabelMap(CLASSES)
        labels.add(tuple(range(CLASSES)))
        signature = Signature((self.size.inputs,), False, ())
        return Network(config, signature, labels, self.device, factory=lambda: self.module())

    def optimisation(self, rows: int, turned: bool) -> Optimisation:
        """Steps under a penalty in an eigenbasis, or under the prior alone."""
        network = self.network(rows)
        theta = network.parameters.theta.detach()
        penalty = self.turned(network.parameters) if turned else Gaussian.prior(torch.zeros_like(theta), 1.0, "layered")
        train = from_tree({"train": {"batch_size": rows, "device": str(self.device)}}).train
        found = Optimisation(network, penalty, train, NOTED_RATE)
        found.set_samples(self.size.task)
        return found

    def turned(self, parameters: FlatParameters, dtype: torch.dtype = torch.float32) -> Gaussian:
        """A diagonal in an eigenbasis whose sides lead where a first task's would, of random directions."""
        layout = parameters.layout
        pairs = [(name, name.replace("weight", "bias")) for name in layout.names if "weight" in name]
        matrices = matrices_in(layout, pairs)
        generator = torch.Generator(device=self.device).manual_seed(1)
        numbers = {"dtype": dtype, "device": self.device}
        sides = tuple(
            (_side(m.rows, m.columns, True, generator, dtype), _side(m.columns, m.rows, k > 0, generator, dtype))
            for k, m in enumerate(matrices)
        )
        basis = Basis(layout.size, tuple(matrices), sides)
        values = torch.rand(layout.size, generator=generator, **numbers)  # type: ignore[call-overload]
        return Gaussian(Layered(basis, values), torch.zeros_like(values))


def _side(size: int, other: int, leads: bool, generator: torch.Generator, dtype: torch.dtype) -> Side:
    """Random orthonormal directions of a side of so many entries, of the kind that its moments would have."""
    wide = is_wide(size, other)
    most = wide_leading(other) if wide else leading(size) if leads else 0
    random = torch.randn(size, most or size, generator=generator, dtype=dtype, device=generator.device)
    first = torch.linalg.qr(random).Q
    if not most:
        return Side(first.contiguous(), torch.ones(size, dtype=dtype, device=generator.device))
    reflections = Reflections.onto(first)
    eye = torch.eye(most if wide else size, size, dtype=dtype, device=generator.device)
    vectors = reflections.back(eye).T if wide else reflections.into(eye)
    ones = torch.ones(vectors.shape[1], dtype=dtype, device=generator.device)
    return Side(vectors, ones, reflections, 1.0 if wide else 0.0)


class Plain:
    """The plainest loop that does the same: a flat vector, one forward and backward pass, fused Adam.

    autocast: the forward pass in bfloat16.
    """

    def __init__(self, setting: Setting, module: nn.Module, autocast: bool = False) -> None:
        self.module, self.parameters = module, FlatParameters(module)
        self.theta = self.parameters.theta.detach()
        self.optimiser = Adam(self.theta, self.parameters.grad, NOTED_RATE)
        self._likelihood, self._device, self._autocast = setting.likelihood, setting.device, autocast

    def step(self, x: Tensor, y: Tensor, begin: Callable[[], object] | None = None) -> None:
        """One step; begin: fills the gradient first, with zeros by default."""
        if begin is None:
            self.parameters.grad.zero_()
        else:
            begin()
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._autocast):
            output = self.module(x)
        torch.autograd.backward(self._likelihood.nll(output.float(), y).mean())
        self.optimiser.step()

    def penalty(self) -> Callable[[], object]:
        """A diagonal penalty's gradient, into the flat one."""
        generator = torch.Generator(device=self._device).manual_seed(2)
        values = torch.rand(len(self.theta), generator=generator, device=self._device)
        shift = torch.rand(len(self.theta), generator=generator, device=self._device)
        scaled = Gaussian(observed(values), shift).scaled(1e-3)
        return lambda: scaled.gradient(self.theta, out=self.parameters.grad)
