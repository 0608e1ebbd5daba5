"""Figures of what a daemon's history holds: accuracy, forgetting and penalty of each task, order bias, loss.

Guarantees: reads the history and nothing else, whether or not the daemon runs; if there is nothing to draw, it says what
would have to happen first.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamcl.errors import StreamclError
from streamcl.storage.history import HistoryReader

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAMED = 10  # tasks that have a colour and a name of their own; more are coloured by their position
LABELLED = 40  # boundaries on an axis
MARKERS = "osDv^<>Phd"
POINTS = 2000
EVENTS = 10_000
NAME_CHARACTERS = 24
FEW_BOUNDARIES = 60  # with a marker at each
WIDE_RANGE = 1e3  # of values, from which an axis is logarithmic
UNDEFINED = "undefined: all alike"  # a correlation of values that do not differ
CHANGES = {"boundary": "0.6", "revisit": "tab:purple"}
TROUBLES = {"failed": "tab:red", "disk_full": "tab:red", "drift": "tab:orange", "score": "tab:orange"}

Row = Mapping[str, Any]


class NothingToDraw(StreamclError):
    """The history has nothing for this figure yet; the message says what would have to happen first."""


@dataclass(frozen=True, slots=True)
class Past:
    """A history, read: rows of penalties and accuracies by boundary, samples by time, events in order; together: rows of
    the rise of all tasks, by boundary."""

    penalties: list[Row]
    accuracies: list[Row]
    samples: list[Row]
    events: list[Row]
    together: list[Row] = field(default_factory=list)

    @classmethod
    def read(cls, path: Path, seconds: float | None = None) -> Past:
        """All of it, or the last so many seconds before its end. Raises as HistoryReader does."""
        with HistoryReader(path) as history:
            first, last = history.first_sample() or 0.0, history.last_sample() or 0.0
            penalties, accuracies, together = history.penalties(), history.accuracies(), history.past()
            end = max([last, *(rows[-1]["time"] for rows in (penalties, accuracies, together) if rows)])
            since = -math.inf if seconds is None else end - seconds
            samples = history.samples(max(first, since), last, POINTS)
            events = history.events(EVENTS)[::-1]
        return cls(*(_since(since, rows) for rows in (penalties, accuracies, samples, events, together)))

    def order(self) -> list[str]:
        """Tasks in the order in which they were first learned, as far back as the history goes."""
        marks = [(event["lsn"], event["task"]) for event in self.events if event["kind"] == "boundary" and event["lsn"]]
        rows = [(row["lsn"], row["task"]) for row in (*self.penalties, *self.accuracies)]
        first: dict[str, int] = {}
        for lsn, task in [*marks, *rows]:
            first[task] = min(lsn, first.get(task, lsn))
        known = {task for _, task in rows}
        return sorted((task for task in first if task in known), key=first.__getitem__)

    def revisits(self) -> set[tuple[int, str]]:
        """The mark after each revisit, and its task."""
        return {(e["lsn"] + 1, e["task"]) for e in self.events if e["kind"] == "revisit" and e["lsn"] is not None}


@dataclass(frozen=True, slots=True)
class Drawn:
    """A figure, and its summary in numbers."""

    figure: Figure
    numbers: dict[str, Any] = field(default_factory=dict)


# -- by boundary -------------------------------------------------------------------------------------------------------


def accuracy(past: Past) -> Drawn:
    """Each task's accuracy on its evaluation set after every boundary, and the mean over the tasks so far."""
    if not past.accuracies:
        raise NothingToDraw(
            "no accuracy of any task is in the history: it is measured after each boundary, on the tasks that have an "
            "evaluation set"
        )
    import numpy as np

    figure, axes = _axes("Accuracy on each task's evaluation set", "accuracy")
    _lines(axes, past, past.accuracies, "accuracy")
    marks = _marks(past.accuracies)
    means = [_mean([row["accuracy"] for row in past.accuracies if row["lsn"] == mark]) for mark in marks]
    axes.plot(range(len(marks)), np.array(means, float), color="black", linewidth=2.5, label="mean")
    axes.set_ylim(max(0.0, min(row["accuracy"] for row in past.accuracies) - 0.1) - 0.02, 1.02)
    _legend(axes, past)
    return Drawn(
        figure, {"boundaries": len(marks), "mean_accuracy": means[-1], "by_task": _latest(past.accuracies, "accuracy")}
    )


def forgetting(past: Past) -> Drawn:
    """The estimated rise of each task's loss since it was learned, found without its data; a star at each revisit.

    Where the tasks are not followed one by one, of all together.
    """
    if not past.penalties and any(row["rise"] is not None for row in past.together):
        return _forgotten_together(past)
    figure, axes = _followed(past, "rise", "Forgetting, estimated without data", "rise of the loss, nats per sample")
    axes.axhline(0.0, color="0.5", linewidth=0.8)
    latest = _latest(past.penalties, "rise")
    return Drawn(
        figure, {"boundaries": len(_marks(past.penalties)), "mean_rise": _mean(list(latest.values())), "by_task": latest}
    )


def _forgotten_together(past: Past) -> Drawn:
    rows = [row for row in past.together if row["rise"] is not None]
    figure, axes = _axes("Forgetting, estimated without data", "rise of the mean loss of all tasks, nats per sample")
    axes.plot(range(len(rows)), [row["rise"] for row in rows], marker="o", color="black", linewidth=2.0)
    axes.axhline(0.0, color="0.5", linewidth=0.8)
    _label_boundaries(axes, past, [row["lsn"] for row in rows])
    return Drawn(figure, {"boundaries": len(rows), "rise_of_all": rows[-1]["rise"]})


def penalty(past: Past) -> Drawn:
    """What each task's factor costs the parameters after every boundary."""
    figure, axes = _followed(past, "penalty", "Penalty of each task at the parameters", "penalty, nats")
    values = [row["penalty"] for row in past.penalties if row["penalty"] and math.isfinite(row["penalty"])]
    if values and min(values) > 0 and max(values) > WIDE_RANGE * min(values):
        axes.set_yscale("log")
    return Drawn(figure, {"boundaries": len(_marks(past.penalties)), "by_task": _latest(past.penalties, "penalty")})


def _followed(past: Past, name: str, title: str, label: str) -> tuple[Figure, Axes]:
    if not past.penalties:
        raise NothingToDraw(
            "no penalty of any task is in the history: tasks are followed after each boundary in factor mode "
            "(posterior.mode = 'factors')"
        )
    figure, axes = _axes(title, label)
    _lines(axes, past, past.penalties, name)
    _legend(axes, past)
    return figure, axes


def _axes(title: str, label: str) -> tuple[Figure, Axes]:
    from streamcl.bench.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    axes.set(title=title, ylabel=label, xlabel="after the boundary of")
    axes.grid(alpha=0.3)
    return figure, axes


def _lines(axes: Axes, past: Past, rows: Sequence[Row], name: str) -> None:
    """A line a task over the boundaries, a star where it was revisited."""
    marks, revisits = _marks(rows), past.revisits()
    place = {mark: number for number, mark in enumerate(marks)}
    for task, style in _styles(past, len(marks)).items():
        mine = [row for row in rows if row["task"] == task and row[name] is not None]
        x, y = [place[row["lsn"]] for row in mine], [row[name] for row in mine]
        axes.plot(x, y, label=_shown(task), linewidth=1.5, **style)
        again = [index for index, row in enumerate(mine) if (row["lsn"], task) in revisits]
        if again:
            starred = {"marker": "*", "s": 170, "color": style["color"], "edgecolor": "black", "zorder": 5}
            axes.scatter([x[index] for index in again], [y[index] for index in again], **starred)
    _label_boundaries(axes, past, marks)


def _styles(past: Past, boundaries: int) -> dict[str, dict[str, Any]]:
    """A colour for each task: its own if they are few, else by its position."""
    from matplotlib import colormaps

    order = past.order()
    few = len(order) <= NAMED
    colours = colormaps["tab10" if few else "viridis"]
    marked = boundaries <= FEW_BOUNDARIES
    return {
        task: {
            "color": colours(number if few else number / (len(order) - 1)),
            "marker": (MARKERS[number % len(MARKERS)] if few else ".") if marked else "",
            "markersize": 5,
        }
        for number, task in enumerate(order)
    }


def _label_boundaries(axes: Axes, past: Past, marks: Sequence[int]) -> None:
    """The name of the task that each boundary closed, as many as there is room for."""
    at = {e["lsn"] + 1: e for e in past.events if e["kind"] in ("boundary", "revisit", "forget") and e["lsn"] is not None}
    signs = {"revisit": "again: ", "forget": "without: "}
    step = math.ceil(len(marks) / LABELLED)
    places = range(0, len(marks), step)
    texts = [
        signs.get(at[marks[p]]["kind"], "") + _shown(at[marks[p]]["task"] or "") if marks[p] in at else f"#{p + 1}"
        for p in places
    ]
    axes.set_xticks(
        places,
        texts,
        rotation=45 if sum(map(len, texts)) > 80 else 0,
        ha="right" if sum(map(len, texts)) > 80 else "center",
    )
    axes.margins(x=0.02)


def _legend(axes: Axes, past: Past) -> None:
    """Names where they are few; else a bar of positions."""
    order = past.order()
    if any((task in order) for _, task in past.revisits()):
        axes.scatter([], [], marker="*", s=120, color="white", edgecolor="black", label="revisit")
    if len(order) <= NAMED:
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = ScalarMappable(Normalize(1, len(order)), "viridis")
    axes.figure.colorbar(bar, ax=axes, label="position in which the task was first learned")
    handles, labels = axes.get_legend_handles_labels()
    few = [(h, text) for h, text in zip(handles, labels, strict=True) if text in ("mean", "revisit")]
    if few:
        axes.legend(*zip(*few, strict=True), loc="best")


# -- order bias --------------------------------------------------------------------------------------------------------


def order_bias(past: Past) -> Drawn:
    """How each task stands now, against its position in the order of learning, with a line fitted to it.

    A penalty that weighs some tasks more than others shows as a slope; without bias there is none.
    """
    rises, accuracies = _latest(past.penalties, "rise"), _latest(past.accuracies, "accuracy")
    panels = [(name, values) for name, values in (("rise", rises), ("accuracy", accuracies)) if len(values) > 1]
    if not panels:
        raise NothingToDraw(
            "the history has fewer than two tasks whose rise (factor mode) or accuracy (with an evaluation set) is known: "
            "learn two and close them"
        )
    from streamcl.bench.figure import Figure

    figure = Figure(figsize=(6.5 * len(panels), 4.6), layout="constrained")
    labels = {"rise": "estimated rise since it was learned, nats per sample", "accuracy": "accuracy now"}
    numbers: dict[str, Any] = {}
    for axes, (name, values) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        tasks = [task for task in past.order() if task in values]
        numbers[name] = _by_position(axes, tasks, [values[task] for task in tasks])
        axes.set(xlabel="position in the order of learning", ylabel=labels[name])
    figure.suptitle("Order bias: how tasks stand by the order in which they were learned")
    return Drawn(figure, numbers)


def _by_position(axes: Axes, tasks: Sequence[str], values: Sequence[float]) -> dict[str, Any]:
    import numpy as np
    from matplotlib.ticker import MaxNLocator

    places = np.arange(1, len(values) + 1)
    slope, start = np.polyfit(places, values, 1)
    rank = rank_correlation(places.tolist(), values)
    axes.scatter(places, values, s=40, zorder=3)
    axes.plot(places, start + slope * places, color="tab:red", linewidth=1.5, label=f"slope {slope:.3g} a position")
    shown = UNDEFINED if math.isnan(rank) else f"{rank:+.2f}"
    axes.set_title(f"rank correlation {shown}", fontsize="medium")
    if len(tasks) <= NAMED:
        axes.set_xticks(places, [f"{place}\n{_shown(task, 10)}" for place, task in zip(places, tasks, strict=True)])
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.legend()
    return {"rank_correlation": rank, "slope": float(slope), "tasks": list(tasks), "values": list(values)}


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's, ties at their mean rank; not a number where all values are alike."""
    import numpy as np

    ranks = [_ranks(np.asarray(values, float)) for values in (one, other)]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _ranks(values: Any) -> Any:
    import numpy as np

    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2.0)[inverse]


# -- over time ---------------------------------------------------------------------------------------------------------


def loss(past: Past) -> Drawn:
    """Training loss and prequential accuracy over time, with boundaries, revisits and failures."""
    known = [row for row in past.samples if row["loss"] is not None or row["accuracy"] is not None]
    if not known:
        raise NothingToDraw("no loss is in the history: it is recorded every other second from the first batch on")
    from streamcl.bench.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, name, label in ((upper, "loss", "training loss"), (lower, "accuracy", "prequential accuracy")):
        times, values = _with_gaps(past.samples, name)
        axes.plot(times, values, linewidth=1.5, marker="" if len(values) > FEW_BOUNDARIES else ".")
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        _mark_events(axes, past)
    if any(row["accuracy"] is not None for row in past.samples):
        lower.set_ylim(-0.02, 1.02)
    else:
        lower.text(0.5, 0.5, "not scored", transform=lower.transAxes, ha="center")
    upper.set_title("Loss, and accuracy of predictions made before learning")
    if upper.get_legend_handles_labels()[1]:
        upper.legend(loc="best")
    figure.autofmt_xdate()
    last = known[-1]
    return Drawn(figure, {"samples": len(known), "loss": last["loss"], "accuracy": last["accuracy"]})


def _with_gaps(samples: Sequence[Row], name: str) -> tuple[list[datetime], list[float]]:
    """Times and values, with a hole where the daemon did not run."""
    times: list[datetime] = []
    values: list[float] = []
    usual = sorted(row["seconds"] for row in samples)[len(samples) // 2]
    before = None
    for row in samples:
        if before is not None and row["time"] - before > 3 * max(usual, row["seconds"]) + 5:
            times.append(datetime.fromtimestamp(before + 1))
            values.append(math.nan)
        before = row["time"]
        times.append(datetime.fromtimestamp(row["time"]))
        values.append(math.nan if row[name] is None else row[name])
    return times, values


def _mark_events(axes: Axes, past: Past) -> None:
    """A line at each event of interest within the samples; each kind once in the legend."""
    first, last = past.samples[0]["time"] - 60, past.samples[-1]["time"] + 60
    seen: set[str] = set()
    for event in past.events:
        colour = (CHANGES | TROUBLES).get(event["kind"])
        if colour is None or not first <= event["time"] <= last:
            continue
        label = "" if event["kind"] in seen else event["kind"].replace("_", " ")
        seen.add(event["kind"])
        wide = 1.6 if event["kind"] in TROUBLES else 0.8
        at: Any = datetime.fromtimestamp(event["time"])
        axes.axvline(at, color=colour, linewidth=wide, alpha=0.7, label=label or None)


# -- all of them -------------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[Past], Drawn]] = {
    "accuracy": accuracy,
    "forgetting": forgetting,
    "penalty": penalty,
    "order-bias": order_bias,
    "loss": loss,
}


def write(drawn: Drawn, path: Path) -> None:
    """Write a figure as PNG or SVG, by the path's ending."""
    from streamcl.bench.figure import save

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # of a task's name in a script the font lacks
        save(drawn.figure, path)


def _since(time: float, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["time"] >= time]


def _marks(rows: Sequence[Row]) -> list[int]:
    return sorted({row["lsn"] for row in rows})


def _latest(rows: Sequence[Row], name: str) -> dict[str, float]:
    """Each task's newest value."""
    return {row["task"]: row[name] for row in rows if row[name] is not None and math.isfinite(row[name])}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _shown(task: str, characters: int = NAME_CHARACTERS) -> str:
    """A name that matplotlib shows unchanged: short, without mathematics, and never hidden from a legend."""
    short = task if len(task) <= characters else task[: characters - 1] + "…"
    plain = short.replace("$", r"\$")
    return "\u200b" + plain if plain.startswith("_") else plain


__all__ = ["KINDS", "Drawn", "NothingToDraw", "Past", "rank_correlation", "write"]
