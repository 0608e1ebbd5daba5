"""Models and data that the comparisons are made on; seeded, so that every process makes the same."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamcl import models

CLASSES = 10
FACTORIES: dict[str, tuple[str, dict[str, Any], tuple[int, ...]]] = {
    "MLP 784-400-400-10": ("mlp", {"hidden": [400, 400]}, (784,)),
    "convolutional": ("convnet", {"channels": [8, 16], "hidden": 64}, (1, 28, 28)),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """So many records of so many rows for one of `FACTORIES`, passed over `repeats` times."""

    model: str
    records: int
    rows: int = 256
    batch_size: int = 128
    repeats: int = 1

    def plain(self) -> dict[str, Any]:
        """For another process."""
        return asdict(self)

    def tree(self) -> dict[str, Any]:
        """The daemon's configuration for it."""
        name, args, _ = FACTORIES[self.model]
        return {
            "model": {"factory": f"streamcl.models:{name}", "args": args, "classes": CLASSES},
            "train": {"batch_size": self.batch_size},
        }

    def module(self) -> nn.Module:
        """The model, seeded."""
        name, args, shape = FACTORIES[self.model]
        return models.build(f"streamcl.models:{name}", args, shape, CLASSES, 0)

    def arrays(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """x [records * rows, ...] and y."""
        rng = np.random.default_rng(0)
        n = self.records * self.rows
        x = rng.standard_normal((n, *FACTORIES[self.model][2]), np.float32)
        return x, rng.integers(0, CLASSES, n)

    def tensors(self) -> tuple[Tensor, Tensor]:
        """The same as tensors."""
        x, y = self.arrays()
        return torch.from_numpy(x), torch.from_numpy(y)
