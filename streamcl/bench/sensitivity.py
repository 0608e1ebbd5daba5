"""``streamcl bench sensitivity``: what there would be to gain by setting what the defaults leave alone.

The cases of `ablations`, one pass. Every row changes one number from its default, over decades where it is a scale of
something; what no row gains more than noise at, is nothing that a user has to tune. Draws are no key of the configuration
and are swapped here.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from unittest.mock import patch

import numpy as np

from streamcl.bench.ablations import Case, Method, Result
from streamcl.bench.ablations import run as ablate
from streamcl.learning import curvature

DEFAULT = Method("the defaults")
SCALES, PRIORS, RATES = (0.01, 0.1, 10.0, 100.0), (0.1, 10.0), (1e-3, 1e-2)
ROUNDS = (2, 8, 24)  # of draws, where the defaults take 4 to 12


def _drawn(rounds: int) -> contextlib.AbstractContextManager[object]:
    """So many rounds of draws, however settled."""
    return patch.multiple(curvature, ROUNDS=(rounds, rounds))


METHODS = (
    DEFAULT,
    *(Method(f"posterior.scale {scale:g}", {"scale": scale}) for scale in SCALES),
    *(Method(f"posterior.prior_precision {prior:g}", {"prior_precision": prior}) for prior in PRIORS),
    *(Method(f"train.learning_rate {rate:g}", train={"learning_rate": rate}) for rate in RATES),
    *(Method(f"{rounds} rounds of draws", swap=lambda rounds=rounds: _drawn(rounds)) for rounds in ROUNDS),  # type: ignore[misc]
)


def run(data: Path | None, cases: list[Case], tasks: int, seeds: list[int], only: str, out: Path | None) -> list[Result]:
    """Every setting whose name contains `only`, and the defaults; prints what each gains over them."""
    methods = [method for method in METHODS if only in method.name or method is DEFAULT]
    results = ablate(data, cases, tasks, seeds, "", out, methods, "sensitivity")
    print_gains(results)
    return results


def gains(results: list[Result]) -> dict[tuple[str, str], float]:
    """Accuracy of a case and setting less that of the defaults, mean over the seeds."""
    means = {
        (case, method): float(np.mean([r.mean for r in results if (r.case, r.method) == (case, method)]))
        for case, method in {(r.case, r.method) for r in results}
    }
    return {key: mean - means[key[0], DEFAULT.name] for key, mean in means.items() if key[1] != DEFAULT.name}


def print_gains(results: list[Result]) -> None:
    """The largest one of each case, in points."""
    found = gains(results)
    for case in dict.fromkeys(case for case, _ in found):
        gain, method = max((gain, method) for (one, method), gain in found.items() if one == case)
        print(f"{case}: the most that a setting gains over the defaults is {100 * gain:.1f} points ({method})")
