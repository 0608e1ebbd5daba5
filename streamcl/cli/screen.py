"""How `streamcl top` looks: one screen of any size from 80 by 24 up; lines are cut, never wrapped."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from streamcl.cli import readable
from streamcl.cli.watch import Seen, accuracy_of

STATES = {
    "idle": "green",
    "training": "bold green",
    "consolidating": "bold cyan",
    "revisiting": "bold magenta",
    "paused": "bold yellow",
    "recovering": "bold red",
    "following": "bold green",
    "alone": "bold yellow",
    "waiting": "bold yellow",
    "no answer": "bold red",
}
BAD_EVENTS = {"failed", "refused", "disk_full", "warning", "lost"}
LABEL = 14  # columns
PROGRESS = 40  # columns that a consolidation's progress takes, beside its bar
ALARM_LINES = 3
ENOUGH = 20  # rows of each table where there is room for all

Row = Sequence[str | Text]


def draw(seen: Seen, width: int, height: int | None = None, where: str = "", keys: str = "") -> Group:
    """The whole screen; without a height, as many lines as it takes."""
    follows = "follows" in seen.status
    figures = _figures_of_follower(seen, width) if follows else _figures(seen, width)
    head = [_title(seen, width, where), *_alarms(seen, width), *figures]
    tables = [_events(seen)] if follows else [_producers(seen), _tasks(seen), _events(seen)]
    foot = [Text(keys, style="dim", no_wrap=True)] if keys else []
    room = None if height is None else height - len(head) - len(foot) - len(tables)
    counts = _shares([table.rows for table in tables], room)
    drawn = [table.draw(count) for table, count in zip(tables, counts, strict=True) if count > 0]
    spaced = room is None or room - sum(counts) >= len(drawn)
    body = [line for table in drawn for line in ([Text(""), table] if spaced else [table])]
    return Group(*head, *body, *foot)


def _shares(rows: Sequence[Sequence[Row]], room: int | None) -> list[int]:
    """How many lines each table gets: what one does not need goes to the others."""
    wanted = [min(len(part), ENOUGH) if room is None else len(part) for part in rows]
    if room is None:
        return wanted
    given = [0] * len(wanted)
    for _ in range(max(room, 0)):
        needy = [index for index, want in enumerate(wanted) if given[index] < want]
        if not needy:
            break
        given[min(needy, key=given.__getitem__)] += 1
    return given


# -- the head ----------------------------------------------------------------------------------------------------------


def _title(seen: Seen, width: int, where: str) -> RenderableType:
    status = seen.status
    left = Text.assemble(("streamcl ", "bold"), status.get("version", ""), "  ", (where, "dim"))
    clock = time.strftime("%H:%M:%S", time.localtime(seen.time))
    right = f"{status.get('mode') or ''}  up {readable.duration(status.get('uptime_seconds', 0.0))}  {clock}"
    return _apart(left, Text(right), width)


def _apart(left: Text, right: Text, width: int) -> Text:
    left.truncate(max(width - len(right) - 1, 0), overflow="ellipsis", pad=True)
    line = Text.assemble(left, " ", right, no_wrap=True, overflow="ellipsis")
    line.truncate(width)
    return line


def _alarms(seen: Seen, width: int) -> Iterable[RenderableType]:
    """What must not be missed."""
    status, bad = seen.status, "bold white on red"
    if seen.missing is not None:
        since = readable.duration(time.time() - seen.time)
        yield from _wrapped(f"no answer for {since}; trying again. {seen.missing}", width, bad)
    if status.get("problem"):
        yield from _wrapped(f"problem: {status['problem']}", width, bad)
    if status.get("warning"):
        yield from _wrapped(f"warning: {status['warning']}", width, "bold yellow")
    if status.get("quarantined"):
        text = f"{status['quarantined']} batches are set aside; `streamcl status` says which and why"
        yield from _wrapped(text, width, "yellow")


def _wrapped(text: str, width: int, style: str) -> Iterable[Text]:
    """A few lines of text; the rest is cut."""
    return (Text(line, style=style) for line in textwrap.wrap(text, width, max_lines=ALARM_LINES, placeholder=" …"))


def _figures(seen: Seen, width: int) -> list[RenderableType]:
    status = seen.status
    rate, credit, disk = (status.get(name) or {} for name in ("ingest_rate", "credit", "task_bytes"))
    lag = status.get("lag_batches") or 0
    workers = f", {status['workers']} processes" if status.get("workers", 1) > 1 else ""
    steps = f"{readable.number(status.get('steps'))} steps"
    samples = f"{readable.number(status.get('samples_seen'))} seen  {steps}  {_size(status)}{workers}"
    ingest = (
        f"{readable.number(rate.get('rows'))} rows/s  {readable.number(rate.get('batches'))} batches/s  "
        f"{readable.size(rate.get('bytes'))}/s"
    )
    room = f"{lag:,} batches behind  credit {readable.number(credit.get('messages'))} messages, "
    room += readable.size(credit.get("bytes"))
    return [
        _state(_now(seen), width),
        _labelled("samples", Text(samples)),
        _labelled("loss", _curve(status.get("train_loss"), seen.loss, width)),
        _labelled("accuracy", _curve(accuracy_of(status.get("prequential") or {}), seen.accuracy, width)),
        _labelled("past", _together(status.get("past") or {})),
        _labelled("ingest", Text(ingest)),
        _labelled("lag", Text(room, style="bold yellow" if credit.get("messages") == 0 else "")),
        _labelled("spool", _spool(disk, status.get("spool_bytes"))),
    ]


def _figures_of_follower(seen: Seen, width: int) -> list[RenderableType]:
    """What a follower has: whose predictions, up to where, and how far behind."""
    status, when = seen.status, readable.time_of(seen.status.get("published_at"))
    serves, behind = status.get("serves"), status.get("behind") or {}
    shown = "nothing yet"
    if serves:
        shown = f"version {serves['version']:,}, of {serves['rows']:,} rows, published {when}  {_size(status)}"
    rest = f"{readable.number(status.get('publications'))} publications, {readable.size(status.get('fetched_bytes'))}"
    return [
        _state({**_now(seen), "task": f"the daemon at {status['follows']}"}, width),
        _labelled("serves", Text(shown)),
        _labelled("behind", Text(_behind(behind), style="bold yellow" if behind.get("rows") else "")),
        _labelled("fetched", Text(f"{rest}{', and more is on its way' if status.get('fetching') else ''}")),
        _labelled("followers", Text(f"{readable.number(status.get('followers'))} of this follower")),
    ]


def _behind(behind: dict[str, Any]) -> str:
    heard = behind.get("seconds")
    said = "the daemon was not heard yet" if heard is None else f"the daemon was heard {readable.ago(heard)} ago"
    rows, steps = (readable.number(behind.get(name)) for name in ("rows", "steps"))
    return f"{rows} rows, {steps} steps; {said}"


def _size(status: dict[str, Any]) -> str:
    return f"{readable.number(status.get('parameters'))} parameters on {status.get('device', '-')}"


def _now(seen: Seen) -> dict[str, Any]:
    """The last status, as far as it still holds."""
    return seen.status if seen.missing is None else {**seen.status, "state": "no answer", "consolidation": None}


def _state(status: dict[str, Any], width: int) -> RenderableType:
    state, task, now = status.get("state", "-"), status.get("task"), status.get("consolidation") or {}
    name = Text(str(now.get("task") or task or "no task is open"))
    bar = 12 if width < 100 else 24
    name.truncate(max(width - LABEL - (PROGRESS + bar if now else 1), 10), overflow="ellipsis")
    doing = Text.assemble((f"{state:<{LABEL}}", STATES.get(state, "")), name, no_wrap=True)
    if not now:
        return doing
    done = now.get("fraction") or 0.0
    line = Table.grid(padding=(0, 1), expand=False)
    left = now.get("seconds_left")
    rest = f"{done:4.0%}  {readable.consolidation(now)}" + ("" if left is None else f"  {readable.duration(left)} left")
    line.add_row(doing, ProgressBar(total=1.0, completed=done, width=bar), Text(rest, no_wrap=True))
    return line


def _labelled(label: str, text: RenderableType) -> RenderableType:
    line = Table.grid()
    line.add_column(width=LABEL, style="dim")
    line.add_column(no_wrap=True, overflow="ellipsis")
    line.add_row(label, text)
    return line


def _curve(value: float | None, past: Sequence[float | None], width: int) -> Text:
    text = f"{readable.number(value):<10}"
    return Text.assemble(text, (readable.sparkline(past, width - LABEL - len(text) - 1), "cyan"))


def _spool(disk: dict[str, Any], spool: float | None) -> RenderableType:
    used, budget = disk.get("used") or 0, disk.get("budget") or 0
    share = used / budget if budget else 0.0
    style = "red" if share > 0.9 else "yellow" if share > 0.7 else "green"
    line = Table.grid(padding=(0, 1))
    bar = ProgressBar(total=1.0, completed=min(share, 1.0), width=20, complete_style=style, finished_style=style)
    line.add_row(
        Text(f"{readable.size(used)} of {readable.size(budget)}"), bar, Text(f"{share:.0%}  {readable.size(spool)} on disk")
    )
    return line


# -- the tables --------------------------------------------------------------------------------------------------------


class _Rows:
    """A table whose first line is its heading."""

    def __init__(self, title: str, columns: Sequence[str], rows: list[Row]) -> None:
        self.title, self.columns, self.rows = title, columns, rows

    def draw(self, count: int) -> RenderableType:
        """As many rows as fit below the heading."""
        rest = f", {count} shown" if count < len(self.rows) else ""
        table = Table(box=None, expand=True, padding=(0, 1, 0, 0), header_style="bold", pad_edge=False)
        table.add_column(f"{self.title}{rest}", no_wrap=True, overflow="ellipsis", ratio=1, min_width=10)
        for column in self.columns:
            table.add_column(column, justify="right", no_wrap=True)
        for row in self.rows[:count]:
            table.add_row(*row)
        return table


def _producers(seen: Seen) -> _Rows:
    rows: list[Row] = [
        (
            Text(producer["producer"]),
            readable.number(producer.get("durable")),
            readable.number(producer.get("applied")),
            readable.number(producer.get("batches_per_second")),
            readable.ago(producer.get("age_seconds")),
        )
        for producer in seen.producers
    ]
    total = seen.status.get("producers_total", len(rows))
    return _Rows(f"producers {total:,}", ("durable", "applied", "batches/s", "heard ago"), rows)


def _tasks(seen: Seen) -> _Rows:
    ordered = sorted(enumerate(seen.tasks), key=lambda pair: (-(pair[1].get("penalty_rise") or 0.0), -pair[0]))
    measured = any(task.get("accuracy") is not None for task in seen.tasks)
    cells: list[tuple[str, Callable[[dict[str, Any]], str | Text]]] = [
        ("samples", lambda task: readable.number(task.get("samples"))),
        ("loss", lambda task: readable.number(task.get("loss"))),
        ("rise", lambda task: _rise(task.get("penalty_rise"), task.get("rise_bound"), task.get("at_chance"))),
        *([("accuracy", lambda task: readable.number(task.get("accuracy")))] if measured else []),
        ("revisits", lambda task: readable.number(task.get("revisits"))),
        ("learned ago", lambda task: readable.ago(max(seen.time - (task.get("closed_at") or seen.time), 0.0))),
    ]
    rows: list[Row] = [(Text(task["task"]), *(cell(task) for _, cell in cells)) for _, task in ordered]
    return _Rows(f"tasks {seen.status.get('tasks', 0):,}", [name for name, _ in cells], rows)


def _rise(rise: float | None, bound: str | None, lost: bool | None) -> str | Text:
    if rise is None:
        return Text("at chance", style="bold red") if lost else "-"
    shown = readable.rise(rise, bound) if bound else f"{rise:+.3g}"
    return Text(shown, style="bold red" if lost else "red" if rise > 0.1 else "yellow" if rise > 0.01 else "")


def _together(past: dict[str, Any]) -> Text:
    """What all tasks have lost together."""
    rise = past.get("rise")
    if rise is None:
        return Text("-")
    shown, tasks = readable.rise(rise, past.get("rise_bound")), readable.number(past.get("tasks"))
    text = f"rise {shown} nats a sample over {tasks} tasks"
    return Text(text, style="bold red" if past.get("at_chance") else "red" if rise > 0.1 else "")


def _events(seen: Seen) -> _Rows:
    rows: list[Row] = []
    for event in seen.status.get("events") or []:
        at = time.strftime("%H:%M:%S", time.localtime(event["time"]))
        style = "red" if event["kind"] in BAD_EVENTS else ""
        kind = f"{event['kind']} {event.get('task') or ''}".strip()
        rows.append([Text.assemble((f"{at} ", "dim"), (f"{kind}: ", f"bold {style}"), (event["text"], style))])
    return _Rows("events", (), rows)
