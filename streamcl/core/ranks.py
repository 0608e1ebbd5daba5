"""Processes of a `torch.distributed` group that share the samples: Gloo between CPUs, NCCL between GPUs.

Each takes a run of every block's rows, as long as the others' or one shorter. Guarantees: the same bits in every process,
since what all of them need comes to each from the one collective; where another is gone, `Lost`, and never a number.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from streamcl.errors import StreamclError

INTERFACE = "GLOO_SOCKET_IFNAME"


class Lost(StreamclError):
    """Another of the processes that share the work has ended, or does not answer."""


class Ranks:
    """This process's place among them, as a `reduce.Reduction`.

    group: the default one by default. alike: whether all of them run on one machine.
    """

    def __init__(self, group: dist.ProcessGroup | None = None, alike: bool = False) -> None:
        self.group, self.alike = group, alike
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.leads = self.rank == 0

    def part(self, samples: int) -> slice:
        """The rows from and to below."""
        return slice(self.rank * samples // self.size, (self.rank + 1) * samples // self.size)

    def mean(self, values: Tensor, samples: int) -> Tensor:
        """Their sum, as a share of all."""
        return values.sum() / samples

    def sum(self, tensor: Tensor) -> Tensor:
        """By one all-reduce, in place."""
        with told():
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def whole(self, values: Tensor, samples: int) -> Tensor:
        """Each process's rows among zeros, summed: exact, and nobody need know how many others have."""
        found = values.new_zeros((samples, *values.shape[1:]))
        found[self.part(samples)] = values
        return self.sum(found)

    def any(self, flag: bool) -> bool:
        """By a sum."""
        return bool(self.sum(torch.tensor([float(flag)], device=self._device)).item())

    @property
    def _device(self) -> torch.device:
        return torch.device("cuda" if dist.get_backend(self.group) == "nccl" else "cpu")


@contextmanager
def told() -> Iterator[None]:
    """What goes wrong in a collective is said as `Lost`."""
    try:
        yield
    except RuntimeError as error:  # dist.DistError and what Gloo raises itself
        raise Lost(f"the processes that share the work have lost one another: {error}") from error


def stay_on_this_machine() -> None:
    """Have Gloo use the loopback interface from now on, which nobody else reaches, unless another one is named."""
    names = [name for _, name in socket.if_nameindex()]
    os.environ.setdefault(INTERFACE, next((name for name in names if name.rstrip("0123456789") == "lo"), "lo"))
