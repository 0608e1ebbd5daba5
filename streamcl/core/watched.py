"""A module as per-sample gradients are taken of it: its parameters by name, and forward passes that are watched.

Guarantees: evaluation mode while `evaluating`; training flags and parameters are left as they were; only what the model
itself raises is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamcl.core.closed_forms import Site
from streamcl.core.measures import Sums
from streamcl.core.modes import TrainingFlags
from streamcl.core.parameters import FlatParameters
from streamcl.core.products import fast_products, full_precision
from streamcl.core.provenance import Rows
from streamcl.core.recorder import Recorder


@dataclass(slots=True)
class Slowness:
    """What had to be taken one sample after the other, why, and what that has cost.

    reason: the first found. rows: of all that were taken. looped: of these, one after the other, for the parameters
    `names`, in `seconds`.
    """

    reason: str | None = None
    rows: int = 0
    looped: int = 0
    names: set[str] = field(default_factory=set)
    seconds: float = 0.0

    def because(self, reason: str) -> None:
        """Note why; the first reason stays."""
        self.reason = self.reason or reason

    def took(self, names: Iterable[str], rows: int, seconds: float) -> None:
        """Note a loop over rows."""
        self.names |= set(names)
        self.looped += rows
        self.seconds += seconds

    def said(self, what: str) -> str | None:
        """All of it in a sentence, None where nothing was slow. what: was taken."""
        if self.reason is None or not self.looped:
            return None
        names, rows = sorted(self.names), f"{self.looped} of {self.rows} rows"
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        cost = f"{self.seconds:.2g} s, {1e3 * self.seconds / self.looped:.2g} ms a row"
        return f"{what} of {rows} was taken row by row for {shown} ({cost}): {self.reason}"


@dataclass(frozen=True, slots=True)
class Forward:
    """One forward pass with what the recorder noted. proven: its rows are the samples, without a check of numbers."""

    output: Tensor
    sites: list[Site]
    proven: bool


class Watched:
    """A module with its parameters. by_loop: nothing but a loop over samples is wanted of it. slowness: so far.

    by_name: its trainable parameters. places: every place that holds one, with that one's name.
    """

    def __init__(self, module: nn.Module, parameters: FlatParameters, by_loop: bool = False) -> None:
        self.module = module
        self.parameters = parameters
        self.by_loop = by_loop
        self.slowness = Slowness()
        self.by_name = dict(zip(parameters.names, parameters.parameters, strict=True))
        self.places = places_of(module, parameters)
        self._constants = [*module.parameters(), *module.buffers()]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Everything of a Fisher or a Jacobian is taken in here."""
        flags = TrainingFlags(self.module)
        flags.eval()
        try:
            with fast_products(), full_precision(self.parameters.unsettled.device), flags.differentiable():
                yield
        finally:
            flags.train()

    def forward(self, x: Tensor) -> Forward | None:
        """A forward pass, watched, or unwatched where it fails under watch; None where there is no need of one."""
        if self.by_loop:
            return None
        try:
            with Recorder(self.by_name.items(), Rows(x, self._constants)) as recorder, torch.enable_grad():
                output: Tensor = self.module(x)
            return Forward(output, recorder.sites, recorder.rows.apart(output))
        except Exception as error:
            self.slowness.because(first_line(error))
        with torch.enable_grad():
            return Forward(self.module(x), [], proven=False)

    def one_by_one(self, x: Tensor) -> Tensor:
        """Outputs of rows by themselves."""
        with torch.no_grad():
            return torch.cat([self.module(x[n : n + 1]) for n in range(len(x))])

    def zeros(self, names: Iterable[str]) -> Sums:
        """A zero for each of these parameters."""
        return {name: torch.zeros_like(self.by_name[name]) for name in names}


def called_at(module: nn.Module, parameters: FlatParameters, tensors: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Outputs for rows x with other values, by name, in the place of the trainable parameters, which stay as they are."""
    given = {place: tensors[name] for place, name in places_of(module, parameters).items()}
    output: Tensor = functional_call(module, given, (x,), tie_weights=False)
    return output


def places_of(module: nn.Module, parameters: FlatParameters) -> dict[str, str]:
    """Every place of a module that holds a trainable parameter, with that one's name; a module that has several names once.

    Left to find them by itself, `functional_call` puts a layer that is used under two names back with the wrong tensors.
    """
    names = {id(p): name for name, p in zip(parameters.names, parameters.parameters, strict=True)}
    return {
        f"{path}.{own}" if path else own: names[id(p)]
        for path, part in module.named_modules()
        for own, p in part._parameters.items()
        if id(p) in names
    }


def first_line(error: Exception) -> str:
    """What an error says, on a line."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
