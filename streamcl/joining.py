"""Input stages of exact learners made one: what the rows of all of them mean, and where each learner's inputs lie in it.

Rows with a schema reach a learner through a stage of its own (`inputs`). Sums add where the stages are one function of the
row, or where each learner's inputs are a linear function of the joint stage's, which is looked for where features are the
row itself: columns in another order, words that came in another order or to one learner alone. Then the joint sums are, up
to rounding, those of one learner that all rows came to.

Guarantees: exact or refused, in words, with what to do; never nearly. Knows nothing of sums, files or torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from streamcl.columns import Pinned
from streamcl.inputs import DIRECTION, FOUND

Array = npt.NDArray[Any]

SCALED = (
    "numbers of {name!r} are brought to scale by the first rows of each ({mine} and {theirs}, centre and scale): start all "
    "daemons with input.scale = 'none', on new state directories"
)
EXACTLY = "streamcl.models:identity, whose inputs can be rearranged"


@dataclass(frozen=True, slots=True)
class Column:
    """An input column. words: by place, and most of them; None where it has none. beyond: rows of other words. centre,
    scale: of a number. marked: an input beside it says that it is missing; gaps: rows that lack it where none does."""

    name: str
    kind: str
    words: tuple[str, ...] | None = None
    most: int = 0
    beyond: int = 0
    centre: float = 0.0
    scale: float = 1.0
    marked: bool = False
    gaps: int = 0


@dataclass(frozen=True, slots=True)
class Stage:
    """What an export tells of a stage. columns: None of plain arrays. words: of the targets, by label."""

    columns: tuple[Column, ...] | None
    words: tuple[str, ...] = ()
    target: str | None = None
    left_out: tuple[str, ...] = ()
    found: tuple[tuple[float, ...], ...] | None = field(default=None)
    plain: Mapping[str, Any] | None = None

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> Stage:
        """From what `exported.sums_file` wrote of it."""
        plain, found = told["inputs"], told["found"]
        kept = None if found is None else tuple(tuple(row) for row in found)
        if told["columns"] is None:
            return cls(None, tuple(told["words"]), found=kept, plain=plain)
        pinned = Pinned.from_plain(told["columns"])
        columns = tuple(_columns(pinned, plain or {"places": {}, "gaps": {}}, kept))
        return cls(columns, tuple(told["words"]), pinned.target, pinned.left_out, kept, plain)

    @property
    def names(self) -> list[str]:
        """Of the columns."""
        return [column.name for column in self.columns or ()]


def told(columns: Any, words: Sequence[str], inputs: Any, arrays: Mapping[str, Array]) -> dict[str, Any]:
    """What an export says of a stage: arguments as of `inputs.Inputs.load`."""
    found = arrays[FOUND].tolist() if FOUND in arrays else None
    kept = inputs if inputs is not None and "shape" in inputs else None
    return {"columns": columns, "words": list(words), "inputs": kept, "found": found}


def _columns(pinned: Pinned, plain: Mapping[str, Any], found: Sequence[Sequence[float]] | None) -> Iterator[Column]:
    number = 0
    for name, kind in pinned.kinds.items():
        if kind == "number" and found is not None:
            marked, gaps = name not in plain["gaps"], plain["gaps"].get(name, 0)
            yield Column(name, kind, None, 0, 0, found[0][number], found[1][number], marked, gaps)
            number += 1
        elif name in plain["places"]:
            most, beyond, words = plain["places"][name]
            yield Column(name, kind, tuple(words), most, beyond)
        else:
            yield Column(name, kind)


# -- what can be joined ----------------------------------------------------------------------------------------------------


def problems(one: Stage, two: Stage, scaled: bool, rearranged: bool) -> Iterator[str]:
    """Why rows of two stages cannot be had as rows of one. scaled: numbers are brought to scale (``input.scale``).
    rearranged: features are the row itself, so that a linear function of the inputs is one of the features."""
    if (one.columns is None) != (two.columns is None):
        yield "rows with named columns in one, plain arrays in the other: send both in the same way"
    elif one.columns is None or two.columns is None:
        if one.found != two.found:
            yield "rows brought to scale by the first rows of each: start all daemons with input.scale = 'none'"
    elif {column.name: column.kind for column in one.columns} != {column.name: column.kind for column in two.columns}:
        yield _others(one, two)
    else:
        if one.names != two.names and not rearranged:
            yield f"columns in another order: send their first batches in one order, or use {EXACTLY}"
        others = {column.name: column for column in two.columns}
        for column in one.columns:
            yield from _in_column(column, others[column.name], scaled, rearranged)
    if bool(one.words) != bool(two.words):
        yield "targets are words in one and numbers in the other"


def _others(one: Stage, two: Stage) -> str:
    apart = [
        f"only {place} has {', '.join(repr(name) for name in names[:8])}"
        for place, names in (
            ("the first", [name for name in one.names if name not in two.names]),
            ("the second", [name for name in two.names if name not in one.names]),
        )
        if names
    ]
    return f"other columns ({'; '.join(apart) or 'some of another kind'}): send the same columns to both"


def _in_column(mine: Column, theirs: Column, scaled: bool, rearranged: bool) -> Iterator[str]:
    name = mine.name
    if mine.kind == "number":
        alike = (mine.centre, mine.scale) == (theirs.centre, theirs.scale)
        if scaled and not alike:
            figures = (f"{one.centre:.6g}, {one.scale:.6g}" for one in (mine, theirs))
            yield SCALED.format(name=name, mine=next(figures), theirs=next(figures))
        elif not alike and any(one.gaps or one.marked for one in (mine, theirs)):
            yield (
                f"{name!r} lacks numbers, and the mean of each one's first rows stands for them ({mine.centre:.6g} and "
                f"{theirs.centre:.6g}): fill them in alike before they are sent, on new state directories"
            )
        elif mine.marked != theirs.marked and not rearranged:
            yield f"{name!r} has an input that says what is missing in one of them alone: use {EXACTLY}"
    elif mine.words is not None and theirs.words is not None:
        yield from _in_words(mine, theirs, rearranged)


def _in_words(mine: Column, theirs: Column, rearranged: bool) -> Iterator[str]:
    name, one, two = mine.name, mine.words or (), theirs.words or ()
    shared = min(len(one), len(two))
    if (
        mine.most == theirs.most
        and one[:shared] == two[:shared]
        and (len(one) == len(two) or not (mine.beyond or theirs.beyond))
    ):
        return
    if mine.beyond or theirs.beyond:
        yield f"{name!r} has words beyond its places, which are not told apart: use input.categories = 'embedding'"
    elif not rearranged:
        yield (
            f"words of {name!r} have other places: start all daemons with input.categories = 'embedding', or name the same "
            f"words in the same order in the schemas of the first batches, or use {EXACTLY}"
        )


# -- joined ----------------------------------------------------------------------------------------------------------------


def joined(stages: Sequence[Stage]) -> Stage:
    """The stage that rows of all have: columns and words in the order of the first, new words behind."""
    first = stages[0]
    words = _union([stage.words for stage in stages])
    if first.columns is None:
        return Stage(None, words, found=first.found, plain=first.plain)
    others = [{column.name: column for column in stage.columns or ()} for stage in stages]
    columns = tuple(_together([stage[column.name] for stage in others]) for column in first.columns)
    return Stage(columns, words, first.target, first.left_out, _found(columns), _plain(columns, stages))


def _together(columns: Sequence[Column]) -> Column:
    first = columns[0]
    if first.words is None:
        marked, gaps = any(column.marked for column in columns), sum(column.gaps for column in columns)
        return Column(first.name, first.kind, None, 0, 0, first.centre, first.scale, marked, 0 if marked else gaps)
    words = _union([column.words or () for column in columns])
    most = max(len(words), *(column.most for column in columns))
    return Column(first.name, first.kind, words, most, sum(column.beyond for column in columns))


def _union(each: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(word for words in each for word in words))


def _found(columns: Sequence[Column]) -> tuple[tuple[float, ...], ...] | None:
    numbers = [column for column in columns if column.kind == "number"]
    return (tuple(c.centre for c in numbers), tuple(c.scale for c in numbers)) if numbers else None


def _plain(columns: Sequence[Column], stages: Sequence[Stage]) -> dict[str, Any] | None:
    """As of `inputs.Inputs.plain`."""
    given = [stage.plain for stage in stages if stage.plain is not None]
    if not given:
        return None
    places = {c.name: [c.most, c.beyond, list(c.words)] for c in columns if c.words is not None}
    gaps = {c.name: c.gaps for c in columns if c.kind == "number" and not c.marked}
    return {**given[0], "frozen": True, "places": places, "gaps": gaps}


def pinned(stage: Stage) -> dict[str, Any]:
    """As of `columns.Pinned.plain`."""
    kinds: dict[str, Any] = {column.name: column.kind for column in stage.columns or ()}
    return Pinned(kinds, stage.target, bool(stage.words), stage.left_out).plain()


def placed(stage: Stage, whole: Stage) -> Array | None:
    """The matrix [inputs of the whole, inputs of the stage] that makes one of the other; None where they are the same."""
    if stage.columns is None or whole.columns is None:
        return None
    starts = dict(zip(stage.names, np.cumsum([0, *(_width(column) for column in stage.columns)])[:-1], strict=True))
    own = {column.name: column for column in stage.columns}
    matrix = np.zeros((sum(map(_width, whole.columns)), sum(map(_width, stage.columns))))
    at = 0
    for column in whole.columns:
        _put(matrix, at, int(starts[column.name]), column, own[column.name])
        at += _width(column)
    return None if matrix.shape[0] == matrix.shape[1] and (matrix == np.eye(len(matrix))).all() else matrix


def _width(column: Column) -> int:
    """Inputs of a column, as of `inputs.Inputs.signature`."""
    if column.words is not None:
        return column.most + 2
    return 1 + column.marked if column.kind == "number" else DIRECTION + 1 if column.kind == "category" else 1


def _put(matrix: Array, at: int, start: int, column: Column, own: Column) -> None:
    if own.words is None:
        for place in range(_width(own)):
            matrix[at + place, start + place] = 1.0
        return
    order = {word: place for place, word in enumerate(column.words or ())}
    for place, word in enumerate(own.words):
        matrix[at + order[word], start + place] = 1.0
    matrix[at + column.most, start + own.most] = matrix[at + column.most + 1, start + own.most + 1] = 1.0
