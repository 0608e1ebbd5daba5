"""A lambda in another library's convention, converted to ours: ``lambda_t = scale * N_t``, added to ``sum NLL``.

What each minimises, with N samples in the task being learned and F_t the mean over task t's samples of the Fisher's
diagonal:

    streamcl       sum NLL  + 1/2 scale N_t  sum F_t (theta - theta*)^2        + the prior, once
    van-de-ven     mean NLL + 1/2 lambda     sum F_t (theta - theta*)^2        (GMvandeVen/continual-learning)
    avalanche      mean NLL +     lambda     sum F_t (theta - theta*)^2        (ContinualAI/avalanche, EWC)
    mammoth        mean NLL +     lambda     sum F_t (theta - theta*)^2        (aimagelab/mammoth, ewc_on)
    laplace-torch  sum NLL  + 1/(2 temperature) sum_n F_n (theta - theta*)^2   + the prior, once

A mean over the N samples of the new task times N is a sum, so a penalty beside a mean loss weighs N times as much here:
exact where all tasks have the same number of samples. The Fisher is taken as its authors define it. Avalanche squares the
gradient of a mini-batch's mean loss instead of each sample's, which is smaller and differs entry by entry; no lambda
corrects that.
"""

from __future__ import annotations

from typing import Literal

Convention = Literal["streamcl", "avalanche", "mammoth", "van-de-ven", "laplace-torch"]


def to_scale(convention: Convention, value: float) -> float:
    """The `scale` that means the same as `value` in a convention; for laplace-torch, `value` is the temperature.

    Raises ValueError for a temperature of 0.
    """
    match convention:
        case "streamcl" | "van-de-ven":
            return value
        case "avalanche" | "mammoth":
            return 2 * value
        case "laplace-torch":
            if not value > 0:
                raise ValueError(f"expected a temperature greater than 0, got {value}")
            return 1 / value
