"""Figures that others have published for the same protocols, as far as they could be traced; they are not measured here."""

from __future__ import annotations

from dataclasses import dataclass

from streamcl.bench.neighbours.scenarios import Case

VAN_DE_VEN, LAPLACE_REDUX, SCHWARZ = "van de Ven & Tolias 2019", "Daxberger et al. 2021", "Schwarz et al. 2018"
WHOLE = "60,000 images, MLP 2 x {}, strengths found by grid, 20 seeds"
SPLIT, PERMUTED = WHOLE.format(400), WHOLE.format(1000)
OMNIGLOT = "sequential Omniglot, 50 alphabets, a convolutional network; after passes 1 and 5"


@dataclass(frozen=True, slots=True)
class Published:
    """A figure in percent, or the first and the last of several passes."""

    method: str
    percent: tuple[float, ...]
    source: str
    conditions: str


PUBLISHED: dict[Case, tuple[Published, ...]] = {
    "permuted-domain": (
        Published("none (fine-tuning)", (78.51,), VAN_DE_VEN, PERMUTED),
        Published("EWC", (94.31,), VAN_DE_VEN, PERMUTED),
        Published("online EWC", (94.42,), VAN_DE_VEN, PERMUTED),
        Published("SI", (95.33,), VAN_DE_VEN, PERMUTED),
        Published("joint training", (97.59,), VAN_DE_VEN, PERMUTED),
        Published("Kronecker Laplace (about)", (96.0,), LAPLACE_REDUX, "MLP 2 x 100, 100 epochs"),
    ),
    "split-task": (
        Published("online EWC", (99.1,), VAN_DE_VEN, SPLIT),
        Published("SI", (99.1,), VAN_DE_VEN, SPLIT),
        Published("joint training", (99.7,), VAN_DE_VEN, SPLIT),
    ),
    "split-domain": (
        Published("online EWC", (64.3,), VAN_DE_VEN, SPLIT),
        Published("SI", (65.4,), VAN_DE_VEN, SPLIT),
        Published("joint training", (98.4,), VAN_DE_VEN, SPLIT),
    ),
    "split-class": (
        Published("online EWC", (20.0,), VAN_DE_VEN, SPLIT),
        Published("SI", (20.0,), VAN_DE_VEN, SPLIT),
        Published("joint training", (97.9,), VAN_DE_VEN, SPLIT),
    ),
    "revisits": (
        Published("online EWC", (69.99, 79.15), SCHWARZ, OMNIGLOT),
        Published("progress and compress", (70.32, 82.84), SCHWARZ, OMNIGLOT),
    ),
}
