"""Numbers as people read them, the same in every command."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any

BARS = "▁▂▃▄▅▆▇█"
YEAR = 365 * 86_400
SPANS = (
    ("us", 1e-6, 1e-4),
    ("ms", 1e-3, 1),
    ("s", 1, 120),
    ("min", 60, 5400),
    ("h", 3600, 172_800),
    ("days", 86_400, YEAR),
)
PHASES = {"fisher": "measuring the penalty", "saving": "saving"}


def duration(seconds: float) -> str:
    """Such as 0:07, 12:30 or 1:02:03.

    >>> duration(3723.4)
    '1:02:03'
    """
    minutes, rest = divmod(round(max(seconds, 0.0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def ago(seconds: float | None) -> str:
    """A duration in one unit, for a narrow column.

    >>> ago(0.4), ago(90), ago(7200), ago(200_000), ago(None)
    ('0 s', '90 s', '2 h', '2 d', '-')
    """
    if seconds is None:
        return "-"
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} d"


def time_of(seconds: float | None) -> str:
    """A time of the clock, in seconds since 1970, as date and time here; - for none."""
    return "-" if seconds is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def span(seconds: float) -> str:
    """A duration in the one unit that suits it, from microseconds to years.

    >>> span(0.0), span(0.00042), span(1.5), span(5400), span(1e9)
    ('0 s', '0.42 ms', '1.5 s', '1.5 h', '31.7 years')
    """
    if seconds == 0:
        return "0 s"
    for unit, each, most in SPANS:
        if seconds < most:
            return f"{seconds / each:.3g} {unit}"
    return f"{seconds / YEAR:,.3g} years"


def size(count: float | None) -> str:
    """Bytes in powers of ten.

    >>> size(0), size(1234), size(8_589_934_592)
    ('0 B', '1.23 kB', '8.59 GB')
    """
    if count is None:
        return "-"
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def number(value: Any) -> str:
    """A count with commas, a real number in four digits, - for none.

    >>> number(12345), number(0.123456), number(12.0), number(None)
    ('12,345', '0.1235', '12', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def consolidation(now: Mapping[str, Any]) -> str:
    """The phase of a consolidation; of its epochs the current one (the status counts completed ones).

    >>> consolidation({"phase": "epochs", "epoch": 3, "epochs": 20})
    'epoch 4 of 20'
    """
    epochs = now.get("epochs") or 1
    under_way = f"epoch {min((now.get('epoch') or 0) + 1, epochs)} of {epochs}"
    return PHASES.get(now.get("phase") or "epochs", under_way)


def sparkline(values: Sequence[float | None], width: int) -> str:
    """Values as bars, the newest last, each bar the mean of as many values as fit it; a gap where there is no value.

    >>> sparkline([0.0, 1.0, None, 7.0], 4)
    '▁▂ █'
    """
    if width <= 0 or not values:
        return ""
    means = [_mean(part) for part in _parts(values, min(width, len(values)))]
    known = [value for value in means if value is not None]
    if not known:
        return ""
    low, high = min(known), max(known)
    step = (high - low) / (len(BARS) - 1) or 1.0
    return "".join(" " if value is None else BARS[round((value - low) / step)] for value in means)


def _parts(values: Sequence[float | None], count: int) -> list[Sequence[float | None]]:
    edges = [round(place * len(values) / count) for place in range(count + 1)]
    return [values[start:end] for start, end in itertools.pairwise(edges)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and value == value]
    return sum(known) / len(known) if known else None


def rise(value: float | None, bound: str | None) -> str:
    """A rise in nats a sample with what is not known of it: ``0.02``, ``>= 0.02``, ``> chance``."""
    if value is None:
        return "-"
    if bound == "chance":
        return "> chance"
    return f"{'>= ' if bound == 'lower' else ''}{value:.3g}"
